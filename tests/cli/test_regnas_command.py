"""`ofasearch regnas`: what people and programs read, one sentence per failure."""

import contextlib
import json
import os
import pickle
import re
import shutil
import zipfile
from dataclasses import replace

import numpy as np
import pytest
import torch
from makers import encoded, image_folder

import ofasearch
from ofasearch import zoo
from ofasearch.cli.main import run
from ofasearch.cli.units import PAPER
from ofasearch.data import Preprocessing
from ofasearch.jobs.deliver import save_subnet, uncalibrated_subnet
from ofasearch.ranks import Ranks
from ofasearch.space.families import get_space
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import Weights

SMALL = "compofa-mbv3-cifar@r32-2-2-2-2-2"


class Runs:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.fixture(scope="module", autouse=True)
def quick():
    """Nothing here has to survive a power cut, a proof on 16 images is one, and the shipped supernet is read once."""
    found, load = zoo.load_supernet(zoo.DEFAULT_SUPERNET), zoo.load_supernet
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr("ofasearch.jobs.deliver.CHECK_IMAGES", 16)
        patch.setattr(zoo, "load_supernet", lambda name: found if name == zoo.DEFAULT_SUPERNET else load(name))
        yield


def odd_subnet(space):
    """A calibrated network of random weights."""
    weights = Weights(Supernet(space, kernel_transform=False).arrays(), space, Preprocessing(mean=(0.5,) * 3, std=(0.3,) * 3, size=32))
    return replace(uncalibrated_subnet(weights, space.smallest(), "elsewhere"), calibrated="58 images")


@pytest.fixture(scope="module")
def made(tmp_path_factory, quick):
    """The model in production, and references that are none."""
    folder = tmp_path_factory.mktemp("made")
    record = ofasearch.find(macs=4.6e6, out=folder / "run")
    shutil.copy(record["files"]["subnet"], folder / "model150.pt")
    space = get_space("compofa-mbv3-cifar-w0.1")
    save_subnet(folder / "classes.pt", odd_subnet(get_space(space.name, classes=7)), {})
    save_subnet(folder / "size.pt", odd_subnet(space.with_resolutions([48])), {})
    save_subnet(folder / "raw.pt", replace(odd_subnet(space), calibrated="no"), {})
    save_subnet(folder / "elsewhere.pt", odd_subnet(space), {})
    (folder / "code.pt").write_bytes(pickle.dumps(Runs(folder / "ran")))
    torch.save({"format": Runs(folder / "ran")}, folder / "zip.pt")
    (folder / "code.npz").write_bytes(pickle.dumps({"validation": Runs(folder / "ran")}))
    np.savez(folder / "objects.npz", validation=np.array([Runs(folder / "ran")] * 5000, dtype=object))
    with zipfile.ZipFile(folder / "member.npz", "w") as archive:
        archive.writestr("validation.npy", pickle.dumps(Runs(folder / "ran")))
    (folder / "code.onnx").write_bytes(pickle.dumps(Runs(folder / "ran")))
    (folder / "bytes.pt").write_bytes(b"not what you think\n" * 20)
    np.savez(folder / "short.npz", validation=np.zeros(4999, int), test=np.zeros(10_000, int))
    np.savez(folder / "classes.npz", validation=np.full(5000, 10), test=np.zeros(10_000, int))
    np.savez(folder / "saved.npz", validation=np.zeros(5000, int), test=np.zeros(10_000, int))
    image_folder(folder / "animals", 26, classes=[f"k{n}" for n in range(10)], sizes=((32, 32),))
    (folder / "unlabelled").mkdir()
    for number in range(40):
        (folder / "unlabelled" / f"{number}.png").write_bytes(encoded((32, 32), number))
    return folder


@pytest.fixture
def says(capsys, monkeypatch, tmp_path, made):
    """Runs the command, which must succeed on a terminal of 80 columns; gives what it printed."""

    def check(*argv):
        monkeypatch.setenv("COLUMNS", "80")
        monkeypatch.chdir(made)
        assert run(["regnas", *argv, "--out", str(tmp_path / "run"), "--quiet"]) == 0
        out, err = capsys.readouterr()
        assert err == ""
        return out, json.loads((tmp_path / "run" / "result.json").read_text())

    return check


@pytest.fixture
def fails(capsys, monkeypatch, tmp_path, made):
    """Runs the command, which must fail with that code and leave nothing; gives its one sentence."""

    def check(code, *argv):
        monkeypatch.chdir(made)
        before = sorted(made.rglob("*"))
        assert run(["regnas", *argv, "--out", str(tmp_path / "runs" / "run")]) == code
        out, err = capsys.readouterr()
        assert out == ""
        lines = [line for line in err.splitlines() if line and not line.endswith(" ...")]  # progress may come before
        assert len(lines) == 1, err
        assert not (tmp_path / "runs").exists()
        assert sorted(made.rglob("*")) == before  # nothing was run, nothing written beside
        return lines[0].removeprefix("ofasearch: ")

    return check


