"""`ofasearch replay`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ofasearch.cli import show


@click.command()
@click.argument("run", type=click.Path(path_type=Path))
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def replay(run: Path, *, as_json: bool, quiet: bool) -> None:
    """Repeat the search of a run folder and say whether it has the same answer (exit 0) or what differs (exit 1).

    Nothing is measured: tables of this machine, timings of candidates and evaluations are those of the run.

    \b
    ofasearch replay runs/find-compofa-mbv3-cifar
    """
    from ofasearch.jobs.replay import ReplayResult
    from ofasearch.jobs.replay import replay as events

    reporter = show.Reporter(quiet=quiet or as_json)
    result: ReplayResult | None = None
    try:
        for event in events(run):
            if isinstance(event, ReplayResult):
                result = event
            else:
                reporter.update(event.phase, event.done, event.total, eta=event.eta_seconds)
    finally:
        reporter.clear()
    assert result is not None  # a job ends with its result or raises
    if as_json:
        show.print_json(result.record)
    else:
        click.echo(_told(result.same, result.record))
    result.raise_differences()


def _told(same: bool, record: dict[str, Any]) -> str:
    """The answer for people."""
    if not same:
        return show.pairs([("differs", text) for text in record["differences"]])
    searched = f"{record['evaluations']:,} networks in {record['search_seconds']:.2f} s"
    return show.pairs([("same answer", record["arch_id"]), ("candidates", str(record["candidates"])), ("search", searched)])
