"""`explain` and `diff`: everything is attributed, savings are the best there are, and nothing judges what it was not made for."""

import itertools
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree

import matplotlib
import numpy as np
import pytest
from pretended import Device

from ofasearch import zoo
from ofasearch.errors import FormatError, InfeasibleError, MismatchError, NotFoundError, UnmeasuredError, UsageError, WriteError
from ofasearch.jobs import explain as job
from ofasearch.jobs.deliver import save_subnet, shipped_subnet
from ofasearch.jobs.explain import DiffRequest, DiffResult, ExplainRequest, ExplainResult, Pricing
from ofasearch.jobs.measuring import LatencyProgress
from ofasearch.jobs.savings import find_savings, single_changes
from ofasearch.latency.account import account, differ
from ofasearch.latency.memory import network_name
from ofasearch.latency.ofa_yaml import load_ofa_yaml
from ofasearch.latency.table import load_table, save_table
from ofasearch.report.explain import account_text, change, dear, difference_text, draw_account, draw_difference
from ofasearch.space.core import resized
from ofasearch.space.costs import costs, macs_of
from ofasearch.space.families import DESIGNS, get_space
from ofasearch.space.static_write import net_config, run_config

A, B = "compofa-mbv3-cifar@r32-4-4-2-2-2", "compofa-mbv3-cifar@r32-2-3-2-4-2"
pytestmark = pytest.mark.usefixtures("frozen_tables")

DESK = "amd-epyc-ort-1t"  # a shipped table
PHONE = "ofa-mbv3-w1.2@r176-23333-3343634-3747433-3347434-3363634"


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch, shipped):
    """The shipped supernet is read once for all tests here; other names go to the zoo."""
    load = zoo.load_supernet
    monkeypatch.setattr(zoo, "load_supernet", lambda name: shipped if name == zoo.DEFAULT_SUPERNET else load(name))


@pytest.fixture
def note10(shared_data):
    return str(shared_data / "ofa" / "note10")


@pytest.fixture
def tutorial(shared_data):
    return str(shared_data / "ofa" / "acc_predictor.pth")


def folder_of(shared_data, start):
    (found,) = (shared_data / "ofa" / "specialized").glob(f"{start}_*")
    return str(found)


def last(events, kind):
    *progress, result = events
    assert all(isinstance(event, LatencyProgress) for event in progress)
    assert isinstance(result, kind)
    return result


def explain(subnet, save_ms=None, resolutions=None, **pricing):
    request = ExplainRequest(subnet=subnet, pricing=Pricing(**pricing), save_ms=save_ms, resolutions=resolutions)
    return last(job.explain(request), ExplainResult)


def diff(a, b, **pricing):
    return last(job.diff(DiffRequest(a=a, b=b, pricing=Pricing(**pricing))), DiffResult)


def codes_of(text):
    space = get_space(text.partition("@")[0])
    return space, np.array(space.parse(text).codes, dtype=np.int64)


# -- where the milliseconds go ---------------------------------------------------------------------------------


def test_layers_and_constant_sum_to_the_latency_that_a_search_goes_by():
    record = explain(A, target=DESK).record
    space, codes = codes_of(A)
    table = zoo.get_table(DESK, space)
    assert math.fsum([record["constant_ms"], *(layer["latency_ms"] for layer in record["layers"])]) == record["latency_ms"]
    assert record["latency_ms"] == pytest.approx(float(table.cost(space)(codes[None])[0]), rel=1e-12)
    assert record["slope"] == table.correction.slope != 1
    assert record["validation"] == table.card["validation"]
    for key in ("latency_ms", "macs", "params", "share"):
        assert sum(stage[key] for stage in record["stages"]) == pytest.approx(sum(layer[key] for layer in record["layers"]))
    assert sum(layer["share"] for layer in record["layers"]) + record["constant_ms"] / record["latency_ms"] == pytest.approx(1)
    assert record.keys() >= {"name", "arch_id", "space", "resolution", "source", "device", "notes"}
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_without_a_target_the_macs_are_explained():
    result = explain(A)
    record, price = result.record, costs(codes_of(A)[0].blueprint(codes_of(A)[1]))
    assert (record["macs"], record["params"]) == (price.macs, price.params)
    assert not {"latency_ms", "source", "target", "constant_ms"} & record.keys()
    assert not any({"latency_ms", "source"} & layer.keys() for layer in record["layers"])
    assert sum(layer["share"] for layer in record["layers"]) == pytest.approx(1)


