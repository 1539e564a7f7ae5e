"""The main job: the best subnet within the budgets, re-measured where the target is this machine, proved and exported."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofasearch import zoo
from ofasearch.data import DataSet, load_data
from ofasearch.deploy.runtime import TARGETS
from ofasearch.errors import InfeasibleError, MismatchError, UsageError
from ofasearch.jobs.deliver import (
    Subnet,
    calibrated_subnet,
    onnx_bytes,
    prove,
    save_subnet,
    settings_json,
    shipped_subnet,
    to_network,
    uncalibrated_subnet,
    write_configs,
)
from ofasearch.jobs.direct import DirectCost
from ofasearch.jobs.latency import reference_of
from ofasearch.jobs.measuring import Lab, LatencyProgress
from ofasearch.jobs.setup import Question, Setup, local_runtime, predicted_top1, prepare, show_ms
from ofasearch.latency.machine import fingerprint, load_warning
from ofasearch.latency.stopwatch import Timing, timing_json
from ofasearch.records import append_line, provenance, write_atomic, write_json
from ofasearch.search.evolution import EvolutionConfig, enumerate_exactly, evolve, is_small
from ofasearch.search.problem import Budget, Generation, Problem
from ofasearch.space.core import Codes
from ofasearch.space.costs import costs

MEASURED_TOGETHER = 5  # candidates timed in turn: the winner so far and the runners-up
FALL = 0.1  # of top-1 between what the search went by and the test split, beyond which something is wrong
MOST_SLACK = 0.1  # of the budget
SEARCHES = 3  # the first and those under a smaller table limit, when nothing that was found keeps the real budget


@dataclass(frozen=True, slots=True, kw_only=True)
class FindRequest:
    """`ofasearch find`; the fields are the command's options."""

    question: Question
    data: str | None = None
    population: int = 100
    generations: int = 500
    seed: int = 0
    top_k: int = 5
    out: Path | None = None
    no_bn: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class FindProgress:
    """Where the job is: a phase, and within a search the best so far."""

    phase: str
    done: int
    total: int
    best_top1: float | None = None
    eta_seconds: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One of the best networks of the search: by the table, and measured where that was done."""

    arch_id: str
    predicted_top1: float
    latency_ms: float | None
    measured: Timing | None = None
    accepted: bool | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class FindResult:
    """The answer. `record` is the JSON answer; paths in it are absolute."""

    arch_id: str
    record: dict[str, Any]
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]
    folder: Path | None


@dataclass(slots=True)
class _Outcome:
    """What a search found so far: rows best first, and the cost of finding them."""

    codes: Codes
    evaluations: int = 0
    seconds: float = 0.0
    candidates: list[Candidate] = field(default_factory=list)
    words: list[str] = field(default_factory=list)  # how the machine behaved while candidates were timed


def find(request: FindRequest) -> Iterator[FindProgress | FindResult]:
    """Search, re-measure, prove, export; progress on the way and the result at last.

    Raises the errors of `prepare`; InfeasibleError also when no candidate keeps the latency budget once it is measured;
    VerificationError when the exported file does not compute what the network does.
    """
    if request.top_k < 1 or request.seed < 0:
        raise UsageError(f"--top-k must be at least 1 and --seed at least 0, but got {request.top_k} and {request.seed}")
    data = load_data(request.data) if request.data is not None else None
    for fetched in zoo.fetch_supernet(request.question.supernet):
        yield FindProgress(phase=f"fetching {fetched.name}", done=fetched.done, total=fetched.total or 0)
    setup: Setup | None = None
    for event in prepare(request.question):
        if isinstance(event, LatencyProgress):
            yield FindProgress(
                phase=f"measuring this machine: {event.what}", done=event.done, total=event.total, eta_seconds=event.eta_seconds
            )
        else:
            setup = event
    assert setup is not None  # prepare ends with it or raises
    _check_data(setup, data)

    outcome = _Outcome(np.zeros((0, len(setup.space.genes)), dtype=np.int64))
    yield from _search_and_measure(request, setup, outcome)
    codes = outcome.codes[0]
    winner = outcome.candidates[0]
    record = _record(request, setup, codes, winner, outcome)
    yield FindProgress(phase="exporting", done=0, total=1)
    notes = list(dict.fromkeys([*setup.notes, *outcome.words]))
    folder = request.out or Path("runs") / f"find-{setup.space.name}"
    subnet, why_not = _subnet(request, setup, codes, data)
    if why_not:
        notes.append(why_not)
    record["measured"] = _measured(winner)
    files = (("onnx", "subnet.onnx"), ("subnet", "subnet.pt")) if subnet is not None else ()
    if subnet is not None:  # first, because it proves the network before anything is written
        record["measured"] |= yield from _export(folder, subnet, setup, codes, data, record)
    record["files"] = {"net_config": str(write_configs(folder, setup.space.blueprint(codes)))}
    record["files"] |= {name: str((folder / file).absolute()) for name, file in files}
    notes += _data_notes(setup, data, record["measured"].get("top1"), winner.predicted_top1)
    if "warning" in record["measured"]:
        notes.append(record["measured"]["warning"])
    record["notes"] = notes
    write_json(folder / "result.json", record)
    append_line(folder / "log.jsonl", provenance(event="find", question=asdict(request.question), seed=request.seed, result=record))
    yield FindResult(
        arch_id=winner.arch_id, record=record, candidates=tuple(outcome.candidates), notes=tuple(notes), folder=folder.absolute()
    )


# -- searching -------------------------------------------------------------------------------------------------


def _search_and_measure(request: FindRequest, setup: Setup, outcome: _Outcome) -> Iterator[FindProgress]:
    """Fill `outcome` with candidates, the accepted one first.

    Where the target is this machine, the table proposes and the end-to-end measurement decides: when no candidate keeps
    the budget, the search is repeated under a table limit that is smaller by the observed error, and at last the fastest
    network of the space is tried. Raises InfeasibleError when that one is too slow as well.
    """
    budget_ms = request.question.budgets.latency_ms
    if request.question.target not in TARGETS or budget_ms is None:
        generation = yield from _search(request, setup, setup.problem, outcome)
        outcome.codes = generation.codes[: request.top_k]
        outcome.candidates = [_candidate(setup, row) for row in outcome.codes]
        return
    limit_ms = budget_ms * (1 + _table_slack(setup))
    for attempt in range(SEARCHES):
        try:
            generation = yield from _search(request, setup, _with_latency(setup.problem, limit_ms), outcome)
        except InfeasibleError:
            if attempt == 0:
                raise
            break
        slowdown = yield from _measure(request, setup, generation.codes, budget_ms, outcome)
        if outcome.candidates[0].accepted:
            return
        limit_ms *= min(0.95, 1 / slowdown)
    fastest = next(b.cost for b in setup.problem.budgets if b.name == "latency").bounds().lowest_codes[None]
    if setup.problem.feasible(fastest)[0]:
        yield from _measure(request, setup, fastest, budget_ms, outcome)
        if outcome.candidates[0].accepted:
            return
    reached = min(c.measured.high for c in outcome.candidates if c.measured)
    raise InfeasibleError(
        f"latency budget must be at least about {show_ms(reached)} on this machine (95 % bound of the fastest subnet's median, "
        f"measured end to end), but got {show_ms(budget_ms)}"
    )


def _table_slack(setup: Setup) -> float:
    """How far above the budget the table may put a network that is worth measuring: twice the table's own mean error."""
    validation = setup.table.card.get("validation") if setup.table else None
    return min(MOST_SLACK, 2 * float(validation["mape"])) if validation else 0.0


