"""`ofasearch explain` and `diff`: what people and programs read, one sentence per failure."""

import io
import json
import math
import os
import sys

import pytest
from pretended import Device

import ofasearch
from ofasearch.cli.main import run

pytestmark = pytest.mark.usefixtures("frozen_tables")

A, B = "compofa-mbv3-cifar@r32-4-4-2-2-2", "compofa-mbv3-cifar@r32-2-3-2-4-2"
DESK = "amd-epyc-ort-1t"
PHONE = "ofa-mbv3-w1.2@r176-23333-3343634-3747433-3347434-3363634"


@pytest.fixture
def answers(capsys, monkeypatch):
    """Runs a command that must succeed on a terminal of 80 columns; gives what it printed."""

    def check(*argv, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert run([str(a) for a in argv]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return check


def facts_of(out):
    """Names and values below the drawing."""
    return {name.strip(): value for line in out.splitlines() if "  " in line for name, value in [line.split("  ", 1)]}


def test_people_read_the_same_as_programs(answers):
    record = json.loads(answers("explain", A, "--target", DESK, "--json"))
    out = answers("explain", A, "--target", DESK)
    facts = facts_of(out)
    assert facts["architecture"].strip() == record["name"] == A
    assert f"{record['latency_ms']:.4g} ms by table" in facts["latency"]
    assert "(measured; " in facts["latency"]
    assert f"{100 * record['predicted_top1']:.2f} %" in facts["top-1 (validation)"]
    assert f"times {record['slope']:.4g}, and {record['constant_ms']:+.4g} ms are constant per network" in out
    assert f"on 20 whole networks: bias {record['validation']['bias_ms']:+.4f} ms" in out
    drawn = out.split("\n\n")[0].splitlines()
    for layer in record["layers"]:
        assert any(f"{layer['latency_ms']:.4f}" in line and line.split()[0] in layer["name"] for line in drawn)
    assert max(map(len, drawn)) == 80
    assert math.fsum([record["constant_ms"], *(layer["latency_ms"] for layer in record["layers"])]) == record["latency_ms"]


def test_latency_explain_is_the_same_command(answers):
    assert answers("latency", "explain", A, "--target", DESK) == answers("explain", A, "--target", DESK)


@pytest.mark.parametrize("columns", [80, 160])
def test_a_difference_is_drawn_as_wide_as_the_terminal(answers, columns):
    record = json.loads(answers("diff", A, B, "--target", DESK, "--json"))
    out = answers("diff", A, B, "--target", DESK, columns=columns)
    table, drawn, facts = out.split("\n\n")
    assert A in table
    assert B in table
    assert max(map(len, drawn.splitlines())) == columns
    assert f"{record['delta_ms']:+.4g} ms (+5.1 %) by table {DESK} (measured)" in facts
    assert f"{100 * record['delta_top1']:+.2f} points  (measured on the validation split of cifar10-compofa" in facts
    assert sum(step["delta_macs"] for step in record["steps"]) == record["delta_macs"]


def test_equal_networks_differ_in_nothing(answers):
    out = answers("diff", A, A, "--target", DESK)
    assert "+0.0000" in out.split("\n\n")[1].splitlines()[-1]
    assert json.loads(answers("diff", A, A, "--json"))["steps"] == []


def test_savings_are_listed_with_what_they_cost(answers):
    out = answers("explain", A, "--target", DESK, "--save", "20us")
    saved = json.loads(answers("explain", A, "--target", DESK, "--save", "0.02ms", "--json"))["save"]
    assert "2 of 10 single changes save 0.020 ms or more; least accuracy lost first:" in out
    for c in saved["changes"]:
        (line,) = [line for line in out.splitlines() if c["arch_id"] in line]
        assert line.startswith(c["change"])
        assert f"{c['saving_ms']:.4g} ms" in line
        assert line.endswith(f"{100 * c['predicted_top1']:.2f} %   {100 * c['predicted_top1_change']:+.2f}")


def test_what_nothing_judges_says_so(answers, shared_data):
    out = answers("explain", PHONE, "--target", shared_data / "ofa" / "note10", "--save", "1ms")
    assert "3 of 70 single changes save 1 ms or more" in out
    assert "most MACs kept first (nothing judges accuracy here: give --predictor)" in out
    assert "unknown: the table was not checked on whole networks" in out
    assert "top-1" not in out


def test_estimates_say_so_wherever_they_are_told(answers):
    out = answers("explain", A, "--target", "v100", "--batch", 64, "--save", "1us")
    facts = facts_of(out)
    assert "by table v100 (estimated; " in facts["latency"]
    assert "an image" in facts["latency"]
    assert facts["note"].strip().startswith("latencies of v100 are estimated from its published peaks, not measured, for batch 64")
    changes = [line for line in out.splitlines() if line.startswith("s") and " -> " in line]
    assert changes
    assert all(line.endswith("estimated") for line in changes)
    out = answers("diff", A, B, "--target", "v100")
    assert "by table v100 (estimated)" in out
    assert "are estimated from its published peaks, not measured" in out


def test_a_terminal_without_blocks_gets_ascii(monkeypatch):
    screen = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", screen)
    for argv in (["explain", A], ["diff", A, B]):
        assert run(argv) == 0
    screen.flush()
    text = screen.buffer.getvalue().decode("ascii")
    assert "####" in text
    assert "?" not in text


def test_python_gives_what_the_command_gives(answers):
    assert ofasearch.explain(A, target=DESK) == json.loads(answers("explain", A, "--target", DESK, "--json"))
    assert ofasearch.diff(A, B, target=DESK) == json.loads(answers("diff", A, B, "--target", DESK, "--json"))


def test_a_picture_is_written_and_named(answers, tmp_path):
    path = tmp_path / "sub" / "where.svg"
    assert str(path) in answers("explain", A, "--svg", path)
    assert path.read_text().startswith("<?xml")
    assert json.loads(answers("diff", A, B, "--svg", path, "--json"))["files"] == {"picture": str(path)}


def test_measuring_this_machine_is_shown(capsys, monkeypatch, tmp_path):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path))
    Device().pretend(monkeypatch)
    assert run(["explain", A, "--target", "cpu"]) == 0
    out, err = capsys.readouterr()
    assert err == "measuring this machine ...\n"
    assert "(measured; " in out
    assert run(["diff", A, B, "--target", "cpu", "--json"]) == 0
    out, err = capsys.readouterr()
    assert (json.loads(out)["device"]["batch"], err) == (1, "")