def test_a_published_network_takes_what_its_authors_measured(note10, shared_data):
    """Of the published Note10 networks, one is of the width and at a resolution of the tables."""
    record = explain(folder_of(shared_data, "note10_lat-30ms"), target=note10).record
    assert record["latency_ms"] == pytest.approx(30, rel=0.01)
    assert (record["source"], record["resolution"], len(record["layers"])) == ("imported", 224, 21)
    assert "arch_id" not in record
    assert [stage["name"] for stage in record["stages"]] == ["stem", "s0", "s1", "s2", "s3", "s4", "s5", "head"]


@pytest.mark.parametrize(("start", "lacks"), [("note10_lat-8ms", "17 of 17 at input 160"), ("note10_lat-41ms", "23 of 23 at input 220")])
def test_a_table_of_another_width_or_resolution_names_what_it_lacks(note10, shared_data, start, lacks):
    with pytest.raises(UnmeasuredError, match=rf"lacks {lacks}: stem \(conv .* and \d+ more"):
        explain(folder_of(shared_data, start), target=note10)


def test_a_network_of_a_space_and_its_net_config_are_explained_alike(tmp_path, note10):
    space, codes = codes_of(PHONE)
    (tmp_path / "net.config").write_text(json.dumps(net_config(space.blueprint(codes))))
    (tmp_path / "run.config").write_text(json.dumps(run_config(176)))
    ours, theirs = explain(PHONE, target=note10).record, explain(str(tmp_path), target=note10).record
    assert ours["layers"] == theirs["layers"]
    assert ours["latency_ms"] == theirs["latency_ms"] == pytest.approx(19.976, abs=1e-3)


def test_estimates_say_that_they_are(shared_data):
    for subnet in (A, folder_of(shared_data, "v100_gpu64-11ms")):
        result = explain(subnet, target="v100", batch=64)
        assert result.record["source"] == "estimated"
        assert {layer["source"] for layer in result.record["layers"]} == {"estimated"}
        assert result.record["device"]["batch"] == 64
        assert any(
            n.startswith("latencies of v100 are estimated from its published peaks, not measured, for batch 64") for n in result.notes
        )


def test_interpolated_layers_are_counted(tmp_path):
    table = zoo.get_table(DESK, get_space("compofa-mbv3-cifar"))
    stem = codes_of(A)[0].blueprint(codes_of(A)[1])[0]
    rows = {key: replace(row, source="interpolated", n=0) if key[1] == stem.shape else row for key, row in table.rows.items()}
    save_table(tmp_path / "t.csv", replace(table, rows=rows))
    result = explain(A, target=str(tmp_path / "t.csv"), save_ms=0.02)
    layers = len({spec.shape for spec in codes_of(A)[0].blueprint(codes_of(A)[1])})
    assert result.record["source"] == "interpolated"
    assert f"1 of {layers} layers are interpolated in table {table.name}, not measured" in result.notes
    assert {change.source for change in result.savings.changes} == {"interpolated"}
    assert "interpolated" in "\n".join(account_text(result.explained.account, 80))


# -- this machine ----------------------------------------------------------------------------------------------


@pytest.fixture
def device(monkeypatch, tmp_path):
    """A pretended device that takes time for MACs."""
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return Device().pretend(monkeypatch)


def test_this_machine_is_measured_at_the_resolution_of_the_network_alone(device):
    text = "compofa-mbv3-w1.0@r128-2-3-2-4-2"
    events = list(job.explain(ExplainRequest(subnet=text, pricing=Pricing(target="cpu", threads=2))))
    assert {name.partition("-")[0] for name in device.loaded} == {"r128"}
    assert len(events) > 3
    record = events[-1].record
    assert (record["source"], record["device"]["threads"]) == ("measured", 2)
    assert record["validation"]["n"] == 20
    device.loaded.clear()
    again = list(job.explain(ExplainRequest(subnet=text, pricing=Pricing(target="cpu", threads=2))))
    assert (again[-1].record, device.loaded) == (record, [])


