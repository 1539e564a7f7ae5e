"""`ofasearch finetune`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ofasearch.cli import show
from ofasearch.cli.training import Teller, machine_options, recipe, recipe_options

if TYPE_CHECKING:
    from ofasearch.jobs.finetune import FinetuneRequest

EPOCHS, RATE = 25, 0.003  # as in the job, which needs torch


@click.command()
@click.argument("subnet")
@click.option("--data", required=True, help="Data set: Parquet, a CIFAR archive, idx files, an image folder, or digits.")
@click.option("-o", "--out", type=click.Path(path_type=Path), required=True, help="Run folder: a new one, or with --resume a former.")
@click.option("--supernet", help="Supernet of an architecture.  [default: cifar10-compofa]")
@click.option(
    "--epochs", type=click.IntRange(1, 100_000), default=EPOCHS, show_default=True, help="Published networks were tuned for 25 or 75."
)
@click.option("--teacher", default="none", show_default=True, help="Learn also from the largest network of a supernet, or a subnet.pt.")
@click.option(
    "--focal", default=0.0, show_default=True, help="Weight of focal distillation from the untuned network: fewer images flip.", type=float
)
@click.option("--ref", help="Another network (subnet.pt, ONNX file, arch id) that both are compared with.")
@click.option(
    "--evaluate-every", type=click.IntRange(1), default=1, show_default=True, help="Epochs between validations; the best is kept."
)
@recipe_options(lr=RATE, schedule="cosine", warmup="none")
@machine_options
@click.option("--resume", is_flag=True, help="Continue the run in --out, bit for bit on CPU.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def finetune(as_json: bool, quiet: bool, **given: Any) -> None:
    """Train a subnet for a few epochs more, alone, and compare before and after.

    SUBNET is a subnet.pt, or an arch id. The folder gets subnet.pt, subnet.onnx (proved), result.json and the log; the
    epoch with the highest validation top-1 is kept. Several GPUs: torchrun --nproc-per-node 8 -m ofasearch finetune ...

    \b
    ofasearch finetune runs/found/subnet.pt --data CIFAR10_DIR -o runs/tuned
    ofasearch finetune runs/found/subnet.pt --data CIFAR10_DIR -o runs/tuned --epochs 75 --teacher cifar10-compofa
    """
    _run(_request(given), as_json, quiet)


def _request(given: Mapping[str, Any]) -> FinetuneRequest:
    """The request that the options describe."""
    from ofasearch.jobs.finetune import FinetuneRequest
    from ofasearch.jobs.train_setup import WORKERS
    from ofasearch.train.loop import TrainConfig

    same = ("subnet", "data", "out", "supernet", "focal", "ref", "evaluate_every", "device", "skip_unreadable", "resume")
    return FinetuneRequest(
        **{name: given[name] for name in same},
        config=TrainConfig(**{"warmup_epochs": 0.0} | recipe(given), epochs=given["epochs"]),
        teacher=given["teacher"] if given["teacher"] != "none" else None,
        workers=given["workers"] or WORKERS,
    )


def _run(request: FinetuneRequest, as_json: bool, quiet: bool) -> None:
    from ofasearch.jobs.classifier import PredictionProgress
    from ofasearch.jobs.finetune import FinetuneResult
    from ofasearch.jobs.finetune import finetune as events
    from ofasearch.ranks import speaks

    reporter = show.Reporter(quiet=quiet or as_json or not speaks())
    teller = Teller(reporter)
    try:
        for event in events(request):
            if isinstance(event, FinetuneResult):
                reporter.clear()
                if speaks():
                    show.print_json(event.record) if as_json else click.echo(_told(event.record))
            elif isinstance(event, PredictionProgress):
                reporter.update(event.phase, event.done, event.total, eta=event.eta_seconds)
            else:
                teller.tell(event)
    finally:
        reporter.clear()


def _told(record: Mapping[str, Any]) -> str:
    """The answer for people."""
    from ofasearch.report.finetune import accuracy_table, facts

    return "\n\n".join([show.table(*accuracy_table(record)), show.pairs(facts(record))])
