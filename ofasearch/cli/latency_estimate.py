"""`ofasearch latency estimate` and `transfer`: tables of devices that are not here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ofasearch.cli import show
from ofasearch.cli.units import LATENCY


@click.command()
@click.option("--device", required=True, help="A known device (a wrong name lists them), or any name with its peaks.")
@click.option("--space", "spaces", multiple=True, help="Design space whose layers are estimated; repeatable.  [default: once-for-all's]")
@click.option("--batch", default=1, show_default=True, help="Images per run.")
@click.option("--calibrate", "timed", multiple=True, metavar="SUBNET=22ms", help="A network timed on the device at --batch; repeatable.")
@click.option("--peak-tflops", type=float, help="Published single-precision peak of a device that is not known.")
@click.option("--bandwidth", type=float, help="Published memory bandwidth of a device that is not known, GB/s.")
@click.option("--like", help="Whose fitted constants to take: v100 for GPUs, tx2 for embedded GPUs, xeon, pixel1 for ARM cores.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="CSV table to write, with a JSON card beside it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def estimate(*, timed: tuple[str, ...], bandwidth: float | None, as_json: bool, **options: Any) -> None:
    """Estimate a device's latencies from its published peaks; measured networks (--calibrate) take its bias away.

    SUBNET is an arch id, JSON with ks, e, d, r, a subnet.pt, or a net.config with its run.config.

    \b
    ofasearch latency estimate --device rtx2080 --batch 64
    ofasearch latency estimate --device rtx2080 --batch 64 --calibrate path/to/net.config=22ms -o rtx2080.csv
    ofasearch latency estimate --device mycard --peak-tflops 4.1 --bandwidth 320
    """
    from ofasearch.jobs.estimates import EstimateRequest, Timed
    from ofasearch.jobs.estimates import estimate as job

    networks = tuple(Timed(subnet=subnet, latency_ms=ms) for subnet, ms in map(_timed, timed))
    record = job(EstimateRequest(timed=networks, bandwidth_gbs=bandwidth, **options))
    if as_json:
        show.print_json(record)
    else:
        click.echo(_report(record))


def _timed(text: str) -> tuple[str, float]:
    """`SUBNET=22ms` apart; a path may hold an equals sign, a latency does not."""
    subnet, sign, latency = text.rpartition("=")
    if not sign or not subnet:
        raise click.BadParameter(f"must be a network and its latency, such as net.config=22ms, but got '{text[:80]}'")
    return subnet, LATENCY.convert(latency, None, None)


def _report(record: dict[str, Any]) -> str:
    """The card for people, and the fastest and slowest network of each space."""
    rows = [
        ("device", f"{record['device']}, batch {record['batch']}, {record['precision']}"),
        ("peaks", f"{record['peak_tflops']:g} TFLOP/s, {record['bandwidth_gbs']:g} GB/s: {record['origin']}"),
        ("constants", record["constants"]),
    ]
    for net in record.get("calibration", {}).get("networks", ()):
        rows.append(("timed", f"{net['network']}: {net['measured_ms']:.4g} ms, estimated {net['estimated_ms']:.4g} ms"))
    if "calibration" in record:
        found = record["calibration"]
        rows.append(("correction", f"{found['slope']:.4g} * estimate {found['offset_ms']:+.4g} ms"))
    rows += [("error", record["error"]), ("better", record["advice"]), *(("note", note) for note in record["notes"])]
    if "table" in record:
        rows.append(("table", f"{record['table']}, {record['layers']} layers, all estimated"))
    nets = [
        (s["space"], end, s[end]["arch_id"], f"{s[end]['latency_ms']:.4g} ms") for s in record["spaces"] for end in ("fastest", "slowest")
    ]
    return show.pairs(rows) + "\n\n" + show.table(["space", "", "network", "estimated"], nets)


@click.command()
@click.option("--from", "known", required=True, help="Table of another device: a name, a CSV file, once-for-all YAML, or a known card.")
@click.option("--probes", type=click.Path(path_type=Path), help="Table of the few layers that were measured.")
@click.option("--choose", type=int, help="Instead name so many layers that are worth measuring; 20 are enough.")
@click.option("--space", help="Design space whose layers are estimated, where --from is a known card.")
@click.option("--batch", default=1, show_default=True, help="Images per run, with --choose.")
@click.option("-o", "--out", type=click.Path(path_type=Path), help="CSV table to write, with a JSON card beside it.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def transfer(
    *, known: str, probes: Path | None, choose: int | None, space: str | None, batch: int, out: Path | None, as_json: bool
) -> None:
    """Fill a device's table from a few measured layers and the table of another device.

    Measured layers stay; the others are interpolated, and the error is stated by leaving measured ones out.

    \b
    ofasearch latency transfer --from v100 --space ofa-mbv3-w1.2 --choose 20
    ofasearch latency transfer --from known.csv --probes few.csv -o full.csv
    """
    from ofasearch.jobs.estimates import fill_in, probes_to_measure

    if choose is not None and (probes, out) == (None, None):
        record = probes_to_measure(known=known, n=choose, space=space, batch=batch)
        rows = [(layer["layer"], str(layer.get("resolution", "any"))) for layer in record["layers"]]
        text = show.table(["layer", "network input"], rows)
    elif choose is None and probes is not None and out is not None:
        record = fill_in(known=known, probes=probes, out=out, space=space)
        counts = ", ".join(f"{n} {source}" for source, n in record["rows"].items())
        text = show.pairs([("table", record["table"]), ("device", record["device"]), ("rows", counts), ("error", record["error"])])
    else:
        raise click.UsageError("either --choose, or --probes and -o, must be given")
    if as_json:
        show.print_json(record)
    else:
        click.echo(text)
