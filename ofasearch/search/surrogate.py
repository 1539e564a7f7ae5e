"""A search for objectives that cost seconds to minutes per network: it learns what to expect, and asks as little as it can.

Legend: n = networks, g = genes, q = measured quantities, h = hints, f = features.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from ofasearch.errors import UsageError
from ofasearch.search.operators import breed, initial
from ofasearch.search.problem import Problem, Search, SearchConfig
from ofasearch.search.run import Run, drive
from ofasearch.search.screen import one_hot
from ofasearch.search.state import State
from ofasearch.search.unguided import is_small
from ofasearch.space.core import Codes, Values

RIDGE = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class SurrogateConfig(SearchConfig):
    """`population` networks are fully measured per generation."""

    population: int = 8
    generations: int = 10
    explore: float = 0.25  # of a batch that is drawn at random
    previewed: float = 2.0  # networks that the last preview judges, per network that is measured then; each one before twice as many
    pool: int = 2000  # networks of a large space whose quantities are predicted, per generation

    def __post_init__(self) -> None:
        SearchConfig.__post_init__(self)
        if not 0 <= self.explore <= 1 or self.previewed < 1 or self.pool < 1:
            raise UsageError(
                "a surrogate search needs a share to explore in 0..1, and previews and a pool of at least 1, "
                f"but got {self.explore}, {self.previewed} and {self.pool}"
            )


def surrogate(problem: Problem, config: SurrogateConfig, rng: np.random.Generator, start: State | None = None) -> Search:
    """Yield the best networks after the first batch and after every generation of `population` measured networks.

    No network is measured twice. Where the networks of the space run out, a last generation, numbered as the last, ends it.
    `start` goes on from a state of this search. Raises InfeasibleError, UsageError, MismatchError.
    """
    problem.check_objectives(several=False)
    yield from drive("surrogate", problem, config, rng, start, lambda run: _step(run, config), first=lambda run: _first(run, config))


def _first(run: Run, config: SurrogateConfig) -> None:
    """Half of the batch are the networks of which the hints promise most, the others are random."""
    hint = run.problem.measures.hint if run.problem.measures is not None else None
    promised = run.codes
    if hint is not None:
        pool = _pool(run, config)
        order = np.argsort(-hint(pool)[:, 0], kind="stable")
        promised = run.unseen.take(pool[order], config.population // 2)
    others = initial(run.problem, config.population - len(promised), run.unseen, run.rng)
    run.extend(np.concatenate([promised, others]))


def _step(run: Run, config: SurrogateConfig) -> None:
    """Predict, choose, preview, measure."""
    pool = run.unseen.new(_pool(run, config))
    if not len(pool):
        run.number = config.generations
        return
    measures = run.problem.measures
    previews = measures.previews if measures is not None else ()
    wanted = [config.population] + [round(config.previewed * 2**i * config.population) for i in range(len(previews))]
    expected = _expected(run, pool)
    order = np.argsort(expected, kind="stable")
    n_random = round(config.explore * wanted[-1])
    chosen = order[: wanted[-1] - n_random]
    rest = run.rng.permutation(order[len(chosen) :])[:n_random]
    batch = pool[np.concatenate([chosen, rest])]
    for preview, n in zip(previews, reversed(wanted[:-1]), strict=True):
        assert measures is not None
        if len(batch) > n:
            batch = batch[np.sort(np.argsort(measures.combine(preview(batch)), kind="stable")[:n])]
    run.extend(run.unseen.take(batch, config.population))


def _pool(run: Run, config: SurrogateConfig) -> Codes:
    """Distinct networks that keep the budgets: all of a small space."""
    space = run.problem.space
    if is_small(run.problem):
        codes = space.enumerate()
    else:
        codes = space.sample(config.pool, run.rng)
        if len(run.codes):
            best = run.codes[np.argsort(run.F[:, 0], kind="stable")[: max(4, config.population)]]
            couples = best[run.rng.integers(len(best), size=(2, config.pool))]
            mutated = best[run.rng.integers(len(best), size=config.pool)]
            codes = np.concatenate([breed(space, run.units, (couples[0], couples[1]), mutated, 0.1, run.rng), codes])
    kept = codes[run.problem.feasible(codes)]
    _, first = np.unique(kept, axis=0, return_index=True)
    distinct: Codes = kept[np.sort(first)]
    return distinct


def _expected(run: Run, pool: Codes) -> Values:
    """What the objective of each network of a pool (n, g) is expected to be, (n,)."""
    measures = run.problem.measures
    x, known = _features(run.problem, np.concatenate([pool, run.codes])), len(pool)
    quantities = _predicted(x[known:], run.measured, x[:known])
    return quantities[:, 0] if measures is None else measures.combine(quantities)


def _features(problem: Problem, codes: Codes) -> Values:
    """One-hot codes and scaled hints, (n, f)."""
    x: Values = one_hot(problem.space, codes).astype(np.float64)
    if problem.measures is not None and problem.measures.hint is not None:
        hint = problem.measures.hint(codes)
        spread = hint.std(axis=0)
        x = np.concatenate([x, (hint - hint.mean(axis=0)) / np.where(spread > 0, spread, 1.0)], axis=1)
    return x


def _predicted(x: Values, y: Values, at: Values) -> Values:
    """Ridge regression of y (n, q) on x (n, f), at (m, f): (m, q)."""
    centre, offset = x.mean(axis=0), y.mean(axis=0)
    xc: npt.NDArray[np.float64] = x - centre
    dual = np.linalg.solve(xc @ xc.T + RIDGE * np.eye(len(x)), y - offset)
    predicted: Values = (at - centre) @ (xc.T @ dual) + offset
    return predicted


__all__ = ["SurrogateConfig", "surrogate"]
