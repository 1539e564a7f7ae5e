"""Genetic algorithms of pymoo: its selection and its survival, with children made as networks are.

Each generation is a pure step of the population's codes and objectives and of the generator: pymoo's individuals are
made anew, with all that its survival attaches to them. So a search that goes on from a state cannot differ from one
that never stopped, which pymoo's own algorithms do when they are resumed.

Reference: Blank and Deb, pymoo: Multi-objective optimization in Python, IEEE Access 8 (2020).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np

from ofasearch.errors import UsageError
from ofasearch.search.operators import cross, fill, mutate
from ofasearch.search.problem import Problem, Search, SearchConfig
from ofasearch.search.run import Run, drive
from ofasearch.search.state import State
from ofasearch.space.core import Codes, Values


@dataclass(frozen=True, slots=True, kw_only=True)
class GeneticConfig(SearchConfig):
    """A child is crossed with the given probability, else a copy of its mother, and then mutated."""

    generations: int = 250
    crossover_probability: float = 0.9
    mutation_probability: float | None = None  # per block, per stage depth, and for the resolution; None: so that one changes

    def __post_init__(self) -> None:
        SearchConfig.__post_init__(self)
        probabilities = (self.crossover_probability, self.mutation_probability)
        if not all(p is None or 0 <= p <= 1 for p in probabilities):
            raise UsageError(f"a genetic search needs probabilities in [0, 1], but got {probabilities}")


def nsga2(problem: Problem, config: GeneticConfig, rng: np.random.Generator, start: State | None = None) -> Search:
    """The front of several objectives by rank and crowding distance.

    Yields the front of all networks evaluated so far. No network is evaluated twice, none that exceeds a budget.
    `start` goes on from a state of this search. Raises InfeasibleError, UsageError, MismatchError.

    Reference: Deb, Pratap, Agarwal and Meyarivan, IEEE Transactions on Evolutionary Computation 6 (2002).
    """
    from pymoo.algorithms.moo.nsga2 import NSGA2

    problem.check_objectives(several=True)
    yield from _drive("nsga2", NSGA2, problem, config, rng, start)


def smsemoa(problem: Problem, config: GeneticConfig, rng: np.random.Generator, start: State | None = None) -> Search:
    """The front of several objectives by contributed hypervolume; otherwise as `nsga2`.

    Reference: Beume, Naujoks and Emmerich, European Journal of Operational Research 181 (2007).
    """
    from pymoo.algorithms.moo.sms import SMSEMOA

    problem.check_objectives(several=True)
    yield from _drive("smsemoa", SMSEMOA, problem, config, rng, start)


def ga(problem: Problem, config: GeneticConfig, rng: np.random.Generator, start: State | None = None) -> Search:
    """The best of one objective by tournaments among the best so far; otherwise as `nsga2`."""
    from pymoo.algorithms.soo.nonconvex.ga import GA

    problem.check_objectives(several=False)
    yield from _drive("ga", GA, problem, config, rng, start)


def _drive(
    name: str, algorithm: Callable[..., Any], problem: Problem, config: GeneticConfig, rng: np.random.Generator, start: State | None
) -> Search:
    from pymoo.core.problem import Problem as PymooProblem

    parts = algorithm(pop_size=config.population)
    parts.problem = PymooProblem(n_var=1, n_obj=len(problem.objectives), xl=0, xu=1)  # that budgets are kept is seen to here
    return drive(name, problem, config, rng, start, lambda run: _breed(run, config, parts))


def _breed(run: Run, config: GeneticConfig, algorithm: Any) -> None:
    """One generation: parents by the algorithm's selection, new children that keep the budgets, the algorithm's survival."""
    from pymoo.core.population import Population

    algorithm.random_state = run.rng
    old = Population.new(X=np.arange(len(run.codes))[:, None], F=run.F)
    # Its ranks and crowding distances are those of this population alone, not of one that is gone.
    algorithm.pop = algorithm.survival.do(algorithm.problem, old, n_survive=len(old), algorithm=algorithm, random_state=run.rng)
    chosen = algorithm.mating.selection.do(
        algorithm.problem, algorithm.pop, config.population, n_parents=2, to_pop=False, algorithm=algorithm, random_state=run.rng
    )
    fresh = _children(run, config, run.codes[_paired(algorithm.pop.get("X")[:, 0][chosen], run.F)])
    if len(fresh):
        codes, F = np.concatenate([run.codes, fresh]), np.concatenate([run.F, run.evaluate(fresh)])
        new = Population.new(X=np.arange(len(run.codes), len(codes))[:, None], F=F[len(run.codes) :])
        algorithm._advance(infills=new)
        kept = algorithm.pop.get("X")[:, 0]
        run.codes, run.F = codes[kept], F[kept]


def _paired(chosen: Codes, F: Values) -> Codes:
    """Chosen parents (n, 2) as pairs: with several objectives, of those that lie beside each other along the first.

    A small and a large network have middling children, which are not on the front; neighbours have children beside them.
    """
    if F.shape[1] == 1:
        return chosen
    parents = chosen.ravel()
    return parents[np.argsort(F[parents, 0], kind="stable")].reshape(-1, 2)


def _children(run: Run, config: GeneticConfig, parents: Codes) -> Codes:
    """Up to `population` new feasible children of the parents (n, 2, g), in turn.

    While too few of them are new, which is so where genes are few, mutations get more probable.
    """
    space, rng, proposed, parents = run.problem.space, run.rng, 0, run.rng.permutation(parents)
    probability = 1 / (int(run.units.max()) + 1) if config.mutation_probability is None else config.mutation_probability

    def propose(size: int) -> Codes:
        nonlocal proposed
        turn, increase = np.arange(proposed, proposed + size) % len(parents), 1 + proposed / len(parents)
        proposed += size
        mothers, fathers = parents[turn, 0], parents[turn, 1]
        alone = rng.random((size, 1), dtype=np.float32) >= config.crossover_probability
        crossed = np.where(alone, mothers, cross(space, mothers, fathers, rng))
        return mutate(space, run.units, crossed, min(1.0, increase * probability), rng)

    return fill(run.problem, config.population, run.unseen, propose)
