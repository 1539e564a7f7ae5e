"""`ofasearch predictor dataset` on real files: what was labelled on stdout, progress on stderr, one sentence per failure."""

import json
import os

import numpy as np
import pytest
import torch

from ofasearch.cli.main import run
from ofasearch.data import Preprocessing
from ofasearch.evaluate.store import Score
from ofasearch.evaluate.subject import Subject
from ofasearch.jobs import dataset as job
from ofasearch.predictor import FitConfig, load_predictor, read_pairs
from ofasearch.space.costs import macs_of
from ofasearch.space.families import get_space
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import Weights, save_weights

PREPROCESSING = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.3, 0.3, 0.3), size=32)
SPACE = get_space("ofa-mbv3-cifar-w0.1")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random supernets for 32x32 images of ten classes, of a large and a small space, and one of another number of classes."""
    folder = tmp_path_factory.mktemp("supernets")
    small, other = get_space("compofa-mbv3-cifar-w0.1"), get_space("ofa-mbv3-cifar-w0.1", classes=7)
    for file, space in (("large", SPACE), ("small", small), ("other", other)):
        supernet = Supernet(space, kernel_transform=False, generator=torch.Generator().manual_seed(0))
        save_weights(folder / f"{file}.safetensors", Weights(supernet.arrays(), space, PREPROCESSING))
    return folder


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def scored(monkeypatch):
    """Accuracies come at once: what is printed is the matter."""
    monkeypatch.setattr(Subject, "score", lambda self, codes, _: Score(0.5 + float(macs_of(self.space)(codes[None])[0]) / 1e8, 20))


def dataset(*argv, supernet="large", data="digits"):
    return run(["predictor", "dataset", "--supernet", f"{supernet}.safetensors", "--data", data, *map(str, argv)])


def test_what_was_labelled_is_told(tmp_path, capsys):
    out = tmp_path / "out" / "pairs.jsonl"
    assert dataset("-n", 3, "--images", 20, "--calibration-images", 30, "-o", out) == 0
    printed, progress = capsys.readouterr()
    assert "networks  3 of ofa-mbv3-cifar-w0.1, 3 measured now" in printed
    assert "images    20 of validation; batch norm on 30 in batches of 200" in printed
    assert str(out) in printed
    assert progress.splitlines() == ["evaluating large on validation ..."]
    assert sorted(path.name for path in out.parent.iterdir()) == ["pairs.json", "pairs.jsonl"]
    assert len(read_pairs([out], SPACE)) == 3


def test_rounds_tell_how_far_predictions_were_off(tmp_path, capsys, scored, monkeypatch):
    monkeypatch.setattr(job, "FitConfig", lambda seed: FitConfig(members=2, steps=20, seed=seed))
    argv = ("-n", 8, "--rounds", 2, "--per-round", 4, "--images", 20, "-o", tmp_path / "p.jsonl")
    assert dataset(*argv, supernet="small") == 0
    printed, progress = capsys.readouterr()
    header, _, *rows = printed.splitlines()
    assert header.split("  ")[0] == "round"
    assert "error (MAE)" in header
    assert [row.split()[:3] for row in rows[:2]] == [["1", "8", "4"], ["2", "12", "4"]]
    assert rows[2] == "(errors in percent points, of predictions made before the new networks were fitted)"
    assert progress.splitlines() == ["evaluating small on validation ...", "round 1 ...", "round 2 ..."]
    assert dataset(*argv, "--json", supernet="small") == 0
    printed, progress = capsys.readouterr()
    record = json.loads(printed)
    assert progress == ""
    assert record["evaluated_now"] == 0
    assert [r["fitted_on"] for r in record["rounds"]] == [8, 12]
    card = json.loads((tmp_path / "p.json").read_text())
    assert {key: record[key] for key in card if key not in ("format", "pairs_sha256", "date")}.items() <= card.items()


def test_a_fit_takes_the_weights_from_the_card(tmp_path, capsys, scored):
    assert dataset("-n", 16, "--images", 20, "--quiet", "-o", tmp_path / "p.csv") == 0
    printed, progress = capsys.readouterr()
    assert (progress, "16 measured now" in printed) == ("", True)
    fit = ["predictor", "fit", "--space", SPACE.name, "--pairs", str(tmp_path / "p.csv"), "-o", str(tmp_path / "predictor.safetensors")]
    assert run([*fit, "--members", "2", "--steps", "5"]) == 0
    digest = json.loads((tmp_path / "p.json").read_text())["supernet_digest"]
    assert load_predictor(tmp_path / "predictor.safetensors").supernet_digest == digest


@pytest.mark.parametrize(
    ("code", "argv", "text"),
    [
        (2, "-n 0", "-n must be at least 1, but got 0"),
        (2, "-n many", "'many' is not a valid integer"),
        (2, "-n 200000", "-n must be at most 100,000, but got 200,000"),
        (2, "-n 4 --rounds 1", "-n must be at least 8 for a predictor to be fitted, but got 4"),
        (2, "-n 2 --calibration-images 1", "--calibration-images must be at least 8, but got 1"),
        (2, "-n 2 -o pairs.txt", "pairs must be written as .jsonl, .csv (DyNAS-T), .dict or a folder (once-for-all), but got 'pairs.txt'"),
        (2, "-n 2 -o .", "a folder for pairs must be new, empty or written as such before"),
        (1, "-n 2 -o large.safetensors/pairs.jsonl", "must be writable, but it is not"),
        (1, "-n 2 --data nowhere", "data must be 'digits'"),
        (1, "-n 2 --supernet other.safetensors", "must have the 7 classes of other"),
        (1, "-n 2 --supernet nowhere", "supernet must be one of"),
    ],
)
def test_failures_are_one_sentence(code, argv, text, capsys, monkeypatch):
    monkeypatch.setattr(Subject, "score", lambda *_: pytest.fail("evaluated before it was refused"))
    assert dataset(*argv.split()) == code
    printed, said = capsys.readouterr()
    assert printed == ""
    assert len(said.splitlines()) == 1
    assert said.startswith("ofasearch: ")
    assert text in said


FOREIGN = {
    "a list": "[1, 2]",
    "no settings": '{"{}": 70}',
    "a key that is no JSON": '{"{a}": 70}',
    "an accuracy that is none": '{"{\\"image_size\\": 32}": null}',
    "cut": '{"{\\"ks\\": [3',
    "nesting": '{"{' + "[" * 100_000,
    "another space": json.dumps({json.dumps({"ks": [3] * 21, "e": [3] * 21, "d": [2] * 6, "image_size": 32}): 70.0}),
    "ResNet": json.dumps({json.dumps({"d": [2] * 5, "e": [0.25] * 18, "w": [1] * 6, "image_size": 32}): 70.0}),
}


@pytest.mark.parametrize("text", FOREIGN.values(), ids=FOREIGN)
def test_a_foreign_dictionary_is_refused_in_one_sentence(text, tmp_path, capsys):
    (tmp_path / "acc.dict").write_text(text)
    fit = ["predictor", "fit", "--space", SPACE.name, "--pairs", str(tmp_path / "acc.dict"), "-o", str(tmp_path / "p.safetensors")]
    assert run(fit) == 1
    printed, said = capsys.readouterr()
    assert printed == ""
    assert [line for line in said.splitlines() if line.startswith("ofasearch: ")] == said.splitlines()[-1:]
    assert "must" in said
    assert not (tmp_path / "p.safetensors").exists()


def test_too_few_pairs_are_wrong_usage(tmp_path, capsys):
    settings = SPACE.settings(SPACE.sample(7, np.random.default_rng(0)))
    records = [{"ks": settings.ks[n].tolist(), "e": settings.e[n].tolist(), "d": settings.d[n].tolist(), "r": 32} for n in range(7)]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({**r, "top1": 50 + n}) + "\n" for n, r in enumerate(records)))
    fit = ["predictor", "fit", "--space", SPACE.name, "--pairs", str(tmp_path / "p.jsonl"), "-o", str(tmp_path / "p.safetensors")]
    assert run(fit) == 2
    assert "at least" in capsys.readouterr().err
