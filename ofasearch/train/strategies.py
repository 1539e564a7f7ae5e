"""What to train at a step: one frozen class per paper. Pure: a strategy never sees weights or images.

A run has one or more *phases*, each with its share of the epochs, its learning rate, and the part of the space that is
open in it. Within a phase the strategy plans every step: which networks run, what they learn from, how their gradients
are weighed; the gradients of a step are summed.

A *dimension* is what a gene decides, named as in the published settings: kernel "ks", depth "d", expand ratio "e",
width of a stage "w".
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any, ClassVar, Literal, Protocol

import numpy as np

from ofasearch.errors import InfeasibleError, UsageError
from ofasearch.space.core import Codes, Space

Target = Literal["labels", "full", "teacher", "focal"]
Period = Literal["step", "epoch"]
Row = tuple[int, ...]
ALL = MappingProxyType({"ks": 99, "d": 99, "e": 99, "w": 99})  # every choice of every dimension


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward and backward of a step.

    `codes` is the network, `scale` multiplies its gradient, `target` is what it learns from: the labels; the detached
    logits of the step's first network ("full"); labels and `soft` times the frozen teacher's logits ("teacher"); labels
    and half the squared distance to the teacher's logits, times `soft` plus `bonus` where the teacher is right ("focal").
    Only a `regularised` pass has dropout.
    """

    codes: Row
    scale: float = 1.0
    target: Target = "labels"
    soft: float = 1.0
    bonus: float = 0.0
    regularised: bool = True


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The passes of one optimiser step, in order; their gradients are summed."""

    passes: tuple[Pass, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Phase:
    """One stage of a run.

    `epochs` and `warmup` are the paper's, and a run scales all of them by one number; a `warmup` of None is the recipe's
    own. `lr` is the peak rate relative to the recipe's. `choices` says how many of the largest choices of each dimension
    are open, 1 where nothing is said. `teaches`: the full network at its end is the frozen teacher of what follows.
    `sorts`: channels are sorted by importance before it, except that an expand ratio of `kept` keeps its channels.
    """

    name: str
    epochs: float
    lr: float = 1.0
    warmup: float | None = None
    choices: Mapping[str, int] = field(default_factory=lambda: ALL)
    subnets: int = 1
    teaches: bool = False
    sorts: bool = False
    kept: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """Where in a run a step is.

    `step` (from 0) of the `steps` of its phase, `epoch` (from 0) of the run; `resolution` is the code of the input size
    that all networks of the step share.
    """

    phase: Phase
    step: int
    steps: int
    epoch: int
    resolution: int


class Strategy(Protocol):
    """Decides which networks a step trains.

    `period` says how long a draw holds: the generator handed to `plan` is a new one every step or every epoch.
    `recipe` are settings of the loop that belong to the method, `needs_teacher` whether it distils from a given network.
    """

    recipe: ClassVar[Mapping[str, Any]]

    @property
    def period(self) -> Period:
        """How long a draw holds."""
        ...

    @property
    def needs_teacher(self) -> bool:
        """Whether it distils from a network that must be given."""
        ...

    def phases(self, space: Space) -> tuple[Phase, ...]:
        """The phases of a run on this space."""
        ...

    def plan(self, space: Space, at: Position, rng: np.random.Generator) -> StepPlan:
        """The networks of one step."""
        ...


class _Stepwise:
    """What most strategies share: a new draw at every step, no given teacher, the recipe as it is."""

    __slots__ = ()
    recipe: ClassVar[Mapping[str, Any]] = MappingProxyType({})

    @property
    def period(self) -> Period:
        """See `Strategy`."""
        return "step"

    @property
    def needs_teacher(self) -> bool:
        """See `Strategy`."""
        return False


# -- drawing networks ------------------------------------------------------------------------------------------


def dimensions(space: Space) -> dict[str, int]:
    """The elastic dimensions of a space and how many choices each has at most."""
    found: dict[str, int] = {}
    for gene in space.genes[1:]:
        found[gene.reads[0]] = max(found.get(gene.reads[0], 1), len(gene.choices))
    return {name: n for name, n in found.items() if n > 1}


def _row(codes: Codes, resolution: int) -> Row:
    return (resolution, *(int(c) for c in codes[1:]))


def _largest(space: Space, at: Position) -> Row:
    return _row(space.largest(), at.resolution)


def _smallest(space: Space, at: Position) -> Row:
    return _row(space.smallest(), at.resolution)


def _draw(space: Space, at: Position, n: int, rng: np.random.Generator) -> list[Row]:
    """n networks, every open choice uniform and independent (as the published code samples), at the step's resolution."""
    open_choices = np.array([min(len(g.choices), at.phase.choices.get(g.reads[0], 1)) for g in space.genes])
    codes = space.sizes - (rng.random((n, len(space.genes))) * open_choices).astype(np.int64)
    return [_row(codes_, at.resolution) for codes_ in space.canonical(codes)]


