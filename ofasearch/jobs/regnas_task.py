"""What `regnas` is asked, and the reference it is asked against."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofasearch import zoo
from ofasearch.data import DataSet, SplitName
from ofasearch.errors import MismatchError, UsageError
from ofasearch.evaluate.saved import SPLITS
from ofasearch.jobs.classifier import (
    Classifier,
    PredictionProgress,
    assume_preprocessing,
    check_fits,
    live_predictions,
    shipped_predictions,
)
from ofasearch.jobs.deliver import OWN_WEIGHTS, Subnet
from ofasearch.jobs.reward_aim import Placed, Predicted
from ofasearch.jobs.searching import FindProgress, FindRequest
from ofasearch.jobs.setup import Budgets, Question
from ofasearch.search.regnas import Reward
from ofasearch.space.core import Space
from ofasearch.space.costs import macs_of
from ofasearch.supernet.weights import Weights, slice_network

TIMES = 2.0  # the reference's MACs: the budget where none is given, as from 150 M to 300 M in the paper
MOST_MEMBERS, MOST_RATIOS = 20, 100  # of a family, of a sweep


@dataclass(frozen=True, slots=True, kw_only=True)
class RegnasRequest:
    """`ofasearch regnas`. `find` holds what it shares with that command.

    `cas` None: on where the reference is a network of the supernet. `family` are MACs, small to large; `sweep` ratios of lambda2 to
    lambda1. Without a `ref` a family's first network is searched by accuracy alone.
    """

    find: FindRequest
    ref: str | None = None
    reward: Reward = field(default_factory=Reward)
    cas: bool | None = None
    family: tuple[float, ...] = ()
    sweep: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        if self.ref is None and not self.family:
            raise UsageError("a reference must be given: add --ref model.pt (or a --family, whose smallest network then is it)")
        if self.family and self.sweep:
            raise UsageError("--family and --sweep must be asked one after the other, but both are given")
        if len(self.family) > MOST_MEMBERS or len(self.sweep) > MOST_RATIOS:
            raise UsageError(f"a family must have at most {MOST_MEMBERS} networks and a sweep {MOST_RATIOS} ratios, but got more")
        if any(not limit > 0 for limit in self.family) or list(self.family) != sorted(set(self.family)):
            raise UsageError("--family must name different positive MACs from small to large, such as 150M,300M,600M, but does not")
        if any(not 0 <= ratio <= 1e6 for ratio in self.sweep):
            raise UsageError("--sweep must name ratios of lambda2 to lambda1 from 0 to a million, but one is not")
        if self.sweep and self.reward.kind != "r2":
            raise UsageError(f"--sweep varies the weights of reward r2, but --reward {self.reward.kind} has none; leave it out")
        if self.family and self.question.budgets.macs is not None:
            raise UsageError("--family names the MACs of its networks, so --flops must be left out, but both are given")

    @property
    def question(self) -> Question:
        """What is searched."""
        return self.find.question


@dataclass(frozen=True, slots=True, kw_only=True)
class Reference:
    """What new networks are compared with: predictions per split, and where it is a network of the searched weights, which one.

    `placed` has those weights, `stated` only says so: it need not be contained, and yet is no answer. `tuned`: it says that it was
    trained further, so no supernet has its weights.
    """

    name: str
    kind: str
    predicted: Mapping[SplitName, Predicted]
    placed: Placed | None = None
    stated: Placed | None = None
    arch_id: str | None = None
    macs: float | None = None
    tuned: bool = False

    def tested_as(self, predicted: Predicted) -> Reference:
        """The same with its predictions (k,) of the test split."""
        return replace(self, predicted={**self.predicted, "test": predicted})

    def to_json(self) -> dict[str, Any]:
        """As in the answer."""
        known = {"arch_id": self.arch_id, "macs": self.macs}
        return {"name": self.name, "kind": self.kind, **{key: value for key, value in known.items() if value is not None}}


def with_defaults(request: RegnasRequest, classifier: Classifier | None) -> RegnasRequest:
    """The request with the supernet that the reference names, and twice its MACs where no budget is given.

    Raises UsageError where the reference's MACs are not known.
    """
    question = request.question
    if question.supernet is None and question.space is None:
        question = replace(question, supernet=supernet_of(classifier))
    question = replace(question, objective="measured")
    limits = (question.budgets.macs, question.budgets.params, question.budgets.memory_bytes, question.budgets.latency_ms)
    if not request.family and not question.also and all(limit is None for limit in limits):
        if classifier is None or classifier.macs is None:
            raise UsageError(
                f"a budget must be given, because the MACs of {request.ref} are not known: add --flops, or --target and --latency"
            )
        question = replace(question, budgets=Budgets(macs=TIMES * classifier.macs))
    return replace(request, find=replace(request.find, question=question))


def supernet_of(classifier: Classifier | None) -> str | None:
    """The supernet that a reference was taken from, where it is one of ours or a file that still lies there."""
    name = classifier.supernet if classifier is not None else None
    return name if name is not None and (name in zoo.supernet_names() or Path(name).exists()) else None


def read_reference(
    classifier: Classifier, supernet: zoo.TrainedSupernet, data: DataSet | None
) -> Generator[FindProgress, None, tuple[Reference, list[str]]]:
    """The reference with its predictions of validation and test split, computed on the data, else those that are shipped; and notes.

    Raises MismatchError (other classes, sizes or preprocessing; predictions of another length), CalibrationError.
    """
    (classifier,), notes = assume_preprocessing([classifier], [supernet.weights.preprocessing])
    predicted: dict[SplitName, Predicted] = {}
    for split in SPLITS:
        if data is None:
            predicted[split] = shipped_predictions(classifier, supernet, split)
        else:
            predicted[split] = yield from _run(classifier, data, split)
    space, codes = classifier.space, classifier.codes
    stated = Placed(space=space, codes=codes) if space is not None and codes is not None else None
    is_part = _is_part(classifier, supernet, live=data is not None)
    reference = Reference(
        name=classifier.name,
        kind=classifier.kind,
        predicted=predicted,
        placed=stated if is_part else None,
        stated=stated if is_part or _says_digest(classifier) == supernet.weights.digest else None,
        arch_id=classifier.arch_id,
        macs=classifier.macs,
        tuned=_says_digest(classifier) == OWN_WEIGHTS,
    )
    return reference, notes


def _run(classifier: Classifier, data: DataSet, split: SplitName) -> Generator[FindProgress, None, Predicted]:
    """Predictions of a split (n,); those of a file are remembered, because it always predicts the same."""
    from ofasearch.evaluate.store import Key, Score, Store
    from ofasearch.evaluate.subject import images_digest

    check_fits(classifier, data, split)
    if classifier.saved is not None or classifier.trained is not None or classifier.preprocessing is None:
        return (yield from _told(live_predictions(classifier, data, split)))
    images = images_digest(data[split], classifier.preprocessing)
    key = Key(classifier.digest, classifier.kind, split, images, "as it is")
    with Store() as store:
        known = store.get(key)
        if known is not None and known.predicted is not None and known.n == len(data[split]):
            return known.predicted.astype(np.int64)
        found = yield from _told(live_predictions(classifier, data, split))
        store.put(key, Score(float(np.mean(found == data[split].labels)), len(found), found))
    return found


def _told(work: Iterator[PredictionProgress | npt.NDArray[np.int64]]) -> Generator[FindProgress, None, Predicted]:
    """Progress as that of a search, and at last the predictions."""
    found: Predicted | None = None
    for event in work:
        if isinstance(event, PredictionProgress):
            yield FindProgress(phase=event.phase, done=event.done, total=event.total, eta_seconds=event.eta_seconds)
        else:
            found = event
    assert found is not None  # the work ends with it or raises
    return found


def _says_digest(classifier: Classifier) -> str | None:
    """The digest of the weights that a file says it was cut from."""
    if classifier.subnet is not None:
        return classifier.subnet.supernet_digest
    return classifier.onnx.metadata.get("supernet_digest") if classifier.onnx is not None else None


def _is_part(classifier: Classifier, supernet: zoo.TrainedSupernet, *, live: bool) -> bool:
    """Whether a classifier has the weights of the supernet.

    Batch norms are folded into an ONNX file's weights: only where its predictions are shipped was it compared as a whole.
    """
    if classifier.subnet is not None:
        return is_cut_from(classifier.subnet, supernet.weights)
    return classifier.onnx is not None and not live


def is_cut_from(subnet: Subnet, weights: Weights) -> bool:
    """Whether a network has exactly the weights of that supernet; its batch-norm statistics are its own.

    A file can say any digest, and fine-tuning changes weights: they are compared themselves.
    """
    if subnet.supernet_digest != weights.digest:
        return False
    try:
        theirs = slice_network(weights.arrays, subnet.blueprint)
    except (MismatchError, KeyError, IndexError):
        return False
    kept = [key for key in theirs if not key.endswith(("running_mean", "running_var"))]
    return all(key in subnet.arrays and np.array_equal(subnet.arrays[key], theirs[key]) for key in kept)


def not_contained(reference: Reference, supernet: str = "the supernet") -> str:
    """Why nothing that is found contains the weights of such a reference."""
    if reference.tuned:
        return f"{reference.name} was fine-tuned: its weights are its own, and no network of {supernet} contains them"
    return f"{reference.name} is not known to be a subnet of {supernet}: what is found need not contain its weights"


def is_contained(request: RegnasRequest, reference: Reference | None) -> bool:
    """Whether what is found must hold all weights of the reference. Raises MismatchError where that is asked and cannot be."""
    if reference is None:
        return request.cas is not False
    if request.cas and reference.tuned:
        raise MismatchError(f"with --cas the reference must share the supernet's weights, but {not_contained(reference)}; add --no-cas")
    if request.cas and reference.placed is None:
        raise MismatchError(
            f"with --cas the reference must be a subnet of the searched supernet (same digest), but {reference.name} is not; "
            "name its supernet with --supernet, or add --no-cas"
        )
    return request.cas is not False and reference.placed is not None


def macs_of_reference(space: Space, placed: Placed) -> float:
    """MACs of a contained network at the smallest resolution of a space."""
    codes = placed.within(space)
    codes[0] = 1
    return float(macs_of(space)(codes[None])[0])
