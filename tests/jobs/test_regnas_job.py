"""`regnas` on the shipped supernet: the answer is the best by counting, every figure is numpy's, files agree, folders are respected."""

import csv
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from brute import drained, flips
from pretended import Device

import ofasearch
from ofasearch import zoo
from ofasearch.errors import InfeasibleError, MismatchError, OfaSearchError, UsageError, VerificationError
from ofasearch.jobs.deliver import load_subnet
from ofasearch.jobs.quantities import fraction
from ofasearch.jobs.regnas_hunt import begin, hunt
from ofasearch.jobs.regnas_task import RegnasRequest
from ofasearch.jobs.searching import FindRequest
from ofasearch.jobs.setup import Budgets, Question
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.ranks import Ranks
from ofasearch.search.regnas import Reward
from ofasearch.space.costs import costs

FILES = {
    "subnet.pt",
    "subnet.onnx",
    "subnet.md",
    "net.config",
    "run.config",
    "flips.json",
    "flips.csv",
    "run.json",
    "result.json",
    "log.jsonl",
}
SMALL, MIDDLE, LARGE = (f"compofa-mbv3-cifar@r32-{d}" for d in ("2-2-2-2-2", "2-4-3-3-3", "4-3-4-2-4"))


pytestmark = pytest.mark.usefixtures("loaded_once")


@pytest.fixture(scope="module")
def first(tmp_path_factory, loaded_once, quick):
    """The run that made the model in production; read only."""
    folder = tmp_path_factory.mktemp("first")
    record = ofasearch.find(macs=4.6e6, out=folder / "run")
    shutil.copy(record["files"]["subnet"], folder / "model150.pt")
    return record, folder


@pytest.fixture(scope="module")
def model(first):
    return first[1] / "model150.pt"


@pytest.fixture(scope="module")
def answer(model, tmp_path_factory):
    """What nothing but the reference asks for, and its folder; read only."""
    folder = tmp_path_factory.mktemp("regnas") / "run"
    return ofasearch.regnas(ref=model, out=folder), folder


def hunted(ref, *, macs=None, reward=None, cas=None, **options):
    """One search without any files; the best of it and its record."""
    question = Question(budgets=Budgets(macs=macs), objective="measured")
    request = RegnasRequest(find=FindRequest(question=question, **options), ref=str(ref), reward=reward or Reward(), cas=cas)
    campaign = drained(begin(request, Ranks()))
    return drained(hunt(campaign, request.reward, [campaign.reference]))


def facts(record):
    """The answer without what differs between runs that found the same."""
    return {key: value for key, value in record.items() if key not in ("files", "search_seconds")}


# -- the answer ------------------------------------------------------------------------------------------------


def test_by_default_the_budget_is_twice_the_macs_of_the_reference(first, answer):
    record, folder = answer
    budgets = json.loads((folder / "run.json").read_text())["asked"]["find"]["question"]["budgets"]
    assert budgets == {"latency_ms": None, "macs": 2 * first[0]["macs"], "params": None, "memory_bytes": None}
    assert first[0]["macs"] < record["macs"] <= 2 * first[0]["macs"]


def test_by_default_the_answer_contains_the_reference_and_has_the_best_reward(first, answer, everything):
    record, row = answer[0], everything.row(first[0]["arch_id"])
    highest, ids = everything.best([everything.predicted["validation"][row]], macs=2 * first[0]["macs"], within=row, without=[row])
    assert record["reward_value"] == pytest.approx(highest)
    assert record["arch_id"] in ids
    assert (record["reward"], record["lambda1"], record["lambda2"], record["cas"]) == ("r2", 1, 1, True)
    assert record["evaluations"] == sum((everything.macs <= 2 * first[0]["macs"]) & everything.containing(row)) - 1


REWARDS = [Reward(kind="r0"), Reward(kind="r1"), *(Reward(lambda1=a, lambda2=b) for a, b in ((1, 1), (1, 0.05), (1, 5), (0.3, 40), (2, 0)))]


