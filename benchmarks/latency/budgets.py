"""Do networks that `find` hands out keep their budgets? Random binding budgets, each answer re-measured end to end.

For every budget the job `find` runs as a user would run it (table of this machine, candidates measured, the winner
accepted); then the winner is loaded anew and timed again beside the reference network, remembered by nobody.
    python benchmarks/latency/budgets.py --out benchmarks/results/<machine>/latency/budgets.json
"""

from __future__ import annotations

import argparse
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch.jobs.find import FindRequest, FindResult, find
from ofasearch.jobs.latency import reference_of
from ofasearch.jobs.measuring import SPOT_RULE, Lab
from ofasearch.jobs.network import read_network
from ofasearch.jobs.setup import Budgets, Question, Setup, local_runtime, prepare
from ofasearch.records import provenance, write_json


def main() -> None:
    """Run the benchmark and write its record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space")
    parser.add_argument("--supernet")
    parser.add_argument("--predictor")
    parser.add_argument("--budgets", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--generations", type=int, default=100)
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    question = Question(
        budgets=Budgets(latency_ms=1e6), target="cpu", space=options.space, supernet=options.supernet, predictor=options.predictor
    )
    setup = next(event for event in prepare(question) if isinstance(event, Setup))
    assert setup.table is not None
    bounds = setup.table.cost(setup.space).bounds()
    rng = np.random.default_rng(options.seed)
    # binding: above the fastest network by more than the table's error, below the slowest by as much
    limits = np.sort(rng.uniform(1.06 * bounds.lowest, 0.94 * bounds.highest, options.budgets))
    rows = [one(question, float(limit), options, setup) for limit in limits]
    over = np.array([row["remeasured_ms"] / row["budget_ms"] - 1 for row in rows])
    use = np.array([row["remeasured_ms"] / row["budget_ms"] for row in rows])
    summary = {
        "budgets": len(rows),
        "exceeded_by_more_than_2_percent": int((over > 0.02).sum()),
        "exceeded_by_more_than_5_percent": int((over > 0.05).sum()),
        "largest_excess": float(over.max()),
        "median_use_of_budget": float(np.median(use)),
    }
    print(summary)
    write_json(options.out, provenance(summary=summary, space=setup.space.name, table=setup.table.card["validation"], rows=rows))


def one(question: Question, limit: float, options: Any, setup: Setup) -> dict[str, Any]:
    """One budget: search, then measure the answer again."""
    asked = Question(**{**{name: getattr(question, name) for name in Question.__dataclass_fields__}, "budgets": Budgets(latency_ms=limit)})
    with tempfile.TemporaryDirectory() as folder:
        request = FindRequest(question=asked, out=Path(folder), seed=options.seed, generations=options.generations)
        result = next(event for event in find(request) if isinstance(event, FindResult))
    network = read_network(result.arch_id)
    runtime = local_runtime(asked)
    again = (
        Lab(runtime, reference_of(setup.space))
        .time_now({"": partial(runtime.load, network.blueprint)}, traced=False, rule=SPOT_RULE)[""]
        .timing
    )
    row = {"budget_ms": limit, "arch_id": result.arch_id, "table_ms": result.record["latency_ms"]}
    row |= {"found_ms": result.record["measured"]["latency_ms_p50"], "remeasured_ms": again.p50, "remeasured_raw_ms": again.raw_p50}
    print({key: round(value, 4) if isinstance(value, float) else value for key, value in row.items()}, flush=True)
    return row


if __name__ == "__main__":
    main()
