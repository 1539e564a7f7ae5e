"""What a short fine-tuning of a shipped subnet brings: accuracy and flips, by learning rate and by what it learns from.

    python benchmarks/deploy/finetune.py --data CIFAR10_DIR --work DIR --all     # finished rows are skipped, broken ones go on
    python benchmarks/deploy/finetune.py --table

A part of the training images for a few epochs, one seed: minutes on one core, and no more than a hint of what 25 epochs
on all images do. The epoch is chosen on the validation split; the test split only reports.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch.data import DataSet, load_data
from ofasearch.jobs import finetune as job
from ofasearch.jobs import finetune_setup
from ofasearch.jobs.train import TrainProgress
from ofasearch.records import provenance, read_json, write_json
from ofasearch.train.loop import TrainConfig

RECORD = Path(__file__).resolve().parents[1] / "results" / "amd-epyc-2c" / "deploy" / "finetune.json"
SUBNET = "compofa-mbv3-cifar@r32-2-2-2-2-2"  # the smallest network of cifar10-compofa
IMAGES, EPOCHS, SEED = 6_000, 4, 0
ROWS: dict[str, dict[str, Any]] = {
    "labels": {},
    "labels, 10 times the rate": {"lr": 10 * job.RATE},
    "teacher": {"teacher": "cifar10-compofa"},
    "focal": {"focal": 1.0},
    "focal, a fiftieth of the weight": {"focal": 0.02},
    "labels, all images, 2 epochs": {"images": None, "epochs": 2},
}


def request_of(row: str, data: str, out: Path) -> job.FinetuneRequest:
    """The fine-tuning of a row."""
    settings = {key: value for key, value in ROWS[row].items() if key != "images"}
    config = TrainConfig(epochs=settings.pop("epochs", EPOCHS), lr=settings.pop("lr", job.RATE), warmup_epochs=0.0, seed=SEED)
    return job.FinetuneRequest(subnet=SUBNET, data=data, out=out, config=config, resume=True, **settings)


def few(data: DataSet, images: int | None) -> DataSet:
    """The data with so many of its training images, drawn by the seed; None keeps all."""
    chosen = np.sort(np.random.default_rng(SEED).permutation(len(data["train"]))[:images])
    return replace(data, splits={**data.splits, "train": data["train"].take(chosen)})


def run(row: str, data: str, work: Path) -> dict[str, Any]:
    """Fine-tune, and what is kept of the answer."""
    finetune_setup.load_data = lambda source: few(load_data(source), ROWS[row].get("images", IMAGES))  # the job takes all training images
    request = request_of(row, data, work / row)
    for event in job.finetune(request):
        if isinstance(event, job.FinetuneResult):
            found = event.record
        elif isinstance(event, TrainProgress) and event.report.step % 25 == 0:
            print(f"{row}: step {event.report.step} of {event.report.steps}, loss {event.report.loss:.3f}", flush=True)
    kept = ("best_epoch", "calibrated", "before", "after", "flips", "notes")
    found["images"] = found["training"]["splits"]["train"]
    return {key: found[key] for key in (*kept, "images")} | {
        "config": asdict(request.config),
        "teacher": request.teacher,
        "focal": request.focal,
    }


def table(record: dict[str, Any]) -> str:
    """The rows as Markdown."""
    lines = ["| learns from | validation before | after | test before | after | test NFR | PFR |", "| --- " * 7 + "|"]
    for name, row in record["rows"].items():
        numbers = [row[side][f"{split}_top1"] for split in ("validation", "test") for side in ("before", "after")]
        numbers += [row["flips"]["test"][rate] for rate in ("nfr", "pfr")]
        lines.append(f"| {name} | " + " | ".join(f"{100 * number:.2f} %" for number in numbers) + " |")
    return "\n".join(lines)


def main() -> None:
    """Run what is asked and not there yet."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10")
    parser.add_argument("--work", type=Path, default=Path("runs/finetune"))
    parser.add_argument("--row", action="append", choices=list(ROWS), default=[])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--table", action="store_true")
    given = parser.parse_args()
    record = read_json(RECORD) if RECORD.exists() else {"rows": {}}
    for row in () if given.table else ROWS if given.all else given.row:
        if row not in record["rows"]:
            record["rows"][row] = run(row, given.data, given.work)
            facts = provenance(subnet=SUBNET, seed=SEED, data="cifar10")
            write_json(RECORD, {**facts, "rows": record["rows"]})
    print(table(record))


if __name__ == "__main__":
    main()
