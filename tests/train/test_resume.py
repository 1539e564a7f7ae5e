"""Runs that are killed go on to the bit: every method, in and between its phases, from damaged checkpoints, after a real kill."""

import json
import os
import signal
import subprocess
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch

from ofasearch.data import DataSet, ImageSet
from ofasearch.errors import TrainingError
from ofasearch.jobs import run_folder, train_setup
from ofasearch.jobs import train as job
from ofasearch.space.families import DESIGNS
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import Weights, load_weights, save_weights
from ofasearch.train.loop import TrainConfig

CONFIG = TrainConfig(epochs=4, batch_size=8, warmup_epochs=0.4, lr=0.05, crop_padding=1, dropout=0.1)
EPOCH = 6  # steps
METHODS = {
    "ofa": ("ofa", {}, {}),
    "compofa": ("compofa", {"subnets": 2}, {}),
    "bignas": ("bignas", {"subnets": 1}, {"schedule": "exponential", "zero_gamma": True, "optimizer": "rmsprop", "lr": 0.005}),
    "deps": ("deps", {"smallest": True}, {}),
    "rss": ("rss", {}, {"jitter": True, "erase": 0.5}),
    "rss-short": ("rss-short", {"every": "batch", "subnets": 2}, {"auto_augment": "cifar10"}),
    "single": ("single", {"arch": "tiny@r8-132-152"}, {"accumulate": 2}),
    "focal": ("single", {"focal": 0.5}, {"precision": "bf16"}),
    "ofa, taught": ("ofa", {}, {}),
}
TAUGHT = ("focal", "ofa, taught")


@pytest.fixture(scope="module")
def few():
    rng = np.random.default_rng(0)
    images = ImageSet(rng.integers(0, 256, (80, 8, 8, 3)).astype(np.uint8), rng.integers(0, 3, 80))
    parts = np.split(np.arange(80), [50, 60, 70])  # two images of an epoch are left out
    return DataSet("few", ("a", "b", "c"), dict(zip(("train", "calibration", "validation", "test"), map(images.take, parts), strict=True)))


@pytest.fixture(autouse=True)
def quick(few, tiny_design, monkeypatch, one_thread):
    """Runs on 8x8 images that save after every step and need not survive a power cut."""
    monkeypatch.setitem(DESIGNS, "tiny", tiny_design)
    monkeypatch.setattr(train_setup, "load_data", lambda source: few)
    monkeypatch.setattr(job, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return monkeypatch


@pytest.fixture(scope="module")
def teacher(tiny_space, few, tmp_path_factory):
    path = tmp_path_factory.mktemp("teacher") / "teacher.safetensors"
    supernet = Supernet(tiny_space, generator=torch.Generator().manual_seed(4))
    preprocessing = job.Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), size=8)
    save_weights(path, Weights(supernet.arrays(), tiny_space, preprocessing, few.class_names, {}, "teacher"))
    return str(path)


def request(out, method="ofa", teacher=None, **changes):
    strategy, options, settings = METHODS[method]
    config = replace(CONFIG, **settings)
    fields = {"space": "tiny", "data": "few", "out": out, "strategy": strategy, "options": options, "config": config, "evaluate_every": 0}
    return job.TrainRequest(**fields | {"teacher": teacher if method in TAUGHT else None} | changes)


def run_until(step, wanted):
    """The notes of a run that is killed after this step, and the phases it went through."""
    run, notes, phases = job.train(wanted), [], []
    for event in run:
        if isinstance(event, job.TrainNote):
            notes.append(event.text)
            continue
        phases.append(event.report.phase)
        if event.report.step == step:
            break
    run.close()
    assert event.report.step == step
    return notes, list(dict.fromkeys(phases))


def finish(wanted):
    *events, result = job.train(wanted)
    return [event.text for event in events if isinstance(event, job.TrainNote)], result


def edges(method, teacher, tmp_path):
    """First steps of the phases of a run."""
    wanted = request(tmp_path, method, teacher)
    phases = train_setup.describe_plan(wanted.strategy, wanted.options, train_setup.get_space("tiny"), taught=method in TAUGHT)["phases"]
    ends = np.cumsum([phase["paper_epochs"] for phase in phases])
    return [round(CONFIG.epochs * EPOCH * end / ends[-1]) for end in (0, *ends)]


