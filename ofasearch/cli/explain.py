"""`ofasearch explain` (also `latency explain`) and `diff`."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from ofasearch.cli import show
from ofasearch.cli.subnet import SUBNET_HELP
from ofasearch.cli.units import LATENCY, NUMBERS

if TYPE_CHECKING:
    from ofasearch.jobs.explain import DiffResult, Explained, ExplainResult, Pricing
    from ofasearch.jobs.judge import Judge
    from ofasearch.jobs.savings import Savings
    from ofasearch.latency.table import LatencyTable

T = TypeVar("T")
F = TypeVar("F", bound=Callable[..., None])
NARROW, BROAD = 64, 160  # columns of what is drawn

SHARED = (
    click.option("--target", help="This machine (cpu), a card or table by name, a table file, or a folder of once-for-all YAML tables."),
    click.option("--space", help="Design space of a subnet that is given as JSON."),
    click.option("--predictor", help="Accuracy predictor by name or path; what is shipped for the space judges otherwise."),
    click.option("--batch", type=int, help="Images per run on the target.  [1]"),
    click.option("--threads", type=int, help="Threads on the target.  [1 on this machine, any of a table]"),
    click.option("--svg", "picture", type=click.Path(path_type=Path), metavar="FILE", help="Also draw it into a .svg or .png file."),
    click.option("--json", "as_json", is_flag=True, help="Print one JSON object."),
    click.option("--quiet", is_flag=True, help="No progress."),
)


def _shared(command: F) -> F:
    """The options of both commands."""
    for option in reversed(SHARED):
        command = option(command)
    return command


@click.command(
    help=f"""Where the milliseconds of SUBNET go, stage by stage and layer by layer; without --target, its MACs.

    {SUBNET_HELP} A once-for-all net.config with its run.config beside it is read too.

    With --save 2ms: the single changes (one kernel, ratio, depth, or the input size) that save as much, those that lose
    least accuracy first; of networks that nothing can judge, those that keep most MACs.

    \b
    ofasearch explain compofa-mbv3-cifar@r32-4-4-2-2-2 --target amd-epyc-ort-1t --save 0.02ms
    ofasearch explain runs/mine/net.config --target note10/ --svg where.svg
    """
)
@click.argument("subnet")
@_shared
@click.option("--save", "save_ms", type=LATENCY, help="List the single changes that save at least this long, e.g. 2ms.")
@click.option("--resolutions", type=NUMBERS, help="Input sizes that such a change may choose.  [all that are known]")
def explain(*, subnet: str, save_ms: float | None, resolutions: tuple[int, ...] | None, **options: Any) -> None:
    """`explain`."""
    from ofasearch.jobs.explain import ExplainRequest, ExplainResult
    from ofasearch.jobs.explain import explain as events

    request = ExplainRequest(subnet=subnet, pricing=_pricing(options), save_ms=save_ms, resolutions=resolutions)
    result = _last(events(request), ExplainResult, options)
    if options["as_json"]:
        show.print_json(result.record)
    else:
        click.echo(_explanation(result))


@click.command(
    help="""What leads from network A to network B, change by change: first the input size, then layer by layer.

    A and B are given as SUBNET is elsewhere: arch id, JSON object with ks, e, d, r, subnet.pt, or net.config. Layers of networks of
    different spaces are matched by feature size and position. Without --target, the change in MACs.

    \b
    ofasearch diff compofa-mbv3-cifar@r32-4-4-2-2-2 compofa-mbv3-cifar@r32-2-3-2-4-2 --target amd-epyc-ort-1t
    """
)
@click.argument("a")
@click.argument("b")
@_shared
def diff(*, a: str, b: str, **options: Any) -> None:
    """`diff`."""
    from ofasearch.jobs.explain import DiffRequest, DiffResult
    from ofasearch.jobs.explain import diff as events

    result = _last(events(DiffRequest(a=a, b=b, pricing=_pricing(options))), DiffResult, options)
    if options["as_json"]:
        show.print_json(result.record)
    else:
        click.echo(_comparison(result))


def _pricing(options: dict[str, Any]) -> Pricing:
    from ofasearch.jobs.explain import Pricing

    return Pricing(**{name: options[name] for name in ("target", "space", "predictor", "batch", "threads", "picture")})


def _last(events: Iterator[Any], kind: type[T], options: dict[str, Any]) -> T:
    return show.measured(events, kind, "measuring this machine", quiet=options["quiet"] or options["as_json"])


def _width() -> int:
    return max(NARROW, min(BROAD, shutil.get_terminal_size().columns))


# -- explain ---------------------------------------------------------------------------------------------------


def _explanation(result: ExplainResult) -> str:
    """The answer for people."""
    from ofasearch.report.explain import account_text, dear

    found = result.explained.account
    batch = result.table.key.batch if result.table is not None else 1
    facts = [("architecture", result.explained.network.name), *_latency(result.explained, result.table)]
    facts += [("cost", _cost(result.explained)), *_worth(result.explained, result.judge), *_table_facts(result.table)]
    facts += [("dear per MAC", f"{item.name}, {_times(times)}, {ms:.3g} ms beyond it") for item, times, ms in dear(found)]
    facts += [("picture", str(result.picture))] if result.picture is not None else []
    facts += [("note", note) for note in result.notes]
    parts = [show.picture(account_text(found, _width(), batch)), show.pairs(facts)]
    if result.savings is not None:
        parts.append(_savings(result.savings, result.judge))
    return "\n\n".join(parts)


def _times(times: float) -> str:
    return f"{times:.3g} times the network's mean" if times < float("inf") else "which has none"


def _latency(explained: Explained, table: LatencyTable | None) -> list[tuple[str, str]]:
    found = explained.account
    if table is None or found.latency_ms is None:
        return []
    key = table.key
    batch = f", {found.latency_ms / key.batch:.4g} ms an image" if key.batch > 1 else ""
    how = f"{key.device}, {key.runtime}, {key.precision}, batch {key.batch}, threads {key.threads}"
    return [("latency", f"{found.latency_ms:.4g} ms{batch} by table {table.name} ({found.source}; {how})")]


def _table_facts(table: LatencyTable | None) -> list[tuple[str, str]]:
    """The correction and the error of the table."""
    if table is None:
        return []
    facts, c = [], table.correction
    if (c.slope, c.offset_ms) != (1.0, 0.0):
        fitted = f", fitted on {c.nets} whole networks" if c.nets > 1 else ", from this network measured end to end" if c.nets else ""
        facts.append(("correction", f"layers are shown times {c.slope:.4g}, and {c.offset_ms:+.4g} ms are constant per network{fitted}"))
    v = table.card.get("validation")
    if v:
        facts.append(("table error", f"on {v['n']} whole networks: {show.agreement(v)}"))
    else:
        facts.append(("table error", "unknown: the table was not checked on whole networks"))
    return facts


def _cost(explained: Explained) -> str:
    return f"{explained.account.macs / 1e6:.2f} M MACs, {explained.account.params / 1e6:.3f} M parameters"


def _worth(explained: Explained, judge: Judge | None) -> list[tuple[str, str]]:
    if judge is None or explained.top1 is None:
        return []
    return [(f"top-1 ({judge.word})", f"{100 * explained.top1:.2f} %  {_judged(judge)}")]


def _judged(judge: Judge) -> str:
    error = f", held-out error {100 * judge.rmse:.2f} points" if judge.rmse is not None else ""
    return f"({judge.source} of {judge.name}{error}; of the whole network)"


def _savings(savings: Savings, judge: Judge | None) -> str:
    from ofasearch.jobs.setup import show_ms

    headers = ["change", "architecture", "latency", "saves", "M MACs"]
    headers += [f"top-1 ({judge.word})", "points"] if judge is not None else []
    doubtful = any(c.source not in ("measured", "imported") for c in savings.changes)
    rows = []
    for c in savings.changes:
        cells = [c.what, c.arch_id, f"{c.latency_ms:.4g} ms", f"{c.saving_ms:.4g} ms", f"{c.macs / 1e6:.2f}"]
        if c.top1 is not None and c.top1_change is not None:
            cells += [f"{100 * c.top1:.2f} %", f"{100 * c.top1_change:+.2f}"]
        rows.append([*cells, *([c.source] if doubtful else [])])
    by = "least accuracy lost first" if judge is not None else "most MACs kept first (nothing judges accuracy here: give --predictor)"
    shown = f", the best {len(rows)}" if savings.enough > len(rows) else ""
    title = f"{savings.enough} of {savings.tried} single changes save {show_ms(savings.save_ms)} or more{shown}; {by}:"
    return f"{title}\n\n{show.table([*headers, *(['latencies'] if doubtful else [])], rows)}"


# -- diff ------------------------------------------------------------------------------------------------------


def _comparison(result: DiffResult) -> str:
    """The answer for people."""
    from ofasearch.report.explain import difference_text

    a, b = result.a, result.b
    headers = ["", "architecture", "M MACs", "M params"]
    headers += ["ms", "latencies"] if result.table is not None else []
    headers += [f"top-1 ({result.judge.word})"] if result.judge is not None else []
    rows = [[name, *_side(part)] for name, part in (("A", a), ("B", b))]
    parts = [show.table(headers, rows), show.picture(difference_text(result.difference, a.account, b.account, _width()))]
    facts = []
    if result.table is not None and a.account.latency_ms is not None and b.account.latency_ms is not None:
        change = b.account.latency_ms / a.account.latency_ms - 1
        sources = " and ".join(dict.fromkeys(str(part.account.source) for part in (a, b)))
        by = f"by table {result.table.name} ({sources})"
        facts.append(("latency", f"{result.difference.delta_ms:+.4g} ms ({100 * change:+.1f} %) {by}"))
    if result.judge is not None and result.delta_top1 is not None:
        facts.append((f"top-1 ({result.judge.word})", f"{100 * result.delta_top1:+.2f} points  {_judged(result.judge)}"))
    facts += _table_facts(result.table)
    facts += [("picture", str(result.picture))] if result.picture is not None else []
    facts += [("note", note) for note in result.notes]
    return "\n\n".join([*parts, *([show.pairs(facts)] if facts else [])])


def _side(part: Explained) -> list[str]:
    found = part.account
    cells = [part.network.name, f"{found.macs / 1e6:.2f}", f"{found.params / 1e6:.3f}"]
    cells += [f"{found.latency_ms:.4g}", str(found.source)] if found.latency_ms is not None else []
    return cells + ([f"{100 * part.top1:.2f} %"] if part.top1 is not None else [])
