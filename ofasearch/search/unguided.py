"""Searches that learn nothing on their way: all networks of a small space, and random ones of a large space."""

from __future__ import annotations

import numpy as np

from ofasearch.search.operators import fill
from ofasearch.search.problem import Problem, Search, SearchConfig
from ofasearch.search.run import Run, begin, drive, restored
from ofasearch.search.state import State

EXACT_LIMIT = 20_000  # networks; listing so many takes a fraction of a second


def is_small(problem: Problem) -> bool:
    """Whether the exact answer is the sensible one."""
    return problem.space.size * len(problem.space.resolutions) <= EXACT_LIMIT


def enumerate_exactly(problem: Problem, keep: int = 20) -> Search:
    """The best networks, or the front, of a space that can be listed, in one generation.

    Raises InfeasibleError, and ArchError for a space too large to list.
    """
    yield from exact(problem, SearchConfig(keep=keep, generations=0), np.random.default_rng(0))


def exact(problem: Problem, config: SearchConfig, rng: np.random.Generator, start: State | None = None) -> Search:
    """`enumerate_exactly` in the form of all searches; after its only generation a `start` has nothing left to do."""
    problem.preflight()
    if start is not None:
        restored("exact", problem, config, start, shares=0)
        return
    codes = problem.space.enumerate()
    codes = codes[problem.feasible(codes)]
    if not len(codes):
        codes = problem.keeping()  # which raises: there is none
    run = begin("exact", problem, config, rng, front_limit=len(codes))
    run.evaluate(codes)
    run.codes, run.F = run.archive, run.values  # nobody needs the others again
    yield run.report()


def sample_randomly(problem: Problem, config: SearchConfig, rng: np.random.Generator, start: State | None = None) -> Search:
    """Up to `population` new random networks per generation that keep the budgets: what chance alone finds.

    Under a tight budget a generation may find fewer, or none. Raises InfeasibleError, UsageError, MismatchError.
    """
    yield from drive("random", problem, config, rng, start, _draw)


def _draw(run: Run) -> None:
    """One generation."""
    fresh = fill(run.problem, run.config.population, run.unseen, lambda size: run.problem.space.sample(size, run.rng))
    if len(fresh):
        run.evaluate(fresh)
