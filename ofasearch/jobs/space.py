"""What a design space holds: choices stage by stage, and the costs of its ends."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

import numpy as np

from ofasearch.space.core import Codes, Space
from ofasearch.space.costs import costs
from ofasearch.space.families import get_space
from ofasearch.space.own import space_card


def show(name: str) -> dict[str, Any]:
    """`space show`: size, costs of the smallest and the largest network at the ends of the resolutions, and all choices.

    `name` may be a user's own file; then the record has its `design`, with every default filled in.
    Raises NotFoundError, FormatError.
    """
    space = get_space(name)
    ends = {
        f"{end} at {space.resolutions[code - 1]}": asdict(costs(space.blueprint(_at(codes, code))))
        for end, codes in (("smallest", space.smallest()), ("largest", space.largest()))
        for code in sorted({1, len(space.resolutions)})
    }
    return space_card(space.name) | {
        "size": str(space.size),
        "resolutions": list(space.resolutions),
        "classes": space.classes,
        "parent": space.parent,
        "networks": ends,
        "stages": [_stage(space, number) for number in sorted({gene.stage for gene in space.genes[1:]})],
    }


def _at(codes: Codes, resolution: int) -> Codes:
    return np.array([resolution, *codes[1:]], dtype=np.int64)


def _stage(space: Space, number: int) -> dict[str, Any]:
    """The choices of one stage (0 is the stem) and what its layers are."""
    prefix = f"s{number}." if number else "stem"
    slots = [slot for slot in space.slots if slot.name.startswith(prefix)]
    first, settings = next(space.layers_of(slots[0])), [space.settings_of(slot) for slot in slots]
    genes = {gene.reads[0]: list(gene.choices) for gene in space.genes[1:] if gene.stage == number}
    return {
        "stage": prefix.rstrip("."),
        "channels": sorted({spec.c_out for spec in space.layers_of(slots[-1])}),
        "stride": first.stride,
        "activation": first.act,
        "squeeze_excite": first.c_se > 0,
        "depths": genes.get("d"),
        "kernels": sorted({kernel for choices in settings for kernel, _ in choices}) or [first.kernel],
        "expands": sorted({ratio for choices in settings for _, ratio in choices}) or None,
        "widths": genes.get("w"),
    }
