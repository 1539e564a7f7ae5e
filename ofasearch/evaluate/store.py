"""What was evaluated once is remembered: one SQLite file that several processes may read and write together.

A key says all that an accuracy depends on: the weights, the network, the split, its images (with labels and preprocessing)
and what batch norm was calibrated on. Predicted classes are kept beside the accuracy, because negative flips need them.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self, TypeVar

import numpy as np
import numpy.typing as npt

from ofasearch.records import cache_dir, file_lock

FILE = "evaluations.sqlite"
VERSION = 1  # of the table; it changes with what a key or a row means
PATIENCE_SECONDS = 60.0  # for another process to finish its write
PREDICTIONS_LIMIT = 60_000  # images; the predictions of more take too much room
CLASSES_LIMIT = 2**16  # and of more classes, which 16 bits do not number
_COLUMNS = "weights, arch, split, images, calibration"
_DAMAGE = (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB, sqlite3.SQLITE_ERROR, sqlite3.SQLITE_MISMATCH)  # foreign tables among it

T = TypeVar("T")
Classes = npt.NDArray[np.integer[Any]]


@dataclass(frozen=True, slots=True)
class Key:
    """All that an accuracy depends on; the network is spelled as in the supernet's own space."""

    weights: str  # digest of the supernet
    arch: str
    split: str
    images: str  # digest of images, labels and preprocessing
    calibration: str  # which images set batch norm, and in batches of how many


@dataclass(frozen=True, slots=True)
class Score:
    """Top-1 (a fraction) over `n` images; `predicted` (n,) where it was kept."""

    top1: float
    n: int
    predicted: Classes | None = None


class Store:
    """Remembered scores. It costs time when it cannot be read or written, never a run: `notes` then says why."""

    def __init__(self, path: Path | None = None):
        self.path = path or cache_dir() / FILE
        self.notes: list[str] = []
        self._database: sqlite3.Connection | None = None
        self._use(self._open)

    def get(self, key: Key) -> Score | None:
        """The remembered score, or None."""
        found = self._use(lambda: self._select(key))
        return _score(found) if found is not None else None

    def put(self, key: Key, score: Score) -> None:
        """Remember a score, at once and on disk; one that was there is replaced."""
        row = (key.weights, key.arch, key.split, key.images, key.calibration, score.top1, score.n, _packed(score))
        self._use(lambda: self._insert(row))

    def close(self) -> None:
        """Release the file; nothing is left to write."""
        if self._database is not None:
            self._database.close()
            self._database = None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    # -- the database ------------------------------------------------------------------------------------------

    def _use(self, action: Callable[[], T]) -> T | None:
        """What `action` gives; on a damaged file once more on a new one, and None where there is no using it."""
        try:
            return action()
        except (sqlite3.Error, OSError) as error:
            problem = error
        if _damaged(problem):
            try:
                self._begin_anew()
                return action()
            except (sqlite3.Error, OSError) as error:
                problem = error
        self._note(f"evaluations are not remembered, because {self.path} cannot be used ({problem}); set OFASEARCH_CACHE to another folder")
        return None

    def _open(self) -> None:
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        self._database = sqlite3.connect(self.path, timeout=PATIENCE_SECONDS, isolation_level=None)
        version = self._database.execute("PRAGMA user_version").fetchone()[0]
        if version not in (0, VERSION):
            raise sqlite3.IntegrityError(f"its version is {version}")
        self._database.execute(
            f"CREATE TABLE IF NOT EXISTS scores (weights TEXT, arch TEXT, split TEXT, images TEXT, calibration TEXT, "
            f"top1 REAL, n INTEGER, predicted BLOB, PRIMARY KEY ({_COLUMNS}))"
        )
        if version == 0:
            self._database.execute(f"PRAGMA user_version = {VERSION}")
        self._database.execute(f"SELECT {_COLUMNS}, top1, n, predicted FROM scores LIMIT 0")

    def _select(self, key: Key) -> tuple[Any, ...] | None:
        if self._database is None:
            return None
        query = "SELECT top1, n, predicted FROM scores WHERE weights = ? AND arch = ? AND split = ? AND images = ? AND calibration = ?"
        row: tuple[Any, ...] | None = self._database.execute(
            query, (key.weights, key.arch, key.split, key.images, key.calibration)
        ).fetchone()
        return row

    def _insert(self, row: tuple[Any, ...]) -> None:
        if self._database is not None:
            self._database.execute(f"INSERT OR REPLACE INTO scores ({_COLUMNS}, top1, n, predicted) VALUES (?, ?, ?, ?, ?, ?, ?, ?)", row)

    def _begin_anew(self) -> None:
        """Rename a damaged or foreign file and open a new one; of several processes that find it, one renames."""
        self.close()
        with file_lock(self.path):
            try:
                self._open()
                self._check()
                return  # another process was here before
            except sqlite3.Error as error:
                self.close()
                if not _damaged(error):
                    raise
            aside = f"{self.path.name}.damaged-{time.strftime('%Y%m%d-%H%M%S')}-{os.getpid()}"
            for suffix in ("", "-journal", "-wal", "-shm"):
                part = self.path.with_name(self.path.name + suffix)
                if part.exists():
                    part.rename(self.path.with_name(aside + suffix))
            self._open()
            self._note(f"remembered evaluations in {self.path} were damaged: they were set aside as {aside}, and a new file was begun")

    def _check(self) -> None:
        """Raise unless the whole file is sound."""
        assert self._database is not None
        answer = self._database.execute("PRAGMA quick_check(1)").fetchone()[0]
        if answer != "ok":
            raise sqlite3.IntegrityError(str(answer))

    def _note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _damaged(error: sqlite3.Error | OSError) -> bool:
    """Whether the file is at fault, not its folder, the disk or another process."""
    if isinstance(error, OSError):
        return False
    code = getattr(error, "sqlite_errorcode", None)
    return isinstance(error, sqlite3.IntegrityError) or (code is not None and code & 0xFF in _DAMAGE)


def _packed(score: Score) -> bytes | None:
    """Predictions as little-endian 16-bit numbers, where they are few enough to keep."""
    if score.predicted is None or not 0 < len(score.predicted) <= PREDICTIONS_LIMIT or score.predicted.max() >= CLASSES_LIMIT:
        return None
    return score.predicted.astype("<u2").tobytes()


def _score(row: tuple[Any, ...]) -> Score | None:
    """The score of a row; None where the row is none (it is then evaluated again)."""
    top1, n, packed = row
    if not (isinstance(top1, float) and isinstance(n, int) and 0 <= top1 <= 1 and n > 0):
        return None
    if packed is None:
        return Score(top1, n)
    if not isinstance(packed, bytes) or len(packed) != 2 * n:
        return None
    return Score(top1, n, np.frombuffer(packed, dtype="<u2").astype(np.uint16))
