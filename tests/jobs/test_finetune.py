"""`finetune`: the loop of the supernet on one network, chosen by validation, killed and continued, and what it delivers."""

import json
import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from tiny import PREPROCESSING, design_of, supernet_of

from ofasearch import zoo
from ofasearch.data import DataSet, ImageSet
from ofasearch.errors import FormatError, MismatchError, TrainingError, UsageError
from ofasearch.evaluate.flips import compare
from ofasearch.evaluate.score import calibration_batches, predictions, recalibrate_bn, top1
from ofasearch.jobs import finetune as job
from ofasearch.jobs import finetune_setup, train
from ofasearch.jobs.classifier import predictions_of, read_classifier
from ofasearch.jobs.deliver import OWN_WEIGHTS, calibrated_subnet, load_subnet, save_subnet, to_network, uncalibrated_subnet
from ofasearch.jobs.network import network_of
from ofasearch.jobs.regnas_task import is_cut_from
from ofasearch.jobs.run_folder import load_checkpoint
from ofasearch.space import families
from ofasearch.space.families import mobile_space
from ofasearch.space.single import single_space
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import layer_key
from ofasearch.train.loop import TrainConfig, Trainer
from ofasearch.train.source import MemorySource
from ofasearch.train.strategies import Single

ARCH = "tiny@r8-132-152"
CONFIG = TrainConfig(epochs=4, batch_size=8, warmup_epochs=0.0, lr=0.02, crop_padding=1, dropout=0.1)
SIZES = {"train": 48, "calibration": 24, "validation": 60, "test": 40}
WAYS = {"labels": {}, "teacher": {"teacher": "tiny"}, "focal": {"focal": 0.5}}


def images_of(n, seed):
    """Noise on a level that the class decides: something to learn."""
    rng = np.random.default_rng(seed)
    labels = rng.integers(0, 3, n)
    images = rng.integers(0, 120, (n, 8, 8, 3)) + 60 * labels[:, None, None, None]
    return ImageSet(images.astype(np.uint8), labels)


DATA = DataSet("levels", ("a", "b", "c"), {split: images_of(n, seed) for seed, (split, n) in enumerate(SIZES.items())})


