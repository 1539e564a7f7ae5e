"""Files of measured networks, as others and we write them: what they hold, not yet whether it can be true.

JSON lines (ours), DyNAS-T's CSV, once-for-all's accuracy dictionaries, and the table of `supernet evaluate`. A file is known
by its content, not by its name. A card (`.json`) beside a file of ours says what it was measured on.
"""

from __future__ import annotations

import ast
import csv
import hashlib
import io
import json
import re
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch.errors import FormatError, NotFoundError, OfaSearchError, UsageError
from ofasearch.records import check_writable, json_text, read_json, write_together
from ofasearch.space.core import Settings, Space, Values
from ofasearch.space.costs import macs_of, params_of

PAIRS_LIMIT = 256 * 2**20  # bytes of one file, or of all files of a folder
CARD_FORMAT = "ofasearch-pairs-1"
KNOWN = "JSON lines with ks, e, d, r and top1, DyNAS-T's CSV, once-for-all's accuracy dictionary or the table of `supernet evaluate`"
DYNAS_COLUMNS = ("Sub-network", "Date", "Model Parameters", "Latency (ms)", "MACs", "Top-1 Acc (%)")
NET_IDS, MERGED, FOLDER_CARD = "net_id.dict", "acc.dict", "card.json"  # of once-for-all's folder; the card is ours
MEASURED = "top1_validation"  # the column of `supernet evaluate` that predictors may see


@dataclass(frozen=True, slots=True)
class Entry:
    """One measured network as its file spells it: settings, or an arch id."""

    where: str  # for messages: "line 3 of FILE"
    network: Mapping[str, Any] | str
    top1: Any


# -- reading ---------------------------------------------------------------------------------------------------


def read_entries(path: Path) -> tuple[list[Entry], Mapping[str, Any]]:
    """What a file or once-for-all's folder holds, and what its card says (nothing where there is none).

    Raises NotFoundError, FormatError (unknown, damaged, too large, or not what its card was written for).
    """
    contents = _contents(path)
    entries = [entry for part, content in contents.items() for entry in _entries(part, content)]
    return entries, _card(path, contents)


def _contents(path: Path) -> dict[Path, bytes]:
    """The bytes of a file, or of the files that a folder keeps accuracies in."""
    if path.is_dir():
        files = sorted((path / "src").glob("*.dict")) or [file for file in (path / MERGED,) if file.is_file()]
        if not files:
            raise FormatError(
                f"{path} must hold src/<resolution>.dict or {MERGED}, as once-for-all's accuracy folders do, but holds neither"
            )
    elif path.is_file():
        files = [path]
    else:
        raise NotFoundError(f"{path} must be an existing pairs file or folder, but there is none")
    if sum(file.stat().st_size for file in files) > PAIRS_LIMIT:
        raise FormatError(f"{path} must be at most {PAIRS_LIMIT >> 20} MiB, but is larger")
    return {file: file.read_bytes() for file in files}


def _entries(path: Path, content: bytes) -> list[Entry]:
    try:
        text = content.decode("utf-8-sig")
    except ValueError as error:
        raise FormatError(f"{path} must be {KNOWN}, but is no text: {error}") from error
    if not text.strip():
        return []
    return list(READERS[_kind(path, text)](path, text))


def _kind(path: Path, text: str) -> str:
    """Which reader understands the text."""
    start = text.lstrip()
    if start.startswith("{"):
        return "dictionary" if re.match(r'\{\s*("\s*\{|\})', start) else "lines"
    header = start.partition("\n")[0]
    if "Sub-network" in header:
        return "dynas"
    if "arch_id" in header:
        return "table"
    raise FormatError(f"{path} must be {KNOWN}, but begins like none of them")


