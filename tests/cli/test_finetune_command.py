"""`ofasearch finetune` and `bn-check`: what they ask their jobs, what they print, and one sentence for everything that cannot be."""

import json
import os
from pathlib import Path

import numpy as np
import pytest
import torch
from makers import image_folder, mnist_files, write_files

from ofasearch import zoo
from ofasearch.cli import finetune as command
from ofasearch.cli.main import run
from ofasearch.data import DataSet, load_data
from ofasearch.jobs import bn_check as bn_job
from ofasearch.jobs import finetune as job
from ofasearch.jobs import finetune_setup
from ofasearch.jobs.deliver import onnx_bytes, shipped_subnet

ARCH = "compofa-mbv3-cifar@r32-2-2-2-2-2"
SIZES = {"train": 32, "calibration": 20, "validation": 16, "test": 16}


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path, one_thread):
    """Nothing has to survive a power cut; commands run in an empty folder of a machine without a GPU, on a handful of digits."""

    def few(source):
        data = load_data(source)
        if source != "digits":
            return data
        return DataSet(data.name, data.class_names, {split: data[split].take(np.arange(n)) for split, n in SIZES.items()})

    for module in (finetune_setup, bn_job):
        monkeypatch.setattr(module, "load_data", few)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr("ofasearch.jobs.deliver.CHECK_IMAGES", 8)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def fails(capsys):
    """Runs a command that must fail; gives its one sentence."""

    def check(code, *argv):
        assert run([str(a) for a in argv]) == code
        out, err = capsys.readouterr()
        sentence = err.splitlines()[-1]
        assert out == ""
        assert sentence.startswith("ofasearch: ")
        assert "Traceback" not in err
        return sentence.removeprefix("ofasearch: ")

    return check


# -- finetune ----------------------------------------------------------------------------------------------------


def test_the_command_and_the_job_agree_on_defaults():
    assert (command.EPOCHS, command.RATE) == (job.EPOCHS, job.RATE)
    assert pytest.approx(0.08 / 2.6 * 0.1, rel=0.05) == job.RATE


def asked(monkeypatch, *argv):
    """The request that a command line makes."""
    caught = []

    def events(request):
        caught.append(request)
        yield job.FinetuneResult(record={"stub": 1})

    monkeypatch.setattr(job, "finetune", events)
    assert run(["finetune", ARCH, "--data", "digits", "-o", "run", "--json", *argv]) == 0
    return caught[0]


def test_options_reach_the_job(monkeypatch):
    plain = asked(monkeypatch)
    assert (plain.config.epochs, plain.config.lr, plain.config.warmup_epochs, plain.config.schedule) == (25, 0.003, 0.0, "cosine")
    assert (plain.teacher, plain.focal, plain.ref, plain.evaluate_every, plain.resume) == (None, 0.0, None, 1, False)
    argv = "--epochs 75 --lr 0.01 --warmup-epochs 1 --no-flip --erase 0.2 --teacher cifar10-compofa --ref x.pt --resume"
    more = asked(monkeypatch, *argv.split())
    assert (more.config.epochs, more.config.lr, more.config.warmup_epochs, more.config.flip, more.config.erase) == (
        75,
        0.01,
        1.0,
        False,
        0.2,
    )
    assert (more.teacher, more.ref, more.resume) == ("cifar10-compofa", "x.pt", True)


