"""`ofasearch pareto`: what people and programs read, one sentence per failure."""

import io
import json
import os
import sys

import pytest

import ofasearch
from ofasearch import zoo
from ofasearch.cli.main import run
from ofasearch.report import pareto as report

pytestmark = pytest.mark.usefixtures("frozen_tables")

DESK = "amd-epyc-ort-1t"


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Nothing here has to survive a power cut, and the shipped supernet is read once."""
    found, load = zoo.load_supernet(zoo.DEFAULT_SUPERNET), zoo.load_supernet
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr(zoo, "load_supernet", lambda name: found if name == zoo.DEFAULT_SUPERNET else load(name))
        yield


@pytest.fixture
def says(capsys, monkeypatch, tmp_path):
    """Runs the command, which must succeed on a terminal of 80 columns; gives what it printed and the folder."""

    def check(*argv, columns=80):
        monkeypatch.setenv("COLUMNS", str(columns))
        assert run(["pareto", *map(str, argv), "--out", str(tmp_path / "run"), "--quiet"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out

    return check


@pytest.fixture
def fails(capsys, tmp_path):
    """Runs the command, which must fail with that code; gives its one sentence."""

    def check(code, *argv):
        assert run(["pareto", *map(str, argv), "--out", str(tmp_path / "run")]) == code
        out, err = capsys.readouterr()
        assert out == ""
        lines = [line for line in err.splitlines() if line and not line.endswith(" ...")]  # progress may come before
        assert len(lines) == 1, err
        assert "Traceback" not in err
        return lines[0].removeprefix("ofasearch: ")

    return check


def parts(out):
    """The table's lines, the picture's, and the facts by name."""
    table, picture, *more, facts = out.rstrip("\n").split("\n\n")
    named = dict(line.split("  ", 1) for line in facts.splitlines())
    return table.splitlines(), picture.splitlines(), more, {name.strip(): value.strip() for name, value in named.items()}


# -- what people read ------------------------------------------------------------------------------------------


def test_people_see_the_front_its_picture_and_what_was_preferred(says, tmp_path):
    out = says("--target", DESK, "--prefer", "top1>=86,latency<=0.3ms")
    table, picture, _, facts = parts(out)
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    assert table[0].split("  ")[-1].strip() == "latency by table (measured)"
    assert "top-1 (validation)" in table[0]
    assert len(table) == 2 + record["points"]
    for line, point in zip(table[2:], record["front"], strict=True):
        assert f"{100 * point['predicted_top1']:.2f} %" in line
        assert f"{point['latency_ms']:.3f} ms" in line
        assert line.split("compofa")[0].strip() == "*" * point["preferred"] + "K" * point["knee"]
    assert picture[0] == f"compofa-mbv3-cifar: front of top-1 (validation) and latency on {DESK}"
    assert max(map(len, picture)) <= 80
    drawn = "".join(picture[2:])
    assert (drawn.count("K"), drawn.count("*")) == (1, 1)
    assert facts["front"] == f"{record['points']} networks, exact: all 243 of the space were compared"
    assert facts["knee K"].startswith(record["knee"]["arch_id"])
    assert facts["preferred *"].startswith(record["preferred"]["arch_id"])
    assert "the most accurate of the" in facts["preferred *"]
    assert facts["hypervolume"].startswith(f"{record['hypervolume']:.4f}, where the box from ")
    assert facts["search"].startswith("243 networks by exact in ")
    assert {facts[name.replace("_", " ")] for name in record["files"]} == set(record["files"].values())


def test_the_picture_rises_with_the_cost(says):
    _, picture, _, _ = parts(says())
    rows = [line.partition("┤")[2] or line.partition("│")[2] for line in picture[2:14]]
    lefts = [len(row) - len(row.lstrip()) for row in rows if row.strip()]
    assert lefts == sorted(lefts, reverse=True)
    high, low = picture[2].split("┤")[0], picture[13].split("┤")[0]
    assert float(high) == 87.40
    assert float(low) == 85.04
    assert picture[-1].split()[0] == "4.155"
    assert picture[-1].split()[-1] == "12.34"


def test_a_long_front_is_shown_in_few_rows_with_its_marked_networks(says, tmp_path):
    out = says("--objectives", "top1,macs,params,memory", "--prefer", "params<=0.7M")
    table, _, _, facts = parts(out)
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    shown = len(table) - 2
    assert shown < record["points"]
    assert 10 <= shown <= report.SHOWN + 4
    assert f"({shown} shown)" in facts["front"]
    ids = [line.split("compofa-mbv3-cifar@")[1].split()[0] for line in table[2:]]
    for point in (record["front"][0], record["front"][-1], record["knee"], record["preferred"]):
        assert point["arch_id"].split("@")[1] in ids


def test_searches_are_compared_in_a_table(says, tmp_path):
    _, _, more, _ = parts(says("--compare", "--population", "8", "--generations", "5"))
    record = json.loads((tmp_path / "run" / "result.json").read_text())
    (comparison,) = more
    rows = comparison.splitlines()
    assert "hypervolume of exact" in rows[0]
    assert len(rows) == 2 + len(record["compare"])
    for row, line in zip(rows[2:], record["compare"], strict=True):
        assert row.startswith(line["algorithm"])
        assert f"{100 * line['hypervolume_share']:.2f} %" in row
        assert str(line["evaluations"]) in row


def test_one_network_needs_no_picture(says):
    out = says("--flops", "4.16M")
    assert "┤" not in out
    assert "1 network, exact: all 1 of the space that keep the limits were compared" in out


def test_terminals_without_braille_get_ascii(monkeypatch, tmp_path):
    stream = io.TextIOWrapper(io.BytesIO(), encoding="ascii")
    monkeypatch.setattr(sys, "stdout", stream)
    assert run(["pareto", "--out", str(tmp_path), "--quiet"]) == 0
    stream.flush()
    out = stream.buffer.getvalue().decode("ascii")
    assert "87.40 |" in out
    assert "*" in out


def test_progress_goes_to_stderr(capsys, tmp_path, shared_data):
    ofa = shared_data / "ofa"
    argv = ["--space", "ofa-mbv3-w1.2", "--predictor", ofa / "acc_predictor.pth", "--target", ofa / "note10", "--generations", "3"]
    assert run(["pareto", *map(str, argv), "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    assert "writing ..." in err
    assert "that none of the 400 evaluated beats" in out
    assert "top-1 (predicted)" in out
    assert "latency by table (imported)" in out


# -- what programs read ----------------------------------------------------------------------------------------


def test_json_is_one_object_and_nothing_else(capsys, tmp_path):
    assert run(["pareto", "--target", DESK, "--prefer", "top1>=86", "--json", "--out", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    record = json.loads(out)
    assert record == json.loads((tmp_path / "run" / "result.json").read_text())
    again = ofasearch.pareto(target=DESK, prefer="top1>=86", out=tmp_path / "python")
    volatile = {"files", "search_seconds"}
    assert {k: v for k, v in again.items() if k not in volatile} == {k: v for k, v in record.items() if k not in volatile}
    assert record["preferred"] == min((p for p in record["front"] if p["predicted_top1"] >= 0.86), key=lambda p: p["latency_ms"])


def test_the_run_lies_in_a_folder_of_its_own_by_default(capsys, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert run(["pareto", "--json"]) == 0
    record = json.loads(capsys.readouterr().out)
    assert record["files"]["csv"] == str(tmp_path / "runs" / "pareto-compofa-mbv3-cifar" / "front.csv")


# -- failures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "argv", "text"),
    [
        (2, "--objectives top1,latency", "latency needs a device: add --target cpu, a table, or a card's name"),
        (2, "--objectives top1", "--objectives must be top1 or lcb, then one or more of latency, macs, params, memory, but got 'top1'"),
        (2, "--objectives top1,speed", "--objectives must name top1, lcb, latency, macs, params, memory, but got 'speed'"),
        (2, "--objectives macs,top1", "--objectives must be top1 or lcb, then"),
        (2, "--prefer latency<=15ms", "latency needs a device"),
        (2, "--prefer top1<=76", "--prefer must limit top1 from below, such as top1>=76, but got 'top1<=76'"),
        (2, "--prefer macs>=3M", "--prefer must limit macs from above, such as latency<=15ms, but got 'macs>=3M'"),
        (2, "--prefer top1>=70,top1>=80", "--prefer must limit each quantity once"),
        (2, "--prefer speed<=3", "--prefer must name top1"),
        (2, "--prefer memory<=3", "--prefer memory: the unit of memory must be one of B, kB"),
        (2, "--latency 3ms", "a latency budget needs a device"),
        (2, "--flops 3parsec", "the unit of count must be one of"),
        (2, "--algorithm magic", "--algorithm must be one of exact, random"),
        (2, "--algorithm nsga2 --population 2", "population of at least 4"),
        (2, "--seed -1", "--seed must be at least 0, but got -1"),
        (2, f"--target {DESK} --target rtx2080", "there must be one --latency for each --target"),
        (1, "--target nowhere", "target must be cpu, one of"),
        (1, "--space ofa-mbv3-w1.2", "needs an accuracy predictor"),
        (3, "--flops 1M", "MACs budget must be at least 4.155 M"),
        (3, f"--target {DESK} --latency 1us", "latency budget must be at least 0."),
        (3, "--prefer top1>=95", "none of 16 does; the nearest is compofa-mbv3-cifar@r32-4-4-4-2-4 with top1 87.40 %"),
        (3, "--prefer macs<4.1M --json", "none of 16 does; the nearest is compofa-mbv3-cifar@r32-2-2-2-2-2 with macs 4.155 M"),
    ],
)
def test_what_cannot_be_answered_is_one_sentence(fails, code, argv, text):
    assert text in fails(code, *argv.split())


def test_a_folder_that_cannot_be_written_is_told_before_the_search(fails, tmp_path):
    (tmp_path / "run").write_text("a file")
    assert "must be writable" in fails(1)
