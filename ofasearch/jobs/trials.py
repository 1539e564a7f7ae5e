"""What networks predict of the validation split, image by image: negative flips need that, and so does a first look at few images.

The images are looked at in an order that spreads every part of it evenly over the split; so the first quarter is a fair
sample, and a network that comes through it goes on where it stopped. The processes of a job share the networks.

Legend: n = networks, k = images, g = genes.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import groupby
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ofasearch.errors import MismatchError
from ofasearch.evaluate.members import Members
from ofasearch.jobs.exam import Exam, ExamProgress, UnevaluatedError
from ofasearch.ranks import Ranks
from ofasearch.space.core import Codes, Space

if TYPE_CHECKING:
    from ofasearch.evaluate.store import Key, Score, Store
    from ofasearch.evaluate.subject import Subject

TOGETHER = 4  # networks that a process runs side by side, so that images are read once; a kill costs at most their work
OPEN = 64  # calibrated networks that are kept for a second look
PARTS = 4  # the order of images goes through every fourth one, then on

Predicted = npt.NDArray[np.integer[Any]]


def spread(n: int) -> npt.NDArray[np.int64]:
    """Positions of n images in the order in which they are looked at, (n,)."""
    return np.concatenate([np.arange(start, n, PARTS) for start in (0, 2, 1, 3)])


@dataclass(slots=True, kw_only=True)
class Trials(Exam):
    """An exam that keeps what was predicted. `labels` (images,) are in the split's own order, `seen` in that of `spread`."""

    labels: Predicted
    ranks: Ranks = field(default_factory=Ranks)
    seen: dict[str, Predicted] = field(default_factory=dict)  # by arch id, of the first images
    order: npt.NDArray[np.int64] = field(init=False)
    _open: dict[str, Any] = field(default_factory=dict)  # calibrated networks

    def __post_init__(self) -> None:
        self.order = spread(len(self.labels))

    def count(self, share: float) -> int:
        """How many images a share of them is."""
        return max(1, min(len(self.labels), round(share * len(self.labels))))

    def predictions(self, codes: Codes, share: float = 1.0) -> Predicted:
        """Predicted classes (n, k) of the first images in the order of looking.

        Raises UnevaluatedError for networks that did not see so many, none of them twice.
        """
        names, k = self._names(codes), self.count(share)
        unknown = {name: i for i, name in enumerate(names) if self._looked(name) < k}
        if unknown:
            raise UnevaluatedError(codes[sorted(unknown.values())], share)
        return np.stack([self.seen[name][:k] for name in names])

    def join(self, former: Trials) -> None:
        """Know what was seen in other trials of the same weights on the same images; what either sees is known to both."""
        former._keep(self.seen)
        self.seen, self.known, self._open = former.seen, former.known, former._open

    def in_order(self, codes: Codes) -> Predicted:
        """Predicted classes (n, images) of all images, in the split's own order. Raises UnevaluatedError."""
        found = self.predictions(codes)
        placed = np.empty_like(found)
        placed[:, self.order] = found
        return placed

    def evaluate(self, codes: Codes, share: float = 1.0) -> Iterator[ExamProgress]:
        """See `Exam`; on that share of the images."""
        from ofasearch.evaluate.store import Store

        names, k = self._names(codes), self.count(share)
        rows = {name: row for name, row in zip(names, codes, strict=True) if self._looked(name) < k}
        if rows and self.subject is None:
            raise MismatchError(f"every network that is compared must have been evaluated in the run, but {next(iter(rows))} was not")
        if not rows:
            return
        subject, total = self.subject, len(rows)
        assert subject is not None
        with Store() as store:
            keys = {name: subject.key(self._in_subject(subject, row), "validation") for name, row in rows.items()}
            self._remember(store, keys, k)
            pending = [name for name in rows if self._looked(name) < k]
            pending.sort(key=lambda name: (rows[name][0], self._looked(name)))  # those that are run side by side have these in common
            yield self._progress(total - len(pending), total)
            started = time.perf_counter()
            for start in range(0, len(pending), TOGETHER * self.ranks.size):
                turn = pending[start : start + TOGETHER * self.ranks.size]
                mine = turn[self.ranks.rank :: self.ranks.size]
                for found in self.ranks.gather(self._look(subject, {name: rows[name] for name in mine}, k)):
                    self._keep(found)
                if self.ranks.first:
                    for name in turn:
                        self._put(store, keys[name], name)
                yield self._progress(total - len(pending) + start + len(turn), total)
            self.evaluated += len(pending) if k == len(self.labels) else 0
            self.seconds += time.perf_counter() - started
            self.words = list(dict.fromkeys([*self.words, *store.notes]))

    def _progress(self, done: int, total: int) -> ExamProgress:
        return ExamProgress(done=done, total=total, best_top1=max(self.known.values(), default=0.0))

    def _looked(self, name: str) -> int:
        return len(self.seen.get(name, ()))

    def _keep(self, found: Mapping[str, Predicted]) -> None:
        for name, predicted in found.items():
            if len(predicted) > self._looked(name):
                self.seen[name] = predicted
            if len(predicted) == len(self.labels):
                self.known[name] = float(np.mean(predicted == self.labels[self.order]))

    # -- running networks --------------------------------------------------------------------------------------

    def _look(self, subject: Subject, rows: Mapping[str, Codes], k: int) -> dict[str, Predicted]:
        """What networks predict of the first k images; they go on from where they were."""
        found: dict[str, Predicted] = {}
        for (_, seen), group in groupby(rows, key=lambda name: (rows[name][0], self._looked(name))):
            names = list(group)
            networks, codes = self._calibrated(subject, rows, names), [self._in_subject(subject, rows[name]) for name in names]
            fresh = subject.predict(networks, codes, "validation", self.order[seen:k])
            for name, predicted in zip(names, fresh, strict=True):
                found[name] = np.concatenate([self.seen.get(name, predicted[:0]), predicted]).astype(np.int32)
        return found

    def _calibrated(self, subject: Subject, rows: Mapping[str, Codes], names: Sequence[str]) -> list[Any]:
        """The networks, those that had a first look as they were then; only some of them are kept."""
        missing = [name for name in names if name not in self._open]
        made = (
            dict(zip(missing, subject.calibrated([self._in_subject(subject, rows[name]) for name in missing]), strict=True))
            if missing
            else {}
        )
        networks = [made[name] if name in made else self._open[name] for name in names]
        self._open = dict(list((self._open | made).items())[-OPEN:])
        return networks

    def _in_subject(self, subject: Subject, row: Codes) -> Codes:
        codes: Codes = row if subject.space.genes == self.space.genes else self.space.lift(row[None], subject.space)[0]
        return codes

    # -- remembering -------------------------------------------------------------------------------------------

    def _remember(self, store: Store, keys: Mapping[str, Key], k: int) -> None:
        """Take what the first process remembers: all processes must agree on what is left."""
        found = (
            {name: predicted for name, key in keys.items() if (predicted := self._get(store, key, k)) is not None}
            if self.ranks.first
            else {}
        )
        self._keep(self.ranks.share(found))

    def _get(self, store: Store, key: Key, k: int) -> Predicted | None:
        for at in (key, self._part(key, k)):
            score = store.get(at)
            if score is not None and score.predicted is not None and score.n in (len(self.labels), k):
                return score.predicted[self.order] if at is key else score.predicted
        return None

    def _put(self, store: Store, key: Key, name: str) -> None:
        from ofasearch.evaluate.store import Score

        predicted, k = self.seen[name], self._looked(name)
        whole = k == len(self.labels)
        placed = np.empty_like(predicted)
        if whole:
            placed[self.order] = predicted
        top1 = float(np.mean(predicted == self.labels[self.order[:k]]))
        score: Score = Score(top1, k, placed if whole else predicted)
        store.put(key if whole else self._part(key, k), score)

    def _part(self, key: Key, k: int) -> Key:
        return replace(key, split=f"{key.split}, {k} of {len(self.labels)} images spread by {PARTS}")


def member_trials(members: Members, space: Space) -> Trials:
    """The trials of measured members: every network has been evaluated."""
    labels = members.labels["validation"].astype(np.int64)
    trials = Trials(space=space, images=len(labels), labels=labels)
    predicted = members.predictions["validation"][:, trials.order]
    trials._keep({space.arch(row).id: seen for row, seen in zip(members.codes, predicted, strict=True)})
    return trials
