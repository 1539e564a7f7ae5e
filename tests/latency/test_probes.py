"""Networks that hold every layer, and rows that whole times give back, on machines whose law is known."""

import zlib
from dataclasses import replace

import numpy as np
import pytest

from ofasearch.latency.probes import (
    Probe,
    choose_probes,
    filled_rows,
    lawful_rows,
    quantities,
    refined_rows,
    shared_rows,
    shares_of,
)
from ofasearch.latency.table import ANY, Row
from ofasearch.space.families import DESIGNS, get_space, mobile_space

RATES = np.array([1.3e-8, 4e-8, 2e-8, 1.5e-8, 6e-8, 2e-3])  # ms per unit of each of a layer's quantities


def lawful_ms(spec):
    return float(quantities(spec) @ RATES)


def own_ms(spec):
    """A layer's time by the law, times a factor of its own that the law cannot know."""
    return lawful_ms(spec) * np.random.default_rng(zlib.crc32(repr(spec.shape).encode())).uniform(0.7, 1.4)


def probe(blueprint, ms_of, *, noise=0.0, rng=None, whole=lambda ms: ms, shares=True):
    parts = np.array([ms_of(spec) for spec in blueprint])
    ms = whole(parts.sum()) * (float(np.exp(noise * rng.normal())) if noise else 1.0)
    return Probe(blueprint, ms, 1.1 * ms, 30, tuple((parts / parts.sum()).tolist()) if shares else ())


def networks(space, n, seed):
    return [space.blueprint(row) for row in np.unique(space.sample(n, np.random.default_rng(seed)), axis=0)]


def sums(rows, blueprints):
    return np.array([sum(rows[ANY, spec.shape].ms for spec in blueprint) for blueprint in blueprints])


@pytest.fixture(scope="module")
def small():
    return get_space("ofa-mbv3-cifar")


@pytest.fixture(scope="module")
def probed(small):
    return [small.blueprint(row) for row in choose_probes(small, np.random.default_rng(0), times=3)]


# -- which networks ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("times", [1, 3])
@pytest.mark.parametrize("name", DESIGNS)
def test_probes_hold_every_layer_as_often_as_asked(name, times):
    space = get_space(name)
    space = space.with_resolutions(sorted({space.resolutions[0], space.resolutions[-1]}))
    rows = choose_probes(space, np.random.default_rng(0), times=times)
    space.validate(rows)
    held = {}
    for row in rows:
        for spec in space.blueprint(row):
            held[spec.shape] = held.get(spec.shape, 0) + 1
    assert held.keys() == {spec.shape for spec in space.layers()}
    assert min(held.values()) >= times
    assert len(np.unique(rows, axis=0)) == len(rows)
    assert len(rows) < times * len(space.layers()) / 2  # few of them
    assert {space.resolutions[code - 1] for code in rows[:, 0]} == set(space.resolutions)


def test_the_probe_of_a_space_of_one_network_is_that_one(tiny_design):
    lone = mobile_space(replace(tiny_design, depths=(2,), expands=(3,), kernels=(5,)))
    rows = choose_probes(lone, np.random.default_rng(0), times=3)
    assert len(rows) == 1  # it cannot be held more often by different networks


def test_the_same_draws_choose_the_same_probes(small):
    one, same, other = (choose_probes(small, np.random.default_rng(seed), times=2) for seed in (5, 5, 6))
    assert np.array_equal(one, same)
    assert one.shape != other.shape or not np.array_equal(one, other)


# -- shares ------------------------------------------------------------------------------------------------------


def test_what_keeping_account_costs_is_taken_off_exactly():
    rng = np.random.default_rng(0)
    true, kernels, cost = rng.uniform(0.05, 0.5, 12), rng.integers(1, 6, 12).astype(float), 0.004
    ms = true.sum()
    traced_ms = ms + cost * kernels.sum()
    pace = rng.uniform(0.9, 1.5, 40)  # of every traced run; what the stopwatch says of them is at the reference's level
    layer_ms, run_ms = pace[:, None] * (true + cost * kernels), pace * traced_ms
    found = shares_of(layer_ms, run_ms, kernels, ms=ms, traced_ms=traced_ms)
    assert found == pytest.approx(true / ms, rel=1e-9)
    assert sum(found) == pytest.approx(1)


