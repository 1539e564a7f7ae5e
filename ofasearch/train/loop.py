"""How to train a step: the only optimiser code. A generator of step reports; who calls it saves and prints."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ofasearch.data import ImageSet, Preprocessing
from ofasearch.errors import TrainingError, UsageError
from ofasearch.supernet.elastic import channels_last
from ofasearch.supernet.supernet import Supernet
from ofasearch.train.strategies import StepPlan, Strategy


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """The recipe. Same config, data and seed: same weights, also across interruptions (on CPU)."""

    epochs: int
    batch_size: int = 128  # images
    lr: float = 0.1  # peak, reached after the warm-up
    warmup_epochs: float = 1.0  # linear from 0
    momentum: float = 0.9  # Nesterov
    weight_decay: float = 3e-4  # not on batch norms and biases
    label_smoothing: float = 0.0
    crop_padding: int = 4  # pixels, reflected
    flip: bool = True
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


@dataclass(frozen=True, slots=True)
class StepReport:
    """One optimiser step: position, learning rate, loss of the first pass, gradient scale of the others."""

    step: int  # from 1, counted when done
    steps: int
    epoch: int  # from 1
    loss: float
    lr: float
    images: int
    passes: int


class Trainer:
    """Weights and optimiser of one run. `run` trains from `step` on; `state` and `restore` carry it over a kill."""

    def __init__(self, supernet: Supernet, strategy: Strategy, config: TrainConfig, data: ImageSet, preprocessing: Preprocessing):
        if len(data) < config.batch_size:
            raise UsageError(f"training images must fill at least one batch of {config.batch_size}, but there are {len(data)}")
        channels_last(supernet)
        self.supernet = supernet
        self.strategy, self.config, self.preprocessing = strategy, config, preprocessing
        self.step = 0
        self.steps_per_epoch = len(data) // config.batch_size
        self.steps = config.epochs * self.steps_per_epoch
        pad = config.crop_padding
        self._labels = torch.from_numpy(data.labels)
        self._images = torch.from_numpy(np.pad(data.images, ((0, 0), (pad, pad), (pad, pad), (0, 0)), mode="reflect"))
        self._optimizer = torch.optim.SGD(_groups(supernet, config), lr=config.lr, momentum=config.momentum, nesterov=True)

    def lr_at(self, step: int) -> float:
        """Linear warm-up, then half a cosine to 0, per step."""
        warmup = self.config.warmup_epochs * self.steps_per_epoch
        if step < warmup:
            return self.config.lr * min(1.0, (step + 1) / warmup)
        return self.config.lr * 0.5 * (1 + math.cos(math.pi * (step - warmup) / (self.steps - warmup)))

    def run(self) -> Iterator[StepReport]:
        """Train to the end, one report per step.

        Raises TrainingError when a loss is not finite; the message names step and network.
        """
        while self.step < self.steps:
            epoch = self.step // self.steps_per_epoch
            order = np.random.default_rng([self.config.seed, 0, epoch]).permutation(len(self._labels))
            for index in range(self.step % self.steps_per_epoch, self.steps_per_epoch):
                chosen = order[index * self.config.batch_size : (index + 1) * self.config.batch_size]
                yield self._step(torch.from_numpy(chosen), epoch)

    def _step(self, chosen: Tensor, epoch: int) -> StepReport:
        # Every draw comes from (seed, purpose, step), so a resumed run needs no generator state.
        rng = np.random.default_rng([self.config.seed, 1, self.step])
        plan = self.strategy.plan(self.supernet.space, self.step, self.steps, rng)
        x = self._augment(chosen, np.random.default_rng([self.config.seed, 2, self.step]))
        lr = self.lr_at(self.step)
        for group in self._optimizer.param_groups:
            group["lr"] = lr
        self._optimizer.zero_grad(set_to_none=True)
        loss = self._accumulate(plan, x, self._labels[chosen])
        self._optimizer.step()
        self.step += 1
        return StepReport(self.step, self.steps, epoch + 1, loss, lr, len(chosen), len(plan.passes))

    def _accumulate(self, plan: StepPlan, x: Tensor, y: Tensor) -> float:
        """Backward of every pass; gradients sum up in the shared weights. Returns the loss of the first pass."""
        space = self.supernet.space
        self.supernet.train()
        first = math.nan
        soft = torch.empty(0)
        for number, part in enumerate(plan.passes):
            logits = self.supernet(x, space.blueprint(np.array(part.codes)))  # (B, classes)
            if part.target == "labels":
                loss = F.cross_entropy(logits, y, label_smoothing=self.config.label_smoothing)
                soft = logits.detach().softmax(1)
            else:
                loss = F.cross_entropy(logits, soft)
            value = float(loss.detach())
            if not math.isfinite(value):
                arch = space.arch(np.array(part.codes))
                raise TrainingError(f"the loss must stay finite, but is {value} at step {self.step} for {arch}; lower the learning rate")
            (loss * part.scale).backward()  # type: ignore[no-untyped-call]
            first = value if number == 0 else first
        return first

    def _augment(self, chosen: Tensor, rng: np.random.Generator) -> Tensor:
        """A random crop and flip of each image, normalised: (B, 3, H, H), channels last."""
        b, size = len(chosen), self._images.shape[1] - 2 * self.config.crop_padding
        top, left = (torch.from_numpy(rng.integers(0, 2 * self.config.crop_padding + 1, (b, 1))) for _ in range(2))
        columns = torch.arange(size)[None].expand(b, size)
        if self.config.flip:
            mirrored = torch.from_numpy(rng.random((b, 1)) < 0.5)
            columns = torch.where(mirrored, size - 1 - columns, columns)
        rows = top + torch.arange(size)[None]  # (B, H)
        images = self._images[chosen[:, None, None], rows[:, :, None], (left + columns)[:, None, :]]  # (B, H, H, 3)
        return torch.from_numpy(self.preprocessing.apply(images.numpy()))

    def state(self) -> dict[str, Any]:
        """All that a continuation needs, as tensors and numbers (loads with `weights_only=True`)."""
        weights = {key: t.detach() for key, t in self.supernet.tensors().items()}
        return {"step": self.step, "weights": weights, "optimizer": self._optimizer.state_dict()}

    def restore(self, state: dict[str, Any]) -> None:
        """Continue from `state()` of a run with the same config.

        Raises TrainingError when the state does not fit.
        """
        groups = self._optimizer.state_dict()["param_groups"]
        try:
            if not isinstance(state["weights"], dict):
                raise TypeError("its weights have no names")
            with torch.no_grad():
                for key, tensor in self.supernet.tensors().items():
                    stored = state["weights"][key]
                    if stored.shape != tensor.shape or not stored.isfinite().all():  # copying would stretch it
                        raise ValueError(f"{key} has another shape or is not finite")
                    tensor.copy_(state["weights"][key])
            self._optimizer.load_state_dict(state["optimizer"])
            self._check_optimizer(groups)
            self.step = int(state["step"])
            if not 0 <= self.step <= self.steps:
                raise ValueError(f"its step is {self.step} of {self.steps}")
        except (KeyError, TypeError, ValueError, RuntimeError, AttributeError, IndexError, OverflowError) as error:
            raise TrainingError(f"the checkpoint must come from the same run, but it does not fit: {error}") from error

    def _check_optimizer(self, groups: list[dict[str, Any]]) -> None:
        """Raise ValueError unless the optimiser, just restored, has its own settings and a finite momentum per parameter."""
        restored = self._optimizer.state_dict()["param_groups"]
        if [{**group, "lr": 0} for group in restored] != [{**group, "lr": 0} for group in groups]:  # the rate follows the step
            raise ValueError("its optimiser has other settings")
        for parameter, state in self._optimizer.state.items():
            momentum = state.get("momentum_buffer")
            if set(state) - {"momentum_buffer"} or (momentum is not None and momentum.shape != parameter.shape):
                raise ValueError("its optimiser has another state")


def _groups(supernet: Supernet, config: TrainConfig) -> list[dict[str, Any]]:
    """Weight decay on weights of two or more dimensions, none on batch norms and biases."""
    parameters = [p for p in supernet.parameters() if p.requires_grad]
    return [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": config.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
