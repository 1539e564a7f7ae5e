"""A search for a front under way: watched generation by generation, saved now and then, gone on with.

Legend: k = networks of a front, g = genes, m = objectives.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch.errors import FormatError, MismatchError
from ofasearch.jobs.axes import Axis
from ofasearch.jobs.setup import Budgets
from ofasearch.records import forget_unfinished, read_json, write_json
from ofasearch.search.front import hypervolume
from ofasearch.search.problem import Generation, Priced, Problem, Search
from ofasearch.search.state import State, load_state, save_state
from ofasearch.space.core import Codes, Values

MARGIN = 0.1  # of the range of each objective: how far the reference lies beyond the worst value
SAVE_SECONDS = 2.0  # between two states on disk
TELL_SECONDS = 0.1


@dataclass(frozen=True, slots=True, kw_only=True)
class ParetoProgress:
    """Where the job is: a phase, and within a search the size of the front and its hypervolume."""

    phase: str
    done: int
    total: int
    points: int | None = None
    hypervolume: float | None = None
    eta_seconds: float | None = None


# -- the yardstick ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Box:
    """Where the front of a problem can lie: known before any search, so that all searches are measured alike.

    `landmarks` (n, m) are the objectives of the smallest and the largest network and of the cheapest and dearest by each
    cost; costs of more than their limit do not count. `reference` (m,) lies a little beyond the worst of them.
    """

    landmarks: Values
    best: Values  # (m,)
    reference: Values  # (m,)

    def volume(self, F: Values) -> float:
        """The hypervolume of F (k, m) in units of the box; above 1 where networks beat the landmarks in accuracy."""
        sides = self.reference - self.best
        return hypervolume((F - self.best) / sides, np.ones_like(sides))


def box_of(problem: Problem, axes: Sequence[Axis], costs: Sequence[Priced], budgets: Budgets) -> Box:
    """The box of a problem whose objectives are an accuracy and these costs."""
    bounds = [cost.bounds() for cost in costs]
    ends = [row for b in bounds for row in (b.lowest_codes, b.highest_codes)]
    landmarks = problem.values(np.stack([problem.space.smallest(), problem.space.largest(), *ends]))
    best, worst = landmarks.min(axis=0), landmarks.max(axis=0)
    for column, axis in enumerate(axes):
        limit = getattr(budgets, axis.limit) if axis.limit is not None else None
        if limit is not None:
            worst[column] = max(min(worst[column], limit), best[column])
    span = np.where(worst > best, worst - best, 1.0)
    return Box(landmarks, best, worst + MARGIN * span)


# -- the search ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class TracePoint:
    """What a search had found after a generation; `hypervolume` is in units of the box."""

    generation: int
    evaluations: int
    points: int
    hypervolume: float


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Found:
    """What a search found: its front, sorted by the first objective, and how it came there."""

    algorithm: str
    codes: Codes  # (k, g)
    F: Values  # (k, m)
    evaluations: int
    seconds: float  # of searching, prediction and pricing included
    trace: tuple[TracePoint, ...]


@dataclass(frozen=True, slots=True)
class Bookmark:
    """The files that a search goes on from, and what was asked of it.

    The trace is written before the state: whatever a kill leaves, the trace reaches at least as far as the state.
    """

    folder: Path
    algorithm: str
    asked: Mapping[str, Any]  # plain JSON

    @property
    def _state(self) -> Path:
        return self.folder / f"unfinished-{self.algorithm}.npz"

    @property
    def _trace(self) -> Path:
        return self.folder / f"unfinished-{self.algorithm}.json"

    def save(self, state: State, trace: Sequence[TracePoint], seconds: float) -> None:
        """Keep where the search stands. Raises WriteError."""
        write_json(self._trace, {"asked": dict(self.asked), "seconds": seconds, "trace": [asdict(point) for point in trace]})
        save_state(self._state, state)

    def load(self) -> tuple[State, list[TracePoint], float] | None:
        """Where a stopped search stood; None where none was stopped.

        Raises MismatchError (other things were asked of it), FormatError (damaged).
        """
        if not (self._state.exists() and self._trace.exists()):
            return None
        record = read_json(self._trace)
        try:
            asked, seconds, trace = record["asked"], float(record["seconds"]), [_trace_point(line) for line in record["trace"]]
        except (KeyError, TypeError, ValueError) as error:
            raise FormatError(f"{self._trace} must be the trace of a stopped search, but it is damaged; leave --resume out") from error
        changed = [key for key in self.asked if not isinstance(asked, dict) or asked.get(key) != self.asked[key]]
        if changed:
            raise MismatchError(
                f"a resumed search must be asked the same, but {', '.join(changed)} changed; leave --resume out to start anew"
            )
        state = load_state(self._state)
        trace = [point for point in trace if point.generation <= state.number]
        if [point.generation for point in trace] != list(range(state.number + 1)):
            raise FormatError(f"{self._trace} must tell every generation of a stopped search, but some are missing; leave --resume out")
        return state, trace, seconds

    def forget(self) -> bool:
        """Remove the files; whether there were any."""
        found = False
        for path in (self._state, self._trace):
            forget_unfinished(path)
            found |= path.exists()
            path.unlink(missing_ok=True)
        return found


def _trace_point(line: Mapping[str, Any]) -> TracePoint:
    values = {field.name: line[field.name] for field in fields(TracePoint)}
    if not all(isinstance(value, int | float) and not isinstance(value, bool) for value in values.values()):
        raise ValueError("no numbers")
    return TracePoint(**values)


@dataclass(slots=True)
class Watch:
    """Follows a search: keeps its trace, tells its progress, saves it; `found` is what it found so far."""

    box: Box
    bookmark: Bookmark
    total: int  # generations
    trace: list[TracePoint]
    seconds: float = 0.0
    last: Generation | None = None

    def follow(self, search: Search) -> Generator[ParetoProgress, None, Found]:
        """Run the search to its end. Whatever stops it before, the last generation is saved."""
        from threadpoolctl import threadpool_limits

        told = saved = time.perf_counter()
        ended = False
        try:
            with threadpool_limits(1):  # threads fight over matrices this small
                while self._step(search):
                    now = time.perf_counter()
                    if now - saved > SAVE_SECONDS:
                        self._save()
                        saved = now
                    if now - told > TELL_SECONDS:
                        told = now
                        yield self._progress()
            ended = True
        finally:
            if not ended:
                self._save()
        assert self.last is not None  # a search yields at least once or raises
        return Found(
            algorithm=self.bookmark.algorithm,
            codes=self.last.codes,
            F=self.last.F,
            evaluations=self.last.evaluations,
            seconds=self.seconds,
            trace=tuple(self.trace),
        )

    def _step(self, search: Search) -> bool:
        """One generation more, unless the search is over."""
        started = time.perf_counter()
        generation = next(search, None)
        self.seconds += time.perf_counter() - started
        if generation is None:
            return False
        volume, points = self.box.volume(generation.F), len(generation.codes)
        self.trace.append(TracePoint(generation=generation.number, evaluations=generation.evaluations, points=points, hypervolume=volume))
        self.last = generation  # after its line of the trace, which an interrupt must not take from the state
        return True

    def _save(self) -> None:
        if self.last is not None and self.last.capture is not None and self.last.number < self.total:
            self.bookmark.save(self.last.state, self.trace, self.seconds)

    def _progress(self) -> ParetoProgress:
        point = self.trace[-1]
        return ParetoProgress(
            phase=f"searching by {self.bookmark.algorithm}",
            done=point.generation,
            total=self.total,
            points=point.points,
            hypervolume=point.hypervolume,
            eta_seconds=self.seconds / (point.generation + 1) * (self.total - point.generation),
        )
