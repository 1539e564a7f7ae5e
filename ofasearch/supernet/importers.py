"""Once-for-all's and CompOFA's checkpoints -> our keys. The only file with foreign key names.

A file is a torch dictionary: the state dict itself, or one under `state_dict`; keys may carry a `module.` prefix (data
parallel), the old name `mobile_inverted_conv` or the new `conv` for a block's layer, and the single nesting of a static
network (`conv.weight`) or the double one of an elastic network (`conv.conv.weight`). Kernel transforms may be absent:
CompOFA trained without them, and smaller kernels are then plain centre crops.

Shapes tell width and classes. They do not tell which subnets were trained: the files of all phases of progressive
shrinking look alike. The file's name tells that (`ofa_D34_E6_K357`, `model_best_compofa_simple.pth.tar`), or the user;
a static network is the full one alone.

Reference: key names as the public once-for-all package (old and new) and the CompOFA repository write them.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch.data import IMAGENET
from ofasearch.errors import FormatError, MismatchError
from ofasearch.space.families import DESIGNS, MobileDesign, find_design, get_space, part_name
from ofasearch.supernet.torchfile import load_plain
from ofasearch.supernet.weights import Array, Weights, full_shapes, matrix_shapes, restrict

BLOCKS_PER_STAGE = 4
NAMED = 5  # keys that a message names; a file of another kind would fill the screen

_PARTS = {"inverted_bottleneck": "expand", "depth_conv": "depth", "point_linear": "project"}
_HEADS = {"first_conv": "stem", "final_expand_layer": "head.expand", "feature_mix_layer": "head.feature"}
_BLOCK = re.compile(r"blocks\.(\d{1,3})\.(?:mobile_inverted_conv|conv)\.(\w+)\.(.+)")
_SE = re.compile(r"se\.fc\.(reduce|expand)\.(weight|bias)")
_MATRIX = re.compile(r"(?:conv\.)?(\dto\d)_matrix")
_PHASE = re.compile(r"d([234]+)_e([346]+)_k([357]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """What a foreign checkpoint is. Keys are named as the file names them, or would."""

    path: Path
    space: str
    classes: int
    naming: str  # old or new
    phase: str  # which subnets were trained, and how that is known
    matrices: int  # kernel transforms in the file
    missing: tuple[str, ...]
    unknown: tuple[str, ...]
    misshapen: tuple[str, ...]
    not_finite: tuple[str, ...]
    arrays: Mapping[str, Array]  # of the whole family, keyed as ours

    @property
    def problems(self) -> tuple[str, ...]:
        """One phrase for each reason not to use the file."""
        kinds = (
            ("lacks", self.missing),
            ("has the unknown", self.unknown),
            ("has the wrong shape of", self.misshapen),
            ("has NaN or infinity in", self.not_finite),
        )
        return tuple(f"{what} {_some(names)}" for what, names in kinds if names)

    def weights(self) -> Weights:
        """The weights of what was trained.

        Raises FormatError (NaN, infinity) and MismatchError (missing, unknown and misshapen keys), by name.
        """
        kind = FormatError if self.not_finite else MismatchError
        if self.problems:
            raise kind(f"{self.path} must hold exactly the weights of {_base_of(self.space)}, but it {', it '.join(self.problems)}")
        space = get_space(self.space, classes=self.classes)
        preprocessing = replace(IMAGENET, size=max(space.resolutions))
        training = {"imported_from": self.path.name, "phase": self.phase}
        return Weights(restrict(self.arrays, space), space, preprocessing, (), training, self.path.stem)


def load_official(path: Path, space: str | None = None) -> Weights:
    """The weights of a once-for-all or CompOFA file; see `examine`.

    Raises NotFoundError, FormatError, MismatchError.
    """
    return examine(path, space).weights()


def examine(path: Path, space: str | None = None) -> Checkup:
    """Look a once-for-all or CompOFA file over; `space` overrides what its name says of the trained subnets.

    Raises NotFoundError, FormatError (damaged, code, no MobileNetV3 supernet at all), MismatchError (`space` is of
    another family or width).
    """
    state = _state_dict(path)
    arrays: dict[str, Array] = {}
    names: dict[str, str] = {}
    unknown = []
    for name, value in state.items():
        key = our_key(name)
        if key is None or key in arrays:
            unknown.append(name)
        else:
            arrays[key], names[key] = value, name
    base = _family(path, arrays)
    classes = int(arrays["head.classifier.linear.weight"].shape[0])
    static = not any(".conv.conv." in name for name in state)
    old = any(".mobile_inverted_conv." in name for name in state)
    trained, phase = (space, "as asked") if space is not None else _trained(path, base, static)
    if _base_of(trained) != base:
        raise MismatchError(f"--space must be {base} or a part of it for {path}, but got {trained}")
    full = get_space(base, classes=classes)
    shapes: dict[str, tuple[int, ...]] = full_shapes(full)
    matrices = [key for key in matrix_shapes(full) if key in arrays]
    if matrices:
        shapes |= matrix_shapes(full)

    def name_of(key: str) -> str:
        return names.get(key) or their_key(key, old=old, static=static)

    return Checkup(
        path=path,
        space=trained,
        classes=classes,
        naming="old (mobile_inverted_conv)" if old else "new (conv)",
        phase=phase,
        matrices=len(matrices),
        missing=tuple(name_of(key) for key in shapes if key not in arrays),
        unknown=(*unknown, *(name_of(key) for key in arrays if key not in shapes)),
        misshapen=tuple(
            f"{name_of(key)} ({_shape(arrays[key].shape)} for {_shape(shape)})"
            for key, shape in shapes.items()
            if key in arrays and arrays[key].shape != shape
        ),
        not_finite=tuple(name_of(key) for key, array in arrays.items() if not np.isfinite(array).all()),
        arrays=arrays,
    )


# -- keys ------------------------------------------------------------------------------------------------------


def our_key(name: str) -> str | None:
    """Our key of a once-for-all key, or None for a key that no MobileNetV3 of theirs has."""
    head, _, rest = name.partition(".")
    if head in _HEADS:
        return f"{_HEADS[head]}.{_leaf(rest)}"
    if head == "classifier":
        leaf = rest.removeprefix("linear.").removeprefix("linear.")
        return f"head.classifier.linear.{leaf}" if leaf in ("weight", "bias") else None
    match = _BLOCK.fullmatch(name)
    if match is None or match[2] not in _PARTS:
        return None
    number, part, leaf = int(match[1]), _PARTS[match[2]], match[3]
    slot = "s0.b1" if number == 0 else f"s{(number - 1) // BLOCKS_PER_STAGE + 1}.b{(number - 1) % BLOCKS_PER_STAGE + 1}"
    if part == "depth":
        gate, matrix = _SE.fullmatch(leaf), _MATRIX.fullmatch(leaf)
        if gate:
            return f"{slot}.se.{gate[1]}.{gate[2]}"
        if matrix:
            return f"{slot}.depth.{matrix[1]}"
    return f"{slot}.{part}.{_leaf(leaf)}"


def their_key(key: str, *, old: bool, static: bool) -> str:
    """Inverse of `our_key`, in one of once-for-all's namings: for messages about keys that a file lacks."""
    for theirs, ours in _HEADS.items():
        if key.startswith(f"{ours}."):
            return f"{theirs}.{key.removeprefix(f'{ours}.')}"
    if key.startswith("head.classifier."):
        return key.removeprefix("head.")
    stage, block, part, leaf = key.split(".", 3)
    first = stage == "s0"
    number = 0 if first else (int(stage[1:]) - 1) * BLOCKS_PER_STAGE + int(block[1:])
    unit = f"blocks.{number}.{'mobile_inverted_conv' if old else 'conv'}"
    if part == "se":
        return f"{unit}.depth_conv.se.fc.{leaf}"
    theirs = next(name for name, ours in _PARTS.items() if ours == part)
    if re.fullmatch(r"\dto\d", leaf):
        return f"{unit}.{theirs}.conv.{leaf}_matrix"
    outer = "" if static or first else f"{leaf.partition('.')[0]}."
    return f"{unit}.{theirs}.{outer}{leaf}"


