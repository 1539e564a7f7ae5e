"""Active rounds: which networks to label next, and how far predictions were off on them before they were fitted.

Legend: n = networks, g = genes. Half of a round are the networks that a search would choose (a predictor must be right where
it is believed), half those that the members of the ensemble disagree on most.

Reference: query by committee (Seung et al. 1992) for the uncertain half; the promising half is what a search meets.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from ofasearch.evaluate.populations import LISTED, random_order
from ofasearch.evaluate.sampling import networks_to_label
from ofasearch.jobs.setup import show_count
from ofasearch.predictor.model import OnSpace
from ofasearch.search.evolution import EvolutionConfig, evolve
from ofasearch.search.operators import Unseen
from ofasearch.search.problem import Budget, Problem
from ofasearch.search.unguided import enumerate_exactly, is_small
from ofasearch.space.core import Codes, Space, Values
from ofasearch.space.costs import macs_of

BUDGETS = 10  # of MACs, evenly spread, each searched for its best networks
POOL = 10_000  # random networks of which the most uncertain are taken
RANKED = 8  # networks; a rank correlation of fewer says nothing
SEARCH = EvolutionConfig(population=100, generations=60)


@dataclass(frozen=True, slots=True)
class Proposal:
    """Networks (n, g) to label next, the first `promising` of them because they look good, the others because nobody knows.

    `predicted` (n,) is what the predictor says of them now.
    """

    codes: Codes
    promising: int
    predicted: Values


def propose(space: Space, predicted: OnSpace, known: Codes, count: int, rng: np.random.Generator) -> Proposal:
    """`count` networks that are not among the `known` (k, g); the space must hold as many. Same arguments, same networks."""
    unseen = Unseen(space)
    unseen.take(known, len(known))
    good = _promising(space, predicted, unseen, len(known), (count + 1) // 2, rng)
    uncertain = _uncertain(space, predicted, unseen, count - len(good), rng)
    codes = np.concatenate([good, uncertain, *_any(space, unseen, count - len(good) - len(uncertain), rng)])
    return Proposal(codes, len(good), predicted(codes))


def _promising(space: Space, predicted: OnSpace, unseen: Unseen, known: int, count: int, rng: np.random.Generator) -> Codes:
    """Up to `count` new networks: the best under budgets of MACs, up to what the best of all takes: larger ones would not bind."""
    macs, keep = macs_of(space), known + count  # so many that new ones are among them
    overall = _best(space, predicted, macs.bounds().highest, keep, rng)
    limits = np.unique(np.linspace(macs.bounds().lowest, float(macs(overall[:1])[0]), min(BUDGETS, count) + 1)[1:])
    found = np.zeros((0, len(space.genes)), dtype=np.int64)
    for searches_left, limit in zip(range(len(limits), 0, -1), limits, strict=True):
        share = -(-(count - len(found)) // searches_left)
        found = np.concatenate([found, unseen.take(_best(space, predicted, float(limit), keep, rng), share)])
    return np.concatenate([found, unseen.take(overall, count - len(found))])


def _best(space: Space, predicted: OnSpace, limit: float, keep: int, rng: np.random.Generator) -> Codes:
    """Up to `keep` networks (k, g) of at most so many MACs, those of the highest predicted accuracy first."""
    problem = Problem(space, (lambda codes: -predicted(codes),), (Budget("MACs", macs_of(space), limit, show_count),))
    *_, last = enumerate_exactly(problem, keep) if is_small(problem) else evolve(problem, replace(SEARCH, keep=keep), rng)
    return last.codes


def _uncertain(space: Space, predicted: OnSpace, unseen: Unseen, count: int, rng: np.random.Generator) -> Codes:
    """Up to `count` new networks: those of a random sample on which the members differ most."""
    pool = networks_to_label(space, min(POOL, space.size * len(space.resolutions)), rng)
    spread = predicted.members(pool).var(axis=0)
    return unseen.take(pool[np.argsort(-spread, kind="stable")], count)


def _any(space: Space, unseen: Unseen, count: int, rng: np.random.Generator) -> Iterator[Codes]:
    """`count` new networks, where search and sample met too few."""
    if space.size * len(space.resolutions) <= LISTED:
        yield unseen.take(random_order(space, rng), count)
        return
    while count:
        fresh = unseen.take(space.sample(count, rng), count)
        count -= len(fresh)
        yield fresh


def judge(proposal: Proposal, top1: Values) -> dict[str, Any]:
    """How far a proposal's predictions, made before, were from what was then measured, (n,): of all, and of each half."""
    parts = {"all": slice(None), "promising": slice(proposal.promising), "uncertain": slice(proposal.promising, None)}
    return {name: _errors(proposal.predicted[part], top1[part]) for name, part in parts.items() if len(top1[part])}


def _errors(predicted: Values, measured: Values) -> dict[str, float]:
    """Percent points; a rank correlation only of enough networks that differ."""
    from scipy.stats import kendalltau

    error = 100 * (predicted - measured)
    record = {
        "networks": len(measured),
        "mae_points": float(np.abs(error).mean()),
        "rmse_points": float(np.sqrt((error**2).mean())),
        "bias_points": float(error.mean()),
    }
    if len(measured) >= RANKED and np.ptp(predicted) > 0 and np.ptp(measured) > 0:
        record["kendall_tau"] = float(kendalltau(predicted, measured).statistic)
    return record
