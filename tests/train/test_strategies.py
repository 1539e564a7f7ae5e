"""Which networks a step trains: what holds for every method on every space, then each as its paper states it."""

from dataclasses import asdict, replace

import numpy as np
import pytest

from ofasearch.errors import ArchError, InfeasibleError, UsageError
from ofasearch.jobs.train_setup import describe_plan, make_strategy
from ofasearch.space.families import MobileDesign, Stage, get_space, mobile_space
from ofasearch.train.schedule import lay_out
from ofasearch.train.strategies import OFA, RSS, SELECTIONS, STRATEGIES, BigNAS, CompOFA, DepS, Position, Single

# -- delayed epsilon-shrinking (DepS, section 4 and Eq. 4) -----------------------------------------------------

STEPS = 1000
PAPER = DepS(warmup_share=0.5, subnets=4, epsilon=1e-4, ramp_share=0.1)


def at(space, step, steps, strategy=PAPER):
    (phase,) = strategy.phases(space)
    return Position(phase=phase, step=step, steps=steps, epoch=0, resolution=len(space.resolutions))


def plans(space, strategy=PAPER, steps=STEPS, stride=25):
    found = {}
    for step in range(0, steps, stride):
        found[step] = strategy.plan(space, at(space, step, steps, strategy), np.random.default_rng(step)).passes
    return found


def space_of(*, kernels, resolutions=(8,)):
    """A space with as many networks per resolution as it has kernels."""
    stages = (Stage(8, 1, "relu", se=False, kernel=3),)
    sizes = {"stem": 8, "stem_stride": 1, "first": 8, "c_expand": 8, "c_feature": 8, "classes": 2}
    return mobile_space(
        MobileDesign(name="few", stages=stages, resolutions=resolutions, depths=(1,), expands=(2,), kernels=kernels, **sizes)
    )


def test_the_warm_up_trains_the_full_model_alone(tiny_space):
    full = tuple(tiny_space.largest())
    for step, passes in plans(tiny_space).items():
        if step < 500:
            assert [(p.codes, p.scale, p.target) for p in passes] == [(full, 1.0, "labels")]
        else:
            assert len(passes) == 4


def test_the_full_model_comes_first_and_learns_from_labels(tiny_space):
    for passes in plans(tiny_space).values():
        assert (passes[0].codes, passes[0].scale, passes[0].target) == (tuple(tiny_space.largest()), 1.0, "labels")


def test_the_others_learn_from_the_full_model_with_epsilon(tiny_space):
    for step, passes in plans(tiny_space).items():
        assert {p.target for p in passes[1:]} <= {"full"}
        assert all(p.scale == PAPER.epsilon_at(step, STEPS) for p in passes[1:])


def test_epsilon_rises_from_its_start_by_constant_increments_to_one_and_stays():
    epsilon = np.array([PAPER.epsilon_at(step, STEPS) for step in range(STEPS)])
    assert (epsilon[:500] == 0).all()
    assert epsilon[500] == 1e-4
    assert np.allclose(np.diff(epsilon[500:601]), (1 - 1e-4) / 100)
    assert np.allclose(epsilon[600:], 1, rtol=1e-12)
    assert epsilon.max() == 1


def test_defaults_follow_the_released_ramp():
    default = DepS()
    epsilon = [default.epsilon_at(step, 270) for step in range(270)]
    assert epsilon.index(1e-4) == 135
    assert epsilon.index(1.0) == 140


def test_a_ramp_shorter_than_a_step_still_starts_at_epsilon():
    short = DepS(ramp_share=0.0)
    assert [short.epsilon_at(step, 10) for step in (4, 5, 6, 9)] == [0.0, 1e-4, 1.0, 1.0]


def test_the_others_are_never_the_full_net():
    space = space_of(kernels=(3, 5), resolutions=(8, 16))  # at the full resolution only one other network is left
    full, other = space.largest(), space.canonical(np.where(np.arange(len(space.genes)) == 2, 1, space.largest())[None])[0]
    assert (full != other).sum() == 1
    for passes in plans(space).values():
        assert {p.codes for p in passes[1:]} <= {tuple(other)}


def test_a_space_of_one_network_has_no_others():
    class Weary:
        """A generator that gives up where a loop without limit would not."""

        calls = 0

        def integers(self, low, high, size):
            self.calls += 1
            assert self.calls < 100_000, "the rejection loop must have a limit"
            return np.ones(size, dtype=np.int64)

    with pytest.raises(InfeasibleError, match="must"):
        few = space_of(kernels=(3,))
        DepS(warmup_share=0.0).plan(few, at(few, 0, 10), Weary())


