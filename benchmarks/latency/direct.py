"""Search by timing whole networks, without a table (CompOFA, section 5.7 and table 2), beside a search by table.

The fixed-kernel CompOFA space is measured whole; the elastic one by evolution, each network once. Both start without
any memory. The paper reports 75 s for the fixed space and 2.25 h for the elastic one, on its own machines.
    python benchmarks/latency/direct.py --predictor acc_predictor.pth --out benchmarks/results/<machine>/latency/direct.json
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path
from typing import Any

from ofasearch.jobs.find import FindRequest, FindResult, find
from ofasearch.jobs.setup import Budgets, Question
from ofasearch.records import provenance, write_json


def main() -> None:
    """Run the benchmark and write its record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--predictor", required=True)
    parser.add_argument("--spaces", nargs="+", default=["compofa-mbv3-w1.2", "compofa-mbv3-elastic-w1.2"])
    parser.add_argument("--resolution", type=int, default=160)
    parser.add_argument("--latency", type=float, default=7.0, help="budget, ms")
    parser.add_argument("--population", type=int, default=50)
    parser.add_argument("--generations", type=int, default=10)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    rows = []
    for space in options.spaces:
        for measure in ("direct", "table"):
            rows.append(one(space, measure, options))
            print(rows[-1], flush=True)
            write_json(options.out, provenance(rows=rows, resolution=options.resolution, budget_ms=options.latency))


def one(space: str, measure: str, options: Any) -> dict[str, Any]:
    """One search without memory."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["OFASEARCH_CACHE"] = folder
        question = Question(
            budgets=Budgets(latency_ms=options.latency), space=space, predictor=options.predictor, target="cpu",
            resolutions=(options.resolution,), measure=measure,
        )  # fmt: skip
        evolution = {"population": options.population, "generations": options.generations} if measure == "direct" else {}
        request = FindRequest(question=question, out=Path(folder) / "run", **evolution)
        started = time.perf_counter()
        record = next(event for event in find(request) if isinstance(event, FindResult)).record
    row = {"space": space, "measure": measure, "seconds": time.perf_counter() - started, **evolution}
    row |= {name: record[name] for name in ("networks_measured", "measuring_seconds", "evaluations", "search_seconds") if name in record}
    return row | {name: record[name] for name in ("arch_id", "predicted_top1", "latency_ms", "device")}


if __name__ == "__main__":
    main()
