"""Users' own design spaces: one JSON file each.

A space of one's own is named after its content: `tiny-photos-1f0c2a9b` is what the file with the name `tiny-photos` says, and a
file that says something else has another name. So weights, predictors and tables can never meet a space that was edited
since. Files of supernets and subnets carry the design of their space; whoever reads one knows it from then on.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

from ofasearch.errors import FormatError
from ofasearch.records import read_json
from ofasearch.space.core import RESOLUTION_LIMIT, Act
from ofasearch.space.mobile import MobileDesign, Stage, make_divisible
from ofasearch.space.resnet import ResNetDesign, ResStage

FORMAT = "ofasearch-space-1"
Design = MobileDesign | ResNetDesign
CHANNELS_LIMIT, CLASSES_LIMIT, STAGES_LIMIT, DEPTH_LIMIT, CHOICES_LIMIT, KERNEL_LIMIT = 8192, 100_000, 12, 16, 16, 15
_NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,39}")
_KNOWN: dict[str, Design] = {}  # by name; a name stands for one content, so that knowing more never changes what is known


def own_design(name: str) -> Design | None:
    """The design of a .json file, or one that was read before in this process, by its full name; None for other names.

    Raises NotFoundError, FormatError.
    """
    return read_design(Path(name)) if name.endswith(".json") else _KNOWN.get(name)


def read_design(path: Path) -> Design:
    """The design that a file describes.

    Raises NotFoundError, FormatError, which says what of it contradicts itself.
    """
    record = read_json(path)
    try:
        return remember(record)
    except FormatError as error:
        raise FormatError(f"{path} must be the JSON of a design space, but {error}") from error


def remember(record: Any) -> Design:
    """The design of a record, known by its full name from now on.

    Raises FormatError.
    """
    design = _read(record)
    return _KNOWN.setdefault(design.name, design)


def space_card(name: str) -> dict[str, Any]:
    """What the card of a file says of its space: the name, and the design of a user's own (or that it is a part of)."""
    own = [design for known, design in _KNOWN.items() if name == known or name.startswith(f"{known}-d")]
    return {"space": name} | ({"design": design_record(own[0])} if own else {})


def named_space(card: Mapping[str, Any]) -> str:
    """The name that such a card says; a design with it is known from now on.

    Raises KeyError without a name, TypeError for one that is no text, FormatError for a record that is no design.
    """
    if not isinstance(card["space"], str):
        raise TypeError(f"the name of a space must be text, but is {type(card['space']).__name__}")
    if card.get("design") is not None:
        remember(card["design"])
    return card["space"]


def design_record(design: Design) -> dict[str, Any]:
    """A design as `read_design` reads it."""
    shared = {
        "format": FORMAT,
        "name": design.name.rpartition("-")[0],
        "classes": design.classes,
        "resolutions": list(design.resolutions),
        "depths": list(design.depths),
        "expands": list(design.expands),
        "eps": design.eps,
    }
    if isinstance(design, ResNetDesign):
        stem: dict[str, Any] = {"channels": design.stem, "stride": design.stem_stride, "max_pool": design.max_pool}
        stages = [_res_stage_record(stage) for stage in design.stages]
        return shared | {"kind": "resnet", "widths": list(design.widths), "stem": stem, "stages": stages}
    return shared | {
        "kind": "mobilenet",
        "kernels": list(design.kernels),
        "coupled": design.coupled,
        "stem": {"channels": design.stem, "stride": design.stem_stride, "activation": design.stem_act},
        "first": {"channels": design.first, "activation": design.first_act},
        "stages": [_stage_record(stage) for stage in design.stages],
        "head": {"expand": design.c_expand, "features": design.c_feature, "activation": design.head_act},
    }


def _res_stage_record(stage: ResStage) -> dict[str, Any]:
    return {"channels": stage.channels, "stride": stage.stride, "base": stage.base}


def _stage_record(stage: Stage) -> dict[str, Any]:
    own = {"depths": stage.depths, "expands": stage.expands, "kernels": stage.kernels}
    return {
        "channels": stage.c_out,
        "stride": stage.stride,
        "activation": stage.act,
        "squeeze_excite": stage.se,
        **{key: list(choices) for key, choices in own.items() if choices is not None},
    }


# -- reading ---------------------------------------------------------------------------------------------------


