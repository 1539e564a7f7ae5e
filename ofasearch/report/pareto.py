"""A front for people: the table and picture on the screen, the CSV, the plot. Pure: records come in, text and bytes go out.

A record is that of `result.json` (see `ofasearch.jobs.pareto`); accuracies in it are fractions, shown here in %.
"""

from __future__ import annotations

import csv
import io
import itertools
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

from ofasearch.report import canvas, sketch
from ofasearch.report.curves import COLOURS, INK, legible

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
Point = sketch.Point
SHOWN, ALL = 15, 20  # networks of a front on the screen, and how many are shown one and all
KNEE, PREFERRED = "K", "*"
COLUMNS: Mapping[str, tuple[str, Callable[[float], str]]] = {  # field of a network -> heading, spelling
    "predicted_top1": ("top-1", lambda v: f"{100 * v:.2f} %"),
    "lower_bound_top1": ("lower bound", lambda v: f"{100 * v:.2f} %"),
    "latency_ms": ("latency by table", lambda v: f"{v:.3f} ms"),
    "macs": ("MACs", lambda v: f"{v / 1e6:.2f} M"),
    "params": ("parameters", lambda v: f"{v / 1e6:.3f} M"),
    "activation_bytes": ("activations", lambda v: f"{v / 1e6:.3f} MB"),
}


def spelled(key: str, value: float) -> str:
    """A value of a network for people."""
    return COLUMNS[key][1](value)


# -- the table -------------------------------------------------------------------------------------------------


def table(record: Record) -> tuple[list[str], list[tuple[str, ...]]]:
    """Headers and rows of at most about SHOWN networks, spread evenly along the front, with knee and preferred one marked."""
    front, keys = record["front"], list(record["objective_fields"])
    if keys[0] != "predicted_top1":
        keys.insert(0, "predicted_top1")
    bars = any("error_bar" in point for point in front)
    headers = ["", "architecture", *(heading(key, record) for key in keys)]
    rows = []
    for index in _evenly(front, record["objective_fields"]):
        point = front[index]
        cells = [spelled(key, point[key]) for key in keys]
        if bars:
            cells[0] = f"{cells[0].removesuffix(' %')} ± {100 * point['error_bar']:.2f} %"
        rows.append((_mark(point), point["arch_id"], *cells))
    return headers, rows


def heading(key: str, record: Record) -> str:
    """What stands above a column: what the figure is, and how it is known."""
    name = COLUMNS[key][0]
    if key in ("predicted_top1", "lower_bound_top1"):
        return f"{name} ({'validation' if 'measured' in record['predicted_top1_source'] else 'predicted'})"
    if key == "latency_ms":
        return "latency (each measured)" if record.get("measure") == "direct" else f"{name} ({record['latency_source']})"
    return name


def _mark(point: Record) -> str:
    return (PREFERRED if point["preferred"] else "") + (KNEE if point["knee"] else "")


def _evenly(front: Sequence[Record], keys: Sequence[str]) -> list[int]:
    """Positions of networks at even distances along the front, its ends, its knee and the preferred one among them."""
    if len(front) <= ALL:
        return list(range(len(front)))
    values = np.array([[point[key] for key in keys] for point in front], dtype=float)
    span = np.ptp(values, axis=0)
    steps = np.linalg.norm(np.diff(values, axis=0) / np.where(span > 0, span, 1.0), axis=1)
    way = np.r_[0.0, np.cumsum(steps)]
    wanted = np.linspace(0.0, way[-1], SHOWN)
    nearest = np.abs(way[:, None] - wanted).argmin(axis=0)
    marked = [i for i, point in enumerate(front) if point["knee"] or point["preferred"]]
    return sorted({*nearest.tolist(), 0, len(front) - 1, *marked})


def facts(record: Record) -> list[tuple[str, str]]:
    """What the front is, its marked networks, how it was found, and where it lies: names and values."""
    found = [("front", _size(record))]
    for name, mark in (("knee", KNEE), ("preferred", PREFERRED)):
        if name in record:
            why = f"  ({record['preferred_because']})" if name == "preferred" else ""
            found.append((f"{name} {mark}", _network(record, record[name]) + why))
    corners = (record["hypervolume_reference"], record["hypervolume_best"])
    between = " to ".join(", ".join(spelled(key, corner[key]) for key in record["objective_fields"]) for corner in corners)
    found.append(("hypervolume", f"{record['hypervolume']:.4f}, where the box from {between} is 1"))
    found.append(("search", f"{record['evaluations']:,} networks by {record['algorithm']} in {record['search_seconds']:.2f} s"))
    return found + [(name.replace("_", " "), path) for name, path in record["files"].items()] + [("note", note) for note in record["notes"]]


