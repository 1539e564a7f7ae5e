"""One contract for all spaces (a new one joins by its line in `SIZES`), brute force where slots share genes, and bad input."""

from dataclasses import replace
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from ofasearch.errors import ArchError, NotFoundError
from ofasearch.space.containment import containing, equal_filters, recoded
from ofasearch.space.core import Gate, Gene, LayerSpec, Settings, Slot, Space
from ofasearch.space.costs import activation_bytes, macs, params
from ofasearch.space.families import DESIGNS, get_space, make_divisible

PRICES = [(macs, "sum", sum), (params, "sum", sum), (activation_bytes, "max", max)]
OWN = Path(__file__).parents[2] / "examples" / "spaces"
MBV3, BLOCK = 7371**5, 9  # of a block: three kernels, three ratios
RESNET50 = 2 * 2 * 3 * (3 * (3**2 + 3**3 + 3**4)) ** 3 * (3 * (3**4 + 3**5 + 3**6))
SIZES = {
    "ofa-mbv3-w1.0": 7371**5,
    "ofa-mbv3-w1.2": 7371**5,
    "ofa-mbv3-cifar": 7371**5,
    "compofa-mbv3-w1.0": 243,
    "compofa-mbv3-w1.2": 243,
    "compofa-mbv3-elastic-w1.0": 117**5,
    "compofa-mbv3-elastic-w1.2": 117**5,
    "compofa-mbv3-cifar": 243,
    "ofa-proxyless-w1.3": MBV3 * BLOCK,  # with the one block of the last stage
    "ofa-proxyless-cifar": MBV3 * BLOCK,
    "compofa-proxyless-w1.3": 243 * 3,
    "compofa-proxyless-cifar": 243 * 3,
    "ofa-resnet50": RESNET50,
    "ofa-resnet50-cifar": 2 * (3 * 3) * (3 * (2**2 + 2**3 + 2**4)) * (3 * (3**4 + 3**5 + 3**6)) * (3 * (3**2 + 3**3 + 3**4)),
    "ofa-resnet50-d02-eac-w12": 2 * 2**2 * (2 * (2**2 + 2**4)) ** 3 * (2 * (2**4 + 2**6)),
    "compofa-proxyless-32-w0.25": 243 * 3,
    "camera.json": (6 + 6**2 + 6**3) ** 2 * (9 + 9**2 + 9**3) * 4,
    "small-resnet.json": 2 * 2**2 * (2 * (2 + 2**2)) ** 2 * (2 * (2**2 + 2**3)),
    "ofa-mbv3-cifar-d24-e36-k357": (6**2 + 6**4) ** 5,
    "tiny": (4 + 4**2) ** 2,  # two stages of one or two blocks, each with two kernels and two ratios
}
LISTED = [name for name in SIZES if SIZES[name] < 1000]


def find_space(request, name):
    """A published space, the tiny one that all tests share, or one of the examples of users' own."""
    return request.getfixturevalue("tiny_space") if name == "tiny" else get_space(str(OWN / name) if name.endswith(".json") else name)


@pytest.fixture(scope="module", params=SIZES)
def space(request):
    return find_space(request, request.param)


@pytest.fixture(scope="module", params=LISTED)
def listed(request):
    """A space small enough to be listed."""
    return find_space(request, request.param)


@pytest.fixture
def rng():
    return np.random.default_rng(7)


def walk(space, codes, price, combine):
    return np.array([combine(price(layer) for layer in space.blueprint(row)) for row in codes])


# -- the contract ----------------------------------------------------------------------------------------------


def test_sampled_networks_are_valid_and_canonical(space, rng):
    codes = space.sample(500, rng)
    space.validate(codes)
    assert (space.canonical(codes) == codes).all()
    assert len(np.unique(codes, axis=0)) > 200


def test_canonical_is_idempotent_and_erases_only_what_is_absent(space, rng):
    drawn = space.draw(500, rng)
    once = space.canonical(drawn)
    assert (space.canonical(once) == once).all()
    assert ((once == drawn) | (once == 0)).all()


