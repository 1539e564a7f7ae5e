"""The published design spaces as data: the only file with gene values.

Reference: once-for-all (ICLR 2020) section 3.2 and its MobileNetV3 supernet; CompOFA (ICLR 2021) section 4.1.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass, replace

from ofasearch.errors import NotFoundError
from ofasearch.space.core import Act, Gate, Gene, LayerSpec, Slot, Space


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round to a multiple of `divisor`, never below it and never more than 10 % down (MobileNet's rule)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


@dataclass(frozen=True, slots=True)
class Stage:
    """A row of inverted bottlenecks of one output width; the first has the stride, all the activation."""

    c_out: int
    stride: int
    act: Act
    se: bool
    kernel: int  # the kernel of the fixed-kernel variant


@dataclass(frozen=True, slots=True, kw_only=True)
class MobileDesign:
    """A MobileNetV3-like space. Widths are final channel counts; `coupled` ties expand ratios to depths (CompOFA)."""

    name: str
    stem: int
    stem_stride: int
    first: int  # output channels of the static first block: depthwise 3x3 + projection, no expansion
    stages: tuple[Stage, ...]
    c_expand: int
    c_feature: int
    classes: int
    resolutions: tuple[int, ...]
    depths: tuple[int, ...] = (2, 3, 4)
    expands: tuple[int, ...] = (3, 4, 6)
    kernels: tuple[int, ...] = (3, 5, 7)
    coupled: bool = False
    elastic_kernel: bool = True
    parent: str | None = None


def mobile_space(design: MobileDesign) -> Space:
    """Build the space of a MobileNetV3-like design: resolution gene first, then depth and blocks stage by stage."""
    genes = [Gene("resolution", "r", 0, design.resolutions, ("r", 0))]
    slots = [_stem(design), _first_block(design)]
    scale = design.stem_stride  # the input resolution divided by the feature size, exact for "same" padding
    c_in = design.first
    block_index = 0
    for number, stage in enumerate(design.stages, start=1):
        depth_gene = len(genes)
        genes.append(Gene(f"s{number}.depth", f"s{number}.depth", number, design.depths, ("d", number - 1)))
        for block in range(max(design.depths)):
            needed = next(code for code, depth in enumerate(design.depths, start=1) if depth > block)
            gate = Gate(depth_gene, needed)
            unit = f"s{number}.b{block + 1}"
            parents = [0]
            if design.coupled:
                parents.append(depth_gene)
            if design.elastic_kernel:
                parents.append(len(genes))
                genes.append(Gene(f"{unit}.kernel", unit, number, design.kernels, ("ks", block_index), gate))
            if not design.coupled:
                parents.append(len(genes))
                genes.append(Gene(f"{unit}.expand", unit, number, design.expands, ("e", block_index), gate))
            slots.append(_block(design, stage, number, block, c_in if block == 0 else stage.c_out, scale, tuple(parents)))
            block_index += 1
        scale *= stage.stride
        c_in = stage.c_out
    slots += _head(design, c_in, scale)
    kernels = design.kernels if design.elastic_kernel else tuple(sorted({s.kernel for s in design.stages}))
    return Space(
        name=design.name,
        genes=tuple(genes),
        slots=tuple(slots),
        classes=design.classes,
        kernels=kernels,
        expands=design.expands,
        parent=design.parent,
    )


def _feature_size(resolution: int, scale: int) -> int:
    """ceil(resolution / scale): what a chain of "same" convolutions whose strides multiply to `scale` leaves."""
    return -(-resolution // scale)


def _stem(design: MobileDesign) -> Slot:
    def layer(values: tuple[int, ...]) -> LayerSpec:
        return LayerSpec(
            slot="stem",
            kind="conv",
            c_in=3,
            c_mid=0,
            c_out=design.stem,
            hw_in=values[0],
            kernel=3,
            stride=design.stem_stride,
            act="h_swish",
        )

    return Slot("stem", (0,), layer)


def _first_block(design: MobileDesign) -> Slot:
    def layer(values: tuple[int, ...]) -> LayerSpec:
        return LayerSpec(
            slot="s0.b1",
            kind="mbconv",
            c_in=design.stem,
            c_mid=design.stem,
            c_out=design.first,
            hw_in=_feature_size(values[0], design.stem_stride),
            kernel=3,
            act="relu",
            skip=design.stem == design.first,
        )

    return Slot("s0.b1", (0,), layer)


def _block(design: MobileDesign, stage: Stage, number: int, block: int, c_in: int, scale: int, parents: tuple[int, ...]) -> Slot:
    name = f"s{number}.b{block + 1}"
    stride = stage.stride if block == 0 else 1
    scale_in = scale if block == 0 else scale * stage.stride
    setting = _setting_rule(design, stage, block)

    def layer(values: tuple[int, ...]) -> LayerSpec | None:
        kernel, expand = setting(values)
        if kernel == 0:
            return None
        c_mid = make_divisible(round(c_in * expand))
        return LayerSpec(
            slot=name,
            kind="mbconv",
            c_in=c_in,
            c_mid=c_mid,
            c_out=stage.c_out,
            hw_in=_feature_size(values[0], scale_in),
            c_se=make_divisible(c_mid // 4) if stage.se else 0,
            kernel=kernel,
            stride=stride,
            act=stage.act,
            skip=stride == 1 and c_in == stage.c_out,
        )

    return Slot(name, parents, layer, number - 1, setting)


def _setting_rule(design: MobileDesign, stage: Stage, block: int) -> Callable[[tuple[int, ...]], tuple[int, int]]:
    """How the values of a block's parents (resolution first) give its (kernel, expand ratio); (0, 0) when skipped."""
    tied = dict(zip(design.depths, design.expands, strict=True)) if design.coupled else {}

    def setting(values: tuple[int, ...]) -> tuple[int, int]:
        rest = values[1:]
        if design.coupled:
            depth, rest = rest[0], rest[1:]
            expand = tied.get(depth, 0) if depth > block else 0
            kernel = rest[0] if design.elastic_kernel else stage.kernel
        else:
            kernel, expand = rest
        return (kernel, expand) if kernel and expand else (0, 0)

    return setting


