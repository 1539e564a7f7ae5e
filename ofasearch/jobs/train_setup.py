"""What a training run is given: the request, its data, space and strategy made ready, and the weights it starts from."""

from __future__ import annotations

import math
import os
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from ofasearch import zoo
from ofasearch.data import IMAGENET, DataSet, ImageSet, Preprocessing, Split, channel_statistics, load_data
from ofasearch.data.folder import FolderSet
from ofasearch.errors import MismatchError, OfaSearchError, TrainingError, UsageError
from ofasearch.jobs.deliver import load_subnet, to_network
from ofasearch.jobs.run_folder import NEWEST, RUN, WEIGHTS, newest_checkpoint
from ofasearch.records import read_json
from ofasearch.space.core import Space
from ofasearch.space.families import get_space
from ofasearch.space.own import named_space
from ofasearch.supernet.elastic import zero_last_gammas
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import Weights, digest, load_weights, transfer
from ofasearch.train.loop import TrainConfig
from ofasearch.train.source import FolderSource, MemorySource, Source
from ofasearch.train.strategies import STRATEGIES, Phase, Strategy

WORKERS = min(16, os.cpu_count() or 1)  # threads that decode photographs


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainRequest:
    """`ofasearch train`: which space on which data by which strategy, and where the run lives."""

    space: str
    data: str
    out: Path
    strategy: str = "deps"
    options: dict[str, Any] = field(default_factory=dict)  # of the strategy, e.g. {"subnets": 4}
    config: TrainConfig
    resolutions: tuple[int, ...] | None = None  # fewer of the space's
    init: Path | None = None  # a supernet (a file, a run's folder, a shipped one's name) whose weights to start from
    teacher: str | None = None  # a network to distil from: a supernet's largest, or a subnet.pt
    resume: bool = False
    evaluate_every: int = 4  # epochs; 0 for the end only
    device: str | None = None  # cpu, cuda; None: the GPU where there is one
    workers: int = WORKERS
    skip_unreadable: bool = False
    price: float | None = None  # dollars per device hour
    co2: float | None = None  # kilograms per device hour

    def __post_init__(self) -> None:
        for name, rate in (("--price", self.price), ("--co2", self.co2)):
            if rate is not None and not 0 <= rate < math.inf:
                raise UsageError(f"{name} must be a rate of at least 0, but got {rate}")


def make_strategy(name: str, options: dict[str, Any], space: Space) -> Strategy:
    """The strategy of that name; `arch`, an arch id of the space, stands for the codes of a single network.

    Raises UsageError, ArchError.
    """
    if name not in STRATEGIES:
        raise UsageError(f"strategy must be one of {', '.join(STRATEGIES)}, but got '{name}'")
    arch = options.get("arch")
    rest = {key: value for key, value in options.items() if key != "arch"}
    try:
        strategy = STRATEGIES[name](**rest, **({"codes": space.parse(str(arch)).codes} if arch is not None else {}))
    except TypeError as error:
        raise UsageError(f"options of strategy {name} must be its own, but got {options}: {error}") from error
    codes = getattr(strategy, "codes", None)
    if codes is not None:
        space.validate(np.array([codes]))
    return strategy


def describe_plan(
    name: str, options: dict[str, Any], space: Space, *, epochs: int | None = None, lr: float = 1.0, taught: bool = False
) -> dict[str, Any]:
    """The phases of a strategy on a space as rows for people, its options and its recipe; `taught`: a teacher is given.

    Raises UsageError, ArchError.
    """
    if not 0 < lr < math.inf:
        raise UsageError(f"the learning rate must be positive, but got {lr}")
    strategy = make_strategy(name, options, space)
    phases = [phase for phase in strategy.phases(space) if not (taught and phase.teaches)]
    total = sum(phase.epochs for phase in phases)
    rows = [
        {
            "phase": phase.name,
            "epochs": round(phase.epochs * (epochs or total) / total, 2),
            "paper_epochs": phase.epochs,
            "lr": float(f"{lr * phase.lr:.3g}"),
            "subnets": phase.subnets,
            "choices": _open_choices(phase, space),
            "channels": "sorted first"
            if phase.sorts and phase.kept is None
            else f"sorted, {phase.kept}x kept"
            if phase.sorts
            else "as they are",
        }
        for phase in phases
    ]
    return {"strategy": name, "space": space.name, "phases": rows, "options": asdict(strategy), "recipe": dict(strategy.recipe)}  # type: ignore[call-overload]


