"""`ofasearch quantize`: a table and facts on stdout, one JSON object, one sentence per failure."""

import json
import os

import pytest

from ofasearch.cli.main import run

SMALL = "compofa-mbv3-cifar@r32-2-2-2-2-2"


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(os, "fsync", lambda _: None)


def quantize(*argv):
    return run(["quantize", SMALL, "-o", "q.onnx", "--data", "digits", "--images", "40", *map(str, argv)])


def test_the_answer_is_a_table_and_facts(tmp_path, capsys):
    assert quantize("--seconds", 0.02, "--exclude", "ends,gates") == 0
    printed, progress = capsys.readouterr()
    table, facts = printed.rstrip("\n").split("\n\n")
    assert [row.split()[:2] for row in table.splitlines() if "float32" in row] == [["float32", "all"]]
    assert len(table.splitlines()) == 5
    assert sum(row.startswith("*") for row in table.splitlines()) == 1
    assert "ends, gates" in table
    names = [line.split("  ")[0] for line in facts.splitlines()]
    assert names[:6] == ["test top-1", "flips", "size", "latency", "calibration", "rule"]
    assert facts.splitlines()[-1].split()[-1] == str(tmp_path / "q.onnx")
    assert "timing 3 files in turn" in progress


def test_json_is_the_answer_alone(capsys):
    assert quantize("--per-channel", "--exclude", "none", "--no-bench", "--json") == 0
    printed, progress = capsys.readouterr()
    assert progress == ""
    record = json.loads(printed)
    assert (record["recipe"]["per_channel"], record["recipe"]["floating"]) == (True, [])
    assert len(record["candidates"]) == 1


def test_without_timing_the_table_has_no_latency(capsys):
    assert quantize("--per-tensor", "--exclude", "none", "--no-bench", "--quiet") == 0
    printed, progress = capsys.readouterr()
    assert progress == ""
    assert "p50" not in printed
    assert "per tensor" in printed


@pytest.mark.parametrize(
    ("argv", "code", "text"),
    [
        (("--exclude", "soup"), 2, "--exclude must be none or of ends, gates, activations"),
        (("--method", "magic"), 2, "magic"),
        (("--calibration-images", 2), 2, "--calibration-images must be at least 8"),
        (("--seconds", "nan"), 2, "--seconds must be positive"),
        (("--data", "nowhere"), 1, "data must be"),
    ],
)
def test_failures_are_one_sentence(capsys, tmp_path, argv, code, text):
    assert quantize(*argv) == code
    printed, said = capsys.readouterr()
    assert printed == ""
    assert text in said
    assert len(said.splitlines()) == 1
    assert list(tmp_path.iterdir()) == []
