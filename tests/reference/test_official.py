"""Once-for-all's and CompOFA's checkpoints compute here what they compute there."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from checkpoints import SMALL, state
from foreign import image

from ofasearch.space.core import Settings
from ofasearch.space.families import get_space
from ofasearch.supernet.foreign_keys import Naming
from ofasearch.supernet.importers import load_official
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import sort_channels

OUTPUTS = np.load(Path(__file__).with_name("ofa_outputs.npz"))
REFERENCES = sorted({key.rpartition("-")[0] for key in OUTPUTS})  # e.g. ofa-mbv3-w1.0-matrices


@pytest.fixture(scope="module", params=REFERENCES)
def reference(request, saved):
    """The name of what was computed there, and the weights imported here: what takes it runs together, weights are made once."""
    space, _, kind = request.param.rpartition("-")
    path = saved("reference", {"state_dict": state(space, matrices=kind == "matrices")})
    weights = load_official(path)
    path.unlink()
    return request.param, weights


def codes_of(space, *, e, d, r, ks=None, w=None):
    """The codes of one network, by the published settings."""
    rows = {name: None if values is None else np.array(values)[None] for name, values in (("ks", ks), ("e", e), ("d", d), ("w", w))}
    rows["ks"] = np.zeros((1, 0), np.int64) if ks is None else rows["ks"]
    return space.with_resolutions([r]).from_settings(Settings(r=np.array([r]), **rows))[0]


def logits(supernet, codes, resolution, number):
    """Logits of one subnet, batch norm as stored; weights do not depend on the resolution."""
    space = supernet.space.with_resolutions([resolution])
    with torch.no_grad():
        return supernet.eval()(torch.from_numpy(image(resolution, number)), space.blueprint(codes))[0].numpy()


def referred(name, number):
    """The codes and the resolution of one subnet of a reference."""
    fields = {key: OUTPUTS[f"{name}-{key}"][number] for key in ("ks", "e", "d", "w") if f"{name}-{key}" in OUTPUTS}
    resolution = int(OUTPUTS[f"{name}-r"][number, 0])
    return codes_of(get_space(name.rpartition("-")[0]), r=resolution, **fields), resolution


def assert_as_there(name, weights, field, numbers):
    """Equal to 1e-5 of the largest logit."""
    supernet, expected = Supernet.from_arrays(weights.space, weights.arrays), OUTPUTS[f"{name}-{field}"]
    for number in numbers:
        found = logits(supernet, *referred(name, number), number)[: expected.shape[1]]
        assert np.abs(found - expected[number]).max() < 1e-5 * np.abs(expected).max(), number


def test_subnets_compute_what_once_for_all_computes(reference):
    name, weights = reference
    expected = OUTPUTS[f"{name}-logits"]
    assert len({referred(name, number)[0].tobytes() for number in range(20)}) == len(expected) == 20
    assert np.abs(expected[0] - expected[1]).max() > 1e-3 * np.abs(expected).max()  # subnets differ by far more than the tolerance
    assert_as_there(name, weights, "logits", range(4))


@pytest.mark.slow
def test_all_twenty_subnets_compute_what_once_for_all_computes(reference):
    assert_as_there(*reference, "logits", range(20))


def test_sorted_channels_compute_what_once_for_all_computes_with_its_own(reference):
    """Narrow subnets are others than before: they have the channels that the sorting has put first."""
    name, weights = reference
    sorted_ = replace(weights, arrays=sort_channels(weights.arrays, weights.space))
    assert_as_there(name, sorted_, "sorted", range(2))
    before, after = OUTPUTS[f"{name}-logits"][:2], OUTPUTS[f"{name}-sorted"][:2]
    assert np.abs(before - after).max() > 1e-3 * np.abs(before).max()


ORDERS = {  # whose order a reference tells: the layer inside the slot, and that after it, whose weights say what matters
    "ofa-mbv3-w1.0": (("s2.b4.depth", "s2.b4.project"),),
    "ofa-mbv3-w1.2": (("s5.b4.depth", "s5.b4.project"),),
    "ofa-proxyless-w1.3": (("s6.b1.depth", "s6.b1.project"),),
    "ofa-resnet50": (("s3.b1.conv1", "s3.b1.conv2"), ("s3.b1.conv2", "s3.b1.conv3")),
}


def test_channels_are_sorted_as_once_for_all_sorts_them(reference):
    name, weights = reference
    after = sort_channels(weights.arrays, weights.space)
    for number, (layer, following) in enumerate(ORDERS[weights.space.name]):
        order, means = OUTPUTS[f"{name}-order{number}"], weights.arrays[f"{layer}.bn.running_mean"]
        importance = np.abs(weights.arrays[f"{following}.conv.weight"]).sum(axis=(0, 2, 3))[order]
        assert (np.diff(importance) < 1e-6 * importance[0]).all()  # equal ones to rounding may stand in any order
        assert (after[f"{layer}.bn.running_mean"] == means[order]).mean() > 0.99
        assert (means[order] != means).mean() > 0.9


COMPOFA = [("ofa-mbv3-w1.0", (3, 5, 3, 3, 5)), ("ofa-proxyless-w1.3", (3,) * 6)]


@pytest.mark.parametrize(("base", "kernels"), COMPOFA)
def test_a_compofa_file_holds_its_fixed_kernels(saved, base, kernels):
    """Cut to the kernel of each stage, the network computes what once-for-all computes with these kernels."""
    content = {"state_dict": state(base, Naming(old=True), matrices=False)}
    compofa = load_official(saved("model_best_compofa_simple.pth.tar", content))
    assert compofa.space.name == f"comp{base}"
    stages = range(1, len(kernels) + 1)
    assert tuple(compofa.arrays[f"s{stage}.b1.depth.conv.weight"].shape[-1] for stage in stages) == kernels
    blocks = [kernel for stage, kernel in zip(stages, kernels, strict=True) for _ in range(1 if stage == 6 else 4)]
    settings = {"ks": blocks, "e": [4] * len(blocks), "d": [3] * len(kernels), "r": 160}
    expands = {**settings, "e": [6] * len(blocks), "d": [4] * len(kernels)}
    whole = load_official(saved("whole", content))
    for chosen in (settings, expands) if base == "ofa-mbv3-w1.0" else (expands,):  # the last stage of ProxylessNAS has one ratio for all
        ours, theirs = (logits(Supernet.from_arrays(w.space, w.arrays), codes_of(w.space, **chosen), 160, 0) for w in (compofa, whole))
        assert np.abs(ours - theirs).max() < 1e-5


TEACHERS = [
    ("ofa-mbv3-cifar", "ofa-mbv3-cifar-d4-e6-k7"),
    ("ofa-proxyless-cifar", "ofa-proxyless-cifar-d4-e6-k7"),
    ("ofa-resnet50-cifar", "ofa-resnet50-cifar-d2-ec-w2"),
]


@pytest.mark.parametrize(("base", "part"), TEACHERS)
def test_a_teacher_is_one_network(saved, base, part):
    """A static file holds the full network alone, whatever its name says."""
    weights = load_official(saved("ofa_D234_E6_K7", {"state_dict": state(base, Naming(static=True), matrices=False)}))
    assert (weights.space.name, weights.space.size) == (part, 1)
    whole = load_official(saved("whole", {"state_dict": state(base, matrices=False)}))
    one, full = (logits(Supernet.from_arrays(w.space, w.arrays), w.space.largest(), 32, 0) for w in (weights, whole))
    assert np.array_equal(one, full)


# -- sorted channels ------------------------------------------------------------------------------------------

KEPT = {"ofa-mbv3-cifar": (4, "s2.b2.project"), "ofa-proxyless-cifar": (4, "s2.b2.project"), "ofa-resnet50-cifar": (0.25, "s2.b2.conv3")}


def of_ratio(space, index):
    """The largest network but for its expand ratios, of which it has that number `index` in all blocks that can."""
    codes = space.largest()
    for column, gene in enumerate(space.genes):
        if gene.reads[0] == "e" and space.expands[index] in gene.choices:
            codes[column] = gene.choices.index(space.expands[index]) + 1
    return codes


@pytest.mark.parametrize("keep", [False, True], ids=["all", "kept"])
@pytest.mark.parametrize("name", SMALL)
def test_sorting_channels_keeps_the_function_at_full_width(saved, name, keep):
    weights = load_official(saved("whole", {"state_dict": state(name)}))
    sorted_ = sort_channels(weights.arrays, weights.space, kept=KEPT[name][0] if keep else None)
    after, before = Supernet.from_arrays(weights.space, sorted_), Supernet.from_arrays(weights.space, weights.arrays)
    rng = np.random.default_rng(0)

    def drift(codes):
        ours, theirs = (logits(supernet, codes, 32, 0) for supernet in (after, before))
        return np.abs(ours - theirs).max() / np.abs(theirs).max()

    wide = [gene.name.endswith((".expand", ".width")) for gene in weights.space.genes]  # a ResNet's widths narrow its blocks inside too
    for codes in (weights.space.largest(), *weights.space.sample(3, rng)):
        assert drift(np.where(wide & (codes > 0), weights.space.sizes, codes)) < 1e-5
    narrow = drift(of_ratio(weights.space, 1))
    assert narrow < 1e-5 if keep else narrow > 1e-3  # kept channels keep their subnets, others are chosen anew


@pytest.mark.parametrize("name", SMALL)
def test_sorted_channels_descend(saved, name):
    weights = load_official(saved("whole", {"state_dict": state(name)}))
    kept, layer = KEPT[name]
    (spec,) = [s for s in weights.space.blueprint(of_ratio(weights.space, 1)) if s.slot == layer.rpartition(".")[0]]
    for ratio, boundary in ((None, 0), (kept, spec.c_mid)):
        arrays = sort_channels(weights.arrays, weights.space, kept=ratio)
        importance = np.abs(arrays[f"{layer}.conv.weight"]).sum(axis=(0, 2, 3))
        assert 0 <= boundary < len(importance)
        assert all((np.diff(part) <= 0).all() for part in (importance[:boundary], importance[boundary:]))
