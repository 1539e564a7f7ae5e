"""The curves of runs: what a log says is what is drawn, and what a log should not hold neither stops nor fools anybody."""

import io
import itertools
import json
import subprocess
import sys
import unicodedata

import matplotlib
import numpy as np
import pytest
from PIL import Image

from ofasearch.cli.main import run as command
from ofasearch.errors import FormatError, NotFoundError, UsageError
from ofasearch.jobs import curves, run_folder
from ofasearch.jobs.curves import show_runs
from ofasearch.report.curves import (
    COLOURS,
    MARKS,
    TINTS,
    Band,
    Drawing,
    Panel,
    Run,
    Series,
    bands,
    draw_run,
    is_line,
    to_ascii,
    to_png,
    to_text,
)

CARD = {"space": "ofa-mbv3-cifar", "strategy": "ofa", "data": "/somewhere/cifar10/", "epochs": 8}


def line(epoch, **more):
    """A line of a log as the training writes it."""
    timing = {"images_per_second": 100.0 + epoch, "seconds": 60.0 * epoch, "device_hours": epoch / 60}
    return {"epoch": epoch, "step": 10 * epoch, "phase": "kernel", "loss": 2.0 / epoch, "lr": 0.01 * epoch, "passes": 3} | timing | more


def scores(top1):
    return {"validation_top1": {"largest": top1, "middle": top1 - 0.125, "smallest": top1 - 0.25}}


LINES = [
    line(1, phase="teacher"),
    line(2, phase="teacher", **scores(0.5)),
    *(line(n) for n in range(3, 6)),
    line(6, **scores(0.75), dollars=1.5, kg_co2=0.25),
    line(7, dollars=2.0, kg_co2=0.5),
]


def folder(path, lines=LINES, card=CARD):
    """A run folder; lines are records, or bytes as they are."""
    path.mkdir()
    (path / "run.json").write_text(json.dumps(card))
    encoded = (item if isinstance(item, bytes) else json.dumps(item).encode() + b"\n" for item in lines)
    (path / "log.jsonl").write_bytes(b"".join(encoded))
    return path


def pixels(png):
    """The picture as (height, width, 3) bytes, after checking that it is a PNG."""
    with Image.open(io.BytesIO(png)) as image:
        assert image.format == "PNG"
        return np.asarray(image.convert("RGB"))


def drawing_of(*points):
    series = Series("x", "x", tuple(points))
    return Drawing("title", tuple(Panel(f"panel {n}", (series,)) for n in range(3)))


def body(text, panel):
    """The cells of a panel's lines, right of its axis."""
    start = text.index(panel) + 1
    rows = []
    for row in text[start:]:
        if not any(c in row for c in "┤│"):
            break
        rows.append(row.replace("┤", "│").partition("│")[2])
    return rows


@pytest.fixture
def sketched(monkeypatch):
    """Pictures take a quarter of a second each; where none is looked at, none is drawn."""
    monkeypatch.setattr(curves, "to_png", lambda _: b"a picture")


@pytest.fixture
def said(capsys):
    """Runs a command that must succeed; gives its stdout and stderr."""

    def check(*argv):
        assert command(["train", *map(str, argv)]) == 0
        return capsys.readouterr()

    return check


# -- reading ---------------------------------------------------------------------------------------------------


def test_the_names_of_the_files_are_those_of_the_run_folder():
    assert (curves.RUN, curves.LOG) == (run_folder.RUN, run_folder.LOG)


def test_a_run_is_drawn_into_its_folder_and_nothing_else_there_changes(tmp_path):
    run = folder(tmp_path / "run")
    before = {p.name: p.read_bytes() for p in run.iterdir()}
    found = show_runs([run])
    assert found.notes == ()
    assert found.record == {"run": str(run), "curves_png": str(run / "curves.png"), "epochs": LINES}
    assert pixels((run / "curves.png").read_bytes()).shape == (1200, 1350, 3)
    assert {p.name: p.read_bytes() for p in run.iterdir() if p.name != "curves.png"} == before


@pytest.mark.usefixtures("sketched")
def test_torn_and_foreign_lines_are_skipped_and_counted(tmp_path):
    foreign = [b"\xff\xfe\n", b"[1]\n", b'{"epoch": 3}\n', b"[" * 100_000 + b"\n", b"\n", json.dumps(line(2)).encode() + b"\n"]
    run = folder(tmp_path / "run", [LINES[0], LINES[1], *foreign, LINES[2], json.dumps(LINES[3]).encode()[:40]])
    found = show_runs([run])
    assert list(found.runs[0].lines) == LINES[:3]
    assert found.notes == (f"{run / 'log.jsonl'}: 6 of 9 lines skipped, torn, out of order or not of ofasearch train",)
    assert found.record["notes"] == list(found.notes)


