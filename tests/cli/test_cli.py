"""The command line: every failure is one sentence and its exit code, JSON is JSON alone, and --help answers at once."""

import io
import json
import os
import pickle
import subprocess
import sys
import time
from dataclasses import replace

import click
import pytest
import torch

from ofasearch import zoo
from ofasearch.cli import show
from ofasearch.cli.main import COMMANDS, cli, run
from ofasearch.cli.units import COUNT, LATENCY, MEMORY, NUMBERS
from ofasearch.errors import OfaSearchError
from ofasearch.jobs import find as find_job
from ofasearch.jobs.searching import ALGORITHMS
from ofasearch.latency.roofline import DEVICES, estimated_table
from ofasearch.latency.table import save_table
from ofasearch.space.families import DESIGNS, get_space

ARCH = "compofa-mbv3-cifar@r32-2-3-2-4-2"
HEAVY = ("torch", "pandas", "onnx", "onnxruntime", "scipy", "sklearn", "pymoo", "numpy")


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Nothing here has to survive a power cut, a proof on 16 images is one, and the shipped supernet is read once."""
    found, load = zoo.load_supernet(zoo.DEFAULT_SUPERNET), zoo.load_supernet
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr("ofasearch.jobs.deliver.CHECK_IMAGES", 16)
        patch.setattr(zoo, "load_supernet", lambda name: found if name == zoo.DEFAULT_SUPERNET else load(name))
        yield


@pytest.fixture
def fails(capsys):
    """Runs a command that must fail; gives its one sentence after checking that it is one."""

    def check(code, *argv):
        assert run([str(a) for a in argv]) == code
        out, err = capsys.readouterr()
        assert out == ""
        lines = [line for line in err.splitlines() if line and not line.endswith(" ...")]  # progress may come before
        assert len(lines) == 1, err
        assert lines[0].startswith("ofasearch: ")
        assert "Traceback" not in err
        return lines[0].removeprefix("ofasearch: ")

    return check


@pytest.fixture
def answers(capsys):
    """Runs a command that must succeed with --json; gives the one object on its stdout."""

    def check(*argv):
        assert run([*map(str, argv), "--json"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        record = json.loads(out)
        assert isinstance(record, dict)
        return record

    return check


# -- failures --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "argv", "text"),
    [
        (3, "find --flops 1M", "MACs budget must be at least 4.155 M"),
        (3, "find --target rtx2080 --latency 1us", "latency budget must be at least 2."),
        (3, "find --flops 5M --params 1k", "parameter budget must be at least"),
        (3, "find --target rtx2080 --latency 20ms --target v100 --latency 1us", "v100 latency budget must be at least"),
        (1, "find --target nowhere --latency 20ms", "target must be cpu, one of"),
        (1, "find --target rtx2080 --latency 20ms --target nowhere --latency 20ms", "target must be cpu, one of"),
        (1, "replay nowhere", "nowhere must be the folder of a search, but holds no run.json"),
        (2, "latency build --space compofa-mbv3-cifar --threads -1 -o t.csv", "--threads 1..1024, but got 1 and -1"),
        (2, "find --target cpu --latency 1ms --batch 1000000", "--batch must be 1..4096"),
        (1, "find --space nowhere --flops 3M", "space must be one of ofa-mbv3-w1.0"),
        (1, "find --supernet nowhere --flops 3M", "supernet must be one of cifar10-compofa"),
        (1, "find --predictor nowhere --flops 8M", "predictor must be one of"),
        (1, "find --space ofa-mbv3-w1.2 --flops 300M", "needs an accuracy predictor"),
        (1, "find --flops 8M --data nowhere", "data must be 'digits'"),
        (1, f"eval {ARCH} --data nowhere", "data must be 'digits'"),
        (1, f"eval {ARCH}-9 --data digits", "an arch id of compofa-mbv3-cifar must have 5 stages"),
        (1, "bench nowhere.onnx", "must be an existing ONNX file"),
        (1, "inspect nowhere.pt", "must be an existing file"),
        (1, "bench nowhere/subnet.pt", "must be an existing file, a subnet.pt"),
        (2, f"export {ARCH} -o m.onnx --opset 6", "--opset must be 7 to 26, but got 6"),
        (2, f"export {ARCH} -o m.onnx --opset x", "'x' is not a valid integer"),
        (2, f"export {ARCH} -o m.onnx --batch 0", "--batch must be 1..4096, but got 0"),
        (2, f"export {ARCH} -o m.onnx --input-name a.b", "--input-name must be letters, digits and underscores"),
        (2, f"export {ARCH} -o m.onnx --output-name input", "must differ, but both are 'input'"),
        (2, f"export {ARCH} -o m.md", "-o must be an ONNX file such as model.onnx, but got 'm.md'"),
        (2, f"bench {ARCH} --against jax", "--against must be of torch, torch-compile, but got 'jax'"),
        (2, f"bench {ARCH} --threads 0", "--threads 1..1024"),
        (2, f"bench {ARCH} --batch 1,x", "must be whole numbers separated by commas"),
        (1, "space cost {} --space ofa-mbv3-cifar", "must hold integers ks, e, d and r"),
        (1, "space sample nowhere", "space must be one of"),
        (1, "latency build --space nowhere -o t.csv", "space must be one of"),
        (1, "predictor predict nowhere x@r1", "predictor must be one of"),
        (1, "supernet evaluate nowhere --data digits", "supernet must be one of"),
        (2, "find", "at least one budget must be given"),
        (2, "find --latency 20ms", "a latency budget needs a device"),
        (2, "find --target cpu --latency 1ms --latency 2ms", "one --latency for each --target, in the same order, but got 2 and 1"),
        (2, "find --target rtx2080 --target v100 --latency 1ms", "one --latency for each --target, in the same order, but got 1 and 2"),
        (2, "find --target rtx2080 --target v100 --flops 8M", "one --latency for each --target, in the same order, but got 0 and 2"),
        (2, "find --target v100 --latency 1ms --target v100 --latency 2ms", "each target must be given once, but v100 is given 2 times"),
        (2, "find --target cpu --latency 1ms --target cuda --latency 2ms", "one target at most can be this machine"),
        (2, "find --target v100 --latency 20ms --target rtx2080 --latency nanms", "latency must be a positive number"),
        (2, "find --flops 8M --objective measured", "--objective measured evaluates networks: it needs --data with labels"),
        (2, "find --space ofa-mbv3-w1.2 --flops 300M --objective lcb", "--objective lcb needs a predictor that carries error bars"),
        (2, "find --flops 8M --algorithm nsga2", "'nsga2' is not one of"),
        (2, "find --flops 8M --objective best", "'best' is not one of"),
        (2, "find --flops 8M --images 100", "say how many images of --data are used; add --data"),
        (2, "find --flops 8M --data digits --images 0", "--images must be at least 1, but got 0"),
        (2, "find --flops 8M --data digits --calibration-images 1", "--calibration-images must be at least 8, but got 1"),
        (2, "find --flops 8M --population 1000000000000", "--population must be at most 1,000,000"),
        (2, "find --flops 8M --population 3", "a population of at least 4"),
        (2, "find --flops 8M --top-k 1000000000000", "--top-k must be 1..10000"),
        (2, "replay", "Missing argument 'RUN'"),
        (2, "find --target cpu --latency 20", "the unit of latency must be one of us, µs, ms, s (such as 20ms), but got '20'"),
        (2, "find --target cpu --latency 20parsec", "the unit of latency must be one of"),
        (2, "find --target cpu --latency -3ms", "latency must be a positive number with a unit, such as 20ms, but got '-3ms'"),
        (2, "find --target cpu --latency 0ms", "latency must be positive"),
        (2, "find --target cpu --latency nanms", "latency must be a positive number"),
        (2, "find --flops 3MB", "the unit of count must be one of no unit, k"),
        (2, "find --memory 3M", "the unit of memory must be one of B, kB"),
        (2, "find --flops 8M --resolutions big", "must be sizes of at least 8 pixels separated by commas"),
        (2, "find --flops 8M --batch 0", "--batch must be 1..4096 and --threads 1..1024, but got 0 and 1"),
        (2, "find --flops 8M --precision int3", "--runtime and --precision are those of a device: add --target cpu or cuda"),
        (2, "find --target cpu --latency 1ms --precision int3", "--precision must be one of fp32, int8"),
        (2, "find --flops 8M --generations -1", "generations of at least 0"),
        (2, "find --flops 8M --top-k 0", "--top-k"),
        (2, "find --flops 8M --seed -1", "--seed"),
        (2, "find --flops 8M --nonsense", "No such option '--nonsense'"),
        (2, "nonsense", "No such command 'nonsense'"),
        (2, "space nonsense", "No such command 'nonsense'"),
        (2, "space sample ofa-mbv3-cifar -n -1", "-n must be at least 1"),
        (2, "predictor fit --supernet cifar10-compofa -o p.safetensors --seed -1", "--seed"),
        (2, "eval", "Missing argument 'SUBNET'"),
        (2, "eval x", "Missing option '--data'"),
        (2, "predictor fit -o p.safetensors", "a fit must be given --space with --pairs, --supernet with --pairs, or --supernet alone"),
    ],
)  # fmt: skip
def test_a_failure_is_one_sentence_and_its_exit_code(fails, tmp_path, monkeypatch, code, argv, text):
    monkeypatch.chdir(tmp_path)
    assert text in fails(code, *argv.split())
    assert list(tmp_path.iterdir()) == []  # and no half a result


def test_a_command_alone_shows_its_help(capsys):
    assert run([]) in (0, 2)
    out, err = capsys.readouterr()
    assert (out + err).startswith("Usage: ofasearch")
    assert "Traceback" not in err


class Bomb:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


def test_a_truncated_predictor_is_refused(fails, shared_data, tmp_path):
    path = tmp_path / "acc_predictor.pth"
    path.write_bytes((shared_data / "ofa" / "acc_predictor.pth").read_bytes()[:20000])
    question = ("find", "--space", "ofa-mbv3-w1.2", "--flops", "300M", "--predictor", path, "--out", tmp_path / "run")
    assert "must be a predictor of once-for-all" in fails(1, *question)


@pytest.mark.parametrize("archive", [True, False], ids=["zip", "plain pickle"])
def test_code_in_a_predictor_is_not_run(fails, tmp_path, archive):
    path, mark = tmp_path / "p.pth", tmp_path / "ran"
    buffer = io.BytesIO()
    torch.save(Bomb(mark), buffer)
    path.write_bytes(buffer.getvalue() if archive else pickle.dumps(Bomb(mark)))
    sentence = fails(1, "find", "--space", "ofa-mbv3-w1.2", "--flops", "300M", "--predictor", path)
    assert "cannot be read: it is damaged or holds code, which is never run" in sentence
    assert "weights_only" not in sentence  # torch's own text advises to switch the safety off
    assert not mark.exists()


def test_infinite_numbers_in_json_are_refused(fails, tmp_path):
    (tmp_path / "x.json").write_text('{"ks": [1e999]}')
    assert "1e999 is no finite number" in fails(1, "inspect", tmp_path / "x.json")


def test_a_lower_bound_of_a_predictor_without_error_bars_is_refused(fails, shared_data):
    predictor = shared_data / "ofa" / "acc_predictor.pth"
    question = ("find", "--space", "ofa-mbv3-w1.2", "--flops", "300M", "--predictor", predictor, "--objective", "lcb")
    assert "the predictor must carry error bars for that, but has none (foreign files do not)" in fails(1, *question)


def test_a_damaged_run_is_not_repeated(fails, tmp_path):
    (tmp_path / "run.json").write_text('{"format": "ofasearch-find-1", "asked": NaN}')
    assert "must be JSON, but it cannot be read: NaN is no finite number" in fails(1, "replay", tmp_path)
    (tmp_path / "run.json").write_text('{"space": "ofa-mbv3-cifar", "strategy": "deps"}')
    assert "must be the run.json of `ofasearch find`, but it is not" in fails(1, "replay", tmp_path)


def test_a_predictor_of_another_space_is_refused(fails, shared_data):
    predictor = shared_data / "ofa" / "acc_predictor.pth"
    sentence = fails(1, "find", "--flops", "8M", "--predictor", predictor)
    assert "must be made for compofa-mbv3-cifar, but was made for ofa-mbv3-w1.2" in sentence


@pytest.mark.parametrize(
    ("argv", "out"),
    [
        (("find", "--flops", "8M", "--out"), "file/run"),
        (("export", ARCH, "-o"), "file/m.onnx"),
        (("latency", "build", "--space", "compofa-mbv3-cifar", "--quiet", "-o"), "file/t.csv"),
    ],
    ids=["find", "export", "latency"],
)
def test_a_folder_that_cannot_be_written_is_named(fails, tmp_path, monkeypatch, argv, out):
    (tmp_path / "file").touch()
    monkeypatch.setattr("ofasearch.jobs.latency.build_table", None)  # it is said before anything is measured
    sentence = fails(1, *argv, tmp_path / out)
    assert "must be writable, but it is not" in sentence
    assert str(tmp_path / "file") in sentence


@pytest.mark.parametrize(
    ("error", "code", "text"),
    [
        (KeyboardInterrupt(), 130, "interrupted; what was measured or checkpointed is kept"),
        (OfaSearchError("budgets must be sane, but are not"), 1, "budgets must be sane, but are not"),
        (
            PermissionError(13, "Permission denied", "/there"),
            1,
            "/there must be readable and writable, but the system says: Permission denied",
        ),
    ],
    ids=["ctrl-c", "ours", "system"],
)
def test_what_a_job_raises_becomes_one_sentence(fails, monkeypatch, error, code, text):
    def job(_):
        yield find_job.FindProgress(phase="searching", done=1, total=2)
        raise error

    monkeypatch.setattr(find_job, "find", job)
    assert text in fails(code, "find", "--flops", "8M")


def test_a_bug_is_not_hidden(monkeypatch):
    monkeypatch.setattr(find_job, "find", lambda _: iter([1 / 0]))
    with pytest.raises(ZeroDivisionError):
        run(["find", "--flops", "8M"])


# -- answers ---------------------------------------------------------------------------------------------------


def test_sizes_of_spaces_are_exact(answers):
    spaces = {s["name"]: s for s in answers("space", "list")["spaces"]}
    assert list(spaces) == list(DESIGNS)
    assert spaces["ofa-mbv3-w1.0"]["size"] == str((9**2 + 9**3 + 9**4) ** 5)
    assert spaces["compofa-mbv3-w1.0"]["size"] == "243"
    assert spaces["ofa-mbv3-w1.2"]["resolutions"] == list(range(160, 225, 4))


def test_find_prints_the_record_it_writes(answers, tmp_path):
    record = answers("find", "--flops", "8M", "--out", tmp_path / "run")
    assert record == json.loads((tmp_path / "run" / "result.json").read_text())
    files = (record["files"][name] for name in ("onnx", "subnet"))
    for path in files:
        assert answers("inspect", path)["arch_id"] == record["arch_id"]
    cost = answers("space", "cost", record["arch_id"])
    assert cost == {key: record[key] for key in ("macs", "params", "activation_bytes")}
    assert answers("space", "cost", json.dumps(record["arch"]), "--space", record["space"]) == cost
    exported = answers("export", record["arch_id"], "-o", tmp_path / "m.onnx")
    assert exported["calibrated"] == "shipped statistics"
    assert answers("bench", tmp_path / "m.onnx", "--seconds", "0.05").keys() >= {
        *(f"latency_ms_{p}" for p in ("p50", "p90", "p95", "p99")), "throughput", "threads", "batch", "runtime", "device",
    }  # fmt: skip


def test_people_get_the_same_answer_in_words(capsys, tmp_path):
    assert run(["find", "--target", "rtx2080", "--latency", "20ms", "--out", str(tmp_path)]) == 0
    out, err = capsys.readouterr()
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["arch_id"] in out
    assert f"{100 * record['measured']['top1']:.2f} %" in out
    assert all(note in out for note in record["notes"])
    assert all(path in out for path in record["files"].values())
    assert "exporting ..." in err
    assert run(["find", "--flops", "8M", "--quiet", "--out", str(tmp_path)]) == 0
    assert capsys.readouterr().err == ""


def test_find_takes_every_algorithm_that_finds_one_network(answers, tmp_path):
    (option,) = [option for option in cli.get_command(click.Context(cli), "find").params if option.name == "algorithm"]
    assert tuple(option.type.choices) == ALGORITHMS
    found = {name: answers("find", "--flops", "8M", "--algorithm", name, "--out", tmp_path / name) for name in ALGORITHMS}
    assert [record["algorithm"] for record in found.values()] == list(ALGORITHMS)
    assert len({record["arch_id"] for record in found.values()}) == 1  # 5,000 networks are more than the space has


def test_a_search_is_repeated_from_its_folder(answers, capsys, tmp_path):
    found = answers("find", "--flops", "8M", "--out", tmp_path / "run")
    record = answers("replay", tmp_path / "run")
    assert (record["same"], record["differences"], record["arch_id"]) == (True, [], found["arch_id"])
    assert run(["replay", str(tmp_path / "run"), "--quiet"]) == 0
    out, err = capsys.readouterr()
    assert out.startswith(f"same answer  {found['arch_id']}")
    assert err == ""
    file = tmp_path / "run" / "run.json"
    changed = json.loads(file.read_text())
    changed["inputs"]["supernet"] = "0" * 64
    file.write_text(json.dumps(changed))
    assert run(["replay", str(tmp_path / "run"), "--json"]) == 1
    out, err = capsys.readouterr()
    first, *_ = json.loads(out)["differences"]
    assert first == "the supernet has another digest than in the run"
    assert err.startswith(f"ofasearch: a replay must give the answer of its run, but {first}")
    assert run(["replay", str(tmp_path / "run")]) == 1
    assert f"differs  {first}" in capsys.readouterr().out


def test_a_published_predictor_predicts(answers, shared_data):
    predictor = shared_data / "ofa" / "acc_predictor.pth"
    arch = answers("space", "sample", "ofa-mbv3-w1.2", "-n", "2", "--seed", "3")["subnets"][1]
    text = json.dumps({**arch["arch"], "r": 224})
    assert 0.7 < answers("predictor", "predict", predictor, text)["predicted_top1"] < 0.82


def test_lists_name_what_is_shipped(answers):
    (supernet,) = [s for s in answers("supernet", "list")["supernets"] if s["name"] == zoo.DEFAULT_SUPERNET]
    assert supernet["space"] == "compofa-mbv3-cifar"
    assert [p["name"] for p in answers("predictor", "list")["predictors"]] == list(zoo.predictor_names())
    tables = {t["name"]: t["source"] for t in answers("latency", "list")["tables"]}
    assert set(tables) == set(zoo.table_names()) >= set(DEVICES)


def test_a_list_tells_measured_tables_from_estimates(answers, monkeypatch, tmp_path):
    monkeypatch.setattr(zoo, "_shipped", lambda _: tmp_path)
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
    table = estimated_table(get_space("compofa-mbv3-cifar"), DEVICES["v100"])
    rows = {key: replace(row, source="measured") for key, row in table.rows.items()}
    save_table(tmp_path / "v100.csv", replace(table, rows=rows))
    tables = [(t["name"], t["source"]) for t in answers("latency", "list")["tables"]]
    assert sorted(tables) == sorted([*((name, "estimated") for name in DEVICES), ("v100", "measured")])


# -- units -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("unit", "text", "value"),
    [
        (LATENCY, "20ms", 20), (LATENCY, "1.5 ms", 1.5), (LATENCY, "250us", 0.25), (LATENCY, "250µs", 0.25), (LATENCY, ".02s", 20),
        (LATENCY, "2e-3s", 2), (COUNT, "300M", 3e8), (COUNT, "300000000", 3e8), (COUNT, "0.3G", 3e8), (COUNT, "5k", 5e3),
        (COUNT, "3e8", 3e8), (MEMORY, "2MB", 2e6), (MEMORY, "2MiB", 2 << 20), (MEMORY, "512 kB", 512e3), (MEMORY, "7B", 7),
        (NUMBERS, "160,192,224", (160, 192, 224)), (NUMBERS, "32", (32,)),
    ],
)  # fmt: skip
def test_quantities_are_read_in_their_units(unit, text, value):
    assert unit.convert(text, None, None) == (pytest.approx(value) if isinstance(value, float | int) else value)


@pytest.mark.parametrize(
    ("unit", "text"),
    [
        *((LATENCY, t) for t in ("20", "20parsec", "-3ms", "0ms", "ms", "", "1e999s", "20 m s", "infms", "٣ms", "20ms 5")),
        *((COUNT, t) for t in ("3MB", "-1", "0", "M", "1,000", "0x10", "1e-999")),
        *((MEMORY, t) for t in ("3", "3M", "0MB", "-1B")),
        *((NUMBERS, t) for t in ("", "a", "1,,2", "1.5")),
    ],
)
def test_other_quantities_are_wrong_usage(unit, text):
    with pytest.raises(click.UsageError):
        unit.convert(text, None, None)


# -- help ------------------------------------------------------------------------------------------------------


def paths(command, path=()):
    """Every command and group below one, as words."""
    yield path
    if isinstance(command, click.Group):
        context = click.Context(command)
        for name in command.list_commands(context):
            yield from paths(command.get_command(context, name), (*path, name))


def test_every_command_explains_itself(capsys):
    found = list(paths(cli))
    assert {path[0] for path in found if path} == set(COMMANDS)
    assert len(found) > 2 * len(COMMANDS)
    for path in found:
        assert run([*path, "--help"]) == 0
        out, err = capsys.readouterr()
        assert out.startswith(f"Usage: {' '.join(('ofasearch', *path))} ")
        assert err == ""


def test_the_overview_says_what_each_command_says(capsys):
    run(["--help"])
    overview = capsys.readouterr().out
    context = click.Context(cli)
    for name, (_, _, text) in COMMANDS.items():
        assert text in overview
        assert cli.get_command(context, name).name in (name, "evaluate")


def test_help_is_quick_and_imports_nothing_heavy():
    code = (
        "import sys\nfrom ofasearch.cli.main import COMMANDS, run\n"
        "for words in ([], *([name] for name in COMMANDS)): run([*words, '--help'])\n"
        f"print(sorted(set({HEAVY}) & set(sys.modules)), file=sys.stderr)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stderr.strip() == "[]"
    seconds = []
    while len(seconds) < 5 and min(seconds, default=1.0) >= 0.5:
        started = time.perf_counter()
        done = subprocess.run([sys.executable, "-m", "ofasearch", "--help"], capture_output=True, text=True, check=True)
        seconds.append(time.perf_counter() - started)
        assert done.stdout.startswith("Usage: ofasearch")
    assert min(seconds) < 0.5


def test_the_version_is_told(capsys):
    assert run(["--version"]) == 0
    assert "0.1.0" in capsys.readouterr().out


# -- the screen ------------------------------------------------------------------------------------------------


class Terminal(io.StringIO):
    def isatty(self):
        return True


def test_progress_is_one_live_line_that_goes_away(monkeypatch):
    screen = Terminal()
    monkeypatch.setattr(sys, "stderr", screen)
    monkeypatch.setenv("COLUMNS", "100")
    reporter = show.Reporter(quiet=False)
    reporter.update("searching: s1", 5, 10, eta=75, note="best 71.00 %")
    assert "5/10  searching: s1  ETA 75 s  best 71.00 %" in screen.getvalue()
    reporter.update("searching: s2", 6, 10, eta=1)  # too soon to be shown
    assert "6/10" not in screen.getvalue()
    reporter.clear()
    assert screen.getvalue().endswith(" \r")
    assert "\n" not in screen.getvalue()


@pytest.mark.parametrize("columns", [30, 60, 79, 99, 119, 199])
def test_on_a_narrow_terminal_the_phase_gives_way_to_what_is_left_and_the_best(columns):
    phase, note = "evaluating up to 56 networks on 2,000 validation images, 1.9 s each, 75 s in all", "best 0.8520 (top-1 87.26 %)"
    line = show.progress_line(phase, 20, 56, 70.0, note, columns)
    assert len(line) <= columns
    assert "20/56" in line
    assert (note in line) == (columns >= 79)
    assert (phase in line) == (columns >= 199)
    assert columns < 79 or line.index("ETA 70 s") < line.index(note)


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0 s"), (99, "99 s"), (100, "2 min"), (3600, "60 min"), (2 * 3600 + 180, "2 h 03 min")]
)
def test_durations_are_for_people(seconds, text):
    assert show.duration(seconds) == text


def test_columns_line_up():
    lines = show.table(["name", "ms"], [("a", "10.5"), ("bcdef", "9.0")]).splitlines()
    assert lines == ["name     ms", "-----  ----", "a      10.5", "bcdef   9.0"]


def test_a_nan_is_never_printed_as_json():
    with pytest.raises(ValueError, match="not JSON compliant"):
        show.print_json({"top1": float("nan")})
