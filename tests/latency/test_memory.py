"""What was measured is remembered: whole lines only, numbers only, of this machine only."""

import json
import multiprocessing
from dataclasses import replace

import pytest

from ofasearch.errors import FormatError, MismatchError
from ofasearch.latency.memory import Measured, Memory, network_name
from ofasearch.latency.stopwatch import Timing
from ofasearch.latency.table import TableKey
from ofasearch.space.families import get_space, mobile_space

KEY = TableKey(device="desk", runtime="onnxruntime 1 cpu")
TIMING = Timing(1.1, 1.2, 1.3, 1.4, 1.15, 0.1, 1.05, 1.15, 30, 1.7, 0.25)
BARE = Measured(TIMING)
SHARED = Measured(replace(TIMING, p50=1 / 3), (0.1, 0.7, 0.2))


@pytest.fixture(autouse=True)
def cache(monkeypatch, tmp_path):
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def test_what_was_measured_reads_back_bit_by_bit():
    memory = Memory(KEY)
    assert memory.networks() == {}
    memory.add("a", BARE)
    memory.add("b", SHARED)
    assert memory.networks() == {"a": BARE, "b": SHARED}
    assert Memory(KEY).networks() == memory.networks()
    assert {path.name for path in memory.folder.iterdir()} == {"nets.jsonl", "fingerprint.json"}
    assert memory.failure is None


def test_what_was_measured_last_counts():
    memory = Memory(KEY)
    memory.add("a", BARE)
    memory.add("a", SHARED)
    assert memory.networks() == {"a": SHARED}


@pytest.mark.parametrize("change", [{"device": "other"}, {"runtime": "r"}, {"precision": "int8"}, {"batch": 2}, {"threads": 2}])
def test_every_part_of_the_key_is_a_memory_of_its_own(change):
    Memory(KEY).add("a", BARE)
    assert Memory(replace(KEY, **change)).networks() == {}


def test_the_first_level_of_a_reference_counts():
    memory = Memory(KEY)
    assert memory.level_ms("r") is None
    memory.set_level("r", 0.5)
    memory.set_level("r", 0.7)
    memory.set_level("s", 0.9)
    assert [Memory(KEY).level_ms(name) for name in ("r", "s", "t")] == [0.5, 0.9, None]


def test_a_torn_line_costs_itself_alone():
    memory = Memory(KEY)
    memory.add("a", BARE)
    memory.add("b", BARE)
    path = memory.folder / "nets.jsonl"
    path.write_bytes(path.read_bytes()[:-20])  # a kill in the middle of a write
    assert memory.networks() == {"a": BARE}
    memory.add("c", SHARED)
    assert memory.networks() == {"a": BARE, "c": SHARED}
    path.write_bytes(path.read_bytes().replace(b'{"name": "a"', b'{"name": "\xff\xfe"', 1) + b"\xff\n")
    assert memory.networks()["c"] == SHARED  # bytes that are no text cost their own lines


def line(**changes):
    memory = Memory(KEY)
    memory.add("good", SHARED)
    (text,) = (memory.folder / "nets.jsonl").read_text().splitlines()
    return {**json.loads(text), "name": "bad", **changes}


FOREIGN = {
    "no number": {"p50": float("nan")},
    "infinity": {"p90": float("inf")},
    "negative": {"low": -1.0},
    "nothing": {"p50": 0.0},
    "text": {"p50": "1.0"},
    "yes": {"p50": True},
    "none": {"mean": None},
    "list": {"p50": [1.0]},
    "ages": {"p50": 1e12},
    "digits": {"p50": 10**400},
    "half a run": {"n": 2.5},
    "name of no text": {"name": ["x"]},
    "huge shares": {"shares": [0.1, 1e9, 0.2]},
    "shares of more than all": {"shares": [0.5, 0.5, 0.5]},
    "negative shares": {"shares": [-0.5, 1.0, 0.5]},
    "shares of no number": {"shares": [float("nan")] * 3},
    "text of shares": {"shares": "100"},
    "shares by name": {"shares": {"1": 1}},
}


@pytest.mark.parametrize("change", FOREIGN.values(), ids=FOREIGN)
def test_foreign_numbers_are_skipped(change):
    text = json.dumps(line(**change))
    with (Memory(KEY).folder / "nets.jsonl").open("a") as file:
        file.write(f"{text}\n")
    assert Memory(KEY).networks() == {"good": SHARED}


@pytest.mark.parametrize("text", ["[]", "3", "null", "{}", "[" * 10**5, "", '{"name": "good"}', "9" * 5000])
def test_foreign_lines_are_skipped(text):
    line()
    for name in ("nets.jsonl", "levels.jsonl"):
        with (Memory(KEY).folder / name).open("a") as file:
            file.write(f"{text}\n")
    assert Memory(KEY).networks() == {"good": SHARED}
    assert Memory(KEY).level_ms("good") is None


@pytest.mark.parametrize("ms", ["NaN", "Infinity", "-1.0", "0.0", '"1.0"', "null", "true"])
def test_a_level_that_is_no_duration_is_skipped(ms):
    memory = Memory(KEY)
    memory.set_level("s", 1.0)
    with (memory.folder / "levels.jsonl").open("a") as file:
        file.write(f'{{"name": "r", "ms": {ms}}}\n')
    assert memory.level_ms("r") is None
    memory.set_level("r", 0.5)
    assert memory.level_ms("r") == 0.5


