"""Single-objective evolution with the published settings, vectorised."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from ofasearch.errors import UsageError
from ofasearch.search import screen
from ofasearch.search.operators import breed, mutate
from ofasearch.search.problem import Problem, Search, SearchConfig
from ofasearch.search.run import Run, drive
from ofasearch.search.state import State
from ofasearch.space.core import Codes

ELITE_SHARE = 0.4  # of the parents: the best whatever their resolution
LEAST_SHARE = 0.02  # a budget that almost no child keeps must not make a generation endless
STRANGE_UNITS = 2.0  # units that a mutant made for want of new children changes on average, at least
PER_RESOLUTION = 3  # parents that each resolution may keep beside the elite


@dataclass(frozen=True, slots=True, kw_only=True)
class EvolutionConfig(SearchConfig):
    """Defaults are those of once-for-all's finder; `mutation_ratio` of each generation are mutants, the rest crossed."""

    parent_ratio: float = 0.25
    mutation_ratio: float = 0.5
    mutation_probability: float = 0.1  # per block, per stage depth, and for the resolution
    screen: float = 0.25  # of the new children, those that a regression on former networks rates best are evaluated; 1: all
    refine: bool = True

    def __post_init__(self) -> None:
        SearchConfig.__post_init__(self)
        ratios = (self.parent_ratio, self.mutation_ratio, self.mutation_probability, self.screen)
        if not all(0 <= ratio <= 1 for ratio in ratios) or not self.parent_ratio or not self.screen:
            raise UsageError(f"evolution needs ratios in [0, 1], those of parents and of screened children above 0, but got {ratios}")


def evolve(problem: Problem, config: EvolutionConfig, rng: np.random.Generator, start: State | None = None) -> Search:
    """Yield the best networks after the initial population and after every generation.

    A generation makes `population` children that keep the budgets, and the parents survive. No network is evaluated
    twice, but by the refinement at the end: children that are known already are left out (the published finder evaluates
    copies again, and most of its children are). Of the new ones the most promising quarter is evaluated (`screen`); the
    others may come again. The last children count (it looks for the best before it makes them and never sees the last
    hundred).
    `start` goes on from a state of this search. Raises InfeasibleError, UsageError, MismatchError.

    Reference: once-for-all, section 3.4, and its tutorial's evolution finder.
    """
    problem.check_objectives(several=False)
    yield from drive("evolution", problem, config, rng, start, lambda run: _breed(run, config), shares=2)


def _breed(run: Run, config: EvolutionConfig) -> None:
    """One generation: the parents, whoever is needed to report the `keep` best or to learn from, and children that are new.

    The population stays in the order in which it was evaluated.
    """
    order = np.argsort(run.F[:, 0], kind="stable")
    chosen = order[_parents(run.codes[order, 0], max(2, round(config.parent_ratio * config.population)))]
    children = run.unseen.new(_children(run, config, run.codes[chosen]))
    if config.screen < 1:
        if run.number % screen.EVERY == 1 or not len(run.screen):
            run.screen = screen.learn(run.problem.space, run.codes, run.F[:, 0])
        children = screen.most_promising(run.problem.space, children, run.screen, config.screen)
    fresh = run.unseen.take(children, config.population)
    if len(fresh) < screen.LEAST:
        fresh = np.concatenate([fresh, run.unseen.take(_strangers(run, config, run.codes[chosen]), screen.LEAST - len(fresh))])
    if len(fresh):
        survivors = np.zeros(len(run.codes), dtype=bool)
        survivors[chosen] = survivors[order[: config.keep]] = True
        survivors[-screen.MEMORY * config.population :] = True
        run.codes, run.F = np.concatenate([run.codes[survivors], fresh]), np.concatenate([run.F[survivors], run.evaluate(fresh)])


def _children(run: Run, config: EvolutionConfig, parents: Codes) -> Codes:
    """Crossed and mutated children that keep the budgets, as many of each as are wanted where chance gives them."""
    space, rng = run.problem.space, run.rng
    n_mutants = round(config.mutation_ratio * config.population)
    wanted = np.array([config.population - n_mutants, n_mutants])
    n_cross, n_mutate = np.ceil(wanted / run.share).astype(int)
    mothers, fathers = parents[rng.integers(len(parents), size=(2, n_cross))]
    mutated = parents[rng.integers(len(parents), size=n_mutate)]
    children = breed(space, run.units, (mothers, fathers), mutated, config.mutation_probability, rng)
    feasible = run.problem.feasible(children)
    kept = np.flatnonzero(feasible[:n_cross]), n_cross + np.flatnonzero(feasible[n_cross:])
    run.share = np.maximum([len(kept[0]) / max(1, n_cross), len(kept[1]) / max(1, n_mutate)], LEAST_SHARE)
    first: Codes = children[np.concatenate([kept[0][: wanted[0]], kept[1][: wanted[1]]])]
    return first


def _strangers(run: Run, config: EvolutionConfig, parents: Codes) -> Codes:
    """Mutants that differ more from their parents and keep the budgets.

    Where genes are few, as with fixed kernels, almost all children are known; without these the search would stand still.
    """
    probability = max(config.mutation_probability, STRANGE_UNITS / (int(run.units.max()) + 1))
    chosen = parents[run.rng.integers(len(parents), size=config.population)]
    mutants = mutate(run.problem.space, run.units, chosen, probability, run.rng)
    return mutants[run.problem.feasible(mutants)]


def _parents(resolution: Codes, n: int) -> Codes:
    """Positions of the n parents in a pool sorted best first, by the resolution codes of its networks.

    The elite, then the best few of each resolution, then the rest. The resolution moves accuracy and cost of a network more
    than any other gene, so a pool that loses a resolution early rarely finds back; with the plain best n as parents the
    result depended more on the seed.
    """
    order = resolution.argsort(kind="stable")
    ordered = resolution[order]
    rank = np.empty(len(order), dtype=np.int64)  # within the network's resolution
    rank[order] = np.arange(len(order)) - ordered.searchsorted(ordered)
    priority = np.where(rank < PER_RESOLUTION, 1, 2)
    priority[: math.ceil(ELITE_SHARE * n)] = 0
    found = priority.argsort(kind="stable")[:n]
    found.sort()
    return found
