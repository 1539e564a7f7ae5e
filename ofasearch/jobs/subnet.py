"""Jobs on one network: read it from whatever names it, evaluate, export, time and inspect it."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch import zoo
from ofasearch.data import DataSet, SplitName, load_data
from ofasearch.errors import CalibrationError, MismatchError, UsageError
from ofasearch.evaluate.saved import former, write_saved
from ofasearch.jobs.classifier import calibrated, check_fits, predictions_of, read_classifier
from ofasearch.jobs.deliver import (
    Subnet,
    calibrated_subnet,
    settings_json,
    shipped_subnet,
    uncalibrated_subnet,
)
from ofasearch.jobs.network import parse_codes, place_of, read_network, subnet_at
from ofasearch.jobs.onnx_file import read_preprocessing
from ofasearch.records import check_writable
from ofasearch.space.costs import costs
from ofasearch.space.families import get_space


def read_subnet(text: str, *, supernet: str | None = None, data: DataSet | None = None, no_bn: bool = False) -> Subnet:
    """A network with weights: a `subnet.pt`, a `net.config` with its `init`, a folder of either, or a network of a supernet.

    Batch norm is recalibrated on the data's calibration split where data is given, else the shipped statistics are
    used. Raises CalibrationError when there is neither, unless `no_bn`.
    """
    place = place_of(text)
    if place is not None:
        return subnet_at(place)
    trained = zoo.load_supernet(supernet or zoo.DEFAULT_SUPERNET)
    space = trained.weights.space
    codes = parse_codes(text, space)
    if data is not None:
        if data.classes not in (0, space.classes):
            raise MismatchError(f"data {data.name} must have the supernet's {space.classes} classes, but has {data.classes}")
        return calibrated_subnet(trained.weights, codes, data, trained.name)
    if trained.members is not None:
        return shipped_subnet(trained.weights, trained.members, codes, trained.name)
    if no_bn:
        return uncalibrated_subnet(trained.weights, codes, trained.name)
    raise CalibrationError(
        f"batch norm of {text} must be recalibrated before it means anything, but there is no data; add --data (or --no-bn)"
    )


def cost(text: str, space: str | None = None) -> dict[str, Any]:
    """`space cost`: MACs, parameters and peak activation bytes of one network, however it is named."""
    return asdict(costs(read_network(text, space=space).blueprint))


def evaluate(
    subnet: str,
    *,
    data: str,
    split: SplitName = "test",
    supernet: str | None = None,
    preprocessing: str | None = None,
    save_predictions: str | Path | None = None,
) -> dict[str, Any]:
    """`eval`: top-1 of a subnet, of an ONNX file or of saved predictions on a split.

    An arch is recalibrated on the calibration split first; a file is taken as it is. `preprocessing` is for ONNX files that do not
    say theirs; `save_predictions` is an .npz, to which another split of the same network is added. Raises CalibrationError for a
    file that was never calibrated, MismatchError when classes or sizes differ.
    """
    from ofasearch.evaluate.score import calibration_images, top1

    images = load_data(data)
    classifier = read_classifier(
        subnet, supernet=supernet, preprocessing=read_preprocessing(preprocessing) if preprocessing is not None else None
    )
    labels = check_fits(classifier, images, split)
    ready = calibrated(classifier, images)
    network = {"name": ready.name, "digest": ready.digest}
    if save_predictions is not None:
        former(Path(save_predictions), images.name, network)  # said now, not after long work
        check_writable(Path(save_predictions))
    predicted = predictions_of(ready, images, split)
    record: dict[str, Any] = {"top1": top1(predicted, labels.labels), "n": len(predicted), "split": split, "data": images.name}
    if ready.subnet is not None:
        used = len(calibration_images(images)) if classifier.trained is not None else 0
        record |= {"arch_id": ready.subnet.arch.id, "calibrated": ready.subnet.calibrated, "calibration_images": used}
    elif ready.onnx is not None:
        record["runtime"] = "onnxruntime cpu"
    if save_predictions is not None:
        write_saved(Path(save_predictions), labels, predicted, network)
        record["predictions"] = str(Path(save_predictions).absolute())
    return record


def sample(space: str, n: int, seed: int) -> list[dict[str, Any]]:
    """`space sample`: n uniform networks with their costs."""
    if n < 1 or seed < 0:
        raise UsageError(f"-n must be at least 1 and --seed at least 0, but got {n} and {seed}")
    found = get_space(space)
    rows = found.sample(n, np.random.default_rng(seed))
    return [{"arch_id": found.arch(row).id, "arch": settings_json(found, row), **asdict(costs(found.blueprint(row)))} for row in rows]