def test_a_network_of_no_space_is_measured_alone_and_end_to_end(device, shared_data):
    subnet = folder_of(shared_data, "cpu_lat-10ms")
    result = explain(subnet, target="cpu")
    layers = result.explained.network.blueprint
    assert set(device.loaded) == {network_name(layers)}
    assert result.record["latency_ms"] == pytest.approx(device.ms(layers), rel=0.01)
    assert "validation" not in result.record
    b = diff(subnet, folder_of(shared_data, "cpu_lat-15ms"), target="cpu")
    assert b.record["steps"][0]["name"] == "resolution 144 -> 188"
    assert b.record["delta_ms"] == pytest.approx(device.ms(b.b.network.blueprint) - device.ms(layers), rel=0.05)


# -- the cheapest single change --------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DESIGNS)
def test_single_changes_are_networks_that_differ_in_one_gene(name):
    space = get_space(name)
    for codes in space.sample(5, np.random.default_rng(3)):
        rows, genes = single_changes(space, codes)
        space.validate(rows)
        assert len(rows) == sum(int(size) - 1 for size, code in zip(space.sizes, codes, strict=True) if code)
        assert len(np.unique(rows, axis=0)) == len(rows)
        assert not (rows == codes).all(axis=1).any()
        for row, gene in zip(rows, genes, strict=True):
            others = [i for i in np.flatnonzero(row != codes) if i != gene]
            gated = [i for i in others if space.genes[i].gate is not None and space.genes[i].gate.gene == gene]
            assert others == gated  # blocks that came or went with a depth


@pytest.mark.parametrize("save_ms", [0.3, 0.7, 1.2])
def test_savings_are_the_best_of_all_single_changes(note10, tutorial, save_ms):
    """Against settings changed one by one, priced and predicted as whole networks."""
    table, predictor = load_ofa_yaml(Path(note10)), zoo.get_predictor(tutorial)
    space, codes = codes_of(PHONE)
    own_ms, own_top1 = table.latency_ms(space.blueprint(codes)), float(predictor(space.settings(codes[None]))[0])
    expected = []
    for gene, choices in enumerate(space.sizes):
        for code in range(1, int(choices) + 1):
            row = codes.copy()
            row[gene] = code
            row = space.canonical(row[None])[0]
            if codes[gene] in (0, code) or space.resolutions[row[0] - 1] not in table.resolutions or (row < space.present(row[None])).any():
                continue  # larger depths: they cost
            saving = own_ms - table.latency_ms(space.blueprint(row))
            if saving >= save_ms:
                expected.append((float(predictor(space.settings(row[None]))[0]), saving, space.arch(row).id))
    expected.sort(reverse=True)
    found = explain(PHONE, target=note10, predictor=tutorial, save_ms=save_ms)
    assert found.savings.enough == len(expected) > 0
    assert [c.arch_id for c in found.savings.changes] == [arch for _, _, arch in expected[:5]]
    for c, (top1, saving, _) in zip(found.savings.changes, expected[:5], strict=True):
        assert (c.top1, c.saving_ms) == (pytest.approx(top1), pytest.approx(saving))
        assert (c.top1_change, c.latency_ms) == (pytest.approx(top1 - own_top1), pytest.approx(own_ms - saving))
    assert found.record["save"]["ranked_by"] == "top-1 (accuracy predictor)"
    assert (found.judge.word, found.record["predicted_top1"]) == ("predicted", pytest.approx(own_top1))


