"""The machine at hand as a target: build a table by measuring, check it against whole networks, notice when it has become stale."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch import zoo
from ofasearch.deploy.runtime import Runtime
from ofasearch.errors import MismatchError, UnmeasuredError, UsageError
from ofasearch.jobs.measuring import SPOT_RULE, Lab, LatencyProgress, Steps
from ofasearch.latency.machine import describe_machine
from ofasearch.latency.memory import Measured, network_name
from ofasearch.latency.probes import Probe, choose_probes, filled_rows, lawful_rows, refined_rows, shared_rows, uncovered
from ofasearch.latency.table import Correction, LatencyTable, TableKey, describe, load_table
from ofasearch.space.core import Blueprint, Codes, Space, Values
from ofasearch.space.own import named_space, space_card

PROBED_RESOLUTIONS = 3  # of a space with more, the layers of the others are interpolated (benchmarks/latency/probes.py: 5 gain nothing)
PROBED_TIMES = 1  # how often every layer is held by some probe; small spaces can afford SMALL_TIMES
SMALL_TIMES, SMALL_FIT_NETS, SMALL_LAYERS = 3, 24, 60
FIT_NETS, CHECK_NETS = 16, 20
SEED = 0  # which networks probe, fit and check
POOL = 4000  # random networks that stratified ones are chosen from
CHECKED_LAYERS = 5
CLASSES_LIMIT = 10**6  # of a card
STALE = 0.15  # relative departure of spot measurements from the table


def build_table(space: Space, runtime: Runtime, *, fresh: bool = False) -> Iterator[LatencyProgress | LatencyTable]:
    """Measure this machine; yields progress and at last the table.

    Probe networks at up to 3 resolutions hold every layer of the space there; the runtime's account of a run shares their
    times among the layers. Layers at other resolutions are interpolated, all rows are refined on 16 further networks, and
    20 others, of all resolutions, say how well the sums predict (on the card). Every network is remembered per machine,
    runtime, precision, batch and threads: a repeated or killed call measures only what is missing. `fresh` forgets first.
    """
    plan = plan_networks(space)
    lab = Lab(runtime, plan.reference)
    if fresh:
        lab.memory.forget()
    steps = Steps(len(plan.probes) + len(plan.fit) + len(plan.check))
    remembered = lab.memory.networks()
    timings: dict[str, Measured] = {}
    for networks, traced in ((plan.probes, True), (plan.fit, False), (plan.check, False)):
        for name, measured in lab.measure(networks, traced=traced):
            timings[name] = measured
            yield steps.step(_progress_text(networks[name]), timed=name not in remembered)
    yield table_of(
        space,
        runtime.key,
        plan,
        timings,
        name=runtime.key.runtime.split()[-1],
        reference={"network": network_name(lab.reference), "level_ms": lab.memory.level_ms(network_name(lab.reference))},
        date=datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        command=_command(space, runtime),
        machine=describe_machine("cuda" if runtime.key.runtime.endswith("cuda") else "cpu"),
        notes=lab.words(),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """Which networks a table of a space is made of, by `network_name`; no network plays two parts."""

    reference: Blueprint
    probes: dict[str, Blueprint]
    fit: dict[str, Blueprint]
    check: dict[str, Blueprint]


def plan_networks(space: Space) -> Plan:
    """Probes that hold every layer at up to 3 resolutions, and random networks of all resolutions to refine and to check."""
    probed = space.with_resolutions(spread(space.resolutions, PROBED_RESOLUTIONS))
    times, most_fit = (SMALL_TIMES, SMALL_FIT_NETS) if len(probed.layers()) <= SMALL_LAYERS else (PROBED_TIMES, FIT_NETS)
    probes = _named(probed, choose_probes(probed, np.random.default_rng(SEED), times=times))
    others = _others(space, set(probes), most_fit + CHECK_NETS)
    names = list(others)
    n_fit = min(most_fit, (3 * len(names)) // 5)  # none for a space of one network, which is its own probe
    fit, check = ({name: others[name] for name in part} for part in (names[:n_fit], names[n_fit:]))
    return Plan(reference=reference_of(space), probes=probes, fit=fit, check=check)


def table_of(
    space: Space, key: TableKey, plan: Plan, measured: Mapping[str, Measured], *, name: str, notes: list[str], **card: Any
) -> LatencyTable:
    """The table that measurements of a plan's networks (by `network_name`) give; nothing is timed here.

    Networks may be missing as long as every layer of the space was measured, or the same layer at a smaller and at a
    larger input size; a note says so. Raises UnmeasuredError where more is missing.
    """
    probes, fits, checks = (_measured(part, measured) for part in (plan.probes, plan.fit, plan.check))
    told = [probe for probe in probes if probe.shares]
    rows = shared_rows(told) if told else lawful_rows([*probes, *fits]) if probes else {}
    lacking = uncovered(rows, space.layers())
    if lacking:
        missing = len(plan.probes) - len(probes)
        raise UnmeasuredError(
            f"the measured networks must hold every layer of {space.name} or enclose its input size, but {missing} of "
            f"{len(plan.probes)} probe networks are missing, and with them {len(lacking)} layers such as {describe(lacking[0])}; measure on"
        )
    rows |= filled_rows(rows, space.layers())
    table = LatencyTable(name, key, refined_rows(rows, [*probes, *fits]))
    all_networks, found = (sum(map(len, parts)) for parts in ((plan.probes, plan.fit, plan.check), (probes, fits, checks)))
    if found < all_networks:
        counts = f"{len(probes)} of {len(plan.probes)} probes, {len(fits)} of {len(plan.fit)} to refine, {len(checks)} of {len(plan.check)}"
        notes = [*notes, f"made of {found} of {all_networks} networks ({counts} to check): what they leave out is interpolated"]
    facts: dict[str, Any] = {}
    if len(checks) > 1:
        facts["validation"] = agreement([table.latency_ms(net.blueprint) for net in checks], [net.ms for net in checks])
    facts |= {
        **space_card(space.name),
        "classes": space.classes,
        "resolutions": list(space.resolutions),
        "probed_resolutions": sorted({probe.blueprint[0].hw_in for probe in probes}),
        "networks": {"probes": len(probes), "fit": len(fits), "check": len(checks)},
        "used": sorted(network_name(net.blueprint) for net in (*probes, *fits)),
    }
    return table.corrected(table.correction, **facts, **card, notes=notes)


def _measured(networks: Mapping[str, Blueprint], measured: Mapping[str, Measured]) -> list[Probe]:
    """Those of the networks that were measured."""
    found = {name: (blueprint, measured[name]) for name, blueprint in networks.items() if name in measured}
    return [Probe(blueprint, m.timing.p50, m.timing.p90, m.timing.n, m.shares) for blueprint, m in found.values()]


def reference_of(space: Space) -> Blueprint:
    """The network that is timed between all others: the middle one at the middle resolution."""
    codes = space.middle()
    codes[0] = (len(space.resolutions) + 1) // 2
    return space.blueprint(codes)


def spread(values: Sequence[int], most: int) -> list[int]:
    """At most `most` of the values, evenly spread, both ends among them."""
    picks = np.linspace(0, len(values) - 1, min(most, len(values))).round().astype(int)
    return [values[i] for i in sorted(set(picks.tolist()))]


def _named(space: Space, codes: Codes) -> dict[str, Blueprint]:
    return {network_name(blueprint): blueprint for blueprint in map(space.blueprint, codes)}


def _others(space: Space, taken: set[str], most: int) -> dict[str, Blueprint]:
    """Networks that are no probes: to refine, then to check."""
    found: dict[str, Blueprint] = {}
    for row in space.sample(20 * most, np.random.default_rng(SEED + 1)):
        blueprint = space.blueprint(row)
        name = network_name(blueprint)
        if name not in taken:
            found[name] = blueprint
        if len(found) == most:
            break
    return found


def _progress_text(blueprint: Blueprint) -> str:
    return f"network of {len(blueprint)} layers at {blueprint[0].hw_in}x{blueprint[0].hw_in}"


def _command(space: Space, runtime: Runtime) -> str:
    key = runtime.key
    name, _, target = key.runtime.split()
    resolutions = ",".join(map(str, space.resolutions))
    name = "ort" if name == "onnxruntime" else name
    return (
        f"ofasearch latency build --space {space.name} --target {target} --runtime {name} --precision {key.precision} "
        f"--batch {key.batch} --threads {key.threads} --resolutions {resolutions}"
    )


# -- against reality -------------------------------------------------------------------------------------------


def agreement(predicted_ms: Sequence[float] | Values, measured_ms: Sequence[float] | Values) -> dict[str, float]:
    """How well predicted latencies of n networks tell the measured ones: bias (ms, and of the mean), MAPE (fractions), Kendall tau-a."""
    predicted, measured = np.asarray(predicted_ms, dtype=float), np.asarray(measured_ms, dtype=float)
    return {
        "n": len(measured),
        "bias_ms": float((predicted - measured).mean()),
        "bias": float((predicted - measured).mean() / measured.mean()),
        "mape": float((np.abs(predicted - measured) / measured).mean()),
        "kendall_tau": _kendall_tau(predicted, measured),
    }


def _kendall_tau(a: Values, b: Values) -> float:
    """Concordant minus discordant pairs over all pairs; scipy's import would take longer than a whole warm search."""
    agreed = np.sign(a[:, None] - a[None]) * np.sign(b[:, None] - b[None])
    return float(agreed.sum() / max(1, len(a) * (len(a) - 1)))


