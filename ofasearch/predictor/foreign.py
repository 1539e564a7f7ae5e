"""Once-for-all's predictor files, read and written to the digit: its tutorial's, and those of its newer encoders.

No such file names its space, and the newer ones do not even hold their input sizes. The keys tell the tutorial's (128
inputs: MobileNetV3 at 112, 128, ..., 224 pixels) from the newer ones, of which the number f of inputs is 74 + sizes
for ResNet50, 120 + sizes for MobileNetV3, 126 + sizes for ProxylessNAS. So 75 to 119 inputs are ResNet50's and 121 to
126 MobileNetV3's; beyond, the number of sizes or the space must tell. The sizes are known for f = 82 alone, those of
the published ResNet50 predictor; elsewhere they must be told, and for MobileNetV3 the space too, because its widths
share one encoder. What is open is asked for, never guessed.

Legend: n = networks, f = features, h = width of the first layer.

Reference: once-for-all, section 3.4 and Appendix A; its released `ofa.tutorial` and `ofa.nas.accuracy_predictor`.
"""

from __future__ import annotations

import io
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import takewhile
from pathlib import Path
from typing import Any, Literal

import numpy as np

from ofasearch.errors import FormatError, MismatchError, UsageError
from ofasearch.predictor.encode import TUTORIAL_ENCODER, Encoder, Feature, Matrix
from ofasearch.predictor.layouts import LAYOUTS, MBV3, RESNET50, Layout, layout_of
from ofasearch.predictor.model import Predictor
from ofasearch.predictor.valid import checked
from ofasearch.records import write_atomic

Form = Literal["tutorial", "encoder"]
FOREIGN_SUFFIXES = (".pth", ".pt")
WHAT = "a predictor of once-for-all (a plain state_dict)"
TUTORIAL_SPACE = "ofa-mbv3-w1.2"  # what the published acc_predictor.pth was trained for
TUTORIAL_LAYERS = ("0", "2", "4", "6")
HIDDEN = (400, 400, 400)  # what both of once-for-all's networks are built with
PUBLISHED_SIZES = {RESNET50.dims + 8: (128, 144, 160, 176, 192, 224, 240, 256)}  # by inputs
SIZES_LIMIT = MBV3.dims - RESNET50.dims - 1  # of one file; more would be read as another encoder's
LAYERS_LIMIT = 32


# -- reading ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Told:
    """What a user says of a file that does not say it of itself; resolutions in the order of its `image_size_list`."""

    space: str | None = None
    layout: Layout | None = None  # of the space
    resolutions: tuple[int, ...] | None = None


def load_foreign(path: Path, *, space: str | None = None, resolutions: Sequence[int] | None = None) -> Predictor:
    """Read a predictor of once-for-all; `space` and `resolutions` (in the order of its `image_size_list`) say what it does not.

    Raises NotFoundError, FormatError, MismatchError (not of that space), UsageError (what must be told).
    """
    from ofasearch.supernet.torchfile import load_plain

    if resolutions is not None and not 0 < len(set(resolutions)) == len(resolutions):
        raise UsageError(f"resolutions must be told once each, but got {','.join(map(str, resolutions)) or 'none'}")
    layout = layout_of(space) if space is not None else None
    told = Told(space, layout, tuple(resolutions) if resolutions is not None else None)
    content = load_plain(path, WHAT)
    state = content["state_dict"] if isinstance(content.get("state_dict"), dict) else content
    if "base_acc" in state and "layers.0.0.weight" in state:
        return _load_newer(path, state, told)
    if all(f"{layer}.weight" in state for layer in TUTORIAL_LAYERS):
        return _load_tutorial(path, state, told)
    raise FormatError(f"{path} must be {WHAT}, but {_what_it_is(content, state)}")


def _load_tutorial(path: Path, state: Mapping[Any, Any], told: Told) -> Predictor:
    """The tutorial's network: no offset, all in the last bias. Told resolutions narrow what it knows."""
    if told.layout not in (None, MBV3):
        raise MismatchError(f"the tutorial's predictor must be of a space of MobileNetV3, but got {told.space} for {path}")
    arrays = _arrays(path, state, [f"{layer}.{part}" for layer in TUTORIAL_LAYERS for part in ("weight", "bias")])
    weights, biases = ([arrays[f"{layer}.{part}"] for layer in TUTORIAL_LAYERS] for part in ("weight", "bias"))
    found = checked(path, _predictor(TUTORIAL_ENCODER, weights, biases, 0.0, told.space or TUTORIAL_SPACE))
    if told.resolutions is None:
        return found
    known = TUTORIAL_ENCODER.resolutions
    if not {*told.resolutions} <= {*known}:
        raise MismatchError(f"resolutions must be of {list(known)} for the tutorial's predictor, but got {list(told.resolutions)}")
    narrow = TUTORIAL_ENCODER.with_resolutions(told.resolutions)
    return replace(found, encoder=narrow, weights=(_moved(found, narrow), *found.weights[1:]))


