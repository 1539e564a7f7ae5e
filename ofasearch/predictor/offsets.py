"""Files of measured networks that were labelled on different images: how far each lies from the first.

Legend: n = networks, m = files.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from ofasearch.predictor.encode import Encoder
from ofasearch.predictor.fit import LEAST_PAIRS, FitConfig, fit
from ofasearch.predictor.pairs import Pairs
from ofasearch.space.core import Values

SHARED = 10  # networks that two files must have in common to be compared by them
TELLING = 0.001  # a model of one file is wrong by about half of this on average about another's networks
MEMBERS = 3
LAW = (-2.0, -4.0)  # powers of the resolution


@dataclass(frozen=True, slots=True)
class Offsets:
    """How much higher each file (m,) says the same networks are than the first does, fractions; None where nobody can tell."""

    files: tuple[str, ...]
    values: tuple[float | None, ...]


def find_offsets(encoder: Encoder, pairs: Pairs, config: FitConfig) -> Offsets:
    """Offsets of the files that pairs come from, one after the other, each against those before it.

    Networks that both measured tell it at once. Else a model of the one side predicts the other's networks, as far as they
    lie in its cloud; where that comes to less than 0.1 points it is taken for the model's own error, and the offset for 0.
    A file at resolutions of its own is carried to those of the other by a law over the resolution, a + b r^-2 + c r^-4,
    which needs three of them on one side.
    """
    known, values = without_offsets(pairs.take(np.flatnonzero(pairs.group == 0)), Offsets(("",), (0.0,))), list[float | None]([0.0])
    for index in range(1, len(pairs.sources)):
        new = _alone(pairs.take(np.flatnonzero(pairs.group == index)))
        offset = _by_shared(known, new)
        if offset is None:
            offset = _by_model(encoder, known, new, config)
        values.append(offset)
        known = _joined(known, replace(new, top1=new.top1 - (offset or 0.0)))
    return Offsets(tuple(source.name for source in pairs.sources), tuple(values))


def without_offsets(pairs: Pairs, offsets: Offsets) -> Pairs:
    """One pair per network, as the first file would have labelled it; unknown offsets count as none."""
    shift = np.array([value or 0.0 for value in offsets.values])
    return _alone(replace(pairs, top1=pairs.top1 - shift[pairs.group]))


def _alone(pairs: Pairs) -> Pairs:
    """One pair per network, whatever file it came from."""
    return replace(pairs, group=np.zeros_like(pairs.group), sources=pairs.sources[:1]).merged()


def _joined(one: Pairs, other: Pairs) -> Pairs:
    s, t = one.settings, other.settings
    columns = {name: np.concatenate([getattr(s, name), getattr(t, name)]) for name in ("ks", "e", "d", "r")}
    columns |= {"w": np.concatenate([s.w, t.w])} if s.w is not None and t.w is not None else {}
    return Pairs(replace(s, **columns), np.concatenate([one.top1, other.top1])).merged()


def _by_shared(known: Pairs, new: Pairs) -> float | None:
    """The mean difference on networks that both measured, where they are enough."""
    rows = known.settings.rows(), new.settings.rows()
    before = {row.tobytes(): float(top1) for row, top1 in zip(rows[0], known.top1, strict=True)}
    found = [float(top1) - before[row.tobytes()] for row, top1 in zip(rows[1], new.top1, strict=True) if row.tobytes() in before]
    return float(np.mean(found)) if len(found) >= SHARED else None


def _by_model(encoder: Encoder, known: Pairs, new: Pairs, config: FitConfig) -> float | None:
    """What a model of the larger side says of the other, 0 where that is no more than its own error; None where none can say."""
    for teacher, judged, sign in sorted(((known, new, 1.0), (new, known, -1.0)), key=lambda row: -len(row[0])):
        surplus = _surplus(encoder, teacher, judged, config)
        if surplus is not None:
            return sign * surplus if abs(surplus) >= TELLING else 0.0
    return None


def _surplus(encoder: Encoder, teacher: Pairs, judged: Pairs, config: FitConfig) -> float | None:
    """How much higher `judged` is than a model of `teacher` says, on its networks inside the cloud (fractions)."""
    sizes = sorted(set(teacher.settings.r.tolist()))
    shared = np.flatnonzero(np.isin(judged.settings.r, sizes))
    by_law = not len(shared)
    if len(teacher) < LEAST_PAIRS or (by_law and len(sizes) <= len(LAW)):
        return None
    model = fit(encoder.with_resolutions(tuple(sizes)), teacher, "", replace(config, members=MEMBERS, activation="silu"))
    if not by_law:
        judged = judged.take(shared)
        inside, predicted = ~model.outside(judged.settings), model(judged.settings)
    else:
        at = [replace(judged.settings, r=np.full_like(judged.settings.r, size)) for size in sizes]
        inside = ~np.any([model.outside(settings) for settings in at], axis=0)
        predicted = _carried(sizes, np.stack([model(settings) for settings in at]), judged.settings.r.astype(np.float64))
    return float((judged.top1 - predicted)[inside].mean()) if inside.sum() >= SHARED else None


def _carried(sizes: list[int], known: Values, r: Values) -> Values:
    """Accuracies at resolutions r (n,), from those at `sizes` (s, n) by the law with its constants for each network."""
    unit = float(max(sizes))

    def law(resolution: Values) -> Values:
        return np.stack([np.ones_like(resolution), *((resolution / unit) ** power for power in LAW)], axis=-1)

    constants = np.linalg.lstsq(law(np.array(sizes, dtype=np.float64)), known, rcond=None)[0]  # (3, n)
    return np.asarray((law(r) * constants.T).sum(axis=1))
