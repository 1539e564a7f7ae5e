"""What int8 costs and brings on the embedded CIFAR-10 supernet: three networks, every recipe, beside float32.

OMP_NUM_THREADS=1 python benchmarks/deploy/quantize.py --data ../shared/data/cifar10 --out benchmarks/results/<machine>/deploy/quantize.json
OMP_NUM_THREADS=1 python benchmarks/deploy/quantize.py --time --out benchmarks/results/<machine>/deploy/quantize.json

The first call writes accuracies, flips and sizes of all recipes and of calibration methods; what it found stays below --work, and --only
does some networks. The second one, on an otherwise idle machine, times the files of each network in turn in one run (batch 1 and 16);
every call adds a pass.
"""

from __future__ import annotations

import argparse
import itertools
import tempfile
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch import zoo
from ofasearch.data import DataSet, load_data
from ofasearch.deploy.quantize import METHODS, Recipe, counted, quantise, sensitive_parts
from ofasearch.evaluate.flips import compare
from ofasearch.jobs.classifier import Classifier, Predicted, predictions_of
from ofasearch.jobs.quantize import FLOAT, QuantizeRequest, _source
from ofasearch.jobs.recipes import Subject, calibration_of, predicted, time_together
from ofasearch.latency.machine import load_warning
from ofasearch.latency.stopwatch import timing_json
from ofasearch.records import provenance, read_json, write_json

NETWORKS = {"smallest": "2", "middle": "3", "largest": "4"}
CALIBRATION = (100, 500, 2000)
BATCHES = (1, 16)
SECONDS = 1.5  # a file


def main() -> None:
    """Run the benchmark and write its record."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", default="cifar10", help="data set")
    parser.add_argument("--work", type=Path, default=Path(tempfile.gettempdir()) / "ofasearch-int8")
    parser.add_argument("--only", default=",".join(NETWORKS), help="these networks; the others as a former call found them")
    parser.add_argument("--time", action="store_true")
    parser.add_argument("--out", type=Path, required=True)
    options = parser.parse_args()
    options.work.mkdir(exist_ok=True)
    if options.time:
        former = read_json(options.work / "timings.json") if (options.work / "timings.json").is_file() else []
        write_json(options.work / "timings.json", [*former, timings(options.work)])
    else:
        data = load_data(options.data)
        for name, depth in NETWORKS.items():
            if name in options.only.split(","):
                write_json(options.work / f"{name}.json", judge(name, depth, data, options.work))
    parts = {name: options.work / f"{name}.json" for name in (*NETWORKS, "timings")}
    found = {name: read_json(path) for name, path in parts.items() if path.is_file()}
    rows = [found[name] for name in NETWORKS if name in found]
    write_json(options.out, provenance(supernet=zoo.DEFAULT_SUPERNET, networks=rows, latency=found.get("timings", [])))


def judge(name: str, depth: str, data: DataSet, work: Path) -> dict[str, Any]:
    """All recipes of one network, their files kept."""
    arch = f"compofa-mbv3-cifar@r32-{'-'.join([depth] * 5)}"
    source = _source(QuantizeRequest(model=arch, out=work / "unused.onnx", data=data.name), data)
    (work / f"{name}-{FLOAT}.onnx").write_bytes(source.content)
    before = {split: predictions_of(source.classifier, data, split) for split in ("validation", "test")}
    row: dict[str, Any] = {"name": name, "arch_id": arch, "data": data.name, "size_bytes": source.size_bytes}
    row |= {f"{split}_top1": top1(found, data, split) for split, found in before.items()}
    parts = tuple(sensitive_parts(source.content))
    subsets = [s for n in range(len(parts) + 1) for s in itertools.combinations(parts, n)]
    recipes = [Recipe(per_channel=scheme, floating=s) for scheme in (False, True) for s in subsets]
    row["recipes"] = []
    for recipe in recipes:
        found, content = one(source.classifier, source.content, data, recipe, 500, before)
        (work / f"{name}-{key_of(recipe)}.onnx").write_bytes(content)
        row["recipes"].append({"recipe": key_of(recipe), **found})
        print(name, row["recipes"][-1], flush=True)
    row["calibration"] = [
        {"method": method, "images": images, **one(source.classifier, source.content, data, Recipe(method=method), images, before)[0]}
        for method, images in [*(("minmax", n) for n in CALIBRATION), *((m, 500) for m in METHODS[1:])]
    ]
    row["reduce_range"] = one(source.classifier, source.content, data, Recipe(reduce_range=True), 500, before)[0]
    return row


def one(
    classifier: Classifier, content: bytes, data: DataSet, recipe: Recipe, images: int, before: dict[str, Predicted]
) -> tuple[dict[str, Any], bytes]:
    """What one recipe gets right, and its file."""
    calibration, batch = calibration_of(classifier, data, images, recipe.method)
    assert classifier.preprocessing is not None
    subject = Subject(
        classifier=classifier, content=content, preprocessing=classifier.preprocessing, data=data, calibration=calibration, batch=batch
    )
    made = quantise(content, subject.batches, recipe)
    *_, validation = predicted(classifier, made, "int8", data, "validation")
    *_, test = predicted(classifier, made, "int8", data, "test")
    flips = compare(before["test"], test, data["test"].labels)
    counts = counted(made)
    found = {"used": len(calibration), "size_bytes": len(made), "int8_layers": counts.int8, "layers": counts.weighted}
    return found | {"validation_top1": top1(validation, data, "validation"), "test": flips.to_json()}, made


def key_of(recipe: Recipe) -> str:
    """A name for files and rows."""
    return "-".join([("channel" if recipe.per_channel else "tensor"), *recipe.floating])


def top1(found: Any, data: DataSet, split: Any) -> float:
    """Fraction that is right."""
    return float(np.mean(found == data[split].labels))


def timings(work: Path) -> dict[str, Any]:
    """Time the kept files, those of each network in one run; `ratio` is to float32 in that run."""
    record: dict[str, Any] = {"load_before": load_warning()}
    for name, batch in itertools.product(NETWORKS, BATCHES):
        files = {path.stem.removeprefix(f"{name}-"): path.read_bytes() for path in sorted(work.glob(f"{name}-*.onnx"))}
        timed = time_together(files, batch=batch, threads=1, seconds=SECONDS)
        p50 = timed.timings[FLOAT].p50
        found = {key: {**timing_json(t), "ratio": t.p50 / p50} for key, t in timed.timings.items()}
        record |= {"device": timed.key.device, "runtime": timed.key.runtime, "threads": 1}
        record.setdefault("networks", []).append({"name": name, "batch": batch, "files": found, "notes": list(timed.notes)})
        print(name, batch, {key: round(row["ratio"], 3) for key, row in found.items()}, timed.notes, flush=True)
    return record


if __name__ == "__main__":
    main()
