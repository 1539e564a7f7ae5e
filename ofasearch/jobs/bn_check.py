"""`bn-check`: accuracy against the number of images that batch norm is calibrated on, and how many suffice."""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from torch import nn

from ofasearch import zoo
from ofasearch.data import DataSet, Split, load_data
from ofasearch.errors import MismatchError, UsageError
from ofasearch.evaluate.calibration import SMALLEST, calibrated_on, enough, losses, sample_sizes
from ofasearch.evaluate.flips import negative_flip_rate
from ofasearch.evaluate.score import CALIBRATION_BATCH, accelerator, predict_together, predictions, top1
from ofasearch.jobs.classifier import Classifier, PredictionProgress, check_fits, read_classifier
from ofasearch.jobs.deliver import Subnet, to_network
from ofasearch.records import check_writable, json_text, write_together
from ofasearch.report import bn_check as report

DRAWS, IMAGES, TOLERANCE = 5, 2000, 0.001  # a tenth of a point
MOST_DRAWS = 100
FILES = {"bn_check_csv": "bn_check.csv", "bn_check_png": "bn_check.png", "bn_check": "bn_check.json"}


@dataclass(frozen=True, slots=True, kw_only=True)
class BnCheckRequest:
    """`ofasearch bn-check`. `subnet` is a subnet.pt, or an arch id of `supernet`; its own statistics do not matter."""

    subnet: str
    data: str
    supernet: str | None = None
    images: int = IMAGES  # of the validation split, at most
    draws: int = DRAWS  # of every sample size
    tolerance: float = TOLERANCE  # of top-1, a fraction, that a sample may lose
    seed: int = 0
    out: Path | None = None

    def __post_init__(self) -> None:
        if self.images < 1 or self.seed < 0 or not 1 <= self.draws <= MOST_DRAWS:
            raise UsageError(
                f"--images must be at least 1, --seed at least 0 and --draws 1 to {MOST_DRAWS}, "
                f"but got {self.images}, {self.seed} and {self.draws}"
            )
        if not 0 < self.tolerance < 1:
            raise UsageError(f"--tolerance must lie between 0 and 100 points, but got {100 * self.tolerance:g}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BnCheckResult:
    """The answer: `record` as in `bn_check.json`."""

    record: dict[str, Any]


@dataclass(frozen=True, slots=True)
class _Found:
    """Of each draw and sample size: top-1, and flips against the whole split of the same draw, (d, k) both."""

    top1: npt.NDArray[np.float64]
    nfr: npt.NDArray[np.float64]


def bn_check(request: BnCheckRequest) -> Iterator[PredictionProgress | BnCheckResult]:
    """Calibrate on samples of 16, 32, ... images of the calibration split, each size drawn several times, and evaluate them.

    The samples of one draw grow: each holds those before it. All are judged on the same validation images; the test split is
    not touched. Raises UsageError, MismatchError, NotFoundError, WriteError.
    """
    if request.out is not None:
        check_writable(request.out / FILES["bn_check"])
    for fetched in zoo.fetch_supernet(request.supernet):
        yield PredictionProgress(phase=f"fetching {fetched.name}", done=fetched.done, total=fetched.total or 0)
    classifier = read_classifier(request.subnet, supernet=request.supernet)
    data = load_data(request.data)
    subnet = _check(request, classifier, data)
    images = data["validation"].take(np.arange(min(request.images, len(data["validation"]))))
    sizes = sample_sizes(len(data["calibration"]))
    top1s, flips, started = list[list[float]](), list[list[float]](), time.perf_counter()
    for draw in range(request.draws):
        networks = _networks(request, subnet, data["calibration"], sizes, draw)
        parts: list[list[npt.NDArray[np.int64]]] = []
        for part in predict_together(networks, images, subnet.preprocessing, resolution=subnet.blueprint[0].hw_in):
            parts.append(part)
            done, total = draw * len(images) + sum(len(p[0]) for p in parts), request.draws * len(images)
            eta = (time.perf_counter() - started) / done * (total - done)
            yield PredictionProgress(
                phase=f"evaluating samples of {sizes[0]} to {sizes[-1]} images", done=done, total=total, eta_seconds=eta
            )
        found = [np.concatenate(column) for column in zip(*parts, strict=True)]
        top1s.append([top1(row, images.labels) for row in found])
        flips.append([negative_flip_rate(found[-1], row, images.labels) for row in found])
    record = _record(request, classifier, data, sizes, _Found(np.array(top1s), np.array(flips)))
    record |= {"n": len(images)} | _own(subnet, images)
    yield BnCheckResult(record=_written(request.out, record) if request.out is not None else record)


def _check(request: BnCheckRequest, classifier: Classifier, data: DataSet) -> Subnet:
    """The network, if it can be calibrated and judged on the data."""
    if classifier.subnet is None:
        raise UsageError(
            f"a network must have batch norms that can be set, a subnet.pt or an arch id, but {request.subnet} is of kind "
            f"{classifier.kind}; give the subnet.pt that lies beside it"
        )
    calibrated_here = replace(classifier, subnet=replace(classifier.subnet, calibrated="by every sample"))
    check_fits(calibrated_here, data, "validation")
    if len(data["calibration"]) < SMALLEST:
        raise MismatchError(
            f"data must have at least {SMALLEST} images in its calibration split to draw samples of, but {data.name} has "
            f"{len(data['calibration'])}"
        )
    return classifier.subnet


def _networks(request: BnCheckRequest, subnet: Subnet, images: Split, sizes: Sequence[int], draw: int) -> list[nn.Module]:
    """The network calibrated on one draw of each size."""
    order = np.random.default_rng([request.seed, draw]).permutation(len(images))
    network = to_network(subnet).to(accelerator())
    return calibrated_on(network, images.take(order), sizes, subnet.preprocessing, resolution=subnet.blueprint[0].hw_in)


def _own(subnet: Subnet, images: Split) -> dict[str, float]:
    """Top-1 with the statistics that the network came with, where it came with any."""
    if subnet.calibrated == "no":
        return {}
    found = predictions(to_network(subnet).to(accelerator()), images, subnet.preprocessing, resolution=subnet.blueprint[0].hw_in)
    return {"own_top1": top1(found, images.labels)}


def _record(request: BnCheckRequest, classifier: Classifier, data: DataSet, sizes: Sequence[int], found: _Found) -> dict[str, Any]:
    """The answer; with a single draw nothing is known of how draws differ, and nothing is said of it."""
    lost = losses(found.top1)
    spread = request.draws > 1
    rows = [
        {
            "images": size,
            "top1": float(found.top1[:, i].mean()),
            **({"deviation": float(found.top1[:, i].std(ddof=1))} if spread else {}),
            "loss": lost[i].mean,
            **({"loss_bound": lost[i].bound} if spread else {}),
            "nfr": float(found.nfr[:, i].mean()),
            "draws": found.top1[:, i].tolist(),
        }
        for i, size in enumerate(sizes)
    ]
    on_average = [replace(loss, bound=loss.mean) for loss in lost]
    return {
        "arch_id": classifier.arch_id or classifier.name,
        "data": data.name,
        "split": "validation",
        "draws": request.draws,
        "seed": request.seed,
        "calibration_batch": CALIBRATION_BATCH,
        "tolerance": request.tolerance,
        **({"suffices": enough(sizes, lost, request.tolerance)} if spread else {}),
        "suffices_on_average": enough(sizes, on_average, request.tolerance),
        "sizes": rows,
    }


def _written(folder: Path, record: dict[str, Any]) -> dict[str, Any]:
    """Write JSON, CSV and plot together; the record with their paths."""
    paths = {name: (folder / file).absolute() for name, file in FILES.items()}
    record = record | {"files": {name: str(path) for name, path in paths.items()}}
    contents: dict[str, bytes | str] = {
        "bn_check_csv": report.csv_text(record),
        "bn_check_png": report.plot(record),
        "bn_check": json_text(record),
    }
    write_together({paths[name]: content for name, content in contents.items()})
    return record


__all__ = ["DRAWS", "IMAGES", "TOLERANCE", "BnCheckRequest", "BnCheckResult", "bn_check"]
