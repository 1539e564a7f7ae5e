"""Where a run starts: weights of the same space, of a part or of the whole, and teachers that are given."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch

from ofasearch.data import DataSet, ImageSet, Preprocessing
from ofasearch.errors import FormatError, MismatchError, NotFoundError, UsageError
from ofasearch.jobs import train as job
from ofasearch.jobs import train_setup
from ofasearch.jobs.deliver import calibrated_subnet, save_subnet
from ofasearch.space.families import DESIGNS, get_space
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import Weights, load_weights, matrix_shapes, save_weights, transfer
from ofasearch.train.loop import TrainConfig

PREPROCESSING = Preprocessing(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25), size=8)
STILL = TrainConfig(epochs=3, batch_size=8, warmup_epochs=0, lr=1e-300, weight_decay=0.0)  # float32 does not see so small a rate
MOVING = replace(STILL, lr=0.05)


def grown(space, *, seed=0, kernel_transform=True):
    """A supernet with random weights everywhere, kernel transforms and statistics included."""
    supernet = Supernet(space, kernel_transform=kernel_transform, generator=torch.Generator().manual_seed(seed))
    generator = torch.Generator().manual_seed(seed + 1)
    with torch.no_grad():
        for key, tensor in supernet.tensors().items():
            noise = torch.randn(tensor.shape, generator=generator)
            tensor.add_(0.02 * noise if "to" in key.rpartition(".")[2] else 0.1 * noise.abs() * (tensor.ndim == 1))
    return supernet


# -- from one space to another ---------------------------------------------------------------------------------


def common(part, whole, n=4):
    """Networks that both spaces have, as codes of each."""
    of_part = np.concatenate([part.largest()[None], part.smallest()[None], part.sample(n, np.random.default_rng(1))])
    return of_part, part.lift(of_part, whole)


PAIRS = [
    ("compofa-mbv3-cifar-w0.1", "ofa-mbv3-cifar-w0.1"),
    ("ofa-mbv3-cifar-w0.1-d34-e46-k357", "ofa-mbv3-cifar-w0.1"),
    ("ofa-mbv3-cifar-w0.1-d4-e6-k57", "ofa-mbv3-cifar-w0.1"),
    ("ofa-mbv3-cifar-w0.1-d4-e6-k7", "ofa-mbv3-cifar-w0.1-d34-e46-k357"),
    ("ofa-mbv3-cifar-w0.1-d4-e6-k3", "ofa-mbv3-cifar-w0.1-d4-e6-k35"),
    ("ofa-mbv3-cifar-w0.1", "ofa-mbv3-cifar-w0.1"),
]


def largest_difference(source, arrays, target, pairs):
    """Between what networks compute in the source and, with these arrays, in the target."""
    moved, x = Supernet.from_arrays(target, arrays), torch.randn(4, 3, 32, 32, generator=torch.Generator().manual_seed(3))
    found = []
    for training in (False, True):
        moved.train(training)
        source.train(training)
        with torch.no_grad():
            for old, new in pairs:
                a, b = source(x, source.space.blueprint(old)), moved(x, target.blueprint(new))
                assert a.std() > 1e-3
                found.append(float((a - b).abs().max()))
    return max(found)


@pytest.mark.parametrize("kernel_transform", [True, False], ids=["transforms", "crops"])
@pytest.mark.parametrize(("part", "whole"), PAIRS)
def test_a_part_becomes_a_whole_in_which_its_networks_compute_the_same(part, whole, kernel_transform):
    part, whole = get_space(part), get_space(whole)
    source = grown(part, kernel_transform=kernel_transform)
    arrays = transfer(source.arrays(), part, whole)
    assert set(matrix_shapes(whole)) <= set(arrays)
    assert largest_difference(source, arrays, whole, zip(*common(part, whole), strict=True)) < 1e-5


@pytest.mark.parametrize("kernel_transform", [True, False], ids=["transforms", "crops"])
@pytest.mark.parametrize(("part", "whole"), [pair for pair in PAIRS if pair[1] == "ofa-mbv3-cifar-w0.1"])
def test_a_whole_becomes_a_part_whose_networks_compute_the_same(part, whole, kernel_transform):
    part, whole = get_space(part), get_space(whole)
    source = grown(whole, kernel_transform=kernel_transform)
    arrays = transfer(source.arrays(), whole, part)
    of_part, of_whole = common(part, whole)
    assert largest_difference(source, arrays, part, zip(of_whole, of_part, strict=True)) < 1e-5


@pytest.mark.parametrize(
    ("source", "target"),
    [
        ("ofa-mbv3-cifar-w0.1", "ofa-mbv3-cifar-w0.2"),
        ("compofa-mbv3-cifar-w0.1", "ofa-mbv3-32-w0.1"),
        ("ofa-mbv3-cifar-w0.1-d4-e6-k7", "ofa-mbv3-cifar-w0.1-d4-e6-k35"),  # its kernels of 5 were never trained
        ("ofa-mbv3-cifar-w0.1-d4-e34-k7", "ofa-mbv3-cifar-w0.1"),
    ],
)
def test_weights_of_an_unrelated_space_are_refused(source, target):
    source, target = get_space(source), get_space(target)
    with pytest.raises(MismatchError, match="must"):
        transfer(grown(source).arrays(), source, target)


def test_weights_of_other_classes_are_refused():
    source, target = get_space("compofa-mbv3-cifar-w0.1", classes=7), get_space("ofa-mbv3-cifar-w0.1")
    with pytest.raises(MismatchError, match=r"head\.classifier\.linear"):
        transfer(grown(source).arrays(), source, target)


# -- runs ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def few():
    rng = np.random.default_rng(0)
    images = ImageSet(rng.integers(0, 256, (60, 8, 8, 3)).astype(np.uint8), rng.integers(0, 3, 60))
    parts = np.split(np.arange(60), [32, 44, 52])
    return DataSet("few", ("a", "b", "c"), dict(zip(("train", "calibration", "validation", "test"), map(images.take, parts), strict=True)))


@pytest.fixture(autouse=True)
def quick(few, tiny_design, monkeypatch, one_thread):
    """Runs on 8x8 images; the tiny design, its compound part, and another."""
    for name, design in {
        "tiny": tiny_design,
        "comptiny": replace(tiny_design, name="comptiny", coupled=True, elastic_kernel=False, parent="tiny"),
        "other": replace(tiny_design, name="other", c_feature=32),
    }.items():
        monkeypatch.setitem(DESIGNS, name, design)
    monkeypatch.setattr(train_setup, "load_data", lambda source: few)
    monkeypatch.setattr(job, "CHECKPOINT_SECONDS", 0.0)
    monkeypatch.setattr(os, "fsync", lambda _: None)
    return monkeypatch


@pytest.fixture
def saved(tmp_path):
    """Writes a supernet of that name with random weights; gives the file."""

    def write(name, *, classes=3, **options):
        space, path = get_space(name, classes=classes), tmp_path / f"{name}-{classes}.safetensors"
        save_weights(path, Weights(grown(space, **options).arrays(), space, PREPROCESSING, (), {"from": "a test"}, name))
        return path

    return write


def request(out, space="tiny", strategy="ofa", **changes):
    return job.TrainRequest(
        **{"space": space, "data": "few", "out": out, "strategy": strategy, "config": STILL, "evaluate_every": 0} | changes
    )


def finish(wanted):
    *events, result = job.train(wanted)
    return [event.report.phase for event in events], load_weights(result.supernet)


def full_logits(arrays, space):
    x = torch.randn(4, 3, 8, 8, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        return Supernet.from_arrays(space, arrays).train()(x, space.blueprint(space.largest()))


def test_a_part_and_a_whole_are_starts_of_each_other(saved, tmp_path):
    for source, target in (("comptiny", "tiny"), ("tiny", "comptiny"), ("tiny-d2-e3-k5", "tiny"), ("tiny", "tiny-d12-e3-k35")):
        path = saved(source)
        _, weights = finish(request(tmp_path / f"{source} {target}", target, "single", init=path))
        expected = transfer(load_weights(path).arrays, get_space(source, classes=3), weights.space)
        assert all(np.array_equal(array, weights.arrays[key]) for key, array in expected.items())
        assert weights.training["init"] == {"digest": load_weights(path).digest, "space": source, "training": {"from": "a test"}}


def test_an_unfinished_run_of_a_part_is_a_start_of_the_whole(tmp_path):
    run = job.train(request(tmp_path / "part", "tiny-d2-e3-k5", "single", config=MOVING))
    for _ in range(5):
        next(run)
    run.close()
    reached = job.load_checkpoint(tmp_path / "part" / "checkpoint.pt")["weights"]
    _, weights = finish(request(tmp_path / "whole", "tiny", "single", init=tmp_path / "part"))
    assert all(np.array_equal(weights.arrays[key], tensor.numpy()) for key, tensor in reached.items())
    assert (weights.training["init"]["step"], weights.training["init"]["run"]["space"]) == (5, "tiny-d2-e3-k5")
    with pytest.raises(MismatchError, match=r"--init must be a run of other or of a part of it, but .*part is not: weights of other must"):
        finish(request(tmp_path / "x", "other", "single", init=tmp_path / "part"))


def test_a_new_supernet_of_the_sandwich_starts_as_identities_and_a_given_one_as_it_is(saved, tmp_path):
    zeroed = replace(STILL, zero_gamma=True)
    _, fresh = finish(request(tmp_path / "fresh", strategy="bignas", config=zeroed))
    skips = {spec.slot for spec in fresh.space.blueprint(fresh.space.largest()) if spec.kind == "mbconv" and spec.skip}
    assert 0 < len(skips) < 5
    for key, array in fresh.arrays.items():
        if key.endswith("bn.weight"):
            assert (array == (0 if key.removesuffix(".project.bn.weight") in skips else 1)).all(), key
    path = saved("tiny")
    _, given = finish(request(tmp_path / "given", strategy="bignas", config=zeroed, init=path))
    assert given.digest == load_weights(path).digest


@pytest.mark.parametrize(
    ("name", "space", "text"),
    [
        (
            "other",
            "tiny",
            r"--init must be a supernet of tiny \(or of a part of it, or a larger one\) with 3 classes, but .*other-3.safetensors",
        ),
        ("tiny", "other", "--init must be a supernet of other .* is one of tiny with 3"),
    ],
)
def test_an_unrelated_start_is_refused(saved, tmp_path, name, space, text):
    with pytest.raises(MismatchError, match=text):
        next(job.train(request(tmp_path / "run", space, init=saved(name))))
    assert not (tmp_path / "run").exists()


def test_a_start_of_other_classes_is_refused(saved, tmp_path):
    with pytest.raises(MismatchError, match=r"--init must be .* with 3 classes, but .* with 5: it has 5 classes"):
        next(job.train(request(tmp_path / "run", init=saved("tiny", classes=5))))


# -- given teachers --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("strategy", ["ofa", "compofa"])
@pytest.mark.parametrize("name", ["tiny", "comptiny", "tiny-d2-e3-k5"])
def test_a_run_with_a_given_teacher_skips_its_phase_and_starts_from_it(saved, tmp_path, strategy, name):
    path = saved(name)
    phases, weights = finish(request(tmp_path / "run", strategy=strategy, teacher=str(path)))
    assert phases[0] != "teacher"
    assert len(phases) == 12
    source = load_weights(path)
    start = full_logits(transfer(source.arrays, source.space, weights.space), weights.space)
    assert torch.allclose(full_logits(weights.arrays, weights.space), start, atol=1e-5)  # channels were sorted
    assert torch.allclose(full_logits(source.arrays, source.space), start, atol=1e-5)
    assert weights.training["teacher"] == {"name": str(path), "digest": source.digest}


def test_with_a_start_a_given_teacher_only_teaches(saved, tmp_path):
    teacher, start = saved("tiny"), saved("comptiny", seed=5)
    phases, weights = finish(request(tmp_path / "run", strategy="ofa", teacher=str(teacher), init=start))
    assert phases[0] == "kernel"
    source = load_weights(start)
    assert torch.allclose(full_logits(weights.arrays, weights.space), full_logits(source.arrays, source.space), atol=1e-5)


def test_the_first_step_learns_from_the_given_teacher(saved, tmp_path):
    """The loss of a step is the same whatever the teacher, its gradient is not."""
    reached = []
    for seed in (0, 7):
        path = saved("tiny", seed=seed)
        run = job.train(request(tmp_path / f"run{seed}", init=saved("comptiny"), teacher=str(path), config=MOVING))
        next(run)
        run.close()
        reached.append(job.load_checkpoint(tmp_path / f"run{seed}" / "checkpoint.pt"))
    weights = [state["weights"]["head.classifier.linear.weight"] for state in reached]
    assert not torch.equal(*weights)
    assert all("teacher" not in state for state in reached)


@pytest.fixture
def subnet(saved, tmp_path, few):
    """A calibrated subnet.pt of the tiny space."""
    weights = load_weights(saved("tiny", seed=3))
    save_subnet(tmp_path / "subnet.pt", calibrated_subnet(weights, weights.space.middle(), few, "tiny"), {})
    return tmp_path / "subnet.pt"


def test_a_network_learns_from_a_reference_of_any_space(saved, subnet, tmp_path):
    focal = {"strategy": "single", "options": {"focal": 0.5}, "config": MOVING}
    references = [str(subnet), str(saved("other")), str(saved("tiny"))]
    found = [finish(request(tmp_path / f"run{n}", teacher=reference, **focal)) for n, reference in enumerate(references)]
    assert all(set(phases) == {"single"} for phases, _ in found)
    assert len({weights.digest for _, weights in found}) == 3
    assert [weights.training["teacher"]["name"] for _, weights in found] == references
    alone = finish(request(tmp_path / "alone", strategy="single", config=MOVING))[1]
    assert alone.digest not in {weights.digest for _, weights in found}
    start = Supernet(get_space("tiny"), generator=torch.Generator().manual_seed(0)).arrays()
    _, kept = finish(request(tmp_path / "kept", teacher=references[2], **{**focal, "config": STILL}))
    assert all(np.array_equal(kept.arrays[key], array) for key, array in start.items())  # a reference is no start


@pytest.mark.parametrize(
    ("strategy", "options", "teacher", "error", "text"),
    [
        ("ofa", {}, "other", MismatchError, "weights of tiny must come from it, a part of it or its parent, but these are of other"),
        ("ofa", {}, ("tiny", 5), MismatchError, "--teacher must know the 3 classes of the data, but .* knows 5"),
        ("single", {"focal": 1.0}, ("other", 2), MismatchError, "--teacher must know the 3 classes of the data, but .* knows 2"),
        ("deps", {}, "tiny", UsageError, "strategy deps distils from no given network; leave --teacher out"),
        ("bignas", {}, "tiny", UsageError, "strategy bignas distils from no given network"),
        ("rss", {}, "tiny", UsageError, "strategy rss distils from no given network"),
        ("single", {}, "tiny", UsageError, "strategy single distils from no given network"),
        ("single", {"focal": 1.0}, None, UsageError, "distillation from a reference needs a network to distil from: give it as --teacher"),
    ],
)
def test_a_teacher_that_does_not_fit_is_refused(saved, tmp_path, strategy, options, teacher, error, text):
    if teacher is not None:
        name, classes = teacher if isinstance(teacher, tuple) else (teacher, 3)
        teacher = str(saved(name, classes=classes))
    with pytest.raises(error, match=text):
        next(job.train(request(tmp_path / "run", strategy=strategy, options=options, teacher=teacher)))
    assert not (tmp_path / "run").exists()


def test_teachers_that_are_no_files_or_of_another_kind_are_refused(subnet, tmp_path):
    for name, strategy, error in (
        ("nowhere", "ofa", NotFoundError),
        (str(tmp_path / "no.pt"), "single", NotFoundError),
        (str(subnet), "ofa", FormatError),
    ):
        options = {"focal": 1.0} if strategy == "single" else {}
        with pytest.raises(error, match="must be"):
            next(job.train(request(tmp_path / "run", strategy=strategy, options=options, teacher=name)))


def test_a_space_of_one_network_has_nothing_to_learn_from_a_teacher(saved, tmp_path):
    with pytest.raises(UsageError, match="a run must have a phase to train"):
        next(job.train(request(tmp_path / "run", "tiny-d2-e3-k5", "ofa", teacher=str(saved("tiny-d2-e3-k5")))))
