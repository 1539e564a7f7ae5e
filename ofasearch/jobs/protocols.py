"""The population protocols at work: which networks each draws, scored once each, and what it says of them.

A plan is a generator: it yields progress and returns its part of the record. Every process of a job follows the same plan.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch.data import SplitName
from ofasearch.errors import InfeasibleError, UsageError
from ofasearch.evaluate.populations import (
    PROTOCOLS,
    Axis,
    Bucket,
    Drawn,
    Network,
    common_networks,
    cumulative,
    describe,
    draw,
    drops,
    equal_buckets,
    mean_pareto_accuracy,
    paired,
    uniform_networks,
    wide_buckets,
    windows,
)
from ofasearch.evaluate.store import Store
from ofasearch.evaluate.subject import Subject
from ofasearch.jobs.scoring import PopulationProgress, score_all
from ofasearch.latency.table import LatencyTable
from ofasearch.ranks import Ranks
from ofasearch.space.core import Codes
from ofasearch.space.pricing import Cost

BUCKETS = 6  # where nothing else is asked
TOLERANCE_MACS = 0.5e6  # to both sides of a cost, as in RSS


@dataclass(frozen=True, slots=True, kw_only=True)
class PopulationRequest:
    """`ofasearch supernet evaluate`; None where the protocol's own default holds."""

    supernet: str
    data: str
    protocol: str | None = None  # by default every member of a small space, else the pareto protocol
    nets: int | None = None  # per bucket
    buckets: int | None = None
    bucket_width_ms: float | None = None
    at_macs: tuple[float, ...] | None = None
    tolerance_macs: float | None = None
    target: str | None = None
    other: str | None = None  # the second supernet
    split: str | None = None
    resolution: int | None = None
    images: int | None = None  # of each scored split
    seed: int | None = None
    out: Path | None = None


@dataclass(slots=True)
class Task:
    """A request made ready, and the population with what was measured of it so far."""

    request: PopulationRequest
    ranks: Ranks
    subject: Subject
    other: Subject | None
    macs: Cost
    params: Cost
    table: LatencyTable | None
    latency: Cost | None
    store: Store
    notes: list[str]
    rng: np.random.Generator
    networks: dict[str, Network] = field(default_factory=dict)
    evaluated: int = 0  # now, not remembered

    @property
    def protocol(self) -> str:
        """The name of the protocol."""
        return str(self.request.protocol)

    @property
    def nets(self) -> int:
        """Networks per bucket."""
        return self.request.nets or PROTOCOLS[self.protocol].nets

    @property
    def split(self) -> SplitName:
        """The split that is reported; only validation is another choice."""
        return "validation" if self.request.split == "validation" else "test"

    @property
    def axis(self) -> Axis:
        """What buckets are cut along."""
        if self.latency is not None and self.protocol != "random":
            return Axis("latency", "ms", 1.0, self.latency)
        return Axis("MACs", "M", 1e6, self.macs)

    def add(self, codes: Codes, bucket: str = "") -> list[str]:
        """Take networks (m, g) into the population; their arch ids."""
        found = []
        latency = self.latency(codes) if self.latency is not None else None
        for i, (row, macs, params) in enumerate(zip(codes, self.macs(codes), self.params(codes), strict=True)):
            arch = self.subject.space.arch(row).id
            found.append(arch)
            if arch not in self.networks:
                self.networks[arch] = Network(arch, row, int(macs), int(params), float(latency[i]) if latency is not None else None)
            if bucket and bucket not in self.networks[arch].buckets:
                self.networks[arch].buckets.append(bucket)
        return found


Events = Generator[PopulationProgress, None, None]
Answers = Generator[PopulationProgress, None, dict[str, Any]]  # returns a part of the record


# -- scoring ---------------------------------------------------------------------------------------------------


def _score(task: Task, archs: Sequence[str], split: SplitName) -> Events:
    """Score networks of the population with the supernet's weights."""
    wanted = [task.networks[arch] for arch in dict.fromkeys(archs) if f"top1_{split}" not in task.networks[arch].top1]
    yield from _score_with(task, task.subject, wanted, [network.codes for network in wanted], split, f"top1_{split}")


def _score_with(task: Task, subject: Subject, wanted: Sequence[Network], codes: Sequence[Codes], split: SplitName, column: str) -> Events:
    """Score networks, `codes` in the subject's space, into `column` of each."""
    macs = [network.macs for network in wanted]
    scored = yield from score_all(subject, codes, macs, split, store=task.store, ranks=task.ranks)
    task.evaluated += scored.fresh
    for network, top1 in zip(wanted, scored.top1, strict=True):
        network.top1[column] = top1


# -- the protocols ---------------------------------------------------------------------------------------------


def _draw(task: Task, buckets: Sequence[Bucket]) -> list[Drawn]:
    """The population of each bucket, with a note for each that is short."""
    drawn = draw(task.subject.space, task.axis.cost, buckets, task.nets, task.rng)
    if not any(len(d.codes) for d in drawn):
        labels = ", ".join(b.label for b in buckets)
        raise InfeasibleError(
            f"some bucket must hold a network of {task.subject.space.name}, but none was found in {labels}; choose others"
        )
    walked = [d.bucket.label for d in drawn if d.how == "random walks"]
    if walked:
        task.notes.append(f"networks of {', '.join(walked)} are too rare to be met by drawing: random walks found them there")
    for d in drawn:
        if len(d.codes) < task.nets:
            count = f"only {len(d.codes)}" if len(d.codes) else "none"
            whole = "holds" if d.how == "listed" else "gave"
            task.notes.append(f"bucket {d.bucket.label} {whole} {count} of the {task.nets} networks that were asked for")
    return drawn


