"""Labelling networks: the same file whoever was interrupted or shared the work, and rounds that judge what was said before."""

import json
import multiprocessing
import os
import socket
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from tiny import DATA, PREPROCESSING, design_of, supernet_of

from ofasearch.data import DataSet, ImageSet
from ofasearch.errors import FormatError, MismatchError, NotFoundError, UsageError, WriteError
from ofasearch.evaluate.sampling import networks_to_label
from ofasearch.evaluate.score import calibration_batches, predictions, recalibrate_bn, top1
from ofasearch.evaluate.store import Score, Store
from ofasearch.evaluate.subject import Subject, first_images
from ofasearch.jobs import dataset as job
from ofasearch.jobs import rounds
from ofasearch.jobs.dataset import DatasetRequest, DatasetResult, label_networks
from ofasearch.jobs.rounds import Proposal, judge, propose
from ofasearch.jobs.scoring import PopulationProgress
from ofasearch.predictor import FitConfig, encoder_of, fit, read_pairs
from ofasearch.space.costs import macs_of
from ofasearch.space.families import get_space, mobile_space
from ofasearch.supernet.supernet import Supernet


def quick_config(seed):
    return FitConfig(members=3, steps=30, seed=seed)


@pytest.fixture(scope="module")
def supernets(tiny_space):
    """A supernet of 400 networks, and one of 36."""
    small = mobile_space(design_of("small", expands=(2,)))
    return {"tiny": supernet_of("tiny", tiny_space), "small": supernet_of("small", small)}


@pytest.fixture(autouse=True)
def world(supernets, tmp_path, monkeypatch, one_thread):
    """The supernets by name, one data set, quick fits, a cache and a folder of the test's own."""

    def load(name):
        if name not in supernets:
            raise NotFoundError(f"supernet must be one of these, but got '{name}'")
        return supernets[name]

    monkeypatch.setattr(job.zoo, "load_supernet", load)
    monkeypatch.setattr(job, "load_data", lambda _: DATA)
    monkeypatch.setattr(job, "FitConfig", quick_config)
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)


@pytest.fixture
def scored(monkeypatch):
    """Networks get an accuracy by their MACs at once; keeps what was scored."""
    calls = []

    def score(self, codes, split):
        arch = self.space.arch(codes).id
        calls.append((arch, split))
        macs = float(macs_of(self.space)(codes[None])[0])
        return Score(0.5 + macs / 1e6 + int(macs) % 97 / 2000, 10)

    monkeypatch.setattr(Subject, "score", score)
    return calls


def run(supernet="tiny", **options):
    *progress, result = label_networks(DatasetRequest(supernet=supernet, data="noise", **options))
    assert isinstance(result, DatasetResult)
    assert all(isinstance(event, PopulationProgress) for event in progress)
    return result


def card_of(result):
    """The card without what differs between runs that found the same."""
    card = json.loads(Path(result.record["files"]["card"]).read_text())
    return {key: value for key, value in card.items() if key != "date"}


# -- labels ----------------------------------------------------------------------------------------------------


def test_labels_are_accuracies_of_recalibrated_networks_on_validation(supernets, tiny_space):
    result = run(networks=5, images=20, calibration_images=16)
    codes = networks_to_label(tiny_space, 5, np.random.default_rng(0))
    assert np.array_equal(tiny_space.from_settings(result.pairs.settings), codes)  # in the order they were drawn
    model = Supernet.from_arrays(tiny_space, supernets["tiny"].weights.arrays)
    calibration = DataSet("cut", DATA.class_names, {"calibration": DATA["calibration"].take(np.arange(16))})
    images = DATA["validation"].take(np.arange(20))
    for row, label in zip(codes, result.pairs.top1, strict=True):
        network = model.extract(row)
        recalibrate_bn(network, calibration_batches(calibration, PREPROCESSING, resolution=8))
        assert label == top1(predictions(network, images, PREPROCESSING, resolution=8), images.labels)


