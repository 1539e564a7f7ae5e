"""Networks that are only timed: their files are tiny, and what runs is what would run with real weights."""

import json
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest

from ofasearch.deploy.export import build_onnx, constant_weights, random_weights
from ofasearch.space.families import get_space

SPACES = ("compofa-mbv3-cifar", "ofa-mbv3-w1.0")


def network(space):
    found = get_space(space)
    return found.blueprint(found.largest())


def images(blueprint):
    first = blueprint[0]
    return np.random.default_rng(0).normal(size=(1, first.c_in, first.hw_in, first.hw_in)).astype(np.float32)


def optimised(content, blueprint, folder):
    """Kernels of one run as (name or kind, kind), and the sizes of the weights that the optimised graph holds."""
    options = ort.SessionOptions()
    options.log_severity_level = 4
    options.enable_profiling, options.profile_file_prefix = True, str(folder / "profile")
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    session = ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    session.run(None, {"input": images(blueprint)})
    profile = json.loads(Path(session.end_profiling()).read_text())
    events = [e for e in profile if e.get("cat") == "Node" and e["name"].endswith("_kernel_time")]
    kinds = ((e["name"], e["args"]["op_name"]) for e in events)
    # layout changes get a name with a number of their own, and their order is drawn anew whenever a file is loaded
    kernels = Counter(("", kind) if kind.startswith("Reorder") else (name, kind) for name, kind in kinds)
    weights = onnx.load(folder / "optimised.onnx").graph.initializer
    return kernels, sorted(int(np.prod(tensor.dims)) for tensor in weights)


@pytest.mark.parametrize("space", SPACES)
def test_a_compact_file_becomes_the_same_kernels_and_as_many_weights(space, tmp_path):
    blueprint = network(space)
    real = build_onnx(blueprint, random_weights(blueprint, np.random.default_rng(0)), batch=1)
    compact = build_onnx(blueprint, constant_weights(blueprint), batch=1, compact=True)
    assert len(compact) < 50_000 < len(real)
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    kernels, weights = optimised(compact, blueprint, tmp_path / "a")
    assert "ConstantOfShape" not in {kind for _, kind in kernels}
    assert (kernels, weights) == optimised(real, blueprint, tmp_path / "b")


@pytest.mark.parametrize("space", SPACES)
def test_activations_neither_vanish_nor_explode(space):
    blueprint = network(space)
    model = onnx.load_from_string(build_onnx(blueprint, constant_weights(blueprint), batch=1, compact=True))
    shown = [name for node in model.graph.node if node.op_type == "Conv" for name in node.output]
    del model.graph.output[:]
    model.graph.output.extend(onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in shown)
    values = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"]).run(None, {"input": images(blueprint)})
    for value in values:
        assert np.isfinite(value).all()
        assert 1e-2 < np.abs(value).mean() < 1e8


def test_only_compact_files_make_their_weights():
    blueprint = network(SPACES[0])
    ordinary = onnx.load_from_string(build_onnx(blueprint, constant_weights(blueprint), batch=1))
    assert "ConstantOfShape" not in {node.op_type for node in ordinary.graph.node}
    weights = random_weights(blueprint, np.random.default_rng(0))
    kept = onnx.load_from_string(build_onnx(blueprint, weights, batch=1, compact=True))
    made = {node.name for node in kept.graph.node if node.op_type == "ConstantOfShape"}
    assert made
    assert all(name.endswith("bias") for name in made)  # zeros of random networks; filters are as they were
