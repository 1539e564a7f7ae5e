"""Networks that keep what smaller ones get right, for people: tables, plots and facts. Pure: records come in, text and bytes go out.

A record is that of `result.json` (see `ofasearch.jobs.regnas`); its values are fractions, shown here in %. What a record does not know is
left out. `split` is one of `splits(record)` everywhere.

Reference: REG-NAS, supplement: figure 1 (families), tables 1 (trade-off) and 3 (pairs of a family).
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ofasearch.evaluate.flips import relative_change
from ofasearch.report import canvas, sketch
from ofasearch.report.curves import COLOURS, INK, MARKS, QUIET, legible, short

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
Table = tuple[list[str], list[tuple[str, ...]]]
SPLITS = ("validation", "test")
OTHER = "+"  # the mark of networks beyond as many as there are marks
WIDE = 4  # networks up to which matrices stand side by side
GREEN, ORANGE = COLOURS[2], COLOURS[1]
REWARDS: Mapping[str, Callable[[Record], str]] = {
    "r0": lambda _: "top-1",
    "r1": lambda _: "-NFR",
    "r2": lambda record: f"{record.get('lambda1', 1):g} x top-1 - {record.get('lambda2', 1):g} x NFR",
}


def splits(record: Record) -> list[str]:
    """The splits of which a family or a sweep knows something, validation first."""
    matrices, networks = record.get("nfr_matrix", {}), [*record.get("family", []), *record.get("sweep", [])]
    return [s for s in SPLITS if s in matrices or any(_score(network, "top1", s) is not None for network in networks)]


def _score(network: Record, key: str, split: str) -> Any:
    """A number of a network on a split, or None."""
    return network.get(split, {}).get(key, network.get(f"{split}_{key}"))


def _percent(value: float | None) -> str:
    return "" if value is None else f"{100 * value:.2f} %"


def _millions(value: float | None, digits: int = 2) -> str:
    return "" if value is None else f"{value / 1e6:.{digits}f} M"


def _counted(count: int, name: str) -> str:
    return f"{count:,} {name}{'' if count == 1 else 's'}"


def _images(networks: Sequence[Record], split: str) -> str:
    """The split and, where it is known, its number of images."""
    counts = (_score(network, "n", split) for network in networks)
    known = next((count for count in counts if count is not None), None)
    return f"{split} split" + (f", {_counted(known, 'image')}" if known is not None else "")


def _filled(columns: Sequence[tuple[str, Sequence[str]]]) -> Table:
    """Headers and rows of the columns that say something."""
    kept = [(name, cells) for name, cells in columns if any(cells)]
    return [name for name, _ in kept], list(zip(*(cells for _, cells in kept), strict=True))


# -- a family --------------------------------------------------------------------------------------------------


def family_table(record: Record) -> Table:
    """The networks of the family, then those of the plain search by accuracy, each from small to large."""
    rows = [(name, f"A{i}", network) for name, part in _searches(record) for i, network in enumerate(part["family"], 1)]
    found = [network for *_, network in rows]
    columns = [("search", [name for name, *_ in rows]), ("", [label for _, label, _ in rows])]
    columns += [("budget", [_millions(n.get("budget_macs")) for n in found]), ("reward", [n.get("reward", "").upper() for n in found])]
    columns += [("architecture", [n.get("arch_id", "") for n in found]), ("MACs", [_millions(n.get("macs")) for n in found])]
    columns += [("parameters", [_millions(n.get("params"), 3) for n in found])]
    return _filled(columns + [(f"top-1 ({split})", [_percent(_score(n, "top1", split)) for n in found]) for split in SPLITS])


def _searches(record: Record) -> list[tuple[str, Record]]:
    """The family, and the plain search where it was made, by name."""
    named = (("family", record), ("plain", record.get("plain", {})))
    return [(name, part) for name, part in named if part.get("family")]


def _matrix(part: Record, split: str) -> Sequence[Sequence[float]]:
    """NFR from network i to the larger j; empty where it is unknown."""
    matrix: Sequence[Sequence[float]] = part.get("nfr_matrix", {}).get(split, [])
    return matrix


def matrix_table(record: Record, split: str) -> Table:
    """NFR from each network (rows) to each larger one (columns), with means: of the family, of the plain search, and their change.

    The change is (family - plain) / plain, of a mean that of the means. Without a pair there is no row.
    """
    blocks = {name: _with_means(matrix) for name, part in _searches(record) if len(matrix := _matrix(part, split)) > 1}
    n = max(map(len, blocks.values()), default=0)  # as many in both: the budgets are the same
    shown = {name: [[_percent(value) for value in row] for row in block] for name, block in blocks.items()}
    if len(blocks) > 1:
        shown["change"] = [[_change(*pair) for pair in zip(*rows, strict=True)] for rows in zip(*blocks.values(), strict=True)]
    rows, columns = [*(f"A{i}" for i in range(1, n)), "all"][:n], [*(f"A{i}" for i in range(2, n + 1)), "mean"]
    if n > WIDE:
        return ["", "from", *columns], [(name, row, *cells) for name in shown for row, cells in zip(rows, shown[name], strict=True)]
    headers = [f"{name}: {column}" if i == 0 else column for name in shown for i, column in enumerate(columns)]
    return ["from", *headers], [(row, *itertools.chain(*cells)) for row, *cells in zip(rows, *shown.values(), strict=True)]


def _with_means(matrix: Sequence[Sequence[float]]) -> list[list[float | None]]:
    """From A1, A2, ... (rows) to A2, A3, ... and on average (columns); the last row is of all pairs and has their mean alone."""
    n = len(matrix)
    larger = [list(matrix[i][i + 1 :]) for i in range(n - 1)]
    rows = [[None] * i + values + [sum(values) / len(values)] for i, values in enumerate(larger)]
    pairs = [value for values in larger for value in values]
    return [*rows, [None] * (n - 1) + [sum(pairs) / len(pairs)]]


def _change(new: float | None, old: float | None) -> str:
    """The relative change; a dash where there was nothing to be changed."""
    if new is None or old is None:
        return ""
    change = relative_change(new, old)
    return f"{round(100 * change, 2) + 0.0:+.2f} %" if change is not None else "-"


def family_plot(record: Record, split: str) -> bytes:
    """Top-1, MACs and NFR to the next smaller network, and the NFR of all pairs, of the family beside the plain search, as a PNG."""
    parts = [part for _, part in _searches(record)]
    pairs = any(len(_matrix(part, split)) > 1 for part in parts)
    heights = (3.0, 2.0, 3.2) if pairs else (3.0,)

    def draw(figure: Figure) -> None:
        title = f"Family of {_counted(len(record['family']), 'network')}: {_images(record['family'], split)}"
        figure.suptitle(title, fontsize=12, fontweight="bold", color=INK)
        grid = figure.subplots(len(heights), len(parts), squeeze=False, height_ratios=heights)
        for part, axis, name in zip(parts, grid[0], ("REG-NAS", "plain search by accuracy"), strict=False):
            rewards = list(dict.fromkeys(network["reward"].upper() for network in part["family"] if "reward" in network))
            axis.set_title(legible(f"{name} ({', '.join(rewards)})" if rewards else name), fontsize=11, color=INK, parse_math=False)
        _plot_top1(grid[0], parts, split)
        if pairs:
            _plot_steps(grid[1], parts, split)
            _plot_matrices(figure, grid[2], parts, split)

    return canvas.png((5.6 * max(len(parts), 1.2), 0.6 + sum(heights)), draw)


def _plot_top1(axes: Sequence[Axes], parts: Sequence[Record], split: str) -> None:
    """Top-1 of every network, its MACs below, on one scale."""
    values = [[_score(network, "top1", split) for network in part["family"]] for part in parts]
    limits = canvas.limits([100 * value for row in values for value in row if value is not None])
    for axis, part, row in zip(axes, parts, values, strict=True):
        known = [(i, 100 * value) for i, value in enumerate(row) if value is not None]
        axis.plot([i for i, _ in known], [value for _, value in known], "o-", color=ORANGE, markersize=8, linewidth=1)
        for place in known:
            _write(axis, place, ORANGE, 8)
        names = [f"A{i}\n{_millions(n.get('macs'), 2 if n.get('macs', 0) < 1e8 else 0)}" for i, n in enumerate(part["family"], 1)]
        _name(axis, names, len(row))
        axis.set(ylim=limits, xlabel="MACs", ylabel="top-1, %")
        axis.ticklabel_format(axis="y", useOffset=False)


def _plot_steps(axes: Sequence[Axes], parts: Sequence[Record], split: str) -> None:
    """NFR from every network to the next larger one, between the two, on one scale."""
    steps = [[100 * row[i + 1] for i, row in enumerate(_matrix(part, split)[:-1])] for part in parts]
    high = max(max(row, default=0.0) for row in steps)
    for axis, row in zip(axes, steps, strict=True):
        places = [i + 0.5 for i in range(len(row))]
        axis.bar(places, row, width=0.5, color=GREEN)
        for place in zip(places, row, strict=True):
            _write(axis, place, GREEN, 3)
        _name(axis, [f"A{i} \u2192 A{i + 1}" for i in range(1, len(row) + 1)], len(row) + 1, first=0.5)
        axis.set(ylim=(0, 1.25 * high or 1.0), ylabel="NFR to the next, %")


def _write(axis: Axes, place: sketch.Point, colour: str, above: int) -> None:
    """The value over its place, so many points above."""
    axis.annotate(
        f"{place[1]:.2f}", place, (0, above), textcoords="offset points", ha="center", va="bottom", fontsize=9, fontweight="bold",
        color=colour, bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.5}, zorder=5,
    )  # fmt: skip


def _name(axis: Axes, names: Sequence[str], networks: int, first: float = 0.0) -> None:
    """Names at equal distances along an axis with room for so many networks."""
    canvas.quiet(axis)
    axis.grid(visible=False, axis="x")
    axis.set_xticks([first + i for i in range(len(names))], names, color="black", fontsize=8.5)
    axis.set_xlim(-0.5, networks - 0.5)


def _plot_matrices(figure: Figure, axes: Sequence[Axes], parts: Sequence[Record], split: str) -> None:
    """NFR from each network to each larger one, in shades of one scale and as numbers."""
    matrices = [_matrix(part, split) for part in parts]
    high = 100 * max((value for matrix in matrices for i, row in enumerate(matrix) for value in row[i + 1 :]), default=0.0) or 1.0
    image = None
    for axis, matrix in zip(axes, matrices, strict=True):
        n = len(matrix)
        if n < 2:
            axis.set_axis_off()
            continue
        cells = [[100 * matrix[i][j] if j > i else float("nan") for j in range(1, n)] for i in range(n - 1)]
        image = axis.imshow(cells, cmap="Greens", vmin=0.0, vmax=high, aspect="auto")
        for i, j in itertools.combinations(range(n), 2):
            value = cells[i][j - 1]
            axis.text(j - 1, i, f"{value:.2f}", ha="center", va="center", fontsize=9, color="white" if value > 0.7 * high else INK)
        axis.set_xticks(range(n - 1), [f"A{j + 1}" for j in range(1, n)])
        axis.set_yticks(range(n - 1), [f"A{i + 1}" for i in range(n - 1)])
        axis.set(xlabel="to", ylabel="from")
        axis.spines[:].set_visible(False)
        axis.tick_params(colors=QUIET, labelsize=9, length=0)
    if image is not None:
        figure.colorbar(image, ax=list(axes), label="NFR, %", shrink=0.9)


# -- a trade-off -----------------------------------------------------------------------------------------------


def sweep_table(record: Record) -> Table:
    """A row per ratio of the weights, with the mark of its network in the picture, and one of the reference."""
    found, marks = _swept(record), {id(n): mark for mark, _, group in _networks(record) for n in group}
    reference = record.get("reference", {})
    rows: list[Record] = [*found, {**reference, "arch_id": reference.get("name", "")}]
    columns = [("", [*(marks[id(n)] for n in found), ""])]
    columns += [("lambda2/lambda1", [*(f"{n['ratio']:g}" for n in found), "reference"])]
    columns += [("architecture", [n.get("arch_id", "") for n in rows]), ("MACs", [_millions(n.get("macs")) for n in rows])]
    for split, (key, name) in itertools.product(SPLITS, (("top1", "top-1"), ("nfr", "NFR"), ("pfr", "PFR"))):
        columns.append((f"{name} ({split})" if key == "top1" else name, [_percent(_score(n, key, split)) for n in rows]))
    headers, cells = _filled(columns)
    return headers, cells if reference else cells[:-1]


def _swept(record: Record) -> list[Record]:
    """What was found, by rising ratio."""
    return sorted(record["sweep"], key=lambda network: network["ratio"])


def _networks(record: Record) -> list[tuple[str, str, list[Record]]]:
    """Mark, label and what was found, of every different network: ratios that found the same one share them."""
    found = _swept(record)
    groups: dict[Any, list[int]] = {}
    for i, network in enumerate(found):
        groups.setdefault(network.get("arch_id", i), []).append(i)
    marks = itertools.chain(MARKS, itertools.repeat(OTHER))
    return [(mark, _ratios(found, group), [found[i] for i in group]) for mark, group in zip(marks, groups.values(), strict=False)]


def _ratios(found: Sequence[Record], group: Sequence[int]) -> str:
    """The ratios at these positions; three and more in a row by their ends."""
    parts = []
    for _, run in itertools.groupby(enumerate(group), lambda pair: pair[1] - pair[0]):
        names = [f"{found[i]['ratio']:g}" for _, i in run]
        parts += names if len(names) < 3 else [f"{names[0]} to {names[-1]}"]
    return ", ".join(parts)


def _dots(record: Record, split: str) -> list[tuple[str, str, sketch.Point]]:
    """Mark, label and place (NFR, top-1; %) of every different network whose place is known."""
    scores = [(mark, text, _score(group[0], "nfr", split), _score(group[0], "top1", split)) for mark, text, group in _networks(record)]
    return [(mark, text, (100 * nfr, 100 * top1)) for mark, text, nfr, top1 in scores if nfr is not None and top1 is not None]


def sweep_text(record: Record, split: str, width: int = 80) -> tuple[str, ...]:
    """The trade-off in lines of at most `width` characters (40 or more), marked as in the table; none without a dot."""
    dots, known = _dots(record, split), _score(record.get("reference", {}), "top1", split)
    if not dots:
        return ()
    title = f"top-1 against NFR: {_images(record['sweep'], split)}"
    accuracy = "top-1, %" + (f"; the reference's is {100 * known:.2f}" if known is not None else "")
    marks = tuple((mark, place) for mark, _, place in dots)
    return sketch.to_text(sketch.Sketch(title=title, x="NFR, %", y=accuracy, marks=marks), width)


def sweep_plot(record: Record, split: str) -> bytes:
    """Top-1 over NFR, a dot per network with the ratios that found it, and the reference's top-1 as a line, as a PNG.

    A reference far from all networks has a strip of its own.
    """
    dots, reference = _dots(record, split), record.get("reference", {})
    places, known = [place for *_, place in dots], _score(reference, "top1", split)
    levels = [] if known is None else [100 * known]

    def draw(figure: Figure) -> None:
        figure.suptitle(f"Top-1 against NFR: {_images(record['sweep'], split)}", fontsize=12, fontweight="bold", color=INK)
        axis, strip = canvas.axes_with_level(figure, [top1 for _, top1 in places], levels)
        handles = axis.plot(
            *zip(*places, strict=True), "o", color=COLOURS[0], markersize=8, markeredgecolor="white", clip_on=False, zorder=5
        )
        handles += [strip.axhline(level, color=ORANGE, linestyle="--", linewidth=1.4) for level in levels]
        low, high = canvas.limits([nfr for nfr, _ in places])
        axis.set(xlim=(max(0.0, low), high), ylabel="top-1, %")
        figure.axes[-1].set_xlabel("NFR, %")
        texts = ["a network; the label tells \u03bb\u2082/\u03bb\u2081", *(_reference_text(reference, level) for level in levels)]
        legend = figure.legend(handles, ["-"] * len(texts), loc="outside lower center", ncols=2, fontsize=9, frameon=False)
        for label, text in zip(legend.get_texts(), texts, strict=True):
            label.set_text(legible(text))
            label.set_parse_math(False)
        canvas.label_points(figure, axis, places, [text for _, text, _ in dots], levels=levels if strip is axis else ())

    return canvas.png((8.0, 5.4), draw)


def _reference_text(reference: Record, top1: float) -> str:
    """What the line of the reference is."""
    cost = f", {_millions(reference['macs'])} MACs" if "macs" in reference else ""
    return f"reference {short(reference.get('name', ''), 30)}".rstrip() + f"{cost}: {top1:.2f} %"


# -- one network -----------------------------------------------------------------------------------------------


def reward_facts(record: Record) -> list[tuple[str, str]]:
    """The reward, whether the reference is contained, and top-1 and flips against it on both splits: names and values."""
    name = record["reward"]
    cap = f", NFR at most {_percent(record['nfr_cap'])}" if record.get("nfr_cap") is not None else ""
    found = [("reward", f"{name.upper()}: {REWARDS[name.lower()](record)}{cap}")]
    if "reference" in record or "contains_reference" in record:
        found.append(("reference", _reference(record)))
    for split, key in (("validation", "validation"), ("test", "measured")):
        found += _flips(split, record.get(key, {}))
    return found


def _reference(record: Record) -> str:
    """Which one it is, and what of its weights the network has."""
    told = record.get("reference", {})
    name = short(told["name"], 60) + (f" ({_millions(told['macs'])} MACs)" if "macs" in told else "") if "name" in told else ""
    return ": ".join(filter(None, [name, _contained(record) if "contains_reference" in record else ""]))


def _contained(record: Record) -> str:
    """What of the reference's weights the network has."""
    if not record["contains_reference"]:
        return "not all of its weights are contained"
    effective = {
        None: "",
        True: "; its effective filters are the same",
        False: "; not all effective filters are the same: smaller kernels are transformed from larger ones",
    }
    return "all of its weights are contained" + effective[record.get("effective_filters_equal")]


def _flips(split: str, scores: Record) -> list[tuple[str, str]]:
    """Top-1 and flips on one split."""
    found = []
    if "top1" in scores:
        beside = f", the reference's {_percent(scores['top1_ref'])}" if "top1_ref" in scores else ""
        found.append((f"{split} top-1", f"{_percent(scores['top1'])}{beside}{_source(scores)}"))
    rates = [f"{name} {_percent(scores[key])}" for key, name in (("nfr", "NFR"), ("pfr", "PFR")) if key in scores]
    rates += [f"relative NFR {scores['relative_nfr']:.3f}"] if "relative_nfr" in scores else []
    if rates:
        found.append((f"{split} flips", f"{', '.join(rates)}{_source(scores) if not found else ''}"))
    return found


def _source(scores: Record) -> str:
    """How the numbers are known, and of how many images."""
    known = []
    if "source" in scores:
        known.append("shipped predictions" if scores["source"] == "shipped" else "evaluated now")
    if "n" in scores:
        known.append(_counted(scores["n"], "image"))
    return f"  ({', '.join(known)})" if known else ""
