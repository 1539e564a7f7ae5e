"""What `find` goes by, and what it makes sure of: lower bounds, networks evaluated for real, candidates judged before one is chosen."""

from dataclasses import replace

import numpy as np
import pytest
from pretended import Device

import ofasearch
from ofasearch import zoo
from ofasearch.cli.main import run
from ofasearch.data import load_data
from ofasearch.errors import MismatchError, UsageError
from ofasearch.evaluate.score import predictions, top1
from ofasearch.evaluate.subject import Subject
from ofasearch.jobs import find as job
from ofasearch.jobs.choose import Timed
from ofasearch.jobs.deliver import calibrated_subnet, to_network
from ofasearch.jobs.exam import limited
from ofasearch.jobs.face import last
from ofasearch.jobs.setup import Budgets, Question
from ofasearch.latency.stopwatch import Timing
from ofasearch.predictor import Predictor, encoder_of, save_predictor
from ofasearch.predictor.model import Certainty, Cloud
from ofasearch.space.costs import macs_of
from ofasearch.space.families import get_space

BUDGET = 8e6  # MACs
BAR = 1.5  # half-widths of the 80 % interval, in standard deviations


@pytest.fixture(autouse=True)
def loaded_once(monkeypatch, shipped):
    load = zoo.load_supernet
    monkeypatch.setattr(zoo, "load_supernet", lambda name: shipped if name == zoo.DEFAULT_SUPERNET else load(name))


@pytest.fixture(scope="module")
def made(shipped):
    """An ensemble of two arbitrary members with error bars and a cloud around networks like the smallest."""
    space = shipped.weights.space
    encoder, rng = encoder_of(space), np.random.default_rng(0)
    weight = (rng.normal(size=(2, encoder.dims, 1)) * 1e-2).astype(np.float32)
    known = encoder.encode(space.settings(space.smallest()[None]))
    cloud = Cloud(np.linalg.inv(known.T @ known + 0.1 * np.eye(encoder.dims)).astype(np.float32), 1.5)
    certainty = Certainty(0.002, {0.8: BAR})
    digest = shipped.weights.digest
    return Predictor(encoder, (weight,), (np.zeros((2, 1), dtype=np.float32),), 0.5, space.name, digest, certainty=certainty, cloud=cloud)


@pytest.fixture
def predictor(made, tmp_path):
    save_predictor(tmp_path / "p.safetensors", made)
    return str(tmp_path / "p.safetensors")


@pytest.fixture
def own_scores(monkeypatch, tmp_path):
    """A memory of this test alone."""
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))


def within(shipped):
    """All networks that keep the budget, (n, g)."""
    codes = shipped.weights.space.enumerate()
    return codes[macs_of(shipped.weights.space)(codes) <= BUDGET]


def really(shipped, arch_id, images=None):
    """Validation top-1 of one network, found by other means than the search's."""
    space, data = shipped.weights.space, load_data("digits")
    codes = np.array(space.parse(arch_id).codes, dtype=np.int64)
    subnet = calibrated_subnet(shipped.weights, codes, data, "x")
    split = data["validation"].take(np.arange(images or len(data["validation"])))
    return top1(predictions(to_network(subnet), split, subnet.preprocessing, resolution=32), split.labels)


class Counted:
    """Counts evaluations, and interrupts at one of them."""

    def __init__(self, patch, stop_at=None):
        self.count = 0
        score = Subject.score

        def counted(subject, codes, split):
            self.count += 1
            if self.count == stop_at:
                raise KeyboardInterrupt
            assert split == "validation"
            return score(subject, codes, split)

        patch.setattr(Subject, "score", counted)


# -- lower bounds ----------------------------------------------------------------------------------------------