def test_time_between_layers_is_shared_in_proportion():
    true, kernels = np.array([1.0, 3.0]), np.array([1.0, 1.0])
    found = shares_of(true[None], np.array([5.0]), kernels, ms=5.0, traced_ms=5.0)  # one millisecond belongs to no layer
    assert found == pytest.approx((0.25, 0.75))


def test_a_layer_that_is_all_account_keeps_a_tenth():
    layer_ms, kernels = np.array([[1.0, 0.011]]), np.array([1.0, 10.0])
    found = shares_of(layer_ms, np.array([1.011]), kernels, ms=0.9, traced_ms=1.011)
    assert found[1] == pytest.approx(0.0011 / (0.0011 + 1.0 - 0.111 / 11), rel=1e-6)
    assert sum(found) == pytest.approx(1)
    assert all(share > 0 for share in found)


def test_layers_without_kernels_raise_nothing():
    assert shares_of(np.ones((2, 2)), np.full(2, 2.0), np.zeros(2), ms=1.0, traced_ms=2.0) == pytest.approx((0.5, 0.5))


# -- rows --------------------------------------------------------------------------------------------------------


def test_shares_of_an_additive_machine_give_its_layers(probed):
    rows = shared_rows([probe(blueprint, own_ms) for blueprint in probed])
    for blueprint in probed:
        for spec in blueprint:
            row = rows[ANY, spec.shape]
            assert row.ms == pytest.approx(own_ms(spec))
            assert row.p90_ms == pytest.approx(1.1 * own_ms(spec))
            assert row.source == "measured"
    seen = sum(spec.shape == probed[0][0].shape for blueprint in probed for spec in blueprint)
    assert rows[ANY, probed[0][0].shape].n == 30 * seen


def test_a_layer_seen_in_several_places_is_their_mean(probed):
    first, second = probed[:2]
    other = replace(probe(second, own_ms), ms=3 * probe(second, own_ms).ms)
    row = shared_rows([probe(first, own_ms), other])[ANY, first[0].shape]
    assert row.ms == pytest.approx(2 * own_ms(first[0]))


def test_whole_times_alone_give_the_law_of_a_lawful_machine(small, probed):
    rows = lawful_rows([probe(blueprint, lawful_ms, shares=False) for blueprint in probed])
    unseen = networks(small, 50, 1)
    assert sums(rows, unseen) == pytest.approx([sum(map(lawful_ms, b)) for b in unseen], rel=1e-3)
    assert {row.source for row in rows.values()} == {"measured"}
    assert all(row.p90_ms == pytest.approx(1.1 * row.ms) for row in rows.values())
    assert all(row.n >= 30 for row in rows.values())


def test_a_law_prices_no_layer_as_free(probed):
    """On a machine that is paid for dense work alone, pools and depthwise filters would cost nothing by the law."""
    rows = lawful_rows([probe(blueprint, lambda spec: 1e-6 * quantities(spec)[0] + 1e-12, shares=False) for blueprint in probed])
    assert all(0 < row.ms < float("inf") for row in rows.values())
    filled = filled_rows(rows, [replace(spec, hw_in=64) for blueprint in probed for spec in blueprint])
    assert all(0 < row.ms < float("inf") for row in filled.values())


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("traced", [True, False], ids=["shares", "whole times"])
def test_sums_tell_networks_that_were_never_seen(small, probed, traced, seed):
    """A noisy machine whose networks take a little more than their layers, the more so the larger they are."""
    rng = np.random.default_rng(seed)

    def whole(ms):
        return 0.05 + ms + 0.004 * ms**2

    def seen(blueprints, shares):
        return [probe(b, own_ms, noise=0.01, rng=rng, whole=whole, shares=shares) for b in blueprints]

    probes, fits, unseen = seen(probed, traced), seen(networks(small, 24, 10 + seed), False), networks(small, 100, 20 + seed)
    true = np.array([whole(sum(map(own_ms, b))) for b in unseen])
    raw = shared_rows(probes) if traced else lawful_rows([*probes, *fits])
    refined = refined_rows(raw, [*probes, *fits])
    before, after = (np.abs(sums(rows, unseen) / true - 1).mean() for rows in (raw, refined))
    assert after < (0.02 if traced else 0.04)
    assert after <= before + 0.005
    assert abs((sums(refined, unseen) / true - 1).mean()) < 0.01


