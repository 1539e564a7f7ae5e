"""How training images are varied: equal to Pillow operation by operation, drawn as the papers say, in the bounds they name."""

import dataclasses

import numpy as np
import pytest
import torch
from PIL import Image, ImageEnhance, ImageOps

from ofasearch.data import IMAGENET
from ofasearch.errors import UsageError
from ofasearch.train.augment import (
    FILL,
    MAGNITUDES,
    OPERATIONS,
    POLICIES,
    SIGNED,
    Augmentation,
    auto_augment,
    colour_jitter,
    crop_and_flip,
    erase,
    inputs,
    normalise,
)

GREY = (FILL,) * 3


def rng_of(seed=0):
    return np.random.default_rng(seed)


def pictures(count, height=31, width=44, seed=0):
    """Smooth colours with noise, of different ranges: something for every operation to do."""
    rng = rng_of(seed)
    y, x = np.mgrid[:height, :width]
    waves = np.sin(
        y[None, ..., None] * rng.uniform(0.05, 0.4, (count, 1, 1, 3)) + x[None, ..., None] * rng.uniform(0.05, 0.4, (count, 1, 1, 3))
    )
    middle, swing = rng.uniform(60, 190, (count, 1, 1, 3)), rng.uniform(5, 90, (count, 1, 1, 3))
    noisy = middle + swing * waves + rng.normal(0, 6, (count, height, width, 3))
    return torch.from_numpy(noisy.clip(0, 255).astype(np.uint8))


# What Pillow makes of one image; written from the definitions in the paper, not from the code under test.
def affine(picture, matrix):
    return picture.transform(picture.size, Image.Transform.AFFINE, matrix, Image.Resampling.NEAREST, fillcolor=GREY)


PILLOW = {
    "ShearX": lambda p, m: affine(p, (1, m, 0, 0, 1, 0)),
    "ShearY": lambda p, m: affine(p, (1, 0, 0, m, 1, 0)),
    "TranslateX": lambda p, m: affine(p, (1, 0, -int(m * p.width), 0, 1, 0)),
    "TranslateY": lambda p, m: affine(p, (1, 0, 0, 0, 1, -int(m * p.height))),
    "Rotate": lambda p, m: p.rotate(m, Image.Resampling.NEAREST, fillcolor=GREY),
    "Brightness": lambda p, m: ImageEnhance.Brightness(p).enhance(1 + m),
    "Color": lambda p, m: ImageEnhance.Color(p).enhance(1 + m),
    "Contrast": lambda p, m: ImageEnhance.Contrast(p).enhance(1 + m),
    "Sharpness": lambda p, m: ImageEnhance.Sharpness(p).enhance(1 + m),
    "Posterize": lambda p, m: ImageOps.posterize(p, int(m)),
    "Solarize": ImageOps.solarize,
    "AutoContrast": lambda p, m: ImageOps.autocontrast(p),
    "Equalize": lambda p, m: ImageOps.equalize(p),
    "Invert": lambda p, m: ImageOps.invert(p),
}


def by_pillow(image, name, magnitude):
    return np.asarray(PILLOW[name](Image.fromarray(np.asarray(image)), magnitude))


def magnitudes_of(name):
    levels = MAGNITUDES.get(name, np.zeros(1))
    return np.concatenate([-levels, levels]) if name in SIGNED else levels


# -- operations --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(32, 32), (31, 44), (2, 5)])
@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_equals_pillows_at_every_magnitude(name, shape):
    # To the grey level, borders included: geometry in the same fixed point, tables and blends in the same precision.
    magnitudes = magnitudes_of(name)
    images = pictures(len(magnitudes), *shape)
    found = OPERATIONS[name](images, magnitudes).numpy()
    expected = np.stack([by_pillow(image, name, m) for image, m in zip(images, magnitudes, strict=True)])
    assert found.dtype == np.uint8
    np.testing.assert_array_equal(found, expected)


@pytest.mark.parametrize("name", OPERATIONS)
def test_an_operation_leaves_its_input_alone_and_treats_each_image_alone(name):
    images, magnitudes = pictures(6, 16, 16), np.resize(magnitudes_of(name)[::-1], 6)
    before = images.clone()
    together = OPERATIONS[name](images, magnitudes)
    alone = [OPERATIONS[name](images[i : i + 1], magnitudes[i : i + 1]) for i in range(6)]
    assert torch.equal(images, before)
    assert torch.equal(together, torch.cat(alone))


