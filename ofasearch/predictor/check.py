"""How predictions differ from measurements."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from ofasearch.errors import FormatError
from ofasearch.predictor.model import Predictor
from ofasearch.predictor.pairs import Pairs


@dataclass(frozen=True, slots=True)
class FitError:
    """How predictions differ from measurements; `_points` are percent points."""

    n: int
    kendall_tau: float
    spearman: float
    mae_points: float
    rmse_points: float
    bias_points: float


def check(predictor: Predictor, pairs: Pairs) -> FitError:
    """Compare predictions with measured networks that the fit did not see."""
    from scipy.stats import kendalltau, spearmanr

    predicted = predictor(pairs.settings)
    if np.ptp(pairs.top1) == 0 or np.ptp(predicted) == 0:
        raise FormatError("a comparison needs networks of different measured and predicted accuracy, but all are equal; give more pairs")
    error = 100 * (predicted - pairs.top1)
    return FitError(
        n=len(pairs),
        kendall_tau=float(kendalltau(predicted, pairs.top1).statistic),
        spearman=float(spearmanr(predicted, pairs.top1).statistic),
        mae_points=float(np.abs(error).mean()),
        rmse_points=float(np.sqrt((error**2).mean())),
        bias_points=float(error.mean()),
    )
