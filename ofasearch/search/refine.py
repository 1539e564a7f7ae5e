"""Local refinement of a winner: the best single change or exchange of two, again and again, until none helps."""

from __future__ import annotations

import numpy as np

from ofasearch.search.operators import unit_index
from ofasearch.search.problem import Problem
from ofasearch.space.core import Codes, Values

PAIRS = 500  # exchanges tried per round, the most promising ones
MAX_ROUNDS = 50


def neighbours(problem: Problem, codes: Codes) -> tuple[Codes, Codes]:
    """All networks that differ from `codes` (g,) in one unit, not necessarily feasible, and that unit: (m, g), (m,).

    A block that a deeper stage adds starts with its first choices.
    """
    space, units = problem.space, unit_index(problem.space)
    rows, changed = [], []
    for unit in range(int(units.max()) + 1):
        genes = np.flatnonzero(units == unit)
        if codes[genes].all():
            for choice in np.ndindex(*space.sizes[genes]):
                row = codes.copy()
                row[genes] = np.array(choice) + 1
                rows.append(np.where(row == 0, 1, row))
                changed.append(unit)
    matrix = space.canonical(np.stack(rows))
    different = (matrix != codes).any(axis=1)
    return matrix[different], np.array(changed, dtype=np.int64)[different]


def _exchanges(problem: Problem, codes: Codes, singles: Codes, changed: Codes, gain: Values) -> Codes:
    """Pairs of single changes in different units, most promising first by the sum of their gains, feasible, at most PAIRS."""
    units = unit_index(problem.space)
    first, second = np.triu_indices(len(singles), k=1)
    hopeful = (changed[first] != changed[second]) & (gain[first] + gain[second] > 0)
    first, second = first[hopeful], second[hopeful]
    order = np.argsort(-(gain[first] + gain[second]), kind="stable")[: 20 * PAIRS]
    first, second = first[order], second[order]
    base = np.where(codes == 0, 1, codes)
    raw = np.where(units == changed[first, None], np.where(singles == 0, 1, singles)[first], base)
    raw = np.where(units == changed[second, None], np.where(singles == 0, 1, singles)[second], raw)
    pairs = problem.space.canonical(raw)
    return pairs[problem.feasible(pairs)][:PAIRS]


def refine(problem: Problem, codes: Codes, objective: float) -> tuple[Codes, float, int]:
    """Improve a feasible network (g,) until no single change and no promising exchange of two is better.

    Returns codes, objective and the number of evaluations it took. Deterministic; never returns anything worse.
    """
    evaluations = 0
    for _ in range(MAX_ROUNDS):
        singles, changed = neighbours(problem, codes)
        if not len(singles):
            break
        scores = problem.objective(singles)
        pairs = _exchanges(problem, codes, singles, changed, objective - scores)
        pair_scores = problem.objective(pairs) if len(pairs) else np.zeros(0)
        evaluations += len(singles) + len(pairs)
        candidates = np.concatenate([singles, pairs])
        values = np.concatenate([np.where(problem.feasible(singles), scores, np.inf), pair_scores])
        best = int(values.argmin())
        if values[best] >= objective:
            break
        codes, objective = candidates[best], float(values[best])
    return codes, objective, evaluations
