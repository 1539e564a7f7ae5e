"""`bench`: sweeps over batches and threads, other runtimes in turn with ONNX Runtime, and what cannot be timed said in one sentence."""

import json

import numpy as np
import pytest

from ofasearch.cli.main import run
from ofasearch.deploy.export import OnnxForm, build_onnx, random_weights
from ofasearch.deploy.runtime import TorchRunner
from ofasearch.errors import MismatchError, NotFoundError, OfaSearchError, UsageError
from ofasearch.jobs.bench import bench
from ofasearch.jobs.deliver import onnx_bytes, save_subnet, shipped_subnet
from ofasearch.space.families import get_space

SPACE = get_space("compofa-mbv3-cifar")
KEYS = {"latency_ms_p50", "latency_ms_p90", "latency_ms_p95", "latency_ms_p99", "throughput", "threads", "batch", "runtime", "device"}
ARCH = "compofa-mbv3-cifar@r32-2-2-2-2-2"
SHORT = {"seconds": 0.05}


@pytest.fixture(scope="module")
def files(tmp_path_factory, quick, shipped):
    """A network as subnet.pt and as ONNX files; read only."""
    folder = tmp_path_factory.mktemp("bench")
    codes = np.array(SPACE.parse(ARCH).codes, dtype=np.int64)
    subnet = shipped_subnet(shipped.weights, shipped.members, codes, "cifar10-compofa")
    save_subnet(folder / "subnet.pt", subnet, {})
    (folder / "m.onnx").write_bytes(onnx_bytes(subnet))
    (folder / "fixed.onnx").write_bytes(onnx_bytes(subnet, form=OnnxForm(batch=4)))
    (folder / "pixels.onnx").write_bytes(onnx_bytes(subnet, form=OnnxForm(pixels=subnet.preprocessing)))
    layer = subnet.blueprint[:1]
    (folder / "other.onnx").write_bytes(build_onnx(layer, random_weights(layer, np.random.default_rng(0))))
    return folder


@pytest.fixture
def uncompiled(monkeypatch):
    """Compiling takes most of a minute, and what is compiled is tested with the runtimes."""
    monkeypatch.setattr(TorchRunner, "_compile", lambda *_: None)


def test_one_batch_and_thread_give_a_flat_record(files):
    record = bench(files / "m.onnx", **SHORT)
    assert record.keys() >= KEYS
    assert "runs" not in record
    assert (record["batch"], record["threads"]) == (1, 1)
    assert record.keys() == bench(files / "m.onnx", batch=[1], threads=[1], **SHORT).keys()


def test_a_sweep_has_a_record_for_each_pair(files):
    record = bench(files / "m.onnx", batch=[1, 4, 1], threads=[1, 2], **SHORT)
    assert [(run["batch"], run["threads"]) for run in record["runs"]] == [(1, 1), (1, 2), (4, 1), (4, 2)]
    for timed in record["runs"]:
        assert timed.keys() >= KEYS
        assert timed["throughput"] == pytest.approx(1000 * timed["batch"] / timed["latency_ms_mean"])
        assert timed["device"] == record["device"]
        assert "times_ort" not in timed
    assert record["notes"] == []


def test_a_fixed_batch_is_what_is_timed(files):
    assert bench(files / "fixed.onnx", **SHORT)["batch"] == 4
    with pytest.raises(UsageError, match="--batch must be 4 for this file, whose batch is fixed, but got 8"):
        bench(files / "fixed.onnx", batch=[4, 8], **SHORT)


def test_a_file_of_pixels_is_timed(files):
    assert bench(files / "pixels.onnx", batch=2, **SHORT)["latency_ms_p50"] > 0


