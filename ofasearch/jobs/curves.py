"""`ofasearch train --show`: read the folders of training runs, finished or under way, and draw them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ofasearch.errors import FormatError, NotFoundError, OfaSearchError, UsageError, WriteError
from ofasearch.records import JSON_LIMIT, parse_json, read_json, write_atomic
from ofasearch.report.curves import MARKS, Drawing, Run, draw_comparison, draw_run, is_line, to_png

RUN, LOG = "run.json", "log.jsonl"  # as in run_folder, which needs torch
CURVES, COMPARISON = "curves.png", "compare.png"


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """What was read and drawn; `png` is None where the picture could not be written, and a note says why."""

    folders: tuple[Path, ...]
    runs: tuple[Run, ...]
    drawing: Drawing
    png: Path | None
    notes: tuple[str, ...]

    @property
    def record(self) -> dict[str, Any]:
        """As JSON: one run, or all that were compared; what there is not is absent."""
        parts = [{"run": str(folder), "epochs": list(run.lines)} for folder, run in zip(self.folders, self.runs, strict=True)]
        key = "curves_png" if len(parts) == 1 else "compare_png"
        picture = {key: str(self.png)} if self.png is not None else {}
        notes = {"notes": list(self.notes)} if self.notes else {}
        if len(parts) > 1:
            return {"runs": parts, **picture, **notes}
        return {"run": parts[0]["run"], **picture, "epochs": parts[0]["epochs"], **notes}


def show_runs(folders: Sequence[Path]) -> Shown:
    """Draw one run into its folder, or compare several in the first one's folder; nothing is trained.

    Raises UsageError (too many), NotFoundError (no run folder), FormatError (a log without lines).
    """
    if not 1 <= len(folders) <= len(MARKS):
        raise UsageError(f"--show must be given 1 to {len(MARKS)} runs, but got {len(folders)}")
    notes: list[str] = []
    runs = tuple(read_run(folder, name, notes) for folder, name in zip(folders, _names(folders), strict=True))
    drawing = draw_run(runs[0]) if len(runs) == 1 else draw_comparison(runs)
    png = folders[0].absolute() / (CURVES if len(runs) == 1 else COMPARISON)
    written = _write(png, to_png(drawing), notes)
    return Shown(
        folders=tuple(folder.absolute() for folder in folders), runs=runs, drawing=drawing, png=png if written else None, notes=tuple(notes)
    )


def _write(png: Path, content: bytes, notes: list[str]) -> bool:
    """Write the picture, or note that it could not be."""
    try:
        write_atomic(png, content)
    except WriteError as error:
        reason = getattr(error.__cause__, "strerror", None) or "the system refuses"
        notes.append(f"the curves are only printed, because {png} cannot be written ({reason})")
        return False
    return True


def read_run(folder: Path, name: str, notes: list[str]) -> Run:
    """The run of a folder; what could not be read and can be done without is noted.

    Raises NotFoundError (no folder, no log), FormatError (no line in it).
    """
    if not folder.is_dir():
        found = "it is a file" if folder.exists() else "there is none"
        raise NotFoundError(f"{folder} must be a run folder of ofasearch train, but {found}; give the folder that was --out")
    lines = _lines(folder / LOG, notes)
    try:
        card = read_json(folder / RUN)
    except OfaSearchError as error:
        notes.append(f"what was asked of the run is not known: {error}")
        card = {}
    return Run(name=name, card=card if isinstance(card, dict) else {}, lines=lines)


def _names(folders: Sequence[Path]) -> list[str]:
    """What the runs are called: the folders' own names, or their paths where those are equal."""
    names = [folder.resolve().name or str(folder) for folder in folders]
    return [name if n == 1 else str(folder) for name, folder, n in zip(names, folders, (Counter(names)[n] for n in names), strict=True)]


def _lines(log: Path, notes: list[str]) -> tuple[dict[str, Any], ...]:
    """The lines of a log whose epochs rise; torn and foreign ones are skipped and counted in a note."""
    if not log.is_file():
        raise NotFoundError(f"{log} must be the log of ofasearch train, but there is none; the first line comes with the end of an epoch")
    if log.stat().st_size > JSON_LIMIT:
        raise FormatError(f"{log} must be at most {JSON_LIMIT >> 20} MiB, but it is larger")
    try:
        written = [line for line in log.read_bytes().split(b"\n") if line.strip()]
    except OSError as error:
        raise FormatError(f"{log} must be readable, but it is not: {error.strerror or error}") from error
    found: list[dict[str, Any]] = []
    for line in written:
        record = _record(line)
        if is_line(record) and (not found or record["epoch"] > found[-1]["epoch"]):
            found.append(record)
    if not found:
        seen = f"none of its {len(written)} lines is one" if written else "it is empty"
        raise FormatError(f"{log} must hold lines of ofasearch train, but {seen}; the first line comes with the end of an epoch")
    if len(found) < len(written):
        notes.append(f"{log}: {len(written) - len(found)} of {len(written)} lines skipped, torn, out of order or not of ofasearch train")
    return tuple(found)


def _record(line: bytes) -> Any:
    try:
        return parse_json(line.decode())
    except ValueError:
        return None


__all__ = ["COMPARISON", "CURVES", "Shown", "read_run", "show_runs"]
