"""Latency tables as files: what there is, what one says, and taking them in, out, together and apart."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import median
from typing import Any

from ofasearch import zoo
from ofasearch.errors import FormatError, MismatchError, NotFoundError, UsageError
from ofasearch.latency.compare import Difference, diff, merge
from ofasearch.latency.ofa_yaml import is_ofa_yaml, load_ofa_yaml, save_ofa_yaml
from ofasearch.latency.roofline import DEVICES, estimated_table
from ofasearch.latency.table import (
    ANY,
    Correction,
    LatencyTable,
    Row,
    Shape,
    describe,
    layer_of,
    least_known,
    load_card,
    load_table,
    save_table,
)
from ofasearch.records import provenance
from ofasearch.space.families import get_space

SLOWEST = 10  # layers that `latency show` names


# -- looking ---------------------------------------------------------------------------------------------------


def list_tables() -> dict[str, Any]:
    """Every table that has a name: shipped ones, the user's own, and cards that are estimated when asked for.

    `tables` holds what can be used, `damaged` what lies there and cannot be read.
    """
    tables: list[dict[str, Any]] = []
    damaged = []
    for file in zoo.table_files():
        if file.card is None:
            damaged.append({"name": file.name, "path": str(file.path), "error": str(file.failure)})
            continue
        card = file.card
        record = {"name": file.name, "source": card.source, **asdict(card.key), "rows": sum(card.rows.values())}
        validation = card.facts.get("validation")
        if validation:
            record |= {"mape": validation["mape"], "kendall_tau": validation["kendall_tau"]}
        if isinstance(card.facts.get("date"), str):
            record["date"] = card.facts["date"]
        tables.append(record | {"path": str(file.path)})
    tables += [{"name": name, "source": "estimated", "device": name, "origin": device.source} for name, device in DEVICES.items()]
    return {"tables": sorted(tables, key=lambda record: record["name"]), "damaged": damaged}


def open_or_estimate(name: str, space: str | None, batch: int = 1) -> LatencyTable:
    """A table for itself, or the estimate of a known card for the layers of a space.

    Raises NotFoundError, FormatError, MismatchError.
    """
    if space is not None and _is_estimate(name):
        return estimated_table(get_space(space), DEVICES[name], batch=batch)
    return zoo.open_table(name)


def _is_estimate(name: str) -> bool:
    """Whether a name means a card's estimate and no file."""
    return name in DEVICES and not any(name in (file.name, file.path.stem) for file in zoo.table_files())


def show_table(name: str, *, layers: bool = False, resolution: int | None = None, space: str | None = None) -> dict[str, Any]:
    """What a table says: its key and card, how many rows of which source, how long the kinds of layers take.

    With a resolution, only rows that networks of that input can use. `layers` adds every row. Of a card that is
    estimated when asked for, and without a space, only what the estimate rests on.
    Raises NotFoundError, FormatError, MismatchError, UsageError (a resolution that the table does not know).
    """
    if space is None and _is_estimate(name):
        peaks = {("origin" if key == "source" else key): value for key, value in asdict(DEVICES[name]).items()}
        return peaks | {"source": "estimated", "note": "made for the layers of a space; add --space to see them"}
    table = open_or_estimate(name, space)
    rows: list[tuple[int, Shape, Row]] = [(at, shape, row) for (at, shape), row in table.rows.items()]
    if resolution is not None:
        if resolution not in table.inputs:
            raise UsageError(f"--resolution must be one that table {table.name} knows, {list(table.inputs)}, but got {resolution}")
        rows = [(resolution, shape, row) for shape, row in table.rows_at(resolution).items()]
    counts: dict[str, int] = {}
    kinds: dict[str, list[float]] = {}
    for _, shape, row in rows:
        counts[row.source] = counts.get(row.source, 0) + 1
        kinds.setdefault(str(shape[0]), []).append(row.ms)
    records = [_row_record(at, shape, row) for at, shape, row in rows]
    slowest = sorted(records, key=lambda record: -float(record["latency_ms"]))[:SLOWEST]
    return {
        "name": table.name,
        "source": table.source,
        **asdict(table.key),
        "rows": len(rows),
        "rows_by_source": counts,
        "resolutions": list(table.inputs),
        "tied_to_resolution": table.resolutions is not None,
        "correction": asdict(table.correction),
        "card": table.card,
        "kinds": [
            {"kind": kind, "rows": len(ms), "fastest_ms": min(ms), "median_ms": median(ms), "slowest_ms": max(ms)}
            for kind, ms in kinds.items()
        ],
        "slowest": slowest,
    } | ({"layers": records} if layers else {})


