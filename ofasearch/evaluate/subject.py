"""A supernet that is judged: scores of its networks, each with batch norm of its own, and what they are remembered by."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from functools import cached_property

import numpy as np
import numpy.typing as npt
from torch import nn

from ofasearch.data import DataSet, ImageSet, Preprocessing, Split, SplitName
from ofasearch.data.folder import FolderSet
from ofasearch.evaluate.score import (
    CALIBRATION_BATCH,
    accelerator,
    calibration_batches,
    calibration_images,
    predict_together,
    predictions,
    recalibrate_together,
    top1,
)
from ofasearch.evaluate.store import Key, Score
from ofasearch.space.core import Codes, Space
from ofasearch.supernet.elastic import channels_last
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import Weights


class Subject:
    """A supernet with the images it is judged on. `space` is that of the weights at the resolutions of interest."""

    def __init__(self, name: str, weights: Weights, space: Space, data: DataSet):
        self.name, self.space, self.data = name, space, data
        self.digest = weights.digest
        self._arrays, self._preprocessing = weights.arrays, weights.preprocessing
        self._digests: dict[SplitName, str] = {}

    @cached_property
    def _model(self) -> Supernet:
        model = Supernet.from_arrays(self.space, self._arrays)
        channels_last(model)
        return model.to(accelerator())

    def score(self, codes: Codes, split: SplitName) -> Score:
        """What one network (g,) predicts of a split, after its batch norm was recalibrated on the calibration split."""
        (network,) = self.calibrated([codes])
        predicted = predictions(network, self.data[split], self._preprocessing, resolution=self._resolution(codes))
        return Score(top1(predicted, self.data[split].labels), len(predicted), predicted)

    def calibrated(self, rows: Sequence[Codes]) -> list[nn.Module]:
        """Networks (g,) of one resolution, their batch norms recalibrated on the calibration split in one pass over it."""
        found: list[nn.Module] = [self._model.extract(codes) for codes in rows]
        recalibrate_together(found, calibration_batches(self.data, self._preprocessing, resolution=self._resolution(rows[0])))
        return found

    def predict(
        self, networks: Sequence[nn.Module], rows: Sequence[Codes], split: SplitName, index: npt.NDArray[np.int64]
    ) -> npt.NDArray[np.int64]:
        """What calibrated networks, those of the rows of codes (g,), predict of some images of a split, (networks, images)."""
        images, resolution = self.data[split].take(index), self._resolution(rows[0])
        parts = list(predict_together(networks, images, self._preprocessing, resolution=resolution))
        return np.stack([np.concatenate(column) for column in zip(*parts, strict=True)])

    def _resolution(self, codes: Codes) -> int:
        return self.space.resolutions[int(codes[0]) - 1]

    def key(self, codes: Codes, split: SplitName) -> Key:
        """What the score of a network is remembered by."""
        calibration = f"{self.calibration_images} images in batches of {CALIBRATION_BATCH}: {self._digest('calibration')}"
        return Key(self.digest, self.space.arch(codes).id, split, self._digest(split), calibration)

    @cached_property
    def calibration_images(self) -> int:
        """How many images set batch norm."""
        return len(calibration_images(self.data))

    def _digest(self, split: SplitName) -> str:
        if split not in self._digests:
            self._digests[split] = images_digest(self.data[split], self._preprocessing)
        return self._digests[split]


def images_digest(images: Split, preprocessing: Preprocessing) -> str:
    """Tells the inputs and labels of a split from others; photographs go by name, size and time of change."""
    sha = hashlib.sha256(repr(preprocessing.to_json()).encode())
    sha.update(np.ascontiguousarray(images.labels).tobytes())
    if isinstance(images, ImageSet):
        sha.update(repr(images.images.shape).encode())
        sha.update(np.ascontiguousarray(images.images).tobytes())
    elif isinstance(images, FolderSet):
        for file in images.files:
            facts = (images.root / file).stat()
            sha.update(repr((file, facts.st_size, facts.st_mtime_ns)).encode())
    return sha.hexdigest()[:24]


def first_images(data: DataSet, count: int | None, calibration: int | None = None) -> DataSet:
    """The data with at most the first `count` images of the splits that are scored, and the first `calibration` of that split.

    None keeps all.
    """
    most: dict[SplitName, int | None] = {"validation": count, "test": count, "calibration": calibration}
    cut = {split: _first(images, most.get(split)) for split, images in data.splits.items()}
    return DataSet(data.name, data.class_names, cut)


def _first(images: Split, count: int | None) -> Split:
    return images if count is None else images.take(np.arange(min(count, len(images))))
