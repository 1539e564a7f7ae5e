"""`latency build`, `validate` and `check` on a pretended device: what is said, in words and JSON, and what is refused when."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from pretended import KEY, Device, layer_ms

from ofasearch import zoo
from ofasearch.cli.main import run
from ofasearch.errors import UsageError, WriteError
from ofasearch.jobs import latency as job
from ofasearch.latency.memory import NETS, Memory
from ofasearch.latency.table import load_table, save_table
from ofasearch.report.latency import plot_validation
from ofasearch.space.families import DESIGNS

BUILD = ("latency", "build", "--space", "tiny", "-o")


@pytest.fixture(autouse=True)
def device(monkeypatch, tmp_path, tiny_design):
    """The tiny space by name, a pretended machine, an empty cache, and the working folder of one test."""
    monkeypatch.setitem(DESIGNS, "tiny", tiny_design)
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr("ofasearch.latency.machine.system_load", lambda: 0.0)
    for name, number in (("SMALL_FIT_NETS", 12), ("FIT_NETS", 12), ("CHECK_NETS", 10)):
        monkeypatch.setattr(job, name, number)
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    return Device().pretend(monkeypatch)


@pytest.fixture
def says(capsys):
    """Runs a command; its exit code, what it says and what it says beside."""

    def check(*argv):
        capsys.readouterr()
        return run([str(a) for a in argv]), *capsys.readouterr()

    return check


@pytest.fixture
def table(says):
    """A table of the pretended machine."""
    assert says(*BUILD, "t.csv", "--quiet")[0] == 0
    return load_table_here("t.csv")


def load_table_here(name):
    return load_table(Path(name))


def sentence(err):
    """The one sentence of a failure, after progress."""
    (line,) = [line for line in err.splitlines() if line and not line.endswith(" ...")]
    assert line.startswith("ofasearch: ")
    return line.removeprefix("ofasearch: ")


def here():
    return sorted(path.name for path in Path().iterdir())


# -- build -------------------------------------------------------------------------------------------------------


def test_a_table_is_built_and_told(says, device):
    code, out, err = says(*BUILD, "t.csv")
    assert code == 0
    lines = dict(line.split(None, 1) for line in out.splitlines())
    assert lines["table"] == str(Path("t.csv").absolute())
    assert lines["device"] == "pretended, onnxruntime 0 cpu, fp32, batch 1, threads 1"
    assert lines["layers"].endswith(" networks, 0 interpolated")
    assert lines["check"].startswith("on 10 other networks: bias +0.0000 ms, MAPE 0.0 %, Kendall tau 1.000")
    assert err == "measuring cpu ...\n"
    assert here() == ["t.csv", "t.json"]
    table = load_table_here("t.csv")
    assert (table.name, table.source, table.key) == ("t", "measured", KEY)


def test_json_is_one_object_and_nothing_else(says):
    code, out, err = says(*BUILD, "t.csv", "--json", "--quiet")
    record = json.loads(out)
    assert (code, err) == (0, "")
    assert record["table"] == str(Path("t.csv").absolute())
    assert record["rows"] == {"measured": len(load_table_here("t.csv").rows), "interpolated": 0}
    assert record["validation"]["n"] == 10
    assert (record["device"], record["runtime"], record["notes"]) == ("pretended", "onnxruntime 0 cpu", [])


def test_a_second_build_measures_nothing_unless_asked(says, device):
    says(*BUILD, "t.csv")
    first = load_table_here("t.csv").rows
    device.loaded.clear()
    assert says(*BUILD, "sub/folder/u.csv")[0] == 0
    assert device.loaded == []
    assert load_table_here("sub/folder/u.csv").rows == first
    says(*BUILD, "t.csv", "--fresh")
    assert len(device.loaded) > 20


def test_resolutions_widen_and_narrow_what_is_measured(says, device):
    assert says(*BUILD, "t.csv", "--resolutions", "16,24", "--quiet")[0] == 0
    table = load_table_here("t.csv")
    assert table.card["resolutions"] == [16, 24]
    assert "--resolutions 16,24" in table.card["command"]


def test_a_busy_machine_is_told_before_it_is_measured(says, monkeypatch):
    monkeypatch.setattr("ofasearch.latency.machine.system_load", lambda: 1000.0)
    code, _, err = says(*BUILD, "t.csv")
    assert code == 0
    assert err.splitlines()[0].startswith("the machine is busy (load 1000.0 on ")


def test_notes_of_a_disturbed_machine_are_told(says, device):
    says(*BUILD, "t.csv")
    device.pace = 1.6
    code, out, _ = says("latency", "build", "--space", "tiny", "--resolutions", "16", "-o", "u.csv")
    assert code == 0
    assert "\nnote " not in out  # another reference network, which sets a level of its own
    (Memory(KEY).folder / NETS).unlink()  # as if none of the networks had been measured, the level known
    code, out, _ = says(*BUILD, "t.csv")
    assert code == 0
    assert "the machine ran at 62 % of the speed at which it was first measured" in out


@pytest.mark.parametrize(
    ("code", "argv", "text"),
    [
        (1, "latency build --space nowhere -o t.csv", "space must be one of"),
        (2, "latency build --space tiny --resolutions 7,32 -o t.csv", "must be sizes of at least 8 pixels separated by commas"),
        (1, "latency build --space tiny --resolutions 100000 -o t.csv", "resolutions must be at most"),
        (2, "latency build --space tiny", "-o"),
        (2, "latency build -o t.csv", "--space"),
        (2, "latency build --space tiny -o t.json", "-o must be a CSV file, such as t.csv, but got 't.json'"),
        (2, "latency build --space tiny -o t", "-o must be a CSV file, such as t.csv, but got 't'"),
        (2, "latency build --space tiny --runtime tvm -o t.csv", "'tvm' is not one of"),
        (1, "latency build --space tiny -o file/t.csv", "file/t.csv must be writable, but it is not (Not a directory)"),
        (1, "latency build --space tiny -o folder.csv", "folder.csv must be writable, but it is not (Is a directory)"),
    ],
)
def test_what_cannot_be_built_is_refused_before_anything_is_measured(says, device, tmp_path, code, argv, text):
    (tmp_path / "desk" / "file").touch()
    (tmp_path / "desk" / "folder.csv").mkdir()
    before = here()
    got, out, err = says(*argv.split())
    assert (got, out) == (code, "")
    assert text in sentence(err)
    assert device.loaded == []
    assert here() == before


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ("--precision fp16", "--precision must be one of fp32, int8 with --runtime ort on cpu, but got 'fp16'"),
        ("--runtime torch --precision int8", "--precision must be one of fp32 with --runtime torch on cpu, but got 'int8'"),
        ("--batch 0", "--batch must be 1..4096"),
        ("--threads 100000", "--threads 1..1024"),
    ],
)
def test_what_no_runtime_does_is_refused(monkeypatch, argv, text):
    monkeypatch.undo()
    done = subprocess.run(
        [sys.executable, "-m", "ofasearch", "latency", "build", "--space", "compofa-mbv3-cifar", *argv.split(), "-o", "t.csv"],
        capture_output=True, text=True, check=False, cwd="/",
    )  # fmt: skip
    assert (done.returncode, done.stdout) == (2, "")
    assert text in sentence(done.stderr)


def test_a_folder_without_permission_is_told_at_once(tmp_path):
    """As a user who is not root, on the real machine: it must not be measured for minutes first."""
    code = (
        "import ctypes, os, sys\n"
        "assert os.geteuid() or ctypes.CDLL(None).prctl(24, 1, 0, 0, 0) == 0\n"
        "os.execv(sys.executable, [sys.executable, *sys.argv[1:]])\n"
    )
    (tmp_path / "locked").mkdir(mode=0o555)
    build = ("-m", "ofasearch", "latency", "build", "--space", "compofa-mbv3-cifar", "-o", str(tmp_path / "locked" / "new" / "t.csv"))
    done = subprocess.run([sys.executable, "-c", code, *build], capture_output=True, text=True, check=False, timeout=60)
    assert (done.returncode, done.stdout) == (1, "")
    assert "t.csv must be writable, but it is not (Permission denied); choose another folder" in sentence(done.stderr)
    assert list((tmp_path / "locked").iterdir()) == []
    assert not (tmp_path / "cache" / "latency").exists()


def test_ctrl_c_keeps_what_was_measured_and_says_so(says, device):
    device.stop_at = 15
    code, out, err = says(*BUILD, "t.csv")
    assert (code, out) == (130, "")
    assert "interrupted; what was measured or checkpointed is kept, run the command again to go on" in sentence(err)
    assert here() == []
    kept = Memory(KEY).networks()
    assert len(kept) >= 8
    device.stop_at = None
    device.loaded.clear()
    assert says(*BUILD, "t.csv")[0] == 0
    assert not kept.keys() & set(device.loaded[1:])


def test_a_disk_that_fills_up_meanwhile_costs_no_measurement(says, device, monkeypatch):
    def full(path, table):
        raise WriteError(f"{path} must be writable, but it is not (No space left on device); choose another folder")

    with monkeypatch.context() as patch:
        patch.setattr("ofasearch.latency.table.save_table", full)
        code, out, err = says(*BUILD, "t.csv")
    assert (code, out) == (1, "")
    assert "No space left on device" in sentence(err)
    device.loaded.clear()
    assert says(*BUILD, "t.csv")[0] == 0
    assert device.loaded == []


# -- validate ----------------------------------------------------------------------------------------------------


def test_a_validation_is_told_stored_and_drawn(says, table):
    code, out, err = says("latency", "validate", "t.csv", "--nets", 8)
    assert code == 0
    assert "as it was" in out
    assert "Kendall tau 1.000, on 8 networks" in out
    assert str(Path("t-validation.svg").absolute()) in out
    assert "layers that differ most" in out
    assert err == "timing networks ...\n"
    assert here() == ["t-validation.svg", "t.csv", "t.json"]
    assert load_table_here("t.csv").card["validation"]["n"] == 8
    assert load_table_here("t.csv").rows == table.rows


def test_a_correction_is_told_and_stored(says, table, device):
    ms = device.ms
    device.ms = lambda blueprint: 0.02 + 1.2 * ms(blueprint)
    Memory(KEY).forget()
    code, out, _ = says("latency", "validate", "t.csv", "--nets", 8, "--no-store", "--json", "--quiet")
    record = json.loads(out)
    assert (code, record["stored"]) == (0, False)
    assert record["mape"] > 0.1
    assert record["after_correction"]["mape"] < 0.01
    assert record["correction"][0] == pytest.approx(1.2, rel=0.05)
    assert len(record["networks"]) == 8
    assert load_table_here("t.csv").correction == table.correction
    code, out, _ = says("latency", "validate", "t.csv", "--nets", 8)
    assert "(each left out in turn)" in out
    assert load_table_here("t.csv").correction.slope == pytest.approx(record["correction"][0])


@pytest.mark.parametrize("plot", ["p.png", "p.SVG", "sub/p.pdf"])
def test_a_picture_is_drawn_where_it_is_asked_for(says, table, plot):
    assert says("latency", "validate", "t.csv", "--nets", 6, "--plot", plot)[0] == 0
    assert Path(plot).stat().st_size > 1000
    assert not Path("t-validation.svg").exists()


@pytest.mark.parametrize("plot", ["p.xyz", "p", "p.csv", "p.pgf", ".svg"])
def test_a_picture_that_cannot_be_drawn_is_refused_before_anything_is_measured(says, table, device, plot):
    device.loaded.clear()
    code, out, err = says("latency", "validate", "t.csv", "--plot", plot)
    assert (code, out) == (2, "")
    assert f"--plot must be a picture such as plot.svg or plot.png, but got '{plot}'" in sentence(err)
    assert device.loaded == []


def test_a_picture_in_a_file_is_refused_before_anything_is_measured(says, table, device):
    device.loaded.clear()
    code, _, err = says("latency", "validate", "t.csv", "--plot", "t.csv/p.svg")
    assert code == 1
    assert "t.csv/p.svg must be writable, but it is not (Not a directory)" in sentence(err)
    assert device.loaded == []


def test_a_shipped_table_is_never_written(says, table, monkeypatch, tmp_path):
    rooms = tmp_path / "shipped" / "latency_tables"
    rooms.mkdir(parents=True)
    save_table(rooms / "desk.csv", table)
    monkeypatch.setattr(zoo, "_shipped", lambda room: tmp_path / "shipped" / room)
    before = {path.name: path.read_bytes() for path in rooms.iterdir()}
    code, out, _ = says("latency", "validate", "desk", "--nets", 6, "--json", "--quiet")
    assert (code, json.loads(out)["stored"]) == (0, False)
    assert {path.name: path.read_bytes() for path in rooms.iterdir()} == before
    assert here() == ["t.csv", "t.json"]  # and no picture


@pytest.mark.parametrize("command", ["validate", "check"])
def test_a_table_of_another_machine_is_refused(says, table, device, command):
    save_table(Path("other.csv"), replace(table, key=replace(KEY, device="laptop", batch=1)))
    device.loaded.clear()
    code, out, err = says("latency", command, "other.csv")
    assert (code, out) == (1, "")
    assert "differs: device 'laptop' there, 'pretended' here" in sentence(err)
    assert device.loaded == []


@pytest.mark.parametrize("command", ["validate", "check"])
def test_a_table_that_names_no_space_needs_one(says, table, command):
    save_table(Path("bare.csv"), replace(table, card={}))
    code, out, err = says("latency", command, "bare.csv")
    assert (code, out) == (2, "")
    assert "table t does not say for which space it was built; add --space" in sentence(err)
    assert says("latency", command, "bare.csv", "--space", "tiny")[0] == 0
    code, _, err = says("latency", command, "bare.csv", "--space", "compofa-mbv3-cifar")
    assert code == 1
    assert "latency table t must hold every layer, but lacks" in sentence(err)


@pytest.mark.parametrize(
    ("code", "argv", "text"),
    [
        (1, "latency validate nowhere", "nowhere"),
        (1, "latency check nowhere", "nowhere"),
        (2, "latency validate t.csv --nets 3", "--nets must be between 5 and 4000, but got 3"),
        (2, "latency validate t.csv --nets 3000", "--nets must leave networks that had no part in the table"),
        (2, "latency validate t.csv --nets many", "is not a valid integer"),
        (1, "latency validate t.csv --space nowhere", "space must be one of"),
        (1, "latency check t.json", "t.json"),
        (1, "latency check rtx2080", "the estimate of rtx2080"),
    ],
)
def test_what_cannot_be_compared_is_refused(says, table, device, code, argv, text):
    device.loaded.clear()
    got, out, err = says(*argv.split())
    assert (got, out) == (code, "")
    assert text in sentence(err)
    assert device.loaded == []


def test_negative_seeds_are_refused(says, table):
    code, out, err = says("latency", "validate", "t.csv", "--seed", -1)
    assert (code, out) == (2, "")
    assert "seed" in sentence(err)


# -- check -------------------------------------------------------------------------------------------------------


def test_a_table_that_holds_is_told(says, table):
    code, out, err = says("latency", "check", "t.csv")
    assert (code, err) == (0, "")
    assert out.count("+0 %") + out.count("-0 %") >= 4
    assert "the whole network" in out
    assert out.endswith("the table holds: the machine runs at 100 % of the speed at which it was built\n")


def test_a_stale_table_is_told_with_exit_code_1(says, table, device):
    device.pace = 1.3
    code, out, err = says("latency", "check", "t.csv")
    assert code == 1
    assert "the whole network" in out
    assert "the table holds" not in out
    assert err.splitlines()[-1] == (
        "ofasearch: table t is stale: the machine runs at 77 % of the speed at which the table was built; build it anew with --fresh"
    )
    code, out, _ = says("latency", "check", "t.csv", "--json")
    record = json.loads(out)
    assert (code, record["stale"]) == (1, True)
    assert record["why"] == "the machine runs at 77 % of the speed at which the table was built"
    assert record["speed"] == pytest.approx(1 / 1.3)
    assert len(record["layers"]) == 5


def test_a_check_without_shares_tells_the_whole_network(says, table, device):
    device.tells_layers = False
    code, out, _ = says("latency", "check", "t.csv")
    assert code == 0
    assert "the whole network" in out


# -- the picture -------------------------------------------------------------------------------------------------


def test_the_picture_names_its_axes(tmp_path):
    plot_validation([1.0, 2.0], [1.1, 1.9], [32, 64], tmp_path / "p.svg", title="a title")
    text = (tmp_path / "p.svg").read_text()
    for words in ("a title", "latency by the table (ms)", "measured end to end (ms)", "input size (pixels)"):
        assert f"<!-- {words} -->" in text
    with pytest.raises(UsageError, match="--plot must be a picture"):
        plot_validation([1.0], [1.0], [32], tmp_path / "p.txt", title="t")


def test_layers_are_paid_by_their_work(tiny_space):
    """What these tests rest on: the pretended machine is additive."""
    network = tiny_space.blueprint(tiny_space.largest())
    assert Device().ms(network) == pytest.approx(np.sum([layer_ms(spec) for spec in network]))
