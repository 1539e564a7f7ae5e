"""What to say where no network keeps all budgets together: the one that comes nearest."""

from __future__ import annotations

import numpy as np

from ofasearch.errors import InfeasibleError
from ofasearch.search.operators import cross, mutate, unit_index
from ofasearch.search.problem import Problem
from ofasearch.space.core import Codes, Values

LISTED = 20_000  # networks of a space that is listed instead
POPULATION, PARENTS, ROUNDS = 200, 50, 40


def excess(problem: Problem, codes: Codes) -> Values:
    """The worst cost of each network (n, g) relative to its limit, (n,); at most 1 keeps all budgets."""
    return np.asarray(np.max([budget.cost(codes) / budget.limit for budget in problem.budgets], axis=0))


def nearest(problem: Problem, rng: np.random.Generator) -> Codes:
    """The network (g,) that exceeds its budgets least: exactly where the space can be listed, else the best that a short search met."""
    space = problem.space
    if space.size * len(space.resolutions) <= LISTED:
        codes = space.enumerate()
        return np.asarray(codes[int(excess(problem, codes).argmin())])
    units = unit_index(space)
    ends = [budget.cost.bounds().lowest_codes for budget in problem.budgets]
    codes = np.concatenate([np.stack(ends), space.sample(POPULATION, rng)])
    for _ in range(ROUNDS):
        codes = codes[np.argsort(excess(problem, codes), kind="stable")[:PARENTS]]
        mothers, fathers = codes[rng.integers(len(codes), size=(2, POPULATION))]
        children = mutate(space, units, cross(space, mothers, fathers, rng), 0.05, rng)
        codes = np.unique(np.concatenate([codes, children]), axis=0)
    return np.asarray(codes[int(excess(problem, codes).argmin())])


def contradiction(problem: Problem, codes: Codes) -> InfeasibleError:
    """The error for budgets that are possible one by one and not together; it names what the nearest network (g,) takes."""
    asked = ", ".join(f"{b.name} {b.show(b.limit)}" for b in problem.budgets)
    takes = ", ".join(f"{b.name} {b.show(float(b.cost(codes[None])[0]))}" for b in problem.budgets)
    return InfeasibleError(
        f"some network must keep all budgets together, but none was found for {asked}; "
        f"the nearest takes {takes} ({problem.space.arch(codes)}): relax the budgets that it exceeds"
    )
