"""The network that exceeds budgets least, for budgets that contradict each other."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ofasearch.search.evolution import EvolutionConfig, evolve
from ofasearch.search.problem import Problem
from ofasearch.search.unguided import is_small
from ofasearch.space.core import Codes, Values
from ofasearch.space.pricing import Cost

EFFORT = EvolutionConfig(population=100, generations=150, keep=1, screen=1.0)  # a quarter of a second


@dataclass(frozen=True, slots=True)
class Nearest:
    """A network (g,), the largest ratio of its costs to their limits, and whether no other network has a smaller one."""

    codes: Codes
    excess: float
    exact: bool


def find_nearest(problem: Problem) -> Nearest:
    """The network whose largest ratio of a cost to its limit is the smallest: at most 1 where all budgets are kept.

    It is none of the excluded ones, as long as there are others. Exact for a space that is small enough to be listed, else searched
    for; where a cost is no table, only the cheapest network under each budget is looked at, because asking such a cost may mean to
    measure.
    """
    candidates = problem.cheapest()
    exact = False
    free = Problem(problem.space, (lambda codes: excess(problem, codes),), (), excluded=problem.excluded)
    if all(isinstance(budget.cost, Cost) for budget in problem.budgets):
        exact = is_small(free)
        found = problem.space.enumerate() if exact else [*evolve(free, EFFORT, np.random.default_rng(0))][-1].codes
        candidates = np.concatenate([found, candidates])
    usable = free.feasible(candidates)
    candidates = candidates[usable] if usable.any() else candidates
    ratios = excess(problem, candidates)
    best = int(ratios.argmin())
    return Nearest(candidates[best], float(ratios[best]), exact)


def excess(problem: Problem, codes: Codes) -> Values:
    """The largest ratio of a cost to its limit, (n,)."""
    return np.asarray(np.stack([budget.cost(codes) / budget.limit for budget in problem.budgets]).max(axis=0))
