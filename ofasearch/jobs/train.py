"""Train a supernet: the loop, its checkpoints, its log, and the accuracy of three networks on the way."""

from __future__ import annotations

import io
import json
import math
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ofasearch.data import DataSet, ImageSet, Preprocessing, channel_statistics, load_data
from ofasearch.errors import FormatError, MismatchError, TrainingError, UsageError
from ofasearch.evaluate.score import calibration_batches, predictions, recalibrate_bn, top1
from ofasearch.records import append_line, forget_unfinished, provenance, read_json, write_atomic, write_json
from ofasearch.space.core import Codes, Space
from ofasearch.space.families import get_space
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.torchfile import load_plain
from ofasearch.supernet.weights import Weights, digest, load_weights, save_weights
from ofasearch.train.loop import StepReport, TrainConfig, Trainer
from ofasearch.train.strategies import STRATEGIES

CHECKPOINT_SECONDS = 120.0


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """`ofasearch train`: which space on which data by which strategy, and where the run lives."""

    space: str
    data: str
    out: Path
    strategy: str = "deps"
    options: dict[str, Any] = field(default_factory=dict)  # of the strategy, e.g. {"subnets": 4}
    config: TrainConfig
    init: Path | None = None  # a supernet of the same space whose weights to start from
    resume: bool = False
    evaluate_every: int = 4  # epochs; 0 for never


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainProgress:
    """A step that was just done, with speed, time left and the newest validation accuracies."""

    report: StepReport
    images_per_second: float
    eta_seconds: float
    top1: dict[str, float]  # validation split: largest, middle, smallest


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainResult:
    """The finished run."""

    supernet: Path
    digest: str
    top1: dict[str, float]  # validation split
    seconds: float