@pytest.mark.parametrize("name", ["AutoContrast", "Equalize"])
def test_a_constant_channel_stays_and_the_others_are_stretched(name):
    images = pictures(2, 32, 32)
    images[0, ..., 1] = 77
    images[1] = 200
    found = OPERATIONS[name](images, np.zeros(2))
    assert torch.equal(found[0, ..., 1], images[0, ..., 1])
    assert torch.equal(found[1], images[1])
    assert found[0, ..., 0].max() > 250 > images[0, ..., 0].max()


@pytest.mark.parametrize("name", sorted(SIGNED - {"Brightness", "Color", "Contrast", "Sharpness"}))
def test_geometry_moves_in_middle_grey(name):
    images = torch.full((2, 32, 32, 3), 255, dtype=torch.uint8)
    levels = OPERATIONS[name](images, np.array([MAGNITUDES[name][9], 0.0])).unique()
    assert levels.tolist() == [128, 255]


def test_a_photographs_size_is_equal_to_pillow_too():
    images = pictures(1, 224, 224)
    for name in ("Rotate", "ShearX", "Equalize", "Sharpness", "Contrast"):
        magnitude = magnitudes_of(name)[-2:][:1]
        np.testing.assert_array_equal(OPERATIONS[name](images, magnitude)[0].numpy(), by_pillow(images[0], name, float(magnitude[0])))


# -- AutoAugment ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("policy", POLICIES)
def test_a_policy_has_25_sub_policies_of_two_known_operations(policy):
    assert len(POLICIES[policy]) == 25
    for pair in POLICIES[policy]:
        assert len(pair) == 2
        for name, probability, level in pair:
            assert name in OPERATIONS
            assert 0 <= probability <= 1
            assert (level is not None and 0 <= level <= 9) if name in MAGNITUDES else level is None


@pytest.mark.parametrize(("policy", "mass", "levels"), [("cifar10", 26.5, 187), ("imagenet", 31.0, 159)])
def test_the_probabilities_and_bins_of_a_policy_sum_up_to_the_published_ones(policy, mass, levels):
    steps = [step for pair in POLICIES[policy] for step in pair]
    assert sum(p for _, p, _ in steps) == pytest.approx(mass)
    assert sum(level or 0 for _, _, level in steps) == levels


def test_magnitudes_span_the_papers_ranges():
    spans = {name: (values[0], values[9]) for name, values in MAGNITUDES.items()}
    assert spans.pop("Posterize") == (8, 4)
    assert spans.pop("Solarize") == (255, 0)
    assert spans.pop("Rotate") == (0, 30)
    for name, (low, high) in spans.items():
        assert low == 0
        assert high == pytest.approx({"S": 0.3, "T": 150 / 331}.get(name[0], 0.9) if name != "Sharpness" else 0.9)
    assert MAGNITUDES["Posterize"].tolist() == [8, 8, 7, 7, 6, 6, 5, 5, 4, 4]


@pytest.mark.parametrize("policy", POLICIES)
def test_each_image_goes_through_the_sub_policy_it_drew(policy):
    images, rng = pictures(150, 20, 24), rng_of(3)
    drawn, chance, sign = rng.integers(0, 25, 150), rng.random((150, 2)), rng.choice((-1.0, 1.0), (150, 2))
    found = auto_augment(images, policy, rng_of(3)).numpy()
    for i, image in enumerate(images.numpy()):
        for place, (name, probability, level) in enumerate(POLICIES[policy][drawn[i]]):
            if chance[i, place] < probability:
                magnitude = 0.0 if level is None else MAGNITUDES[name][level]
                image = by_pillow(image, name, magnitude * (sign[i, place] if name in SIGNED else 1))  # noqa: PLW2901
        np.testing.assert_array_equal(found[i], image)


def test_operations_come_as_often_as_the_policy_says(monkeypatch):
    seen = dict.fromkeys(OPERATIONS, 0)
    negative = dict.fromkeys(OPERATIONS, 0)

    def counted(name):
        def operation(images, magnitude):
            seen[name] += len(images)
            negative[name] += int((magnitude < 0).sum())
            return images

        return operation

    for name in OPERATIONS:
        monkeypatch.setitem(OPERATIONS, name, counted(name))
    n = 50_000
    auto_augment(torch.zeros((n, 1, 1, 3), dtype=torch.uint8), "cifar10", rng_of())
    expected = dict.fromkeys(OPERATIONS, 0.0)
    for pair in POLICIES["cifar10"]:
        for name, probability, _ in pair:
            expected[name] += probability * n / 25
    for name, count in expected.items():
        assert seen[name] == pytest.approx(count, abs=5 * np.sqrt(count)), name  # 5 deviations of a count
    for name in ("ShearY", "TranslateY", "Sharpness"):
        assert negative[name] / seen[name] == pytest.approx(0.5, abs=0.03)
    assert negative["Posterize"] == negative["Solarize"] == 0


