"""Our evolution beside the once-for-all tutorial's finder: same tables, same predictor, same settings, one thread, one run.

The peer is the published `ofa` package, unchanged, in a folder of its own:

    pip install --no-deps --target ~/ofa-peer ofa==0.1.0.post202307202001
    OMP_NUM_THREADS=1 python benchmarks/search_vs_ofa.py --peer ~/ofa-peer

From outside it gets: stand-ins for packages that it imports and a search never calls, the local files in place of its
downloads, a YAML loader (it calls `yaml.load` without one, which PyYAML 6 refuses), and no progress bar.

Seconds run from the first random network to the answer, prediction and pricing included, loading of files excluded;
ours include turning the table into a cost of the space. Both answers are scored by the same predictor and table.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import io
import os
import platform
import random
import re
import statistics
import sys
import time
import types
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from threadpoolctl import threadpool_info, threadpool_limits

from ofasearch.latency.ofa_yaml import load_ofa_yaml
from ofasearch.latency.table import LatencyTable
from ofasearch.predictor import Predictor, load_predictor
from ofasearch.records import file_digest, provenance, write_json
from ofasearch.search.evolution import EvolutionConfig, evolve
from ofasearch.search.problem import Budget, Problem, Search
from ofasearch.search.unguided import enumerate_exactly
from ofasearch.space.core import Codes, Settings, Space
from ofasearch.space.families import get_space

REPOSITORY = Path(__file__).resolve().parents[1]
POPULATION = 100
HARDER = (2000, 150)  # population, generations
REPEATS = 3  # of ours: a search of a third of a second is at the mercy of the clock's mood, one of ten seconds is not
STAND_INS = (
    "torchvision",
    "torchvision.transforms",
    "torchvision.transforms.functional",
    "torchvision.datasets",
    "gdown",
    "thop",
    "tqdm",
    "horovod",
    "horovod.torch",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One search and its answer. `evaluations` counts predictions, `best_reported` what the search itself claims."""

    who: str
    budget_ms: float
    seed: int
    top1: float
    latency_ms: float
    seconds: float
    evaluations: int
    best_reported: float
    arch: str


# -- ours ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Ours:
    """The published table and predictor as this project reads them."""

    table: LatencyTable
    predictor: Predictor

    def space(self, name: str) -> Space:
        """The published space at the resolutions of the table."""
        assert self.table.resolutions is not None
        return get_space(name).with_resolutions(self.table.resolutions)

    def problem(self, name: str, budget_ms: float) -> Problem:
        """The most accurate network of a space within the budget."""
        space = self.space(name)
        budget = Budget("latency", self.table.cost(space), budget_ms, lambda ms: f"{ms:.1f} ms")
        predicted = self.predictor.on(space)
        return Problem(space, (lambda codes: -predicted(codes),), (budget,))

    def run(self, who: str, space_name: str, budget_ms: float, seed: int, search: Callable[[Problem], Search]) -> Run:
        """Time one search from the making of its problem to its last generation."""
        start = time.perf_counter()
        *_, last = search(self.problem(space_name, budget_ms))
        seconds = time.perf_counter() - start
        return self.scored(who, space_name, last.codes[0], budget_ms, seed, seconds, last.evaluations, -float(last.objective[0]))

    def scored(
        self, who: str, space_name: str, codes: Codes, budget_ms: float, seed: int, seconds: float, evaluations: int, reported: float
    ) -> Run:
        """The record of an answer, scored here whoever found it."""
        space = self.space(space_name)
        return Run(
            who=who,
            budget_ms=budget_ms,
            seed=seed,
            top1=float(self.predictor(space.settings(codes[None]))[0]),
            latency_ms=self.table.latency_ms(space.blueprint(codes)),
            seconds=seconds,
            evaluations=evaluations,
            best_reported=reported,
            arch=str(space.arch(codes)),
        )


def run_ours(ours: Ours, budget_ms: float, seed: int, generations: int) -> Run:
    """Evolution with the defaults of this project."""
    config = EvolutionConfig(population=POPULATION, generations=generations)
    return ours.run("ofasearch", "ofa-mbv3-w1.2", budget_ms, seed, lambda problem: evolve(problem, config, np.random.default_rng(seed)))


def run_harder(ours: Ours, budget_ms: float, seed: int) -> Run:
    """A larger population for fewer generations: what one would do with a fifth of the peer's time."""
    config = EvolutionConfig(population=HARDER[0], generations=HARDER[1])
    search = lambda problem: evolve(problem, config, np.random.default_rng(seed))  # noqa: E731
    return ours.run("ofasearch-harder", "ofa-mbv3-w1.2", budget_ms, seed, search)