def _load_newer(path: Path, state: Mapping[Any, Any], told: Told) -> Predictor:
    """A network of the newer encoders: its last layer has no bias, `base_acc` is the mean accuracy."""
    depth = sum(1 for _ in takewhile(lambda i: f"layers.{i}.0.weight" in state, range(LAYERS_LIMIT)))
    hidden, last = [f"layers.{i}.0" for i in range(depth)], f"layers.{depth}.weight"
    arrays = _arrays(path, state, ["base_acc", *(f"{layer}.{part}" for layer in hidden for part in ("weight", "bias")), last])
    first, base = arrays[f"{hidden[0]}.weight"], arrays["base_acc"]
    if base.size != 1 or first.ndim != 2:
        raise FormatError(f"{path} must hold one base_acc and a first layer of 2 axes, but holds {base.shape} and {first.shape}")
    layout, sizes = _layout(path, first.shape[1], told)
    space = told.space or layout.space
    if space is None:
        raise UsageError(_ask(path, f"it does not say of which space of {layout.name} it is", told, space=True))
    weights = [*(arrays[f"{layer}.weight"] for layer in hidden), arrays[last]]
    biases = [*(arrays[f"{layer}.bias"] for layer in hidden), np.zeros(arrays[last].shape[:1], dtype=np.float32)]
    return checked(path, _predictor(layout.encoder(sizes), weights, biases, float(base.reshape(())), space))


def _layout(path: Path, inputs: int, told: Told) -> tuple[Layout, tuple[int, ...]]:
    """The layout and the input sizes of a newer file with that many inputs.

    Raises FormatError, MismatchError, UsageError.
    """
    fitting = {known: inputs - known.dims for known in LAYOUTS if 0 < inputs - known.dims <= SIZES_LIMIT}
    if not fitting:
        raise FormatError(f"{path} must have inputs as an encoder of once-for-all gives (75 to 119, 121 to 171), but has {inputs}")
    count = len(told.resolutions) if told.resolutions is not None else None
    found = [known for known, sizes in fitting.items() if told.layout in (None, known) and count in (None, sizes)]
    choices = {known: f"{sizes} input size{'s' * (sizes > 1)} of {known.name}" for known, sizes in fitting.items()}
    either = f"its {inputs} inputs are those of {' or '.join(choices.values())}"
    if not found:
        what = " of ".join([f"{count} input size{'s' * (count != 1)}"] * (count is not None) + [str(told.space)] * (told.space is not None))
        raise MismatchError(f"{path} must know {what}, but {either}; give its own image_size_list and space")
    if len(found) > 1:
        raise UsageError(_ask(path, either, told, space=True))
    sizes = told.resolutions or PUBLISHED_SIZES.get(inputs)
    if sizes is None:
        raise UsageError(_ask(path, f"it does not name its {choices[found[0]]}", told, space=found[0].space is None))
    return found[0], sizes


def _ask(path: Path, why: str, told: Told, *, space: bool) -> str:
    names = f"--space {told.space or 'S'} " if space or told.space else ""
    sizes = ",".join(map(str, told.resolutions)) if told.resolutions else "R,R,..."
    return (
        f"{path} must be imported with what it does not hold, because {why}; "
        f"run `ofasearch predictor import {path} {names}--resolutions {sizes} -o P`"
    )


def _arrays(path: Path, state: Mapping[Any, Any], keys: Iterable[str]) -> dict[str, Matrix]:
    """The float32 arrays of these keys; nothing may be missing, nothing left over."""
    import torch

    expected = list(keys)
    lacking = [key for key in expected if key not in state]
    more = [str(key) for key in state if key not in expected]
    if lacking or more:
        raise FormatError(f"{path} must be {WHAT}, but it {f'lacks {lacking[0]!r}' if lacking else f'also holds {more[0][:80]!r}'}")
    tensors = {key: state[key] for key in expected}
    if not all(isinstance(tensor, torch.Tensor) and tensor.is_floating_point() for tensor in tensors.values()):
        raise FormatError(f"{path} must be {WHAT}, but it cannot be read: its entries are no plain tensors")
    return {key: tensor.detach().float().numpy() for key, tensor in tensors.items()}


def _predictor(encoder: Encoder, weights: Sequence[Matrix], biases: Sequence[Matrix], offset: float, space: str) -> Predictor:
    """Of one member, from torch's (outputs, inputs)."""
    turned = tuple(np.ascontiguousarray(weight.T)[None] for weight in weights)
    return Predictor(encoder=encoder, weights=turned, biases=tuple(bias[None] for bias in biases), offset=offset, space=space)


def _what_it_is(content: Mapping[Any, Any], state: Mapping[Any, Any]) -> str:
    """What another torch file seems to be."""
    names = [str(key) for key in state]
    if isinstance(content.get("format"), str):
        return f"it is a file of format {content['format'][:40]!r}"
    if any(name.startswith(("blocks.", "module.blocks.")) for name in names):
        return "it holds the weights of a network or supernet"
    return f"it holds {names[0][:80]!r} and {len(names) - 1} more entries" if names else "it is empty"


