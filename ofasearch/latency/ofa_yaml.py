"""Once-for-all's lookup tables, read and written: one YAML file per input resolution, one key per layer. No torch.

A key spells a layer as once-for-all's own latency code looks it up (its `latency_lookup_table.py` and tutorial):

    expanded_conv-input:80x80x24-output:40x40x32-expand:144-kernel:5-stride:2-idskip:0-se:0-hs:0: {count, mean, std}

In MobileNetV3 tables `expand` is the number of middle channels, and Conv, Conv_1, AvgPool2D, Conv_2 and Logits are the
layers around the blocks. In ProxylessNAS tables `expand` is the ratio, there is no `se` and no `hs`, every activation
is ReLU6, and Logits stands for "all operations after Conv_1": it takes the feature map, and pools it.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, Literal

from ofasearch.errors import FormatError, MismatchError, NotFoundError
from ofasearch.latency.table import ANY, Correction, LatencyTable, Row, Shape, TableKey, describe, layer_of, read_limited
from ofasearch.records import write_together
from ofasearch.space.core import LayerSpec, Space
from ofasearch.space.families import make_divisible

Family = Literal["MobileNetV3", "ProxylessNAS"]
YAML_LIMIT = 4 * 2**20  # bytes; a published file has 20 kB
P90_SIGMAS = 1.2816  # normal approximation: the files hold no percentile
HEADS = ("Logits", "Conv", "Conv_1", "Conv_2", "AvgPool2D")  # layers that every network has once

_FILE = re.compile(r"(\d{2,4})_lookup_table\.yaml")
_N = r"([1-9]\d{0,5})"
_MAPS = rf"-input:{_N}x\d+x{_N}-output:\d+x\d+x{_N}"
_BLOCK = re.compile(rf"expanded_conv{_MAPS}-expand:{_N}-kernel:(\d)-stride:([1-9])-idskip:([01])(?:-se:([01])-hs:([01]))?")
_PLAIN = re.compile(rf"(Conv|Conv_1|Conv_2|AvgPool2D){_MAPS}")
_LOGITS = re.compile(rf"Logits-input:{_N}x\d+x{_N}-output:{_N}")

# -- reading ---------------------------------------------------------------------------------------------------


def is_ofa_yaml(path: Path) -> bool:
    """Whether a path looks like lookup tables of once-for-all: a YAML file, or a folder that holds one by its usual name."""
    return path.suffix in (".yaml", ".yml") if path.is_file() else bool(_files(path))


def load_ofa_yaml(path: Path) -> LatencyTable:
    """Read once-for-all's tables: a folder of `<resolution>_lookup_table.yaml`, or one such file of any name.

    A row's value is the mean that the file gives. Rows are tied to their file's resolution, because the files measured
    the same layer apart; it is told by the file's name or else by its first convolution (rows of a file with first
    convolutions of several sizes are tied to none). The Logits of a ProxylessNAS file become the classifier's row;
    the pooling that they include becomes a row of 0 ms, and the card says so. The files tell neither batch (1 is what
    was published), nor threads, nor runtime.
    Raises NotFoundError, FormatError.
    """
    files = _files(path) if path.is_dir() else {0: path} if path.is_file() else {}
    if not files:
        raise NotFoundError(f"{path} must hold <resolution>_lookup_table.yaml files, but has none")
    contents = {file: _read_yaml(file) for file in files.values()}
    family = _family_of_keys({key for content in contents.values() for key in content})
    rows: dict[tuple[int, Shape], Row] = {}
    for file, content in contents.items():
        layers = {key: _parse(key, family) for key in content}
        unknown = next((key for key, specs in layers.items() if not specs), None)
        if unknown is not None:
            raise FormatError(f"{file} must spell layers as once-for-all does for {family}, but one is '{unknown[:120]}'")
        resolution = _resolution(file, [spec for specs in layers.values() for spec in specs])
        for key, specs in layers.items():
            row = _row(file, content[key])
            for spec in specs[:-1]:
                _add(rows, (resolution, spec.shape), Row(0.0, 0.0, row.n, "imported"), file)
            _add(rows, (resolution, specs[-1].shape), row, file)
    named = path.resolve() if path.is_dir() else path.resolve().parent if _FILE.fullmatch(path.name) else path.with_suffix("")
    device = named.name.removeprefix("latency_table@")
    card = {"origin": "once-for-all lookup tables", "family": family}
    if family == "ProxylessNAS":
        card["note"] = "the classifier's rows include the pooling, as in the files; rows of poolings are 0"
    return LatencyTable(device, TableKey(device=device, runtime="unknown"), rows, card=card)


def _files(folder: Path) -> dict[int, Path]:
    """Lookup tables of a folder by resolution."""
    return {int(m[1]): path for path in sorted(folder.glob("*.yaml")) if (m := _FILE.fullmatch(path.name)) and path.is_file()}


def _read_yaml(path: Path) -> Mapping[str, Any]:
    import yaml

    class Loader(yaml.SafeLoader):
        def flatten_mapping(self, node: yaml.MappingNode) -> None:
            """Leave merge keys (`<<`) alone, so that they are refused: nested ones copy a few lines into gigabytes."""

        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
            """A mapping whose keys all differ; YAML alone would take the last."""
            mapping = super().construct_mapping(node, deep)
            if len(mapping) != len(node.value):
                raise yaml.YAMLError(f"a name is given twice in line {node.start_mark.line + 1} or below")
            return mapping

    try:
        content = yaml.load(read_limited(path, YAML_LIMIT).decode(), Loader)
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        if isinstance(error, FormatError):
            raise
        raise FormatError(f"{path} must be a YAML lookup table, but it cannot be read: {str(error).splitlines()[0]}") from error
    if not isinstance(content, dict) or not content:
        raise FormatError(f"{path} must map layers to counts and means, but holds {type(content).__name__}")
    for key in content:
        if not isinstance(key, str):
            raise FormatError(f"{path} must name layers by text, but one name is of type {type(key).__name__}")
    return content


def _row(path: Path, value: Any) -> Row:
    try:
        mean, std, count = float(value["mean"]), float(value.get("std") or 0.0), int(value["count"])
        if not std >= 0:
            raise ValueError("std is negative")
        return Row(mean, mean + P90_SIGMAS * std, count, "imported")
    except (TypeError, KeyError, AttributeError, ValueError, OverflowError) as error:
        raise FormatError(
            f"{path} must give count and mean, non-negative numbers, for every layer, but one holds {type(value).__name__}"
        ) from error


def _add(rows: dict[tuple[int, Shape], Row], key: tuple[int, Shape], row: Row, file: Path) -> None:
    if rows.setdefault(key, row) != row:
        raise FormatError(f"{file} must give every layer once, but gives {describe(layer_of(key[1]))} twice, with other figures")


def _resolution(file: Path, layers: Iterable[LayerSpec]) -> int:
    """The network input of all rows of a file, ANY where it holds those of several."""
    if match := _FILE.fullmatch(file.name):
        return int(match[1])
    first = {spec.hw_in for spec in layers if spec.kind == "conv" and spec.kernel == 3}
    if not first:
        raise FormatError(f"{file} must be named <resolution>_lookup_table.yaml or hold a first convolution (Conv), but does neither")
    return first.pop() if len(first) == 1 else ANY


# -- keys ------------------------------------------------------------------------------------------------------


def _family_of_keys(keys: Iterable[str]) -> Family:
    """Which of the two grammars a table is written in, by its blocks or, without any, by what its Logits take."""
    blocks = {match[8] is not None for key in keys if (match := _BLOCK.fullmatch(key))}
    if len(blocks) > 1:
        raise FormatError("a lookup table must be of MobileNetV3 (se and hs in every block) or of ProxylessNAS (in none), but has both")
    if blocks:
        return "MobileNetV3" if blocks.pop() else "ProxylessNAS"
    pooled = [match[1] == "1" for key in keys if (match := _LOGITS.fullmatch(key))]
    return "MobileNetV3" if all(pooled) else "ProxylessNAS"


def _parse(key: str, family: Family) -> tuple[LayerSpec, ...]:
    """The layers that a key stands for: one, or pooling and classifier for the Logits of ProxylessNAS.

    None unless the key is exactly what once-for-all's code would look up for them.
    """
    mobile = family == "MobileNetV3"
    found: tuple[LayerSpec, ...] = ()
    if match := _BLOCK.fullmatch(key):
        hw, c_in, c_out, expand, kernel, stride, skip, se, hs = (int(group or 0) for group in match.groups())
        mid = expand if mobile else _mid_channels(c_in, expand)
        found = (
            LayerSpec(
                slot="", kind="mbconv", c_in=c_in, c_mid=mid, c_out=c_out, hw_in=hw, c_se=_se_channels(mid) if se else 0,
                kernel=kernel, stride=stride, act=("h_swish" if hs else "relu") if mobile else "relu6", skip=bool(skip),
            ),
        )  # fmt: skip
    elif match := _LOGITS.fullmatch(key):
        hw, c_in, c_out = map(int, match.groups())
        found = (LayerSpec(slot="", kind="linear", c_in=c_in, c_mid=0, c_out=c_out, hw_in=1, norm=False, bias=True),)
        if not mobile:
            found = (_pool(hw, c_in), *found)
    elif (match := _PLAIN.fullmatch(key)) and (mobile or match[1] in ("Conv", "Conv_1")):
        name, hw, c_in, c_out = match[1], int(match[2]), int(match[3]), int(match[4])
        if name == "AvgPool2D":
            found = (_pool(hw, c_in),)
        else:
            stem = name == "Conv"
            stride = 2 if stem and f"-output:{hw}x" not in key else 1
            found = (
                LayerSpec(
                    slot="", kind="conv", c_in=c_in, c_mid=0, c_out=c_out, hw_in=hw, kernel=3 if stem else 1, stride=stride,
                    act="h_swish" if mobile else "relu6", norm=name != "Conv_2",
                ),
            )  # fmt: skip
    return found if found and _spell(found, family) == key else ()


def _spell(specs: tuple[LayerSpec, ...], family: Family) -> str:
    """The key of one layer, or of pooling and classifier together (ProxylessNAS)."""
    spec, mobile = specs[-1], family == "MobileNetV3"
    taken, given = f"{specs[0].hw_in}x{specs[0].hw_in}x{spec.c_in}", f"{spec.hw_out}x{spec.hw_out}x{spec.c_out}"
    if spec.kind == "linear":
        return f"Logits-input:{taken}-output:{spec.c_out}"
    if spec.kind == "mbconv":
        key = f"expanded_conv-input:{taken}-output:{given}-expand:{spec.c_mid if mobile else _ratio(spec)}"
        key += f"-kernel:{spec.kernel}-stride:{spec.stride}-idskip:{spec.skip:d}"
        return key + (f"-se:{spec.c_se > 0:d}-hs:{spec.act == 'h_swish':d}" if mobile else "")
    name = "AvgPool2D" if spec.kind == "pool" else "Conv" if spec.kernel == 3 else "Conv_1" if spec.norm else "Conv_2"
    return f"{name}-input:{taken}-output:{given}"


def _pool(hw: int, channels: int) -> LayerSpec:
    return LayerSpec(slot="", kind="pool", c_in=channels, c_mid=0, c_out=channels, hw_in=hw, norm=False)


def _mid_channels(c_in: int, ratio: int) -> int:
    """Middle channels of a ProxylessNAS block; without expansion there is no rounding."""
    return c_in if ratio == 1 else make_divisible(round(c_in * ratio))


def _se_channels(mid: int) -> int:
    return make_divisible(mid // 4)


def _ratio(spec: LayerSpec) -> int:
    """The expand ratio that gives these middle channels, 0 where none does."""
    near = max(1, spec.c_mid // spec.c_in)
    return next((ratio for ratio in range(max(1, near - 1), near + 2) if _mid_channels(spec.c_in, ratio) == spec.c_mid), 0)


# -- writing ---------------------------------------------------------------------------------------------------


def save_ofa_yaml(folder: Path, table: LatencyTable, space: Space | None = None) -> dict[int, Path]:
    """Write `<resolution>_lookup_table.yaml` files that once-for-all's own code can look up; their paths by resolution.

    With a space, its layers at the resolutions that both know are written; without, all rows, at the resolutions of the
    table. A row for networks of every resolution goes into the file of each resolution whose feature sizes meet it
    (`LatencyTable.rows_at`).
    A row's `ms` becomes `mean`, its 90th percentile `std` (normal approximation). The files know no correction, so it
    is worked in: the slope multiplies every row, and the offset is added to layers that every network has once, to
    Logits and, where a negative one would take them below 0 ms, to the others of `HEADS` in turn. The sum of a
    network's means is then its corrected latency. A comment at the top of each file tells where it comes from.

    Raises UnmeasuredError (a layer of the space has no row), MismatchError (a layer that the grammar cannot spell, no
    common resolution, an offset that no row can take, a folder with other lookup tables), WriteError.
    """
    rows = _rows_of_all(table) if space is None else _rows_of_space(table, space)
    strangers = sorted(set(_files(folder)) - set(rows))
    if strangers:
        raise MismatchError(f"{folder} must hold no other lookup tables, but has {_file(strangers[0])}; choose another folder")
    texts: dict[Path, bytes | str] = {}
    for resolution, layers in rows.items():
        texts[folder / _file(resolution)] = _head(table, resolution) + _dump(_corrected(_entries(layers, table.name), table))
    write_together(texts)
    return {resolution: folder / _file(resolution) for resolution in rows}


def _rows_of_space(table: LatencyTable, space: Space) -> dict[int, dict[Shape, Row]]:
    """The rows of a space's layers by resolution."""
    known = [r for r in space.resolutions if table.resolutions is None or r in table.resolutions]
    if not known:
        raise MismatchError(
            f"table {table.name} must know an input resolution of {space.name}, {list(space.resolutions)}, but knows {list(table.inputs)}"
        )
    table.check(space.with_resolutions(known))
    return {r: {spec.shape: table.row(r, spec) for spec in space.with_resolutions([r]).layers()} for r in known}


