"""What `run.json` says of a search: what was asked, what it rests on, and at its end what it found and measured.

Everything that is read here comes from outside, and is checked to be of its kind before it is used.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, fields
from pathlib import Path
from typing import Any, TypeVar

from ofasearch.errors import FormatError
from ofasearch.jobs.choose import Candidate, Outcome
from ofasearch.jobs.direct import DirectCost
from ofasearch.jobs.inputs import pinned
from ofasearch.jobs.searching import FindRequest
from ofasearch.jobs.setup import Budgets, DeviceBudget, Question, Setup
from ofasearch.latency.stopwatch import Timing
from ofasearch.records import provenance, read_json

FORMAT = "ofasearch-find-1"
NAMES_LIMIT = 1_000_000  # networks that a run names

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The answer of a finished search, and all measurements that led to it."""

    candidates: tuple[Candidate, ...]  # in the order of the choice, the winner first
    evaluations: int
    limits_ms: tuple[float, ...]  # of this machine's latency that were searched, one after the other
    timed: Mapping[str, Timing]  # by arch id
    scores: Mapping[str, float] | None  # validation top-1 by arch id; None where networks could not be evaluated
    latencies_ms: Mapping[str, float] | None  # by `network_name`; None where tables priced


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchRecord:
    """A run of `find`."""

    request: FindRequest
    inputs: Mapping[str, str]
    found: Found | None = None  # None while it is under way
    versions: Mapping[str, str] = field(default_factory=dict)

    def asked(self) -> dict[str, Any]:
        """What must be the same for the same answer, as plain JSON."""
        asked = asdict(self.request) | {"question": asdict(self.request.question)}
        return {key: value for key, value in asked.items() if key not in ("out", "resume")}

    def to_json(self) -> dict[str, Any]:
        """As it is written."""
        record = provenance(format=FORMAT, asked=self.asked(), inputs=dict(self.inputs))
        return record | ({"found": asdict(self.found)} if self.found is not None else {})


def record_of(request: FindRequest, inputs: Mapping[str, str], found: Found | None = None) -> SearchRecord:
    """The record of a run that a settled request asks for, with the files it names by absolute paths."""
    fixed = {f.name: getattr(request, f.name) for f in fields(request)} | {"question": pinned(request.question)}
    if request.data is not None and Path(request.data).exists():
        fixed["data"] = str(Path(request.data).absolute())
    return SearchRecord(request=FindRequest(**fixed), inputs=inputs, found=found)


def found_of(setup: Setup, outcome: Outcome) -> Found:
    """What is written of a search that came to its end."""
    direct = next((device.latency for device in setup.devices if isinstance(device.latency, DirectCost)), None)
    return Found(
        candidates=tuple(outcome.candidates),
        evaluations=outcome.tally.evaluations,
        limits_ms=tuple(outcome.tally.limits_ms),
        timed=dict(outcome.timed),
        scores=dict(setup.exam.known) if setup.exam is not None else None,
        latencies_ms={name: m.timing.p50 for name, m in direct.known.items()} if direct is not None else None,
    )


# -- reading ---------------------------------------------------------------------------------------------------


def read_record(path: Path) -> SearchRecord:
    """Read the `run.json` of a search.

    Raises NotFoundError, FormatError.
    """
    record = read_json(path)
    if not isinstance(record, dict) or record.get("format") != FORMAT:
        raise FormatError(f"{path} must be the run.json of `ofasearch find`, but it is not (format {FORMAT})")
    try:
        versions = record.get("versions")
        return SearchRecord(
            request=_request(_object(record["asked"])),
            inputs=_mapping(record["inputs"], _text),
            found=_found(_object(record["found"])) if record.get("found") is not None else None,
            versions=_mapping(versions, _text) if versions is not None else {},
        )
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        why = f"it lacks {error}" if isinstance(error, KeyError) else str(error)
        raise FormatError(f"{path} must be the run.json of `ofasearch find`, but it cannot be read: {why}") from error