# -- writing ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Written:
    """What a written file does not say of itself: how to load it, and which choices it takes that nobody fitted."""

    load: str
    resolutions: tuple[int, ...]
    unknown: tuple[Feature, ...]


def save_foreign(path: Path, predictor: Predictor, form: Form) -> Written:
    """Write a predictor as once-for-all's: the tutorial's 128 inputs, or the newer encoder of its networks.

    Where the form knows choices that the predictor does not, their weights are 0: they count as none.
    Raises MismatchError for what the form cannot say; nothing is written then.
    """
    if predictor.size != 1 or predictor.activation != "relu":
        raise MismatchError(
            f"the predictor must be one MLP with relu for once-for-all, but is {predictor.size} with {predictor.activation}; "
            "fit one with `ofasearch predictor fit --members 1 --activation relu`"
        )
    widths = tuple(weight.shape[2] for weight in predictor.weights[:-1])
    if widths != HIDDEN:
        raise MismatchError(f"the predictor must have three hidden layers of 400 for once-for-all, but has {list(widths)}")
    encoder, load = _target(predictor.encoder, form)
    state = (_tutorial_state if form == "tutorial" else _newer_state)(predictor, _moved(predictor, encoder))
    _save_state(path, state)
    unknown = tuple(feature for feature in encoder.features if feature not in set(predictor.encoder.features))
    return Written(load=load, resolutions=encoder.resolutions, unknown=unknown)


def _target(source: Encoder, form: Form) -> tuple[Encoder, str]:
    """The encoder to write for, and the Python that loads what was written."""
    if form == "tutorial":
        _check_fits(source, TUTORIAL_ENCODER, "the tutorial's predictor")
        return TUTORIAL_ENCODER, 'ofa.tutorial.AccuracyPredictor(pretrained=False, device="cpu").model.load_state_dict(torch.load(FILE))'
    columns = {part.field: part.columns for part in source.parts}
    for layout in LAYOUTS:
        target = layout.encoder(source.resolutions)
        if columns == {part.field: part.columns for part in target.parts}:
            _check_fits(source, target, f"once-for-all's encoder of {layout.name}")
            sizes = list(source.resolutions)
            return target, f'AccuracyPredictor({_CLASSES[layout.name]}(image_size_list={sizes}), checkpoint_path=FILE, device="cpu")'
    blocks = columns.get("ks", columns.get("e", 0))
    raise MismatchError(f"the predictor must read 20 blocks (MobileNetV3), 21 (ProxylessNAS) or ResNet50's 18, but reads {blocks}")


_CLASSES = {
    "mbv3": "MobileNetArchEncoder",
    "mbv2": 'type("Encoder", (MobileNetArchEncoder,), {"SPACE_TYPE": "mbv2"})',
    "resnet50": "ResNetArchEncoder",
}


def _check_fits(source: Encoder, target: Encoder, name: str) -> None:
    """Raise MismatchError unless all that a predictor tells apart has its place."""
    known = set(target.features)
    odd = next((feature for feature in source.features if feature not in known), None)
    if odd is not None:
        raise MismatchError(
            f"the predictor must read only what {name} can, but tells {odd} apart; fit one without, or choose another --format"
        )


def _moved(predictor: Predictor, target: Encoder) -> Matrix:
    """The first layer (1, f, h) with its rows where the target has them, zeros for what it does not know."""
    place = {feature: row for row, feature in enumerate(predictor.encoder.features)}
    first = predictor.weights[0]
    rows = np.array([place.get(feature, -1) for feature in target.features])
    found: Matrix = np.where((rows >= 0)[None, :, None], first[:, rows], np.float32(0))
    return found


def _tutorial_state(predictor: Predictor, first: Matrix) -> dict[str, Matrix]:
    """The tutorial has no offset: it goes into the last bias."""
    weights, biases = (first, *predictor.weights[1:]), list(predictor.biases)
    biases[-1] = (biases[-1].astype(np.float64) + predictor.offset).astype(np.float32)
    layers = zip(TUTORIAL_LAYERS, weights, biases, strict=True)
    return {f"{i}.{part}": a[0].T for i, weight, bias in layers for part, a in (("weight", weight), ("bias", bias))}


def _newer_state(predictor: Predictor, first: Matrix) -> dict[str, Matrix]:
    """The newer form has no last bias: it goes into base_acc."""
    weights, biases = (first, *predictor.weights[1:]), predictor.biases
    state = {"base_acc": (biases[-1][0].astype(np.float64) + predictor.offset).astype(np.float32)}
    for i, (weight, bias) in enumerate(zip(weights[:-1], biases[:-1], strict=True)):
        state |= {f"layers.{i}.0.weight": weight[0].T, f"layers.{i}.0.bias": bias[0]}
    return state | {f"layers.{len(weights) - 1}.weight": weights[-1][0].T}


def _save_state(path: Path, state: Mapping[str, Matrix]) -> None:
    import torch

    buffer = io.BytesIO()
    torch.save({key: torch.from_numpy(np.array(array, order="C")) for key, array in state.items()}, buffer)
    write_atomic(path, buffer.getvalue())
