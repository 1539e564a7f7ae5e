"""Images, labels, and the named splits that keep training, calibration, rewards and reports apart.

Legend: n = images, H = W = pixels. Images are uint8 RGB (n, H, W, 3), labels int64 (n,).

| split | what it may be used for |
| --- | --- |
| train | weights |
| calibration | batch-norm statistics |
| validation | rewards of a search, accuracy predictors |
| test | reports only |
"""

from __future__ import annotations

import hashlib
import io
import json
import zipfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ofasearch.errors import FormatError, NotFoundError, UsageError, WriteError
from ofasearch.records import cache_dir, write_atomic

Images = npt.NDArray[np.uint8]
Labels = npt.NDArray[np.int64]
SplitName = Literal["train", "calibration", "validation", "test"]
SPLIT_NAMES: tuple[SplitName, ...] = ("train", "calibration", "validation", "test")

SPLIT_SEED = 2022
CALIBRATION_SHARE = 0.04  # of the images that come for training: 2,000 of CIFAR-10's 50,000
VALIDATION_SHARE = 0.10  # 5,000 of CIFAR-10's 50,000
TEST_SHARE = 0.20  # where a data set brings no test images of its own
PIXEL_LIMIT = 4096 * 4096  # of one image; more is a decompression bomb, not a photograph


@dataclass(frozen=True, slots=True)
class ImageSet:
    """Images (n, H, W, 3) with labels (n,)."""

    images: Images
    labels: Labels

    def __len__(self) -> int:
        return len(self.labels)

    def take(self, index: npt.NDArray[np.int64]) -> ImageSet:
        """The images at these positions, copied."""
        return ImageSet(self.images[index], self.labels[index])


@dataclass(frozen=True, slots=True)
class DataSet:
    """A data set in its four splits."""

    name: str
    class_names: tuple[str, ...]
    splits: Mapping[SplitName, ImageSet]

    def __getitem__(self, split: SplitName) -> ImageSet:
        return self.splits[split]

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.class_names)


@dataclass(frozen=True, slots=True, kw_only=True)
class Preprocessing:
    """How images become inputs: RGB in [0, 1] (scale 1/255), minus mean, over std; `size` is the training resolution."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    size: int
    layout: str = "NCHW"
    scale: float = 1 / 255

    def to_json(self) -> dict[str, Any]:
        """As stored in files and in ONNX metadata."""
        return {"mean": list(self.mean), "std": list(self.std), "size": self.size, "layout": self.layout, "scale": self.scale}

    @staticmethod
    def from_json(record: Mapping[str, Any]) -> Preprocessing:
        """Inverse of `to_json`. Raises FormatError when a field is missing or of the wrong type."""
        try:
            mean, std = (tuple(float(v) for v in record[key]) for key in ("mean", "std"))
            size = int(record["size"])
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"preprocessing must hold mean, std and size, but got {record!r}") from error
        if not (len(mean) == len(std) == 3 and np.isfinite([*mean, *std]).all() and min(std) > 0):
            raise FormatError(
                f"preprocessing must hold mean, std and size, 3 finite means and positive deviations, but got {list(mean)} and {list(std)}"
            )
        return Preprocessing(mean=mean, std=std, size=size)

    def apply(self, images: Images) -> npt.NDArray[np.float32]:
        """Inputs (n, 3, H, W) of images (n, H, W, 3): a view with channels last in memory, as CPU kernels like it."""
        mean, std = (np.array(v, dtype=np.float32) for v in (self.mean, self.std))
        scaled = images.astype(np.float32) * np.float32(self.scale)
        return ((scaled - mean) / std).transpose(0, 3, 1, 2)


def channel_statistics(images: Images) -> tuple[tuple[float, float, float], tuple[float, float, float]]:
    """Mean and standard deviation per channel of pixels in [0, 1], rounded to 4 digits."""
    counts = np.stack([np.bincount(images[..., c].ravel(), minlength=256) for c in range(3)]).astype(np.float64)  # exact and small
    levels = np.arange(256) / 255
    mean = (counts * levels).sum(1) / counts.sum(1)
    std = np.sqrt((counts * (levels[None] - mean[:, None]) ** 2).sum(1) / counts.sum(1))
    m, s = ([round(float(v), 4) for v in values] for values in (mean, std))
    return (m[0], m[1], m[2]), (s[0], s[1], s[2])


def load_data(source: str) -> DataSet:
    """Read a data set: `digits`, a Parquet file, or a folder of `train*.parquet` and `test*.parquet`.

    Raises NotFoundError (no such source), FormatError (damaged or foreign file), UsageError (too few images).
    """
    if source == "digits":
        return _split("digits", *_digits())
    path = Path(source)
    if path.is_file() and path.suffix == ".parquet":
        images, names = _read_parquet([path])
        return _split(path.stem, images, None, names)
    if path.is_dir():
        train, test = (sorted(path.glob(f"{kind}*.parquet")) for kind in ("train", "test"))
        if not train:
            raise NotFoundError(f"data folder {path} must hold train*.parquet, but it has none; point --data at the folder with the files")
        images, names = _read_parquet(train)
        return _split(path.name, images, _read_parquet(test)[0] if test else None, names)
    raise NotFoundError(f"data must be 'digits', a .parquet file or a folder of them, but '{source}' is none of these")


def _split(name: str, training: ImageSet, test: ImageSet | None, class_names: tuple[str, ...]) -> DataSet:
    order = np.random.default_rng(SPLIT_SEED).permutation(len(training))
    if test is None:
        cut = round(TEST_SHARE * len(order))
        test, order = training.take(order[:cut]), order[cut:]
    n_calibration, n_validation = (round(share * len(order)) for share in (CALIBRATION_SHARE, VALIDATION_SHARE))
    if n_calibration < 8 or len(test) == 0:
        raise UsageError(
            f"data set {name} must have at least 200 training images and some test images, but has {len(order)} and {len(test)}"
        )
    parts = np.split(order, [n_calibration, n_calibration + n_validation])
    splits: dict[SplitName, ImageSet] = {
        "train": training.take(parts[2]),
        "calibration": training.take(parts[0]),
        "validation": training.take(parts[1]),
        "test": test,
    }
    return DataSet(name, class_names, splits)


def _digits() -> tuple[ImageSet, None, tuple[str, ...]]:
    """scikit-learn's 1,797 handwritten digits, 8x8 grey, enlarged to 32x32 RGB."""
    from sklearn.datasets import load_digits

    raw = load_digits()
    grey = np.clip(raw.images * (255 / 16), 0, 255).astype(np.uint8).repeat(4, axis=1).repeat(4, axis=2)
    images = np.repeat(grey[..., None], 3, axis=3)
    return ImageSet(images, raw.target.astype(np.int64)), None, tuple(str(d) for d in range(10))


