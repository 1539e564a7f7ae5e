"""Which networks to measure so that every layer is seen at work, what their times say of layers, and the layers between.

A layer alone, run again and again, finds its weights in the caches and pays for layouts that a network changes once:
sums of such times are a quarter too small for ImageNet-sized networks on a desktop processor. So whole networks are
measured, chosen to hold every layer a few times, and each network's time is shared among its layers: by the runtime's
own account of one run where it gives one (`shared_rows`), else by a law over what layers do (`lawful_rows`); layers that
no probe held (input sizes between the probed ones) are interpolated (`filled_rows`); at last all rows are moved a little,
so that their sums come closest to whole networks (`refined_rows`).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ofasearch.latency.table import ANY, Row, Shape
from ofasearch.space.core import SHAPE_FIELDS, Blueprint, Codes, LayerSpec, Space, Values
from ofasearch.space.costs import convs

CANDIDATES = 400  # random networks to choose probes from, per resolution
LEAST_SHARE = 1e-3  # of an average layer's time
Rows = dict[tuple[int, Shape], Row]


@dataclass(frozen=True, slots=True)
class Probe:
    """One measured network: median and 90th percentile (ms) of `n` runs; `shares` of its layers add up to 1, or are empty."""

    blueprint: Blueprint
    ms: float
    p90_ms: float
    n: int
    shares: tuple[float, ...] = ()


def choose_probes(space: Space, rng: np.random.Generator, *, times: int) -> Codes:
    """Few networks (k, g) of each resolution of the space that together hold each of its layers at least `times` times.

    Greedy: of some hundred random networks, deep ones first, the one that holds most of what is still wanted is taken.
    """
    chosen = [_cover(space.with_resolutions([resolution]), rng, times) for resolution in space.resolutions]
    for rows, code in zip(chosen, range(1, len(chosen) + 1), strict=True):
        rows[:, 0] = code
    return np.concatenate(chosen)


def _cover(space: Space, rng: np.random.Generator, times: int) -> Codes:
    """Probes of a space with one resolution."""
    rows = np.unique(np.concatenate([space.sample(CANDIDATES, rng), space.smallest()[None], space.largest()[None]]), axis=0)
    index = {spec.shape: i for i, spec in enumerate(space.layers())}
    holds = np.zeros((len(rows), len(index)))
    for row, codes in enumerate(rows):
        for spec in space.blueprint(codes):
            holds[row, index[spec.shape]] += 1
    wanted = np.minimum(holds.sum(axis=0), float(times))
    chosen: list[int] = []
    while (wanted > 0).any():
        gain = np.minimum(holds, wanted).sum(axis=1)
        gain[chosen] = -1
        best = int(gain.argmax())
        if gain[best] <= 0:
            break
        chosen.append(best)
        wanted = np.maximum(wanted - holds[best], 0)
    return np.array(rows[chosen])


def shares_of(layer_ms: Values, run_ms: Values, kernels: Values, *, ms: float, traced_ms: float) -> tuple[float, ...]:
    """Shares of a network's layers, from an account of several runs: layer_ms (runs, layers), run_ms (runs,), kernels (layers,).

    `ms` is what the network takes, `traced_ms` what it takes while account is kept. What keeping account costs is spread
    evenly over the kernels and taken off; a layer keeps at least a tenth of what it was seen to take.
    """
    layers = np.median(layer_ms / run_ms[:, None], axis=0) * traced_ms
    cost = max(0.0, float(layers.sum() - ms) / max(1.0, float(kernels.sum())))
    left = np.maximum(layers - cost * kernels, 0.1 * layers)
    return tuple(float(share) for share in left / left.sum())


def shared_rows(probes: Iterable[Probe]) -> Rows:
    """Rows from networks whose runtime told the share of every layer: the mean over all places where a layer was seen."""
    seen: dict[Shape, list[tuple[float, float, int]]] = {}
    for probe in probes:
        for spec, share in zip(probe.blueprint, probe.shares, strict=True):
            seen.setdefault(spec.shape, []).append((share * probe.ms, share * probe.p90_ms, probe.n))
    rows: Rows = {}
    for shape, found in seen.items():
        ms, p90, n = (np.array(part, dtype=float) for part in zip(*found, strict=True))
        rows[ANY, shape] = Row(float(ms.mean()), float(p90.mean()), int(n.sum()))
    return rows


def lawful_rows(probes: Sequence[Probe]) -> Rows:
    """Rows by a law over physical quantities (work, traffic, kernels; non-negative) fitted on whole times alone."""
    specs = {spec.shape: spec for probe in probes for spec in probe.blueprint}
    physics = np.stack([quantities(spec) for spec in specs.values()])  # (layers, q)
    counts = _counts(probes, list(specs))
    whole = np.array([probe.ms for probe in probes])
    law = _non_negative((counts @ physics) / whole[:, None])
    least = LEAST_SHARE * float(np.median(whole / counts.sum(axis=1)))  # a law may know nothing of a kind; no layer is free
    tail = float(np.median([probe.p90_ms / probe.ms for probe in probes]))
    runs = (counts > 0).T @ np.array([probe.n for probe in probes])
    return {
        (ANY, shape): Row(float(ms), float(ms * tail), int(n))
        for shape, ms, n in zip(specs, np.maximum(physics @ law, least), runs, strict=True)
    }


def refined_rows(rows: Rows, probes: Sequence[Probe], *, strength: float = 0.3) -> Rows:
    """The same rows, moved so that their sums come closest to the probes' whole times.

    Ridge regression of relative errors: `strength` holds every row near what it was, in proportion to its usual share.
    """
    shapes = [shape for _, shape in rows]
    base = np.array([row.ms for row in rows.values()])
    shares = _counts(probes, shapes) * base / np.array([probe.ms for probe in probes])[:, None]  # (probes, layers)
    usual = shares.mean(axis=0)
    used = usual > 0
    left = shares[:, used].T @ shares[:, used] + strength * np.diag(usual[used])
    moves = np.ones(len(base))
    moves[used] += np.linalg.solve(left, shares[:, used].T @ (1 - shares.sum(axis=1)))
    moves = np.clip(moves, 0.2, 5.0)
    return {key: replace(row, ms=row.ms * m, p90_ms=row.p90_ms * m) for (key, row), m in zip(rows.items(), moves.tolist(), strict=True)}


def _counts(probes: Sequence[Probe], shapes: Sequence[Shape]) -> Values:
    """How often each probe holds each layer, (probes, layers)."""
    index = {shape: i for i, shape in enumerate(shapes)}
    counts = np.zeros((len(probes), len(shapes)))
    for row, probe in enumerate(probes):
        for spec in probe.blueprint:
            counts[row, index[spec.shape]] += 1
    return counts


def _non_negative(design: Values) -> Values:
    """Coefficients >= 0 that bring every row of the design closest to 1 (least squares)."""
    from scipy.optimize import nnls

    scale = design.mean(axis=0)
    scale[scale == 0] = 1
    return np.asarray(nnls(design / scale, np.ones(len(design)))[0] / scale)


def quantities(spec: LayerSpec) -> Values:
    """What a layer's time is made of: dense work, depthwise work, bytes moved, bytes of weights, pixels, kernels (6,)."""
    dense = depthwise = moved = weights = kernels = 0.0
    for conv in convs(spec):
        work = conv.hw_out**2 * conv.kernel**2 * (conv.c_in // conv.groups) * conv.c_out
        dense, depthwise = (dense + work, depthwise) if conv.groups == 1 else (dense, depthwise + work)
        moved += 4.0 * (conv.c_in * conv.hw_in**2 + conv.c_out * conv.hw_out**2)
        weights += 4.0 * conv.kernel**2 * (conv.c_in // conv.groups) * conv.c_out
        kernels += 1
    if spec.kind in ("pool", "maxpool"):
        moved, kernels = 4.0 * spec.c_in * spec.hw_in**2, 1.0
    return np.array([dense, depthwise, moved, weights, float(spec.c_mid * spec.hw_out**2 if spec.c_se else 0), kernels])


def filled_rows(rows: Mapping[tuple[int, Shape], Row], wanted: Iterable[LayerSpec]) -> Rows:
    """Interpolated rows for the wanted layers that are not among the given ones.

    A law in logarithms (ridge regression on the layer's physical quantities) is fitted on the rows of each kind; to it
    the residual of the same layer at the next smaller and larger input size is added, linear in the logarithm of the size.
    """
    known = {shape: row for (resolution, shape), row in rows.items() if resolution == ANY and row.source != "interpolated"}
    lacking = [spec for spec in wanted if spec.shape not in known]
    if not lacking:
        return {}
    specs = [_spec_of(shape) for shape in known]
    features, targets = np.stack([_logs(s) for s in specs]), np.log([known[s.shape].ms for s in specs])
    tail = float(np.median([row.p90_ms / row.ms for row in known.values()]))
    found: Rows = {}
    for kind in sorted({spec.kind for spec in lacking}):
        members = np.array([s.kind == kind for s in specs])
        use = members if members.sum() >= 2 else np.ones(len(specs), dtype=bool)
        mean, weights = _ridge(features[use], targets[use])
        residuals: dict[tuple[object, ...], dict[int, float]] = {}  # by layer, then by input size
        for s, f, t in zip(specs, features, targets, strict=True):
            residuals.setdefault(_family(s), {})[s.hw_in] = float(t - mean - f @ weights)
        for spec in (s for s in lacking if s.kind == kind):
            value = float(np.exp(mean + _logs(spec) @ weights + _between(spec.hw_in, residuals.get(_family(spec), {}))))
            found[ANY, spec.shape] = Row(value, value * tail, 0, "interpolated")
    return found


def uncovered(rows: Mapping[tuple[int, Shape], Row], wanted: Iterable[LayerSpec]) -> list[LayerSpec]:
    """Wanted layers that the rows neither hold nor enclose: of which no smaller or no larger input size has a row."""
    sizes: dict[tuple[object, ...], list[int]] = {}
    for _, shape in rows:
        spec = _spec_of(shape)
        sizes.setdefault(_family(spec), []).append(spec.hw_in)
    return [spec for spec in wanted if not (found := sizes.get(_family(spec))) or not min(found) <= spec.hw_in <= max(found)]


def _between(hw: int, residuals: Mapping[int, float]) -> float:
    """The residual of a layer at other input sizes, interpolated; 0 where it was never measured."""
    if not residuals:
        return 0.0
    sizes = sorted(residuals)
    return float(np.interp(np.log(hw), np.log(sizes), [residuals[size] for size in sizes]))


def _spec_of(shape: Shape) -> LayerSpec:
    return LayerSpec(slot="", **dict(zip(SHAPE_FIELDS, shape, strict=True)))  # type: ignore[arg-type]


def _family(spec: LayerSpec) -> tuple[object, ...]:
    return (spec.kind, spec.c_in, spec.c_mid, spec.c_out, spec.c_se, spec.kernel, spec.stride, spec.act, spec.skip, spec.norm, spec.bias)


def _logs(spec: LayerSpec) -> Values:
    return np.log1p(quantities(spec))


def _ridge(features: Values, targets: npt.NDArray[np.float64], strength: float = 1e-2) -> tuple[float, Values]:
    """Intercept and weights of ridge regression on centred features."""
    centre = features.mean(axis=0)
    x, mean = features - centre, float(targets.mean())
    weights = np.linalg.solve(x.T @ x + strength * np.eye(x.shape[1]), x.T @ (targets - mean))
    return mean - float(centre @ weights), weights
