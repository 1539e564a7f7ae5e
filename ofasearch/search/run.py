"""What all searches that go from generation to generation share: how they begin, report, are stopped, go on and end.

Legend: k = networks of the population, a = of the archive, g = genes, m = objectives.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ofasearch.errors import FormatError, MismatchError, UsageError
from ofasearch.search.front import nondominated
from ofasearch.search.operators import Unseen, initial, unit_index
from ofasearch.search.problem import Generation, Problem, Search, SearchConfig
from ofasearch.search.refine import refine
from ofasearch.search.state import State, generator_record
from ofasearch.space.core import Codes, Values

FRONT_LIMIT = 2000  # networks of a front that are kept; with two objectives a search of 25,000 finds some hundreds


@dataclass(slots=True, kw_only=True, eq=False)
class Run:
    """A search under way. Its arrays are replaced, never written to, so that a generation may refer to them."""

    name: str
    problem: Problem
    config: SearchConfig
    rng: np.random.Generator
    units: Codes
    unseen: Unseen
    codes: Codes  # (k, g), the population
    F: Values  # (k, m)
    archive: Codes  # (a, g), the best or the front of all that was evaluated
    values: Values  # (a, m)
    share: Values  # of the children of the last generation, those that could be used, per way of making them
    evaluations: int
    screen: Values  # (f,), what a searcher learned to expect of each code
    measured: Values  # (k, q), what the population's objectives are made of; empty for searchers that do not look at it
    number: int = 0
    front_limit: int = FRONT_LIMIT

    def evaluate(self, codes: Codes) -> Values:
        """Objectives (n, m) of networks that were never evaluated; they count and enter the archive."""
        F = self.problem.values(codes)
        self.enter(codes, F)
        return F

    def enter(self, codes: Codes, F: Values) -> None:
        """Count networks that were evaluated now, and archive them."""
        self.evaluations += len(codes)
        if F.shape[1] == 1 and len(self.values) == self.config.keep and F.min() >= self.values[-1, 0]:
            return  # none is among the best
        known, values = np.concatenate([self.archive, codes]), np.concatenate([self.values, F])
        self.archive, self.values = best_of(known, values, self.config.keep, self.front_limit)

    def extend(self, codes: Codes) -> None:
        """Evaluate networks that were never evaluated; with what their objectives are made of they join the population."""
        quantities, F = self.problem.measured(codes)
        if len(self.measured) and self.measured.shape[1] != quantities.shape[1]:
            raise FormatError("a search state must hold as many quantities of each network as are measured, but it does not; start anew")
        self.enter(codes, F)
        self.codes, self.F = np.concatenate([self.codes, codes]), np.concatenate([self.F, F])
        self.measured = np.concatenate([self.measured, quantities]) if len(self.measured) else quantities

    def refine(self) -> None:
        """Refine the winner, which joins population and archive."""
        winner, value, more = refine(self.problem, self.archive[0], float(self.values[0, 0]))
        self.evaluations += more
        if value < self.values[0, 0]:
            self.unseen.take(winner[None], 1)
            row = np.array([[value]])
            if len(self.measured):
                quantities, _ = (row, row) if self.problem.measures is None else self.problem.measured(winner[None])
                self.measured = np.concatenate([quantities, self.measured])
            self.codes, self.F = np.concatenate([winner[None], self.codes]), np.concatenate([row, self.F])
            archive, values = np.concatenate([winner[None], self.archive]), np.concatenate([row, self.values])
            self.archive, self.values = archive[: self.config.keep], values[: self.config.keep]

    def report(self) -> Generation:
        """The generation that ends now."""
        return Generation(self.number, self.archive.copy(), self.values.copy(), self.evaluations, self._capture())

    def _capture(self) -> Callable[[], State]:
        """What makes the state of this generation, at any later time."""
        number, evaluations, share, screen, known = self.number, self.evaluations, self.share, self.screen, len(self.unseen)
        codes, F, archive, values, generator = self.codes, self.F, self.archive, self.values, generator_record(self.rng)
        measured = self.measured
        return lambda: State(
            identity=self.problem.identity(self.name, self.config),
            number=number,
            evaluations=evaluations,
            generator=generator,
            codes=codes.copy(),
            F=F.copy(),
            archive=archive.copy(),
            values=values.copy(),
            known=self.unseen.keys(known),
            share=share.copy(),
            screen=screen.copy(),
            measured=measured.copy(),
        )


def best_of(codes: Codes, F: Values, keep: int, front_limit: int) -> tuple[Codes, Values]:
    """With one objective the `keep` best, best first; with several the front, by the first objective, at most `front_limit`.

    Of equal ones the earlier comes first.
    """
    if F.shape[1] == 1:
        order = np.argsort(F[:, 0], kind="stable")[:keep]
    else:
        front = np.flatnonzero(nondominated(F))
        order = front[np.lexsort(F[front].T[::-1])]
        order = order[_most_isolated(F[order], front_limit)]
    return codes[order], F[order]


def _most_isolated(F: Values, n: int) -> Codes:
    """Positions, ascending, of the n rows with the widest gaps around them (NSGA-II's crowding distance); the ends stay."""
    if len(F) <= n:
        return np.arange(len(F))
    distance = np.zeros(len(F))
    for column in F.T:
        order = np.argsort(column, kind="stable")
        gap = np.diff(column[order], prepend=-np.inf, append=np.inf)
        distance[order] += (gap[1:] + gap[:-1]) / max(np.ptp(column), np.finfo(float).tiny)
    return np.sort(np.argsort(-distance, kind="stable")[:n])


# -- from the first generation to the last ---------------------------------------------------------------------


def begin(
    name: str,
    problem: Problem,
    config: SearchConfig,
    rng: np.random.Generator,
    shares: int = 0,
    front_limit: int = FRONT_LIMIT,
) -> Run:
    """A run in which nothing is evaluated yet."""
    nothing, no_values = np.zeros((0, len(problem.space.genes)), dtype=np.int64), np.zeros((0, len(problem.objectives)))
    return Run(
        name=name,
        problem=problem,
        config=config,
        rng=rng,
        units=unit_index(problem.space),
        unseen=Unseen(problem.space),
        codes=nothing,
        F=no_values,
        archive=nothing,
        values=no_values,
        share=np.ones(shares),
        screen=np.zeros(0),
        measured=np.zeros((0, 0)),
        evaluations=0,
        front_limit=front_limit,
    )


def populate(run: Run) -> None:
    """The first population of most searches."""
    run.codes = initial(run.problem, run.config.population, run.unseen, run.rng)
    run.F = run.evaluate(run.codes)


def restored(name: str, problem: Problem, config: SearchConfig, start: State, shares: int) -> Run:
    """The run as it was when `start` was taken. Raises MismatchError, FormatError."""
    start.check(problem.identity(name, config), problem.space, shares)
    if not problem.feasible(np.concatenate([start.codes, start.archive])).all():
        raise MismatchError("networks of a search state must keep the budgets, but prices are others now than they were; start anew")
    if start.measured.size and not problem.makes(start.measured, start.F):
        raise MismatchError("what a search state measured must make its objectives, but is put together otherwise now; start anew")
    unseen = Unseen(problem.space)
    unseen.restore(start.known)
    return Run(
        name=name,
        problem=problem,
        config=config,
        rng=start.rng(),
        units=unit_index(problem.space),
        unseen=unseen,
        codes=start.codes,
        F=start.F,
        archive=start.archive,
        values=start.values,
        share=start.share,
        screen=start.screen,
        measured=start.measured,
        evaluations=start.evaluations,
        number=start.number,
    )


def drive(
    name: str,
    problem: Problem,
    config: SearchConfig,
    rng: np.random.Generator,
    start: State | None,
    step: Callable[[Run], None],
    shares: int = 0,
    first: Callable[[Run], None] = populate,
) -> Search:
    """Yield the generation of the `first` population, then one after each `step`, then one with the winner refined where asked.

    With `start`, only what comes after it: bit for bit the generations of the unbroken search; `rng` is left alone.
    """
    problem.preflight()
    if config.refine and len(problem.objectives) > 1:
        raise UsageError(f"only a winner can be refined, but {len(problem.objectives)} objectives give a front; search without refinement")
    if start is None:
        run = begin(name, problem, config, rng, shares)
        first(run)
        yield run.report()
    else:
        run = restored(name, problem, config, start, shares)
    while run.number < config.generations:
        run.number += 1
        step(run)
        yield run.report()
    if config.refine and run.number == config.generations:
        run.number += 1
        run.refine()
        yield run.report()
