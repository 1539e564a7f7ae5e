"""net.config: published networks cost what their authors say, what we write reads back equal, and damaged files say why."""

import csv
import json
from dataclasses import replace

import numpy as np
import pytest
import torch

from ofasearch.deploy.export import build_onnx, random_weights
from ofasearch.errors import ArchError, FormatError, NotFoundError
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.latency.roofline import DEVICES, estimate_ms
from ofasearch.space.core import RESOLUTION_LIMIT
from ofasearch.space.costs import costs
from ofasearch.space.families import get_space
from ofasearch.space.static import blueprint_of, read_net_config
from ofasearch.space.static_write import net_config, run_config
from ofasearch.supernet.elastic import Network

SPACE = get_space("ofa-mbv3-cifar")


def published_rows(folder):
    with (folder / "published.csv").open() as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def published(shared_data):
    """(row of published.csv, blueprint) of every published network."""
    folder = shared_data / "ofa" / "specialized"
    return [(row, read_net_config(folder / row["folder"] / "net.config")) for row in published_rows(folder)]


def without_slots(blueprint):
    return tuple(replace(spec, slot="") for spec in blueprint)


@pytest.fixture
def small_config():
    """A ProxylessNAS network of two blocks on 32x32 images, spelled as today's once-for-all does."""

    def conv(c_in, c_out, kernel, stride):
        return {"name": "ConvLayer", "kernel_size": kernel, "stride": stride, "in_channels": c_in, "out_channels": c_out, "use_bn": True,
                "act_func": "relu6"}  # fmt: skip

    def block(c_in, c_out, ratio, mid, stride, skip):
        inner = {"name": "MBConvLayer", "in_channels": c_in, "out_channels": c_out, "kernel_size": 5, "stride": stride,
                 "expand_ratio": ratio, "mid_channels": mid, "act_func": "relu6", "use_se": False}  # fmt: skip
        return {"name": "ResidualBlock", "conv": inner, "shortcut": {"name": "IdentityLayer"} if skip else None}

    return {
        "name": "ProxylessNASNets",
        "bn": {"momentum": 0.1, "eps": 0.001},
        "first_conv": conv(3, 16, 3, 2),
        "blocks": [block(16, 24, 1, None, 2, False), block(24, 24, 2.4, None, 1, True)],
        "feature_mix_layer": conv(24, 48, 1, 1),
        "classifier": {"name": "LinearLayer", "in_features": 48, "out_features": 7, "bias": True, "use_bn": False, "act_func": None},
    }


# -- published networks ----------------------------------------------------------------------------------------


def test_published_networks_cost_what_their_authors_say(published):
    """MACs and parameters as printed. Three prints round the half million up; one (below) is of no network in its file."""
    assert len(published) == 30
    for row, blueprint in published:
        found = costs(blueprint)
        assert f"{found.params / 1e6:.1f}" == row["params_M"], row["folder"]
        if not row["folder"].startswith("note10_lat-8ms"):
            assert abs(found.macs / 1e6 - int(row["macs_M"])) < 0.55, row["folder"]
    exact = sum(round(costs(blueprint).macs / 1e6) == int(row["macs_M"]) for row, blueprint in published)
    assert exact == 26


def test_the_one_network_whose_print_differs_has_the_macs_that_torch_counts(published):
    """79 M are printed for note10_lat@8ms; its net.config at its image size has 75.8 M by any count."""
    ((row, blueprint),) = [(r, b) for r, b in published if r["folder"].startswith("note10_lat-8ms")]
    counted = 0

    def count(module, _, output):
        nonlocal counted
        per_output = module.weight[0].numel()
        counted += per_output * output[0].numel()

    network = Network(blueprint).eval()
    for module in network.modules():
        if isinstance(module, torch.nn.Conv2d | torch.nn.Linear):
            module.register_forward_hook(count)
    with torch.no_grad():
        network(torch.zeros(1, 3, blueprint[0].hw_in, blueprint[0].hw_in))
    assert counted == costs(blueprint).macs
    assert (row["macs_M"], round(counted / 1e6, 1)) == ("79", 75.8)


def test_published_networks_are_written_and_read_back_equal(published):
    for _, blueprint in published:
        assert blueprint_of(net_config(blueprint), blueprint[0].hw_in) == blueprint


