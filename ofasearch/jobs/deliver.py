"""From an architecture to files one can deploy: calibrated weights, a proved ONNX file, once-for-all's configs."""

from __future__ import annotations

import io
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from ofasearch.data import DataSet, Images, Preprocessing, pixels_of
from ofasearch.deploy.export import TOLERANCE, OnnxForm, build_onnx, verify
from ofasearch.errors import FormatError, MismatchError
from ofasearch.evaluate.members import Members
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.records import parse_json, write_atomic, write_json
from ofasearch.space.core import RESOLUTION_LIMIT, Arch, Blueprint, Codes, LayerSpec, Space
from ofasearch.space.own import named_space, space_card
from ofasearch.space.static_write import net_config, run_config
from ofasearch.supernet.torchfile import load_plain
from ofasearch.supernet.weights import Array, Weights, array_shapes, check_values, layer_key, slice_network

FORMAT = "ofasearch-subnet-1"
FACTS = (  # of a search's answer, that the files themselves tell
    "predicted_top1", "predicted_top1_source", "latency_ms", "latency_source", "device", "macs", "params",
    "reward", "lambda1", "lambda2", "reference", "validation",
)  # fmt: skip
Logits = npt.NDArray[np.float32]  # (n, classes)
OWN_WEIGHTS = ""  # in place of a supernet's digest, where a network was trained further
CHECK_IMAGES = 256
CHECK_PIXELS = 64 * 224**2  # of all of them: larger images are fewer


@dataclass(frozen=True, slots=True, kw_only=True)
class Subnet:
    """One network with weights of its own. `arrays` are keyed `<slot>.<part>`; `calibrated` tells of batch norm.

    `supernet` is what it was cut from, `supernet_digest` that of the weights it still has (`OWN_WEIGHTS`: of none).
    """

    arch: Arch
    blueprint: Blueprint
    arrays: Mapping[str, Array]
    preprocessing: Preprocessing
    class_names: tuple[str, ...]
    classes: int
    supernet: str
    supernet_digest: str
    calibrated: str  # "shipped statistics", "<n> images of <split>", or "no"
    settings: Mapping[str, Any]


def settings_json(space: Space, codes: Codes) -> dict[str, Any]:
    """`ks`, `e` (0 for skipped blocks), `d` and `r` of one network, as in all JSON answers; `w` in place of `ks` in a ResNet."""
    s = space.settings(np.atleast_2d(codes))
    return {name: values[0].tolist() for name, values in s.entries().items()} | {"r": int(s.r[0])}


def shipped_subnet(weights: Weights, members: Members, codes: Codes, name: str) -> Subnet:
    """A measured member with its shipped statistics. Needs neither torch nor data."""
    member = int(members.index(np.atleast_2d(codes))[0])
    blueprint = members.space.blueprint(codes)
    arrays = slice_network(weights.arrays, blueprint) | members.norm_statistics(member)
    return _subnet(weights, codes, arrays, name, "shipped statistics", members.space)


def calibrated_subnet(weights: Weights, codes: Codes, data: DataSet, name: str, *, space: Space | None = None) -> Subnet:
    """A network whose batch norm is recalibrated on the calibration split (labels are not used)."""
    from ofasearch.evaluate.score import accelerator, calibration_batches, calibration_images, recalibrate_bn

    subnet = uncalibrated_subnet(weights, codes, name, space=space)
    network = to_network(subnet).to(accelerator())
    recalibrate_bn(network, calibration_batches(data, weights.preprocessing, resolution=subnet.blueprint[0].hw_in))
    network.cpu()
    arrays = {k: np.ascontiguousarray(t.numpy()) for k, t in network.state_dict().items() if not k.endswith("num_batches_tracked")}
    return _subnet(weights, codes, arrays, name, f"{len(calibration_images(data))} images of {data.name} calibration", space)


def uncalibrated_subnet(weights: Weights, codes: Codes, name: str, *, space: Space | None = None) -> Subnet:
    """A network with the supernet's own statistics, which are not its own."""
    blueprint = (space or weights.space).blueprint(codes)
    return _subnet(weights, codes, slice_network(weights.arrays, blueprint), name, "no", space)


def _subnet(weights: Weights, codes: Codes, arrays: Mapping[str, Array], name: str, calibrated: str, space: Space | None = None) -> Subnet:
    space = space or weights.space
    return Subnet(
        arch=space.arch(codes),
        blueprint=space.blueprint(codes),
        arrays=arrays,
        preprocessing=weights.preprocessing,
        class_names=weights.class_names,
        classes=space.classes,
        supernet=name,
        supernet_digest=weights.digest,
        calibrated=calibrated,
        settings=settings_json(space, codes),
    )


