"""`ofasearch space`."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import Any

import click

from ofasearch.cli import show
from ofasearch.cli.subnet import answer


@click.group()
def space() -> None:
    """Design spaces: list them, show one, sample networks, price one."""


@space.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_spaces(as_json: bool) -> None:
    """All spaces with their size per resolution."""
    from ofasearch.space.families import DESIGNS, get_space

    spaces = [get_space(name) for name in DESIGNS]
    if as_json:
        show.print_json({"spaces": [{"name": s.name, "size": str(s.size), "resolutions": list(s.resolutions)} for s in spaces]})
        return
    rows = [(s.name, f"{s.size:.3g}" if s.size > 1e6 else str(s.size), _sizes(s.resolutions)) for s in spaces]
    click.echo(show.table(["space", "networks", "resolutions"], rows))


def _sizes(resolutions: Sequence[int]) -> str:
    """Input sizes in few letters: `128..224 by 4`."""
    steps = {b - a for a, b in pairwise(resolutions)}
    if len(resolutions) < 4 or len(steps) > 1:
        return ", ".join(map(str, resolutions))
    return f"{resolutions[0]}..{resolutions[-1]} by {steps.pop()}"


@space.command("show")
@click.argument("name")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def show_space(name: str, as_json: bool) -> None:
    """The choices of a space, stage by stage, and what its networks cost. NAME may be a .json file of your own."""
    from ofasearch.jobs.space import show as job

    found = job(name)
    if as_json:
        show.print_json(found)
        return
    facts = [
        ("space", found["space"]),
        ("networks", f"{int(found['size']):,} per resolution"),
        ("resolutions", _sizes(found["resolutions"])),
    ]
    click.echo(show.pairs([*facts, ("classes", str(found["classes"])), ("part of", found["parent"] or "-")]) + "\n")
    rows = [
        (end, f"{c['macs'] / 1e6:,.1f}", f"{c['params'] / 1e6:,.2f}", f"{c['activation_bytes'] / 2**20:,.2f}")
        for end, c in found["networks"].items()
    ]
    click.echo(show.table(["network", "M MACs", "M parameters", "MiB of activations"], rows) + "\n")
    click.echo(show.table(["stage", *_STAGE], [(stage["stage"], *(_cell(stage.get(key)) for key in _STAGE)) for stage in found["stages"]]))


_STAGE = ("channels", "stride", "activation", "squeeze_excite", "depths", "kernels", "expands", "widths")


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return "yes" if value else "-"
    return " ".join(f"{part:g}" for part in value) if isinstance(value, list) else "-" if value is None else str(value)


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
