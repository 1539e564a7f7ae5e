"""A network in int8: quantised as suits it, and compared with its float32 file by accuracy, flips, latency and size."""

from __future__ import annotations

import hashlib
import json
import math
import tempfile
from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch.data import DataSet, SplitName, load_data
from ofasearch.deploy.quantize import METHODS, PARTS, Method, Part, Recipe, prepared, read_graph, sensitive_parts, with_metadata
from ofasearch.errors import UsageError
from ofasearch.evaluate.flips import compare
from ofasearch.evaluate.saved import SPLITS
from ofasearch.jobs.classifier import Classifier, Predicted, PredictionProgress, check_fits, live_predictions, read_classifier
from ofasearch.jobs.deliver import onnx_bytes, prove
from ofasearch.jobs.exam import limited
from ofasearch.jobs.network import place_of
from ofasearch.jobs.onnx_file import THREADS, input_size, read_preprocessing
from ofasearch.jobs.recipes import RULE, Subject, Timed, Tried, calibration_of, choose, predicted, run_batch, time_together, try_recipes
from ofasearch.latency.machine import check_run, load_warning
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.latency.stopwatch import timing_json
from ofasearch.records import check_writable, parse_json, write_atomic

CALIBRATION_IMAGES = 500  # 2,000 are no better: outliers widen the ranges (benchmarks/deploy/quantize.py)
SECONDS = 2.0  # of timing a file
FLOAT = "float32"  # the name of the original among the timed files
OF_FLOAT = (  # metadata that tell what was found of the float32 network; they stay, but as its own
    "measured", "machine", "device", "latency_ms", "latency_source", "predicted_top1", "predicted_top1_source", "validation", "reward",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeRequest:
    """`ofasearch quantize`; the fields are the command's options. None: what suits the network."""

    model: str  # a subnet.pt, an arch id, or any ONNX file
    out: Path
    data: str
    supernet: str | None = None
    preprocessing: str | None = None  # of ONNX files that do not say theirs
    per_channel: bool | None = None
    floating: tuple[Part, ...] | None = None
    method: Method = "minmax"
    reduce_range: bool = False
    calibration_images: int = CALIBRATION_IMAGES
    images: int | None = None  # of the validation split
    timed: bool = True
    batch: int | None = None
    threads: int = 1
    seconds: float = SECONDS

    def __post_init__(self) -> None:
        if self.out.suffix != ".onnx":
            raise UsageError(f"-o must be an .onnx file, such as {self.out.stem or 'subnet'}.int8.onnx, but got '{self.out.name}'")
        if not set(self.floating or ()) <= set(PARTS):
            raise UsageError(f"--exclude must be none or of {', '.join(PARTS)}, but got '{', '.join(self.floating or ())[:80]}'")
        if self.method not in METHODS:
            raise UsageError(f"--method must be one of {', '.join(METHODS)}, but got '{self.method}'")
        if not 0 < self.seconds < math.inf:
            raise UsageError(f"--seconds must be positive, but got {self.seconds}")
        check_run(batch=self.batch or 1, threads=self.threads)


@dataclass(frozen=True, slots=True, kw_only=True)
class QuantizeResult:
    """The answer."""

    record: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Source:
    """The float32 network: what it predicts with, its file, and what the file says of itself."""

    classifier: Classifier
    content: bytes
    metadata: Mapping[str, str]
    size_bytes: int


def quantize(request: QuantizeRequest) -> Iterator[PredictionProgress | QuantizeResult]:
    """Quantise, compare, write; progress on the way and the result at last. Nothing is written before all is known.

    Raises the errors of `read_classifier` and `check_fits`, FormatError (what cannot be quantised), CalibrationError (too few
    images to calibrate on), UsageError, WriteError.
    """
    check_writable(request.out)
    data = limited(load_data(request.data), request.images, None)
    source = _source(request, data)
    subject = _subject(request, source, data)
    batch = run_batch(source.classifier.name, subject.model, request.batch)
    tried: list[Tried] = []
    with tempfile.TemporaryDirectory() as folder:
        schemes = (False, True) if request.per_channel is None else (request.per_channel,)
        base = Recipe(method=request.method, reduce_range=request.reduce_range)
        for event in try_recipes(subject, base, schemes, request.floating, Path(folder)):
            if isinstance(event, Tried):
                tried.append(event)
            else:
                yield event
    timed = None
    if request.timed:
        yield PredictionProgress(phase=f"timing {len(tried) + 1} files in turn", done=0, total=1)
        files = {FLOAT: source.content, **{str(i): one.content for i, one in enumerate(tried)}}
        timed = time_together(files, batch=batch, threads=request.threads, seconds=request.seconds)
        tried = [replace(one, timing=timed.timings[str(i)]) for i, one in enumerate(tried)]
    chosen = choose(tried)
    record = yield from _judged(subject, source, tried, chosen)
    record |= _latency(timed, tried[chosen], batch, request.threads)
    content = with_metadata(tried[chosen].content, _metadata(subject, source, tried[chosen], record))
    record["int8"]["size_bytes"] = len(content)
    write_atomic(request.out, content)
    yield QuantizeResult(record={"onnx": str(request.out.absolute()), **record, "notes": _notes(record, timed)})


# -- what is quantised -----------------------------------------------------------------------------------------


def _source(request: QuantizeRequest, data: DataSet) -> _Source:
    """The network that is named. Raises the errors of `read_classifier`, `read_subnet` and `prove`."""
    if request.model.endswith(".onnx"):
        given = read_preprocessing(request.preprocessing) if request.preprocessing is not None else None
        classifier = read_classifier(request.model, preprocessing=given)
        assert classifier.onnx is not None
        path = Path(request.model)
        return _Source(classifier=classifier, content=read_graph(path), metadata=classifier.onnx.metadata, size_bytes=path.stat().st_size)
    from ofasearch.jobs.subnet import read_subnet

    subnet = read_subnet(request.model, supernet=request.supernet, data=data if place_of(request.model) is None else None)
    content = onnx_bytes(subnet)
    prove(subnet, content, data)
    model = OnnxModel(content, threads=THREADS)
    classifier = Classifier(
        name=subnet.arch.id if place_of(request.model) is None else request.model,
        kind="onnx",
        digest=hashlib.sha256(content).hexdigest(),
        classes=subnet.classes,
        class_names=subnet.class_names,
        preprocessing=subnet.preprocessing,
        onnx=model,
    )
    return _Source(classifier=classifier, content=prepared(content), metadata=model.metadata, size_bytes=len(content))


def _subject(request: QuantizeRequest, source: _Source, data: DataSet) -> Subject:
    """Raises as `check_fits`, before anything is run."""
    classifier = source.classifier
    for split in SPLITS:
        check_fits(classifier, data, split)
    images, batch = calibration_of(classifier, data, request.calibration_images, request.method)
    assert classifier.preprocessing is not None  # or check_fits would have raised
    return Subject(
        classifier=classifier, content=source.content, preprocessing=classifier.preprocessing, data=data, calibration=images, batch=batch
    )


# -- what was found --------------------------------------------------------------------------------------------


def _judged(subject: Subject, source: _Source, tried: list[Tried], chosen: int) -> Generator[PredictionProgress, None, dict[str, Any]]:
    """The answer but for latency: all recipes on validation, the chosen one and the original on test as well."""
    found: dict[tuple[str, SplitName], Predicted] = {}
    for split in SPLITS:
        found[FLOAT, split] = yield from _last(live_predictions(subject.classifier, subject.data, split))
    one = tried[chosen]
    found["int8", "test"] = yield from _last(predicted(subject.classifier, one.content, "int8", subject.data, "test"))
    labels = {split: subject.data[split].labels for split in SPLITS}
    before, after = found[FLOAT, "test"], found["int8", "test"]
    old = {"validation_top1": float(np.mean(found[FLOAT, "validation"] == labels["validation"])), "size_bytes": source.size_bytes}
    new = {"validation_top1": one.top1, "size_bytes": len(one.content)}
    return {
        "model": subject.classifier.name,
        "recipe": _recipe_json(subject, one.recipe),
        "fp32": old | {"test_top1": float(np.mean(before == labels["test"]))},
        "int8": new | {"test_top1": float(np.mean(after == labels["test"]))},
        "flips": compare(before, after, labels["test"]).to_json(),
        "candidates": [t.to_json() | {"chosen": i == chosen} for i, t in enumerate(tried)],
        "rule": RULE,
        "data": subject.data.name,
        "validation_n": len(labels["validation"]),
        "calibration_images": len(subject.calibration),
    }


def _last(events: Iterator[PredictionProgress | Predicted]) -> Generator[PredictionProgress, None, Predicted]:
    """Pass progress on; give the predictions back."""
    for event in events:
        if isinstance(event, PredictionProgress):
            yield event
        else:
            return event
    raise AssertionError("predictions end with classes")


def _recipe_json(subject: Subject, recipe: Recipe) -> dict[str, Any]:
    parts = sensitive_parts(subject.content)
    return {
        "format": "QDQ",
        "activations": "uint8",
        "weights": "int8",
        "per_channel": recipe.per_channel,
        "floating": list(recipe.floating),
        "float_nodes": [name for part in recipe.floating for name in parts[part]],
        "method": recipe.method,
        "reduce_range": recipe.reduce_range,
    }


def _latency(timed: Timed | None, one: Tried, batch: int, threads: int) -> dict[str, Any]:
    """What was timed, in one run; nothing where nothing was."""
    if timed is None or one.timing is None:
        return {}
    before = timed.timings[FLOAT]
    return {
        "latency": {"fp32": timing_json(before), "int8": timing_json(one.timing)},
        "latency_ratio": one.timing.p50 / before.p50,
        "device": timed.key.device,
        "runtime": timed.key.runtime,
        "threads": threads,
        "batch": batch,
    }


def _metadata(subject: Subject, source: _Source, one: Tried, record: Mapping[str, Any]) -> dict[str, str]:
    """What the int8 file says of itself: what the float32 file said, and what was done. No timings: same inputs, same bytes."""
    size = input_size(subject.classifier.name, subject.model, subject.preprocessing, subject.calibration)
    kept = {key: value for key, value in sorted(source.metadata.items()) if key not in OF_FLOAT}
    kept["preprocessing"] = json.dumps({**subject.preprocessing.to_json(), "size": size})
    told = {key: _value(source.metadata[key]) for key in OF_FLOAT if key in source.metadata}
    done = {
        **record["recipe"],
        "calibration_images": record["calibration_images"],
        "data": record["data"],
        "validation_top1": one.top1,
        "test_top1": record["int8"]["test_top1"],
        "flips": record["flips"],
        "fp32": {"sha256": subject.classifier.digest, **record["fp32"], **told},
        "runtime": f"onnxruntime {_version()}",
    }
    return kept | {"quantization": json.dumps(done)}


def _version() -> str:
    import onnxruntime

    return str(onnxruntime.__version__)


def _value(text: str) -> Any:
    """What a metadata text says."""
    try:
        return parse_json(text)
    except ValueError:
        return text


def _notes(record: Mapping[str, Any], timed: Timed | None) -> list[str]:
    """What the user should know before the file is deployed."""
    notes = list(timed.notes) if timed is not None else ["latency was not measured: recipes were compared by accuracy alone"]
    ratio = record.get("latency_ratio")
    if ratio is not None and ratio > 1:
        notes.append(f"int8 is no faster here: it takes {ratio:.2f} times as long as float32 at batch {record['batch']}")
    lost = record["fp32"]["test_top1"] - record["int8"]["test_top1"]
    if lost > 0.01:
        notes.append(f"int8 loses {100 * lost:.1f} points of test top-1: try --method entropy, or --reduce-range on x86 without VNNI")
    warning = load_warning() if timed is not None else None
    return notes + ([warning] if warning else [])


__all__ = ["PredictionProgress", "QuantizeRequest", "QuantizeResult", "quantize"]
