"""One contract for all searchers, on problems whose exact answer is known; run as a script, it prints its answers."""

import json
import os
import re
import subprocess
import sys
import time
from dataclasses import replace

import numpy as np
import pytest

from ofasearch.errors import ArchError, InfeasibleError, UsageError
from ofasearch.search.evolution import EvolutionConfig, evolve
from ofasearch.search.operators import Unseen, initial
from ofasearch.search.problem import Budget, Problem
from ofasearch.search.refine import neighbours, refine
from ofasearch.search.unguided import enumerate_exactly, is_small
from ofasearch.space.costs import activation_bytes, macs, params
from ofasearch.space.families import get_space

SHORT = EvolutionConfig(population=40, generations=25, keep=15, refine=False)
REFINED = replace(SHORT, generations=5, refine=True)
SMALL, LARGE = "compofa-mbv3-cifar", "ofa-mbv3-cifar"


def by_evolution(problem, seed):
    return list(evolve(problem, SHORT, np.random.default_rng(seed)))


def by_refined_evolution(problem, seed):
    return list(evolve(problem, REFINED, np.random.default_rng(seed)))


def by_enumeration(problem, seed):
    return list(enumerate_exactly(problem))


SEARCHES = {  # a new searcher joins by its line
    "evolve-small": (by_evolution, SMALL),
    "evolve-large": (by_evolution, LARGE),
    "refined-small": (by_refined_evolution, SMALL),
    "refined-large": (by_refined_evolution, LARGE),
    "enumerate-small": (by_enumeration, SMALL),
}
REPEATS = ("refined-small", "refined-large")  # a refinement looks at neighbours whether they are known, or too dear, or not


class Utilities:
    """An objective that remembers what it was asked: minus the sum of a random utility per gene, growing with its code."""

    def __init__(self, space, seed):
        steps = np.random.default_rng(seed).random((len(space.genes), int(space.sizes.max()) + 1))
        self.table = np.where(np.arange(steps.shape[1]) > 0, steps, 0).cumsum(axis=1)
        self.asked = [np.zeros((0, len(space.genes)), dtype=np.int64)]

    def __call__(self, codes):
        self.asked.append(codes.copy())
        return -self.table[np.arange(codes.shape[1]), codes].sum(axis=1)

    @property
    def rows(self):
        return np.concatenate(self.asked)


def budget(name, cost, share):
    """The lowest `share` of what the space spans."""
    bounds = cost.bounds()
    return Budget(name, cost, bounds.lowest + share * (bounds.highest - bounds.lowest), repr)


def budgeted(name, share=0.3, seed=5):
    """The network of most utility whose macs lie in the lowest `share` of what the space spans."""
    space = get_space(name)
    return Problem(space, (Utilities(space, seed),), (budget("macs", space.tabulate(macs), share),))


def limited(name, limit):
    space = get_space(name)
    return Problem(space, (Utilities(space, 5),), (Budget("macs", space.tabulate(macs), limit, repr),))


def answers():
    """What every search ends with, as plain values."""
    ends = {name: search(budgeted(space), 3)[-1] for name, (search, space) in SEARCHES.items()}
    return {name: [end.codes.tolist(), end.objective.tolist(), end.evaluations] for name, end in ends.items()}


@pytest.fixture(params=SEARCHES)
def case(request):
    """A searcher, and the space it searches."""
    return SEARCHES[request.param]


def distinct(codes):
    return len(np.unique(codes, axis=0)) == len(codes)


# -- the contract ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.01, 0.3, 1.0])
def test_every_generation_holds_feasible_valid_distinct_networks_best_first(case, share):
    search, name = case
    problem = budgeted(name, share)
    for generation in search(problem, 0):
        problem.space.validate(generation.codes)
        assert problem.feasible(generation.codes).all()
        assert (problem.violations(generation.codes) <= 0).all()
        assert distinct(generation.codes)
        assert (np.diff(generation.objective) >= 0).all()
        assert (generation.objective == problem.objective(generation.codes)).all()


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
def test_every_evaluation_is_of_a_valid_network_and_counts(case, share):
    search, name = case
    problem = budgeted(name, share)
    generations = search(problem, 1)
    problem.space.validate(problem.objectives[0].rows)
    assert generations[-1].evaluations == len(problem.objectives[0].rows)


@pytest.mark.parametrize("share", [0.05, 0.3, 1.0])
@pytest.mark.parametrize("case", [name for name in SEARCHES if name not in REPEATS], indirect=True)
def test_no_network_is_evaluated_twice_or_beyond_the_budget(case, share):
    search, name = case
    problem = budgeted(name, share)
    search(problem, 1)
    assert problem.feasible(problem.objectives[0].rows).all()
    assert distinct(problem.objectives[0].rows)