def test_a_run_is_told_and_answered(capsys):
    argv = [
        "finetune",
        ARCH,
        "--data",
        "digits",
        "-o",
        "run",
        "--epochs",
        "2",
        "--batch-size",
        "8",
        "--ref",
        "compofa-mbv3-cifar@r32-3-2-2-2-2",
    ]
    assert run(argv) == 0
    out, err = capsys.readouterr()
    for text in (
        "untuned",
        "tuned, epoch",
        "validation flips",
        "test flips",
        "recalibrated on 20 images of digits calibration",
        "subnet.onnx",
    ):
        assert text in out
    for text in ("the untuned network has a validation top-1 of", "phase single, 1 network a step", "epoch 2: validation top-1 subnet"):
        assert text in err
    assert run([*argv, "--resume", "--json"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    record = json.loads(out)
    assert record == json.loads(Path("run/result.json").read_text())
    assert run(["inspect", "run/subnet.pt", "--json"]) == 0
    told = json.loads(capsys.readouterr().out)
    assert told["supernet_digest"] == ""
    assert told["finetuned"]["best_epoch"] == record["best_epoch"]
    assert run(["train", "--show", "run", "--json"]) == 0  # its log is one of a training
    assert [line["epoch"] for line in json.loads(capsys.readouterr().out)["epochs"]] == [1, 2]


@pytest.mark.parametrize("name", ["finetune", "bn-check"])
@pytest.mark.parametrize(
    ("code", "argv", "text"),
    [
        (2, "", "Missing argument 'SUBNET'"),
        (2, ARCH, "Missing option '--data'"),
        (1, f"{ARCH} --data nowhere OUT", "data must be 'digits', an existing file or folder"),
        (1, "compofa-mbv3-cifar@r32-2-2-2-2-9 --data digits OUT", "must be one of [2, 3, 4], but got '9'"),
        (1, f"{ARCH} --supernet nothing --data digits OUT", "nothing"),
        (1, "missing.pt --data digits OUT", "missing.pt"),
        (2, "model.onnx --data digits OUT", "model.onnx is of kind onnx; give the subnet.pt that lies beside it"),
        (2, "saved.npy --data digits OUT", "saved.npy is of kind predictions; give the subnet.pt"),
        (1, "broken.pt --data digits OUT", "broken.pt must be a subnet.pt of ofasearch"),
        (1, f"{ARCH} --data three OUT", "data must have the 10 classes"),
        (1, f"{ARCH} --data grey OUT", "images of grey must have the 32 pixels of"),
    ],
)
def test_what_cannot_be_is_one_sentence(fails, tmp_path, name, code, argv, text):
    trained = zoo.load_supernet(zoo.DEFAULT_SUPERNET)
    codes = np.array(trained.weights.space.parse(ARCH).codes)
    here = tmp_path / "here"
    (here / "model.onnx").write_bytes(onnx_bytes(shipped_subnet(trained.weights, trained.members, codes, trained.name)))
    np.save(here / "saved.npy", np.zeros(16, dtype=np.int64))
    (here / "broken.pt").write_bytes(b"PK\x03\x04 nothing")
    if "three" in argv:
        image_folder(here / "three", 100, sizes=((32, 32),))
    if "grey" in argv:
        write_files(here / "grey", mnist_files(train=320)[0])
    before = sorted(path.name for path in here.iterdir())
    assert text in fails(code, name, *argv.replace("OUT", "--out run").split())
    assert sorted(path.name for path in here.iterdir()) == before


@pytest.mark.parametrize(
    ("code", "argv", "text"),
    [
        (2, "--epochs 0", "0 is not in the range"),
        (2, "--lr 0", "a positive rate"),
        (2, "--batch-size 64", "training images must fill at least one batch of 64, but there are 32"),
        (2, "--focal -1", "--focal must be a weight of at least 0, but got -1"),
        (2, "--focal nan", "--focal must be a weight"),
        (2, "--focal 1 --teacher cifar10-compofa", "--teacher and --focal are two ways"),
        (2, "--evaluate-every 0", "0 is not in the range"),
        (1, "--teacher nothing", "nothing"),
        (1, "--ref nothing.pt", "nothing.pt"),
        (2, "--batch-size 8 --precision fp16", "--precision fp16 needs a CUDA device"),
        (2, "--device cuda", "--device cuda needs a CUDA device"),
        (2, "--warmup-epochs 30", "a warm-up within the run"),
    ],
)
def test_a_recipe_that_cannot_be_is_one_sentence(fails, tmp_path, code, argv, text):
    assert text in fails(code, "finetune", ARCH, "--data", "digits", "-o", "run", *argv.split())
    assert not (tmp_path / "here" / "run").exists()


def test_a_folder_that_cannot_be_written_is_said_at_once(fails, tmp_path):
    (tmp_path / "here" / "file").write_text("in the way")
    for name in ("finetune", "bn-check"):
        assert "must be writable" in fails(1, name, ARCH, "--data", "digits", "--out", "file/run")


# -- bn-check ----------------------------------------------------------------------------------------------------


def test_the_check_is_told_and_answered(capsys):
    assert run(["bn-check", ARCH, "--data", "digits", "--draws", "2", "--tolerance", "20"]) == 0
    out, err = capsys.readouterr()
    for text in (
        "images",
        "below all",
        "suffices",
        "on average",
        "on 16 validation images of digits, 2 draws of each size, batches of 200",
    ):
        assert text in out
    assert "evaluating samples of 16 to 20 images" in err
    assert run(["bn-check", ARCH, "--data", "digits", "--draws", "2", "--tolerance", "20", "--json", "--out", "bn"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    record = json.loads(out)
    assert record["tolerance"] == pytest.approx(0.2)
    assert set(record["files"]) == {"bn_check", "bn_check_csv", "bn_check_png"}


@pytest.mark.parametrize(
    ("argv", "text"),
    [
        ("--images 0", "--images must be at least 1"),
        ("--draws 0", "--draws 1 to 100"),
        ("--tolerance 0", "--tolerance must lie between 0 and 100 points, but got 0"),
        ("--tolerance -1", "--tolerance must lie between 0 and 100 points, but got -1"),
        ("--images many", "'many' is not a valid integer"),
    ],
)
def test_a_check_that_cannot_be_is_one_sentence(fails, argv, text):
    assert text in fails(2, "bn-check", ARCH, "--data", "digits", *argv.split())