def _size(record: Record) -> str:
    n, shown = len(record["front"]), len(_evenly(record["front"], record["objective_fields"]))
    networks = f"{n} network{'s' if n != 1 else ''}{f' ({shown} shown)' if shown < n else ''}"
    if record["exact"]:
        of = " that keep the limits" if record["limits"] else ""
        return f"{networks}, exact: all {record['evaluations']:,} of the space{of} were compared"
    return f"{networks} that none of the {record['evaluations']:,} evaluated beats"


def _network(record: Record, point: Record) -> str:
    return f"{point['arch_id']}  {', '.join(spelled(key, point[key]) for key in record['objective_fields'])}"


def comparison(record: Record) -> tuple[list[str], list[tuple[str, ...]]]:
    """Headers and rows: what each search found of the exact front."""
    headers = [
        "algorithm",
        "networks",
        "seconds",
        "front",
        "hypervolume of exact",
        "networks to 99 %",
        "worst loss, points",
        "mean",
        "uncovered",
    ]
    rows = []
    for line in record["compare"]:
        to_enough = f"{line['evaluations_to_99']:,}" if "evaluations_to_99" in line else "-"
        losses = (f"{100 * line[key]:.3f}" if key in line else "-" for key in ("worst_loss", "mean_loss"))
        cells = (
            f"{line['evaluations']:,}",
            f"{line['search_seconds']:.2f}",
            str(line["points"]),
            f"{100 * line['hypervolume_share']:.2f} %",
        )
        rows.append((line["algorithm"], *cells, to_enough, *losses, str(line["uncovered"])))
    return headers, rows


# -- the files -------------------------------------------------------------------------------------------------


def csv_text(record: Record) -> str:
    """One row per network of the front, the most accurate first; a cell is empty where nothing is known."""
    keys = ["arch_id", "predicted_top1", "error_bar", "lower_bound_top1", "predicted_top1_source", "latency_ms", "latency_source"]
    keys += ["macs", "params", "activation_bytes"]
    used = [key for key in keys if any(key in point for point in record["front"])]
    text = io.StringIO()
    writer = csv.DictWriter(text, [*used, "knee", "preferred"], extrasaction="ignore", lineterminator="\n")
    writer.writeheader()
    for point in record["front"]:
        writer.writerow({**point, "knee": int(point["knee"]), "preferred": int(point["preferred"])})
    return text.getvalue()


def trace_csv(traces: Sequence[Record]) -> str:
    """One row per search and generation."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["algorithm", "generation", "evaluations", "points", "hypervolume"])
    for trace in traces:
        for line in trace["trace"]:
            writer.writerow([trace["algorithm"], line["generation"], line["evaluations"], line["points"], line["hypervolume"]])
    return text.getvalue()


# -- the pictures ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawing:
    """What is to be seen: points are (cost, accuracy) in the units of the labels, traces (networks, hypervolume)."""

    title: str
    cost: str
    accuracy: str
    front: tuple[Point, ...]
    name: str  # of the search that found it
    shade: tuple[float, ...] = ()  # a third objective of each point; without one the front is a line
    shade_label: str = ""
    knee: Point | None = None
    preferred: Point | None = None
    exact: tuple[Point, ...] = ()  # where it is known and another one than the front
    others: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)  # fronts of searches that were compared
    traces: Mapping[str, tuple[Point, ...]] = field(default_factory=dict)
    exact_hypervolume: float | None = None

    @property
    def line(self) -> bool:
        """Whether the front is a staircase: it has two objectives."""
        return not self.shade

    @property
    def marked(self) -> dict[str, Point]:
        """The marked points by their mark; the preferred one last, so that it lies on top."""
        return {mark: point for mark, point in ((KNEE, self.knee), (PREFERRED, self.preferred)) if point is not None}


def to_text(drawing: Drawing, width: int = 80) -> tuple[str, ...]:
    """The front in lines of at most `width` characters (40 or more), in braille, the marked networks as letters."""
    letters = {point: mark for mark, point in drawing.marked.items()}  # of marks of one point the last
    marks = tuple((mark, point) for point, mark in letters.items())
    seen: dict[str, Any] = {"ways": (tuple(_stairs(drawing.front)),)} if drawing.line else {"dots": drawing.front}
    return sketch.to_text(sketch.Sketch(title=drawing.title, x=drawing.cost, y=drawing.accuracy, marks=marks, **seen), width)


def _stairs(front: Sequence[Point]) -> list[Point]:
    """The best accuracy at every cost: from each point level to the next dearer one, then up."""
    points = sorted(front)
    corners = [(after[0], before[1]) for before, after in itertools.pairwise(points)]
    return [points[0], *(point for pair in zip(corners, points[1:], strict=True) for point in pair)]


def to_png(drawing: Drawing) -> bytes:
    """The front as a PNG, and beside it the hypervolume trace where there is one; the user's matplotlib settings do not change it."""
    panels = 2 if any(len(trace) > 1 for trace in drawing.traces.values()) else 1

    def draw(figure: Figure) -> None:
        figure.suptitle(legible(drawing.title), fontsize=11, color=INK, parse_math=False)
        axes = np.atleast_1d(figure.subplots(1, panels))
        _plot_front(axes[0], drawing)
        if panels > 1:
            _plot_traces(axes[1], drawing)
        for axis in axes:
            canvas.quiet(axis)
            axis.legend(fontsize=8)

    return canvas.png((6.8 * panels, 4.8), draw)