@pytest.mark.parametrize(
    "change",
    [
        {"epoch": 0}, {"epoch": 1.5}, {"epoch": True}, {"epoch": 10**400}, {"epoch": "1"}, {"loss": None}, {"loss": 10**400},
        {"loss": float("nan")}, {"loss": False}, {"lr": -1}, {"phase": 3}, {"seconds": "long"}, {"validation_top1": [0.5]},
        {"validation_top1": {"largest": 86.1}}, {"validation_top1": {"largest": None}}, {"dollars": float("inf")},
    ],
)  # fmt: skip
def test_a_line_with_a_value_that_no_training_logs_is_foreign(change):
    assert is_line(line(1))
    assert not is_line(line(1) | change)


@pytest.mark.usefixtures("sketched")
def test_lines_of_an_older_version_are_drawn(tmp_path, said):
    old = [{"epoch": n, "step": n, "loss": 1.0 / n, "lr": 0.1, "images_per_second": 9.0, "seconds": 5.0 * n} for n in (1, 2)]
    out, err = said("--show", folder(tmp_path / "run", old))
    assert err == ""
    assert "none logged so far" in out
    assert not any(word in out for word in ("phase", "device hours", "cost", "emitted", "validation top-1  "))


@pytest.mark.parametrize(
    ("lines", "text"), [([], "but it is empty"), ([b'{"epoch": 1'], "but none of its 1 lines is one"), ([b"\n\n"], "but it is empty")]
)
def test_a_log_without_lines_is_refused(tmp_path, lines, text):
    run = folder(tmp_path / "run", lines)
    with pytest.raises(FormatError, match=text):
        show_runs([run])
    assert not (run / "curves.png").exists()


def test_what_is_no_run_folder_is_refused(tmp_path):
    (tmp_path / "file").touch()
    (tmp_path / "bare").mkdir()
    for name, text in (("file", "it is a file"), ("absent", "there is none"), ("bare", "log.jsonl must be the log of ofasearch train")):
        with pytest.raises(NotFoundError, match=text):
            show_runs([tmp_path / name])
    assert list((tmp_path / "bare").iterdir()) == []


@pytest.mark.usefixtures("sketched")
@pytest.mark.parametrize("content", [None, "{", "[1]"])
def test_a_run_whose_request_is_lost_is_still_drawn(tmp_path, content):
    run = folder(tmp_path / "run")
    (run / "run.json").unlink()
    if content is not None:
        (run / "run.json").write_text(content)
    found = show_runs([run])
    assert found.drawing.title == "run"
    assert [note.startswith("what was asked of the run is not known: ") for note in found.notes] == [True] * (content != "[1]")


# -- in the terminal -------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sketched")
def test_curves_and_the_last_line_are_printed(tmp_path, said):
    run = folder(tmp_path / "run")
    out, err = said("--show", run)
    assert err == ""
    assert out.startswith("run: ofa-mbv3-cifar, ofa, cifar10\n")
    for text in ("     2 ┤", "0.2857 ┤", "    75 ┤", "    25 ┤", "  0.07 ┤", "  0.01 ┤", "epoch 1  ", "teacher 1-2  ", "kernel 3-7"):
        assert text in out
    table = dict(row.split("  ", 1) for row in out.split("\n\n")[-2].splitlines())
    assert {name: value.strip() for name, value in table.items()} == {
        "epoch": "7 of 8",
        "phase": "kernel",
        "loss": "0.2857",
        "learning rate": "0.07",
        "validation top-1": "largest 75.00 %, middle 62.50 %, smallest 50.00 % (epoch 6)",
        "images/s": "107",
        "time": "7 min",
        "device hours": "0.12",
        "cost": "2.00 dollars",
        "emitted": "0.50 kg CO2",
    }
    assert out.endswith(f"curves  {run / 'curves.png'}\n")


@pytest.mark.parametrize("width", [40, 61, 80])
def test_no_line_is_wider_than_asked(width):
    phases = [line(n, phase=f"a phase with a long name, {n // 7}", lr=1.234567e-5 * n, **scores(0.5)) for n in range(1, 100)]
    text = to_text(draw_run(Run(name="n" * 200, card=dict.fromkeys(CARD, "v" * 200), lines=tuple(phases))), width)
    assert max(map(len, text)) == width
    assert text[-1].strip().startswith("and ")


def test_a_falling_line_falls_from_corner_to_corner():
    rows = body(to_text(drawing_of((1, 5.0), (9, 1.0)), 60), "panel 0")
    assert len(rows) == 5
    inked = [[i for i, c in enumerate(row) if c != " "] for row in rows]
    assert inked[0][0] == 0
    assert inked[-1][-1] == max(map(max, inked)) == 60 - 2 - 1 - 1  # the label "5", a blank, the axis
    assert all(upper[-1] <= lower[0] for upper, lower in itertools.pairwise(inked))
    assert all(row == list(range(row[0], row[-1] + 1)) for row in inked)  # without gaps


