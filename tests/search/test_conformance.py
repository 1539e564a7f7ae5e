"""One contract for all searchers, on listed, middle and large spaces."""

import json
import os
import re
import subprocess
import sys
from dataclasses import replace

import contract
import numpy as np
import pytest
from contract import CASES, CONTINUED, GENERATIONS, UNREFINED, Case, digests, plain, record
from problems import LARGE, LISTED, MIDDLE, PRICES, Utilities, budget, cost_of, distinct, problem_of, space_of

from ofasearch.errors import FormatError, InfeasibleError, MismatchError, UsageError
from ofasearch.search.front import hypervolume, nondominated
from ofasearch.search.problem import Budget, Problem
from ofasearch.search.searchers import SEARCHERS
from ofasearch.search.state import load_state, save_state
from ofasearch.space.costs import macs
from ofasearch.space.pricing import Cost


@pytest.fixture(params=CASES, ids=str)
def case(request):
    return request.param


shares = pytest.mark.parametrize("share", [0.02, 0.3, 1.0])

# -- what is found ---------------------------------------------------------------------------------------------


@shares
def test_every_generation_holds_feasible_canonical_distinct_networks(case, share):
    found = record(case, share)
    for generation in found.generations:
        assert len(generation.codes) >= 1
        found.problem.space.validate(generation.codes)
        assert found.problem.feasible(generation.codes).all()
        assert distinct(generation.codes)


@shares
def test_generations_tell_their_objectives_and_are_sorted_by_the_first(case, share):
    for generation in record(case, share).generations:
        assert (case.problem().values(generation.codes) == generation.F).all()
        assert (np.diff(generation.objective) >= 0).all()
        if case.objectives == 1:
            assert len(generation.codes) <= case.config().keep


@shares
def test_the_best_of_all_evaluated_networks_are_reported(case, share):
    found = record(case, share)
    for generation, count in zip(found.generations, found.asked, strict=True):
        rows = found.problem.objectives[0].rows[:count]
        F = case.problem().values(rows[found.problem.feasible(rows)])
        if case.objectives == 1:
            assert generation.objective[0] == F.min()
        else:
            front = np.unique(F[nondominated(F)], axis=0)
            assert np.array_equal(np.unique(generation.F, axis=0), front)


@shares
def test_no_generation_is_worse_than_the_one_before(case, share):
    found = record(case, share)
    if case.objectives == 1:
        assert (np.diff([g.objective[0] for g in found.generations]) <= 0).all()
    else:
        worst = np.array([objective.table.max(axis=1).sum() + 1 for objective in found.problem.objectives])
        volumes = np.array([hypervolume(g.F, worst) for g in found.generations])
        assert (np.diff(volumes) >= -1e-12 * volumes[:-1]).all()
        assert volumes[0] > 0


def test_generations_are_numbered_from_0_and_as_many_as_asked(case):
    numbers = [g.number for g in record(case).generations]
    assert numbers == list(range(1 if case.listed else GENERATIONS + 1 + case.refine))


# -- what it takes ---------------------------------------------------------------------------------------------


@shares
def test_every_evaluation_is_of_a_canonical_network_and_counts(case, share):
    found = record(case, share)
    assert tuple(g.evaluations for g in found.generations) == found.asked
    found.problem.space.validate(found.problem.objectives[0].rows)
    for objective in found.problem.objectives:
        assert np.array_equal(objective.rows, found.problem.objectives[0].rows)


@shares
def test_no_network_is_evaluated_twice_or_beyond_the_budget(case, share):
    """But by the refinement, which asks for the neighbours of the winner whether they are known, too dear, or neither."""
    found = record(case, share)
    rows = found.problem.objectives[0].rows[: found.asked[-2] if case.refine else None]
    assert distinct(rows)
    assert found.problem.feasible(rows).all()
    assert case.listed or len(rows) <= case.config().population * (GENERATIONS + 1)


def test_excluded_networks_are_neither_evaluated_nor_found(case):
    best = record(case).generations[-1].codes[:2]
    problem = replace(case.problem(), excluded=best)
    found, excluded = case.run(problem), set(map(tuple, best.tolist()))
    assert not problem.feasible(best).any()
    assert not any(excluded & set(map(tuple, generation.codes.tolist())) for generation in found)
    if not case.refine:  # which asks for all neighbours
        assert not excluded & set(map(tuple, problem.objectives[0].rows.tolist()))


