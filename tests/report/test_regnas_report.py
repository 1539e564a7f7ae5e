"""What is told and drawn of networks that keep what smaller ones get right: every number is the record's, what it lacks is left out."""

import io
import itertools
import random

import matplotlib
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from ofasearch.cli import show
from ofasearch.report import canvas, regnas
from ofasearch.report.curves import MARKS

RATIOS = (0.05, 0.1, 0.2, 0.5, 1, 2, 5, 10, 20)
PAPER = (
    (76.91, 2.67),
    (77.09, 2.70),
    (77.03, 2.63),
    (76.94, 2.27),
    (76.86, 2.27),
    (76.94, 2.24),
    (76.74, 2.15),
    (76.78, 2.19),
    (76.15, 2.08),
)
WRONG = 0.99  # in the places of a matrix that mean nothing


def part(n, reward, nfr):
    """A search's networks; NFR from i to j is `nfr(i, j)`."""
    networks = [
        {
            "budget_macs": 5e6 * (i + 1), "reward": "r0" if i == 0 else reward, "arch_id": f"space@{reward}-{i}", "macs": 4.9e6 * (i + 1),
            "params": 1.5e6 + i, "validation_top1": 0.81 + 0.01 * i, "test": {"top1": 0.8 + 0.01 * i, "n": 10_000},
        }
        for i in range(n)
    ]  # fmt: skip
    matrix = [[nfr(i, j) if j > i else WRONG for j in range(n)] for i in range(n)]
    return {"family": networks, "nfr_matrix": {"validation": matrix, "test": matrix}}


def family(n, nfr=lambda i, j: 0.01 * (j - i) + 0.001 * i, plain=lambda i, j: 0.02 * (j - i)):
    return part(n, "r2", nfr) | {"plain": part(n, "r0", plain)}


def sweep(places=PAPER, top1_ref=73.70):
    """Places are top-1 and NFR in %; ratios of one place found the same network."""
    scores = [{"top1": top1 / 100, "nfr": nfr / 100, "pfr": (top1 + nfr - top1_ref) / 100, "n": 50_000} for top1, nfr in places]
    found = [
        {"ratio": ratio, "lambda1": 1, "lambda2": ratio, "arch_id": f"space@{place}", "macs": 297e6, "test": own}
        for ratio, place, own in zip(RATIOS, places, scores, strict=True)
    ]
    return {"sweep": found, "reference": {"name": "model150.pt", "macs": 150e6, "test": {"top1": top1_ref / 100}}}


def columns(table):
    headers, rows = table
    return dict(zip(headers, zip(*rows, strict=True), strict=True))


@pytest.fixture
def drawn(monkeypatch):
    """Plots are figures, drawn and not encoded."""

    def figure_of(size, draw):
        figure = Figure(figsize=size, dpi=150, layout="constrained")
        FigureCanvasAgg(figure)
        draw(figure)
        figure.draw_without_rendering()
        return figure

    monkeypatch.setattr(canvas, "png", figure_of)


def texts(figure):
    return [text.get_text() for text in figure.findobj(matplotlib.text.Text) if text.get_text()]


# -- families --------------------------------------------------------------------------------------------------


def test_the_table_of_a_family_has_its_networks_and_those_of_the_plain_search():
    found = columns(regnas.family_table(family(3)))
    assert found["search"] == ("family",) * 3 + ("plain",) * 3
    assert found[""] == ("A1", "A2", "A3") * 2
    assert found["reward"] == ("R0", "R2", "R2", "R0", "R0", "R0")
    assert found["budget"][:3] == ("5.00 M", "10.00 M", "15.00 M")
    assert found["MACs"][2] == "14.70 M"
    assert found["top-1 (validation)"][:2] == ("81.00 %", "82.00 %")
    assert found["top-1 (test)"][:2] == ("80.00 %", "81.00 %")


