"""How predictions differ from measurements, and what more measurements would bring.

Legend: n = networks, f = features, k = members of an ensemble. `_points` are percent points.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ofasearch.errors import FormatError
from ofasearch.predictor.encode import Matrix
from ofasearch.predictor.model import LEVEL, Certainty, Predictor
from ofasearch.predictor.pairs import Pairs
from ofasearch.space.core import Values

TOP = 10  # networks that somebody would look at
LEVELS = (0.5, 0.8, 0.9, 0.95)
FLOORS = (0.0, 0.25, 0.5, 1.0, 2.0, 4.0, 8.0, 16.0)  # of the error bars' constant part, in units of the members' spread


@dataclass(frozen=True, slots=True)
class FitError:
    """How predictions differ from measurements.

    `regret_points`: how far the best network among the ten that were predicted best stays behind the best of all.
    """

    n: int
    kendall_tau: float
    spearman: float
    mae_points: float
    rmse_points: float
    bias_points: float
    regret_points: float


def check(predictor: Predictor, pairs: Pairs) -> FitError:
    """Compare predictions with measured networks that the fit did not see."""
    return compare(predictor(pairs.settings), pairs.top1)


def compare(predicted: Values, top1: Values) -> FitError:
    """Compare predicted with measured accuracies, both (n,) fractions.

    Raises FormatError where all are equal, so that there is nothing to rank.
    """
    from scipy.stats import kendalltau, spearmanr

    if np.ptp(top1) == 0 or np.ptp(predicted) == 0:
        raise FormatError("a comparison needs networks of different measured and predicted accuracy, but all are equal; give more pairs")
    error = 100 * (predicted - top1)
    best = np.argsort(-predicted, kind="stable")[:TOP]
    return FitError(
        n=len(top1),
        kendall_tau=float(kendalltau(predicted, top1).statistic),
        spearman=float(spearmanr(predicted, top1).statistic),
        mae_points=float(np.abs(error).mean()),
        rmse_points=float(np.sqrt((error**2).mean())),
        bias_points=float(error.mean()),
        regret_points=float(100 * (top1.max() - top1[best].max())),
    )


# -- error bars ------------------------------------------------------------------------------------------------


def certainty_of(members: Values, top1: Values) -> Certainty:
    """Error bars from the members' predictions (k, n) of networks that the fit did not see, and their top-1 (n,).

    Split conformal prediction with a scale per network: the constant part of the scale is that under which the errors are
    most likely Gaussian, the multiples are quantiles of |error| / scale. Reference: Lei et al., Distribution-Free Predictive
    Inference for Regression (2018), section 5.2.
    """
    error, variance = np.abs(members.mean(axis=0) - top1), members.var(axis=0)
    unit = float(np.sqrt(variance.mean())) or float(np.sqrt((error**2).mean())) or 1e-6
    floor = min((factor * unit for factor in FLOORS if factor or variance.min() > 0), key=lambda f: _surprise(error, variance, f))
    scaled = np.sort(error / np.sqrt(floor**2 + variance))
    ranks = {level: min(len(scaled), int(np.ceil(level * (len(scaled) + 1)))) for level in LEVELS}
    return Certainty(floor, {level: float(scaled[rank - 1]) for level, rank in ranks.items()})


def _surprise(error: Values, variance: Values, floor: float) -> float:
    """Minus the log-likelihood of the errors (n,), per network, at the best common factor."""
    spread = np.sqrt(floor**2 + variance)
    return float(np.log(spread).mean() + 0.5 * np.log(((error / spread) ** 2).mean() + 1e-30))


def coverage(predictor: Predictor, pairs: Pairs, level: float = LEVEL) -> float:
    """Share of measured networks that lie within their error bars."""
    predicted, half_width = predictor.with_error(pairs.settings, level)
    return float((np.abs(predicted - pairs.top1) <= half_width).mean())


def cross_coverage(members: Values, top1: Values, level: float = LEVEL) -> float:
    """Share of networks (k, n) within error bars that were worked out on the others: each half judges the other."""
    inside, halves = 0, (np.arange(len(top1)) % 2 == 0, np.arange(len(top1)) % 2 == 1)
    for known, judged in (halves, halves[::-1]):
        bars = certainty_of(members[:, known], top1[known])
        scale = np.sqrt(bars.floor**2 + members[:, judged].var(axis=0))
        inside += int((np.abs(members[:, judged].mean(axis=0) - top1[judged]) <= bars.multiples[level] * scale).sum())
    return inside / len(top1)


# -- beside simpler models, and with more pairs ----------------------------------------------------------------


def baselines(x: Matrix, top1: Values, held_x: Matrix, held_top1: Values) -> Mapping[str, FitError]:
    """What scikit-learn's ridge and support vector regression make of the same features (n, f): a sanity check of the MLPs."""
    from sklearn.linear_model import RidgeCV
    from sklearn.svm import SVR

    offset, scale = top1.mean(), max(float(top1.std()), 1e-4)
    models = {"ridge": RidgeCV(np.logspace(-2, 3, 12)), "svr": SVR(C=10, gamma=0.02, epsilon=0.05)}
    return {name: compare(m.fit(x, (top1 - offset) / scale).predict(held_x) * scale + offset, held_top1) for name, m in models.items()}


@dataclass(frozen=True, slots=True)
class LearningCurve:
    """Held-out RMSE after fits on so many pairs; `gain_points` is what `more` pairs would take off it, by a power law."""

    n: tuple[int, ...]
    rmse_points: tuple[float, ...]
    more: int
    gain_points: float


def learning_curve(n: Sequence[int], rmse_points: Sequence[float], more: int = 500) -> LearningCurve:
    """Extrapolate a learning curve by the power law through its points; a curve that does not fall promises nothing."""
    slope = float(np.clip(np.polyfit(np.log(n), np.log(np.maximum(rmse_points, 1e-9)), 1)[0], -1.0, 0.0))
    gain = float(rmse_points[-1] * (1 - (1 + more / n[-1]) ** slope))
    return LearningCurve(tuple(n), tuple(float(r) for r in rmse_points), more, gain)