def test_without_generations_the_first_population_is_the_answer(case):
    problem = case.problem()
    generations = case.run(problem, generations=0)
    assert plain(generations[:1]) == plain(record(case).generations[:1])
    assert len(generations) == 1 + case.refine


@pytest.mark.parametrize("case", [case for case in UNREFINED if case.space == LISTED], ids=str)
def test_a_space_smaller_than_the_population_is_exhausted_and_the_answer_exact(case):
    problem = case.problem()
    last = case.run(problem, population=1000)[-1]
    [exact] = Case("exact", LISTED, case.objectives).run(case.problem())
    assert last.evaluations == exact.evaluations == problem.feasible(problem.space.enumerate()).sum()
    assert np.array_equal(np.unique(last.F, axis=0), np.unique(exact.F, axis=0))


def test_a_budget_that_only_one_network_keeps_finds_it(case):
    bounds = cost_of(case.space, "macs").bounds()
    generations = case.run(case.limited(bounds.lowest))
    assert {g.codes.tobytes() for g in generations} == {bounds.lowest_codes.tobytes()}


# -- the same again --------------------------------------------------------------------------------------------


def test_the_same_seed_gives_the_same_generations(case):
    assert plain(case.run(case.problem())) == plain(record(case).generations)


def test_the_same_seed_gives_the_same_generations_in_another_process():
    environment = {**os.environ, "PYTHONHASHSEED": "4711"}
    done = subprocess.run([sys.executable, contract.__file__], env=environment, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout) == digests()


def test_another_seed_gives_another_search(case):
    other = case.run(case.problem(), seed=4)
    assert (plain(other) == plain(record(case).generations)) == case.listed


def test_a_search_goes_on_from_every_generation_as_if_it_had_never_stopped(case, tmp_path):
    """From states that were taken after the search had ended; also the networks asked for are the same, none of them again."""
    whole = record(case)
    for generation, asked in zip(whole.generations, whole.asked, strict=True):
        save_state(tmp_path / "state", generation.state)
        problem = case.problem()
        rest = case.run(problem, seed=99, state=load_state(tmp_path / "state"))
        assert plain(rest) == plain(whole.generations[generation.number + 1 :])
        assert np.array_equal(problem.objectives[0].rows, whole.problem.objectives[0].rows[asked:])


def test_a_search_that_is_stopped_after_every_generation_ends_the_same(case, tmp_path):
    state, found = None, []
    while (generation := next(case.start(case.problem(), state=state), None)) is not None:
        found.append(generation)
        save_state(tmp_path / "state", generation.state)
        state = load_state(tmp_path / "state")
    assert plain(found) == plain(record(case).generations)


@pytest.mark.parametrize("case", CONTINUED, ids=str)
def test_a_search_can_go_on_for_longer_than_it_was_meant_to(case):
    *_, last = case.run(case.problem(), generations=2)
    assert plain(case.run(case.problem(), state=last.state)) == plain(record(case).generations[3:])


@pytest.mark.parametrize("case", [case for case in CASES if case.refine], ids=str)
def test_a_search_can_go_on_from_its_refined_winner(case):
    refined = record(case).generations[-1]
    more = case.run(case.problem(), state=refined.state, generations=GENERATIONS + 4)
    assert [g.number for g in more] == list(range(refined.number + 1, GENERATIONS + 6))
    for generation in more:
        assert distinct(generation.codes)
        assert generation.objective[0] <= refined.objective[0]


# -- what it is given ------------------------------------------------------------------------------------------


def test_a_search_leaves_what_it_is_given_as_it_was(case):
    problem, config, probe = case.problem(), case.config(), space_of(case.space).sample(50, np.random.default_rng(1))
    [limit], state = problem.budgets, record(case).generations[0].state
    bounds = limit.cost.bounds()
    before = (limit.cost(probe), problem.values(probe), bounds.lowest_codes.copy(), bounds.highest_codes.copy())
    arrays = [state.codes, state.F, state.archive, state.values, state.known, state.share, state.screen]
    copies = [array.copy() for array in arrays]
    given = [objective.table for objective in problem.objectives]
    given += [bounds.lowest_codes, bounds.highest_codes, problem.space.sizes, *arrays]
    for array in given:
        array.flags.writeable = False  # whoever writes raises
    search, rng = SEARCHERS[case.searcher].search, np.random.default_rng(7)
    list(search(problem, config, np.random.default_rng(3), None))
    list(search(problem, config, rng, state))
    after = (limit.cost(probe), problem.values(probe), limit.cost.bounds().lowest_codes, limit.cost.bounds().highest_codes)
    assert all(np.array_equal(a, b) for a, b in zip(before, after, strict=True))
    assert all(np.array_equal(a, b) for a, b in zip(arrays, copies, strict=True))
    assert rng.bit_generator.state == np.random.default_rng(7).bit_generator.state  # a continued search has its own
    assert config == case.config()


