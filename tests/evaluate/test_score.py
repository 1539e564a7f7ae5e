"""Batch-norm recalibration against sums by hand, and identities that accuracies and negative flips must meet."""

import numpy as np
import pytest
import torch
from torch import nn

from ofasearch.data import ImageSet, Preprocessing
from ofasearch.errors import OfaSearchError
from ofasearch.evaluate.score import batches, predictions, recalibrate_bn, top1
from ofasearch.supernet.elastic import norms
from ofasearch.supernet.supernet import Supernet

PREPROCESSING = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), size=8)


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    return [3 * torch.randn(n, 3, 8, 8, generator=generator) + 1 for n in (5, 2, 9)]


@pytest.fixture
def network(tiny_space):
    return Supernet(tiny_space).extract(tiny_space.smallest())


def statistics(network):
    return {
        f"{name}.{part}": getattr(norm, part).clone() for name, norm in norms(network).items() for part in ("running_mean", "running_var")
    }


def moments(x):
    """Mean and biased variance of each channel of x (B, C, H, H), as float64."""
    return x.mean((0, 2, 3)), ((x - x.mean((0, 2, 3), keepdims=True)) ** 2).mean((0, 2, 3))


def test_statistics_equal_those_computed_by_hand(inputs):
    torch.manual_seed(1)
    network = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2))
    nn.init.normal_(network[1].weight)
    nn.init.normal_(network[1].bias)
    w1, b1, w2, b2 = (p.detach().double().numpy() for p in (*network[0].parameters(), *network[3].parameters()))
    gain, shift = (p.detach().double().numpy()[:, None, None] for p in network[1].parameters())

    first, second, outputs = [], [], []
    for batch in inputs:
        y = np.einsum("oi,bihw->bohw", w1[:, :, 0, 0], batch.double().numpy()) + b1[:, None, None]
        mean, variance = moments(y)
        first.append((mean, variance))
        y = np.maximum((y - mean[:, None, None]) / np.sqrt(variance[:, None, None] + 1e-5) * gain + shift, 0)
        y = np.einsum("oi,bihw->bohw", w2[:, :, 0, 0], y) + b2[:, None, None]
        mean, variance = moments(y)
        second.append((mean, variance))
        outputs.append((y - mean[:, None, None]) / np.sqrt(variance[:, None, None] + 1e-5))

    found = recalibrate_bn(network, inputs)
    sizes = [len(batch) for batch in inputs]
    for norm, expected in ((network[1], first), (network[4], second)):
        mean, variance = (np.average([e[i] for e in expected], axis=0, weights=sizes) for i in (0, 1))
        assert np.allclose(norm.running_mean.numpy(), mean, rtol=1e-5, atol=1e-6)
        assert np.allclose(norm.running_var.numpy(), variance, rtol=1e-5)
    assert all(np.allclose(ours.numpy(), theirs, atol=1e-4) for ours, theirs in zip(found, outputs, strict=True))


def test_layer_by_layer_equals_whole_net(network, inputs):
    recalibrate_bn(network, inputs)
    whole = statistics(network)
    for norm in norms(network).values():
        norm.reset_running_stats()
    x = inputs
    for _, layer in network.layers():
        x = recalibrate_bn(layer, x)
    found = statistics(network)
    assert len(found) > 10
    assert all(torch.equal(found[key], whole[key]) for key in whole)
    assert [y.shape for y in x] == [(5, 3), (2, 3), (9, 3)]


def test_former_statistics_do_not_matter(network, inputs):
    recalibrate_bn(network, inputs)
    first = statistics(network)
    recalibrate_bn(network, [10 * x - 3 for x in inputs])
    assert not torch.equal(statistics(network)["stem.bn.running_mean"], first["stem.bn.running_mean"])
    recalibrate_bn(network, inputs)
    second = statistics(network)
    assert all(torch.equal(first[key], second[key]) for key in first)


def test_a_recalibrated_network_is_ready_to_score(network, inputs):
    network.train()
    momenta = {name: norm.momentum for name, norm in norms(network).items()}
    recalibrate_bn(network, inputs)
    assert not any(module.training for module in network.modules())
    assert {name: norm.momentum for name, norm in norms(network).items()} == momenta
    before = statistics(network)
    network(inputs[0])
    assert all(torch.equal(before[key], value) for key, value in statistics(network).items())


def test_weights_are_left_alone(network, inputs):
    before = {name: p.detach().clone() for name, p in network.named_parameters()}
    recalibrate_bn(network, inputs)
    assert all(torch.equal(before[name], p) for name, p in network.named_parameters())


def test_a_pass_that_fails_leaves_the_network_usable(network, inputs):
    before = statistics(network)
    momenta = {name: norm.momentum for name, norm in norms(network).items()}
    with pytest.raises(RuntimeError, match="channels"):
        recalibrate_bn(network, [inputs[0], torch.zeros(2, 4, 8, 8)])
    assert all(torch.equal(before[key], value) for key, value in statistics(network).items())
    assert {name: norm.momentum for name, norm in norms(network).items()} == momenta
    assert not any(module._forward_pre_hooks for module in network.modules())


def test_no_images_calibrate_nothing(network):
    before = statistics(network)
    with pytest.raises(OfaSearchError, match="must"):
        recalibrate_bn(network, [])
    assert all(torch.equal(before[key], value) for key, value in statistics(network).items())


def images_of(n):
    return ImageSet(np.random.default_rng(2).integers(0, 256, (n, 8, 8, 3)).astype(np.uint8), np.zeros(n, dtype=np.int64))


def test_predictions_do_not_depend_on_the_batch(network, inputs):
    recalibrate_bn(network, inputs)
    images = images_of(503)
    with torch.no_grad():
        logits = network(torch.from_numpy(PREPROCESSING.apply(images.images)))
    assert [len(b) for b in batches(images, PREPROCESSING, resolution=8)] == [500, 3]
    best = logits.topk(2, dim=1).values
    clear = (best[:, 0] - best[:, 1] > 1e-4).numpy()  # a tie may fall either way
    assert clear.mean() > 0.9
    assert (predictions(network.train(), images, PREPROCESSING, resolution=8) == logits.argmax(1).numpy())[clear].all()


def test_inputs_are_normalised_as_the_preprocessing_says():
    images = images_of(2)
    (found,) = batches(images, PREPROCESSING, resolution=8)
    for c in range(3):
        expected = (images.images[..., c] / 255 - PREPROCESSING.mean[c]) / PREPROCESSING.std[c]
        assert np.allclose(found[:, c].numpy(), expected, atol=1e-5)


# -- rates -----------------------------------------------------------------------------------------------------


def test_top1_counts_images():
    assert top1(np.array([0, 1, 2, 0, 0]), np.array([0, 1, 2, 3, 4])) == 3 / 5
