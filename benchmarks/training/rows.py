"""The training methods side by side: same images, same networks, same loop; one resumable row at a time.

    python benchmarks/training/rows.py --data CIFAR10_DIR --list
    python benchmarks/training/rows.py --data CIFAR10_DIR --row deps --row rss ...      # or --all; finished rows are skipped
    python benchmarks/training/rows.py --table

A killed row goes on where its last checkpoint stood. The CPU profile trains on 10,000 images for a few epochs with one
thread: it compares methods under the same small budget and says nothing about their results at full length. The GPU
profile is DepS's own setting for CIFAR-10 (stage strides 1, 1, 2, 2, 1, 2 without a stem stride, width 1.0, 200 epochs).

Every row is scored on the same seven networks of its space: the largest, the middle, the smallest and four drawn by a
fixed seed. Batch norm is recalibrated on images that train nothing; the test split only reports.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from ofasearch.data import DataSet, ImageSet, Preprocessing, channel_statistics, load_data
from ofasearch.evaluate.score import predictions, recalibrate_bn, top1
from ofasearch.jobs.run_folder import RunFolder
from ofasearch.jobs.train import landmarks
from ofasearch.jobs.train_setup import make_strategy
from ofasearch.records import provenance, read_json, write_json
from ofasearch.space.core import Codes, Space
from ofasearch.space.costs import macs_of
from ofasearch.space.families import get_space
from ofasearch.supernet.supernet import Supernet
from ofasearch.train.augment import normalise
from ofasearch.train.loop import TrainConfig, Trainer
from ofasearch.train.schedule import lay_out
from ofasearch.train.source import MemorySource
from ofasearch.train.strategies import Strategy

RESULTS = Path(__file__).resolve().parents[1] / "results"
PROBES = 4  # random networks that every row of a space is scored on
CHECKPOINT_SECONDS = 30.0
GRADIENT_POINTS = 12  # positions of a run at which gradients are compared
GRADIENT_SUBNETS = 4


@dataclass(frozen=True, slots=True, kw_only=True)
class Profile:
    """How large the runs of a machine are."""

    spaces: Mapping[str, str]  # by what a row calls them
    images: int | None  # of the training split; None for all
    epochs: int
    steps_budget: int  # epochs times mean networks per step that "equal gradient steps" rows may spend
    calibration: int
    tested: int
    recipe: Mapping[str, Any]


PROFILES = {
    "cpu": Profile(
        spaces={
            "compound": "compofa-mbv3-cifar-w0.15",
            "elastic": "ofa-mbv3-cifar-w0.15",
            "proxyless": "ofa-proxyless-cifar-w0.15",
            "resnet": "ofa-resnet50-cifar-w0.10",
        },
        images=10_000,
        epochs=5,
        steps_budget=10,
        calibration=1000,
        tested=4000,
        recipe={"batch_size": 64, "lr": 0.05, "weight_decay": 3e-4},
    ),
    "gpu": Profile(
        spaces={
            "compound": "compofa-mbv3-32-w1.0",
            "elastic": "ofa-mbv3-32-w1.0",
            "proxyless": "ofa-proxyless-32-w1.0",
            "resnet": "ofa-resnet50-cifar-w1.0",
        },
        images=None,
        epochs=200,
        steps_budget=400,
        calibration=2000,
        tested=10_000,
        recipe={"batch_size": 128, "lr": 0.1, "weight_decay": 3e-5, "warmup_epochs": 5.0},
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One training run of the comparison. `epochs` is a share of the profile's."""

    question: str
    strategy: str
    options: Mapping[str, Any] = field(default_factory=dict)
    config: Mapping[str, Any] = field(default_factory=dict)
    family: str = "compound"  # the space of the profile: compound, elastic (the whole once-for-all space), proxyless or resnet
    epochs: float = 1.0
    equal_steps: bool = False  # as many epochs as the budget of gradient steps allows
    gradients: bool = False  # compare subnets' gradients with the full model's on the way


METHODS = "methods at equal epochs"
STEPS = "methods at equal subnet gradient steps"
SPACES = "once-for-all's and CompOFA's schedules on each other's space (CompOFA, figure 6)"
DEPS = "DepS's ablations"
SELECTION = "RSS: which subnet an epoch trains"
RECIPES = "batch size, dropout and rate (RSS, supplement 2)"
PROXYLESS = "ProxylessNAS's networks (RSS, supplement 3; DepS, section 5)"
RESNET = "ResNet50's networks"
SHORT = 180 / 590  # epochs of RSS-Short relative to RSS

