"""Once-for-all's published networks as subnets: a folder with `net.config`, `run.config` and the weights `init`."""

from __future__ import annotations

import hashlib
import os
from dataclasses import replace
from pathlib import Path

from ofasearch.data import IMAGENET
from ofasearch.jobs.deliver import Subnet
from ofasearch.latency.account import named
from ofasearch.records import file_digest
from ofasearch.space.core import Arch
from ofasearch.supernet.published import INIT, load_published
from ofasearch.supernet.weights import layer_key


def network_name(config: Path) -> str:
    """What a network is called that has no id: as its folder."""
    return Path(os.path.abspath(config)).parent.name  # noqa: PTH100 - which follows no link in a circle


def published_subnet(config: Path) -> Subnet:
    """The network of a `net.config` with the weights beside it, and the batch norm that they were published with.

    It belongs to no space and no supernet, names no classes, and takes images as all of once-for-all's do. Its layers get
    names, so that it can be trained further. Raises NotFoundError, FormatError, MismatchError.
    """
    layers, arrays = load_published(config)
    blueprint = named(layers)
    slots = {layer_key(spec, index): blueprint[index].slot for index, spec in enumerate(layers)}
    return Subnet(
        arch=Arch(network_name(config), "", ()),
        blueprint=blueprint,
        arrays={f"{slots[layer]}.{part}": array for key, array in arrays.items() for layer, _, part in [key.partition(".")]},
        preprocessing=replace(IMAGENET, size=blueprint[0].hw_in),
        class_names=(),
        classes=blueprint[-1].c_out,
        supernet="",
        supernet_digest="",
        calibrated="as published",
        settings={},
    )


def published_digest(config: Path) -> str:
    """sha256 (hex) over all that makes the network: its layers, its input size and its weights."""
    files = (config, config.with_name("run.config"), config.with_name(INIT))
    return hashlib.sha256(" ".join(map(file_digest, files)).encode()).hexdigest()
