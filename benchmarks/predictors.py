"""How well predictors rank networks that they never saw: activations, ensembles, simpler models; on published measurements.

    python benchmarks/predictors.py --data DIR        # DIR holds accuracy/*.csv and *.jsonl (DyNAS-T, MOOFA)

Two questions. `later`: fitted on the first 70 % in time of four published searches, judged on the networks that the last 30 %
met first. `random`: fitted on 2,000 random networks at three resolutions, judged on 610 others. Nothing here was used to
choose anything but the activation, the steps and the rate of the fit; those were chosen on `later`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch.predictor import FitConfig, Pairs, encoder_of, fit, read_pairs
from ofasearch.predictor.assess import Assessment, assess
from ofasearch.predictor.check import baselines, compare, coverage
from ofasearch.records import file_digest, provenance, write_json
from ofasearch.space.families import get_space

SPACE = "ofa-mbv3-w1.0"
SHARE = 0.7  # of each search in time
RESULTS = Path(__file__).parent / "results" / "amd-epyc-2c" / "predictors.json"


def cut_in_time(files: list[Path]) -> tuple[Pairs, Pairs]:
    """The first part of each file in its order, and the networks first met in the rest."""
    pairs = read_pairs(files, get_space(SPACE))
    counts = np.bincount(pairs.group)
    place = np.concatenate([np.arange(count) / count for count in counts])
    early = pairs.take(np.flatnonzero(place < SHARE))
    rows = pairs.settings.rows()
    known = {row.tobytes() for row in rows[place < SHARE]}
    late = pairs.take(np.array([i for i in np.flatnonzero(place >= SHARE) if rows[i].tobytes() not in known]))
    return as_one(early), as_one(late)


def as_one(pairs: Pairs) -> Pairs:
    """Every network once."""
    return replace(pairs, group=np.zeros_like(pairs.group), sources=pairs.sources[:1]).merged()


def rows(question: str, train: Pairs, judged: Pairs) -> Iterator[dict[str, Any]]:
    """One record per model."""
    encoder = encoder_of(get_space(SPACE)).with_resolutions(tuple(sorted(set(train.settings.r.tolist()))))
    x, held = encoder.encode(train.settings), encoder.encode(judged.settings)
    for name, error in baselines(x, train.top1, held, judged.top1).items():
        yield {"question": question, "model": name, **asdict(error)}
    for activation in ("relu", "silu"):
        start = time.perf_counter()
        members = fit(encoder, train, SPACE, FitConfig(activation=activation)).of_features(held)
        seconds = time.perf_counter() - start
        singles = [compare(one, judged.top1) for one in members]
        mean = {key: float(np.mean([asdict(one)[key] for one in singles])) for key in asdict(singles[0])}
        yield {"question": question, "model": f"one MLP, {activation} (mean of 5)", **mean}
        yield {
            "question": question,
            "model": f"five MLPs, {activation}",
            **asdict(compare(members.mean(axis=0), judged.top1)),
            "seconds": seconds,
        }


def bars(question: str, train: Pairs, judged: Pairs) -> dict[str, Any]:
    """Coverage of the 80 % interval and share outside the cloud, on networks that neither fit nor calibration saw."""
    encoder = encoder_of(get_space(SPACE)).with_resolutions(tuple(sorted(set(train.settings.r.tolist()))))
    start = time.perf_counter()
    *_, found = assess(encoder, train, SPACE, FitConfig())
    assert isinstance(found, Assessment)
    return {
        "question": question,
        "stated_coverage_80": found.coverage,
        "coverage_80": coverage(found.predictor, judged),
        "outside_share": float(found.predictor.outside(judged.settings).mean()),
        "seconds": time.perf_counter() - start,
    }


def main() -> None:
    """Run both questions and write the record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("-o", "--out", type=Path, default=RESULTS)
    options = parser.parse_args()
    folder = options.data / "accuracy"
    csv, random = sorted(folder.glob("*.csv")), folder / "ofa_mbv3_imagenet_r128-192.jsonl"
    pairs = as_one(read_pairs([random], get_space(SPACE)))
    pairs = pairs.take(np.random.default_rng(0).permutation(len(pairs)))
    questions = {"later": cut_in_time(csv), "random": (pairs.take(np.arange(2000)), pairs.take(np.arange(2000, len(pairs))))}
    found, intervals = [], []
    for question, (train, judged) in questions.items():
        for row in rows(question, train, judged):
            found.append(row)
            print(
                f"{question:8} {row['model']:28} tau {row['kendall_tau']:.4f}  MAE {row['mae_points']:.4f}  RMSE {row['rmse_points']:.4f}",
                flush=True,
            )
        intervals.append(bars(question, train, judged))
        print(intervals[-1], flush=True)
    files = {path.name: file_digest(path) for path in (*csv, random)}
    write_json(options.out, provenance(files=files, rows=found, intervals=intervals))


if __name__ == "__main__":
    main()
