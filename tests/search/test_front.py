"""Fronts against brute force and pymoo: dominance, hypervolume, knee, regret."""

import numpy as np
import pytest

from ofasearch.search import front as front_file
from ofasearch.search.front import hypervolume, knee, nondominated, regret


def brute_force(F):
    """The definition, pair by pair."""
    at_most, smaller = (F[:, None] <= F[None]).all(axis=2), (F[:, None] < F[None]).any(axis=2)
    return ~(at_most & smaller).any(axis=0)


def draws(m, *, ties):
    """Random sets of objectives; with ties, of few values."""
    for seed in range(40):
        rng = np.random.default_rng(seed)
        F = rng.random((int(rng.integers(1, 60)), m)) * rng.choice([1e-3, 1.0, 1e8], size=m)
        yield np.floor(F / F.max(axis=0) * 4) if ties else F


def hull(n, m, seed=0):
    """n distinct rows of which none dominates another: on a plane with a falling slope."""
    return np.random.default_rng(seed).dirichlet(np.ones(m), size=n)


# -- dominance -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("ties", [False, True])
@pytest.mark.parametrize("m", [1, 2, 3, 4])
def test_the_front_is_what_the_definition_says(m, ties):
    for F in draws(m, ties=ties):
        assert (nondominated(F) == brute_force(F)).all()


@pytest.mark.parametrize("m", [2, 3])
def test_the_front_is_that_of_pymoo(m):
    from pymoo.util.nds.non_dominated_sorting import NonDominatedSorting

    for F in draws(m, ties=True):
        theirs = NonDominatedSorting().do(F, only_non_dominated_front=True)
        assert sorted(theirs) == np.flatnonzero(nondominated(F)).tolist()


@pytest.mark.parametrize("m", [2, 3])
def test_equal_rows_are_on_the_front_together(m):
    F = np.concatenate([hull(5, m)] * 2 + [hull(5, m) + 1])
    assert nondominated(F).tolist() == [True] * 10 + [False] * 5


@pytest.mark.parametrize("m", [2, 3])
def test_one_row_or_none_is_a_front(m):
    assert nondominated(np.ones((1, m))).tolist() == [True]
    assert nondominated(np.ones((0, m))).tolist() == []


def test_the_order_of_rows_does_not_matter():
    rng = np.random.default_rng(0)
    for m in (2, 3):
        F = np.floor(rng.random((200, m)) * 10)
        order = rng.permutation(len(F))
        assert (nondominated(F)[order] == nondominated(F[order])).all()


def test_the_last_digit_counts_beside_huge_numbers():
    F = np.array([[1.0, 1e300, 1.0], [1.0, 1e300, 1.0 + 1e-15], [1.0 - 1e-15, 1e300, 2.0]])
    assert nondominated(F).tolist() == [True, False, True]


# -- hypervolume -----------------------------------------------------------------------------------------------


def test_hypervolumes_by_hand():
    F, reference = np.array([[1.0, 3.0], [2.0, 1.0]]), np.array([4.0, 4.0])
    assert hypervolume(F, reference) == 3 * 1 + 2 * 3 - 2 * 1
    assert hypervolume(F[:1], reference) == 3
    assert hypervolume(np.array([[1.0, 2.0, 3.0]]), np.full(3, 4.0)) == pytest.approx(6)


@pytest.mark.parametrize("m", [2, 3, 4])
def test_the_hypervolume_is_that_of_pymoo(m):
    from pymoo.indicators.hv import HV

    for seed in range(20):
        F = np.random.default_rng(seed).random((50, m))
        assert hypervolume(F, np.full(m, 0.9)) == pytest.approx(HV(ref_point=np.full(m, 0.9))(F[(F < 0.9).all(axis=1)]), rel=1e-12)


@pytest.mark.parametrize("m", [2, 3])
def test_the_hypervolume_is_the_share_of_random_points_that_are_dominated(m):
    rng = np.random.default_rng(1)
    F, points = rng.random((20, m)), rng.random((20_000, m))
    dominated = (F[None] <= points[:, None]).all(axis=2).any(axis=1)
    assert hypervolume(F, np.ones(m)) == pytest.approx(dominated.mean(), abs=0.015)


