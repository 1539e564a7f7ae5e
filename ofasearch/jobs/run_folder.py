"""The folder of one training run: what was asked, how far it came, and the checkpoints to go on from."""

from __future__ import annotations

import io
import json
import math
import zipfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ofasearch.errors import FormatError, MismatchError, NotFoundError, TrainingError, UsageError
from ofasearch.records import append_line, forget_unfinished, read_json, write_atomic, write_json
from ofasearch.supernet.torchfile import load_plain

RUN, LOG, NEWEST, PREVIOUS, WEIGHTS = "run.json", "log.jsonl", "checkpoint.pt", "checkpoint.previous.pt", "supernet.safetensors"
FRESH = "checkpoint.new.pt"  # until it takes the place of the newest


@dataclass(frozen=True, slots=True)
class RunFolder:
    """`run.json` (the request), `log.jsonl` (a line per epoch), the two newest checkpoints, at the end the weights."""

    path: Path

    def open(self, card: dict[str, Any], *, resume: bool) -> tuple[dict[str, Any] | None, str | None]:
        """Start or continue the run that `card` describes: the state to go on from, and a note where it is an older one.

        Raises UsageError (a run is there and `resume` was not said), MismatchError (its settings differ),
        TrainingError (all checkpoints are damaged), WriteError.
        """
        # A link to nothing is a lost checkpoint, not a new run.
        present = any((self.path / name).exists() or (self.path / name).is_symlink() for name in (NEWEST, PREVIOUS))
        if present and not resume:
            raise UsageError(f"{self.path} must be a new folder, but holds a run; add --resume to continue it")
        for name in (RUN, LOG, NEWEST, FRESH, WEIGHTS):
            forget_unfinished(self.path / name)
        (self.path / FRESH).unlink(missing_ok=True)
        if not present:
            write_json(self.path / RUN, card)
            self._forget_lines_after(0)
            return None, None
        card, known = json.loads(json.dumps(card)), read_json(self.path / RUN)  # JSON knows no tuples
        if known != card:
            changed = [key for key in card if not isinstance(known, dict) or known.get(key) != card[key]]
            raise MismatchError(
                f"a resumed run must keep its settings, but {', '.join(changed) or 'some'} changed; start a new folder instead"
            )
        state, note = newest_checkpoint(self.path)
        if note is not None:  # so that the next save does not put the damaged one in the place of the good one
            (self.path / PREVIOUS).replace(self.path / NEWEST)
        return state, note

    def continue_log(self, step: int) -> None:
        """Drop log lines of steps that the checkpoint does not hold: they are about to be done and logged again."""
        self._forget_lines_after(step)

    def save(self, state: dict[str, Any]) -> None:
        """Write a checkpoint; the one before is kept, in case this one does not survive.

        Raises WriteError; the checkpoints that are there stay as they were.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        newest = self.path / NEWEST
        write_atomic(self.path / FRESH, buffer.getvalue())
        if newest.exists():
            newest.replace(self.path / PREVIOUS)
        (self.path / FRESH).replace(newest)

    def log(self, line: dict[str, Any]) -> None:
        """Append one line."""
        append_line(self.path / LOG, line)

    def _forget_lines_after(self, step: int) -> None:
        log = self.path / LOG
        if log.exists():
            lines = [line for line in log.read_text(encoding="utf-8").splitlines() if _step_of(line) <= step]
            write_atomic(log, "".join(f"{line}\n" for line in lines))


def _step_of(line: str) -> float:
    try:
        return float(json.loads(line)["step"])
    except (ValueError, KeyError, TypeError):
        return math.inf  # torn by a kill


def newest_checkpoint(folder: Path) -> tuple[dict[str, Any], str | None]:
    """The newest checkpoint of a run that can be read, and a note where it is not the newest of all.

    Raises TrainingError when none can be read.
    """
    try:
        return load_checkpoint(folder / NEWEST), None
    except (TrainingError, NotFoundError) as error:
        if not (folder / PREVIOUS).is_file():
            raise
        state = load_checkpoint(folder / PREVIOUS)
        return state, f"the newest checkpoint cannot be read, so the run goes on from the one before it ({error})"


def load_checkpoint(path: Path) -> dict[str, Any]:
    """Read a training checkpoint without running code from it; every byte is checked against its checksum.

    Raises TrainingError when it is damaged, NotFoundError when there is none.
    """
    try:
        state = load_plain(path, "a checkpoint of ofasearch train")
        with zipfile.ZipFile(path) as archive:
            if archive.testzip() is not None:  # torch itself does not look at checksums
                raise FormatError(f"{path} must be a checkpoint of ofasearch train, but its checksums are wrong: it is damaged")
    except (FormatError, zipfile.BadZipFile, OSError) as error:
        raise TrainingError(str(error)) from error
    return state


__all__ = ["WEIGHTS", "RunFolder", "load_checkpoint", "newest_checkpoint"]