def _with_latency(problem: Problem, limit_ms: float) -> Problem:
    budgets = tuple(Budget(b.name, b.cost, limit_ms, b.show) if b.name == "latency" else b for b in problem.budgets)
    return Problem(problem.space, problem.objectives, budgets)


def _search(request: FindRequest, setup: Setup, problem: Problem, outcome: _Outcome) -> Generator[FindProgress, None, Generation]:
    from threadpoolctl import threadpool_limits

    rng = np.random.default_rng(request.seed)
    direct = isinstance(setup.latency, DirectCost)  # every step of a refinement would time hundreds of neighbours
    keep = max(20, request.top_k)
    config = EvolutionConfig(population=request.population, generations=request.generations, keep=keep, refine=not direct)
    exact = is_small(problem)
    started = last = time.perf_counter()
    with threadpool_limits(1):  # threads fight over matrices this small
        generation: Generation | None = None
        for generation in enumerate_exactly(problem, config.keep) if exact else evolve(problem, config, rng):
            now = time.perf_counter()
            if now - last > 0.1:
                last = now
                eta = (now - started) / (generation.number + 1) * (config.generations - generation.number)
                yield FindProgress(
                    phase="searching",
                    done=generation.number,
                    total=config.generations,
                    best_top1=-float(generation.objective[0]),
                    eta_seconds=eta,
                )
    assert generation is not None  # both searches yield at least once or raise
    outcome.seconds += time.perf_counter() - started
    outcome.evaluations += generation.evaluations
    return generation


