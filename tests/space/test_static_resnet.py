"""net.config of ResNets: layers by hand, both ways, and what a layer here cannot say."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from ofasearch.errors import ArchError, FormatError
from ofasearch.space.families import get_space
from ofasearch.space.resnet import ResNetDesign, ResStage
from ofasearch.space.static import blueprint_of, placed_layers
from ofasearch.space.static_write import net_config

SPACE = get_space("ofa-resnet50")
OWN = Path(__file__).parents[2] / "examples" / "spaces"


def conv(c_in, c_out, kernel=3, stride=1):
    return {"name": "ConvLayer", "kernel_size": kernel, "stride": stride, "dilation": 1, "in_channels": c_in, "out_channels": c_out,
            "use_bn": True, "act_func": "relu"}  # fmt: skip


def block(c_in, c_out, stride, *, ratio=0.25, mid=None, mode="avgpool_conv"):
    return {"name": "ResNetBottleneckBlock", "in_channels": c_in, "out_channels": c_out, "kernel_size": 3, "stride": stride,
            "expand_ratio": ratio, "mid_channels": mid, "act_func": "relu", "groups": 1, "downsample_mode": mode}  # fmt: skip


@pytest.fixture
def small_config():
    """A stem with a shortcut and three blocks on 32x32 images, as once-for-all's supernets tell it: defaults are left out."""
    return {
        "name": "ResNets",
        "bn": {"momentum": 0.1, "eps": 1e-5, "ws_eps": None},
        "input_stem": [
            conv(3, 8, stride=2),
            {"name": "ResidualBlock", "conv": conv(8, 8), "shortcut": {"name": "IdentityLayer", "in_channels": 8, "out_channels": 8}},
            conv(8, 16),
        ],
        "blocks": [block(16, 40, 1), block(40, 40, 1, ratio=0.35), block(40, 64, 2, mid=20)],
        "classifier": {"name": "LinearLayer", "in_features": 64, "out_features": 5, "bias": True, "dropout_rate": 0},
    }


def test_layers_of_a_resnet_by_hand(small_config):
    first, second, third, pool, a, b, c, last, classifier = blueprint_of(small_config, 32)
    assert [spec.hw_in for spec in (first, second, third, pool, a, b, c, last)] == [32, 16, 16, 16, 8, 8, 8, 4]
    assert [spec.skip for spec in (first, second, third)] == [False, True, False]
    assert (pool.kind, pool.kernel, pool.stride, pool.c_out) == ("maxpool", 3, 2, 16)
    assert [(s.c_mid, s.stride, s.skip) for s in (a, b, c)] == [(16, 1, False), (16, 1, True), (24, 2, False)]  # 10, 14 and 20, to eights
    assert (last.kind, classifier.c_in, classifier.c_out) == ("pool", 64, 5)


def test_places_are_the_paths_of_the_config(small_config):
    places = [place for place, _ in placed_layers(small_config, 32)]
    blocks = ["blocks.0", "blocks.1", "blocks.2"]
    assert places == ["input_stem.0", "input_stem.1.conv", "input_stem.2", "", *blocks, "", "classifier"]


def test_what_is_read_is_written_and_read_back_equal(small_config):
    blueprint = blueprint_of(small_config, 32)
    written = json.loads(json.dumps(net_config(blueprint)))
    assert blueprint_of(written, 32) == blueprint
    assert [entry["name"] for entry in written["input_stem"]] == ["ConvLayer", "ResidualBlock", "ConvLayer"]
    assert [entry["mid_channels"] for entry in written["blocks"]] == [16, 16, 24]


def test_what_the_space_builds_is_written_and_read_back_equal():
    for codes in SPACE.sample(20, np.random.default_rng(0)):
        blueprint = SPACE.blueprint(codes)
        assert blueprint_of(net_config(blueprint), blueprint[0].hw_in) == tuple(replace(spec, slot="") for spec in blueprint)


def test_a_plain_stem_is_read(small_config):
    """ResNet50's own: one 7x7 convolution."""
    small_config["input_stem"] = [conv(3, 16, kernel=7, stride=2)]
    first, pool = blueprint_of(small_config, 32)[:2]
    assert (first.kernel, first.stride, pool.kind, pool.hw_in) == (7, 2, "maxpool", 16)


def test_both_kinds_of_shortcut_are_one_without_a_stride(small_config):
    expected = blueprint_of(small_config, 32)
    small_config["blocks"][0]["downsample_mode"] = "conv"
    assert blueprint_of(small_config, 32) == expected


BAD = [
    (("blocks", 2, "downsample_mode"), "conv", "downsample_mode of block 2 must be avgpool_conv"),
    (("blocks", 0, "groups"), 2, "groups of block 0"),
    (("blocks", 0, "name"), "ResidualBlock", "name of block 0 must be ResNetBottleneckBlock"),
    (("blocks", 1, "out_channels"), 48, "layer 6 must take the 48 channels"),
    (("input_stem",), [], "list of 1 to 1000 input_stem"),
    (("input_stem",), [{"name": "ResidualBlock", "conv": None, "shortcut": None}], "must hold a convolution"),
    (("input_stem", 0), {"name": "MBConvLayer"}, "name of input_stem 0"),
    (("input_stem", 1, "conv", "out_channels"), 16, "shortcut adds"),
    (("input_stem", 1, "shortcut", "use_bn"), True, "use_bn of shortcut"),
    (("input_stem", 2, "use_se"), True, "use_se of input_stem 2"),
    (("bn", "ws_eps"), 1e-5, "ws_eps of bn"),
    (("bn", "gn_channel_per_group"), 8, "gn_channel_per_group of bn"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "why"), BAD, ids=[f"{'.'.join(map(str, p))}={v}" for p, v, _ in BAD])
def test_what_a_layer_cannot_say_is_refused(small_config, path, value, why):
    target = small_config
    for key in path[:-1]:
        target = target[key]
    target[path[-1]] = value
    with pytest.raises(FormatError, match=why):
        blueprint_of(small_config, 32)


def test_an_activation_that_is_not_told_is_refused(small_config):
    del small_config["blocks"][0]["act_func"]
    with pytest.raises(FormatError, match="act_func of block 0 must be one of None, relu, relu6, h_swish, but is missing"):
        blueprint_of(small_config, 32)


def test_a_network_that_once_for_all_would_build_otherwise_is_not_written():
    alike = ResNetDesign(name="alike", stem=32, stages=(ResStage(32, 1, 1),), classes=3, resolutions=(16,), widths=(1.0,)).build()
    blueprint = alike.blueprint(alike.smallest())
    assert not next(spec for spec in blueprint if spec.kind == "bottleneck").skip  # there, a block of equal ends always is one
    with pytest.raises(ArchError, match=r"net\.config can hold .* but layer \d of this one would be built otherwise"):
        net_config(blueprint)
    odd = [replace(spec, c_mid=spec.c_mid + 1) if spec.kind == "bottleneck" else spec for spec in SPACE.blueprint(SPACE.smallest())]
    with pytest.raises(ArchError, match="would be built otherwise"):
        net_config(tuple(odd))


def test_a_resnet_without_a_maximum_pool_is_not_written():
    for space in (get_space("ofa-resnet50-cifar"), get_space(str(OWN / "small-resnet.json"))):
        with pytest.raises(ArchError, match=r"net\.config can hold .*stem ends with a maximum pool"):
            net_config(space.blueprint(space.smallest()))