def test_measured_members_judge_where_there_are_some(shipped):
    result = explain(A, target=DESK, save_ms=0.02)
    members = shipped.members
    top1 = {members.space.arch(row).id: v for row, v in zip(members.codes, members.top1("validation"), strict=True)}
    assert result.record["predicted_top1"] == top1[A]
    assert result.record["predicted_top1_source"] == "measured on the validation split"
    assert [(c.top1, c.top1_change) for c in result.savings.changes] == [
        (top1[c.arch_id], pytest.approx(top1[c.arch_id] - top1[A])) for c in result.savings.changes
    ]
    assert len(result.savings.changes) == 2


def test_what_nothing_judges_is_ranked_by_the_macs_it_keeps(note10):
    found = explain(PHONE, target=note10, save_ms=0.5).record["save"]
    assert found["ranked_by"] == "MACs kept"
    kept = [c["macs"] for c in found["changes"]]
    assert kept == sorted(kept, reverse=True)
    assert not any("predicted_top1" in c for c in found["changes"])
    space = get_space("ofa-mbv3-w1.2")
    for c in found["changes"]:
        codes = np.array(space.parse(c["arch_id"]).codes)
        assert c["macs"] == macs_of(space)(codes[None])[0]
    assert any(c["change"].startswith(("s", "resolution")) and " -> " in c["change"] for c in found["changes"])


def test_resolutions_narrow_the_changes(note10):
    def tried(*resolutions):
        return explain(PHONE, target=note10, save_ms=0.5, resolutions=resolutions or None).record["save"]

    assert tried()["tried"] == tried(176)["tried"] + 4
    assert tried(160)["tried"] == tried(176)["tried"] + 1
    assert tried(160)["enough"] == tried(176)["enough"] + 1


def test_the_largest_saving_is_named_when_none_is_enough():
    with pytest.raises(InfeasibleError, match=r"must be at most ([0-9.]+) ms, .* \(s2 depth 4 -> 2\), but got 0.100 ms") as stop:
        explain(A, target=DESK, save_ms=0.1)
    named = float(str(stop.value).split("at most ")[1].split(" ms")[0])
    (only,) = explain(A, target=DESK, save_ms=named).savings.changes  # what is named can be had
    assert only.what == "s2 depth 4 -> 2"
    with pytest.raises(InfeasibleError, match=r"must be less than the 0.179 ms that .* takes, but got 3 ms"):
        explain(A, target=DESK, save_ms=3)


def test_the_smallest_network_has_nothing_to_save():
    space = get_space("compofa-mbv3-cifar")
    table = zoo.get_table(DESK, space)
    with pytest.raises(InfeasibleError, match="none saves anything"):
        find_savings(space, table.cost(space).bounds().lowest_codes, table, None, 1e-6)


# -- two networks ----------------------------------------------------------------------------------------------


def test_a_difference_sums_exactly(note10, tutorial):
    other = "compofa-mbv3-w1.2@r160-3-2-4-2-3"
    result = diff(PHONE, other, target=note10, predictor=tutorial)
    record = result.record
    assert math.fsum(step["delta_ms"] for step in record["steps"]) == record["delta_ms"]
    assert record["delta_ms"] == pytest.approx(record["b"]["latency_ms"] - record["a"]["latency_ms"], abs=1e-9)
    assert sum(step["delta_macs"] for step in record["steps"]) == record["delta_macs"] == record["b"]["macs"] - record["a"]["macs"]
    assert record["steps"][0]["name"] == "resolution 176 -> 160"
    space, codes = codes_of(PHONE)
    table = load_ofa_yaml(Path(note10))
    small = table.latency_ms(resized(space.blueprint(codes), 160))
    assert record["steps"][0]["delta_ms"] == pytest.approx(small - record["a"]["latency_ms"])
    assert record["delta_top1"] == record["b"]["predicted_top1"] - record["a"]["predicted_top1"] < 0
    assert {step["name"].partition(".")[0] for step in record["steps"][1:]} <= {"s1", "s2", "s3", "s4", "s5"}
    assert json.loads(json.dumps(record, allow_nan=False)) == record


def test_measured_top1_is_told_as_such():
    record = diff(A, B, target=DESK).record
    assert record["predicted_top1_source"] == "measured on the validation split"
    assert record["delta_top1"] == pytest.approx(explain(B).record["predicted_top1"] - explain(A).record["predicted_top1"])
    assert record["notes"] == []


