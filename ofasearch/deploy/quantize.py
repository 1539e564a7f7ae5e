"""ONNX files in int8: what in them is sensitive, and ONNX Runtime's own static quantisation of the rest. No torch.

The result holds quantise-dequantise pairs (QDQ): activations are unsigned, weights signed, one scale per tensor or one per output
channel. Ranges of activations come from calibration images. What is sensitive is found by the graph, not by names, so that
files of other tools are understood as well:

| part | its nodes |
| --- | --- |
| ends | the first convolution with what comes before it, and the last layer with weights |
| gates | squeeze-excite: from the pooling of a tensor to the product of its gate with that tensor |
| activations | swish in parts: from a tensor through elementwise functions to a product with that tensor |
"""

from __future__ import annotations

import contextlib
import inspect
import io
import logging
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt
import onnx
from onnx import helper, numpy_helper

from ofasearch.errors import FormatError

Part = Literal["ends", "gates", "activations"]
Method = Literal["minmax", "entropy", "percentile"]
Inputs = npt.NDArray[np.float32]  # (B, 3, H, W)
PARTS: tuple[Part, ...] = get_args(Part)
METHODS: tuple[Method, ...] = get_args(Method)

LEAST_OPSET = 13  # of ONNX, from which a scale per channel can be written
WEIGHTED = ("Conv", "ConvTranspose", "Gemm", "MatMul")
POOLS = ("GlobalAveragePool", "ReduceMean", "AveragePool")
ELEMENTWISE = ("HardSigmoid", "Sigmoid", "Clip", "Add", "Div", "Mul", "Relu")  # that gates and swishes are made of
CONSTANTS = ("Constant", "ConstantOfShape")
QUANTISED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear")
QUANTISED_STARTS = ("QLinear", "QGemm", "ConvInteger", "MatMulInteger", "DynamicQuantize")
LONGEST_GATE = 24  # nodes between a tensor and its gate; a network with more has another shape


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How a network is quantised.

    `floating` are the parts that stay in float. `reduce_range` gives weights 7 bits, for processors whose int8 products
    saturate (x86 without VNNI).
    """

    per_channel: bool = True
    floating: tuple[Part, ...] = ()
    method: Method = "minmax"
    reduce_range: bool = False

    @property
    def words(self) -> str:
        """For people."""
        return f"per {'channel' if self.per_channel else 'tensor'}" + (f", {' and '.join(self.floating)} in float" if self.floating else "")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counts:
    """What of a file is quantised: nodes with weights in all and in int8, and QuantizeLinear nodes."""

    weighted: int
    int8: int
    quantise_nodes: int


# -- reading ---------------------------------------------------------------------------------------------------


def read_graph(path: Path) -> bytes:
    """An ONNX file with all its weights inside, ready to be quantised: named nodes, batch norms folded.

    Raises FormatError for what cannot be quantised: an old opset, a file that is quantised already or has no layers, and what is no
    ONNX file or lacks its weights.
    """
    try:
        model = onnx.load(path)
        return prepared(model.SerializeToString(), str(path))
    except FormatError:
        raise
    except Exception as error:  # protobuf and onnx have kinds of their own
        raise FormatError(f"{path} must be an ONNX file with its weights, but cannot be read: {_first_line(error)}") from error


def prepared(content: bytes, name: str = "the ONNX file") -> bytes:
    """`read_graph` of a file in memory. Raises FormatError."""
    model = onnx.load_from_string(content)
    _check(model, name)
    if any(node.op_type == "BatchNormalization" for node in model.graph.node):
        model = _folded(model)
    taken: set[str] = set()
    for index, node in enumerate(model.graph.node):  # recipes exclude nodes by name
        if not node.name or node.name in taken:
            node.name = f"{node.op_type}#{index}"
        taken.add(node.name)
    return bytes(model.SerializeToString())


def _check(model: onnx.ModelProto, name: str) -> None:
    kinds = {node.op_type for node in model.graph.node}
    strange = sorted(kind for kind in kinds if kind in QUANTISED or kind.startswith(QUANTISED_STARTS))
    if strange:
        raise FormatError(f"{name} must be a float32 network to be quantised, but is quantised already (it has {strange[0]} nodes)")
    opset = next((o.version for o in model.opset_import if o.domain in ("", "ai.onnx")), 0)
    if opset < LEAST_OPSET:
        raise FormatError(f"{name} must be of opset {LEAST_OPSET} or later to be quantised, but is of opset {opset}; export it anew")
    if not kinds & set(WEIGHTED):
        raise FormatError(f"{name} must have convolutions or matrix products to be quantised, but has none")
    floats = (numpy_helper.to_array(t) for t in model.graph.initializer if t.data_type == onnx.TensorProto.FLOAT)
    if not all(np.isfinite(array).all() for array in floats):
        raise FormatError(f"{name} must have finite weights to be quantised, but has infinities or NaN")


def _folded(model: onnx.ModelProto) -> onnx.ModelProto:
    """The model after ONNX Runtime's own preparation, which folds batch norms into convolutions."""
    from onnxruntime.quantization.shape_inference import quant_pre_process

    with tempfile.TemporaryDirectory() as folder, _silent():
        before, after = Path(folder) / "before.onnx", Path(folder) / "after.onnx"
        onnx.save(model, before)
        quant_pre_process(str(before), str(after), skip_symbolic_shape=True)
        found = onnx.load(after)
    domains = {node.domain for node in found.graph.node} | {""}
    kept = [opset for opset in found.opset_import if opset.domain in domains]
    del found.opset_import[:]
    found.opset_import.extend(kept)
    return found


