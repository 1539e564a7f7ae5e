"""Few measured layers and another device's table: probes stay, the rest is interpolated and says how well."""

from dataclasses import replace

import numpy as np
import pytest

from ofasearch.errors import MismatchError, UsageError
from ofasearch.latency.ofa_yaml import load_ofa_yaml
from ofasearch.latency.roofline import DEVICES, estimate_ms, estimated_table
from ofasearch.latency.table import ANY, LatencyTable, Row, TableKey, layer_of
from ofasearch.latency.transfer import LEAST_PROBES, choose_probes, transfer
from ofasearch.space.families import get_space

SPACE = get_space("ofa-mbv3-cifar")
KNOWN = estimated_table(SPACE, DEVICES["v100"])
KEYS = list(KNOWN.rows)


def measured(ms_of, keys, name="new"):
    """A table of measured rows; `ms_of` takes a key."""
    rows = {key: Row(ms_of(key), 1.1 * ms_of(key), 30) for key in keys}
    return LatencyTable(name, TableKey(device=name, runtime="some runtime"), rows)


def draw(n, seed=0):
    return [KEYS[i] for i in np.random.default_rng(seed).permutation(len(KEYS))[:n]]


def test_a_device_that_is_slower_throughout_is_found_exactly():
    found = transfer(KNOWN, measured(lambda key: 3 * KNOWN.rows[key].ms, draw(8)))
    assert found.probes == 8
    assert found.held_out_max == pytest.approx(0, abs=1e-9)
    for key in KEYS:
        assert found.table.rows[key].ms == pytest.approx(3 * KNOWN.rows[key].ms)
        assert found.table.rows[key].p90_ms == pytest.approx(1.1 * found.table.rows[key].ms)


def test_measured_rows_stay_and_the_others_are_interpolated():
    probes = measured(lambda key: 2 * KNOWN.rows[key].ms, draw(20))
    table = transfer(KNOWN, probes).table
    assert (table.name, table.key, table.source) == ("new", probes.key, "interpolated")
    assert set(table.rows) == set(KNOWN.rows)
    for key, row in table.rows.items():
        assert row == probes.rows[key] if key in probes.rows else (row.source, row.n) == ("interpolated", 0)
    assert table.missing(SPACE) == []


def test_the_stated_error_is_that_of_layers_that_were_not_measured():
    """A device on which layers differ at random by some 20 %: no model can know that, and the card says so."""
    stated, real = [], []
    for seed in range(8):
        noise = dict(zip(KEYS, np.exp(np.random.default_rng(seed).normal(0, 0.2, len(KEYS))), strict=True))
        probes = measured(lambda key, noise=noise: noise[key] * KNOWN.rows[key].ms, draw(40, seed))
        found = transfer(KNOWN, probes)
        others = [key for key in KEYS if key not in probes.rows]
        real.append(np.mean([abs(found.table.rows[key].ms / (noise[key] * KNOWN.rows[key].ms) - 1) for key in others]))
        stated.append(found.held_out_mape)
        assert f"{100 * found.held_out_mape:.1f} %" in found.table.card["error"]
        assert found.table.card["transfer"]["probes"] == 40
    assert np.mean(stated) == pytest.approx(np.mean(real), rel=0.15)
    assert 0.1 < np.mean(real) < 0.25


def test_twenty_layers_of_the_note10_fill_its_published_table(shared_data):
    """From estimates of other devices; chosen layers beat the average draw."""
    table = load_ofa_yaml(shared_data / "ofa" / "note10")
    for name in ("v100", "xeon"):
        rows = {key: Row(ms, ms, 0, "estimated") for key in table.rows for ms in [estimate_ms(layer_of(key[1]), DEVICES[name], 1)]}
        known = replace(table, name=name, rows=rows)
        keys = list(table.rows)

        def error(chosen, known=known):
            found = transfer(known, replace(table, rows={key: table.rows[key] for key in chosen})).table
            return np.mean([abs(found.rows[key].ms / row.ms - 1) for key, row in table.rows.items() if key not in set(chosen)])

        chosen = error(choose_probes(known, 20))
        draws = [error([keys[i] for i in np.random.default_rng(seed).permutation(len(keys))[:20]]) for seed in range(3)]
        assert chosen < 0.08
        assert chosen < np.mean(draws) < 0.15


def test_chosen_probes_are_distinct_and_of_every_kind():
    chosen = choose_probes(KNOWN, 20)
    assert len(set(chosen)) == 20
    assert {layer_of(shape).kind for _, shape in chosen} == {"conv", "mbconv", "pool", "linear"}
    assert choose_probes(KNOWN, 12) == chosen[:12]


def test_probes_of_one_resolution_stand_for_rows_of_any():
    tied = measured(lambda key: 3 * KNOWN.rows[key].ms, draw(10))
    tied = replace(tied, rows={(32, shape): row for (_, shape), row in tied.rows.items()})
    table = transfer(KNOWN, tied).table
    assert {resolution for resolution, _ in table.rows} == {ANY}
    for (_, shape), row in tied.rows.items():
        assert table.rows[ANY, shape] == row


def test_a_layer_that_the_known_table_lacks_is_kept_as_measured():
    extra = measured(lambda _: 7.0, [(ANY, next(iter(estimated_table(get_space("ofa-mbv3-w1.0"), DEVICES["v100"]).rows))[1])])
    probes = measured(lambda key: 2 * KNOWN.rows[key].ms, draw(10))
    probes = replace(probes, rows={**probes.rows, **extra.rows})
    found = transfer(KNOWN, probes)
    assert found.probes == 10
    assert found.table.rows[next(iter(extra.rows))].ms == 7.0


def test_a_device_of_another_world_is_refused():
    """A hostile table: layers that take almost no time beside some that take days."""
    times = dict(zip(KEYS, np.geomspace(1e-300, 1e9, len(KEYS)), strict=True))
    with pytest.raises(MismatchError, match="must resemble"):
        transfer(KNOWN, measured(lambda key: times[key] / 1.1, draw(10)))


def test_too_few_common_layers_and_another_batch_are_refused():
    with pytest.raises(UsageError, match=f"at least {LEAST_PROBES} layers must be in both"):
        transfer(KNOWN, measured(lambda _: 1.0, draw(LEAST_PROBES - 1)))
    probes = measured(lambda _: 1.0, draw(10))
    with pytest.raises(MismatchError, match="of one batch"):
        transfer(KNOWN, replace(probes, key=replace(probes.key, batch=8)))
    for n in (0, len(KEYS) + 1):
        with pytest.raises(UsageError, match="number of probes"):
            choose_probes(KNOWN, n)