def test_all_networks_of_a_plan_are_valid_and_share_the_resolution():
    space = get_space("ofa-mbv3-cifar").with_resolutions([24, 32])
    for passes in plans(space).values():
        codes = np.array([p.codes for p in passes])
        space.validate(codes)
        assert (codes[:, 0] == 2).all()


def test_the_others_are_uniform(tiny_space):
    rng = np.random.default_rng(0)
    strategy = DepS(warmup_share=0.0, subnets=21)
    depths = np.array([p.codes[1] for _ in range(100) for p in strategy.plan(tiny_space, at(tiny_space, 50, 100), rng).passes[1:]])
    assert len(depths) == 2000
    assert 0.46 < (depths == 1).mean() < 0.54


def test_equal_generators_give_equal_plans(tiny_space):
    first, second, third = (PAPER.plan(tiny_space, at(tiny_space, 700, STEPS), np.random.default_rng(seed)) for seed in (1, 1, 2))
    assert first == second
    assert first != third


def test_one_subnet_is_the_full_model_alone(tiny_space):
    assert all(len(passes) == 1 for passes in plans(tiny_space, replace(PAPER, subnets=1)).values())


@pytest.mark.parametrize(
    "wrong",
    [
        {"warmup_share": -0.1},
        {"warmup_share": 1.1},
        {"warmup_share": float("nan")},
        {"epsilon": 0.0},
        {"epsilon": 2.0},
        {"subnets": 0},
        {"ramp_share": -1},
    ],
    ids=str,
)
def test_impossible_settings_are_refused(wrong):
    with pytest.raises(UsageError, match=r"deps needs shares in \[0, 1\], epsilon in \(0, 1\] and at least 1 subnet, but got"):
        DepS(**wrong)


def test_strategies_are_found_by_name():
    assert STRATEGIES["deps"] is DepS


def test_the_smallest_network_can_join_every_step(tiny_space):
    strategy = replace(PAPER, smallest=True, subnets=3)
    smallest = tuple(tiny_space.smallest())
    for step, passes in plans(tiny_space, strategy).items():
        if step >= 500:
            assert [p.codes for p in passes[:2]] == [tuple(tiny_space.largest()), smallest]
            assert (passes[1].target, passes[1].scale) == ("full", strategy.epsilon_at(step, STEPS))
            assert len(passes) == 3
    with pytest.raises(UsageError, match="at least 2 subnets"):
        replace(PAPER, smallest=True, subnets=1)


# -- every method on every space -------------------------------------------------------------------------------

SPACES = {
    "tiny": None,
    "once-for-all": "ofa-mbv3-cifar",
    "compound": "compofa-mbv3-cifar",
    "compound, elastic kernels, 3 resolutions": "compofa-mbv3-elastic-w1.0",
    "a part": "ofa-mbv3-w1.0-d34-e6-k357",
}
METHODS = {name: {} for name in STRATEGIES} | {"deps": {"subnets": 3, "warmup_share": 0.25}, "bignas": {"subnets": 3}}


@pytest.fixture(params=SPACES)
def space(request, tiny_space):
    name = SPACES[request.param]
    if name is None:
        return tiny_space
    found = get_space(name)
    return found.with_resolutions([128, 160, 192]) if "elastic" in name else found


def positions(space, strategy, looked_at=7):
    """Some steps of every phase, at every resolution in turn."""
    number = 0
    for phase in strategy.phases(space):
        for step in np.linspace(0, 99, looked_at, dtype=int):
            number += 1
            resolution = 1 + number % len(space.resolutions)
            yield Position(phase=phase, step=int(step), steps=100, epoch=number, resolution=resolution)


def choices_left(space, codes):
    """Per present gene of a network: the dimension it decides, and how far below the largest choice it is."""
    return [(gene.reads[0], len(gene.choices) - c) for gene, c in zip(space.genes[1:], codes[1:], strict=True) if c]


@pytest.mark.parametrize("name", METHODS)
def test_every_plan_holds_networks_of_the_space_at_the_resolution_of_the_step(space, name):
    strategy = STRATEGIES[name](**METHODS[name])
    for at_ in positions(space, strategy):
        passes = strategy.plan(space, at_, np.random.default_rng(at_.epoch)).passes
        codes = np.array([p.codes for p in passes])
        space.validate(codes)  # within the space, and canonical: what is skipped has code 0
        assert (codes[:, 0] == at_.resolution).all()
        assert all(type(c) is int for p in passes for c in p.codes)
        assert all(below < at_.phase.choices.get(dimension, 1) for row in codes for dimension, below in choices_left(space, row))
        assert passes[0].target != "full"  # the first of a step has nobody to learn from
        assert all(0 < p.scale <= 1 for p in passes)


