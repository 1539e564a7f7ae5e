"""`ofasearch find`."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from ofasearch.cli import show
from ofasearch.cli.options import on_device
from ofasearch.cli.units import COUNT, LATENCY, MEMORY, NUMBERS
from ofasearch.errors import UsageError

if TYPE_CHECKING:
    from ofasearch.jobs.searching import FindProgress
    from ofasearch.jobs.setup import Question


@click.command()
@click.option(
    "--target",
    "targets",
    multiple=True,
    help="This machine (cpu), a card or table by name, a table file, or a folder of once-for-all YAML tables. Repeatable.",
)
@click.option(
    "--latency", "latencies", multiple=True, type=LATENCY, help="At most this long per batch, e.g. 20ms (us, ms, s); one for each --target."
)
@click.option("--flops", type=COUNT, help="At most this many multiply-accumulates, e.g. 300M.")
@click.option("--params", type=COUNT, help="At most this many parameters, e.g. 5M.")
@click.option("--memory", type=MEMORY, help="At most this much peak activation memory (fp32, one image), e.g. 2MB.")
@click.option("--space", help="Design space; alone it answers with an architecture without weights.")
@click.option("--supernet", help="Trained supernet by name or path.  [default: cifar10-compofa, when no --space is given]")
@click.option("--predictor", help="Accuracy predictor by name or path (ours, or the tutorial's acc_predictor.pth).")
@click.option(
    "--objective",
    type=click.Choice(["top1", "lcb", "measured"]),
    default="top1",
    show_default=True,
    help="Search by top-1 (predicted, or of measured members), by the lower end of its 80 % interval, or by evaluating each network.",
)
@click.option(
    "--data", help="Data set that recalibrates batch norm, judges the candidates and scores the winner: a folder, a file, or digits."
)
@click.option("--images", type=int, help="Evaluate on so many images of the validation split.  [default: all]")
@click.option("--calibration-images", type=int, help="Recalibrate batch norm on so many images.  [default: all, up to 2000]")
@click.option("--resolutions", type=NUMBERS, help="Narrow the input sizes, e.g. 160,192,224.")
@on_device
@click.option(
    "--algorithm",
    type=click.Choice(["exact", "random", "evolution", "ga", "surrogate"]),
    help="How to search.  [default: exact for spaces that are quickly listed, else evolution; surrogate where each is evaluated]",
)
@click.option("--population", type=int, help="Networks per generation.  [default: 100; 8 where each is evaluated]")
@click.option("--generations", type=int, help="Generations; an exact search has none.  [default: 500; 24 where each is evaluated]")
@click.option("--seed", default=0, show_default=True, help="Same seed, same answer.")
@click.option("--top-k", default=5, show_default=True, help="Candidates to report.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/find-SPACE]")
@click.option("--no-bn", is_flag=True, help="Export even if batch norm cannot be recalibrated; the file says so.")
@click.option(
    "--resume", is_flag=True, help="Go on with the interrupted search of this --out; what was measured is remembered in any case."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def find(**options: Any) -> None:
    """Search the best subnet within the budgets, check it, export it.

    Budgets mean "at most" and all hold together, also those of several devices. With --target cpu and --latency the winner
    is measured end to end, and accepted when the upper 95 % bound of its measured median keeps the budget. With --data the
    --top-k candidates are evaluated on the validation split, and the best of them wins.

    \b
    ofasearch find --target cpu --latency 0.5ms
    ofasearch find --flops 8M --out runs/small
    ofasearch find --target rtx2080 --latency 5ms --target cpu --latency 0.5ms
    ofasearch find --space ofa-mbv3-w1.2 --predictor acc_predictor.pth --target latency_table@note10 --latency 20ms
    """
    from ofasearch.jobs.find import FindRequest, FindResult
    from ofasearch.jobs.find import find as events

    question = question_of(options)
    own = ("data", "images", "calibration_images", "algorithm", "population", "generations", "seed", "top_k", "out", "no_bn", "resume")
    request = FindRequest(question=question, **{key: options[key] for key in own})
    result = show.followed(events(request), FindResult, quiet=options["quiet"] or options["as_json"], note=best_so_far)
    if result is None:
        return
    if options["as_json"]:
        show.print_json(result.record)
    else:
        click.echo(report_of(result.record))


def best_so_far(event: FindProgress) -> str:
    """What a search tells of its best network."""
    top1 = f"best {100 * event.best_top1:.2f} %" if event.best_top1 is not None else ""
    return event.note or top1


def question_of(options: Mapping[str, Any]) -> Question:
    """What the options ask for, without those of one command alone.

    Raises UsageError unless every latency has its target, and every target its latency; one target alone needs none.
    """
    from ofasearch.jobs.setup import Budgets, DeviceBudget, Question

    targets, latencies = options["targets"], options["latencies"]
    if latencies and not targets:
        raise UsageError("a latency budget needs a device: add --target cpu, a table, or a card's name")
    if len(targets) != len(latencies) and (len(targets), len(latencies)) != (1, 0):
        raise UsageError(
            f"there must be one --latency for each --target, in the same order, but got {len(latencies)} and {len(targets)}; "
            "give them in pairs"
        )
    target, *others = targets or [None]
    latency_ms, *limits = latencies or [None]
    also = [DeviceBudget(target=name, latency_ms=limit) for name, limit in zip(others, limits, strict=True)]
    budgets = Budgets(latency_ms=latency_ms, macs=options["flops"], params=options["params"], memory_bytes=options["memory"])
    shared = ("space", "supernet", "predictor", "resolutions", "runtime", "precision", "batch", "threads", "measure", "objective")
    given = {key: options[key] for key in shared if key in options}
    return Question(budgets=budgets, target=target, also=tuple(also), **given)


def report_of(record: dict[str, Any], facts: Sequence[tuple[str, str]] = ()) -> str:
    """The answer for people; `facts` stand first."""
    shown = record["candidates"][:10]
    columns = {
        "": ["*", *[""] * (len(shown) - 1)],
        "architecture": [c["arch_id"] for c in shown],
        "top-1 " + ("(validation)" if "measured" in record["predicted_top1_source"] else "(predicted)"): [*map(_top1, shown)],
    }
    if any("validation_top1" in c for c in shown):
        columns["evaluated (validation)"] = [f"{100 * c['validation_top1']:.2f} %" if "validation_top1" in c else "" for c in shown]
    if any("nfr" in c for c in shown):
        columns["NFR (validation)"] = [f"{100 * c['nfr']:.2f} %" for c in shown]
    if any("reward_value" in c for c in shown):
        columns["reward"] = [f"{c['reward_value']:.4f}" for c in shown]
    columns |= _latency_columns(record, shown)
    if any("measured" in c for c in shown):
        timings = [c.get("measured") for c in shown]
        columns["measured p50"] = [f"{t['latency_ms_p50']:.3f} ms" if t else "" for t in timings]
        columns["95 % bound"] = [f"{t['latency_ms_p50_high']:.3f} ms" if t else "" for t in timings]
        columns["in budget"] = ["" if "accepted" not in c else "yes" if c["accepted"] else "no" for c in shown]
    rows = list(zip(*columns.values(), strict=True))
    notes = [("note", note) for note in record["notes"]]
    told = {name for name, _ in facts}
    facts = [*facts, *(fact for fact in _facts(record) if fact[0] not in told)]
    return "\n".join([show.table([*columns], rows), "", show.pairs([*facts, *notes])])


def _top1(candidate: dict[str, Any]) -> str:
    bar = f" ± {100 * candidate['error_bar']:.2f}" if "error_bar" in candidate else ""
    return f"{100 * candidate['predicted_top1']:.2f}{bar} %"


def _latency_columns(record: dict[str, Any], shown: Sequence[dict[str, Any]]) -> dict[str, list[str]]:
    """One column per device."""
    devices = record.get("devices", [])
    if len(devices) > 1:
        return {f"{d['target']} ({d['latency_source']})": [f"{c['devices'][d['target']]:.3f} ms" for c in shown] for d in devices}
    if not devices:
        return {}
    source = devices[0]["latency_source"]
    header = "latency (each measured)" if record.get("measure") == "direct" else f"latency by table ({source})"
    return {header: [f"{c['latency_ms']:.3f} ms" for c in shown]}


def _facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    measured = record["measured"]
    facts = [("architecture", record["arch_id"])]
    if "validation_top1" in measured:
        facts.append(("validation", f"{100 * measured['validation_top1']:.2f} %  (evaluated, {measured['validation_n']:,} images)"))
    if "top1" in measured:
        how = "shipped predictions" if measured["source"] == "shipped" else "evaluated now"
        facts.append(("test top-1", f"{100 * measured['top1']:.2f} %  ({how}, {measured['n']:,} images)"))
    if "int8" in measured:
        int8, size = measured["int8"], f"{measured['int8']['size_bytes'] / 1e6:.3f} MB"
        flips = f"{100 * int8['flips']['nfr']:.2f} % of the images flip to wrong"
        facts.append(("int8 test top-1", f"{100 * int8['test_top1']:.2f} %  (evaluated now, {size}; {flips})"))
    if "latency_ms_p50" in measured:
        device = next(d["device"] for d in record["devices"] if "measured" in d)
        facts.append(
            (
                "latency",
                f"{measured['latency_ms_p50']:.3f} ms median, {measured['latency_ms_p95']:.3f} ms p95, measured end to end "
                f"({device['device']}, {device['runtime']}, {device['precision']}, batch {device['batch']}, threads {device['threads']})",
            )
        )
    for device in record.get("devices", []):
        if "latency_validation" in device:
            v = device["latency_validation"]
            name = f"{device['target']} " if len(record["devices"]) > 1 else ""
            facts.append(("table", f"{name}checked on {v['n']} whole networks: {show.agreement(v)}"))
    cost = f"{record['macs'] / 1e6:.2f} M MACs, {record['params'] / 1e6:.3f} M parameters"
    facts.append(("cost", f"{cost}, {record['activation_bytes'] / 1e6:.3f} MB activations"))
    if record["objective"] == "lcb":
        facts.append(("objective", "the lower end of the predictor's 80 % interval"))
    facts.append(("search", f"{record['evaluations']:,} networks in {record['search_seconds']:.2f} s"))
    if record.get("measure") == "direct":
        facts.append(("measuring", f"{record['networks_measured']:,} networks timed in {record['measuring_seconds']:.0f} s, each once"))
    if "onnx_max_abs_diff" in measured:
        facts.append(("ONNX check", f"differs from torch by at most {measured['onnx_max_abs_diff']:.1e} on {measured['onnx_checked_on']}"))
    return facts + [(name, path) for name, path in record["files"].items()]
