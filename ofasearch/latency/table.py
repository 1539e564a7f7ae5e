"""Latency of layers as a table, and of whole networks as a corrected sum of its rows. No torch.

A table is keyed by device, runtime, precision, batch and threads, never by space: any space whose layers it knows can
be priced. Every row says whether it was measured, imported, interpolated or estimated. A row may be tied to one input
resolution of the whole network (tables published per resolution) or to none. A missing layer raises by name; nothing
is ever priced as zero.
"""

from __future__ import annotations

import csv
import hashlib
import io
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

from ofasearch.errors import FormatError, NotFoundError, UnmeasuredError, UsageError
from ofasearch.records import json_text, read_json, write_together
from ofasearch.space.core import SHAPE_FIELDS, Act, Blueprint, Kind, LayerSpec, Price, Space
from ofasearch.space.pricing import Cost

Source = Literal["measured", "imported", "interpolated", "estimated"]  # the later, the less is known
Shape = tuple[str | int | bool, ...]
ANY = 0  # the resolution of a row that holds for networks of every resolution
FILE_LIMIT = 64 * 2**20  # bytes
MS_LIMIT = 1e9  # eleven days; sums and corrections of such numbers stay finite
COUNT_LIMIT = 10**9  # runs of a row; channels and pixels of a layer, batch and threads of a key stay below it as well
SLOPE_LIMIT = 1e6
DEPTH_LIMIT = 100  # of a card's objects and lists; a merged table's card holds those of its parts
FORMAT = "ofasearch-latency-3"


@dataclass(frozen=True, slots=True, kw_only=True)
class TableKey:
    """What a latency depends on besides the layer."""

    device: str
    runtime: str
    precision: str = "fp32"
    batch: int = 1
    threads: int = 1


@dataclass(frozen=True, slots=True)
class Row:
    """Milliseconds of one layer: the median, the 90th percentile, how many runs it rests on, and how it came about.

    `n` is 0 where nothing was run for this very layer (interpolated and estimated rows).
    """

    ms: float
    p90_ms: float
    n: int
    source: Source = "measured"

    def __post_init__(self) -> None:
        if not (0 <= self.ms <= MS_LIMIT and 0 <= self.p90_ms <= MS_LIMIT):
            raise ValueError(f"ms must be between 0 and {MS_LIMIT:g}, but got {self.ms} and {self.p90_ms}")
        if not 0 <= self.n <= COUNT_LIMIT:
            raise ValueError(f"n must be between 0 and {COUNT_LIMIT:,} runs, but got another number")


@dataclass(frozen=True, slots=True)
class Correction:
    """Whole-network latency = slope * sum of rows + offset (ms), fitted on `nets` networks measured end to end."""

    slope: float = 1.0
    offset_ms: float = 0.0
    nets: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.slope <= SLOPE_LIMIT and abs(self.offset_ms) <= MS_LIMIT and type(self.nets) is int and self.nets >= 0):
            raise ValueError(f"slope must be positive, offset finite and nets a whole number of networks, but got {self}")