def landmarks(space: Space) -> dict[str, Codes]:
    """Largest, middle and smallest network of a space, by gene position."""
    largest = space.largest()
    middle = space.canonical(np.maximum(1, (largest[None] + 1) // 2))[0]
    smallest = space.smallest()
    middle[0] = smallest[0] = largest[0]
    return {"largest": largest, "middle": middle, "smallest": smallest}


def score_landmarks(supernet: Supernet, data: DataSet, preprocessing: Preprocessing) -> dict[str, float]:
    """Validation top-1 of the three landmark networks, each recalibrated on the calibration split."""
    size = preprocessing.size
    inputs = list(calibration_batches(data, preprocessing, resolution=size))
    scores = {}
    for name, codes in landmarks(supernet.space).items():
        network = supernet.extract(codes)
        recalibrate_bn(network, inputs)
        scores[name] = top1(predictions(network, data["validation"], preprocessing, resolution=size), data["validation"].labels)
    return scores


def train(request: TrainRequest) -> Iterator[TrainProgress | TrainResult]:
    """Train, yielding progress after every step and the result at the end.

    The run folder holds `run.json` (the request), `log.jsonl`, `checkpoint.pt` (newest state) and at the end
    `supernet.safetensors`. Raises UsageError, MismatchError, TrainingError.
    """
    data = load_data(request.data)
    space = get_space(request.space, classes=data.classes)
    images = data["train"]
    if not isinstance(images, ImageSet) or data.classes == 0:
        raise UsageError(
            f"training needs labelled images of one small size, but {data.name} has {'photographs' if data.classes else 'no labels'}; "
            "give Parquet, CIFAR or idx files, or a folder of small square images"
        )
    size = images.pixels
    if space.resolutions != (size,):
        space = space.with_resolutions([size])
    mean, std = channel_statistics(images.images)
    preprocessing = Preprocessing(mean=mean, std=std, size=size)
    if request.strategy not in STRATEGIES:
        raise UsageError(f"strategy must be one of {', '.join(STRATEGIES)}, but got '{request.strategy}'")
    try:
        strategy = STRATEGIES[request.strategy](**request.options)
    except TypeError as error:
        raise UsageError(f"options of strategy {request.strategy} must be its own, but got {request.options}: {error}") from error
    supernet = Supernet(space, generator=torch.Generator().manual_seed(request.config.seed))
    start = _initialise(supernet, request.init) if request.init else None
    trainer = Trainer(supernet, strategy, request.config, images, preprocessing)
    before, epoch_losses = _open_run(request, trainer)

    started = saved = time.perf_counter()
    first_step, scores = trainer.step, dict[str, float]()
    for report in trainer.run():
        now = time.perf_counter()
        speed = (report.step - first_step) / (now - started)
        epoch_losses.append(report.loss)
        if report.step % trainer.steps_per_epoch == 0:
            due = request.evaluate_every and report.epoch % request.evaluate_every == 0
            if due or report.step == report.steps:
                scores = score_landmarks(supernet, data, preprocessing)
            line = {"epoch": report.epoch, "step": report.step, "loss": float(np.mean(epoch_losses)), "lr": report.lr}
            line |= {"images_per_second": speed * report.images, "seconds": before + now - started}
            append_line(request.out / "log.jsonl", line | ({"validation_top1": scores} if due or report.step == report.steps else {}))
            epoch_losses = []
        if now - saved > CHECKPOINT_SECONDS or report.step % trainer.steps_per_epoch == 0:
            _save(request.out / "checkpoint.pt", trainer, {"seconds": before + now - started, "epoch_losses": epoch_losses})
            saved = now
        yield TrainProgress(
            report=report, images_per_second=speed * report.images, eta_seconds=(report.steps - report.step) / speed, top1=scores
        )
    seconds = before + time.perf_counter() - started
    scores = scores or score_landmarks(supernet, data, preprocessing)  # a finished run that was resumed
    record = provenance(
        strategy=request.strategy,
        options=asdict(strategy),
        config=asdict(request.config),
        data=data.name,
        seconds=round(seconds),
        validation_top1=scores,
        splits={name: len(part) for name, part in data.splits.items()},
        **({"init": start} if start else {}),
    )
    weights = Weights(supernet.arrays(), space, preprocessing, data.class_names, record, request.out.name)
    save_weights(request.out / "supernet.safetensors", weights)
    yield TrainResult(supernet=(request.out / "supernet.safetensors").absolute(), digest=weights.digest, top1=scores, seconds=seconds)


def _initialise(supernet: Supernet, path: Path) -> dict[str, Any]:
    """Give a supernet the weights of a trained one, or those that an unfinished run has reached; returns what the record says of them.

    Raises NotFoundError, FormatError, TrainingError, MismatchError (another space, or another number of classes).
    """
    if path.is_dir() and not (path / "supernet.safetensors").is_file():
        state = load_checkpoint(path / "checkpoint.pt")
        try:
            arrays = {str(key): np.asarray(tensor.numpy(), dtype=np.float32) for key, tensor in state["weights"].items()}
            supernet.load_arrays(arrays)
            run = {key: value for key, value in dict(read_json(path / "run.json")).items() if key not in ("data", "init")}  # no paths
            return {"digest": digest(arrays), "step": int(state["step"]), "run": run}
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TrainingError(f"{path / 'checkpoint.pt'} must hold weights and a step, but does not: {error}") from error
    path = path / "supernet.safetensors" if path.is_dir() else path
    weights = load_weights(path)
    if (weights.space.name, weights.space.classes) != (supernet.space.name, supernet.space.classes):
        raise MismatchError(
            f"--init must be a supernet of {supernet.space.name} with {supernet.space.classes} classes, "
            f"but {path} is one of {weights.space.name} with {weights.space.classes}"
        )
    supernet.load_arrays(weights.arrays)
    return {"digest": weights.digest, "training": weights.training}


def _open_run(request: TrainRequest, trainer: Trainer) -> tuple[float, list[float]]:
    """Start or continue the run folder; returns the seconds already spent and the losses of the epoch under way."""
    card = {"space": request.space, "data": request.data, "strategy": request.strategy, "options": request.options} | asdict(request.config)
    card |= {"init": str(request.init)} if request.init else {}
    run, checkpoint = request.out / "run.json", request.out / "checkpoint.pt"
    present = checkpoint.exists() or checkpoint.is_symlink()  # a link to nothing is a lost checkpoint, not a new run
    if present and not request.resume:
        raise UsageError(f"{request.out} must be a new folder, but holds a run; add --resume to continue it")
    for name in ("run.json", "checkpoint.pt", "log.jsonl", "supernet.safetensors"):
        forget_unfinished(request.out / name)
    if not present:
        write_json(run, card)
        _forget_lines_after(request.out / "log.jsonl", 0)
        return 0.0, []
    known = read_json(run)
    if known != card:
        changed = [key for key in card if not isinstance(known, dict) or known.get(key) != card[key]]
        raise MismatchError(f"a resumed run must keep its settings, but {', '.join(changed)} changed; start a new folder instead")
    state = load_checkpoint(checkpoint)
    trainer.restore(state)
    try:
        seconds, losses = float(state["seconds"]), [float(loss) for loss in state["epoch_losses"]]
        if not isinstance(state["epoch_losses"], list) or not all(map(math.isfinite, (seconds, *losses))):
            raise ValueError("they are no finite numbers")
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise TrainingError(f"the checkpoint must hold seconds and losses, but it does not: {error}") from error
    _forget_lines_after(request.out / "log.jsonl", trainer.step)
    return seconds, losses


def _forget_lines_after(log: Path, step: int) -> None:
    """Drop log lines of steps that the checkpoint does not hold: they are about to be done and logged again."""
    if log.exists():
        lines = [line for line in log.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
        write_atomic(log, "".join(f"{line}\n" for line in lines))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # torn by a kill


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint without running code from it.

    Raises TrainingError when it is damaged.
    """
    try:
        return load_plain(path, "a checkpoint of ofasearch train")
    except FormatError as error:
        raise TrainingError(str(error)) from error


def _save(path: Path, trainer: Trainer, progress: dict[str, Any]) -> None:
    buffer = io.BytesIO()
    torch.save({**trainer.state(), **progress}, buffer)
    write_atomic(path, buffer.getvalue())


__all__ = ["TrainProgress", "TrainRequest", "TrainResult", "landmarks", "load_checkpoint", "score_landmarks", "train"]
