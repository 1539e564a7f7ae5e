"""Valid files of every kind, small enough to be damaged hundreds of times, and a command line that is watched closely."""

import hashlib
import json
import os
import resource
import shutil
import warnings
from itertools import pairwise
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
import yaml
from damage import ARCH, DESIGN, png
from publish import publish

from ofasearch.cli.main import run
from ofasearch.data import Preprocessing
from ofasearch.latency.table import ANY, LatencyTable, Row, TableKey, save_table
from ofasearch.predictor import TUTORIAL_ENCODER, Predictor, encoder_of, save_predictor
from ofasearch.space.families import DESIGNS, mobile_space
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import Weights, save_weights

MEMORY_LIMIT = 2**30  # bytes that one command on a small file may take
SAFETY_LIMIT = 3 * 2**30  # bytes of address space, so that a failing test does not take the machine with it
IGNORED = (DeprecationWarning, PendingDeprecationWarning, ImportWarning, ResourceWarning)  # as the interpreter does by default


@pytest.fixture(scope="module", autouse=True)
def quick():
    """A space that is priced and trained in milliseconds, and nothing has to survive a power cut."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DESIGNS, DESIGN.name, DESIGN)
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr("ofasearch.jobs.deliver.CHECK_IMAGES", 4)
        yield
    torch.set_num_threads(threads)


def _key(spec):
    """A layer as once-for-all's lookup tables spell it."""
    size, small = f"{spec.hw_in}x{spec.hw_in}", f"{spec.hw_out}x{spec.hw_out}"
    if spec.kind == "linear":
        return f"Logits-input:1x1x{spec.c_in}-output:{spec.c_out}"
    if spec.kind == "mbconv":
        flags = f"stride:{spec.stride}-idskip:{spec.skip:d}-se:{spec.c_se > 0:d}-hs:{spec.act == 'h_swish':d}"
        ends = f"input:{size}x{spec.c_in}-output:{small}x{spec.c_out}"
        return f"expanded_conv-{ends}-expand:{spec.c_mid}-kernel:{spec.kernel}-{flags}"
    name = "AvgPool2D" if spec.kind == "pool" else "Conv" if spec.kernel == 3 else "Conv_1" if spec.norm else "Conv_2"
    return f"{name}-input:{size}x{spec.c_in}-output:{small}x{spec.c_out}"


@pytest.fixture(scope="session")
def valid(tmp_path_factory):
    """A folder with one valid file of every kind; read only."""
    folder = tmp_path_factory.mktemp("valid")
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(DESIGNS, DESIGN.name, DESIGN)
        patch.setattr(os, "fsync", lambda _: None)
        patch.setattr("ofasearch.jobs.deliver.CHECK_IMAGES", 4)
        patch.chdir(folder)
        _write_all(folder)
    return folder


