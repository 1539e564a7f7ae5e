"""Once-for-all's and CompOFA's checkpoints -> our weights.

A file is a torch dictionary: the state dict itself, or one under `state_dict`; keys may carry a `module.` prefix (data
parallel). Kernel transforms may be absent: CompOFA trained without them, and smaller kernels are then plain centre crops.

Keys tell the family, shapes tell width and classes. They do not tell which subnets were trained: the files of all phases
of progressive shrinking look alike. The file's name tells that (`ofa_D34_E6_K357`, `model_best_compofa_simple.pth.tar`),
or the user; a static network is the full one alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from ofasearch.data import IMAGENET
from ofasearch.errors import FormatError, MismatchError
from ofasearch.space.families import DESIGNS, find_design, get_space, part_name
from ofasearch.space.own import Design
from ofasearch.space.resnet import ResNetDesign
from ofasearch.supernet.foreign_keys import FAMILIES, Family, Naming, family_of_keys
from ofasearch.supernet.torchfile import listed, load_state, spelled
from ofasearch.supernet.weights import Array, Weights, check_values, full_shapes, matrix_shapes, restrict

HEAD = "head.classifier.linear.weight"

_NUMBERS = r"=?(\d(?:\.\d+)?(?:[-+]\d(?:\.\d+)?)*)"
_RESNET_PHASE = re.compile(f"d{_NUMBERS}_e{_NUMBERS}_w{_NUMBERS}", re.IGNORECASE)
_MOBILE_PHASE = re.compile(r"d([234]+)_e([346]+)_k([357]+)", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class Checkup:
    """What a foreign checkpoint is. Keys are named as the file names them, or would."""

    path: Path
    family: str
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
        return tuple(f"{what} {listed(names)}" for what, names in kinds if names)

    def weights(self) -> Weights:
        """The weights of what was trained.

        Raises FormatError (NaN, infinity, absurd numbers) and MismatchError (missing, unknown and misshapen keys), by name.
        """
        kind = FormatError if self.not_finite else MismatchError
        if self.problems:
            raise kind(f"{self.path} must hold exactly the weights of {_base_of(self.space)}, but it {', it '.join(self.problems)}")
        check_values(self.path, self.arrays)
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

    Raises NotFoundError, FormatError (damaged, code, no supernet of a known family and width), MismatchError (`space` is
    of another family or width, or there is none for what the file's name says).
    """
    state = load_state(path, "a once-for-all checkpoint")
    family = family_of_keys(state)
    if family is None:
        known = "; ".join(f"{f.title} has keys with {' or '.join(f.marks)}" for f in FAMILIES)
        raise FormatError(f"{path} must be a once-for-all or CompOFA supernet, but it holds the keys of none: {known}")
    arrays, names, unknown = _renamed(state, family)
    naming = family.naming(state)
    base = _base(path, arrays, family, naming)
    full = get_space(base, classes=_classes(path, arrays, family, naming))
    trained, phase = (space, "as asked") if space is not None else _trained(path, base, naming)
    if _base_of(trained) != base:
        raise MismatchError(f"--space must be {base} or a part of it for {path}, but got {trained}")
    shapes: dict[str, tuple[int, ...]] = full_shapes(full)
    matrices = [key for key in matrix_shapes(full) if key in arrays]
    if matrices:
        shapes |= matrix_shapes(full)

    def name_of(key: str) -> str:
        return names.get(key) or family.their_key(key, naming)

    return Checkup(
        path=path,
        family=family.title,
        space=trained,
        classes=full.classes,
        naming=f"{'old' if naming.old else 'new'} ({family.inner[naming.old].removeprefix('.') or ', '.join(family.parts)})",
        phase=phase,
        matrices=len(matrices),
        missing=tuple(name_of(key) for key in shapes if key not in arrays),
        unknown=(*unknown, *(name_of(key) for key in arrays if key not in shapes)),
        misshapen=tuple(
            f"{name_of(key)} ({spelled(arrays[key].shape)} for {spelled(shape)})"
            for key, shape in shapes.items()
            if key in arrays and arrays[key].shape != shape
        ),
        not_finite=tuple(name_of(key) for key, array in arrays.items() if not np.isfinite(array).all()),
        arrays=arrays,
    )


# -- files -----------------------------------------------------------------------------------------------------


