"""Once-for-all's and CompOFA's checkpoints compute here what they compute there, whatever way they were saved."""

from pathlib import Path

import numpy as np
import pytest
import torch
from foreign import foreign_state, image

from ofasearch.errors import FormatError, MismatchError, NotFoundError
from ofasearch.space.core import Settings
from ofasearch.space.families import get_space
from ofasearch.supernet.importers import examine, load_official, our_key, their_key
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import full_shapes, load_weights, matrix_shapes, new_head, save_weights, sort_channels

OUTPUTS = np.load(Path(__file__).with_name("ofa_outputs.npz"))
WIDTHS = ("1.0", "1.2")


def names_of(width, *, matrices=True, old=False, static=False, classes=1000):
    """Once-for-all's names and shapes of a whole supernet."""
    space = get_space(f"ofa-mbv3-w{width}", classes=classes)
    shapes = full_shapes(space) | (matrix_shapes(space) if matrices else {})
    named = {their_key(key, old=old, static=static): shape for key, shape in shapes.items()}
    counters = {name.removesuffix("running_mean") + "num_batches_tracked": () for name in named if name.endswith("running_mean")}
    return named | counters


def state(width, **kinds):
    """A random state dict as torch saves it; values follow the new elastic names, as the reference's do."""
    new = list(names_of(width, matrices=kinds.get("matrices", True), classes=kinds.get("classes", 1000)).items())
    names = names_of(width, **kinds)
    values = foreign_state(dict(new))
    return {name: torch.from_numpy(values[key]) for name, (key, _) in zip(names, new, strict=True)}


@pytest.fixture(scope="module")
def saved(tmp_path_factory):
    """Writes a checkpoint once per content."""
    folder = tmp_path_factory.mktemp("official")

    def write(name, content):
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        torch.save(content, path)
        return path

    return write


def logits(weights, settings, resolution, number):
    """Logits of one subnet, batch norm as stored."""
    return supernet_logits(Supernet.from_arrays(weights.space, weights.arrays), settings, resolution, number)


def supernet_logits(supernet, settings, resolution, number):
    space = supernet.space.with_resolutions([resolution])
    arch = settings[None].astype(np.int64)
    codes = space.from_settings(Settings(arch[:, :20], arch[:, 20:40], arch[:, 40:45], arch[:, 45]))[0]
    network = supernet.extract(codes).eval()  # weights do not depend on the resolution
    with torch.no_grad():
        return network(torch.from_numpy(image(resolution, number)))[0].numpy()


@pytest.mark.parametrize("kind", ["matrices", "crops"])
@pytest.mark.parametrize("width", WIDTHS)
def test_twenty_subnets_compute_what_once_for_all_computes(saved, width, kind):
    weights = load_official(saved(f"{kind}-{width}", {"state_dict": state(width, matrices=kind == "matrices")}))
    settings, expected = OUTPUTS[f"w{width}-{kind}-settings"], OUTPUTS[f"w{width}-{kind}-logits"]
    supernet = Supernet.from_arrays(weights.space, weights.arrays)
    found = np.stack([supernet_logits(supernet, row, int(row[-1]), i)[: expected.shape[1]] for i, row in enumerate(settings)])
    assert len({row.tobytes() for row in settings}) == 20
    assert np.abs(expected[0] - expected[1]).max() > 1e-3  # subnets differ by far more than the tolerance
    assert np.abs(found - expected).max() < 1e-5


@pytest.mark.parametrize(
    "wrap", [lambda s: s, lambda s: {"state_dict": s, "epoch": 3, "best_acc": np.float64(76.1)}], ids=["bare", "wrapped"]
)
@pytest.mark.parametrize("prefix", ["", "module."])
@pytest.mark.parametrize("old", [False, True], ids=["new", "old"])
def test_every_way_of_saving_gives_the_same_weights(saved, old, prefix, wrap):
    content = {prefix + name: tensor for name, tensor in state("1.0", old=old).items()}
    found = examine(saved(f"{old}{prefix}{wrap({}) == {}}", wrap(content)))
    assert found.naming.startswith("old" if old else "new")
    assert (found.matrices, found.classes, found.problems) == (40, 1000, ())
    reference = examine(saved("plain", state("1.0")))
    assert found.weights().digest == reference.weights().digest


def test_names_translate_back():
    for old in (False, True):
        for static in (False, True):
            for name in names_of("1.0", old=old, static=static):
                key = our_key(name)
                assert name.endswith("num_batches_tracked") or their_key(key, old=old, static=static) == name
    assert our_key("blocks.1.conv.depth_conv.conv.conv.weight") == "s1.b1.depth.conv.weight"
    assert our_key("blocks.20.mobile_inverted_conv.depth_conv.se.fc.reduce.bias") == "s5.b4.se.reduce.bias"
    assert our_key("blocks.7.mobile_inverted_conv.depth_conv.conv.7to5_matrix") == "s2.b3.depth.7to5"
    assert our_key("layer1.0.conv1.weight") is None


