"""ONNX files: equal to the torch network and to torch's own exporter, layer by layer too, and proved before they count."""

import warnings

import numpy as np
import pytest
import torch
from torch import nn

from ofasearch.deploy.export import build_onnx, fold_norm, layer_key, random_weights, verify
from ofasearch.errors import ArchError, VerificationError
from ofasearch.evaluate.score import recalibrate_bn
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.space.core import LayerSpec
from ofasearch.space.families import get_space
from ofasearch.supernet.elastic import Network, build_layer, norms
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import slice_network

CIFAR = get_space("ofa-mbv3-cifar")
MOBILE = get_space("compofa-mbv3-w1.0").with_resolutions([64])
ODD = get_space("compofa-mbv3-w1.2").with_resolutions([36])  # halves to odd sizes on its way down
SMALL = get_space("compofa-mbv3-cifar")


def images(n, size, seed=2):
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(seed))


def network_of(blueprint):
    """A network whose weights, scales and statistics are all its own: calibrated, then moved a little at random."""
    network, generator = Network(blueprint), torch.Generator().manual_seed(1)

    def noise(like, scale):
        return torch.randn(like.shape, generator=generator) * scale

    with torch.no_grad():
        for norm in norms(network).values():
            norm.weight += noise(norm.weight, 0.2)
            norm.bias += noise(norm.bias, 0.2)
        recalibrate_bn(network, [images(16, blueprint[0].hw_in)])
        for norm in norms(network).values():
            norm.running_mean += norm.running_var.sqrt() * noise(norm.running_mean, 0.1)
            norm.running_var *= torch.exp(noise(norm.running_var, 0.2))
    return network.eval()


def arrays_of(network):
    return {key: t.numpy() for key, t in network.state_dict().items() if not key.endswith("num_batches_tracked")}


def logits(module, x):
    with torch.no_grad():
        return module(x).numpy()


@pytest.fixture(scope="module")
def small():
    """One network of the shipped space with its ONNX file's parts; read only."""
    blueprint = SMALL.blueprint(SMALL.smallest())
    return network_of(blueprint), blueprint


# -- whole networks --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("space", [CIFAR, MOBILE, ODD], ids=lambda s: f"{s.name}-{s.resolutions[0]}")
def test_onnx_equals_torch(space):
    for codes in space.sample(2, np.random.default_rng(3)):
        blueprint = space.blueprint(codes)
        network, x = network_of(blueprint), images(4, blueprint[0].hw_in)
        found, expected = OnnxModel(build_onnx(blueprint, arrays_of(network)))(x.numpy()), logits(network, x)
        assert found.shape == (4, space.classes)
        assert np.abs(found - expected).max() < 1e-4
        assert expected.std() > 0.01  # the comparison is between numbers that say something


@pytest.mark.slow
@pytest.mark.parametrize("space", [CIFAR, MOBILE], ids=lambda s: s.name)
def test_onnx_equals_torchs_own_exporter(space):
    blueprint = space.blueprint(space.sample(1, np.random.default_rng(4))[0])
    network, x = network_of(blueprint), images(4, blueprint[0].hw_in)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's own, of its own dependencies
        program = torch.onnx.export(network, (x,), dynamo=True, verbose=False)
    theirs = OnnxModel(program.model_proto.SerializeToString())(x.numpy())
    assert np.abs(OnnxModel(build_onnx(blueprint, arrays_of(network)))(x.numpy()) - theirs).max() < 1e-4


def test_a_free_batch_takes_any_number_of_images(small):
    network, blueprint = small
    model, x = OnnxModel(build_onnx(blueprint, arrays_of(network))), images(5, 32)
    assert model.inputs[0].shape[1:] == [3, 32, 32]
    assert model.input_shape(7) == (7, 3, 32, 32)
    together = model(x.numpy())
    one_by_one = np.concatenate([model(x[i : i + 1].numpy()) for i in range(5)])
    assert np.abs(together - one_by_one).max() < 1e-5


def test_a_fixed_batch_is_kept(small):
    network, blueprint = small
    model, x = OnnxModel(build_onnx(blueprint, arrays_of(network), batch=2)), images(2, 32)
    assert model.input_shape(7) == (2, 3, 32, 32)
    assert np.abs(model(x.numpy()) - logits(network, x)).max() < 1e-4


def test_metadata_is_kept(small):
    network, blueprint = small
    told = {"arch": '{"r": 32}', "classes": "10", "note": "Grüße"}
    assert OnnxModel(build_onnx(blueprint, arrays_of(network), metadata=told)).metadata == told
    assert OnnxModel(build_onnx(blueprint, arrays_of(network))).metadata == {}


def test_the_same_network_gives_the_same_bytes(small):
    network, blueprint = small
    assert build_onnx(blueprint, arrays_of(network)) == build_onnx(blueprint, arrays_of(network))


# -- single layers ---------------------------------------------------------------------------------------------


def torch_layer(spec, weights):
    layer, prefix = build_layer(spec), layer_key(spec, 0) + "."
    layer.load_state_dict({k.removeprefix(prefix): torch.from_numpy(a) for k, a in weights.items()}, strict=False)
    return layer.eval()