@pytest.fixture(autouse=True)
def supernet(monkeypatch, one_thread):
    """A world whose only supernet is `tiny`, and whose only data are these; every step is saved."""
    supernet = supernet_of("tiny", mobile_space(design_of("tiny")), spread=0.5)
    monkeypatch.setitem(families.DESIGNS, "tiny", design_of("tiny"))
    monkeypatch.setattr(zoo, "load_supernet", lambda _: supernet)
    monkeypatch.setattr(finetune_setup, "load_data", lambda _: DATA)
    monkeypatch.setattr(train, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    monkeypatch.setattr("ofasearch.jobs.deliver.CHECK_IMAGES", 16)
    return supernet


def request(out, way="labels", **changes):
    fields = {"subnet": ARCH, "data": "levels", "out": out, "config": CONFIG, "supernet": "tiny", "device": "cpu"}
    return job.FinetuneRequest(**fields | WAYS[way] | changes)


def tuned(out, way="labels", **changes):
    """The record of a finished run."""
    *_, result = job.finetune(request(out, way, **changes))
    return result.record


def killed_after(step, wanted):
    """Let a run go until this step, and no further."""
    run = job.finetune(wanted)
    for event in run:
        if isinstance(event, train.TrainProgress) and event.report.step == step:
            break
    run.close()


def log_of(out):
    return [json.loads(line) for line in (out / "log.jsonl").read_text().splitlines()]


def weights_of(path):
    return load_subnet(path)[0].arrays


def same(one, other):
    return one.keys() == other.keys() and all(np.array_equal(one[key], other[key]) for key in one)


# -- one loop ------------------------------------------------------------------------------------------------------


def test_the_weights_are_those_of_the_loop_on_this_network_alone(tmp_path, supernet):
    record = tuned(tmp_path / "run", evaluate_every=4)
    subnet = uncalibrated_subnet(supernet.weights, np.array(supernet.weights.space.parse(ARCH).codes), "tiny")
    alone = Supernet.from_arrays(single_space("tiny", subnet.blueprint), subnet.arrays)
    source = MemorySource(DATA["train"], crop_padding=1, flip=True, device=torch.device("cpu"))
    for _ in Trainer(alone, Single(), CONFIG, source, PREPROCESSING).run():
        pass
    network = alone.extract(alone.space.largest())
    recalibrate_bn(network, calibration_batches(DATA, PREPROCESSING, resolution=8))
    expected = {key: t.numpy() for key, t in network.state_dict().items() if not key.endswith("num_batches_tracked")}
    assert same(dict(weights_of(tmp_path / "run" / "subnet.pt")), expected)
    assert record["best_epoch"] == 4


def test_a_single_space_holds_one_network(supernet):
    space = supernet.weights.space
    for codes in space.enumerate()[::37]:
        alone = single_space("alone", space.blueprint(codes))
        assert alone.size == 1
        assert (alone.enumerate() == alone.largest()).all()
        assert alone.blueprint(alone.largest()) == space.blueprint(codes)
        assert (alone.classes, alone.resolutions) == (3, (8,))


@pytest.mark.parametrize("name", ["ofa-mbv3-cifar-w0.1", "ofa-proxyless-cifar-w0.1", "ofa-resnet50-cifar-w0.10"])
def test_networks_of_every_family_compute_the_same_in_a_space_of_their_own(name):
    space = families.get_space(name, classes=3)
    parent = Supernet(space, generator=torch.Generator().manual_seed(0)).eval()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(1))
    for codes in space.sample(3, np.random.default_rng(0)):
        subnet = parent.extract(codes).eval()
        arrays = {key: t.numpy() for key, t in subnet.state_dict().items() if not key.endswith("num_batches_tracked")}
        alone = Supernet.from_arrays(single_space(name, space.blueprint(codes)), arrays)
        with torch.no_grad():
            assert torch.equal(alone.extract(alone.space.largest())(x), subnet(x))
            assert torch.equal(alone(x, alone.space.blueprint(alone.space.largest())), subnet(x))


@pytest.mark.parametrize("way", WAYS)
def test_it_learns_and_its_teachers_matter(tmp_path, way):
    record = tuned(tmp_path / way, way)
    assert record["after"]["validation_top1"] > record["before"]["validation_top1"] + 0.1
    assert "notes" in record
    assert not any("no epoch is better" in note for note in record["notes"])
    if way != "labels":
        tuned(tmp_path / "labels")
        assert not same(weights_of(tmp_path / way / "subnet.pt"), weights_of(tmp_path / "labels" / "subnet.pt"))


def test_two_ways_to_learn_from_another_network_are_refused(tmp_path):
    with pytest.raises(UsageError, match="--teacher and --focal are two ways"):
        request(tmp_path, teacher="tiny", focal=1.0)
    with pytest.raises(UsageError, match="single learns from a reference in one way"):
        Single(focal=1.0, distillation=1.0)


# -- which epoch ---------------------------------------------------------------------------------------------------


def test_the_best_epoch_on_the_validation_split_is_delivered(tmp_path):
    record = tuned(tmp_path / "run", config=replace(CONFIG, lr=0.3, epochs=6))
    scores = [line["validation_top1"]["subnet"] for line in log_of(tmp_path / "run")]
    assert len(set(scores)) > 1
    assert record["best_epoch"] == 1 + scores.index(max(scores)) < 6  # the first of equals, and here not the last of all
    network = to_network(load_subnet(tmp_path / "run" / "subnet.pt")[0])
    found = top1(predictions(network, DATA["validation"], PREPROCESSING, resolution=8), DATA["validation"].labels)
    assert found == max(scores) == record["after"]["validation_top1"]


