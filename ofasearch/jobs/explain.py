"""`explain` and `diff`: where the milliseconds, MACs and points of accuracy of networks go.

Milliseconds, MACs and parameters are sums over layers and can be attributed. Accuracy cannot: it is told of whole
networks only.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ofasearch import zoo
from ofasearch.deploy.runtime import TARGETS, get_runtime
from ofasearch.errors import UsageError
from ofasearch.jobs.judge import Judge, find_judge
from ofasearch.jobs.latency import build_table
from ofasearch.jobs.measuring import LatencyProgress
from ofasearch.jobs.network import Network, place_of, read_network, subnet_at
from ofasearch.jobs.savings import Savings, find_savings
from ofasearch.jobs.setup import table_notes
from ofasearch.latency.account import Account, Difference, Item, Step, account, differ, named
from ofasearch.latency.machine import check_run
from ofasearch.latency.table import LatencyTable, describe
from ofasearch.records import write_atomic
from ofasearch.report.explain import PICTURES, draw_account, draw_difference
from ofasearch.space.core import Gene, Slot, Space, resized


@dataclass(frozen=True, slots=True, kw_only=True)
class Pricing:
    """By what the networks of a question are priced and judged; None where it is not asked."""

    target: str | None = None
    space: str | None = None
    predictor: str | None = None
    batch: int | None = None
    threads: int | None = None
    picture: Path | None = None  # .svg or .png


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainRequest:
    """Explain one network; with `save_ms` also list the single changes that save as much."""

    subnet: str
    pricing: Pricing = Pricing()
    save_ms: float | None = None
    resolutions: tuple[int, ...] | None = None  # what a single change may set the input size to


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffRequest:
    """Compare two networks."""

    a: str
    b: str
    pricing: Pricing = Pricing()


@dataclass(frozen=True, slots=True, kw_only=True)
class Explained:
    """One network, what it takes, and what it is worth where something judges it."""

    network: Network
    account: Account
    top1: float | None

    @property
    def record(self) -> dict[str, Any]:
        """Name and totals as JSON; what there is not is absent."""
        found: dict[str, Any] = {"name": self.network.name}
        if self.network.space is not None:
            found |= {"arch_id": self.network.name, "space": self.network.space.name}
        found |= {"resolution": self.account.resolution, "macs": self.account.macs, "params": self.account.params}
        if self.account.latency_ms is not None:
            found |= {"latency_ms": self.account.latency_ms, "source": self.account.source}
        return found | ({"predicted_top1": self.top1} if self.top1 is not None else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class ExplainResult:
    """The answer of `explain`."""

    explained: Explained
    table: LatencyTable | None
    judge: Judge | None
    savings: Savings | None
    notes: tuple[str, ...]
    picture: Path | None

    @property
    def record(self) -> dict[str, Any]:
        """As JSON: milliseconds of layers are times the table's slope, so that they and `constant_ms` sum to `latency_ms`."""
        found = self.explained.account
        record = self.explained.record | _about(self.table, self.judge)
        record["layers"] = [_item_json(found, item) for item in found.items]
        record["stages"] = [_stage_json(found, name, stage) for name, stage in found.stages()]
        if self.savings is not None:
            record["save"] = self.savings.record
        return record | _ending(self.notes, self.picture)


@dataclass(frozen=True, slots=True, kw_only=True)
class DiffResult:
    """The answer of `diff`."""

    a: Explained
    b: Explained
    difference: Difference
    table: LatencyTable | None  # that of A, where A and B have each their own
    judge: Judge | None
    notes: tuple[str, ...]
    picture: Path | None

    @property
    def delta_top1(self) -> float | None:
        """Predicted top-1 of B minus that of A, a fraction."""
        return None if self.a.top1 is None or self.b.top1 is None else self.b.top1 - self.a.top1

    @property
    def record(self) -> dict[str, Any]:
        """As JSON; steps sum to the deltas."""
        record: dict[str, Any] = {"a": self.a.record, "b": self.b.record} | _about(self.table, self.judge)
        if self.difference.delta_ms is not None and self.table is not None:
            record["delta_ms"] = self.difference.delta_ms
        record["delta_macs"] = self.b.account.macs - self.a.account.macs
        record["delta_params"] = self.b.account.params - self.a.account.params
        if self.delta_top1 is not None:
            record["delta_top1"] = self.delta_top1
        record["steps"] = [_step_json(step) for step in self.difference.steps]
        return record | _ending(self.notes, self.picture)