def to_network(subnet: Subnet) -> Any:
    """The subnet as an ordinary torch module in evaluation mode.

    Raises MismatchError when an array is missing or belongs to no layer.
    """
    import torch

    from ofasearch.supernet.elastic import Network

    network = Network(subnet.blueprint)
    missing, unknown = network.load_state_dict({k: torch.from_numpy(np.array(a)) for k, a in subnet.arrays.items()}, strict=False)
    missing = [key for key in missing if not key.endswith("num_batches_tracked")]
    if missing or unknown:
        raise MismatchError(f"a subnet's arrays must be those of its layers, but {missing[:3]} are missing and {unknown[:3]} unknown")
    return network.eval()


def metadata(subnet: Subnet, facts: Mapping[str, Any], form: OnnxForm | None = None) -> dict[str, str]:
    """What the ONNX file says of itself; every value is a JSON text or a plain word."""
    pixels = form is not None and form.pixels is not None
    return {
        "format": FORMAT,
        "arch_id": subnet.arch.id,
        "arch": json.dumps(subnet.settings),
        **{key: value if key == "space" else json.dumps(value) for key, value in space_card(subnet.arch.space).items()},
        "classes": json.dumps(list(subnet.class_names) or subnet.classes),
        "preprocessing": json.dumps(stated_preprocessing(subnet.preprocessing, subnet.blueprint[0].hw_in, pixels=pixels)),
        "supernet": subnet.supernet,
        "supernet_digest": subnet.supernet_digest,
        "calibrated": subnet.calibrated,
        **{key: json.dumps(value) for key, value in facts.items()},
    }


def stated_preprocessing(preprocessing: Preprocessing, size: int, *, pixels: bool = False) -> dict[str, Any]:
    """What is to be done with images before a file takes them: with `pixels`, nothing but to bring them to its size.

    Whoever computes (pixels * scale - mean) / std, in the stated layout and dtype, is right in both cases. What the graph
    does itself stands under `embedded`.
    """
    record = preprocessing.to_json() | {"size": size}
    if not pixels:
        return record
    embedded = {key: record[key] for key in ("mean", "std", "scale")}
    return record | {"mean": [0.0] * 3, "std": [1.0] * 3, "scale": 1.0, "layout": "NHWC", "dtype": "uint8", "embedded": embedded}


