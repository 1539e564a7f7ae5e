"""The cheapest single change of a network that saves a given time."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ofasearch.errors import InfeasibleError
from ofasearch.jobs.judge import Judge
from ofasearch.jobs.setup import show_ms
from ofasearch.latency.table import LatencyTable, Source
from ofasearch.space.core import Codes, Space
from ofasearch.space.costs import macs_of

SHOWN = 5  # changes
ROUNDING = 1e-9  # relative: a saving of exactly what was asked counts


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """One gene set to another choice, and the network that this makes. `top1_change` is None where nothing judges it."""

    arch_id: str
    what: str
    latency_ms: float
    saving_ms: float
    source: Source
    macs: int
    top1: float | None = None
    top1_change: float | None = None

    @property
    def record(self) -> dict[str, Any]:
        """As JSON; what there is not is absent."""
        found: dict[str, Any] = {"arch_id": self.arch_id, "change": self.what, "latency_ms": self.latency_ms}
        found |= {"saving_ms": self.saving_ms, "source": self.source, "macs": self.macs}
        return found | ({} if self.top1 is None else {"predicted_top1": self.top1, "predicted_top1_change": self.top1_change})


@dataclass(frozen=True, slots=True, kw_only=True)
class Savings:
    """The best changes that save at least `save_ms`, of `enough` that do among `tried`."""

    save_ms: float
    ranked_by: str
    tried: int
    enough: int
    changes: tuple[Change, ...]

    @property
    def record(self) -> dict[str, Any]:
        """As JSON."""
        found = {"save_ms": self.save_ms, "ranked_by": self.ranked_by, "tried": self.tried, "enough": self.enough}
        return found | {"changes": [change.record for change in self.changes]}


def find_savings(space: Space, codes: Codes, table: LatencyTable, judge: Judge | None, save_ms: float) -> Savings:
    """All single changes of a network (g,) that save at least so much, least accuracy lost first; without a judge, most MACs kept.

    Raises InfeasibleError that names the largest single saving, UnmeasuredError.
    """
    cost, name = table.cost(space), space.arch(codes).id
    own_ms = float(cost(codes[None])[0])
    if save_ms >= own_ms:
        raise InfeasibleError(f"--save must be less than the {show_ms(own_ms)} that {name} takes, but got {show_ms(save_ms)}")
    rows, genes = single_changes(space, codes)
    saving = own_ms - cost(rows)
    enough = np.flatnonzero(saving >= save_ms * (1 - ROUNDING))
    if not len(enough):
        raise _too_much(space, codes, rows, genes, saving, save_ms)
    top1 = judge.score(space.settings(rows[enough])) if judge is not None else None
    own_top1 = float(judge.score(space.settings(codes[None]))[0]) if judge is not None else None
    macs = macs_of(space)(rows[enough])
    order = np.lexsort((-saving[enough], -(macs if top1 is None else top1)))[:SHOWN]
    changes = [
        Change(
            arch_id=space.arch(rows[i]).id,
            what=_what(space, codes, rows[i], int(genes[i])),
            latency_ms=own_ms - float(saving[i]),
            saving_ms=float(saving[i]),
            source=table.source_of(space.blueprint(rows[i])),
            macs=int(macs[place]),
            top1=None if top1 is None else float(top1[place]),
            top1_change=None if top1 is None or own_top1 is None else float(top1[place]) - own_top1,
        )
        for place, i in ((place, enough[place]) for place in order)
    ]
    ranked_by = "MACs kept" if judge is None else f"top-1 ({judge.source})"
    return Savings(save_ms=save_ms, ranked_by=ranked_by, tried=len(rows), enough=len(enough), changes=tuple(changes))


def single_changes(space: Space, codes: Codes) -> tuple[Codes, npt.NDArray[np.int64]]:
    """Every network that one gene set to another choice makes of a network (g,): canonical codes (n, g) and the genes (n,).

    Blocks that a larger depth brings in take their first choices.
    """
    rows, genes = list[Codes](), list[int]()
    for gene in np.flatnonzero(codes):
        for code in range(1, int(space.sizes[gene]) + 1):
            if code != codes[gene]:
                row = codes.copy()
                row[gene] = code
                rows.append(row)
                genes.append(int(gene))
    found = np.array(rows, dtype=np.int64).reshape(-1, len(codes))
    return space.canonical(np.maximum(found, 1)), np.array(genes, dtype=np.int64)


def _what(space: Space, before: Codes, after: Codes, gene: int) -> str:
    """A change in words, e.g. "s3.b2 kernel 5 -> 3"."""
    changed = space.genes[gene]
    old, new = (changed.choices[int(codes[gene]) - 1] for codes in (before, after))
    return f"{' '.join(part for part in changed.name.rpartition('.') if part != '.')} {old} -> {new}".strip()


def _too_much(space: Space, codes: Codes, rows: Codes, genes: Codes, saving: npt.NDArray[np.float64], save_ms: float) -> InfeasibleError:
    name = space.arch(codes).id
    if not len(saving) or saving.max() <= 0:
        return InfeasibleError(f"--save must be what a single change of {name} can save, but none saves anything; got {show_ms(save_ms)}")
    best = int(saving.argmax())
    return InfeasibleError(
        f"--save must be at most {_rounded_down(float(saving[best]))} ms, the largest saving of a single change of {name} "
        f"({_what(space, codes, rows[best], int(genes[best]))}), but got {show_ms(save_ms)}"
    )


def _rounded_down(ms: float) -> str:
    """Four digits that do not say more than there is: who asks for them gets an answer."""
    unit = 10.0 ** (math.floor(math.log10(ms)) - 3)
    return f"{math.floor(ms / unit) * unit:.4g}"
