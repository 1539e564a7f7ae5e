"""Prices without a table: whole networks timed as a search asks for them, each once, remembered (CompOFA, section 5.7)."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from ofasearch.errors import MismatchError
from ofasearch.jobs.measuring import NET_RULE, Lab, LatencyProgress, Steps
from ofasearch.latency.memory import Measured, network_name
from ofasearch.space.core import Codes, Space, Values
from ofasearch.space.pricing import Bounds

DIRECT_RULE = replace(NET_RULE, min_bursts=8, max_bursts=20, max_seconds=4.0)  # many networks; the winner is measured longer


@dataclass(frozen=True, slots=True)
class RecordedCost:
    """Milliseconds of networks (n, g) -> (n,) as a former search timed them, by `network_name`; nothing is timed.

    `whole` says that every network of the space was.
    """

    space: Space
    ms: Mapping[str, float]
    whole: bool

    def __call__(self, codes: Codes) -> Values:
        """Medians (n,) of canonical codes (n, g). Raises MismatchError for a network that was not timed."""
        names = [network_name(self.space.blueprint(row)) for row in codes]
        for name, row in zip(names, codes, strict=True):
            if name not in self.ms:
                raise MismatchError(f"every network that is compared must have been timed in the run, but {self.space.arch(row)} was not")
        return np.array([self.ms[name] for name in names], dtype=float)

    def bounds(self) -> Bounds:
        """The fastest and the slowest network that the former search knew beforehand."""
        codes = self.space.enumerate() if self.whole else np.stack([self.space.smallest(), self.space.largest()])
        ms = self(codes)
        low, high = (int(ms.argmin()), int(ms.argmax())) if self.whole else (0, 1)
        return Bounds(float(ms[low]), codes[low], float(ms[high]), codes[high])


@dataclass(slots=True)
class DirectCost:
    """Milliseconds of networks (n, g) -> (n,), measured where they are not known yet. The memory keys hold the input size.

    `bounds` are those of the networks measured so far and of the space's smallest and largest: exact only where all
    networks were measured.
    """

    space: Space
    lab: Lab
    known: dict[str, Measured] = field(default_factory=dict)
    networks: int = 0  # measured now, not remembered
    seconds: float = 0.0  # spent on measuring them
    _best: Bounds | None = None

    def __call__(self, codes: Codes) -> Values:
        """Medians (n,) of canonical codes (n, g)."""
        for _ in self.measure(codes):
            pass
        return np.array([self.known[network_name(self.space.blueprint(row))].timing.p50 for row in codes], dtype=float)

    def measure(self, codes: Codes) -> Iterator[LatencyProgress]:
        """Measure what is not known of the given networks, with progress."""
        blueprints = {network_name(blueprint): blueprint for blueprint in map(self.space.blueprint, codes)}
        wanted = {name: blueprint for name, blueprint in blueprints.items() if name not in self.known}
        if not wanted:
            return
        remembered = self.lab.memory.networks()
        steps, started = Steps(len(wanted)), time.perf_counter()
        for name, measured in self.lab.measure(wanted, rule=DIRECT_RULE):
            self.known[name] = measured
            self.networks += name not in remembered
            yield steps.step(f"network of {len(wanted[name])} layers", timed=name not in remembered)
        self.seconds += time.perf_counter() - started

    def bounds(self) -> Bounds:
        """The fastest and the slowest network that is known."""
        if self._best is None:
            ends = np.stack([self.space.smallest(), self.space.largest()])
            ms = self(ends)
            self._best = Bounds(float(ms[0]), ends[0], float(ms[1]), ends[1])
        return self._best

    def measure_all(self) -> Iterator[LatencyProgress]:
        """Measure every network of a small space, after which the bounds are exact."""
        codes = self.space.enumerate()
        yield from self.measure(codes)
        ms = self(codes)
        low, high = int(ms.argmin()), int(ms.argmax())
        self._best = Bounds(float(ms[low]), codes[low], float(ms[high]), codes[high])