def run_until(ours: Ours, budget_ms: float, seed: int, generations: int, top1: float) -> Run:
    """Evolution with the defaults until it has a network at least as good; the refinement counts, where it comes to that."""
    config = EvolutionConfig(population=POPULATION, generations=generations)

    def search(problem: Problem) -> Search:
        for generation in evolve(problem, config, np.random.default_rng(seed)):
            yield generation
            if -generation.objective[0] >= top1:
                return

    return ours.run("ofasearch-until", "ofa-mbv3-w1.2", budget_ms, seed, search)


def run_elastic(ours: Ours, budget_ms: float, seed: int) -> Run:
    """CompOFA with elastic kernels, 2.2e10 networks, by the 300 generations that its paper takes."""
    config = EvolutionConfig(population=POPULATION, generations=300)
    search = lambda problem: evolve(problem, config, np.random.default_rng(seed))  # noqa: E731
    return ours.run("compofa-elastic", "compofa-mbv3-elastic-w1.2", budget_ms, seed, search)


def run_exact(ours: Ours, budget_ms: float, repeat: int) -> Run:
    """All 243 networks of fixed-kernel CompOFA at all resolutions of the table."""
    return ours.run("compofa-exact", "compofa-mbv3-w1.2", budget_ms, repeat, enumerate_exactly)


# -- the peer --------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Peer:
    """The tutorial's parts, as its notebook makes them."""

    finder: Callable[..., Any]
    latency: Any
    accuracy: Any
    version: str


class StandIn(types.ModuleType):
    """A module of empty classes, enough for the imports of code that never runs."""

    def __getattr__(self, name: str) -> type:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


def put_stand_ins() -> list[str]:
    """Make the peer's missing imports resolvable; the names that needed it."""
    missing = [name for name in STAND_INS if importlib.util.find_spec(name.partition(".")[0]) is None]
    for name in missing:
        sys.modules[name] = StandIn(name)
    for name in missing:
        parent, _, child = name.rpartition(".")
        if parent:
            setattr(sys.modules[parent], child, sys.modules[name])
    return missing


def load_peer(folder: Path, data: Path) -> tuple[Peer, list[str]]:
    """Import the peer from its folder and let it load the local files; also the names of the stand-ins."""
    found = {d.metadata["Name"]: d.version for d in metadata.distributions(path=[str(folder)])}
    if "ofa" not in found:
        raise SystemExit(f"--peer must be a folder with the `ofa` package, but {folder} is not; see the head of {Path(__file__).name}")
    sys.path.append(str(folder))
    stand_ins = put_stand_ins()
    accuracy, latency, finder = (
        importlib.import_module(f"ofa.tutorial.{name}") for name in ("accuracy_predictor", "latency_table", "evolution_finder")
    )

    def local_file(url: str, *_: Any, **__: Any) -> str:
        name = url.rsplit("/", 1)[-1]
        return str(data / "note10" / name if name.endswith(".yaml") else data / name)

    for module in (accuracy, latency):
        vars(module)["download_url"] = local_file
    vars(latency)["yaml"] = types.SimpleNamespace(load=yaml.safe_load)
    vars(finder)["tqdm"] = lambda steps, **_: steps
    with contextlib.redirect_stdout(io.StringIO()):
        peer = Peer(finder.EvolutionFinder, latency.LatencyTable(device="note10"), accuracy.AccuracyPredictor(device="cpu"), found["ofa"])
    return peer, stand_ins


def settings_of(samples: Sequence[Mapping[str, Any]]) -> Settings:
    """The peer's dicts as published settings."""
    ks, e, d = (np.array([sample[name] for sample in samples]) for name in ("ks", "e", "d"))
    return Settings(ks=ks, e=e, d=d, r=np.array([sample["r"][0] for sample in samples]))


def run_peer(peer: Peer, ours: Ours, budget_ms: float, seed: int, generations: int) -> Run:
    """The tutorial's finder with the settings of its notebook."""
    random.seed(seed)
    np.random.seed(seed)  # noqa: NPY002 - the peer draws from the global generators
    start = time.perf_counter()
    finder = peer.finder(
        constraint_type="note10",
        efficiency_constraint=budget_ms,
        efficiency_predictor=peer.latency,
        accuracy_predictor=peer.accuracy,
        mutate_prob=0.1,
        population_size=POPULATION,
        max_time_budget=generations,
        parent_ratio=0.25,
        mutation_ratio=0.5,
    )
    _, (reported, sample, _) = finder.run_evolution_search()
    seconds = time.perf_counter() - start
    codes = ours.space("ofa-mbv3-w1.2").from_settings(settings_of([sample]))[0]
    return ours.scored("ofa", "ofa-mbv3-w1.2", codes, budget_ms, seed, seconds, POPULATION * (1 + generations), reported)


