"""Every measured network is remembered per machine, runtime, precision, batch and threads: nothing is timed twice.

One folder per fingerprint under the cache, one JSON line per measurement, appended as it comes and never rewritten, so
that several processes may share it and a kill loses only what was being measured. Networks are named by their layers,
input size included, whatever space or file they come from.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from ofasearch.errors import MismatchError, WriteError
from ofasearch.latency.stopwatch import Timing
from ofasearch.latency.table import MS_LIMIT, TableKey
from ofasearch.records import append_line, cache_dir, file_lock, read_json, write_json
from ofasearch.space.core import Blueprint

NETS, LEVELS, FINGERPRINT = "nets.jsonl", "levels.jsonl", "fingerprint.json"


@dataclass(frozen=True, slots=True)
class Measured:
    """The timing of one network and, where the runtime told, the shares of its layers."""

    timing: Timing
    shares: tuple[float, ...] = ()


def measured_of(record: Mapping[str, Any]) -> Measured | None:
    """What one line of measurements says; None where it lacks a number or has one that no measurement can be."""
    numbers: list[Any] = [record.get(field) for field in Timing.__dataclass_fields__]
    shares = record.get("shares", [])
    if not (isinstance(shares, list) and all(map(_is_number, (*numbers, *shares)))):
        return None
    timing = Timing(*numbers)
    if not (timing.p50 > 0 and isinstance(timing.n, int) and (not shares or abs(sum(shares) - 1) < 1e-3)):
        return None
    return Measured(timing, tuple(map(float, shares)))


def network_name(blueprint: Blueprint) -> str:
    """What a network is remembered by: its input size and a digest of its layers."""
    digest = hashlib.sha256(json.dumps([spec.shape for spec in blueprint]).encode()).hexdigest()[:16]
    return f"r{blueprint[0].hw_in}-{len(blueprint)}-{digest}"


class Memory:
    """Measurements of one fingerprint on disk."""

    def __init__(self, key: TableKey):
        slug = hashlib.sha256(json.dumps(asdict(key)).encode()).hexdigest()[:16]
        self.folder = cache_dir() / "latency" / slug
        self.failure: str | None = None  # why measurements could not be remembered
        self._key = key
        self._check()

    def _check(self) -> None:
        """Raise MismatchError where the folder was made by another machine or runtime (a copied cache)."""
        path = self.folder / FINGERPRINT
        if not path.is_file():
            return
        made = read_json(path)
        if made != asdict(self._key):
            different = [name for name, value in asdict(self._key).items() if not isinstance(made, dict) or made.get(name) != value]
            raise MismatchError(
                f"{self.folder} must hold measurements of {self._key.device} with {self._key.runtime}, but was made with another "
                f"{' and '.join(different)}; delete that folder to measure anew"
            )

    def networks(self) -> dict[str, Measured]:
        """What was measured, by `network_name`; torn or foreign lines are skipped."""
        found = {}
        for record in self._lines(NETS):
            name, measured = record.get("name"), measured_of(record)
            if isinstance(name, str) and measured is not None:
                found[name] = measured
        return found

    def level_ms(self, reference: str) -> float | None:
        """What the reference network of that name took when it was first used."""
        for record in self._lines(LEVELS):
            if record.get("name") == reference and _is_number(record.get("ms")) and record["ms"] > 0:
                return float(record["ms"])
        return None

    def add(self, name: str, measured: Measured) -> None:
        """Remember one network; where the folder cannot be written, go on and keep the reason in `failure`."""
        shares = {"shares": measured.shares} if measured.shares else {}
        self._append(NETS, {"name": name, **asdict(measured.timing), **shares})

    def set_level(self, reference: str, ms: float) -> None:
        """Remember the level of a reference; the first one counts."""
        self._append(LEVELS, {"name": reference, "ms": ms})

    def forget(self) -> None:
        """Forget all that was measured under this fingerprint."""
        for name in (NETS, LEVELS):
            try:
                (self.folder / name).unlink(missing_ok=True)
            except NotADirectoryError:  # nor can anything be there
                continue
            except OSError as error:
                raise WriteError(f"{self.folder / name} must be removable, but is not ({error.strerror})") from error

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the machine for measuring: other processes that want to measure wait their turn."""
        with file_lock(cache_dir() / "latency" / "measuring"):
            yield

    def _append(self, file: str, record: Mapping[str, Any]) -> None:
        try:
            if not (self.folder / FINGERPRINT).exists():
                write_json(self.folder / FINGERPRINT, asdict(self._key))
            append_line(self.folder / file, record)
        except WriteError as error:
            self.failure = str(error)

    def _lines(self, file: str) -> Iterator[dict[str, Any]]:
        try:
            lines = (self.folder / file).read_text(encoding="utf-8", errors="replace").splitlines()
        except OSError:
            return
        for line in lines:
            try:
                record = json.loads(line)
            except (ValueError, RecursionError):
                continue
            if isinstance(record, dict):
                yield record


def _is_number(value: object) -> bool:
    """Whether it is a number that a measurement can be; NaN and infinities are none."""
    return type(value) in (int, float) and 0 <= value <= MS_LIMIT  # type: ignore[operator]
