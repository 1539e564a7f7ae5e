"""`ofasearch pareto`."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ofasearch.cli import show
from ofasearch.cli.find import question_of
from ofasearch.cli.options import on_device
from ofasearch.cli.units import COUNT, LATENCY, MEMORY, NAMES, NUMBERS

if TYPE_CHECKING:
    from ofasearch.jobs.pareto import ParetoProgress, ParetoResult

NARROW, BROAD = 60, 120  # columns of the picture


@click.command()
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="This machine (cpu), a card or table by name, a table file, or a folder of once-for-all YAML tables. "
    "The front is of the first; further ones, each with its --latency, narrow it.",
)
@click.option(
    "--objectives", type=NAMES, help="top1 or lcb, then latency, macs, params, memory.  [top1,latency; without --target top1,macs]"
)
@click.option("--prefer", metavar="LIMITS", help='Which network to take of the front, e.g. "top1>=76,latency<=15ms".')
@click.option(
    "--latency", "latencies", multiple=True, type=LATENCY, help="Only networks of at most this long per batch, e.g. 20ms (us, ms, s)."
)
@click.option("--flops", type=COUNT, help="Only networks of at most this many multiply-accumulates, e.g. 300M.")
@click.option("--params", type=COUNT, help="Only networks of at most this many parameters, e.g. 5M.")
@click.option("--memory", type=MEMORY, help="Only networks of at most this much peak activation memory (fp32, one image), e.g. 2MB.")
@click.option("--space", help="Design space; alone it answers with architectures without weights.")
@click.option("--supernet", help="Trained supernet by name or path.  [default: cifar10-compofa, when no --space is given]")
@click.option("--predictor", help="Accuracy predictor by name or path (ours, or the tutorial's acc_predictor.pth).")
@click.option("--resolutions", type=NUMBERS, help="Narrow the input sizes, e.g. 160,192,224.")
@on_device
@click.option("--algorithm", help="exact, nsga2, ... or random.  [exact where the space can be listed, else nsga2]")
@click.option("--compare", is_flag=True, help="On a space that can be listed: what every algorithm finds of the exact front.")
@click.option("--population", type=int, help="Networks per generation.  [100; 20 with --compare]")
@click.option("--generations", type=int, help="Generations of a search.  [250; with --compare those that see a quarter of the space]")
@click.option("--seed", default=0, show_default=True, help="Same seed, same answer.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/pareto-SPACE]")
@click.option("--resume", is_flag=True, help="Go on with a search that was stopped in this folder.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def pareto(**options: Any) -> None:
    """The whole front: the networks that no other one beats in accuracy and cost.

    Exact where the space can be listed (20,000 networks), else searched by NSGA-II. Budgets are optional and narrow it.
    --prefer takes the most accurate network that keeps all limits, or the cheapest where only accuracy is limited.

    \b
    ofasearch pareto --target cpu
    ofasearch pareto --objectives top1,macs,params --flops 9M
    ofasearch pareto --space ofa-mbv3-w1.2 --predictor acc_predictor.pth --target note10/ --prefer "top1>=80,latency<=20ms"
    ofasearch pareto --space compofa-mbv3-w1.2 --predictor acc_predictor.pth --target note10/ --compare --generations 20
    """
    from ofasearch.jobs.pareto import ParetoRequest, ParetoResult
    from ofasearch.jobs.pareto import pareto as events

    question = question_of(options)
    own = ("objectives", "algorithm", "compare", "prefer", "population", "generations", "seed", "out", "resume")
    reporter = show.Reporter(quiet=options["quiet"] or options["as_json"])
    result: ParetoResult | None = None
    try:
        for event in events(ParetoRequest(question=question, **{key: options[key] for key in own})):
            if isinstance(event, ParetoResult):
                result = event
            else:
                reporter.update(event.phase, event.done, event.total, eta=event.eta_seconds, note=_note(event))
    finally:
        reporter.clear()
    if result is None:
        return
    if options["as_json"]:
        show.print_json(result.record)
    else:
        click.echo(_report(result))


def _note(event: ParetoProgress) -> str:
    """How far a search is, in few words."""
    return f"{event.points} networks, hypervolume {event.hypervolume:.4f}" if event.points is not None else ""


def _report(result: ParetoResult) -> str:
    """The answer for people."""
    from ofasearch.report import pareto as report

    parts = [show.table(*report.table(result.record))]
    if len(result.drawing.front) > 1:
        width = max(NARROW, min(BROAD, shutil.get_terminal_size().columns))
        parts.append(show.picture(report.to_text(result.drawing, width)))
    if "compare" in result.record:
        parts.append(show.table(*report.comparison(result.record)))
    return "\n\n".join([*parts, show.pairs(report.facts(result.record))])