def agreement(peer: Peer, ours: Ours, n: int = 300) -> dict[str, float]:
    """How far the two readings of the same files differ on n random networks.

    Stops the benchmark when they do: a comparison of searches needs one question.
    """
    space = ours.space("ofa-mbv3-w1.2")
    settings = space.settings(space.sample(n, np.random.default_rng(0)))
    columns = zip(settings.ks.tolist(), settings.e.tolist(), settings.d.tolist(), settings.r.tolist(), strict=True)
    samples = [{"ks": ks, "e": e, "d": d, "r": [r]} for ks, e, d, r in columns]
    theirs_ms = np.array([peer.latency.predict_efficiency(sample) for sample in samples])
    theirs_top1 = peer.accuracy.predict_accuracy(samples).numpy()[:, 0]
    codes = space.from_settings(settings)
    found = {
        "networks": n,
        "largest_latency_difference_ms": float(np.abs(ours.table.cost(space)(codes) - theirs_ms).max()),
        "largest_top1_difference": float(np.abs(ours.predictor(settings) - theirs_top1).max()),
    }
    if found["largest_latency_difference_ms"] > 1e-6 or found["largest_top1_difference"] > 1e-5:
        raise SystemExit(f"both sides must price and predict alike, but they differ: {found}")
    return found


# -- the run and its record ------------------------------------------------------------------------------------


def machine() -> str:
    """A folder name for this machine: CPU model and number of cores, e.g. amd-epyc-2c."""
    info = Path("/proc/cpuinfo")
    match = re.search(r"model name\s*:\s*(.+)", info.read_text()) if info.is_file() else None
    model = match[1] if match else platform.processor() or platform.machine()
    model = re.sub(r"\((r|tm)\)|\b(cpu|processor)\b|@.*", " ", model.lower())
    return re.sub(r"[^a-z0-9]+", "-", model).strip("-") + f"-{os.cpu_count()}c"


def search_all(peer: Peer, ours: Ours, options: argparse.Namespace) -> list[Run]:
    """Peer and ours in turn, budget by budget and seed by seed, after one short search each that is not counted."""
    run_peer(peer, ours, max(options.budgets), 0, 1)
    run_ours(ours, max(options.budgets), 0, 20)
    runs = list[Run]()
    for budget_ms in options.budgets:
        for seed in range(options.seeds):
            peers = run_peer(peer, ours, budget_ms, seed, options.generations)
            runs += [
                peers,
                *(run_ours(ours, budget_ms, seed, options.generations) for _ in range(REPEATS)),
                *(run_until(ours, budget_ms, seed, options.generations, peers.top1) for _ in range(REPEATS)),
                run_harder(ours, budget_ms, seed),
                run_elastic(ours, budget_ms, seed),
                run_exact(ours, budget_ms, seed),
            ]
            print(
                f"# {budget_ms:g} ms, seed {seed}: "
                + ", ".join(f"{r.who} {100 * r.top1:.2f} % {r.seconds:.2f} s" for r in runs[-4 - 2 * REPEATS :]),
                flush=True,
            )
    return runs


WHO = {
    "ofa": "peer",
    "ofasearch": "ours",
    "ofasearch-until": "until",
    "ofasearch-harder": "harder",
    "compofa-elastic": "elastic",
    "compofa-exact": "exact",
}


def summarise(runs: Sequence[Run], budgets: Sequence[float]) -> list[dict[str, float]]:
    """Mean accuracies and median seconds per budget; how often the peer's own answer was reached, and after which share of its time."""
    rows = []
    for budget_ms in budgets:
        row: dict[str, float] = {"budget_ms": budget_ms}
        for who, name in WHO.items():
            mine = [run for run in runs if run.who == who and run.budget_ms == budget_ms]
            row[f"{name}_top1"] = statistics.mean(run.top1 for run in mine)
            row[f"{name}_s"] = statistics.median(run.seconds for run in mine)
        theirs = {run.seed: run for run in runs if run.who == "ofa" and run.budget_ms == budget_ms}
        until = [run for run in runs if run.who == "ofasearch-until" and run.budget_ms == budget_ms]
        row["reached"] = sum(run.top1 >= theirs[run.seed].top1 for run in until) / len(until)
        row["until_ratio"] = statistics.median(theirs[run.seed].seconds / run.seconds for run in until)
        rows.append(row | {"ratio": row["peer_s"] / row["ours_s"], "harder_ratio": row["peer_s"] / row["harder_s"]})
    return rows


