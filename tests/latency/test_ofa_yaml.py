"""Once-for-all's lookup tables: the published ones read, ours written as its code looks them up, and hostile files refused."""

import json
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import yaml

from ofasearch import zoo
from ofasearch.errors import FormatError, MismatchError, NotFoundError, UnmeasuredError, WriteError
from ofasearch.latency.ofa_yaml import is_ofa_yaml, load_ofa_yaml, save_ofa_yaml
from ofasearch.latency.table import ANY, Correction, LatencyTable, Row, TableKey
from ofasearch.space.core import LayerSpec
from ofasearch.space.families import get_space, make_divisible
from ofasearch.space.static_write import net_config

KEY = TableKey(device="desk", runtime="onnxruntime")
CONV = "Conv-input:160x160x3-output:80x80x24"
BLOCK = "expanded_conv-input:80x80x24-output:40x40x32-expand:72-kernel:3-stride:2-idskip:0"
NUMBERS = "{count: 10, mean: 0.5, std: 0.1}"


@pytest.fixture(scope="module")
def note10_folder(shared_data):
    return shared_data / "ofa" / "note10"


@pytest.fixture(scope="module")
def note10(note10_folder):
    return load_ofa_yaml(note10_folder)


def plain(path):
    return yaml.safe_load(path.read_text())


def means(lut, keys):
    """What once-for-all's code adds up: the mean under each key; a missing key is its KeyError."""
    return sum(lut[key]["mean"] for key in keys)


# -- the keys that once-for-all looks up, put together anew from its documented rules ---------------------------


def mobile_keys(config, size):
    """Keys for a net.config of MobileNetV3."""
    stem, expand, feature, last = (config[n] for n in ("first_conv", "final_expand_layer", "feature_mix_layer", "classifier"))
    half = (size + 1) // 2
    yield f"Conv-input:{size}x{size}x3-output:{half}x{half}x{stem['out_channels']}"
    size = half
    for block in config["blocks"]:
        conv = block["conv"]
        after = int((size - 1) / conv["stride"] + 1)
        mid = conv["mid_channels"] or round(conv["in_channels"] * conv["expand_ratio"])
        yield (
            f"expanded_conv-input:{size}x{size}x{conv['in_channels']}-output:{after}x{after}x{conv['out_channels']}-expand:{mid}"
            f"-kernel:{conv['kernel_size']}-stride:{conv['stride']}-idskip:{0 if block['shortcut'] is None else 1}"
            f"-se:{1 if conv['use_se'] else 0}-hs:{1 if conv['act_func'] == 'h_swish' else 0}"
        )
        size = after
    wide = expand["out_channels"]
    yield f"Conv_1-input:{size}x{size}x{expand['in_channels']}-output:{size}x{size}x{wide}"
    yield f"AvgPool2D-input:{size}x{size}x{wide}-output:1x1x{wide}"
    yield f"Conv_2-input:1x1x{feature['in_channels']}-output:1x1x{feature['out_channels']}"
    yield f"Logits-input:1x1x{last['in_features']}-output:{last['out_features']}"


