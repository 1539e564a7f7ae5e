"""The exact answer, evolution and refinement beyond what all searchers promise (`test_conformance`)."""

from dataclasses import replace

import numpy as np
import pytest
from problems import LARGE, LISTED, MIDDLE, Utilities, budget, distinct, problem_of

from ofasearch.errors import ArchError, UsageError
from ofasearch.search.evolution import EvolutionConfig, evolve
from ofasearch.search.front import regret
from ofasearch.search.operators import Unseen, initial
from ofasearch.search.problem import Budget, Problem
from ofasearch.search.pymoo import GeneticConfig
from ofasearch.search.refine import neighbours, refine
from ofasearch.search.run import FRONT_LIMIT, best_of
from ofasearch.search.screen import LEAST
from ofasearch.search.searchers import SEARCHERS
from ofasearch.search.unguided import enumerate_exactly, is_small
from ofasearch.space.costs import macs
from ofasearch.space.families import get_space

SHORT = EvolutionConfig(population=40, generations=25, keep=15, refine=False)


def budgeted(name, share=0.3):
    """The network of most utility whose macs lie in the lowest `share` of what the space spans."""
    return problem_of(name, 1, (budget(name, "macs", share),))


def by_evolution(problem, seed):
    return list(evolve(problem, SHORT, np.random.default_rng(seed)))


# -- the exact answer ------------------------------------------------------------------------------------------


def all_sizes(objectives, share=0.7):
    """A problem on 243 networks at 25 resolutions, and its exact answer."""
    space = get_space(LISTED)
    cost, signs = space.tabulate(macs), (-1.0, 1.0)[:objectives]
    bounds = cost.bounds()
    limit = Budget("macs", cost, bounds.lowest + share * (bounds.highest - bounds.lowest), repr)
    problem = Problem(space, tuple(Utilities(space, 5 + i, sign) for i, sign in enumerate(signs)), (limit,))
    [exact] = enumerate_exactly(replace(problem, objectives=tuple(Utilities(space, 5 + i, sign) for i, sign in enumerate(signs))))
    return problem, exact


def by_name(name, problem, seed, **settings):
    searcher = SEARCHERS[name]
    config = searcher.config(**{"population": 40, "generations": 25} | settings)
    *_, last = searcher.search(problem, config, np.random.default_rng(seed), None)
    return last


@pytest.mark.parametrize("share", [0.05, 0.3, 0.7])
@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("name", "generations"), [("evolution", 40), ("ga", 20)])
def test_the_exact_optimum_is_found_with_a_third_of_the_evaluations(name, generations, share, seed):
    problem, exact = all_sizes(1, share)
    found = by_name(name, problem, seed, generations=generations, refine=True)
    assert found.objective[0] == exact.objective[0]
    assert share < 0.1 or found.evaluations < exact.evaluations / 3


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize("name", ["nsga2", "smsemoa"])
def test_fronts_come_close_to_the_exact_one_and_chance_does_not(name, seed):
    problem, exact = all_sizes(2)
    reference = exact.F.max(axis=0) + 1
    found, chance = (regret(by_name(which, problem, seed).F, exact.F, reference) for which in (name, "random"))
    assert found.hypervolume_share > max(0.995, chance.hypervolume_share)
    assert found.mean_loss < 0.05
    assert chance.mean_loss > 0.3
    assert found.uncovered <= 1


def test_enumeration_agrees_with_brute_force():
    problem = budgeted(LISTED)
    codes = problem.space.enumerate()
    kept = codes[problem.budgets[0].cost(codes) <= problem.budgets[0].limit]
    [exact] = enumerate_exactly(problem, keep=5)
    assert exact.objective.tolist() == np.sort(problem.objective(kept))[:5].tolist()
    assert exact.evaluations == len(kept)


def test_only_small_spaces_are_enumerated():
    assert is_small(budgeted(LISTED))
    assert not is_small(budgeted(LARGE))
    for name in (MIDDLE, LARGE):
        with pytest.raises(ArchError, match=f"can be listed, but {name} has"):
            list(enumerate_exactly(budgeted(name)))