def test_the_test_split_changes_nothing_but_the_report(tmp_path, monkeypatch):
    first = tuned(tmp_path / "first")
    other = replace(DATA, splits={**DATA.splits, "test": images_of(40, 99)})
    monkeypatch.setattr(finetune_setup, "load_data", lambda _: other)
    second = tuned(tmp_path / "second")
    assert same(weights_of(tmp_path / "first" / "subnet.pt"), weights_of(tmp_path / "second" / "subnet.pt"))
    assert first["flips"]["validation"] == second["flips"]["validation"]
    assert first["flips"]["test"] != second["flips"]["test"]


def test_only_epochs_that_are_looked_at_are_chosen_from(tmp_path):
    record = tuned(tmp_path / "run", evaluate_every=3)
    assert [line["epoch"] for line in log_of(tmp_path / "run") if "validation_top1" in line] == [3, 4]
    assert record["best_epoch"] in (3, 4)


def test_a_tuning_that_gained_nothing_says_so(tmp_path):
    record = tuned(tmp_path / "run", config=replace(CONFIG, lr=1e-12))
    assert record["after"] == record["before"]
    assert any("no epoch is better on the validation split than the untuned network" in note for note in record["notes"])


# -- before and after ----------------------------------------------------------------------------------------------


def test_flips_are_those_of_the_two_networks(tmp_path):
    record = tuned(tmp_path / "run", ref=ARCH.replace("152", "132"))
    old = read_classifier(ARCH, supernet="tiny")
    new = read_classifier(str(tmp_path / "run" / "subnet.pt"))
    ref = read_classifier(ARCH.replace("152", "132"), supernet="tiny")
    for split in ("validation", "test"):
        labels = DATA[split].labels
        a, b, r = (predictions_of(network, DATA, split) for network in (old, new, ref))
        assert (record["before"][f"{split}_top1"], record["after"][f"{split}_top1"]) == (top1(a, labels), top1(b, labels))
        for told, expected in (
            (record["flips"][split], compare(a, b, labels)),
            (record["reference"]["untuned"][split], compare(r, a, labels)),
            (record["reference"]["tuned"][split], compare(r, b, labels)),
        ):
            assert {key: told[key] for key in expected.to_json()} == expected.to_json()
            assert told["gain"] == expected.gain
        assert record["reference"][f"{split}_top1"] == top1(r, labels)
    assert record["reference"]["arch_id"] == ARCH.replace("152", "132")
    assert record == json.loads((tmp_path / "run" / "result.json").read_text())


# -- what it is now ------------------------------------------------------------------------------------------------


def test_a_tuned_network_has_weights_of_its_own(tmp_path, supernet):
    record = tuned(tmp_path / "run")
    subnet, facts = load_subnet(tmp_path / "run" / "subnet.pt")
    assert subnet.supernet_digest == OWN_WEIGHTS
    assert subnet.supernet == "tiny"  # where it comes from
    assert not is_cut_from(subnet, supernet.weights)
    assert network_of(subnet).space.name == "tiny"  # its layers still are those of its name
    assert subnet.calibrated == record["calibrated"] == "24 images of levels calibration"
    assert subnet.preprocessing == PREPROCESSING
    start = facts["finetuned"]["start"]
    assert (start["supernet"], start["supernet_digest"]) == ("tiny", supernet.weights.digest)
    assert facts["measured"]["top1"] == record["after"]["test_top1"]
    for file in ("subnet.pt", "subnet.onnx"):
        found = predictions_of(read_classifier(str(tmp_path / "run" / file)), DATA, "test")
        assert top1(found, DATA["test"].labels) == record["after"]["test_top1"]
    assert read_classifier(str(tmp_path / "run" / "subnet.onnx")).onnx.metadata["supernet_digest"] == OWN_WEIGHTS


def test_a_tuned_network_is_tuned_again_from_its_file(tmp_path):
    tuned(tmp_path / "first")
    again = tuned(tmp_path / "second", subnet=str(tmp_path / "first" / "subnet.pt"))
    assert again["before"] == json.loads((tmp_path / "first" / "result.json").read_text())["after"]
    assert load_subnet(tmp_path / "second" / "subnet.pt")[1]["finetuned"]["start"]["supernet_digest"] == OWN_WEIGHTS


