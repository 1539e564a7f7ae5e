"""What networks predict image by image: looked at in parts, remembered, shared, the same as when each is run alone."""

from dataclasses import replace

import numpy as np
import pytest
from tiny import DATA, supernet_of

from ofasearch.errors import MismatchError
from ofasearch.evaluate.store import Store
from ofasearch.evaluate.subject import Subject
from ofasearch.jobs.exam import UnevaluatedError
from ofasearch.jobs.reward_aim import Placed, RewardAim, live_trials
from ofasearch.jobs.trials import Trials, spread
from ofasearch.ranks import Ranks
from ofasearch.search.regnas import Reward
from ofasearch.space.containment import containing

LABELS = DATA["validation"].labels


@pytest.fixture(scope="module")
def supernet(tiny_space):
    return supernet_of("tiny", tiny_space)


@pytest.fixture(autouse=True)
def own_store(tmp_path, monkeypatch, one_thread):
    monkeypatch.setenv("OFASEARCH_CACHE", str(tmp_path / "cache"))


@pytest.fixture
def trials(supernet, tiny_space):
    return live_trials(supernet, tiny_space, DATA, Ranks())


@pytest.fixture
def codes(tiny_space):
    return np.unique(tiny_space.sample(12, np.random.default_rng(5)), axis=0)[:7]


def alone(supernet, tiny_space, codes, split="validation"):
    """Each network calibrated and run for itself."""
    subject = Subject("alone", supernet.weights, tiny_space, DATA)
    return np.stack([subject.score(row, split).predicted for row in codes])


def evaluated(trials, codes, share=1.0):
    progress = list(trials.evaluate(codes, share))
    return [(p.done, p.total) for p in progress]


def never(*_):
    raise AssertionError("nothing should be evaluated")


def test_the_order_of_looking_is_a_permutation_whose_parts_are_spread_evenly():
    for n in (1, 3, 4, 30, 5000):
        order = spread(n)
        assert sorted(order) == list(range(n))
    assert list(spread(8)) == [0, 4, 2, 6, 1, 5, 3, 7]


def test_networks_run_side_by_side_predict_what_each_does_alone(trials, supernet, tiny_space, codes):
    assert evaluated(trials, codes)[-1] == (7, 7)
    expected = alone(supernet, tiny_space, codes)
    assert (trials.in_order(codes) == expected).all()
    assert (trials.predictions(codes) == expected[:, trials.order]).all()
    assert trials.values(codes) == pytest.approx((expected == LABELS).mean(axis=1))


def test_unknown_networks_are_asked_for_once_each(trials, codes):
    with pytest.raises(UnevaluatedError) as asked:
        trials.predictions(np.concatenate([codes[:3], codes[:3]]), 0.25)
    assert (asked.value.codes == codes[:3]).all()
    assert asked.value.share == 0.25
    evaluated(trials, codes[:3], 0.25)
    with pytest.raises(UnevaluatedError) as asked:
        trials.predictions(codes[:4], 0.25)
    assert (asked.value.codes == codes[3:4]).all()


def test_a_first_look_is_the_beginning_of_the_whole(trials, supernet, tiny_space, codes):
    evaluated(trials, codes, 0.25)
    first = trials.predictions(codes, 0.25)
    assert first.shape == (7, 8)
    with pytest.raises(UnevaluatedError):
        trials.predictions(codes)
    assert trials.known == {}
    evaluated(trials, codes)
    assert (trials.predictions(codes)[:, :8] == first).all()
    assert (trials.in_order(codes) == alone(supernet, tiny_space, codes)).all()


def test_a_second_look_runs_only_the_images_that_are_left(trials, codes, monkeypatch):
    evaluated(trials, codes, 0.25)
    looked = []
    predict = Subject.predict
    monkeypatch.setattr(
        Subject, "predict", lambda self, networks, rows, split, index: looked.append(index) or predict(self, networks, rows, split, index)
    )
    monkeypatch.setattr(Subject, "calibrated", never)
    evaluated(trials, codes)
    assert {tuple(index) for index in looked} == {tuple(trials.order[8:])}


