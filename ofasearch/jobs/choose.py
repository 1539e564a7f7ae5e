"""From a search to its winner: candidates are timed on this machine and evaluated for real, and only then one is chosen."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass, field, replace

import numpy as np

from ofasearch.errors import InfeasibleError
from ofasearch.jobs.latency import reference_of
from ofasearch.jobs.measuring import Lab
from ofasearch.jobs.searching import FindProgress, FindRequest, Keeper, Tally, search
from ofasearch.jobs.setup import Device, Question, Setup, local_runtime, predicted_top1, show_ms
from ofasearch.latency.stopwatch import Timing
from ofasearch.search.problem import Budget, Problem
from ofasearch.space.core import Codes, Space

MEASURED_TOGETHER = 5  # candidates timed in turn: the winner so far and the runners-up
MOST_SLACK = 0.1  # of the budget
SEARCHES = 3  # the first and those under a smaller table limit, when nothing that was found keeps the real budget


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One of the best networks of the search: as it was found, and measured where that was done."""

    arch_id: str
    objective: float  # what the search went by; smaller is better
    predicted_top1: float
    error_bar: float | None = None  # half-width of the predictor's 80 % interval
    latencies_ms: tuple[float, ...] = ()  # by table, one per device
    measured: Timing | None = None
    accepted: bool | None = None
    validation_top1: float | None = None

    @property
    def latency_ms(self) -> float | None:
        """By the table of the first device."""
        return self.latencies_ms[0] if self.latencies_ms else None


@dataclass(slots=True)
class Outcome:
    """What was found so far: networks best first, and the cost of finding them."""

    codes: Codes
    tally: Tally
    candidates: list[Candidate] = field(default_factory=list)
    timed: dict[str, Timing] = field(default_factory=dict)  # every network that was timed for the choice, by arch id
    words: list[str] = field(default_factory=list)  # how the machine behaved while candidates were timed


@dataclass(frozen=True, slots=True)
class Timed:
    """Timings of networks, in their order, and what is to be said of them."""

    timings: list[Timing]
    words: list[str] = field(default_factory=list)


Clock = Callable[[Codes], Timed]  # networks (k, g), timed end to end on this machine


def clock_of(question: Question, space: Space) -> Clock:
    """The clock of this machine; it remembers what it timed. Random weights serve for that."""

    def clock(rows: Codes) -> Timed:
        lab = Lab(local_runtime(question), reference_of(space))
        found = dict(lab.measure({str(i): space.blueprint(row) for i, row in enumerate(rows)}))
        return Timed([found[str(i)].timing for i in range(len(rows))], lab.words())

    return clock


def choose(request: FindRequest, setup: Setup, clock: Clock, keeper: Keeper | None = None) -> Generator[FindProgress, None, Outcome]:
    """Search, measure, evaluate; the candidates that come out are best first, the winner foremost.

    `keeper` keeps how far each search came. Raises InfeasibleError when no network keeps the budgets, or none once it was timed.
    """
    outcome = Outcome(np.zeros((0, len(setup.space.genes)), dtype=np.int64), Tally(keeper=keeper))
    here = setup.here
    if here is not None and here.budget is not None:
        yield from _search_and_time(request, setup, here, here.budget, clock, outcome)
    else:
        generation = yield from search(request, setup, setup.problem, outcome.tally)
        _take(outcome, [(row, _candidate(setup, row)) for row in generation.codes[: request.top_k]])
    yield from _examine(request, setup, outcome)
    return outcome


def _take(outcome: Outcome, pairs: list[tuple[Codes, Candidate]]) -> None:
    """Make these the candidates."""
    outcome.codes = np.stack([row for row, _ in pairs])
    outcome.candidates = [candidate for _, candidate in pairs]


def _candidate(setup: Setup, codes: Codes, measured: Timing | None = None, accepted: bool | None = None) -> Candidate:
    bar = setup.judge.error_bar
    return Candidate(
        arch_id=setup.space.arch(codes).id,
        objective=float(setup.problem.objective(codes[None])[0]),
        predicted_top1=predicted_top1(setup, codes),
        error_bar=float(bar(codes[None])[0]) if bar is not None else None,
        latencies_ms=tuple(float(device.latency(codes[None])[0]) for device in setup.devices),
        measured=measured,
        accepted=accepted,
    )


# -- timing ----------------------------------------------------------------------------------------------------


