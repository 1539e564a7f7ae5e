"""`ofasearch train`."""

from __future__ import annotations

from pathlib import Path

import click

from ofasearch.cli import show


@click.command()
@click.option("--space", required=True, help="Design space, see `ofasearch space list`.")
@click.option("--data", required=True, help="Data set: a folder of Parquet files, a Parquet file, or digits.")
@click.option("--strategy", type=click.Choice(["deps"]), default="deps", show_default=True)
@click.option("--epochs", type=int, required=True)
@click.option("--batch-size", default=128, show_default=True)
@click.option("--lr", default=0.1, show_default=True, help="Peak learning rate.")
@click.option("--weight-decay", default=3e-4, show_default=True)
@click.option("--label-smoothing", default=0.0, show_default=True)
@click.option("--subnets", default=2, show_default=True, help="Networks per step once shrinking has begun, the full one included.")
@click.option("--warmup-share", default=0.5, show_default=True, help="Share of the run that trains the full model alone.")
@click.option("--smallest", is_flag=True, help="Train the smallest network in every such step, as one of --subnets.")
@click.option(
    "--init", type=click.Path(path_type=Path), help="Start from the weights of this supernet, or unfinished run, of the same space."
)
@click.option("--evaluate-every", default=4, show_default=True, help="Epochs between validations of three networks; 0 for the end only.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--out", type=click.Path(path_type=Path), required=True, help="Run folder.")
@click.option("--resume", is_flag=True, help="Continue the run in --out, bit for bit on CPU.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@click.option("--quiet", is_flag=True, help="No progress.")
def train(
    *, space: str, data: str, strategy: str, epochs: int, batch_size: int, lr: float, weight_decay: float, label_smoothing: float,
    subnets: int, warmup_share: float, smallest: bool, init: Path | None,
    evaluate_every: int, seed: int, out: Path, resume: bool, as_json: bool, quiet: bool,
) -> None:  # fmt: skip
    """Train a supernet. The run folder holds checkpoint, log and at the end supernet.safetensors."""
    from ofasearch.jobs.train import TrainRequest, TrainResult
    from ofasearch.jobs.train import train as events
    from ofasearch.train.loop import TrainConfig

    config = TrainConfig(
        epochs=epochs,
        batch_size=batch_size,
        lr=lr,
        weight_decay=weight_decay,
        label_smoothing=label_smoothing,
        seed=seed,
        warmup_epochs=min(1.0, epochs / 10),
    )
    options = {"subnets": subnets, "warmup_share": warmup_share} | ({"smallest": True} if smallest else {})
    request = TrainRequest(
        space=space,
        data=data,
        out=out,
        strategy=strategy,
        options=options,
        config=config,
        init=init,
        resume=resume,
        evaluate_every=evaluate_every,
    )
    reporter = show.Reporter(quiet=quiet or as_json)
    scores: dict[str, float] = {}
    try:
        for event in events(request):
            if isinstance(event, TrainResult):
                reporter.clear()
                record = {"supernet": str(event.supernet), "digest": event.digest, "validation_top1": event.top1, "seconds": event.seconds}
                show.print_json(record) if as_json else click.echo(_report(event))
                continue
            report = event.report
            note = f"epoch {report.epoch}  loss {report.loss:.3f}  {event.images_per_second:.0f} images/s"
            reporter.update("training", report.step, report.steps, eta=event.eta_seconds, note=note)
            if event.top1 != scores:
                scores = event.top1
                shown = ", ".join(f"{name} {100 * value:.2f} %" for name, value in scores.items())
                reporter.say(f"epoch {report.epoch}: validation top-1 {shown}")
    finally:
        reporter.clear()


def _report(result: object) -> str:
    from ofasearch.jobs.train import TrainResult

    assert isinstance(result, TrainResult)
    rows = [(name, f"{100 * value:.2f} %") for name, value in result.top1.items()]
    text = show.table(["network", "validation top-1"], rows)
    return f"{text}\n\nsupernet  {result.supernet}\ntime      {show.duration(result.seconds)}"
