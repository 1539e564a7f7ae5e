"""Networks to label: distinct, half as they come, half spread over the cost, the same for the same seed."""

import numpy as np
import pytest

from ofasearch.errors import UsageError
from ofasearch.evaluate.sampling import STRATA, networks_to_label
from ofasearch.space.costs import macs_of
from ofasearch.space.families import get_space


def drawn(space, n, seed=0):
    return networks_to_label(space, n, np.random.default_rng(seed))


def strata_of(space, codes):
    """How many networks lie in each of the equal parts of the range of MACs."""
    bounds = macs_of(space).bounds()
    return np.histogram(macs_of(space)(codes), STRATA, (bounds.lowest, bounds.highest))[0]


@pytest.mark.parametrize("name", ["ofa-mbv3-cifar", "compofa-mbv3-elastic-w1.0"])
@pytest.mark.parametrize("n", [1, 9, 10, 11, 200])
def test_networks_are_distinct_and_of_the_space(name, n):
    space = get_space(name)
    codes = drawn(space, n)
    space.validate(codes)
    assert len(codes) == len(np.unique(codes, axis=0)) == n


@pytest.mark.parametrize("n", [1, 17, 242, 243])
def test_small_spaces_are_drawn_without_replacement(n):
    space = get_space("compofa-mbv3-cifar")
    codes = drawn(space, n)
    space.validate(codes)
    assert len(codes) == len(np.unique(codes, axis=0)) == n


def test_half_is_spread_evenly_over_the_cost_and_half_is_uniform():
    space = get_space("ofa-mbv3-cifar")
    found, uniform = strata_of(space, drawn(space, 400)), strata_of(space, space.sample(20_000, np.random.default_rng(1)))
    assert uniform[[0, -3, -2, -1]].max() < 0.002 * uniform.sum()  # where hardly any would be
    expected = 20 + 200 * uniform / uniform.sum()
    assert (found[:-1] >= 20).all()
    assert found[-1] >= 1  # the costliest networks are few
    deviation = np.sqrt(200 * uniform / uniform.sum()) + 1
    assert (np.abs(found - expected)[1:-1] < 5 * deviation[1:-1] + 4).all()


def test_every_beginning_is_a_sample():
    space = get_space("ofa-mbv3-cifar")
    macs = macs_of(space)(drawn(space, 400))
    spread = macs.std() / np.sqrt(100)
    assert abs(macs[:100].mean() - macs.mean()) < 4 * spread
    assert macs[:100].std() == pytest.approx(macs.std(), rel=0.25)


def test_equal_seeds_draw_equal_networks():
    space = get_space("ofa-mbv3-cifar")
    assert np.array_equal(drawn(space, 50, seed=3), drawn(space, 50, seed=3))
    assert not np.array_equal(drawn(space, 50, seed=3), drawn(space, 50, seed=4))


def test_all_resolutions_are_drawn():
    space = get_space("compofa-mbv3-w1.0").with_resolutions([160, 224])
    assert set(drawn(space, 60)[:, 0]) == {1, 2}


@pytest.mark.parametrize("n", [0, -1, 244])
def test_a_number_that_the_space_does_not_hold_is_refused(n):
    with pytest.raises(UsageError, match=rf"the number of networks to label must be 1 to 243 in compofa-mbv3-cifar, but got {n}"):
        drawn(get_space("compofa-mbv3-cifar"), n)
