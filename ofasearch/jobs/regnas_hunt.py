"""One search of REG-NAS: the network within the budgets that is best by a reward, measured on the whole validation split.

Legend: n = networks or images, r = references, k = images, g = genes.
"""

from __future__ import annotations

import math
from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from ofasearch import zoo
from ofasearch.data import DataSet, SplitName, load_data
from ofasearch.errors import InfeasibleError, UsageError
from ofasearch.evaluate.flips import compare
from ofasearch.jobs.choose import Candidate, Outcome, choose, clock_of
from ofasearch.jobs.classifier import read_classifier
from ofasearch.jobs.exam import limited
from ofasearch.jobs.measuring import LatencyProgress
from ofasearch.jobs.regnas_task import (
    Reference,
    RegnasRequest,
    is_contained,
    macs_of_reference,
    not_contained,
    read_reference,
    with_defaults,
)
from ofasearch.jobs.reward_aim import Placed, Predicted, RewardAim, live_trials
from ofasearch.jobs.searching import FindProgress, FindRequest
from ofasearch.jobs.setup import Budgets, Setup, prepare, show_count
from ofasearch.jobs.trials import Trials
from ofasearch.jobs.winner import check_data
from ofasearch.ranks import Ranks
from ofasearch.search.regnas import Reward
from ofasearch.space.containment import equal_filters
from ofasearch.space.core import Codes, Space, Values
from ofasearch.space.costs import costs


