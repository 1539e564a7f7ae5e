"""Judging a supernet by populations of its networks: the protocols of the papers, which networks they draw, what they say of them.

Legend: n = networks, g = genes, m = networks that were drawn for one bucket. Accuracies are fractions. Costs are in the
unit of the cost they were computed by. No torch, no data: whoever scores the networks hands the accuracies in.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from ofasearch.errors import ArchError, InfeasibleError, MismatchError, UsageError
from ofasearch.space.core import Codes, Gene, Space, Values
from ofasearch.space.pricing import Cost

How = Literal["listed", "rejection", "random walks"]

LISTED = 100_000  # networks; a smaller space is listed instead of sampled
DRAWS = 400_000  # networks that rejection sampling looks at before it gives up
DRAWN_AT_ONCE = 20_000
STEPS_PER_GENE = 60  # of a random walk, the way into the bucket included
BUCKETS_MOST = 100
COMMON_TRIES = 1000  # networks looked at for being in both spaces


# -- the protocols ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Protocol:
    """How a population is drawn and judged. `takes` are the options that mean something to it, by their names in a request."""

    says: str  # what it tells, for titles
    nets: int  # per bucket, unless asked otherwise; 0 where nothing is drawn
    takes: frozenset[str]
    reference: str


_BUCKETED = frozenset({"nets", "buckets", "bucket_width_ms", "target", "split"})

PROTOCOLS: dict[str, Protocol] = {
    "pareto": Protocol(
        says="best networks per bucket, chosen on validation",
        nets=20,
        takes=_BUCKETED - {"split"},
        reference="DepS (ECCV 2024), section 5, Figs. 5 and 7",
    ),
    "random": Protocol(
        says="random networks near chosen costs",
        nets=100,
        takes=frozenset({"nets", "at_macs", "tolerance_macs", "target", "split"}),
        reference="Random Subnet Sampling (arXiv 2204.09210), the published code's evaluation of populations",
    ),
    "cdf": Protocol(says="distribution of the error", nets=50, takes=_BUCKETED, reference="CompOFA (ICLR 2021), Fig. 4"),
    "average": Protocol(says="mean of random networks", nets=20, takes=_BUCKETED, reference="CompOFA (ICLR 2021), Fig. 5"),
    "boxes": Protocol(says="spread of random networks", nets=100, takes=_BUCKETED, reference="CompOFA (ICLR 2021), Fig. 8"),
    "heatmap": Protocol(
        says="uniform depth and width", nets=0, takes=frozenset({"target", "split"}), reference="CompOFA (ICLR 2021), Fig. 2"
    ),
    "common": Protocol(
        says="networks of both supernets",
        nets=20,
        takes=frozenset({"nets", "other", "target", "split"}),
        reference="CompOFA (ICLR 2021), Fig. 6",
    ),
}


# -- buckets ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Axis:
    """The cost that buckets cut, and how people read it: a value divided by `scale` is in `unit`."""

    name: str
    unit: str
    scale: float
    cost: Cost

    def show(self, value: float) -> str:
        """A value for people."""
        return f"{value / self.scale:.4g} {self.unit}"


@dataclass(frozen=True, slots=True)
class Bucket:
    """Networks whose cost is at least `low` and below `high`."""

    label: str
    low: float
    high: float

    def holds(self, cost: Values) -> npt.NDArray[np.bool_]:
        """Which costs (n,) belong here."""
        return (self.low <= cost) & (cost < self.high)

    def distance(self, cost: Values) -> Values:
        """How far each cost (n,) is from belonging here; 0 exactly for those that do."""
        below, above = self.low - cost, cost - np.nextafter(self.high, -np.inf)
        return np.asarray(np.maximum(0.0, np.maximum(below, above)))


def equal_buckets(axis: Axis, count: int) -> list[Bucket]:
    """The whole range of the cost in `count` equal parts; the last one holds the largest cost too.

    Raises UsageError for a count that is none.
    """
    if not 1 <= count <= BUCKETS_MOST:
        raise UsageError(f"--buckets must be 1 to {BUCKETS_MOST}, but got {count}")
    bounds = axis.cost.bounds()
    if not bounds.lowest < bounds.highest:
        raise UsageError(f"networks must differ in {axis.name} to be sorted into buckets, but all have {axis.show(bounds.lowest)}")
    return _from_edges(axis, np.linspace(bounds.lowest, bounds.highest, count + 1))


def wide_buckets(axis: Axis, width: float) -> list[Bucket]:
    """Buckets of one width, at multiples of it, that cover the whole range of the cost.

    Raises UsageError when there would be too many. Reference: CompOFA, section 5.4 (5 ms).
    """
    bounds = axis.cost.bounds()
    first, last = int(bounds.lowest // width), int(bounds.highest // width)
    if last - first >= BUCKETS_MOST:
        needed = (bounds.highest - bounds.lowest) / BUCKETS_MOST
        raise UsageError(
            f"--bucket-width must be at least {axis.show(needed)} for at most {BUCKETS_MOST} buckets, but got {axis.show(width)}"
        )
    return _from_edges(axis, width * np.arange(first, last + 2, dtype=np.float64))


def _from_edges(axis: Axis, edges: Values) -> list[Bucket]:
    labels = [f"{low / axis.scale:.4g} to {axis.show(high)}" for low, high in pairwise(edges)]
    tops = [*edges[1:-1], np.nextafter(edges[-1], np.inf)]
    return [Bucket(label, float(low), float(high)) for label, low, high in zip(labels, edges[:-1], tops, strict=True)]


def windows(axis: Axis, centres: Sequence[float] | None, tolerance: float) -> list[Bucket]:
    """Costs within `tolerance` of each centre; by default of six, equally spaced, whose windows lie just inside the range.

    Raises UsageError (too many centres, or a tolerance too large for six windows), InfeasibleError for a window that no
    network can be in. Reference: RSS, buckets of 4 to 14 M MACs, each 0.5 M wide to both sides.
    """
    bounds = axis.cost.bounds()
    if centres is None:
        first, last = bounds.lowest + tolerance, bounds.highest - tolerance
        if first >= last:
            raise UsageError(
                f"--tolerance must be below {axis.show((bounds.highest - bounds.lowest) / 2)}, half the range of the space, "
                f"but got {axis.show(tolerance)}"
            )
        centres = [float(c) for c in np.linspace(first, last, 6)]
    if len(centres) > BUCKETS_MOST:
        raise UsageError(f"--at must name at most {BUCKETS_MOST} costs, but names {len(centres)}")
    for centre in centres:
        if centre + tolerance < bounds.lowest or centre - tolerance > bounds.highest:
            raise InfeasibleError(
                f"networks near {axis.show(centre)} must be among those of {axis.show(bounds.lowest)} to {axis.show(bounds.highest)}, "
                f"but none is within {axis.show(tolerance)}; change --at"
            )
    return [Bucket(axis.show(c), c - tolerance, float(np.nextafter(c + tolerance, np.inf))) for c in sorted(set(centres))]


@dataclass(slots=True)
class Network:
    """One network of a population: its costs, the labels of its buckets, and its accuracies as they are measured."""

    arch_id: str
    codes: Codes
    macs: int
    params: int
    latency_ms: float | None = None
    buckets: list[str] = field(default_factory=list)
    top1: dict[str, float] = field(default_factory=dict)  # by column: top1_<split>, or top1_<split>_with for the second supernet

    def to_json(self) -> dict[str, Any]:
        """Without codes and buckets, and without what was not measured."""
        latency = {"latency_ms": self.latency_ms} if self.latency_ms is not None else {}
        return {"arch_id": self.arch_id, "macs": self.macs, "params": self.params, **latency, **self.top1}


# -- drawing ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Drawn:
    """The networks (m, g) of one bucket, all distinct, at most as many as were asked for, and how they were found."""

    bucket: Bucket
    codes: Codes
    how: How


def draw(space: Space, cost: Cost, buckets: Sequence[Bucket], n: int, rng: np.random.Generator) -> list[Drawn]:
    """Up to n distinct networks of each bucket, as `Space.sample` would draw them if it knew the bucket alone.

    A small space is listed, and the draw is exact. In a large one, networks are drawn and sorted into the buckets until
    `DRAWS` were looked at; a bucket that is still short, because such networks are rare, is filled by random
    walks inside it. A bucket may end with fewer than n: nothing else is ever put into it.
    """
    if space.size * len(space.resolutions) <= LISTED:
        return _draw_listed(space, cost, buckets, n, rng)
    found = _draw_and_reject(space, cost, buckets, n, rng)
    drawn = []
    for bucket, rows in zip(buckets, found, strict=True):
        if len(rows) < n:
            walked = distinct(np.concatenate([rows, walk_inside(space, cost, bucket, n, rng)]))[:n]
            drawn.append(Drawn(bucket, walked, "random walks" if len(walked) > len(rows) else "rejection"))
        else:
            drawn.append(Drawn(bucket, rows, "rejection"))
    return drawn


def _draw_listed(space: Space, cost: Cost, buckets: Sequence[Bucket], n: int, rng: np.random.Generator) -> list[Drawn]:
    """The first n of each bucket in one random order of the whole space."""
    codes = random_order(space, rng)
    price = cost(codes)
    return [Drawn(bucket, codes[bucket.holds(price)][:n], "listed") for bucket in buckets]


def random_order(space: Space, rng: np.random.Generator) -> Codes:
    """All networks of a small space in the order in which endless sampling would first meet them.

    With Gumbel noise added to log-probabilities, descending order is that of drawing without replacement.
    """
    codes = space.enumerate()
    chance = -(space.present(codes) * np.log(space.sizes)).sum(axis=1)
    return codes[np.argsort(-(chance + rng.gumbel(size=len(codes))), kind="stable")]


def _draw_and_reject(space: Space, cost: Cost, buckets: Sequence[Bucket], n: int, rng: np.random.Generator) -> list[Codes]:
    """The first n distinct networks of each bucket among at most `DRAWS`."""
    found = [np.zeros((0, len(space.genes)), dtype=np.int64) for _ in buckets]
    for _ in range(0, DRAWS, DRAWN_AT_ONCE):
        codes = space.sample(DRAWN_AT_ONCE, rng)
        price = cost(codes)
        for i, bucket in enumerate(buckets):
            if len(found[i]) < n:
                found[i] = distinct(np.concatenate([found[i], codes[bucket.holds(price)]]))[:n]
        if all(len(rows) == n for rows in found):
            break
    return found


def walk_inside(space: Space, cost: Cost, bucket: Bucket, n: int, rng: np.random.Generator) -> Codes:
    """Up to n distinct networks of a bucket, the ends of independent random walks.

    Each walk starts anywhere, redraws one to three genes at a time, and takes a step that leads no farther from the
    bucket. Inside, that is Metropolis' rule for the uniform distribution of `Space.draw` over the bucket.
    """
    walks, genes = 2 * n + 16, len(space.genes)
    codes = space.draw(walks, rng)
    away = bucket.distance(cost(space.canonical(codes)))
    everyone = np.arange(walks)
    for _ in range(STEPS_PER_GENE * genes):
        proposed = codes.copy()
        chosen = rng.integers(genes, size=(walks, 3))
        chosen[:, 1:] = np.where(rng.random((walks, 2)) < 0.5, chosen[:, 1:], chosen[:, :1])  # the same gene again: fewer change
        for column in chosen.T:
            proposed[everyone, column] = 1 + (rng.random(walks) * space.sizes[column]).astype(np.int64)
        then = bucket.distance(cost(space.canonical(proposed)))
        taken = then <= away
        codes[taken], away[taken] = proposed[taken], then[taken]
    return distinct(space.canonical(codes)[away == 0])[:n]


def distinct(codes: Codes) -> Codes:
    """The rows without those that came before."""
    first = np.unique(codes, axis=0, return_index=True)[1]
    return codes[np.sort(first)]


@dataclass(frozen=True, slots=True)
class Pair:
    """A uniform network: one depth for all stages, one expand ratio for all blocks, each kernel at its largest."""

    depth: int
    expand: float
    codes: Codes


def uniform_networks(space: Space) -> tuple[list[Pair], list[tuple[int, float]]]:
    """The uniform networks of every (depth, expand ratio), and the pairs that the space does not have.

    Where ratios are tied to depths (CompOFA) only its own pairs exist. A stage with fewer choices than others (the last of
    ProxylessNAS, the stem of a ResNet) has its largest depth, and so have widths. Reference: CompOFA, Fig. 2 (with kernel 5 everywhere).
    """
    depths = sorted({int(c) for gene in _depth_genes(space) for c in gene.choices})
    found, missing = list[Pair](), list[tuple[int, float]]()
    for depth in depths:
        for expand in space.expands:
            codes = _uniform(space, depth, expand)
            if codes is None:
                missing.append((depth, expand))
            else:
                found.append(Pair(depth, expand, codes))
    return found, missing


def _depth_genes(space: Space) -> list[Gene]:
    """The genes of depths with the most choices."""
    genes = [gene for gene in space.genes if gene.reads[0] == "d"]
    most = max(len(gene.choices) for gene in genes)
    return [gene for gene in genes if len(gene.choices) == most]


def _uniform(space: Space, depth: int, expand: float) -> Codes | None:
    """Codes (g,) of one uniform network, or None where the space has no such."""
    depths = _depth_genes(space)
    row = space.largest()
    for index, gene in enumerate(space.genes):
        value = {"d": depth if gene in depths else None, "e": expand}.get(gene.reads[0])
        if value is not None:
            if value not in gene.choices:
                return None
            row[index] = gene.choices.index(value) + 1
    codes: Codes = space.canonical(row[None])[0]
    settings = space.settings(codes[None])
    ratios = set(settings.e[settings.ks > 0].tolist())
    return codes if ratios == {expand} else None


def common_networks(one: Space, other: Space, n: int, rng: np.random.Generator) -> tuple[Codes, Codes]:
    """Up to n distinct networks that two spaces have in common, as codes of each; drawn from the smaller one.

    Networks are the same when all their layers are. Raises MismatchError when no common one is found.
    """
    if other.size < one.size:
        theirs, ours = common_networks(other, one, n, rng)
        return ours, theirs
    small = one.size * len(one.resolutions) <= LISTED
    rows = random_order(one, rng)[:COMMON_TRIES] if small else distinct(one.sample(max(COMMON_TRIES, 2 * n), rng))
    pairs = list[tuple[Codes, Codes]]()
    for row in rows:
        twin = _twin(one, other, row)
        if twin is not None:
            pairs.append((row, twin))
        if len(pairs) == n:
            break
    if not pairs:
        raise MismatchError(f"two supernets must have networks in common to be compared on them, but {one.name} and {other.name} have none")
    return np.stack([a for a, _ in pairs]), np.stack([b for _, b in pairs])


def _twin(one: Space, other: Space, row: Codes) -> Codes | None:
    """The same network in another space."""
    try:
        lifted: Codes = one.lift(row[None], other)[0]
    except ArchError:
        return None
    return lifted if one.blueprint(row) == other.blueprint(lifted) else None


# -- statistics ------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Stats:
    """What n values say. Quartiles interpolate linearly; `variance` is the unbiased one; the interval is that of the mean.

    Variance and interval (95 %, Student's t) need two values and are None for one.
    """

    n: int
    mean: float
    mean_low: float | None
    mean_high: float | None
    variance: float | None
    lowest: float
    lower_quartile: float
    median: float
    upper_quartile: float
    highest: float

    def to_json(self) -> dict[str, float]:
        """Without what one value cannot tell."""
        return {name: value for name, value in asdict(self).items() if value is not None}


def describe(values: Sequence[float] | Values) -> Stats:
    """The statistics of at least one value."""
    x = np.asarray(values, dtype=np.float64)
    mean = float(x.mean())
    variance = float(x.var(ddof=1)) if len(x) > 1 else None
    half = t_quantile(len(x) - 1) * (variance / len(x)) ** 0.5 if variance is not None else None
    lowest, lower, median, upper, highest = (float(q) for q in np.quantile(x, [0, 0.25, 0.5, 0.75, 1]))
    return Stats(
        n=len(x),
        mean=mean,
        mean_low=mean - half if half is not None else None,
        mean_high=mean + half if half is not None else None,
        variance=variance,
        lowest=lowest,
        lower_quartile=lower,
        median=median,
        upper_quartile=upper,
        highest=highest,
    )


def t_quantile(degrees: int) -> float:
    """The 97.5 % quantile of Student's t."""
    from scipy.special import stdtrit

    return float(stdtrit(degrees, 0.975))


def cumulative(values: Sequence[float] | Values) -> tuple[Values, Values]:
    """The empirical distribution: sorted values (n,) and the fraction (n,) of all that is at most each."""
    x = np.sort(np.asarray(values, dtype=np.float64))
    return x, np.searchsorted(x, x, side="right") / len(x)


def mean_pareto_accuracy(cost: Sequence[float] | Values, top1: Sequence[float] | Values) -> float | None:
    """Mean height of the curve through the best networks of all buckets: area under accuracy over normalised cost.

    The cost is normalised linearly to [0, 1] over the range of the space. The area by the trapezoidal rule from the
    first to the last best network is divided by the normalised cost between them, so the result is an accuracy, and
    the normalisation cancels out: sum of (c[i+1] - c[i]) * (a[i] + a[i+1]) / 2, over c[last] - c[first]. It compares
    supernets of one space. None where there are fewer than two costs.

    Reference: DepS, section 5, "mean pareto accuracy": the area under the curve of accuracy and normalised FLOPs.
    """
    order = np.argsort(np.asarray(cost, dtype=np.float64), kind="stable")
    c, a = np.asarray(cost, dtype=np.float64)[order], np.asarray(top1, dtype=np.float64)[order]
    if len(c) < 2 or not c[0] < c[-1]:
        return None
    return float((np.diff(c) * (a[1:] + a[:-1]) / 2).sum() / (c[-1] - c[0]))


def drops(medians: Sequence[float]) -> dict[str, float]:
    """How much accuracy falls from the costliest bucket to the cheapest: in itself, and relative to the costliest.

    `medians` are in order of cost. Empty for fewer than two. Reference: RSS, the drop from maximum to minimum.
    """
    if len(medians) < 2:
        return {}
    drop = medians[-1] - medians[0]
    return {"drop": drop} | ({"relative_drop": drop / medians[-1]} if medians[-1] > 0 else {})


def paired(ours: Sequence[float] | Values, theirs: Sequence[float] | Values) -> dict[str, Any]:
    """Mean difference (ours - theirs) of paired values and its 95 % interval, where there are two pairs."""
    stats = describe(np.asarray(ours) - np.asarray(theirs))
    found = {"mean_difference": stats.mean, "mean_difference_low": stats.mean_low, "mean_difference_high": stats.mean_high}
    return {name: value for name, value in found.items() if value is not None}
