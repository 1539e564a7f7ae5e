"""Measure every member of a supernet's space: batch-norm statistics and predictions, resumable group by group."""

from __future__ import annotations

import glob
import hashlib
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ofasearch import zoo
from ofasearch.data import DataSet, ImageSet, SplitName, load_data
from ofasearch.errors import MismatchError, UsageError
from ofasearch.evaluate.members import Collector, Members, join, save_members, walk
from ofasearch.evaluate.score import batches, calibration_batches
from ofasearch.jobs.setup import MEMBERS_LIMIT
from ofasearch.records import forget_unfinished, provenance, write_atomic
from ofasearch.supernet.elastic import channels_last
from ofasearch.supernet.supernet import Supernet

GROUP = 27  # members per part file: what an interruption can cost


@dataclass(frozen=True, slots=True, kw_only=True)
class MembersProgress:
    """How many members are measured."""

    done: int
    total: int
    eta_seconds: float | None


@dataclass(frozen=True, slots=True, kw_only=True)
class MembersResult:
    """The written file and what it says: top-1 (m,) per split."""

    path: Path
    members: Members


def measure_members(supernet: str, data: str, out: Path | None = None) -> Iterator[MembersProgress | MembersResult]:
    """Recalibrate every member on the calibration split and predict the validation and test splits.

    The parts of an interrupted run are kept beside the result and used again, if they belong to the same weights and images.
    Raises UsageError for a space of more than 5,000 members, MismatchError when data and supernet do not fit.
    """
    trained = zoo.load_supernet(supernet)
    space, preprocessing = trained.weights.space, trained.weights.preprocessing
    if space.size * len(space.resolutions) > MEMBERS_LIMIT:
        raise UsageError(f"only spaces of at most {MEMBERS_LIMIT} members are measured whole, but {space.name} has {space.size:,}")
    images = load_data(data)
    if images.classes != space.classes or images.pixels is None or [images.pixels] != list(space.resolutions):
        raise MismatchError(f"data {images.name} must have the {space.classes} classes and the image size that {supernet} was trained on")
    digest = trained.weights.digest
    target = out or zoo.supernet_folder(supernet) / zoo.MEMBERS_FILE
    stamp = f"{digest[:12]}-{_stamp(images)}"
    codes = space.enumerate()
    model = Supernet.from_arrays(space, trained.weights.arrays)
    channels_last(model)
    calibration = list(calibration_batches(images, preprocessing, resolution=images.pixels))
    splits: tuple[SplitName, ...] = ("validation", "test")
    inputs: dict[str, list[Any]] = {name: list(batches(images[name], preprocessing, resolution=images.pixels)) for name in splits}
    layers = max(len(space.blueprint(row)) for row in codes)
    parts: list[dict[str, npt.NDArray[Any]]] = []
    started, fresh = time.perf_counter(), 0
    for start in range(0, len(codes), GROUP):
        part_file = target.with_name(f".{target.name}.part-{stamp}-{start}")
        part = _read_part(part_file)
        if part is None:
            rows = codes[start : start + GROUP]
            collector = Collector(len(rows), layers)
            for visit in walk(model, [space.blueprint(row) for row in rows], calibration, inputs):
                collector.add(visit)
            part = collector.arrays()
            write_atomic(part_file, save({k: np.ascontiguousarray(a) for k, a in part.items()}))
            fresh += len(rows)
        parts.append(part)
        done = min(len(codes), start + GROUP)
        eta = (time.perf_counter() - started) / fresh * (len(codes) - done) if fresh else None
        yield MembersProgress(done=done, total=len(codes), eta_seconds=eta)
    arrays = join(parts)
    members = Members(
        space=space,
        codes=codes,
        predictions={name: arrays[f"predictions.{name}"] for name in inputs},
        labels={name: images[name].labels.astype(np.uint8) for name in splits},
        nodes=arrays["nodes"],
        offsets=arrays["offsets"],
        statistics=arrays["statistics"],
        supernet_digest=digest,
        card=provenance(data=images.name, calibration_images=sum(map(len, calibration))),
    )
    save_members(target, members)
    forget_unfinished(target)
    name = glob.escape(target.name)
    for part_file in [*target.parent.glob(f".{name}.part-*"), *target.parent.glob(f"..{name}.part-*")]:  # the latter: left by kills
        part_file.unlink(missing_ok=True)
    yield MembersResult(path=target.absolute(), members=members)


def _stamp(images: DataSet) -> str:
    """What tells the images that members are measured on from others."""
    sha = hashlib.sha256()
    for split in ("calibration", "validation", "test"):
        part = images[split]
        assert isinstance(part, ImageSet)  # images of one fixed size
        sha.update(part.images.tobytes())
        sha.update(part.labels.tobytes())
    return sha.hexdigest()[:12]


def _read_part(path: Path) -> dict[str, npt.NDArray[Any]] | None:
    try:
        return dict(load_file(path)) if path.exists() else None
    except (SafetensorError, OSError, ValueError):
        return None  # damaged: measured again