def told(out):
    """The facts by name, which stand last."""
    return dict(re.split(" {2,}", line, maxsplit=1) for line in out.rstrip("\n").split("\n\n")[-1].splitlines())


# -- what people read ------------------------------------------------------------------------------------------


def test_people_see_the_candidates_and_what_flips(says):
    out, record = says("--ref", "model150.pt")
    header, _, *rows = out.split("\n\n")[0].splitlines()
    assert re.split(" {2,}", header.strip()) == ["architecture", "top-1 (validation)", "NFR (validation)", "reward"]
    assert len(rows) == len(record["candidates"]) == 5
    for row, candidate in zip(rows, record["candidates"], strict=True):
        assert candidate["arch_id"] in row
        shown = [f"{100 * candidate[key]:.2f} %" for key in ("predicted_top1", "nfr")]
        assert re.split(" {2,}", row)[-3:] == [*shown, f"{candidate['reward_value']:.4f}"]
    facts, measured = told(out), record["measured"]
    assert facts["reward"] == "R2: 1 x top-1 - 1 x NFR"
    assert facts["reference"].startswith("model150.pt (4.50 M MACs): all of its weights are contained")
    assert facts["architecture"] == record["arch_id"]
    assert facts["test top-1"].startswith(f"{100 * measured['top1']:.2f} %, the reference's {100 * measured['top1_ref']:.2f} %")
    assert facts["test flips"].startswith(f"NFR {100 * measured['nfr']:.2f} %, PFR {100 * measured['pfr']:.2f} %")
    assert {facts[name] for name in record["files"]} == set(record["files"].values())


def test_people_see_a_family_beside_the_plain_search(says):
    out, record = says("--family", "5M,7M,9M")
    table, *matrices, facts = out.rstrip("\n").split("\n\n")
    rows = table.splitlines()[2:]
    networks = [*record["family"], *record["plain"]["family"]]
    assert len(rows) == len(networks) == 6
    for row, network in zip(rows, networks, strict=True):
        assert network["arch_id"] in row
        assert f"{100 * network['test']['top1']:.2f} %" in row
    for split, matrix in zip(("validation", "test"), matrices, strict=True):
        assert f"{100 * record['nfr_matrix'][split][0][2]:.2f} %" in matrix
        assert f"{100 * record['plain']['nfr_matrix'][split][1][2]:.2f} %" in matrix
    assert "family-test.png" in facts


def test_people_see_what_accuracy_costs_in_flips(says):
    out, record = says("--ref", "model150.pt", "--sweep")
    assert [network["ratio"] for network in record["sweep"]] == list(PAPER)
    table, picture, facts = out.rstrip("\n").split("\n\n")
    assert len(table.splitlines()) == 2 + 9 + 1  # the reference is the last
    for row, network in zip(table.splitlines()[2:], record["sweep"], strict=False):
        assert f"{network['ratio']:g}" in row.split()
        assert network["arch_id"] in row
    assert picture.startswith("top-1 against NFR: test split, 10,000 images")
    assert max(map(len, picture.splitlines())) <= 80
    assert "sweep-test.png" in facts


