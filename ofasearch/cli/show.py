"""What people see: progress on stderr, tables and JSON on stdout."""

from __future__ import annotations

import json
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, TypeVar

import click

T = TypeVar("T")
NARROW = 90  # columns of a terminal
SHORTEST = 16  # characters of a phase that stay there


def print_json(record: Any) -> None:
    """One JSON object on stdout and nothing else; a NaN in it is a bug and raises."""
    click.echo(json.dumps(record, indent=2, allow_nan=False))


def plain(text: str) -> str:
    """The text without what would not stand on one line: files from outside can name things in control characters."""
    return "".join(c if c.isprintable() else "?" for c in text)


def table(headers: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """Columns that line up: text to the left, everything that starts with a digit, sign or dash to the right."""
    rows = [[plain(cell) for cell in row] for row in rows]
    columns = list(zip(headers, *rows, strict=True))
    widths = [max(len(cell) for cell in column) for column in columns]
    right = [len(column) > 1 and all(cell[:1].isdigit() or cell[:1] in "-+" for cell in column[1:]) for column in columns]

    def line(cells: Sequence[str]) -> str:
        return "  ".join(c.rjust(w) if r else c.ljust(w) for c, w, r in zip(cells, widths, right, strict=True)).rstrip()

    return "\n".join([line(headers), line(["-" * w for w in widths]), *(line(row) for row in rows)])


def pairs(rows: Sequence[tuple[str, str]]) -> str:
    """Names and values, the values in one column."""
    width = max(len(name) for name, _ in rows)
    return "\n".join(f"{plain(name).ljust(width)}  {plain(value)}" for name, value in rows)


def lines(name: str, value: Any) -> list[tuple[str, str]]:
    """What stands on a card, one line each; an object inside an object gets a line of its own."""
    if not isinstance(value, dict):
        return [(name, _scalar(value))]
    told = ", ".join(f"{key} {_scalar(part)}" for key, part in value.items() if not isinstance(part, dict))
    rows = [(name, told)] if told else []
    for key, part in value.items():
        rows += lines(f"{name} {key}", part) if isinstance(part, dict) else []
    return rows


def _scalar(value: Any) -> str:
    """A value on one short line; long lists only by their length."""
    if isinstance(value, list) and (len(value) > 10 or any(isinstance(part, dict | list) for part in value)):
        return f"{len(value)} entries (--json shows them)"
    text = f"{value:.4g}" if isinstance(value, float) else ", ".join(map(_scalar, value)) if isinstance(value, list) else str(value)
    return text if len(text) <= 200 else f"{text[:200]} ..."


def picture(lines: Sequence[str]) -> str:
    """Drawn lines as one text; in ASCII where the output cannot carry more."""
    text = "\n".join(map(plain, lines))
    try:
        text.encode(sys.stdout.encoding or "utf-8")
    except UnicodeEncodeError:
        from ofasearch.report.curves import to_ascii

        return to_ascii(text)
    return text


def duration(seconds: float) -> str:
    """Seconds for people."""
    if seconds < 100:
        return f"{seconds:.0f} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 100 else f"{minutes // 60} h {minutes % 60:02d} min"


def agreement(v: Mapping[str, Any]) -> str:
    """How well a table tells whole networks: bias, mean error and rank correlation for people."""
    return f"bias {v['bias_ms']:+.4f} ms, MAPE {100 * v['mape']:.1f} %, Kendall tau {v['kendall_tau']:.3f}"


def progress_line(phase: str, done: int, total: int, eta: float | None, note: str, columns: int) -> str:
    """Bar, count, phase, time left and best so far; on a narrow terminal the phase gives way first, because it says least."""
    bar = 24 if columns > NARROW else 10
    filled = round(bar * done / total) if total else bar
    before = [f"{'━' * filled}{'╌' * (bar - filled)}", f"{done}/{total}"]
    after = [part for part in (f"ETA {duration(eta)}" if eta is not None else "", note) if part]
    room = columns - sum(len(part) + 2 for part in before + after)
    return "  ".join([*before, shortened(phase, max(SHORTEST, room)), *after])[:columns]


def shortened(text: str, width: int) -> str:
    """The text, cut where it is longer than `width` characters."""
    return text if len(text) <= width else text[: width - 3].rstrip() + "..."


class Reporter:
    """Progress on stderr: one live line with bar, ETA and best so far on a terminal, a line per phase elsewhere."""

    def __init__(self, *, quiet: bool):
        self._quiet = quiet
        self._live = not quiet and sys.stderr.isatty()
        self._phase, self._last, self._width = "", 0.0, 0

    def update(self, phase: str, done: int, total: int, *, eta: float | None = None, note: str = "") -> None:
        """Say where the work is; cheap enough to be called at every step."""
        head = phase.partition(":")[0]
        if self._quiet:
            return
        if not self._live:
            if head != self._phase:
                self._phase = head
                click.echo(f"{head} ...", err=True)
            return
        now = time.monotonic()
        if head == self._phase and now - self._last < 0.1 and done < total:
            return
        self._phase, self._last = head, now
        line = progress_line(phase, done, total, eta, note, shutil.get_terminal_size().columns - 1)
        click.echo("\r" + line.ljust(self._width), err=True, nl=False)
        self._width = len(line)

    def say(self, text: str) -> None:
        """A sentence of its own."""
        if not self._quiet:
            self.clear()
            click.echo(text, err=True)

    def clear(self) -> None:
        """Remove the live line."""
        if self._live and self._width:
            click.echo("\r" + " " * self._width + "\r", err=True, nl=False)
            self._width = 0


def followed(events: Iterator[Any], kind: type[T], *, quiet: bool, note: Callable[[Any], str] = lambda _: "") -> T | None:
    """The result of a job, after its progress was shown, with a note on each event; None in a process of it that does not speak."""
    reporter = Reporter(quiet=quiet)
    result: T | None = None
    try:
        for event in events:
            if isinstance(event, kind):
                result = event
            else:
                reporter.update(event.phase, event.done, event.total, eta=event.eta_seconds, note=note(event))
    finally:
        reporter.clear()
    return result


def measured(events: Iterator[Any], kind: type[T], phase: str, *, quiet: bool, say: str | None = None) -> T:
    """The result of a job that measures this machine, after its progress was shown; `say` goes before."""
    reporter = Reporter(quiet=quiet)
    if say:
        reporter.say(say)
    result: T | None = None
    try:
        for event in events:
            if isinstance(event, kind):
                result = event
            else:
                reporter.update(f"{phase}: {event.what}", event.done, event.total, eta=event.eta_seconds)
    finally:
        reporter.clear()
    assert result is not None  # a job ends with its result or raises
    return result
