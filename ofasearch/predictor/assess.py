"""A fit that knows its error: held-out figures, error bars, simpler models beside it, what more pairs would bring.

Legend: n = networks, k = members of an ensemble.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace

import numpy as np

from ofasearch.errors import UsageError
from ofasearch.predictor.check import (
    FitError,
    LearningCurve,
    baselines,
    certainty_of,
    compare,
    cross_coverage,
    learning_curve,
)
from ofasearch.predictor.encode import Encoder
from ofasearch.predictor.fit import DECAYS, LEAST_PAIRS, FitConfig, fit
from ofasearch.predictor.model import Predictor
from ofasearch.predictor.offsets import Offsets, find_offsets, without_offsets
from ofasearch.predictor.pairs import LabelNoise, Pairs

HELD_OUT = 0.2  # of the networks
CURVE_SHARES = (0.25, 0.5)  # of the networks not held out; the third point are all of them
CURVE_MEMBERS = 2
CURVE_LEAST = 40  # networks in its first point


@dataclass(frozen=True, slots=True, kw_only=True)
class Assessment:
    """A predictor with error bars, and what is known of it. Errors are those of a fit that did not see the held-out networks."""

    predictor: Predictor
    config: FitConfig  # as it was fitted
    pairs: int  # measurements that were given
    networks: int  # that they are of
    held_out: FitError
    coverage: float  # of the 80 % interval on held-out networks, each half judged by bars from the other
    outside: float  # share of held-out networks outside the cloud of the others
    baselines: Mapping[str, FitError]
    curve: LearningCurve | None
    noise: LabelNoise
    offsets: Offsets


@dataclass(frozen=True, slots=True, kw_only=True)
class FitProgress:
    """Which fit is under way."""

    phase: str
    done: int
    total: int


def assess(
    encoder: Encoder, pairs: Pairs, space: str, config: FitConfig, digest: str | None = None, *, held_out: Pairs | None = None
) -> Iterator[FitProgress | Assessment]:
    """Fit, state the error on held-out networks, fit again on all; the Assessment comes last.

    Files that lie apart are brought to the scale of the first, repeated measurements are averaged. A fifth of the networks is
    held out; the predictor that is handed on was fitted on all. Given `held_out`, those judge and are never fitted.
    Raises UsageError for fewer than 16 networks.
    """
    if len(pairs.sources) > 1:
        yield FitProgress(phase="comparing the files", done=0, total=1)
    offsets = find_offsets(encoder, pairs, config)
    data = without_offsets(pairs, offsets)
    if len(data) < 2 * LEAST_PAIRS:
        raise UsageError(f"a predictor and its error need at least {2 * LEAST_PAIRS} measured networks, but got {len(data)}")
    train, judged = (data, held_out) if held_out is not None else _split(data, config.seed)
    if config.weight_decay is None:
        yield FitProgress(phase="choosing how much to smooth", done=0, total=1)
        config = replace(config, weight_decay=chosen_decay(encoder, train, space, config))
    sizes = [n for n in (round(share * len(train)) for share in CURVE_SHARES) if n >= CURVE_LEAST]
    total = len(sizes) + (1 if held_out is not None else 2)
    yield FitProgress(phase=f"fitting on {len(train)} networks, {len(judged)} held out", done=0, total=total)
    first = fit(encoder, train, space, config, digest)
    x, held_x = encoder.encode(train.settings), encoder.encode(judged.settings)
    members = first.of_features(held_x)
    error = compare(members.mean(axis=0), judged.top1)
    points = []
    for i, n in enumerate(sizes):
        yield FitProgress(phase=f"learning curve: {n} networks", done=1 + i, total=total)
        small = fit(encoder, train.take(np.arange(n)), space, replace(config, members=min(CURVE_MEMBERS, config.members)))
        points.append((n, compare(small(judged.settings), judged.top1).rmse_points))
    points.append((len(train), compare(members[:CURVE_MEMBERS].mean(axis=0), judged.top1).rmse_points))
    final = first
    if held_out is None:
        yield FitProgress(phase=f"fitting on all {len(data)} networks", done=total - 1, total=total)
        final = fit(encoder, data, space, config, digest)
    yield Assessment(
        predictor=replace(final, certainty=certainty_of(members, judged.top1)),
        config=config,
        pairs=len(pairs),
        networks=len(data),
        held_out=error,
        coverage=cross_coverage(members, judged.top1),
        outside=float(first.outside(judged.settings).mean()),
        baselines=baselines(x, train.top1, held_x, judged.top1),
        curve=learning_curve([n for n, _ in points], [rmse for _, rmse in points]) if len(points) > 2 else None,
        noise=pairs.label_noise(),
        offsets=offsets,
    )


def _split(data: Pairs, seed: int) -> tuple[Pairs, Pairs]:
    """A random part to fit, and a fifth to judge by."""
    order = np.random.default_rng(seed).permutation(len(data))
    cut = _left_out(data)
    return data.take(order[cut:]), data.take(order[:cut])


def _left_out(data: Pairs) -> int:
    """How many networks a fit leaves out to be judged by."""
    return max(LEAST_PAIRS // 2, round(HELD_OUT * len(data)))


def chosen_decay(encoder: Encoder, train: Pairs, space: str, config: FitConfig) -> float:
    """The weight decay under which small ensembles on four fifths of the networks predict the others best, twice over."""
    if len(train) < 2 * LEAST_PAIRS:
        return DECAYS[0]
    cut, everyone = _left_out(train), np.arange(len(train))
    small, errors = replace(config, members=min(CURVE_MEMBERS, config.members)), dict.fromkeys(DECAYS, 0.0)
    for left_out in (everyone[:cut], everyone[-cut:]):
        judged, rest = train.take(left_out), train.take(np.setdiff1d(everyone, left_out))
        for decay in DECAYS:
            found = fit(encoder, rest, space, replace(small, weight_decay=decay))
            errors[decay] += float(((found(judged.settings) - judged.top1) ** 2).sum())
    return min(errors, key=lambda decay: errors[decay])