def _draw_others(space: Space, at: Position, n: int, rng: np.random.Generator) -> list[Row]:
    """n networks drawn uniformly from A \\ {full}."""
    if space.size == 1:
        raise InfeasibleError(f"a strategy that shrinks must have a space of more than one network, but {space.name} has one")
    full, found = _largest(space, at), list[Row]()
    while len(found) < n:
        found += [codes for codes in _draw(space, at, n, rng) if codes != full]
    return found[:n]


# -- progressive shrinking and its successors ------------------------------------------------------------------


TEACHER = Phase(name="teacher", epochs=180, choices=MappingProxyType({}), teaches=True)


@dataclass(frozen=True, slots=True, kw_only=True)
class OFA(_Stepwise):
    """Progressive shrinking: the full network, then elastic kernels, then depths and widths, one choice more at a time.

    After the first phase its network is frozen and teaches: every subnet learns from the labels and, with weight
    `distillation`, from the teacher's soft labels at temperature 1. Uniform subnets without a sandwich rule, as many a
    step as `*_subnets` say. Channels are sorted before every phase that opens narrower widths. Dimensions that a space
    does not have get no phase; where depth decides the width, as in CompOFA's space, sorting comes before depth. In a ResNet
    space the channels of stages come last, unsorted: shortcuts tie them to one another. How its authors trained ResNet50 was
    not published.

    Reference: once-for-all, section 3.3, 4.1 and Appendix B (rates 2.6, 0.96, then 0.08 and 0.24 at batch 2048; warm-up
    of 5 epochs in the phases of 125). The published code warms up from the rate of one GPU instead of 0.
    """

    kernel_subnets: int = 1
    depth_subnets: int = 2
    width_subnets: int = 4
    distillation: float = 1.0

    def __post_init__(self) -> None:
        _check_counts("ofa", self.kernel_subnets, self.depth_subnets, self.width_subnets)
        _check_weight("ofa", self.distillation)

    def phases(self, space: Space) -> tuple[Phase, ...]:
        """See `Strategy`."""
        open_now, known, found = dict[str, int](), dimensions(space), [TEACHER]
        if "ks" in known:
            open_now["ks"] = known["ks"]
            phase = Phase(
                name="kernel", epochs=125, lr=0.96 / 2.6, warmup=5, choices=MappingProxyType(dict(open_now)), subnets=self.kernel_subnets
            )
            found.append(phase)
        dimensions_ = (("d", "depth", self.depth_subnets), ("e", "width", self.width_subnets), ("w", "channels", self.width_subnets))
        for dimension, name, subnets in dimensions_:
            narrows = dimension == "e" or ("e" not in known and len(space.expands) > 1)
            for n in range(2, known.get(dimension, 1) + 1):
                open_now[dimension] = n
                last = n == known[dimension]
                found.append(
                    Phase(
                        name=f"{name} {n - 1}",
                        epochs=125 if last else 25,
                        lr=(0.24 if last else 0.08) / 2.6,
                        warmup=5 if last else 0,
                        choices=MappingProxyType(dict(open_now)),
                        subnets=subnets,
                        sorts=narrows,
                        kept=space.expands[1 - n] if narrows and n > 2 else None,
                    )
                )
        return tuple(found)

    def plan(self, space: Space, at: Position, rng: np.random.Generator) -> StepPlan:
        """See `Strategy`."""
        return _taught(space, at, rng, self.distillation)


