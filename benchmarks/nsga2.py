"""NSGA-II and SMS-EMOA with children made as networks are, beside pymoo's NSGA-II with its own operators, at equal evaluations.

    OMP_NUM_THREADS=1 python benchmarks/nsga2.py --data ../shared/data/ofa

All look for the front of predicted top-1 and latency, without a budget, with populations of 100, and are judged by the front of all
networks that they evaluated. pymoo gets one integer per gene; genes of skipped blocks are ignored. It runs with two sets of its operators:
those of its `NSGA2` class with rounding (SBX 0.9, eta 15; PM eta 20), and those of its guide to integers (SBX 1.0, eta 3; PM 1.0, eta 3).
Hypervolumes, in points x ms, reach to the top-1 of the cheapest network and the latency of the dearest. The smallest space is listed, so
that its exact front is known; there, searches get few evaluations. Note10 tables, once-for-all's tutorial predictor, one thread.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
from pymoo.algorithms.moo.nsga2 import NSGA2
from pymoo.core.problem import Problem as PymooProblem
from pymoo.operators.crossover.sbx import SBX
from pymoo.operators.mutation.pm import PM
from pymoo.operators.repair.rounding import RoundingRepair
from pymoo.operators.sampling.rnd import IntegerRandomSampling
from threadpoolctl import threadpool_limits

from ofasearch.latency.ofa_yaml import load_ofa_yaml
from ofasearch.latency.table import LatencyTable
from ofasearch.predictor import Predictor, load_predictor
from ofasearch.records import file_digest, provenance, write_json
from ofasearch.search.front import hypervolume, nondominated, regret
from ofasearch.search.problem import Problem
from ofasearch.search.searchers import SEARCHERS
from ofasearch.search.unguided import enumerate_exactly
from ofasearch.space.core import Values
from ofasearch.space.families import get_space

RESULTS = Path(__file__).parent / "results" / "amd-epyc-2c" / "nsga2.json"
LARGE, LISTED = {"whole": "ofa-mbv3-w1.2", "elastic kernels": "compofa-mbv3-elastic-w1.2"}, {"fixed kernels": "compofa-mbv3-w1.2"}
POPULATION, EVALUATIONS = 100, 25_000
LISTED_POPULATION, LISTED_EVALUATIONS = 20, 400  # of 1,215 networks
OWN = ("nsga2", "smsemoa", "random")
THEIRS: dict[str, Callable[[], dict[str, Any]]] = {
    "pymoo, class defaults": lambda: {
        "crossover": SBX(prob=0.9, eta=15, repair=RoundingRepair()),
        "mutation": PM(eta=20, repair=RoundingRepair()),
    },
    "pymoo, guide to integers": lambda: {
        "crossover": SBX(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
        "mutation": PM(prob=1.0, eta=3.0, vtype=float, repair=RoundingRepair()),
    },
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One search. The regret's fields are None where the exact front is not known."""

    who: str
    space: str
    seed: int
    evaluations: int
    front: int
    hypervolume: float
    seconds: float
    hypervolume_share: float | None = None
    worst_loss: float | None = None
    mean_loss: float | None = None
    uncovered: int | None = None


def make_problem(table: LatencyTable, predictor: Predictor, name: str) -> tuple[Problem, Values]:
    """The front of top-1 and latency of a space, and the corner that hypervolumes reach to."""
    assert table.resolutions is not None
    space = get_space(name).with_resolutions(table.resolutions)
    ready, cost = predictor.on(space), table.cost(space)
    bounds = cost.bounds()
    corner = np.array([-float(ready(bounds.lowest_codes[None])[0]), bounds.highest])
    return Problem(space, (lambda codes: -ready(codes), cost), ()), corner


def run_own(problem: Problem, who: str, population: int, evaluations: int, seed: int) -> tuple[Values, int]:
    """Front (k, 2) and number of evaluations of a searcher of this project, after the last generation that fits in."""
    searcher = SEARCHERS[who]
    config = searcher.config(population=population, generations=evaluations)
    search = searcher.search(problem, config, np.random.default_rng(seed), None)
    last = next(search)
    while last.evaluations + population <= evaluations:
        last = next(search)
    return last.F, last.evaluations


class Integers(PymooProblem):
    """The problem as pymoo's users state it: an integer per gene. It remembers all objectives, (n, 2) each time."""

    def __init__(self, problem: Problem):
        sizes = problem.space.sizes
        super().__init__(n_var=len(sizes), n_obj=2, xl=np.ones(len(sizes)), xu=sizes.astype(float), vtype=int)
        self._problem, self.found = problem, [np.zeros((0, 2))]

    def _evaluate(self, x: Any, out: dict[str, Any], *_: Any, **__: Any) -> None:
        out["F"] = self._problem.values(self._problem.space.canonical(np.asarray(x).astype(np.int64)))
        self.found.append(out["F"])


