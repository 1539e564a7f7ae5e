"""`--prefer "top1>=76,latency<=15ms"`: which network of a front keeps what a user wishes."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ofasearch.errors import UsageError
from ofasearch.jobs.axes import Axis, get_axis
from ofasearch.space.core import Values

_WISH = re.compile(r"\s*([A-Za-z0-9_-]+)\s*(>=|<=|>|<)\s*([^\s<>=][^<>=]*)")
EXAMPLE = "top1>=76,latency<=15ms"


@dataclass(frozen=True, slots=True)
class Wish:
    """A limit of one quantity, in its own unit: at least of accuracies, at most of costs; strictly so where asked."""

    axis: Axis
    limit: float
    strict: bool

    def __str__(self) -> str:
        sign = (">" if self.axis.rises else "<") + ("" if self.strict else "=")
        return f"{self.axis.name} {sign} {self.axis.show(self.limit)}"

    def lacks(self, values: Values) -> Values:
        """How far values (n,) stay behind the limit, (n,), in their own unit; never below 0."""
        return np.maximum(self.limit - values if self.axis.rises else values - self.limit, 0)

    def kept(self, values: Values) -> npt.NDArray[np.bool_]:
        """Which values (n,) keep the limit, (n,)."""
        return np.asarray((self.lacks(values) == 0) & ((values != self.limit) | (not self.strict)))


def parse_wishes(text: str) -> tuple[Wish, ...]:
    """What the text asks for.

    Raises UsageError: no such form, unknown or repeated names, bad units, an accuracy to stay below or a cost to exceed.
    """
    wishes = tuple(_wish(part) for part in text.split(","))
    for wish in wishes:
        if sum(other.axis == wish.axis for other in wishes) > 1:
            raise UsageError(f"--prefer must limit each quantity once, but limits {wish.axis.name} more often in '{text}'")
    return wishes


def _wish(text: str) -> Wish:
    match = _WISH.fullmatch(text)
    if match is None:
        raise UsageError(f"--prefer must be limits with >=, <=, > or <, such as {EXAMPLE}, but got '{text}'")
    name, sign, limit = match.groups()
    axis = get_axis(name, "--prefer")
    if axis.rises != sign.startswith(">"):
        sense = "from below, such as top1>=76" if axis.rises else "from above, such as latency<=15ms"
        raise UsageError(f"--prefer must limit {axis.name} {sense}, but got '{text.strip()}'")
    try:
        value = axis.read(limit)
    except UsageError as error:
        raise UsageError(f"--prefer {axis.name}: {error}") from error
    return Wish(axis, value, strict="=" not in sign)


def needs(wishes: Sequence[Wish], name: str) -> bool:
    """Whether a quantity is asked for."""
    return any(wish.axis.name == name for wish in wishes)


@dataclass(frozen=True, slots=True)
class Choice:
    """A row of a front, how many rows keep all wishes, and by what rule it is the best of them."""

    row: int
    keeping: int
    rule: str


def choose(wishes: Sequence[Wish], values: Mapping[str, Values], cost: Axis) -> Choice | None:
    """The best row that keeps all wishes; None where no row does.

    Where a cost is limited, the most accurate one, of equals the cheapest; where only accuracy is, the cheapest one, of
    equals the most accurate. `values` (n,) are those of each quantity by name, `cost` the cost that tells what is cheap.
    """
    kept = np.logical_and.reduce([wish.kept(values[wish.axis.name]) for wish in wishes])
    rows = np.flatnonzero(kept)
    if not len(rows):
        return None
    accuracy = "lcb" if needs(wishes, "lcb") else "top1"
    worse, dear = -values[accuracy][rows], values[cost.name][rows]
    if all(wish.axis.rises for wish in wishes):
        return Choice(int(rows[np.lexsort((worse, dear))[0]]), len(rows), f"the least {cost.title}")
    return Choice(int(rows[np.lexsort((dear, worse))[0]]), len(rows), "the most accurate")


def nearest(wishes: Sequence[Wish], values: Mapping[str, Values]) -> int:
    """The row that lacks least: the smallest of the greatest lacks, each as a share of what the front spans."""
    shares = []
    for wish in wishes:
        found = values[wish.axis.name]
        shares.append(wish.lacks(found) / (np.ptp(found) or wish.limit) + 1e-12 * ~wish.kept(found))
    return int(np.max(shares, axis=0).argmin())


__all__ = ["Choice", "Wish", "choose", "nearest", "needs", "parse_wishes"]
