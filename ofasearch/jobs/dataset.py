"""Label networks of a supernet for an accuracy predictor: draw, evaluate on validation, write pairs.

Every network is extracted, its batch norm recalibrated on the calibration split, and only then scored. Scores are remembered
one by one, so an interrupted run loses at most the network under way and goes on when it is asked again. Under `torchrun`
the processes share the networks. The same request gives the same file.
"""

from __future__ import annotations

from collections.abc import Generator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch import zoo
from ofasearch.data import SplitName, load_data
from ofasearch.errors import UsageError
from ofasearch.evaluate.sampling import networks_to_label
from ofasearch.evaluate.score import CALIBRATION_BATCH, CALIBRATION_IMAGES
from ofasearch.evaluate.store import Store
from ofasearch.evaluate.subject import Subject, first_images
from ofasearch.jobs.rounds import Proposal, judge, propose
from ofasearch.jobs.scoring import PopulationProgress, check_data, fetch_all, foreign_classes, score_all
from ofasearch.predictor import FitConfig, Pairs, encoder_of, fit, write_pairs
from ofasearch.predictor.fit import LEAST_PAIRS
from ofasearch.predictor.pair_files import card_path, check_pairs_path
from ofasearch.ranks import Ranks, join
from ofasearch.records import provenance
from ofasearch.space.core import Codes, Space, Values
from ofasearch.space.costs import macs_of

CALIBRATION_FEWEST = 8  # images; fewer say nothing of a batch
MOST = 100_000  # networks; labelling more takes weeks
SPLIT: SplitName = "validation"  # what rewards come from; test only reports


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetRequest:
    """`ofasearch predictor dataset`."""

    supernet: str
    data: str
    networks: int = 1000  # drawn at the beginning
    images: int | None = None  # the first so many of the validation split; None: all
    calibration_images: int | None = None  # the first so many of the calibration split; None: all, at most CALIBRATION_IMAGES
    rounds: int = 0  # active ones, after the drawn networks
    per_round: int = 100  # networks
    seed: int = 0
    out: Path | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetResult:
    """The answer: `record` holds what the card says, and the files."""

    record: dict[str, Any]
    pairs: Pairs
    path: Path


@dataclass(slots=True)
class _Task:
    """A request made ready, and what is labelled so far: `codes` (n, g) and `top1` (n,), in the order they were chosen."""

    request: DatasetRequest
    ranks: Ranks
    subject: Subject
    store: Store
    path: Path
    notes: list[str]
    codes: Codes
    top1: Values = field(default_factory=lambda: np.zeros(0))
    rounds: list[dict[str, Any]] = field(default_factory=list)
    evaluated: int = 0  # now, not remembered

    @property
    def space(self) -> Space:
        """The networks that are drawn from."""
        return self.subject.space

    @property
    def pairs(self) -> Pairs:
        """What is labelled so far."""
        return Pairs(self.space.settings(self.codes), self.top1)


Steps = Generator[PopulationProgress, None, None]


def label_networks(request: DatasetRequest) -> Iterator[PopulationProgress | DatasetResult]:
    """Draw networks, label them, write the pairs; progress on the way and the result at last, from the first process only.

    Raises UsageError (options, too many networks), NotFoundError, MismatchError (data that do not fit), WriteError (before
    anything is evaluated), FormatError (accuracies that the asked format cannot hold).
    """
    with join() as ranks:
        for event in _label(request, ranks):
            if ranks.first:
                yield event


def _label(request: DatasetRequest, ranks: Ranks) -> Iterator[PopulationProgress | DatasetResult]:
    _check(request)
    path = (request.out or Path("runs") / f"dataset-{Path(request.supernet).name}" / "pairs.jsonl").absolute()
    check_pairs_path(path)
    yield from fetch_all((request.supernet,), ranks)
    trained = zoo.load_supernet(request.supernet)
    data = load_data(request.data)
    check_data(data, trained)
    space = trained.weights.space.with_resolutions([data.pixels]) if data.pixels is not None else trained.weights.space
    codes = _drawn(request, space)
    with Store() as store:
        subject = Subject(trained.name, trained.weights, space, first_images(data, request.images, request.calibration_images))
        task = _Task(request, ranks, subject, store, path, foreign_classes(data, trained), codes[:0])
        yield from _add(task, codes)
        for number in range(1, request.rounds + 1):
            yield from _round(task, number)
        if ranks.first:
            yield _result(task)


