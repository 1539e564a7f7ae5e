"""`bench`: how long one network takes on this machine, for any numbers of images and threads, beside other runtimes if asked."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch.deploy.runtime import LoadedOnnx, Runner, get_runtime
from ofasearch.errors import MismatchError, NotFoundError, UsageError
from ofasearch.jobs.latency import reference_of
from ofasearch.jobs.measuring import NET_RULE, Lab, Load
from ofasearch.jobs.network import read_network
from ofasearch.jobs.onnx_file import network_in
from ofasearch.latency.machine import check_run, load_warning
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.latency.stopwatch import Timing, timing_json
from ofasearch.latency.table import TableKey
from ofasearch.space.core import Blueprint
from ofasearch.space.families import DESIGNS, get_space

OTHERS = ("torch", "torch-compile")
ORT = "ort"
RUNS_LIMIT = 100


@dataclass(frozen=True, slots=True, kw_only=True)
class _Subject:
    """What is timed: an ONNX file, or the layers of a network, which get random weights (no latency depends on their values)."""

    file: Path | None = None
    batch: int | None = None  # of the file, where it is fixed
    blueprint: Blueprint | None = None
    space: str = ""

    def load(self, batch: int, threads: int) -> Runner:
        """The network in ONNX Runtime. Raises UsageError for a batch that the file cannot take."""
        if self.file is None:
            assert self.blueprint is not None
            return get_runtime(batch=batch, threads=threads).load(self.blueprint)
        session = OnnxModel(self.file, threads=threads)
        shape, rng = session.input_shape(batch), np.random.default_rng(0)
        pixels = session.dtype is np.uint8
        inputs = rng.integers(0, 256, shape, dtype=np.uint8) if pixels else rng.normal(size=shape).astype(np.float32)
        return LoadedOnnx(session, inputs)


def bench(
    model: str | Path,
    *,
    batch: int | Sequence[int] | None = None,
    threads: int | Sequence[int] = 1,
    seconds: float = 3.0,
    against: Sequence[str] = (),
    space: str | None = None,
) -> dict[str, Any]:
    """`bench`: latency percentiles and throughput of an ONNX file, or of a network's layers, on this machine's CPU.

    One batch and one number of threads give a flat record; several, or runtimes to compare with (`torch`, `torch-compile`), give
    `runs`, a record each. Runtimes take turns within one measurement, so that a disturbance meets all of them alike; `times_ort`
    is how many times as long as ONNX Runtime another one takes. `seconds` bounds the time of each. `batch` defaults to the
    file's own, else 1. Raises UsageError for what the file cannot take.
    """
    if not 0 < seconds < math.inf:
        raise UsageError(f"--seconds must be positive, but got {seconds}")
    others = _checked(against)
    counts = [threads] if isinstance(threads, int) else list(dict.fromkeys(threads))
    for count in counts:
        check_run(batch=1, threads=count)
    subject = _subject(str(model), space, layers=bool(others))
    batches = _batches(subject, batch)
    if len(batches) * len(counts) > RUNS_LIMIT:
        raise UsageError(f"--batch and --threads must make at most {RUNS_LIMIT} runs, but make {len(batches) * len(counts)}")
    runs: list[dict[str, Any]] = []
    notes: list[str] = []
    for size, count in product(batches, counts):
        timed, words = _time(subject, size, count, seconds, others)
        runs += timed
        notes += words
    warning = load_warning()
    found = {"warning": warning} if warning else {}
    if len(runs) == 1 and not others:
        return runs[0] | found
    unsaid = [] if subject.file is not None else ["the weights are random: no latency depends on their values"]
    return {"model": str(model), "device": runs[0]["device"], "runs": runs, "notes": list(dict.fromkeys([*notes, *unsaid])), **found}


def _checked(against: Sequence[str]) -> tuple[str, ...]:
    for name in against:
        if name not in OTHERS:
            raise UsageError(f"--against must be of {', '.join(OTHERS)}, but got '{name[:80]}'")
    return tuple(dict.fromkeys(against))


def _batches(subject: _Subject, batch: int | Sequence[int] | None) -> list[int]:
    """Raises UsageError where the file's batch is fixed to another one, or for one that no measurement should use."""
    if batch is None:
        batch = subject.batch or 1
    sizes = [batch] if isinstance(batch, int) else list(dict.fromkeys(batch))
    for size in sizes:
        check_run(batch=size, threads=1)
        if subject.batch not in (None, size):
            raise UsageError(f"--batch must be {subject.batch} for this file, whose batch is fixed, but got {size}")
    return sizes


def _subject(text: str, space: str | None, *, layers: bool) -> _Subject:
    """What a user names. With `layers`, raises MismatchError for a file of whose layers nothing is sure."""
    if not text.endswith(".onnx"):
        network = read_network(text, space=space)
        return _Subject(blueprint=network.blueprint, space=network.space.name if network.space is not None else "")
    path = Path(text)
    if not path.is_file():
        raise NotFoundError(f"{path} must be an existing ONNX file, but there is none")
    model = OnnxModel(path)
    first = model.inputs[0].shape[0]
    known = network_in(path, model) if layers else None
    if layers and known is None:
        raise MismatchError(
            f"{path} must be an ONNX file as `export` writes it to be compared with torch, but its graph is another; give the subnet.pt"
        )
    return _Subject(
        file=path,
        batch=first if isinstance(first, int) else None,
        blueprint=known.blueprint if known is not None else None,
        space=model.metadata.get("space", ""),
    )


def _time(subject: _Subject, batch: int, threads: int, seconds: float, others: tuple[str, ...]) -> tuple[list[dict[str, Any]], list[str]]:
    """One record per runtime, all timed in turn; and what is to be said of those that do not work here."""
    lab = Lab(get_runtime(batch=batch, threads=threads), _beside(subject.space))
    loads: dict[str, Load] = {ORT: partial(subject.load, batch, threads)}
    keys: dict[str, TableKey] = {ORT: lab.runtime.key}
    notes = []
    with contextlib.ExitStack() as held:
        for name in others:
            runtime = get_runtime(name, batch=batch, threads=threads)
            held.enter_context(runtime.held())
            assert subject.blueprint is not None
            try:
                runner = runtime.load(subject.blueprint)
            except NotFoundError as error:
                notes.append(f"{name} was left out: {error}")
                continue
            loads[name], keys[name] = partial(_same, runner), runtime.key
        rule = replace(NET_RULE, tolerance=0.002, max_bursts=100_000, max_seconds=seconds * len(loads))
        timed = {name: found.timing for name, found in lab.time_now(loads, traced=False, rule=rule).items()}
    return [_run(keys[name], timing, lab.speeds[-1], timed[ORT]) for name, timing in timed.items()], notes


def _same(runner: Runner) -> Runner:
    return runner


def _run(key: TableKey, timing: Timing, speed: float, ort: Timing) -> dict[str, Any]:
    compared = {"times_ort": timing.p50 / ort.p50} if timing is not ort else {}
    told: Mapping[str, Any] = {name: getattr(key, name) for name in ("threads", "batch", "runtime", "device")}
    return {**timing_json(timing), "throughput": 1000 * key.batch / timing.mean, **compared, "reference_speed": speed, **told}


def _beside(space: str) -> Blueprint:
    """The reference network: that of the network's own space, where it is known, as when it was searched."""
    return reference_of(get_space(space if space in DESIGNS else "compofa-mbv3-cifar"))
