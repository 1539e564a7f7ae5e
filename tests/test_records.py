"""A result is written whole or not at all, and what is read from outside is checked."""

import json
import os

import pytest

from ofasearch import records
from ofasearch.errors import FormatError, NotFoundError, WriteError
from ofasearch.records import append_line, cache_dir, file_digest, provenance, read_json, write_atomic, write_json


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