def test_several_budgets_hold_together(case):
    search, name = case
    space = get_space(name)
    prices = {"macs": space.tabulate(macs), "params": space.tabulate(params), "memory": space.tabulate(activation_bytes, "max")}
    problem = Problem(space, (Utilities(space, 5),), tuple(budget(what, cost, 0.5) for what, cost in prices.items()))
    best = search(problem, 0)[-1].codes
    assert all((b.cost(best) <= b.limit).all() for b in problem.budgets)
    sums = [[sum(price(layer) for layer in space.blueprint(row)) for row in best] for price in (macs, params)]
    assert all(max(total) <= b.limit for total, b in zip(sums, problem.budgets[:2], strict=True))


def test_a_search_leaves_what_it_is_given_as_it_was(case):
    search, name = case
    problem = budgeted(name)
    cost, bounds = problem.budgets[0].cost, problem.budgets[0].cost.bounds()
    probe = problem.space.sample(200, np.random.default_rng(1))
    before = cost(probe), problem.objective(probe), bounds.lowest_codes.copy(), bounds.highest_codes.copy()
    for array in (problem.objectives[0].table, bounds.lowest_codes, bounds.highest_codes, problem.space.sizes):
        array.flags.writeable = False  # whoever writes raises
    search(problem, 0)
    after = cost(probe), problem.objective(probe), cost.bounds().lowest_codes, cost.bounds().highest_codes
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))


def test_the_best_of_all_evaluated_networks_is_reported(case):
    search, name = case
    problem = budgeted(name)
    best = search(problem, 2)[-1].objective[0]
    asked = problem.objectives[0].rows
    assert best == problem.objective(asked[problem.feasible(asked)]).min()


def test_the_best_never_gets_worse(case):
    search, name = case
    generations = search(budgeted(name), 4)
    assert (np.diff([g.objective[0] for g in generations]) <= 0).all()
    assert (np.diff([g.evaluations for g in generations]) >= 0).all()
    assert [g.number for g in generations] == list(range(len(generations)))


def test_the_same_seed_gives_the_same_answer_in_every_process():
    here = answers()
    assert answers() == here
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed, "OMP_NUM_THREADS": "1"}
        done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=True)
        assert json.loads(done.stdout) == here


def test_another_seed_gives_another_search():
    first, second = (by_evolution(budgeted(LARGE), seed)[0].codes for seed in (0, 1))
    assert not np.array_equal(first, second)


