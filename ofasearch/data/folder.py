"""Photographs in folders, one folder per class, as ImageNet comes: decoded by threads when they are needed.

Legend: n = images, B = batch.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import numpy.typing as npt

from ofasearch.data.formats import IMAGE_FORMATS, PIXEL_LIMIT, decode
from ofasearch.data.sets import Images, Labels, Preprocessing
from ofasearch.errors import FormatError

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
WORKERS = min(16, os.cpu_count() or 1)


@dataclass(frozen=True, slots=True)
class FolderSet:
    """Image files below `root`, with labels (n,). Decoding and resizing leave Python's lock, so threads do the work."""

    root: Path
    files: tuple[str, ...]
    labels: Labels
    workers: int = field(default=WORKERS, compare=False)

    @property
    def pixels(self) -> None:
        """Images are resized to what a network asks for."""
        return

    def __len__(self) -> int:
        return len(self.files)

    def take(self, index: npt.NDArray[np.int64]) -> FolderSet:
        """The images at these positions."""
        return FolderSet(self.root, tuple(self.files[i] for i in index), self.labels[index], self.workers)

    def inputs(self, preprocessing: Preprocessing, *, resolution: int, batch: int) -> Iterator[npt.NDArray[np.float32]]:
        """Network inputs (B, 3, resolution, resolution), in order; the next batch is decoded while this one is used.

        Raises FormatError, with the file's name, when an image cannot be read.
        """
        pool = ThreadPoolExecutor(self.workers)

        def submit(start: int) -> list[Future[Images]]:
            return [pool.submit(self._load, name, resolution, preprocessing.crop_pct) for name in self.files[start : start + batch]]

        try:
            ahead = submit(0)
            for start in range(batch, len(self) + batch, batch):
                now, ahead = ahead, submit(start)
                yield preprocessing.apply(np.stack([image.result() for image in now]))
        finally:
            pool.shutdown(cancel_futures=True)

    def _load(self, name: str, resolution: int, crop_pct: float) -> Images:
        return centre_crop(self.root / name, resolution, crop_pct)


def centre_crop(path: Path, resolution: int, crop_pct: float) -> Images:
    """One image (resolution, resolution, 3): shorter side resized to resolution / crop_pct, then cropped at the centre.

    Raises FormatError when it cannot be read. Reference: once-for-all's evaluation; the rounding is torchvision's.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=IMAGE_FORMATS) as opened:
            if opened.width * opened.height > PIXEL_LIMIT:
                raise FormatError(f"{path} must have at most {PIXEL_LIMIT} pixels, but has {opened.width}x{opened.height}")
            image = opened.convert("RGB")
    except FormatError:
        raise
    except Exception as error:  # decoders of many formats fail in many ways
        raise FormatError(f"{path} must be a readable image, but it is not: {error}; see `ofasearch data check`") from error
    short = math.ceil(resolution / crop_pct)
    width, height = image.size
    size = (max(short, int(short * width / height)), max(short, int(short * height / width)))
    if size[0] * size[1] > PIXEL_LIMIT:  # one row of a million pixels would be made a thousand times larger
        raise FormatError(f"{path} must have at most {PIXEL_LIMIT} pixels at {short} pixels a side, but has {width}x{height}")
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((side - resolution) / 2.0) for side in size)
    return np.asarray(image.crop((left, top, left + resolution, top + resolution)))


def class_folders(folder: Path) -> list[Path]:
    """The folders of a folder, sorted by name: the classes of an image folder."""
    return sorted(entry for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def list_images(folder: Path, classes: list[str] | None = None) -> FolderSet:
    """The images of an image folder: of its class folders, or lying in it without a label.

    `classes` names the class folders to look for, in the order of the labels. Raises FormatError when there are none.
    """
    files: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes if classes is not None else [""]):
        for parent, folders, names in os.walk(folder / name):
            folders.sort()
            below = Path(parent).relative_to(folder)
            found = sorted(n for n in names if n.lower().endswith(SUFFIXES) and not n.startswith("."))
            files += [str(below / n) for n in found]
            labels += [label if classes is not None else -1] * len(found)
            if classes is None:
                break
    if not files:
        raise FormatError(f"{folder} must hold images ({', '.join(SUFFIXES[:3])}, ...), but holds none")
    return FolderSet(folder, tuple(files), np.array(labels, dtype=np.int64))


def small_size(images: FolderSet, most: int = 96, looked_at: int = 32) -> bool:
    """Whether a folder seems to hold small square images of one size, which are better kept in memory."""
    from PIL import Image

    sizes = set()
    for name in images.files[:: max(1, len(images) // looked_at)]:
        try:
            with Image.open(images.root / name, formats=IMAGE_FORMATS) as image:
                sizes.add(image.size)
        except Exception:  # a damaged image is named when it is read
            return False
    return len(sizes) == 1 and all(width == height <= most for width, height in sizes)


def read_small(images: FolderSet) -> list[Images]:
    """The pixels of every image.

    Raises FormatError, with the file's name, when one cannot be read.
    """

    def read(name: str) -> Images:
        try:
            return decode((images.root / name).read_bytes())
        except FormatError as error:
            raise FormatError(f"{images.root / name}: {error}") from error

    with ThreadPoolExecutor(images.workers) as pool:
        return list(pool.map(read, images.files))
