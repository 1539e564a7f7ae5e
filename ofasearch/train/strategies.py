"""What to train at a step: one frozen class per paper. Pure: a strategy never sees weights or images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np

from ofasearch.errors import InfeasibleError, UsageError
from ofasearch.space.core import Space

Target = Literal["labels", "full"]


@dataclass(frozen=True, slots=True)
class Pass:
    """One forward and backward of a step.

    `codes` is the network, `scale` multiplies its gradient, `target` is what it learns from: the labels, or the
    detached logits of the full model in the same step.
    """

    codes: tuple[int, ...]
    scale: float
    target: Target


@dataclass(frozen=True, slots=True)
class StepPlan:
    """The passes of one optimiser step, in order; their gradients are summed."""

    passes: tuple[Pass, ...]


class Strategy(Protocol):
    """Decides which networks a step trains. `progress` of a run is step / steps."""

    def plan(self, space: Space, step: int, steps: int, rng: np.random.Generator) -> StepPlan:
        """The plan of step `step` (from 0) of a run of `steps` steps."""
        ...


@dataclass(frozen=True, slots=True, kw_only=True)
class DepS:
    """Delayed epsilon-shrinking: the full model alone, then the full model and k - 1 random subnets.

    From `warmup_share` of the run on, a step sums the full model's gradient and epsilon times that of `subnets - 1`
    uniform networks (paper, Eq. 4). Epsilon rises from `epsilon` by constant increments to 1 over `ramp_share` of the
    run, then stays. The subnets learn from the current full model, which keeps learning from the labels (IKD-Warmup).

    With `smallest`, the smallest network is one of the k - 1 in every step.

    Reference: DepS, sections 4.1 to 4.3. The paper does not state k and the number of ramp steps; the defaults follow
    the released code's 5 of 270 epochs. That code also puts the smallest subnet into every step (here `smallest`) and
    ramps a learning rate instead of epsilon; here Eq. 4 is followed.
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
        if self.smallest and self.subnets < 2:
            raise UsageError(f"deps with the smallest network in every step needs at least 2 subnets, but got {self.subnets}")

    def epsilon_at(self, step: int, steps: int) -> float:
        """The gradient multiplier of subnets at a step; 0 during the warm-up of the full model."""
        start = round(self.warmup_share * steps)
        if step < start:
            return 0.0
        ramp = max(1, round(self.ramp_share * steps))
        return min(1.0, self.epsilon + (1 - self.epsilon) * (step - start) / ramp)

    def plan(self, space: Space, step: int, steps: int, rng: np.random.Generator) -> StepPlan:
        """See the class."""
        full = space.largest()
        passes = [Pass(tuple(int(c) for c in full), 1.0, "labels")]
        epsilon = self.epsilon_at(step, steps)
        if epsilon > 0:
            others = _others(space, self.subnets - 1 - self.smallest, rng)
            if self.smallest:
                others.insert(0, _smallest(space))
            passes += [Pass(codes, epsilon, "full") for codes in others]
        return StepPlan(tuple(passes))


def _others(space: Space, n: int, rng: np.random.Generator) -> list[tuple[int, ...]]:
    """n uniform networks of A \\ {full}, at the full model's resolution."""
    if space.size == 1:
        raise InfeasibleError(f"a strategy that shrinks must have a space of more than one network, but {space.name} has one")
    full = space.largest()
    found: list[tuple[int, ...]] = []
    while len(found) < n:
        batch = space.sample(n, rng)
        batch[:, 0] = full[0]
        found += [tuple(int(c) for c in row) for row in batch if (row != full).any()]
    return found[:n]


def _smallest(space: Space) -> tuple[int, ...]:
    """The smallest network at the full model's resolution."""
    codes = space.smallest()
    codes[0] = space.largest()[0]
    return tuple(int(c) for c in codes)


STRATEGIES: dict[str, type[DepS]] = {"deps": DepS}
