"""The one slicing rule, and the safetensors file of a supernet. No torch.

A supernet's arrays are named `<slot>.<part>`, e.g. `s3.b1.expand.conv.weight`, `s3.b1.depth.bn.running_var`. The
parts of a layer: `conv`, `bn` (kind "conv"); `expand.*`, `depth.*`, `se.reduce`, `se.expand`, `project.*` (kind
"mbconv"); `conv1.*`, `conv2.*`, `conv3.*`, `down.*` (kind "bottleneck"); `linear` (kind "linear"). Kernel transforms are
`<slot>.depth.7to5` and `.5to3`, (25, 25) and (9, 9); where they are absent, smaller kernels are plain centre crops.

`slice_layer` only indexes, reshapes and multiplies, so the same code serves numpy arrays and torch tensors.

Reference: once-for-all, section 3.3 and Appendix B (sorted channels are kept first; kernel transform matrices).
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError, safe_open
from safetensors.numpy import save

from ofasearch.data import Preprocessing
from ofasearch.errors import FormatError, MismatchError, NotFoundError
from ofasearch.records import parse_json, write_atomic
from ofasearch.space.core import Blueprint, LayerSpec, Space
from ofasearch.space.families import get_space, make_divisible
from ofasearch.space.own import named_space, space_card

A = TypeVar("A")
Array = npt.NDArray[np.float32]
BN_PARTS = ("weight", "bias", "running_mean", "running_var")
FORMAT = "ofasearch-supernet-1"
WEIGHT_LIMIT = 1e9  # products of such numbers stay finite in float32
FILE_LIMIT = 512 * 2**20  # bytes; the largest published supernet takes 200 MB
_MATRIX = re.compile(r"\.depth\.\d+to(\d+)$")


# -- slicing ---------------------------------------------------------------------------------------------------


def slice_layer(weights: Mapping[str, A], spec: LayerSpec) -> dict[str, A]:
    """The arrays of one concrete layer, named without their slot: views wherever the layer takes a prefix.

    Raises MismatchError when the supernet has no such slot or fewer channels than the layer asks for.
    """
    get = _Slot(weights, spec.slot)
    if spec.kind in ("pool", "maxpool"):
        return {}
    if spec.kind == "linear":
        return {"linear.weight": get("linear.weight", spec.c_out, spec.c_in), "linear.bias": get("linear.bias", spec.c_out)}
    if spec.kind == "conv":
        cut = {"conv.weight": get("conv.weight", spec.c_out, spec.c_in)}
        return {**cut, **get.norm("bn", spec.c_out)} if spec.norm else cut
    parts: dict[str, A] = {}
    if spec.kind == "bottleneck":
        for name, c_in, c_out in bottleneck_convs(spec):
            parts[f"{name}.conv.weight"] = get(f"{name}.conv.weight", c_out, c_in)
            parts |= get.norm(f"{name}.bn", c_out)
        return parts
    if spec.c_mid != spec.c_in:
        parts["expand.conv.weight"] = get("expand.conv.weight", spec.c_mid, spec.c_in)
        parts |= get.norm("expand.bn", spec.c_mid)
    parts["depth.conv.weight"] = get.kernel(spec)
    parts |= get.norm("depth.bn", spec.c_mid)
    if spec.c_se:
        parts["se.reduce.weight"] = get("se.reduce.weight", spec.c_se, spec.c_mid)
        parts["se.reduce.bias"] = get("se.reduce.bias", spec.c_se)
        parts["se.expand.weight"] = get("se.expand.weight", spec.c_mid, spec.c_se)
        parts["se.expand.bias"] = get("se.expand.bias", spec.c_mid)
    parts["project.conv.weight"] = get("project.conv.weight", spec.c_out, spec.c_mid)
    return parts | get.norm("project.bn", spec.c_out)


class _Slot:
    """Cuts prefixes out of one slot's arrays; the sizes asked for must be there."""

    def __init__(self, weights: Mapping[str, Any], slot: str):
        self._weights, self._slot = weights, slot

    def __call__(self, name: str, *sizes: int) -> Any:
        array = self._full(name)
        if array.ndim < len(sizes) or any(have < want for have, want in zip(array.shape, sizes, strict=False)):
            raise MismatchError(f"{self._slot}.{name} must have at least {sizes} channels for this subnet, but has {tuple(array.shape)}")
        return array[tuple(slice(size) for size in sizes)]

    def norm(self, name: str, channels: int) -> dict[str, Any]:
        return {f"{name}.{part}": self(f"{name}.{part}", channels) for part in BN_PARTS}

    def kernel(self, spec: LayerSpec) -> Any:
        """The depthwise filter (c_mid, 1, k, k): transformed step by step where matrices exist, else cropped."""
        filters = self("depth.conv.weight", spec.c_mid)
        size = filters.shape[-1]
        if size < spec.kernel:
            raise MismatchError(f"{self._slot} must hold kernels of at least {spec.kernel}, but its largest is {size}")
        while size > spec.kernel:
            smaller = size - 2
            filters = filters[:, :, 1 : 1 + smaller, 1 : 1 + smaller]
            matrix = self._weights.get(f"{self._slot}.depth.{size}to{smaller}")
            if matrix is not None:
                filters = (filters.reshape(spec.c_mid, 1, -1) @ matrix.T).reshape(spec.c_mid, 1, smaller, smaller)
            size = smaller
        return filters

    def _full(self, name: str) -> Any:
        key = f"{self._slot}.{name}"
        if key not in self._weights:
            raise MismatchError(f"the supernet must hold '{key}' for this subnet, but it has no such weights")
        return self._weights[key]


