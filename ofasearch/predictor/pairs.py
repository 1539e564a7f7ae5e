"""Measured networks: what predictors are fitted to and judged by.

Legend: n = networks, s = sources. Accuracies are top-1 fractions.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofasearch.errors import ArchError, FormatError, MismatchError, UsageError
from ofasearch.predictor.pair_files import Entry, read_entries, write_files
from ofasearch.space.core import RESOLUTION_LIMIT, Codes, Numbers, Settings, Space, Values

APART = 0.01  # what no two measurements of one network on the same images differ by, as a fraction
SAME = 1e-9  # accuracies that differ by less are copies: 50,000 images tell 2e-5 apart


@dataclass(frozen=True, slots=True)
class Source:
    """Where pairs come from: one file, so one set of images, and the weights where its card names them."""

    name: str
    supernet_digest: str | None = None


@dataclass(frozen=True, slots=True)
class LabelNoise:
    """How far measurements of one network lie apart when only chance can tell them apart.

    `networks` were measured more than once, `measurements` times in all; `std_points` (percent points) is their pooled
    standard deviation, None where nothing was measured twice.
    """

    networks: int
    measurements: int
    std_points: float | None


@dataclass(frozen=True, slots=True)
class Pairs:
    """Measured networks: settings of n networks and their top-1 fractions (n,).

    `group` (n,) tells which of the `sources` a pair is from: files may differ by an offset, because they were labelled on
    other images. `repeats` (n,) is how many measurements an accuracy is the mean of, `spread` (n,) their standard deviation.
    """

    settings: Settings
    top1: Values
    group: Codes = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    sources: tuple[Source, ...] = (Source("pairs"),)
    repeats: Codes = field(default_factory=lambda: np.zeros(0, dtype=np.int64))
    spread: Values = field(default_factory=lambda: np.zeros(0))

    def __post_init__(self) -> None:
        for name, value in (("group", 0), ("repeats", 1), ("spread", 0.0)):
            if not len(getattr(self, name)):
                object.__setattr__(self, name, np.full(len(self.top1), value))

    def __len__(self) -> int:
        return len(self.top1)

    def take(self, index: npt.NDArray[np.int64]) -> Pairs:
        """The pairs at these positions."""
        chosen = {name: getattr(self, name)[index] for name in ("top1", "group", "repeats", "spread")}
        return replace(self, settings=self.settings.take(index), **chosen)

    @property
    def supernet_digest(self) -> str | None:
        """The weights that all pairs were measured on; None where a source does not say.

        Raises MismatchError when sources name different weights.
        """
        named = {source.supernet_digest: source.name for source in self.sources if source.supernet_digest is not None}
        if len(named) > 1:
            first, second, *_ = named.values()
            raise MismatchError(f"all pairs must be measured on one supernet's weights, but those of {first} and {second} differ")
        return None if any(source.supernet_digest is None for source in self.sources) else next(iter(named), None)

    def merged(self) -> Pairs:
        """One pair per network and source, the mean of its measurements, in the order of their first."""
        first, row = _distinct(self.settings, self.group)
        repeats = np.bincount(row, self.repeats)
        top1 = np.bincount(row, self.repeats * self.top1) / repeats
        squares = np.bincount(row, (self.repeats - 1) * self.spread**2 + self.repeats * (self.top1 - top1[row]) ** 2)
        spread = np.sqrt(squares / np.maximum(1, repeats - 1))
        spread[spread < SAME] = 0
        return replace(self.take(first), top1=top1, repeats=repeats.astype(np.int64), spread=spread)

    def label_noise(self) -> LabelNoise:
        """What repeated measurements tell of the noise, the mean differences between sources taken off.

        Where all repeats of a source are equal they are copies and count once: a search that meets a network again writes
        what it remembers.
        """
        one = self.merged()
        _, network = _distinct(one.settings)
        weight = np.where(np.isin(one.group, one.group[one.spread > 0]), one.repeats, 1)
        again = np.flatnonzero(np.bincount(network, weight)[network] > 1)
        if not len(again):
            return LabelNoise(0, 0, None)
        known, network = np.unique(network[again], return_inverse=True)
        weight, spread = weight[again], one.spread[again]

        def centred(values: Values) -> Values:
            return np.asarray(values - (np.bincount(network, weight * values) / np.bincount(network, weight))[network])

        design = np.stack([centred(column) for column in np.eye(len(self.sources))[one.group[again]].T], axis=1)  # (n, s)
        target, root = centred(one.top1[again]), np.sqrt(weight)
        offsets, _, rank, _ = np.linalg.lstsq(design * root[:, None], target * root, rcond=None)
        squares = (weight * (target - design @ offsets) ** 2 + (weight - 1) * spread**2).sum()
        free = int(weight.sum()) - len(known) - int(rank)
        return LabelNoise(len(known), int(weight.sum()), 100 * math.sqrt(squares / free) if free > 0 else None)


def _distinct(settings: Settings, group: Codes | None = None) -> tuple[Codes, Codes]:
    """Where each distinct network (of each group) is met first, in that order, and which of them each row (n,) is."""
    rows = settings.rows() if group is None else np.column_stack([settings.rows(), group])
    _, first, row = np.unique(rows, axis=0, return_index=True, return_inverse=True)
    order = np.argsort(first)
    rank = np.empty_like(order)
    rank[order] = np.arange(len(order))
    return first[order], rank[row.reshape(-1)]


# -- files -----------------------------------------------------------------------------------------------------


def write_pairs(path: Path, pairs: Pairs, space: Space, card: Mapping[str, Any] | None = None) -> None:
    """Write measured networks of `space` with a card beside them, atomically, in the format that the name asks for.

    `.jsonl` is ours, `.csv` DyNAS-T's (with MACs and parameters), `.dict` or a folder once-for-all's, where a network stands
    once, with the mean of its measurements.
    Raises UsageError (no such format), FormatError (accuracies that the format cannot hold), WriteError.
    """
    if path.is_dir() or path.suffix in ("", ".dict"):
        pairs = replace(pairs, group=np.zeros(len(pairs), dtype=np.int64)).merged()
    write_files(path, pairs.settings, pairs.top1, space, card or {})


def read_pairs(paths: Sequence[Path], space: Space) -> Pairs:
    """Measured networks of `space`, each file a source: any of the formats of `pair_files`, known by content.

    In a file all values are percent (above 1), or all are fractions. Resolutions need not be choices of the space.
    Raises NotFoundError, FormatError, UsageError (a file given twice), ArchError (a network outside the space).
    """
    found = [read_entries(path) for path in paths]
    if len({path.resolve() for path in paths}) < len(paths):  # only now, for a link to itself does not resolve
        raise UsageError("every pairs file must be given once, but one is given twice")
    for path, (entries, _) in zip(paths, found, strict=True):
        if not entries:
            raise FormatError(f"{path} must hold at least one measured network, but holds none")
    entries = [entry for part, _ in found for entry in part]
    top1 = np.concatenate([_fractions(path, part) for path, (part, _) in zip(paths, found, strict=True)])
    group = np.repeat(np.arange(len(found)), [len(part) for part, _ in found])
    sizes = np.array([_resolution(entry) for entry in entries], dtype=np.int64)
    known = space.with_resolutions(sorted({*space.resolutions, *sizes.tolist()}))
    codes = _codes(entries, sizes, known)
    for index, path in enumerate(paths):
        _check_repeats(path, known, entries, codes, top1, np.flatnonzero(group == index))
    return Pairs(known.settings(codes), top1, group, tuple(_source(path, card) for path, (_, card) in zip(paths, found, strict=True)))


def _source(path: Path, card: Mapping[str, Any]) -> Source:
    digest = card.get("supernet_digest")
    return Source(path.name, digest if isinstance(digest, str) else None)


def _fractions(path: Path, entries: Sequence[Entry]) -> Values:
    """The accuracies of one file (n,), as fractions."""
    values = np.array([_accuracy(entry) for entry in entries])
    percent, fractions = np.flatnonzero(values > 1), np.flatnonzero((values > 0) & (values <= 1))
    if len(percent) and len(fractions):
        one, other = (f"{entries[i[0]].where.partition(' of ')[0]} has {values[i[0]]:g}" for i in (percent, fractions))
        raise FormatError(f"{path} must give all accuracies in percent or all as fractions, but {one} and {other}; use one of the two")
    return values / 100 if len(percent) else values


def _accuracy(entry: Entry) -> float:
    value = entry.top1
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 100:  # NaN is outside too
        raise FormatError(f"top1 must be a number of 0 to 100 percent, but {entry.where} has {_told(value)}")
    return float(value)


def _told(value: Any) -> str:
    """A value for people: foreign lists and texts may have no end."""
    return repr(value)[:40] if isinstance(value, int | float | str) else "none" if value is None else f"a {type(value).__name__}"


def _resolution(entry: Entry) -> int:
    """The input size, pixels: a number, or DyNAS-T's list of one."""
    if isinstance(entry.network, str):
        digits = entry.network.partition("@r")[2].partition("-")[0]
        value: Any = int(digits) if digits.isascii() and digits.isdigit() and len(digits) <= 4 else digits
    else:
        value = entry.network.get("r", entry.network.get("image_size"))
        value = value[0] if isinstance(value, list) and len(value) == 1 else value
    if type(value) is not int or not 8 <= value <= RESOLUTION_LIMIT:
        raise FormatError(f"r must be a resolution of 8 to {RESOLUTION_LIMIT} pixels, but {entry.where} has {_told(value)}")
    return value