@pytest.mark.parametrize("cas", [True, False])
@pytest.mark.parametrize("ref", [SMALL, MIDDLE, LARGE])
def test_the_winner_is_the_best_by_counting(everything, ref, cas):
    row, macs = everything.row(ref), 13e6 if ref == LARGE else None
    old = everything.predicted["validation"][row]
    ends = {"r0": (1, 0), "r1": (0, 1)}
    for reward in REWARDS:
        found = hunted(ref, macs=macs, reward=reward, cas=cas)
        weights = ends.get(reward.kind, (reward.lambda1, reward.lambda2))
        limit = macs or 2 * everything.macs[row]
        highest, ids = everything.best([old], macs=limit, weights=weights, within=row if cas else None, without=[row])
        assert found.outcome.candidates[0].arch_id in ids
        assert -found.outcome.candidates[0].objective == pytest.approx(highest)
        assert ref not in {candidate.arch_id for candidate in found.outcome.candidates}


@pytest.mark.parametrize("seed", [0, 1, 2])
@pytest.mark.parametrize("lambda2", [1.0, 5.0])
def test_a_third_of_the_space_leads_close_to_the_best(everything, lambda2, seed):
    row, limit = everything.row(SMALL), 14e6
    found = hunted(SMALL, macs=limit, reward=Reward(lambda2=lambda2), cas=False, algorithm="surrogate", seed=seed)
    old = everything.predicted["validation"][row]
    highest, _ = everything.best([old], macs=limit, weights=(1, lambda2), without=[row])
    assert found.outcome.tally.evaluations <= sum(everything.macs <= limit) / 3
    usual = (everything.top1() - lambda2 * everything.nfr(old)).mean()
    assert highest - 0.1 * (highest - usual) <= -found.outcome.candidates[0].objective <= highest + 1e-12


@pytest.mark.parametrize("cas", [True, False])
@pytest.mark.parametrize(("kind", "cap"), [("r0", 0.02), ("r0", 0.0123), ("r2", 0.01), ("r1", 0.03)])
def test_a_cap_holds_for_the_winner(everything, kind, cap, cas):
    row = everything.row(SMALL)
    old = everything.predicted["validation"][row]
    found = hunted(SMALL, macs=12e6, reward=Reward(kind=kind, nfr_cap=cap), cas=cas)
    weights = {"r0": (1, 0), "r1": (0, 1), "r2": (1, 1)}[kind]
    highest, ids = everything.best([old], macs=12e6, weights=weights, cap=cap, within=row if cas else None, without=[row])
    assert found.outcome.candidates[0].arch_id in ids
    assert found.measured[0, 1] <= cap
    assert weights[0] * found.measured[0, 0] - weights[1] * found.measured[0, 1] == pytest.approx(highest)


def test_a_cap_that_no_network_keeps_names_the_lowest_that_can_be_kept(everything):
    row = everything.row(MIDDLE)
    within = everything.containing(row) & (everything.macs <= 12e6)
    within[row] = False
    lowest = everything.nfr(everything.predicted["validation"][row])[within].min()
    with pytest.raises(InfeasibleError, match="--nfr-cap must be at least") as caught:
        hunted(MIDDLE, macs=12e6, reward=Reward(kind="r0", nfr_cap=lowest - 1e-4))
    named = str(caught.value).split("at least ")[1].split(" (")[0]
    found = hunted(MIDDLE, macs=12e6, reward=Reward(kind="r0", nfr_cap=fraction(named)))
    assert found.measured[0, 1] == pytest.approx(lowest)


def test_a_cap_takes_every_rate_that_it_names():
    """0.7 % is a little less than 35 of 5,000 images, in floats."""
    for count in range(1, 1000):
        cap = Reward(kind="r0", nfr_cap=fraction(f"{count / 50:.2f}%"))
        assert cap.keeps_cap(np.array([[0.9, count / 5000], [0.9, (count + 1) / 5000]])).tolist() == [True, False]


def test_candidates_are_the_five_best_and_all_contain_the_reference(first, answer, everything):
    row, record = everything.row(first[0]["arch_id"]), answer[0]
    old = everything.predicted["validation"][row]
    kept = everything.containing(row) & (everything.macs <= 2 * first[0]["macs"])
    kept[row] = False
    rewards = everything.top1() - everything.nfr(old)
    assert [c["reward_value"] for c in record["candidates"]] == pytest.approx(sorted(rewards[kept], reverse=True)[:5])
    for candidate in record["candidates"]:
        i = everything.row(candidate["arch_id"])
        assert kept[i]
        assert (candidate["predicted_top1"], candidate["nfr"]) == pytest.approx((everything.top1()[i], everything.nfr(old)[i]))
        assert candidate["reward_value"] == pytest.approx(rewards[i])