@pytest.mark.parametrize("model", ["m.onnx", "pixels.onnx", "subnet.pt", ARCH])
def test_torch_takes_turns_with_onnx_runtime(files, uncompiled, model):
    text = model if model == ARCH else str(files / model)
    record = bench(text, against=["torch", "torch-compile"], batch=2, **SHORT)
    names = [timed["runtime"].split()[0] for timed in record["runs"]]
    assert names == ["onnxruntime", "torch", "torch-compile"]
    ort, *others = record["runs"]
    assert "times_ort" not in ort
    for timed in others:
        assert timed["times_ort"] == pytest.approx(timed["latency_ms_p50"] / ort["latency_ms_p50"])
        assert (timed["batch"], timed["threads"], timed["device"]) == (2, 1, ort["device"])
    assert bool(record["notes"]) == (not model.endswith(".onnx"))  # whose weights are its own


def test_a_machine_without_a_compiler_goes_on_without(files, monkeypatch):
    def lacking(*_):
        raise NotFoundError("torch.compile must work on this machine for --runtime torch-compile, but it does not: no compiler")

    monkeypatch.setattr(TorchRunner, "_compile", lacking)
    record = bench(files / "subnet.pt", against=["torch-compile", "torch"], **SHORT)
    assert [timed["runtime"].split()[0] for timed in record["runs"]] == ["onnxruntime", "torch"]
    assert record["notes"][0] == (
        "torch-compile was left out: torch.compile must work on this machine for --runtime torch-compile, but it does not: no compiler"
    )


@pytest.mark.slow
def test_compiled_torch_is_compared_where_there_is_a_compiler(files):
    record = bench(files / "subnet.pt", against=["torch-compile"], **SHORT)
    assert len(record["runs"]) == 2 or "left out" in record["notes"][0]


def test_torchs_threads_are_as_before(files):
    import torch

    before = torch.get_num_threads()
    bench(files / "subnet.pt", against=["torch"], threads=before + 1, **SHORT)
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"batch": [1, 0]}, UsageError, "--batch must be 1..4096"),
        ({"threads": [1, 5000]}, UsageError, "--threads 1..1024"),
        ({"batch": list(range(1, 60)), "threads": [1, 2]}, UsageError, "at most 100 runs, but make 118"),
        ({"against": ["jax"]}, UsageError, "--against must be of torch, torch-compile, but got 'jax'"),
        ({"seconds": -1}, UsageError, "--seconds must be positive"),
    ],
)
def test_what_makes_no_sense_is_wrong_usage(files, options, error, text):
    with pytest.raises(error, match=text):
        bench(files / "m.onnx", **options)


def test_a_graph_of_unknown_layers_is_timed_but_not_compared(files):
    assert bench(files / "other.onnx", **SHORT)["latency_ms_p50"] > 0
    with pytest.raises(MismatchError, match=r"to be compared with torch, but its graph is another; give the subnet\.pt"):
        bench(files / "other.onnx", against=["torch"], **SHORT)


@pytest.mark.parametrize("name", ["none.onnx", "none.pt", "nowhere/", "nonsense"])
def test_what_is_not_there_is_named(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(OfaSearchError, match="must be"):
        bench(name, **SHORT)


def test_the_table_for_people_names_runtime_device_batch_and_threads(files, capsys):
    assert run(["bench", str(files / "m.onnx"), "--batch", "1,2", "--threads", "1,2", "--seconds", "0.02"]) == 0
    out = capsys.readouterr().out
    assert len([line for line in out.splitlines() if line.startswith("onnxruntime")]) == 4
    for word in ("batch", "threads", "p50 ms", "p99 ms", "mean ms", "images/s", "device"):
        assert word in out
    assert run(["bench", str(files / "subnet.pt"), "--against", "torch", "--seconds", "0.02"]) == 0
    assert "times ONNX Runtime" in capsys.readouterr().out


def test_json_of_a_sweep_is_one_object(files, capsys):
    assert run(["bench", str(files / "m.onnx"), "--batch", "1,2", "--seconds", "0.02", "--json"]) == 0
    assert len(json.loads(capsys.readouterr().out)["runs"]) == 2


@pytest.mark.parametrize("text", ["", "1,", "a", "1;2", "-1", "²", "1" * 30])
def test_numbers_that_are_none_are_wrong_usage(files, capsys, text):
    assert run(["bench", str(files / "m.onnx"), f"--batch={text}"]) == 2
    assert "must be whole numbers separated by commas" in capsys.readouterr().err