def test_the_lower_bound_is_the_objective_and_the_prediction_is_what_is_told(made, predictor, shipped, tmp_path):
    space, codes = shipped.weights.space, within(shipped)
    mean, bar = made.with_error(space.settings(codes))
    best = int((mean - bar).argmax())
    assert best != int(mean.argmax())  # else this would prove nothing
    record = ofasearch.find(macs=BUDGET, predictor=predictor, objective="lcb", out=tmp_path / "run")
    assert record["arch_id"] == space.arch(codes[best]).id
    assert record["objective"] == "lcb"
    assert (record["predicted_top1"], record["error_bar"]) == pytest.approx((mean[best], bar[best]))
    assert record["predicted_top1_source"] == "accuracy predictor"
    plain = ofasearch.find(macs=BUDGET, predictor=predictor, out=tmp_path / "plain")
    assert plain["predicted_top1"] == pytest.approx(mean.max())
    assert [c["error_bar"] > 0 for c in plain["candidates"]] == [True] * 5


def test_a_lower_bound_needs_error_bars(shared_data, tmp_path):
    with pytest.raises(UsageError, match="--objective lcb needs a predictor that carries error bars, but none was given"):
        ofasearch.find(macs=3e8, space="ofa-mbv3-w1.2", objective="lcb", out=tmp_path / "run")
    tutorial = str(shared_data / "ofa" / "acc_predictor.pth")
    with pytest.raises(MismatchError, match="the predictor must carry error bars for that, but has none"):
        ofasearch.find(macs=3e8, space="ofa-mbv3-w1.2", predictor=tutorial, objective="lcb", out=tmp_path / "run")
    with pytest.raises(UsageError, match="--objective must be one of top1, lcb, measured, but got 'best'"):
        ofasearch.find(macs=BUDGET, objective="best", out=tmp_path / "run")


def test_people_see_the_error_bar_beside_the_prediction(predictor, capsys, tmp_path):
    argv = ["find", "--flops", "8M", "--predictor", predictor, "--objective", "lcb", "--quiet", "--out", str(tmp_path / "run")]
    assert run(argv) == 0
    out = capsys.readouterr().out
    assert "objective     the lower end of the predictor's 80 % interval" in out
    winner = out.splitlines()[2]
    assert " ± " in winner
    assert winner.rstrip().endswith("%")


# -- the fitted cloud ------------------------------------------------------------------------------------------


def test_a_winner_outside_the_fitted_networks_is_told(made, predictor, shipped, tmp_path, own_scores):
    text = "the winner lies outside the networks the predictor was fitted on"
    record = ofasearch.find(macs=BUDGET, predictor=predictor, out=tmp_path / "run")
    space = shipped.weights.space
    codes = np.array(space.parse(record["arch_id"]).codes)[None]
    assert made.outside(space.settings(codes))[0]
    assert any(text in note and "evaluate it (--data)" in note for note in record["notes"])
    real = ofasearch.find(macs=BUDGET, predictor=predictor, data="digits", out=tmp_path / "real")
    assert any(text in note and "trust the validation figure" in note for note in real["notes"])
    smallest = int(macs_of(space)(space.smallest()[None])[0])
    inside = ofasearch.find(macs=smallest, predictor=predictor, out=tmp_path / "inside")
    assert not any(text in note for note in inside["notes"])


# -- candidates are evaluated before one is chosen -------------------------------------------------------------


def test_the_candidate_with_the_best_real_accuracy_wins(predictor, shipped, tmp_path, own_scores):
    blind = ofasearch.find(macs=BUDGET, predictor=predictor, out=tmp_path / "blind")
    record = ofasearch.find(macs=BUDGET, predictor=predictor, data="digits", out=tmp_path / "run")
    assert {c["arch_id"] for c in record["candidates"]} == {c["arch_id"] for c in blind["candidates"]}
    real = [c["validation_top1"] for c in record["candidates"]]
    assert real == sorted(real, reverse=True)
    assert real == [really(shipped, c["arch_id"]) for c in record["candidates"]]
    order = [c["arch_id"] for c in blind["candidates"]]
    ranks = [(-c["validation_top1"], order.index(c["arch_id"])) for c in record["candidates"]]
    assert ranks == sorted(ranks)  # of equals the one that was found to be better comes first
    winner = record["candidates"][0]
    assert record["arch_id"] == winner["arch_id"]
    assert record["predicted_top1"] == winner["predicted_top1"]
    measured = record["measured"]
    assert (measured["validation_top1"], measured["validation_n"]) == (real[0], len(load_data("digits")["validation"]))
    assert measured["n"] == len(load_data("digits")["test"])


