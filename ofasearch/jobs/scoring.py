"""Scoring many networks of a supernet: what is remembered is not scored again, and the processes of a job share the rest."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterator, Mapping, Sequence
from dataclasses import dataclass

from ofasearch import zoo
from ofasearch.data import DataSet, SplitName
from ofasearch.errors import MismatchError
from ofasearch.evaluate.store import Store
from ofasearch.evaluate.subject import Subject
from ofasearch.ranks import Ranks
from ofasearch.space.core import Codes


@dataclass(frozen=True, slots=True, kw_only=True)
class PopulationProgress:
    """How far a phase is; the best accuracy of its networks so far."""

    phase: str
    done: int
    total: int
    eta_seconds: float | None = None
    best_top1: float | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """Top-1 of each network, in the given order; `fresh` of them were not remembered."""

    top1: tuple[float, ...]
    fresh: int


def score_all(
    subject: Subject, codes: Sequence[Codes], macs: Sequence[float], split: SplitName, *, store: Store, ranks: Ranks, stage: str = ""
) -> Generator[PopulationProgress, None, Scored]:
    """Score networks, each (g,) in the subject's space; all processes get all accuracies. `stage` goes before the phase's name.

    The processes take networks in turn, costly ones first, so that those of one turn take about as long.
    """
    found = _remembered(subject, codes, split, store, ranks)
    pending = sorted((i for i in range(len(codes)) if i not in found), key=lambda i: -macs[i])
    left = sum(macs[i] for i in pending)
    phase, started, spent = f"{stage}evaluating {subject.name} on {split}", time.perf_counter(), 0.0
    yield _progress(phase, found, len(codes), None)
    for turn in range(0, len(pending), ranks.size):
        fresh: tuple[int, float] | None = None
        if turn + ranks.rank < len(pending):
            mine = pending[turn + ranks.rank]
            score = subject.score(codes[mine], split)
            store.put(subject.key(codes[mine], split), score)
            fresh = (mine, score.top1)
        for i, top1 in filter(None, ranks.gather(fresh)):
            found[i] = top1
            spent += macs[i]
        yield _progress(phase, found, len(codes), (time.perf_counter() - started) / spent * (left - spent))
    return Scored(tuple(found[i] for i in range(len(codes))), len(pending))


def _remembered(subject: Subject, codes: Sequence[Codes], split: SplitName, store: Store, ranks: Ranks) -> dict[int, float]:
    """What the first process remembers, position -> accuracy: all processes must agree on what is left."""
    known: dict[int, float] = {}
    if ranks.first:
        for i, row in enumerate(codes):
            score = store.get(subject.key(row, split))
            if score is not None:
                known[i] = score.top1
    agreed: dict[int, float] = ranks.gather(known)[0]
    return agreed


def _progress(phase: str, found: Mapping[int, float], total: int, eta: float | None) -> PopulationProgress:
    best = max(found.values(), default=None)
    return PopulationProgress(phase=phase, done=len(found), total=total, eta_seconds=eta, best_top1=best)


# -- getting ready ---------------------------------------------------------------------------------------------


def fetch_all(names: Sequence[str | None], ranks: Ranks) -> Iterator[PopulationProgress]:
    """Fetch supernets that are published by others; the first process does, and the others find what it fetched."""
    if ranks.first:
        for name in names:
            for fetched in zoo.fetch_supernet(name):
                yield PopulationProgress(phase=f"fetching {fetched.name}", done=fetched.done, total=fetched.total or 0)
    ranks.wait()


def check_data(data: DataSet, supernet: zoo.TrainedSupernet) -> None:
    """Raise MismatchError unless the images have labels, the classes and the size that the supernet was made for."""
    space = supernet.weights.space
    if data.classes == 0:
        raise MismatchError(f"data {data.name} must have labels to measure accuracy, but has none")
    if data.classes != space.classes:
        raise MismatchError(
            f"data {data.name} must have the {space.classes} classes of {supernet.name}, but has {data.classes}; "
            "give what it was trained on"
        )
    if data.pixels is not None and data.pixels not in space.resolutions:
        sizes = ", ".join(map(str, space.resolutions))
        raise MismatchError(
            f"images of {data.name} must have {sizes} pixels for {supernet.name}, but have {data.pixels}; give what it was trained on"
        )


def foreign_classes(data: DataSet, supernet: zoo.TrainedSupernet) -> list[str]:
    """A note where the classes have other names than those the supernet was trained on."""
    known = supernet.weights.class_names
    return [f"{data.name} names other classes than {supernet.name} was trained on"] if known and known != data.class_names else []
