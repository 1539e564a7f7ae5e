"""`ofasearch latency`."""

from __future__ import annotations

from pathlib import Path

import click

from ofasearch.cli import show
from ofasearch.cli.explain import explain
from ofasearch.cli.latency_estimate import estimate, transfer
from ofasearch.cli.latency_files import diff_tables, export_table, import_table, list_tables, merge_tables, show_table


@click.group()
def latency() -> None:
    """Latency tables."""


for command in (list_tables, show_table, import_table, export_table, merge_tables, diff_tables, explain, estimate, transfer):
    latency.add_command(command)


@latency.command()
@click.option("--space", required=True, help="Design space whose layers are measured.")
@click.option("--target", type=click.Choice(["cpu"]), default="cpu", show_default=True)
@click.option("--batch", default=1, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--resolutions", help="Narrow the input sizes, e.g. 160,224.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="CSV file to write, with a JSON card beside it.")
@click.option("--quiet", is_flag=True, help="No progress.")
def build(*, space: str, target: str, batch: int, threads: int, resolutions: str | None, out: Path, quiet: bool) -> None:
    """Measure this machine and write the table. What was measured before is remembered; run again to resume."""
    from ofasearch.cli.units import NUMBERS
    from ofasearch.jobs.latency import cpu_table
    from ofasearch.latency.measure import check_run, load_warning
    from ofasearch.latency.table import LatencyTable, save_table
    from ofasearch.space.families import get_space

    check_run(batch=batch, threads=threads)
    found = get_space(space)
    if resolutions:
        found = found.with_resolutions(NUMBERS.convert(resolutions, None, None))
    reporter = show.Reporter(quiet=quiet)
    warning = load_warning()
    if warning:
        reporter.say(warning)
    try:
        for event in cpu_table(found, batch=batch, threads=threads):
            if isinstance(event, LatencyTable):
                reporter.clear()
                save_table(out, event)
                v = event.card["validation"]
                error = f"bias {v['bias_ms']:+.4f} ms, MAPE {100 * v['mape']:.1f} %, Kendall tau {v['kendall_tau']:.3f}"
                rows = [
                    ("table", str(out.absolute())),
                    ("device", f"{event.key.device}, {event.key.runtime}, batch {batch}, threads {threads}"),
                    ("layers", str(len(event.rows))),
                    ("check", f"on {v['n']} whole networks: {error}"),
                ]
                click.echo(show.pairs(rows))
            else:
                reporter.update(f"measuring {target}: {event.what}", event.done, event.total, eta=event.eta_seconds)
    finally:
        reporter.clear()
