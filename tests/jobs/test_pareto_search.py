"""`pareto` by searches: fronts of large spaces, what searches lack of an exact front, and going on with a stopped one."""

import json
from dataclasses import replace

import numpy as np
import pytest

import ofasearch
from ofasearch.errors import FormatError, MismatchError, UsageError
from ofasearch.jobs import fronts, setup
from ofasearch.jobs.pareto import ParetoProgress, ParetoRequest, ParetoResult, pareto
from ofasearch.search.front import nondominated
from ofasearch.space.costs import macs_of
from ofasearch.space.families import get_space

FILES = {"front.csv", "front.json", "plot.png", "hypervolume.csv", "hypervolume.json", "result.json", "log.jsonl"}
VOLATILE = {"files", "search_seconds"}


def names(record):
    return [point["arch_id"] for point in record["front"]]


# -- what searches lack of an exact front ----------------------------------------------------------------------


@pytest.fixture(scope="module")
def phone(shared_data):
    """Once-for-all's predictor and its tables of the Note10."""
    return {"predictor": str(shared_data / "ofa" / "acc_predictor.pth"), "target": str(shared_data / "ofa" / "note10")}


@pytest.fixture(scope="module")
def compared(phone, tmp_path_factory, quick):
    """All searches on the fixed CompOFA space at five resolutions, and the folder; read only."""
    folder = tmp_path_factory.mktemp("compare")
    return ofasearch.pareto(space="compofa-mbv3-w1.2", **phone, compare=True, out=folder), folder


def test_every_search_is_compared_with_the_exact_front(compared):
    record, lines = compared[0], {line["algorithm"]: line for line in compared[0]["compare"]}
    assert (record["algorithm"], record["evaluations"]) == ("exact", 1215)
    assert {"exact", "random", "nsga2"} < lines.keys()
    assert (lines["exact"]["hypervolume_share"], lines["exact"]["worst_loss"], lines["exact"]["uncovered"]) == (1, 0, 0)
    for name in lines.keys() - {"exact"}:
        assert 0.9 < lines[name]["hypervolume_share"] <= 1
        assert 0 <= lines[name]["mean_loss"] <= lines[name]["worst_loss"] < 0.1
        assert 0.15 * 1215 < lines[name]["evaluations"] <= 0.25 * 1215 + 10
    assert lines["nsga2"]["hypervolume_share"] > lines["random"]["hypervolume_share"]
    assert not any("saw more than half" in note for note in record["notes"])


def test_every_loss_is_taken_at_equal_cost(compared, phone):
    """The front of a search again, and the losses by hand."""
    record, folder = compared
    line = next(line for line in record["compare"] if line["algorithm"] == "nsga2")
    exact = [(p["latency_ms"], p["predicted_top1"]) for p in record["front"]]
    alone = ofasearch.pareto(space="compofa-mbv3-w1.2", **phone, algorithm="nsga2", population=20, generations=14, out=folder / "alone")
    found = [(p["latency_ms"], p["predicted_top1"]) for p in alone["front"]]
    assert (alone["hypervolume"], alone["points"]) == (line["hypervolume"], line["points"])
    affordable = [[top1 for ms, top1 in found if ms <= limit] for limit, _ in exact]
    losses = [best - max(tops) for tops, (_, best) in zip(affordable, exact, strict=True) if tops]
    assert line["worst_loss"] == pytest.approx(max(losses))
    assert line["mean_loss"] == pytest.approx(np.mean(losses))
    assert line["uncovered"] == sum(not tops for tops in affordable)
    assert line["hypervolume_share"] == pytest.approx(alone["hypervolume"] / record["hypervolume"])


def test_traces_rise_to_what_was_found(compared):
    record, folder = compared
    traces = {trace["algorithm"]: trace["trace"] for trace in json.loads((folder / "hypervolume.json").read_text())}
    assert traces.keys() == {line["algorithm"] for line in record["compare"]}
    for line in record["compare"]:
        trace = traces[line["algorithm"]]
        shares = [point["hypervolume"] for point in trace]
        assert shares == sorted(shares)
        assert [point["generation"] for point in trace] == list(range(len(trace)))
        assert (trace[-1]["evaluations"], shares[-1]) == (line["evaluations"], line["hypervolume"])
        enough = next((p["evaluations"] for p in trace if p["hypervolume"] >= 0.99 * record["hypervolume"]), None)
        assert line.get("evaluations_to_99") == enough


