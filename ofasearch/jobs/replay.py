"""Repeat a search from its folder, without measuring anything, and say whether it gives the same answer."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ofasearch import zoo
from ofasearch.errors import InfeasibleError, MismatchError, UsageError
from ofasearch.jobs.choose import Candidate, Clock, Outcome, Timed, choose
from ofasearch.jobs.inputs import differences, inputs_of
from ofasearch.jobs.search_folder import FinishedSearch, read_folder
from ofasearch.jobs.searching import FindProgress
from ofasearch.jobs.setup import Setup, prepare
from ofasearch.latency.stopwatch import Timing
from ofasearch.records import provenance
from ofasearch.space.core import Codes, Space

TOLERANCE = 1e-6  # relative; predictions are 32-bit sums, and another machine adds them up in another order


@dataclass(frozen=True, slots=True, kw_only=True)
class ReplayResult:
    """Whether the answer is the same, and if not, what differs, a sentence each. `record` is the JSON answer."""

    same: bool
    differences: tuple[str, ...]
    record: dict[str, Any]

    def raise_differences(self) -> None:
        """Raise MismatchError where the answer is another one: after the record was shown."""
        if not self.same:
            more = f" (and {len(self.differences) - 1} more)" if len(self.differences) > 1 else ""
            raise MismatchError(f"a replay must give the answer of its run, but {self.differences[0]}{more}")


def replay(run: Path) -> Iterator[FindProgress | ReplayResult]:
    """Search again what the run's folder asks, over the same inputs, and choose by the measurements that are recorded there.

    Where an input is not what it was, that is the difference, and nothing is searched. Raises NotFoundError, FormatError
    (no folder of a finished search, or a damaged one), and the errors of `prepare`.
    """
    then = read_folder(run)
    request = replace(then.record.request, out=None)
    for fetched in zoo.fetch_supernet(request.question.supernet):
        yield FindProgress(phase=f"fetching {fetched.name}", done=fetched.done, total=fetched.total or 0)
    setup = _prepared(run, then)
    record: dict[str, Any] = {"run": str(run.absolute()), "arch_id": then.found.candidates[0].arch_id}
    found = differences(then.record.inputs, inputs_of(request.question, setup))
    if not found:
        try:
            outcome = yield from choose(request, setup, _clock(setup.space, then.found.timed))
        except (InfeasibleError, MismatchError) as error:  # a network that was not measured then, or none that keeps the budgets
            found = [f"the search does not come to the same networks: {error}"]
        else:
            found = _changes(then, outcome)
            tally = outcome.tally
            record |= {"replayed_arch_id": outcome.candidates[0].arch_id, "evaluations": tally.evaluations, "search_seconds": tally.seconds}
    if found:
        found += _other_versions(then.record.versions)
    record |= {"same": not found, "differences": found, "candidates": len(then.found.candidates)}
    yield ReplayResult(same=not found, differences=tuple(found), record=record)


def _prepared(run: Path, then: FinishedSearch) -> Setup:
    """The run's question made ready again, nothing measured."""
    try:
        return next(event for event in prepare(then.record.request.question, recorded=then.recorded) if isinstance(event, Setup))
    except (UsageError, InfeasibleError) as error:  # inputs changed, or the record is none of ours: the command itself is right
        raise MismatchError(f"{run} must hold a search that can be repeated, but it cannot be prepared: {error}") from error


def _clock(space: Space, timed: Mapping[str, Timing]) -> Clock:
    """A clock that knows what was timed then, and nothing else."""

    def clock(rows: Codes) -> Timed:
        names = [space.arch(row).id for row in rows]
        for name in names:
            if name not in timed:
                raise MismatchError(f"every candidate that is compared must have been timed in the run, but {name} was not")
        return Timed([timed[name] for name in names])

    return clock


def _changes(then: FinishedSearch, now: Outcome) -> list[str]:
    """How the answer differs from the recorded one."""
    found, changes = then.found, []
    before, after = (list(candidates) for candidates in (found.candidates, now.candidates))
    if before[0].arch_id != after[0].arch_id:
        changes.append(f"the winner was {before[0].arch_id}, and is now {after[0].arch_id}")
    if not _alike(found.limits_ms, now.tally.limits_ms):
        limits = " and ".join(", ".join(f"{ms:.4g} ms" for ms in part) for part in (found.limits_ms, now.tally.limits_ms))
        changes.append(f"the latency limits that were searched differ: {limits}")
    if [c.arch_id for c in before] != [c.arch_id for c in after]:
        moved = next(
            (i for i, (a, b) in enumerate(zip(before, after, strict=False)) if a.arch_id != b.arch_id), min(len(before), len(after))
        )
        changes.append(f"the candidates differ from number {moved + 1} on ({len(before)} then, {len(after)} now)")
    else:
        changes += [change for a, b in zip(before, after, strict=True) if (change := _change(a, b))]
    if found.evaluations != now.tally.evaluations:
        changes.append(f"{found.evaluations:,} networks were searched then, and {now.tally.evaluations:,} now")
    return changes


def _change(before: Candidate, after: Candidate) -> str | None:
    """What differs of one candidate."""
    for what, a, b in (
        ("objective", [before.objective], [after.objective]),
        ("top-1", [before.predicted_top1], [after.predicted_top1]),
        ("latency", before.latencies_ms, after.latencies_ms),
        ("validation top-1", [before.validation_top1 or 0.0], [after.validation_top1 or 0.0]),
    ):
        if not _alike(a, b):
            return f"the {what} of {before.arch_id} was {', '.join(f'{v:.6g}' for v in a)}, and is now {', '.join(f'{v:.6g}' for v in b)}"
    return None


def _alike(a: Any, b: Any) -> bool:
    return len(a) == len(b) and all(abs(x - y) <= TOLERANCE * max(abs(x), abs(y)) for x, y in zip(a, b, strict=True))


def _other_versions(then: Mapping[str, str]) -> list[str]:
    """The packages that were others then: a reason for differences."""
    now = provenance()["versions"]
    other = [f"{name} {version} (now {now.get(name, 'none')})" for name, version in then.items() if now.get(name) != version]
    return [f"the run was made with {', '.join(other)}"] if other else []
