"""`ofasearch supernet evaluate` on real files: tables and JSON on stdout, one sentence per failure."""

import json
import os
import re
from pathlib import Path

import pytest
import torch

from ofasearch import zoo
from ofasearch.cli.main import run
from ofasearch.data import Preprocessing
from ofasearch.evaluate.store import Score
from ofasearch.evaluate.subject import Subject
from ofasearch.jobs.members import MembersResult
from ofasearch.space.costs import macs_of
from ofasearch.space.families import get_space
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import Weights, save_weights

PREPROCESSING = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.3, 0.3, 0.3), size=32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Random supernets for 32x32 images as files: a narrow one of 243 networks, its large parent, and a wider one."""
    folder = tmp_path_factory.mktemp("supernets")
    names = {"narrow": "compofa-mbv3-cifar-w0.1", "large": "ofa-mbv3-cifar-w0.1", "wide": "compofa-mbv3-cifar-w0.25"}
    for seed, (file, name) in enumerate(names.items()):
        space = get_space(name)
        supernet = Supernet(space, kernel_transform=False, generator=torch.Generator().manual_seed(seed))
        save_weights(folder / f"{file}.safetensors", Weights(supernet.arrays(), space, PREPROCESSING))
    return folder


@pytest.fixture(autouse=True)
def own_folder(tmp_path, monkeypatch, folder):
    monkeypatch.chdir(folder)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def scored(monkeypatch):
    """Accuracies come at once: what is printed is the matter."""
    monkeypatch.setattr(Subject, "score", lambda self, codes, _: Score(float(macs_of(self.space)(codes[None])[0]) / 1e7, 20))


def evaluate(*argv, supernet="narrow", data="digits"):
    return run(["supernet", "evaluate", f"{supernet}.safetensors", "--data", data, *map(str, argv)])


def test_the_table_the_figure_and_the_files_are_told(tmp_path, capsys, scored):
    out = tmp_path / "out"
    assert evaluate("--protocol", "pareto", "--nets", 1, "--buckets", 2, "--images", 20, "-o", out) == 0
    printed, progress = capsys.readouterr()
    header, _, *rows = printed.splitlines()
    assert header.split("  ")[0] == "MACs"
    assert "best by validation" in header
    assert sum(row.count(" %") == 2 for row in rows[:4]) == 4  # two buckets and both ends, on validation and test
    assert "images                20 of validation, 20 of test; batch norm on 58 in batches of 200" in printed
    assert "mean Pareto accuracy" in printed
    assert sorted(path.name for path in out.iterdir()) == ["plot.png", "result.json", "subnets.csv"]
    assert all(str(out / name) in printed for name in ("plot.png", "result.json", "subnets.csv"))
    assert progress.splitlines() == ["evaluating narrow on validation ...", "evaluating narrow on test ..."]


@pytest.mark.parametrize(
    ("argv", "columns"),
    [
        (("random", "--at", "0.9M,2100k", "--tolerance", "100k", "--nets", 2), ("lower quartile test", "median", "upper quartile")),
        (("cdf", "--buckets", 2, "--nets", 2), ("error: least test", "median", "most")),
        (("average", "--nets", 1, "--target", "rtx2080", "--bucket-width", "50us"), ("latency on rtx2080", "mean test", "95 % interval")),
        (("boxes", "--nets", 2, "--buckets", 2, "--split", "validation"), ("min validation", "max", "variance (points²)")),
        (("heatmap",), ("depth", "expand ratio 3", "expand ratio 6")),
        (("common", "--with", "large.safetensors", "--nets", 2), ("supernet", "mean top-1 of 2 common networks (test)")),
    ],
)
def test_every_protocol_prints_its_table(argv, columns, tmp_path, capsys, scored):
    assert evaluate("--protocol", *argv, "--images", 20, "--quiet", "-o", tmp_path / "out") == 0
    printed, progress = capsys.readouterr()
    assert all(column in printed.splitlines()[0] for column in columns)
    assert progress == ""


def test_json_is_the_record_alone(tmp_path, capsys, scored):
    argv = ("--protocol", "heatmap", "--images", 20, "--json", "-o", tmp_path / "out")
    assert evaluate(*argv) == 0
    printed, progress = capsys.readouterr()
    record = json.loads(printed)
    assert progress == ""
    assert record == json.loads((tmp_path / "out" / "result.json").read_text())
    assert [(c["depth"], c["expand"]) for c in record["cells"]] == [(2, 3), (3, 4), (4, 6)]
    assert evaluate(*argv) == 0
    again = json.loads(capsys.readouterr().out)
    assert (record["evaluated_now"], again["evaluated_now"]) == (3, 0)
    assert record["cells"] == again["cells"]


@pytest.mark.parametrize(
    ("code", "argv", "text"),
    [
        (2, "--protocol nonsense", "--protocol must be one of members, pareto"),
        (2, "--protocol pareto --nets 0", "--nets must be at least 1, but got 0"),
        (2, "--protocol pareto --nets few", "'few' is not a valid integer"),
        (2, "--protocol pareto --buckets 0", "--buckets must be 1 to 100, but got 0"),
        (2, "--protocol pareto --split test", "--split must go with a protocol that it means something to"),
        (2, "--nets 5", "but got members"),
        (2, "--protocol random --at 4,x", "count must be a positive number with a unit, such as 300M, but got 'x'"),
        (2, "--protocol random --at 4MB", "the unit of count must be one of"),
        (3, "--protocol random --at 400M", "networks near 400 M must be among those of"),
        (2, "--protocol cdf --bucket-width 5", "the unit of latency must be one of us, µs, ms, s"),
        (2, "--protocol cdf --bucket-width 5ms", "--bucket-width must go with --target"),
        (1, "--protocol cdf --target nowhere", "target must be cpu, one of"),
        (1, "--protocol cdf --target poor.csv", "latency table poor must hold every layer, but lacks"),
        (2, "--protocol common", "add --with SUPERNET"),
        (1, "--protocol common --with nowhere", "supernet must be one of"),
        (1, "--protocol common --with wide.safetensors", "two supernets must have networks in common"),
        (1, "--protocol pareto --data nowhere", "data must be 'digits'"),
    ],
)
def test_failures_are_one_sentence(code, argv, text, folder, capsys):
    if "poor.csv" in argv:
        from ofasearch.latency.roofline import DEVICES, estimated_table
        from ofasearch.latency.table import save_table

        table = estimated_table(get_space("ofa-mbv3-w1.0"), DEVICES["rtx2080"])
        save_table(folder / "poor.csv", type(table)("poor", table.key, table.rows))
    assert evaluate(*argv.split()) == code
    printed, said = capsys.readouterr()
    assert printed == ""
    assert len(said.splitlines()) == 1
    assert said.startswith("ofasearch: ")
    assert text in said


@pytest.mark.parametrize("protocol", [(), ("--protocol", "members")])
def test_members_of_a_small_space_are_measured_by_default(protocol, tmp_path, capsys, monkeypatch):
    members, asked = zoo.load_supernet("cifar10-compofa").members, []

    def measured(*request):
        asked.append(request)
        yield MembersResult(path=tmp_path / "m.safetensors", members=members)

    monkeypatch.setattr("ofasearch.jobs.populations.measure_members", measured)
    assert evaluate(*protocol, "--json", "-o", "m.safetensors") == 0
    record = json.loads(capsys.readouterr().out)
    assert asked == [("narrow.safetensors", "digits", Path("m.safetensors"))]
    assert (record["members"], record["n"]) == (str(tmp_path / "m.safetensors"), 243)
    assert set(record["top1"]) == {"largest", "middle", "smallest"}
    assert set(record["top1"]["largest"]) == {"validation", "test"}
    assert record["top1"]["largest"]["test"] == members.top1("test")[-1]
    assert evaluate(*protocol) == 0
    header, _, *rows = capsys.readouterr().out.splitlines()
    assert sorted(re.split(" {2,}", header)) == ["network", "test top-1", "validation top-1"]
    assert [row.split()[0] for row in rows] == ["largest", "middle", "smallest"]


def test_a_large_space_is_judged_by_pareto(tmp_path, capsys, scored):
    assert evaluate("--nets", 1, "--buckets", 1, "--images", 10, "--json", "-o", tmp_path / "out", supernet="large") == 0
    record = json.loads(capsys.readouterr().out)
    assert record["protocol"] == "pareto"
    assert record["networks"] == 3