def test_different_rows_are_different_networks(space, rng):
    codes = np.unique(space.sample(400, rng), axis=0)
    assert len({tuple(spec.shape for spec in space.blueprint(row)) for row in codes}) == len(codes)


def test_equal_networks_have_equal_rows(space, rng):
    drawn = space.draw(300, rng)
    codes = space.canonical(drawn)
    other = np.where(codes > 0, codes, space.draw(300, rng))  # the same choices, other values where absent
    assert (space.canonical(other) == codes).all()


def test_spelling_round_trips(space, rng):
    for row in space.sample(50, rng):
        arch = space.arch(row)
        again = space.parse(str(arch))
        assert again == arch
        assert again.codes == tuple(row)


def test_different_networks_are_spelled_differently(space, rng):
    codes = np.unique(space.sample(300, rng), axis=0)
    assert len({str(space.arch(row)) for row in codes}) == len(codes)


@pytest.mark.parametrize(("price", "reduce", "combine"), PRICES)
def test_tabulated_price_equals_the_layer_walk(space, rng, price, reduce, combine):
    codes = space.sample(200, rng)
    assert (space.tabulate(price, reduce)(codes) == walk(space, codes, price, combine)).all()


@pytest.mark.parametrize(("price", "reduce", "combine"), PRICES)
def test_bounds_are_reached_and_never_beaten(space, rng, price, reduce, combine):
    cost = space.tabulate(price, reduce)
    bounds = cost.bounds()
    ends = np.array([bounds.lowest_codes, bounds.highest_codes])
    space.validate(ends)
    assert walk(space, ends, price, combine).tolist() == [bounds.lowest, bounds.highest]
    sampled = cost(space.sample(2000, rng))
    assert bounds.lowest <= sampled.min()
    assert sampled.max() <= bounds.highest


def test_smallest_and_largest_bound_the_macs(space):
    bounds = space.tabulate(macs).bounds()
    ends = np.array([space.smallest(), space.largest()])
    assert walk(space, ends, macs, sum).tolist() == [bounds.lowest, bounds.highest]


def test_settings_round_trip(space, rng):
    codes = space.sample(200, rng)
    assert (space.from_settings(space.settings(codes)) == codes).all()


def test_settings_of_skipped_blocks_mean_nothing(space, rng):
    codes = space.sample(50, rng)
    settings = space.settings(codes)
    rubbish = replace(settings, ks=np.where(settings.ks == 0, 99, settings.ks), e=np.where(settings.e == 0, 99, settings.e))
    assert (space.from_settings(rubbish) == codes).all()


def test_settings_say_what_the_layers_are(space, rng):
    codes = space.sample(20, rng)
    settings = space.settings(codes)
    for n, row in enumerate(codes):
        blocks = [layer for layer in space.blueprint(row) if layer.kind in ("mbconv", "bottleneck") and layer.slot != "s0.b1"]
        assert [b.kernel for b in blocks] == [k for k in settings.ks[n] if k]
        of = [b.c_out if b.kind == "bottleneck" else b.c_in for b in blocks]
        ratios = settings.e[n][settings.e[n] > 0]
        assert [b.c_mid for b in blocks] == [make_divisible(round(c * ratio)) for c, ratio in zip(of, ratios, strict=True)]
        assert (settings.e[n] > 0).sum() == len(blocks)
        assert len(blocks) - always(space) == (settings.d[n][1:] if space.widths else settings.d[n]).sum()
        assert space.blueprint(row)[0].hw_in == settings.r[n]


def always(space):
    """Blocks that no network lacks and that depths do not count, as a ResNet has."""
    return sum(gene.gate.at_least == 1 for gene in space.genes if gene.reads[0] == "e") if space.widths else 0


def test_layers_of_a_network_fit_together(space, rng):
    for row in space.sample(20, rng):
        blueprint = space.blueprint(row)
        for before, after in pairwise(blueprint):
            assert (before.c_out, before.hw_out) == (after.c_in, after.hw_in)
        assert blueprint[-1].c_out == space.classes


