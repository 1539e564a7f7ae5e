"""A kit measures devices on which ofasearch cannot run: small ONNX networks and one script; what it wrote becomes a table.

The kit holds the very networks that `latency build` would measure, and the script follows the same rules, so both
kinds of tables are made by the same code (`jobs.latency.table_of`). A kit lies on somebody's device for a while: what
comes back is a file from outside.
"""

from __future__ import annotations

import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch.deploy import kit_measure
from ofasearch.deploy.export import build_onnx, constant_weights
from ofasearch.deploy.kit_measure import KIT_FORMAT, MANIFEST, RESULTS, RESULTS_FORMAT
from ofasearch.errors import FormatError, MismatchError, NotFoundError, OfaSearchError, UsageError
from ofasearch.jobs.latency import Plan, plan_networks, table_of
from ofasearch.jobs.measuring import disturbance_words
from ofasearch.latency.machine import check_run
from ofasearch.latency.memory import Measured, measured_of, network_name
from ofasearch.latency.table import LatencyTable, TableKey
from ofasearch.records import parse_json, read_json, write_atomic
from ofasearch.space.core import Blueprint, Space
from ofasearch.space.families import get_space
from ofasearch.space.own import named_space, space_card
from ofasearch.supernet.weights import layer_key

SCRIPT = "measure.py"
ROLES = ("probes", "fit", "check")
RESULTS_LIMIT = 16 * 2**20  # bytes
NETWORKS_LIMIT = 1000
MS_RANGE = (1e-4, 1e7)  # of one inference: a tenth of a microsecond to three hours
RUNS_LIMIT = 10**6
SPEED_RANGE = (0.01, 100.0)  # of a device against itself
TEXT_LIMIT = 200  # characters of what a device says of itself


@dataclass(frozen=True, slots=True, kw_only=True)
class KitProgress:
    """One more network was written."""

    done: int
    total: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Kit:
    """What was written; `total_bytes` of everything in the folder."""

    folder: Path
    networks: dict[str, int]  # by role
    total_bytes: int


# -- writing ---------------------------------------------------------------------------------------------------


def write_kit(space: Space, folder: Path, *, batch: int = 1, threads: int = 1) -> Iterator[KitProgress | Kit]:
    """Write the networks of the space's table, the script and at last the manifest; yields progress and then what there is.

    Weights of the networks are made by the runtime when it loads them (`deploy.export.constant_weights`): real ones would
    take gigabytes. `threads` is what the script uses unless told otherwise.
    Raises UsageError (folder is a kit already, impossible batch or threads), ArchError, WriteError.
    """
    check_run(batch=batch, threads=threads)
    if (folder / MANIFEST).exists():
        raise UsageError(f"-o must be a folder without a kit, but {folder} holds one; remove it or choose another")
    plan = plan_networks(space)
    networks = _in_order(plan)
    reference = network_name(plan.reference)
    networks.setdefault(reference, ("reference", plan.reference))
    entries: dict[str, Any] = {}
    written = 0
    for name, (role, blueprint) in networks.items():
        content = build_onnx(blueprint, constant_weights(blueprint), batch=batch, compact=True)
        file = f"networks/{name}.onnx"
        write_atomic(folder / file, content)
        written += len(content)
        first = blueprint[0]
        entries[name] = {
            "role": role,
            "file": file,
            "sha256": hashlib.sha256(content).hexdigest(),
            "input": [first.c_in, first.hw_in, first.hw_in],
            "keys": [layer_key(spec, index) for index, spec in enumerate(blueprint)],
            "layers": [list(spec.shape) for spec in blueprint],
        }
        yield KitProgress(done=len(entries), total=len(networks))
    manifest = {
        "format": KIT_FORMAT,
        **space_card(space.name),
        "classes": space.classes,
        "resolutions": list(space.resolutions),
        "batch": batch,
        "threads": threads,
        "reference": reference,
        "networks": entries,
    }
    texts = {SCRIPT: Path(kit_measure.__file__).read_text(encoding="utf-8"), MANIFEST: json.dumps(manifest) + "\n"}
    for file, text in texts.items():
        write_atomic(folder / file, text)
        written += len(text.encode())
    counts = {role: len(getattr(plan, role)) for role in ROLES}
    yield Kit(folder=folder, networks=counts, total_bytes=written)


