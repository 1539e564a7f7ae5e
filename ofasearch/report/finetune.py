"""A fine-tuning told: accuracies before and after, what flips, and which files there are. Pure: a record comes in, rows go out."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

Record = Mapping[str, Any]
SPLITS = ("validation", "test")


def accuracy_table(record: Record) -> tuple[list[str], list[tuple[str, ...]]]:
    """Top-1 of the untuned, the tuned and, where there is one, the reference network, by split."""
    sides = [("untuned", record["before"]), (f"tuned, epoch {record['best_epoch']} of {record['epochs']}", record["after"])]
    sides += [(record["reference"]["name"], record["reference"])] if "reference" in record else []
    rows = [(name, *(_percent(scores[f"{split}_top1"]) for split in SPLITS)) for name, scores in sides]
    return ["network", *(f"{split} top-1" for split in SPLITS)], rows


def facts(record: Record) -> list[tuple[str, str]]:
    """What flips, how batch norm was set, notes and files: names and values."""
    rows = [(f"{split} flips", _flips(record["flips"][split])) for split in SPLITS]
    if "reference" in record:
        ref = record["reference"]
        rows += [(f"{ref['name']} to {side}", _flips(ref[side]["test"])) for side in ("untuned", "tuned")]
    rows.append(("batch norm", f"recalibrated on {record['calibrated']}"))
    rows.append(("ONNX", f"differs by at most {record['measured']['onnx_max_abs_diff']:.2g} on {record['measured']['onnx_checked_on']}"))
    return rows + [("note", note) for note in record["notes"]] + list(record["files"].items())


def _flips(flips: Record) -> str:
    """The rates and the gain on one split."""
    low, high = flips["intervals"]["gain"]
    level = f"{100 * flips['intervals']['level']:.0f} % interval {100 * low:+.2f} to {100 * high:+.2f}"
    return f"NFR {_percent(flips['nfr'])}, PFR {_percent(flips['pfr'])}, gain {100 * flips['gain']:+.2f} points ({level})"


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"
