"""Searching for int8: tables rest on networks that are really quantised, and the winner is written in int8 where images allow it."""

from dataclasses import replace

import pytest
from pretended import Device

import ofasearch
from ofasearch.cli.find import report_of
from ofasearch.deploy import runtime as runtimes
from ofasearch.deploy.quantize import Recipe, counted, quantise
from ofasearch.deploy.runtime import get_runtime
from ofasearch.jobs.latency import build_table
from ofasearch.jobs.measuring import NET_RULE
from ofasearch.latency.table import LatencyTable


@pytest.fixture
def device(monkeypatch):
    return Device().pretend(monkeypatch)


def test_a_table_of_int8_layers_is_measured_on_quantised_networks(tiny_space, monkeypatch):
    made = []
    monkeypatch.setattr(runtimes, "quantise", lambda *args: (made.append((args[2], quantise(*args))), made[-1][1])[1])
    monkeypatch.setattr("ofasearch.jobs.measuring.NET_RULE", replace(NET_RULE, min_bursts=2, max_bursts=2, burst=1, burst_ms=0.0))
    *progress, table = build_table(tiny_space, get_runtime(precision="int8"))
    assert isinstance(table, LatencyTable)
    assert table.key.precision == "int8"
    assert all(row.ms > 0 for row in table.rows.values())
    assert {spec.shape for spec in tiny_space.layers()} <= {shape for _, shape in table.rows}
    assert len(made) == len(progress) + 1  # and the reference
    for recipe, content in made:
        counts = counted(content)
        assert recipe == Recipe()
        assert counts.int8 == counts.weighted > 0


def test_a_search_for_int8_exports_int8(device, tmp_path):
    record = ofasearch.find(target="cpu", latency_ms=1.0, precision="int8", data="digits", images=40, top_k=1, out=tmp_path)
    file = tmp_path / "subnet.int8.onnx"
    assert record["files"]["onnx_int8"] == str(file)
    int8 = record["measured"]["int8"]
    assert counted(file.read_bytes()).int8 == counted(file.read_bytes()).weighted
    assert ofasearch.evaluate_subnet(str(file), data="digits")["top1"] == int8["test_top1"]
    found = ofasearch.flips(record["files"]["onnx"], str(file), data="digits")
    assert {key: found[key] for key in int8["flips"]} == int8["flips"]
    assert int8["flips"]["top1_old"] == record["measured"]["top1"]
    told = ofasearch.inspect(file)
    assert told["arch_id"] == record["arch_id"]
    assert told["quantization"]["per_channel"]
    assert f"int8 test top-1  {100 * int8['test_top1']:.2f} %" in report_of(record)
    assert (tmp_path / "subnet.onnx").stat().st_size > 2 * file.stat().st_size


def test_without_images_a_search_for_int8_says_what_is_missing(device, tmp_path):
    record = ofasearch.find(target="cpu", latency_ms=1.0, precision="int8", out=tmp_path)
    assert "onnx_int8" not in record["files"]
    assert not (tmp_path / "subnet.int8.onnx").exists()
    assert any("only float32 files were written, because there are no calibration images: add --data" in note for note in record["notes"])


def test_a_search_for_float32_says_nothing_of_int8(device, tmp_path):
    record = ofasearch.find(target="cpu", latency_ms=1.0, out=tmp_path)
    assert "int8" not in str(record)
