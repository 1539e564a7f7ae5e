"""Random networks, mutation and crossover: valid on every published space, and never an endless loop."""

import numpy as np
import pytest

from ofasearch.errors import InfeasibleError
from ofasearch.search.operators import Unseen, breed, cross, fill, initial, mutate, unit_index
from ofasearch.search.problem import Budget, Problem
from ofasearch.space.costs import macs
from ofasearch.space.families import DESIGNS, get_space


@pytest.fixture(scope="module", params=DESIGNS)
def space(request):
    return get_space(request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(11)


def price_of_small_kernels(layer):
    """A device on which small kernels are slow, so that its cheapest network is not the smallest."""
    return macs(layer) * (1.5 if layer.kernel == 3 else 1.0)


def within(cost, limit):
    return Problem(cost._space, (lambda codes: -cost(codes),), (Budget("macs", cost, float(limit), repr),))


def distinct(codes):
    return len(np.unique(codes, axis=0)) == len(codes)


# -- mutation --------------------------------------------------------------------------------------------------


def test_mutation_with_probability_0_returns_the_parents(space, rng):
    parents = space.sample(200, rng)
    assert (mutate(space, unit_index(space), parents, 0.0, rng) == parents).all()


def test_mutation_with_probability_1_changes(space, rng):
    parents = space.sample(500, rng)
    assert (mutate(space, unit_index(space), parents, 1.0, rng) != parents).any(axis=1).mean() > 0.95


@pytest.mark.parametrize("probability", [0.0, 0.1, 0.5, 1.0])
def test_mutants_are_valid_and_canonical_and_leave_their_parents_alone(space, rng, probability):
    parents = space.sample(500, rng)
    before = parents.copy()
    mutants = mutate(space, unit_index(space), parents, probability, rng)
    space.validate(mutants)
    assert (space.canonical(mutants) == mutants).all()
    assert (parents == before).all()


def test_kernel_and_expand_ratio_of_a_block_are_redrawn_together(rng):
    space = get_space("ofa-mbv3-cifar")
    parents = np.tile(space.largest(), (4000, 1))
    changed = mutate(space, unit_index(space), parents, 0.1, rng) != parents
    kernel, expand = (next(i for i, g in enumerate(space.genes) if g.name == f"s1.b1.{part}") for part in ("kernel", "expand"))
    assert changed[:, kernel].mean() == pytest.approx(0.1 * 2 / 3, abs=0.02)  # a re-draw keeps one value of three
    assert changed[changed[:, kernel], expand].mean() == pytest.approx(2 / 3, abs=0.1)


# -- crossover -------------------------------------------------------------------------------------------------


def test_crossing_takes_each_gene_from_a_parent_that_has_it(space, rng):
    mothers, fathers = space.sample(500, rng), space.sample(500, rng)
    child = cross(space, mothers, fathers, rng)
    inherited = (child == mothers) | (child == fathers)
    assert inherited[child > 0].all()
    both = (mothers > 0) & (fathers > 0) & (mothers != fathers) & (child > 0)
    assert (child == mothers)[both].mean() == pytest.approx(0.5, abs=0.05)


def test_children_are_valid_and_canonical_and_leave_their_parents_alone(space, rng):
    mothers, fathers = space.sample(500, rng), space.sample(500, rng)
    before = mothers.copy(), fathers.copy()
    child = cross(space, mothers, fathers, rng)
    space.validate(child)
    assert (space.canonical(child) == child).all()
    assert (mothers == before[0]).all()
    assert (fathers == before[1]).all()


def test_a_network_crossed_with_itself_is_itself(space, rng):
    parents = space.sample(100, rng)
    assert (cross(space, parents, parents, rng) == parents).all()


def test_breeding_is_crossing_and_then_mutating(space):
    mothers, fathers, parents = (space.sample(count, np.random.default_rng(count)) for count in (60, 60, 40))
    rng, again, units = np.random.default_rng(1), np.random.default_rng(1), unit_index(space)
    bred = breed(space, units, (mothers, fathers), parents, 0.2, rng)
    assert (bred[:60] == cross(space, mothers, fathers, again)).all()
    assert (bred[60:] == mutate(space, units, parents, 0.2, again)).all()


# -- no network twice ------------------------------------------------------------------------------------------


def test_no_network_is_handed_out_twice(rng):
    space = get_space("compofa-mbv3-cifar")
    unseen = Unseen(space)
    taken = np.concatenate([unseen.take(space.sample(200, rng), 60) for _ in range(6)])
    assert distinct(taken)
    assert len(taken) <= space.size
    assert len(unseen.take(taken, 1000)) == 0


@pytest.mark.parametrize("limit", [0, 1, 7])
def test_no_more_than_the_limit_are_taken(rng, limit):
    assert len(Unseen(get_space("ofa-mbv3-cifar")).take(get_space("ofa-mbv3-cifar").sample(50, rng), limit)) == limit


def test_filling_runs_dry_instead_of_looping(rng):
    problem = Problem(get_space("compofa-mbv3-cifar"), (lambda codes: np.zeros(len(codes)),), ())
    unseen = Unseen(problem.space)
    found = fill(problem, 400, unseen, lambda size: problem.space.sample(size, rng))
    assert len(found) == problem.space.size == 243
    assert len(fill(problem, 400, unseen, lambda size: problem.space.sample(size, rng))) == 0


# -- the first population --------------------------------------------------------------------------------------


@pytest.mark.parametrize("excess", [0.0, 0.002, 0.05])
def test_a_budget_just_above_the_exact_minimum_still_has_a_first_population(space, rng, excess):
    cost = space.tabulate(macs)
    problem = within(cost, cost.bounds().lowest * (1 + excess))
    found = initial(problem, 20, Unseen(space), rng)
    space.validate(found)
    assert 1 <= len(found) <= 20
    assert problem.feasible(found).all()
    assert distinct(found)


def test_a_wide_budget_fills_the_first_population(space, rng):
    cost = space.tabulate(macs)
    assert len(initial(within(cost, cost.bounds().highest), 50, Unseen(space), rng)) == 50


def test_a_first_population_is_never_larger_than_asked():
    """Where chance finds nearly enough networks, the cheapest and the smallest only fill up what is missing."""
    space = get_space("ofa-mbv3-cifar")
    cost = space.tabulate(price_of_small_kernels)
    scarce = np.quantile(cost(space.sample(20_000, np.random.default_rng(0))), 0.003)
    assert cost.bounds().lowest < cost(space.smallest()[None])[0] < scarce
    for seed in range(30):
        assert len(initial(within(cost, scarce), 4, Unseen(space), np.random.default_rng(seed))) <= 4


def test_budgets_that_contradict_each_other_are_told(rng):
    space = get_space("ofa-mbv3-cifar")
    cost = space.tabulate(macs)
    bounds = cost.bounds()
    bulk = space.tabulate(lambda layer: -macs(layer)).scaled(1.0, bounds.highest + 1)  # the less, the larger the network
    budgets = (Budget("macs", cost, bounds.lowest * 1.1, repr), Budget("bulk", bulk, bounds.highest * 0.1, repr))
    with pytest.raises(InfeasibleError, match=r"all budgets together, but none was found for macs [\d.]+, bulk [\d.]+; the nearest"):
        initial(Problem(space, (cost,), budgets), 20, Unseen(space), rng)
