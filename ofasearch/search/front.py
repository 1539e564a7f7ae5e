"""Fronts: which networks no other one beats in everything, how good such a set is, and where its bend lies.

Legend: n = networks, m = objectives. All objectives are minimised and finite.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ofasearch.space.core import Values

Mask = npt.NDArray[np.bool_]
CHUNK = 1_000_000  # numbers compared at once


def nondominated(F: Values) -> Mask:
    """Which rows of F (n, m) are on the front, (n,): no other row is at most as large everywhere and smaller somewhere.

    Equal rows do not dominate each other: all of them are on the front, or none. Two objectives take n log n; for more,
    every row is compared with those of the front that may dominate it.
    """
    return _swept(F) if F.shape[1] == 2 else _filtered(F)


def _swept(F: Values) -> Mask:
    """`nondominated` for two objectives: by the first one, then the second, rows must go on getting smaller in the second."""
    order = np.lexsort((F[:, 1], F[:, 0]))
    first, second = F[order].T
    begins = np.r_[True, first[1:] != first[:-1]][: len(F)]  # of rows with equal first objectives, the first has the smallest second
    group = np.cumsum(begins) - 1
    least = second[begins]
    before = np.r_[np.inf, np.minimum.accumulate(least)[:-1]][: len(least)]  # the smallest second of all smaller firsts
    mask = np.empty(len(F), dtype=bool)
    mask[order] = (second == least[group]) & (least < before)[group]
    return mask


def _filtered(F: Values) -> Mask:
    """`nondominated` for any number of objectives.

    Rows are taken by the sum of their ranks: what dominates a row has a smaller sum, exactly, whatever the scales. So a
    row that is reached is on the front, and removes what it dominates.
    """
    ranks = np.stack([np.unique(column, return_inverse=True)[1] for column in F.T], axis=1)
    left = np.argsort(ranks.sum(axis=1), kind="stable")
    rows, reached = ranks[left], 0
    while reached < len(left):
        row = rows[reached]
        stays = (rows < row).any(axis=1) | (rows == row).all(axis=1)
        left, rows, reached = left[stays], rows[stays], reached + 1
    mask = np.zeros(len(F), dtype=bool)
    mask[left] = True
    return mask


def hypervolume(F: Values, reference: Values) -> float:
    """The volume between the rows of F (n, m) and the reference (m,): what they dominate, exactly.

    Rows that are not better than the reference in every objective add nothing.

    Reference: Zitzler and Thiele, IEEE Transactions on Evolutionary Computation 3 (1999), "size of the space covered".
    """
    inside = F[(reference > F).all(axis=1)]
    if not len(inside):
        return 0.0
    if F.shape[1] == 2:
        front = inside[nondominated(inside)]
        first, second = front[np.lexsort((-front[:, 1], front[:, 0]))].T
        return float(np.sum((np.r_[first[1:], reference[0]] - first) * (reference[1] - second)))
    from pymoo.indicators.hv import HV

    return float(HV(ref_point=reference)(inside))


def knee(F: Values) -> int | None:
    """The row of a front F (n, m) where its bend is sharpest; None where it has none.

    The row that lies farthest below the plane through the corners of the front scaled to 0..1 (with two objectives: the
    chord between both ends): giving up a little in one objective would gain less in the others there than anywhere
    else. None for a front that nowhere lies below it. Of equal ones, the first.

    Reference: Das, Structural Optimization 18 (1999): the bulge of a front is where the distance from the hyperplane of
    the individual minima is greatest. With more than two objectives these minima may not span a plane; the corners do.
    """
    spread = np.ptp(F, axis=0)
    if len(F) < 3 or not spread.all():
        return None
    sums = ((F - F.min(axis=0)) / spread).sum(axis=1)
    best = int(sums.argmin())
    return best if sums[best] < 1 - 1e-9 else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Regret:
    """How far a found front stays behind the exact one.

    For each network of the exact front, `loss` is what the best found network that costs at most as much lacks in the
    first objective. `uncovered` networks of the exact front cost less than all found ones: they have no loss, and count
    neither for the worst nor for the mean.
    """

    hypervolume_share: float
    worst_loss: float | None  # None where all are uncovered
    mean_loss: float | None
    uncovered: int


def regret(F: Values, exact: Values, reference: Values) -> Regret:
    """Compare a found front F (n, m) with the exact one (k, m); hypervolumes are those below the reference (m,)."""
    rows = max(1, CHUNK // max(1, F.size))
    losses = np.concatenate([_losses(F, exact[start : start + rows]) for start in range(0, len(exact), rows)])
    covered = losses[np.isfinite(losses)]
    whole = hypervolume(exact, reference)
    return Regret(
        hypervolume_share=hypervolume(F, reference) / whole if whole > 0 else 1.0,
        worst_loss=float(covered.max()) if len(covered) else None,
        mean_loss=float(covered.mean()) if len(covered) else None,
        uncovered=len(losses) - len(covered),
    )


def _losses(F: Values, exact: Values) -> Values:
    """Of each row (k, m) of an exact front, (k,): what is lost in the first objective at equal cost; inf without any."""
    affordable = (F[None, :, 1:] <= exact[:, None, 1:]).all(axis=2)
    best = np.where(affordable, F[None, :, 0], np.inf).min(axis=1, initial=np.inf)
    return np.asarray(best - exact[:, 0])


__all__ = ["Regret", "hypervolume", "knee", "nondominated", "regret"]
