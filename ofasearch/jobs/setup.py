"""From what a user asked to what a search needs: space, weights, objective, prices, budgets."""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from ofasearch import zoo
from ofasearch.data import DataSet
from ofasearch.deploy.runtime import TARGETS, Runtime, get_runtime
from ofasearch.errors import MismatchError, NotFoundError, UsageError
from ofasearch.evaluate.members import Members
from ofasearch.jobs.direct import DirectCost, RecordedCost
from ofasearch.jobs.exam import Exam, exam_of, recorded_exam
from ofasearch.jobs.latency import build_table, reference_of
from ofasearch.jobs.measuring import Lab, LatencyProgress
from ofasearch.jobs.objectives import Aim, Grounds, Judge, judge_of
from ofasearch.latency.machine import check_run
from ofasearch.latency.table import LatencyTable
from ofasearch.predictor import Predictor
from ofasearch.search.problem import Budget, Priced, Problem
from ofasearch.space.core import Blueprint, Codes, Space
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
class DeviceBudget:
    """A target, and how many ms a network may take there at most; None where nothing is asked."""

    target: str
    latency_ms: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Question:
    """What `find` and its siblings share: where to search, what to keep to, how to price.

    `target` is the first device, whose limit is `budgets.latency_ms`; `also` are further ones, and all limits hold together.
    """

    budgets: Budgets
    target: str | None = None
    also: tuple[DeviceBudget, ...] = ()
    space: str | None = None
    supernet: str | None = None
    predictor: str | None = None
    resolutions: tuple[int, ...] | None = None
    runtime: str = "ort"
    precision: str = "fp32"
    batch: int = 1
    threads: int = 1
    measure: str = "table"
    objective: str = "top1"

    @property
    def devices(self) -> tuple[DeviceBudget, ...]:
        """All targets in the order they were given."""
        first = (DeviceBudget(target=self.target, latency_ms=self.budgets.latency_ms),) if self.target is not None else ()
        return first + self.also

    @property
    def here(self) -> str | None:
        """The target that is this machine, if one is."""
        return next((device.target for device in self.devices if device.target in TARGETS), None)


@dataclass(frozen=True, slots=True, kw_only=True)
class Recorded:
    """What a former search measured on this machine: with it, a search is prepared and repeated without measuring.

    `latencies_ms` by `network_name` where networks were timed one by one; `scores`, validation top-1 by arch id, where
    networks could be evaluated.
    """

    tables: Mapping[str, LatencyTable]  # by target
    latencies_ms: Mapping[str, float] | None = None
    scores: Mapping[str, float] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A target made ready: what tells the milliseconds of networks there, and how many they may take."""

    target: str  # as asked
    name: str  # what to call it
    table: LatencyTable | None  # None where networks are timed one by one
    latency: Priced
    budget: Budget | None  # None where no limit was asked

    @property
    def here(self) -> bool:
        """Whether it is this machine, so that networks can be timed on it."""
        return self.target in TARGETS

    def source_of(self, blueprint: Blueprint) -> str:
        """How the latency of one network is known."""
        return self.table.source_of(blueprint) if self.table is not None else "measured"


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """A question made ready: `supernet` is None when only an architecture can be answered."""

    question: Question  # with the shipped predictor, where it named none and needs one
    problem: Problem
    space: Space
    judge: Judge  # what the search goes by
    exam: Exam | None  # who evaluates networks for real, where there are weights and labelled data
    supernet: zoo.TrainedSupernet | None
    members: Members | None  # the measured networks of the space, where there are such
    devices: tuple[Device, ...]  # in the order they were asked
    notes: tuple[str, ...]  # what the user should know, one sentence each

    @property
    def here(self) -> Device | None:
        """The device that is this machine, if one is."""
        return next((device for device in self.devices if device.here), None)

    @property
    def table(self) -> LatencyTable | None:
        """The latency table of the first device."""
        return self.devices[0].table if self.devices else None

    @property
    def latency(self) -> Priced | None:
        """Milliseconds of networks on the first device."""
        return self.devices[0].latency if self.devices else None


def show_ms(value: float) -> str:
    """Milliseconds for people."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:.3g} ms" if value >= 1 else f"{value:.3f} ms"


