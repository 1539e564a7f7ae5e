"""What one network takes, and what changes between two: bars in the terminal, a chart as SVG or PNG.

Pure: accounts come in, lines and bytes go out. Where no table was asked, the bars are MACs instead of milliseconds.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import accumulate
from typing import TYPE_CHECKING, Any

from ofasearch.latency.account import Account, Difference, Item, Step
from ofasearch.report.curves import COLOURS, INK, QUIET, legible, short
from ofasearch.space.core import LayerSpec

if TYPE_CHECKING:
    from matplotlib.axes import Axes

PICTURES = (".svg", ".png")
BARS = 8  # columns of bars at least
WIDE = 100  # columns from which parameters are shown too
EIGHTHS = " ▏▎▍▌▋▊▉"
DEAR = 3  # layers named as poor value
NEGLIGIBLE = 0.005  # share of the latency below which no layer is called dear


# -- layers in few words ---------------------------------------------------------------------------------------


def brief(spec: LayerSpec) -> str:
    """A layer in few letters: kernel, expand ratio, stride, squeeze-excite; channels where there is no ratio."""
    plain = {"pool": "pool", "maxpool": "max pool", "linear": f"linear {spec.c_out}"}
    if spec.kind in plain:
        return plain[spec.kind]
    return " ".join(word for word in _words(spec) if word)


def _words(spec: LayerSpec) -> tuple[str, ...]:
    of = spec.c_out if spec.kind == "bottleneck" else spec.c_in
    size = f"{spec.c_in}-{spec.c_out} ch" if spec.kind == "conv" else f"e{spec.c_mid / of:.3g}"
    return f"k{spec.kernel}", size, f"s{spec.stride}" if spec.stride > 1 else "", "se" if spec.c_se else ""


def change(step: Step) -> str:
    """What becomes of a layer, in few letters; its activation only where nothing else changes."""
    before, after = step.before, step.after
    if before is None or after is None:
        some = before or after
        return f"{brief(some)} {'added' if after else 'removed'}" if some is not None else ""
    if before.kind != after.kind:
        return f"{before.kind} {brief(before)} > {after.kind} {brief(after)}"
    pairs = zip(_words(before), _words(after), strict=True)
    words = [f"{old or 'none'} > {new or 'none'}" for old, new in pairs if old != new]
    channels = [(s.c_in, s.c_out) for s in (before, after)]
    if before.kind != "conv" and channels[0] != channels[1]:
        words.append(" > ".join(f"{c_in}-{c_out} ch" for c_in, c_out in channels))
    if before.hw_in != after.hw_in:
        words.append(f"{before.hw_in} > {after.hw_in} px")
    return ", ".join(words) or f"{before.act} > {after.act}"


def dear(found: Account) -> list[tuple[Item, float, float]]:
    """The layers that take most milliseconds beyond what their MACs take at the network's mean rate, at most three.

    With each, how many times the mean rate it takes, and the milliseconds beyond. Empty where no table was asked.
    """
    if found.latency_ms is None:
        return []
    total = sum(item.latency_ms or 0.0 for item in found.items)
    mean = total / found.macs
    beyond = [(item, (item.latency_ms or 0.0) - mean * item.macs) for item in found.items]
    worst = sorted((pair for pair in beyond if pair[1] > NEGLIGIBLE * total), key=lambda pair: -pair[1])
    return [(item, (item.latency_ms or 0.0) / (mean * item.macs) if item.macs else float("inf"), ms) for item, ms in worst[:DEAR]]


# -- in characters ---------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class _Line:
    """A row: name, what it is, the value of its bar (None: no bar), and its figures."""

    name: str
    what: str
    value: float | None
    figures: tuple[str, ...]


def account_text(found: Account, width: int = 80, batch: int = 1) -> tuple[str, ...]:
    """Stages, their layers, the constant and the total, in lines of about `width` characters, bars of one scale.

    `batch` is that of the table: milliseconds per MAC are per MAC of all its images.
    """
    heads, figures = _account_columns(found, width, batch)
    lines = [line for stage in found.stages() for line in _stage_lines(found, stage, figures)]
    if found.constant_ms:
        share = _percent(found.constant_ms / (found.latency_ms or 1.0))
        rest = [""] * (len(heads) - 2)
        lines.append(_Line("constant", "per network", max(0.0, found.constant_ms), (_ms(found.constant_ms, found), share, *rest)))
    total = _Line("total", f"{found.resolution} px", None, figures(found, 1.0))
    return _lay_out(lines, total, heads, width, lambda value, scale, columns: _bar(value / scale, columns).ljust(columns))


def _stage_lines(whole: Account, stage: tuple[str, Account], figures: Callable[[Any, float], tuple[str, ...]]) -> Iterator[_Line]:
    name, found = stage
    if len(found.items) == 1:
        item = found.items[0]
        yield _Line(item.name, brief(item.spec), _value(item), figures(item, whole.share(item)))
        return
    sizes = found.items[0].spec.hw_in, found.items[-1].spec.hw_out
    pixels = f"{sizes[0]} > {sizes[1]} px" if sizes[0] != sizes[1] else f"{sizes[0]} px"
    yield _Line(name, pixels, _value(found), figures(found, sum(whole.share(item) for item in found.items)))
    for item in found.items:
        yield _Line(f"  {item.name.partition('.')[2]}", brief(item.spec), _value(item), figures(item, whole.share(item)))


def _value(found: Item | Account) -> float:
    """What a bar shows: milliseconds, or MACs."""
    return float(found.macs) if found.latency_ms is None else found.latency_ms


def _account_columns(found: Account, width: int, batch: int) -> tuple[list[str], Callable[[Any, float], tuple[str, ...]]]:
    """Headers, and the figures of an item or a stage with its share."""
    sources = {item.source for item in found.items}
    heads = ["M MACs", "share"] if found.latency_ms is None else ["ms", "share", "M MACs", "ms/M MAC"]
    heads += ["M params"] if width >= WIDE else []
    heads += ["source"] if len(sources) > 1 else []

    def figures(part: Any, share: float) -> tuple[str, ...]:
        macs = f"{part.macs / 1e6:.2f}"
        cells = [macs, _percent(share)]
        if found.latency_ms is not None:
            cells = [_ms(part.latency_ms, found), _percent(share), macs, _rate(part.latency_ms, part.macs * batch)]
        cells += [f"{part.params / 1e6:.3f}"] if width >= WIDE else []
        return (*cells, *([str(part.source)] if len(sources) > 1 else []))

    return heads, figures


def _rate(ms: float, macs: int) -> str:
    return f"{ms / (macs / 1e6):.3g}" if macs else "-"


def _percent(share: float) -> str:
    return f"{100 * share:.1f} %"


def _ms(value: float, *accounts: Account, sign: str = "") -> str:
    """Milliseconds with as many decimals as the whole network deserves."""
    largest = max(found.latency_ms or 0.0 for found in accounts)
    return f"{value:{sign}.{1 if largest >= 1000 else 2 if largest >= 100 else 3 if largest >= 1 else 4}f}"


def difference_text(found: Difference, a: Account, b: Account, width: int = 80) -> tuple[str, ...]:
    """From A to B, change by change: bars to the left save, bars to the right cost; at the end the total change."""
    priced = a.latency_ms is not None
    heads = (["ms"] if priced else []) + ["M MACs", "M params"] + (["ms then"] if priced and width >= WIDE else [])
    reached = a.latency_ms or 0.0

    def figures(ms: float | None, macs: int, params: int, then: float | None) -> tuple[str, ...]:
        cells = [_ms(ms, a, b, sign="+")] if ms is not None else []
        cells += [f"{macs / 1e6:+.2f}", f"{params / 1e6:+.3f}"]
        return (*cells, *([_ms(then, a, b) if then is not None else ""] if "ms then" in heads else []))

    lines = []
    for stage, steps in _by_stage(found.steps):
        if len(steps) > 1:
            ms = sum(s.delta_ms for s in steps if s.delta_ms is not None) if priced else None
            macs, params = sum(s.delta_macs for s in steps), sum(s.delta_params for s in steps)
            lines.append(_Line(stage, f"{len(steps)} changes", ms if ms is not None else macs, figures(ms, macs, params, None)))
        for step in steps:
            reached += step.delta_ms or 0.0
            name, what = _step_words(step, indented=len(steps) > 1)
            value = step.delta_ms if step.delta_ms is not None else step.delta_macs
            lines.append(_Line(name, what, value, figures(step.delta_ms, step.delta_macs, step.delta_params, reached)))
    ms = found.delta_ms if priced else None
    total = _Line("total", f"{a.resolution} > {b.resolution} px", None, figures(ms, b.macs - a.macs, b.params - a.params, b.latency_ms))
    return _lay_out(lines, total, heads, width, _sided_bar)


def _step_words(step: Step, *, indented: bool) -> tuple[str, str]:
    """Name and change, as narrow as they can be said."""
    if step.before is None and step.after is None:  # the resolution or the constant
        last = step.name.rpartition(" ")[2]
        return ("constant", "per network") if last == "constant" else ("resolution", step.name.partition(" ")[2].replace("->", ">") + " px")
    return f"  {step.name.partition('.')[2]}" if indented else step.name, change(step)


def _by_stage(steps: Sequence[Step]) -> Iterator[tuple[str, list[Step]]]:
    """Neighbouring steps of one stage together."""
    stages: list[tuple[str, list[Step]]] = []
    for step in steps:
        if stages and stages[-1][0] == step.stage and "." in step.name:
            stages[-1][1].append(step)
        else:
            stages.append((step.stage, [step]))
    yield from stages


Bar = Callable[[float, float, int], str]


def _lay_out(lines: Sequence[_Line], total: _Line, heads: Sequence[str], width: int, bar: Bar) -> tuple[str, ...]:
    """The rows under one another; what the other columns leave is for the bars."""
    everything = [*lines, total]
    name = max(len(line.name) for line in everything)
    most = max(12, width // 3)
    what = max(min(most, len(line.what)) for line in everything)
    columns = [max(len(head), *(len(line.figures[i]) for line in everything)) for i, head in enumerate(heads)]
    left = width - name - what - sum(columns) - 2 * (len(columns) + 2)
    bars = max(BARS, left)
    scale = max((abs(line.value) for line in lines if line.value is not None), default=0.0)

    def row(line: _Line) -> str:
        drawn = bar(line.value, scale, bars) if line.value is not None and scale else " " * bars
        cells = [line.name.ljust(name), short(line.what, most).ljust(what), drawn]
        return "  ".join([*cells, *(cell.rjust(size) for cell, size in zip(line.figures, columns, strict=True))]).rstrip()

    head = row(_Line("", "", None, tuple(heads)))
    rule = "-" * max(len(head), *(len(row(line)) for line in lines)) if lines else "-" * len(head)
    return (head, *(row(line) for line in lines), rule, row(total))


def _bar(share: float, columns: int) -> str:
    """A bar to the right, in eighths of a column; what is more than nothing is seen."""
    eighths = max(round(share * columns * 8), 1 if share > 0 else 0)
    return ("█" * (eighths // 8) + EIGHTHS[eighths % 8]).rstrip()


def _sided_bar(value: float, scale: float, columns: int) -> str:
    """A bar to the left or to the right of the middle, in halves of a column."""
    side = (columns - 1) // 2
    halves = max(round(abs(value) / scale * side * 2), 1 if value else 0)
    full, half = divmod(halves, 2)
    if value < 0:
        return f"{('▐' if half else '') + '█' * full:>{side}}│{' ' * side}".ljust(columns)
    return f"{' ' * side}│{('█' * full + ('▌' if half else '')):<{side}}".ljust(columns)


# -- as a picture ----------------------------------------------------------------------------------------------

SAVED, COSTS = "#009e73", "#d55e00"


def draw_account(found: Account, name: str, by: str, kind: str) -> bytes:
    """One bar per layer in the network's order, coloured by stage, as "svg" or "png". `by` tells by what table."""
    unit, scale = ("ms", 1.0) if found.latency_ms is not None else ("M MACs", 1e-6)
    stages = [stage for stage, _ in found.stages()]
    bars = [(item.name, brief(item.spec), _value(item) * scale, found.share(item), stages.index(item.stage)) for item in found.items]
    if found.constant_ms:
        bars.append(("constant", "per network", found.constant_ms, found.constant_ms / (found.latency_ms or 1.0), -1))
    total = f"{_ms(found.latency_ms, found)} ms, " if found.latency_ms is not None else ""

    def plot(axes: Axes) -> None:
        for row, (_, _, value, share, stage) in enumerate(bars):
            axes.barh(row, value, color=QUIET if stage < 0 else COLOURS[stage % len(COLOURS)], height=0.75)
            text = f"{_ms(value, found) if unit == 'ms' else f'{value:.2f}'} ({_percent(share)})"
            axes.annotate(text, (max(value, 0.0), row), xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
        axes.set_yticks(range(len(bars)), [legible(f"{label}  {what}") for label, what, *_ in bars], parse_math=False, fontsize=8)
        axes.set_xlabel(unit, color=INK)
        axes.margins(x=0.15)

    title = f"{name}\n{total}{found.macs / 1e6:.4g} M MACs{f', by table {by}' if by else ''}"
    return _picture(plot, len(bars), title, kind)


def draw_difference(found: Difference, a: Account, b: Account, title: str, by: str, kind: str) -> bytes:
    """A waterfall from A to B: each bar begins where the one before it ended. The axis need not begin at 0."""
    priced = a.latency_ms is not None
    unit = "ms" if priced else "M MACs"
    start, end = (x.latency_ms if x.latency_ms is not None else x.macs / 1e6 for x in (a, b))
    values = [s.delta_ms if s.delta_ms is not None else s.delta_macs / 1e6 for s in found.steps]
    labels = ["A", *(f"{s.name}  {change(s)}".strip() for s in found.steps), "B"]

    def plot(axes: Axes) -> None:
        reached = start
        axes.plot([start], [0], "D", color=INK)
        for row, value in enumerate(values, start=1):
            axes.barh(row, value, left=reached, color=SAVED if value < 0 else COSTS, height=0.7)
            axes.plot([reached, reached], [row - 1, row], color=QUIET, linewidth=0.7)
            reached += value
            text = _ms(value, a, b, sign="+") if priced else f"{value:+.2f}"
            place = (max(reached, reached - value), row)
            axes.annotate(text, place, xytext=(4, 0), textcoords="offset points", va="center", fontsize=8, color=INK)
        axes.plot([reached, end], [len(values), len(values) + 1], color=QUIET, linewidth=0.7)
        axes.plot([end], [len(values) + 1], "D", color=INK)
        totals = list(accumulate(values, initial=start))
        room = (max(totals) - min(totals)) or 1.0
        axes.set_xlim(min(totals) - 0.05 * room, max(totals) + 0.25 * room)
        for row, value in ((0, start), (len(values) + 1, end)):
            text = f"{_ms(value, a, b) if priced else f'{value:.2f}'} {unit}"
            axes.annotate(text, (value, row), xytext=(8, 0), textcoords="offset points", va="center", fontsize=9, color=INK)
        axes.set_yticks(range(len(labels)), [legible(label) for label in labels], parse_math=False, fontsize=8)
        axes.set_xlabel(unit, color=INK)

    change_of_all = _ms(end - start, a, b, sign="+") if priced else f"{end - start:+.2f}"
    return _picture(plot, len(labels), f"{title}\n{change_of_all} {unit}{f', by table {by}' if by else ''}", kind)


def _picture(plot: Callable[[Axes], None], rows: int, title: str, kind: str) -> bytes:
    """A figure of so many rows; the settings of the user's matplotlib do not change it, and the same gives the same bytes."""
    from matplotlib import rc_context, style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context("default", after_reset=True), rc_context({"svg.fonttype": "none", "svg.hashsalt": "ofasearch"}):
        figure = Figure(figsize=(9, 1.4 + 0.24 * rows), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        lines = [short(legible(line), 110) for line in title.splitlines()]
        figure.suptitle("\n".join(lines), fontsize=10, fontweight="bold", color=INK, parse_math=False)
        axes: Axes = figure.add_subplot()
        plot(axes)
        axes.invert_yaxis()
        axes.grid(visible=True, axis="x", color="#d4d9e0", linewidth=0.7)
        axes.set_axisbelow(True)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(colors=QUIET)
        buffer = io.BytesIO()
        figure.savefig(buffer, format=kind, metadata={"Date": None} if kind == "svg" else {"Software": None})
    return buffer.getvalue()


__all__ = ["PICTURES", "account_text", "brief", "change", "dear", "difference_text", "draw_account", "draw_difference"]
