"""Random networks, mutation and crossover on code matrices; never an endless rejection loop."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from ofasearch.search.problem import Problem
from ofasearch.space.core import Codes, Space

ROUNDS = 8  # attempts to fill a population, each twice as large, before it stays smaller


def unit_index(space: Space) -> Codes:
    """Which mutation unit each gene belongs to, (g,): a block's kernel and expand ratio are re-drawn together."""
    names = list(dict.fromkeys(gene.unit for gene in space.genes))
    return np.array([names.index(gene.unit) for gene in space.genes], dtype=np.int64)


def mutate(space: Space, units: Codes, parents: Codes, probability: float, rng: np.random.Generator) -> Codes:
    """Re-draw each unit of each parent (n, g) with the given probability; genes that a deeper stage adds are drawn too.

    Reference: once-for-all's evolution finder (per block kernel and expand ratio together, per stage depth).
    """
    hit = rng.random((len(parents), int(units.max()) + 1)) < probability
    return space.canonical(np.where(hit[:, units] | (parents == 0), space.draw(len(parents), rng), parents))


def cross(space: Space, mothers: Codes, fathers: Codes, rng: np.random.Generator) -> Codes:
    """Uniform crossover gene by gene of (n, g) and (n, g); a gene absent in one parent comes from the other."""
    child = np.where(rng.random(mothers.shape) < 0.5, mothers, fathers)
    child = np.where(child == 0, np.maximum(mothers, fathers), child)
    return space.canonical(np.where(child == 0, space.draw(len(child), rng), child))


class Unseen:
    """Remembers every network handed out, so that none is handed out twice."""

    def __init__(self) -> None:
        self._known: set[bytes] = set()

    def take(self, codes: Codes, limit: int) -> Codes:
        """The first `limit` rows of `codes` that were never taken before, marked as taken."""
        small = np.ascontiguousarray(codes.astype(np.int16))
        kept: list[int] = []
        for index, row in enumerate(small):
            if len(kept) >= limit:
                break
            key = row.tobytes()
            if key not in self._known:
                self._known.add(key)
                kept.append(index)
        return codes[kept]


def fill(problem: Problem, n: int, unseen: Unseen, propose: Callable[[int], Codes], rounds: int = ROUNDS) -> Codes:
    """Up to n feasible networks that are new, from batches that `propose(size)` makes; fewer when it runs dry."""
    found = [np.zeros((0, len(problem.space.genes)), dtype=np.int64)]
    missing, size = n, n
    for _ in range(rounds):
        codes = propose(size)
        fresh = unseen.take(codes[problem.feasible(codes)], missing)
        found.append(fresh)
        missing -= len(fresh)
        if missing == 0:
            break
        size *= 2
    return np.concatenate(found)


def initial(problem: Problem, n: int, unseen: Unseen, rng: np.random.Generator) -> Codes:
    """Up to n distinct feasible networks to start from.

    Uniform ones where the budget leaves enough of them; else the cheapest network under each budget and mutants of
    it. Raises InfeasibleError when not one is found although each budget is possible alone.
    """
    space = problem.space
    found = fill(problem, n, unseen, lambda size: space.sample(size, rng))
    if len(found) < n:
        cheapest = np.stack([space.smallest(), *(b.cost.bounds().lowest_codes for b in problem.budgets)])
        seeds = np.concatenate([found, unseen.take(cheapest[problem.feasible(cheapest)], n - len(found))])
        if not len(seeds):
            raise problem.contradiction()
        units = unit_index(space)
        near = fill(
            problem, n - len(seeds), unseen, lambda size: mutate(space, units, seeds[rng.integers(len(seeds), size=size)], 0.1, rng)
        )
        found = np.concatenate([seeds, near])
    return found
