"""Latency tables: prices of networks, and our own files, whole and damaged."""

import functools
import hashlib
import json
import os
from dataclasses import replace

import numpy as np
import pytest

from ofasearch import records
from ofasearch.errors import FormatError, NotFoundError, UnmeasuredError, UsageError, WriteError
from ofasearch.latency.ofa_yaml import load_ofa_yaml
from ofasearch.latency.table import ANY, Correction, LatencyTable, Row, TableKey, layer_of, load_card, load_table, save_table
from ofasearch.space.families import get_space

KEY = TableKey(device="desk", runtime="onnxruntime-1.20", precision="int8", batch=4, threads=2)

VALIDATION = {"n": 20, "bias_ms": 0.0, "mape": 0.1, "kendall_tau": 0.9}


@pytest.fixture(scope="module")
def note10(shared_data):
    return load_ofa_yaml(shared_data / "ofa" / "note10")


@pytest.fixture
def table(tiny_space):
    """One row per layer of the tiny space, for every resolution; ms in short decimals that a file keeps."""
    rows = {(ANY, layer.shape): Row(0.25 * i, 0.5 * i, 10 + i) for i, layer in enumerate(tiny_space.layers(), start=1)}
    return LatencyTable("desk-table", KEY, rows, Correction(1.25, 0.5, 12), {"machine": "desk", "runs": 10})


def priced(table, space, codes):
    return np.array([table.latency_ms(space.blueprint(row)) for row in codes])


# -- prices ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("resolution", "least_ms", "most_ms"), [(160, 9.89, 47.77), (224, 17.77, 92.40)])
def test_note10_prices_the_extreme_networks_as_published(note10, resolution, least_ms, most_ms):
    space = get_space("ofa-mbv3-w1.2").with_resolutions([resolution])
    found = note10.cost(space)(np.stack([space.smallest(), space.largest()]))
    assert found == pytest.approx([least_ms, most_ms], abs=0.01)


def test_note10_tells_its_resolutions_and_device(note10):
    assert note10.resolutions == (160, 176, 192, 208, 224)
    assert (note10.key.device, note10.source) == ("note10", "imported")


@pytest.mark.parametrize("name", ["ofa-mbv3-w1.2", "compofa-mbv3-w1.2", "compofa-mbv3-elastic-w1.2"])
def test_tabulated_cost_equals_the_walk_along_the_layers(note10, name):
    space = get_space(name).with_resolutions(note10.resolutions)
    codes = space.sample(200, np.random.default_rng(1))
    assert note10.cost(space)(codes) == pytest.approx(priced(note10, space, codes), rel=1e-12)


def test_note10_bounds_enclose_every_network_and_are_reached(note10):
    space = get_space("ofa-mbv3-w1.2").with_resolutions(note10.resolutions)
    cost = note10.cost(space)
    bounds = cost.bounds()
    latency = cost(space.sample(5000, np.random.default_rng(2)))
    assert bounds.lowest <= latency.min()
    assert latency.max() <= bounds.highest
    reached = priced(note10, space, [bounds.lowest_codes, bounds.highest_codes])
    assert reached == pytest.approx([bounds.lowest, bounds.highest], rel=1e-12)


def test_a_row_of_the_resolution_goes_before_a_row_for_all(table, tiny_space):
    layer = tiny_space.layers()[0]
    both = replace(table, rows={**table.rows, (8, layer.shape): Row(7.0, 7.0, 1)})
    assert both.price_at(8)(layer) == 7.0
    assert both.price_at(16)(layer) == table.price_at(16)(layer) == 0.25
    assert both.resolutions is None


def test_the_correction_is_applied_to_cost_and_walk_alike(table, tiny_space):
    codes = tiny_space.sample(50, np.random.default_rng(3))
    plain = replace(table, correction=Correction())
    better = plain.corrected(Correction(1.5, 2.0, 30), fitted_on="30 networks")
    expected = 1.5 * priced(plain, tiny_space, codes) + 2.0
    assert better.cost(tiny_space)(codes) == pytest.approx(expected)
    assert priced(better, tiny_space, codes) == pytest.approx(expected)
    assert better.card == {**plain.card, "fitted_on": "30 networks"}
    assert plain.correction == Correction()


