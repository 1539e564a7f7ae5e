"""Negative flips against counting by hand, the identities they must meet, and what a bootstrap of them must be."""

import json
import subprocess
import sys

import numpy as np
import pytest

from ofasearch.errors import MismatchError, UsageError
from ofasearch.evaluate.flips import (
    Confusion,
    Flips,
    bootstrap,
    compare,
    confusions,
    intervals,
    negative_flip_impact,
    negative_flip_rate,
    negative_flips,
    nfr_matrix,
    per_class,
    positive_flip_rate,
    positive_flips,
    relative_change,
    relative_nfr,
)
from ofasearch.evaluate.score import top1

LABELS, OLD, NEW = np.array([0, 1, 2, 3, 4, 4]), np.array([0, 1, 2, 0, 0, 1]), np.array([0, 0, 0, 3, 0, 2])


def drawn(seed, n=997, classes=3):
    return np.random.default_rng(seed).integers(0, classes, (3, n))


# -- by hand ---------------------------------------------------------------------------------------------------


def test_flips_are_counted_image_by_image():
    assert negative_flips(OLD, NEW, LABELS).tolist() == [False, True, True, False, False, False]
    assert positive_flips(OLD, NEW, LABELS).tolist() == [False, False, False, True, False, False]
    assert compare(OLD, NEW, LABELS) == Flips(both_right=1, negative=2, positive=1, both_wrong=2)


def test_rates_are_of_all_images():
    assert negative_flip_rate(OLD, NEW, LABELS) == positive_flip_rate(NEW, OLD, LABELS) == 2 / 6
    assert negative_flip_rate(NEW, OLD, LABELS) == positive_flip_rate(OLD, NEW, LABELS) == 1 / 6
    found = compare(OLD, NEW, LABELS)
    assert (found.n, found.top1_old, found.top1_new, found.nfr, found.pfr, found.gain) == (6, 3 / 6, 2 / 6, 2 / 6, 1 / 6, -1 / 6)


def test_relative_nfr_and_impact_are_those_of_positive_congruent_training():
    error_old, error_new = 3 / 6, 4 / 6
    assert relative_nfr(OLD, NEW, LABELS) == pytest.approx((2 / 6) / ((1 - error_old) * error_new), rel=1e-15)
    assert negative_flip_impact(OLD, NEW, LABELS) == 2 / 4  # of four errors of the new network


def test_networks_that_err_independently_have_a_relative_nfr_of_one():
    rng = np.random.default_rng(0)
    labels = np.zeros(200_000, dtype=np.int64)
    old, new = (rng.random((2, len(labels))) < np.array([[0.3], [0.2]])).astype(np.int64)
    assert relative_nfr(old, new, labels) == pytest.approx(1, abs=0.01)


def test_the_relative_change_is_that_of_the_supplement():
    assert round(100 * relative_change(2.16, 4.25), 1) == -49.2  # printed as -49.1
    assert round(100 * relative_change(2.16, 2.51), 1) == -13.9
    assert round(100 * relative_change(1.57, 2.04), 1) == -23.0
    assert round(100 * relative_change(76.83, 76.25), 2) == 0.76
    assert relative_change(0.1, 0.0) is None


def test_unsigned_and_signed_classes_compare_by_value():
    parts = [OLD.astype(np.uint8), NEW.astype(np.int16), LABELS.astype(np.uint64)]
    assert compare(*parts) == compare(OLD, NEW, LABELS)


# -- identities ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_accuracy_gained_is_positive_minus_negative_flips(seed):
    labels, old, new = drawn(seed, n=int(np.random.default_rng(seed).integers(1, 999)))
    found = compare(old, new, labels)
    assert int((new == labels).sum()) - int((old == labels).sum()) == found.positive - found.negative  # exactly, as counts
    assert found.top1_new - found.top1_old == pytest.approx(found.pfr - found.nfr, abs=1e-15)
    assert found.gain == pytest.approx(found.pfr - found.nfr, abs=1e-15)
    assert found.negative <= min((old == labels).sum(), (new != labels).sum())
    assert found.nfr <= min(found.top1_old, 1 - found.top1_new) + 1e-15
    assert (found.top1_old, found.top1_new) == (top1(old, labels), top1(new, labels))
    assert found.n == len(labels)
    assert found.negative == negative_flips(old, new, labels).sum()
    assert found.positive == positive_flips(old, new, labels).sum()


