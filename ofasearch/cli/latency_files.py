"""`ofasearch latency list / show / import / export / merge / diff`: tables as files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ofasearch.cli import show
from ofasearch.cli.subnet import answer

JSON = click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
TABLE_HELP = "T is a name from `latency list`, a CSV file, or once-for-all YAML (a file or a folder)."
SPACE = click.option("--space", help="Design space for whose layers a known card is estimated.")


@click.command("list")
@JSON
def list_tables(as_json: bool) -> None:
    """Tables by name: shipped, your own, and cards that can be estimated."""
    from ofasearch.jobs import tables as jobs

    found = jobs.list_tables()
    if as_json:
        show.print_json(found)
        return
    headers = ["table", "device", "runtime", "precision", "batch", "threads", "rows", "latencies", "MAPE", "tau", "date"]
    click.echo(show.table(headers, [_line(record) for record in found["tables"]]))
    for record in found["damaged"]:
        click.echo(show.plain(f"cannot be used: {record['error']}"), err=True)


def _line(record: dict[str, Any]) -> list[str]:
    cells = [record["name"], record["device"], *(str(record.get(k, "")) for k in ("runtime", "precision", "batch", "threads", "rows"))]
    mape, tau = record.get("mape"), record.get("kendall_tau")
    return [
        *cells,
        record["source"],
        "" if mape is None else f"{100 * mape:.1f} %",
        "" if tau is None else f"{tau:.3f}",
        record.get("date", "")[:10],
    ]


@click.command("show", help=f"What table T says: device, card, rows.\n\n{TABLE_HELP}")
@click.argument("table", metavar="T")
@click.option("--layers", is_flag=True, help="Every row.")
@click.option("--resolution", type=int, help="Only rows that networks of this input can use.")
@SPACE
@JSON
def show_table(*, table: str, layers: bool, resolution: int | None, space: str | None, as_json: bool) -> None:
    """`latency show`."""
    from ofasearch.jobs import tables as jobs

    found = jobs.show_table(table, layers=layers, resolution=resolution, space=space)
    if as_json:
        show.print_json(found)
        return
    if "rows" not in found:
        click.echo(show.pairs([("table", found.pop("name")), *(pair for key, value in found.items() for pair in show.lines(key, value))]))
        return
    click.echo(show.pairs(_facts(found)))
    kinds = [(k["kind"], str(k["rows"]), *(_ms(k[f"{q}_ms"]) for q in ("fastest", "median", "slowest"))) for k in found["kinds"]]
    click.echo("\n" + show.table(["kind", "rows", "fastest ms", "median ms", "slowest ms"], kinds))
    rows = found["layers"] if layers else found["slowest"]
    lines = [(r["layer"], str(r.get("resolution", "any")), _ms(r["latency_ms"]), _ms(r["p90_ms"]), str(r["n"]), r["source"]) for r in rows]
    click.echo("\n" + show.table(["layer" if layers else "slowest layers", "input", "ms", "p90 ms", "runs", "source"], lines))


def _ms(value: float) -> str:
    return f"{value:.4g}"


def _facts(found: dict[str, Any]) -> list[tuple[str, str]]:
    correction, resolutions = found["correction"], ",".join(map(str, found["resolutions"]))
    by_source = ", ".join(f"{n} {source}" for source, n in found["rows_by_source"].items())
    line = f"{correction['slope']:.6g} * sum of rows {correction['offset_ms']:+.6g} ms, fitted on {correction['nets']} networks"
    rows = [
        ("table", found["name"]),
        *((name, str(found[name])) for name in ("device", "runtime", "precision", "batch", "threads")),
        ("latencies", found["source"]),
        ("rows", by_source),
        ("input sizes", (resolutions or "none told") + (" (rows tied to one each)" if found["tied_to_resolution"] else "")),
        ("correction", line if correction != {"slope": 1.0, "offset_ms": 0.0, "nets": 0} else "none"),
    ]
    for name, value in found["card"].items():
        rows += show.lines(name.replace("_", " "), value)
    return rows


@click.command("import")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("-o", "--out", type=click.Path(path_type=Path), help="CSV file to write, with a JSON card beside it.")
@click.option("--kit", type=click.Path(path_type=Path), help="The kit whose results these are.  [default: the folder they lie in]")
@click.option("--name", help="Instead of -o: keep the table among your own, to be used by --target NAME.")
@click.option("--device", help="What the latencies are of; the file or folder's name unless given.")
@click.option("--runtime", help="What they were measured with.")
@click.option("--precision", help="What they were measured in.  [default: fp32]")
@click.option("--batch", type=int, help="Images per run.  [default: 1]")
@click.option("--threads", type=int, help="[default: 1]")
@JSON
def import_table(*, path: Path, kit: Path | None, out: Path | None, name: str | None, as_json: bool, **known: Any) -> None:
    """Take in latencies of another form.

    Known are the results of a kit (its folder or results.jsonl), once-for-all YAML (a file or a folder), and a CSV with
    its card from elsewhere.
    """
    from ofasearch.jobs import tables as jobs

    record = jobs.import_table(path, kit=kit, out=out, name=name, known=jobs.KeyChange(**known))
    if as_json:
        show.print_json(record)
        return
    notes, validation = record.pop("notes", []), record.pop("validation", None)
    if validation is not None:
        record["check"] = f"on {validation['n']} other networks: {show.agreement(validation)}"
    answer(record, as_json=False)
    for note in notes:
        click.echo(show.plain(f"note: {note}"))


@click.command("export", help=f"Write table T for other programs: once-for-all YAML, one file per input size.\n\n{TABLE_HELP}")
@click.argument("table", metavar="T")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Folder to write.")
@click.option("--format", "form", type=click.Choice(["ofa"]), default="ofa", show_default=True)
@click.option("--space", help="Only the layers of this design space.  [default: all rows]")
@JSON
def export_table(*, table: str, out: Path, form: str, space: str | None, as_json: bool) -> None:
    """`latency export`."""
    from ofasearch.jobs import tables as jobs

    record = jobs.export_table(table, out, space=space)
    answer(record if as_json else {key: value for key, value in record.items() if key != "files"}, as_json=as_json)


@click.command("merge", help=f"Make one table of several of the same device, runtime, precision, batch and threads.\n\n{TABLE_HELP}")
@click.argument("tables", nargs=-1, metavar="T T ...", required=True)
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="CSV file to write.")
@JSON
def merge_tables(*, tables: tuple[str, ...], out: Path, as_json: bool) -> None:
    """`latency merge`."""
    from ofasearch.jobs import tables as jobs

    answer(jobs.merge_tables(tables, out), as_json=as_json)


@click.command(
    "diff", help=f"Compare the rows of tables A and B, as they stand before any correction.\n\n{TABLE_HELP.replace('T is', 'Each is')}"
)
@click.argument("first", metavar="A")
@click.argument("second", metavar="B")
@SPACE
@JSON
def diff_tables(*, first: str, second: str, space: str | None, as_json: bool) -> None:
    """`latency diff`."""
    from ofasearch.jobs import tables as jobs

    found = jobs.diff_tables(first, second, space=space)
    if as_json:
        show.print_json(found)
        return
    a, b = found["first"], found["second"]
    rows = [(side, f"{t['name']} ({t['device']}, {t['runtime']}, batch {t['batch']}, {t['source']})") for side, t in (("A", a), ("B", b))]
    rows.append(("layers in both", f"{found['common']}; only in A {len(found['only_first'])}, only in B {len(found['only_second'])}"))
    if "median_ratio" in found:
        rows.append(("B / A", f"median {found['median_ratio']:.4g}, p10 {found['p10_ratio']:.4g}, p90 {found['p90_ratio']:.4g}"))
    if "kendall_tau" in found:
        rows.append(("order", f"Kendall tau {found['kendall_tau']:.3f}"))
    click.echo(show.pairs(rows))
    if found["most"]:
        lines = [
            (p["layer"], str(p.get("resolution", "any")), _ms(p["first_ms"]), _ms(p["second_ms"]), f"{p['ratio']:.4g}")
            for p in found["most"]
        ]
        click.echo("\n" + show.table(["layers that differ most", "input", "A ms", "B ms", "B / A"], lines))
    for side in ("first", "second"):
        alone = found[f"only_{side}"]
        if alone:
            more = f" and {len(alone) - 3} more" if len(alone) > 3 else ""
            click.echo("\n" + show.plain(f"only in {'A' if side == 'first' else 'B'}: {', '.join(alone[:3])}{more}"))
