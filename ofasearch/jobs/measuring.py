"""Whole networks timed on this machine beside a reference network, each remembered: what tables, checks and searches rest on."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial

from ofasearch.deploy.runtime import Runner, Runtime, TracedRunner
from ofasearch.latency.memory import Measured, Memory, network_name
from ofasearch.latency.probes import shares_of
from ofasearch.latency.stopwatch import Action, Reference, StopRule, Timing, stopwatch
from ofasearch.space.core import Blueprint

GROUP = 4  # networks timed in turn; what a kill can lose at most
NET_RULE = StopRule(
    tolerance=0.006,
    min_bursts=10,
    max_bursts=60,
    max_seconds=6.0,
    warmup=3,
    settle=2,
    burst=3,
    burst_ms=2.0,
    min_sample_ms=0.0,
    turn_ms=250.0,
)
SPOT_RULE = replace(NET_RULE, min_bursts=20, max_bursts=60, max_seconds=10.0)
SPEEDS_APART = 1.25  # between this session and the one that set the level, beyond which users are told

Load = Callable[[], Runner]  # done while the machine is held, because loading disturbs whoever measures


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyProgress:
    """One more thing was measured (or remembered)."""

    done: int
    total: int
    what: str
    eta_seconds: float


@dataclass(slots=True)
class Lab:
    """A runtime of this machine, its memory, and the network that stands between the others as reference."""

    runtime: Runtime
    reference: Blueprint
    memory: Memory = field(init=False)
    disturbed: list[float] = field(default_factory=list)  # share of disturbed reference bursts, per group
    speeds: list[float] = field(default_factory=list)  # against the level, per group
    _loaded: Runner | None = None
    _level_ms: float | None = None  # of the reference, where the memory cannot keep it

    def __post_init__(self) -> None:
        self.memory = Memory(self.runtime.key)

    def time_now(self, loads: Mapping[str, Load], *, traced: bool, rule: StopRule) -> dict[str, Measured]:
        """Load networks and time them in turn, beside the reference, while no other process measures."""
        with self._alone():
            return self._time(loads, traced=traced, rule=rule)

    def measure(
        self, networks: Mapping[str, Blueprint], *, traced: bool = False, rule: StopRule | None = None
    ) -> Iterator[tuple[str, Measured]]:
        """Every network's timing, remembered ones first; `traced` asks for the shares of layers where the runtime has them."""
        digests = {name: network_name(blueprint) for name, blueprint in networks.items()}
        traced = traced and self.runtime.tells_layers

        def remembered(names: list[str]) -> dict[str, Measured]:
            known = self.memory.networks()
            found = {name: known[digests[name]] for name in names if digests[name] in known}
            return {name: m for name, m in found.items() if not traced or len(m.shares) == len(networks[name])}

        found, left = remembered(list(networks)), list(networks)
        while True:
            yield from found.items()
            left = [name for name in left if name not in found]
            if not left:
                return
            with self._alone():
                found = remembered(left)  # another process may have been at the same work while this one waited its turn
                group = [name for name in left if name not in found][:GROUP]
                loads = {name: partial(self.runtime.load, networks[name]) for name in group}
                timed = self._time(loads, traced=traced, rule=rule or NET_RULE) if group else {}
                for name, measured in timed.items():
                    self.memory.add(digests[name], measured)
            found |= timed

    @contextlib.contextmanager
    def _alone(self) -> Iterator[None]:
        with self.memory.alone(), self.runtime.held():
            yield

    def _time(self, loads: Mapping[str, Load], *, traced: bool, rule: StopRule) -> dict[str, Measured]:
        if self._loaded is None:
            self._loaded = self.runtime.load(self.reference)
        runners = {key: load() for key, load in loads.items()}
        accounts = {key: account for key, runner in runners.items() if traced and (account := runner.traced()) is not None}
        actions: dict[str, Action] = {key: runner.run for key, runner in runners.items()}
        actions |= {f"traced {key}": account.run for key, account in accounts.items()}
        name = network_name(self.reference)
        known = self.memory.level_ms(name)
        reference = Reference(self._loaded.run, known or self._level_ms)
        timings = stopwatch(actions, rule, reference=reference)
        self._level_ms = reference.level()
        if known is None:
            self.memory.set_level(name, self._level_ms)
        self.disturbed.append(reference.disturbed)
        self.speeds.append(reference.speed)
        return {key: Measured(timings[key], _shares(timings, key, accounts)) for key in runners}

    def words(self) -> list[str]:
        """What the user should know of how the machine behaved while it was measured."""
        found = disturbance_words(self.disturbed)
        if self.speeds:
            speed = sorted(self.speeds)[len(self.speeds) // 2]
            if not 1 / SPEEDS_APART < speed < SPEEDS_APART:
                found.append(
                    f"the machine ran at {100 * speed:.0f} % of the speed at which it was first measured; timings are stated at that speed "
                    "(measure anew with `ofasearch latency build --fresh` if it stays so)"
                )
        if self.memory.failure:
            found.append(f"measurements were not remembered, set OFASEARCH_CACHE to a folder that can be written: {self.memory.failure}")
        return found


def disturbance_words(disturbed: Sequence[float]) -> list[str]:
    """What to say of the shares of disturbed time, one per group of networks; nothing while all are small."""
    if max(disturbed, default=0.0) <= 0.5:
        return []
    share = 100 * sum(disturbed) / len(disturbed)
    return [f"the machine was disturbed by other work in {share:.0f} % of the time: timings are corrected by the reference network"]


def _shares(timings: Mapping[str, Timing], key: str, accounts: Mapping[str, TracedRunner]) -> tuple[float, ...]:
    if key not in accounts:
        return ()
    trace = accounts[key].finish()
    return shares_of(trace.layer_ms, trace.run_ms, trace.kernels, ms=timings[key].p50, traced_ms=timings[f"traced {key}"].p50)


class Steps:
    """Counts what is measured and says how long the rest will take."""

    def __init__(self, total: int):
        self._total, self._done, self._started, self._timed = total, 0, time.perf_counter(), 0

    def step(self, what: str, *, timed: bool) -> LatencyProgress:
        """One more is done; remembered ones do not count for the ETA."""
        self._done += 1
        self._timed += timed
        spent = time.perf_counter() - self._started
        eta = spent / self._timed * (self._total - self._done) if self._timed else 0.0
        return LatencyProgress(done=self._done, total=self._total, what=what, eta_seconds=eta)
