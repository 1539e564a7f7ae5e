"""Random changes of training images, a batch at a time, on the device where the images are.

Legend: n = images of a set, B = batch, k = images of a batch that drew one operation, H x W = pixels. Images are uint8 RGB
(B, H, W, 3); inputs are normalised floats (B, 3, H, W), channels last in memory.

Every draw comes from a numpy generator. Pixels are computed in integers or in single float operations, each rounded as IEEE 754
says, so equal generators give equal images on every device, and each operation equals Pillow's (ImageEnhance, ImageOps,
Image.transform) to the grey level.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from typing import Any, Literal, NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from ofasearch.data import Preprocessing
from ofasearch.errors import UsageError

Policy = Literal["cifar10", "imagenet"]
Values = npt.NDArray[np.float64]  # (k,), one per image

FILL = 128  # grey level of what a geometric operation moves in from outside: the middle grey
ERASED_AREA = (0.02, 0.33)  # shares of the image
ERASED_ASPECT = (0.3, 3.3)  # height / width, log-uniform
ERASE_TRIES = 10  # rectangles drawn until one fits


@dataclass(frozen=True, slots=True, kw_only=True)
class Augmentation:
    """How training images are varied. The default is the crop and mirror of small images, nothing else."""

    crop_padding: int = 4  # pixels, reflected
    flip: bool = True
    jitter: bool = False  # once-for-all's brightness and saturation
    auto_augment: Literal["none", "cifar10", "imagenet"] = "none"
    erase: float = 0.0  # probability that an image loses a rectangle

    def __post_init__(self) -> None:
        if self.crop_padding < 0:
            raise UsageError(f"crop padding must be at least 0 pixels, but got {self.crop_padding}")
        if self.auto_augment not in ("none", *POLICIES):
            raise UsageError(f"the AutoAugment policy must be none, {' or '.join(POLICIES)}, but got {self.auto_augment}")
        if not 0 <= self.erase <= 1:
            raise UsageError(f"the probability to erase must lie in [0, 1], but got {self.erase}")


def inputs(images: Tensor, augmentation: Augmentation, preprocessing: Preprocessing, rng: np.random.Generator) -> Tensor:
    """Network inputs (B, 3, H, W) of images (B, H, W, 3): jitter, AutoAugment, normalisation, erasing, each if asked for.

    Crop and mirror belong to where the images come from. With nothing asked for nothing is drawn.
    """
    if augmentation.jitter:
        images = colour_jitter(images, rng)
    if augmentation.auto_augment != "none":
        images = auto_augment(images, augmentation.auto_augment, rng)
    normalised = normalise(images, preprocessing)
    return erase(normalised, augmentation.erase, rng) if augmentation.erase > 0 else normalised


# -- the steps ---------------------------------------------------------------------------------------------------


def crop_and_flip(padded: Tensor, chosen: Tensor, padding: int, flip: bool, rng: np.random.Generator) -> Tensor:
    """The images `chosen` (B,) of `padded` (n, H + 2p, W + 2p, 3), each cropped at random, half of them mirrored: (B, H, W, 3)."""
    b, height, width = len(chosen), padded.shape[1] - 2 * padding, padded.shape[2] - 2 * padding
    top, left = (_on(rng.integers(0, 2 * padding + 1, (b, 1)), padded) for _ in range(2))
    rows = top + torch.arange(height, device=padded.device)  # (B, H)
    columns = torch.arange(width, device=padded.device).expand(b, width)
    if flip:
        mirrored = _on(rng.random((b, 1)) < 0.5, padded)
        columns = torch.where(mirrored, width - 1 - columns, columns)
    return padded[chosen.to(padded.device)[:, None, None], rows[:, :, None], (left + columns)[:, None, :]]


def colour_jitter(images: Tensor, rng: np.random.Generator, *, brightness: float = 32 / 255, saturation: float = 0.5) -> Tensor:
    """Images brightened and coloured by factors uniform in [1 - x, 1 + x] per image, in an order drawn per batch.

    Reference: once-for-all's "tf" colour jitter of ImageNet.
    """
    steps = [(_brightness, rng.uniform(-brightness, brightness, len(images))), (_color, rng.uniform(-saturation, saturation, len(images)))]
    for number in rng.permutation(len(steps)):
        operation, change = steps[number]
        images = operation(images, change)
    return images


def auto_augment(images: Tensor, policy: Policy, rng: np.random.Generator) -> Tensor:
    """Images (B, H, W, 3) of which each went through one sub-policy, drawn uniformly: two operations with their probabilities.

    Raises UsageError when the policy is unknown.

    Reference: Cubuk et al., AutoAugment, CVPR 2019; tables and ranges as in torchvision.
    """
    if policy not in POLICIES:
        raise UsageError(f"the AutoAugment policy must be {' or '.join(POLICIES)}, but got {policy}")
    table = _table(policy)
    drawn = rng.integers(0, len(POLICIES[policy]), len(images))
    applied = rng.random((len(images), 2)) < table.probability[drawn]
    sign = rng.choice((-1.0, 1.0), (len(images), 2))
    magnitude = table.magnitude[drawn] * np.where(table.signed[drawn], sign, 1.0)
    result = images.clone()
    for place in range(2):
        for number, operation in enumerate(OPERATIONS.values()):
            (index,) = np.nonzero(applied[:, place] & (table.operation[drawn, place] == number))
            if len(index):
                group = _on(index, images)
                result.index_copy_(0, group, operation(result.index_select(0, group), magnitude[index, place]))
    return result


def normalise(images: Tensor, preprocessing: Preprocessing) -> Tensor:
    """Inputs (B, 3, H, W) of images (B, H, W, 3), channels last in memory: `Preprocessing.apply` on the images' device."""
    mean, std = (_on(np.array(v, dtype=np.float32), images) for v in (preprocessing.mean, preprocessing.std))
    return images.float().mul_(preprocessing.scale).sub_(mean).div_(std).permute(0, 3, 1, 2)


