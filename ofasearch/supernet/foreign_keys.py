"""Once-for-all's and CompOFA's key names <-> ours, family by family. The only file with foreign key names.

Elastic layers nest twice (`conv.conv.weight`, `bn.bn.bias`), those of a static network once (`conv.weight`); the mobile
families' blocks are called `conv` or, in older files, `mobile_inverted_conv`.

Reference: key names as the public once-for-all package (old and new) and the CompOFA repository write them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

_SE = re.compile(r"se\.fc\.(reduce|expand)\.(weight|bias)")
_MATRIX = re.compile(r"(?:conv\.)?(\dto\d)_matrix")
_NESTED = ("conv.", "bn.", "linear.")
_ELASTIC_BLOCK = re.compile(r"blocks\.\d+\..+\.conv\.conv\.weight")  # a ResNet's stem has such a key in a static network too
FIRST = "s0.b1"  # the one block that is static in an elastic mobile network


@dataclass(frozen=True, slots=True)
class Naming:
    """How one file names what its family leaves open."""

    old: bool = False
    static: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """The keys of one family of supernets, and by which of them a file is known to be of it."""

    title: str
    design: str  # with which the names of its designs begin
    marks: tuple[str, ...]  # what stands in keys of this family, and of none that comes later
    layers: Mapping[str, str]  # their name of a layer outside the blocks -> our slot
    parts: Mapping[str, str]  # their name of a part of a block -> ours
    stages: Mapping[int, int]  # blocks by the number of the stage
    inner: tuple[str, str]  # what stands between a block's number and its parts: new naming, old naming
    elastic_ends: bool  # whether the layers outside the blocks are elastic as well
    sizes: tuple[str, ...]  # our keys whose first dimensions tell the design
    slots: tuple[str, ...] = field(init=False)  # of the blocks, in their order

    def __post_init__(self) -> None:
        slots = tuple(f"s{stage}.b{block}" for stage, depth in self.stages.items() for block in range(1, depth + 1))
        object.__setattr__(self, "slots", slots)

    def naming(self, names: Iterable[str]) -> Naming:
        """How a file with these keys names things."""
        listed = tuple(names)
        old = self.inner[1] != self.inner[0] and any(self.inner[1] in name for name in listed)
        return Naming(old=old, static=not any(_ELASTIC_BLOCK.fullmatch(name) for name in listed))

    def our_key(self, name: str) -> str | None:
        """Our key of one of theirs, or None for one that no network of the family has."""
        for theirs, ours in self.layers.items():
            if name.startswith(f"{theirs}."):
                return f"{ours}.{_leaf(name.removeprefix(f'{theirs}.'))}"
        return self._block_key(name)

    def _block_key(self, name: str) -> str | None:
        match = re.fullmatch(r"blocks\.(\d{1,3})(\..+)", name)
        if match is None or int(match[1]) >= len(self.slots):
            return None
        slot, rest = self.slots[int(match[1])], match[2]
        inner = next((text for text in self.inner if rest.startswith(f"{text}.")), None)
        part, _, leaf = rest.removeprefix(f"{inner}.").partition(".")
        if inner is None or part not in self.parts:
            return None
        if self.parts[part] == "depth":
            gate, matrix = _SE.fullmatch(leaf), _MATRIX.fullmatch(leaf)
            if gate:
                return f"{slot}.se.{gate[1]}.{gate[2]}"
            if matrix:
                return f"{slot}.depth.{matrix[1]}"
        return f"{slot}.{self.parts[part]}.{_leaf(leaf)}"

    def their_key(self, key: str, naming: Naming) -> str:
        """Inverse of `our_key`, in one of their namings: for messages about keys that a file lacks."""
        for theirs, ours in self.layers.items():
            if key.startswith(f"{ours}."):
                return f"{theirs}.{_nested(key.removeprefix(f'{ours}.'), double=self.elastic_ends and not naming.static)}"
        stage, block, part, leaf = key.split(".", 3)
        slot = f"{stage}.{block}"
        unit = f"blocks.{self.slots.index(slot)}{self.inner[naming.old]}"
        if part == "se":
            return f"{unit}.depth_conv.se.fc.{leaf}"
        theirs = next(name for name, ours in self.parts.items() if ours == part)
        if re.fullmatch(r"\dto\d", leaf):
            return f"{unit}.{theirs}.conv.{leaf}_matrix"
        return f"{unit}.{theirs}.{_nested(leaf, double=not naming.static and slot != FIRST)}"


def _leaf(rest: str) -> str:
    """`conv.conv.weight` -> `conv.weight`, `bn.bn.bias` -> `bn.bias`; what is nested once stays."""
    for part in _NESTED:
        if rest.startswith(part * 2):
            return rest.removeprefix(part)
    return rest


def _nested(leaf: str, *, double: bool) -> str:
    return f"{leaf.partition('.')[0]}.{leaf}" if double else leaf


RESNET_PARTS = {"conv1": "conv1", "conv2": "conv2", "conv3": "conv3", "downsample": "down"}
MOBILE_PARTS = {"inverted_bottleneck": "expand", "depth_conv": "depth", "point_linear": "project"}
_MOBILE_LAYERS = {"first_conv": "stem", "feature_mix_layer": "head.feature", "classifier": "head.classifier"}
MOBILE_INNER = (".conv", ".mobile_inverted_conv")
_FOURS = dict.fromkeys(range(1, 6), 4)

FAMILIES = (
    Family(
        title="MobileNetV3",
        design="ofa-mbv3-",
        marks=("final_expand_layer.", ".se.fc."),
        layers={**_MOBILE_LAYERS, "final_expand_layer": "head.expand"},
        parts=MOBILE_PARTS,
        stages={0: 1, **_FOURS},
        inner=MOBILE_INNER,
        elastic_ends=False,
        sizes=("stem.conv.weight", "head.expand.conv.weight", "head.feature.conv.weight"),
    ),
    Family(
        title="ProxylessNAS",
        design="ofa-proxyless-",
        marks=("first_conv.", "feature_mix_layer."),
        layers=_MOBILE_LAYERS,
        parts=MOBILE_PARTS,
        stages={0: 1, **_FOURS, 6: 1},
        inner=MOBILE_INNER,
        elastic_ends=False,
        sizes=("stem.conv.weight", "head.feature.conv.weight"),
    ),
    Family(
        title="ResNet50",
        design="ofa-resnet50",
        marks=("input_stem.",),
        layers={
            "input_stem.0": "stem.first",
            "input_stem.1.conv": "stem.second",
            "input_stem.2": "stem.third",
            "classifier": "head.classifier",
        },
        parts=RESNET_PARTS,
        stages={1: 4, 2: 4, 3: 6, 4: 4},
        inner=("", ""),
        elastic_ends=True,
        sizes=("stem.first.conv.weight", "stem.third.conv.weight"),
    ),
)


def family_of_keys(names: Iterable[str]) -> Family | None:
    """The family of a file with these keys; None where they are of none."""
    listed = tuple(names)
    return next((family for family in FAMILIES if any(mark in name for mark in family.marks for name in listed)), None)


def family_of_space(space: str) -> Family:
    """The family of a published space, by its name.

    Raises KeyError for a space of no family that others have published.
    """
    for family in FAMILIES:
        if space.removeprefix("comp").startswith(family.design):
            return family
    raise KeyError(space)