def test_a_spike_between_many_epochs_is_not_lost():
    points = [(n, 1.0 + (n == 4321)) for n in range(1, 10_001)]
    rows = body(to_text(drawing_of(*points)), "panel 0")
    assert [sum(c != " " for c in row) for row in rows[:-1]] == [1] * 4
    assert len(rows[-1]) == 80 - len("2") - 2


def test_one_epoch_and_equal_values_are_a_point_and_a_level_line():
    text = to_text(drawing_of((7, 0.5)))
    assert text[-1].strip() == "epoch 7"
    assert body(text, "panel 0") == ["⠁", "", "", "", ""]
    assert body(to_text(drawing_of((7, 0.0), (8, 0.0))), "panel 0")[1:] == ["", "", "", ""]


def test_each_network_is_marked_on_its_own_curve():
    lines = [line(n, **scores(0.5 + n / 100)) for n in range(1, 31)]
    text = to_text(draw_run(Run(name="r", card={}, lines=tuple(lines))))
    rows = body(text, next(row for row in text if row.startswith("validation top-1, %:  L largest  m middle  s smallest")))
    ends = {mark: next(n for n, row in enumerate(rows) if row.endswith(mark)) for mark in "Lms"}
    assert ends["L"] < ends["m"] < ends["s"]


def test_equal_curves_are_marked_side_by_side():
    points = tuple((n, 1.0 * n) for n in range(1, 41))
    panel = Panel("p", tuple(Series(mark, mark, points) for mark in "123"))
    text = to_text(Drawing("t", (panel, panel, panel)))
    assert all(mark in "".join(body(text, text[2])) for mark in "123")


def test_phases_are_the_runs_of_equal_names():
    assert bands(LINES) == (Band("teacher", 1, 2), Band("kernel", 3, 7))
    assert bands(LINES[2:]) == ()
    assert bands([{"epoch": 1}, {"epoch": 2}]) == ()


def test_control_characters_of_files_do_not_reach_the_terminal(tmp_path, said):
    evil = "\x1b]0;owned\x07\x1b[2J\r\n\u202e\ud800 $\\frac{x}$ \u4e2d"
    networks = {evil: 0.5, "largest": 0.5}
    lines = [line(1, phase=evil, validation_top1=networks), line(2, phase=f"{evil}2", validation_top1=networks)]
    first, second = (folder(tmp_path / f"{n}\x1b[31m", lines, dict.fromkeys(CARD, evil)) for n in "ab")
    for argv in (("--show", first), ("--show", first, "--show", second), ("--show", first, "--json")):
        out, err = said(*argv)
        assert all(c == "\n" or unicodedata.category(c)[0] != "C" for c in out + err)
    assert {p.name for p in first.iterdir()} == {"run.json", "log.jsonl", "curves.png", "compare.png"}


@pytest.mark.usefixtures("sketched")
def test_a_terminal_without_braille_gets_ascii(tmp_path, monkeypatch):
    buffer = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(buffer, encoding="latin-1"))
    assert command(["train", "--show", str(folder(tmp_path / "run"))]) == 0
    sys.stdout.flush()
    out = buffer.getvalue().decode("ascii")
    assert "\n0.2857 |" in out
    assert "*****" in out
    assert to_ascii("┤⠁⣿ …é") == "|** ~?"


# -- as a picture ----------------------------------------------------------------------------------------------


def share(image, colour):
    """The share of a picture's pixels that have a colour."""
    return float((np.abs(image.astype(int) - [int(colour[n : n + 2], 16) for n in (1, 3, 5)]).max(axis=2) < 3).mean())


def test_the_picture_has_a_line_per_network_and_shades_phases():
    run = Run(name="r", card=CARD, lines=tuple(LINES))
    image = pixels(to_png(draw_run(run)))
    assert [share(image, colour) > 1e-3 for colour in COLOURS[:4]] == [True, True, True, False]
    assert share(image, TINTS[0]) > 0.1
    assert share(pixels(to_png(draw_run(Run(name="r", card=CARD, lines=tuple(LINES[2:]))))), TINTS[0]) < 0.01


def test_no_values_are_too_extreme_to_be_drawn():
    lines = [line(1, loss=5e-324, lr=0), line(2, loss=1e30, lr=5e-324), line(10**9, loss=1, lr=1e-300, phase="x", **scores(0.25))]
    for part in (lines, lines[:1]):
        drawing = draw_run(Run(name="r", card={}, lines=tuple(part)))
        assert max(map(len, to_text(drawing))) <= 80
        pixels(to_png(drawing))


