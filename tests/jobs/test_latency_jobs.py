"""Tables of a pretended machine whose law is known: built, remembered, validated, checked; and what users are told of it."""

import json
import zlib
from dataclasses import replace

import numpy as np
import pytest
from pretended import KEY, Device, layer_ms

from ofasearch import zoo
from ofasearch.errors import ArchError, MismatchError, NotFoundError, UnmeasuredError, UsageError
from ofasearch.jobs import latency as job
from ofasearch.jobs.latency import (
    agreement,
    build_table,
    check_table,
    open_table,
    plan_networks,
    reference_of,
    require_this_machine,
    space_of_table,
    validate_table,
)
from ofasearch.jobs.measuring import GROUP, NET_RULE, Lab, LatencyProgress, Steps
from ofasearch.latency.memory import Memory, network_name
from ofasearch.latency.table import ANY, Correction, LatencyTable, Row, load_table, save_table
from ofasearch.space.families import get_space, mobile_space


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


@pytest.fixture(autouse=True)
def few(monkeypatch):
    """As many networks as a tiny space can spare."""
    monkeypatch.setattr(job, "FIT_NETS", 12)
    monkeypatch.setattr(job, "SMALL_FIT_NETS", 12)
    monkeypatch.setattr(job, "CHECK_NETS", 10)


def own_ms(spec):
    """Milliseconds that no law over the layer's work could tell."""
    return layer_ms(spec) * (0.6 + zlib.crc32(repr(spec.shape).encode()) / 2**32)


def built(space, device, **options):
    *progress, table = build_table(space, device, **options)
    assert all(isinstance(event, LatencyProgress) for event in progress)
    return progress, table


def last(events):
    *_, found = events
    return found


# -- building ----------------------------------------------------------------------------------------------------


def test_a_table_of_an_additive_machine_tells_every_network(tiny_space):
    device = Device(own_ms)
    progress, table = built(tiny_space, device)
    for row in tiny_space.enumerate():
        blueprint = tiny_space.blueprint(row)
        assert table.latency_ms(blueprint) == pytest.approx(device.ms(blueprint), rel=1e-3)
    for spec in tiny_space.layers():
        assert table.row(8, spec).ms == pytest.approx(own_ms(spec), rel=0.02)
        assert table.row(8, spec).n > 0
    assert (table.source, table.key, table.missing(tiny_space)) == ("measured", KEY, [])
    assert table.card["validation"]["mape"] < 1e-3
    assert (progress[-1].done, progress[-1].eta_seconds) == (progress[-1].total, 0.0)
    assert [event.done for event in progress] == list(range(1, len(progress) + 1))


def test_a_noisy_machine_is_told_within_its_noise(tiny_space):
    device = Device(own_ms, scatter=0.05)
    table = built(tiny_space, device)[1]
    truth = {network_name(b): device.ms(b) for b in map(tiny_space.blueprint, tiny_space.enumerate())}
    told = {network_name(b): table.latency_ms(b) for b in map(tiny_space.blueprint, tiny_space.enumerate())}
    assert np.mean([abs(told[name] / truth[name] - 1) for name in truth]) < 0.04
    assert table.card["validation"]["kendall_tau"] > 0.9


def test_the_second_call_measures_nothing(tiny_space):
    device = Device(own_ms)
    first, table = built(tiny_space, device)
    assert len(set(device.loaded)) == len(device.loaded) == len(first) + 1  # and the reference
    device.loaded.clear()
    progress, again = built(tiny_space, device)
    assert device.loaded == []
    assert {event.eta_seconds for event in progress} == {0.0}
    assert (again.rows, again.correction) == (table.rows, table.correction)
    assert {k: v for k, v in again.card.items() if k not in ("date", "machine")} == {
        k: v for k, v in table.card.items() if k not in ("date", "machine")
    }


def test_fresh_forgets_what_was_measured(tiny_space):
    device = Device(own_ms)
    progress, table = built(tiny_space, device)
    device.loaded.clear()
    device.pace = 1.3
    _, again = built(tiny_space, device, fresh=True)
    assert len(device.loaded) == len(progress) + 1
    network = tiny_space.blueprint(tiny_space.largest())
    assert again.latency_ms(network) == pytest.approx(1.3 * table.latency_ms(network), rel=1e-3)
    assert again.card["notes"] == []  # it has its own level, so nothing seems slow