def _cut(task: Task) -> list[Bucket]:
    """Buckets over the whole range: of one width where that was asked, else of equal number."""
    if task.request.bucket_width_ms is not None:
        return wide_buckets(task.axis, task.request.bucket_width_ms)
    return equal_buckets(task.axis, task.request.buckets if task.request.buckets is not None else BUCKETS)


def _bucket_record(d: Drawn, task: Task) -> dict[str, Any]:
    return {"label": d.bucket.label, "low": d.bucket.low, "high": d.bucket.high, "wanted": task.nets, "drawn": d.how}


def _pareto(task: Task) -> Answers:
    """The best of each bucket by validation, reported on test; the smallest and largest network compete in theirs."""
    space = task.subject.space
    drawn = _draw(task, _cut(task))
    ends = {name: task.add(codes[None])[0] for name, codes in (("smallest", space.smallest()), ("largest", space.largest()))}
    groups = []
    for d in drawn:
        archs = task.add(d.codes, d.bucket.label)
        for arch in ends.values():
            if d.bucket.holds(task.axis.cost(task.networks[arch].codes[None]))[0] and arch not in archs:
                archs += task.add(task.networks[arch].codes[None], d.bucket.label)
        groups.append(archs)
    yield from _score(task, [*ends.values(), *(arch for group in groups for arch in group)], "validation")
    bests = [max(group, key=lambda arch: task.networks[arch].top1["top1_validation"]) if group else None for group in groups]
    yield from _score(task, [*ends.values(), *(best for best in bests if best)], "test")
    buckets = [
        _bucket_record(d, task) | {"networks": len(group)} | ({"best": task.networks[best].to_json()} if best else {})
        for d, group, best in zip(drawn, groups, bests, strict=True)
    ]
    chosen = [task.networks[best] for best in bests if best]
    cost = task.axis.cost(np.stack([network.codes for network in chosen]))
    mean = mean_pareto_accuracy(cost, [network.top1["top1_test"] for network in chosen])
    ends_record = {name: task.networks[arch].to_json() for name, arch in ends.items()}
    return {"buckets": buckets, **ends_record} | ({"mean_pareto_accuracy": mean} if mean is not None else {})


def _bucketed(task: Task) -> Answers:
    """Random networks of each bucket and their statistics."""
    drawn = _draw(task, _cut(task))
    return {"buckets": (yield from _statistics(task, drawn))}


def _random(task: Task) -> Answers:
    """Random networks near some costs, and how the median falls from the costliest to the cheapest."""
    tolerance = task.request.tolerance_macs or TOLERANCE_MACS
    drawn = _draw(task, windows(task.axis, task.request.at_macs, tolerance))
    buckets = yield from _statistics(task, drawn)
    return {"buckets": buckets, "tolerance_macs": tolerance} | drops([b["median"] for b in buckets if "median" in b])


def _statistics(task: Task, drawn: Sequence[Drawn]) -> Generator[PopulationProgress, None, list[dict[str, Any]]]:
    groups = [task.add(d.codes, d.bucket.label) for d in drawn]
    yield from _score(task, [arch for group in groups for arch in group], task.split)
    buckets = []
    for d, group in zip(drawn, groups, strict=True):
        record = _bucket_record(d, task) | {"networks": len(group)}
        if group:
            values = [task.networks[arch].top1[f"top1_{task.split}"] for arch in group]
            record |= describe(values).to_json()
            if task.protocol == "cdf":
                errors, fractions = cumulative(1 - np.array(values))
                record |= {"errors": errors.tolist(), "fractions": fractions.tolist()}
        buckets.append(record)
    return buckets


def _heatmap(task: Task) -> Answers:
    """Every pair of a uniform depth and a uniform expand ratio."""
    pairs, missing = uniform_networks(task.subject.space)
    if not pairs:
        raise UsageError(f"a heatmap needs networks of uniform depth and width, but {task.subject.space.name} has none")
    if missing:
        left_out = ", ".join(f"{depth}/{expand}" for depth, expand in missing)
        task.notes.append(f"{task.subject.space.name} ties widths to depths: it has no networks of depth/expand ratio {left_out}")
    archs = task.add(np.stack([pair.codes for pair in pairs]))
    yield from _score(task, archs, task.split)
    cells = [{"depth": p.depth, "expand": p.expand, **task.networks[a].to_json()} for p, a in zip(pairs, archs, strict=True)]
    return {"cells": cells}


def _common(task: Task) -> Answers:
    """The same networks with the weights of both supernets."""
    other = task.other
    assert other is not None  # checked with the options
    ours, theirs = common_networks(task.subject.space, other.space, task.nets, task.rng)
    if len(ours) < task.nets:
        task.notes.append(f"{task.nets} common networks were asked for, but no more were found than {len(ours)}")
    archs = task.add(ours)
    columns = f"top1_{task.split}", f"top1_{task.split}_with"
    yield from _score(task, archs, task.split)
    yield from _score_with(task, other, [task.networks[arch] for arch in archs], list(theirs), task.split, columns[1])
    a, b = ([task.networks[arch].top1[column] for arch in archs] for column in columns)
    record = {"with": other.name, "with_digest": other.digest, "with_space": other.space.name, "mean_top1": float(np.mean(a))}
    return record | {"mean_top1_with": float(np.mean(b)), **paired(a, b)}


PLANS: dict[str, Callable[[Task], Answers]] = {
    "pareto": _pareto,
    "random": _random,
    "cdf": _bucketed,
    "average": _bucketed,
    "boxes": _bucketed,
    "heatmap": _heatmap,
    "common": _common,
}
