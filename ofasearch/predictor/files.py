"""Predictor files: ours, and those of once-for-all.

Legend: k = members of an ensemble, f = features.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save

from ofasearch.errors import FormatError
from ofasearch.predictor.encode import TUTORIAL_ENCODER, Encoder, Matrix, Part
from ofasearch.predictor.model import ACTIVATIONS, Certainty, Cloud, Predictor
from ofasearch.records import write_atomic
from ofasearch.supernet.weights import read_safetensors

FORMAT = "ofasearch-predictor-2"
TUTORIAL_SPACE = "ofa-mbv3-w1.2"  # what the published acc_predictor.pth was trained for
VALUE_LIMIT = 10_000  # of a choice or a number of columns; larger ones are no network
CHOICE_LIMIT = 1_000  # that one part of an encoder tells apart
MEMBERS_LIMIT = 1_000  # of an ensemble
FINITE = 1e30  # what no feature of any layer may reach


def save_predictor(path: Path, predictor: Predictor) -> None:
    """Write one safetensors file with its card, atomically."""
    arrays = {
        f"{i}.{part}": a
        for i, pair in enumerate(zip(predictor.weights, predictor.biases, strict=True))
        for part, a in zip("wb", pair, strict=True)
    }
    certainty, cloud = predictor.certainty, predictor.cloud
    if cloud is not None:
        arrays["cloud"] = cloud.precision
    card = {
        "format": FORMAT,
        "encoder": [[part.field, part.columns, list(part.choices)] for part in predictor.encoder.parts],
        "offset": predictor.offset,
        "space": predictor.space,
        "supernet_digest": predictor.supernet_digest,
        "activation": predictor.activation,
        "certainty": {"floor": certainty.floor, "multiples": list(certainty.multiples.items())} if certainty is not None else None,
        "cloud_limit": cloud.limit if cloud is not None else None,
        "card": predictor.card,
    }
    write_atomic(path, save({k: np.ascontiguousarray(a) for k, a in arrays.items()}, metadata={"ofasearch": json.dumps(card)}))


def load_predictor(path: Path) -> Predictor:
    """Read our predictor file, or the once-for-all tutorial's `acc_predictor.pth`.

    Raises NotFoundError, FormatError.
    """
    if path.suffix in (".pth", ".pt"):
        return _load_tutorial(path)
    arrays, card = read_safetensors(path, FORMAT)
    try:
        encoder = Encoder(tuple(_part(*part) for part in card["encoder"]))
        count = sum(name.endswith(".w") for name in arrays)
        weights, biases = (tuple(arrays[f"{i}.{part}"] for i in range(count)) for part in "wb")
        digest, known, activation = card["supernet_digest"], card["certainty"], ACTIVATIONS.keys() & {card["activation"]}
        certainty = (
            Certainty(float(known["floor"]), {float(level): float(multiple) for level, multiple in known["multiples"]}) if known else None
        )
        cloud = Cloud(arrays["cloud"], float(card["cloud_limit"])) if "cloud" in arrays else None
        _ = {name: float(value) for name, value in dict(card["card"].get("held_out") or {}).items()}  # told to users as numbers
        told = dict(card["card"])
        space, offset = str(card["space"]), float(card["offset"])
        predictor = Predictor(encoder, weights, biases, offset, space, digest, activation.pop(), certainty, cloud, told)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FormatError(f"{path} must be a predictor of ofasearch, but its card or arrays are incomplete: {error}") from error
    return _checked(path, predictor)


def _part(field: Any, columns: Any, choices: Any) -> Part:
    if field not in ("ks", "e", "r", "w", "stem"):
        raise ValueError(f"no part of an encoder is called {field!r}")
    return Part(field, int(columns), tuple(int(c) if float(c).is_integer() else float(c) for c in choices))


def _load_tutorial(path: Path) -> Predictor:
    from ofasearch.supernet.torchfile import load_plain

    what = "the once-for-all tutorial's predictor (a plain state_dict)"
    state = load_plain(path, what)
    try:
        tensors = {key: np.asarray(state[key], dtype=np.float32) for i in (0, 2, 4, 6) for key in (f"{i}.weight", f"{i}.bias")}
    except KeyError as error:
        raise FormatError(f"{path} must be {what}, but it cannot be read: it lacks {error}") from error
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise FormatError(f"{path} must be {what}, but it cannot be read: its entries are no plain tensors") from error
    weights = tuple(np.ascontiguousarray(tensors[f"{i}.weight"].T)[None] for i in (0, 2, 4, 6))
    biases = tuple(tensors[f"{i}.bias"][None] for i in (0, 2, 4, 6))
    return _checked(path, Predictor(TUTORIAL_ENCODER, weights, biases, 0.0, TUTORIAL_SPACE))


def _checked(path: Path, predictor: Predictor) -> Predictor:
    """The predictor, if it can be trusted to give finite numbers for every network that it can encode."""
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
    if not all(part.columns and 0 < len(part.choices) == len(set(part.choices)) <= CHOICE_LIMIT for part in parts):
        raise FormatError(f"{path} must encode 1..{CHOICE_LIMIT} choices in every part, each once, but it does not")
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
