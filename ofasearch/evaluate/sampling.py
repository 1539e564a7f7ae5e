"""Which networks to label for an accuracy predictor: half as they come, half spread evenly over the cost.

Legend: n = networks, g = genes.
"""

from __future__ import annotations

import numpy as np

from ofasearch.errors import UsageError
from ofasearch.evaluate.populations import LISTED, Axis, distinct, draw, equal_buckets, random_order
from ofasearch.space.core import Codes, Space
from ofasearch.space.costs import macs_of

STRATA = 10  # equal parts of the range of MACs that the spread half is drawn from
STRATIFIED = 0.5  # of the networks; uniform ones crowd around the mean cost, and a search ends where there are none


def networks_to_label(space: Space, n: int, rng: np.random.Generator) -> Codes:
    """n distinct networks (n, g): uniform ones and ones stratified over MACs, in random order, so that any prefix is a sample.

    Once-for-all labels uniform networks (16,000 of them); of few, hardly one would lie near either end of the cost.
    A space of fewer than n networks raises UsageError; one of LISTED at most is drawn without replacement.

    Reference: once-for-all, Appendix A (uniform sampling); the strata are ours.
    """
    total = space.size * len(space.resolutions)
    if not 1 <= n <= total:
        raise UsageError(f"the number of networks to label must be 1 to {total:,} in {space.name}, but got {n:,}")
    axis = Axis("MACs", "M", 1e6, macs_of(space))
    buckets = equal_buckets(axis, STRATA) if axis.cost.bounds().lowest < axis.cost.bounds().highest else []
    per_stratum = round(STRATIFIED * n / STRATA)
    spread = [d.codes for d in draw(space, axis.cost, buckets, per_stratum, rng)] if per_stratum and buckets else []
    codes = np.concatenate([*spread, np.zeros((0, len(space.genes)), dtype=np.int64)])
    if total <= LISTED:
        codes = distinct(np.concatenate([codes, random_order(space, rng)]))[:n]
    while len(codes) < n:  # a larger space always holds more
        codes = distinct(np.concatenate([codes, space.sample(n - len(codes), rng)]))[:n]
    return codes[rng.permutation(n)]
