"""The regression that looks at children before they are evaluated."""

import numpy as np
import pytest
from problems import LARGE, LISTED, MIDDLE, Utilities, space_of

from ofasearch.search.screen import LEAST, learn, most_promising, one_hot


@pytest.fixture(params=[LISTED, MIDDLE, LARGE])
def space(request):
    return space_of(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def ranks(values):
    return np.argsort(np.argsort(values))


def test_every_gene_has_a_feature_per_code_and_one_for_its_absence(space, rng):
    codes = space.sample(300, rng)
    x = one_hot(space, codes)
    assert x.shape == (300, (space.sizes + 1).sum())
    for gene, part in enumerate(np.split(x, np.cumsum(space.sizes + 1)[:-1], axis=1)):
        assert (part.sum(axis=1) == 1).all()
        assert (part.argmax(axis=1) == codes[:, gene]).all()  # absent: the first


def test_no_networks_have_no_features(space):
    assert one_hot(space, space.largest()[None][:0]).shape == (0, (space.sizes + 1).sum())


def test_the_order_of_an_additive_objective_is_learned(space, rng):
    objective = Utilities(space, 1)
    codes, others = space.sample(400, rng), space.sample(400, rng)
    expected = one_hot(space, others) @ learn(space, codes, objective(codes))
    assert np.corrcoef(ranks(expected), ranks(objective(others)))[0, 1] > 0.99


def test_an_offset_of_the_objective_is_not_learned_and_its_scale_does_not_matter(space, rng):
    codes, objective = space.sample(400, rng), Utilities(space, 1)
    weights = learn(space, codes, objective(codes))
    assert learn(space, codes, objective(codes) + 1000) == pytest.approx(weights, abs=1e-4)
    assert learn(space, codes, objective(codes) * 1e-9) == pytest.approx(weights * 1e-9, rel=1e-3, abs=1e-13)


def test_nothing_is_expected_of_a_code_that_was_never_seen(space, rng):
    codes = space.sample(200, rng)
    codes = codes[codes[:, 0] != 2]
    assert learn(space, codes, Utilities(space, 1)(codes))[2] == 0  # the second resolution


def test_networks_that_are_all_alike_teach_nothing(space):
    codes = np.tile(space.largest(), (50, 1))
    assert (learn(space, codes, np.full(50, 3.0)) == 0).all()


@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_the_most_promising_share_is_kept_in_its_order(space, rng, share):
    codes, weights = space.sample(100, rng), rng.standard_normal((space.sizes + 1).sum())
    kept = most_promising(space, codes, weights, share)
    expected = one_hot(space, codes) @ weights
    worst = np.sort(expected)[round(share * 100) - 1]
    assert np.array_equal(kept, codes[expected <= worst + 1e-5])


def test_so_few_are_never_screened(space, rng):
    codes, weights = space.sample(40, rng), rng.standard_normal((space.sizes + 1).sum())
    assert len(most_promising(space, codes, weights, 0.01)) == LEAST
    assert np.array_equal(most_promising(space, codes[:LEAST], weights, 0.01), codes[:LEAST])
    assert len(most_promising(space, codes[:0], weights, 0.5)) == 0


def test_a_share_of_1_keeps_all(space, rng):
    codes = space.sample(40, rng)
    assert np.array_equal(most_promising(space, codes, rng.standard_normal((space.sizes + 1).sum()), 1.0), codes)
