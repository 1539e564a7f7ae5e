"""Train a supernet: the loop, its checkpoints, its log, and the accuracy of three networks on the way."""

from __future__ import annotations

import math
import os
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ofasearch import zoo
from ofasearch.data import IMAGENET, DataSet, ImageSet, Preprocessing, Split, channel_statistics, load_data
from ofasearch.data.folder import FolderSet
from ofasearch.errors import MismatchError, OfaSearchError, TrainingError, UsageError
from ofasearch.evaluate.score import calibration_batches, predictions, recalibrate_bn, top1
from ofasearch.jobs.deliver import load_subnet, to_network
from ofasearch.jobs.run_folder import NEWEST, RUN, WEIGHTS, RunFolder, load_checkpoint, newest_checkpoint
from ofasearch.ranks import Ranks, join
from ofasearch.records import provenance, read_json
from ofasearch.space.core import Codes, Space
from ofasearch.space.families import get_space
from ofasearch.supernet.elastic import zero_last_gammas
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import Weights, digest, load_weights, save_weights, transfer
from ofasearch.train.loop import StepReport, TrainConfig, Trainer
from ofasearch.train.source import FolderSource, MemorySource, Source
from ofasearch.train.strategies import STRATEGIES, Phase, Strategy

CHECKPOINT_SECONDS = 60.0  # an interruption costs at most this much
WORKERS = min(16, os.cpu_count() or 1)  # threads that decode photographs


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """`ofasearch train`: which space on which data by which strategy, and where the run lives."""

    space: str
    data: str
    out: Path
    strategy: str = "deps"
    options: dict[str, Any] = field(default_factory=dict)  # of the strategy, e.g. {"subnets": 4}
    config: TrainConfig
    resolutions: tuple[int, ...] | None = None  # fewer of the space's
    init: Path | None = None  # a supernet whose weights to start from
    teacher: str | None = None  # a network to distil from: a supernet's largest, or a subnet.pt
    resume: bool = False
    evaluate_every: int = 4  # epochs; 0 for the end only
    device: str | None = None  # cpu, cuda; None: the GPU where there is one
    workers: int = WORKERS
    skip_unreadable: bool = False
    price: float | None = None  # dollars per device hour
    co2: float | None = None  # kilograms per device hour

    def __post_init__(self) -> None:
        for name, rate in (("--price", self.price), ("--co2", self.co2)):
            if rate is not None and not 0 <= rate < math.inf:
                raise UsageError(f"{name} must be a rate of at least 0, but got {rate}")


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


def make_strategy(name: str, options: dict[str, Any], space: Space) -> Strategy:
    """The strategy of that name; `arch`, an arch id of the space, stands for the codes of a single network.

    Raises UsageError, ArchError.
    """
    if name not in STRATEGIES:
        raise UsageError(f"strategy must be one of {', '.join(STRATEGIES)}, but got '{name}'")
    arch = options.get("arch")
    rest = {key: value for key, value in options.items() if key != "arch"}
    try:
        strategy = STRATEGIES[name](**rest, **({"codes": space.parse(str(arch)).codes} if arch is not None else {}))
    except TypeError as error:
        raise UsageError(f"options of strategy {name} must be its own, but got {options}: {error}") from error
    codes = getattr(strategy, "codes", None)
    if codes is not None:
        space.validate(np.array([codes]))
    return strategy


def describe_plan(
    name: str, options: dict[str, Any], space: Space, *, epochs: int | None = None, lr: float = 1.0, taught: bool = False
) -> dict[str, Any]:
    """The phases of a strategy on a space as rows for people, its options and its recipe; `taught`: a teacher is given.

    Raises UsageError, ArchError.
    """
    if not 0 < lr < math.inf:
        raise UsageError(f"the learning rate must be positive, but got {lr}")
    strategy = make_strategy(name, options, space)
    phases = [phase for phase in strategy.phases(space) if not (taught and phase.teaches)]
    total = sum(phase.epochs for phase in phases)
    rows = [
        {
            "phase": phase.name,
            "epochs": round(phase.epochs * (epochs or total) / total, 2),
            "paper_epochs": phase.epochs,
            "lr": float(f"{lr * phase.lr:.3g}"),
            "subnets": phase.subnets,
            "choices": _open_choices(phase, space),
            "channels": "sorted first"
            if phase.sorts and phase.kept is None
            else f"sorted, {phase.kept}x kept"
            if phase.sorts
            else "as they are",
        }
        for phase in phases
    ]
    return {"strategy": name, "space": space.name, "phases": rows, "options": asdict(strategy), "recipe": dict(strategy.recipe)}  # type: ignore[call-overload]


