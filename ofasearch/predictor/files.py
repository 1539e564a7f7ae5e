"""Our predictor files."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from ofasearch.errors import FormatError
from ofasearch.predictor.encode import Encoder, Matrix, Part
from ofasearch.predictor.foreign import FOREIGN_SUFFIXES, load_foreign
from ofasearch.predictor.model import ACTIVATIONS, Certainty, Cloud, Predictor
from ofasearch.predictor.valid import checked
from ofasearch.records import write_atomic
from ofasearch.space.own import named_space, space_card
from ofasearch.supernet.weights import read_safetensors

FORMAT = "ofasearch-predictor-2"


def save_predictor(path: Path, predictor: Predictor) -> None:
    """Write one safetensors file with its card, atomically."""
    arrays = {
        f"{i}.{part}": a
        for i, pair in enumerate(zip(predictor.weights, predictor.biases, strict=True))
        for part, a in zip("wb", pair, strict=True)
    }
    arrays = {name: _shortest(array) for name, array in arrays.items()}
    certainty, cloud = predictor.certainty, predictor.cloud
    if cloud is not None:
        arrays["cloud"] = cloud.precision
    card = {
        "format": FORMAT,
        "encoder": [[part.field, part.columns, list(part.choices)] for part in predictor.encoder.parts],
        "offset": predictor.offset,
        **space_card(predictor.space),
        "supernet_digest": predictor.supernet_digest,
        "activation": predictor.activation,
        "certainty": {"floor": certainty.floor, "multiples": list(certainty.multiples.items())} if certainty is not None else None,
        "cloud_limit": cloud.limit if cloud is not None else None,
        "card": predictor.card,
    }
    write_atomic(path, save({k: np.ascontiguousarray(a) for k, a in arrays.items()}, metadata={"ofasearch": json.dumps(card)}))


def _shortest(array: Matrix) -> npt.NDArray[np.floating[Any]]:
    """The same numbers in 16 bits, where none needs more."""
    with np.errstate(over="ignore"):
        half = array.astype(np.float16)
    return half if (half == array).all() else array


def load_predictor(path: Path) -> Predictor:
    """Read our predictor file, or one of once-for-all that says enough of itself (`foreign`).

    Raises NotFoundError, FormatError, UsageError (one that must be imported, because it does not).
    """
    if path.suffix in FOREIGN_SUFFIXES:
        return load_foreign(path)
    found, card = read_safetensors(path, FORMAT)
    arrays = {name: a.astype(np.float32) if a.dtype == np.float16 else a for name, a in found.items()}
    try:
        encoder = Encoder(tuple(_part(*part) for part in card["encoder"]))
        count = sum(name.endswith(".w") for name in arrays)
        weights, biases = (tuple(arrays[f"{i}.{part}"] for i in range(count)) for part in "wb")
        digest, known = card["supernet_digest"], card["certainty"]
        activation = ACTIVATIONS.keys() & {card.get("activation", "relu")}  # files from before there was a choice do not say
        certainty = (
            Certainty(float(known["floor"]), {float(level): float(multiple) for level, multiple in known["multiples"]}) if known else None
        )
        cloud = Cloud(arrays["cloud"], float(card["cloud_limit"])) if "cloud" in arrays else None
        _ = {name: float(value) for name, value in dict(card["card"].get("held_out") or {}).items()}  # told to users as numbers
        told = dict(card["card"])
        space, offset = named_space(card), float(card["offset"])
        predictor = Predictor(encoder, weights, biases, offset, space, digest, activation.pop(), certainty, cloud, told)
    except (KeyError, TypeError, ValueError, AttributeError, OverflowError) as error:
        raise FormatError(f"{path} must be a predictor of ofasearch, but its card or arrays are incomplete: {error}") from error
    return checked(path, predictor)


def _part(field: Any, columns: Any, choices: Any) -> Part:
    if field not in ("ks", "e", "r", "w", "stem"):
        raise ValueError(f"no part of an encoder is called {field!r}")
    return Part(field, int(columns), tuple(int(c) if float(c).is_integer() else float(c) for c in choices))