def _leaf(rest: str) -> str:
    """`conv.conv.weight` -> `conv.weight`, `bn.bn.bias` -> `bn.bias`; static nets have the single form."""
    for part in ("conv", "bn"):
        if rest.startswith(f"{part}.{part}."):
            return rest.removeprefix(f"{part}.")
    return rest


# -- files -----------------------------------------------------------------------------------------------------


def _state_dict(path: Path) -> dict[str, Array]:
    """Names without `module.` to float32 arrays; counters are left out."""
    import torch

    content = load_plain(path, "a once-for-all checkpoint")
    content = content.get("state_dict", content)
    found: dict[str, Array] = {}
    if not isinstance(content, Mapping):
        raise FormatError(f"{path} must hold a state dict, but what it has under 'state_dict' is {type(content).__name__}")
    for key, value in content.items():
        if not isinstance(key, str) or not isinstance(value, torch.Tensor):
            raise FormatError(f"{path} must hold named tensors only, but {str(key)[:80]!r} is {type(value).__name__}")
        name = key.removeprefix("module.")
        if name.endswith("num_batches_tracked"):
            continue
        if not value.is_floating_point() or value.layout != torch.strided:
            raise FormatError(f"{path} must hold dense floating-point tensors, but '{name}' is {value.dtype}, {value.layout}")
        if value.numel() * value.element_size() > value.untyped_storage().nbytes():  # a small file that claims a huge tensor
            raise FormatError(f"{path} must hold whole tensors, but '{name}' claims {value.numel()} values and stores fewer")
        found[name] = value.detach().to(torch.float32).numpy()
    return found


