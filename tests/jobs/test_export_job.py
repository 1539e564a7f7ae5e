"""`export`: the form that was asked for, proved from pixels on, with a card whose snippet runs; and nothing half-written."""

import contextlib
import io
import json
import os
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from PIL import Image

import ofasearch
from ofasearch.cli.main import run
from ofasearch.data import IMAGENET, DataSet, ImageSet, Preprocessing, load_data
from ofasearch.data.folder import centre_crop
from ofasearch.deploy.export import OPSETS, random_weights
from ofasearch.errors import FormatError, MismatchError, UsageError, VerificationError, WriteError
from ofasearch.jobs import export as module
from ofasearch.jobs.classifier import predictions_of, read_classifier, shipped_predictions
from ofasearch.jobs.deliver import Subnet, load_subnet, onnx_bytes, prove, save_subnet
from ofasearch.jobs.export import export
from ofasearch.jobs.inspect import inspect
from ofasearch.jobs.subnet import evaluate
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.report.card import MARK, model_card
from ofasearch.space.core import Arch
from ofasearch.space.families import get_space


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quick):
    """The folder of one run of find; read only."""
    out = tmp_path_factory.mktemp("find")
    ofasearch.find(macs=6e6, out=out)
    return out


@pytest.fixture(scope="module")
def subnet(folder):
    return str(folder / "subnet.pt")


def plain_record(path):
    return {key: value for key, value in inspect(path).items() if key not in ("measured", "size_bytes")}


# -- forms -----------------------------------------------------------------------------------------------------


FORMS = {
    "plain": {},
    "old": {"opset": 7},
    "named": {"input_name": "image", "output_name": "scores"},
    "fixed": {"batch": 7},
    "pixels": {"embed_preprocessing": True},
    "all": {"opset": 13, "batch": 16, "input_name": "image", "output_name": "scores", "embed_preprocessing": True},
}


@pytest.fixture(scope="module")
def written(tmp_path_factory, subnet):
    out = tmp_path_factory.mktemp("forms")
    for name, options in FORMS.items():
        export(subnet, out=out / f"{name}.onnx", **options)
    return out


@pytest.mark.parametrize("form", FORMS)
def test_every_form_is_known_as_the_network_it_is(written, shipped, subnet, form):
    """It may then be compared without data, updated by regnas, and timed against torch."""
    found, origin = read_classifier(str(written / f"{form}.onnx")), read_classifier(subnet)
    assert (found.arch_id, found.macs, found.preprocessing) == (origin.arch_id, origin.macs, origin.preprocessing)
    assert (shipped_predictions(found, shipped, "test") == shipped_predictions(origin, shipped, "test")).all()


@pytest.mark.parametrize("form", FORMS)
def test_every_form_predicts_the_same(written, subnet, form):
    images = np.random.default_rng(0).integers(0, 256, (60, 32, 32, 3), dtype=np.uint8)
    part = ImageSet(images, np.arange(60) % 10)
    data = DataSet("noise", tuple(map(str, range(10))), dict.fromkeys(("calibration", "validation", "test"), part))
    expected = predictions_of(read_classifier(subnet), data, "test").tolist()
    assert len(set(expected)) > 2
    assert predictions_of(read_classifier(str(written / f"{form}.onnx")), data, "test").tolist() == expected


@pytest.mark.parametrize("form", FORMS)
def test_whoever_follows_the_metadata_is_right_in_every_form(written, subnet, form):
    """One program for all of them: scale, mean, std, layout and dtype as stated."""
    image = np.random.default_rng(1).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    session = onnxruntime.InferenceSession(written / f"{form}.onnx", providers=["CPUExecutionProvider"])
    how = json.loads(session.get_modelmeta().custom_metadata_map["preprocessing"])
    x = (image * how["scale"] - how["mean"]) / how["std"]
    x = (x if how["layout"] == "NHWC" else x.transpose(2, 0, 1))[None].astype(how.get("dtype", "float32"))
    given = session.get_inputs()[0]
    logits = session.run(None, {given.name: x.repeat(given.shape[0] if isinstance(given.shape[0], int) else 1, 0)})[0][0]
    network = load_subnet(written.parent / subnet)[0]
    expected = OnnxModel(onnx_bytes(network))(network.preprocessing.apply(image[None]))[0]
    assert logits == pytest.approx(expected, abs=1e-4)