def show_count(value: float) -> str:
    """MACs or parameters for people."""
    return f"{value / 1e6:.4g} M" if value >= 1e4 else f"{value:g}"


def show_bytes(value: float) -> str:
    """Bytes for people."""
    return f"{value / 1e6:.4g} MB" if value >= 1e4 else f"{value:g} B"


def _with_predictor(question: Question, supernet: zoo.TrainedSupernet | None, space: Space) -> Question:
    """The question with the predictor that is shipped for its networks, where it names none and needs one."""
    measured = supernet is not None and supernet.members is not None and space is supernet.weights.space
    if question.predictor is not None or question.objective == "measured" or (measured and question.objective == "top1"):
        return question
    return replace(question, predictor=zoo.predictor_for(space, supernet))


def prepare(
    question: Question,
    data: DataSet | None = None,
    recorded: Recorded | None = None,
    *,
    costs: Sequence[str] = (),
    aim: Aim | None = None,
) -> Iterator[LatencyProgress | Setup]:
    """Load what the question names, measure the target where it is this machine, and yield the Setup at last.

    With labelled `data` the networks of a supernet can be evaluated for real; what is `recorded` takes the place of all measuring.
    With `costs` as objectives beside accuracy, no budget has to be given. An `aim` takes the place of the question's objective.
    Raises UsageError, NotFoundError, MismatchError, FormatError, InfeasibleError.
    """
    check_question(question, costs)
    if question.here is not None and recorded is None:
        local_runtime(question)  # refuses what does not go together before anything is loaded
    supernet = _supernet(question)
    space = _space(question, supernet)
    question = _with_predictor(question, supernet, space)
    predictor = zoo.get_predictor(question.predictor) if question.predictor is not None else None
    if predictor is not None:
        predictor.check_space(space)
        if supernet is not None:
            predictor.check_supernet(supernet.weights.digest)
    members = supernet.members if supernet is not None and space is supernet.weights.space else None
    if predictor is None and members is None and question.objective == "top1":
        raise _no_objective(space, question)
    tables = _tables(question, space)
    space = _common_resolutions(space, question, predictor, tables)
    space = aim.narrow(space) if aim is not None else space
    members = members.narrowed(space) if members is not None else None
    if aim is not None:
        exam: Exam | None = aim.exam(supernet, space, members, data)
    else:
        exam = exam_of(supernet, space, data) if recorded is None else recorded_exam(space, recorded.scores)
    grounds = Grounds(space=space, predictor=predictor, members=members, exam=exam)
    judge = aim.judge(grounds) if aim is not None else judge_of(question.objective, grounds)
    devices = yield from _devices(question, space, tables, recorded)
    budgets = (*_latency_budgets(devices), *_other_budgets(question.budgets, space))
    excluded = aim.excluded(space) if aim is not None else None
    problem = Problem(space, (judge.objective,), budgets, judge.measures, excluded)
    notes = _predictor_notes(question, predictor) + [note for device in devices for note in table_notes(device.table)]
    for budget, bounds in problem.preflight():
        if bounds.highest <= budget.limit:
            limit, highest = budget.show(budget.limit), budget.show(bounds.highest)
            notes.append(f"every subnet keeps the {budget.name} budget of {limit}: the largest takes {highest}")
    yield Setup(
        question=question,
        problem=problem,
        space=space,
        judge=judge,
        exam=exam,
        supernet=supernet,
        members=members,
        devices=devices,
        notes=tuple(dict.fromkeys(notes)),
    )


def _tables(question: Question, space: Space) -> dict[str, LatencyTable]:
    """The tables of all targets but this machine."""
    key = {"batch": question.batch, "threads": question.threads, "precision": question.precision}
    return {
        device.target: zoo.get_table(device.target, space, **key)  # type: ignore[arg-type]
        for device in question.devices
        if device.target not in TARGETS
    }


