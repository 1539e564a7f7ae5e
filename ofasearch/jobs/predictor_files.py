"""Predictors as files: take in once-for-all's, write them, show what one says."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from ofasearch import zoo
from ofasearch.errors import UsageError
from ofasearch.predictor import Encoder, save_predictor
from ofasearch.predictor.encode import SPELLED
from ofasearch.predictor.foreign import FOREIGN_SUFFIXES, Form, load_foreign, save_foreign
from ofasearch.records import check_writable, file_digest, provenance


def import_predictor(path: Path, *, out: Path, space: str | None = None, resolutions: Sequence[int] | None = None) -> dict[str, Any]:
    """Write once-for-all's predictor as a file of ours; `space` and `resolutions` say what it does not hold.

    Raises NotFoundError, FormatError, MismatchError, UsageError.
    """
    if path.suffix == ".safetensors":
        raise UsageError(
            f"the file to import must be once-for-all's ({' or '.join(FOREIGN_SUFFIXES)}), but got {path}; ours need no import"
        )
    if out.suffix in FOREIGN_SUFFIXES:
        raise UsageError(f"--out must not end in {out.suffix}, which once-for-all's files do, but got {out}; end it in .safetensors")
    found = load_foreign(path, space=space, resolutions=resolutions)
    check_writable(out)
    card = {"imported": {"file": path.name, "sha256": file_digest(path)}, **provenance()}
    save_predictor(out, replace(found, card=card))
    return {"predictor": str(out.absolute()), "space": found.space, **_reads(found.encoder)}


def export_predictor(name: str, *, out: Path, form: Form) -> dict[str, Any]:
    """Write a predictor for once-for-all's code; what that cannot hold is named.

    Raises NotFoundError, FormatError, MismatchError (what the form cannot say), UsageError.
    """
    if out.suffix not in FOREIGN_SUFFIXES:
        raise UsageError(f"--out must end in {' or '.join(FOREIGN_SUFFIXES)}, by which once-for-all's files are told, but got {out}")
    found = zoo.get_predictor(name)
    check_writable(out)
    written = save_foreign(out, found, form)
    unknown: dict[str, list[float]] = {}
    for feature in written.unknown:
        values = unknown.setdefault(SPELLED[feature.field], [])
        values += [feature.value] * (feature.value not in values)
    record: dict[str, Any] = {"file": str(out.absolute()), "format": form, "space": found.space, "resolutions": list(written.resolutions)}
    left_out = {
        "error bars": found.certainty,
        "fitted cloud": found.cloud,
        "digest of the supernet": found.supernet_digest,
        "card": found.card,
    }
    record["not_held"] = ["space", *(["resolutions"] if form == "encoder" else []), *(what for what, value in left_out.items() if value)]
    return record | ({"never_fitted": unknown} if unknown else {}) | {"load": written.load}


def show_predictor(name: str) -> dict[str, Any]:
    """What a predictor (a name or a path) says of itself; what it does not know is absent.

    Raises NotFoundError, FormatError, UsageError.
    """
    found = zoo.get_predictor(name)
    record: dict[str, Any] = {"predictor": name, "space": found.space, **_reads(found.encoder)}
    record |= {
        "members": found.size,
        "hidden": [weight.shape[2] for weight in found.weights[:-1]],
        "activation": found.activation,
        "offset": found.offset,
    }
    if found.supernet_digest is not None:
        record["supernet_digest"] = found.supernet_digest
    if found.certainty is not None:
        multiples = {f"{level:g}": multiple for level, multiple in found.certainty.multiples.items()}
        record["error_bars"] = {"floor": found.certainty.floor, "multiples": multiples}
    if found.cloud is not None:
        record["cloud_limit"] = found.cloud.limit
    return record | {"card": found.card}


def _reads(encoder: Encoder) -> dict[str, Any]:
    parts = [
        {"field": part.field if part.field == "stem" else SPELLED[part.field], "columns": part.columns, "choices": list(part.choices)}
        for part in encoder.parts
    ]
    return {"inputs": encoder.dims, "resolutions": list(encoder.resolutions), "reads": parts}
