"""`ofasearch latency list / show / import / export / merge / diff`: tables go in and out, and nothing hostile does."""

import json
import os
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from ofasearch import zoo
from ofasearch.cli.main import run
from ofasearch.jobs import tables as jobs
from ofasearch.latency.roofline import DEVICES, estimated_table
from ofasearch.latency.table import Correction, LatencyTable, Row, TableKey, load_table, save_table
from ofasearch.space.families import get_space

SPACE = get_space("compofa-mbv3-cifar")
VALIDATION = {"n": 20, "bias_ms": 0.01, "mape": 0.034, "kendall_tau": 0.912}


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch):
    """An empty folder to work in, and a cache of its own."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


@pytest.fixture
def answers(capsys):
    """Runs `latency` with --json; gives the one object on its stdout."""

    def check(*argv):
        assert run(["latency", *map(str, argv), "--json"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return json.loads(out)

    return check


@pytest.fixture
def says(capsys):
    """Runs `latency` for people; gives its stdout."""

    def check(*argv):
        assert run(["latency", *map(str, argv)]) == 0
        return capsys.readouterr().out

    return check


@pytest.fixture
def fails(capsys, desk):
    """Runs a `latency` command that must fail; gives its one sentence after checking that nothing was written."""

    def check(code, *argv):
        before = sorted(desk.parent.rglob("*"))
        assert run(["latency", *map(str, argv)]) == code
        out, err = capsys.readouterr()
        assert out == ""
        (sentence,) = err.splitlines()
        assert sentence.startswith("ofasearch: ")
        assert sentence.isprintable()
        assert sorted(desk.parent.rglob("*")) == before
        return sentence.removeprefix("ofasearch: ")

    return check


def table(ms=1.0, *, name="desk", source="measured", correction=None, n=50, card=None, **key):
    """A table of the small space in which every layer takes the same time."""
    rows = {shape: Row(ms, 2 * ms, n, source) for shape in estimated_table(SPACE, DEVICES["v100"]).rows}
    key = TableKey(**{"device": "desk", "runtime": "ort"} | key)
    return LatencyTable(name, key, rows, correction or Correction(), card or {})


@pytest.fixture
def note10(shared_data):
    return shared_data / "ofa" / "note10"


# -- import, and use by name -----------------------------------------------------------------------------------


def test_published_tables_become_a_target_by_name(answers, note10, shared_data, capsys):
    told = answers("import", note10, "--name", "phone", "--device", "Samsung Note10", "--runtime", "TF-Lite")
    assert (told["source"], told["rows"], told["resolutions"]) == ("imported", 480, [160, 176, 192, 208, 224])
    found = load_table(zoo.user_tables() / "phone.csv")
    assert (found.key.device, found.key.runtime, found.key.batch) == ("Samsung Note10", "TF-Lite", 1)
    assert found.card["told"] == {"device": "Samsung Note10", "runtime": "TF-Lite"}
    assert "phone" in {t["name"] for t in answers("list")["tables"]}
    predictor = shared_data / "ofa" / "acc_predictor.pth"
    command = f"find --space ofa-mbv3-w1.2 --predictor {predictor} --target phone --latency 20ms --generations 3 --out run --json"
    assert run(command.split()) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["latency_source"], answer["latency_ms"] <= 20) == ("imported", True)
    assert run([*command.split(), "--batch", "8"]) == 1
    assert "target phone must be known at batch 8, fp32 and threads 1, but its tables are of batch 1" in capsys.readouterr().err


def test_one_file_is_imported_like_a_folder(answers, note10, desk):
    told = answers("import", note10 / "160_lookup_table.yaml", "-o", "t.csv")
    assert (told["name"], told["rows"], told["resolutions"], told["table"]) == ("note10", 96, [160], str(desk / "t.csv"))


def test_a_table_of_ours_keeps_its_card_when_it_is_installed(answers, fails):
    save_table(
        Path("t.csv"), table(card={"validation": VALIDATION, "date": "2020-02-02T00:00:00+00:00"}, correction=Correction(1.1, 0.2, 9))
    )
    told = answers("import", "t.csv", "--name", "office")
    assert (told["name"], told["source"]) == ("office", "measured")
    found, was = load_table(zoo.user_tables() / "office.csv"), load_table(Path("t.csv"))
    assert (found.rows, found.correction, found.key) == (was.rows, was.correction, was.key)
    assert found.card == {**was.card, "from": "t.csv"}
    assert "--batch must go with a table that does not tell it" in fails(2, "import", "t.csv", "--name", "office", "--batch", "4")


def test_a_better_known_table_of_the_name_is_never_replaced(answers, fails, note10):
    save_table(zoo.user_tables() / "phone.csv", table(source="measured", name="phone"))
    assert "must not be replaced by imported latencies, but is measured" in fails(1, "import", note10, "--name", "phone")
    answers("import", note10, "--name", "phone", "--batch", "4")  # another batch is another file
    assert {path.name for path in zoo.user_tables().glob("*.csv")} == {"phone.csv", "phone-b4.csv"}
    answers("import", note10, "--name", "phone", "--batch", "4")  # the same again
    (zoo.user_tables() / "phone.json").write_text("{")
    answers("import", note10, "--name", "phone")  # a damaged one is no loss


@pytest.mark.parametrize(
    ("code", "argv", "text"),
    [
        (2, "import lookup", "either a file (-o T.csv) or a name (--name NAME)"),
        (2, "import lookup -o t.csv --name t", "either a file (-o T.csv) or a name (--name NAME)"),
        (2, "import lookup -o t.txt", "must be written to a file that ends in .csv, but got t.txt"),
        (2, "import lookup -o t.json", "must be written to a file that ends in .csv"),
        (2, "import lookup --name ../t", "a table's name must be up to 64 letters"),
        (2, "import lookup --name cpu", "and not be cpu or cuda, but got 'cpu'"),
        (2, "import lookup -o t.csv --batch 0", "--batch must be between 1 and 1,000,000, but got 0"),
        (2, "import lookup -o t.csv --threads 9999999", "--threads must be between 1"),
        (1, "import nowhere -o t.csv", "nowhere must be an existing file or folder, but there is none"),
        (1, "import empty -o t.csv", "must be of a known format (once-for-all lookup tables; results of a kit; a table of ofasearch)"),
        (1, "import t.bin -o t.csv", "must be of a known format"),
        (1, "import bomb.yaml -o t.csv", "bomb.yaml must "),
        (1, "import code.yaml -o t.csv", "could not determine a constructor"),
        (1, "import alone.csv -o t.csv", "alone.json must be an existing JSON file"),
        (1, "import lookup -o lookup/160_lookup_table.yaml/t.csv", "must be writable"),
        (2, "show t --resolution many", "'many' is not a valid integer"),
        (1, "show nowhere", "target must be cpu, one of"),
        (1, "export nowhere -o out", "target must be cpu, one of"),
        (1, "export v100 -o out", "the estimate of v100 must be made for a space, but none was given; add --space"),
        (2, "export lookup", "Missing option '-o'"),
        (2, "export lookup -o out --format tflite", "'tflite' is not"),
        (1, "export lookup -o out --space nothing", "space must be one of"),
        (2, "merge lookup -o t.csv", "at least two latency tables must be given to merge, but got 1"),
        (2, "merge -o t.csv", "Missing argument"),
        (2, "merge lookup lookup -o t.txt", "must be written to a file that ends in .csv"),
        (1, "diff lookup nowhere", "target must be cpu, one of"),
    ],
)  # fmt: skip
def test_what_cannot_be_done_is_one_sentence(fails, desk, code, argv, text):
    (desk / "lookup").mkdir()
    key = "Conv-input:160x160x3-output:80x80x24"
    (desk / "lookup" / "160_lookup_table.yaml").write_text(f"{key}: {{count: 3, mean: 1.0}}")
    (desk / "empty").mkdir()
    (desk / "t.bin").write_bytes(b"\0\1")
    (desk / "alone.csv").write_text("a,b\n")
    levels = ["a0: &a0 [x, x]", *(f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 12)}]" for i in range(1, 9))]
    (desk / "bomb.yaml").write_text("\n".join(levels))
    (desk / "code.yaml").write_text("!!python/object/apply:os.system ['touch ran']")
    assert text in fails(code, *argv.split())


@pytest.mark.parametrize("value", ["", " ", "two\nlines", "\x1b[2J", "x" * 201])
def test_a_device_is_one_line_of_text(fails, desk, value):
    (desk / "160_lookup_table.yaml").write_text("Conv-input:160x160x3-output:80x80x24: {count: 3, mean: 1.0}")
    assert "--device must be one line of text" in fails(2, "import", "160_lookup_table.yaml", "-o", "t.csv", "--device", value)


def test_a_reader_of_another_format_is_one_more_entry(answers, desk, monkeypatch):
    """The seam for formats to come: who knows a file first, reads it."""
    (desk / "t.kit").write_text("whatever")
    kit = jobs.Reader(lambda path: path.suffix == ".kit", lambda path: table(4.0, name=path.stem))
    monkeypatch.setattr(jobs, "READERS", {"a kit": kit, **jobs.READERS})
    assert answers("import", "t.kit", "-o", "t.csv")["name"] == "t"


# -- list and show ---------------------------------------------------------------------------------------------


def test_a_list_tells_the_key_the_source_and_the_error_of_each_table(answers, says):
    made = table(name="office", threads=2, batch=4, card={"validation": VALIDATION, "date": "2026-02-03T04:05:06+00:00"})
    save_table(zoo.user_tables() / "office-b4-t2.csv", made)
    (found,) = [t for t in answers("list")["tables"] if t["name"] == "office"]
    expected = {"source": "measured", "device": "desk", "runtime": "ort", "precision": "fp32", "batch": 4, "threads": 2, "rows": 36}
    assert expected.items() <= found.items()
    assert (found["mape"], found["kendall_tau"], found["date"]) == (0.034, 0.912, "2026-02-03T04:05:06+00:00")
    (line,) = [line for line in says("list").splitlines() if line.startswith("office")]
    assert line.split() == ["office", "desk", "ort", "fp32", "4", "2", "36", "measured", "3.4", "%", "0.912", "2026-02-03"]


def test_a_list_goes_on_past_a_damaged_table_and_names_it(answers, capsys):
    save_table(zoo.user_tables() / "good.csv", table(name="good"))
    (zoo.user_tables() / "bad.csv").write_text("a,b\n")
    (zoo.user_tables() / "bad.json").write_text('{"format": "ofasearch-latency-99"}')
    found = answers("list")
    assert "good" in {t["name"] for t in found["tables"]}
    (damaged,) = found["damaged"]
    assert damaged["name"] == "bad"
    assert "must be of format" in damaged["error"]
    assert run(["latency", "list"]) == 0
    out, err = capsys.readouterr()
    assert "good" in out
    assert "bad" not in out
    assert err.startswith("cannot be used: ")


def test_a_name_of_control_characters_reaches_no_terminal(says):
    save_table(zoo.user_tables() / "x.csv", table(name="\x1b[2Jx\ny", card={"note": "\x1b[31m", "\x07": "a\nb"}))
    for argv in (("list",), ("show", "x"), ("diff", "x", "x")):
        assert all(line.isprintable() for line in says(*argv).split("\n"))


def test_show_tells_the_card_and_the_rows(answers, says):
    rows = dict(table(1.0).rows)
    first = next(iter(rows))
    rows[first] = Row(9.0, 10.0, 0, "interpolated")
    machine = {"cpu": "EPYC", "versions": {"numpy": "2.0"}, "flags": ["a", "b"], "runs": [{}] * 12}
    card = {"validation": VALIDATION, "command": "ofasearch latency build", "fingerprint": machine}
    made = replace(table(card=card, correction=Correction(1.1, -0.2, 9)), rows=rows)
    save_table(zoo.user_tables() / "office.csv", made)
    found = answers("show", "office")
    assert (found["rows"], found["rows_by_source"], found["source"]) == (36, {"interpolated": 1, "measured": 35}, "interpolated")
    assert (found["resolutions"], found["tied_to_resolution"]) == ([32], False)
    assert found["correction"] == {"slope": 1.1, "offset_ms": -0.2, "nets": 9}
    assert (found["card"], "layers" in found) == (made.card, False)
    assert found["slowest"][0] == {"layer": "conv 32x32x3->16 k3 s2", "latency_ms": 9.0, "p90_ms": 10.0, "n": 0, "source": "interpolated"}
    assert {kind["kind"]: kind["rows"] for kind in found["kinds"]} == {"conv": 3, "mbconv": 31, "pool": 1, "linear": 1}
    assert len(answers("show", "office", "--layers")["layers"]) == 36
    lines = {tuple(line.split(maxsplit=1)) for line in says("show", "office").split("\n\n")[0].splitlines()}
    assert {
        ("correction", "1.1 * sum of rows -0.2 ms, fitted on 9 networks"),
        ("rows", "1 interpolated, 35 measured"),
        ("command", "ofasearch latency build"),
        ("validation", "n 20, bias_ms 0.01, mape 0.034, kendall_tau 0.912"),
        ("fingerprint", "cpu EPYC, flags a, b, runs 12 entries (--json shows them)"),
        ("fingerprint", "versions  numpy 2.0"),
    } <= lines


def test_show_of_one_resolution_has_only_its_rows(answers, fails, note10):
    found = answers("show", note10, "--resolution", "160", "--layers")
    assert (found["rows"], {row["resolution"] for row in found["layers"]}) == (96, {160})
    assert "--resolution must be one that table note10 knows, [160, 176" in fails(2, "show", note10, "--resolution", "100")


def test_show_of_an_estimate_tells_what_it_rests_on(answers, says):
    found = answers("show", "v100")
    assert (found["source"], found["peak_tflops"], found["bandwidth_gbs"]) == ("estimated", 15.7, 900)
    assert "rows" not in found
    assert "Tesla V100" in says("show", "v100")
    assert answers("show", "v100", "--space", "compofa-mbv3-cifar")["rows_by_source"] == {"estimated": 36}


# -- export, merge, diff ---------------------------------------------------------------------------------------


def test_published_tables_go_in_and_come_out_as_they_were(answers, note10, desk):
    answers("import", note10, "--name", "phone")
    told = answers("export", "phone", "-o", "back")
    assert told["resolutions"] == [160, 176, 192, 208, 224]
    assert "note" not in told
    for path in map(Path, told["files"]):
        ours, theirs = (yaml.safe_load(p.read_text()) for p in (path, note10 / path.name))
        assert {k: (v["mean"], v["count"]) for k, v in ours.items()} == {k: (v["mean"], v["count"]) for k, v in theirs.items()}


def test_an_export_says_what_became_of_the_correction(answers, says, desk):
    save_table(Path("t.csv"), table(correction=Correction(2.0, 0.5, 9)))
    told = answers("export", "t.csv", "-o", "out", "--space", "compofa-mbv3-cifar")
    assert told["note"] == "the correction is worked into the rows: slope 2 on all, offset 0.5 ms on Logits first"
    lut = yaml.safe_load((desk / "out" / "32_lookup_table.yaml").read_text())
    assert {key: row["mean"] for key, row in lut.items() if row["mean"] != 2.0} == {"Logits-input:1x1x640-output:10": 2.5}
    assert told["note"] in says("export", "t.csv", "-o", "again")


def test_an_estimate_is_exported_for_a_space(answers):
    assert answers("export", "v100", "-o", "out", "--space", "compofa-mbv3-cifar")["source"] == "estimated"


def test_merged_tables_are_one(answers, fails):
    rows = list(table().rows.items())
    for name, part in (("a.csv", rows[:20]), ("b.csv", rows[10:])):
        save_table(Path(name), replace(table(), rows=dict(part)))
    told = answers("merge", "a.csv", "b.csv", "-o", "both.csv")
    assert (told["name"], told["rows"], told["source"]) == ("both", 36, "measured")
    assert load_table(Path("both.csv")).rows == dict(rows)
    save_table(Path("c.csv"), table(batch=64, correction=Correction(1.5, 0.0, 9)))
    message = "tables must be of the same batch to be merged, but desk is of 1 and desk of 64"
    assert message in fails(1, "merge", "a.csv", "c.csv", "-o", "both2.csv")


def test_a_merge_says_that_corrections_were_dropped(answers):
    for n in (1, 2):
        save_table(Path(f"{n}.csv"), table(correction=Correction(1.0 + n, 0.0, 9)))
    assert "corrections differed and were dropped" in answers("merge", "1.csv", "2.csv", "-o", "both.csv")["note"]


def test_a_difference_is_told(answers, says):
    slower = table(2.0, name="slower", batch=2)
    first = next(iter(slower.rows))
    save_table(Path("b.csv"), replace(slower, rows={**slower.rows, first: Row(8.0, 8.0, 1)}))
    save_table(Path("a.csv"), table(1.0))
    found = answers("diff", "a.csv", "b.csv")
    assert (found["common"], found["median_ratio"], found["only_first"], found["only_second"]) == (36, 2.0, [], [])
    assert found["most"][0] == {"layer": "conv 32x32x3->16 k3 s2", "first_ms": 1.0, "second_ms": 8.0, "ratio": 8.0}
    assert (found["first"]["batch"], found["second"]["batch"]) == (1, 2)
    assert "kendall_tau" not in found  # all of the first are equal
    text = says("diff", "a.csv", "b.csv")
    assert "desk (desk, ort, batch 1, measured)" in text
    assert "median 2, p10 2, p90 2" in text


def test_a_table_is_compared_with_the_estimate_of_a_card(answers):
    save_table(Path("a.csv"), table(1.0))
    found = answers("diff", "a.csv", "v100", "--space", "compofa-mbv3-cifar")
    assert (found["second"]["source"], found["second"]["batch"], found["common"]) == ("estimated", 1, 36)
    save_table(Path("b64.csv"), table(1.0, batch=64))
    assert answers("diff", "v100", "b64.csv", "--space", "compofa-mbv3-cifar")["first"]["batch"] == 64


def test_a_full_disk_is_one_sentence_and_leaves_what_was_there(fails, desk, monkeypatch, capsys):
    (desk / "160_lookup_table.yaml").write_text("Conv-input:160x160x3-output:80x80x24: {count: 3, mean: 1.0}")
    assert run(["latency", "import", "160_lookup_table.yaml", "-o", "t.csv"]) == 0
    before = load_table(Path("t.csv"))
    capsys.readouterr()
    (desk / "out").mkdir()

    def full(_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    (desk / "160_lookup_table.yaml").write_text("Conv-input:160x160x3-output:80x80x24: {count: 3, mean: 2.0}")
    for argv in ("import 160_lookup_table.yaml -o t.csv", "export t.csv -o out", "merge t.csv t.csv -o t.csv"):
        assert "must be writable, but it is not (No space left on device)" in fails(1, *argv.split())
    assert load_table(Path("t.csv")) == before
