"""When: the phases of a run laid out over its steps, and the learning rate of each step."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from ofasearch.errors import UsageError
from ofasearch.train.strategies import Phase, Position

Curve = Literal["cosine", "exponential"]
DECAY, FLOOR, DECAYS_PER_EPOCH = 0.97, 0.05, 1 / 2.4  # BigNAS: times 0.97 every 2.4 epochs, never below 5 %


@dataclass(frozen=True, slots=True)
class Stretch:
    """One phase and its steps, from `start` to before `end`; `scale` is the run's length relative to the paper's."""

    phase: Phase
    start: int
    end: int
    scale: float


@dataclass(frozen=True, slots=True)
class Schedule:
    """All stretches of a run, one behind the other."""

    stretches: tuple[Stretch, ...]
    steps_per_epoch: int
    lr: float
    warmup_epochs: float  # of phases that do not say their own
    curve: Curve

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return self.stretches[-1].end

    def stretch_of(self, step: int) -> Stretch:
        """The stretch that a step (from 0) belongs to."""
        return next(s for s in self.stretches if step < s.end)

    def at(self, step: int, resolution: int) -> Position:
        """What a strategy needs to know of a step."""
        s = self.stretch_of(step)
        return Position(
            phase=s.phase, step=step - s.start, steps=s.end - s.start, epoch=step // self.steps_per_epoch, resolution=resolution
        )

    def lr_at(self, step: int) -> float:
        """Per phase: linear warm-up from 0 to its peak, then half a cosine to 0, or an exponential decay to 5 %."""
        s = self.stretch_of(step)
        done, length, peak = step - s.start, s.end - s.start, self.lr * s.phase.lr
        own = self.warmup_epochs if s.phase.warmup is None else s.phase.warmup * s.scale
        warmup = own * self.steps_per_epoch
        if done < warmup:
            return peak * min(1.0, (done + 1) / warmup)
        if self.curve == "exponential":
            decays = done / length * s.phase.epochs * DECAYS_PER_EPOCH
            return peak * max(FLOOR, math.pow(DECAY, decays))
        return peak * 0.5 * (1 + math.cos(math.pi * (done - warmup) / (length - warmup)))


def lay_out(phases: Sequence[Phase], *, epochs: int, steps_per_epoch: int, lr: float, warmup_epochs: float, curve: Curve) -> Schedule:
    """Scale the phases to `epochs` in all, their proportions kept to the step.

    Raises UsageError when there is no phase, or one would have no step, or its warm-up would fill it.
    """
    if not phases:
        raise UsageError("a run must have a phase to train, but a given teacher takes the place of the only one; leave --teacher out")
    steps, total, done, end = epochs * steps_per_epoch, sum(phase.epochs for phase in phases), 0.0, 0
    stretches = []
    for phase in phases:
        start = end
        done += phase.epochs
        end = round(steps * done / total)
        stretches.append(Stretch(phase, start, end, epochs / total))
    schedule = Schedule(tuple(stretches), steps_per_epoch, lr, warmup_epochs, curve)
    for s in stretches:
        own = warmup_epochs if s.phase.warmup is None else s.phase.warmup * s.scale
        if s.end <= s.start or own * steps_per_epoch >= max(1, s.end - s.start):
            raise UsageError(
                f"every phase must have at least one step beyond its warm-up, but '{s.phase.name}' has {s.end - s.start} of "
                f"{steps} steps and a warm-up of {own * steps_per_epoch:.1f}; train for more epochs or warm up for fewer"
            )
    return schedule