@dataclass(frozen=True, slots=True, kw_only=True)
class CompOFA(_Stepwise):
    """The full network, then all subnets of the space at once, in a short and a long phase.

    Meant for a space of compound choices; on a larger one it is once-for-all without progressive shrinking. Where kernels
    are elastic they have a phase of their own before. Subnets learn as in `OFA`; channels are sorted once, when narrower
    widths are first open.

    Reference: CompOFA, section 5.1 and Table 1 (180, then 25 and 125 epochs at rates 1.95, 0.06 and 0.18, batch 1536). The
    rate of the kernel phase is once-for-all's relative to the teacher's. The published code sorts again before the last phase.
    """

    subnets: int = 4
    kernel_subnets: int = 1
    distillation: float = 1.0

    def __post_init__(self) -> None:
        _check_counts("compofa", self.subnets, self.kernel_subnets)
        _check_weight("compofa", self.distillation)

    def phases(self, space: Space) -> tuple[Phase, ...]:
        """See `Strategy`."""
        kernels = dimensions(space).get("ks", 1)
        open_kernels = MappingProxyType({"ks": kernels})
        elastic = Phase(name="kernel", epochs=125, lr=0.96 / 2.6, warmup=5, choices=open_kernels, subnets=self.kernel_subnets)
        return (
            TEACHER,
            *([elastic] if kernels > 1 else []),
            Phase(name="compound 1", epochs=25, lr=0.06 / 1.95, warmup=0, subnets=self.subnets, sorts=True),
            Phase(name="compound 2", epochs=125, lr=0.18 / 1.95, warmup=5, subnets=self.subnets),
        )

    def plan(self, space: Space, at: Position, rng: np.random.Generator) -> StepPlan:
        """See `Strategy`."""
        return _taught(space, at, rng, self.distillation)


def _taught(space: Space, at: Position, rng: np.random.Generator, distillation: float) -> StepPlan:
    """The full network on labels where the teacher is made; later uniform subnets on labels and its soft labels."""
    if at.phase.teaches:
        return StepPlan((Pass(_largest(space, at)),))
    target: Target = "teacher" if distillation > 0 else "labels"
    return StepPlan(tuple(Pass(codes, 1.0, target, distillation) for codes in _draw(space, at, at.phase.subnets, rng)))


@dataclass(frozen=True, slots=True, kw_only=True)
class BigNAS(_Stepwise):
    """The sandwich rule: the largest, the smallest and `subnets` random networks in every step.

    The largest learns from the labels; the others only from its detached soft predictions of the same step (in-place
    distillation), without dropout. Residual blocks start with a scale of zero in their last batch norm, the rate decays
    exponentially to a floor of 5 %.

    Reference: BigNAS (ECCV 2020) as told by DepS and AttentiveNAS, whose codes agree; the paper's full text was not at
    hand. It exempts the smaller networks from weight decay too, which has no meaning where weights are shared.
    """

    recipe: ClassVar[Mapping[str, Any]] = MappingProxyType({"schedule": "exponential", "zero_gamma": True})
    subnets: int = 2

    def __post_init__(self) -> None:
        _check_counts("bignas", self.subnets, least=0)

    def phases(self, space: Space) -> tuple[Phase, ...]:
        """See `Strategy`. DepS trains it for 400 epochs."""
        return (Phase(name="sandwich", epochs=400, subnets=self.subnets + 2),)

    def plan(self, space: Space, at: Position, rng: np.random.Generator) -> StepPlan:
        """See `Strategy`."""
        others = [_smallest(space, at), *_draw(space, at, self.subnets, rng)]
        return StepPlan((Pass(_largest(space, at)), *(Pass(codes, 1.0, "full", regularised=False) for codes in others)))


