"""The stopwatch: run candidates in turn beside a reference, until the median of each is known well enough.

Machines change their speed while one measures: clocks move, neighbours take the memory, a hypervisor takes the core.
Such changes last for seconds and meet similar work alike. So candidates take turns in short bursts, and a *reference*
(similar work that is always the same) runs between the bursts: a burst counts in units of the references before and
after it, and bursts during which the reference itself changed are left out. What was seen of the clock is kept beside
what was made of it. Whoever calls brings the actions; nothing here builds layers.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import numpy.typing as npt

Action = Callable[[], object]  # one run; a float that it returns is its milliseconds by the device's own clock
Clock = Callable[[], float]  # seconds
Samples = npt.NDArray[np.float64]

JUMP = 1.15  # a reference that changes by more across one burst says that the burst saw two speeds of the machine
LEVEL_QUANTILE = 0.25  # of the reference: below are lucky moments, above the disturbed ones
ENOUGH = 8  # bursts
MOST_SAMPLES = 10  # of one turn
DISTURBED = 1.15  # a reference this much above its level tells of a disturbed machine


@dataclass(frozen=True, slots=True)
class Timing:
    """What `n` samples of one candidate say, milliseconds; `low` and `high` bound the median with 95 % confidence.

    Beside a reference all of these are at the reference's level, and `raw_p50` is the median as the clock saw it;
    without one both are the same. `disturbed` is the share of the time in which the reference was well above its level.
    """

    p50: float
    p90: float
    p95: float
    p99: float
    mean: float
    std: float
    low: float
    high: float
    n: int
    raw_p50: float
    disturbed: float = 0.0

    @staticmethod
    def of(samples_ms: Samples, *, raw_p50: float | None = None, disturbed: float = 0.0) -> Timing:
        """Percentiles of samples (n,) or bursts of samples (bursts, n).

        The bounds are order statistics (distribution-free, normal approximation) of the medians of bursts, because the
        samples of one burst are alike. They hold the median itself, which may lie outside of few bursts' bounds.
        """
        bursts = np.sort(samples_ms if samples_ms.ndim == 1 else np.median(samples_ms, axis=1))
        n = len(bursts)
        half = 0.98 * math.sqrt(n)  # 1.96 standard deviations of a binomial(n, 1/2) rank
        low, high = bursts[max(0, math.floor(n / 2 - half))], bursts[min(n - 1, math.ceil(n / 2 + half))]
        p50, p90, p95, p99 = (float(p) for p in np.percentile(samples_ms, (50, 90, 95, 99)))
        raw = p50 if raw_p50 is None else raw_p50
        spread = float(samples_ms.mean()), float(samples_ms.std())
        return Timing(p50, p90, p95, p99, *spread, min(p50, float(low)), max(p50, float(high)), samples_ms.size, raw, disturbed)

    def at_level(self, factor: float) -> Timing:
        """The same, stated at a reference level that is `factor` times as high; what the clock saw stays."""
        stated = {name: factor * getattr(self, name) for name in ("p50", "p90", "p95", "p99", "mean", "std", "low", "high")}
        return replace(self, **stated)


@dataclass(frozen=True, slots=True, kw_only=True)
class StopRule:
    """Stop when the 95 % interval of every median is narrower than `tolerance` of it, or after `max_seconds` in all."""

    tolerance: float = 0.02
    min_bursts: int = 30  # turns of each candidate
    max_bursts: int = 2000
    max_seconds: float = 5.0
    warmup: int = 5  # runs of each candidate that are not counted
    settle: int = 0  # uncounted runs whenever a candidate's turn comes: they bring its weights back into the caches
    burst: int = 1  # samples per turn at least
    burst_ms: float = 0.0  # a turn of a quick candidate has up to MOST_SAMPLES samples, to last as long as this
    min_sample_ms: float = 0.2  # shorter actions are repeated inside one sample, so that the clock's grain does not show
    turn_ms: float = math.inf  # a turn of a slow candidate, or of the reference, has fewer runs than that, to last about this long


@dataclass(slots=True)
class Reference:
    """Work that is always the same, run between bursts. `level_ms` is what it takes when the machine is itself.

    A level from an earlier session makes this session's timings comparable with that one's; where none is given, the
    lower quartile of what this session saw is it. `seen_ms` collects every burst.
    """

    action: Action
    level_ms: float | None = None
    settle: int = 1
    burst: int = 3
    seen_ms: list[float] = field(default_factory=list)

    def run(self, clock: Clock) -> float:
        """Milliseconds of one burst (its fastest run: an interrupt is no change of speed)."""
        for _ in range(self.settle):
            self.action()
        self.seen_ms.append(min(sample(self.action, 1, clock) for _ in range(self.burst)))
        return self.seen_ms[-1]

    def level(self) -> float:
        """Milliseconds: as given, else made of what was seen so far."""
        return self.level_ms if self.level_ms is not None else float(np.quantile(self.seen_ms, LEVEL_QUANTILE))

    @property
    def disturbed(self) -> float:
        """Share of the bursts in which the machine was well slower than at the reference's level."""
        return float(np.mean(np.array(self.seen_ms) > DISTURBED * self.level()))

    @property
    def speed(self) -> float:
        """Speed of the machine in this session when it is itself: 1 as at the level, 0.5 half as fast."""
        return self.level() / float(np.quantile(self.seen_ms, LEVEL_QUANTILE))


