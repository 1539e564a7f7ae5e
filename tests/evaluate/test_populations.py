"""Populations: buckets that cover the range, draws that are fair and honest, statistics equal to hand and to scipy."""

import numpy as np
import pytest
from scipy import stats as scipy_stats

from ofasearch.errors import InfeasibleError, MismatchError, UsageError
from ofasearch.evaluate import populations as room
from ofasearch.evaluate.populations import (
    PROTOCOLS,
    Axis,
    Bucket,
    common_networks,
    cumulative,
    describe,
    draw,
    drops,
    equal_buckets,
    mean_pareto_accuracy,
    paired,
    random_order,
    uniform_networks,
    walk_inside,
    wide_buckets,
    windows,
)
from ofasearch.space.costs import macs_of
from ofasearch.space.families import get_space


def rng(seed=0):
    return np.random.default_rng(seed)


def axis_of(space):
    return Axis("MACs", "M", 1e6, macs_of(space))


@pytest.fixture(scope="module")
def axis(tiny_space):
    return axis_of(tiny_space)


# -- buckets ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("count", [1, 6, 7])
def test_equal_buckets_hold_every_network_once(axis, tiny_space, count):
    cost = axis.cost(tiny_space.enumerate())
    buckets = equal_buckets(axis, count)
    assert len(buckets) == count
    assert (np.sum([b.holds(cost) for b in buckets], axis=0) == 1).all()
    assert buckets[0].low == cost.min()
    assert np.allclose([b.high - b.low for b in buckets], np.ptp(cost) / count)


def test_wide_buckets_are_multiples_of_their_width(axis, tiny_space):
    cost = axis.cost(tiny_space.enumerate())
    width = np.ptp(cost) / 4.5
    buckets = wide_buckets(axis, width)
    assert (np.sum([b.holds(cost) for b in buckets], axis=0) == 1).all()
    multiples = np.array([b.low for b in buckets]) / width
    assert np.allclose(multiples, multiples.round())
    assert np.allclose(np.diff(multiples), 1)
    assert all(b.holds(cost).any() for b in (buckets[0], buckets[-1]))


def test_windows_hold_what_is_near_enough_ends_included(axis, tiny_space):
    cost = np.sort(axis.cost(tiny_space.enumerate()))
    buckets = windows(axis, None, 3000.0)
    assert len(buckets) == 6
    assert buckets[0].low == cost[0]
    assert buckets[-1].holds(cost[-1:])[0]
    (one,) = windows(axis, [cost[5]], 100.0)
    assert one.holds(np.array([cost[5] - 100, cost[5], cost[5] + 100])).all()
    assert not one.holds(np.array([cost[5] - 101, cost[5] + 101])).any()
    assert [b.low for b in windows(axis, [cost[9], cost[2], cost[9]], 1.0)] == [cost[2] - 1, cost[9] - 1]


def test_impossible_buckets_are_refused_in_one_sentence(axis):
    for count in (0, -1, 101):
        with pytest.raises(UsageError, match=f"--buckets must be 1 to 100, but got {count}"):
            equal_buckets(axis, count)
    with pytest.raises(UsageError, match=r"--bucket-width must be at least 0\.\d+ M for at most 100 buckets, but got"):
        wide_buckets(axis, 1.0)
    with pytest.raises(UsageError, match=r"--tolerance must be below 0\.0\d+ M, half the range of the space, but got 1 M"):
        windows(axis, None, 1e6)
    with pytest.raises(
        InfeasibleError, match=r"networks near 400 M must be among those of 0\.0\d+ M to 0\.\d+ M, but none is within 0\.5 M"
    ):
        windows(axis, [400e6], 0.5e6)
    with pytest.raises(UsageError, match="--at must name at most 100 costs, but names 101"):
        windows(axis, [30_000.0 + i for i in range(101)], 0.5e6)


def test_networks_of_one_cost_cannot_be_cut(tiny_space):
    same = tiny_space.tabulate(lambda spec: float(spec.kind == "linear"))
    with pytest.raises(UsageError, match="networks must differ in latency to be sorted into buckets, but all have 1 ms"):
        equal_buckets(Axis("latency", "ms", 1.0, same), 6)


