"""`latency estimate` and `latency transfer`: devices that are not here, by their peaks, a few networks or a few layers timed on them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ofasearch import zoo
from ofasearch.errors import NotFoundError, UsageError
from ofasearch.jobs.network import Network, read_network
from ofasearch.latency.machine import check_run
from ofasearch.latency.roofline import DEVICES, FITS, ONE_NETWORK, Device, calibrate, estimated_table, network_ms
from ofasearch.latency.table import LatencyTable, describe, layer_of, load_table, save_table
from ofasearch.latency.transfer import choose_probes, transfer
from ofasearch.records import provenance
from ofasearch.space.core import SHAPE_FIELDS, Space
from ofasearch.space.families import get_space

SPACES = ("ofa-mbv3-w1.0", "ofa-mbv3-w1.2", "ofa-mbv3-cifar")  # the layers of CompOFA's spaces are among theirs
TFLOPS, GBS = (1e-6, 1e4), (1e-3, 1e6)  # from a microcontroller to a rack
PLAUSIBLE = (0.2, 5.0)  # a measured network further from its estimate than this is rather one of another batch or unit


@dataclass(frozen=True, slots=True, kw_only=True)
class Timed:
    """A network by any of its names, and its latency per batch on the device."""

    subnet: str
    latency_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class EstimateRequest:
    """`device` is a known one, or a new name with its peaks; `like` says whose constants a new one takes."""

    device: str
    spaces: tuple[str, ...] = ()  # none: SPACES
    batch: int = 1
    timed: tuple[Timed, ...] = ()
    peak_tflops: float | None = None
    bandwidth_gbs: float | None = None
    like: str | None = None
    out: Path | None = None


def estimate(request: EstimateRequest) -> dict[str, Any]:
    """Estimate every layer of the spaces, scaled to the timed networks; writes the table where `out` says so.

    Raises UsageError, NotFoundError, ArchError, FormatError, WriteError.
    """
    check_run(batch=request.batch, threads=1)
    device = _device(request)
    names = request.spaces or SPACES
    spaces = [get_space(name) for name in names]
    networks = [read_network(timed.subnet, space=names[0] if request.spaces else None) for timed in request.timed]
    tables = [estimated_table(space, device, batch=request.batch) for space in spaces]
    table = replace(tables[0], rows={key: row for t in tables for key, row in t.rows.items()})
    notes: list[str] = []
    if networks:
        table, notes = _calibrated(table, device, request, networks)
    record: dict[str, Any] = {
        "device": device.name,
        "batch": request.batch,
        "precision": table.key.precision,
        "source": table.source,
        **{key: table.card[key] for key in ("peak_tflops", "bandwidth_gbs", "origin", "constants", "error")},
        **({"calibration": table.card["calibration"]} if networks else {}),
        "spaces": [_extremes(table, space) for space in spaces],
        "layers": len(table.rows),
        "advice": _advice(request),
        "notes": notes,
    }
    if request.out is not None:
        save_table(request.out, replace(table, card={**table.card, **provenance(spaces=list(names))}))
        record["table"] = str(request.out.absolute())
    return record


def _device(request: EstimateRequest) -> Device:
    """A known device, or one of the given peaks."""
    peaks = (request.peak_tflops, request.bandwidth_gbs)
    if request.like is not None and request.like not in FITS:
        raise UsageError(f"--like must be one of {', '.join(FITS)}, but got '{request.like}'")
    if peaks == (None, None):
        if request.device not in DEVICES:
            raise NotFoundError(
                f"device must be one of {', '.join(DEVICES)}, or come with --peak-tflops and --bandwidth, but got '{request.device}'"
            )
        known = DEVICES[request.device]
        return known if request.like is None else replace(known, like=request.like)
    if None in peaks:
        raise UsageError("--peak-tflops and --bandwidth must be given together, but one is missing")
    if request.device in DEVICES:
        raise UsageError(f"the peaks of {request.device} are known; leave out --peak-tflops and --bandwidth, or give another --device name")
    tflops, gbs = (float(peak or 0) for peak in peaks)
    if not (TFLOPS[0] <= tflops <= TFLOPS[1] and GBS[0] <= gbs <= GBS[1]):
        raise UsageError(
            f"--peak-tflops must be {TFLOPS[0]:g} to {TFLOPS[1]:g} and --bandwidth {GBS[0]:g} to {GBS[1]:g}, but got {tflops:g} and {gbs:g}"
        )
    if not request.device.isprintable() or not request.device:
        raise UsageError("--device must be a name")
    return Device(request.device, tflops, gbs, "given by the user", request.like or "v100")


def _calibrated(
    table: LatencyTable, device: Device, request: EstimateRequest, networks: Sequence[Network]
) -> tuple[LatencyTable, list[str]]:
    """The table scaled to the timed networks, and what should make its reader think."""
    times = [timed.latency_ms for timed in request.timed]
    measured = [(network.blueprint, ms) for network, ms in zip(networks, times, strict=True)]
    try:
        correction, left_out = calibrate(measured, device, request.batch)
    except ValueError as why:
        raise UsageError(f"the timed networks cannot be those of {device.name} at batch {request.batch}: {why}") from why
    if left_out is None:
        error = f"scaled to one network measured at batch {request.batch}; {ONE_NETWORK}"
    else:
        error = (
            f"scaled to {len(times)} networks measured at batch {request.batch}, each of which is off by {100 * left_out:.1f} % on average "
            "when only the others are used"
        )
    estimates = [network_ms(network.blueprint, device, request.batch) for network in networks]
    rows = list(zip((network.name for network in networks), times, estimates, strict=True))
    facts: dict[str, Any] = {"networks": [{"network": name, "measured_ms": ms, "estimated_ms": estimated} for name, ms, estimated in rows]}
    facts |= asdict(correction) | ({} if left_out is None else {"left_out_mape": left_out})
    notes = [
        f"{name} was given {ms:.4g} ms, {ms / estimated:.2g} times its estimate: is that for {request.batch} images, in that unit?"
        for name, ms, estimated in rows
        if not PLAUSIBLE[0] <= ms / estimated <= PLAUSIBLE[1]
    ]
    return table.corrected(correction, error=error, calibration=facts), notes


def _extremes(table: LatencyTable, space: Space) -> dict[str, Any]:
    """The fastest and the slowest network of a space."""
    bounds = table.cost(space).bounds()
    ends = (("fastest", bounds.lowest_codes, bounds.lowest), ("slowest", bounds.highest_codes, bounds.highest))
    return {"space": space.name, **{name: {"arch_id": space.arch(codes).id, "latency_ms": ms} for name, codes, ms in ends}}


def _advice(request: EstimateRequest) -> str:
    """What would make the estimates better."""
    batch = f" --batch {request.batch}" if request.batch != 1 else ""
    if not request.timed:
        return f"time one network on the device and say so: --calibrate SUBNET=22ms{batch}; from two on their error is stated"
    if len(request.timed) == 1:
        return "time a second network, as different as possible, and give both: then the error is stated, not guessed"
    return "measure some twenty layers on the device and fill in the rest: ofasearch latency transfer"


# -- few measured layers, another device's table -------------------------------------------------------------------


def fill_in(*, known: str, probes: Path, out: Path, space: str | None = None) -> dict[str, Any]:
    """`latency transfer`: the probes' device with all layers of a known table, written to `out`.

    Raises NotFoundError, FormatError, MismatchError, UsageError, WriteError.
    """
    few = load_table(probes)
    found = transfer(_known(known, space, few.key.batch), few)
    save_table(out, replace(found.table, card={**found.table.card, **provenance()}))
    counts = Counter(row.source for row in found.table.rows.values())
    return {
        "table": str(out.absolute()),
        "device": few.key.device,
        "from": known,
        "probes": found.probes,
        "rows": dict(counts),
        "held_out_mape": found.held_out_mape,
        "held_out_max": found.held_out_max,
        "error": found.table.card["error"],
    }


def probes_to_measure(*, known: str, n: int, space: str | None = None, batch: int = 1) -> dict[str, Any]:
    """The layers of a known table that tell most about a new device."""
    table = _known(known, space, batch)
    layers = [
        {
            "layer": describe(layer_of(shape)),
            **({"resolution": resolution} if resolution else {}),
            **dict(zip(SHAPE_FIELDS, shape, strict=True)),
        }
        for resolution, shape in choose_probes(table, n)
    ]
    return {"from": table.name, "layers": layers}


def _known(name: str, space: str | None, batch: int) -> LatencyTable:
    if space is None and name in DEVICES and name not in {file.name for file in zoo.table_files()}:
        raise UsageError(f"{name} is known by its peaks only: say with --space which layers to estimate")
    return zoo.get_table(name, get_space(space or SPACES[0]), batch=batch)
