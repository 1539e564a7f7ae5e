"""`regnas` with data: networks are really run, each once; killed, repeated or shared runs come to one answer."""

import contextlib
import json
import multiprocessing
import os
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from brute import Everything, drained, flips
from tiny import DATA, design_of, images_of, supernet_of

import ofasearch
from ofasearch import zoo
from ofasearch.data import ImageSet
from ofasearch.errors import CalibrationError, InfeasibleError, MismatchError, UsageError
from ofasearch.evaluate.subject import Subject
from ofasearch.jobs import regnas as job
from ofasearch.jobs import reward_aim
from ofasearch.jobs.deliver import OWN_WEIGHTS, calibrated_subnet, load_subnet, onnx_bytes, save_subnet, uncalibrated_subnet
from ofasearch.jobs.regnas import RegnasResult
from ofasearch.jobs.regnas_hunt import begin, hunt
from ofasearch.jobs.regnas_task import RegnasRequest
from ofasearch.jobs.searching import FindRequest
from ofasearch.jobs.setup import Budgets, Question
from ofasearch.ranks import Ranks
from ofasearch.search.regnas import Reward
from ofasearch.space import families
from ofasearch.space.families import mobile_space

DESIGN = design_of("tiny", expands=(3,))  # 36 networks
SPLITS = ("validation", "test")


def pretend(patch, data=DATA, seed=1):
    """A world whose only supernet is `tiny`, and whose only data are these."""
    supernet = supernet_of("tiny", mobile_space(DESIGN), seed=seed, spread=0.5)
    patch.setitem(families.DESIGNS, "tiny", DESIGN)
    patch.setattr(zoo, "supernet_names", lambda: ("tiny",))
    patch.setattr(zoo, "load_supernet", lambda _: supernet)
    patch.setattr("ofasearch.jobs.regnas_hunt.load_data", lambda _: data)
    return supernet


@pytest.fixture(scope="module", autouse=True)
def supernet(tmp_path_factory):
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # one order of summation
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFASEARCH_CACHE", str(tmp_path_factory.mktemp("cache")))
        yield pretend(patch)
    torch.set_num_threads(threads)


@pytest.fixture(scope="module")
def everything(supernet):
    """Every network calibrated and run for itself."""
    space, subject = supernet.weights.space, Subject("alone", supernet.weights, supernet.weights.space, DATA)
    codes, predicted = space.enumerate(), {split: [] for split in SPLITS}
    for row in codes:
        network = subject.calibrated([row])
        for split in SPLITS:
            predicted[split].append(subject.predict(network, [row], split, np.arange(len(DATA[split])))[0])
    arrays = {split: np.stack(rows) for split, rows in predicted.items()}
    return Everything(space, codes, arrays, {split: DATA[split].labels for split in SPLITS})


@pytest.fixture(scope="module")
def ref(everything):
    """A small network that gets much right that others get wrong."""
    rates = [everything.nfr(everything.predicted["validation"][row]).mean() for row in range(len(everything.ids))]
    small = np.argsort(everything.macs)[:9]
    return everything.ids[max(small, key=lambda row: rates[row])]


@pytest.fixture
def forgotten(tmp_path, monkeypatch):
    """Nothing was evaluated before."""
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))


class Counted:
    """Counts networks by how many validation images they were run on."""

    def __init__(self, patch):
        self.images = []
        predict = Subject.predict

        def counted(subject, networks, rows, split, index):
            self.images += [len(index)] * len(networks) if split == "validation" else []
            return predict(subject, networks, rows, split, index)

        patch.setattr(Subject, "predict", counted)


def never(*_, **__):
    raise AssertionError("nothing should be evaluated")


def request_of(ref, *, reward=None, macs=1e9, cas=None, out=None, **options):
    question = Question(budgets=Budgets(macs=macs), objective="measured")
    return RegnasRequest(
        find=FindRequest(question=question, data="noise", out=out, **options), ref=str(ref), reward=reward or Reward(), cas=cas
    )