def explain(request: ExplainRequest) -> Iterator[LatencyProgress | ExplainResult]:
    """Where the milliseconds of a network go, or its MACs where no target is asked; progress where this machine is measured.

    Raises UsageError, NotFoundError, FormatError, ArchError (no such network), MismatchError (table, predictor and network
    were not made for each other), UnmeasuredError (the table lacks layers), InfeasibleError (no single change saves as much),
    WriteError (the picture).
    """
    pricing = request.pricing
    _check(pricing)
    _check_saving(request)
    network = _named(read_network(request.subnet, space=pricing.space))
    if request.save_ms is not None and network.space is None:
        raise UsageError(
            f"--save must be asked of a network of a design space, but {network.name} is one network alone, without choices to change"
        )
    judge = find_judge([network], pricing.predictor, _digests([(request.subnet, network)]))
    table, savings = None, None
    if pricing.target is not None:
        if request.save_ms is not None:
            space = _choices(network, judge, request.resolutions)
        else:
            sizes = [network.resolution]
            space = _measured_space(network, sizes) if pricing.target == "cpu" else _space_of(sizes, network)
        table = yield from _table(space, pricing)
        found = account(network.blueprint, table)
        if request.save_ms is not None:
            savings = _savings(network, space, table, judge, request.save_ms)
    else:
        found = account(network.blueprint)
    picture = _write(pricing.picture, lambda kind: draw_account(found, network.name, _by(table), kind))
    yield ExplainResult(
        explained=Explained(network=network, account=found, top1=judge.top1(network) if judge else None),
        table=table,
        judge=judge,
        savings=savings,
        notes=(*table_notes(table), *_doubts(table, [found])),
        picture=picture,
    )


def diff(request: DiffRequest) -> Iterator[LatencyProgress | DiffResult]:
    """What leads from network A to network B, change by change; raises as `explain` does."""
    pricing = request.pricing
    _check(pricing)
    a, b = (_named(read_network(text, space=pricing.space)) for text in (request.a, request.b))
    judge = find_judge([a, b], pricing.predictor, _digests([(request.a, a), (request.b, b)]))
    ours, theirs = (yield from _tables(a, b, pricing)) if pricing.target is not None else (None, None)
    moved = account(resized(a.blueprint, b.resolution), ours)
    found_a, found_b = account(a.blueprint, ours), account(b.blueprint, theirs)
    difference = differ(found_a, moved, found_b)
    notes = [*dict.fromkeys((*table_notes(ours), *table_notes(theirs), *_doubts(ours, [found_a, moved, found_b])))]
    if ours is not None and theirs is not None and ours.correction != theirs.correction:
        notes.append("A and B are of different spaces and were corrected apart, so layers that are alike may differ a little")
    picture = _write(pricing.picture, lambda kind: draw_difference(difference, found_a, found_b, f"{a.name} -> {b.name}", _by(ours), kind))
    yield DiffResult(
        a=Explained(network=a, account=found_a, top1=judge.top1(a) if judge else None),
        b=Explained(network=b, account=found_b, top1=judge.top1(b) if judge else None),
        difference=difference,
        table=ours,
        judge=judge,
        notes=(*notes, *difference.notes),
        picture=picture,
    )


# -- what was asked --------------------------------------------------------------------------------------------


