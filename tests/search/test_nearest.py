"""Budgets that contradict each other: the nearest network is named, and it is the nearest."""

import numpy as np
import pytest

from ofasearch.search.nearest import contradiction, excess, nearest
from ofasearch.search.problem import Budget, Problem
from ofasearch.space.costs import macs_of, params_of
from ofasearch.space.families import get_space


def opposed(space, macs, reward):
    """A limit on MACs, and one on a cost that falls with every wide layer."""
    wide = space.tabulate(lambda spec: 10.0 if spec.kind == "mbconv" and spec.c_mid < 4 * spec.c_in else 1.0)
    return Problem(space, (), (Budget("MACs", macs_of(space), macs, str), Budget("narrowness", wide, reward, str)))


def test_the_nearest_network_of_a_small_space_is_the_nearest_of_all():
    space = get_space("compofa-mbv3-cifar")
    problem = opposed(space, 5e6, 40.0)
    codes = space.enumerate()
    assert not problem.feasible(codes).any()
    found = nearest(problem, np.random.default_rng(0))
    assert excess(problem, found[None])[0] == excess(problem, codes).min() > 1


def test_a_large_space_is_searched_for_something_nearer_than_its_ends():
    space = get_space("ofa-mbv3-w1.0")
    problem = opposed(space, 42e6, 60.0)
    found = nearest(problem, np.random.default_rng(0))
    ends = np.stack([budget.cost.bounds().lowest_codes for budget in problem.budgets])
    random = space.sample(20_000, np.random.default_rng(1))
    assert 1 < excess(problem, found[None])[0] < min(excess(problem, ends).min(), excess(problem, random).min())


def test_the_error_says_what_was_asked_and_what_is_possible():
    space = get_space("compofa-mbv3-cifar")
    problem = opposed(space, 5e6, 40.0)
    text = str(contradiction(problem, nearest(problem, np.random.default_rng(0))))
    assert "none was found for MACs 5000000.0, narrowness 40.0; the nearest takes MACs " in text
    assert "compofa-mbv3-cifar@r32-" in text


@pytest.mark.parametrize("space", ["compofa-mbv3-cifar", "ofa-mbv3-cifar"])
def test_what_is_possible_is_found_to_be(space):
    space = get_space(space)
    row = space.sample(1, np.random.default_rng(5))
    prices = macs_of(space), params_of(space)
    problem = Problem(space, (), tuple(Budget("x", price, float(price(row)[0]) * 1.02, str) for price in prices))
    assert excess(problem, nearest(problem, np.random.default_rng(0))[None])[0] <= 1