def _open_choices(phase: Phase, space: Space) -> str:
    """Which kernels, depths and expand ratios a phase trains, e.g. "kernel 7, depth 3-4"."""
    words = []
    for key, word in (("ks", "kernel"), ("d", "depth"), ("e", "expand")):
        genes = [gene for gene in space.genes[1:] if gene.reads[0] == key]
        if genes:
            choices = genes[0].choices[-min(len(genes[0].choices), phase.choices.get(key, 1)) :]
            words.append(f"{word} {'/'.join(map(str, choices))}")
    return ", ".join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Prepared:
    """A request made ready."""

    data: DataSet
    space: Space
    preprocessing: Preprocessing
    strategy: Strategy
    device: torch.device


def prepare(request: TrainRequest) -> _Prepared:
    """Load the data and see that space, data, strategy and device fit.

    Raises UsageError, MismatchError, NotFoundError, FormatError.
    """
    data = load_data(request.data)
    space = get_space(request.space, classes=data.classes or None)
    images = data["train"]
    if data.classes == 0 or len(images) == 0:
        raise UsageError(
            f"training needs labelled images, but {data.name} has no {'labels' if data.classes == 0 else 'training images'}; "
            "give Parquet, CIFAR or idx files, or a folder with one folder of images per class"
        )
    sizes = (images.pixels,) if images.pixels is not None else request.resolutions or space.resolutions
    if request.resolutions is not None and images.pixels is not None and request.resolutions != sizes:
        raise MismatchError(f"images of {data.name} have {images.pixels} pixels and are not resized; leave --resolutions out")
    if tuple(sizes) != space.resolutions:
        space = space.with_resolutions(sizes)
    if isinstance(images, ImageSet):
        mean, std = channel_statistics(images.images)
        preprocessing = Preprocessing(mean=mean, std=std, size=images.pixels)
    else:
        preprocessing = Preprocessing(mean=IMAGENET.mean, std=IMAGENET.std, size=max(space.resolutions), crop_pct=IMAGENET.crop_pct)
    return _Prepared(
        data=data,
        space=space,
        preprocessing=preprocessing,
        strategy=make_strategy(request.strategy, request.options, space),
        device=_device(request.device),
    )


def _device(name: str | None) -> torch.device:
    if name not in (None, "cpu", "cuda"):
        raise UsageError(f"--device must be cpu or cuda, but got '{name}'")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda needs a CUDA device, but torch sees none; leave it out to train on the CPU")
    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device("cuda", torch.cuda.current_device()) if chosen == "cuda" else torch.device("cpu")


def open_source(images: Split, request: TrainRequest, device: torch.device) -> Source:
    """Where the training images come from: memory (of the GPU, where it trains), or files that workers decode."""
    if isinstance(images, FolderSet):
        return FolderSource(images, flip=request.config.flip, workers=request.workers, skip_unreadable=request.skip_unreadable)
    assert isinstance(images, ImageSet)
    return MemorySource(images, crop_padding=request.config.crop_padding, flip=request.config.flip, device=device)


def train(request: TrainRequest) -> Iterator[TrainNote | TrainProgress | TrainResult]:
    """Train, yielding progress after every step and the result at the end; under torchrun on every process.

    The run folder is a `RunFolder`; only the first process writes it. Raises UsageError, MismatchError, TrainingError.
    """
    for name, rate in (("--price", request.price), ("--co2", request.co2)):
        if rate is not None and not 0 <= rate < math.inf:
            raise UsageError(f"{name} must be at least 0 per device hour, but got {rate}")
    with join() as ranks:
        ready = prepare(request)
        with closing(open_source(ready.data["train"], request, ready.device)) as source:
            yield from _train(request, ready, source, ranks)


