"""What a search rests on, by digest: two searches of one question over the same inputs have the same answer."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from ofasearch import zoo
from ofasearch.evaluate.members import Members
from ofasearch.jobs.setup import DeviceBudget, Question, Setup
from ofasearch.latency.table import LatencyTable
from ofasearch.records import file_digest
from ofasearch.space.families import DESIGNS

DIGITS = 24  # of a digest that are kept


def inputs_of(question: Question, setup: Setup) -> dict[str, str]:
    """Digests of all inputs by what they are called: the space, the supernet, its members, the predictor, tables, data."""
    space = setup.space
    found = {"space": _digest([space.name, repr(space.genes)])}
    if setup.supernet is not None:
        found["supernet"] = setup.supernet.weights.digest
    if setup.members is not None and question.predictor is None:
        found["measured members"] = _members_digest(setup.members)
    if question.predictor is not None:
        found["predictor"] = file_digest(zoo.predictor_file(question.predictor))
    for device in setup.devices:
        if device.table is not None:
            found[f"latency table of {device.name}"] = table_digest(device.table)
    return found


def table_digest(table: LatencyTable) -> str:
    """What tells tables apart: whatever a price depends on."""
    rows = sorted([resolution, [str(part) for part in shape], row.ms, row.source] for (resolution, shape), row in table.rows.items())
    return _digest([asdict(table.key), asdict(table.correction), rows])


def _members_digest(members: Members) -> str:
    sha = hashlib.sha256(np.ascontiguousarray(members.codes).tobytes())
    sha.update(np.ascontiguousarray(members.top1("validation")).tobytes())
    return sha.hexdigest()[:DIGITS]


def _digest(content: Any) -> str:
    return hashlib.sha256(json.dumps(content).encode()).hexdigest()[:DIGITS]


def differences(then: Mapping[str, str], now: Mapping[str, str]) -> list[str]:
    """One sentence for each input that is not what it was."""
    changed = [f"the {name} has another digest than in the run" for name in then if name in now and now[name] != then[name]]
    gone = [f"the run rests on a {name}, and this search does not" for name in then if name not in now]
    return changed + gone + [f"this search rests on a {name}, and the run does not" for name in now if name not in then]


def pinned(question: Question) -> Question:
    """The question with absolute paths, so that it means the same from any folder; names stay names."""

    def fixed(name: str | None, names: tuple[str, ...]) -> str | None:
        return str(Path(name).absolute()) if name is not None and name not in names and Path(name).exists() else name

    tables = (*zoo.table_names(), *(path.path.stem for path in zoo.table_files()), *zoo.MEASURED_HERE)
    return replace(
        question,
        target=fixed(question.target, tables),
        also=tuple(DeviceBudget(target=str(fixed(d.target, tables)), latency_ms=d.latency_ms) for d in question.also),
        space=fixed(question.space, tuple(DESIGNS)),
        supernet=fixed(question.supernet, zoo.supernet_names()),
        predictor=fixed(question.predictor, zoo.predictor_names()),
    )