class _Record:
    """The entries of one JSON object, each read once; what is left at the end has no meaning."""

    def __init__(self, record: Any, where: str):
        if not isinstance(record, dict):
            raise FormatError(f"{where} must be an object, but is {type(record).__name__}")
        self._left, self._where = dict(record), where

    def take(self, key: str, default: Any = ...) -> Any:
        if key not in self._left and default is ...:
            raise FormatError(f"{self._where} must have '{key}'")
        return self._left.pop(key, default)

    def whole(self, key: str, least: int, most: int, default: Any = ...) -> int:
        value = self.take(key, default)
        if type(value) is not int or not least <= value <= most:
            raise FormatError(f"{key} of {self._where} must be a whole number from {least} to {most:,}, but is {_short(value)}")
        return value

    def flag(self, key: str, default: Any = ...) -> bool:
        value = self.take(key, default)
        if not isinstance(value, bool):
            raise FormatError(f"{key} of {self._where} must be true or false, but is {_short(value)}")
        return value

    def activation(self, default: Any = ...) -> Act:
        value = self.take("activation", default)
        if value not in get_args(Act):
            raise FormatError(f"activation of {self._where} must be one of {', '.join(get_args(Act))}, but is {_short(value)}")
        found: Act = value
        return found

    def choices(self, key: str, allowed: Callable[[Any], bool], what: str, default: Any = ...) -> tuple[Any, ...]:
        values = self.take(key, default)
        if values is None and default is None:
            return ()
        listed = isinstance(values, list) and 0 < len(values) <= CHOICES_LIMIT and all(map(allowed, values))
        if not listed or any(a >= b for a, b in pairwise(values)):
            raise FormatError(f"{key} of {self._where} must be ascending {what}, 1 to {CHOICES_LIMIT} of them, but is {_short(values)}")
        return tuple(values)

    def done(self) -> None:
        if self._left:
            raise FormatError(f"{self._where} must not have '{_short(next(iter(self._left)))}', which means nothing there")


def _short(value: Any) -> str:
    return str(value)[:80]


def _is_whole(least: int, most: int) -> Callable[[Any], bool]:
    return lambda value: type(value) is int and least <= value <= most


def _is_number(least: float, most: float) -> Callable[[Any], bool]:
    return lambda value: type(value) in (int, float) and math.isfinite(value) and least <= value <= most


def _read(record: Any) -> Design:
    entries = _Record(record, "it")
    if entries.take("format") != FORMAT:
        raise FormatError(f"format must be {FORMAT}")
    kind, name = entries.take("kind"), entries.take("name")
    if kind not in ("mobilenet", "resnet"):
        raise FormatError(f"kind must be mobilenet or resnet, but is {_short(kind)}")
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise FormatError(f"name must be up to 40 small letters, digits, '.', '_' and '-', but is {_short(name)}")
    shared = {
        "name": f"{name}-",
        "classes": entries.whole("classes", 1, CLASSES_LIMIT),
        "resolutions": _resolutions(entries),
        "eps": float(_number(entries.take("eps", 1e-5), "eps", 1e-12, 0.1)),
    }
    design: Design = _mobile(entries, shared) if kind == "mobilenet" else _resnet(entries, shared)
    entries.done()
    content = json.dumps(design_record(design), sort_keys=True)  # with its defaults, so that one design has one name
    return replace(design, name=f"{name}-{hashlib.sha256(content.encode()).hexdigest()[:8]}")


def _resolutions(entries: _Record) -> tuple[int, ...]:
    sizes = entries.take("resolutions")
    if not isinstance(sizes, list) or not 0 < len(sizes) <= 256 or not all(map(_is_whole(8, RESOLUTION_LIMIT), sizes)):
        raise FormatError(f"resolutions must be 1 to 256 sizes from 8 to {RESOLUTION_LIMIT} pixels, but are {_short(sizes)}")
    return tuple(sorted(set(sizes)))


def _number(value: Any, what: str, least: float, most: float) -> float:
    if not _is_number(least, most)(value):
        raise FormatError(f"{what} must be a number from {least:g} to {most:g}, but is {_short(value)}")
    return float(value)


def _stages(entries: _Record) -> list[tuple[_Record, str]]:
    rows = entries.take("stages")
    if not isinstance(rows, list) or not 0 < len(rows) <= STAGES_LIMIT:
        raise FormatError(f"stages must be a list of 1 to {STAGES_LIMIT}, but is {_short(rows)}")
    return [(_Record(row, f"stage {number}"), f"stage {number}") for number, row in enumerate(rows, start=1)]


def _mobile(entries: _Record, shared: Mapping[str, Any]) -> MobileDesign:
    stem, first = _Record(entries.take("stem"), "stem"), _Record(entries.take("first"), "first")
    head = _Record(entries.take("head"), "head")
    depths, expands, kernels = _mobile_choices(entries)
    expand = head.take("expand", None)
    if expand is not None and not _is_whole(1, CHANNELS_LIMIT)(expand):
        raise FormatError(f"expand of head must be null or a whole number from 1 to {CHANNELS_LIMIT:,}, but is {_short(expand)}")
    design = MobileDesign(
        **shared,
        stem=stem.whole("channels", 1, CHANNELS_LIMIT),
        stem_stride=stem.whole("stride", 1, 8),
        stem_act=stem.activation("h_swish"),
        first=first.whole("channels", 1, CHANNELS_LIMIT),
        first_act=first.activation("relu"),
        stages=tuple(_mobile_stage(row) for row, _ in _stages(entries)),
        c_expand=expand,
        c_feature=head.whole("features", 1, CHANNELS_LIMIT),
        head_act=head.activation("h_swish"),
        depths=depths,
        expands=expands,
        kernels=kernels,
        coupled=entries.flag("coupled", False),
    )
    for part in (stem, first, head):
        part.done()
    _check_mobile(design)
    return design