def hunted(ref, *, images=None, **options):
    request = request_of(ref, images=images, **options)
    campaign = drained(begin(request, Ranks()))
    return drained(hunt(campaign, request.reward, [campaign.reference]))


def facts(record):
    """The answer without what differs between runs that found the same."""
    volatile = ("files", "search_seconds", "networks_evaluated", "evaluating_seconds", "networks_per_minute", "images")
    return {key: value for key, value in record.items() if key not in volatile}


# -- the answer ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def answer(ref, tmp_path_factory):
    """One exact search of the whole space where nothing was evaluated before, its folder, and what it remembers; read only."""
    folder = tmp_path_factory.mktemp("regnas")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("OFASEARCH_CACHE", str(folder / "cache"))
        return ofasearch.regnas(ref=ref, macs=1e9, data="noise", algorithm="exact", out=folder / "run"), folder


def test_the_tests_are_hard_enough(everything, ref):
    old = everything.predicted["validation"][everything.row(ref)]
    assert len(set(everything.nfr(old))) >= 3
    assert 5 < everything.containing(everything.row(ref)).sum() < 30
    assert len({tuple(row) for row in everything.predicted["validation"]}) > 10


@pytest.mark.parametrize("cas", [True, False])
def test_an_exact_search_finds_the_best_by_counting(everything, ref, cas):
    row = everything.row(ref)
    old = everything.predicted["validation"][row]
    rewards = {"r0": (1, 0), "r1": (0, 1)}
    cases = [(Reward(kind="r0"), 1e9), (Reward(kind="r1"), 1e9), (Reward(), 2.0 * everything.macs[row]), (Reward(lambda2=5), 1e9)]
    for reward, macs in (*cases, (Reward(kind="r0", nfr_cap=1 / 32), 1e9)):
        weights = rewards.get(reward.kind, (1, reward.lambda2))
        found = hunted(ref, macs=macs, reward=reward, cas=cas, algorithm="exact")
        highest, ids = everything.best([old], macs=macs, weights=weights, cap=reward.nfr_cap, within=row if cas else None, without=[row])
        winner = found.outcome.candidates[0]
        assert winner.arch_id in ids
        assert -winner.objective == pytest.approx(highest)
        assert (found.validation == everything.predicted["validation"][everything.row(winner.arch_id)]).all()


def test_the_figures_are_those_of_networks_run_alone(answer, everything, ref):
    record = answer[0]
    old, new = everything.row(ref), everything.row(record["arch_id"])
    for split, key in (("validation", "validation"), ("test", "measured")):
        expected = flips(everything.predicted[split][old], everything.predicted[split][new], everything.labels[split])
        assert {name: record[key][name] for name in expected} == pytest.approx(expected)
    assert record["measured"]["source"] == "live"
    assert record["contains_reference"] is True
    kept = everything.containing(old).sum() - 1
    assert (record["evaluations"], record["networks_evaluated"], record["images"]) == (kept, kept, 32)
    assert record["networks_per_minute"] == pytest.approx(60 * kept / record["evaluating_seconds"])


def test_with_images_the_flips_are_shown(answer):
    record, folder = answer[0], answer[1] / "run"
    assert record["files"]["flips_png"] == str(folder / "flips.png")
    assert (folder / "flips.png").read_bytes().startswith(b"\x89PNG")
    assert load_subnet(folder / "subnet.pt")[0].calibrated == "24 images of noise calibration"


def test_the_test_split_has_no_part_in_the_choice(answer, ref, monkeypatch, tmp_path):
    other = replace(DATA, splits={**DATA.splits, "test": images_of(40, 99)})
    monkeypatch.setattr("ofasearch.jobs.regnas_hunt.load_data", lambda _: other)
    record = ofasearch.regnas(ref=ref, macs=1e9, data="noise", algorithm="exact", out=tmp_path / "run")
    same = ("arch_id", "candidates", "validation")
    assert {key: record[key] for key in same} == {key: answer[0][key] for key in same}
    assert record["measured"] != answer[0]["measured"]


