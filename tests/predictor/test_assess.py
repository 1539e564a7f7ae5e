"""Fits that know their error: ensembles, error bars, the fitted cloud, offsets between files, what more pairs would bring."""

from dataclasses import replace

import numpy as np
import pytest

from ofasearch.errors import FormatError, MismatchError, UsageError
from ofasearch.predictor import FitConfig, Pairs, check, encoder_of, fit, load_predictor, read_pairs, save_predictor
from ofasearch.predictor.assess import Assessment, assess, chosen_decay
from ofasearch.predictor.check import certainty_of, compare, coverage, cross_coverage, learning_curve
from ofasearch.predictor.encode import Encoder, Part
from ofasearch.predictor.fit import DECAYS, cloud_of
from ofasearch.predictor.offsets import find_offsets, without_offsets
from ofasearch.predictor.pairs import Source
from ofasearch.space.core import Settings
from ofasearch.space.families import get_space

SPACE = "ofa-mbv3-w1.0"
QUICK = FitConfig(members=2, steps=150, batch_size=64, weight_decay=2e-4)


def additive(n, seed, *, noise=0.0, resolutions=(224,), law=lambda r: 0.0):
    """n random networks whose top-1 is a sum over their blocks, a law over the resolution and noise (fractions)."""
    space = get_space(SPACE).with_resolutions(resolutions)
    rng = np.random.default_rng(seed)
    settings = space.settings(space.sample(n, rng))
    effect = 0.001 * (settings.e.sum(axis=1) + 0.5 * settings.ks.sum(axis=1) - 100) / 3
    law_of = np.array([law(r) for r in settings.r])
    return Pairs(settings, 0.75 + effect + law_of + noise * rng.normal(size=n))


def joined(*parts):
    """Pairs of several files as one."""
    columns = {name: np.concatenate([getattr(p.settings, name) for p in parts]) for name in ("ks", "e", "d", "r")}
    group = np.repeat(np.arange(len(parts)), [len(p) for p in parts])
    sources = tuple(Source(f"file {i}") for i in range(len(parts)))
    return Pairs(Settings(**columns), np.concatenate([p.top1 for p in parts]), group, sources)


def assessed(pairs, config=QUICK, **kwargs):
    encoder = encoder_of(get_space(SPACE)).with_resolutions(tuple(sorted(set(pairs.settings.r.tolist()))))
    *_, last = assess(encoder, pairs, SPACE, config, **kwargs)
    assert isinstance(last, Assessment)
    return last


@pytest.fixture(scope="module")
def known():
    return assessed(additive(400, 0, noise=0.001))


# -- error bars ------------------------------------------------------------------------------------------------


def test_error_bars_hold_the_stated_share_of_networks_never_seen(known):
    fresh = additive(2000, 1, noise=0.001)
    assert 0.70 <= coverage(known.predictor, fresh, 0.8) <= 0.90  # 80 held-out networks set them
    assert coverage(known.predictor, fresh, 0.5) < coverage(known.predictor, fresh, 0.8) < coverage(known.predictor, fresh, 0.95)


def test_conformal_bars_cover_four_fifths_of_heavy_tailed_errors_too():
    rng = np.random.default_rng(0)
    truth, members = rng.normal(size=4000), rng.normal(scale=0.2, size=(5, 4000))
    errors = rng.standard_t(2, size=4000) * (0.1 + members.std(axis=0))
    assert 0.78 <= cross_coverage(members + truth, truth + errors) <= 0.82


def test_bars_follow_the_members_only_where_errors_do():
    rng = np.random.default_rng(1)
    spread = rng.uniform(0.1, 5.0, size=3000)
    members = rng.normal(size=(8, 3000)) * spread
    telling = certainty_of(members, members.mean(axis=0) + rng.normal(size=3000) * spread)
    silent = certainty_of(members, members.mean(axis=0) + rng.normal(size=3000))
    assert telling.floor < silent.floor


def test_members_that_all_agree_still_have_error_bars():
    bars = certainty_of(np.zeros((1, 50)), np.linspace(-1, 1, 50))
    assert bars.floor > 0
    assert bars.multiples[0.95] > bars.multiples[0.5] > 0


def test_an_unknown_level_and_a_predictor_without_bars_are_refused(known):
    settings = additive(2, 0).settings
    with pytest.raises(MismatchError, match=r"the level of an error bar must be one of 0.5, 0.8, 0.9, 0.95, but got 0.7"):
        known.predictor.with_error(settings, 0.7)
    with pytest.raises(MismatchError, match="the predictor must carry error bars for that, but has none"):
        replace(known.predictor, certainty=None).with_error(settings)


def test_bars_and_cloud_survive_the_file(known, tmp_path):
    save_predictor(tmp_path / "p.safetensors", known.predictor)
    again, settings = load_predictor(tmp_path / "p.safetensors"), additive(50, 2).settings
    assert all((a == b).all() for a, b in zip(again.with_error(settings), known.predictor.with_error(settings), strict=True))
    assert (again.outside(settings) == known.predictor.outside(settings)).all()
    assert again.cloud is not None
    assert again.cloud.limit == known.predictor.cloud.limit


