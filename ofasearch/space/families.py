"""The published design spaces as data: the only file with gene values.

Reference: once-for-all (ICLR 2020), section 3.2, its MobileNetV3, ProxylessNAS and ResNet50 supernets; CompOFA (ICLR 2021),
sections 4.1 and 5.6.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import replace
from typing import TypeVar

from ofasearch.errors import NotFoundError
from ofasearch.space.core import Act, Space
from ofasearch.space.mobile import MobileDesign, Stage, make_divisible, mobile_space, spelled
from ofasearch.space.own import Design, own_design
from ofasearch.space.resnet import ResNetDesign, ResStage

__all__ = ["DESIGNS", "MobileDesign", "Stage", "find_design", "get_space", "make_divisible", "mobile_space", "part_name"]


def _mbv3(name: str, width: float, resolutions: tuple[int, ...]) -> MobileDesign:
    """MobileNetV3-Large as once-for-all widens it: base widths times `width`, rounded to multiples of 8."""
    w = [make_divisible(c * width) for c in (16, 16, 24, 40, 80, 112, 160, 960, 1280)]
    rows: tuple[tuple[int, Act, bool, int], ...] = (
        (2, "relu", False, 3),
        (2, "relu", True, 5),
        (2, "h_swish", False, 3),
        (1, "h_swish", True, 3),
        (2, "h_swish", True, 5),
    )
    stages = tuple(Stage(w[2 + i], stride, act, se, kernel) for i, (stride, act, se, kernel) in enumerate(rows))
    return MobileDesign(
        name=name,
        stem=w[0],
        stem_stride=2,
        first=w[1],
        stages=stages,
        c_expand=w[7],
        c_feature=w[8],
        classes=1000,
        resolutions=resolutions,
    )


def _restrided(design: MobileDesign, stem_stride: int, strides: tuple[int, ...]) -> MobileDesign:
    """A design with other strides and the ten classes of CIFAR-10."""
    stages = tuple(replace(s, stride=stride) for s, stride in zip(design.stages, strides, strict=True))
    return replace(design, stem_stride=stem_stride, stages=stages, classes=10)


def _small(name: str, width: float, *, stem_stride: int, strides: tuple[int, ...]) -> MobileDesign:
    """The MobileNetV3 design for 32x32 images: smaller strides, ten classes, the first two layers never below 16 channels."""
    base = _mbv3(name, width, (32,))
    wide = max(16, base.stem)
    return replace(_restrided(base, stem_stride, strides), stem=wide, first=wide)


def _cifar(name: str, width: float = 0.5) -> MobileDesign:
    """For 32x32 images on a CPU: total stride 8 instead of 32, most of it at the start; half width unless asked otherwise."""
    return _small(name, width, stem_stride=2, strides=(2, 1, 2, 1, 1))


def _proxyless_cifar(name: str, width: float = 0.5) -> MobileDesign:
    """ProxylessNAS for 32x32 images on a CPU: total stride 8, most of it at the start."""
    return replace(_restrided(_proxyless(name, width, (32,)), 2, (2, 1, 2, 1, 1, 1)), c_feature=make_divisible(1280 * width))


def _proxyless_deps(name: str, width: float) -> MobileDesign:
    """ProxylessNAS for 32x32 images with no stride in the stem, total stride 8, as DepS has it for MobileNetV3."""
    return _restrided(_proxyless(name, width, (32,)), 1, (1, 2, 2, 1, 2, 1))


def _deps(name: str, width: float) -> MobileDesign:
    """DepS's network for 32x32 images: no stride in the stem, total stride 8 (published code, `mbv3_32`)."""
    return _small(name, width, stem_stride=1, strides=(1, 2, 2, 1, 2))


def _proxyless(name: str, width: float, resolutions: tuple[int, ...]) -> MobileDesign:
    """ProxylessNAS's widths and strides, as once-for-all makes them elastic; the last of its six stages is one block."""
    w = [make_divisible(c * width) for c in (32, 16, 24, 40, 80, 96, 192, 320)]
    strides = (2, 2, 2, 1, 2, 1)
    stages = [Stage(w[2 + i], stride, "relu6", se=False, kernel=3) for i, stride in enumerate(strides)]
    stages[-1] = replace(stages[-1], depths=(1,))
    return MobileDesign(
        name=name,
        stem=w[0],
        stem_stride=2,
        first=w[1],
        stages=tuple(stages),
        c_expand=None,
        c_feature=make_divisible(1280 * max(width, 1.0)),
        classes=1000,
        resolutions=resolutions,
        stem_act="relu6",
        first_act="relu6",
        head_act="relu6",
        eps=1e-3,
    )


