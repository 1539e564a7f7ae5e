"""`ofasearch predictor import / export / show`: predictors as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ofasearch.cli import show
from ofasearch.cli.units import NUMBERS

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")


@click.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@click.option("--space", help="Design space of its networks, e.g. ofa-mbv3-w1.0; needed for MobileNetV3 unless it is the tutorial's file.")
@click.option("--resolutions", type=NUMBERS, help="Its input sizes in the order of its image_size_list, e.g. 128,160,224.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The predictor file to write (.safetensors).")
@JSON
def import_predictor(*, file: Path, space: str | None, resolutions: tuple[int, ...] | None, out: Path, as_json: bool) -> None:
    """Take in a predictor file of once-for-all.

    FILE is its tutorial's or one of its newer encoders'. Neither names its space or its input sizes. They are known for
    the two published files alone, the tutorial's acc_predictor.pth and ResNet50's with 82 inputs; for others tell them.
    """
    from ofasearch.jobs import predictor_files as jobs

    record = jobs.import_predictor(file, out=out, space=space, resolutions=resolutions)
    _print(record, as_json=as_json)


@click.command("export")
@click.argument("name", metavar="P")
@click.option(
    "--format", "form", type=click.Choice(["tutorial", "encoder"]), required=True, help="Its tutorial's 128 inputs, or its newer encoders'."
)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The file to write (.pth).")
@JSON
def export_predictor(*, name: str, form: Any, out: Path, as_json: bool) -> None:
    """Write a file that once-for-all's code loads.

    P is a name or a path. Once-for-all knows one MLP with relu: `predictor fit --members 1 --activation relu`.
    """
    from ofasearch.jobs import predictor_files as jobs

    _print(jobs.export_predictor(name, out=out, form=form), as_json=as_json)


@click.command("show")
@click.argument("name", metavar="P")
@JSON
def show_predictor(*, name: str, as_json: bool) -> None:
    """What a predictor says of itself.

    P is a name or a path. Told are its space, what it reads, its error bars and its card.
    """
    from ofasearch.jobs import predictor_files as jobs

    _print(jobs.show_predictor(name), as_json=as_json)


def _print(record: dict[str, Any], *, as_json: bool) -> None:
    if as_json:
        show.print_json(record)
        return
    card = record.pop("card", {})
    if "reads" in record:
        del record["resolutions"]  # a part of what it reads
        record["reads"] = "; ".join(map(_part, record["reads"]))
    told = {**record, **{key: value for key, value in card.items() if key not in record}}  # a card may say it again
    rows = [row for key, value in told.items() for row in show.lines(key.replace("_", " "), value)]
    click.echo(show.pairs(rows))


def _part(part: dict[str, Any]) -> str:
    choices = ", ".join(f"{choice:g}" for choice in part["choices"])
    return f"{part['field']} of {choices}" if part["columns"] == 1 else f"{part['columns']} {part['field']} of {choices}"