def test_distance_is_zero_exactly_inside():
    bucket = Bucket("", 2.0, 3.0)
    cost = np.array([1.5, 2.0, 2.5, np.nextafter(3.0, 0), 3.0, 4.0])
    assert np.array_equal(bucket.distance(cost) == 0, bucket.holds(cost))
    assert np.allclose(bucket.distance(cost), [0.5, 0, 0, 0, 0, 1])


# -- drawing ---------------------------------------------------------------------------------------------------


def check_draws(drawn, space, cost, n):
    for d in drawn:
        space.validate(d.codes)
        assert len(d.codes) <= n
        assert d.bucket.holds(cost(d.codes)).all()
        assert len(np.unique(d.codes, axis=0)) == len(d.codes)


def test_small_spaces_are_listed_and_short_buckets_hold_all_they_have(axis, tiny_space):
    buckets = equal_buckets(axis, 6)
    every = [b.holds(axis.cost(tiny_space.enumerate())).sum() for b in buckets]
    drawn = draw(tiny_space, axis.cost, buckets, 10_000, rng())
    check_draws(drawn, tiny_space, axis.cost, 10_000)
    assert [len(d.codes) for d in drawn] == every
    assert {d.how for d in drawn} == {"listed"}
    assert len(draw(tiny_space, axis.cost, [Bucket("", 0.0, 1.0)], 3, rng())[0].codes) == 0


@pytest.mark.parametrize("listed", [10**6, 0], ids=["listed", "rejection"])
def test_a_smaller_draw_is_the_beginning_of_a_larger_one(axis, tiny_space, monkeypatch, listed):
    monkeypatch.setattr(room, "LISTED", listed)
    monkeypatch.setattr(room, "DRAWN_AT_ONCE", 500)
    monkeypatch.setattr(room, "STEPS_PER_GENE", 1)
    buckets = equal_buckets(axis, 3)
    few, many, other = (draw(tiny_space, axis.cost, buckets, n, rng(seed)) for n, seed in ((5, 0), (30, 0), (5, 1)))
    check_draws(many, tiny_space, axis.cost, 30)
    assert all(np.array_equal(a.codes, b.codes[:5]) for a, b in zip(few, many, strict=True))
    assert any(not np.array_equal(a.codes, b.codes) for a, b in zip(few, other, strict=True))


def test_the_random_order_is_that_of_sampling(tiny_space):
    """The first network has depth 1 in a stage half of the time; among all networks of the list it is a fifth."""
    first = np.stack([random_order(tiny_space, rng(seed))[0] for seed in range(600)])
    assert (tiny_space.settings(first).d == 1).mean(axis=0) == pytest.approx([0.5, 0.5], abs=0.08)
    assert (tiny_space.settings(tiny_space.enumerate()).d == 1).mean(axis=0) == pytest.approx([0.2, 0.2])
    assert len(np.unique(random_order(tiny_space, rng()), axis=0)) == tiny_space.size


def test_rare_buckets_are_filled_by_walks(monkeypatch):
    monkeypatch.setattr(room, "DRAWS", 20_000)
    space = get_space("ofa-mbv3-cifar")
    axis = axis_of(space)
    drawn = draw(space, axis.cost, equal_buckets(axis, 6), 12, rng())
    check_draws(drawn, space, axis.cost, 12)
    assert [len(d.codes) for d in drawn] == [12] * 6
    assert drawn[2].how == "rejection"
    assert drawn[5].how == "random walks"


def test_walks_find_what_rejection_finds(monkeypatch):
    """Mean cost and depths of networks in a bucket agree within their errors."""
    monkeypatch.setattr(room, "STEPS_PER_GENE", 20)
    space = get_space("ofa-mbv3-cifar")
    cost = macs_of(space)
    bucket = equal_buckets(axis_of(space), 6)[3]
    sampled = space.sample(100_000, rng(1))
    sampled = sampled[bucket.holds(cost(sampled))]
    walked = walk_inside(space, cost, bucket, 100, rng(2))
    assert len(walked) == 100

    def facts(codes):
        return np.column_stack([cost(codes) / 1e6, space.settings(codes).d])

    error = facts(sampled).std(axis=0) * (1 / len(walked) + 1 / len(sampled)) ** 0.5
    assert (np.abs(facts(walked).mean(axis=0) - facts(sampled).mean(axis=0)) < 4 * error).all()