def _resnet50(name: str, width: float, resolutions: tuple[int, ...]) -> ResNetDesign:
    """Once-for-all's ResNet50 with the stem of ResNet50D; `width` multiplies all channels."""
    rows = ((256, 1, 2), (512, 2, 2), (1024, 2, 4), (2048, 2, 2))
    stages = tuple(ResStage(make_divisible(channels * width), stride, base) for channels, stride, base in rows)
    return ResNetDesign(name=name, stem=make_divisible(64 * width), stages=stages, classes=1000, resolutions=resolutions)


def _resnet_small(name: str, width: float = 0.25) -> ResNetDesign:
    """ResNet50 for 32x32 images on a CPU: total stride 8, no maximum pool; a quarter of the width unless asked otherwise."""
    base = _resnet50(name, width, (32,))
    strides = (1, 2, 2, 1)
    stages = tuple(replace(s, stride=stride, expands=_telling(base, s)) for s, stride in zip(base.stages, strides, strict=True))
    return replace(base, stages=stages, classes=10, max_pool=False)


def _telling(design: ResNetDesign, stage: ResStage) -> tuple[float, ...]:
    """The expand ratios that give a narrow stage different channels at every width, the largest among them."""
    kept: list[float] = []
    for ratio in sorted(design.expands, reverse=True):
        channels = [make_divisible(round(design.stage_out(stage, w) * ratio)) for w in range(len(design.widths))]
        others = [[make_divisible(round(design.stage_out(stage, w) * r)) for w in range(len(design.widths))] for r in kept]
        if all(a != b for other in others for a, b in zip(channels, other, strict=True)):
            kept.append(ratio)
    return tuple(sorted(kept))


def _compound(design: MobileDesign, name: str, *, elastic_kernel: bool) -> MobileDesign:
    """CompOFA's restriction: the i-th depth goes with the i-th expand ratio, the same for all blocks of a stage."""
    return replace(design, name=name, coupled=True, elastic_kernel=elastic_kernel, parent=design.name)


_R10 = tuple(range(128, 225, 4))
_R12 = tuple(range(160, 225, 4))
_OFA = {
    "ofa-mbv3-w1.0": _mbv3("ofa-mbv3-w1.0", 1.0, _R10),
    "ofa-mbv3-w1.2": _mbv3("ofa-mbv3-w1.2", 1.2, _R12),
    "ofa-proxyless-w1.3": _proxyless("ofa-proxyless-w1.3", 1.3, _R10),
    "ofa-mbv3-cifar": _cifar("ofa-mbv3-cifar"),
    "ofa-proxyless-cifar": _proxyless_cifar("ofa-proxyless-cifar"),
}


def _tied(base: str, *, elastic_kernel: bool = False) -> MobileDesign:
    kind = "compofa-mbv3-elastic" if elastic_kernel else "compofa-mbv3"
    name = base.replace("ofa-mbv3", kind) if "mbv3" in base else f"comp{base}"
    return _compound(_OFA[base], name, elastic_kernel=elastic_kernel)


_COMPOFA = [
    *(_tied(f"ofa-mbv3-w{width}", elastic_kernel=elastic) for elastic in (False, True) for width in ("1.0", "1.2")),
    *(_tied(name) for name in ("ofa-proxyless-w1.3", "ofa-mbv3-cifar", "ofa-proxyless-cifar")),
]
_RESNETS = [_resnet50("ofa-resnet50", 1.0, _R10), _resnet_small("ofa-resnet50-cifar")]
_ALL: tuple[Design, ...] = (*_OFA.values(), *_RESNETS, *_COMPOFA)

DESIGNS: dict[str, Design] = {design.name: design for design in _ALL}


_PART = re.compile(r"(?P<base>.+)-d(?P<depths>[0-9a-z]+)-e(?P<expands>[0-9a-z]+)-(?P<kind>[kw])(?P<last>[0-9a-z]+)")
_WIDE = re.compile(r"(?P<family>(?:comp)?ofa-(?:mbv3|proxyless)-(?:cifar|32)|ofa-resnet50-cifar)-w(?P<width>\d\.\d{1,2})")
_IN_ANY_WIDTH: dict[str, Callable[[str, float], Design]] = {
    "ofa-mbv3-cifar": _cifar,
    "ofa-mbv3-32": _deps,
    "ofa-proxyless-cifar": _proxyless_cifar,
    "ofa-proxyless-32": _proxyless_deps,
    "ofa-resnet50-cifar": _resnet_small,
}
N = TypeVar("N", int, float)
WIDTHS = (0.1, 4.0)  # of the published channels, for the designs whose name says a width