def test_a_second_run_evaluates_nothing_again(predictor, monkeypatch, tmp_path, own_scores):
    question = {"macs": BUDGET, "predictor": predictor, "data": "digits", "top_k": 3}
    first = ofasearch.find(**question, out=tmp_path / "run")
    counted = Counted(monkeypatch)
    again = ofasearch.find(**question, out=tmp_path / "again")
    assert again["candidates"] == first["candidates"]
    assert counted.count == 0


def test_fewer_images_may_be_asked_for(predictor, shipped, tmp_path, own_scores):
    record = ofasearch.find(
        macs=BUDGET, predictor=predictor, data="digits", images=40, calibration_images=16, top_k=2, out=tmp_path / "run"
    )
    assert record["measured"]["validation_n"] == 40
    assert record["measured"]["calibrated"] == "16 images of digits calibration"
    assert record["measured"]["n"] == len(load_data("digits")["test"])


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"images": 40}, "add --data"),
        ({"calibration_images": 40}, "add --data"),
        ({"images": 0, "data": "digits"}, "--images must be at least 1, but got 0"),
        ({"calibration_images": 7, "data": "digits"}, "--calibration-images must be at least 8, but got 7"),
    ],
)
def test_numbers_of_images_that_make_no_sense_are_refused(tmp_path, options, text):
    with pytest.raises(UsageError, match=text):
        ofasearch.find(macs=BUDGET, **options, out=tmp_path / "run")


def test_measured_members_and_a_lone_candidate_are_not_evaluated(predictor, monkeypatch, tmp_path, own_scores):
    counted = Counted(monkeypatch)
    members = ofasearch.find(macs=BUDGET, data="digits", out=tmp_path / "members")
    lone = ofasearch.find(macs=BUDGET, data="digits", predictor=predictor, top_k=1, out=tmp_path / "lone")
    assert counted.count == 0
    assert not any("validation_top1" in c for c in (*members["candidates"], *lone["candidates"]))


def test_a_candidate_that_is_too_slow_cannot_win(predictor, monkeypatch, tmp_path, own_scores):
    def timing(ms):
        return Timing(ms, ms, ms, ms, ms, 0.0, ms, ms, 100, ms)

    Device().pretend(monkeypatch)

    def clock(rows):
        return Timed([timing(0.2 if i % 2 == 0 else 0.1) for i in range(len(rows))])  # the one foremost is too slow

    monkeypatch.setattr(job, "clock_of", lambda question, space: clock)
    record = ofasearch.find(target="cpu", latency_ms=0.13, predictor=predictor, data="digits", out=tmp_path / "run")
    kept = [c for c in record["candidates"] if c["accepted"]]
    assert [c["accepted"] for c in record["candidates"]] == [True, True, False, False, False]
    assert ["validation_top1" in c for c in record["candidates"]] == [True, True, False, False, False]
    assert record["arch_id"] == max(kept, key=lambda c: c["validation_top1"])["arch_id"]


# -- every network evaluated -----------------------------------------------------------------------------------


def measured_question(**options):
    return {"macs": 5.2e6, "objective": "measured", "data": "digits", "images": 60} | options


def test_measuring_evaluates_all_networks_of_a_budget_that_few_keep(shipped, monkeypatch, tmp_path, own_scores):
    space, counted = shipped.weights.space, Counted(monkeypatch)
    codes = space.enumerate()
    codes = codes[macs_of(space)(codes) <= 5.2e6]
    assert 3 < len(codes) < 60
    record = ofasearch.find(**measured_question(), out=tmp_path / "run")
    assert counted.count == len(codes) == record["evaluations"]
    real = [really(shipped, space.arch(row).id, images=60) for row in codes]
    assert record["predicted_top1"] == record["measured"]["validation_top1"] == max(real)
    assert record["measured"]["validation_n"] == 60
    assert (record["predicted_top1_source"], record["objective"]) == ("measured on the validation split", "measured")
    assert [c["predicted_top1"] for c in record["candidates"]] == sorted(real, reverse=True)[:5]