def _train(request: TrainRequest, ready: _Prepared, source: Source, ranks: Ranks) -> Iterator[TrainNote | TrainProgress | TrainResult]:
    supernet = Supernet(ready.space, generator=torch.Generator().manual_seed(request.config.seed))
    teacher = _teacher(request, ready) if request.teacher is not None else None
    start = _initialise(supernet, request, teacher)
    trainer = Trainer(
        supernet.to(ready.device),
        ready.strategy,
        request.config,
        source,
        ready.preprocessing,
        ranks=ranks,
        teacher=teacher.network if teacher is not None else None,
    )
    folder = RunFolder(request.out)
    opened = ranks.share(_open(folder, request, trainer) if ranks.first else None)
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
            due = report.step == report.steps or (request.evaluate_every and report.epoch % request.evaluate_every == 0)
            scores = score_landmarks(supernet, ready.data, ready.preprocessing) if due else scores
            line = {"epoch": report.epoch, "step": report.step, "phase": report.phase, "loss": float(np.mean(losses)), "lr": report.lr}
            line |= {"passes": report.passes, "images_per_second": pace.images_per_second, **_spent(request, ranks, pace.seconds())}
            folder.log(line | ({"validation_top1": scores} if due else {}))
        if epoch_ends:
            losses = []
            pace.pause_ends()
        if ranks.first and (epoch_ends or time.perf_counter() - saved > CHECKPOINT_SECONDS):
            folder.save({**trainer.state(), "seconds": pace.seconds(), "epoch_losses": losses})
            saved = time.perf_counter()
        yield TrainProgress(report=report, images_per_second=pace.images_per_second, eta_seconds=pace.eta_seconds(report.step), top1=scores)
    result = _finish(request, ready, trainer, scores, start, pace.seconds()) if ranks.first else None
    yield from ([TrainNote(text=text)] if ranks.first and (text := _skipped(source)) else [])
    yield ranks.share(result)


def _skipped(source: Source) -> str:
    names = getattr(source, "skipped", ())
    return f"{len(names)} unreadable images were left out, the first is {names[0]}" if names else ""


