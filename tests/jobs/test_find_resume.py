"""A search that was killed goes on where it was and ends as if it had not been; a state of another question is refused."""

import itertools
import json
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import replace

import pytest

import ofasearch
from ofasearch.errors import FormatError, MismatchError, UsageError
from ofasearch.jobs import search_folder, searching

KILLED_AT = 7  # generations
CHILD = f"""
import sys
from dataclasses import replace
from ofasearch.cli.main import run
from ofasearch.jobs import search_folder, searching

search_folder.SAVE_SECONDS = 0.0
searcher = searching.SEARCHERS["evolution"]

def told(*arguments):
    for generation in searcher.search(*arguments):
        yield generation
        print(generation.number, flush=True)
        if generation.number == {KILLED_AT}:
            sys.stdin.read()  # until somebody kills this

searching.SEARCHERS["evolution"] = replace(searcher, search=told)
sys.exit(run(sys.argv[1:]))
"""


@pytest.fixture(autouse=True)
def always_saved(monkeypatch):
    monkeypatch.setattr(search_folder, "SAVE_SECONDS", 0.0)


@pytest.fixture
def question(shared_data):
    ofa = shared_data / "ofa"
    return {
        "space": "ofa-mbv3-w1.2",
        "predictor": str(ofa / "acc_predictor.pth"),
        "target": str(ofa / "note10"),
        "latency_ms": 20,
        "generations": 15,
    }


def interrupt(patch, algorithm="evolution", after=KILLED_AT):
    """Searches are interrupted after that generation was reported."""
    searcher = searching.SEARCHERS[algorithm]

    def interrupted(*arguments):
        for generation in searcher.search(*arguments):
            yield generation
            if generation.number == after:
                raise KeyboardInterrupt

    patch.setitem(searching.SEARCHERS, algorithm, replace(searcher, search=interrupted))


def break_off(question, out, **options):
    """Begin a search that is interrupted."""
    with pytest.MonkeyPatch.context() as patch:
        interrupt(patch, question.get("algorithm", "evolution"), **options)
        with pytest.raises(KeyboardInterrupt):
            ofasearch.find(**question, out=out)


@pytest.fixture
def broken(question, tmp_path):
    """The folder of a search that was interrupted after some generations."""
    break_off(question, tmp_path / "run")
    return tmp_path / "run"


def alike(record):
    """What does not depend on time and place."""
    return {key: value for key, value in record.items() if key not in ("files", "search_seconds")}


def started_from(patch, algorithm="evolution"):
    """Where searches begin from now on: the numbers of their states, or None."""
    starts, searcher = [], searching.SEARCHERS[algorithm]

    def spied(problem, config, rng, start):
        starts.append(start.number if start is not None else None)
        return searcher.search(problem, config, rng, start)

    patch.setitem(searching.SEARCHERS, algorithm, replace(searcher, search=spied))
    return starts


@pytest.mark.parametrize("algorithm", ["evolution", "random", "ga"])
def test_an_interrupted_search_goes_on_and_ends_as_an_unbroken_one(question, tmp_path, monkeypatch, algorithm):
    asked, folder = question | {"algorithm": algorithm}, tmp_path / "run"
    break_off(asked, folder)
    assert {path.name for path in folder.iterdir()} == {"run.json", "search-0.state"}
    starts = started_from(monkeypatch, algorithm)
    record = ofasearch.find(**asked, resume=True, out=folder)
    assert starts == [KILLED_AT]
    assert record["algorithm"] == algorithm
    assert alike(record) == alike(ofasearch.find(**asked, out=tmp_path / "unbroken"))
    assert not list(folder.glob("*.state"))
    assert ofasearch.replay(folder)["same"]