def _renamed(state: Mapping[str, Array], family: Family) -> tuple[dict[str, Array], dict[str, str], list[str]]:
    """The arrays by our keys, their names by our keys, and the names that the family does not know or that come twice."""
    arrays: dict[str, Array] = {}
    names: dict[str, str] = {}
    unknown = []
    for name, value in state.items():
        key = family.our_key(name)
        if key is None or key in arrays:
            unknown.append(name)
        else:
            arrays[key], names[key] = value, name
    return arrays, names, unknown


def _base(path: Path, arrays: Mapping[str, Array], family: Family, naming: Naming) -> str:
    """The design of the family whose widths the arrays have.

    Raises FormatError when there is none.
    """
    told = [family.their_key(key, naming) for key in family.sizes]
    lacking = [name for key, name in zip((*family.sizes, HEAD), (*told, family.their_key(HEAD, naming)), strict=True) if key not in arrays]
    if lacking:
        raise FormatError(f"{path} must be a whole {family.title} supernet, but it has no {listed(lacking)}")
    found = [arrays[key].shape[:1] for key in family.sizes]
    known = []
    for name, design in DESIGNS.items():
        if design.parent is None and name.startswith(family.design):
            shapes = full_shapes(design.build())
            wanted = [shapes[key][:1] for key in family.sizes]
            if found == wanted:
                return name
            known.append(f"{_channels(wanted)} ({name})")
    raise FormatError(f"{path} must have in {listed(told)} the channels of one of {', '.join(known)}, but has {_channels(found)}")


def _classes(path: Path, arrays: Mapping[str, Array], family: Family, naming: Naming) -> int:
    """How many classes the classifier tells apart.

    Raises FormatError when it is no matrix with rows.
    """
    shape = arrays[HEAD].shape
    if len(shape) != 2 or shape[0] == 0:
        raise FormatError(f"{path} must have in {family.their_key(HEAD, naming)} a row for each class, but its shape is {spelled(shape)}")
    return int(shape[0])


def _trained(path: Path, base: str, naming: Naming) -> tuple[str, str]:
    """The space of the trained subnets, and how that is known.

    Raises MismatchError when the file's name says CompOFA and no such part of the design is known.
    """
    design = DESIGNS[base]
    if naming.static:
        return part_name(base, design.depths[-1:], design.expands[-1:], _lasts(design)[-1:]), "the full network alone (static keys)"
    title = path.name.lower()
    if "compofa" in title:
        name = base.replace("ofa-mbv3", "compofa-mbv3-elastic") if "elastic" in title else f"comp{base}"
        if name not in DESIGNS or DESIGNS[name].parent != base:
            raise MismatchError(
                f"{path} must be of a family that CompOFA has trained so, but is {base}; pass --space to say what was trained"
            )
        return name, "compound subnets (by the file's name)"
    part = _phase(path.name, base)
    return (part, "by the file's name") if part else (base, "not told by the file; all subnets are taken as trained")


def _phase(name: str, base: str) -> str | None:
    """The part of a design that a file's name tells, e.g. `d34_e6_k357` or `d0-1-2_e0.2-0.25-0.35_w0.65-0.8-1.0`; None if none."""
    design = DESIGNS[base]
    match = (_RESNET_PHASE if isinstance(design, ResNetDesign) else _MOBILE_PHASE).search(name)
    if match is None:
        return None
    said = [{float(number) for number in re.findall(r"\d\.\d+|\d", text)} for text in match.groups()]
    depths = tuple(depth for depth in design.depths if depth in said[0])
    expands = tuple(expand for expand in design.expands if expand in said[1])
    values = design.widths if isinstance(design, ResNetDesign) else design.kernels
    lasts = tuple(last for last, value in zip(_lasts(design), values, strict=True) if value in said[2])
    return part_name(base, depths, expands, lasts) if depths and expands and lasts else None


def _lasts(design: Design) -> tuple[int, ...]:
    """What a part's name ends with: kernels, or indices of widths."""
    return tuple(range(len(design.widths))) if isinstance(design, ResNetDesign) else design.kernels


def _base_of(space: str) -> str:
    """The largest design that a space is part of."""
    design = find_design(space)
    return design.parent or design.name


def _channels(shapes: Iterable[tuple[int, ...]]) -> str:
    """The first dimensions, as a message lists them."""
    return ", ".join(str(shape[0] if shape else "none") for shape in shapes)


__all__ = ["Checkup", "examine", "load_official"]
