"""From what a user asked to what a search needs: space, weights, objective, prices, budgets."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from ofasearch import zoo
from ofasearch.deploy.runtime import TARGETS, Runtime, get_runtime
from ofasearch.errors import MismatchError, NotFoundError, UsageError
from ofasearch.evaluate.members import Members
from ofasearch.jobs.direct import DirectCost
from ofasearch.jobs.latency import build_table, reference_of
from ofasearch.jobs.measuring import Lab, LatencyProgress
from ofasearch.latency.machine import check_run
from ofasearch.latency.table import LatencyTable
from ofasearch.predictor import Predictor
from ofasearch.search.problem import Budget, Objective, Priced, Problem
from ofasearch.space.core import Codes, Space, Values
from ofasearch.space.costs import activation_bytes_of, macs_of, params_of
from ofasearch.space.families import get_space

MEMBERS_LIMIT = 5000  # networks; a larger space is not measured whole


@dataclass(frozen=True, slots=True, kw_only=True)
class Budgets:
    """Limits that all hold together; None where nothing is asked."""

    latency_ms: float | None = None
    macs: float | None = None
    params: float | None = None
    memory_bytes: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What `find` and its siblings share: where to search, what to keep to, how to price."""

    budgets: Budgets
    target: str | None = None
    space: str | None = None
    supernet: str | None = None
    predictor: str | None = None
    resolutions: tuple[int, ...] | None = None
    runtime: str = "ort"
    precision: str = "fp32"
    batch: int = 1
    threads: int = 1
    measure: str = "table"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A question made ready: `supernet` is None when only an architecture can be answered."""

    problem: Problem
    space: Space
    supernet: zoo.TrainedSupernet | None
    members: Members | None  # the measured networks of the space, where there are such
    table: LatencyTable | None
    latency: Priced | None  # milliseconds of networks: by the table, or measured one by one
    notes: tuple[str, ...]  # what the user should know, one sentence each


def show_ms(value: float) -> str:
    """Milliseconds for people."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms" if value >= 1 else f"{value:.3f} ms"


def show_count(value: float) -> str:
    """MACs or parameters for people."""
    return f"{value / 1e6:.4g} M" if value >= 1e4 else f"{value:g}"


def show_bytes(value: float) -> str:
    """Bytes for people."""
    return f"{value / 1e6:.4g} MB" if value >= 1e4 else f"{value:g} B"


def prepare(question: Question) -> Iterator[LatencyProgress | Setup]:
    """Load what the question names, measure the target where it is this machine, and yield the Setup at last.

    Raises UsageError, NotFoundError, MismatchError, FormatError, InfeasibleError.
    """
    _check(question)
    supernet = _supernet(question)
    space = _space(question, supernet)
    predictor = zoo.get_predictor(question.predictor) if question.predictor is not None else None
    if predictor is not None:
        predictor.check_space(space)
        if supernet is not None:
            predictor.check_supernet(supernet.weights.digest)
    members = supernet.members if supernet is not None and space is supernet.weights.space else None
    if predictor is None and members is None:
        raise _no_objective(space, question)
    table = None
    if question.target is not None and question.target not in TARGETS:
        table = zoo.get_table(question.target, space, batch=question.batch, threads=question.threads, precision=question.precision)
    space = _common_resolutions(space, question, predictor, table)
    found = yield from _priced(question, space, table)
    table = found if isinstance(found, LatencyTable) else None
    latency = found.cost(space) if isinstance(found, LatencyTable) else found
    if members is not None:
        members = members.narrowed(space)
    objective = predictor_objective(space, predictor) if predictor is not None or members is None else member_objective(members)
    problem = Problem(space, (objective,), tuple(_budgets(question.budgets, space, latency)))
    notes = table_notes(table)
    for budget, bounds in problem.preflight():
        if bounds.highest <= budget.limit:
            limit, highest = budget.show(budget.limit), budget.show(bounds.highest)
            notes.append(f"every subnet keeps the {budget.name} budget of {limit}: the largest takes {highest}")
    yield Setup(problem=problem, space=space, supernet=supernet, members=members, table=table, latency=latency, notes=tuple(notes))


def _priced(
    question: Question, space: Space, table: LatencyTable | None
) -> Generator[LatencyProgress, None, LatencyTable | DirectCost | None]:
    """What tells latencies: the given table, one measured here, or the stopwatch itself."""
    if question.measure == "direct":
        direct = DirectCost(space, Lab(local_runtime(question), reference_of(space)))
        if space.size * len(space.resolutions) <= MEMBERS_LIMIT:
            yield from direct.measure_all()
        return direct
    if question.target in TARGETS:
        for event in build_table(space, local_runtime(question)):
            if isinstance(event, LatencyTable):
                return event
            yield event
    return table


def table_notes(table: LatencyTable | None) -> list[str]:
    """What the user should know of the latencies the search goes by."""
    notes = []
    if table is not None and isinstance(table.card.get("notes"), list):
        notes += [str(note) for note in table.card["notes"]]
    if table is not None and (table.source == "estimated" or (table.source == "interpolated" and "error" in table.card)):
        how = "estimated from its published peaks" if table.source == "estimated" else "interpolated from few measured layers"
        error = table.card.get("error")
        notes.append(
            f"latencies of {table.name} are {how}, not measured, for batch {table.key.batch}"
            + (f": {error}" if isinstance(error, str) else "")
        )
    if table is not None and "measured_at" in table.card:
        notes.append(f"there are tables of {table.name}, but for another question: {'; '.join(table.card['measured_at'])}")
    return notes


