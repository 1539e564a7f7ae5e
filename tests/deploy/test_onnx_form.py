"""An ONNX file in any form that it can have computes what the plain one does; what cannot be built is refused."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto

from ofasearch.data import Preprocessing
from ofasearch.deploy.export import OPSETS, OnnxForm, build_onnx, random_weights
from ofasearch.errors import UsageError
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.space.core import LayerSpec
from ofasearch.space.families import get_space

SPACE = get_space("compofa-mbv3-cifar")
BLUEPRINT = SPACE.blueprint(SPACE.smallest())
WEIGHTS = random_weights(BLUEPRINT, np.random.default_rng(0))
IMAGES = np.random.default_rng(1).integers(0, 256, (3, 32, 32, 3), dtype=np.uint8)
PREPROCESSING = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), size=32)
INPUTS = PREPROCESSING.apply(IMAGES)


@pytest.fixture(scope="module")
def plain():
    return OnnxModel(build_onnx(BLUEPRINT, WEIGHTS))(INPUTS)


def difference(form, plain, inputs=INPUTS):
    return np.abs(OnnxModel(build_onnx(BLUEPRINT, WEIGHTS, form=form))(np.ascontiguousarray(inputs)) - plain).max() / np.abs(plain).max()


@pytest.mark.parametrize("opset", OPSETS)
def test_every_opset_computes_the_same(opset, plain):
    content = build_onnx(BLUEPRINT, WEIGHTS, form=OnnxForm(opset=opset))
    model = onnx.load_from_string(content)
    onnx.checker.check_model(model, full_check=True)
    assert [entry.version for entry in model.opset_import] == [opset]
    assert ("HardSwish" in {node.op_type for node in model.graph.node}) == (opset >= 14)
    assert difference(OnnxForm(opset=opset), plain) < 1e-5


@pytest.mark.parametrize("opset", [7, 10, 11, 26])
@pytest.mark.parametrize("act", ["relu6", "h_swish"])
def test_every_opset_knows_the_activations(opset, act):
    spec = LayerSpec(slot="", kind="conv", c_in=1, c_mid=0, c_out=1, hw_in=2, act=act, norm=False)
    model = OnnxModel(build_onnx((spec,), {"layer0.conv.weight": np.ones((1, 1, 1, 1), dtype=np.float32)}, form=OnnxForm(opset=opset)))
    x = np.array([-1, 3, 6, 100], dtype=np.float32)
    expected = {"relu6": x.clip(0, 6), "h_swish": x * (x / 6 + 0.5).clip(0, 1)}[act]
    assert model(x.reshape(1, 1, 2, 2)).ravel() == pytest.approx(expected, abs=1e-6)


@pytest.mark.parametrize("space", ["ofa-resnet50", "ofa-proxyless-w1.3"])
@pytest.mark.parametrize("opset", [7, 9, 10, 26])
def test_every_family_has_every_opset(space, opset):
    """At 36 pixels stages begin with odd sizes, where a pooled shortcut has windows that are not full."""
    small = get_space(space).with_resolutions([36])
    blueprint = small.blueprint(small.smallest())
    weights, x = (
        random_weights(blueprint, np.random.default_rng(0)),
        np.random.default_rng(1).normal(size=(2, 3, 36, 36)).astype(np.float32),
    )
    usual = OnnxModel(build_onnx(blueprint, weights))(x)
    found = OnnxModel(build_onnx(blueprint, weights, form=OnnxForm(opset=opset)))(x)
    assert np.abs(found - usual).max() < 1e-5 * np.abs(usual).max()


def test_the_usual_form_is_that_of_files_written_before():
    model = onnx.load_from_string(build_onnx(BLUEPRINT, WEIGHTS))
    assert (model.ir_version, model.opset_import[0].version) == (8, 17)
    assert (model.graph.input[0].name, model.graph.output[0].name) == ("input", "logits")


@pytest.mark.parametrize(("opset", "ir_version"), [(7, 4), (9, 4), (11, 6), (15, 8), (21, 10), (26, 13)])
def test_a_file_is_no_newer_than_its_opset(opset, ir_version):
    assert OnnxForm(opset=opset).ir_version == ir_version


def test_names_are_those_asked_for(plain):
    form = OnnxForm(input_name="image", output_name="_scores_1")
    graph = onnx.load_from_string(build_onnx(BLUEPRINT, WEIGHTS, form=form)).graph
    assert ([value.name for value in graph.input], [value.name for value in graph.output]) == (["image"], ["_scores_1"])
    assert difference(form, plain) == 0


@pytest.mark.parametrize("opset", [7, 17, 26])
def test_pixels_are_normalised_in_the_graph(opset, plain):
    form = OnnxForm(opset=opset, pixels=PREPROCESSING)
    content = build_onnx(BLUEPRINT, WEIGHTS, form=form)
    given = onnx.load_from_string(content).graph.input[0].type.tensor_type
    assert given.elem_type == TensorProto.UINT8
    assert [axis.dim_param or axis.dim_value for axis in given.shape.dim] == ["N", 32, 32, 3]
    assert OnnxModel(content).dtype is np.uint8
    assert difference(form, plain, IMAGES) < 1e-5


def test_a_fixed_batch_of_pixels(plain):
    form = OnnxForm(batch=3, pixels=PREPROCESSING)
    assert OnnxModel(build_onnx(BLUEPRINT, WEIGHTS, form=form)).input_shape(7) == (3, 32, 32, 3)
    assert difference(form, plain, IMAGES) < 1e-5


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"opset": 6}, "--opset must be 7 to 26, but got 6"),
        ({"opset": 27}, "--opset must be 7 to 26, but got 27"),
        ({"batch": 0}, "--batch must be 1..4096, but got 0"),
        ({"input_name": ""}, "--input-name must be letters"),
        ({"input_name": "stem.weight"}, "--input-name must be letters"),  # an inner name
        ({"output_name": "a\nb"}, "--output-name must be letters"),
        ({"output_name": "ö"}, "--output-name must be letters"),
        ({"output_name": "input"}, "must differ, but both are 'input'"),
    ],
)
def test_a_form_that_cannot_be_is_refused(options, text):
    with pytest.raises(UsageError, match=text):
        OnnxForm(**options)