def _finish(
    request: TrainRequest, ready: _Prepared, trainer: Trainer, scores: dict[str, float], start: dict[str, Any], seconds: float
) -> TrainResult:
    """Write the supernet's file."""
    scores = scores or score_landmarks(trainer.supernet, ready.data, ready.preprocessing)  # a finished run that was resumed
    spent = _spent(request, trainer.ranks, seconds)
    record = provenance(
        strategy=request.strategy,
        options=asdict(ready.strategy),  # type: ignore[call-overload]
        config=asdict(request.config),
        data=ready.data.name,
        device=str(ready.device.type),
        processes=trainer.ranks.size,
        validation_top1=scores,
        splits={name: len(part) for name, part in ready.data.splits.items()},
        **{**spent, "seconds": round(seconds)},
        **start,
    )
    weights = Weights(trainer.supernet.arrays(), ready.space, ready.preprocessing, ready.data.class_names, record, request.out.name)
    save_weights(request.out / WEIGHTS, weights)
    return TrainResult(
        supernet=(request.out / WEIGHTS).absolute(),
        digest=weights.digest,
        top1=scores,
        seconds=seconds,
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


def _open(folder: RunFolder, request: TrainRequest, trainer: Trainer) -> _Opened:
    """Start or continue the run folder; on the first process only."""
    card = {"space": request.space, "data": request.data, "strategy": request.strategy, "options": request.options} | asdict(request.config)
    card |= {"init": str(request.init)} if request.init else {}
    card |= {"teacher": request.teacher} if request.teacher else {}
    card |= {"resolutions": list(request.resolutions)} if request.resolutions else {}
    state, note = folder.open(card, resume=request.resume)
    if state is None:
        return _Opened(None, None, 0.0, [])
    try:
        seconds, losses = float(state["seconds"]), [float(loss) for loss in state["epoch_losses"]]
        if not isinstance(state["epoch_losses"], list) or not all(map(math.isfinite, (seconds, *losses))):
            raise ValueError("they are no finite numbers")
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TrainingError(f"the checkpoint must hold seconds and losses, but it does not: {error}") from error
    trainer.restore(state)  # so that a state that does not fit leaves the log alone
    folder.continue_log(trainer.step)
    return _Opened(state, note, seconds, losses)


@dataclass(frozen=True, slots=True)
class _Teacher:
    """A given network to distil from, and its weights where it is a supernet's largest."""

    network: nn.Module
    weights: Weights | None
    digest: str


def _teacher(request: TrainRequest, ready: _Prepared) -> _Teacher:
    """The network that `--teacher` names.

    Raises NotFoundError, FormatError, MismatchError (other classes; another space, where it would start the supernet).
    """
    name = str(request.teacher)
    if not ready.strategy.needs_teacher and not any(phase.teaches for phase in ready.strategy.phases(ready.space)):
        raise UsageError(f"strategy {request.strategy} distils from no given network; leave --teacher out")
    if name.endswith(".pt") and ready.strategy.needs_teacher:
        subnet, _ = load_subnet(Path(name))
        _check_classes(name, subnet.blueprint[-1].c_out, ready.space.classes)
        return _Teacher(to_network(subnet).eval(), None, digest(subnet.arrays))
    weights = zoo.load_supernet(name).weights
    _check_classes(name, weights.space.classes, ready.space.classes)
    network = Supernet.from_arrays(weights.space, weights.arrays).extract(weights.space.largest())
    if not ready.strategy.needs_teacher:
        transfer(weights.arrays, weights.space, ready.space)  # the supernet starts from it, so it must fit
    return _Teacher(network.train(), weights, weights.digest)  # batch statistics, as the published code does


def _check_classes(name: str, classes: int, wanted: int) -> None:
    if classes != wanted:
        raise MismatchError(f"--teacher must know the {wanted} classes of the data, but {name} knows {classes}")


def _initialise(supernet: Supernet, request: TrainRequest, teacher: _Teacher | None) -> dict[str, Any]:
    """Give a supernet the weights it starts from; returns what the record says of them.

    Raises NotFoundError, FormatError, TrainingError, MismatchError (another space, or another number of classes).
    """
    if request.config.zero_gamma:
        zero_last_gammas(supernet)
    found: dict[str, Any] = {"teacher": {"name": request.teacher, "digest": teacher.digest}} if teacher is not None else {}
    if request.init is not None:
        return found | {"init": _load_start(supernet, request.init)}
    if teacher is not None and teacher.weights is not None and any(p.teaches for p in _phases_of(request, supernet.space)):
        supernet.load_arrays(transfer(teacher.weights.arrays, teacher.weights.space, supernet.space))
    return found


def _phases_of(request: TrainRequest, space: Space) -> Any:
    return make_strategy(request.strategy, request.options, space).phases(space)


def _load_start(supernet: Supernet, path: Path) -> dict[str, Any]:
    """Load the weights of a trained supernet, or those that an unfinished run has reached."""
    if path.is_dir() and not (path / WEIGHTS).is_file():
        state, _ = newest_checkpoint(path)
        try:
            arrays = {str(key): np.asarray(tensor.numpy(), dtype=np.float32) for key, tensor in state["weights"].items()}
            run = {key: value for key, value in dict(read_json(path / RUN)).items() if key not in ("data", "init")}  # no paths
            source = get_space(str(run["space"]), classes=supernet.space.classes)
            supernet.load_arrays(transfer(arrays, source, supernet.space))
            return {"digest": digest(arrays), "step": int(state["step"]), "run": run}
        except MismatchError as error:
            raise MismatchError(f"--init must be a run of {supernet.space.name} or of a part of it, but {path} is not: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TrainingError(f"{path / NEWEST} must hold weights and a step, but does not: {error}") from error
    weights = load_weights(path / WEIGHTS if path.is_dir() else path)
    try:
        if weights.space.classes != supernet.space.classes:
            raise MismatchError(f"it has {weights.space.classes} classes")
        supernet.load_arrays(transfer(weights.arrays, weights.space, supernet.space))
    except OfaSearchError as error:
        raise MismatchError(
            f"--init must be a supernet of {supernet.space.name} (or of a part of it, or a larger one) with "
            f"{supernet.space.classes} classes, but {path} is one of {weights.space.name} with {weights.space.classes}: {error}"
        ) from error
    return {"digest": weights.digest, "space": weights.space.name, "training": weights.training}


__all__ = [
    "TrainNote",
    "TrainProgress",
    "TrainRequest",
    "TrainResult",
    "describe_plan",
    "landmarks",
    "load_checkpoint",
    "score_landmarks",
    "train",
]
