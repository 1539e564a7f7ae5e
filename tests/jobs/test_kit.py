"""A kit measures as this package does, is stopped and continued, and what it brings back is checked like any file from outside."""

import ast
import hashlib
import json
import os
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from ofasearch.deploy import kit_measure, runtime
from ofasearch.errors import FormatError, MismatchError, NotFoundError, UnmeasuredError, UsageError
from ofasearch.jobs import latency, measuring
from ofasearch.jobs.kit import Kit, KitProgress, is_kit, read_kit_results, write_kit
from ofasearch.latency import machine, probes, stopwatch
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.space.families import get_space

SPACE = get_space("compofa-mbv3-cifar").with_resolutions([24, 28, 32, 36, 40, 44, 48])
GLANCE = {"min_bursts": 1, "max_bursts": 1, "warmup": 1, "settle": 0, "burst": 1, "burst_ms": 0.0}


@pytest.fixture(scope="module", autouse=True)
def few():
    """Few networks to refine and to check."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(latency, "FIT_NETS", 4)
        patch.setattr(latency, "CHECK_NETS", 3)
        yield


@pytest.fixture(scope="module")
def plan(few):
    return latency.plan_networks(SPACE)


@pytest.fixture(scope="module")
def written(few, tmp_path_factory):
    """A kit as it is written, and what was told while it was."""
    folder = tmp_path_factory.mktemp("kits") / "kit"
    return folder, list(write_kit(SPACE, folder, threads=1))


@pytest.fixture
def folder(written, tmp_path):
    """A kit of its own for a test: the big files are links."""
    copy = tmp_path / "kit"
    (copy / "networks").mkdir(parents=True)
    for file in (written[0] / "networks").iterdir():
        (copy / "networks" / file.name).symlink_to(file)
    for name in ("manifest.json", "measure.py"):
        (copy / name).write_bytes((written[0] / name).read_bytes())
    return copy


def manifest(folder):
    return json.loads((folder / "manifest.json").read_text())


def header(folder, **facts):
    digest = hashlib.sha256((folder / "manifest.json").read_bytes()).hexdigest()
    told = {"format": kit_measure.RESULTS_FORMAT, "kit": digest, "device": "board", "runtime": "onnxruntime 1.2.3 cpu", "precision": "fp32"}
    return told | {"batch": 1, "threads": 1, "machine": {"cpu": "board"}, "date": "2026-01-02T03:04:05+00:00"} | facts


def layer_ms(spec):
    """What a layer takes on an invented device: a law of powers."""
    return float(0.001 + 2e-7 * probes.quantities(spec)[0] ** 0.9 + 1e-7 * probes.quantities(spec)[2])


def line(name, blueprint, **facts):
    """The line of one network on that device."""
    layers = [layer_ms(spec) for spec in blueprint]
    ms = sum(layers)
    timing = dict.fromkeys(("p90", "p95", "p99", "high"), 1.1 * ms) | dict.fromkeys(("p50", "mean", "low", "raw_p50"), ms)
    return timing | {"std": 0.0, "n": 30, "disturbed": 0.0, "name": name, "shares": [part / ms for part in layers]} | facts


def lines(plan, roles=("probes", "fit", "check")):
    return [line(name, blueprint) for role in roles for name, blueprint in getattr(plan, role).items()]


def save(folder, records):
    (folder / "results.jsonl").write_text("".join(json.dumps(record) + "\n" for record in records))
    return folder


# -- what is written -------------------------------------------------------------------------------------------


def test_a_kit_holds_the_networks_that_this_machine_would_measure(written, plan):
    folder, events = written
    networks = manifest(folder)["networks"]
    for role in ("probes", "fit", "check"):
        assert {name for name, entry in networks.items() if entry["role"] == role} == set(getattr(plan, role))
    for name, blueprint in {**plan.probes, **plan.fit, **plan.check}.items():
        assert [tuple(shape) for shape in networks[name]["layers"]] == [spec.shape for spec in blueprint]
        content = (folder / networks[name]["file"]).read_bytes()
        assert hashlib.sha256(content).hexdigest() == networks[name]["sha256"]
    *progress, kit = events
    assert [event.done for event in progress] == list(range(1, len(networks) + 1))
    assert isinstance(progress[0], KitProgress)
    assert isinstance(kit, Kit)
    assert kit.total_bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) < 50_000 * len(networks)
    assert kit.networks == {"probes": len(plan.probes), "fit": len(plan.fit), "check": len(plan.check)}


def test_the_smallest_and_the_largest_inputs_come_first(written):
    sizes = [entry["input"][1] for entry in manifest(written[0])["networks"].values() if entry["role"] == "probes"]
    ends = [size in (24, 48) for size in sizes]
    assert ends == sorted(ends, reverse=True)
    assert len(set(sizes)) == 3


def test_a_kit_is_written_alike_twice(written, tmp_path):
    list(write_kit(SPACE, tmp_path / "again"))
    assert (tmp_path / "again" / "manifest.json").read_bytes() == (written[0] / "manifest.json").read_bytes()


def test_a_kit_is_not_overwritten(written):
    with pytest.raises(UsageError, match="must be a folder without a kit"):
        next(write_kit(SPACE, written[0]))


def test_an_impossible_batch_is_refused_before_anything_is_written(tmp_path):
    with pytest.raises(UsageError, match="--batch must be"):
        next(write_kit(SPACE, tmp_path / "kit", batch=0))
    assert not (tmp_path / "kit").exists()


# -- the script measures as this package does ------------------------------------------------------------------


class Bench:
    """A clock that moves only when an action runs, by noisy times of a machine that changes its speed."""

    def __init__(self, seed):
        self.now, self._rng = 5.0, np.random.default_rng(seed)

    def clock(self):
        return self.now

    def action(self, ms):
        def run():
            slow = 1.0 if int(self.now * 3) % 4 else 1.4
            self.now += ms * slow * np.exp(0.05 * self._rng.normal()) / 1000

        return run


@pytest.mark.parametrize("slowness", [0.01, 0.4, 7.0, 90.0, 600.0])
@pytest.mark.parametrize("level", [None, 5.0])
def test_both_stopwatches_say_the_same_of_the_same_samples(slowness, level):
    def bench():
        made = Bench(3)
        return made, {name: made.action(slowness * share) for name, share in (("a", 1.0), ("b", 2.5), ("traced a", 1.1))}

    mine, actions = bench()
    level_ms = level and level * slowness
    reference = stopwatch.Reference(mine.action(4 * slowness), level_ms)
    expected = stopwatch.stopwatch(actions, measuring.NET_RULE, mine.clock, reference=reference)
    theirs, actions = bench()
    other = kit_measure.Reference(theirs.action(4 * slowness), level_ms)
    found = kit_measure.stopwatch(actions, kit_measure.RULE, theirs.clock, other)
    assert found == {name: asdict(timing) for name, timing in expected.items()}
    assert (other.speed, other.disturbed, other.level_ms) == (reference.speed, reference.disturbed, reference.level_ms)
    assert theirs.now == mine.now


def test_a_turn_of_a_slow_network_has_fewer_runs():
    bench, runs = Bench(0), []
    slow = bench.action(200.0)
    reference = stopwatch.Reference(bench.action(200.0))
    found = stopwatch.stopwatch({"a": lambda: runs.append(slow())}, measuring.NET_RULE, bench.clock, reference=reference)
    turns = len(runs) - measuring.NET_RULE.warmup  # of one counted run, and none uncounted
    assert turns == len(reference.seen_ms) - 2
    assert found["a"].n <= turns
    assert (reference.settle, reference.burst) == (0, 1)


def test_both_have_the_same_rules():
    assert asdict(measuring.NET_RULE) == kit_measure.RULE
    assert kit_measure.GROUP == measuring.GROUP
    assert kit_measure.SEED == runtime.SEED
    assert kit_measure.BUSY == machine.BUSY
    for name in ("JUMP", "LEVEL_QUANTILE", "ENOUGH", "MOST_SAMPLES", "DISTURBED"):
        assert getattr(kit_measure, name) == getattr(stopwatch, name)


def test_both_read_the_same_shares_from_a_profile():
    rng, layers, events, now = np.random.default_rng(0), ("stem", "s1.b1", "s1.b10", "pool"), [], 0
    for _ in range(5):
        start = now
        for name in ("stem.conv", "ReorderOutput_token_3", "s1.b1.expand.act:out_nchwc", "s1.b10.depth", "s1.b10.project", "pool"):
            duration = int(rng.integers(1, 90))
            events.append({"cat": "Node", "name": f"{name}_kernel_time", "ts": now, "dur": duration, "args": {"op_name": "Conv"}})
            now += duration + 2
        events.append({"cat": "Session", "name": "model_run", "ts": start, "dur": now - start})
    trace = runtime.read_profile(events, layers)
    account = kit_measure.read_profile(events, list(layers))
    assert all((a == b).all() for a, b in zip(account, (trace.layer_ms, trace.run_ms, trace.kernels), strict=True))
    assert list(account[2]) == [2, 1, 2, 1]
    expected = probes.shares_of(trace.layer_ms, trace.run_ms, trace.kernels, ms=0.2, traced_ms=0.25)
    assert tuple(kit_measure.shares_of(*account, 0.2, 0.25)) == expected


def test_both_open_networks_with_the_same_options(written, monkeypatch):
    seen = []

    class Session:
        def __init__(self, content, options, providers):
            names = [name for name in dir(options) if not name.startswith("_")]
            seen.append({name: getattr(options, name) for name in names if not callable(getattr(options, name))} | {"providers": providers})
            self._real = real(content, options, providers=providers)

        def __getattr__(self, name):
            return getattr(self._real, name)

    real = ort.InferenceSession
    monkeypatch.setattr(ort, "InferenceSession", Session)
    kit = kit_measure.Kit(written[0])
    entry = kit.networks[kit.reference]
    network = kit.open(kit.reference, {"threads": 1, "provider": kit_measure.CPU, "batch": 1})
    OnnxModel((written[0] / entry["file"]).read_bytes(), threads=1)
    assert seen[0] == seen[1]
    assert (next(iter(network._feed.values())) == runtime.inputs_of(latency.plan_networks(SPACE).reference, 1)).all()


def test_both_call_this_machine_by_the_same_name():
    assert kit_measure.cpu_device() == machine.cpu_device()


def test_a_board_is_called_by_its_own_name(monkeypatch):
    texts = {"/proc/device-tree/model": "Raspberry Pi 4 Model B\0", "/proc/cpuinfo": "model name : ARMv7"}
    monkeypatch.setattr(kit_measure, "text_of", lambda path: texts.get(str(path), ""))
    monkeypatch.setattr(machine, "_read", lambda path: texts.get(str(path), ""))
    assert kit_measure.cpu_model() == machine.cpu_model() == "Raspberry Pi 4 Model B"


def test_the_script_is_written_in_python_3_8():
    ast.parse(Path(kit_measure.__file__).read_text(), feature_version=(3, 8))


# -- measuring for real ----------------------------------------------------------------------------------------


@pytest.fixture
def measure(folder, monkeypatch, capsys):
    """Runs the script with hardly a look at each network; gives its exit code, output and errors."""
    monkeypatch.setattr(kit_measure, "RULE", kit_measure.RULE | GLANCE)
    monkeypatch.setattr(kit_measure, "system_load", lambda: 0.0)

    def run(*argv):
        code = kit_measure.main([str(a) for a in argv], folder)
        return code, *capsys.readouterr()

    return run


def records(folder):
    return [json.loads(text) for text in (folder / "results.jsonl").read_text().splitlines()]


def test_what_was_measured_here_becomes_a_table_of_this_machine(measure, folder, plan):
    code, out, err = measure()
    assert (code, err) == (0, "")
    assert "more; Ctrl-C stops it, and the next run goes on from there" in out
    first, level, *found = records(folder)
    assert first["machine"]["cores"] == os.cpu_count()
    assert level["level_ms"] > 0
    assert {record["name"] for record in found} == {*plan.probes, *plan.fit, *plan.check}
    for record in found:
        assert ("shares" in record) == (record["name"] in plan.probes)
    table = read_kit_results(folder)
    assert table.key == machine.fingerprint(batch=1, threads=1)
    assert not table.missing(SPACE)
    assert table.card["validation"]["n"] == 3
    assert table.card["networks"] == {"probes": len(plan.probes), "fit": 4, "check": 3}
    assert latency.space_of_table(table, None).resolutions == SPACE.resolutions
    assert {path.name for path in folder.iterdir()} == {"manifest.json", "measure.py", "networks", "results.jsonl"}


def test_every_account_has_a_file_of_its_own(measure, folder, monkeypatch):
    """Older runtimes add the time to a profile's name in whole seconds."""
    prefixes, real = [], kit_measure.Network.__init__

    def remember(self, entry, content, run, profile=None):
        prefixes.append(profile)
        real(self, entry, content, run, profile)

    monkeypatch.setattr(kit_measure.Network, "__init__", remember)
    assert measure("--quick")[0] == 0
    used = [prefix for prefix in prefixes if prefix is not None]
    assert len(used) == len(set(used)) > 0


