"""Two networks compared image by image: the record of numbers, tables for people, and the images that flip.

Legend: n = images, k = images shown.
"""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from ofasearch.data import Images, Preprocessing, Split
from ofasearch.evaluate.flips import Flips, compare, confusions, intervals, negative_flips, per_class, positive_flips
from ofasearch.evaluate.saved import Labelled

if TYPE_CHECKING:
    from PIL import Image, ImageDraw, ImageFont

    Font = ImageFont.ImageFont | ImageFont.FreeTypeFont

Record = Mapping[str, Any]
Rows = list[tuple[str, ...]]
PAIRS = 20  # of classes, in a record
SHOWN_CLASSES, SHOWN_PAIRS = 10, 5  # on the screen
SHOWN, COLUMNS, GROUPS = 100, 12, 20  # images of a contact sheet, of its rows; classes up to which each gets rows of its own
SIDE, CELL, LINE, GAP = 96, 116, 13, 6  # pixels: an image, its column, a line of text, what is left between
LONGEST = 300  # letters of a line
PLAIN = Preprocessing(mean=(0.0, 0.0, 0.0), std=(1.0, 1.0, 1.0), size=0)  # pixels in [0, 1]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Comparison:
    """What two networks predict of the same images, (n,) each, and what to call them. `source`: shipped, live or saved."""

    old_name: str
    new_name: str
    old: npt.NDArray[np.int64]
    new: npt.NDArray[np.int64]
    images: Labelled
    source: str

    @property
    def flips(self) -> Flips:
        """The four counts."""
        return compare(self.old, self.new, self.images.labels)

    def named(self, index: int) -> str:
        """A class by its name."""
        return self.images.class_names[index]


def record_of(comparison: Comparison, seed: int = 0) -> dict[str, Any]:
    """All numbers, as in JSON answers; `seed` is that of the bootstrap. What is unknown is absent."""
    c, flips = comparison, comparison.flips
    arrays = c.old, c.new, c.images.labels
    classes = [
        {"class": c.named(label), "n": f.n, "top1_old": f.top1_old, "top1_new": f.top1_new, "nfr": f.nfr, "pfr": f.pfr}
        for label, f in per_class(*arrays).items()
    ]
    pairs = [{"label": c.named(p.label), "predicted": c.named(p.predicted), "count": p.count} for p in confusions(*arrays)[:PAIRS]]
    return {
        "old": c.old_name,
        "new": c.new_name,
        "source": c.source,
        "data": c.images.data,
        "split": c.images.split,
        **flips.to_json(),
        "gain": flips.gain,
        "intervals": intervals(flips, np.random.default_rng(seed)).to_json() | {"seed": seed},
        "classes": classes,
        "pairs": pairs,
    }


# -- for people ------------------------------------------------------------------------------------------------


def networks_table(record: Record) -> tuple[list[str], Rows]:
    """Every network with its accuracy."""
    roles = ["old", "new", *(f"#{i + 1}" for i in range(2, len(record["networks"])))]
    macs = any("macs" in network for network in record["networks"])
    rows = []
    for role, network in zip(roles, record["networks"], strict=True):
        cost = [f"{network['macs'] / 1e6:.2f} M" if "macs" in network else ""] if macs else []
        rows.append((role, network["name"], *cost, _percent(network["top1"])))
    return ["", "network", *(["MACs"] if macs else []), f"top-1 ({record['split']})"], rows


def facts(record: Record) -> list[tuple[str, str]]:
    """The rates with their intervals, what they were measured on, notes and files: names and values."""
    sure = record["intervals"]
    level = f"{100 * sure['level']:.0f} % interval"

    def rate(name: str, count: int) -> str:
        low, high = sure[name]
        return f"{_percent(record[name])} ({count:,} of {record['n']:,}), {level} {_percent(low)} to {_percent(high)}"

    low, high = (_points(value) for value in sure["gain"])
    rows = [
        ("negative flips", rate("nfr", record["negative_flips"])),
        ("positive flips", rate("pfr", record["positive_flips"])),
        ("accuracy gained", f"{_points(record['gain'])}, {level} {low} to {high}"),
    ]
    if "relative_nfr" in record:
        rows.append(("relative NFR", f"{record['relative_nfr']:.3f} (1: as if the networks erred independently)"))
    if "nfi" in record:
        rows.append(("negative flip impact", f"{_percent(record['nfi'])} of the new network's errors"))
    rows.append(("images", f"{record['n']:,} of {record['data']} {record['split']}, {record['source']} predictions"))
    return rows + [("note", note) for note in record.get("notes", [])] + list(record.get("files", {}).items())


def classes_table(record: Record) -> tuple[list[str], Rows]:
    """The classes that flip most."""
    most = sorted(record["classes"], key=lambda c: -c["nfr"])[:SHOWN_CLASSES]
    rows = [(c["class"], f"{c['n']:,}", *(_percent(c[key]) for key in ("top1_old", "top1_new", "nfr", "pfr"))) for c in most]
    heading = "class" if len(most) == len(record["classes"]) else f"class ({len(most)} of {len(record['classes'])})"
    return [heading, "images", "top-1 old", "top-1 new", "NFR", "PFR"], rows


def pairs_table(record: Record) -> tuple[list[str], Rows]:
    """What flipped images are taken for most often."""
    return ["was right", "is now", "images"], [(p["label"], p["predicted"], f"{p['count']:,}") for p in record["pairs"][:SHOWN_PAIRS]]