@pytest.mark.parametrize("policy", POLICIES)
def test_images_that_drew_nothing_are_untouched(policy):
    images, rng = pictures(200, 12, 12), rng_of(4)
    drawn, chance = rng.integers(0, 25, 200), rng.random((200, 2))
    probability = np.array([[step[1] for step in pair] for pair in POLICIES[policy]])
    idle = torch.from_numpy((chance >= probability[drawn]).all(1))
    assert 10 < idle.sum() < 100
    assert torch.equal(auto_augment(images, policy, rng_of(4))[idle], images[idle])


def test_sub_policies_are_drawn_uniformly():
    # The first draw is the sub-policy; it decides which of two constant images changes, so it shows in the output.
    images = torch.full((20_000, 1, 1, 3), 90, dtype=torch.uint8)
    changed = (auto_augment(images, "imagenet", rng_of(1)) != 90).any(3).float().mean()
    chance = np.mean([1 - np.prod([1 - p * shows(name, level) for name, p, level in pair]) for pair in POLICIES["imagenet"]])
    assert float(changed) == pytest.approx(chance, abs=0.02)


def shows(name, level):
    """Whether one pixel of grey 90 changes: equalising, stretching, colouring and turning it does nothing."""
    if name == "Posterize":
        return 90 % 2 ** (8 - int(MAGNITUDES[name][level])) != 0
    return name == "Invert" or (name == "Solarize" and MAGNITUDES[name][level] <= 90)


@pytest.mark.parametrize("policy", POLICIES)
def test_equal_generators_give_equal_images_and_others_others(policy):
    images = pictures(32, 16, 16)
    before = images.clone()
    once, again, other = (auto_augment(images, policy, rng_of(seed)) for seed in (5, 5, 6))
    assert torch.equal(once, again)
    assert not torch.equal(once, other)
    assert torch.equal(images, before)


# -- jitter --------------------------------------------------------------------------------------------------------


def test_jitter_is_pillows_brightness_and_colour_in_the_drawn_order():
    images, orders = pictures(8), set()
    for seed in range(6):
        rng = rng_of(seed)
        change = {"Brightness": rng.uniform(-32 / 255, 32 / 255, 8), "Color": rng.uniform(-0.5, 0.5, 8)}
        order = [list(change)[number] for number in rng.permutation(2)]
        orders.add(order[0])
        expected = images.numpy()
        for name in order:
            expected = np.stack([by_pillow(image, name, m) for image, m in zip(expected, change[name], strict=True)])
        np.testing.assert_array_equal(colour_jitter(images, rng_of(seed)).numpy(), expected)
    assert orders == {"Brightness", "Color"}


def test_jitter_of_grey_images_stays_within_the_brightness_asked_for():
    images = torch.full((4000, 1, 1, 3), 100, dtype=torch.uint8)
    found = colour_jitter(images, rng_of(), brightness=0.2, saturation=0.5).numpy()
    assert found.min() == 80
    assert found.max() == 119
    assert found.mean() == pytest.approx(99.5, abs=1)  # cut off, not rounded
    assert np.array_equal(colour_jitter(images, rng_of(), brightness=0.0, saturation=0.9).numpy(), images.numpy())


# -- crop and mirror ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("padding", "flip"), [(4, True), (2, False), (0, True)])
def test_a_crop_is_that_of_a_loop_over_images(padding, flip):
    padded, chosen = pictures(5, 16 + 2 * padding, 12 + 2 * padding), torch.tensor([4, 0, 0, 2, 3, 1, 4])
    rng = rng_of(2)
    top, left = (rng.integers(0, 2 * padding + 1, (7, 1)).ravel() for _ in range(2))
    mirrored = rng.random(7) < 0.5 if flip else np.zeros(7, bool)
    found = crop_and_flip(padded, chosen, padding, flip, rng_of(2))
    assert found.shape == (7, 16, 12, 3)
    for i in range(7):
        window = padded[chosen[i], top[i] : top[i] + 16, left[i] : left[i] + 12]
        assert torch.equal(found[i], window.flip(1) if mirrored[i] else window)


# -- normalisation and erasing -------------------------------------------------------------------------------------------


def test_normalisation_is_the_preprocessings_with_channels_last():
    images = pictures(3)
    found = normalise(images, IMAGENET)
    assert found.dtype == torch.float32
    assert found.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(found.numpy(), IMAGENET.apply(images.numpy()), atol=1e-6, rtol=0)