def _write_all(folder):
    space, rng = mobile_space(DESIGN), np.random.default_rng(0)
    images = [{"bytes": png(seed), "path": None} for seed in range(300)]
    pq.write_table(pa.table({"img": images, "label": [n % 3 for n in range(300)]}), folder / "images.parquet")
    (folder / "net").mkdir()
    supernet = Supernet(space, generator=torch.Generator().manual_seed(0))
    preprocessing = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), size=16)
    weights = Weights(supernet.arrays(), space, preprocessing, ("0", "1", "2"), {"strategy": "deps"}, "net")
    save_weights(folder / "net" / "supernet.safetensors", weights)

    def linear(encoder, width):
        sizes = (encoder.dims, width, width, width, 1)
        pairs = list(pairwise(sizes))
        w = tuple((0.1 * rng.normal(size=(1, *pair))).astype(np.float32) for pair in pairs)
        return w, tuple(np.zeros((1, pair[1]), dtype=np.float32) for pair in pairs)

    encoder = encoder_of(space)
    held_out = {"rmse_points": 0.5}
    save_predictor(folder / "predictor.safetensors", Predictor(encoder, *linear(encoder, 8), 0.5, space.name, card={"held_out": held_out}))
    layers = zip((0, 2, 4, 6), *linear(TUTORIAL_ENCODER, 8), strict=True)
    state = {f"{i}.{part}": torch.tensor(a[0].T) for i, w, b in layers for part, a in (("weight", w), ("bias", b))}
    torch.save(state, folder / "tutorial.pth", _use_new_zipfile_serialization=False)  # as the published file was
    layers = {f"layers.{i}.0.weight": (8, size) for i, size in enumerate((82, 8, 8))} | {"layers.3.weight": (1, 8)}
    newer = {name: torch.from_numpy(0.1 * rng.normal(size=shape)).float() for name, shape in layers.items()}
    newer |= {"base_acc": torch.tensor([0.8]), **{f"layers.{i}.0.bias": torch.zeros(8) for i in range(3)}}
    torch.save(newer, folder / "encoder.pth")  # of ResNet50, which says all

    rows = {(ANY, spec.shape): Row(0.1, 0.2, 30) for spec in space.layers()}
    key = TableKey(device="desk", runtime="onnxruntime")
    validation = {"n": 20, "bias_ms": 0.0, "mape": 0.1, "kendall_tau": 0.9}
    save_table(folder / "table.csv", LatencyTable("desk", key, rows, card={"validation": validation}))
    lookup = {_key(spec): {"count": 30, "mean": 0.1, "std": 0.01} for spec in space.layers()}
    (folder / "lookup").mkdir()
    (folder / "lookup" / "16_lookup_table.yaml").write_text(yaml.safe_dump(lookup))

    pairs = [
        {"ks": s.ks[0].tolist(), "e": s.e[0].tolist(), "d": s.d[0].tolist(), "r": 16, "top1": 0.5 + 0.01 * n}
        for n, s in ((n, space.settings(row[None])) for n, row in enumerate(space.sample(12, rng)))
    ]
    (folder / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
    lines = [f'{n},"{ {k: v for k, v in pair.items() if k != "top1"} }",{100 * pair["top1"]}' for n, pair in enumerate(pairs)]
    (folder / "pairs.csv").write_text("\n".join(["n,Sub-network,Top-1 Acc (%)", *lines]) + "\n")
    publish(folder / "published", space.blueprint(space.largest()))
    (folder / "record.json").write_text(json.dumps({"top1": 0.5, "names": ["a", "b"], "nested": {"n": [1, 2, 3]}}))

    for command in (
        "supernet evaluate net --data images.parquet",
        "find --supernet net --flops 1G --out found",
        "train --space tiny --data images.parquet --epochs 1 --batch-size 64 --out run",
    ):
        assert run([*command.split(), "--quiet"]) == 0
    shutil.copy(folder / "found" / "subnet.pt", folder / "subnet.pt")
    shutil.copy(folder / "found" / "subnet.onnx", folder / "subnet.onnx")
    assert run(["eval", "subnet.pt", "--data", "images.parquet", "--save-predictions", "predictions.npz", "--json"]) == 0


@pytest.fixture
def desk(valid, tmp_path, monkeypatch):
    """The working folder of one test, with private copies of all valid files."""
    folder = tmp_path / "desk"
    shutil.copytree(valid, folder)
    (folder / "former.onnx").write_text("what was there before")
    monkeypatch.chdir(folder)
    return folder


def _tree(folder):
    """Names and contents of all that lies in a folder; what is no plain file, or a sparse one, counts by its name."""
    small = {path for path in folder.rglob("*") if path.is_file() and path.stat().st_size < 2**30}
    return {path.relative_to(folder): path in small and hashlib.sha256(path.read_bytes()).hexdigest() for path in folder.rglob("*")}


def _status(name):
    """A line of this process's status, bytes."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])


def _finite(text):
    raise AssertionError(f"{text} in a JSON answer")


@pytest.fixture
def refuses(desk, capfd):
    """Runs a command on bad input; checks all that must hold of a refusal, and of an answer where one is allowed.

    A refusal: the exit code, nothing on stdout, exactly one printable sentence on stderr, no file changed, none left
    behind. An answer: one JSON object of finite numbers. In both cases no code of the file ran, nothing was warned of
    and little memory was used. Returns the sentence, or None for an answer.
    """

    def check(text, *more, codes=(1,)):
        argv, before = [*text.format(arch=ARCH).split(), *map(str, more)], _tree(desk)
        capfd.readouterr()
        Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
        resident, soft = _status("VmRSS"), resource.getrlimit(resource.RLIMIT_AS)
        resource.setrlimit(resource.RLIMIT_AS, (_status("VmSize") + SAFETY_LIMIT, soft[1]))
        try:
            with warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                code = run(argv)
        finally:
            resource.setrlimit(resource.RLIMIT_AS, soft)
        peak = _status("VmHWM") - resident
        out, err = capfd.readouterr()
        assert not (desk / "canary").exists(), "code of the file was run"
        assert code in codes, (code, out, err)
        assert [w for w in warned if not issubclass(w.category, IGNORED)] == []
        assert peak < MEMORY_LIMIT, f"{peak >> 20} MiB"
        if code == 0:
            assert err == ""
            assert isinstance(json.loads(out, parse_constant=_finite), dict)
            assert list(desk.rglob(".*")) == []  # no temporary file
            return None
        assert out == ""
        assert err.endswith("\n")
        sentence = err.removesuffix("\n")
        assert sentence.startswith("ofasearch: ")
        assert sentence.isprintable(), err  # so it is one line as well
        assert len(sentence) < 1000, sentence[:2000]
        assert _tree(desk) == before
        return sentence.removeprefix("ofasearch: ")

    return check
