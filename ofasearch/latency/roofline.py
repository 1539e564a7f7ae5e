"""Milliseconds of a layer from a device's published peaks and a few constants: an estimate, never a measurement. No torch.

A kernel takes the longer of computing and moving its data at a `share` of the published peaks, plus a fixed time to start
it (which is what small layers cost). Kernels are the convolutions; squeeze-excite adds one that reads its features and one
that reads and writes them; batch norm, activation and addition are counted as part of their convolution. A depthwise
convolution computes `depthwise` times slower than a dense one.

`share` and `launch_us` of the devices in `FITS` are fitted on whole networks whose latency once-for-all's authors published,
in whole milliseconds, which alone is up to 10 % of the V100's 5 ms (`fit`; benchmarks/fit_roofline.py runs it again and
writes residuals). `depthwise` is fitted to no device but one rounded figure per kind: 8 on GPUs and server CPUs (6 to 11
where it was left free), 2 on phones (1 to 3). It was chosen with all networks seen, and errors of left-out networks hold it
fixed; left free as a third constant, those of the V100 are 6 % instead of 3 %. No published GPU network has squeeze-excite
or h-swish: what these cost there is the model's word.

Every other device borrows the constants of a fitted one and differs by its published peaks only; how wrong that was where
it could be checked stands in `BORROWED`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ofasearch.latency.table import ANY, Correction, LatencyTable, Row, TableKey
from ofasearch.space.core import Blueprint, LayerSpec, Space
from ofasearch.space.costs import FLOAT_BYTES, convs

Numbers = npt.NDArray[np.float64]
Measured = Sequence[tuple[Blueprint, float]]  # networks and their milliseconds

RUNTIME = "roofline estimate"
WIDE = 1.5  # an offset is fitted only to networks of which the slowest is estimated at so many times the fastest


@dataclass(frozen=True, slots=True, kw_only=True)
class Constants:
    """What a device reaches of its peaks."""

    share: float  # of both published peaks
    launch_us: float  # per kernel, microseconds
    depthwise: float  # how many times slower depthwise convolutions compute


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """Constants, the networks they are fitted on, and how far the estimates of these are off (fractions of the latency)."""

    constants: Constants
    nets: int
    family: str  # of the networks; ProxylessNAS ones have no squeeze-excite and no h-swish
    batch: int
    mape: float  # of the fitted networks
    left_out_mape: float | None = None  # of networks that are not in the fit: each when it is left out, or further published ones
    left_out_max: float | None = None


@dataclass(frozen=True, slots=True)
class Device:
    """Published single-precision peak (TFLOP/s, boost clock) and memory bandwidth (GB/s), with their source.

    `like` names the fit whose constants it takes: its own where the names are equal.
    """

    name: str
    peak_tflops: float
    bandwidth_gbs: float
    source: str
    like: str = "v100"


# The V100's time per kernel is also that of the two devices with fewer networks; the left-out ones of these are further published
# networks (fit_roofline.py --more).
FITS = {
    "v100": Fit(
        constants=Constants(share=0.5618, launch_us=33.84, depthwise=8),
        nets=4,
        family="ProxylessNAS",
        batch=64,
        mape=0.0135,
        left_out_mape=0.0274,
        left_out_max=0.0352,
    ),
    "gtx1080ti": Fit(
        constants=Constants(share=0.3295, launch_us=33.84, depthwise=8),
        nets=1,
        family="ProxylessNAS",
        batch=64,
        mape=0.0,
        left_out_mape=0.0832,
        left_out_max=0.0832,
    ),
    "tx2": Fit(
        constants=Constants(share=0.2853, launch_us=33.84, depthwise=8),
        nets=2,
        family="ProxylessNAS",
        batch=16,
        mape=0.0105,
        left_out_mape=0.0147,
        left_out_max=0.0293,
    ),
    "xeon": Fit(
        constants=Constants(share=0.0942, launch_us=69.69, depthwise=8),
        nets=4,
        family="ProxylessNAS",
        batch=1,
        mape=0.0136,
        left_out_mape=0.0276,
        left_out_max=0.0334,
    ),
    "note10": Fit(
        constants=Constants(share=0.5837, launch_us=20.24, depthwise=2),
        nets=8,
        family="MobileNetV3",
        batch=1,
        mape=0.0089,
        left_out_mape=0.0123,
        left_out_max=0.0238,
    ),
    "pixel1": Fit(
        constants=Constants(share=0.5996, launch_us=58.57, depthwise=2),
        nets=7,
        family="MobileNetV3",
        batch=1,
        mape=0.0118,
        left_out_mape=0.0152,
        left_out_max=0.0478,
    ),
    "pixel2": Fit(
        constants=Constants(share=0.4149, launch_us=25.95, depthwise=2),
        nets=4,
        family="MobileNetV3",
        batch=1,
        mape=0.0081,
        left_out_mape=0.0162,
        left_out_max=0.0177,
    ),
}

# What happened when constants of one device were carried to others that have published networks (fit_roofline.py, "carried").
# One measured network, to which the estimates are scaled, takes most of that away ("one_network").
ONE_NETWORK = "tried on devices with published times, other networks were then off by up to 15 % on GPUs and 22 % on phones"
BORROWED = {
    "v100": "on a GTX 1080 Ti and a Jetson TX2 they made networks 30 to 48 % too fast, in the right order",
    "tx2": "on a V100 and a GTX 1080 Ti they made networks 14 to 83 % too slow, in the right order",
    "pixel1": "on a Note10 and a Pixel 2 they made networks from 25 % too fast to 27 % too slow, in the right order",
}

_UNCHECKED = "not checked against the data sheet"
DEVICES = {
    device.name: device
    for device in (
        Device("rtx2080", 10.07, 448, "NVIDIA Turing architecture whitepaper (2018), GeForce RTX 2080, reference boost clock"),
        Device("rtx2080ti", 13.45, 616, "NVIDIA Turing architecture whitepaper (2018), GeForce RTX 2080 Ti, reference boost clock"),
        Device("gtx1080ti", 11.34, 484, "NVIDIA GeForce GTX 1080 Ti specifications (2017)", "gtx1080ti"),
        Device("v100", 15.7, 900, "NVIDIA Tesla V100 SXM2 datasheet (2018)"),
        Device("h200", 67.0, 4800, "NVIDIA H200 datasheet (2024), FP32"),
        Device("jetson-nano", 0.236, 25.6, f"128 Maxwell cores at 0.92 GHz, 64-bit LPDDR4 (NVIDIA; {_UNCHECKED})", "tx2"),
        Device("tx2", 0.666, 59.7, f"256 Pascal cores at 1.3 GHz, 128-bit LPDDR4 (NVIDIA; {_UNCHECKED})", "tx2"),
        Device("jetson-xavier", 1.41, 136.5, f"512 Volta cores at 1.377 GHz, 256-bit LPDDR4x (NVIDIA; {_UNCHECKED})", "tx2"),
        Device("jetson-orin-nano", 1.28, 68.0, f"1024 Ampere cores at 0.625 GHz, 128-bit LPDDR5 (NVIDIA; {_UNCHECKED})", "tx2"),
        Device("raspberrypi4", 0.048, 12.8, f"4 Cortex-A72 at 1.5 GHz, 8 FLOP a cycle, 32-bit LPDDR4 ({_UNCHECKED})", "pixel1"),
        Device(
            "note10", 0.0454, 34.1, f"one core at 2.84 GHz, 16 FLOP a cycle, 64-bit LPDDR4x ({_UNCHECKED}; cores used unknown)", "note10"
        ),
        Device("pixel1", 0.0172, 29.8, f"one core at 2.15 GHz, 8 FLOP a cycle, 64-bit LPDDR4 ({_UNCHECKED}; cores used unknown)", "pixel1"),
        Device(
            "pixel2", 0.0188, 29.8, f"one core at 2.35 GHz, 8 FLOP a cycle, 64-bit LPDDR4x ({_UNCHECKED}; cores used unknown)", "pixel2"
        ),
        Device("xeon", 1.0, 60.0, "nominal: of the machine only 'Intel Xeon CPU with MKL-DNN' is published", "xeon"),
    )
}


# -- estimates -------------------------------------------------------------------------------------------------


def kernels(spec: LayerSpec, batch: int) -> Iterator[tuple[float, float, bool]]:
    """FLOP and bytes of each kernel of a layer, and whether it is a depthwise convolution."""
    for conv in convs(spec):
        weights = conv.kernel**2 * (conv.c_in // conv.groups) * conv.c_out
        moved = (conv.c_in * conv.hw_in**2 + conv.c_out * conv.hw_out**2) * batch + weights
        yield 2.0 * conv.hw_out**2 * weights * batch, float(FLOAT_BYTES * moved), conv.groups > 1
    if spec.c_se:
        features = float(FLOAT_BYTES * batch * spec.c_mid * spec.hw_out**2)
        yield 0.0, features, False  # pooled
        yield 0.0, 2 * features, False  # scaled
    if spec.kind in ("pool", "maxpool"):
        yield 0.0, float(FLOAT_BYTES * batch * spec.c_in * (spec.hw_in**2 + spec.hw_out**2)), False


def _at_peak(blueprint: Blueprint, device: Device, batch: int, depthwise: float) -> tuple[float, int]:
    """Milliseconds of some layers if their kernels reached the published peaks, and how many kernels there are."""
    total, count = 0.0, 0
    for spec in blueprint:
        for flop, moved, is_depthwise in kernels(spec, batch):
            slower = depthwise if is_depthwise else 1.0
            total += max(slower * flop / (device.peak_tflops * 1e9), moved / (device.bandwidth_gbs * 1e6))
            count += 1
    return total, count


def estimate_ms(spec: LayerSpec, device: Device, batch: int) -> float:
    """Milliseconds of one layer in fp32 for `batch` images."""
    return network_ms((spec,), device, batch)


def network_ms(blueprint: Blueprint, device: Device, batch: int) -> float:
    """Milliseconds of a whole network in fp32 for `batch` images."""
    constants = FITS[device.like].constants
    at_peak, count = _at_peak(blueprint, device, batch, constants.depthwise)
    return at_peak / constants.share + count * constants.launch_us / 1000


def estimated_table(space: Space, device: Device, *, batch: int = 1) -> LatencyTable:
    """A table of estimates for every layer the space can contain; its card says where they come from and how far to trust them."""
    key = TableKey(device=device.name, runtime=RUNTIME, precision="fp32", batch=batch)
    rows = {(ANY, spec.shape): Row(ms, ms, 0, "estimated") for spec in space.layers() for ms in [estimate_ms(spec, device, batch)]}
    return LatencyTable(device.name, key, rows, card=card_of(device, batch))


def card_of(device: Device, batch: int) -> dict[str, Any]:
    """Peaks, constants, their origin and the stated error of a device's estimates."""
    constants = FITS[device.like].constants
    return {
        "peak_tflops": device.peak_tflops,
        "bandwidth_gbs": device.bandwidth_gbs,
        "origin": device.source,
        "share": constants.share,
        "launch_us": constants.launch_us,
        "depthwise": constants.depthwise,
        "constants": _constants_text(device),
        "error": error_text(device, batch),
    }


