"""What is asked of a search: an objective to minimise and budgets to keep, over one space."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass, field
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ofasearch.errors import InfeasibleError, UsageError
from ofasearch.search.state import State
from ofasearch.space.core import Codes, Space, Values
from ofasearch.space.pricing import Bounds

Objective = Callable[[Codes], Values]  # canonical codes (n, g) -> (n,), smaller is better


class Priced(Protocol):
    """A price of whole networks: canonical codes (n, g) -> (n,), and its extremes over the space."""

    def __call__(self, codes: Codes) -> Values:
        """Prices (n,)."""

    def bounds(self) -> Bounds:
        """The extremes and a network (g,) that reaches each."""


@dataclass(frozen=True, slots=True)
class Budget:
    """A cost of at most `limit`, in the cost's own unit; `show` spells a value of that unit for people."""

    name: str
    cost: Priced
    limit: float
    show: Callable[[float], str]


@dataclass(frozen=True, slots=True)
class Measures:
    """An objective that is put together from several measured quantities, each of which can be learned apart.

    `measure` is costly and gives the quantities (n, q) of networks (n, g); `combine` makes the objective (n,) of them, costs
    nothing and may be steep: a hard cap on one of the quantities. `previews` are the same quantities from fewer images,
    cheapest first, and so noisier. `hint` is what is known of networks without measuring, (n, h): the larger, the more
    promising, the most telling column first. `known` are networks (k, g) whose quantities (k, q) are known beforehand, like
    those of a reference: they are learned from. Unless `Problem.excluded` names them they may be measured all the same.
    """

    measure: Callable[[Codes], Values]
    combine: Callable[[Values], Values]
    previews: tuple[Callable[[Codes], Values], ...] = ()
    hint: Callable[[Codes], Values] | None = None
    known: tuple[Codes, Values] | None = None

    def objective(self, codes: Codes) -> Values:
        """The objective (n,), for `Problem.objectives`."""
        return self.combine(self.measure(codes))


