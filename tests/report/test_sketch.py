"""Points in characters: each on its place, none lost."""

import pytest

from ofasearch.report.sketch import ROWS, Sketch, to_text


def cells(lines):
    """The rows of the picture, right of the axis."""
    return [line.replace("┤", "│").partition("│")[2] for line in lines[2 : 2 + ROWS]]


@pytest.mark.parametrize("width", [40, 80, 120])
def test_corners_lie_in_the_corners_and_no_line_is_wider_than_asked(width):
    corners = (("a", (0.0, 0.0)), ("b", (1.0, 0.0)), ("c", (0.0, 10.0)), ("d", (1.0, 10.0)))
    lines = to_text(Sketch(title="t" * 200, x="x" * 200, y="y" * 200, marks=corners), width)
    rows = cells(lines)
    assert (rows[0][0], rows[0][-1], rows[-1][0], rows[-1][-1]) == ("c", "d", "a", "b")
    assert max(map(len, lines)) == width
    assert lines[2].startswith("10.00 ┤")
    assert lines[1 + ROWS].startswith(" 0.00 ┤")


def test_marks_of_one_place_stand_beside_each_other():
    lines = to_text(Sketch(title="t", x="x", y="y", marks=tuple((mark, (2.0, 3.0)) for mark in "abc")), 40)
    assert sorted("".join(cells(lines))) == ["a", "b", "c"]
    assert cells(lines)[0][0] == "a"
    assert lines[-1].split() == ["2", "x"]


def test_more_marks_than_a_row_has_cells_are_drawn_as_far_as_they_go():
    marks = tuple(("+", (float(n), 1.0)) for n in range(100))
    assert cells(to_text(Sketch(title="t", x="x", y="y", marks=marks), 40))[0] == "+" * 34


def test_a_mark_hides_what_lies_beneath_and_lines_have_no_gap():
    lines = cells(
        to_text(Sketch(title="t", x="x", y="y", ways=(((0.0, 1.0), (1.0, 1.0)),), dots=((0.0, 0.0),), marks=(("a", (0.5, 1.0)),)), 40)
    )
    assert lines[0].count("a") == 1
    assert " " not in lines[0]
    assert len(lines[-1]) == 1