def test_a_file_of_pixels_becomes_int8_as_the_plain_one_does(tmp_path, written):
    options = {"data": "digits", "timed": False, "per_channel": True, "floating": ()}
    plain, pixels = (ofasearch.quantize(written / f"{form}.onnx", out=tmp_path / f"{form}.onnx", **options) for form in ("plain", "pixels"))
    assert pixels["int8"]["test_top1"] == pytest.approx(plain["int8"]["test_top1"], abs=0.02)
    told = inspect(tmp_path / "pixels.onnx")
    assert (told["input"]["dtype"], told["quantised"], told["graph_checked"]) == ("uint8", True, False)


def test_the_answer_tells_the_form(tmp_path, subnet):
    record = export(subnet, out=tmp_path / "m.onnx", opset=13, embed_preprocessing=True)
    assert (record["opset"], record["embedded_preprocessing"]) == (13, True)
    assert record["onnx_max_abs_diff"] < 1e-4
    assert record["onnx_checked_on"] == "16 seeded random images"
    assert record["card"] == str(tmp_path / "m.md")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.md", "m.onnx"]


def test_real_images_prove_a_file_from_pixels_on(tmp_path, shared_data, subnet):
    """Their top-1 in the file that normalises by itself is that of the network."""
    cifar = str(shared_data / "cifar10")
    record = export(subnet, out=tmp_path / "m.onnx", data=cifar, embed_preprocessing=True)
    assert record["onnx_checked_on"] == "16 test images of cifar10"
    data = load_data(cifar)
    few = DataSet(data.name, data.class_names, {**data.splits, "test": data["test"].take(np.arange(500))})
    found = predictions_of(read_classifier(record["onnx"]), few, "test")
    assert (found != predictions_of(read_classifier(subnet), few, "test")).sum() <= 1  # rounding may turn a tie
    assert (found == few["test"].labels).mean() > 0.8


def test_photographs_prove_and_score_a_file_of_pixels(tmp_path, subnet):
    """Images in files are resized and cropped before they are fed, in both kinds of file alike; grey, palette and transparent too."""
    rng = np.random.default_rng(0)
    for label in range(10):
        (tmp_path / "data" / f"class{label}").mkdir(parents=True)
        for n, mode in enumerate(("RGB", "L", "P", "RGBA", "LA", "1", *["RGB"] * 20)):
            picture = Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)).convert(mode)
            picture.save(tmp_path / "data" / f"class{label}" / f"{n}.png")
    for name, embed in (("plain", False), ("pixels", True)):
        record = export(subnet, out=tmp_path / f"{name}.onnx", data=str(tmp_path / "data"), embed_preprocessing=embed)
        assert "test images of data" in record["onnx_checked_on"]
    data = load_data(str(tmp_path / "data"))
    plain, pixels = (predictions_of(_unnamed(tmp_path / f"{name}.onnx"), data, "test").tolist() for name in ("plain", "pixels"))
    assert plain == pixels
    assert len(plain) == 52


def _unnamed(path):
    """A classifier whose classes are called otherwise than the data's."""
    return replace(read_classifier(str(path)), class_names=())


def test_the_proof_sees_a_wrong_normalisation(monkeypatch, subnet):
    network = load_subnet(Path(subnet))[0]
    form = module.OnnxForm(pixels=Preprocessing(mean=network.preprocessing.mean, std=(0.25, 0.25, 0.25), size=32))
    with pytest.raises(VerificationError, match="must give the network's logits"):
        prove(network, onnx_bytes(network, form=form), None)


def test_an_opset_that_onnx_runtime_here_cannot_run_is_wrong_usage(monkeypatch, tmp_path, subnet):
    """Another release of ONNX Runtime may know fewer opsets than are built."""
    monkeypatch.setattr("ofasearch.deploy.export.OPSETS", range(7, 100))
    monkeypatch.setattr("onnx.checker.check_model", lambda _: None)
    with pytest.raises(UsageError, match=r"--opset must be one that ONNX Runtime here can run, so that the file is proved, but 28 is not"):
        export(subnet, out=tmp_path / "m.onnx", opset=28)
    assert list(tmp_path.iterdir()) == []


