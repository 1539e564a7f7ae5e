"""`ofasearch find`."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import click

from ofasearch.cli import show
from ofasearch.cli.units import COUNT, LATENCY, MEMORY, NUMBERS


@click.command()
@click.option("--target", help="This machine (cpu), a card or table by name, a table file, or a folder of once-for-all YAML tables.")
@click.option("--latency", type=LATENCY, help="At most this long per batch, e.g. 20ms (us, ms, s).")
@click.option("--flops", type=COUNT, help="At most this many multiply-accumulates, e.g. 300M.")
@click.option("--params", type=COUNT, help="At most this many parameters, e.g. 5M.")
@click.option("--memory", type=MEMORY, help="At most this much peak activation memory (fp32, one image), e.g. 2MB.")
@click.option("--space", help="Design space; alone it answers with an architecture without weights.")
@click.option("--supernet", help="Trained supernet by name or path.  [default: cifar10-compofa, when no --space is given]")
@click.option("--predictor", help="Accuracy predictor by name or path (ours, or the tutorial's acc_predictor.pth).")
@click.option("--data", help="Data set that recalibrates batch norm and scores the winner: a folder, a file, or digits.")
@click.option("--resolutions", type=NUMBERS, help="Narrow the input sizes, e.g. 160,192,224.")
@click.option("--runtime", default="ort", show_default=True, help="Runtime of the target.")
@click.option("--precision", default="fp32", show_default=True, help="Precision on the target.")
@click.option("--measure", type=click.Choice(["table", "direct"]), default="table", show_default=True, help="How networks are priced here.")
@click.option("--batch", default=1, show_default=True, help="Images per run on the target.")
@click.option("--threads", default=1, show_default=True, help="Threads on the target.")
@click.option("--population", default=100, show_default=True, help="Networks per generation.")
@click.option("--generations", default=500, show_default=True, help="Generations; small spaces are searched exactly instead.")
@click.option("--seed", default=0, show_default=True, help="Same seed, same answer.")
@click.option("--top-k", default=5, show_default=True, help="Candidates to report.")
@click.option("--out", type=click.Path(path_type=Path), help="Run folder.  [default: runs/find-SPACE]")
@click.option("--no-bn", is_flag=True, help="Export even if batch norm cannot be recalibrated; the file says so.")
@click.option("--resume", is_flag=True, help="Accepted for symmetry: measurements are always remembered, a search takes seconds.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object and nothing else on stdout.")
@click.option("--quiet", is_flag=True, help="No progress.")
def find(**options: Any) -> None:
    """Search the best subnet within the budgets, check it, export it.

    Budgets mean "at most" and all hold together. With --target cpu and --latency the winner is measured end to end, and
    accepted when the upper 95 % bound of its measured median keeps the budget.

    \b
    ofasearch find --target cpu --latency 0.5ms
    ofasearch find --flops 8M --out runs/small
    ofasearch find --space ofa-mbv3-w1.2 --predictor acc_predictor.pth --target latency_table@note10 --latency 20ms
    """
    from ofasearch.jobs.find import FindRequest, FindResult
    from ofasearch.jobs.find import find as events
    from ofasearch.jobs.setup import Budgets, Question

    budgets = Budgets(latency_ms=options["latency"], macs=options["flops"], params=options["params"], memory_bytes=options["memory"])
    shared = ("target", "space", "supernet", "predictor", "resolutions", "runtime", "precision", "batch", "threads", "measure")
    question = Question(budgets=budgets, **{key: options[key] for key in shared})
    own = ("data", "population", "generations", "seed", "top_k", "out", "no_bn")
    request = FindRequest(question=question, **{key: options[key] for key in own})
    reporter = show.Reporter(quiet=options["quiet"] or options["as_json"])
    result: FindResult | None = None
    try:
        for event in events(request):
            if isinstance(event, FindResult):
                result = event
            else:
                best = f"best {100 * event.best_top1:.2f} %" if event.best_top1 is not None else ""
                reporter.update(event.phase, event.done, event.total, eta=event.eta_seconds, note=best)
    finally:
        reporter.clear()
    if result is None:
        return
    if options["as_json"]:
        show.print_json(result.record)
    else:
        click.echo(_report(result.record))


def _report(record: dict[str, Any]) -> str:
    """The answer for people."""
    rows = [_candidate_row(c, chosen=i == 0) for i, c in enumerate(record["candidates"][:10])]
    source = record.get("latency_source", "")
    headers = ["", "architecture", "top-1 " + ("(validation)" if "measured" in record["predicted_top1_source"] else "(predicted)")]
    if source:
        headers.append("latency (each measured)" if record.get("measure") == "direct" else f"latency by table ({source})")
    if any("measured" in c for c in record["candidates"]):
        headers += ["measured p50", "95 % bound", "in budget"]
    width = len(headers)
    text = [show.table(headers, [(*row, *[""] * width)[:width] for row in rows]), ""]
    text.append(show.pairs([*_facts(record), *[("note", note) for note in record["notes"]]]))
    return "\n".join(text)


def _candidate_row(candidate: dict[str, Any], *, chosen: bool) -> tuple[str, ...]:
    cells = ["*" if chosen else "", candidate["arch_id"], f"{100 * candidate['predicted_top1']:.2f} %"]
    if "latency_ms" in candidate:
        cells.append(f"{candidate['latency_ms']:.3f} ms")
    if "measured" in candidate:
        timing = candidate["measured"]
        cells += [f"{timing['latency_ms_p50']:.3f} ms", f"{timing['latency_ms_p50_high']:.3f} ms", "yes" if candidate["accepted"] else "no"]
    return tuple(cells)


def _facts(record: dict[str, Any]) -> list[tuple[str, str]]:
    measured = record["measured"]
    facts = [("architecture", record["arch_id"])]
    if "top1" in measured:
        how = "shipped predictions" if measured["source"] == "shipped" else "evaluated now"
        facts.append(("test top-1", f"{100 * measured['top1']:.2f} %  ({how}, {measured['n']:,} images)"))
    if "latency_ms_p50" in measured:
        device = record["device"]
        facts.append(
            (
                "latency",
                f"{measured['latency_ms_p50']:.3f} ms median, {measured['latency_ms_p95']:.3f} ms p95, measured end to end "
                f"({device['device']}, {device['runtime']}, {device['precision']}, batch {device['batch']}, threads {device['threads']})",
            )
        )
    if "latency_validation" in record:
        v = record["latency_validation"]
        facts.append(("table", f"checked on {v['n']} whole networks: {show.agreement(v)}"))
    cost = f"{record['macs'] / 1e6:.2f} M MACs, {record['params'] / 1e6:.3f} M parameters"
    facts.append(("cost", f"{cost}, {record['activation_bytes'] / 1e6:.3f} MB activations"))
    facts.append(("search", f"{record['evaluations']:,} networks in {record['search_seconds']:.2f} s"))
    if record.get("measure") == "direct":
        facts.append(("measuring", f"{record['networks_measured']:,} networks timed in {record['measuring_seconds']:.0f} s, each once"))
    if "onnx_max_abs_diff" in measured:
        facts.append(("ONNX check", f"differs from torch by at most {measured['onnx_max_abs_diff']:.1e} on {measured['onnx_checked_on']}"))
    return facts + [(name, path) for name, path in record["files"].items()]
