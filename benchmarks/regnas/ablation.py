"""REG-NAS's ablation: accuracy alone (R0), the reward with negative flips (R2), both with and without the containment of the reference.

`shipped`: on `cifar10-compofa`, by the predictions that come with it, every reward's exact optimum; and how close a search comes that
evaluates at most a third of the networks, over `--seeds` seeds. `live`: on `cifar10-ofa` (2e19 networks) or another `--supernet`,
networks really run on `--data`, three seeds. Networks are chosen by the validation split; test only reports. Every run is one of
`ofasearch regnas`, so that an interrupted benchmark goes on where it stopped.

    python benchmarks/regnas/ablation.py shipped --work runs/ablation
    python benchmarks/regnas/ablation.py live --work runs/ablation --data DIR
    python benchmarks/regnas/ablation.py live --work runs/ablation --data DIR --supernet runs/resnet --pair 2.5e6 5e6
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import ofasearch
from ofasearch.cli.units import PAPER
from ofasearch.errors import InfeasibleError
from ofasearch.records import provenance, read_json, write_json

RESULTS = Path(__file__).parents[1] / "results" / "amd-epyc-2c" / "regnas"
ROWS: dict[str, dict[str, Any]] = {
    "R0": {"reward": "r0", "cas": False},
    "R0 + CAS": {"reward": "r0", "cas": True},
    "R2": {"reward": "r2", "cas": False},
    "R2 + CAS": {"reward": "r2", "cas": True},
    "R2/2 + CAS": {"reward": "r2", "cas": True, "lambda2": 0.5},  # not in the paper: see docs/regnas.md
}
SHIPPED_PAIRS = ((4.55e6, 7.2e6), (4.55e6, 9.1e6), (5e6, 10e6), (6e6, 9e6), (6e6, 12e6), (7.2e6, 14.4e6))  # MACs: reference, target
LIVE = "cifar10-ofa"
LIVE_PAIRS = ((4.55e6, 9.1e6), (6e6, 12e6))  # the first: a quarter and half of the largest of cifar10-ofa
FAMILY = (4.55e6, 6e6, 9e6, 12e6)  # MACs, small to large
KEPT = (
    "arch_id", "macs", "algorithm", "evaluations", "search_seconds", "contains_reference", "effective_filters_equal", "reward_value",
    "predicted_top1", "networks_evaluated", "evaluating_seconds", "networks_per_minute",
)  # fmt: skip


def run(out: Path, **asked: Any) -> dict[str, Any]:
    """The answer of one `ofasearch regnas`, of its folder where it was finished before."""
    done = out / "result.json"
    if done.exists():
        return dict(read_json(done))
    started = time.perf_counter()
    try:
        record = ofasearch.regnas(out=out, **asked)
    except InfeasibleError as error:
        return {"infeasible": str(error)}
    print(f"{out}: {time.perf_counter() - started:.0f} s", flush=True)
    return record


def row(record: dict[str, Any]) -> dict[str, Any]:
    """What is kept of an answer."""
    if "infeasible" in record:
        return record
    flips = {
        split: {key: record[name][key] for key in ("top1", "top1_ref", "nfr", "pfr", "n", "relative_nfr")} for split, name in SPLITS.items()
    }
    return {key: record[key] for key in KEPT if key in record} | flips


SPLITS = {"validation": "validation", "test": "measured"}


def folder(name: str) -> str:
    """A row's name as that of a folder."""
    return name.replace("/", " by ")


def reference(work: Path, limit: float, **asked: Any) -> tuple[Path, dict[str, Any]]:
    """The network that accuracy alone finds below a budget, as in the paper: its subnet.pt and what it is."""
    out = work / f"reference-{limit / 1e6:g}M"
    record = run(out, family=(limit,), reward="r0", **asked)
    (network,) = record["family"]
    return out / "A1" / "subnet.pt", network


def shipped(args: argparse.Namespace) -> dict[str, Any]:
    """Exact optima of all pairs, and searches that evaluate at most a third."""
    pairs = []
    for small, large in SHIPPED_PAIRS:
        work = args.work / "shipped" / f"{small / 1e6:g}-{large / 1e6:g}"
        ref, network = reference(work, small)
        rows = {name: row(run(work / folder(name), ref=ref, macs=large, **asked)) for name, asked in ROWS.items()}
        searched = {name: list(_searched(work, name, ref, large, args.seeds)) for name in ROWS}
        swept = run(work / "sweep", ref=ref, macs=large, sweep=PAPER)["sweep"]
        pairs.append({"reference": network, "budget_macs": large, "rows": rows, "searched": searched, "sweep": swept})
    families = [_family(args.work / "shipped", lambda2) for lambda2 in (1.0, 0.5)]
    return {"supernet": "cifar10-compofa", "source": "shipped predictions", "pairs": pairs, "families": families}


