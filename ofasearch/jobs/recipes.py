"""Which int8 recipe suits a network: each is tried on the validation split, and timed beside the others.

Scales per tensor and per output channel are compared first. With the better of the two, each sensitive part of the network is left
in float in turn, and at last all parts that gained. `choose` says when a gain is worth its latency.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch.data import DataSet, Preprocessing, Split, SplitName
from ofasearch.deploy.quantize import Inputs, Method, Part, Recipe, counted, leaves_some, quantise, sensitive_parts
from ofasearch.deploy.runtime import LoadedOnnx, get_runtime
from ofasearch.errors import CalibrationError, MismatchError, UsageError
from ofasearch.jobs.classifier import Classifier, Predicted, PredictionProgress, live_predictions
from ofasearch.jobs.latency import reference_of
from ofasearch.jobs.measuring import NET_RULE, Lab
from ofasearch.jobs.onnx_file import THREADS, input_size, inputs_for
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.latency.stopwatch import Timing
from ofasearch.latency.table import TableKey
from ofasearch.space.families import get_space

GAIN = 0.001  # of validation top-1, that anything dearer than the plainest recipe must bring
PRICE = 0.05  # of validation top-1, that it must bring besides if it takes twice as long; half as much longer, half of it
RULE = f"a recipe replaces a plainer one for {100 * GAIN:g} points of validation top-1, and 1 more for every {1 / PRICE:.0f} % of latency"

BATCH = 50  # calibration images at a time, where the file leaves it free
HISTOGRAM_IMAGES, HISTOGRAM_PIXELS = 128, 16 * 224**2  # of all of them: those methods hold all activations of all images
FEWEST = 8  # images


@dataclass(frozen=True, slots=True, kw_only=True)
class Tried:
    """A recipe, the file that it gave, and what the file gets right of the validation split."""

    recipe: Recipe
    content: bytes
    top1: float
    timing: Timing | None = None

    def to_json(self) -> dict[str, Any]:
        """As in the answer; what was not measured is absent."""
        counts = counted(self.content)
        record: dict[str, Any] = {"per_channel": self.recipe.per_channel, "floating": list(self.recipe.floating)}
        record |= {"validation_top1": self.top1, "int8_layers": counts.int8, "layers": counts.weighted, "size_bytes": len(self.content)}
        return record | ({"latency_ms_p50": self.timing.p50} if self.timing is not None else {})


@dataclass(frozen=True, slots=True, kw_only=True)
class Subject:
    """A float32 network that is to be quantised: a classifier with its prepared file, and the images to calibrate it on."""

    classifier: Classifier
    content: bytes
    preprocessing: Preprocessing
    data: DataSet
    calibration: Split
    batch: int  # of the calibration images

    @property
    def model(self) -> OnnxModel:
        """The float32 file."""
        assert self.classifier.onnx is not None  # it is made so
        return self.classifier.onnx

    def batches(self) -> Iterator[Inputs]:
        """Calibration inputs (B, 3, H, W), or the pixels that the file takes."""
        size = input_size(self.classifier.name, self.model, self.preprocessing, self.calibration)
        return inputs_for(self.model, self.preprocessing, self.calibration, size, self.batch)


def calibration_of(classifier: Classifier, data: DataSet, most: int, method: Method) -> tuple[Split, int]:
    """The first images of the calibration split, at most so many, and how many the file takes at a time.

    All batches are of one size, because some methods ask for it. Raises CalibrationError where there are too few.
    """
    assert classifier.onnx is not None
    assert classifier.preprocessing is not None
    images, fixed = data["calibration"], classifier.onnx.inputs[0].shape[0]
    least = max(FEWEST, fixed if isinstance(fixed, int) else 0)
    if most < FEWEST:
        raise UsageError(f"--calibration-images must be at least {FEWEST}, but got {most}")
    count = min(most, len(images))
    if method != "minmax" and len(images):
        size = input_size(classifier.name, classifier.onnx, classifier.preprocessing, images)
        count = min(count, HISTOGRAM_IMAGES, max(least, HISTOGRAM_PIXELS // size**2))
    if count < least:
        raise CalibrationError(f"data must have at least {least} calibration images to quantise {classifier.name}, but use {count}")
    batch = fixed if isinstance(fixed, int) else max(b for b in range(1, BATCH + 1) if count % b == 0)
    return images.take(np.arange(count // batch * batch)), batch


# -- accuracy --------------------------------------------------------------------------------------------------


def try_recipes(
    subject: Subject, base: Recipe, schemes: Sequence[bool], floating: tuple[Part, ...] | None, folder: Path
) -> Iterator[PredictionProgress | Tried]:
    """Recipes that might be chosen, the plainest first, each with its validation accuracy; progress on the way.

    `schemes` are what is tried of per-channel scales, `floating` the parts that stay in float; None tries which of them help.
    `folder` keeps the ranges between recipes. Raises UsageError for a part that the network does not have.
    """
    parts = tuple(sensitive_parts(subject.content))
    for part in floating or ():
        if part not in parts:
            raise UsageError(f"--exclude must name parts of {subject.classifier.name} ({', '.join(parts)}), but got {part}")
    found: list[Tried] = []

    def tried(per_channel: bool, floating: tuple[Part, ...]) -> Iterator[PredictionProgress | Tried]:
        recipe = replace(base, per_channel=per_channel, floating=floating)
        for event in _try(subject, recipe, folder / "ranges.json"):
            found.extend([event] if isinstance(event, Tried) else [])
            yield event

    for per_channel in schemes:
        yield from tried(per_channel, floating or ())
    if floating is not None:
        return
    plain = found[choose(found)]
    for part in parts:
        if leaves_some(subject.content, (part,)):
            yield from tried(plain.recipe.per_channel, (part,))
    helpful = tuple(t.recipe.floating[0] for t in found[len(schemes) :] if t.top1 - plain.top1 >= GAIN)
    if len(helpful) > 1 and leaves_some(subject.content, helpful):
        yield from tried(plain.recipe.per_channel, helpful)


def _try(subject: Subject, recipe: Recipe, ranges: Path) -> Iterator[PredictionProgress | Tried]:
    yield PredictionProgress(phase=f"quantising {recipe.words}", done=0, total=1)
    content = quantise(subject.content, subject.batches, recipe, ranges=ranges)
    for event in predicted(subject.classifier, content, recipe.words, subject.data, "validation"):
        if isinstance(event, PredictionProgress):
            yield event
        else:
            top1 = float(np.mean(event == subject.data["validation"].labels))
            yield Tried(recipe=recipe, content=content, top1=top1)


def predicted(
    classifier: Classifier, content: bytes, name: str, data: DataSet, split: SplitName
) -> Iterator[PredictionProgress | Predicted]:
    """What a changed file of a classifier predicts of a split: progress, and the classes (n,) at last."""
    changed = replace(classifier, name=name, onnx=OnnxModel(content, threads=THREADS))
    return live_predictions(changed, data, split)


# -- latency ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """Timings in one run, and what they were made with."""

    timings: dict[str, Timing]
    key: TableKey
    notes: tuple[str, ...]


def time_together(contents: dict[str, bytes], *, batch: int, threads: int, seconds: float) -> Timed:
    """Files timed in turn in one run, beside the reference network, for at most so many seconds each.

    Raises UsageError for a batch that a file cannot take.
    """
    lab = Lab(get_runtime(batch=batch, threads=threads), reference_of(get_space("compofa-mbv3-cifar")))
    loads = {name: partial(_load, content, batch, threads) for name, content in contents.items()}
    rule = replace(NET_RULE, tolerance=0.004, max_bursts=100_000, max_seconds=seconds * len(contents))
    timed = lab.time_now(loads, traced=False, rule=rule)
    return Timed(timings={name: m.timing for name, m in timed.items()}, key=lab.runtime.key, notes=tuple(lab.words()))


def _load(content: bytes, batch: int, threads: int) -> LoadedOnnx:
    model = OnnxModel(content, threads=threads)
    return LoadedOnnx(model, np.random.default_rng(0).normal(size=model.input_shape(batch)).astype(np.float32))


def run_batch(name: str, model: OnnxModel, batch: int | None) -> int:
    """The batch that a file is timed with: the asked one, else its own, else 1. Raises UsageError, MismatchError."""
    fixed = model.inputs[0].shape[0]
    if isinstance(fixed, int) and batch not in (None, fixed):
        raise UsageError(f"--batch must be {fixed} for {name}, whose batch is fixed, but got {batch}")
    if None in model.input_shape(1)[1:]:
        raise MismatchError(f"{name} must have an input of a fixed size to be timed, but has {model.inputs[0].shape}")
    return fixed if isinstance(fixed, int) else batch or 1


# -- choice ----------------------------------------------------------------------------------------------------


def choose(tried: Sequence[Tried]) -> int:
    """Which recipe to take, of those from the plainest on: `RULE`. Where nothing was timed, latency costs nothing."""
    best = 0
    for i, one in enumerate(tried):
        if one.top1 - tried[best].top1 >= GAIN + PRICE * _slower(one, tried[best]):
            best = i
    return best


def _slower(one: Tried, other: Tried) -> float:
    """By what share one takes longer; 0 where it is quicker, or nobody knows."""
    return max(0.0, one.timing.p50 / other.timing.p50 - 1) if one.timing is not None and other.timing is not None else 0.0
