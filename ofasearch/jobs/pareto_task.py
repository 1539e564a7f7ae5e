"""What `pareto` is asked, and what its searches and its answer need to know of that."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from ofasearch.jobs.axes import Axis
from ofasearch.jobs.fronts import Bookmark, Box
from ofasearch.jobs.prefer import Wish
from ofasearch.jobs.setup import Question, Setup
from ofasearch.search.problem import Problem
from ofasearch.search.unguided import is_small

EXACT, LARGE = "exact", "nsga2"  # what finds the front of spaces that can be listed, and of larger ones
POPULATION, GENERATIONS = 100, 250
COMPARED_POPULATION, COMPARED_SHARE = 20, 0.25  # of the space, in networks that a compared search evaluates


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoRequest:
    """`ofasearch pareto`; the fields are the command's options.

    No objectives: top-1 and latency where there is a target, else top-1 and MACs. No algorithm: exact where the space can
    be listed, else NSGA-II. No population or generations: POPULATION and GENERATIONS; where searches are compared, so few
    that each sees a quarter of the space at most.
    """

    question: Question
    objectives: tuple[str, ...] | None = None
    algorithm: str | None = None
    compare: bool = False
    prefer: str | None = None
    population: int | None = None
    generations: int | None = None
    seed: int = 0
    out: Path | None = None
    resume: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A request made ready: what is searched, by which objectives, within which box, and where the answer goes."""

    request: ParetoRequest
    setup: Setup
    problem: Problem
    axes: tuple[Axis, ...]
    wishes: tuple[Wish, ...]
    box: Box
    folder: Path

    @property
    def algorithm(self) -> str:
        """The search whose front is the answer."""
        return self.request.algorithm or (EXACT if is_small(self.problem) else LARGE)

    @property
    def size(self) -> int:
        """Networks of the space, at all its resolutions."""
        return self.setup.space.size * len(self.setup.space.resolutions)

    @property
    def effort(self) -> tuple[int, int]:
        """Population and generations of a search."""
        population, generations = self.request.population, self.request.generations
        if not self.request.compare:
            return POPULATION if population is None else population, GENERATIONS if generations is None else generations
        few = COMPARED_POPULATION if population is None else population
        enough = min(GENERATIONS, max(1, round(COMPARED_SHARE * self.size / max(1, few)) - 1))
        return few, enough if generations is None else generations

    def bookmark(self, name: str) -> Bookmark:
        """Where a stopped search is gone on with; the landmarks stand for all that tells objectives."""
        question = {key: value for key, value in asdict(self.request.question).items() if value is not None}
        own = {"objectives": [axis.name for axis in self.axes], "population": self.effort[0], "seed": self.request.seed}
        asked = {"question": question, **own, "landmarks": self.box.landmarks.tolist()}
        return Bookmark(self.folder, name, json.loads(json.dumps(asked)))  # JSON knows no tuples


__all__ = ["EXACT", "ParetoRequest", "Task"]