def check_images(subnet: Subnet, data: DataSet | None) -> tuple[Images, str]:
    """Pixels (n, H, W, 3) to prove an export on, and what they are: the first test images of the data, else seeded noise."""
    size = subnet.blueprint[0].hw_in
    n = max(1, min(CHECK_IMAGES, CHECK_PIXELS // size**2))
    if data is not None and data.pixels in (None, size):
        few = data["test"].take(np.arange(min(n, len(data["test"]))))
        (images,) = pixels_of(few, subnet.preprocessing, resolution=size, batch=len(few))
        return images, f"{len(few)} test images of {data.name}"
    images = np.random.default_rng(0).integers(0, 256, (n, size, size, 3), dtype=np.uint8)
    return images, f"{n} seeded random images"


def prove(subnet: Subnet, content: bytes, data: DataSet | None, *, threads: int = 1) -> tuple[float, str]:
    """Largest difference of a logit between torch and ONNX Runtime, from pixels on, and the images it was found on.

    Raises VerificationError above 1e-4, or above that share of the largest logit: rounding grows with the numbers, and
    the two runtimes add in another order on every processor.
    """
    import torch

    network, model = to_network(subnet), OnnxModel(content, threads=threads)

    def original(images: Images) -> Logits:
        with torch.no_grad():
            return network(torch.from_numpy(np.ascontiguousarray(subnet.preprocessing.apply(images)))).numpy()  # type: ignore[no-any-return]

    def exported(images: Images) -> Logits:
        given = images if model.dtype is np.uint8 else subnet.preprocessing.apply(images)
        size = model.input_shape(len(images))[0]  # a file of a fixed batch takes its images in parts, the last one filled up
        padded = np.concatenate([given, np.repeat(given[-1:], -len(given) % size, axis=0)])
        return np.concatenate([model(padded[start : start + size]) for start in range(0, len(padded), size)])[: len(images)]

    images, what = check_images(subnet, data)
    largest = float(np.abs(original(images)).max())
    return verify(exported, original, images, TOLERANCE * max(1.0, largest if np.isfinite(largest) else 1.0)), what


def onnx_bytes(subnet: Subnet, facts: Mapping[str, Any] | None = None, form: OnnxForm | None = None) -> bytes:
    """The subnet's ONNX file with its metadata."""
    return build_onnx(subnet.blueprint, subnet.arrays, form=form, metadata=metadata(subnet, facts or {}, form))


def save_subnet(path: Path, subnet: Subnet, facts: Mapping[str, Any]) -> None:
    """Write `subnet.pt`: tensors and plain values only, so that it loads with `weights_only=True`."""
    import torch

    record = {
        "format": FORMAT,
        "arch_id": subnet.arch.id,
        **space_card(subnet.arch.space),
        "settings": dict(subnet.settings),
        "blueprint": [asdict(spec) for spec in subnet.blueprint],
        "preprocessing": subnet.preprocessing.to_json(),
        "class_names": list(subnet.class_names),
        "classes": subnet.classes,
        "supernet": subnet.supernet,
        "supernet_digest": subnet.supernet_digest,
        "calibrated": subnet.calibrated,
        "facts": json.dumps(dict(facts)),
        "state_dict": {k: torch.from_numpy(np.array(a)) for k, a in subnet.arrays.items()},
    }
    buffer = io.BytesIO()
    torch.save(record, buffer)
    write_atomic(path, buffer.getvalue())


def load_subnet(path: Path) -> tuple[Subnet, dict[str, Any]]:
    """Read `subnet.pt` and the facts written with it. Runs no code from the file.

    Raises NotFoundError, FormatError.
    """
    record = load_plain(path, "a subnet.pt of ofasearch")
    try:
        if record["format"] != FORMAT:
            raise FormatError(f"{path} must be of format {FORMAT}, but is {record['format']}")
        arrays = {str(k): t.detach().numpy() for k, t in record["state_dict"].items()}
        check_values(path, arrays)
        subnet = Subnet(
            arch=Arch(_word(record["arch_id"]), _word(named_space(record)), ()),
            blueprint=tuple(LayerSpec(**spec) for spec in record["blueprint"]),
            arrays=arrays,
            preprocessing=Preprocessing.from_json(record["preprocessing"]),
            class_names=tuple(_word(c) for c in record["class_names"]),
            classes=int(record["classes"]),
            supernet=_word(record["supernet"]),
            supernet_digest=_word(record["supernet_digest"]),
            calibrated=_word(record["calibrated"]),
            settings=dict(parse_json(json.dumps(record["settings"]))),  # so that it can be told and written again
        )
        facts = dict(parse_json(record["facts"]))
        _check_layers(subnet)
        to_network(subnet)
    except FormatError:
        raise
    except Exception as error:  # a foreign dictionary can fail anywhere above
        why = f"it lacks {error}" if isinstance(error, KeyError) else "its entries do not fit together"
        raise FormatError(f"{path} must be a subnet.pt of ofasearch, but it cannot be read: {why}") from error
    return subnet, facts


def _word(value: Any) -> str:
    if not isinstance(value, str):
        raise TypeError(f"a name must be text, but is {type(value).__name__}")
    return value


_LAYER = LayerSpec(slot="", kind="conv", c_in=1, c_mid=0, c_out=1, hw_in=1)  # the types of its fields are those of all layers


def _check_layers(subnet: Subnet) -> None:
    """Raise ValueError unless the layers form a chain that the arrays fill exactly, before anything of their size is made."""
    layers = subnet.blueprint
    for spec in layers:
        if any(type(getattr(spec, f.name)) is not type(getattr(_LAYER, f.name)) for f in fields(LayerSpec)):
            raise ValueError(f"a value of layer {spec.slot} is of another type")
        if spec.stride < 1 or spec.kernel % 2 == 0 or not 0 < spec.eps < math.inf or (spec.c_in != spec.c_out and "pool" in spec.kind):
            raise ValueError(f"layer {spec.slot} cannot be computed")
        if spec.skip and (spec.stride, spec.c_in) != (1, spec.c_out):
            raise ValueError(f"layer {spec.slot} cannot be added to its input")
    first, last = layers[0], layers[-1]
    chained = all((a.c_out, a.hw_out) == (b.c_in, b.hw_in) and a.kind != "linear" for a, b in pairwise(layers))
    ends = first.c_in == 3 and 0 < first.hw_in <= RESOLUTION_LIMIT and (last.kind, last.c_out) == ("linear", subnet.classes)
    if not (chained and ends and len(subnet.class_names) in (0, subnet.classes)):
        raise ValueError("the layers do not follow one another from an image to the classes")
    for index, spec in enumerate(layers):
        for name, shape in array_shapes(spec).items():
            if subnet.arrays[f"{layer_key(spec, index)}.{name}"].shape != shape:
                raise ValueError(f"{name} of layer {spec.slot} has another shape")


def write_configs(folder: Path, blueprint: Blueprint) -> Path:
    """Write `net.config` and `run.config` as once-for-all reads them; returns the former's path."""
    write_json(folder / "net.config", net_config(blueprint))
    write_json(folder / "run.config", run_config(blueprint[0].hw_in))
    return (folder / "net.config").absolute()