def _open_choices(phase: Phase, space: Space) -> str:
    """Which kernels, depths and expand ratios a phase trains, e.g. "kernel 7, depth 3-4"."""
    words = []
    for key, word in (("ks", "kernel"), ("d", "depth"), ("e", "expand")):
        genes = [gene for gene in space.genes[1:] if gene.reads[0] == key]
        if genes:
            choices = genes[0].choices[-min(len(genes[0].choices), phase.choices.get(key, 1)) :]
            words.append(f"{word} {'/'.join(map(str, choices))}")
    return ", ".join(words)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A request made ready."""

    data: DataSet
    space: Space
    preprocessing: Preprocessing
    strategy: Strategy
    device: torch.device


def prepare(request: TrainRequest) -> Prepared:
    """Load the data and see that space, data, strategy and device fit.

    Raises UsageError, MismatchError, NotFoundError, FormatError.
    """
    data = load_data(request.data)
    space = get_space(request.space, classes=data.classes or None)
    images = data["train"]
    if data.classes == 0 or len(images) == 0:
        raise UsageError(
            f"training needs labelled images, but {data.name} has no {'labels' if data.classes == 0 else 'training images'}; "
            "give Parquet, CIFAR or idx files, or a folder with one folder of images per class"
        )
    sizes = (images.pixels,) if images.pixels is not None else request.resolutions or space.resolutions
    if request.resolutions is not None and images.pixels is not None and request.resolutions != sizes:
        raise MismatchError(f"images of {data.name} have {images.pixels} pixels and are not resized; leave --resolutions out")
    if tuple(sizes) != space.resolutions:
        space = space.with_resolutions(sizes)
    if isinstance(images, ImageSet):
        mean, std = channel_statistics(images.images)
        preprocessing = Preprocessing(mean=mean, std=std, size=images.pixels)
    else:
        preprocessing = Preprocessing(mean=IMAGENET.mean, std=IMAGENET.std, size=max(space.resolutions), crop_pct=IMAGENET.crop_pct)
    return Prepared(
        data=data,
        space=space,
        preprocessing=preprocessing,
        strategy=make_strategy(request.strategy, request.options, space),
        device=device_of(request.device),
    )


def device_of(name: str | None) -> torch.device:
    """Where a run trains: cpu, cuda, or where there is one the GPU. Raises UsageError."""
    if name not in (None, "cpu", "cuda"):
        raise UsageError(f"--device must be cpu or cuda, but got '{name}'")
    if name == "cuda" and not torch.cuda.is_available():
        raise UsageError("--device cuda needs a CUDA device, but torch sees none; leave it out to train on the CPU")
    chosen = name or ("cuda" if torch.cuda.is_available() else "cpu")
    return torch.device("cuda", torch.cuda.current_device()) if chosen == "cuda" else torch.device("cpu")


def open_source(images: Split, config: TrainConfig, *, device: torch.device, workers: int, skip_unreadable: bool) -> Source:
    """Where the training images come from: memory (of the GPU, where it trains), or files that workers decode."""
    if isinstance(images, FolderSet):
        return FolderSource(images, flip=config.flip, workers=workers, skip_unreadable=skip_unreadable)
    assert isinstance(images, ImageSet)
    return MemorySource(images, crop_padding=config.crop_padding, flip=config.flip, device=device)


# -- where a run starts ----------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Teacher:
    """A given network to distil from, and its weights where it is a supernet's largest."""

    network: nn.Module
    weights: Weights | None
    digest: str
    preprocessing: Preprocessing