def _constants_text(device: Device) -> str:
    fit = FITS[device.like]
    plain = " (no squeeze-excite, no h-swish)" if fit.family == "ProxylessNAS" else ""
    nets = f"{fit.nets} {fit.family} network{'s' if fit.nets > 1 else ''}{plain} that once-for-all's authors timed at batch {fit.batch}"
    return f"fitted on {nets} on {'it' if device.like == device.name else device.like}"


def error_text(device: Device, batch: int) -> str:
    """What is known of the error of a device's estimates at a batch, in words."""
    fit = FITS[device.like]
    if device.like != device.name:
        known = BORROWED.get(device.like, "how far they are off on other devices is not known")
        text = f"constants of {device.like} with the peaks of {device.name}: {known}"
    else:
        off, which = (fit.mape, "fitted") if fit.left_out_mape is None else (fit.left_out_mape, "left out of the fit")
        text = f"published networks that were {which} are off by {100 * off:.1f} % on average"
    return text if batch == fit.batch else f"{text}; that is known at batch {fit.batch}, nothing at batch {batch}"


# -- one measured network removes a device's bias --------------------------------------------------------------


def calibrate(measured: Measured, device: Device, batch: int) -> tuple[Correction, float | None]:
    """The correction that n measured networks ask for, and the mean error (fraction) of each when only the others are used.

    A scale, fitted to relative errors; from three networks on that are wide enough apart also an offset of at least 0 ms, if
    networks left out come out better with it. The error of one network alone is unknown: None. Raises ValueError without a
    network, and for latencies of another world (see `Correction`).
    """
    if not measured or any(not 0 < ms < np.inf for _, ms in measured):
        raise ValueError("calibration needs at least one network and positive latencies")
    estimates = np.array([network_ms(blueprint, device, batch) for blueprint, _ in measured])
    real = np.array([ms for _, ms in measured])
    scale = estimates[:, None]
    best, error = scale, _left_out(scale, real, _solve)
    if len(real) >= 3 and estimates.max() >= WIDE * estimates.min():
        line = np.column_stack([estimates, np.ones(len(real))])
        with_offset = _left_out(line, real, _solve)
        if with_offset is not None and error is not None and with_offset.mean() < error.mean() and _solve(line, real).min() >= 0:
            best, error = line, with_offset
    slope, offset = [*_solve(best, real), 0.0][:2]
    return Correction(float(slope), float(offset), len(real)), None if error is None else float(error.mean())


