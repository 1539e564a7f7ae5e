"""Classifiers as ONNX files, ours or anybody's: how images become their inputs, what they predict, which network they are.

Nothing that a file says of itself is believed where it can be checked. Legend: n = images, B = batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofasearch.data import IMAGENET, Preprocessing, Split
from ofasearch.deploy.export import build_onnx, constant_weights
from ofasearch.errors import FormatError, MismatchError, NotFoundError, OfaSearchError, UsageError
from ofasearch.jobs.deliver import FORMAT
from ofasearch.jobs.network import Network, claimed_network
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.records import parse_json, read_json
from ofasearch.space.core import RESOLUTION_LIMIT, Blueprint
from ofasearch.space.costs import costs
from ofasearch.space.own import named_space
from ofasearch.supernet.weights import Array

BATCH = 100  # images, where the file leaves it free
FIXED_MOST = 2**26  # numbers in the inputs of a file whose batch is fixed
THREADS = min(16, os.cpu_count() or 1)


def open_onnx(path: Path) -> tuple[OnnxModel, Preprocessing | None]:
    """The model and how it says that images are preprocessed; None where it says nothing.

    Raises NotFoundError, FormatError.
    """
    if not path.is_file():
        raise NotFoundError(f"{path} must be an existing ONNX file, but there is none")
    model = OnnxModel(path, threads=THREADS)
    if "preprocessing" not in model.metadata:
        return model, None
    try:
        return model, Preprocessing.from_json(parse_json(model.metadata["preprocessing"]))
    except (ValueError, TypeError) as error:
        raise FormatError(f"{path} must say in its metadata how images are preprocessed, but it does not: {error}") from error


def read_preprocessing(text: str) -> Preprocessing:
    """How images are preprocessed, in words of a user: `imagenet`, or a JSON object (or a file of one) as in our ONNX metadata.

    `size` may be left out where file or images tell it. Inputs of [0, 1] have mean 0 and std 1; inputs of 0 to 255, mean 0 and std
    1/255. Raises UsageError, NotFoundError, FormatError.
    """
    if text == "imagenet":
        return IMAGENET
    try:
        record = parse_json(text) if text.lstrip().startswith("{") else read_json(Path(text))
        return Preprocessing.from_json({"size": 0, **record})
    except (ValueError, TypeError) as error:
        if isinstance(error, OfaSearchError):
            raise
        raise UsageError(f"--preprocessing must be imagenet or a JSON object with mean and std, but cannot be read: {error}") from error


def input_size(name: str, model: OnnxModel, preprocessing: Preprocessing, images: Split) -> int:
    """Height = width, pixels, of the inputs that a file is to be given.

    Raises MismatchError where the file cannot take these images.
    """
    wanted = model.inputs[0].shape
    free = [not isinstance(dimension, int) for dimension in wanted]
    if len(wanted) != 4 or not (free[1] or wanted[1] == 3):
        raise MismatchError(f"{name} must take (batch, 3, height, width) to be scored, but takes {wanted}")
    size = int(wanted[2]) if not free[2] else preprocessing.size or images.pixels or 0
    if images.pixels not in (None, size) or not (free[3] or wanted[3] == size):
        raise MismatchError(f"images must fit the input {wanted} of {name}, but they have 3 channels and {images.pixels or size} pixels")
    if not 1 <= size <= RESOLUTION_LIMIT:
        raise MismatchError(f"{name} must take images of 1 to {RESOLUTION_LIMIT} pixels, but says {size}; tell the size by --preprocessing")
    if not free[0] and 3 * wanted[0] * size**2 > FIXED_MOST:
        raise MismatchError(f"{name} must take any batch, or one of at most {FIXED_MOST} numbers, to be scored, but takes {wanted}")
    return size


def predict_onnx(name: str, model: OnnxModel, preprocessing: Preprocessing, images: Split, classes: int) -> Iterator[npt.NDArray[np.int64]]:
    """Predicted class of each image (n,), batch by batch. A file of a fixed batch gets the last one filled up with zeros.

    Raises MismatchError (another input, other classes), FormatError (what comes out is not finite logits).
    """
    size, first = input_size(name, model, preprocessing, images), model.inputs[0].shape[0]
    batch = first if isinstance(first, int) else BATCH
    for x in images.inputs(preprocessing, resolution=size, batch=batch):
        filled = x if len(x) == batch else np.concatenate([x, np.zeros((batch - len(x), *x.shape[1:]), dtype=np.float32)])
        logits = model(np.ascontiguousarray(filled if isinstance(first, int) else x))
        if logits.ndim != 2 or len(logits) != (batch if isinstance(first, int) else len(x)) or not np.isfinite(logits).all():
            raise FormatError(f"{name} must give finite logits (images, classes) to be scored, but gives {logits.shape} or NaN")
        if logits.shape[1] != classes:
            raise MismatchError(f"data must have the {logits.shape[1]} classes of {name}, but has {classes}")
        yield logits[: len(x)].argmax(1)


# -- which network a file is -----------------------------------------------------------------------------------


def network_in(path: Path, model: OnnxModel) -> Network | None:
    """The network that a file of ours says it is, if its graph is the one that we build of those layers; None otherwise.

    A file that was optimised or quantised is still a classifier, but nobody can say of what.
    """
    said, size = model.metadata, model.inputs[0].shape[-1]
    if said.get("format") != FORMAT or model.classes is None or not isinstance(size, int) or not 8 <= size <= RESOLUTION_LIMIT:
        return None
    try:
        space = named_space({"space": said.get("space", ""), "design": parse_json(said.get("design", "null"))})
    except ValueError:  # a FormatError is one
        return None
    claimed = claimed_network(said.get("arch_id", ""), space, model.classes, size)
    return claimed if claimed is not None and same_graph(path, claimed.blueprint) else None


def same_graph(path: Path, blueprint: Blueprint, weights: Mapping[str, Array] | None = None) -> bool:
    """Whether an ONNX file has the nodes and the shapes of weights that we build of these layers; with `weights`, also their values."""
    import onnx

    if path.stat().st_size < 2 * costs(blueprint).params:  # bytes: half of what the weights take, so nothing large is made for a lie
        return False
    ours = onnx.load_model_from_string(build_onnx(blueprint, constant_weights(blueprint) if weights is None else weights)).graph
    try:
        theirs = onnx.load_model(path, load_external_data=False).graph
    except Exception:  # protobuf has kinds of its own; what ONNX Runtime runs it may still not read
        return False

    def constants(graph: Any) -> dict[str, Any]:
        values = {t.name: t.raw_data for t in graph.initializer} if weights is not None else {}
        return {t.name: (t.data_type, tuple(t.dims), values.get(t.name)) for t in graph.initializer}

    return list(ours.node) == list(theirs.node) and list(ours.input) == list(theirs.input) and constants(ours) == constants(theirs)