def test_a_caller_who_writes_into_a_generation_changes_nothing():
    ends = []
    for spoil in (False, True):
        for generation in evolve(budgeted(LARGE), SHORT, np.random.default_rng(0)):
            ends.append(generation.objective[0])
            if spoil:
                generation.codes[:] = 0
                generation.objective[:] = 0
    assert ends[: len(ends) // 2] == ends[len(ends) // 2 :]


def test_an_impossible_budget_fails_at_once_and_names_the_nearest(case):
    search, name = case
    lowest = get_space(name).tabulate(macs).bounds().lowest
    start = time.process_time()
    message = rf"macs budget must be at least [\d.]+ \(the least of {name}: {name}@r32-\S+\), but got {lowest / 2!r}"
    with pytest.raises(InfeasibleError, match=message) as failure:
        search(limited(name, lowest / 2), 0)
    assert time.process_time() - start < 1
    nearest = float(re.search(r"at least ([\d.]+)", str(failure.value))[1])
    assert search(limited(name, nearest), 0)[-1].codes.shape[0] >= 1


def test_budgets_that_contradict_each_other_are_told(case):
    search, name = case
    space = get_space(name)
    cost = space.tabulate(macs)
    bounds = cost.bounds()
    bulk = space.tabulate(lambda layer: -macs(layer)).scaled(1.0, bounds.highest + 1)  # the less, the larger the network
    budgets = (Budget("macs", cost, bounds.lowest * 1.1, repr), Budget("bulk", bulk, bounds.highest * 0.1, repr))
    start = time.process_time()
    with pytest.raises(InfeasibleError, match=r"must keep all budgets together, but none .* for macs [\d.]+, bulk [\d.]+; the nearest"):
        search(Problem(space, (Utilities(space, 5),), budgets), 0)
    assert time.process_time() - start < 1


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_limit_must_be_positive(case, limit):
    search, name = case
    with pytest.raises(UsageError, match=r"macs budget must be positive, but got (0\.0|-1\.0|nan)"):
        search(limited(name, limit), 0)


def test_without_budgets_the_largest_network_wins(case):
    search, name = case
    space = get_space(name)
    best = search(Problem(space, (Utilities(space, 5),), ()), 0)[-1]
    if name == SMALL:
        assert (best.codes[0] == space.largest()).all()
    assert best.objective[0] <= Utilities(space, 5)(space.smallest()[None])[0]


def test_a_budget_that_only_one_network_keeps_finds_it(case):
    search, name = case
    bounds = get_space(name).tabulate(macs).bounds()
    assert search(limited(name, bounds.lowest), 0)[-1].codes.tolist() == [bounds.lowest_codes.tolist()]


# -- the exact answer ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("seed", range(4))
def test_evolution_finds_the_exact_optimum_of_a_small_space(share, seed):
    [exact] = by_enumeration(budgeted(SMALL, share), 0)
    found = by_evolution(budgeted(SMALL, share), seed)[-1]
    assert found.objective[0] == exact.objective[0]


def test_enumeration_agrees_with_brute_force():
    problem = budgeted(SMALL)
    codes = problem.space.enumerate()
    kept = codes[problem.budgets[0].cost(codes) <= problem.budgets[0].limit]
    [exact] = enumerate_exactly(problem, keep=5)
    assert exact.objective.tolist() == np.sort(problem.objective(kept))[:5].tolist()
    assert exact.evaluations == len(kept)


def test_only_small_spaces_are_enumerated():
    assert is_small(budgeted(SMALL))
    assert not is_small(budgeted(LARGE))
    with pytest.raises(ArchError, match="can be listed, but ofa-mbv3-cifar has"):
        by_enumeration(budgeted(LARGE), 0)


# -- evolution -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_last_children_count(seed):
    problem = budgeted(LARGE)
    config = EvolutionConfig(population=20, generations=1, refine=False)
    first, last = evolve(problem, config, np.random.default_rng(seed))
    assert first.evaluations == 20 < last.evaluations <= 40  # children that are known already are left out
    assert last.objective[0] == problem.objective(problem.objectives[0].rows[:40]).min()


def test_evolution_is_better_than_chance():
    problem = budgeted(LARGE)
    found = by_evolution(problem, 0)[-1]
    chance = initial(problem, found.evaluations, Unseen(problem.space), np.random.default_rng(0))
    assert found.objective[0] < problem.objective(chance).min()


GOOD = [{"parent_ratio": 0.25}, {"parent_ratio": 1.0}, {"mutation_ratio": 0.0}, {"mutation_ratio": 1.0}, {"keep": 1}, {"keep": 500}]
GOOD += [{"population": 4, "parent_ratio": 0.01}, {"generations": 0}, {"mutation_probability": 0.0}, {"mutation_probability": 1.0}]


@pytest.mark.parametrize("settings", GOOD, ids=str)
@pytest.mark.parametrize("share", [0.02, 0.5])
def test_every_allowed_setting_searches(settings, share):
    problem = budgeted(LARGE, share)
    config = EvolutionConfig(**{"population": 20, "generations": 5} | settings)
    generations = list(evolve(problem, config, np.random.default_rng(0)))
    best = generations[-1]
    assert 1 <= len(best.codes) <= config.keep
    assert problem.feasible(best.codes).all()
    assert distinct(best.codes)


BAD = [{"population": 3}, {"generations": -1}, {"keep": 0}, {"parent_ratio": 0.0}, {"parent_ratio": 1.1}, {"parent_ratio": float("nan")}]
BAD += [{"mutation_ratio": value} for value in (-0.1, 1.1, float("nan"))]
BAD += [{"mutation_probability": value} for value in (-0.1, 1.1, float("nan"))]


@pytest.mark.parametrize("settings", BAD, ids=str)
def test_a_setting_out_of_range_is_refused(settings):
    [value] = settings.values()
    with pytest.raises(UsageError, match=rf"evolution needs .*, but got .*(?<![\d.]){value}(?![\d.])"):
        EvolutionConfig(**settings)


# -- refinement ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [SMALL, LARGE])
@pytest.mark.parametrize("share", [0.0, 0.02, 0.3, 1.0])
def test_refinement_never_worsens_and_keeps_the_budget(name, share):
    problem = budgeted(name, share)
    for start in initial(problem, 5, Unseen(problem.space), np.random.default_rng(0)):
        before, value = start.copy(), float(problem.objective(start[None])[0])
        asked = len(problem.objectives[0].rows)
        codes, refined, evaluations = refine(problem, start, value)
        assert len(problem.objectives[0].rows) - asked == evaluations
        problem.space.validate(codes[None])
        assert problem.feasible(codes[None]).all()
        assert refined == problem.objective(codes[None])[0] <= value
        assert (start == before).all()


def test_after_refinement_no_single_change_is_better():
    problem = budgeted(LARGE)
    [start] = initial(problem, 1, Unseen(problem.space), np.random.default_rng(0))
    codes, value, _ = refine(problem, start, float(problem.objective(start[None])[0]))
    around, _ = neighbours(problem, codes)
    problem.space.validate(around)
    assert (around != codes).any(axis=1).all()
    assert problem.objective(around[problem.feasible(around)]).min() >= value


@pytest.mark.parametrize("seed", range(3))
def test_a_refined_search_is_at_least_as_good_and_one_generation_longer(seed):
    plain, refined = (
        list(evolve(budgeted(LARGE), EvolutionConfig(population=20, generations=5, refine=wish), np.random.default_rng(seed)))
        for wish in (False, True)
    )
    assert len(refined) == len(plain) + 1
    assert refined[-1].objective[0] <= plain[-1].objective[0]
    assert refined[-1].evaluations > plain[-1].evaluations
    assert distinct(refined[-1].codes)


if __name__ == "__main__":
    sys.stdout.write(json.dumps(answers()))
