"""Quantising: the answer is what the written file does, the recipe is chosen by a stated rule, and what cannot be done is said first."""

import json
from dataclasses import replace

import numpy as np
import onnx
import pytest
from makers import image_folder

import ofasearch
from ofasearch.data import load_data
from ofasearch.deploy.quantize import Recipe, counted
from ofasearch.errors import CalibrationError, FormatError, MismatchError, NotFoundError, UsageError, WriteError
from ofasearch.jobs import quantize as job
from ofasearch.jobs.classifier import read_classifier
from ofasearch.jobs.deliver import onnx_bytes, save_subnet, shipped_subnet, uncalibrated_subnet
from ofasearch.jobs.recipes import GAIN, PRICE, Tried, calibration_of, choose
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.latency.stopwatch import Timing

SMALL = "compofa-mbv3-cifar@r32-2-2-2-2-2"
QUICK = {"data": "digits", "timed": False}
FORCED = {**QUICK, "per_channel": True, "floating": ()}


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quick, shipped):
    """One member as files, and as a file of another tool."""
    folder = tmp_path_factory.mktemp("members")
    codes = np.array(shipped.weights.space.parse(SMALL).codes)
    subnet = shipped_subnet(shipped.weights, shipped.members, codes, shipped.name)
    save_subnet(folder / "small.pt", subnet, {})
    (folder / "small.onnx").write_bytes(onnx_bytes(subnet))
    (folder / "told.onnx").write_bytes(onnx_bytes(subnet, {"measured": {"top1": 0.8}, "macs": 7, "latency_ms": 0.2}))
    save_subnet(folder / "raw.pt", uncalibrated_subnet(shipped.weights, codes, "raw"), {})
    model = onnx.load(folder / "small.onnx")
    del model.metadata_props[:]
    for node in model.graph.node:
        node.name = ""
    onnx.save(model, folder / "foreign.onnx")
    return folder


@pytest.fixture(scope="module")
def made(folder):
    """The answer for one file with everything tried, and the file."""
    out = folder / "small.int8.onnx"
    return ofasearch.quantize(folder / "small.onnx", out=out, data="digits", seconds=0.05), out


# -- the answer ------------------------------------------------------------------------------------------------


def test_the_answer_is_what_the_written_file_does(made, folder):
    record, out = made
    for split in ("validation", "test"):
        for name, file in (("int8", out), ("fp32", folder / "small.onnx")):
            assert ofasearch.evaluate_subnet(str(file), data="digits", split=split)["top1"] == record[name][f"{split}_top1"]
            assert record[name]["size_bytes"] == file.stat().st_size
    found = ofasearch.flips(str(folder / "small.onnx"), str(out), data="digits")
    assert {key: found[key] for key in record["flips"]} == record["flips"]
    assert record["int8"]["size_bytes"] < 0.5 * record["fp32"]["size_bytes"]
    assert (record["data"], record["calibration_images"], record["flips"]["n"]) == ("digits", 58, 359)


def test_recipes_stand_in_a_table_with_one_chosen(made):
    record, _ = made
    rows = record["candidates"]
    assert [(row["per_channel"], row["floating"]) for row in rows[:2]] == [(False, []), (True, [])]
    assert [row["floating"] for row in rows[2:4]] == [["ends"], ["gates"]]
    assert len({row["per_channel"] for row in rows[2:]}) == 1
    (chosen,) = (row for row in rows if row["chosen"])
    assert chosen["validation_top1"] == record["int8"]["validation_top1"]
    assert {key: chosen[key] for key in ("per_channel", "floating")} == {key: record["recipe"][key] for key in ("per_channel", "floating")}
    assert all(row["latency_ms_p50"] > 0 for row in rows)
    before, after = (record["latency"][name]["latency_ms_p50"] for name in ("fp32", "int8"))
    assert after == chosen["latency_ms_p50"]
    assert record["latency_ratio"] == after / before
    assert (record["batch"], record["threads"]) == (1, 1)
    assert record["runtime"].startswith("onnxruntime")
    assert "20 % of latency" in record["rule"]


def test_a_quantised_file_is_an_ordinary_classifier_that_says_what_was_done(made, folder):
    record, out = made
    classifier = read_classifier(str(out))
    assert classifier.network is None  # its graph is no longer the one that we build
    assert classifier.class_names == read_classifier(str(folder / "small.onnx")).class_names
    told, before = ofasearch.inspect(out), ofasearch.inspect(folder / "small.onnx")
    done = told.pop("quantization")
    assert (told["quantised"], before["quantised"], told["graph_checked"]) == (True, False, False)
    of_the_graph = ("operators", "weights", "quantised", "graph_checked", "size_bytes", "activation_bytes", "macs", "params")
    assert all(told[key] == value for key, value in before.items() if key not in of_the_graph)
    assert {key: done[key] for key in record["recipe"]} == record["recipe"]
    assert (done["format"], done["weights"], done["data"], done["flips"]) == ("QDQ", "int8", "digits", record["flips"])
    assert done["fp32"]["test_top1"] == record["fp32"]["test_top1"]
    assert ofasearch.bench(out, seconds=0.01)["latency_ms_p50"] > 0
    content = onnx.load(out)
    assert content.graph.input[0].name == "input"
    assert content.graph.output[0].name == "logits"
    assert not any("latency" in key for key in done)


