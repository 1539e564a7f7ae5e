"""`ofasearch space`."""

from __future__ import annotations

import click

from ofasearch.cli import show
from ofasearch.cli.subnet import answer


@click.group()
def space() -> None:
    """Design spaces: list them, sample networks, price one."""


@space.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_spaces(as_json: bool) -> None:
    """All spaces with their size per resolution."""
    from ofasearch.space.families import DESIGNS, get_space

    spaces = [get_space(name) for name in DESIGNS]
    if as_json:
        show.print_json({"spaces": [{"name": s.name, "size": str(s.size), "resolutions": list(s.resolutions)} for s in spaces]})
        return
    rows = [(s.name, f"{s.size:.3g}" if s.size > 1e6 else str(s.size), ",".join(map(str, s.resolutions))) for s in spaces]
    click.echo(show.table(["space", "networks", "resolutions"], rows))


@space.command()
@click.argument("name")
@click.option("-n", default=5, show_default=True, help="Networks.")
@click.option("--seed", default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def sample(name: str, n: int, seed: int, as_json: bool) -> None:
    """Uniform random networks with their costs."""
    from ofasearch.jobs.subnet import sample as job

    found = job(name, n, seed)
    if as_json:
        show.print_json({"subnets": found})
        return
    rows = [(r["arch_id"], f"{r['macs'] / 1e6:.2f}", f"{r['params'] / 1e6:.3f}") for r in found]
    click.echo(show.table(["architecture", "M MACs", "M parameters"], rows))


@space.command()
@click.argument("subnet")
@click.option("--space", "name", help="Space of a subnet that is given as JSON.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def cost(subnet: str, name: str | None, as_json: bool) -> None:
    """MACs, parameters and peak activation memory of SUBNET (arch id, JSON with ks, e, d, r, subnet.pt, or net.config)."""
    from ofasearch.jobs.subnet import cost as job

    answer(job(subnet, name), as_json=as_json)