def _check(request: DatasetRequest) -> None:
    """Raise UsageError for numbers that mean nothing."""
    least = LEAST_PAIRS if request.rounds else 1
    most = {"n": MOST, "rounds": MOST, "per-round": MOST, "calibration-images": CALIBRATION_IMAGES}
    asked = {
        "n": (request.networks, least),
        "images": (request.images, 1),
        "calibration-images": (request.calibration_images, CALIBRATION_FEWEST),
        "rounds": (request.rounds, 0),
        "per-round": (request.per_round, 2),  # one promising, one uncertain
        "seed": (request.seed, 0),
    }
    for name, (value, low) in asked.items():
        option = f"-{name}" if name == "n" else f"--{name}"
        if value is not None and value < low:
            why = " for a predictor to be fitted" if name == "n" and request.rounds else ""
            raise UsageError(f"{option} must be at least {low}{why}, but got {value}")
        if value is not None and name in most and value > most[name]:
            raise UsageError(f"{option} must be at most {most[name]:,}, but got {value:,}")


def _drawn(request: DatasetRequest, space: Space) -> Codes:
    """The networks (n, g) that are drawn at the beginning. Raises UsageError where the space holds fewer than all rounds need."""
    total, wanted = space.size * len(space.resolutions), request.networks + request.rounds * request.per_round
    if wanted > min(total, MOST):
        raise UsageError(
            f"the number of networks to label must be at most {min(total, MOST):,} in {space.name}, but got {wanted:,}; lower -n"
            + (", --rounds or --per-round" if request.rounds else "")
        )
    return networks_to_label(space, request.networks, np.random.default_rng(request.seed))


def _add(task: _Task, codes: Codes, stage: str = "") -> Steps:
    """Label networks (m, g) and put them behind those that are."""
    macs = macs_of(task.space)(codes).tolist()
    scored = yield from score_all(task.subject, list(codes), macs, SPLIT, store=task.store, ranks=task.ranks, stage=stage)
    task.evaluated += scored.fresh
    task.codes = np.concatenate([task.codes, codes])
    task.top1 = np.concatenate([task.top1, scored.top1])


def _round(task: _Task, number: int) -> Steps:
    """Fit, choose, label; the first process chooses for all. What was predicted is judged by what is then measured."""
    stage, fitted_on = f"round {number}: ", len(task.codes)
    yield PopulationProgress(phase=f"{stage}fitting", done=0, total=1, best_top1=float(task.top1.max()))
    proposal: Proposal = task.ranks.share(_proposal(task, number) if task.ranks.first else None)
    yield from _add(task, proposal.codes, stage)
    errors = judge(proposal, task.top1[fitted_on:])
    task.rounds.append({"round": number, "fitted_on": fitted_on, **errors, "best_top1": float(task.top1.max())})


def _proposal(task: _Task, number: int) -> Proposal:
    seed, space = task.request.seed, task.space
    predictor = fit(encoder_of(space), task.pairs, space.name, FitConfig(seed=seed), task.subject.digest)
    return propose(space, predictor.on(space), task.codes, task.request.per_round, np.random.default_rng([seed, number]))


def _result(task: _Task) -> DatasetResult:
    """Write the pairs and their card."""
    request, subject, data = task.request, task.subject, task.subject.data
    card = provenance(
        supernet=subject.name,
        supernet_digest=subject.digest,
        space=subject.space.name,
        resolutions=list(subject.space.resolutions),
        data=data.name,
        split=SPLIT,
        images=len(data[SPLIT]),
        calibration_images=subject.calibration_images,
        calibration_batch=CALIBRATION_BATCH,
        seed=request.seed,
        networks=len(task.codes),
        drawn=request.networks,
        rounds=task.rounds,
        notes=[*task.notes, *task.store.notes],
    )
    pairs = task.pairs
    write_pairs(task.path, pairs, task.space, card)
    best = int(task.top1.argmax())
    found = {"best": task.space.arch(task.codes[best]).id, "best_top1": float(task.top1[best]), "lowest_top1": float(task.top1.min())}
    files = {"pairs": str(task.path), "card": str(card_path(task.path))}
    return DatasetResult(record={**card, **found, "evaluated_now": task.evaluated, "files": files}, pairs=pairs, path=task.path)