def bottleneck_convs(spec: LayerSpec) -> tuple[tuple[str, int, int], ...]:
    """The convolutions of a bottleneck in order of computation: (name, input channels, output channels)."""
    inner = (("conv1", spec.c_in, spec.c_mid), ("conv2", spec.c_mid, spec.c_mid), ("conv3", spec.c_mid, spec.c_out))
    return inner if spec.skip else (*inner, ("down", spec.c_in, spec.c_out))


def slice_network(weights: Mapping[str, A], blueprint: Blueprint) -> dict[str, A]:
    """The arrays of one network, keyed `<slot>.<part>`."""
    return {f"{spec.slot}.{name}": array for spec in blueprint for name, array in slice_layer(weights, spec).items()}


def layer_key(spec: LayerSpec, index: int) -> str:
    """The prefix of the arrays of a network's layer number `index`: its slot, or a name of its own in a static network."""
    return spec.slot or f"layer{index}"


def norm_names(spec: LayerSpec) -> tuple[tuple[str, int], ...]:
    """The batch norms of a layer in order of computation: (name inside the layer, channels)."""
    if spec.kind == "conv":
        return (("bn", spec.c_out),) if spec.norm else ()
    if spec.kind == "bottleneck":
        return tuple((f"{name}.bn", c_out) for name, _, c_out in bottleneck_convs(spec))
    if spec.kind != "mbconv":
        return ()
    expand = (("expand.bn", spec.c_mid),) if spec.c_mid != spec.c_in else ()
    return (*expand, ("depth.bn", spec.c_mid), ("project.bn", spec.c_out))


