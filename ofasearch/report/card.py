"""The model card beside an ONNX file: what the network is, takes, gives and costs, what was measured of it, and what was not.

Everything in it comes from the file itself (`about`, as `inspect` tells it) and from the network's layers. Nothing of it is
believed to be harmless: names of classes and data sets come from outside and are put on one line each.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from ofasearch.space.core import Blueprint, LayerSpec
from ofasearch.space.costs import costs, macs, params

MARK = "<!-- model card by ofasearch -->"  # the first line: what holds it may be written over
CLASSES_SHOWN = 40
ACTS = {"none": "", "relu": "ReLU", "relu6": "ReLU6", "h_swish": "hard-swish"}


def model_card(file: str, about: Mapping[str, Any], blueprint: Blueprint) -> str:
    """The card (Markdown) of the ONNX file of that name; `about` is what it says of itself."""
    sections = [
        _head(file, about),
        _section("Architecture", _architecture(about, blueprint)),
        _section("Cost of one image", _cost(about, blueprint)),
        _section("Input and output", _interface(about)),
        _section("Use", _use(file, about)),
        _section("Classes", _classes(about)),
        _section("Where it comes from", _origin(about)),
        _section("Measured", _measured(about)),
        _section("Not measured", _unmeasured(about)),
        _section("Intended use and limits", _limits(about)),
    ]
    return "\n\n".join(sections) + "\n"


def _section(title: str, lines: Sequence[str]) -> str:
    return "\n".join([f"## {title}", "", *lines])


def _table(headers: Sequence[str], rows: Sequence[Sequence[Any]]) -> list[str]:
    cells = [headers, ["---"] * len(headers), *rows]
    return ["| " + " | ".join(plain(cell) for cell in row) + " |" for row in cells]


def plain(value: Any) -> str:
    """A value from outside on one line of Markdown that it cannot break."""
    text = "".join(c if c.isprintable() else "?" for c in str(value))[:300]
    return text.replace("\\", "\\\\").replace("|", "\\|").replace("`", "'").replace("<", "&lt;").replace("[", "\\[")


def _code(value: Any) -> str:
    return f"`{plain(value)}`"


def _head(file: str, about: Mapping[str, Any]) -> str:
    count = len(about["classes"]) if isinstance(about.get("classes"), list) else about.get("classes")
    text = f"An image classifier of {plain(count)} classes, as an ONNX file: {_code(file)}."
    lines = [MARK, f"# {plain(about.get('arch_id', file))}", "", text]
    if about.get("calibrated") == "no":
        lines += ["", "**Its batch norm was never calibrated: what it predicts means nothing. Export it again with data.**"]
    return "\n".join(lines)


# -- what it is ------------------------------------------------------------------------------------------------


def _architecture(about: Mapping[str, Any], blueprint: Blueprint) -> list[str]:
    lines = [f"A network of the design space {_code(about['space'])}." if about.get("space") else "A network of no design space.", ""]
    settings = about.get("arch")
    if isinstance(settings, Mapping) and settings:
        names = {"ks": "kernels", "e": "expand ratios (0: no such block)", "d": "depths", "w": "widths", "r": "input size"}
        lines += [f"- {names.get(key, plain(key))} {_code(key)}: {_numbers(value)}" for key, value in settings.items()]
        lines.append("")
    rows = [_layer(index, spec) for index, spec in enumerate(blueprint)]
    return lines + _table(["layer", "kind", "input", "output", "kernel", "stride", "middle", "activation", "MACs", "parameters"], rows)


def _numbers(value: Any) -> str:
    return " ".join(plain(part) for part in value) if isinstance(value, list) else plain(value)


def _layer(index: int, spec: LayerSpec) -> list[str]:
    middle = f"{spec.c_mid}" + (f", squeeze-excite {spec.c_se}" if spec.c_se else "") if spec.c_mid else ""
    return [
        spec.slot or str(index),
        spec.kind + (" + input" if spec.skip else ""),
        f"{spec.c_in} x {spec.hw_in} x {spec.hw_in}",
        f"{spec.c_out} x {spec.hw_out} x {spec.hw_out}",
        str(spec.kernel) if spec.kind not in ("pool", "linear") else "",
        str(spec.stride) if spec.kind not in ("pool", "linear") else "",
        middle,
        ACTS.get(spec.act, spec.act),
        f"{macs(spec):,}",
        f"{params(spec):,}",
    ]


def _cost(about: Mapping[str, Any], blueprint: Blueprint) -> list[str]:
    cost = costs(blueprint)
    return [
        f"- {cost.macs:,} multiply-accumulates ({cost.macs / 1e6:.2f} M)",
        f"- {cost.params:,} parameters ({cost.params / 1e6:.3f} M)",
        f"- {cost.activation_bytes:,} bytes of activations at the peak (fp32)",
        f"- operators: {', '.join(f'{plain(name)} {n}' for name, n in about['operators'].items())}",
    ]


# -- how it is used --------------------------------------------------------------------------------------------


def _interface(about: Mapping[str, Any]) -> list[str]:
    rows = [[what, _name(tensor), tensor["dtype"], _shape(tensor["shape"])] for what, tensor in _tensors(about).items()]
    free = "N is any number of images." if not isinstance(about["input"]["shape"][0], int) else "The number of images is fixed."
    return [
        *_table(["", "name", "type", "shape"], rows),
        "",
        f"{free} ONNX opset {about['opset']}, IR version {about['ir_version']}.",
        "",
        f"{_preprocessing(about)} The output holds logits: the largest one is the class.",
    ]


def _tensors(about: Mapping[str, Any]) -> dict[str, Any]:
    return {"input": about["input"], "output": about["output"]}


def _name(tensor: Mapping[str, Any]) -> str:
    return str(tensor["name"])


def _shape(shape: Sequence[int | str]) -> str:
    return "(" + ", ".join(map(str, shape)) + ")"


def _preprocessing(about: Mapping[str, Any]) -> str:
    how = about["preprocessing"]
    size, crop = how["size"], how.get("crop_pct", 1.0)
    text = f"Images are RGB, resized (bilinear) so that the shorter side has {size} pixels, and cropped at the centre to {size} x {size}."
    if crop != 1:
        text = f"Images are RGB; of the centre, the share {crop:g} of the shorter side is resized (bilinear) to {size} x {size}."
    if "embedded" in how:
        inside = how["embedded"]
        return f"{text} The graph takes the pixels, 0 to 255, and itself normalises by mean {inside['mean']} and deviation {inside['std']}."
    return (
        f"{text} Pixels are multiplied by {how['scale']:.10g} (to 0 to 1), then the mean {how['mean']} is taken off and what is left "
        f"divided by {how['std']}, channel by channel; channels come first."
    )


def _use(file: str, about: Mapping[str, Any]) -> list[str]:
    how, size, batch = about["preprocessing"], about["preprocessing"]["size"], about["input"]["shape"][0]
    bleed = (1 - how.get("crop_pct", 1.0)) / 2
    inputs = "np.asarray(image)[None]"
    if "embedded" not in how:
        inputs = f"((np.asarray(image) * {how['scale']!r} - {how['mean']}) / {how['std']}).astype(np.float32).transpose(2, 0, 1)[None]"
    names, cropped = isinstance(about.get("classes"), list), f", {bleed:g}" if bleed else ""
    return [
        "```python",
        f"import {'json, ' if names else ''}numpy as np, onnxruntime",
        "from PIL import Image, ImageOps",
        f'session = onnxruntime.InferenceSession({json.dumps(file)}, providers=["CPUExecutionProvider"])',
        f'image = ImageOps.fit(Image.open("image.png").convert("RGB"), ({size}, {size}), Image.Resampling.BILINEAR{cropped})',
        f"inputs = {inputs}{f'.repeat({batch}, 0)' if isinstance(batch, int) and batch > 1 else ''}",
        f'logits = session.run(["{about["output"]["name"]}"], {{"{about["input"]["name"]}": inputs}})[0][0]',
        'print(json.loads(session.get_modelmeta().custom_metadata_map["classes"])[logits.argmax()])' if names else "print(logits.argmax())",
        "```",
    ]


def _classes(about: Mapping[str, Any]) -> list[str]:
    classes = about.get("classes")
    if not isinstance(classes, list):
        return [f"{plain(classes)} classes without names: the file does not hold them."]
    shown = ", ".join(f"{i} {plain(name)}" for i, name in enumerate(classes[:CLASSES_SHOWN]))
    more = len(classes) - CLASSES_SHOWN
    return [shown + (f", and {more} more (`classes` in the file's metadata)" if more > 0 else "")]


# -- what is known of it ---------------------------------------------------------------------------------------


def _origin(about: Mapping[str, Any]) -> list[str]:
    calibrated = {
        "no": "batch norm: never calibrated",
        "shipped statistics": "batch norm: the statistics that came with the supernet, measured for this very network",
        "as published": "weights and batch norm: as they were published",
    }
    said, supernet = str(about.get("calibrated")), about.get("supernet")
    lines = [
        f"- cut from the supernet {_code(supernet)}, digest {_code(about.get('supernet_digest'))}" if supernet else "- of no supernet",
        f"- {calibrated.get(said, f'batch norm: recalibrated on {plain(said)}')}",
    ]
    if "reward" in about:
        lines.append(f"- searched by the reward {plain(about['reward'])} against {plain(_reference(about))}")
    return lines


def _reference(about: Mapping[str, Any]) -> Any:
    reference = about.get("reference")
    return reference.get("name", "a reference") if isinstance(reference, Mapping) else reference


def _measured(about: Mapping[str, Any]) -> list[str]:
    found = _object(about, "measured")
    lines = []
    if _number(found, "top1") is not None:
        how = "predictions that came with the supernet" if found.get("source") == "shipped" else "evaluated"
        lines.append(f"- test top-1 {100 * found['top1']:.2f} % ({plain(found.get('n'))} images of the test split; {how})")
    if _is_measured(about):
        lines.append(f"- top-1 {100 * about['predicted_top1']:.2f} %, {plain(about['predicted_top1_source'])}: what the search went by")
    if _number(found, "validation_top1") is not None:
        n = plain(found.get("validation_n"))
        lines.append(f"- validation top-1 {100 * found['validation_top1']:.2f} % ({n} images of the validation split)")
    if _number(found, "latency_ms_p50") is not None:
        p95 = f", p95 {found['latency_ms_p95']:.3f} ms" if _number(found, "latency_ms_p95") is not None else ""
        lines.append(
            f"- latency p50 {found['latency_ms_p50']:.3f} ms{p95} on {_device(about)}; a network of these layers with random weights, "
            "normalised outside the graph"
        )
    if _number(found, "onnx_max_abs_diff") is not None:
        lines.append(
            f"- this file against the torch network, from pixels to logits: they differ by at most {found['onnx_max_abs_diff']:.2g} "
            f"on {plain(found.get('onnx_checked_on'))}"
        )
    return lines or ["Nothing."]


def _device(about: Mapping[str, Any]) -> str:
    device = _object(about, "measured_on") or _object(about, "device")
    if not device:
        return "a machine that the file does not name"
    said = {key: plain(device.get(key)) for key in ("device", "runtime", "precision", "batch", "threads")}
    return f"{said['device']} ({said['runtime']}, {said['precision']}, batch {said['batch']}, threads {said['threads']})"


def _unmeasured(about: Mapping[str, Any]) -> list[str]:
    measured, lines = _object(about, "measured"), []
    if "top1" not in measured:
        lines.append("- accuracy on test images: `ofasearch eval` measures it")
    if _number(about, "predicted_top1") is not None and not _is_measured(about):
        source = plain(about.get("predicted_top1_source", "a predictor"))
        lines.append(f"- the search went by a top-1 of {100 * about['predicted_top1']:.2f} % on validation images ({source})")
    if "latency_ms_p50" not in measured:
        lines.append("- latency: `ofasearch bench` measures it on the machine that it will run on")
    if _number(about, "latency_ms") is not None and "latency_ms_p50" not in measured:
        device = _object(about, "device").get("device", "a device")
        source = plain(about.get("latency_source", "a table"))
        lines.append(f"- the search went by {about['latency_ms']:.3f} ms on {plain(device)}, by a table ({source})")
    return [*lines, "- memory and energy in use, other images than those above, noise and damage, differences between groups of people"]


def _is_measured(about: Mapping[str, Any]) -> bool:
    """Whether the search went by evaluated networks instead of a prediction."""
    return _number(about, "predicted_top1") is not None and "measured" in str(about.get("predicted_top1_source"))


def _limits(about: Mapping[str, Any]) -> list[str]:
    return [
        "It says which of its classes an image shows, if it shows one of them and looks like the images that the supernet was trained on. "
        "It names a class for any image, also where none fits, and its logits (or their softmax) are no calibrated probabilities: a "
        "threshold for when to trust it must be set on images of the place where it is used. Whoever deploys it should measure accuracy "
        "there first. It was not made, and must not be used alone, for decisions about people's safety, health or rights."
    ]


def _object(about: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    value = about.get(key)
    return value if isinstance(value, Mapping) else {}


def _number(record: Mapping[str, Any], key: str) -> float | None:
    value = record.get(key)
    return value if isinstance(value, int | float) and not isinstance(value, bool) else None


__all__ = ["MARK", "model_card", "plain"]
