"""`export`: one network as an ONNX file that was proved equal to it, in the form that its user needs, with a card beside it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from ofasearch.data import load_data
from ofasearch.deploy.export import OPSET, OnnxForm
from ofasearch.errors import FormatError, MismatchError, UsageError, WriteError
from ofasearch.jobs.deliver import FACTS, Subnet, load_subnet, onnx_bytes, prove
from ofasearch.jobs.network import place_of
from ofasearch.jobs.onnx_about import about_model, parse_model
from ofasearch.jobs.subnet import read_subnet
from ofasearch.records import check_writable, write_together
from ofasearch.report.card import MARK, model_card

KEPT = (*FACTS, "measured", "measured_on", "machine")  # of what a subnet.pt says


def export(
    subnet: str,
    *,
    out: str | Path,
    supernet: str | None = None,
    data: str | None = None,
    no_bn: bool = False,
    opset: int = OPSET,
    batch: int | None = None,
    input_name: str = "input",
    output_name: str = "logits",
    embed_preprocessing: bool = False,
    card: bool = True,
) -> dict[str, Any]:
    """`export`: the subnet as a proved ONNX file, and a model card of the same name (`.md`) beside it.

    With `embed_preprocessing` the graph takes pixels, uint8 (N, H, W, 3), and normalises them itself. Raises UsageError (a form
    that cannot be built or proved here), VerificationError (the file does not compute the network's logits), WriteError;
    nothing is written then.
    """
    form = OnnxForm(opset=opset, batch=batch, input_name=input_name, output_name=output_name)
    path = Path(out)
    check_out(path, card=card)
    images = load_data(data) if data else None
    place = place_of(subnet)
    if place is not None and place.suffix == ".pt":
        network, facts = load_subnet(place)
    else:
        network, facts = read_subnet(subnet, supernet=supernet, data=images, no_bn=no_bn), {}
    if embed_preprocessing:
        form = replace(form, pixels=network.preprocessing)
    try:
        difference, checked_on = prove(network, onnx_bytes(network, form=form), images)
    except FormatError as error:
        if form.opset == OPSET:
            raise
        raise UsageError(
            f"--opset must be one that ONNX Runtime here can run, so that the file is proved, but {opset} is not: {error}"
        ) from error
    proof = {"onnx_max_abs_diff": difference, "onnx_checked_on": checked_on}
    told = {key: facts[key] for key in KEPT if key in facts}
    measured = told.get("measured")
    files = files_of(path, network, told | {"measured": (measured if isinstance(measured, dict) else {}) | proof}, form, card=card)
    write_together(files)
    return {
        "onnx": str(path.absolute()),
        **({"card": str(card_path(path).absolute())} if card else {}),
        "arch_id": network.arch.id,
        "calibrated": network.calibrated,
        "opset": form.opset,
        "embedded_preprocessing": embed_preprocessing,
        **proof,
        "size_bytes": len(files[path]),
    }


def files_of(
    path: Path, subnet: Subnet, facts: Mapping[str, Any], form: OnnxForm | None = None, *, card: bool = True
) -> dict[Path, bytes | str]:
    """The contents of an ONNX file and of its card."""
    content = onnx_bytes(subnet, facts, form)
    if not card:
        return {path: content}
    about = about_model(parse_model(content, path.name), path.name)
    return {path: content, card_path(path): model_card(path.name, about, subnet.blueprint)}


def card_path(path: Path) -> Path:
    """Where the card of an ONNX file lies."""
    return path.with_suffix(".md")


def check_out(path: Path, *, card: bool) -> None:
    """Raise UsageError, MismatchError or WriteError now, where ONNX file or card could not be written after long work.

    A file in the card's place is written over only where it is a card as well.
    """
    if path.suffix != ".onnx":
        raise UsageError(f"-o must be an ONNX file such as model.onnx, but got '{path.name}'")
    check_writable(path)
    if not card:
        return
    beside = card_path(path)
    check_writable(beside)
    try:
        if beside.exists() and not (beside.is_file() and _start(beside, len(MARK)) == MARK.encode()):
            raise MismatchError(f"{beside} must be a model card to be written over, but is another file; choose another -o, or --no-card")
    except OSError as error:
        raise WriteError(f"{beside} must be readable, but is not ({error.strerror or error}); choose another -o, or --no-card") from error


def _start(path: Path, size: int) -> bytes:
    with path.open("rb") as file:
        return file.read(size)
