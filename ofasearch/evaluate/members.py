"""Every member of a small space, measured once: calibrated batch-norm statistics and predictions.

Networks that share their first layers share those layers' activations and statistics, because a batch norm sees only
what comes before it. So the members are walked as a trie of layers: each distinct prefix is calibrated and run once.

Legend: m = members, g = genes, n = images, L = most layers of a member, t = trie nodes.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from safetensors.numpy import save

from ofasearch.errors import ArchError, FormatError, MismatchError
from ofasearch.records import write_atomic
from ofasearch.space.containment import recoded
from ofasearch.space.core import Blueprint, Codes, LayerSpec, Space
from ofasearch.supernet.weights import Array, norm_names, read_safetensors

FORMAT = "ofasearch-members-1"
Predictions = npt.NDArray[np.uint8]


@dataclass(frozen=True, slots=True)
class Members:
    """Measured networks of one supernet.

    `codes` (m, g); `predictions` and `labels` per split, (m, n) and (n,); `nodes` (m, L) numbers the trie node of each
    layer, -1 beyond the last; node k's statistics are `statistics[offsets[k]:offsets[k + 1]]`, means and variances in
    order of computation. `supernet_digest` ties all of it to the weights.
    """

    space: Space
    codes: Codes
    predictions: Mapping[str, Predictions]
    labels: Mapping[str, Predictions]
    nodes: npt.NDArray[np.int32]
    offsets: npt.NDArray[np.int64]
    statistics: Array
    supernet_digest: str
    card: dict[str, Any]

    def index(self, codes: Codes) -> Codes:
        """Row of each network (k, g) among the members, (k,).

        Raises MismatchError for a network that was not measured.
        """
        known = {row.tobytes(): i for i, row in enumerate(np.ascontiguousarray(self.codes.astype(np.int64)))}
        try:
            return np.array([known[row.tobytes()] for row in np.ascontiguousarray(codes.astype(np.int64))], dtype=np.int64)
        except KeyError:
            raise MismatchError(f"every network must be one of the {len(self.codes)} measured members of {self.space.name}") from None

    def top1(self, split: str) -> npt.NDArray[np.float64]:
        """Fraction of the split's images that each member gets right, (m,)."""
        return np.asarray((self.predictions[split] == self.labels[split][None]).mean(axis=1))

    def narrowed(self, space: Space) -> Members:
        """The members that are networks of `space`, the same space with fewer choices; codes are those of `space`."""
        kept, codes = recoded(self.codes.astype(np.int64), self.space, space)
        predictions = {split: p[kept] for split, p in self.predictions.items()}
        return replace(self, space=space, codes=codes, predictions=predictions, nodes=self.nodes[kept])

    def norm_statistics(self, member: int) -> dict[str, Array]:
        """Running means and variances of one member, keyed `<slot>.<part>` as in its weights."""
        blueprint = self.space.blueprint(self.codes[member])
        if (self.nodes[member, : len(blueprint)] < 0).any() or self.nodes.shape[1] < len(blueprint):
            raise FormatError(f"member {member} must have statistics for all of its {len(blueprint)} layers, but some are missing")
        found: dict[str, Array] = {}
        for spec, node in zip(blueprint, self.nodes[member], strict=False):
            found |= _unpack(spec, self.statistics[self.offsets[node] : self.offsets[node + 1]])
        return found


def _pack(spec: LayerSpec, state: Mapping[str, Array]) -> Array:
    parts = [state[f"{name}.{part}"] for name, _ in norm_names(spec) for part in ("running_mean", "running_var")]
    return np.concatenate(parts) if parts else np.zeros(0, dtype=np.float32)


def _unpack(spec: LayerSpec, vector: Array) -> dict[str, Array]:
    found, start = {}, 0
    for name, channels in norm_names(spec):
        for part in ("running_mean", "running_var"):
            found[f"{spec.slot}.{name}.{part}"] = vector[start : start + channels]
            start += channels
    if start != len(vector):
        raise FormatError(f"statistics of {spec.slot} must hold {start} values, but hold {len(vector)}")
    if any(values.min(initial=0) < 0 for name, values in found.items() if name.endswith("running_var")):
        raise FormatError(f"statistics of {spec.slot} must hold variances of at least 0, but one is negative")
    return found


