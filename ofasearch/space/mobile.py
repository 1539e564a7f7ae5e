"""Spaces of inverted bottlenecks: MobileNetV3, ProxylessNAS, and what users make of them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ofasearch.space.core import Act, Gate, Gene, LayerSpec, Parents, Slot, Space

Setting = Callable[[Parents], tuple[int, float]]


def make_divisible(value: float, divisor: int = 8) -> int:
    """Round to a multiple of `divisor`, never below it and never more than 10 % down (MobileNet's rule)."""
    rounded = max(divisor, int(value + divisor / 2) // divisor * divisor)
    return rounded + divisor if rounded < 0.9 * value else rounded


def spelled(choices: tuple[float, ...]) -> tuple[float, ...]:
    """The alphabet of a gene: none where all choices are digits."""
    return () if all(type(choice) is int and 0 <= choice <= 9 for choice in choices) else choices


@dataclass(frozen=True, slots=True)
class Stage:
    """A row of inverted bottlenecks of one output width; the first has the stride, all the activation.

    What is None is the design's.
    """

    c_out: int
    stride: int
    act: Act
    se: bool
    kernel: int  # the kernel of the fixed-kernel variant
    depths: tuple[int, ...] | None = None
    expands: tuple[float, ...] | None = None
    kernels: tuple[int, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class MobileDesign:
    """A MobileNetV3-like space. Widths are final channel counts; `coupled` ties expand ratios to depths (CompOFA).

    Without `c_expand` the head is ProxylessNAS's: the features come before the pool, with batch norm.
    """

    name: str
    stem: int
    stem_stride: int
    first: int  # output channels of the static first block: depthwise 3x3 + projection, no expansion
    stages: tuple[Stage, ...]
    c_expand: int | None
    c_feature: int
    classes: int
    resolutions: tuple[int, ...]
    depths: tuple[int, ...] = (2, 3, 4)
    expands: tuple[float, ...] = (3, 4, 6)
    kernels: tuple[int, ...] = (3, 5, 7)
    coupled: bool = False
    elastic_kernel: bool = True
    stem_act: Act = "h_swish"
    first_act: Act = "relu"
    head_act: Act = "h_swish"
    eps: float = 1e-5
    parent: str | None = None

    def build(self) -> Space:
        """The space of this design."""
        return mobile_space(self)

    def depths_of(self, stage: Stage) -> tuple[int, ...]:
        """Depths of a stage."""
        return stage.depths or self.depths

    def expands_of(self, stage: Stage) -> tuple[float, ...]:
        """Expand ratios of a stage's blocks."""
        return stage.expands or self.expands

    def kernels_of(self, stage: Stage) -> tuple[int, ...]:
        """Kernels of a stage's blocks."""
        return (stage.kernels or self.kernels) if self.elastic_kernel else (stage.kernel,)

    def tied(self, stage: Stage) -> bool:
        """Whether the depth of a stage decides its expand ratios; one without a choice of depth leaves them free."""
        return self.coupled and len(self.depths_of(stage)) > 1


def mobile_space(design: MobileDesign) -> Space:
    """Build the space of a MobileNetV3-like design: resolution gene first, then depth and blocks stage by stage."""
    genes = [Gene("resolution", "r", 0, design.resolutions, ("r", 0))]
    slots = [_stem(design), _first_block(design)]
    scale = design.stem_stride  # the input resolution divided by the feature size, exact for "same" padding
    c_in, block = design.first, 0
    for number, stage in enumerate(design.stages, start=1):
        slots += _stage(design, stage, number, genes, block, c_in, scale)
        block += max(design.depths_of(stage))
        scale *= stage.stride
        c_in = stage.c_out
    slots += _head(design, c_in, scale)
    return Space(
        name=design.name,
        genes=tuple(genes),
        slots=tuple(slots),
        classes=design.classes,
        kernels=tuple(sorted({kernel for stage in design.stages for kernel in design.kernels_of(stage)})),
        expands=tuple(sorted({ratio for stage in design.stages for ratio in design.expands_of(stage)})),
        parent=design.parent,
    )


def _stage(design: MobileDesign, stage: Stage, number: int, genes: list[Gene], first: int, c_in: int, scale: int) -> list[Slot]:
    """The slots of one stage; its genes are added to `genes`. `first` is the number of its first block in the network."""
    depths, expands, kernels = design.depths_of(stage), design.expands_of(stage), design.kernels_of(stage)
    depth_gene = len(genes)
    genes.append(Gene(f"s{number}.depth", f"s{number}.depth", number, depths, ("d", number - 1), alphabet=spelled(depths)))
    shared: list[int] = []  # the genes that all blocks of the stage read
    if design.tied(stage):
        shared.append(depth_gene)
    elif design.coupled:
        shared.append(len(genes))
        genes.append(Gene(f"s{number}.expand", f"s{number}.expand", number, expands, ("e", first), alphabet=spelled(expands)))
    slots = []
    for block in range(max(depths)):
        gate = Gate(depth_gene, next(code for code, depth in enumerate(depths, start=1) if depth > block))
        unit, parents = f"s{number}.b{block + 1}", [0, *shared]
        if design.elastic_kernel:
            parents.append(len(genes))
            genes.append(Gene(f"{unit}.kernel", unit, number, kernels, ("ks", first + block), gate, spelled(kernels)))
        if not design.coupled:
            parents.append(len(genes))
            genes.append(Gene(f"{unit}.expand", unit, number, expands, ("e", first + block), gate, spelled(expands)))
        slots.append(_block(design, stage, number, block, c_in if block == 0 else stage.c_out, scale, tuple(parents)))
    return slots


def feature_size(resolution: float, scale: int) -> int:
    """ceil(resolution / scale): what a chain of "same" convolutions whose strides multiply to `scale` leaves."""
    return -(-int(resolution) // scale)


def _stem(design: MobileDesign) -> Slot:
    def layer(values: Parents) -> LayerSpec:
        return LayerSpec(
            slot="stem",
            kind="conv",
            c_in=3,
            c_mid=0,
            c_out=design.stem,
            hw_in=int(values[0]),
            kernel=3,
            stride=design.stem_stride,
            act=design.stem_act,
            eps=design.eps,
        )

    return Slot("stem", (0,), layer)


def _first_block(design: MobileDesign) -> Slot:
    def layer(values: Parents) -> LayerSpec:
        return LayerSpec(
            slot="s0.b1",
            kind="mbconv",
            c_in=design.stem,
            c_mid=design.stem,
            c_out=design.first,
            hw_in=feature_size(values[0], design.stem_stride),
            kernel=3,
            act=design.first_act,
            skip=design.stem == design.first,
            eps=design.eps,
        )

    return Slot("s0.b1", (0,), layer)


def _block(design: MobileDesign, stage: Stage, number: int, block: int, c_in: int, scale: int, parents: tuple[int, ...]) -> Slot:
    name = f"s{number}.b{block + 1}"
    stride = stage.stride if block == 0 else 1
    scale_in = scale if block == 0 else scale * stage.stride
    setting = _setting_rule(design, stage, block)

    def layer(values: Parents) -> LayerSpec | None:
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
            hw_in=feature_size(values[0], scale_in),
            c_se=make_divisible(c_mid // 4) if stage.se else 0,
            kernel=kernel,
            stride=stride,
            act=stage.act,
            skip=stride == 1 and c_in == stage.c_out,
            eps=design.eps,
        )

    return Slot(name, parents, layer, setting)


def _setting_rule(design: MobileDesign, stage: Stage, block: int) -> Setting:
    """How the values of a block's parents (resolution first) give its (kernel, expand ratio); (0, 0) when skipped."""
    depths = design.depths_of(stage)
    tied = dict(zip(depths, design.expands_of(stage), strict=True)) if design.tied(stage) else {}

    def setting(values: Parents) -> tuple[int, float]:
        rest = values[1:]
        if design.coupled:
            head, rest = rest[0], rest[1:]
            expand = (tied.get(int(head), 0) if head > block else 0) if tied else head
            kernel = rest[0] if design.elastic_kernel else stage.kernel
        else:
            kernel, expand = rest if design.elastic_kernel else (stage.kernel, rest[0])
        return (int(kernel), expand) if kernel and expand else (0, 0)

    return setting


def _head(design: MobileDesign, c_in: int, scale: int) -> list[Slot]:
    late = design.c_expand is not None  # whether the features are mixed after the pool
    pooled = design.c_expand if design.c_expand is not None else design.c_feature

    def expand(values: Parents) -> LayerSpec:
        return conv("head.expand", c_in, pooled, feature_size(values[0], scale), norm=True)

    def pool(values: Parents) -> LayerSpec:
        hw = feature_size(values[0], scale)
        return LayerSpec(slot="head.pool", kind="pool", c_in=pooled, c_mid=0, c_out=pooled, hw_in=hw, norm=False)

    def feature(values: Parents) -> LayerSpec:
        hw = 1 if late else feature_size(values[0], scale)
        return conv("head.feature", pooled if late else c_in, design.c_feature, hw, norm=not late)

    def conv(slot: str, channels: int, c_out: int, hw: int, *, norm: bool) -> LayerSpec:
        eps = design.eps if norm else 1e-5
        return LayerSpec(slot=slot, kind="conv", c_in=channels, c_mid=0, c_out=c_out, hw_in=hw, act=design.head_act, norm=norm, eps=eps)

    slots = {"head.expand": expand, "head.pool": pool, "head.feature": feature}
    order = ("head.expand", "head.pool", "head.feature") if late else ("head.feature", "head.pool")
    return [*(Slot(name, (0,), slots[name]) for name in order), classifier_slot((0,), lambda _: design.c_feature, design.classes)]


def classifier_slot(parents: tuple[int, ...], c_in: Callable[[Parents], int], classes: int) -> Slot:
    """The slot of the linear layer that ends every network."""

    def layer(values: Parents) -> LayerSpec:
        return LayerSpec(slot="head.classifier", kind="linear", c_in=c_in(values), c_mid=0, c_out=classes, hw_in=1, norm=False, bias=True)

    return Slot("head.classifier", parents, layer)
