"""Blueprints as once-for-all's `net.config`, as its current `build_from_config` reads it: MobileNetV3, ProxylessNAS and ResNet networks."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from ofasearch.errors import ArchError, FormatError
from ofasearch.space.core import Blueprint, LayerSpec
from ofasearch.space.static import ACTS, blueprint_of

_LETTERS = {"conv": "c", "mbconv": "m", "bottleneck": "b", "maxpool": "x", "pool": "p", "linear": "l"}
_ORDERS = {"MobileNetV3": "cm+cpcl", "ProxylessNASNets": "cm+cpl", "ResNets": "c+xb+pl"}
FORMS = "MobileNetV3, ProxylessNAS and ResNet networks as once-for-all builds them"


def net_config(blueprint: Blueprint) -> dict[str, Any]:
    """The network as once-for-all's `net.config`.

    Raises ArchError when it is not of the MobileNetV3 form (stem, blocks, expand, pool, feature, classifier), the
    ProxylessNAS form (stem, blocks, feature, pool, classifier) or the ResNet form (stem, maximum pool, blocks, pool,
    classifier), or when a layer is one that once-for-all would build otherwise: what is written reads back as it was.
    """
    letters = "".join(_LETTERS[spec.kind] for spec in blueprint)
    name = next((name for name, order in _ORDERS.items() if re.fullmatch(order, letters)), None)
    if name is None:
        raise ArchError(
            f"net.config can hold {FORMS}, but the layers of this one come in another order (a ResNet's stem ends with a maximum pool)"
        )
    config = {"name": name, "bn": {"momentum": 0.1, "eps": blueprint[0].eps}, **_WRITERS[name](blueprint)}
    wanted = [replace(spec, slot="") for spec in blueprint]
    try:
        found = blueprint_of(config, blueprint[0].hw_in)
    except FormatError as error:
        raise ArchError(f"net.config can hold {FORMS}, but of this one {error}") from error
    odd = next((number for number, (a, b) in enumerate(zip(found, wanted, strict=True)) if a != b), None)
    if odd is not None:
        raise ArchError(f"net.config can hold {FORMS}, but layer {odd} of this one would be built otherwise")
    return config


def run_config(resolution: int) -> dict[str, Any]:
    """The `run.config` beside a `net.config`: the input size."""
    return {"image_size": resolution}


def _mobile(blueprint: Blueprint) -> dict[str, Any]:
    late = blueprint[-2].kind == "conv"  # whether the features are mixed after the pool
    return {
        "first_conv": _conv(blueprint[0]),
        "blocks": [_residual(_mbconv(spec), spec) for spec in blueprint if spec.kind == "mbconv"],
        **({"final_expand_layer": _conv(blueprint[-4])} if late else {}),
        "feature_mix_layer": _conv(blueprint[-2] if late else blueprint[-3]),
        "classifier": _linear(blueprint[-1]),
    }


def _resnet(blueprint: Blueprint) -> dict[str, Any]:
    stem = [spec for spec in blueprint if spec.kind == "conv"]
    return {
        "input_stem": [_residual(_conv(spec), spec) if spec.skip else _conv(spec) for spec in stem],
        "blocks": [_bottleneck(spec) for spec in blueprint if spec.kind == "bottleneck"],
        "classifier": _linear(blueprint[-1]),
    }


_WRITERS: dict[str, Callable[[Blueprint], dict[str, Any]]] = {"MobileNetV3": _mobile, "ProxylessNASNets": _mobile, "ResNets": _resnet}


def _linear(spec: LayerSpec) -> dict[str, Any]:
    return {
        "name": "LinearLayer",
        "in_features": spec.c_in,
        "out_features": spec.c_out,
        "bias": spec.bias,
        "use_bn": False,
        "act_func": None,
        "dropout_rate": 0,
        "ops_order": "weight_bn_act",
    }


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
        "act_func": ACTS[spec.act],
        "dropout_rate": 0,
        "ops_order": "weight_bn_act",
    }


def _residual(conv: dict[str, Any], spec: LayerSpec) -> dict[str, Any]:
    """A layer with its input added, where it has a skip."""
    shortcut = {
        "name": "IdentityLayer",
        "in_channels": [spec.c_in],
        "out_channels": [spec.c_in],
        "use_bn": False,
        "act_func": None,
        "dropout_rate": 0,
        "ops_order": "weight_bn_act",
    }
    return {"name": "ResidualBlock", "conv": conv, "shortcut": shortcut if spec.skip else None}


def _mbconv(spec: LayerSpec) -> dict[str, Any]:
    expanded = spec.c_mid != spec.c_in
    return {
        "name": "MBConvLayer",
        "in_channels": spec.c_in,
        "out_channels": spec.c_out,
        "kernel_size": spec.kernel,
        "stride": spec.stride,
        "expand_ratio": round(spec.c_mid / spec.c_in, 4) if expanded else 1,
        "mid_channels": spec.c_mid if expanded else None,
        "act_func": ACTS[spec.act],
        "use_se": spec.c_se > 0,
    }


def _bottleneck(spec: LayerSpec) -> dict[str, Any]:
    return {
        "name": "ResNetBottleneckBlock",
        "in_channels": spec.c_in,
        "out_channels": spec.c_out,
        "kernel_size": spec.kernel,
        "stride": spec.stride,
        "expand_ratio": round(spec.c_mid / spec.c_out, 4),
        "mid_channels": spec.c_mid,
        "act_func": ACTS[spec.act],
        "groups": 1,
        "downsample_mode": "avgpool_conv",
    }