def _row_record(resolution: int, shape: Shape, row: Row) -> dict[str, Any]:
    record = {"layer": describe(layer_of(shape)), "latency_ms": row.ms, "p90_ms": row.p90_ms, "n": row.n, "source": row.source}
    return record | ({} if resolution == ANY else {"resolution": resolution})


# -- taking in -------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Reader:
    """One format of tables from outside: how to know it, and how to read it."""

    knows: Callable[[Path], bool]
    read: Callable[[Path], LatencyTable]
    renames: bool = False  # whether the user may give the device another name though the file tells one


def _is_kit(path: Path) -> bool:
    from ofasearch.jobs.kit import is_kit  # needs onnx, which no other format does

    return is_kit(path)


def _read_kit(path: Path, kit: Path | None = None) -> LatencyTable:
    from ofasearch.jobs.kit import read_kit_results

    return read_kit_results(path, kit)


READERS: Mapping[str, Reader] = {  # tried in this order
    "once-for-all lookup tables": Reader(is_ofa_yaml, load_ofa_yaml),
    "results of a kit": Reader(_is_kit, _read_kit, renames=True),
    "a table of ofasearch": Reader(lambda path: path.suffix == ".csv" and path.is_file(), load_table),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class KeyChange:
    """What the user knows of a table that its file does not tell; None leaves what was read."""

    device: str | None = None
    runtime: str | None = None
    precision: str | None = None
    batch: int | None = None
    threads: int | None = None


def import_table(
    path: Path, *, kit: Path | None = None, out: Path | None = None, name: str | None = None, known: KeyChange | None = None
) -> dict[str, Any]:
    """Read a table of another format (`READERS`) and write it as ours: to a CSV file, or among the user's own by name.

    `kit` is the folder of a kit whose results lie elsewhere. An installed table replaces one of the same name and key,
    unless that is better known than the new one.
    Raises NotFoundError, FormatError, UsageError, MismatchError, WriteError.
    """
    if (out is None) == (name is None):
        raise UsageError("either a file (-o T.csv) or a name (--name NAME) must say where the table goes, but got both or none")
    if not path.exists():
        raise NotFoundError(f"{path} must be an existing file or folder, but there is none")
    reader = next((reader for reader in READERS.values() if reader.knows(path)), None)
    if reader is None:
        raise FormatError(f"{path} must be of a known format ({'; '.join(READERS)}), but looks like none of them")
    table = _told(_read_kit(path, kit) if kit is not None else reader.read(path), known or KeyChange(), renames=reader.renames)
    if name is not None:
        table = replace(table, name=name)
        out = zoo.user_table_path(name, table.key)
        _check_replacement(out, table)
    record = write_table(_csv(out), replace(table, card={"date": provenance()["date"]} | table.card | {"from": path.resolve().name}))
    validation, notes = table.card.get("validation"), table.card.get("notes")
    record |= {"validation": validation} if validation else {}
    return record | ({"notes": [str(note) for note in notes]} if isinstance(notes, list) and notes else {})


def _told(table: LatencyTable, known: KeyChange, *, renames: bool) -> LatencyTable:
    """The table with what the user knows of it, which the card says; a table of ours knows all itself."""
    told = {field: value for field, value in asdict(known).items() if value is not None}
    if not told:
        return table
    if table.source != "imported" and not (renames and set(told) == {"device"}):
        raise UsageError(f"--{next(iter(told))} must go with a table that does not tell it, but table {table.name} has a card of its own")
    for field, value in told.items():
        if isinstance(value, str) and not (value.strip() and value.isprintable() and len(value) <= 200):
            raise UsageError(f"--{field} must be one line of text, but got {value[:80]!r}")
        if isinstance(value, int) and not 1 <= value <= 10**6:
            raise UsageError(f"--{field} must be between 1 and 1,000,000, but got {value}")
    return replace(table, name=told.get("device", table.name), key=replace(table.key, **told), card=table.card | {"told": told})


def _check_replacement(path: Path, table: LatencyTable) -> None:
    """Raise MismatchError where a better known table would be overwritten; a damaged one may be."""
    try:
        there = load_card(path).source
    except (NotFoundError, FormatError):
        return
    if there != table.source == least_known([there, table.source]):
        raise MismatchError(f"{path} must not be replaced by {table.source} latencies, but is {there}; choose another name, or remove it")


def _csv(path: Path | None) -> Path:
    if path is None or path.suffix != ".csv":
        raise UsageError(f"a latency table must be written to a file that ends in .csv, but got {path}")
    return path


def write_table(path: Path, table: LatencyTable) -> dict[str, Any]:
    """Write a table and tell what was written."""
    save_table(path, table)
    return {
        "table": str(path.absolute()),
        "name": table.name,
        "source": table.source,
        **asdict(table.key),
        "rows": len(table.rows),
        "resolutions": list(table.inputs),
    }


# -- giving out, putting together, telling apart ---------------------------------------------------------------


def export_table(name: str, folder: Path, *, space: str | None = None) -> dict[str, Any]:
    """Write a table as once-for-all's lookup tables, one file per resolution; `note` tells what became of its correction.

    Raises NotFoundError, FormatError, UnmeasuredError, MismatchError, WriteError.
    """
    table = open_or_estimate(name, space)
    files = save_ofa_yaml(folder, table, None if space is None else get_space(space))
    record: dict[str, Any] = {
        "folder": str(folder.absolute()),
        "source": table.source,
        "resolutions": list(files),
        "files": [str(path.absolute()) for path in files.values()],
    }
    if table.correction != Correction():
        slope, offset = table.correction.slope, table.correction.offset_ms
        record["note"] = f"the correction is worked into the rows: slope {slope:.6g} on all, offset {offset:.6g} ms on Logits first"
    return record


def merge_tables(names: Sequence[str], out: Path) -> dict[str, Any]:
    """Write one table of several of the same device, runtime, precision, batch and threads; named after its file.

    Raises NotFoundError, FormatError, MismatchError, UsageError, WriteError.
    """
    merged = merge([zoo.open_table(name) for name in names], _csv(out).stem)
    record = write_table(out, replace(merged, card=merged.card | {"date": provenance()["date"]}))
    return record | ({"note": merged.card["note"]} if "note" in merged.card else {})


def diff_tables(first: str, second: str, *, space: str | None = None, most: int = SLOWEST) -> dict[str, Any]:
    """How the rows of two tables differ; ratios are of the second to the first. An estimate is made at the other's batch.

    Raises NotFoundError, FormatError, MismatchError.
    """
    files = {name: zoo.open_table(name) for name in (first, second) if space is None or not _is_estimate(name)}
    batch = next((table.key.batch for table in files.values()), 1)
    tables = [files.get(name) or open_or_estimate(name, space, batch) for name in (first, second)]
    found: Difference = diff(tables[0], tables[1], most=most)
    ratios = {"median_ratio": found.median_ratio, "p10_ratio": found.p10_ratio, "p90_ratio": found.p90_ratio}
    return {
        "first": _short(tables[0]),
        "second": _short(tables[1]),
        "common": found.common,
        "zeros": found.zeros,
        **{name: value for name, value in (ratios | {"kendall_tau": found.kendall_tau}).items() if value is not None},
        "most": [
            {
                "layer": describe(layer_of(pair.shape)),
                **({} if pair.resolution == ANY else {"resolution": pair.resolution}),
                "first_ms": pair.first.ms,
                "second_ms": pair.second.ms,
                "ratio": pair.ratio,
            }
            for pair in found.most
        ],
        "only_first": [_place(*key) for key in found.only_first],
        "only_second": [_place(*key) for key in found.only_second],
    }


def _short(table: LatencyTable) -> dict[str, Any]:
    return {
        "name": table.name,
        "source": table.source,
        **asdict(table.key),
        "rows": len(table.rows),
        "correction": asdict(table.correction),
    }


def _place(resolution: int, shape: Shape) -> str:
    return describe(layer_of(shape)) + (f" (network input {resolution})" if resolution != ANY else "")
