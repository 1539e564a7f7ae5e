"""What a fine-tuning is given: the request, the network with its images made ready, and what else it learns from.

The published specialised networks were trained for 25 or 75 epochs after they were cut out ("#25" and "#75" in OFA's tables); with
which rate, and whether distilled, nobody has published. The rate here is the one at which progressive shrinking goes on
with trained weights for 25 epochs, 3 % of the full network's, without warm-up (OFA, section 4.1: 0.08 of 2.6).
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from ofasearch.data import DataSet, load_data
from ofasearch.errors import MismatchError, UsageError
from ofasearch.evaluate.saved import SPLITS
from ofasearch.jobs.classifier import Classifier, assume_preprocessing, calibrated, check_fits, fed_alike, read_classifier
from ofasearch.jobs.deliver import Subnet, to_network
from ofasearch.jobs.run_folder import LOG, NEWEST, PREVIOUS, RUN
from ofasearch.jobs.train_setup import WORKERS, Teacher, device_of, read_teacher
from ofasearch.records import check_writable, read_json
from ofasearch.supernet.weights import digest
from ofasearch.train.loop import TrainConfig

EPOCHS = 25
RATE = 0.003  # peak, for batches of 128: 0.08 / 2.6 of the 0.1 that supernets are trained at
COMMAND = "finetune"  # how its folders are known
DELIVERED = ("subnet.pt", "subnet.onnx", "result.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class FinetuneRequest:
    """`ofasearch finetune`. `config` is the recipe; `subnet` a subnet.pt, or an arch id of `supernet`."""

    subnet: str
    data: str
    out: Path
    config: TrainConfig
    supernet: str | None = None
    teacher: str | None = None  # a supernet, whose largest network is it, or a subnet.pt: its soft predictions stand beside the labels
    focal: float = 0.0  # weight of focal distillation from the untuned network
    ref: str | None = None  # a network that the untuned and the tuned one are compared with, too
    resume: bool = False
    evaluate_every: int = 1  # epochs between validations; the best of those that are validated is kept
    device: str | None = None  # cpu, cuda; None: the GPU where there is one
    workers: int = WORKERS
    skip_unreadable: bool = False

    def __post_init__(self) -> None:
        if not 0 <= self.focal < float("inf"):
            raise UsageError(f"--focal must be a weight of at least 0, but got {self.focal}")
        if self.teacher is not None and self.focal > 0:
            raise UsageError("--teacher and --focal are two ways to learn from another network, but both are given; choose one")
        if self.evaluate_every < 1:
            raise UsageError(f"--evaluate-every must be at least 1 epoch, but got {self.evaluate_every}")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ready:
    """A request made ready: the untuned network, what it is compared with, and the images."""

    data: DataSet
    untuned: Classifier
    subnet: Subnet  # of it
    ref: Classifier | None
    notes: tuple[str, ...]
    device: torch.device

    @property
    def resolution(self) -> int:
        """Input height = width, pixels."""
        return self.subnet.blueprint[0].hw_in


def check_folder(folder: Path, *, resume: bool) -> None:
    """Raise UsageError unless the folder is new or that of such a run; what lies in it may be what is to be tuned."""
    check_writable(folder / LOG)
    card = read_json(folder / RUN) if (folder / RUN).is_file() else None
    ours = isinstance(card, dict) and card.get("command") == COMMAND
    there = [name for name in (RUN, LOG, NEWEST, PREVIOUS, *DELIVERED) if (folder / name).exists()]
    if there and not ours:
        raise UsageError(f"{folder} must be a new folder or that of an earlier fine-tuning, but holds another {there[0]}; give another -o")
    begun = any((folder / name).exists() for name in (NEWEST, PREVIOUS))
    if begun and not resume:
        raise UsageError(f"{folder} must be a new folder, but holds a run; add --resume to continue it")


def prepare(request: FinetuneRequest) -> Ready:
    """Read data and networks, and see that they fit."""
    untuned = read_classifier(request.subnet, supernet=request.supernet)
    if untuned.subnet is None:
        raise UsageError(
            f"a network must have weights that can be trained, a subnet.pt or an arch id, but {request.subnet} is of kind "
            f"{untuned.kind}; give the subnet.pt that lies beside it"
        )
    data = load_data(request.data)
    _check_data(data)
    for split in SPLITS:
        check_fits(untuned, data, split)
    untuned = calibrated(untuned, data)
    assert untuned.subnet is not None
    ref, notes = None, list[str]()
    if request.ref is not None:
        ref = read_classifier(request.ref, supernet=request.supernet)
        (ref,), notes = assume_preprocessing([ref], [untuned.subnet.preprocessing])
        for split in SPLITS:
            check_fits(ref, data, split)
    return Ready(data=data, untuned=untuned, subnet=untuned.subnet, ref=ref, notes=tuple(notes), device=device_of(request.device))


def _check_data(data: DataSet) -> None:
    """Raise UsageError or MismatchError for data that cannot train, calibrate and judge."""
    if data.classes == 0 or len(data["train"]) == 0:
        raise UsageError(
            f"training needs labelled images, but {data.name} has no {'labels' if data.classes == 0 else 'training images'}; "
            "give Parquet, CIFAR or idx files, or a folder with one folder of images per class"
        )
    if len(data["calibration"]) == 0:
        raise MismatchError(f"data must have a calibration split, from which batch norm is set after training, but {data.name} has none")


def teacher_of(request: FinetuneRequest, ready: Ready) -> Teacher | None:
    """What the network learns from beside the labels. Raises MismatchError where that cannot be fed what the network is."""
    if request.focal > 0:
        return Teacher(to_network(ready.subnet), None, digest(ready.subnet.arrays), ready.subnet.preprocessing)
    if request.teacher is None:
        return None
    teacher = read_teacher(request.teacher, ready.subnet.classes, alone=True)
    if not fed_alike(teacher.preprocessing, ready.subnet.preprocessing):
        raise MismatchError(
            f"--teacher must be fed images as {ready.untuned.name} is, but {request.teacher} has another mean or std; "
            "give the supernet that the network was cut from"
        )
    return teacher


def card_of(request: FinetuneRequest, ready: Ready, teacher: Teacher | None) -> dict[str, Any]:
    """What a resumed run must ask again; networks are known by their weights, wherever they lie."""
    learned = {key: array for key, array in ready.subnet.arrays.items() if not key.endswith(("running_mean", "running_var"))}
    card: dict[str, Any] = {
        "command": COMMAND,
        "space": ready.subnet.arch.space,
        "arch_id": ready.subnet.arch.id,
        "weights": digest(learned),
    }
    card |= {"data": request.data, "focal": request.focal, "evaluate_every": request.evaluate_every, **asdict(request.config)}
    return card | ({"teacher": teacher.digest} if request.teacher is not None and teacher is not None else {})