def test_a_compofa_file_holds_its_fixed_kernels(saved):
    """Cut to 3, 5, 3, 3, 5 by stage, the network computes what once-for-all computes with these kernels."""
    content = {"state_dict": state("1.0", matrices=False, old=True)}
    compofa = load_official(saved("model_best_compofa_simple.pth.tar", content))
    assert compofa.space.name == "compofa-mbv3-w1.0"
    sizes = [compofa.arrays[f"s{stage}.b1.depth.conv.weight"].shape[-1] for stage in range(1, 6)]
    assert sizes == [3, 5, 3, 3, 5]
    whole = load_official(saved("whole", content))
    settings = np.array([*(k for k in (3, 5, 3, 3, 5) for _ in range(4)), *[4] * 20, *[3] * 5, 160])
    assert np.abs(logits(compofa, settings, 160, 0) - logits(whole, settings, 160, 0)).max() < 1e-5


def test_the_elastic_compofa_file_is_known_by_its_name(saved):
    content = {"state_dict": state("1.0", matrices=False, old=True)}
    assert load_official(saved("model_best_compofa_simple_elastic.pth.tar", content)).space.name == "compofa-mbv3-elastic-w1.0"


@pytest.mark.parametrize(
    ("name", "space", "size"),
    [
        ("ofa_D4_E6_K357", "ofa-mbv3-w1.0-d4-e6-k357", 3**20),
        ("ofa_D34_E6_K357", "ofa-mbv3-w1.0-d34-e6-k357", (3**3 + 3**4) ** 5),
        ("ofa_D234_E46_K357", "ofa-mbv3-w1.0-d234-e46-k357", (6**2 + 6**3 + 6**4) ** 5),
        ("ofa_mbv3_d234_e346_k357_w1.0", "ofa-mbv3-w1.0", (9**2 + 9**3 + 9**4) ** 5),
        ("checkpoint.pth.tar", "ofa-mbv3-w1.0", (9**2 + 9**3 + 9**4) ** 5),
    ],
)
def test_a_phase_is_the_space_of_its_subnets(saved, name, space, size):
    weights = load_official(saved(name, {"state_dict": state("1.0")}))
    assert (weights.space.name, weights.space.size) == (space, size)
    assert get_space(space).parent in (None, "ofa-mbv3-w1.0")
    Supernet.from_arrays(weights.space, weights.arrays)


def test_a_teacher_is_one_network(saved):
    content = {"state_dict": state("1.0", static=True, matrices=False)}
    weights = load_official(saved("ofa_D4_E6_K7", content))
    assert (weights.space.name, weights.space.size) == ("ofa-mbv3-w1.0-d4-e6-k7", 1)
    settings = np.array([*[7] * 20, *[6] * 20, *[4] * 5, 128])
    whole = load_official(saved("whole", {"state_dict": state("1.0", matrices=False)}))
    assert np.abs(logits(weights, settings, 128, 0) - logits(whole, settings, 128, 0)).max() < 1e-5


def test_the_user_can_say_what_was_trained(saved):
    path = saved("checkpoint.pth.tar", state("1.0"))
    assert load_official(path, "compofa-mbv3-elastic-w1.0").space.name == "compofa-mbv3-elastic-w1.0"
    with pytest.raises(MismatchError, match=r"--space must be ofa-mbv3-w1\.0 or a part of it"):
        load_official(path, "ofa-mbv3-w1.2")
    with pytest.raises(NotFoundError, match="space must be one of"):
        load_official(path, "ofa-mbv3-w1.0-d23-e6-k7")


# -- sorted channels ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kept", [None, 4])
def test_sorting_channels_keeps_the_function_at_full_width(saved, kept):
    weights = load_official(saved("whole", {"state_dict": state("1.0")}))
    sorted_ = sort_channels(weights.arrays, weights.space, kept=kept)
    after, before = Supernet.from_arrays(weights.space, sorted_), Supernet.from_arrays(weights.space, weights.arrays)
    full = [6] * 20
    for number, (kernel, depth) in enumerate(((7, 4), (5, 3), (3, 2))):
        settings = np.array([*[kernel] * 20, *full, *[depth] * 5, 128])
        assert np.abs(supernet_logits(after, settings, 128, number) - supernet_logits(before, settings, 128, number)).max() < 1e-5
    narrow = np.array([*[7] * 20, *[4] * 20, *[4] * 5, 128])
    drift = np.abs(supernet_logits(after, narrow, 128, 0) - supernet_logits(before, narrow, 128, 0)).max()
    assert drift < 1e-5 if kept else drift > 1e-3  # kept channels keep their subnets, others are chosen anew