def test_a_network_without_slots_is_tuned_alike(tmp_path, supernet):
    subnet = calibrated_subnet(supernet.weights, np.array(supernet.weights.space.parse(ARCH).codes), DATA, "tiny")
    bare = tuple(replace(spec, slot="") for spec in subnet.blueprint)
    names = {spec.slot: layer_key(one, index) for index, (spec, one) in enumerate(zip(subnet.blueprint, bare, strict=True))}
    arrays = {
        key.replace(slot, name, 1): subnet.arrays[key]
        for slot, name in names.items()
        for key in subnet.arrays
        if key.startswith(f"{slot}.")
    }
    save_subnet(tmp_path / "bare.pt", replace(subnet, blueprint=bare, arrays=arrays), {})
    save_subnet(tmp_path / "named.pt", subnet, {})
    records = [tuned(tmp_path / name, subnet=str(tmp_path / f"{name}.pt")) for name in ("bare", "named")]
    assert records[0]["flips"] == records[1]["flips"]
    assert load_subnet(tmp_path / "bare" / "subnet.pt")[0].blueprint == bare


# -- kills ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("way", WAYS)
def test_a_run_killed_anywhere_ends_in_the_same_network(tmp_path, way):
    changes = {"config": replace(CONFIG, lr=0.1)}
    expected = tuned(tmp_path / "unbroken", way, **changes)
    for step in (3, 6, 13, 24):  # within and at the ends of epochs, and after the last step
        killed_after(step, request(tmp_path / "broken", way, resume=True, **changes))
        assert not (tmp_path / "broken" / "subnet.pt").exists()
    found = tuned(tmp_path / "broken", way, resume=True, **changes)
    assert same(weights_of(tmp_path / "broken" / "subnet.pt"), weights_of(tmp_path / "unbroken" / "subnet.pt"))
    for key in ("best_epoch", "before", "after", "flips"):
        assert found[key] == expected[key]
    assert [line["step"] for line in log_of(tmp_path / "broken")] == [6, 12, 18, 24]


def test_the_best_network_so_far_survives_a_kill(tmp_path):
    config = replace(CONFIG, lr=0.3, epochs=6)
    best = tuned(tmp_path / "unbroken", config=config)["best_epoch"]
    assert best < 6
    killed_after(6 * best + 1, request(tmp_path / "broken", config=config))
    assert load_checkpoint(tmp_path / "broken" / "checkpoint.pt")["best"]["epoch"] == best
    assert tuned(tmp_path / "broken", config=config, resume=True)["best_epoch"] == best


@pytest.mark.parametrize("damage", ["no number", "other weights", "infinite"])
def test_a_checkpoint_with_a_foreign_best_network_is_refused(tmp_path, damage):
    wanted = request(tmp_path / "run")
    killed_after(7, wanted)
    state = load_checkpoint(tmp_path / "run" / "checkpoint.pt")
    key = next(iter(state["best"]["arrays"]))
    if damage == "no number":
        state["best"]["top1"] = "high"
    elif damage == "other weights":
        del state["best"]["arrays"][key]
    else:
        state["best"]["arrays"][key][:] = np.inf
    torch.save(state, tmp_path / "run" / "checkpoint.pt")
    with pytest.raises(TrainingError, match="the checkpoint must hold seconds and losses"):
        tuned(tmp_path / "run", resume=True)
    assert len(log_of(tmp_path / "run")) == 1


def test_a_finished_run_is_delivered_again(tmp_path):
    first = tuned(tmp_path / "run")
    for name in ("subnet.pt", "subnet.onnx", "result.json"):
        (tmp_path / "run" / name).unlink()
    again = tuned(tmp_path / "run", resume=True)
    assert {key: again[key] for key in ("best_epoch", "flips", "after")} == {key: first[key] for key in ("best_epoch", "flips", "after")}
    assert (tmp_path / "run" / "subnet.onnx").is_file()


