"""`replay` repeats a search from its folder without measuring, and tells what differs; folders from outside are checked."""

import json
import shutil
from dataclasses import replace

import numpy as np
import pytest
from pretended import Device

import ofasearch
from ofasearch import zoo
from ofasearch.errors import FormatError, InfeasibleError, MismatchError, NotFoundError, OfaSearchError
from ofasearch.evaluate.subject import Subject
from ofasearch.jobs import direct
from ofasearch.jobs import find as job
from ofasearch.jobs.choose import Timed
from ofasearch.latency.stopwatch import Timing
from ofasearch.latency.table import load_table, save_table
from ofasearch.predictor import Predictor, encoder_of, save_predictor


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch, shipped):
    load = zoo.load_supernet
    monkeypatch.setattr(zoo, "load_supernet", lambda name: shipped if name == zoo.DEFAULT_SUPERNET else load(name))


@pytest.fixture
def device(monkeypatch, tmp_path):
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
    return Device().pretend(monkeypatch)


@pytest.fixture
def elsewhere(monkeypatch, tmp_path):
    """Another day: nothing is remembered, and whoever measures or evaluates fails."""

    def forget():
        def never(*_, **__):
            raise AssertionError("nothing must be measured")

        monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "another cache"))
        monkeypatch.setattr(Device, "load", never)
        monkeypatch.setattr(Subject, "score", never)
        monkeypatch.setattr("ofasearch.jobs.setup.get_runtime", never)
        monkeypatch.setattr("ofasearch.jobs.find.load_data", never)

    return forget


@pytest.fixture
def predictor(shipped, tmp_path):
    """An arbitrary predictor of the shipped supernet, in a file of its own."""
    space = shipped.weights.space
    encoder = encoder_of(space)
    weight = np.random.default_rng(0).normal(size=(1, encoder.dims, 1)).astype(np.float32) * 1e-3
    made = Predictor(encoder, (weight,), (np.zeros((1, 1), dtype=np.float32),), 0.5, space.name, shipped.weights.digest)
    save_predictor(tmp_path / "p.safetensors", made)
    return tmp_path / "p.safetensors"


def published(shared_data):
    ofa = shared_data / "ofa"
    question = {"space": "ofa-mbv3-w1.2", "predictor": str(ofa / "acc_predictor.pth"), "target": str(ofa / "note10")}
    return question | {"latency_ms": 25, "generations": 10}


def same(run):
    record = ofasearch.replay(run)
    assert record["differences"] == []
    assert record["same"]
    assert record["arch_id"] == record["replayed_arch_id"] == json.loads((run / "result.json").read_text())["arch_id"]
    return record


# -- the same answer -------------------------------------------------------------------------------------------


def test_a_search_of_members_is_repeated(tmp_path, elsewhere):
    found = ofasearch.find(macs=8e6, out=tmp_path / "run")
    elsewhere()
    assert same(tmp_path / "run")["evaluations"] == found["evaluations"]


def test_a_published_question_is_repeated(shared_data, tmp_path):
    ofasearch.find(**published(shared_data), out=tmp_path / "run")
    assert same(tmp_path / "run")["candidates"] == 5


def test_a_search_for_several_devices_is_repeated(shared_data, tmp_path):
    ofasearch.find(**published(shared_data), also={"rtx2080": 3.0}, out=tmp_path / "run")
    same(tmp_path / "run")


def test_a_folder_is_repeated_from_another_folder(shared_data, tmp_path, monkeypatch):
    question = published(shared_data)
    monkeypatch.chdir(shared_data / "ofa")
    ofasearch.find(**question | {"predictor": "acc_predictor.pth", "target": "note10/"}, out=tmp_path / "run")
    monkeypatch.chdir(tmp_path)
    shutil.move(tmp_path / "run", tmp_path / "moved")
    assert ofasearch.replay("moved")["same"]


def test_a_machine_that_was_measured_then_is_not_measured_again(device, tmp_path, elsewhere):
    found = ofasearch.find(target="cpu", latency_ms=0.13, out=tmp_path / "run")
    elsewhere()
    same(tmp_path / "run")
    table = load_table(tmp_path / "run" / "table-cpu.csv")
    assert table.latency_ms(zoo.load_supernet(zoo.DEFAULT_SUPERNET).weights.space.blueprint(_codes(found["arch_id"]))) == pytest.approx(
        found["latency_ms"]
    )