def array_shapes(spec: LayerSpec) -> dict[str, tuple[int, ...]]:
    """The arrays of one concrete layer, named as `slice_layer` names them, and their shapes."""

    def conv(prefix: str, c_in: int, c_out: int, kernel: int = 1, groups: int = 1, norm: bool = True) -> dict[str, tuple[int, ...]]:
        shapes: dict[str, tuple[int, ...]] = {f"{prefix}conv.weight": (c_out, c_in // groups, kernel, kernel)}
        if norm:
            shapes |= {f"{prefix}bn.{part}": (c_out,) for part in BN_PARTS}
        return shapes

    if spec.kind == "linear":
        return {"linear.weight": (spec.c_out, spec.c_in), "linear.bias": (spec.c_out,)}
    if spec.kind == "conv":
        return conv("", spec.c_in, spec.c_out, spec.kernel, norm=spec.norm)
    if spec.kind == "bottleneck":
        kernels = {"conv2": spec.kernel}
        parts = (conv(f"{name}.", c_in, c_out, kernels.get(name, 1)) for name, c_in, c_out in bottleneck_convs(spec))
        return {key: shape for part in parts for key, shape in part.items()}
    if spec.kind != "mbconv":
        return {}
    shapes = conv("expand.", spec.c_in, spec.c_mid) if spec.c_mid != spec.c_in else {}
    shapes |= conv("depth.", spec.c_mid, spec.c_mid, spec.kernel, spec.c_mid) | conv("project.", spec.c_mid, spec.c_out)
    if spec.c_se:
        shapes |= {"se.reduce.weight": (spec.c_se, spec.c_mid, 1, 1), "se.reduce.bias": (spec.c_se,)}
        shapes |= {"se.expand.weight": (spec.c_mid, spec.c_se, 1, 1), "se.expand.bias": (spec.c_mid,)}
    return shapes


def full_shapes(space: Space) -> dict[str, tuple[int, ...]]:
    """The arrays of the full network and their shapes, keyed `<slot>.<part>`; kernel transforms are not among them."""
    blueprint = space.blueprint(space.largest())
    return {f"{spec.slot}.{name}": shape for spec in blueprint for name, shape in array_shapes(spec).items()}


def matrix_shapes(space: Space) -> dict[str, tuple[int, int]]:
    """The kernel transforms that a space can use: one between neighbouring sizes of each slot with a choice of kernels."""
    shapes = {}
    for slot in space.slots:
        sizes = space.kernel_sizes(slot)
        for size in range(max(sizes, default=0), min(sizes, default=0), -2):
            area = (size - 2) ** 2
            shapes[f"{slot.name}.depth.{size}to{size - 2}"] = (area, area)
    return shapes


def restrict(arrays: Mapping[str, Array], space: Space) -> dict[str, Array]:
    """The part of a larger supernet's arrays that `space` needs; kernels are cut to the largest that it has.

    Raises MismatchError when an array is missing or too small.
    """
    matrices = {key: arrays[key] for key in matrix_shapes(space) if key in arrays}
    return {key: np.ascontiguousarray(a) for key, a in slice_network(arrays, space.blueprint(space.largest())).items()} | matrices


def transfer(arrays: Mapping[str, Array], source: Space, target: Space) -> dict[str, Array]:
    """The arrays of one space's supernet as a start for another's: of the same space, of a part of it, or of a larger one.

    A part's smaller kernels become the middle of larger ones, zero around them, and missing kernel transforms identities:
    every network that both spaces have computes what it computed before.

    Raises MismatchError when neither space is a part of the other.
    """
    identities = {key: np.eye(area, dtype=np.float32) for key, (area, _) in matrix_shapes(target).items()}
    if source.name == target.name:
        return identities | dict(arrays)
    if target.parent == source.name:
        return identities | restrict(arrays, target)
    if source.parent != target.name and (source.parent is None or source.parent != target.parent):
        raise MismatchError(f"weights of {target.name} must come from it, a part of it or its parent, but these are of {source.name}")
    found: dict[str, Array] = {}
    for key, shape in full_shapes(target).items():
        array = arrays[key]
        if array.shape != shape:
            border = (shape[-1] - array.shape[-1]) // 2
            if array.shape[:-2] != shape[:-2] or array.ndim != 4 or border < 0:
                raise MismatchError(f"{key} must have shape {shape} or a smaller kernel for {target.name}, but has {array.shape}")
            array = np.pad(array, ((0, 0), (0, 0), (border, border), (border, border)))
        found[key] = array
    return found | {key: arrays.get(key, identity) for key, identity in identities.items()}


def sort_channels(arrays: Mapping[str, Array], space: Space, *, kept: float | None = None) -> dict[str, Array]:
    """The same full network with the channels inside every block in descending order of importance.

    A subnet of a smaller expand ratio takes the first channels, so the most important ones come first; importance is
    the L1 norm of a channel's weights in the projection. The hidden channels of squeeze-excite are sorted alike, by
    the weights that expand them. With `kept`, an expand ratio that is already trained, channels are sorted within and
    beyond its first ones, so that subnets of that ratio keep their channels.

    Reference: once-for-all, section 3.3 (the published code subtracts 1e5 beyond the kept channels and does not keep
    the hidden channels of squeeze-excite).
    """
    found = dict(arrays)
    for spec in space.blueprint(space.largest()):
        slot = {name: found[f"{spec.slot}.{name}"] for name in array_shapes(spec)}
        if spec.kind == "mbconv" and spec.c_mid != spec.c_in:  # the first block has no channels of its own to sort
            slot = _sorted_mbconv(slot, spec, kept)
        elif spec.kind == "bottleneck":
            slot = _sorted_bottleneck(slot, make_divisible(round(spec.c_out * kept)) if kept is not None else 0)
        found |= {f"{spec.slot}.{name}": np.ascontiguousarray(array) for name, array in slot.items()}
    return found


def _sorted_mbconv(parts: Mapping[str, Array], spec: LayerSpec, kept: float | None) -> dict[str, Array]:
    boundary = make_divisible(round(spec.c_in * kept)) if kept is not None else 0
    order = _descending(np.abs(parts["project.conv.weight"]).sum(axis=(0, 2, 3)), boundary)
    norms = [f"{norm}.{value}" for norm in ("expand.bn", "depth.bn") for value in BN_PARTS]
    rows = ("expand.conv.weight", "depth.conv.weight", "se.expand.weight", "se.expand.bias", *norms)
    found = _permuted(parts, order, rows=rows, columns=("project.conv.weight", "se.reduce.weight"))
    if not spec.c_se:
        return found
    hidden = make_divisible(boundary // 4) if boundary else 0
    inner = _descending(np.abs(found["se.expand.weight"]).sum(axis=(0, 2, 3)), hidden)
    return _permuted(found, inner, rows=("se.reduce.weight", "se.reduce.bias"), columns=("se.expand.weight",))


def _sorted_bottleneck(parts: Mapping[str, Array], boundary: int) -> dict[str, Array]:
    """Between the second and the third convolution first, then between the first and the second, as it then is."""
    found = dict(parts)
    for before, after in (("conv2", "conv3"), ("conv1", "conv2")):
        order = _descending(np.abs(found[f"{after}.conv.weight"]).sum(axis=(0, 2, 3)), boundary)
        rows = (f"{before}.conv.weight", *(f"{before}.bn.{value}" for value in BN_PARTS))
        found = _permuted(found, order, rows=rows, columns=(f"{after}.conv.weight",))
    return found


def _permuted(parts: Mapping[str, Array], order: npt.NDArray[np.int64], *, rows: Iterable[str], columns: Iterable[str]) -> dict[str, Array]:
    """The arrays of a layer with output channels (`rows`) and input channels (`columns`) in another order, where they are there."""
    return {
        **parts,
        **{name: parts[name][order] for name in rows if name in parts},
        **{name: parts[name][:, order] for name in columns if name in parts},
    }


def _descending(importance: Array, boundary: int) -> npt.NDArray[np.int64]:
    """Positions by descending importance, those below `boundary` first; equal ones keep their order."""
    beyond = np.arange(len(importance)) >= boundary
    return np.lexsort((-importance, beyond)) if boundary else np.argsort(-importance, kind="stable")


def new_head(weights: Weights, classes: int, rng: np.random.Generator) -> Weights:
    """The same supernet with an untrained classifier for another number of classes (He et al.'s scale, bias zero)."""
    c_in = weights.arrays["head.classifier.linear.weight"].shape[1]
    head = {
        "head.classifier.linear.weight": rng.normal(0.0, c_in**-0.5, (classes, c_in)).astype(np.float32),
        "head.classifier.linear.bias": np.zeros(classes, dtype=np.float32),
    }
    space = get_space(weights.space.name, classes=classes).with_resolutions(weights.space.resolutions)
    training = weights.training | {"head": f"untrained, {classes} classes"}
    return replace(weights, arrays=weights.arrays | head, space=space, class_names=(), training=training)


# -- files -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Weights:
    """A supernet's arrays, the space they were trained on, and what its file says of itself."""

    arrays: dict[str, Array]
    space: Space
    preprocessing: Preprocessing
    class_names: tuple[str, ...] = ()
    training: dict[str, Any] = field(default_factory=dict)
    name: str = ""

    @property
    def digest(self) -> str:
        """sha256 over names, shapes and bytes of all arrays; statistics, scores and predictors are tied to it."""
        return digest(self.arrays)


def digest(arrays: Mapping[str, Array]) -> str:
    """sha256 (hex) of named arrays, independent of their order."""
    sha = hashlib.sha256()
    for name in sorted(arrays):
        sha.update(f"{name}{arrays[name].shape}{arrays[name].dtype}".encode())
        sha.update(np.ascontiguousarray(arrays[name]).tobytes())
    return sha.hexdigest()


def save_weights(path: Path, weights: Weights) -> None:
    """Write one safetensors file, atomically."""
    card = {
        "format": FORMAT,
        **space_card(weights.space.name),
        "classes": weights.space.classes,
        "resolutions": list(weights.space.resolutions),
        "preprocessing": weights.preprocessing.to_json(),
        "class_names": list(weights.class_names),
        "training": weights.training,
    }
    write_atomic(path, save(weights.arrays, metadata={"ofasearch": json.dumps(card)}))


def read_safetensors(path: Path, format_name: str) -> tuple[dict[str, Array], dict[str, Any]]:
    """The arrays and the JSON card of one of our safetensors files.

    Raises NotFoundError, FormatError (damaged, foreign, too large, or of another format).
    """
    if not path.is_file():
        raise NotFoundError(f"{path} must be an existing file, but there is none")
    if path.stat().st_size > FILE_LIMIT:
        raise FormatError(f"{path} must be at most {FILE_LIMIT >> 20} MiB, but is larger")
    try:
        with safe_open(path, framework="numpy") as file:
            metadata = file.metadata() or {}
            arrays = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - not a mapping
        card = parse_json(metadata.get("ofasearch", "null"))
    except (SafetensorError, OSError, ValueError, TypeError, AttributeError) as error:
        raise FormatError(f"{path} must be a safetensors file written by ofasearch, but it cannot be read: {error}") from error
    if not isinstance(card, dict) or card.get("format") != format_name:
        raise FormatError(f"{path} must be of format {format_name}, but it is a safetensors file of another kind")
    return arrays, card


def load_weights(path: Path) -> Weights:
    """Read a supernet file and check every array against the space it names.

    Raises NotFoundError, FormatError, MismatchError.
    """
    arrays, card = read_safetensors(path, FORMAT)
    try:
        space = get_space(named_space(card), classes=int(card["classes"])).with_resolutions([int(r) for r in card["resolutions"]])
        names = tuple(str(c) for c in card["class_names"])
        preprocessing, training = Preprocessing.from_json(card["preprocessing"]), dict(card["training"])
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise FormatError(f"{path} must name space, classes, resolutions and preprocessing, but its card does not: {error}") from error
    if names and len(names) != space.classes:
        raise FormatError(f"{path} must name all of its {space.classes} classes, but names {len(names)}")
    _check_shapes(arrays, space)
    check_values(path, arrays)
    return Weights(arrays, space, preprocessing, names, training, path.stem)


def check_values(path: Path, arrays: Mapping[str, Array]) -> None:
    """Raise FormatError unless all arrays of a file are float32 and finite, and no variance is negative."""
    for key, array in arrays.items():
        if array.dtype != np.float32:
            raise FormatError(f"{path} must hold float32 weights, but '{key}' is {array.dtype}")
        if not np.abs(array).max(initial=0) <= WEIGHT_LIMIT:
            raise FormatError(f"{path} must hold finite weights, but '{key}' has NaN or a number beyond {WEIGHT_LIMIT:g}")
        if key.endswith("running_var") and array.min(initial=0) < 0:
            raise FormatError(f"{path} must hold variances of at least 0, but '{key}' has a negative one")


def _check_shapes(arrays: Mapping[str, Array], space: Space) -> None:
    """Raise MismatchError unless every array of the full network is there in exactly its shape, matrices included."""
    slice_network(arrays, space.blueprint(space.largest()))  # names what is missing or too small
    for key, shape in full_shapes(space).items():
        if arrays[key].shape != shape:
            raise MismatchError(f"{key} must have shape {shape} in {space.name}, but has {arrays[key].shape}")
    for key, array in arrays.items():
        match = _MATRIX.search(key)
        if match and array.shape != (int(match[1]) ** 2,) * 2:
            raise MismatchError(f"{key} must be a square matrix of {int(match[1]) ** 2} rows, but has shape {array.shape}")
