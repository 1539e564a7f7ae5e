"""Members of a small space: one walk over shared layers equals every network alone, files are tied to their weights, runs resume."""

import os
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import load_file, save

from ofasearch.data import DataSet, ImageSet, Preprocessing
from ofasearch.errors import FormatError, MismatchError, NotFoundError, UsageError
from ofasearch.evaluate import members as room
from ofasearch.evaluate.members import Collector, Members, join, load_members, save_members, walk
from ofasearch.evaluate.score import batches, predictions, recalibrate_bn
from ofasearch.jobs import members as job
from ofasearch.space.families import MobileDesign, Stage, get_space, mobile_space
from ofasearch.supernet.elastic import channels_last, norms
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import Weights, norm_names, read_safetensors
from ofasearch.zoo import TrainedSupernet

PREPROCESSING = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), size=8)
DIGEST = "digest-of-the-weights"


@pytest.fixture(autouse=True)
def no_fsync(monkeypatch):
    """Nothing here has to survive a power cut."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


@pytest.fixture(scope="module", autouse=True)
def one_order_of_summation():
    """Results that are compared to the bit need one, in the fixtures too."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(threads)


def images_of(n, seed):
    rng = np.random.default_rng(seed)
    return ImageSet(rng.integers(0, 256, (n, 8, 8, 3)).astype(np.uint8), rng.integers(0, 3, n))


def data_of(name="noise", seed=0):
    sizes = {"train": 8, "calibration": 24, "validation": 16, "test": 20}
    return DataSet(name, ("a", "b", "c"), {split: images_of(n, seed + i) for i, (split, n) in enumerate(sizes.items())})


def supernet_of(space):
    """A supernet whose scales are its own, laid out as the job lays it out."""
    supernet, generator = Supernet(space, generator=torch.Generator().manual_seed(1)), torch.Generator().manual_seed(2)
    with torch.no_grad():
        for norm in norms(supernet).values():
            norm.weight += 0.3 * torch.randn(norm.weight.shape, generator=generator)
            norm.bias += 0.3 * torch.randn(norm.bias.shape, generator=generator)
    channels_last(supernet)
    return supernet.eval()


@pytest.fixture(scope="module")
def measured(tiny_space):
    """Eight members of the tiny space, walked together, with all that the walk was given."""
    supernet, data = supernet_of(tiny_space), data_of()
    codes = np.unique(np.vstack([tiny_space.smallest(), tiny_space.largest(), tiny_space.sample(6, np.random.default_rng(0))]), axis=0)
    calibration = list(batches(data["calibration"], PREPROCESSING, resolution=8, size=8))
    inputs = {split: list(batches(data[split], PREPROCESSING, resolution=8, size=7)) for split in ("validation", "test")}
    return supernet, data, codes, calibration, inputs


def collect(supernet, codes, calibration, inputs):
    blueprints = [supernet.space.blueprint(row) for row in codes]
    collector = Collector(len(codes), max(map(len, blueprints)) + 1)
    for visit in walk(supernet, blueprints, calibration, inputs):
        collector.add(visit)
    return collector.arrays()


@pytest.fixture(scope="module")
def arrays(measured):
    supernet, _, codes, calibration, inputs = measured
    return collect(supernet, codes, calibration, inputs)


@pytest.fixture(scope="module")
def members(measured, arrays):
    supernet, data, codes, _, inputs = measured
    predicted = {s: arrays[f"predictions.{s}"] for s in inputs}
    labels = {s: data[s].labels.astype(np.uint8) for s in inputs}
    rest = (arrays["nodes"], arrays["offsets"], arrays["statistics"])
    return Members(supernet.space, codes, predicted, labels, *rest, DIGEST, {"data": "noise"})


# -- one walk --------------------------------------------------------------------------------------------------