def test_without_containment_other_networks_may_win(everything):
    """Else the other tests would prove little."""
    found = hunted(MIDDLE, reward=Reward(kind="r0"), macs=8.6e6, cas=False)
    assert not everything.containing(everything.row(MIDDLE))[everything.row(found.outcome.candidates[0].arch_id)]


# -- its figures -----------------------------------------------------------------------------------------------


def test_the_figures_are_those_of_numpy_on_both_splits(first, answer, everything):
    record = answer[0]
    old, new = everything.row(first[0]["arch_id"]), everything.row(record["arch_id"])
    for split, key in (("validation", "validation"), ("test", "measured")):
        expected = flips(everything.predicted[split][old], everything.predicted[split][new], everything.labels[split])
        assert {name: record[key][name] for name in expected} == pytest.approx(expected)
        told = record[key]
        assert told["top1"] - told["top1_ref"] == pytest.approx(told["pfr"] - told["nfr"], abs=1e-15)
        assert (told["negative_flips"], told["positive_flips"]) == (round(told["nfr"] * told["n"]), round(told["pfr"] * told["n"]))
        assert told["relative_nfr"] == pytest.approx(told["nfr"] / (told["top1_ref"] * (1 - told["top1"])))
    assert record["measured"]["source"] == "shipped"
    assert record["predicted_top1"] == record["validation"]["top1"]
    assert record["reference"] == {
        "name": record["reference"]["name"],
        "kind": "subnet",
        "arch_id": first[0]["arch_id"],
        "macs": first[0]["macs"],
    }
    assert record["measured"]["top1_ref"] == first[0]["measured"]["top1"]


def test_the_answer_has_the_fields_of_find_and_its_own(first, answer):
    record = answer[0]
    assert first[0].keys() - {"candidates"} <= record.keys()
    assert first[0]["measured"].keys() <= record["measured"].keys()
    assert {"reward", "lambda1", "lambda2", "contains_reference", "reference", "cas"} <= record.keys()
    assert {"nfr", "pfr", "top1_ref", "top1"} <= record["measured"].keys()
    assert not [key for key in record["measured"] if key.startswith("validation")]  # the search went by it: it stands apart
    assert json.loads(json.dumps(record, allow_nan=False)) == record


@pytest.mark.parametrize("reward", ["r0", "r1"])
def test_weights_are_told_only_of_the_reward_that_has_them(model, tmp_path, reward):
    record = ofasearch.regnas(ref=model, reward=reward, nfr_cap=0.02, cas=False, out=tmp_path / "run")
    assert (record["reward"], record["nfr_cap"], record["cas"]) == (reward, 0.02, False)
    assert not {"lambda1", "lambda2"} & record.keys()
    assert isinstance(record["contains_reference"], bool)


@pytest.mark.parametrize(("ref", "macs"), [(SMALL, 7e6), (MIDDLE, 11e6)])
def test_it_is_told_whether_the_reference_is_contained_though_it_need_not_be(everything, tmp_path, ref, macs):
    record = ofasearch.regnas(ref=ref, macs=macs, reward="r0", cas=False, out=tmp_path / "run")
    assert record["contains_reference"] == bool(everything.containing(everything.row(ref))[everything.row(record["arch_id"])])
    assert ("effective_filters_equal" in record) == record["contains_reference"]


def test_the_test_split_has_no_part_in_the_choice(answer, model, shipped, monkeypatch, tmp_path):
    members, rng = shipped.members, np.random.default_rng(0)
    noise = rng.integers(0, 10, members.predictions["test"].shape, dtype=np.uint8)
    other = replace(shipped, members=replace(members, predictions={**members.predictions, "test": noise}))
    monkeypatch.setattr(zoo, "load_supernet", lambda _: other)
    record = ofasearch.regnas(ref=model, out=tmp_path / "run")
    same = ("arch_id", "candidates", "validation", "reward_value", "predicted_top1")
    assert {key: record[key] for key in same} == {key: answer[0][key] for key in same}
    assert record["measured"]["top1"] == pytest.approx(0.1, abs=0.02)  # the test split only reports


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"lambda2": 9.0}, "keeping the reference would have the reward"),
        ({"lambda2": 0.1}, None),
        ({"reward": "r0", "macs": 4.6e6, "cas": False}, "no network that was found is more accurate than the reference"),
        ({"reward": "r1"}, None),  # by flips alone nothing is ever better
    ],
)
def test_it_is_told_where_keeping_the_reference_would_be_better(first, everything, tmp_path, options, text):
    ref = first[0]["arch_id"]
    record = ofasearch.regnas(ref=ref, out=tmp_path / "run", **options)
    kept = -1 if record["reward"] == "r1" else everything.top1()[everything.row(ref)]
    assert (record["reward_value"] < kept) == (text is not None)
    assert [note.startswith(text) for note in record["notes"]] == [True] if text else record["notes"] == []


