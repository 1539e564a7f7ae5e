import io
import json
import os
import re
import runpy
import sys
import threading
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np
import onnxruntime
import pytest
from PIL import Image

import ofasearch
from ofasearch import zoo
from ofasearch.jobs.export import export
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.latency.table import load_table

EXAMPLES = Path(__file__).parents[2] / "examples"


@pytest.mark.parametrize("with_image", [False, True])
def test_find_and_run_names_a_class_of_the_supernet(tmp_path, with_image, capsys):
    image = tmp_path / "image.png"
    Image.new("RGB", (48, 40), "blue").save(image)
    main = runpy.run_path(str(EXAMPLES / "find_and_run.py"))["main"]
    assert main([str(image)] if with_image else []) in zoo.load_supernet(zoo.DEFAULT_SUPERNET).weights.class_names
    assert "M MACs, test top-1" in capsys.readouterr().out


def test_an_update_breaks_less_than_the_most_accurate_network(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["update_without_regressions.py", str(tmp_path / "update")])
    facts = runpy.run_path(str(EXAMPLES / "update_without_regressions.py"), run_name="__main__")
    out = capsys.readouterr().out.splitlines()
    update, plain = facts["update"], facts["plain"]
    assert out[0] == f"{facts['shipped']['arch_id']} -> {update['arch_id']}"
    assert update["contains_reference"]
    assert facts["shipped"]["macs"] < update["macs"] <= 2 * facts["shipped"]["macs"]
    assert update["validation"]["nfr"] <= plain["validation"]["nfr"]  # what the reward is of; the test split only reports
    assert update["reward_value"] >= plain["validation"]["top1"] - plain["validation"]["nfr"] or not plain["contains_reference"]
    rates = [float(number) for number in re.findall(r"(\d+\.\d+) %", "\n".join(out))]
    measured = update["measured"]
    expected = [measured[key] for key in ("top1_ref", "top1", "nfr", "pfr")] + [plain["measured"][key] for key in ("top1", "nfr")]
    assert rates == [round(100 * value, 2) for value in expected]
    assert {path.name for path in (tmp_path / "update").iterdir()} == {"first", "second", "plain", "model150.pt"}


def test_an_int8_export_says_what_it_costs(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["int8_export.py", str(tmp_path / "int8")])
    facts = runpy.run_path(str(EXAMPLES / "int8_export.py"), run_name="__main__")
    out = capsys.readouterr().out.splitlines()
    made = facts["made"]
    assert out[0].startswith(f"scales per {'channel' if made['recipe']['per_channel'] else 'tensor'}, ")
    rates = [float(number) for number in re.findall(r"(\d+\.\d+) %", "\n".join(out))]
    expected = [made["fp32"]["test_top1"], made["int8"]["test_top1"], made["flips"]["nfr"], made["flips"]["pfr"]]
    assert rates == [round(100 * value, 2) for value in expected]
    assert (
        out[-1] == f"size {made['fp32']['size_bytes']:,} -> {made['int8']['size_bytes']:,} bytes, latency times {made['latency_ratio']:.2f}"
    )
    assert {"subnet.onnx", "subnet.int8.onnx"} <= {path.name for path in (tmp_path / "int8").iterdir()}


@pytest.fixture(scope="module")
def found(tmp_path_factory):
    """A small network of the embedded supernet; read only."""
    out = tmp_path_factory.mktemp("found")
    ofasearch.find(macs=5e6, out=out)
    return out