def test_rows_at_a_resolution_are_all_that_its_networks_can_use():
    space = get_space("ofa-mbv3-w1.0").with_resolutions([128, 144, 224])
    rows = {(ANY, layer.shape): Row(1.0, 1.0, 9) for layer in space.layers()}
    table = LatencyTable("desk", KEY, rows)
    assert table.inputs == (128, 144, 224)
    for resolution in table.inputs:
        found = table.rows_at(resolution)
        wanted = {layer.shape for layer in space.with_resolutions([resolution]).layers()}
        assert wanted <= found.keys() < {shape for _, shape in rows}
        sizes = {layer_of(shape).hw_in for shape in wanted}
        assert {layer_of(shape).hw_in for shape in found} == sizes
        assert [layer_of(shape).hw_in for shape in found if shape[:2] == ("conv", 3)] == [resolution]


def test_a_tied_row_stands_in_for_the_one_for_all(table, tiny_space):
    layer = tiny_space.layers()[-1]
    both = replace(table, rows={**table.rows, (8, layer.shape): Row(7.0, 7.0, 1), (16, layer.shape): Row(8.0, 8.0, 1)})
    assert both.rows_at(8)[layer.shape] == Row(7.0, 7.0, 1)
    assert both.inputs == (8, 16)


# -- what was never measured -----------------------------------------------------------------------------------


def test_a_missing_layer_raises_by_name(table, tiny_space):
    layer = next(x for x in tiny_space.layers() if x.kind == "mbconv" and x.c_se)
    holed = replace(table, rows={key: row for key, row in table.rows.items() if key[1] != layer.shape})
    named = rf"desk-table must hold every layer, but lacks 1 of tiny, such as mbconv 8x8x8->16 mid {layer.c_mid} k{layer.kernel} s2"
    with pytest.raises(UnmeasuredError, match=named):
        holed.cost(tiny_space)
    with pytest.raises(UnmeasuredError, match="lacks mbconv"):
        holed.price_at(8)(layer)


def test_another_width_is_refused_instead_of_priced_as_zero(note10):
    space = get_space("ofa-mbv3-w1.0").with_resolutions([160])
    with pytest.raises(UnmeasuredError, match=r"table note10 .* lacks .* conv 160x160x3->16 k3 s2 \(network input 160\)"):
        note10.cost(space)


def test_another_resolution_is_refused(note10):
    with pytest.raises(UnmeasuredError, match=r"lacks .* conv 164x164x3->24 k3 s2 \(network input 164\)"):
        note10.cost(get_space("ofa-mbv3-w1.2"))


# -- our files -------------------------------------------------------------------------------------------------


def test_csv_and_card_round_trip(table, tmp_path):
    path = tmp_path / "deep" / "desk.csv"
    save_table(path, table)
    assert load_table(path) == table
    assert {p.name for p in path.parent.iterdir()} == {"desk.csv", "desk.json"}


def test_note10_survives_our_files_to_the_last_bit(note10, tmp_path):
    save_table(tmp_path / "note10.csv", note10)
    assert load_table(tmp_path / "note10.csv") == note10


def test_a_card_tells_all_but_the_rows(table, tmp_path):
    mixed = replace(table, rows={**table.rows, (8, table_layer(table).shape): Row(1.0, 1.0, 0, "interpolated")})
    save_table(tmp_path / "desk.csv", mixed)
    card = load_card(tmp_path / "desk.csv")
    assert (card.name, card.key, card.correction, card.facts) == (table.name, table.key, table.correction, table.card)
    assert card.rows == {"measured": len(table.rows), "interpolated": 1}
    assert card.source == mixed.source == "interpolated"


def table_layer(table):
    return layer_of(next(shape for _, shape in table.rows))


def edit_csv(path, edit):
    """Change the first row, and the digest on the card with it: what is wrong then is the row itself."""
    head, first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([head, *edit(first), *rest]) + "\n")
    sign(path)


def sign(path):
    edit_card(rows_sha256=hashlib.sha256(path.read_bytes()).hexdigest())(path)


def signed(damage):
    def change(path):
        damage(path)
        sign(path)

    return change