def test_what_a_file_says_of_itself_survives_being_exported_again(tmp_path, folder, subnet):
    export(subnet, out=tmp_path / "m.onnx")
    assert plain_record(tmp_path / "m.onnx") == plain_record(folder / "subnet.onnx")
    told = inspect(tmp_path / "m.onnx")["measured"]
    assert told["top1"] == json.loads((folder / "result.json").read_text())["measured"]["top1"]


# -- files that lie --------------------------------------------------------------------------------------------


def changed(source, target, **props):
    model = onnx.load(source)
    said = {entry.key: entry.value for entry in model.metadata_props}
    onnx.helper.set_model_props(model, said | {key: json.dumps(value) for key, value in props.items()})
    onnx.save(model, target)
    return str(target)


def test_a_file_that_states_another_preprocessing_than_its_graph_is_no_known_network(tmp_path, written):
    how = inspect(written / "pixels.onnx")["preprocessing"]
    lied = how | {"embedded": how["embedded"] | {"mean": [0.1, 0.2, 0.3]}}
    assert read_classifier(changed(written / "pixels.onnx", tmp_path / "m.onnx", preprocessing=lied)).arch_id is None


@pytest.mark.parametrize("how", [{"mean": [0.5] * 3, "std": [0.5] * 3, "size": 32}, {"embedded": 7}, 5, {"embedded": {"mean": [1]}}])
def test_pixels_without_a_word_of_what_becomes_of_them_are_refused(tmp_path, written, how):
    with pytest.raises(FormatError, match="must say in its metadata how images are preprocessed"):
        read_classifier(changed(written / "pixels.onnx", tmp_path / "m.onnx", preprocessing=how))


def test_pixels_that_a_file_does_not_take_are_refused(tmp_path, written):
    how = inspect(written / "pixels.onnx")["preprocessing"]
    with pytest.raises(FormatError, match="must say in its metadata how images are preprocessed"):
        read_classifier(changed(written / "plain.onnx", tmp_path / "m.onnx", preprocessing=how))


# -- the card --------------------------------------------------------------------------------------------------


def snippet(card):
    (code,) = re.findall(r"```python\n(.*?)```", card, re.DOTALL)
    return code


@pytest.mark.parametrize("form", FORMS)
def test_the_snippet_of_a_card_runs_and_names_the_class(monkeypatch, written, subnet, shipped, form):
    monkeypatch.chdir(written)
    image = np.random.default_rng(2).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    Image.fromarray(image).save("image.png")
    code = snippet((written / f"{form}.md").read_text())
    assert len(code.splitlines()) <= 8
    with contextlib.redirect_stdout(io.StringIO()) as out:
        exec(code, {})
    part = ImageSet(image[None], np.zeros(1, dtype=np.int64))
    data = DataSet("one", shipped.weights.class_names, dict.fromkeys(("calibration", "validation", "test"), part))
    (expected,) = predictions_of(read_classifier(subnet), data, "test")
    assert out.getvalue().strip() == shipped.weights.class_names[expected]


def test_a_card_says_what_the_file_is_and_what_nobody_measured(folder, written, shipped):
    card, about = (written / "plain.md").read_text(), inspect(folder / "subnet.onnx")
    assert card.startswith(MARK)
    for text in (
        about["arch_id"],
        f"{about['macs']:,} multiply-accumulates",
        f"{about['params']:,} parameters",
        f"{about['activation_bytes']:,} bytes of activations",
        about["supernet_digest"],
        "| input | input | float32 | (N, 3, 32, 32) |",
        "| output | logits | float32 | (N, 10) |",
        ", ".join(f"{i} {name}" for i, name in enumerate(shipped.weights.class_names)),
        f"test top-1 {100 * about['measured']['top1']:.2f} % (10000 images of the test split; predictions that came with the supernet)",
        "on 16 seeded random images",
        "- latency: `ofasearch bench` measures it",
    ):
        assert text in card, text
    assert card.count("\n| ") == 2 + len(shipped.weights.space.blueprint(_codes(shipped, about["arch_id"]))) + 2 + 2
    assert "| image | uint8 | (16, 32, 32, 3) |" in (written / "all.md").read_text()
    assert (folder / "subnet.md").read_text() == card.replace("plain.onnx", "subnet.onnx")


