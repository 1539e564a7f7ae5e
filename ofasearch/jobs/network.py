"""What a user names when only the layers of a network matter: an arch id, settings, a subnet.pt, or a published net.config."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch.errors import ArchError, NotFoundError, UsageError
from ofasearch.jobs.deliver import Subnet, load_subnet
from ofasearch.jobs.published import network_name, published_digest, published_subnet
from ofasearch.records import file_digest, parse_json
from ofasearch.space.core import Blueprint, Codes, Settings, Space
from ofasearch.space.families import find_design, get_space
from ofasearch.space.static import read_net_config

NET_CONFIG = "net.config"
SUBNET_FILE = "subnet.pt"  # in the folder of a run


@dataclass(frozen=True, slots=True, kw_only=True)
class Network:
    """The layers of one network; `space` and `codes` (g,) where it belongs to a design space."""

    name: str
    blueprint: Blueprint
    space: Space | None = None
    codes: Codes | None = None

    @property
    def resolution(self) -> int:
        """Input height = width, pixels."""
        return self.blueprint[0].hw_in


def read_network(text: str, *, space: str | None = None) -> Network:
    """The network that `text` names: an arch id, a JSON object with `ks`, `e`, `d`, `r` (with `space`), a subnet.pt, or a net.config.

    A net.config is a file of that name with its run.config beside it. A folder stands for the subnet.pt in it, else for the
    net.config; of the latter only the layers are read.
    Raises ArchError, FormatError, NotFoundError, UsageError.
    """
    place = place_of(text)
    if place is not None and _is_config(place):
        return Network(name=network_name(place), blueprint=read_net_config(place))
    if place is not None:
        return network_of(load_subnet(place)[0])
    if _looks_like_a_path(text):
        raise NotFoundError(f"{text} must be an existing subnet.pt, net.config or folder of one, but there is none")
    found = space_of(text, space)
    codes = parse_codes(text, found)
    return Network(name=found.arch(codes).id, blueprint=found.blueprint(codes), space=found, codes=codes)


def place_of(text: str) -> Path | None:
    """The file that a text names a network by: a subnet.pt, or a net.config; None for ids and JSON. It need not be there.

    A folder stands for the subnet.pt in it, else for the net.config.
    """
    if not text or text.lstrip().startswith("{"):
        return None  # JSON may be longer than the system lets a name be
    path = Path(text)
    if path.is_dir():
        return path / (SUBNET_FILE if (path / SUBNET_FILE).is_file() else NET_CONFIG)
    return path if text.endswith((".pt", NET_CONFIG)) or path.is_file() else None


def subnet_at(place: Path) -> Subnet:
    """The network with weights at a place that a text names: a subnet.pt, or a net.config with the weights beside it.

    Raises NotFoundError, FormatError, MismatchError.
    """
    return published_subnet(place) if _is_config(place) else load_subnet(place)[0]


def digest_at(place: Path) -> str:
    """sha256 (hex) over the files of the network at a place."""
    return published_digest(place) if _is_config(place) else file_digest(place)


def _is_config(place: Path) -> bool:
    return place.name.endswith(NET_CONFIG)


def _looks_like_a_path(text: str) -> bool:
    """Whether a text that names no file was meant to; arch ids hold no slash, JSON begins with a brace."""
    return "/" in text and not text.lstrip().startswith("{")


def network_of(subnet: Subnet) -> Network:
    """The network of a subnet.pt; it belongs to the space that it names only if it has the layers that its id says."""
    claimed = claimed_network(subnet.arch.id, subnet.arch.space, subnet.classes, subnet.blueprint[0].hw_in)
    if claimed is None or [spec.shape for spec in claimed.blueprint] != [spec.shape for spec in subnet.blueprint]:
        return Network(name=subnet.arch.id, blueprint=subnet.blueprint)
    return replace(claimed, blueprint=subnet.blueprint)


def claimed_network(arch_id: str, space: str, classes: int, resolution: int) -> Network | None:
    """The network that a file says it holds, at its input size in pixels; None where there is no such network."""
    try:
        found = get_space(space, classes=classes).with_resolutions([resolution])
        codes = parse_codes(arch_id, found)
    except (ValueError, NotFoundError):  # an ArchError is a ValueError; digits of other scripts raise plain ones
        return None
    return Network(name=arch_id, blueprint=found.blueprint(codes), space=found, codes=codes)


def parse_codes(text: str, space: Space) -> Codes:
    """Codes (g,) of an arch id or a JSON object with `ks` (or `w`, in a ResNet space), `e`, `d`, `r`.

    Raises ArchError.
    """
    if not text.lstrip().startswith("{"):
        return np.array(space.parse(text).codes, dtype=np.int64)
    try:
        record: Mapping[str, Any] = parse_json(text)
        r = record["image_size"] if "image_size" in record else record["r"]  # as once-for-all's newer or older code says it
        r = r[0] if isinstance(r, list) else r
        given = {name: np.array([record[name]]) for name in space.fields}
        ratios = np.float64 if given["e"].dtype.kind == "f" else np.int64
        given = {name: value.astype(ratios if name == "e" else np.int64, casting="safe") for name, value in given.items()}
        size = np.array([r]).astype(np.int64, casting="safe")
        if size.shape != (1,):
            raise ValueError("r is no single number")
        settings = Settings.of(given, size)
    except (ValueError, KeyError, TypeError, IndexError, OverflowError) as error:
        what = "numbers w, e, d and r" if space.widths else "integers ks, e, d and r"
        raise ArchError(f"a subnet in JSON must hold {what}, but it cannot be read: {error}") from error
    codes: Codes = space.from_settings(settings)[0]
    return codes


def space_of(text: str, default: str | None) -> Space:
    """The space that a subnet's text names, else the default.

    Raises UsageError when neither names one.
    """
    name = text.partition("@")[0]
    if default is None:
        try:
            find_design(name)
        except NotFoundError:
            raise UsageError(
                "a subnet must be an arch id, a subnet.pt, a net.config or JSON (with --space to say what it belongs to), "
                f"but got '{text[:80]}'"
            ) from None
    return get_space(default or name)


def is_file(text: str) -> bool:
    """Whether a subnet's text names a file; JSON may be longer than the system lets a name be."""
    return not text.lstrip().startswith("{") and Path(text).is_file()