def test_lift_keeps_macs_and_layers(space, rng):
    target = get_space(space.parent) if space.parent else space
    codes = space.sample(50, rng)
    lifted = space.lift(codes, target)
    target.validate(lifted)
    assert [target.blueprint(row) for row in lifted] == [space.blueprint(row) for row in codes]
    assert (target.tabulate(macs)(lifted) == space.tabulate(macs)(codes)).all()


def test_every_published_space_is_under_contract():
    assert SIZES.keys() >= {*DESIGNS, "tiny"}


def test_size_is_exact(request, space):
    name = next(name for name in SIZES if space.name == find_space(request, name).name)
    assert space.size == SIZES[name]


def test_the_largest_contains_all_and_the_smallest_only_itself(space, rng):
    codes = np.unique(space.canonical(np.where(np.arange(len(space.genes)) == 0, 1, space.draw(100, rng))), axis=0)
    largest, smallest = (np.repeat(row[None], len(codes), axis=0) for row in (space.largest(), space.smallest()))
    assert space.contains(largest, codes).all()
    assert space.contains(codes, smallest).all()
    assert (space.contains(smallest, codes) == (codes == smallest).all(axis=1)).all()


def test_other_resolutions_keep_the_networks(space):
    other = space.with_resolutions([96, 64, 96])
    assert other.resolutions == (64, 96)
    assert other.size == space.size
    assert other.blueprint(other.largest())[0].hw_in == 96


def test_ids_and_settings_lead_to_the_same_codes(space, rng):
    codes = space.sample(30, rng)
    for row in codes:
        parsed = np.array([space.parse(str(space.arch(row))).codes])
        assert (space.from_settings(space.settings(parsed)) == row).all()


def test_no_method_writes_into_the_codes_it_is_given(space, rng):
    codes = space.sample(20, rng)
    codes.flags.writeable = False  # whoever writes raises
    cost = space.tabulate(macs)
    for method in (space.validate, space.canonical, space.settings, space.present, cost, cost.scaled(2.0, 1.0)):
        method(codes)
    assert space.contains(codes, codes).all()
    for row in codes:
        space.arch(row)
        space.blueprint(row)
    space.canonical(codes)[:] = 0  # a copy, so that a caller's writing does not come back either
    space.validate(codes)


def test_a_list_holds_every_network_once(listed):
    codes = listed.enumerate()
    listed.validate(codes)
    assert len(np.unique(codes, axis=0)) == len(codes) == listed.size * len(listed.resolutions)
    assert (np.unique(codes, axis=0) == codes).all()  # in lexicographic order


def test_a_list_holds_all_that_can_be_sampled(listed, rng):
    known = {row.tobytes() for row in listed.enumerate()}
    assert {row.tobytes() for row in listed.sample(2000, rng)} <= known


@pytest.mark.parametrize(("price", "reduce", "combine"), PRICES)
def test_bounds_are_those_of_the_list(listed, price, reduce, combine):
    codes = listed.enumerate()
    cost = listed.tabulate(price, reduce)
    prices = cost(codes)
    assert (cost.bounds().lowest, cost.bounds().highest) == (prices.min(), prices.max())


def test_a_huge_space_is_not_listed():
    with pytest.raises(ArchError, match="only spaces of at most 1,000,000 networks can be listed, but ofa-mbv3-cifar has"):
        get_space("ofa-mbv3-cifar").enumerate()


def test_a_hundred_thousand_networks_are_priced_in_one_call(rng):
    space = get_space("ofa-mbv3-w1.0")
    cost = space.tabulate(macs)
    codes = space.sample(100_000, rng)
    priced = cost(codes)
    assert priced.shape == (100_000,)
    chosen = rng.choice(len(codes), 100, replace=False)
    assert (priced[chosen] == walk(space, codes[chosen], macs, sum)).all()
    assert (priced == np.concatenate([cost(part) for part in np.array_split(codes, 7)])).all()


def repeated(codes, n):
    return np.tile(codes, (n, 1))


def test_the_space_that_contains_a_network_holds_exactly_the_networks_that_contain_it(space, rng):
    others = np.concatenate([space.sample(300, rng), [space.largest(), space.smallest()]])
    for small in (*space.sample(5, rng), space.smallest(), space.largest()):
        inside = containing(space, small)
        kept, codes = recoded(others, space, inside)
        assert (kept == space.contains(others, repeated(small, len(others)))).all()
        inside.validate(codes)
        assert (inside.settings(codes).rows() == space.settings(others[kept]).rows()).all()


