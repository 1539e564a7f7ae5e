"""`ofasearch flips` and what `eval` keeps for it: tables and JSON on stdout, one sentence per failure."""

import json
import os

import numpy as np
import pytest

from ofasearch.cli.main import run

SMALL, MIDDLE, LARGE = (f"compofa-mbv3-cifar@r32-{d}-{d}-{d}-{d}-{d}" for d in "234")


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def flips(*argv):
    return run(["flips", *map(str, argv)])


def test_two_networks_are_told_in_lined_up_tables(capsys):
    assert flips(SMALL, LARGE) == 0
    printed, progress = capsys.readouterr()
    assert progress == ""  # nothing took time
    networks, facts, classes, pairs = printed.rstrip("\n").split("\n\n")
    for block in (networks, classes, pairs):
        header, rule, *rows = block.splitlines()
        ends = [i for i, c in enumerate(rule) if c == "-" and rule[i + 1 : i + 2] != "-"]
        assert len(rows) in (2, 5, 10)
        assert all(len(row) <= ends[-1] + 1 for row in (header, *rows))
        assert all(row[start : start + 2].strip() == "" for row in (header, *rows) for start in (e + 1 for e in ends[:-1]))
    assert [row.split()[:2] for row in networks.splitlines()[2:]] == [["old", SMALL], ["new", LARGE]]
    assert len({line[: line.index("  ")] for line in facts.splitlines()}) == len(facts.splitlines()) == 6
    assert "of 10,000), 95 % interval" in facts
    assert facts.splitlines()[-1].endswith("10,000 of cifar10 test, shipped predictions")
    assert "cat" in classes


def test_json_is_the_answer_alone_and_that_of_python(capsys):
    import ofasearch

    assert flips(SMALL, LARGE, MIDDLE, "--split", "validation", "--seed", 3, "--json") == 0
    printed, progress = capsys.readouterr()
    assert progress == ""
    assert json.loads(printed) == ofasearch.flips(SMALL, LARGE, MIDDLE, split="validation", seed=3)


def test_a_family_comes_with_its_matrix(capsys):
    assert flips(SMALL, MIDDLE, LARGE) == 0
    matrix = capsys.readouterr().out.split("\n\n")[2].splitlines()
    assert matrix[0].split() == ["NFR", "from", "old", "new", "#3"]
    assert [row.split()[:2] for row in matrix[2:]] == [["old", "to"], ["new", "to"], ["#3", "to"]]


def test_data_brings_progress_and_the_images(tmp_path, capsys):
    assert flips(SMALL, LARGE, "--data", "digits", "--out", "out") == 0
    printed, progress = capsys.readouterr()
    assert progress.splitlines() == [f"evaluating {arch} on test ..." for arch in (SMALL, LARGE)]
    for name in ("flips.json", "flips.csv", "flips.png"):
        assert str(tmp_path / "out" / name) in printed
        assert (tmp_path / "out" / name).is_file()
    assert flips(SMALL, LARGE, "--data", "digits", "--quiet", "--out", "out") == 0
    assert capsys.readouterr().err == ""


def test_predictions_are_kept_and_compared(capsys):
    for split in ("test", "validation"):
        assert run(["eval", SMALL, "--data", "digits", "--split", split, "--save-predictions", "small.npz", "--json"]) == 0
        record = json.loads(capsys.readouterr().out)
        assert record["predictions"].endswith("small.npz")
        assert flips("small.npz", LARGE, "--data", "digits", "--split", split, "--json") == 0
        assert json.loads(capsys.readouterr().out)["top1_old"] == record["top1"]
    assert run(["eval", LARGE, "--data", "digits", "--save-predictions", "small.npz"]) == 1
    assert "must hold predictions of" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("code", "argv", "text"),
    [
        (2, f"{SMALL}", "Missing argument 'NEW'"),
        (2, f"{SMALL} {LARGE} --split train", "'train' is not one of 'validation', 'test'"),
        (2, f"{SMALL} {LARGE} --seed -1", "--seed must be at least 0, but got -1"),
        (1, f"{SMALL} nowhere.onnx", "must be an existing ONNX file"),
        (1, f"{SMALL} nowhere.npz", "must be an existing file of predictions"),
        (1, f"{SMALL} nowhere", "must look like"),
        (1, f"{SMALL} {LARGE} --data nowhere", "data must be 'digits'"),
        (1, f"{SMALL} {LARGE} --supernet cifar10-ofa", "must look like"),
        (1, f"{SMALL} {LARGE} --out taken.npy", "must be writable"),
        (1, f"{SMALL} taken.npy", "for each of the 10,000 test images of cifar10, but holds 3"),
        (2, "taken.npy taken.npy", "labels of the test images must be known"),
        (1, f"{SMALL} nan.npy", "must be one integer per image, but is float64"),
        (1, f"{SMALL} wild.npy", "must be classes 0 to 9, but one is 77"),
        (2, f"{SMALL} {LARGE} --data digits --preprocessing " + "{", "--preprocessing must be imagenet or a JSON object"),
        (1, f"{SMALL} {LARGE} --data digits --preprocessing none.json", "none.json must be an existing JSON file"),
    ],
)
def test_failures_are_one_sentence(code, argv, text, tmp_path, capsys):
    np.save("taken.npy", np.zeros(3, dtype=np.int64))
    np.save("nan.npy", np.full(10_000, np.nan))
    np.save("wild.npy", np.full(10_000, 77))
    before = sorted(tmp_path.rglob("*"))
    assert flips(*argv.split()) == code
    printed, said = capsys.readouterr()
    assert printed == ""
    assert len(said.splitlines()) == 1
    assert said.startswith("ofasearch: ")
    assert text in said
    assert sorted(tmp_path.rglob("*")) == before
