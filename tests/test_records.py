"""A result is written whole or not at all, and what is read from outside is checked."""

import io
import json
import os
import subprocess
import sys

import pytest

from ofasearch import records
from ofasearch.errors import FormatError, NotFoundError, WriteError
from ofasearch.records import (
    append_line,
    cache_dir,
    file_digest,
    forget_unfinished,
    provenance,
    read_json,
    write_atomic,
    write_json,
    write_together,
)


def test_a_file_is_written_with_its_folders(tmp_path):
    path = tmp_path / "a" / "b" / "result.txt"
    write_atomic(path, "zwölf\n")
    assert path.read_bytes() == "zwölf\n".encode()
    write_atomic(path, b"\x00\xff")
    assert path.read_bytes() == b"\x00\xff"
    assert [p.name for p in path.parent.iterdir()] == ["result.txt"]
    assert path.stat().st_mode & 0o777 == 0o644


def refuse(*_):
    raise OSError(28, "No space left on device")


@pytest.mark.parametrize("step", ["fsync", "replace", "fdopen"])
def test_a_failed_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch, step):
    path = tmp_path / "result.txt"
    write_atomic(path, "old")
    monkeypatch.setattr(records.os, step, refuse)
    with pytest.raises(WriteError, match=r"result.txt must be writable, but it is not \(No space left on device\); choose another folder"):
        write_atomic(path, "new")
    monkeypatch.undo()
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.txt"]


def test_an_interrupted_write_leaves_the_old_file_and_nothing_else(tmp_path, monkeypatch):
    def interrupt(*_):
        raise KeyboardInterrupt

    path = tmp_path / "result.txt"
    write_atomic(path, "old")
    monkeypatch.setattr(records.os, "fsync", interrupt)
    with pytest.raises(KeyboardInterrupt):
        write_atomic(path, "new")
    assert path.read_text() == "old"
    assert [p.name for p in tmp_path.iterdir()] == ["result.txt"]


def test_files_that_belong_together_are_written_all_or_none(tmp_path, monkeypatch):
    paths = [tmp_path / name for name in ("rows", "deep/card")]
    write_together({paths[0]: "old rows", paths[1]: b"old card"})
    sync, calls = os.fsync, []

    def full_at_the_last(handle):
        calls.append(handle)
        if len(calls) == len(paths):
            refuse()
        sync(handle)

    monkeypatch.setattr(records.os, "fsync", full_at_the_last)
    with pytest.raises(WriteError, match=r"deep/card must be writable, but it is not \(No space left on device\)"):
        write_together({paths[0]: "new rows", paths[1]: "new card"})
    monkeypatch.undo()
    assert [path.read_text() for path in paths] == ["old rows", "old card"]
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(paths)


def test_only_what_killed_writers_left_is_forgotten(tmp_path, monkeypatch):
    path = tmp_path / "[x].json"  # brackets mean something to a glob
    write_atomic(path, "old")
    with monkeypatch.context() as patch:
        patch.setattr(records.os, "fsync", refuse)
        patch.setattr(records.Path, "unlink", lambda *_, **__: None)  # killed before it could tidy up
        with pytest.raises(WriteError):
            write_atomic(path, "new")
    others = [tmp_path / name for name in (".x.json.12345678", ".[x].json", ".[x].json.bak", "x.json")]
    for other in others:
        other.write_text("kept")
    assert len(list(tmp_path.iterdir())) == len(others) + 2
    forget_unfinished(path)
    assert {*tmp_path.iterdir()} == {path, *others}
    assert path.read_text() == "old"


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    for path in (tmp_path / "file" / "result.txt", tmp_path / "file" / "deep" / "result.txt"):
        with pytest.raises(WriteError, match=r"result.txt must be writable, but it is not \(.+\); choose another folder"):
            write_atomic(path, "new")
    assert (tmp_path / "file").read_text() == "in the way"


def test_a_folder_in_place_of_the_file_stays(tmp_path):
    (tmp_path / "result" / "kept").mkdir(parents=True)
    with pytest.raises(WriteError, match=r"result must be writable, but it is not \(Is a directory\)"):
        write_atomic(tmp_path / "result", "new")
    assert [p.name for p in tmp_path.iterdir()] == ["result"]
    assert (tmp_path / "result" / "kept").is_dir()


def test_json_round_trips(tmp_path):
    record = {"b": [1, 2.5, None, True], "a": {"ü": "x"}}
    write_json(tmp_path / "x.json", record)
    assert read_json(tmp_path / "x.json") == record
    text = (tmp_path / "x.json").read_text()
    assert text.endswith("}\n")
    assert text.index('"b"') < text.index('"a"')  # in the order given


def test_a_record_that_is_no_json_leaves_the_old_file(tmp_path):
    write_json(tmp_path / "x.json", {"old": 1})
    with pytest.raises(TypeError, match="not JSON serializable"):
        write_json(tmp_path / "x.json", {"new": object()})
    assert read_json(tmp_path / "x.json") == {"old": 1}


