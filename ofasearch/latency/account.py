"""Where the milliseconds, MACs and parameters of one network go, layer by layer, and what differs between two. No torch.

The rows of a table are shown times its slope and what is left is one constant per network, so that the parts of an
account sum to the latency by the table: `math.fsum` of layers and constant *is* `Account.latency_ms`.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from ofasearch.errors import MismatchError, UnmeasuredError
from ofasearch.latency.table import LatencyTable, Row, Source, describe, least_known
from ofasearch.space.core import Blueprint, LayerSpec
from ofasearch.space.costs import macs, params

NAMED = 4  # layers that a message names before it counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """What one layer takes. `latency_ms` (one run of the table's batch) and `source` are None where no table was asked.

    `macs` are those of one image.
    """

    spec: LayerSpec
    macs: int
    params: int
    latency_ms: float | None = None
    source: Source | None = None

    @property
    def name(self) -> str:
        """Its slot, e.g. "s3.b2" or "head.pool"."""
        return self.spec.slot

    @property
    def stage(self) -> str:
        """The slot's part before the dot."""
        return self.spec.slot.partition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Account:
    """The items of one network in order; `constant_ms` is the table's, which no layer is to blame for."""

    items: tuple[Item, ...]
    constant_ms: float | None = None

    @property
    def resolution(self) -> int:
        """Input height = width, pixels."""
        return self.items[0].spec.hw_in

    @property
    def latency_ms(self) -> float | None:
        """The sum of all items and the constant."""
        return None if self.constant_ms is None else math.fsum([self.constant_ms, *(i.latency_ms or 0.0 for i in self.items)])

    @property
    def source(self) -> Source | None:
        """What the least known item is."""
        return None if self.constant_ms is None else least_known(i.source for i in self.items if i.source is not None)

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return sum(item.macs for item in self.items)

    @property
    def params(self) -> int:
        """Weights, biases, scales and shifts."""
        return sum(item.params for item in self.items)

    def share(self, item: Item) -> float:
        """Which fraction of the latency is an item's; of the MACs, where no table was asked."""
        total = self.latency_ms
        return item.macs / self.macs if total is None else (item.latency_ms or 0.0) / total

    def stages(self) -> tuple[tuple[str, Account], ...]:
        """The accounts of the stages in order, by name; the constant belongs to none."""
        names = dict.fromkeys(item.stage for item in self.items)
        nothing = None if self.constant_ms is None else 0.0
        return tuple((name, Account(items=tuple(i for i in self.items if i.stage == name), constant_ms=nothing)) for name in names)


def account(blueprint: Blueprint, table: LatencyTable | None = None) -> Account:
    """What each layer of a network takes: MACs and parameters, and milliseconds by a table.

    Layers without names are named by `named`. Raises UnmeasuredError that names what the table lacks, MismatchError where its
    constant leaves no latency to share.
    """
    layers = named(blueprint)
    if table is None:
        return Account(items=tuple(Item(spec=spec, macs=macs(spec), params=params(spec)) for spec in layers))
    rows = _rows(layers, table)
    slope = table.correction.slope
    items = tuple(
        Item(spec=spec, macs=macs(spec), params=params(spec), latency_ms=slope * row.ms, source=row.source)
        for spec, row in zip(layers, rows, strict=True)
    )
    found = Account(items=items, constant_ms=table.correction.offset_ms)
    if not found.latency_ms or found.latency_ms <= 0:
        raise MismatchError(
            f"latency table {table.name} must give every network a positive latency, but gives one {found.latency_ms:.3g} ms "
            f"(constant {table.correction.offset_ms:.3g} ms); build the table anew"
        )
    return found


def _rows(layers: Blueprint, table: LatencyTable) -> list[Row]:
    """The row of every layer.

    Raises UnmeasuredError that names the missing ones.
    """
    resolution, found, missing = layers[0].hw_in, list[Row](), list[str]()
    for spec in layers:
        try:
            found.append(table.row(resolution, spec))
        except UnmeasuredError:
            missing.append(f"{spec.slot} ({describe(spec)})")
    if missing:
        more = f" and {len(missing) - NAMED} more" if len(missing) > NAMED else ""
        raise UnmeasuredError(
            f"latency table {table.name} must hold every layer of the network, but lacks {len(missing)} of {len(layers)} at input "
            f"{resolution}: {', '.join(missing[:NAMED])}{more}; build or import a table for this network"
        )
    return found


# -- names -----------------------------------------------------------------------------------------------------


def named(blueprint: Blueprint) -> Blueprint:
    """The same layers with the names that a design space would give them, unless every layer has one of its own.

    "stem" is what comes before the first block, "head.*" what comes after the last. A block goes on with its stage when it keeps
    size and channels, else it begins the next; the first block is "s0.b1". In a ResNet it is "s1.b1", and the stem has parts.
    """
    slots = [spec.slot for spec in blueprint]
    if all(slots) and len(set(slots)) == len(slots):
        return blueprint
    blocks = [index for index, spec in enumerate(blueprint) if _is_block(spec)]
    first, last = (blocks[0], blocks[-1]) if blocks else (len(blueprint), len(blueprint))
    names, block = list[str](), 0
    stage = 0 if blocks and blueprint[first].kind == "bottleneck" else -1
    for index, spec in enumerate(blueprint):
        if index < first or index > last:
            names.append(_stem_name(blueprint, index) if index < first else f"head.{_HEAD.get(spec.kind) or _conv_name(blueprint, index)}")
        else:
            goes_on = stage > 0 and (spec.skip if spec.kind == "bottleneck" else spec.stride == 1 and spec.c_in == spec.c_out)
            stage, block = (stage, block + 1) if goes_on else (stage + 1, 1)
            names.append(f"s{stage}.b{block}")
    return tuple(replace(spec, slot=name) for spec, name in zip(blueprint, _distinct(names), strict=True))


_HEAD = {"pool": "pool", "linear": "classifier"}


def _is_block(spec: LayerSpec) -> bool:
    return spec.kind in ("mbconv", "bottleneck")


def _stem_name(blueprint: Blueprint, index: int) -> str:
    """A layer before the blocks; a ResNet has three convolutions there, of which the one with a shortcut may be absent."""
    spec = blueprint[index]
    if not any(other.kind == "bottleneck" for other in blueprint):
        return "stem"
    part = "pool" if spec.kind == "maxpool" else "second" if spec.skip else "first" if index == 0 else "third"
    return f"stem.{part}"


def _conv_name(blueprint: Blueprint, index: int) -> str:
    """A convolution of the head: that of the features is the last, before or after the pool."""
    return "expand" if any(spec.kind == "conv" for spec in blueprint[index + 1 :]) else "feature"


def _distinct(names: Sequence[str]) -> Iterator[str]:
    """Each name, with a number from its second time on."""
    for index, name in enumerate(names):
        times = names[:index].count(name)
        yield f"{name}{times + 1}" if times else name


# -- differences -----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """One difference on the way from A to B. `before` and `after` are the layers, None where there is none.

    `delta_ms` is None where no table was asked.
    """

    name: str
    before: LayerSpec | None = None
    after: LayerSpec | None = None
    delta_ms: float | None
    delta_macs: int
    delta_params: int

    @property
    def stage(self) -> str:
        """The part of the name before the dot."""
        return self.name.partition(".")[0]


@dataclass(frozen=True, slots=True, kw_only=True)
class Difference:
    """What leads from A to B, in order; what could not be matched is told in `notes`, one sentence each."""

    steps: tuple[Step, ...]
    notes: tuple[str, ...]

    @property
    def delta_ms(self) -> float | None:
        """The sum of all steps (`math.fsum`): latency of B minus that of A."""
        deltas = [step.delta_ms for step in self.steps if step.delta_ms is not None]
        return math.fsum(deltas) if len(deltas) == len(self.steps) else None


def differ(a: Account, moved: Account, b: Account) -> Difference:
    """What changes from A to B: first the resolution, then layer by layer, then the constant.

    `moved` is A at B's resolution. Layers are matched by stage and position. Where the stages of the two are not the
    same, those of equal feature size are matched in order, and the others count whole.
    """
    steps = []
    if a.resolution != b.resolution:
        name = f"resolution {a.resolution} -> {b.resolution}"
        steps.append(Step(name=name, delta_ms=_minus(_items_ms(moved), _items_ms(a)), delta_macs=moved.macs - a.macs, delta_params=0))
    pairs, notes = _match(moved, b)
    steps += [step for before, after in pairs if (step := _step(before, after, priced=b.constant_ms is not None)) is not None]
    constant = _minus(b.constant_ms, moved.constant_ms)
    if constant:
        steps.append(Step(name="per-network constant", delta_ms=constant, delta_macs=0, delta_params=0))
    return Difference(steps=tuple(steps), notes=tuple(notes))


def _items_ms(found: Account) -> float | None:
    return None if found.constant_ms is None else math.fsum(i.latency_ms or 0.0 for i in found.items)


def _minus(after: float | None, before: float | None) -> float | None:
    return None if after is None or before is None else after - before


def _step(before: Item | None, after: Item | None, *, priced: bool) -> Step | None:
    """The difference of two matched layers, None where there is none."""
    some = after or before
    assert some is not None  # a pair has at least one
    name = some.name if before is None or after is None or before.name == after.name else f"{before.name} / {after.name}"
    ms = [(item.latency_ms or 0.0) if item else 0.0 for item in (before, after)]
    counts = [(item.macs, item.params) if item else (0, 0) for item in (before, after)]
    if before and after and before.spec.shape == after.spec.shape and ms[0] == ms[1]:
        return None
    return Step(
        name=name,
        before=before.spec if before else None,
        after=after.spec if after else None,
        delta_ms=ms[1] - ms[0] if priced else None,
        delta_macs=counts[1][0] - counts[0][0],
        delta_params=counts[1][1] - counts[0][1],
    )


Pair = tuple[Item | None, Item | None]


def _match(a: Account, b: Account) -> tuple[list[Pair], list[str]]:
    """The layers of both in B's order, those that belong together side by side, and what has no counterpart."""
    ours, theirs = dict(a.stages()), dict(b.stages())
    if list(ours) == list(theirs):
        partner = {name: name for name in ours}
    else:
        by_size = {key: name for name, key in _places(a).items()}
        partner = {name: by_size[key] for name, key in _places(b).items() if key in by_size}
    pairs: list[Pair] = []
    lone = [name for name in ours if name not in partner.values()]
    for name, stage in theirs.items():
        mine = partner.get(name)
        while lone and mine is not None and list(ours).index(lone[0]) < list(ours).index(mine):
            pairs += [(item, None) for item in ours[lone.pop(0)].items]
        pairs += _match_stage(ours[mine].items if mine else (), stage.items)
    notes = [_alone(name, "B", "A") for name in theirs if name not in partner]
    pairs += [(item, None) for name in lone for item in ours[name].items]
    return pairs, [_alone(name, "A", "B") for name in ours if name not in partner.values()] + notes


def _alone(stage: str, one: str, other: str) -> str:
    return f"stage {stage} of {one} has no counterpart of its feature size in {other}: it counts whole"


def _places(found: Account) -> dict[str, tuple[object, ...]]:
    """What tells a stage from others in any network: the size of its output and how many of that size came before it."""
    places: dict[str, tuple[object, ...]] = {}
    for name, stage in found.stages():
        size = stage.items[-1].spec.hw_out
        blocks = _is_block(stage.items[0].spec)
        places[name] = (size, sum(p[0] == size for p in places.values() if len(p) == 2)) if blocks else (name,)
    return places


def _match_stage(ours: Sequence[Item], theirs: Sequence[Item]) -> list[Pair]:
    """Layers of one stage by what their names say after the stage."""
    mine, other = ({item.name.partition(".")[2]: item for item in items} for items in (ours, theirs))
    longer, shorter = (mine, other) if len(mine) >= len(other) else (other, mine)
    order = [*longer, *(key for key in shorter if key not in longer)]
    return [(mine.get(key), other.get(key)) for key in order]