def test_measuring_goes_on_where_it_was_stopped(measure, folder, monkeypatch, plan):
    real, groups = kit_measure.measure_group, []

    def stopped(kit, names, *rest):
        groups.append(list(names))
        if len(groups) == 3:
            raise KeyboardInterrupt
        real(kit, names, *rest)

    monkeypatch.setattr(kit_measure, "measure_group", stopped)
    code, _, err = measure()
    assert (code, err.strip()) == (130, "stopped; what was measured is kept, and running it again goes on from there")
    before = records(folder)
    with (folder / "results.jsonl").open("a") as file:
        file.write('{"name": "' + groups[2][0])  # as a kill tears it
    groups.clear()
    total = len(plan.probes) + 7
    code, out, _ = measure("--minutes", 1e-9)
    assert (code, groups) == (0, [])
    assert f"8 of {total} networks are measured" in out
    groups.extend([[], [], []])
    code, out, _ = measure()
    assert code == 0
    assert f"8 of {total} networks are measured already" in out
    assert sum(map(len, groups)) == total - 8
    text = (folder / "results.jsonl").read_text().splitlines()
    after = [json.loads(line) for n, line in enumerate(text) if n != len(before)]
    assert after[: len(before)] == before
    assert sum("level_ms" in record for record in after) == 1
    assert len({record["name"] for record in after if "name" in record}) == total
    assert measure()[1].startswith(f"all {total} networks are measured")


