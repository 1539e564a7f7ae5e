"""One search of `find`, from a problem to its last generation, with progress; and what is asked of it."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Protocol

import numpy as np

from ofasearch.errors import UsageError
from ofasearch.jobs.exam import Exam, UnevaluatedError
from ofasearch.jobs.setup import Question, Setup
from ofasearch.search.evolution import EvolutionConfig, evolve
from ofasearch.search.problem import Generation, Problem
from ofasearch.search.state import State
from ofasearch.search.unguided import enumerate_exactly, is_small

KEPT = 20  # best networks of a search, at least
POPULATION, GENERATIONS = 100, 500  # of networks that are judged by arithmetic
EVALUATED_POPULATION, EVALUATED_GENERATIONS = 20, 10  # of networks that are evaluated for real, which takes seconds each
COUNT_LIMIT, TOP_LIMIT = 1_000_000, 10_000  # what a machine's memory and somebody's patience hold
TELL_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class FindRequest:
    """`ofasearch find`; the fields are the command's options. None: what suits the objective."""

    question: Question
    data: str | None = None
    images: int | None = None
    calibration_images: int | None = None
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
        if self.data is None and (self.images is not None or self.calibration_images is not None):
            raise UsageError("--images and --calibration-images say how many images of --data are used; add --data")
        _ = self.config  # refuses numbers that no search can have

    @property
    def config(self) -> EvolutionConfig:
        """How to search. Raises UsageError for numbers that no search can have."""
        evaluated, direct = self.question.objective == "measured", self.question.measure == "direct"
        population, generations = (EVALUATED_POPULATION, EVALUATED_GENERATIONS) if evaluated else (POPULATION, GENERATIONS)
        return EvolutionConfig(
            population=population if self.population is None else self.population,
            generations=generations if self.generations is None else self.generations,
            keep=max(KEPT, self.top_k),
            refine=not (evaluated or direct),  # each of its steps would evaluate or time hundreds of neighbours
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class FindProgress:
    """Where the job is: a phase, and within a search the best so far."""

    phase: str
    done: int
    total: int
    best_top1: float | None = None
    eta_seconds: float | None = None


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
    """The last generation of a search. Raises InfeasibleError.

    Networks whose accuracy must be evaluated for real are evaluated when the search first asks for them.
    """
    started, plan = time.perf_counter(), _Plan(_most_evaluations(request.config, problem))
    while True:
        try:
            generation = yield from _run(request, setup, problem, tally)
            break
        except UnevaluatedError as wanted:  # searches are deterministic: begun anew, this one comes to the same networks
            assert setup.exam is not None  # who else would ask
            yield from plan.evaluate(setup.exam, wanted)
    tally.searches += 1
    tally.seconds += time.perf_counter() - started
    tally.evaluations += generation.evaluations
    return generation


def _run(request: FindRequest, setup: Setup, problem: Problem, tally: Tally) -> Generator[FindProgress, None, Generation]:
    from threadpoolctl import threadpool_limits

    started = last = time.perf_counter()
    total, keeper = request.config.generations, tally.keeper
    start = keeper.load(tally.searches) if keeper is not None else None
    with threadpool_limits(1):  # threads fight over matrices this small
        generation: Generation | None = None
        for generation in _generations(request, problem, start):
            if keeper is not None and generation.capture is not None and generation.number < total:
                keeper.save(tally.searches, generation)
            now = time.perf_counter()
            if now - last > TELL_SECONDS:
                last = now
                eta = (now - started) / (generation.number + 1) * (total - generation.number)
                best = float(setup.judge.top1(generation.codes[:1])[0])
                yield FindProgress(phase="searching", done=generation.number, total=total, best_top1=best, eta_seconds=eta)
    assert generation is not None  # all searches yield at least once or raise
    return generation


def _generations(request: FindRequest, problem: Problem, start: State | None) -> Iterator[Generation]:
    config, rng = request.config, np.random.default_rng(request.seed)
    return enumerate_exactly(problem, config.keep) if _is_exact(request, problem) else evolve(problem, config, rng, start)


def _is_exact(request: FindRequest, problem: Problem) -> bool:
    """Whether to list the space: where that is possible, and no more networks than otherwise would have to be evaluated for real."""
    if not is_small(problem):
        return False
    if request.question.objective != "measured":
        return True
    codes = problem.space.enumerate()
    return int(problem.feasible(codes).sum()) <= _most_evaluations(request.config, problem)


def _most_evaluations(config: EvolutionConfig, problem: Problem) -> int:
    """How many networks a search evaluates at most."""
    space = problem.space
    return min(config.population * (config.generations + 1), space.size * len(space.resolutions))


@dataclass(slots=True)
class _Plan:
    """How many networks are evaluated for real at most, and what is said of it."""

    most: int
    told: str = ""  # how long it takes, as soon as one was timed

    def evaluate(self, exam: Exam, wanted: UnevaluatedError) -> Iterator[FindProgress]:
        """Evaluate the wanted networks."""
        before = len(exam.known)
        yield self._progress(exam, before, None)
        for progress in exam.evaluate(wanted.codes):
            yield self._progress(exam, before + progress.done, progress.best_top1)

    def _progress(self, exam: Exam, done: int, best: float | None) -> FindProgress:
        each = exam.seconds / exam.evaluated if exam.evaluated else None
        if each is not None and not self.told:
            self.told = f", {each:.1f} s each, {each * self.most:,.0f} s in all"
        phase = f"evaluating up to {self.most} networks on {exam.images:,} validation images{self.told}"
        eta = each * (self.most - done) if each is not None else None
        return FindProgress(phase=phase, done=done, total=self.most, best_top1=best, eta_seconds=eta)
