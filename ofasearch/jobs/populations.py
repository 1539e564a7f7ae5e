"""Judge a supernet by the populations of the papers: draw networks, score each once, say what the protocol says of them.

Every network is extracted, its batch norm recalibrated on the calibration split, and only then scored. Scores are remembered
one by one, so an interrupted run loses at most the network under way. Under `torchrun` the processes share the networks.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch import zoo
from ofasearch.data import DataSet, SplitName, load_data
from ofasearch.deploy.runtime import get_runtime
from ofasearch.errors import UsageError
from ofasearch.evaluate.populations import PROTOCOLS, Network
from ofasearch.evaluate.score import CALIBRATION_BATCH
from ofasearch.evaluate.store import Store
from ofasearch.evaluate.subject import Subject, first_images
from ofasearch.jobs.latency import build_table
from ofasearch.jobs.members import MembersProgress, MembersResult, measure_members
from ofasearch.jobs.protocols import PLANS, PopulationRequest, Task
from ofasearch.jobs.scoring import PopulationProgress, check_data, fetch_all, foreign_classes
from ofasearch.jobs.setup import MEMBERS_LIMIT, table_notes
from ofasearch.latency.table import LatencyTable
from ofasearch.ranks import Ranks, join
from ofasearch.records import provenance, write_atomic, write_json
from ofasearch.report.populations import csv_text, figure
from ofasearch.space.core import Space
from ofasearch.space.costs import macs_of, params_of

# what a request may ask, and how the command spells it where that is another word
OPTIONS = ("nets", "buckets", "bucket_width_ms", "target", "split", "at_macs", "tolerance_macs", "other", "resolution", "images", "seed")
_SPELLED = {"bucket_width_ms": "bucket-width", "at_macs": "at", "tolerance_macs": "tolerance", "other": "with"}


@dataclass(frozen=True, slots=True, kw_only=True)
class PopulationResult:
    """The answer: `record` as in `result.json`, `networks` as in `subnets.csv`."""

    record: dict[str, Any]
    networks: tuple[Network, ...]
    folder: Path


Event = PopulationProgress | PopulationResult | MembersProgress | MembersResult


def evaluate_supernet(request: PopulationRequest) -> Iterator[Event]:
    """Judge a supernet by a protocol; progress on the way and the result at last, from the first process only.

    Raises UsageError (options), NotFoundError, MismatchError (data or supernets that do not fit), InfeasibleError (no network
    can be in a bucket), UnmeasuredError (a layer that the latency table lacks).
    """
    with join() as ranks:
        for event in _evaluate(request, ranks):
            if ranks.first:
                yield event


def _evaluate(request: PopulationRequest, ranks: Ranks) -> Iterator[Event]:
    _check_numbers(request)
    yield from fetch_all((request.supernet, request.other), ranks)
    trained = zoo.load_supernet(request.supernet)
    name = request.protocol or default_protocol(trained.weights.space)
    _check_options(request, name)
    if name == "members":
        if ranks.size > 1:
            raise UsageError(f"protocol members must run in one process, but {ranks.size} were started; choose another --protocol")
        yield from measure_members(request.supernet, request.data, request.out)
        return
    task = yield from _prepare(replace(request, protocol=name), trained, ranks)
    with task.store:
        summary = yield from PLANS[name](task)
        if ranks.first:
            yield _result(task, summary)


def default_protocol(space: Space) -> str:
    """Small spaces are measured whole, the others by their best networks."""
    return "members" if space.size * len(space.resolutions) <= MEMBERS_LIMIT else "pareto"


# -- what was asked --------------------------------------------------------------------------------------------


def _check_numbers(request: PopulationRequest) -> None:
    if request.protocol is not None and request.protocol not in ("members", *PROTOCOLS):
        raise UsageError(f"--protocol must be one of members, {', '.join(PROTOCOLS)}, but got '{request.protocol}'")
    for name, value, least in (("nets", request.nets, 1), ("images", request.images, 1), ("seed", request.seed, 0)):
        if value is not None and value < least:
            raise UsageError(f"--{name} must be at least {least}, but got {value}")
    if request.split not in (None, "validation", "test"):
        raise UsageError(f"--split must be validation or test, but got '{request.split}'")
    for name, size in (("tolerance", request.tolerance_macs), ("bucket-width", request.bucket_width_ms)):
        if size is not None and not 0 < size < float("inf"):
            raise UsageError(f"--{name} must be positive, but got {size}")


def _check_options(request: PopulationRequest, name: str) -> None:
    """Raise UsageError for options that the protocol would ignore, or that it lacks."""
    taken = PROTOCOLS[name].takes | {"resolution", "images", "seed"} if name in PROTOCOLS else frozenset()
    for option in OPTIONS:
        if getattr(request, option) is not None and option not in taken:
            known = ", ".join(p for p in PROTOCOLS if option in PROTOCOLS[p].takes) or "all but members"
            raise UsageError(
                f"--{_SPELLED.get(option, option)} must go with a protocol that it means something to ({known}), but got {name}"
            )
    if request.bucket_width_ms is not None and (request.target is None or request.buckets is not None):
        raise UsageError("--bucket-width must go with --target, whose latencies it cuts, and without --buckets")
    if name == "common" and request.other is None:
        raise UsageError("protocol common must have a second supernet to compare with, but got none; add --with SUPERNET")


# -- getting ready ---------------------------------------------------------------------------------------------


def _prepare(request: PopulationRequest, trained: zoo.TrainedSupernet, ranks: Ranks) -> Generator[PopulationProgress, None, Task]:
    """Data, spaces, prices and memory; what does not fit raises here, before anything is scored."""
    other = zoo.load_supernet(request.other) if request.other is not None else None
    names = (request.supernet, request.other) if other and other.name == trained.name else (trained.name, other.name if other else "")
    data = load_data(request.data)
    for supernet in (trained, *([other] if other else [])):
        check_data(data, supernet)
    data = first_images(data, request.images) if request.images is not None else data
    table = zoo.get_table(request.target, trained.weights.space) if request.target not in (None, "cpu") else None
    space = trained.weights.space.with_resolutions([_resolution(request, data, trained, other, table)])
    if request.target == "cpu":
        table = yield from _measured_here(space, ranks)
    store = Store()
    return Task(
        request=request,
        ranks=ranks,
        subject=Subject(names[0], trained.weights, space, data),
        other=Subject(str(names[1]), other.weights, other.weights.space.with_resolutions(space.resolutions), data) if other else None,
        macs=macs_of(space),
        params=params_of(space),
        table=table,
        latency=table.cost(space) if table is not None else None,
        store=store,
        notes=[*foreign_classes(data, trained), *table_notes(table)],
        rng=np.random.default_rng(request.seed or 0),
    )


def _resolution(
    request: PopulationRequest, data: DataSet, trained: zoo.TrainedSupernet, other: zoo.TrainedSupernet | None, table: LatencyTable | None
) -> int:
    """The asked resolution, or the largest that supernets, images and table know.

    Raises UsageError.
    """
    known: dict[str, Sequence[int]] = {trained.name: trained.weights.space.resolutions}
    if other is not None:
        known[f"{other.name} (--with)"] = other.weights.space.resolutions
    if data.pixels is not None:
        known[f"the images of {data.name}"] = (data.pixels,)
    if table is not None and table.resolutions is not None:
        known[f"latency table {table.name}"] = table.resolutions
    common = set.intersection(*(set(r) for r in known.values()))
    if not common:
        raise UsageError("some resolution must be known to all, but " + "; ".join(f"{who} knows {list(r)}" for who, r in known.items()))
    if request.resolution is not None and request.resolution not in common:
        raise UsageError(f"--resolution must be one of {', '.join(map(str, sorted(common)))}, but got {request.resolution}")
    return request.resolution or max(common)


def _measured_here(space: Space, ranks: Ranks) -> Generator[PopulationProgress, None, LatencyTable]:
    """The latency table of this machine, measured by the first process."""
    table: LatencyTable | None = None
    if ranks.first:
        for event in build_table(space, get_runtime()):
            if isinstance(event, LatencyTable):
                table = event
            else:
                phase = f"measuring this machine: {event.what}"
                yield PopulationProgress(phase=phase, done=event.done, total=event.total, eta_seconds=event.eta_seconds)
    found: LatencyTable = ranks.gather(table)[0]
    return found


# -- answering -------------------------------------------------------------------------------------------------


def _result(task: Task, summary: Mapping[str, Any]) -> PopulationResult:
    """The record, written with table and plot."""
    request, subject = task.request, task.subject
    folder = (request.out or Path("runs") / f"evaluate-{Path(subject.name).name}-{task.protocol}").absolute()
    splits: tuple[SplitName, ...] = ("validation", "test") if task.protocol == "pareto" else (task.split,)
    options = {key: value for key, value in asdict(request).items() if value is not None and key not in ("supernet", "data", "out")}
    axis = {"name": task.axis.name, "unit": task.axis.unit, "scale": task.axis.scale}
    table = task.table
    record = provenance(
        protocol=task.protocol,
        reference=PROTOCOLS[task.protocol].reference,
        supernet=subject.name,
        supernet_digest=subject.digest,
        space=subject.space.name,
        resolution=subject.space.resolutions[0],
        data=subject.data.name,
        splits={split: len(subject.data[split]) for split in splits},
        calibration_images=subject.calibration_images,
        calibration_batch=CALIBRATION_BATCH,
        seed=request.seed or 0,
        options=options,
        networks=len(task.networks),
        evaluated_now=task.evaluated,
        **({"axis": axis} if "buckets" in summary else {}),
        **({"target": table.name, "latency_source": table.source, "device": asdict(table.key)} if table is not None else {}),
        **summary,
    )
    networks = tuple(sorted(task.networks.values(), key=lambda n: (n.macs, n.arch_id)))
    record["notes"] = [*task.notes, *task.store.notes]
    files = {"result": folder / "result.json", "subnets": folder / "subnets.csv", "plot": folder / "plot.png"}
    record["files"] = {name: str(path) for name, path in files.items()}
    write_atomic(files["subnets"], csv_text(networks))
    write_atomic(files["plot"], figure(record, networks))
    write_json(files["result"], record)
    return PopulationResult(record=record, networks=networks, folder=folder)


__all__ = ["PopulationProgress", "PopulationRequest", "PopulationResult", "default_protocol", "evaluate_supernet"]