def test_an_interrupted_measurement_goes_on_where_it_was(monkeypatch, tmp_path, own_scores):
    with monkeypatch.context() as patch:
        counted = Counted(patch, stop_at=4)
        with pytest.raises(KeyboardInterrupt):
            ofasearch.find(**measured_question(), out=tmp_path / "run")
        assert counted.count == 4
    rest = Counted(monkeypatch)
    record = ofasearch.find(**measured_question(), out=tmp_path / "run")
    assert rest.count == record["evaluations"] - 3


def test_measuring_says_beforehand_how_much_it_will_do(shipped, monkeypatch, tmp_path, own_scores):
    Counted(monkeypatch)
    question = Question(budgets=Budgets(macs=BUDGET), objective="measured")
    request = job.FindRequest(question=question, data="digits", images=40, population=6, generations=2, out=tmp_path / "run")
    events = list(job.find(request))
    told = [e for e in events if isinstance(e, job.FindProgress) and e.phase.startswith("evaluating up to")]
    assert told[0].phase == "evaluating up to 18 networks on 40 validation images"
    assert (told[0].done, told[0].total) == (0, 18)
    assert "s in all" in told[-1].phase
    assert told[-1].eta_seconds is not None
    assert [e.done for e in told] == sorted(e.done for e in told)
    result = last(iter(events), job.FindResult)
    assert 6 < result.record["evaluations"] <= 18  # an evolution: more networks keep the budget than it may evaluate
    best = max(e.best_top1 for e in told if e.best_top1 is not None)
    assert result.record["predicted_top1"] == best


@pytest.mark.parametrize(
    "options",
    [{"data": None, "images": None}, {"space": "ofa-mbv3-cifar"}],
    ids=["no data", "no weights"],
)
def test_measuring_needs_data_and_weights(tmp_path, options):
    with pytest.raises(UsageError, match=r"--objective measured evaluates networks: it needs --data with labels, and a supernet"):
        ofasearch.find(**measured_question(**options), out=tmp_path / "run")


def test_measuring_needs_labels(monkeypatch, tmp_path):
    bare = replace(load_data("digits"), class_names=())
    monkeypatch.setattr(job, "load_data", lambda _: bare)
    with pytest.raises(UsageError, match="--data with labels"):
        ofasearch.find(**measured_question(), out=tmp_path / "run")


def test_networks_of_a_smaller_space_are_evaluated_with_the_weights_of_the_larger(tmp_path, own_scores):
    question = measured_question(supernet="cifar10-ofa", space="compofa-mbv3-cifar", macs=4.2e6, calibration_images=16)
    record = ofasearch.find(**question, out=tmp_path / "run")
    assert record["arch_id"].startswith("compofa-mbv3-cifar@")
    large = zoo.load_supernet("cifar10-ofa").weights
    small = get_space("compofa-mbv3-cifar")
    codes = small.lift(np.array(small.parse(record["arch_id"]).codes)[None], large.space)[0]
    subnet = calibrated_subnet(large, codes, limited(load_data("digits"), 60, 16), "x")
    images = load_data("digits")["validation"].take(np.arange(60))
    assert record["predicted_top1"] == top1(predictions(to_network(subnet), images, subnet.preprocessing, resolution=32), images.labels)


def test_the_default_algorithm_lists_a_small_space_and_evolves_a_large_one(shared_data, tmp_path):
    assert ofasearch.find(macs=BUDGET, out=tmp_path / "small")["algorithm"] == "exact"
    tutorial = str(shared_data / "ofa" / "acc_predictor.pth")
    large = ofasearch.find(macs=3e8, space="ofa-mbv3-w1.2", predictor=tutorial, generations=3, out=tmp_path / "large")
    assert large["algorithm"] == "evolution"
    with pytest.raises(UsageError, match=r"--algorithm exact lists at most 1,000,000 networks, but ofa-mbv3-w1\.2 has 1\.09e\+20"):
        ofasearch.find(macs=3e8, space="ofa-mbv3-w1.2", predictor=tutorial, algorithm="exact", out=tmp_path / "exact")
    with pytest.raises(UsageError, match="--algorithm must be one of exact, random, evolution, ga, surrogate, but got 'nsga2'"):
        ofasearch.find(macs=BUDGET, algorithm="nsga2", out=tmp_path / "front")