# -- the cloud -------------------------------------------------------------------------------------------------


def test_few_networks_like_the_fitted_ones_lie_outside_the_cloud(known):
    assert known.predictor.outside(additive(2000, 3).settings).mean() <= 0.05
    assert known.outside <= 0.05


def test_networks_unlike_the_fitted_ones_lie_outside_the_cloud():
    space = get_space(SPACE).with_resolutions([224])
    codes = space.sample(600, np.random.default_rng(0))
    deep = space.settings(codes)
    small = deep.take(np.flatnonzero((deep.d <= 3).all(axis=1)))
    cloud = cloud_of(encoder_of(space).encode(small))
    largest = encoder_of(space).encode(space.settings(space.largest()[None]))
    assert cloud.leverage(largest)[0] > cloud.limit


# -- ensembles, held-out figures, learning curve ---------------------------------------------------------------


def test_a_fit_states_what_new_networks_confirm(known):
    found = check(known.predictor, additive(1000, 4, noise=0.001))
    assert known.held_out.n == 80
    assert found.rmse_points == pytest.approx(known.held_out.rmse_points, rel=0.3)
    assert found.kendall_tau > 0.75
    assert {"ridge", "svr"} == set(known.baselines)
    assert known.baselines["ridge"].kendall_tau > 0.7


def test_more_pairs_are_worth_something_until_noise_is_reached(known):
    assert known.curve.n == (80, 160, 320)
    assert known.curve.more == 500
    assert 0 <= known.curve.gain_points < known.curve.rmse_points[-1]
    assert learning_curve([100, 200, 400], [0.8, 0.4, 0.2]).gain_points == pytest.approx(0.2 * (1 - 400 / 900))
    assert learning_curve([100, 200, 400], [0.1, 0.11, 0.12]).gain_points == 0


def test_networks_given_to_judge_are_never_fitted():
    train, judged = additive(100, 5), additive(50, 6)
    found = assessed(train, held_out=judged)
    assert (found.networks, found.held_out.n) == (100, 50)
    assert (
        replace(found.predictor, certainty=None).weights[0].tobytes()
        == fit(found.predictor.encoder, train, SPACE, QUICK).weights[0].tobytes()
    )


@pytest.mark.parametrize("best", DECAYS)
def test_the_decay_that_predicts_the_left_out_fifth_best_is_chosen(monkeypatch, best):
    pairs, fitted = additive(100, 8), []
    truth = {part.settings.e.tobytes(): part.top1 for part in (pairs.take(np.arange(20)), pairs.take(np.arange(80, 100)))}

    def small_fit(encoder, train, space, config):
        fitted.append(len(train))
        wrong = 0.0 if config.weight_decay == best else 0.01
        return lambda settings: truth[settings.e.tobytes()] + wrong

    monkeypatch.setattr("ofasearch.predictor.assess.fit", small_fit)
    assert chosen_decay(encoder_of(get_space(SPACE)), pairs, SPACE, QUICK) == best
    assert fitted == [80] * 6


def test_members_differ_and_their_mean_is_the_prediction(known):
    x = known.predictor.encoder.encode(additive(20, 7).settings)
    members = known.predictor.of_features(x)
    assert members.shape == (2, 20)
    assert (members[0] != members[1]).all()


def test_top_ten_regret_is_what_the_best_seen_falls_short_of_the_best():
    top1 = np.linspace(0.5, 0.7, 21)
    found = compare(-top1, top1)
    assert found.regret_points == pytest.approx(100 * (0.7 - top1[9]))
    assert compare(top1, top1).regret_points == 0


@pytest.mark.parametrize("config", [{"members": 0}, {"steps": 0}, {"activation": "gelu"}, {"seed": -1}])
def test_fits_that_make_no_sense_are_refused(config):
    with pytest.raises(UsageError, match="must"):
        FitConfig(**config)


def test_too_few_networks_for_an_error_are_refused():
    with pytest.raises(UsageError, match="a predictor and its error need at least 16 measured networks, but got 12"):
        assessed(additive(12, 0))


def test_equal_accuracies_cannot_be_ranked():
    with pytest.raises(FormatError, match="a comparison needs networks of different measured and predicted accuracy"):
        assessed(replace(additive(100, 0), top1=np.full(100, 0.5)))


# -- files that were labelled on other images ------------------------------------------------------------------


def test_the_offset_between_files_with_networks_in_common_is_exact():
    one, other = additive(100, 0), additive(100, 1)
    both = joined(one.take(np.arange(20)), other)
    found = find_offsets(encoder_of(get_space(SPACE)), joined(one, replace(both, top1=both.top1 - 0.0004)), QUICK)
    assert found.values == pytest.approx((0.0, -0.0004), abs=1e-9)


def test_the_offset_between_files_at_one_resolution_is_found():
    pairs = joined(additive(300, 0, noise=5e-4), replace(additive(200, 1, noise=5e-4), top1=additive(200, 1).top1 - 0.02))
    found = find_offsets(encoder_of(get_space(SPACE)), pairs, QUICK)
    assert found.values == pytest.approx((0.0, -0.02), abs=5e-4)
    assert without_offsets(pairs, found).top1[300:] == pytest.approx(additive(200, 1).top1, abs=6e-4)