def test_a_network_flips_nothing_against_itself():
    labels, old, _ = drawn(0)
    assert negative_flip_rate(old, old, labels) == positive_flip_rate(old, old, labels) == 0
    assert negative_flip_rate(labels, old, labels) == pytest.approx(1 - top1(old, labels), abs=1e-15)


@pytest.mark.parametrize("seed", range(5))
def test_swapping_the_networks_swaps_the_flips(seed):
    labels, old, new = drawn(seed)
    there, back = compare(old, new, labels), compare(new, old, labels)
    assert (there.negative, there.positive, there.both_right, there.both_wrong) == (
        back.positive,
        back.negative,
        back.both_right,
        back.both_wrong,
    )


def test_the_order_of_images_does_not_matter():
    labels, old, new = drawn(1)
    order = np.random.default_rng(2).permutation(len(labels))
    assert compare(old, new, labels) == compare(old[order], new[order], labels[order])


# -- what is unknown -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("old", "new", "relative", "impact"),
    [
        ([1, 1], [0, 1], None, 0.0),  # the old network is never right: nothing could flip negatively
        ([0, 1], [0, 0], None, None),  # the new one is never wrong
        ([0, 0], [0, 1], 1.0, 1.0),
        ([0, 1], [1, 1], 1.0, 0.5),
    ],
)
def test_a_ratio_over_nothing_is_absent(old, new, relative, impact):
    labels = np.zeros(2, dtype=np.int64)
    found = compare(np.array(old), np.array(new), labels)
    assert (found.relative_nfr, found.negative_flip_impact) == (relative, impact)
    record = found.to_json()
    assert ("relative_nfr" in record) == (relative is not None)
    assert ("nfi" in record) == (impact is not None)
    json.dumps(record, allow_nan=False)


@pytest.mark.parametrize(
    ("change", "error", "text"),
    [
        (lambda a: a[:-1], MismatchError, "predictions must be of the same images as the labels, but there are 996 and 997"),
        (lambda a: a[:, None], UsageError, "predictions must be one integer per image, but have shape"),
        (lambda a: a.astype(float), UsageError, "float64"),
        (lambda a: a > 0, UsageError, "bool"),
        (lambda a: a.astype(object), UsageError, "object"),
    ],
)
@pytest.mark.parametrize("place", [0, 1])
def test_predictions_of_another_form_are_refused(change, error, text, place):
    labels, *both = drawn(0)
    both[place] = change(both[place])
    for measure in (compare, negative_flips, negative_flip_rate, relative_nfr, per_class, confusions):
        with pytest.raises(error, match=text):
            measure(*both, labels)
    with pytest.raises(error, match=text):
        nfr_matrix(both, labels)


def test_labels_of_another_form_and_no_images_are_refused():
    labels, old, new = drawn(0)
    with pytest.raises(UsageError, match="labels must be one integer per image"):
        compare(old, new, labels.astype(np.float32))
    with pytest.raises(UsageError, match="predictions must be of at least one image"):
        compare(old[:0], new[:0], labels[:0])
    with pytest.raises(UsageError, match="at least one network"):
        nfr_matrix([], labels)


# -- classes ---------------------------------------------------------------------------------------------------


def test_classes_are_compared_each_on_its_own_images():
    labels, old, new = drawn(3, classes=5)
    labels[labels == 3] = 1  # a class without images
    found = per_class(old, new, labels)
    assert sorted(found) == [0, 1, 2, 4]
    for label, flips in found.items():
        own = labels == label
        assert flips == compare(old[own], new[own], labels[own])
        assert flips.n == own.sum()
    whole = compare(old, new, labels)
    assert sum(flips.negative for flips in found.values()) == whole.negative
    assert sum(flips.nfr * flips.n for flips in found.values()) / whole.n == pytest.approx(whole.nfr)


