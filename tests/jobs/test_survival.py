"""What kills, company on the same files, and disks that are full or locked do to the long jobs: nothing that stays."""

import json
import os
import random
import signal
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from ofasearch.cli.main import run
from ofasearch.data import DataSet, load_data
from ofasearch.deploy.runtime import get_runtime
from ofasearch.jobs import latency, measuring, members, train_setup
from ofasearch.jobs import train as training
from ofasearch.jobs.deliver import load_subnet
from ofasearch.latency.memory import Memory
from ofasearch.supernet.weights import load_weights
from ofasearch.train.loop import TrainConfig

PATIENCE = 1200  # seconds that a child may take on a machine with other work

PAUSE = 0.01  # seconds after a report, so that a fast machine does not run away from who wants to kill it
LATEST = 3 * PAUSE  # seconds from the last report that was waited for to the kill
SIZES = {"train": 32, "calibration": 16, "validation": 16, "test": 16}

# What the children run. Real timings by a stopwatch that hardly looks: they scatter, so that an equal value is a kept one.
GLANCE = """
import sys
import time
from ofasearch.jobs import latency, measuring
from ofasearch.latency.stopwatch import StopRule
measuring.NET_RULE = StopRule(min_bursts=2, max_bursts=2, warmup=1, min_sample_ms=0.0)
latency.SMALL_FIT_NETS, latency.CHECK_NETS, latency.SMALL_TIMES = 8, 6, 1
"""
TABLE = f"""{GLANCE}
PAUSE = {PAUSE}
from ofasearch.deploy.runtime import get_runtime
from ofasearch.space.families import get_space
for event in latency.build_table(get_space("compofa-mbv3-cifar"), get_runtime()):
    if isinstance(event, measuring.LatencyProgress):
        print(event.done, event.total, flush=True)
        time.sleep(PAUSE)
"""
START_TOGETHER = 'print("ready", flush=True)\nsys.stdin.readline()\n'
FIND = f"{GLANCE}\nimport ofasearch.jobs.find\nfrom ofasearch.cli.main import run\n{START_TOGETHER}\nsys.exit(run(sys.argv[1:]))"
DECODE = f"""
import hashlib, sys
from ofasearch.data import load_data
{START_TOGETHER}
print(hashlib.sha256(load_data(sys.argv[1])["train"].images.tobytes()).hexdigest())
"""
TRAIN = f"""
import sys
import time
import numpy as np
from ofasearch.cli.main import run
from ofasearch.data import DataSet, load_data
from ofasearch.jobs import finetune_setup, train_setup
from ofasearch.train.loop import Trainer

full, steps = load_data("digits"), Trainer.run
few = DataSet("digits", full.class_names, {{name: full[name].take(np.arange(n)) for name, n in {SIZES}.items()}})
train_setup.load_data = finetune_setup.load_data = lambda source: few

def told(trainer):
    for report in steps(trainer):
        yield report
        print(report.step, flush=True)  # the job is through with this step, its checkpoint included
        time.sleep({PAUSE})

Trainer.run = told
sys.exit(run(sys.argv[1:]))
"""


RECIPE = ("train", "--space", "compofa-mbv3-cifar", "--data", "digits", "--epochs", "2", "--batch-size", "8", "--quiet", "--out")