def test_a_bucket_that_nothing_fills_stays_empty(axis, tiny_space, monkeypatch):
    monkeypatch.setattr(room, "LISTED", 0)
    monkeypatch.setattr(room, "DRAWS", 1000)
    monkeypatch.setattr(room, "STEPS_PER_GENE", 2)
    (drawn,) = draw(tiny_space, axis.cost, [Bucket("", 1.0, 2.0)], 3, rng())
    assert drawn.codes.shape == (0, len(tiny_space.genes))


# -- uniform networks ------------------------------------------------------------------------------------------


def test_uniform_networks_have_one_depth_one_ratio_and_the_largest_kernel():
    space = get_space("ofa-mbv3-w1.0").with_resolutions([224])
    found, missing = uniform_networks(space)
    assert [(p.depth, p.expand) for p in found] == [(d, e) for d in (2, 3, 4) for e in (3, 4, 6)]
    assert missing == []
    settings = space.settings(np.stack([p.codes for p in found]))
    assert (settings.d == np.array([p.depth for p in found])[:, None]).all()
    for row, pair in enumerate(found):
        active = settings.ks[row] > 0
        assert set(settings.ks[row][active]) == {7}
        assert set(settings.e[row][active]) == {pair.expand}


@pytest.mark.parametrize("name", ["compofa-mbv3-cifar", "compofa-mbv3-elastic-w1.0"])
def test_coupled_spaces_have_their_own_pairs_only(name):
    found, missing = uniform_networks(get_space(name))
    assert [(p.depth, p.expand) for p in found] == [(2, 3), (3, 4), (4, 6)]
    assert missing == [(2, 4), (2, 6), (3, 3), (3, 6), (4, 3), (4, 4)]


# -- common networks -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("swapped", [False, True])
def test_common_networks_are_the_same_networks(swapped):
    spaces = [get_space("compofa-mbv3-cifar"), get_space("ofa-mbv3-cifar")]
    one, other = reversed(spaces) if swapped else spaces
    ours, theirs = common_networks(one, other, 9, rng())
    one.validate(ours)
    other.validate(theirs)
    assert len(np.unique(ours, axis=0)) == 9
    assert [one.blueprint(a) for a in ours] == [other.blueprint(b) for b in theirs]


def test_supernets_of_one_space_have_all_networks_in_common(tiny_space):
    ours, theirs = common_networks(tiny_space, tiny_space, 10_000, rng())
    assert np.array_equal(ours, theirs)
    assert len(ours) == tiny_space.size


def test_networks_of_other_widths_are_not_common():
    with pytest.raises(MismatchError, match=r"two supernets must have networks in common .* compofa-mbv3-w1.2 and ofa-mbv3-w1.0 have none"):
        common_networks(get_space("compofa-mbv3-w1.2"), get_space("ofa-mbv3-w1.0").with_resolutions([224]), 3, rng())


def test_overlapping_spaces_share_what_is_in_both():
    part, coupled = get_space("ofa-mbv3-cifar-d34-e6-k357"), get_space("compofa-mbv3-cifar")
    ours, theirs = common_networks(coupled, part, 5, rng())
    assert coupled.settings(ours).d.tolist() == [[4] * 5]  # a depth of 3 goes with a ratio of 4, which the part lacks
    assert part.settings(theirs).d.tolist() == [[4] * 5]


# -- statistics ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [2, 5, 20, 101])
def test_statistics_equal_scipy(n):
    x = rng(n).normal(0.8, 0.05, n)
    found = describe(x)
    low, high = scipy_stats.t.interval(0.95, n - 1, loc=x.mean(), scale=scipy_stats.sem(x))
    assert (found.mean, found.mean_low, found.mean_high) == pytest.approx((x.mean(), low, high), abs=1e-12)
    assert found.variance == pytest.approx(scipy_stats.describe(x).variance)
    quartiles = scipy_stats.mstats.mquantiles(x, [0.25, 0.5, 0.75], alphap=1, betap=1)
    assert (found.lower_quartile, found.median, found.upper_quartile) == pytest.approx(tuple(quartiles))
    assert (found.n, found.lowest, found.highest) == (n, x.min(), x.max())


