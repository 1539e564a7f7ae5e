"""Prices of whole networks: a gather over small tables, and their exact extremes by elimination.

Legend: n = networks, g = genes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import numpy as np
import numpy.typing as npt

if TYPE_CHECKING:
    from ofasearch.space.core import Codes, Gene, Space, Values

Reduce = Literal["sum", "max"]
CHUNK = 65_536  # networks priced at once, so that a large population needs little extra memory


@dataclass(frozen=True, slots=True)
class Bounds:
    """The exact extremes of a cost over a space and one network (codes, shape (g,)) that reaches each."""

    lowest: float
    lowest_codes: Codes
    highest: float
    highest_codes: Codes


@dataclass(frozen=True, slots=True)
class Factor:
    """A table over the codes of a few genes; `ok` is False where the combination cannot occur."""

    scope: tuple[int, ...]
    values: Values
    ok: npt.NDArray[np.bool_]


class TableIndex:
    """Where each network's entries stand in several tables over parent genes, laid out one behind the other.

    The positions are one product of the codes with a matrix of strides; in floats, because BLAS multiplies those and
    every value is a small whole number.
    """

    def __init__(self, genes: Sequence[Gene], parents: Sequence[tuple[int, ...]]):
        self._strides = np.zeros((len(genes), len(parents)))
        self._starts = np.zeros(len(parents))
        end = 0
        for column, group in enumerate(parents):
            self._starts[column] = end
            size = 1
            for parent in reversed(group):
                self._strides[parent, column] = size
                size *= len(genes[parent].choices) + 1
            end += size

    def __call__(self, codes: Codes) -> Codes:
        """Positions (n, tables) of codes (n, g)."""
        return np.asarray((codes @ self._strides + self._starts).astype(np.int64))


class Cost:
    """A price of whole networks: a gather over one small table per group of slots with the same parent genes.

    `cost(codes)` maps canonical codes (n, g) to (n,) floats. `scaled` gives slope * cost + offset.
    """

    def __init__(self, space: Space, tables: Mapping[tuple[int, ...], Values], reduce: Reduce, slope: float = 1.0, offset: float = 0.0):
        self._space, self._tables, self._reduce = space, dict(tables), reduce
        self._slope, self._offset = slope, offset
        self._bounds: Bounds | None = None
        self._index = TableIndex(space.genes, list(self._tables))
        self._flat = np.concatenate([table.ravel() for table in self._tables.values()])

    def __call__(self, codes: Codes) -> Values:
        """Prices (n,) of canonical codes (n, g)."""
        total = np.empty(len(codes))
        for start in range(0, len(codes), CHUNK):
            part = slice(start, start + CHUNK)
            entries = self._flat[self._index(codes[part])]  # (n, tables)
            total[part] = entries.sum(axis=1) if self._reduce == "sum" else entries.max(axis=1)
        return total * self._slope + self._offset

    def scaled(self, slope: float, offset: float) -> Cost:
        """The affine image of this cost; `slope` must be positive so that the order of networks is kept."""
        if slope <= 0:
            raise ValueError(f"slope must be positive, but got {slope}; an order-reversing correction is no correction")
        return Cost(self._space, self._tables, self._reduce, self._slope * slope, self._offset * slope + offset)

    def bounds(self) -> Bounds:
        """Exact minimum and maximum over the whole space, by min-sum (min-max) elimination of genes.

        Slots may share genes; the cost of the elimination grows with the number of genes that slots tie together,
        not with the size of the space. Worked out once.
        """
        if self._bounds is None:
            self._bounds = self._eliminate()
        return self._bounds

    def _eliminate(self) -> Bounds:
        order = self._order()
        lowest, low = self._extreme(order, np.min, np.argmin, np.inf)
        highest, high = self._extreme(order, np.max, np.argmax, -np.inf)
        return Bounds(lowest, low, highest, high)

    def _order(self) -> list[int]:
        """Genes in the order of their elimination: each time the one that is tied to the fewest others."""
        scopes = [set(scope) for scope in self._tables] + [set(self._space.presence(g).scope) for g in range(len(self._space.genes))]
        tied = {gene: set[int]().union(*(scope for scope in scopes if gene in scope)) for gene in range(len(self._space.genes))}
        order = []
        while tied:
            gene = min(tied, key=lambda g: (len(tied[g]), g))
            others = tied.pop(gene) - {gene}
            for other in others:
                tied[other] = (tied[other] | others) - {gene}
            order.append(gene)
        return order

    def _extreme(
        self, order: Sequence[int], best: Callable[..., Values], argbest: Callable[..., Codes], worst: float
    ) -> tuple[float, Codes]:
        combine = np.add if self._reduce == "sum" else np.maximum
        factors = [Factor(scope, t, np.ones(t.shape, dtype=bool)) for scope, t in self._tables.items()]
        factors += [self._space.presence(g) for g in range(len(self._space.genes))]
        choices: list[tuple[int, tuple[int, ...], Codes]] = []
        for gene in order:
            joined = self._join([f for f in factors if gene in f.scope], gene, combine)
            masked = np.where(joined.ok, joined.values, worst)
            choices.append((gene, joined.scope[:-1], argbest(masked, axis=-1)))
            reduced = Factor(joined.scope[:-1], best(masked, axis=-1), np.asarray(joined.ok.any(axis=-1)))
            neutral = np.where(reduced.ok, reduced.values, 0.0)  # infinities must not leak through np.add
            factors = [f for f in factors if gene not in f.scope] + [Factor(reduced.scope, neutral, reduced.ok)]
        codes = np.zeros(len(self._space.genes), dtype=np.int64)
        for gene, scope, table in reversed(choices):
            codes[gene] = table[tuple(codes[s] for s in scope)]
        return float(self(codes[None])[0]), codes

    def _join(self, factors: Sequence[Factor], last: int, combine: np.ufunc) -> Factor:
        """Combine factors into one over the union of their scopes, gene `last` on the last axis."""
        scope = (*sorted({s for f in factors for s in f.scope} - {last}), last)
        sizes = tuple(len(self._space.genes[s].choices) + 1 for s in scope)
        values, ok = np.zeros(sizes), np.ones(sizes, dtype=bool)
        for f in factors:
            order = sorted(range(len(f.scope)), key=lambda i: scope.index(f.scope[i]))
            shape = tuple(size if s in f.scope else 1 for s, size in zip(scope, sizes, strict=True))
            values = combine(values, f.values.transpose(order).reshape(shape))
            ok = ok & f.ok.transpose(order).reshape(shape)
        return Factor(scope, values, ok)
