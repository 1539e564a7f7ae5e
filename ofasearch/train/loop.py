"""How to train a step: the only optimiser code. A generator of step reports; who calls it saves and prints.

Legend: B = images of a micro-batch. A batch is cut into `ranks.size * accumulate` micro-batches of equal size; a process
runs `accumulate` of them, and gradients are averaged over all. So N processes compute what one process computes that
accumulates N times as often.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofasearch.data import Preprocessing
from ofasearch.errors import TrainingError, UsageError
from ofasearch.ranks import Ranks
from ofasearch.supernet.elastic import channels_last
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import sort_channels
from ofasearch.train.augment import Augmentation, inputs
from ofasearch.train.schedule import Curve, lay_out
from ofasearch.train.source import Request, Source
from ofasearch.train.strategies import Pass, Phase, Strategy

Precision = Literal["fp32", "bf16", "fp16"]
ORDER, PLAN, CROPS, RESOLUTION, INPUTS, DROPOUT = range(6)  # what a draw is for; every draw comes from (seed, purpose, step, ...)


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The recipe. Same config, data and seed: same weights, also across interruptions (on CPU)."""

    epochs: int
    batch_size: int = 128  # images, of all processes together
    accumulate: int = 1  # micro-batches that a process runs one after the other
    optimizer: Literal["sgd", "rmsprop"] = "sgd"
    lr: float = 0.1  # peak, reached after the warm-up; phases scale it
    schedule: Curve = "cosine"
    warmup_epochs: float = 1.0  # linear from 0
    momentum: float = 0.9  # Nesterov for sgd
    weight_decay: float = 3e-4  # not on batch norms and biases
    label_smoothing: float = 0.0
    dropout: float = 0.0  # before the classifier
    zero_gamma: bool = False  # residual blocks of a new supernet start as identities
    crop_padding: int = 4  # pixels, reflected; small images only
    flip: bool = True
    jitter: bool = False
    auto_augment: Literal["none", "cifar10", "imagenet"] = "none"
    erase: float = 0.0  # probability of random erasing
    elastic_resolution: bool = True  # a resolution of the space per step; False: the largest
    precision: Precision = "fp32"
    sync_bn: bool = False  # batch statistics over all processes
    seed: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 2 or not 0 < self.lr < math.inf or not 0 <= self.warmup_epochs < self.epochs:
            raise UsageError(
                f"training needs at least 1 epoch, a batch of 2, a positive rate and a warm-up within the run, "
                f"but got {self.epochs} epochs, a batch of {self.batch_size}, rate {self.lr} and {self.warmup_epochs} epochs of warm-up"
            )
        if not 0 < self.momentum < 1 or not 0 <= self.weight_decay < math.inf or not 0 <= self.label_smoothing < 1:
            raise UsageError(
                f"momentum must lie in (0, 1), weight decay be at least 0 and label smoothing lie in [0, 1), "
                f"but got {self.momentum}, {self.weight_decay} and {self.label_smoothing}"
            )
        if not 0 <= self.dropout < 1 or self.accumulate < 1:
            raise UsageError(f"dropout must lie in [0, 1) and accumulate be at least 1, but got {self.dropout} and {self.accumulate}")
        for name, value, known in (
            ("optimizer", self.optimizer, ("sgd", "rmsprop")),
            ("schedule", self.schedule, ("cosine", "exponential")),
            ("precision", self.precision, ("fp32", "bf16", "fp16")),
        ):
            if value not in known:
                raise UsageError(f"{name} must be one of {', '.join(known)}, but got '{value}'")
        self.augmentation()

    def augmentation(self) -> Augmentation:
        """How images are varied."""
        return Augmentation(
            crop_padding=self.crop_padding, flip=self.flip, jitter=self.jitter, auto_augment=self.auto_augment, erase=self.erase
        )


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step: position, phase, learning rate, loss of the first pass, images of all processes, passes."""

    step: int  # from 1, counted when done
    steps: int
    epoch: int  # from 1
    phase: str
    loss: float
    lr: float
    images: int
    passes: int


class Trainer:
    """Weights and optimiser of one run. `run` trains from `step` on; `state` and `restore` carry it over a kill.

    Every process of `ranks` has a Trainer with the same arguments. `teacher` is a given network to distil from: a
    strategy that would train one first skips that phase, and the supernet should start from its weights.

    Gradients are averaged here and not by DistributedDataParallel, whose reducer expects one backward per step that
    reaches the same parameters each time; a step of ours has several, each through another subnet.
    """

    def __init__(
        self,
        supernet: Supernet,
        strategy: Strategy,
        config: TrainConfig,
        source: Source,
        preprocessing: Preprocessing,
        *,
        ranks: Ranks | None = None,
        teacher: nn.Module | None = None,
    ):
        self.ranks = ranks or Ranks()
        self._micro = _micro_size(config, self.ranks)
        if len(source) < config.batch_size:
            raise UsageError(f"training images must fill at least one batch of {config.batch_size}, but there are {len(source)}")
        if strategy.needs_teacher and teacher is None:
            raise UsageError("distillation from a reference needs a network to distil from: give it as --teacher")
        self.device = next(supernet.parameters()).device
        _check_device(config, self.device)
        channels_last(supernet)
        supernet.sync_bn = config.sync_bn
        self.supernet, self.strategy, self.config = supernet, strategy, config
        self.source, self.preprocessing = source, preprocessing
        self.teacher = None if teacher is None else teacher.to(self.device).requires_grad_(False)
        self.step = 0
        self.steps_per_epoch = len(source) // config.batch_size
        phases = [phase for phase in strategy.phases(supernet.space) if teacher is None or not phase.teaches]
        self.schedule = lay_out(
            phases,
            epochs=config.epochs,
            steps_per_epoch=self.steps_per_epoch,
            lr=config.lr,
            warmup_epochs=config.warmup_epochs,
            curve=config.schedule,
        )
        self.steps = self.schedule.steps
        self._labels = torch.from_numpy(source.labels).to(self.device)
        self._optimizer = _optimizer(supernet, config)
        self._scaler = torch.amp.GradScaler(self.device.type, enabled=config.precision == "fp16")
        self.ranks.share_tensors(list(supernet.tensors().values()))

    def lr_at(self, step: int) -> float:
        """The learning rate of a step (from 0)."""
        return self.schedule.lr_at(step)

    def run(self) -> Iterator[StepReport]:
        """Train to the end, one report per step.

        Raises TrainingError when a loss is not finite (the message names step and network) or another process dies,
        FormatError when an image cannot be read.
        """
        batches = self._micro_batches()
        while self.step < self.steps:
            yield self._step(batches)

    def _rng(self, purpose: int, *key: int) -> np.random.Generator:
        return np.random.default_rng([self.config.seed, purpose, *key])

    def _micro_batches(self) -> Iterator[tuple[Request, Tensor]]:
        """The micro-batches of this process from the current step on, with their images (B, r, r, 3)."""
        asked = deque[Request]()

        def ask() -> Iterator[Request]:
            for request in self._requests():
                asked.append(request)
                yield request

        for images in self.source.images(ask()):
            yield asked.popleft(), images

    def _requests(self) -> Iterator[Request]:
        """What `_micro_batches` asks its source for; sources may look ahead of the steps."""
        epoch, order = -1, np.zeros(0, dtype=np.int64)
        for step in range(self.step, self.steps):
            if step // self.steps_per_epoch != epoch:
                epoch = step // self.steps_per_epoch
                order = self._rng(ORDER, epoch).permutation(len(self._labels))
            start = step % self.steps_per_epoch * self.config.batch_size
            resolution = self.supernet.space.resolutions[self._resolution(step) - 1]
            first = self.ranks.rank * self.config.accumulate
            for number in range(first, first + self.config.accumulate):
                chosen = order[start + number * self._micro : start + (number + 1) * self._micro]
                yield Request(chosen, resolution, (self.config.seed, CROPS, step, number))

    def _resolution(self, step: int) -> int:
        """Code of the input resolution of a step, the same on every process."""
        n = len(self.supernet.space.resolutions)
        return int(self._rng(RESOLUTION, step).integers(1, n + 1)) if self.config.elastic_resolution else n

    def _step(self, batches: Iterator[tuple[Request, Tensor]]) -> StepReport:
        stretch = self.schedule.stretch_of(self.step)
        if self.step == stretch.start:
            self._enter(stretch.phase)
        at = self.schedule.at(self.step, self._resolution(self.step))
        drawn = at.epoch if self.strategy.period == "epoch" else self.step
        passes = self.strategy.plan(self.supernet.space, at, self._rng(PLAN, drawn)).passes
        lr = self.lr_at(self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad(set_to_none=True)
        self.supernet.train()
        losses = torch.zeros(len(passes), device=self.device)
        for _ in range(self.config.accumulate):
            request, images = next(batches)
            losses += self._accumulate(passes, request, images.to(self.device, non_blocking=True))
        self._update(losses, passes)
        self.step += 1
        return StepReport(
            self.step, self.steps, at.epoch + 1, stretch.phase.name, float(losses[0]), lr, self.config.batch_size, len(passes)
        )

    def _enter(self, phase: Phase) -> None:
        """Begin a phase: a new optimiser state; where the method says so, a frozen teacher and sorted channels."""
        earlier = [s.phase for s in self.schedule.stretches if s.end == self.step]
        if self.step:
            self._optimizer.state.clear()  # momentum of other networks, and of channels that may move now
        if earlier and earlier[0].teaches:
            self.teacher = self._full()
        if phase.sorts:
            self.supernet.load_arrays(sort_channels(self.supernet.arrays(), self.supernet.space, kept=phase.kept))

    def _full(self) -> nn.Module:
        """The full network as a frozen teacher: its batch norm takes the statistics of the batch, as in the published code."""
        return self.supernet.extract(self.supernet.space.largest()).train().requires_grad_(False)

    def _accumulate(self, passes: Sequence[Pass], request: Request, images: Tensor) -> Tensor:
        """Backward of every pass on one micro-batch; gradients add up in the shared weights. Returns the losses, (passes,)."""
        micro = request.key[2:]
        x = inputs(images, self.config.augmentation(), self.preprocessing, self._rng(INPUTS, *micro))
        y = self._labels[torch.from_numpy(request.index)]
        share = 1 / (self.config.accumulate * self.ranks.size)  # the processes' gradients are summed
        losses, first = [], torch.empty(0)
        taught = self._teach(x) if any(p.target in ("teacher", "focal") for p in passes) else first
        for number, part in enumerate(passes):
            with self._autocast():
                logits = self.supernet(
                    x, self.supernet.space.blueprint(np.array(part.codes)), self._mask(part, micro, number)
                )  # (B, classes)
            logits = logits.float()
            first = logits.detach() if number == 0 else first
            loss = self._loss(part, logits, y, taught if part.target in ("teacher", "focal") else first)
            self._scaler.scale(loss * (part.scale * share)).backward()  # type: ignore[no-untyped-call]
            losses.append(loss.detach())
        return torch.stack(losses) * share

    def _loss(self, part: Pass, logits: Tensor, y: Tensor, other: Tensor) -> Tensor:
        """The loss of one pass; `other` are the logits it distils from. All of (B, classes), labels (B,)."""
        if part.target == "full":
            return F.cross_entropy(logits, other.softmax(1))
        loss = F.cross_entropy(logits, y, label_smoothing=self.config.label_smoothing)
        if part.target == "teacher":
            return loss + part.soft * F.cross_entropy(logits, other.softmax(1))
        if part.target == "focal":
            weight = part.soft + part.bonus * (other.argmax(1) == y)
            return loss + (weight * 0.5 * (logits - other).square().sum(1)).mean()
        return loss

    @torch.no_grad()
    def _teach(self, x: Tensor) -> Tensor:
        """Logits (B, classes) of the teacher."""
        if self.teacher is None:
            raise TrainingError("a step that distils must have a teacher, but its phase was skipped; start the run again")
        with self._autocast():
            return self.teacher(x).float()  # type: ignore[no-any-return]

    def _mask(self, part: Pass, micro: tuple[int, ...], number: int) -> Tensor | None:
        """What dropout multiplies the classifier's input by, (B, C); None where there is no dropout."""
        if self.config.dropout == 0 or not part.regularised:
            return None
        features = self.supernet.space.blueprint(np.array(part.codes))[-1].c_in
        kept = self._rng(DROPOUT, *micro, number).random((self._micro, features), dtype=np.float32) >= self.config.dropout
        return torch.from_numpy(kept.astype(np.float32) / (1 - self.config.dropout)).to(self.device)

    def _autocast(self) -> AbstractContextManager[Any]:
        dtype = torch.float16 if self.config.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.config.precision != "fp32")

    def _update(self, losses: Tensor, passes: Sequence[Pass]) -> None:
        """Sum gradients and losses over the processes, and step.

        Parameters that no network of the step has keep weights and momentum; of a parameter that one has in part, the
        rest has a gradient of zero, as in the published code. All processes train the same networks, so they agree on it.
        """
        self.ranks.add([losses, *(p.grad for p in self.supernet.parameters() if p.grad is not None)])
        for value, part in zip(losses.tolist(), passes, strict=True):
            if not math.isfinite(value):
                arch = self.supernet.space.arch(np.array(part.codes))
                raise TrainingError(f"the loss must stay finite, but is {value} at step {self.step} for {arch}; lower the learning rate")
        self._scaler.step(self._optimizer)
        self._scaler.update()

    def state(self) -> dict[str, Any]:
        """All that a continuation needs, as tensors and numbers (loads with `weights_only=True`)."""
        weights = {key: t.detach() for key, t in self.supernet.tensors().items()}
        state = {"step": self.step, "weights": weights, "optimizer": self._optimizer.state_dict(), "scaler": self._scaler.state_dict()}
        made = any(s.phase.teaches for s in self.schedule.stretches)  # a given teacher is given again
        return state | ({"teacher": self.teacher.state_dict()} if made and self.teacher is not None else {})

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()` of a run with the same config.

        Raises TrainingError when the state does not fit.
        """
        groups = self._optimizer.state_dict()["param_groups"]
        try:
            if not isinstance(state["weights"], dict):
                raise TypeError("its weights have no names")
            _copy(state["weights"], self.supernet.tensors())
            self._optimizer.load_state_dict(state["optimizer"])
            self._check_optimizer(groups)
            self._scaler.load_state_dict(state["scaler"])
            self.step = int(state["step"])
            if not 0 <= self.step <= self.steps:
                raise ValueError(f"its step is {self.step} of {self.steps}")
            if self.step < self.steps and any(s.phase.teaches and s.end < self.step for s in self.schedule.stretches):
                self.teacher = self._full()
                _copy(state["teacher"], {key: t for key, t in self.teacher.state_dict().items() if t.is_floating_point()})
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, OverflowError) as error:
            raise TrainingError(f"the checkpoint must come from the same run, but it does not fit: {error}") from error

    def _check_optimizer(self, groups: list[dict[str, Any]]) -> None:
        """Raise ValueError unless the optimiser, just restored, has its own settings and a fitting state per parameter."""
        restored = self._optimizer.state_dict()["param_groups"]
        if [{**group, "lr": 0} for group in restored] != [{**group, "lr": 0} for group in groups]:  # the rate follows the step
            raise ValueError("its optimiser has other settings")
        known = {"momentum_buffer"} | ({"step", "square_avg"} if self.config.optimizer == "rmsprop" else set())
        for parameter, state in self._optimizer.state.items():
            moments = [t for name, t in state.items() if name != "step" and t is not None]
            if set(state) - known or any(t.shape != parameter.shape for t in moments):
                raise ValueError("its optimiser has another state")


@torch.no_grad()
def _copy(stored: Any, own: dict[str, Tensor]) -> None:
    """Copy stored tensors over own ones. Raises KeyError and ValueError unless all are there, of the same shape and finite."""
    for key, tensor in own.items():
        if stored[key].shape != tensor.shape or not stored[key].isfinite().all():  # copying would stretch it
            raise ValueError(f"{key} has another shape or is not finite")
        tensor.copy_(stored[key])


def _micro_size(config: TrainConfig, ranks: Ranks) -> int:
    """Images of a micro-batch. Raises UsageError when the batch cannot be cut evenly."""
    parts = ranks.size * config.accumulate
    size, rest = divmod(config.batch_size, parts)
    if rest or size < 2:
        raise UsageError(
            f"a batch must be a multiple of processes times accumulation, with at least 2 images each, "
            f"but {config.batch_size} images are cut into {parts} parts"
        )
    return size


def _check_device(config: TrainConfig, device: torch.device) -> None:
    """Raise UsageError where a setting needs another device."""
    for wanted, name in ((config.precision == "fp16", "--precision fp16"), (config.sync_bn, "--sync-bn")):
        if wanted and device.type != "cuda":
            raise UsageError(f"{name} needs a CUDA device, but this run is on {device.type}; leave it out")


def _optimizer(supernet: Supernet, config: TrainConfig) -> torch.optim.Optimizer:
    """Weight decay on weights of two or more dimensions, none on batch norms and biases."""
    parameters = [p for p in supernet.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    if config.optimizer == "rmsprop":
        return torch.optim.RMSprop(groups, lr=config.lr, alpha=0.9, eps=1e-3, momentum=config.momentum)
    return torch.optim.SGD(groups, lr=config.lr, momentum=config.momentum, nesterov=True)