def test_what_a_model_cannot_tell_from_its_own_error_is_no_offset():
    other = additive(200, 1)
    found = find_offsets(encoder_of(get_space(SPACE)), joined(additive(300, 0), replace(other, top1=other.top1 + 3e-4)), QUICK)
    assert found.values == (0.0, 0.0)


def law(r):
    return -0.3 * (128 / r) ** 2 + 0.1 * (128 / r) ** 4


def test_the_offset_of_a_file_at_a_resolution_of_its_own_is_found_by_the_law():
    low, high = additive(900, 0, resolutions=(128, 160, 192), law=law), additive(300, 1, law=law)
    found = find_offsets(encoder_of(get_space(SPACE)), joined(high, replace(low, top1=low.top1 + 0.01)), QUICK)
    assert found.values == pytest.approx((0.0, 0.01), abs=2e-3)


def test_an_offset_that_nobody_can_tell_is_not_invented():
    pairs = joined(additive(100, 0), additive(100, 1, resolutions=(160, 192)))
    found = find_offsets(encoder_of(get_space(SPACE)), pairs, QUICK)
    assert found.values == (0.0, None)
    assert (without_offsets(pairs, found).top1 == pairs.top1).all()


def test_networks_of_two_files_count_once_after_their_offset_is_gone():
    one = additive(200, 0)
    pairs = joined(one, replace(one, top1=one.top1 + 0.005))
    merged = without_offsets(pairs, find_offsets(encoder_of(get_space(SPACE)), pairs, QUICK))
    assert len(merged) == 200
    assert merged.top1 == pytest.approx(one.top1, abs=1e-4)


# -- by codes --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["ofa-mbv3-w1.0", "compofa-mbv3-w1.0", "compofa-mbv3-elastic-w1.0"])
def test_features_by_codes_equal_those_by_settings(known, name):
    space = get_space(name).with_resolutions([224])
    codes = space.sample(200, np.random.default_rng(0))
    ready = known.predictor.on(space)
    assert (ready.features(codes) == known.predictor.encoder.encode(space.settings(codes))).all()
    assert (ready(codes) == known.predictor(space.settings(codes))).all()
    assert all((a == b).all() for a, b in zip(ready.with_error(codes), known.predictor.with_error(space.settings(codes)), strict=True))


def test_a_space_with_values_that_the_predictor_does_not_know_is_refused(known):
    with pytest.raises(MismatchError, match="resolution must be one of 224 for this predictor, but the space has 160; narrow it"):
        known.predictor.on(get_space(SPACE).with_resolutions([160, 224]))
    with pytest.raises(MismatchError, match="must read what its networks have, but this reads w"):
        replace(known.predictor, encoder=Encoder((Part("w", 6, (0, 1, 2)),))).on(get_space(SPACE))


# -- real searches ---------------------------------------------------------------------------------------------


def later(shared_data):
    """The four published searches cut in time: networks of the first 70 % of each, and those first met after that."""
    found = [read_pairs([path], get_space(SPACE)) for path in sorted((shared_data / "accuracy").glob("*.csv"))]
    early = joined(*(part.take(np.arange(round(0.7 * len(part)))) for part in found))
    late = joined(*(part.take(np.arange(round(0.7 * len(part)), len(part))) for part in found))
    rows = {name: np.column_stack([p.settings.ks, p.settings.e, p.settings.d]) for name, p in (("early", early), ("late", late))}
    known = {row.tobytes() for row in rows["early"]}
    new = np.array([row.tobytes() not in known for row in rows["late"]])
    return early, replace(late.take(np.flatnonzero(new)), group=np.zeros(0, dtype=np.int64)).merged()


def test_a_quick_fit_ranks_what_later_searches_found(shared_data):
    early, late = later(shared_data)
    encoder = encoder_of(get_space(SPACE)).with_resolutions((224,))
    found = check(fit(encoder, early.merged(), SPACE, FitConfig(members=1, steps=400)), late)
    assert found.n > 400
    assert found.kendall_tau > 0.92
    assert found.mae_points < 0.07


@pytest.mark.slow
def test_the_whole_fit_ranks_what_later_searches_found(shared_data):
    early, late = later(shared_data)
    found = assessed(early, FitConfig())
    error = check(found.predictor, late)
    assert error.kendall_tau > 0.93
    assert error.mae_points < 0.06
    assert found.outside <= 0.05


@pytest.mark.slow
def test_random_networks_at_three_resolutions_are_ranked(shared_data):
    pairs = read_pairs([shared_data / "accuracy" / "ofa_mbv3_imagenet_r128-192.jsonl"], get_space(SPACE))
    pairs = pairs.take(np.random.default_rng(0).permutation(len(pairs)))
    found = assessed(pairs.take(np.arange(2000)), FitConfig())
    assert check(found.predictor, pairs.take(np.arange(2000, len(pairs)))).kendall_tau > 0.88
    assert 0.75 <= coverage(found.predictor, pairs.take(np.arange(2000, len(pairs)))) <= 0.85