# -- what is sensitive -----------------------------------------------------------------------------------------


def sensitive_parts(content: bytes) -> dict[Part, tuple[str, ...]]:
    """The nodes of each part that a prepared file has and that ONNX Runtime would quantise otherwise."""
    graph, known = _graph_of(content), _quantised_kinds()
    found = {"ends": _ends(graph), "gates": _products(graph, POOLS), "activations": _products(graph, ())}
    named = {part: [node for node in graph.nodes if node.name in found[part]] for part in PARTS}
    return {part: tuple(n.name for n in nodes) for part, nodes in named.items() if any(n.op_type in known for n in nodes)}


def leaves_some(content: bytes, floating: Iterable[Part]) -> bool:
    """Whether layers with weights remain to be quantised when these parts stay in float."""
    parts = sensitive_parts(content)
    kept = {name for part in floating for name in parts.get(part, ())}
    return any(node.op_type in WEIGHTED and node.name not in kept for node in _graph_of(content).nodes)


def _quantised_kinds() -> set[str]:
    from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry

    return {*QDQRegistry, *QLinearOpsRegistry}


@dataclass(frozen=True, slots=True)
class _Graph:
    """The nodes of a file that compute something from its input, and which of them makes which value."""

    nodes: tuple[onnx.NodeProto, ...]
    makers: Mapping[str, onnx.NodeProto]
    constants: frozenset[str]

    def inputs(self, node: onnx.NodeProto) -> list[str]:
        """What a node takes besides constants."""
        return [name for name in node.input if name and name not in self.constants]


def _graph_of(content: bytes) -> _Graph:
    graph = onnx.load_from_string(content).graph
    nodes = tuple(node for node in graph.node if node.op_type not in CONSTANTS)
    made = {output for node in graph.node if node.op_type in CONSTANTS for output in node.output}
    return _Graph(nodes, {output: node for node in nodes for output in node.output}, frozenset(made | {t.name for t in graph.initializer}))


def _ends(graph: _Graph) -> set[str]:
    """The first layer with weights and whatever it is computed from, and the last one with the bias that is added to it."""
    weighted = [node for node in graph.nodes if node.op_type in WEIGHTED]
    found, left = {weighted[-1].name}, [weighted[0]]
    while left:
        node = left.pop()
        found.add(node.name)
        left += [graph.makers[name] for name in graph.inputs(node) if name in graph.makers]
    return found | {node.name for node in graph.nodes if node.op_type == "Add" and graph.inputs(node) == [weighted[-1].output[0]]}


def _products(graph: _Graph, pools: tuple[str, ...]) -> set[str]:
    """The nodes of all products of a tensor with a function of itself: of its pooled value, or without pools elementwise."""
    found: set[str] = set()
    for node in graph.nodes:
        values = graph.inputs(node) if node.op_type == "Mul" else []
        for source, gate in zip(values, values[::-1], strict=True) if len(values) == 2 else ():
            path = _between(graph, source, gate, pools)
            found |= {node.name, *path} if path else set()
    return found


