"""What the surrogate search promises beyond what all searchers do (`test_conformance`)."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from contract import plain
from problems import LARGE, LISTED, Utilities, budget, cost_of, distinct, space_of

from ofasearch import zoo
from ofasearch.errors import FormatError, MismatchError, UsageError
from ofasearch.search.evolution import EvolutionConfig, evolve
from ofasearch.search.problem import Budget, Measures, Problem
from ofasearch.search.state import load_state, save_state
from ofasearch.search.surrogate import SurrogateConfig, surrogate
from ofasearch.search.unguided import enumerate_exactly
from ofasearch.space.costs import macs

SHORT = SurrogateConfig(population=8, generations=5, keep=5)


class UnknownError(Exception):
    """Networks that were asked for and must be measured first."""


class Bench:
    """Two quantities of networks of made-up parts, with a preview, two hints and one network that is known; all calls are kept.

    The objective is minus the first, and networks whose second exceeds a cap come behind all others.
    """

    def __init__(self, name=LARGE, cap=None, memory=None):
        self.space, self.memory = space_of(name), memory
        self.gain, self.harm = Utilities(self.space, 1), Utilities(self.space, 2, 1.0)
        self.measured, self.previewed = [], []
        probe = self.quantities(self.space.sample(500, np.random.default_rng(0)))
        self.cap = np.quantile(probe[:, 1], 0.4) if cap is None else cap
        self.reference = self.space.middle()
        limits = (budget(name, "macs", 0.6),)
        measures = Measures(
            self.measure, self.combine, (self.preview,), self.hint, (self.reference[None], self.quantities(self.reference[None]))
        )
        self.problem = Problem(self.space, (measures.objective,), limits, measures, self.reference[None])

    def quantities(self, codes):
        return np.stack([-self.gain(codes), self.harm(codes)], axis=1)

    def measure(self, codes):
        self.remember("whole", codes)
        self.measured.append(codes.copy())
        return self.quantities(codes)

    def preview(self, codes):
        self.remember("part", codes)
        self.previewed.append(codes.copy())
        return self.glance(codes)

    def glance(self, codes):
        return self.quantities(codes) + 0.1 * np.sin(17 * self.quantities(codes))

    def remember(self, share, codes):
        """With a memory, whatever is not in it is put there and raises."""
        if self.memory is not None:
            keys = {(share, row.tobytes()) for row in codes}
            new, self.memory = keys - self.memory, self.memory | keys
            if new:
                raise UnknownError

    def combine(self, quantities):
        excess = quantities[:, 1] - self.cap
        return np.where(excess > 0, 100 + excess, -quantities[:, 0])

    def hint(self, codes):
        return np.stack([self.quantities(codes)[:, 0] + np.cos(codes.sum(axis=1)), (codes == self.reference).mean(axis=1)], axis=1)

    def search(self, config=SHORT, seed=3, start=None, problem=None):
        return surrogate(problem or self.problem, config, np.random.default_rng(seed), start)


# -- what is asked ---------------------------------------------------------------------------------------------


def test_networks_are_measured_in_whole_batches_and_none_twice():
    bench = Bench()
    generations = list(bench.search())
    assert [len(codes) for codes in bench.measured] == [8] * 6
    assert distinct(np.concatenate(bench.measured))
    assert [g.evaluations for g in generations] == [8, 16, 24, 32, 40, 48]


def test_a_preview_sees_twice_as_many_and_the_better_half_is_measured():
    bench = Bench()
    list(bench.search())
    assert [len(codes) for codes in bench.previewed] == [16] * 5  # not the first batch
    for seen, measured in zip(bench.previewed, bench.measured[1:], strict=True):
        order = np.argsort(bench.combine(bench.glance(seen)), kind="stable")
        assert np.array_equal(measured, seen[order[:8]])


def test_each_of_several_previews_keeps_a_share():
    bench = Bench()
    seen, measures = [], bench.problem.measures

    def first(codes):
        seen.append(len(codes))
        return bench.glance(codes)

    problem = replace(bench.problem, measures=replace(measures, previews=(first, bench.preview)))
    list(bench.search(SurrogateConfig(population=4, generations=3, previewed=3.0), problem=problem))
    assert seen == [36] * 3
    assert [len(codes) for codes in bench.previewed] == [12] * 3
    assert [len(codes) for codes in bench.measured] == [4] * 4


def test_the_first_batch_holds_what_each_hint_promises_most():
    bench = Bench(LISTED)
    next(bench.search(replace(SHORT, promising=0.5)))
    pool = bench.space.enumerate()
    pool = pool[bench.problem.feasible(pool)]
    hints = bench.hint(pool)
    [first] = bench.measured
    found = bench.hint(first)
    assert found[0, 0] == hints[:, 0].max()
    assert found[1, 1] == hints[:, 1].max()
    assert np.sort(found[:4, 0])[-2:].tolist() == np.sort(hints[:, 0])[-2:].tolist()


def test_what_is_excluded_is_not_measured_though_it_is_known():
    bench = Bench(LISTED)
    list(bench.search(replace(SHORT, population=100)))
    assert not (np.concatenate(bench.measured) == bench.reference).all(axis=1).any()


@pytest.mark.parametrize("name", [LISTED, LARGE])
def test_a_search_that_is_stopped_to_measure_goes_on_from_its_last_generation(name, tmp_path):
    """As jobs run it: what was not measured yet raises, is measured as a batch, and the search goes on from a file."""
    whole = list(Bench(name).search())
    bench, found, state, stops = Bench(name, memory=set()), [], None, 0
    while len(found) < len(whole):
        try:
            for generation in bench.search(start=state, seed=3 if state is None else 99):
                found.append(generation)
                save_state(tmp_path / "state", generation.state)
                state = load_state(tmp_path / "state")
        except UnknownError:
            stops += 1
    assert plain(found) == plain(whole)
    assert stops == 1 + 2 * SHORT.generations


def test_a_space_without_new_networks_ends_the_search_with_its_last_generation():
    bench = Bench(LISTED)
    settings = replace(SHORT, population=150, generations=20)
    found = list(bench.search(settings))
    feasible = bench.problem.feasible(bench.space.enumerate()).sum()
    assert found[-1].evaluations == feasible
    assert [g.number for g in found] == [*range(len(found) - 1), 20]
    assert len(found) == np.ceil(feasible / 150) + 1
    assert not list(bench.search(settings, start=found[-1].state))


# -- what is found ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(3))
def test_a_hard_cap_is_kept_and_the_best_below_it_found(seed):
    bench = Bench(LISTED)
    *_, last = bench.search(replace(SHORT, generations=8), seed)
    [exact] = enumerate_exactly(Bench(LISTED).problem, keep=1)
    assert bench.quantities(last.codes[:1])[0, 1] <= bench.cap
    assert last.objective[0] == pytest.approx(exact.objective[0], rel=0.01)
    assert last.evaluations == 72 < bench.problem.feasible(bench.space.enumerate()).sum() / 5


@pytest.mark.parametrize("seed", range(3))
def test_a_large_space_needs_a_fraction_of_evolutions_evaluations(seed):
    bench = Bench()
    *_, last = bench.search(seed=seed)
    settings = EvolutionConfig(population=20, generations=29, refine=False)
    *_, other = evolve(Bench().problem, settings, np.random.default_rng(seed))
    assert other.evaluations >= 4 * last.evaluations
    assert last.objective[0] < other.objective[0]


@pytest.fixture(scope="module")
def members():
    """What the networks of the shipped supernet predict, and what was known of them before they did."""
    supernet = zoo.load_supernet("cifar10-compofa")
    return supernet.members, zoo.get_predictor(zoo.predictor_for(supernet.members.space, supernet)).on(supernet.members.space)


class Real:
    """Measured networks of at most twice the reference's MACs; rewards are maximised, so that objectives are minus these."""

    def __init__(self, members, combine, limit=5e6):
        measured, predictor = members
        space = measured.space
        self.cost = space.tabulate(macs)
        price, hits = self.cost(measured.codes), measured.predictions["validation"] == measured.labels["validation"]
        row = int(np.where(price <= limit, hits.mean(axis=1), 0).argmax())
        self.reference, self.asked, self.seen = measured.codes[row], 0, 0

        def measure(codes, step=1):
            right = hits[measured.index(codes), ::step]
            return np.stack([right.mean(axis=1), (hits[row, ::step] & ~right).mean(axis=1)], axis=1)

        def count(codes):
            self.asked += len(codes)
            return measure(codes)

        def preview(codes):
            self.seen += len(codes)
            return measure(codes, 4)

        def hint(codes):
            return np.stack([predictor(codes), (codes == self.reference).mean(axis=1)], axis=1)

        known = (self.reference[None], measure(self.reference[None]))
        measures = Measures(count, combine, (preview,), hint, known)
        limits = (Budget("macs", self.cost, 2 * price[row], repr),)
        self.problem = Problem(space, (measures.objective,), limits, measures, self.reference[None])
        self.codes = measured.codes[self.problem.feasible(measured.codes)]
        self.best = combine(measure(self.codes)).min()


