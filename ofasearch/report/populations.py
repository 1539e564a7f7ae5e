"""What a population protocol found, for people: the table on the screen, the CSV of all networks, the plot.

A record is that of `result.json` (see `ofasearch.jobs.populations`); accuracies in it are fractions, shown here in %.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ofasearch.evaluate.populations import PROTOCOLS, Network

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
Rows = list[tuple[str, ...]]
SIZE, DPI = (7.2, 4.8), 150  # inches, and dots per inch


# -- the table -------------------------------------------------------------------------------------------------


def table(record: Record) -> tuple[list[str], Rows]:
    """Headers and rows for the screen."""
    return _TABLES[record["protocol"]](record)


def facts(record: Record) -> list[tuple[str, str]]:
    """What the table is of, its one figure where it has one, and the notes: names and values."""
    sizes = ", ".join(f"{count:,} of {split}" for split, count in record["splits"].items())
    found = [("images", f"{sizes}; batch norm on {record['calibration_images']:,} in batches of {record['calibration_batch']}")]
    found.append(("networks", f"{record['networks']} at {record['resolution']} pixels, {record['evaluated_now']} scores measured now"))
    if "mean_pareto_accuracy" in record:
        found.append(("mean Pareto accuracy", f"{_percent(record['mean_pareto_accuracy'])} (test)"))
    if "drop" in record:
        relative = f" ({_percent(record['relative_drop'])} of it)" if "relative_drop" in record else ""
        found.append(("drop", f"{_points(record['drop'])} from the costliest bucket's median to the cheapest's{relative}"))
    if "mean_difference" in record:
        found.append(("mean difference", _interval(record, "mean_difference", _points)))
    return found + [("note", note) for note in record["notes"]]


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.2f} points"


def _interval(record: Record, name: str, show: Callable[[float], str]) -> str:
    """A mean with its 95 % interval, where it has one."""
    if f"{name}_low" not in record:
        return show(record[name])
    return f"{show(record[name])}, 95 % interval {show(record[f'{name}_low'])} to {show(record[f'{name}_high'])}"


def _cost(record: Record) -> str:
    return "MACs" if record["axis"]["name"] == "MACs" else f"latency on {record['target']}"


def _split(record: Record) -> str:
    """The one split of a protocol that scores one."""
    return str(next(iter(record["splits"])))


def _pareto_table(record: Record) -> tuple[list[str], Rows]:
    rows: Rows = [
        (b["label"], str(b["networks"]), *_best_cells(b["best"])) if "best" in b else (b["label"], "0", "", "", "", "")
        for b in record["buckets"]
    ]
    rows += [(f"{name} network", "", *_best_cells(record[name])) for name in ("smallest", "largest")]
    return [_cost(record), "networks", "best by validation", "MACs", "validation top-1", "test top-1"], rows


def _best_cells(best: Record) -> tuple[str, ...]:
    return best["arch_id"].partition("@")[2], f"{best['macs'] / 1e6:.2f} M", _percent(best["top1_validation"]), _percent(best["top1_test"])


Column = tuple[str, Callable[[Record], str]]
_COLUMNS: dict[str, list[Column]] = {
    "random": [
        ("lower quartile", lambda b: _percent(b["lower_quartile"])),
        ("median", lambda b: _percent(b["median"])),
        ("upper quartile", lambda b: _percent(b["upper_quartile"])),
    ],
    "cdf": [
        ("error: least", lambda b: _percent(1 - b["highest"])),
        ("median", lambda b: _percent(1 - b["median"])),
        ("most", lambda b: _percent(1 - b["lowest"])),
    ],
    "average": [
        ("mean", lambda b: _percent(b["mean"])),
        ("95 % interval", lambda b: f"{_percent(b['mean_low'])} to {_percent(b['mean_high'])}" if "mean_low" in b else ""),
    ],
    "boxes": [
        ("min", lambda b: _percent(b["lowest"])),
        ("lower quartile", lambda b: _percent(b["lower_quartile"])),
        ("median", lambda b: _percent(b["median"])),
        ("upper quartile", lambda b: _percent(b["upper_quartile"])),
        ("max", lambda b: _percent(b["highest"])),
        ("variance (points²)", lambda b: f"{1e4 * b['variance']:.3f}" if "variance" in b else ""),
    ],
}


def _bucket_table(record: Record) -> tuple[list[str], Rows]:
    columns = _COLUMNS[record["protocol"]]
    headers = [_cost(record), "networks", *(f"{name} {_split(record)}" if i == 0 else name for i, (name, _) in enumerate(columns))]
    rows: Rows = []
    for b in record["buckets"]:
        cells = [show(b) for _, show in columns] if b["networks"] else [""] * len(columns)
        rows.append((b["label"], str(b["networks"]), *cells))
    return headers, rows


def _heatmap_table(record: Record) -> tuple[list[str], Rows]:
    cells = {(c["depth"], c["expand"]): c for c in record["cells"]}
    depths, expands = (sorted({c[key] for c in record["cells"]}) for key in ("depth", "expand"))
    column = f"top1_{_split(record)}"
    rows: Rows = [
        (str(d), *(_percent(cells[d, e][column]) + f" ({cells[d, e]['macs'] / 1e6:.1f} M)" if (d, e) in cells else "" for e in expands))
        for d in depths
    ]
    return ["depth", *(f"expand ratio {e}" for e in expands)], rows


def _common_table(record: Record) -> tuple[list[str], Rows]:
    own, other = _percent(record["mean_top1"]), _percent(record["mean_top1_with"])
    rows: Rows = [(record["supernet"], record["space"], own), (record["with"], record["with_space"], other)]
    return ["supernet", "space", f"mean top-1 of {record['networks']} common networks ({_split(record)})"], rows


_TABLES: dict[str, Callable[[Record], tuple[list[str], Rows]]] = {
    "pareto": _pareto_table,
    **dict.fromkeys(_COLUMNS, _bucket_table),
    "heatmap": _heatmap_table,
    "common": _common_table,
}


# -- the CSV ---------------------------------------------------------------------------------------------------


def csv_text(networks: Sequence[Network]) -> str:
    """One row per network; a cell is empty where nothing was measured. Buckets that share a network are joined by `;`."""
    accuracies = list(dict.fromkeys(column for network in networks for column in network.top1))
    latency = ["latency_ms"] if any(network.latency_ms is not None for network in networks) else []
    text = io.StringIO()
    writer = csv.DictWriter(text, ["arch_id", "macs", "params", *latency, "bucket", *accuracies], restval="", lineterminator="\n")
    writer.writeheader()
    for network in networks:
        writer.writerow({**network.to_json(), "bucket": "; ".join(network.buckets)})
    return text.getvalue()


# -- the plot --------------------------------------------------------------------------------------------------


def figure(record: Record, networks: Sequence[Network]) -> bytes:
    """The plot of a protocol as PNG; no state is shared with other plots of the process."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    drawing = Figure(figsize=SIZE, dpi=DPI, layout="constrained")
    FigureCanvasAgg(drawing)
    axes = drawing.add_subplot()
    _PLOTS[record["protocol"]](drawing, axes, record, networks)
    sizes = ", ".join(f"{count:,} {split}" for split, count in record["splits"].items())
    says = PROTOCOLS[record["protocol"]].says
    axes.set_title(f"{record['supernet']}: {says}\n{record['networks']} networks, {sizes} images", fontsize=10)
    png = io.BytesIO()
    drawing.savefig(png, format="png", metadata={"Software": None})
    return png.getvalue()