@pytest.mark.parametrize("name", METHODS)
def test_equal_draws_are_equal_plans_for_every_method(space, name):
    strategy = STRATEGIES[name](**METHODS[name])
    for at_ in positions(space, strategy, looked_at=3):
        first, again = (strategy.plan(space, at_, np.random.default_rng(5)) for _ in range(2))
        assert first == again


@pytest.mark.parametrize("name", METHODS)
def test_every_method_fills_its_phases_with_the_networks_it_announces(space, name):
    strategy = STRATEGIES[name](**METHODS[name])
    phases = strategy.phases(space)
    assert len({phase.name for phase in phases}) == len(phases)
    assert all(phase.epochs > 0 and 0 < phase.lr <= 1 for phase in phases)
    for at_ in positions(space, strategy):
        passes = len(strategy.plan(space, at_, np.random.default_rng(0)).passes)
        assert passes == at_.phase.subnets or (name == "deps" and at_.step < 25 and passes == 1)


def passes_of(name, space, steps_per_epoch=1, **options):
    """Networks trained in a run of the paper's epochs, one step each."""
    strategy = STRATEGIES[name](**options)
    phases = strategy.phases(space)
    epochs = int(sum(phase.epochs for phase in phases))
    schedule = lay_out(phases, epochs=epochs, steps_per_epoch=steps_per_epoch, lr=1.0, warmup_epochs=0, curve="cosine")
    rng = np.random.default_rng(0)
    return sum(len(strategy.plan(space, schedule.at(step, 1), rng).passes) for step in range(schedule.steps))


def test_the_passes_of_whole_runs_add_up_as_the_papers_say():
    ofa, compofa = get_space("ofa-mbv3-cifar"), get_space("compofa-mbv3-cifar")
    assert passes_of("ofa", ofa) == 180 + 125 * 1 + 150 * 2 + 150 * 4
    assert passes_of("compofa", compofa) == 180 + 150 * 4
    assert passes_of("compofa", get_space("compofa-mbv3-elastic-w1.0")) == 180 + 125 + 150 * 4
    assert passes_of("bignas", compofa) == 400 * 4
    assert passes_of("deps", compofa) == 135 + 135 * 2
    assert passes_of("rss", compofa) == 590
    assert passes_of("rss-short", compofa) == 180
    assert passes_of("single", compofa) == 180


@pytest.mark.parametrize("name", ["ofa", "compofa", "bignas", "deps", "rss"])
def test_every_choice_of_a_drawn_network_is_as_likely_as_the_others(name):
    space = get_space("ofa-mbv3-cifar")
    strategy = STRATEGIES[name](**({"warmup_share": 0.0, "subnets": 5} if name == "deps" else {}))
    at_ = Position(phase=strategy.phases(space)[-1], step=50, steps=100, epoch=0, resolution=1)
    rng, drawn = np.random.default_rng(1), []
    while len(drawn) < 3000:
        passes = strategy.plan(space, at_, rng).passes
        drawn += [p.codes for p in passes[{"deps": 1, "bignas": 2}.get(name, 0) :]]
    codes = np.array(drawn)
    for gene in range(1, len(space.genes)):
        present = codes[:, gene][codes[:, gene] > 0]
        shares = np.bincount(present, minlength=4)[1:] / len(present)
        assert np.abs(shares - 1 / 3).max() < 5 * (2 / 9 / len(present)) ** 0.5, space.genes[gene].name  # 5 standard deviations


# -- progressive shrinking (once-for-all, 4.1 and Appendix B) --------------------------------------------------


def facts(phases):
    return [(p.name, p.epochs, p.warmup, p.subnets, dict(p.choices)) for p in phases]