@pytest.mark.parametrize("stop_at", [2, 7, 30])
def test_an_interruption_loses_one_group_at_most(tiny_space, stop_at):
    device = Device(own_ms)
    device.stop_at = stop_at
    with pytest.raises(KeyboardInterrupt):
        built(tiny_space, device)
    kept = Memory(KEY).networks()
    begun = set(device.loaded[1:])  # the reference comes first
    assert len(begun - kept.keys()) <= GROUP
    assert kept.keys() <= begun
    device.stop_at = None
    device.loaded.clear()
    _, table = built(tiny_space, device)
    assert not kept.keys() & set(device.loaded[1:])
    assert {name: Memory(KEY).networks()[name] for name in kept} == kept
    assert table.card["validation"]["mape"] < 1e-3


def test_what_another_process_measured_meanwhile_is_taken(tiny_space):
    one, two = Device(own_ms), Device(own_ms)
    both = [build_table(tiny_space, device) for device in (one, two)]
    tables = []
    while both:  # turn by turn, as two processes that wait for each other
        for events in list(both):
            event = next(events)
            if isinstance(event, LatencyTable):
                tables.append(event)
                both.remove(events)
    reference = one.loaded[0]
    assert two.loaded.count(reference) <= 1
    assert not set(one.loaded[1:]) & set(two.loaded) - {reference}
    assert len(one.loaded) > 1
    assert tables[0].rows == tables[1].rows


def test_a_runtime_that_cannot_tell_layers_apart_gives_lawful_rows(tiny_space):
    device = Device(layer_ms, tells_layers=False)
    _, table = built(tiny_space, device)
    errors = [abs(table.latency_ms(b) / device.ms(b) - 1) for b in map(tiny_space.blueprint, tiny_space.enumerate())]
    assert np.mean(errors) < 0.04
    assert all(row.ms > 0 for row in table.rows.values())
    assert {m.shares for m in Memory(KEY).networks().values()} == {()}


def test_shares_are_measured_where_only_whole_times_were_known(tiny_space):
    """A search may have timed a network before; its layers are not known from that."""
    device = Device(own_ms)
    plan = plan_networks(tiny_space)
    for _ in Lab(device, reference_of(tiny_space)).measure(plan.probes, traced=False):
        pass
    device.loaded.clear()
    _, table = built(tiny_space, device)
    assert set(plan.probes) <= set(device.loaded)
    assert table.row(8, tiny_space.layers()[0]).ms == pytest.approx(own_ms(tiny_space.layers()[0]), rel=0.02)


def test_sizes_between_the_probed_ones_are_interpolated_rows(tiny_space, monkeypatch):
    monkeypatch.setattr(job, "PROBED_RESOLUTIONS", 3)
    space = tiny_space.with_resolutions([16, 20, 24, 28, 32])
    _, table = built(space, Device())
    probed = {spec.shape for spec in space.with_resolutions([16, 24, 32]).layers()}
    assert table.card["probed_resolutions"] == [16, 24, 32]
    for spec in space.layers():
        row = table.rows[ANY, spec.shape]
        assert (row.source, row.n > 0) == (("measured", True) if spec.shape in probed else ("interpolated", False))
        assert row.ms == pytest.approx(layer_ms(spec), rel=0.1)
    assert table.card["validation"]["mape"] < 0.02
    parts = {r: space.with_resolutions([r]) for r in (16, 20)}
    sources = {r: table.source_of(part.blueprint(part.largest())) for r, part in parts.items()}
    assert sources == {16: "measured", 20: "interpolated"}


