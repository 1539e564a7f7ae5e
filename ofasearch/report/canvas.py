"""What the plots share: a canvas that nothing of the user's changes, quiet axes, and labels that leave each other room."""

from __future__ import annotations

import io
import itertools
import math
import textwrap
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

from ofasearch.report.curves import INK, QUIET

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure
    from matplotlib.transforms import Bbox

Point = tuple[float, float]
NEAR, DIRECTIONS = 7, 16  # points from a dot to its label, and ways to lay it
DISTANCES = (NEAR, 14, 24, 38, 56, 80, 110, 145, 185)
LETTERS = 24  # of a label's line
LEADER = {"arrowstyle": "-", "color": QUIET, "linewidth": 0.6, "shrinkA": 0}  # from a label to its dot
LEAST_SPAN = 0.1  # points of an axis, at least: equal networks are drawn as equal
OWN, OTHER = 4, 10  # points around its own dot and around others that a label keeps free, so that nobody doubts whose it is
PAD = 1.5  # points around a label
STEPS = 12  # boxes that stand for the line to a label, and one


def png(size: tuple[float, float], draw: Callable[[Figure], None]) -> bytes:
    """What `draw` puts on a figure of so many inches, as a PNG; the settings of the user's matplotlib do not change it."""
    from matplotlib import style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with style.context("default", after_reset=True):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        content = io.BytesIO()
        figure.savefig(content, format="png", metadata={"Software": None})
    return content.getvalue()


def quiet(axis: Axes) -> None:
    """A pale grid below what is drawn, two spines, grey ticks."""
    axis.grid(color="#d4d9e0", linewidth=0.7)
    axis.set_axisbelow(True)
    axis.spines[["top", "right"]].set_visible(False)
    axis.tick_params(colors=QUIET, labelsize=9)


def limits(values: Sequence[float]) -> tuple[float, float]:
    """An axis with room around the values."""
    low, high = min(values, default=0.0), max(values, default=100.0)
    span, middle = max(high - low, LEAST_SPAN), (low + high) / 2
    return middle - 0.62 * span, middle + 0.7 * span


def axes_with_level(figure: Figure, values: Sequence[float], levels: Sequence[float]) -> tuple[Axes, Axes]:
    """Axes for the values and for the level: the same, or a strip below or above where the level is farther off than they spread."""
    low, high = min(values), max(values)
    far = [level for level in levels if max(low - level, level - high) > max(high - low, LEAST_SPAN)]
    if not far:
        axis = figure.subplots()
        axis.set_ylim(limits([*values, *levels]))
        axis.ticklabel_format(useOffset=False)
        quiet(axis)
        return axis, axis
    below = far[0] < low
    pair = list(figure.subplots(2, 1, sharex=True, height_ratios=(9, 1) if below else (1, 9)))
    axis, strip = pair if below else reversed(pair)
    axis.set_ylim(limits(values))
    strip.set(ylim=(far[0] - 1, far[0] + 1), yticks=[far[0]], yticklabels=[f"{far[0]:.2f}"])
    for each in pair:
        each.ticklabel_format(axis="x", useOffset=False)
        quiet(each)
    pair[0].spines["bottom"].set_visible(False)
    pair[0].tick_params(axis="x", length=0)
    for each, edge in zip(pair, (0, 1), strict=True):  # the scale is broken between the two
        each.plot(0, edge, marker=[(-1, -0.5), (1, 0.5)], markersize=9, color=INK, transform=each.transAxes, clip_on=False)
    return axis, strip


