"""Points of a plane in characters: dots and lines in braille, what matters as a letter. Pure: values come in, lines go out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from ofasearch.report.curves import DOTS, short, strokes

Point = tuple[float, float]
ROWS = 12  # of the picture, in characters


@dataclass(frozen=True, slots=True, kw_only=True)
class Sketch:
    """What is to be seen, in the units of the axes' titles; at least one point of any kind."""

    title: str
    x: str
    y: str
    dots: tuple[Point, ...] = ()
    ways: tuple[tuple[Point, ...], ...] = ()  # lines through these points
    marks: tuple[tuple[str, Point], ...] = ()  # a character each, in place of what lies beneath
    ends: tuple[str, str] | None = None  # of the x axis, where its numbers are not what they stand for

    @property
    def points(self) -> tuple[Point, ...]:
        """All there are."""
        return (*self.dots, *(point for way in self.ways for point in way), *(point for _, point in self.marks))


def to_text(sketch: Sketch, width: int = 80) -> tuple[str, ...]:
    """The picture in lines of at most `width` characters (40 or more); of marks that fall on one cell, the later move beside it."""
    x, y = np.array(sketch.points, dtype=float).T
    high, low = f"{y.max():.2f}", f"{y.min():.2f}"
    margin = max(len(high), len(low))
    columns = width - margin - 2

    def place(point: Point) -> tuple[int, int]:
        """The dot of a point."""
        across, down = (point[0] - x.min()) / (np.ptp(x) or 1.0), (y.max() - point[1]) / (np.ptp(y) or 1.0)
        return round(across * (2 * columns - 1)), round(down * (4 * ROWS - 1))

    bits = np.zeros((ROWS, columns), dtype=int)
    lines_of_dots = [dot for way in sketch.ways for dot in strokes([place(point) for point in way])]
    for across, down in [*map(place, sketch.dots), *lines_of_dots]:
        bits[down // 4, across // 2] |= DOTS[across % 2][down % 4]
    marks = _cells([(mark, place(point)) for mark, point in sketch.marks], columns)
    lines = [short(sketch.title, width), f"{' ' * margin}  {short(sketch.y, columns)}"]
    for row in range(ROWS):
        cells = "".join(marks.get((row, c), chr(0x2800 + bits[row, c]) if bits[row, c] else " ") for c in range(columns))
        label = high if row == 0 else low if row == ROWS - 1 and low != high else ""
        lines.append(f"{label.rjust(margin)} {'┤' if label else '│'}{cells}".rstrip())
    ends = sketch.ends or (f"{x.min():.4g}", f"{x.max():.4g}")
    return (*lines, f"{' ' * margin} └{'─' * columns}", " " * (margin + 2) + _below(sketch.x, *ends, columns))


def _cells(marks: Sequence[tuple[str, tuple[int, int]]], columns: int) -> dict[tuple[int, int], str]:
    """Marks by (row, column): each on its own cell, or on the nearest of its row that is free."""
    placed: dict[tuple[int, int], str] = {}
    for mark, (across, down) in marks:
        row, own = down // 4, across // 2
        free = (column for column in range(columns) if (row, column) not in placed)
        placed[row, min(free, key=lambda column: (abs(column - own), -column), default=own)] = mark
    return placed


def _below(title: str, left: str, right: str, columns: int) -> str:
    """The ends of an axis and its title between them; one end where both are equal."""
    right = right if right != left else ""
    title = short(title, max(8, columns - len(left) - len(right) - 4))
    return (left + title.center(columns - len(left) - len(right)) + right).rstrip()