def test_labels_are_remembered_by_the_keys_that_everything_else_uses(supernets, tiny_space, scored):
    result = run(networks=6, images=20, calibration_images=16)
    cut = {"calibration": 16, "validation": 20}
    splits = {name: images.take(np.arange(cut.get(name, len(images)))) for name, images in DATA.splits.items()}
    subject = Subject("by hand", supernets["tiny"].weights, tiny_space, DataSet("noise", DATA.class_names, splits))
    codes = networks_to_label(tiny_space, 6, np.random.default_rng(0))
    with Store() as store:
        assert [store.get(subject.key(row, "validation")).top1 for row in codes] == result.pairs.top1.tolist()
    assert {split for _, split in scored} == {"validation"}
    assert run(networks=6, images=20, calibration_images=16).record["evaluated_now"] == 0
    assert run(networks=6, images=21, calibration_images=16).record["evaluated_now"] == 6  # other images, other labels
    assert run(networks=6, images=20, calibration_images=17).record["evaluated_now"] == 6


def test_the_first_images_of_a_split_are_taken():
    cut = first_images(DATA, None, 10)
    assert [len(cut[split]) for split in ("train", "calibration", "validation", "test")] == [8, 10, 32, 40]
    assert np.array_equal(cut["calibration"].images, DATA["calibration"].images[:10])
    assert [len(first_images(DATA, 1000, 1000)[split]) for split in ("calibration", "validation")] == [24, 32]


def test_the_card_says_what_was_measured_on_what(supernets, scored):
    result = run(networks=4, images=20, calibration_images=16, seed=3)
    card = card_of(result)
    assert {key: card[key] for key in ("supernet", "space", "resolutions", "data", "split", "images", "calibration_images")} == {
        "supernet": "tiny",
        "space": "tiny",
        "resolutions": [8],
        "data": "noise",
        "split": "validation",
        "images": 20,
        "calibration_images": 16,
    }
    assert (card["supernet_digest"], card["seed"]) == (supernets["tiny"].weights.digest, 3)
    assert (card["networks"], card["drawn"], card["rounds"], card["calibration_batch"]) == (4, 4, [], 200)
    assert {"machine", "versions", "python"} <= set(card)
    assert read_pairs([result.path], supernets["tiny"].weights.space).supernet_digest == supernets["tiny"].weights.digest


def test_all_images_are_taken_where_no_number_is_asked(scored):
    record = run(networks=2).record
    assert (record["images"], record["calibration_images"]) == (32, 24)


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.dict", "p"])
def test_every_format_can_be_asked(scored, tiny_space, name):
    result = run(networks=12, out=Path(name))
    assert result.path == Path.cwd() / name
    pairs = read_pairs([Path(name)], tiny_space)
    assert len(pairs) == 12
    assert np.sort(pairs.top1) == pytest.approx(np.sort(result.pairs.top1))
    assert pairs.supernet_digest == result.record["supernet_digest"]


def test_the_file_lies_among_the_runs_by_default(scored):
    assert run(networks=2).record["files"] == {
        "pairs": str(Path.cwd() / "runs" / "dataset-tiny" / "pairs.jsonl"),
        "card": str(Path.cwd() / "runs" / "dataset-tiny" / "pairs.json"),
    }


def test_progress_tells_how_far_the_work_is_and_the_best_so_far(scored):
    *events, result = label_networks(DatasetRequest(supernet="tiny", data="noise", networks=4))
    assert [(event.done, event.total) for event in events] == [(n, 4) for n in range(5)]
    assert {event.phase for event in events} == {"evaluating tiny on validation"}
    assert events[-1].best_top1 == result.record["best_top1"] == result.pairs.top1.max()
    assert all(event.eta_seconds > 0 for event in events[1:-1])
    assert events[-1].eta_seconds == 0


def test_photographs_are_labelled_at_every_resolution(tmp_path, monkeypatch):
    from makers import image_folder

    from ofasearch.data import load_data

    space = mobile_space(design_of("elastic", resolutions=(8, 16)))
    monkeypatch.setattr(job.zoo, "load_supernet", lambda _: supernet_of("elastic", space))
    monkeypatch.setattr(job, "load_data", load_data)
    for part, count in (("train", 70), ("val", 4)):
        image_folder(tmp_path / "photos" / part, count)
    *_, result = label_networks(DatasetRequest(supernet="elastic", data=str(tmp_path / "photos"), networks=8))
    assert set(result.pairs.settings.r) == {8, 16}
    assert result.record["resolutions"] == [8, 16]


def test_foreign_classes_are_told(scored, monkeypatch, supernets):
    trained = supernets["tiny"]
    named = replace(trained, weights=replace(trained.weights, class_names=("x", "y", "z")))
    monkeypatch.setattr(job.zoo, "load_supernet", lambda _: named)
    assert run(networks=2).record["notes"] == ["noise names other classes than tiny was trained on"]


