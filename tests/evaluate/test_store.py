"""Remembered scores: exact keys, predictions to the number, several processes at once, damage that costs nothing but time."""

import multiprocessing
import sqlite3
from dataclasses import fields, replace

import numpy as np
import pytest

from ofasearch.evaluate import store as room
from ofasearch.evaluate.store import Key, Score, Store

KEY = Key("weights", "tiny@r8-1-1", "test", "images", "2000 images in batches of 200")


@pytest.fixture
def path(tmp_path):
    return tmp_path / "cache" / "evaluations.sqlite"


def key_of(number):
    return replace(KEY, arch=f"network {number}")


def put_some(path, start, count):
    with Store(path) as store:
        for number in range(start, start + count):
            store.put(key_of(number), Score(number / 1000, 10, np.full(10, number)))
        return store.notes


def test_a_score_is_remembered_with_its_predictions(path):
    predicted = np.array([0, 999, 65_535])
    with Store(path) as store:
        assert store.get(KEY) is None
        store.put(KEY, Score(0.123456789, 3, predicted))
    with Store(path) as store:
        found = store.get(KEY)
        assert store.notes == []
    assert (found.top1, found.n) == (0.123456789, 3)
    assert found.predicted.dtype == np.uint16
    assert np.array_equal(found.predicted, predicted)


@pytest.mark.parametrize("name", [f.name for f in fields(Key)])
def test_every_part_of_a_key_matters(path, name):
    with Store(path) as store:
        store.put(KEY, Score(0.5, 2))
        assert store.get(replace(KEY, **{name: "other"})) is None
        assert store.get(KEY) == Score(0.5, 2)


def test_a_later_score_replaces_the_former(path):
    with Store(path) as store:
        store.put(KEY, Score(0.5, 2, np.array([0, 1])))
        store.put(KEY, Score(0.25, 4))
        assert store.get(KEY) == Score(0.25, 4)


@pytest.mark.parametrize("predicted", [np.arange(6), np.array([2**16]), np.zeros(0, dtype=int)], ids=["many", "classes", "none"])
def test_predictions_that_take_too_much_room_are_left_out(path, monkeypatch, predicted):
    monkeypatch.setattr(room, "PREDICTIONS_LIMIT", 5)
    with Store(path) as store:
        store.put(KEY, Score(0.5, 6, predicted))
        assert store.get(KEY) == Score(0.5, 6)


def test_the_cache_folder_is_where_it_lies_by_default(own_cache):
    with Store() as store:
        assert store.path == own_cache / "evaluations.sqlite"


def test_several_processes_write_together(path):
    with multiprocessing.get_context("spawn").Pool(3) as pool:
        notes = pool.starmap(put_some, [(path, 100 * i, 25) for i in range(3)])
    assert notes == [[], [], []]
    with Store(path) as store:
        assert [store.get(key_of(n)).top1 for n in range(200, 225)] == [n / 1000 for n in range(200, 225)]
        assert all(store.get(key_of(n)) for n in [*range(25), *range(100, 125)])


# -- damage ----------------------------------------------------------------------------------------------------


def text(path):
    path.write_bytes(b"no database at all" * 100)


def cut(path):
    path.write_bytes(path.read_bytes()[:5000])


def overwrite(path):
    content = path.read_bytes()
    path.write_bytes(content[:4096] + b"\xff" * (len(content) - 4096))


def run_sql(path, *statements):
    database = sqlite3.connect(path)
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()


def foreign(path):
    run_sql(path, "DROP TABLE scores", "CREATE TABLE scores (name TEXT)")


def newer(path):
    run_sql(path, "PRAGMA user_version = 7")


@pytest.mark.parametrize("damage", [text, cut, overwrite, foreign, newer])
def test_a_damaged_file_is_set_aside_and_a_new_one_begun(path, damage):
    put_some(path, 0, 200)
    damage(path)
    content = path.read_bytes()
    with Store(path) as store:
        for number in range(200):
            store.get(key_of(number))
        (note,) = store.notes
        assert "were damaged: they were set aside as evaluations.sqlite.damaged-" in note
        store.put(KEY, Score(0.5, 2))
        assert store.get(KEY) == Score(0.5, 2)
    (aside,) = path.parent.glob("evaluations.sqlite.damaged-*")
    assert aside.read_bytes() == content
    with Store(path) as store:
        assert store.get(KEY) == Score(0.5, 2)
        assert store.notes == []


def test_a_file_that_another_process_has_begun_anew_stays(path):
    with Store(path) as store:
        store.put(KEY, Score(0.5, 2))
        store._begin_anew()  # what a process does that met the damage before the other renamed it
        assert store.get(KEY) == Score(0.5, 2)
        assert store.notes == []
    assert not list(path.parent.glob("*damaged*"))


@pytest.mark.parametrize("change", ["top1 = 'high'", "top1 = 7.0", "n = 0", "predicted = x'00'", "predicted = 'text'"])
def test_a_row_that_is_no_score_is_none(path, change):
    put_some(path, 0, 1)
    run_sql(path, f"UPDATE scores SET {change}")
    with Store(path) as store:
        assert store.get(key_of(0)) is None
        assert store.notes == []


# -- no use ----------------------------------------------------------------------------------------------------


def test_a_folder_that_cannot_be_written_costs_nothing_but_memory(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with Store(tmp_path / "file" / "evaluations.sqlite") as store:
        store.put(KEY, Score(0.5, 2))
        assert store.get(KEY) is None
        (note,) = store.notes
    assert note.startswith("evaluations are not remembered, because ")
    assert note.endswith("; set OFASEARCH_CACHE to another folder")


def test_a_place_that_is_a_folder_is_left_alone(path):
    path.mkdir(parents=True)
    with Store(path) as store:
        store.put(KEY, Score(0.5, 2))
        assert len(store.notes) == 1
    assert path.is_dir()


def test_a_file_that_another_process_holds_is_not_taken_for_damaged(path, monkeypatch):
    monkeypatch.setattr(room, "PATIENCE_SECONDS", 0.05)
    with Store(path) as store:
        holder = sqlite3.connect(path, isolation_level=None)
        holder.execute("BEGIN EXCLUSIVE")
        store.put(KEY, Score(0.5, 2))
        assert "locked" in store.notes[0]
        holder.close()
        store.put(KEY, Score(0.5, 2))
        assert store.get(KEY) == Score(0.5, 2)
    assert not list(path.parent.glob("*damaged*"))
