"""Write ofa_static.npz: how the public once-for-all package writes, reads and computes static networks, to compare ours with.

    python tests/reference/make_ofa_static.py

Needs `ofa` 0.1.0.post202307202001 (the newest release), and ofasearch, whose `net.config` the package is given to read. For
each family random subnets are cut out of its supernet: stored are their settings, the config that the package writes, the
config of ours that it has read, the names and shapes of the weights of what it built of ours (asserted to be those of the
subnet it cut out itself), and the logits of that with weights drawn by `foreign_state`.
"""

import copy
import json
import random
import sys
from pathlib import Path
from unittest.mock import MagicMock

import numpy as np
import torch
from foreign import GAIN, IMAGE_SEED, foreign_state, image

# Its data loaders import these at the top; its networks do without.
for absent in ("torchvision", "torchvision.transforms", "torchvision.transforms.functional", "torchvision.datasets", "gdown"):
    sys.modules.setdefault(absent, MagicMock())

from ofa.imagenet_classification.elastic_nn.networks import OFAMobileNetV3, OFAProxylessNASNets, OFAResNets  # noqa: E402
from ofa.imagenet_classification.networks import get_net_by_name  # noqa: E402

from ofasearch.space.core import Settings  # noqa: E402
from ofasearch.space.families import get_space  # noqa: E402
from ofasearch.space.static_write import net_config  # noqa: E402

MOBILE = {"dropout_rate": 0, "ks_list": [3, 5, 7], "expand_ratio_list": [3, 4, 6], "depth_list": [2, 3, 4]}
RESNET = {"dropout_rate": 0, "depth_list": [0, 1, 2], "expand_ratio_list": [0.2, 0.25, 0.35], "width_mult_list": [0.65, 0.8, 1.0]}
FAMILIES = {
    "ofa-mbv3-w1.0": lambda: OFAMobileNetV3(width_mult=1.0, **MOBILE),
    "ofa-proxyless-w1.3": lambda: OFAProxylessNASNets(width_mult=1.3, **MOBILE),
    "ofa-resnet50": lambda: OFAResNets(**RESNET),
}
RESOLUTIONS = (128, 132, 160, 196)
KEPT = 16  # logits of each network that are stored


def ours(space: str, arch: dict[str, list[float]], resolution: int) -> dict:
    """The config that we write of a network with these settings."""
    found = get_space(space).with_resolutions([resolution])
    none = np.zeros((1, 0), dtype=np.int64)
    ks = np.array([arch["ks"]]) if "ks" in arch else none
    w = np.array([arch["w"]]) if "w" in arch else None
    codes = found.from_settings(Settings(ks, np.array([arch["e"]]), np.array([arch["d"]]), np.array([resolution]), w))[0]
    return net_config(found.blueprint(codes))


def built(config: dict) -> torch.nn.Module:
    """What the package builds of a config; it takes apart what it reads."""
    return get_net_by_name(config["name"]).build_from_config(copy.deepcopy(config)).eval()


def shapes(net: torch.nn.Module) -> dict[str, list[int]]:
    """Names and shapes of the state dict."""
    return {name: list(tensor.shape) for name, tensor in net.state_dict().items()}


def record(space: str, net: torch.nn.Module, number: int) -> tuple[dict, np.ndarray]:
    """One random subnet: all that is told of it, and the first of its logits."""
    arch = {key: value for key, value in net.sample_active_subnet().items() if key in ("ks", "e", "d", "w")}
    resolution = RESOLUTIONS[number % len(RESOLUTIONS)]
    theirs = net.get_active_subnet(preserve_weight=False)
    config = ours(space, arch, resolution)
    network = built(config)
    assert shapes(network) == shapes(theirs) == shapes(built(theirs.config))
    weights = foreign_state({name: tuple(shape) for name, shape in shapes(network).items()}, GAIN)
    network.load_state_dict({name: torch.from_numpy(array) for name, array in weights.items()})
    with torch.no_grad():
        logits = network(torch.from_numpy(image(resolution, number)))[0, :KEPT].numpy()
    told = {"arch": arch, "resolution": resolution, "theirs": theirs.config, "ours": config, "shapes": shapes(network)}
    return told, logits


if __name__ == "__main__":
    random.seed(IMAGE_SEED)
    found: dict[str, np.ndarray] = {}
    for space, make in FAMILIES.items():
        net = make()
        told, logits = zip(*(record(space, net, number) for number in range(len(RESOLUTIONS))), strict=True)
        found[space] = np.frombuffer(json.dumps(told).encode(), dtype=np.uint8)
        found[f"{space}-logits"] = np.stack(logits)
    np.savez_compressed(Path(__file__).with_name("ofa_static.npz"), **found)
