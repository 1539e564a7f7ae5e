"""Blueprints as once-for-all's `net.config` and back: its MobileNetV3 and ProxylessNAS networks.

Written is what the current once-for-all reads (`build_from_config`); read is also the spelling of its older files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ofasearch.errors import ArchError, FormatError
from ofasearch.records import read_json
from ofasearch.space.core import RESOLUTION_LIMIT, Act, Blueprint, LayerSpec
from ofasearch.space.families import make_divisible

_ACTS: dict[Act, str | None] = {"none": None, "relu": "relu", "relu6": "relu6", "h_swish": "h_swish"}
_READ_ACTS: dict[str | None, Act] = {theirs: ours for ours, theirs in _ACTS.items()}
_CONV_NAMES = {  # of a block's convolutions, new and old
    "ResidualBlock": ("conv", ("MBConvLayer", "MBInvertedConvLayer", "ZeroLayer")),
    "MobileInvertedResidualBlock": ("mobile_inverted_conv", ("MBConvLayer", "MBInvertedConvLayer", "ZeroLayer")),
}
BLOCKS_LIMIT, CHANNELS_LIMIT, KERNEL_LIMIT, STRIDE_LIMIT = 1000, 100_000, 31, 8  # far beyond any network of these families


def net_config(blueprint: Blueprint) -> dict[str, Any]:
    """The network as once-for-all's `net.config`.

    Raises ArchError when the blueprint is neither of the MobileNetV3 form (stem, blocks, expand, pool, feature, classifier)
    nor of the ProxylessNAS form (stem, blocks, feature, pool, classifier).
    """
    kinds = [spec.kind for spec in blueprint]
    wide = kinds[-4:] == ["conv", "pool", "conv", "linear"]
    tail = 4 if wide else 3
    if kinds[0] != "conv" or kinds[-3:] != (["pool", "conv", "linear"] if wide else ["conv", "pool", "linear"]):
        raise ArchError("net.config can hold networks of the MobileNetV3 and ProxylessNAS forms, but this one ends otherwise")
    if set(kinds[1:-tail]) != {"mbconv"}:
        raise ArchError("net.config can hold networks of the MobileNetV3 and ProxylessNAS forms, but this one has other blocks")
    stem, classifier = blueprint[0], blueprint[-1]
    return {
        "name": "MobileNetV3" if wide else "ProxylessNASNets",
        "bn": {"momentum": 0.1, "eps": stem.eps},
        "first_conv": _conv(stem),
        "blocks": [_block(spec) for spec in blueprint[1:-tail]],
        **({"final_expand_layer": _conv(blueprint[-4])} if wide else {}),
        "feature_mix_layer": _conv(blueprint[-2] if wide else blueprint[-3]),
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


# -- reading ---------------------------------------------------------------------------------------------------


def read_net_config(path: Path) -> Blueprint:
    """The layers of a published network: its `net.config`, with the input size of the `run.config` beside it.

    Raises NotFoundError, FormatError.
    """
    config = read_json(path)
    run = read_json(path.with_name("run.config"))
    try:
        return blueprint_of(_mapping(config, "it"), _number(_mapping(run, "run.config"), "image_size", RESOLUTION_LIMIT))
    except FormatError as error:
        raise FormatError(f"{path} must be a net.config of once-for-all with its run.config beside it, but {error}") from error


def blueprint_of(config: Mapping[str, Any], resolution: int) -> Blueprint:
    """The layers of a `net.config` at an input size in pixels. Slots are empty: the network belongs to no supernet.

    Middle channels that are not given are `round(in * expand_ratio)`, those of squeeze-excite `make_divisible(mid // 4)`,
    as once-for-all builds them; a block whose convolution is a ZeroLayer passes its input on and is left out.
    Raises FormatError, which says what of it cannot be read.
    """
    name = config.get("name")
    if name not in ("MobileNetV3", "ProxylessNASNets"):
        raise FormatError(f"name must be MobileNetV3 or ProxylessNASNets, but it says {str(name)[:80]!r}")
    eps = _mapping(config.get("bn"), "bn").get("eps")
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise FormatError(f"eps of its batch norms must be between 0 and 1, but it says {str(eps)[:80]!r}")
    blocks = config.get("blocks")
    if not isinstance(blocks, list) or not 0 < len(blocks) <= BLOCKS_LIMIT:
        raise FormatError(f"it must hold a list of 1 to {BLOCKS_LIMIT} blocks")
    layers = [_read_conv(config, "first_conv", resolution, eps)]
    for index, block in enumerate(blocks):
        layers += _read_block(_mapping(block, f"block {index}"), f"block {index}", layers[-1].hw_out, eps)
    if name == "MobileNetV3":
        layers.append(_read_conv(config, "final_expand_layer", layers[-1].hw_out, eps))
        layers.append(_pool(layers[-1]))
        layers.append(_read_conv(config, "feature_mix_layer", 1, eps))
    else:
        layers.append(_read_conv(config, "feature_mix_layer", layers[-1].hw_out, eps))
        layers.append(_pool(layers[-1]))
    layers.append(_read_classifier(config))
    _check_chain(layers)
    return tuple(layers)


def _read_conv(config: Mapping[str, Any], key: str, hw_in: int, eps: float) -> LayerSpec:
    record = _mapping(config.get(key), key)
    _expect(record, key, name=("ConvLayer",), groups=(1,), dilation=(1,), has_shuffle=(False,), ops_order=("weight_bn_act",), bias=(False,))
    norm = record.get("use_bn", True)
    if not isinstance(norm, bool):
        raise FormatError(f"use_bn of {key} must be true or false")
    spec = LayerSpec(
        slot="",
        kind="conv",
        c_in=_number(record, "in_channels", CHANNELS_LIMIT, key),
        c_mid=0,
        c_out=_number(record, "out_channels", CHANNELS_LIMIT, key),
        hw_in=hw_in,
        kernel=_kernel(record, key),
        stride=_number(record, "stride", STRIDE_LIMIT, key),
        act=_act(record, key),
        norm=norm,
    )
    return replace(spec, eps=eps) if norm else spec


def _read_block(record: Mapping[str, Any], where: str, hw_in: int, eps: float) -> list[LayerSpec]:
    """One layer, or none for a block that only passes its input on."""
    _expect(record, where, name=tuple(_CONV_NAMES))
    key, names = _CONV_NAMES[record["name"]]
    conv, shortcut = record.get(key), record.get("shortcut")
    if shortcut is not None:
        _expect(_mapping(shortcut, f"shortcut of {where}"), f"shortcut of {where}", name=("IdentityLayer", "ZeroLayer"))
    if conv is None or _mapping(conv, where).get("name") == "ZeroLayer":
        return []
    _expect(conv, where, name=names, groups=(None, 1))
    c_in, c_out = _number(conv, "in_channels", CHANNELS_LIMIT, where), _number(conv, "out_channels", CHANNELS_LIMIT, where)
    c_mid = _middle(conv, c_in, where)
    use_se = conv.get("use_se", False)
    if not isinstance(use_se, bool):
        raise FormatError(f"use_se of {where} must be true or false")
    spec = LayerSpec(
        slot="",
        kind="mbconv",
        c_in=c_in,
        c_mid=c_mid,
        c_out=c_out,
        hw_in=hw_in,
        c_se=make_divisible(c_mid // 4) if use_se else 0,
        kernel=_kernel(conv, where),
        stride=_number(conv, "stride", STRIDE_LIMIT, where),
        act=_act(conv, where),
        skip=shortcut is not None and shortcut["name"] == "IdentityLayer",
        eps=eps,
    )
    if spec.skip and (spec.stride, c_in) != (1, c_out):
        raise FormatError(f"{where} must keep the shape of what its shortcut adds, but does not")
    return [spec]


def _middle(conv: Mapping[str, Any], c_in: int, where: str) -> int:
    """Channels between the convolutions of a block; there is an expansion exactly where the ratio is not 1."""
    ratio = conv.get("expand_ratio")
    if type(ratio) not in (int, float) or not 0 < ratio <= CHANNELS_LIMIT:  # type: ignore[operator]
        raise FormatError(f"expand_ratio of {where} must be a positive number, but is {str(ratio)[:80]}")
    given = conv.get("mid_channels")
    c_mid = round(c_in * ratio) if given is None else _number(conv, "mid_channels", CHANNELS_LIMIT, where)  # type: ignore[operator]
    if (c_mid == c_in) != (ratio == 1) or not 0 < c_mid <= CHANNELS_LIMIT:
        raise FormatError(f"{where} must widen its {c_in} channels by an expand_ratio other than 1, but says {ratio} and {c_mid} channels")
    return c_mid


def _pool(before: LayerSpec) -> LayerSpec:
    return LayerSpec(slot="", kind="pool", c_in=before.c_out, c_mid=0, c_out=before.c_out, hw_in=before.hw_out, norm=False)


def _read_classifier(config: Mapping[str, Any]) -> LayerSpec:
    record = _mapping(config.get("classifier"), "classifier")
    _expect(record, "classifier", name=("LinearLayer",), use_bn=(False,), act_func=(None,), bias=(True,))
    c_in, c_out = (_number(record, key, CHANNELS_LIMIT, "classifier") for key in ("in_features", "out_features"))
    return LayerSpec(slot="", kind="linear", c_in=c_in, c_mid=0, c_out=c_out, hw_in=1, norm=False, bias=True)


def _check_chain(layers: Iterable[LayerSpec]) -> None:
    """Raise FormatError unless every layer takes the channels that the one before it gives, the first those of an image."""
    channels = 3
    for number, spec in enumerate(layers):
        if spec.c_in != channels:
            raise FormatError(f"layer {number} must take the {channels} channels that come to it, but takes {spec.c_in}")
        channels = spec.c_out


def _mapping(value: Any, where: str) -> Mapping[str, Any]:
    if not isinstance(value, dict):
        raise FormatError(f"{where} must be an object, but is {type(value).__name__}")
    return value


def _expect(record: Mapping[str, Any], where: str, **known: tuple[Any, ...]) -> None:
    """Raise FormatError unless the entries that are there have values which a LayerSpec can say; `name` must be there."""
    for key, values in known.items():
        found = record.get(key, None if key == "name" else values[0])
        if not isinstance(found, str | int | None) or found not in values:
            raise FormatError(f"{key} of {where} must be {' or '.join(map(str, values))}, but is {str(found)[:80]}")


def _number(record: Mapping[str, Any], key: str, limit: int, where: str = "run.config") -> int:
    value = record.get(key)
    if type(value) is not int or not 1 <= value <= limit:
        raise FormatError(f"{key} of {where} must be a whole number from 1 to {limit:,}, but is {str(value)[:80]}")
    return value


def _kernel(record: Mapping[str, Any], where: str) -> int:
    kernel = _number(record, "kernel_size", KERNEL_LIMIT, where)
    if kernel % 2 == 0:
        raise FormatError(f"kernel_size of {where} must be odd, but is {kernel}")
    return kernel


def _act(record: Mapping[str, Any], where: str) -> Act:
    act = record.get("act_func")
    if not isinstance(act, str | None) or act not in _READ_ACTS:
        raise FormatError(f"act_func of {where} must be one of {', '.join(map(str, _READ_ACTS))}, but is {str(act)[:80]}")
    return _READ_ACTS[act]
