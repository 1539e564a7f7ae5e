"""`pareto` on the shipped supernet: exact fronts against brute force, files, targets, and what cannot be answered."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
from pretended import Device

import ofasearch
from ofasearch import zoo
from ofasearch.errors import InfeasibleError, NotFoundError, UsageError
from ofasearch.jobs import setup
from ofasearch.jobs.pareto import ParetoRequest, pareto
from ofasearch.latency.roofline import DEVICES, estimated_table
from ofasearch.latency.stopwatch import StopRule
from ofasearch.latency.table import save_table
from ofasearch.predictor import Predictor, encoder_of, save_predictor
from ofasearch.predictor.model import Certainty, Cloud
from ofasearch.search.front import hypervolume
from ofasearch.space.costs import activation_bytes_of, macs_of, params_of

pytestmark = pytest.mark.usefixtures("frozen_tables")

DESK = "amd-epyc-ort-1t"
FILES = {"front.csv", "front.json", "plot.png", "hypervolume.csv", "hypervolume.json", "result.json", "log.jsonl"}


@pytest.fixture(scope="module", autouse=True)
def loaded_once(shipped, quick):
    """The shipped supernet is read once."""
    load = zoo.load_supernet
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(zoo, "load_supernet", lambda name: shipped if name == zoo.DEFAULT_SUPERNET else load(name))
        yield


def brute_force(*minimised):
    """Rows that no other one beats, pair by pair."""
    F = np.stack(minimised, axis=1).astype(float)
    return ~((F[:, None] >= F[None]).all(axis=2) & (F[:, None] > F[None]).any(axis=2)).any(axis=1)


def ids(space, codes):
    return {space.arch(row).id for row in codes}


def names(record):
    return [point["arch_id"] for point in record["front"]]


# -- the exact front -------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answer(tmp_path_factory, shipped, quick):
    """One run of the shipped supernet by MACs, and its folder; read only."""
    folder = tmp_path_factory.mktemp("pareto")
    return ofasearch.pareto(prefer="top1>=86,macs<=8.5M", out=folder), folder


def test_the_front_by_macs_is_what_brute_force_finds(answer, shipped):
    record, members, space = answer[0], shipped.members, shipped.weights.space
    top1, macs = members.top1("validation"), macs_of(space)(members.codes)
    kept = brute_force(-top1, macs)
    assert set(names(record)) == ids(space, members.codes[kept])
    assert len(names(record)) == kept.sum() == record["points"]
    assert [p["predicted_top1"] for p in record["front"]] == sorted(top1[kept], reverse=True)
    assert (record["exact"], record["algorithm"], record["evaluations"]) == (True, "exact", 243)
    assert record["predicted_top1_source"] == "measured on the validation split"


def test_every_network_tells_all_its_costs(answer, shipped):
    space = shipped.weights.space
    for point in answer[0]["front"]:
        codes = np.array(space.parse(point["arch_id"]).codes)[None]
        prices = macs_of(space), params_of(space), activation_bytes_of(space)
        assert tuple(point[key] for key in ("macs", "params", "activation_bytes")) == tuple(int(price(codes)[0]) for price in prices)
        assert point["arch"]["d"] == space.settings(codes).d[0].tolist()
        assert "latency_ms" not in point  # what was not asked is absent


def test_the_front_by_a_table_is_what_brute_force_finds(tmp_path, shipped):
    record = ofasearch.pareto(target=DESK, out=tmp_path)
    members, space = shipped.members, shipped.weights.space
    latency = zoo.get_table(DESK, space).cost(space)(members.codes)
    assert set(names(record)) == ids(space, members.codes[brute_force(-members.top1("validation"), latency)])
    assert record["objectives"] == ["top1", "latency"]
    assert (record["target"], record["latency_source"]) == (DESK, "measured")
    assert {point["latency_source"] for point in record["front"]} == {"measured"}
    by_name = {space.arch(row).id: ms for row, ms in zip(members.codes, latency, strict=True)}
    assert all(point["latency_ms"] == by_name[point["arch_id"]] for point in record["front"])


def test_the_front_of_four_objectives_is_what_brute_force_finds(tmp_path, shipped):
    members, space = shipped.members, shipped.weights.space
    record = ofasearch.pareto(objectives=("top1", "memory", "params", "macs"), out=tmp_path)
    costs = [price(space)(members.codes) for price in (activation_bytes_of, params_of, macs_of)]
    assert set(names(record)) == ids(space, members.codes[brute_force(-members.top1("validation"), *costs)])
    assert record["objective_fields"] == ["predicted_top1", "activation_bytes", "params", "macs"]
    assert 0 < record["hypervolume"] < 1.2


def test_limits_narrow_the_front(tmp_path, shipped):
    members, space = shipped.members, shipped.weights.space
    params, macs = params_of(space)(members.codes), macs_of(space)(members.codes)
    limit = float(np.median(params))
    record = ofasearch.pareto(params=limit, out=tmp_path)
    kept = members.codes[params <= limit]
    front = brute_force(-members.top1("validation")[params <= limit], macs[params <= limit])
    assert set(names(record)) == ids(space, kept[front])
    assert record["limits"] == {"params": limit}
    assert record["evaluations"] == len(kept) < 243


def test_the_knee_and_the_preferred_network_are_of_the_front(answer):
    record = answer[0]
    for name in ("knee", "preferred"):
        assert [point for point in record["front"] if point[name]] == [record[name]]
    keeping = [p for p in record["front"] if p["predicted_top1"] >= 0.86 and p["macs"] <= 8.5e6]
    assert record["preferred"] == max(keeping, key=lambda p: p["predicted_top1"])
    assert record["preferred_because"] == f"the most accurate of the {len(keeping)} on the front that keep top1 >= 86.00 %, macs <= 8.5 M"


def test_the_hypervolume_is_that_of_the_front_in_its_box(answer):
    record = answer[0]
    best, reference = ([record[f"hypervolume_{end}"][key] for key in record["objective_fields"]] for end in ("best", "reference"))
    F = np.array([[-p["predicted_top1"], p["macs"]] for p in record["front"]])
    reference, best = np.array([-reference[0], reference[1]]), np.array([-best[0], best[1]])
    assert record["hypervolume"] == pytest.approx(hypervolume(F, reference) / np.prod(reference - best))


def test_the_folder_holds_the_same_in_every_form(answer):
    record, folder = answer
    assert {path.name for path in folder.iterdir()} == FILES
    assert json.loads((folder / "result.json").read_text()) == record
    told = json.loads((folder / "front.json").read_text())
    assert (told["front"], told["knee"], told["preferred"]) == (record["front"], record["knee"], record["preferred"])
    with (folder / "front.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["arch_id"] for row in rows] == names(record)
    for row, point in zip(rows, record["front"], strict=True):
        assert float(row["predicted_top1"]) == point["predicted_top1"]
        assert (int(row["macs"]), int(row["params"])) == (point["macs"], point["params"])
        assert row["predicted_top1_source"] == "measured on the validation split"
        assert (row["knee"], row["preferred"]) == (str(int(point["knee"])), str(int(point["preferred"])))
    assert (folder / "plot.png").read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    trace = json.loads((folder / "hypervolume.json").read_text())
    assert trace[0]["trace"] == [{"generation": 0, "evaluations": 243, "points": record["points"], "hypervolume": record["hypervolume"]}]
    assert (folder / "hypervolume.csv").read_text().splitlines()[1].startswith("exact,0,243,")
    line = json.loads((folder / "log.jsonl").read_text())
    assert (line["event"], line["result"]) == ("pareto", record)
    assert set(record["files"].values()) == {str(folder / name) for name in FILES - {"result.json", "log.jsonl"}}


def test_one_network_is_a_front(tmp_path, shipped):
    space = shipped.weights.space
    record = ofasearch.pareto(macs=float(macs_of(space).bounds().lowest), out=tmp_path)
    assert names(record) == [space.arch(space.smallest()).id]
    assert "knee" not in record
    assert (tmp_path / "plot.png").stat().st_size > 0


# -- predictors with error bars --------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def unsure(tmp_path_factory, shipped):
    """A predictor of two members that disagree, and only knows networks near the smallest."""
    space = shipped.weights.space
    encoder, rng = encoder_of(space), np.random.default_rng(0)
    weight = rng.normal(0.003, 0.006, size=(2, encoder.dims, 1)).astype(np.float32)
    near = encoder.encode(space.settings(space.smallest()[None]))[0]
    cloud = Cloud(np.diag(1 - near).astype(np.float32), 15.0)
    predictor = Predictor(
        encoder,
        (weight,),
        (np.zeros((2, 1), dtype=np.float32),),
        0.5,
        space.name,
        shipped.weights.digest,
        certainty=Certainty(0.001, {0.8: 1.3}),
        cloud=cloud,
    )
    path = tmp_path_factory.mktemp("predictor") / "unsure.safetensors"
    save_predictor(path, predictor)
    return str(path)


def test_error_bars_are_told_and_the_lower_bound_is_an_objective(tmp_path, shipped, unsure):
    record = ofasearch.pareto(objectives=("lcb", "macs"), predictor=unsure, prefer="lcb>=50", out=tmp_path)
    members, space = shipped.members, shipped.weights.space
    top1, bar = zoo.get_predictor(unsure).with_error(space.settings(members.codes))
    assert set(names(record)) == ids(space, members.codes[brute_force(bar - top1, macs_of(space)(members.codes))])
    assert set(names(record)) != ids(space, members.codes[brute_force(-top1, macs_of(space)(members.codes))])
    by_name = {space.arch(row).id: (top1[i], bar[i]) for i, row in enumerate(members.codes)}
    for point in record["front"]:
        assert (point["predicted_top1"], point["error_bar"]) == pytest.approx(by_name[point["arch_id"]])
        assert point["lower_bound_top1"] == pytest.approx(point["predicted_top1"] - point["error_bar"])
    assert (record["error_bar_level"], record["predicted_top1_source"]) == (0.8, "accuracy predictor")
    odd = [p for p in record["front"] if "outside_fitted_networks" in p]
    assert 0 < len(odd) < record["points"]
    assert (
        f"{len(odd)} of the {record['points']} networks lie outside those that the predictor was fitted on: trust their top-1 less"
        in record["notes"]
    )
    header = (tmp_path / "front.csv").read_text().splitlines()[0]
    assert header.startswith("arch_id,predicted_top1,error_bar,lower_bound_top1,")


def test_measured_networks_have_no_lower_bound(tmp_path):
    with pytest.raises(UsageError, match="--prefer lcb needs a predictor that carries error bars"):
        ofasearch.pareto(prefer="lcb>=80", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_the_lower_bound_is_that_of_the_shipped_predictor(tmp_path):
    record = ofasearch.pareto(objectives=("lcb", "macs"), out=tmp_path)
    assert (record["predictor"], record["predicted_top1_source"]) == ("cifar10-compofa", "accuracy predictor")
    assert all(point["error_bar"] > 0 for point in record["front"])


# -- targets ---------------------------------------------------------------------------------------------------


def test_estimates_say_that_they_are(tmp_path):
    record = ofasearch.pareto(target="rtx2080", out=tmp_path)
    assert record["latency_source"] == "estimated"
    assert any("rtx2080 are estimated from its published peaks" in note for note in record["notes"])


@pytest.mark.parametrize("measure", ["table", "direct"])
def test_this_machine_is_measured(tmp_path, monkeypatch, measure, shipped):
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr("ofasearch.jobs.direct.DIRECT_RULE", StopRule(min_bursts=2, max_bursts=2, warmup=1, min_sample_ms=0.0))
    device = Device().pretend(monkeypatch)
    record = ofasearch.pareto(target="cpu", measure=measure, out=tmp_path / "run")
    space, members = shipped.weights.space, shipped.members
    ms = np.array([device.ms(space.blueprint(row)) for row in members.codes])
    assert set(names(record)) == ids(space, members.codes[brute_force(-members.top1("validation"), ms)])
    assert (record["latency_source"], record["device"]["device"]) == ("measured", "pretended")
    assert record.get("measure") == ("direct" if measure == "direct" else None)
    assert any("latencies are those of the table" in note for note in record["notes"]) == (measure == "table")


def test_further_devices_limit_the_front_and_are_told(tmp_path, shipped):
    space, members = shipped.weights.space, shipped.members
    costs = {name: zoo.get_table(name, space).cost(space)(members.codes) for name in (DESK, "rtx2080")}
    limit = float(np.median(costs["rtx2080"]))
    budgets = setup.Budgets(latency_ms=1.0)
    question = setup.Question(budgets=budgets, target=DESK, also=(setup.DeviceBudget(target="rtx2080", latency_ms=limit),))
    *_, result = pareto(ParetoRequest(question=question, out=tmp_path))
    kept = costs["rtx2080"] <= limit
    front = members.codes[kept][brute_force(-members.top1("validation")[kept], costs[DESK][kept])]
    assert set(names(result.record)) == ids(space, front)
    for point in result.record["front"]:
        assert set(point["devices"]) == {DESK, "rtx2080"}
        assert point["devices"]["rtx2080"] <= limit
        assert point["devices"][DESK] == point["latency_ms"]


# -- what cannot be answered -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("question", "error", "text"),
    [
        ({"objectives": ("top1", "latency")}, UsageError, "latency needs a device"),
        ({"prefer": "latency<=3ms"}, UsageError, "latency needs a device"),
        ({"latency_ms": 1.0}, UsageError, "a latency budget needs a device"),
        ({"macs": 1e6}, InfeasibleError, r"MACs budget must be at least 4\.155 M"),
        ({"macs": -1.0}, UsageError, "MACs budget must be positive"),
        ({"algorithm": "magic"}, UsageError, "--algorithm must be one of exact, .*nsga2"),
        ({"seed": -1}, UsageError, "--seed must be at least 0"),
        ({"population": 1, "algorithm": "nsga2"}, UsageError, "population of at least 4"),
        ({"space": "nowhere"}, NotFoundError, "space must be one of"),
        ({"target": "nowhere"}, NotFoundError, "target must be cpu"),
        ({"space": "ofa-mbv3-cifar"}, NotFoundError, "needs an accuracy predictor"),
        ({"measure": "direct"}, UsageError, "--measure direct times networks on this machine"),
    ],
)
def test_a_question_without_an_answer_is_refused(tmp_path, question, error, text):
    with pytest.raises(error, match=text):
        ofasearch.pareto(**question, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("algorithm", ["exact", "nsga2", "random"])
def test_an_empty_front_names_the_nearest_network(tmp_path, shipped, algorithm):
    space = shipped.weights.space
    table = estimated_table(space, DEVICES["v100"])

    def ms(shape):  # wide blocks are fast, so that small networks are slow
        kind, c_in, c_mid = shape[:3]
        return 0.1 if kind == "mbconv" and c_mid > 4 * c_in else 1.0

    rows = {key: replace(row, ms=ms(key[1]), p90_ms=ms(key[1])) for key, row in table.rows.items()}
    save_table(tmp_path / "wide.csv", replace(table, name="wide", rows=rows))
    limits = {"macs": macs_of(space).bounds().lowest, "latency_ms": 1.01 * replace(table, rows=rows).cost(space).bounds().lowest}
    text = r"must keep all budgets together, but none was found for .*; the nearest .*takes latency [\d.]+ ms, MACs [\d.]+ M \(compofa-mbv3"
    with pytest.raises(InfeasibleError, match=text):
        ofasearch.pareto(target=str(tmp_path / "wide.csv"), algorithm=algorithm, **limits, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_wishes_that_nothing_keeps_name_the_nearest_and_leave_the_front(tmp_path):
    with pytest.raises(
        InfeasibleError,
        match=r"must keep top1 >= 99\.00 % and macs <= 5 M, but none of 16 does; the nearest is compofa-mbv3-cifar@r32-.* with top1 8",
    ):
        ofasearch.pareto(prefer="top1>=99,macs<=5M", out=tmp_path)
    record = json.loads((tmp_path / "result.json").read_text())
    assert record["points"] == 16
    assert "preferred" not in record
    assert {path.name for path in tmp_path.iterdir()} == FILES