def test_statistics_by_hand():
    found = describe([0.1, 0.2, 0.3, 0.4])
    assert (found.mean, found.median, found.lower_quartile, found.upper_quartile) == pytest.approx((0.25, 0.25, 0.175, 0.325))
    assert found.variance == pytest.approx(0.05 / 3)
    assert found.mean_high - found.mean == pytest.approx(3.182446 * (0.05 / 3 / 4) ** 0.5)


def test_one_value_has_no_spread():
    assert describe([0.7]).to_json() == {
        "n": 1, "mean": 0.7, "lowest": 0.7, "lower_quartile": 0.7, "median": 0.7, "upper_quartile": 0.7, "highest": 0.7,
    }  # fmt: skip
    assert paired([0.7], [0.5]) == pytest.approx({"mean_difference": 0.2})


def test_the_distribution_counts_what_is_at_most_each_value():
    values, fractions = cumulative([0.3, 0.1, 0.3, 0.2])
    assert values.tolist() == [0.1, 0.2, 0.3, 0.3]
    assert fractions.tolist() == [0.25, 0.5, 1.0, 1.0]
    x = rng().random(50)
    assert np.array_equal(np.array(cumulative(x)), [np.sort(x), scipy_stats.ecdf(x).cdf.probabilities])


def test_mean_pareto_accuracy_by_hand():
    assert mean_pareto_accuracy([100, 200, 400], [0.6, 0.8, 0.9]) == pytest.approx((100 * 0.7 + 200 * 0.85) / 300)
    assert mean_pareto_accuracy([400, 100, 200], [0.9, 0.6, 0.8]) == pytest.approx((100 * 0.7 + 200 * 0.85) / 300)
    assert mean_pareto_accuracy([1, 5, 9], [0.5, 0.5, 0.5]) == pytest.approx(0.5)


def test_mean_pareto_accuracy_does_not_depend_on_the_unit_of_cost():
    cost, top1 = np.sort(rng().random(6)), rng(1).random(6)
    normalised = (cost - cost[0]) / (cost[-1] - cost[0])
    area = scipy_area(normalised, top1)
    assert mean_pareto_accuracy(cost, top1) == pytest.approx(area)
    assert mean_pareto_accuracy(3e8 + 5e8 * cost, top1) == pytest.approx(area)


def scipy_area(x, y):
    from scipy.integrate import trapezoid

    return trapezoid(y, x)


@pytest.mark.parametrize(("cost", "top1"), [([], []), ([3.0], [0.5]), ([3.0, 3.0], [0.5, 0.6])])
def test_fewer_than_two_costs_have_no_area(cost, top1):
    assert mean_pareto_accuracy(cost, top1) is None


def test_the_drop_is_from_the_costliest_to_the_cheapest():
    assert drops([0.409, 0.45, 0.495]) == pytest.approx({"drop": 0.086, "relative_drop": 0.086 / 0.495})
    assert drops([0.5, 0.4]) == pytest.approx({"drop": -0.1, "relative_drop": -0.25})
    assert drops([0.0, 0.0]) == {"drop": 0.0}
    assert drops([0.5]) == {}


def test_paired_differences_equal_scipys_paired_test():
    ours, theirs = rng().random((2, 20))
    found = paired(ours, theirs)
    interval = scipy_stats.ttest_rel(ours, theirs).confidence_interval(0.95)
    assert found["mean_difference"] == pytest.approx(np.mean(ours) - np.mean(theirs))
    assert (found["mean_difference_low"], found["mean_difference_high"]) == pytest.approx((interval.low, interval.high))


# -- protocols -------------------------------------------------------------------------------------------------


def test_every_protocol_says_where_it_comes_from():
    assert set(PROTOCOLS) == {"pareto", "random", "cdf", "average", "boxes", "heatmap", "common"}
    assert {name: p.nets for name, p in PROTOCOLS.items()} == {
        "pareto": 20, "random": 100, "cdf": 50, "average": 20, "boxes": 100, "heatmap": 0, "common": 20,
    }  # fmt: skip
    assert all(p.reference for p in PROTOCOLS.values())
