"""What REG-NAS searches by: networks rewarded for accuracy and few negative flips, in the part of the space that contains others.

Legend: n = networks, r = references, k = images, g = genes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from ofasearch import zoo
from ofasearch.data import DataSet
from ofasearch.errors import ArchError, MismatchError, NotFoundError
from ofasearch.evaluate.members import Members
from ofasearch.jobs.exam import Exam
from ofasearch.jobs.judge import MEASURED
from ofasearch.jobs.objectives import Grounds, Judge
from ofasearch.jobs.trials import Trials, member_trials
from ofasearch.ranks import Ranks
from ofasearch.search.problem import Measures
from ofasearch.search.regnas import Reward
from ofasearch.space.containment import containing
from ofasearch.space.core import Codes, Space, Values
from ofasearch.space.costs import macs_of

Predicted = npt.NDArray[np.integer[Any]]

PREVIEW = 0.25  # of the images: a first look
PREVIEW_LEAST = 1000  # images of the whole, below which a quarter of them tells too little


@dataclass(frozen=True, slots=True, kw_only=True)
class Placed:
    """A network of a design space: codes (g,) of `space`."""

    space: Space
    codes: Codes

    def within(self, space: Space) -> Codes:
        """Its codes (g,) in another space of the same networks, at any of that one's resolutions. Raises ArchError."""
        settings = self.space.settings(self.codes[None])
        if settings.r[0] not in space.resolutions:
            settings = type(settings)(settings.ks, settings.e, settings.d, np.array([space.resolutions[0]]), settings.w)
        codes: Codes = space.from_settings(settings)[0]
        return codes

    def codes_in(self, space: Space) -> list[Codes]:
        """Its codes (g,) at its own resolution, if the space has it."""
        try:
            return [space.from_settings(self.space.settings(self.codes[None]))[0]]
        except ArchError:
            return []


