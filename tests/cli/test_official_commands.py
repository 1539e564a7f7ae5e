"""An official checkpoint from the command line: looked over, converted, searched, exported; refused when it is something else."""

import json
import os

import numpy as np
import onnxruntime
import pytest
import torch
from makers import image_folder, official_state

from ofasearch.cli.main import run
from ofasearch.jobs import latency, measuring
from ofasearch.jobs.supernet import width_of
from ofasearch.latency.stopwatch import StopRule
from ofasearch.predictor import Predictor, encoder_of, save_predictor
from ofasearch.space.families import get_space
from ofasearch.supernet.importers import load_official
from ofasearch.supernet.weights import load_weights

COMPOFA = "model_best_compofa_simple.pth.tar"
CLASSES = ("ape", "bee", "cat")


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Nothing here has to survive a power cut, and a proof on 4 images is one."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr("ofasearch.jobs.deliver.CHECK_PIXELS", 4 * 128**2)
        patch.setenv("COLUMNS", "400")
        yield


@pytest.fixture(scope="module")
def state():
    return official_state()


@pytest.fixture(scope="module")
def compofa(tmp_path_factory, state):
    """A CompOFA checkpoint of three classes with random weights."""
    path = tmp_path_factory.mktemp("official") / COMPOFA
    torch.save({"state_dict": state, "epoch": 7, "best_acc": np.float64(70.1)}, path)
    return path


@pytest.fixture
def answers(capsys):
    """Runs a command with --json; gives exit code, record and sentence."""

    def check(*argv):
        code = run([*map(str, argv), "--json"])
        out, err = capsys.readouterr()
        assert err.count("\n") == (code != 0), err
        return code, json.loads(out) if out else None, err.removeprefix("ofasearch: ").rstrip("\n")

    return check


# -- check, import, show, list ---------------------------------------------------------------------------------


def test_check_tells_what_a_checkpoint_is(answers, compofa):
    code, record, _ = answers("supernet", "check", compofa)
    assert code == 0
    assert record == {
        "family": "MobileNetV3 (once-for-all, CompOFA)",
        "space": "compofa-mbv3-w1.0",
        "width": "w1.0",
        "classes": 3,
        "phase": "compound subnets (by the file's name)",
        "key_names": "new (conv)",
        "kernel_transforms": 0,
        "missing": [],
        "unknown": [],
        "misshapen": [],
        "nan_or_infinity": [],
        "subnets": "243 per resolution",
        "digest": load_official(compofa).digest,
    }


OTHERS = [  # a published name with the weights of a small space of its family
    ("ofa_proxyless_d234_e346_k357_w1.3", "ofa-proxyless-cifar", "ProxylessNAS (once-for-all)", "new (conv)", 42),
    ("ofa_compofa_proxyless.pth", "compofa-proxyless-cifar", "ProxylessNAS (once-for-all, CompOFA)", "new (conv)", 0),
    ("ofa_supernet_resnet50", "ofa-resnet50-cifar", "ResNet50 (once-for-all)", "new (conv1, conv2, conv3, downsample)", 0),
]


@pytest.mark.parametrize(("file", "space", "family", "naming", "matrices"), OTHERS)
def test_other_families_are_checked_and_imported(answers, capsys, tmp_path, file, space, family, naming, matrices):
    path, out = tmp_path / file, tmp_path / "x.safetensors"
    torch.save({"state_dict": official_state(space.removeprefix("comp"), matrices=matrices > 0)}, path)
    code, record, _ = answers("supernet", "check", path)
    assert (code, record["space"], record["family"], record["classes"]) == (0, space, family, 3)
    assert (record["key_names"], record["kernel_transforms"]) == (naming, matrices)
    assert not any(record[kind] for kind in ("missing", "unknown", "misshapen", "nan_or_infinity"))
    code, imported, _ = answers("supernet", "import", path, "-o", out, "--num-classes", 5)
    assert (code, imported["digest"], imported["written_classes"]) == (0, record["digest"], 5)
    code, shown, _ = answers("supernet", "show", out)
    assert (code, shown["space"], shown["classes"], shown["width"]) == (0, space, 5, record["width"])
    assert run(["supernet", "check", str(path)]) == 0
    assert family in capsys.readouterr().out


@pytest.mark.parametrize(("space", "width"), [("ofa-proxyless-w1.3", "w1.3"), ("ofa-resnet50", "w0.65, w0.8, w1.0")])
def test_widths_are_those_of_the_name_or_all_choices(space, width):
    assert width_of(space) == width
    assert width_of(f"{space}-d4-e6-k7" if "proxyless" in space else f"{space}-d2-ec-w02") == width.replace(", w0.8", "")


