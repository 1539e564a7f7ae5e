"""What measured networks let expect of others, and how well that was foreseen.

Legend: n = networks, g = genes, q = measured quantities, h = hints, s = draws.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ofasearch.search import gaussian
from ofasearch.search.problem import Problem
from ofasearch.search.state import State
from ofasearch.space.core import Codes, Values

LESSONS = 256  # networks that are learned from, where more were measured: half of them the best, half the last


@dataclass(frozen=True, slots=True, kw_only=True)
class Lessons:
    """Measured networks (n, g) in the order in which they were measured, their objectives (n,) and quantities (n, q)."""

    codes: Codes
    objective: Values
    measured: Values

    def first(self, n: int) -> Lessons:
        """Those that were measured first."""
        return Lessons(codes=self.codes[:n], objective=self.objective[:n], measured=self.measured[:n])


class Learned:
    """Expects quantities of networks, each learned apart from a problem's lessons and from what was known beforehand."""

    def __init__(self, problem: Problem, lessons: Lessons) -> None:
        self._problem = problem
        codes, measured = _chosen(lessons)
        measures = problem.measures
        if measures is not None and measures.known is not None:
            codes, measured = np.concatenate([codes, measures.known[0]]), np.concatenate([measured, measures.known[1]])
        hints = self._hints(codes)
        spread = hints.std(axis=0)
        self._centre, self._scale = hints.mean(axis=0), np.where(spread > 0, spread, 1.0) * max(1, hints.shape[1]) ** 0.5
        self._process = gaussian.fit(problem.space, self._inputs(codes), measured)

    def __call__(self, codes: Codes) -> tuple[Values, Values]:
        """Mean and standard deviation of the quantities that would be measured of networks (n, g), both (n, q)."""
        return self._process(self._inputs(codes))

    def promise(self, codes: Codes, best: float, draws: Values) -> Values:
        """By how much networks (n, g) are expected to improve on the best objective, and what theirs is expected to be, (n, 2).

        The improvement is the mean over draws (s, 1, q) of a standard normal, because the objective may be any function of
        the quantities.
        """
        mean, deviation = self(codes)
        drawn = self._problem.combined((mean + draws * deviation).reshape(-1, mean.shape[1])).reshape(len(draws), -1)
        return np.stack([np.maximum(best - drawn, 0).mean(axis=0), self._problem.combined(mean)], axis=1)

    def _inputs(self, codes: Codes) -> gaussian.Inputs:
        return gaussian.Inputs(gaussian.thresholds(self._problem.space, codes), (self._hints(codes) - self._centre) / self._scale)

    def _hints(self, codes: Codes) -> Values:
        hint = self._problem.measures.hint if self._problem.measures is not None else None
        return np.zeros((len(codes), 0)) if hint is None else hint(codes)


def _chosen(lessons: Lessons) -> tuple[Codes, Values]:
    """The lessons that a fit can afford: codes (n, g) and quantities (n, q)."""
    n = len(lessons.codes)
    chosen = np.arange(n) >= n - LESSONS // 2
    chosen[np.argsort(lessons.objective, kind="stable")[: LESSONS // 2]] = True
    chosen |= n <= LESSONS
    return lessons.codes[chosen], lessons.measured[chosen]


# -- looking back ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Foresight:
    """What was expected of networks before they were measured, how surely, and what was measured then, each (n, q)."""

    expected: Values
    deviation: Values
    measured: Values

    def error(self) -> Values:
        """Root mean square error of each quantity, (q,), in its unit."""
        return np.asarray(np.sqrt(((self.expected - self.measured) ** 2).mean(axis=0)))

    def tau(self) -> Values:
        """Kendall's rank correlation (tau-b) of what was expected and what was measured, (q,); 0 where either never differs."""
        return np.array([_tau(a, b) for a, b in zip(self.expected.T, self.measured.T, strict=True)])


def foresight(problem: Problem, state: State, population: int) -> Foresight:
    """How well each generation of a surrogate search was foreseen by the ones before it; its winner must not be refined.

    The networks were chosen for what was expected of them, so that they differ less than random ones and are harder to rank.
    """
    lessons = Lessons(codes=state.codes, objective=state.F[:, 0], measured=state.measured)
    starts = range(population, len(state.codes), population)
    found = [Learned(problem, lessons.first(start))(state.codes[start : start + population]) for start in starts]
    empty = state.measured[:0]
    mean, deviation = (np.concatenate([empty, *parts]) for parts in (zip(*found, strict=True) if found else ((), ())))
    return Foresight(expected=mean, deviation=deviation, measured=state.measured[population:])


def _tau(one: Values, other: Values) -> float:
    a, b = (np.sign(values[:, None] - values) for values in (one, other))
    pairs = float(np.sqrt((a**2).sum() * (b**2).sum()))
    return float((a * b).sum()) / pairs if pairs else 0.0