@dataclass(frozen=True)
class LatencyTable:
    """Rows by (resolution or ANY, layer shape). `card` tells how they came about; `validation` how far to trust them."""

    name: str
    key: TableKey
    rows: Mapping[tuple[int, Shape], Row]
    correction: Correction = Correction()
    card: dict[str, Any] = field(default_factory=dict)

    @property
    def resolutions(self) -> tuple[int, ...] | None:
        """Input resolutions the rows were measured for; None where rows hold for all."""
        found = sorted({resolution for resolution, _ in self.rows})
        return None if ANY in found else tuple(found)

    @cached_property
    def inputs(self) -> tuple[int, ...]:
        """Input resolutions of networks that the rows can price: what rows are tied to, and what first convolutions take."""
        tied = {resolution for resolution, _ in self.rows if resolution != ANY}
        return tuple(sorted(tied | {spec.hw_in for _, spec in self._free() if _takes_images(spec)}))

    def rows_at(self, resolution: int) -> dict[Shape, Row]:
        """Rows that networks of that input can use: those tied to it and, of those for all, the ones whose sizes occur.

        Sizes are followed from the first convolutions of that input along the strides of all rows.
        """
        tied = {shape: row for (at, shape), row in self.rows.items() if at == resolution}
        free = self._free()
        layers = [*map(layer_of, tied), *(spec for _, spec in free)]
        sizes = {1} | {spec.hw_out for spec in layers if _takes_images(spec) and spec.hw_in == resolution}
        steps = {(spec.hw_in, spec.hw_out) for spec in layers if not _takes_images(spec)}
        while grown := {after for before, after in steps if before in sizes} - sizes:
            sizes |= grown
        fitting = {spec.shape: row for row, spec in free if spec.hw_in == resolution or (spec.hw_in in sizes and not _takes_images(spec))}
        return fitting | tied

    def _free(self) -> list[tuple[Row, LayerSpec]]:
        """Rows for networks of every resolution, with their layers."""
        return [(row, layer_of(shape)) for (at, shape), row in self.rows.items() if at == ANY]

    @cached_property
    def source(self) -> Source:
        """What the least known row is: a table with one interpolated row is interpolated."""
        return least_known(row.source for row in self.rows.values())

    def source_of(self, blueprint: Blueprint) -> Source:
        """What the least known row of one network is.

        Raises UnmeasuredError for a layer that the table lacks.
        """
        return least_known(self.row(blueprint[0].hw_in, spec).source for spec in blueprint)

    def row(self, resolution: int, spec: LayerSpec) -> Row:
        """The row of one layer inside a network of that input resolution.

        Raises UnmeasuredError for a layer that the table lacks.
        """
        row = self.rows.get((resolution, spec.shape)) or self.rows.get((ANY, spec.shape))
        if row is None:
            raise UnmeasuredError(
                f"latency table {self.name} must hold every layer, but lacks {describe(spec)} (network input {resolution})"
            )
        return row

    def missing(self, space: Space) -> list[tuple[int, LayerSpec]]:
        """Layers that networks of the space can contain and the table lacks, with the input resolution."""
        found = []
        for resolution in space.resolutions:
            for spec in space.with_resolutions([resolution]).layers():
                if (resolution, spec.shape) not in self.rows and (ANY, spec.shape) not in self.rows:
                    found.append((resolution, spec))
        return found

    def price_at(self, resolution: int) -> Price:
        """Milliseconds of one layer inside a network of that input resolution.

        The returned price raises UnmeasuredError for a layer that the table lacks.
        """
        return lambda spec: self.row(resolution, spec).ms

    def check(self, space: Space) -> None:
        """Raise UnmeasuredError that counts and names the layers of the space which the table lacks, if there are any."""
        missing = self.missing(space)
        if missing:
            resolution, spec = missing[0]
            raise UnmeasuredError(
                f"latency table {self.name} must hold every layer, but lacks {len(missing)} of {space.name}, "
                f"such as {describe(spec)} (network input {resolution}); build or import a table for this space"
            )

    def cost(self, space: Space) -> Cost:
        """Milliseconds of any population of the space, corrected.

        Raises UnmeasuredError for layers that the table lacks.
        """
        try:
            found = space.tabulate_by_resolution(self.price_at)
        except UnmeasuredError:
            self.check(space)  # counts all that is missing
            raise
        return found.scaled(self.correction.slope, self.correction.offset_ms)

    def latency_ms(self, blueprint: Blueprint) -> float:
        """Milliseconds of one network, corrected; its first layer tells the input resolution."""
        price = self.price_at(blueprint[0].hw_in)
        return self.correction.slope * sum(map(price, blueprint)) + self.correction.offset_ms

    def corrected(self, correction: Correction, **card: Any) -> LatencyTable:
        """The same rows with another correction and more on the card."""
        return replace(self, correction=correction, card={**self.card, **card})


def least_known(sources: Iterable[Source]) -> Source:
    """The source that promises least: a sum is no better than its worst part."""
    order = get_args(Source)
    return max(sources, key=order.index)


def layer_of(shape: Shape) -> LayerSpec:
    """The layer of a row; a row does not know its slot, nor the epsilon of its batch norms."""
    fields: dict[str, Any] = dict(zip(SHAPE_FIELDS, shape, strict=True))
    return LayerSpec(slot="", **fields)


def _takes_images(spec: LayerSpec) -> bool:
    """Whether a layer is the first of its network."""
    return spec.kind == "conv" and spec.c_in == 3