def _codes(shipped, arch_id):
    return np.array(shipped.weights.space.parse(arch_id).codes, dtype=np.int64)


def test_a_card_tells_predictions_from_measurements(written):
    about = inspect(written / "plain.onnx")
    blueprint = read_classifier(str(written / "plain.onnx")).network.blueprint
    key = {"device": "desk", "runtime": "onnxruntime", "precision": "fp32", "batch": 4, "threads": 2}
    predicted = about | {"predicted_top1": 0.8, "predicted_top1_source": "predictor", "latency_ms": 3.0, "latency_source": "estimated"}
    card = model_card("m.onnx", {**predicted, "device": key, "measured": {}, "calibrated": "no"}, blueprint)
    assert "## Measured\n\nNothing." in card
    assert "went by a top-1 of 80.00 % on validation images (predictor)" in card
    assert "went by 3.000 ms on desk, by a table (estimated)" in card
    assert "never calibrated: what it predicts means nothing" in card
    timed = {**predicted, "measured": {"latency_ms_p50": 2.5, "latency_ms_p95": 2.75}, "measured_on": key}
    assert "latency p50 2.500 ms, p95 2.750 ms on desk (onnxruntime, fp32, batch 4, threads 2)" in model_card("m.onnx", timed, blueprint)


def test_a_network_of_no_supernet_says_so(tmp_path, subnet):
    """As once-for-all's published ones are read."""
    network = replace(load_subnet(Path(subnet))[0], arch=Arch("note10", "", ()), supernet="", supernet_digest="", calibrated="as published")
    files = module.files_of(tmp_path / "m.onnx", replace(network, settings={}), {})
    for text in ("A network of no design space.", "- of no supernet", "- weights and batch norm: as they were published"):
        assert text in files[tmp_path / "m.md"]
    (tmp_path / "m.onnx").write_bytes(files[tmp_path / "m.onnx"])
    told = inspect(tmp_path / "m.onnx")
    assert (told["arch_id"], told["graph_checked"]) == ("note10", False)  # no space says what layers it should have


def test_names_from_outside_cannot_break_a_card(written):
    about = inspect(written / "plain.onnx")
    evil = "a | b\n# headline <script> [x](y) `"
    lied = about | {"classes": [evil] * 10, "supernet": evil, "calibrated": evil, "arch": {evil: [evil]}, "measured": {"top1": evil}}
    card = model_card("m.onnx", lied, read_classifier(str(written / "plain.onnx")).network.blueprint)
    assert "<script>" not in card
    assert not [line for line in card.splitlines() if line.startswith("# headline")]


# -- what is not written ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["model.md", "model", "model.pt", "model.onnx.gz"])
def test_a_file_of_another_name_is_wrong_usage(tmp_path, subnet, name):
    with pytest.raises(UsageError, match=r"-o must be an ONNX file such as model\.onnx"):
        export(subnet, out=tmp_path / name)
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("make", [lambda p: p.write_text("my own notes"), os.mkfifo, lambda p: p.write_bytes(b"")])
def test_somebody_elses_file_in_the_cards_place_stays(tmp_path, subnet, make):
    make(tmp_path / "m.md")
    with pytest.raises(MismatchError, match=r"m\.md must be a model card to be written over, .* or --no-card"):
        export(subnet, out=tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == ["m.md"]
    assert "card" not in export(subnet, out=tmp_path / "m.onnx", card=False)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["m.md", "m.onnx"]


def test_a_card_is_written_over(tmp_path, subnet):
    export(subnet, out=tmp_path / "m.onnx", input_name="one_name")
    export(subnet, out=tmp_path / "m.onnx", input_name="another_name")
    assert "another_name" in (tmp_path / "m.md").read_text()
    assert "one_name" not in (tmp_path / "m.md").read_text()


@pytest.mark.parametrize("place", ["m.onnx", "m.md"])
def test_a_folder_in_the_way_is_refused_before_anything_is_written(tmp_path, subnet, place):
    (tmp_path / place).mkdir()
    with pytest.raises(WriteError, match="must be writable, but it is not"):
        export(subnet, out=tmp_path / "m.onnx")
    assert [path.name for path in tmp_path.iterdir()] == [place]


def test_a_missing_folder_is_made(tmp_path, subnet):
    export(subnet, out=tmp_path / "new" / "one" / "m.onnx")
    assert (tmp_path / "new" / "one" / "m.md").is_file()


def test_a_file_where_a_folder_should_be_is_refused(tmp_path, subnet):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="must be writable"):
        export(subnet, out=tmp_path / "file" / "m.onnx")