def _rows_of_all(table: LatencyTable) -> dict[int, dict[Shape, Row]]:
    """All rows by the resolutions that they serve; one that serves none is an error, not left out."""
    rows = {resolution: table.rows_at(resolution) for resolution in table.inputs}
    served = {shape for found in rows.values() for shape in found}
    lost = [shape for _, shape in table.rows if shape not in served]
    if lost:
        raise MismatchError(
            f"each row of table {table.name} must belong to networks of some input resolution, but {len(lost)} do not, "
            f"such as {describe(layer_of(lost[0]))}; choose a space"
        )
    return rows


def _file(resolution: int) -> str:
    return f"{resolution}_lookup_table.yaml"


Entries = dict[str, tuple[float, float, int]]  # key -> mean (ms), standard deviation (ms), count


def _entries(rows: Mapping[Shape, Row], name: str) -> Entries:
    """Rows by the key that once-for-all looks up."""
    layers = {layer_of(shape): row for shape, row in rows.items()}
    family = _family_of_layers(layers, name)
    found: Entries = {}
    for spec, row in layers.items():
        if family == "ProxylessNAS" and spec.kind in ("pool", "linear"):
            continue
        key = _spell((spec,), family)
        _check_spelling(key, spec, family, name)
        found[key] = (row.ms, _std(row), row.n)
    if family == "ProxylessNAS":
        found |= _joint_logits(layers, name)
    return found


