"""How a result is written: atomically, with its provenance."""

from __future__ import annotations

import contextlib
import datetime
import errno
import glob
import hashlib
import io
import json
import math
import os
import platform
import tempfile
from collections.abc import Iterator, Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from ofasearch.errors import FormatError, NotFoundError, WriteError

JSON_LIMIT = 64 * 2**20  # bytes; records from outside are small


def write_atomic(path: Path, content: bytes | str) -> None:
    """Write a whole file or nothing: to a temporary file beside it, synced, then renamed.

    Raises WriteError with the reason (no permission, full disk); a former file stays as it was.
    """
    write_together({path: content})


def write_together(contents: Mapping[Path, bytes | str]) -> None:
    """Write several files that belong together, each whole or not at all, renamed in the given order when all are on disk.

    A full disk or a folder without permission touches none of them; only a kill between two renames leaves the first
    new and the last old. Raises WriteError with the reason.
    """
    temporary: dict[Path, Path] = {}
    path = next(iter(contents))
    try:
        for path, content in contents.items():
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
            temporary[path] = Path(name)
            with os.fdopen(handle, "wb") as file:
                file.write(content.encode() if isinstance(content, str) else content)
                file.flush()
                os.fsync(file.fileno())
            temporary[path].chmod(0o644)
        for path in contents:
            temporary[path].replace(path)
            del temporary[path]
    except OSError as error:
        raise WriteError(f"{path} must be writable, but it is not ({error.strerror or error}); choose another folder") from error
    finally:  # an interrupt must leave no temporary file either
        for leftover in temporary.values():
            leftover.unlink(missing_ok=True)


def check_writable(path: Path) -> None:
    """Raise WriteError now where `path` could not be written after long work; nothing is left behind."""
    try:
        if path.is_dir():
            raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
        folder = next(parent for parent in path.absolute().parents if parent.exists())  # the rest would be made
        with tempfile.TemporaryFile(dir=folder):
            pass
    except OSError as error:
        raise WriteError(f"{path} must be writable, but it is not ({error.strerror or error}); choose another folder") from error


def forget_unfinished(path: Path) -> None:
    """Remove what killed writers of `path` left beside it; only for files that one process at a time writes."""
    for leftover in path.parent.glob(f".{glob.escape(path.name)}.????????"):  # as `write_atomic` names them
        leftover.unlink(missing_ok=True)


def json_text(record: Any) -> str:
    """JSON as files of ours hold it: keys in their given order, two spaces, newline at the end."""
    return json.dumps(record, indent=2) + "\n"


def write_json(path: Path, record: Any) -> None:
    """Write JSON, atomically."""
    write_atomic(path, json_text(record))


def read_json(path: Path) -> Any:
    """Read a JSON file from outside.

    Raises NotFoundError, FormatError (not JSON, not text, too large).
    """
    if not path.is_file():
        raise NotFoundError(f"{path} must be an existing JSON file, but there is none")
    if path.stat().st_size > JSON_LIMIT:
        raise FormatError(f"{path} must be at most {JSON_LIMIT >> 20} MiB of JSON, but it is larger")
    try:
        return parse_json(path.read_text(encoding="utf-8"))
    except (ValueError, OSError) as error:
        raise FormatError(f"{path} must be JSON, but it cannot be read: {error}") from error


def parse_json(text: str) -> Any:
    """JSON from outside; NaN, infinities and nesting without end are none, and nothing but ValueError is raised."""
    try:
        return json.loads(text, parse_float=_finite, parse_constant=_finite)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error


def _finite(text: str) -> float:
    """A number of a JSON file; NaN and infinities are no JSON."""
    number = float(text)
    if not math.isfinite(number):
        raise ValueError(f"{text} is no finite number")
    return number


def append_line(path: Path, record: Any) -> None:
    """Append one JSON line, whole or not at all, also when several processes append to one file."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with path.open("ab+", buffering=0) as file:  # no buffer: what failed must not be written again when the file is closed
            _lock(file)
            end = file.seek(0, os.SEEK_END)
            file.seek(max(0, end - 1))
            torn = file.read(1) not in (b"", b"\n")  # by a kill: the new line must not be lost with it
            left = (b"\n" if torn else b"") + json.dumps(record).encode() + b"\n"
            try:
                while left:  # a disk that gets full takes a part first
                    left = left[file.write(left) :]
            except BaseException:
                file.truncate(end)
                raise
    except OSError as error:
        raise WriteError(f"{path} must be writable, but it is not ({error.strerror or error}); choose another folder") from error


def _lock(file: io.FileIO) -> None:
    """Hold the file until it is closed; where the system or the file system knows no locks, go on without."""
    try:
        import fcntl

        fcntl.flock(file, fcntl.LOCK_EX)
    except (ImportError, OSError):
        return


@contextlib.contextmanager
def file_lock(path: Path) -> Iterator[None]:
    """Hold `<path>.lock` against other processes; where the system knows no locks, or the folder cannot be written, go on without."""
    with contextlib.ExitStack() as stack:
        with contextlib.suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            _lock(stack.enter_context(path.with_name(f".{path.name}.lock").open("ab", buffering=0)))
        yield


def file_digest(path: Path) -> str:
    """sha256 (hex) of a file's bytes."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def provenance(**facts: Any) -> dict[str, Any]:
    """What a reader needs to trust a result: date, machine, versions, and the given facts (seed, digests, ...)."""
    versions = {name: metadata.version(name) for name in ("ofasearch", "numpy", "torch", "onnx", "onnxruntime") if _installed(name)}
    return {
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "machine": f"{platform.system()} {platform.machine()}, {os.cpu_count()} cores",
        "python": platform.python_version(),
        "versions": versions,
        **facts,
    }


def _installed(name: str) -> bool:
    try:
        metadata.version(name)
    except metadata.PackageNotFoundError:
        return False
    return True


def cache_dir() -> Path:
    """Where measurements and decoded data are remembered: OFASEARCH_CACHE, else the XDG cache folder."""
    root = os.environ.get("OFASEARCH_CACHE")
    if root:
        return Path(root)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "ofasearch"