def test_what_a_family_does_not_know_is_left_out():
    record = family(2)
    del record["plain"], record["nfr_matrix"]["test"], record["family"][1]["validation_top1"]
    for network in record["family"]:
        del network["test"], network["params"]
    assert regnas.splits(record) == ["validation"]
    found = columns(regnas.family_table(record))
    assert found.keys() == {"search", "", "budget", "reward", "architecture", "MACs", "top-1 (validation)"}
    assert found["top-1 (validation)"] == ("81.00 %", "")
    headers, rows = regnas.matrix_table(record, "validation")
    assert headers == ["from", "family: A2", "mean"]
    assert rows == [("A1", "1.00 %", "1.00 %"), ("all", "", "1.00 %")]


def test_matrices_stand_beside_each_other_with_change_and_means():
    headers, rows = regnas.matrix_table(family(3), "test")
    assert headers == ["from", "family: A2", "A3", "mean", "plain: A2", "A3", "mean", "change: A2", "A3", "mean"]
    assert rows[0] == ("A1", "1.00 %", "2.00 %", "1.50 %", "2.00 %", "4.00 %", "3.00 %", "-50.00 %", "-50.00 %", "-50.00 %")
    assert rows[1] == ("A2", "", "1.10 %", "1.10 %", "", "2.00 %", "2.00 %", "", "-45.00 %", "-45.00 %")
    assert rows[2] == ("all", "", "", "1.37 %", "", "", "2.67 %", "", "", "-48.75 %")


def test_matrices_of_many_networks_stand_below_each_other():
    headers, rows = regnas.matrix_table(family(8), "test")
    assert headers == ["", "from", *(f"A{i}" for i in range(2, 9)), "mean"]
    assert [row[:2] for row in rows] == [(s, f) for s in ("family", "plain", "change") for f in (*(f"A{i}" for i in range(1, 8)), "all")]
    assert rows[2][5] == "2.20 %"  # family, A3 to A6: three steps and twice a tenth
    assert rows[7][-1] == f"{100 * np.mean([0.01 * (j - i) + 0.001 * i for i, j in itertools.combinations(range(8), 2)]):.2f} %"
    assert max(map(len, show.table(headers, rows).splitlines())) <= 100


def test_numbers_from_larger_to_smaller_networks_are_never_shown():
    shown = str([regnas.matrix_table(family(n), "test") for n in (2, 4, 8)])
    assert f"{100 * WRONG:.2f}" not in shown


@pytest.mark.parametrize(
    ("new", "old", "text"),
    [(0.0, 0.0, "-"), (0.01, 0.0, "-"), (0.0, 0.02, "-100.00 %"), (0.02, 0.02, "+0.00 %"), (0.0199999999, 0.02, "+0.00 %")],
)
def test_a_change_of_nothing_is_no_number_and_no_change_has_no_minus(new, old, text):
    _, rows = regnas.matrix_table(family(2, lambda i, j: new, lambda i, j: old), "test")
    assert rows[0][-1] == text


def test_one_network_has_no_pairs():
    assert regnas.matrix_table(family(1), "test")[1] == []
    assert len(regnas.family_table(family(1))[1]) == 2


@pytest.mark.parametrize("n", [2, 4, 8])
def test_the_plot_of_a_family_says_every_number_of_the_split(drawn, n):
    figure = regnas.family_plot(family(n), "test")
    said = texts(figure)
    assert f"Family of {n} networks: test split, 10,000 images" in said
    assert {"REG-NAS (R0, R2)", "plain search by accuracy (R0)"} <= set(said)
    for i, j in itertools.combinations(range(n), 2):
        assert f"{1.0 * (j - i) + 0.1 * i:.2f}" in said
        assert f"{2.0 * (j - i):.2f}" in said
    for i in range(n):
        assert f"{80 + i:.2f}" in said
        assert f"A{i + 1}\n{4.9 * (i + 1):.2f} M" in said
    assert f"{100 * WRONG:.2f}" not in said


