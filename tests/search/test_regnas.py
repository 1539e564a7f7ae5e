"""The rewards of REG-NAS."""

import numpy as np
import pytest

from ofasearch.errors import UsageError
from ofasearch.search.regnas import Reward

MEASURED = np.array([[0.80, 0.02], [0.82, 0.05], [0.79, 0.01], [0.82, 0.03]])


def test_r2_weighs_accuracy_and_negative_flips():
    assert Reward(lambda1=2, lambda2=3).of(MEASURED) == pytest.approx([1.54, 1.49, 1.55, 1.55])


def test_r0_and_r1_are_the_ends_of_r2():
    assert (Reward(kind="r0").of(MEASURED) == MEASURED[:, 0]).all()
    assert (Reward(kind="r1").of(MEASURED) == -MEASURED[:, 1]).all()
    assert (Reward(lambda1=1, lambda2=0).of(MEASURED) == Reward(kind="r0").of(MEASURED)).all()


def test_several_references_count_by_their_mean():
    measured = np.array([[0.8, 0.01, 0.03]])
    assert Reward().of(measured) == pytest.approx([0.78])


def test_without_a_reference_only_accuracy_counts():
    assert Reward().of(np.array([[0.8], [0.7]])) == pytest.approx([0.8, 0.7])


def test_a_search_minimises_the_negative_reward():
    assert (Reward().objective(MEASURED) == -Reward().of(MEASURED)).all()


@pytest.mark.parametrize("reward", [Reward(nfr_cap=0.02), Reward(lambda1=10, lambda2=0.1, nfr_cap=0.02), Reward(kind="r0", nfr_cap=0.02)])
def test_networks_above_the_cap_come_behind_all_others_by_their_excess(reward):
    order = np.argsort(reward.objective(MEASURED))
    assert set(order[:2]) == {0, 2}
    assert list(order[2:]) == [3, 1]
    assert reward.keeps_cap(MEASURED).tolist() == [True, False, True, False]


def test_the_cap_holds_against_each_reference():
    assert not Reward(nfr_cap=0.02).keeps_cap(np.array([[0.8, 0.01, 0.03]]))[0]
    assert Reward(nfr_cap=0.0).keeps_cap(np.array([[0.8]]))[0]


@pytest.mark.parametrize(
    "wrong",
    [
        {"kind": "r3"},
        {"lambda1": -1},
        {"lambda2": float("nan")},
        {"lambda1": float("inf")},
        {"lambda1": 0, "lambda2": 0},
        {"nfr_cap": -0.1},
        {"nfr_cap": 1.1},
        {"nfr_cap": float("nan")},
    ],
)
def test_what_is_no_reward_is_refused(wrong):
    with pytest.raises(UsageError, match="must"):
        Reward(**wrong)