def _codes(entries: Sequence[Entry], sizes: Codes, space: Space) -> Codes:
    """Codes (n, g). Raises FormatError (no settings), ArchError (the first network outside the space, by its place)."""
    parsed = {i: _parsed(entry.where, entry.network, space) for i, entry in enumerate(entries) if isinstance(entry.network, str)}
    spelled = [i for i in range(len(entries)) if i not in parsed]
    codes = np.zeros((len(entries), len(space.genes)), dtype=np.int64)
    if parsed:
        codes[list(parsed)] = list(parsed.values())
    if spelled:
        given = {name: _column([entries[i] for i in spelled], name, length, space) for name, length in space.fields.items()}
        codes[spelled] = _from_settings(Settings.of(given, sizes[spelled]), [entries[i] for i in spelled], space)
    return codes


def _parsed(where: str, arch: str, space: Space) -> tuple[int, ...]:
    try:
        return space.parse(arch).codes
    except ArchError as error:
        raise ArchError(f"{where} must hold a network of {space.name}, but it is none: {error}") from error


def _column(entries: Sequence[Entry], name: str, length: int, space: Space) -> Numbers:
    """One entry of the settings of all networks, (n, length); ratios may be fractions where the space has such."""
    fractions = name == "e" and not all(float(ratio).is_integer() for ratio in space.expands)
    kinds, what = ((int, float), "numbers") if fractions else ((int,), "whole numbers")
    rows = [_values(entry, name, length, kinds, what) for entry in entries]
    values = np.array(rows).reshape(-1, length)
    return values.astype(np.float64) if fractions else values.astype(np.int64)