@pytest.mark.parametrize("n", [4, 8])
def test_names_and_numbers_of_a_family_do_not_touch(drawn, n):
    figure = regnas.family_plot(family(n), "test")
    for axis in figure.axes[:6]:
        groups = [axis.texts, axis.get_xticklabels()]
        for group in groups:
            boxes = [text.get_window_extent() for text in group if text.get_text()]
            assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))


def test_a_family_and_its_plain_search_are_drawn_on_one_scale(drawn):
    axes = regnas.family_plot(family(3), "test").axes
    for left, right in ((0, 1), (2, 3)):
        assert axes[left].get_ylim() == axes[right].get_ylim()
    assert axes[4].images[0].get_clim() == axes[5].images[0].get_clim() == (0, 4)


def test_a_plot_without_a_number_of_images_does_not_invent_one(drawn):
    assert "Family of 2 networks: validation split" in texts(regnas.family_plot(family(2), "validation"))


def test_a_family_alone_and_a_single_network_are_drawn(drawn):
    assert len(regnas.family_plot(part(3, "r2", lambda i, j: 0.01), "test").axes) == 4  # and the scale of the colours
    assert len(regnas.family_plot(family(1), "test").axes) == 2


def test_equal_networks_are_drawn(drawn):
    record = family(4, lambda i, j: 0.0, lambda i, j: 0.0)
    for network in record["family"] + record["plain"]["family"]:
        network["test"] = {"top1": 0.85, "n": 1}
    said = texts(regnas.family_plot(record, "test"))
    assert "Family of 4 networks: test split, 1 image" in said
    assert said.count("85.00") >= 8
    assert said.count("0.00") >= 18


# -- trade-offs ------------------------------------------------------------------------------------------------


def test_the_table_of_a_sweep_has_a_row_per_ratio_and_the_reference():
    record = sweep()
    record["sweep"].reverse()
    found = columns(regnas.sweep_table(record))
    assert found["lambda2/lambda1"] == (*(f"{ratio:g}" for ratio in RATIOS), "reference")
    assert found[""] == (*MARKS[:9], "")
    assert found["architecture"][-1] == "model150.pt"
    assert found["MACs"][-2:] == ("297.00 M", "150.00 M")
    assert found["top-1 (test)"] == (*(f"{top1:.2f} %" for top1, _ in PAPER), "73.70 %")
    assert found["NFR"] == (*(f"{nfr:.2f} %" for _, nfr in PAPER), "")
    assert found["PFR"][0] == "5.88 %"
    assert "top-1 (validation)" not in found
    assert regnas.splits(record) == ["test"]


def test_both_splits_of_a_sweep_are_told():
    record = sweep()
    for network in record["sweep"]:
        network["validation"] = {"top1": 0.5, "nfr": 0.25}
    headers, rows = regnas.sweep_table({"sweep": record["sweep"]})
    assert headers[4:] == ["top-1 (validation)", "NFR", "top-1 (test)", "NFR", "PFR"]
    assert {row[4:6] for row in rows} == {("50.00 %", "25.00 %")}
    assert len(rows) == len(RATIOS)


@pytest.mark.parametrize(
    ("found", "labels"),
    [
        ("aaaaaaaaa", ["0.05 to 20"]),
        ("aaaabaccc", ["0.05 to 0.5, 2", "1", "5 to 20"]),
        ("ababababa", ["0.05, 0.2, 1, 5, 20", "0.1, 0.5, 2, 10"]),
        ("aabbbbbbb", ["0.05, 0.1", "0.2 to 20"]),
    ],
)
def test_ratios_that_found_one_network_share_its_dot(drawn, found, labels):
    record = sweep([(70.0 + ord(letter), ord(letter) - 90.0) for letter in found])
    axis = regnas.sweep_plot(record, "test").axes[0]
    assert [text.get_text().replace("\n", " ") for text in axis.texts] == labels
    assert max(len(line.get_xdata()) for line in axis.lines if line.get_marker() == "o") == len(labels)
    assert columns(regnas.sweep_table(record))[""][:-1] == tuple(MARKS[sorted(set(found)).index(letter)] for letter in found)