def _candidate(setup: Setup, codes: Codes, measured: Timing | None = None, accepted: bool | None = None) -> Candidate:
    latency = float(setup.latency(codes[None])[0]) if setup.latency else None
    return Candidate(
        arch_id=setup.space.arch(codes).id,
        predicted_top1=predicted_top1(setup, codes),
        latency_ms=latency,
        measured=measured,
        accepted=accepted,
    )


def _measure(request: FindRequest, setup: Setup, codes: Codes, budget_ms: float, outcome: _Outcome) -> Generator[FindProgress, None, float]:
    """Time candidates (k, g) end to end, best first, a few at a time, until one keeps the budget.

    Returns the median over candidates of measured bound / latency by the table.
    """
    tried: list[tuple[Codes, Candidate]] = []
    for start in range(0, len(codes), MEASURED_TOGETHER):
        rows = codes[start : start + MEASURED_TOGETHER]
        yield FindProgress(phase="measuring candidates end to end", done=start, total=len(codes), best_top1=predicted_top1(setup, rows[0]))
        timings, outcome.words = _time_rows(request, setup, rows)
        for row, timing in zip(rows, timings, strict=True):
            tried.append((row, _candidate(setup, row, timing, timing.high <= budget_ms)))
        if any(candidate.accepted for _, candidate in tried):
            break
    ranked = sorted(tried, key=lambda pair: not pair[1].accepted)  # stable: the best accepted one first
    outcome.codes = np.stack([row for row, _ in ranked])
    outcome.candidates = [candidate for _, candidate in ranked]
    return float(np.median([c.measured.high / c.latency_ms for c in outcome.candidates if c.measured and c.latency_ms]))


def _time_rows(request: FindRequest, setup: Setup, rows: Codes) -> tuple[list[Timing], list[str]]:
    """Timings of networks on this machine, remembered, and what is to be said of them; random weights serve for that."""
    lab = Lab(local_runtime(request.question), reference_of(setup.space))
    found = dict(lab.measure({str(i): setup.space.blueprint(row) for i, row in enumerate(rows)}))
    return [found[str(i)].timing for i in range(len(rows))], lab.words()


# -- answering -------------------------------------------------------------------------------------------------


def _check_data(setup: Setup, data: DataSet | None) -> None:
    """Raise MismatchError unless the data has the classes and, for small images, the size that the supernet works on."""
    if data is None or setup.supernet is None:
        return
    classes, size = setup.supernet.weights.space.classes, data.pixels
    if data.classes not in (0, classes):
        raise MismatchError(
            f"data {data.name} must have the supernet's {classes} classes, but has {data.classes}; give what it was trained on"
        )
    if size is not None and size not in setup.space.resolutions:
        sizes = ", ".join(map(str, setup.space.resolutions))
        raise MismatchError(
            f"images of {data.name} must have {sizes} pixels for this supernet, but have {size}; give what it was trained on"
        )


def _data_notes(setup: Setup, data: DataSet | None, top1: float | None, predicted: float) -> list[str]:
    """What hints that the data is not what the supernet was trained on."""
    notes = []
    names = setup.supernet.weights.class_names if setup.supernet else ()
    if data is not None and data.classes == 0:
        notes.append(f"{data.name} has no labels: it recalibrated batch norm, and the accuracy was not measured")
    elif data is not None and names and names != data.class_names:
        notes.append(f"{data.name} names other classes than the supernet: its batch norm was recalibrated on foreign images")
    if top1 is not None and top1 < predicted - FALL:
        notes.append(f"the test top-1 of {100 * top1:.1f} % is far below the {100 * predicted:.1f} % that the search went by")
    return notes


def _subnet(request: FindRequest, setup: Setup, codes: Codes, data: DataSet | None) -> tuple[Subnet | None, str | None]:
    """The network with calibrated weights, or why there is none."""
    if setup.supernet is None:
        return None, f"no weights were given (--space {setup.space.name} alone), so there is nothing to export; add --supernet"
    weights, name = setup.supernet.weights, setup.supernet.name
    if data is not None:
        return calibrated_subnet(weights, codes, data, name, space=setup.space), None
    if setup.members is not None:
        return shipped_subnet(weights, setup.members, codes, name), None
    if request.no_bn:
        return uncalibrated_subnet(
            weights, codes, name, space=setup.space
        ), "the files are uncalibrated (--no-bn): their accuracy is unknown"
    return None, "weights and ONNX were not written, because the subnet's batch norm must be recalibrated: add --data (or --no-bn)"