# -- every method ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", METHODS)
def test_a_run_killed_in_and_between_its_phases_ends_in_the_same_weights(tmp_path, teacher, method):
    _, unbroken = finish(request(tmp_path / "unbroken", method, teacher))
    starts = edges(method, teacher, tmp_path)
    kills = sorted({step for a, b in pairwise(starts) for step in ((a + b) // 2, b)} - {0, starts[-1]})
    met = []
    for step in kills:
        notes, phases = run_until(step, request(tmp_path / "broken", method, teacher, resume=True))
        assert notes == []
        met += phases
    notes, broken = finish(request(tmp_path / "broken", method, teacher, resume=True))
    assert notes == []
    assert (broken.digest, broken.top1) == (unbroken.digest, unbroken.top1)
    assert len(set(met)) == len(starts) - 1
    losses = [
        [json.loads(line)["loss"] for line in (tmp_path / name / "log.jsonl").read_text().splitlines()] for name in ("unbroken", "broken")
    ]
    assert losses[0] == pytest.approx(losses[1])
    assert {path.name for path in (tmp_path / "broken").iterdir()} == {
        "run.json", "log.jsonl", "checkpoint.pt", "checkpoint.previous.pt", "supernet.safetensors",
    }  # fmt: skip


def test_a_run_of_given_codes_can_be_resumed(tmp_path, tiny_space):
    options = {"codes": tuple(map(int, tiny_space.middle()))}
    run_until(3, request(tmp_path / "run", "single", options=options))
    finish(request(tmp_path / "run", "single", options=options, resume=True))


def test_the_checkpoint_of_a_taught_phase_holds_the_teacher(tmp_path):
    start, end = edges("ofa", None, tmp_path)[:2]
    for step, there in ((end - 1, False), (end, False), (end + 1, True)):
        run_until(step, request(tmp_path / "run", resume=True))
        state = job.load_checkpoint(tmp_path / "run" / "checkpoint.pt")
        assert ("teacher" in state) is there
    assert start == 0
    del state["teacher"]
    torch.save(state, tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(TrainingError, match="the checkpoint must come from the same run, but it does not fit: 'teacher'"):
        next(job.train(request(tmp_path / "run", resume=True)))


# -- damaged checkpoints ---------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unbroken(few, tiny_design, tmp_path_factory):
    """The digest of an undisturbed run."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DESIGNS, "tiny", tiny_design)
        patch.setattr(train_setup, "load_data", lambda source: few)
        _, result = finish(request(tmp_path_factory.mktemp("runs") / "unbroken"))
    torch.set_num_threads(threads)
    return result.digest


def flipped(path, folder):
    """A byte inside of a weight has one other bit."""
    weight = job.load_checkpoint(path)["weights"]["head.feature.conv.weight"].numpy().tobytes()
    raw = bytearray(path.read_bytes())
    place = raw.index(weight[:64])
    raw[place + 40] ^= 4
    return bytes(raw)


DAMAGES = {
    "empty": lambda path, folder: b"",
    "cut": lambda path, folder: path.read_bytes()[:-200],
    "halved": lambda path, folder: path.read_bytes()[: path.stat().st_size // 2],
    "a byte flipped": flipped,
    "another file": lambda path, folder: (folder / "run.json").read_bytes(),
}


def damage(folder, how, name="checkpoint.pt"):
    path = folder / name
    content = DAMAGES[how](path, folder)
    assert content != path.read_bytes()
    path.write_bytes(content)


@pytest.mark.parametrize(("how", "killed"), [*((how, 14) for how in DAMAGES), ("halved", 5), ("cut", 8), ("empty", 2 * EPOCH)])
def test_a_damaged_checkpoint_costs_one_step_and_not_a_bit(tmp_path, unbroken, how, killed):
    out = tmp_path / "run"
    run_until(killed, request(out))
    damage(out, how)
    run = job.train(request(out, resume=True))
    note, progress = next(run), next(run)
    assert "the newest checkpoint cannot be read, so the run goes on from the one before it (" in note.text
    assert "checkpoint.pt must be a checkpoint of ofasearch train" in note.text
    assert progress.report.step == killed  # the step that the damaged one held is done again
    run.close()
    notes, result = finish(request(out, resume=True))
    assert notes == []
    assert result.digest == unbroken
    steps = [json.loads(line)["step"] for line in (out / "log.jsonl").read_text().splitlines()]
    assert steps == [EPOCH * n for n in range(1, 5)]


def test_a_missing_newest_checkpoint_is_no_loss(tmp_path, unbroken):
    out = tmp_path / "run"
    run_until(9, request(out))
    (out / "checkpoint.pt").unlink()  # killed between the two renames of a save
    notes, result = finish(request(out, resume=True))
    assert len(notes) == 1
    assert result.digest == unbroken


def test_a_damaged_checkpoint_never_takes_the_place_of_the_good_one(tmp_path, quick, unbroken):
    out = tmp_path / "run"
    run_until(9, request(out))
    damage(out, "halved")
    kept = (out / "checkpoint.previous.pt").read_bytes()

    def killed(path, content):
        raise KeyboardInterrupt

    with quick.context() as patch:  # the first save after the damage does not come to its end
        patch.setattr(run_folder, "write_atomic", lambda path, content: killed(path, content) if "checkpoint" in path.name else None)
        with pytest.raises(KeyboardInterrupt):
            list(job.train(request(out, resume=True)))
    assert (out / "checkpoint.pt").read_bytes() == kept
    assert finish(request(out, resume=True))[1].digest == unbroken


def test_two_damaged_checkpoints_end_in_a_sentence(tmp_path):
    out = tmp_path / "run"
    run_until(9, request(out))
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        damage(out, "cut", name)
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    with pytest.raises(
        TrainingError, match=r"checkpoint.*\.pt must be a checkpoint of ofasearch train, but it cannot be read: it is damaged"
    ):
        next(job.train(request(out, resume=True)))
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


def test_a_checkpoint_that_was_not_finished_is_forgotten(tmp_path, unbroken):
    out = tmp_path / "run"
    run_until(7, request(out))
    (out / "checkpoint.new.pt").write_bytes(b"half a")
    assert finish(request(out, resume=True))[1].digest == unbroken
    assert not (out / "checkpoint.new.pt").exists()


# -- kill -9 ---------------------------------------------------------------------------------------------------


@pytest.mark.slow  # test_survival kills the command three times in every run
def test_the_command_killed_without_warning_ends_in_the_same_weights(tmp_path):
    """Epochs of 2 steps; the kill comes when the checkpoint of the first or a later one is there."""
    recipe = ["--space", "compofa-mbv3-cifar-w0.1", "--data", "digits", "--strategy", "compofa", "--subnets", "2"]
    recipe += ["--epochs", "4", "--batch-size", "512", "--evaluate-every", "0", "--warmup-epochs", "0.5", "--quiet", "--json"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(job.__file__).parents[2])}

    def start(out, *more):
        argv = [sys.executable, "-m", "ofasearch", "train", *recipe, "--out", str(out), *more]
        return subprocess.Popen(argv, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)

    whole, killed = start(tmp_path / "whole"), start(tmp_path / "killed")
    while not (tmp_path / "killed" / "checkpoint.pt").exists():
        assert killed.poll() is None, killed.stderr.read()
        time.sleep(0.01)
    killed.kill()
    killed.communicate()
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "killed" / "supernet.safetensors").exists()
    resumed = start(tmp_path / "killed", "--resume")
    records = []
    for child in (whole, resumed):
        out, err = child.communicate(timeout=600)
        assert (child.returncode, err) == (0, "")
        records.append(json.loads(out))
    assert records[0]["digest"] == records[1]["digest"] == load_weights(tmp_path / "killed" / "supernet.safetensors").digest
    assert records[0]["validation_top1"] == records[1]["validation_top1"]
