"""Look a whole data set over: what is in it, and which files are damaged."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from ofasearch.data.folder import WORKERS
from ofasearch.data.formats import decode, parquet_rows
from ofasearch.data.load import IDX_PLACES, KNOWN, image_parts, load_data, locate, parquet_files
from ofasearch.data.sets import SPLIT_NAMES, DataSet
from ofasearch.errors import FormatError, NotFoundError

CHUNK = 256  # images between two reports


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckProgress:
    """How many encoded images were decoded."""

    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class CheckResult:
    """What a data set holds. `damaged` and `digests` (file -> right, by the published md5) tell what is wrong with it."""

    name: str
    images: int
    classes: tuple[str, ...]
    per_class: tuple[int, int]  # fewest and most images of a class, all splits together
    sizes: dict[str, int]  # "WxH" -> images, the commonest first
    splits: dict[str, int]  # empty when damage keeps the set from being loaded
    damaged: tuple[tuple[str, str], ...]  # name, reason
    digests: dict[str, bool]


def check_data(source: str) -> Iterator[CheckProgress | CheckResult]:
    """Decode every image of a data set and report.

    Raises NotFoundError, FormatError (a file that is no image set at all), UsageError (too few images).
    """
    if source == "digits":
        yield _of_loaded(load_data(source), {})
        return
    path = locate(source)
    digests = _digests(source, path)
    readers, labels, classes = _encoded(path)
    if not readers:
        yield _of_loaded(load_data(source), digests)
        return
    sizes: dict[str, int] = {}
    damaged: list[tuple[str, str]] = []
    names = list(readers)
    with ThreadPoolExecutor(WORKERS) as pool:
        for start in range(0, len(names), CHUNK):
            part = names[start : start + CHUNK]
            for name, (size, reason) in zip(part, pool.map(lambda n: _try(readers[n]), part), strict=True):
                if reason:
                    damaged.append((name, reason))
                else:
                    sizes[size] = sizes.get(size, 0) + 1
            yield CheckProgress(done=min(start + CHUNK, len(names)), total=len(names))
    splits: dict[str, int] = {}
    if not damaged:
        loaded = load_data(source)
        splits, classes = {name: len(loaded[name]) for name in SPLIT_NAMES}, loaded.class_names
    yield CheckResult(
        name=path.name,
        images=len(names),
        classes=classes,
        per_class=_per_class(np.asarray(labels, dtype=np.int64), len(classes)),
        sizes=dict(sorted(sizes.items(), key=lambda pair: -pair[1])),
        splits=splits,
        damaged=tuple(damaged),
        digests=digests,
    )


def _encoded(path: Path) -> tuple[dict[str, Callable[[], bytes]], list[int], tuple[str, ...]]:
    """Every encoded image of a source by name, read when called; none for kinds that keep plain pixels."""
    training, testing = parquet_files(path)
    files = [*training, *testing] if training else []
    readers: dict[str, Callable[[], bytes]] = {}
    if files:
        labels: list[int] = []
        names: tuple[str, ...] = ()
        for file in files:
            rows, more, found = parquet_rows(file)
            readers |= {f"{file.name} row {i}": (lambda row=row: row) for i, row in enumerate(rows)}  # type: ignore[misc]
            labels, names = labels + more, names or found
        return readers, labels, names or tuple(str(c) for c in range(max(labels, default=-1) + 1))
    if path.is_file():
        return {}, [], ()
    try:
        parts, classes = image_parts(path)
    except NotFoundError:
        return {}, [], ()  # another kind of folder, or none: loading tells
    for part in parts.values():
        readers |= {str(part.root / name): (part.root / name).read_bytes for name in part.files}
    return readers, [int(label) for part in parts.values() for label in part.labels], classes


def _try(read: Callable[[], bytes]) -> tuple[str, str]:
    """(size, "") of a good image, ("", reason) of a damaged one."""
    try:
        height, width, _ = decode(read()).shape
    except (FormatError, OSError) as error:
        return "", str(error)
    return f"{width}x{height}", ""


def _per_class(labels: np.ndarray, classes: int) -> tuple[int, int]:
    if classes == 0 or labels.min(initial=0) < 0:
        return 0, 0
    counts = np.bincount(labels, minlength=classes)
    return int(counts.min()), int(counts.max())


def _of_loaded(data: DataSet, digests: dict[str, bool]) -> CheckResult:
    labels = np.concatenate([data[name].labels for name in SPLIT_NAMES])
    return CheckResult(
        name=data.name,
        images=len(labels),
        classes=data.class_names,
        per_class=_per_class(labels, data.classes),
        sizes={f"{data.pixels}x{data.pixels}": len(labels)},
        splits={name: len(data[name]) for name in SPLIT_NAMES},
        damaged=(),
        digests=digests,
    )


def _digests(source: str, path: Path) -> dict[str, bool]:
    """Which of the published files are there, and whether each is the published one."""
    known = KNOWN.get(source)
    published = known.files if known else {name: md5 for k in ("cifar10", "cifar100") for name, md5 in KNOWN[k].files.items()}
    found = {}
    for name, md5 in published.items():
        places = [path] if path.name == name else [path / place / name for place in IDX_PLACES]
        file = next((file for file in places if file.is_file()), None)
        if file is not None:
            with file.open("rb") as handle:
                found[name] = hashlib.file_digest(handle, "md5").hexdigest() == md5
    return found


__all__ = ["CheckProgress", "CheckResult", "check_data"]