@dataclass(slots=True, kw_only=True)
class Campaign:
    """Everything that the searches of one `regnas` share."""

    request: RegnasRequest
    data: DataSet | None  # with all images
    supernet: zoo.TrainedSupernet
    ranks: Ranks
    reference: Reference | None
    contained: bool
    trials: Trials | None = None  # what searches saw so far
    notes: list[str] = field(default_factory=list)

    @property
    def searched(self) -> DataSet | None:
        """The data with the images that searches look at."""
        return self._limited(self.request.find.images)

    @property
    def whole(self) -> DataSet | None:
        """The data that networks are judged on at last: all images, as many for calibration as in searches."""
        return self._limited(None)

    def _limited(self, images: int | None) -> DataSet | None:
        return limited(self.data, images, self.request.find.calibration_images) if self.data is not None else None


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The end of one search: candidates best first, with what was measured of each on the whole validation split, (n, 1 + r)."""

    request: FindRequest
    setup: Setup
    outcome: Outcome
    aim: RewardAim
    measured: Values

    @property
    def winner(self) -> Codes:
        """Codes (g,) in the space of the setup."""
        codes: Codes = self.outcome.codes[0]
        return codes

    @property
    def placed(self) -> Placed:
        """The winner as a network that others may have to contain."""
        return Placed(space=self.setup.space, codes=self.winner)

    @property
    def validation(self) -> Predicted:
        """What the winner predicts of the whole validation split, in its own order."""
        assert self.aim.trials is not None
        found: Predicted = self.aim.trials.in_order(self.winner[None])[0]
        return found


def begin(request: RegnasRequest, ranks: Ranks) -> Generator[FindProgress, None, Campaign]:
    """Load what all searches need, and run the reference.

    Raises the errors of `prepare` and of `read_reference`.
    """
    if ranks.size > 1 and request.question.here is not None:
        raise UsageError(
            "latencies of this machine must be measured by one process, but torchrun started several; "
            "leave --target out, or give a latency table"
        )
    yield from _fetch(request.question.supernet)  # a reference may be one of its networks
    classifier = read_classifier(request.ref, supernet=request.question.supernet) if request.ref is not None else None
    request = with_defaults(request, classifier)
    if request.question.supernet is None and request.question.space is not None:
        raise UsageError(f"negative flips are measured on trained weights, but --space {request.question.space} has none; add --supernet")
    data = load_data(request.find.data) if request.find.data is not None else None
    yield from _fetch(request.question.supernet)
    supernet = zoo.load_supernet(request.question.supernet or zoo.DEFAULT_SUPERNET)
    reference, notes = (yield from read_reference(classifier, supernet, data)) if classifier is not None else (None, list[str]())
    contained = is_contained(request, reference)
    campaign = Campaign(request=request, data=data, supernet=supernet, ranks=ranks, reference=reference, contained=contained, notes=notes)
    if reference is not None and not contained and request.cas is None:
        campaign.notes.append(not_contained(reference, supernet.name))
    return campaign


def _fetch(supernet: str | None) -> Iterator[FindProgress]:
    for fetched in zoo.fetch_supernet(supernet):
        yield FindProgress(phase=f"fetching {fetched.name}", done=fetched.done, total=fetched.total or 0)


def hunt(
    campaign: Campaign, reward: Reward, references: Sequence[Reference], *, macs: float | None = None
) -> Generator[FindProgress, None, Found]:
    """One search against references, small to large; where these must be contained, within what contains the last of them.

    The answer is none of the references. `macs` takes the place of the budget in MACs.
    Raises InfeasibleError, saying what the reference or the cap has to do with it.
    """
    question, data = campaign.request.question, campaign.searched
    if macs is not None:
        question = replace(question, budgets=replace(question.budgets, macs=macs))
    seen = len(data["validation"]) if data is not None else None
    contained = [reference.placed for reference in references[-1:] if campaign.contained and reference.placed is not None]
    aim = RewardAim(
        reward=reward,
        references=[reference.predicted["validation"][:seen] for reference in references],
        contained=contained,
        others=[reference.stated for reference in references if reference.stated is not None],
        known=[(position, one.placed) for position, one in enumerate(references) if one.placed is not None],
        ranks=campaign.ranks,
        former=campaign.trials if data is None or seen == len(campaign.data["validation"]) else None,  # type: ignore[index]
    )
    setup: Setup | None = None
    try:
        for event in prepare(question, data, aim=aim):
            if isinstance(event, LatencyProgress):
                phase = f"measuring this machine: {event.what}"
                yield FindProgress(phase=phase, done=event.done, total=event.total, eta_seconds=event.eta_seconds)
            else:
                setup = event
    except InfeasibleError as error:
        raise _explained(error, contained, campaign.supernet.weights.space, question.budgets) from error
    assert setup is not None and aim.trials is not None  # prepare ends with it or raises
    check_data(setup, data)
    request = replace(campaign.request.find, question=setup.question).settled(setup.problem, known=aim.trials.subject is None)
    try:
        outcome = yield from choose(request, setup, clock_of(request.question, setup.space))
    except InfeasibleError as error:
        raise _alone(error, setup, bool(contained)) from error
    found = yield from _judged(
        campaign, Found(request=request, setup=setup, outcome=outcome, aim=aim, measured=np.zeros((0, 1))), references
    )
    _check_cap(reward, found)
    return found


def _explained(error: InfeasibleError, contained: Sequence[Placed], space: Space, budgets: Budgets) -> InfeasibleError:
    """Why a budget cannot be kept by a network that contains others."""
    if not contained:
        return error
    least = macs_of_reference(space, contained[-1])
    if budgets.macs is not None and budgets.macs < least:
        return InfeasibleError(
            f"MACs budget must be at least {show_count(least)}, what the reference takes at the smallest resolution, because the network "
            f"must contain all of its weights, but got {show_count(budgets.macs)}; raise it, or add --no-cas"
        )
    return InfeasibleError(f"{error}; the network must contain all weights of the reference, unless you add --no-cas")


def _alone(error: InfeasibleError, setup: Setup, contained: bool) -> InfeasibleError:
    """Why no network was found, where what it is compared with would keep the budgets."""
    excluded, way = setup.problem.excluded, "raise them, or add --no-cas" if contained else "raise them"
    if excluded is None:
        return error
    if len(excluded) == setup.space.size * len(setup.space.resolutions):
        return InfeasibleError(f"another network must contain {setup.space.arch(excluded[-1])}, but none does; add --no-cas")
    if not replace(setup.problem, excluded=None).feasible(excluded).any():
        return error
    return InfeasibleError(f"{error}; {setup.space.arch(excluded[-1])}, which it is compared with, is no answer; {way}")


def _judged(campaign: Campaign, found: Found, references: Sequence[Reference]) -> Generator[FindProgress, None, Found]:
    """The candidates that keep the budgets, measured on the whole validation split, best reward first.

    Searches on fewer images end with it, because the best of many on few images is partly chance.
    """
    aim, outcome, setup = found.aim, found.outcome, found.setup
    kept = [i for i, candidate in enumerate(outcome.candidates) if candidate.accepted is not False][: found.request.top_k]
    codes = outcome.codes[kept]
    whole = campaign.whole
    if whole is not None and setup.exam is not None and len(whole["validation"]) > setup.exam.images:
        trials = live_trials(campaign.supernet, setup.space, whole, campaign.ranks)
        if campaign.trials is not None:
            trials.join(campaign.trials)
        whole_references = [reference.predicted["validation"] for reference in references]
        aim = RewardAim(reward=aim.reward, references=whole_references, contained=aim.contained, ranks=aim.ranks, trials=trials)
    assert aim.trials is not None
    phase = f"evaluating {len(kept)} candidates on {aim.trials.images:,} validation images"
    for progress in aim.trials.evaluate(codes):
        yield FindProgress(phase=phase, done=progress.done, total=progress.total, best_top1=progress.best_top1)
    campaign.trials = aim.trials
    measured = aim.measured(codes)
    order = np.argsort(aim.reward.objective(measured), kind="stable")
    outcome.candidates = [_told(outcome.candidates[kept[i]], aim.reward, measured[i]) for i in order]
    outcome.codes = codes[order]
    return replace(found, aim=aim, measured=measured[order])


def _told(candidate: Candidate, reward: Reward, measured: Values) -> Candidate:
    """The candidate with what the whole validation split says of it."""
    return replace(candidate, objective=float(reward.objective(measured[None])[0]), predicted_top1=float(measured[0]))


def _check_cap(reward: Reward, found: Found) -> None:
    """Raise InfeasibleError unless the winner keeps the cap."""
    if reward.nfr_cap is None or reward.keeps_cap(found.measured)[0]:
        return
    least = float(found.measured[:, 1:].max(axis=1).min())
    how = "that any network within the budgets has" if found.request.algorithm == "exact" else "that was found within the budgets"
    raise InfeasibleError(
        f"--nfr-cap must be at least {math.ceil(1e4 * least - 1e-6) / 100:.2f} % (the lowest negative flip rate {how}, on "
        f"{found.aim.trials.images:,} validation images), but got {100 * reward.nfr_cap:g} %"  # type: ignore[union-attr]
    )


# -- what is told of a network ---------------------------------------------------------------------------------


def scores(predicted: Predicted, labels: Predicted, reference: Predicted | None) -> dict[str, float]:
    """Top-1 and, against a reference, all that flips; fractions of the n images."""
    if reference is None:
        return {"top1": float(np.mean(predicted == labels)), "n": len(labels)}
    told = compare(reference, predicted, labels).to_json()
    return {"top1": told.pop("top1_new"), "top1_ref": told.pop("top1_old"), **told}


def labels_of(campaign: Campaign, split: SplitName) -> Predicted:
    """Labels (n,) of a split: of the data, or of the shipped predictions."""
    if campaign.data is not None:
        return campaign.data[split].labels
    assert campaign.supernet.members is not None
    return campaign.supernet.members.labels[split]


def tested(campaign: Campaign, found: Found) -> Predicted:
    """What the winner predicts of the test split: shipped, or run now. Only reports may ask."""
    members = found.setup.members
    if campaign.data is None:
        assert members is not None
        return np.asarray(members.predictions["test"][int(members.index(found.winner[None])[0])])
    assert found.aim.trials is not None and found.aim.trials.subject is not None
    subject = found.aim.trials.subject
    row = found.placed.within(subject.space)
    predicted: Predicted = subject.predict(subject.calibrated([row]), [row], "test", np.arange(len(campaign.data["test"])))[0]
    return predicted


def as_reference(found: Found, name: str) -> Reference:
    """The winner as something that larger networks are compared with."""
    blueprint = found.setup.space.blueprint(found.winner)
    return Reference(
        name=name,
        kind="subnet",
        predicted={"validation": found.validation},
        placed=found.placed,
        stated=found.placed,
        arch_id=found.setup.space.arch(found.winner).id,
        macs=costs(blueprint).macs,
    )


def relation(campaign: Campaign, found: Found, reference: Reference | None) -> dict[str, bool]:
    """Whether the winner contains the reference, and whether with the same filters; nothing where that has other weights."""
    placed = reference.placed if reference is not None else None
    if placed is None:
        return {}
    space = campaign.supernet.weights.space
    big, small = found.placed.within(space)[None], placed.within(space)
    contains = bool(space.contains(big, small[None])[0])
    return {"contains_reference": contains} | ({"effective_filters_equal": bool(equal_filters(space, big, small)[0])} if contains else {})


def brief(campaign: Campaign, found: Found, reference: Reference | None) -> dict[str, Any]:
    """One network of several: what it is and costs."""
    codes = found.winner
    price = costs(found.setup.space.blueprint(codes))
    return {
        "arch_id": found.setup.space.arch(codes).id,
        "macs": price.macs,
        "params": price.params,
        **relation(campaign, found, reference),
        "algorithm": found.request.algorithm,
        "evaluations": found.outcome.tally.evaluations,
        "search_seconds": found.outcome.tally.seconds,
        **effort(found),
    }


def effort(found: Found) -> dict[str, Any]:
    """How many networks were run for a search, and how fast; nothing where predictions were shipped."""
    exam = found.setup.exam
    if exam is None or exam.subject is None or not exam.evaluated:
        return {}
    return {
        "networks_evaluated": exam.evaluated,
        "evaluating_seconds": exam.seconds,
        "networks_per_minute": 60 * exam.evaluated / exam.seconds,
        "images": exam.images,
    }