def test_sorted_channels_descend(saved):
    weights = load_official(saved("whole", {"state_dict": state("1.0")}))
    for kept in (None, 4):
        arrays = sort_channels(weights.arrays, weights.space, kept=kept)
        importance = np.abs(arrays["s2.b2.project.conv.weight"]).sum(axis=(0, 2, 3))
        parts = [importance] if kept is None else [importance[:160], importance[160:]]
        assert all((np.diff(part) <= 0).all() for part in parts)


# -- what is wrong is named -----------------------------------------------------------------------------------


def spoiled(change):
    content = state("1.0")
    change(content)
    return {"state_dict": content}


def test_missing_and_unknown_keys_are_named(saved):
    def change(content):
        del content["blocks.3.conv.point_linear.conv.conv.weight"]
        content["blocks.3.conv.attention.weight"] = torch.zeros(3)

    path = saved("spoiled", spoiled(change))
    found = examine(path)
    assert found.missing == ("blocks.3.conv.point_linear.conv.conv.weight",)
    assert found.unknown == ("blocks.3.conv.attention.weight",)
    with pytest.raises(MismatchError, match=r"lacks blocks\.3\.conv\.point_linear.*unknown blocks\.3\.conv\.attention\.weight"):
        found.weights()


def test_a_missing_matrix_is_missed_where_others_are_there(saved):
    found = examine(saved("spoiled", spoiled(lambda s: s.pop("blocks.9.conv.depth_conv.conv.5to3_matrix"))))
    assert (found.matrices, found.missing) == (39, ("blocks.9.conv.depth_conv.conv.5to3_matrix",))


def test_shapes_and_nans_are_named(saved):
    def change(content):
        content["blocks.2.conv.depth_conv.bn.bn.bias"] = torch.zeros(7)
        content["classifier.linear.bias"][3] = float("nan")

    found = examine(saved("spoiled", spoiled(change)))
    assert found.misshapen == ("blocks.2.conv.depth_conv.bn.bn.bias (7 for 144)",)
    assert found.not_finite == ("classifier.linear.bias",)
    with pytest.raises(FormatError, match=r"NaN or infinity in classifier\.linear\.bias"):
        found.weights()


@pytest.mark.parametrize(
    ("content", "match"),
    [
        ([1, 2], "holds list, not a dictionary"),
        ({"state_dict": [1]}, "under 'state_dict' is list"),
        ({"a": 1}, "'a' is int"),
        ({"a": torch.zeros(2, dtype=torch.int64)}, "dense floating-point"),
        ({"a": torch.zeros(2)}, "it has no first_conv.conv.weight"),
        ({"a": torch.zeros(1).expand(10**12)}, "claims more than it holds"),
    ],
    ids=["list", "wrapped-list", "number", "integers", "foreign", "huge"],
)
def test_other_files_are_refused(saved, content, match):
    with pytest.raises(FormatError, match=match):
        load_official(saved("other", content))


def test_another_width_is_refused_with_the_known_ones(saved):
    content = state("1.0")
    content["first_conv.conv.weight"] = torch.zeros(20, 3, 3, 3)
    with pytest.raises(FormatError, match=r"16, 960, 1280 \(ofa-mbv3-w1\.0\).*but has 20, 960, 1280"):
        load_official(saved("wide", content))


# -- conversion -----------------------------------------------------------------------------------------------


def test_a_converted_file_is_the_same_supernet(saved, tmp_path):
    weights = load_official(saved("ofa_D34_E6_K357", {"state_dict": state("1.0", classes=12)}))
    save_weights(tmp_path / "x.safetensors", weights)
    again = load_weights(tmp_path / "x.safetensors")
    assert (again.digest, again.space.name, again.space.classes) == (weights.digest, "ofa-mbv3-w1.0-d34-e6-k357", 12)
    assert again.preprocessing == weights.preprocessing
    assert weights.preprocessing.crop_pct == 0.875


def test_a_new_head_changes_the_classifier_alone(saved):
    weights = load_official(saved("whole", {"state_dict": state("1.0")}))
    swapped = new_head(weights, 7, np.random.default_rng(0))
    changed = {key for key, array in swapped.arrays.items() if not np.array_equal(array, weights.arrays[key])}
    assert changed == {"head.classifier.linear.weight", "head.classifier.linear.bias"}
    assert swapped.arrays["head.classifier.linear.weight"].shape == (7, 1280)
    assert 0.5 < swapped.arrays["head.classifier.linear.weight"].std() * 1280**0.5 < 2
    assert swapped.space.classes == 7
    assert "untrained" in swapped.training["head"]
    Supernet.from_arrays(swapped.space, swapped.arrays)
