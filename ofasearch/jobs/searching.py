"""One search of `find`, from a problem to its last generation, with progress; and what is asked of it."""

from __future__ import annotations

import math
import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ofasearch.errors import UsageError
from ofasearch.jobs.exam import Exam, UnevaluatedError
from ofasearch.jobs.setup import Question, Setup
from ofasearch.search.problem import Generation, Problem, SearchConfig
from ofasearch.search.searchers import SEARCHERS
from ofasearch.search.state import State
from ofasearch.search.unguided import is_small
from ofasearch.space.core import ENUMERATION_LIMIT

ALGORITHMS = tuple(name for name, searcher in SEARCHERS.items() if searcher.one)  # that find one network

KEPT = 20  # best networks of a search, at least
POPULATION, GENERATIONS = 100, 500  # of networks that are judged by arithmetic
EVALUATED_POPULATION, EVALUATED_GENERATIONS = 20, 10  # of networks that are evaluated for real, which takes seconds each
LEARNED_POPULATION, LEARNED_GENERATIONS = 8, 24  # the same, of a search that learns which ones are worth it
LEARNED_SHARE = 1 / 3  # of the networks of a small space that such a search evaluates at most
LEAST_POPULATION = 4  # with which a search can begin
LISTED_EVALUATIONS = 24  # networks that are evaluated one and all before that pays
COUNT_LIMIT, TOP_LIMIT = 1_000_000, 10_000  # what a machine's memory and somebody's patience hold
TELL_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class FindRequest:
    """`ofasearch find`; the fields are the command's options. None: what suits the objective."""

    question: Question
    data: str | None = None
    images: int | None = None
    calibration_images: int | None = None
    algorithm: str | None = None  # one of ALGORITHMS
    population: int | None = None
    generations: int | None = None
    seed: int = 0
    top_k: int = 5
    out: Path | None = None
    no_bn: bool = False
    resume: bool = False

    def __post_init__(self) -> None:
        if not 1 <= self.top_k <= TOP_LIMIT or self.seed < 0:
            raise UsageError(f"--top-k must be 1..{TOP_LIMIT} and --seed at least 0, but got {self.top_k} and {self.seed}")
        for name, value in (("population", self.population), ("generations", self.generations)):
            if value is not None and value > COUNT_LIMIT:
                raise UsageError(f"--{name} must be at most {COUNT_LIMIT:,}, but got {value:,}")
        if self.algorithm is not None and self.algorithm not in ALGORITHMS:
            raise UsageError(f"--algorithm must be one of {', '.join(ALGORITHMS)}, but got '{self.algorithm}'")
        if self.data is None and (self.images is not None or self.calibration_images is not None):
            raise UsageError("--images and --calibration-images say how many images of --data are used; add --data")
        _ = self.config  # refuses numbers that no search can have

    @property
    def config(self) -> SearchConfig:
        """How to search. Raises UsageError for numbers that no search can have."""
        evaluated, direct = self.question.objective == "measured", self.question.measure == "direct"
        population, generations = (EVALUATED_POPULATION, EVALUATED_GENERATIONS) if evaluated else (POPULATION, GENERATIONS)
        if self._usual == "surrogate":
            population, generations = LEARNED_POPULATION, LEARNED_GENERATIONS
        generations = generations if self.generations is None else self.generations
        make = SEARCHERS[self._usual].config
        # each step of a refinement would evaluate or time hundreds of neighbours
        costly: dict[str, Any] = {"refine": False} if evaluated or direct else {}
        population = population if self.population is None else self.population
        return make(population=population, generations=generations, keep=max(KEPT, self.top_k), **costly)

    @property
    def _usual(self) -> str:
        """How spaces are searched that cannot be listed."""
        return self.algorithm or ("surrogate" if self.question.objective == "measured" else "evolution")

    def settled(self, problem: Problem, *, known: bool = False) -> FindRequest:
        """The request with the algorithm, population and generations that it leaves open; `known` networks need no evaluation.

        Raises UsageError for an exact search of a space that is too large.
        """
        networks = problem.space.size * len(problem.space.resolutions)
        if self.algorithm == "exact" and networks > ENUMERATION_LIMIT:
            raise UsageError(
                f"--algorithm exact lists at most {ENUMERATION_LIMIT:,} networks, but {problem.space.name} has {networks:.3g}; "
                "leave it out, or choose evolution"
            )
        algorithm = "exact" if self.algorithm is None and self._is_listed(problem, known) else self._usual
        population, generations = self.config.population, self.config.generations
        if algorithm == "surrogate" and is_small(problem):
            most = math.floor(LEARNED_SHARE * int(problem.feasible(problem.space.enumerate()).sum()))
            if self.population is None:
                population = max(LEAST_POPULATION, min(population, most // 2))
            if self.generations is None:
                generations = max(1, min(generations, most // population - 1))
        return replace(self, algorithm=algorithm, population=population, generations=generations)

    def _is_listed(self, problem: Problem, known: bool) -> bool:
        """Whether to list the space: where that is quick, and hardly a network has to be evaluated for it."""
        if known or not is_small(problem) or self.question.objective != "measured":
            return is_small(problem)
        return int(problem.feasible(problem.space.enumerate()).sum()) <= LISTED_EVALUATIONS


@dataclass(frozen=True, slots=True, kw_only=True)
class FindProgress:
    """Where the job is: a phase, and within a search the best so far."""

    phase: str
    done: int
    total: int
    best_top1: float | None = None
    eta_seconds: float | None = None
    note: str | None = None  # the best so far, where top-1 alone does not say it


class Keeper(Protocol):
    """Keeps how far a search came, so that it can go on after a kill; searches of one run are numbered from 0."""

    def load(self, number: int) -> State | None:
        """Where a search is to go on from; None where it begins."""

    def save(self, number: int, generation: Generation) -> None:
        """Called after every generation but the last."""


@dataclass(slots=True)
class Tally:
    """What searching took so far, and who keeps it."""

    keeper: Keeper | None = None
    searches: int = 0
    evaluations: int = 0
    seconds: float = 0.0  # first random network to last answer, evaluating for real included
    limits_ms: list[float] = field(default_factory=list)  # of this machine's latency, one per search


def search(request: FindRequest, setup: Setup, problem: Problem, tally: Tally) -> Generator[FindProgress, None, Generation]:
    """The last generation of a search that a settled request asks for. Raises InfeasibleError.

    Networks whose accuracy must be evaluated for real are evaluated when the search first asks for them.
    """
    started, plan, reached = time.perf_counter(), None, _Reached()
    while True:
        try:
            generation = yield from _run(request, setup, problem, tally, reached)
            break
        except UnevaluatedError as wanted:  # searches are deterministic: from its last generation on, it comes to the same networks
            assert setup.exam is not None  # who else would ask
            plan = plan or _Plan(_most_evaluations(request, problem))
            best, reached.evaluates = _best(setup, reached.generation), True
            yield from (replace(progress, note=best) for progress in plan.evaluate(setup.exam, wanted))
    tally.searches += 1
    tally.seconds += time.perf_counter() - started
    tally.evaluations += generation.evaluations
    return generation


@dataclass(slots=True)
class _Reached:
    """The last generation of a search that is stopped to evaluate networks."""

    generation: Generation | None = None
    evaluates: bool = False  # which is then told in place of how far the search is


def _run(
    request: FindRequest, setup: Setup, problem: Problem, tally: Tally, reached: _Reached
) -> Generator[FindProgress, None, Generation]:
    from threadpoolctl import threadpool_limits

    started = last = time.perf_counter()
    config, keeper, searcher = request.config, tally.keeper, SEARCHERS[str(request.algorithm)]
    total = 0 if request.algorithm == "exact" else config.generations
    if reached.generation is not None:
        start: State | None = reached.generation.state
    else:
        start = keeper.load(tally.searches) if keeper is not None else None
    with threadpool_limits(1):  # threads fight over matrices this small
        generation = reached.generation or (_of_state(start) if start is not None else None)
        for generation in searcher.search(problem, config, np.random.default_rng(request.seed), start):
            reached.generation = generation
            if keeper is not None and generation.number < total:
                keeper.save(tally.searches, generation)
            now = time.perf_counter()
            if not reached.evaluates and now - last > TELL_SECONDS:
                last = now
                eta = (now - started) / (generation.number + 1) * (total - generation.number)
                best = float(setup.judge.top1(generation.codes[:1])[0])
                told = _best(setup, generation)
                yield FindProgress(phase="searching", done=generation.number, total=total, best_top1=best, eta_seconds=eta, note=told)
    assert generation is not None  # all searches yield at least once or raise
    return generation


def _best(setup: Setup, generation: Generation | None) -> str | None:
    """What is told of the best network so far, where its top-1 alone does not say it."""
    tell = setup.judge.tell
    return tell(generation.codes[:1]) if tell is not None and generation is not None else None


def _of_state(state: State) -> Generation:
    """The generation that a state was taken of: the last one, where a search finds nothing more to do."""
    return Generation(state.number, state.archive, state.values, state.evaluations)


def _most_evaluations(request: FindRequest, problem: Problem) -> int:
    """How many networks a search evaluates at most."""
    if request.algorithm == "exact":
        return int(problem.feasible(problem.space.enumerate()).sum())
    return request.config.population * (request.config.generations + 1)


@dataclass(slots=True)
class _Plan:
    """How many networks are evaluated for real at most, and what is said of it."""

    most: int
    told: str = ""  # how long it takes, as soon as one was timed

    def evaluate(self, exam: Exam, wanted: UnevaluatedError) -> Iterator[FindProgress]:
        """Evaluate the wanted networks."""
        before = len(exam.known)
        yield self._progress(exam, before, None)
        for progress in exam.evaluate(wanted.codes, wanted.share):
            yield self._progress(exam, len(exam.known) if wanted.share < 1 else before + progress.done, progress.best_top1)

    def _progress(self, exam: Exam, known: int, best: float | None) -> FindProgress:
        done = min(known, self.most)  # searches under former limits had their own networks
        each = exam.seconds / exam.evaluated if exam.evaluated else None
        if each is not None and not self.told:
            self.told = f", {each:.1f} s each, {each * self.most:,.0f} s in all"
        phase = f"evaluating up to {self.most} networks on {exam.images:,} validation images{self.told}"
        eta = each * (self.most - done) if each is not None else None
        return FindProgress(phase=phase, done=done, total=self.most, best_top1=best, eta_seconds=eta)
