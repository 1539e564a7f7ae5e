"""A few short trainings, by one process or by several of one job: `python processes.py OUT` in torchrun's environment."""

import sys
from pathlib import Path

import numpy as np
import torch

from ofasearch.data import ImageSet, Preprocessing
from ofasearch.ranks import Ranks, join
from ofasearch.space.families import MobileDesign, Stage, mobile_space
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import digest
from ofasearch.train.loop import TrainConfig, Trainer
from ofasearch.train.source import MemorySource
from ofasearch.train.strategies import OFA, RSS, DepS

STAGES = (Stage(8, 1, "relu", se=False, kernel=3), Stage(16, 2, "h_swish", se=True, kernel=5))
SIZES = {"stem": 8, "stem_stride": 1, "first": 8, "c_expand": 16, "c_feature": 24, "classes": 3, "resolutions": (8,)}
DESIGN = MobileDesign(name="tiny", stages=STAGES, depths=(1, 2), expands=(2, 3), kernels=(3, 5), **SIZES)
METHODS = {"deps": DepS(subnets=2, warmup_share=0.25), "ofa": OFA(), "rss": RSS()}


def trained(name: str, *, ranks: Ranks, accumulate: int):
    """Losses and weights after 12 steps of 8 images in all; the processes start from other weights each."""
    rng = np.random.default_rng(0)
    images = ImageSet(rng.integers(0, 256, (24, 8, 8, 3)).astype(np.uint8), rng.integers(0, 3, 24))
    config = TrainConfig(epochs=4, batch_size=8, accumulate=accumulate, warmup_epochs=0.5, lr=0.02, crop_padding=1, dropout=0.1, erase=0.5)
    source = MemorySource(images, crop_padding=1, flip=True, device=torch.device("cpu"))
    supernet = Supernet(mobile_space(DESIGN), generator=torch.Generator().manual_seed(ranks.rank))
    preprocessing = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), size=8)
    trainer = Trainer(supernet, METHODS[name], config, source, preprocessing, ranks=ranks)
    losses = [report.loss for report in trainer.run()]
    return losses, supernet.arrays()


def main(out: Path) -> None:
    with join() as ranks:
        for name in METHODS:
            losses, arrays = trained(name, ranks=ranks, accumulate=1)
            found = ranks.gather((losses, digest(arrays)))
            assert found == [found[0]] * ranks.size  # every process has all losses and the same weights
            if ranks.first:
                np.savez(out / f"{name}.npz", losses=losses, **arrays)


if __name__ == "__main__":
    main(Path(sys.argv[1]))
