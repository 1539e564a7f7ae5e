"""The machine at hand as a target: measure the layers a space can contain, remember them, and check the sum against reality."""

from __future__ import annotations

import hashlib
import json
import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch.deploy.export import build_onnx, random_weights
from ofasearch.errors import WriteError
from ofasearch.latency.measure import OnnxModel, StopRule, Timing, fingerprint, stopwatch
from ofasearch.latency.table import ANY, Correction, LatencyTable, Row, Shape, TableKey, describe
from ofasearch.records import append_line, cache_dir, write_json
from ofasearch.space.core import Blueprint, LayerSpec, Space, Values

GROUP = 6  # layers timed in turn in one round; what a kill can lose at most
LAYER_RULE = StopRule(tolerance=0.02, max_seconds=1.2, min_sample_ms=0.2)
NET_RULE = StopRule(tolerance=0.01, min_samples=50, max_seconds=1.5, settle=2, burst=5, min_sample_ms=0.0)  # single runs, warm
FIT_NETS, CHECK_NETS = 10, 20
SEED = 0  # which networks fit and check the correction


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyProgress:
    """One more thing was measured (or remembered)."""

    done: int
    total: int
    what: str
    eta_seconds: float


class Memory:
    """Measurements of one fingerprint on disk, one JSON line each: appended as they come, never rewritten."""

    def __init__(self, key: TableKey):
        slug = hashlib.sha256(json.dumps(asdict(key)).encode()).hexdigest()[:16]
        self.folder = cache_dir() / "latency" / slug
        self._key = key
        self.failure: str | None = None  # why measurements could not be remembered

    def load(self, kind: str) -> dict[str, dict[str, Any]]:
        """Measurements of a kind ("layers", "nets") by name; torn or foreign lines are skipped."""
        found: dict[str, dict[str, Any]] = {}
        try:
            lines = (self.folder / f"{kind}.jsonl").read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError):
            return found
        for line in lines:
            try:
                record = json.loads(line)
                row = {"ms": float(record["ms"]), "p90_ms": float(record["p90_ms"]), "n": int(record["n"])}
                if 0 < row["ms"] < math.inf and 0 < row["p90_ms"] < math.inf:
                    found[str(record["name"])] = row
            except (ValueError, KeyError, TypeError):
                continue
        return found

    def add(self, kind: str, name: str, record: Mapping[str, Any]) -> None:
        """Remember one measurement; where the folder cannot be written, go on and keep the reason in `failure`."""
        try:
            if not (self.folder / "fingerprint.json").exists():
                write_json(self.folder / "fingerprint.json", asdict(self._key))
            append_line(self.folder / f"{kind}.jsonl", {"name": name, **record})
        except WriteError as error:
            self.failure = str(error)


def cpu_table(space: Space, *, batch: int = 1, threads: int = 1) -> Iterator[LatencyProgress | LatencyTable]:
    """Measure this machine's CPU with ONNX Runtime; yields progress and at last the corrected table.

    Every distinct layer of the space is run alone as ONNX; the time of an empty graph is taken off, because a network
    pays it once. The sum is corrected by a line fitted on 10 whole networks, and 20 other networks say how well the
    corrected sum predicts (bias, MAPE, Kendall tau; on the card). All is remembered per machine, runtime, batch and
    threads; a repeated call measures only what is missing.
    """
    key = fingerprint(batch=batch, threads=threads)
    memory = Memory(key)
    layers = {_name(spec.shape): spec for spec in space.layers()}
    nets = {str(space.arch(row)): space.blueprint(row) for row in _probe_nets(space)}
    known_layers, known_nets = memory.load("layers"), memory.load("nets")
    wanted_layers = [name for name in layers if name not in known_layers]
    wanted_nets = [name for name in nets if name not in known_nets]
    steps = len(wanted_layers) / GROUP * LAYER_RULE.max_seconds, len(wanted_nets) * NET_RULE.max_seconds / 2
    total, started = len(wanted_layers) + len(wanted_nets), time.perf_counter()
    done = 0

    def progress(what: str) -> LatencyProgress:
        spent = time.perf_counter() - started
        eta = spent / done * (total - done) if done else sum(steps)
        return LatencyProgress(done=done, total=total, what=what, eta_seconds=eta)

    if wanted_layers:
        yield progress("empty graph")
        overhead = _empty_graph_ms(batch, threads)
        for start in range(0, len(wanted_layers), GROUP):
            names = wanted_layers[start : start + GROUP]
            blueprints = {name: (layers[name],) for name in names}
            for name, timing in _time_onnx(blueprints, batch, threads, LAYER_RULE).items():
                row = {
                    "ms": max(timing.p50 - overhead, 0.1 * timing.p50),
                    "p90_ms": max(timing.p90 - overhead, 0.1 * timing.p90),
                    "n": timing.n,
                }
                known_layers[name] = row
                memory.add("layers", name, row)
            done += len(names)
            yield progress(describe(layers[names[-1]]))
    for start in range(0, len(wanted_nets), 2):
        names = wanted_nets[start : start + 2]
        for name, timing in _time_onnx({n: nets[n] for n in names}, batch, threads, NET_RULE).items():
            known_nets[name] = {"ms": timing.p50, "p90_ms": timing.p90, "n": timing.n}
            memory.add("nets", name, known_nets[name])
        done += len(names)
        yield progress(names[-1])
    rows = {(ANY, layers[name].shape): Row(**known_layers[name]) for name in layers}
    raw = LatencyTable("cpu", key, rows)
    table = _corrected(raw, nets, {name: known_nets[name]["ms"] for name in nets})
    yield table.corrected(table.correction, not_remembered=memory.failure) if memory.failure else table


