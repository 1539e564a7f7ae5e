"""The main job: the best subnet within the budgets, re-measured where the target is this machine, proved and exported."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from ofasearch import zoo
from ofasearch.data import load_data
from ofasearch.jobs.choose import Candidate, Outcome, choose, clock_of
from ofasearch.jobs.exam import limited
from ofasearch.jobs.inputs import inputs_of
from ofasearch.jobs.measuring import LatencyProgress
from ofasearch.jobs.search_folder import RUN, SearchFolder
from ofasearch.jobs.search_record import found_of, record_of
from ofasearch.jobs.searching import FindProgress, FindRequest
from ofasearch.jobs.setup import Setup, prepare
from ofasearch.jobs.winner import Delivery, check_data, deliver_winner
from ofasearch.records import append_line, check_writable, provenance, write_json


@dataclass(frozen=True, slots=True, kw_only=True)
class FindResult:
    """The answer. `record` is the JSON answer; paths in it are absolute."""

    arch_id: str
    record: dict[str, Any]
    candidates: tuple[Candidate, ...]
    notes: tuple[str, ...]
    folder: Path | None


def find(request: FindRequest) -> Iterator[FindProgress | FindResult]:
    """Search, re-measure, re-evaluate, prove, export; progress on the way and the result at last.

    Raises the errors of `prepare`; InfeasibleError also when no candidate keeps the latency budget once it is measured;
    VerificationError when the exported file does not compute what the network does.
    """
    if request.out is not None:
        check_writable(request.out / RUN)  # said now, not after long work
    data = limited(load_data(request.data), request.images, request.calibration_images) if request.data is not None else None
    for fetched in zoo.fetch_supernet(request.question.supernet):
        yield FindProgress(phase=f"fetching {fetched.name}", done=fetched.done, total=fetched.total or 0)
    setup: Setup | None = None
    for event in prepare(request.question, data):
        if isinstance(event, LatencyProgress):
            yield FindProgress(
                phase=f"measuring this machine: {event.what}", done=event.done, total=event.total, eta_seconds=event.eta_seconds
            )
        else:
            setup = event
    assert setup is not None  # prepare ends with it or raises
    check_data(setup, data)
    request = replace(request, question=setup.question).settled(setup.problem)
    path = request.out or Path("runs") / f"find-{setup.space.name}"
    folder = SearchFolder(path, record_of(request, inputs_of(request.question, setup)), request.resume)
    folder.open()
    outcome = yield from choose(request, setup, clock_of(request.question, setup.space), folder)
    delivered = yield from deliver_winner(request, setup, outcome, data, path)
    result = _finished(request, delivered, outcome, path)
    folder.finish(setup, found_of(setup, outcome))
    yield result


def _finished(request: FindRequest, delivered: Delivery, outcome: Outcome, folder: Path) -> FindResult:
    """Write the answer, last of all."""
    record = delivered.record
    write_json(folder / "result.json", record)
    append_line(folder / "log.jsonl", provenance(event="find", question=asdict(request.question), seed=request.seed, result=record))
    return FindResult(
        arch_id=outcome.candidates[0].arch_id,
        record=record,
        candidates=tuple(outcome.candidates),
        notes=tuple(record["notes"]),
        folder=folder.absolute(),
    )


__all__ = ["Candidate", "FindProgress", "FindRequest", "FindResult", "find"]
