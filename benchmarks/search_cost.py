"""What one candidate of a search costs, and how that grows with population, space and number of budgets.

    OMP_NUM_THREADS=1 python benchmarks/search_cost.py --data ../shared/data/ofa

Beside it stands the arithmetic limit: the time that the products of the predictor (128 -> 400 -> 400 -> 400 -> 1, once-for-all's own)
take at the rate at which this machine multiplies large float32 matrices, in the same run. Every new child is evaluated (`screen=1`), so
that a candidate is one prediction; breeding, pricing and bookkeeping are the rest. One thread, microseconds per candidate, median of three.
"""

from __future__ import annotations

import argparse
import statistics
import time
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ofasearch.latency.ofa_yaml import load_ofa_yaml
from ofasearch.predictor import Predictor, load_predictor
from ofasearch.records import provenance, write_json
from ofasearch.search.evolution import EvolutionConfig, evolve
from ofasearch.search.problem import Budget, Problem
from ofasearch.space.core import Codes, Space, Values
from ofasearch.space.costs import activation_bytes_of, macs_of, params_of
from ofasearch.space.families import get_space

RESULTS = Path(__file__).parent / "results" / "amd-epyc-2c" / "search_cost.json"
SPACES = ("compofa-mbv3-w1.2", "compofa-mbv3-elastic-w1.2", "ofa-mbv3-w1.2")
CANDIDATES = 20_000  # per search, about


def limit_us(predictor: Predictor) -> tuple[float, float]:
    """Microseconds of the predictor's products for one network at the machine's own rate, and that rate in GFLOP/s."""
    size, seconds = 1200, []
    a, b = (np.random.default_rng(i).normal(size=(size, size)).astype(np.float32) for i in (0, 1))
    for _ in range(8):
        start = time.perf_counter()
        a @ b
        seconds.append(time.perf_counter() - start)
    rate = 2 * size**3 / statistics.median(seconds)
    return 1e6 * sum(2 * w[0].size for w in predictor.weights) / rate, rate / 1e9


def budgets(space: Space, latency: Any, count: int) -> tuple[Budget, ...]:
    """The first of latency, MACs, parameters and memory, each a little below its middle, so that they bind."""
    costs = (latency, macs_of(space), params_of(space), activation_bytes_of(space))[:count]
    middles = [0.45 * cost.bounds().lowest + 0.55 * cost.bounds().highest for cost in costs]
    return tuple(Budget(f"cost {i}", cost, limit, repr) for i, (cost, limit) in enumerate(zip(costs, middles, strict=True)))


def measure(predictor: Predictor, space: Space, latency: Any, population: int, count: int) -> dict[str, Any]:
    """Median microseconds per evaluated network of three searches, and of its prediction alone."""
    ready, whole, alone = predictor.on(space), [], []
    problem_budgets = budgets(space, latency, count)
    for seed in range(3):
        spent = [0.0]

        def objective(codes: Codes, spent: list[float] = spent) -> Values:
            start = time.perf_counter()
            found = -ready(codes)
            spent[0] += time.perf_counter() - start
            return found

        config = EvolutionConfig(population=population, generations=max(2, CANDIDATES // population), screen=1.0, refine=False)
        start = time.perf_counter()
        *_, last = evolve(Problem(space, (objective,), problem_budgets), config, np.random.default_rng(seed))
        whole.append(1e6 * (time.perf_counter() - start) / last.evaluations)
        alone.append(1e6 * spent[0] / last.evaluations)
    return {
        "space": space.name,
        "population": population,
        "budgets": count,
        "us_per_candidate": statistics.median(whole),
        "us_predicting": statistics.median(alone),
        "evaluations": int(last.evaluations),
    }


def main() -> None:
    """Measure all rows, print and write them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with note10/ and acc_predictor.pth")
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    table, predictor = load_ofa_yaml(options.data / "note10"), load_predictor(options.data / "acc_predictor.pth")
    assert table.resolutions is not None
    cases = [("ofa-mbv3-w1.2", population, 1) for population in (100, 1000, 10_000)]
    cases += [(name, 1000, 1) for name in SPACES[1:2]] + [("ofa-mbv3-w1.2", 1000, count) for count in (2, 4)]
    rows = []
    with threadpool_limits(1):
        limit, rate = limit_us(predictor)
        print(f"arithmetic limit {limit:.1f} us a candidate at {rate:.0f} GFLOP/s")
        print("| space | population | budgets | us a candidate | of it predicting | times the limit |\n" + "| --- " * 6 + "|")
        for name, population, count in cases:
            space = get_space(name).with_resolutions(table.resolutions)
            row = measure(predictor, space, table.cost(space), population, count)
            rows.append(row | {"times_the_limit": row["us_per_candidate"] / limit})
            cells = (name, f"{population:,}", str(count), f"{row['us_per_candidate']:.1f}", f"{row['us_predicting']:.1f}")
            print(f"| {' | '.join(cells)} | {row['us_per_candidate'] / limit:.1f} |", flush=True)
    write_json(options.out, provenance(threads=1, limit_us=limit, gflops=rate, rows=rows))


if __name__ == "__main__":
    main()
