"""`ofasearch supernet`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ofasearch.cli import show


@click.group()
def supernet() -> None:
    """Shipped supernets and their measured members."""


@supernet.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_supernets(as_json: bool) -> None:
    """Shipped supernets."""
    from ofasearch import zoo
    from ofasearch.download import OFFICIAL, official_path

    found = [zoo.load_supernet(name) for name in zoo.supernet_names()]
    if as_json:
        record = {"supernets": [{"name": t.name, "space": t.weights.space.name, "digest": t.weights.digest} for t in found]}
        official = [{"name": n, "space": o.space, "fetched": official_path(n).is_file()} for n, o in OFFICIAL.items()]
        show.print_json(record | {"official": official})
        return
    rows: list[tuple[str, str, str, str]] = []
    for t in found:
        top1 = t.members.top1("test") if t.members else None
        span = f"{100 * top1.min():.2f} to {100 * top1.max():.2f} %" if top1 is not None else "not measured"
        rows.append((t.name, t.weights.space.name, str(t.weights.space.classes), span))
    click.echo(show.table(["supernet", "space", "classes", "test top-1 of its members"], rows))
    click.echo("\nPublished by others, fetched when first used:\n")
    here = {name: "here" if official_path(name).is_file() else "not fetched" for name in OFFICIAL}
    click.echo(show.table(["supernet", "space", "file"], [(name, o.space, here[name]) for name, o in OFFICIAL.items()]))


@supernet.command()
@click.argument("name")
@click.option("--data", required=True, help="The data set it was trained on.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="File to write.  [default: members.safetensors beside the supernet]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", is_flag=True, help="No progress.")
def evaluate(name: str, data: str, out: Path | None, as_json: bool, quiet: bool) -> None:
    """Measure every member of NAME (a small space): statistics and predictions. Run again to resume."""
    from ofasearch.jobs.members import MembersResult, measure_members
    from ofasearch.jobs.train import landmarks

    reporter = show.Reporter(quiet=quiet or as_json)
    try:
        for event in measure_members(name, data, out):
            if not isinstance(event, MembersResult):
                reporter.update("measuring members", event.done, event.total, eta=event.eta_seconds)
                continue
            reporter.clear()
            members = event.members
            marks = {label: int(members.index(codes[None])[0]) for label, codes in landmarks(members.space).items()}
            top1 = {split: members.top1(split) for split in members.predictions}
            if as_json:
                scores = {label: {split: float(values[i]) for split, values in top1.items()} for label, i in marks.items()}
                show.print_json({"members": str(event.path), "n": len(members.codes), "top1": scores})
            else:
                rows = [(label, *(f"{100 * values[i]:.2f} %" for values in top1.values())) for label, i in marks.items()]
                click.echo(show.table(["network", *(f"{split} top-1" for split in top1)], rows))
    finally:
        reporter.clear()


_SPACE = click.option("--space", help="What was trained, when the file's name does not tell, e.g. ofa-mbv3-w1.0-d34-e6-k357.")
_CLASSES = click.option("--num-classes", type=click.IntRange(2, 100_000), help="Swap the classifier for an untrained one.")


@supernet.command()
@click.argument("file", type=click.Path(path_type=Path))
@_SPACE
@_CLASSES
@click.option("-o", "--out", type=click.Path(path_type=Path), help="Also convert: a .safetensors file, and a .json card beside it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(file: Path, space: str | None, num_classes: int | None, out: Path | None, as_json: bool) -> None:
    """Tell what a checkpoint is: family, width, classes, phase, matrices, and what is wrong with it."""
    _check(file, space, num_classes, out, as_json)


@supernet.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@_SPACE
@_CLASSES
@click.option(
    "-o", "--out", type=click.Path(path_type=Path), required=True, help="The .safetensors file to write; a .json card comes with it."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def import_checkpoint(file: Path, space: str | None, num_classes: int | None, out: Path, as_json: bool) -> None:
    """Convert a once-for-all or CompOFA checkpoint."""
    _check(file, space, num_classes, out, as_json)


def _check(file: Path, space: str | None, num_classes: int | None, out: Path | None, as_json: bool) -> None:
    from ofasearch.jobs.supernet import check_supernet

    report = check_supernet(file, space=space, classes=num_classes, out=out)
    if as_json:
        show.print_json(report.record)
    else:
        click.echo(_card(str(file), report.record))
    report.raise_problems()


def _card(title: str, record: dict[str, Any]) -> str:
    return show.table(["", title], [(key.replace("_", " "), _shown(value)) for key, value in record.items()])


def _shown(value: object) -> str:
    if isinstance(value, list):
        return ", ".join(str(v) for v in value[:8]) + (f" and {len(value) - 8} more" if len(value) > 8 else "") if value else "none"
    return {True: "yes", False: "no"}.get(value, str(value)) if isinstance(value, bool) else str(value)


@supernet.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show_supernet(name: str, as_json: bool) -> None:
    """Show what a supernet, by name or path, says of itself."""
    from ofasearch.jobs.supernet import describe

    record = describe(name)
    show.print_json(record) if as_json else click.echo(_card(name, record))
