"""What users name as a classifier: whatever it is, the same predictions; and what cannot be judged on the images is refused at once."""

import json
import pickle
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from makers import image_folder
from onnx import TensorProto, helper, numpy_helper

from ofasearch import zoo
from ofasearch.data import IMAGENET, DataSet, ImageSet, Preprocessing, load_data
from ofasearch.deploy.export import build_onnx, random_weights
from ofasearch.errors import ArchError, CalibrationError, FormatError, MismatchError, NotFoundError, UsageError
from ofasearch.jobs.classifier import (
    PredictionProgress,
    assume_preprocessing,
    check_fits,
    live_predictions,
    predictions_of,
    read_classifier,
    shipped_images,
    shipped_predictions,
)
from ofasearch.jobs.deliver import (
    calibrated_subnet,
    metadata,
    onnx_bytes,
    save_subnet,
    settings_json,
    shipped_subnet,
    to_network,
    uncalibrated_subnet,
)
from ofasearch.jobs.onnx_file import read_preprocessing
from ofasearch.space.costs import costs
from ofasearch.space.families import get_space

ARCH = "compofa-mbv3-cifar@r32-2-3-2-4-2"
SPACE = get_space("compofa-mbv3-cifar")
CODES = np.array(SPACE.parse(ARCH).codes, dtype=np.int64)
CIFAR = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
OURS = Preprocessing(mean=(0.4909, 0.4819, 0.4461), std=(0.2452, 0.2426, 0.2605), size=32)


def noise(n, seed=0, pixels=32, classes=10):
    rng = np.random.default_rng(seed)
    return ImageSet(rng.integers(0, 256, (n, pixels, pixels, 3)).astype(np.uint8), rng.integers(0, classes, n))


def data_of(names=CIFAR, pixels=32, **splits):
    sizes = {"train": 4, "calibration": 40, "validation": 30, "test": 70}
    parts = {name: noise(n, seed, pixels, len(names) or 10) for seed, (name, n) in enumerate(sizes.items())}
    return DataSet("noise", tuple(names), parts | splits)


DATA = data_of()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, quick, shipped):
    """One network in every form: with shipped statistics, recalibrated on other images, uncalibrated."""
    folder = tmp_path_factory.mktemp("classifiers")
    subnet = shipped_subnet(shipped.weights, shipped.members, CODES, shipped.name)
    others = calibrated_subnet(shipped.weights, CODES, DATA, shipped.name)
    never = uncalibrated_subnet(shipped.weights, CODES, shipped.name)
    for name, network in (("subnet", subnet), ("other", others), ("never", never)):
        save_subnet(folder / f"{name}.pt", network, {})
        (folder / f"{name}.onnx").write_bytes(onnx_bytes(network))
    return folder


@pytest.fixture
def subnet(shipped):
    return shipped_subnet(shipped.weights, shipped.members, CODES, shipped.name)


def read(folder, name, **options):
    return read_classifier(str(folder / name), **options)


