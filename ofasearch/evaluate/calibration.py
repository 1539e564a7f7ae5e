"""How many images batch norm needs: one network calibrated on growing samples, and the first sample that is as good as all.

Legend: n = images, k = sample sizes, d = draws. Rates are fractions.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from ofasearch.data import Preprocessing, Split
from ofasearch.evaluate.score import CALIBRATION_BATCH, batches, recalibrate_bn
from ofasearch.supernet.elastic import norms

SMALLEST = 16  # images of a sample
LEVEL = 0.95  # of the bound on a mean

Values = npt.NDArray[np.float64]
Statistics = dict[str, Tensor]  # of each batch norm by name, (2, C), float64: mean, variance


def sample_sizes(most: int) -> tuple[int, ...]:
    """16, 32, 64, ... and `most`: all there are."""
    doubled = [SMALLEST << power for power in range(max(0, most.bit_length()))]
    return (*(size for size in doubled if size < most), most)


def calibrated_on(
    network: nn.Module, images: Split, sizes: Sequence[int], preprocessing: Preprocessing, *, resolution: int
) -> list[nn.Module]:
    """Copies of a network, each with batch norm recalibrated on the first images, as many as its size says.

    They equal `recalibrate_bn` on that many images in its usual batches. Batches are normalised by their own moments and know
    nothing of each other, so what samples share is run once: beside all full batches only each sample's last, shorter one.
    """
    network = copy.deepcopy(network)
    whole = [_statistics_on(network, x) for x in _full_batches(images, max(sizes), preprocessing, resolution)]
    found = []
    for size in sizes:
        full, rest = divmod(size, CALIBRATION_BATCH)
        parts = [(CALIBRATION_BATCH, statistics) for statistics in whole[:full]]
        if rest:
            few = images.take(np.arange(size - rest, size))
            (x,) = batches(few, preprocessing, resolution=resolution, size=rest)
            parts.append((rest, _statistics_on(network, x)))
        found.append(_with_statistics(network, parts))
    return found


def _full_batches(images: Split, most: int, preprocessing: Preprocessing, resolution: int) -> Iterator[Tensor]:
    full = images.take(np.arange(most // CALIBRATION_BATCH * CALIBRATION_BATCH))
    return batches(full, preprocessing, resolution=resolution, size=CALIBRATION_BATCH) if len(full) else iter(())


def _statistics_on(network: nn.Module, x: Tensor) -> Statistics:
    """What batch norm's statistics are after recalibration on one batch (B, 3, H, H)."""
    recalibrate_bn(network, [x])
    return {name: torch.stack([norm.running_mean, norm.running_var]).double() for name, norm in norms(network).items()}  # type: ignore[list-item]


@torch.no_grad()
def _with_statistics(network: nn.Module, parts: Sequence[tuple[int, Statistics]]) -> nn.Module:
    """A copy whose statistics are the means over batches, weighted by their images."""
    found = copy.deepcopy(network)
    images = sum(count for count, _ in parts)
    for name, norm in norms(found).items():
        mean, variance = sum(count * statistics[name] for count, statistics in parts) / images  # type: ignore[misc]
        norm.running_mean.copy_(mean)  # type: ignore[union-attr]
        norm.running_var.copy_(variance)  # type: ignore[union-attr]
    return found


@dataclass(frozen=True, slots=True, kw_only=True)
class Loss:
    """How far below the whole split a sample size is, over draws: mean and deviation, and a bound on the mean (95 %, one-sided)."""

    mean: float
    deviation: float
    bound: float


def losses(top1: Values) -> tuple[Loss, ...]:
    """Of each sample size, the last being the whole split, from top-1 (d, k); each draw is held against its own whole."""
    from scipy.stats import t

    below = top1[:, -1:] - top1  # (d, k)
    draws = len(top1)
    deviation = below.std(axis=0, ddof=1) if draws > 1 else np.zeros(top1.shape[1])
    reach = float(t.ppf(LEVEL, draws - 1)) / math.sqrt(draws) if draws > 1 else 0.0
    return tuple(
        Loss(mean=float(m), deviation=float(s), bound=float(m + reach * s)) for m, s in zip(below.mean(axis=0), deviation, strict=True)
    )


def enough(sizes: Sequence[int], found: Sequence[Loss], tolerance: float) -> int:
    """The smallest sample from which on every larger one, too, loses at most the tolerance by its bound."""
    suffices = sizes[-1]
    for size, loss in reversed(list(zip(sizes, found, strict=True))):
        if loss.bound > tolerance:
            break
        suffices = size
    return suffices
