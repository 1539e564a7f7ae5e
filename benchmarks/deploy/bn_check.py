"""How many images batch norm needs: small and middle CIFAR-10 networks of the shipped supernets, by `ofasearch bn-check`.

    python benchmarks/deploy/bn_check.py --data CIFAR10_DIR      # networks that are on record are skipped
    python benchmarks/deploy/bn_check.py --table

Five draws of every sample size, judged on the first 2,000 validation images; the test split is not touched.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import ofasearch
from ofasearch.records import provenance, read_json, write_json

RECORD = Path(__file__).resolve().parents[1] / "results" / "amd-epyc-2c" / "deploy" / "bn_check.json"
NETWORKS = {  # arch id -> supernet
    "compofa-mbv3-cifar@r32-2-2-2-2-2": "cifar10-compofa",
    "ofa-mbv3-cifar@r32-23333-23333-23333-23333-23333": "cifar10-ofa",
    "compofa-mbv3-cifar@r32-3-3-3-3-3": "cifar10-compofa",
}


def table(record: dict[str, Any]) -> str:
    """Mean top-1 below that of all images, in points, with the deviation of single draws, as Markdown."""
    networks = record["networks"]
    lines = ["| images | " + " | ".join(networks) + " |", "| --- " * (1 + len(networks)) + "|"]
    for i, size in enumerate(next(iter(networks.values()))["sizes"]):
        rows = [found["sizes"][i] for found in networks.values()]
        cells = [f"{100 * row['loss']:.2f} ± {100 * row['deviation']:.2f}" for row in rows]
        lines.append(f"| {size['images']:,} | " + " | ".join(cells) + " |")
    for key, name in (("suffices", "suffices (95 %)"), ("suffices_on_average", "on average")):
        lines.append(f"| {name} | " + " | ".join(f"{found[key]:,}" for found in networks.values()) + " |")
    return "\n".join(lines)


def main() -> None:
    """Check what is not on record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    record = read_json(RECORD) if RECORD.exists() else {"networks": {}}
    for arch, supernet in {} if given.table else NETWORKS.items():
        if arch not in record["networks"]:
            record["networks"][arch] = ofasearch.bn_check(arch, supernet=supernet, data=given.data)
            write_json(RECORD, {**provenance(), "networks": record["networks"]})
    print(table(record))


if __name__ == "__main__":
    main()