def test_what_is_drawn_from_the_space_that_contains_a_network_contains_it(space, rng):
    for small in space.sample(5, rng):
        inside = containing(space, small)
        codes = inside.sample(200, rng)
        inside.validate(codes)
        lifted = inside.lift(codes, space)
        assert space.contains(lifted, repeated(small, len(lifted))).all()
        assert inside.arch(codes[0]) == space.arch(lifted[0])
        assert inside.blueprint(codes[0]) == space.blueprint(lifted[0])
        assert set(lifted[:, 0]) == set(codes[:, 0])  # every resolution


def test_the_network_itself_is_the_cheapest_of_the_space_that_contains_it(space, rng):
    for row in space.sample(5, rng):
        inside, small = containing(space, row), np.array([1, *row[1:]])
        bounds = inside.tabulate(macs).bounds()
        assert bounds.lowest == macs_of_network(space, small)
        assert inside.arch(bounds.lowest_codes) == space.arch(small) == inside.arch(inside.smallest())
        assert bounds.highest == space.tabulate(macs).bounds().highest


def macs_of_network(space, codes):
    return sum(macs(layer) for layer in space.blueprint(codes))


def test_the_listed_space_that_contains_a_network_has_the_size_it_says(listed, rng):
    everything = listed.enumerate()
    for small in listed.sample(10, rng):
        inside = containing(listed, small)
        contained = listed.contains(everything, repeated(small, len(everything)))
        assert len(inside.enumerate()) == inside.size * len(inside.resolutions) == contained.sum()
        assert (inside.lift(inside.enumerate(), listed) == everything[contained]).all()


def test_only_networks_of_the_space_can_be_contained(space):
    with pytest.raises(ArchError, match="must be"):
        containing(space, space.largest() + 1)


def test_filters_are_equal_where_kernels_are(space, rng):
    codes = space.sample(200, rng)
    small = codes[0]
    equal = equal_filters(space, codes, small)
    theirs, ours = space.settings(codes).ks, space.settings(small[None]).ks[0]
    assert equal[0]
    assert (equal == [all(k == o for k, o in zip(row, ours, strict=True) if o) for row in theirs]).all()


# -- brute force on a toy space --------------------------------------------------------------------------------


def toy_layer(number, c_in, c_out, resolution, kernel=1):
    return LayerSpec(slot=f"t{number}", kind="conv", c_in=c_in, c_mid=number, c_out=c_out, hw_in=resolution, kernel=kernel)


def toy_space():
    """Widths coupled along a chain and from last to first, and a kernel that only deep networks have."""
    genes = (
        Gene("resolution", "r", 0, (8, 16), ("r", 0)),
        Gene("w1", "w1", 1, (1, 2, 3), ("w", 0)),
        Gene("w2", "w2", 2, (1, 2), ("w", 1)),
        Gene("w3", "w3", 3, (1, 2, 3), ("w", 2)),
        Gene("depth", "depth", 3, (1, 2), ("d", 0)),
        Gene("kernel", "kernel", 3, (3, 5, 7), ("ks", 0), Gate(4, 2)),
    )
    slots = (
        Slot("t1", (0, 1), lambda v: toy_layer(1, 9, v[1], v[0])),
        Slot("t2", (0, 2, 1), lambda v: toy_layer(2, v[2], v[1], v[0])),
        Slot("t3", (0, 3, 2), lambda v: toy_layer(3, v[2], v[1], v[0])),
        Slot("t4", (0, 5, 3), lambda v: toy_layer(4, v[2], v[2], v[0], v[1]) if v[1] else None),
        Slot("t5", (0, 1, 3), lambda v: toy_layer(5, v[1], v[2], v[0])),
    )
    return Space("toy", genes, slots, classes=2, kernels=(3, 5, 7), expands=(1,))


def random_price(seed):
    rng, known = np.random.default_rng(seed), {}
    return lambda layer: known.setdefault(layer.shape, float(rng.integers(1, 1000)))