def erase(inputs: Tensor, probability: float, rng: np.random.Generator) -> Tensor:
    """Inputs (B, 3, H, W) of which a share lost a random rectangle to 0, which is the mean of normalised inputs.

    Where none of the rectangles tried fits, the image stays whole.

    Reference: Zhong et al., Random Erasing Data Augmentation, AAAI 2020.
    """
    b, height, width = len(inputs), inputs.shape[2], inputs.shape[3]
    drawn = rng.random(b) < probability
    area = rng.uniform(*ERASED_AREA, (b, ERASE_TRIES)) * height * width  # pixels
    flat, tall = np.log(ERASED_ASPECT)
    aspect = np.exp(rng.uniform(flat, tall, (b, ERASE_TRIES)))
    high, wide = np.rint(np.sqrt(area * aspect)), np.rint(np.sqrt(area / aspect))
    fits = (high < height) & (wide < width)
    first = np.arange(b), fits.argmax(1)
    high, wide = (np.where(drawn & fits[first], side[first], 0) for side in (high, wide))  # (B,)
    top, left = (np.floor(rng.random(b) * (room + 1)) for room in (height - high, width - wide))
    edges = _on(np.stack([top, top + high, left, left + wide]).astype(np.int64), inputs)[:, :, None]  # (4, B, 1)
    y, x = (torch.arange(size, device=inputs.device) for size in (height, width))
    rows, columns = (y >= edges[0]) & (y < edges[1]), (x >= edges[2]) & (x < edges[3])  # (B, H), (B, W)
    return inputs.clone().masked_fill_((rows[:, :, None] & columns[:, None, :])[:, None], 0.0)


# -- operations: images (k, H, W, 3) and a magnitude per image -> images -----------------------------------------------


def _shear_x(images: Tensor, magnitude: Values) -> Tensor:
    """Rows shifted by `magnitude` pixels per row from the top edge."""
    return _transform(images, 1, magnitude, 0, 0, 1, 0)


def _shear_y(images: Tensor, magnitude: Values) -> Tensor:
    """Columns shifted by `magnitude` pixels per column from the left edge."""
    return _transform(images, 1, 0, 0, magnitude, 1, 0)


def _translate_x(images: Tensor, magnitude: Values) -> Tensor:
    """Moved right by a share of the width, in whole pixels."""
    return _transform(images, 1, 0, -_whole(magnitude * images.shape[2]), 0, 1, 0)


def _translate_y(images: Tensor, magnitude: Values) -> Tensor:
    """Moved down by a share of the height, in whole pixels."""
    return _transform(images, 1, 0, 0, 0, 1, -_whole(magnitude * images.shape[1]))


