"""The accuracy predictor: an ensemble of 3-layer MLPs over one-hot settings, in numpy, with error bars.

Legend: n = networks, f = features, k = members of the ensemble. Accuracies are top-1 fractions.

Reference: once-for-all, section 3.4 and Appendix A (three hidden layers of 400; one-hot kernels and expand ratios,
zeros for skipped blocks, one-hot resolution). Ensemble, error bars and the fitted cloud are ours.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ofasearch.errors import MismatchError
from ofasearch.predictor.encode import SPELLED, Encoder, Matrix, Part
from ofasearch.space.core import Codes, Numbers, Settings, Space, Values

LEVEL = 0.8  # of the interval that is told where none is asked for


def _relu(x: Matrix) -> Matrix:
    return np.maximum(x, 0, out=x)


def _silu(x: Matrix) -> Matrix:
    half = x * np.float32(0.5)
    x *= np.float32(0.5)
    x *= np.tanh(half, out=half) + np.float32(1)  # x * sigmoid(x), without an exponential that could overflow
    return x


ACTIVATIONS: Mapping[str, Callable[[Matrix], Matrix]] = {"relu": _relu, "silu": _silu}  # in place, on (n, width)


@dataclass(frozen=True, slots=True)
class Certainty:
    """What a fit knows of its own errors, from networks that it held out.

    The error of a prediction is taken for a multiple of sqrt(floor^2 + variance of the members); `multiples` are the
    quantiles of |error| / that, by level: the interval of level 0.8 held 80 % of the held-out networks.
    """

    floor: float
    multiples: Mapping[float, float]


@dataclass(frozen=True, slots=True)
class Cloud:
    """Where the fitted networks lie.

    `precision` (f, f) is the inverse of their second moments, ridged; `limit` a leverage that few networks held out of a
    fit exceeded. Reference: leverage as domain of applicability, as is usual for structure-activity models.
    """

    precision: Matrix
    limit: float

    def leverage(self, x: Matrix) -> Values:
        """How far features (n, f) lie from the fitted ones, (n,); grows with the square of the distance."""
        return np.asarray(np.einsum("nf,nf->n", x @ self.precision, x), dtype=np.float64)


@dataclass(frozen=True, slots=True)
class Predictor:
    """Top-1 of networks from their settings.

    `weights` are (k, inputs, outputs) and `biases` (k, outputs) per layer, `offset` is the mean accuracy.
    `space` is the space it was made for; it serves that space and those that lift into it. `supernet_digest` ties it
    to the weights whose accuracy it predicts, where they are known.
    """

    encoder: Encoder
    weights: tuple[Matrix, ...]
    biases: tuple[Matrix, ...]
    offset: float
    space: str
    supernet_digest: str | None = None
    activation: str = "relu"
    certainty: Certainty | None = None
    cloud: Cloud | None = None
    card: dict[str, Any] = field(default_factory=dict)

    def __call__(self, settings: Settings) -> Values:
        """Predicted top-1 (n,), a fraction: the mean of the members."""
        return np.asarray(self.of_features(self.encoder.encode(settings)).mean(axis=0))

    @property
    def size(self) -> int:
        """Members of the ensemble, k."""
        return len(self.weights[0])

    def of_features(self, x: Matrix) -> Values:
        """Each member's prediction for features (n, f), as (k, n)."""
        found, act = np.empty((self.size, len(x))), ACTIVATIONS[self.activation]
        for member in range(self.size):
            y = x
            for weight, bias in zip(self.weights[:-1], self.biases[:-1], strict=True):
                y = y @ weight[member]
                y += bias[member]
                y = act(y)  # (n, 400)
            found[member] = (y @ self.weights[-1][member] + self.biases[-1][member])[:, 0]
        found += self.offset
        return found

    def on(self, space: Space) -> OnSpace:
        """The predictor for the codes of a space, without the way through settings: what a search asks it by.

        Raises MismatchError when it does not know all values of the space.
        """
        return OnSpace(self, space)

    def with_error(self, settings: Settings, level: float = LEVEL) -> tuple[Values, Values]:
        """Predicted top-1 (n,) and the half-width (n,) of the interval that holds the measured value with that probability.

        Raises MismatchError for a predictor that carries no error bars, or none of that level.
        """
        return self.error_of(self.of_features(self.encoder.encode(settings)), level)

    def error_of(self, members: Values, level: float = LEVEL) -> tuple[Values, Values]:
        """`with_error` from the members' predictions (k, n)."""
        if self.certainty is None:
            raise MismatchError(
                "the predictor must carry error bars for that, but has none (foreign files do not); fit one with `ofasearch predictor fit`"
            )
        if level not in self.certainty.multiples:
            known = ", ".join(f"{known:g}" for known in self.certainty.multiples)
            raise MismatchError(f"the level of an error bar must be one of {known}, but got {level:g}")
        spread = np.sqrt(self.certainty.floor**2 + members.var(axis=0))
        return members.mean(axis=0), self.certainty.multiples[level] * spread

    def outside(self, settings: Settings) -> npt.NDArray[np.bool_]:
        """Which networks (n,) lie outside the cloud of the fitted ones, so that their error bar means little.

        None does for a predictor that does not know its cloud.
        """
        if self.cloud is None:
            return np.zeros(len(settings.r), dtype=bool)
        return self.cloud.leverage(self.encoder.encode(settings)) > self.cloud.limit

    def check_space(self, space: Space) -> None:
        """Raise MismatchError unless this predictor speaks of networks of `space`."""
        if self.space not in (space.name, space.parent):
            raise MismatchError(
                f"the predictor must be made for {space.name}, but was made for {self.space}; fit one with `ofasearch predictor fit`"
            )

    def check_supernet(self, digest: str) -> None:
        """Raise MismatchError when the predictor was fitted on accuracies of other weights."""
        if self.supernet_digest is not None and self.supernet_digest != digest:
            raise MismatchError("the predictor must belong to the supernet's weights, but was fitted on others (digests differ)")


