"""The supernet runs what it extracts, keeps no state, and its file says what it is."""

import json
import pickle

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from ofasearch.data import Preprocessing
from ofasearch.errors import FormatError, MismatchError, NotFoundError
from ofasearch.evaluate.score import recalibrate_bn
from ofasearch.space.core import LayerSpec
from ofasearch.space.families import get_space
from ofasearch.supernet.elastic import build_layer
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import FORMAT, Weights, load_weights, save_weights, slice_network

PREPROCESSING = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), size=32)
STEM = "stem.conv.weight"
MATRIX = "s1.b1.depth.7to5"


def trained(space, *, kernel_transform=True, channels_last=False):
    """A supernet in which nothing is as initialised: matrices are no identities, statistics no zeros and ones."""
    supernet = Supernet(space, kernel_transform=kernel_transform)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for tensor in supernet.full.parameters():
            tensor.add_(torch.randn(tensor.shape, generator=generator), alpha=0.05)
    recalibrate_bn(supernet.full, [images(16)])
    layout = torch.channels_last if channels_last else torch.contiguous_format
    return supernet.to(memory_format=layout).eval()


def some_codes(space):
    return [space.largest(), space.smallest(), *space.sample(4, np.random.default_rng(5))]


def images(n=3, *, channels_last=False):
    x = torch.randn(n, 3, 32, 32, generator=torch.Generator().manual_seed(2))
    return x.contiguous(memory_format=torch.channels_last) if channels_last else x


@pytest.fixture(scope="module")
def supernet():
    """Read only: tests that write make their own."""
    return trained(get_space("ofa-mbv3-cifar"))


@pytest.fixture(scope="module")
def arrays(supernet):
    return supernet.arrays()


# -- one forward -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
@pytest.mark.parametrize("channels_last", [False, True], ids=["default", "channels_last"])
@pytest.mark.parametrize(
    ("name", "kernel_transform"),
    [("ofa-mbv3-cifar", True), ("ofa-mbv3-cifar", False), ("compofa-mbv3-cifar", True), ("compofa-mbv3-cifar", False)],
)
def test_extracted_net_equals_supernet_slice(name, kernel_transform, channels_last, training):
    space = get_space(name)
    supernet = trained(space, kernel_transform=kernel_transform, channels_last=channels_last).train(training)
    x = images(channels_last=channels_last)
    with torch.no_grad():
        for codes in some_codes(space):
            logits = supernet(x, space.blueprint(codes))
            assert torch.equal(supernet.extract(codes)(x), logits)
            assert logits.std(0).mean() > 1e-5  # the images matter, so the equality means something


@pytest.mark.parametrize("skip", [True, False])
def test_a_block_computes_the_published_inverted_bottleneck(skip):
    spec = LayerSpec(slot="", kind="mbconv", c_in=8, c_mid=24, c_out=8, hw_in=6, c_se=8, kernel=5, act="h_swish", skip=skip, eps=1e-3)
    block = build_layer(spec).eval()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for tensor in block.state_dict().values():
            if tensor.ndim:
                tensor.copy_(torch.rand(tensor.shape, generator=generator) - 0.3 * (tensor.ndim > 1))
        x = torch.randn(2, 8, 6, 6, generator=generator)
        w = block.state_dict()

        def normalised(y, name):
            mean, var, gain, shift = (w[f"{name}.bn.{part}"][:, None, None] for part in ("running_mean", "running_var", "weight", "bias"))
            return (y - mean) / (var + 1e-3).sqrt() * gain + shift

        def h_sigmoid(y):
            return (y + 3).clamp(0, 6) / 6

        y = normalised(torch.einsum("oi,bihw->bohw", w["expand.conv.weight"][:, :, 0, 0], x), "expand")
        y = torch.nn.functional.conv2d(y * h_sigmoid(y), w["depth.conv.weight"], padding=2, groups=24)
        y = normalised(y, "depth")
        y = y * h_sigmoid(y)
        gate = (y.mean((2, 3)) @ w["se.reduce.weight"][:, :, 0, 0].T + w["se.reduce.bias"]).clamp(0)
        y = y * h_sigmoid(gate @ w["se.expand.weight"][:, :, 0, 0].T + w["se.expand.bias"])[:, :, None, None]
        y = normalised(torch.einsum("oi,bihw->bohw", w["project.conv.weight"][:, :, 0, 0], y), "project")
        assert torch.allclose(block(x), x + y if skip else y, rtol=1e-4, atol=1e-4)


def test_a_block_with_stride_halves_the_image():
    spec = LayerSpec(slot="", kind="mbconv", c_in=8, c_mid=16, c_out=12, hw_in=7, kernel=7, stride=2, act="relu")
    assert build_layer(spec)(torch.zeros(2, 8, 7, 7)).shape == (2, 12, spec.hw_out, spec.hw_out) == (2, 12, 4, 4)


