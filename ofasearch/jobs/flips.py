"""Compare networks image by image: what flips when one replaces another.

With data the networks are run; without, the predictions that came with a supernet are compared, or those of files that hold labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch import zoo
from ofasearch.data import DataSet, Preprocessing, Split, SplitName, load_data
from ofasearch.data.formats import CLASS_LIMIT
from ofasearch.errors import FormatError, UsageError
from ofasearch.evaluate.flips import nfr_matrix
from ofasearch.evaluate.saved import SPLITS, Labelled
from ofasearch.jobs.classifier import (
    Classifier,
    Predicted,
    PredictionProgress,
    assume_preprocessing,
    calibrated,
    check_fits,
    live_predictions,
    read_classifier,
    shipped_images,
    shipped_predictions,
)
from ofasearch.jobs.onnx_file import read_preprocessing
from ofasearch.records import check_writable, json_text, write_together
from ofasearch.report.flips import Comparison, contact_sheet, csv_text, record_of

MOST = 100  # networks of a family
FILES = {"flips": "flips.json", "flips_csv": "flips.csv", "flips_png": "flips.png"}


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipsRequest:
    """`ofasearch flips`. The first network is the old one, the second the new one; with more, all pairs are compared as well."""

    networks: tuple[str, ...]
    data: str | None = None
    split: SplitName = "test"
    supernet: str | None = None
    preprocessing: str | None = None  # of ONNX files that do not say theirs
    out: Path | None = None
    seed: int = 0  # of the bootstrap

    def __post_init__(self) -> None:
        if not 2 <= len(self.networks) <= MOST:
            raise UsageError(f"flips must be asked between 2 to {MOST} networks, but got {len(self.networks)}")
        if self.split not in SPLITS:
            raise UsageError(f"--split must be {' or '.join(SPLITS)}, but got {self.split}")
        if self.seed < 0:
            raise UsageError(f"--seed must be at least 0, but got {self.seed}")


@dataclass(frozen=True, slots=True, kw_only=True)
class FlipsResult:
    """The answer: `record` as in `flips.json`."""

    record: dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class _Judged:
    """What all networks predict of the same images, (n,) each."""

    classifiers: Sequence[Classifier]
    predicted: Sequence[Predicted]
    images: Labelled
    source: str
    notes: Sequence[str] = ()


def flips(request: FlipsRequest) -> Iterator[PredictionProgress | FlipsResult]:
    """Compare; progress on the way and the result at last.

    Raises the errors of `read_classifier`, `check_fits` and `shipped_predictions`, and UsageError where nobody says the labels or
    how images are preprocessed; all before a network is run.
    """
    if request.out is not None:
        check_writable(request.out / FILES["flips"])
    given = read_preprocessing(request.preprocessing) if request.preprocessing is not None else None
    for fetched in zoo.fetch_supernet(request.supernet):
        yield PredictionProgress(phase=f"fetching {fetched.name}", done=fetched.done, total=fetched.total or 0)
    classifiers = [read_classifier(text, supernet=request.supernet, preprocessing=given) for text in request.networks]
    data = load_data(request.data) if request.data is not None else None
    fed = [zoo.load_supernet(request.supernet).weights.preprocessing] if request.supernet is not None else []
    judged: _Judged | None = None
    for event in _live(classifiers, data, request.split, fed) if data is not None else _without_data(classifiers, request):
        if isinstance(event, _Judged):
            judged = event
        else:
            yield event
    assert judged is not None  # both end with it or raise
    yield FlipsResult(record=_answer(request, judged, data[request.split] if data is not None else None))


def _live(
    classifiers: Sequence[Classifier], data: DataSet, split: SplitName, others: Sequence[Preprocessing]
) -> Iterator[PredictionProgress | _Judged]:
    """Every network run on the split; first all are checked. `others` are further ways in which images may be preprocessed."""
    found, notes = assume_preprocessing(classifiers, others)
    fits = [check_fits(classifier, data, split) for classifier in found]
    predicted: list[Predicted] = []
    for i, classifier in enumerate(found):
        found[i] = calibrated(classifier, data)
        for event in live_predictions(found[i], data, split):
            if isinstance(event, np.ndarray):
                predicted.append(event)
            else:
                yield event
    yield _Judged(classifiers=found, predicted=predicted, images=fits[0], source="live", notes=notes)


def _without_data(classifiers: Sequence[Classifier], request: FlipsRequest) -> Iterator[_Judged]:
    """What came with the supernet, or with files alone."""
    if request.supernet is None and all(c.saved is not None for c in classifiers):
        images = _saved_images(classifiers, request.split)
        predicted = [c.saved.predictions(images) for c in classifiers if c.saved is not None]
        yield _Judged(classifiers=classifiers, predicted=predicted, images=images, source="saved")
        return
    trained = zoo.load_supernet(request.supernet or zoo.DEFAULT_SUPERNET)
    predicted = [shipped_predictions(classifier, trained, request.split) for classifier in classifiers]
    yield _Judged(classifiers=classifiers, predicted=predicted, images=shipped_images(trained, request.split), source="shipped")


def _saved_images(classifiers: Sequence[Classifier], split: SplitName) -> Labelled:
    """The images of saved predictions, by the labels that one of the files brings; the others are held against them.

    Raises UsageError where none brings any, MismatchError where a file holds another split.
    """
    files = [c.saved for c in classifiers if c.saved is not None]
    teacher = next((file for file in files if file.own_labels(split) is not None), None)
    labels = teacher.own_labels(split) if teacher is not None else None
    if teacher is None or labels is None:
        raise UsageError(f"labels of the {split} images must be known, but no file of predictions brings them; add --data (or --supernet)")
    highest = max(file.highest(split) for file in files)
    if highest >= CLASS_LIMIT:
        raise FormatError(f"predictions must be of at most {CLASS_LIMIT:,} classes, but a file holds class {highest}")
    names = teacher.card.get("classes")
    named = isinstance(names, list) and len(names) > highest and all(isinstance(name, str) for name in names)
    class_names = tuple(names) if named and names else tuple(map(str, range(highest + 1)))
    data = str(teacher.card.get("data", teacher.path))
    return Labelled(data=data, split=split, labels=labels.astype(np.int64), class_names=class_names)


# -- answering -------------------------------------------------------------------------------------------------


def _answer(request: FlipsRequest, judged: _Judged, part: Split | None) -> dict[str, Any]:
    """The record, written where a folder was asked for."""
    labels = judged.images.labels
    comparison = Comparison(
        old_name=judged.classifiers[0].name,
        new_name=judged.classifiers[1].name,
        old=judged.predicted[0],
        new=judged.predicted[1],
        images=judged.images,
        source=judged.source,
    )
    record = record_of(comparison, request.seed)
    record["networks"] = [
        c.to_json() | {"top1": float((predicted == labels).mean())}
        for c, predicted in zip(judged.classifiers, judged.predicted, strict=True)
    ]
    if len(judged.predicted) > 2:
        record["nfr_matrix"] = nfr_matrix(judged.predicted, labels).tolist()
    record["notes"] = list(judged.notes)
    if request.out is not None:
        record["files"] = write_flips(request.out, comparison, part, record)
    return record


def write_flips(folder: Path, comparison: Comparison, images: Split | None, record: dict[str, Any] | None = None) -> dict[str, str]:
    """Write `flips.json`, `flips.csv` and, where there are images, the contact sheet `flips.png`; their paths by name.

    `images` is the split that was compared; `record` what the JSON says instead of `record_of`. Raises WriteError.
    """
    files = {name: (folder / file).absolute() for name, file in FILES.items() if name != "flips_png" or images is not None}
    paths = {name: str(path) for name, path in files.items()}
    contents: dict[Path, bytes | str] = {files["flips_csv"]: csv_text(comparison)}
    if images is not None:
        contents[files["flips_png"]] = contact_sheet(comparison, images)
    contents[files["flips"]] = json_text({**(record if record is not None else record_of(comparison)), "files": paths})
    write_together(contents)
    return paths


__all__ = ["Comparison", "FlipsRequest", "FlipsResult", "PredictionProgress", "flips", "record_of", "write_flips"]