def _in_order(plan: Plan) -> dict[str, tuple[str, Blueprint]]:
    """Networks by role in the order of their measuring: what is measured first makes a table when the rest is left out.

    Probes of the smallest and the largest input come first (they enclose all others), the further ones follow; then
    networks to refine and to check take turns.
    """
    sizes = sorted({blueprint[0].hw_in for blueprint in plan.probes.values()})
    ends = {sizes[0], sizes[-1]}
    probes = sorted(plan.probes.items(), key=lambda item: item[1][0].hw_in not in ends)
    others = itertools.zip_longest(plan.fit.items(), plan.check.items())
    order = [("probes", *item) for item in probes]
    order += [(role, *item) for pair in others for role, item in zip(("fit", "check"), pair, strict=True) if item is not None]
    return {name: (role, blueprint) for role, name, blueprint in order}


# -- reading ---------------------------------------------------------------------------------------------------


def is_kit(path: Path) -> bool:
    """Whether a path is a kit's folder or a file of its results."""
    if path.is_dir():
        return (path / MANIFEST).is_file()
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return RESULTS_FORMAT.encode() in file.read(4096)


def read_kit_results(path: Path, kit: Path | None = None) -> LatencyTable:
    """The table that a kit's results give. `path` is the kit's folder or the results; `kit` its folder if elsewhere.

    Raises NotFoundError, FormatError, MismatchError (results of another kit), UnmeasuredError (too few networks).
    """
    results = path / RESULTS if path.is_dir() else path
    folder = kit or (path if path.is_dir() else path.parent)
    if not results.is_file():
        raise NotFoundError(f"{results} must be there, but is not; run {SCRIPT} of the kit on the device and copy {RESULTS} back")
    if not (folder / MANIFEST).is_file():
        raise NotFoundError(f"{folder} must be the kit that {results.name} was measured with, but holds no {MANIFEST}; add --kit FOLDER")
    space, plan, batch = _read_manifest(folder / MANIFEST)
    digest = hashlib.sha256((folder / MANIFEST).read_bytes()).hexdigest()
    header, level_ms, lines = _read_lines(results)
    key = _key(results, header)
    if header.get("kit") != digest or key.batch != batch:
        raise MismatchError(f"{results} must be of the kit in {folder}, but was measured with another; add --kit FOLDER")
    networks = {**plan.probes, **plan.fit, **plan.check}
    measured = {name: _measured(results, record, networks[name]) for name, record in lines.items() if name in networks}
    foreign = [name for name in lines if name not in networks]
    if foreign:
        raise FormatError(f"{results} must hold networks of its kit, but has {len(foreign)} others, such as '{foreign[0][:80]}'")
    factor = _level_factor([record.get("speed") for record in lines.values()])
    measured = {name: replace(found, timing=found.timing.at_level(factor)) for name, found in measured.items()}
    card: dict[str, Any] = {"machine": _words(header.get("machine")), "kit": digest}
    if level_ms is not None:
        card["reference"] = {"network": network_name(plan.reference), "level_ms": level_ms * factor}
    if isinstance(header.get("date"), str):
        card["date"] = header["date"][:TEXT_LIMIT]
    notes = disturbance_words([_fraction(record.get("group_disturbed")) for record in lines.values()])
    try:
        with np.errstate(divide="raise", over="raise", invalid="raise"):
            return table_of(space, key, plan, measured, name=key.device, notes=notes, **card)
    except OfaSearchError:
        raise
    except (ValueError, ArithmeticError) as error:  # times that no networks have do not fit together
        raise FormatError(f"{results} must hold times of networks, but they make no table: {error}") from error


def _read_manifest(path: Path) -> tuple[Space, Plan, int]:
    """Space, networks and batch of a kit; every layer must be one of the space, every name that of its layers."""
    record = read_json(path)
    try:
        if record["format"] != KIT_FORMAT:
            raise FormatError(f"{path} must be of format {KIT_FORMAT}, but is {str(record['format'])[:80]}")
        if not 1 <= len(record["networks"]) <= NETWORKS_LIMIT:
            raise ValueError(f"it must list 1 to {NETWORKS_LIMIT} networks")
        space = get_space(named_space(record), classes=_whole(record["classes"], 10**6))
        space = space.with_resolutions([_whole(size, 10**4) for size in record["resolutions"]])
        known = {spec.shape: spec for spec in space.layers()}
        parts: dict[str, dict[str, Blueprint]] = {role: {} for role in (*ROLES, "reference")}
        for name, entry in record["networks"].items():
            blueprint = tuple(known[tuple(shape)] for shape in entry["layers"])
            if not blueprint or network_name(blueprint) != name:
                raise ValueError(f"network '{name[:80]}' has other layers than its name says")
            parts[entry["role"]][name] = blueprint
        everything = {name: blueprint for part in parts.values() for name, blueprint in part.items()}
        plan = Plan(reference=everything[record["reference"]], **{role: parts[role] for role in ROLES})
        return space, plan, _whole(record["batch"], 10**6)
    except FormatError:
        raise
    except (KeyError, TypeError, ValueError, AttributeError, LookupError) as error:
        raise FormatError(f"{path} must be the manifest of a kit, but cannot be read: {str(error)[:300]}") from error


