"""Where training images come from, batch by batch: from memory (small sets) or from files (photographs).

Legend: n = images, B = batch, H = r = pixels.
"""

from __future__ import annotations

import weakref
from collections import deque
from collections.abc import Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ofasearch.data import Images, ImageSet, Labels
from ofasearch.data.folder import CROP_SCALE, FolderSet, random_crop
from ofasearch.errors import FormatError, MismatchError, UsageError
from ofasearch.train.augment import crop_and_flip

REPLACEMENTS = 10  # tried for one unreadable image


@dataclass(frozen=True, slots=True)
class Request:
    """The images of one micro-batch."""

    index: npt.NDArray[np.int64]  # (B,) positions in the train split
    resolution: int  # pixels of the network's input
    key: tuple[int, ...]  # seeds every draw: np.random.default_rng(key)


class Source(Protocol):
    """Training images, cropped and mirrored at random. Equal requests bring equal images."""

    @property
    def labels(self) -> Labels:
        """Class of each image (n,)."""
        ...

    def __len__(self) -> int: ...

    def images(self, requests: Iterable[Request]) -> Iterator[Tensor]:
        """Images uint8 (B, r, r, 3), one tensor per request, in order."""
        ...

    def close(self) -> None:
        """Stop what is under way."""
        ...


class MemorySource:
    """Small images on `device`, padded by reflection: each batch is one gather of random crops. They are never resized."""

    def __init__(self, images: ImageSet, *, crop_padding: int, flip: bool, device: torch.device):
        pad = (crop_padding, crop_padding)
        self.labels, self._pixels, self._padding, self._flip = images.labels, images.pixels, crop_padding, flip
        self._padded = torch.from_numpy(np.pad(images.images, ((0, 0), pad, pad, (0, 0)), mode="reflect")).to(device)

    def __len__(self) -> int:
        return len(self.labels)

    def images(self, requests: Iterable[Request]) -> Iterator[Tensor]:
        """Images uint8 (B, H, H, 3) on the device, one tensor per request, in order.

        Raises MismatchError when another resolution is asked for.
        """
        for request in requests:
            if request.resolution != self._pixels:
                raise MismatchError(f"images must have the {request.resolution} pixels of the network's input, but have {self._pixels}")
            chosen = torch.tensor(request.index, device=self._padded.device)
            yield crop_and_flip(self._padded, chosen, self._padding, self._flip, np.random.default_rng(request.key))

    def close(self) -> None:
        """Nothing is under way between two batches."""


class FolderSource:
    """Photographs, decoded by a pool of threads while the step before them is computed.

    Threads, not processes: only opening a file and drawing a box are Python; decoding, resizing and mirroring leave Python's
    lock, and they are five sixths of the time of a photograph of 500x375 pixels. Threads write into the batch, where
    processes would send the pixels through a pipe; they start at once and end with the iterator.

    Each image draws from a generator of its own, made from the request's key and its place in the batch, so the images
    do not depend on the number of workers. With `skip_unreadable` another image of the same class, drawn likewise,
    replaces an unreadable one, for the label stays.
    """

    def __init__(
        self,
        images: FolderSet,
        *,
        flip: bool,
        workers: int,
        ahead: int = 2,  # batches in work beyond the one that is handed out
        skip_unreadable: bool = False,
        crop_scale: tuple[float, float] = CROP_SCALE,  # shares of an image's area
    ):
        if workers < 1 or ahead < 0 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
            raise UsageError(
                f"reading photographs needs at least 1 worker, 0 batches ahead and crops of a share in (0, 1], "
                f"but got {workers}, {ahead} and {crop_scale[0]} to {crop_scale[1]}"
            )
        self._set, self._flip, self._scale = images, flip, crop_scale
        self._workers, self._ahead, self._skip = workers, ahead, skip_unreadable
        self._pin = torch.cuda.is_available()
        self._runs: weakref.WeakSet[Generator[Tensor, None, None]] = weakref.WeakSet()
        self._skipped: set[str] = set()

    @property
    def labels(self) -> Labels:
        """Class of each image (n,)."""
        return self._set.labels

    @property
    def skipped(self) -> tuple[str, ...]:
        """The files that were replaced in the batches handed out so far, sorted."""
        return tuple(sorted(self._skipped))

    def __len__(self) -> int:
        return len(self._set)

    def images(self, requests: Iterable[Request]) -> Iterator[Tensor]:
        """Images uint8 (B, r, r, 3) in (on CUDA machines pinned) memory, one tensor per request, in order.

        A request is taken from `requests` when its batch is begun, `ahead` batches before it is handed out.
        Raises FormatError, with the file's name, when an image cannot be read and none may or can replace it.
        """
        run = self._run(requests)
        self._runs.add(run)
        return run

    def close(self) -> None:
        """End every iterator that `images` gave, and wait for the images that are being decoded."""
        for run in list(self._runs):
            run.close()

    def _run(self, requests: Iterable[Request]) -> Generator[Tensor, None, None]:
        pool = ThreadPoolExecutor(self._workers, thread_name_prefix="photographs")
        begun: deque[tuple[Tensor, list[Future[list[str]]]]] = deque()
        try:
            for request in requests:
                begun.append(self._begin(pool, request))
                if len(begun) > self._ahead:
                    yield self._finish(*begun.popleft())
            while begun:
                yield self._finish(*begun.popleft())
        finally:
            pool.shutdown(cancel_futures=True)

    def _begin(self, pool: ThreadPoolExecutor, request: Request) -> tuple[Tensor, list[Future[list[str]]]]:
        """The tensor of a batch, and the work that fills it."""
        shape = (len(request.index), request.resolution, request.resolution, 3)
        batch = torch.empty(shape, dtype=torch.uint8, pin_memory=self._pin)
        rows = batch.numpy()
        return batch, [pool.submit(self._fill, rows, place, request) for place in range(len(rows))]

    def _finish(self, batch: Tensor, work: list[Future[list[str]]]) -> Tensor:
        for image in work:
            self._skipped.update(image.result())
        return batch

    def _fill(self, rows: Images, place: int, request: Request) -> list[str]:
        """Decode one image into its row of the batch; the files that could not be read before it."""
        rng = np.random.default_rng((*request.key, place))
        chosen = int(request.index[place])
        unreadable: list[str] = []
        for position in self._candidates(chosen, rng):
            name = self._set.files[position]
            try:
                rows[place] = random_crop(self._set.root / name, request.resolution, rng, scale=self._scale, flip=self._flip)
                return unreadable
            except FormatError as error:
                if not self._skip:
                    raise FormatError(f"{error}; `--skip-unreadable` leaves such images out") from error
                unreadable.append(name)
        raise FormatError(
            f"{self._set.root / self._set.files[chosen]} must be a readable image, or others of its class must be, "
            f"but it is not and {len(unreadable) - 1} others are not; see `ofasearch data check`"
        )

    def _candidates(self, chosen: int, rng: np.random.Generator) -> Iterator[int]:
        """The image asked for, then others of its class that may replace it."""
        yield chosen
        others = np.flatnonzero(self.labels == self.labels[chosen])
        yield from rng.permutation(others[others != chosen])[:REPLACEMENTS].tolist()
