"""Single-objective evolution with the published settings, vectorised; and the exact answer where a space is small."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np

from ofasearch.errors import UsageError
from ofasearch.search.operators import Unseen, cross, initial, mutate, unit_index
from ofasearch.search.problem import Generation, Problem, Search, SearchConfig
from ofasearch.search.refine import refine
from ofasearch.search.state import State, generator_record
from ofasearch.space.core import Codes, Values

NAME = "evolution"
EXACT_LIMIT = 20_000  # networks; listing so many takes a fraction of a second
ELITE_SHARE = 0.4  # of the parents: the best whatever their resolution
LEAST_SHARE = 0.02  # a budget that almost no child keeps must not make a generation endless
PER_RESOLUTION = 3  # parents that each resolution may keep beside the elite


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolutionConfig(SearchConfig):
    """Defaults are those of once-for-all's finder; `mutation_ratio` of each generation are mutants, the rest crossed."""

    parent_ratio: float = 0.25
    mutation_ratio: float = 0.5
    mutation_probability: float = 0.1  # per block, per stage depth, and for the resolution
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


def evolve(problem: Problem, config: EvolutionConfig, rng: np.random.Generator, start: State | None = None) -> Search:
    """Yield the state after the initial population and after every generation.

    A generation makes `population` children that keep the budgets, and the parents survive. No network is evaluated
    twice: children that are known already are left out (the published finder evaluates copies again, and most of its
    children are). The last children count (it looks for the best before it makes them and never sees the last hundred).
    With `start` the generations after that state follow, bit for bit those of the unbroken search, and `rng` is left
    alone. Raises InfeasibleError, UsageError, MismatchError (a state of another search).

    Reference: once-for-all, section 3.4, and its tutorial's evolution finder.
    """
    problem.preflight()
    run = _first(problem, config, rng) if start is None else _restored(problem, config, start)
    if start is None:
        yield run.report()
    while run.number < config.generations:
        run.breed()
        yield run.report()
    if config.refine and run.number == config.generations:
        run.refine()
        yield run.report()


@dataclass(slots=True, kw_only=True, eq=False)
class _Run:
    """Evolution under way. Its arrays are replaced, never written to, so that a generation may refer to them."""

    problem: Problem
    config: EvolutionConfig
    rng: np.random.Generator
    units: Codes
    unseen: Unseen
    codes: Codes  # (k, g), best first
    objective: Values  # (k,)
    share: Values  # of crossed and of mutated children that kept the budgets in the last generation, (2,)
    evaluations: int
    number: int = 0

    def report(self) -> Generation:
        """The generation that ends now."""
        keep = self.config.keep
        return Generation(self.number, self.codes[:keep].copy(), self.objective[:keep, None].copy(), self.evaluations, self._capture())

    def _capture(self) -> Callable[[], State]:
        """What makes the state of this generation, at any later time."""
        now, known = replace(self), len(self.unseen)
        generator = generator_record(self.rng)
        return lambda: State(
            identity=self.problem.identity(NAME, self.config),
            number=now.number,
            evaluations=now.evaluations,
            generator=generator,
            codes=now.codes.copy(),
            F=now.objective[:, None].copy(),
            archive=now.codes[:0],
            values=now.objective[:0, None],
            known=self.unseen.keys(known),
            share=now.share.copy(),
        )

    def breed(self) -> None:
        """One generation."""
        self.number += 1
        chosen = _parents(self.codes, max(2, round(self.config.parent_ratio * self.config.population)))
        fresh = self.unseen.take(self._children(self.codes[chosen]), self.config.population)
        if len(fresh):
            self.evaluations += len(fresh)
            # The parents stay, and whoever is needed to report the `keep` best.
            survivors = np.zeros(len(self.codes), dtype=bool)
            survivors[chosen] = survivors[: self.config.keep] = True
            codes = np.concatenate([self.codes[survivors], fresh])
            self._sort(codes, np.concatenate([self.objective[survivors], self.problem.objective(fresh)]))

    def _children(self, parents: Codes) -> Codes:
        """Crossed and mutated children that keep the budgets, as many of each as are wanted where chance gives them."""
        space, rng, config = self.problem.space, self.rng, self.config
        n_mutants = round(config.mutation_ratio * config.population)
        wanted = np.array([config.population - n_mutants, n_mutants])
        n_cross, n_mutate = np.ceil(wanted / self.share).astype(int)
        mothers, fathers = parents[rng.integers(len(parents), size=(2, n_cross))]
        mutated = parents[rng.integers(len(parents), size=n_mutate)]
        crossed = cross(space, mothers, fathers, rng)
        children: Codes = np.concatenate([crossed, mutate(space, self.units, mutated, config.mutation_probability, rng)])
        feasible = self.problem.feasible(children)
        kept = np.flatnonzero(feasible[:n_cross]), n_cross + np.flatnonzero(feasible[n_cross:])
        self.share = np.maximum([len(kept[0]) / max(1, n_cross), len(kept[1]) / max(1, n_mutate)], LEAST_SHARE)
        first: Codes = children[np.concatenate([kept[0][: wanted[0]], kept[1][: wanted[1]]])]
        return first

    def refine(self) -> None:
        """Refine the winner, as one more generation."""
        self.number += 1
        best, value, more = refine(self.problem, self.codes[0], float(self.objective[0]))
        self.evaluations += more
        if value < self.objective[0]:
            self.codes, self.objective = np.concatenate([best[None], self.codes]), np.concatenate([[value], self.objective])

    def _sort(self, codes: Codes, objective: Values) -> None:
        """Take this pool, best first; of equals the older comes first."""
        order = np.argsort(objective, kind="stable")
        self.codes, self.objective = codes[order], objective[order]


def _first(problem: Problem, config: EvolutionConfig, rng: np.random.Generator) -> _Run:
    """The first population."""
    unseen = Unseen(problem.space)
    codes = initial(problem, config.population, unseen, rng)
    objective = problem.objective(codes)
    order = np.argsort(objective, kind="stable")
    return _Run(
        problem=problem,
        config=config,
        rng=rng,
        units=unit_index(problem.space),
        unseen=unseen,
        codes=codes[order],
        objective=objective[order],
        share=np.ones(2),
        evaluations=len(codes),
    )


def _restored(problem: Problem, config: EvolutionConfig, start: State) -> _Run:
    """The run as it was when `start` was taken."""
    start.check(problem.identity(NAME, config), problem.space, shares=2)
    unseen = Unseen(problem.space)
    unseen.restore(start.known)
    return _Run(
        problem=problem,
        config=config,
        rng=start.rng(),
        units=unit_index(problem.space),
        unseen=unseen,
        codes=start.codes,
        objective=start.F[:, 0],
        share=start.share,
        evaluations=start.evaluations,
        number=start.number,
    )


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


def enumerate_exactly(problem: Problem, keep: int = 20) -> Search:
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
