"""Once-for-all's and CompOFA's files, whatever way they were saved: what they are, what is wrong with them, converted."""

import numpy as np
import pytest
import torch
from checkpoints import SMALL, names_of, state

from ofasearch.errors import FormatError, MismatchError, NotFoundError
from ofasearch.space.families import get_space
from ofasearch.supernet.foreign_keys import Naming, family_of_keys, family_of_space
from ofasearch.supernet.importers import examine, load_official
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import load_weights, matrix_shapes, new_head, save_weights

PUBLISHED = ("ofa-mbv3-w1.0", "ofa-mbv3-w1.2", "ofa-proxyless-w1.3", "ofa-resnet50")
NAMINGS = (Naming(), Naming(old=True), Naming(static=True), Naming(old=True, static=True))


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3, "best_acc": np.float64(76.1)}], ids=["bare", "wrapped"]
)
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize(("space", "old"), [*((name, False) for name in SMALL), *((name, True) for name in SMALL[:2])])
def test_every_way_of_saving_gives_the_same_weights(saved, space, old, prefix, wrap):
    content = {prefix + name: tensor for name, tensor in state(space, Naming(old=old)).items()}
    found = examine(saved("x", wrap(content)))
    assert found.naming.startswith("old" if old else "new")
    assert (found.space, found.matrices, found.problems) == (space, len(matrix_shapes(get_space(space))), ())
    assert found.weights().digest == examine(saved("plain", state(space))).weights().digest


@pytest.mark.parametrize("naming", NAMINGS, ids=str)
@pytest.mark.parametrize("space", PUBLISHED)
def test_names_translate_back(space, naming):
    family, names = family_of_space(space), names_of(space, naming)
    assert family_of_keys(names) is family
    assert family.naming(names) == (naming if "resnet" not in space else Naming(static=naming.static))
    for name in names:
        assert name.endswith("num_batches_tracked") or family.their_key(family.our_key(name), naming) == name


@pytest.mark.parametrize(
    ("space", "name", "key"),
    [
        ("ofa-mbv3-w1.0", "blocks.1.conv.depth_conv.conv.conv.weight", "s1.b1.depth.conv.weight"),
        ("ofa-mbv3-w1.0", "blocks.20.mobile_inverted_conv.depth_conv.se.fc.reduce.bias", "s5.b4.se.reduce.bias"),
        ("ofa-mbv3-w1.0", "blocks.7.mobile_inverted_conv.depth_conv.conv.7to5_matrix", "s2.b3.depth.7to5"),
        ("ofa-mbv3-w1.0", "blocks.21.conv.depth_conv.conv.conv.weight", None),
        ("ofa-mbv3-w1.0", "layer1.0.conv1.weight", None),
        ("ofa-proxyless-w1.3", "blocks.21.conv.point_linear.bn.bn.bias", "s6.b1.project.bn.bias"),
        ("ofa-proxyless-w1.3", "feature_mix_layer.bn.running_var", "head.feature.bn.running_var"),
        ("ofa-proxyless-w1.3", "final_expand_layer.conv.weight", None),
        ("ofa-resnet50", "input_stem.1.conv.conv.conv.weight", "stem.second.conv.weight"),
        ("ofa-resnet50", "input_stem.2.bn.bn.weight", "stem.third.bn.weight"),
        ("ofa-resnet50", "blocks.13.conv2.conv.conv.weight", "s3.b6.conv2.conv.weight"),
        ("ofa-resnet50", "blocks.14.downsample.bn.bn.running_mean", "s4.b1.down.bn.running_mean"),
        ("ofa-resnet50", "classifier.linear.linear.bias", "head.classifier.linear.bias"),
        ("ofa-resnet50", "blocks.18.conv1.conv.conv.weight", None),
    ],
)
def test_keys_of_all_families_are_known(space, name, key):
    assert family_of_space(space).our_key(name) == key


def test_the_elastic_compofa_file_is_known_by_its_name(saved):
    content = {"state_dict": state("ofa-mbv3-w1.0", Naming(old=True), matrices=False)}
    assert load_official(saved("model_best_compofa_simple_elastic.pth.tar", content)).space.name == "compofa-mbv3-elastic-w1.0"