def start(code, *argv, cwd, **environment):
    return subprocess.Popen(
        [sys.executable, "-c", code, *map(str, argv)],
        cwd=cwd,
        env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(child):
    """Standard output of a child that must succeed."""
    out, err = child.communicate("\n", timeout=PATIENCE)
    assert child.returncode == 0, err[-2000:]
    return out


def kill_after(child, lines, seconds):
    """Read that many lines of a child's reports, wait a little, kill it without a warning; returns its last report."""
    reports = [child.stdout.readline() for _ in range(lines)]
    time.sleep(seconds)
    child.kill()
    reports += child.stdout
    child.communicate(timeout=PATIENCE)
    assert child.returncode == -signal.SIGKILL  # after its end a kill would prove nothing
    return [report for report in reports if report.endswith("\n")][-1]


def few(full):
    """A handful of images of each split."""
    return DataSet(full.name, full.class_names, {split: full[split].take(np.arange(n)) for split, n in SIZES.items()})


# -- kill -9 ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", [0])
def test_no_kill_takes_a_measurement_that_was_reported(tmp_path, monkeypatch, seed):
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
    memory, rng = Memory(get_runtime().key), random.Random(seed)
    before, level = {}, None
    for _ in range(3):
        killed = start(TABLE, cwd=tmp_path)
        reported = kill_after(killed, len(before) + rng.randint(1, 5), rng.uniform(0, LATEST))
        known, levels = memory.networks(), lines_of(memory.folder / "levels.jsonl")
        assert {name: known.get(name) for name in before} == before
        assert len(known) >= int(reported.split()[0])  # what is reported is on disk; a group comes there whole
        assert level in (None, levels[0]["ms"])
        before, level = known, levels[0]["ms"]
    last = finish(start(TABLE, cwd=tmp_path)).splitlines()[-1].split()
    assert last[0] == last[1]
    names = [line["name"] for line in lines_of(memory.folder / "nets.jsonl")]
    assert {name: memory.networks()[name] for name in before} == before
    assert sorted(names) == sorted(set(names))  # nothing was measured twice
    assert len(names) == int(last[1])
    assert len(lines_of(memory.folder / "levels.jsonl")) == 1
    assert json.loads((memory.folder / "fingerprint.json").read_text())["device"] == get_runtime().key.device


def lines_of(path):
    """The whole lines of a file that kills may have torn."""
    found = []
    for line in path.read_text().splitlines():
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


@pytest.mark.parametrize("seed", [0])
def test_a_training_that_is_killed_again_and_again_ends_in_the_same_weights(tmp_path, seed):
    recipe = ("--space", "compofa-mbv3-cifar", "--data", "digits", "--epochs", "4", "--batch-size", "8", "--lr", "0.02")
    recipe = ("train", *recipe, "--warmup-share", "0.25", "--evaluate-every", "0", "--quiet", "--out")
    finish(start(TRAIN, *recipe, tmp_path / "unbroken", cwd=tmp_path))
    rng, done, kills = random.Random(seed), 0, 0
    while done < 8 and kills < 3:  # of 16 steps; checkpoints come every 4
        killed = start(TRAIN, *recipe, tmp_path / "broken", "--resume", cwd=tmp_path)
        done = int(kill_after(killed, rng.randint(1, 6), rng.uniform(0, LATEST)))
        kills += 1
        assert not (tmp_path / "broken" / "supernet.safetensors").exists()
    finish(start(TRAIN, *recipe, tmp_path / "broken", "--resume", cwd=tmp_path))
    unbroken, broken = (load_weights(tmp_path / name / "supernet.safetensors") for name in ("unbroken", "broken"))
    assert broken.digest == unbroken.digest
    assert broken.training["validation_top1"] == unbroken.training["validation_top1"]
    logs = [lines_of(tmp_path / name / "log.jsonl") for name in ("unbroken", "broken")]
    assert [(line["epoch"], line["loss"]) for line in logs[0]] == [(line["epoch"], line["loss"]) for line in logs[1]]
    files = {"run.json", "log.jsonl", "checkpoint.pt", "checkpoint.previous.pt", "supernet.safetensors"}
    assert {path.name for path in (tmp_path / "broken").iterdir()} == files


@pytest.mark.parametrize("seed", [0])
def test_a_killed_finetuning_ends_in_the_same_network(tmp_path, seed):
    recipe = ("finetune", "compofa-mbv3-cifar@r32-2-2-2-2-2", "--data", "digits", "--epochs", "3", "--batch-size", "8", "--quiet", "--out")
    rng = random.Random(seed)
    finish(start(TRAIN, *recipe, tmp_path / "unbroken", cwd=tmp_path))
    for steps in (rng.randint(5, 7), rng.randint(1, 3)):  # of 12; checkpoints come every 4
        killed = start(TRAIN, *recipe, tmp_path / "broken", "--resume", cwd=tmp_path)
        kill_after(killed, steps, rng.uniform(0, LATEST))
        assert (tmp_path / "broken" / "checkpoint.pt").exists()
        assert not (tmp_path / "broken" / "subnet.pt").exists()
    finish(start(TRAIN, *recipe, tmp_path / "broken", "--resume", cwd=tmp_path))
    unbroken, broken = (load_subnet(tmp_path / name / "subnet.pt")[0].arrays for name in ("unbroken", "broken"))
    assert unbroken.keys() == broken.keys()
    assert all(np.array_equal(unbroken[key], broken[key]) for key in unbroken)
    answers = [json.loads((tmp_path / name / "result.json").read_text()) for name in ("unbroken", "broken")]
    assert answers[0]["flips"] == answers[1]["flips"]
    files = {"run.json", "log.jsonl", "checkpoint.pt", "checkpoint.previous.pt", "subnet.pt", "subnet.onnx", "result.json"}
    assert {path.name for path in (tmp_path / "broken").iterdir()} == files


def request(out):
    """Two epochs of four steps on `few` digits, as `RECIPE` asks for them."""
    config = TrainConfig(epochs=2, batch_size=8, warmup_epochs=0.2)
    return training.TrainRequest(space="compofa-mbv3-cifar", data="digits", out=out, config=config)


def test_what_a_kill_left_of_a_file_goes_when_a_run_is_opened(tmp_path, monkeypatch):
    monkeypatch.setattr(train_setup, "load_data", lambda source, load=load_data: few(load(source)))
    for name in ("checkpoint.pt", "log.jsonl", "run.json", "supernet.safetensors"):
        (tmp_path / f".{name}.k1lled__").write_bytes(b"half a")
    begun = training.train(request(tmp_path))
    next(begun)
    begun.close()
    assert {path.name for path in tmp_path.iterdir()} == {"run.json"}


# -- two at once -----------------------------------------------------------------------------------------------


def together(*children):
    """Let children that are ready begin at the same moment; their outputs."""
    for child in children:
        assert child.stdout.readline() == "ready\n", child.stderr.read()[-2000:]
    for child in children:
        child.stdin.write("\n")
        child.stdin.flush()
    return [finish(child) for child in children]


def test_two_searches_measure_into_one_cache(tmp_path, monkeypatch, shipped):
    question = ("find", "--target", "cpu", "--latency", "1s", "--json", "--out")  # any network keeps that
    cache = {"OFASEARCH_CACHE": str(tmp_path / "cache")}
    outputs = together(*(start(FIND, *question, tmp_path / name, cwd=tmp_path, **cache) for name in ("one", "two")))
    records = [json.loads(output) for output in outputs]
    for name, record in zip(("one", "two"), records, strict=True):
        assert record == json.loads((tmp_path / name / "result.json").read_text())
    assert records[0]["candidates"] == records[1]["candidates"]  # both saw the same numbers
    (folder,) = (path for path in (tmp_path / "cache" / "latency").iterdir() if path.is_dir())
    assert {path.name for path in folder.iterdir()} == {"fingerprint.json", "levels.jsonl", "nets.jsonl"}
    for path in folder.iterdir():
        lines = path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]
        assert all(isinstance(json.loads(line), dict) for line in lines)
    names = [line["name"] for line in lines_of(folder / "nets.jsonl")]
    assert sorted(names) == sorted(set(names))  # each network was measured by one of them
    assert len(lines_of(folder / "levels.jsonl")) == 1
    monkeypatch.setenv("OFASEARCH_CACHE", cache["OFASEARCH_CACHE"])
    monkeypatch.setattr(measuring, "stopwatch", None)  # nothing is left to be measured
    for name, number in (("SMALL_FIT_NETS", 8), ("CHECK_NETS", 6), ("SMALL_TIMES", 1)):
        monkeypatch.setattr(latency, name, number)
    *_, table = latency.build_table(shipped.weights.space, get_runtime())
    assert table.card["validation"]["n"] == 6