def _request(asked: dict[str, Any]) -> FindRequest:
    plain: dict[str, Any] = {name: _optional(asked[name], _whole) for name in ("images", "calibration_images")}
    plain |= {name: _whole(asked[name]) for name in ("population", "generations", "seed", "top_k")}
    return FindRequest(
        question=_question(_object(asked["question"])),
        data=_optional(asked["data"], _text),
        algorithm=_text(asked["algorithm"]),
        no_bn=_flag(asked["no_bn"]),
        **plain,
    )


def _question(asked: dict[str, Any]) -> Question:
    budgets = {f.name: _optional(_object(asked["budgets"])[f.name], _number) for f in fields(Budgets)}
    also = tuple(DeviceBudget(target=_text(d["target"]), latency_ms=_number(d["latency_ms"])) for d in map(_object, _list(asked["also"])))
    given = _optional(asked["resolutions"], lambda sizes: tuple(map(_whole, _list(sizes))))
    plain: dict[str, Any] = {name: _optional(asked[name], _text) for name in ("target", "space", "supernet", "predictor")}
    plain |= {name: _text(asked[name]) for name in ("runtime", "precision", "measure", "objective")}
    plain |= {name: _whole(asked[name]) for name in ("batch", "threads")}
    return Question(budgets=Budgets(**budgets), also=also, resolutions=given, **plain)


def _found(found: dict[str, Any]) -> Found:
    candidates = tuple(_candidate(_object(c)) for c in _list(found["candidates"]))
    if not candidates:
        raise ValueError("a finished search has at least one candidate")
    return Found(
        candidates=candidates,
        evaluations=_whole(found["evaluations"]),
        limits_ms=tuple(map(_number, _list(found["limits_ms"]))),
        timed=_mapping(found["timed"], _timing),
        scores=_optional(found["scores"], lambda scores: _mapping(scores, _number)),
        latencies_ms=_optional(found["latencies_ms"], lambda latencies: _mapping(latencies, _number)),
    )


def _candidate(record: dict[str, Any]) -> Candidate:
    return Candidate(
        arch_id=_text(record["arch_id"]),
        objective=_number(record["objective"]),
        predicted_top1=_number(record["predicted_top1"]),
        error_bar=_optional(record["error_bar"], _number),
        latencies_ms=tuple(map(_number, _list(record["latencies_ms"]))),
        measured=_optional(record["measured"], _timing),
        accepted=_optional(record["accepted"], _flag),
        validation_top1=_optional(record["validation_top1"], _number),
    )


def _timing(record: Any) -> Timing:
    values = _object(record)
    numbers = {f.name: _number(values[f.name]) for f in fields(Timing)}
    if min(numbers["p50"], numbers["low"], numbers["high"]) <= 0:
        raise ValueError("a timing must be positive, but is not")
    return Timing(**numbers | {"n": _whole(values["n"])})  # type: ignore[arg-type]


def _text(value: Any) -> str:
    if not isinstance(value, str) or len(value) > 4096 or "\0" in value:
        raise TypeError(f"a name must be a text, but is {_told(value)}")
    return value


def _number(value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise TypeError(f"a number is {_told(value)}")
    return float(value)


def _whole(value: Any) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or abs(value) >= 2**53:
        raise TypeError(f"a whole number is {_told(value)}")
    return value


def _flag(value: Any) -> bool:
    if not isinstance(value, bool):
        raise TypeError(f"a flag is {_told(value)}")
    return value


def _list(value: Any) -> list[Any]:
    if not isinstance(value, list):
        raise TypeError(f"a list is {_told(value)}")
    return value


def _object(value: Any) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise TypeError(f"an object is {_told(value)}")
    return value


def _mapping(value: Any, kind: Callable[[Any], T]) -> dict[str, T]:
    entries = _object(value)
    if len(entries) > NAMES_LIMIT:
        raise ValueError(f"it names more than {NAMES_LIMIT:,} networks")
    return {_text(name): kind(entry) for name, entry in entries.items()}


def _optional(value: Any, kind: Callable[[Any], T]) -> T | None:
    return None if value is None else kind(value)


def _told(value: Any) -> str:
    return repr(value)[:40]
