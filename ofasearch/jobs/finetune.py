"""`finetune`: a subnet trained for a few epochs more, alone, by the loop that trained its supernet; before and after compared."""

from __future__ import annotations

from collections.abc import Generator, Iterator, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from torch import Tensor

from ofasearch import zoo
from ofasearch.data import DataSet, SplitName
from ofasearch.evaluate.flips import compare, intervals
from ofasearch.evaluate.saved import SPLITS
from ofasearch.evaluate.score import calibration_batches, calibration_images, predictions, recalibrate_bn, top1
from ofasearch.jobs.classifier import (
    Classifier,
    Predicted,
    PredictionProgress,
    live_predictions,
)
from ofasearch.jobs.deliver import OWN_WEIGHTS, Subnet, onnx_bytes, prove, save_subnet
from ofasearch.jobs.finetune_setup import EPOCHS, RATE, FinetuneRequest, Ready, card_of, check_folder, prepare, teacher_of
from ofasearch.jobs.run_folder import RunFolder
from ofasearch.jobs.train import Course, TrainNote, TrainProgress, follow, skipped
from ofasearch.jobs.train_setup import Teacher, open_source
from ofasearch.ranks import Ranks, join
from ofasearch.records import provenance, write_atomic, write_json
from ofasearch.report.curves import SUBNET
from ofasearch.space.core import Blueprint
from ofasearch.space.single import single_space
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import Array, layer_key
from ofasearch.train.loop import Trainer
from ofasearch.train.source import Source
from ofasearch.train.strategies import Single

Predictions = Mapping[SplitName, Predicted]


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneResult:
    """The answer: `record` as in `result.json`; the same on every process."""

    record: dict[str, Any]


Event = TrainNote | TrainProgress | PredictionProgress


def finetune(request: FinetuneRequest) -> Iterator[Event | FinetuneResult]:
    """Fine-tune, with progress on the way and the result at the end; under torchrun on every process.

    The train split trains, batch norm is recalibrated on the calibration split, the best epoch is the one with the highest
    top-1 on the validation split (the first of equals), and the test split is looked at once, at the end.

    Raises UsageError, MismatchError, CalibrationError, TrainingError, VerificationError; before anything is written where
    the request is at fault.
    """
    with join() as ranks:
        if ranks.first:
            check_folder(request.out, resume=request.resume)
        for fetched in zoo.fetch_supernet(request.supernet):
            yield PredictionProgress(phase=f"fetching {fetched.name}", done=fetched.done, total=fetched.total or 0)
        ready = prepare(request)
        source = open_source(
            ready.data["train"], request.config, device=ready.device, workers=request.workers, skip_unreadable=request.skip_unreadable
        )
        with closing(source):
            yield from _tune(request, ready, source, ranks)


def _tune(request: FinetuneRequest, ready: Ready, source: Source, ranks: Ranks) -> Iterator[Event | FinetuneResult]:
    teacher = teacher_of(request, ready)
    trainer = _trainer(request, ready, source, ranks, teacher)
    before: Predicted | None = None
    best = _Best(trainer.supernet, ready)
    if ranks.first:
        before = yield from _told(ready.untuned, ready.data, "validation")
        top1_before = top1(before, ready.data["validation"].labels)
        yield TrainNote(text=f"the untuned network has a validation top-1 of {100 * top1_before:.2f} %")
    course = Course(
        trainer=trainer,
        folder=RunFolder(request.out),
        card=card_of(request, ready, teacher),
        resume=request.resume,
        watch=best,
        evaluate_every=request.evaluate_every,
        spent=lambda seconds: {"seconds": seconds, "device_hours": seconds * ranks.size / 3600},
    )
    done = yield from follow(course)
    record: dict[str, Any] = {}
    if ranks.first:
        assert before is not None  # on this process
        training = _training(request, ready, trainer, teacher) | {"seconds": round(done.seconds)}
        record = yield from _deliver(request, ready, best, before, training)
        yield from ([TrainNote(text=text)] if (text := skipped(source)) else [])
    yield FinetuneResult(record=ranks.share(record))


