"""Training steps of random subnets: our supernet beside the published `ofa` package's, same weights, subnets and images, one run.

    pip install --no-deps --target ~/ofa-peer ofa==0.1.0.post202307202001
    OMP_NUM_THREADS=2 python benchmarks/training/throughput.py --peer ~/ofa-peer

A step chooses the subnet, runs it forwards in training mode, takes the cross-entropy, runs backwards and updates by SGD; all
contenders take it in turn on each subnet, the peer once as published (NCHW tensors) and once with its network and its images in
channels_last, which is a line that its users may write. From outside the peer gets stand-ins for packages that it imports and its
networks never call, dropout 0 and our weights. Before anything is timed, logits and gradients of all must agree.
"""

from __future__ import annotations

import argparse
import importlib
import os
import statistics
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofasearch.records import provenance, write_json
from ofasearch.space.core import Codes, Space
from ofasearch.space.families import get_space
from ofasearch.supernet.foreign_keys import Naming, family_of_space
from ofasearch.supernet.supernet import Supernet

BENCHMARKS = Path(__file__).resolve().parents[1]
sys.path.append(str(BENCHMARKS))
from search_vs_ofa import machine, put_stand_ins  # noqa: E402

SPACE = "ofa-mbv3-w1.0"
RESOLUTION, BATCH = 64, 64
RATE, MOMENTUM, DECAY = 1e-3, 0.9, 3e-4
LOGIT_LIMIT = 1e-4
GRADIENT_LIMIT = 2e-2  # of the norm of all gradients: where a unit is zero to rounding, one side cuts it off and the other does not


@dataclass(frozen=True, slots=True)
class Contender:
    """One supernet with its optimiser. `logits` chooses the subnet of some codes and runs it; `key` names a parameter as we do."""

    name: str
    model: nn.Module
    logits: Callable[[Codes], Tensor]
    key: Callable[[str], str | None]
    optimizer: torch.optim.SGD

    def backward(self, codes: Codes, labels: Tensor) -> Tensor:
        """Fresh gradients of one subnet; its logits."""
        self.optimizer.zero_grad(set_to_none=True)
        logits = self.logits(codes)
        F.cross_entropy(logits, labels).backward()
        return logits.detach()

    def seconds(self, codes: Codes, labels: Tensor) -> float:
        """Of one step."""
        start = time.perf_counter()
        self.backward(codes, labels)
        self.optimizer.step()
        return time.perf_counter() - start

    def gradients(self) -> dict[str, Tensor]:
        """Of the last subnet, by our keys."""
        return {str(self.key(name)): p.grad.clone() for name, p in self.model.named_parameters() if p.grad is not None}


def sgd(model: nn.Module) -> torch.optim.SGD:
    """The same optimiser for all."""
    return torch.optim.SGD(model.parameters(), lr=RATE, momentum=MOMENTUM, weight_decay=DECAY, nesterov=True)


def make_ours(layout: torch.memory_format, space: Space, x: Tensor) -> Contender:
    """Our supernet in the given layout (`Trainer` uses channels_last); kernel transforms and batch norms are no identities."""
    supernet = Supernet(space).train()
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for name, parameter in supernet.named_parameters():
            if parameter.ndim < 4 and "linear" not in name:
                parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    supernet.to(memory_format=layout)
    images = x.contiguous(memory_format=layout)

    def logits(codes: Codes) -> Tensor:
        return supernet(images, space.blueprint(codes))

    return Contender("ofasearch", supernet, logits, lambda name: name.removeprefix("full."), sgd(supernet))