@dataclass(frozen=True, slots=True)
class Problem:
    """Find the networks of `space` with the smallest objectives whose costs keep all budgets.

    With one objective the answer is a network, with several it is a front of them. Where `measures` tells what the only
    objective is made of, that is `measures.objective`.
    """

    space: Space
    objectives: tuple[Objective, ...]
    budgets: tuple[Budget, ...]
    measures: Measures | None = None
    excluded: Codes | None = None  # (k, g), networks that are no answer whatever they cost

    def objective(self, codes: Codes) -> Values:
        """The only objective (n,). Raises UsageError where there are several."""
        self.check_objectives(several=False)
        return self.objectives[0](codes)

    def check_objectives(self, *, several: bool) -> None:
        """Raise UsageError unless there is one objective, or unless there are several."""
        found = len(self.objectives)
        if several and found < 2:
            raise UsageError(f"this search must have several objectives, but got {found}; use one that finds a winner")
        if not several and found != 1:
            raise UsageError(f"this search must have one objective, but got {found}; use one that finds fronts")

    def values(self, codes: Codes) -> Values:
        """All objectives F (n, m)."""
        if len(self.objectives) == 1:
            return self.objectives[0](codes)[:, None]  # without the detour of a stack of one
        return np.stack([objective(codes) for objective in self.objectives], axis=1)

    def measured(self, codes: Codes) -> tuple[Values, Values]:
        """What the only objective is made of (n, q), and the objective F (n, 1); without measures it is made of itself."""
        if self.measures is None:
            F = self.values(codes)
            return F, F
        quantities = self.measures.measure(codes)
        return quantities, self.combined(quantities)[:, None]

    def combined(self, quantities: Values) -> Values:
        """The only objective (n,) of what was measured, (n, q)."""
        return quantities[:, 0] if self.measures is None else self.measures.combine(quantities)

    def makes(self, quantities: Values, F: Values) -> bool:
        """Whether quantities (n, q) make the objectives F (n, 1), up to rounding; not where they are of another number."""
        known = self.measures.known if self.measures is not None else None
        try:
            same = known is None or known[1].shape[1] == quantities.shape[1]
            return same and len(quantities) == len(F) and np.allclose(self.combined(quantities)[:, None], F, rtol=1e-9, atol=0)
        except (ValueError, IndexError):
            return False

    def feasible(self, codes: Codes) -> npt.NDArray[np.bool_]:
        """Which networks keep all budgets and are not excluded, (n,)."""
        kept = np.ones(len(codes), dtype=bool)
        for other in () if self.excluded is None else self.excluded:
            kept &= (codes != other).any(axis=1)
        for budget in self.budgets:
            kept &= budget.cost(codes) <= budget.limit
        return kept

    def preflight(self) -> list[tuple[Budget, Bounds]]:
        """The exact bounds of every budgeted cost, before any search.

        Raises UsageError for a limit that is not positive, InfeasibleError when no network of the space can keep one
        of the budgets; the message names the nearest possible limit.
        """
        found = []
        for budget in self.budgets:
            if not budget.limit > 0:
                raise UsageError(f"{budget.name} budget must be positive, but got {budget.show(budget.limit)}")
            bounds = budget.cost.bounds()
            if bounds.lowest > budget.limit:
                raise InfeasibleError(
                    f"{budget.name} budget must be at least {budget.show(bounds.lowest)} "
                    f"(the least of {self.space.name}: {self.space.arch(bounds.lowest_codes)}), but got {budget.show(budget.limit)}"
                )
            found.append((budget, bounds))
        return found

    def identity(self, algorithm: str, config: SearchConfig) -> dict[str, Any]:
        """What a search of this problem must find unchanged when it goes on, as plain JSON."""
        return {
            "algorithm": algorithm,
            "config": config.identity(),
            "space": self.space.name,
            "genes": hashlib.sha256(repr(self.space.genes).encode()).hexdigest()[:16],
            "budgets": [[budget.name, repr(float(budget.limit))] for budget in self.budgets],
            "objectives": len(self.objectives),
            **({"excluded": self.excluded.tolist()} if self.excluded is not None else {}),
        }

    def cheapest(self) -> Codes:
        """The smallest network, and the cheapest under each budget, (1 + budgets, g)."""
        return np.stack([self.space.smallest(), *(b.cost.bounds().lowest_codes for b in self.budgets)])

    def keeping(self) -> Codes:
        """A network (1, g) that keeps all budgets, by a search for the one that exceeds them least.

        Raises InfeasibleError when none is found, naming the nearest possible network of a small space, the nearest
        found of a large one.
        """
        from ofasearch.search.nearest import find_nearest  # which searches, and so stands above this

        nearest = find_nearest(self)
        codes = nearest.codes[None]
        if self.feasible(codes).all():
            return codes
        asked = ", ".join(f"{b.name} {b.show(b.limit)}" for b in self.budgets)
        takes = ", ".join(f"{b.name} {b.show(float(b.cost(codes)[0]))}" for b in self.budgets)
        which = "possible network" if nearest.exact else "network found"
        raise InfeasibleError(
            f"some network must keep all budgets together, but none was found for {asked}; "
            f"the nearest {which} takes {takes} ({self.space.arch(nearest.codes)})"
        )


@dataclass(frozen=True, slots=True)
class Generation:
    """The state of a search after a generation: networks that are all feasible and all distinct.

    With one objective they are the best so far, best first; with several the front, by the first objective.
    """

    number: int
    codes: Codes  # (k, g)
    F: Values  # (k, m), objectives
    evaluations: int
    capture: Callable[[], State] | None = field(default=None, repr=False, compare=False)

    @property
    def objective(self) -> Values:
        """The first objective (k,)."""
        return np.asarray(self.F[:, 0])

    @property
    def state(self) -> State:
        """What the search needs to go on from here; put together when asked for, also after the search went on."""
        if self.capture is None:
            raise UsageError("a generation must come from a search to be continued, but this one does not")
        return self.capture()


Search = Iterator[Generation]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchConfig:
    """What every searcher understands; some have a config of their own with more."""

    population: int = 100  # networks evaluated per generation
    generations: int = 500
    keep: int = 20  # best networks reported per generation where there is one objective
    refine: bool = False  # end with a local refinement of the winner, as one more generation

    def __post_init__(self) -> None:
        if self.population < 4 or self.generations < 0 or self.keep < 1:
            raise UsageError(
                "a search needs a population of at least 4, generations of at least 0 and 1 or more to keep, "
                f"but got {self.population}, {self.generations} and {self.keep}"
            )

    def identity(self) -> dict[str, Any]:
        """What must be the same when a search goes on, as plain JSON; it may go on for longer."""
        return {name: value for name, value in asdict(self).items() if name != "generations"}