@dataclass(frozen=True, slots=True)
class Visit:
    """One trie node that was just measured; `members` are the rows whose prefix it ends, `predicted` is set at leaves."""

    spec: LayerSpec
    members: Codes
    statistics: Array
    predicted: Mapping[str, Predictions] | None  # per split (n,), at the last layer


def walk(
    supernet: Any, blueprints: Sequence[Blueprint], calibration: Sequence[Any], images: Mapping[str, Sequence[Any]]
) -> Iterator[Visit]:
    """Calibrate and run all blueprints of a supernet, depth first, sharing prefixes.

    `calibration` are input batches (B, 3, H, W), `images` those of each split to predict. Equal to recalibrating and
    running each network alone, because layers are calibrated on the outputs of the layers before them.
    """
    import torch

    from ofasearch.evaluate.score import recalibrate_bn
    from ofasearch.supernet.elastic import build_layer, channels_last
    from ofasearch.supernet.weights import slice_layer

    tensors = supernet.tensors()
    position_of = {name: i for i, name in enumerate(images)}

    @torch.no_grad()
    def descend(position: int, rows: Codes, calibrated: list[Any], features: list[list[Any]]) -> Iterator[Visit]:
        groups: dict[LayerSpec, list[int]] = {}
        for row in rows:
            groups.setdefault(blueprints[row][position], []).append(int(row))
        for spec, members in groups.items():
            layer = build_layer(spec)
            layer.load_state_dict({k: t.detach().clone() for k, t in slice_layer(tensors, spec).items()}, strict=False)
            channels_last(layer)
            next_calibrated = recalibrate_bn(layer, calibrated)
            next_features = [[layer(x) for x in split] for split in features]
            state = {k: t.numpy() for k, t in layer.state_dict().items()}
            last = position + 1 == len(blueprints[members[0]])
            predicted = {name: _argmax(next_features[i]) for name, i in position_of.items()} if last else None
            index = np.array(members, dtype=np.int64)
            yield Visit(spec, index, _pack(spec, state), predicted)
            if not last:
                yield from descend(position + 1, index, next_calibrated, next_features)

    yield from descend(0, np.arange(len(blueprints)), list(calibration), [list(split) for split in images.values()])


def _argmax(batches: Sequence[Any]) -> Predictions:
    return np.concatenate([logits.argmax(1).numpy() for logits in batches]).astype(np.uint8)


class Collector:
    """Gathers visits of `walk` into the arrays of `Members`."""

    def __init__(self, members: int, layers: int):
        self.nodes = np.full((members, layers), -1, dtype=np.int32)
        self.vectors: list[Array] = []
        self.predicted: dict[str, dict[int, Predictions]] = {}
        self._depth = np.zeros(members, dtype=np.int64)

    def add(self, visit: Visit) -> None:
        """Record one node. Visits come depth first, so a member's nodes arrive in order of computation."""
        self.nodes[visit.members, self._depth[visit.members]] = len(self.vectors)
        self._depth[visit.members] += 1
        self.vectors.append(visit.statistics)
        for split, values in (visit.predicted or {}).items():
            for member in visit.members:
                self.predicted.setdefault(split, {})[int(member)] = values

    def arrays(self) -> dict[str, npt.NDArray[Any]]:
        """The collected arrays, by the names of the file."""
        offsets = np.concatenate([[0], np.cumsum([len(v) for v in self.vectors])]).astype(np.int64)
        stacked = {f"predictions.{s}": np.stack([p[i] for i in sorted(p)]) for s, p in self.predicted.items()}
        return {"nodes": self.nodes, "offsets": offsets, "statistics": np.concatenate(self.vectors), **stacked}