def make_peer(name: str, layout: torch.memory_format, space: Space, x: Tensor, weights: dict[str, Tensor]) -> Contender:
    """The peer's supernet with our weights, network and images in the given layout."""
    networks = importlib.import_module("ofa.imagenet_classification.elastic_nn.networks")
    dynamic = importlib.import_module("ofa.imagenet_classification.elastic_nn.modules.dynamic_op")
    dynamic.DynamicSeparableConv2d.KERNEL_TRANSFORM_MODE = 1
    family = family_of_space(space.name)
    net = networks.OFAMobileNetV3(
        n_classes=space.classes, dropout_rate=0, width_mult=1.0, ks_list=[3, 5, 7], expand_ratio_list=[3, 4, 6], depth_list=[2, 3, 4]
    )
    net.load_state_dict({family.their_key(key, Naming()): tensor.detach().clone() for key, tensor in weights.items()})
    net = net.train().to(memory_format=layout)
    images = x.contiguous(memory_format=layout)

    def logits(codes: Codes) -> Tensor:
        chosen = space.settings(codes[None])
        net.set_active_subnet(ks=chosen.ks[0].tolist(), e=chosen.e[0].tolist(), d=chosen.d[0].tolist())
        return net(images)

    return Contender(name, net, logits, family.our_key, sgd(net))


def import_peer(folder: Path) -> dict[str, Any]:
    """Make the peer importable; what it is."""
    found = {d.metadata["Name"]: d.version for d in metadata.distributions(path=[str(folder)])}
    if "ofa" not in found:
        raise SystemExit(f"--peer must be a folder with the `ofa` package, but {folder} is not; see the head of {Path(__file__).name}")
    sys.path.append(str(folder))
    return {"package": "ofa", "version": found["ofa"], "network": "OFAMobileNetV3", "stand_ins": put_stand_ins()}


def norm(tensors: Iterable[Tensor]) -> float:
    """Root of the sum of all squares."""
    return sum(float(tensor.square().sum()) for tensor in tensors) ** 0.5


def agreement(pairs: Sequence[tuple[Contender, Contender]], subnets: Codes, labels: Tensor) -> dict[str, float]:
    """How far logits (absolute) and gradients (as a share of their norm) of two contenders with the same layout differ.

    Between layouts the rounding of torch's own batch norm differs ten times as much. Stops the benchmark when they do:
    a comparison of speeds needs one computation.
    """
    logit = gradient = 0.0
    for codes in subnets:
        for one, other in pairs:
            logit = max(logit, float((one.backward(codes, labels) - other.backward(codes, labels)).abs().max()))
            ours, theirs = one.gradients(), other.gradients()
            if theirs.keys() != ours.keys():
                raise SystemExit(f"both sides must train the same tensors, but only one does {sorted(theirs.keys() ^ ours.keys())[:5]}")
            gradient = max(gradient, norm(theirs[key] - g for key, g in ours.items()) / norm(ours.values()))
    found = {"subnets": len(subnets), "largest_logit_difference": logit, "largest_gradient_difference": gradient}
    if not (logit <= LOGIT_LIMIT and gradient <= GRADIENT_LIMIT):
        raise SystemExit(f"both sides must compute alike, but they differ: {found}")
    return found


def rounds_of(contenders: Sequence[Contender], rounds: Sequence[Codes], labels: Tensor) -> list[dict[str, float]]:
    """Images per second of every contender in every round; they take turns subnet by subnet, another one first each time."""
    found = []
    for number, subnets in enumerate(rounds):
        seconds = dict.fromkeys((c.name for c in contenders), 0.0)
        for index, codes in enumerate(subnets):
            first = (number + index) % len(contenders)
            for contender in (*contenders[first:], *contenders[:first]):
                seconds[contender.name] += contender.seconds(codes, labels)
        found.append({name: len(subnets) * len(labels) / s for name, s in seconds.items()})
        print("# " + ", ".join(f"{name} {speed:.1f}" for name, speed in found[-1].items()) + " images/s", flush=True)
    return found


