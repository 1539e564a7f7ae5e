"""Look a supernet's file over, convert it, swap its head."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch import zoo
from ofasearch.download import OFFICIAL, official_path
from ofasearch.errors import OfaSearchError, UsageError
from ofasearch.records import provenance, write_json
from ofasearch.space.families import find_design
from ofasearch.space.resnet import ResNetDesign
from ofasearch.supernet.importers import examine
from ofasearch.supernet.weights import Weights, load_weights, matrix_shapes, new_head, save_weights


@dataclass(frozen=True, slots=True, kw_only=True)
class SupernetReport:
    """What a file is, as printed; `error` is why it cannot be used."""

    record: dict[str, Any]
    error: OfaSearchError | None

    def raise_problems(self) -> None:
        """Raise the error, if there is one: after the record was shown."""
        if self.error is not None:
            raise self.error


def check_supernet(file: Path, *, space: str | None = None, classes: int | None = None, out: Path | None = None) -> SupernetReport:
    """`supernet check`: what a checkpoint is and what is wrong with it; converted to `out` when it is sound.

    `file` may be the name of an official checkpoint, which is fetched if need be. `space` says which subnets were trained
    where the file's name does not; `classes` swaps the classifier. Raises NotFoundError, FormatError (no supernet at all),
    UsageError, WriteError.
    """
    if out is not None and out.suffix != ".safetensors":
        raise UsageError(f"the converted file must end in .safetensors, but got {out}")
    if classes is not None and out is None:
        raise UsageError("--num-classes writes another supernet: add -o FILE.safetensors")
    if file.suffix == ".safetensors":
        weights = load_weights(file)
        record = describe_weights(weights) | {"problems": []}
        return SupernetReport(record=record | _convert(weights, classes, out), error=None)
    if str(file) in OFFICIAL and not file.exists():
        space, file = space or OFFICIAL[str(file)].space, _fetched(str(file))
    found = examine(file, space)
    record = {
        "family": f"{found.family} (once-for-all{', CompOFA' if found.space.startswith('comp') else ''})",
        "space": found.space,
        "width": width_of(found.space),
        "classes": found.classes,
        "phase": found.phase,
        "key_names": found.naming,
        "kernel_transforms": found.matrices,
        "missing": list(found.missing),
        "unknown": list(found.unknown),
        "misshapen": list(found.misshapen),
        "nan_or_infinity": list(found.not_finite),
    }
    try:
        weights = found.weights()
    except OfaSearchError as error:
        return SupernetReport(record=record, error=error)
    record |= {"subnets": f"{weights.space.size:,} per resolution", "digest": weights.digest}
    return SupernetReport(record=record | _convert(weights, classes, out), error=None)


def _fetched(name: str) -> Path:
    """The file of an official checkpoint, fetched if need be."""
    for _ in zoo.fetch_supernet(name):
        pass
    return official_path(name)


def describe(name: str) -> dict[str, Any]:
    """`supernet show`: what a supernet says of itself.

    Raises the errors of `zoo.load_supernet`.
    """
    trained = zoo.load_supernet(name)
    members = trained.members
    measured = {"members_measured": len(members.codes)} if members is not None else {}
    return describe_weights(trained.weights) | measured | dict(_flat(trained.weights.training))


def describe_weights(weights: Weights) -> dict[str, Any]:
    """Space, classes, sizes, matrices and digest."""
    space = weights.space
    return {
        "space": space.name,
        "width": width_of(space.name),
        "classes": space.classes,
        "resolutions": list(space.resolutions),
        "subnets": f"{space.size:,} per resolution",
        "parameters": sum(a.size for key, a in weights.arrays.items() if not key.endswith(("running_mean", "running_var"))),
        "kernel_transforms": sum(key in weights.arrays for key in matrix_shapes(space)),
        "digest": weights.digest,
    }


def _flat(record: dict[str, Any]) -> list[tuple[str, Any]]:
    return [(key, value) for key, value in record.items() if isinstance(value, str | int | float)]


def width_of(space: str) -> str:
    """Width of a published design relative to the network it is named after, as its name says; the choices of a ResNet."""
    design = find_design(space)
    if isinstance(design, ResNetDesign):
        return ", ".join(f"w{design.widths[index]}" for index in design.open_widths or range(len(design.widths)))
    return (design.parent or design.name).rpartition("-")[2]


def _convert(weights: Weights, classes: int | None, out: Path | None) -> dict[str, Any]:
    if out is None:
        return {}
    if classes is not None:
        weights = new_head(weights, classes, np.random.default_rng(0))
    save_weights(out, weights)
    card = out.with_suffix(".json")
    write_json(card, provenance(supernet=str(out.name), **describe_weights(weights), training=weights.training))
    return {"written": str(out.absolute()), "card": str(card.absolute()), "written_classes": weights.space.classes}
