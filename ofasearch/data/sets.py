"""Images, labels, and the named splits that keep training, calibration, rewards and reports apart.

Legend: n = images, B = batch, H = W = pixels. Images are uint8 RGB (n, H, W, 3), labels int64 (n,), -1 where unknown.

| split | what it may be used for |
| --- | --- |
| train | weights |
| calibration | batch-norm statistics |
| validation | rewards of a search, accuracy predictors |
| test | reports only |
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal, Protocol, Self

import numpy as np
import numpy.typing as npt

from ofasearch.errors import FormatError, MismatchError, UsageError

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
SplitName = Literal["train", "calibration", "validation", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "calibration", "validation", "test")

SPLIT_SEED = 2022
CALIBRATION_SHARE = 0.04  # of the images that come for training: 2,000 of CIFAR-10's 50,000
VALIDATION_SHARE = 0.10  # 5,000 of CIFAR-10's 50,000
TEST_SHARE = 0.20  # where a data set brings no test images of its own
SCALES = (1e-6, 1e3)  # of means and deviations: beyond them float32 overflows
CALIBRATION_MOST = 2000  # images; once-for-all recalibrates batch norm on as many
VALIDATION_MOST = 10_000  # images; as many as once-for-all holds out of ImageNet


class Split(Protocol):
    """The images of one split, wherever they are: in memory (`ImageSet`) or in files (`ofasearch.data.folder`)."""

    @property
    def labels(self) -> Labels:
        """Class of each image (n,)."""
        ...

    @property
    def pixels(self) -> int | None:
        """Side length of images of one fixed size; None where they are resized to what a network asks for."""
        ...

    def __len__(self) -> int: ...

    def take(self, index: npt.NDArray[np.int64]) -> Self:
        """The images at these positions."""
        ...

    def inputs(self, preprocessing: Preprocessing, *, resolution: int, batch: int) -> Iterator[npt.NDArray[np.float32]]:
        """Network inputs (B, 3, resolution, resolution), in order, at most `batch` at a time."""
        ...


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images (n, H, W, 3) with labels (n,)."""

    images: Images
    labels: Labels

    @property
    def pixels(self) -> int:
        """Side length of the images."""
        return int(self.images.shape[1])

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: npt.NDArray[np.int64]) -> ImageSet:
        """The images at these positions, copied."""
        return ImageSet(self.images[index], self.labels[index])

    def inputs(self, preprocessing: Preprocessing, *, resolution: int, batch: int) -> Iterator[npt.NDArray[np.float32]]:
        """Network inputs (B, 3, H, H), in order; small images are never resized.

        Raises MismatchError when another resolution is asked for.
        """
        if resolution != self.pixels:
            raise MismatchError(f"images must have the {resolution} pixels of the network's input, but have {self.pixels}")
        for start in range(0, len(self), batch):
            yield preprocessing.apply(self.images[start : start + batch])


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set in its four splits. Without class names it has no labels and serves calibration only."""

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[SplitName, Split]

    def __getitem__(self, split: SplitName) -> Split:
        return self.splits[split]

    @property
    def classes(self) -> int:
        """Number of classes; 0 where there are no labels."""
        return len(self.class_names)

    @property
    def pixels(self) -> int | None:
        """Side length of images of one fixed size; None where they are resized to what a network asks for."""
        return self.splits["calibration"].pixels


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How images become inputs: RGB in [0, 1] (scale 1/255), minus mean, over std; `size` is the training resolution.

    Photographs are first resized (bilinear) so that the shorter side has `resolution / crop_pct` pixels, rounded up, and
    cropped at the centre. Reference: once-for-all, evaluation at resolution / 0.875.
    """

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int
    layout: str = "NCHW"
    scale: float = 1 / 255
    crop_pct: float = 1.0

    def to_json(self) -> dict[str, Any]:
        """As stored in files and in ONNX metadata."""
        record = {"mean": list(self.mean), "std": list(self.std), "size": self.size, "layout": self.layout, "scale": self.scale}
        return record | ({"crop_pct": self.crop_pct} if self.crop_pct != 1 else {})

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Preprocessing:
        """Inverse of `to_json`. Raises FormatError when a field is missing or of the wrong type."""
        try:
            if not isinstance(record, Mapping):
                raise TypeError(f"it is {type(record).__name__}")
            mean, std = (tuple(float(v) for v in record[key]) for key in ("mean", "std"))
            size, crop_pct = int(record["size"]), float(record.get("crop_pct", 1.0))
            layout, scale = str(record.get("layout", "NCHW")), float(record.get("scale", 1 / 255))
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise FormatError(f"preprocessing must hold mean, std and size, but one is missing or no number: {error}") from error
        low, high = SCALES
        if not (len(mean) == len(std) == 3 and all(abs(m) <= high for m in mean) and all(low <= s <= high for s in std)):
            raise FormatError(
                f"preprocessing must hold mean, std and size, 3 means of at most {high:g} and 3 deviations of {low:g} to {high:g}, "
                f"but got {list(mean)} and {list(std)}"
            )
        if not 0.1 <= crop_pct <= 1:
            raise FormatError(f"preprocessing must crop a share of 0.1 to 1, but got {crop_pct}")
        if layout != "NCHW" or not math.isclose(scale, 1 / 255, rel_tol=1e-3):
            raise FormatError(f"preprocessing must be of layout NCHW and scale 1/255, but got {layout[:20]} and {scale:g}")
        return Preprocessing(mean=mean, std=std, size=size, crop_pct=crop_pct)

    def apply(self, images: Images) -> npt.NDArray[np.float32]:
        """Inputs (n, 3, H, W) of images (n, H, W, 3): a view with channels last in memory, as CPU kernels like it."""
        mean, std = (np.array(v, dtype=np.float32) for v in (self.mean, self.std))
        scaled = images.astype(np.float32) * np.float32(self.scale)
        return ((scaled - mean) / std).transpose(0, 3, 1, 2)