# -- files -----------------------------------------------------------------------------------------------------


def test_the_folder_holds_what_the_answer_names(answer):
    record, folder = answer
    named = {"onnx": "subnet.onnx", "card": "subnet.md", "subnet": "subnet.pt", "net_config": "net.config"}
    named |= {"flips": "flips.json", "flips_csv": "flips.csv"}
    assert record["files"] == {key: str(folder / name) for key, name in named.items()}
    assert {path.name for path in folder.iterdir()} == FILES
    assert json.loads((folder / "result.json").read_text()) == record
    line = json.loads((folder / "log.jsonl").read_text())
    assert (line["event"], line["result"]) == ("regnas", record)
    run = json.loads((folder / "run.json").read_text())
    assert (run["format"], run["finished"], line["asked"]) == ("ofasearch-regnas-1", True, run["asked"])


def test_the_network_in_the_files_is_the_winner(answer, everything):
    record, folder = answer
    subnet, told = load_subnet(folder / "subnet.pt")
    row = everything.row(record["arch_id"])
    assert (subnet.arch.id, subnet.blueprint) == (record["arch_id"], everything.space.blueprint(everything.codes[row]))
    assert (told["reward"], told["lambda1"], told["lambda2"], told["reference"]) == ("r2", 1, 1, record["reference"])
    assert told["validation"] == record["validation"]
    metadata = OnnxModel(folder / "subnet.onnx").metadata
    assert (metadata["arch_id"], json.loads(metadata["validation"])) == (record["arch_id"], record["validation"])


