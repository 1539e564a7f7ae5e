"""Spaces of ResNet bottlenecks with elastic depths, widths and expand ratios: once-for-all's ResNet50D, and users' own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from ofasearch.space.core import Gate, Gene, LayerSpec, Parents, Slot, Space
from ofasearch.space.mobile import classifier_slot, feature_size, make_divisible, spelled

KERNEL = 3  # of the middle convolution of every bottleneck


@dataclass(frozen=True, slots=True)
class ResStage:
    """A row of bottlenecks: output channels at width 1, stride of the first, and the blocks that no network lacks.

    `expands` are its blocks' where they are not the design's.
    """

    channels: int
    stride: int
    base: int
    expands: tuple[float, ...] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class ResNetDesign:
    """A ResNet space: every stage has `base` blocks and as many more as its depth says.

    The output of a stage, of the stem and of the stem's middle are multiplied by one of `widths` each; a block's middle
    channels are a share of its *output*.

    The stem is three 3x3 convolutions, of which the second has a shortcut and is optional, and a maximum pool of stride
    2 unless `max_pool` is False, as for small images.
    """

    name: str
    stem: int  # output channels at width 1; its middle has half of them
    stages: tuple[ResStage, ...]
    classes: int
    resolutions: tuple[int, ...]
    depths: tuple[int, ...] = (0, 1, 2)
    expands: tuple[float, ...] = (0.2, 0.25, 0.35)
    widths: tuple[float, ...] = (0.65, 0.8, 1.0)
    stem_stride: int = 2
    max_pool: bool = True
    open_widths: tuple[int, ...] | None = None  # indices of those that may be chosen; all unless said
    eps: float = 1e-5
    parent: str | None = None

    def build(self) -> Space:
        """The space of this design."""
        return resnet_space(self)

    def stem_out(self, width: float) -> int:
        """Channels that leave the stem, by the index of their width."""
        return make_divisible(self.stem * self.widths[int(width)])

    def stem_middle(self, width: float) -> int:
        """Channels inside the stem."""
        return make_divisible(self.stem_out(width) // 2)

    def stage_out(self, stage: ResStage, width: float) -> int:
        """Channels that leave a stage."""
        return make_divisible(stage.channels * self.widths[int(width)])


Channels = Callable[[float], int]  # of the index of a width


def resnet_space(design: ResNetDesign) -> Space:
    """Build the space of a ResNet design: resolution, the stem's depth and widths, then width, depth, blocks per stage.

    Reference: once-for-all's `OFAResNets` (BASE_DEPTH_LIST, `set_active_subnet`): the stem's second convolution is left
    out where the stem's depth is not the largest.
    """
    genes = [Gene("resolution", "r", 0, design.resolutions, ("r", 0))]
    slots = _stem(design, genes)
    before: tuple[int, Channels] = (len(genes) - 1, design.stem_out)
    scale, block = design.stem_stride * (2 if design.max_pool else 1), 0
    for number, stage in enumerate(design.stages, start=1):
        found, before = _stage(design, stage, number, genes, block, before, scale)
        slots += found
        block += len(found)
        scale *= stage.stride
    slots += _head(design, *before, scale)
    return Space(
        name=design.name,
        genes=tuple(genes),
        slots=tuple(slots),
        classes=design.classes,
        kernels=(KERNEL,),
        expands=tuple(sorted({ratio for stage in design.stages for ratio in stage.expands or design.expands})),
        parent=design.parent,
    )


def _width(design: ResNetDesign, name: str, stage: int, position: int, channels: Channels) -> Gene:
    """The gene of a width; of indices that give the same channels (as 0 and 1 inside the published stem) the last is the choice."""
    indices = design.open_widths or tuple(range(len(design.widths)))
    last = {channels(index): index for index in indices}
    kept = tuple(sorted(last.values()))
    alias = tuple((index, last[channels(index)]) for index in indices if index not in kept)
    return Gene(f"{name}.width", f"{name}.width", stage, kept, ("w", position), alphabet=spelled(indices), alias=alias)


def _stem(design: ResNetDesign, genes: list[Gene]) -> list[Slot]:
    """The slots of the stem; its genes are added to `genes`, the width of its output last."""
    depths = tuple(sorted({design.depths[0], design.depths[-1]}))
    genes.append(Gene("stem.depth", "stem.depth", 0, depths, ("d", 0), alphabet=spelled(depths)))
    genes.append(_width(design, "stem.middle", 0, 0, design.stem_middle))
    genes.append(_width(design, "stem", 0, 1, design.stem_out))

    def conv(slot: str, c_in: int, c_out: int, hw: int, *, stride: int = 1, skip: bool = False) -> LayerSpec:
        return LayerSpec(
            slot=slot,
            kind="conv",
            c_in=c_in,
            c_mid=0,
            c_out=c_out,
            hw_in=hw,
            kernel=3,
            stride=stride,
            act="relu",
            skip=skip,
            eps=design.eps,
        )

    def first(values: Parents) -> LayerSpec:
        return conv("stem.first", 3, design.stem_middle(values[1]), int(values[0]), stride=design.stem_stride)

    def second(values: Parents) -> LayerSpec | None:
        middle, size = design.stem_middle(values[2]), feature_size(values[0], design.stem_stride)
        return conv("stem.second", middle, middle, size, skip=True) if values[1] == depths[-1] else None

    def third(values: Parents) -> LayerSpec:
        size = feature_size(values[0], design.stem_stride)
        return conv("stem.third", design.stem_middle(values[1]), design.stem_out(values[2]), size)

    def pool(values: Parents) -> LayerSpec:
        c, size = design.stem_out(values[1]), feature_size(values[0], design.stem_stride)
        return LayerSpec(slot="stem.pool", kind="maxpool", c_in=c, c_mid=0, c_out=c, hw_in=size, kernel=3, stride=2, norm=False)

    slots = [Slot("stem.first", (0, 2), first), Slot("stem.second", (0, 1, 2), second), Slot("stem.third", (0, 2, 3), third)]
    return [*slots, Slot("stem.pool", (0, 3), pool)] if design.max_pool else slots


def _stage(
    design: ResNetDesign, stage: ResStage, number: int, genes: list[Gene], first: int, before: tuple[int, Channels], scale: int
) -> tuple[list[Slot], tuple[int, Channels]]:
    """The slots of one stage, the gene of its width with what that means; its genes are added to `genes`.

    `before` is the same of what comes before it, `first` the number of its first block in the network.
    """
    width_gene, depth_gene = len(genes), len(genes) + 1
    depths = design.depths

    def c_out(width: float) -> int:
        return design.stage_out(stage, width)

    genes.append(_width(design, f"s{number}", number, number + 1, c_out))
    genes.append(Gene(f"s{number}.depth", f"s{number}.depth", number, depths, ("d", number), alphabet=spelled(depths)))
    slots = []
    for block in range(stage.base + depths[-1]):
        needed = next(code for code, depth in enumerate(depths, start=1) if stage.base + depth > block)
        unit, expand_gene = f"s{number}.b{block + 1}", len(genes)
        expands = stage.expands or design.expands
        genes.append(Gene(f"{unit}.expand", unit, number, expands, ("e", first + block), Gate(depth_gene, needed), spelled(expands)))
        source = before if block == 0 else (width_gene, c_out)
        slots.append(_block(design, stage, unit, block, source, (width_gene, c_out), expand_gene, scale))
    return slots, (width_gene, c_out)


def _block(
    design: ResNetDesign,
    stage: ResStage,
    name: str,
    block: int,
    before: tuple[int, Channels],
    after: tuple[int, Channels],
    expand_gene: int,
    scale: int,
) -> Slot:
    stride = stage.stride if block == 0 else 1
    scale_in = scale if block == 0 else scale * stage.stride

    def layer(values: Parents) -> LayerSpec | None:
        expand = values[-1]
        if not expand:
            return None
        c_in, c_out = before[1](values[1]), after[1](values[-2])
        return LayerSpec(
            slot=name,
            kind="bottleneck",
            c_in=c_in,
            c_mid=make_divisible(round(c_out * expand)),
            c_out=c_out,
            hw_in=feature_size(values[0], scale_in),
            kernel=KERNEL,
            stride=stride,
            act="relu",
            skip=block > 0,
            eps=design.eps,
        )

    def setting(values: Parents) -> tuple[int, float]:
        return (KERNEL, values[-1]) if values[-1] else (0, 0)

    parents = (0, before[0], after[0], expand_gene) if block == 0 else (0, after[0], expand_gene)
    return Slot(name, parents, layer, setting)


def _head(design: ResNetDesign, width_gene: int, channels: Channels, scale: int) -> list[Slot]:
    def pool(values: Parents) -> LayerSpec:
        c = channels(values[1])
        return LayerSpec(slot="head.pool", kind="pool", c_in=c, c_mid=0, c_out=c, hw_in=feature_size(values[0], scale), norm=False)

    classifier = classifier_slot((0, width_gene), lambda values: channels(values[1]), design.classes)
    return [Slot("head.pool", (0, width_gene), pool), classifier]
