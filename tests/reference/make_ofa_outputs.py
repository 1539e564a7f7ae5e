"""Write ofa_outputs.npz: what the public once-for-all package computes, to compare our import of its checkpoints with.

    python tests/reference/make_ofa_outputs.py

Needs `ofa` 0.1.0.post202307202001 (the newest release). Weights are drawn from a seed by the tests' own
`foreign_state`, so the file holds only settings and logits: for each width 20 random subnets of mixed resolution in
evaluation mode, and the same subnets with plain centre crops instead of kernel transforms (as CompOFA trained).
"""

import random
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
from foreign import IMAGE_SEED, foreign_state, image

# Its data loaders import these at the top; its networks do without.
for absent in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.datasets", "gdown"):
    sys.modules.setdefault(absent, MagicMock())

from ofa.imagenet_classification.elastic_nn.modules.dynamic_op import DynamicSeparableConv2d  # noqa: E402
from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3  # noqa: E402

RESOLUTIONS = (128, 160, 176, 192, 224)
KEPT = 16  # logits of each subnet that are stored


def outputs(width: float, matrices: bool) -> dict[str, np.ndarray]:
    """Settings (20, 46) and logits (20, 16) of one width."""
    DynamicSeparableConv2d.KERNEL_TRANSFORM_MODE = 1 if matrices else None
    net = OFAMobileNetV3(dropout_rate=0, width_mult=width, ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6], depth_list=[2, 3, 4])
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    net.load_state_dict({name: torch.from_numpy(array) for name, array in foreign_state(shapes).items()})
    net.eval()
    random.seed(IMAGE_SEED)
    settings, logits = [], []
    for number in range(20):
        arch = net.sample_active_subnet()
        resolution = RESOLUTIONS[number % len(RESOLUTIONS)]
        with torch.no_grad():
            y = net(torch.from_numpy(image(resolution, number)))
        settings.append([*arch["ks"], *arch["e"], *arch["d"], resolution])
        logits.append(y[0, :KEPT].numpy())
    return {"settings": np.array(settings, dtype=np.int16), "logits": np.stack(logits)}


if __name__ == "__main__":
    found = {}
    for width in (1.0, 1.2):
        for matrices in (True, False):
            for name, array in outputs(width, matrices).items():
                found[f"w{width}-{'matrices' if matrices else 'crops'}-{name}"] = array
    np.savez_compressed(Path(__file__).with_name("ofa_outputs.npz"), **found)