REWARDS = {
    "top-1": lambda q: -q[:, 0],
    "flips": lambda q: q[:, 1],
    "both": lambda q: q[:, 1] - q[:, 0],
    "capped": lambda q: np.where(q[:, 1] > 0.018, 2 + q[:, 1], -q[:, 0]),
}


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("reward", REWARDS)
def test_real_networks_are_found_within_2_percent_with_a_third_of_the_space(members, reward, seed):
    real = Real(members, REWARDS[reward])
    third = len(real.codes) // 3
    *_, last = surrogate(real.problem, replace(SHORT, generations=third // 8 - 1), np.random.default_rng(seed), None)
    assert last.evaluations == real.asked <= third
    assert last.objective[0] - real.best <= 0.02 * abs(real.best)


# -- what it is given ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "settings", [{"promising": 1.5}, {"mutation_probability": -0.1}, {"previewed": 0.5}, {"pool": 0}, {"rounds": 0}, {"population": 3}]
)
def test_settings_that_make_no_search_are_refused(settings):
    with pytest.raises(UsageError, match=r"a (surrogate )?search needs"):
        SurrogateConfig(**settings)


def last_state(bench):
    *_, last = bench.search(replace(SHORT, generations=2))
    return last.state


def test_a_state_whose_objective_is_put_together_otherwise_is_refused():
    state = last_state(Bench())
    with pytest.raises(MismatchError, match="must make its objectives, but is put together otherwise now"):
        list(Bench(cap=0.0).search(start=state))


@pytest.mark.parametrize(
    ("damage", "error"),
    [
        (lambda q: q[:0], FormatError),
        (lambda q: q[:-1], FormatError),
        (lambda q: q[:, :1], MismatchError),
        (lambda q: np.column_stack([q, q]), MismatchError),
        (lambda q: q + 1, MismatchError),
    ],
)
def test_a_state_that_lacks_what_was_measured_is_refused(damage, error):
    bench = Bench()
    state = last_state(bench)
    asked = len(bench.measured)
    with pytest.raises(error, match="start anew"):
        list(bench.search(start=replace(state, measured=damage(state.measured))))
    assert len(bench.measured) == asked


def test_a_state_of_more_quantities_than_are_measured_is_refused():
    bench = Bench()
    problem = replace(bench.problem, measures=replace(bench.problem.measures, known=None, previews=()))
    *_, last = bench.search(replace(SHORT, generations=2), problem=problem)
    state = replace(last.state, measured=np.column_stack([last.state.measured, last.state.measured]))
    with pytest.raises(FormatError, match="as many quantities of each network as are measured"):
        list(bench.search(problem=problem, start=state))


def test_a_refined_winner_is_measured_too():
    bench = Bench()
    *_, before, last = bench.search(replace(SHORT, generations=2, refine=True))
    assert last.number == before.number + 1
    assert last.objective[0] <= before.objective[0]
    assert np.array_equal(bench.combine(last.state.measured), last.state.F[:, 0])


def test_generations_only_get_better():
    for one, two in pairwise(Bench().search()):
        assert two.objective[0] <= one.objective[0]


def test_limits_of_several_costs_hold():
    bench = Bench()
    problem = replace(bench.problem, budgets=tuple(budget(LARGE, what, 0.4) for what in ("macs", "phone")))
    *_, last = bench.search(problem=problem)
    for what in ("macs", "phone"):
        assert (cost_of(LARGE, what)(last.codes) <= budget(LARGE, what, 0.4).limit).all()
