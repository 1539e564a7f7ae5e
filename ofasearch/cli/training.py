"""What the commands that train share: the options of the recipe, and how a run is shown while it goes on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ofasearch.cli import show

if TYPE_CHECKING:
    from ofasearch.jobs.train import TrainNote, TrainProgress

Command = TypeVar("Command", bound=Callable[..., Any])

FIELDS = (  # of `TrainConfig`, whose options have their names
    "batch_size", "accumulate", "optimizer", "lr", "momentum", "weight_decay", "label_smoothing", "dropout", "jitter",
    "auto_augment", "erase", "precision", "sync_bn", "seed",
)  # fmt: skip
UNSAID = ("schedule", "warmup_epochs")  # options that may be left to the method


def recipe_options(
    *, lr: float, schedule: str = "exponential for bignas, else cosine", warmup: str = "a tenth of the run, at most 1 epoch"
) -> Callable[[Command], Command]:
    """How weights are trained and images varied; `lr` is the peak rate where none is given, the texts what else holds then."""
    return _options(
        click.option("--batch-size", default=128, show_default=True, help="Images per step, of all processes together."),
        click.option("--accumulate", default=1, show_default=True, help="Parts of a process's batch that run one after the other."),
        click.option("--lr", default=lr, show_default=True, help="Peak learning rate."),
        click.option("--schedule", type=click.Choice(["cosine", "exponential"]), help=f"[{schedule}]"),
        click.option("--warmup-epochs", type=float, help=f"Linear rise of the rate at the start.  [{warmup}]"),
        click.option("--optimizer", type=click.Choice(["sgd", "rmsprop"]), default="sgd", show_default=True),
        click.option("--momentum", default=0.9, show_default=True),
        click.option("--weight-decay", default=3e-4, show_default=True, help="Not on batch norms and biases."),
        click.option("--label-smoothing", default=0.0, show_default=True),
        click.option("--dropout", default=0.0, show_default=True, help="Before the classifier."),
        click.option("--no-flip", is_flag=True, help="Do not mirror images."),
        click.option("--jitter", is_flag=True, help="Vary brightness and saturation as once-for-all does."),
        click.option("--auto-augment", type=click.Choice(["none", "cifar10", "imagenet"]), default="none", show_default=True),
        click.option("--erase", default=0.0, show_default=True, help="Probability of random erasing."),
        click.option("--seed", type=click.IntRange(0, 2**63 - 1), default=0, show_default=True),
    )


def machine_options(command: Command) -> Command:
    """Where a run trains and how fast."""
    return _options(
        click.option("--device", type=click.Choice(["cpu", "cuda"]), help="[the GPU where there is one]"),
        click.option("--precision", type=click.Choice(["fp32", "bf16", "fp16"]), default="fp32", show_default=True),
        click.option("--sync-bn", is_flag=True, help="Batch statistics over all processes (CUDA)."),
        click.option("--workers", type=click.IntRange(1, 256), help="Threads that decode photographs.  [one per core]"),
        click.option("--skip-unreadable", is_flag=True, help="Leave unreadable photographs out instead of stopping."),
    )(command)


def _options(*options: Callable[[Any], Any]) -> Callable[[Command], Command]:
    def decorate(command: Command) -> Command:
        for option in reversed(options):
            command = option(command)
        return command

    return decorate


def recipe(given: Mapping[str, Any]) -> dict[str, Any]:
    """The fields of `TrainConfig` that the options say."""
    return (
        {name: given[name] for name in FIELDS}
        | {name: given[name] for name in UNSAID if given[name] is not None}
        | {"flip": not given["no_flip"]}
    )


class Teller:
    """Shows a run on the way: the live line, its phases, and validations as they come."""

    def __init__(self, reporter: show.Reporter):
        self._reporter = reporter
        self._phase = ""
        self._scores: dict[str, float] = {}

    def tell(self, event: TrainNote | TrainProgress) -> None:
        """Show one event."""
        from ofasearch.jobs.train import TrainNote

        if isinstance(event, TrainNote):
            self._reporter.say(f"note: {event.text}")
            return
        report = event.report
        if report.phase != self._phase:
            self._phase = report.phase
            self._reporter.say(f"epoch {report.epoch}: phase {report.phase}, {report.passes} network{'s' * (report.passes > 1)} a step")
        note = f"epoch {report.epoch}  {report.phase}  loss {report.loss:.3f}  {event.images_per_second:.0f} images/s"
        name, best = next(iter(self._scores.items()), ("", 0.0))
        note += f"  {name} {100 * best:.2f} %" if name else ""
        self._reporter.update("training", report.step, report.steps, eta=event.eta_seconds, note=note)
        if event.top1 != self._scores:
            self._scores = event.top1
            self._reporter.say(f"epoch {report.epoch}: validation top-1 {scores_text(self._scores)}")


def scores_text(scores: Mapping[str, float]) -> str:
    """Accuracies by network on one line."""
    return ", ".join(f"{name} {100 * value:.2f} %" for name, value in scores.items())