# -- Parquet ---------------------------------------------------------------------------------------------------


def _read_parquet(paths: list[Path]) -> tuple[ImageSet, tuple[str, ...]]:
    cached = cache_dir() / "data" / f"{_stamp(paths)}.npz"
    found = _read_cache(cached)
    if found is None:
        found = _decode_parquet(paths)
        _write_cache(cached, *found)
    return found


def _stamp(paths: list[Path]) -> str:
    facts = [(str(p.resolve()), p.stat().st_size, p.stat().st_mtime_ns) for p in paths]
    return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]


def _read_cache(path: Path) -> tuple[ImageSet, tuple[str, ...]] | None:
    try:
        with path.open("rb") as handle, np.load(handle, allow_pickle=False) as file:
            return ImageSet(file["images"], file["labels"]), tuple(str(n) for n in file["names"])
    except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
        return None  # absent or damaged: decoded again


def _write_cache(path: Path, data: ImageSet, names: tuple[str, ...]) -> None:
    buffer = io.BytesIO()
    np.savez(buffer, images=data.images, labels=data.labels, names=np.array(names))
    try:
        write_atomic(path, buffer.getvalue())
    except WriteError:
        return  # a read-only home costs time, not correctness


def _decode_parquet(paths: list[Path]) -> tuple[ImageSet, tuple[str, ...]]:
    import pyarrow as pa
    import pyarrow.parquet as pq

    encoded: list[bytes] = []
    labels: list[int] = []
    names: tuple[str, ...] = ()
    for path in paths:
        try:
            table = pq.read_table(path)
            image_column = next(c for c in ("img", "image") if c in table.column_names)
            label_column = next(c for c in ("label", "fine_label") if c in table.column_names)
            encoded += [row["bytes"] for row in table.column(image_column).to_pylist()]
            labels += [int(v) for v in table.column(label_column).to_pylist()]
            names = names or _class_names(table.schema.metadata or {}, label_column)
        except StopIteration:
            raise FormatError(f"{path} must have columns img (or image) and label, but has {table.column_names}") from None
        except (pa.ArrowException, OSError, TypeError, KeyError, ValueError) as error:
            raise FormatError(f"{path} must be a readable Parquet image file, but it is not: {error}") from error
    if not encoded:
        raise FormatError(f"{paths[0]} must hold images, but it is empty")
    with ThreadPoolExecutor() as pool:
        decoded = list(pool.map(_decode, encoded, chunksize=256))
    if len({image.shape for image in decoded}) != 1:
        raise FormatError(f"{paths[0]} must hold images of one size, but sizes differ")
    classes = names or tuple(str(c) for c in range(max(labels) + 1))
    if min(labels) < 0 or max(labels) >= len(classes):
        raise FormatError(f"labels in {paths[0]} must be 0..{len(classes) - 1}, but range from {min(labels)} to {max(labels)}")
    return ImageSet(np.stack(decoded), np.array(labels, dtype=np.int64)), classes


def _decode(data: bytes) -> Images:
    from PIL import Image, UnidentifiedImageError

    try:
        with Image.open(io.BytesIO(data)) as image:
            if image.width * image.height <= PIXEL_LIMIT:
                return np.asarray(image.convert("RGB"))
            size = f"{image.width}x{image.height}"
    except (Image.DecompressionBombError, Image.DecompressionBombWarning) as error:
        raise FormatError(f"images must have at most {PIXEL_LIMIT} pixels, but one has more: {error}") from error
    except (UnidentifiedImageError, OSError, ValueError, TypeError, SyntaxError) as error:
        raise FormatError(f"images must be readable, but one is not: {error}") from error
    raise FormatError(f"images must have at most {PIXEL_LIMIT} pixels, but one has {size}")


def _class_names(metadata: Mapping[bytes, bytes], label_column: str) -> tuple[str, ...]:
    """Class names from the schema metadata that image hubs write, or nothing."""
    try:
        record: Any = json.loads(metadata.get(b"huggingface", b"{}"))
        return tuple(str(n) for n in record["info"]["features"][label_column]["names"])
    except (ValueError, KeyError, TypeError):
        return ()