def _plot_front(axis: Axes, drawing: Drawing) -> None:
    """The front, the exact one beneath it, what other searches found, and the marked networks."""
    level: dict[str, Any] = {"drawstyle": "steps-post"} if drawing.line else {"linestyle": "none", "marker": "o"}
    if drawing.exact:
        axis.plot(*_sorted(drawing.exact), **level, color="0.75", linewidth=4, markersize=7, label="exact front", zorder=1)
    for name, found in drawing.others.items():
        axis.plot(*_sorted(found), "x", color=_colour(name, drawing), markersize=5, label=name, zorder=4)
    _plot_own(axis, drawing)
    for mark, name, shape, size in ((KNEE, "knee", "D", 9), (PREFERRED, "preferred", "*", 15)):
        if mark in drawing.marked:
            ring: dict[str, Any] = {"marker": shape, "markersize": size, "markerfacecolor": "none", "markeredgewidth": 1.6}
            axis.plot(*drawing.marked[mark], **ring, color=COLOURS[1], linestyle="none", label=name, zorder=5)
    axis.set(xlabel=legible(drawing.cost), ylabel=legible(drawing.accuracy))
    axis.ticklabel_format(useOffset=False)


def _plot_own(axis: Axes, drawing: Drawing) -> None:
    """The front itself: of two objectives the best accuracy at every cost, of more its points, shaded by the third."""
    costs, accuracies = _sorted(drawing.front)
    label, colour = f"{drawing.name} front", _colour(drawing.name, drawing)
    if drawing.line:
        axis.plot(costs, accuracies, "o-", drawstyle="steps-post", color=colour, markersize=3.5, linewidth=1, label=label, zorder=3)
    else:
        costs, accuracies = zip(*drawing.front, strict=True)
        dots = axis.scatter(costs, accuracies, c=drawing.shade, cmap="viridis", s=16, label=label, zorder=3)
        axis.figure.colorbar(dots, ax=axis, label=legible(drawing.shade_label))


def _plot_traces(axis: Axes, drawing: Drawing) -> None:
    """Hypervolumes over the networks that were evaluated."""
    for name, points in drawing.traces.items():
        if len(points) > 1:
            axis.plot(*zip(*points, strict=True), color=_colour(name, drawing), linewidth=1.6, label=name)
    if drawing.exact_hypervolume is not None:
        axis.axhline(drawing.exact_hypervolume, color="0.4", linestyle="--", linewidth=1, label="exact")
    axis.set(xlabel="networks evaluated", ylabel="hypervolume")


def _colour(name: str, drawing: Drawing) -> str:
    """The same for a search in both panels, and blue for the one whose front it is."""
    others = [other for other in drawing.traces if other != drawing.name]
    return COLOURS[0] if name == drawing.name else COLOURS[2 + others.index(name)]


def _sorted(points: Sequence[Point]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Costs and accuracies by rising cost."""
    costs, accuracies = zip(*sorted(points), strict=True)
    return costs, accuracies
