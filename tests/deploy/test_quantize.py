"""int8: sensitive parts are found by the graph, ONNX Runtime quantises the rest, and the same inputs give the same bytes."""

import logging
import os
import subprocess
import sys
import tempfile

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from ofasearch.deploy.export import build_onnx, random_weights
from ofasearch.deploy.quantize import Recipe, counted, leaves_some, prepared, quantise, read_graph, sensitive_parts, with_metadata
from ofasearch.errors import FormatError
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.space.core import LayerSpec
from ofasearch.space.families import get_space

RECIPES = [Recipe(), Recipe(per_channel=False), Recipe(floating=("ends",)), Recipe(floating=("gates",)), Recipe(reduce_range=True)]


def inputs(n=4, size=8, seed=0):
    return np.random.default_rng(seed).normal(size=(n, 3, size, size)).astype(np.float32)


@pytest.fixture(scope="module")
def ours(tiny_space):
    """The largest network of the tiny space: convolutions, squeeze-excite, ReLU and HardSwish."""
    blueprint = tiny_space.blueprint(tiny_space.largest())
    return prepared(build_onnx(blueprint, random_weights(blueprint, np.random.default_rng(0))))


class Builder:
    """Networks as other tools write them: any names or none, activations in parts."""

    def __init__(self, named=True):
        self.nodes, self.constants, self.named, self.rng = [], [], named, np.random.default_rng(1)

    def constant(self, *shape, value=None):
        name = f"c{len(self.constants)}"
        array = self.rng.normal(size=shape) / 2 if value is None else np.array(value)
        self.constants.append(numpy_helper.from_array(array.astype(np.float32), name))
        return name

    def node(self, op, *values, **attributes):
        out = f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, values, [out], name=f"n{len(self.nodes)}" if self.named else "", **attributes))
        return out

    def conv(self, x, c_in, c_out, kernel=1):
        weight = self.constant(c_out, c_in, kernel, kernel)
        return self.node("Conv", x, weight, self.constant(c_out), kernel_shape=[kernel] * 2, pads=[kernel // 2] * 4)

    def head(self, x, channels):
        flat = self.node("Flatten", self.node("GlobalAveragePool", x))
        return self.node("Gemm", flat, self.constant(channels, 3), self.constant(3))

    def content(self, opset=17, **more):
        self.nodes[-1].output[0] = "out"
        graph = helper.make_graph(
            self.nodes,
            "foreign",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
            [helper.make_tensor_value_info("out", TensorProto.FLOAT, ["N", 3])],
            self.constants,
        )
        return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8, **more).SerializeToString()


def mobile(opset=17, named=True):
    """Stem, swish in parts, a gate of Sigmoid, relu6 as Clip, classifier."""
    net = Builder(named)
    x = net.conv("x", 3, 8, 3)
    six = net.node("Clip", net.node("Add", x, net.constant(value=3.0)), net.constant(value=0.0), net.constant(value=6.0))
    x = net.node("Div", net.node("Mul", x, six), net.constant(value=6.0))
    gate = net.node("Relu", net.conv(net.node("GlobalAveragePool", x), 8, 4))
    x = net.node("Mul", net.node("Sigmoid", net.conv(gate, 4, 8)), x)
    x = net.node("Clip", net.conv(x, 8, 8), net.constant(value=0.0), net.constant(value=6.0))
    net.head(x, 8)
    return net.content(opset)


def residual():
    """A ResNet's parts: max pooling, batch norms, additions."""
    net = Builder(named=False)

    def conv_norm(x, c_in, c_out):
        plain = net.conv(x, c_in, c_out, 3)
        return net.node(
            "BatchNormalization", plain, *(net.constant(c_out, value=v) for v in ([1.5] * c_out, [0.1] * c_out, [0.2] * c_out, [2] * c_out))
        )

    x = net.node("MaxPool", net.node("Relu", conv_norm("x", 3, 8)), kernel_shape=[2, 2], strides=[2, 2])
    x = net.node("Relu", net.node("Add", conv_norm(net.node("Relu", conv_norm(x, 8, 8)), 8, 8), x))
    net.head(x, 8)
    return net.content()


def kinds(content, names):
    return [node.op_type for node in onnx.load_from_string(content).graph.node if node.name in names]


# -- what is sensitive -----------------------------------------------------------------------------------------


def test_gates_and_ends_of_our_networks_are_found(ours):
    parts = sensitive_parts(ours)
    assert set(parts) == {"ends", "gates"}  # HardSwish is one node, which ONNX Runtime leaves in float by itself
    assert kinds(ours, parts["ends"]) == ["Conv", "Gemm"]
    assert {name.split(".se")[0] for name in parts["gates"]} == {"s2.b1", "s2.b2"}
    assert kinds(ours, parts["gates"]) == ["GlobalAveragePool", "Conv", "Relu", "Conv", "HardSigmoid", "Mul"] * 2


@pytest.mark.parametrize("named", [True, False])
def test_parts_of_foreign_files_are_found_by_their_graph(named):
    content = prepared(mobile(named=named))
    parts = sensitive_parts(content)
    assert kinds(content, parts["ends"]) == ["Conv", "Gemm"]
    assert kinds(content, parts["gates"]) == ["GlobalAveragePool", "Conv", "Relu", "Conv", "Sigmoid", "Mul"]
    assert kinds(content, parts["activations"]) == ["Add", "Clip", "Mul"]


def test_a_residual_network_has_ends_alone():
    content = prepared(residual())
    assert "BatchNormalization" not in {node.op_type for node in onnx.load_from_string(content).graph.node}
    assert set(sensitive_parts(content)) == {"ends"}


def test_preprocessing_before_the_first_layer_is_one_of_the_ends():
    net = Builder()
    net.head(net.conv(net.node("Mul", net.node("Sub", "x", net.constant(value=0.5)), net.constant(value=2.0)), 3, 8, 3), 8)
    content = prepared(net.content())
    assert kinds(content, sensitive_parts(content)["ends"]) == ["Sub", "Mul", "Conv", "Gemm"]


def test_products_of_two_branches_are_no_gates():
    net = Builder()
    x = net.conv("x", 3, 8, 3)
    other = net.node("Sigmoid", net.node("GlobalAveragePool", net.conv("x", 3, 8, 3)))
    net.head(net.node("Mul", net.node("Mul", x, other), net.node("Relu", net.conv("x", 3, 8, 3))), 8)
    assert set(sensitive_parts(prepared(net.content()))) == {"ends"}


def test_nodes_get_names_of_their_own():
    model = onnx.load_from_string(mobile(named=False))
    model.graph.node[0].name = model.graph.node[1].name = "same"
    names = [node.name for node in onnx.load_from_string(prepared(model.SerializeToString())).graph.node]
    assert all(names)
    assert len(set(names)) == len(names)


# -- quantising ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda r: r.words)
def test_a_quantised_network_is_smaller_and_computes_about_the_same(ours, recipe):
    x = inputs(16)
    content = quantise(ours, lambda: [x], recipe)
    parts = sensitive_parts(ours)
    floating = sum(kind in ("Conv", "Gemm") for part in recipe.floating for kind in kinds(ours, parts[part]))
    counts = counted(content)
    assert (counts.int8, counts.weighted) == (counts.weighted - floating, counted(ours).weighted)
    assert counts.quantise_nodes > counts.int8
    assert counted(ours).int8 == counted(ours).quantise_nodes == 0
    exact, rough = OnnxModel(ours)(x), OnnxModel(content)(x)
    assert 0 < np.abs(exact - rough).max() < 0.3 * np.abs(exact).max()


@pytest.mark.parametrize("build", [mobile, residual])
def test_foreign_networks_are_quantised(build):
    content, x = prepared(build()), inputs(16)
    for recipe in (Recipe(), Recipe(floating=tuple(sensitive_parts(content)))):
        found = quantise(content, lambda: [x], recipe)
        exact, rough = OnnxModel(build())(x), OnnxModel(found)(x)
        assert 0 < np.abs(exact - rough).max() < 0.3 * np.abs(exact).max()
        assert counted(found).int8 >= 1


def test_the_kernels_that_run_are_those_of_int8(ours, tmp_path):
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "run.onnx")
    options.log_severity_level = 4
    content = quantise(ours, lambda: [inputs()], Recipe())
    ort.InferenceSession(content, options, providers=["CPUExecutionProvider"])
    run = [node.op_type for node in onnx.load(tmp_path / "run.onnx").graph.node]
    assert run.count("QLinearConv") == sum(node.op_type == "Conv" for node in onnx.load_from_string(ours).graph.node)
    assert "Conv" not in run


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_every_method_takes_ranges_from_the_inputs(ours, method):
    narrow, wide = (quantise(ours, lambda k=k: [k * inputs()], Recipe(method=method)) for k in (1, 10))
    x = 10 * inputs()
    exact = OnnxModel(ours)(x)
    assert np.abs(OnnxModel(wide)(x) - exact).max() < np.abs(OnnxModel(narrow)(x) - exact).max()