def test_walking_together_equals_every_network_alone_to_the_bit(measured, members):
    supernet, data, codes, calibration, inputs = measured
    for member, row in enumerate(codes):
        network = supernet.extract(row)
        recalibrate_bn(network, calibration)
        state = {k: t.numpy() for k, t in network.state_dict().items() if "running" in k}
        found = members.norm_statistics(member)
        assert found.keys() == state.keys()
        assert all(np.array_equal(found[key], state[key]) for key in state)
        for split in inputs:
            assert np.array_equal(members.predictions[split][member], predictions(network, data[split], PREPROCESSING, resolution=8))
    assert len(np.unique(members.predictions["test"], axis=0)) > 1  # the networks do differ


def test_shared_layers_are_measured_once(measured, arrays):
    supernet, _, codes, _, _ = measured
    blueprints = [supernet.space.blueprint(row) for row in codes]
    prefixes = {blueprint[: i + 1] for blueprint in blueprints for i in range(len(blueprint))}
    assert len(arrays["offsets"]) - 1 == len(prefixes) < sum(map(len, blueprints))
    assert [(row >= 0).sum() for row in arrays["nodes"]] == [len(b) for b in blueprints]


def test_statistics_have_the_names_and_lengths_of_the_network(members):
    for member, row in enumerate(members.codes):
        found = members.norm_statistics(member)
        expected = [
            (f"{spec.slot}.{name}.{part}", channels)
            for spec in members.space.blueprint(row)
            for name, channels in norm_names(spec)
            for part in ("running_mean", "running_var")
        ]
        assert [(k, len(a)) for k, a in found.items()] == expected
        assert all((a > 0).all() for k, a in found.items() if k.endswith("running_var"))


def test_joined_parts_equal_one_part(measured, arrays, members):
    supernet, _, codes, calibration, inputs = measured
    parts = [collect(supernet, codes[i : i + 3], calibration, inputs) for i in range(0, len(codes), 3)]
    width = max(p["nodes"].shape[1] for p in parts)
    padded = [{**p, "nodes": np.pad(p["nodes"], ((0, 0), (0, width - p["nodes"].shape[1])), constant_values=-1)} for p in parts]
    found = join(padded)
    joined = replace(members, nodes=found["nodes"], offsets=found["offsets"], statistics=found["statistics"])
    for member in range(len(codes)):
        one, other = members.norm_statistics(member), joined.norm_statistics(member)
        assert all(np.array_equal(one[key], other[key]) for key in one)
    assert all(np.array_equal(found[f"predictions.{split}"], arrays[f"predictions.{split}"]) for split in inputs)
    assert {k: a.tobytes() for k, a in join([arrays]).items()} == {k: a.tobytes() for k, a in arrays.items()}


def test_accuracy_counts_the_right_labels(members):
    predicted = np.array([[0, 1, 2, 0], [2, 2, 2, 2]], dtype=np.uint8)
    few = replace(members, predictions={"test": predicted}, labels={"test": np.array([0, 1, 2, 1], dtype=np.uint8)})
    assert few.top1("test").tolist() == [0.75, 0.25]


def test_members_are_found_by_their_codes(members):
    order = np.random.default_rng(0).permutation(len(members.codes))
    assert members.index(members.codes[order]).tolist() == order.tolist()
    known = {row.tobytes() for row in members.codes}
    other = next(row for row in members.space.sample(100, np.random.default_rng(9)) if row.tobytes() not in known)
    with pytest.raises(MismatchError, match=r"one of the \d measured members of tiny"):
        members.index(other[None])


# -- files -----------------------------------------------------------------------------------------------------


@pytest.fixture
def file(members, tmp_path):
    save_members(tmp_path / "members.safetensors", members)
    return tmp_path / "members.safetensors"


def test_a_file_gives_back_what_was_saved(file, members):
    found = load_members(file, members.space, DIGEST)
    assert np.array_equal(found.codes, members.codes)
    assert found.card == members.card
    for split in ("validation", "test"):
        assert np.array_equal(found.top1(split), members.top1(split))
    last = len(members.codes) - 1
    assert all(np.array_equal(a, found.norm_statistics(last)[k]) for k, a in members.norm_statistics(last).items())