# -- each network once -----------------------------------------------------------------------------------------


def test_what_was_evaluated_is_not_evaluated_again(answer, ref, monkeypatch, tmp_path):
    monkeypatch.setenv("OFASEARCH_CACHE", str(answer[1] / "cache"))
    for name in ("predict", "calibrated", "score"):
        monkeypatch.setattr(Subject, name, never)
    again = ofasearch.regnas(ref=ref, macs=1e9, data="noise", algorithm="exact", out=tmp_path / "run")
    assert facts(again) == facts(answer[0])
    assert "networks_evaluated" not in again


@pytest.mark.parametrize(("events", "survived"), [(5, 0), (7, 4), (8, 8)])
def test_a_killed_run_goes_on_to_the_answer_of_an_unbroken_one(answer, ref, forgotten, monkeypatch, tmp_path, events, survived):
    counted = Counted(monkeypatch)
    request = request_of(ref, algorithm="exact", out=tmp_path / "run")
    work = job.regnas(request)
    for _ in range(events):
        next(work)
    work.close()
    before = len(counted.images)
    assert before == survived
    assert json.loads((tmp_path / "run" / "run.json").read_text()).get("finished") is None
    *_, result = job.regnas(replace(request, find=replace(request.find, resume=True)))
    assert facts(result.record) == facts(answer[0])
    assert len(counted.images) == answer[0]["evaluations"] == before + result.record["networks_evaluated"]


def test_a_family_and_its_plain_search_run_each_network_once(everything, forgotten, monkeypatch, tmp_path):
    monkeypatch.setattr("ofasearch.report.regnas.family_plot", lambda *_: b"")
    counted, budgets = Counted(monkeypatch), tuple(np.quantile(everything.macs, [0.3, 0.6, 1.0]))
    record = ofasearch.regnas(family=budgets, data="noise", algorithm="exact", out=tmp_path / "run")
    assert len(counted.images) == len(everything.ids)
    smaller = []
    for network, budget in zip(record["family"], budgets, strict=True):
        row, olds = everything.row(network["arch_id"]), [everything.predicted["validation"][one] for one in smaller]
        _, ids = everything.best(olds, macs=budget, within=smaller[-1] if smaller else None, without=smaller)
        assert network["arch_id"] in ids
        smaller.append(row)
    for split in SPLITS:
        right = everything.right(split)[smaller]
        assert record["nfr_matrix"][split] == [[(a & ~b).mean() for b in right] for a in right]
        assert [network[split]["top1"] for network in record["family"]] == right.mean(axis=1).tolist()


# -- fewer images ----------------------------------------------------------------------------------------------


def test_the_last_five_of_a_search_on_few_images_see_all(everything, ref, forgotten, monkeypatch, tmp_path):
    counted, row = Counted(monkeypatch), everything.row(ref)
    *events, result = job.regnas(request_of(ref, algorithm="exact", images=12, out=tmp_path / "run"))
    assert any(event.phase == "evaluating 5 candidates on 32 validation images" for event in events)
    searched = everything.containing(row).sum() - 1
    assert sorted(counted.images) == [12] * searched + [32] * 5
    assert result.record["images"] == 12
    old, labels = everything.predicted["validation"][row], everything.labels["validation"]
    right = everything.right()
    early = right[:, :12].mean(axis=1) - ((old == labels)[:12] & ~right[:, :12]).mean(axis=1)
    whole = everything.top1() - everything.nfr(old)
    chosen = [everything.row(candidate["arch_id"]) for candidate in result.record["candidates"]]
    kept = everything.containing(row)
    kept[row] = False
    assert sorted(early[chosen]) == pytest.approx(sorted(early[kept])[-5:])
    assert [candidate["reward_value"] for candidate in result.record["candidates"]] == pytest.approx(sorted(whole[chosen], reverse=True))
    assert result.record["validation"]["n"] == 32
    assert result.record["reward_value"] == pytest.approx(whole[chosen].max())


