"""Train a supernet: the loop, its checkpoints, its log, and the accuracy of three networks on the way."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from contextlib import closing
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch

from ofasearch.data import DataSet, Preprocessing
from ofasearch.errors import TrainingError
from ofasearch.evaluate.score import calibration_batches, predictions, recalibrate_bn, top1
from ofasearch.jobs.run_folder import WEIGHTS, RunFolder, load_checkpoint
from ofasearch.jobs.train_setup import Prepared, TrainRequest, given_teacher, initialise, open_source, prepare
from ofasearch.ranks import Ranks, join
from ofasearch.records import provenance
from ofasearch.space.core import Codes, Space
from ofasearch.space.own import space_card
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import Weights, save_weights
from ofasearch.train.loop import StepReport, Trainer
from ofasearch.train.source import Source

CHECKPOINT_SECONDS = 60.0  # an interruption costs at most this much


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainNote:
    """Something the user should know, one sentence."""

    text: str


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainProgress:
    """A step that was just done, with speed, time left and the newest validation accuracies."""

    report: StepReport
    images_per_second: float  # of all processes, over the last steps
    eta_seconds: float
    top1: dict[str, float]  # validation split: largest, middle, smallest


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """The finished run. `device_hours` counts every process; dollars and kilograms only where rates were given."""

    supernet: Path
    digest: str
    top1: dict[str, float]  # validation split
    seconds: float
    device_hours: float
    dollars: float | None = None
    kg_co2: float | None = None


def landmarks(space: Space) -> dict[str, Codes]:
    """Largest, middle and smallest network of a space, by gene position, at its largest resolution."""
    smallest = space.smallest()
    smallest[0] = len(space.resolutions)
    return {"largest": space.largest(), "middle": space.middle(), "smallest": smallest}


def score_landmarks(supernet: Supernet, data: DataSet, preprocessing: Preprocessing) -> dict[str, float]:
    """Validation top-1 of the three landmark networks, each recalibrated on the calibration split."""
    size = preprocessing.size
    scores = {}
    for name, codes in landmarks(supernet.space).items():
        network = supernet.extract(codes)
        recalibrate_bn(network, calibration_batches(data, preprocessing, resolution=size))
        scores[name] = top1(predictions(network, data["validation"], preprocessing, resolution=size), data["validation"].labels)
    return scores


def train(request: TrainRequest) -> Iterator[TrainNote | TrainProgress | TrainResult]:
    """Train, yielding progress after every step and the result at the end; under torchrun on every process.

    The run folder is a `RunFolder`; only the first process writes it. Raises UsageError, MismatchError, TrainingError.
    """
    with join() as ranks:
        ready = prepare(request)
        source = open_source(
            ready.data["train"], request.config, device=ready.device, workers=request.workers, skip_unreadable=request.skip_unreadable
        )
        with closing(source):
            yield from _train(request, ready, source, ranks)


def _train(request: TrainRequest, ready: Prepared, source: Source, ranks: Ranks) -> Iterator[TrainNote | TrainProgress | TrainResult]:
    supernet = Supernet(ready.space, generator=torch.Generator().manual_seed(request.config.seed))
    teacher = given_teacher(request, ready) if request.teacher is not None else None
    start = initialise(supernet, request, teacher)
    trainer = Trainer(
        supernet.to(ready.device),
        ready.strategy,
        request.config,
        source,
        ready.preprocessing,
        ranks=ranks,
        teacher=teacher.network if teacher is not None else None,
    )
    course = Course(
        trainer=trainer,
        folder=RunFolder(request.out),
        card=_card(request, ready.space),
        resume=request.resume,
        watch=_Landmarks(supernet, ready),
        evaluate_every=request.evaluate_every,
        spent=partial(_spent, request, ranks),
    )
    done = yield from follow(course)
    result = _finish(request, ready, trainer, done, start) if ranks.first else None
    yield from ([TrainNote(text=text)] if ranks.first and (text := skipped(source)) else [])
    yield ranks.share(result)


# -- the course of a run -----------------------------------------------------------------------------------------


class Watch(Protocol):
    """What is looked at on the way of a run; only the first process looks."""

    def scores(self, epoch: int) -> dict[str, float]:
        """Validation top-1 by network, after so many epochs."""
        ...

    def state(self) -> dict[str, Any]:
        """What a checkpoint must hold of it, as tensors and numbers."""
        ...

    def restore(self, state: dict[str, Any]) -> None:
        """Take back what `state` gave. Raises KeyError, TypeError, ValueError where it does not fit."""
        ...


@dataclass(frozen=True, slots=True)
class _Landmarks:
    """Three networks of a supernet; nothing of them is kept."""

    supernet: Supernet
    ready: Prepared

    def scores(self, epoch: int) -> dict[str, float]:
        """See `Watch`."""
        return score_landmarks(self.supernet, self.ready.data, self.ready.preprocessing)

    def state(self) -> dict[str, Any]:
        """See `Watch`."""
        return {}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Watch`."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Course:
    """A run to follow: the trainer, its folder with the `card` that says what was asked, and what is looked at on the way.

    `evaluate_every` counts epochs, 0 for the end only; `spent` says what so many seconds cost.
    """

    trainer: Trainer
    folder: RunFolder
    card: dict[str, Any]
    resume: bool
    watch: Watch
    evaluate_every: int
    spent: Callable[[float], dict[str, float]]


@dataclass(frozen=True, slots=True)
class Done:
    """The end of a run: the last scores (none where a finished run was resumed), and its seconds, all sessions together."""

    scores: dict[str, float]
    seconds: float


def follow(course: Course) -> Generator[TrainNote | TrainProgress, None, Done]:
    """Train to the end: checkpoints, a line of the log per epoch, and progress after every step.

    Every process follows it; the first alone writes and evaluates. Raises UsageError, MismatchError, TrainingError.
    """
    trainer, ranks, folder = course.trainer, course.trainer.ranks, course.folder
    opened = ranks.share(_open(course) if ranks.first else None)
    if opened.state is not None:
        trainer.restore(opened.state)
        yield from ([TrainNote(text=opened.note)] if opened.note else [])
    pace = _Pace(trainer, opened.seconds)
    losses, scores = opened.losses, dict[str, float]()
    saved = time.perf_counter()
    for report in trainer.run():
        pace.step(report)
        losses.append(report.loss)
        epoch_ends = report.step % trainer.steps_per_epoch == 0
        if epoch_ends and ranks.first:
            due = report.step == report.steps or (course.evaluate_every and report.epoch % course.evaluate_every == 0)
            scores = course.watch.scores(report.epoch) if due else scores
            line = {"epoch": report.epoch, "step": report.step, "phase": report.phase, "loss": float(np.mean(losses)), "lr": report.lr}
            line |= {"passes": report.passes, "images_per_second": pace.images_per_second, **course.spent(pace.seconds())}
            folder.log(line | ({"validation_top1": scores} if due else {}))
        if epoch_ends:
            losses = []
            pace.pause_ends()
        if ranks.first and (epoch_ends or time.perf_counter() - saved > CHECKPOINT_SECONDS):
            folder.save({**trainer.state(), **course.watch.state(), "seconds": pace.seconds(), "epoch_losses": losses})
            saved = time.perf_counter()
        yield TrainProgress(report=report, images_per_second=pace.images_per_second, eta_seconds=pace.eta_seconds(report.step), top1=scores)
    return Done(scores, pace.seconds())


def skipped(source: Source) -> str:
    """A sentence on images that were left out, empty where none was."""
    names = getattr(source, "skipped", ())
    return f"{len(names)} unreadable images were left out, the first is {names[0]}" if names else ""


def _finish(request: TrainRequest, ready: Prepared, trainer: Trainer, done: Done, start: dict[str, Any]) -> TrainResult:
    """Write the supernet's file."""
    scores = done.scores or score_landmarks(trainer.supernet, ready.data, ready.preprocessing)  # a finished run that was resumed
    spent = _spent(request, trainer.ranks, done.seconds)
    record = provenance(
        strategy=request.strategy,
        options=asdict(ready.strategy),  # type: ignore[call-overload]
        config=asdict(request.config),
        data=ready.data.name,
        device=str(ready.device.type),
        processes=trainer.ranks.size,
        validation_top1=scores,
        splits={name: len(part) for name, part in ready.data.splits.items()},
        **{**spent, "seconds": round(done.seconds)},
        **start,
    )
    weights = Weights(trainer.supernet.arrays(), ready.space, ready.preprocessing, ready.data.class_names, record, request.out.name)
    save_weights(request.out / WEIGHTS, weights)
    return TrainResult(
        supernet=(request.out / WEIGHTS).absolute(),
        digest=weights.digest,
        top1=scores,
        seconds=done.seconds,
        device_hours=spent["device_hours"],
        dollars=spent.get("dollars"),
        kg_co2=spent.get("kg_co2"),
    )


