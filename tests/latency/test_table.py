"""Latency tables: the published Note10 numbers, our own files, and files from outside that are damaged or carry code."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest

from ofasearch.errors import FormatError, NotFoundError, UnmeasuredError
from ofasearch.latency.table import ANY, Correction, LatencyTable, Row, TableKey, load_ofa_yaml, load_table, save_table
from ofasearch.space.families import get_space

KEY = TableKey(device="desk", runtime="onnxruntime-1.20", precision="int8", batch=4, threads=2)
CONV = "Conv-input:160x160x3-output:80x80x24"
NUMBERS = "{count: 10, mean: 0.5, std: 0.1}"


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


def test_note10_survives_our_files(note10, tmp_path):
    save_table(tmp_path / "note10.csv", note10)
    again = load_table(tmp_path / "note10.csv")
    assert again.rows.keys() == note10.rows.keys()
    assert [row.ms for row in again.rows.values()] == pytest.approx([row.ms for row in note10.rows.values()], rel=1e-5)
    assert replace(again, rows={}) == replace(note10, rows={})


def edit_csv(path, edit):
    head, first, *rest = path.read_text().splitlines()
    path.write_text("\n".join([head, *edit(first), *rest]) + "\n")


def last_cells(*cells):
    """An edit of the first row: other values for its last columns, ms, p90_ms and n."""
    return lambda path: edit_csv(path, lambda row: [",".join([*row.split(",")[: -len(cells)], *cells])])


def edit_card(**change):
    return lambda path: path.with_suffix(".json").write_text(json.dumps({**json.loads(path.with_suffix(".json").read_text()), **change}))


DAMAGED_FILES = {
    "ms is no number": last_cells("fast", "1", "1"),
    "ms is negative": last_cells("-1", "1", "1"),
    "ms is nan": last_cells("nan", "1", "1"),
    "ms is infinite": last_cells("inf", "1", "1"),
    "a cell is missing": lambda path: edit_csv(path, lambda row: [row.rpartition(",")[0]]),
    "a count is no integer": last_cells("1", "1", "many"),
    "a row is cut": lambda path: edit_csv(path, lambda row: [row[:5]]),
    "no rows": lambda path: path.write_text(path.read_text().splitlines()[0] + "\n"),
    "empty": lambda path: path.write_text(""),
    "other columns": lambda path: path.write_text("layer,latency\nconv,1\n"),
    "bytes that are no text": lambda path: path.write_bytes(b"\xff\xfe\x00\x81"),
    "card is no JSON": lambda path: path.with_suffix(".json").write_text("{"),
    "card is a list": lambda path: path.with_suffix(".json").write_text("[]"),
    "card is nested without end": lambda path: path.with_suffix(".json").write_text("[" * 200_000),
    "card of another format": edit_card(format="ofasearch-latency-99"),
    "card without device": edit_card(key={"runtime": "onnxruntime"}),
    "card with an unknown correction": edit_card(correction={"bend": 2}),
    "card whose slope is no number": edit_card(correction={"slope": "steep"}),
    "card whose slope is negative": edit_card(correction={"slope": -1.0}),
    "card whose offset is nan": edit_card(correction={"offset_ms": float("nan")}),
}


@pytest.mark.parametrize("damage", DAMAGED_FILES.values(), ids=DAMAGED_FILES)
def test_a_damaged_file_is_refused_by_name(table, tmp_path, damage):
    path = tmp_path / "desk.csv"
    save_table(path, table)
    damage(path)
    with pytest.raises(FormatError, match=r"desk\.(csv|json) must "):
        load_table(path)


def test_a_missing_file_or_card_is_told(table, tmp_path):
    path = tmp_path / "desk.csv"
    with pytest.raises(NotFoundError, match=r"desk\.csv must be an existing latency table"):
        load_table(path)
    save_table(path, table)
    path.with_suffix(".json").unlink()
    with pytest.raises(NotFoundError, match=r"desk\.json must be an existing JSON file"):
        load_table(path)


# -- once-for-all's files --------------------------------------------------------------------------------------


@pytest.fixture
def lookup(tmp_path):
    """Write one lookup table and read its folder."""

    def read(text):
        content = text if isinstance(text, bytes) else text.encode()
        (tmp_path / "160_lookup_table.yaml").write_bytes(content)
        return load_ofa_yaml(tmp_path)

    return read


def test_a_lookup_table_of_one_layer_is_read(lookup):
    [((resolution, shape), row)] = lookup(f'"{CONV}": {NUMBERS}').rows.items()
    assert (resolution, shape[:4], row.ms, row.n) == (160, ("conv", 3, 0, 24), 0.5, 10)
    assert row.p90_ms == pytest.approx(0.628, abs=1e-3)


@pytest.mark.parametrize("files", [[], ["160.yaml"], ["readme.txt"]])
def test_a_folder_without_lookup_tables_is_told(tmp_path, files):
    for name in files:
        (tmp_path / name).write_text("x")
    with pytest.raises(NotFoundError, match=r"must hold <resolution>_lookup_table\.yaml files, but has none"):
        load_ofa_yaml(tmp_path)
    with pytest.raises(NotFoundError, match="but has none"):
        load_ofa_yaml(tmp_path / "nowhere")


DAMAGED_YAML = {
    "empty": "",
    "a list": "[1, 2]",
    "cut": f'"{CONV}": {{mean: 0.5',
    "bytes that are no text": b"\xff\xfe\x00\x81",
    "an unknown layer": f"Deconv-input:1: {NUMBERS}",
    "a layer that is a number": f"1: {NUMBERS}",
    "a layer that is null": f"~: {NUMBERS}",
    "no mean": f'"{CONV}": {{count: 10}}',
    "a number without names": f'"{CONV}": 0.5',
    "a negative mean": f'"{CONV}": {{count: 10, mean: -0.5}}',
    "a mean that is nan": f'"{CONV}": {{count: 10, mean: .nan}}',
    "a mean that is infinite": f'"{CONV}": {{count: 10, mean: .inf}}',
    "a mean that is text": f'"{CONV}": {{count: 10, mean: fast}}',
    "a mean beyond all floats": f'"{CONV}": {{count: 10, mean: 1{"0" * 400}}}',
    "a mean beyond all digits": f'"{CONV}": {{count: 10, mean: 1{"0" * 5000}}}',
    "a count that is infinite": f'"{CONV}": {{count: .inf, mean: 0.5}}',
    "a std that is text": f'"{CONV}": {{count: 10, mean: 0.5, std: wide}}',
    "a std that is nan": f'"{CONV}": {{count: 10, mean: 0.5, std: .nan}}',
    "a date that does not exist": f'"{CONV}": 2001-99-99',
    "a mapping that holds itself": f'"{CONV}": &a {{count: 10, mean: *a}}',
}


@pytest.mark.parametrize("text", DAMAGED_YAML.values(), ids=DAMAGED_YAML)
def test_a_damaged_lookup_table_is_refused(lookup, text):
    with pytest.raises(FormatError, match=r"(160_lookup_table\.yaml|a layer of a lookup table) must "):
        lookup(text)


CODE = {
    "apply": '!!python/object/apply:os.system ["touch {0}"]',
    "apply with keywords": '!!python/object/apply:subprocess.check_call {{args: [["touch", "{0}"]]}}',
    "new": '!!python/object/new:os.system ["touch {0}"]',
    "name": "!!python/name:os.system",
    "tuple": "!!python/tuple [1, 2]",
}


@pytest.mark.parametrize("tag", CODE.values(), ids=CODE)
@pytest.mark.parametrize("place", ["{}", f'"{CONV}": {{}}', f'"{CONV}": {{{{count: 10, mean: {{}} }}}}'])
def test_code_in_a_lookup_table_is_refused_and_never_runs(lookup, tmp_path, tag, place):
    marker = tmp_path / "ran"
    with pytest.raises(FormatError, match=r"must be a YAML lookup table, but .* could not determine a constructor"):
        lookup(place.format(tag.format(marker)))
    assert not marker.exists()


def test_the_refusal_of_a_swollen_lookup_table_stays_short(lookup):
    levels = ["&a0 [x, x, x, x, x, x, x, x, x, x]", *(f"&a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, 4))]
    with pytest.raises(FormatError, match="must give count and mean") as refusal:
        lookup(f'"{CONV}": [{", ".join(levels)}]')
    assert len(str(refusal.value)) < 1000


@pytest.mark.parametrize("text", ["[" * 200_000, "a: " + "{b: " * 50_000, "- " * 50_000], ids=["lists", "mappings", "bullets"])
def test_a_lookup_table_nested_without_end_does_not_crash_the_process(tmp_path, text):
    (tmp_path / "160_lookup_table.yaml").write_text(text)
    script = f"from pathlib import Path; from ofasearch.latency.table import load_ofa_yaml; load_ofa_yaml(Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.returncode
    assert "ofasearch.errors.FormatError" in done.stderr