def test_a_caller_who_writes_into_a_generation_changes_nothing(case):
    found = []
    for generation in case.start(case.problem()):
        found += plain([generation])
        generation.codes[:] = 0
        generation.F[:] = 0
        state = generation.state
        for array in (state.codes, state.F, state.archive, state.values):
            array[:] = 0
    assert found == plain(record(case).generations)


@pytest.mark.parametrize(
    "case", [case for case in CASES if not (SEARCHERS[case.searcher].one and SEARCHERS[case.searcher].several)], ids=str
)
def test_a_searcher_for_one_objective_refuses_several_and_the_reverse(case):
    problem = problem_of(case.space, 2 if case.objectives == 1 else 1, ())
    asked = "several objectives, but got 1; use one that finds a winner"
    with pytest.raises(UsageError, match=asked if case.objectives > 1 else "one objective, but got 2; use one that finds fronts"):
        next(case.start(problem))
    assert not len(problem.objectives[0].rows)


# -- budgets ---------------------------------------------------------------------------------------------------


def test_budgets_that_all_networks_keep_change_nothing(case):
    free = problem_of(case.space, case.objectives, ())
    bound = problem_of(case.space, case.objectives, tuple(budget(case.space, what, 1.0) for what in PRICES))
    assert plain(case.run(bound)) == plain(case.run(free))


def test_budgets_on_several_costs_and_two_devices_hold_together(case):
    budgets = tuple(budget(case.space, what, 0.4) for what in PRICES)
    problem = problem_of(case.space, case.objectives, budgets)
    for codes in case.run(problem)[-1].codes:
        layers = problem.space.blueprint(codes)
        for limit in budgets:
            combine = max if limit.name == "memory" else sum
            assert combine(PRICES[limit.name](layer) for layer in layers) <= limit.limit * (1 + 1e-12)


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_limit_must_be_positive(case, limit):
    problem = case.limited(limit)
    with pytest.raises(UsageError, match=rf"macs budget must be positive, but got {limit!r}"):
        case.run(problem)
    assert not len(problem.objectives[0].rows)


def test_an_impossible_budget_names_the_nearest_possible_one_before_anything_is_asked(case, monkeypatch):
    bounds = cost_of(case.space, "macs").bounds()
    problem = case.limited(bounds.lowest * (1 - 1e-9))
    with monkeypatch.context() as patch:
        priced = count_prices(patch)
        with pytest.raises(InfeasibleError, match=r"macs budget must be at least .*, but got") as failure:
            case.run(problem)
    assert not sum(priced)
    assert not len(problem.objectives[0].rows)
    nearest, arch = re.search(r"at least (\S+) \(the least of \S+: (\S+)\)", str(failure.value)).groups()
    assert problem.space.parse(arch).codes == tuple(bounds.lowest_codes)
    assert len(case.run(case.limited(float(nearest)), generations=0)[0].codes) == 1


def test_contradicting_budgets_name_the_nearest_network_before_anything_is_asked(case, monkeypatch):
    problem = problem_of(case.space, case.objectives, contradicting(case.space))
    with monkeypatch.context() as patch:
        priced = count_prices(patch)
        with pytest.raises(InfeasibleError, match=r"all budgets together, but none was found for macs .*, bulk ") as failure:
            case.run(problem)
    assert not len(problem.objectives[0].rows)
    assert sum(priced) < 200_000  # a fraction of a second
    which, macs_taken, bulk_taken, arch = re.search(r"nearest (.+) takes macs (\S+), bulk (\S+) \((\S+)\)", str(failure.value)).groups()
    codes = np.array(problem.space.parse(arch).codes)[None]
    assert [float(macs_taken), float(bulk_taken)] == [limit.cost(codes)[0] for limit in problem.budgets]
    assert which == ("possible network" if case.space == LISTED else "network found")


def contradicting(name):
    """Small networks, please, and large ones."""
    cost = cost_of(name, "macs")
    bounds = cost.bounds()
    bulk = space_of(name).tabulate(lambda layer: -macs(layer)).scaled(1.0, bounds.highest + 1)  # the less, the larger the network
    return (Budget("macs", cost, bounds.lowest * 1.1, repr), Budget("bulk", bulk, bounds.highest * 0.1, repr))


