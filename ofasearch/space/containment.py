"""Networks that hold all weights of another one: as a space of their own, so that no search has to reject any.

Per block of the smaller network the larger one's depth, kernel and expand ratio are at least as large, and since the choices
of every gene ascend, that is a floor under each code. The resolution is no weight and stays free.

Legend: n = networks, g = genes.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from ofasearch.space.core import Codes, Gate, Gene, Space


def containing(space: Space, codes: Codes) -> Space:
    """The networks of `space` that hold all weights of the one with `codes` (g,), itself among them.

    It has the same name and fewer choices per gene, so that codes differ and arch ids do not.
    Raises ArchError for codes of no network. Reference: REG-NAS, "CAS"; its formal rule could not be read, this is
    what its abstract says ("the larger model contains all weights of the smaller one").
    """
    space.validate(codes[None])
    floor = np.maximum(codes, 1)
    floor[0] = 1  # the resolution

    def narrowed(index: int, gene: Gene) -> Gene:
        gate = gene.gate and Gate(gene.gate.gene, max(1, gene.gate.at_least - int(floor[gene.gate.gene]) + 1))
        return replace(gene, choices=gene.choices[int(floor[index]) - 1 :], gate=gate)

    return replace(space, genes=tuple(narrowed(index, gene) for index, gene in enumerate(space.genes)))


def recoded(codes: Codes, source: Space, target: Space) -> tuple[npt.NDArray[np.bool_], Codes]:
    """Which networks (n, g) of `source` are among those of `target`, the same space with other choices, and their codes there (k, g)."""
    found = np.zeros(codes.shape, dtype=np.int64)
    for column, (old, new) in enumerate(zip(source.genes, target.genes, strict=True)):
        code_of = {choice: code for code, choice in enumerate(new.choices, start=1)}
        found[:, column] = np.array([0, *(code_of.get(choice, -1) for choice in old.choices)])[codes[:, column]]
    kept = np.asarray((found >= 0).all(axis=1))
    return kept, found[kept]


def equal_filters(space: Space, big: Codes, small: Codes) -> npt.NDArray[np.bool_]:
    """Whether each network of `big` (n, g) has the kernel of the one with `small` (g,) in each of that one's blocks, (n,).

    Where kernels are transformed from the next larger one, only then the *effective* filters are the same as well.
    """
    theirs = space.settings(small[None]).ks
    return np.asarray(((space.settings(big).ks == theirs) | (theirs == 0)).all(axis=1))
