"""What the reference network is good for: the same networks timed twice, as the clock saw them and beside the reference.

python benchmarks/latency/repeat.py --out benchmarks/results/<machine>/latency/repeat.json
"""

from __future__ import annotations

import argparse
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch.deploy.runtime import get_runtime
from ofasearch.jobs.latency import agreement, reference_of
from ofasearch.jobs.measuring import NET_RULE, Lab
from ofasearch.records import provenance, write_json
from ofasearch.space.families import get_space

GROUP = 6


def main() -> None:
    """Run the benchmark and write its record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = [once("compofa-mbv3-cifar", 32, 48), once("ofa-mbv3-w1.0", 160, 24)]
    write_json(options.out, provenance(rows=rows, key=str(get_runtime().key)))


def once(name: str, resolution: int, nets: int) -> dict[str, Any]:
    """Two passes over the same loaded-anew networks, in different orders; nothing is remembered but the reference's level."""
    space = get_space(name).with_resolutions([resolution])
    lab = Lab(get_runtime(), reference_of(space))
    blueprints = [space.blueprint(row) for row in space.sample(nets, np.random.default_rng(3))]
    passes = []
    for number in range(2):
        found: dict[str, Any] = {}
        order = np.random.default_rng(number).permutation(nets).tolist()
        for start in range(0, nets, GROUP):
            loads = {str(i): partial(lab.runtime.load, blueprints[i]) for i in order[start : start + GROUP]}
            found |= lab.time_now(loads, traced=False, rule=NET_RULE)
        passes.append([found[str(i)].timing for i in range(nets)])
    row: dict[str, Any] = {"space": name, "resolution": resolution, "disturbed": float(np.mean(lab.disturbed))}
    for what in ("raw_p50", "p50"):
        first, second = (np.array([getattr(timing, what) for timing in timings]) for timings in passes)
        row[what] = agreement(first, second) | {"ms": [first.tolist(), second.tolist()]}
        print(name, what, {key: round(value, 4) for key, value in row[what].items() if key != "ms"}, flush=True)
    return row


if __name__ == "__main__":
    main()