ROWS: dict[str, Row] = {
    "ofa": Row(question=METHODS, strategy="ofa"),
    "compofa": Row(question=METHODS, strategy="compofa"),
    "bignas": Row(question=METHODS, strategy="bignas"),
    "deps": Row(question=METHODS, strategy="deps", gradients=True),
    "rss": Row(question=METHODS, strategy="rss"),
    "single-largest": Row(question=METHODS, strategy="single"),
    "single-smallest": Row(question=METHODS, strategy="rss", options={"selection": "smallest"}),
    "ofa-steps": Row(question=STEPS, strategy="ofa", equal_steps=True),
    "compofa-steps": Row(question=STEPS, strategy="compofa", equal_steps=True),
    "bignas-steps": Row(question=STEPS, strategy="bignas", equal_steps=True),
    "deps-steps": Row(question=STEPS, strategy="deps", equal_steps=True),
    "rss-steps": Row(question=STEPS, strategy="rss", equal_steps=True),
    "ofa-on-ofa": Row(question=SPACES, strategy="ofa", family="elastic"),
    "compofa-on-ofa": Row(question=SPACES, strategy="compofa", family="elastic"),
    "deps-on-ofa": Row(question=SPACES, strategy="deps", family="elastic"),
    "rss-on-ofa": Row(question=SPACES, strategy="rss", family="elastic"),
    "deps-warmup-25": Row(question=DEPS, strategy="deps", options={"warmup_share": 0.25}, gradients=True),
    "deps-warmup-75": Row(question=DEPS, strategy="deps", options={"warmup_share": 0.75}, gradients=True),
    "deps-without-epsilon": Row(question=DEPS, strategy="deps", options={"epsilon": 1.0}, gradients=True),
    "deps-without-warmup": Row(question=DEPS, strategy="deps", options={"warmup_share": 0.0}, gradients=True),
    "rss-short": Row(question=SELECTION, strategy="rss-short", epochs=SHORT),
    "rss-short-per-batch": Row(question=SELECTION, strategy="rss-short", options={"every": "batch"}, epochs=SHORT),
    "rss-short-two-per-batch": Row(question=SELECTION, strategy="rss-short", options={"every": "batch", "subnets": 2}, epochs=SHORT),
    "rss-per-batch": Row(question=SELECTION, strategy="rss", options={"every": "batch"}),
    "rss-two-per-batch": Row(question=SELECTION, strategy="rss", options={"every": "batch", "subnets": 2}),
    "rss-middle": Row(question=SELECTION, strategy="rss", options={"selection": "middle"}),
    "rss-max-then-min": Row(question=SELECTION, strategy="rss", options={"selection": "max-then-min"}),
    "rss-min-then-max": Row(question=SELECTION, strategy="rss", options={"selection": "min-then-max"}),
    "rss-alternating": Row(question=SELECTION, strategy="rss", options={"selection": "alternating"}),
}
for _family, _question in (("proxyless", PROXYLESS), ("resnet", RESNET)):
    for _method, _share in (("ofa", 1.0), ("deps", 1.0), ("rss", 1.0), ("rss-short", SHORT)):
        ROWS[f"{_method}-{_family}"] = Row(question=_question, strategy=_method, family=_family, epochs=_share)
_BASE = {"lr": 0.01, "dropout": 0.1, "batch_size": 64}
for _name, _strategy, _length in (("rss-short", "rss-short", SHORT), ("ofa", "ofa", 1.0)):
    for _change, _values in (
        ("base", {}),
        ("batch-128", {"batch_size": 128}),
        ("dropout-0.3", {"dropout": 0.3}),
        ("lr-0.02", {"lr": 0.02}),
    ):
        ROWS[f"{_name}-{_change}"] = Row(question=RECIPES, strategy=_strategy, config=_BASE | _values, epochs=_length)


# -- one row ---------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class Material:
    """The images of a profile."""

    data: DataSet
    train: ImageSet
    preprocessing: Preprocessing


def material(source: str, profile: Profile) -> Material:
    """The same images for every row."""
    data = load_data(source)
    train = data["train"]
    assert isinstance(train, ImageSet)
    if profile.images is not None:
        train = train.take(np.sort(np.random.default_rng(0).permutation(len(train))[: profile.images]))
    mean, std = channel_statistics(train.images)
    return Material(data, train, Preprocessing(mean=mean, std=std, size=train.pixels))


def probes(space: Space) -> dict[str, Codes]:
    """The networks that every row of a space is scored on."""
    drawn = space.sample(PROBES, np.random.default_rng(2026))
    return landmarks(space) | {f"random {n + 1}": codes for n, codes in enumerate(drawn)}