def _codes(arch_id):
    return np.array(zoo.load_supernet(zoo.DEFAULT_SUPERNET).weights.space.parse(arch_id).codes, dtype=np.int64)


def test_several_searches_under_smaller_limits_are_repeated(device, monkeypatch, tmp_path, elsewhere):
    def timing(ms):
        return Timing(ms, ms, ms, ms, ms, 0.0, ms, ms, 100, ms)

    known = {}  # the first search's candidates are all too slow

    def clock(rows):
        names = [row.tobytes() for row in rows]
        for name in names:
            known.setdefault(name, timing(0.14 if len(known) < 20 else 0.12))
        return Timed([known[name] for name in names])

    monkeypatch.setattr(job, "clock_of", lambda *_: clock)
    ofasearch.find(target="cpu", latency_ms=0.13, out=tmp_path / "run")
    limits = json.loads((tmp_path / "run" / "run.json").read_text())["found"]["limits_ms"]
    assert len(limits) == 2
    elsewhere()
    same(tmp_path / "run")


def test_networks_that_were_timed_one_by_one_are_not_timed_again(device, monkeypatch, tmp_path, elsewhere):
    monkeypatch.setattr(direct, "DIRECT_RULE", replace(direct.DIRECT_RULE, min_bursts=2, max_bursts=2))
    ofasearch.find(target="cpu", latency_ms=0.13, measure="direct", out=tmp_path / "run")
    elsewhere()
    same(tmp_path / "run")


def test_candidates_that_were_evaluated_are_not_evaluated_again(predictor, tmp_path, monkeypatch, elsewhere):
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
    ofasearch.find(macs=8e6, predictor=str(predictor), data="digits", out=tmp_path / "run")
    elsewhere()
    same(tmp_path / "run")


def test_a_measured_objective_is_repeated(tmp_path, monkeypatch, elsewhere):
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
    question = {"macs": 8e6, "objective": "measured", "data": "digits", "images": 30, "population": 6, "generations": 2}
    ofasearch.find(**question, out=tmp_path / "run")
    elsewhere()
    same(tmp_path / "run")


# -- another answer --------------------------------------------------------------------------------------------


def test_another_predictor_is_told(predictor, shipped, tmp_path):
    ofasearch.find(macs=8e6, predictor=str(predictor), out=tmp_path / "run")
    space = shipped.weights.space
    encoder = encoder_of(space)
    weight = np.ones((1, encoder.dims, 1), dtype=np.float32) * 1e-3
    save_predictor(predictor, Predictor(encoder, (weight,), (np.zeros((1, 1), dtype=np.float32),), 0.5, space.name))
    record = ofasearch.replay(tmp_path / "run")
    assert not record["same"]
    assert record["differences"][0] == "the predictor has another digest than in the run"
    assert "replayed_arch_id" not in record


def test_another_table_is_told(device, tmp_path, elsewhere):
    ofasearch.find(target="cpu", latency_ms=0.13, out=tmp_path / "run")
    file = tmp_path / "run" / "table-cpu.csv"
    table = load_table(file)
    save_table(file, replace(table, rows={key: replace(row, ms=1.01 * row.ms) for key, row in table.rows.items()}))
    elsewhere()
    assert "the latency table of cpu has another digest than in the run" in ofasearch.replay(tmp_path / "run")["differences"]