def test_a_quick_look_leaves_input_sizes_out(measure, folder, plan):
    assert measure("--quick")[0] == 0
    sizes = {plan.probes[r["name"]][0].hw_in for r in records(folder) if r.get("name") in plan.probes}
    assert sizes == {24, 48}
    table = read_kit_results(folder)
    assert not table.missing(SPACE)
    assert any(note.startswith("made of ") for note in table.card["notes"])


def test_a_killed_script_loses_at_most_what_it_was_at(folder):
    """In a process of its own, with a real kill, and nothing of this package in reach."""
    code = f"import sys, measure; measure.RULE.update({GLANCE!r}); assert 'ofasearch' not in sys.modules; sys.exit(measure.main([]))"
    command = [sys.executable, "-c", code]
    results = folder / "results.jsonl"
    with subprocess.Popen(command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.STDOUT) as process:
        deadline = time.monotonic() + 60
        while process.poll() is None and time.monotonic() < deadline and (not results.exists() or results.read_bytes().count(b"\n") < 6):
            time.sleep(0.01)
        process.kill()
    kept = results.read_text().splitlines()[:6]
    assert len(kept) == 6
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert results.read_text().splitlines()[:6] == kept
    assert read_kit_results(folder).card["validation"]["n"] == 3


def test_results_of_another_machine_kit_or_number_of_threads_are_not_continued(measure, folder):
    for name, value in (("kit", "0" * 64), ("device", "another"), ("runtime", "onnxruntime 1.0 cpu"), ("threads", 2), ("batch", 4)):
        here = header(folder, device=machine.cpu_device(), runtime=f"onnxruntime {ort.__version__} cpu")
        text = (save(folder, [here | {name: value}]) / "results.jsonl").read_bytes()
        code, out, err = measure()
        assert (code, out) == (1, "")
        assert f"but its {name} is '{value}' and not '" in err
        assert err.count("\n") == 1
        assert (folder / "results.jsonl").read_bytes() == text


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        (["--threads", "0"], "--threads must be 1..1024, but got 0"),
        (["--minutes", "-1"], "--minutes must be positive"),
        (["--provider", "NoExecutionProvider"], "--provider must be one of"),
        (["--out", "/"], "must be writable, but is not"),
        (["--out", "notes.txt"], "must be results of measure.py, but holds something else"),
    ],
)
def test_what_cannot_be_measured_is_one_sentence(measure, folder, monkeypatch, argv, text):
    monkeypatch.chdir(folder)
    Path("notes.txt").write_text("milk\neggs\n")
    code, _, err = measure(*argv)
    assert (code, err.count("\n")) == (1, 1)
    assert text in err
    assert Path("notes.txt").read_text() == "milk\neggs\n"