def test_both_files_or_none(tmp_path, monkeypatch, subnet):
    def full(*_, **__):
        raise VerificationError("x")

    monkeypatch.setattr(module, "prove", full)
    with pytest.raises(VerificationError):
        export(subnet, out=tmp_path / "m.onnx")
    assert list(tmp_path.iterdir()) == []


def test_facts_of_a_foreign_subnet_file_cannot_pass_as_ours(tmp_path, folder, shipped):
    """What the file claims beside its network is told where it is known to be a fact of a search, and overrides nothing."""
    network, _ = load_subnet(folder / "subnet.pt")
    facts = {"format": "x", "arch_id": "y", "calibrated": "yes", "measured": 5, "device": ["z"], "nonsense": 1, "latency_ms": "w"}
    save_subnet(tmp_path / "s.pt", network, facts)
    export(str(tmp_path / "s.pt"), out=tmp_path / "m.onnx")
    told = inspect(tmp_path / "m.onnx")
    assert (told["arch_id"], told["calibrated"]) == (network.arch.id, "shipped statistics")
    assert "nonsense" not in told
    assert told["measured"].keys() == {"onnx_max_abs_diff", "onnx_checked_on"}


def test_all_opsets_are_named_in_the_help(capsys):
    assert run(["export", "--help"]) == 0
    assert f"{OPSETS[0]} to {OPSETS[-1]}" in " ".join(capsys.readouterr().out.split())


def test_evaluation_of_a_file_of_pixels(tmp_path, subnet):
    record = export(subnet, out=tmp_path / "m.onnx", embed_preprocessing=True)
    assert evaluate(record["onnx"], data="digits")["top1"] == evaluate(subnet, data="digits")["top1"]


@pytest.mark.parametrize(("embed", "size"), [(False, (192, 192)), (True, (192, 192)), (True, (256, 192)), (False, (200, 311))])
def test_a_card_of_photographs_crops_as_our_own_reader(tmp_path, monkeypatch, embed, size):
    """A network of once-for-all's preprocessing, with classes that have no names: its snippet sees what `eval` sees."""
    space = get_space("compofa-mbv3-w1.0").with_resolutions([56])
    blueprint = space.blueprint(space.smallest())
    network = Subnet(
        arch=space.arch(space.smallest()),
        blueprint=blueprint,
        arrays=random_weights(blueprint, np.random.default_rng(0)),
        preprocessing=IMAGENET,
        class_names=(),
        classes=1000,
        supernet="none",
        supernet_digest="0" * 64,
        calibrated="no",
        settings={},
    )
    save_subnet(tmp_path / "s.pt", network, {})
    export(str(tmp_path / "s.pt"), out=tmp_path / "m.onnx", embed_preprocessing=embed)
    card = (tmp_path / "m.md").read_text()
    for text in ("1000 classes without names", "of the centre, the share 0.875 of the shorter side", "never calibrated: what it predicts"):
        assert text in card
    monkeypatch.chdir(tmp_path)
    rough = Image.fromarray(np.random.default_rng(3).integers(0, 256, (9, 9, 3), dtype=np.uint8))
    rough.resize(size, Image.Resampling.BICUBIC).save("image.png")
    found = {}
    with contextlib.redirect_stdout(io.StringIO()):
        exec(snippet(card), found)
    pixels, cropped = np.asarray(found["image"]), centre_crop(tmp_path / "image.png", 56, 0.875)
    assert pixels.shape == cropped.shape
    difference, moved = (np.abs(other.astype(int) - cropped).mean() for other in (pixels, np.roll(cropped, 1, axis=1)))
    assert difference == 0 if size[0] == size[1] else difference < 0.6 * moved  # the exact centre is half a pixel beside the rounded one
    expected = OnnxModel(onnx_bytes(network))(IMAGENET.apply(pixels[None]))[0]
    assert np.abs(found["logits"] - expected).max() < 1e-4 * np.abs(expected).max()
