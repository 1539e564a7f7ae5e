"""`ofasearch latency build`, `validate` and `check`: what measures this machine."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from ofasearch.cli import show
from ofasearch.cli.units import NUMBERS


@click.command()
@click.option("--space", required=True, help="Design space whose layers are measured.")
@click.option("--target", type=click.Choice(["cpu", "cuda"]), default="cpu", show_default=True)
@click.option("--runtime", type=click.Choice(["ort", "torch", "torch-compile"]), default="ort", show_default=True)
@click.option("--precision", type=click.Choice(["fp32", "fp16", "int8"]), default="fp32", show_default=True)
@click.option("--batch", default=1, show_default=True)
@click.option("--threads", default=1, show_default=True)
@click.option("--resolutions", type=NUMBERS, help="Narrow or widen the input sizes, e.g. 160,224.")
@click.option("--fresh", is_flag=True, help="Forget what was measured here before, with this runtime, batch and threads.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="CSV file to write, with a JSON card beside it.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def build(*, space: str, resolutions: tuple[int, ...] | None, fresh: bool, out: Path, quiet: bool, as_json: bool, **options: Any) -> None:
    """Measure this machine and write the table.

    Whole networks are timed and their times shared among their layers; what was measured before is remembered, so run
    again to resume. The check on the last line is made on networks that had no part in the table.
    """
    from ofasearch.deploy.runtime import get_runtime
    from ofasearch.errors import UsageError
    from ofasearch.jobs.latency import build_table
    from ofasearch.latency.machine import load_warning
    from ofasearch.latency.table import LatencyTable, save_table
    from ofasearch.records import check_writable
    from ofasearch.space.families import get_space

    if out.suffix.lower() != ".csv":
        raise UsageError(f"-o must be a CSV file, such as {out.stem or 'table'}.csv, but got '{out.name}'")
    check_writable(out)  # now, not after minutes of measuring
    runtime = get_runtime(options["runtime"], **{name: options[name] for name in ("target", "precision", "batch", "threads")})
    found = get_space(space) if resolutions is None else get_space(space).with_resolutions(resolutions)
    events = build_table(found, runtime, fresh=fresh)
    table = show.measured(events, LatencyTable, f"measuring {options['target']}", quiet=quiet, say=load_warning())
    table = replace(table, name=out.stem)
    save_table(out, table)
    _tell_table(out, table, as_json=as_json)


def _tell_table(out: Path, table: Any, *, as_json: bool) -> None:
    counts = {source: sum(row.source == source for row in table.rows.values()) for source in ("measured", "interpolated")}
    if as_json:
        facts = {name: table.card[name] for name in ("validation", "notes") if name in table.card}
        show.print_json({"table": str(out.absolute()), "rows": counts} | facts | {"device": table.key.device, "runtime": table.key.runtime})
        return
    key, networks = table.key, table.card["networks"]
    rows = [
        ("table", str(out.absolute())),
        ("device", f"{key.device}, {key.runtime}, {key.precision}, batch {key.batch}, threads {key.threads}"),
        ("layers", f"{counts['measured']} measured inside {networks['probes']} networks, {counts['interpolated']} interpolated"),
        *(("note", note) for note in table.card["notes"]),
    ]
    if "validation" in table.card:
        checked = table.card["validation"]
        rows.append(("check", f"on {checked['n']} other networks: {show.agreement(checked)}"))
    click.echo(show.pairs(rows))


@click.command()
@click.argument("table")
@click.option("--nets", default=30, show_default=True, help="Networks to time end to end.")
@click.option("--space", help="Space of the networks.  [default: the one on the table's card]")
@click.option("--seed", default=0, show_default=True, help="Which networks.")
@click.option("--plot", type=click.Path(path_type=Path), help="Scatter plot to write (.svg, .png).  [default: beside the table]")
@click.option("--no-store", is_flag=True, help="Leave the table as it is.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def validate(*, table: str, nets: int, space: str | None, seed: int, plot: Path | None, no_store: bool, quiet: bool, as_json: bool) -> None:
    """Time whole networks that the table has not seen, and compare with what it says.

    The networks are random, spread over the predicted latencies. A correction (slope and offset) fitted on them is stored
    in the table where it predicts them better, each left out in turn.
    """
    from ofasearch.deploy.runtime import runtime_of
    from ofasearch.jobs.latency import Validation, open_table, require_this_machine, space_of_table, validate_table
    from ofasearch.latency.table import save_table
    from ofasearch.records import check_writable
    from ofasearch.report.latency import check_picture, plot_validation
    from ofasearch.space.families import get_space

    found, path = open_table(table)
    picture = plot or (path.with_name(f"{path.stem}-validation.svg") if path is not None else None)
    stored = path is not None and not no_store
    if picture is not None:
        check_picture(picture)
    for file in (path if stored else None, picture):  # now, not after minutes of measuring
        if file is not None:
            check_writable(file)
    design = space_of_table(found, get_space(space) if space else None)
    runtime = runtime_of(found.key)
    require_this_machine(found, runtime)
    events = validate_table(found, design, runtime, nets=nets, seed=seed)
    result = show.measured(events, Validation, "timing networks", quiet=quiet)
    if stored and path is not None:
        save_table(path, result.table)
    if picture is not None:
        title = f"{found.name}: {show.agreement(result.before)}"
        sizes = [blueprint[0].hw_in for blueprint in result.networks]
        plot_validation(result.predicted_ms, result.measured_ms, sizes, picture, title=title)
    _tell_validation(result, stored=stored, picture=picture, as_json=as_json)


def _tell_validation(result: Any, *, stored: bool, picture: Path | None, as_json: bool) -> None:
    correction = result.table.correction
    if as_json:
        record = {**result.before, "after_correction": result.after, "correction": [correction.slope, correction.offset_ms]}
        record |= {"fixed_resolution": {"resolution": result.fixed_resolution, **result.fixed}} if result.fixed else {}
        worst = [{"layer": e.layer, "row_ms": e.row_ms, "seen_ms": e.seen_ms} for e in result.worst]
        nets = [{"predicted_ms": p, "measured_ms": m} for p, m in zip(result.predicted_ms, result.measured_ms, strict=True)]
        record |= {"worst_layers": worst, "networks": nets, "stored": stored, "notes": list(result.notes)}
        show.print_json({key: value for key, value in record.items() if value is not None})
        return
    rows = [("as it was", f"{show.agreement(result.before)}, on {int(result.before['n'])} networks")]
    if result.fixed:
        rows.append(
            (
                f"at {result.fixed_resolution}x{result.fixed_resolution}",
                f"{show.agreement(result.fixed)}, on {int(result.fixed['n'])} networks",
            )
        )
    if result.after:
        line = f"{correction.slope:.4f} x + {correction.offset_ms:.4f} ms: {show.agreement(result.after)} (each left out in turn)"
        rows.append(("corrected", line + ("" if stored else "; not stored")))
    else:
        rows.append(("correction", "a new one would not predict better; the table keeps the one it has"))
    rows += [("plot", str(picture.absolute()))] if picture else []
    rows += [("note", note) for note in result.notes]
    click.echo(show.pairs(rows))
    if result.worst:
        cells = [(e.layer, f"{e.row_ms:.4f}", f"{e.seen_ms:.4f}", f"{e.row_ms - e.seen_ms:+.4f}", str(e.seen)) for e in result.worst]
        click.echo("\n" + show.table(["layers that differ most", "table ms", "seen ms", "difference", "times seen"], cells))


@click.command()
@click.argument("table")
@click.option("--space", help="Space of the network.  [default: the one on the table's card]")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(*, table: str, space: str | None, as_json: bool) -> None:
    """Spot-measure five layers now, and warn when the table is stale. Exit code 1 when it is."""
    from ofasearch.deploy.runtime import runtime_of
    from ofasearch.errors import MismatchError
    from ofasearch.jobs.latency import check_table, open_table, require_this_machine, space_of_table
    from ofasearch.space.families import get_space

    found, _ = open_table(table)
    design = space_of_table(found, get_space(space) if space else None)
    runtime = runtime_of(found.key)
    require_this_machine(found, runtime)
    result = check_table(found, design, runtime)
    if as_json:
        layers = [{"layer": e.layer, "row_ms": e.row_ms, "now_ms": e.seen_ms} for e in result.layers]
        facts: dict[str, Any] = {"stale": result.stale is not None, "why": result.stale, "speed": result.speed, "layers": layers}
        facts |= {"network_ms": result.measured_ms, "network_predicted_ms": result.predicted_ms, "notes": list(result.notes)}
        show.print_json({key: value for key, value in facts.items() if value is not None})
    else:
        cells = [(e.layer, f"{e.row_ms:.4f}", f"{e.seen_ms:.4f}", f"{100 * (e.seen_ms / e.row_ms - 1):+.0f} %") for e in result.layers]
        difference = f"{100 * (result.measured_ms / result.predicted_ms - 1):+.1f} %"
        cells.append(("the whole network", f"{result.predicted_ms:.4f}", f"{result.measured_ms:.4f}", difference))
        click.echo(show.table(["measured now", "table ms", "now ms", "difference"], cells))
        for note in result.notes:
            click.echo(f"note: {note}", err=True)
        if result.stale is None:
            click.echo(f"\nthe table holds: the machine runs at {100 * result.speed:.0f} % of the speed at which it was built")
    if result.stale is not None:
        raise MismatchError(f"table {found.name} is stale: {result.stale}; build it anew with --fresh")
