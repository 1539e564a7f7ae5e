"""How fast networks are evaluated for REG-NAS, against the machine's forward passes alone.

The limit is what the same networks take to run forward on the same images (calibration and validation), which lie ready as
tensors: no extraction, no statistics, no preprocessing, no remembering. Both are timed in turn, in one run.

    python benchmarks/regnas/speed.py --data DIR
"""

from __future__ import annotations

import argparse
import os
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from ofasearch import zoo
from ofasearch.data import load_data
from ofasearch.evaluate.score import BATCH, batches, calibration_batches
from ofasearch.jobs.reward_aim import live_trials
from ofasearch.ranks import Ranks
from ofasearch.records import provenance, write_json
from ofasearch.supernet.elastic import channels_last
from ofasearch.supernet.supernet import Supernet

RESULTS = Path(__file__).parents[1] / "results" / "amd-epyc-2c" / "regnas"


@torch.no_grad()
def main() -> None:
    """Networks per minute of both, and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--networks", type=int, default=8)
    parser.add_argument("--supernet", default="cifar10-compofa")
    args = parser.parse_args()
    data, supernet = load_data(args.data), zoo.load_supernet(args.supernet)
    space, preprocessing = supernet.weights.space, supernet.weights.preprocessing
    model = Supernet.from_arrays(space, supernet.weights.arrays)
    channels_last(model)
    size = preprocessing.size
    inputs = [
        *calibration_batches(data, preprocessing, resolution=size),
        *batches(data["validation"], preprocessing, resolution=size, size=BATCH),
    ]
    codes = space.sample(args.networks, np.random.default_rng(0))
    forward, evaluating = 0.0, 0.0
    with tempfile.TemporaryDirectory() as cache:
        os.environ["OFASEARCH_CACHE"] = cache
        trials = live_trials(supernet, space, data, Ranks())
        for rows in np.array_split(codes, max(1, args.networks // 4)):  # in turn, because the machine's speed changes
            networks = [model.extract(row).eval() for row in rows]
            started = time.perf_counter()
            for network in networks:
                for x in inputs:
                    network(x)
            forward += time.perf_counter() - started
            started = time.perf_counter()
            for _ in trials.evaluate(rows):
                pass
            evaluating += time.perf_counter() - started
    found = {"supernet": args.supernet, "networks": args.networks, "images": sum(map(len, inputs)), "threads": torch.get_num_threads()}
    found |= {"networks_per_minute": 60 * args.networks / evaluating, "forward_networks_per_minute": 60 * args.networks / forward}
    found["share_of_the_limit"] = forward / evaluating
    print("\n".join(f"{key}: {value:.3f}" if isinstance(value, float) else f"{key}: {value}" for key, value in found.items()))
    write_json(RESULTS / "speed.json", provenance(**found))


if __name__ == "__main__":
    main()