@pytest.mark.parametrize(
    ("space", "name"), [("ofa-proxyless-cifar", "model_best_compofa_simple_elastic.pth.tar"), ("ofa-resnet50-cifar", "compofa.pth")]
)
def test_what_compofa_never_trained_is_not_guessed(saved, space, name):
    path = saved(name, state(space))
    with pytest.raises(MismatchError, match=rf"of a family that CompOFA has trained so, but is {space}; pass --space"):
        examine(path)
    assert examine(path, space).problems == ()


@pytest.mark.parametrize(
    ("name", "space", "size"),
    [
        ("ofa_D4_E6_K357", "ofa-mbv3-cifar-d4-e6-k357", 3**20),
        ("ofa_D34_E6_K357", "ofa-mbv3-cifar-d34-e6-k357", (3**3 + 3**4) ** 5),
        ("ofa_D234_E46_K357", "ofa-mbv3-cifar-d234-e46-k357", (6**2 + 6**3 + 6**4) ** 5),
        ("ofa_mbv3_d234_e346_k357_w1.0", "ofa-mbv3-cifar", (9**2 + 9**3 + 9**4) ** 5),
        ("checkpoint.pth.tar", "ofa-mbv3-cifar", (9**2 + 9**3 + 9**4) ** 5),
        ("ofa_D34_E6_K357", "ofa-proxyless-cifar-d34-e6-k357", (3**3 + 3**4) ** 5 * 3),
        ("ofa_proxyless_d234_e346_k357_w1.3", "ofa-proxyless-cifar", (9**2 + 9**3 + 9**4) ** 5 * 9),
        ("ofa_resnet50_d0-1-2_e0.2-0.25-0.35_w0.65-0.8-1.0", "ofa-resnet50-cifar", None),
        ("ofa_resnet50_d=0+1+2_e=0.2+0.25+0.35_w=0.65+0.8+1.0", "ofa-resnet50-cifar", None),
        ("ofa_resnet50_d1-2_e0.25-0.35_w1.0.pth.tar", "ofa-resnet50-cifar-d12-ebc-w2", None),
        ("ofa_supernet_resnet50", "ofa-resnet50-cifar", None),
    ],
)
def test_a_phase_is_the_space_of_its_subnets(saved, name, space, size):
    base = next(small for small in SMALL if space.startswith(small))
    weights = load_official(saved(name, {"state_dict": state(base)}))
    assert weights.space.name == space
    assert size is None or weights.space.size == size
    assert get_space(space).parent in (None, base)
    Supernet.from_arrays(weights.space, weights.arrays)


def test_the_user_can_say_what_was_trained(saved):
    path = saved("checkpoint.pth.tar", state("ofa-mbv3-w1.0"))
    assert load_official(path, "compofa-mbv3-elastic-w1.0").space.name == "compofa-mbv3-elastic-w1.0"
    with pytest.raises(MismatchError, match=r"--space must be ofa-mbv3-w1\.0 or a part of it"):
        load_official(path, "ofa-mbv3-w1.2")
    with pytest.raises(NotFoundError, match="space must be one of"):
        load_official(path, "ofa-mbv3-w1.0-d23-e6-k7")


@pytest.mark.parametrize("space", SMALL)
def test_a_file_of_another_family_is_refused(saved, space):
    path = saved("checkpoint.pth.tar", state(space))
    for other in SMALL:
        if other != space:
            with pytest.raises(MismatchError, match=rf"--space must be {space} or a part of it for .*, but got {other}"):
                load_official(path, other)


# -- what is wrong is named -----------------------------------------------------------------------------------

PROJECTS = {  # a convolution and a bias of one block, and the width of the bias
    "ofa-mbv3-cifar": ("blocks.3.conv.point_linear.conv.conv.weight", "blocks.2.conv.depth_conv.bn.bn.bias", 96),
    "ofa-proxyless-cifar": ("blocks.21.conv.point_linear.conv.conv.weight", "blocks.1.conv.depth_conv.bn.bn.bias", 48),
    "ofa-resnet50-cifar": ("blocks.3.conv3.conv.conv.weight", "blocks.17.conv2.bn.bn.bias", 176),
}
BIAS = {space: "classifier.linear.linear.bias" if "resnet" in space else "classifier.linear.bias" for space in SMALL}


