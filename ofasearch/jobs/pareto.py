"""Whole fronts: which networks of a space no other one beats in accuracy and costs, exact where the space can be listed."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from ofasearch import zoo
from ofasearch.errors import UsageError
from ofasearch.jobs.axes import COSTS, Axis, get_axes, prices
from ofasearch.jobs.fronts import Found, ParetoProgress, Watch, box_of
from ofasearch.jobs.measuring import LatencyProgress
from ofasearch.jobs.pareto_answer import RESULT, ParetoResult, unkept, write_answer
from ofasearch.jobs.pareto_task import EXACT, ParetoRequest, Task
from ofasearch.jobs.prefer import Wish, needs, parse_wishes
from ofasearch.jobs.searching import COUNT_LIMIT
from ofasearch.jobs.setup import Setup, prepare
from ofasearch.records import check_writable
from ofasearch.search.searchers import SEARCHERS
from ofasearch.space.core import ENUMERATION_LIMIT

FRONTS = tuple(name for name, searcher in SEARCHERS.items() if searcher.several)


def pareto(request: ParetoRequest) -> Iterator[ParetoProgress | ParetoResult]:
    """Search the front, write it down, and choose of it what was preferred; progress on the way and the result at last.

    Raises the errors of `prepare`; InfeasibleError where no network keeps all budgets and, after the front was written,
    where none of it keeps what was preferred.
    """
    axes, wishes = _asked(request)
    setup = yield from _prepared(request, axes)
    task = _task(replace(request, question=setup.question), setup, axes, wishes)
    found: dict[str, Found] = {}
    for name in _searches(task):
        found[name] = yield from _search(task, name)
    yield ParetoProgress(phase="writing", done=0, total=1)
    result = write_answer(task, found)
    for name in found:
        task.bookmark(name).forget()
    if wishes and "preferred" not in result.record:
        raise unkept(task, result.record["front"])
    yield result


# -- asking ----------------------------------------------------------------------------------------------------


def _asked(request: ParetoRequest) -> tuple[tuple[Axis, ...], tuple[Wish, ...]]:
    """Objectives and wishes. Raises UsageError before anything is loaded."""
    target = request.question.target
    axes = get_axes(request.objectives or ("top1", "latency" if target is not None else "macs"))
    wishes = parse_wishes(request.prefer) if request.prefer is not None else ()
    if target is None and COSTS["latency"] in (*axes, *(wish.axis for wish in wishes)):
        raise UsageError("latency needs a device: add --target cpu, a table, or a card's name")
    if request.seed < 0:
        raise UsageError(f"--seed must be at least 0, but got {request.seed}")
    for name, count in (("population", request.population), ("generations", request.generations)):
        if count is not None and count > COUNT_LIMIT:
            raise UsageError(f"--{name} must be at most {COUNT_LIMIT:,}, but got {count:,}")
    if request.algorithm is not None and request.algorithm not in FRONTS:
        raise UsageError(f"--algorithm must be one of {', '.join(FRONTS)}, but got '{request.algorithm}'")
    return axes, wishes


def _prepared(request: ParetoRequest, axes: Sequence[Axis]) -> Generator[ParetoProgress, None, Setup]:
    """What `prepare` makes of the question, after a supernet that must be fetched was."""
    for fetched in zoo.fetch_supernet(request.question.supernet):
        yield ParetoProgress(phase=f"fetching {fetched.name}", done=fetched.done, total=fetched.total or 0)
    setup: Setup | None = None
    for event in prepare(replace(request.question, objective=axes[0].name), costs=tuple(axis.name for axis in axes[1:])):
        if isinstance(event, LatencyProgress):
            phase = f"measuring this machine: {event.what}"
            yield ParetoProgress(phase=phase, done=event.done, total=event.total, eta_seconds=event.eta_seconds)
        else:
            setup = event
    assert setup is not None  # prepare ends with it or raises
    return setup


def _task(request: ParetoRequest, setup: Setup, axes: tuple[Axis, ...], wishes: tuple[Wish, ...]) -> Task:
    """Raises UsageError (what cannot be listed, wishes that need error bars), WriteError."""
    price = prices(setup)
    costs = [price[axis.name] for axis in axes[1:]]
    problem = replace(setup.problem, objectives=(*setup.problem.objectives, *costs))
    size = setup.space.size * len(setup.space.resolutions)
    if size > ENUMERATION_LIMIT and (request.compare or request.algorithm == EXACT):
        raise UsageError(
            f"{'--compare' if request.compare else '--algorithm exact'} lists the whole space: it must hold at most "
            f"{ENUMERATION_LIMIT:,} networks, but {setup.space.name} holds {size:.3g}; narrow --resolutions, or take a smaller space"
        )
    if needs(wishes, "lcb") and setup.judge.error_bar is None:
        raise UsageError("--prefer lcb needs a predictor that carries error bars, but there is none; add --predictor, or prefer top1")
    folder = request.out or Path("runs") / f"pareto-{setup.space.name}"
    check_writable(folder / RESULT)
    box = box_of(problem, axes, costs, request.question.budgets)
    return Task(request=request, setup=setup, problem=problem, axes=axes, wishes=wishes, box=box, folder=folder)


# -- searching -------------------------------------------------------------------------------------------------


def _searches(task: Task) -> list[str]:
    """What is run: the algorithm whose front is the answer, and those it is compared with; the exact one first."""
    return [name for name in FRONTS if task.request.compare or name == task.algorithm]


def _search(task: Task, name: str) -> Generator[ParetoProgress, None, Found]:
    """One search, gone on with where a former one was stopped and that is wished.

    Raises InfeasibleError; UsageError, MismatchError and FormatError where it cannot be gone on with.
    """
    request, bookmark = task.request, task.bookmark(name)
    stopped = bookmark.load() if request.resume else None
    if stopped is None:
        bookmark.forget()
    state, trace, seconds = stopped or (None, [], 0.0)
    population, generations = task.effort
    if state is not None and state.number >= generations:
        raise UsageError(f"--generations must be more than the {state.number} that the stopped search has done, but got {generations}")
    searcher = SEARCHERS[name]
    config = searcher.config(population=population, generations=generations)
    search = searcher.search(task.problem, config, np.random.default_rng(request.seed), state)
    total = 0 if name == EXACT else generations
    return (yield from Watch(task.box, bookmark, total, trace, seconds).follow(search))


__all__ = ["ParetoProgress", "ParetoRequest", "ParetoResult", "pareto"]
