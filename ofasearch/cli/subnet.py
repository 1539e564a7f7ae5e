"""`ofasearch eval`, `export`, `bench`, `inspect`."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from ofasearch.cli import show

SUBNET_HELP = "SUBNET is an arch id, a JSON object with ks, e, d, r, or a subnet.pt."

PREPROCESSING_HELP = "Of ONNX files that do not say theirs: imagenet, or JSON with mean and std (or a file of it)."


def answer(record: dict[str, Any], *, as_json: bool) -> None:
    """Print a flat record as JSON or as lined-up names and values."""
    if as_json:
        show.print_json(record)
    else:
        click.echo(show.pairs([(key, _text(value)) for key, value in record.items()]))


def _text(value: Any) -> str:
    if isinstance(value, float):
        return f"{value:.6g}"
    if isinstance(value, dict) and all(isinstance(part, int | float) for part in value.values()):
        return ", ".join(f"{key} {_text(part)}" for key, part in value.items())
    return value if isinstance(value, str) else json.dumps(value)


@click.command(
    help=f"Top-1 of a subnet, an ONNX file or saved predictions on a data split.\n\n{SUBNET_HELP} An architecture is recalibrated first."
)
@click.argument("subnet")
@click.option("--supernet", help="Supernet of an architecture.  [default: cifar10-compofa]")
@click.option("--data", required=True, help="Data set: a folder, a file, or digits.")
@click.option("--split", type=click.Choice(["validation", "test"]), default="test", show_default=True)
@click.option("--preprocessing", help=PREPROCESSING_HELP)
@click.option(
    "--save-predictions", type=click.Path(path_type=Path), help="Keep predictions as .npz; other splits of the same network are added."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def evaluate(as_json: bool, subnet: str, **options: Any) -> None:
    """`eval`."""
    from ofasearch.jobs import subnet as jobs

    answer(jobs.evaluate(subnet, **options), as_json=as_json)


@click.command(help=f"Write a subnet as an ONNX file that was proved equal to the torch network.\n\n{SUBNET_HELP}")
@click.argument("subnet")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The ONNX file to write.")
@click.option("--supernet", help="Supernet of an architecture.  [default: cifar10-compofa]")
@click.option("--data", help="Recalibrate batch norm on this data set, and prove the file on its test images.")
@click.option("--no-bn", is_flag=True, help="Export without recalibration; the file says so.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def export(subnet: str, out: Path, supernet: str | None, data: str | None, no_bn: bool, as_json: bool) -> None:
    """`export`."""
    from ofasearch.jobs import subnet as jobs

    answer(jobs.export(subnet, out=out, supernet=supernet, data=data, no_bn=no_bn), as_json=as_json)


@click.command(help="Latency percentiles and throughput of an ONNX file on this machine's CPU (ONNX Runtime).")
@click.argument("model", type=click.Path(path_type=Path))
@click.option("--batch", default=1, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--seconds", default=3.0, show_default=True, help="Measure at most this long.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(model: Path, batch: int, threads: int, seconds: float, as_json: bool) -> None:
    """`bench`."""
    from ofasearch.jobs import subnet as jobs

    answer(jobs.bench(model, batch=batch, threads=threads, seconds=seconds), as_json=as_json)


@click.command(help="Show all that a file of ofasearch (.onnx, .pt, .safetensors, .json) says of itself.")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(file: Path, as_json: bool) -> None:
    """`inspect`."""
    from ofasearch.jobs import subnet as jobs

    answer(jobs.inspect(file), as_json=as_json)
