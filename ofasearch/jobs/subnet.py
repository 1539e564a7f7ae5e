"""Jobs on one network: read it from whatever names it, evaluate, export, time and inspect it."""

from __future__ import annotations

import math
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch import zoo
from ofasearch.data import DataSet, SplitName, load_data
from ofasearch.deploy.runtime import LoadedOnnx, get_runtime
from ofasearch.errors import CalibrationError, FormatError, MismatchError, NotFoundError, UsageError
from ofasearch.evaluate.saved import former, write_saved
from ofasearch.jobs.classifier import calibrated, check_fits, predictions_of, read_classifier
from ofasearch.jobs.deliver import (
    Subnet,
    calibrated_subnet,
    load_subnet,
    onnx_bytes,
    prove,
    settings_json,
    shipped_subnet,
    uncalibrated_subnet,
)
from ofasearch.jobs.latency import reference_of
from ofasearch.jobs.measuring import NET_RULE, Lab
from ofasearch.jobs.network import is_file, parse_codes, place_of, read_network, subnet_at
from ofasearch.jobs.onnx_file import read_preprocessing
from ofasearch.latency.machine import check_run, load_warning
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.latency.stopwatch import timing_json
from ofasearch.predictor import load_predictor
from ofasearch.records import check_writable, parse_json, read_json, write_atomic
from ofasearch.space.core import Blueprint
from ofasearch.space.costs import costs
from ofasearch.space.families import DESIGNS, get_space
from ofasearch.supernet.weights import load_weights


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


def export(subnet: str, *, out: str | Path, supernet: str | None = None, data: str | None = None, no_bn: bool = False) -> dict[str, Any]:
    """`export`: the subnet as a proved ONNX file.

    Raises VerificationError (nothing is written) when the file does not compute the network's logits.
    """
    images = load_data(data) if data else None
    network = read_subnet(subnet, supernet=supernet, data=None if is_file(subnet) else images, no_bn=no_bn)
    difference, checked_on = prove(network, onnx_bytes(network), images)
    facts = {"measured": {"onnx_max_abs_diff": difference, "onnx_checked_on": checked_on}}
    content = onnx_bytes(network, facts)
    write_atomic(Path(out), content)
    return {
        "onnx": str(Path(out).absolute()),
        "arch_id": network.arch.id,
        "calibrated": network.calibrated,
        "onnx_max_abs_diff": difference,
        "onnx_checked_on": checked_on,
        "size_bytes": len(content),
    }


def bench(model: str | Path, *, batch: int = 1, threads: int = 1, seconds: float = 3.0) -> dict[str, Any]:
    """`bench`: latency percentiles and throughput of an ONNX file on this machine's CPU.

    Raises UsageError for a batch that the file cannot take.
    """
    path = Path(model)
    if not path.is_file():
        raise NotFoundError(f"{path} must be an existing ONNX file, but there is none")
    check_run(batch=batch, threads=threads)
    if not 0 < seconds < math.inf:
        raise UsageError(f"--seconds must be positive, but got {seconds}")
    session = OnnxModel(path, threads=threads)
    shape = session.input_shape(batch)
    if shape[0] != batch:
        raise UsageError(f"--batch must be {shape[0]} for this file, whose batch is fixed, but got {batch}")
    lab = Lab(get_runtime(batch=batch, threads=threads), _beside(session.metadata.get("space", "")))
    key = lab.runtime.key
    rule = replace(NET_RULE, tolerance=0.002, max_bursts=100_000, max_seconds=seconds)
    inputs = np.random.default_rng(0).normal(size=shape).astype(np.float32)
    timing = lab.time_now({"model": lambda: LoadedOnnx(session, inputs)}, traced=False, rule=rule)["model"].timing
    warning = load_warning()
    return {
        **timing_json(timing),
        "throughput": 1000 * batch / timing.mean,
        "reference_speed": lab.speeds[-1],
        "threads": threads,
        "batch": batch,
        "runtime": key.runtime,
        "device": key.device,
        **({"warning": warning} if warning else {}),
    }


def _beside(space: str) -> Blueprint:
    """The reference network for a file: that of its own space, where the file names one, as when it was searched."""
    name = space if space in DESIGNS else "compofa-mbv3-cifar"
    return reference_of(get_space(name))


def inspect(path: str | Path) -> dict[str, Any]:
    """`inspect`: all that a file of ours says of itself.

    Raises NotFoundError, FormatError.
    """
    file = Path(path)
    if not file.is_file():
        raise NotFoundError(f"{file} must be an existing file, but there is none")
    if file.suffix == ".onnx":
        model = OnnxModel(file)
        facts = {key: _value(text) for key, text in model.metadata.items()}
        return {"kind": "onnx", "input": {"name": model.inputs[0].name, "shape": list(model.inputs[0].shape)}, **facts}
    if file.suffix == ".pt":
        subnet, facts = load_subnet(file)
        return {
            "kind": "subnet",
            "arch_id": subnet.arch.id,
            "arch": dict(subnet.settings),
            "space": subnet.arch.space,
            "classes": list(subnet.class_names) or subnet.classes,
            "preprocessing": subnet.preprocessing.to_json(),
            "supernet": subnet.supernet,
            "supernet_digest": subnet.supernet_digest,
            "calibrated": subnet.calibrated,
            **asdict(costs(subnet.blueprint)),
            **facts,
        }
    if file.suffix == ".safetensors":
        return _inspect_safetensors(file)
    if file.suffix == ".json":
        record = read_json(file)
        if not isinstance(record, dict):
            raise FormatError(f"{file} must hold one JSON object, but holds another kind of value")
        return {"kind": "json", **record}
    raise FormatError(f"{file} must be an .onnx, .pt, .safetensors or .json file of ofasearch, but is none of these")


def _value(text: str) -> Any:
    try:
        return parse_json(text)
    except ValueError:
        return text


def _inspect_safetensors(file: Path) -> dict[str, Any]:
    try:
        weights = load_weights(file)
    except FormatError:
        predictor = load_predictor(file)
        encoder = asdict(predictor.encoder)
        return {
            "kind": "predictor",
            "space": predictor.space,
            "encoder": encoder,
            "supernet_digest": predictor.supernet_digest,
            **predictor.card,
        }
    return {
        "kind": "supernet",
        "space": weights.space.name,
        "classes": list(weights.class_names) or weights.space.classes,
        "resolutions": list(weights.space.resolutions),
        "preprocessing": weights.preprocessing.to_json(),
        "digest": weights.digest,
        "training": weights.training,
    }


def sample(space: str, n: int, seed: int) -> list[dict[str, Any]]:
    """`space sample`: n uniform networks with their costs."""
    if n < 1 or seed < 0:
        raise UsageError(f"-n must be at least 1 and --seed at least 0, but got {n} and {seed}")
    found = get_space(space)
    rows = found.sample(n, np.random.default_rng(seed))
    return [{"arch_id": found.arch(row).id, "arch": settings_json(found, row), **asdict(costs(found.blueprint(row)))} for row in rows]