@pytest.mark.parametrize("content", [b"", b"{", b"\xff\xfe\x00", b"[" * 100_000], ids=["empty", "cut", "bytes", "deep"])
def test_what_is_no_json_is_refused(tmp_path, content):
    (tmp_path / "x.json").write_bytes(content)
    with pytest.raises(FormatError, match=r"x.json must be JSON, but it cannot be read"):
        read_json(tmp_path / "x.json")


def test_too_large_json_is_refused_unread(tmp_path):
    with (tmp_path / "x.json").open("wb") as file:
        file.truncate(records.JSON_LIMIT + 1)  # sparse
    with pytest.raises(FormatError, match=r"x.json must be at most 64 MiB of JSON, but it is larger"):
        read_json(tmp_path / "x.json")


def test_missing_json_is_named(tmp_path):
    with pytest.raises(NotFoundError, match=r"x.json must be an existing JSON file, but there is none"):
        read_json(tmp_path / "x.json")
    with pytest.raises(NotFoundError, match="must be an existing JSON file"):
        read_json(tmp_path)


def test_lines_are_appended(tmp_path):
    for n in range(3):
        append_line(tmp_path / "a" / "log.jsonl", {"n": n})
    assert [json.loads(line)["n"] for line in (tmp_path / "a" / "log.jsonl").read_text().splitlines()] == [0, 1, 2]
    with pytest.raises(WriteError, match="log must be writable, but it is not"):
        append_line(tmp_path / "a" / "log.jsonl" / "log", {})


def test_a_torn_line_does_not_take_the_next_with_it(tmp_path):
    path = tmp_path / "log.jsonl"
    path.write_text('{"n": 0}\n{"n": ')
    append_line(path, {"n": 2})
    assert path.read_text() == '{"n": 0}\n{"n": \n{"n": 2}\n'


class Filling(io.FileIO):
    """A file on a disk that takes 5 bytes of a write, and then is full."""

    full = False

    def write(self, data):
        if self.full:
            refuse()
        self.full = True
        return super().write(bytes(data[:5]))


def test_a_line_that_does_not_fit_is_not_begun(tmp_path, monkeypatch):
    path = tmp_path / "log.jsonl"
    append_line(path, {"n": 1})
    before = path.read_bytes()
    with monkeypatch.context() as patch:
        patch.setattr(records.Path, "open", lambda self, mode, buffering: Filling(self, mode))
        with pytest.raises(WriteError, match=r"log.jsonl must be writable, but it is not \(No space left on device\)"):
            append_line(path, {"a longer": "line"})
    assert path.read_bytes() == before


def test_lines_of_several_processes_stay_whole(tmp_path):
    code = (
        "import sys\nfrom pathlib import Path\nfrom ofasearch.records import append_line\nprint(flush=True)\nsys.stdin.readline()\n"
        "for n in range(200): append_line(Path('log.jsonl'), [sys.argv[1], n, 'x' * 997 * (n % 13)])"
    )
    writers = [
        subprocess.Popen([sys.executable, "-c", code, who], cwd=tmp_path, stdin=subprocess.PIPE, stdout=subprocess.PIPE) for who in "abc"
    ]
    for writer in writers:
        writer.stdout.readline()  # all have started
    for writer in writers:
        writer.communicate(b"\n", timeout=120)
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    found = [json.loads(line) for line in (tmp_path / "log.jsonl").read_text().splitlines()]
    for who in "abc":
        assert [(n, len(text)) for name, n, text in found if name == who] == [(n, 997 * (n % 13)) for n in range(200)]


def test_where_there_are_no_locks_lines_are_written_all_the_same(tmp_path, monkeypatch):
    import fcntl

    monkeypatch.setattr(fcntl, "flock", refuse)
    append_line(tmp_path / "log.jsonl", {"n": 1})
    monkeypatch.setitem(sys.modules, "fcntl", None)
    append_line(tmp_path / "log.jsonl", {"n": 2})
    assert (tmp_path / "log.jsonl").read_text() == '{"n": 1}\n{"n": 2}\n'


def test_file_digests_are_sha256(tmp_path):
    (tmp_path / "x").write_bytes(b"abc")
    assert file_digest(tmp_path / "x") == "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"


def test_provenance_holds_versions_and_the_given_facts():
    record = provenance(seed=3, digest="abc")
    assert (record["seed"], record["digest"]) == (3, "abc")
    assert {"numpy", "torch", "ofasearch"} <= record["versions"].keys()
    assert json.loads(json.dumps(record)) == record


def test_the_cache_is_where_the_environment_says(tmp_path, monkeypatch):
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path))
    assert cache_dir() == tmp_path
    monkeypatch.delenv("OFASEARCH_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert cache_dir() == tmp_path / "xdg" / "ofasearch"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert os.fspath(cache_dir()) == str(tmp_path / ".cache" / "ofasearch")