def test_searches_on_few_images_do_not_mix_with_those_on_all(everything):
    """What the last five of one search saw is in another order than what the next search looks at."""
    few = {"algorithm": "exact", "images": 12, "cas": False}
    ref = everything.ids[everything.macs.argmin()]
    campaign = drained(begin(request_of(ref, **few), Ranks()))
    for reward in (Reward(kind="r1"), Reward(kind="r0"), Reward(lambda2=9)):
        found = drained(hunt(campaign, reward, [campaign.reference]))
        alone = hunted(ref, reward=reward, **few)
        assert [c.arch_id for c in found.outcome.candidates] == [c.arch_id for c in alone.outcome.candidates]
        assert (found.measured == alone.measured).all()


def test_calibration_is_the_same_at_last_as_in_the_search(ref, supernet, forgotten, tmp_path):
    record = ofasearch.regnas(ref=ref, macs=1e9, data="noise", algorithm="exact", images=12, calibration_images=10, out=tmp_path / "run")
    assert record["measured"]["calibrated"] == "10 images of noise calibration"
    space, cut = supernet.weights.space, replace(DATA, splits={**DATA.splits, "calibration": DATA["calibration"].take(np.arange(10))})
    codes = np.array(space.parse(record["arch_id"]).codes)
    for split, key in (("validation", "validation"), ("test", "measured")):
        assert record[key]["top1"] == Subject("alone", supernet.weights, space, cut).score(codes, split).top1


# -- searches that learn ---------------------------------------------------------------------------------------


def learned(ref, seed, **options):
    return hunted(ref, algorithm="surrogate", population=4, cas=False, seed=seed, **options)


@pytest.mark.parametrize("previews", [False, True])
def test_a_learning_search_comes_to_one_answer_whatever_is_remembered(everything, ref, previews, forgotten, monkeypatch, tmp_path):
    if previews:
        monkeypatch.setattr(reward_aim, "PREVIEW_LEAST", 16)
    counted, row = Counted(monkeypatch), everything.row(ref)
    highest, _ = everything.best([everything.predicted["validation"][row]], without=[row])
    for seed in (0, 1, 2):
        monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / str(seed)))
        before = len(counted.images)
        found = learned(ref, seed)
        run = counted.images[before:]
        assert found.outcome.tally.evaluations == 8 == run.count(32) + run.count(24)  # at most a third of the space is evaluated in full
        assert (run.count(24), run.count(8)) == ((4, 8) if previews else (0, 0))  # twice as many are looked at on a quarter
        again = learned(ref, seed)
        assert len(counted.images) == before + len(run)
        assert [c.arch_id for c in again.outcome.candidates] == [c.arch_id for c in found.outcome.candidates]
        assert -found.outcome.candidates[0].objective <= highest + 1e-12
        for candidate in found.outcome.candidates:
            i = everything.row(candidate.arch_id)
            assert candidate.predicted_top1 == everything.top1()[i]
            assert i != row


def test_seeds_lead_to_searches_of_their_own(ref):
    assert len({tuple(c.arch_id for c in learned(ref, seed).outcome.candidates) for seed in range(4)}) > 1


@pytest.mark.parametrize("algorithm", ["surrogate", "evolution", "ga", "random"])
def test_every_search_stays_among_the_networks_that_contain_the_reference(everything, ref, algorithm):
    found = hunted(ref, algorithm=algorithm, population=6, generations=2)
    within = everything.containing(everything.row(ref))
    assert all(within[everything.row(candidate.arch_id)] for candidate in found.outcome.candidates)
    assert ref not in {candidate.arch_id for candidate in found.outcome.candidates}