def test_the_same_inputs_give_the_same_bytes(ours, tmp_path):
    plain = [quantise(ours, lambda: [inputs(), inputs(seed=1)], recipe) for recipe in RECIPES]
    kept = [quantise(ours, lambda: [inputs(), inputs(seed=1)], recipe, ranges=tmp_path / "ranges.json") for recipe in RECIPES]
    assert plain == kept  # ranges that are kept are exact
    assert len(set(plain)) == len(RECIPES)


def test_another_order_of_hashes_gives_the_same_bytes(ours, tmp_path):
    (tmp_path / "net.onnx").write_bytes(ours)
    code = (
        "import hashlib, sys, numpy as np; from ofasearch.deploy.quantize import Recipe, quantise\n"
        "x = np.random.default_rng(0).normal(size=(4, 3, 8, 8)).astype(np.float32)\n"
        "content = open(sys.argv[1], 'rb').read()\n"
        "print(hashlib.sha256(quantise(content, lambda: [x], Recipe(floating=('gates',)))).hexdigest())"
    )
    command = [sys.executable, "-c", code, str(tmp_path / "net.onnx")]
    environment = {key: value for key, value in os.environ.items() if key != "PYTHONHASHSEED"}
    found = {subprocess.check_output(command, env=environment | {"PYTHONHASHSEED": seed}) for seed in "12"}
    assert len(found) == 1