def cloud(seed):
    """Places at random, some very near to each other."""
    rng = random.Random(seed)
    wide, high = rng.choice((0.01, 0.1, 1.0)), rng.choice((0.05, 0.5, 2.0))
    return [(76 + high * rng.random(), 2 + wide * rng.random()) for _ in RATIOS]


@pytest.mark.parametrize("places", [PAPER, *(cloud(seed) for seed in range(6)), [(80 + 0.01 * (i % 3), 2 + 0.001 * i) for i in range(9)]])
@pytest.mark.parametrize("top1_ref", [73.70, 76.2])
def test_labels_cover_neither_each_other_nor_dots_nor_the_edge(drawn, places, top1_ref):
    (axis,) = [axis for axis in regnas.sweep_plot(sweep(places, top1_ref), "test").axes if axis.texts]
    boxes = [matplotlib.text.Text.get_window_extent(text) for text in axis.texts]  # without their lines
    assert len(boxes) == len(places)
    assert not any(a.overlaps(b) for a, b in itertools.combinations(boxes, 2))
    dots = axis.transData.transform([(nfr, top1) for top1, nfr in places])
    assert not any(box.contains(*dot) for box in boxes for dot in dots)
    assert all(axis.bbox.x0 <= b.x0 and b.x1 <= axis.bbox.x1 and axis.bbox.y0 <= b.y0 and b.y1 <= axis.bbox.y1 for b in boxes)


@pytest.mark.parametrize("places", [[(80.0, 0.0)] * 9, [(80 + i * 0.001, 0.0) for i in range(9)]])
def test_equal_networks_and_no_flips_are_drawn(drawn, places):
    axis = regnas.sweep_plot(sweep(places, 80.0), "test").axes[0]
    assert axis.get_xlim()[0] == 0
    low, high = axis.get_ylim()
    assert low < 80 < high


@pytest.mark.parametrize(("top1_ref", "heights"), [(73.7, (9, 1)), (79.9, (1, 9)), (75.5, None)])
def test_a_reference_far_off_has_a_strip_of_its_own(drawn, top1_ref, heights):
    figure = regnas.sweep_plot(sweep(top1_ref=top1_ref), "test")
    assert len(figure.axes) == (1 if heights is None else 2)
    strip = figure.axes[0 if heights is None else heights.index(1)]
    assert [top1_ref] * 2 in [[round(y, 6) for y in line.get_ydata()] for line in strip.lines]
    assert strip.get_ylim()[0] < top1_ref < strip.get_ylim()[1]
    assert "Top-1 against NFR: test split, 50,000 images" in texts(figure)
    assert any(text == f"reference model150.pt, 150.00 M MACs: {top1_ref:.2f} %" for text in texts(figure))


def test_a_sweep_without_reference_has_no_line(drawn):
    figure = regnas.sweep_plot({"sweep": sweep()["sweep"]}, "test")
    assert len(figure.axes) == 1
    assert not any("reference" in text for text in texts(figure))


def test_foreign_names_are_shown_as_they_are(drawn):
    record = sweep()
    record["reference"]["name"] = "_$\\frac{1$\x00" + "x" * 300
    (said,) = [text for text in texts(regnas.sweep_plot(record, "test")) if text.startswith("reference")]
    assert said.startswith("reference _$\\frac{1$?xxx")
    assert len(said) < 80