def epochs_of(row: Row, profile: Profile, strategy: Strategy, space: Space) -> int:
    """Epochs of a row: a share of the profile's, or what its budget of gradient steps allows."""
    if not row.equal_steps:
        return max(2, round(row.epochs * profile.epochs))
    return max(2, round(profile.steps_budget / mean_passes(strategy, space)))


def mean_passes(strategy: Strategy, space: Space) -> float:
    """Networks per step, averaged over a run."""
    schedule = lay_out(strategy.phases(space), epochs=1, steps_per_epoch=2000, lr=1.0, warmup_epochs=0, curve="cosine")
    rng = np.random.default_rng(0)
    counts = [len(strategy.plan(space, schedule.at(step, len(space.resolutions)), rng).passes) for step in range(0, schedule.steps, 10)]
    return float(np.mean(counts))


def run(name: str, profile_name: str, found: Material, work: Path, device: torch.device) -> dict[str, Any]:
    """Train one row and score it."""
    row, profile = ROWS[name], PROFILES[profile_name]
    space = get_space(profile.spaces[row.family], classes=found.data.classes)
    strategy = make_strategy(row.strategy, dict(row.options), space)
    epochs = epochs_of(row, profile, strategy, space)
    settings = {"warmup_epochs": min(1.0, epochs / 10)} | dict(profile.recipe) | dict(strategy.recipe) | dict(row.config)
    config = TrainConfig(epochs=epochs, **settings)
    source = MemorySource(found.train, crop_padding=config.crop_padding, flip=config.flip, device=device)
    supernet = Supernet(space, generator=torch.Generator().manual_seed(config.seed)).to(device)
    trainer = Trainer(supernet, strategy, config, source, found.preprocessing)
    folder = RunFolder(work / profile_name / name)
    card = {"row": name, "options": dict(row.options), "config": asdict(config)}
    state, _ = folder.open(card, resume=True)
    progress: dict[str, Any] = {"cpu_seconds": 0.0, "passes": 0, "losses": [], "gradients": []}
    if state is not None:
        trainer.restore(state)
        progress = state["progress"]
    before, started, saved = progress["cpu_seconds"], time.process_time(), time.perf_counter()
    points = {round(trainer.steps * (i + 1) / GRADIENT_POINTS) for i in range(GRADIENT_POINTS)} if row.gradients else set()
    aside, losses = 0.0, list[float]()
    for report in trainer.run():
        progress["passes"] += report.passes
        losses.append(report.loss)
        if report.step in points:
            began = time.process_time()
            progress["gradients"].append({"step": report.step, "epoch": report.step / trainer.steps_per_epoch} | gradients(trainer, found))
            aside += time.process_time() - began
        if report.step % trainer.steps_per_epoch == 0:
            progress["losses"].append(float(np.mean(losses)))
            spent = time.process_time() - started
            say(f"{name}: epoch {report.epoch}/{epochs} {report.phase}, loss {np.mean(losses):.3f}, {spent:.0f} s of CPU")
            losses = []
        if time.perf_counter() - saved > CHECKPOINT_SECONDS or report.step == report.steps:
            progress["cpu_seconds"] = before + time.process_time() - started - aside
            folder.save(trainer.state() | {"progress": progress})
            saved = time.perf_counter()
    scores = {label: score(supernet, codes, found, profile) for label, codes in probes(space).items()}
    macs = macs_of(space)(np.array(list(probes(space).values())))
    drawn = [scores[f"random {n + 1}"] for n in range(PROBES)]
    return provenance(
        row=name,
        question=row.question,
        profile=profile_name,
        space=space.name,
        strategy=row.strategy,
        options=asdict(strategy),  # type: ignore[call-overload]
        config=asdict(config),
        train_images=len(found.train),
        calibration_images=profile.calibration,
        test_images=min(profile.tested, len(found.data["test"])),
        device=device.type,
        threads=torch.get_num_threads(),
        cpu_seconds=round(progress["cpu_seconds"], 1),  # of the training alone; others may use the machine
        steps=trainer.steps,
        gradient_steps=progress["passes"],
        epoch_losses=[round(loss, 4) for loss in progress["losses"]],
        test_top1=scores,
        test_top1_mean_of_random=float(np.mean(drawn)),
        macs={label: int(m) for label, m in zip(scores, macs, strict=True)},
        **({"gradients": progress["gradients"]} if row.gradients else {}),
    )


def score(supernet: Supernet, codes: Codes, found: Material, profile: Profile) -> float:
    """Test top-1 of one network after recalibration."""
    network = supernet.extract(codes)
    size = found.preprocessing.size
    calibration = found.data["calibration"].take(np.arange(profile.calibration))
    recalibrate_bn(network, map(torch.from_numpy, calibration.inputs(found.preprocessing, resolution=size, batch=200)))
    test = found.data["test"].take(np.arange(min(profile.tested, len(found.data["test"]))))
    return top1(predictions(network, test, found.preprocessing, resolution=size), test.labels)