class OnSpace:
    """A predictor for the codes (n, g) of one space. Features are gathered from a table of columns, one per block and setting."""

    def __init__(self, predictor: Predictor, space: Space):
        self.predictor, self.space = predictor, space
        block, ks, e = space.setting_choices
        start, columns = 0, []
        self._genes: list[tuple[int, Codes]] = []  # the genes that a part reads by themselves, and the feature of each code
        for part in predictor.encoder.parts:
            if part.field == "ks":
                columns.append(_columns(part, start, block, ks))
            elif part.field == "e":
                columns.append(_columns(part, start, block, e))
            else:
                self._genes += _gene_columns(part, start, space)
            start += part.dims
        self._settings = np.stack(columns, axis=1)  # (positions, 1 or 2)

    def features(self, codes: Codes) -> Matrix:
        """Features (n, f), equal to those by way of the settings."""
        width = self.predictor.encoder.dims + 1  # the last column takes what skipped blocks do not have
        x = np.zeros((len(codes), width), dtype=np.float32)
        flat, rows = x.reshape(-1), width * np.arange(len(codes))
        flat[rows[:, None, None] + self._settings[self.space.setting_positions(codes)]] = 1
        for gene, feature in self._genes:
            flat[rows + feature[codes[:, gene] - 1]] = 1
        return x[:, :-1]

    def members(self, codes: Codes) -> Values:
        """Each member's prediction, (k, n)."""
        return self.predictor.of_features(self.features(codes))

    def __call__(self, codes: Codes) -> Values:
        """Predicted top-1 (n,), a fraction."""
        members = self.members(codes)
        return members[0] if len(members) == 1 else np.asarray(members.mean(axis=0))

    def with_error(self, codes: Codes, level: float = LEVEL) -> tuple[Values, Values]:
        """Predicted top-1 (n,) and half-widths (n,), as `Predictor.with_error`."""
        return self.predictor.error_of(self.members(codes), level)

    def outside(self, codes: Codes) -> npt.NDArray[np.bool_]:
        """Which networks (n,) lie outside the fitted cloud."""
        cloud = self.predictor.cloud
        return np.zeros(len(codes), dtype=bool) if cloud is None else cloud.leverage(self.features(codes)) > cloud.limit


def _gene_columns(part: Part, start: int, space: Space) -> list[tuple[int, Codes]]:
    """The genes that hold what a part of the resolution, the widths or the stem reads, and the feature of each of their codes.

    Raises MismatchError where the space has no such choices.
    """
    name = "d" if part.field == "stem" else part.field
    readers = sorted((gene.reads[1], index) for index, gene in enumerate(space.genes) if gene.reads[0] == name)[: part.columns]
    if len(readers) < part.columns or (part.field == "stem" and not space.widths):
        raise MismatchError(f"a predictor for {space.name} must read what its networks have, but this reads {SPELLED[part.field]}")
    found = []
    for column, index in readers:
        values = np.array(space.genes[index].choices)
        values = (values > 0).astype(np.int64) if part.field == "stem" else values
        found.append((index, _columns(part, start, np.full(len(values), column), values)))
    return found


def _columns(part: Part, start: int, column: Codes, values: Numbers) -> Codes:
    """The feature of each value in its column of a part that begins at `start`; -1, the last, for the 0 of a skipped block.

    Raises MismatchError for a value that is no choice.
    """
    if len(column) and column.max() >= part.columns:
        raise MismatchError(f"{part.field} must hold {part.columns} values for this predictor, but the space has {column.max() + 1} blocks")
    match = values[:, None] == np.array(part.choices)[None]
    known = match.any(axis=1) | ((values == 0) & (0 not in part.choices))
    if not known.all():
        choices = ", ".join(f"{choice:g}" for choice in part.choices)
        raise MismatchError(
            f"{SPELLED[part.field]} must be one of {choices} for this predictor, but the space has {values[~known][0]}; narrow it"
        )
    return np.where(match.any(axis=1), start + column * len(part.choices) + match.argmax(axis=1), -1)