def test_drawing_leaves_matplotlib_as_it_was_and_is_not_changed_by_it(monkeypatch):
    drawing = draw_run(Run(name="_r", card=CARD, lines=tuple(LINES)))
    first = to_png(drawing)
    with matplotlib.rc_context({"text.usetex": True, "figure.facecolor": "black", "savefig.bbox": "tight", "lines.linewidth": 9}):
        before = dict(matplotlib.rcParams)
        assert to_png(drawing) == first
        assert dict(matplotlib.rcParams) == before


def test_drawing_needs_neither_torch_nor_pyplot(tmp_path):
    code = "import sys\nfrom ofasearch.cli.main import run\nassert run(sys.argv[1:]) == 0\n"
    code += "print(sorted({'torch', 'matplotlib.pyplot'} & set(sys.modules)), file=sys.stderr)"
    argv = [sys.executable, "-W", "error", "-c", code, "train", "--show", str(folder(tmp_path / "run"))]
    assert subprocess.run(argv, capture_output=True, text=True, check=True).stderr.strip() == "[]"


# -- several runs ----------------------------------------------------------------------------------------------


def test_runs_are_compared_by_their_largest_networks(tmp_path, said):
    worse = [line(1, phase="single", **scores(0.5)), line(2, phase="single", **scores(0.4))]
    none = [{"epoch": 1, "loss": 1.0, "lr": 0.1}]
    runs = folder(tmp_path / "a"), folder(tmp_path / "b", worse, CARD | {"strategy": "single"}), folder(tmp_path / "c", none)
    out, err = said(*(part for run in runs for part in ("--show", run)))
    assert err == ""
    assert out.startswith("3 runs: ofa-mbv3-cifar, cifar10\n")
    assert "loss:  1 a  2 b  3 c\n" in out
    assert [row.split() for row in out.splitlines()[-5:-2]] == [
        ["1", "a", "7", "75.00", "%", "6", "75.00", "%", "0.12"],
        ["2", "b", "2", "50.00", "%", "1", "40.00", "%", "0.03"],
        ["3", "c", "1", "-", "-", "-", "-"],
    ]
    assert [(run / "compare.png").exists() for run in runs] == [True, False, False]
    assert not any((run / "curves.png").exists() for run in runs)


@pytest.mark.usefixtures("sketched")
def test_a_comparison_as_json_has_the_lines_of_all_runs(tmp_path, said):
    runs = folder(tmp_path / "a"), folder(tmp_path / "b", LINES[:3])
    out, err = said("--show", runs[0], "--show", runs[1], "--json")
    assert err == ""
    assert json.loads(out) == {
        "runs": [{"run": str(runs[0]), "epochs": LINES}, {"run": str(runs[1]), "epochs": LINES[:3]}],
        "compare_png": str(runs[0] / "compare.png"),
    }


@pytest.mark.usefixtures("sketched")
def test_runs_of_one_name_are_told_apart(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for parent in ("a", "b"):
        (tmp_path / parent).mkdir()
        folder(tmp_path / parent / "run")
    found = show_runs([curves.Path("a/run"), curves.Path("b/run")])
    assert [series.label for series in found.drawing.panels[0].series] == ["a/run", "b/run"]


def test_as_many_runs_as_there_are_marks_can_be_compared(tmp_path):
    run = folder(tmp_path / "run", LINES[:2])
    assert len(show_runs([run] * len(MARKS)).drawing.panels[0].series) == len(MARKS)
    with pytest.raises(UsageError, match=f"1 to {len(MARKS)} runs, but got {len(MARKS) + 1}"):
        show_runs([run] * (len(MARKS) + 1))


# -- the command -----------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("sketched")
def test_a_folder_that_cannot_be_written_is_printed_all_the_same(tmp_path, said):
    run = folder(tmp_path / "run")
    (run / "curves.png").mkdir()  # in the way, for root too
    (run / "curves.png" / "x").touch()
    out, err = said("--show", run)
    assert "7 of 8" in out
    assert "curves.png" not in out
    assert err.startswith(f"note: the curves are only printed, because {run / 'curves.png'} cannot be written (")
    assert err.count("\n") == 1
    assert {p.name for p in run.iterdir()} == {"run.json", "log.jsonl", "curves.png"}
    record = json.loads(said("--show", run, "--json").out)
    assert record.keys() == {"run", "epochs", "notes"}


def test_show_and_options_of_a_training_exclude_each_other(tmp_path, capsys):
    run = folder(tmp_path / "run")
    assert command(["train", "--show", str(run), "--resume", "--lr", "0.1", "--quiet"]) == 2
    assert "--show only draws runs that are there, but got --lr, --resume too" in capsys.readouterr().err
    assert command(["train", "--show", str(tmp_path / "nowhere")]) == 1
    assert capsys.readouterr().err.startswith(f"ofasearch: {tmp_path / 'nowhere'} must be a run folder of ofasearch train")