@dataclass(frozen=True, slots=True, kw_only=True)
class DepS(_Stepwise):
    """Delayed epsilon-shrinking: the full model alone, then the full model and k - 1 random subnets.

    From `warmup_share` of the run on, a step sums the full model's gradient and epsilon times that of `subnets - 1`
    uniform networks (paper, Eq. 4). Epsilon rises from `epsilon` by constant increments to 1 over `ramp_share` of the
    run, then stays. The subnets learn from the current full model, which keeps learning from the labels (IKD-Warmup).

    With `smallest`, the smallest network is one of the k - 1 in every step. The paper's ablations: `warmup_share` 0.25 or
    0.75; `epsilon` 1 (no epsilon-shrinking); `warmup_share` 0 (in-place distillation without warm-up).

    Reference: DepS, sections 4.1 to 4.3. The paper does not state k and the number of ramp steps; the defaults follow
    the released code's 5 of 270 epochs. That code also puts the smallest subnet into every step (here `smallest`), sorts
    channels when shrinking starts, and ramps a learning rate instead of epsilon; here Eq. 4 is followed.
    """

    warmup_share: float = 0.5
    subnets: int = 2
    epsilon: float = 1e-4
    ramp_share: float = 5 / 270
    smallest: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.warmup_share <= 1 or not 0 < self.epsilon <= 1 or self.subnets < 1 or not 0 <= self.ramp_share <= 1:
            raise UsageError(
                f"deps needs shares in [0, 1], epsilon in (0, 1] and at least 1 subnet, but got "
                f"{self.warmup_share}, {self.ramp_share}, {self.epsilon} and {self.subnets}"
            )
        _check_counts("deps", self.subnets)
        if not isinstance(self.smallest, bool):
            raise UsageError(f"smallest of deps must be true or false, but got '{self.smallest}'")
        if self.smallest and self.subnets < 2:
            raise UsageError(f"deps with the smallest network in every step needs at least 2 subnets, but got {self.subnets}")

    def phases(self, space: Space) -> tuple[Phase, ...]:
        """See `Strategy`. One phase, because the rate follows one cosine through warm-up and shrinking."""
        return (Phase(name="shrinking", epochs=270, subnets=self.subnets),)

    def epsilon_at(self, step: int, steps: int) -> float:
        """The gradient multiplier of subnets at a step; 0 during the warm-up of the full model."""
        start = round(self.warmup_share * steps)
        if step < start:
            return 0.0
        ramp = max(1, round(self.ramp_share * steps))
        return min(1.0, self.epsilon + (1 - self.epsilon) * (step - start) / ramp)

    def plan(self, space: Space, at: Position, rng: np.random.Generator) -> StepPlan:
        """See `Strategy`."""
        full = Pass(_largest(space, at))
        epsilon = self.epsilon_at(at.step, at.steps)
        if epsilon == 0:
            return StepPlan((full,))
        others = _draw_others(space, at, self.subnets - 1 - self.smallest, rng)
        if self.smallest:
            others.insert(0, _smallest(space, at))
        return StepPlan((full, *(Pass(codes, epsilon, "full", regularised=False) for codes in others)))


# -- random subnets, single networks ---------------------------------------------------------------------------

Selection = Literal["random", "smallest", "middle", "largest", "max-then-min", "min-then-max", "alternating"]
SELECTIONS: tuple[Selection, ...] = ("random", "smallest", "middle", "largest", "max-then-min", "min-then-max", "alternating")


@dataclass(frozen=True, slots=True, kw_only=True)
class RSS:
    """Random subnet sampling: one random subnet, alone, for a whole epoch; no phases, no distillation, no sandwich.

    The ablations: `every` "batch" draws anew at each step; `subnets` 2 sums the gradients of two. `selection` trains only
    the smallest, middle or largest network, one of the ends for the first half of the run and the other for the second,
    or both in turn, epoch by epoch.

    Reference: RSS, supplement 1.1 and 1.2; 590 epochs, 180 for RSS-Short, no warm-up of the rate. The released code
    runs a second pass per batch after its per-epoch pass; the paper does not.
    """

    recipe: ClassVar[Mapping[str, Any]] = MappingProxyType({"warmup_epochs": 0.0})
    every: Literal["epoch", "batch"] = "epoch"
    subnets: int = 1
    selection: Selection = "random"
    epochs: int = 590

    def __post_init__(self) -> None:
        _check_counts("rss", self.subnets)
        if not isinstance(self.epochs, int) or not 1 <= self.epochs <= 100_000:
            raise UsageError(f"rss needs 1 to 100000 epochs, but got {self.epochs}")
        if self.every not in ("epoch", "batch") or self.selection not in SELECTIONS:
            raise UsageError(
                f"rss must draw every epoch or batch and select {', '.join(SELECTIONS)}, but got '{self.every}' and '{self.selection}'"
            )

    @property
    def period(self) -> Period:
        """See `Strategy`."""
        return "epoch" if self.every == "epoch" else "step"

    @property
    def needs_teacher(self) -> bool:
        """See `Strategy`."""
        return False

    def phases(self, space: Space) -> tuple[Phase, ...]:
        """See `Strategy`."""
        return (Phase(name="random", epochs=self.epochs, subnets=self.subnets),)

    def plan(self, space: Space, at: Position, rng: np.random.Generator) -> StepPlan:
        """See `Strategy`."""
        chosen = self._chosen(at)
        if chosen is None:
            return StepPlan(tuple(Pass(codes) for codes in _draw(space, at, self.subnets, rng)))
        codes = {"smallest": space.smallest, "middle": space.middle, "largest": space.largest}[chosen]()
        return StepPlan((Pass(_row(codes, at.resolution)),) * self.subnets)

    def _chosen(self, at: Position) -> Literal["smallest", "middle", "largest"] | None:
        """The network that a step trains; None where it is drawn."""
        first_half = at.step < at.steps / 2
        if self.selection == "max-then-min":
            return "largest" if first_half else "smallest"
        if self.selection == "min-then-max":
            return "smallest" if first_half else "largest"
        if self.selection == "alternating":
            return "smallest" if at.epoch % 2 else "largest"
        return None if self.selection == "random" else self.selection