# -- rounds ----------------------------------------------------------------------------------------------------


def test_rounds_add_networks_that_nobody_labelled(scored, tiny_space):
    result = run(networks=20, rounds=2, per_round=6)
    codes = tiny_space.from_settings(result.pairs.settings)
    assert len(codes) == len(np.unique(codes, axis=0)) == len(scored) == 32
    assert np.array_equal(codes[:20], networks_to_label(tiny_space, 20, np.random.default_rng(0)))
    assert [(r["round"], r["fitted_on"], r["all"]["networks"]) for r in result.record["rounds"]] == [(1, 20, 6), (2, 26, 6)]
    assert [r["promising"]["networks"] for r in result.record["rounds"]] == [3, 3]
    assert card_of(result)["rounds"] == result.record["rounds"]


def test_errors_of_a_round_are_those_of_predictions_made_before(scored, tiny_space, supernets):
    result = run(networks=20, rounds=2, per_round=8)
    for number, told in enumerate(result.record["rounds"]):
        seen, new = result.pairs.take(np.arange(20 + 8 * number)), result.pairs.take(np.arange(20 + 8 * number, 28 + 8 * number))
        before = fit(encoder_of(tiny_space), seen, "tiny", quick_config(0))
        error = 100 * (before(new.settings) - new.top1)
        assert told["all"]["mae_points"] == pytest.approx(np.abs(error).mean())
        assert told["all"]["bias_points"] == pytest.approx(error.mean())
        assert told["all"]["rmse_points"] == pytest.approx(np.sqrt((error**2).mean()))
        assert told["promising"]["mae_points"] == pytest.approx(np.abs(error[:4]).mean())
        assert told["uncertain"]["mae_points"] == pytest.approx(np.abs(error[4:]).mean())
        assert told["best_top1"] == result.pairs.top1[: 28 + 8 * number].max()


def test_rounds_may_use_up_a_space(scored):
    result = run("small", networks=26, rounds=2, per_round=5)
    assert len(scored) == len({arch for arch, _ in scored}) == 36
    assert result.record["rounds"][1]["all"]["networks"] == 5


class Invented:
    """A predictor whose members say what functions of kernels and expand ratios say."""

    def __init__(self, space, *members):
        self._space, self._members = space, members

    def __call__(self, codes):
        return self.members(codes).mean(axis=0)

    def members(self, codes):
        settings = self._space.settings(codes)
        return np.stack([member(settings.ks, settings.e) for member in self._members])


def test_promising_networks_are_the_best_new_ones_at_budgets_over_the_range(tiny_space):
    predictor = Invented(tiny_space, lambda ks, e: (ks.sum(axis=1) + 0.01 * e.sum(axis=1)) / 100)
    every, macs = tiny_space.enumerate(), macs_of(tiny_space)
    value = predictor(every)
    known = every[np.argsort(-value, kind="stable")[:7]]
    proposal = propose(tiny_space, predictor, known, 6, np.random.default_rng(0))
    taken = {row.tobytes() for row in known}
    bounds = macs.bounds()
    for row, limit in zip(proposal.codes[:3], np.linspace(bounds.lowest, bounds.highest, 4)[1:], strict=True):
        left = np.array([macs(r[None])[0] <= limit and r.tobytes() not in taken for r in every])
        assert predictor(row[None])[0] == value[left].max()
        taken.add(row.tobytes())


def test_budgets_end_where_the_best_of_all_lies(tiny_space):
    predictor = Invented(tiny_space, lambda ks, e: -np.abs(ks.sum(axis=1) + e.sum(axis=1) - 13.0) / 100)  # small networks are best
    every, macs = tiny_space.enumerate(), macs_of(tiny_space)
    best = every[predictor(every).argmax()]
    few, many = (propose(tiny_space, predictor, every[:0], count, np.random.default_rng(0)) for count in (8, 80))
    found = macs(few.codes[: few.promising])
    assert found.max() <= macs(best[None])[0] < 0.6 * macs.bounds().highest
    assert len(np.unique(found)) == 4
    value = np.sort(predictor(every))
    assert many.promising == 40  # more than there are below: the best of all then
    assert many.predicted[10:40].min() >= value[-60]


