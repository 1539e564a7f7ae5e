"""`ofasearch latency kit`: what measures devices on which this package cannot run."""

from __future__ import annotations

from pathlib import Path

import click

from ofasearch.cli import show
from ofasearch.cli.units import NUMBERS


@click.command()
@click.option("--space", required=True, help="Design space whose layers are to be measured.")
@click.option("--resolutions", type=NUMBERS, help="Narrow or widen the input sizes, e.g. 160,224.")
@click.option("--batch", default=1, show_default=True)
@click.option("--threads", default=1, show_default=True, help="What the script uses unless told otherwise.")
@click.option("-o", "--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder to write.")
@click.option("--quiet", is_flag=True, help="No progress.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def kit(*, space: str, resolutions: tuple[int, ...] | None, batch: int, threads: int, out: Path, quiet: bool, as_json: bool) -> None:
    """Write a folder that measures another device: small ONNX networks, and a script that needs only numpy and onnxruntime.

    For telephones, boards and whatever else runs Python but not this package. What the script writes there,
    `ofasearch latency import` makes a table of, as good as one built on the device itself.
    """
    from ofasearch.deploy.kit_measure import RESULTS
    from ofasearch.jobs.kit import SCRIPT, Kit, write_kit
    from ofasearch.space.families import get_space

    found = get_space(space) if resolutions is None else get_space(space).with_resolutions(resolutions)
    reporter, written = show.Reporter(quiet=quiet), None
    try:
        for event in write_kit(found, out, batch=batch, threads=threads):
            if isinstance(event, Kit):
                written = event
            else:
                reporter.update("writing networks", event.done, event.total)
    finally:
        reporter.clear()
    assert written is not None  # the job ends with it or raises
    folder = written.folder.absolute()
    if as_json:
        show.print_json({"kit": str(folder), "networks": written.networks, "bytes": written.total_bytes})
        return
    parts = written.networks
    networks = f"{sum(parts.values())}: {parts['probes']} hold every layer, {parts['fit']} refine, {parts['check']} check"
    click.echo(show.pairs([("kit", str(folder)), ("size", f"{written.total_bytes / 1e6:.1f} MB"), ("networks", networks)]))
    click.echo(f"""
On the device, Python 3.8 or newer with numpy and onnxruntime (1.12 or newer) does the rest:

  1. copy   scp -r {out} DEVICE:kit        (or adb push, or a memory stick)
  2. run    python3 kit/{SCRIPT}           (on the device; Ctrl-C stops it, the next run goes on; --help shows more)
  3. import scp DEVICE:kit/{RESULTS} {out}/
            ofasearch latency import {out} --name DEVICE

Then `ofasearch find --target DEVICE` searches for it.""")
