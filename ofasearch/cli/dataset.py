"""`ofasearch predictor dataset`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ofasearch.cli import show


@click.command()
@click.option("--supernet", required=True, help="Whose networks to label: a name or a path.")
@click.option("--data", required=True, help="The data set it was trained on.")
@click.option("-n", "networks", type=int, default=1000, show_default=True, help="Networks to draw: half uniform, half spread over MACs.")
@click.option("--images", type=int, help="Evaluate on the first so many validation images.  [default: all]")
@click.option("--calibration-images", type=int, help="Recalibrate batch norm on so many images.  [default: all, at most 2,000]")
@click.option(
    "--rounds", type=int, default=0, show_default=True, help="Then fit, label what the fit finds promising or is unsure of, again."
)
@click.option("--per-round", type=int, default=100, show_default=True, help="Networks per round: half promising, half uncertain.")
@click.option("--seed", type=int, default=0, show_default=True, help="Same seed, same networks.")
@click.option(
    "-o",
    "--out",
    type=click.Path(path_type=Path),
    help="To write: .jsonl, .csv (DyNAS-T), .dict or a folder (once-for-all).  [default: runs/dataset-NAME/pairs.jsonl]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--quiet", is_flag=True, help="No progress.")
def dataset(as_json: bool, quiet: bool, **options: Any) -> None:
    """Label networks of a supernet for an accuracy predictor. Run again to resume: scores are remembered.

    Each network is extracted, its batch norm recalibrated, and evaluated on the validation split. A card beside the
    pairs says of which weights and images they speak.

    Several processes share the work: torchrun --nproc-per-node 4 -m ofasearch predictor dataset ...
    """
    from ofasearch.jobs.dataset import DatasetRequest, DatasetResult, label_networks

    reporter = show.Reporter(quiet=quiet or as_json)
    try:
        for event in label_networks(DatasetRequest(**options)):
            if isinstance(event, DatasetResult):
                reporter.clear()
                show.print_json(event.record) if as_json else click.echo(_told(event.record))
            else:
                note = f"best {100 * event.best_top1:.2f} %" if event.best_top1 is not None else ""
                reporter.update(event.phase, event.done, event.total, eta=event.eta_seconds, note=note)
    finally:
        reporter.clear()


def _told(record: dict[str, Any]) -> str:
    """What was labelled; how far predictions were off in each round, before they knew."""
    on, calibration = (
        f"{record['images']:,} of {record['split']}",
        f"{record['calibration_images']:,} in batches of {record['calibration_batch']}",
    )
    rows = [
        ("networks", f"{record['networks']:,} of {record['space']}, {record['evaluated_now']:,} measured now"),
        ("images", f"{on}; batch norm on {calibration}"),
        ("top-1", f"{100 * record['lowest_top1']:.2f} to {100 * record['best_top1']:.2f} %"),
        ("best", record["best"]),
        *(("note", note) for note in record["notes"]),
        *record["files"].items(),
    ]
    return "\n\n".join([*([_rounds(record["rounds"])] if record["rounds"] else []), show.pairs(rows)])


def _rounds(rounds: list[dict[str, Any]]) -> str:
    headers = ["round", "fitted on", "new", "error (MAE)", "of promising", "of uncertain", "bias", "Kendall tau", "best"]
    rows = []
    for r in rounds:
        errors = [f"{r[part]['mae_points']:.3f}" if part in r else "" for part in ("all", "promising", "uncertain")]
        tau = f"{r['all']['kendall_tau']:.3f}" if "kendall_tau" in r["all"] else ""
        counts = [str(r["round"]), f"{r['fitted_on']:,}", str(r["all"]["networks"])]
        rows.append((*counts, *errors, f"{r['all']['bias_points']:+.3f}", tau, f"{100 * r['best_top1']:.2f} %"))
    return show.table(headers, rows) + "\n(errors in percent points, of predictions made before the new networks were fitted)"
