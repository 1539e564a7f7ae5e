"""`ofasearch flips`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ofasearch.cli import show
from ofasearch.cli.subnet import PREPROCESSING_HELP


@click.command()
@click.argument("old")
@click.argument("new")
@click.argument("more", nargs=-1)
@click.option("--data", help="Data set: a folder, a file, or digits.  [default: the predictions that came with the supernet]")
@click.option("--split", type=click.Choice(["validation", "test"]), default="test", show_default=True)
@click.option("--supernet", help="Supernet of an architecture.  [default: cifar10-compofa]")
@click.option("--preprocessing", help=PREPROCESSING_HELP + "  [default: as for the other networks]")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for flips.json, flips.csv and, with --data, the images: flips.png.")
@click.option("--seed", default=0, show_default=True, help="Of the intervals: same seed, same answer.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def flips(old: str, new: str, more: tuple[str, ...], as_json: bool, quiet: bool, **options: Any) -> None:
    """What NEW gets wrong that OLD got right (negative flips), and the other way round; with MORE networks, all pairs.

    A network is a subnet.pt, an arch id, any ONNX classifier, or its predictions (.npz, .npy, .csv, .txt).

    \b
    ofasearch flips small/subnet.pt large/subnet.pt
    ofasearch flips production.onnx large/subnet.pt --data CIFAR10_DIR --out flips
    ofasearch flips production.npz large/subnet.pt
    """
    from ofasearch.jobs.flips import FlipsRequest, FlipsResult
    from ofasearch.jobs.flips import flips as events

    result = show.followed(events(FlipsRequest(networks=(old, new, *more), **options)), FlipsResult, quiet=quiet or as_json)
    if result is not None and as_json:
        show.print_json(result.record)
    elif result is not None:
        click.echo(_told(result.record))


def _told(record: dict[str, Any]) -> str:
    """The answer for people."""
    from ofasearch.report import flips as report

    tables = [report.networks_table(record)]
    if "nfr_matrix" in record:
        tables.append(report.matrix_table(record))
    tables.append(report.classes_table(record))
    if record["pairs"]:
        tables.append(report.pairs_table(record))
    first, *others = (show.table(*table) for table in tables)
    return "\n\n".join([first, show.pairs(report.facts(record)), *others])
