"""Latency of layers as a table, and of whole networks as a corrected sum of its rows. No torch.

A table is keyed by device, runtime, precision, batch and threads, never by space: any space whose layers it knows can
be priced. Every row says whether it was measured, imported, interpolated or estimated. A row may be tied to one input
resolution of the whole network (tables published per resolution) or to none. A missing layer raises by name; nothing
is ever priced as zero.
"""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, cast, get_args

from ofasearch.errors import FormatError, NotFoundError, UnmeasuredError
from ofasearch.records import read_json, write_atomic, write_json
from ofasearch.space.core import SHAPE_FIELDS, Blueprint, Cost, LayerSpec, Price, Space
from ofasearch.space.families import make_divisible

Source = Literal["measured", "imported", "interpolated", "estimated"]  # the later, the less is known
Shape = tuple[str | int | bool, ...]
ANY = 0  # the resolution of a row that holds for networks of every resolution
FILE_LIMIT = 64 * 2**20  # bytes
MS_LIMIT = 1e9  # eleven days; sums and corrections of such numbers stay finite
SLOPE_LIMIT = 1e6
FORMAT = "ofasearch-latency-2"


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


@dataclass(frozen=True, slots=True)
class Correction:
    """Whole-network latency = slope * sum of rows + offset (ms), fitted on `nets` networks measured end to end."""

    slope: float = 1.0
    offset_ms: float = 0.0
    nets: int = 0

    def __post_init__(self) -> None:
        if not (0 < self.slope <= SLOPE_LIMIT and abs(self.offset_ms) <= MS_LIMIT):
            raise ValueError(f"slope must be positive and offset finite, but got {self}")


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

    def cost(self, space: Space) -> Cost:
        """Milliseconds of any population of the space, corrected.

        Raises UnmeasuredError that names layers which the table lacks.
        """
        missing = self.missing(space)
        if missing:
            resolution, spec = missing[0]
            raise UnmeasuredError(
                f"latency table {self.name} must hold every layer, but lacks {len(missing)} of {space.name}, "
                f"such as {describe(spec)} (network input {resolution}); build or import a table for this space"
            )
        return space.tabulate_by_resolution(self.price_at).scaled(self.correction.slope, self.correction.offset_ms)

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


def describe(spec: LayerSpec) -> str:
    """A layer in words, for messages and for rows people read."""
    text = f"{spec.kind} {spec.hw_in}x{spec.hw_in}x{spec.c_in}->{spec.c_out}"
    if spec.kind == "mbconv":
        text += f" mid {spec.c_mid}"
    if spec.kind in ("conv", "mbconv"):
        text += f" k{spec.kernel} s{spec.stride}"
    return text + (" se" if spec.c_se else "") + (" skip" if spec.skip else "")


# -- our files: CSV rows with a JSON card beside them ----------------------------------------------------------

_COLUMNS = ("resolution", *SHAPE_FIELDS, "ms", "p90_ms", "n", "source")
_SAMPLE = LayerSpec(slot="", kind="conv", c_in=1, c_mid=0, c_out=1, hw_in=1)  # its field types are those of the columns


