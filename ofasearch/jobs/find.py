"""The main job: the best subnet within the budgets, re-measured where the target is this machine, proved and exported."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofasearch import zoo
from ofasearch.data import DataSet, load_data
from ofasearch.errors import MismatchError
from ofasearch.jobs.answer import answer_record
from ofasearch.jobs.choose import Candidate, Outcome, choose, clock_of
from ofasearch.jobs.deliver import (
    Subnet,
    calibrated_subnet,
    onnx_bytes,
    prove,
    save_subnet,
    shipped_subnet,
    to_network,
    uncalibrated_subnet,
    write_configs,
)
from ofasearch.jobs.exam import limited
from ofasearch.jobs.inputs import inputs_of
from ofasearch.jobs.measuring import LatencyProgress
from ofasearch.jobs.search_folder import RUN, SearchFolder
from ofasearch.jobs.search_record import found_of, record_of
from ofasearch.jobs.searching import FindProgress, FindRequest
from ofasearch.jobs.setup import Setup, prepare
from ofasearch.latency.machine import fingerprint, load_warning
from ofasearch.latency.stopwatch import timing_json
from ofasearch.records import append_line, check_writable, provenance, write_atomic, write_json
from ofasearch.space.core import Codes

FALL = 0.1  # of top-1 between what the search went by and the test split, beyond which something is wrong


@dataclass(frozen=True, slots=True, kw_only=True)
class FindResult:
    """The answer. `record` is the JSON answer; paths in it are absolute."""

    arch_id: str
    record: dict[str, Any]
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]
    folder: Path | None


def find(request: FindRequest) -> Iterator[FindProgress | FindResult]:
    """Search, re-measure, re-evaluate, prove, export; progress on the way and the result at last.

    Raises the errors of `prepare`; InfeasibleError also when no candidate keeps the latency budget once it is measured;
    VerificationError when the exported file does not compute what the network does.
    """
    if request.out is not None:
        check_writable(request.out / RUN)  # said now, not after long work
    data = limited(load_data(request.data), request.images, request.calibration_images) if request.data is not None else None
    for fetched in zoo.fetch_supernet(request.question.supernet):
        yield FindProgress(phase=f"fetching {fetched.name}", done=fetched.done, total=fetched.total or 0)
    setup: Setup | None = None
    for event in prepare(request.question, data):
        if isinstance(event, LatencyProgress):
            yield FindProgress(
                phase=f"measuring this machine: {event.what}", done=event.done, total=event.total, eta_seconds=event.eta_seconds
            )
        else:
            setup = event
    assert setup is not None  # prepare ends with it or raises
    _check_data(setup, data)
    request = replace(request, question=setup.question).settled(setup.problem)
    path = request.out or Path("runs") / f"find-{setup.space.name}"
    folder = SearchFolder(path, record_of(request, inputs_of(request.question, setup)), request.resume)
    folder.open()
    outcome = yield from choose(request, setup, clock_of(request.question, setup.space), folder)
    result = yield from _deliver(request, setup, outcome, data, path)
    folder.finish(setup, found_of(setup, outcome))
    yield result


def _deliver(
    request: FindRequest, setup: Setup, outcome: Outcome, data: DataSet | None, folder: Path
) -> Generator[FindProgress, None, FindResult]:
    """Everything that is written of the winner."""
    codes, winner = outcome.codes[0], outcome.candidates[0]
    record = answer_record(request, setup, outcome)
    yield FindProgress(phase="exporting", done=0, total=1)
    notes = [*setup.notes, *outcome.words, *(setup.exam.words if setup.exam else []), *_outside_notes(setup, codes, winner)]
    subnet, why_not = _subnet(request, setup, codes, data)
    if why_not:
        notes.append(why_not)
    record["measured"] = _measured(request, setup, winner)
    files = (("onnx", "subnet.onnx"), ("subnet", "subnet.pt")) if subnet is not None else ()
    if subnet is not None:  # first, because it proves the network before anything is written
        record["measured"] |= yield from _export(folder, subnet, setup, codes, data, record)
    record["files"] = {"net_config": str(write_configs(folder, setup.space.blueprint(codes)))}
    record["files"] |= {name: str((folder / file).absolute()) for name, file in files}
    notes += _data_notes(setup, data, record["measured"].get("top1"), winner.predicted_top1)
    if "warning" in record["measured"]:
        notes.append(record["measured"]["warning"])
    notes = list(dict.fromkeys(notes))
    record["notes"] = notes
    write_json(folder / "result.json", record)
    append_line(folder / "log.jsonl", provenance(event="find", question=asdict(request.question), seed=request.seed, result=record))
    return FindResult(
        arch_id=winner.arch_id, record=record, candidates=tuple(outcome.candidates), notes=tuple(notes), folder=folder.absolute()
    )


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


def _outside_notes(setup: Setup, codes: Codes, winner: Candidate) -> list[str]:
    """What is to be said of a winner that the predictor knows little of."""
    outside = setup.judge.outside
    if outside is None or not outside(codes[None])[0]:
        return []
    text = "the winner lies outside the networks the predictor was fitted on: its predicted top-1 and error bar may be wrong"
    if winner.validation_top1 is not None:
        return [f"{text}; trust the validation figure beside it"]
    return [f"{text}; evaluate it (--data), or fit the predictor with more pairs like it"]


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


def _measured(request: FindRequest, setup: Setup, winner: Candidate) -> dict[str, Any]:
    """What was measured of the winner before it is exported."""
    found: dict[str, Any] = {}
    top1 = winner.predicted_top1 if request.question.objective == "measured" else winner.validation_top1
    if top1 is not None and setup.exam is not None:
        found |= {"validation_top1": top1, "validation_n": setup.exam.images}
    if winner.measured is not None:
        warning = load_warning()
        found |= timing_json(winner.measured) | ({"warning": warning} if warning else {})
    return found


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
