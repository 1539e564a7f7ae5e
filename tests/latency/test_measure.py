"""The stopwatch against a clock we turn ourselves, and percentiles against numpy."""

from dataclasses import asdict

import numpy as np
import pytest

from ofasearch.errors import FormatError
from ofasearch.latency.measure import OnnxModel, StopRule, Timing, fingerprint, stopwatch, timing_json


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


RULE = StopRule(tolerance=0.02, min_samples=30, max_samples=200, max_seconds=1e9, warmup=3, min_sample_ms=0.2)


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
    assert {t.n for t in steady.values()} == {31}  # the first look after the least number of samples
    mixed = timed(Bench(), a=[1.0], b=noise(0, 0.07))
    assert mixed["a"].n == mixed["b"].n
    assert 31 < mixed["b"].n < RULE.max_samples
    assert mixed["b"].high - mixed["b"].low <= 2 * RULE.tolerance * mixed["b"].p50


def test_it_stops_at_the_largest_number_of_samples():
    assert timed(Bench(), a=noise(0, 1.0))["a"].n == RULE.max_samples


def test_it_stops_when_time_is_up():
    rule = StopRule(max_seconds=1.0, min_samples=30, warmup=1)
    bench = Bench()
    found = timed(bench, rule, a=noise(1, 1.0))["a"]
    assert rule.min_samples < found.n < rule.max_samples
    assert 1.0 < found.n * found.mean / 1000 < 1.2
    assert timed(Bench(), rule, a=[1000.0])["a"].n == rule.min_samples  # enough to say something, however slow


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


@pytest.mark.parametrize("n", [30, 31, 200])
def test_bounds_cover_the_median_in_95_percent_of_draws(n):
    rng = np.random.default_rng(n)
    timings = [Timing.of(draw) for draw in rng.lognormal(size=(1500, n))]  # median 1, skewed as latencies are
    covered = np.mean([t.low <= 1 <= t.high for t in timings])
    assert 0.94 < covered < 0.985  # order statistics are discrete: the promise is kept from above


def test_json_names_carry_their_unit():
    record = timing_json(Timing(1.0, 2.0, 3.0, 4.0, 1.5, 0.5, 0.9, 1.1, 30))
    assert record.pop("samples") == 30
    assert all(name.startswith("latency_ms_") for name in record)
    assert (record["latency_ms_p50_low"], record["latency_ms_p50"], record["latency_ms_p50_high"]) == (0.9, 1.0, 1.1)


# -- ONNX Runtime ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08\x12\x04"], ids=["empty", "text", "cut"])
def test_a_damaged_onnx_file_is_refused(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"m\.onnx must be an ONNX file that ONNX Runtime can run, but it is not") as caught:
        OnnxModel(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(FormatError, match="the ONNX graph must be"):
        OnnxModel(content)


def test_a_fingerprint_tells_machines_and_settings_apart():
    key = fingerprint(batch=4, threads=2)
    assert (key.batch, key.threads, key.precision) == (4, 2, "fp32")
    assert key.runtime.startswith("onnxruntime ")
    assert key.device.strip()
    assert key != fingerprint(batch=1, threads=2)
