"""What an ONNX file says of itself, ours or another tool's: read without running it, and without the files that it may point to."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

from ofasearch.errors import FormatError, NotFoundError
from ofasearch.jobs.deliver import FORMAT
from ofasearch.records import parse_json

FILE_LIMIT = 2**31  # bytes; protobuf holds no more
NODE_LIMIT = 1_000_000
WORD_LIMIT = 200  # characters of a name that is told
QUANTISED = ("QuantizeLinear", "DequantizeLinear", "QLinearConv", "QLinearMatMul", "ConvInteger", "MatMulInteger")


def read_model(path: Path) -> Any:
    """The parsed file, an `onnx.ModelProto`.

    Raises NotFoundError, FormatError.
    """
    if not path.is_file():
        raise NotFoundError(f"{path} must be an existing ONNX file, but there is none")
    if path.stat().st_size >= FILE_LIMIT:
        raise FormatError(f"{path} must be an ONNX file of less than 2 GiB, but is larger")
    return parse_model(path.read_bytes(), str(path))


def parse_model(content: bytes, name: str) -> Any:
    """The parsed bytes of a file, an `onnx.ModelProto`. Raises FormatError."""
    import onnx

    try:
        model = onnx.ModelProto.FromString(content)
    except Exception as error:  # protobuf has kinds of its own
        raise FormatError(f"{name} must be an ONNX file, but it cannot be read: it is cut off, damaged or of another kind") from error
    if not model.HasField("graph") or not model.graph.output:
        raise FormatError(f"{name} must be an ONNX file, but holds no graph")
    return model


def about_model(model: Any, name: str) -> dict[str, Any]:
    """All that a parsed file says: what it takes and gives, opset, operators, size, and the metadata.

    The entries of our own metadata stand beside the rest, another tool's under `metadata`. Raises FormatError.
    """
    try:
        props = {_word(entry.key): _value(entry.value) for entry in model.metadata_props}
        ours = props.get("format") == FORMAT
        told = {key: value for key, value in props.items() if key != "format"} if ours else {"metadata": props} if props else {}
        return told | _about_graph(model) | {"made_by": "ofasearch" if ours else _producer(model)}
    except (UnicodeDecodeError, ValueError, RecursionError) as error:
        raise FormatError(f"{name} must be an ONNX file, but it is damaged: {error}") from error


def _about_graph(model: Any) -> dict[str, Any]:
    graph = model.graph
    constants = {tensor.name for tensor in graph.initializer}  # before IR version 4 these are inputs as well
    inputs = [_about_tensor(given) for given in graph.input if given.name not in constants]
    outputs = [_about_tensor(given) for given in graph.output]
    operators = Counter(_word(node.op_type) for node in _nodes(model))
    tensors = [
        *graph.initializer,
        *(t for node in _nodes(model) for a in node.attribute for t in ([a.t] if a.HasField("t") else a.tensors)),
    ]
    elsewhere = sorted({_word(e.value) for t in tensors for e in t.external_data if e.key == "location"})
    opsets = {_word(imported.domain): imported.version for imported in model.opset_import}
    others = {domain: version for domain, version in opsets.items() if domain not in ("", "ai.onnx")}
    return {
        **({"input": inputs[0]} if len(inputs) == 1 else {"inputs": inputs}),
        **({"output": outputs[0]} if len(outputs) == 1 else {"outputs": outputs}),
        "opset": opsets.get("", opsets.get("ai.onnx", 0)),
        **({"other_opsets": others} if others else {}),
        "ir_version": model.ir_version,
        "operators": dict(operators.most_common()),
        "weights": sum(math.prod(t.dims) for t in tensors if all(size >= 0 for size in t.dims)),
        "quantised": any(operator in operators for operator in QUANTISED),
        **({"external_data": elsewhere} if elsewhere else {}),
    }


def _about_tensor(given: Any) -> dict[str, Any]:
    """Name, type and shape of an input or output; a free axis is told by its name."""
    import onnx

    kind = given.type.tensor_type
    try:
        dtype = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    except ValueError:
        dtype = f"type {kind.elem_type}"
    if not given.type.HasField("tensor_type"):
        return {"name": _word(given.name), "dtype": "no tensor"}
    if not kind.HasField("shape"):
        return {"name": _word(given.name), "dtype": DTYPES.get(dtype, dtype)}
    shape = [axis.dim_value if axis.HasField("dim_value") else _word(axis.dim_param) or "?" for axis in kind.shape.dim]
    return {"name": _word(given.name), "shape": shape, "dtype": DTYPES.get(dtype, dtype)}


DTYPES = {"float": "float32", "double": "float64"}  # as numpy calls them; the others are called alike


def _nodes(model: Any) -> Iterator[Any]:
    """All nodes, those of branches and functions too."""
    waiting: list[Iterable[Any]] = [model.graph.node, *(function.node for function in model.functions)]
    seen = 0
    while waiting:
        for node in waiting.pop():
            seen += 1
            if seen > NODE_LIMIT:
                raise ValueError(f"it has more than {NODE_LIMIT:,} nodes")
            yield node
            waiting += [inner.node for a in node.attribute for inner in ([a.g] if a.HasField("g") else a.graphs)]


def _producer(model: Any) -> str:
    return f"{_word(model.producer_name)} {_word(model.producer_version)}".strip() or "unknown"


def _word(text: str) -> str:
    return text if len(text) <= WORD_LIMIT else f"{text[:WORD_LIMIT]} ..."


def _value(text: str) -> Any:
    """An entry of the metadata: JSON where it is such."""
    try:
        return parse_json(text)
    except ValueError:
        return text