def test_toy_size_equals_its_list():
    space = toy_space()
    codes = space.enumerate()
    assert space.size == 3 * 2 * 3 * (1 + 3)
    assert len(np.unique(codes, axis=0)) == len(codes) == 2 * space.size
    space.validate(codes)


def test_toy_list_equals_all_that_can_be_sampled(rng):
    space = toy_space()
    assert (np.unique(space.sample(20_000, rng), axis=0) == space.enumerate()).all()


@pytest.mark.parametrize(("reduce", "combine"), [("sum", sum), ("max", max)])
@pytest.mark.parametrize("seed", range(8))
def test_bounds_equal_brute_force_where_slots_share_genes(seed, reduce, combine):
    space, price = toy_space(), random_price(seed)
    codes = space.enumerate()
    expected = walk(space, codes, price, combine)
    cost = space.tabulate(price, reduce)
    assert (cost(codes) == expected).all()
    bounds = cost.bounds()
    assert (bounds.lowest, bounds.highest) == (expected.min(), expected.max())
    ends = np.array([bounds.lowest_codes, bounds.highest_codes])
    space.validate(ends)
    assert walk(space, ends, price, combine).tolist() == [expected.min(), expected.max()]


def test_prices_may_differ_by_resolution():
    space = toy_space()
    price = {8: random_price(1), 16: random_price(2)}
    cost = space.tabulate_by_resolution(lambda resolution: price[resolution])
    codes = space.enumerate()
    expected = [sum(price[space.resolutions[row[0] - 1]](layer) for layer in space.blueprint(row)) for row in codes]
    assert cost(codes).tolist() == expected
    assert cost.bounds().highest == max(expected)


def test_a_scaled_cost_is_the_affine_image_and_keeps_its_extremes():
    space, price = toy_space(), random_price(3)
    cost = space.tabulate(price)
    codes = space.enumerate()
    scaled = cost.scaled(2.0, 1.0).scaled(3.0, 0.5)
    assert np.allclose(scaled(codes), 6 * cost(codes) + 3.5)
    assert np.isclose(scaled.bounds().lowest, 6 * cost.bounds().lowest + 3.5)
    assert (scaled.bounds().highest_codes == cost.bounds().highest_codes).all()
    with pytest.raises(ValueError, match="slope must be positive, but got -1"):
        cost.scaled(-1.0, 0.0)


# -- bad input -------------------------------------------------------------------------------------------------

GOOD = "compofa-mbv3-w1.0@r160-2-3-4-3-2"
LONG = "ofa-mbv3-cifar@r32-23333-23333-23333-23333-23333"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "an arch id of compofa-mbv3-w1.0 must look like 'compofa-mbv3-w1.0@r128-2-2-2-2-2', but got ''"),
        (GOOD.replace("compofa", "ofa"), "must look like 'compofa-mbv3-w1.0@r128-2-2-2-2-2', but got 'ofa-mbv3-w1.0@r160-2-3-4-3-2'"),
        (GOOD.replace("@r", "@"), "must look like"),
        (GOOD.replace("@r160", ""), "must look like"),
        (GOOD.replace("160", "162"), "resolution must be one of .* but got '162'"),
        (GOOD[:-2], "must have 5 stages, but .* has 4"),
        (GOOD + "-2", "must have 5 stages, but .* has 6"),
        (GOOD.replace("r160-2", "r160-5"), r"s1.depth must be one of \[2, 3, 4\], but got '5'"),
        (GOOD.replace("r160-2", "r160-"), r"s1.depth must be one of \[2, 3, 4\], but got ''"),
        (GOOD + "7", "must not have digits left over, but .* has '7'"),
    ],
)
def test_a_wrong_id_says_what_is_wrong(text, message):
    space = get_space("compofa-mbv3-w1.0")
    assert str(space.parse(GOOD)) == GOOD
    with pytest.raises(ArchError, match=message):
        space.parse(text)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (LONG.replace("-23333", "-24333", 1), r"s1.b1.kernel must be one of \[3, 5, 7\], but got '4'"),
        (LONG.replace("-23333", "-2333", 1), r"s1.b2.expand must be one of \[3, 4, 6\], but got ''"),
        (LONG.replace("-23333", "-233333", 1), "must not have digits left over, but .* has '3'"),
    ],
)
def test_a_wrong_block_is_named(text, message):
    space = get_space("ofa-mbv3-cifar")
    assert str(space.parse(LONG)) == LONG
    with pytest.raises(ArchError, match=message):
        space.parse(text)