def test_metadata_are_replaced(ours):
    content = with_metadata(quantise(ours, lambda: [inputs()], Recipe()), {"a": "1", "note": "Grüße"})
    assert OnnxModel(content).metadata == {"a": "1", "note": "Grüße"}


@pytest.mark.parametrize("level", [logging.NOTSET, logging.ERROR])
def test_quantising_leaves_logging_the_output_and_the_folder_of_temporary_files_as_they_were(ours, level, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    before = logging.root.manager.disable
    logging.disable(level)
    try:
        quantise(prepared(residual()), lambda: [inputs()], Recipe(method="entropy"))
        assert logging.root.manager.disable == level
    finally:
        logging.disable(before)
    assert list(tmp_path.iterdir()) == []
    assert capsys.readouterr() == ("", "")


# -- what is refused -------------------------------------------------------------------------------------------


def test_what_cannot_be_quantised_is_refused(ours, tmp_path):
    pool = Builder()
    pool.node("Flatten", pool.node("GlobalAveragePool", "x"))
    cases = {
        "twice": (quantise(ours, lambda: [inputs()], Recipe()), "is quantised already"),
        "old": (mobile(opset=11), "must be of opset 13 or later to be quantised, but is of opset 11"),
        "empty": (pool.content(), "must have convolutions or matrix products"),
        "cut": (ours[: len(ours) // 2], "must be an ONNX file with its weights"),
        "text": (b"not an ONNX file", "must be an ONNX file with its weights"),
    }
    for name, (content, text) in cases.items():
        path = tmp_path / f"{name}.onnx"
        path.write_bytes(content)
        with pytest.raises(FormatError, match=text) as error:
            read_graph(path)
        assert str(path) in str(error.value)


def test_weights_in_a_file_of_their_own_are_read_or_missed_in_one_sentence(tmp_path):
    model = onnx.load_from_string(mobile())
    onnx.save(model, tmp_path / "net.onnx", save_as_external_data=True, location="net.data", size_threshold=0)
    assert counted(quantise(read_graph(tmp_path / "net.onnx"), lambda: [inputs()], Recipe())).int8 == 5
    (tmp_path / "net.data").unlink()
    with pytest.raises(FormatError, match="must be an ONNX file with its weights, but cannot be read"):
        read_graph(tmp_path / "net.onnx")


def test_wrong_inputs_are_one_sentence(ours):
    with pytest.raises(FormatError, match="that ONNX Runtime can quantise, but is not"):
        quantise(ours, lambda: [inputs(size=9)], Recipe())
    with pytest.raises(FormatError, match="that ONNX Runtime can quantise, but is not"):
        quantise(ours, list, Recipe())


def test_a_single_layer_can_be_quantised():
    spec = LayerSpec(slot="", kind="linear", c_in=3, c_mid=0, c_out=5, hw_in=1)
    content = prepared(build_onnx((spec,), random_weights((spec,), np.random.default_rng(0))))
    assert counted(quantise(content, lambda: [inputs(size=1)], Recipe())).int8 == 1


def test_a_network_of_ends_alone_leaves_nothing_to_quantise(ours):
    net = Builder()
    net.head("x", 3)
    content = prepared(net.content())
    assert leaves_some(content, ())
    assert not leaves_some(content, ("ends",))
    with pytest.raises(FormatError, match="none of them became int8"):
        quantise(content, lambda: [inputs()], Recipe(floating=("ends",)))
    assert leaves_some(ours, ("ends", "gates"))


def test_weights_that_are_no_numbers_are_refused():
    model = onnx.load_from_string(mobile())
    model.graph.initializer[0].CopyFrom(numpy_helper.from_array(np.full((8, 3, 3, 3), np.nan, dtype=np.float32), "c0"))
    with pytest.raises(FormatError, match="must have finite weights to be quantised"):
        prepared(model.SerializeToString())


@pytest.mark.parametrize(("name", "size"), [("ofa-proxyless-w1.3", 32), ("ofa-resnet50", 64), ("ofa-mbv3-w1.0", 32)])
def test_every_family_becomes_int8(name, size):
    space = get_space(name).with_resolutions([size])
    blueprint = space.blueprint(space.smallest())
    content, x = prepared(build_onnx(blueprint, random_weights(blueprint, np.random.default_rng(0)))), inputs(2, size)
    found = quantise(content, lambda: [x], Recipe())
    assert counted(found).int8 == counted(found).weighted > 30
    assert len(found) < 0.35 * len(content)
    kinds_left = {node.op_type for node in onnx.load_from_string(found).graph.node}
    assert not kinds_left & {"Clip", "Relu"}  # the ranges do what they did
    exact, rough = OnnxModel(content)(x), OnnxModel(found)(x)
    assert 0 < np.abs(exact - rough).max() < 0.15 * np.abs(exact).max()
    assert ("gates" in sensitive_parts(content)) == ("mbv3" in name)
