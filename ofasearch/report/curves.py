"""The curves of training runs, in the terminal and as a PNG. Pure: records come in, text and bytes go out.

A `Drawing` stands between the two: what is to be seen, whether in characters or in pixels.
"""

from __future__ import annotations

import io
import itertools
import textwrap
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

LANDMARKS = {"largest": "L", "middle": "m", "smallest": "s"}  # network of a supernet -> its mark in the terminal
SUBNET = "subnet"  # the network of a run that trains one alone
MARKS = "123456789abcdefghijk"  # of compared runs
NUMBERS = ("loss", "lr")  # what every line says
OTHER_NUMBERS = ("step", "passes", "images_per_second", "seconds", "device_hours", "dollars", "kg_co2")
TITLES = ("loss", "validation top-1, %", "learning rate")
MOST, LATEST = 1e30, 10**9  # a number or an epoch beyond was never logged by a training

Point = tuple[int, float]  # epoch, value


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """A training run: its name, what was asked (`run.json`) and what was logged, a line per epoch.

    Every line is one that `is_line` takes, there is at least one, and their epochs rise.
    """

    name: str
    card: Mapping[str, Any]
    lines: tuple[Mapping[str, Any], ...]

    def values(self, key: str) -> tuple[Point, ...]:
        """A number of every line that has it."""
        return tuple((line["epoch"], line[key]) for line in self.lines if key in line)

    def top1(self, network: str) -> tuple[Point, ...]:
        """Validation top-1 of a landmark network, a fraction, at the epochs that measured it."""
        found = ((line["epoch"], line.get("validation_top1", {})) for line in self.lines)
        return tuple((epoch, scores[network]) for epoch, scores in found if network in scores)

    @property
    def leading(self) -> tuple[Point, ...]:
        """Validation top-1 of the largest network, or of the only one."""
        return self.top1(SUBNET) or self.top1("largest")


@dataclass(frozen=True, slots=True)
class Series:
    """One line of a panel; `mark` stands for it where there is no colour."""

    label: str
    mark: str
    points: tuple[Point, ...]


@dataclass(frozen=True, slots=True)
class Panel:
    """One picture of several that share their epochs."""

    title: str
    series: tuple[Series, ...]

    @property
    def points(self) -> tuple[Point, ...]:
        """Those of all series."""
        return tuple(point for series in self.series for point in series.points)


@dataclass(frozen=True, slots=True)
class Band:
    """Epochs in a row that belong to one phase, the last one included."""

    name: str
    first: int
    last: int


@dataclass(frozen=True, slots=True)
class Drawing:
    """What is to be seen: panels from top to bottom, and the phases where there is more than one."""

    title: str
    panels: tuple[Panel, ...]
    bands: tuple[Band, ...] = ()

    @property
    def span(self) -> tuple[int, int]:
        """First and last epoch."""
        epochs = [epoch for panel in self.panels for epoch, _ in panel.points]
        return min(epochs), max(epochs)


# -- from records to a drawing ---------------------------------------------------------------------------------


def is_line(record: Any) -> bool:
    """Whether a record is a line of a training's log: what is drawn or told of it has the right type."""
    if not isinstance(record, dict):
        return False
    epoch, scores = record.get("epoch"), record.get("validation_top1", {})
    if not isinstance(epoch, int) or isinstance(epoch, bool) or not 1 <= epoch <= LATEST or not isinstance(record.get("phase", ""), str):
        return False
    numbers = [record.get(key) for key in NUMBERS] + [record[key] for key in OTHER_NUMBERS if key in record]
    fractions = list(scores.values()) if isinstance(scores, dict) else [None]
    return all(_is_number(value, MOST) for value in numbers) and all(_is_number(value, 1.0) for value in fractions)


def _is_number(value: Any, most: float) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and 0 <= value <= most


def draw_run(run: Run) -> Drawing:
    """Loss, validation top-1 of the three landmark networks, or of the only one, and learning rate of one run."""
    names = {SUBNET: "*"} if run.top1(SUBNET) else LANDMARKS
    networks = tuple(Series(name, mark, _percent(run.top1(name))) for name, mark in names.items())
    panels = (_one(TITLES[0], run.values("loss")), Panel(TITLES[1], networks), _one(TITLES[2], run.values("lr")))
    return Drawing(_title(short(run.name, 40), [run]), panels, bands(run.lines))