def test_another_answer_is_told(tmp_path):
    ofasearch.find(macs=8e6, out=tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    run = json.loads(file.read_text())
    first, second, *rest = run["found"]["candidates"]
    file.write_text(json.dumps(run | {"found": run["found"] | {"candidates": [second, first, *rest], "evaluations": 7}}))
    winner, candidates, evaluations = ofasearch.replay(tmp_path / "run")["differences"]
    assert winner == f"the winner was {second['arch_id']}, and is now {first['arch_id']}"
    assert candidates == "the candidates differ from number 1 on (5 then, 5 now)"
    assert evaluations.startswith("7 networks were searched then, and ")


def test_another_value_and_other_versions_are_told(tmp_path):
    ofasearch.find(macs=8e6, out=tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    run = json.loads(file.read_text())
    run["found"]["candidates"][2]["predicted_top1"] += 1e-4
    run["versions"]["numpy"] = "0.1"
    file.write_text(json.dumps(run))
    value, versions = ofasearch.replay(tmp_path / "run")["differences"]
    assert f"the top-1 of {run['found']['candidates'][2]['arch_id']} was 0." in value
    assert versions.startswith("the run was made with numpy 0.1 (now ")


def test_a_candidate_that_was_not_timed_then_is_told(device, tmp_path, elsewhere):
    ofasearch.find(target="cpu", latency_ms=0.13, out=tmp_path / "run")
    file = tmp_path / "run" / "run.json"
    run = json.loads(file.read_text())
    del run["found"]["timed"][run["found"]["candidates"][0]["arch_id"]]
    file.write_text(json.dumps(run))
    elsewhere()
    (text, *_) = ofasearch.replay(tmp_path / "run")["differences"]
    assert text.startswith(
        "the search does not come to the same networks: every candidate that is compared must have been timed in the run"
    )


# -- folders from outside --------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def good(tmp_path_factory, shipped):
    folder = tmp_path_factory.mktemp("good") / "run"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "load_supernet", lambda _: shipped)
        ofasearch.find(macs=8e6, out=folder)
    return json.loads((folder / "run.json").read_text())


def changed(record, path, value):
    """The record with one value replaced, or taken out where there is none to put in its place."""
    head, *rest = path
    if isinstance(record, list):
        return [changed(part, rest, value) if i == head else part for i, part in enumerate(record)]
    if not rest:
        return {key: part for key, part in record.items() if key != head} | ({} if value is ... else {head: value})
    return record | {head: changed(record[head], rest, value)}


Q = ("asked", "question")


@pytest.mark.parametrize(
    ("path", "value", "text"),
    [
        (("format",), "ofasearch-find-0", "must be the run.json of `ofasearch find`"),
        (("asked",), ..., "it lacks 'asked'"),
        (("asked",), [], "an object is"),
        (("inputs",), {"space": 3}, "a name must be a text"),
        (("inputs",), {"space": "x"}, "space has another digest"),
        ((*Q, "budgets", "macs"), "8e6", "a number is '8e6'"),
        ((*Q, "budgets", "macs"), -1, "MACs budget must be positive"),
        ((*Q, "budgets", "macs"), 1.0, "cannot be prepared: MACs budget must be at least"),
        ((*Q, "budgets"), None, "an object is None"),
        ((*Q, "also"), [{"target": "cpu"}], "it lacks 'latency_ms'"),
        ((*Q, "also"), [{"target": "v100", "latency_ms": 1}], "cannot be prepared: a latency budget needs a device"),
        ((*Q, "also"), [{"target": "cpu", "latency_ms": 1}], "must hold the latency table of cpu"),
        ((*Q, "target"), "a\0b", "a name must be a text"),
        ((*Q, "space"), "x" * 5000, "a name must be a text"),
        ((*Q, "space"), "../../etc/passwd", "space must be one of"),
        ((*Q, "predictor"), "/etc/passwd", "must be"),
        ((*Q, "resolutions"), [32.5], "a whole number is 32.5"),
        ((*Q, "resolutions"), [-7], "--resolutions must be among"),
        ((*Q, "batch"), None, "a whole number is None"),
        ((*Q, "batch"), 10**9, "--batch must be"),
        ((*Q, "objective"), "all", "--objective must be one of"),
        ((*Q, "measure"), "never", "--measure must be"),
        (("asked", "algorithm"), None, "a name must be a text"),
        (("asked", "algorithm"), "nsga2", "--algorithm must be one of"),
        (("asked", "population"), 10**12, "--population must be at most"),
        (("asked", "population"), 1e300, "a whole number is"),
        (("asked", "population"), -5, "cannot be read"),
        (("asked", "generations"), True, "a whole number is True"),
        (("asked", "seed"), -1, "--seed"),
        (("asked", "seed"), 10**400, "a whole number is"),
        (("asked", "top_k"), 10**15, "--top-k must be"),
        (("found", "candidates"), [], "at least one candidate"),
        (("found", "candidates", 0, "predicted_top1"), None, "a number is None"),
        (("found", "candidates", 0, "arch_id"), {}, "a name must be a text"),
        (("found", "timed"), {"x": {"p50": 1}}, "it lacks"),
        (("found", "scores"), {"x": "0.7"}, "a number is '0.7'"),
        (("found", "limits_ms"), {}, "a list is {}"),
        (("found",), ..., "must hold a finished search, but this one was interrupted"),
    ],
    ids=lambda value: ".".join(map(str, value)) if isinstance(value, tuple) else None,
)
def test_a_record_that_is_none_of_ours_is_refused(good, tmp_path, path, value, text):
    (tmp_path / "run.json").write_text(json.dumps(changed(good, path, value)))
    try:
        record = ofasearch.replay(tmp_path)
    except OfaSearchError as error:
        assert error.exit_code == 1
        assert text in str(error)
    else:
        assert not record["same"]
        assert text in record["differences"][0]


@pytest.mark.parametrize("content", ["", "[]", "null", "{", '{"format": NaN}', "[" * 100_000, "\x00\xff"])
def test_a_file_that_is_no_record_is_refused(tmp_path, content):
    (tmp_path / "run.json").write_bytes(content.encode("latin1"))
    with pytest.raises(FormatError):
        ofasearch.replay(tmp_path)


def test_numbers_that_are_none_are_refused(good, tmp_path):
    text = json.dumps(changed(good, ("found", "candidates", 0, "objective"), float("nan")))
    (tmp_path / "run.json").write_text(text)
    with pytest.raises(FormatError, match="NaN is no finite number"):
        ofasearch.replay(tmp_path)


@pytest.mark.parametrize("name", ["nothing", "empty", "file"])
def test_a_folder_that_is_none_is_refused(tmp_path, name):
    (tmp_path / "empty").mkdir()
    (tmp_path / "file").touch()
    with pytest.raises(NotFoundError, match=r"must be the folder of a search, but holds no run\.json"):
        ofasearch.replay(tmp_path / name)


def test_a_folder_without_its_table_is_refused(device, tmp_path):
    ofasearch.find(target="cpu", latency_ms=0.13, out=tmp_path / "run")
    (tmp_path / "run" / "table-cpu.csv").unlink()
    with pytest.raises(FormatError, match=r"must hold the latency table of cpu that the search went by, but table-cpu\.csv is missing"):
        ofasearch.replay(tmp_path / "run")


def test_a_later_search_in_the_folder_leaves_no_table_behind(device, tmp_path):
    ofasearch.find(target="cpu", latency_ms=0.13, out=tmp_path / "run")
    ofasearch.find(macs=8e6, out=tmp_path / "run")
    assert not list((tmp_path / "run").glob("table-*"))
    same(tmp_path / "run")


def test_a_search_without_an_answer_leaves_nothing_to_repeat(tmp_path):
    with pytest.raises(InfeasibleError):
        ofasearch.find(macs=1e6, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_inputs_that_are_gone_are_named(predictor, tmp_path):
    ofasearch.find(macs=8e6, predictor=str(predictor), out=tmp_path / "run")
    predictor.unlink()
    with pytest.raises(NotFoundError, match=r"predictor must be one of .* or an existing file, but got '.*p\.safetensors'"):
        ofasearch.replay(tmp_path / "run")


def test_a_predictor_of_other_weights_is_refused(predictor, shipped, tmp_path):
    ofasearch.find(macs=8e6, predictor=str(predictor), out=tmp_path / "run")
    space = shipped.weights.space
    weight = np.ones((1, encoder_of(space).dims, 1), dtype=np.float32)
    save_predictor(predictor, Predictor(encoder_of(space), (weight,), (np.zeros((1, 1), np.float32),), 0.5, "ofa-mbv3-w1.0"))
    with pytest.raises(MismatchError, match="must be made for compofa-mbv3-cifar"):
        ofasearch.replay(tmp_path / "run")
