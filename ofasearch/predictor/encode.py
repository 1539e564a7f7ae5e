"""One-hot features of networks, in the orders that published predictors expect.

Legend: n = networks, f = features.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ofasearch.errors import MismatchError
from ofasearch.space.core import Settings, Space

Matrix = npt.NDArray[np.float32]
Field = Literal["ks", "e", "r", "w", "stem"]  # what of the settings a part reads; "stem" is whether the first depth is above 0
SPELLED: Mapping[Field, str] = {"ks": "ks", "e": "e", "r": "resolution", "w": "w", "stem": "d"}
DENSE = 10_000  # choices up to this value are looked up in a table


@dataclass(frozen=True)
class Part:
    """One-hot codes of `columns` values of one field, side by side: column by column, choices in order.

    The value 0 of a skipped block, where 0 is no choice, has a code of zeros.
    """

    field: Field
    columns: int
    choices: tuple[float, ...]

    @property
    def dims(self) -> int:
        """Number of features."""
        return self.columns * len(self.choices)

    def values(self, settings: Settings) -> npt.NDArray[Any]:
        """What it reads of n networks, (n, columns)."""
        found: dict[Field, npt.NDArray[Any] | None] = {
            "ks": settings.ks,
            "e": settings.e,
            "r": settings.r[:, None],
            "w": settings.w,
            "stem": (settings.d[:, :1] > 0).astype(np.int64),
        }
        values = found[self.field]
        if values is None or values.ndim != 2 or values.shape[1] != self.columns:
            got = "none" if values is None else str(values.shape[-1])
            raise MismatchError(f"{SPELLED[self.field]} must hold {self.columns} values for this predictor, but holds {got}")
        return values

    def encode(self, settings: Settings) -> Matrix:
        """Features (n, columns * choices)."""
        values = self.values(settings)
        if values.dtype.kind in "iu" and all(float(c).is_integer() and 0 <= c <= DENSE for c in self.choices):
            rows = _one_hot_rows(self.choices)
            inside = values.min(initial=0) >= 0 and values.max(initial=0) < len(rows)
            hot = rows[values] if inside else None
            if hot is None or np.isnan(hot[..., 0]).any():
                raise self._unknown(values)
        else:
            match = np.isclose(values[..., None], np.array(self.choices), rtol=0, atol=1e-6)
            if not (match.any(axis=-1) | ((values == 0) & self._may_be_absent)).all():
                raise self._unknown(values)
            hot = match.astype(np.float32)
        return np.asarray(hot.reshape(len(values), self.dims))

    @property
    def _may_be_absent(self) -> bool:
        return self.field in ("ks", "e") and 0 not in self.choices

    def _unknown(self, values: npt.NDArray[Any]) -> MismatchError:
        known = [int(c) if float(c).is_integer() else c for c in self.choices]
        odd = values[~(np.isin(values, self.choices) | ((values == 0) & self._may_be_absent))]
        got = odd[0].item() if len(odd) else "another"
        if self.field == "r":
            return MismatchError(f"resolution must be one of {known} for this predictor, but got {got}; narrow --resolutions")
        zero = " (or 0)" if self._may_be_absent else ""
        return MismatchError(
            f"{SPELLED[self.field]} must hold {self.columns} values of {known}{zero} for this predictor, but one is {got}; "
            "use one of the space"
        )


@dataclass(frozen=True, slots=True)
class Feature:
    """What one feature of an encoder stands for: a value in a column of a field."""

    field: Field
    column: int
    value: float

    def __str__(self) -> str:
        value = f"{self.value:g}"
        return f"{SPELLED[self.field]} {value}" if self.field == "r" else f"{SPELLED[self.field]} {value} at position {self.column + 1}"


@cache
def _one_hot_rows(choices: tuple[float, ...]) -> Matrix:
    """Row v is the one-hot code of the value v: zeros for the 0 of a skipped block, NaN for any other value."""
    known = [int(c) for c in choices]
    rows = np.full((max(known) + 1, len(known)), np.nan, dtype=np.float32)
    rows[0] = 0
    rows[known] = np.eye(len(known), dtype=np.float32)
    return rows


@dataclass(frozen=True)
class Encoder:
    """What a predictor reads: parts of one-hot codes, one behind the other."""

    parts: tuple[Part, ...]

    @cached_property
    def dims(self) -> int:
        """Number of features f."""
        return sum(part.dims for part in self.parts)

    @cached_property
    def resolutions(self) -> tuple[int, ...]:
        """Input sizes it tells apart, pixels."""
        return tuple(int(c) for part in self.parts if part.field == "r" for c in part.choices)

    @cached_property
    def features(self) -> tuple[Feature, ...]:
        """What each of the f features stands for."""
        return tuple(Feature(part.field, i, value) for part in self.parts for i in range(part.columns) for value in part.choices)

    def encode(self, settings: Settings) -> Matrix:
        """Features (n, f).

        Raises MismatchError when a kernel, expand ratio, width or resolution is unknown to this encoder.
        """
        return np.concatenate([part.encode(settings) for part in self.parts], axis=1)

    def with_resolutions(self, resolutions: tuple[int, ...]) -> Encoder:
        """The same with other input sizes."""
        parts = (Part("r", 1, resolutions) if part.field == "r" else part for part in self.parts)
        return Encoder(tuple(parts))


def blocks_encoder(kernels: tuple[int, ...], expands: tuple[float, ...], resolutions: tuple[int, ...], blocks: int) -> Encoder:
    """Kernels of all blocks, then expand ratios, then the resolution: the order of the once-for-all tutorial, and ours."""
    return Encoder((Part("ks", blocks, kernels), Part("e", blocks, expands), Part("r", 1, resolutions)))


def encoder_of(space: Space) -> Encoder:
    """The encoder that knows all that the space can hold; of a ResNet space in the order of once-for-all's."""
    if space.widths:
        indices = tuple(sorted({int(c) for gene in space.genes if gene.reads[0] == "w" for c in gene.choices}))
        widths, expands = Part("w", space.widths, indices), Part("e", space.blocks, space.expands)
        return Encoder((Part("r", 1, space.resolutions), Part("stem", 1, (0, 1)), widths, expands))
    return blocks_encoder(space.kernels, space.expands, space.resolutions, space.blocks)


TUTORIAL_ENCODER = blocks_encoder((3, 5, 7), (3, 4, 6), tuple(range(112, 225, 16)), 20)
