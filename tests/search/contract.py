"""All searchers on all spaces that they take, for one contract; run as a script, it prints what they find."""

import hashlib
import json
import sys
from dataclasses import dataclass
from functools import cache

import numpy as np
from problems import LARGE, LISTED, MIDDLE, budget, cost_of, problem_of

from ofasearch.search.problem import Budget, Generation, Problem
from ofasearch.search.searchers import SEARCHERS

GENERATIONS = 6


@dataclass(frozen=True)
class Case:
    """A searcher on a space, with one objective or several."""

    searcher: str
    space: str
    objectives: int
    refine: bool = False

    def __str__(self):
        return f"{self.searcher}-{self.space}-{self.objectives}" + "-refined" * self.refine

    @property
    def listed(self):
        return self.searcher == "exact"

    def config(self, **changes):
        settings = {"population": 12, "generations": GENERATIONS, "keep": 7, "refine": self.refine}
        return SEARCHERS[self.searcher].config(**settings | changes)

    def problem(self, share=0.3):
        return problem_of(self.space, self.objectives, (budget(self.space, "macs", share),))

    def limited(self, limit):
        return problem_of(self.space, self.objectives, (Budget("macs", cost_of(self.space, "macs"), limit, repr),))

    def start(self, problem, *, seed=3, state=None, **changes):
        """A search that has not begun."""
        return SEARCHERS[self.searcher].search(problem, self.config(**changes), np.random.default_rng(seed), state)

    def run(self, problem, *, seed=3, state=None, **changes):
        """All generations of a search."""
        return list(self.start(problem, seed=seed, state=state, **changes))


def cases():
    """Every searcher on every space that it takes, with every number of objectives that it takes."""
    for name, searcher in SEARCHERS.items():
        counts = (1,) * searcher.one + (2, 3) * searcher.several
        for space in (LISTED,) if name == "exact" else (LISTED, MIDDLE, LARGE):
            yield from (Case(name, space, count) for count in counts)
        if searcher.one and name != "exact":
            yield Case(name, LARGE, 1, refine=True)


CASES = tuple(cases())
UNREFINED = [case for case in CASES if not case.refine]
CONTINUED = [case for case in UNREFINED if not case.listed]


@dataclass(frozen=True)
class Record:
    """A finished search, and how many networks its objective had been asked for by the end of each generation."""

    problem: Problem
    generations: tuple[Generation, ...]
    asked: tuple[int, ...]


@cache
def record(case, share=0.3):
    """The search that several tests look at, and do not touch."""
    problem = case.problem(share)
    generations, asked = [], []
    for generation in case.start(problem):
        generations.append(generation)
        asked.append(len(problem.objectives[0].rows))
    return Record(problem, tuple(generations), tuple(asked))


def plain(generations):
    """Generations as bytes and numbers."""
    return [(g.number, g.evaluations, g.codes.shape, g.codes.tobytes(), g.F.dtype.str, g.F.tobytes()) for g in generations]


def digests():
    """What every search finds, in one line each."""
    return {str(case): hashlib.sha256(repr(plain(record(case).generations)).encode()).hexdigest() for case in CASES}


if __name__ == "__main__":
    sys.stdout.write(json.dumps(digests()))
