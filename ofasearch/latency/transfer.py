"""From a few measured layers of a device and the full table of another to a full table of the device. No torch.

The logarithm of (time on the new device / time on the known one) is a ridge regression on what physically tells devices
apart: work, bytes moved, the part of the work that is depthwise, the number of kernels, squeeze-excite, the kind of layer,
and the known time itself. With few or noisy probes the ridge shrinks that to one factor for all layers.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ofasearch.errors import MismatchError, UsageError
from ofasearch.latency.roofline import kernels
from ofasearch.latency.table import ANY, MS_LIMIT, LatencyTable, Row, Shape, layer_of
from ofasearch.space.core import LayerSpec

Key = tuple[int, Shape]  # of a row: input resolution (or ANY) and layer
Numbers = npt.NDArray[np.float64]

LEAST_PROBES = 5
PENALTIES = (0.01, 0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0, 100.0)  # of standardised features
PRIOR = 1e-3  # keeps the determinant of few probes from being 0


@dataclass(frozen=True, slots=True)
class Transfer:
    """The filled table, and what the probes say of it: relative errors of each probe when only the others are used."""

    table: LatencyTable
    probes: int
    held_out_mape: float
    held_out_max: float


def transfer(known: LatencyTable, probes: LatencyTable) -> Transfer:
    """A table of the probes' device with all layers of `known`: probes stay as they are, the others are interpolated.

    Raises MismatchError when the tables are of different batches or unlike each other, UsageError when fewer than LEAST_PROBES
    layers are in both.
    """
    if any(row.ms <= 0 for row in known.rows.values()):
        raise MismatchError(f"every layer of {known.name} must take time, but one takes 0 ms")
    if known.key.batch != probes.key.batch:
        raise MismatchError(
            f"both tables must be of one batch, but {known.name} is of {known.key.batch} and {probes.name} of {probes.key.batch}"
        )
    pairs = _pairs(known, probes)
    if len(pairs) < LEAST_PROBES:
        raise UsageError(f"at least {LEAST_PROBES} layers must be in both tables, but {len(pairs)} of {probes.name} are in {known.name}")
    wanted, features = list(known.rows), _features(known)
    place = {key: index for index, key in enumerate(wanted)}
    at = np.array([place[key] for key, _ in pairs])
    known_ms = np.array([known.rows[key].ms for key in wanted])
    probe_ms = np.array([row.ms for _, row in pairs])
    ratios = np.log(probe_ms / known_ms[at])
    predict = _fitted(features[at], ratios)
    errors = np.abs(np.exp(_held_out(features[at], ratios) - ratios) - 1)
    spread = float(np.median([row.p90_ms / row.ms for _, row in pairs]))
    with np.errstate(over="ignore"):
        times = known_ms * np.exp(predict(features))
    if not ((times > 0) & (times * spread <= MS_LIMIT)).all():
        raise MismatchError(f"layers of {probes.name} must resemble those of {known.name}, but some would take no time or forever")
    rows: dict[Key, Row] = {key: Row(float(ms), float(ms) * spread, 0, "interpolated") for key, ms in zip(wanted, times, strict=True)}
    rows |= dict(pairs) | {key: row for key, row in probes.rows.items() if not _targets(known, key)}
    mape, worst = float(errors.mean()), float(errors.max())
    error = (
        f"filled in from {len(pairs)} measured layers and the table of {known.name} ({known.source}); "
        f"a measured layer is off by {100 * mape:.1f} % on average when only the others are used (less if they were chosen to differ)"
    )
    facts = {"from": known.name, "from_source": known.source, "probes": len(pairs), "held_out_mape": mape, "held_out_max": worst}
    table = replace(probes, rows=rows, card={**probes.card, "error": error, "transfer": facts})
    return Transfer(table, len(pairs), mape, worst)


def choose_probes(known: LatencyTable, n: int = 20) -> tuple[Key, ...]:
    """The n rows that tell most about a new device: greedily those with the largest determinant of the regression (D-optimal).

    Twenty are enough, ten are not: there are twelve features. Raises UsageError when the table has fewer rows.
    """
    keys = list(known.rows)
    if not 1 <= n <= len(keys):
        raise UsageError(f"the number of probes must be from 1 to {len(keys)}, the rows of {known.name}, but got {n}")
    columns = np.column_stack([np.ones(len(keys)), _features(known)])
    inverse = np.eye(columns.shape[1]) / PRIOR
    chosen: list[int] = []
    for _ in range(n):
        gain = np.einsum("ij,jk,ik->i", columns, inverse, columns)
        gain[chosen] = -1.0
        best = int(gain.argmax())
        chosen.append(best)
        row = inverse @ columns[best]
        inverse -= np.outer(row, row) / (1 + columns[best] @ row)
    return tuple(keys[i] for i in chosen)


# -- features --------------------------------------------------------------------------------------------------


def _features(known: LatencyTable) -> Numbers:
    """Features (n, f) of all n rows of a known table, standardised over these."""
    raw = np.array([[np.log(row.ms), *_physical(layer_of(shape))] for (_, shape), row in known.rows.items()])
    spread = raw.std(axis=0)
    return np.asarray((raw - raw.mean(axis=0)) / np.where(spread > 0, spread, 1.0), dtype=np.float64)


def _physical(spec: LayerSpec) -> tuple[float, ...]:
    """What of a layer tells devices apart: work and bytes (logarithms), the depthwise share, and what kind of layer it is."""
    work = list(kernels(spec, 1))
    flop, moved = sum(k[0] for k in work), sum(k[1] for k in work)
    depthwise = sum(k[0] for k in work if k[2])
    kinds = (spec.kind == "conv" and spec.hw_in > 1, spec.kind == "conv" and spec.hw_in == 1, spec.kind == "pool", spec.kind == "linear")
    sizes = (np.log(flop + 1), np.log(moved), depthwise / flop if flop else 0.0, np.log(len(work)), np.log(spec.hw_in))
    return tuple(float(value) for value in (*sizes, spec.c_se > 0, spec.act == "h_swish", *kinds))


# -- which probe stands for which row --------------------------------------------------------------------------


def _targets(known: LatencyTable, key: Key) -> list[Key]:
    """Rows of the known table that a probe is the measurement of: of its resolution, of any, or of all where it names none."""
    resolution, shape = key
    exact = [found for found in (key, (ANY, shape)) if found in known.rows]
    if exact or resolution != ANY:
        return exact[:1]
    return [found for found in known.rows if found[1] == shape]


def _pairs(known: LatencyTable, probes: LatencyTable) -> list[tuple[Key, Row]]:
    """Rows of the known table and the probes' row for each; of several for one row, the one that rests on most runs."""
    best: dict[Key, Row] = {}
    for key, row in probes.rows.items():
        for target in _targets(known, key):
            if row.ms > 0 and (target not in best or row.n > best[target].n):
                best[target] = row
    return list(best.items())