@pytest.mark.parametrize("folder", ["v100_gpu64-5ms_top1-71.6_finetune-25", "note10_lat-8ms_top1-71.4_finetune-25"])
def test_a_published_network_runs_in_torch_and_onnx_and_has_a_price(shared_data, folder):
    blueprint = read_net_config(shared_data / "ofa" / "specialized" / folder / "net.config")
    arrays = random_weights(blueprint, np.random.default_rng(0))
    network = Network(blueprint)
    missing, unknown = network.load_state_dict({k: torch.from_numpy(a) for k, a in arrays.items()}, strict=False)
    assert not unknown
    assert all(key.endswith("num_batches_tracked") for key in missing)
    images = np.random.default_rng(1).normal(size=(2, 3, blueprint[0].hw_in, blueprint[0].hw_in)).astype(np.float32)
    with torch.no_grad():
        expected = network.eval()(torch.from_numpy(images)).numpy()
    found = OnnxModel(build_onnx(blueprint, arrays))(images)
    assert found.shape == (2, 1000)
    assert found == pytest.approx(expected, abs=1e-3 * float(np.abs(expected).max()))
    assert np.abs(expected[0] - expected[1]).max() > 0.01 * np.abs(expected).max()  # the images reach the logits
    assert all(estimate_ms(spec, DEVICES["v100"], 64) > 0 for spec in blueprint)


# -- forms and spellings ---------------------------------------------------------------------------------------


def test_what_a_space_builds_is_written_and_read_back_equal():
    for codes in SPACE.sample(20, np.random.default_rng(0)):
        blueprint = SPACE.blueprint(codes)
        assert blueprint_of(net_config(blueprint), 32) == without_slots(blueprint)


def test_layers_of_a_proxyless_network_by_hand(small_config):
    stem, first, second, feature, pool, classifier = blueprint_of(small_config, 32)
    assert (stem.kind, stem.c_out, stem.act, stem.norm, stem.eps) == ("conv", 16, "relu6", True, 0.001)
    assert (first.hw_in, first.c_mid, first.stride, first.skip, first.c_se) == (16, 16, 2, False, 0)
    assert (second.hw_in, second.c_mid, second.kernel, second.skip) == (8, round(24 * 2.4), 5, True)
    assert (feature.hw_in, feature.norm, pool.kind, pool.hw_in, pool.c_out) == (8, True, "pool", 8, 48)
    assert (classifier.c_in, classifier.c_out, classifier.bias) == (48, 7, True)


def test_old_and_new_spelling_mean_the_same(small_config):
    old = json.loads(json.dumps(small_config))
    for block in old["blocks"]:
        block["name"], block["mobile_inverted_conv"] = "MobileInvertedResidualBlock", block.pop("conv")
        block["mobile_inverted_conv"]["name"] = "MBInvertedConvLayer"
    old["first_conv"] |= {"has_shuffle": False, "groups": 1, "dilation": 1, "ops_order": "weight_bn_act"}
    assert blueprint_of(old, 32) == blueprint_of(small_config, 32)


def test_a_block_whose_convolution_is_a_zero_layer_is_absent(small_config):
    empty = {"name": "ResidualBlock", "conv": {"name": "ZeroLayer", "stride": 1}, "shortcut": {"name": "IdentityLayer"}}
    longer = {**small_config, "blocks": [*small_config["blocks"], empty]}
    assert blueprint_of(longer, 32) == blueprint_of(small_config, 32)


def test_squeeze_excite_has_a_quarter_of_the_middle_channels(small_config):
    small_config["blocks"][1]["conv"] |= {"use_se": True, "mid_channels": 72}
    assert blueprint_of(small_config, 32)[2].c_se == 24  # 72 // 4 = 18, to a multiple of 8 and not more than 10 % down


def test_a_network_of_another_form_is_not_written():
    blueprint = SPACE.blueprint(SPACE.smallest())
    for wrong in (blueprint[:-1], (blueprint[0], *blueprint[-4:]), (*blueprint[:3], blueprint[0], *blueprint[3:])):
        with pytest.raises(ArchError, match=r"net\.config can hold"):
            net_config(wrong)


# -- bad files -------------------------------------------------------------------------------------------------