def tutorial_keys(ks, e, d, size):
    """Keys of the tutorial's estimator, which knows the widths of ofa-mbv3-w1.2 by heart."""
    yield f"Conv-input:{size}x{size}x3-output:{(size + 1) // 2}x{(size + 1) // 2}x24"
    size = (size + 1) // 2
    yield f"expanded_conv-input:{size}x{size}x24-output:{size}x{size}x24-expand:24-kernel:3-stride:1-idskip:1-se:0-hs:0"
    channels = 24
    stages = ((2, 32, 0, 0), (2, 48, 1, 0), (2, 96, 0, 1), (1, 136, 1, 1), (2, 192, 1, 1))
    for i in range(20):
        stride, out, se, hs = stages[i // 4]
        if i % 4 + 1 > d[i // 4]:
            continue
        first = i % 4 == 0
        stride = stride if first else 1
        after = int((size - 1) / stride + 1)
        yield (
            f"expanded_conv-input:{size}x{size}x{channels}-output:{after}x{after}x{out}-expand:{round(channels * e[i])}"
            f"-kernel:{ks[i]}-stride:{stride}-idskip:{0 if first else 1}-se:{se}-hs:{hs}"
        )
        size, channels = after, out
    yield f"Conv_1-input:{size}x{size}x192-output:{size}x{size}x1152"
    yield f"AvgPool2D-input:{size}x{size}x1152-output:1x1x1152"
    yield "Conv_2-input:1x1x1152-output:1x1x1536"
    yield "Logits-input:1x1x1536-output:1000"


def proxyless_keys(net, size):
    """Keys for a ProxylessNAS network: (stem, [(in, out, ratio, kernel, stride, skip)], feature, classes)."""
    stem, blocks, feature, classes = net
    half = (size + 1) // 2
    yield f"Conv-input:{size}x{size}x3-output:{half}x{half}x{stem}"
    size = half
    for c_in, c_out, ratio, kernel, stride, skip in blocks:
        after = int((size - 1) / stride + 1)
        yield (
            f"expanded_conv-input:{size}x{size}x{c_in}-output:{after}x{after}x{c_out}"
            f"-expand:{ratio}-kernel:{kernel}-stride:{stride}-idskip:{skip}"
        )
        size = after
    yield f"Conv_1-input:{size}x{size}x{blocks[-1][1]}-output:{size}x{size}x{feature}"
    yield f"Logits-input:{size}x{size}x{feature}-output:{classes}"


def proxyless_blueprint(net, size):
    """The same network as layers."""
    stem, blocks, feature, classes = net
    layers = [LayerSpec(slot="", kind="conv", c_in=3, c_mid=0, c_out=stem, hw_in=size, kernel=3, stride=2, act="relu6")]
    for c_in, c_out, ratio, kernel, stride, skip in blocks:
        mid = c_in if ratio == 1 else make_divisible(round(c_in * ratio))
        layers.append(
            LayerSpec(
                slot="", kind="mbconv", c_in=c_in, c_mid=mid, c_out=c_out, hw_in=layers[-1].hw_out, kernel=kernel, stride=stride,
                act="relu6", skip=bool(skip),
            )
        )  # fmt: skip
    hw = layers[-1].hw_out
    layers.append(LayerSpec(slot="", kind="conv", c_in=blocks[-1][1], c_mid=0, c_out=feature, hw_in=hw, act="relu6"))
    layers.append(LayerSpec(slot="", kind="pool", c_in=feature, c_mid=0, c_out=feature, hw_in=hw, norm=False))
    layers.append(LayerSpec(slot="", kind="linear", c_in=feature, c_mid=0, c_out=classes, hw_in=1, norm=False, bias=True))
    return tuple(layers)


PROXYLESS = (40, [(40, 24, 1, 3, 1, 0), (24, 32, 3, 5, 2, 0), (32, 32, 6, 7, 1, 1), (32, 56, 4, 3, 2, 0), (56, 60, 3, 3, 1, 0),
                  (60, 60, 3, 5, 1, 1)], 1664, 1000)  # fmt: skip  # 60 channels: 180 become 184


def random_table(layers, *, resolution=ANY, correction=None, seed=0):
    """A table of random latencies for layers."""
    rng = np.random.default_rng(seed)
    rows = {}
    for layer in layers:
        ms = float(rng.uniform(0.1, 1.0))
        rows[resolution, layer.shape] = Row(ms, ms * float(rng.uniform(1.0, 1.5)), int(rng.integers(10, 99)))
    return LatencyTable("desk", KEY, rows, correction or Correction())


# -- the published tables --------------------------------------------------------------------------------------


def test_the_published_tables_are_given_back_with_the_same_keys_and_means(note10, note10_folder, tmp_path):
    files = save_ofa_yaml(tmp_path / "back", note10)
    assert list(files) == [160, 176, 192, 208, 224]
    for resolution, path in files.items():
        assert path.name == f"{resolution}_lookup_table.yaml"
        ours, theirs = plain(path), plain(note10_folder / path.name)
        assert {k: (v["mean"], v["count"]) for k, v in ours.items()} == {k: (v["mean"], v["count"]) for k, v in theirs.items()}
        assert [ours[key]["std"] for key in theirs] == pytest.approx([v["std"] for v in theirs.values()])
    assert load_ofa_yaml(tmp_path / "back").rows.keys() == note10.rows.keys()


def test_our_prices_are_the_sums_of_the_tutorial(note10, note10_folder):
    space = get_space("ofa-mbv3-w1.2").with_resolutions(note10.resolutions)
    luts = {r: plain(note10_folder / f"{r}_lookup_table.yaml") for r in note10.resolutions}
    codes = space.sample(40, np.random.default_rng(0))
    found = space.settings(codes)
    sums = [means(luts[r], tutorial_keys(ks, e, d, r)) for ks, e, d, r in zip(found.ks, found.e, found.d, found.r, strict=True)]
    assert note10.cost(space)(codes) == pytest.approx(sums, rel=1e-12)


# -- what we write ---------------------------------------------------------------------------------------------


def test_a_measured_table_is_found_by_the_keys_of_once_for_all_with_its_correction(tmp_path):
    table = zoo.open_table("amd-epyc-ort-1t").corrected(Correction(1.25, -0.01, 12))
    space = get_space("compofa-mbv3-cifar")
    (path,) = save_ofa_yaml(tmp_path, table).values()
    lut = plain(path)
    for codes in space.sample(20, np.random.default_rng(1)):
        blueprint = space.blueprint(codes)
        assert means(lut, mobile_keys(net_config(blueprint), 32)) == pytest.approx(table.latency_ms(blueprint), rel=1e-9)


@pytest.mark.parametrize("correction", [Correction(), Correction(1.25, 0.5, 12), Correction(0.8, -0.2, 12), Correction(1.0, -0.9, 12)])
@pytest.mark.parametrize("name", ["ofa-mbv3-w1.0", "compofa-mbv3-cifar", "compofa-mbv3-32-w1.0"])
def test_what_was_written_is_read_with_the_same_latencies(tmp_path, name, correction):
    space = get_space(name)
    space = space.with_resolutions(space.resolutions[:2])
    table = random_table(space.layers(), correction=correction)
    files = save_ofa_yaml(tmp_path, table, space)
    again = load_ofa_yaml(tmp_path)
    assert tuple(files) == again.resolutions == space.resolutions
    codes = space.sample(30, np.random.default_rng(2))
    assert again.cost(space)(codes) == pytest.approx(table.cost(space)(codes), rel=1e-9)
    assert again.correction == Correction()
    assert min(row.ms for row in again.rows.values()) >= 0
    blueprint = space.blueprint(codes[0])
    config = net_config(blueprint) if blueprint[0].stride == 2 else None  # once-for-all's code takes a stem of stride 2 for granted
    if config is not None:
        lut = plain(files[blueprint[0].hw_in])
        assert means(lut, mobile_keys(config, blueprint[0].hw_in)) == pytest.approx(table.latency_ms(blueprint), rel=1e-9)


def test_without_a_space_a_row_for_all_is_in_the_file_of_each_resolution_that_needs_it(tmp_path):
    space = get_space("compofa-mbv3-w1.0").with_resolutions([128, 132, 224])
    table = random_table(space.layers())
    files = save_ofa_yaml(tmp_path, table)
    again = load_ofa_yaml(tmp_path)
    codes = space.sample(30, np.random.default_rng(3))
    assert again.cost(space)(codes) == pytest.approx(table.cost(space)(codes), rel=1e-12)
    assert {r: sum(key.startswith("Conv-") for key in plain(path)) for r, path in files.items()} == {128: 1, 132: 1, 224: 1}


def test_percentiles_survive_as_deviations(tmp_path):
    space = get_space("compofa-mbv3-cifar")
    table = random_table(space.layers(), correction=Correction(2.0, 0.0, 3))
    save_ofa_yaml(tmp_path, table)
    for (_, shape), row in load_ofa_yaml(tmp_path).rows.items():
        was = table.rows[ANY, shape]
        assert (row.ms, row.p90_ms, row.n) == (pytest.approx(2 * was.ms), pytest.approx(2 * was.p90_ms), was.n)


def test_the_file_says_in_comments_where_it_comes_from_and_no_name_breaks_out_of_them(tmp_path):
    space = get_space("compofa-mbv3-cifar")
    table = replace(random_table(space.layers(), correction=Correction(1.5, 0.25, 9)), name="a\n'evil': {count: 1, mean: 0}\n\x85b: 1")
    (path,) = save_ofa_yaml(tmp_path, table).values()
    comments = [line for line in path.read_text().split("\n") if line.startswith("#")]
    assert json.loads(comments[1].removeprefix("# "))["table"] == table.name
    assert "slope 1.5 on all, offset 0.25 ms on Logits first" in comments[2]
    assert len(plain(path)) == len(table.rows)


def test_an_offset_beyond_what_every_network_has_is_refused(tmp_path):
    space = get_space("compofa-mbv3-cifar")
    table = random_table(space.layers(), correction=Correction(1.0, -100.0, 9))
    with pytest.raises(
        MismatchError, match=r"the offset of table desk must fit into layers that every network has, but -9\d.* ms are left"
    ):
        save_ofa_yaml(tmp_path, table)
    assert list(tmp_path.iterdir()) == []


def test_what_the_grammar_cannot_tell_is_not_written(tmp_path):
    space = get_space("compofa-mbv3-cifar")
    table = random_table(space.layers())
    odd = next(layer for layer in space.layers() if layer.c_se)
    rows = {**table.rows, (ANY, replace(odd, c_se=odd.c_se + 8).shape): Row(1.0, 1.0, 1)}
    with pytest.raises(MismatchError, match="but table desk has mbconv"):
        save_ofa_yaml(tmp_path, replace(table, rows=rows))
    stranger = LayerSpec(slot="", kind="conv", c_in=8, c_mid=0, c_out=8, hw_in=13, act="h_swish")
    with pytest.raises(MismatchError, match=r"must belong to networks of some input resolution, but 1 do not, such as conv 13x13x8->8"):
        save_ofa_yaml(tmp_path, replace(table, rows={**table.rows, (ANY, stranger.shape): Row(1.0, 1.0, 1)}))
    both = {**table.rows, **random_table(proxyless_blueprint(PROXYLESS, 32)).rows}
    with pytest.raises(MismatchError, match="must be of MobileNetV3 or of ProxylessNAS alone"):
        save_ofa_yaml(tmp_path, replace(table, rows=both))
    assert list(tmp_path.iterdir()) == []


def test_a_space_that_the_table_does_not_hold_is_refused(note10, tmp_path):
    with pytest.raises(UnmeasuredError, match=r"latency table note10 must hold every layer, but lacks \d+ of ofa-mbv3-w1.0"):
        save_ofa_yaml(tmp_path, note10, get_space("ofa-mbv3-w1.0"))
    with pytest.raises(MismatchError, match=r"must know an input resolution of ofa-mbv3-w1.2, \[128\], but knows \[160, "):
        save_ofa_yaml(tmp_path, note10, get_space("ofa-mbv3-w1.2").with_resolutions([128]))


def test_tables_of_other_resolutions_are_not_mixed_into_a_folder(note10, tmp_path):
    narrow = get_space("ofa-mbv3-w1.2").with_resolutions([176])
    save_ofa_yaml(tmp_path, note10, narrow)
    save_ofa_yaml(tmp_path, note10, narrow)  # the same once more
    with pytest.raises(MismatchError, match=r"must hold no other lookup tables, but has 176_lookup_table\.yaml; choose another folder"):
        save_ofa_yaml(tmp_path, note10, narrow.with_resolutions([160]))
    assert [path.name for path in tmp_path.iterdir()] == ["176_lookup_table.yaml"]


def test_a_folder_that_cannot_be_written_is_told(note10, tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WriteError, match=r"must be writable"):
        save_ofa_yaml(tmp_path / "file" / "deep", note10)


# -- ProxylessNAS ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("correction", [Correction(), Correction(1.25, 0.5, 12), Correction(0.8, -0.9, 12)])
@pytest.mark.parametrize("resolution", [ANY, 224])
def test_a_proxyless_network_is_found_by_its_own_keys_and_read_again(tmp_path, correction, resolution):
    blueprint = proxyless_blueprint(PROXYLESS, 224)
    assert blueprint[-4].c_mid == 184  # rounded: 3 x 60 is no multiple of 8
    table = random_table(blueprint, resolution=resolution, correction=correction)
    (path,) = save_ofa_yaml(tmp_path, table).values()
    assert path.name == "224_lookup_table.yaml"
    lut = plain(path)
    assert set(lut) == set(proxyless_keys(PROXYLESS, 224))
    assert means(lut, proxyless_keys(PROXYLESS, 224)) == pytest.approx(table.latency_ms(blueprint), rel=1e-9)
    again = load_ofa_yaml(tmp_path)
    assert again.card["family"] == "ProxylessNAS"
    assert again.latency_ms(blueprint) == pytest.approx(table.latency_ms(blueprint), rel=1e-9)
    assert again.rows.keys() == {(224, layer.shape) for layer in blueprint}
    assert again.rows[224, blueprint[-2].shape].ms == 0  # the pooling is part of the Logits
    assert "rows of poolings are 0" in again.card["note"]


def test_a_single_file_of_any_name_is_tied_to_the_size_of_its_first_convolution(tmp_path):
    path = tmp_path / "mobile_trim.yaml"
    path.write_text(yaml.safe_dump({key: {"count": 50.0, "mean": 1.5} for key in proxyless_keys(PROXYLESS, 224)}))
    table = load_ofa_yaml(path)
    assert (table.name, table.key.device, table.resolutions, table.source) == ("mobile_trim", "mobile_trim", (224,), "imported")
    assert table.latency_ms(proxyless_blueprint(PROXYLESS, 224)) == pytest.approx(1.5 * 9)
    named = tmp_path / "latency_table@desk" / "160_lookup_table.yaml"
    named.parent.mkdir()
    named.write_text(f'"Conv_2-input:1x1x1152-output:1x1x1536": {NUMBERS}')
    assert (load_ofa_yaml(named).key.device, load_ofa_yaml(named).resolutions) == ("desk", (160,))


def test_a_single_file_for_several_sizes_is_tied_to_none(tmp_path):
    path = tmp_path / "all.yaml"
    nets = {size: list(proxyless_keys(PROXYLESS, size))[:-1] for size in (192, 224)}
    path.write_text(yaml.safe_dump({key: {"count": 5, "mean": 1.0} for keys in nets.values() for key in keys}))
    table = load_ofa_yaml(path)
    assert {resolution for resolution, _ in table.rows} == {ANY}
    assert table.inputs == (192, 224)


def test_a_single_file_that_tells_no_size_is_refused(tmp_path):
    path = tmp_path / "some.yaml"
    path.write_text(f'"Conv_2-input:1x1x1152-output:1x1x1536": {NUMBERS}')
    with pytest.raises(FormatError, match=r"some\.yaml must be named <resolution>_lookup_table\.yaml or hold a first convolution"):
        load_ofa_yaml(path)


def test_figures_that_contradict_each_other_are_refused(tmp_path):
    path = tmp_path / "all.yaml"
    keys = {CONV: 1.0, "Logits-input:7x7x1664-output:1000": 1.0, "Logits-input:6x6x1664-output:1000": 2.0}
    path.write_text(yaml.safe_dump({key: {"count": 5, "mean": mean} for key, mean in keys.items()}))
    with pytest.raises(FormatError, match=r"must give every layer once, but gives linear 1x1x1664->1000 twice"):
        load_ofa_yaml(path)


def test_lookup_tables_are_known_by_their_names(tmp_path, note10_folder):
    (tmp_path / "a.yaml").write_text("x: 1")
    (tmp_path / "a.csv").write_text("x")
    assert is_ofa_yaml(note10_folder)
    assert is_ofa_yaml(tmp_path / "a.yaml")
    assert not any(map(is_ofa_yaml, (tmp_path, tmp_path / "a.csv", tmp_path / "nowhere.yaml")))


# -- files from outside ----------------------------------------------------------------------------------------


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
    "a layer given twice": f'"{CONV}": {NUMBERS}\n"{CONV}": {NUMBERS}',
    "a count given twice": f'"{CONV}": {{count: 10, count: 11, mean: 0.5}}',
    "a count that is negative": f'"{CONV}": {{count: -1, mean: 0.5}}',
    "a count beyond all runs": f'"{CONV}": {{count: 1{"0" * 30}, mean: 0.5}}',
    "a mean of years": f'"{CONV}": {{count: 10, mean: 1e12}}',
    "a std that is negative": f'"{CONV}": {{count: 10, mean: 0.5, std: -0.1}}',
    "a block of no size": f"{BLOCK.replace('80x80x24', '0x0x24')}-se:0-hs:0: {NUMBERS}",
    "a block of another height": f"{BLOCK.replace('80x80x24', '80x81x24')}-se:0-hs:0: {NUMBERS}",
    "a block of another output": f"{BLOCK.replace('40x40x32', '41x41x32')}-se:0-hs:0: {NUMBERS}",
    "a block of endless channels": f"{BLOCK.replace('expand:72', 'expand:' + '7' * 5000)}-se:0-hs:0: {NUMBERS}",
    "a number with a leading zero": f"{BLOCK.replace('x24', 'x024')}-se:0-hs:0: {NUMBERS}",
    "blocks of two grammars": f"{BLOCK}-se:0-hs:0: {NUMBERS}\n{BLOCK}: {NUMBERS}",
    "a pooling that Logits include": f"{BLOCK}: {NUMBERS}\nAvgPool2D-input:5x5x8-output:1x1x8: {NUMBERS}",
    "a mapping that holds itself": f'"{CONV}": &a {{count: 10, mean: *a}}',
}


@pytest.mark.parametrize("text", DAMAGED_YAML.values(), ids=DAMAGED_YAML)
def test_a_damaged_lookup_table_is_refused(lookup, text):
    with pytest.raises(FormatError, match=r"(160_lookup_table\.yaml|a lookup table) must "):
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
    script = f"from pathlib import Path; from ofasearch.latency.ofa_yaml import load_ofa_yaml; load_ofa_yaml(Path({str(tmp_path)!r}))"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=False)
    assert done.returncode == 1, done.returncode
    assert "ofasearch.errors.FormatError" in done.stderr


def test_a_lookup_table_beyond_all_sizes_is_refused_unread(tmp_path):
    path = tmp_path / "160_lookup_table.yaml"
    with path.open("wb") as file:
        file.truncate(5 << 20)
    with pytest.raises(FormatError, match="must be at most 4 MiB, but is larger"):
        load_ofa_yaml(tmp_path)
