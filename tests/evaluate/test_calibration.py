"""Samples of calibration images: statistics as batch norm would have them, and what suffices by counting."""

import numpy as np
import pytest
import torch
from scipy.stats import t

from ofasearch.data import ImageSet, Preprocessing
from ofasearch.evaluate import calibration
from ofasearch.evaluate.calibration import Loss, calibrated_on, enough, losses, sample_sizes
from ofasearch.evaluate.score import batches, recalibrate_bn
from ofasearch.supernet.elastic import norms
from ofasearch.supernet.supernet import Supernet

PREPROCESSING = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), size=8)


@pytest.fixture
def network(tiny_space):
    return Supernet(tiny_space, generator=torch.Generator().manual_seed(1)).extract(tiny_space.largest())


@pytest.fixture
def images():
    rng = np.random.default_rng(0)
    return ImageSet(rng.integers(0, 256, (70, 8, 8, 3)).astype(np.uint8), np.zeros(70, dtype=np.int64))


def statistics(network):
    return {name: torch.stack([norm.running_mean, norm.running_var]) for name, norm in norms(network).items()}


@pytest.mark.parametrize(
    ("most", "sizes"),
    [(16, (16,)), (17, (16, 17)), (32, (16, 32)), (58, (16, 32, 58)), (2000, (16, 32, 64, 128, 256, 512, 1024, 2000)), (8, (8,))],
)
def test_sizes_double_up_to_all(most, sizes):
    assert sample_sizes(most) == sizes


def test_every_sample_is_calibrated_as_if_alone(network, images, monkeypatch):
    monkeypatch.setattr(calibration, "CALIBRATION_BATCH", 20)
    sizes = (7, 20, 33, 40, 70)
    before = statistics(network)
    found = calibrated_on(network, images, sizes, PREPROCESSING, resolution=8)
    assert all(torch.equal(before[name], value) for name, value in statistics(network).items())  # the given one stays
    for size, sample in zip(sizes, found, strict=True):
        recalibrate_bn(network, batches(images.take(np.arange(size)), PREPROCESSING, resolution=8, size=20))
        for name, expected in statistics(network).items():
            assert torch.allclose(statistics(sample)[name], expected, rtol=1e-6, atol=1e-6)
    assert len({float(statistics(sample)["stem.bn"][0, 0]) for sample in found}) == len(sizes)


def test_what_samples_share_is_run_once(network, images, monkeypatch):
    seen = []
    monkeypatch.setattr(calibration, "CALIBRATION_BATCH", 20)
    monkeypatch.setattr(calibration, "recalibrate_bn", lambda network, inputs: seen.extend(len(x) for x in inputs))
    calibrated_on(network, images, (7, 20, 33, 40, 70), PREPROCESSING, resolution=8)
    assert sorted(seen) == [7, 10, 13, 20, 20, 20]


def test_losses_are_those_of_each_draw_against_its_own_whole():
    top1 = np.array([[0.5, 0.9, 0.8], [0.6, 0.7, 0.8], [0.7, 0.5, 0.6]])
    found = losses(top1)
    below = [[0.3, 0.2, -0.1], [-0.1, 0.1, 0.1]]
    for loss, values in zip(found[:2], below, strict=True):
        assert loss.mean == pytest.approx(np.mean(values))
        assert loss.deviation == pytest.approx(np.std(values, ddof=1))
        assert loss.bound == pytest.approx(np.mean(values) + t.ppf(0.95, 2) * np.std(values, ddof=1) / 3**0.5)
    assert found[2] == Loss(mean=0.0, deviation=0.0, bound=0.0)


def test_one_draw_says_nothing_of_the_spread():
    assert losses(np.array([[0.5, 0.75]])) == (Loss(mean=0.25, deviation=0.0, bound=0.25), Loss(mean=0.0, deviation=0.0, bound=0.0))


@pytest.mark.parametrize(
    ("bounds", "tolerance", "size"),
    [
        ((0.3, 0.2, 0.1, 0.0), 0.1, 3),
        ((0.3, 0.2, 0.1, 0.0), 0.05, 4),
        ((0.3, 0.05, 0.2, 0.0), 0.1, 4),  # a lucky size does not count
        ((0.0, -0.1, 0.0, 0.0), 0.1, 1),
    ],
)
def test_enough_is_the_first_size_from_which_on_none_loses_more(bounds, tolerance, size):
    found = [Loss(mean=0.0, deviation=0.0, bound=bound) for bound in bounds]
    assert enough((1, 2, 3, 4), found, tolerance) == size