def _cost_label(record: Record) -> str:
    return f"MACs ({record['axis']['unit']})" if record["axis"]["name"] == "MACs" else f"latency on {record['target']} (ms)"


def _cost_value(record: Record, costs: Record) -> float:
    """Of a network, in the unit of the axis."""
    return float(costs["macs"] / record["axis"]["scale"] if record["axis"]["name"] == "MACs" else costs["latency_ms"])


def _plot_pareto(_: Figure, axes: Axes, record: Record, networks: Sequence[Network]) -> None:
    every = [n.to_json() for n in networks]
    x = [_cost_value(record, n) for n in every]
    axes.scatter(x, [100 * n["top1_validation"] for n in every], s=12, color="0.7", label="all, validation", zorder=1)
    bests = [b["best"] for b in record["buckets"] if "best" in b]
    axes.plot(
        [_cost_value(record, b) for b in bests], [100 * b["top1_test"] for b in bests], "o-", color="C0", label="best per bucket, test"
    )
    for name, marker in (("smallest", "v"), ("largest", "^")):
        end = record[name]
        place, label = ([_cost_value(record, end)], [100 * end["top1_test"]]), f"{name}, test"
        axes.plot(*place, marker, color="C3", markerfacecolor="none", markersize=10, linestyle="none", label=label)
    axes.set(xlabel=_cost_label(record), ylabel="top-1 (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)


def _plot_boxes(_: Figure, axes: Axes, record: Record, networks: Sequence[Network]) -> None:
    names = {"whislo": "lowest", "q1": "lower_quartile", "med": "median", "q3": "upper_quartile", "whishi": "highest"}
    filled = [(i, b) for i, b in enumerate(record["buckets"]) if b["networks"]]
    stats = [{name: 100 * b[key] for name, key in names.items()} | {"fliers": []} for _, b in filled]
    axes.bxp(stats, positions=[i for i, _ in filled], widths=0.5, showfliers=False)
    if record["protocol"] == "random":
        axes.plot([i for i, _ in filled], [100 * b["median"] for _, b in filled], "o-", color="C0", markersize=4, label="median")
        axes.legend(fontsize=8)
    _bucket_axis(axes, record)


def _plot_average(_: Figure, axes: Axes, record: Record, networks: Sequence[Network]) -> None:
    filled = [(i, b) for i, b in enumerate(record["buckets"]) if b["networks"]]
    mean = [100 * b["mean"] for _, b in filled]
    half = [100 * (b["mean_high"] - b["mean"]) if "mean_high" in b else 0.0 for _, b in filled]
    axes.errorbar([i for i, _ in filled], mean, yerr=half, fmt="o-", capsize=4, label="mean and its 95 % interval")
    axes.legend(fontsize=8)
    _bucket_axis(axes, record)


def _bucket_axis(axes: Axes, record: Record) -> None:
    """Buckets side by side, each named below."""
    labels = [b["label"].removesuffix(f" {record['axis']['unit']}").replace(" to ", "\nto ") for b in record["buckets"]]
    many = len(labels) > 12
    axes.set_xticks(range(len(labels)), labels, fontsize=6 if many else 8, rotation=90 if many else 0)
    axes.set_xlim(-0.6, len(labels) - 0.4)
    axes.set(xlabel=_cost_label(record), ylabel=f"{_split(record)} top-1 (%)")
    axes.grid(axis="y", alpha=0.3)


def _plot_cdf(_: Figure, axes: Axes, record: Record, networks: Sequence[Network]) -> None:
    from matplotlib import colormaps

    filled = [b for b in record["buckets"] if b["networks"]]
    for i, b in enumerate(filled):
        errors = [100 * e for e in b["errors"]]
        colour = colormaps["viridis"](0.9 * i / max(1, len(filled) - 1))
        axes.step([errors[0], *errors], [0.0, *b["fractions"]], where="post", color=colour, label=b["label"])
    axes.set(xlabel=f"{_split(record)} top-1 error (%)", ylabel="fraction of networks with at most this error", ylim=(0, 1.02))
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8 if len(filled) <= 12 else 5, title=_cost(record), title_fontsize=8)