def join(parts: Sequence[Mapping[str, npt.NDArray[Any]]]) -> dict[str, npt.NDArray[Any]]:
    """One set of arrays from those of several groups of members, nodes renumbered."""
    base, end, nodes, offsets = 0, 0, [], [np.zeros(1, dtype=np.int64)]
    for part in parts:
        nodes.append(np.where(part["nodes"] >= 0, part["nodes"] + base, -1).astype(np.int32))
        offsets.append(part["offsets"][1:] + end)
        base, end = base + len(part["offsets"]) - 1, end + int(part["offsets"][-1])
    rest = [name for name in parts[0] if name.startswith("predictions.")]
    return {
        "nodes": np.concatenate(nodes),
        "offsets": np.concatenate(offsets),
        "statistics": np.concatenate([p["statistics"] for p in parts]),
        **{name: np.concatenate([p[name] for p in parts]) for name in rest},
    }


def save_members(path: Path, members: Members) -> None:
    """Write one safetensors file, atomically."""
    import json

    arrays: dict[str, npt.NDArray[Any]] = {
        "codes": members.codes.astype(np.int16),
        "nodes": members.nodes,
        "offsets": members.offsets,
        "statistics": members.statistics,
        **{f"predictions.{s}": p for s, p in members.predictions.items()},
        **{f"labels.{s}": p for s, p in members.labels.items()},
    }
    card = {"format": FORMAT, "supernet_digest": members.supernet_digest, "card": members.card}
    write_atomic(path, save({k: np.ascontiguousarray(a) for k, a in arrays.items()}, metadata={"ofasearch": json.dumps(card)}))


def load_members(path: Path, space: Space, supernet_digest: str) -> Members:
    """Read the measured members of a supernet with the given digest.

    Raises NotFoundError, FormatError, MismatchError (made for other weights).
    """
    found, card = read_safetensors(path, FORMAT)
    arrays: dict[str, npt.NDArray[Any]] = dict(found)
    if card.get("supernet_digest") != supernet_digest:
        raise MismatchError(f"{path} must belong to the supernet's weights, but was measured on others (digests differ)")
    try:
        codes = arrays["codes"].astype(np.int64, casting="safe")
        splits = [name.partition(".")[2] for name in arrays if name.startswith("predictions.")]
        predictions, labels = ({s: arrays[f"{kind}.{s}"] for s in splits} for kind in ("predictions", "labels"))
        nodes, offsets, statistics = arrays["nodes"], arrays["offsets"], arrays["statistics"]
        told = dict(card.get("card", {}))
    except KeyError as error:
        raise FormatError(f"{path} must hold codes, nodes, offsets, statistics and predictions, but lacks {error}") from error
    except (TypeError, ValueError) as error:
        raise FormatError(f"{path} must hold whole numbers as codes and a card, but does not: {error}") from error
    try:
        space.validate(codes)
    except ArchError as error:
        raise FormatError(f"{path} must hold networks of {space.name}, but one is not: {error}") from error
    if not (
        nodes.ndim == 2
        and offsets.ndim == statistics.ndim == 1
        and nodes.dtype == np.int32
        and offsets.dtype == np.int64
        and statistics.dtype == np.float32
        and len(nodes) == len(codes) > 0
        and -1 <= nodes.min(initial=-1) <= nodes.max(initial=-1) <= len(offsets) - 2
        and offsets[0] == 0
        and (np.diff(offsets) >= 0).all()
        and offsets[-1] == len(statistics)
        and np.isfinite(statistics).all()
        and {"validation", "test"} <= set(splits)
        and all(labels[s].ndim == 1 and predictions[s].shape == (len(codes), labels[s].size) and labels[s].size > 0 for s in splits)
        and all(a.dtype == np.uint8 and a.max() < space.classes for s in splits for a in (predictions[s], labels[s]))
    ):
        raise FormatError(f"{path} must hold statistics and predictions for every member, but they do not fit together")
    return Members(space, codes, predictions, labels, nodes, offsets, statistics, supernet_digest, told)
