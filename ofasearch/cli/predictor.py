"""`ofasearch predictor`."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click

from ofasearch.cli import show
from ofasearch.cli.dataset import dataset
from ofasearch.cli.predictor_files import export_predictor, import_predictor, show_predictor
from ofasearch.cli.subnet import answer


@click.group()
def predictor() -> None:
    """Fit, check and use accuracy predictors."""


predictor.add_command(dataset)


@predictor.command()
@click.option("--space", help="Design space of the measured networks.")
@click.option("--pairs", type=click.Path(path_type=Path), multiple=True, help="Measured networks; repeatable, the first sets the scale.")
@click.option("--supernet", help="Instead of --space: the supernet that was measured; without --pairs, its measured members.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="The predictor file to write.")
@click.option("--members", default=5, show_default=True, help="MLPs in the ensemble.")
@click.option("--activation", default="silu", show_default=True, help="silu ranks better; relu can be written in once-for-all's formats.")
@click.option("--steps", type=int, help="Optimiser steps.  [default: by the number of networks]")
@click.option("--note", "notes", multiple=True, help="A sentence for the card, such as where not to trust it; repeatable.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Same seed, same predictor.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", is_flag=True, help="No progress.")
def fit(*, out: Path, as_json: bool, quiet: bool, **options: Any) -> None:
    """Fit an ensemble of the 3-layer MLP and state its error on networks it did not see.

    \b
    ofasearch predictor fit --space ofa-mbv3-w1.0 --pairs measured.csv -o mine.safetensors
    ofasearch predictor fit --supernet cifar10-ofa --pairs labelled.jsonl -o mine.safetensors
    """
    from ofasearch.jobs.predictor import FitRequest, FitResult, fit_predictor
    from ofasearch.predictor import FitConfig

    config = FitConfig(**{name: options.pop(name) for name in ("members", "activation", "steps", "seed")})
    reporter = show.Reporter(quiet=quiet or as_json)
    try:
        for event in fit_predictor(FitRequest(out=out, config=config, **options)):
            if isinstance(event, FitResult):
                reporter.clear()
                show.print_json(event.record) if as_json else click.echo(_fitted(event.record))
            else:
                reporter.update(event.phase, event.done, event.total)
    finally:
        reporter.clear()


def _fitted(record: dict[str, Any]) -> str:
    """A fit for people: the predictor beside simpler models, then what else is known."""
    named = [("ensemble", record["held_out"]), *record["baselines"].items()]
    columns = ("kendall_tau", "spearman", "mae_points", "rmse_points", "bias_points", "regret_points")
    rows = [(name, *(f"{error[column]:.3f}" for column in columns)) for name, error in named]
    headers = [f"on {record['held_out']['n']} held out", "Kendall tau", "Spearman", "MAE (points)", "RMSE", "bias", "top-10 regret"]
    return f"{show.table(headers, rows)}\n\n{show.pairs(list(_facts(record)))}"


def _facts(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    measured = f"{record['pairs']:,} measurements of {record['networks']:,} networks"
    yield "fitted on", f"{measured}; {record['members']} MLPs of 3 x 400, {record['activation']}"
    yield "error bars", f"the 80 % interval holds {100 * record['coverage_80']:.0f} % of held-out networks"
    yield "cloud", f"{100 * record['outside_share']:.1f} % of held-out networks lie outside the fitted ones"
    if "label_noise" in record:
        noise = record["label_noise"]
        yield "label noise", f"{noise['std_points']:.3f} points between measurements of the same network ({noise['networks']} repeated)"
    for name, points in list(record.get("offsets_points", {}).items())[1:]:
        told = (
            f"{points:+.3f} points above the first file"
            if points is not None
            else "offset cannot be told apart from the resolution's effect"
        )
        yield name, told
    if "learning_curve" in record:
        curve = record["learning_curve"]
        points = ", ".join(f"{r:.3f} with {n}" for n, r in zip(curve["n"], curve["rmse_points"], strict=True))
        yield "learning", f"RMSE {points}; {curve['more']} more would take off about {curve['gain_points']:.3f} points"
    for note in record.get("notes", ()):
        yield "note", note
    yield "predictor", record["predictor"]


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


for command in (import_predictor, export_predictor, show_predictor):
    predictor.add_command(command)
