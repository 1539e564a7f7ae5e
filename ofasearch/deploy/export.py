"""Blueprint and weights to ONNX nodes: one builder for whole networks and for the single blocks of a latency table.

Batch norms are folded into the convolutions. The graph takes `input`, float32 (N, 3, H, W), and gives `logits`
(N, classes), or for part of a network whatever its last layer gives. N is free unless a batch is asked for. A graph with its
preprocessing inside takes pixels as decoders give them: uint8 (N, H, W, 3).
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, get_args

import numpy as np
import numpy.typing as npt
import onnx
from onnx import TensorProto, helper, numpy_helper

from ofasearch.data import Preprocessing
from ofasearch.errors import ArchError, UsageError, VerificationError
from ofasearch.latency.machine import BATCH_LIMIT
from ofasearch.space.core import Act, Blueprint, Kind, LayerSpec
from ofasearch.supernet.weights import BN_PARTS, Array, array_shapes, layer_key

OPSET = 17
OPSETS = range(7, 27)  # below, ONNX Runtime has no arithmetic that broadcasts; above, it runs none yet
IR_LEAST = 4  # from which on weights need not be inputs as well
TOLERANCE = 1e-4  # largest difference of a logit between the torch network and its ONNX file, where logits are at most 1
_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,99}")  # as C90, which ONNX asks for; inner names hold a point or a colon, so none is equal


@dataclass(frozen=True, slots=True, kw_only=True)
class OnnxForm:
    """How a network is written as an ONNX file; none of it changes what is computed.

    The batch is free unless one is given. With `pixels` the graph takes uint8 (N, H, W, 3) and does that preprocessing itself.
    Raises UsageError for an opset that is not built, a batch that is none, or names that ONNX does not allow.
    """

    opset: int = OPSET
    batch: int | None = None
    input_name: str = "input"
    output_name: str = "logits"
    pixels: Preprocessing | None = None

    def __post_init__(self) -> None:
        if self.opset not in OPSETS:
            raise UsageError(f"--opset must be {OPSETS[0]} to {OPSETS[-1]}, but got {self.opset}")
        if self.batch is not None and not 1 <= self.batch <= BATCH_LIMIT:
            raise UsageError(f"--batch must be 1..{BATCH_LIMIT}, but got {self.batch}; leave it out for any batch")
        for option, name in (("--input-name", self.input_name), ("--output-name", self.output_name)):
            if not _NAME.fullmatch(name):
                raise UsageError(f"{option} must be letters, digits and underscores, the first no digit, but got '{name[:80]}'")
        if self.input_name == self.output_name:
            raise UsageError(f"--input-name and --output-name must differ, but both are '{self.input_name}'")

    @property
    def ir_version(self) -> int:
        """What the opset came with; older runtimes read that too."""
        return max(IR_LEAST, int(helper.find_min_ir_version_for([helper.make_opsetid("", self.opset)])))


def build_onnx(
    blueprint: Blueprint,
    weights: Mapping[str, Array],
    *,
    form: OnnxForm | None = None,
    batch: int | None = None,
    metadata: Mapping[str, str] | None = None,
    compact: bool = False,
) -> bytes:
    """The ONNX file of a network or of a part of one; `weights` are keyed `<slot>.<part>` as `slice_network` gives them.

    `batch` alone is short for a form. A `compact` file holds arrays of one value (`constant_weights`) as a value and a shape; the
    runtime makes them when it loads the file. Raises ArchError for a layer kind that has no nodes.
    """
    form = form or OnnxForm(batch=batch)
    graph = _Graph(weights, compact=compact, opset=form.opset)
    first, last = blueprint[0], blueprint[-1]
    value = graph.pixels(form.input_name, form.pixels) if form.pixels is not None else form.input_name
    for index, spec in enumerate(blueprint):
        value = graph.layer(layer_key(spec, index), spec, value)
    graph.nodes[-1].output[0] = form.output_name
    n, size = form.batch if form.batch is not None else "N", first.hw_in
    kind, shape_in = TensorProto.FLOAT, [n, first.c_in, size, size]
    if form.pixels is not None:
        kind, shape_in = TensorProto.UINT8, [n, size, size, 3]
    shape_out = [n, last.c_out] if last.kind == "linear" else [n, last.c_out, last.hw_out, last.hw_out]
    model = helper.make_model(
        helper.make_graph(
            graph.nodes,
            "ofasearch",
            [helper.make_tensor_value_info(form.input_name, kind, shape_in)],
            [helper.make_tensor_value_info(form.output_name, TensorProto.FLOAT, shape_out)],
            graph.initializers,
        ),
        producer_name="ofasearch",
        opset_imports=[helper.make_opsetid("", form.opset)],
        ir_version=form.ir_version,
    )
    helper.set_model_props(model, dict(metadata or {}))
    onnx.checker.check_model(model)
    return bytes(model.SerializeToString())


class _Graph:
    """Collects nodes and initializers; every method takes the name of its input value and returns that of its output."""

    def __init__(self, weights: Mapping[str, Array], *, compact: bool = False, opset: int = OPSET):
        self._weights, self._compact, self._opset = weights, compact, opset
        self.nodes: list[onnx.NodeProto] = []
        self.initializers: list[onnx.TensorProto] = []

    def pixels(self, x: str, preprocessing: Preprocessing) -> str:
        """uint8 (N, H, W, 3) to what the first layer takes, (N, 3, H, W): scaled, minus mean, over std."""
        mean, std = (np.array(values).reshape(1, 3, 1, 1) for values in (preprocessing.mean, preprocessing.std))
        scale, shift = (preprocessing.scale / std).astype(np.float32), (-mean / std).astype(np.float32)
        y = self._node("Cast", "pixels.float", [x], to=TensorProto.FLOAT)
        y = self._node("Transpose", "pixels.nchw", [y], perm=[0, 3, 1, 2])
        y = self._node("Mul", "pixels.scaled", [y, self._constant("pixels.scale", scale)])
        return self._node("Add", "pixels.normalised", [y, self._constant("pixels.shift", shift)])

    def layer(self, key: str, spec: LayerSpec, x: str) -> str:
        if spec.kind == "conv":
            y = self._conv_norm(key, spec, x, act=spec.act, stride=spec.stride, norm=spec.norm)
            return self._node("Add", f"{key}.add", [x, y]) if spec.skip else y
        if spec.kind == "mbconv":
            return self._mbconv(key, spec, x)
        if spec.kind == "bottleneck":
            return self._bottleneck(key, spec, x)
        if spec.kind == "maxpool":
            pads, strides = [spec.kernel // 2] * 4, [spec.stride] * 2
            return self._node("MaxPool", key, [x], kernel_shape=[spec.kernel] * 2, strides=strides, pads=pads)
        if spec.kind == "pool":
            return self._node("GlobalAveragePool", key, [x])
        if spec.kind == "linear":
            flat = self._node("Flatten", f"{key}.flatten", [x])
            names = [self._constant(f"{key}.linear.{part}", self._weights[f"{key}.linear.{part}"]) for part in ("weight", "bias")]
            return self._node("Gemm", key, [flat, *names], transB=1)
        raise ArchError(f"layer kind must be one of {', '.join(get_args(Kind))}, but got '{spec.kind}'")

    def _mbconv(self, key: str, spec: LayerSpec, x: str) -> str:
        y = x
        if spec.c_mid != spec.c_in:
            y = self._conv_norm(f"{key}.expand", spec, y, act=spec.act)
        y = self._conv_norm(f"{key}.depth", spec, y, act=spec.act, stride=spec.stride, groups=spec.c_mid)
        if spec.c_se:
            gate = self._node("GlobalAveragePool", f"{key}.se.pool", [y])
            gate = self._node("Relu", f"{key}.se.relu", [self._plain(f"{key}.se.reduce", gate)])
            gate = self._node("HardSigmoid", f"{key}.se.gate", [self._plain(f"{key}.se.expand", gate)], alpha=1 / 6, beta=0.5)
            y = self._node("Mul", f"{key}.se", [y, gate])
        y = self._conv_norm(f"{key}.project", spec, y)
        return self._node("Add", f"{key}.add", [x, y]) if spec.skip else y

    def _bottleneck(self, key: str, spec: LayerSpec, x: str) -> str:
        y = self._conv_norm(f"{key}.conv1", spec, x, act=spec.act)
        y = self._conv_norm(f"{key}.conv2", spec, y, act=spec.act, stride=spec.stride)
        y = self._conv_norm(f"{key}.conv3", spec, y)
        if spec.stride > 1:
            sizes: dict[str, Any] = {"kernel_shape": [spec.stride] * 2, "strides": [spec.stride] * 2}
            odd = -spec.hw_in % spec.stride  # pixels missing at the ends; what is not there does not count
            sizes |= {"ceil_mode": 1} if self._opset >= 10 else {"pads": [0, 0, odd, odd]}
            x = self._node("AveragePool", f"{key}.pool", [x], **sizes)
        if not spec.skip:
            x = self._conv_norm(f"{key}.down", spec, x)
        return self._activation(key, spec.act, self._node("Add", f"{key}.add", [y, x]))

    def _conv_norm(
        self, key: str, spec: LayerSpec, x: str, *, act: Act = "none", stride: int = 1, groups: int = 1, norm: bool = True
    ) -> str:
        filters = self._weights[f"{key}.conv.weight"]
        kernel = filters.shape[-1]
        inputs = [x]
        if norm:
            gamma, beta, mean, var = (self._weights[f"{key}.bn.{part}"] for part in BN_PARTS)
            filters, bias = fold_norm(filters, gamma, beta, mean, var, spec.eps)
            inputs += [self._constant(f"{key}.weight", filters), self._constant(f"{key}.bias", bias)]
        else:
            inputs += [self._constant(f"{key}.weight", filters)]
        pads, size = [kernel // 2] * 4, [kernel, kernel]
        y = self._node("Conv", f"{key}.conv", inputs, kernel_shape=size, strides=[stride, stride], pads=pads, group=groups)
        return self._activation(key, act, y)

    def _activation(self, key: str, act: Act, x: str) -> str:
        if act == "none":
            return x
        if act == "relu6" and self._opset < 11:  # limits became inputs
            return self._node("Clip", f"{key}.act", [x], min=0.0, max=6.0)
        if act == "relu6":
            limits = [self._constant(f"{key}.{name}", np.array(value, dtype=np.float32)) for name, value in (("low", 0.0), ("high", 6.0))]
            return self._node("Clip", f"{key}.act", [x, *limits])
        if act == "h_swish" and self._opset < 14:  # which brought HardSwish
            gate = self._node("HardSigmoid", f"{key}.act.gate", [x], alpha=1 / 6, beta=0.5)
            return self._node("Mul", f"{key}.act", [x, gate])
        return self._node({"relu": "Relu", "h_swish": "HardSwish"}[act], f"{key}.act", [x])

    def _plain(self, key: str, x: str) -> str:
        parts = [self._constant(f"{key}.{part}", self._weights[f"{key}.{part}"]) for part in ("weight", "bias")]
        return self._node("Conv", key, [x, *parts], kernel_shape=[1, 1])

    def _node(self, op: str, name: str, inputs: list[str], **attributes: Any) -> str:
        output = f"{name}:out"
        self.nodes.append(helper.make_node(op, inputs, [output], name=name, **attributes))
        return output

    def _constant(self, name: str, array: Array) -> str:
        if self._compact and array.size > 1 and (array == array.flat[0]).all():
            value = numpy_helper.from_array(array.reshape(-1)[:1].astype(np.float32))
            self.nodes.append(helper.make_node("ConstantOfShape", [self._shape(array.shape)], [name], name=name, value=value))
        else:
            self._initializer(name, np.ascontiguousarray(array, dtype=np.float32))
        return name

    def _shape(self, shape: tuple[int, ...]) -> str:
        """A shape as the input of a node; nodes share equal ones."""
        name = "shape:" + "x".join(map(str, shape))
        if all(known.name != name for known in self.initializers):
            self._initializer(name, np.array(shape, dtype=np.int64))
        return name

    def _initializer(self, name: str, array: npt.NDArray[Any]) -> None:
        self.initializers.append(numpy_helper.from_array(array, name))


def fold_norm(filters: Array, gamma: Array, beta: Array, mean: Array, var: Array, eps: float) -> tuple[Array, Array]:
    """Filters (out, in, k, k) and bias (out,) of the convolution that equals convolution + batch norm."""
    scale = gamma.astype(np.float64) / np.sqrt(var.astype(np.float64) + eps)
    folded = filters * scale[:, None, None, None]
    with np.errstate(over="ignore"):  # what overflows does not pass `verify`
        return folded.astype(np.float32), (beta - mean * scale).astype(np.float32)


def random_weights(blueprint: Blueprint, rng: np.random.Generator) -> dict[str, Array]:
    """Weights of plausible size for a network or block that is only timed; no latency here depends on their values."""
    weights: dict[str, Array] = {}
    for index, spec in enumerate(blueprint):
        for name, shape in array_shapes(spec).items():
            fan_in = int(np.prod(shape[1:])) if len(shape) > 1 else 1
            array = rng.normal(0, fan_in**-0.5, shape) if len(shape) > 1 else np.zeros(shape)
            weights[f"{layer_key(spec, index)}.{name}"] = (array + (name.endswith(("bn.weight", "running_var")))).astype(np.float32)
    return weights


def constant_weights(blueprint: Blueprint) -> dict[str, Array]:
    """Weights for a network that is only timed, every array of one value: `build_onnx(..., compact=True)` makes a tiny file.

    Filters average their inputs, and biases lift them, so that activations neither vanish nor explode (subnormal numbers
    would be slow). No two filters have the same value: runtimes keep equal constants once, and layers that share their
    weights find them in the caches.
    """
    weights: dict[str, Array] = {}
    for index, spec in enumerate(blueprint):
        for name, shape in array_shapes(spec).items():
            apart = 1 + len(weights) / 4096  # exact in float32, and a few per cent at most
            if name.endswith(("bn.weight", "running_var", "running_mean")):
                value = 0.0 if name.endswith("mean") else 1.0
            else:
                value = (0.5 if len(shape) == 1 else 1 / np.prod(shape[1:])) * apart
            weights[f"{layer_key(spec, index)}.{name}"] = np.full(shape, value, dtype=np.float32)
    return weights


Run = Callable[[npt.NDArray[Any]], npt.NDArray[np.float32]]  # images of whatever kind, n of them -> logits (n, classes)


def verify(exported: Run, original: Run, inputs: npt.NDArray[Any], tolerance: float = TOLERANCE) -> float:
    """Largest absolute difference of the logits of both on the same inputs.

    Raises VerificationError when it exceeds the tolerance or is not a number.
    """
    with np.errstate(invalid="ignore"):  # infinity minus infinity is refused below, not warned of
        difference = float(np.abs(exported(inputs) - original(inputs)).max())
    if not difference <= tolerance:
        raise VerificationError(
            f"the ONNX file must give the network's logits within {tolerance:g}, but they differ by {difference:g}; "
            "recalibrate the subnet's batch norm on more images, or report the arch id"
        )
    return difference
