"""Write ofa_outputs.npz: what the public once-for-all package computes, to compare our import of its checkpoints with.

    python tests/reference/make_ofa_outputs.py

Needs `ofa` 0.1.0.post202307202001 (the newest release). Weights are drawn from a seed by the tests' own
`foreign_state`, so the file holds only settings and logits: for each supernet 20 random subnets of mixed resolution in
evaluation mode; where it has kernel transforms, the same subnets with plain centre crops instead (as CompOFA trained);
and the first of these subnets after the package has sorted the channels, with the order that it gave those of one block.
"""

import random
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
from foreign import IMAGE_SEED, foreign_state, image
from torch import nn

# Its data loaders import these at the top; its networks do without.
for absent in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.datasets", "gdown"):
    sys.modules.setdefault(absent, MagicMock())

from ofa.imagenet_classification.elastic_nn.modules.dynamic_op import DynamicSeparableConv2d  # noqa: E402
from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3, OFAProxylessNASNets, OFAResNets  # noqa: E402

KEPT = 16  # logits of each subnet that are stored
SORTED = 5  # subnets that run again with sorted channels


@dataclass(frozen=True)
class Peer:
    """One supernet of the package, made as its model zoo makes it, and the norms of one block that tell its order."""

    make: Callable[[], nn.Module]
    resolutions: tuple[int, ...]
    kinds: tuple[str, ...]
    norms: tuple[str, ...]


def mobile(kind: type[nn.Module], width: float) -> Callable[[], nn.Module]:
    return lambda: kind(dropout_rate=0, width_mult=width, ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6], depth_list=[2, 3, 4])


def resnet() -> nn.Module:
    return OFAResNets(dropout_rate=0, depth_list=[0, 1, 2], expand_ratio_list=[0.2, 0.25, 0.35], width_mult_list=[0.65, 0.8, 1.0])


SIZES = (128, 160, 176, 192, 224)
BOTH = ("matrices", "crops")
PEERS = {
    "ofa-mbv3-w1.0": Peer(mobile(OFAMobileNetV3, 1.0), SIZES, BOTH, ("blocks.8.conv.depth_conv.bn.bn.running_mean",)),
    "ofa-mbv3-w1.2": Peer(mobile(OFAMobileNetV3, 1.2), SIZES, BOTH, ("blocks.20.conv.depth_conv.bn.bn.running_mean",)),
    "ofa-proxyless-w1.3": Peer(mobile(OFAProxylessNASNets, 1.3), SIZES, BOTH, ("blocks.21.conv.depth_conv.bn.bn.running_mean",)),
    "ofa-resnet50": Peer(resnet, (128, 144, 160), ("crops",), ("blocks.8.conv1.bn.bn.running_mean", "blocks.8.conv2.bn.bn.running_mean")),
}


def outputs(peer: Peer, kind: str) -> dict[str, np.ndarray]:
    """Settings (20, columns) by name, logits (20, 16), logits of sorted networks (5, 16), orders of channels."""
    DynamicSeparableConv2d.KERNEL_TRANSFORM_MODE = 1 if kind == "matrices" else None
    net = peer.make()
    shapes = {name: tuple(tensor.shape) for name, tensor in net.state_dict().items()}
    net.load_state_dict({name: torch.from_numpy(array) for name, array in foreign_state(shapes).items()})
    net.eval()
    random.seed(IMAGE_SEED)
    archs, logits = [], []
    for number in range(20):
        archs.append(net.sample_active_subnet() | {"r": [peer.resolutions[number % len(peer.resolutions)]]})
        logits.append(run(net, archs[-1], number))
    found = {key: np.array([arch[key] for arch in archs]) for key in ("ks", "e", "d", "r", "w") if archs[0].get(key) is not None}
    found = {key: array if key == "e" else array.astype(np.int16) for key, array in found.items()}
    before = {name: net.state_dict()[name].clone() for name in peer.norms}
    net.re_organize_middle_weights(expand_ratio_stage=0)
    for number, name in enumerate(peer.norms):
        places = {value: place for place, value in enumerate(before[name].tolist())}
        assert len(places) == len(before[name])
        found[f"order{number}"] = np.array([places[value] for value in net.state_dict()[name].tolist()], dtype=np.int16)
    return found | {"logits": np.stack(logits), "sorted": np.stack([run(net, arch, i) for i, arch in enumerate(archs[:SORTED])])}


def run(net: nn.Module, arch: dict, number: int) -> np.ndarray:
    """The first logits of one subnet."""
    net.set_active_subnet(**{key: value for key, value in arch.items() if key != "r"})
    with torch.no_grad():
        return net(torch.from_numpy(image(arch["r"][0], number)))[0, :KEPT].numpy()


if __name__ == "__main__":
    found = {}
    for name, peer in PEERS.items():
        for kind in peer.kinds:
            for key, array in outputs(peer, kind).items():
                found[f"{name}-{kind}-{key}"] = array
    np.savez_compressed(Path(__file__).with_name("ofa_outputs.npz"), **found)
