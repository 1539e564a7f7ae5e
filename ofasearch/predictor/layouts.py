"""Which networks once-for-all's encoders read, and its dictionaries of them as settings.

Legend: n = networks, b = blocks.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import numpy.typing as npt

from ofasearch.errors import ArchError, MismatchError
from ofasearch.predictor.encode import Encoder, Part
from ofasearch.space.core import Settings
from ofasearch.space.families import get_space

Column = npt.NDArray[Any]
KERNELS, EXPANDS = (3, 5, 7), (3, 4, 6)


@dataclass(frozen=True)
class Layout:
    """What one encoder of once-for-all reads behind the resolution, and how many blocks each depth leaves.

    `blocks` are slots per stage; a stage keeps the first `base` + its depth of them. Where there is a `stem`, the
    first depth is its.
    """

    name: str  # as once-for-all calls it
    space: str | None  # where only one has its networks
    parts: tuple[Part, ...]
    blocks: tuple[int, ...]
    base: tuple[int, ...]
    depths: tuple[tuple[int, ...], ...]  # choices of each
    stem: bool = False

    @property
    def fields(self) -> tuple[str, ...]:
        """What a dictionary of a network holds beside its resolution."""
        return ("d", *(part.field for part in self.parts if part.field != "stem"))

    @cached_property
    def dims(self) -> int:
        """Features behind the resolution."""
        return sum(part.dims for part in self.parts)

    def encoder(self, resolutions: Sequence[int]) -> Encoder:
        """The encoder for these input sizes, which come first and in this order."""
        return Encoder((Part("r", 1, tuple(resolutions)), *self.parts))

    def active(self, d: Column) -> npt.NDArray[np.bool_]:
        """Which blocks (n, b) networks of these depths (n, depths) have."""
        kept = np.array(self.base) + d[:, int(self.stem) :]
        return np.concatenate([np.arange(blocks) < kept[:, i : i + 1] for i, blocks in enumerate(self.blocks)], axis=1)


def _mobile(name: str, space: str | None, blocks: tuple[int, ...]) -> Layout:
    count = sum(blocks)
    depths = tuple((2, 3, 4) if size == 4 else (1, 2, 3, 4) for size in blocks)  # once-for-all gives a stage of one block any depth
    return Layout(name, space, (Part("ks", count, KERNELS), Part("e", count, EXPANDS)), blocks, (0,) * len(blocks), depths)


MBV3 = _mobile("mbv3", None, (4,) * 5)
MBV2 = _mobile("mbv2", "ofa-proxyless-w1.3", (4, 4, 4, 4, 4, 1))
RESNET50 = Layout(
    name="resnet50",
    space="ofa-resnet50",
    parts=(Part("stem", 1, (0, 1)), Part("w", 6, (0, 1, 2)), Part("e", 18, (0.2, 0.25, 0.35))),
    blocks=(4, 4, 6, 4),
    base=(2, 2, 4, 2),
    depths=((0, 1, 2),) * 5,
    stem=True,
)
LAYOUTS = (RESNET50, MBV3, MBV2)
LAYOUT_OF = {"ofa-resnet50": RESNET50, "ofa-proxyless-w1.3": MBV2, "compofa-proxyless-w1.3": MBV2}


def layout_of(space: str) -> Layout:
    """The layout of a space's networks.

    Raises NotFoundError, MismatchError.
    """
    if space in LAYOUT_OF:
        return LAYOUT_OF[space]
    found = get_space(space)
    part_of_mbv3 = found.blocks == MBV3.parts[0].columns and {*found.kernels} <= {*KERNELS} and {*found.expands} <= {*EXPANDS}
    if not part_of_mbv3:
        raise MismatchError(f"the space must have 20 blocks of kernels 3, 5, 7 and ratios 3, 4, 6 for once-for-all, but {space} has others")
    return MBV3


def settings_of(layout: Layout, records: Sequence[Mapping[str, Any]]) -> Settings:
    """Settings of n networks from once-for-all's dictionaries: `d`, `e`, `ks` or `w`, and `image_size` (or `r`).

    What they say of blocks beyond the depth is forgotten. Raises ArchError.
    """
    names = (*layout.fields, "image_size")
    try:
        given = {name: np.array([_named(record, name) for record in records]) for name in names}
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise ArchError(
            f"a network of {layout.name} must be an object with lists {', '.join(names)}, but it cannot be read: {error}"
        ) from error
    widths: dict[str, int] = {"d": len(layout.depths), **{part.field: part.columns for part in layout.parts}}
    for name, values in given.items():
        _check_numbers(name, values, (len(records), widths[name]) if name in widths else (len(records),))
    for i, choices in enumerate(layout.depths):
        odd = given["d"][~np.isin(given["d"][:, i], choices), i]
        if len(odd):
            raise ArchError(f"d must hold one of {list(choices)} at position {i + 1}, but got {odd[0]}")
    active = layout.active(given["d"])
    ks, e = (_of_active(name, given[name], active) if name in given else np.zeros((len(records), 0), np.int64) for name in ("ks", "e"))
    return Settings(ks, e, given["d"], given["image_size"], given.get("w"))


def _named(record: Mapping[str, Any], name: str) -> Any:
    """A field of one dictionary; the tutorial says `r`, as a list of one, where the newer code says `image_size`."""
    if name != "image_size":
        return record[name]
    size = record["image_size"] if "image_size" in record else record["r"]
    return size[0] if isinstance(size, list) and len(size) == 1 else size


def _check_numbers(name: str, values: Column, shape: tuple[int, ...]) -> None:
    kinds = "iuf" if name == "e" else "iu"
    if values.shape != shape or values.dtype.kind not in kinds:
        what = f"{shape[1]} {'numbers' if name == 'e' else 'integers'}" if len(shape) > 1 else "one integer"
        raise ArchError(f"{name} must hold {what}, but got {str(values.tolist()[0])[:80]}")


def _of_active(name: str, values: Column, active: npt.NDArray[np.bool_]) -> Column:
    if (values[active] == 0).any():
        raise ArchError(f"{name} must be given for every block that the depths keep, but one is 0")
    return np.where(active, values, 0)
