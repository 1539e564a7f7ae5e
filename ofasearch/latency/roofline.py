"""Milliseconds of a layer from a card's published peaks: an estimate, never a measurement. No torch.

Each convolution takes the longer of computing and moving its data, plus a fixed time to launch its kernels. The peaks
are theoretical, so whole networks come out too fast, and more so the smaller their layers.
"""

from __future__ import annotations

from dataclasses import dataclass

from ofasearch.latency.table import ANY, LatencyTable, Row, TableKey
from ofasearch.space.core import LayerSpec, Space
from ofasearch.space.costs import FLOAT_BYTES, convs

LAUNCH_US = 5.0  # per kernel, microseconds: the order of magnitude of a CUDA launch; not fitted to any card


@dataclass(frozen=True, slots=True)
class Device:
    """Published single-precision peak (TFLOP/s, boost clock) and memory bandwidth (GB/s), with their source."""

    name: str
    peak_tflops: float
    bandwidth_gbs: float
    source: str


DEVICES = {
    device.name: device
    for device in (
        Device("rtx2080", 10.07, 448, "NVIDIA Turing architecture whitepaper (2018), GeForce RTX 2080, reference boost clock"),
        Device("rtx2080ti", 13.45, 616, "NVIDIA Turing architecture whitepaper (2018), GeForce RTX 2080 Ti, reference boost clock"),
        Device("gtx1080ti", 11.34, 484, "NVIDIA GeForce GTX 1080 Ti specifications (2017)"),
        Device("v100", 15.7, 900, "NVIDIA Tesla V100 SXM2 datasheet (2018)"),
        Device("h200", 67.0, 4800, "NVIDIA H200 datasheet (2024), FP32"),
    )
}


def estimate_ms(spec: LayerSpec, device: Device, batch: int) -> float:
    """Milliseconds of one layer in fp32 by the roofline."""
    total = 0.0
    for conv in convs(spec):
        macs = conv.hw_out**2 * conv.kernel**2 * (conv.c_in // conv.groups) * conv.c_out * batch
        activations = (conv.c_in * conv.hw_in**2 + conv.c_out * conv.hw_out**2) * batch
        weights = conv.kernel**2 * (conv.c_in // conv.groups) * conv.c_out
        compute_ms = 2 * macs / (device.peak_tflops * 1e9)
        move_ms = FLOAT_BYTES * (activations + weights) / (device.bandwidth_gbs * 1e6)
        total += max(compute_ms, move_ms) + LAUNCH_US / 1000
    return total if spec.kind != "pool" else LAUNCH_US / 1000


def estimated_table(space: Space, device: Device, *, batch: int = 1) -> LatencyTable:
    """A table of estimates for every layer the space can contain."""
    key = TableKey(device=device.name, runtime="roofline estimate", precision="fp32", batch=batch)
    rows = {(ANY, spec.shape): Row(ms, ms, 0, "estimated") for spec in space.layers() for ms in [estimate_ms(spec, device, batch)]}
    card = {"peak_tflops": device.peak_tflops, "bandwidth_gbs": device.bandwidth_gbs, "origin": device.source, "launch_us": LAUNCH_US}
    return LatencyTable(device.name, key, rows, card=card)