def test_progressive_shrinking_has_the_phases_of_the_paper():
    phases = OFA().phases(get_space("ofa-mbv3-w1.0"))
    assert facts(phases) == [
        ("teacher", 180, None, 1, {}),
        ("kernel", 125, 5, 1, {"ks": 3}),
        ("depth 1", 25, 0, 2, {"ks": 3, "d": 2}),
        ("depth 2", 125, 5, 2, {"ks": 3, "d": 3}),
        ("width 1", 25, 0, 4, {"ks": 3, "d": 3, "e": 2}),
        ("width 2", 125, 5, 4, {"ks": 3, "d": 3, "e": 3}),
    ]
    assert sum(p.epochs for p in phases) == 605
    assert [2.6 * p.lr for p in phases] == pytest.approx([2.6, 0.96, 0.08, 0.24, 0.08, 0.24])
    assert [(p.teaches, p.sorts, p.kept) for p in phases] == [
        (True, False, None),
        *[(False, False, None)] * 3,
        (False, True, None),
        (False, True, 4),
    ]


def test_only_the_first_phase_of_progressive_shrinking_learns_without_the_teacher(tiny_space):
    strategy = OFA(distillation=0.5)
    for at_ in positions(tiny_space, strategy):
        passes = strategy.plan(tiny_space, at_, np.random.default_rng(0)).passes
        wanted = ("labels", 1.0) if at_.phase.teaches else ("teacher", 0.5)
        assert {(p.target, p.soft, p.scale, p.regularised) for p in passes} == {(*wanted, 1.0, True)}


@pytest.mark.parametrize("method", [OFA, CompOFA])
def test_without_distillation_all_learn_from_the_labels(tiny_space, method):
    strategy = method(distillation=0.0)
    for at_ in positions(tiny_space, strategy):
        assert {p.target for p in strategy.plan(tiny_space, at_, np.random.default_rng(0)).passes} == {"labels"}


def test_networks_per_step_of_progressive_shrinking_are_options(tiny_space):
    phases = OFA(kernel_subnets=3, depth_subnets=5, width_subnets=7).phases(tiny_space)
    assert [(p.name, p.subnets) for p in phases] == [("teacher", 1), ("kernel", 3), ("depth 1", 5), ("width 1", 7)]


@pytest.mark.parametrize(
    ("name", "phases"),
    [
        ("compofa-mbv3-cifar", [("teacher", False, None), ("depth 1", True, None), ("depth 2", True, 4)]),  # depth decides the width
        (
            "ofa-mbv3-w1.0-d234-e6-k357",
            [("teacher", False, None), ("kernel", False, None), ("depth 1", False, None), ("depth 2", False, None)],
        ),
        ("ofa-mbv3-w1.0-d4-e36-k7", [("teacher", False, None), ("width 1", True, None)]),
        ("ofa-mbv3-w1.0-d4-e6-k7", [("teacher", False, None)]),
    ],
)
def test_dimensions_that_a_space_does_not_have_get_no_phase_and_no_sorting(name, phases):
    assert [(p.name, p.sorts, p.kept) for p in OFA().phases(get_space(name))] == phases


# -- CompOFA (5.1 and Table 1) ---------------------------------------------------------------------------------


def test_compofa_has_the_phases_of_the_paper():
    fixed, elastic = (CompOFA().phases(get_space(f"compofa-mbv3-{name}")) for name in ("w1.0", "elastic-w1.0"))
    every = {"ks": 99, "d": 99, "e": 99, "w": 99}
    last = [("compound 1", 25, 0, 4, every), ("compound 2", 125, 5, 4, every)]
    assert facts(fixed) == [("teacher", 180, None, 1, {}), *last]
    assert facts(elastic) == [("teacher", 180, None, 1, {}), ("kernel", 125, 5, 1, {"ks": 3}), *last]
    assert (sum(p.epochs for p in fixed), sum(p.epochs for p in elastic)) == (330, 455)
    assert [1.95 * p.lr for p in fixed] == pytest.approx([1.95, 0.06, 0.18])
    assert elastic[1].lr == pytest.approx(0.96 / 2.6)
    assert [(p.name, p.kept) for p in elastic if p.sorts] == [("compound 1", None)]  # once


# -- BigNAS ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("subnets", [0, 2, 5])
def test_a_sandwich_is_the_largest_the_smallest_and_random_networks(tiny_space, subnets):
    strategy, seen = BigNAS(subnets=subnets), set()
    (phase,) = strategy.phases(tiny_space)
    assert phase.epochs == 400
    for seed in range(20):
        largest, smallest, *others = strategy.plan(tiny_space, at(tiny_space, seed, 20, strategy), np.random.default_rng(seed)).passes
        assert (largest.codes, largest.target, largest.regularised) == (tuple(tiny_space.largest()), "labels", True)
        assert smallest.codes == tuple(tiny_space.smallest())
        assert {(p.target, p.regularised, p.scale) for p in (smallest, *others)} == {("full", False, 1.0)}
        assert len(others) == subnets
        seen |= {p.codes for p in others}
    assert len(seen) >= subnets * 3


