"""Two latency tables and more: made one where they tell of the same thing, compared where they do not. No torch."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, get_args

import numpy as np

from ofasearch.errors import MismatchError, UsageError
from ofasearch.latency.table import ANY, LatencyTable, Row, Shape, Source, TableKey

NO_TIME_MS = 1e-9  # a picosecond; what takes less was not timed, and has no ratio


def merge(tables: Sequence[LatencyTable], name: str) -> LatencyTable:
    """One table of several of the same device, runtime, precision, batch and threads.

    Where several have a row, the better known source wins, then the one of more runs, then the earlier table; a row that
    is tied to one resolution gives way to a better known one for all. A correction that all share is kept; otherwise it
    is dropped with every validation, because none was fitted for this mixture of rows, and the card says so. The card
    keeps those of all parts.

    Raises UsageError (fewer than two), MismatchError (another key).
    """
    if len(tables) < 2:
        raise UsageError(f"at least two latency tables must be given to merge, but got {len(tables)}")
    first = tables[0]
    for other in tables[1:]:
        for field in (f.name for f in fields(TableKey)):
            ours, theirs = getattr(first.key, field), getattr(other.key, field)
            if ours != theirs:
                raise MismatchError(
                    f"tables must be of the same {field} to be merged, but {first.name} is of {ours} and {other.name} of {theirs}"
                )
    rows: dict[tuple[int, Shape], Row] = {}
    for table in tables:
        for key, row in table.rows.items():
            if key not in rows or _standing(row) > _standing(rows[key]):
                rows[key] = row
    rows = {(at, shape): row for (at, shape), row in rows.items() if _known(row) >= _known(rows.get((ANY, shape), row))}
    card: dict[str, Any] = {
        "merged": [{"name": t.name, "rows": len(t.rows), "correction": asdict(t.correction), "card": t.card} for t in tables]
    }
    if any(table.correction != first.correction for table in tables):
        card["note"] = "corrections differed and were dropped; sums of rows are uncorrected and were never validated"
        return LatencyTable(name, first.key, rows, card=card)
    validation = first.card.get("validation")
    if validation is not None and all(table.card.get("validation") == validation for table in tables):
        card["validation"] = validation
    return LatencyTable(name, first.key, rows, first.correction, card)


def _standing(row: Row) -> tuple[int, int]:
    """How much a row is worth beside another of the same layer."""
    return _known(row), row.n


def _known(row: Row) -> int:
    """How well a row is known; more is better."""
    order: tuple[Source, ...] = get_args(Source)
    return -order.index(row.source)


@dataclass(frozen=True, slots=True, kw_only=True)
class RowPair:
    """One layer that two tables know."""

    resolution: int
    shape: Shape
    first: Row
    second: Row

    @property
    def ratio(self) -> float:
        """The second's milliseconds over the first's."""
        return self.second.ms / self.first.ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """How the rows of two tables differ, as they stand before either's correction.

    Ratios are of the second to the first; `kendall_tau` (tau-b) tells whether both order layers alike and is None
    where fewer than two layers or equal times leave no order. `most` has the layers that differ most, the most first,
    and none that agree. Rows of no time (`NO_TIME_MS`) have no ratio; `zeros` counts them.
    """

    common: int
    zeros: int
    median_ratio: float | None
    p10_ratio: float | None
    p90_ratio: float | None
    kendall_tau: float | None
    most: tuple[RowPair, ...]
    only_first: tuple[tuple[int, Shape], ...]
    only_second: tuple[tuple[int, Shape], ...]


def diff(first: LatencyTable, second: LatencyTable, *, most: int = 10) -> Difference:
    """Compare two tables row by row; a row for networks of every resolution is the partner of any tied one."""
    pairs, only_first = _partners(first, second)
    _, only_second = _partners(second, first)
    timed = [pair for pair in pairs if min(pair.first.ms, pair.second.ms) > NO_TIME_MS]
    ratios = np.array([pair.ratio for pair in timed])
    p10, median, p90 = (float(q) for q in np.quantile(ratios, (0.1, 0.5, 0.9))) if timed else (None, None, None)
    distances = np.abs(np.log(ratios))
    order = [i for i in np.argsort(-distances, kind="stable")[:most] if distances[i] > 0]
    return Difference(
        common=len(pairs),
        zeros=len(pairs) - len(timed),
        median_ratio=median,
        p10_ratio=p10,
        p90_ratio=p90,
        kendall_tau=_kendall_tau(pairs),
        most=tuple(timed[i] for i in order),
        only_first=only_first,
        only_second=only_second,
    )


def _partners(first: LatencyTable, second: LatencyTable) -> tuple[list[RowPair], tuple[tuple[int, Shape], ...]]:
    """Pairs of rows for the same layer, and the rows of the first table that have no partner."""
    tied: dict[Shape, list[int]] = {}
    for resolution, shape in second.rows:
        tied.setdefault(shape, []).append(resolution)
    pairs, alone = [], []
    for (resolution, shape), row in first.rows.items():
        there = tied.get(shape, [])
        if resolution in there or ANY in there:
            partners = [resolution] if resolution in there else [ANY]
        else:
            partners = there if resolution == ANY else []
        for partner in partners:
            pairs.append(RowPair(resolution=resolution or partner, shape=shape, first=row, second=second.rows[partner, shape]))
        if not partners:
            alone.append((resolution, shape))
    return pairs, tuple(alone)


def _kendall_tau(pairs: Sequence[RowPair]) -> float | None:
    from scipy.stats import kendalltau

    times = np.array([(pair.first.ms, pair.second.ms) for pair in pairs]).reshape(-1, 2)
    if len({*times[:, 0]}) < 2 or len({*times[:, 1]}) < 2:
        return None
    return float(kendalltau(times[:, 0], times[:, 1]).statistic)