def test_confusions_tell_what_flipped_images_are_taken_for():
    labels = np.array([0, 0, 0, 1, 1, 2, 2, 2])
    old = np.array([0, 0, 0, 1, 1, 2, 2, 0])  # the last was wrong before: no flip
    new = np.array([2, 1, 2, 0, 1, 0, 1, 1])
    assert confusions(old, new, labels) == (
        Confusion(0, 2, 2),
        Confusion(0, 1, 1),
        Confusion(1, 0, 1),
        Confusion(2, 0, 1),
        Confusion(2, 1, 1),
    )
    assert confusions(old, old, labels) == ()
    assert sum(c.count for c in confusions(old, new, labels)) == compare(old, new, labels).negative


# -- families --------------------------------------------------------------------------------------------------


def test_a_family_is_compared_pair_by_pair():
    labels, *_ = drawn(4, classes=4)
    family = np.random.default_rng(5).integers(0, 4, (6, len(labels))).astype(np.uint8)
    matrix = nfr_matrix(family, labels)
    assert matrix.shape == (6, 6)
    for i, old in enumerate(family):
        for j, new in enumerate(family):
            assert matrix[i, j] == negative_flip_rate(old, new, labels)
    assert (np.diag(matrix) == 0).all()
    accuracy = (family == labels).mean(axis=1)
    assert np.allclose(matrix.T - matrix, accuracy[None, :] - accuracy[:, None], atol=1e-15)  # PFR - NFR


# -- intervals -------------------------------------------------------------------------------------------------


def test_a_bootstrap_of_counts_is_that_of_images():
    labels, old, new = drawn(6, n=400)
    rng = np.random.default_rng(7)
    rates = []
    for _ in range(4000):
        index = rng.integers(0, len(labels), len(labels))
        found = compare(old[index], new[index], labels[index])
        rates.append((found.nfr, found.pfr, found.gain))
    by_images = np.quantile(rates, [0.025, 0.975], axis=0)
    found = bootstrap(old, new, labels, np.random.default_rng(8), samples=4000)
    by_counts = np.array([[getattr(getattr(found, name), end) for name in ("nfr", "pfr", "gain")] for end in ("low", "high")])
    assert np.allclose(by_images, by_counts, atol=0.006)  # about three standard errors of such a quantile


def test_intervals_hold_the_true_rate_about_as_often_as_they_say():
    rng, held = np.random.default_rng(9), 0
    truth = np.array([0.7, 0.05, 0.1, 0.15])
    for _ in range(400):
        counts = map(int, rng.multinomial(2000, truth))
        flips = Flips(**dict(zip(("both_right", "negative", "positive", "both_wrong"), counts, strict=True)))
        found = intervals(flips, rng, samples=400, level=0.9).nfr
        held += found.low <= 0.05 <= found.high
    assert 0.85 <= held / 400 <= 0.95


def test_intervals_are_seeded_widen_with_the_level_and_say_what_they_are():
    labels, old, new = drawn(10)
    first, again = (bootstrap(old, new, labels, np.random.default_rng(1)) for _ in range(2))
    assert first == again != bootstrap(old, new, labels, np.random.default_rng(2))
    rate, wide = compare(old, new, labels).nfr, bootstrap(old, new, labels, np.random.default_rng(1), level=0.99)
    assert wide.nfr.low < first.nfr.low < rate < first.nfr.high < wide.nfr.high
    assert first.to_json() == {
        "nfr": [first.nfr.low, first.nfr.high],
        "pfr": [first.pfr.low, first.pfr.high],
        "gain": [first.gain.low, first.gain.high],
        "level": 0.95,
        "samples": 2000,
    }


def test_what_never_happens_has_an_interval_of_zero():
    labels, old, _ = drawn(11)
    found = bootstrap(old, old, labels, np.random.default_rng(0))
    assert (found.nfr.low, found.nfr.high, found.gain.low, found.gain.high) == (0, 0, 0, 0)


@pytest.mark.parametrize("options", [{"level": 0.0}, {"level": 1.0}, {"level": float("nan")}, {"samples": 0}])
def test_a_bootstrap_of_nonsense_is_wrong_usage(options):
    with pytest.raises(UsageError, match="at least one sample and a level between 0 and 1"):
        bootstrap(OLD, NEW, LABELS, np.random.default_rng(0), **options)


def test_measuring_flips_needs_no_torch():
    code = "import sys; import ofasearch.evaluate.flips; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