def _head(design: MobileDesign, c_in: int, scale: int) -> list[Slot]:
    def expand(values: tuple[int, ...]) -> LayerSpec:
        hw = _feature_size(values[0], scale)
        return LayerSpec(slot="head.expand", kind="conv", c_in=c_in, c_mid=0, c_out=design.c_expand, hw_in=hw, act="h_swish")

    def pool(values: tuple[int, ...]) -> LayerSpec:
        hw = _feature_size(values[0], scale)
        return LayerSpec(slot="head.pool", kind="pool", c_in=design.c_expand, c_mid=0, c_out=design.c_expand, hw_in=hw, norm=False)

    def feature(_: tuple[int, ...]) -> LayerSpec:
        return LayerSpec(
            slot="head.feature", kind="conv", c_in=design.c_expand, c_mid=0, c_out=design.c_feature, hw_in=1, act="h_swish", norm=False
        )

    def classifier(_: tuple[int, ...]) -> LayerSpec:
        return LayerSpec(
            slot="head.classifier", kind="linear", c_in=design.c_feature, c_mid=0, c_out=design.classes, hw_in=1, norm=False, bias=True
        )

    layers = (("head.expand", expand), ("head.pool", pool), ("head.feature", feature), ("head.classifier", classifier))
    return [Slot(name, (0,), layer) for name, layer in layers]


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


def _small(name: str, width: float, *, stem_stride: int, strides: tuple[int, ...]) -> MobileDesign:
    """The MobileNetV3 design for 32x32 images: smaller strides, ten classes, the first two layers never below 16 channels."""
    base = _mbv3(name, width, (32,))
    stages = tuple(replace(s, stride=stride) for s, stride in zip(base.stages, strides, strict=True))
    wide = max(16, base.stem)
    return replace(base, stem=wide, stem_stride=stem_stride, first=wide, stages=stages, classes=10)


def _cifar(name: str, width: float = 0.5) -> MobileDesign:
    """For 32x32 images on a CPU: total stride 8 instead of 32, most of it at the start; half width unless asked otherwise."""
    return _small(name, width, stem_stride=2, strides=(2, 1, 2, 1, 1))


def _deps(name: str, width: float) -> MobileDesign:
    """DepS's network for 32x32 images: no stride in the stem, total stride 8 (published code, `mbv3_32`)."""
    return _small(name, width, stem_stride=1, strides=(1, 2, 2, 1, 2))


def _compound(design: MobileDesign, name: str, *, elastic_kernel: bool) -> MobileDesign:
    """CompOFA's restriction: the i-th depth goes with the i-th expand ratio, the same for all blocks of a stage."""
    return replace(design, name=name, coupled=True, elastic_kernel=elastic_kernel, parent=design.name)