def test_the_recipe_of_the_sandwich_is_its_own():
    assert dict(BigNAS.recipe) == {"schedule": "exponential", "zero_gamma": True}
    assert dict(RSS.recipe) == {"warmup_epochs": 0.0}
    assert all(dict(STRATEGIES[name]().recipe) == {} for name in ("ofa", "compofa", "deps", "single"))


# -- RSS (supplement 1.1, 1.2) ---------------------------------------------------------------------------------


def test_random_subnets_are_drawn_alone_and_held_for_an_epoch(tiny_space):
    assert (RSS().period, RSS(every="batch").period) == ("epoch", "step")
    (p,) = RSS().plan(tiny_space, at(tiny_space, 0, 10, RSS()), np.random.default_rng(0)).passes
    assert (p.target, p.scale, p.regularised) == ("labels", 1.0, True)
    assert [RSS().phases(tiny_space)[0].epochs, STRATEGIES["rss-short"]().phases(tiny_space)[0].epochs] == [590, 180]
    assert STRATEGIES["rss-short"](epochs=60, subnets=2) == RSS(epochs=60, subnets=2)
    assert not any(make().needs_teacher for make in STRATEGIES.values())


def chosen(selection, space, *, step=0, steps=10, epoch=0, subnets=1, seed=0):
    strategy = RSS(selection=selection, subnets=subnets)
    (phase,) = strategy.phases(space)
    position = Position(phase=phase, step=step, steps=steps, epoch=epoch, resolution=len(space.resolutions))
    return [p.codes for p in strategy.plan(space, position, np.random.default_rng(seed)).passes]


def test_a_selection_trains_the_network_it_names(space):
    size = len(space.resolutions)
    ends = {"smallest": (size, *map(int, space.smallest()[1:])), "largest": tuple(space.largest())}
    for selection in SELECTIONS:
        for step, epoch in ((0, 0), (4, 1), (5, 2), (9, 3)):
            wanted = {
                "random": None,
                "middle": tuple(space.middle()),
                "max-then-min": ends["largest" if step < 5 else "smallest"],
                "min-then-max": ends["smallest" if step < 5 else "largest"],
                "alternating": ends["smallest" if epoch % 2 else "largest"],
            }.get(selection, ends.get(selection))
            found = chosen(selection, space, step=step, epoch=epoch, subnets=2)
            assert found == [wanted] * 2 or wanted is None
    assert len({codes for seed in range(9) for codes in chosen("random", space, seed=seed, subnets=2)}) > 1


def test_the_halves_of_an_odd_run_differ_by_one_step(tiny_space):
    found = [chosen("max-then-min", tiny_space, step=step, steps=7)[0] for step in range(7)]
    assert found == [tuple(tiny_space.largest())] * 4 + [tuple(tiny_space.smallest())] * 3


# -- single networks, focal distillation -----------------------------------------------------------------------


def test_a_single_network_is_the_one_asked_for_at_the_resolution_of_the_step():
    space = get_space("ofa-mbv3-w1.0").with_resolutions([128, 160])
    codes = space.sample(1, np.random.default_rng(3))[0]
    strategy = make_strategy("single", {"arch": space.arch(codes).id}, space)
    for resolution in (1, 2):
        position = Position(phase=strategy.phases(space)[0], step=0, steps=9, epoch=0, resolution=resolution)
        (p,) = strategy.plan(space, position, np.random.default_rng(0)).passes
        assert (p.codes, p.target, p.regularised) == ((resolution, *codes[1:]), "labels", True)
    (p,) = Single().plan(space, position, np.random.default_rng(0)).passes
    assert p.codes == tuple(space.largest())


def test_focal_distillation_has_the_weights_of_the_paper(tiny_space):
    strategy = Single(focal=2.0, alpha=1.5, beta=10.0)
    (p,) = strategy.plan(tiny_space, at(tiny_space, 0, 9, strategy), np.random.default_rng(0)).passes
    assert (p.target, p.soft, p.bonus) == ("focal", 3.0, 20.0)
    assert strategy.needs_teacher
    assert not Single().needs_teacher
    assert (Single().alpha, Single().beta) == (1.0, 5.0)