def test_the_card_says_how_the_table_came_about(tiny_space):
    device = Device(own_ms)
    _, table = built(tiny_space, device)
    card, plan = table.card, plan_networks(tiny_space)
    assert (card["space"], card["classes"], card["resolutions"], card["probed_resolutions"]) == ("tiny", 3, [8], [8])
    assert card["networks"] == {"probes": len(plan.probes), "fit": 12, "check": 10}
    assert card["used"] == sorted([*plan.probes, *plan.fit])
    assert card["reference"]["network"] == network_name(reference_of(tiny_space))
    assert card["reference"]["level_ms"] == pytest.approx(device.ms(reference_of(tiny_space)))
    assert "latency build --space tiny --target cpu --runtime ort --precision fp32 --batch 1 --threads 1 --resolutions 8" in card["command"]
    assert card["machine"]["cpu"]
    assert card["notes"] == []
    assert json.loads(json.dumps(card, allow_nan=False)) == card


def test_no_network_plays_two_parts(tiny_space):
    for space in (tiny_space, get_space("compofa-mbv3-cifar"), get_space("compofa-mbv3-w1.2")):
        plan = plan_networks(space)
        assert not set(plan.probes) & set(plan.fit)
        assert not (set(plan.probes) | set(plan.fit)) & set(plan.check)
        assert (len(plan.fit), len(plan.check)) == (12, 10)
        assert plan_networks(space) == plan  # a repeated call asks for the same networks


def test_a_space_of_one_network_has_a_table_without_a_check(tiny_design, tmp_path):
    space = mobile_space(replace(tiny_design, depths=(2,), expands=(3,), kernels=(5,)))
    _, table = built(space, Device(own_ms))
    assert "validation" not in table.card
    assert table.latency_ms(space.blueprint(space.largest())) == pytest.approx(Device(own_ms).ms(space.blueprint(space.largest())))
    save_table(tmp_path / "t.csv", table)
    assert load_table(tmp_path / "t.csv").rows == table.rows


def test_a_table_reads_back_as_it_was_built(tiny_space, tmp_path):
    _, table = built(tiny_space, Device(own_ms))
    save_table(tmp_path / "t.csv", table)
    again = load_table(tmp_path / "t.csv")
    assert (again.rows, again.key, again.card) == (table.rows, table.key, table.card)
    assert zoo.get_table(str(tmp_path / "t.csv"), tiny_space).rows == table.rows


def test_where_nothing_can_be_remembered_the_table_says_so(tiny_space, monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "file"))
    device = Device(own_ms)

    def slower_and_slower(blueprint, load=device.load):
        device.pace *= 1.02
        return load(blueprint)

    device.load = slower_and_slower
    _, table = built(tiny_space, device)
    (note,) = [note for note in table.card["notes"] if "not remembered" in note]
    assert "set OFASEARCH_CACHE to a folder that can be written" in note
    assert str(tmp_path / "file") in note
    # one level for the whole session all the same: a machine that gets slower does not bend the table
    ratios = [table.latency_ms(b) / device.ms(b) for b in map(tiny_space.blueprint, tiny_space.enumerate())]
    assert max(ratios) / min(ratios) < 1.02


# -- the lab -----------------------------------------------------------------------------------------------------


def test_measuring_holds_the_runtime_and_lets_go_between_groups(tiny_space):
    device = Device()
    networks = {str(i): tiny_space.blueprint(row) for i, row in enumerate(tiny_space.enumerate()[:6])}
    for _ in Lab(device, reference_of(tiny_space)).measure(networks):
        assert device.is_held == 0


def test_names_are_the_callers_and_timings_the_networks(tiny_space):
    networks = {str(i): tiny_space.blueprint(row) for i, row in enumerate(tiny_space.enumerate()[:10])}
    lab = Lab(Device(), reference_of(tiny_space))
    for _ in range(2):
        found = dict(lab.measure(networks))
        assert found.keys() == networks.keys()
        assert all(found[name].timing.p50 == pytest.approx(Device().ms(networks[name])) for name in networks)
    assert dict(lab.measure({})) == {}


def test_remembered_networks_come_first(tiny_space):
    networks = {str(i): tiny_space.blueprint(row) for i, row in enumerate(tiny_space.enumerate()[:10])}
    lab = Lab(Device(), reference_of(tiny_space))
    for _ in lab.measure({name: networks[name] for name in ("7", "4")}):
        pass
    assert [name for name, _ in lab.measure(networks)][:2] == ["4", "7"]