def _spent(request: TrainRequest, ranks: Ranks, seconds: float) -> dict[str, float]:
    """Seconds of the run and device hours of all processes; money and carbon dioxide as in CompOFA's table 2."""
    hours = seconds * ranks.size / 3600
    found = {"seconds": seconds, "device_hours": hours}
    found |= {"dollars": hours * request.price} if request.price is not None else {}
    return found | ({"kg_co2": hours * request.co2} if request.co2 is not None else {})


class _Pace:
    """How fast a run is, and how long it will take: steps differ in their number of passes, so passes are timed."""

    def __init__(self, trainer: Trainer, before: float):
        self._before, self._started, self._last = before, time.perf_counter(), time.perf_counter()
        self._per_pass = self._per_image = math.nan
        self._left = _passes_left(trainer)
        self._steps = trainer.steps

    def step(self, report: StepReport) -> None:
        """A step was done."""
        now = time.perf_counter()
        taken, self._last = now - self._last, now
        for name, value in (("_per_pass", taken / report.passes), ("_per_image", taken / report.images)):
            old = getattr(self, name)
            setattr(self, name, value if math.isnan(old) else 0.95 * old + 0.05 * value)

    def pause_ends(self) -> None:
        """Something that is no training was done since the last step."""
        self._last = time.perf_counter()

    def seconds(self) -> float:
        """Of the whole run, earlier sessions included."""
        return self._before + time.perf_counter() - self._started

    @property
    def images_per_second(self) -> float:
        """Over the last steps."""
        return 1 / self._per_image

    def eta_seconds(self, step: int) -> float:
        """Until the last step."""
        return self._per_pass * float(np.interp(step, *self._left))