def _joint_logits(layers: Mapping[LayerSpec, Row], name: str) -> Entries:
    """ProxylessNAS's Logits: every pooling with every classifier of its channels."""
    found: Entries = {}
    pools, linears = ({spec: row for spec, row in layers.items() if spec.kind == kind} for kind in ("pool", "linear"))
    for alone in (spec for spec in [*pools, *linears] if not any(spec.c_in == o.c_in for o in (linears if spec in pools else pools))):
        raise MismatchError(f"table {name} must hold a pooling and a classifier that belong together, but {describe(alone)} has no other")
    for pool, first in pools.items():
        for linear, second in linears.items():
            if linear.c_in == pool.c_in:
                key = _spell((pool, linear), "ProxylessNAS")
                _check_spelling(key, linear, "ProxylessNAS", name)
                found[key] = (first.ms + second.ms, math.hypot(_std(first), _std(second)), min(first.n, second.n))
    return found


def _family_of_layers(layers: Iterable[LayerSpec], name: str) -> Family:
    found: set[Family] = {"ProxylessNAS" if spec.act == "relu6" else "MobileNetV3" for spec in layers if spec.kind in ("conv", "mbconv")}
    if len(found) > 1:
        raise MismatchError(f"table {name} must be of MobileNetV3 or of ProxylessNAS alone, but has layers of both; choose a space of one")
    return found.pop() if found else "MobileNetV3"