def test_a_kit_that_was_copied_badly_is_refused(measure, folder):
    file = folder / manifest(folder)["networks"][manifest(folder)["reference"]]["file"]
    content = file.read_bytes()
    file.unlink()
    assert "must lie in the kit, but cannot be read; copy the whole folder again" in measure()[2]
    file.write_bytes(content[:-1])
    assert "must be as it was written, but is damaged" in measure()[2]
    (folder / "manifest.json").write_text('{"format": 1}')
    assert "must be of format ofasearch-kit-1, but is 1" in measure()[2]
    (folder / "manifest.json").write_text("{")
    assert "must be the manifest of a kit beside measure.py" in measure()[2]


def test_two_scripts_do_not_disturb_each_other(measure, folder):
    pytest.importorskip("fcntl")
    here = header(folder, device=machine.cpu_device(), runtime=f"onnxruntime {ort.__version__} cpu")
    held = kit_measure.Results(folder / "results.jsonl", here)
    assert "must have one writer, but another measure.py is at work on it" in measure()[2]
    held.close()


def test_a_runtime_that_does_not_fold_constants_is_refused(written, tmp_path, monkeypatch):
    kit = kit_measure.Kit(written[0])
    network = kit.open(kit.reference, {"threads": 1, "provider": kit_measure.CPU, "batch": 1}, tmp_path / "profile")
    event = {"cat": "Node", "name": "stem.weight_kernel_time", "ts": 1, "dur": 1, "args": {"op_name": "ConstantOfShape"}}
    monkeypatch.setattr(kit_measure.json, "loads", lambda _: [event])
    with pytest.raises(kit_measure.KitError, match="install a newer one"):
        network.account()


