"""`find` from question to files: the exact optimum, files that agree, and latency budgets kept by measurement."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from pretended import Device

import ofasearch
from ofasearch import zoo
from ofasearch.data import ImageSet, load_data
from ofasearch.errors import InfeasibleError, MismatchError, NotFoundError, UsageError, VerificationError
from ofasearch.jobs import find as job
from ofasearch.jobs import latency as machine
from ofasearch.jobs import setup
from ofasearch.jobs.choose import Timed
from ofasearch.jobs.deliver import load_subnet, prove, to_network
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.latency.stopwatch import Timing
from ofasearch.predictor import Predictor, encoder_of, save_predictor
from ofasearch.space.costs import activation_bytes_of, costs, macs_of, params_of
from ofasearch.space.static_write import net_config

BUDGET = 8e6  # MACs; the shipped space reaches from 4.2 to 14.4 M


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch, shipped):
    """The shipped supernet is read once for all tests here; other names go to the zoo."""
    load = zoo.load_supernet
    monkeypatch.setattr(zoo, "load_supernet", lambda name: shipped if name == zoo.DEFAULT_SUPERNET else load(name))


def rank_predictor(shipped):
    """A predictor of the right form that prefers networks by arbitrary weights."""
    space = shipped.weights.space
    encoder = encoder_of(space)
    weight = np.random.default_rng(0).normal(size=(encoder.dims, 1)).astype(np.float32) * 1e-3
    return Predictor(encoder, (weight[None],), (np.zeros((1, 1), dtype=np.float32),), 0.5, space.name, shipped.weights.digest)


# -- a whole answer --------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answer(tmp_path_factory, shipped, quick):
    """One run with a MACs budget, and its folder; read only."""
    folder = tmp_path_factory.mktemp("find")
    return ofasearch.find(macs=BUDGET, out=folder), folder


@pytest.fixture(scope="module")
def codes(answer, shipped):
    space = shipped.weights.space
    return np.array(space.parse(answer[0]["arch_id"]).codes, dtype=np.int64)


def test_the_answer_is_the_best_member_within_the_budget(answer, codes, shipped):
    record, members, space = answer[0], shipped.members, shipped.weights.space
    kept = macs_of(space)(members.codes) <= BUDGET
    assert 0 < kept.sum() < len(kept)
    assert record["macs"] <= BUDGET
    assert record["predicted_top1"] == members.top1("validation")[kept].max()
    assert record["evaluations"] == kept.sum()
    found = [c["predicted_top1"] for c in record["candidates"]]
    assert found == sorted(members.top1("validation")[kept], reverse=True)[:5]


def test_the_answer_has_the_promised_fields(answer, codes, shipped):
    record, space, member = answer[0], shipped.weights.space, int(shipped.members.index(codes[None])[0])
    price, settings = costs(space.blueprint(codes)), space.settings(codes[None])
    assert record["space"] == space.name
    expected = {"ks": settings.ks[0].tolist(), "e": settings.e[0].tolist(), "d": settings.d[0].tolist(), "r": int(settings.r[0])}
    assert record["arch"] == expected
    assert [len(record["arch"][key]) for key in ("ks", "e", "d")] == [20, 20, 5]
    assert (record["macs"], record["params"], record["activation_bytes"]) == (price.macs, price.params, price.activation_bytes)
    assert record["preprocessing"] == shipped.weights.preprocessing.to_json()
    assert record["search_seconds"] > 0
    assert not {"latency_ms", "latency_source"} & record.keys()  # what was not asked is absent
    measured = record["measured"]
    assert (measured["top1"], measured["source"]) == (shipped.members.top1("test")[member], "shipped")
    assert measured["n"] == len(shipped.members.labels["test"])
    assert 0 <= measured["onnx_max_abs_diff"] <= 1e-4
    assert not {"latency_ms_p50", "latency_ms_p95"} & measured.keys()


def test_the_folder_holds_what_the_answer_names(answer):
    record, folder = answer
    expected = {"onnx": "subnet.onnx", "card": "subnet.md", "subnet": "subnet.pt", "net_config": "net.config"}
    assert record["files"] == {key: str(folder.absolute() / name) for key, name in expected.items()}
    names = {"run.json", "result.json", "subnet.pt", "subnet.onnx", "subnet.md", "net.config", "run.config", "log.jsonl"}
    assert {path.name for path in folder.iterdir()} == names
    assert json.loads((folder / "result.json").read_text()) == record
    line = json.loads((folder / "log.jsonl").read_text())
    assert line["result"] == record
    assert line["versions"]["ofasearch"] == ofasearch.__version__


def test_the_subnet_file_holds_plain_tensors_of_the_calibrated_network(answer, codes, shipped):
    record, folder = answer
    assert torch.load(folder / "subnet.pt", weights_only=True)["arch_id"] == record["arch_id"]
    subnet, facts = load_subnet(folder / "subnet.pt")
    assert subnet.blueprint == shipped.weights.space.blueprint(codes)
    assert subnet.calibrated == "shipped statistics"
    assert (subnet.preprocessing, subnet.settings) == (shipped.weights.preprocessing, record["arch"])
    assert facts["measured"] == record["measured"]
    member = int(shipped.members.index(codes[None])[0])
    state = to_network(subnet).state_dict()
    statistics = shipped.members.norm_statistics(member)
    assert statistics.keys() == {key for key in state if "running" in key}
    assert all(np.array_equal(state[key].numpy(), values) for key, values in statistics.items())


def test_the_configs_describe_the_network(answer, codes, shipped):
    record, folder = answer
    found = json.loads((folder / "net.config").read_text())
    assert found == json.loads(json.dumps(net_config(shipped.weights.space.blueprint(codes))))
    assert len(found["blocks"]) == 1 + sum(record["arch"]["d"])
    assert json.loads((folder / "run.config").read_text()) == {"image_size": record["arch"]["r"]}


def test_the_onnx_file_computes_the_network_and_says_what_it_is(answer):
    record, folder = answer
    model = OnnxModel(folder / "subnet.onnx")
    told = model.metadata
    assert (told["arch_id"], told["space"], told["calibrated"]) == (record["arch_id"], record["space"], "shipped statistics")
    assert json.loads(told["arch"]) == record["arch"]
    assert json.loads(told["preprocessing"]) == record["preprocessing"]
    assert len(json.loads(told["classes"])) == 10
    assert json.loads(told["predicted_top1"]) == record["predicted_top1"]
    assert json.loads(told["measured"]) == record["measured"]
    assert len(told["supernet_digest"]) == 64
    subnet, _ = load_subnet(folder / "subnet.pt")
    difference, _ = prove(subnet, (folder / "subnet.onnx").read_bytes(), None)
    assert difference == record["measured"]["onnx_max_abs_diff"]


def test_all_budgets_hold_together(tmp_path, shipped):
    space, members = shipped.weights.space, shipped.members
    limits = {"macs": 9e6, "params": 0.9e6, "memory_bytes": 0.25e6}
    prices = (macs_of(space), params_of(space), activation_bytes_of(space))
    tables = dict(zip(limits, (price(members.codes) for price in prices), strict=True))
    limits = {name: float(np.quantile(values, 0.7)) for name, values in tables.items()}
    kept = np.all([tables[name] <= limit for name, limit in limits.items()], axis=0)
    record = ofasearch.find(**limits, out=tmp_path)
    assert record["predicted_top1"] == members.top1("validation")[kept].max()
    assert (record["macs"], record["params"], record["activation_bytes"]) <= tuple(limits.values())
    assert record["evaluations"] == kept.sum()


def test_the_same_question_has_the_same_answer(answer, tmp_path):
    again = ofasearch.find(macs=BUDGET, out=tmp_path)
    volatile = {"files", "search_seconds"}
    assert {k: v for k, v in again.items() if k not in volatile} == {k: v for k, v in answer[0].items() if k not in volatile}
    assert (tmp_path / "subnet.onnx").read_bytes() == (answer[1] / "subnet.onnx").read_bytes()


def test_data_calibrates_and_scores_the_winner(tmp_path):
    record = ofasearch.find(macs=BUDGET, data="digits", out=tmp_path)
    measured = record["measured"]
    assert (measured["source"], measured["n"], measured["calibrated"]) == ("live", 359, "58 images of digits calibration")
    assert 0 <= measured["top1"] <= 1
    assert measured["onnx_checked_on"] == "16 test images of digits"


def test_a_predictor_of_the_supernet_still_gives_its_shipped_statistics(tmp_path, shipped):
    save_predictor(tmp_path / "p.safetensors", rank_predictor(shipped))
    record = ofasearch.find(macs=BUDGET, predictor=str(tmp_path / "p.safetensors"), out=tmp_path / "run")
    assert record["predicted_top1_source"] == "accuracy predictor"
    assert record["measured"]["source"] == "shipped"
    assert set(record["files"]) == {"onnx", "card", "subnet", "net_config"}


def test_an_export_that_differs_is_not_written(tmp_path, monkeypatch):
    monkeypatch.setattr("ofasearch.latency.onnx_model.OnnxModel.__call__", lambda _, inputs: np.zeros((len(inputs), 10), np.float32))
    with pytest.raises(VerificationError, match="must give the network's logits"):
        ofasearch.find(macs=BUDGET, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []  # nor anything else: an architecture without its files would look like an answer


# -- what cannot be answered -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "error", "text"),
    [
        ({}, UsageError, "at least one budget must be given"),
        ({"latency_ms": 1.0}, UsageError, "a latency budget needs a device"),
        ({"macs": 1e6}, InfeasibleError, r"MACs budget must be at least 4\.155 M .*compofa-mbv3-cifar@r32-2-2-2-2-2.*, but got 1 M"),
        ({"macs": -5}, UsageError, "MACs budget must be positive"),
        ({"macs": BUDGET, "space": "nowhere"}, NotFoundError, "space must be one of ofa-mbv3-w1.0"),
        ({"macs": BUDGET, "supernet": "nowhere"}, NotFoundError, "supernet must be one of .*cifar10-compofa"),
        ({"macs": BUDGET, "predictor": "nowhere"}, NotFoundError, "predictor must be one of"),
        ({"latency_ms": 1.0, "target": "nowhere"}, NotFoundError, "target must be cpu, one of .*rtx2080"),
        ({"macs": BUDGET, "space": "ofa-mbv3-w1.2"}, NotFoundError, "a search of ofa-mbv3-w1.2 needs an accuracy predictor"),
        ({"macs": BUDGET, "space": "ofa-mbv3-cifar", "supernet": "cifar10-compofa"}, MismatchError, "must hold all networks"),
        ({"macs": BUDGET, "resolutions": (224,)}, UsageError, r"--resolutions must be among those of compofa-mbv3-cifar"),
        ({"macs": BUDGET, "top_k": 0}, UsageError, "top"),
        ({"macs": BUDGET, "seed": -1}, UsageError, "seed"),
    ],
)
def test_a_question_without_an_answer_is_refused(tmp_path, question, error, text):
    with pytest.raises(error, match=text):
        ofasearch.find(**question, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_without_statistics_or_data_the_weights_are_withheld(tmp_path, shipped, monkeypatch):
    save_predictor(tmp_path / "p.safetensors", rank_predictor(shipped))
    monkeypatch.setattr(zoo, "load_supernet", lambda _: replace(shipped, members=None))
    question = {"macs": BUDGET, "supernet": "bare", "predictor": str(tmp_path / "p.safetensors")}
    record = ofasearch.find(**question, out=tmp_path / "bare")
    assert set(record["files"]) == {"net_config"}
    assert record["measured"] == {}
    assert any("must be recalibrated: add --data" in note for note in record["notes"])
    forced = ofasearch.find(**question, no_bn=True, out=tmp_path / "forced")
    assert forced["measured"]["calibrated"] == "no"
    assert "top1" not in forced["measured"]
    assert OnnxModel(tmp_path / "forced" / "subnet.onnx").metadata["calibrated"] == "no"
    assert any("uncalibrated (--no-bn)" in note for note in forced["notes"])


# -- other targets ---------------------------------------------------------------------------------------------


def test_a_published_table_gives_an_architecture_and_says_why_no_more(shared_data, tmp_path):
    ofa = shared_data / "ofa"
    record = ofasearch.find(
        space="ofa-mbv3-w1.2",
        predictor=str(ofa / "acc_predictor.pth"),
        target=str(ofa / "note10"),
        latency_ms=20,
        generations=20,
        out=tmp_path,
    )
    assert record["latency_ms"] <= 20
    assert (record["latency_source"], record["target"]) == ("imported", "note10")
    assert 0.73 < record["predicted_top1"] < 0.82
    assert record["arch"]["r"] in (160, 176, 192, 208, 224)
    assert set(record["files"]) == {"net_config"}
    assert {path.name for path in tmp_path.iterdir()} == {"run.json", "net.config", "run.config", "result.json", "log.jsonl"}
    assert any("no weights were given (--space ofa-mbv3-w1.2 alone)" in note for note in record["notes"])
    assert "supernet" not in record


def test_an_estimated_target_says_that_it_is_estimated(tmp_path, shipped):
    record = ofasearch.find(target="rtx2080", latency_ms=20, out=tmp_path)
    assert record["latency_source"] == "estimated"
    assert 0 < record["latency_ms"] < 20
    assert any("rtx2080 are estimated from its published peaks, not measured" in note for note in record["notes"])
    assert any("every subnet keeps the latency budget of 20 ms: the largest takes" in note for note in record["notes"])
    assert record["predicted_top1"] == shipped.members.top1("validation").max()
    assert "latency_ms_p50" not in record["measured"]


# -- this machine, with a stopwatch of our own -------------------------------------------------------------------


def certain(ms):
    """A timing without scatter."""
    return Timing(ms, 1.1 * ms, 1.2 * ms, 1.3 * ms, ms, 0.0, 0.99 * ms, 1.01 * ms, 100, ms)


@pytest.fixture
def device(monkeypatch, tmp_path):
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
    return Device().pretend(monkeypatch)


class Script:
    """Timings of candidates as the test wants them, another one for a lone candidate; remembers how many came together."""

    def __init__(self, patch, measured, lone=None):
        self.measured, self.lone, self.groups = iter(measured), lone, []
        patch.setattr(job, "clock_of", lambda question, space: self.time)

    def time(self, rows):
        self.groups.append(len(rows))
        timings = [self.lone if self.lone and len(rows) == 1 else next(self.measured) for _ in rows]
        return Timed(timings, ["the machine was disturbed"])


def find_on_cpu(out, latency_ms=0.13, **options):
    return ofasearch.find(target="cpu", latency_ms=latency_ms, out=out, **options)


def test_the_first_candidate_whose_upper_bound_keeps_the_budget_is_taken(device, monkeypatch, tmp_path):
    budget = 0.13
    above, edge, below = certain(0.2), replace(certain(0.129), high=0.1301), replace(certain(0.129), high=0.13)
    script = Script(monkeypatch, [above, edge, below, below, above])
    record = find_on_cpu(tmp_path / "run", budget)
    assert script.groups == [5]
    by_table = ofasearch.find(target="cpu", macs=1e9, out=tmp_path / "all")  # no latency budget: nothing is timed end to end
    assert script.groups == [5]
    assert "latency_ms_p50" not in by_table["measured"]
    ranked = record["candidates"]
    assert [c["accepted"] for c in ranked] == [True, True, False, False, False]
    assert record["arch_id"] == ranked[0]["arch_id"]
    assert [ranked[0]["predicted_top1"] <= c["predicted_top1"] for c in ranked[2:4]] == [True, True]  # better, but too slow
    assert record["latency_source"] == "measured"
    assert "the machine was disturbed" in record["notes"]
    assert record["latency_ms"] <= budget
    assert (record["measured"]["latency_ms_p50"], record["measured"]["latency_ms_p95"]) == (below.p50, below.p95)
    assert record["device"]["threads"] == 1
    assert record["latency_validation"]["n"] == machine.CHECK_NETS


def test_candidates_are_timed_until_one_keeps_the_budget(device, monkeypatch, tmp_path):
    script = Script(monkeypatch, [*[certain(0.2)] * 5, certain(0.1), *[certain(0.2)] * 4])
    record = find_on_cpu(tmp_path / "run")
    assert script.groups == [5, 5]
    assert record["candidates"][0]["accepted"]
    assert len(record["candidates"]) == 10


def test_a_second_question_measures_only_its_candidates(device, monkeypatch, tmp_path):
    Script(monkeypatch, [certain(0.1)] * 10)
    first = find_on_cpu(tmp_path / "run")
    device.loaded.clear()
    assert find_on_cpu(tmp_path / "again")["arch_id"] == first["arch_id"]
    assert device.loaded == []


def test_a_smaller_table_budget_is_tried_before_giving_up(device, monkeypatch, tmp_path):
    script = Script(monkeypatch, [*[certain(0.14)] * 20, *[certain(0.12)] * 5])
    record = find_on_cpu(tmp_path / "run")
    assert script.groups == [5] * 5
    assert record["latency_ms"] < 0.95 * 0.13
    assert all(c["accepted"] for c in record["candidates"])


TIGHT = 0.075  # ms; a few networks keep it by the table, and none keeps what it is tightened to


def test_the_fastest_network_is_tried_at_last(device, monkeypatch, tmp_path):
    script = Script(monkeypatch, iter(lambda: certain(1.1 * TIGHT), None), lone=certain(0.9 * TIGHT))
    record = find_on_cpu(tmp_path / "run", TIGHT)
    assert script.groups[-1] == 1
    assert record["arch_id"].endswith("@r32-2-2-2-2-2")
    assert record["measured"]["latency_ms_p50"] == 0.9 * TIGHT


@pytest.mark.parametrize("budget_ms", [0.13, TIGHT])
def test_no_candidate_within_the_budget_is_infeasible(device, monkeypatch, tmp_path, budget_ms):
    script = Script(monkeypatch, iter(lambda: certain(1.1 * budget_ms), None))
    text = rf"must be at least about {1.111 * budget_ms:.3f} ms on this machine .*, but got {budget_ms:.3f} ms"
    with pytest.raises(InfeasibleError, match=text) as caught:
        find_on_cpu(tmp_path / "run", budget_ms)
    assert caught.value.exit_code == 3
    assert script.groups[-1] == 1
    assert not (tmp_path / "run").exists()


def test_a_budget_below_the_whole_table_is_infeasible_at_once(device, monkeypatch, tmp_path):
    script = Script(monkeypatch, [])
    with pytest.raises(InfeasibleError, match=r"latency budget must be at least 0\.\d+ ms \(the least of .*\), but got 0\.010 ms"):
        find_on_cpu(tmp_path / "run", 0.01)
    assert script.groups == []


def test_a_measured_objective_keeps_to_its_networks_when_resolutions_are_narrowed(shipped, monkeypatch):
    """Codes of a narrowed space count resolutions anew; the members' own codes do not."""
    space, members = shipped.weights.space.with_resolutions([24, 32]), shipped.members
    rows = np.vstack([np.column_stack([np.full(len(members.codes), r), members.codes[:, 1:]]) for r in (1, 2)])
    both = replace(
        members,
        space=space,
        codes=rows,
        predictions={s: np.vstack([np.roll(p, 1, axis=0), p]) for s, p in members.predictions.items()},
        nodes=np.vstack([members.nodes, members.nodes]),
    )
    supernet = replace(shipped, weights=replace(shipped.weights, space=space), members=both)
    monkeypatch.setattr(zoo, "load_supernet", lambda _: supernet)
    question = setup.Question(budgets=setup.Budgets(macs=1e9), resolutions=(32,))
    *_, found = setup.prepare(question)
    expected = members.top1("validation")
    assert -found.problem.objective(found.space.enumerate()) == pytest.approx(expected)


def test_data_of_another_image_size_is_refused(monkeypatch, tmp_path):
    digits = load_data("digits")
    small = {name: ImageSet(part.images[:, ::2, ::2], part.labels) for name, part in digits.splits.items()}
    monkeypatch.setattr("ofasearch.jobs.find.load_data", lambda _: replace(digits, splits=small))
    with pytest.raises(MismatchError, match="images of digits must have 32 pixels for this supernet, but have 16"):
        ofasearch.find(macs=8e6, data="digits", out=tmp_path)


def test_foreign_data_is_told(tmp_path):
    notes = ofasearch.find(macs=8e6, data="digits", out=tmp_path)["notes"]
    assert any("digits names other classes than the supernet" in note for note in notes)
    assert any("is far below the" in note for note in notes)