@pytest.mark.parametrize("space", SMALL)
def test_missing_and_unknown_keys_are_named(saved, space):
    key, unknown = PROJECTS[space][0], "blocks.3.conv.attention.weight"
    content = state(space)
    del content[key]
    found = examine(saved("spoiled", content | {unknown: torch.zeros(3)}))
    assert (found.missing, found.unknown) == ((key,), (unknown,))
    with pytest.raises(MismatchError, match=rf"weights of {space}, but it lacks {key}, it has the unknown {unknown}"):
        found.weights()


@pytest.mark.parametrize("naming", NAMINGS, ids=str)
@pytest.mark.parametrize("space", SMALL)
def test_what_is_missing_is_named_as_the_file_would_name_it(saved, space, naming):
    if naming.old and "resnet" in space:
        pytest.skip("ResNets have one naming")
    content = state(space, naming, matrices=False)
    lost = [name for name in content if not name.endswith("num_batches_tracked") and name.startswith("blocks.3.")]
    assert len(lost) in (15, 19)
    for name in lost:
        del content[name]
    assert set(examine(saved("spoiled", content)).missing) == set(lost)


@pytest.mark.parametrize("space", SMALL[:2])
def test_a_missing_matrix_is_missed_where_others_are_there(saved, space):
    content = state(space)
    del content["blocks.9.conv.depth_conv.conv.5to3_matrix"]
    found = examine(saved("spoiled", content))
    assert found.matrices == len(matrix_shapes(get_space(space))) - 1
    assert found.missing == ("blocks.9.conv.depth_conv.conv.5to3_matrix",)


@pytest.mark.parametrize("space", SMALL)
def test_shapes_and_nans_are_named(saved, space):
    _, key, width = PROJECTS[space]
    content = state(space)
    content[key] = torch.zeros(7)
    content[BIAS[space]][3] = float("nan")
    found = examine(saved("spoiled", content))
    assert found.misshapen == (f"{key} (7 for {width})",)
    assert found.not_finite == (BIAS[space],)
    with pytest.raises(FormatError, match=rf"NaN or infinity in {BIAS[space]}"):
        found.weights()


@pytest.mark.parametrize("space", SMALL)
def test_numbers_that_no_network_has_are_refused(saved, space):
    key = PROJECTS[space][1].replace("bias", "running_var")
    for value, text in ((-1.0, "variances of at least 0"), (1e30, "a number beyond 1e\\+09")):
        content = state(space)
        content[key][0] = value
        with pytest.raises(FormatError, match=text):
            load_official(saved("absurd", content))


def with_head(content, space, weight, bias):
    """The same checkpoint with another classifier."""
    name = BIAS[space]
    return content | {name.replace("bias", "weight"): weight, name: bias}


@pytest.mark.parametrize("space", SMALL)
def test_heads_that_do_not_fit_are_named(saved, space):
    content = state(space)
    name = BIAS[space]
    weight, bias = content[name.replace("bias", "weight")], content[name]
    assert weight.shape[0] == 10
    found = examine(saved("head", with_head(content, space, torch.zeros(1000, weight.shape[1]), bias)))
    assert (found.classes, found.misshapen) == (1000, (f"{name} (10 for 1000)",))
    found = examine(saved("head", with_head(content, space, weight[:, :9].clone(), bias)))
    assert found.misshapen == (f"{name.replace('bias', 'weight')} (10x9 for 10x{weight.shape[1]})",)
    for shape, told in (((10,), "10"), ((0, weight.shape[1]), f"0x{weight.shape[1]}"), ((10, 3, 1, 1), "10x3x1x1"), ((), "a scalar")):
        path = saved("head", with_head(content, space, torch.zeros(shape), bias))
        with pytest.raises(
            FormatError, match=rf"must have in {name.replace('bias', 'weight')} a row for each class, but its shape is {told}"
        ):
            examine(path)


@pytest.mark.parametrize("space", SMALL)
def test_a_file_without_its_ends_is_refused(saved, space):
    content = {name: tensor for name, tensor in state(space).items() if not name.startswith("classifier")}
    title = family_of_space(space).title
    with pytest.raises(FormatError, match=rf"a whole {title} supernet, but it has no {BIAS[space].replace('bias', 'weight')}"):
        load_official(saved("headless", content))