def _family(work: Path, lambda2: float, family: Sequence[float] = FAMILY, **asked: Any) -> dict[str, Any]:
    record = run(work / f"family-{lambda2:g}", family=tuple(family), lambda2=lambda2, **asked)
    return {key: record[key] for key in ("lambda1", "lambda2", "family", "nfr_matrix", "plain")}


def _searched(work: Path, name: str, ref: Path, large: float, seeds: int) -> Iterator[dict[str, Any]]:
    for seed in range(seeds):
        yield row(run(work / f"{folder(name)}-seed{seed}", ref=ref, macs=large, algorithm="surrogate", seed=seed, **ROWS[name]))


def live(args: argparse.Namespace) -> dict[str, Any]:
    """The four rows of every pair, three seeds, networks run on the validation split."""
    shared = {"data": args.data, "supernet": args.supernet, "images": args.images, "calibration_images": args.calibration_images}
    shared |= {"generations": args.generations}
    pairs = []
    name_of = Path(args.supernet).name
    for small, large in args.pair or LIVE_PAIRS[: args.pairs]:
        work = args.work / ("live" if name_of == LIVE else f"live-{name_of}") / f"{small / 1e6:g}-{large / 1e6:g}"
        ref, network = reference(work, small, **shared)
        rows: dict[str, list[dict[str, Any]]] = {name: [] for name in ROWS}
        for seed in range(args.seeds):
            for name, asked in ROWS.items():
                rows[name].append(row(run(work / f"{folder(name)}-seed{seed}", ref=ref, macs=large, seed=seed, **asked, **shared)))
        pairs.append({"reference": network, "budget_macs": large, "rows": rows})
    asked = {key: value for key, value in shared.items() if key not in ("data", "supernet")}
    found = {"supernet": name_of, "source": "live", "asked": asked, "pairs": pairs}
    if args.family:
        found["family"] = _family(args.work / f"live-{name_of}", 1.0, args.family, **shared)
    return found


def told(name: str, rows: list[dict[str, Any]], best: float | None) -> str:
    """A line of the table: means over seeds of the test figures."""
    found = [r for r in rows if "infeasible" not in r]
    if not found:
        return f"{name:10s}  no network keeps the budget"
    nfr, top1 = (float(np.mean([r["test"][key] for r in found])) for key in ("nfr", "top1"))
    change = f"{100 * (best - nfr) / nfr:+7.1f} %" if best is not None and nfr else ""
    macs, evaluations = (float(np.mean([r[key] for r in found])) for key in ("macs", "evaluations"))
    return f"{name:10s}  {macs / 1e6:6.2f} M  {100 * top1:6.2f} %  {100 * nfr:5.2f} %  {change}  {evaluations:5.0f} networks"


def main() -> None:
    """Run one part and print its table: C is the change of NFR from each row to R2 + CAS (supplement, section C)."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=["shipped", "live"])
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--data")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--pairs", type=int, default=len(LIVE_PAIRS))
    parser.add_argument("--supernet", default=LIVE)
    parser.add_argument("--pair", nargs=2, type=float, action="append", metavar=("REFERENCE", "TARGET"), help="MACs; may be repeated")
    parser.add_argument("--family", nargs="+", type=float, help="MACs of a family that grows, small to large")
    parser.add_argument("--images", type=int, default=2000)
    parser.add_argument("--calibration-images", type=int, default=1000)
    parser.add_argument("--generations", type=int, default=6)
    args = parser.parse_args()
    found = shipped(args) if args.part == "shipped" else live(args)
    for pair in found["pairs"]:
        ref = pair["reference"]
        print(f"\n{ref['arch_id']} ({ref['macs'] / 1e6:.2f} M, test {100 * ref['test']['top1']:.2f} %) -> {pair['budget_macs'] / 1e6:g} M")
        rows = {name: [found] if isinstance(found, dict) else found for name, found in pair["rows"].items()}
        proposed = [r["test"]["nfr"] for r in rows["R2 + CAS"] if "infeasible" not in r]
        for name, group in rows.items():
            print(told(name, group, float(np.mean(proposed)) if proposed else None))
    other = args.part == "live" and found["supernet"] != LIVE
    write_json(RESULTS / (f"live-{found['supernet']}.json" if other else f"{args.part}.json"), provenance(**found))


if __name__ == "__main__":
    main()
