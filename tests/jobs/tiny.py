"""What the tests of evaluating jobs share: a tiny design of 400 networks, random weights, and images of noise."""

import numpy as np
import torch

from ofasearch.data import DataSet, ImageSet, Preprocessing
from ofasearch.space.families import MobileDesign, Stage
from ofasearch.supernet.elastic import norms
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import Weights
from ofasearch.zoo import TrainedSupernet

PREPROCESSING = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), size=8)


def images_of(n, seed):
    rng = np.random.default_rng(seed)
    return ImageSet(rng.integers(0, 256, (n, 8, 8, 3)).astype(np.uint8), rng.integers(0, 3, n))


DATA = DataSet(
    "noise",
    ("a", "b", "c"),
    {split: images_of(n, seed) for seed, (split, n) in enumerate({"train": 8, "calibration": 24, "validation": 32, "test": 40}.items())},
)


def supernet_of(name, space, seed=1, spread=0.0):
    """A supernet of random weights; with a `spread` of its scales its networks differ more in what they predict."""
    generator = torch.Generator().manual_seed(seed)
    supernet = Supernet(space, generator=generator)
    with torch.no_grad():
        for norm in norms(supernet).values() if spread else ():
            for parameter in (norm.weight, norm.bias):
                parameter.add_(spread * torch.randn(parameter.shape, generator=generator))
    return TrainedSupernet(name, Weights(supernet.arrays(), space, PREPROCESSING), None)


def design_of(name, **changes):
    stages = (Stage(8, 1, "relu", se=False, kernel=3), Stage(16, 2, "h_swish", se=True, kernel=5))
    facts = {"depths": (1, 2), "expands": (2, 3), "kernels": (3, 5), "resolutions": (8,)} | changes
    return MobileDesign(name=name, stem=8, stem_stride=1, first=8, stages=stages, c_expand=16, c_feature=24, classes=3, **facts)