def cell(name, value):
    """An edit of one cell of the first row."""

    def change(path):
        at = path.read_text().splitlines()[0].split(",").index(name)
        edit_csv(path, lambda row: [",".join([*row.split(",")[:at], value, *row.split(",")[at + 1 :]])])

    return change


def edit_card(**change):
    return lambda path: path.with_suffix(".json").write_text(json.dumps({**json.loads(path.with_suffix(".json").read_text()), **change}))


DAMAGED_FILES = {
    "ms is no number": (cell("ms", "fast"), "line 2: could not convert"),
    "ms is negative": (cell("ms", "-1"), "line 2: ms must be between 0"),
    "ms is nan": (cell("ms", "nan"), "line 2: ms must be between 0"),
    "ms is infinite": (cell("ms", "inf"), "line 2: ms must be between 0"),
    "ms is huge": (cell("ms", "1e10"), "line 2: ms must be between 0"),
    "p90 is negative": (cell("p90_ms", "-1"), "line 2: ms must be between 0"),
    "a count is no integer": (cell("n", "many"), "line 2: invalid literal"),
    "a count is negative": (cell("n", "-1"), "line 2: n must be between"),
    "a count is huge": (cell("n", "9" * 4000), "line 2: n must be between"),
    "a source is unknown": (cell("source", "guessed"), "line 2: source must be one of"),
    "a kind is unknown": (cell("kind", "deconv"), "line 2: kind must be one of"),
    "an activation is unknown": (cell("act", "gelu"), "line 2: act must be one of"),
    "a stride is zero": (cell("stride", "0"), "line 2: stride must be between 1"),
    "a size is negative": (cell("hw_in", "-8"), "line 2: hw_in must be between 1"),
    "a size is huge": (cell("hw_in", "9" * 4000), "line 2: hw_in must be between 1"),
    "a flag is no flag": (cell("skip", "2"), "line 2: skip must be 0 or 1"),
    "a resolution is negative": (cell("resolution", "-1"), "line 2: resolution must be between 0"),
    "a cell is missing": (lambda path: edit_csv(path, lambda row: [row.rpartition(",")[0]]), "line 2: "),
    "a cell is too many": (lambda path: edit_csv(path, lambda row: [row + ",1"]), "line 2: there are more cells than columns"),
    "a row is cut": (lambda path: edit_csv(path, lambda row: [row[:5]]), "line 2: "),
    "a row is there twice": (lambda path: edit_csv(path, lambda row: [row, row]), r"line 3: conv .* has a row before"),
    "a row less": (lambda path: edit_csv(path, lambda row: []), "its card counts other rows"),
    "no rows": (signed(lambda path: path.write_text(path.read_text().splitlines()[0] + "\n")), "must hold at least one row"),
    "empty": (signed(lambda path: path.write_text("")), "its columns must be"),
    "other columns": (signed(lambda path: path.write_text("layer,latency\nconv,1\n")), "its columns must be"),
    "bytes that are no text": (signed(lambda path: path.write_bytes(b"\xff\xfe\x00\x81")), "codec can't decode"),
    "a quote that never ends": (cell("kind", '"conv'), "line "),
    "card is no JSON": (lambda path: path.with_suffix(".json").write_text("{"), "must be JSON"),
    "card is a list": (lambda path: path.with_suffix(".json").write_text("[]"), "must be the card"),
    "card is nested without end": (lambda path: path.with_suffix(".json").write_text("[" * 200_000), "nested too deeply"),
    "card of another format": (edit_card(format="ofasearch-latency-99"), "must be of format ofasearch-latency-3, but is .*-99"),
    "card without device": (edit_card(key={"runtime": "onnxruntime"}), "device"),
    "card of batch 0": (edit_card(key={"device": "desk", "runtime": "ort", "batch": 0}), "batch and threads must be positive"),
    "card with an unknown correction": (edit_card(correction={"bend": 2}), "bend"),
    "card whose slope is no number": (edit_card(correction={"slope": "steep"}), "must be the card"),
    "card whose slope is negative": (edit_card(correction={"slope": -1.0}), "slope must be positive"),
    "card whose offset is nan": (edit_card(correction={"offset_ms": float("nan")}), "NaN is no finite number"),
    "card without digest": (edit_card(rows_sha256=None), "digest must be text"),
    "card without rows": (edit_card(rows={}), "rows must be numbers by source"),
    "card whose rows are a list": (edit_card(rows=[1]), "rows must be numbers by source"),
    "card whose rows are of no source": (edit_card(rows={"guessed": 3}), "rows must be positive numbers"),
    "card whose facts are a list": (edit_card(card=[]), "its card must be an object"),
    "card whose facts are nested deep": (edit_card(card=functools.reduce(lambda a, _: {"a": [a]}, range(100), {})), "at most 100 deep"),
    "card with a validation of text": (edit_card(card={"validation": {**VALIDATION, "mape": "0.1"}}), "numbers of a sane size"),
    "card with a huge validation": (edit_card(card={"validation": {**VALIDATION, "mape": 10**400}}), "numbers of a sane size"),
    "card with a correction of no networks": (edit_card(correction={"nets": "many"}), "a whole number of networks"),
    "card with half a validation": (edit_card(card={"validation": {"n": 3}}), "bias_ms"),
}  # fmt: skip