def _read_lines(path: Path, text: str) -> Iterator[Entry]:
    """JSON lines: one object per line."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            where = f"line {number} of {path}"
            record = _object(where, line)
            yield Entry(where, record, record.get("top1"))


def _read_dictionary(path: Path, text: str) -> Iterator[Entry]:
    """Once-for-all: an object whose keys are JSON texts of settings with their `image_size`; values are percent."""
    for number, (key, value) in enumerate(_object(str(path), text).items(), start=1):
        where = f"entry {number} of {path}"
        yield Entry(where, _object(where, key), value)


def _object(where: str, text: str) -> Mapping[str, Any]:
    try:
        found = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise FormatError(f"{where} must be a JSON object, but cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise FormatError(f"{where} must be a JSON object, but is {type(found).__name__}")
    return found


def _read_dynas(path: Path, text: str) -> Iterator[Entry]:
    """DyNAS-T: settings as a Python literal in one column, percent in another."""
    for where, row in _rows(path, text, ("Sub-network", "Top-1 Acc (%)")):
        try:
            network = ast.literal_eval(row["Sub-network"])
        except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as error:  # it raises all of them
            raise FormatError(f"{where} must hold settings such as {{'ks': [3, ...]}}, but cannot be read: {error}") from error
        if not isinstance(network, dict):
            raise FormatError(f"{where} must hold settings such as {{'ks': [3, ...]}}, but holds {type(network).__name__}")
        yield Entry(where, network, _number(row["Top-1 Acc (%)"]))


def _read_table(path: Path, text: str) -> Iterator[Entry]:
    """The table of `supernet evaluate`: validation only, because what is fitted to test images cannot be reported on them."""
    for where, row in _rows(path, text, ("arch_id", MEASURED)):
        if row[MEASURED]:  # the others were measured on test alone
            yield Entry(where, row["arch_id"], _number(row[MEASURED]))


def _rows(path: Path, text: str, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    """The cells of these columns, row by row, with the line they end on."""
    try:
        reader = csv.DictReader(io.StringIO(text, newline=""))
        missing = [column for column in columns if column not in (reader.fieldnames or ())]
        if missing:
            raise FormatError(f"{path} must have a column {missing[0]!r}, but has none{_way_out(missing[0])}")
        for row in reader:
            yield f"line {reader.line_num} of {path}", {column: row[column] or "" for column in columns}
    except csv.Error as error:
        raise FormatError(f"{path} must be a CSV table, but cannot be read: {error}") from error


def _way_out(column: str) -> str:
    return "; evaluate with --split validation: test images only report" if column == MEASURED else ""


def _number(text: str) -> float | str:
    """A cell as a number, where it is one."""
    try:
        return float(text)
    except ValueError:
        return text


READERS: Mapping[str, Callable[[Path, str], Iterable[Entry]]] = {
    "lines": _read_lines,
    "dictionary": _read_dictionary,
    "dynas": _read_dynas,
    "table": _read_table,
}


# -- writing ---------------------------------------------------------------------------------------------------


def check_pairs_path(path: Path) -> None:
    """Raise now where pairs could not be written after long work: UsageError (a name of no format, a foreign folder), WriteError."""
    suffix = _suffix(path)
    if suffix not in WRITERS:
        raise UsageError(f"pairs must be written as .jsonl, .csv (DyNAS-T), .dict or a folder (once-for-all), but got '{path.name}'")
    ours = _is_card(_read_card(path))
    if suffix == "" and path.is_dir() and any(path.iterdir()) and not ours:
        raise UsageError(f"a folder for pairs must be new, empty or written as such before, but {path} holds other files")
    if card_path(path).exists() and not ours:
        raise UsageError(f"pairs have a card beside them, but {card_path(path)} is another file; choose another name")
    check_writable(path / NET_IDS if suffix == "" else path)
    check_writable(card_path(path))


def write_files(path: Path, settings: Settings, top1: Values, space: Space, card: Mapping[str, Any]) -> None:
    """Write measured networks of `space` in the format that the name asks for, with their card, atomically.

    Raises UsageError, WriteError, FormatError (accuracies that the format cannot tell from others).
    """
    check_pairs_path(path)
    suffix = _suffix(path)
    if suffix != ".jsonl" and ((top1 > 0) & (top1 <= 0.01)).any():
        raise FormatError(f"{path} must hold accuracies above 1 %, because smaller ones read as fractions, but one is not; use .jsonl")
    contents = {path / name if name else path: text.encode() for name, text in WRITERS[suffix](settings, top1, space).items()}
    measured = {file: content for file, content in contents.items() if suffix or file.parent.name == "src"}
    record = {"format": CARD_FORMAT, "pairs_sha256": _digest(measured), **card}
    write_together({**contents, card_path(path): json_text(record).encode()})
    if suffix == "":
        for stale in set((path / "src").glob("*.dict")) - set(contents):
            stale.unlink()


def card_path(path: Path) -> Path:
    """Where the card of a pairs file or folder lies."""
    return path / FOLDER_CARD if _suffix(path) == "" else path.with_suffix(".json")


def _suffix(path: Path) -> str:
    return "" if path.is_dir() else path.suffix


def _digest(contents: Mapping[Path, bytes]) -> str:
    sha = hashlib.sha256()
    for file in sorted(contents):
        sha.update(contents[file])
    return sha.hexdigest()


def _card(path: Path, contents: Mapping[Path, bytes]) -> Mapping[str, Any]:
    """What the card says. Raises FormatError when it was written for other pairs."""
    card = _read_card(path)
    if not _is_card(card):
        return {}
    if card.get("pairs_sha256") != _digest(contents):
        raise FormatError(
            f"{path} must hold the pairs that {card_path(path).name} was written for, but they were changed since; "
            "make them again, or remove that card"
        )
    return card


def _is_card(card: Mapping[str, Any]) -> bool:
    return card.get("format") == CARD_FORMAT


def _read_card(path: Path) -> Mapping[str, Any]:
    """The JSON object where a card would lie; empty where there is none, for other files may bear that name."""
    try:
        card = read_json(card_path(path)) if card_path(path).is_file() else {}
    except OfaSearchError:
        return {}
    return card if isinstance(card, dict) else {}


def _spelled(settings: Settings, space: Space) -> Iterator[dict[str, Any]]:
    """Settings for programs that look up every block: skipped ones, which mean nothing, hold a choice of the space."""
    fill = {"ks": space.kernels[0], "e": space.expands[0]}
    full = {name: np.where(values == 0, fill[name], values) if name in fill else values for name, values in settings.entries().items()}
    for row in zip(*(values.tolist() for values in full.values()), settings.r.tolist(), strict=True):
        yield dict(zip((*full, "r"), row, strict=True))


def _percent(top1: Values) -> list[float]:
    return [float(value) for value in np.round(100 * top1, 10)]


def _jsonl_text(settings: Settings, top1: Values, space: Space) -> dict[str, str]:
    columns = {**settings.entries(), "r": settings.r, "top1": top1}
    rows = zip(*(column.tolist() for column in columns.values()), strict=True)
    return {"": "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)}


def _dynas_text(settings: Settings, top1: Values, space: Space) -> dict[str, str]:
    """Dates and latencies, which nobody measured, stay empty."""
    known = space.with_resolutions(sorted({*space.resolutions, *settings.r.tolist()}))
    codes = known.from_settings(settings)
    params, macs = params_of(known)(codes), macs_of(known)(codes)
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(DYNAS_COLUMNS)
    for one, p, m, percent in zip(_spelled(settings, space), params, macs, _percent(top1), strict=True):
        writer.writerow([{"wid": None, **one, "r": [one["r"]]}, "", int(p), "", int(m), percent])
    return {"": text.getvalue()}


def _by_size(settings: Settings, top1: Values, space: Space) -> dict[int, dict[str, float]]:
    """Percent by once-for-all's spelling of a network, by image size."""
    found: dict[int, dict[str, float]] = {}
    for one, percent in zip(_spelled(settings, space), _percent(top1), strict=True):
        size = one.pop("r")
        found.setdefault(size, {})[json.dumps({**one, "image_size": size})] = percent
    return dict(sorted(found.items()))


def _dictionary_text(settings: Settings, top1: Values, space: Space) -> dict[str, str]:
    parts = _by_size(settings, top1, space).values()
    return {"": json.dumps({key: value for part in parts for key, value in part.items()}, indent=4)}


def _folder_texts(settings: Settings, top1: Values, space: Space) -> dict[str, str]:
    """As once-for-all's builder of accuracy data leaves its folder when it is done."""
    nets = sorted({json.dumps({name: one[name] for name in space.fields}) for one in _spelled(settings, space)})
    parts = _by_size(settings, top1, space)
    texts = {NET_IDS: json.dumps(nets, indent=4)}
    texts |= {f"src/{size}.dict": json.dumps(part, indent=4) for size, part in parts.items()}
    return texts | {MERGED: _dictionary_text(settings, top1, space)[""]}


WRITERS: Mapping[str, Callable[[Settings, Values, Space], dict[str, str]]] = {
    ".jsonl": _jsonl_text,
    ".csv": _dynas_text,
    ".dict": _dictionary_text,
    "": _folder_texts,
}
