"""Random networks, mutation and crossover on code matrices; never an endless rejection loop."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import numpy as np
import numpy.typing as npt

from ofasearch.search.problem import Problem
from ofasearch.space.core import Codes, Space

ROUNDS = 4  # attempts to fill a first population, each twice as large, before cheaper networks make up the number


def unit_index(space: Space) -> Codes:
    """Which mutation unit each gene belongs to, (g,): a block's kernel and expand ratio are re-drawn together."""
    names = list(dict.fromkeys(gene.unit for gene in space.genes))
    return np.array([names.index(gene.unit) for gene in space.genes], dtype=np.int64)


def mutate(space: Space, units: Codes, parents: Codes, probability: float, rng: np.random.Generator) -> Codes:
    """Re-draw each unit of each parent (n, g) with the given probability; genes that a deeper stage adds are drawn too.

    Reference: once-for-all's evolution finder (per block kernel and expand ratio together, per stage depth).
    """
    return space.canonical(_mutated(space, units, parents, probability, rng))


def cross(space: Space, mothers: Codes, fathers: Codes, rng: np.random.Generator) -> Codes:
    """Uniform crossover gene by gene of (n, g) and (n, g); a gene absent in one parent comes from the other.

    No gene of a child can be absent from both: its gate came from one of them, with the gene.
    """
    return space.canonical(_crossed(mothers, fathers, rng))


def breed(space: Space, units: Codes, couples: tuple[Codes, Codes], parents: Codes, probability: float, rng: np.random.Generator) -> Codes:
    """The children of the couples (n, g) each, by `cross`, and behind them the mutants of the parents (k, g): (n + k, g)."""
    crossed, mutated = _crossed(*couples, rng), _mutated(space, units, parents, probability, rng)
    return space.canonical(np.concatenate([crossed, mutated]))


def _mutated(space: Space, units: Codes, parents: Codes, probability: float, rng: np.random.Generator) -> Codes:
    hit = rng.random((len(parents), int(units.max()) + 1), dtype=np.float32) < probability
    return np.where(hit.take(units, axis=1) | (parents == 0), space.draw(len(parents), rng), parents)


def _crossed(mothers: Codes, fathers: Codes, rng: np.random.Generator) -> Codes:
    child = np.where(rng.random(mothers.shape, dtype=np.float32) < 0.5, mothers, fathers)
    return np.where(child == 0, np.maximum(mothers, fathers), child)


class Unseen:
    """Remembers every network handed out, so that none is handed out twice.

    Networks are known by a 64-bit hash: two that collide (one pair in 10^9 for 100,000 networks) cost one proposal.
    """

    def __init__(self, space: Space) -> None:
        odd = np.random.default_rng(len(space.genes)).integers(0, 2**62, size=len(space.genes), dtype=np.int64) * 2 + 1
        self._multipliers, self._known = odd, dict[int, None]()  # keeps its order, so that a former state is its beginning

    def __len__(self) -> int:
        return len(self._known)

    def keys(self, n: int) -> npt.NDArray[np.int64]:
        """The hashes of the first n networks handed out, (n,)."""
        return np.fromiter(itertools.islice(self._known, n), dtype=np.int64, count=n)

    def restore(self, keys: npt.NDArray[np.int64]) -> None:
        """Take these hashes for handed out."""
        self._known.update(dict.fromkeys(keys.tolist()))

    def new(self, codes: Codes) -> Codes:
        """The rows of `codes` that were never taken; a network that stands there twice stays twice."""
        return codes[[key not in self._known for key in (codes @ self._multipliers).tolist()]]

    def take(self, codes: Codes, limit: int) -> Codes:
        """The first `limit` rows of `codes` that were never taken before, marked as taken."""
        kept: list[int] = []
        for index, key in enumerate((codes @ self._multipliers).tolist()):  # wraps around, as a hash may
            if len(kept) >= limit:
                break
            if key not in self._known:
                self._known[key] = None
                kept.append(index)
        return codes[kept]


def fill(problem: Problem, n: int, unseen: Unseen, propose: Callable[[int], Codes]) -> Codes:
    """Up to n feasible networks that are new, from batches that `propose(size)` makes; fewer when it runs dry."""
    found = [np.zeros((0, len(problem.space.genes)), dtype=np.int64)]
    missing, size = n, n
    for _ in range(ROUNDS):
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

    Uniform ones where the budget leaves enough of them; else the cheapest network under each budget, or the one that a
    search for the least excess finds, and mutants of it. Raises InfeasibleError when not one is found although each
    budget is possible alone.
    """
    space = problem.space
    found = fill(problem, n, unseen, lambda size: space.sample(size, rng))
    if len(found) < n:
        cheapest = problem.cheapest()
        seeds = np.concatenate([found, unseen.take(cheapest[problem.feasible(cheapest)], n - len(found))])
        if not len(seeds):
            seeds = unseen.take(problem.keeping(), n)
        units = unit_index(space)
        near = fill(
            problem, n - len(seeds), unseen, lambda size: mutate(space, units, seeds[rng.integers(len(seeds), size=size)], 0.1, rng)
        )
        found = np.concatenate([seeds, near])
    return found