@pytest.mark.parametrize("m", [2, 3])
def test_what_is_dominated_equal_or_beyond_the_reference_adds_nothing(m):
    F, reference = hull(8, m), np.full(m, 2.0)
    whole = hypervolume(F, reference)
    more = np.concatenate([F, F[:3], F + 0.5, F + np.r_[3.0, np.zeros(m - 1)]])
    assert hypervolume(more, reference) == pytest.approx(whole)
    assert hypervolume(F + 2, reference) == 0
    assert hypervolume(F[:0], reference) == 0


# -- knee ------------------------------------------------------------------------------------------------------


def test_the_knee_is_farthest_from_the_chord_on_any_scale():
    x = np.linspace(0, 1, 101)
    F = np.stack([x, (1 - np.sqrt(x)) ** 2], axis=1)  # symmetric: the bend is where both are a quarter
    assert np.allclose(F[knee(F)], 0.25)
    assert knee(F * [1e-3, 1e9] + [5, -7]) == knee(F)


def test_the_knee_of_two_objectives_has_the_greatest_distance_from_the_line_through_the_ends():
    for seed in range(20):
        F = np.random.default_rng(seed).random((200, 2))
        F = F[nondominated(F)]
        scaled = (F - F.min(axis=0)) / np.ptp(F, axis=0)
        a, b = scaled[F[:, 0].argmin()], scaled[F[:, 1].argmin()]
        to, along = scaled - a, b - a
        below = (along[1] * to[:, 0] - along[0] * to[:, 1]) / np.hypot(*along)
        assert below[knee(F)] == pytest.approx(below.max())


def test_the_knee_of_three_objectives_is_the_corner_near_all_ideals():
    F = np.array([[0.0, 1, 1], [1, 0, 1], [1, 1, 0], [0.3, 0.3, 0.3], [0.9, 0.9, 0.1]])
    assert knee(F) == 3


@pytest.mark.parametrize(
    "F",
    [
        np.array([[1.0, 2.0]]),
        np.array([[1.0, 2.0], [2.0, 1.0]]),
        np.array([[0.0, 1.0], [0.5, 0.5], [1.0, 0.0]]),  # straight
        np.array([[0.0, 1.0], [0.6, 0.6], [1.0, 0.0]]),  # bulges outwards
        np.array([[1.0, 2.0], [1.0, 2.0], [1.0, 2.0]]),
    ],
)
def test_fronts_without_a_bend_have_no_knee(F):
    assert knee(F) is None


# -- regret ----------------------------------------------------------------------------------------------------

EXACT = np.array([[-0.9, 4.0], [-0.8, 3.0], [-0.6, 2.0], [-0.5, 1.0]])
REFERENCE = np.array([-0.4, 5.0])


def test_the_exact_front_regrets_nothing():
    found = regret(EXACT, EXACT, REFERENCE)
    assert (found.hypervolume_share, found.worst_loss, found.mean_loss, found.uncovered) == (1, 0, 0, 0)


def test_losses_are_taken_at_equal_cost():
    found = regret(np.array([[-0.85, 3.9], [-0.6, 2.0]]), EXACT, REFERENCE)
    assert found.worst_loss == pytest.approx(0.2)  # 0.6 where 0.8 is possible
    assert found.mean_loss == pytest.approx((0.05 + 0.2 + 0) / 3)
    assert found.uncovered == 1
    assert found.hypervolume_share == pytest.approx((0.25 * 1.1 + 0.2 * 3) / hypervolume(EXACT, REFERENCE))


def test_a_front_of_nothing_affordable_has_no_losses():
    found = regret(np.array([[-0.95, 4.5]]), EXACT, REFERENCE)
    assert (found.worst_loss, found.mean_loss, found.uncovered) == (None, None, 4)


def test_regret_in_parts_is_regret_at_once(monkeypatch):
    F, exact = hull(40, 3), hull(60, 3, seed=1) * 0.9
    whole = regret(F, exact, np.ones(3))
    monkeypatch.setattr(front_file, "CHUNK", 1)
    assert regret(F, exact, np.ones(3)) == whole
    assert 0 < whole.hypervolume_share < 1