def test_the_level_is_carried_from_session_to_session(tiny_space):
    networks = [{str(i): tiny_space.blueprint(row)} for i, row in enumerate(tiny_space.enumerate()[:2])]
    device = Device()
    before = dict(Lab(device, reference_of(tiny_space)).measure(networks[0]))
    device.pace = 1.6
    lab = Lab(device, reference_of(tiny_space))
    after = dict(lab.measure(networks[1]))
    for found, networks_ in ((before, networks[0]), (after, networks[1])):
        for name, blueprint in networks_.items():
            assert found[name].timing.p50 == pytest.approx(device.ms(blueprint), rel=1e-6)
    assert after["1"].timing.raw_p50 == pytest.approx(1.6 * device.ms(networks[1]["1"]))
    assert lab.speeds == [pytest.approx(1 / 1.6)]
    assert lab.disturbed == [1.0]


def test_users_are_told_of_a_slower_or_disturbed_machine(tiny_space):
    device = Device()
    lab = Lab(device, reference_of(tiny_space))
    assert lab.words() == []
    list(lab.measure({"a": tiny_space.blueprint(tiny_space.largest())}))
    assert lab.words() == []
    device.pace = 1.6
    list(lab.measure({"b": tiny_space.blueprint(tiny_space.smallest())}))
    slow = Lab(device, reference_of(tiny_space))
    list(slow.measure({"c": tiny_space.blueprint(tiny_space.enumerate()[7])}))
    disturbed, slower = slow.words()
    assert "the machine was disturbed by other work in 100 % of the time" in disturbed
    assert "the machine ran at 62 % of the speed at which it was first measured" in slower
    device.pace = 0.5
    fast = Lab(device, reference_of(tiny_space))
    list(fast.measure({"d": tiny_space.blueprint(tiny_space.enumerate()[9])}))
    (faster,) = fast.words()
    assert "the machine ran at 200 % of the speed" in faster


def test_the_rest_is_estimated_from_what_was_timed(monkeypatch):
    now = [0.0]
    monkeypatch.setattr("ofasearch.jobs.measuring.time.perf_counter", lambda: now[0])
    steps = Steps(5)
    assert steps.step("a", timed=False).eta_seconds == 0.0
    now[0] = 2.0
    assert steps.step("b", timed=True) == LatencyProgress(done=2, total=5, what="b", eta_seconds=6.0)
    now[0] = 4.0
    assert steps.step("c", timed=True).eta_seconds == 4.0


def test_the_rule_of_networks_may_be_replaced_when_they_are_measured(tiny_space, monkeypatch):
    monkeypatch.setattr("ofasearch.jobs.measuring.NET_RULE", replace(NET_RULE, min_bursts=2, max_bursts=2, burst=1, burst_ms=0.0))
    ((_, found),) = Lab(Device(), reference_of(tiny_space)).measure({"a": tiny_space.blueprint(tiny_space.largest())})
    assert found.timing.n == 2


# -- against whole networks --------------------------------------------------------------------------------------


@pytest.fixture
def table(tiny_space):
    return built(tiny_space, Device(own_ms))[1]


def test_a_table_is_validated_on_networks_that_had_no_part_in_it(tiny_space, table):
    device = Device(own_ms)
    *progress, found = validate_table(table, tiny_space, device, nets=12)
    assert len(found.predicted_ms) == len(found.measured_ms) == 12
    names = {network_name(blueprint) for blueprint in found.networks}
    assert len(names) == 12
    assert not names & set(table.card["used"])
    assert found.measured_ms == pytest.approx([device.ms(blueprint) for blueprint in found.networks])
    assert found.predicted_ms == pytest.approx([table.latency_ms(blueprint) for blueprint in found.networks])
    assert found.before == agreement(found.predicted_ms, found.measured_ms)
    assert found.before["mape"] < 1e-3
    assert (found.fixed, found.fixed_resolution) == (None, None)
    assert len(progress) == 12
    assert found.table.card["validation"]["n"] == 12


