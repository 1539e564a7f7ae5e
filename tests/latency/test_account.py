"""An account attributes all of a latency and nothing else; differences lead exactly from one network to the other."""

import math
from dataclasses import replace

import numpy as np
import pytest

from ofasearch.errors import MismatchError, UnmeasuredError
from ofasearch.latency.account import account, differ, named
from ofasearch.latency.table import ANY, Correction, LatencyTable, Row, TableKey
from ofasearch.space.core import resized
from ofasearch.space.costs import costs
from ofasearch.space.families import DESIGNS, get_space, mobile_space

KEY = TableKey(device="desk", runtime="none")


def rng():
    return np.random.default_rng(7)


def table_of(*blueprints, slope=1.25, offset_ms=0.3, source="measured"):
    """A table of irregular numbers for all layers of the networks."""
    shapes = dict.fromkeys(spec.shape for blueprint in blueprints for spec in blueprint)
    rows = {(ANY, shape): Row(float(ms), float(ms), 9, source) for shape, ms in zip(shapes, rng().random(len(shapes)), strict=True)}
    return LatencyTable("desk", KEY, rows, Correction(slope, offset_ms, 10))


def nameless(blueprint):
    return tuple(replace(spec, slot="") for spec in blueprint)


def networks(space, n=6):
    return [space.blueprint(row) for row in space.sample(n, rng())]


@pytest.fixture(scope="module")
def two_sizes(tiny_design):
    return mobile_space(replace(tiny_design, resolutions=(8, 12)))


# -- one network -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["compofa-mbv3-cifar", "ofa-mbv3-w1.2"])
@pytest.mark.parametrize("offset_ms", [0.0, 0.37, -0.11])
def test_layers_and_constant_are_the_latency_to_the_last_bit(name, offset_ms):
    for blueprint in networks(get_space(name)):
        table = table_of(blueprint, offset_ms=offset_ms)
        found = account(blueprint, table)
        assert math.fsum([*(item.latency_ms for item in found.items), found.constant_ms]) == found.latency_ms
        assert found.latency_ms == pytest.approx(table.latency_ms(blueprint), rel=1e-12)
        assert [item.latency_ms for item in found.items] == [1.25 * table.row(0, spec).ms for spec in blueprint]
        assert sum(map(found.share, found.items)) + offset_ms / found.latency_ms == pytest.approx(1)
        price = costs(blueprint)
        assert (found.macs, found.params) == (price.macs, price.params)


def test_stages_sum_to_their_network(two_sizes):
    (blueprint,) = networks(two_sizes, 1)
    found = account(blueprint, table_of(blueprint))
    stages = dict(found.stages())
    assert list(stages) == ["stem", "s0", "s1", "s2", "head"]
    assert [item for stage in stages.values() for item in stage.items] == list(found.items)
    assert sum(stage.latency_ms for stage in stages.values()) + 0.3 == pytest.approx(found.latency_ms)
    assert sum(stage.macs for stage in stages.values()) == found.macs


def test_without_a_table_there_are_no_milliseconds(two_sizes):
    found = account(networks(two_sizes, 1)[0])
    assert (found.latency_ms, found.source, found.constant_ms) == (None, None, None)
    assert {item.latency_ms for item in found.items} == {None}
    assert sum(map(found.share, found.items)) == pytest.approx(1)


def test_a_network_is_known_no_better_than_its_least_known_layer(two_sizes):
    (blueprint,) = networks(two_sizes, 1)
    table = table_of(blueprint)
    assert account(blueprint, table).source == "measured"
    key = (ANY, blueprint[3].shape)
    doubtful = replace(table, rows={**table.rows, key: replace(table.rows[key], source="estimated")})
    assert account(blueprint, doubtful).source == "estimated"
    assert [i.source for i in account(blueprint, doubtful).items].count("estimated") == [s.shape for s in blueprint].count(
        blueprint[3].shape
    )


def test_missing_layers_are_named_and_counted():
    blueprint = networks(get_space("compofa-mbv3-cifar"), 1)[0]
    table = table_of(blueprint)
    gone = {blueprint[0].shape, *(spec.shape for spec in blueprint[-4:])}
    holed = replace(table, rows={key: row for key, row in table.rows.items() if key[1] not in gone})
    said = rf"lacks 5 of {len(blueprint)} at input 32: stem \(conv 32x32x3->16 k3 s2\), head.expand \(.*\), .* and 1 more"
    with pytest.raises(UnmeasuredError, match=said):
        account(blueprint, holed)


def test_a_constant_that_eats_the_latency_is_refused(two_sizes):
    (blueprint,) = networks(two_sizes, 1)
    with pytest.raises(MismatchError, match="must give every network a positive latency"):
        account(blueprint, table_of(blueprint, offset_ms=-1e6))


# -- names -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DESIGNS)
def test_a_network_without_names_gets_those_of_its_space(name):
    for blueprint in networks(get_space(name)):
        assert named(nameless(blueprint)) == blueprint
        assert named(blueprint) is blueprint


def test_layers_that_no_space_has_are_named_apart():
    blueprint = nameless(networks(get_space("compofa-mbv3-cifar"), 1)[0])
    stem, *rest = blueprint
    slots = [spec.slot for spec in named((stem, stem, *rest, rest[-1]))]
    assert slots[:3] == ["stem", "stem2", "s0.b1"]
    assert slots[-2:] == ["head.classifier", "head.classifier2"]
    assert [spec.slot for spec in named((rest[-1],))] == ["stem"]  # no block at all