def broken(path, value):
    """A change of one entry, e.g. ("blocks", 0, "conv", "kernel_size")."""

    def change(config):
        target = config
        for key in path[:-1]:
            target = target[key]
        target[path[-1]] = value

    return change


BLOCK = ("blocks", 1, "conv")
BAD = [
    (("name",), "MobileNetV2", "name must be MobileNetV3, ProxylessNASNets or ResNets"),
    (("bn",), None, "bn must be an object"),
    (("bn", "eps"), 0, "eps"),
    (("blocks",), {}, "list of 1 to 1000 blocks"),
    (("blocks",), [], "list of 1 to 1000 blocks"),
    (("blocks", 0), 3, "block 0 must be an object"),
    (("blocks", 0, "name"), [1], "name of block 0"),
    ((*BLOCK, "kernel_size"), 4, "odd"),
    ((*BLOCK, "kernel_size"), 10**9, "whole number from 1"),
    ((*BLOCK, "in_channels"), True, "in_channels of block 1"),
    ((*BLOCK, "out_channels"), 32, "shortcut adds"),
    ((*BLOCK, "mid_channels"), 24, "widen"),
    ((*BLOCK, "expand_ratio"), "6", "expand_ratio of block 1"),
    ((*BLOCK, "act_func"), "swish", "act_func of block 1"),
    ((*BLOCK, "act_func"), {}, "act_func of block 1"),
    ((*BLOCK, "use_se"), "yes", "use_se of block 1"),
    (("blocks", 1, "shortcut"), {"name": "ConvLayer"}, "shortcut of block 1"),
    (("first_conv", "in_channels"), 1, "3 channels"),
    (("first_conv", "groups"), 2, "groups of first_conv"),
    (("first_conv", "bias"), True, "bias of first_conv"),
    (("feature_mix_layer",), None, "feature_mix_layer must be an object"),
    (("classifier", "out_features"), -1, "out_features of classifier"),
    (("classifier", "in_features"), 49, "48 channels"),
]  # fmt: skip


@pytest.mark.parametrize(("path", "value", "why"), BAD, ids=[f"{'.'.join(map(str, p))}={v}" for p, v, _ in BAD])
def test_a_wrong_entry_is_named(small_config, tmp_path, path, value, why):
    broken(path, value)(small_config)
    (tmp_path / "net.config").write_text(json.dumps(small_config))
    (tmp_path / "run.config").write_text(json.dumps(run_config(32)))
    with pytest.raises(FormatError, match=why) as error:
        read_net_config(tmp_path / "net.config")
    assert str(error.value).startswith(f"{tmp_path / 'net.config'} must be a net.config of once-for-all")


@pytest.mark.parametrize("run", ['{"image_size": 0}', f'{{"image_size": {RESOLUTION_LIMIT + 1}}}', '{"image_size": [32]}', "[]"])
def test_an_input_size_that_is_none_is_refused(small_config, tmp_path, run):
    (tmp_path / "net.config").write_text(json.dumps(small_config))
    (tmp_path / "run.config").write_text(run)
    with pytest.raises(FormatError, match=r"image_size|run\.config must be an object"):
        read_net_config(tmp_path / "net.config")


def test_a_net_config_needs_its_run_config(small_config, tmp_path):
    (tmp_path / "net.config").write_text(json.dumps(small_config))
    with pytest.raises(NotFoundError, match=r"run\.config"):
        read_net_config(tmp_path / "net.config")


@pytest.mark.parametrize(("path", "value"), [(("first_conv", "use_se"), True), (("bn", "ws_eps"), 1e-5), ((*BLOCK, "groups"), 1)])
def test_what_would_be_computed_otherwise_is_refused(small_config, path, value):
    """A depthwise filter of one group is a dense one."""
    broken(path, value)(small_config)
    with pytest.raises(FormatError, match=path[-1]):
        blueprint_of(small_config, 32)


def test_a_squeeze_excite_of_another_width_is_not_written():
    blueprint = list(SPACE.blueprint(SPACE.smallest()))
    place = next(i for i, spec in enumerate(blueprint) if spec.c_se)
    blueprint[place] = replace(blueprint[place], c_se=blueprint[place].c_se + 8)
    with pytest.raises(ArchError, match=f"layer {place} of this one would be built otherwise"):
        net_config(tuple(blueprint))