def _between(graph: _Graph, source: str, gate: str, pools: tuple[str, ...]) -> set[str]:
    """The nodes that compute `gate` from `source` alone, through one of `pools` where there are such; none where it is made otherwise."""
    found, left = set[str](), [gate]
    while left:
        value = left.pop()
        if value == source and not pools:
            continue
        node = graph.makers.get(value)  # none for the input of the network
        if node is None or value == source or len(found) > LONGEST_GATE or not (pools or node.op_type in ELEMENTWISE):
            return set()
        found.add(node.name)
        if not (node.op_type in pools and node.input[0] == source):
            left += graph.inputs(node)
    return found


# -- quantising ------------------------------------------------------------------------------------------------


def quantise(content: bytes, batches: Callable[[], Iterable[Inputs]], recipe: Recipe, *, ranges: Path | None = None) -> bytes:
    """A prepared ONNX file in int8, its ranges taken from the inputs; the same for the same inputs.

    `batches` are read once. `ranges` is a file in which the ranges of these images are kept for further recipes of the same method,
    where this ONNX Runtime can. The file's metadata are not carried over. Raises FormatError where ONNX Runtime cannot quantise it,
    or finds nothing to.
    """
    from onnxruntime.quantization import CalibrationMethod, QuantFormat, QuantType, quantize_static

    parts = sensitive_parts(content) if recipe.floating else {}
    methods = {"minmax": CalibrationMethod.MinMax, "entropy": CalibrationMethod.Entropy, "percentile": CalibrationMethod.Percentile}
    options: dict[str, Any] = {"activation_type": QuantType.QUInt8, "weight_type": QuantType.QInt8, "quant_format": QuantFormat.QDQ}
    options |= {"per_channel": recipe.per_channel, "reduce_range": recipe.reduce_range, "calibrate_method": methods[recipe.method]}
    options |= {"nodes_to_exclude": [name for part in recipe.floating for name in parts.get(part, ())]}
    options |= {"op_types_to_quantize": sorted(_quantised_kinds())}
    options |= {"extra_options": {"CalibPercentile": 99.99}} if recipe.method == "percentile" else {}
    if ranges is not None and "calibration_cache_path" in inspect.signature(quantize_static).parameters:
        options["calibration_cache_path"] = ranges
    model = onnx.load_from_string(content)
    with tempfile.TemporaryDirectory() as folder, _silent():
        before, after = Path(folder) / "fp32.onnx", Path(folder) / "int8.onnx"
        before.write_bytes(content)
        try:
            quantize_static(before, after, _reader(model.graph.input[0].name, iter(batches())), **options)
        except FormatError:
            raise
        except Exception as error:  # it raises many kinds for graphs that it does not understand
            raise FormatError(f"the ONNX file must be one that ONNX Runtime can quantise, but is not: {_first_line(error)}") from error
        found = after.read_bytes()
    if counted(found).int8 == 0:
        raise FormatError("the ONNX file must have layers that ONNX Runtime can quantise, but none of them became int8")
    return found


def _reader(name: str, batches: Iterator[Inputs]) -> Any:
    """Calibration inputs as ONNX Runtime reads them."""
    from onnxruntime.quantization import CalibrationDataReader

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def get_next(self) -> dict[str, Inputs] | None:
            inputs = next(batches, None)
            return None if inputs is None else {name: np.ascontiguousarray(inputs)}

    return Reader()


@contextlib.contextmanager
def _silent() -> Iterator[None]:
    """Without the advice, the progress and the warnings of the quantiser: what matters of them shows in what it gives."""
    silenced = logging.root.manager.disable
    logging.disable(logging.CRITICAL)
    try:
        with contextlib.redirect_stdout(io.StringIO()), warnings.catch_warnings(action="ignore"):
            yield
    finally:
        logging.disable(silenced)


def counted(content: bytes) -> Counts:
    """How much of a file is int8."""
    graph = onnx.load_from_string(content).graph
    whole = {t.name for t in graph.initializer if t.data_type in (onnx.TensorProto.INT8, onnx.TensorProto.UINT8)}
    small = {node.output[0] for node in graph.node if node.op_type == "DequantizeLinear" and node.input[0] in whole}
    weighted = [node for node in graph.node if node.op_type in WEIGHTED]
    kinds = Counter(node.op_type for node in graph.node)
    int8 = sum(bool(small & set(node.input)) for node in weighted)
    return Counts(weighted=len(weighted), int8=int8, quantise_nodes=kinds["QuantizeLinear"])


def with_metadata(content: bytes, metadata: Mapping[str, str]) -> bytes:
    """The file with these metadata and no others."""
    model = onnx.load_from_string(content)
    del model.metadata_props[:]
    helper.set_model_props(model, dict(metadata))
    return bytes(model.SerializeToString())


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]