def summarise(found: Sequence[dict[str, float]]) -> dict[str, Any]:
    """Median images per second, and our ratio to each peer round by round."""
    ours, *others = found[0]
    ratios = {name: [speeds[ours] / speeds[name] for speeds in found] for name in others}
    return {
        "images_per_s": {name: statistics.median(speeds[name] for speeds in found) for name in found[0]},
        "ratio": {name: {"median": statistics.median(r), "min": min(r), "max": max(r)} for name, r in ratios.items()},
        "rounds": list(found),
    }


def show(results: dict[str, Any]) -> str:
    """The table that people read."""
    lines = []
    for question, result in results.items():
        lines.append(f"{question}: ofasearch {result['images_per_s']['ofasearch']:.1f} images/s")
        for name, ratio in result["ratio"].items():
            speed = result["images_per_s"][name]
            lines.append(f"  {name} {speed:.1f}, ratio {ratio['median']:.2f} (rounds {ratio['min']:.2f} to {ratio['max']:.2f})")
    return "\n".join(lines)


def parse() -> argparse.Namespace:
    """The options; fewer rounds and subnets make a quick trial."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--peer", type=Path, default=os.environ.get("OFA_PEER"), help="folder of the `ofa` package (default: OFA_PEER)")
    parser.add_argument("--out", type=Path, default=BENCHMARKS / "results", help="results go to OUT/<machine>/training/")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--subnets", type=int, default=6, help="random subnets in a round, other ones in each")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0, help="of the subnets")
    options = parser.parse_args()
    if options.peer is None:
        parser.error("--peer or OFA_PEER must name the folder of the `ofa` package")
    if min(options.rounds, options.subnets, options.threads) < 1:
        parser.error("rounds, subnets and threads must be at least 1")
    return options


def main() -> None:
    """Check, warm up, time, write the raw record, print the table."""
    options = parse()
    torch.set_num_threads(options.threads)
    load_before = os.getloadavg()
    space = get_space(SPACE).with_resolutions([RESOLUTION])
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(BATCH, 3, RESOLUTION, RESOLUTION, generator=generator)
    labels = torch.randint(space.classes, (BATCH,), generator=generator)
    ours, twin = (make_ours(layout, space, x) for layout in (torch.channels_last, torch.contiguous_format))
    peer = import_peer(options.peer.expanduser())  # after our optimiser: torch looks for some of the missing packages, and minds stand-ins
    weights = ours.model.tensors()
    published = make_peer("ofa as published", torch.contiguous_format, space, x, weights)
    relaid = make_peer("ofa in channels_last", torch.channels_last, space, x, weights)
    rng = np.random.default_rng(options.seed)
    first = np.stack([space.largest(), space.smallest(), *space.sample(2, rng)])
    same = agreement(((twin, published), (ours, relaid)), first, labels)  # and a warm-up
    contenders = (ours, published, relaid)
    drawn = [space.sample(options.subnets, rng) for _ in range(options.rounds)]
    largest = [space.largest()[None]] * options.rounds
    results = {question: summarise(rounds_of(contenders, part, labels)) for question, part in (("random", drawn), ("largest", largest))}
    record = provenance(
        benchmark="training/throughput",
        peer=peer,
        cpu=machine(),
        threads=torch.get_num_threads(),
        load_average={"before": load_before, "after": os.getloadavg()},
        settings={
            "space": SPACE,
            "resolution": RESOLUTION,
            "batch": BATCH,
            "dtype": "float32",
            "step": "choice of the subnet, forward, cross-entropy, backward, SGD",
            "sgd": {"lr": RATE, "momentum": MOMENTUM, "nesterov": True, "weight_decay": DECAY},
            "rounds": options.rounds,
            "subnets_per_round": options.subnets,
            "seed": options.seed,
        },
        agreement=same,
        archs=[[str(space.arch(codes)) for codes in part] for part in drawn],
    )
    path = options.out / machine() / "training" / "throughput.json"
    write_json(path, record | {"results": results})
    print(show(results))
    print(f"threads: {torch.get_num_threads()}, load {load_before[0]:.2f}\nraw results: {path}")


if __name__ == "__main__":
    main()