def run_theirs(problem: Problem, who: str, population: int, evaluations: int, seed: int) -> tuple[Values, int]:
    """Front (k, 2) of all that pymoo's NSGA-II evaluated, and how many that were."""
    integers = Integers(problem)
    algorithm = NSGA2(pop_size=population, sampling=IntegerRandomSampling(), eliminate_duplicates=True, **THEIRS[who]())
    algorithm.setup(integers, termination=("n_eval", evaluations), seed=seed)  # looked at between generations
    algorithm.run()
    F = np.concatenate(integers.found)
    return np.unique(F[nondominated(F)], axis=0), len(F)


def compare(problem: Problem, corner: Values, space: str, population: int, evaluations: int, seeds: int) -> list[Run]:
    """All contenders in turn, seed by seed; against the exact front where the space is listed."""
    exact = next(enumerate_exactly(problem)).F if space in LISTED else None
    scale = np.array([100.0, 1.0])  # points
    runs = []
    for seed in range(seeds):
        for who in (*OWN, *THEIRS):
            began = time.perf_counter()
            F, count = (run_own if who in OWN else run_theirs)(problem, who, population, evaluations, seed)
            seconds = time.perf_counter() - began
            apart = asdict(regret(F * scale, exact * scale, corner * scale)) if exact is not None else {}
            volume = hypervolume(F * scale, corner * scale)
            runs.append(Run(who=who, space=space, seed=seed, evaluations=count, front=len(F), hypervolume=volume, seconds=seconds, **apart))
            print(f"# {space}, seed {seed}, {who}: {volume:.2f} in {seconds:.2f} s", flush=True)
    return runs


def show(runs: list[Run]) -> str:
    """The table that people read: means of the seeds, seconds as medians."""
    lines = ["| space | search | evaluations | hypervolume (seeds) | to class defaults | front | seconds | of exact | mean loss | worst |"]
    lines += ["| --- " * 10 + "|"]
    for space, who in dict.fromkeys((run.space, run.who) for run in runs):
        mine = [run for run in runs if (run.space, run.who) == (space, who)]
        base = np.mean([run.hypervolume for run in runs if (run.space, run.who) == (space, next(iter(THEIRS)))])
        volumes = [run.hypervolume for run in mine]
        cells = [space, who, f"{mine[0].evaluations:,}", f"{np.mean(volumes):.2f} ({', '.join(f'{v:.2f}' for v in volumes)})"]
        cells += [f"{np.mean(volumes) / base:.4f}", f"{np.mean([run.front for run in mine]):.0f}"]
        cells += [f"{np.median([run.seconds for run in mine]):.2f}"]
        cells += [mean_of([run.hypervolume_share for run in mine]), mean_of([run.mean_loss for run in mine])]
        cells += [mean_of([run.worst_loss for run in mine])]
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


def mean_of(values: list[float | None]) -> str:
    """Their mean; nothing where there is none."""
    known = [value for value in values if value is not None]
    return f"{np.mean(known):.4f}" if known else ""


def main() -> None:
    """Run all, print the table, write the record."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--data", type=Path, required=True, help="folder with note10/ and acc_predictor.pth")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    table, predictor = load_ofa_yaml(options.data / "note10"), load_predictor(options.data / "acc_predictor.pth")
    runs: list[Run] = []
    with threadpool_limits(1):
        compare(*make_problem(table, predictor, "ofa-mbv3-w1.2"), "whole", 20, 100, 1)  # what is loaded at first use
        for spaces, population, evaluations in ((LARGE, POPULATION, EVALUATIONS), (LISTED, LISTED_POPULATION, LISTED_EVALUATIONS)):
            for label, name in spaces.items():
                runs += compare(*make_problem(table, predictor, name), label, population, evaluations, options.seeds)
    inputs = [options.data / "acc_predictor.pth", *sorted((options.data / "note10").glob("*.yaml"))]
    versions = {name: metadata.version(name) for name in ("pymoo", "moocore")}
    record = provenance(threads=1, seeds=options.seeds, peers=versions, inputs={path.name: file_digest(path) for path in inputs})
    write_json(options.out, record | {"runs": [asdict(run) for run in runs]})
    print(show(runs))


if __name__ == "__main__":
    main()
