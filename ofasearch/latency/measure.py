"""The stopwatch: run candidates in turn, until the median of each is known well enough.

Whoever calls brings ONNX bytes or plain callables; nothing here builds layers.
"""

from __future__ import annotations

import math
import os
import platform
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofasearch.errors import FormatError, UsageError
from ofasearch.latency.table import TableKey

BATCH_LIMIT, THREADS_LIMIT = 4096, 1024
INPUT_LIMIT = 3 * 2048**2  # numbers in one image of a batch
Action = Callable[[], object]
Inputs = npt.NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Timing:
    """What `n` samples of one candidate say, milliseconds; `low` and `high` bound the median with 95 % confidence."""

    p50: float
    p90: float
    p95: float
    p99: float
    mean: float
    std: float
    low: float
    high: float
    n: int

    @staticmethod
    def of(samples_ms: npt.NDArray[np.float64]) -> Timing:
        """Percentiles of the samples; the bounds are order statistics (distribution-free, normal approximation)."""
        ordered = np.sort(samples_ms)
        n = len(ordered)
        half = 0.98 * math.sqrt(n)  # 1.96 standard deviations of a binomial(n, 1/2) rank
        low, high = ordered[max(0, math.floor(n / 2 - half))], ordered[min(n - 1, math.ceil(n / 2 + half))]
        p50, p90, p95, p99 = (float(p) for p in np.percentile(ordered, (50, 90, 95, 99)))
        return Timing(p50, p90, p95, p99, float(ordered.mean()), float(ordered.std()), float(low), float(high), n)


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """Stop when the 95 % interval of every median is narrower than `tolerance` of it, or after `max_seconds` in all."""

    tolerance: float = 0.02
    min_samples: int = 30
    max_samples: int = 2000
    max_seconds: float = 5.0
    warmup: int = 5  # runs of each candidate that are not counted
    settle: int = 0  # uncounted runs whenever a candidate's turn comes: they bring its weights back into the caches
    burst: int = 1  # samples per turn
    min_sample_ms: float = 0.2  # shorter actions are repeated inside one sample, so that the clock's grain does not show


def stopwatch(actions: Mapping[str, Action], rule: StopRule, clock: Callable[[], float] = time.perf_counter) -> dict[str, Timing]:
    """Time all actions in turn, round by round, so that a disturbance of the machine meets all of them alike."""
    repeats = {name: _repeats(action, rule, clock) for name, action in actions.items()}
    samples: dict[str, list[float]] = {name: [] for name in actions}
    deadline = clock() + rule.max_seconds
    for round_number in range(math.ceil(rule.max_samples / rule.burst)):
        for name, action in actions.items():
            for _ in range(rule.settle):
                action()
            for _ in range(rule.burst):
                samples[name].append(_sample(action, repeats[name], clock))
        enough = (round_number + 1) * rule.burst >= rule.min_samples
        if enough and (clock() > deadline or (round_number % 10 == 0 and all(_tight(s, rule.tolerance) for s in samples.values()))):
            break
    return {name: Timing.of(np.array(s)) for name, s in samples.items()}


def _sample(action: Action, repeats: int, clock: Callable[[], float]) -> float:
    """Milliseconds of one run, averaged over `repeats` runs in a row."""
    start = clock()
    for _ in range(repeats):
        action()
    return (clock() - start) * 1000 / repeats


def _repeats(action: Action, rule: StopRule, clock: Callable[[], float]) -> int:
    """Warm up, then count how many runs make one sample long enough."""
    fastest = math.inf
    for _ in range(max(1, rule.warmup)):
        start = clock()
        action()
        fastest = min(fastest, (clock() - start) * 1000)
    return max(1, math.ceil(rule.min_sample_ms / max(fastest, 1e-4)))


def _tight(samples: list[float], tolerance: float) -> bool:
    timing = Timing.of(np.array(samples))
    return timing.high - timing.low <= 2 * tolerance * timing.p50


# -- ONNX Runtime ----------------------------------------------------------------------------------------------