def test_what_was_measured_of_the_original_stays_its_own(folder, tmp_path):
    ofasearch.quantize(folder / "told.onnx", out=tmp_path / "q.onnx", **FORCED)
    told = ofasearch.inspect(tmp_path / "q.onnx")
    assert told["macs"] == 7
    assert "measured" not in told
    assert "latency_ms" not in told
    assert told["quantization"]["fp32"]["measured"] == {"top1": 0.8}
    assert told["quantization"]["fp32"]["latency_ms"] == 0.2


def test_every_spelling_of_a_network_gives_the_same_bytes(folder, tmp_path):
    for name in ("small.pt", "small.onnx"):
        ofasearch.quantize(folder / name, out=tmp_path / f"{name}.onnx", **FORCED)
    ofasearch.quantize(str(folder / "small.onnx"), out=tmp_path / "again.onnx", **FORCED)
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_an_architecture_is_recalibrated_first(tmp_path):
    record = ofasearch.quantize(SMALL, out=tmp_path / "q.onnx", **FORCED)
    assert record["model"] == SMALL
    assert record["fp32"]["test_top1"] == ofasearch.evaluate_subnet(SMALL, data="digits")["top1"]
    assert ofasearch.inspect(tmp_path / "q.onnx")["calibrated"] == "58 images of digits calibration"


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"per_channel": False, "floating": ("ends", "gates")}, [(False, ["ends", "gates"])]),
        ({"per_channel": True, "floating": ()}, [(True, [])]),
        ({"floating": ("gates",)}, [(False, ["gates"]), (True, ["gates"])]),
    ],
)
def test_what_is_asked_for_is_not_searched(folder, tmp_path, options, expected):
    record = ofasearch.quantize(folder / "small.onnx", out=tmp_path / "q.onnx", images=20, **QUICK, **options)
    assert [(row["per_channel"], row["floating"]) for row in record["candidates"]] == expected
    assert record["validation_n"] == 20
    assert "latency" not in record
    assert any("latency was not measured" in note for note in record["notes"])
    floating = [node for node in record["recipe"]["float_nodes"] if node.endswith((".reduce", ".expand", ".classifier", ".conv"))]
    counts = counted((tmp_path / "q.onnx").read_bytes())
    assert counts.weighted - counts.int8 == len(floating)


def test_a_foreign_file_needs_its_preprocessing_and_keeps_it(folder, tmp_path):
    preprocessing = json.dumps(read_classifier(str(folder / "small.onnx")).preprocessing.to_json())
    with pytest.raises(FormatError, match="must say in its metadata how images are preprocessed"):
        ofasearch.quantize(folder / "foreign.onnx", out=tmp_path / "q.onnx", **FORCED)
    assert list(tmp_path.iterdir()) == []
    record = ofasearch.quantize(folder / "foreign.onnx", out=tmp_path / "q.onnx", preprocessing=preprocessing, **FORCED)
    assert record["fp32"]["test_top1"] == ofasearch.evaluate_subnet(str(folder / "small.onnx"), data="digits")["top1"]
    assert ofasearch.evaluate_subnet(str(tmp_path / "q.onnx"), data="digits")["top1"] == record["int8"]["test_top1"]
    assert ofasearch.inspect(tmp_path / "q.onnx")["metadata"].keys() == {"preprocessing", "quantization"}


def test_a_fixed_batch_is_calibrated_and_timed_as_it_is(folder, tmp_path):
    model = onnx.load(folder / "small.onnx")
    for value in (*model.graph.input, *model.graph.output):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    onnx.save(model, tmp_path / "four.onnx")
    record = ofasearch.quantize(tmp_path / "four.onnx", out=tmp_path / "q.onnx", **FORCED | {"timed": True}, seconds=0.02)
    assert (record["batch"], record["calibration_images"]) == (4, 56)
    assert OnnxModel(tmp_path / "q.onnx").inputs[0].shape == [4, 3, 32, 32]
    with pytest.raises(UsageError, match="--batch must be 4 for"):
        ofasearch.quantize(tmp_path / "four.onnx", out=tmp_path / "r.onnx", **FORCED, batch=1)


def test_methods_that_hold_all_activations_take_fewer_images(folder):
    data, classifier = load_data("digits"), read_classifier(str(folder / "small.onnx"))
    assert len(calibration_of(classifier, data, 500, "minmax")[0]) == 58
    assert len(calibration_of(classifier, data, 10, "minmax")[0]) == 10
    many = replace(data, splits={**data.splits, "calibration": data["train"]})
    images, batch = calibration_of(classifier, many, 500, "entropy")
    assert (len(images), len(images) % batch) == (128, 0)