def test_what_was_evaluated_is_remembered(trials, supernet, tiny_space, codes, monkeypatch):
    evaluated(trials, codes[:4])
    evaluated(trials, codes[4:], 0.25)
    monkeypatch.setattr(Subject, "predict", never)
    again = live_trials(supernet, tiny_space, DATA, Ranks())
    assert evaluated(again, codes[:4])[-1] == (4, 4)
    assert evaluated(again, codes[4:], 0.25)[-1] == (3, 3)
    assert (again.predictions(codes, 0.25) == trials.predictions(codes, 0.25)).all()
    assert (again.in_order(codes[:4]) == trials.in_order(codes[:4])).all()
    assert again.evaluated == 0


def test_all_that_was_finished_before_a_kill_is_remembered(trials, supernet, tiny_space, codes):
    work = trials.evaluate(codes)
    next(work), next(work)  # what is run side by side first
    work.close()
    with Store() as store:
        subject = Subject("later", supernet.weights, tiny_space, DATA)
        found = [store.get(subject.key(row, "validation")) for row in codes]
    assert sum(score is not None for score in found) == 4


def test_a_whole_evaluation_is_what_every_other_job_remembers_it_by(trials, supernet, tiny_space, codes):
    evaluated(trials, codes[:1])
    with Store() as store:
        score = store.get(Subject("another job", supernet.weights, tiny_space, DATA).key(codes[0], "validation"))
    assert (score.predicted == alone(supernet, tiny_space, codes[:1])[0]).all()
    assert score.top1 == trials.values(codes[:1])[0]


def test_networks_of_a_part_of_the_space_are_run_as_those_they_are(supernet, tiny_space, codes):
    small = tiny_space.smallest()
    inside = containing(tiny_space, np.where(np.arange(len(small)) == 2, 2, small))
    part = inside.sample(3, np.random.default_rng(1))
    trials = live_trials(supernet, inside, DATA, Ranks())
    evaluated(trials, part)
    assert (trials.in_order(part) == alone(supernet, tiny_space, inside.lift(part, tiny_space))).all()


def test_trials_without_a_supernet_know_only_what_they_were_given(tiny_space, codes):
    given = Trials(space=tiny_space, images=len(LABELS), labels=LABELS)
    with pytest.raises(MismatchError, match="must have been evaluated"):
        evaluated(given, codes[:1])


def test_trials_that_join_share_what_they_saw(trials, supernet, tiny_space, codes):
    evaluated(trials, codes[:2])
    other = live_trials(supernet, tiny_space, DATA, Ranks())
    other.join(trials)
    assert (other.predictions(codes[:2]) == trials.predictions(codes[:2])).all()
    evaluated(other, codes[2:4])
    assert (trials.predictions(codes[2:4]) == other.predictions(codes[2:4])).all()


def test_the_measured_quantities_are_top1_and_the_flip_rate_against_each_reference(supernet, tiny_space, codes):
    references = alone(supernet, tiny_space, codes[:2])
    aim = RewardAim(reward=Reward(), references=references)
    trials = aim.exam(supernet, tiny_space, None, DATA)
    evaluated(trials, codes)
    predicted = alone(supernet, tiny_space, codes)
    expected = [[np.mean(p == LABELS), *(np.mean((r == LABELS) & (p != LABELS)) for r in references)] for p in predicted]
    assert aim.measured(codes) == pytest.approx(np.array(expected))
    assert aim.measured(codes)[0, 1] == aim.measured(codes)[1, 2] == 0


def test_a_reference_must_be_a_network_of_the_space_to_be_contained(tiny_space):
    other = replace(tiny_space, genes=(tiny_space.genes[0], *(replace(g, choices=g.choices[:1]) for g in tiny_space.genes[1:])))
    aim = RewardAim(reward=Reward(), contained=[Placed(space=tiny_space, codes=tiny_space.largest())])
    with pytest.raises(MismatchError, match="to be contained, the reference must be a network of"):
        aim.narrow(other)


def test_excluded_networks_are_those_of_the_space_alone(tiny_space, codes):
    aim = RewardAim(reward=Reward(), others=[Placed(space=tiny_space, codes=row) for row in codes[:2]])
    assert (aim.excluded(tiny_space) == codes[:2]).all()
    inside = containing(tiny_space, tiny_space.largest())
    assert aim.excluded(inside) is None