def gradients(trainer: Trainer, found: Material) -> dict[str, float]:
    """The full model's gradient and that of subnets which learn from it, on 256 fixed training images (DepS, figure 3).

    Norms over all shared weights, and the cosine between both, averaged over subnets that are the same at every point.
    """
    supernet, space = trainer.supernet, trainer.supernet.space
    weights = [p for p in supernet.parameters() if p.requires_grad]
    x = normalise(torch.from_numpy(found.train.images[:256]), found.preprocessing).to(trainer.device)
    y = torch.from_numpy(found.train.labels[:256]).to(trainer.device)
    supernet.train()
    logits = supernet(x, space.blueprint(space.largest()))
    full = _flat(torch.autograd.grad(F.cross_entropy(logits, y), weights, allow_unused=True), weights)
    soft, norms, cosines = logits.detach().softmax(1), [], []
    for codes in space.sample(GRADIENT_SUBNETS, np.random.default_rng(7)):
        loss = F.cross_entropy(supernet(x, space.blueprint(codes)), soft)
        part = _flat(torch.autograd.grad(loss, weights, allow_unused=True), weights)
        norms.append(float(part.norm()))
        cosines.append(float(F.cosine_similarity(full, part, dim=0)))
    return {"full_norm": float(full.norm()), "subnet_norm": float(np.mean(norms)), "cosine": float(np.mean(cosines))}


def _flat(found: tuple[Tensor | None, ...], weights: list[torch.nn.Parameter]) -> Tensor:
    return torch.cat([(torch.zeros_like(w) if g is None else g).reshape(-1) for g, w in zip(found, weights, strict=True)])


def say(text: str) -> None:
    """One line of progress."""
    print(text, file=sys.stderr, flush=True)


# -- the record as a table -------------------------------------------------------------------------------------


def table(folder: Path) -> str:
    """Markdown: a table per question of the rows that are done."""
    records = {name: read_json(folder / f"{name}.json") for name in ROWS if (folder / f"{name}.json").is_file()}
    parts = []
    for question in dict.fromkeys(row.question for row in ROWS.values()):
        lines = [f"### {question[0].upper()}{question[1:]}", ""]
        lines.append("| row | epochs | gradient steps | CPU s | largest | middle | smallest | mean of 4 random | largest - smallest |")
        lines.append("| --- | --- | --- | --- | --- | --- | --- | --- | --- |")
        for name, record in records.items():
            if ROWS[name].question == question:
                s = record["test_top1"]
                cells = [name, str(record["config"]["epochs"]), f"{record['gradient_steps']:,}", f"{record['cpu_seconds']:.0f}"]
                cells += [f"{100 * v:.1f}" for v in (s["largest"], s["middle"], s["smallest"], record["test_top1_mean_of_random"])]
                lines.append("| " + " | ".join([*cells, f"{100 * (s['largest'] - s['smallest']):.1f}"]) + " |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


def main() -> None:
    """See the module."""
    parser = argparse.ArgumentParser(description="Train and compare the methods, one resumable row at a time.")
    parser.add_argument("--data", help="CIFAR-10")
    parser.add_argument("--profile", choices=PROFILES, default="cpu")
    parser.add_argument("--machine", default="this-machine", help="folder below benchmarks/results")
    parser.add_argument("--row", action="append", choices=ROWS, default=[])
    parser.add_argument("--all", action="store_true")
    parser.add_argument("--list", action="store_true")
    parser.add_argument("--table", action="store_true")
    parser.add_argument("--work", type=Path, default=Path("runs/rows"), help="checkpoints")
    parser.add_argument("--threads", type=int, default=1)
    given = parser.parse_args()
    out = RESULTS / given.machine / "training" / f"rows-{given.profile}"
    if given.list:
        print("\n".join(f"{name:26} {row.question}" for name, row in ROWS.items()))
        return
    if given.table:
        print(table(out))
        return
    torch.set_num_threads(given.threads)
    device = torch.device("cuda" if given.profile == "gpu" else "cpu")
    found = material(given.data, PROFILES[given.profile])
    for name in ROWS if given.all else given.row:
        if (out / f"{name}.json").is_file():
            say(f"{name}: done before")
            continue
        write_json(out / f"{name}.json", run(name, given.profile, found, given.work, device))
        say(f"{name}: done")


if __name__ == "__main__":
    main()