def test_by_default_a_large_part_is_learned_and_a_small_one_is_listed(everything, ref):
    assert hunted(ref, cas=False).request.algorithm == "surrogate"
    assert hunted(everything.ids[-5]).request.algorithm == "exact"


# -- references ------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def exported(supernet, everything, ref, tmp_path_factory):
    """The reference in all forms: subnet.pt, ONNX, its predictions."""
    folder, row = tmp_path_factory.mktemp("exported"), everything.row(ref)
    subnet = calibrated_subnet(supernet.weights, everything.codes[row], DATA, "tiny")
    save_subnet(folder / "subnet.pt", subnet, {})
    (folder / "subnet.onnx").write_bytes(onnx_bytes(subnet))
    np.savez(folder / "saved.npz", **{split: everything.predicted[split][row] for split in SPLITS})
    return folder


@pytest.mark.parametrize(("name", "contained"), [("subnet.pt", True), ("", True), ("subnet.onnx", False), ("saved.npz", False)])
def test_a_reference_in_any_form_has_the_same_flips(exported, answer, name, contained, everything, ref, tmp_path):
    record = ofasearch.regnas(ref=exported / name, macs=1e9, data="noise", algorithm="exact", reward="r0", out=tmp_path / "run")
    row, new = everything.row(ref), everything.row(record["arch_id"])
    for split, key in (("validation", "validation"), ("test", "measured")):
        expected = flips(everything.predicted[split][row], everything.predicted[split][new], everything.labels[split])
        assert {name: record[key][name] for name in expected} == pytest.approx(expected)
    assert record["cas"] is contained
    assert any("need not contain its weights" in note for note in record["notes"]) is not contained
    assert record["arch_id"] != ref or name == "saved.npz"  # nobody says what network that was


def test_the_budget_follows_from_what_a_file_is(exported, everything, ref, tmp_path):
    for name in ("subnet.pt", "subnet.onnx"):
        record = ofasearch.regnas(ref=exported / name, data="noise", algorithm="exact", cas=False, out=tmp_path / name)
        asked = json.loads((tmp_path / name / "run.json").read_text())["asked"]["find"]["question"]
        assert asked["budgets"]["macs"] == 2 * everything.macs[everything.row(ref)]
        assert asked["supernet"] == "tiny"  # the reference names it
        assert record["macs"] <= asked["budgets"]["macs"]


