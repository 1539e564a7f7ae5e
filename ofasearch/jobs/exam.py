"""Networks evaluated for real: on the validation split, with batch norm of their own, each once, remembered."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np

from ofasearch import zoo
from ofasearch.data import DataSet
from ofasearch.errors import MismatchError, UsageError
from ofasearch.space.core import Codes, Space, Values

if TYPE_CHECKING:
    from ofasearch.evaluate.store import Store
    from ofasearch.evaluate.subject import Subject

LEAST_CALIBRATION = 8  # images; the variance of fewer says nothing


class UnevaluatedError(Exception):
    """Networks (n, g) that were asked for and are not evaluated yet, on that share of the images: do it, then ask again."""

    def __init__(self, codes: Codes, share: float = 1.0):
        super().__init__(f"{len(codes)} networks are not evaluated yet")
        self.codes, self.share = codes, share


@dataclass(frozen=True, slots=True, kw_only=True)
class ExamProgress:
    """How many of the wanted networks are evaluated, and the best of all so far."""

    done: int
    total: int
    best_top1: float


@dataclass(slots=True, kw_only=True)
class Exam:
    """Validation top-1 of the networks of `space`, by arch id in `known`.

    Without a subject nothing can be evaluated: what is not known was no part of a recorded run.
    """

    space: Space
    subject: Subject | None = None
    images: int = 0  # of the validation split
    known: dict[str, float] = field(default_factory=dict)
    evaluated: int = 0  # now, not remembered
    seconds: float = 0.0  # that took
    words: list[str] = field(default_factory=list)  # what the user should know of how scores were remembered

    def values(self, codes: Codes) -> Values:
        """Validation top-1 (n,) of networks (n, g). Raises UnevaluatedError for those not known yet, none of them twice."""
        names = self._names(codes)
        unknown = {name: i for i, name in enumerate(names) if name not in self.known}
        if unknown:
            raise UnevaluatedError(codes[sorted(unknown.values())])
        return np.array([self.known[name] for name in names], dtype=float)

    def evaluate(self, codes: Codes, share: float = 1.0) -> Iterator[ExamProgress]:
        """Evaluate what is not known of the given networks (n, g), with progress after each; this exam always on all images.

        Raises MismatchError where the networks are those of a record that lacks one.
        """
        from ofasearch.evaluate.store import Store

        names = self._names(codes)
        if all(name in self.known for name in names):
            return
        if self.subject is None:
            missing = next(name for name in names if name not in self.known)
            raise MismatchError(f"every network that is compared must have been evaluated in the run, but {missing} was not")
        with Store() as store:
            for done, (name, row) in enumerate(zip(names, codes, strict=True), start=1):
                if name not in self.known:
                    self.known[name] = self._score(self.subject, row, store)
                yield ExamProgress(done=done, total=len(codes), best_top1=max(self.known.values()))
            self.words = list(store.notes)

    def _names(self, codes: Codes) -> list[str]:
        return [self.space.arch(row).id for row in codes]

    def _score(self, subject: Subject, row: Codes, store: Store) -> float:
        codes = row if subject.space.name == self.space.name else self.space.lift(row[None], subject.space)[0]
        key, started = subject.key(codes, "validation"), time.perf_counter()
        score = store.get(key)
        if score is None:
            score = subject.score(codes, "validation")
            store.put(key, score)
            self.evaluated += 1
            self.seconds += time.perf_counter() - started
        return score.top1


def exam_of(supernet: zoo.TrainedSupernet | None, space: Space, data: DataSet | None) -> Exam | None:
    """The exam of a space's networks with a supernet's weights; None where weights or labels are missing."""
    if supernet is None or data is None or data.classes == 0 or len(data["validation"]) == 0:
        return None
    from ofasearch.evaluate.subject import Subject

    trained = supernet.weights.space.with_resolutions(space.resolutions)
    subject = Subject(supernet.name, supernet.weights, trained, data)
    return Exam(space=space, subject=subject, images=len(data["validation"]))


def recorded_exam(space: Space, scores: Mapping[str, float] | None) -> Exam | None:
    """The exam that a former search held; None where it could hold none."""
    return Exam(space=space, known=dict(scores)) if scores is not None else None


def limited(data: DataSet, images: int | None, calibration_images: int | None) -> DataSet:
    """The data with at most so many images of the validation and of the calibration split, the first ones.

    Raises UsageError for too few.
    """
    if images is not None and images < 1:
        raise UsageError(f"--images must be at least 1, but got {images}")
    if calibration_images is not None and calibration_images < LEAST_CALIBRATION:
        raise UsageError(f"--calibration-images must be at least {LEAST_CALIBRATION}, but got {calibration_images}")
    if images is None and calibration_images is None:
        return data
    from ofasearch.evaluate.subject import first_images

    return replace(data, splits={**first_images(data, images, calibration_images).splits, "test": data["test"]})
