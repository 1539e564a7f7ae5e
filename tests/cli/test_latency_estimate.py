"""`latency estimate` and `transfer`: estimates say that they are, calibration counts, wrong questions are answered in one sentence."""

import json

import numpy as np
import pytest

from ofasearch.cli.main import run
from ofasearch.jobs.deliver import write_configs
from ofasearch.latency.roofline import DEVICES, FITS, Device, estimated_table, network_ms
from ofasearch.latency.table import Row, load_table, save_table
from ofasearch.space.families import get_space

SPACE = get_space("ofa-mbv3-cifar")
NET = "ofa-mbv3-cifar@r32-23333-23333-23333-23333-23333"
BLUEPRINT = SPACE.blueprint(np.array(SPACE.parse(NET).codes))
SMALL = ("--space", "ofa-mbv3-cifar")


@pytest.fixture
def answers(capsys):
    """Runs a `latency` command that must succeed with --json; gives its object."""

    def ask(*argv):
        assert run(["latency", *map(str, argv), "--json"]) == 0, capsys.readouterr().err
        return json.loads(capsys.readouterr().out)

    return ask


@pytest.fixture
def fails(capsys):
    """Runs a `latency` command that must fail with an exit code; gives its one sentence."""

    def ask(code, *argv):
        assert run(["latency", *map(str, argv)]) == code
        out, err = capsys.readouterr()
        assert out == ""
        (line,) = err.splitlines()
        return line

    return ask


def test_an_estimate_names_its_peaks_constants_and_error(answers):
    record = answers("estimate", "--device", "rtx2080", *SMALL, "--batch", 64)
    assert (record["device"], record["batch"], record["source"]) == ("rtx2080", 64, "estimated")
    assert (record["peak_tflops"], record["bandwidth_gbs"]) == (10.07, 448)
    assert "Turing" in record["origin"]
    assert "v100" in record["constants"]
    assert "too fast" in record["error"]
    assert "--calibrate" in record["advice"]
    (space,) = record["spaces"]
    assert space["fastest"]["latency_ms"] == pytest.approx(network_ms(BLUEPRINT, DEVICES["rtx2080"], 64))
    assert space["fastest"]["arch_id"] == NET
    assert space["slowest"]["latency_ms"] > space["fastest"]["latency_ms"]


def test_a_written_table_holds_every_layer_and_says_estimated(answers, tmp_path):
    record = answers("estimate", "--device", "rtx2080", *SMALL, "--space", "compofa-mbv3-w1.0", "-o", tmp_path / "t.csv")
    table = load_table(tmp_path / "t.csv")
    assert record["table"] == str(tmp_path / "t.csv")
    assert record["layers"] == len(table.rows)
    assert {row.source for row in table.rows.values()} == {"estimated"}
    for name in ("ofa-mbv3-cifar", "compofa-mbv3-cifar", "compofa-mbv3-w1.0"):
        assert table.missing(get_space(name)) == []
    assert table.card["error"] == record["error"]
    assert table.card["spaces"] == ["ofa-mbv3-cifar", "compofa-mbv3-w1.0"]


def test_without_a_space_the_published_ones_are_covered(answers, tmp_path):
    answers("estimate", "--device", "v100", "-o", tmp_path / "t.csv")
    table = load_table(tmp_path / "t.csv")
    for name in ("ofa-mbv3-w1.0", "ofa-mbv3-w1.2", "compofa-mbv3-elastic-w1.2", "compofa-mbv3-cifar"):
        assert table.missing(get_space(name)) == []


def test_one_timed_network_scales_the_table_to_itself(answers, tmp_path):
    config = write_configs(tmp_path / "a=b", BLUEPRINT)  # an equals sign in a path is no latency
    estimated = network_ms(BLUEPRINT, DEVICES["rtx2080"], 64)
    for subnet in (NET, config, config.parent):
        options = ("--batch", 64, "--calibrate", f"{subnet}={3000 * estimated}us", "-o", tmp_path / "t.csv")
        record = answers("estimate", "--device", "rtx2080", *SMALL, *options)
        assert load_table(tmp_path / "t.csv").latency_ms(BLUEPRINT) == pytest.approx(3 * estimated)
        assert record["calibration"]["slope"] == pytest.approx(3)
        assert record["calibration"]["networks"][0]["estimated_ms"] == pytest.approx(estimated)
        assert "left_out_mape" not in record["calibration"]
        assert "scaled to one network measured at batch 64" in record["error"]
        assert record["notes"] == []


def test_several_timed_networks_state_their_error(answers):
    nets = [SPACE.arch(codes).id for codes in SPACE.sample(4, np.random.default_rng(0))]
    times = [
        network_ms(SPACE.blueprint(np.array(SPACE.parse(n).codes)), DEVICES["rtx2080"], 1) * f
        for n, f in zip(nets, (2, 2.2, 1.9, 2.1), strict=True)
    ]
    options = [option for net, ms in zip(nets, times, strict=True) for option in ("--calibrate", f"{net}={ms}ms")]
    record = answers("estimate", "--device", "rtx2080", *SMALL, *options)
    assert record["calibration"]["nets"] == 4
    assert 0.01 < record["calibration"]["left_out_mape"] < 0.15
    assert f"{100 * record['calibration']['left_out_mape']:.1f} %" in record["error"]


def test_a_latency_that_cannot_be_is_questioned(answers):
    record = answers("estimate", "--device", "rtx2080", *SMALL, "--calibrate", f"{NET}=22s")
    (note,) = record["notes"]
    assert "is that for 1 images, in that unit?" in note


