"""Blueprints as once-for-all's `net.config`: what its `build_from_config` reads for MobileNetV3."""

from __future__ import annotations

from typing import Any

from ofasearch.errors import ArchError
from ofasearch.space.core import Act, Blueprint, LayerSpec

_ACTS: dict[Act, str | None] = {"none": None, "relu": "relu", "relu6": "relu6", "h_swish": "h_swish"}


def net_config(blueprint: Blueprint) -> dict[str, Any]:
    """The network as once-for-all's `net.config`.

    Raises ArchError when the blueprint is not of the MobileNetV3 form (stem, blocks, expand, pool, feature, classifier).
    """
    kinds = [spec.kind for spec in blueprint]
    if kinds[0] != "conv" or kinds[-4:] != ["conv", "pool", "conv", "linear"] or set(kinds[1:-4]) != {"mbconv"}:
        raise ArchError("net.config can hold networks of the MobileNetV3 form, but this one has other layers")
    stem, *blocks, expand, _, feature, classifier = blueprint
    return {
        "name": "MobileNetV3",
        "bn": {"momentum": 0.1, "eps": stem.eps},
        "first_conv": _conv(stem),
        "blocks": [_block(spec) for spec in blocks],
        "final_expand_layer": _conv(expand),
        "feature_mix_layer": _conv(feature),
        "classifier": {
            "name": "LinearLayer",
            "in_features": classifier.c_in,
            "out_features": classifier.c_out,
            "bias": classifier.bias,
            "use_bn": False,
            "act_func": None,
            "dropout_rate": 0,
            "ops_order": "weight_bn_act",
        },
    }


def run_config(resolution: int) -> dict[str, Any]:
    """The `run.config` beside a `net.config`: the input size."""
    return {"image_size": resolution}


def _conv(spec: LayerSpec) -> dict[str, Any]:
    return {
        "name": "ConvLayer",
        "kernel_size": spec.kernel,
        "stride": spec.stride,
        "dilation": 1,
        "groups": 1,
        "bias": spec.bias,
        "has_shuffle": False,
        "in_channels": spec.c_in,
        "out_channels": spec.c_out,
        "use_bn": spec.norm,
        "act_func": _ACTS[spec.act],
        "dropout_rate": 0,
        "ops_order": "weight_bn_act",
    }


def _block(spec: LayerSpec) -> dict[str, Any]:
    expanded = spec.c_mid != spec.c_in
    shortcut = {
        "name": "IdentityLayer",
        "in_channels": [spec.c_in],
        "out_channels": [spec.c_in],
        "use_bn": False,
        "act_func": None,
        "dropout_rate": 0,
        "ops_order": "weight_bn_act",
    }
    return {
        "name": "ResidualBlock",
        "conv": {
            "name": "MBConvLayer",
            "in_channels": spec.c_in,
            "out_channels": spec.c_out,
            "kernel_size": spec.kernel,
            "stride": spec.stride,
            "expand_ratio": round(spec.c_mid / spec.c_in, 4) if expanded else 1,
            "mid_channels": spec.c_mid if expanded else None,
            "act_func": _ACTS[spec.act],
            "use_se": spec.c_se > 0,
        },
        "shortcut": shortcut if spec.skip else None,
    }