IMAGENET = Preprocessing(mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225), size=224, crop_pct=0.875)  # once-for-all's


def pixels_of(images: Split, preprocessing: Preprocessing, *, resolution: int, batch: int) -> Iterator[Images]:
    """What `images.inputs` gives before it is normalised: uint8 (B, H, H, 3), for networks that normalise by themselves."""
    scale = preprocessing.scale
    plain = replace(preprocessing, mean=(0.0, 0.0, 0.0), std=(scale, scale, scale))
    for inputs in images.inputs(plain, resolution=resolution, batch=batch):
        yield np.rint(inputs.transpose(0, 2, 3, 1)).astype(np.uint8)


def channel_statistics(images: Images) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation per channel of pixels in [0, 1], rounded to 4 digits."""
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(3)]).astype(np.float64)  # exact and small
    levels = np.arange(256) / 255
    mean = (counts * levels).sum(1) / counts.sum(1)
    std = np.sqrt((counts * (levels[None] - mean[:, None]) ** 2).sum(1) / counts.sum(1))
    m, s = ([round(float(v), 4) for v in values] for values in (mean, std))
    return (m[0], m[1], m[2]), (s[0], s[1], s[2])


def split_pool(
    name: str, pool: Split, class_names: tuple[str, ...], *, validation: Split | None = None, test: Split | None = None
) -> DataSet:
    """Cut the four splits out of the images that came for training, by a fixed seed.

    A validation or test set that the data brings is taken whole. Raises UsageError when there are too few images.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(len(pool))
    if test is None:
        cut = round(TEST_SHARE * len(order))
        test, order = pool.take(order[:cut]), order[cut:]
    n_calibration = min(round(CALIBRATION_SHARE * len(order)), CALIBRATION_MOST)
    n_validation = min(round(VALIDATION_SHARE * len(order)), VALIDATION_MOST) if validation is None else 0
    if n_calibration < 8 or len(test) == 0:
        raise UsageError(
            f"data set {name} must have at least 200 training images and some test images, but has {len(order)} and {len(test)}"
        )
    parts = np.split(order, [n_calibration, n_calibration + n_validation])
    splits: dict[SplitName, Split] = {
        "train": pool.take(parts[2]),
        "calibration": pool.take(parts[0]),
        "validation": pool.take(parts[1]) if validation is None else validation,
        "test": test,
    }
    return DataSet(name, class_names, splits)


def split_evaluation(name: str, pool: Split, class_names: tuple[str, ...]) -> DataSet:
    """The splits of a set that brings no training images, as the validation folder of ImageNet: most of it is for the report.

    Raises UsageError when there are too few images.
    """
    order = np.random.default_rng(SPLIT_SEED).permutation(len(pool))
    n_calibration = min(max(8, round(CALIBRATION_SHARE * len(order))), CALIBRATION_MOST)
    n_validation = min(round(VALIDATION_SHARE * len(order)), VALIDATION_MOST)
    if len(order) < 2 * n_calibration:
        raise UsageError(f"data set {name} must have at least 16 images, but has {len(order)}")
    parts = np.split(order, [n_calibration, n_calibration + n_validation])
    splits: dict[SplitName, Split] = {
        "train": pool.take(order[:0]),
        "calibration": pool.take(parts[0]),
        "validation": pool.take(parts[1]),
        "test": pool.take(parts[2]),
    }
    return DataSet(name, class_names, splits)