def _trainer(request: FinetuneRequest, ready: Ready, source: Source, ranks: Ranks, teacher: Teacher | None) -> Trainer:
    """The loop's trainer of this network alone: its space has no other."""
    space = single_space(ready.subnet.arch.space, _slotted(ready.subnet.blueprint))
    supernet = Supernet.from_arrays(space, ready.subnet.arrays)
    return Trainer(
        supernet.to(ready.device),
        Single(focal=request.focal, distillation=float(request.teacher is not None)),
        request.config,
        source,
        ready.subnet.preprocessing,
        ranks=ranks,
        teacher=teacher.network if teacher is not None else None,
    )


def _slotted(blueprint: Blueprint) -> Blueprint:
    """The layers with the names of their arrays as slots, those of static networks too."""
    return tuple(replace(spec, slot=layer_key(spec, index)) for index, spec in enumerate(blueprint))


# -- on the way --------------------------------------------------------------------------------------------------


@dataclass(slots=True)
class _Best:
    """Keeps the network of the best epoch so far, with batch norm recalibrated."""

    supernet: Supernet
    ready: Ready
    epoch: int = 0  # 0: none yet
    top1: float = -1.0
    arrays: dict[str, Tensor] | None = None

    def scores(self, epoch: int) -> dict[str, float]:
        """See `Watch`."""
        network, data, preprocessing = (
            self.supernet.extract(self.supernet.space.largest()),
            self.ready.data,
            self.ready.subnet.preprocessing,
        )
        recalibrate_bn(network, calibration_batches(data, preprocessing, resolution=self.ready.resolution))
        found = predictions(network, data["validation"], preprocessing, resolution=self.ready.resolution)
        score = top1(found, data["validation"].labels)
        if score > self.top1:
            state = {
                key: t.detach().cpu().contiguous().clone() for key, t in network.state_dict().items() if key in self.ready.subnet.arrays
            }
            self.epoch, self.top1, self.arrays = epoch, score, state
        return {SUBNET: score}

    def state(self) -> dict[str, Any]:
        """See `Watch`."""
        return {"best": {"epoch": self.epoch, "top1": self.top1, "arrays": self.arrays}} if self.arrays is not None else {}

    def restore(self, state: dict[str, Any]) -> None:
        """See `Watch`."""
        if "best" not in state:
            return
        epoch, score, arrays = int(state["best"]["epoch"]), float(state["best"]["top1"]), dict(state["best"]["arrays"])
        own = self.ready.subnet.arrays
        if arrays.keys() != own.keys() or any(arrays[key].shape != own[key].shape or not arrays[key].isfinite().all() for key in own):
            raise ValueError("its best network has other weights")
        self.epoch, self.top1, self.arrays = epoch, score, arrays


# -- after the run -----------------------------------------------------------------------------------------------


def _deliver(
    request: FinetuneRequest, ready: Ready, best: _Best, before: Predicted, training: Mapping[str, Any]
) -> Generator[Event, None, dict[str, Any]]:
    """Compare, prove, write; returns the record."""
    tuned = _tuned_subnet(ready, best)
    difference, checked_on = prove(tuned, onnx_bytes(tuned), ready.data)
    after = replace(ready.untuned, name="the tuned network", subnet=tuned)
    old: Predictions = {"validation": before, "test": (yield from _told(ready.untuned, ready.data, "test"))}
    new = yield from _told_both(after, ready.data)
    record: dict[str, Any] = {
        "arch_id": tuned.arch.id,
        "space": tuned.arch.space,
        "epochs": request.config.epochs,
        "best_epoch": best.epoch,
        "calibrated": tuned.calibrated,
        "before": _top1s(old, ready.data),
        "after": _top1s(new, ready.data),
        "flips": _flips(old, new, ready.data),
    }
    if ready.ref is not None:
        record["reference"] = yield from _beside(ready, ready.ref, old, new)
    test = {"top1": record["after"]["test_top1"], "source": "live", "n": len(new["test"])}
    record["measured"] = test | {"onnx_max_abs_diff": difference, "onnx_checked_on": checked_on}
    facts = {"finetuned": dict(training) | {"best_epoch": best.epoch}, **{key: record[key] for key in ("before", "flips", "measured")}}
    folder = request.out
    write_atomic(folder / "subnet.onnx", onnx_bytes(tuned, facts))
    save_subnet(folder / "subnet.pt", tuned, facts)
    record["files"] = {name: str((folder / file).absolute()) for name, file in (("onnx", "subnet.onnx"), ("subnet", "subnet.pt"))}
    record |= {"training": provenance(**training), "notes": [*ready.notes, *_names(ready), *_worth(record)]}
    write_json(folder / "result.json", record)
    return record


