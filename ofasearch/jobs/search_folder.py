"""The folder of one search: what was asked and what it rests on, how far it came, and at last all that repeats it."""

from __future__ import annotations

import json
import time
from dataclasses import dataclass, replace
from pathlib import Path

from ofasearch.deploy.runtime import TARGETS
from ofasearch.errors import FormatError, MismatchError, NotFoundError, UsageError
from ofasearch.jobs.inputs import differences
from ofasearch.jobs.search_record import FORMAT, Found, SearchRecord, read_record
from ofasearch.jobs.setup import Recorded, Setup
from ofasearch.latency.table import LatencyTable, load_table, save_table
from ofasearch.records import check_writable, forget_unfinished, read_json, write_json
from ofasearch.search.problem import Generation
from ofasearch.search.state import State, load_state, save_state

RUN = "run.json"
SAVE_SECONDS = 1.0  # between two states at least


@dataclass(slots=True)
class SearchFolder:
    """`run.json`, `search-<n>.state` while a search is under way, `table-<target>.csv` where this machine was measured."""

    path: Path
    record: SearchRecord
    resume: bool
    _saved: float = 0.0
    _begun: bool = False  # whether something was written
    _goes_on: bool = False  # whether the states that lie there are those of this search

    def open(self) -> None:
        """See to it that the folder can take this run; nothing is written yet.

        Raises UsageError (another kind of run lies there), MismatchError (`resume` of another question), FormatError, WriteError.
        """
        file, self._saved = self.path / RUN, time.monotonic()
        check_writable(file)
        if not file.exists():
            return
        known = read_json(file)
        if not isinstance(known, dict) or known.get("format") != FORMAT:
            raise UsageError(f"{self.path} must be a new folder or that of an earlier search, but holds another run; give another --out")
        if self.resume:
            self._check_same(read_record(file))
            self._goes_on = True

    def _check_same(self, known: SearchRecord) -> None:
        then, now = ({**r.asked(), **r.asked()["question"]} for r in (known, self.record))
        plain = json.loads(json.dumps([then, now]))  # JSON knows no tuples
        changed = [key for key in now if key != "question" and plain[0].get(key) != plain[1][key]]
        if changed:
            raise MismatchError(
                f"a resumed search must keep its question, but {', '.join(changed)} changed; "
                "repeat the former question, or start a new folder"
            )
        if other := differences(known.inputs, self.record.inputs):
            raise MismatchError(f"a resumed search must keep what it rests on, but {other[0]}; start a new folder instead")

    # -- as a keeper of searches ---------------------------------------------------------------------------------

    def load(self, number: int) -> State | None:
        """Where the search goes on from; None where it begins. Raises FormatError for a damaged state."""
        file = self._state(number)
        return load_state(file) if self._goes_on and file.is_file() else None

    def save(self, number: int, generation: Generation) -> None:
        """Write how far the search came, if the last time is long enough ago."""
        if time.monotonic() - self._saved < SAVE_SECONDS:
            return
        if not self._begun:  # states belong to the question beside them
            self._forget_states(keep=self._goes_on)
            write_json(self.path / RUN, self.record.to_json())
            self._begun = True
        save_state(self._state(number), generation.state)
        self._saved = time.monotonic()

    def finish(self, setup: Setup, found: Found) -> None:
        """Write all that repeats the search, and forget how far it came."""
        self.record = replace(self.record, found=found)
        measured = {device.target: device.table for device in setup.devices if device.here and device.table is not None}
        for target in TARGETS:
            file = table_file(self.path, target)
            if target in measured:
                save_table(file, measured[target])
            else:  # of an earlier search in this folder
                for left in (file, file.with_suffix(".json")):
                    left.unlink(missing_ok=True)
        write_json(self.path / RUN, self.record.to_json())
        self._forget_states(keep=False)

    def _state(self, number: int) -> Path:
        return self.path / f"search-{number}.state"

    def _forget_states(self, *, keep: bool) -> None:
        forget_unfinished(self.path / RUN)
        for file in self.path.glob("search-*.state"):
            forget_unfinished(file)
            if not keep:
                file.unlink()


def table_file(folder: Path, target: str) -> Path:
    """Where a table of this machine lies in the folder of a search."""
    return folder / f"table-{target}.csv"


@dataclass(frozen=True, slots=True)
class FinishedSearch:
    """A folder read back: the record and what was measured."""

    record: SearchRecord
    found: Found
    recorded: Recorded


def read_folder(path: Path) -> FinishedSearch:
    """Read the folder of a finished search.

    Raises NotFoundError (also where it never came to its end), FormatError (damaged or foreign).
    """
    if not (path / RUN).is_file():
        raise NotFoundError(f"{path} must be the folder of a search, but holds no {RUN}")
    record = read_record(path / RUN)
    if record.found is None:
        raise NotFoundError(
            f"{path} must hold a finished search, but this one was interrupted; go on with `ofasearch find ... --resume --out {path}`"
        )
    here, tables = record.request.question.here, dict[str, LatencyTable]()
    if here is not None and record.found.latencies_ms is None:
        file = table_file(path, here)
        if not file.is_file():
            raise FormatError(f"{path} must hold the latency table of {here} that the search went by, but {file.name} is missing")
        tables[here] = load_table(file)
    return FinishedSearch(record, record.found, Recorded(tables=tables, latencies_ms=record.found.latencies_ms, scores=record.found.scores))