def parquet(path):
    rng, images = np.random.default_rng(0), []
    for n in range(300):
        Image.fromarray(rng.integers(0, 256, (8, 8, 3)).astype(np.uint8)).save(path.with_suffix(f".{n}.png"))
        images.append({"bytes": path.with_suffix(f".{n}.png").read_bytes(), "path": None})
    pq.write_table(pa.table({"img": images, "label": [n % 3 for n in range(300)]}), path)
    return path


def test_two_readers_decode_into_one_cache(tmp_path, monkeypatch):
    source, cache = parquet(tmp_path / "x.parquet"), {"OFASEARCH_CACHE": str(tmp_path / "cache")}
    one, two = together(*(start(DECODE, source, cwd=tmp_path, **cache) for _ in range(2)))
    assert one == two
    (entry,) = (tmp_path / "cache" / "data").iterdir()
    assert entry.suffix == ".npz"
    monkeypatch.setenv("OFASEARCH_CACHE", cache["OFASEARCH_CACHE"])
    monkeypatch.setattr("ofasearch.data.load.read_parquet", None)  # the entry is whole and is read
    assert len(load_data(str(source))["train"]) > 0


# -- disks -----------------------------------------------------------------------------------------------------


# Root may write everywhere; a process that gives up that right (24: from the bounding set, 1: override permissions) may not.
AS_OTHERS = """
import ctypes, os, sys
assert os.geteuid() or ctypes.CDLL(None).prctl(24, 1, 0, 0, 0) == 0
os.execv(sys.executable, [sys.executable, "-c", *sys.argv[1:]])
"""