def test_kernel_transforms_change_small_kernels_only():
    space = get_space("ofa-mbv3-cifar")
    with_matrices, plain = trained(space), trained(space, kernel_transform=False)
    with torch.no_grad():
        for key, tensor in plain.tensors().items():
            tensor.copy_(with_matrices.tensors()[key])
        x = images()
        for codes, same in ((space.largest(), True), (space.smallest(), False)):
            blueprint = space.blueprint(codes)
            assert torch.equal(with_matrices(x, blueprint), plain(x, blueprint)) is same


def test_a_small_kernel_is_the_transformed_centre_step_by_step(supernet, arrays):
    space = supernet.space
    block = next(layer for layer in space.blueprint(space.smallest()) if layer.slot == "s1.b1")
    found = slice_network(arrays, (block,))["s1.b1.depth.conv.weight"]
    filters = arrays["s1.b1.depth.conv.weight"]
    assert (block.kernel, filters.shape[-1]) == (3, 7)
    for channel in range(block.c_mid):
        five = (arrays["s1.b1.depth.7to5"] @ filters[channel, 0, 1:6, 1:6].ravel()).reshape(5, 5)
        three = (arrays["s1.b1.depth.5to3"] @ five[1:4, 1:4].ravel()).reshape(3, 3)
        assert np.allclose(found[channel, 0], three, atol=1e-5)


def test_extraction_shares_no_memory():
    space = get_space("ofa-mbv3-cifar")
    supernet, x = trained(space), images()
    for codes in some_codes(space):
        blueprint, network = space.blueprint(codes), supernet.extract(codes)
        with torch.no_grad():
            before = supernet(x, blueprint)
            for tensor in (*network.parameters(), *network.buffers()):
                tensor.zero_()
            assert torch.equal(supernet(x, blueprint), before)
    network = supernet.extract(space.smallest())
    with torch.no_grad():
        before = network(x)
        for tensor in supernet.tensors().values():
            tensor.zero_()
        assert torch.equal(network(x), before)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_networks_may_alternate_without_reset(training):
    space = get_space("ofa-mbv3-cifar")
    supernet, x = trained(space).train(training), images()
    big, small = space.blueprint(space.largest()), space.blueprint(space.smallest())
    with torch.no_grad():
        first, between, second, again = (supernet(x, blueprint) for blueprint in (big, small, big, small))
    assert torch.equal(first, second)
    assert torch.equal(between, again)
    assert not torch.equal(first, between)


def test_training_passes_leave_running_statistics_alone():
    space = get_space("ofa-mbv3-cifar")
    supernet = trained(space).train()
    before = {key: buffer.clone() for key, buffer in supernet.full.named_buffers()}
    for codes in some_codes(space):
        supernet(images(), space.blueprint(codes)).sum().backward()
    assert len(before) > 100
    assert all(torch.equal(buffer, before[key]) for key, buffer in supernet.full.named_buffers())


def test_training_mode_normalises_by_the_batch(supernet):
    blueprint = supernet.space.blueprint(supernet.space.smallest())
    with torch.no_grad():
        stored, batch = supernet.eval()(images(), blueprint), supernet.train()(images(), blueprint)
    supernet.eval()
    assert not torch.allclose(stored, batch)


def test_gradients_reach_the_slice_alone():
    space = get_space("ofa-mbv3-cifar")
    supernet = trained(space).train()
    supernet(images(), space.blueprint(space.smallest())).square().sum().backward()
    spec = next(layer for layer in space.blueprint(space.smallest()) if layer.slot == "s1.b1")
    gradient = supernet.full.get_parameter("s1.b1.expand.conv.weight").grad
    assert gradient[: spec.c_mid].abs().sum() > 0
    assert gradient[spec.c_mid :].abs().sum() == 0
    assert supernet.full.get_parameter(MATRIX).grad.abs().sum() > 0
    assert supernet.full.get_parameter("s1.b4.expand.conv.weight").grad is None


def test_layers_hand_on_channels_last_tensors():
    space = get_space("ofa-mbv3-cifar")
    supernet = trained(space, channels_last=True).train()
    x, tensors = images(channels_last=True), supernet.tensors()
    with torch.no_grad():
        for spec in space.blueprint(space.smallest()):
            x = supernet.run_layer(x, spec, tensors)
            if x.ndim == 4:
                assert x.is_contiguous(memory_format=torch.channels_last), spec
    assert x.shape == (3, 10)


# -- arrays ----------------------------------------------------------------------------------------------------