def test_the_folder_of_another_machine_is_refused(cache):
    Memory(KEY).add("a", BARE)
    other = replace(KEY, device="laptop", threads=4)
    Memory(KEY).folder.rename(Memory(other).folder)
    with pytest.raises(MismatchError) as caught:
        Memory(other)
    sentence = str(caught.value)
    assert "must hold measurements of laptop with onnxruntime 1 cpu, but was made with another device and threads" in sentence
    assert "delete that folder to measure anew" in sentence
    assert str(cache) in sentence


@pytest.mark.parametrize("content", ["[]", "null", "{}", '{"device": 3}'])
def test_a_fingerprint_of_another_form_is_refused(content):
    Memory(KEY).add("a", BARE)
    (Memory(KEY).folder / "fingerprint.json").write_text(content)
    with pytest.raises(MismatchError, match="made with another device and runtime and precision and batch and threads"):
        Memory(KEY)
    (Memory(replace(KEY, batch=2)).folder).mkdir()
    (Memory(replace(KEY, batch=2)).folder / "fingerprint.json").write_text("{")
    with pytest.raises(FormatError, match=r"fingerprint\.json must be JSON"):
        Memory(replace(KEY, batch=2))


def test_where_nothing_can_be_written_work_goes_on_and_the_reason_is_kept(monkeypatch, tmp_path):
    (tmp_path / "file").touch()
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "file"))
    memory = Memory(KEY)
    with memory.alone():
        memory.add("a", BARE)
        memory.set_level("r", 1.0)
    assert "must be writable" in memory.failure
    assert str(tmp_path / "file") in memory.failure
    assert (memory.networks(), memory.level_ms("r")) == ({}, None)
    memory.forget()


def test_what_is_forgotten_is_gone_and_can_be_measured_again():
    memory = Memory(KEY)
    memory.forget()
    memory.add("a", BARE)
    memory.set_level("r", 1.0)
    Memory(replace(KEY, batch=2)).add("a", BARE)
    memory.forget()
    assert (memory.networks(), memory.level_ms("r")) == ({}, None)
    assert Memory(replace(KEY, batch=2)).networks() == {"a": BARE}  # of another key
    memory.add("b", SHARED)
    memory.set_level("r", 2.0)
    assert (memory.networks(), memory.level_ms("r")) == ({"b": SHARED}, 2.0)


def _append(name):
    memory = Memory(KEY)
    for number in range(150):
        memory.add(f"{name}{number}", SHARED)


def test_two_processes_append_to_one_memory():
    context = multiprocessing.get_context("fork")
    children = [context.Process(target=_append, args=(name,)) for name in "ab"]
    for child in children:
        child.start()
    for child in children:
        child.join()
        assert child.exitcode == 0
    assert Memory(KEY).networks() == {f"{name}{number}": SHARED for name in "ab" for number in range(150)}


def _hold(entered, leave):
    with Memory(KEY).alone():
        entered.set()
        leave.wait(30)


def _wait(entered):
    with Memory(replace(KEY, batch=8)).alone():
        entered.set()


def test_one_process_at_a_time_measures_whatever_its_key():
    context = multiprocessing.get_context("fork")
    first, leave, second = context.Event(), context.Event(), context.Event()
    children = [context.Process(target=_hold, args=(first, leave)), context.Process(target=_wait, args=(second,))]
    children[0].start()
    assert first.wait(30)
    children[1].start()
    assert not second.wait(0.3)
    leave.set()
    assert second.wait(30)
    for child in children:
        child.join()


# -- names -------------------------------------------------------------------------------------------------------


def test_one_network_has_one_name_in_all_spaces(tiny_design):
    tiny = mobile_space(tiny_design)
    renamed = mobile_space(replace(tiny_design, name="other", depths=(2,)))
    codes = tiny.largest()
    assert network_name(tiny.blueprint(codes)) == network_name(renamed.blueprint(renamed.largest()))
    coupled, full = get_space("compofa-mbv3-cifar"), get_space("ofa-mbv3-cifar")
    lifted = coupled.lift(coupled.smallest()[None], full)[0]
    assert network_name(coupled.blueprint(coupled.smallest())) == network_name(full.blueprint(lifted))


def test_networks_that_differ_in_anything_that_takes_time_have_names_of_their_own(tiny_design, tiny_space):
    networks = [tiny_space.blueprint(row) for row in tiny_space.enumerate()]
    assert len({network_name(b) for b in networks}) == len(networks)
    larger = tiny_space.with_resolutions([8, 16])
    sizes = {network_name(larger.blueprint([code, *tiny_space.largest()[1:]])) for code in (1, 2)}
    assert len(sizes) == 2
    assert network_name(networks[0]) in {network_name(larger.blueprint(row)) for row in larger.enumerate()}
    more = mobile_space(replace(tiny_design, classes=4))
    assert network_name(more.blueprint(more.largest())) != network_name(tiny_space.blueprint(tiny_space.largest()))