# -- tables of results -----------------------------------------------------------------------------------------


def test_results_become_the_table_that_measuring_here_would_have_made(folder, plan):
    table = read_kit_results(save(folder, [header(folder), {"level_ms": 1.0}, *lines(plan)]))
    for probe in plan.probes.values():
        for spec in probe:
            row = table.row(probe[0].hw_in, spec)
            assert (row.source, row.ms) == ("measured", pytest.approx(layer_ms(spec), rel=0.02))
    assert table.card["validation"]["mape"] < 0.02
    assert {row.source for row in table.rows.values()} == {"measured", "interpolated"}
    assert (table.key.device, table.key.runtime) == ("board", "onnxruntime 1.2.3 cpu")
    assert table.card["date"] == "2026-01-02T03:04:05+00:00"
    assert table.card["notes"] == []


def test_results_without_shares_are_divided_by_a_law(folder, plan):
    whole = [{key: value for key, value in record.items() if key != "shares"} for record in lines(plan)]
    table = read_kit_results(save(folder, [header(folder, runtime="onnxruntime 1.2.3 cuda"), *whole]))
    assert not table.missing(SPACE)
    assert table.card["validation"]["mape"] < 0.1


def test_half_of_the_probes_are_enough_when_they_enclose_the_others(folder, plan):
    ends = [record for record in lines(plan, ["probes"]) if plan.probes[record["name"]][0].hw_in in (24, 48)]
    table = read_kit_results(save(folder, [header(folder), *ends]))
    total = len(plan.probes) + 7
    assert table.card["notes"] == [
        f"made of {len(ends)} of {total} networks ({len(ends)} of {len(plan.probes)} probes, 0 of 4 to refine, 0 of 3 to check): "
        "what they leave out is interpolated"
    ]
    assert "validation" not in table.card
    between = next(spec for blueprint in plan.probes.values() if blueprint[0].hw_in == 36 for spec in blueprint if spec.kind == "mbconv")
    row = table.row(36, between)
    assert (row.source, row.n) == ("interpolated", 0)
    assert row.ms == pytest.approx(layer_ms(between), rel=0.3)