def _family(path: Path, arrays: Mapping[str, Array]) -> str:
    """The design whose stem and head the arrays have.

    Raises FormatError when there is none.
    """
    marks = ("stem.conv.weight", "head.expand.conv.weight", "head.feature.conv.weight", "head.classifier.linear.weight")
    lacking = [their_key(key, old=False, static=False) for key in marks if key not in arrays]
    if lacking:
        raise FormatError(f"{path} must be a once-for-all MobileNetV3 or CompOFA supernet, but it has no {_some(lacking)}")
    if arrays[marks[3]].ndim != 2:
        raise FormatError(f"{path} must have a matrix as classifier, but its shape is {_shape(arrays[marks[3]].shape)}")
    found = [arrays[key].shape[:1] for key in marks[:3]]
    designs = {n: d for n, d in DESIGNS.items() if isinstance(d, MobileDesign) and d.parent is None and d.c_expand is not None}
    for name, design in designs.items():
        if found == [(design.stem,), (design.c_expand,), (design.c_feature,)]:
            return name
    widths = ", ".join(str(shape[0] if shape else "none") for shape in found)
    known = ", ".join(f"{d.stem}, {d.c_expand}, {d.c_feature} ({name})" for name, d in designs.items())
    raise FormatError(f"{path} must have the stem, expansion and feature channels of one of {known}, but has {widths}")


def _trained(path: Path, base: str, static: bool) -> tuple[str, str]:
    """The space of the trained subnets, and how that is known."""
    design = DESIGNS[base]
    if static and isinstance(design, MobileDesign):
        name = part_name(base, design.depths[-1:], design.expands[-1:], design.kernels[-1:])
        return name, "the full network alone (static keys)"
    if "compofa" in path.name.lower():
        kind = "compofa-mbv3-elastic" if "elastic" in path.name.lower() else "compofa-mbv3"
        return base.replace("ofa-mbv3", kind), "compound subnets (by the file's name)"
    match = _PHASE.search(path.name)
    if match is None:
        return base, "not told by the file; all subnets are taken as trained"
    depths, expands, kernels = (tuple(sorted({int(digit) for digit in group})) for group in match.groups())
    return part_name(base, depths, expands, kernels), "by the file's name"


def _base_of(space: str) -> str:
    """The largest design that a space is part of."""
    design = find_design(space)
    return design.parent or design.name


def _some(names: Iterable[Any]) -> str:
    listed = [str(name)[:120] for name in names]
    more = f" and {len(listed) - NAMED} more" if len(listed) > NAMED else ""
    return ", ".join(listed[:NAMED]) + more


def _shape(shape: tuple[int, ...]) -> str:
    return "x".join(map(str, shape)) or "a scalar"


__all__ = ["Checkup", "examine", "load_official", "our_key", "their_key"]