def erased_boxes(found):
    """Height, width and filled area of what is 0 in each (H, W) of (B, H, W)."""
    zero = (found == 0).numpy()
    return zero.any(2).sum(1), zero.any(1).sum(1), zero.sum((1, 2))


def test_erasing_takes_one_rectangle_of_every_channel_from_the_share_asked_for():
    x = torch.ones(2000, 3, 40, 30).to(memory_format=torch.channels_last)
    found = erase(x, 0.25, rng_of())
    high, wide, area = erased_boxes(found[:, 0])
    assert torch.equal(found[:, :1].expand_as(found), found)
    assert np.array_equal(high * wide, area)  # a full rectangle
    assert (area > 0).mean() == pytest.approx(0.25, abs=0.03)
    assert torch.equal(x, torch.ones_like(x))
    assert found.is_contiguous(memory_format=torch.channels_last)


def test_erased_rectangles_have_the_papers_area_and_aspect_everywhere():
    found = erase(torch.ones(2000, 1, 100, 100), 1.0, rng_of(1))[:, 0]
    high, wide, area = erased_boxes(found)
    share, aspect = area / 1e4, high / wide
    assert (area > 0).all()  # in 10 tries some rectangle fits
    assert 0.018 < share.min() < 0.022
    assert 0.32 < share.max() < 0.34
    assert share.mean() == pytest.approx(0.17, abs=0.01)  # a little below 0.175: the largest do not fit when they are long
    assert 0.28 < aspect.min() < 0.33
    assert 3.0 < aspect.max() < 3.5
    assert np.log(aspect).mean() == pytest.approx(0, abs=0.05)
    often = (found == 0).float().mean(0)  # how often each pixel is lost
    assert often[50, 50] > often[0, 50] > 0
    assert often[0].mean() == pytest.approx(float(often[99].mean()), abs=0.03)
    assert often[:, 0].mean() == pytest.approx(float(often[:, 99].mean()), abs=0.03)


def test_erasing_never_and_always():
    x = torch.ones(50, 3, 16, 16)
    assert torch.equal(erase(x, 0.0, rng_of()), x)
    assert (erase(x, 1.0, rng_of()) == 0).flatten(1).any(1).all()


# -- together ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [1, 9])
@pytest.mark.parametrize("policy", ["none", "cifar10", "imagenet"])
def test_inputs_are_the_steps_in_their_order_from_one_generator(policy, batch):
    images, rng = pictures(batch, 16, 16), rng_of(8)
    augmentation = Augmentation(jitter=True, auto_augment=policy, erase=0.5)
    found = inputs(images, augmentation, IMAGENET, rng_of(8))
    expected = colour_jitter(images, rng)
    expected = expected if policy == "none" else auto_augment(expected, policy, rng)
    assert found.shape == (batch, 3, 16, 16)
    assert torch.equal(found, erase(normalise(expected, IMAGENET), 0.5, rng))


def test_with_nothing_asked_for_nothing_is_drawn():
    images, rng = pictures(4, 8, 8), rng_of()
    assert torch.equal(inputs(images, Augmentation(), IMAGENET, rng), normalise(images, IMAGENET))
    assert rng.bit_generator.state == rng_of().bit_generator.state


@pytest.mark.gpu
def test_a_gpu_makes_the_same_images_to_the_bit():
    images, augmentation = pictures(256, 32, 32), Augmentation(jitter=True, auto_augment="cifar10", erase=0.5)
    chosen = torch.arange(255, -1, -1)
    results = []
    for device in ("cpu", "cuda"):
        rng = rng_of()
        cropped = crop_and_flip(images.to(device), chosen, 4, True, rng)
        results.append(auto_augment(cropped, "imagenet", rng).cpu())
        results.append(inputs(cropped, augmentation, IMAGENET, rng).cpu())
    assert torch.equal(results[0], results[2])
    assert torch.equal(results[1], results[3])


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"crop_padding": -1}, "crop padding must be at least 0 pixels, but got -1"),
        ({"auto_augment": "svhn"}, "must be none, cifar10 or imagenet, but got svhn"),
        ({"erase": 1.5}, r"must lie in \[0, 1\], but got 1.5"),
        ({"erase": float("nan")}, r"must lie in \[0, 1\], but got nan"),
    ],
)
def test_a_setting_out_of_bounds_is_refused_in_a_sentence(setting, words):
    with pytest.raises(UsageError, match=words):
        Augmentation(**setting)


def test_an_unknown_policy_is_refused_and_settings_are_values():
    with pytest.raises(UsageError, match="must be cifar10 or imagenet, but got none"):
        auto_augment(pictures(1), "none", rng_of())
    assert Augmentation(erase=0.2) == dataclasses.replace(Augmentation(), erase=0.2)