def _mobile_choices(entries: _Record, default: Any = ...) -> tuple[Any, Any, Any]:
    depths = entries.choices("depths", _is_whole(1, DEPTH_LIMIT), f"whole numbers from 1 to {DEPTH_LIMIT}", default)
    expands = entries.choices("expands", _is_number(1, 16), "numbers from 1 to 16", default)
    odd = _is_whole(3, KERNEL_LIMIT)
    kernels = entries.choices("kernels", lambda k: odd(k) and k % 2 == 1, f"odd numbers from 3 to {KERNEL_LIMIT}", default)
    return depths, expands, kernels


def _mobile_stage(row: _Record) -> Stage:
    depths, expands, kernels = _mobile_choices(row, None)
    stage = Stage(
        row.whole("channels", 1, CHANNELS_LIMIT),
        row.whole("stride", 1, 8),
        row.activation(),
        se=row.flag("squeeze_excite", False),
        kernel=0,
        depths=depths or None,
        expands=expands or None,
        kernels=kernels or None,
    )
    row.done()
    return stage


def _check_mobile(design: MobileDesign) -> None:
    """Raise FormatError where choices contradict each other or give the same network twice."""
    before = design.first
    for number, stage in enumerate(design.stages, start=1):
        depths, expands, kernels = design.depths_of(stage), design.expands_of(stage), design.kernels_of(stage)
        if design.tied(stage) and len(depths) != len(expands):
            raise FormatError(f"coupled stage {number} must have as many expands as depths, but has {len(expands)} and {len(depths)}")
        if any(b - a != 2 for a, b in pairwise(kernels)):
            raise FormatError(f"kernels of stage {number} must be neighbouring odd numbers, but are {list(kernels)}")
        for c_in in {before, stage.c_out}:
            middle = [make_divisible(round(c_in * ratio)) for ratio in expands]
            if middle[0] <= c_in or len(set(middle)) < len(middle):
                raise FormatError(
                    f"expands of stage {number} must widen its {c_in} channels differently, but {list(expands)} give {middle} channels"
                )
        before = stage.c_out


def _resnet(entries: _Record, shared: Mapping[str, Any]) -> ResNetDesign:
    stem = _Record(entries.take("stem"), "stem")
    stages = []
    for row, _ in _stages(entries):
        stages.append(ResStage(row.whole("channels", 8, CHANNELS_LIMIT), row.whole("stride", 1, 8), row.whole("base", 1, DEPTH_LIMIT)))
        row.done()
    design = ResNetDesign(
        **shared,
        stem=stem.whole("channels", 8, CHANNELS_LIMIT),
        stem_stride=stem.whole("stride", 1, 8, 2),
        max_pool=stem.flag("max_pool", True),
        stages=tuple(stages),
        depths=entries.choices("depths", _is_whole(0, DEPTH_LIMIT), f"whole numbers from 0 to {DEPTH_LIMIT}"),
        expands=entries.choices("expands", _is_number(0.01, 4), "numbers from 0.01 to 4"),
        widths=entries.choices("widths", _is_number(0.01, 4), "numbers from 0.01 to 4"),
    )
    stem.done()
    if design.depths[0] != 0:
        raise FormatError(
            f"depths of a resnet must begin with 0, because 'base' says which blocks are always there, but are {list(design.depths)}"
        )
    _check_resnet(design)
    return design


def _check_resnet(design: ResNetDesign) -> None:
    """Raise FormatError where two choices give the same channels."""
    indices = range(len(design.widths))
    lists = {"the stem": [design.stem_out(w) for w in indices]}
    for number, stage in enumerate(design.stages, start=1):
        lists[f"stage {number}"] = [design.stage_out(stage, w) for w in indices]
        for channels in lists[f"stage {number}"]:
            lists[f"blocks of stage {number}"] = [make_divisible(round(channels * ratio)) for ratio in design.expands]
            _check_different(lists)
    _check_different(lists)


def _check_different(lists: Mapping[str, list[int]]) -> None:
    for where, channels in lists.items():
        if len(set(channels)) < len(channels):
            raise FormatError(f"widths and expands must give {where} different channels, but give {channels}")