def _values(entry: Entry, name: str, length: int, kinds: tuple[type, ...], what: str) -> list[float]:
    """One list of settings, of the length that the space has."""
    assert not isinstance(entry.network, str)
    values = entry.network.get(name)
    if not isinstance(values, list | tuple) or not all(type(v) in kinds and abs(v) <= RESOLUTION_LIMIT for v in values):
        raise FormatError(f"{name} must be a list of {length} small {what}, but that on {entry.where} is not")
    if len(values) != length:
        raise FormatError(
            f"{name} must hold {length} {what.replace('whole numbers', 'integers')}, but that on {entry.where} holds {len(values)}"
        )
    return list(values)


def _from_settings(settings: Settings, entries: Sequence[Entry], space: Space) -> Codes:
    """Codes (n, g); the first network that is none of the space is named."""

    def fits(count: int) -> ArchError | None:
        try:
            space.from_settings(settings.take(np.arange(count)))
        except ArchError as error:
            return error
        return None

    if fits(len(entries)) is None:
        return space.from_settings(settings)
    last = _first_failing(lambda count: fits(count) is not None, len(entries))
    entry = entries[last - 1]
    assert not isinstance(entry.network, str)
    network = json.dumps({name: entry.network[name] for name in space.fields})
    raise ArchError(f"{entry.where} must hold a network of {space.name}, but it is none ({fits(last)}): {network}")


def _first_failing(fails: Callable[[int], bool], count: int) -> int:
    """The least number of first rows that fail together, where all `count` do."""
    low, high = 0, count
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if fails(middle) else (middle, high)
    return high


def _check_repeats(path: Path, space: Space, entries: Sequence[Entry], codes: Codes, top1: Values, rows: Codes) -> None:
    """Raise FormatError where one file gives a network two accuracies that cannot both be true."""
    _, network = np.unique(codes[rows], axis=0, return_inverse=True)
    order = rows[np.lexsort((top1[rows], network.reshape(-1)))]  # each network's accuracies side by side, ascending
    starts = np.flatnonzero(np.append(True, (codes[order][1:] != codes[order][:-1]).any(axis=1)))
    ends = np.append(starts[1:], len(order)) - 1
    apart = top1[order[ends]] - top1[order[starts]]
    worst = int(apart.argmax())
    if apart[worst] > APART + SAME:
        low, high = order[starts[worst]], order[ends[worst]]
        told = " and ".join(f"{100 * top1[i]:.2f} % on {entries[i].where.partition(' of ')[0]}" for i in sorted((low, high)))
        raise FormatError(
            f"{path} must hold accuracies within {100 * APART:g} point for each network, but {space.arch(codes[low])} has {told}"
        )