# -- fitting the constants -------------------------------------------------------------------------------------


def fit(measured: Measured, device: Device, batch: int, *, depthwise: float, family: str = "", launch_us: float | None = None) -> Fit:
    """Constants of a device from whole networks measured at one batch: the least sum of squared relative errors, closed form.

    Where `launch_us` is given only the share is fitted (one network suffices, else two). Neither gets negative.
    Raises ValueError for too few networks.
    """
    if len(measured) < (2 if launch_us is None else 1):
        raise ValueError("two constants need at least two networks")
    columns = np.array([_at_peak(blueprint, device, batch, depthwise) for blueprint, _ in measured], dtype=np.float64)
    real = np.array([ms for _, ms in measured])
    found = _solve_constants(columns, real) if launch_us is None else _solve_share(columns, real, launch_us)
    errors = np.abs(columns @ found / real - 1)
    left_out = _left_out(columns, real, _solve_constants) if launch_us is None else None
    return Fit(
        constants=Constants(share=float(1 / found[0]), launch_us=float(1000 * found[1]), depthwise=depthwise),
        nets=len(real),
        family=family,
        batch=batch,
        mape=float(errors.mean()),
        left_out_mape=None if left_out is None else float(left_out.mean()),
        left_out_max=None if left_out is None else float(left_out.max()),
    )