def show(rows: Sequence[Mapping[str, float]]) -> str:
    """The tables that people read; accuracies in percent."""
    heads = (
        "budget",
        "peer: top-1",
        "ours",
        "peer: s",
        "ours: s",
        "times as fast",
        "peer's answer reached in 1/",
        "P=1000, N=100",
        "its s",
    )
    lines = [f"| {' | '.join(heads)} |", "| --- " * len(heads) + "|"]
    for r in rows:
        cells = [f"{r['budget_ms']:g} ms", f"{100 * r['peer_top1']:.2f} %", f"{100 * r['ours_top1']:.2f} %"]
        cells += [f"{r['peer_s']:.2f}", f"{r['ours_s']:.3f}", f"{r['ratio']:.0f}"]
        cells += [
            f"{r['until_ratio']:.0f} ({100 * r['reached']:.0f} % of seeds)",
            f"{100 * r['harder_top1']:.2f} %",
            f"{r['harder_s']:.2f}",
        ]
        lines.append(f"| {' | '.join(cells)} |")
    for name, what in (
        ("exact", "CompOFA fixed kernel, 243 networks x 5 resolutions, exact"),
        ("elastic", "CompOFA elastic kernel, 300 generations"),
    ):
        seconds = statistics.median(r[f"{name}_s"] for r in rows)
        lines.append(f"{what}: {seconds:.3f} s; " + ", ".join(f"{100 * r[f'{name}_top1']:.2f} % at {r['budget_ms']:g} ms" for r in rows))
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The options; fewer seeds, budgets and generations make a quick trial."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    shared = Path(os.environ.get("OFASEARCH_DATA", REPOSITORY.parent / "shared" / "data"))
    parser.add_argument("--peer", type=Path, default=os.environ.get("OFA_PEER"), help="folder of the `ofa` package (default: OFA_PEER)")
    parser.add_argument("--data", type=Path, default=shared / "ofa", help="folder with note10/ and acc_predictor.pth")
    parser.add_argument("--out", type=Path, default=REPOSITORY / "benchmarks" / "results", help="results go to OUT/<machine>/")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds, from 0")
    parser.add_argument("--budgets", type=float, nargs="+", default=[15.0, 20.0, 25.0, 30.0], help="ms, 15 to 60")
    parser.add_argument("--generations", type=int, default=500)
    options = parser.parse_args()
    if options.peer is None:
        parser.error("--peer or OFA_PEER must name the folder of the `ofa` package")
    if options.seeds < 1 or options.generations < 1 or not all(15 <= b <= 60 for b in options.budgets):
        parser.error("seeds and generations must be at least 1, budgets 15 to 60 ms (outside, the peer asks on the terminal)")
    return options


def main() -> None:
    """Run both sides, write the raw record, print the table."""
    options = parse()
    peer, stand_ins = load_peer(options.peer.expanduser(), options.data)
    ours = Ours(load_ofa_yaml(options.data / "note10"), load_predictor(options.data / "acc_predictor.pth"))
    torch.set_num_threads(1)
    with threadpool_limits(1):
        threads = {"torch": torch.get_num_threads()} | {
            pool["filepath"].rsplit("/", 1)[-1]: pool["num_threads"] for pool in threadpool_info()
        }
        load_before = os.getloadavg()
        same = agreement(peer, ours)
        runs = search_all(peer, ours, options)
    rows = summarise(runs, options.budgets)
    inputs = [options.data / "acc_predictor.pth", *sorted((options.data / "note10").glob("*.yaml"))]
    record = provenance(
        benchmark="search_vs_ofa",
        peer={"package": "ofa", "version": peer.version, "finder": "ofa.tutorial.EvolutionFinder", "stand_ins": stand_ins},
        pyyaml=metadata.version("pyyaml"),
        cpu=machine(),
        threads=threads,
        blas=[{"library": pool["internal_api"], "kernels": pool.get("architecture")} for pool in threadpool_info()],
        load_average={"before": load_before, "after": os.getloadavg()},
        inputs={path.name: file_digest(path) for path in inputs},
        settings={"population": POPULATION, "generations": options.generations, "seeds": options.seeds, "budgets_ms": options.budgets},
        agreement=same,
    )
    path = options.out / machine() / "search_vs_ofa.json"
    write_json(path, record | {"summary": rows, "runs": [asdict(run) for run in runs]})
    print(show(rows))
    print(f"threads: {threads}\nraw results: {path}")


if __name__ == "__main__":
    main()
