"""The stopwatch against a clock we turn ourselves, on machines that change their speed, and percentiles against numpy."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from ofasearch.latency.stopwatch import DISTURBED, MOST_SAMPLES, Reference, StopRule, Timing, sample, stopwatch, timing_json


class Bench:
    """A clock that only moves when an action runs; `log` is the order of the runs."""

    def __init__(self):
        self.now, self.log = 100.0, []

    def clock(self):
        return self.now

    def action(self, name, milliseconds):
        """An action that takes the next of the given times (the last one for ever)."""
        times = iter(milliseconds)
        last = [0.0]

        def run():
            last[0] = next(times, last[0])
            self.log.append(name)
            self.now += last[0] / 1000

        return run


def noise(seed, spread):
    """Endless milliseconds around 10."""
    rng = np.random.default_rng(seed)
    while True:
        yield 10 * np.exp(spread * rng.normal())


RULE = StopRule(tolerance=0.02, min_bursts=30, max_bursts=200, max_seconds=1e9, warmup=3, min_sample_ms=0.2)


def timed(bench, rule=RULE, **actions):
    return stopwatch({name: bench.action(name, times) for name, times in actions.items()}, rule, clock=bench.clock)


# -- the stopwatch ---------------------------------------------------------------------------------------------


def test_candidates_run_in_turn_after_their_warmup():
    bench = Bench()
    found = timed(bench, a=[1.0], b=[2.0], c=[3.0])
    rounds = found["a"].n
    assert bench.log == ["a"] * 3 + ["b"] * 3 + ["c"] * 3 + ["a", "b", "c"] * rounds
    assert [found[name].p50 for name in "abc"] == pytest.approx([1.0, 2.0, 3.0])


def test_warmup_is_not_counted():
    found = timed(Bench(), a=[500.0, 400.0, 300.0, 1.0])["a"]
    assert found.mean == pytest.approx(1.0)


@pytest.mark.parametrize(("milliseconds", "repeats"), [(0.2, 1), (0.1, 2), (0.03, 7), (5.0, 1)])
def test_short_actions_are_repeated_inside_a_sample(milliseconds, repeats):
    bench = Bench()
    found = timed(bench, a=[milliseconds])["a"]
    assert len(bench.log) == RULE.warmup + repeats * found.n
    assert found.p50 == pytest.approx(milliseconds)


def test_an_action_without_duration_does_not_hang():
    assert timed(Bench(), a=[0.0])["a"].p50 == 0


def test_it_stops_when_every_median_is_known_well_enough():
    steady = timed(Bench(), a=[1.0], b=[2.0])
    assert {t.n for t in steady.values()} == {30}  # the first look after the least number of bursts
    mixed = timed(Bench(), a=[1.0], b=noise(0, 0.07))
    assert mixed["a"].n == mixed["b"].n
    assert 30 < mixed["b"].n < RULE.max_bursts
    assert mixed["b"].high - mixed["b"].low <= 2 * RULE.tolerance * mixed["b"].p50


def test_it_stops_at_the_largest_number_of_bursts():
    assert timed(Bench(), a=noise(0, 1.0))["a"].n == RULE.max_bursts


def test_it_stops_when_time_is_up():
    rule = StopRule(max_seconds=1.0, min_bursts=30, warmup=1)
    bench = Bench()
    found = timed(bench, rule, a=noise(1, 1.0))["a"]
    assert rule.min_bursts < found.n < rule.max_bursts
    assert 1.0 < found.n * found.mean / 1000 < 1.2
    assert timed(Bench(), rule, a=[1000.0])["a"].n == rule.min_bursts  # enough to say something, however slow


def test_a_turn_has_its_burst_after_settling():
    bench = Bench()
    found = timed(bench, replace(RULE, burst=3, settle=2), a=[1.0], b=[2.0])
    assert bench.log[6:] == (["a"] * 5 + ["b"] * 5) * (found["a"].n // 3)  # 3 runs of each warm up
    assert found["a"].p50 == pytest.approx(1.0)


@pytest.mark.parametrize(("milliseconds", "samples"), [(10.0, 3), (1.0, 3), (0.5, 4), (0.3, 7), (0.2, MOST_SAMPLES), (0.01, MOST_SAMPLES)])
def test_the_turn_of_a_quick_action_lasts_as_long_as_asked(milliseconds, samples):
    found = timed(Bench(), replace(RULE, burst=3, burst_ms=2.0, min_sample_ms=0.0), a=[milliseconds])["a"]
    assert found.n == samples * RULE.min_bursts


def test_an_action_that_tells_its_own_milliseconds_is_timed_by_them():
    bench = Bench()
    slow = bench.action("a", [5.0])
    found = stopwatch({"a": lambda: slow() or 0.75}, RULE, clock=bench.clock)["a"]
    assert (found.p50, found.raw_p50) == (0.75, 0.75)
    assert sample(lambda: np.float64(0.25), 4, bench.clock) == 0.25
    assert sample(lambda: slow() or float("nan"), 2, bench.clock) == pytest.approx(5.0)  # no number: by the clock
    assert sample(lambda: slow() or 3, 2, bench.clock) == pytest.approx(5.0)


# -- machines that change their speed ----------------------------------------------------------------------------


class Machine(Bench):
    """A bench whose actions take `slowness(seconds since the start)` times as long, and scatter a little."""

    def __init__(self, slowness, seed=0, scatter=0.01):
        super().__init__()
        self.slowness, self.scatter, self.rng = slowness, scatter, np.random.default_rng(seed)

    def runs(self, ms):
        def run():
            self.now += ms / 1000 * self.slowness(self.now - 100.0) * np.exp(self.scatter * self.rng.normal())

        return run

    def time(self, rule, reference, **ms):
        return stopwatch({name: self.runs(value) for name, value in ms.items()}, rule, clock=self.clock, reference=reference)


def episodes(rng, slow=1.6):
    """Slow for some seconds, itself for some seconds, and so on."""
    edges = np.cumsum(rng.uniform(1.0, 4.0, 400))
    return lambda now: slow if np.searchsorted(edges, now) % 2 else 1.0


CHANGES = {
    "episodes": episodes,
    "one step": lambda rng: lambda now: 1.6 if now > 1.5 else 1.0,
    "late relief": lambda rng: lambda now: 1.6 if now < 3 else 1.0,
    "ramp": lambda rng: lambda now: 1.0 + min(now / 10, 0.6),
    "waves": lambda rng: lambda now: 1.3 + 0.3 * np.sin(now),
}
TRUE = {"small": 4.0, "middle": 10.0, "large": 25.0}
NET = StopRule(tolerance=0.01, min_bursts=12, max_bursts=40, max_seconds=8.0, warmup=3, settle=2, burst=3, burst_ms=2.0, min_sample_ms=0.0)
LEVEL = 6.0  # ms of the reference when the machine is itself


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("change", CHANGES)
def test_medians_beside_a_reference_are_those_of_the_undisturbed_machine(change, seed):
    machine = Machine(CHANGES[change](np.random.default_rng(seed)), seed)
    found = machine.time(NET, Reference(machine.runs(LEVEL), LEVEL), **TRUE)
    for name, true in TRUE.items():
        assert found[name].p50 == pytest.approx(true, rel=0.02)
        assert 0.98 * found[name].low <= true <= 1.02 * found[name].high
        assert found[name].p90 < 1.1 * true


def test_without_a_reference_the_same_machine_deceives():
    machine = Machine(lambda now: 1.6 if now < 10 else 1.0)
    bare = machine.time(NET, None, **TRUE)
    again = Machine(lambda now: 1.6 if now < 10 else 1.0)
    beside = again.time(NET, Reference(again.runs(LEVEL), LEVEL), **TRUE)
    assert max(bare[name].p50 / true for name, true in TRUE.items()) > 1.2
    assert max(beside[name].raw_p50 / true for name, true in TRUE.items()) > 1.2  # what the clock saw is kept
    assert max(beside[name].p50 / true for name, true in TRUE.items()) < 1.02
    assert {name: t.p50 for name, t in bare.items()} == {name: t.raw_p50 for name, t in bare.items()}


def test_the_disturbed_share_is_that_of_the_time():
    for slow_until, share in ((0.0, 0.0), (1e9, 1.0)):
        machine = Machine(lambda now, until=slow_until: 1.6 if now < until else 1.0)
        reference = Reference(machine.runs(LEVEL), LEVEL)
        found = machine.time(NET, reference, **TRUE)
        assert {t.disturbed for t in found.values()} == {share}
        assert reference.disturbed == share
        assert reference.speed == pytest.approx(1 / 1.6 if share else 1.0, rel=0.02)
    machine = Machine(episodes(np.random.default_rng(3)))
    reference = Reference(machine.runs(LEVEL), LEVEL)
    machine.time(replace(NET, tolerance=0.0, max_seconds=1e9), reference, **TRUE)
    assert 0.2 < reference.disturbed < 0.8


def test_a_session_that_is_slow_throughout_is_stated_at_the_level_of_the_first():
    first = Machine(lambda now: 1.0)
    reference = Reference(first.runs(LEVEL))
    before = first.time(NET, reference, **TRUE)
    assert reference.level() == pytest.approx(LEVEL, rel=0.02)
    later = Machine(lambda now: 1.6, seed=1)
    after = later.time(NET, Reference(later.runs(LEVEL), reference.level()), **TRUE)
    for name, true in TRUE.items():
        assert after[name].p50 == pytest.approx(before[name].p50, rel=0.02)
        assert after[name].raw_p50 == pytest.approx(1.6 * true, rel=0.02)
        assert after[name].disturbed == 1.0


def test_the_level_of_a_first_session_is_its_undisturbed_speed():
    machine = Machine(lambda now: 1.6 if now < 1.0 else 1.0)
    reference = Reference(machine.runs(LEVEL))
    machine.time(replace(NET, min_bursts=20), reference, **TRUE)
    assert reference.level() == pytest.approx(LEVEL, rel=0.02)
    assert reference.level_ms is None  # looking does not fix it


def test_bursts_that_saw_a_jump_are_left_out():
    """A machine that is slow in the middle of every tenth turn only: the references around it do not agree, or both are quiet."""
    machine, turns = Machine(lambda now: 1.0, scatter=0.0), iter(range(10**6))

    def candidate():
        turn = next(turns)
        machine.slowness = (lambda now: 3.0) if turn % 10 == 9 else (lambda now: 1.0)
        machine.now += 0.010 * machine.slowness(0)

    rule = replace(NET, tolerance=0.0, min_bursts=40, burst=1, burst_ms=0.0, settle=0, warmup=1)
    found = stopwatch({"a": candidate}, rule, clock=machine.clock, reference=Reference(machine.runs(LEVEL), LEVEL))["a"]
    assert found.p99 == pytest.approx(10.0)  # the slow tenth was not counted
    assert found.n < 40
    assert found.raw_p50 == pytest.approx(10.0)


def test_a_machine_that_never_holds_still_is_answered_all_the_same():
    machine = Machine(lambda now: 1.0)
    machine.slowness = lambda now: machine.rng.uniform(1.2, 3.0)
    found = machine.time(NET, Reference(machine.runs(LEVEL), LEVEL), **TRUE)
    for name, true in TRUE.items():
        assert np.isfinite(list(asdict(found[name]).values())).all()
        assert found[name].n > 0
        assert found[name].p50 == pytest.approx(true, rel=0.5)
        assert found[name].high - found[name].low > 0.02 * true  # the interval tells


def test_the_reference_is_run_around_every_turn():
    bench = Bench()
    reference = Reference(bench.action("r", [1.0]), settle=1, burst=2)
    found = stopwatch({"a": bench.action("a", [2.0]), "b": bench.action("b", [3.0])}, RULE, clock=bench.clock, reference=reference)
    rounds = found["a"].n
    assert bench.log[6:] == ["r"] * 6 + (["a", *["r"] * 3, "b", *["r"] * 3]) * rounds
    assert len(reference.seen_ms) == 2 + 2 * rounds
    assert found["b"].disturbed == 0 < DISTURBED


# -- what samples say ------------------------------------------------------------------------------------------


def test_percentiles_are_those_of_numpy():
    samples = np.random.default_rng(0).lognormal(size=137)
    found = Timing.of(samples)
    expected = np.percentile(samples, [50, 90, 95, 99])
    assert [found.p50, found.p90, found.p95, found.p99] == pytest.approx(expected)
    assert (found.mean, found.std, found.n) == (pytest.approx(samples.mean()), pytest.approx(samples.std()), 137)
    assert found.low < found.p50 < found.high
    assert {found.low, found.high} <= set(samples)


def test_one_sample_bounds_itself():
    assert set(asdict(Timing.of(np.array([3.0]))).values()) == {3.0, 0.0, 1}


def test_bounds_are_of_bursts_and_percentiles_of_samples():
    """Samples of one burst are alike: ten times as many of them do not make a median surer."""
    rng = np.random.default_rng(0)
    medians = rng.lognormal(size=40)
    found = Timing.of(np.repeat(medians[:, None], 10, axis=1))
    alone = Timing.of(medians)
    assert (found.low, found.high, found.n) == (alone.low, alone.high, 400)
    assert found.p50 == pytest.approx(alone.p50)
    assert found.low < Timing.of(np.repeat(medians, 10)).low  # what one would think of 400 independent samples
    tailed = np.ones((20, 5))
    tailed[:, 4] = 9.0  # one slow sample in every burst
    assert (Timing.of(tailed).p90, Timing.of(tailed).high) == (9.0, 1.0)


def test_bounds_hold_the_median_however_few_the_bursts():
    found = Timing.of(np.array([[1.0, 1.0, 1.0, 8.0, 9.0], [2.0, 7.0, 7.0, 7.0, 8.0]]))
    assert found.low <= found.p50 <= found.high


def test_what_the_clock_saw_and_the_disturbed_share_are_kept():
    samples = np.array([1.0, 2.0, 3.0])
    assert Timing.of(samples).raw_p50 == 2.0
    found = Timing.of(samples, raw_p50=5.0, disturbed=0.25)
    assert (found.p50, found.raw_p50, found.disturbed) == (2.0, 5.0, 0.25)


@pytest.mark.parametrize("n", [30, 31, 200])
def test_bounds_cover_the_median_in_95_percent_of_draws(n):
    rng = np.random.default_rng(n)
    timings = [Timing.of(draw) for draw in rng.lognormal(size=(1500, n))]  # median 1, skewed as latencies are
    covered = np.mean([t.low <= 1 <= t.high for t in timings])
    assert 0.94 < covered < 0.985  # order statistics are discrete: the promise is kept from above


def test_json_names_carry_their_unit():
    record = timing_json(Timing(1.0, 2.0, 3.0, 4.0, 1.5, 0.5, 0.9, 1.1, 30, 1.6, 0.25))
    assert (record.pop("samples"), record.pop("disturbed")) == (30, 0.25)
    assert all(name.startswith("latency_ms_") for name in record)
    assert (record["latency_ms_p50_low"], record["latency_ms_p50"], record["latency_ms_p50_high"]) == (0.9, 1.0, 1.1)
    assert record["latency_ms_raw_p50"] == 1.6