def compare_layer(spec):
    weights = random_weights((spec,), np.random.default_rng(0))
    x = np.random.default_rng(1).normal(size=(2, spec.c_in, spec.hw_in, spec.hw_in)).astype(np.float32)
    found = OnnxModel(build_onnx((spec,), weights))(x)
    expected = logits(torch_layer(spec, weights), torch.from_numpy(x))
    assert found.shape == expected.shape
    assert np.abs(found - expected).max() < 1e-4
    return found


def test_every_layer_of_a_space_runs_alone():
    specs = SMALL.layers()
    for spec in specs:
        found = compare_layer(spec)
        assert found.shape == ((2, spec.c_out) if spec.kind == "linear" else (2, spec.c_out, spec.hw_out, spec.hw_out))
    assert {spec.kind for spec in specs} == {"conv", "mbconv", "pool", "linear"}


@pytest.mark.parametrize("act", ["none", "relu", "relu6", "h_swish"])
def test_every_activation_is_exported(act):
    found = compare_layer(LayerSpec(slot="", kind="conv", c_in=16, c_mid=0, c_out=64, hw_in=8, kernel=3, act=act, eps=1e-3))
    if act == "relu6":
        assert found.min() == 0
    wide = LayerSpec(slot="a", kind="mbconv", c_in=4, c_mid=12, c_out=4, hw_in=7, c_se=8, kernel=5, act=act, skip=True, eps=1e-3)
    compare_layer(wide)


def test_relu6_stops_at_six():
    spec = LayerSpec(slot="", kind="conv", c_in=1, c_mid=0, c_out=1, hw_in=2, act="relu6", norm=False)
    model = OnnxModel(build_onnx((spec,), {"layer0.conv.weight": np.ones((1, 1, 1, 1), dtype=np.float32)}))
    x = np.array([-1, 3, 6, 100], dtype=np.float32).reshape(1, 1, 2, 2)
    assert model(x).ravel().tolist() == [0, 3, 6, 6]


def test_a_kind_without_nodes_is_refused():
    spec = LayerSpec(slot="", kind="attention", c_in=1, c_mid=1, c_out=1, hw_in=2)
    with pytest.raises(ArchError, match=r"must be one of conv, .*, but got 'attention'"):
        build_onnx((spec,), {})


# -- parts -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("eps", [1e-5, 1e-3])
@pytest.mark.parametrize("groups", [1, 6])
def test_folded_convolution_equals_convolution_and_batch_norm(eps, groups):
    generator = torch.Generator().manual_seed(0)
    conv = nn.Conv2d(6, 6, 3, groups=groups, bias=False)
    gamma, beta, mean = torch.randn(3, 6, generator=generator)
    var = torch.rand(6, generator=generator) * 0.01  # small, so that a wrong eps shows
    x = torch.randn(2, 6, 9, 9, generator=generator)
    weight, bias = fold_norm(*(t.detach().numpy() for t in (conv.weight, gamma, beta, mean, var)), eps)
    found = nn.functional.conv2d(x, torch.from_numpy(weight), torch.from_numpy(bias), groups=groups)
    assert weight.dtype == bias.dtype == np.float32
    assert torch.allclose(found, nn.functional.batch_norm(conv(x), mean, var, gamma, beta, eps=eps), rtol=1e-4, atol=1e-4)


def test_random_weights_are_named_and_shaped_as_a_sliced_network():
    arrays = Supernet(CIFAR).arrays()
    for codes in [CIFAR.largest(), *CIFAR.sample(4, np.random.default_rng(5))]:
        blueprint = CIFAR.blueprint(codes)
        found, expected = random_weights(blueprint, np.random.default_rng(0)), slice_network(arrays, blueprint)
        assert {k: (a.shape, a.dtype) for k, a in found.items()} == {k: (a.shape, a.dtype) for k, a in expected.items()}


def test_random_weights_let_a_network_run_on_finite_numbers():
    blueprint = SMALL.blueprint(SMALL.largest())
    found = OnnxModel(build_onnx(blueprint, random_weights(blueprint, np.random.default_rng(0))))(images(2, 32).numpy())
    assert np.isfinite(found).all()


# -- the proof -------------------------------------------------------------------------------------------------

INPUTS = np.zeros((3, 2), dtype=np.float32)


def test_the_proof_gives_the_largest_difference():
    off = np.array([[0, 5e-5], [0, 0], [-8e-5, 0]], dtype=np.float32)
    assert verify(lambda x: x + off, lambda x: x, INPUTS) == pytest.approx(8e-5)


@pytest.mark.parametrize("wrong", [2e-4, -2e-4, np.nan, np.inf])
def test_an_export_that_differs_is_refused(wrong):
    off = np.array([[0, 0], [0, 0], [0, wrong]], dtype=np.float32)
    with pytest.raises(VerificationError, match=r"within 0\.0001, but they differ by"):
        verify(lambda x: x + off, lambda x: x, INPUTS)


def test_an_export_with_wrong_statistics_is_refused(small):
    network, blueprint = small
    arrays = arrays_of(network)
    arrays |= {"stem.bn.running_mean": arrays["stem.bn.running_mean"] + np.float32(0.1)}
    with pytest.raises(VerificationError, match="must give the network's logits"):
        verify(OnnxModel(build_onnx(blueprint, arrays)), lambda x: logits(network, torch.from_numpy(x)), images(4, 32).numpy())