def label_points(figure: Figure, axis: Axes, points: Sequence[Point], texts: Sequence[str], *, levels: Sequence[float] = ()) -> None:
    """A label beside every point, as near as it can lie without covering a dot, a label, a line to a label or a level line.

    Points and levels are in the units of the axes. To be called last, when limits and layout are settled.
    """
    from matplotlib.text import Text

    figure.draw_without_rendering()
    scale, frame = figure.dpi / 72, axis.bbox
    places = [(float(x), float(y)) for x, y in axis.transData.transform(points)]
    heights = [float(axis.transData.transform((0.0, level))[1]) for level in levels]
    lines = [_around((frame.x0 + frame.width / 2, height), frame.width, 2 * scale) for height in heights]
    taken: list[Bbox] = []
    for point, place, text in zip(points, places, texts, strict=True):
        label = axis.annotate(
            textwrap.fill(text, LETTERS), point, (0, 0), textcoords="offset points", ha="center", va="center", fontsize=9, color=INK,
            parse_math=False, annotation_clip=False, zorder=6, arrowprops=LEADER,
        )  # fmt: skip
        label.set_in_layout(False)
        size = Text.get_window_extent(label).padded(PAD * scale)  # without the line
        others = [other for other in places if other != place]
        kept = [*lines, _dot(place, OWN * scale), *(_dot(other, OTHER * scale) for other in others)]
        cores = [_dot(other, OWN * scale) for other in others]
        distance, box = _roomiest(list(_boxes(place, size, scale)), place, [*kept, *taken], [*cores, *taken], frame)
        x, y = _centre(box)
        label.set_position(((x - place[0]) / scale, (y - place[1]) / scale))
        if label.arrow_patch is not None:
            label.arrow_patch.set_visible(distance > NEAR)
        taken += [box, *(_leader(place, box) if distance > NEAR else ())]


def _around(centre: Point, width: float, height: float) -> Bbox:
    """The box with this centre."""
    from matplotlib.transforms import Bbox

    return Bbox.from_bounds(centre[0] - width / 2, centre[1] - height / 2, width, height)


def _dot(centre: Point, radius: float) -> Bbox:
    return _around(centre, 2 * radius, 2 * radius)


def _centre(box: Bbox) -> Point:
    return box.x0 + box.width / 2, box.y0 + box.height / 2


def _boxes(place: Point, size: Bbox, scale: float) -> Iterator[tuple[float, Bbox]]:
    """Where a label of this size could lie about a dot, the nearest places first; with each how far it is."""
    for distance, step in itertools.product(DISTANCES, range(DIRECTIONS)):
        angle = 2 * math.pi * step / DIRECTIONS
        across = math.cos(angle) * (distance * scale + size.width / 2)
        up = math.sin(angle) * (distance * scale + size.height / 2)
        yield distance, _around((place[0] + across, place[1] + up), size.width, size.height)


def _leader(place: Point, box: Bbox) -> list[Bbox]:
    """The line from a dot to its label as a row of small boxes."""
    (x, y), (to_x, to_y) = place, _centre(box)
    shares = [step / STEPS for step in range(1, STEPS)]
    return [_around((x + share * (to_x - x), y + share * (to_y - y)), 3, 3) for share in shares]


def _roomiest(
    boxes: Sequence[tuple[float, Bbox]], place: Point, kept: Sequence[Bbox], uncrossed: Sequence[Bbox], frame: Bbox
) -> tuple[float, Bbox]:
    """The first box within the frame that covers nothing kept and whose line crosses nothing; else the one that does least of it."""

    def covered(candidate: tuple[float, Bbox]) -> float:
        distance, box = candidate
        line = _leader(place, box) if distance > NEAR else []
        outside = box.width * box.height - _shared([box], [frame])
        return _shared([box], kept) + _shared(line, uncrossed) + (outside if outside > 1e-6 * box.width * box.height else 0.0)

    return next((candidate for candidate in boxes if not covered(candidate)), None) or min(boxes, key=covered)


def _shared(some: Sequence[Bbox], others: Sequence[Bbox]) -> float:
    """The area of the overlaps of boxes with others."""
    pairs = itertools.product(some, others)
    return float(sum(max(0.0, min(a.x1, b.x1) - max(a.x0, b.x0)) * max(0.0, min(a.y1, b.y1) - max(a.y0, b.y0)) for a, b in pairs))
