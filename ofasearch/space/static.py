"""Once-for-all's `net.config` as a blueprint: its MobileNetV3, ProxylessNAS and ResNet networks, in the spelling of today and of before.

What a layer here cannot say (groups, dilation, dropped batch norms, other shortcuts) is refused, never read as something else.
`ofasearch.space.static_write` is the other way.

Reference: the public once-for-all package's `build_from_config` of `MobileNetV3`, `ProxylessNASNets` and `ResNets`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

from ofasearch.errors import FormatError
from ofasearch.records import read_json
from ofasearch.space.core import RESOLUTION_LIMIT, Act, Blueprint, LayerSpec
from ofasearch.space.costs import costs
from ofasearch.space.mobile import make_divisible

Placed = tuple[str, LayerSpec]  # a layer and where it stands in its net.config, e.g. "blocks.3.conv"; "" where nothing is said of it

ACTS: dict[Act, str | None] = {"none": None, "relu": "relu", "relu6": "relu6", "h_swish": "h_swish"}
_READ_ACTS: dict[str | None, Act] = {theirs: ours for ours, theirs in ACTS.items()}
_CONV_KEYS = {"ResidualBlock": "conv", "MobileInvertedResidualBlock": "mobile_inverted_conv"}  # of a block's layer, new and old
_MBCONVS = ("MBConvLayer", "MBInvertedConvLayer")
BLOCKS_LIMIT, CHANNELS_LIMIT, KERNEL_LIMIT, STRIDE_LIMIT = 1000, 100_000, 31, 8  # far beyond any network of these families
PARAMS_LIMIT, ACTIVATION_LIMIT = 10**9, 2**32  # the latter in bytes; so that no file of some kilobytes asks for all memory


def read_net_config(path: Path) -> Blueprint:
    """The layers of a published network: its `net.config`, with the input size of the `run.config` beside it.

    Raises NotFoundError, FormatError.
    """
    return tuple(spec for _, spec in read_placed(path))


def read_placed(path: Path) -> tuple[Placed, ...]:
    """As `read_net_config`, each layer with its place in the file.

    Raises NotFoundError, FormatError.
    """
    config = read_json(path)
    run = read_json(path.with_name("run.config"))
    try:
        return placed_layers(_mapping(config, "it"), _number(_mapping(run, "run.config"), "image_size", RESOLUTION_LIMIT))
    except FormatError as error:
        raise FormatError(f"{path} must be a net.config of once-for-all with its run.config beside it, but {error}") from error


def blueprint_of(config: Mapping[str, Any], resolution: int) -> Blueprint:
    """The layers of a `net.config` at an input size in pixels; see `placed_layers`."""
    return tuple(spec for _, spec in placed_layers(config, resolution))


def placed_layers(config: Mapping[str, Any], resolution: int) -> tuple[Placed, ...]:
    """The layers of a `net.config` with their places, at an input size in pixels. Slots are empty: the network belongs to no supernet.

    Middle channels that are not given are `round(in * expand_ratio)` (of a bottleneck `out`, and a multiple of 8), those of
    squeeze-excite `make_divisible(mid // 4)`, as once-for-all builds them; a block whose convolution is a ZeroLayer passes
    its input on and is left out. Raises FormatError, which says what of it cannot be read.
    """
    name = config.get("name")
    if not isinstance(name, str) or name not in _FORMS:
        raise FormatError(f"name must be {', '.join([*_FORMS][:-1])} or {[*_FORMS][-1]}, but it says {str(name)[:80]!r}")
    bn = _mapping(config.get("bn"), "bn")
    _expect(bn, "bn", ws_eps=(None,), gn_channel_per_group=(None,))
    eps = bn.get("eps")
    if not isinstance(eps, float) or not 0 < eps < 1:
        raise FormatError(f"eps of its batch norms must be between 0 and 1, but it says {str(eps)[:80]!r}")
    layers = _FORMS[name](config, resolution, eps)
    _check_chain(spec for _, spec in layers)
    _check_size(tuple(spec for _, spec in layers))
    return tuple(layers)


# -- forms -----------------------------------------------------------------------------------------------------


def _mobile(config: Mapping[str, Any], resolution: int, eps: float, *, late: bool) -> list[Placed]:
    """Stem, inverted bottlenecks and head; `late` where the features are mixed after the pool (MobileNetV3)."""
    layers = [("first_conv", _conv(config.get("first_conv"), "first_conv", resolution, eps))]
    for index, where, record in _records(config, "blocks"):
        layers += [(f"blocks.{index}.conv", spec) for spec in _mbconv(record, where, _left(layers), eps)]
    if late:
        layers.append(("final_expand_layer", _conv(config.get("final_expand_layer"), "final_expand_layer", _left(layers), eps)))
        layers.append(("", _pool(layers[-1][1])))
    layers.append(("feature_mix_layer", _conv(config.get("feature_mix_layer"), "feature_mix_layer", _left(layers), eps)))
    if not late:
        layers.append(("", _pool(layers[-1][1])))
    return [*layers, ("classifier", _classifier(config))]


def _resnet(config: Mapping[str, Any], resolution: int, eps: float) -> list[Placed]:
    """A stem of convolutions, a maximum pool of which the file says nothing, bottlenecks, pool and classifier."""
    layers: list[Placed] = []
    for index, where, record in _records(config, "input_stem"):
        size = _left(layers) if layers else resolution
        _expect(record, where, name=("ConvLayer", *_CONV_KEYS))
        if record["name"] == "ConvLayer":
            layers.append((f"input_stem.{index}", _conv(record, where, size, eps)))
            continue
        conv, skip = _residual(record, where)
        if conv is not None:
            layers.append((f"input_stem.{index}.conv", _checked_skip(replace(_conv(conv, where, size, eps), skip=skip), where)))
    if not layers:
        raise FormatError("its input_stem must hold a convolution")
    c = layers[-1][1].c_out
    layers.append(("", LayerSpec(slot="", kind="maxpool", c_in=c, c_mid=0, c_out=c, hw_in=_left(layers), kernel=3, stride=2, norm=False)))
    for index, where, record in _records(config, "blocks"):
        layers.append((f"blocks.{index}", _bottleneck(record, where, _left(layers), eps)))
    return [*layers, ("", _pool(layers[-1][1])), ("classifier", _classifier(config))]


_Form = Callable[[Mapping[str, Any], int, float], list[Placed]]
_FORMS: dict[str, _Form] = {
    "MobileNetV3": partial(_mobile, late=True),
    "ProxylessNASNets": partial(_mobile, late=False),
    "ResNets": _resnet,
}


def _left(layers: list[Placed]) -> int:
    """Height = width, pixels, that the last layer leaves."""
    return layers[-1][1].hw_out


def _records(config: Mapping[str, Any], key: str) -> Iterator[tuple[int, str, Mapping[str, Any]]]:
    """The entries of one of the lists, with number and name."""
    entries = config.get(key)
    if not isinstance(entries, list) or not 0 < len(entries) <= BLOCKS_LIMIT:
        raise FormatError(f"it must hold a list of 1 to {BLOCKS_LIMIT} {key}")
    for index, entry in enumerate(entries):
        where = f"{'block' if key == 'blocks' else key} {index}"
        yield index, where, _mapping(entry, where)


# -- layers ----------------------------------------------------------------------------------------------------


def _conv(entry: Any, where: str, hw_in: int, eps: float) -> LayerSpec:
    record = _mapping(entry, where)
    _expect(record, where, name=("ConvLayer",), groups=(1,), dilation=(1,), ops_order=("weight_bn_act",))
    _expect(record, where, has_shuffle=(False,), bias=(False,), use_se=(False,))
    norm = _flag(record, "use_bn", where, default=True)
    spec = LayerSpec(
        slot="",
        kind="conv",
        c_in=_number(record, "in_channels", CHANNELS_LIMIT, where),
        c_mid=0,
        c_out=_number(record, "out_channels", CHANNELS_LIMIT, where),
        hw_in=hw_in,
        kernel=_kernel(record, where),
        stride=_number(record, "stride", STRIDE_LIMIT, where),
        act=_act(record, where),
        norm=norm,
    )
    return replace(spec, eps=eps) if norm else spec


def _mbconv(record: Mapping[str, Any], where: str, hw_in: int, eps: float) -> list[LayerSpec]:
    """One layer, or none for a block that only passes its input on."""
    _expect(record, where, name=tuple(_CONV_KEYS))
    conv, skip = _residual(record, where)
    if conv is None:
        return []
    _expect(conv, where, name=_MBCONVS, groups=(None,))
    c_in, c_out = _number(conv, "in_channels", CHANNELS_LIMIT, where), _number(conv, "out_channels", CHANNELS_LIMIT, where)
    c_mid = _middle(conv, c_in, where)
    spec = LayerSpec(
        slot="",
        kind="mbconv",
        c_in=c_in,
        c_mid=c_mid,
        c_out=c_out,
        hw_in=hw_in,
        c_se=make_divisible(c_mid // 4) if _flag(conv, "use_se", where, default=False) else 0,
        kernel=_kernel(conv, where),
        stride=_number(conv, "stride", STRIDE_LIMIT, where),
        act=_act(conv, where),
        skip=skip,
        eps=eps,
    )
    return [_checked_skip(spec, where)]


def _residual(record: Mapping[str, Any], where: str) -> tuple[Mapping[str, Any] | None, bool]:
    """The convolution of a residual block, None where it is none, and whether the input is added to what it gives."""
    conv, shortcut = record.get(_CONV_KEYS[record["name"]]), record.get("shortcut")
    if shortcut is not None:
        _expect(_mapping(shortcut, f"shortcut of {where}"), f"shortcut of {where}", name=("IdentityLayer", "ZeroLayer"))
        _expect(shortcut, f"shortcut of {where}", use_bn=(False,), act_func=(None,))
    if conv is None or _mapping(conv, where).get("name") == "ZeroLayer":
        return None, False
    return conv, shortcut is not None and shortcut["name"] == "IdentityLayer"


def _checked_skip(spec: LayerSpec, where: str) -> LayerSpec:
    if spec.skip and (spec.stride, spec.c_in) != (1, spec.c_out):
        raise FormatError(f"{where} must keep the shape of what its shortcut adds, but does not")
    return spec


def _bottleneck(record: Mapping[str, Any], where: str, hw_in: int, eps: float) -> LayerSpec:
    _expect(record, where, name=("ResNetBottleneckBlock",), groups=(1,))
    c_in, c_out = _number(record, "in_channels", CHANNELS_LIMIT, where), _number(record, "out_channels", CHANNELS_LIMIT, where)
    given = record.get("mid_channels")
    middle = round(c_out * _ratio(record, where)) if given is None else _number(record, "mid_channels", CHANNELS_LIMIT, where)
    stride = _number(record, "stride", STRIDE_LIMIT, where)
    # Where nothing is skipped over, "conv" and "avgpool_conv" are one.
    _expect(record, where, downsample_mode=("avgpool_conv", "conv") if stride == 1 else ("avgpool_conv",))
    return LayerSpec(
        slot="",
        kind="bottleneck",
        c_in=c_in,
        c_mid=make_divisible(middle),
        c_out=c_out,
        hw_in=hw_in,
        kernel=_kernel(record, where),
        stride=stride,
        act=_act(record, where),
        skip=stride == 1 and c_in == c_out,
        eps=eps,
    )


def _middle(conv: Mapping[str, Any], c_in: int, where: str) -> int:
    """Channels between the convolutions of a block; there is an expansion exactly where the ratio is not 1."""
    ratio = _ratio(conv, where)
    given = conv.get("mid_channels")
    c_mid = round(c_in * ratio) if given is None else _number(conv, "mid_channels", CHANNELS_LIMIT, where)
    if (c_mid == c_in) != (ratio == 1) or not 0 < c_mid <= CHANNELS_LIMIT:
        raise FormatError(f"{where} must widen its {c_in} channels by an expand_ratio other than 1, but says {ratio} and {c_mid} channels")
    return c_mid


def _ratio(record: Mapping[str, Any], where: str) -> float:
    ratio = record.get("expand_ratio")
    if type(ratio) not in (int, float) or not 0 < ratio <= CHANNELS_LIMIT:  # type: ignore[operator]
        raise FormatError(f"expand_ratio of {where} must be a positive number, but is {str(ratio)[:80]}")
    return ratio  # type: ignore[return-value]


def _pool(before: LayerSpec) -> LayerSpec:
    return LayerSpec(slot="", kind="pool", c_in=before.c_out, c_mid=0, c_out=before.c_out, hw_in=before.hw_out, norm=False)


def _classifier(config: Mapping[str, Any]) -> LayerSpec:
    record = _mapping(config.get("classifier"), "classifier")
    _expect(record, "classifier", name=("LinearLayer",), use_bn=(False,), act_func=(None,), bias=(True,))
    c_in, c_out = (_number(record, key, CHANNELS_LIMIT, "classifier") for key in ("in_features", "out_features"))
    return LayerSpec(slot="", kind="linear", c_in=c_in, c_mid=0, c_out=c_out, hw_in=1, norm=False, bias=True)


def _check_size(layers: Blueprint) -> None:
    """Raise FormatError for a network that could not be held in memory; so far, only its file was."""
    found = costs(layers)
    if found.params > PARAMS_LIMIT or found.activation_bytes > ACTIVATION_LIMIT:
        raise FormatError(
            f"it must have at most {PARAMS_LIMIT:,} parameters and {ACTIVATION_LIMIT >> 30} GiB of activations, "
            f"but has {found.params:,} and {found.activation_bytes / 2**30:,.1f} GiB"
        )


def _check_chain(layers: Iterable[LayerSpec]) -> None:
    """Raise FormatError unless every layer takes the channels that the one before it gives, the first those of an image."""
    channels = 3
    for number, spec in enumerate(layers):
        if spec.c_in != channels:
            raise FormatError(f"layer {number} must take the {channels} channels that come to it, but takes {spec.c_in}")
        channels = spec.c_out


# -- entries ---------------------------------------------------------------------------------------------------


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


def _flag(record: Mapping[str, Any], key: str, where: str, *, default: bool) -> bool:
    value = record.get(key, default)
    if not isinstance(value, bool):
        raise FormatError(f"{key} of {where} must be true or false")
    return value


def _kernel(record: Mapping[str, Any], where: str) -> int:
    kernel = _number(record, "kernel_size", KERNEL_LIMIT, where)
    if kernel % 2 == 0:
        raise FormatError(f"kernel_size of {where} must be odd, but is {kernel}")
    return kernel


def _act(record: Mapping[str, Any], where: str) -> Act:
    act = record.get("act_func", "missing")  # for which once-for-all has a default that differs by layer
    if not isinstance(act, str | None) or act not in _READ_ACTS:
        raise FormatError(f"act_func of {where} must be one of {', '.join(map(str, _READ_ACTS))}, but is {str(act)[:80]}")
    return _READ_ACTS[act]