@pytest.mark.slow
def test_a_network_for_cifar_keeps_its_accuracy_per_channel(shared_data, tmp_path):
    record = ofasearch.quantize(SMALL, out=tmp_path / "q.onnx", data=str(shared_data / "cifar10"), timed=False, floating=())
    tensor, channel = (row["validation_top1"] for row in record["candidates"])
    assert channel > tensor
    assert record["recipe"]["per_channel"]
    assert record["int8"]["test_top1"] > record["fp32"]["test_top1"] - 0.01
    assert record["flips"]["nfr"] < 0.03


# -- the rule --------------------------------------------------------------------------------------------------


def tried(top1, ms=None):
    timing = Timing.of(np.full(5, ms)) if ms is not None else None
    return Tried(recipe=Recipe(), content=b"", top1=top1, timing=timing)


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([(0.80, 1.0)], 0),
        ([(0.80, 1.0), (0.80 + 2 * GAIN, 1.0)], 1),
        ([(0.80, 1.0), (0.80 + GAIN / 2, 0.5)], 0),  # quicker is no reason by itself
        ([(0.80, 1.0), (0.80 + 1.1 * (GAIN + 0.2 * PRICE), 1.2)], 1),
        ([(0.80, 1.0), (0.80 + 0.9 * (GAIN + 0.2 * PRICE), 1.2)], 0),
        ([(0.80, None), (0.80 + 1.1 * GAIN, None)], 1),
        ([(0.80, 1.0), (0.81, 1.0), (0.81, 0.9), (0.83, 1.1)], 3),
    ],
)
def test_a_dearer_recipe_must_gain_what_it_costs(rows, expected):
    assert choose([tried(*row) for row in rows]) == expected


# -- what is refused -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        ({"model": "gone.onnx"}, NotFoundError, "must be an existing ONNX file"),
        ({"model": "raw.pt"}, CalibrationError, "must be calibrated before it is scored"),
        ({"model": "small.int8.onnx"}, FormatError, "is quantised already"),
        ({"floating": ("activations",)}, UsageError, r"must name parts of .*small\.onnx \(ends, gates\), but got activations"),
        ({"floating": ("soup",)}, UsageError, "--exclude must be none or of ends, gates, activations, but got 'soup'"),
        ({"method": "magic"}, UsageError, "--method must be one of minmax, entropy, percentile"),
        ({"calibration_images": 4}, UsageError, "--calibration-images must be at least 8"),
        ({"images": 0}, UsageError, "--images must be at least 1"),
        ({"threads": 0}, UsageError, "--threads 1"),
        ({"seconds": 0.0}, UsageError, "--seconds must be positive"),
        ({"out": "q.int8"}, UsageError, r"-o must be an \.onnx file, such as q\.int8\.onnx"),
        ({"out": "small.pt/q.onnx"}, WriteError, "must be writable"),
    ],
)
def test_refusals_write_nothing(folder, made, monkeypatch, tmp_path, change, error, text):
    monkeypatch.chdir(folder)
    before = sorted(path.name for path in folder.iterdir())
    request = {"model": "small.onnx", "out": tmp_path / "q.onnx", **FORCED, **change}
    with pytest.raises(error, match=text):
        ofasearch.quantize(**request)
    assert sorted(path.name for path in folder.iterdir()) == before
    assert list(tmp_path.iterdir()) == []


def test_data_that_do_not_fit_are_refused(folder, tmp_path):
    images = str(image_folder(tmp_path / "animals", 90))
    with pytest.raises(MismatchError, match="classes"):
        ofasearch.quantize(folder / "small.onnx", out=tmp_path / "q.onnx", data=images, timed=False)
    assert not (tmp_path / "q.onnx").exists()


def test_images_of_another_size_and_data_without_calibration_images_are_refused(folder, tmp_path, monkeypatch):
    data = load_data("digits")
    small = replace(data, splits={name: replace(part, images=part.images[:, ::2, ::2]) for name, part in data.splits.items()})
    bare = replace(data, splits={**data.splits, "calibration": data["calibration"].take(np.arange(0))})
    for given, error, text in ((small, MismatchError, "pixels"), (bare, CalibrationError, "at least 8 calibration images")):
        monkeypatch.setattr(job, "load_data", lambda _, given=given: given)
        with pytest.raises(error, match=text):
            ofasearch.quantize(folder / "small.onnx", out=tmp_path / "q.onnx", **FORCED)
    assert list(tmp_path.iterdir()) == []


def test_a_former_file_stays_when_something_fails(folder, tmp_path, monkeypatch):
    out = tmp_path / "q.onnx"
    out.write_text("what was there before")
    monkeypatch.setattr(job, "with_metadata", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        ofasearch.quantize(folder / "small.onnx", out=out, **FORCED)
    assert out.read_text() == "what was there before"
    assert [path.name for path in tmp_path.iterdir()] == ["q.onnx"]