def test_searches_that_see_most_of_the_space_say_so(tmp_path):
    record = ofasearch.pareto(compare=True, population=100, generations=10, out=tmp_path)
    assert any("saw more than half of the 243 networks" in note for note in record["notes"])


@pytest.mark.parametrize("option", [{"compare": True}, {"algorithm": "exact"}])
def test_large_spaces_have_no_exact_front(tmp_path, phone, option):
    with pytest.raises(
        UsageError, match=r"lists the whole space: it must hold at most [\d,]+ networks, but ofa-mbv3-w1.2 holds 1\.09e\+20"
    ):
        ofasearch.pareto(space="ofa-mbv3-w1.2", **phone, **option, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- a large space, stopped and gone on with -------------------------------------------------------------------

GENERATIONS = 12


@pytest.fixture(scope="module")
def large(phone):
    """A question whose answer must be searched for."""
    options = {"space": "ofa-mbv3-w1.2", **phone}
    return setup.Question(budgets=setup.Budgets(latency_ms=40.0), **options)


def asked(question, out, **options):
    return ParetoRequest(**{"question": question, "population": 20, "generations": GENERATIONS, "seed": 3, "out": out} | options)


def answered(request):
    *_, result = pareto(request)
    assert isinstance(result, ParetoResult)
    return result.record


def lasting(record):
    return {key: value for key, value in record.items() if key not in VOLATILE}


@pytest.fixture(scope="module")
def unbroken(tmp_path_factory, large, quick):
    folder = tmp_path_factory.mktemp("unbroken")
    return answered(asked(large, folder)), folder


@pytest.fixture
def every_generation(monkeypatch):
    """Told and saved after every generation."""
    monkeypatch.setattr(fronts, "TELL_SECONDS", -1.0)
    monkeypatch.setattr(fronts, "SAVE_SECONDS", -1.0)


def stop_after(request, generation):
    """Start a job and leave it after that generation of its search."""
    events = pareto(request)
    for event in events:
        if isinstance(event, ParetoProgress) and event.phase.startswith("searching") and event.done == generation:
            break
    events.close()


def test_a_searched_front_keeps_the_limits_and_none_of_it_beats_another(unbroken):
    record = unbroken[0]
    assert (record["algorithm"], record["exact"]) == ("nsga2", False)
    assert (record["population"], record["generations"], record["evaluations"]) == (20, GENERATIONS, 20 * (GENERATIONS + 1))
    ms, top1 = (np.array([p[key] for p in record["front"]]) for key in ("latency_ms", "predicted_top1"))
    assert ms.max() <= 40
    assert nondominated(np.stack([-top1, ms], axis=1)).all()
    assert list(top1) == sorted(top1, reverse=True)
    space = get_space("ofa-mbv3-w1.2")
    for point in record["front"]:
        codes = np.array(space.parse(point["arch_id"]).codes)
        assert point["macs"] == int(macs_of(space)(codes[None])[0])


def test_the_same_question_has_the_same_answer(unbroken, large, tmp_path):
    assert lasting(answered(asked(large, tmp_path))) == lasting(unbroken[0])
    assert (tmp_path / "front.csv").read_bytes() == (unbroken[1] / "front.csv").read_bytes()
    other = answered(asked(large, tmp_path, seed=4))
    assert names(other) != names(unbroken[0])


@pytest.mark.parametrize("generation", [0, 5, GENERATIONS - 1])
def test_a_resumed_search_is_an_unbroken_one(unbroken, large, tmp_path, every_generation, generation):
    stop_after(asked(large, tmp_path), generation)
    assert {path.name for path in tmp_path.iterdir()} == {"unfinished-nsga2.npz", "unfinished-nsga2.json"}
    done = []
    for event in pareto(asked(large, tmp_path, resume=True)):
        if isinstance(event, ParetoProgress) and event.phase.startswith("searching"):
            done.append(event.done)
    assert done == list(range(generation + 1, GENERATIONS + 1))
    assert isinstance(event, ParetoResult)
    assert lasting(event.record) == lasting(unbroken[0])
    for name in ("front.csv", "hypervolume.csv", "hypervolume.json"):
        assert (tmp_path / name).read_bytes() == (unbroken[1] / name).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_an_interrupt_within_a_generation_keeps_the_one_before(unbroken, large, tmp_path, monkeypatch):
    evaluate, calls = fronts.Watch._step, iter(range(100))

    def step(self, search):
        if next(calls) == 4:
            raise KeyboardInterrupt
        return evaluate(self, search)

    with monkeypatch.context() as patch:
        patch.setattr(fronts.Watch, "_step", step)
        with pytest.raises(KeyboardInterrupt):
            answered(asked(large, tmp_path))
    assert len(json.loads((tmp_path / "unfinished-nsga2.json").read_text())["trace"]) == 4
    assert lasting(answered(asked(large, tmp_path, resume=True))) == lasting(unbroken[0])


def test_a_kill_between_trace_and_state_loses_nothing(unbroken, large, tmp_path, every_generation):
    stop_after(asked(large, tmp_path), 4)
    state = (tmp_path / "unfinished-nsga2.npz").read_bytes()
    stop_after(asked(large, tmp_path, resume=True), 6)
    (tmp_path / "unfinished-nsga2.npz").write_bytes(state)
    assert lasting(answered(asked(large, tmp_path, resume=True))) == lasting(unbroken[0])


def test_without_resume_a_search_begins_anew(unbroken, large, tmp_path, every_generation):
    stop_after(asked(large, tmp_path, seed=9), 4)
    assert lasting(answered(asked(large, tmp_path))) == lasting(unbroken[0])
    assert {path.name for path in tmp_path.iterdir()} == FILES


def test_resuming_what_was_never_stopped_is_starting_it(unbroken, large, tmp_path):
    assert lasting(answered(asked(large, tmp_path, resume=True))) == lasting(unbroken[0])


def test_a_stopped_comparison_goes_on(compared, phone, tmp_path, every_generation):
    question = setup.Question(budgets=setup.Budgets(), space="compofa-mbv3-w1.2", **phone)
    request = ParetoRequest(question=question, compare=True, out=tmp_path)
    stop_after(request, 7)  # of the first search that has as many
    found = answered(replace(request, resume=True))
    timeless = [{k: v for k, v in line.items() if k != "search_seconds"} for line in found["compare"]]
    assert timeless == [{k: v for k, v in line.items() if k != "search_seconds"} for line in compared[0]["compare"]]


@pytest.mark.parametrize(
    ("change", "text"),
    [
        ({"seed": 4}, "must be asked the same, but seed changed"),
        ({"population": 24}, "must be asked the same, but population changed"),
        ({"objectives": ("top1", "latency", "macs")}, "but objectives, landmarks changed"),
    ],
)
def test_another_question_does_not_go_on_with_a_stopped_search(large, tmp_path, every_generation, change, text):
    stop_after(asked(large, tmp_path), 3)
    with pytest.raises(MismatchError, match=text):
        answered(asked(large, tmp_path, resume=True, **change))


def test_another_limit_is_another_question(large, tmp_path, every_generation):
    stop_after(asked(large, tmp_path), 3)
    with pytest.raises(MismatchError, match="but question"):
        answered(asked(replace(large, budgets=setup.Budgets(latency_ms=30.0)), tmp_path, resume=True))


def test_fewer_generations_than_were_done_are_refused(large, tmp_path, every_generation):
    stop_after(asked(large, tmp_path), 5)
    with pytest.raises(UsageError, match="--generations must be more than the 5 that the stopped search has done, but got 5"):
        answered(asked(large, tmp_path, resume=True, generations=5))


@pytest.mark.parametrize(
    ("file", "content"),
    [
        ("unfinished-nsga2.json", b"{"),
        ("unfinished-nsga2.json", b"[]"),
        ("unfinished-nsga2.json", b'{"asked": {}, "seconds": "x", "trace": []}'),
        ("unfinished-nsga2.json", b'{"asked": {}, "seconds": 1, "trace": [{"generation": 0}]}'),
        ("unfinished-nsga2.npz", b"PK nothing"),
    ],
)
def test_damaged_files_of_a_stopped_search_are_told(large, tmp_path, every_generation, file, content):
    stop_after(asked(large, tmp_path), 3)
    (tmp_path / file).write_bytes(content)
    with pytest.raises(FormatError, match=f"{file} must be"):
        answered(asked(large, tmp_path, resume=True))


def test_a_trace_with_gaps_is_told(large, tmp_path, every_generation):
    stop_after(asked(large, tmp_path), 5)
    path = tmp_path / "unfinished-nsga2.json"
    record = json.loads(path.read_text())
    del record["trace"][2]
    path.write_text(json.dumps(record))
    with pytest.raises(FormatError, match="must tell every generation"):
        answered(asked(large, tmp_path, resume=True))