# -- fronts ----------------------------------------------------------------------------------------------------


def test_the_exact_front_is_whole_however_many_networks_it_has():
    """Here all are on it: what one objective wants, the other does not."""
    space = get_space(LISTED)
    [exact] = enumerate_exactly(Problem(space, (Utilities(space, 5), Utilities(space, 5, 1.0)), ()))
    assert len(exact.codes) == space.size * len(space.resolutions) > FRONT_LIMIT


def test_of_a_large_front_the_ends_and_the_most_isolated_networks_are_kept():
    first = np.sort(np.random.default_rng(0).random(500))
    F = np.column_stack([first, -first])
    codes = np.arange(500)[:, None]
    kept, values = best_of(np.concatenate([codes, codes]), np.concatenate([F, F + 1]), 1, 100)
    gap = np.r_[np.inf, first[2:] - first[:-2], np.inf]
    assert np.array_equal(kept[:, 0], np.sort(np.argsort(-gap, kind="stable")[:100]))
    assert np.array_equal(values, F[kept[:, 0]])


# -- evolution -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(5))
def test_the_last_children_count(seed):
    problem = budgeted(LARGE)
    config = EvolutionConfig(population=20, generations=1, refine=False)
    first, last = evolve(problem, config, np.random.default_rng(seed))
    assert first.evaluations == 20 < last.evaluations <= 40  # children that are known already are left out
    assert last.objective[0] == problem.objective(problem.objectives[0].rows[:40]).min()


def test_evolution_does_not_stand_still_where_genes_are_few():
    """With fixed kernels almost all children are known after some generations."""
    problem, exact = all_sizes(1)
    counts = [g.evaluations for g in evolve(problem, SHORT, np.random.default_rng(0))]
    assert np.diff(counts).min() >= LEAST
    assert counts[-1] < exact.evaluations


@pytest.mark.parametrize("name", ["nsga2", "smsemoa"])
def test_a_search_for_fronts_does_not_stand_still_where_genes_are_few(name):
    """Of 729 networks a search for 500 evaluates nearly as many."""
    assert by_name(name, problem_of(LISTED, 2, ()), 0, population=20, generations=24).evaluations > 480


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


BAD = [{"parent_ratio": 0.0}, {"parent_ratio": 1.1}, {"parent_ratio": float("nan")}]
BAD += [{"mutation_ratio": value} for value in (-0.1, 1.1, float("nan"))]
BAD += [{"mutation_probability": value} for value in (-0.1, 1.1, float("nan"))]
BAD += [{"screen": value} for value in (0.0, 1.1, float("nan"))]


@pytest.mark.parametrize("settings", BAD, ids=str)
def test_a_setting_out_of_range_is_refused(settings):
    [value] = settings.values()
    with pytest.raises(UsageError, match=rf"evolution needs .*, but got .*(?<![\d.]){value}(?![\d.])"):
        EvolutionConfig(**settings)


@pytest.mark.parametrize("name", SEARCHERS)
@pytest.mark.parametrize("settings", [{"population": 3}, {"generations": -1}, {"keep": 0}], ids=str)
def test_no_searcher_takes_numbers_that_no_search_can_have(name, settings):
    [value] = settings.values()
    with pytest.raises(UsageError, match=rf"needs a population of at least 4.*, but got .*{value}"):
        SEARCHERS[name].config(**settings)


@pytest.mark.parametrize("setting", ["crossover_probability", "mutation_probability"])
@pytest.mark.parametrize("value", [-0.1, 1.1, float("nan")])
def test_a_probability_is_one(setting, value):
    with pytest.raises(UsageError, match=rf"probabilities in \[0, 1\], but got .*{value}"):
        GeneticConfig(**{setting: value})


# -- refinement ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", [LISTED, LARGE])
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


def test_a_front_cannot_be_refined():
    problem = problem_of(LARGE, 2, ())
    for name in ("random", "nsga2", "smsemoa"):
        with pytest.raises(UsageError, match="only a winner can be refined, but 2 objectives give a front"):
            by_name(name, problem, 0, refine=True)
    assert not len(problem.objectives[0].rows)