# -- what cannot be ------------------------------------------------------------------------------------------------


def kept_apart(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_another_run_in_the_folder_is_left_alone(tmp_path):
    tuned(tmp_path / "run")
    before = kept_apart(tmp_path / "run")
    with pytest.raises(UsageError, match="must be a new folder, but holds a run; add --resume to continue it"):
        tuned(tmp_path / "run")
    with pytest.raises(MismatchError, match="a resumed run must keep its settings, but lr changed"):
        tuned(tmp_path / "run", resume=True, config=replace(CONFIG, lr=0.5))
    with pytest.raises(MismatchError, match="must keep its settings, but arch_id, weights changed"):
        tuned(tmp_path / "run", resume=True, subnet=ARCH.replace("152", "132"))
    assert kept_apart(tmp_path / "run") == before
    (tmp_path / "run.json").write_text('{"format": "a search"}')
    with pytest.raises(UsageError, match=r"or that of an earlier fine-tuning, but holds another run\.json"):
        tuned(tmp_path)


def test_the_network_itself_is_never_overwritten(tmp_path):
    tuned(tmp_path / "first")
    found = tmp_path / "found"
    found.mkdir()
    (tmp_path / "first" / "subnet.pt").rename(found / "subnet.pt")
    before = kept_apart(found)
    for resume in (False, True):
        with pytest.raises(UsageError, match=r"but holds another subnet\.pt; give another -o"):
            tuned(found, subnet=str(found / "subnet.pt"), resume=resume)
    assert kept_apart(found) == before


def without(split):
    return replace(DATA, splits={**DATA.splits, split: DATA[split].take(np.arange(0))})


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (without("calibration"), MismatchError, "data must have a calibration split, from which batch norm is set after training"),
        (without("train"), UsageError, "training needs labelled images, but levels has no training images"),
        (without("validation"), MismatchError, "data must have labelled validation images"),
        (without("test"), MismatchError, "data must have labelled test images"),
        (replace(DATA, class_names=()), UsageError, "training needs labelled images, but levels has no labels"),
        (
            replace(DATA, class_names=("a", "b", "c", "d")),
            MismatchError,
            "data must have the 3 classes of tiny@r8-132-152, but levels has 4",
        ),
        (
            replace(DATA, splits={k: ImageSet(np.zeros((9, 16, 16, 3), np.uint8), np.zeros(9, int)) for k in DATA.splits}),
            MismatchError,
            "images of levels must have the 8 pixels of tiny@r8-132-152, but have 16",
        ),
    ],
)
def test_data_that_does_not_fit_is_refused_before_anything_is_written(tmp_path, monkeypatch, data, error, text):
    monkeypatch.setattr(finetune_setup, "load_data", lambda _: data)
    with pytest.raises(error, match=text):
        tuned(tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_teacher_that_is_fed_otherwise_is_refused(tmp_path, supernet):
    subnet = uncalibrated_subnet(supernet.weights, supernet.weights.space.largest(), "tiny")
    save_subnet(tmp_path / "t.pt", replace(subnet, preprocessing=replace(PREPROCESSING, mean=(0.0, 0.0, 0.0))), {})
    with pytest.raises(MismatchError, match=r"--teacher must be fed images as .* but .*t\.pt has another mean or std"):
        tuned(tmp_path / "run", teacher=str(tmp_path / "t.pt"))
    (tmp_path / "t.pt").write_bytes(b"nothing")
    with pytest.raises(FormatError, match=r"must be a subnet\.pt"):
        tuned(tmp_path / "run", teacher=str(tmp_path / "t.pt"))
    assert not (tmp_path / "run").exists()


def test_a_loss_that_explodes_ends_in_a_sentence(tmp_path):
    with pytest.raises(TrainingError, match=r"the loss must stay finite, but is .* lower the learning rate"):
        tuned(tmp_path / "run", config=replace(CONFIG, lr=1e30))
