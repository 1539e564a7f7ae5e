"""Which networks a step trains: delayed epsilon-shrinking as the paper states it (DepS, section 4 and Eq. 4)."""

from dataclasses import replace

import numpy as np
import pytest

from ofasearch.errors import InfeasibleError, UsageError
from ofasearch.space.families import MobileDesign, Stage, get_space, mobile_space
from ofasearch.train.strategies import STRATEGIES, DepS, Position

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
