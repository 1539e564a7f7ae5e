"""How few generations suffice: the best network after N of them, in CompOFA's spaces and in once-for-all's.

    OMP_NUM_THREADS=1 python benchmarks/generations.py --data ../shared/data/ofa

CompOFA searches with N = 50 where kernels are fixed, 300 where they are elastic, and 500 in once-for-all's space (appendix A.4, figure 9).
Here each search runs once to the last N and is read after each of them, in two settings: all new children are evaluated, as published, or
only those that a regression rates best, as this project does. "Refined" is what its refinement makes of the winner after N generations.
Regrets are in points of predicted top-1: to the exact answer where the space is listed, else to the best that any search of this run found,
among them longer ones with ten times the population. Note10 tables, once-for-all's tutorial predictor, P = 100, one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from threadpoolctl import threadpool_limits

from ofasearch.latency.ofa_yaml import load_ofa_yaml
from ofasearch.latency.table import LatencyTable
from ofasearch.predictor import Predictor, load_predictor
from ofasearch.records import file_digest, parse_json, provenance, write_json
from ofasearch.search.evolution import EvolutionConfig, evolve
from ofasearch.search.problem import Budget, Generation, Problem
from ofasearch.search.refine import refine
from ofasearch.search.unguided import enumerate_exactly, is_small
from ofasearch.space.families import get_space

RESULTS = Path(__file__).parent / "results" / "amd-epyc-2c" / "generations.json"
SPACES = {"fixed kernels": "compofa-mbv3-w1.2", "elastic kernels": "compofa-mbv3-elastic-w1.2", "whole": "ofa-mbv3-w1.2"}
BUDGETS_MS = (15.0, 20.0, 25.0, 30.0)
STOPS = (0, 10, 25, 50, 100, 200, 300, 500)
SETTINGS = {"all children": EvolutionConfig(screen=1.0, refine=False), "screened": EvolutionConfig(refine=False)}
Rows = list[dict[str, Any]]
LONG = EvolutionConfig(population=1000, generations=1000)  # with the default refinement


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """The best network of one search after so many generations; `refined_top1` what a refinement makes of it."""

    space: str
    settings: str
    budget_ms: float
    seed: int
    generations: int
    top1: float
    refined_top1: float
    evaluations: int
    seconds: float


def make_problem(table: LatencyTable, predictor: Predictor, name: str, budget_ms: float) -> Problem:
    """The most accurate network of a space within the budget."""
    assert table.resolutions is not None
    space = get_space(name).with_resolutions(table.resolutions)
    ready = predictor.on(space)
    return Problem(space, (lambda codes: -ready(codes),), (Budget("latency", table.cost(space), budget_ms, lambda ms: f"{ms:.1f} ms"),))


def read(problem: Problem, settings: str, seed: int) -> Iterator[tuple[Generation, float]]:
    """The generations of one search at which it is read, and the seconds until then; reading stops the clock."""
    seconds, began = 0.0, time.perf_counter()
    for generation in evolve(problem, SETTINGS[settings], np.random.default_rng(seed)):
        seconds += time.perf_counter() - began
        if generation.number in STOPS:
            yield generation, seconds
        began = time.perf_counter()


def readings(problem: Problem, space: str, budget_ms: float, settings: str, seed: int) -> list[Reading]:
    """One search, read after each of STOPS."""
    found = []
    for generation, seconds in read(problem, settings, seed):
        _, refined, _ = refine(problem, generation.codes[0], float(generation.objective[0]))
        found.append(
            Reading(
                space=space,
                settings=settings,
                budget_ms=budget_ms,
                seed=seed,
                generations=generation.number,
                top1=-float(generation.objective[0]),
                refined_top1=-refined,
                evaluations=generation.evaluations,
                seconds=seconds,
            )
        )
    return found


def reference(problem: Problem, seeds: int) -> tuple[float, str]:
    """The exact answer of a listed space, else the best of long searches; and which of the two it is."""
    if is_small(problem):
        [last] = enumerate_exactly(problem, keep=1)
        return -float(last.objective[0]), "exact"
    ends = [list(evolve(problem, LONG, np.random.default_rng(1000 + seed)))[-1] for seed in range(seeds)]
    return -min(float(last.objective[0]) for last in ends), "best found"


def measure(table: LatencyTable, predictor: Predictor, spaces: list[str], seeds: int) -> Rows:
    """One row per space and budget: what it is compared with, and all readings."""
    rows: Rows = []
    for label in spaces:
        for budget_ms in BUDGETS_MS:
            problem = make_problem(table, predictor, SPACES[label], budget_ms)
            found = [r for settings in SETTINGS for seed in range(seeds) for r in readings(problem, label, budget_ms, settings, seed)]
            best, how = reference(problem, seeds)
            best = max([best, *(r.refined_top1 for r in found)])
            rows.append({"space": label, "budget_ms": budget_ms, "best": best, "how": how, "readings": [asdict(r) for r in found]})
            print(f"# {label}, {budget_ms:g} ms: {how} {100 * best:.3f} %", flush=True)
    return rows


def show(rows: Rows) -> str:
    """The table that people read: a line per space, settings and N; means and worst of seeds, budget by budget."""
    heads = [f"{b:g} ms: top-1, regret" for b in BUDGETS_MS]
    lines = [
        f"| space | settings | N | {' | '.join(heads)} | worst regret | refined, worst | networks | seconds |",
        "| --- " * (len(heads) + 7) + "|",
    ]
    for label in dict.fromkeys(row["space"] for row in rows):
        mine = [row for row in rows if row["space"] == label]
        lines += [line(label, settings, stop, mine) for settings in SETTINGS for stop in STOPS]
    return "\n".join(lines)


def line(label: str, settings: str, stop: int, rows: Rows) -> str:
    """One line of the table; regrets in points."""
    cells, plain, refined, networks, seconds = [], [], [], [], []
    for row in rows:
        best = row["best"]
        here = [r for r in row["readings"] if r["settings"] == settings and r["generations"] == stop]
        regrets = [100 * (best - r["top1"]) for r in here]
        cells.append(f"{100 * np.mean([r['top1'] for r in here]):.2f} %, {np.mean(regrets):.3f}")
        plain += regrets
        refined += [100 * (best - r["refined_top1"]) for r in here]
        networks += [r["evaluations"] for r in here]
        seconds += [r["seconds"] for r in here]
    ends = f"{max(plain):.3f} | {max(refined):.3f} | {np.mean(networks):,.0f} | {np.median(seconds):.2f}"
    return f"| {label} | {settings} | {stop} | {' | '.join(cells)} | {ends} |"


def main() -> None:
    """Search, print the table, write the record; spaces that are not asked for stay as a former record has them."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with note10/ and acc_predictor.pth")
    parser.add_argument("--spaces", nargs="+", choices=list(SPACES), default=list(SPACES))
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    table, predictor = load_ofa_yaml(options.data / "note10"), load_predictor(options.data / "acc_predictor.pth")
    with threadpool_limits(1):
        rows = measure(table, predictor, options.spaces, options.seeds)
    former = parse_json(options.out.read_text())["rows"] if options.out.is_file() else []
    rows = [row for row in former if row["space"] not in options.spaces] + rows
    rows.sort(key=lambda row: (list(SPACES).index(row["space"]), row["budget_ms"]))
    inputs = [options.data / "acc_predictor.pth", *sorted((options.data / "note10").glob("*.yaml"))]
    settings = {name: asdict(config) for name, config in SETTINGS.items()} | {"long": asdict(LONG)}
    record = provenance(threads=1, seeds=options.seeds, settings=settings, inputs={path.name: file_digest(path) for path in inputs})
    write_json(options.out, record | {"rows": rows})
    print(show(rows))


if __name__ == "__main__":
    main()