def _name(shape: Shape) -> str:
    return ",".join(str(int(v) if isinstance(v, bool) else v) for v in shape)


def _probe_nets(space: Space) -> Any:
    rows = np.unique(space.sample(4 * (FIT_NETS + CHECK_NETS), np.random.default_rng(SEED)), axis=0)
    order = np.random.default_rng(SEED).permutation(len(rows))
    return rows[order[: FIT_NETS + CHECK_NETS]]


def _corrected(raw: LatencyTable, nets: Mapping[str, Blueprint], measured_ms: Mapping[str, float]) -> LatencyTable:
    names = list(nets)
    sums = np.array([raw.latency_ms(nets[n]) for n in names])
    real = np.array([measured_ms[n] for n in names])
    if len(names) < 3:  # too few to fit a line and check it: what they take beyond their layers is the constant
        return raw.corrected(Correction(1.0, float((real - sums).mean()), len(names)))
    n_fit = min(FIT_NETS, max(2, len(names) // 3))
    slope, offset = np.polyfit(sums[:n_fit], real[:n_fit], 1)
    if not slope > 0:  # noise swamped the few networks: keep the order of the sums
        slope, offset = float(real[:n_fit].sum() / sums[:n_fit].sum()), 0.0
    table = raw.corrected(Correction(float(slope), float(offset), n_fit))
    return table.corrected(
        table.correction,
        validation=validate(slope * sums[n_fit:] + offset, real[n_fit:]),
        raw_validation=validate(sums[n_fit:], real[n_fit:]),
    )


def validate(predicted_ms: Sequence[float] | Any, measured_ms: Sequence[float] | Any) -> dict[str, float]:
    """How well predicted latencies of n networks tell the measured ones: bias (ms), MAPE (fraction), Kendall tau-a."""
    predicted, measured = np.asarray(predicted_ms, dtype=float), np.asarray(measured_ms, dtype=float)
    return {
        "n": len(measured),
        "bias_ms": float((predicted - measured).mean()),
        "mape": float((np.abs(predicted - measured) / measured).mean()),
        "kendall_tau": _kendall_tau(predicted, measured),
    }


def _kendall_tau(a: Values, b: Values) -> float:
    """Concordant minus discordant pairs over all pairs; scipy's import would take longer than a whole warm search."""
    agreement = np.sign(a[:, None] - a[None]) * np.sign(b[:, None] - b[None])
    return float(agreement.sum() / (len(a) * (len(a) - 1)))


def _time_onnx(blueprints: Mapping[str, Blueprint], batch: int, threads: int, rule: StopRule) -> dict[str, Timing]:
    rng = np.random.default_rng(SEED)
    actions: dict[str, Callable[[], object]] = {}
    for name, blueprint in blueprints.items():
        model = OnnxModel(build_onnx(blueprint, random_weights(blueprint, rng), batch=batch), threads=threads)
        actions[name] = model.action(rng.normal(size=model.input_shape(batch)).astype(np.float32))
    return stopwatch(actions, rule)


def _empty_graph_ms(batch: int, threads: int) -> float:
    """What ONNX Runtime takes to run a network of almost nothing: one pool over one pixel."""
    nothing = LayerSpec(slot="", kind="pool", c_in=1, c_mid=0, c_out=1, hw_in=1, norm=False)
    return _time_onnx({"": (nothing,)}, batch, threads, LAYER_RULE)[""].p50


def time_files(models: Mapping[str, bytes | Path], *, batch: int, threads: int, rule: StopRule = NET_RULE) -> dict[str, Timing]:
    """Time whole ONNX files end to end, in turn."""
    rng = np.random.default_rng(SEED)
    actions: dict[str, Callable[[], object]] = {}
    for name, content in models.items():
        model = OnnxModel(content, threads=threads)
        actions[name] = model.action(rng.normal(size=model.input_shape(batch)).astype(np.float32))
    return stopwatch(actions, rule)