def given_teacher(request: TrainRequest, ready: Prepared) -> Teacher:
    """The network that `--teacher` names.

    Raises NotFoundError, FormatError, MismatchError (other classes; another space, where it would start the supernet).
    """
    name, alone = str(request.teacher), ready.strategy.needs_teacher
    if not ready.strategy.needs_teacher and not any(phase.teaches for phase in ready.strategy.phases(ready.space)):
        raise UsageError(f"strategy {request.strategy} distils from no given network; leave --teacher out")
    teacher = read_teacher(name, ready.space.classes, alone=alone)
    if not alone and teacher.weights is not None:
        transfer(teacher.weights.arrays, teacher.weights.space, ready.space)  # the supernet starts from it, so it must fit
    return teacher


def read_teacher(name: str, classes: int, *, alone: bool) -> Teacher:
    """The largest network of a supernet, or, where one network may stand `alone`, that of a subnet.pt.

    Raises NotFoundError, FormatError, MismatchError (other classes).
    """
    if name.endswith(".pt") and alone:
        subnet, _ = load_subnet(Path(name))
        _check_classes(name, subnet.blueprint[-1].c_out, classes)
        return Teacher(to_network(subnet).eval(), None, digest(subnet.arrays), subnet.preprocessing)
    weights = zoo.load_supernet(name).weights
    _check_classes(name, weights.space.classes, classes)
    network = Supernet.from_arrays(weights.space, weights.arrays).extract(weights.space.largest())
    return Teacher(network.train(), weights, weights.digest, weights.preprocessing)  # batch statistics, as the published code does


def _check_classes(name: str, classes: int, wanted: int) -> None:
    if classes != wanted:
        raise MismatchError(f"--teacher must know the {wanted} classes of the data, but {name} knows {classes}")


def initialise(supernet: Supernet, request: TrainRequest, teacher: Teacher | None) -> dict[str, Any]:
    """Give a supernet the weights it starts from; returns what the record says of them.

    Raises NotFoundError, FormatError, TrainingError, MismatchError (another space, or another number of classes).
    """
    if request.config.zero_gamma:
        zero_last_gammas(supernet)
    found: dict[str, Any] = {"teacher": {"name": request.teacher, "digest": teacher.digest}} if teacher is not None else {}
    if request.init is not None:
        return found | {"init": _load_start(supernet, request.init)}
    if teacher is not None and teacher.weights is not None and any(p.teaches for p in _phases_of(request, supernet.space)):
        supernet.load_arrays(transfer(teacher.weights.arrays, teacher.weights.space, supernet.space))
    return found


def _phases_of(request: TrainRequest, space: Space) -> Any:
    return make_strategy(request.strategy, request.options, space).phases(space)


def _load_start(supernet: Supernet, path: Path) -> dict[str, Any]:
    """Load the weights of a trained supernet, or those that an unfinished run has reached."""
    if path.is_dir() and not (path / WEIGHTS).is_file():
        state, _ = newest_checkpoint(path)
        try:
            arrays = {str(key): np.asarray(tensor.numpy(), dtype=np.float32) for key, tensor in state["weights"].items()}
            run = {key: value for key, value in dict(read_json(path / RUN)).items() if key not in ("data", "init")}  # no paths
            source = get_space(named_space(run), classes=supernet.space.classes)
            supernet.load_arrays(transfer(arrays, source, supernet.space))
            return {"digest": digest(arrays), "step": int(state["step"]), "run": run}
        except MismatchError as error:
            raise MismatchError(f"--init must be a run of {supernet.space.name} or of a part of it, but {path} is not: {error}") from error
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise TrainingError(f"{path / NEWEST} must hold weights and a step, but does not: {error}") from error
    shipped = str(path) in zoo.supernet_names() and not path.exists()
    weights = zoo.load_supernet(str(path)).weights if shipped else load_weights(path / WEIGHTS if path.is_dir() else path)
    try:
        if weights.space.classes != supernet.space.classes:
            raise MismatchError(f"it has {weights.space.classes} classes")
        supernet.load_arrays(transfer(weights.arrays, weights.space, supernet.space))
    except OfaSearchError as error:
        raise MismatchError(
            f"--init must be a supernet of {supernet.space.name} (or of a part of it, or a larger one) with "
            f"{supernet.space.classes} classes, but {path} is one of {weights.space.name} with {weights.space.classes}: {error}"
        ) from error
    return {"digest": weights.digest, "space": weights.space.name, "training": weights.training}