def _check(pricing: Pricing) -> None:
    """Raise UsageError for options that nothing can be made of."""
    if pricing.target is None and (pricing.batch is not None or pricing.threads is not None):
        raise UsageError("--batch and --threads must go with a --target, but got none")
    check_run(batch=_or_one(pricing.batch), threads=_or_one(pricing.threads))
    if pricing.picture is not None and pricing.picture.suffix.lower() not in PICTURES:
        raise UsageError(f"the picture must end in {' or '.join(PICTURES)}, but got {pricing.picture}")


def _check_saving(request: ExplainRequest) -> None:
    if request.save_ms is None and request.resolutions is not None:
        raise UsageError("--resolutions must go with --save, whose changes it narrows, but got it alone")
    if request.save_ms is not None and request.pricing.target is None:
        raise UsageError("--save must go with a --target, on which time is saved, but got none")
    if request.save_ms is not None and not 0 < request.save_ms < float("inf"):
        raise UsageError(f"--save must be a positive time, but got {request.save_ms}")


def _or_one(number: int | None) -> int:
    return 1 if number is None else number


def _named(network: Network) -> Network:
    return replace(network, blueprint=named(network.blueprint))


def _digests(given: Sequence[tuple[str, Network]]) -> frozenset[str]:
    """Of the weights that networks came with: of those that are subnet files."""
    places = [place_of(text) for text, network in given if network.space is not None]
    return frozenset(subnet_at(place).supernet_digest for place in places if place is not None)


# -- tables ----------------------------------------------------------------------------------------------------


def _table(space: Space, pricing: Pricing) -> Generator[LatencyProgress, None, LatencyTable]:
    """The table of the target for all that the space holds; this machine is measured for it."""
    table: LatencyTable | None = None
    if pricing.target in TARGETS:
        runtime = get_runtime(target=pricing.target, batch=_or_one(pricing.batch), threads=_or_one(pricing.threads))
        for event in build_table(space, runtime):
            if isinstance(event, LatencyTable):
                table = event
            else:
                yield event
        assert table is not None  # the measurement ends with it or raises
        return table
    return zoo.get_table(str(pricing.target), space, batch=_or_one(pricing.batch), threads=pricing.threads)


def _tables(a: Network, b: Network, pricing: Pricing) -> Generator[LatencyProgress, None, tuple[LatencyTable, LatencyTable]]:
    """The tables of A at both resolutions and of B: one table, but for this machine measured in two spaces."""
    sizes = sorted({a.resolution, b.resolution})
    alike = a.space is not None and b.space is not None and (a.space.name, a.space.classes) == (b.space.name, b.space.classes)
    if pricing.target in TARGETS and not alike:
        ours = yield from _table(_measured_space(a, sizes), pricing)
        theirs = yield from _table(_measured_space(b, [b.resolution]), pricing)
        return ours, theirs
    space = _measured_space(a, sizes) if pricing.target in TARGETS else _space_of(sizes, a, b)
    table = yield from _table(space, pricing)
    return table, table


def _measured_space(network: Network, resolutions: Sequence[int]) -> Space:
    """What is measured for a network: its space, whose other networks fit and check the sums, or itself where it has none."""
    return network.space.with_resolutions(resolutions) if network.space is not None else _space_of(resolutions, network)


def _space_of(resolutions: Sequence[int], *networks: Network) -> Space:
    """A space of nothing but the layers of these networks, at several resolutions."""
    sizes = tuple(sorted(resolutions))
    layers = {size: [spec for network in networks for spec in resized(network.blueprint, size)] for size in sizes}

    def slot(index: int) -> Slot:
        return Slot(f"layer{index}", (0,), lambda values: layers[int(values[0])][index])

    digest = hashlib.sha256(repr(layers).encode()).hexdigest()[:12]  # measurements are remembered by name
    genes = (Gene("resolution", "r", 0, sizes, ("r", 0)),)
    slots = tuple(slot(index) for index in range(len(layers[sizes[0]])))
    return Space(name=f"layers-{digest}", genes=genes, slots=slots, classes=0, kernels=(), expands=())


