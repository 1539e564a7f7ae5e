"""All that is written of the winner of a search: calibrated weights, a proved ONNX file, what was measured of it."""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofasearch.data import DataSet
from ofasearch.deploy.quantize import Recipe
from ofasearch.errors import ArchError, MismatchError
from ofasearch.jobs.answer import answer_record
from ofasearch.jobs.choose import Candidate, Outcome
from ofasearch.jobs.deliver import (
    FACTS,
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
from ofasearch.jobs.export import files_of
from ofasearch.jobs.quantize import QuantizeRequest, QuantizeResult, quantize
from ofasearch.jobs.searching import FindProgress, FindRequest
from ofasearch.jobs.setup import Setup
from ofasearch.latency.machine import fingerprint, load_warning
from ofasearch.latency.stopwatch import timing_json
from ofasearch.records import write_together
from ofasearch.space.core import Blueprint, Codes

INT8_FILE = "subnet.int8.onnx"
FALL = 0.1  # of top-1 between what the search went by and the test split, beyond which something is wrong

Predicted = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """The JSON answer of the winner, and its predictions of the test split where there are such."""

    record: dict[str, Any]
    tested: Predicted | None


def deliver_winner(
    request: FindRequest, setup: Setup, outcome: Outcome, data: DataSet | None, folder: Path, more: Mapping[str, Any] | None = None
) -> Generator[FindProgress, None, Delivery]:
    """Write the files of the winner into the folder; `more` enters its record. `result.json` is left to the caller.

    Raises VerificationError, before anything is written, when the exported file does not compute what the network does.
    """
    codes, winner = outcome.codes[0], outcome.candidates[0]
    record = answer_record(request, setup, outcome) | dict(more or {})
    yield FindProgress(phase="exporting", done=0, total=1)
    notes = [*setup.notes, *outcome.words, *(setup.exam.words if setup.exam else []), *_outside_notes(setup, codes, winner)]
    subnet, why_not = _subnet(request, setup, codes, data)
    if why_not:
        notes.append(why_not)
    record["measured"], tested = _measured(request, setup, winner), None
    named = (("onnx", "subnet.onnx"), ("card", "subnet.md"), ("subnet", "subnet.pt"))
    files: tuple[tuple[str, str], ...] = named if subnet is not None else ()
    if subnet is not None:  # first, because it proves the network before anything is written
        measured, tested = yield from _export(folder, subnet, setup, codes, data, record)
        record["measured"] |= measured
    if subnet is not None and request.question.precision == "int8":
        int8, why_not = yield from _quantised(request, folder, data)
        record["measured"] |= {"int8": int8} if int8 else {}
        files += (("onnx_int8", INT8_FILE),) if int8 else ()
        notes += [why_not] if why_not else []
    record["files"], not_written = _configs(folder, setup.space.blueprint(codes))
    notes += not_written
    record["files"] |= {name: str((folder / file).absolute()) for name, file in files}
    notes += _data_notes(setup, data, record["measured"].get("top1"), winner.predicted_top1)
    if "warning" in record["measured"]:
        notes.append(record["measured"]["warning"])
    record["notes"] = list(dict.fromkeys(notes))
    return Delivery(record=record, tested=tested)


def check_data(setup: Setup, data: DataSet | None) -> None:
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


def _configs(folder: Path, blueprint: Blueprint) -> tuple[dict[str, str], list[str]]:
    """Write once-for-all's configs: their path by kind, and why there are none."""
    try:
        return {"net_config": str(write_configs(folder, blueprint))}, []
    except ArchError as error:
        return {}, [str(error)]


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
) -> Generator[FindProgress, None, tuple[dict[str, Any], Predicted | None]]:
    """Prove the ONNX file and write it with `subnet.pt`; returns what was measured on the way, and the test predictions."""
    facts = {key: record[key] for key in FACTS if key in record}
    difference, images = prove(subnet, onnx_bytes(subnet), data)
    measured: dict[str, Any] = {"onnx_max_abs_diff": difference, "onnx_checked_on": images, "calibrated": subnet.calibrated}
    tested: Predicted | None = None
    if data is not None and data.classes:
        tested = yield from _test(subnet, data)
        measured |= {"top1": float(np.mean(tested == data["test"].labels)), "source": "live", "n": len(tested)}
    elif data is None and setup.members is not None:
        tested, labels = setup.members.predictions["test"][int(setup.members.index(codes[None])[0])], setup.members.labels["test"]
        measured |= {"top1": float(np.mean(tested == labels)), "source": "shipped", "n": len(labels)}
    facts |= {"measured": measured, "machine": asdict(fingerprint(batch=1, threads=1))}
    timed = next((device["device"] for device in record.get("devices", []) if "measured" in device), None)
    facts |= {"measured_on": timed} if timed is not None else {}
    facts["measured"] = {key: value for key, value in record["measured"].items() if key != "warning"} | measured
    write_together(files_of(folder / "subnet.onnx", subnet, facts))
    save_subnet(folder / "subnet.pt", subnet, facts)
    return measured, tested


def _quantised(
    request: FindRequest, folder: Path, data: DataSet | None
) -> Generator[FindProgress, None, tuple[dict[str, Any], str | None]]:
    """Write the winner in int8, by the recipe that int8 latencies are measured with; what it gets right, or why there is none."""
    if request.data is None or data is None or not data.classes:
        lacking = "labelled images" if data is not None else "calibration images"
        return {}, f"the search was for int8, but only float32 files were written, because there are no {lacking}: add --data with such"
    asked = QuantizeRequest(
        model=str(folder / "subnet.onnx"),
        out=folder / INT8_FILE,
        data=request.data,
        images=request.images,
        per_channel=Recipe().per_channel,
        floating=Recipe().floating,
        timed=False,
    )
    for event in quantize(asked):
        if isinstance(event, QuantizeResult):
            return {**event.record["int8"], "flips": event.record["flips"]}, None
        yield FindProgress(phase=event.phase, done=event.done, total=event.total, eta_seconds=event.eta_seconds)
    raise AssertionError("a job ends with its result")


def _test(subnet: Subnet, data: DataSet) -> Generator[FindProgress, None, Predicted]:
    """Predictions of the test split, made now."""
    from ofasearch.evaluate.score import accelerator, predict

    test, resolution = data["test"], subnet.blueprint[0].hw_in
    started, found = time.perf_counter(), list[Predicted]()
    for part in predict(to_network(subnet).to(accelerator()), test, subnet.preprocessing, resolution=resolution):
        found.append(part)
        done = sum(map(len, found))
        eta = (time.perf_counter() - started) / done * (len(test) - done)
        yield FindProgress(phase="evaluating on the test split", done=done, total=len(test), eta_seconds=eta)
    return np.concatenate(found)