def test_networks_of_other_families_are_compared_by_feature_size(shared_data):
    result = diff(folder_of(shared_data, "note10_lat-30ms"), folder_of(shared_data, "v100_gpu64-11ms"), target="v100", batch=64)
    assert [note for note in result.notes if "counts whole" in note] == [
        "stage s6 of B has no counterpart of its feature size in A: it counts whole"
    ]
    steps = {step.name: step for step in result.difference.steps}
    assert steps["s6.b1"].before is None
    assert steps["head.expand"].after is None  # the other mixes its features before the pool
    assert math.fsum(step.delta_ms for step in result.difference.steps) == result.record["delta_ms"]
    assert result.record["delta_ms"] == pytest.approx(result.b.account.latency_ms - result.a.account.latency_ms, abs=1e-9)


def test_networks_of_other_classes_are_compared_in_time_but_not_judged():
    other = "ofa-mbv3-w1.0@r192-23333-3343634-3747433-3347434-3363634"
    record = diff(A, other, target="v100").record
    assert record["delta_ms"] == pytest.approx(record["b"]["latency_ms"] - record["a"]["latency_ms"])
    assert not {"delta_top1", "predicted_top1_source"} & record.keys()
    with pytest.raises(MismatchError, match=r"must have as many classes as each other .* have \[10, 1000\]"):
        diff(A, other, predictor="cifar10-compofa")


# -- who judges ------------------------------------------------------------------------------------------------


def test_shipped_members_do_not_judge_a_file_of_other_weights(tmp_path, shipped):
    codes = shipped.members.codes[5].astype(np.int64)
    subnet = shipped_subnet(shipped.weights, shipped.members, codes, shipped.name)
    for name, digest in (("ours", subnet.supernet_digest), ("foreign", "0" * 64)):
        save_subnet(tmp_path / f"{name}.pt", replace(subnet, supernet_digest=digest), {})
    assert explain(str(tmp_path / "ours.pt")).record["predicted_top1"] == shipped.members.top1("validation")[5]
    assert "predicted_top1" not in explain(str(tmp_path / "foreign.pt")).record
    with pytest.raises(MismatchError, match="fitted on others"):
        explain(str(tmp_path / "foreign.pt"), predictor="cifar10-compofa")
    assert explain(str(tmp_path / "ours.pt"), predictor="cifar10-compofa").judge.word == "predicted"


def test_a_shipped_predictor_judges_where_there_are_no_members(monkeypatch, shipped):
    monkeypatch.setattr(zoo, "load_supernet", lambda _: replace(shipped, members=None))
    result = explain(A)
    assert result.record["predicted_top1_source"] == "accuracy predictor"
    assert result.record["predicted_top1"] == float(
        zoo.get_predictor("cifar10-compofa")(shipped.weights.space.settings(codes_of(A)[1][None]))[0]
    )
    assert result.record["held_out_rmse"] == pytest.approx(zoo.get_predictor("cifar10-compofa").card["held_out"]["rmse_points"] / 100)


def test_a_predictor_of_another_space_or_resolution_is_refused(shared_data, tutorial):
    with pytest.raises(MismatchError, match=r"must be made for compofa-mbv3-cifar, but was made for ofa-mbv3-w1.2"):
        explain(A, predictor=tutorial)
    with pytest.raises(MismatchError, match=r"resolution must be one of \[112, .* for the predictor, but that of .* is 180"):
        explain(PHONE.replace("r176", "r180"), predictor=tutorial)
    with pytest.raises(MismatchError, match="is layers alone; leave --predictor out"):
        explain(folder_of(shared_data, "flops-389M"), predictor=tutorial)