def _plot_heatmap(drawing: Figure, axes: Axes, record: Record, networks: Sequence[Network]) -> None:
    depths, expands = (sorted({c[key] for c in record["cells"]}) for key in ("depth", "expand"))
    column = f"top1_{_split(record)}"
    grid = [[float("nan")] * len(expands) for _ in depths]
    for c in record["cells"]:
        grid[depths.index(c["depth"])][expands.index(c["expand"])] = 100 * c[column]
    image = axes.imshow(grid, cmap="viridis", origin="lower", aspect="auto")
    for c in record["cells"]:
        text = f"{100 * c[column]:.2f} %\n{c['macs'] / 1e6:.3g} M MACs" + (f"\n{c['latency_ms']:.3g} ms" if "latency_ms" in c else "")
        place = expands.index(c["expand"]), depths.index(c["depth"])
        axes.text(*place, text, ha="center", va="center", fontsize=9, bbox={"facecolor": "white", "alpha": 0.75, "edgecolor": "none"})
    axes.set_xticks(range(len(expands)), [str(e) for e in expands])
    axes.set_yticks(range(len(depths)), [str(d) for d in depths])
    axes.set(xlabel="expand ratio of all blocks", ylabel="depth of all stages (blocks)")
    drawing.colorbar(image, label=f"{_split(record)} top-1 (%)")


def _plot_common(_: Figure, axes: Axes, record: Record, networks: Sequence[Network]) -> None:
    column = f"top1_{_split(record)}"
    own, other = ([100 * n.top1[name] for n in networks] for name in (column, f"{column}_with"))
    shown = axes.scatter(other, own, c=[n.macs / 1e6 for n in networks], cmap="viridis", zorder=2)
    low, high = min(*own, *other), max(*own, *other)
    axes.plot([low, high], [low, high], "--", color="0.5", label="equal", zorder=1)
    axes.set(xlabel=f"{record['with']}: {_split(record)} top-1 (%)", ylabel=f"{record['supernet']}: {_split(record)} top-1 (%)")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    axes.figure.colorbar(shown, ax=axes, label="MACs (M)")


_PLOTS: dict[str, Callable[[Figure, Axes, Record, Sequence[Network]], None]] = {
    "pareto": _plot_pareto,
    "random": _plot_boxes,
    "cdf": _plot_cdf,
    "average": _plot_average,
    "boxes": _plot_boxes,
    "heatmap": _plot_heatmap,
    "common": _plot_common,
}
