"""`ofasearch latency kit` and `latency import` of what comes back."""

import hashlib
import json
import os
from pathlib import Path

import pytest

from ofasearch.cli.main import run
from ofasearch.deploy import kit_measure
from ofasearch.jobs import latency
from ofasearch.latency.table import load_table
from ofasearch.space.families import get_space

SPACE = get_space("compofa-mbv3-cifar").with_resolutions([24, 32])


@pytest.fixture(autouse=True)
def desk(tmp_path, monkeypatch):
    """An empty folder to work in, a cache of its own, and few networks."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(latency, "FIT_NETS", 2)
    monkeypatch.setattr(latency, "CHECK_NETS", 2)
    (tmp_path / "desk").mkdir()
    monkeypatch.chdir(tmp_path / "desk")
    return tmp_path / "desk"


@pytest.fixture
def ofasearch(capsys):
    """Runs a command; gives its exit code, output and errors."""

    def call(*argv):
        code = run([str(a) for a in argv])
        return code, *capsys.readouterr()

    return call


@pytest.fixture
def measured(desk, ofasearch):
    """A kit with results of an invented device on which every layer takes a millisecond."""
    assert ofasearch("latency", "kit", "--space", SPACE.name, "--resolutions", "24,32", "-o", "kit", "--quiet")[0] == 0
    text = (desk / "kit" / "manifest.json").read_bytes()
    told = {"format": kit_measure.RESULTS_FORMAT, "kit": hashlib.sha256(text).hexdigest(), "device": "board", "precision": "fp32"}
    records = [told | {"runtime": "onnxruntime 1.2.3 cpu", "batch": 1, "threads": 1}]
    for name, entry in json.loads(text)["networks"].items():
        if entry["role"] == "reference":
            continue
        n = len(entry["layers"])
        times = dict.fromkeys(("p50", "p90", "p95", "p99", "mean", "std", "low", "high", "raw_p50"), float(n))
        records.append(times | {"n": 30, "disturbed": 0.0, "name": name, "shares": [1 / n] * n})
    (desk / "kit" / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return desk / "kit"


def test_a_kit_is_written_with_the_three_commands_that_its_user_needs(desk, ofasearch):
    code, out, err = ofasearch("latency", "kit", "--space", SPACE.name, "--resolutions", "24,32", "--threads", 2, "-o", "kit")
    assert (code, err) == (0, "writing networks ...\n")
    for command in ("scp -r kit DEVICE:kit", "python3 kit/measure.py", "ofasearch latency import kit --name DEVICE"):
        assert command in out
    plan = latency.plan_networks(SPACE)
    assert f"{len(plan.probes) + 4}: {len(plan.probes)} hold every layer, 2 refine, 2 check" in out
    assert json.loads((desk / "kit" / "manifest.json").read_text())["threads"] == 2
    assert (desk / "kit" / "measure.py").read_text() == Path(kit_measure.__file__).read_text()


def test_json_is_one_object(desk, ofasearch):
    code, out, err = ofasearch("latency", "kit", "--space", SPACE.name, "--resolutions", "24,32", "-o", "kit", "--quiet", "--json")
    assert (code, err) == (0, "")
    record = json.loads(out)
    assert record["kit"] == str(desk / "kit")
    assert record["bytes"] == sum(path.stat().st_size for path in (desk / "kit").rglob("*") if path.is_file())
    assert set(record["networks"]) == {"probes", "fit", "check"}


@pytest.mark.parametrize(
    ("code", "argv", "text"),
    [
        (2, "kit --space compofa-mbv3-cifar", "Missing option '-o'"),
        (2, "kit -o kit", "Missing option '--space'"),
        (1, "kit --space nowhere -o kit", "space must be one of"),
        (2, "kit --space compofa-mbv3-cifar -o kit --batch 0", "--batch must be 1..4096"),
        (2, "kit --space compofa-mbv3-cifar -o kit --threads 9999", "and --threads 1..1024, but got 1 and 9999"),
        (2, "kit --space compofa-mbv3-cifar -o kit --resolutions many", "must be sizes"),
        (1, "kit --space compofa-mbv3-cifar -o file/kit", "must be writable"),
        (1, "import broken -o t.csv", "results.jsonl must be there, but is not; run measure.py of the kit on the device"),
    ],
)
def test_what_cannot_be_done_is_one_sentence(desk, ofasearch, code, argv, text):
    (desk / "file").touch()
    (desk / "broken").mkdir()
    (desk / "broken" / "manifest.json").write_text("{}")
    found, out, err = ofasearch("latency", *argv.split(), "--quiet" if argv.startswith("kit") else "--json")
    assert (found, out) == (code, "")
    assert text in err
    assert err.count("\n") == 1


def test_results_are_imported_as_a_measured_table(measured, desk, ofasearch):
    code, out, _ = ofasearch("latency", "import", "kit", "-o", "t.csv")
    assert code == 0
    assert "check" in out
    assert "on 2 other networks: bias" in out
    table = load_table(desk / "t.csv")
    assert (table.name, table.key.device, table.source) == ("board", "board", "measured")
    assert not table.missing(SPACE)
    assert all(row.ms == pytest.approx(1.0) for row in table.rows.values())
    assert ofasearch("latency", "show", "t.csv")[0] == 0


def test_an_imported_kit_is_a_target_by_name(measured, ofasearch):
    assert ofasearch("latency", "import", "kit/results.jsonl", "--name", "phone", "--device", "My Phone")[0] == 0
    code, out, _ = ofasearch("latency", "list", "--json")
    assert code == 0
    (found,) = [table for table in json.loads(out)["tables"] if table["name"] == "phone"]
    assert (found["device"], found["source"]) == ("My Phone", "measured")


def test_a_device_may_be_renamed_but_not_what_it_ran(measured, ofasearch):
    code, _, err = ofasearch("latency", "import", "kit", "-o", "t.csv", "--threads", "4")
    assert (code, err.count("\n")) == (2, 1)
    assert "--threads must go with a table that does not tell it" in err


def test_results_may_lie_outside_of_their_kit(measured, desk, ofasearch):
    (measured / "results.jsonl").rename(desk / "phone.jsonl")
    assert "add --kit FOLDER" in ofasearch("latency", "import", "phone.jsonl", "-o", "t.csv")[2]
    code, out, err = ofasearch("latency", "import", "phone.jsonl", "--kit", "kit", "-o", "t.csv", "--json")
    assert (code, err) == (0, "")
    assert json.loads(out)["device"] == "board"
    ofasearch("latency", "kit", "--space", SPACE.name, "--resolutions", "24", "-o", "other", "--quiet")
    assert "was measured with another" in ofasearch("latency", "import", "phone.jsonl", "--kit", "other", "-o", "t.csv")[2]


@pytest.mark.parametrize("notes", [7, {"a": 1}, [1, {"b": 2}], "text", None])
def test_notes_of_a_foreign_card_do_no_harm(measured, desk, ofasearch, notes):
    ofasearch("latency", "import", "kit", "-o", "t.csv")
    card = json.loads((desk / "t.json").read_text())
    card["card"]["notes"] = notes
    (desk / "t.json").write_text(json.dumps(card))
    assert ofasearch("latency", "import", "t.csv", "-o", "u.csv")[0] == 0


def test_incomplete_results_say_so(measured, ofasearch):
    lines = (measured / "results.jsonl").read_text().splitlines()
    (measured / "results.jsonl").write_text("\n".join(lines[:-1]) + "\n")
    code, out, _ = ofasearch("latency", "import", "kit", "-o", "t.csv")
    assert code == 0
    assert "note: made of " in out
