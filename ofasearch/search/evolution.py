"""Single-objective evolution with the published settings, vectorised; and the exact answer where a space is small."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from ofasearch.errors import UsageError
from ofasearch.search.operators import Unseen, cross, initial, mutate, unit_index
from ofasearch.search.problem import Generation, Problem
from ofasearch.search.refine import refine
from ofasearch.space.core import Codes, Values

EXACT_LIMIT = 20_000  # networks; listing so many takes a fraction of a second
ELITE_SHARE = 0.4  # of the parents: the best whatever their resolution
LEAST_SHARE = 0.02  # a budget that almost no child keeps must not make a generation endless
PER_RESOLUTION = 3  # parents that each resolution may keep beside the elite


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolutionConfig:
    """Defaults are those of once-for-all's finder; `mutation_ratio` of each generation are mutants, the rest crossed."""

    population: int = 100
    generations: int = 500
    parent_ratio: float = 0.25
    mutation_ratio: float = 0.5
    mutation_probability: float = 0.1  # per block, per stage depth, and for the resolution
    keep: int = 20  # best networks reported per generation
    refine: bool = True  # end with a local refinement of the winner, as one more generation

    def __post_init__(self) -> None:
        if (
            self.population < 4
            or self.generations < 0
            or self.keep < 1
            or not 0 < self.parent_ratio <= 1
            or not 0 <= self.mutation_ratio <= 1
            or not 0 <= self.mutation_probability <= 1
        ):
            ratios = (self.parent_ratio, self.mutation_ratio, self.mutation_probability)
            raise UsageError(
                "evolution needs a population of at least 4, generations of at least 0, 1 or more to keep and ratios in (0, 1], "
                f"but got {self.population}, {self.generations}, {self.keep} and {ratios}"
            )


def evolve(problem: Problem, config: EvolutionConfig, rng: np.random.Generator) -> Iterator[Generation]:
    """Yield the state after the initial population and after every generation.

    A generation makes `population` children that keep the budgets, and the parents survive. No network is evaluated
    twice: children that are known already are left out (the published finder evaluates copies again, and most of its
    children are). The last children count (it looks for the best before it makes them and never sees the last hundred).
    Raises InfeasibleError, UsageError.

    Reference: once-for-all, section 3.4, and its tutorial's evolution finder.
    """
    problem.preflight()
    space, units, unseen = problem.space, unit_index(problem.space), Unseen(problem.space)
    codes = initial(problem, config.population, unseen, rng)
    objective = problem.objective(codes)
    evaluations = len(codes)
    n_parents = max(2, round(config.parent_ratio * config.population))
    n_mutants = round(config.mutation_ratio * config.population)
    share = np.ones(2)  # of crossed and of mutated children that kept the budgets in the last generation
    for number in range(config.generations + 1):
        order = np.argsort(objective, kind="stable")
        codes, objective = codes[order], objective[order]
        yield Generation(number, codes[: config.keep].copy(), objective[: config.keep, None].copy(), evaluations)
        if number == config.generations:
            break
        chosen = _parents(codes, n_parents)
        parents = codes[chosen]

        wanted = np.array([config.population - n_mutants, n_mutants])
        n_cross, n_mutate = np.ceil(wanted / share).astype(int)
        mothers, fathers = parents[rng.integers(len(parents), size=(2, n_cross))]
        mutated = parents[rng.integers(len(parents), size=n_mutate)]
        children = np.concatenate([cross(space, mothers, fathers, rng), mutate(space, units, mutated, config.mutation_probability, rng)])
        feasible = problem.feasible(children)
        crossed, mutants = np.flatnonzero(feasible[:n_cross]), n_cross + np.flatnonzero(feasible[n_cross:])
        share = np.maximum([len(crossed) / max(1, n_cross), len(mutants) / max(1, n_mutate)], LEAST_SHARE)
        fresh = unseen.take(children[np.concatenate([crossed[: wanted[0]], mutants[: wanted[1]]])], config.population)
        if not len(fresh):
            continue
        evaluations += len(fresh)
        # The parents stay, and whoever is needed to report the `keep` best.
        survivors = np.zeros(len(codes), dtype=bool)
        survivors[chosen] = survivors[: config.keep] = True
        codes = np.concatenate([codes[survivors], fresh])
        objective = np.concatenate([objective[survivors], problem.objective(fresh)])
    if config.refine:
        best, value, more = refine(problem, codes[0], float(objective[0]))
        if value < objective[0]:
            codes, objective = np.concatenate([best[None], codes]), np.concatenate([[value], objective])
        yield Generation(number + 1, codes[: config.keep].copy(), objective[: config.keep, None].copy(), evaluations + more)


def _parents(codes: Codes, n: int) -> Codes:
    """Positions of the n parents in a pool sorted best first: the elite, then the best few of each resolution, then the rest.

    The resolution moves accuracy and cost of a network more than any other gene, so a pool that loses a resolution
    early rarely finds back; with the plain best n as parents the result depended more on the seed.
    """
    order = np.argsort(codes[:, 0], kind="stable")
    resolutions = codes[order, 0]
    rank = np.empty(len(codes), dtype=np.int64)  # within the network's resolution
    rank[order] = np.arange(len(codes)) - np.searchsorted(resolutions, resolutions)
    priority = np.where(np.arange(len(codes)) < ELITE_SHARE * n, 0, np.where(rank < PER_RESOLUTION, 1, 2))
    return np.sort(np.argsort(priority, kind="stable")[:n])


def enumerate_exactly(problem: Problem, keep: int = 20) -> Iterator[Generation]:
    """The best networks of a space of at most EXACT_LIMIT networks, in one generation.

    Raises InfeasibleError, and ArchError for a space too large to list.
    """
    problem.preflight()
    codes = problem.space.enumerate()
    codes = codes[problem.feasible(codes)]
    if not len(codes):
        raise problem.contradiction()
    objective: Values = problem.objective(codes)
    order = np.argsort(objective, kind="stable")[:keep]
    yield Generation(0, codes[order], objective[order, None], len(codes))


def is_small(problem: Problem) -> bool:
    """Whether the exact answer is the sensible one."""
    return problem.space.size * len(problem.space.resolutions) <= EXACT_LIMIT
