"""Estimates: by hand for one layer, in the right order for whole networks, and never mistaken for measurements."""

import numpy as np
import pytest

from ofasearch.latency.roofline import DEVICES, LAUNCH_US, Device, estimate_ms, estimated_table
from ofasearch.latency.table import load_table, save_table
from ofasearch.space.core import LayerSpec
from ofasearch.space.families import DESIGNS, get_space

CARD = DEVICES["rtx2080"]
SPACE = get_space("compofa-mbv3-cifar")


@pytest.mark.parametrize(("tflops", "gbs"), [(1.0, 1e9), (1e9, 1.0)], ids=["compute", "memory"])
def test_one_convolution_equals_the_roofline_by_hand(tflops, gbs):
    spec = LayerSpec(slot="", kind="conv", c_in=8, c_mid=0, c_out=16, hw_in=10, kernel=3, stride=2)
    compute_ms = 2 * 3 * (5 * 5 * 9 * 8 * 16) / (tflops * 1e12) * 1e3
    memory_ms = 4 * (3 * (8 * 100 + 16 * 25) + 9 * 8 * 16) / (gbs * 1e9) * 1e3
    found = estimate_ms(spec, Device("card", tflops, gbs, ""), batch=3)
    assert found == pytest.approx(max(compute_ms, memory_ms) + LAUNCH_US / 1000)


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda d: d.name)
def test_estimates_grow_with_the_batch(device):
    for spec in SPACE.layers():
        times = [estimate_ms(spec, device, batch) for batch in (1, 8, 64)]
        assert times[0] > 0
        assert times == sorted(times)
    codes = SPACE.sample(20, np.random.default_rng(0))
    one, many = (estimated_table(SPACE, device, batch=b).cost(SPACE)(codes) for b in (1, 64))
    assert (one < many).all()
    assert (many < 64 * one).all()  # a batch shares its launches and weights


@pytest.mark.parametrize("name", ["compofa-mbv3-cifar", "ofa-mbv3-cifar"])
def test_larger_networks_cost_more(name):
    space = get_space(name)
    cost = estimated_table(space, CARD).cost(space)
    bounds = cost.bounds()
    assert cost(np.stack([space.smallest(), space.largest()])) == pytest.approx([bounds.lowest, bounds.highest])
    codes = space.sample(300, np.random.default_rng(1))
    big, small = (codes[i] for i in np.triu_indices(len(codes), k=1))
    inside = space.contains(big, small) & (big != small).any(axis=1)
    big, small = np.vstack([big[inside], np.tile(space.largest(), (300, 1))]), np.vstack([small[inside], codes])
    assert (cost(big) >= cost(small)).all()


@pytest.mark.parametrize("device", DEVICES.values(), ids=lambda d: d.name)
def test_every_output_says_that_it_is_an_estimate(device, tmp_path):
    table = estimated_table(SPACE, device, batch=4)
    assert (table.source, table.key.runtime, table.key.batch) == ("estimated", "roofline estimate", 4)
    assert {row.n for row in table.rows.values()} == {0}  # no run stands behind it
    assert table.card["origin"] == device.source != ""
    save_table(tmp_path / "t.csv", table)
    assert load_table(tmp_path / "t.csv").source == "estimated"


@pytest.mark.parametrize("name", DESIGNS)
def test_a_table_covers_every_layer_of_every_space(name):
    space = get_space(name)
    table = estimated_table(space, CARD)
    bounds = table.cost(space).bounds()  # prices every layer, or raises UnmeasuredError
    assert 0 < bounds.lowest < bounds.highest
    assert table.latency_ms(space.blueprint(space.largest())) == pytest.approx(bounds.highest)
