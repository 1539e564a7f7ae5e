"""Once-for-all's published networks as commands take them: layers from net.config, weights from init, in place of a subnet.pt."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from makers import image_folder
from publish import publish, their_state

from ofasearch.cli.main import run
from ofasearch.data import load_data
from ofasearch.jobs.deliver import load_subnet, save_subnet, to_network
from ofasearch.jobs.network import place_of, read_network, subnet_at
from ofasearch.jobs.subnet import read_subnet
from ofasearch.jobs.winner import _configs
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.space.costs import costs
from ofasearch.space.families import get_space
from ofasearch.space.static import read_net_config

SPACE = get_space("ofa-proxyless-cifar", classes=3)
RESNET = get_space("ofa-resnet50", classes=3).with_resolutions([33])
BLUEPRINT = SPACE.blueprint(SPACE.smallest())


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """A published network of each kind of block, and images that they tell apart."""
    home = tmp_path_factory.mktemp("published")
    publish(home / "proxyless", BLUEPRINT)
    publish(home / "resnet", RESNET.blueprint(RESNET.smallest()))
    image_folder(home / "images" / "train", 70, sizes=((40, 33),))
    image_folder(home / "images" / "val", 12, sizes=((36, 40),), seed=5000)
    balance(home / "resnet", load_data(str(home / "images"))["test"])
    return home


def balance(folder, images):
    """Change the bias so that a network of random weights sees every class in some of the images."""
    subnet = read_subnet(str(folder))
    (inputs,) = images.inputs(subnet.preprocessing, resolution=subnet.blueprint[0].hw_in, batch=len(images))
    with torch.no_grad():
        logits = to_network(subnet)(torch.from_numpy(np.ascontiguousarray(inputs)))
    content = torch.load(folder / "init", weights_only=True)
    content["state_dict"]["classifier.linear.bias"] -= logits.mean(0)
    torch.save(content, folder / "init")


def told(capsys, *argv, code=0):
    """The JSON answer of a command."""
    capsys.readouterr()
    assert run([*map(str, argv), "--json"]) == code
    return json.loads(capsys.readouterr().out)


@pytest.mark.parametrize("name", ["proxyless", "resnet"])
def test_a_published_network_is_exported_as_it_is(folders, tmp_path, capsys, name):
    answer = told(capsys, "export", folders / name, "-o", tmp_path / "x.onnx")
    assert (answer["arch_id"], answer["calibrated"]) == (name, "as published")
    assert answer["onnx_max_abs_diff"] < 1e-3
    subnet = read_subnet(str(folders / name))
    size = subnet.blueprint[0].hw_in
    images = np.random.default_rng(0).normal(size=(3, 3, size, size)).astype(np.float32)
    with torch.no_grad():
        expected = to_network(subnet)(torch.from_numpy(images)).numpy()
    found = OnnxModel(tmp_path / "x.onnx")(images)
    assert found == pytest.approx(expected, abs=1e-4 * float(np.abs(expected).max()))
    assert len({row.tobytes() for row in expected}) == 3
    assert (size, len(expected[0]), subnet.preprocessing.crop_pct) == (32 if name == "proxyless" else 33, 3, 0.875)


def test_a_network_and_its_onnx_file_are_scored_alike(folders, tmp_path, capsys):
    told(capsys, "export", folders / "resnet", "-o", tmp_path / "x.onnx")
    data = ("--data", folders / "images")
    of_folder = told(capsys, "eval", folders / "resnet", *data, "--save-predictions", tmp_path / "kept.npz")
    of_config = told(capsys, "eval", folders / "resnet" / "net.config", *data)
    of_onnx = told(capsys, "eval", tmp_path / "x.onnx", *data)
    assert of_folder["top1"] == of_config["top1"] == of_onnx["top1"]
    assert (of_folder["arch_id"], of_folder["calibrated"], of_folder["calibration_images"]) == ("resnet", "as published", 0)
    flips = told(capsys, "flips", folders / "resnet", tmp_path / "x.onnx", *data)
    assert flips["nfr"] == flips["pfr"] == 0
    assert set(np.load(tmp_path / "kept.npz")["test"]) == {0, 1, 2}


def test_predictions_are_kept_under_all_that_makes_the_network(folders, tmp_path, capsys):
    publish(tmp_path / "other", RESNET.blueprint(RESNET.smallest()), seed=1)
    arguments = ("--data", folders / "images", "--save-predictions", tmp_path / "kept.npz")
    told(capsys, "eval", folders / "resnet", *arguments)
    capsys.readouterr()
    assert run([*map(str, ("eval", tmp_path / "other", *arguments))]) == 1
    assert "kept.npz" in capsys.readouterr().err


def test_old_names_of_weights_are_read_by_commands(folders, tmp_path):
    folder = publish(tmp_path / "old", BLUEPRINT, weights=False)
    state = {
        name.replace(".conv.", ".mobile_inverted_conv.", 1) if name.startswith("blocks.") else name: t
        for name, t in their_state(BLUEPRINT).items()
    }
    torch.save(state, folder / "init")
    expected, found = read_subnet(str(folders / "proxyless")).arrays, read_subnet(str(folder)).arrays
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


def test_a_published_network_survives_subnet_pt(folders, tmp_path):
    subnet = read_subnet(str(folders / "resnet"))
    save_subnet(tmp_path / "subnet.pt", subnet, {})
    again, _ = load_subnet(tmp_path / "subnet.pt")
    assert (again.arch.id, again.blueprint, again.settings) == ("resnet", subnet.blueprint, {})
    assert len({spec.slot for spec in subnet.blueprint}) == len(subnet.blueprint)
    assert all(np.array_equal(again.arrays[key], array) for key, array in subnet.arrays.items())
    network = read_network(str(tmp_path / "subnet.pt"))
    assert (network.name, network.space) == ("resnet", None)


def test_blocks_that_pass_on_keep_their_numbers(tmp_path):
    """Weights of the block behind a ZeroLayer have the number that it has in the config."""
    folder = publish(tmp_path / "net", BLUEPRINT)
    expected = read_subnet(str(folder)).arrays
    config, state = json.loads((folder / "net.config").read_text()), their_state(BLUEPRINT)
    config["blocks"].insert(2, {"name": "ResidualBlock", "conv": {"name": "ZeroLayer"}, "shortcut": {"name": "IdentityLayer"}})
    (folder / "net.config").write_text(json.dumps(config))
    moved = {}
    for name, tensor in state.items():
        head, number, *rest = name.split(".")
        behind = head == "blocks" and int(number) >= 2
        moved[".".join([head, str(int(number) + 1), *rest]) if behind else name] = tensor
    torch.save({"state_dict": moved}, folder / "init")
    found = read_subnet(str(folder)).arrays
    assert found.keys() == expected.keys()
    assert all(np.array_equal(found[key], expected[key]) for key in expected)


# -- which file a folder stands for ----------------------------------------------------------------------------


def test_the_folder_of_a_run_stands_for_its_subnet(folders, tmp_path):
    """It has a net.config as well, but no init; its subnet.pt has all."""
    run_folder = publish(tmp_path / "run", BLUEPRINT, weights=False)
    codes = SPACE.smallest()
    arch = SPACE.arch(codes)
    published = subnet_at(place_of(str(folders / "proxyless")))
    ours = replace(published, arch=arch, blueprint=BLUEPRINT, arrays=arrays_of(published, BLUEPRINT))
    save_subnet(run_folder / "subnet.pt", ours, {})
    assert read_subnet(str(run_folder)).arch.id == arch.id
    assert (read_network(str(run_folder)).name, read_network(str(run_folder)).space.name) == (arch.id, SPACE.name)
    assert read_network(str(run_folder / "net.config")).name == "run"


def arrays_of(subnet, blueprint):
    """The arrays of a network by the slots of another one with the same layers."""
    slots = {old.slot: new.slot for old, new in zip(subnet.blueprint, blueprint, strict=True)}
    found = {}
    for key, array in subnet.arrays.items():
        old = max((slot for slot in slots if key.startswith(f"{slot}.")), key=len)
        found[slots[old] + key.removeprefix(old)] = array
    return found


@pytest.mark.parametrize(
    ("text", "place"),
    [("", None), ("{}", None), ("tiny@r8-11", None), ("x.pt", "x.pt"), ("far/net.config", "far/net.config"), (".", "net.config")],
)
def test_what_a_text_names(tmp_path, monkeypatch, text, place):
    monkeypatch.chdir(tmp_path)
    found = place_of(text)
    assert found is None if place is None else str(found) == place


def test_a_config_alone_has_layers_and_no_weights(tmp_path, capsys):
    folder = publish(tmp_path / "net", BLUEPRINT, weights=False)
    assert told(capsys, "space", "cost", folder)["params"] == costs(BLUEPRINT).params
    assert told(capsys, "explain", folder)["macs"] == costs(BLUEPRINT).macs
    assert run(["export", str(folder), "-o", str(tmp_path / "x.onnx")]) == 1
    assert "must hold the weights of its net.config, as init" in capsys.readouterr().err
    assert not (tmp_path / "x.onnx").exists()


def test_a_network_that_once_for_all_cannot_build_is_delivered_without_configs(tmp_path):
    """The answer says why; the other files are written."""
    small = get_space("ofa-resnet50-cifar")
    files, notes = _configs(tmp_path, small.blueprint(small.smallest()))
    assert (files, list(tmp_path.iterdir())) == ({}, [])
    assert len(notes) == 1
    assert "maximum pool" in notes[0]
    files, notes = _configs(tmp_path, BLUEPRINT)
    assert (list(files), notes) == (["net_config"], [])
    assert {path.name for path in tmp_path.iterdir()} == {"net.config", "run.config"}


# -- the published networks ------------------------------------------------------------------------------------

QUICK = ("cpu_lat-10ms_top1-71.1_finetune-25", "note10_lat-8ms_top1-71.4_finetune-25", "pixel1_lat-20ms_top1-71.4_finetune-25")


def check_exported(capsys, source, folder):
    """Random weights for a published network, in its own words: loaded, costed and exported by commands."""
    publish(folder, read_net_config(source / "net.config"))
    for name in ("net.config", "run.config"):
        (folder / name).write_bytes((source / name).read_bytes())
    answer = told(capsys, "export", folder, "-o", folder / "x.onnx")
    subnet = read_subnet(str(folder))
    size = subnet.blueprint[0].hw_in
    images = np.random.default_rng(1).normal(size=(2, 3, size, size)).astype(np.float32)
    with torch.no_grad():
        expected = to_network(subnet)(torch.from_numpy(images)).numpy()
    found = OnnxModel(folder / "x.onnx")(images)
    assert found.shape == (2, 1000)
    assert found == pytest.approx(expected, abs=1e-4 * max(1, float(np.abs(expected).max())))
    assert np.abs(expected[0] - expected[1]).max() > 1e-2 * np.abs(expected).max()  # the images reach the logits
    assert answer["arch_id"] == folder.name
    assert 3.9 < answer["size_bytes"] / costs(subnet.blueprint).params < 4.1


@pytest.mark.parametrize("name", QUICK)
def test_published_networks_are_exported(shared_data, tmp_path, capsys, monkeypatch, name):
    monkeypatch.setattr("ofasearch.jobs.deliver.CHECK_IMAGES", 2)
    check_exported(capsys, shared_data / "ofa" / "specialized" / name, tmp_path / name)


@pytest.mark.slow
def test_every_published_network_is_exported(shared_data, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("ofasearch.jobs.deliver.CHECK_IMAGES", 2)
    home = shared_data / "ofa" / "specialized"
    with (home / "published.csv").open() as file:
        names = [row["folder"] for row in csv.DictReader(file)]
    assert len(names) == 30
    for name in names:
        check_exported(capsys, home / name, tmp_path / name)