def uniform(ks, e, d, r=160):
    return Settings(np.full((1, 20), ks), np.full((1, 20), e), np.full((1, 5), d), np.array([r]))


@pytest.mark.parametrize(
    ("name", "settings", "message"),
    [
        ("compofa-mbv3-elastic-w1.0", uniform(3, 4, 2), r"e of block 0 must be 3 in compofa-mbv3-elastic-w1.0 \(it is tied .* but got 4"),
        ("compofa-mbv3-w1.0", uniform(3, 3, 2), r"ks of block 4 must be 5 in compofa-mbv3-w1.0 .* but got 3"),
        ("ofa-mbv3-w1.0", uniform(3, 3, 5), r"s1.depth must be one of \[2, 3, 4\] in ofa-mbv3-w1.0, but got 5"),
        ("ofa-mbv3-w1.0", uniform(4, 3, 2), r"s1.b1.kernel must be one of \[3, 5, 7\] in ofa-mbv3-w1.0, but got 4"),
        ("ofa-mbv3-w1.0", uniform(3, 3, 2, 161), r"resolution must be one of .* but got 161"),
        ("ofa-mbv3-w1.0", replace(uniform(3, 3, 2), ks=np.full((1, 19), 3)), "ks must hold 20 integers for ofa-mbv3-w1.0, but got 19"),
        ("ofa-mbv3-w1.0", replace(uniform(3, 3, 2), d=np.full((1, 6), 2)), "d must hold 5 integers for ofa-mbv3-w1.0, but got 6"),
    ],
)
def test_settings_outside_the_space_say_why(name, settings, message):
    with pytest.raises(ArchError, match=message):
        get_space(name).from_settings(settings)


def test_codes_that_are_no_network_are_refused():
    space = get_space("compofa-mbv3-elastic-w1.0")
    small = space.smallest()
    absent = int(np.flatnonzero(small == 0)[0])

    def changed(column, code):
        return np.where(np.arange(len(small)) == column, code, small)[None]

    space.validate(small[None])
    with pytest.raises(ArchError, match=r"code of s1.b3.kernel must be 0, because its block is skipped .* but got 1 in row 0"):
        space.validate(changed(absent, 1))
    with pytest.raises(ArchError, match=r"code of s1.depth must be 1..3 in compofa-mbv3-elastic-w1.0, but got 4 in row 0"):
        space.validate(changed(1, 4))
    with pytest.raises(ArchError, match=r"code of resolution must be 1..25 .* but got 0 in row 0"):
        space.validate(changed(0, 0))
    with pytest.raises(ArchError, match=r"must be an integer matrix with .* columns, but got float64"):
        space.validate(small[None].astype(float))
    with pytest.raises(ArchError, match="must be an integer matrix"):
        space.validate(small[None, 1:])


@pytest.mark.parametrize("resolutions", [[], [4, 32], [-32]])
def test_resolutions_must_be_sizes(resolutions):
    with pytest.raises(ArchError, match="resolutions must be a non-empty list of sizes of at least 8 pixels"):
        get_space("ofa-mbv3-cifar").with_resolutions(resolutions)


def test_an_unknown_space_lists_the_known():
    with pytest.raises(NotFoundError, match=r"space must be one of ofa-mbv3-w1.0, .*, but got 'ofa-mbv4'"):
        get_space("ofa-mbv4")


def test_classes_change_the_classifier_alone():
    ten, three = get_space("ofa-mbv3-cifar"), get_space("ofa-mbv3-cifar", classes=3)
    before, after = (s.blueprint(s.largest()) for s in (ten, three))
    assert before[:-1] == after[:-1]
    assert (before[-1].c_out, after[-1].c_out) == (10, 3)
