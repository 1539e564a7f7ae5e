import re
import runpy
import sys
from pathlib import Path

import pytest
from PIL import Image

from ofasearch import zoo

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