@pytest.fixture(params=[False, True], ids=["plain", "pixels"])
def service(request, tmp_path, found):
    """The example's service on a free port; posts bytes and gives status and answer."""
    export(str(found / "subnet.pt"), out=tmp_path / "m.onnx", embed_preprocessing=request.param)
    server = runpy.run_path(str(EXAMPLES / "serve.py"))["server"](str(tmp_path / "m.onnx"), 0)
    server.RequestHandlerClass.log_message = lambda *_: None
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()

    def post(body):
        try:
            with urllib.request.urlopen(f"http://127.0.0.1:{server.server_port}", body, timeout=30) as response:
                return response.status, json.load(response)
        except urllib.error.HTTPError as refusal:
            with refusal:
                return refusal.code, json.load(refusal)

    yield post
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_service_names_the_class_and_its_probability(found, service):
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    supernet = zoo.load_supernet(zoo.DEFAULT_SUPERNET).weights
    logits = OnnxModel(found / "subnet.onnx")(supernet.preprocessing.apply(pixels[None]))[0].astype(float)
    shares = np.exp(logits) / np.exp(logits).sum()
    image = io.BytesIO()
    Image.fromarray(pixels).save(image, "PNG")
    status, answer = service(image.getvalue())
    assert (status, answer["class"]) == (200, supernet.class_names[logits.argmax()])
    assert answer["probability"] == pytest.approx(shares.max(), abs=1e-4)


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "1", "CMYK"])
def test_a_service_takes_images_of_any_mode_and_size(service, mode):
    image = io.BytesIO()
    Image.new("RGB", (300, 200), "navy").convert(mode).save(image, "TIFF")
    assert service(image.getvalue())[0] == 200


@pytest.mark.parametrize("body", [b"", b"no image", b"\x89PNG\r\n\x1a\n"])
def test_a_service_says_what_it_cannot_read_and_goes_on(service, body):
    status, answer = service(body)
    assert (status, answer["error"][:53]) == (400, "the body must be an image of at most 16 MiB, but cann")


def test_the_service_is_twenty_lines():
    code = (EXAMPLES / "serve.py").read_text().partition("def server")[2].partition("if __name__")[0]
    assert len([line for line in code.splitlines() if line.strip()]) == 20


def test_three_devices_get_a_network_each(tmp_path, capsys):
    module = runpy.run_path(str(EXAMPLES / "three_devices.py"))
    found = module["main"]([str(tmp_path)])
    assert set(found) == set(module["LIMITS"])
    for device, answer in found.items():
        assert 0 < answer["latency_ms"] <= module["LIMITS"][device]
        assert Path(answer["files"]["onnx"]).parent == tmp_path / device
    assert len({answer["arch_id"] for answer in found.values()}) == 3
    assert [found[device]["latency_source"] for device in module["LIMITS"]] == ["estimated", "estimated", "measured"]
    header, *rows = capsys.readouterr().out.splitlines()
    assert header.split()[:3] == ["device", "limit", "latency"]
    assert [row.split()[0] for row in rows] == list(module["LIMITS"])


def test_own_images_become_a_tuned_network(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(os, "fsync", lambda _: None)
    module = runpy.run_path(str(EXAMPLES / "own_images.py"))
    tuned = module["main"](str(module["paint"](tmp_path / "images")), tmp_path / "out", epochs=1)
    session = onnxruntime.InferenceSession(tuned["files"]["onnx"], providers=["CPUExecutionProvider"])
    about = session.get_modelmeta().custom_metadata_map
    assert json.loads(about["classes"]) == ["blue", "green", "red"]
    assert json.loads(about["finetuned"])["start"]["supernet"] == "supernet"
    out = capsys.readouterr().out
    before, after = (100 * tuned[side]["test_top1"] for side in ("before", "after"))
    assert f"test top-1 {before:.1f} % -> {after:.1f} %" in out
    assert {path.name for path in (tmp_path / "out").iterdir()} == {"supernet", "found", "tuned"}


def test_an_own_table_comes_from_three_timed_networks(tmp_path, monkeypatch, capsys):
    module = runpy.run_path(str(EXAMPLES / "own_device_table.py"))
    times = dict(zip(module["NETWORKS"], (2.0, 3.0, 5.0), strict=True)) | {module["LEFT_OUT"]: 3.5}  # a device whose clock stands still
    monkeypatch.setitem(module["main"].__globals__, "timed", lambda network, folder: times[network])
    answer = module["main"](tmp_path)
    assert answer["latency_source"] == "estimated"
    assert 2.0 < answer["latency_ms"] <= 10 / 3
    assert load_table(tmp_path / "mydevice.csv").key.device == "mydevice"
    assert "at most 3.333 ms: compofa-mbv3-cifar@r32-" in capsys.readouterr().out


def test_the_stopwatch_of_the_own_table_gives_milliseconds(tmp_path):
    module = runpy.run_path(str(EXAMPLES / "own_device_table.py"))
    assert 0 < module["timed"](module["NETWORKS"][0], tmp_path) < 1000
    assert (tmp_path / "r32-2-2-2-2-2.onnx").is_file()
