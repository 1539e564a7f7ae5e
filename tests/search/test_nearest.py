"""The network that exceeds budgets least: exact where a space can be listed, better than chance where not."""

from dataclasses import replace

import numpy as np
import pytest
from problems import LARGE, LISTED, MIDDLE, PRICES, budget, cost_of, problem_of, space_of

from ofasearch.errors import InfeasibleError
from ofasearch.search.nearest import excess, find_nearest
from ofasearch.search.operators import Unseen, initial
from ofasearch.search.problem import Budget


def turned(name, what):
    """A price that falls where another one grows."""
    highest = cost_of(name, what).bounds().highest
    return space_of(name).tabulate(lambda layer: -PRICES[what](layer)).scaled(1.0, highest + 1)


def opposed(name, what, share):
    """At least so much of a price: at most so much of what is left of it."""
    cost = turned(name, what)
    bounds = cost.bounds()
    return Budget(f"no {what}", cost, bounds.lowest + share * (bounds.highest - bounds.lowest), repr)


def contradicting(name, low, high):
    """Few MACs and little memory, but many parameters."""
    return problem_of(name, 1, (budget(name, "macs", low), budget(name, "memory", low), opposed(name, "params", high)))


def around(name, codes, width, *whats):
    """Budgets from both sides of what one network costs, `width` of its costs away."""
    budgets = []
    for what in whats:
        value = float(cost_of(name, what)(codes[None])[0])
        budgets.append(Budget(what, cost_of(name, what), value * (1 + width), repr))
        rest = turned(name, what)
        budgets.append(Budget(f"no {what}", rest, float(rest(codes[None])[0]) + width * value, repr))
    return problem_of(name, 1, tuple(budgets))


@pytest.mark.parametrize(("low", "high"), [(0.01, 0.01), (0.1, 0.1), (0.05, 0.3), (0.3, 0.05), (1.0, 1.0)])
def test_on_a_listed_space_the_nearest_network_is_the_nearest_of_all(low, high):
    problem = contradicting(LISTED, low, high)
    nearest, ratios = find_nearest(problem), excess(problem, problem.space.enumerate())
    assert nearest.exact
    assert nearest.excess == ratios.min() == excess(problem, nearest.codes[None])[0]


@pytest.mark.parametrize("name", [LISTED, MIDDLE])
def test_what_is_excluded_is_not_the_nearest_as_long_as_there_are_others(name):
    problem = contradicting(name, 0.1, 0.1)
    first = find_nearest(problem).codes
    second = find_nearest(replace(problem, excluded=first[None]))
    assert (second.codes != first).any()
    if name == LISTED:
        codes = problem.space.enumerate()
        others = codes[(codes != first).any(axis=1)]
        assert second.excess == excess(problem, others).min()
        assert find_nearest(replace(problem, excluded=codes)).excess == excess(problem, codes).min()


@pytest.mark.parametrize("name", [MIDDLE, LARGE])
@pytest.mark.parametrize(("low", "high"), [(0.01, 0.01), (0.1, 0.1), (0.05, 0.3), (0.3, 0.05)])
def test_on_a_large_space_it_is_nearer_than_the_ends_and_than_20000_random_ones(name, low, high):
    problem = contradicting(name, low, high)
    nearest = find_nearest(problem)
    ends = np.concatenate([problem.cheapest(), problem.space.largest()[None]])
    others = np.concatenate([ends, problem.space.sample(20_000, np.random.default_rng(0))])
    assert not nearest.exact
    assert nearest.excess == excess(problem, nearest.codes[None])[0] < excess(problem, others).min()


@pytest.mark.parametrize("name", [LISTED, MIDDLE, LARGE])
def test_the_excess_is_above_1_exactly_where_a_budget_is_exceeded(name):
    problem = contradicting(name, 0.5, 0.6)
    codes = problem.space.sample(2000, np.random.default_rng(0))
    feasible = problem.feasible(codes)
    assert 0 < feasible.sum() < 2000
    assert ((excess(problem, codes) <= 1) == feasible).all()


@pytest.mark.parametrize("name", [LISTED, MIDDLE, LARGE])
@pytest.mark.parametrize("whats", [("macs",), ("macs", "params")])
def test_budgets_that_a_rare_network_keeps_are_kept(name, whats):
    """Chance does not meet one within a hundredth of two costs from both sides; nobody is told that there is none."""
    for codes in space_of(name).sample(4, np.random.default_rng(1)):
        problem = around(name, codes, 0.01, *whats)
        assert problem.feasible(codes[None]).all()
        assert find_nearest(problem).excess <= 1
        found = initial(problem, 10, Unseen(problem.space), np.random.default_rng(0))
        assert len(found) >= 1
        assert problem.feasible(found).all()


def test_on_a_listed_space_a_single_network_is_kept_to():
    for codes in space_of(LISTED).sample(4, np.random.default_rng(1)):
        problem = around(LISTED, codes, 1e-9, "macs", "params", "phone")
        assert (find_nearest(problem).codes == codes).all()
        assert (initial(problem, 10, Unseen(problem.space), np.random.default_rng(0)) == codes).all()


def test_the_answer_is_always_the_same_and_no_objective_is_asked():
    problem = contradicting(LARGE, 0.05, 0.1)
    first, second = find_nearest(problem), find_nearest(problem)
    assert (first.codes == second.codes).all()
    assert not len(problem.objectives[0].rows)


class Measured:
    """A price that is no table: each network it is asked for would be timed."""

    def __init__(self, cost):
        self.cost, self.asked = cost, 0

    def __call__(self, codes):
        self.asked += len(codes)
        return self.cost(codes)

    def bounds(self):
        return self.cost.bounds()


def test_of_costs_that_are_measured_only_the_cheapest_networks_are_looked_at():
    measured = Measured(cost_of(LARGE, "phone"))
    bounds = measured.bounds()
    problem = problem_of(LARGE, 1, (Budget("phone", measured, bounds.lowest * 1.01, repr), opposed(LARGE, "macs", 0.1)))
    nearest = find_nearest(problem)
    assert measured.asked == 3
    assert nearest.excess == excess(problem, problem.cheapest()).min()
    assert not nearest.exact


@pytest.mark.parametrize(("name", "which"), [(LISTED, "possible network"), (LARGE, "network found")])
def test_the_error_names_the_nearest_network_and_what_it_takes(name, which):
    problem = contradicting(name, 0.01, 0.01)
    codes = find_nearest(problem).codes
    takes = ", ".join(f"{limit.name} {float(limit.cost(codes[None])[0])!r}" for limit in problem.budgets)
    with pytest.raises(InfeasibleError) as failure:
        problem.keeping()
    assert str(failure.value).endswith(f"; the nearest {which} takes {takes} ({problem.space.arch(codes)})")