def count_prices(patch):
    """How many networks each later call prices."""
    priced, price = [], Cost.__call__

    def counting(cost, codes):
        priced.append(len(codes))
        return price(cost, codes)

    patch.setattr(Cost, "__call__", counting)
    return priced


# -- states that are not its own -------------------------------------------------------------------------------


def refused(case, state, error, match, problem=None, **changes):
    problem = problem or case.problem()
    with pytest.raises(error, match=match):
        case.run(problem, state=state, **changes)
    assert not len(problem.objectives[0].rows)


def test_a_state_of_another_search_is_refused(case):
    state, own = record(case).generations[0].state, case.problem()
    refused(case, state, MismatchError, "of its own config", population=13)
    refused(case, state, MismatchError, "of its own config", keep=8)
    refused(case, state, MismatchError, "of its own budgets", case.problem(0.31))
    refused(case, state, MismatchError, "of its own budgets", replace(own, budgets=()))
    refused(case, state, MismatchError, "of its own budgets", replace(own, budgets=(replace(own.budgets[0], name="params"),)))
    refused(case, state, MismatchError, "of its own genes", narrowed(case))
    refused(case, replace(state, identity={**state.identity, "algorithm": "another"}), MismatchError, 'algorithm, "\\w+", but .* "another"')
    refused(case, replace(state, identity={}), MismatchError, "but the state's is null")
    other = next(name for name in (LISTED, LARGE, MIDDLE) if name != case.space)
    refused(case, state, MismatchError, 'space, ".*", but the state\'s is ".*"', problem_of(other, case.objectives, (own.budgets[0],)))


def test_a_state_from_before_prices_rose_is_refused(case):
    state, own = record(case).generations[-1].state, case.problem()
    [limit] = own.budgets
    rise = 0.999 * limit.limit / limit.cost.bounds().lowest
    dearer = replace(own, budgets=(replace(limit, cost=limit.cost.scaled(rise, 0.0)),))
    refused(case, state, MismatchError, "must keep the budgets, but prices are others now than they were", dearer)


def narrowed(case):
    """The same problem on a space of the same name with fewer resolutions."""
    space = space_of(case.space).with_resolutions((128, 176))
    cost = space.tabulate(macs)
    [limit] = case.problem().budgets
    return Problem(space, tuple(Utilities(space, i) for i in range(case.objectives)), (replace(limit, cost=cost),))


@pytest.mark.parametrize("searcher", [name for name, searcher in SEARCHERS.items() if searcher.several and name != "exact"])
def test_a_state_with_another_number_of_objectives_is_refused(searcher):
    state = record(Case(searcher, MIDDLE, 2)).generations[0].state
    refused(Case(searcher, MIDDLE, 3), state, MismatchError, "of its own objectives, 3, but the state's is 2")


def test_the_state_of_another_algorithm_is_refused():
    for objectives in (1, 2):
        able = [case for case in CASES if case.space == MIDDLE and case.objectives == objectives]
        for case in able:
            for other in able:
                if other != case:
                    refused(case, record(other).generations[0].state, MismatchError, "of its own (algorithm|config)")


def test_a_damaged_state_file_is_refused(case, tmp_path):
    path = tmp_path / "state"
    save_state(path, record(case).generations[0].state)
    content = path.read_bytes()
    for damaged in (b"", content[:-30], content[:100], content.replace(b"ofasearch-search-1", b"ofasearch-search-0"), b"x" + content[1:]):
        path.write_bytes(damaged)
        with pytest.raises(FormatError, match="must be a search state of ofasearch, but"):
            load_state(path)


def test_a_state_with_impossible_contents_is_refused(case):
    state = record(case).generations[0].state
    none = slice(0, 0)
    for damage in (
        {"codes": state.codes + 100},
        {"codes": -state.codes},
        {"archive": state.archive[:, 1:]},
        {"codes": state.codes[none], "F": state.F[none]},
        {"archive": state.archive[none], "values": state.values[none]},
        {"F": np.zeros((len(state.F), 4))},
        {"values": np.zeros((len(state.values), 4))},
        {"share": np.ones(3)},
        {"share": state.share * 0 if len(state.share) else np.ones(1)},
        {"screen": np.ones(5)},
    ):
        refused(case, replace(state, **damage), FormatError, "a search state must hold")