def _passes_left(trainer: Trainer, looked_at: int = 200) -> tuple[list[float], list[float]]:
    """Passes that are left at some steps, as points to interpolate: (steps, passes)."""
    rng, space = np.random.default_rng(0), trainer.supernet.space
    steps = np.unique(np.linspace(0, trainer.steps, looked_at, dtype=np.int64))
    at = [trainer.schedule.at(int(step), len(space.resolutions)) for step in steps[:-1]]
    passes = [len(trainer.strategy.plan(space, position, rng).passes) for position in at]
    left = np.concatenate([np.cumsum((np.diff(steps) * passes)[::-1])[::-1], [0]])
    return [float(s) for s in steps], [float(n) for n in left]


# -- where a run starts ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Opened:
    """What a run folder says of the run: the state to go on from, seconds spent, losses of the epoch under way."""

    state: dict[str, Any] | None
    note: str | None
    seconds: float
    losses: list[float]


def _card(request: TrainRequest, space: Space) -> dict[str, Any]:
    """What a resumed run must ask again."""
    card = (
        space_card(space.name) | {"data": request.data, "strategy": request.strategy, "options": request.options} | asdict(request.config)
    )
    card |= {"init": str(request.init)} if request.init else {}
    card |= {"teacher": request.teacher} if request.teacher else {}
    return card | ({"resolutions": list(request.resolutions)} if request.resolutions else {})


def _open(course: Course) -> _Opened:
    """Start or continue the run folder; on the first process only."""
    state, note = course.folder.open(course.card, resume=course.resume)
    if state is None:
        return _Opened(None, None, 0.0, [])
    try:
        seconds, losses = float(state["seconds"]), [float(loss) for loss in state["epoch_losses"]]
        if not isinstance(state["epoch_losses"], list) or not all(map(math.isfinite, (seconds, *losses))):
            raise ValueError("they are no finite numbers")
        course.watch.restore(state)
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TrainingError(f"the checkpoint must hold seconds and losses, but it does not: {error}") from error
    course.trainer.restore(state)  # so that a state that does not fit leaves the log alone
    course.folder.continue_log(course.trainer.step)
    return _Opened(state, note, seconds, losses)


__all__ = [
    "Course",
    "Done",
    "TrainNote",
    "TrainProgress",
    "TrainRequest",
    "TrainResult",
    "Watch",
    "follow",
    "landmarks",
    "load_checkpoint",
    "score_landmarks",
    "skipped",
    "train",
]