def _record(request: FindRequest, setup: Setup, codes: Codes, winner: Candidate, outcome: _Outcome) -> dict[str, Any]:
    price = costs(setup.space.blueprint(codes))
    record: dict[str, Any] = {
        "arch": settings_json(setup.space, codes),
        "arch_id": winner.arch_id,
        "space": setup.space.name,
        "predicted_top1": winner.predicted_top1,
        "predicted_top1_source": "accuracy predictor" if request.question.predictor else "measured on the validation split",
        "macs": price.macs,
        "params": price.params,
        "activation_bytes": price.activation_bytes,
        "evaluations": outcome.evaluations,
        "search_seconds": outcome.seconds,
        "seed": request.seed,
    }
    if setup.table is not None and winner.latency_ms is not None:
        source = setup.table.source_of(setup.space.blueprint(codes))
        target = request.question.target if request.question.target in TARGETS else setup.table.name
        record |= {"latency_ms": winner.latency_ms, "latency_source": source, "target": target}
        record |= {"device": asdict(setup.table.key)}
        validation = setup.table.card.get("validation")
        record |= {"latency_validation": validation} if validation else {}
    if isinstance(setup.latency, DirectCost):
        record |= {"latency_ms": winner.latency_ms, "latency_source": "measured", "target": str(request.question.target)}
        record |= {"device": asdict(setup.latency.lab.runtime.key), "measure": "direct"}
        record |= {"networks_measured": setup.latency.networks, "measuring_seconds": setup.latency.seconds}
    if setup.supernet is not None:
        record |= {"supernet": setup.supernet.name, "preprocessing": setup.supernet.weights.preprocessing.to_json()}
    record["candidates"] = [
        {
            "arch_id": c.arch_id,
            "predicted_top1": c.predicted_top1,
            **({"latency_ms": c.latency_ms} if c.latency_ms is not None else {}),
            **({"measured": timing_json(c.measured), "accepted": c.accepted} if c.measured else {}),
        }
        for c in outcome.candidates
    ]
    return record


def _measured(winner: Candidate) -> dict[str, Any]:
    if winner.measured is None:
        return {}
    warning = load_warning()
    return timing_json(winner.measured) | ({"warning": warning} if warning else {})


def _export(
    folder: Path, subnet: Subnet, setup: Setup, codes: Codes, data: DataSet | None, record: Mapping[str, Any]
) -> Generator[FindProgress, None, dict[str, Any]]:
    """Prove the ONNX file and write it with `subnet.pt`; returns what was measured on the way."""
    facts = {
        key: record[key]
        for key in ("predicted_top1", "predicted_top1_source", "latency_ms", "latency_source", "device", "macs", "params")
        if key in record
    }
    difference, images = prove(subnet, onnx_bytes(subnet), data)
    measured: dict[str, Any] = {"onnx_max_abs_diff": difference, "onnx_checked_on": images, "calibrated": subnet.calibrated}
    if data is not None and data.classes:
        measured |= {"top1": (yield from _test_top1(subnet, data)), "source": "live", "n": len(data["test"])}
    elif data is None and setup.members is not None:
        member = int(setup.members.index(codes[None])[0])
        measured |= {"top1": float(setup.members.top1("test")[member]), "source": "shipped", "n": len(setup.members.labels["test"])}
    facts |= {"measured": measured, "machine": asdict(fingerprint(batch=1, threads=1))}
    write_atomic(folder / "subnet.onnx", onnx_bytes(subnet, facts))
    save_subnet(folder / "subnet.pt", subnet, facts)
    return measured


def _test_top1(subnet: Subnet, data: DataSet) -> Generator[FindProgress, None, float]:
    """Accuracy on the test split, evaluated now."""
    from ofasearch.evaluate.score import accelerator, predict, top1

    test, resolution = data["test"], subnet.blueprint[0].hw_in
    started, found = time.perf_counter(), list[npt.NDArray[np.int64]]()
    for part in predict(to_network(subnet).to(accelerator()), test, subnet.preprocessing, resolution=resolution):
        found.append(part)
        done = sum(map(len, found))
        eta = (time.perf_counter() - started) / done * (len(test) - done)
        yield FindProgress(phase="evaluating on the test split", done=done, total=len(test), eta_seconds=eta)
    return top1(np.concatenate(found), test.labels)


__all__ = ["Candidate", "FindProgress", "FindRequest", "FindResult", "find"]