def matrix_table(record: Record) -> tuple[list[str], Rows]:
    """NFR between all networks: of a row by a column."""
    names = [row[0] for row in networks_table(record)[1]]
    rows = [(f"{name} to", *(_percent(value) for value in row)) for name, row in zip(names, record["nfr_matrix"], strict=True)]
    return ["NFR from", *names], rows


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"


def _points(value: float) -> str:
    return f"{100 * value:+.2f} points"


# -- files -----------------------------------------------------------------------------------------------------


def csv_text(comparison: Comparison) -> str:
    """Every image that flips, by its position in the split and its file where it has one."""
    c, files, buffer = comparison, comparison.images.files, io.StringIO()
    arrays = c.old, c.new, c.images.labels
    kinds = {"negative": negative_flips(*arrays), "positive": positive_flips(*arrays)}
    rows = sorted((int(i), kind) for kind, mask in kinds.items() for i in np.flatnonzero(mask))
    writer = csv.writer(buffer, lineterminator="\n")
    writer.writerow(["index", *(["file"] if files else []), "label", "old", "new", "flip"])
    for i, kind in rows:
        classes = (c.named(int(values[i])) for values in (c.images.labels, c.old, c.new))
        writer.writerow([i, *([files[i]] if files else []), *classes, kind])
    return buffer.getvalue()


def chosen(flipped: npt.NDArray[np.int64], labels: npt.NDArray[np.int64], most: int = SHOWN) -> npt.NDArray[np.int64]:
    """At most so many of the flipped images (positions), class by class; where there are more, classes are cut evenly."""
    by_class = flipped[np.lexsort((flipped, labels[flipped]))]
    own = labels[by_class]
    place = np.arange(len(own)) - np.searchsorted(own, own)  # of an image among those of its class
    kept = np.sort(np.lexsort((own, place))[:most])
    return np.asarray(by_class[kept])


def contact_sheet(comparison: Comparison, part: Split) -> bytes:
    """The images that flip negatively as one PNG, grouped by class, each with "label: old -> new"; the same every time.

    At most 100 are shown, and the sheet says of how many. `part` is the split that the comparison is of.
    """
    from PIL import Image, ImageDraw, ImageFont

    c = comparison
    flipped = np.flatnonzero(negative_flips(c.old, c.new, c.images.labels))
    index = chosen(flipped, c.images.labels)
    places = list(_places([int(c.images.labels[i]) for i in index]))
    rows = 1 + max((row for row, _ in places), default=-1)
    size = COLUMNS * (CELL + GAP) + GAP, 3 * LINE + GAP + rows * (SIDE + 2 * LINE + GAP)
    sheet = Image.new("RGB", size, "white")
    draw, font = ImageDraw.Draw(sheet), ImageFont.load_default()
    of = f"{len(index)} of {len(flipped):,} negative flips shown" if len(index) < len(flipped) else f"{len(flipped)} negative flips"
    for line, text in enumerate((f"{c.old_name} -> {c.new_name}", f"{of}, {c.images.data} {c.images.split}")):
        _write(draw, font, (GAP, GAP + line * LINE), text, size[0] - 2 * GAP)
    for i, (row, column), picture in zip(index, places, _pictures(part, index), strict=True):
        left, top = GAP + column * (CELL + GAP), 3 * LINE + GAP + row * (SIDE + 2 * LINE + GAP)
        sheet.paste(_fitted(picture), (left, top))
        label, old, new = (c.named(int(values[i])) for values in (c.images.labels, c.old, c.new))
        for line, text in enumerate((f"{label}:", f"{old} -> {new}")):
            _write(draw, font, (left, top + SIDE + line * LINE), text, CELL)
    buffer = io.BytesIO()
    sheet.save(buffer, "PNG")
    return buffer.getvalue()


def _places(labels: Sequence[int]) -> Iterator[tuple[int, int]]:
    """Row and column of each image; a class begins a row where there are few classes."""
    row, column, apart = 0, 0, len(set(labels)) <= GROUPS
    for i, label in enumerate(labels):
        if i and (column == COLUMNS or (apart and label != labels[i - 1])):
            row, column = row + 1, 0
        yield row, column
        column += 1


def _pictures(part: Split, index: npt.NDArray[np.int64]) -> Iterator[Images]:
    """The images at these positions, (H, W, 3) each."""
    few = part.take(index)
    for x in few.inputs(PLAIN, resolution=part.pixels or SIDE, batch=COLUMNS) if len(index) else ():
        yield from np.rint(255 * x.transpose(0, 2, 3, 1)).astype(np.uint8)


def _fitted(picture: Images) -> Image.Image:
    """An image as large as its place: small ones by whole multiples, so that their pixels stay what they are."""
    from PIL import Image

    image = Image.fromarray(picture)
    if image.width > SIDE:
        return image.resize((SIDE, SIDE), Image.Resampling.BILINEAR)
    times = SIDE // image.width
    return image.resize((times * image.width, times * image.height), Image.Resampling.NEAREST)


def _write(draw: ImageDraw.ImageDraw, font: Font, place: tuple[int, int], text: str, width: int) -> None:
    """A line of text, cut to its width; what not every font has, or what is no letter, becomes a question mark."""
    text = "".join(c if c.isascii() and c.isprintable() else "?" for c in text[:LONGEST])
    if draw.textlength(text, font=font) > width:
        while text and draw.textlength(f"{text}..", font=font) > width:
            text = text[:-1]
        text += ".."
    draw.text(place, text, fill="black", font=font)
