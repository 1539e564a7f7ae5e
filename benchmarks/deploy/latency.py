"""ONNX Runtime beside torch, eager and compiled: the smallest, a middle and the largest network of design spaces.

The three runtimes take turns within one measurement, and every row has its interval: on a busy machine it is wide. The middle
network is the median by MACs of 1,000 seeded ones. Every call adds to the record; rows of the same network are replaced.
    python benchmarks/deploy/latency.py --space compofa-mbv3-cifar --out benchmarks/results/<machine>/deploy/latency.json
    python benchmarks/deploy/latency.py --space ofa-mbv3-w1.0 --resolution 224 --network mid --out ...
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch.jobs.bench import bench
from ofasearch.latency.machine import system_load
from ofasearch.records import provenance, read_json, write_json
from ofasearch.space.core import Codes, Space
from ofasearch.space.costs import costs, macs_of
from ofasearch.space.families import get_space

NETWORKS = ("min", "mid", "max")
SAMPLE, SEED = 1000, 0


def main() -> None:
    """Run the benchmark and add to its record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", nargs="+", required=True)
    parser.add_argument("--network", nargs="+", choices=NETWORKS, default=NETWORKS)
    parser.add_argument("--resolution", type=int, help="default: the largest of the space")
    parser.add_argument("--batch", nargs="+", type=int, default=[1])
    parser.add_argument("--threads", nargs="+", type=int, default=[1])
    parser.add_argument("--against", nargs="+", default=["torch", "torch-compile"])
    parser.add_argument("--seconds", type=float, default=4.0)
    parser.add_argument("--beside", default="", help="what else ran on the machine, in words")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = read_json(options.out)["rows"] if options.out.exists() else []
    for name in options.space:
        space = get_space(name)
        space = space.with_resolutions([options.resolution or max(space.resolutions)])
        for network in options.network:
            for row in timed(space, network, options):
                rows = [known for known in rows if same(known) != same(row)] + [row]
                print(f"{name} {network} {row['runtime']}: {row['latency_ms_p50']:.3f} ms, {row.get('times_ort', 1):.2f}", flush=True)
            write_json(options.out, provenance(rows=sorted(rows, key=same), sample=SAMPLE, seed=SEED))


def timed(space: Space, network: str, options: Any) -> list[dict[str, Any]]:
    """A row per runtime, batch and number of threads."""
    codes = codes_of(space, network)
    blueprint, load = space.blueprint(codes), system_load()
    record = bench(
        space.arch(codes).id,
        batch=options.batch,
        threads=options.threads,
        against=options.against,
        seconds=options.seconds,
        space=space.name,
    )
    known = {"space": space.name, "network": network, "arch_id": space.arch(codes).id, "resolution": blueprint[0].hw_in}
    known |= {"macs": costs(blueprint).macs, "params": costs(blueprint).params, "load_before": load, "notes": record["notes"]}
    known |= {"beside": options.beside} if options.beside else {}
    return [known | run for run in record["runs"]]


def codes_of(space: Space, network: str) -> Codes:
    """The network of that name."""
    if network != "mid":
        return {"min": space.smallest, "max": space.largest}[network]()
    rows = space.sample(SAMPLE, np.random.default_rng(SEED))
    found: Codes = rows[np.argsort(macs_of(space)(rows), kind="stable")[SAMPLE // 2]]
    return found


def same(row: dict[str, Any]) -> tuple[Any, ...]:
    """What two rows of one thing have in common; their order in the record."""
    return row["space"], row["resolution"], NETWORKS.index(row["network"]), row["batch"], row["threads"], row["runtime"]


if __name__ == "__main__":
    main()