@pytest.mark.parametrize("change", ["weights of another supernet", "one weight"])
def test_weights_of_another_origin_are_not_contained(exported, supernet, everything, ref, change, tmp_path):
    subnet, told = load_subnet(exported / "subnet.pt")
    if change == "one weight":
        arrays = {key: array.copy() for key, array in subnet.arrays.items()}
        arrays[next(key for key in arrays if key.endswith("conv.weight"))].flat[0] += 1e-3
        subnet = replace(subnet, arrays=arrays)  # fine-tuned: the digest is still that of the supernet
        assert subnet.supernet_digest == supernet.weights.digest
    else:
        other = supernet_of("tiny", mobile_space(DESIGN), seed=2, spread=0.5)
        subnet = calibrated_subnet(other.weights, everything.codes[everything.row(ref)], DATA, "tiny")
    save_subnet(tmp_path / "other.pt", subnet, told)
    with pytest.raises(MismatchError, match=r"with --cas the reference must be a subnet of the searched supernet .* add --no-cas"):
        ofasearch.regnas(ref=tmp_path / "other.pt", macs=1e9, data="noise", cas=True, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    record = ofasearch.regnas(ref=tmp_path / "other.pt", macs=1e9, data="noise", algorithm="exact", out=tmp_path / "run")
    assert record["cas"] is False
    assert "contains_reference" not in record
    assert any(
        "other.pt is not known to be a subnet of tiny: what is found need not contain its weights" in note for note in record["notes"]
    )


@pytest.mark.parametrize("form", ["pt", "onnx"])
def test_a_fine_tuned_reference_is_compared_and_not_contained(exported, form, tmp_path):
    subnet, told = load_subnet(exported / "subnet.pt")
    arrays = {key: array + np.float32(1e-3) * key.endswith("conv.weight") for key, array in subnet.arrays.items()}
    tuned = replace(subnet, arrays=arrays, supernet_digest=OWN_WEIGHTS)
    ref = tmp_path / f"tuned.{form}"
    if form == "pt":
        save_subnet(ref, tuned, told)
    else:
        ref.write_bytes(onnx_bytes(tuned))
    why = r"was fine-tuned: its weights are its own, and no network of"
    with pytest.raises(MismatchError, match=f"with --cas the reference must share the supernet's weights, but .*{why} .*; add --no-cas"):
        ofasearch.regnas(ref=ref, macs=1e9, data="noise", cas=True, out=tmp_path / "run")
    assert not (tmp_path / "run").exists()
    record = ofasearch.regnas(ref=ref, data="noise", algorithm="exact", out=tmp_path / "run")
    assert record["cas"] is False
    assert sum("fine-tuned: its weights are its own, and no network of tiny contains them" in note for note in record["notes"]) == 1
    assert record["reference"]["arch_id"] == tuned.arch.id  # so its MACs and its supernet are known
    quiet = ofasearch.regnas(ref=ref, data="noise", algorithm="exact", cas=False, out=tmp_path / "quiet")
    assert not any("fine-tuned" in note for note in quiet["notes"])


@pytest.mark.parametrize(
    ("data", "error", "text"),
    [
        (replace(DATA, class_names=()), MismatchError, "data must have labelled validation images"),
        (replace(DATA, class_names=("a", "b", "c", "d")), MismatchError, r"data must have the 3 classes of .*, but noise has 4"),
        (
            replace(DATA, splits={**DATA.splits, "validation": ImageSet(np.zeros((9, 16, 16, 3), np.uint8), np.zeros(9, int))}),
            MismatchError,
            "but (have|they have 3 channels and) 16",
        ),
        (
            replace(DATA, splits={k: v.take(np.arange(0)) if k == "validation" else v for k, v in DATA.splits.items()}),
            MismatchError,
            "validation",
        ),
    ],
)
def test_data_that_does_not_fit_is_refused(exported, monkeypatch, tmp_path, data, error, text):
    monkeypatch.setattr("ofasearch.jobs.regnas_hunt.load_data", lambda _: data)
    monkeypatch.setattr(Subject, "predict", never)
    for ref in ("subnet.pt", "subnet.onnx"):
        with pytest.raises(error, match=text):
            ofasearch.regnas(ref=exported / ref, macs=1e9, data="noise", out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []


def test_a_reference_that_does_not_fit_is_refused(supernet, everything, monkeypatch, tmp_path):
    monkeypatch.setattr(Subject, "predict", never)
    save_subnet(tmp_path / "raw.pt", uncalibrated_subnet(supernet.weights, everything.codes[3], "tiny"), {})
    with pytest.raises(CalibrationError, match="must be calibrated before it is scored"):
        ofasearch.regnas(ref=tmp_path / "raw.pt", data="noise", out=tmp_path / "run")
    space = mobile_space(replace(DESIGN, name="four", classes=4))
    save_subnet(tmp_path / "four.pt", uncalibrated_subnet(supernet_of("four", space).weights, space.smallest(), "four"), {})
    with pytest.raises((MismatchError, CalibrationError)):
        ofasearch.regnas(ref=tmp_path / "four.pt", data="noise", out=tmp_path / "run")
    np.savez(tmp_path / "short.npz", **{split: np.zeros(31, int) for split in SPLITS})
    with pytest.raises(MismatchError, match="must hold a prediction for each of the 32 validation images of noise, but holds 31"):
        ofasearch.regnas(ref=tmp_path / "short.npz", macs=1e9, data="noise", out=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_cap_that_cannot_be_kept_is_rounded_to_one_that_can(everything, ref, tmp_path):
    row = everything.row(ref)
    old, kept = everything.predicted["validation"][row], everything.containing(row)
    kept[row] = False
    lowest = everything.nfr(old)[kept].min()
    if lowest == 0:
        pytest.skip("a network breaks nothing")
    with pytest.raises(InfeasibleError, match=r"--nfr-cap must be at least 3\.13 %"):
        hunted(ref, reward=Reward(kind="r0", nfr_cap=0.0), algorithm="exact")


# -- several processes -----------------------------------------------------------------------------------------

SHARED = {"algorithm": "surrogate", "population": 8, "generations": 1, "cas": False}


class Pair(Ranks):
    """One of two threads that exchange what processes would."""

    barrier, table = threading.Barrier(2), {}

    def gather(self, value):
        self.table[self.rank] = value
        self.barrier.wait(60)
        found = [self.table[0], self.table[1]]
        self.barrier.wait(60)
        return found

    def share(self, value):
        return self.gather(value)[0]


def test_two_that_share_a_search_find_what_one_finds(ref, forgotten, monkeypatch, tmp_path):
    own = threading.local()
    monkeypatch.setattr(job, "join", lambda: contextlib.nullcontext(getattr(own, "ranks", Ranks())))
    *_, alone = job.regnas(request_of(ref, out=tmp_path / "one", **SHARED))
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "theirs"))
    runs, predict = {0: [], 1: []}, Subject.predict

    def counted(subject, networks, rows, split, index):
        runs[own.ranks.rank] += [len(index)] * len(networks) if split == "validation" else []
        return predict(subject, networks, rows, split, index)

    def take_part(rank):
        own.ranks = Pair(rank, 2, rank)
        return list(job.regnas(request_of(ref, out=tmp_path / "two", **SHARED)))

    monkeypatch.setattr(Subject, "predict", counted)
    with ThreadPoolExecutor(2) as pool:
        first, second = pool.map(take_part, (0, 1))
    assert not [event for event in second if isinstance(event, RegnasResult)]  # the first speaks for all
    assert facts(first[-1].record) == facts(alone.record)
    assert [len(own) for own in runs.values()] == [8, 8]
    names = {path.name for path in (tmp_path / "one").iterdir()}
    assert {path.name for path in (tmp_path / "two").iterdir()} == names


def process(rank, port, folder, ref):
    """One of two processes; what it ran and found."""
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ["OFASEARCH_CACHE"] = str(folder / "theirs")
    torch.set_num_threads(1)
    with pytest.MonkeyPatch.context() as patch:
        pretend(patch)
        patch.setattr("ofasearch.jobs.deliver.CHECK_IMAGES", 16)
        counted = Counted(patch)
        *_, last = job.regnas(request_of(ref, out=folder / "two", **SHARED))
    return len(counted.images), facts(last.record) if isinstance(last, RegnasResult) else None


@pytest.mark.slow
def test_two_processes_find_what_one_finds(ref, forgotten, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        shares = pool.starmap_async(process, [(rank, port, tmp_path, ref) for rank in (0, 1)], chunksize=1)
        *_, alone = job.regnas(request_of(ref, out=tmp_path / "one", **SHARED))
        assert shares.get(timeout=100) == [(8, facts(alone.record)), (8, None)]


def test_one_process_measures_this_machine(ref, tmp_path):
    request = request_of(ref)
    request = replace(request, find=replace(request.find, question=replace(request.question, target="cpu")))
    with pytest.raises(UsageError, match="latencies of this machine must be measured by one process, but torchrun started several"):
        drained(begin(request, Ranks(0, 2, 0)))
    assert not Path("runs").exists()