def test_members_of_other_weights_are_refused(file, members):
    with pytest.raises(MismatchError, match="must belong to the supernet's weights, but was measured on others"):
        load_members(file, members.space, DIGEST + "x")
    with pytest.raises(NotFoundError, match="must be an existing file"):
        load_members(file.with_name("none"), members.space, DIGEST)


@pytest.mark.parametrize("content", [b"", b"text", "cut"], ids=["empty", "text", "cut"])
def test_an_unreadable_file_is_refused(file, members, content):
    file.write_bytes(file.read_bytes()[:-100] if content == "cut" else content)
    with pytest.raises(FormatError, match="must be a safetensors file"):
        load_members(file, members.space, DIGEST)


def wrong(name, change):
    return pytest.param(name, change, id=f"{name}-{change.__name__.strip('_')}")


def lacks(_):
    return None


def cut(a):
    return a[:-1]


def nan(a):
    return a * np.float32(np.nan)


def beyond(a):
    return a + 100


def first_column(a):
    return a[:, 0]


@pytest.mark.parametrize(
    ("name", "change"),
    [
        wrong("codes", lacks),
        wrong("labels.test", lacks),
        wrong("statistics", lacks),
        wrong("statistics", cut),
        wrong("statistics", nan),
        wrong("offsets", cut),
        wrong("nodes", cut),
        wrong("nodes", beyond),
        wrong("nodes", first_column),
        wrong("codes", cut),
        wrong("codes", beyond),
        wrong("codes", first_column),
        wrong("labels.test", cut),
        wrong("predictions.test", cut),
        wrong("predictions.test", first_column),
    ],
)
def test_arrays_that_do_not_fit_together_are_refused(file, members, name, change):
    content = load_file(file)
    changed = change(content.pop(name))
    content |= {} if changed is None else {name: np.ascontiguousarray(changed)}
    card = {"ofasearch": f'{{"format": "{room.FORMAT}", "supernet_digest": "{DIGEST}", "card": {{}}}}'}
    file.write_bytes(save(content, metadata=card))
    with pytest.raises(FormatError, match="must"):
        load_members(file, members.space, DIGEST)


def test_a_file_of_another_format_is_refused(file, members):
    file.write_bytes(save(load_file(file), metadata={"ofasearch": '{"format": "other"}'}))
    with pytest.raises(FormatError, match="must be of format ofasearch-members-1"):
        load_members(file, members.space, DIGEST)


# -- the job ---------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def four():
    """A supernet of four members (depth and expand ratio tied, fixed kernels)."""
    stages = (Stage(8, 1, "relu", se=False, kernel=3), Stage(16, 2, "h_swish", se=True, kernel=5))
    design = MobileDesign(
        name="four", stem=8, stem_stride=1, first=8, stages=stages, c_expand=16, c_feature=24, classes=3, resolutions=(8,),
        depths=(1, 2), expands=(2, 3), kernels=(3, 5), coupled=True, elastic_kernel=False,
    )  # fmt: skip
    space = mobile_space(design)
    return TrainedSupernet("four", Weights(supernet_of(space).arrays(), space, PREPROCESSING), None)


@pytest.fixture
def walks(monkeypatch, four):
    """The job on the four members, one per part; counts the walks and interrupts the one that is told."""
    count = {"walks": 0, "interrupt_at": None}

    def counting(*args):
        if count["walks"] == count["interrupt_at"]:
            raise KeyboardInterrupt
        count["walks"] += 1
        yield from walk(*args)

    monkeypatch.setattr(job, "walk", counting)
    monkeypatch.setattr(job, "GROUP", 1)
    monkeypatch.setattr(job.zoo, "load_supernet", lambda _: four)
    monkeypatch.setattr(job, "load_data", lambda name: data_of(name, seed=len(name)))
    return count


def run_to_end(out, data="noise"):
    *progress, result = job.measure_members("four", data, out)
    return [(p.done, p.total) for p in progress], result


