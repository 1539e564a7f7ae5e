"""`ofasearch predictor`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ofasearch.cli import show
from ofasearch.cli.subnet import answer


@click.group()
def predictor() -> None:
    """Fit, check and use accuracy predictors."""


@predictor.command()
@click.option("--space", help="Design space of the measured networks.")
@click.option("--pairs", type=click.Path(path_type=Path), multiple=True, help="Measured networks: JSON lines or DyNAS-T's CSV; repeatable.")
@click.option("--supernet", help="Instead of --pairs: fit on half of this supernet's measured members.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The predictor file to write.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def fit(*, space: str | None, pairs: tuple[Path, ...], supernet: str | None, out: Path, seed: int, as_json: bool) -> None:
    """Fit the 3-layer MLP and state its error on networks it did not see."""
    from ofasearch.jobs import predictor as jobs

    if supernet is not None and not pairs:
        answer(jobs.fit_members(supernet=supernet, out=out, seed=seed), as_json=as_json)
    elif space is not None and pairs and supernet is None:
        answer(jobs.fit_predictor(space=space, pairs=pairs, out=out, seed=seed), as_json=as_json)
    else:
        raise click.UsageError("give --space with --pairs, or --supernet alone")


@predictor.command()
@click.argument("name")
@click.option("--pairs", type=click.Path(path_type=Path), multiple=True, required=True, help="Measured networks; repeatable.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def check(name: str, pairs: tuple[Path, ...], as_json: bool) -> None:
    """Compare a predictor (name or path) with measured networks."""
    from ofasearch.jobs import predictor as jobs

    answer(jobs.check_predictor(name, pairs), as_json=as_json)


@predictor.command()
@click.argument("name")
@click.argument("subnet")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def predict(name: str, subnet: str, as_json: bool) -> None:
    """Predicted top-1 of SUBNET (arch id or JSON with ks, e, d, r)."""
    from ofasearch.jobs import predictor as jobs

    answer(jobs.predict(name, subnet), as_json=as_json)


@predictor.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
def list_predictors(as_json: bool) -> None:
    """Shipped predictors with their stated error."""
    from ofasearch import zoo

    found: dict[str, Any] = {name: zoo.get_predictor(name) for name in zoo.predictor_names()}
    if as_json:
        show.print_json({"predictors": [{"name": n, "space": p.space, "held_out": p.card.get("held_out")} for n, p in found.items()]})
        return
    rows = []
    for name, p in found.items():
        error = p.card.get("held_out", {})
        rows.append((name, p.space, f"{error.get('kendall_tau', float('nan')):.3f}", f"{error.get('mae_points', float('nan')):.3f}"))
    click.echo(show.table(["predictor", "space", "Kendall tau", "MAE (points)"], rows))