def test_check_answers_people_alike(capsys, answers, compofa):
    _, record, _ = answers("supernet", "check", compofa)
    assert run(["supernet", "check", str(compofa)]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert str(compofa) in out
    assert all(str(value) in out for value in record.values() if value != [])
    assert out.count("none") == 4


def test_check_takes_the_users_word_for_the_space(answers, compofa):
    _, record, _ = answers("supernet", "check", compofa, "--space", "compofa-mbv3-elastic-w1.0")
    assert (record["space"], record["phase"]) == ("compofa-mbv3-elastic-w1.0", "as asked")
    code, record, sentence = answers("supernet", "check", compofa, "--space", "ofa-mbv3-w1.2")
    assert (code, record) == (1, None)
    assert "--space must be ofa-mbv3-w1.0 or a part of it" in sentence


def test_import_writes_the_same_supernet_and_its_card(answers, compofa, tmp_path):
    out = tmp_path / "new" / "x.safetensors"
    code, record, _ = answers("supernet", "import", compofa, "-o", out)
    assert (code, record["written"], record["written_classes"]) == (0, str(out), 3)
    assert load_weights(out).digest == record["digest"]
    card = json.loads(out.with_suffix(".json").read_text())
    assert (card["supernet"], card["digest"], card["training"]["imported_from"]) == ("x.safetensors", record["digest"], COMPOFA)
    assert {p.name for p in out.parent.iterdir()} == {"x.safetensors", "x.json"}
    code, again, _ = answers("supernet", "check", out)
    assert (code, again["digest"], again["problems"]) == (0, record["digest"], [])
    code, shown, _ = answers("supernet", "show", out)
    assert (shown["digest"], shown["classes"], shown["imported_from"]) == (record["digest"], 3, COMPOFA)


def test_num_classes_swaps_the_head_alone(answers, compofa, tmp_path):
    out = tmp_path / "x.safetensors"
    code, record, _ = answers("supernet", "import", compofa, "-o", out, "--num-classes", 7)
    assert (code, record["classes"], record["written_classes"]) == (0, 3, 7)
    before, after = load_official(compofa), load_weights(out)
    assert after.space.classes == 7
    changed = {key for key, array in after.arrays.items() if not np.array_equal(array, before.arrays[key])}
    assert changed == {"head.classifier.linear.weight", "head.classifier.linear.bias"}


def test_show_answers_people_alike(capsys, answers, compofa):
    _, record, _ = answers("supernet", "show", compofa)
    assert (record["space"], record["resolutions"], record["kernel_transforms"]) == ("compofa-mbv3-w1.0", list(range(128, 225, 4)), 0)
    assert run(["supernet", "show", str(compofa)]) == 0
    out = capsys.readouterr().out
    assert all(str(value) in out for value in record.values() if not isinstance(value, list))


def test_the_list_tells_official_names(capsys, answers):
    _, record, _ = answers("supernet", "list")
    names = [entry["name"] for entry in record["official"]]
    assert COMPOFA in names
    assert not any(entry["fetched"] for entry in record["official"])
    assert run(["supernet", "list"]) == 0
    out = capsys.readouterr().out
    assert all(name in out for name in names)
    assert out.count("not fetched") == len(names)


@pytest.mark.parametrize(
    ("code", "argv", "text"),
    [
        (2, "check {f} --num-classes 7", "--num-classes writes another supernet: add -o FILE.safetensors"),
        (2, "check {f} --num-classes 1", "1 is not in the range 2<=x<=100000"),
        (2, "check {f} -o {d}/x.pth", "the converted file must end in .safetensors"),
        (2, "import {f}", "Missing option '-o'"),
        (1, "check {d}/nowhere.pth", "must be an existing file, a once-for-all checkpoint"),
        (1, "check {d}", "must be an existing file"),
        (1, "check {f} --space nowhere", "space must be one of"),
        (1, "import {f} -o {f}/x.safetensors", "must be writable, but it is not"),
        (1, "show {d}/nowhere.pth", "supernet must be one of"),
    ],
)
def test_wrong_usage_is_one_sentence(answers, compofa, tmp_path, code, argv, text):
    found, record, sentence = answers("supernet", *argv.format(f=compofa, d=tmp_path).split())
    assert (found, record) == (code, None)
    assert text in sentence
    assert list(tmp_path.iterdir()) == []


KEYS = {  # a convolution of a block
    "ofa-mbv3-w1.0": "blocks.3.conv.point_linear.conv.conv.weight",
    "ofa-proxyless-cifar": "blocks.21.conv.inverted_bottleneck.conv.conv.weight",
    "ofa-resnet50-cifar": "blocks.4.downsample.conv.conv.weight",
}


@pytest.mark.parametrize(
    ("change", "field", "text"),
    [
        (lambda s, key: s.pop(key), "missing", "it lacks {key}"),
        (lambda s, key: s.update({f"{key}.attention": torch.zeros(3)}), "unknown", "unknown {key}.attention"),
        (lambda s, key: s.update({key: torch.zeros(5)}), "misshapen", "wrong shape of {key} (5 for"),
        (lambda s, key: s.update({key: s[key] * float("nan")}), "nan_or_infinity", "NaN or infinity in {key}"),
    ],
    ids=["missing", "unknown", "misshapen", "nan"],
)
@pytest.mark.parametrize("space", KEYS)
def test_a_spoiled_checkpoint_is_reported_then_refused(answers, capsys, tmp_path, space, change, field, text):
    path, out, key = tmp_path / "x.pth", tmp_path / "out.safetensors", KEYS[space]
    text, spoiled = text.format(key=key), official_state(space)
    change(spoiled, key)
    torch.save(spoiled, path)
    for argv in (("check", path), ("import", path, "-o", out)):
        code, record, sentence = answers("supernet", *argv)
        assert code == 1
        assert any(entry.startswith(key) for entry in record[field])
        assert "digest" not in record
        assert text in sentence
    assert run(["supernet", "check", str(path)]) == 1
    printed = capsys.readouterr()
    assert key in printed.out
    assert printed.err.count("\n") == 1
    assert list(tmp_path.iterdir()) == [path]
    assert run(["supernet", "show", str(path)]) == 1
    assert text in capsys.readouterr().err


# -- a whole answer --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def photographs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("photographs") / "d"
    image_folder(folder / "train", 70, kind="JPEG", suffix=".JPEG")
    image_folder(folder / "val", 4, kind="JPEG", suffix=".JPEG", seed=1000)
    return folder


@pytest.fixture(scope="module")
def predictor(tmp_path_factory):
    """A predictor for CompOFA with random weights; it knows 128 pixels too."""
    space = get_space("compofa-mbv3-w1.0")
    encoder = encoder_of(space)
    rng = np.random.default_rng(0)
    weights = tuple(rng.normal(size=size).astype(np.float32) * 0.02 for size in ((1, encoder.dims, 8), (1, 8, 1)))
    biases = (np.zeros((1, 8), np.float32), np.zeros((1, 1), np.float32))
    path = tmp_path_factory.mktemp("predictor") / "p.safetensors"
    save_predictor(path, Predictor(encoder, weights, biases, 0.3, space.name))
    return path


def test_find_ends_with_a_calibrated_measured_file(answers, compofa, photographs, predictor, monkeypatch, tmp_path):
    monkeypatch.setattr(measuring, "NET_RULE", StopRule(min_bursts=2, max_bursts=2, warmup=1, min_sample_ms=0.0))
    monkeypatch.setattr(latency, "FIT_NETS", 4)
    monkeypatch.setattr(latency, "CHECK_NETS", 3)
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
    argv = ("--supernet", compofa, "--predictor", predictor, "--data", photographs, "--target", "cpu", "--latency", "500ms")
    code, record, sentence = answers("find", *argv, "--resolutions", 128, "--out", tmp_path / "run")
    assert code == 0, sentence
    assert record["space"] == "compofa-mbv3-w1.0"
    assert record["arch"]["r"] == 128
    assert record["predicted_top1_source"] == "accuracy predictor"
    assert (record["latency_source"], record["target"]) == ("measured", "cpu")
    measured = record["measured"]
    assert measured["calibrated"] == "8 images of d calibration"
    assert measured["onnx_max_abs_diff"] <= 1e-4
    assert measured["onnx_checked_on"] == "4 test images of d"
    assert (measured["n"], measured["source"]) == (12, "live")
    assert 0 <= measured["top1"] <= 1
    assert 0 < measured["latency_ms_p50"] <= 500
    assert record["candidates"][0]["accepted"]
    for kind in ("onnx", "subnet"):
        code, inspected, _ = answers("inspect", record["files"][kind])
        assert (code, inspected["arch_id"], inspected["calibrated"]) == (0, record["arch_id"], measured["calibrated"])
    session = onnxruntime.InferenceSession(record["files"]["onnx"])
    assert session.get_inputs()[0].shape[2:] == [128, 128]
    assert session.run(None, {session.get_inputs()[0].name: np.zeros((1, 3, 128, 128), np.float32)})[0].shape == (1, 3)


def test_without_a_predictor_the_command_that_makes_one_is_named(answers, compofa, photographs):
    code, record, sentence = answers("find", "--supernet", compofa, "--data", photographs, "--flops", "300M")
    assert (code, record) == (1, None)
    assert "a search of compofa-mbv3-w1.0 needs an accuracy predictor, but none was given; pass --predictor, or" in sentence
    assert "ofasearch " in sentence


def test_data_of_other_classes_is_refused(answers, compofa, predictor, tmp_path):
    folder = image_folder(tmp_path / "d", 70, classes=("a", "b", "c", "d"))
    code, record, sentence = answers("find", "--supernet", compofa, "--predictor", predictor, "--data", folder, "--flops", "300M")
    assert (code, record) == (1, None)
    assert "data d must have the supernet's 3 classes, but has 4" in sentence


def test_resolutions_that_nobody_knows_are_named(answers, compofa, predictor):
    code, _, sentence = answers("find", "--supernet", compofa, "--predictor", predictor, "--flops", "300M", "--resolutions", "31")
    assert code == 2
    assert "--resolutions must be among those of compofa-mbv3-w1.0" in sentence
