"""What changes for single images when one network replaces another: negative and positive flips. Numpy alone.

Legend: n = images, m = networks. Predictions and labels are integer arrays (n,) of classes; `old` is the reference, `new` what
shall replace it. Rates are fractions of all n images. Of every image one of four things is true:

| old | new | it is |
| --- | --- | --- |
| right | right | both right |
| right | wrong | a negative flip |
| wrong | right | a positive flip |
| wrong | wrong | both wrong, whether the classes agree or not |

So acc_new - acc_old = PFR - NFR exactly, and NFR <= min(acc_old, 1 - acc_new). A ratio whose denominator is 0 is unknown: None
here, absent in JSON, never NaN.

Reference: positive-congruent training (CVPR 2021), Eq. 2 and 11. REG-NAS cites it and reports NFR on that scale; that the two
are the same formula, with the reference of REG-NAS as the old network, is inferred: the equation of its main text was not at hand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from ofasearch.errors import MismatchError, UsageError

Classes = npt.NDArray[np.integer[Any]]
Mask = npt.NDArray[np.bool_]
SAMPLES = 2000  # of a bootstrap
LEVEL = 0.95  # of its intervals


# -- two networks ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Flips:
    """How many images fare how when `new` replaces `old`; all rates follow from the four counts."""

    both_right: int
    negative: int
    positive: int
    both_wrong: int

    @property
    def n(self) -> int:
        """All images."""
        return self.both_right + self.negative + self.positive + self.both_wrong

    @property
    def top1_old(self) -> float:
        """Fraction that the old network gets right."""
        return (self.both_right + self.negative) / self.n

    @property
    def top1_new(self) -> float:
        """Fraction that the new network gets right."""
        return (self.both_right + self.positive) / self.n

    @property
    def gain(self) -> float:
        """Accuracy gained, a fraction: that of the new network minus that of the old one."""
        return (self.positive - self.negative) / self.n

    @property
    def nfr(self) -> float:
        """Negative flip rate, of all images."""
        return self.negative / self.n

    @property
    def pfr(self) -> float:
        """Positive flip rate, of all images."""
        return self.positive / self.n

    @property
    def relative_nfr(self) -> float | None:
        """NFR over what it would be if both networks erred independently; None where it would be 0.

        Reference: positive-congruent training, Eq. 11: NFR / ((1 - ER_old) ER_new).
        """
        expected = (self.both_right + self.negative) * (self.negative + self.both_wrong)
        return self.negative * self.n / expected if expected else None

    @property
    def negative_flip_impact(self) -> float | None:
        """Negative flips among the errors of the new network; None where it makes none."""
        errors = self.negative + self.both_wrong
        return self.negative / errors if errors else None

    def to_json(self) -> dict[str, Any]:
        """As in all JSON answers; what is unknown is absent."""
        record = {
            "n": self.n,
            "top1_old": self.top1_old,
            "top1_new": self.top1_new,
            "nfr": self.nfr,
            "pfr": self.pfr,
            "negative_flips": self.negative,
            "positive_flips": self.positive,
            "relative_nfr": self.relative_nfr,
            "nfi": self.negative_flip_impact,
        }
        return {key: value for key, value in record.items() if value is not None}


def compare(old: Classes, new: Classes, labels: Classes) -> Flips:
    """All that two networks' predictions (n,) of the same images with labels (n,) say of each other.

    Raises UsageError (empty, no integers), MismatchError (arrays of different lengths).
    """
    return _flips(np.bincount(_outcomes(old, new, labels), minlength=4))


def negative_flips(old: Classes, new: Classes, labels: Classes) -> Mask:
    """Which images (n,) `old` gets right and `new` gets wrong. Raises as `compare`."""
    return np.asarray(_outcomes(old, new, labels) == NEGATIVE)


def positive_flips(old: Classes, new: Classes, labels: Classes) -> Mask:
    """Which images (n,) `old` gets wrong and `new` gets right. Raises as `compare`."""
    return np.asarray(_outcomes(old, new, labels) == POSITIVE)


def negative_flip_rate(old: Classes, new: Classes, labels: Classes) -> float:
    """Fraction of all images that `old` gets right and `new` gets wrong. Raises as `compare`.

    Reference: positive-congruent training, Eq. 2; the denominator is all images, not only those that `old` gets right.
    """
    return compare(old, new, labels).nfr


def positive_flip_rate(old: Classes, new: Classes, labels: Classes) -> float:
    """Fraction of all images that `old` gets wrong and `new` gets right. Raises as `compare`."""
    return compare(old, new, labels).pfr


def relative_nfr(old: Classes, new: Classes, labels: Classes) -> float | None:
    """`Flips.relative_nfr` of two networks. Raises as `compare`."""
    return compare(old, new, labels).relative_nfr


def negative_flip_impact(old: Classes, new: Classes, labels: Classes) -> float | None:
    """`Flips.negative_flip_impact` of two networks. Raises as `compare`."""
    return compare(old, new, labels).negative_flip_impact


def relative_change(value: float, baseline: float) -> float | None:
    """By what fraction of the baseline a measure (top-1, NFR) differs from it; None where the baseline is 0.

    Reference: REG-NAS, supplement, section C: C(a, b) = (M(a) - M(b)) / M(b), a being REG-NAS's network.
    """
    return (value - baseline) / baseline if baseline else None


# -- classes, images, families ---------------------------------------------------------------------------------


def per_class(old: Classes, new: Classes, labels: Classes) -> dict[int, Flips]:
    """`compare` within the images of each class; rates are fractions of that class's images. Classes without images are absent.

    Raises as `compare`.
    """
    outcomes = _outcomes(old, new, labels)
    present, position = np.unique(labels, return_inverse=True)
    counts = np.bincount(4 * position + outcomes, minlength=4 * len(present)).reshape(-1, 4)
    return {int(label): _flips(row) for label, row in zip(present, counts, strict=True)}


@dataclass(frozen=True, slots=True)
class Confusion:
    """How many images of the class `label` were right and are now taken for `predicted`."""

    label: int
    predicted: int
    count: int


def confusions(old: Classes, new: Classes, labels: Classes) -> tuple[Confusion, ...]:
    """What negatively flipped images are taken for, the most frequent first, then by class. Raises as `compare`."""
    flipped = negative_flips(old, new, labels)
    pairs, counts = np.unique(np.stack([labels[flipped], new[flipped]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return tuple(Confusion(int(pairs[i, 0]), int(pairs[i, 1]), int(counts[i])) for i in order)


def nfr_matrix(predictions: Classes | Sequence[Classes], labels: Classes) -> npt.NDArray[np.float64]:
    """NFR between all networks of a family (m, m) from their predictions (m, n): [i, j] when network j replaces network i.

    Raises as `compare`.
    """
    rows = [_checked(row, labels) for row in predictions]
    if not rows:
        raise UsageError("a family must hold at least one network, but it is empty")
    right = np.stack([row == labels for row in rows]).astype(np.float64)  # BLAS multiplies floats; sums of ones are exact
    return np.asarray(right @ (1 - right).T / len(labels))


# -- how sure --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Interval:
    """A percentile interval."""

    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Intervals:
    """Bootstrap intervals of the rates, fractions."""

    nfr: Interval
    pfr: Interval
    gain: Interval
    level: float
    samples: int

    def to_json(self) -> dict[str, Any]:
        """As in all JSON answers: each interval a list of two."""
        rates = {name: [getattr(self, name).low, getattr(self, name).high] for name in ("nfr", "pfr", "gain")}
        return {**rates, "level": self.level, "samples": self.samples}


def bootstrap(
    old: Classes, new: Classes, labels: Classes, rng: np.random.Generator, samples: int = SAMPLES, level: float = LEVEL
) -> Intervals:
    """Percentile intervals of NFR, PFR and accuracy gain under resampling of the images. Raises as `compare`, and as `intervals`."""
    return intervals(compare(old, new, labels), rng, samples, level)


def intervals(flips: Flips, rng: np.random.Generator, samples: int = SAMPLES, level: float = LEVEL) -> Intervals:
    """`bootstrap` from the counts alone.

    All rates depend only on how often each of the four outcomes is drawn, and n draws with replacement from n images give
    outcome counts that are multinomial with the observed shares. So the counts are drawn at once: the same distribution as
    resampling images, without an array of images. Raises UsageError for a level outside (0, 1) or no samples.
    """
    if not 0 < level < 1 or samples < 1:
        raise UsageError(f"a bootstrap must have at least one sample and a level between 0 and 1, but got {samples} and {level}")
    shares = np.array([flips.both_right, flips.negative, flips.positive, flips.both_wrong]) / flips.n
    drawn = rng.multinomial(flips.n, shares, size=samples) / flips.n  # (samples, 4)
    tails = (1 - level) / 2, (1 + level) / 2

    def interval(values: npt.NDArray[np.float64]) -> Interval:
        low, high = np.quantile(values, tails)
        return Interval(float(low), float(high))

    negative, positive = drawn[:, NEGATIVE], drawn[:, POSITIVE]
    return Intervals(nfr=interval(negative), pfr=interval(positive), gain=interval(positive - negative), level=level, samples=samples)


# -- outcomes --------------------------------------------------------------------------------------------------

BOTH_RIGHT, NEGATIVE, POSITIVE, BOTH_WRONG = range(4)  # the order of the fields of `Flips`


def _outcomes(old: Classes, new: Classes, labels: Classes) -> npt.NDArray[np.int64]:
    """Which of the four outcomes each image has, (n,)."""
    old_wrong, new_wrong = _checked(old, labels) != labels, _checked(new, labels) != labels
    return np.asarray(2 * old_wrong + new_wrong, dtype=np.int64)


def _flips(counts: npt.NDArray[np.int64]) -> Flips:
    both_right, negative, positive, both_wrong = map(int, counts)
    return Flips(both_right=both_right, negative=negative, positive=positive, both_wrong=both_wrong)


def _checked(predicted: Classes, labels: Classes) -> Classes:
    """The predictions as an array, if they can be held against the labels."""
    found = np.asarray(predicted)
    for name, array in (("predictions", found), ("labels", np.asarray(labels))):
        if array.ndim != 1 or not np.issubdtype(array.dtype, np.integer):
            raise UsageError(f"{name} must be one integer per image, but have shape {array.shape} and type {array.dtype}")
    if len(found) != len(labels):
        raise MismatchError(f"predictions must be of the same images as the labels, but there are {len(found):,} and {len(labels):,}")
    if not len(found):
        raise UsageError("predictions must be of at least one image, but there is none")
    return found