def test_a_device_of_ones_own_needs_only_its_peaks(answers):
    record = answers("estimate", "--device", "mycard", "--peak-tflops", 4.1, "--bandwidth", 320, "--like", "tx2", *SMALL, "--batch", 16)
    device = Device("mycard", 4.1, 320, "", "tx2")
    assert record["spaces"][0]["fastest"]["latency_ms"] == pytest.approx(network_ms(BLUEPRINT, device, 16))
    assert (record["origin"], "tx2" in record["constants"]) == ("given by the user", True)


def test_people_read_the_same(capsys):
    assert run(["latency", "estimate", "--device", "rtx2080", *SMALL, "--calibrate", f"{NET}=4ms"]) == 0
    out = capsys.readouterr().out
    for text in ("10.07 TFLOP/s", "scaled to one network", "4 ms, estimated", "fastest", NET):
        assert text in out


@pytest.mark.parametrize(
    ("code", "argv", "message"),
    [
        (1, ["--device", "rtx"], "device must be one of rtx2080"),
        (2, ["--device", "mycard", "--peak-tflops", "4"], "must be given together"),
        (2, ["--device", "mycard", "--peak-tflops", "nan", "--bandwidth", "1"], "--peak-tflops must be 1e-06 to 10000"),
        (2, ["--device", "mycard", "--peak-tflops", "4", "--bandwidth", "-1"], "--bandwidth 0.001 to 1e+06"),
        (2, ["--device", "rtx2080", "--calibrate", f"{NET}=1e12s"], "cannot be those of rtx2080 at batch 1"),
        (2, ["--device", "rtx2080", "--peak-tflops", "4", "--bandwidth", "1"], "are known; leave out"),
        (2, ["--device", "rtx2080", "--like", "abacus"], "--like must be one of"),
        (2, ["--device", "rtx2080", "--batch", "0"], "batch"),
        (1, ["--device", "rtx2080", "--space", "nowhere"], "space must be one of"),
        (2, ["--device", "rtx2080", "--calibrate", "22ms"], "must be a network and its latency"),
        (2, ["--device", "rtx2080", "--calibrate", f"{NET}=22"], "unit of latency"),
        (2, ["--device", "rtx2080", "--calibrate", f"{NET}=-2ms"], "positive number"),
        (1, ["--device", "rtx2080", "--calibrate", "no/such/net.config=2ms"], "no/such/net.config must be an existing"),
        (1, ["--device", "rtx2080", "--calibrate", "no/such=2ms"], "no/such must be an existing"),
        (2, ["--device", "rtx2080", "--calibrate", "{}=2ms"], "with --space"),
    ],
)  # fmt: skip
def test_a_wrong_question_is_answered_in_one_sentence(fails, code, argv, message):
    assert message in fails(code, "estimate", *argv)


# -- transfer --------------------------------------------------------------------------------------------------


@pytest.fixture
def few(tmp_path):
    """A table of 20 layers of a device that is three times slower than a V100."""
    known = estimated_table(SPACE, DEVICES["v100"])
    keys = list(known.rows)[::4][:20]
    rows = {key: Row(3 * known.rows[key].ms, 3 * known.rows[key].p90_ms, 10) for key in keys}
    save_table(tmp_path / "few.csv", type(known)("board", known.key, rows))
    return tmp_path / "few.csv"


def test_a_table_is_filled_in_and_says_so(answers, few, tmp_path, capsys):
    record = answers("transfer", "--from", "v100", *SMALL, "--probes", few, "-o", tmp_path / "full.csv")
    table = load_table(tmp_path / "full.csv")
    assert record["rows"] == {"measured": 20, "interpolated": len(table.rows) - 20}
    assert (table.name, table.source) == ("board", "interpolated")
    assert table.missing(SPACE) == []
    assert record["held_out_mape"] == pytest.approx(0, abs=1e-6)
    argv = ["find", "--target", str(tmp_path / "full.csv"), "--latency", "1s", "--out", str(tmp_path / "run"), "--json"]
    assert run(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["latency_source"] == "interpolated"
    assert any("interpolated from few measured layers, not measured, for batch 1: filled in from 20" in note for note in found["notes"])


def test_layers_worth_measuring_are_named(answers):
    record = answers("transfer", "--from", "v100", *SMALL, "--choose", 20)
    assert len(record["layers"]) == 20
    assert {layer["kind"] for layer in record["layers"]} == {"conv", "mbconv", "pool", "linear"}


@pytest.mark.parametrize(
    ("code", "argv", "message"),
    [
        (2, [], "either --choose, or --probes and -o"),
        (2, ["--choose", "5", "-o", "x.csv"], "either --choose, or --probes and -o"),
        (2, ["--choose", "5"], "say with --space"),
        (2, ["--choose", "0", *SMALL], "number of probes must be from 1"),
        (1, ["--probes", "absent.csv", "-o", "x.csv", *SMALL], "absent.csv must be an existing"),
    ],
)
def test_a_wrong_transfer_is_answered_in_one_sentence(fails, code, argv, message):
    assert message in fails(code, "transfer", "--from", "v100", *argv)


def test_find_says_that_it_rests_on_an_estimate(tmp_path, shared_data, capsys):
    """An ImageNet-sized search for a card that is not here, at the batch of the published measurements."""
    argv = ["find", "--target", "rtx2080", "--latency", "20ms", "--batch", "64", "--space", "ofa-mbv3-w1.2", "--generations", "20"]
    argv += ["--predictor", str(shared_data / "ofa" / "acc_predictor.pth"), "--out", str(tmp_path), "--json"]
    assert run(argv) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["latency_source"] == "estimated"
    assert found["latency_ms"] <= 20
    (note,) = [note for note in found["notes"] if "estimated from its published peaks" in note]
    assert "for batch 64" in note
    assert "30 to 48 % too fast" in note
    assert FITS["v100"].batch == 64
