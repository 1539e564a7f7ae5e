"""Predictions in files: what a network elsewhere said of the images of a split, or what `eval --save-predictions` kept.

| file | holds |
| --- | --- |
| .npz | per split an integer array (n,) named `validation` or `test`; optionally `labels.validation`, `labels.test`; ours also a `card` |
| .npy | one integer array (n,), of whichever split is asked for |
| .csv | a column `predicted` (class or its name); optionally `label`, and `file` by which rows are matched to the images of a folder |
| .txt | a class or its name per line |

Order is that of the split, unless files are named. Labels that a file brings must be those of the data. Files come from outside:
no pickle is read, sizes are limited, and what can be read in two ways is refused. Legend: n = images.
"""

from __future__ import annotations

import csv
import io
import json
import re
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from ofasearch.data import DataSet, SplitName
from ofasearch.data.folder import FolderSet
from ofasearch.errors import FormatError, MismatchError, NotFoundError, UsageError
from ofasearch.evaluate.flips import Classes
from ofasearch.records import parse_json, write_atomic

FORMAT = "ofasearch-predictions-1"
SPLITS: tuple[SplitName, ...] = ("validation", "test")  # train and calibration images are never judged by
ANY = "any"  # the split of a file that holds one without saying which
FILE_LIMIT = 64 * 2**20  # bytes, of a text or of all arrays of a file together
ROW_LIMIT = 2_000_000  # of a text; ImageNet's training set has 1.3 million images
LINE_LIMIT = 10_000  # characters
_NUMBER = re.compile(r"[0-9]{1,9}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelled:
    """The images that predictions are of: labels (n,) of a split, the names of all classes, and files where they have any."""

    data: str
    split: str
    labels: npt.NDArray[np.int64]
    class_names: tuple[str, ...]
    root: Path | None = None
    files: tuple[str, ...] | None = None  # below `root`


def labelled(data: DataSet, split: SplitName) -> Labelled:
    """A split of a data set as what predictions are held against.

    Raises MismatchError where it has no labelled images.
    """
    part = data[split]
    if data.classes == 0 or len(part) == 0:
        raise MismatchError(f"data must have labelled {split} images to score on, but {data.name} has none")
    root, files = (part.root, part.files) if isinstance(part, FolderSet) else (None, None)
    return Labelled(data=data.name, split=split, labels=part.labels, class_names=data.class_names, root=root, files=files)


Column = Classes | tuple[str, ...]  # classes, or how a text spells them


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """What a file says of the images of one split, row by row."""

    predicted: Column
    labels: Column | None = None
    files: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Saved:
    """Predictions from a file, not yet held against images: a table per split, or one under `ANY`."""

    path: Path
    tables: Mapping[str, Table]
    card: Mapping[str, Any] = field(default_factory=dict)  # what our own files say of themselves

    def predictions(self, images: Labelled) -> npt.NDArray[np.int64]:
        """Predicted class of each image (n,).

        Raises MismatchError (another split, number, order or set of images, other labels, a class that does not exist), FormatError
        (a class that cannot be told).
        """
        table, n = self._table(images.split), len(images.labels)
        rows = _rows(self.path, table.files, images) if table.files is not None else None
        if rows is None and len(table.predicted) != n:
            raise MismatchError(
                f"{self.path} must hold a prediction for each of the {n:,} {images.split} images of {images.data}, "
                f"but holds {len(table.predicted):,}"
            )
        if table.labels is not None:
            stated = _classes(table.labels, images.class_names, f"labels in {self.path}", rows)
            wrong = int((stated != images.labels).sum())
            if wrong:
                raise MismatchError(
                    f"labels in {self.path} must be those of the {images.split} images of {images.data}, but {wrong:,} of {n:,} differ; "
                    "were images or classes in another order?"
                )
        return _classes(table.predicted, images.class_names, f"predictions in {self.path}", rows)

    def own_labels(self, split: str) -> Classes | None:
        """The labels (n,) that the file itself brings as numbers; None where it does not."""
        stated = self._table(split).labels
        return stated if isinstance(stated, np.ndarray) else None

    def highest(self, split: str) -> int:
        """The highest class that the file holds as a number for a split; -1 where it holds none."""
        table = self._table(split)
        return max((int(column.max()) for column in (table.predicted, table.labels) if isinstance(column, np.ndarray)), default=-1)

    def _table(self, split: str) -> Table:
        found = self.tables.get(split) or self.tables.get(ANY)
        if found is None:
            raise MismatchError(f"{self.path} must hold predictions of the {split} split, but holds those of {', '.join(self.tables)}")
        return found


# -- holding against images ------------------------------------------------------------------------------------


def _classes(column: Column, names: Sequence[str], what: str, rows: npt.NDArray[np.int64] | None) -> npt.NDArray[np.int64]:
    """Classes (n,) of a column; `rows` (n,) says which row each image has, where it is not the image's own number."""
    found = column if isinstance(column, np.ndarray) else _spelled(column, names, what)
    found = found if rows is None else found[rows]
    lowest, highest = int(found.min()), int(found.max())
    if lowest < 0 or highest >= len(names):
        raise MismatchError(f"{what} must be classes 0 to {len(names) - 1}, but one is {lowest if lowest < 0 else highest}")
    return found.astype(np.int64)


def _spelled(texts: Sequence[str], names: Sequence[str], what: str) -> npt.NDArray[np.int64]:
    """Classes from names or numbers: all texts are of one kind. Names that are numbers themselves may leave it open which."""
    index = {name: i for i, name in enumerate(names)}
    by_name = [index.get(text, -1) for text in texts] if len(index) == len(names) else [-1] * len(texts)
    by_number = [int(text) if _NUMBER.fullmatch(text) else -1 for text in texts]
    numbered = -1 not in by_number and max(by_number) < len(names)
    if numbered and -1 not in by_name and by_name != by_number:
        raise FormatError(f"{what} must be clear, but could be numbers or names of classes; save numbers as .npy or .npz")
    if -1 not in by_name:
        return np.array(by_name, dtype=np.int64)
    if -1 in by_number:
        odd = texts[by_number.index(-1)]
        raise FormatError(f"{what} must be classes, all by number or all by name, but one is '{odd[:40]}'")
    return np.array(by_number, dtype=np.int64)


def _rows(path: Path, files: Sequence[str], images: Labelled) -> npt.NDArray[np.int64]:
    """The row of each image (n,) by its file's name: below the split's folder, with that folder's name, or in full.

    Rows of other images do no harm. Raises MismatchError where an image has no row, FormatError where it has two.
    """
    if images.files is None or images.root is None:
        raise MismatchError(
            f"rows of {path} name files, but images of {images.data} have none; leave the column out if their order is that of the data"
        )
    rows = {name.replace("\\", "/").removeprefix("./"): i for i, name in enumerate(files)}
    if len(rows) < len(files):
        raise FormatError(f"{path} must name every file once, but {len(files) - len(rows):,} rows name one again")
    wanted = [Path(name).as_posix() for name in images.files]
    prefixes = ("", f"{images.root.name}/", f"{images.root.as_posix()}/", f"{images.root.absolute().as_posix()}/")
    known = {prefix: [rows.get(prefix + name, -1) for name in wanted] for prefix in prefixes}
    best = min(known.values(), key=lambda found: found.count(-1))
    if -1 in best:
        raise MismatchError(
            f"{path} must have a row for each of the {len(wanted):,} {images.split} images of {images.data}, "
            f"but {best.count(-1):,} have none, such as {wanted[best.index(-1)]}"
        )
    return np.array(best, dtype=np.int64)


# -- reading ---------------------------------------------------------------------------------------------------


def read_saved(path: Path) -> Saved:
    """Read a file of predictions. Nothing in it is run.

    Raises NotFoundError, FormatError (damaged, foreign, too large, no integers), UsageError for another kind of file.
    """
    if path.suffix not in READERS:
        raise UsageError(f"predictions must be in a {', '.join(READERS)} file, but got {path.name}")
    if not path.is_file():
        raise NotFoundError(f"{path} must be an existing file of predictions, but there is none")
    if path.stat().st_size > FILE_LIMIT:
        raise FormatError(f"{path} must be at most {FILE_LIMIT >> 20} MiB of predictions, but is larger")
    try:
        found = READERS[path.suffix](path)
        if not all(len(table.predicted) for table in found.tables.values()):
            raise ValueError("it is empty")
    except FormatError:
        raise
    except Exception as error:  # archives, headers and tables from outside fail in many ways
        why = str(error) or type(error).__name__
        raise FormatError(f"{path} must hold predicted classes as a {path.suffix} file, but cannot be read: {why}") from error
    return found


def _read_npz(path: Path) -> Saved:
    wanted = {name for split in SPLITS for name in (split, f"labels.{split}")} | {"card"}
    with zipfile.ZipFile(path) as archive:
        parts = {name: info for info in archive.infolist() if (name := info.filename.removesuffix(".npy")) in wanted}
        if sum(info.file_size for info in parts.values()) > FILE_LIMIT:
            raise ValueError(f"its arrays claim more than {FILE_LIMIT >> 20} MiB")
        if any(info.compress_type not in (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED) for info in parts.values()):
            raise ValueError("it is packed in a way that numpy does not use")
        arrays = {name: _array(archive.read(info)) for name, info in parts.items()}
    found = [split for split in SPLITS if split in arrays]
    tables: dict[str, Table] = {split: Table(predicted=arrays[split], labels=arrays.get(f"labels.{split}")) for split in found}
    if not tables:
        raise ValueError(f"it has no array named {' or '.join(SPLITS)}")
    if any(table.labels is not None and len(table.labels) != len(table.predicted) for table in tables.values()):
        raise ValueError("it holds more or fewer labels than predictions")
    card = parse_json(arrays["card"].astype(np.uint8).tobytes().decode()) if "card" in arrays else {}
    return Saved(path=path, tables=tables, card=card if isinstance(card, dict) else {})


def _read_npy(path: Path) -> Saved:
    return Saved(path=path, tables={ANY: Table(predicted=_array(path.read_bytes()))})


def _array(content: bytes) -> Classes:
    """The integers (n,) of a .npy file: what its header claims is taken from the bytes that are there, and nothing else is made."""
    buffer = io.BytesIO(content)
    version = np.lib.format.read_magic(buffer)
    if version not in ((1, 0), (2, 0)):
        raise ValueError("it is of a version that integers do not need")
    read_header = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, _, dtype = read_header(buffer)
    if dtype.kind not in "iu" or len(shape) != 1 or shape[0] < 0:
        raise ValueError(f"an array must be one integer per image, but is {dtype} of shape {shape}")
    return np.frombuffer(content, dtype, count=shape[0], offset=buffer.tell())


def _read_csv(path: Path) -> Saved:
    with path.open(encoding="utf-8-sig", newline="") as file:
        rows = csv.reader(_lines(file), strict=True)
        header = [cell.strip() for cell in next(rows, [])]
        if header.count("predicted") != 1:
            raise ValueError(f"it must have one column 'predicted', but has {', '.join(header)[:100] or 'none'}")
        places = {name: header.index(name) for name in ("predicted", "label", "file") if name in header}
        columns: dict[str, list[str]] = {name: [] for name in places}
        for row in rows:
            if len(row) not in (0, len(header)):
                raise ValueError(f"row {len(columns['predicted']) + 1} has {len(row)} cells, not {len(header)}")
            for name, place in places.items() if row else ():
                columns[name].append(row[place].strip())
    found = {name: tuple(column) for name, column in columns.items()}
    return Saved(path=path, tables={ANY: Table(predicted=found["predicted"], labels=found.get("label"), files=found.get("file"))})


def _read_txt(path: Path) -> Saved:
    with path.open(encoding="utf-8-sig") as file:
        lines = [line.strip() for line in _lines(file)]
    while lines and not lines[-1]:
        lines.pop()
    return Saved(path=path, tables={ANY: Table(predicted=tuple(lines))})


def _lines(file: IO[str]) -> Iterator[str]:
    """The lines of a text, as long as there are not too many and none is too long."""
    for number, line in enumerate(file):
        if number > ROW_LIMIT or len(line) > LINE_LIMIT:
            raise ValueError(f"it has more than {ROW_LIMIT:,} lines, or one of more than {LINE_LIMIT:,} characters")
        yield line


READERS = {".npz": _read_npz, ".npy": _read_npy, ".csv": _read_csv, ".txt": _read_txt}


# -- writing ---------------------------------------------------------------------------------------------------


def former(path: Path, data: str, network: Mapping[str, Any]) -> Saved | None:
    """What lies where predictions of `network` on a data set of that name are to be written; None where nothing does.

    `network` is what `write_saved` takes. Raises UsageError (no .npz), FormatError (not a file of ours), MismatchError (of another
    network or data set): predictions of two networks in one file would be taken for those of one.
    """
    if path.suffix != ".npz":
        raise UsageError(f"predictions must be saved as .npz, but got {path.name}")
    if not path.exists():
        return None
    found = read_saved(path)
    if found.card.get("format") != FORMAT:
        raise FormatError(f"{path} must be a file that ofasearch wrote, to be added to, but is another's; choose another name")
    known = found.card.get("network")
    if not isinstance(known, dict) or known.get("digest") != network["digest"]:
        name = known.get("name") if isinstance(known, dict) else "another"
        raise MismatchError(f"{path} must hold predictions of {network['name']} to be added to, but holds those of {name}; choose another")
    if found.card.get("data") != data:
        raise MismatchError(f"{path} must hold predictions of {data} to be added to, but holds those of {found.card.get('data')}")
    return found


def write_saved(path: Path, images: Labelled, predicted: Classes, network: Mapping[str, Any]) -> None:
    """Write predictions (n,) of a split with its labels, or add them to what was written of the same network. Atomic.

    `network` names it: `name`, and a `digest` that differs for every other one. Raises as `former`, and WriteError.
    """
    there = former(path, images.data, network)
    arrays: dict[str, Classes] = {}
    for split, table in (there.tables if there else {}).items():
        arrays |= {name: a for name, a in ((split, table.predicted), (f"labels.{split}", table.labels)) if isinstance(a, np.ndarray)}
    kind = np.min_scalar_type(max(len(images.class_names) - 1, 0))
    arrays |= {images.split: predicted.astype(kind), f"labels.{images.split}": images.labels.astype(kind)}
    card = {"format": FORMAT, "network": dict(network), "data": images.data, "classes": list(images.class_names)}
    arrays["card"] = np.frombuffer(json.dumps(card).encode(), dtype=np.uint8)
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **arrays)  # type: ignore[arg-type]
    write_atomic(path, buffer.getvalue())


def is_saved(name: str) -> bool:
    """Whether a file of that name is one of predictions."""
    return Path(name).suffix in READERS