def foreign(path, *, batch="N", classes=10, pixels=32, props=None, kind="logits", seed=0):
    """Somebody's classifier: a linear map of the flattened image, without a word of its preprocessing."""
    side = pixels if isinstance(pixels, int) else 32
    weights = np.random.default_rng(seed).normal(size=(3 * side**2, classes)).astype(np.float32)
    if kind == "nan":
        weights[0, 0] = np.nan
    nodes = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("MatMul", ["f", "w"], ["y"])]
    body = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, 3, pixels, pixels])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [batch, "C" if kind == "open" else classes])],
        [numpy_helper.from_array(weights, "w")],
    )
    model = helper.make_model(body, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    helper.set_model_props(model, props or {})
    path.write_bytes(model.SerializeToString())
    return weights


def linear(weights, preprocessing, part):
    return (preprocessing.apply(part.images).reshape(len(part), -1) @ weights).argmax(1)


# -- what is named ---------------------------------------------------------------------------------------------


def test_every_form_of_one_network_is_known_as_that_network(folder, shipped):
    texts = [str(folder / "subnet.pt"), str(folder / "subnet.onnx"), str(folder), ARCH, json.dumps(settings_json(SPACE, CODES))]
    for text in texts:
        found = read_classifier(text)
        assert (found.arch_id, found.space.name, found.classes, found.class_names) == (ARCH, SPACE.name, 10, CIFAR)
        assert found.macs == costs(SPACE.blueprint(CODES)).macs
        assert found.space.blueprint(found.codes) == SPACE.blueprint(CODES)
        assert found.preprocessing == OURS
        assert found.supernet == zoo.DEFAULT_SUPERNET
        assert found.kind == ("onnx" if text.endswith(".onnx") else "subnet")
        assert (found.subnet is None) == (found.kind == "onnx")
    assert read_classifier(texts[-1]).name == ARCH  # not all that JSON


def test_an_arch_belongs_to_its_supernet(folder):
    found = read_classifier("ofa-mbv3-cifar@r32-23333-23333-23333-23333-23333", supernet="cifar10-ofa")
    assert found.supernet == "cifar10-ofa"
    assert found.subnet.calibrated == "no"
    with pytest.raises(ArchError, match="must look like"):
        read_classifier("ofa-mbv3-cifar@r32-23333-23333-23333-23333-23333")


def test_a_file_that_lies_about_its_network_is_a_network_without_a_name(tmp_path, folder, subnet):
    other = SPACE.arch(SPACE.largest())
    lied = replace(subnet, arch=other)
    save_subnet(tmp_path / "lie.pt", lied, {})
    props = metadata(subnet, {}) | {"arch_id": other.id}
    for name, change in {
        "lie": props,
        "elsewhere": props | {"space": "nowhere"},
        "odd": props | {"arch_id": "compofa-mbv3-cifar@r²"},
    }.items():
        (tmp_path / f"{name}.onnx").write_bytes(build_onnx(subnet.blueprint, subnet.arrays, metadata=change))
    for name in ("lie.pt", "lie.onnx", "elsewhere.onnx", "odd.onnx"):
        found = read(tmp_path, name)
        assert (found.arch_id, found.space, found.codes) == (None, None, None)
        assert "arch_id" not in found.to_json()
        assert predictions_of(found, DATA, "test").tolist() == predictions_of(read(folder, "subnet.pt"), DATA, "test").tolist()
    assert read(tmp_path, "lie.pt").macs == costs(subnet.blueprint).macs  # its layers are there to be counted
    assert read(tmp_path, "lie.onnx").macs is None


def test_a_small_file_that_claims_a_large_network_costs_nothing(tmp_path, monkeypatch):
    name = "compofa-mbv3-cifar-w4.0"
    large = get_space(name)
    foreign(tmp_path / "m.onnx", props={"format": "ofasearch-subnet-1", "space": name, "arch_id": large.arch(large.largest()).id})
    monkeypatch.setattr("ofasearch.jobs.onnx_file.build_onnx", None)  # it would be called
    assert read(tmp_path, "m.onnx").macs is None


def test_saved_predictions_are_a_classifier(tmp_path):
    np.save(tmp_path / "p.npy", np.arange(70) % 10)
    found = read(tmp_path, "p.npy")
    assert (found.kind, found.classes, found.arch_id, found.macs, found.subnet) == ("predictions", None, None, None, None)
    assert predictions_of(found, DATA, "test").tolist() == (np.arange(70) % 10).tolist()
    with pytest.raises(MismatchError, match="for each of the 30 validation images of noise, but holds 70"):
        check_fits(found, DATA, "validation")


@pytest.mark.parametrize(
    ("name", "error", "text"),
    [
        ("none.pt", NotFoundError, "must be an existing"),
        ("none.onnx", NotFoundError, "must be an existing ONNX file"),
        ("none.npz", NotFoundError, "must be an existing file of predictions"),
        ("nowhere", ArchError, "must look like"),
        ("{}", ArchError, "must hold integers ks, e, d and r"),
    ],
)
def test_what_names_nothing_is_refused(tmp_path, monkeypatch, name, error, text):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=text):
        read_classifier(name)