def _devices(
    question: Question, space: Space, tables: Mapping[str, LatencyTable], recorded: Recorded | None
) -> Generator[LatencyProgress, None, tuple[Device, ...]]:
    """All targets priced. This machine comes last, because what is impossible elsewhere need not be measured here."""
    names = [tables[d.target].name if d.target in tables else d.target for d in question.devices]
    found: dict[str, Device] = {}
    for asked, name in sorted(zip(question.devices, names, strict=True), key=lambda pair: pair[0].target in TARGETS):
        if asked.target in TARGETS:
            Problem(space, (), (*_latency_budgets(found.values()), *_other_budgets(question.budgets, space))).preflight()
            priced = recorded_price(asked.target, space, recorded) if recorded else (yield from _priced_here(question, space))
        else:
            priced = tables[asked.target]
        table = priced if isinstance(priced, LatencyTable) else None
        latency: Priced = priced.cost(space) if isinstance(priced, LatencyTable) else priced
        unique = name if names.count(name) == 1 else asked.target
        title = "latency" if len(names) == 1 else f"{unique} latency"
        budget = Budget(title, latency, asked.latency_ms, show_ms) if asked.latency_ms is not None else None
        found[asked.target] = Device(target=asked.target, name=unique, table=table, latency=latency, budget=budget)
    return tuple(found[asked.target] for asked in question.devices)


def _priced_here(question: Question, space: Space) -> Generator[LatencyProgress, None, LatencyTable | DirectCost]:
    """What tells latencies of this machine: a table measured now, or the stopwatch itself."""
    if question.measure == "direct":
        direct = DirectCost(space, Lab(local_runtime(question), reference_of(space)))
        if space.size * len(space.resolutions) <= MEMBERS_LIMIT:
            yield from direct.measure_all()
        return direct
    table: LatencyTable | None = None
    for event in build_table(space, local_runtime(question)):
        if isinstance(event, LatencyTable):
            table = event
        else:
            yield event
    assert table is not None  # a build ends with it or raises
    return table


def recorded_price(target: str, space: Space, recorded: Recorded) -> LatencyTable | RecordedCost:
    """What told the latencies of this machine in a former search. Raises MismatchError where that is not recorded."""
    if recorded.latencies_ms is not None:
        return RecordedCost(space, recorded.latencies_ms, whole=space.size * len(space.resolutions) <= MEMBERS_LIMIT)
    if target not in recorded.tables:
        raise MismatchError(f"the latency table of {target} must lie in the run's folder, but is missing")
    return recorded.tables[target]


def _predictor_notes(question: Question, predictor: Predictor | None) -> list[str]:
    """By which shipped predictor networks are ranked, and what its card warns of."""
    if predictor is None:
        return []
    told = predictor.card.get("notes")
    notes = [str(note) for note in told] if isinstance(told, list) else []
    by = [f"networks are ranked by the shipped predictor {question.predictor}"] if question.predictor in zoo.predictor_names() else []
    return by + notes


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


def check_question(question: Question, costs: Sequence[str] = ()) -> None:
    """Raise UsageError for a question that no search could answer, before anything is loaded; `costs` are objectives."""
    b, devices = question.budgets, question.devices
    limits = (*(device.latency_ms for device in question.also), b.latency_ms, b.macs, b.params, b.memory_bytes)
    if not costs and all(limit is None for limit in limits):
        raise UsageError("at least one budget must be given: --latency, --flops, --params or --memory")
    for limit in limits:
        if not isinstance(limit, int | float | None):
            raise UsageError(f"a budget must be a number (latency in ms), but got {limit!r}")
    if question.target is None and (b.latency_ms is not None or question.also):
        raise UsageError("a latency budget needs a device: add --target cpu, a table, or a card's name")
    _check_devices(devices)
    if question.measure not in ("table", "direct"):
        raise UsageError(f"--measure must be table or direct, but got '{question.measure}'")
    timed = [d for d in devices if d.target in TARGETS and (d.latency_ms is not None or "latency" in costs)]
    if question.measure == "direct" and not timed:
        raise UsageError("--measure direct times networks on this machine: it needs --target cpu or cuda, and a --latency to keep")
    if question.target is None and (question.runtime, question.precision) != ("ort", "fp32"):
        raise UsageError("--runtime and --precision are those of a device: add --target cpu or cuda, or leave them out")
    check_run(batch=question.batch, threads=question.threads)