def _level_factor(speeds: Sequence[Any]) -> float:
    """How the typical level of all groups compares with that of the first, at which timings are stated.

    The script must fix a level when its first group is done, be the device cold, warm or busy then. Afterwards the speeds
    of all groups are known.
    """
    known = [speed for speed in speeds if isinstance(speed, float) and SPEED_RANGE[0] <= speed <= SPEED_RANGE[1]]
    return float(np.median(1 / np.array(known))) if known else 1.0


def _read_lines(path: Path) -> tuple[dict[str, Any], float | None, dict[str, dict[str, Any]]]:
    """The first line of results, the reference's level, and networks by name (the last line counts); torn lines are skipped."""
    if path.stat().st_size > RESULTS_LIMIT:
        raise FormatError(f"{path} must be at most {RESULTS_LIMIT >> 20} MiB, but is larger")
    records = []
    for line in path.read_bytes().splitlines():
        try:
            record = parse_json(line.decode("utf-8"))
        except ValueError:  # a kill tears the line that is being written
            continue
        if isinstance(record, dict):
            records.append(record)
    if not records or records[0].get("format") != RESULTS_FORMAT:
        raise FormatError(f"{path} must be results of a kit's {SCRIPT}, but its first line does not say {RESULTS_FORMAT}")
    levels = [record["level_ms"] for record in records[1:] if isinstance(record.get("level_ms"), float)]
    level_ms = next((level for level in levels if MS_RANGE[0] <= level <= MS_RANGE[1]), None)
    return records[0], level_ms, {record["name"]: record for record in records[1:] if isinstance(record.get("name"), str)}


def _key(path: Path, header: Mapping[str, Any]) -> TableKey:
    words = [header.get(name) for name in ("device", "runtime", "precision")]
    if not all(isinstance(word, str) and word.strip() and word.isprintable() and len(word) <= TEXT_LIMIT for word in words):
        raise FormatError(f"{path} must name device, runtime and precision in one line each, but does not")
    try:
        batch, threads = (_whole(header.get(name), 10**6) for name in ("batch", "threads"))
    except ValueError as error:
        raise FormatError(f"{path} must tell batch and threads, but does not: {error}") from error
    return TableKey(device=str(words[0]), runtime=str(words[1]), precision=str(words[2]), batch=batch, threads=threads)


def _measured(path: Path, record: Mapping[str, Any], blueprint: Blueprint) -> Measured:
    """One network's line, its numbers checked."""
    found = measured_of(record)
    if found is not None:
        timing, shares = found.timing, found.shares
        likely = all(MS_RANGE[0] <= ms <= MS_RANGE[1] for ms in (timing.p50, timing.p90)) and 1 <= timing.n <= RUNS_LIMIT
        if likely and (not shares or (len(shares) == len(blueprint) and min(shares) > 0)):
            return found
    raise FormatError(f"{path} must hold times of networks and shares of their layers, but those of '{record['name']}' cannot be")


def _whole(value: Any, limit: int) -> int:
    if type(value) is not int or not 1 <= value <= limit:
        raise ValueError(f"a number must be whole and between 1 and {limit:,}, but one is {str(value)[:80]}")
    return value


def _fraction(value: Any) -> float:
    return float(value) if isinstance(value, int | float) and 0 <= value <= 1 else 0.0


def _words(machine: Any) -> dict[str, Any]:
    """What a device says of itself: short texts and numbers under short names."""
    pairs = list(machine.items())[:50] if isinstance(machine, dict) else []
    kept = {str(name)[:TEXT_LIMIT]: value[:TEXT_LIMIT] if isinstance(value, str) else value for name, value in pairs}
    return {name: value for name, value in kept.items() if isinstance(value, str | int | float)}
