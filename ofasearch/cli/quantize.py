"""`ofasearch quantize`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ofasearch.cli import show
from ofasearch.cli.subnet import PREPROCESSING_HELP


@click.command()
@click.argument("model")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The int8 ONNX file to write.")
@click.option("--data", required=True, help="Data set that calibrates and judges: a folder, a file, or digits.")
@click.option("--supernet", help="Supernet of an architecture.  [default: cifar10-compofa]")
@click.option("--preprocessing", help=PREPROCESSING_HELP)
@click.option("--per-channel/--per-tensor", default=None, help="Scales of weights.  [default: what the validation split says]")
@click.option("--exclude", help="Keep in float: none, or of ends, gates, activations (comma-separated).  [default: those that help]")
@click.option(
    "--method", type=click.Choice(["minmax", "entropy", "percentile"]), default="minmax", show_default=True, help="Ranges of activations."
)
@click.option("--reduce-range", is_flag=True, help="Weights of 7 bits: for x86 processors without VNNI.")
@click.option("--calibration-images", type=int, default=500, show_default=True, help="Images that the ranges come from.")
@click.option("--images", type=int, help="Compare recipes on so many images of the validation split.  [default: all]")
@click.option("--bench/--no-bench", "timed", default=True, help="Time the files; without, accuracy alone decides, and bytes repeat.")
@click.option("--batch", type=int, help="Images per timed run.  [default: 1, or the file's own]")
@click.option("--threads", default=1, show_default=True, help="Threads of the timed runs.")
@click.option("--seconds", default=2.0, show_default=True, help="Time each file at most this long.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def quantize(exclude: str | None, as_json: bool, quiet: bool, **options: Any) -> None:
    """Write a network in int8, and say what that costs: accuracy, negative flips, latency, size.

    MODEL is a subnet.pt, an arch id (recalibrated first), or any ONNX classifier in float32. Recipes are compared on the
    validation split; the test split only reports.

    \b
    ofasearch quantize small/subnet.pt -o small.int8.onnx --data CIFAR10_DIR
    ofasearch quantize production.onnx -o production.int8.onnx --data PHOTOS --preprocessing imagenet
    """
    from ofasearch.jobs.quantize import QuantizeRequest, QuantizeResult
    from ofasearch.jobs.quantize import quantize as events

    result = show.followed(events(QuantizeRequest(floating=_parts(exclude), **options)), QuantizeResult, quiet=quiet or as_json)
    if result is not None and as_json:
        show.print_json(result.record)
    elif result is not None:
        click.echo(_told(result.record))


def _parts(text: str | None) -> Any:
    """The parts that --exclude names; None where it is not given."""
    if text is None:
        return None
    return tuple(name.strip() for name in text.split(",")) if text != "none" else ()


def _told(record: dict[str, Any]) -> str:
    """The answer for people."""
    timed = "latency" in record
    header = ["", "weights", "in float", "int8 layers", "top-1 (validation)", *(["p50"] if timed else []), "size"]
    rows = [_row(candidate) for candidate in record["candidates"]]
    p50 = [f"{record['latency']['fp32']['latency_ms_p50']:.3f} ms"] if timed else []
    rows.insert(0, ["", "float32", "all", "0", _percent(record["fp32"]["validation_top1"]), *p50, _size(record["fp32"])])
    return "\n".join([show.table(header, rows), "", show.pairs(_facts(record))])


def _row(candidate: dict[str, Any]) -> list[str]:
    weights, layers = "per channel" if candidate["per_channel"] else "per tensor", f"{candidate['int8_layers']} of {candidate['layers']}"
    row = ["*" if candidate["chosen"] else "", weights, ", ".join(candidate["floating"]) or "none", layers]
    row.append(_percent(candidate["validation_top1"]))
    return [*row, *([f"{candidate['latency_ms_p50']:.3f} ms"] if "latency_ms_p50" in candidate else []), _size(candidate)]


def _percent(fraction: float) -> str:
    return f"{100 * fraction:.2f} %"


def _size(record: dict[str, Any]) -> str:
    return f"{record['size_bytes'] / 1e6:.3f} MB"


def _facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    flips, old, new = record["flips"], record["fp32"], record["int8"]
    facts = [
        ("test top-1", f"{_percent(old['test_top1'])} -> {_percent(new['test_top1'])} ({flips['n']:,} images of {record['data']})"),
        ("flips", f"{_percent(flips['nfr'])} negative ({flips['negative_flips']:,}), {_percent(flips['pfr'])} positive"),
        ("size", f"{_size(old)} -> {_size(new)} ({new['size_bytes'] / old['size_bytes']:.2f} of it)"),
    ]
    if "latency" in record:
        before, after = (record["latency"][name]["latency_ms_p50"] for name in ("fp32", "int8"))
        how = f"{record['device']}, {record['runtime']}, batch {record['batch']}, threads {record['threads']}"
        facts.append(("latency", f"{before:.3f} ms -> {after:.3f} ms, {record['latency_ratio']:.2f} times as long ({how})"))
    calibration = f"{record['calibration_images']} images of {record['data']} calibration, {record['recipe']['method']}"
    return [
        *facts,
        ("calibration", calibration),
        ("rule", record["rule"]),
        *(("note", n) for n in record["notes"]),
        ("onnx", record["onnx"]),
    ]