def test_networks_are_spread_over_the_predicted_latencies(tiny_space, table):
    found = last(validate_table(table, tiny_space, Device(own_ms), nets=10))
    everything = np.array([table.latency_ms(tiny_space.blueprint(row)) for row in tiny_space.enumerate()])
    edges = np.linspace(*np.quantile(everything, (0.05, 0.95)), 4)
    assert np.histogram(found.predicted_ms, [0, *edges[1:3], 1e9])[0].min() >= 2
    other = last(validate_table(table, tiny_space, Device(own_ms), nets=10, seed=1))
    assert {network_name(b) for b in other.networks} != {network_name(b) for b in found.networks}
    again = last(validate_table(table, tiny_space, Device(own_ms), nets=10))
    assert again.networks == found.networks


def test_a_correction_is_stored_where_it_predicts_networks_better_that_it_has_not_seen(tiny_space, table):
    """A machine whose networks take a fifth more than their layers, and a call."""
    device = Device(own_ms)
    ms = device.ms
    device.ms = lambda blueprint: 0.02 + 1.2 * ms(blueprint)
    Memory(KEY).forget()
    found = last(validate_table(table, tiny_space, device, nets=12))
    assert found.before["mape"] > 0.1
    assert found.after["mape"] < 0.01
    line = found.table.correction
    assert (line.slope, line.nets) == (pytest.approx(1.2, rel=0.05), 12)
    for row in tiny_space.enumerate()[::17]:
        assert found.table.latency_ms(tiny_space.blueprint(row)) == pytest.approx(device.ms(tiny_space.blueprint(row)), rel=0.02)
    assert found.table.card["validation"] == found.after
    assert found.table.card["validated_before_correction"] == found.before
    assert found.table.rows == table.rows
    again = last(validate_table(found.table, tiny_space, device, nets=12))
    assert again.before["mape"] < 0.01


def test_a_correction_that_would_not_predict_better_is_not_stored(tiny_space):
    """On pure noise a line fitted on the others predicts the one left out worse than the truth does."""
    device = Device(own_ms)
    _, exact = built(tiny_space, device)
    Memory(KEY).forget()
    device.scatter = 0.0
    rng = np.random.default_rng(4)
    factors = {}
    device.ms = lambda blueprint, ms=device.ms: (
        ms(blueprint) * factors.setdefault(network_name(blueprint), float(np.exp(0.05 * rng.normal())))
    )
    kept = [last(validate_table(exact, tiny_space, device, nets=8, seed=seed)) for seed in range(6)]
    assert any(found.after is None for found in kept)
    for found in kept:
        assert (found.after is None) == (found.table.correction == exact.correction)
        if found.after is not None:
            assert found.after["mape"] < found.before["mape"]
        else:
            assert found.table.card["validation"] == found.before


def test_an_order_turned_around_gives_no_negative_slope(tiny_space, table):
    device = Device(own_ms)
    ms = device.ms
    device.ms = lambda blueprint: 0.01 / ms(blueprint)
    Memory(KEY).forget()
    found = last(validate_table(table, tiny_space, device, nets=12))
    assert found.table.correction.slope > 0
    assert found.before["kendall_tau"] < -0.9


def test_a_space_of_many_inputs_is_also_told_at_one(tiny_space):
    space = tiny_space.with_resolutions([16, 24, 32])
    device = Device(own_ms)
    table = built(space, device)[1]
    found = last(validate_table(table, space, device, nets=9))
    assert found.fixed_resolution == 24
    assert found.fixed["n"] >= 9
    assert found.fixed["kendall_tau"] > 0.9
    assert {blueprint[0].hw_in for blueprint in found.networks} == {16, 24, 32}


def test_the_worst_layers_are_named(tiny_space, table):
    victim = max(tiny_space.layers(), key=own_ms)
    row = table.rows[ANY, victim.shape]
    wrong = replace(table, rows={**table.rows, (ANY, victim.shape): replace(row, ms=3 * row.ms)})
    worst = last(validate_table(wrong, tiny_space, Device(own_ms), nets=12)).worst[0]
    assert worst.row_ms == pytest.approx(3 * row.ms)
    assert worst.seen_ms == pytest.approx(own_ms(victim), rel=0.02)
    assert worst.seen > 0
    assert worst.layer.startswith(f"{victim.kind} {victim.hw_in}x{victim.hw_in}x{victim.c_in}->{victim.c_out}")
    assert last(validate_table(table, tiny_space, Device(own_ms, tells_layers=False), nets=12)).worst != ()  # remembered shares
    Memory(KEY).forget()
    assert last(validate_table(table, tiny_space, Device(own_ms, tells_layers=False), nets=12)).worst == ()


