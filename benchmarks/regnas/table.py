"""The rows of REG-NAS's table 2 side by side: independent training, focal distillation, weight sharing, the rewards.

They are read from the records of `independent.py` and `ablation.py`.

    python benchmarks/regnas/table.py
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from ofasearch import zoo
from ofasearch.evaluate.flips import compare, relative_change
from ofasearch.records import read_json

RESULTS = Path(__file__).parents[1] / "results" / "amd-epyc-2c" / "regnas"
SEEDS = range(10)
TRAINED = {"independent": "large", "independent + focal distillation": "focal"}


def trained(kind: str) -> list[dict[str, Any]]:
    """Test figures of the larger network against the small one of the same seed, for every seed that was trained."""
    members = zoo.load_supernet("cifar10-compofa").members
    assert members is not None
    found = []
    for seed in SEEDS:
        old, new = (RESULTS / f"{name}-{seed}.npz" for name in ("small", kind))
        if old.exists() and new.exists():
            with np.load(old) as a, np.load(new) as b:
                flips = compare(a["test"], b["test"], members.labels["test"])
            found.append(flips.to_json() | {"seed": seed})
    return found


def line(name: str, rows: list[dict[str, Any]], proposed: float) -> str:
    """Means over seeds."""
    old, new, nfr = (float(np.mean([row[key] for row in rows])) for key in ("top1_old", "top1_new", "nfr"))
    change = relative_change(proposed, nfr)
    told = f"{100 * change:+7.1f} %" if change is not None else "        -"
    relative = float(np.mean([row["relative_nfr"] for row in rows]))
    return f"{name:34s} {100 * old:6.2f} %  {100 * new:6.2f} %  {100 * nfr:5.2f} %  {told}  {relative:8.3f}  {len(rows):5d}"


def main() -> None:
    """One table per pair; the independent rows stand with the pair whose architectures were trained."""
    shipped = read_json(RESULTS / "shipped.json")
    for pair in shipped["pairs"]:
        rows = {
            name: [{**row["test"], "top1_old": row["test"]["top1_ref"], "top1_new": row["test"]["top1"]}]
            for name, row in pair["rows"].items()
            if "test" in row
        }
        independent = read_json(RESULTS / "large-0.json")
        if pair["rows"]["R0"].get("arch_id") == independent["arch_id"]:
            rows = {name: found for name, kind in TRAINED.items() if (found := trained(kind))} | rows
        print(f"\n{pair['reference']['arch_id']} -> {pair['budget_macs'] / 1e6:g} M")
        print(f"{'':34s} {'old':>8s}  {'new':>8s}  {'NFR':>7s}  {'C':>9s}  relative  seeds")
        for name, found in rows.items():
            print(line(name, found, rows["R2 + CAS"][0]["nfr"]))


if __name__ == "__main__":
    main()
