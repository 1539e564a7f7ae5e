"""MACs, parameters and activation memory against published numbers and against sums by hand."""

import csv

import numpy as np
import pytest

from ofasearch.errors import ArchError
from ofasearch.predictor import read_pairs
from ofasearch.space.core import LayerSpec
from ofasearch.space.costs import activation_bytes, activation_bytes_of, costs, macs, macs_of, params, params_of
from ofasearch.space.families import get_space

# space, network, resolution, millions of MACs, millions of parameters: read off the reference classes (PAPERS.md 4.1)
PUBLISHED = [
    ("ofa-mbv3-w1.0", "smallest", 128, 41.5, 3.41),
    ("ofa-mbv3-w1.0", "smallest", 160, 63.2, 3.41),
    ("ofa-mbv3-w1.0", "smallest", 224, 121.3, 3.41),
    ("ofa-mbv3-w1.0", "largest", 128, 188.2, 7.66),
    ("ofa-mbv3-w1.0", "largest", 160, 291.3, 7.66),
    ("ofa-mbv3-w1.0", "largest", 224, 566.2, 7.66),
    ("ofa-mbv3-w1.0", "D4E3K3", 224, 226.2, None),
    ("ofa-mbv3-w1.2", "smallest", 128, 65.5, 4.60),
    ("ofa-mbv3-w1.2", "smallest", 160, 100.3, 4.60),
    ("ofa-mbv3-w1.2", "smallest", 224, 193.1, 4.60),
    ("ofa-mbv3-w1.2", "largest", 128, 280.0, 10.70),
    ("ofa-mbv3-w1.2", "largest", 160, 433.6, 10.70),
    ("ofa-mbv3-w1.2", "largest", 224, 843.1, 10.70),
    ("ofa-mbv3-w1.2", "D4E3K3", 224, 351.1, None),
    ("ofa-proxyless-w1.3", "smallest", 224, 265.5, 3.72),
    ("ofa-proxyless-w1.3", "largest", 224, 1004.9, 7.94),
    ("ofa-resnet50", "smallest", 128, 315.1, 6.54),
    ("ofa-resnet50", "smallest", 224, 962.2, 6.54),
    ("ofa-resnet50", "largest", 128, 2447.6, 48.11),
    ("ofa-resnet50", "largest", 224, 7491.6, 48.11),
]


def blueprint_of(space, which):
    if which == "D4E3K3":
        (resolution,) = space.resolutions
        arch = space.parse("-".join([f"{space.name}@r{resolution}", *["4" + 4 * "33"] * 5]))
        return space.blueprint(np.array(arch.codes))
    return space.blueprint({"smallest": space.smallest, "largest": space.largest}[which]())


@pytest.mark.parametrize(("name", "which", "resolution", "macs_m", "params_m"), PUBLISHED)
def test_costs_equal_published_numbers(name, which, resolution, macs_m, params_m):
    cost = costs(blueprint_of(get_space(name).with_resolutions([resolution]), which))
    assert round(cost.macs / 1e6, 1) == macs_m
    assert params_m is None or round(cost.params / 1e6, 2) == params_m


@pytest.mark.parametrize("search", ["evoga_acc", "evonsga2_acc_macs", "linasga_acc", "linasnsga2_acc_macs"])
def test_costs_equal_those_of_an_independent_toolkit_to_the_unit(shared_data, search):
    path = shared_data / "accuracy" / f"ofa_mbv3_w1.0_imagenet_{search}.csv"
    with path.open() as file:
        rows = list(csv.DictReader(file))
    space = get_space("ofa-mbv3-w1.0")
    codes = space.from_settings(read_pairs([path], space).settings)
    assert macs_of(space)(codes).tolist() == [float(row["MACs"]) for row in rows]
    assert params_of(space)(codes).tolist() == [float(row["Model Parameters"]) for row in rows]


def test_a_block_with_skip_and_squeeze_excite_costs_what_a_sum_by_hand_gives():
    block = LayerSpec(slot="", kind="mbconv", c_in=8, c_mid=24, c_out=8, hw_in=4, c_se=8, kernel=3, skip=True)
    assert macs(block) == 16 * 8 * 24 + 16 * 9 * 24 + 2 * 24 * 8 + 16 * 24 * 8
    assert params(block) == (8 * 24 + 9 * 24 + 2 * 24 * 8 + 24 * 8) + (8 + 24) + 2 * (24 + 24 + 8)  # weights, SE biases, norms
    # the depthwise convolution: its input, its output, and the block's input that waits for the add
    assert activation_bytes(block) == 4 * (24 * 16 + 24 * 16 + 8 * 16)


def test_a_block_with_stride_keeps_no_skip_and_shrinks_its_output():
    block = LayerSpec(slot="", kind="mbconv", c_in=8, c_mid=24, c_out=16, hw_in=4, kernel=5, stride=2)
    assert macs(block) == 16 * 8 * 24 + 4 * 25 * 24 + 4 * 24 * 16
    assert activation_bytes(block) == 4 * (8 * 16 + 24 * 16)  # the expansion: input 4x4x8, output 4x4x24


def test_a_block_without_expansion_holds_its_input_once():
    block = LayerSpec(slot="", kind="mbconv", c_in=8, c_mid=8, c_out=8, hw_in=4, kernel=3, skip=True)
    assert macs(block) == 16 * 9 * 8 + 16 * 8 * 8
    assert params(block) == 9 * 8 + 8 * 8 + 2 * (8 + 8)
    assert activation_bytes(block) == 4 * 3 * (8 * 16)  # the projection: input, output, and the kept input of the block


def test_a_pool_costs_memory_alone():
    pool = LayerSpec(slot="", kind="pool", c_in=10, c_mid=0, c_out=10, hw_in=4, norm=False)
    assert (macs(pool), params(pool), activation_bytes(pool)) == (0, 0, 4 * (10 * 16 + 10))


def test_a_classifier_counts_its_bias():
    linear = LayerSpec(slot="", kind="linear", c_in=10, c_mid=0, c_out=3, hw_in=1, norm=False, bias=True)
    assert (macs(linear), params(linear), activation_bytes(linear)) == (30, 33, 4 * 13)


def test_populations_are_priced_as_single_networks_are(tiny_space):
    codes = tiny_space.sample(20, np.random.default_rng(0))
    found = zip(macs_of(tiny_space)(codes), params_of(tiny_space)(codes), activation_bytes_of(tiny_space)(codes), strict=True)
    single = [costs(tiny_space.blueprint(row)) for row in codes]
    assert list(found) == [(c.macs, c.params, c.activation_bytes) for c in single]


def test_a_kind_without_cost_model_is_named():
    with pytest.raises(ArchError, match=r"layer kind must be one of conv, .*, but got 'attention'"):
        macs(LayerSpec(slot="", kind="attention", c_in=8, c_mid=8, c_out=8, hw_in=4))