def test_an_interrupted_run_goes_on_where_it_stopped(walks, tmp_path):
    _, whole = run_to_end(tmp_path / "whole.safetensors")
    assert walks["walks"] == 4
    walks |= {"walks": 0, "interrupt_at": 2}
    out = tmp_path / "members.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run_to_end(out)
    assert not out.exists()
    walks |= {"walks": 0, "interrupt_at": None}
    progress, result = run_to_end(out)
    assert walks["walks"] == 2
    assert progress == [(1, 4), (2, 4), (3, 4), (4, 4)]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["members.safetensors", "whole.safetensors"]  # no parts are left
    assert np.array_equal(result.members.statistics, whole.members.statistics)
    first, second = (read_safetensors(p, room.FORMAT)[0] for p in (whole.path, result.path))
    assert {k: a.tobytes() for k, a in first.items()} == {k: a.tobytes() for k, a in second.items()}


def test_a_damaged_part_is_measured_again(walks, tmp_path):
    walks["interrupt_at"] = 2
    out = tmp_path / "members.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run_to_end(out)
    part = min(tmp_path.iterdir())
    part.write_bytes(part.read_bytes()[:-20])
    walks |= {"walks": 0, "interrupt_at": None}
    run_to_end(out)
    assert walks["walks"] == 3


def test_what_kills_left_goes_at_the_end_and_nothing_else(walks, tmp_path):
    out = tmp_path / "members.safetensors"
    for left in (".members.safetensors.k1lled__", ".members.safetensors.part-0-0-0", "..members.safetensors.part-0-0-0.k1lled__"):
        (tmp_path / left).write_bytes(b"half a")
    of_others = {".my-members.safetensors.part-0-0-0", ".supernet.safetensors.k1lled__"}
    for name in of_others:
        (tmp_path / name).write_bytes(b"kept")
    run_to_end(out)
    assert {path.name for path in tmp_path.iterdir()} == {"members.safetensors", *of_others}


def test_parts_of_other_images_are_not_used(walks, tmp_path):
    walks["interrupt_at"] = 3
    out = tmp_path / "members.safetensors"
    with pytest.raises(KeyboardInterrupt):
        run_to_end(out, "other data")
    walks |= {"walks": 0, "interrupt_at": None}
    run_to_end(out)
    assert walks["walks"] == 4


def test_the_result_can_be_loaded_with_its_supernet(walks, tmp_path, four):
    _, result = run_to_end(tmp_path / "members.safetensors")
    found = load_members(result.path, four.weights.space, four.weights.digest)
    assert len(found.codes) == four.weights.space.size == 4
    assert found.card["data"] == "noise"
    assert found.card["calibration_images"] == 24


def test_members_of_a_named_supernet_are_written_beside_it(walks, tmp_path, monkeypatch):
    folder = tmp_path / "shipped" / "four"
    folder.mkdir(parents=True)
    (folder / "supernet.safetensors").touch()
    monkeypatch.setattr(job.zoo, "_shipped", lambda _: tmp_path / "shipped")
    monkeypatch.chdir(tmp_path)
    _, result = run_to_end(None)
    assert result.path == folder / "members.safetensors"


def test_a_large_space_is_not_measured_whole(monkeypatch):
    large = TrainedSupernet("large", Weights({}, get_space("ofa-mbv3-cifar"), PREPROCESSING), None)
    monkeypatch.setattr(job.zoo, "load_supernet", lambda _: large)
    with pytest.raises(UsageError, match="at most 5000 members"):
        next(job.measure_members("large", "digits"))


@pytest.mark.parametrize("data", [replace(data_of(), class_names=("a", "b")), "wide"], ids=["classes", "size"])
def test_data_of_another_kind_is_refused(walks, monkeypatch, data):
    if data == "wide":
        image_set = ImageSet(np.zeros((16, 9, 9, 3), dtype=np.uint8), np.zeros(16, dtype=np.int64))
        data = replace(data_of(), splits=dict.fromkeys(("calibration", "validation", "test"), image_set))
    monkeypatch.setattr(job, "load_data", lambda _: data)
    with pytest.raises(MismatchError, match="must have the 3 classes and the image size"):
        next(job.measure_members("four", "noise"))
