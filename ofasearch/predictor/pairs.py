"""Measured networks: what predictors are fitted to and judged by.

Legend: n = networks. Accuracies are top-1 fractions.
"""

from __future__ import annotations

import ast
import csv
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofasearch.errors import FormatError, NotFoundError
from ofasearch.space.core import Codes, Settings, Space, Values

PAIRS_LIMIT = 256 * 2**20  # bytes of one pairs file


@dataclass(frozen=True, slots=True)
class Noise:
    """What repeated measurements of the same networks say of a label's own error: the pooled standard deviation."""

    networks: int  # that were measured more than once
    std_points: float


@dataclass(frozen=True, slots=True)
class Pairs:
    """Measured networks: settings of n networks, their top-1 fractions (n,), and which of `files` each comes from (n,)."""

    settings: Settings
    top1: Values
    file: Codes = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    files: tuple[str, ...] = ("",)

    def __post_init__(self) -> None:
        if len(self.file) != len(self.top1):
            object.__setattr__(self, "file", np.zeros(len(self.top1), dtype=np.int64))  # all from one

    def __len__(self) -> int:
        return len(self.top1)

    def take(self, index: npt.NDArray[np.int64]) -> Pairs:
        """The pairs at these positions."""
        return Pairs(self.settings.take(index), self.top1[index], self.file[index], self.files)

    def merged(self) -> tuple[Pairs, Noise | None]:
        """Every network once, in order of first mention, with the mean of its measurements; and how far those differ.

        None where no network was measured twice.
        """
        s = self.settings
        rows = np.concatenate([part for part in (s.ks, s.e, s.d, s.r[:, None], s.w) if part is not None], axis=1)
        _, first, which, counts = np.unique(rows, axis=0, return_index=True, return_inverse=True, return_counts=True)
        mean = np.bincount(which, weights=self.top1) / counts
        order = np.argsort(first, kind="stable")
        once = replace(self.take(first[order]), top1=mean[order])
        repeated = int((counts > 1).sum())
        if not repeated:
            return once, None
        squares = float(((self.top1 - mean[which]) ** 2).sum())
        return once, Noise(repeated, 100 * float(np.sqrt(squares / (len(self) - len(mean)))))


def read_pairs(paths: Sequence[Path], space: Space) -> Pairs:
    """Measured networks of `space` from JSON lines (`ks`, `e`, `d`, `r`, `top1`) or DyNAS-T's CSV.

    Values above 1 are percent. Raises NotFoundError, FormatError, ArchError.
    """
    found = [_read_records(path) for path in paths]
    records = [record for part in found for record in part]
    if not records:
        raise FormatError(f"{', '.join(map(str, paths))} must hold at least one measured network, but hold none")
    try:
        columns = {name: np.array([r[name] for r in records]).astype(np.int64, casting="safe") for name in ("ks", "e", "d")}
        resolutions = np.array([int(_first(r["r"])) for r in records], dtype=np.int64)
        accuracy = np.array([float(r["top1"]) for r in records])
    except (KeyError, TypeError, ValueError, IndexError, OverflowError) as error:
        raise FormatError(
            f"every pair must have whole numbers ks, e, d, r of equal lengths and a top1, but one does not: {error}"
        ) from error
    accuracy = np.where(accuracy > 1, accuracy / 100, accuracy)
    if not ((accuracy >= 0) & (accuracy <= 1)).all():
        raise FormatError("every top1 must lie between 0 and 100 percent, but one does not")
    known = space.with_resolutions(sorted({*space.resolutions, *resolutions.tolist()}))
    codes = known.from_settings(Settings(columns["ks"], columns["e"], columns["d"], resolutions))
    return Pairs(
        known.settings(codes), accuracy, np.repeat(np.arange(len(found)), [len(part) for part in found]), tuple(p.name for p in paths)
    )


def _first(value: Any) -> Any:
    return value[0] if isinstance(value, list) else value


def _read_records(path: Path) -> list[Mapping[str, Any]]:
    if not path.is_file():
        raise NotFoundError(f"{path} must be an existing pairs file, but there is none")
    if path.stat().st_size > PAIRS_LIMIT:
        raise FormatError(f"{path} must be at most {PAIRS_LIMIT >> 20} MiB, but is larger")
    try:
        text = path.read_text(encoding="utf-8")
        if path.suffix == ".csv":
            rows = csv.DictReader(text.splitlines())
            return [{**ast.literal_eval(row["Sub-network"]), "top1": row["Top-1 Acc (%)"]} for row in rows]
        return [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, KeyError, TypeError, SyntaxError, RecursionError, MemoryError, csv.Error) as error:  # literal_eval raises all
        raise FormatError(f"{path} must be JSON lines or DyNAS-T's CSV, but a line cannot be read: {error}") from error
