"""Fitting an ensemble of 3-layer MLPs to measured networks. Torch is needed here only.

Legend: n = networks, f = features, k = members of the ensemble. Accuracies are top-1 fractions.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ofasearch.errors import UsageError
from ofasearch.predictor.encode import Encoder, Matrix
from ofasearch.predictor.model import ACTIVATIONS, Cloud, Predictor
from ofasearch.predictor.pairs import Pairs

if TYPE_CHECKING:
    from torch import Generator, Tensor
    from torch.nn import Parameter

HIDDEN = 400
LEAST_PAIRS = 8
STEPS_PER_PAIR, STEPS_LEAST, STEPS_MOST = 0.4, 500, 20_000
DECAYS = (2e-4, 2e-3, 1e-2)  # for labels from exact to noisy
RIDGE = 1.0  # of the cloud, in networks
CLOUD_SHARE = 0.98  # of networks left out of a fit, that lie inside its cloud


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """How the MLPs are fitted. The published recipe names no optimiser and no number of steps; this one is Adam with a cosine.

    With `silu` a predictor ranks networks better than with the published `relu` (docs/predictors.md); only `relu` can be
    written in once-for-all's formats. `steps` None: two for five pairs, but at least 500; more fit the noise of labels.
    """

    members: int = 5
    activation: str = "silu"
    steps: int | None = None
    batch_size: int = 128  # pairs
    lr: float = 3e-3
    weight_decay: float | None = None  # None: `assess` chooses by held-out networks, `fit` alone takes the least of DECAYS
    seed: int = 0

    def __post_init__(self) -> None:
        if self.members < 1 or self.seed < 0 or (self.steps is not None and self.steps < 1):
            raise UsageError(f"a fit must have members and steps of at least 1 and a seed of at least 0, but got {self}")
        if self.activation not in ACTIVATIONS:
            raise UsageError(f"the activation must be one of {', '.join(ACTIVATIONS)}, but got '{self.activation}'")

    def steps_for(self, n: int) -> int:
        """Optimiser steps for n pairs."""
        return self.steps if self.steps is not None else min(max(round(STEPS_PER_PAIR * n), STEPS_LEAST), STEPS_MOST)


def fit(encoder: Encoder, pairs: Pairs, space: str, config: FitConfig, supernet_digest: str | None = None) -> Predictor:
    """Fit an ensemble of 3-layer, 400-wide MLPs to measured networks. Same pairs and seed: same predictor (on CPU).

    The members differ by their first weights and the order of the pairs. The mean accuracy is the offset and the spread
    is scaled to 1 while fitting, so the user need not care for either (once-for-all issue 30: without the offset the
    published recipe does not converge). No error bars yet: `assess` states them.
    Raises UsageError for fewer than 8 pairs.
    """
    if len(pairs) < LEAST_PAIRS:
        raise UsageError(f"a predictor needs at least {LEAST_PAIRS} measured networks, but got {len(pairs)}")
    x = encoder.encode(pairs.settings)
    offset, scale = float(pairs.top1.mean()), max(float(pairs.top1.std()), 1e-4)
    weights, biases = _descend(x, ((pairs.top1 - offset) / scale).astype(np.float32), config)
    weights[-1], biases[-1] = weights[-1] * np.float32(scale), biases[-1] * np.float32(scale)
    weights = [w.astype(np.float16).astype(np.float32) for w in weights]  # halves the file; what is judged is what is written
    return Predictor(encoder, tuple(weights), tuple(biases), offset, space, supernet_digest, config.activation, cloud=cloud_of(x))


def cloud_of(x: Matrix) -> Cloud:
    """Where n networks with features (n, f) lie: the limit is what 98 % of them keep when they are left out themselves."""
    moments = x.T.astype(np.float64) @ x + RIDGE * np.eye(x.shape[1])
    precision = np.linalg.inv(moments)
    leverage = np.einsum("nf,nf->n", x @ precision, x)  # of a network that was fitted; h / (1 - h) once it is left out
    return Cloud(precision.astype(np.float32), float(np.quantile(leverage / (1 - leverage), CLOUD_SHARE)))


def _descend(x: Matrix, y: Matrix, config: FitConfig) -> tuple[list[Matrix], list[Matrix]]:
    """Weights (k, inputs, outputs) and biases (k, outputs) per layer, by gradient descent of all members at once."""
    import torch

    generator = torch.Generator().manual_seed(config.seed)
    layers = _layers((x.shape[1], HIDDEN, HIDDEN, HIDDEN, 1), config.members, generator)
    threads = torch.get_num_threads()
    torch.set_num_threads(min(2, threads))  # more fight over products this small, above all on a busy machine
    try:
        _minimise(layers, torch.from_numpy(x), torch.from_numpy(y), config, generator)
    finally:
        torch.set_num_threads(threads)
    weights = [w.detach().numpy().copy() for w, _ in layers]
    return weights, [b.detach().numpy()[:, 0].copy() for _, b in layers]


def _layers(sizes: Sequence[int], members: int, generator: Generator) -> list[tuple[Parameter, Parameter]]:
    """First weights (k, inputs, outputs) and biases (k, 1, outputs), drawn as torch's linear layers draw them."""
    import torch

    def drawn(*shape: int, bound: float) -> Parameter:
        return torch.nn.Parameter((2 * torch.rand(shape, generator=generator) - 1) * bound)

    return [(drawn(members, a, b, bound=a**-0.5), drawn(members, 1, b, bound=a**-0.5)) for a, b in pairwise(sizes)]


def _minimise(layers: list[tuple[Parameter, Parameter]], x: Tensor, y: Tensor, config: FitConfig, generator: Generator) -> None:
    """Minimise the squared error of every member on x (n, f), y (n,), in place; each goes through the pairs in an order of its own."""
    import torch

    act: Callable[[Tensor], Tensor] = {"relu": torch.relu, "silu": torch.nn.functional.silu}[config.activation]
    steps, size = config.steps_for(len(x)), min(config.batch_size, len(x))
    optimizer = torch.optim.Adam(
        [p for layer in layers for p in layer], lr=config.lr, weight_decay=DECAYS[0] if config.weight_decay is None else config.weight_decay
    )
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    order, at = torch.zeros(config.members, 0, dtype=torch.int64), 0
    for _ in range(steps):
        if at + size > order.shape[1]:
            order, at = torch.stack([torch.randperm(len(x), generator=generator) for _ in range(config.members)]), 0
        chosen, at = order[:, at : at + size], at + size
        z = x[chosen]  # (k, batch, f)
        for weight, bias in layers[:-1]:
            z = act(torch.baddbmm(bias, z, weight))
        predicted = torch.baddbmm(layers[-1][1], z, layers[-1][0])[..., 0]
        optimizer.zero_grad()
        (predicted - y[chosen]).square().mean(dim=1).sum().backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