def test_progress_goes_to_stderr(capsys, made, tmp_path, monkeypatch):
    monkeypatch.chdir(made)
    assert run(["regnas", "--ref", "model150.pt", "--out", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert "exporting ..." in err
    assert "..." not in out


def test_only_the_first_process_speaks(capsys, made, tmp_path, monkeypatch):
    monkeypatch.chdir(made)
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setattr("ofasearch.jobs.regnas.join", lambda: contextlib.nullcontext(Ranks(1, 2, 1)))
    monkeypatch.setattr(Ranks, "gather", lambda _, value: [value])
    monkeypatch.setattr(Ranks, "share", lambda _, value: value)
    assert run(["regnas", "--ref", "model150.pt", "--sweep", "1,2", "--out", str(tmp_path / "run")]) == 0
    assert capsys.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []


def test_the_help_tells_the_defaults(capsys):
    assert run(["regnas", "--help"]) == 0
    out = " ".join(capsys.readouterr().out.split())
    for text in ("ofasearch regnas --ref model150.pt", "[default: twice the reference's]", "[default: r2]", "[default: where that can be]"):
        assert text in out


# -- what programs read ----------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("argv", "options"),
    [
        (["--reward", "R1", "--nfr-cap", "2%", "--no-cas"], {"reward": "r1", "nfr_cap": 0.02, "cas": False}),
        (["--lambda1", "2", "--lambda2", "0.5", "--flops", "9M"], {"lambda1": 2.0, "lambda2": 0.5, "macs": 9e6}),
        (["--sweep", "0.1,3", "--cas"], {"sweep": (0.1, 3.0), "cas": True}),
        (["--family", "6M,8M", "--nfr-cap", "0.03"], {"family": (6e6, 8e6), "nfr_cap": 0.03}),
    ],
)
def test_json_is_one_object_and_that_of_python(capsys, made, tmp_path, monkeypatch, argv, options):
    for name in ("family_plot", "sweep_plot"):
        monkeypatch.setattr(f"ofasearch.report.regnas.{name}", lambda *_: b"")
    assert run(["regnas", "--ref", str(made / "model150.pt"), *argv, "--json", "--out", str(tmp_path / "run")]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    record = json.loads(out)
    assert record == json.loads((tmp_path / "run" / "result.json").read_text())

    def plain(value):
        text = json.dumps(value).replace(str(tmp_path / "python"), str(tmp_path / "run"))
        return json.loads(text, object_hook=lambda found: {k: v for k, v in found.items() if k != "search_seconds"})

    again = ofasearch.regnas(ref=made / "model150.pt", **options, out=tmp_path / "python")
    assert plain(again) == plain(record)


# -- failures --------------------------------------------------------------------------------------------------

MODEL = "--ref model150.pt"


@pytest.mark.parametrize(
    ("code", "argv", "text"),
    [
        (2, "", "a reference must be given: add --ref model.pt (or a --family, whose smallest network then is it)"),
        (2, "--sweep", "a reference must be given"),
        (2, f"{MODEL} --reward r3", "'r3' is not one of"),
        (2, f"{MODEL} --lambda1 -1", "--lambda1 must be a number from 0 to a million, but got -1"),
        (2, f"{MODEL} --lambda2 nan", "--lambda2 must be a number from 0 to a million, but got nan"),
        (2, f"{MODEL} --lambda2 inf", "--lambda2 must be a number from 0 to a million, but got inf"),
        (2, f"{MODEL} --lambda1 0 --lambda2 0", "--lambda1 and --lambda2 must not both be 0"),
        (2, f"{MODEL} --lambda1 much", "'much' is not a valid float"),
        (2, f"{MODEL} --reward r0 --lambda2 1", "--lambda1 and --lambda2 are the weights of --reward r2, but the reward is r0"),
        (2, f"{MODEL} --nfr-cap 101%", "a share must be at most 100 %, but got '101%'"),
        (2, f"{MODEL} --nfr-cap -2%", "a share must be a positive number"),
        (2, f"{MODEL} --nfr-cap 2M", "the unit of a share must be one of no unit, %"),
        (2, f"{MODEL} --flops 8parsec", "the unit of count must be one of"),
        (2, f"{MODEL} --flops 0", "count must be positive"),
        (2, f"{MODEL} --latency 1ms", "a latency budget needs a device"),
        (2, f"{MODEL} --sweep 1,nan", "--sweep must name ratios of lambda2 to lambda1"),
        (2, f"{MODEL} --sweep 1,-1", "--sweep must name ratios of lambda2 to lambda1"),
        (2, f"{MODEL} --sweep few", "must be numbers separated by commas, such as 0.1,1,10, but got 'few'"),
        (2, f"{MODEL} --sweep 1,2 --lambda2 3", "--sweep tries many weights, so --lambda1 and --lambda2 must be left out"),
        (2, f"{MODEL} --sweep 1,2 --reward r0", "--sweep varies the weights of reward r2, but --reward r0 has none; leave it out"),
        (2, f"{MODEL} --sweep 1,2 --family 5M,6M", "--family and --sweep must be asked one after the other, but both are given"),
        (2, "--family 7M,5M", "--family must name different positive MACs from small to large"),
        (2, "--family 5M,5M", "--family must name different positive MACs from small to large"),
        (2, "--family 5M,x", "count must be a positive number with a unit"),
        (2, "--family 5M,7M --flops 9M", "--family names the MACs of its networks, so --flops must be left out, but both are given"),
        (2, f"{MODEL} --space compofa-mbv3-cifar", "--space compofa-mbv3-cifar has none; add --supernet"),
        (2, f"{MODEL} --images 100", "add --data"),
        (2, f"{MODEL} --algorithm magic", "'magic' is not one of"),
        (2, f"{MODEL} --seed -1", "--seed at least 0, but got 5 and -1"),
        (2, f"{MODEL} --resume", "--resume needs the folder of an interrupted run"),
        (2, "--ref saved.npz", "a budget must be given, because the MACs of saved.npz are not known"),
        (1, "--ref saved.npz --flops 9M --cas", "with --cas the reference must be a subnet of the searched supernet (same digest)"),
        (1, "--ref short.npz --flops 9M", "short.npz must hold a prediction for each of the 5,000 validation images of"),
        (1, "--ref classes.npz --flops 9M", "predictions in classes.npz must be classes 0 to 9, but one is 10"),
        (1, "--ref nowhere.pt", "nowhere.pt must be an existing file"),
        (1, "--ref nowhere.npz --flops 9M", "nowhere.npz must be an existing file of predictions"),
        (1, "--ref unlabelled", "unlabelled/net.config must be an existing JSON file"),
        (1, "--ref bytes.pt", "must be"),
        (1, "--ref code.pt", "must be a subnet.pt of ofasearch"),
        (1, "--ref zip.pt", "must be a subnet.pt of ofasearch"),
        (1, "--ref code.npz --flops 9M", "code.npz must hold predicted classes as a .npz file, but cannot be read"),
        (1, "--ref objects.npz --flops 9M", "objects.npz must hold predicted classes as a .npz file, but cannot be read"),
        (1, "--ref member.npz --flops 9M", "member.npz must hold predicted classes as a .npz file, but cannot be read"),
        (1, "--ref code.onnx", "code.onnx"),
        (1, f"{MODEL} --supernet nowhere", "supernet must be one of"),
        (1, f"{MODEL} --target nowhere --latency 1ms", "target must be cpu, one of"),
        (1, f"{MODEL} --data nowhere", "data must be 'digits'"),
        (1, "--ref classes.pt", "classes.pt must be a network of cifar10-compofa with its shipped statistics"),
        (1, "--ref elsewhere.pt", "add --data (or name its --supernet)"),
        (1, "--ref classes.pt --data digits", "data must have the 7 classes of classes.pt, but digits has 10"),
        (1, "--ref size.pt --data digits", "images of digits must have the 48 pixels of size.pt, but have 32"),
        (1, "--ref raw.pt --data digits", "raw.pt must be calibrated before it is scored"),
        (1, f"{MODEL} --data animals", "classes of model150.pt must be those of animals (k0, k1, k2, ...), but they are airplane"),
        (1, f"{MODEL} --data unlabelled", "must have label"),
        (3, f"{MODEL} --flops 4.4M", "MACs budget must be at least 4.495 M, what the reference takes at the smallest resolution, because"),
        (3, f"{MODEL} --flops 4M --no-cas", "MACs budget must be at least 4.155 M (the least of"),
        (3, f"{MODEL} --flops 4.5M", "which it is compared with, is no answer; raise them, or add --no-cas"),
        (3, f"{MODEL} --params 1k", "the network must contain all weights of the reference, unless you add --no-cas"),
        (3, f"{MODEL} --nfr-cap 0.1% --json", "--nfr-cap must be at least 0.44 % (the lowest negative flip rate that any network within"),
        (3, "--family 3M,5M", "MACs budget must be at least 4.155 M"),
        (3, f"--family 4.2M,5M {MODEL}", "MACs budget must be at least 4.495 M, what the reference takes"),
    ],
)  # fmt: skip
def test_what_cannot_be_answered_is_one_sentence(fails, code, argv, text):
    assert text in fails(code, *argv.split())


def test_this_machine_is_measured_by_one_process(fails, monkeypatch):
    monkeypatch.setattr("ofasearch.jobs.regnas.join", lambda: contextlib.nullcontext(Ranks(0, 2, 0)))
    text = "latencies of this machine must be measured by one process, but torchrun started several; leave --target out"
    assert text in fails(2, "--ref", SMALL, "--target", "cpu", "--latency", "1ms")


def test_a_half_environment_of_torchrun_is_wrong_usage(fails, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    monkeypatch.delenv("RANK", raising=False)
    assert "several processes must be started by torchrun" in fails(2, "--ref", SMALL)


def test_a_folder_of_another_run_is_told(capsys, made):
    before = {path.name: path.read_bytes() for path in (made / "run").iterdir()}
    assert run(["regnas", "--ref", str(made / "model150.pt"), "--out", str(made / "run")]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert "must be a new folder or that of an earlier regnas, but holds another run; give another --out" in err
    assert {path.name: path.read_bytes() for path in (made / "run").iterdir()} == before


def test_a_folder_that_cannot_be_written_is_told_at_once(capsys, made, tmp_path):
    (tmp_path / "file").write_text("")
    assert run(["regnas", "--ref", str(made / "model150.pt"), "--out", str(tmp_path / "file" / "run")]) == 1
    assert "must be writable, but it is not" in capsys.readouterr().err
