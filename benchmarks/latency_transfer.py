"""How good a table is that was filled in from few measured layers: the Note10's published table from estimates of other devices.

    python benchmarks/latency_transfer.py --data ../shared/data [--out benchmarks/results/latency_transfer.json]

For 10, 20 and 40 probes, chosen and in ten random draws: the error of the layers that were not measured, what the held-out
probes said it would be, and the error of the sum of all layers.
"""

from __future__ import annotations

import argparse
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch.latency.ofa_yaml import load_ofa_yaml
from ofasearch.latency.roofline import DEVICES, estimate_ms
from ofasearch.latency.table import LatencyTable, Row, layer_of
from ofasearch.latency.transfer import Key, choose_probes, transfer
from ofasearch.records import write_json

DRAWS = 10


def estimates_like(table: LatencyTable, name: str) -> LatencyTable:
    """A known device's estimates for the rows of a table."""
    rows = {key: Row(ms, ms, 0, "estimated") for key in table.rows for ms in [estimate_ms(layer_of(key[1]), DEVICES[name], 1)]}
    return replace(table, name=name, rows=rows)


def errors(table: LatencyTable, known: LatencyTable, keys: tuple[Key, ...]) -> tuple[float, float, float]:
    """(error of the other layers, what was stated, error of the sum) when only `keys` of the table are measured."""
    found = transfer(known, replace(table, rows={key: table.rows[key] for key in keys}))
    real = np.array([row.ms for row in table.rows.values()])
    ours = np.array([found.table.rows[key].ms for key in table.rows])
    other = np.array([key not in set(keys) for key in table.rows])
    return float(np.abs(ours / real - 1)[other].mean()), found.held_out_mape, float(ours.sum() / real.sum() - 1)


def main() -> None:
    """Measure and write."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=Path("../shared/data"))
    parser.add_argument("--out", type=Path, default=Path("benchmarks/results/latency_transfer.json"))
    args = parser.parse_args()
    table = load_ofa_yaml(args.data / "ofa" / "note10")
    keys = list(table.rows)
    rows: list[dict[str, Any]] = []
    for name in ("v100", "xeon", "pixel1"):
        known = estimates_like(table, name)
        for n in (10, 20, 40):
            draws = [tuple(keys[i] for i in np.random.default_rng(seed).permutation(len(keys))[:n]) for seed in range(DRAWS)]
            for how, sets in (("chosen", [choose_probes(known, n)]), ("random", draws)):
                found = np.array([errors(table, known, chosen) for chosen in sets])
                row = {"known": name, "probes": n, "how": how, "draws": len(sets)}
                row |= {"mape": found[:, 0].mean(), "worst_mape": found[:, 0].max(), "stated": found[:, 1].mean()}
                row |= {"sum_error": np.abs(found[:, 2]).mean()}
                rows.append({k: round(float(v), 4) if isinstance(v, float) else v for k, v in row.items()})
                print(rows[-1])
    write_json(args.out, {"new": "note10, published table", "layers": len(keys), "rows": rows})


if __name__ == "__main__":
    main()
