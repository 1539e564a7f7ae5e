"""All searchers by name, with one signature and what each of them takes."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from ofasearch.search.evolution import EvolutionConfig, evolve
from ofasearch.search.problem import Problem, Search, SearchConfig
from ofasearch.search.pymoo import GeneticConfig, ga, nsga2, smsemoa
from ofasearch.search.state import State
from ofasearch.search.surrogate import SurrogateConfig, surrogate
from ofasearch.search.unguided import exact, sample_randomly


@dataclass(frozen=True, slots=True, kw_only=True)
class Searcher:
    """`search(problem, config, rng, start)` with a config of type `config` yields generations.

    The config has at least the fields of `SearchConfig`. With `start`, the state of one of its generations, it yields
    those that come after it, and `rng` is left alone; without, it draws from `rng`.
    """

    search: Callable[[Problem, Any, np.random.Generator, State | None], Search]
    config: type[SearchConfig]
    one: bool  # takes one objective and finds the best networks
    several: bool  # takes several objectives and finds their front
    about: str


SEARCHERS: Mapping[str, Searcher] = {
    "exact": Searcher(
        search=exact, config=SearchConfig, one=True, several=True, about="every network of a space of at most a million: the exact answer"
    ),
    "random": Searcher(search=sample_randomly, config=SearchConfig, one=True, several=True, about="random networks that keep the budgets"),
    "evolution": Searcher(
        search=evolve, config=EvolutionConfig, one=True, several=False, about="once-for-all's evolution, its winner refined"
    ),
    "ga": Searcher(search=ga, config=GeneticConfig, one=True, several=False, about="pymoo's genetic algorithm"),
    "surrogate": Searcher(
        search=surrogate, config=SurrogateConfig, one=True, several=False, about="learns to predict what costs seconds to measure"
    ),
    "nsga2": Searcher(search=nsga2, config=GeneticConfig, one=False, several=True, about="NSGA-II: fronts by rank and crowding distance"),
    "smsemoa": Searcher(search=smsemoa, config=GeneticConfig, one=False, several=True, about="SMS-EMOA: fronts by contributed hypervolume"),
}
