"""A Gaussian process on networks: what is expected of those that were not measured, and how surely.

Legend: n = networks measured, m = networks asked for, g = genes, t = thresholds of all genes, h = hints, q = quantities.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import numpy as np

from ofasearch.space.core import Codes, Space, Values

LENGTHS = (1.0, 2.0, 4.0, 8.0)  # mean distances of the measured networks over which a quantity forgets
HINT_WEIGHTS = (0.0, 0.1, 0.3, 1.0, 3.0)  # variance that follows the hints, beside 1 that follows the distance
NOISES = (0.01, 0.03, 0.1, 0.3, 1.0)  # variance that follows nothing: each network's own


@dataclass(frozen=True, slots=True)
class Inputs:
    """Networks as a process sees them: which thresholds their genes reach, (n, t), and their hints, (n, h)."""

    reached: Values
    hints: Values


@dataclass(frozen=True, slots=True)
class Choice:
    """What explains one quantity best: the kernel's length and weight of hints, the noise, and the scale of all three."""

    likelihood: float
    length: float
    weight: float
    noise: float
    scale: float
    values: Values  # (n,) of the kernel's matrix
    vectors: Values  # (n, n)
    target: Values  # (n,) standardised quantity, in terms of the vectors


@dataclass(frozen=True, slots=True)
class Process:
    """Independent processes, one per quantity, that were fitted on the same networks."""

    steps: Values  # (t,), how far apart networks are that one threshold divides
    known: Inputs
    centre: Values  # (q,)
    spread: Values  # (q,)
    choices: tuple[Choice, ...]  # (q,)

    def __call__(self, asked: Inputs) -> tuple[Values, Values]:
        """Mean and standard deviation (m, q) of what would be measured."""
        distance = _distances(asked.reached, self.known.reached, self.steps)
        alike = asked.hints @ self.known.hints.T
        found = [self._one(choice, distance, alike, asked) for choice in self.choices]
        mean, deviation = (np.stack(part, axis=1) for part in zip(*found, strict=True))
        return self.centre + self.spread * mean, self.spread * deviation

    def _one(self, choice: Choice, distance: Values, alike: Values, asked: Inputs) -> tuple[Values, Values]:
        """Mean and deviation (m,) of one standardised quantity."""
        turned = (np.exp(-distance / choice.length) + choice.weight * alike) @ choice.vectors
        own = 1 + choice.weight * (asked.hints**2).sum(axis=1)
        variance = own - (turned**2 / (choice.values + choice.noise)).sum(axis=1)
        deviation = np.sqrt(choice.scale * (np.maximum(variance, 0) + choice.noise))
        return turned @ (choice.target / (choice.values + choice.noise)), deviation


def thresholds(space: Space, codes: Codes) -> Values:
    """Which codes of each gene a network's code reaches, (n, t) of 0 and 1; absent genes reach none."""
    parts = [codes[:, [gene]] >= np.arange(1, size + 1) for gene, size in enumerate(space.sizes)]
    return np.concatenate(parts, axis=1).astype(np.float64)


def fit(space: Space, known: Inputs, quantities: Values) -> Process:
    """The processes that explain quantities (n, q) of measured networks best: the greatest likelihood on a grid.

    Networks are alike by exp(-distance / length), where each gene adds the difference of its codes as a share of its
    choices, and by the product of their hints.

    Reference: Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), chapters 2 and 5.
    """
    steps = np.repeat(1 / space.sizes, space.sizes)
    centre, spread = quantities.mean(axis=0), quantities.std(axis=0)
    spread = np.where(spread > 0, spread, 1.0)
    standard = (quantities - centre) / spread
    distance = _distances(known.reached, known.reached, steps)
    unit, alike = max(float(distance.mean()), 1e-9), known.hints @ known.hints.T
    best: list[Choice | None] = [None] * quantities.shape[1]
    weights = HINT_WEIGHTS if known.hints.shape[1] else (0.0,)
    for length, weight in itertools.product(LENGTHS, weights):
        values, vectors = np.linalg.eigh(np.exp(-distance / (length * unit)) + weight * alike)
        turned = vectors.T @ standard
        for noise, quantity in itertools.product(NOISES, range(len(best))):
            found = _judged(length * unit, weight, noise, np.maximum(values, 0), vectors, turned[:, quantity])
            former = best[quantity]
            if former is None or found.likelihood > former.likelihood:
                best[quantity] = found
    return Process(steps, known, centre, spread, tuple(choice for choice in best if choice is not None))


def _judged(length: float, weight: float, noise: float, values: Values, vectors: Values, target: Values) -> Choice:
    """One point of the grid, with the scale that suits it best."""
    variances = values + noise
    scale = max(float((target**2 / variances).mean()), 1e-12)
    likelihood = -0.5 * (len(target) * np.log(scale) + np.log(variances).sum())
    return Choice(float(likelihood), length, weight, noise, scale, values, vectors, target)


def _distances(one: Values, other: Values, steps: Values) -> Values:
    """Sum of the steps at which networks (m, t) and (n, t) differ, (m, n)."""
    return np.maximum((one @ steps)[:, None] + other @ steps - 2 * (one * steps) @ other.T, 0)