def find_design(name: str) -> Design:
    """The published design of that name, a part of one, which is what a phase of progressive shrinking has trained, or a user's.

    `ofa-mbv3-w1.0-d34-e6-k357` has the subnets of depths 3 and 4, expand ratio 6 and all kernels. A part keeps the
    largest depth, so that its blocks are those of the whole. The designs for 32x32 images come in any width:
    `ofa-mbv3-cifar-w0.25`, and `compofa-mbv3-32-w1.0` with DepS's strides. A name that ends in .json is a file.

    Raises NotFoundError for an unknown name; FormatError for a file that is no design.
    """
    found = _whole_design(name) or own_design(name)
    if found is not None:
        return found
    part = _PART.fullmatch(name)
    base = _whole_design(part["base"]) or own_design(part["base"]) if part else None
    if part and base is not None:
        cut = _part(base, name, part["depths"], part["expands"], part["kind"], part["last"])
        if cut is not None:
            return cut
    raise NotFoundError(
        f"space must be one of {', '.join(DESIGNS)}, a part of an ofa one such as ofa-mbv3-w1.0-d34-e6-k357, or a .json file, "
        f"but got '{name}'"
    )


def _part(base: Design, name: str, depths: str, expands: str, kind: str, last: str) -> Design | None:
    """The design with only some depths, expand ratios and kernels ("k") or widths ("w"); None where it has no such part."""
    kept_depths, kept_expands = _among(depths, base.depths), _among(expands, base.expands)
    if not kept_depths or not kept_expands or kept_depths[-1] != base.depths[-1]:
        return None
    if isinstance(base, ResNetDesign):
        widths = _among(last, tuple(range(len(base.widths)))) if kind == "w" else ()
        known = {"name": name, "parent": base.name, "depths": kept_depths, "expands": kept_expands, "open_widths": widths}
        stages = tuple(replace(s, expands=tuple(r for r in s.expands if r in kept_expands)) if s.expands else s for s in base.stages)
        return replace(base, stages=stages, **known) if widths and all(s.expands != () for s in stages) else None  # type: ignore[arg-type]
    kernels = _among(last, base.kernels) if kind == "k" and not base.coupled and base.elastic_kernel else ()
    return replace(base, name=name, parent=base.name, depths=kept_depths, expands=kept_expands, kernels=kernels) if kernels else None


def _letters(choices: tuple[float, ...]) -> tuple[str, ...]:
    """One character for each choice, as arch ids have them."""
    return tuple("abcdefghijklmnopqrstuvwxyz"[i] if spelled(choices) else str(choice) for i, choice in enumerate(choices))


def _among(letters: str, choices: tuple[N, ...]) -> tuple[N, ...]:
    """The choices that the letters spell, which must stand in order; none where they spell something else."""
    known = _letters(choices)
    kept = tuple(choice for choice, letter in zip(choices, known, strict=True) if letter in letters)
    return kept if "".join(letter for letter in known if letter in letters) == letters else ()


def _whole_design(name: str) -> Design | None:
    """A published design, or one for 32x32 images in the width that the name says."""
    if name in DESIGNS:
        return DESIGNS[name]
    wide = _WIDE.fullmatch(name)
    if wide is None or not WIDTHS[0] <= float(wide["width"]) <= WIDTHS[1]:
        return None
    make = _IN_ANY_WIDTH[wide["family"].removeprefix("comp")]
    if not wide["family"].startswith("comp"):
        return make(name, float(wide["width"]))
    design = make(name.removeprefix("comp"), float(wide["width"]))
    return _compound(design, name, elastic_kernel=False) if isinstance(design, MobileDesign) else None


def part_name(base: str, depths: tuple[int, ...], expands: tuple[float, ...], last: tuple[int, ...]) -> str:
    """The name of the part of an elastic design with these values; of the design itself when they are all of its.

    `last` are kernels, or indices of widths in a ResNet space.
    """
    design = find_design(base)
    resnet = isinstance(design, ResNetDesign)
    all_last = tuple(range(len(design.widths))) if isinstance(design, ResNetDesign) else design.kernels
    if (depths, expands, last) == (design.depths, design.expands, all_last):
        return base
    texts = [
        "".join(_letters(known)[known.index(value)] for value in kept)
        for kept, known in ((depths, design.depths), (expands, design.expands), (last, all_last))
    ]
    return f"{base}-d{texts[0]}-e{texts[1]}-{'w' if resnet else 'k'}{texts[2]}"


def get_space(name: str, *, classes: int | None = None) -> Space:
    """The space of a design or of a part of one, with another number of classes if asked.

    Raises NotFoundError for an unknown name; FormatError for a file that is no design.
    """
    design = find_design(name)
    return (design if classes is None else replace(design, classes=classes)).build()