@pytest.mark.parametrize(("damage", "reason"), DAMAGED_FILES.values(), ids=DAMAGED_FILES)
def test_a_damaged_file_is_refused_by_name_and_reason(table, tmp_path, damage, reason):
    path = tmp_path / "desk.csv"
    save_table(path, table)
    damage(path)
    with pytest.raises(FormatError, match=r"desk\.(csv|json) must ") as refusal:
        load_table(path)
    assert refusal.match(reason)


def test_rows_changed_by_hand_no_longer_are_those_of_the_card(table, tmp_path):
    path = tmp_path / "desk.csv"
    save_table(path, table)
    path.write_text(path.read_text().replace(",0.25,", ",0.24,", 1))
    with pytest.raises(FormatError, match=r"desk\.csv must hold the rows that desk\.json was written for, but its digest is another"):
        load_table(path)


def test_a_kill_between_rows_and_card_is_seen(table, tmp_path, monkeypatch):
    path = tmp_path / "desk.csv"
    save_table(path, table)
    faster = replace(table, rows={key: Row(row.ms / 2, row.p90_ms, row.n) for key, row in table.rows.items()})
    renamed, replace_file = [], records.Path.replace

    def killed(self, target):
        if renamed:
            raise KeyboardInterrupt
        renamed.append(target)
        replace_file(self, target)

    monkeypatch.setattr(records.Path, "replace", killed)
    with pytest.raises(KeyboardInterrupt):
        save_table(path, faster)
    monkeypatch.undo()
    assert renamed == [path]
    with pytest.raises(FormatError, match="its digest is another"):
        load_table(path)
    save_table(path, faster)
    assert load_table(path) == faster


@pytest.mark.parametrize("call", [1, 2])
def test_a_full_disk_leaves_the_former_table_whole(table, tmp_path, monkeypatch, call):
    path, sync, calls = tmp_path / "desk.csv", os.fsync, []
    save_table(path, table)

    def full(handle):
        calls.append(handle)
        if len(calls) == call:
            raise OSError(28, "No space left on device")
        sync(handle)

    monkeypatch.setattr(records.os, "fsync", full)
    with pytest.raises(WriteError, match=r"desk\.(csv|json) must be writable, but it is not \(No space left on device\)"):
        save_table(path, replace(table, name="another"))
    assert load_table(path) == table
    assert {p.name for p in tmp_path.iterdir()} == {"desk.csv", "desk.json"}


def test_a_table_never_takes_the_place_of_its_card(table, tmp_path):
    with pytest.raises(UsageError, match=r"such as desk\.csv, but got desk\.json"):
        save_table(tmp_path / "desk.json", table)


def test_a_missing_file_or_card_is_told(table, tmp_path):
    path = tmp_path / "desk.csv"
    with pytest.raises(NotFoundError, match=r"desk\.csv must be an existing latency table"):
        load_table(path)
    save_table(path, table)
    path.with_suffix(".json").unlink()
    with pytest.raises(NotFoundError, match=r"desk\.json must be an existing JSON file"):
        load_table(path)