@dataclass(slots=True)
class _Track:
    """Bursts of one candidate: samples (bursts, burst) and the reference's milliseconds before and after each."""

    samples: list[list[float]] = field(default_factory=list)
    before: list[float] = field(default_factory=list)
    after: list[float] = field(default_factory=list)

    def timing(self, reference: Reference | None) -> Timing:
        raw = np.array(self.samples)
        if reference is None:
            return Timing.of(raw)
        before, after = np.array(self.before), np.array(self.after)
        level, beside = reference.level(), np.sqrt(before * after)
        steady = np.maximum(before, after) <= JUMP * np.minimum(before, after)
        quiet = steady & (beside <= DISTURBED * level)
        # the quietest bursts there are enough of; where there are none, take what there is: the interval tells
        use = next((kept for kept in (quiet, steady) if kept.sum() >= ENOUGH), np.ones(len(raw), dtype=bool))
        corrected = raw[use] * (level / beside[use])[:, None]
        return Timing.of(corrected, raw_p50=float(np.median(raw)), disturbed=float(np.mean(beside > DISTURBED * level)))


def stopwatch(
    actions: Mapping[str, Action], rule: StopRule, clock: Clock = time.perf_counter, *, reference: Reference | None = None
) -> dict[str, Timing]:
    """Time all actions in turn, round by round, so that a disturbance of the machine meets all of them alike.

    With a reference, timings are corrected for what the reference says of the machine (see `Timing`).
    """
    fastest = {name: _warm_up(action, rule, clock) for name, action in actions.items()}
    repeats = {name: max(1, math.ceil(rule.min_sample_ms / ms)) for name, ms in fastest.items()}
    turns = {name: _turn(rule, ms) for name, ms in fastest.items()}
    tracks = {name: _Track() for name in actions}
    if reference is not None:
        warm = reference.run(clock)
        reference.settle, reference.burst = _shortened(reference.settle, reference.burst, warm, rule.turn_ms)
    deadline = clock() + rule.max_seconds
    last = reference.run(clock) if reference is not None else 0.0
    for round_number in range(1, rule.max_bursts + 1):
        for name, action in actions.items():
            track, (settle, burst) = tracks[name], turns[name]
            for _ in range(settle):
                action()
            track.samples.append([sample(action, repeats[name], clock) for _ in range(burst)])
            if reference is not None:
                track.before.append(last)
                last = reference.run(clock)
                track.after.append(last)
        if round_number >= rule.min_bursts and (
            clock() > deadline or (round_number % 5 == 0 and all(_tight(t.timing(reference), rule) for t in tracks.values()))
        ):
            break
    return {name: track.timing(reference) for name, track in tracks.items()}


def sample(action: Action, repeats: int, clock: Clock) -> float:
    """Milliseconds of one run, averaged over `repeats` runs in a row."""
    start, own = clock(), 0.0
    for _ in range(repeats):
        told = action()
        own += told if isinstance(told, float) else math.nan
    passed = (clock() - start) * 1000
    return (passed if math.isnan(own) else own) / repeats


def _warm_up(action: Action, rule: StopRule, clock: Clock) -> float:
    """Milliseconds of the fastest of the runs that are not counted."""
    return max(1e-4, min(sample(action, 1, clock) for _ in range(max(1, rule.warmup))))


def _turn(rule: StopRule, ms: float) -> tuple[int, int]:
    """How many runs of one turn are not counted, and how many are, of a candidate that takes `ms`."""
    return _shortened(rule.settle, max(rule.burst, min(MOST_SAMPLES, math.ceil(rule.burst_ms / ms))), ms, rule.turn_ms)


def _shortened(settle: int, burst: int, ms: float, turn_ms: float) -> tuple[int, int]:
    """The same shares of fewer runs where a turn would last longer than `turn_ms`; one run is always counted."""
    share = min(1.0, turn_ms / ((settle + burst) * ms))
    return int(settle * share), max(1, int(burst * share))


def _tight(timing: Timing, rule: StopRule) -> bool:
    return timing.high - timing.low <= 2 * rule.tolerance * timing.p50


def timing_json(timing: Timing) -> dict[str, Any]:
    """A timing in the names of the JSON answers."""
    return {
        "latency_ms_p50": timing.p50,
        "latency_ms_p90": timing.p90,
        "latency_ms_p95": timing.p95,
        "latency_ms_p99": timing.p99,
        "latency_ms_mean": timing.mean,
        "latency_ms_std": timing.std,
        "latency_ms_p50_low": timing.low,
        "latency_ms_p50_high": timing.high,
        "samples": timing.n,
        "latency_ms_raw_p50": timing.raw_p50,
        "disturbed": timing.disturbed,
    }