# -- what cannot be answered -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("given", "error", "text"),
    [
        ({"target": "nowhere"}, NotFoundError, "target must be cpu, one of"),
        ({"batch": 4}, UsageError, "--batch and --threads must go with a --target"),
        ({"target": DESK, "batch": 4}, MismatchError, "must be known at batch 4"),
        ({"target": DESK, "threads": 2}, MismatchError, "must be known at batch 1, fp32 and threads 2"),
        ({"target": "cpu", "threads": 0}, UsageError, "--threads 1..1024, but got 1 and 0"),
        ({"picture": Path("x.pdf")}, UsageError, "must end in .svg or .png, but got x.pdf"),
        ({"picture": Path("/proc/nowhere/x.svg")}, WriteError, "must be writable"),
        ({"predictor": "nowhere"}, NotFoundError, "predictor must be one of"),
        ({"save_ms": 1.0}, UsageError, "--save must go with a --target"),
        ({"save_ms": -1.0, "target": DESK}, UsageError, "--save must be a positive time"),
        ({"save_ms": float("nan"), "target": DESK}, UsageError, "--save must be a positive time"),
        ({"resolutions": (32,), "target": DESK}, UsageError, "--resolutions must go with --save"),
        ({"resolutions": (64,), "target": DESK, "save_ms": 0.02}, UsageError, r"must be among those of compofa-mbv3-cifar, \[32\]"),
    ],
)  # fmt: skip
def test_nonsense_is_refused(given, error, text):
    with pytest.raises(error, match=text):
        explain(A, **given)


def test_a_network_without_choices_cannot_save(shared_data):
    with pytest.raises(UsageError, match=r"must be asked of a network of a design space, but flops-389M_.* is one network alone"):
        explain(folder_of(shared_data, "flops-389M"), target="v100", save_ms=1)


def test_a_table_that_cannot_be_is_refused(tmp_path):
    table = zoo.get_table(DESK, get_space("compofa-mbv3-cifar"))
    save_table(tmp_path / "t.csv", replace(table, correction=replace(table.correction, offset_ms=-1e6)))
    assert load_table(tmp_path / "t.csv").correction.offset_ms == -1e6
    with pytest.raises(MismatchError, match="must give every network a positive latency"):
        explain(A, target=str(tmp_path / "t.csv"))
    save_table(tmp_path / "t.csv", replace(table, correction=replace(table.correction, nets=10)))
    card = json.loads((tmp_path / "t.json").read_text())
    (tmp_path / "t.json").write_text(json.dumps(card | {"correction": card["correction"] | {"nets": "ten"}}))
    with pytest.raises(FormatError, match="a whole number of networks"):
        explain(A, target=str(tmp_path / "t.csv"))


# -- drawn -----------------------------------------------------------------------------------------------------


@pytest.fixture
def accounts():
    space, a = codes_of(A)
    table = zoo.get_table(DESK, space)
    first, second = (account(space.blueprint(row), table) for row in (a, codes_of(B)[1]))
    return first, second, differ(first, first, second)


def bar_of(line, start):
    return line[start:].split("  ")[0].count("█")


@pytest.mark.parametrize("width", [80, 100, 160])
def test_what_is_printed_fits_and_lines_up(accounts, width):
    first, second, difference = accounts
    lines = account_text(first, width)
    assert max(map(len, lines)) == width
    assert len(lines) == len(first.items) + 5 + 1 + 1 + 3  # stages of several layers, the head, the constant; header, rule, total
    drawn = [line for line in lines if "█" in line]
    (start,) = {line.index("█") for line in drawn}
    stages = {name: stage for name, stage in first.stages() if len(stage.items) > 1}
    bars = {line.split()[0]: bar_of(line, start) for line in drawn if not line.startswith(" ")}
    longest = max(stages, key=lambda name: stages[name].latency_ms)
    for name, stage in stages.items():
        assert bars[name] == pytest.approx(bars[longest] * stage.latency_ms / stages[longest].latency_ms, abs=1.01)
    waterfall = difference_text(difference, first, second, width)
    assert max(map(len, waterfall)) == width
    (middle,) = {line.index("│") for line in waterfall if "│" in line}
    for line in waterfall[1:-2]:
        left, right = line[:middle], line[middle + 1 :]
        saves = " -0.0" in right
        assert ("█" in left or "▐" in left) == saves
        assert ("█" in right or "▌" in right) == (not saves)