def rss_short(**options: Any) -> RSS:
    """RSS with the epochs of RSS-Short."""
    return RSS(**{"epochs": 180} | options)


@dataclass(frozen=True, slots=True, kw_only=True)
class Single:
    """One fixed network alone: `codes` of it, or the largest. With `focal` or `distillation`, it also learns from a reference.

    `distillation` weighs the reference's soft predictions beside the labels, as progressive shrinking does (OFA, section 4.1).
    Focal distillation adds `focal` * (alpha + beta * [the reference is right]) * D to the loss of each image, D half the
    squared distance of the logits, so that the network keeps what its reference gets right.

    Reference: positive-congruent training (CVPR 2021), Eq. 4, 7 to 9 (alpha 1, beta 5 to 10, weight 1).
    """

    recipe: ClassVar[Mapping[str, Any]] = MappingProxyType({})
    codes: Row | None = None
    focal: float = 0.0
    alpha: float = 1.0
    beta: float = 5.0
    distillation: float = 0.0

    def __post_init__(self) -> None:
        for weight in (self.focal, self.alpha, self.beta, self.distillation):
            _check_weight("single", weight)
        if self.focal > 0 and self.distillation > 0:
            raise UsageError(f"single learns from a reference in one way, but got focal {self.focal} and distillation {self.distillation}")

    @property
    def period(self) -> Period:
        """See `Strategy`."""
        return "step"

    @property
    def needs_teacher(self) -> bool:
        """See `Strategy`."""
        return self.focal > 0 or self.distillation > 0

    def phases(self, space: Space) -> tuple[Phase, ...]:
        """See `Strategy`."""
        return (Phase(name="single", epochs=180),)

    def plan(self, space: Space, at: Position, rng: np.random.Generator) -> StepPlan:
        """See `Strategy`."""
        codes = _largest(space, at) if self.codes is None else (at.resolution, *self.codes[1:])
        if self.distillation > 0:
            return StepPlan((Pass(codes, 1.0, "teacher", self.distillation),))
        target: Target = "focal" if self.focal > 0 else "labels"
        return StepPlan((Pass(codes, 1.0, target, self.focal * self.alpha, self.focal * self.beta),))


STRATEGIES: Mapping[str, Callable[..., Strategy]] = MappingProxyType(
    {"ofa": OFA, "compofa": CompOFA, "bignas": BigNAS, "deps": DepS, "rss": RSS, "rss-short": rss_short, "single": Single}
)


def _check_counts(name: str, *counts: int, least: int = 1) -> None:
    if not all(isinstance(n, int) and least <= n <= 1000 for n in counts):
        raise UsageError(f"{name} needs {least} to 1000 subnets a step, but got {', '.join(map(str, counts))}")


def _check_weight(name: str, weight: float) -> None:
    if not isinstance(weight, int | float) or not 0 <= weight < float("inf"):
        raise UsageError(f"{name} needs weights of at least 0, but got {weight}")