# -- options ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "options", "text"),
    [
        ("ofa", {"width_subnets": 0}, "ofa needs 1 to 1000 subnets a step, but got 1, 2, 0"),
        ("ofa", {"kernel_subnets": 1.5}, "ofa needs 1 to 1000 subnets"),
        ("ofa", {"distillation": -1}, "ofa needs weights of at least 0, but got -1"),
        ("compofa", {"distillation": float("inf")}, "compofa needs weights of at least 0"),
        ("compofa", {"subnets": "4"}, "compofa needs 1 to 1000 subnets"),
        ("bignas", {"subnets": -1}, "bignas needs 0 to 1000 subnets"),
        ("deps", {"subnets": 2.5}, "deps needs 1 to 1000 subnets"),
        ("deps", {"subnets": 10**9}, "deps needs 1 to 1000 subnets"),
        ("deps", {"smallest": "yes"}, "smallest of deps must be true or false, but got 'yes'"),
        ("rss", {"epochs": 0}, "rss needs 1 to 100000 epochs, but got 0"),
        ("rss", {"epochs": "many"}, "rss needs 1 to 100000 epochs, but got many"),
        ("rss-short", {"epochs": -1}, "rss needs 1 to 100000 epochs"),
        ("rss", {"selection": "largset"}, "select random, smallest, .*, but got 'epoch' and 'largset'"),
        ("rss", {"every": "year"}, "rss must draw every epoch or batch"),
        ("single", {"focal": "x"}, "single needs weights of at least 0, but got x"),
        ("single", {"beta": float("nan")}, "single needs weights of at least 0, but got nan"),
        ("deps", {"arch": "tiny@r8-132-152"}, "options of strategy deps must be its own, but got .*arch"),
        ("ofa", {"subnets": 4}, "options of strategy ofa must be its own, but got .*subnets"),
        ("single", {"arch": "tiny@r8-132-152", "codes": (1, 1)}, "options of strategy single must be its own"),
    ],
    ids=str,
)
def test_options_are_refused_before_a_run_begins(tiny_space, name, options, text):
    with pytest.raises(UsageError, match=text):
        make_strategy(name, options, tiny_space)


@pytest.mark.parametrize("codes", [5, (1, 1), (1, 3, 1, 1, 0, 0, 1, 1, 1, 0, 0), (1, 1, 1, 1, 1, 1, 1, 1, 1, 0, 0), "x"], ids=str)
def test_codes_of_a_single_network_must_be_of_the_space(tiny_space, codes):
    with pytest.raises(ArchError, match="must be"):
        make_strategy("single", {"codes": codes}, tiny_space)


# -- plans for people ------------------------------------------------------------------------------------------


def test_a_description_scales_the_phases_and_names_what_is_open():
    plan = describe_plan("ofa", {"width_subnets": 3}, get_space("ofa-mbv3-w1.0"), epochs=121, lr=0.26)
    assert [row["epochs"] for row in plan["phases"]] == [36.0, 25.0, 5.0, 25.0, 5.0, 25.0]
    assert [row["paper_epochs"] for row in plan["phases"]] == [180, 125, 25, 125, 25, 125]
    assert [row["lr"] for row in plan["phases"]] == pytest.approx([0.26, 0.096, 0.008, 0.024, 0.008, 0.024])
    assert [row["subnets"] for row in plan["phases"]] == [1, 1, 2, 2, 3, 3]
    assert [row["choices"] for row in plan["phases"]] == [
        "kernel 7, depth 4, expand 6",
        "kernel 3/5/7, depth 4, expand 6",
        "kernel 3/5/7, depth 3/4, expand 6",
        "kernel 3/5/7, depth 2/3/4, expand 6",
        "kernel 3/5/7, depth 2/3/4, expand 4/6",
        "kernel 3/5/7, depth 2/3/4, expand 3/4/6",
    ]
    assert [row["channels"] for row in plan["phases"]] == ["as they are"] * 4 + ["sorted first", "sorted, 4x kept"]
    assert plan["options"] == asdict(OFA(width_subnets=3))


def test_a_given_teacher_takes_the_place_of_its_phase():
    plan = describe_plan("compofa", {}, get_space("compofa-mbv3-cifar"), taught=True)
    assert [(row["phase"], row["epochs"]) for row in plan["phases"]] == [("compound 1", 25), ("compound 2", 125)]


@pytest.mark.parametrize("lr", [0.0, -1.0, float("nan"), float("inf")])
def test_a_description_needs_a_rate(lr):
    with pytest.raises(UsageError, match="the learning rate must be positive, but got"):
        describe_plan("deps", {}, get_space("compofa-mbv3-cifar"), lr=lr)
