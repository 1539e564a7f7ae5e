"""Photographs in folders, one folder per class, as ImageNet comes: decoded by threads when they are needed.

Legend: n = images, B = batch.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from ofasearch.data.formats import IMAGE_FORMATS, PIXEL_LIMIT, decode
from ofasearch.data.sets import Images, Labels, Preprocessing
from ofasearch.errors import FormatError

if TYPE_CHECKING:
    from PIL import Image

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff")
WORKERS = min(16, os.cpu_count() or 1)
CROP_SCALE = (0.08, 1.0)  # of an image's area
CROP_ASPECT = (3 / 4, 4 / 3)  # width over height
CROP_TRIES = 10


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

    with _opened(path) as opened:
        image = _rgb(opened)
    short = math.ceil(resolution / crop_pct)
    width, height = image.size
    size = (max(short, int(short * width / height)), max(short, int(short * height / width)))
    if size[0] * size[1] > PIXEL_LIMIT:  # one row of a million pixels would be made a thousand times larger
        raise FormatError(f"{path} must have at most {PIXEL_LIMIT} pixels at {short} pixels a side, but has {width}x{height}")
    if size != image.size:
        image = image.resize(size, Image.Resampling.BILINEAR)
    left, top = (round((side - resolution) / 2.0) for side in size)
    return np.asarray(image.crop((left, top, left + resolution, top + resolution)))


def random_crop(
    path: Path, resolution: int, rng: np.random.Generator, *, scale: tuple[float, float] = CROP_SCALE, flip: bool = True
) -> Images:
    """One image (resolution, resolution, 3): a random box of it resized (bilinear), mirrored every second time if `flip`.

    `scale` is the least and the largest share of the image's area. A JPEG is decoded at a half, a quarter or an eighth of
    its size where the box keeps at least `resolution` pixels a side. Raises FormatError when it cannot be read.
    Reference: once-for-all's training, torchvision's RandomResizedCrop; the filter may look beyond the edges of the box.
    """
    from PIL import Image

    with _opened(path) as opened:
        box = random_box(opened.width, opened.height, rng, scale)
        shrunk = _shrink(opened, box, resolution)
        image = _rgb(opened)
    left, top, right, bottom = (side / shrunk for side in box)
    image = image.resize((resolution, resolution), Image.Resampling.BILINEAR, box=(left, top, right, bottom))
    if flip and rng.random() < 0.5:
        image = image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    return np.asarray(image)


def random_box(width: int, height: int, rng: np.random.Generator, scale: tuple[float, float] = CROP_SCALE) -> tuple[int, int, int, int]:
    """Left, top, right and bottom of a box: its share of the area is uniform in `scale`, its aspect log-uniform in 3/4 to 4/3.

    What does not fit is drawn again; after 10 draws it is the largest box of such an aspect at the centre.
    Reference: torchvision's RandomResizedCrop.
    """
    low, high = CROP_ASPECT
    for _ in range(CROP_TRIES):
        area = width * height * rng.uniform(*scale)
        aspect = math.exp(rng.uniform(math.log(low), math.log(high)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, round(height * high)), min(height, round(width / low))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Image.Image]:
    """An image, not yet decoded; it is decoded inside the block.

    Raises FormatError, with the file's name, when it has too many pixels or cannot be read.
    """
    from PIL import Image

    try:
        with Image.open(path, formats=IMAGE_FORMATS) as image:
            if image.width * image.height > PIXEL_LIMIT:
                raise FormatError(f"{path} must have at most {PIXEL_LIMIT} pixels, but has {image.width}x{image.height}")
            yield image
    except FormatError:
        raise
    except Exception as error:  # decoders of many formats fail in many ways
        raise FormatError(f"{path} must be a readable image, but it is not: {error}; see `ofasearch data check`") from error


def _rgb(image: Image.Image) -> Image.Image:
    """The image decoded, as RGB; transparency is left out."""
    if image.mode == "RGB":
        image.load()
        return image
    if image.mode == "P" and isinstance(image.info.get("transparency"), bytes):
        image = image.convert("RGBA")  # PIL warns where such a palette becomes RGB at once
    return image.convert("RGB")


def _shrink(image: Image.Image, box: tuple[int, int, int, int], resolution: int) -> int:
    """Have a JPEG decoded smaller, as far as a box keeps `resolution` pixels a side; how many times smaller it will be."""
    spare = min(box[2] - box[0], box[3] - box[1]) // resolution
    factor = next((f for f in (8, 4, 2) if f <= spare), 1)
    width, height = image.size
    drafted = image.draft(None, (width // factor, height // factor)) if factor > 1 else None
    return round(width / drafted[1][2]) if drafted else 1  # other formats know no draft


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
