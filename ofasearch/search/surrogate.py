"""A search for objectives that cost seconds to minutes per network: it learns what to expect, and asks as little as it can.

Legend: n = networks, g = genes.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from ofasearch.errors import FormatError, UsageError
from ofasearch.search.learned import Learned, Lessons
from ofasearch.search.operators import Unseen, breed, initial
from ofasearch.search.problem import Problem, Search, SearchConfig
from ofasearch.search.run import Run, drive
from ofasearch.search.state import State
from ofasearch.space.core import Codes, Values

DRAWS = 128  # of what the quantities of a network may be
PARENTS = 32  # networks whose children enter the pool of a large space


@dataclass(frozen=True, slots=True, kw_only=True)
class SurrogateConfig(SearchConfig):
    """`population` networks are measured per generation: fewer teach more each, more can be measured side by side."""

    population: int = 8
    generations: int = 10
    promising: float = 0.5  # of the first batch, those of which the hints promise most; the others are random
    previewed: float = 2.0  # networks that a preview judges, per network that it keeps
    pool: int = 2000  # networks that are chosen from; a space that has no more is listed
    rounds: int = 4  # in which the pool of a larger space is bred
    mutation_probability: float = 0.1  # per block, per stage depth, and for the resolution

    def __post_init__(self) -> None:
        SearchConfig.__post_init__(self)
        shares = (self.promising, self.mutation_probability)
        if not all(0 <= share <= 1 for share in shares) or self.previewed < 1 or self.pool < 1 or self.rounds < 1:
            raise UsageError(
                "a surrogate search needs shares in 0..1, at least 1 network per network that a preview keeps, a pool and rounds, "
                f"but got {shares}, {self.previewed}, {self.pool} and {self.rounds}"
            )


def surrogate(problem: Problem, config: SurrogateConfig, rng: np.random.Generator, start: State | None = None) -> Search:
    """Yield the best networks after the first batch and after every generation of `population` measured networks.

    Each quantity that the objective is made of is learned apart, by a Gaussian process on all networks measured so far. Those
    of which the greatest improvement of the objective is expected go through the previews, each of which keeps the better
    ones, and what is left is measured. No network is measured twice. Where no network is left to measure, the search ends
    with a generation that is numbered as the last. `start` goes on from a state of this search.

    Raises InfeasibleError, UsageError, MismatchError, FormatError.

    Reference: expected improvement as in Jones, Schonlau and Welch, Journal of Global Optimization 13 (1998), by draws,
    because the objective is a function of several quantities; successive halving as in Jamieson and Talwalkar (2016).
    """
    problem.check_objectives(several=False)
    yield from drive("surrogate", problem, config, rng, start, lambda run: _step(run, config), first=lambda run: _first(run, config))


def _first(run: Run, config: SurrogateConfig) -> None:
    """A share of the batch are the networks of which the hints promise most, each hint in its turn; the others are random."""
    n, measures = config.population, run.problem.measures
    pool = _listed(run, config)
    if len(pool) < (1 if _is_listed(run.problem, config) else n):
        pool = _usable(run, np.concatenate([pool, initial(run.problem, n, Unseen(run.problem.space), run.rng)]))
    promising = pool[:0]
    if measures is not None and measures.hint is not None:
        orders = np.argsort(-measures.hint(pool), axis=0, kind="stable")
        promising = run.unseen.take(pool[orders.ravel()], round(config.promising * n))
    others = run.unseen.take(run.rng.permutation(pool), n - len(promising))
    run.extend(np.concatenate([promising, others]))


def _step(run: Run, config: SurrogateConfig) -> None:
    """Predict, choose, preview, measure."""
    codes = _most_promising(run, config)[: _sizes(run, config)[0]]
    if len(codes):
        run.extend(run.unseen.take(_previewed(run, config, codes), config.population))
    else:
        run.number = config.generations


def _previewed(run: Run, config: SurrogateConfig, codes: Codes) -> Codes:
    """Those that are left when each preview has kept the better ones."""
    measures = run.problem.measures
    for preview, keep in zip(measures.previews if measures is not None else (), _sizes(run, config)[1:], strict=True):
        if measures is not None and len(codes) > keep:
            codes = codes[np.argsort(measures.combine(preview(codes)), kind="stable")[:keep]]
    return codes


def _sizes(run: Run, config: SurrogateConfig) -> list[int]:
    """How many networks are chosen, and how many each preview keeps."""
    previews = len(run.problem.measures.previews) if run.problem.measures is not None else 0
    return [round(config.population * config.previewed**i) for i in range(previews, -1, -1)]


# -- what to choose from ---------------------------------------------------------------------------------------


def _is_listed(problem: Problem, config: SurrogateConfig) -> bool:
    return problem.space.size * len(problem.space.resolutions) <= config.pool


def _listed(run: Run, config: SurrogateConfig) -> Codes:
    """All networks that keep the budgets and were not measured, or random ones of a large space."""
    space = run.problem.space
    return _usable(run, space.enumerate() if _is_listed(run.problem, config) else space.sample(config.pool // 2, run.rng))


def _usable(run: Run, codes: Codes) -> Codes:
    """The networks that keep the budgets and were not measured, each once."""
    codes = run.unseen.new(codes)
    codes = codes[run.problem.feasible(codes)]
    return Unseen(run.problem.space).take(codes, len(codes))


def _most_promising(run: Run, config: SurrogateConfig) -> Codes:
    """Networks that were not measured, those first of which the greatest improvement is expected.

    A large space is searched for them: the best measured networks have children, of which the most promising have more.
    """
    promise = _learned(run)
    codes = _listed(run, config)
    promises = promise(codes)
    if not _is_listed(run.problem, config):
        pool = Unseen(run.problem.space)
        pool.take(codes, len(codes))
        parents = run.codes[np.argsort(run.F[:, 0], kind="stable")[:PARENTS]]
        for _ in range(config.rounds):
            children = pool.take(_usable(run, _children(run, config, parents)), config.pool)
            codes, promises = np.concatenate([codes, children]), np.concatenate([promises, promise(children)])
            parents = codes[_ordered(promises)[:PARENTS]] if len(codes) else parents
    return codes[_ordered(promises)]


def _learned(run: Run) -> Callable[[Codes], Values]:
    """What the networks measured so far promise of others."""
    if len(run.measured) != len(run.codes):
        raise FormatError("the state of a surrogate search must hold what was measured of each network, but it does not; start anew")
    learned = Learned(run.problem, Lessons(codes=run.codes, objective=run.F[:, 0], measured=run.measured))
    best, draws = float(run.values[0, 0]), run.rng.standard_normal((DRAWS, 1, run.measured.shape[1]))
    return lambda codes: learned.promise(codes, best, draws)


def _ordered(promises: Values) -> Codes:
    """Positions of networks by what they promise (n, 2): the greatest improvement first, then the smallest objective."""
    return np.lexsort((promises[:, 1], -promises[:, 0]))


def _children(run: Run, config: SurrogateConfig, parents: Codes) -> Codes:
    """Crossed and mutated children of networks, half of each."""
    n = max(1, config.pool // config.rounds // 4)
    mothers, fathers, mutated = parents[run.rng.integers(len(parents), size=(3, n))]
    return breed(run.problem.space, run.units, (mothers, fathers), mutated, config.mutation_probability, run.rng)


__all__ = ["SurrogateConfig", "surrogate"]
