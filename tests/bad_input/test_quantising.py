"""Odd and damaged ONNX files that are to be quantised: refused in one sentence, with what was there before left as it was."""

import numpy as np
import onnx
import pytest
from damage import FATAL, flip
from onnx import helper, numpy_helper
from test_contents import GRAPHS, graph

COMMAND = "quantize subnet.onnx -o former.onnx --data images.parquet --no-bench --json"
WEIGHT = numpy_helper.from_array(np.ones((768, 3), dtype=np.float32), "w")
LAYER = [helper.make_node("Flatten", ["x"], ["f"]), helper.make_node("Gemm", ["f", "w"], ["y"])]
LAYERS = {
    "one": {"nodes": LAYER},
    "nothing but zeros": {"tensor": np.zeros((768, 3))},
    "no numbers": {"tensor": np.full((768, 3), np.nan)},
    "huge numbers": {"tensor": np.full((768, 3), 3e38)},
    "a layer that nobody uses": {"nodes": [*LAYER, helper.make_node("Gemm", ["f", "w"], ["z"])]},
    "weights that are computed": {
        "nodes": [LAYER[0], helper.make_node("Neg", ["w"], ["v"]), helper.make_node("Gemm", ["f", "v"], ["y"])],
    },
    "fixed batch of a thousand": {"shape": (1000, 3, 16, 16), "out": (1000, 3)},
}


def test_an_undamaged_file_is_quantised(refuses):
    assert refuses(COMMAND, codes=(0,)) is None


@pytest.mark.parametrize("case", GRAPHS)
def test_an_odd_graph_is_not_quantised(refuses, desk, case):
    (desk.parent / "weights.bin").write_bytes(bytes(12))
    graph(desk / "subnet.onnx", **GRAPHS[case])
    refuses(COMMAND)


@pytest.mark.parametrize("case", LAYERS)
def test_an_odd_layer_is_quantised_or_refused(refuses, desk, case):
    change = dict(LAYERS[case])
    tensor = numpy_helper.from_array(change.pop("tensor").astype(np.float32), "w") if "tensor" in change else WEIGHT
    graph(desk / "subnet.onnx", **{"nodes": LAYER, "tensors": [tensor], **change})
    refuses(COMMAND, codes=(0,) if case == "one" else (0, 1))


@pytest.mark.parametrize("damage", FATAL)
def test_a_broken_file_is_not_quantised(refuses, desk, damage):
    FATAL[damage](desk / "subnet.onnx")
    refuses(COMMAND)


@pytest.mark.parametrize("seed", range(4))
def test_a_flipped_bit_is_refused_or_harmless(refuses, desk, seed):
    flip(seed)(desk / "subnet.onnx")
    refuses(COMMAND, codes=(0, 1))


def test_a_file_of_an_old_opset_is_refused(refuses, desk):
    model = onnx.load(desk / "subnet.onnx")
    model.opset_import[0].version = 12
    for node in model.graph.node:
        if node.op_type == "HardSwish":
            node.op_type = "Relu"
    onnx.save(model, desk / "subnet.onnx")
    assert "must be of opset 13 or later" in refuses(COMMAND)