def _tuned_subnet(ready: Ready, best: _Best) -> Subnet:
    """The network of the best epoch; its weights are its own now."""
    assert best.arrays is not None  # the last epoch is always looked at
    arrays: dict[str, Array] = {key: t.numpy() for key, t in best.arrays.items()}
    used = len(calibration_images(ready.data))
    return replace(ready.subnet, arrays=arrays, supernet_digest=OWN_WEIGHTS, calibrated=f"{used} images of {ready.data.name} calibration")


def _top1s(predicted: Predictions, data: DataSet) -> dict[str, float]:
    return {f"{split}_top1": top1(predicted[split], data[split].labels) for split in SPLITS}


def _flips(old: Predictions, new: Predictions, data: DataSet) -> dict[str, Any]:
    """What flips on either split; intervals by a bootstrap of seed 0."""
    found = {split: compare(old[split], new[split], data[split].labels) for split in SPLITS}
    return {
        split: flips.to_json() | {"gain": flips.gain, "intervals": intervals(flips, np.random.default_rng(0)).to_json()}
        for split, flips in found.items()
    }


def _beside(ready: Ready, ref: Classifier, old: Predictions, new: Predictions) -> Generator[PredictionProgress, None, dict[str, Any]]:
    """The reference, and what flips when the untuned or the tuned network takes its place."""
    predicted = yield from _told_both(ref, ready.data)
    sides = {"untuned": _flips(predicted, old, ready.data), "tuned": _flips(predicted, new, ready.data)}
    return ref.to_json() | _top1s(predicted, ready.data) | sides


def _told_both(classifier: Classifier, data: DataSet) -> Generator[PredictionProgress, None, Predictions]:
    """Progress, and at last the predictions of both splits."""
    validation = yield from _told(classifier, data, "validation")
    return {"validation": validation, "test": (yield from _told(classifier, data, "test"))}


def _told(classifier: Classifier, data: DataSet, split: SplitName) -> Generator[PredictionProgress, None, Predicted]:
    """Progress, and at last the predictions (n,) of a split."""
    found: Predicted | None = None
    for event in live_predictions(classifier, data, split):
        if isinstance(event, PredictionProgress):
            yield event
        else:
            found = event
    assert found is not None  # it ends with them or raises
    return found


def _training(request: FinetuneRequest, ready: Ready, trainer: Trainer, teacher: Teacher | None) -> dict[str, Any]:
    """How the weights came to be."""
    said = {"name": request.teacher, "digest": teacher.digest} if request.teacher is not None and teacher is not None else None
    return {
        "start": {
            "supernet": ready.subnet.supernet,
            "supernet_digest": ready.subnet.supernet_digest,
            "calibrated": ready.subnet.calibrated,
        },
        "config": asdict(request.config),
        "focal": request.focal,
        "data": ready.data.name,
        "splits": {name: len(part) for name, part in ready.data.splits.items()},
        "device": str(ready.device.type),
        "processes": trainer.ranks.size,
        "steps": trainer.steps,
        **({"teacher": said} if said is not None else {}),
    }


def _names(ready: Ready) -> list[str]:
    """A note where the network keeps names of classes that the images have not."""
    mine, theirs = ready.subnet.class_names, ready.data.class_names
    return [f"{ready.data.name} names other classes than the network, which keeps its own names"] if mine and mine != theirs else []


def _worth(record: Mapping[str, Any]) -> list[str]:
    """A note where it was not worth the while."""
    before, after = (record[key]["validation_top1"] for key in ("before", "after"))
    if after > before:
        return []
    return [
        f"no epoch is better on the validation split than the untuned network ({100 * before:.2f} %): keep that one, or train longer or "
        "at another rate"
    ]


__all__ = ["EPOCHS", "RATE", "FinetuneRequest", "FinetuneResult", "finetune"]
