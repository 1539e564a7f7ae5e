"""What a search goes by: predicted top-1, a lower bound of it, or the validation split itself.

Legend: n = networks, g = genes.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import numpy.typing as npt

from ofasearch import zoo
from ofasearch.data import DataSet
from ofasearch.errors import NotFoundError, UsageError
from ofasearch.evaluate.members import Members
from ofasearch.jobs.exam import Exam
from ofasearch.jobs.judge import MEASURED, PREDICTED
from ofasearch.predictor import Predictor
from ofasearch.predictor.model import LEVEL
from ofasearch.search.problem import Measures, Objective
from ofasearch.space.core import Codes, Space, Values


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """What ranks networks, and what is told of those that were found. Everything takes codes (n, g) and gives (n,)."""

    objective: Objective  # smaller is better
    top1: Callable[[Codes], Values]
    source: str  # of `top1`
    error_bar: Callable[[Codes], Values] | None = None  # half-width of the interval that holds 80 % of measured values
    outside: Callable[[Codes], npt.NDArray[np.bool_]] | None = None  # of the networks that the predictor was fitted on
    measures: Measures | None = None  # what the objective is put together from, where it is costly
    tell: Callable[[Codes], str] | None = None  # one network (1, g) as the best so far, where top-1 alone does not say it

    @property
    def is_real(self) -> bool:
        """Whether its top-1 is a validation figure, which no evaluation could improve on."""
        return self.source == MEASURED


@dataclass(frozen=True, slots=True, kw_only=True)
class Grounds:
    """What there is to judge the networks of a space by."""

    space: Space
    predictor: Predictor | None
    members: Members | None
    exam: Exam | None


class Aim(Protocol):
    """What takes the place of a named objective: a part of the space, who evaluates its networks, and what ranks them."""

    def narrow(self, space: Space) -> Space:
        """The part of the space that is searched."""

    def exam(self, supernet: zoo.TrainedSupernet | None, space: Space, members: Members | None, data: DataSet | None) -> Exam:
        """Who evaluates networks of the narrowed space."""

    def judge(self, grounds: Grounds) -> Judge:
        """What ranks networks."""

    def excluded(self, space: Space) -> Codes | None:
        """Networks (k, g) of the narrowed space that are no answer."""


def judge_of(objective: str, grounds: Grounds) -> Judge:
    """The judge that an objective's name asks for.

    Raises UsageError (no such objective, or one that needs what was not given), MismatchError (no error bars).
    """
    if objective not in OBJECTIVES:
        raise UsageError(f"--objective must be one of {', '.join(OBJECTIVES)}, but got '{objective}'")
    return OBJECTIVES[objective](grounds)


def _top1(grounds: Grounds) -> Judge:
    """The predictor where one is given, else the members' own figures."""
    space, predictor = grounds.space, grounds.predictor
    if predictor is None:
        return _of_members(grounds.members)
    found = predictor.on(space)
    certain = predictor.certainty is not None and LEVEL in predictor.certainty.multiples
    return Judge(
        objective=lambda codes: -found(codes),
        top1=found,
        source=PREDICTED,
        error_bar=(lambda codes: found.with_error(codes)[1]) if certain else None,
        outside=found.outside if predictor.cloud is not None else None,
    )


def _of_members(members: Members | None) -> Judge:
    if members is None:
        raise NotFoundError("a search needs an accuracy predictor or measured members, but has neither; pass --predictor")
    top1, found = members.top1("validation"), members
    return Judge(objective=lambda codes: -top1[found.index(codes)], top1=lambda codes: top1[found.index(codes)], source=MEASURED)


def _lower_bound(grounds: Grounds) -> Judge:
    """Prediction minus half-width: a network is preferred only for what the predictor is sure of."""
    space, predictor = grounds.space, grounds.predictor
    if predictor is None:
        raise UsageError("--objective lcb needs a predictor that carries error bars, but none was given; add --predictor")
    found = predictor.on(space)
    found.with_error(space.smallest()[None])  # raises where there are no error bars
    plain = _top1(grounds)

    def objective(codes: Codes) -> Values:
        top1, half = found.with_error(codes)
        return half - top1

    return Judge(objective=objective, top1=plain.top1, source=plain.source, error_bar=plain.error_bar, outside=plain.outside)


def _measured(grounds: Grounds) -> Judge:
    """Every network evaluated for real; the objective raises UnevaluatedError for those that are not yet."""
    exam = grounds.exam
    if exam is None:
        raise UsageError("--objective measured evaluates networks: it needs --data with labels, and a supernet (--supernet)")
    found = exam
    return Judge(objective=lambda codes: -found.values(codes), top1=found.values, source=MEASURED)


OBJECTIVES: Mapping[str, Callable[[Grounds], Judge]] = {"top1": _top1, "lcb": _lower_bound, "measured": _measured}