def _check_spelling(key: str, spec: LayerSpec, family: Family, name: str) -> None:
    """Raise MismatchError unless reading the key gives the very layer: what cannot be told is not written."""
    if [told.shape for told in _parse(key, family)[-1:]] != [spec.shape]:
        raise MismatchError(
            f"once-for-all's tables can hold layers of MobileNetV3 and ProxylessNAS in their usual form, "
            f"but table {name} has {describe(spec)} ({spec.act})"
        )


def _std(row: Row) -> float:
    return max(0.0, (row.p90_ms - row.ms) / P90_SIGMAS)


def _corrected(entries: Entries, table: LatencyTable) -> Entries:
    """Entries of one file whose sums over a network are corrected latencies."""
    slope, left = table.correction.slope, table.correction.offset_ms
    found = {key: (slope * mean, slope * std, count) for key, (mean, std, count) in entries.items()}
    for head in HEADS:
        keys = [key for key in found if key.partition("-")[0] == head]
        if not left or not keys:
            continue
        step = max(left, -min(found[key][0] for key in keys))  # no row may fall below 0 ms
        for key in keys:
            mean, std, count = found[key]
            found[key] = (max(0.0, mean + step), std, count)
        left -= step
    if left:
        raise MismatchError(
            f"the offset of table {table.name} must fit into layers that every network has, but {left:g} ms are left over; "
            "fit its correction anew"
        )
    return found


def _head(table: LatencyTable, resolution: int) -> str:
    """Comments that tell where a file comes from; nothing of it can end a line."""
    key, correction = table.key, table.correction
    facts = {
        "table": table.name,
        "latencies": table.source,
        "device": key.device,
        "runtime": key.runtime,
        "precision": key.precision,
        "batch": key.batch,
        "threads": key.threads,
        "network input": resolution,
    }
    lines = ["milliseconds per layer, written by ofasearch", json.dumps(facts)]
    if correction != Correction():
        lines.append(f"worked into the rows: slope {correction.slope:g} on all, offset {correction.offset_ms:g} ms on {HEADS[0]} first")
    return "".join(f"# {line}\n" for line in lines)


def _dump(entries: Entries) -> str:
    import yaml

    text: str = yaml.safe_dump({key: {"count": n, "mean": float(mean), "std": float(std)} for key, (mean, std, n) in entries.items()})
    return text