@pytest.mark.parametrize("name", DESIGNS)
def test_a_resized_network_is_that_of_the_space(name):
    space = get_space(name).with_resolutions([30, 32, 47, 224])
    for row in space.sample(4, rng()):
        for code, resolution in enumerate(space.resolutions, start=1):
            other = row.copy()
            other[0] = code
            assert resized(space.blueprint(row), resolution) == space.blueprint(other)


# -- two networks ----------------------------------------------------------------------------------------------


def difference(a, b, table, other=None):
    return differ(account(a, table), account(resized(named(a), b[0].hw_in), table), account(b, other or table))


@pytest.mark.parametrize("seed", range(8))
def test_steps_lead_exactly_from_one_network_to_the_other(two_sizes, seed):
    a, b = (two_sizes.blueprint(row) for row in two_sizes.sample(2, np.random.default_rng(seed)))
    table = table_of(a, b, resized(a, b[0].hw_in))
    found = difference(a, b, table)
    assert math.fsum(step.delta_ms for step in found.steps) == found.delta_ms
    assert found.delta_ms == pytest.approx(table.latency_ms(b) - table.latency_ms(a), abs=1e-12)
    assert sum(step.delta_macs for step in found.steps) == costs(b).macs - costs(a).macs
    assert sum(step.delta_params for step in found.steps) == costs(b).params - costs(a).params
    assert found.notes == ()
    names = [step.name for step in found.steps]
    assert len(set(names)) == len(names)
    assert ("resolution" in names[0]) == (a[0].hw_in != b[0].hw_in)
    order = [spec.slot for spec in max(a, b, key=len)]
    places = [order.index(name) for name in names if name in order]
    assert places == sorted(places)


def test_a_network_differs_from_itself_in_nothing(two_sizes):
    (a,) = networks(two_sizes, 1)
    found = difference(a, nameless(a), table_of(a))
    assert (found.steps, found.delta_ms, found.notes) == ((), 0.0, ())


def test_the_resolution_comes_first_and_alone():
    space = get_space("ofa-mbv3-w1.2").with_resolutions([160, 192])
    row = space.largest()
    small = row.copy()
    small[0] = 1
    a, b = space.blueprint(row), space.blueprint(small)
    (step,) = difference(a, b, table_of(a, b)).steps
    assert step.name == "resolution 192 -> 160"
    assert (step.before, step.after, step.delta_params) == (None, None, 0)
    assert step.delta_macs == costs(b).macs - costs(a).macs < 0


def test_blocks_come_and_go_one_by_one():
    space = get_space("compofa-mbv3-cifar")
    a, b = (space.blueprint(np.array(space.parse(f"compofa-mbv3-cifar@r32-{d}").codes)) for d in ("2-3-2-4-2", "2-3-2-3-2"))
    table = table_of(a, b)
    steps = {step.name: step for step in difference(a, b, table).steps}
    assert list(steps) == ["s4.b1", "s4.b2", "s4.b3", "s4.b4"]  # in CompOFA the ratio goes with the depth
    assert (steps["s4.b4"].after, steps["s4.b4"].before.slot) == (None, "s4.b4")
    assert steps["s4.b4"].delta_ms == -next(item.latency_ms for item in account(a, table).items if item.name == "s4.b4")
    back = {step.name: step for step in difference(b, a, table).steps}
    assert {name: -step.delta_macs for name, step in back.items()} == {name: step.delta_macs for name, step in steps.items()}


def test_stages_of_other_networks_are_matched_by_feature_size():
    """A has stages of 16, 8, 8 and 4 pixels, B of 16, 8 and 4: the second of 8 has no counterpart."""
    space = get_space("compofa-mbv3-cifar")
    blueprint = nameless(space.blueprint(space.smallest()))
    stem, first, *blocks = blueprint[:-4]
    head = blueprint[-4:]
    sizes = [spec.hw_out for spec in blocks]
    assert sizes == [8, 8, 8, 8, 4, 4, 4, 4, 4, 4]  # two of 8, three of 4, after one of 16
    fewer = resized((stem, first, *blocks[:2], *blocks[4:], *head), 32)
    table = table_of(blueprint, fewer)
    found = difference(blueprint, fewer, table)
    assert found.notes == ("stage s2 of A has no counterpart of its feature size in B: it counts whole",)
    assert [step.name for step in found.steps if step.after is None] == ["s2.b1", "s2.b2"]
    assert found.delta_ms == pytest.approx(table.latency_ms(fewer) - table.latency_ms(blueprint))
    back = difference(fewer, blueprint, table)
    assert back.notes == ("stage s2 of B has no counterpart of its feature size in A: it counts whole",)
    assert [step.name for step in back.steps if step.before is None] == ["s2.b1", "s2.b2"]
    assert {step.name for step in back.steps if step.before and step.after} <= {
        f"s{mine}.b{block} / s{theirs}.b{block}" for mine, theirs in ((2, 3), (3, 4), (4, 5)) for block in (1, 2)
    }


def test_tables_of_other_corrections_differ_in_the_constant_too(two_sizes):
    a, b = networks(two_sizes, 2)
    ours, theirs = table_of(a, b, resized(a, b[0].hw_in)), table_of(a, b, offset_ms=0.8)
    found = difference(a, b, ours, theirs)
    assert found.steps[-1].name == "per-network constant"
    assert found.steps[-1].delta_ms == pytest.approx(0.5)
    assert found.delta_ms == pytest.approx(theirs.latency_ms(b) - ours.latency_ms(a))


def test_without_a_table_steps_have_macs_alone(two_sizes):
    a, b = networks(two_sizes, 2)
    found = differ(account(a), account(resized(a, b[0].hw_in)), account(b))
    assert found.delta_ms is None
    assert sum(step.delta_macs for step in found.steps) == costs(b).macs - costs(a).macs != 0
