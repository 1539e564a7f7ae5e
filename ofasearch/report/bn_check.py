"""Accuracy against the number of calibration images: a table, a sketch, a plot, a CSV. Pure: a record comes in."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from ofasearch.report.canvas import png, quiet
from ofasearch.report.curves import COLOURS, INK, QUIET, legible
from ofasearch.report.sketch import Sketch

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Record = Mapping[str, Any]
WITHIN = "*"  # the mark of the size that suffices


def sizes_table(record: Record) -> tuple[list[str], list[tuple[str, ...]]]:
    """A row per sample size; what a single draw cannot tell is left out."""
    spread = record["draws"] > 1
    headers = ["images", "top-1", *(["deviation"] if spread else []), "below all", *(["at most"] if spread else []), "NFR to all"]
    rows = []
    for size in record["sizes"]:
        cells = [f"{size['images']:,}", f"{100 * size['top1']:.2f} %"]
        cells += [f"{100 * size['deviation']:.2f}"] if spread else []
        cells += [f"{100 * size['loss']:.2f}"]
        cells += [f"{100 * size['loss_bound']:.2f}"] if spread else []
        rows.append((*cells, f"{100 * size['nfr']:.2f} %"))
    return headers, rows


def facts(record: Record) -> list[tuple[str, str]]:
    """How many images suffice, what was measured and on what, and the files: names and values."""
    tolerance = f"{100 * record['tolerance']:g} points below all {record['sizes'][-1]['images']:,}"
    rows = [("network", record["arch_id"])]
    if "suffices" in record:
        rows.append(("suffices", f"{record['suffices']:,} images: with 95 % confidence the mean is at most {tolerance}"))
    rows.append(("on average", f"{record['suffices_on_average']:,} images: the mean of the draws is at most {tolerance}"))
    if "own_top1" in record:
        rows.append(("as it came", f"top-1 {100 * record['own_top1']:.2f} % with its own statistics"))
    drawn = f"{record['draws']} draw{'s' * (record['draws'] > 1)} of each size, batches of {record['calibration_batch']}"
    rows.append(("measured", f"on {record['n']:,} validation images of {record['data']}, {drawn}"))
    return rows + list(record.get("files", {}).items())


def sketch(record: Record) -> Sketch:
    """All draws as dots, their means as a line, the size that suffices as a mark; sizes double from left to right."""
    sizes = record["sizes"]
    means = tuple((math.log2(size["images"]), 100 * size["top1"]) for size in sizes)
    marked = record.get("suffices", record["suffices_on_average"])
    return Sketch(
        title=f"{WITHIN} suffices, dots are single draws",
        x="calibration images, doubling",
        y="validation top-1, %",
        dots=tuple((math.log2(size["images"]), 100 * value) for size in sizes for value in size["draws"]),
        ways=(means,),
        marks=tuple((WITHIN, mean) for size, mean in zip(sizes, means, strict=True) if size["images"] == marked),
        ends=(str(sizes[0]["images"]), str(sizes[-1]["images"])),
    )


def csv_text(record: Record) -> str:
    """A line per draw: images, draw, top-1."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["images", "draw", "top1"])
    for size in record["sizes"]:
        writer.writerows([size["images"], number, value] for number, value in enumerate(size["draws"]))
    return buffer.getvalue()


def plot(record: Record) -> bytes:
    """The sketch as a PNG, with the tolerance as a band below the whole split."""
    sizes = record["sizes"]
    counts = [size["images"] for size in sizes]

    def draw(figure: Figure) -> None:
        axis = figure.subplots()
        quiet(axis)
        whole = 100 * sizes[-1]["top1"]
        axis.axhspan(whole - 100 * record["tolerance"], whole, color="#dbe7f3", linewidth=0)
        for size in sizes:
            axis.plot([size["images"]] * len(size["draws"]), [100 * v for v in size["draws"]], "o", color=QUIET, alpha=0.5, markersize=4)
        axis.plot(counts, [100 * size["top1"] for size in sizes], "-", color=COLOURS[0], linewidth=1.8)
        axis.axvline(record.get("suffices", record["suffices_on_average"]), color=COLOURS[1], linewidth=1.2, linestyle="--")
        axis.set_xscale("log", base=2)
        axis.set_xticks(counts, [str(count) for count in counts])
        axis.minorticks_off()
        axis.set_xlabel("calibration images", color=INK)
        axis.set_ylabel("validation top-1, %", color=INK)
        axis.set_title(legible(record["arch_id"]), fontsize=11, color=INK, parse_math=False)

    return png((8, 4.5), draw)
