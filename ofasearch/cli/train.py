"""`ofasearch train`."""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ofasearch.cli import show
from ofasearch.cli.training import Teller, machine_options, recipe, recipe_options, scores_text
from ofasearch.errors import UsageError

if TYPE_CHECKING:
    from ofasearch.jobs.train import TrainRequest, TrainResult
    from ofasearch.report.curves import Drawing, Run

NAMES = ("ofa", "compofa", "bignas", "deps", "rss", "rss-short", "single")


@click.command()
@click.option("--space", help="Design space, see `ofasearch space list`.")
@click.option("--data", help="Data set: Parquet, a CIFAR archive, idx files, an image folder, or digits.")
@click.option("--strategy", type=click.Choice(NAMES), default="deps", show_default=True)
@click.option("--epochs", type=click.IntRange(1, 100_000), help="Length of the run; a method's phases keep their proportions.")
@click.option("--length", help="The same as a share of the paper's epochs, e.g. 5%.")
@click.option("--option", "options", multiple=True, metavar="NAME=VALUE", help="A setting of the strategy, see --plan; may be repeated.")
@click.option("--subnets", type=int, help="Networks per step.  [the strategy's own]")
@click.option("--warmup-share", type=float, help="deps: share of the run that trains the full model alone.  [0.5]")
@click.option("--smallest", is_flag=True, help="deps: train the smallest network in every such step, as one of --subnets.")
@recipe_options(lr=0.1)
@click.option("--resolutions", help="Input sizes to train at, e.g. 128,160,192; photographs only.  [the space's]")
@click.option("--fixed-resolution", is_flag=True, help="Train at the largest input size only, not at one drawn per step.")
@machine_options
@click.option(
    "--init",
    type=click.Path(path_type=Path),
    help="Start from a supernet (file, run folder or shipped name) of this space or a part of it.",
)
@click.option("--teacher", help="A trained network to distil from, instead of training one: a supernet, or (single) a subnet.pt.")
@click.option(
    "--evaluate-every",
    type=click.IntRange(0),
    default=4,
    show_default=True,
    help="Epochs between validations of three networks; 0 for the end only.",
)
@click.option("--price", type=float, help="Dollars per device hour, for the log.")
@click.option("--co2", type=float, help="Kilograms of CO2 per device hour, for the log.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.")
@click.option("--resume", is_flag=True, help="Continue the run in --out, bit for bit on CPU.")
@click.option("--plan", is_flag=True, help="Print phases, epochs, rates and options of the strategy, and train nothing.")
@click.option(
    "--show",
    "shown",
    multiple=True,
    type=click.Path(path_type=Path),
    metavar="RUN",
    help="Draw the curves of a run folder, and train nothing; given again, the runs are compared.",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object at the end.")
@click.option("--quiet", is_flag=True, help="No progress.")
def train(as_json: bool, quiet: bool, **given: Any) -> None:
    """Train a supernet. The run folder holds checkpoints, log and at the end supernet.safetensors.

    On several GPUs or machines: torchrun --nproc-per-node 8 -m ofasearch train ...
    """
    if shown := given.pop("shown"):
        _only_show()
        _show(shown, as_json, quiet)
        return
    if given.pop("plan"):
        _print_plan(given, as_json)
        return
    missing = [f"--{name}" for name in ("space", "data", "out") if given[name] is None]
    if missing:
        raise UsageError(f"training needs {' and '.join(missing)}; see ofasearch train --help")
    _run(_request(given), as_json, quiet)


def _request(given: dict[str, Any]) -> TrainRequest:
    """The request that the options describe; what belongs to the method is its own unless said."""
    from ofasearch.jobs.train_setup import WORKERS, TrainRequest
    from ofasearch.train.loop import TrainConfig
    from ofasearch.train.strategies import STRATEGIES

    options = _options(given)
    epochs = _epochs(given, options)
    config: dict[str, Any] = {"warmup_epochs": min(1.0, epochs / 10)} | dict(STRATEGIES[given["strategy"]]().recipe)
    return TrainRequest(
        space=given["space"],
        data=given["data"],
        out=given["out"],
        strategy=given["strategy"],
        options=options,
        config=TrainConfig(**config | recipe(given), epochs=epochs, elastic_resolution=not given["fixed_resolution"]),
        resolutions=_sizes(given["resolutions"]),
        init=given["init"],
        teacher=given["teacher"],
        resume=given["resume"],
        evaluate_every=given["evaluate_every"],
        device=given["device"],
        workers=given["workers"] or WORKERS,
        skip_unreadable=given["skip_unreadable"],
        price=given["price"],
        co2=given["co2"],
    )


def _options(given: dict[str, Any]) -> dict[str, Any]:
    """The strategy's options: those with a name of their own on the command line, and NAME=VALUE."""
    options = {name: given[name] for name in ("subnets", "warmup_share") if given[name] is not None}
    options |= {"smallest": True} if given["smallest"] else {}
    for text in given["options"]:
        name, sign, value = text.partition("=")
        if not sign or not name.isidentifier():
            raise UsageError(f"--option must look like NAME=VALUE, but got '{text}'")
        options[name] = _value(value)
    return options


def _value(text: str) -> int | float | bool | str:
    if text in ("true", "false"):
        return text == "true"
    for kind in (int, float):
        try:
            return kind(text)
        except ValueError:
            continue
    return text


def _epochs(given: dict[str, Any], options: dict[str, Any]) -> int:
    """The run's epochs, from --epochs or from the paper's and --length."""
    if (given["epochs"] is None) == (given["length"] is None):
        raise UsageError("exactly one of --epochs and --length must be given, e.g. --epochs 30 or --length 5%")
    if given["epochs"] is not None:
        return int(given["epochs"])
    from ofasearch.jobs.train_setup import make_strategy
    from ofasearch.space.families import get_space

    try:
        share = float(given["length"].removesuffix("%")) / (100 if given["length"].endswith("%") else 1)
    except ValueError:
        raise UsageError(f"--length must be a share such as 5% or 0.05, but got '{given['length']}'") from None
    if not 0 < share <= 100:
        raise UsageError(f"--length must be above 0 and at most 100 (or 10000%), but got '{given['length']}'")
    space = get_space(given["space"])
    options = {name: value for name, value in options.items() if name != "arch"}
    phases = make_strategy(given["strategy"], options, space).phases(space)
    left = [phase for phase in phases if not (phase.teaches and given["teacher"])]
    return max(1, round(share * sum(phase.epochs for phase in left)))


def _sizes(text: str | None) -> tuple[int, ...] | None:
    if text is None:
        return None
    try:
        return tuple(sorted({int(size) for size in text.split(",")}))
    except ValueError:
        raise UsageError(f"--resolutions must be sizes such as 128,160,192, but got '{text}'") from None


def _run(request: TrainRequest, as_json: bool, quiet: bool) -> None:
    from ofasearch.jobs.train import TrainResult
    from ofasearch.jobs.train import train as events
    from ofasearch.ranks import speaks

    reporter = show.Reporter(quiet=quiet or as_json or not speaks())
    teller = Teller(reporter)
    try:
        for event in events(request):
            if isinstance(event, TrainResult):
                reporter.clear()
                if speaks():
                    show.print_json(_record(event)) if as_json else click.echo(_report(event))
                continue
            teller.tell(event)
    finally:
        reporter.clear()


def _record(result: TrainResult) -> dict[str, Any]:
    record = {"supernet": str(result.supernet), "digest": result.digest, "validation_top1": result.top1, "seconds": result.seconds}
    extra = {"device_hours": result.device_hours, "dollars": result.dollars, "kg_co2": result.kg_co2}
    return record | {name: value for name, value in extra.items() if value is not None}


def _report(result: TrainResult) -> str:
    rows = [(name, f"{100 * value:.2f} %") for name, value in result.top1.items()]
    text = show.table(["network", "validation top-1"], rows)
    facts = [("supernet", str(result.supernet)), ("time", show.duration(result.seconds)), ("device hours", f"{result.device_hours:.2f}")]
    facts += [("cost", f"{result.dollars:.2f} dollars")] if result.dollars is not None else []
    facts += [("emitted", f"{result.kg_co2:.2f} kg CO2")] if result.kg_co2 is not None else []
    return f"{text}\n\n{show.pairs(facts)}"


def _print_plan(given: dict[str, Any], as_json: bool) -> None:
    """The phases of a run that the options describe."""
    from ofasearch.jobs.train_setup import describe_plan
    from ofasearch.space.families import get_space

    if given["space"] is None:
        raise UsageError("--plan needs --space, because phases depend on what is elastic in it")
    options = _options(given)
    epochs = _epochs(given, options) if given["epochs"] is not None or given["length"] is not None else None
    plan = describe_plan(
        given["strategy"], options, get_space(given["space"]), epochs=epochs, lr=given["lr"], taught=bool(given["teacher"])
    )
    if as_json:
        show.print_json(plan)
        return
    headers = ["phase", "epochs", "in the paper", "peak rate", "networks a step", "open choices", "channels"]
    rows = [
        [str(row[name]) for name in ("phase", "epochs", "paper_epochs", "lr", "subnets", "choices", "channels")] for row in plan["phases"]
    ]
    click.echo(show.table(headers, rows))
    click.echo("\n" + show.pairs([("options", _settings(plan["options"].items())), ("recipe", _settings(plan["recipe"].items()))]))


def _settings(pairs: Iterable[tuple[str, Any]]) -> str:
    return ", ".join(f"{name}={value}" for name, value in pairs) or "the loop's own"


# -- the curves of runs ----------------------------------------------------------------------------------------


def _only_show() -> None:
    """Raise UsageError where --show came with an option of a training: it would have no effect."""
    context = click.get_current_context()
    said = [p for p in context.command.params if context.get_parameter_source(str(p.name)) == click.core.ParameterSource.COMMANDLINE]
    others = [p.opts[0] for p in said if p.name not in ("shown", "as_json", "quiet")]
    if others:
        raise UsageError(f"--show only draws runs that are there, but got {', '.join(others)} too; leave one of them out")


def _show(folders: Sequence[Path], as_json: bool, quiet: bool) -> None:
    from ofasearch.jobs.curves import show_runs

    found = show_runs(folders)
    reporter = show.Reporter(quiet=quiet or as_json)
    for note in found.notes:
        reporter.say(f"note: {show.plain(note)}")
    if as_json:
        show.print_json(found.record)
        return
    several = len(found.runs) > 1
    picture = f"\n\ncurves  {show.plain(str(found.png))}" if found.png is not None else ""
    click.echo(f"{_curves(found.drawing)}\n\n{_comparison(found.runs) if several else _last_line(found.runs[0])}{picture}")


def _curves(drawing: Drawing) -> str:
    """The drawing as wide as the terminal, at most 80 columns."""
    from ofasearch.report.curves import to_text

    return show.picture(to_text(drawing, max(40, min(80, shutil.get_terminal_size().columns))))


def _last_line(run: Run) -> str:
    """The last line of a log, and the newest accuracies where it has none."""
    line, asked = run.lines[-1], run.card.get("epochs")
    facts = [("epoch", f"{line['epoch']}{f' of {asked}' if isinstance(asked, int) else ''}")]
    facts += [("phase", line["phase"])] if "phase" in line else []
    facts += [("loss", f"{line['loss']:.4g}"), ("learning rate", f"{line['lr']:.4g}")]
    scored = next((old for old in reversed(run.lines) if old.get("validation_top1")), None)
    if scored is not None:
        since = "" if scored is line else f" (epoch {scored['epoch']})"
        facts.append(("validation top-1", scores_text(scored["validation_top1"]) + since))
    facts += [("images/s", f"{line['images_per_second']:.0f}")] if "images_per_second" in line else []
    facts += [("time", show.duration(line["seconds"]))] if "seconds" in line else []
    for key, name, form in (
        ("device_hours", "device hours", "{:.2f}"),
        ("dollars", "cost", "{:.2f} dollars"),
        ("kg_co2", "emitted", "{:.2f} kg CO2"),
    ):
        facts += [(name, form.format(line[key]))] if key in line else []
    return show.pairs(facts)


def _comparison(runs: Sequence[Run]) -> str:
    """A row per run: the accuracies of its largest network, and what they took."""
    from ofasearch.report.curves import MARKS, short

    rows = []
    for mark, run in zip(MARKS, runs, strict=False):
        line, scores = run.lines[-1], run.leading
        epoch, best = max(scores, key=lambda score: score[1], default=(0, 0.0))
        accuracies = [f"{100 * best:.2f} %", str(epoch), f"{100 * scores[-1][1]:.2f} %"] if scores else ["-", "-", "-"]
        hours = f"{line['device_hours']:.2f}" if "device_hours" in line else "-"
        rows.append([mark, short(run.name, 20), str(line["epoch"]), *accuracies, hours])
    return show.table(["", "run", "epochs", "best top-1", "at epoch", "last top-1", "device hours"], rows)