def test_a_narrow_terminal_still_says_all(accounts):
    assert all("ms" in account_text(first, 20)[0] for first in accounts[:2])
    assert len(account_text(accounts[0], 20)) == len(account_text(accounts[0], 160))


def test_the_figures_printed_are_those_of_the_account(accounts):
    first, second, difference = accounts
    text = "\n".join(account_text(first, 160))
    assert f"{first.latency_ms:.4f}" in text
    for _, stage in first.stages():
        assert f"{stage.latency_ms:.4f}" in text
    assert "constant" in text
    text = difference_text(difference, first, second, 160)
    assert f"{difference.delta_ms:+.4f}" in text[-1]
    assert f"{second.latency_ms:.4f}" in text[-1]
    assert f"{second.latency_ms:.4f}" in text[-3]  # the last step reaches it
    assert difference_text(differ(first, first, first), first, first, 80)[-1].startswith("total")


def test_dear_layers_take_more_than_their_macs(accounts):
    first = accounts[0]
    mean = sum(item.latency_ms for item in first.items) / first.macs
    worst = dear(first)
    assert worst[0][0].name == "head.feature"
    for item, times, beyond in worst:
        assert item.latency_ms - mean * item.macs == pytest.approx(beyond)
        assert times == pytest.approx(item.latency_ms / (mean * item.macs))
    others = [item.latency_ms - mean * item.macs for item in first.items if item not in [found for found, _, _ in worst]]
    assert max(others) <= min(beyond for _, _, beyond in worst)
    assert dear(account(tuple(item.spec for item in first.items))) == []


def test_changes_are_said_in_few_letters(accounts):
    steps = {step.name: change(step) for step in accounts[2].steps}
    assert steps["s1.b1"] == "e6 > e3"
    assert steps["s1.b3"] == "k3 e6 removed"
    assert steps["s4.b4"] == "k3 e6 se added"


@pytest.mark.parametrize("priced", [True, False], ids=["ms", "MACs"])
def test_pictures_hold_every_layer_and_are_the_same_each_time(accounts, priced):
    first, second, difference = accounts
    if not priced:
        first, second = (account(tuple(item.spec for item in found.items)) for found in (first, second))
        difference = differ(first, first, second)
    before = dict(matplotlib.rcParams)
    svg = draw_account(first, A, "desk (measured)", "svg")
    texts = " ".join("".join(node.itertext()) for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text"))
    assert all(item.name in texts for item in first.items)
    assert A in texts
    assert "desk (measured)" in texts
    assert (f"{first.latency_ms:.4f} ms" if priced else f"{first.macs / 1e6:.4g} M MACs") in texts
    assert svg == draw_account(first, A, "desk (measured)", "svg")
    svg = draw_difference(difference, first, second, "A -> B", "desk", "svg")
    texts = " ".join("".join(node.itertext()) for node in ElementTree.fromstring(svg).iter() if node.tag.endswith("text"))
    assert all(step.name in texts for step in difference.steps)
    assert svg == draw_difference(difference, first, second, "A -> B", "desk", "svg")
    assert dict(matplotlib.rcParams) == before


@pytest.mark.parametrize("name", ["$\\frac{", "a\x00b\x1b[31m", "\u6f22\u5b57", "x" * 5000, "a\nb"])
@pytest.mark.parametrize("kind", ["svg", "png"])
def test_names_from_outside_harm_no_picture(accounts, name, kind):
    content = draw_account(accounts[0], name, name, kind)
    if kind == "svg":
        assert ElementTree.fromstring(content).tag.endswith("svg")
    else:
        assert content.startswith(b"\x89PNG")


def test_a_picture_is_written_where_it_was_asked(tmp_path):
    for suffix, (command, subnets) in itertools.product(("svg", "png"), ((explain, (A,)), (diff, (A, B)))):
        path = tmp_path / command.__name__ / f"x.{suffix}"
        assert command(*subnets, target=DESK, picture=path).record["files"] == {"picture": str(path)}
        assert path.stat().st_size > 1000
