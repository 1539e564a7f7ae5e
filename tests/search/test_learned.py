"""What is expected of networks that were not measured, and how surely; and how that is judged afterwards."""

from itertools import pairwise

import numpy as np
import pytest
from problems import LARGE, LISTED, MIDDLE, Utilities, budget, space_of
from scipy.stats import kendalltau

from ofasearch.search import gaussian
from ofasearch.search.learned import LESSONS, Foresight, Learned, Lessons, foresight
from ofasearch.search.problem import Measures, Problem
from ofasearch.search.surrogate import SurrogateConfig, surrogate


@pytest.fixture(params=[LISTED, MIDDLE, LARGE])
def space(request):
    return space_of(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def problem_with(space, hint=None, known=None):
    """Nothing is measured through it."""
    measures = Measures(lambda codes: np.zeros((len(codes), 1)), lambda q: q[:, 0], (), hint, known)
    return Problem(space, (measures.objective,), (), measures)


def lessons_of(codes, *columns):
    measured = np.stack(columns, axis=1)
    return Lessons(codes=codes, objective=measured[:, 0], measured=measured)


def correlation(one, other):
    return np.corrcoef(one, other)[0, 1]


# -- expectations ----------------------------------------------------------------------------------------------


def test_networks_differ_by_what_their_genes_differ_by(space, rng):
    codes, others = space.sample(40, rng), space.sample(30, rng)
    steps = np.repeat(1 / space.sizes, space.sizes)
    found = gaussian._distances(gaussian.thresholds(space, codes), gaussian.thresholds(space, others), steps)
    assert found == pytest.approx((abs(codes[:, None] - others[None]) / space.sizes).sum(axis=2))


def test_a_smooth_quantity_is_expected_well_and_surely(space, rng):
    codes, others, quantity = space.sample(120, rng), space.sample(300, rng), Utilities(space, 1)
    mean, deviation = Learned(problem_with(space), lessons_of(codes, quantity(codes)))(others)
    errors = abs(mean[:, 0] - quantity(others))
    assert correlation(mean[:, 0], quantity(others)) > 0.9
    assert 0.6 < (errors < deviation[:, 0]).mean() <= 1  # 68 % of a normal's


def test_quantities_are_learned_apart(space, rng):
    """What is expected of one does not depend on the others, nor on units."""
    codes, others = space.sample(30, rng), space.sample(50, rng)
    one, other = Utilities(space, 1)(codes), Utilities(space, 2)(codes)
    alone = Learned(problem_with(space), lessons_of(codes, one))(others)
    both = Learned(problem_with(space), lessons_of(codes, other, 1000 * one + 5))(others)
    assert both[0][:, 1] == pytest.approx(1000 * alone[0][:, 0] + 5)
    assert both[1][:, 1] == pytest.approx(1000 * alone[1][:, 0])


def test_noise_is_told_from_what_genes_explain(space, rng):
    codes, others = space.sample(100, rng), space.sample(200, rng)
    mean, deviation = Learned(problem_with(space), lessons_of(codes, rng.standard_normal(100)))(others)
    assert mean.std() < 0.6
    assert 0.7 < np.median(deviation) < 1.4


def test_a_hint_is_followed_as_far_as_it_tells(space, rng):
    codes, others, quantity = space.sample(12, rng), space.sample(200, rng), Utilities(space, 1)

    def error(hint):
        mean, _ = Learned(problem_with(space, hint), lessons_of(codes, quantity(codes)))(others)
        return np.sqrt(((mean[:, 0] - quantity(others)) ** 2).mean())

    telling, silent = error(lambda c: 7 * quantity(c)[:, None] - 3), error(lambda c: np.sin(1e4 * c.sum(axis=1))[:, None])
    nothing = error(None)
    assert telling < 0.3 * nothing
    assert silent < 1.3 * nothing
    assert error(lambda c: np.ones((len(c), 2))) == pytest.approx(nothing)


def test_what_was_known_beforehand_is_learned_from(space, rng):
    codes, quantity = space.sample(40, rng), Utilities(space, 1)
    few, many = lessons_of(codes[:5], quantity(codes[:5])), lessons_of(codes, quantity(codes))
    known = (codes[5:], quantity(codes[5:])[:, None])
    others = space.sample(60, rng)
    expected = Learned(problem_with(space), many)(others)
    assert np.allclose(Learned(problem_with(space, known=known), few)(others), expected)


def test_networks_that_are_all_alike_teach_that(space):
    codes = space.largest()[None].repeat(4, axis=0)
    mean, deviation = Learned(problem_with(space), lessons_of(codes, np.full(4, 3.0)))(space.smallest()[None])
    assert mean == pytest.approx(3.0)
    assert np.isfinite(deviation).all()


def test_of_many_lessons_the_best_and_the_last_are_taken(rng):
    space = space_of(LARGE)
    codes, quantity = space.sample(LESSONS + 200, rng), Utilities(space, 1)
    values = quantity(codes)
    best = np.argsort(values)[: LESSONS // 2]
    kept = np.union1d(best, np.arange(len(codes))[-LESSONS // 2 :])
    others = space.sample(20, rng)
    expected = Learned(problem_with(space), lessons_of(codes[kept], values[kept]))(others)
    assert np.allclose(Learned(problem_with(space), lessons_of(codes, values))(others), expected)


def test_the_expected_improvement_is_that_of_the_draws(rng):
    space = space_of(LISTED)
    codes, others, quantity = space.sample(20, rng), space.sample(30, rng), Utilities(space, 1)
    learned = Learned(problem_with(space), lessons_of(codes, quantity(codes)))
    mean, deviation = learned(others)
    best = float(np.median(quantity(codes)))
    promise = learned.promise(others, best, rng.standard_normal((20_000, 1, 1)))
    z = (best - mean[:, 0]) / deviation[:, 0]
    from scipy.stats import norm

    assert promise[:, 0] == pytest.approx(deviation[:, 0] * (z * norm.cdf(z) + norm.pdf(z)), abs=0.03 * deviation.max())
    assert np.array_equal(promise[:, 1], mean[:, 0])


# -- looking back ----------------------------------------------------------------------------------------------


def searched(generations):
    space = space_of(LARGE)
    parts = Utilities(space, 1), Utilities(space, 2, 1.0)
    measures = Measures(lambda codes: np.stack([part(codes) for part in parts], axis=1), lambda q: q[:, 0] + 0.5 * q[:, 1])
    problem = Problem(space, (measures.objective,), (budget(LARGE, "macs", 0.5),), measures)
    *_, last = surrogate(problem, SurrogateConfig(population=8, generations=generations), np.random.default_rng(1), None)
    return problem, last.state


def test_every_network_is_foreseen_from_those_measured_in_former_generations():
    problem, state = searched(6)
    seen = foresight(problem, state, 8)
    assert np.array_equal(seen.measured, state.measured[8:])
    lessons = Lessons(codes=state.codes, objective=state.F[:, 0], measured=state.measured)
    for i, j in pairwise(range(8, 57, 8)):
        mean, deviation = Learned(problem, lessons.first(i))(state.codes[i:j])
        assert np.array_equal(seen.expected[i - 8 : j - 8], mean)
        assert np.array_equal(seen.deviation[i - 8 : j - 8], deviation)
    assert (seen.tau() > 0.3).all()


def test_a_first_batch_was_not_foreseen():
    problem, state = searched(0)
    seen = foresight(problem, state, 8)
    assert seen.expected.shape == seen.deviation.shape == seen.measured.shape == (0, 2)


def test_errors_and_ranks_are_told_per_quantity(rng):
    measured = rng.integers(0, 9, (40, 2)).astype(float)
    expected = measured + np.array([3.0, 0.0]) + rng.integers(-3, 4, (40, 2))
    seen = Foresight(expected=expected, deviation=np.ones((40, 2)), measured=measured)
    assert seen.error() == pytest.approx(np.sqrt(((expected - measured) ** 2).mean(axis=0)))
    assert seen.tau() == pytest.approx([kendalltau(expected[:, i], measured[:, i])[0] for i in (0, 1)])
    assert Foresight(expected=measured, deviation=measured, measured=np.ones((40, 2))).tau().tolist() == [0, 0]