def save_table(path: Path, table: LatencyTable) -> None:
    """Write `path` (CSV) and its card beside it (`.json`), each atomically, the card last."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_COLUMNS)
    for (resolution, shape), row in table.rows.items():
        layer = (int(v) if isinstance(v, bool) else v for v in shape)
        writer.writerow([resolution, *layer, f"{row.ms:.6g}", f"{row.p90_ms:.6g}", row.n, row.source])
    write_atomic(path, text.getvalue())
    card = {"format": FORMAT, "name": table.name, "key": asdict(table.key)}
    write_json(path.with_suffix(".json"), card | {"correction": asdict(table.correction), "card": table.card})


def load_table(path: Path) -> LatencyTable:
    """Read a CSV table with its JSON card.

    Raises NotFoundError, FormatError.
    """
    if not path.is_file():
        raise NotFoundError(f"{path} must be an existing latency table, but there is none")
    card = read_json(path.with_suffix(".json"))
    try:
        if card["format"] != FORMAT:
            raise FormatError(f"{path.with_suffix('.json')} must be of format {FORMAT}, but is {card['format']}")
        rows = dict(_parse_row(record) for record in csv.DictReader(_text(path).splitlines()))
        correction, key = Correction(**card["correction"]), TableKey(**card["key"])
        _check_card(card, key)
        table = LatencyTable(card["name"], key, rows, correction, dict(card["card"]))
    except (KeyError, TypeError, ValueError, OverflowError, csv.Error) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path} must be a latency table of ofasearch, but a row or its card cannot be read: {error}") from error
    if not rows:
        raise FormatError(f"{path} must hold at least one row, but is empty")
    return table


def _check_card(card: Mapping[str, Any], key: TableKey) -> None:
    """Raise KeyError, TypeError or ValueError unless what is told to users is of its type."""
    words, numbers = (card["name"], key.device, key.runtime, key.precision), (key.batch, key.threads)
    if not (all(isinstance(word, str) for word in words) and all(type(number) is int for number in numbers)):
        raise TypeError("name, device, runtime and precision must be text, batch and threads whole numbers")
    if not isinstance(card["card"], dict):
        raise TypeError(f"its card must be an object, but is {type(card['card']).__name__}")
    validation = card["card"].get("validation")
    if validation and not all(isinstance(validation[name], int | float) for name in ("n", "bias_ms", "mape", "kendall_tau")):
        raise TypeError("its validation must hold numbers")


def _text(path: Path) -> str:
    if path.stat().st_size > FILE_LIMIT:
        raise FormatError(f"{path} must be at most {FILE_LIMIT >> 20} MiB, but is larger")
    return path.read_text(encoding="utf-8")


def _parse_row(record: Mapping[str, str]) -> tuple[tuple[int, Shape], Row]:
    shape: list[str | int | bool] = []
    for name in SHAPE_FIELDS:
        kind = type(getattr(_SAMPLE, name))
        shape.append(record[name] if kind is str else kind(int(record[name])))
    row = Row(float(record["ms"]), float(record["p90_ms"]), int(record["n"]), cast(Source, record["source"]))
    if row.source not in get_args(Source):
        raise ValueError(f"source must be one of {', '.join(get_args(Source))}, but is {row.source}")
    if not (0 <= row.ms <= MS_LIMIT and 0 <= row.p90_ms <= MS_LIMIT):
        raise ValueError(f"ms must be non-negative numbers, but got {row.ms} and {row.p90_ms}")
    return (int(record["resolution"]), tuple(shape)), row


# -- once-for-all's YAML ---------------------------------------------------------------------------------------

_FILE = re.compile(r"(\d{2,4})_lookup_table\.yaml")
_BLOCK = re.compile(
    r"expanded_conv-input:(\d+)x\d+x(\d+)-output:\d+x\d+x(\d+)-expand:(\d+)-kernel:(\d)-stride:(\d)-idskip:([01])-se:([01])-hs:([01])"
)
_PLAIN = re.compile(r"(Conv|Conv_1|Conv_2|AvgPool2D)-input:(\d+)x\d+x(\d+)-output:\d+x\d+x(\d+)")
_LOGITS = re.compile(r"Logits-input:1x1x(\d+)-output:(\d+)")


def load_ofa_yaml(folder: Path) -> LatencyTable:
    """Read once-for-all's MobileNetV3 tables: a folder of `<resolution>_lookup_table.yaml`.

    The value of a row is the mean that the file gives; rows are tied to their file's resolution, because the files
    measured the same layer apart. Batch 1 is what was published; the files do not say threads.
    Raises NotFoundError, FormatError.
    """
    files = {int(m[1]): path for path in sorted(folder.glob("*.yaml")) if (m := _FILE.fullmatch(path.name)) and path.is_file()}
    if not files:
        raise NotFoundError(f"{folder} must hold <resolution>_lookup_table.yaml files, but has none")
    rows = {(r, _parse_ofa_key(str(k)).shape): _ofa_row(path, v) for r, path in files.items() for k, v in _read_yaml(path).items()}
    device = folder.resolve().name.removeprefix("latency_table@")
    return LatencyTable(device, TableKey(device=device, runtime="unknown"), rows, card={"origin": "once-for-all lookup tables"})


def _read_yaml(path: Path) -> Mapping[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            """Leave merge keys (`<<`) alone, so that they are refused: nested ones copy a few lines into gigabytes."""

    try:
        content = yaml.load(_text(path), Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise FormatError(f"{path} must be a YAML lookup table, but it cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or not content:
        raise FormatError(f"{path} must map layers to counts and means, but holds {type(content).__name__}")
    return content


def _ofa_row(path: Path, value: Any) -> Row:
    try:
        mean, std, count = float(value["mean"]), float(value.get("std") or 0.0), int(value["count"])
    except (TypeError, KeyError, ValueError, OverflowError) as error:
        raise FormatError(f"{path} must give count and mean for every layer, but one holds {type(value).__name__}") from error
    if not (0 <= mean <= MS_LIMIT and 0 <= std <= MS_LIMIT):
        raise FormatError(f"{path} must give means and deviations of at least 0 ms, but gives {mean} and {std}")
    return Row(mean, mean + 1.2816 * std, count, "imported")  # normal approximation: the files hold no percentile


def _parse_ofa_key(key: str) -> LayerSpec:
    """The layer of a published key. `expand` is the number of middle channels (MobileNetV3's convention)."""
    if match := _BLOCK.fullmatch(key):
        hw, c_in, c_out, mid, kernel, stride, skip, se, hs = map(int, match.groups())
        return LayerSpec(
            slot="", kind="mbconv", c_in=c_in, c_mid=mid, c_out=c_out, hw_in=hw, c_se=make_divisible(mid // 4) if se else 0,
            kernel=kernel, stride=stride, act="h_swish" if hs else "relu", skip=bool(skip),
        )  # fmt: skip
    if match := _LOGITS.fullmatch(key):
        return LayerSpec(slot="", kind="linear", c_in=int(match[1]), c_mid=0, c_out=int(match[2]), hw_in=1, norm=False, bias=True)
    if match := _PLAIN.fullmatch(key):
        name, hw, c_in, c_out = match[1], int(match[2]), int(match[3]), int(match[4])
        if name == "AvgPool2D":
            return LayerSpec(slot="", kind="pool", c_in=c_in, c_mid=0, c_out=c_out, hw_in=hw, norm=False)
        kernel, stride = (3, 2) if name == "Conv" else (1, 1)
        return LayerSpec(
            slot="",
            kind="conv",
            c_in=c_in,
            c_mid=0,
            c_out=c_out,
            hw_in=hw,
            kernel=kernel,
            stride=stride,
            act="h_swish",
            norm=name != "Conv_2",
        )
    raise FormatError(f"a layer of a lookup table must be spelled as once-for-all does for MobileNetV3, but one is '{key[:120]}'")