@dataclass(frozen=True, slots=True, kw_only=True)
class LayerError:
    """How a layer's row differs from what the layer took inside measured networks, ms; `seen` how often."""

    layer: str
    row_ms: float
    seen_ms: float
    seen: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Validation:
    """A table against whole networks that had no part in it.

    `before` is the table as it was; `table` has the correction that these networks suggest where it is better by
    leave-one-out (`after`), and is the same as before where it is not.
    """

    table: LatencyTable
    before: dict[str, float]
    after: dict[str, float] | None
    fixed: dict[str, float] | None  # the same at one resolution only
    fixed_resolution: int | None
    predicted_ms: tuple[float, ...]
    measured_ms: tuple[float, ...]
    networks: tuple[Blueprint, ...]
    worst: tuple[LayerError, ...]
    notes: tuple[str, ...]


def validate_table(
    table: LatencyTable, space: Space, runtime: Runtime, *, nets: int = 30, seed: int = 0
) -> Iterator[LatencyProgress | Validation]:
    """Time random networks end to end, stratified over the latency that the table predicts, and compare.

    None of them took part in building the table. Raises UsageError for fewer than 5 networks, more than the space has, or a negative seed.
    """
    if seed < 0:
        raise UsageError(f"--seed must be at least 0, but got {seed}")
    rng = np.random.default_rng([seed, 1])
    used = _used(table)
    chosen = _stratified(table, space, nets, rng, used)
    middle = space.resolutions[len(space.resolutions) // 2]
    fixed_space = space.with_resolutions([middle])
    fixed = _stratified(table, fixed_space, nets, rng, used | set(chosen)) if len(space.resolutions) > 1 else {}
    lab = Lab(runtime, reference_of(space))
    steps, timings = Steps(len(chosen) + len(fixed)), dict[str, Measured]()
    remembered = lab.memory.networks()
    for networks, traced in ((chosen, True), (fixed, False)):
        for name, measured in lab.measure(networks, traced=traced):
            timings[name] = measured
            yield steps.step(_progress_text(networks[name]), timed=name not in remembered)
    predicted = np.array([table.latency_ms(b) for b in chosen.values()])
    real = np.array([timings[name].timing.p50 for name in chosen])
    before, after = agreement(predicted, real), None
    sums = (predicted - table.correction.offset_ms) / table.correction.slope
    left_out = _leave_one_out(sums, real)
    found = table
    if (found_error := agreement(left_out, real))["mape"] < before["mape"]:
        after = found_error
        found = replace(table, correction=_line(sums, real))
    fixed_names = [*fixed, *(name for name, b in chosen.items() if b[0].hw_in == middle)] if fixed else []
    everything = chosen | fixed
    at_one = (
        agreement([table.latency_ms(everything[n]) for n in fixed_names], [timings[n].timing.p50 for n in fixed_names]) if fixed else None
    )
    yield Validation(
        table=found.corrected(found.correction, validation=after or before, validated_before_correction=before),
        before=before,
        after=after,
        fixed=at_one,
        fixed_resolution=middle if fixed else None,
        predicted_ms=tuple(predicted.tolist()),
        measured_ms=tuple(real.tolist()),
        networks=tuple(chosen.values()),
        worst=_worst_layers(table, [(b, timings[name]) for name, b in chosen.items()]),
        notes=tuple(lab.words()),
    )


def _used(table: LatencyTable) -> set[str]:
    """The networks that the table rests on, by its card; cards come from outside, too."""
    names = table.card.get("used")
    return {name for name in names if isinstance(name, str)} if isinstance(names, list) else set()


def _stratified(table: LatencyTable, space: Space, nets: int, rng: np.random.Generator, used: set[str]) -> dict[str, Blueprint]:
    """Networks whose predicted latencies are spread evenly between the space's extremes (its rarest ends left out)."""
    if not 5 <= nets <= POOL:
        raise UsageError(f"--nets must be between 5 and {POOL}, but got {nets}")
    rows = np.unique(space.sample(POOL, rng), axis=0)
    predicted = table.cost(space)(rows)
    low, high = np.quantile(predicted, (0.01, 0.99))
    edges = np.linspace(low, high, nets + 1)
    found: dict[str, Blueprint] = {}
    free = np.ones(len(rows), dtype=bool)
    for wanted in rng.uniform(edges[:-1], edges[1:]):  # one latency from each band; the nearest networks are tried in turn
        while free.any():
            nearest = int(np.where(free, np.abs(predicted - wanted), np.inf).argmin())
            free[nearest] = False
            blueprint = space.blueprint(rows[nearest])
            if network_name(blueprint) not in used:
                found[network_name(blueprint)] = blueprint
                break
    if len(found) < nets:
        raise UsageError(f"--nets must leave networks that had no part in the table: {space.name} has {len(found)} such, but got {nets}")
    return found


def _line(sums: Values, real: Values) -> Correction:
    """The line through (sum of rows, measured) of least relative error; a mere factor where the networks do not tell a slope."""
    design = np.stack([sums, np.ones_like(sums)], axis=1) / real[:, None]
    slope, offset = np.linalg.lstsq(design, np.ones(len(real)), rcond=None)[0]
    if not slope > 0:
        slope, offset = float(real.sum() / sums.sum()), 0.0
    return Correction(float(slope), float(offset), len(real))


def _leave_one_out(sums: Values, real: Values) -> Values:
    """What lines fitted on all other networks predict for each."""
    found = np.empty(len(real))
    for i in range(len(real)):
        others = np.arange(len(real)) != i
        line = _line(sums[others], real[others])
        found[i] = line.slope * sums[i] + line.offset_ms
    return found


def _worst_layers(table: LatencyTable, measured: Sequence[tuple[Blueprint, Measured]]) -> tuple[LayerError, ...]:
    """Layers by how much they contribute to errors, the worst first; empty where the runtime does not tell layers apart."""
    seen: dict[Any, list[float]] = {}
    specs = {}
    for blueprint, result in measured:
        for spec, share in zip(blueprint, result.shares, strict=False):
            seen.setdefault((blueprint[0].hw_in, spec.shape), []).append(share * result.timing.p50)
            specs[blueprint[0].hw_in, spec.shape] = spec
    errors = [
        LayerError(
            layer=f"{describe(spec)} (input {resolution})",
            row_ms=table.row(resolution, spec).ms * table.correction.slope,
            seen_ms=float(np.mean(seen[resolution, shape])),
            seen=len(seen[resolution, shape]),
        )
        for (resolution, shape), spec in specs.items()
    ]
    return tuple(sorted(errors, key=lambda e: -abs(e.row_ms - e.seen_ms))[:8])


# -- is it still true? -----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class SpotCheck:
    """A few layers measured now beside their rows; `stale` says in a sentence why the table should not be used, or is None."""

    layers: tuple[LayerError, ...]
    predicted_ms: float
    measured_ms: float
    speed: float
    stale: str | None
    notes: tuple[str, ...]


def check_table(table: LatencyTable, space: Space, runtime: Runtime, *, seed: int = 0) -> SpotCheck:
    """Measure one network now (never remembered) and compare five of its layers and the whole with the table.

    Where the runtime does not tell layers apart, the whole alone is compared.
    """
    lab = Lab(runtime, reference_of(space))
    rng = np.random.default_rng([seed, 2])
    rows = space.sample(50, rng)
    codes = rows[int(table.cost(space)(rows).argmax())]
    blueprint = space.blueprint(codes)
    reference = table.card.get("reference")
    level = reference.get("level_ms") if isinstance(reference, dict) else None
    measured = lab.time_now({"": lambda: runtime.load(blueprint)}, traced=True, rule=SPOT_RULE)[""]
    speed = lab.speeds[-1]
    if isinstance(level, float) and level > 0 and (known := lab.memory.level_ms(network_name(lab.reference))):
        speed *= level / known
    predicted, real = table.latency_ms(blueprint), measured.timing.p50
    errors = _spot_layers(table, blueprint, measured)
    departure = real / predicted - 1
    stale = None
    if abs(departure) > STALE:
        stale = f"a whole network takes {real:.4g} ms, {100 * departure:+.0f} % against the table"
    elif not 1 - STALE < speed < 1 + 2 * STALE:
        stale = f"the machine runs at {100 * speed:.0f} % of the speed at which the table was built"
    return SpotCheck(layers=errors, predicted_ms=predicted, measured_ms=real, speed=speed, stale=stale, notes=tuple(lab.words()))


def _spot_layers(table: LatencyTable, blueprint: Blueprint, measured: Measured) -> tuple[LayerError, ...]:
    """Five layers of the network, from its cheapest to its dearest."""
    if not measured.shares:
        return ()
    resolution = blueprint[0].hw_in
    order = np.argsort([table.row(resolution, spec).ms for spec in blueprint])
    picks = order[np.linspace(0, len(order) - 1, CHECKED_LAYERS).round().astype(int)]
    return tuple(
        LayerError(
            layer=describe(blueprint[i]),
            row_ms=table.row(resolution, blueprint[i]).ms * table.correction.slope,
            seen_ms=measured.shares[i] * measured.timing.p50,
            seen=1,
        )
        for i in picks.tolist()
    )


def require_this_machine(table: LatencyTable, runtime: Runtime) -> None:
    """Raise MismatchError unless the table was measured here and so."""
    here, there = runtime.key, table.key
    different = [n for n in ("device", "runtime", "precision", "batch", "threads") if getattr(here, n) != getattr(there, n)]
    if different:
        told = "; ".join(f"{n} '{getattr(there, n)}' there, '{getattr(here, n)}' here" for n in different)
        raise MismatchError(f"table {table.name} must be of this machine to be checked on it, but differs: {told}; build a table here")


def space_of_table(table: LatencyTable, space: Space | None) -> Space:
    """The space whose networks check the table: the given one, or the one on its card.

    Raises UsageError when neither is known, NotFoundError, ArchError when the card names none of ours.
    """
    from ofasearch.space.families import get_space

    if space is not None:
        return space
    name, resolutions, classes = (table.card.get(key) for key in ("space", "resolutions", "classes"))
    if not isinstance(name, str):
        raise UsageError(f"table {table.name} does not say for which space it was built; add --space")
    name = named_space(table.card)
    found = get_space(name, classes=classes) if type(classes) is int and 1 <= classes <= CLASSES_LIMIT else get_space(name)
    sizes = isinstance(resolutions, list) and all(type(size) is int for size in resolutions)
    return found.with_resolutions(resolutions) if sizes else found  # type: ignore[arg-type]


def open_table(name: str) -> tuple[LatencyTable, Path | None]:
    """A table by file or by name, and its file where it may be written (a shipped one may not).

    Raises NotFoundError, FormatError.
    """
    path = Path(name) if Path(name).is_file() else zoo.user_tables() / f"{name}.csv"
    return (load_table(path), path) if path.is_file() else (zoo.open_table(name), None)