@pytest.mark.skipif(sys.platform != "linux", reason="gives up root's rights in Linux's way")
def test_a_home_that_cannot_be_written_is_told_and_costs_only_the_memory(tmp_path):
    home = tmp_path / "home"
    home.mkdir(mode=0o555)
    environment = {key: value for key, value in os.environ.items() if key not in ("OFASEARCH_CACHE", "XDG_CACHE_HOME")}
    done = subprocess.run(
        [sys.executable, "-c", AS_OTHERS, FIND, "find", "--target", "cpu", "--latency", "1s", "--json", "--out", "run"],
        cwd=tmp_path,
        env={**environment, "HOME": str(home), "OMP_NUM_THREADS": "1"},
        input="\n",
        capture_output=True,
        text=True,
        timeout=PATIENCE,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    record = json.loads(done.stdout.removeprefix("ready\n"))
    (note,) = [note for note in record["notes"] if "not remembered" in note]
    assert "set OFASEARCH_CACHE to a folder that can be written" in note
    assert "Permission denied" in note
    assert list(home.iterdir()) == []
    assert (tmp_path / "run" / "subnet.onnx").is_file()


@pytest.fixture
def small_disk(tmp_path):
    """Makes a disk of so many bytes; where that is not allowed there is nothing to test on."""
    mounted = []

    def make(size):
        folder = tmp_path / f"disk{len(mounted)}"
        folder.mkdir()
        try:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={size}", "tmpfs", str(folder)], check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting a small disk needs root on Linux")
        mounted.append(folder)
        return folder

    yield make
    for folder in mounted:
        subprocess.run(["umount", "-l", str(folder)], check=True, capture_output=True)


def fill(folder, room):
    """Leave so many bytes."""
    with (folder / "ballast").open("wb", buffering=0) as file:
        try:
            while True:
                file.write(b"x" * 4096)
        except OSError:
            file.truncate(file.seek(0, os.SEEK_END) - room)


def files(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "ballast"}


@pytest.fixture
def says_full(capsys):
    """Runs a command that must fail for want of room, in one sentence."""

    def check(*argv):
        assert run([str(a) for a in argv]) == 1
        out, err = capsys.readouterr()
        assert out == ""
        (sentence,) = [line for line in err.splitlines() if not line.endswith(" ...")]
        assert sentence.startswith("ofasearch: ")
        assert "No space left on device" in sentence
        return sentence

    return check


@pytest.mark.parametrize("room", [0, 64 << 10], ids=["no room", "room for the small files"])
def test_a_search_says_that_the_disk_is_full(small_disk, says_full, capsys, room):
    out = small_disk(32 << 20)
    question = ("find", "--flops", "8M", "--quiet", "--out", out)
    assert run([*map(str, question)]) == 0
    capsys.readouterr()
    before = files(out)
    fill(out, room)
    other = [*question[:2], "5M", *question[3:]]  # so that every file would change
    says_full(*other)
    after = files(out)
    assert after.keys() == before.keys()
    large = ("subnet.onnx", "subnet.pt")
    assert {name for name in after if after[name] != before[name]} <= ({*after} - {*large} if room else set())


@pytest.mark.parametrize(("room", "file"), [(0, "log.jsonl"), (64 << 10, "checkpoint.new.pt")])
def test_a_training_says_that_the_disk_is_full_and_keeps_its_checkpoint(small_disk, says_full, monkeypatch, room, file):
    monkeypatch.setattr(train_setup, "load_data", lambda source, load=load_data: few(load(source)))
    out = small_disk(64 << 20)
    begun = training.train(request(out))
    for _ in range(5):
        next(begun)  # one epoch is saved
    begun.close()
    before = files(out)
    fill(out, room)
    assert f"{out / file} must be writable" in says_full(*RECIPE, out, "--resume")
    after = files(out)
    assert after.keys() == before.keys()
    assert after["checkpoint.pt"] == before["checkpoint.pt"]
    (out / "ballast").unlink()
    assert next(training.train(replace(request(out), resume=True))).report.step == 5


def test_an_evaluation_of_members_says_that_the_disk_is_full(small_disk, says_full, monkeypatch):
    monkeypatch.setattr(members, "load_data", lambda source, load=load_data: few(load(source)))
    monkeypatch.setattr(members, "GROUP", 3)
    disk = small_disk(32 << 10)
    (disk / "members.safetensors").write_bytes(b"of an earlier evaluation")
    fill(disk, 0)
    question = ("supernet", "evaluate", "cifar10-compofa", "--data", "digits", "--quiet", "-o", disk / "members.safetensors")
    says_full(*question)
    assert files(disk) == {"members.safetensors": b"of an earlier evaluation"}
