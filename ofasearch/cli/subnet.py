"""`ofasearch eval`, `export`, `bench`, `inspect`."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ofasearch.cli import show
from ofasearch.cli.units import NAMES, SIZES

SUBNET_HELP = (
    "SUBNET is an arch id, a JSON object with ks, e, d, r, a subnet.pt, or once-for-all's net.config with run.config and init beside it; "
    "a folder stands for what it holds."
)

TEXT_LIMIT = 1000  # characters of one value
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


@click.command()
@click.argument("subnet")
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="The ONNX file to write; its card is of the same name (.md)."
)
@click.option("--supernet", help="Supernet of an architecture.  [default: cifar10-compofa]")
@click.option("--data", help="Recalibrate batch norm on this data set, and prove the file on its test images.")
@click.option("--no-bn", is_flag=True, help="Export without recalibration; the file says so.")
@click.option("--opset", type=int, default=17, show_default=True, help="ONNX operator set, 7 to 26.")
@click.option("--batch", type=int, help="Fix the number of images of a run.  [default: any]")
@click.option("--input-name", default="input", show_default=True, help="Name of the input.")
@click.option("--output-name", default="logits", show_default=True, help="Name of the output.")
@click.option("--embed-preprocessing", is_flag=True, help="Take pixels, uint8 (N, H, W, 3), and normalise them in the graph.")
@click.option("--card/--no-card", default=True, show_default=True, help="Write the model card (Markdown) beside the file.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def export(subnet: str, as_json: bool, **options: Any) -> None:
    """Write a subnet as an ONNX file that was proved equal to the torch network, with a model card beside it.

    SUBNET is an arch id, a JSON object with ks, e, d, r, or a subnet.pt. The proof goes from pixels to logits, on test images of
    --data or on seeded noise; a file that fails it is not written.

    \b
    ofasearch export runs/find-compofa-mbv3-cifar/subnet.pt -o model.onnx
    ofasearch export subnet.pt -o model.onnx --opset 13 --embed-preprocessing --data CIFAR10_DIR
    """
    from ofasearch.jobs.export import export as job

    answer(job(subnet, **options), as_json=as_json)


@click.command()
@click.argument("model")
@click.option("--batch", type=SIZES, help="Images per run, several separated by commas.  [default: the file's own, else 1]")
@click.option("--threads", type=SIZES, default="1", show_default=True, help="Threads, several separated by commas.")
@click.option("--seconds", default=3.0, show_default=True, help="Measure at most this long, for each batch, threads and runtime.")
@click.option("--against", type=NAMES, default=(), help="Compare with torch, torch-compile, or both (separated by a comma).")
@click.option("--space", help="Design space of a network given as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def bench(model: str, batch: tuple[int, ...] | None, threads: tuple[int, ...], as_json: bool, **options: Any) -> None:
    """Latency percentiles and throughput on this machine's CPU (ONNX Runtime).

    MODEL is an ONNX file, or the layers of a network: a subnet.pt, an arch id, JSON, or a net.config. Several batches or numbers of
    threads make a table; with --against, other runtimes take turns with ONNX Runtime in one measurement.

    \b
    ofasearch bench model.onnx
    ofasearch bench model.onnx --threads 1,2 --batch 1,8,32
    ofasearch bench subnet.pt --against torch,torch-compile
    """
    from ofasearch.jobs.bench import bench as job

    record = job(model, batch=batch, threads=threads, **options)
    if as_json or "runs" not in record:
        answer(record, as_json=as_json)
    else:
        click.echo(bench_table(record))


def bench_table(record: Mapping[str, Any]) -> str:
    """The runs of a sweep or a comparison, for people."""
    figures = ("p50", "p90", "p95", "p99", "mean")
    headers = ["runtime", "batch", "threads", *(f"{name} ms" for name in figures), "images/s"]
    rows = [
        [run["runtime"], str(run["batch"]), str(run["threads"])]
        + [f"{run[f'latency_ms_{name}']:.3f}" for name in figures]
        + [f"{run['throughput']:.1f}"]
        for run in record["runs"]
    ]
    if any("times_ort" in run for run in record["runs"]):
        headers.append("times ONNX Runtime")
        rows = [[*row, f"{run.get('times_ort', 1):.2f}"] for row, run in zip(rows, record["runs"], strict=True)]
    notes = [("note", note) for note in record["notes"]] + ([("warning", record["warning"])] if "warning" in record else [])
    return "\n".join([show.table(headers, rows), "", show.pairs([("device", record["device"]), *notes])])


@click.command()
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def inspect(file: Path, as_json: bool) -> None:
    """Show all that a file or folder says of itself; nothing of it is run.

    ONNX files of any tool, subnet.pt, supernets and predictors (.safetensors, official ones too), latency tables (.csv), predictions
    (.npz), JSON, net.config, and the folders of runs.
    """
    from ofasearch.jobs.inspect import inspect as job

    record = job(file)
    if as_json:
        show.print_json(record)
    else:
        click.echo(show.pairs([row for key, value in record.items() for row in _rows(key, value)]))


def _rows(key: str, value: Any) -> list[tuple[str, str]]:
    """A line for a value, or several for an object that holds others."""
    if isinstance(value, dict) and any(isinstance(part, dict) for part in value.values()):
        return show.lines(key, value)
    text = _text(value)
    return [(key, text if len(text) <= TEXT_LIMIT else f"{text[:TEXT_LIMIT]} ... (--json shows all)")]