def draw_comparison(runs: Sequence[Run]) -> Drawing:
    """Loss, validation top-1 of the largest network, and learning rate of several runs, at most as many as `MARKS`."""

    def panel(title: str, values: Sequence[tuple[Point, ...]]) -> Panel:
        return Panel(title, tuple(Series(short(r.name, 40), m, p) for r, m, p in zip(runs, MARKS, values, strict=False)))

    accuracies = panel(f"{TITLES[1]}, largest network", [_percent(run.leading) for run in runs])
    losses, rates = panel(TITLES[0], [r.values("loss") for r in runs]), panel(TITLES[2], [r.values("lr") for r in runs])
    return Drawing(_title(f"{len(runs)} runs", runs), (losses, accuracies, rates))


def bands(lines: Sequence[Mapping[str, Any]]) -> tuple[Band, ...]:
    """The phases of a run; none where it has one alone, or was logged before phases were."""
    found: list[Band] = []
    for name, part in itertools.groupby(lines, lambda line: str(line.get("phase", ""))):
        epochs = [line["epoch"] for line in part]
        found.append(Band(name, epochs[0], epochs[-1]))
    return tuple(found) if len(found) > 1 else ()


def short(text: str, most: int) -> str:
    """A text of at most so many characters."""
    return text if len(text) <= most else f"{text[: most - 1]}…"


def _one(title: str, points: tuple[Point, ...]) -> Panel:
    return Panel(title, (Series(title, "*", points),))


def _percent(points: tuple[Point, ...]) -> tuple[Point, ...]:
    return tuple((epoch, 100 * value) for epoch, value in points)


def _title(name: str, runs: Sequence[Run]) -> str:
    """A name with the space, strategy and data that were asked of all the runs."""
    asked = [[str(run.card.get(key, "")) for key in ("space", "strategy", "data")] for run in runs]
    shared = [values[0].replace("\\", "/").rstrip("/").rpartition("/")[2] for values in zip(*asked, strict=True) if len(set(values)) == 1]
    return f"{name}: {', '.join(short(part, 40) for part in shared if part)}" if any(shared) else name


def _staggered(starts: Sequence[int], lengths: Sequence[int], width: int) -> list[tuple[int, int]]:
    """(row, start) of names that begin at `starts` and must neither touch nor leave the width: the highest free row each."""
    ends: list[int] = []  # of the rows so far
    placed = []
    for wanted, length in zip(starts, lengths, strict=True):
        start = max(0, min(wanted, width - length))
        row = next((r for r, end in enumerate(ends) if end <= start), len(ends))
        ends[row:] = [start + length + 2, *ends[row + 1 :]]
        placed.append((row, start))
    return placed


# -- in characters ---------------------------------------------------------------------------------------------

ROWS = (5, 7, 3)  # of the panels, in characters
DOTS = ((0x01, 0x02, 0x04, 0x40), (0x08, 0x10, 0x20, 0x80))  # bits of a braille character: left and right column
MARK_EVERY = 6  # columns between two marks of a series, at least
NAME_ROWS = 4  # of phases below the epochs


def to_text(drawing: Drawing, width: int = 80) -> tuple[str, ...]:
    """The drawing in lines of at most `width` characters (40 or more), curves in braille; names are as the records say them."""
    labels = [_extremes(panel) for panel in drawing.panels]
    margin = max((len(text) for pair in labels for text in pair), default=0)
    columns = width - margin - 2
    edges = {_place(after.first - 0.5, drawing.span, columns) for after in drawing.bands[1:]}
    lines = [short(drawing.title, width)]
    legend = ""
    for panel, rows, (high, low) in zip(drawing.panels, ROWS, labels, strict=True):
        named = "  ".join(f"{series.mark} {series.label}" for series in panel.series if len(panel.series) > 1)
        lines += ["", *textwrap.wrap(f"{panel.title}:  {named}" if named != legend and named else panel.title, width)]
        legend = named
        if not panel.points:
            lines.append(f"{' ' * margin}  none logged so far")
            continue
        for number, cells in enumerate(_cells(panel, drawing.span, columns, rows, edges)):
            label = high if number == 0 else low if number == rows - 1 else ""
            lines.append(f"{label.rjust(margin)} {'┤' if label else '│'}{cells}".rstrip())
    axis = "".join("┴" if column in edges else "─" for column in range(columns))
    return (*lines, f"{' ' * margin} └{axis}", *(" " * (margin + 2) + line for line in _below(drawing, columns)))


def to_ascii(line: str) -> str:
    """A line of curves or bars for a terminal that knows no more than ASCII."""
    known = {"─": "-", "┴": "+", "└": "+", "┤": "|", "│": "|", "┊": ":", "…": "~"}
    known |= dict.fromkeys("█▉▊▋▌▐", "#") | dict.fromkeys("▍▎▏", " ")
    return "".join(c if c.isascii() else known.get(c, "*" if 0x2800 < ord(c) < 0x2900 else "?") for c in line)