def describe(spec: LayerSpec) -> str:
    """A layer in words, for messages and for rows people read."""
    text = f"{spec.kind} {spec.hw_in}x{spec.hw_in}x{spec.c_in}->{spec.c_out}"
    if spec.c_mid:
        text += f" mid {spec.c_mid}"
    if spec.kind not in ("pool", "linear"):
        text += f" k{spec.kernel} s{spec.stride}"
    return text + (" se" if spec.c_se else "") + (" skip" if spec.skip else "")


# -- our files: CSV rows with a JSON card beside them ----------------------------------------------------------

_COLUMNS = ("resolution", *SHAPE_FIELDS, "ms", "p90_ms", "n", "source")
_SAMPLE = LayerSpec(slot="", kind="conv", c_in=1, c_mid=0, c_out=1, hw_in=1)  # its field types are those of the columns
_POSITIVE = ("c_in", "c_out", "hw_in", "kernel", "stride")
_WORDS: dict[str, tuple[str, ...]] = {"kind": get_args(Kind), "act": get_args(Act)}


@dataclass(frozen=True, kw_only=True)
class TableCard:
    """A table without its rows, as its JSON card tells: enough to list it and to find it by name."""

    path: Path  # of the CSV
    name: str
    key: TableKey
    correction: Correction
    facts: dict[str, Any]  # `LatencyTable.card`
    rows: Mapping[Source, int]  # how many of each source
    digest: str  # sha256 (hex) of the CSV

    @property
    def source(self) -> Source:
        """What the least known row is."""
        return least_known(self.rows)


def save_table(path: Path, table: LatencyTable) -> None:
    """Write `path` (CSV) and its card beside it (`.json`), both or none; the card holds the digest of the rows.

    Numbers are written so that they read back bit by bit. Raises WriteError, UsageError (`path` is the card's).
    """
    if path.suffix == ".json":
        raise UsageError(f"a latency table must be written to a CSV file, such as {path.stem}.csv, but got {path.name}, its card's name")
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for (resolution, shape), row in table.rows.items():
        layer = (int(v) if isinstance(v, bool) else v for v in shape)
        writer.writerow([resolution, *layer, repr(float(row.ms)), repr(float(row.p90_ms)), row.n, row.source])
    rows = text.getvalue().encode()
    card = {
        "format": FORMAT,
        "name": table.name,
        "key": asdict(table.key),
        "rows": dict(Counter(row.source for row in table.rows.values())),
        "rows_sha256": hashlib.sha256(rows).hexdigest(),
        "correction": asdict(table.correction),
        "card": table.card,
    }
    write_together({path: rows, path.with_suffix(".json"): json_text(card)})


def load_card(path: Path) -> TableCard:
    """Read what the card of the CSV table `path` says, without its rows.

    Raises NotFoundError, FormatError.
    """
    file = path.with_suffix(".json")
    if not path.is_file():
        raise NotFoundError(f"{path} must be an existing latency table, but there is none")
    card = read_json(file)
    try:
        if card["format"] != FORMAT:
            raise FormatError(f"{file} must be of format {FORMAT}, but is {str(card['format'])[:80]}; make the table anew")
        found = TableCard(
            path=path,
            name=card["name"],
            key=TableKey(**card["key"]),
            correction=Correction(**card["correction"]),
            facts=card["card"],
            rows=card["rows"],
            digest=card["rows_sha256"],
        )
        _check_card(found)
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"{file} must be the card of a latency table of ofasearch, but it cannot be read: {error}") from error
    return found


def _check_card(card: TableCard) -> None:
    """Raise KeyError, TypeError or ValueError unless what is told to users is of its type."""
    key = card.key
    if not all(isinstance(word, str) for word in (card.name, key.device, key.runtime, key.precision, card.digest)):
        raise TypeError("name, device, runtime, precision and digest must be text")
    if not all(type(number) is int and 1 <= number <= COUNT_LIMIT for number in (key.batch, key.threads)):
        raise TypeError("batch and threads must be positive whole numbers")
    if not isinstance(card.rows, dict) or not card.rows:
        raise TypeError("rows must be numbers by source")
    if not all(source in get_args(Source) and type(n) is int and n > 0 for source, n in card.rows.items()):
        raise ValueError(f"rows must be positive numbers of {', '.join(get_args(Source))}")
    if not isinstance(card.facts, dict):
        raise TypeError(f"its card must be an object, but is {type(card.facts).__name__}")
    if _is_deep(card.facts):
        raise ValueError(f"its card must be nested at most {DEPTH_LIMIT} deep")
    if not (type(card.correction.nets) is int and 0 <= card.correction.nets <= COUNT_LIMIT):
        raise ValueError("its correction must rest on a whole number of networks")
    validation = card.facts.get("validation")
    if validation:
        figures = [validation[name] for name in ("n", "bias_ms", "mape", "kendall_tau")]
        if not all(isinstance(figure, int | float) and abs(figure) <= MS_LIMIT for figure in figures):
            raise ValueError("its validation must hold numbers of a sane size")


