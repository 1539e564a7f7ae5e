"""A cheap look at children before they are evaluated: a ridge regression on the networks evaluated last.

Legend: n = networks, g = genes, f = one-hot features (a gene's codes, absent among them).
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from ofasearch.space.core import Codes, Space, Values

Matrix = npt.NDArray[np.float32]

MEMORY = 1  # populations: so many of the networks evaluated last are learned from
EVERY = 16  # generations between two regressions
RIDGE = 3.0  # networks
LEAST = 8  # children that are evaluated in any case


def one_hot(space: Space, codes: Codes) -> Matrix:
    """Features (n, f) of codes (n, g)."""
    starts = np.concatenate([[0], np.cumsum(space.sizes + 1)])
    x = np.zeros((len(codes), starts[-1]), dtype=np.float32)
    x.reshape(-1)[(starts[-1] * np.arange(len(codes)))[:, None] + starts[:-1] + codes] = 1
    return x


def learn(space: Space, codes: Codes, objective: Values) -> Values:
    """What each code of each gene adds to the objective, (f,), by ridge regression on n networks."""
    x = one_hot(space, codes)
    x -= x.mean(axis=0)
    y = (objective - objective.mean()).astype(np.float32)
    dual = len(x) < x.shape[1]  # the smaller of both systems has the same solution
    products = x @ x.T if dual else x.T @ x
    products.flat[:: len(products) + 1] += RIDGE
    weights = x.T @ np.linalg.solve(products, y) if dual else np.linalg.solve(products, x.T @ y)
    return np.asarray(weights, dtype=np.float64)


def most_promising(space: Space, codes: Codes, weights: Values, share: float) -> Codes:
    """That share of the children (n, g), but at least LEAST, with the smallest expected objective; in their order."""
    n = max(LEAST, round(share * len(codes)))
    if n >= len(codes):
        return codes
    expected = one_hot(space, codes) @ weights.astype(np.float32)
    return codes[np.sort(np.argpartition(expected, n - 1)[:n])]
