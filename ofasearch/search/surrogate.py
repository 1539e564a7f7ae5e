"""A search for objectives that cost seconds to minutes per network: it learns what to expect, and asks as little as it can.

Legend: n = networks, g = genes, q = measured quantities, h = hints, s = draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ofasearch.errors import UsageError
from ofasearch.search import gaussian
from ofasearch.search.operators import Unseen, breed, initial
from ofasearch.search.problem import Problem, Search, SearchConfig
from ofasearch.search.run import Run, drive
from ofasearch.search.state import State
from ofasearch.space.core import Codes, Values

DRAWS = 128  # of what the quantities of a network may be
LEARNED = 256  # measured networks that are learned from, where there are more: half of them the best, half the last
PARENTS = 32  # networks whose children enter the pool of a large space


@dataclass(frozen=True, slots=True, kw_only=True)
class SurrogateConfig(SearchConfig):
    """`population` networks are measured per generation: fewer teach more each, more can be measured side by side."""

    population: int = 8
    generations: int = 10
    promising: float = 0.5  # of the first batch, those of which the hints promise most; the others are random
    previewed: float = 2.0  # networks that a preview judges, per network that it keeps
    pool: int = 4000  # networks that are chosen from; a space that has no more is listed
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

    Raises InfeasibleError, UsageError, MismatchError.

    Reference: expected improvement as in Jones, Schonlau and Welch, Journal of Global Optimization 13 (1998), by draws,
    because the objective is a function of several quantities; successive halving as in Jamieson and Talwalkar (2016).
    """
    problem.check_objectives(several=False)
    yield from drive("surrogate", problem, config, rng, start, lambda run: _step(run, config), first=lambda run: _first(run, config))


def _first(run: Run, config: SurrogateConfig) -> None:
    """A share of the batch are the networks of which the hints promise most, each hint in its turn; the others are random."""
    measures = run.problem.measures
    if measures is not None and measures.known is not None:
        run.unseen.take(measures.known[0], len(measures.known[0]))
    promised = run.codes
    if measures is not None and measures.hint is not None:
        pool = _listed(run, config)
        orders = np.argsort(-measures.hint(pool), axis=0, kind="stable")
        promised = run.unseen.take(pool[orders.ravel()], round(config.promising * config.population))
    others = initial(run.problem, config.population - len(promised), run.unseen, run.rng)
    run.extend(np.concatenate([promised, others]))


def _step(run: Run, config: SurrogateConfig) -> None:
    """Predict, choose, preview, measure."""
    codes = _chosen(run, config)
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


def _listed(run: Run, config: SurrogateConfig) -> Codes:
    """All networks that keep the budgets and were not measured, or random ones of a large space."""
    space = run.problem.space
    listed = space.size * len(space.resolutions) <= config.pool
    return _usable(run, space.enumerate() if listed else space.sample(config.pool, run.rng))


def _usable(run: Run, codes: Codes) -> Codes:
    """The networks that keep the budgets and were not measured, each once."""
    codes = run.unseen.new(codes)
    codes = codes[run.problem.feasible(codes)]
    return Unseen(run.problem.space).take(codes, len(codes))


def _chosen(run: Run, config: SurrogateConfig) -> Codes:
    """The networks of which most is expected, best first; fewer where there are no more.

    A large space is searched for them: the best measured networks have children, of which the most promising have more.
    """
    space, wanted = run.problem.space, _sizes(run, config)[0]
    pool = _listed(run, config)
    expect = _Expectation(run, pool)
    if space.size * len(space.resolutions) > config.pool:
        parents = run.codes[np.argsort(run.F[:, 0], kind="stable")[:PARENTS]]
        for _ in range(config.rounds):
            children = _usable(run, _children(run, config, parents))
            pool = Unseen(space).take(np.concatenate([pool, children]), len(pool) + len(children))
            pool = pool[expect.order(pool)[: config.pool]]
            parents = pool[:PARENTS] if len(pool) else parents
    return pool[expect.order(pool)[:wanted]] if len(pool) else pool


def _children(run: Run, config: SurrogateConfig, parents: Codes) -> Codes:
    """Crossed and mutated children of networks, and some mutants that differ more."""
    n = config.pool // config.rounds // 2
    mothers, fathers, mutated = parents[run.rng.integers(len(parents), size=(3, n))]
    return breed(run.problem.space, run.units, (mothers, fathers), mutated, config.mutation_probability, run.rng)


# -- what to expect --------------------------------------------------------------------------------------------


class _Expectation:
    """What the networks measured so far let expect of others."""

    def __init__(self, run: Run, pool: Codes):
        self.problem, self.best = run.problem, float(run.values[0, 0])
        codes, quantities = _lessons(run)
        hints = self._hints(np.concatenate([codes, pool]))
        self._centre, spread = hints.mean(axis=0), hints.std(axis=0)
        self._scale = np.where(spread > 0, spread, 1.0) * max(1, hints.shape[1]) ** 0.5
        self._process = gaussian.fit(run.problem.space, self._inputs(codes), quantities)
        self._draws = run.rng.standard_normal((DRAWS, 1, quantities.shape[1]))

    def order(self, codes: Codes) -> Codes:
        """Positions of networks (n, g) by the improvement that is expected of them, then by what is expected, (n,)."""
        mean, deviation = self._process(self._inputs(codes))
        drawn = self._combined((mean + self._draws * deviation).reshape(-1, mean.shape[1])).reshape(DRAWS, -1)
        improvement = np.maximum(self.best - drawn, 0).mean(axis=0)
        return np.lexsort((self._combined(mean), -improvement))

    def _combined(self, quantities: Values) -> Values:
        return self.problem.measures.combine(quantities) if self.problem.measures is not None else quantities[:, 0]

    def _inputs(self, codes: Codes) -> gaussian.Inputs:
        return gaussian.Inputs(gaussian.thresholds(self.problem.space, codes), (self._hints(codes) - self._centre) / self._scale)

    def _hints(self, codes: Codes) -> Values:
        hint = self.problem.measures.hint if self.problem.measures is not None else None
        return np.zeros((len(codes), 0)) if hint is None else hint(codes)


def _lessons(run: Run) -> tuple[Codes, Values]:
    """The networks (n, g) to learn from, and their quantities (n, q)."""
    codes, quantities, measures = run.codes, run.measured, run.problem.measures
    if len(codes) > LEARNED:
        chosen = np.zeros(len(codes), dtype=bool)
        chosen[np.argsort(run.F[:, 0], kind="stable")[: LEARNED // 2]] = chosen[-LEARNED // 2 :] = True
        codes, quantities = codes[chosen], quantities[chosen]
    if measures is not None and measures.known is not None:
        codes, quantities = np.concatenate([codes, measures.known[0]]), np.concatenate([quantities, measures.known[1]])
    return codes, quantities


__all__ = ["SurrogateConfig", "surrogate"]