@pytest.mark.parametrize("space", SMALL)
@pytest.mark.parametrize("size", [0, 100, 0.5, -1])
def test_a_truncated_file_is_refused(saved, space, size):
    path = saved("cut", state(space))
    whole = path.read_bytes()
    path.write_bytes(whole[: int(size * len(whole)) if size == 0.5 else size])
    with pytest.raises(FormatError, match="it cannot be read"):
        load_official(path)


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], "holds list, not a dictionary"),
        ({"state_dict": [1]}, "under 'state_dict' is list"),
        ({"a": 1}, "'a' is int"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, "dense floating-point"),
        ({"a": torch.zeros(2)}, "holds the keys of none: MobileNetV3 has keys with final_expand_layer.*ResNet50 has keys with input_stem"),
        ({"first_conv.conv.weight": torch.zeros(2)}, "a whole ProxylessNAS supernet, but it has no feature_mix_layer.conv.weight"),
        ({"a": torch.zeros(1).expand(10**12)}, "claims more than it holds"),
    ],
    ids=["list", "wrapped-list", "number", "integers", "foreign", "part", "huge"],
)
def test_other_files_are_refused(saved, content, match):
    with pytest.raises(FormatError, match=match):
        load_official(saved("other", content))


STEMS = {
    "ofa-mbv3-cifar": ("first_conv.conv.weight", r"16, 960, 1280 \(ofa-mbv3-w1\.0\).*but has 20, 480, 640"),
    "ofa-proxyless-cifar": ("first_conv.conv.weight", r"40, 1664 \(ofa-proxyless-w1\.3\).*but has 20, 640"),
    "ofa-resnet50-cifar": ("input_stem.0.conv.conv.weight", r"32, 64 \(ofa-resnet50\).*but has 20, 16"),
}


@pytest.mark.parametrize("space", SMALL)
def test_another_width_is_refused_with_the_known_ones(saved, space):
    name, text = STEMS[space]
    with pytest.raises(FormatError, match=rf"must have in {name}, .* the channels of one of .*{text}"):
        load_official(saved("wide", state(space) | {name: torch.zeros(20, 3, 3, 3)}))


# -- conversion -----------------------------------------------------------------------------------------------


PARTS = [
    ("ofa-mbv3-cifar", "ofa_D34_E6_K357", "ofa-mbv3-cifar-d34-e6-k357"),
    ("ofa-proxyless-cifar", "ofa_D34_E6_K357", "ofa-proxyless-cifar-d34-e6-k357"),
    ("ofa-resnet50-cifar", "ofa_d1-2_e0.35_w1.0", "ofa-resnet50-cifar-d12-ec-w2"),
]


@pytest.mark.parametrize(("base", "name", "part"), PARTS)
def test_a_converted_file_is_the_same_supernet(saved, tmp_path, base, name, part):
    weights = load_official(saved(name, {"state_dict": state(base, classes=12)}))
    save_weights(tmp_path / "x.safetensors", weights)
    again = load_weights(tmp_path / "x.safetensors")
    assert (again.digest, again.space.name, again.space.classes) == (weights.digest, part, 12)
    assert again.preprocessing == weights.preprocessing
    assert weights.preprocessing.crop_pct == 0.875


@pytest.mark.parametrize("space", SMALL)
def test_a_new_head_changes_the_classifier_alone(saved, space):
    weights = load_official(saved("whole", {"state_dict": state(space)}))
    swapped = new_head(weights, 7, np.random.default_rng(0))
    changed = {key for key, array in swapped.arrays.items() if not np.array_equal(array, weights.arrays[key])}
    assert changed == {"head.classifier.linear.weight", "head.classifier.linear.bias"}
    matrix = swapped.arrays["head.classifier.linear.weight"]
    assert matrix.shape == (7, weights.arrays["head.classifier.linear.weight"].shape[1])
    assert 0.5 < matrix.std() * matrix.shape[1] ** 0.5 < 2
    assert swapped.space.classes == 7
    assert "untrained" in swapped.training["head"]
    Supernet.from_arrays(swapped.space, swapped.arrays)