@dataclass(slots=True, kw_only=True)
class RewardAim:
    """See `Aim`. `references` (r, k) are predictions of the validation split; what is found holds all weights of `contained`.

    It is none of `others`: the reference flips nothing of its own, so that it may well have the best reward, and yet is no answer.
    `known` are the references that are networks of these weights, with their positions.
    """

    reward: Reward
    references: Sequence[Predicted] = ()
    contained: Sequence[Placed] = ()
    others: Sequence[Placed] = ()
    known: Sequence[tuple[int, Placed]] = ()
    ranks: Ranks = field(default_factory=Ranks)
    former: Trials | None = None  # of an earlier search with these weights and images: what it saw is known
    trials: Trials | None = None
    _supernet: zoo.TrainedSupernet | None = None

    def narrow(self, space: Space) -> Space:
        """The networks that hold all weights of those that must be contained. Raises MismatchError."""
        for placed in self.contained:
            try:
                space = containing(space, placed.within(space))
            except ArchError as error:
                raise MismatchError(
                    f"to be contained, the reference must be a network of {space.name}, but it is not ({error}); "
                    "search its own space, or add --no-cas"
                ) from error
        return space

    def excluded(self, space: Space) -> Codes | None:
        """The codes (k, g) of `others` at their own resolutions, where the space has them."""
        found = [codes for placed in self.others for codes in placed.codes_in(space)]
        return np.stack(found) if found else None

    def exam(self, supernet: zoo.TrainedSupernet | None, space: Space, members: Members | None, data: DataSet | None) -> Exam:
        """Networks run on the validation split of the data, or what measured members were seen to predict.

        Raises NotFoundError where there is neither.
        """
        self._supernet = supernet
        if data is not None and supernet is not None:
            self.trials = live_trials(supernet, space, data, self.ranks)
        elif members is not None:
            self.trials = member_trials(members, space)
        else:
            raise NotFoundError(
                "negative flips need what networks predict, image by image: add --data, or search a supernet whose members' "
                f"predictions are shipped ({zoo.DEFAULT_SUPERNET})"
            )
        if self.former is not None:
            self.trials.join(self.former)
        return self.trials

    def judge(self, grounds: Grounds) -> Judge:
        """Rank networks by their reward."""
        trials = self.trials
        assert trials is not None  # the exam comes first
        previews = (self._measure(trials, PREVIEW),) if trials.images >= PREVIEW_LEAST else ()
        known = self._known(grounds.space, trials)
        measures = Measures(self._measure(trials), self.reward.objective, previews, self._hint(grounds), known)

        def tell(codes: Codes) -> str:
            measured = measures.measure(codes)
            rates = f", NFR {100 * measured[0, 1:].mean():.2f} %" if self.references else ""
            return f"best {self.reward.of(measured)[0]:.4f} (top-1 {100 * measured[0, 0]:.2f} %{rates})"

        return Judge(objective=measures.objective, top1=trials.values, source=MEASURED, measures=measures, tell=tell)

    def measured(self, codes: Codes) -> Values:
        """Top-1 and negative flip rate against each reference, (n, 1 + r), on all images of the trials."""
        assert self.trials is not None
        return self._measure(self.trials)(codes)

    def _measure(self, trials: Trials, share: float = 1.0) -> Callable[[Codes], Values]:
        order = trials.order[: trials.count(share)]
        labels = trials.labels[order]
        return lambda codes: self._quantities(trials.predictions(codes, share), labels, order)

    def _quantities(self, predicted: Predicted, labels: Predicted, order: npt.NDArray[np.int64]) -> Values:
        """What is measured of predictions (n, k) of the images in that order: top-1, flips against each reference, (n, 1 + r)."""
        held = np.array([reference[order] == labels for reference in self.references], dtype=np.float32).reshape(-1, len(order))
        right = (predicted == labels).astype(np.float32)  # floats, because BLAS multiplies those
        counts = np.column_stack([right.sum(axis=1), (1 - right) @ held.T])  # sums of ones are exact
        return counts.astype(np.float64) / len(order)

    def _known(self, space: Space, trials: Trials) -> tuple[Codes, Values] | None:
        """The references that are networks of the space, and what is measured of them: against itself none flips."""
        found = [(position, codes) for position, placed in self.known for codes in placed.codes_in(space)]
        if not found:
            return None
        predicted = np.stack([self.references[position] for position, _ in found])[:, trials.order]
        return np.stack([codes for _, codes in found]), self._quantities(predicted, trials.labels[trials.order], trials.order)

    def _hint(self, grounds: Grounds) -> Callable[[Codes], Values]:
        """Predicted top-1 where a predictor knows the networks, their MACs, and how like the references they are."""
        space, macs = grounds.space, macs_of(grounds.space)
        found = self._predictor(grounds)
        predictor = remembered(found) if found is not None else None
        kin = [space.settings(placed.within(space)[None]) for placed in self.contained]

        def hint(codes: Codes) -> Values:
            columns = [predictor(codes)] if predictor is not None else []
            settings = space.settings(codes)
            likeness = [((settings.ks == one.ks) & (settings.e == one.e)).mean(axis=1) for one in kin]
            return np.column_stack([*columns, macs(codes), *likeness])

        return hint

    def _predictor(self, grounds: Grounds) -> Callable[[Codes], Values] | None:
        predictor = grounds.predictor
        if predictor is None:
            name = zoo.predictor_for(grounds.space, self._supernet)
            predictor = zoo.get_predictor(name) if name is not None else None
        if predictor is None:
            return None
        try:
            found: Callable[[Codes], Values] = predictor.on(grounds.space)
        except MismatchError:  # a shipped one may not know all resolutions
            if grounds.predictor is not None:
                raise
            return None
        return found


def remembered(ask: Callable[[Codes], Values]) -> Callable[[Codes], Values]:
    """The same, asked only once about each network: a search that is stopped to evaluate some asks about all others again."""
    known: dict[bytes, float] = {}

    def told(codes: Codes) -> Values:
        keys = [row.tobytes() for row in np.ascontiguousarray(codes)]
        new = {key: i for i, key in enumerate(keys) if key not in known}
        if new:
            known.update(zip(new, ask(codes[list(new.values())]).tolist(), strict=True))
        return np.array([known[key] for key in keys], dtype=np.float64)

    return told


def live_trials(supernet: zoo.TrainedSupernet, space: Space, data: DataSet, ranks: Ranks) -> Trials:
    """Networks of `space` run on the validation split of the data. Raises MismatchError where that has no labels or no images."""
    from ofasearch.evaluate.subject import Subject

    if data.classes == 0 or len(data["validation"]) == 0:
        raise MismatchError(f"data {data.name} must have labelled validation images to search by negative flips, but has none")
    trained = supernet.weights.space.with_resolutions(space.resolutions)
    subject = Subject(supernet.name, supernet.weights, trained, data)
    labels = data["validation"].labels
    return Trials(space=space, subject=subject, images=len(labels), labels=labels, ranks=ranks)
