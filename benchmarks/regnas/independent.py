"""Networks trained apart from each other: a small one, a larger one, and the larger one by focal distillation from the small one.

The architectures are those that a search by accuracy alone finds in `cifar10-compofa` below two budgets, so that what is
compared with the supernet's subnets differs in nothing but how it was trained. Per seed three runs of `--epochs`, each resumable;
what is kept of a network are its predictions of validation and test split, calibrated as every subnet is.

    python benchmarks/regnas/independent.py --data DIR --work runs/independent --seed 0
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch import train_supernet, zoo
from ofasearch.data import load_data
from ofasearch.evaluate.score import predictions, top1
from ofasearch.jobs.deliver import calibrated_subnet, save_subnet, to_network
from ofasearch.records import provenance, write_json
from ofasearch.space.core import Codes, Space
from ofasearch.space.costs import macs_of
from ofasearch.supernet.weights import load_weights

RESULTS = Path(__file__).parents[1] / "results" / "amd-epyc-2c" / "regnas"
SUPERNET, SMALL, LARGE = "cifar10-compofa", 4.55e6, 7.2e6  # MACs: about a third and half of the largest
RECIPE: dict[str, Any] = {"batch_size": 128, "lr": 0.1, "weight_decay": 3e-4}
# Positive-congruent training, Eq. 7 to 9, with weight 1 on the squared distance averaged over the 10 classes: that of the sum
# diverges at this rate within 50 steps.
FOCAL = {"focal": 0.1, "alpha": 1.0, "beta": 5.0}


def pair() -> tuple[Space, Codes, Codes]:
    """The space, and the most accurate member by validation below each budget, (g,)."""
    members = zoo.load_supernet(SUPERNET).members
    assert members is not None
    macs, accuracy = macs_of(members.space)(members.codes), members.top1("validation")
    small, large = (members.codes[np.where(macs <= limit, accuracy, -1).argmax()] for limit in (SMALL, LARGE))
    return members.space, small, large


def network(kind: str, codes: Codes, space: Space, args: argparse.Namespace, teacher: Path | None = None) -> Path:
    """Train one network, or go on with it; its `subnet.pt`."""
    work = args.work / f"{kind}-{args.seed}"
    subnet_file, started = work / "subnet.pt", time.perf_counter()
    if subnet_file.exists():
        return subnet_file
    options: dict[str, Any] = {"codes": tuple(map(int, codes))} | (FOCAL if teacher is not None else {})
    record = train_supernet(
        space=space.name, data=args.data, out=work, strategy="single", options=options, epochs=args.epochs, seed=args.seed,
        teacher=str(teacher) if teacher is not None else None, resume=(work / "checkpoint.pt").exists(), device="cpu", **RECIPE,
    )  # fmt: skip
    data = load_data(args.data)
    subnet = calibrated_subnet(load_weights(Path(record["supernet"])), codes, data, f"{kind} {args.seed}")
    save_subnet(subnet_file, subnet, {})
    model, found = to_network(subnet), {}
    for split in ("validation", "test"):
        found[split] = predictions(model, data[split], subnet.preprocessing, resolution=subnet.blueprint[0].hw_in)  # type: ignore[index]
    RESULTS.mkdir(parents=True, exist_ok=True)
    np.savez_compressed(RESULTS / f"{kind}-{args.seed}.npz", **{k: v.astype(np.uint8) for k, v in found.items()})  # type: ignore[arg-type]
    measured = {f"{split}_top1": top1(p, data[split].labels) for split, p in found.items()}  # type: ignore[index]
    facts = {"kind": kind, "seed": args.seed, "epochs": args.epochs, "arch_id": space.arch(codes).id, "recipe": RECIPE}
    cost = {"macs": float(macs_of(space)(codes[None])[0]), "device_hours": record["device_hours"]}
    write_json(RESULTS / f"{kind}-{args.seed}.json", provenance(**facts, **({"focal": FOCAL} if teacher else {}), **cost, **measured))
    print(kind, args.seed, measured, f"{time.perf_counter() - started:.0f} s", flush=True)
    return subnet_file


def main() -> None:
    """Three networks of one seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", required=True)
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--epochs", type=int, default=20)
    args = parser.parse_args()
    space, small, large = pair()
    reference = network("small", small, space, args)
    network("large", large, space, args)
    network("focal", large, space, args, teacher=reference)


if __name__ == "__main__":
    main()