def _is_deep(record: Any) -> bool:
    """Whether JSON is nested so deep that whoever walks it might fall."""
    layer = [record]
    for _ in range(DEPTH_LIMIT):
        parts = (part for value in layer for part in (value.values() if isinstance(value, dict) else value))
        layer = [part for part in parts if isinstance(part, dict | list)]
    return bool(layer)


def load_table(path: Path) -> LatencyTable:
    """Read a CSV table with its JSON card.

    Raises NotFoundError, FormatError (damaged, foreign, or rows and card that were not written together).
    """
    card = load_card(path)
    content = read_limited(path, FILE_LIMIT)
    if hashlib.sha256(content).hexdigest() != card.digest:
        raise FormatError(
            f"{path} must hold the rows that {path.with_suffix('.json').name} was written for, but its digest is another; "
            "one of the two was changed or left from an interrupted write: take both from where they came from"
        )
    try:
        rows = _parse_rows(content.decode())
        if dict(Counter(row.source for row in rows.values())) != card.rows:
            raise ValueError("its card counts other rows")
    except (KeyError, TypeError, ValueError, OverflowError, csv.Error) as error:
        raise FormatError(f"{path} must be a latency table of ofasearch, but cannot be read: {error}") from error
    return LatencyTable(card.name, card.key, rows, card.correction, dict(card.facts))


def read_limited(path: Path, limit: int) -> bytes:
    """The bytes of a file from outside.

    Raises FormatError when there are more than `limit`.
    """
    if path.stat().st_size > limit:
        raise FormatError(f"{path} must be at most {limit >> 20} MiB, but is larger")
    return path.read_bytes()


def _parse_rows(text: str) -> dict[tuple[int, Shape], Row]:
    """Rows of a CSV text. Raises KeyError, TypeError, ValueError, csv.Error that names the line."""
    rows: dict[tuple[int, Shape], Row] = {}
    reader = csv.DictReader(text.splitlines())
    if not set(_COLUMNS) <= set(reader.fieldnames or ()):
        raise ValueError(f"its columns must be {', '.join(_COLUMNS)}")
    for record in reader:
        try:
            key, row = _parse_row(record)
            if key in rows:
                raise ValueError(f"{describe(layer_of(key[1]))} (network input {key[0] or 'any'}) has a row before")
        except (KeyError, TypeError, ValueError, OverflowError) as error:
            raise ValueError(f"line {reader.line_num}: {error}") from error
        rows[key] = row
    if not rows:
        raise ValueError("it must hold at least one row, but is empty")
    return rows


def _parse_row(record: Mapping[str, str]) -> tuple[tuple[int, Shape], Row]:
    if None in record:
        raise ValueError("there are more cells than columns")
    shape = tuple(_parse_cell(name, record[name]) for name in SHAPE_FIELDS)
    row = Row(float(record["ms"]), float(record["p90_ms"]), int(record["n"]), cast(Source, record["source"]))
    if row.source not in get_args(Source):
        raise ValueError(f"source must be one of {', '.join(get_args(Source))}, but is {row.source}")
    return (_whole("resolution", record["resolution"], 0), shape), row


def _parse_cell(name: str, text: str) -> str | int | bool:
    """A field of a layer; what arithmetic on layers rests on is checked here."""
    kind = type(getattr(_SAMPLE, name))
    if kind is str:
        if text not in _WORDS[name]:
            raise ValueError(f"{name} must be one of {', '.join(_WORDS[name])}, but is {str(text)[:80]}")
        return text
    number = _whole(name, text, 1 if name in _POSITIVE else 0)
    if kind is bool and number > 1:
        raise ValueError(f"{name} must be 0 or 1, but is {number}")
    return bool(number) if kind is bool else number


def _whole(name: str, text: str, least: int) -> int:
    number = int(text)
    if not least <= number <= COUNT_LIMIT:
        raise ValueError(f"{name} must be between {least} and {COUNT_LIMIT:,}, but is another number")
    return number