def test_what_is_not_enclosed_is_not_invented(folder, plan):
    small = [record for record in lines(plan) if record["name"] not in plan.probes or plan.probes[record["name"]][0].hw_in < 48]
    missing = sum(blueprint[0].hw_in == 48 for blueprint in plan.probes.values())
    with pytest.raises(UnmeasuredError, match=f"but {missing} of {len(plan.probes)} probe networks are missing, and with them"):
        read_kit_results(save(folder, [header(folder), *small]))
    with pytest.raises(UnmeasuredError, match="measure on"):
        read_kit_results(save(folder, [header(folder)]))


def test_a_line_that_was_torn_or_measured_twice_does_no_harm(folder, plan):
    found = [header(folder), *lines(plan)]
    path = save(folder, [*found[:3], found[2] | {"p50": found[2]["p50"]}, *found[3:]]) / "results.jsonl"
    path.write_text(path.read_text() + '{"name": "r24-')
    assert len(read_kit_results(path).card["used"]) == len(plan.probes) + 4


def test_results_may_lie_elsewhere(folder, tmp_path, plan):
    elsewhere = tmp_path / "from-the-phone.jsonl"
    save(folder, [header(folder), *lines(plan)])
    (folder / "results.jsonl").rename(elsewhere)
    assert is_kit(elsewhere)
    with pytest.raises(NotFoundError, match=r"holds no manifest\.json; add --kit FOLDER"):
        read_kit_results(elsewhere)
    assert read_kit_results(elsewhere, folder).key.device == "board"
    with pytest.raises(NotFoundError, match=r"copy results\.jsonl back"):
        read_kit_results(folder)


HOSTILE = {
    "no time": {"p50": 0.0},
    "negative time": {"p90": -1.0},
    "endless time": {"p50": 1e8},
    "text for a time": {"p50": "fast"},
    "no runs": {"n": 0},
    "runs without number": {"n": 10**30},
    "shares of other layers": {"shares": [0.5, 0.5]},
    "shares that are no shares": {"shares": "many"},
    "foreign network": {"name": "r24-22-0123456789abcdef"},
}


@pytest.mark.parametrize("damage", HOSTILE.values(), ids=HOSTILE)
def test_a_hostile_line_is_refused_in_one_sentence(folder, plan, damage):
    first, *rest = lines(plan)
    save(folder, [header(folder), first | damage, *rest])
    with pytest.raises(FormatError, match=r"results\.jsonl must hold (times of networks|networks of its kit)") as caught:
        read_kit_results(folder)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("word", ["Infinity", "NaN", "1e999"])
def test_numbers_that_are_none_are_no_line(folder, plan, word):
    found = [header(folder), *lines(plan)]
    path = save(folder, [*found[:-1], found[-1] | {"p50": "WORD"}]) / "results.jsonl"
    path.write_text(path.read_text().replace('"WORD"', word))
    assert read_kit_results(folder).card["networks"]["check"] == 2