_R10 = tuple(range(128, 225, 4))
_R12 = tuple(range(160, 225, 4))
_OFA = {
    "ofa-mbv3-w1.0": _mbv3("ofa-mbv3-w1.0", 1.0, _R10),
    "ofa-mbv3-w1.2": _mbv3("ofa-mbv3-w1.2", 1.2, _R12),
    "ofa-mbv3-cifar": _cifar("ofa-mbv3-cifar"),
}

DESIGNS: dict[str, MobileDesign] = {
    **_OFA,
    "compofa-mbv3-w1.0": _compound(_OFA["ofa-mbv3-w1.0"], "compofa-mbv3-w1.0", elastic_kernel=False),
    "compofa-mbv3-w1.2": _compound(_OFA["ofa-mbv3-w1.2"], "compofa-mbv3-w1.2", elastic_kernel=False),
    "compofa-mbv3-elastic-w1.0": _compound(_OFA["ofa-mbv3-w1.0"], "compofa-mbv3-elastic-w1.0", elastic_kernel=True),
    "compofa-mbv3-elastic-w1.2": _compound(_OFA["ofa-mbv3-w1.2"], "compofa-mbv3-elastic-w1.2", elastic_kernel=True),
    "compofa-mbv3-cifar": _compound(_OFA["ofa-mbv3-cifar"], "compofa-mbv3-cifar", elastic_kernel=False),
}


_PART = re.compile(r"(?P<base>.+)-d(?P<depths>\d+)-e(?P<expands>\d+)-k(?P<kernels>\d+)")
_WIDE = re.compile(r"(?P<kind>ofa|compofa)-mbv3-(?P<images>cifar|32)-w(?P<width>\d\.\d{1,2})")
WIDTHS = (0.1, 4.0)  # of MobileNetV3-Large, for the designs whose name says a width


def find_design(name: str) -> MobileDesign:
    """The published design of that name, or a part of one, which is what a phase of progressive shrinking has trained.

    `ofa-mbv3-w1.0-d34-e6-k357` has the subnets of depths 3 and 4, expand ratio 6 and all kernels. A part keeps the
    largest depth, so that its blocks are those of the whole. The designs for 32x32 images come in any width:
    `ofa-mbv3-cifar-w0.25`, and `compofa-mbv3-32-w1.0` with DepS's strides.

    Raises NotFoundError for an unknown name.
    """
    found = _whole_design(name)
    if found is not None:
        return found
    part = _PART.fullmatch(name)
    base = _whole_design(part["base"]) if part else None
    if part and base and not base.coupled and base.elastic_kernel:
        depths, expands, kernels = (tuple(int(digit) for digit in part[key]) for key in ("depths", "expands", "kernels"))
        choices = ((depths, base.depths), (expands, base.expands), (kernels, base.kernels))
        if all(kept == tuple(v for v in known if v in kept) for kept, known in choices) and max(depths) == max(base.depths):
            return replace(base, name=name, parent=base.name, depths=depths, expands=expands, kernels=kernels)
    raise NotFoundError(
        f"space must be one of {', '.join(DESIGNS)}, or a part of an ofa one such as ofa-mbv3-w1.0-d34-e6-k357, but got '{name}'"
    )


def _whole_design(name: str) -> MobileDesign | None:
    """A published design, or one for 32x32 images in the width that the name says."""
    if name in DESIGNS:
        return DESIGNS[name]
    wide = _WIDE.fullmatch(name)
    if wide is None or not WIDTHS[0] <= float(wide["width"]) <= WIDTHS[1]:
        return None
    if wide["kind"] == "compofa":
        return _compound(find_design(name.removeprefix("comp")), name, elastic_kernel=False)
    return (_cifar if wide["images"] == "cifar" else _deps)(name, float(wide["width"]))


def part_name(base: str, depths: tuple[int, ...], expands: tuple[int, ...], kernels: tuple[int, ...]) -> str:
    """The name of the part of an elastic design with these values; of the design itself when they are all of its."""
    design = find_design(base)
    if (depths, expands, kernels) == (design.depths, design.expands, design.kernels):
        return base
    return f"{base}-d{''.join(map(str, depths))}-e{''.join(map(str, expands))}-k{''.join(map(str, kernels))}"


def get_space(name: str, *, classes: int | None = None) -> Space:
    """The space of a design or of a part of one, with another number of classes if asked.

    Raises NotFoundError for an unknown name.
    """
    design = find_design(name)
    return mobile_space(design if classes is None else replace(design, classes=classes))
