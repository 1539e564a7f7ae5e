"""This machine and files in ONNX Runtime: what measurements are kept under, and what is refused."""

import sys

import numpy as np
import pytest
from onnxruntime import get_available_providers

from ofasearch.deploy.export import build_onnx, random_weights
from ofasearch.errors import FormatError, NotFoundError, UsageError
from ofasearch.latency import machine
from ofasearch.latency.machine import check_run, describe_machine, fingerprint, load_warning
from ofasearch.latency.onnx_model import OnnxModel


@pytest.mark.parametrize("content", [b"", b"not a model", b"\x08\x08\x12\x04"], ids=["empty", "text", "cut"])
def test_a_damaged_onnx_file_is_refused(tmp_path, content):
    path = tmp_path / "m.onnx"
    path.write_bytes(content)
    with pytest.raises(FormatError, match=r"m\.onnx must be an ONNX file that ONNX Runtime can run, but it is not") as caught:
        OnnxModel(path)
    assert "\n" not in str(caught.value)
    with pytest.raises(FormatError, match="the ONNX graph must be"):
        OnnxModel(content)


def test_a_provider_that_is_not_there_is_never_replaced_by_another(tiny_space, monkeypatch):
    blueprint = tiny_space.blueprint(tiny_space.smallest())
    content = build_onnx(blueprint, random_weights(blueprint, np.random.default_rng(0)))
    with pytest.raises(NotFoundError, match=r"ONNX Runtime must have NowhereExecutionProvider for this, but has .*CPUExecutionProvider"):
        OnnxModel(content, provider="NowhereExecutionProvider")
    if "CUDAExecutionProvider" in get_available_providers():
        return
    # named by the library, but without what it needs: the session falls back to the CPU without a word
    monkeypatch.setattr("onnxruntime.get_available_providers", lambda: ["CUDAExecutionProvider", "CPUExecutionProvider"])
    with pytest.warns(UserWarning, match="not in available provider"), pytest.raises(NotFoundError, match="cannot start it here"):
        OnnxModel(content, provider="CUDAExecutionProvider")


def test_a_fingerprint_tells_machines_and_settings_apart():
    key = fingerprint(batch=4, threads=2)
    assert (key.batch, key.threads, key.precision) == (4, 2, "fp32")
    assert key.runtime.startswith("onnxruntime ")
    assert key.device.strip()
    assert key != fingerprint(batch=1, threads=2)


@pytest.mark.parametrize("options", [{"batch": 0, "threads": 1}, {"batch": 4097, "threads": 1}, {"batch": 1, "threads": 1025}])
def test_runs_without_sense_are_refused(options):
    with pytest.raises(UsageError, match=r"--batch must be 1\.\.4096 and --threads 1\.\.1024"):
        check_run(**options)


def test_a_machine_is_described_by_what_its_system_tells():
    found = describe_machine("cpu")
    assert {"cpu", "cores", "system", "python", "frequency_policy"} <= found.keys()
    assert all(found.values())
    assert found["python"] == sys.version.split()[0]
    assert not {"gpu", "driver"} & found.keys()


def test_a_busy_machine_is_told(monkeypatch):
    monkeypatch.setattr(machine.os, "cpu_count", lambda: 4)
    for load, busy in ((0.5, False), (2.8, False), (2.9, True)):
        monkeypatch.setattr(machine, "system_load", lambda load=load: load)
        assert (load_warning() is not None) == busy
    assert load_warning() == "the machine is busy (load 2.9 on 4 cores): timings will scatter"
    monkeypatch.setattr(machine, "system_load", lambda: None)
    assert load_warning() is None