def _no_objective(space: Space, question: Question) -> NotFoundError:
    """The error for a search that has nothing to rank networks by, with the shortest way out."""
    if question.supernet is not None and space.size * len(space.resolutions) <= MEMBERS_LIMIT:
        way = f"measure its members: ofasearch supernet evaluate {question.supernet} --data DIR"
    else:
        way = f"make one: ofasearch predictor fit --space {space.name} --pairs FILE -o predictor.safetensors"
    return NotFoundError(f"a search of {space.name} needs an accuracy predictor, but none was given; pass --predictor, or {way}")


def _check(question: Question) -> None:
    b = question.budgets
    if all(limit is None for limit in (b.latency_ms, b.macs, b.params, b.memory_bytes)):
        raise UsageError("at least one budget must be given: --latency, --flops, --params or --memory")
    for limit in (b.latency_ms, b.macs, b.params, b.memory_bytes):
        if not isinstance(limit, int | float | None):
            raise UsageError(f"a budget must be a number (latency in ms), but got {limit!r}")
    if b.latency_ms is not None and question.target is None:
        raise UsageError("a latency budget needs a device: add --target cpu, a table, or a card's name")
    if question.measure not in ("table", "direct"):
        raise UsageError(f"--measure must be table or direct, but got '{question.measure}'")
    if question.measure == "direct" and (question.target not in TARGETS or b.latency_ms is None):
        raise UsageError("--measure direct times networks on this machine: it needs --target cpu or cuda, and a --latency to keep")
    if question.target is None and (question.runtime, question.precision) != ("ort", "fp32"):
        raise UsageError("--runtime and --precision are those of a device: add --target cpu or cuda, or leave them out")
    if question.target in TARGETS:
        local_runtime(question)  # refuses what does not go together before anything is loaded
    check_run(batch=question.batch, threads=question.threads)


def local_runtime(question: Question) -> Runtime:
    """The runtime of this machine that the question names.

    Raises UsageError, NotFoundError (no such device).
    """
    options = {"precision": question.precision, "batch": question.batch, "threads": question.threads}
    return get_runtime(question.runtime, target=str(question.target), **options)  # type: ignore[arg-type]


def _supernet(question: Question) -> zoo.TrainedSupernet | None:
    if question.supernet is not None:
        return zoo.load_supernet(question.supernet)
    return None if question.space is not None else zoo.load_supernet(zoo.DEFAULT_SUPERNET)


def _space(question: Question, supernet: zoo.TrainedSupernet | None) -> Space:
    if supernet is None:
        return get_space(str(question.space))
    trained = supernet.weights.space
    if question.space is None or question.space == trained.name:
        return trained
    space = get_space(question.space, classes=trained.classes).with_resolutions(trained.resolutions)
    if space.parent != trained.name:
        raise MismatchError(f"supernet {supernet.name} must hold all networks of {space.name}, but was trained on {trained.name} only")
    return space


def _common_resolutions(space: Space, question: Question, predictor: Predictor | None, table: LatencyTable | None) -> Space:
    """The space narrowed to the resolutions that all parts know."""
    known: dict[str, Sequence[int]] = {"the space": space.resolutions}
    if predictor is not None:
        known["the predictor"] = predictor.encoder.resolutions
    if table is not None and table.resolutions is not None:
        known["the latency table"] = table.resolutions
    if question.resolutions is not None:
        unknown = sorted(set(question.resolutions) - set(space.resolutions))
        if unknown:
            raise UsageError(f"--resolutions must be among those of {space.name}, {list(space.resolutions)}, but got {unknown}")
        known["--resolutions"] = question.resolutions
    common = set.intersection(*(set(r) for r in known.values()))
    if not common:
        raise UsageError("some resolution must be known to all, but " + "; ".join(f"{who} knows {list(r)}" for who, r in known.items()))
    return space if common == set(space.resolutions) else space.with_resolutions(sorted(common))


def member_objective(members: Members) -> Objective:
    """Minus the measured validation top-1 of each member."""
    top1 = members.top1("validation")
    return lambda codes: -top1[members.index(codes)]


def predictor_objective(space: Space, predictor: Predictor | None) -> Objective:
    """Minus the predicted top-1 of each network."""
    if predictor is None:
        raise NotFoundError("a search needs an accuracy predictor or measured members, but has neither")

    def objective(codes: Codes) -> Values:
        return -predictor(space.settings(codes))

    return objective


def _budgets(limits: Budgets, space: Space, latency: Priced | None) -> Iterator[Budget]:
    if limits.latency_ms is not None and latency is not None:
        yield Budget("latency", latency, limits.latency_ms, show_ms)
    rows: tuple[tuple[str, float | None, Callable[[Space], object], Callable[[float], str]], ...] = (
        ("MACs", limits.macs, macs_of, show_count),
        ("parameter", limits.params, params_of, show_count),
        ("memory", limits.memory_bytes, activation_bytes_of, show_bytes),
    )
    for name, limit, price, show in rows:
        if limit is not None:
            yield Budget(name, price(space), limit, show)  # type: ignore[arg-type]


def predicted_top1(setup: Setup, codes: Codes) -> float:
    """What the search believed of one network (g,): predicted, or for a wholly measured space the validation figure."""
    return -float(setup.problem.objective(np.atleast_2d(codes))[0])
