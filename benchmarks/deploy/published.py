"""Once-for-all's 30 published networks here: multiply-accumulates and parameters beside the published ones, and their export.

    python benchmarks/deploy/published.py --data ../shared/data/ofa/specialized

Their weights are not among the data, so each folder gets drawn ones under once-for-all's names; `export` reads them as it would
read the published file and proves the ONNX file on seeded images. Counts are compared as printed: millions, rounded.
"""

from __future__ import annotations

import argparse
import csv
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from ofasearch.deploy.export import random_weights
from ofasearch.jobs import deliver
from ofasearch.jobs import subnet as jobs
from ofasearch.jobs.network import subnet_at
from ofasearch.records import provenance, write_json
from ofasearch.space.costs import costs
from ofasearch.space.static import Placed, read_placed
from ofasearch.supernet.published import INIT, their_names

RECORD = Path(__file__).resolve().parents[1] / "results" / "amd-epyc-2c" / "deploy" / "published.json"
GAIN = 1.3  # of filters
IMAGES = 8  # for the proof of an export
SEED = 0


def weights(placed: tuple[Placed, ...]) -> dict[str, torch.Tensor]:
    """A drawn state dict with once-for-all's names; with these numbers images still differ by far in the logits."""
    rng, names = np.random.default_rng(SEED), their_names(placed)
    state = {}
    for key, array in random_weights(tuple(spec for _, spec in placed), rng).items():
        drawn = GAIN * array if array.ndim == 4 else array + rng.uniform(-0.3, 0.3, array.shape) if array.ndim == 1 else array
        state[names[key]] = torch.from_numpy(drawn.astype(np.float32))
    return state


def measure(source: Path, row: Mapping[str, str], work: Path) -> dict[str, Any]:
    """One network: its counts, and what `export` says of it."""
    for name in ("net.config", "run.config"):
        shutil.copy(source / name, work / name)
    torch.save({"state_dict": weights(read_placed(work / "net.config"))}, work / INIT)
    answer = jobs.export(str(work), out=work / "x.onnx")
    subnet = subnet_at(work / "net.config")
    size = subnet.blueprint[0].hw_in
    images = subnet.preprocessing.apply(np.random.default_rng(SEED).integers(0, 256, (8, size, size, 3), dtype=np.uint8))
    with torch.no_grad():
        logits = deliver.to_network(subnet)(torch.from_numpy(images)).numpy()
    found = costs(subnet.blueprint)
    return {
        "folder": row["folder"],
        "image_size": size,
        "macs": found.macs,
        "published_macs_millions": int(row["macs_M"]),
        "params": found.params,
        "published_params_millions": float(row["params_M"]),
        "onnx_max_abs_diff": answer["onnx_max_abs_diff"],
        "onnx_checked_on": answer["onnx_checked_on"],
        "largest_logit": float(np.abs(logits).max()),
        "spread_over_images": float(np.ptp(logits, axis=0).max()),
        "size_bytes": answer["size_bytes"],
    }


def summary(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """In how many rows the counts are those that are printed, which the others are, and the worst export."""
    macs_off = {
        r["folder"]: [r["macs"] / 1e6, r["published_macs_millions"]] for r in rows if round(r["macs"] / 1e6) != r["published_macs_millions"]
    }
    params_off = [r["folder"] for r in rows if f"{r['params'] / 1e6:.1f}" != f"{r['published_params_millions']:.1f}"]
    return {
        "networks": len(rows),
        "macs_as_printed": len(rows) - len(macs_off),
        "macs_otherwise": macs_off,
        "params_as_printed": len(rows) - len(params_off),
        "params_otherwise": params_off,
        "largest_onnx_difference": max(r["onnx_max_abs_diff"] for r in rows),
        "largest_relative_onnx_difference": max(r["onnx_max_abs_diff"] / r["largest_logit"] for r in rows),
    }


def main() -> None:
    """Measure all rows of `published.csv`, print and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with published.csv")
    parser.add_argument("-o", "--out", type=Path, default=RECORD)
    options = parser.parse_args()
    deliver.CHECK_IMAGES = IMAGES
    rows = []
    with (options.data / "published.csv").open() as file:
        listed = list(csv.DictReader(file))
    print("| network | MACs, M | published | parameters, M | published | ONNX differs by | of logits up to |\n" + "| --- " * 7 + "|")
    for row in listed:
        with tempfile.TemporaryDirectory() as work:
            found = measure(options.data / row["folder"], row, Path(work))
        rows.append(found)
        cells = (
            row["folder"].partition("_top1")[0],
            f"{found['macs'] / 1e6:.1f}",
            row["macs_M"],
            f"{found['params'] / 1e6:.2f}",
            row["params_M"],
        )
        print(f"| {' | '.join(cells)} | {found['onnx_max_abs_diff']:.1e} | {found['largest_logit']:.2f} |", flush=True)
    facts = provenance(seed=SEED, weights="drawn, not the published ones", summary=summary(rows))
    write_json(options.out, {**facts, "rows": rows})


if __name__ == "__main__":
    main()
