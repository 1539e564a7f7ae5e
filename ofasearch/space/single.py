"""The space of one network: what takes a space takes a network that was cut out of one, too."""

from __future__ import annotations

from ofasearch.space.core import Blueprint, Gene, LayerSpec, Slot, Space


def single_space(name: str, blueprint: Blueprint) -> Space:
    """The space whose only network has these layers, each in a slot of its own name, at its own input size.

    Its one gene is the resolution, so it has codes, but no published settings.
    """
    size = Gene("resolution", "r", 0, (blueprint[0].hw_in,), ("r", 0))
    return Space(name, (size,), tuple(_slot(spec) for spec in blueprint), blueprint[-1].c_out, kernels=(), expands=())


def _slot(spec: LayerSpec) -> Slot:
    return Slot(spec.slot, (0,), lambda values: spec if values[0] else None)
