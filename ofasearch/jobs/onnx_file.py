"""Classifiers as ONNX files, ours or anybody's: how images become their inputs, what they predict, which network they are.

Nothing that a file says of itself is believed where it can be checked. Legend: n = images, B = batch.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofasearch.data import IMAGENET, Preprocessing, Split, pixels_of
from ofasearch.deploy.export import OnnxForm, build_onnx, constant_weights
from ofasearch.errors import FormatError, MismatchError, NotFoundError, OfaSearchError, UsageError
from ofasearch.jobs.deliver import FORMAT
from ofasearch.jobs.network import Network, claimed_network
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.records import parse_json, read_json
from ofasearch.space.core import RESOLUTION_LIMIT, Blueprint
from ofasearch.space.costs import costs
from ofasearch.space.own import named_space
from ofasearch.supernet.weights import Array

UINT8 = 2  # as ONNX numbers types
BATCH = 100  # images, where the file leaves it free
FIXED_MOST = 2**26  # numbers in the inputs of a file whose batch is fixed
THREADS = min(16, os.cpu_count() or 1)


def open_onnx(path: Path) -> tuple[OnnxModel, Preprocessing | None]:
    """The model and how it says that images are preprocessed, by whom it feeds or by itself; None where it says nothing.

    Raises NotFoundError, FormatError.
    """
    if not path.is_file():
        raise NotFoundError(f"{path} must be an existing ONNX file, but there is none")
    model = OnnxModel(path, threads=THREADS)
    if "preprocessing" not in model.metadata:
        return model, None
    try:
        return model, stated(model.metadata["preprocessing"], pixels=model.dtype is np.uint8)
    except (ValueError, TypeError) as error:
        raise FormatError(f"{path} must say in its metadata how images are preprocessed, but it does not: {error}") from error


def stated(text: str, *, pixels: bool) -> Preprocessing:
    """The preprocessing in a file's metadata; that of its graph where it takes `pixels`. Raises FormatError, ValueError."""
    record = parse_json(text)
    if not pixels or not isinstance(record, Mapping):
        return Preprocessing.from_json(record)
    embedded = record.get("embedded")
    if not isinstance(embedded, Mapping):
        raise FormatError("a file that takes pixels must say what its graph does with them (`embedded`)")
    return Preprocessing.from_json({**embedded, "size": record.get("size"), "crop_pct": record.get("crop_pct", 1.0)})


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
    wanted = _channels_first(model)
    free = [not isinstance(dimension, int) for dimension in wanted]
    if len(wanted) != 4 or not (free[1] or wanted[1] == 3):
        raise MismatchError(f"{name} must take (batch, 3, height, width) to be scored, but takes {model.inputs[0].shape}")
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

    What takes uint8 gets the pixels as they are, whatever is said of means.

    Raises MismatchError (another input, other classes), FormatError (what comes out is not finite logits).
    """
    size, first = input_size(name, model, preprocessing, images), model.inputs[0].shape[0]
    batch = first if isinstance(first, int) else BATCH
    for x in inputs_for(model, preprocessing, images, size, batch):
        filled = x if len(x) == batch else np.concatenate([x, np.zeros((batch - len(x), *x.shape[1:]), dtype=x.dtype)])
        logits = model(np.ascontiguousarray(filled if isinstance(first, int) else x))
        if logits.ndim != 2 or len(logits) != (batch if isinstance(first, int) else len(x)) or not np.isfinite(logits).all():
            raise FormatError(f"{name} must give finite logits (images, classes) to be scored, but gives {logits.shape} or NaN")
        if logits.shape[1] != classes:
            raise MismatchError(f"data must have the {logits.shape[1]} classes of {name}, but has {classes}")
        yield logits[: len(x)].argmax(1)


def _takes_channels_last(model: OnnxModel) -> bool:
    """Whether a file takes (batch, height, width, 3): asked of pixels only, because that is how decoders give them."""
    shape = model.inputs[0].shape
    return model.dtype is np.uint8 and len(shape) == 4 and shape[3] == 3


def _channels_first(model: OnnxModel) -> list[Any]:
    """The shape that a file takes, in the order (batch, channels, height, width)."""
    shape = list(model.inputs[0].shape)
    return [shape[0], shape[3], shape[1], shape[2]] if _takes_channels_last(model) else shape


def inputs_for(model: OnnxModel, preprocessing: Preprocessing, images: Split, size: int, batch: int) -> Iterator[npt.NDArray[Any]]:
    """What a file is fed, at most `batch` images at a time: (B, 3, size, size), or pixels in the layout that it takes."""
    if model.dtype is not np.uint8:
        yield from images.inputs(preprocessing, resolution=size, batch=batch)
        return
    for pixels in pixels_of(images, preprocessing, resolution=size, batch=batch):
        yield pixels if _takes_channels_last(model) else pixels.transpose(0, 3, 1, 2)


# -- which network a file is -----------------------------------------------------------------------------------


def network_in(path: Path, model: OnnxModel) -> Network | None:
    """The network that a file of ours says it is, if its graph is the one that we build of those layers; None otherwise.

    A file that was optimised or quantised is still a classifier, but nobody can say of what.
    """
    said, shape = model.metadata, model.inputs[0].shape
    if said.get("format") != FORMAT or model.classes is None or len(shape) != 4 or not isinstance(shape[2], int):
        return None
    try:
        named = {"space": said.get("space", ""), "design": parse_json(said.get("design", "null"))}
    except ValueError:
        return None
    return network_named(path, said.get("arch_id", ""), named, model.classes, shape[2])


def network_named(path: Path, arch_id: str, named: Mapping[str, Any], classes: int, size: int) -> Network | None:
    """The network of that id in the space that is `named`, at its input size in pixels, if a file's graph is the one that we build."""
    try:
        space = named_space(named)
    except FormatError:
        return None
    claimed = claimed_network(arch_id, space, classes, size) if 8 <= size <= RESOLUTION_LIMIT else None
    return claimed if claimed is not None and same_graph(path, claimed.blueprint) else None


