"""`ofasearch data`."""

from __future__ import annotations

import click

from ofasearch.cli import show

SHOWN = 20  # damaged files


@click.group()
def data() -> None:
    """Data sets: what is in them, what is damaged."""


@data.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_data(as_json: bool) -> None:
    """List the data sets known by name, and where they are looked for."""
    from ofasearch.data.load import KNOWN, named_folder

    found = {name: named_folder(name) for name in KNOWN}
    if as_json:
        show.print_json(
            {"data": [{"name": n, "folder": str(f.absolute()), "there": f.exists(), "home": KNOWN[n].home} for n, f in found.items()]}
        )
        return
    rows = [(name, "there" if folder.exists() else "absent", str(folder), KNOWN[name].home) for name, folder in found.items()]
    click.echo(show.table(["data set", "", "folder", "get it from"], rows))


@data.command()
@click.argument("source", metavar="D")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", is_flag=True, help="No progress.")
def check(source: str, as_json: bool, quiet: bool) -> None:
    """Decode every image of D and tell size, classes and damaged files; D is what --data takes."""
    from ofasearch.data.check import CheckResult, check_data
    from ofasearch.errors import FormatError

    reporter = show.Reporter(quiet=quiet or as_json)
    try:
        for event in check_data(source):
            if not isinstance(event, CheckResult):
                reporter.update("decoding images", event.done, event.total)
                continue
            reporter.clear()
            wrong = [name for name, right in event.digests.items() if not right]
            if as_json:
                damaged = [{"file": name, "reason": reason} for name, reason in event.damaged]
                show.print_json(
                    {
                        "name": event.name,
                        "images": event.images,
                        "classes": list(event.classes),
                        "images_per_class": list(event.per_class),
                        "sizes": event.sizes,
                        "splits": event.splits,
                        "damaged": damaged,
                        "published_md5": event.digests,
                    }
                )
            else:
                click.echo(show.table(["", event.name], _rows(event)))
                if event.damaged:
                    click.echo("\n" + show.table(["damaged", "why"], list(event.damaged[:SHOWN])))
            if event.damaged or wrong:
                what = [f"{len(event.damaged)} of its {event.images:,} images are damaged"] if event.damaged else []
                what += [f"{name} is not the published file" for name in wrong]
                raise FormatError(f"{source} must be sound, but {' and '.join(what)}; fetch or remove them")
    finally:
        reporter.clear()


def _rows(event: object) -> list[tuple[str, str]]:
    from ofasearch.data.check import CheckResult

    assert isinstance(event, CheckResult)
    sizes = [f"{size} ({count:,})" for size, count in list(event.sizes.items())[:4]]
    more = f" and {len(event.sizes) - 4} other sizes" if len(event.sizes) > 4 else ""
    fewest, most = event.per_class
    rows = [
        ("images", f"{event.images:,}"),
        ("pixels", ", ".join(sizes) + more),
        (
            "classes",
            f"{len(event.classes)}: {', '.join(event.classes[:5])}{', ...' if len(event.classes) > 5 else ''}"
            if event.classes
            else "no labels",
        ),
        ("images per class", f"{fewest:,}" if fewest == most else f"{fewest:,} to {most:,}"),
    ]
    rows += [(f"{name} split", f"{count:,}") for name, count in event.splits.items()]
    rows += [(name, "as published (md5)" if right else "NOT as published (md5)") for name, right in event.digests.items()]
    return [*rows, ("damaged", str(len(event.damaged)) if event.damaged else "none")]