def _choices(network: Network, judge: Judge | None, asked: Sequence[int] | None) -> Space:
    """The network's space at the input sizes that a change may choose: known to the judge, asked for, or the network's own.

    Raises UsageError for one that was asked for and is none of the space.
    """
    assert network.space is not None
    unknown = sorted(set(asked or ()) - set(network.space.resolutions))
    if unknown:
        raise UsageError(f"--resolutions must be among those of {network.space.name}, {list(network.space.resolutions)}, but got {unknown}")
    sizes = set(network.space.resolutions if asked is None else asked)
    if judge is not None:
        sizes &= set(judge.resolutions)
    return network.space.with_resolutions([*sizes, network.resolution])


def _savings(network: Network, space: Space, table: LatencyTable, judge: Judge | None, save_ms: float) -> Savings:
    assert network.space is not None
    assert network.codes is not None
    if table.resolutions is not None:
        space = space.with_resolutions([*(set(space.resolutions) & set(table.resolutions)), network.resolution])
    return find_savings(space, space.from_settings(network.space.settings(network.codes[None]))[0], table, judge, save_ms)


# -- answering -------------------------------------------------------------------------------------------------


def _doubts(table: LatencyTable | None, accounts: Sequence[Account]) -> list[str]:
    """How many layers rest on less than a measurement, where not all of the table does."""
    if table is None or all(row.source == "estimated" for row in table.rows.values()):
        return []
    layers = {item.spec.shape: item.source for found in accounts for item in found.items}
    return [
        f"{count} of {len(layers)} layers are {source} in table {table.name}, not measured"
        for source in ("interpolated", "estimated")
        if (count := sum(found == source for found in layers.values()))
    ]


def _by(table: LatencyTable | None) -> str:
    """By what milliseconds are told, for pictures."""
    if table is None:
        return ""
    key = table.key
    return f"{table.name} ({table.source}), {key.precision}, batch {key.batch}, threads {key.threads}"


def _write(path: Path | None, draw: Callable[[str], bytes]) -> Path | None:
    """Draw and write a picture, if one is asked; where it lies then."""
    if path is None:
        return None
    write_atomic(path, draw(path.suffix.lower().removeprefix(".")))
    return path.absolute()


def _about(table: LatencyTable | None, judge: Judge | None) -> dict[str, Any]:
    """By what the network was priced and judged, as JSON."""
    found: dict[str, Any] = {}
    if table is not None:
        found |= {"target": table.name, "device": asdict(table.key), "slope": table.correction.slope}
        found |= {"constant_ms": table.correction.offset_ms, "corrected_on_networks": table.correction.nets}
        found |= {"validation": table.card["validation"]} if table.card.get("validation") else {}
    if judge is not None:
        found |= {"judge": judge.name, "predicted_top1_source": judge.source}
        found |= {"held_out_rmse": judge.rmse} if judge.rmse is not None else {}
    return found


def _ending(notes: Sequence[str], picture: Path | None) -> dict[str, Any]:
    return {"notes": list(notes)} | ({"files": {"picture": str(picture)}} if picture is not None else {})


def _item_json(found: Account, item: Item) -> dict[str, Any]:
    priced = {} if item.latency_ms is None else {"latency_ms": item.latency_ms, "source": item.source}
    return {"name": item.name, "layer": describe(item.spec), **priced, "macs": item.macs, "params": item.params, "share": found.share(item)}


def _stage_json(found: Account, name: str, stage: Account) -> dict[str, Any]:
    priced = {} if stage.latency_ms is None else {"latency_ms": stage.latency_ms, "source": stage.source}
    share = sum(found.share(item) for item in stage.items)
    return {"name": name, **priced, "macs": stage.macs, "params": stage.params, "share": share, "layers": len(stage.items)}


def _step_json(step: Step) -> dict[str, Any]:
    sides = (("before", step.before), ("after", step.after))
    layers = {key: describe(spec) for key, spec in sides if spec is not None}
    priced = {} if step.delta_ms is None else {"delta_ms": step.delta_ms}
    return {"name": step.name, **priced, "delta_macs": step.delta_macs, "delta_params": step.delta_params, **layers}