@pytest.mark.parametrize(
    ("code", "argv", "text"),
    [
        (2, "explain", "Missing argument 'SUBNET'"),
        (2, f"diff {A}", "Missing argument 'B'"),
        (2, "explain nowhere", "a subnet must be an arch id, a subnet.pt, a net.config or JSON"),
        (1, "explain nowhere/net.config", "nowhere/net.config must be an existing"),
        (1, "explain nowhere.pt", "nowhere.pt must be an existing"),
        (1, f"explain {A}-3", "must have 5 stages"),
        (1, f"explain {A} --target nowhere", "target must be cpu, one of"),
        (1, f"explain {PHONE} --target {DESK}", "must hold every layer of the network, but lacks 20 of 20 at input 176: stem ("),
        (1, f"diff {A} {PHONE} --target {DESK}", "must hold every layer of the network, but lacks "),
        (2, f"explain {A} --target {DESK} --save -3ms", "latency must be a positive number with a unit"),
        (2, f"explain {A} --target {DESK} --save 0ms", "latency must be positive"),
        (2, f"explain {A} --target {DESK} --save 3", "the unit of latency must be one of"),
        (3, f"explain {A} --target {DESK} --save 3ms", "--save must be less than the 0.179 ms that"),
        (3, f"explain {A} --target {DESK} --save 0.1ms", "the largest saving of a single change of"),
        (2, f"explain {A} --save 1ms", "--save must go with a --target"),
        (2, f"explain {A} --target {DESK} --batch 0", "--batch must be 1..4096"),
        (1, f"explain {A} --target {DESK} --batch 2", "must be known at batch 2"),
        (2, f"explain {A} --svg x.pdf", "the picture must end in .svg or .png"),
        (1, f"explain {A} --svg /proc/x/y.svg", "/proc/x/y.svg must be writable"),
        (1, f"diff {A} {PHONE} --predictor cifar10-compofa", "must have as many classes as each other"),
        (1, f"explain {PHONE} --predictor cifar10-compofa", "the predictor must be made for ofa-mbv3-w1.2"),
    ],
)
def test_a_failure_is_one_sentence_and_its_exit_code(capsys, monkeypatch, tmp_path, code, argv, text):
    monkeypatch.chdir(tmp_path)
    assert run(argv.split()) == code
    out, err = capsys.readouterr()
    assert (out, err.count("\n")) == ("", 1)
    assert err.startswith("ofasearch: ")
    assert text in err
    assert list(tmp_path.iterdir()) == []
