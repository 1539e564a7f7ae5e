"""Prices that need no device: multiply-accumulates, parameters, peak activation memory of one layer.

All are for one image (batch 1). Use them with `Space.tabulate`, or sum them over a blueprint.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import get_args

from ofasearch.errors import ArchError
from ofasearch.space.core import Blueprint, Kind, LayerSpec, Space
from ofasearch.space.pricing import Cost

FLOAT_BYTES = 4


@dataclass(frozen=True, slots=True)
class Conv:
    """One convolution inside a layer (a linear layer is one with 1x1 pixels); `live` = elements kept for a later add."""

    c_in: int
    c_out: int
    kernel: int
    groups: int
    hw_in: int
    hw_out: int
    live: int = 0


def convs(spec: LayerSpec) -> Iterator[Conv]:
    """The convolutions of a layer in order, squeeze-excite included.

    Raises ArchError for a kind that has no cost model.
    """
    if spec.kind in ("pool", "maxpool"):
        return
    if spec.kind in ("conv", "linear"):
        yield Conv(spec.c_in, spec.c_out, spec.kernel, 1, spec.hw_in, spec.hw_out)  # with a skip its input is the kept tensor
    elif spec.kind == "bottleneck":
        kept = spec.c_in * spec.hw_in**2  # for the shortcut
        yield Conv(spec.c_in, spec.c_mid, 1, 1, spec.hw_in, spec.hw_in)  # its input is the kept tensor itself
        yield Conv(spec.c_mid, spec.c_mid, spec.kernel, 1, spec.hw_in, spec.hw_out, kept)
        yield Conv(spec.c_mid, spec.c_out, 1, 1, spec.hw_out, spec.hw_out, kept)
        if not spec.skip:
            yield Conv(spec.c_in, spec.c_out, 1, 1, spec.hw_out, spec.hw_out, spec.c_out * spec.hw_out**2)
    elif spec.kind == "mbconv":
        kept = spec.c_in * spec.hw_in**2 if spec.skip else 0
        if spec.c_mid != spec.c_in:
            yield Conv(spec.c_in, spec.c_mid, 1, 1, spec.hw_in, spec.hw_in)  # its input is the kept tensor itself
        live = kept if spec.c_mid != spec.c_in else 0
        yield Conv(spec.c_mid, spec.c_mid, spec.kernel, spec.c_mid, spec.hw_in, spec.hw_out, live)
        if spec.c_se:
            features = spec.c_mid * spec.hw_out**2  # wait for the gate
            yield Conv(spec.c_mid, spec.c_se, 1, 1, 1, 1, kept + features)
            yield Conv(spec.c_se, spec.c_mid, 1, 1, 1, 1, kept + features)
        yield Conv(spec.c_mid, spec.c_out, 1, 1, spec.hw_out, spec.hw_out, kept)
    else:
        raise ArchError(f"layer kind must be one of {', '.join(get_args(Kind))}, but got '{spec.kind}'")


def macs(spec: LayerSpec) -> int:
    """Multiply-accumulates of convolutions and linear layers; batch norm, activations and pooling count nothing."""
    return sum(c.hw_out**2 * c.kernel**2 * (c.c_in // c.groups) * c.c_out for c in convs(spec))


def params(spec: LayerSpec) -> int:
    """Weights, biases, and the scale and shift of batch norms; running statistics are no parameters."""
    weights = sum(c.kernel**2 * (c.c_in // c.groups) * c.c_out for c in convs(spec))
    if spec.kind == "mbconv":
        expanded = spec.c_mid if spec.c_mid != spec.c_in else 0
        return weights + 2 * (expanded + spec.c_mid + spec.c_out) + ((spec.c_se + spec.c_mid) if spec.c_se else 0)
    if spec.kind == "bottleneck":
        return weights + 2 * (2 * spec.c_mid + spec.c_out + (0 if spec.skip else spec.c_out))
    return weights + (2 * spec.c_out if spec.norm else 0) + (spec.c_out if spec.bias else 0)


def activation_bytes(spec: LayerSpec) -> int:
    """Largest sum of input, output and kept skip tensors over the convolutions of a layer, fp32, one image."""
    if spec.kind == "pool":
        return FLOAT_BYTES * spec.c_in * (spec.hw_in**2 + 1)
    if spec.kind == "maxpool":
        return FLOAT_BYTES * spec.c_in * (spec.hw_in**2 + spec.hw_out**2)
    return FLOAT_BYTES * max(c.c_in * c.hw_in**2 + c.c_out * c.hw_out**2 + c.live for c in convs(spec))


@dataclass(frozen=True, slots=True)
class Costs:
    """What one network costs on any device; `activation_bytes` is a maximum over layers, not a sum."""

    macs: int
    params: int
    activation_bytes: int


def costs(blueprint: Blueprint) -> Costs:
    """MACs, parameters and peak activation memory of a network at batch 1."""
    return Costs(sum(map(macs, blueprint)), sum(map(params, blueprint)), max(map(activation_bytes, blueprint)))


def macs_of(space: Space) -> Cost:
    """MACs of any population of the space."""
    return space.tabulate(macs)


def params_of(space: Space) -> Cost:
    """Parameters of any population of the space."""
    return space.tabulate(params)


def activation_bytes_of(space: Space) -> Cost:
    """Peak activation memory, bytes, of any population of the space."""
    return space.tabulate(activation_bytes, reduce="max")
