"""`ofasearch supernet`."""

from __future__ import annotations

from pathlib import Path

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

    found = [zoo.load_supernet(name) for name in zoo.supernet_names()]
    if as_json:
        show.print_json({"supernets": [{"name": t.name, "space": t.weights.space.name, "digest": t.weights.digest} for t in found]})
        return
    rows = []
    for t in found:
        top1 = t.members.top1("test") if t.members else None
        span = f"{100 * top1.min():.2f} to {100 * top1.max():.2f} %" if top1 is not None else "not measured"
        rows.append((t.name, t.weights.space.name, str(t.weights.space.classes), span))
    click.echo(show.table(["supernet", "space", "classes", "test top-1 of its members"], rows))


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