def test_numpy_and_torch_slices_are_equal(supernet, arrays):
    for codes in some_codes(supernet.space):
        blueprint = supernet.space.blueprint(codes)
        ours, theirs = slice_network(arrays, blueprint), slice_network(supernet.tensors(), blueprint)
        assert list(ours) == list(theirs)
        for key, array in ours.items():
            tensor = theirs[key].detach().numpy()
            if key.endswith("depth.conv.weight"):  # transformed kernels are sums, whose order may differ
                assert np.allclose(array, tensor, rtol=1e-5, atol=1e-6), key
            else:
                assert np.array_equal(array, tensor), key


def test_slices_take_the_first_channels_without_copying(supernet, arrays):
    blueprint = supernet.space.blueprint(supernet.space.smallest())
    found = slice_network(arrays, blueprint)["s2.b1.project.conv.weight"]
    full = arrays["s2.b1.project.conv.weight"]
    assert found.shape[1] < full.shape[1]
    assert np.array_equal(found, full[:, : found.shape[1]])
    assert np.shares_memory(found, full)


@pytest.mark.parametrize("kernel_transform", [True, False])
def test_arrays_round_trip(kernel_transform):
    space = get_space("ofa-mbv3-cifar")
    supernet = trained(space, kernel_transform=kernel_transform)
    again = Supernet.from_arrays(space, supernet.arrays())
    before, after = supernet.arrays(), again.arrays()
    assert before.keys() == after.keys()
    assert (MATRIX in after) is kernel_transform
    assert all(np.array_equal(before[key], after[key]) for key in before)
    with torch.no_grad():
        for codes in some_codes(space):
            blueprint = space.blueprint(codes)
            assert torch.equal(supernet(images(), blueprint), again(images(), blueprint))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({STEM: None}, r"weights must fit ofa-mbv3-cifar exactly, but these are missing \['stem.conv.weight'\]"),
        ({MATRIX: None}, r"missing \['s1.b1.depth.7to5'\]"),
        ({"foreign": np.zeros(3, np.float32)}, r"unknown \['foreign'\]"),
        ({STEM: np.zeros((8, 3, 3, 3), np.float32)}, "stem.conv.weight"),
    ],
    ids=["missing", "missing matrix", "unknown", "other shape"],
)
def test_arrays_of_another_network_are_refused(arrays, change, message):
    other = {key: array for key, array in {**arrays, **change}.items() if array is not None}
    with pytest.raises(MismatchError, match=message):
        Supernet.from_arrays(get_space("ofa-mbv3-cifar"), other)


def test_a_slot_that_is_missing_is_named(arrays):
    space = get_space("ofa-mbv3-cifar")
    rest = {key: array for key, array in arrays.items() if not key.startswith("s2.b3")}
    with pytest.raises(MismatchError, match=r"the supernet must hold 's2.b3.expand.conv.weight' for this subnet"):
        slice_network(rest, space.blueprint(space.largest()))


def test_a_supernet_too_small_for_a_subnet_is_named(arrays):
    space = get_space("ofa-mbv3-cifar")
    with pytest.raises(MismatchError, match=r"head.classifier.linear.weight must have at least \(100, .*\) channels for this subnet"):
        slice_network(arrays, get_space("ofa-mbv3-cifar", classes=100).blueprint(space.largest()))
    compound = trained(get_space("compofa-mbv3-cifar")).arrays()
    with pytest.raises(MismatchError, match=r"s1.b1 must hold kernels of at least 7, but its largest is 3"):
        slice_network(compound, space.blueprint(space.largest()))


# -- the file --------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def stored(arrays, tmp_path_factory):
    space = get_space("ofa-mbv3-cifar").with_resolutions([32, 40])
    weights = Weights(arrays, space, PREPROCESSING, tuple("abcdefghij"), {"seed": 3}, "shapes")
    path = tmp_path_factory.mktemp("supernets") / "shapes.safetensors"
    save_weights(path, weights)
    return path, weights


def test_the_file_round_trips(stored):
    path, weights = stored
    again = load_weights(path)
    assert again.digest == weights.digest
    assert (again.space.name, again.space.classes, again.space.resolutions) == ("ofa-mbv3-cifar", 10, (32, 40))
    assert (again.preprocessing, again.class_names, again.training, again.name) == (
        PREPROCESSING,
        tuple("abcdefghij"),
        {"seed": 3},
        "shapes",
    )
    assert again.arrays.keys() == weights.arrays.keys()
    assert all(np.array_equal(again.arrays[key], weights.arrays[key]) for key in weights.arrays)


def test_the_digest_sees_every_bit(stored):
    _, weights = stored
    nudged = {**weights.arrays, STEM: np.nextafter(weights.arrays[STEM], np.float32(9))}
    reordered = dict(reversed(weights.arrays.items()))
    assert Weights(nudged, weights.space, PREPROCESSING).digest != weights.digest
    assert Weights(reordered, weights.space, PREPROCESSING).digest == weights.digest