def _check_devices(devices: Sequence[DeviceBudget]) -> None:
    """Raise UsageError for several targets that cannot be asked together."""
    targets = [device.target for device in devices]
    for target in targets:
        if targets.count(target) > 1:
            raise UsageError(f"each target must be given once, but {target} is given {targets.count(target)} times")
    if sum(target in TARGETS for target in targets) > 1:
        raise UsageError(
            f"one target at most can be this machine ({' or '.join(TARGETS)}), but both are given; ask for one after the other"
        )
    if len(devices) > 1 and any(device.latency_ms is None for device in devices):
        raise UsageError("every one of several targets must have its own latency budget, but one has none; add its --latency")


def local_runtime(question: Question) -> Runtime:
    """The runtime of this machine that the question names.

    Raises UsageError, NotFoundError (no such device).
    """
    options = {"precision": question.precision, "batch": question.batch, "threads": question.threads}
    return get_runtime(question.runtime, target=str(question.here), **options)  # type: ignore[arg-type]


def _supernet(question: Question) -> zoo.TrainedSupernet | None:
    if question.supernet is not None:
        return zoo.load_supernet(question.supernet)
    return None if question.space is not None else zoo.load_supernet(zoo.DEFAULT_SUPERNET)


def _space(question: Question, supernet: zoo.TrainedSupernet | None) -> Space:
    if supernet is None:
        return get_space(str(question.space))
    trained = supernet.weights.space
    if question.space is None:
        return trained
    space = get_space(question.space, classes=trained.classes).with_resolutions(trained.resolutions)
    if space.name == trained.name:
        return trained
    if space.parent != trained.name:
        raise MismatchError(f"supernet {supernet.name} must hold all networks of {space.name}, but was trained on {trained.name} only")
    return space


def _common_resolutions(space: Space, question: Question, predictor: Predictor | None, tables: Mapping[str, LatencyTable]) -> Space:
    """The space narrowed to the resolutions that all parts know."""
    known: dict[str, Sequence[int]] = {"the space": space.resolutions}
    if predictor is not None:
        known["the predictor"] = predictor.encoder.resolutions
    for target, table in tables.items():
        if table.resolutions is not None:
            known["the latency table" if len(tables) == 1 else f"the latency table {target}"] = table.resolutions
    if question.resolutions is not None:
        unknown = sorted(set(question.resolutions) - set(space.resolutions))
        if unknown:
            raise UsageError(f"--resolutions must be among those of {space.name}, {list(space.resolutions)}, but got {unknown}")
        known["--resolutions"] = question.resolutions
    common = set.intersection(*(set(r) for r in known.values()))
    if not common:
        raise UsageError("some resolution must be known to all, but " + "; ".join(f"{who} knows {list(r)}" for who, r in known.items()))
    return space if common == set(space.resolutions) else space.with_resolutions(sorted(common))


def _latency_budgets(devices: Iterable[Device]) -> Iterator[Budget]:
    return (device.budget for device in devices if device.budget is not None)


def _other_budgets(limits: Budgets, space: Space) -> Iterator[Budget]:
    """Those that need no device."""
    rows: tuple[tuple[str, float | None, Callable[[Space], object], Callable[[float], str]], ...] = (
        ("MACs", limits.macs, macs_of, show_count),
        ("parameter", limits.params, params_of, show_count),
        ("memory", limits.memory_bytes, activation_bytes_of, show_bytes),
    )
    for name, limit, price, show in rows:
        if limit is not None:
            yield Budget(name, price(space), limit, show)  # type: ignore[arg-type]


def predicted_top1(setup: Setup, codes: Codes) -> float:
    """What is stated of one network (g,): predicted, or where validation figures are known those."""
    return float(setup.judge.top1(np.atleast_2d(codes))[0])