@pytest.mark.parametrize("nets", [-1, 0, 4, 4001, 10**9])
def test_numbers_of_networks_without_sense_are_refused(tiny_space, table, nets):
    with pytest.raises(UsageError, match=f"--nets must be between 5 and 4000, but got {nets}"):
        next(validate_table(table, tiny_space, Device(), nets=nets))


def test_a_space_with_too_few_other_networks_is_told(tiny_space, table):
    with pytest.raises(UsageError, match=r"--nets must leave networks that had no part in the table: tiny has \d+ such, but got 2000"):
        next(validate_table(table, tiny_space, Device(), nets=2000))


def test_a_table_that_lacks_layers_of_the_space_is_refused(table):
    with pytest.raises(UnmeasuredError, match=r"but lacks .* of compofa-mbv3-cifar"):
        next(validate_table(table, get_space("compofa-mbv3-cifar"), Device()))


def test_agreement_is_bias_relative_error_and_order():
    found = agreement([1.0, 2.0, 4.0], [1.0, 4.0, 3.0])
    assert found == {
        "n": 3,
        "bias_ms": pytest.approx(-1 / 3),
        "bias": pytest.approx(-1 / 8),
        "mape": pytest.approx((0.5 + 1 / 3) / 3),
        "kendall_tau": pytest.approx(1 / 3),
    }
    assert agreement([1.0, 1.0], [1.0, 2.0])["kendall_tau"] == 0.0  # a tie is no order


# -- is it still true? -------------------------------------------------------------------------------------------


def test_a_table_holds_while_the_machine_is_the_same(tiny_space, table):
    device = Device(own_ms)
    found = check_table(table, tiny_space, device)
    assert found.stale is None
    assert found.measured_ms == pytest.approx(found.predicted_ms, rel=1e-3)
    assert found.speed == pytest.approx(1.0)
    assert len(found.layers) == 5
    assert [e.seen_ms for e in found.layers] == pytest.approx([e.row_ms for e in found.layers], rel=0.02)
    assert found.notes == ()


def test_a_check_is_never_remembered(tiny_space, table):
    before = Memory(KEY).networks()
    device = Device(own_ms)
    check_table(table, tiny_space, device)
    device.loaded.clear()
    check_table(table, tiny_space, device)
    assert len(device.loaded) == 2  # measured each time, beside the reference
    assert Memory(KEY).networks() == before


@pytest.mark.parametrize(("pace", "stale"), [(1.05, False), (0.95, False), (1.3, True), (0.6, True)])
def test_a_machine_of_another_speed_makes_a_table_stale(tiny_space, table, pace, stale):
    device = Device(own_ms)
    device.pace = pace
    found = check_table(table, tiny_space, device)
    assert (found.stale is not None) == stale
    assert found.speed == pytest.approx(1 / pace)
    if stale:
        assert found.stale == f"the machine runs at {100 / pace:.0f} % of the speed at which the table was built"


def test_a_machine_of_another_speed_is_noticed_after_its_memory_is_gone(tiny_space, table):
    Memory(KEY).forget()
    device = Device(own_ms)
    device.pace = 1.3
    found = check_table(table, tiny_space, device)
    assert found.speed == pytest.approx(1 / 1.3)
    assert "a whole network takes" in found.stale
    assert "+30 % against the table" in found.stale


def test_layers_that_changed_alone_make_a_table_stale(tiny_space, table):
    """A library that got slower at depthwise work, say, while the reference is kept as it was by another."""
    device = Device(lambda spec: own_ms(spec) * (2.5 if spec.kind == "mbconv" and spec.kernel == 5 else 1.0))
    reference = network_name(reference_of(tiny_space))
    ms = device.ms
    device.ms = lambda blueprint: Device(own_ms).ms(blueprint) if network_name(blueprint) == reference else ms(blueprint)
    found = check_table(table, tiny_space, device)
    assert "a whole network takes" in found.stale


