"""Files of measured networks that were labelled on different images: how far each lies from the first.

Legend: n = networks, f = features, m = files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from ofasearch.predictor.encode import Encoder
from ofasearch.predictor.pairs import Pairs
from ofasearch.space.core import Values

SHRINK_NETWORK = 1.0  # of the effect of each choice, in networks
SHRINK_OFFSET = 1e-3
LAW = (-2, -4)  # powers of the resolution


@dataclass(frozen=True, slots=True)
class Offsets:
    """How much higher each file (m,) says the same networks are than the first does, fractions; None where nobody can tell."""

    files: tuple[str, ...]
    values: tuple[float | None, ...]


def find_offsets(encoder: Encoder, pairs: Pairs) -> Offsets:
    """Offsets of the files that pairs come from, by a ridge regression on choices, resolution and file.

    Files with a resolution in common are compared directly. One whose resolutions no other has is told apart by a law
    over the resolution, a + b r^-2 + c r^-4, which needs three resolutions elsewhere: through 160, 176 and 192 pixels it
    meets what once-for-all's own predictor says at 224 to 0.02 points (docs/predictors.md).
    """
    files = range(len(pairs.sources))
    law = _law(pairs.settings.r)
    dummies = (pairs.group[:, None] == np.array(files)[None, 1:]).astype(np.float64)
    known = _identified(law, dummies)
    names = tuple(source.name for source in pairs.sources)
    if len(files) == 1:
        return Offsets(names, (0.0,))
    blocks = Encoder(tuple(part for part in encoder.parts if part.field != "r"))
    x = blocks.encode(pairs.settings).astype(np.float64)
    design = np.concatenate([np.ones((len(x), 1)), law, dummies[:, known], x], axis=1)
    shrink = np.concatenate(
        [[0.0], np.full(law.shape[1], 1e-9), np.full(int(known.sum()), SHRINK_OFFSET), np.full(x.shape[1], SHRINK_NETWORK)]
    )
    effects = np.linalg.solve(design.T @ design + np.diag(shrink), design.T @ pairs.top1)
    found = iter(effects[1 + law.shape[1] :])
    return Offsets(names, (0.0, *(float(next(found)) if ok else None for ok in known)))


def without_offsets(pairs: Pairs, offsets: Offsets) -> Pairs:
    """One pair per network, as the first file would have labelled it; unknown offsets count as none."""
    shift = np.array([value or 0.0 for value in offsets.values])
    as_one = replace(pairs, top1=pairs.top1 - shift[pairs.group], group=np.zeros_like(pairs.group), sources=pairs.sources[:1])
    return as_one.merged()


def _law(resolution: npt.NDArray[np.int64]) -> Values:
    """Columns of the law over the resolution, (n, up to 2), centred; fewer where few resolutions are known."""
    distinct = np.unique(resolution)
    scaled = resolution / distinct.max()
    columns = (
        np.stack([scaled ** float(power) for power in LAW[: len(distinct) - 1]], axis=1)
        if len(distinct) > 1
        else np.zeros((len(resolution), 0))
    )
    return np.asarray(columns - columns.mean(axis=0))


def _identified(law: Values, dummies: Values) -> npt.NDArray[np.bool_]:
    """Which files' dummies (n, m - 1) are no combination of the constant, the law and the other files' dummies."""
    rows = np.unique(np.concatenate([np.ones((len(law), 1)), law, dummies], axis=1), axis=0)
    rank = np.linalg.matrix_rank(rows)
    first = 1 + law.shape[1]
    return np.array([np.linalg.matrix_rank(np.delete(rows, first + i, axis=1)) < rank for i in range(dummies.shape[1])], dtype=bool)
