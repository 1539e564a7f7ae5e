"""`ofasearch train`: what it asks the job for, what it prints, and one sentence for everything that cannot be."""

import json
import os
from pathlib import Path

import pytest
import torch
from makers import encoded, image_folder

from ofasearch.cli.main import run
from ofasearch.jobs import train as job
from ofasearch.supernet.weights import load_weights
from ofasearch.train.loop import TrainConfig

SPACE = "compofa-mbv3-cifar-w0.1"
START = f"--space {SPACE} --data digits --out run"
LONG = f"{START} --epochs 20"


@pytest.fixture(autouse=True)
def quick(monkeypatch, tmp_path, one_thread):
    """Nothing has to survive a power cut; commands run in an empty folder of a machine without a GPU."""
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")


@pytest.fixture
def fails(capsys):
    """Runs a training that must fail; gives its one sentence."""

    def check(code, *argv):
        assert run(["train", *map(str, argv)]) == code
        out, err = capsys.readouterr()
        assert out == ""
        assert err.startswith("ofasearch: ")
        assert err.count("\n") == 1, err
        return err.removeprefix("ofasearch: ").removesuffix("\n")

    return check


# -- what cannot be --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "argv", "text"),
    [
        (2, "", "training needs --space and --data and --out; see ofasearch train --help"),
        (2, "--epochs 3 --out run", "training needs --space and --data; see"),
        (2, f"--space {SPACE} --data digits --epochs 3", "training needs --out; see"),
        (2, START, "exactly one of --epochs and --length must be given"),
        (2, f"{START} --epochs 3 --length 5%", "exactly one of --epochs and --length must be given"),
        (2, f"{START} --length much", "--length must be a share such as 5% or 0.05, but got 'much'"),
        (2, f"{START} --length %", "--length must be a share"),
        (2, f"{START} --length 0%", "--length must be above 0 and at most 100 (or 10000%), but got '0%'"),
        (2, f"{START} --length -5%", "--length must be above 0"),
        (2, f"{START} --length 101", "--length must be above 0 and at most 100"),
        (2, f"{START} --length nan", "--length must be above 0"),
        (2, f"{START} --epochs 0", "0 is not in the range"),
        (2, f"{START} --epochs 99999999999999999999", "is not in the range"),
        (2, f"{START} --epochs few", "'few' is not a valid integer"),
        (2, f"{LONG} --option subnets", "--option must look like NAME=VALUE, but got 'subnets'"),
        (2, f"{LONG} --option =3", "--option must look like NAME=VALUE, but got '=3'"),
        (2, f"{LONG} --option nonsense=3", "options of strategy deps must be its own, but got {'nonsense': 3}"),
        (2, f"{LONG} --option subnets=2.5", "deps needs 1 to 1000 subnets a step, but got 2.5"),
        (2, f"{LONG} --option smallest=maybe", "smallest of deps must be true or false, but got 'maybe'"),
        (2, f"{LONG} --option epsilon=nan", "deps needs shares in [0, 1], epsilon in (0, 1]"),
        (2, f"{LONG} --option arch={SPACE}@r32-2-2-2-2-2", "options of strategy deps must be its own"),
        (2, f"{LONG} --strategy rss --option epochs=0", "rss needs 1 to 100000 epochs, but got 0"),
        (2, f"{LONG} --strategy rss --warmup-share 0.5", "options of strategy rss must be its own"),
        (2, f"{LONG} --strategy ofa --smallest", "options of strategy ofa must be its own"),
        (2, f"{LONG} --subnets 0", "at least 1 subnet"),
        (2, f"{LONG} --strategy sandwich", "'sandwich' is not one of 'ofa', 'compofa', 'bignas'"),
        (1, f"{LONG} --strategy single --option arch=biggest", f"an arch id of {SPACE} must look like"),
        (1, f"{LONG} --strategy single --option arch={SPACE}@r32-2-2-2-2-9", "s5.depth must be one of [2, 3, 4], but got '9'"),
        (1, f"{LONG} --strategy single --option codes=3", "must be an integer matrix with 6 columns"),
        (2, f"{START} --epochs 1 --batch-size 256 --strategy ofa", "at least one step beyond its warm-up, but 'depth 1' has"),
        (2, f"{LONG} --strategy ofa --warmup-epochs 12", "train for more epochs or warm up for fewer"),
        (2, f"{LONG} --warmup-epochs 20", "a warm-up within the run"),
        (2, f"{LONG} --batch-size 5000", "training images must fill at least one batch of 5000, but there are 1236"),
        (2, f"{LONG} --batch-size 1", "a batch of 2"),
        (2, f"{LONG} --accumulate 3", "a batch must be a multiple of processes times accumulation"),
        (2, f"{LONG} --accumulate 0", "accumulate be at least 1, but got 0.0 and 0"),
        (2, f"{LONG} --lr 0", "a positive rate"),
        (2, f"{LONG} --lr nan", "a positive rate"),
        (2, f"{LONG} --momentum 1", "momentum must lie in (0, 1)"),
        (2, f"{LONG} --dropout 1", "dropout must lie in [0, 1)"),
        (2, f"{LONG} --erase 2", "the probability to erase must lie in [0, 1], but got 2.0"),
        (2, f"{LONG} --seed -1", "--seed"),
        (2, f"{LONG} --seed 18446744073709551616", "--seed"),
        (2, f"{LONG} --evaluate-every -1", "--evaluate-every"),
        (2, f"{LONG} --workers 0", "--workers"),
        (2, f"{LONG} --price nan", "--price must be a rate of at least 0, but got nan"),
        (2, f"{LONG} --co2 -1", "--co2 must be a rate of at least 0, but got -1.0"),
        (2, f"{LONG} --device tpu", "'tpu' is not one of 'cpu', 'cuda'"),
        (2, f"{LONG} --device cuda", "--device cuda needs a CUDA device, but torch sees none; leave it out to train on the CPU"),
        (2, f"{LONG} --precision fp16", "--precision fp16 needs a CUDA device, but this run is on cpu; leave it out"),
        (2, f"{LONG} --sync-bn", "--sync-bn needs a CUDA device, but this run is on cpu; leave it out"),
        (1, f"{LONG} --resolutions 16,32", "images of digits have 32 pixels and are not resized; leave --resolutions out"),
        (2, f"{LONG} --resolutions large", "--resolutions must be sizes such as 128,160,192, but got 'large'"),
        (1, "--space nowhere --data digits --out run --epochs 1", "space must be one of ofa-mbv3-w1.0"),
        (1, "--space nowhere --data digits --out run --length 5%", "space must be one of ofa-mbv3-w1.0"),
        (1, f"--space {SPACE} --data nowhere --out run --epochs 1", "data must be 'digits'"),
        (1, f"{LONG} --init nowhere", "nowhere must be an existing file"),
        (1, f"{LONG} --strategy ofa --teacher nowhere", "supernet must be one of"),
        (2, f"{LONG} --teacher cifar10-compofa", "strategy deps distils from no given network; leave --teacher out"),
        (1, f"{LONG} --strategy compofa --teacher cifar10-compofa", f"weights of {SPACE} must come from it"),
        (2, f"{LONG} --strategy single --option focal=1", "needs a network to distil from: give it as --teacher"),
        (2, "--plan", "--plan needs --space"),
        (2, f"--plan --space {SPACE} --epochs -3", "--epochs"),
        (2, f"--plan --space {SPACE} --epochs 3 --length 5%", "exactly one of --epochs and --length"),
        (2, f"--plan --space {SPACE} --lr nan --json", "the learning rate must be positive, but got nan"),
        (2, f"--plan --space {SPACE} --option nonsense=3", "options of strategy deps must be its own"),
        (1, "--plan --space nowhere", "space must be one of"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_is_one_sentence_and_its_exit_code(fails, code, argv, text):
    assert text in fails(code, *argv.split())
    assert list(Path.cwd().iterdir()) == []  # and no half a run


def test_images_without_labels_cannot_be_trained_on(fails, tmp_path):
    (tmp_path / "images").mkdir()
    for n in range(20):
        (tmp_path / "images" / f"{n}.png").write_bytes(encoded((8, 8), n))
    sentence = fails(2, "--space", SPACE, "--data", tmp_path / "images", "--out", "run", "--epochs", 3)
    assert sentence.startswith(
        "training needs labelled images, but images has no labels; give Parquet, CIFAR or idx files, or a folder with"
    )


def test_too_few_images_cannot_be_trained_on(fails, tmp_path):
    data = image_folder(tmp_path / "images", 20, sizes=((8, 8),))
    sentence = fails(2, "--space", SPACE, "--data", data, "--out", "run", "--epochs", 3)
    assert "data set images must have at least 200 training images and some test images" in sentence


# -- what the job is asked for ---------------------------------------------------------------------------------


@pytest.fixture
def asked(monkeypatch, capsys):
    """Runs a command without its job; gives the request that the job would have got."""
    found = []

    def nothing(request):
        found.append(request)
        yield job.TrainResult(supernet=Path("x"), digest="d", top1={"largest": 0.5}, seconds=1.0, device_hours=0.1)

    monkeypatch.setattr(job, "train", nothing)

    def check(text):
        assert run(["train", *text.split()]) == 0
        capsys.readouterr()
        return found.pop()

    return check


def test_the_defaults_are_those_of_the_help(asked):
    request = asked(f"{START} --epochs 30")
    assert request == job.TrainRequest(space=SPACE, data="digits", out=Path("run"), config=TrainConfig(epochs=30))
    assert asked(f"{START} --epochs 4").config.warmup_epochs == 0.4


@pytest.mark.parametrize(
    ("argv", "epochs"),
    [
        ("--space ofa-mbv3-w1.0 --strategy ofa --length 5%", 30),  # of 605
        ("--space ofa-mbv3-w1.0 --strategy ofa --length 0.05", 30),
        ("--space ofa-mbv3-w1.0 --strategy ofa --length 5% --teacher x", 21),  # of 425
        ("--space compofa-mbv3-w1.0 --strategy compofa --length 10%", 33),
        ("--space compofa-mbv3-elastic-w1.0 --strategy compofa --length 10%", 46),  # 45.5, to the even number
        ("--space compofa-mbv3-w1.0 --strategy bignas --length 1", 400),
        ("--space compofa-mbv3-w1.0 --length 10%", 27),
        ("--space compofa-mbv3-w1.0 --strategy rss --length 10%", 59),
        ("--space compofa-mbv3-w1.0 --strategy rss-short --length 10%", 18),
        ("--space compofa-mbv3-w1.0 --strategy rss --option epochs=50 --length 10%", 5),
        ("--space compofa-mbv3-w1.0 --strategy single --option arch=later --length 50%", 90),
        ("--space compofa-mbv3-w1.0 --length 0.01%", 1),
    ],
)
def test_a_length_is_a_share_of_the_papers_epochs(asked, argv, epochs):
    assert asked(f"{argv} --data digits --out run").config.epochs == epochs


def test_a_recipe_is_the_methods_own_unless_said(asked):
    sandwich = asked(f"{LONG} --strategy bignas").config
    assert (sandwich.schedule, sandwich.zero_gamma, sandwich.warmup_epochs) == ("exponential", True, 1.0)
    assert asked(f"{LONG} --strategy bignas --schedule cosine").config.schedule == "cosine"
    assert asked(f"{LONG} --strategy rss").config.warmup_epochs == 0
    assert asked(f"{LONG} --strategy rss --warmup-epochs 2").config.warmup_epochs == 2
    assert asked(f"{LONG} --strategy ofa").config == TrainConfig(epochs=20)


def test_every_option_reaches_the_job(asked):
    request = asked(
        f"{LONG} --strategy deps --subnets 3 --warmup-share 0.25 --smallest --option epsilon=0.01 --option ramp_share=0 --batch-size 64 "
        "--accumulate 2 --lr 0.2 --schedule exponential --warmup-epochs 0.5 --optimizer rmsprop --momentum 0.8 --weight-decay 0.1 "
        "--label-smoothing 0.2 --dropout 0.3 --no-flip --jitter --auto-augment imagenet --erase 0.4 --resolutions 160,128,160 "
        "--fixed-resolution --device cpu --precision bf16 --sync-bn --workers 3 --skip-unreadable --init a --teacher b --evaluate-every 0 "
        "--price 2.5 --co2 0.1 --seed 7 --resume --quiet"
    )
    config = TrainConfig(
        epochs=20, batch_size=64, accumulate=2, lr=0.2, schedule="exponential", warmup_epochs=0.5, optimizer="rmsprop", momentum=0.8,
        weight_decay=0.1, label_smoothing=0.2, dropout=0.3, flip=False, jitter=True, auto_augment="imagenet", erase=0.4,
        elastic_resolution=False, precision="bf16", sync_bn=True, seed=7,
    )  # fmt: skip
    options = {"subnets": 3, "warmup_share": 0.25, "smallest": True, "epsilon": 0.01, "ramp_share": 0}
    assert request == job.TrainRequest(
        space=SPACE, data="digits", out=Path("run"), strategy="deps", options=options, config=config, resolutions=(128, 160),
        init=Path("a"), teacher="b", resume=True, evaluate_every=0, device="cpu", workers=3, skip_unreadable=True, price=2.5, co2=0.1,
    )  # fmt: skip


def test_values_of_options_are_numbers_flags_or_words(asked):
    request = asked(
        f"{LONG} --option a=3 --option b=-0.5 --option c=true --option d=false --option e=max-then-min --option f=x=y --option g="
    )
    assert request.options == {"a": 3, "b": -0.5, "c": True, "d": False, "e": "max-then-min", "f": "x=y", "g": ""}
    assert [type(value) for value in request.options.values()] == [int, float, bool, bool, str, str, str]


# -- plans -----------------------------------------------------------------------------------------------------


def test_a_plan_prints_phases_and_trains_nothing(capsys):
    assert run(["train", "--plan", "--space", "ofa-mbv3-w1.0", "--strategy", "ofa", "--length", "5%", "--lr", "2.6"]) == 0
    out, err = capsys.readouterr()
    header, _, *rows = out.splitlines()
    assert header.split()[:2] == ["phase", "epochs"]
    assert [row.split("  ")[0] for row in rows[:6]] == ["teacher", "kernel", "depth 1", "depth 2", "width 1", "width 2"]
    assert "kernel 3/5/7, depth 2/3/4, expand 4/6" in rows[4]
    assert "sorted, 4x kept" in rows[5]
    assert "width_subnets=4" in out
    assert "the loop's own" in out
    assert err == ""
    assert list(Path.cwd().iterdir()) == []


@pytest.mark.parametrize("strategy", ["ofa", "compofa", "bignas", "deps", "rss", "rss-short", "single"])
def test_a_plan_is_one_object_of_json_for_every_method(capsys, strategy):
    assert run(["train", "--plan", "--space", "compofa-mbv3-elastic-w1.0", "--strategy", strategy, "--length", "5%", "--json"]) == 0
    out, err = capsys.readouterr()
    plan = json.loads(out)
    assert err == ""
    assert (plan["strategy"], plan["space"]) == (strategy, "compofa-mbv3-elastic-w1.0")
    epochs = sum(row["paper_epochs"] for row in plan["phases"])
    assert sum(row["epochs"] for row in plan["phases"]) == pytest.approx(max(1, round(0.05 * epochs)), abs=0.05)
    assert {"phase", "epochs", "paper_epochs", "lr", "subnets", "choices", "channels"} == set(plan["phases"][0])


def test_without_a_length_a_plan_is_the_papers(capsys):
    assert run(["train", "--plan", "--space", "ofa-mbv3-w1.0", "--strategy", "ofa", "--teacher", "x", "--json"]) == 0
    rows = json.loads(capsys.readouterr().out)["phases"]
    assert [row["epochs"] for row in rows] == [row["paper_epochs"] for row in rows] == [125, 25, 125, 25, 125]


# -- whole runs ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def small(tmp_path_factory):
    """A folder of small images; 226 of them train."""
    return image_folder(tmp_path_factory.mktemp("small") / "d", 112, sizes=((8, 8),))


def recipe(small, *more):
    argv = ["train", "--space", SPACE, "--data", small, "--out", "run", "--strategy", "compofa", "--epochs", 4, "--batch-size", 113, *more]
    return [str(a) for a in argv]


def test_people_are_told_phases_accuracies_and_costs(small, capsys):
    assert run(recipe(small, "--evaluate-every", 3, "--price", 3600, "--co2", 7200)) == 0
    out, err = capsys.readouterr()
    lines = err.splitlines()
    assert [line for line in lines if "phase" in line] == [
        "epoch 1: phase teacher, 1 network a step",
        "epoch 3: phase compound 1, 4 networks a step",
        "epoch 3: phase compound 2, 4 networks a step",
    ]
    assert [line.split(",")[0].rpartition(" ")[0].split(":")[0] for line in lines if "validation" in line] == ["epoch 3", "epoch 4"]
    training = load_weights(Path("run/supernet.safetensors")).training
    assert [line.split()[0] for line in out.splitlines()[2:5]] == ["largest", "middle", "smallest"]
    assert f"{100 * training['validation_top1']['smallest']:.2f} %" in out
    assert f"supernet      {Path.cwd() / 'run' / 'supernet.safetensors'}" in out
    assert " dollars" in out
    assert " kg CO2" in out
    assert training["kg_co2"] == pytest.approx(2 * training["dollars"])
    assert training["dollars"] == pytest.approx(3600 * training["device_hours"])
    logged = [json.loads(line) for line in Path("run/log.jsonl").read_text().splitlines()]
    assert [line["phase"] for line in logged] == ["teacher", "teacher", "compound 2", "compound 2"]
    assert [line["passes"] for line in logged] == [1, 1, 4, 4]
    assert ["validation_top1" in line for line in logged] == [False, False, True, True]
    assert [line["dollars"] for line in logged] == sorted(line["dollars"] for line in logged)


def test_a_run_that_is_there_is_resumed_or_refused(small, capsys, fails):
    assert run(recipe(small, "--json")) == 0
    out, err = capsys.readouterr()
    record = json.loads(out)
    assert err == ""
    assert set(record) == {"supernet", "digest", "validation_top1", "seconds", "device_hours"}
    assert fails(2, *recipe(small)[1:]) == "run must be a new folder, but holds a run; add --resume to continue it"
    changed = fails(1, *recipe(small, "--resume", "--lr", 0.2, "--subnets", 3)[1:])
    assert changed == "a resumed run must keep its settings, but options, lr changed; start a new folder instead"
    assert run(recipe(small, "--resume", "--json")) == 0
    assert json.loads(capsys.readouterr().out)["digest"] == record["digest"]

    (Path("run") / "checkpoint.pt").write_bytes(b"damaged")
    assert run(recipe(small, "--resume")) == 0
    out, err = capsys.readouterr()
    assert err.startswith("note: the newest checkpoint cannot be read, so the run goes on from the one before it (")
    assert load_weights(Path("run/supernet.safetensors")).digest == record["digest"]
    for name in ("checkpoint.pt", "checkpoint.previous.pt"):
        (Path("run") / name).write_bytes(b"damaged")
    assert "checkpoint.previous.pt must be a checkpoint of ofasearch train, but it cannot be read" in fails(
        1, *recipe(small, "--resume")[1:]
    )