class Runs:
    """Creates a file when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return open, (str(self.path), "w")


@pytest.mark.parametrize("name", ["r.pt", "r.onnx", "r.npz", "r.npy", "r.csv", "r.txt", "r.bin"])
def test_code_in_disguise_is_refused_and_not_run(tmp_path, name):
    for write in (pickle.dumps, lambda value: pickle.dumps({"state_dict": value, "test": value}, 2)):
        (tmp_path / name).write_bytes(write(Runs(tmp_path / "ran")))
        with pytest.raises(FormatError, match=name) as caught:
            predictions_of(read(tmp_path, name), DATA, "test")
        assert "\n" not in str(caught.value)
        assert not (tmp_path / "ran").exists()


# -- live ------------------------------------------------------------------------------------------------------


def test_a_file_is_taken_as_it_is_and_an_architecture_is_recalibrated(folder, shipped):
    expected = {
        "other.pt": to_network(calibrated_subnet(shipped.weights, CODES, DATA, "x")),
        "subnet.pt": to_network(shipped_subnet(shipped.weights, shipped.members, CODES, "x")),
    }
    inputs = torch.from_numpy(np.ascontiguousarray(OURS.apply(DATA["test"].images)))
    with torch.no_grad():
        expected = {name: network(inputs).argmax(1).tolist() for name, network in expected.items()}
    assert expected["other.pt"] != expected["subnet.pt"]
    for name, predicted in expected.items():
        for kind in (".pt", ".onnx"):
            assert predictions_of(read(folder, name.replace(".pt", kind)), DATA, "test").tolist() == predicted
    assert predictions_of(read_classifier(ARCH), DATA, "test").tolist() == expected["other.pt"]


def test_progress_goes_before_the_predictions(folder):
    *progress, found = live_predictions(read(folder, "subnet.onnx"), data_of(test=noise(250)), "test")
    assert all(isinstance(event, PredictionProgress) for event in progress)
    assert [event.done for event in progress] == [0, 100, 200, 250]
    assert {event.total for event in progress} == {250}
    assert progress[1].eta_seconds > 0
    assert (found.shape, found.dtype) == ((250,), np.int64)


@pytest.mark.parametrize("batch", ["N", 1, 16, 70, 128])
def test_a_foreign_file_of_any_batch_predicts_what_it_computes(tmp_path, batch):
    weights = foreign(tmp_path / "m.onnx", batch=batch)
    found = read(tmp_path, "m.onnx", preprocessing=IMAGENET)
    assert predictions_of(found, DATA, "test").tolist() == linear(weights, IMAGENET, DATA["test"]).tolist()


def test_a_foreign_file_of_any_size_takes_the_images_as_they_are(tmp_path):
    weights = foreign(tmp_path / "m.onnx", pixels="P", kind="open")
    found = read(tmp_path, "m.onnx", preprocessing=replace(OURS, size=0))
    assert predictions_of(found, DATA, "test").tolist() == linear(weights, OURS, DATA["test"]).tolist()
    with pytest.raises(MismatchError, match="must fit the input"):
        check_fits(read(tmp_path, "m.onnx", preprocessing=IMAGENET), DATA, "test")  # made for 224 pixels, it says


def test_what_a_file_says_of_its_preprocessing_goes_before_the_option(tmp_path):
    weights = foreign(tmp_path / "m.onnx", props={"preprocessing": json.dumps(OURS.to_json())})
    found = read(tmp_path, "m.onnx", preprocessing=IMAGENET)
    assert predictions_of(found, DATA, "test").tolist() == linear(weights, OURS, DATA["test"]).tolist()


def test_photographs_are_cropped_for_a_foreign_file(tmp_path):
    data = load_data(str(image_folder(tmp_path / "animals", 90)))
    weights = foreign(tmp_path / "m.onnx", classes=3)
    found = read(tmp_path, "m.onnx", preprocessing=IMAGENET)
    (inputs,) = data["test"].inputs(IMAGENET, resolution=32, batch=1000)
    assert predictions_of(found, data, "test").tolist() == (inputs.reshape(len(inputs), -1) @ weights).argmax(1).tolist()


# -- preprocessing of foreign files ----------------------------------------------------------------------------


def test_a_file_that_does_not_say_is_fed_like_the_others_and_the_answer_tells(tmp_path, folder):
    foreign(tmp_path / "m.onnx")
    silent, saying = read(tmp_path, "m.onnx"), read(folder, "subnet.pt")
    with pytest.raises(FormatError, match="must say in its metadata how images are preprocessed, but it does not; add --preprocessing"):
        check_fits(silent, DATA, "test")
    (one, two), notes = assume_preprocessing([silent, saying])
    assert one.preprocessing == OURS
    assert two is saying
    (note,) = notes
    assert "m.onnx does not say how its images are preprocessed: taken as for the others" in note
    assert assume_preprocessing([silent], [OURS])[0][0].preprocessing == OURS
    assert assume_preprocessing([saying])[1] == []


def test_where_the_others_differ_or_are_silent_the_user_is_asked(tmp_path):
    foreign(tmp_path / "m.onnx")
    silent = read(tmp_path, "m.onnx")
    stated = [replace(silent, preprocessing=p) for p in (OURS, IMAGENET, replace(OURS, size=64))]
    for others, why in (([], "do not say theirs"), (stated[:2], "differ in theirs")):
        with pytest.raises(UsageError, match=f"but the file does not say it, and the other networks {why}; add --preprocessing"):
            assume_preprocessing([silent, *others])
    assert assume_preprocessing([silent, stated[0], stated[2]])[0][0].preprocessing == replace(OURS, size=0)  # alike but for the size


def test_preprocessing_is_read_from_words_json_and_files(tmp_path):
    text = json.dumps({"mean": OURS.mean, "std": OURS.std})
    (tmp_path / "p.json").write_text(text)
    assert read_preprocessing("imagenet") == IMAGENET
    assert read_preprocessing(text) == read_preprocessing(str(tmp_path / "p.json")) == replace(OURS, size=0)
    assert read_preprocessing(json.dumps(OURS.to_json())) == OURS
    raw = read_preprocessing('{"mean": [0, 0, 0], "std": [0.00392156862, 0.00392156862, 0.00392156862]}')  # inputs of 0 to 255
    assert np.allclose(raw.apply(DATA["test"].images), DATA["test"].images.transpose(0, 3, 1, 2), atol=1e-2)


@pytest.mark.parametrize(
    ("text", "error", "match"),
    [
        ("{", UsageError, "must be imagenet or a JSON object"),
        ("none.json", NotFoundError, "none.json must be an existing JSON file"),
        ('{"mean": [0, 0, 0]}', FormatError, "must hold mean, std and size"),
        ('{"mean": [0, 0, NaN], "std": [1, 1, 1]}', UsageError, "NaN is no finite number"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "layout": "NHWC"}', FormatError, "must be of layout NCHW and scale 1/255, but got NHWC"),
        ('{"mean": [0, 0, 0], "std": [1, 1, 1], "scale": 1}', FormatError, "but got NCHW and 1"),
    ],
)
def test_preprocessing_of_another_kind_is_refused(tmp_path, monkeypatch, text, error, match):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(error, match=match):
        read_preprocessing(text)


@pytest.mark.parametrize("change", [{"scale": 1.0}, {"layout": "NHWC"}, {"scale": 10**400}, {"mean": [0, 0]}])
def test_a_file_that_wants_other_preprocessing_is_refused(tmp_path, change):
    foreign(tmp_path / "m.onnx", props={"preprocessing": json.dumps(OURS.to_json() | change)})
    with pytest.raises(FormatError, match=r"m\.onnx must say in its metadata how images are preprocessed"):
        read(tmp_path, "m.onnx")


# -- what does not fit -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["subnet.pt", "subnet.onnx", ARCH])
@pytest.mark.parametrize(
    ("data", "text"),
    [
        (data_of(("a", "b", "c")), "must have the 10 classes of"),
        (data_of(pixels=16), "16 pixels|have 16"),
        (data_of(CIFAR[::-1]), "'airplane' is another number there"),
        (data_of(tuple("abcdefghij")), "they are airplane, automobile, bird there"),
        (data_of(()), "must have labelled test images"),
        (data_of(test=noise(0)), "must have labelled test images"),
    ],
    ids=["classes", "pixels", "order", "names", "no labels", "no images"],
)
def test_images_of_another_kind_are_refused_before_anything_runs(folder, monkeypatch, name, data, text):
    monkeypatch.setattr("ofasearch.jobs.classifier.to_network", None)
    monkeypatch.setattr("ofasearch.jobs.classifier.predict_onnx", None)
    classifier = read_classifier(name if name == ARCH else str(folder / name))
    for work in (check_fits, lambda *args: next(live_predictions(*args))):
        with pytest.raises(MismatchError, match=text) as caught:
            work(classifier, data, "test")
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("names", [tuple(map(str, range(10))), (*CIFAR[:9], "lorry")])
def test_numbers_and_other_words_for_classes_do_no_harm(folder, names):
    assert check_fits(read(folder, "subnet.pt"), data_of(names), "test").class_names == names


@pytest.mark.parametrize("name", ["never.pt", "never.onnx"])
def test_an_uncalibrated_file_is_refused(folder, name):
    with pytest.raises(CalibrationError, match="must be calibrated before it is scored"):
        check_fits(read(folder, name), DATA, "test")


@pytest.mark.parametrize(
    ("options", "error", "text"),
    [
        ({"classes": 7}, MismatchError, "must have the 7 classes of"),
        ({"classes": 7, "kind": "open"}, MismatchError, "must have the 7 classes of"),
        ({"kind": "nan"}, FormatError, "must give finite logits"),
        ({"pixels": 16}, MismatchError, "must fit the input"),
        ({"batch": 10**9}, MismatchError, "must take any batch, or one of at most 67108864 numbers"),
    ],
)
def test_a_foreign_file_of_another_form_is_refused(tmp_path, options, error, text):
    foreign(tmp_path / "m.onnx", **options)
    with pytest.raises(error, match=text):
        predictions_of(read(tmp_path, "m.onnx", preprocessing=OURS), DATA, "test")


def test_a_graph_that_gives_no_classes_is_refused(tmp_path):
    spec = SPACE.blueprint(CODES)[:1]
    (tmp_path / "m.onnx").write_bytes(build_onnx(spec, random_weights(spec, np.random.default_rng(0))))
    with pytest.raises((MismatchError, FormatError), match=r"classes of .*m\.onnx|must give finite logits"):
        predictions_of(read(tmp_path, "m.onnx", preprocessing=OURS), DATA, "test")


# -- shipped ---------------------------------------------------------------------------------------------------


def test_shipped_predictions_are_those_of_the_member_in_every_form(folder, shipped):
    row = int(shipped.members.index(CODES[None])[0])
    for split, n in (("validation", 5000), ("test", 10_000)):
        expected = shipped.members.predictions[split][row]
        images = shipped_images(shipped, split)
        assert (images.data, images.class_names, len(images.labels)) == ("cifar10", CIFAR, n)
        for text in (ARCH, str(folder / "subnet.pt"), str(folder / "subnet.onnx")):
            found = shipped_predictions(read_classifier(text), shipped, split)
            assert found.dtype == np.int64
            assert (found == expected).all()
            assert (found == images.labels).mean() == shipped.members.top1(split)[row]


def test_saved_predictions_are_held_against_shipped_labels(tmp_path, shipped):
    np.save(tmp_path / "p.npy", shipped.members.labels["test"])
    saved = read(tmp_path, "p.npy")
    assert (shipped_predictions(saved, shipped, "test") == shipped.members.labels["test"]).all()
    with pytest.raises(MismatchError, match="for each of the 5,000 validation images of cifar10, but holds 10,000"):
        shipped_predictions(saved, shipped, "validation")


def changed(subnet, **arrays):
    return replace(subnet, arrays={**subnet.arrays, **arrays})


CHANGES = {
    "other statistics": lambda s: changed(s, **{"s1.b1.depth.bn.running_mean": s.arrays["s1.b1.depth.bn.running_mean"] + np.float32(1e-6)}),
    "other weights": lambda s: changed(s, **{"head.classifier.linear.bias": s.arrays["head.classifier.linear.bias"] * np.float32(1.0001)}),
    "other preprocessing": lambda s: replace(s, preprocessing=replace(s.preprocessing, mean=(0.5, 0.5, 0.5))),
    "other supernet": lambda s: replace(s, supernet_digest="0" * 64),
    "another name": lambda s: replace(s, arch=SPACE.arch(SPACE.largest())),
}


@pytest.mark.parametrize("change", CHANGES)
def test_a_file_that_is_not_exactly_the_member_needs_data(tmp_path, shipped, subnet, change):
    save_subnet(tmp_path / "m.pt", CHANGES[change](subnet), {})
    with pytest.raises(MismatchError, match=r"must be a network of cifar10-compofa with its shipped statistics .* add --data"):
        shipped_predictions(read(tmp_path, "m.pt"), shipped, "test")


@pytest.mark.parametrize("change", ["other statistics", "other weights", "other preprocessing", "another name"])
def test_an_onnx_file_that_is_not_exactly_the_member_needs_data(tmp_path, shipped, subnet, change):
    (tmp_path / "m.onnx").write_bytes(onnx_bytes(CHANGES[change](subnet)))
    with pytest.raises(MismatchError, match="add --data"):
        shipped_predictions(read(tmp_path, "m.onnx"), shipped, "test")


@pytest.mark.parametrize("name", ["other.pt", "other.onnx", "never.pt"])
def test_a_network_of_other_statistics_needs_data(folder, shipped, name):
    with pytest.raises(MismatchError, match="add --data"):
        shipped_predictions(read(folder, name), shipped, "test")


def test_networks_from_elsewhere_need_data(tmp_path, folder, shipped):
    foreign(tmp_path / "m.onnx")
    elsewhere = read_classifier("ofa-mbv3-cifar@r32-23333-23333-23333-23333-23333", supernet="cifar10-ofa")
    for classifier in (read(tmp_path, "m.onnx"), elsewhere):
        with pytest.raises(MismatchError, match="add --data"):
            shipped_predictions(classifier, shipped, "test")
    with pytest.raises(MismatchError, match="must come with predictions to be compared without images, but has none; add --data"):
        shipped_predictions(read(folder, "subnet.pt"), zoo.load_supernet("cifar10-ofa"), "test")
    with pytest.raises(UsageError, match="--split must be validation or test"):
        shipped_images(shipped, "train")


def test_an_optimised_file_is_a_classifier_but_no_known_network(tmp_path, folder):
    model = onnx.load(folder / "subnet.onnx")
    model.graph.node[0].name = "renamed by an optimiser"
    onnx.save(model, tmp_path / "m.onnx")
    found = read(tmp_path, "m.onnx")
    assert found.arch_id is None
    assert predictions_of(found, DATA, "test").tolist() == predictions_of(read(folder, "subnet.onnx"), DATA, "test").tolist()


def test_real_images_give_the_shipped_predictions(shared_data, folder, shipped):
    """The statistics that ship were set on CIFAR-10's calibration split: an architecture recalibrated on it predicts the same."""
    data = load_data(str(shared_data / "cifar10"))
    few = DataSet(data.name, data.class_names, {**data.splits, "test": data["test"].take(np.arange(1000))})
    expected = shipped_predictions(read_classifier(ARCH), shipped, "test")[:1000]
    for text in (ARCH, str(folder / "subnet.pt"), str(folder / "subnet.onnx")):
        found = predictions_of(read_classifier(text), few, "test")
        assert (found != expected).sum() <= 1  # rounding may turn a tie