# -- ridge -----------------------------------------------------------------------------------------------------


def _ridge(values: Numbers, targets: Numbers, penalty: float) -> Callable[[Numbers], Numbers]:
    """The prediction of a ridge regression whose intercept is not shrunk."""
    mean, level = values.mean(axis=0), targets.mean()
    centred = values - mean
    slopes = np.linalg.solve(centred.T @ centred + penalty * np.eye(values.shape[1]), centred.T @ (targets - level))
    return lambda rows: np.asarray((rows - mean) @ slopes + level)


def _left_out(values: Numbers, targets: Numbers, penalty: float) -> Numbers:
    """Predictions (n,) of each target from all others."""
    keep = ~np.eye(len(targets), dtype=bool)
    return np.array([_ridge(values[k], targets[k], penalty)(values[i : i + 1])[0] for i, k in enumerate(keep)])


def _fitted(values: Numbers, targets: Numbers) -> Callable[[Numbers], Numbers]:
    """The ridge regression whose penalty predicts left-out targets best."""
    errors = {penalty: float(np.abs(_left_out(values, targets, penalty) - targets).mean()) for penalty in PENALTIES}
    return _ridge(values, targets, min(errors, key=errors.__getitem__))


def _held_out(values: Numbers, targets: Numbers) -> Numbers:
    """Predictions (n,) of each target from all others, the penalty chosen among these too: honest, if slow."""
    keep = ~np.eye(len(targets), dtype=bool)
    return np.array([_fitted(values[k], targets[k])(values[i : i + 1])[0] for i, k in enumerate(keep)])