def test_a_killed_search_goes_on(question, tmp_path, monkeypatch):
    argv = ["find", "--space", question["space"], "--predictor", question["predictor"], "--target", question["target"]]
    argv += ["--latency", "20ms", "--generations", "15", "--out", str(tmp_path / "run"), "--quiet"]
    child = subprocess.Popen([sys.executable, "-c", CHILD, *argv], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=os.environ)
    assert any(line.strip() == str(KILLED_AT) for line in child.stdout)
    child.kill()
    child.communicate()
    assert child.returncode == -signal.SIGKILL
    starts = started_from(monkeypatch)
    record = ofasearch.find(**question, resume=True, out=tmp_path / "run")
    assert starts == [KILLED_AT]
    assert alike(record) == alike(ofasearch.find(**question, out=tmp_path / "unbroken"))


def test_without_the_option_a_search_begins_anew(broken, question, monkeypatch):
    starts = started_from(monkeypatch)
    ofasearch.find(**question, out=broken)
    assert starts == [None]
    assert not list(broken.glob("*.state"))


def test_there_need_not_be_anything_to_go_on_from(question, tmp_path, monkeypatch):
    starts = started_from(monkeypatch)
    ofasearch.find(**question, resume=True, out=tmp_path / "new")
    ofasearch.find(**question, resume=True, out=tmp_path / "new")  # a finished one is repeated
    assert starts == [None, None]


def test_states_are_written_once_a_second_at_most(question, tmp_path, monkeypatch):
    saved = []
    monkeypatch.setattr(search_folder, "SAVE_SECONDS", 1.0)
    monkeypatch.setattr(search_folder, "save_state", lambda path, state: saved.append(state.number))
    clock = iter(0.3 * n for n in range(1000))
    monkeypatch.setattr(search_folder.time, "monotonic", lambda: next(clock))
    ofasearch.find(**question, out=tmp_path / "run")
    assert len(saved) > 2
    assert all(later - earlier >= 3 for earlier, later in itertools.pairwise(saved))


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 1}, "a resumed search must keep its question, but seed changed"),
        ({"latency_ms": 25}, "but budgets changed"),
        ({"generations": 16}, "but generations changed"),
        ({"algorithm": "ga"}, "but algorithm changed"),
        ({"also": {"rtx2080": 3.0}}, "but also changed"),
        ({"resolutions": (160, 176)}, "but resolutions changed"),
    ],
)
def test_another_question_is_refused(broken, question, change, text):
    before = (broken / "search-0.state").read_bytes()
    with pytest.raises(MismatchError, match=text):
        ofasearch.find(**question | change, resume=True, out=broken)
    assert (broken / "search-0.state").read_bytes() == before


def test_another_predictor_of_the_same_name_is_refused(question, tmp_path):
    import torch

    path = tmp_path / "p.pth"
    shutil.copy(question["predictor"], path)
    asked = question | {"predictor": str(path)}
    break_off(asked, tmp_path / "run", after=1)
    state = torch.load(path, weights_only=True, map_location="cpu")
    state["6.bias"] += 0.01
    torch.save(state, path)
    with pytest.raises(MismatchError, match="must keep what it rests on, but the predictor has another digest than in the run"):
        ofasearch.find(**asked, resume=True, out=tmp_path / "run")


def test_a_damaged_state_is_refused(broken, question):
    file = broken / "search-0.state"
    content = bytearray(file.read_bytes())
    file.write_bytes(content[: len(content) // 2])
    with pytest.raises(FormatError, match=r"search-0\.state must be a search state of ofasearch"):
        ofasearch.find(**question, resume=True, out=broken)


@pytest.mark.parametrize("resume", [True, False])
def test_the_folder_of_another_kind_of_run_is_left_alone(question, tmp_path, resume):
    card = {"space": "ofa-mbv3-cifar", "strategy": "deps"}
    (tmp_path / "run.json").write_text(json.dumps(card))
    with pytest.raises(UsageError, match="must be a new folder or that of an earlier search, but holds another run"):
        ofasearch.find(**question, resume=resume, out=tmp_path)
    assert json.loads((tmp_path / "run.json").read_text()) == card
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
