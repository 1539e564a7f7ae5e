"""`ofasearch bn-check`."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ofasearch.cli import show


@click.command("bn-check")
@click.argument("subnet")
@click.option("--data", required=True, help="Data set: a folder, a file, or digits.")
@click.option("--supernet", help="Supernet of an architecture.  [default: cifar10-compofa]")
@click.option("--images", default=2000, show_default=True, help="Validation images to judge on, at most.")
@click.option("--draws", default=5, show_default=True, help="Samples of every size.")
@click.option("--tolerance", default=0.1, show_default=True, help="Points of top-1 that a sample may lose.")
@click.option("--seed", default=0, show_default=True, help="Of the draws: same seed, same answer.")
@click.option("--out", type=click.Path(path_type=Path), help="Folder for bn_check.json, bn_check.csv and bn_check.png.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def bn_check(tolerance: float, as_json: bool, quiet: bool, **options: Any) -> None:
    """How many images does a subnet's batch norm need: accuracy against the size of the calibration sample.

    SUBNET is a subnet.pt, or an arch id.

    \b
    ofasearch bn-check compofa-mbv3-cifar@r32-2-2-2-2-2 --data CIFAR10_DIR
    ofasearch bn-check runs/found/subnet.pt --data CIFAR10_DIR --out runs/bn
    """
    from ofasearch.jobs.bn_check import BnCheckRequest, BnCheckResult
    from ofasearch.jobs.bn_check import bn_check as events

    request = BnCheckRequest(tolerance=tolerance / 100, **options)
    result = show.followed(events(request), BnCheckResult, quiet=quiet or as_json)
    if result is not None and as_json:
        show.print_json(result.record)
    elif result is not None:
        click.echo(_told(result.record))


def _told(record: Mapping[str, Any]) -> str:
    """The answer for people."""
    from ofasearch.report import bn_check as report
    from ofasearch.report.sketch import to_text

    picture = show.picture(to_text(report.sketch(record), max(40, min(80, shutil.get_terminal_size().columns))))
    return "\n\n".join([picture, show.table(*report.sizes_table(record)), show.pairs(report.facts(record))])
