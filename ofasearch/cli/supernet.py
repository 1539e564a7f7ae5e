"""`ofasearch supernet`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ofasearch.cli import show
from ofasearch.cli.units import COUNT, LATENCY

if TYPE_CHECKING:
    from ofasearch.jobs.members import MembersProgress, MembersResult
    from ofasearch.jobs.populations import PopulationProgress


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


def _counts(context: click.Context, option: click.Parameter, value: str | None) -> tuple[float, ...] | None:
    """Numbers with units, separated by commas."""
    return tuple(COUNT.convert(part, option, context) for part in value.split(",")) if value is not None else None


@supernet.command()
@click.argument("name")
@click.option("--data", required=True, help="The data set it was trained on.")
@click.option("--protocol", help="One of those above.  [default: members for at most 5,000 networks, else pareto]")
@click.option("--nets", type=int, help="Random networks per bucket, as many as in the paper unless given.")
@click.option("--buckets", type=int, help="Cut the range of costs into so many equal buckets.  [default: 6]")
@click.option("--bucket-width", "bucket_width_ms", type=LATENCY, help="Cut latencies into buckets of this width, e.g. 5ms.")
@click.option("--target", help="Cut by latency: this machine (cpu), a card or table by name, a table file, or once-for-all's YAML folder.")
@click.option("--at", "at_macs", callback=_counts, help="random: costs to draw near, e.g. 4M,6M,8M.  [default: six over the range]")
@click.option("--tolerance", "tolerance_macs", type=COUNT, help="random: how near, to both sides.  [default: 0.5M]")
@click.option("--with", "other", metavar="SUPERNET", help="common: the supernet to compare with.")
@click.option("--split", help="validation or test.  [default: test; pareto chooses on validation and reports test]")
@click.option("--resolution", type=int, help="Input size, pixels.  [default: the largest]")
@click.option("--images", type=int, help="Score on the first so many images of a split only, for a quick look.")
@click.option("--seed", type=int, help="Same seed, same networks.  [default: 0]")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="Folder to write; for members a file.  [default: runs/evaluate-NAME-PROTOCOL; members.safetensors beside the supernet]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", is_flag=True, help="No progress.")
def evaluate(as_json: bool, quiet: bool, name: str, **options: Any) -> None:
    """Judge the supernet NAME by its networks, each with batch norm of its own. Run again to resume: scores are remembered.

    \b
    members  measure every network of a small space: statistics and predictions
    pareto   the best of 20 per bucket of MACs (or latency), chosen on validation, reported on test (DepS)
    random   medians of 100 networks near each of six costs, and the drop between them (RSS)
    cdf      distribution of the error, 50 networks per bucket (CompOFA)
    average  mean and its 95 % interval, 20 networks per bucket (CompOFA)
    boxes    quartiles, extremes and variance, 100 networks per bucket (CompOFA)
    heatmap  every uniform depth with every uniform expand ratio (CompOFA)
    common   20 networks that two supernets have in common, with the weights of both (CompOFA)

    Several processes share the work: torchrun --nproc-per-node 4 -m ofasearch supernet evaluate ...
    """
    from ofasearch.jobs.members import MembersResult
    from ofasearch.jobs.populations import PopulationRequest, PopulationResult, evaluate_supernet

    reporter = show.Reporter(quiet=quiet or as_json)
    try:
        for event in evaluate_supernet(PopulationRequest(supernet=name, **options)):
            if isinstance(event, MembersResult):
                reporter.clear()
                _print_members(event, as_json)
            elif isinstance(event, PopulationResult):
                reporter.clear()
                show.print_json(event.record) if as_json else click.echo(_population(event.record))
            else:
                _show_progress(reporter, event)
    finally:
        reporter.clear()


def _show_progress(reporter: show.Reporter, event: MembersProgress | PopulationProgress) -> None:
    phase = getattr(event, "phase", "measuring members")
    best = getattr(event, "best_top1", None)
    note = f"best {100 * best:.2f} %" if best is not None else ""
    reporter.update(phase, event.done, event.total, eta=event.eta_seconds, note=note)


def _print_members(event: MembersResult, as_json: bool) -> None:
    from ofasearch.jobs.train import landmarks

    members = event.members
    marks = {label: int(members.index(codes[None])[0]) for label, codes in landmarks(members.space).items()}
    top1 = {split: members.top1(split) for split in members.predictions}
    if as_json:
        scores = {label: {split: float(values[i]) for split, values in top1.items()} for label, i in marks.items()}
        show.print_json({"members": str(event.path), "n": len(members.codes), "top1": scores})
        return
    rows = [(label, *(f"{100 * values[i]:.2f} %" for values in top1.values())) for label, i in marks.items()]
    click.echo(show.table(["network", *(f"{split} top-1" for split in top1)], rows))


def _population(record: dict[str, Any]) -> str:
    from ofasearch.report.populations import facts, table

    return f"{show.table(*table(record))}\n\n{show.pairs([*facts(record), *record['files'].items()])}"


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