def _solve_constants(columns: Numbers, real: Numbers) -> Numbers:
    """(1 / share, launch in ms) of columns (n, 2) = milliseconds at peak and kernels; a negative launch is none."""
    both = _solve(columns, real)
    return both if both[1] >= 0 else _solve_share(columns, real, 0.0)


def _solve_share(columns: Numbers, real: Numbers, launch_us: float) -> Numbers:
    """As `_solve_constants` where the launch is known."""
    launch_ms = launch_us / 1000
    at_peak = columns[:, 0] / real
    return np.array([at_peak @ (1 - columns[:, 1] * launch_ms / real) / (at_peak @ at_peak), launch_ms], dtype=np.float64)


def _solve(columns: Numbers, real: Numbers) -> Numbers:
    """Coefficients of columns (n, k) with the least squared relative errors of their sum to `real` (n,)."""
    return np.asarray(np.linalg.lstsq(columns / real[:, None], np.ones(len(real)), rcond=None)[0], dtype=np.float64)


def _left_out(columns: Numbers, real: Numbers, solve: Callable[[Numbers, Numbers], Numbers]) -> Numbers | None:
    """Relative error of each of n when fitted on the others; None where these are too few."""
    if len(real) <= columns.shape[1]:
        return None
    rest = [np.arange(len(real)) != i for i in range(len(real))]
    return np.array([abs(columns[i] @ solve(columns[r], real[r]) / real[i] - 1) for i, r in enumerate(rest)], dtype=np.float64)
