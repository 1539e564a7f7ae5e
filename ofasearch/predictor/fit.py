"""Fitting the 3-layer MLP to measured networks. Torch is needed here only."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from typing import TYPE_CHECKING

import numpy as np

from ofasearch.errors import UsageError
from ofasearch.predictor.encode import Encoder
from ofasearch.predictor.model import Predictor
from ofasearch.predictor.pairs import Pairs

if TYPE_CHECKING:
    from torch import Tensor, nn

HIDDEN = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class FitConfig:
    """How the MLP is fitted. The published recipe names no optimiser; this one is Adam with a cosine."""

    steps: int = 3000
    batch_size: int = 128  # pairs
    lr: float = 1e-3
    weight_decay: float = 1e-4
    seed: int = 0


def fit(encoder: Encoder, pairs: Pairs, space: str, config: FitConfig, supernet_digest: str | None = None) -> Predictor:
    """Fit the 3-layer, 400-wide MLP to measured networks. Same pairs and seed: same predictor (on CPU).

    The mean accuracy is the offset and the spread is scaled to 1 while fitting, so the user need not care for either
    (once-for-all issue 30: without the offset the published recipe does not converge).
    Raises UsageError for fewer than 8 pairs.
    """
    import torch
    from torch import nn

    if len(pairs) < 8:
        raise UsageError(f"a predictor needs at least 8 measured networks, but got {len(pairs)}")
    offset, scale = float(pairs.top1.mean()), max(float(pairs.top1.std()), 1e-4)
    x = torch.from_numpy(encoder.encode(pairs.settings))
    y = torch.from_numpy((pairs.top1 - offset) / scale).float()[:, None]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        sizes = (encoder.dims, HIDDEN, HIDDEN, HIDDEN)
        hidden = [layer for a, b in pairwise(sizes) for layer in (nn.Linear(a, b), nn.ReLU())]
        model = nn.Sequential(*hidden, nn.Linear(HIDDEN, 1))
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # threads fight over products this small, above all on a busy machine
    try:
        _descend(model, x, y, config)
    finally:
        torch.set_num_threads(threads)
    linear = [m for m in model if isinstance(m, nn.Linear)]
    weights = [np.ascontiguousarray(m.weight.detach().numpy().T)[None] for m in linear]
    biases = [m.bias.detach().numpy().copy()[None] for m in linear]
    weights[-1], biases[-1] = weights[-1] * np.float32(scale), biases[-1] * np.float32(scale)
    return Predictor(encoder, tuple(weights), tuple(biases), offset, space, supernet_digest)


def _descend(model: nn.Sequential, x: Tensor, y: Tensor, config: FitConfig) -> None:
    """Minimise the squared error of model(x), (n, f) -> (n, 1), against y (n, 1), in place."""
    import torch
    from torch.nn.functional import mse_loss

    optimizer = torch.optim.Adam(model.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, config.steps)
    generator = torch.Generator().manual_seed(config.seed)
    for _ in range(config.steps):
        chosen = torch.randint(len(x), (min(config.batch_size, len(x)),), generator=generator)
        optimizer.zero_grad()
        mse_loss(model(x[chosen]), y[chosen]).backward()  # type: ignore[no-untyped-call]
        optimizer.step()
        schedule.step()