class OnnxModel:
    """An ONNX file in ONNX Runtime on the CPU, with a fixed number of threads."""

    def __init__(self, content: bytes | Path, *, threads: int = 1):
        import onnxruntime as ort

        self._name = content if isinstance(content, Path) else "the ONNX graph"
        options = ort.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.execution_mode = ort.ExecutionMode.ORT_SEQUENTIAL
        options.log_severity_level = 4  # what stops it comes as an exception; its own log would be a second line
        try:
            source = str(content) if isinstance(content, Path) else content
            self._session = ort.InferenceSession(source, options, providers=["CPUExecutionProvider"])
        except Exception as error:  # ONNX Runtime raises many kinds for files it cannot run
            raise self._refusal(error) from error
        self.inputs, outputs = self._session.get_inputs(), self._session.get_outputs()
        if len(self.inputs) != 1 or self.inputs[0].type != "tensor(float)" or not outputs or outputs[0].type != "tensor(float)":
            raise FormatError(f"{self._name} must map one float32 tensor to another, but has other inputs or outputs")
        shape = self.input_shape(1)
        if not shape or min(shape) < 1 or math.prod(shape[1:]) > INPUT_LIMIT:
            raise FormatError(f"{self._name} must take at most {INPUT_LIMIT} numbers per image, but takes {list(shape)[:8]}")
        width = outputs[0].shape[-1] if outputs[0].shape else None
        self.classes = width if isinstance(width, int) else None
        self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)

    def __call__(self, inputs: Inputs) -> Inputs:
        """Output of the first input; (n, ...) -> (n, ...)."""
        return self._run({self.inputs[0].name: inputs})[0]  # type: ignore[no-any-return]

    def _run(self, feed: Mapping[str, Inputs]) -> Any:
        try:
            return self._session.run(None, feed)
        except Exception as error:  # a file can load and still contradict itself
            raise self._refusal(error) from error

    def _refusal(self, error: Exception) -> FormatError:
        why = (str(error).splitlines() or ["no reason was given"])[0]
        return FormatError(f"{self._name} must be an ONNX file that ONNX Runtime can run, but it is not: {why}")

    def action(self, inputs: Inputs) -> Action:
        """One run on the given inputs, for the stopwatch."""
        feed = {self.inputs[0].name: np.ascontiguousarray(inputs)}
        return lambda: self._run(feed)

    def input_shape(self, batch: int) -> tuple[int, ...]:
        """The shape that the file asks for, free dimensions filled with `batch`."""
        return tuple(d if isinstance(d, int) else batch for d in self.inputs[0].shape)


def cpu_model() -> str:
    """The processor's name as the system gives it."""
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def check_run(*, batch: int, threads: int) -> None:
    """Raise UsageError for a batch or a number of threads that no measurement should use."""
    if not 1 <= batch <= BATCH_LIMIT or not 1 <= threads <= THREADS_LIMIT:
        raise UsageError(f"--batch must be 1..{BATCH_LIMIT} and --threads 1..{THREADS_LIMIT}, but got {batch} and {threads}")


def fingerprint(*, batch: int, threads: int) -> TableKey:
    """The machine at hand with ONNX Runtime: measurements are remembered per fingerprint and refused for others.

    Raises UsageError as `check_run` does.
    """
    check_run(batch=batch, threads=threads)
    import onnxruntime as ort

    device = f"{cpu_model()} x{os.cpu_count()} {platform.system()} {platform.machine()}"
    return TableKey(device=device, runtime=f"onnxruntime {ort.__version__} cpu", precision="fp32", batch=batch, threads=threads)


def load_warning() -> str | None:
    """A word when the machine is busy, else None."""
    try:
        load, cores = os.getloadavg()[0], os.cpu_count() or 1
    except OSError:
        return None
    return f"the machine is busy (load {load:.1f} on {cores} cores): timings will scatter" if load > 0.7 * cores else None


def timing_json(timing: Timing) -> dict[str, Any]:
    """A timing in the names of the JSON answers."""
    return {
        "latency_ms_p50": timing.p50,
        "latency_ms_p90": timing.p90,
        "latency_ms_p95": timing.p95,
        "latency_ms_p99": timing.p99,
        "latency_ms_mean": timing.mean,
        "latency_ms_std": timing.std,
        "latency_ms_p50_low": timing.low,
        "latency_ms_p50_high": timing.high,
        "samples": timing.n,
    }