def same_graph(path: Path, blueprint: Blueprint, weights: Mapping[str, Array] | None = None) -> bool:
    """Whether an ONNX file has the nodes and the shapes of weights that we build of these layers; with `weights`, also their values.

    Opset, batch and names may be any that we build; preprocessing inside the graph must be the one that the file states.
    """
    import onnx

    if path.stat().st_size < 2 * costs(blueprint).params:  # bytes: half of what the weights take, so nothing large is made for a lie
        return False
    try:
        file = onnx.load_model(path, load_external_data=False)
        form, theirs = form_of(file), file.graph
    except Exception:  # protobuf has kinds of its own; what ONNX Runtime runs it may still not read
        return False
    arrays = constant_weights(blueprint) if weights is None else weights
    ours = onnx.load_model_from_string(build_onnx(blueprint, arrays, form=form)).graph

    def constants(graph: Any) -> dict[str, Any]:
        values = {t.name: t.raw_data for t in graph.initializer if weights is not None or t.name.startswith("pixels.")}
        return {t.name: (t.data_type, tuple(t.dims), values.get(t.name)) for t in graph.initializer}

    return list(ours.node) == list(theirs.node) and list(ours.input) == list(theirs.input) and constants(ours) == constants(theirs)


def form_of(file: Any) -> OnnxForm:
    """The form of an ONNX model that we may have built. Raises whatever a foreign one makes fail."""
    (given,), (result,) = file.graph.input, file.graph.output
    (opset,) = (imported.version for imported in file.opset_import if imported.domain in ("", "ai.onnx"))
    batch = given.type.tensor_type.shape.dim[0]
    form = OnnxForm(
        opset=opset,
        batch=batch.dim_value if batch.HasField("dim_value") else None,
        input_name=given.name,
        output_name=result.name,
    )
    if given.type.tensor_type.elem_type != UINT8:
        return form
    said = {entry.key: entry.value for entry in file.metadata_props}
    return replace(form, pixels=stated(said["preprocessing"], pixels=True))