def test_uncertain_networks_are_those_that_members_differ_on(tiny_space):
    predictor = Invented(tiny_space, lambda ks, e: ks.sum(axis=1) / 100, lambda ks, e: e.sum(axis=1) / 100)
    proposal = propose(tiny_space, predictor, tiny_space.enumerate()[:5], 10, np.random.default_rng(0))
    every = tiny_space.settings(tiny_space.enumerate())
    spread = np.abs(every.ks.sum(axis=1) - every.e.sum(axis=1))
    chosen = tiny_space.settings(proposal.codes[proposal.promising :])
    assert np.abs(chosen.ks.sum(axis=1) - chosen.e.sum(axis=1)).min() >= np.sort(spread)[-15]  # known and promising ones left out


def test_large_spaces_are_searched_not_listed(monkeypatch):
    space = get_space("ofa-mbv3-cifar")
    monkeypatch.setattr(rounds, "SEARCH", replace(rounds.SEARCH, population=20, generations=5))
    monkeypatch.setattr(rounds, "POOL", 200)
    predictor = Invented(space, lambda ks, e: e.sum(axis=1) / 1000, lambda ks, e: ks.sum(axis=1) / 1000)
    known = space.sample(30, np.random.default_rng(1))
    first, again = (propose(space, predictor, known, 13, np.random.default_rng(2)) for _ in range(2))
    assert np.array_equal(first.codes, again.codes)
    space.validate(first.codes)
    assert len(np.unique(np.concatenate([known, first.codes]), axis=0)) == 43
    assert first.promising == 7
    drawn = predictor(space.sample(500, np.random.default_rng(3)))
    assert first.predicted[6] > drawn.max()  # no budget but the largest network's
    macs = macs_of(space)(first.codes[:7])
    assert (macs <= np.linspace(*(getattr(macs_of(space).bounds(), end) for end in ("lowest", "highest")), 8)[1:]).all()


def test_a_round_is_judged_as_a_whole_and_by_halves():
    proposal = Proposal(np.zeros((8, 1), dtype=np.int64), 3, np.array([0.5, 0.6, 0.7, 0.5, 0.6, 0.7, 0.8, 0.9]))
    told = judge(proposal, proposal.predicted + np.array([-0.01] * 3 + [0.03] * 5))
    assert {name: part["networks"] for name, part in told.items()} == {"all": 8, "promising": 3, "uncertain": 5}
    assert told["promising"]["bias_points"] == pytest.approx(1)
    assert told["uncertain"]["bias_points"] == pytest.approx(-3)
    assert told["all"]["mae_points"] == pytest.approx((3 * 1 + 5 * 3) / 8)
    assert told["all"]["rmse_points"] == pytest.approx(np.sqrt((3 * 1 + 5 * 9) / 8))
    assert [name for name, part in told.items() if "kendall_tau" in part] == ["all"]  # few networks have no rank correlation
    constant = judge(proposal, np.full(8, 0.5))
    assert "kendall_tau" not in constant["all"]


# -- interruptions, several processes --------------------------------------------------------------------------


@pytest.mark.parametrize("survived", [0, 3, 11, 17])
def test_a_killed_run_goes_on_to_the_file_of_an_unbroken_one(survived, scored, monkeypatch, tmp_path):
    options = {"networks": 10, "rounds": 2, "per_round": 4}
    unbroken = run(**options, out=Path("unbroken.jsonl"))
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "other"))
    score, calls = Subject.score, []

    def dies(self, codes, split):
        calls.append(split)
        if len(calls) > survived:
            raise KeyboardInterrupt
        return score(self, codes, split)

    with monkeypatch.context() as patch:
        patch.setattr(Subject, "score", dies)
        with pytest.raises(KeyboardInterrupt):
            run(**options, out=Path("killed.jsonl"))
    assert not Path("killed.jsonl").exists()
    resumed = run(**options, out=Path("killed.jsonl"))
    assert resumed.record["evaluated_now"] == 18 - survived
    assert Path("killed.jsonl").read_bytes() == Path("unbroken.jsonl").read_bytes()
    assert card_of(resumed) == card_of(unbroken)