def _extremes(panel: Panel) -> tuple[str, str]:
    """The largest and the smallest value of a panel; the second is empty where all are equal."""
    values = [value for _, value in panel.points]
    high, low = (f"{value:.4g}" for value in (max(values), min(values))) if values else ("", "")
    return high, low if high != low else ""


def _place(epoch: float, span: tuple[int, int], places: int) -> int:
    """Which of so many places from left to right is an epoch's."""
    first, last = span
    return round((epoch - first) / (last - first) * (places - 1)) if last > first else 0


def _cells(panel: Panel, span: tuple[int, int], columns: int, rows: int, edges: set[int]) -> Iterator[str]:
    """The lines of a panel, without its axis; the first series lies on top."""
    values = [value for _, value in panel.points]
    low, high = min(values), max(values)
    bits = [[0] * columns for _ in range(rows)]
    marks: dict[tuple[int, int], str] = {}
    for series in panel.series:
        dots = [
            (_place(epoch, span, 2 * columns), round((high - value) / (high - low) * (4 * rows - 1)) if high > low else 0)
            for epoch, value in series.points
        ]
        for x, y in strokes(dots):
            bits[y // 4][x // 2] |= DOTS[x % 2][y % 4]
        if len(panel.series) > 1:
            _mark(marks, series.mark, [(x // 2, y // 4) for x, y in dots], every=len(panel.series))
    for row in range(rows):
        shown = (chr(0x2800 + dots) if dots else "┊" if column in edges else " " for column, dots in enumerate(bits[row]))
        yield "".join(marks.get((column, row), cell) for column, cell in enumerate(shown))


def strokes(dots: Sequence[tuple[int, int]]) -> Iterator[tuple[int, int]]:
    """All dots of a line through the given ones, without gaps."""
    yield from dots[:1]
    for (x, y), (to_x, to_y) in itertools.pairwise(dots):
        steps = max(abs(to_x - x), abs(to_y - y), 1)
        for n in range(1, steps + 1):
            yield x + round((to_x - x) * n / steps), y + round((to_y - y) * n / steps)


def _mark(marks: dict[tuple[int, int], str], mark: str, cells: Sequence[tuple[int, int]], every: int) -> None:
    """Mark a series at its last free cell and now and then before, so seldom that as many series have room side by side."""
    skip, right = 0, None
    for cell in reversed(cells):
        skip -= 1
        if skip < 0 and cell not in marks and (right is None or cell[0] <= right - MARK_EVERY):
            marks[cell] = mark
            skip, right = every - 1, cell[0]


def _below(drawing: Drawing, columns: int) -> Iterator[str]:
    """First and last epoch, and the names of the phases under their beginnings."""
    first, last = drawing.span
    yield f"epoch {first}" + (str(last).rjust(columns - len(f"epoch {first}")) if last > first else "")
    names = [f"{short(b.name or 'unnamed', 20)} {b.first}" + (f"-{b.last}" if b.last > b.first else "") for b in drawing.bands]
    places = [_place(band.first, drawing.span, columns) for band in drawing.bands]
    placed = _staggered(places, [len(name) for name in names], columns)
    for row in range(NAME_ROWS):
        line = ""
        for name, (own, start) in zip(names, placed, strict=True):
            line = line.ljust(start) + name if own == row else line
        if line:
            yield line
    hidden = sum(row >= NAME_ROWS for row, _ in placed)
    if hidden:
        yield f"and {hidden} more"


# -- in pixels -------------------------------------------------------------------------------------------------

COLOURS = ("#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9", "#6a3d9a", "#8c564b", "#4d4d4d", "#b2a100")
INK, QUIET, TINTS = "#222222", "#666666", ("#e8eef6", "#f8fafc")
FEW = 60  # points that are marked each


def to_png(drawing: Drawing) -> bytes:
    """The drawing as a PNG, 1350 pixels wide; the settings of the user's matplotlib do not change it."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    with style.context("default", after_reset=True):
        figure = Figure(figsize=(9, 8), dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        figure.suptitle(legible(drawing.title), fontsize=12, fontweight="bold", color=INK, parse_math=False)
        axes: list[Axes] = list(figure.subplots(len(drawing.panels), 1, sharex=True, height_ratios=(3, 4, 2)))
        first, last = drawing.span
        axes[0].set_xlim(first - 0.5, last + 0.5)
        for axis, panel in zip(axes, drawing.panels, strict=True):
            _shade(axis, drawing.bands)
            _plot(axis, panel)
        _name_bands(axes[0], drawing)
        _legends(figure, axes, drawing.panels)
        figure.align_ylabels(axes)
        axes[-1].set_xlabel("epoch", color=INK)
        axes[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
        buffer = io.BytesIO()
        figure.savefig(buffer, format="png")
    return buffer.getvalue()


def _plot(axis: Axes, panel: Panel) -> None:
    """The lines of a panel, the first on top."""
    axis.set_ylabel(panel.title.replace(", l", "\nl"), color=INK)
    for number, series in reversed(list(enumerate(panel.series))):
        epochs, values = [epoch for epoch, _ in series.points], [value for _, value in series.points]
        axis.plot(
            epochs,
            values,
            color=COLOURS[number % len(COLOURS)],
            linestyle="-" if number < len(COLOURS) else "--",
            linewidth=1.8,
            marker="o" if len(epochs) <= FEW else "",
            markersize=4,
        )
    if not panel.points:
        axis.text(0.5, 0.5, "none logged so far", transform=axis.transAxes, ha="center", va="center", color=QUIET)
        axis.set_yticks([])
    else:
        axis.ticklabel_format(axis="y", useOffset=False)
        axis.locator_params(axis="y", nbins=6)
    axis.grid(visible=True, axis="y", color="#d4d9e0", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.spines[["left", "bottom"]].set_color("#9aa3ad")
    axis.tick_params(colors=QUIET, labelsize=9)


def _shade(axis: Axes, phases: Sequence[Band]) -> None:
    for number, band in enumerate(phases):
        axis.axvspan(band.first - 0.5, band.last + 0.5, color=TINTS[number % 2], zorder=-2, linewidth=0)
        if number:
            axis.axvline(band.first - 0.5, color="#b8c2ce", linewidth=0.8, linestyle=(0, (2, 2)), zorder=-1)


def _name_bands(axis: Axes, drawing: Drawing) -> None:
    """The names of the phases above the panel, over their beginnings."""
    width = 105  # letters of this size that stand side by side
    first, last = drawing.span
    names = [legible(short(band.name or "unnamed", 20)) for band in drawing.bands]
    places = [round((band.first - first) / (last - first + 1) * width) for band in drawing.bands]
    for name, (row, start) in zip(names, _staggered(places, [len(name) for name in names], width), strict=True):
        if row < NAME_ROWS:
            axis.annotate(
                name, (start / width, 1), xycoords="axes fraction", xytext=(2, 3 + 12 * row), textcoords="offset points",
                fontsize=9, color=QUIET, parse_math=False,
            )  # fmt: skip


def _legends(figure: Figure, axes: Sequence[Axes], panels: Sequence[Panel]) -> None:
    """One legend: in the panel that alone has several lines, or below all where all have the same."""
    several = [number for number, panel in enumerate(panels) if len(panel.series) > 1]
    if not several or not panels[several[0]].points:
        return
    panel = panels[several[0]]
    handles = list(reversed(axes[several[0]].lines))[: len(panel.series)]
    blank = ["-"] * len(handles)  # names that begin with _ would be left out
    if len(several) == 1:
        texts = [f"{series.label}, last {series.points[-1][1]:.2f}" if series.points else series.label for series in panel.series]
        legend = axes[several[0]].legend(handles, blank, loc="best", fontsize=9, framealpha=0.9, edgecolor="none")
    else:
        texts = [series.label for series in panel.series]
        columns = 2 if max(map(len, texts)) > 24 else 4
        legend = figure.legend(handles, blank, loc="outside lower center", ncols=columns, fontsize=9, frameon=False)
    for label, text in zip(legend.get_texts(), texts, strict=True):
        label.set_text(legible(text))
        label.set_parse_math(False)


def legible(text: str) -> str:
    """The text with ? for what the picture's font does not know."""
    from matplotlib.font_manager import findfont, get_font

    known = get_font(findfont("DejaVu Sans")).get_charmap()
    return "".join(c if c.isprintable() and ord(c) in known else "?" for c in text)


__all__ = [
    "LANDMARKS",
    "MARKS",
    "SUBNET",
    "Band",
    "Drawing",
    "Panel",
    "Run",
    "Series",
    "bands",
    "draw_comparison",
    "draw_run",
    "is_line",
    "short",
]
__all__ += ["COLOURS", "INK", "QUIET", "legible", "to_ascii", "to_png", "to_text"]