def test_times_are_stated_at_the_level_of_all_groups(folder, plan):
    """The first group saw a cold device; what the reference took later is the level."""
    found = lines(plan)
    first = read_kit_results(save(folder, [header(folder), {"level_ms": 2.0}, *found]))
    speeds = [record | {"speed": 1.0 if n < 4 else 0.8} for n, record in enumerate(found)]
    later = read_kit_results(save(folder, [header(folder), {"level_ms": 2.0}, *speeds]))
    assert first.card["reference"]["level_ms"] == 2.0
    assert later.card["reference"]["level_ms"] == pytest.approx(2.5)
    for at, row in first.rows.items():
        assert later.rows[at].ms == pytest.approx(1.25 * row.ms)


@pytest.mark.parametrize("speed", [0.0, -1.0, 1e300, "fast", None, True])
def test_speeds_that_no_device_has_are_not_believed(folder, plan, speed):
    first = read_kit_results(save(folder, [header(folder), *lines(plan)]))
    assert read_kit_results(save(folder, [header(folder), *(r | {"speed": speed} for r in lines(plan))])).rows == first.rows


def test_negative_shares_are_refused(folder, plan):
    first, *rest = lines(plan)
    shares = first["shares"]
    for wrong in (
        [-shares[0], 2 * shares[0] + shares[1], *shares[2:]],
        [2 * share for share in shares],
        [0.0, shares[0] + shares[1], *shares[2:]],
    ):
        with pytest.raises(FormatError, match="must hold times of networks"):
            read_kit_results(save(folder, [header(folder), first | {"shares": wrong}, *rest]))


@pytest.mark.parametrize(
    ("facts", "error", "text"),
    [
        ({"format": "csv"}, FormatError, "its first line does not say"),
        ({"device": "two\nlines"}, FormatError, "must name device, runtime and precision in one line each"),
        ({"device": ""}, FormatError, "must name device"),
        ({"runtime": 7}, FormatError, "must name device"),
        ({"threads": 0}, FormatError, "must tell batch and threads"),
        ({"threads": True}, FormatError, "must tell batch and threads"),
        ({"batch": "1"}, FormatError, "must tell batch and threads"),
        ({"batch": 2}, MismatchError, "was measured with another"),
        ({"kit": "0" * 64}, MismatchError, "was measured with another"),
    ],
)
def test_a_hostile_first_line_is_refused(folder, plan, facts, error, text):
    with pytest.raises(error, match=text):
        read_kit_results(save(folder, [header(folder) | facts, *lines(plan)]))


def test_what_a_device_says_of_itself_is_kept_short(folder, plan):
    told = {"cpu": "x" * 10_000, "nested": {"a": [1]}, **{f"fact {i}": i for i in range(100)}}
    card = read_kit_results(save(folder, [header(folder, machine=told), *lines(plan)])).card
    assert len(card["machine"]["cpu"]) == 200
    assert "nested" not in card["machine"]
    assert len(card["machine"]) < 50


def broken(record, how):
    networks = record["networks"]
    name = next(iter(networks))
    match how:
        case "another format":
            record["format"] = "ofasearch-kit-0"
        case "an unknown space":
            record["space"] = "nowhere"
        case "a huge input":
            record["resolutions"] = [24, 10**9]
        case "no classes":
            record["classes"] = None
        case "a foreign layer":
            networks[name]["layers"][0][3] = 999
        case "another network":
            networks[name]["layers"] = networks[name]["layers"][:-1]
        case "an unknown role":
            networks[name]["role"] = "boss"
        case "no networks":
            record["networks"] = {}
        case "too many networks":
            record["networks"] = {str(i): networks[name] for i in range(1001)}
        case "a list of networks":
            record["networks"] = [1, 2]
        case "layers without end":
            networks[name]["layers"] = 7
        case "an unknown reference":
            record["reference"] = "r1"
    return record


HOW = "another format, an unknown space, a huge input, no classes, a foreign layer, another network, an unknown role, no networks"
MORE = "too many networks, a list of networks, layers without end, an unknown reference"


@pytest.mark.parametrize("how", f"{HOW}, {MORE}".split(", "))
def test_a_hostile_manifest_is_refused(folder, plan, how):
    (folder / "manifest.json").write_text(json.dumps(broken(manifest(folder), how)))
    with pytest.raises(FormatError, match=r"manifest\.json must be"):
        read_kit_results(save(folder, [header(folder), *lines(plan)]))
