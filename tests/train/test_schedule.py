"""When: phases keep their proportions at any length, every step is in one of them, and each has a curve of its own."""

from itertools import pairwise

import numpy as np
import pytest

from ofasearch.errors import UsageError
from ofasearch.space.families import get_space
from ofasearch.train.schedule import lay_out
from ofasearch.train.strategies import STRATEGIES, Phase

OFA = STRATEGIES["ofa"]().phases(get_space("ofa-mbv3-w1.0"))
SHARES = np.array([180, 125, 25, 125, 25, 125]) / 605
ONE = (Phase(name="one", epochs=100),)


def of(phases=OFA, *, epochs=30, steps_per_epoch=100, lr=1.0, warmup_epochs=1.0, curve="cosine"):
    return lay_out(phases, epochs=epochs, steps_per_epoch=steps_per_epoch, lr=lr, warmup_epochs=warmup_epochs, curve=curve)


def rates(schedule):
    return np.array([schedule.lr_at(step) for step in range(schedule.steps)])


# -- which step is in which phase ------------------------------------------------------------------------------


@pytest.mark.parametrize(("epochs", "steps_per_epoch"), [(605, 1), (605, 1251), (30, 391), (30, 7), (61, 13), (6, 100), (200, 390)])
def test_phases_keep_their_proportions_to_the_step(epochs, steps_per_epoch):
    schedule = of(epochs=epochs, steps_per_epoch=steps_per_epoch, warmup_epochs=0)
    assert schedule.steps == epochs * steps_per_epoch
    lengths = np.array([s.end - s.start for s in schedule.stretches])
    assert np.abs(lengths - SHARES * schedule.steps).max() <= 1


def test_five_percent_of_a_method_have_five_percent_of_each_phase():
    schedule = of(epochs=30, steps_per_epoch=605)  # 605 epochs of 30 steps: one step of the paper's epoch is 20 of ours
    assert [(s.start, s.end) for s in schedule.stretches] == [
        (0, 5400), (5400, 9150), (9150, 9900), (9900, 13650), (13650, 14400), (14400, 18150),
    ]  # fmt: skip
    assert {s.scale for s in schedule.stretches} == {30 / 605}


@pytest.mark.parametrize("steps_per_epoch", [5, 37])
@pytest.mark.parametrize("name", STRATEGIES)
def test_every_step_is_in_one_phase_and_knows_its_place(name, steps_per_epoch):
    phases = STRATEGIES[name]().phases(get_space("compofa-mbv3-elastic-w1.0"))
    schedule = of(phases, epochs=40, steps_per_epoch=steps_per_epoch)
    edges = [(s.start, s.end) for s in schedule.stretches]
    assert edges[0][0] == 0
    assert edges[-1][1] == schedule.steps
    assert all(a[1] == b[0] for a, b in pairwise(edges))
    assert [s.phase for s in schedule.stretches] == list(phases)
    number = 0
    for step in range(schedule.steps):
        number += step == edges[number][1]
        place = schedule.at(step, 1)
        assert schedule.stretch_of(step).phase is place.phase is phases[number]
        assert (place.step, place.steps) == (step - edges[number][0], edges[number][1] - edges[number][0])
        assert (place.epoch, place.resolution) == (step // steps_per_epoch, 1)


# -- the learning rate -----------------------------------------------------------------------------------------


def test_every_phase_reaches_its_own_peak_and_falls_to_nothing():
    schedule = of(epochs=61, steps_per_epoch=200, lr=2.6)
    found = rates(schedule)
    for stretch, peak in zip(schedule.stretches, (2.6, 0.96, 0.08, 0.24, 0.08, 0.24), strict=True):
        part = found[stretch.start : stretch.end]
        assert part.max() == pytest.approx(peak, rel=1e-3)
        assert 0 < part[-1] < 1e-4 * peak
        top = part.argmax()
        assert (np.diff(part[: top + 1]) > 0).all()
        assert (np.diff(part[top:]) <= 0).all()


def test_phases_warm_up_for_their_share_of_the_papers_epochs():
    schedule = of(epochs=121, steps_per_epoch=100, warmup_epochs=2)  # a fifth of the paper: 5 epochs of warm-up are 1
    found = rates(schedule)
    for stretch, warmup in zip(schedule.stretches, (200, 100, 0, 100, 0, 100), strict=True):
        part = found[stretch.start : stretch.end] / stretch.phase.lr
        assert np.allclose(part[:warmup], np.arange(1, warmup + 1) / max(1, warmup))
        length = stretch.end - stretch.start
        rest = np.arange(length - warmup) / (length - warmup)
        assert np.allclose(part[warmup:], 0.5 * (1 + np.cos(np.pi * rest)))


def test_without_a_warm_up_a_run_starts_at_its_peak():
    assert of(ONE, warmup_epochs=0, lr=0.3).lr_at(0) == 0.3


def test_the_exponential_curve_decays_as_at_the_papers_length_down_to_five_percent():
    phases = (Phase(name="sandwich", epochs=400),)
    schedule = of(phases, epochs=100, steps_per_epoch=24, warmup_epochs=2, lr=0.5, curve="exponential")
    found = rates(schedule)
    assert np.allclose(found[:48], 0.5 * np.arange(1, 49) / 48)
    paper_epochs = np.arange(48, 2400) / 24 * 4
    assert np.allclose(found[48:], 0.5 * np.maximum(0.05, 0.97 ** (paper_epochs / 2.4)))
    assert found[-1] == 0.025
    assert found[1400] > found[1450] == 0.025  # after 98 decays, 236 of the paper's epochs


# -- runs that cannot be ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("phases", "changes", "text"),
    [
        (
            OFA,
            {"epochs": 1, "steps_per_epoch": 5, "warmup_epochs": 0},
            "at least one step beyond its warm-up, but 'depth 1' has 0 of 5 steps",
        ),
        (
            OFA,
            {"epochs": 3, "steps_per_epoch": 50},
            "'teacher' has 45 of 150 steps and a warm-up of 50.0; train for more epochs or warm up",
        ),
        (OFA, {"epochs": 6, "steps_per_epoch": 1, "warmup_epochs": 0}, "but 'depth 1' has 0 of 6 steps"),
        (ONE, {"epochs": 1, "steps_per_epoch": 1}, "'one' has 1 of 1 steps and a warm-up of 1.0"),
        ((), {}, "a run must have a phase to train"),
    ],
)
def test_a_run_too_short_for_its_phases_is_refused(phases, changes, text):
    with pytest.raises(UsageError, match=text):
        of(phases, **changes)


def test_the_shortest_run_of_six_phases_has_a_step_in_each():
    schedule = of(epochs=25, steps_per_epoch=1, warmup_epochs=0)
    assert [s.end - s.start for s in schedule.stretches] == [7, 6, 1, 5, 1, 5]
    assert np.isfinite(rates(schedule)).all()