def card(**changes):
    """The card of a good file; None removes a field."""
    fields = {
        "format": FORMAT,
        "space": "ofa-mbv3-cifar",
        "classes": 10,
        "resolutions": [32],
        "preprocessing": PREPROCESSING.to_json(),
        "class_names": list("abcdefghij"),
        "training": {},
    }
    return json.dumps({key: value for key, value in {**fields, **changes}.items() if value is not None})


def float8_file(_):
    from safetensors.torch import save as save_torch

    return save_torch({"a": torch.ones(2).to(torch.float8_e4m3fn)}, metadata={"ofasearch": "{}"})


@pytest.mark.parametrize(
    "spoil",
    [
        lambda good: b"",
        lambda good: good[:5000],
        lambda good: good[:-100],
        lambda good: b"\xff" * 8 + good[8:],
        lambda good: pickle.dumps({"a": 1}),
        lambda good: save({"a": np.ones(3, np.float32)}),
        lambda good: save({"a": np.ones(3, np.float32)}, metadata={"ofasearch": "{"}),
        lambda good: save({"a": np.ones(3, np.float32)}, metadata={"ofasearch": "[]"}),
        lambda good: save({"a": np.ones(3, np.float32)}, metadata={"ofasearch": card(format="ofasearch-predictor-1")}),
        lambda good: save({"a": np.ones(3, np.float32)}, metadata={"ofasearch": "[" * 100_000}),
        float8_file,
    ],
    ids=[
        "empty",
        "header cut",
        "tensors cut",
        "wild length",
        "pickle",
        "foreign",
        "bad json",
        "no card",
        "predictor",
        "deep json",
        "float8",
    ],
)
def test_a_damaged_or_foreign_file_is_refused(stored, tmp_path, spoil):
    path = tmp_path / "x.safetensors"
    path.write_bytes(spoil(stored[0].read_bytes()))
    with pytest.raises(FormatError, match=r"x.safetensors must be"):
        load_weights(path)


@pytest.mark.parametrize("field", ["space", "classes", "resolutions", "class_names", "preprocessing"])
def test_a_card_without_a_field_is_refused(arrays, tmp_path, field):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(arrays, metadata={"ofasearch": card(**{field: None})}))
    with pytest.raises(FormatError, match="must"):
        load_weights(path)


@pytest.mark.parametrize(
    "changes",
    [
        {"classes": "many"},
        {"resolutions": []},
        {"space": ["ofa"]},
        {"class_names": 3},
        {"class_names": ["cat"]},
        {"preprocessing": {"mean": [0.5], "std": [0.2], "size": 32}},
        {"training": 3},
    ],
    ids=str,
)
def test_a_card_with_a_wrong_field_is_refused(arrays, tmp_path, changes):
    path = tmp_path / "x.safetensors"
    path.write_bytes(save(arrays, metadata={"ofasearch": card(**changes)}))
    with pytest.raises(FormatError, match="must"):
        load_weights(path)


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({STEM: None}, MismatchError, "the supernet must hold 'stem.conv.weight'"),
        ({STEM: np.ones((8, 3, 3, 3), np.float32)}, MismatchError, r"stem.conv.weight must have at least \(16, 3\) channels"),
        ({STEM: np.ones(16, np.float32)}, MismatchError, "stem.conv.weight"),
        ({STEM: np.ones((16, 3, 5, 5), np.float32)}, MismatchError, "stem.conv.weight"),
        ({STEM: np.full((16, 3, 3, 3), np.nan, np.float32)}, FormatError, "must hold finite weights, but 'stem.conv.weight' has NaN"),
        (
            {MATRIX: np.full((25, 25), np.nan, np.float32)},
            FormatError,
            "must hold finite weights, but 's1.b1.depth.7to5'",
        ),
        ({MATRIX: np.ones((9, 9), np.float32)}, MismatchError, "s1.b1.depth.7to5"),
    ],
    ids=["missing", "narrow", "flat", "wide", "nan", "nan matrix", "small matrix"],
)
def test_every_array_is_checked_against_the_space(arrays, tmp_path, change, error, message):
    path = tmp_path / "x.safetensors"
    kept = {key: array for key, array in {**arrays, **change}.items() if array is not None}
    path.write_bytes(save(kept, metadata={"ofasearch": card()}))
    with pytest.raises(error, match=message):
        load_weights(path)


def test_a_missing_file_or_space_is_named(arrays, tmp_path):
    with pytest.raises(NotFoundError, match=r"nowhere.safetensors must be an existing file"):
        load_weights(tmp_path / "nowhere.safetensors")
    (tmp_path / "x.safetensors").write_bytes(save(arrays, metadata={"ofasearch": card(space="ofa-mbv4")}))
    with pytest.raises(NotFoundError, match=r"space must be one of .* but got 'ofa-mbv4'"):
        load_weights(tmp_path / "x.safetensors")