def test_rows_that_sum_up_already_are_left_as_they_are(probed):
    probes = [probe(blueprint, own_ms) for blueprint in probed]
    rows = shared_rows(probes)
    refined = refined_rows(rows, probes)
    assert refined.keys() == rows.keys()
    assert all(refined[key].ms == pytest.approx(rows[key].ms) for key in rows)
    assert [(row.n, row.source) for row in refined.values()] == [(row.n, row.source) for row in rows.values()]


def test_a_layer_that_no_network_holds_is_not_moved(probed):
    probes = [probe(blueprint, own_ms) for blueprint in probed]
    alien = replace(probed[0][0], hw_in=99).shape
    rows = {**shared_rows(probes), (ANY, alien): Row(7.0, 8.0, 0, "interpolated")}
    refined = refined_rows(rows, [replace(p, ms=2 * p.ms) for p in probes])
    assert refined[ANY, alien] == rows[ANY, alien]
    assert (sums(refined, probed) > 1.2 * sums(rows, probed)).all()


# -- layers between ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ofa-mbv3-w1.0", "compofa-mbv3-w1.2"])
def test_sizes_between_the_probed_ones_are_interpolated(name):
    space = get_space(name)
    known_at = [space.resolutions[i] for i in np.linspace(0, len(space.resolutions) - 1, 5).round().astype(int)]
    rng = np.random.default_rng(0)
    factors = {}

    def ms(spec):
        """Smooth in the input size, another factor for every layer, and a knee where maps leave the cache."""
        factor = factors.setdefault(replace(spec, hw_in=1).shape, rng.uniform(0.7, 1.4))
        return lawful_ms(spec) * factor * (1 + 0.1 * np.tanh(quantities(spec)[2] / 1e6 - 1))

    known = {(ANY, s.shape): Row(ms(s), 1.2 * ms(s), 30) for s in space.with_resolutions(known_at).layers()}
    filled = filled_rows(known, space.layers())
    lacking = [spec for spec in space.layers() if (ANY, spec.shape) not in known]
    assert filled.keys() == {(ANY, spec.shape) for spec in lacking}
    assert len(lacking) > 100
    assert {(row.source, row.n) for row in filled.values()} == {("interpolated", 0)}
    errors = np.array([filled[ANY, spec.shape].ms / ms(spec) - 1 for spec in lacking])
    assert np.abs(errors).mean() < 0.02
    assert np.abs(errors).max() < 0.15
    assert all(row.p90_ms == pytest.approx(1.2 * row.ms) for row in filled.values())


def test_what_is_known_is_never_filled(probed):
    rows = shared_rows([probe(blueprint, own_ms) for blueprint in probed])
    assert filled_rows(rows, [spec for blueprint in probed for spec in blueprint]) == {}


def test_filling_rests_on_no_interpolated_row(probed):
    rows = shared_rows([probe(blueprint, own_ms) for blueprint in probed])
    wanted = [replace(probed[0][0], hw_in=40)]
    nonsense = {(ANY, replace(probed[0][0], hw_in=44).shape): Row(1e6, 1e6, 0, "interpolated")}
    assert filled_rows({**rows, **nonsense}, wanted) == filled_rows(rows, wanted)


def test_a_kind_seen_but_once_is_filled_from_all(probed):
    rows = shared_rows([probe(blueprint, lawful_ms) for blueprint in probed])
    (pool,) = {spec.shape: spec for blueprint in probed for spec in blueprint if spec.kind == "pool"}.values()
    (row,) = filled_rows(rows, [replace(pool, hw_in=2 * pool.hw_in)]).values()
    assert 0 < row.ms < 100 * lawful_ms(pool)
