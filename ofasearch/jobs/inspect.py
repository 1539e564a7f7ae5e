"""`inspect`: all that a file or folder says of itself, whatever of ours or of the tools beside us it is. Nothing is run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

from ofasearch.errors import FormatError, NotFoundError
from ofasearch.evaluate.saved import read_saved
from ofasearch.jobs.deliver import FORMAT, load_subnet
from ofasearch.jobs.network import NET_CONFIG
from ofasearch.jobs.onnx_about import about_model, read_model
from ofasearch.jobs.onnx_file import network_named
from ofasearch.jobs.tables import show_table
from ofasearch.predictor import Predictor, load_predictor
from ofasearch.records import read_json
from ofasearch.space.costs import costs
from ofasearch.space.static import read_net_config
from ofasearch.supernet.importers import examine
from ofasearch.supernet.published import INIT
from ofasearch.supernet.torchfile import load_plain
from ofasearch.supernet.weights import load_weights
from ofasearch.zoo import WEIGHTS_FILE

RESULT, RUN = "result.json", "run.json"
KINDS = ".onnx, .pt, .pth, .safetensors, .json, .csv, .npz, .npy, net.config, or the folder of a run, a supernet or a net.config"


def inspect(path: str | Path) -> dict[str, Any]:
    """`inspect`: all that a file or folder says of itself; `kind` says what it is.

    Raises NotFoundError, FormatError, UsageError (a predictor that does not say what it reads).
    """
    file = Path(path)
    if file.is_dir():
        return _folder(file)
    if not file.is_file():
        raise NotFoundError(f"{file} must be an existing file, but there is none")
    reader = READERS.get(file.suffix)
    if reader is None:
        raise FormatError(f"{file} must be a file of ofasearch or ONNX ({KINDS}), but is none of these")
    return reader(file)


def _onnx(file: Path) -> dict[str, Any]:
    """An ONNX file of any tool; what ours claims to be is checked where it says of which layers it was built."""
    about = about_model(read_model(file), str(file))
    record = {"kind": "onnx"} | {key: value for key, value in about.items() if key != "kind"} | {"size_bytes": file.stat().st_size}
    if about["made_by"] != "ofasearch":
        return record
    width, size = (_axis(about.get(key), axis) for key, axis in (("output", -1), ("input", 2)))
    arch_id, named = str(about.get("arch_id", "")), {"space": str(about.get("space", "")), "design": about.get("design")}
    network = network_named(file, arch_id, named, width, size) if width is not None and size is not None else None
    checked = {"graph_checked": network is not None}  # whether it is the one that is built of the layers that it names
    return record | checked | (asdict(costs(network.blueprint)) if network is not None else {})


def _axis(tensor: Any, axis: int) -> int | None:
    """The length of an axis of an input or output, where there is one such and it is fixed."""
    shape = tensor.get("shape", ()) if isinstance(tensor, Mapping) else ()
    value = shape[axis] if len(shape) > max(axis, 0) else None
    return value if isinstance(value, int) else None


def _torch(file: Path) -> dict[str, Any]:
    content = load_plain(file, "a subnet.pt of ofasearch, a predictor or a supernet")
    if content.get("format") == FORMAT:
        return _subnet(file)
    state = content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
    if "base_acc" in state or "0.weight" in state:  # of the newer format, of the tutorial's
        return _predictor(load_predictor(file))
    if not any(str(name).endswith("classifier.linear.weight") for name in state):
        keys = ", ".join(str(name)[:40] for name in list(content)[:4])
        raise FormatError(f"{file} must be a subnet.pt of ofasearch, a predictor or a supernet, but it is none of these: it holds {keys}")
    found = examine(file)
    return {
        "kind": "official supernet",
        "space": found.space,
        "classes": found.classes,
        "naming": found.naming,
        "phase": found.phase,
        "arrays": len(found.arrays),
        **{name: list(getattr(found, name)) for name in ("missing", "unknown", "misshapen", "not_finite")},
    }


def _subnet(file: Path) -> dict[str, Any]:
    subnet, facts = load_subnet(file)
    return facts | {
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
    }


def _safetensors(file: Path) -> dict[str, Any]:
    try:
        weights = load_weights(file)
    except FormatError:
        return _predictor(load_predictor(file))
    return {
        "kind": "supernet",
        "space": weights.space.name,
        "classes": list(weights.class_names) or weights.space.classes,
        "resolutions": list(weights.space.resolutions),
        "preprocessing": weights.preprocessing.to_json(),
        "digest": weights.digest,
        "training": weights.training,
    }


def _predictor(predictor: Predictor) -> dict[str, Any]:
    known = {"kind": "predictor", "space": predictor.space, "encoder": asdict(predictor.encoder)}
    return predictor.card | known | {"supernet_digest": predictor.supernet_digest}


def _json(file: Path) -> dict[str, Any]:
    record = read_json(file)
    if not isinstance(record, dict):
        raise FormatError(f"{file} must hold one JSON object, but holds another kind of value")
    return {"kind": "json", **record}


def _csv(file: Path) -> dict[str, Any]:
    """A latency table with its card beside it, or predictions."""
    return {"kind": "latency table", **show_table(str(file))} if file.with_suffix(".json").is_file() else _predictions(file)


def _predictions(file: Path) -> dict[str, Any]:
    saved = read_saved(file)
    splits = {name: {"images": len(table.predicted), "labels": table.labels is not None} for name, table in saved.tables.items()}
    return {**saved.card, "kind": "predictions", "splits": splits}


def _config(file: Path) -> dict[str, Any]:
    """A network as once-for-all publishes it, or the size of its images."""
    if not file.name.endswith(NET_CONFIG):
        return {**_json(file), "kind": file.name}
    blueprint, weights = read_net_config(file), file.with_name(INIT)
    return {
        "kind": NET_CONFIG,
        "name": file.resolve().parent.name,
        "resolution": blueprint[0].hw_in,
        "classes": blueprint[-1].c_out,
        "layers": len(blueprint),
        **asdict(costs(blueprint)),
        **({"weights": str(weights)} if weights.is_file() else {}),
    }


def _folder(folder: Path) -> dict[str, Any]:
    """A run by its answer, a supernet by its weights, a published network by its configuration."""
    names = sorted(entry.name for entry in folder.iterdir())
    if RESULT in names:
        return {**_json(folder / RESULT), "kind": "run", "folder": names}
    if WEIGHTS_FILE in names:
        return {**_safetensors(folder / WEIGHTS_FILE), "folder": names}
    if NET_CONFIG in names:
        return {**_config(folder / NET_CONFIG), "folder": names}
    if RUN in names:
        return {**_json(folder / RUN), "kind": "unfinished run", "folder": names}
    if any(name.endswith((".yaml", ".yml")) for name in names):
        return {"kind": "latency table", **show_table(str(folder))}
    raise FormatError(f"{folder} must be the folder of a run, a supernet, a net.config or once-for-all's tables, but is none of these")


READERS: Mapping[str, Callable[[Path], dict[str, Any]]] = {
    ".onnx": _onnx,
    ".pt": _torch,
    ".pth": _torch,
    ".tar": _torch,
    "": _torch,  # as the official supernets come
    ".safetensors": _safetensors,
    ".json": _json,
    ".csv": _csv,
    ".npz": _predictions,
    ".npy": _predictions,
    ".config": _config,
}