def share(rank, port, folder):
    """One of two processes; what it tells."""
    os.environ |= {"WORLD_SIZE": "2", "RANK": str(rank), "LOCAL_RANK": str(rank), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": port}
    os.environ["OFASEARCH_CACHE"] = str(folder / "theirs")
    torch.set_num_threads(1)
    space = mobile_space(design_of("tiny"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(job.zoo, "load_supernet", lambda _: supernet_of("tiny", space))
        patch.setattr(job, "load_data", lambda _: DATA)
        patch.setattr(job, "FitConfig", quick_config)
        if rank:
            patch.setattr(job, "fit", lambda *_: pytest.fail("one fit is enough"))
        request = DatasetRequest(supernet="tiny", data="noise", networks=9, rounds=1, per_round=4, out=folder / "two.jsonl")
        events = list(label_networks(request))
    return [card_of(event) if isinstance(event, DatasetResult) else event.done for event in events]


def test_two_processes_label_what_one_labels(tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = str(probe.getsockname()[1])
    with multiprocessing.get_context("spawn").Pool(2) as pool:
        shares = pool.starmap_async(share, [(rank, port, tmp_path) for rank in (0, 1)], chunksize=1)
        alone = run(networks=9, rounds=1, per_round=4, out=tmp_path / "one.jsonl")
        first, second = shares.get(timeout=100)
    assert second == []  # the first process speaks for all
    assert first[:-1] == [0, 2, 4, 6, 8, 9, 0, 0, 2, 4]  # two networks at a time; the fit between
    assert first[-1] == card_of(alone)
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()


# -- refusals --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"networks": 0}, "-n must be at least 1, but got 0"),
        ({"networks": -3}, "-n must be at least 1, but got -3"),
        ({"networks": 401}, "the number of networks to label must be at most 400 in tiny, but got 401; lower -n"),
        ({"networks": 10**9}, "-n must be at most 100,000, but got 1,000,000,000"),
        ({"networks": 7, "rounds": 1}, "-n must be at least 8 for a predictor to be fitted, but got 7"),
        ({"networks": 300, "rounds": 2, "per_round": 60}, "must be at most 400 in tiny, but got 420; lower -n, --rounds or --per-round"),
        ({"rounds": -1}, "--rounds must be at least 0, but got -1"),
        ({"per_round": 1}, "--per-round must be at least 2, but got 1"),
        ({"images": 0}, "--images must be at least 1, but got 0"),
        ({"calibration_images": 7}, "--calibration-images must be at least 8, but got 7"),
        ({"calibration_images": 2001}, "--calibration-images must be at most 2,000, but got 2,001"),
        ({"seed": -1}, "--seed must be at least 0, but got -1"),
        ({"out": Path("pairs.txt")}, "pairs must be written as .jsonl, .csv"),
    ],
)
def test_what_cannot_be_is_refused_before_anything_is_scored(options, text, scored):
    with pytest.raises(UsageError, match=text):
        run(**{"networks": 20} | options)
    assert scored == []


@pytest.mark.parametrize("name", ["p.jsonl", "p.csv", "p.dict", "p"])
def test_a_place_that_cannot_be_written_is_told_before_anything_is_scored(name, scored, tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(WriteError, match="must be writable, but it is not"):
        run(networks=2, out=tmp_path / "file" / name)
    assert scored == []


@pytest.mark.parametrize(
    ("data", "text"),
    [
        (replace(DATA, class_names=()), "data noise must have labels to measure accuracy, but has none"),
        (replace(DATA, class_names=("a", "b")), "data noise must have the 3 classes of tiny, but has 2; give what it was trained on"),
        (
            replace(DATA, splits={**DATA.splits, "calibration": ImageSet(np.zeros((9, 9, 9, 3), np.uint8), np.zeros(9, np.int64))}),
            "images of noise must have 8 pixels for tiny, but have 9; give what it was trained on",
        ),
    ],
)
def test_data_of_another_kind_is_refused(scored, monkeypatch, data, text):
    monkeypatch.setattr(job, "load_data", lambda _: data)
    with pytest.raises(MismatchError, match=text):
        run(networks=2)
    assert scored == []


def test_labels_that_a_format_cannot_hold_are_not_lost(monkeypatch):
    monkeypatch.setattr(Subject, "score", lambda *_: Score(0.001, 1000))
    with pytest.raises(FormatError, match=r"use .jsonl"):
        run(networks=3, out=Path("p.csv"))
    assert run(networks=3, out=Path("p.jsonl")).record["evaluated_now"] == 0