def test_where_layers_are_not_told_apart_the_whole_alone_is_compared(tiny_space, table):
    found = check_table(table, tiny_space, Device(own_ms, tells_layers=False))
    assert (found.layers, found.stale) == ((), None)


@pytest.mark.parametrize("reference", [None, 3, [], {}, {"level_ms": "1"}, {"level_ms": 0.0}, {"level_ms": [1]}])
def test_a_card_without_a_level_is_checked_all_the_same(tiny_space, table, reference):
    found = check_table(table.corrected(table.correction, reference=reference), tiny_space, Device(own_ms))
    assert found.stale is None


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"device": "a laptop"}, ["device 'a laptop' there, 'pretended' here"]),
        ({"runtime": "torch 2 cpu"}, ["runtime 'torch 2 cpu' there, 'onnxruntime 0 cpu' here"]),
        ({"batch": 8, "threads": 4}, ["batch '8' there, '1' here", "threads '4' there, '1' here"]),
        ({"precision": "int8"}, ["precision 'int8' there, 'fp32' here"]),
    ],
)
def test_a_table_of_another_machine_is_refused_with_what_differs(table, change, words):
    require_this_machine(table, Device())
    with pytest.raises(MismatchError) as caught:
        require_this_machine(replace(table, key=replace(KEY, **change)), Device())
    sentence = str(caught.value)
    assert all(word in sentence for word in words)
    assert sentence.count(" there, ") == len(words)
    assert "build a table here" in sentence


# -- which space, which file -------------------------------------------------------------------------------------


def of_card(**card):
    spec = get_space("compofa-mbv3-cifar").layers()[0]
    return LatencyTable("t", KEY, {(ANY, spec.shape): Row(1.0, 1.0, 1)}, Correction(), card)


def test_the_space_of_a_table_is_on_its_card():
    space = space_of_table(of_card(space="compofa-mbv3-cifar", resolutions=[24, 32], classes=7), None)
    assert (space.name, space.resolutions, space.classes) == ("compofa-mbv3-cifar", (24, 32), 7)
    given = get_space("ofa-mbv3-cifar")
    assert space_of_table(of_card(space="compofa-mbv3-cifar"), given) is given
    part = space_of_table(of_card(space="ofa-mbv3-w1.0-d34-e6-k357"), None)
    assert part.name == "ofa-mbv3-w1.0-d34-e6-k357"


@pytest.mark.parametrize("card", [{}, {"space": None}, {"space": ["x"]}, {"space": {}}, {"space": 3}])
def test_a_card_without_a_space_asks_for_one(card):
    with pytest.raises(UsageError, match="table t does not say for which space it was built; add --space"):
        space_of_table(of_card(**card), None)


def test_nonsense_on_a_card_is_refused_or_left_aside():
    with pytest.raises(NotFoundError, match="space must be one of"):
        space_of_table(of_card(space="nowhere"), None)
    with pytest.raises(ArchError, match="resolutions must be"):
        space_of_table(of_card(space="compofa-mbv3-cifar", resolutions=[1]), None)
    for nonsense in ("32", {"32": 1}, ["32"], [None], 32):
        assert space_of_table(of_card(space="compofa-mbv3-cifar", resolutions=nonsense), None).resolutions == (32,)
    for nonsense in (0, -1, 10**12, True, "10", None):
        assert space_of_table(of_card(space="compofa-mbv3-cifar", classes=nonsense), None).classes == 10


@pytest.mark.parametrize("used", [None, 5, "x", {"a": 1}, [["a"], 3, None]])
def test_a_card_that_names_no_networks_excludes_none(tiny_space, table, used):
    found = last(validate_table(table.corrected(table.correction, used=used), tiny_space, Device(own_ms), nets=6))
    assert len(found.networks) == 6


def test_a_table_is_opened_by_file_or_by_name(table, tmp_path):
    save_table(tmp_path / "t.csv", table)
    found, path = open_table(str(tmp_path / "t.csv"))
    assert (found.rows, path) == (table.rows, tmp_path / "t.csv")
    shipped, path = open_table(zoo.shipped_tables()[0])
    assert path is None
    assert shipped.rows
    with pytest.raises(NotFoundError, match="must be"):
        open_table("nowhere")
