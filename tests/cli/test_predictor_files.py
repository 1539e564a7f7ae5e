"""`ofasearch predictor import / export / show`, and predictions for networks of families without a space."""

import json
import os
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from ofasearch import zoo
from ofasearch.cli.main import run
from ofasearch.predictor import TUTORIAL_ENCODER, Predictor, blocks_encoder, load_predictor, save_predictor
from ofasearch.predictor.model import Certainty, Cloud

NETWORK = {"d": [2, 1, 0, 1, 2], "e": [0.2, 0.35, 0.25] * 6, "w": [0, 1, 2, 1, 2, 2], "image_size": 224}
PROXYLESS = {"ks": [3, 5, 7] * 7, "e": [6] * 21, "d": [4] * 5 + [1], "image_size": 160}


def mlp(encoder, *, members=1, card=None):
    """A predictor with drawn weights."""
    rng = np.random.default_rng(0)
    sizes = list(pairwise((encoder.dims, 400, 400, 400, 1)))
    weights = tuple((rng.normal(size=(members, *pair)) / pair[0] ** 0.5).astype(np.float32) for pair in sizes)
    biases = tuple(np.zeros((members, pair[1]), dtype=np.float32) for pair in sizes)
    return Predictor(encoder=encoder, weights=weights, biases=biases, offset=0.75, space="ofa-mbv3-w1.0", card=card or {})


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch):
    """An empty folder to work in."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def answers(capsys):
    """Runs `predictor` with --json; gives the one object on its stdout."""

    def check(*argv):
        assert run(["predictor", *map(str, argv), "--json"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return json.loads(out)

    return check


@pytest.fixture
def says(capsys):
    """Runs `predictor` for people; gives its lines as a dictionary."""

    def check(*argv):
        assert run(["predictor", *map(str, argv)]) == 0
        rows = [line.split("  ", 1) for line in capsys.readouterr().out.splitlines()]
        assert len({name for name, _ in rows}) == len(rows)  # nothing is said twice
        return {name: value.strip() for name, value in rows}

    return check


@pytest.fixture
def fails(capsys, desk):
    """Runs a `predictor` command that must fail; gives its one sentence after checking that nothing was written."""

    def check(code, *argv):
        before = sorted(desk.rglob("*"))
        assert run(["predictor", *map(str, argv)]) == code
        out, err = capsys.readouterr()
        assert out == ""
        (sentence,) = err.splitlines()
        assert sorted(desk.rglob("*")) == before
        return sentence.removeprefix("ofasearch: ")

    return check


@pytest.fixture
def resnet50(shared_data):
    return shared_data / "ofa" / "ofa_resnet50_acc_predictor.pth"


@pytest.fixture
def proxyless(desk):
    """A file of the newer form with 127 inputs."""
    rng = np.random.default_rng(0)
    shapes = {f"layers.{i}.0.weight": (4, size) for i, size in enumerate((127, 4, 4))} | {"layers.3.weight": (1, 4)}
    state = {"base_acc": torch.tensor([0.75]), **{f"layers.{i}.0.bias": torch.ones(4) for i in range(3)}}
    torch.save(state | {key: torch.as_tensor(0.1 * rng.normal(size=shape)).float() for key, shape in shapes.items()}, "theirs.pth")
    return "theirs.pth"


# -- import ----------------------------------------------------------------------------------------------------


def test_the_resnet50_predictor_is_imported_and_used(answers, resnet50, desk):
    told = answers("import", resnet50, "-o", "r.safetensors")
    assert (told["predictor"], told["space"], told["inputs"]) == (str(desk / "r.safetensors"), "ofa-resnet50", 82)
    assert told["resolutions"] == [128, 144, 160, 176, 192, 224, 240, 256]
    assert [(part["field"], part["columns"]) for part in told["reads"]] == [("resolution", 1), ("stem", 1), ("w", 6), ("e", 18)]
    first, second = (answers("predict", name, json.dumps(NETWORK)) for name in (resnet50, "r.safetensors"))
    assert first == second
    assert 0.75 < first["predicted_top1"] < 0.85
    card = load_predictor(desk / "r.safetensors").card
    assert card["imported"]["file"] == resnet50.name
    assert len(card["imported"]["sha256"]) == 64
    assert "date" in card


def test_what_a_file_does_not_say_is_told_by_options(answers, fails, proxyless):
    sentence = fails(2, "import", proxyless, "-o", "p.safetensors")
    assert "its 127 inputs are those of 7 input sizes of mbv3 or 1 input size of mbv2; run `ofasearch predictor import" in sentence
    assert "must be imported with what it does not hold" in fails(2, "predict", proxyless, json.dumps(PROXYLESS))
    told = answers("import", proxyless, "--resolutions", "160", "-o", "p.safetensors")
    assert (told["space"], told["resolutions"]) == ("ofa-proxyless-w1.3", [160])
    assert answers("predict", "p.safetensors", json.dumps(PROXYLESS)).keys() == {"predicted_top1"}
    shallow = answers("predict", "p.safetensors", json.dumps({**PROXYLESS, "d": [2] * 6}))
    assert shallow != answers("predict", "p.safetensors", json.dumps(PROXYLESS))


def test_an_import_that_cannot_be_is_refused(fails, proxyless, desk):
    assert "must not end in .pth" in fails(2, "import", proxyless, "--resolutions", "160", "-o", "p.pth")
    ours = next(zoo._shipped("predictors").glob("*.safetensors"))
    assert "the file to import must be once-for-all's (.pth or .pt), but got" in fails(2, "import", ours, "-o", "p.safetensors")
    assert "must be an existing file" in fails(1, "import", "nowhere.pth", "-o", "p.safetensors")
    assert "must know ofa-resnet50, but its 127 inputs" in fails(1, "import", proxyless, "--space", "ofa-resnet50", "-o", "p.safetensors")
    (desk / "folder").mkdir()
    assert "must be writable" in fails(1, "import", proxyless, "--resolutions", "160", "-o", "folder")


# -- export ----------------------------------------------------------------------------------------------------


def test_an_export_names_what_is_not_in_the_file(answers, desk, shared_data):
    source = load_predictor(shared_data / "ofa" / "acc_predictor.pth")
    save_predictor(desk / "p.safetensors", source)
    told = answers("export", "p.safetensors", "--format", "encoder", "-o", "p.pth")
    assert (told["file"], told["format"], told["space"]) == (str(desk / "p.pth"), "encoder", "ofa-mbv3-w1.2")
    assert told["resolutions"] == list(range(112, 225, 16))
    assert told["not_held"] == ["space", "resolutions"]
    assert "never_fitted" not in told
    assert told["load"].startswith("AccuracyPredictor(MobileNetArchEncoder(image_size_list=[112, ")
    arguments = ("--space", "ofa-mbv3-w1.2", "--resolutions", ",".join(map(str, told["resolutions"])))
    answers("import", "p.pth", *arguments, "-o", "back.safetensors")
    arch = "ofa-mbv3-w1.2@r224-" + "-".join(["23333"] * 5)
    found = [answers("predict", name, arch)["predicted_top1"] for name in ("p.safetensors", "back.safetensors")]
    assert found[1] == pytest.approx(found[0], abs=1e-6)


def test_choices_that_were_never_fitted_are_named(answers, says):
    save_predictor(Path("p.safetensors"), mlp(blocks_encoder((3, 5), (3, 4, 6), (160, 224), 20), card={"pairs": 3}))
    told = answers("export", "p.safetensors", "--format", "tutorial", "-o", "p.pth")
    assert told["never_fitted"] == {"ks": [7], "resolution": [112, 128, 144, 176, 192, 208]}
    assert told["not_held"] == ["space", "card"]
    lines = says("export", "p.safetensors", "--format", "tutorial", "-o", "p.pth")
    assert lines["never fitted"] == "ks 7, resolution 112, 128, 144, 176, 192, 208"


def test_an_export_that_cannot_be_is_refused(fails):
    save_predictor(Path("p.safetensors"), mlp(TUTORIAL_ENCODER, members=2))
    assert "fit one with `ofasearch predictor fit --members 1" in fails(1, "export", "p.safetensors", "--format", "tutorial", "-o", "p.pth")
    assert "--out must end in .pth or .pt" in fails(2, "export", "p.safetensors", "--format", "tutorial", "-o", "q.safetensors")
    assert "predictor must be one of" in fails(1, "export", "nowhere", "--format", "tutorial", "-o", "p.pth")
    assert "--format" in fails(2, "export", "p.safetensors", "-o", "p.pth")


# -- show ------------------------------------------------------------------------------------------------------


def test_a_predictor_says_what_it_is(answers, says):
    held_out = {"n": 40, "kendall_tau": 0.9, "rmse_points": 0.2}
    card = {"pairs": 120, "members": 3, "held_out": held_out}
    whole = mlp(TUTORIAL_ENCODER, members=3, card=card)
    cloud = Cloud(np.eye(128, dtype=np.float32), 9.5)
    save_predictor(Path("p.safetensors"), replace(whole, certainty=Certainty(0.002, {0.8: 1.25, 0.95: 2.0}), cloud=cloud))
    told = answers("show", "p.safetensors")
    assert told["card"] == card
    assert (told["space"], told["inputs"], told["members"], told["hidden"]) == ("ofa-mbv3-w1.0", 128, 3, [400, 400, 400])
    assert told["activation"] == "relu"
    assert told["error_bars"] == {"floor": 0.002, "multiples": {"0.8": 1.25, "0.95": 2.0}}
    assert told["cloud_limit"] == 9.5
    assert "supernet_digest" not in told
    lines = says("show", "p.safetensors")
    assert lines["reads"] == "20 ks of 3, 5, 7; 20 e of 3, 4, 6; resolution of 112, 128, 144, 160, 176, 192, 208, 224"
    assert lines["pairs"] == "120"
    assert lines["held out"] == "n 40, kendall_tau 0.9, rmse_points 0.2"


def test_shipped_and_foreign_predictors_are_shown_too(answers, fails, resnet50, proxyless):
    name = zoo.predictor_names()[0]
    told = answers("show", name)
    assert told["predictor"] == name
    assert told["card"]["held_out"]["n"] > 0
    told = answers("show", resnet50)
    assert told["card"] == {}
    assert told["offset"] == pytest.approx(0.8056, abs=5e-5)
    assert "error_bars" not in told
    assert "must be imported with what it does not hold" in fails(2, "show", proxyless)
    assert "must be one of" in fails(1, "show", "nowhere")


# -- networks that are none ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("subnet", "message"),
    [
        ("ofa-resnet50@r224", "an arch id of ofa-resnet50 must have 5 stages, but 'ofa-resnet50@r224' has 0"),
        ("[]", "an arch id of ofa-resnet50 must look like"),
        ("{", "must hold numbers w, e, d and r, but it cannot be read"),
        ("[" * 100_000, "an arch id of ofa-resnet50 must look like"),
        ('{"d": [NaN]}', "it cannot be read: NaN is no finite number"),
        ("{}", "must hold numbers w, e, d and r, but it cannot be read: 'r'"),
        (json.dumps(NETWORK | {"d": [2, 1, 0, 1, 3]}), "s4.depth must be one of [0, 1, 2] in ofa-resnet50, but got 3"),
        (json.dumps(NETWORK | {"w": [10**400] * 6}), "must hold numbers w, e, d and r, but it cannot be read"),
        (json.dumps(NETWORK | {"image_size": 208}), "resolution must be one of [128, 144, 160, 176, 192, 224, 240, 256]"),
    ],
    ids=["arch id", "list", "cut", "deep", "nan", "empty", "depth 3", "huge width", "size 208"],
)
def test_a_network_that_is_none_is_refused(fails, resnet50, subnet, message):
    assert message in fails(1, "predict", resnet50, subnet)