def test_the_flip_report_is_that_of_the_test_split(first, answer, everything):
    record, folder = answer
    report = json.loads((folder / "flips.json").read_text())
    measured = record["measured"]
    assert (report["old"], report["new"], report["split"]) == (record["reference"]["name"], record["arch_id"], "test")
    pairs = (("top1_old", "top1_ref"), ("top1_new", "top1"), ("nfr", "nfr"), ("pfr", "pfr"), ("n", "n"))
    assert [report[a] for a, _ in pairs] == [measured[b] for _, b in pairs]
    old, new = (everything.predicted["test"][everything.row(name)] for name in (first[0]["arch_id"], record["arch_id"]))
    labels = everything.labels["test"]
    with (folder / "flips.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    for kind, mask in (("negative", (old == labels) & (new != labels)), ("positive", (old != labels) & (new == labels))):
        assert [int(row["index"]) for row in rows if row["flip"] == kind] == np.flatnonzero(mask).tolist()
    assert ofasearch.flips(str(first[1] / "model150.pt"), str(folder / "subnet.pt"))["nfr"] == measured["nfr"]


def test_an_export_that_differs_leaves_nothing(model, tmp_path, monkeypatch):
    monkeypatch.setattr("ofasearch.latency.onnx_model.OnnxModel.__call__", lambda _, inputs: np.zeros((len(inputs), 10), np.float32))
    with pytest.raises(VerificationError, match="must give the network's logits"):
        ofasearch.regnas(ref=model, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_the_folder_has_a_name_by_default(model, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    record = ofasearch.regnas(ref=model)
    assert record["files"]["subnet"] == str(tmp_path / "runs" / "regnas-compofa-mbv3-cifar" / "subnet.pt")


# -- references ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def saved(first, everything, model):
    """What the model in production predicted, as anybody would save it."""
    row = everything.row(first[0]["arch_id"])
    np.savez(model.with_name("production.npz"), **{split: p[row] for split, p in everything.predicted.items()})
    return model.with_name("production.npz")


def references(first, saved):
    record, folder = first
    return {
        "subnet": folder / "run",
        "file": folder / "model150.pt",
        "onnx": record["files"]["onnx"],
        "arch": record["arch_id"],
        "saved": saved,
    }


def test_a_reference_may_be_given_in_any_form(first, saved, tmp_path, everything):
    row = everything.row(first[0]["arch_id"])
    highest, ids = everything.best([], macs=9e6, weights=(1, 0))
    for form, ref in references(first, saved).items():
        record = ofasearch.regnas(ref=ref, macs=9e6, reward="r0", cas=False, out=tmp_path / form)
        assert record["arch_id"] in ids
        new = everything.row(record["arch_id"])
        for split, key in (("validation", "validation"), ("test", "measured")):
            expected = flips(everything.predicted[split][row], everything.predicted[split][new], everything.labels[split])
            assert {name: record[key][name] for name in expected} == pytest.approx(expected), form
        assert ("contains_reference" in record) == (form != "saved")
        assert record["predicted_top1"] == pytest.approx(highest)


def test_every_form_of_one_network_has_the_same_answer(first, answer, saved):
    for form, ref in references(first, saved).items():
        if form != "saved":
            found = hunted(ref)
            assert [c.arch_id for c in found.outcome.candidates] == [c["arch_id"] for c in answer[0]["candidates"]], form


def test_saved_predictions_need_a_budget_and_cannot_be_contained(saved, tmp_path):
    with pytest.raises(UsageError, match=r"a budget must be given, because the MACs of .*production\.npz are not known: add --flops"):
        ofasearch.regnas(ref=saved, out=tmp_path / "run")
    with pytest.raises(
        MismatchError, match=r"with --cas the reference must be a subnet of the searched supernet \(same digest\), but .*npz is not"
    ):
        ofasearch.regnas(ref=saved, macs=9e6, cas=True, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    record = ofasearch.regnas(ref=saved, macs=9e6, out=tmp_path / "run")
    assert record["cas"] is False
    assert any("is not known to be a subnet of cifar10-compofa" in note for note in record["notes"])
    assert record["reference"] == {"name": str(saved), "kind": "predictions"}


def test_predictions_of_another_network_are_a_reference_too(everything, tmp_path):
    rng = np.random.default_rng(1)
    olds = {split: np.where(rng.random(len(y)) < 0.8, y, (y + 1) % 10) for split, y in everything.labels.items()}
    np.savez(tmp_path / "old.npz", **olds)
    for lambda2 in (0.5, 3):
        found = hunted(tmp_path / "old.npz", macs=9e6, reward=Reward(lambda2=lambda2))
        highest, ids = everything.best([olds["validation"]], macs=9e6, weights=(1, lambda2))
        assert found.outcome.candidates[0].arch_id in ids
        assert -found.outcome.candidates[0].objective == pytest.approx(highest)


@pytest.mark.parametrize("change", [{"validation": 4999}, {"test": 10_001}, {"validation": None}])
def test_predictions_of_other_images_are_refused(everything, saved, tmp_path, change):
    with np.load(saved) as arrays:
        found = {split: np.resize(a, change[split]) if change.get(split) else a for split, a in arrays.items() if change.get(split, 1)}
    np.savez(tmp_path / "wrong.npz", **found)
    with pytest.raises(MismatchError, match="must hold"):
        ofasearch.regnas(ref=tmp_path / "wrong.npz", macs=9e6, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("change", ["weight", "statistics", "preprocessing"])
def test_a_network_that_was_changed_is_not_taken_for_the_shipped_one(model, tmp_path, change):
    from ofasearch.jobs.deliver import save_subnet

    subnet, told = load_subnet(model)
    arrays = {key: array.copy() for key, array in subnet.arrays.items()}
    key = next(k for k in arrays if k.endswith("running_mean" if change == "statistics" else "conv.weight"))
    if change == "preprocessing":
        subnet = replace(subnet, preprocessing=replace(subnet.preprocessing, mean=(0.5, 0.5, 0.5)))
    else:
        arrays[key].flat[0] += 0.25
    save_subnet(tmp_path / "changed.pt", replace(subnet, arrays=arrays), told)
    with pytest.raises(MismatchError, match=r"must be a network of cifar10-compofa with its shipped statistics .*add --data"):
        ofasearch.regnas(ref=tmp_path / "changed.pt", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


# -- budgets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (
            {"macs": 4.4e6},
            r"MACs budget must be at least 4\.495 M, what the reference takes .*because the network must contain .*but got 4\.4 M",
        ),
        (
            {"macs": 4.5e6},
            r"the nearest possible network takes MACs 4\.796 M .*, which it is compared with, is no answer; raise them, or add --no-cas",
        ),
        (
            {"params": 1e5},
            "parameter budget must be at least .*the network must contain all weights of the reference, unless you add --no-cas",
        ),
        ({"macs": 4e6, "cas": False}, r"MACs budget must be at least 4\.155 M \(the least of"),
        ({"nfr_cap": 0.001}, r"--nfr-cap must be at least 0\.44 % .*on 5,000 validation images\), but got 0\.1 %"),
    ],
)
def test_what_no_network_keeps_is_infeasible_and_leaves_no_folder(model, tmp_path, options, text):
    with pytest.raises(InfeasibleError, match=text) as caught:
        ofasearch.regnas(ref=model, out=tmp_path / "runs" / "run", **options)
    assert caught.value.exit_code == 3
    assert list(tmp_path.iterdir()) == []


def test_nothing_but_the_largest_network_contains_it(tmp_path):
    with pytest.raises(InfeasibleError, match=r"another network must contain .*r32-4-4-4-4-4, but none does; add --no-cas"):
        ofasearch.regnas(ref="compofa-mbv3-cifar@r32-4-4-4-4-4", out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_all_budgets_hold_together(everything, model, first, tmp_path):
    row = everything.row(first[0]["arch_id"])
    prices = [costs(everything.space.blueprint(codes)) for codes in everything.codes]
    table = np.array([(price.macs, price.params, price.activation_bytes) for price in prices])
    limits = np.quantile(table[everything.containing(row)], 0.6, axis=0)
    kept = everything.containing(row) & (table <= limits).all(axis=1)
    kept[row] = False
    record = ofasearch.regnas(ref=model, macs=limits[0], params=limits[1], memory_bytes=limits[2], out=tmp_path / "run")
    assert 1 < record["evaluations"] == kept.sum()
    rewards = everything.top1() - everything.nfr(everything.predicted["validation"][row])
    assert record["reward_value"] == pytest.approx(rewards[kept].max())


def test_a_latency_budget_is_kept_by_measurement(model, first, tmp_path, monkeypatch, everything):
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
    device = Device().pretend(monkeypatch)
    limit = 0.13
    record = ofasearch.regnas(ref=model, target="cpu", latency_ms=limit, out=tmp_path / "run")
    assert record["measured"]["latency_ms_p50"] <= limit
    assert record["latency_source"] == "measured"
    assert record["candidates"][0]["accepted"]
    rewards = [c["reward_value"] for c in record["candidates"]]
    assert rewards == sorted(rewards, reverse=True)
    row = everything.row(first[0]["arch_id"])
    assert everything.containing(row)[everything.row(record["arch_id"])]
    fast = [i for i, codes in enumerate(everything.codes) if device.ms(everything.space.blueprint(codes)) <= limit]
    within = set(fast) & set(np.flatnonzero(everything.containing(row)).tolist()) - {row}
    best = max((everything.top1() - everything.nfr(everything.predicted["validation"][row]))[list(within)])
    assert record["reward_value"] == pytest.approx(best)


# -- folders ---------------------------------------------------------------------------------------------------


def test_a_folder_of_another_kind_of_run_is_left_alone(model, first, tmp_path):
    shutil.copytree(first[1] / "run", tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(UsageError, match="must be a new folder or that of an earlier regnas, but holds another run"):
        ofasearch.regnas(ref=model, out=tmp_path / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("name", ["run", "run/subnet.pt", "run/subnet.onnx"])
def test_the_reference_is_not_written_over(answer, tmp_path, name):
    shutil.copytree(answer[1], tmp_path / "run")
    with pytest.raises(UsageError, match=r"the reference must lie outside of the run's folder, but .* would be replaced"):
        ofasearch.regnas(ref=tmp_path / name, macs=12e6, out=tmp_path / "run")
    assert (tmp_path / "run" / "subnet.pt").read_bytes() == (answer[1] / "subnet.pt").read_bytes()
    assert (tmp_path / "run" / "run.json").read_bytes() == (answer[1] / "run.json").read_bytes()


def test_a_run_is_resumed_if_its_question_is_the_same(answer, model, tmp_path):
    with pytest.raises(UsageError, match=r"--resume needs the folder of an interrupted run, but .* holds none; leave it out"):
        ofasearch.regnas(ref=model, resume=True, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    shutil.copytree(answer[1], tmp_path / "run")
    assert facts(ofasearch.regnas(ref=model, resume=True, out=tmp_path / "run")) == facts(answer[0])
    shutil.copy(model, tmp_path / "copy.pt")
    for options in ({"ref": model, "lambda2": 2.0}, {"ref": model, "macs": 9e6}, {"ref": tmp_path / "copy.pt"}):
        with pytest.raises(MismatchError, match="a resumed run must keep what was asked and what it rests on, but asked changed"):
            ofasearch.regnas(resume=True, out=tmp_path / "run", **options)


def test_a_run_does_not_go_on_with_other_predictions_of_the_reference(saved, tmp_path):
    shutil.copy(saved, tmp_path / "old.npz")
    ofasearch.regnas(ref=tmp_path / "old.npz", macs=9e6, out=tmp_path / "run")
    with np.load(saved) as arrays:
        np.savez(tmp_path / "old.npz", validation=arrays["validation"], test=np.roll(arrays["test"], 1))
    with pytest.raises(MismatchError, match="but inputs changed; start anew"):
        ofasearch.regnas(ref=tmp_path / "old.npz", macs=9e6, resume=True, out=tmp_path / "run")


def test_a_question_without_an_answer_leaves_the_folder_of_a_former_one(answer, model, tmp_path):
    shutil.copytree(answer[1], tmp_path / "run")
    before = {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()}
    with pytest.raises(InfeasibleError):
        ofasearch.regnas(ref=model, nfr_cap=0.001, out=tmp_path / "run")
    assert {path.name: path.read_bytes() for path in (tmp_path / "run").iterdir()} == before


@pytest.mark.parametrize("content", ["", "[]", "{", "\x00", '{"format": 3}'])
def test_a_folder_with_a_foreign_record_is_refused(model, tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    with pytest.raises(OfaSearchError, match=r"must be (JSON|a new folder)"):
        ofasearch.regnas(ref=model, out=tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["run.json"]
    assert Path(tmp_path / "run.json").read_text() == content


# -- requests --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({}, "a reference must be given: add --ref"),
        ({"ref": SMALL, "family": (5e6,), "sweep": (1.0,)}, "--family and --sweep must be asked one after the other"),
        ({"family": (7e6, 5e6)}, "--family must name different positive MACs from small to large"),
        ({"family": (5e6, 5e6)}, "--family must name different positive MACs"),
        ({"family": (0.0, 5e6)}, "--family must name different positive MACs"),
        ({"family": (float("nan"),)}, "--family must name different positive MACs"),
        ({"family": tuple(5e6 + i for i in range(21))}, "a family must have at most 20 networks"),
        ({"family": (5e6,), "macs": 3e6}, "--family names the MACs of its networks, so --flops must be left out"),
        ({"ref": SMALL, "sweep": (-1.0,)}, "--sweep must name ratios"),
        ({"ref": SMALL, "sweep": (float("nan"),)}, "--sweep must name ratios"),
        ({"ref": SMALL, "sweep": (1.0,), "reward": "r1"}, "--sweep varies the weights of reward r2, but --reward r1 has none"),
        ({"ref": SMALL, "reward": "r7"}, "--reward must be one of r0, r1, r2, but got 'r7'"),
        ({"ref": SMALL, "lambda1": -1.0}, "--lambda1 must be a number from 0 to a million, but got -1"),
        ({"ref": SMALL, "lambda1": 0.0, "lambda2": 0.0}, "--lambda1 and --lambda2 must not both be 0"),
        ({"ref": SMALL, "nfr_cap": 1.5}, "--nfr-cap must lie between 0 and 100 %"),
        ({"ref": SMALL, "space": "compofa-mbv3-cifar"}, "--space compofa-mbv3-cifar has none; add --supernet"),
        ({"ref": SMALL, "images": 100}, "--images and --calibration-images say how many images of --data are used"),
        ({"ref": SMALL, "latency_ms": 1.0}, "a latency budget needs a device"),
    ],
)
def test_a_question_that_contradicts_itself_is_wrong_usage(tmp_path, options, text):
    with pytest.raises(UsageError, match=text):
        ofasearch.regnas(**options, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