def _rotate(images: Tensor, magnitude: Values) -> Tensor:
    """Turned counter-clockwise by degrees, around the centre."""
    cos, sin = np.cos(np.radians(-magnitude)), np.sin(np.radians(-magnitude))
    x, y = images.shape[2] / 2, images.shape[1] / 2
    return _transform(images, cos, sin, x - cos * x - sin * y, -sin, cos, y + sin * x - cos * y)


def _brightness(images: Tensor, change: Values) -> Tensor:
    """Away from black by the factor 1 + change."""
    return _blend(images.new_zeros(1), images, change)


def _color(images: Tensor, change: Values) -> Tensor:
    """Away from its grey by the factor 1 + change."""
    return _blend(_grey(images), images, change)


def _contrast(images: Tensor, change: Values) -> Tensor:
    """Away from its mean grey by the factor 1 + change."""
    pixels = images.shape[1] * images.shape[2]
    total = _grey(images).sum((1, 2, 3), keepdim=True)
    return _blend((2 * total + pixels) // (2 * pixels), images, change)


def _sharpness(images: Tensor, change: Values) -> Tensor:
    """Away from its smoothed self by the factor 1 + change; the outermost pixels stay."""
    wide = images.to(torch.int16)
    rows = wide[:, :-2] + wide[:, 1:-1] + wide[:, 2:]
    box = rows[:, :, :-2] + rows[:, :, 1:-1] + rows[:, :, 2:]
    smooth = images.clone()
    smooth[:, 1:-1, 1:-1] = ((box + 4 * wide[:, 1:-1, 1:-1] + 6) // 13).to(torch.uint8)  # weights 1, but 5 at the centre, over 13
    return _blend(smooth, images, change)


def _posterize(images: Tensor, bits: Values) -> Tensor:
    """The highest bits of every level, the others 0."""
    return images & _per_image((256 - 2 ** (8 - bits)).astype(np.uint8), images)


def _solarize(images: Tensor, threshold: Values) -> Tensor:
    """Levels from the threshold on inverted."""
    return torch.where(images < _per_image(threshold.astype(np.float32), images), images, 255 - images)


def _auto_contrast(images: Tensor, _: Values) -> Tensor:
    """Each channel stretched to 0..255; a constant channel stays."""
    low, high = (edge((1, 2), keepdim=True).double() for edge in (images.amin, images.amax))  # (k, 1, 1, 3)
    scale = torch.full_like(low, 255) / (high - low).clamp_min(1)  # a number over a tensor would be its reciprocal times 255
    stretched = (images * scale + -low * scale).clamp_(0, 255).to(torch.uint8)
    return torch.where(high > low, stretched, images)


def _equalize(images: Tensor, _: Values) -> Tensor:
    """Each channel mapped so that its levels become about equally frequent; one of (almost) one level stays."""
    k, pixels = len(images), images.shape[1] * images.shape[2]
    channel = torch.arange(3 * k, device=images.device).view(k, 1, 1, 3)
    index = images + 256 * channel  # (k, H, W, 3), of a channel's level in all histograms
    counts = torch.bincount(index.flatten(), minlength=3 * k * 256).view(-1, 256)  # (3 k, 256)
    highest = images.amax((1, 2)).view(-1, 1).long()
    step = (pixels - counts.gather(1, highest)) // 255  # (3 k, 1)
    below = counts.cumsum(1) - counts
    level = ((below + step // 2) // step.clamp_min(1)).clamp_max_(255)
    level = torch.where(step > 0, level, torch.arange(256, device=images.device)).to(torch.uint8)
    return level.flatten()[index]


def _invert(images: Tensor, _: Values) -> Tensor:
    """Black for white."""
    return 255 - images


OPERATIONS: dict[str, Callable[[Tensor, Values], Tensor]] = {
    "ShearX": _shear_x,
    "ShearY": _shear_y,
    "TranslateX": _translate_x,
    "TranslateY": _translate_y,
    "Rotate": _rotate,
    "Brightness": _brightness,
    "Color": _color,
    "Contrast": _contrast,
    "Sharpness": _sharpness,
    "Posterize": _posterize,
    "Solarize": _solarize,
    "AutoContrast": _auto_contrast,
    "Equalize": _equalize,
    "Invert": _invert,
}


def _transform(images: Tensor, *matrix: float | Values) -> Tensor:
    """Pixel (x, y) becomes the one in which (a x + b y + c, d x + e y + f) of its centre lies, `FILL` where that is outside.

    `matrix` is a..f in pixels, a number or (k,). Coordinates are in 16.16 fixed point, as in Pillow: no device rounds them apart.
    """
    k, height, width = images.shape[:3]
    a, b, c, d, e, f = np.broadcast_arrays(np.empty(k), *matrix)[1:]
    fixed = np.floor(np.stack([a, b, c + (a + b) / 2, d, e, f + (d + e) / 2]) * 2**16 + 0.5).astype(np.int64)
    parts = _on(fixed, images)[:, :, None, None]  # (6, k, 1, 1)
    y, x = torch.arange(height, device=images.device)[:, None], torch.arange(width, device=images.device)
    columns, rows = ((p[0] * x + p[1] * y + p[2]) >> 16 for p in (parts[:3], parts[3:]))  # (k, H, W)
    inside = (columns >= 0) & (columns < width) & (rows >= 0) & (rows < height)
    first = torch.arange(0, k * height * width, height * width, device=images.device)[:, None, None]  # pixel of each image
    source = (first + rows * width + columns).where(inside, 0)
    return images.reshape(-1, 3)[source].where(inside[..., None], FILL)


def _blend(origin: Tensor, images: Tensor, change: Values) -> Tensor:
    """Origin + (1 + change) (images - origin), in whole grey levels (cut off, not rounded) of 0..255."""
    factor = _per_image((1 + change).astype(np.float32), images)
    base = origin.float()
    return (images - base).mul_(factor).add_(base).clamp_(0, 255).to(torch.uint8)


def _grey(images: Tensor) -> Tensor:
    """Luma (k, H, W, 1) by ITU-R 601, in 16 bits of fraction, rounded."""
    red, green, blue = (images[..., c : c + 1].int() for c in range(3))
    return (19595 * red + 38470 * green + 7471 * blue + 2**15) >> 16


def _whole(pixels: Values) -> Values:
    """Towards 0; what should be whole and is not by an error of rounding counts as whole."""
    return np.trunc(pixels.astype(np.float32)).astype(np.float64)


def _per_image(values: npt.NDArray[Any], like: Tensor) -> Tensor:
    """Values (k,) to meet images with: (k, 1, 1, 1), on their device."""
    return _on(values, like)[:, None, None, None]


def _on(array: npt.NDArray[Any], like: Tensor) -> Tensor:
    """The array on a tensor's device, without waiting for it."""
    return torch.from_numpy(array).to(like.device, non_blocking=True)


# -- the policies ------------------------------------------------------------------------------------------------

LEVELS = np.arange(10)  # what a magnitude of a policy means: bin 0..9
MAGNITUDES: dict[str, Values] = {  # per bin; operations that are not here have none
    "ShearX": 0.3 * LEVELS / 9,  # pixels per pixel
    "ShearY": 0.3 * LEVELS / 9,
    "TranslateX": 150 / 331 * LEVELS / 9,  # of the width
    "TranslateY": 150 / 331 * LEVELS / 9,  # of the height
    "Rotate": 30 * LEVELS / 9,  # degrees
    "Brightness": 0.9 * LEVELS / 9,  # factors 1 +- this
    "Color": 0.9 * LEVELS / 9,
    "Contrast": 0.9 * LEVELS / 9,
    "Sharpness": 0.9 * LEVELS / 9,
    "Posterize": 8 - np.rint(LEVELS / (9 / 4)),  # bits kept
    "Solarize": 255 * (9 - LEVELS) / 9,  # grey level of the threshold
}
SIGNED = frozenset(
    ("ShearX", "ShearY", "TranslateX", "TranslateY", "Rotate", "Brightness", "Color", "Contrast", "Sharpness")
)  # their magnitudes are negative half of the time

Step = tuple[str, float, int | None]  # operation, probability, bin of the magnitude
POLICIES: dict[Policy, tuple[tuple[Step, Step], ...]] = {
    "cifar10": (
        (("Invert", 0.1, None), ("Contrast", 0.2, 6)),
        (("Rotate", 0.7, 2), ("TranslateX", 0.3, 9)),
        (("Sharpness", 0.8, 1), ("Sharpness", 0.9, 3)),
        (("ShearY", 0.5, 8), ("TranslateY", 0.7, 9)),
        (("AutoContrast", 0.5, None), ("Equalize", 0.9, None)),
        (("ShearY", 0.2, 7), ("Posterize", 0.3, 7)),
        (("Color", 0.4, 3), ("Brightness", 0.6, 7)),
        (("Sharpness", 0.3, 9), ("Brightness", 0.7, 9)),
        (("Equalize", 0.6, None), ("Equalize", 0.5, None)),
        (("Contrast", 0.6, 7), ("Sharpness", 0.6, 5)),
        (("Color", 0.7, 7), ("TranslateX", 0.5, 8)),
        (("Equalize", 0.3, None), ("AutoContrast", 0.4, None)),
        (("TranslateY", 0.4, 3), ("Sharpness", 0.2, 6)),
        (("Brightness", 0.9, 6), ("Color", 0.2, 8)),
        (("Solarize", 0.5, 2), ("Invert", 0.0, None)),
        (("Equalize", 0.2, None), ("AutoContrast", 0.6, None)),
        (("Equalize", 0.2, None), ("Equalize", 0.6, None)),
        (("Color", 0.9, 9), ("Equalize", 0.6, None)),
        (("AutoContrast", 0.8, None), ("Solarize", 0.2, 8)),
        (("Brightness", 0.1, 3), ("Color", 0.7, 0)),
        (("Solarize", 0.4, 5), ("AutoContrast", 0.9, None)),
        (("TranslateY", 0.9, 9), ("TranslateY", 0.7, 9)),
        (("AutoContrast", 0.9, None), ("Solarize", 0.8, 3)),
        (("Equalize", 0.8, None), ("Invert", 0.1, None)),
        (("TranslateY", 0.7, 9), ("AutoContrast", 0.9, None)),
    ),
    "imagenet": (
        (("Posterize", 0.4, 8), ("Rotate", 0.6, 9)),
        (("Solarize", 0.6, 5), ("AutoContrast", 0.6, None)),
        (("Equalize", 0.8, None), ("Equalize", 0.6, None)),
        (("Posterize", 0.6, 7), ("Posterize", 0.6, 6)),
        (("Equalize", 0.4, None), ("Solarize", 0.2, 4)),
        (("Equalize", 0.4, None), ("Rotate", 0.8, 8)),
        (("Solarize", 0.6, 3), ("Equalize", 0.6, None)),
        (("Posterize", 0.8, 5), ("Equalize", 1.0, None)),
        (("Rotate", 0.2, 3), ("Solarize", 0.6, 8)),
        (("Equalize", 0.6, None), ("Posterize", 0.4, 6)),
        (("Rotate", 0.8, 8), ("Color", 0.4, 0)),
        (("Rotate", 0.4, 9), ("Equalize", 0.6, None)),
        (("Equalize", 0.0, None), ("Equalize", 0.8, None)),
        (("Invert", 0.6, None), ("Equalize", 1.0, None)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        (("Rotate", 0.8, 8), ("Color", 1.0, 2)),
        (("Color", 0.8, 8), ("Solarize", 0.8, 7)),
        (("Sharpness", 0.4, 7), ("Invert", 0.6, None)),
        (("ShearX", 0.6, 5), ("Equalize", 1.0, None)),
        (("Color", 0.4, 0), ("Equalize", 0.6, None)),
        (("Equalize", 0.4, None), ("Solarize", 0.2, 4)),
        (("Solarize", 0.6, 5), ("AutoContrast", 0.6, None)),
        (("Invert", 0.6, None), ("Equalize", 1.0, None)),
        (("Color", 0.6, 4), ("Contrast", 1.0, 8)),
        (("Equalize", 0.8, None), ("Equalize", 0.6, None)),
    ),
}


class _Table(NamedTuple):
    """A policy as arrays (25, 2), to look up the draws of a batch in."""

    operation: npt.NDArray[np.int64]  # place in OPERATIONS
    probability: Values
    magnitude: Values
    signed: npt.NDArray[np.bool_]


@cache
def _table(policy: Policy) -> _Table:
    """The policy's steps, one array per property."""
    names = list(OPERATIONS)
    steps = POLICIES[policy]
    return _Table(
        operation=np.array([[names.index(name) for name, _, _ in pair] for pair in steps]),
        probability=np.array([[probability for _, probability, _ in pair] for pair in steps]),
        magnitude=np.array([[0.0 if level is None else MAGNITUDES[name][level] for name, _, level in pair] for pair in steps]),
        signed=np.array([[name in SIGNED for name, _, _ in pair] for pair in steps]),
    )