def test_the_sketch_of_a_sweep_has_the_marks_of_the_table():
    lines = regnas.sweep_text(sweep(), "test", 60)
    assert lines[0] == "top-1 against NFR: test split, 50,000 images"
    assert lines[1].strip() == "top-1, %; the reference's is 73.70"
    assert max(map(len, lines)) <= 60
    rows = [line.replace("┤", "│").partition("│")[2] for line in lines[2:14]]
    where = {mark: (row.index(mark), -number) for number, row in enumerate(rows) for mark in row.strip() if mark != " "}
    assert sorted(where) == sorted(MARKS[:9])
    best = max(where, key=lambda mark: where[mark][1])
    assert where["2"][1] == where[best][1]
    assert where["9"] == (0, -11)
    assert lines[-1].split() == ["2.08", "NFR,", "%", "2.7"]


def test_no_sketch_without_a_dot():
    assert regnas.sweep_text(sweep(), "validation") == ()


# -- one network -----------------------------------------------------------------------------------------------

SCORES = {"nfr": 0.0216, "pfr": 0.0428, "top1": 0.8812, "top1_ref": 0.86, "relative_nfr": 0.21144, "n": 10_000, "source": "shipped"}


def test_the_facts_of_a_network_are_those_of_its_record():
    record = {"reward": "r2", "lambda1": 1.0, "lambda2": 0.5, "contains_reference": True, "effective_filters_equal": True}
    found = dict(regnas.reward_facts(record | {"measured": SCORES, "validation": SCORES | {"source": "live", "n": 5_000}}))
    assert found == {
        "reward": "R2: 1 x top-1 - 0.5 x NFR",
        "reference": "all of its weights are contained; its effective filters are the same",
        "validation top-1": "88.12 %, the reference's 86.00 %  (evaluated now, 5,000 images)",
        "validation flips": "NFR 2.16 %, PFR 4.28 %, relative NFR 0.211",
        "test top-1": "88.12 %, the reference's 86.00 %  (shipped predictions, 10,000 images)",
        "test flips": "NFR 2.16 %, PFR 4.28 %, relative NFR 0.211",
    }


@pytest.mark.parametrize(
    ("record", "facts"),
    [
        ({"reward": "r0"}, [("reward", "R0: top-1")]),
        ({"reward": "R1", "nfr_cap": 0.02}, [("reward", "R1: -NFR, NFR at most 2.00 %")]),
        ({"reward": "r0", "contains_reference": False}, [("reward", "R0: top-1"), ("reference", "not all of its weights are contained")]),
        ({"reward": "r0", "contains_reference": True}, [("reward", "R0: top-1"), ("reference", "all of its weights are contained")]),
        ({"reward": "r0", "measured": {"nfr": 0.0, "n": 1}}, [("reward", "R0: top-1"), ("test flips", "NFR 0.00 %  (1 image)")]),
        ({"reward": "r0", "validation": {"top1": 0.5}}, [("reward", "R0: top-1"), ("validation top-1", "50.00 %")]),
    ],
)
def test_what_a_network_does_not_know_is_left_out(record, facts):
    assert regnas.reward_facts(record) == facts


def test_filters_that_differ_are_told():
    record = {"reward": "r0", "contains_reference": True, "effective_filters_equal": False}
    assert "not all effective filters are the same" in dict(regnas.reward_facts(record))["reference"]


# -- the files -------------------------------------------------------------------------------------------------


def test_pictures_are_pngs_that_no_setting_of_matplotlib_changes():
    first = regnas.family_plot(family(2), "test"), regnas.sweep_plot(sweep(), "test")
    with matplotlib.rc_context({"text.usetex": True, "figure.facecolor": "black", "savefig.bbox": "tight", "lines.linewidth": 9}):
        before = dict(matplotlib.rcParams)
        assert (regnas.family_plot(family(2), "test"), regnas.sweep_plot(sweep(), "test")) == first
        assert dict(matplotlib.rcParams) == before
    for png in first:
        with Image.open(io.BytesIO(png)) as image:
            assert image.format == "PNG"
            assert image.width > 1000
