"""`ofasearch regnas`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import click

from ofasearch.cli import show
from ofasearch.cli.find import best_so_far, question_of, report_of
from ofasearch.cli.options import on_device
from ofasearch.cli.units import COUNT, COUNTS, LATENCY, MEMORY, NUMBERS, RATIOS, SHARE
from ofasearch.errors import UsageError

OWN = ("ref", "cas", "family", "sweep")
SEARCHING = ("data", "images", "calibration_images", "algorithm", "population", "generations", "seed", "top_k", "out", "resume")


@click.command()
@click.option("--ref", help="What must not break: a subnet.pt, any ONNX classifier, saved predictions, or an arch id of the supernet.")
@click.option(
    "--reward",
    type=click.Choice(["r0", "r1", "r2"], case_sensitive=False),
    default="r2",
    show_default=True,
    help="r0: top-1. r1: few negative flips. r2: lambda1 x top-1 - lambda2 x negative flip rate.",
)
@click.option("--lambda1", type=float, help="Weight of top-1 in r2.  [default: 1]")
@click.option("--lambda2", type=float, help="Weight of the negative flip rate in r2.  [default: 1]")
@click.option("--nfr-cap", type=SHARE, help="At most this negative flip rate on the validation split, e.g. 2%.")
@click.option(
    "--cas/--no-cas", default=None, help="The answer contains all weights of the reference, or need not.  [default: where that can be]"
)
@click.option(
    "--family", type=COUNTS, default=(), help="Several networks, small to large, e.g. 150M,300M,600M: each against all smaller ones."
)
@click.option(
    "--sweep",
    type=RATIOS,
    is_flag=False,
    flag_value="paper",
    default=(),
    help="Search for each ratio of lambda2 to lambda1, and plot accuracy against flips; alone: 0.05 to 20.",
)
@click.option("--flops", type=COUNT, help="At most this many multiply-accumulates.  [default: twice the reference's]")
@click.option("--target", "targets", multiple=True, help="As in find. Repeatable.")
@click.option("--latency", "latencies", multiple=True, type=LATENCY, help="At most this long per batch; one for each --target.")
@click.option("--params", type=COUNT, help="At most this many parameters, e.g. 5M.")
@click.option("--memory", type=MEMORY, help="At most this much peak activation memory (fp32, one image), e.g. 2MB.")
@click.option("--supernet", help="Trained supernet by name or path.  [default: the reference's]")
@click.option("--space", help="A part of the supernet's space, such as CompOFA's networks in once-for-all's.")
@click.option("--predictor", help="Accuracy predictor that says which networks to evaluate first.  [default: the shipped one, if any]")
@click.option("--data", help="Data set on which networks are run.  [default: the predictions shipped with the supernet]")
@click.option("--images", type=int, help="Search on so many images of the validation split; the last five see all of them.")
@click.option("--calibration-images", type=int, help="Recalibrate batch norm on so many images.  [default: all, up to 2000]")
@click.option("--resolutions", type=NUMBERS, help="Narrow the input sizes, e.g. 160,192,224.")
@on_device
@click.option(
    "--algorithm",
    type=click.Choice(["exact", "surrogate", "random", "evolution", "ga"]),
    help="How to search.  [default: exact where predictions are shipped, else surrogate]",
)
@click.option("--population", type=int, help="Networks evaluated per generation.  [default: 8]")
@click.option("--generations", type=int, help="Generations.  [default: 24, or what a third of a small space allows]")
@click.option("--seed", default=0, show_default=True, help="Same seed, same answer.")
@click.option("--top-k", default=5, show_default=True, help="Candidates that are evaluated in full.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/regnas-SPACE]")
@click.option("--resume", is_flag=True, help="Go on with the interrupted run of this --out, if nothing else changed.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def regnas(**options: Any) -> None:
    """Search the best subnet that keeps what a reference gets right: REG-NAS.

    Networks are rewarded for accuracy and for few negative flips, images that the reference gets right and they get wrong. By
    default the answer contains all weights of the reference and costs at most twice its MACs. On the embedded supernet it needs
    no data. The test split only reports.

    \b
    ofasearch regnas --ref model150.pt
    ofasearch regnas --ref deployed.onnx --data DIR --target cpu --latency 0.5ms
    ofasearch regnas --ref model150.pt --nfr-cap 2% --reward r0
    ofasearch regnas --family 5M,7M,9M,12M
    ofasearch regnas --ref model150.pt --sweep
    """
    from ofasearch.jobs.regnas import RegnasResult
    from ofasearch.jobs.regnas import regnas as events
    from ofasearch.ranks import speaks

    request = request_of(options)
    quiet = options["quiet"] or options["as_json"] or not speaks()
    result = show.followed(events(request), RegnasResult, quiet=quiet, note=best_so_far)
    if result is None:  # another process of the job speaks
        return
    if options["as_json"]:
        show.print_json(result.record)
    else:
        click.echo(_report(result.record))


def request_of(options: Mapping[str, Any]) -> Any:
    """What the options ask for. Raises UsageError."""
    from ofasearch.jobs.regnas_task import RegnasRequest
    from ofasearch.jobs.searching import FindRequest
    from ofasearch.search.regnas import Reward

    reward, weights = options["reward"].lower(), {name: options[name] for name in ("lambda1", "lambda2") if options[name] is not None}
    if reward != "r2" and weights:
        raise UsageError(f"--lambda1 and --lambda2 are the weights of --reward r2, but the reward is {reward}; leave them out")
    if options["sweep"] and weights:
        raise UsageError("--sweep tries many weights, so --lambda1 and --lambda2 must be left out, but one is given")
    question = question_of({**options, "objective": "measured"})
    find = FindRequest(question=question, **{key: options[key] for key in SEARCHING})
    own = {key: options[key] for key in OWN}
    return RegnasRequest(find=find, reward=Reward(kind=reward, nfr_cap=options["nfr_cap"], **weights), **own)


def _report(record: dict[str, Any]) -> str:
    """The answer for people."""
    from ofasearch.report import regnas as report

    if "family" in record:
        parts = [show.table(*report.family_table(record))]
        for split in report.splits(record) if len(record["family"]) > 1 else ():
            parts.append(
                f"negative flip rate from each network to larger ones, {split} split\n" + show.table(*report.matrix_table(record, split))
            )
    elif "sweep" in record:
        parts = [show.table(*report.sweep_table(record)), *(show.picture(report.sweep_text(record, s)) for s in report.splits(record)[-1:])]
    else:
        return report_of(record, report.reward_facts(record))
    facts = [*((name, path) for name, path in record["files"].items()), *(("note", note) for note in record["notes"])]
    return "\n\n".join([*parts, show.pairs(facts)])
