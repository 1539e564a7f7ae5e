"""What every predictor from a file must keep to, ours or not."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from ofasearch.errors import FormatError
from ofasearch.predictor.encode import Matrix
from ofasearch.predictor.model import Predictor

VALUE_LIMIT = 10_000  # of a choice or a number of columns; larger ones are no network
CHOICE_LIMIT = 1_000  # that one part of an encoder tells apart
MEMBERS_LIMIT = 1_000  # of an ensemble
FINITE = 1e30  # what no feature of any layer may reach


def checked(path: Path, predictor: Predictor) -> Predictor:
    """The predictor, if it can be trusted to give finite numbers for every network that it can encode.

    Raises FormatError.
    """
    numbers = [*predictor.weights, *predictor.biases, np.array(predictor.offset)]
    cloud, certainty = predictor.cloud, predictor.certainty
    numbers += [cloud.precision, np.array(cloud.limit)] if cloud is not None else []
    numbers += [np.array([certainty.floor, *certainty.multiples, *certainty.multiples.values()])] if certainty is not None else []
    if not all(np.isfinite(array).all() for array in numbers):
        raise FormatError(f"{path} must hold finite numbers, but has NaN or infinity")
    parts = predictor.encoder.parts
    values = [c for part in parts for c in (*part.choices, part.columns)]
    if not (values and min(values) >= 0 and max(values) <= VALUE_LIMIT and predictor.encoder.resolutions and abs(predictor.offset) <= 1):
        raise FormatError(
            f"{path} must encode values of 0..{VALUE_LIMIT}, the resolution among them, and have an offset of at most 1, but it does not"
        )
    once = len({part.field for part in parts}) == len(parts)
    if not (once and all(part.columns and 0 < len(part.choices) == len(set(part.choices)) <= CHOICE_LIMIT for part in parts)):
        raise FormatError(f"{path} must encode 1..{CHOICE_LIMIT} choices in every part, each of them and each part once, but it does not")
    if any(array.dtype != np.float32 for array in (*predictor.weights, *predictor.biases)):
        raise FormatError(f"{path} must hold float32 layers, but holds others")
    _check_layers(path, predictor.encoder.dims, predictor.weights, predictor.biases)
    if cloud is not None and cloud.precision.shape != (predictor.encoder.dims,) * 2:
        raise FormatError(f"{path} must know its cloud by {predictor.encoder.dims} features, but holds {cloud.precision.shape}")
    if certainty is not None and not (certainty.floor >= 0 and min([*certainty.multiples.values(), 0.0]) >= 0):
        raise FormatError(f"{path} must hold error bars of at least 0, but one is negative")
    return predictor


def _check_layers(path: Path, width: int, weights: tuple[Matrix, ...], biases: tuple[Matrix, ...]) -> None:
    """Raise FormatError unless the layers fit together and no prediction can overflow."""
    members = len(weights[0]) if weights and weights[0].ndim == 3 else 0
    largest = 1.0  # a one-hot code lies in 0..1
    for weight, bias in zip(weights, biases, strict=True):
        if (
            weight.ndim != 3
            or weight.shape[:2] != (members, width)
            or bias.shape != (members, weight.shape[2])
            or not 0 < members <= MEMBERS_LIMIT
        ):
            raise FormatError(f"{path} must hold layers that fit together, but one of shape {weight.shape} follows {width} features")
        reach = np.abs(weight).sum(axis=1, dtype=np.float64).max(initial=0)
        width, largest = weight.shape[2], largest * float(reach) + float(np.abs(bias).max(initial=0))
        if not largest < FINITE:
            raise FormatError(f"{path} must hold weights that keep predictions finite, but its predictions could reach {largest:.3g}")
    if width != 1:
        raise FormatError(f"{path} must end in one output, but ends in {width}")