def _search_and_time(
    request: FindRequest, setup: Setup, here: Device, budget: Budget, clock: Clock, outcome: Outcome
) -> Iterator[FindProgress]:
    """Fill `outcome` with candidates, an accepted one first.

    The table proposes and the end-to-end measurement decides: when no candidate keeps the budget, the search is repeated
    under a table limit that is smaller by the observed error, and at last the fastest network of the space is tried.
    Raises InfeasibleError when that one is too slow as well.
    """
    limit_ms = budget.limit * (1 + _table_slack(here))
    for attempt in range(SEARCHES):
        outcome.tally.limits_ms.append(limit_ms)
        try:
            generation = yield from search(request, setup, _with_limit(setup.problem, budget, limit_ms), outcome.tally)
        except InfeasibleError:
            if attempt == 0:
                raise
            break
        slowdown = yield from _time(request, setup, generation.codes, budget.limit, clock, outcome)
        if outcome.candidates[0].accepted:
            return
        limit_ms *= min(0.95, 1 / slowdown)
    fastest = budget.cost.bounds().lowest_codes[None]
    if setup.problem.feasible(fastest)[0]:
        yield from _time(request, setup, fastest, budget.limit, clock, outcome)
        if outcome.candidates[0].accepted:
            return
    reached = min(c.measured.high for c in outcome.candidates if c.measured)
    raise InfeasibleError(
        f"{budget.name} budget must be at least about {show_ms(reached)} on this machine (95 % bound of the fastest subnet's median, "
        f"measured end to end), but got {show_ms(budget.limit)}"
    )


def _table_slack(here: Device) -> float:
    """How far above the budget the table may put a network that is worth measuring: twice the table's own mean error."""
    validation = here.table.card.get("validation") if here.table else None
    return min(MOST_SLACK, 2 * float(validation["mape"])) if validation else 0.0


def _with_limit(problem: Problem, budget: Budget, limit: float) -> Problem:
    """The problem with another limit of one of its budgets."""
    budgets = tuple(replace(b, limit=limit) if b is budget else b for b in problem.budgets)
    return replace(problem, budgets=budgets)


def _time(
    request: FindRequest, setup: Setup, codes: Codes, limit_ms: float, clock: Clock, outcome: Outcome
) -> Generator[FindProgress, None, float]:
    """Time candidates (k, g) end to end, best first, a few at a time, until one keeps the limit (and there are enough to evaluate).

    Returns the median over candidates of measured bound / latency by the table.
    """
    index = next(i for i, device in enumerate(setup.devices) if device.here)
    yield from _evaluated(request, setup, codes)
    enough = request.top_k if _is_examined(request, setup) else 1
    tried: list[tuple[Codes, Candidate]] = []
    for start in range(0, len(codes), MEASURED_TOGETHER):
        rows = codes[start : start + MEASURED_TOGETHER]
        yield FindProgress(phase="measuring candidates end to end", done=start, total=len(codes), best_top1=predicted_top1(setup, rows[0]))
        timed = clock(rows)
        outcome.words = timed.words
        for row, timing in zip(rows, timed.timings, strict=True):
            candidate = _candidate(setup, row, timing, timing.high <= limit_ms)
            outcome.timed[candidate.arch_id] = timing
            tried.append((row, candidate))
        if len(tried) >= enough and any(candidate.accepted for _, candidate in tried):
            break
    _take(outcome, sorted(tried, key=lambda pair: not pair[1].accepted))  # stable: the best accepted one first
    return float(np.median([c.measured.high / c.latencies_ms[index] for c in outcome.candidates if c.measured]))


# -- evaluating ------------------------------------------------------------------------------------------------


def _evaluated(request: FindRequest, setup: Setup, codes: Codes) -> Iterator[FindProgress]:
    """Make sure that the accuracy of networks (k, g) can be told: where it must be evaluated, no search may have asked for it."""
    if request.question.objective == "measured" and setup.exam is not None:
        for progress in setup.exam.evaluate(codes):
            yield FindProgress(phase="evaluating candidates", done=progress.done, total=progress.total, best_top1=progress.best_top1)


def _is_examined(request: FindRequest, setup: Setup) -> bool:
    """Whether candidates are evaluated for real before one is chosen: where that is possible, and tells anything new."""
    return setup.exam is not None and not setup.judge.is_real and request.top_k > 1


def _examine(request: FindRequest, setup: Setup, outcome: Outcome) -> Iterator[FindProgress]:
    """Evaluate the candidates that keep the budgets on the validation split; the best becomes the winner, the earlier of equals."""
    exam = setup.exam
    if exam is None or not _is_examined(request, setup):
        return
    kept = [i for i, candidate in enumerate(outcome.candidates) if candidate.accepted is not False][: request.top_k]
    phase = f"evaluating {len(kept)} candidates on {exam.images:,} validation images"
    yield FindProgress(phase=phase, done=0, total=len(kept))
    for progress in exam.evaluate(outcome.codes[kept]):
        eta = exam.seconds / exam.evaluated * (progress.total - progress.done) if exam.evaluated else None
        yield FindProgress(phase=phase, done=progress.done, total=progress.total, best_top1=progress.best_top1, eta_seconds=eta)
    values = dict(zip(kept, exam.values(outcome.codes[kept]).tolist(), strict=True))
    judged = [replace(c, validation_top1=values[i]) if i in values else c for i, c in enumerate(outcome.candidates)]
    pairs = list(zip(outcome.codes, judged, strict=True))
    _take(outcome, sorted(pairs, key=lambda pair: -1.0 if pair[1].validation_top1 is None else pair[1].validation_top1, reverse=True))
