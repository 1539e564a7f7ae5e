"""Once-for-all's predictor files: what each is, what it does not say, there and back without a digit lost."""

from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
import torch

from ofasearch import zoo
from ofasearch.errors import ArchError, FormatError, MismatchError, NotFoundError, UsageError
from ofasearch.predictor import TUTORIAL_ENCODER, Encoder, Predictor, blocks_encoder, load_predictor, save_predictor
from ofasearch.predictor.encode import Part
from ofasearch.predictor.foreign import load_foreign, save_foreign
from ofasearch.predictor.layouts import MBV2, MBV3, RESNET50, settings_of
from ofasearch.predictor.model import Certainty
from ofasearch.space.families import DESIGNS

PUBLISHED = (128, 144, 160, 176, 192, 224, 240, 256)


def mlp(encoder, *, width=400, seed=0, **facts):
    """A predictor of one member with drawn weights."""
    rng = np.random.default_rng(seed)
    sizes = list(pairwise((encoder.dims, width, width, width, 1)))
    weights = tuple((rng.normal(size=(1, *pair)) / pair[0] ** 0.5).astype(np.float32) for pair in sizes)
    biases = tuple((0.1 * rng.normal(size=(1, pair[1]))).astype(np.float32) for pair in sizes)
    return Predictor(encoder=encoder, weights=weights, biases=biases, **{"offset": 0.7512345678, "space": "ofa-mbv3-w1.0"} | facts)


def newer(inputs=82, *, width=4, **changes):
    """A file of the newer form with narrow layers; None removes an entry."""
    rng = np.random.default_rng(inputs)
    state = {"base_acc": torch.tensor([0.75])}
    for i, size in enumerate((inputs, width, width)):
        state |= {f"layers.{i}.0.weight": rng.normal(size=(width, size)), f"layers.{i}.0.bias": rng.normal(size=width)}
    state["layers.3.weight"] = 0.1 * rng.normal(size=(1, width))
    state = {key: torch.as_tensor(value).float() for key, value in state.items()} | changes
    return {key: value for key, value in state.items() if value is not None}


def saved(path, state):
    torch.save(state, path)
    return path


def same(first, second):
    """Whether two torch files hold the same entries to the bit."""
    a, b = (torch.load(path, map_location="cpu", weights_only=True) for path in (first, second))
    return a.keys() == b.keys() and all(torch.equal(a[key], b[key]) for key in a)


def drawn(layout, resolutions, n=40, seed=0):
    """Dictionaries of n random networks."""
    rng = np.random.default_rng(seed)
    fields = {part.field: part for part in layout.parts if part.field != "stem"}
    return [
        {name: rng.choice(part.choices, part.columns).tolist() for name, part in fields.items()}
        | {"d": [int(rng.choice(choices)) for choices in layout.depths], "image_size": int(rng.choice(resolutions))}
        for _ in range(n)
    ]


# -- what a file is --------------------------------------------------------------------------------------------


def test_the_published_resnet50_file_says_enough(shared_data):
    found = zoo.get_predictor(str(shared_data / "ofa" / "ofa_resnet50_acc_predictor.pth"))
    assert (found.space, found.encoder.dims, found.encoder.resolutions) == ("ofa-resnet50", 82, PUBLISHED)
    assert found.offset == pytest.approx(0.8056, abs=5e-5)
    top1 = found(settings_of(RESNET50, drawn(RESNET50, PUBLISHED)))
    assert 0.7 < top1.min() < top1.max() < 0.87  # fractions, of images held out of the training set


@pytest.mark.parametrize(
    ("inputs", "told", "space", "sizes"),
    [
        (82, {}, "ofa-resnet50", PUBLISHED),
        (75, {"resolutions": [224]}, "ofa-resnet50", (224,)),
        (82, {"resolutions": range(128, 241, 16)}, "ofa-resnet50", tuple(range(128, 241, 16))),
        (121, {"space": "ofa-mbv3-w1.2", "resolutions": [224]}, "ofa-mbv3-w1.2", (224,)),
        (125, {"space": "ofa-mbv3-w1.0", "resolutions": [224, 160, 176, 192, 208]}, "ofa-mbv3-w1.0", (224, 160, 176, 192, 208)),
        (123, {"space": "compofa-mbv3-w1.0", "resolutions": [128, 160, 192]}, "compofa-mbv3-w1.0", (128, 160, 192)),
        (127, {"resolutions": [224]}, "ofa-proxyless-w1.3", (224,)),
        (127, {"space": "ofa-mbv3-w1.0", "resolutions": range(128, 225, 16)}, "ofa-mbv3-w1.0", tuple(range(128, 225, 16))),
        (130, {"space": "ofa-proxyless-w1.3", "resolutions": [128, 160, 192, 224]}, "ofa-proxyless-w1.3", (128, 160, 192, 224)),
    ],
)
def test_what_is_known_of_a_newer_file_tells_its_encoder(tmp_path, inputs, told, space, sizes):
    found = load_foreign(saved(tmp_path / "p.pth", newer(inputs)), **told)
    assert (found.space, found.encoder.resolutions, found.encoder.dims, found.offset) == (space, sizes, inputs, 0.75)


@pytest.mark.parametrize(
    ("inputs", "told", "error", "message"),
    [
        (
            81,
            {},
            UsageError,
            r"it does not name its 7 input sizes of resnet50; run `ofasearch predictor import \S+ --resolutions R,R,... -o P`",
        ),
        (
            121,
            {},
            UsageError,
            r"it does not name its 1 input size of mbv3; run `ofasearch predictor import \S+ --space S --resolutions R,R",
        ),
        (121, {"resolutions": [224]}, UsageError, "does not say of which space of mbv3 it is; run `.* --space S --resolutions 224 -o P`"),
        (
            121,
            {"space": "ofa-mbv3-w1.0"},
            UsageError,
            "does not name its 1 input size of mbv3; run `.* --space ofa-mbv3-w1.0 --resolutions R",
        ),
        (
            128,
            {},
            UsageError,
            "its 128 inputs are those of 8 input sizes of mbv3 or 2 input sizes of mbv2; run `.* --space S --resolutions",
        ),
        (
            128,
            {"space": "ofa-proxyless-w1.3"},
            UsageError,
            "does not name its 2 input sizes of mbv2; run `.* --space ofa-proxyless-w1.3 --res",
        ),
        (82, {"resolutions": [224]}, MismatchError, "must know 1 input size, but its 82 inputs are those of 8 input sizes of resnet50"),
        (
            82,
            {"space": "ofa-mbv3-w1.0"},
            MismatchError,
            "must know ofa-mbv3-w1.0, but its 82 inputs are those of 8 input sizes of resnet50",
        ),
        (
            125,
            {"space": "ofa-mbv3-w1.0", "resolutions": [224]},
            MismatchError,
            "must know 1 input size of ofa-mbv3-w1.0, but its 125 inputs",
        ),
        (74, {}, FormatError, r"must have inputs as an encoder of once-for-all gives \(75 to 119, 121 to 171\), but has 74"),
        (120, {}, FormatError, "but has 120"),
        (172, {}, FormatError, "but has 172"),
        (82, {"resolutions": [224, 224]}, UsageError, "resolutions must be told once each, but got 224,224"),
        (82, {"resolutions": []}, UsageError, "resolutions must be told once each, but got none"),
        (82, {"space": "ofa-resnet51"}, NotFoundError, "space must be one of"),
    ],
)
def test_what_a_newer_file_does_not_say_is_asked_for(tmp_path, inputs, told, error, message):
    with pytest.raises(error, match=message):
        load_foreign(saved(tmp_path / "p.pth", newer(inputs)), **told)


def test_a_space_of_other_blocks_has_no_encoder_there(tmp_path, tiny_design, monkeypatch):
    monkeypatch.setitem(DESIGNS, "tiny", tiny_design)
    with pytest.raises(
        MismatchError, match="the space must have 20 blocks of kernels 3, 5, 7 and ratios 3, 4, 6 for once-for-all, but tiny"
    ):
        load_foreign(saved(tmp_path / "p.pth", newer(121)), space="tiny", resolutions=[8])


def test_the_tutorial_file_serves_a_told_space_at_told_sizes(shared_data):
    path = shared_data / "ofa" / "acc_predictor.pth"
    whole, narrow = load_foreign(path), load_foreign(path, space="compofa-mbv3-w1.2", resolutions=[224, 160])
    assert (narrow.space, narrow.encoder.resolutions, narrow.encoder.dims) == ("compofa-mbv3-w1.2", (224, 160), 122)
    settings = settings_of(MBV3, drawn(MBV3, (160, 224)))
    assert narrow(settings) == pytest.approx(whole(settings), abs=1e-6)
    with pytest.raises(MismatchError, match=r"resolutions must be of \[112, .* 224\] for the tutorial's predictor, but got \[160, 164\]"):
        load_foreign(path, resolutions=[160, 164])
    with pytest.raises(MismatchError, match="the tutorial's predictor must be of a space of MobileNetV3, but got ofa-resnet50"):
        load_foreign(path, space="ofa-resnet50")


def test_a_state_dict_in_a_checkpoint_is_found(tmp_path):
    path = saved(tmp_path / "p.pt", {"state_dict": newer(), "epoch": 3})
    assert load_predictor(path).space == "ofa-resnet50"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({}, "but it is empty"),
        ({"state_dict": {"blocks.0.conv.weight": torch.zeros(1)}}, "but it holds the weights of a network or supernet"),
        ({"module.blocks.0.conv.weight": torch.zeros(1)}, "but it holds the weights of a network or supernet"),
        ({"format": "ofasearch-subnet-1", "state_dict": {"stem": torch.zeros(1)}}, "but it is a file of format 'ofasearch-subnet-1'"),
        ({"fc.weight": torch.zeros(1), "fc.bias": torch.zeros(1)}, "but it holds 'fc.weight' and 1 more entries"),
        (newer(**{"layers.2.0.bias": None}), "but it lacks 'layers.2.0.bias'"),
        (newer(**{"layers.3.weight": None}), "but it lacks 'layers.3.weight'"),
        (newer(**{"layers.3.bias": torch.zeros(1)}), "but it also holds 'layers.3.bias'"),
        (newer(**{"layers.5.0.weight": torch.zeros(4, 4)}), "but it also holds 'layers.5.0.weight'"),
        (newer(base_acc=0.75), "its entries are no plain tensors"),
        (newer(base_acc=torch.tensor([3])), "its entries are no plain tensors"),
    ],
)
def test_a_file_of_another_kind_is_named(tmp_path, content, message):
    with pytest.raises(FormatError, match=rf"p.pth must be a predictor of once-for-all \(a plain state_dict\), .*{message}"):
        load_predictor(saved(tmp_path / "p.pth", content))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"base_acc": torch.zeros(2)}, r"one base_acc and a first layer of 2 axes, but holds \(2,\) and \(4, 82\)"),
        ({"layers.0.0.weight": torch.zeros(82)}, r"one base_acc and a first layer of 2 axes, but holds \(1,\) and \(82,\)"),
        ({"base_acc": torch.tensor([75.0])}, "have an offset of at most 1"),
        ({"base_acc": torch.tensor([torch.nan])}, "finite numbers, but has NaN"),
        ({"layers.1.0.weight": torch.full((4, 4), torch.nan)}, "finite numbers, but has NaN"),
        ({"layers.1.0.bias": torch.full((4,), torch.inf)}, "finite numbers, but has NaN or infinity"),
        ({"layers.1.0.weight": torch.full((4, 4), 1e300, dtype=torch.float64)}, "finite numbers, but has NaN or infinity"),
        ({"layers.1.0.weight": torch.full((4, 4), 1e37)}, "weights that keep predictions finite"),
        ({"layers.1.0.weight": torch.zeros(4, 5)}, "layers that fit together"),
        ({"layers.1.0.bias": torch.zeros(5)}, "layers that fit together"),
        ({"layers.1.0.bias": torch.zeros(())}, "layers that fit together"),
        ({"layers.3.weight": torch.zeros(2, 4)}, "end in one output, but ends in 2"),
        ({"layers.3.weight": torch.zeros(4)}, "layers that fit together"),
    ],
)
def test_layers_that_do_not_fit_are_refused(tmp_path, changes, message):
    with pytest.raises(FormatError, match=rf"p.pth must .*{message}"):
        load_predictor(saved(tmp_path / "p.pth", newer(**changes)))


def test_half_precision_is_read(tmp_path):
    state = newer()
    halves = {key: tensor.half() for key, tensor in state.items()}
    settings = settings_of(RESNET50, drawn(RESNET50, PUBLISHED))
    found = (load_predictor(saved(tmp_path / f"{name}.pth", content)) for name, content in (("p", state), ("h", halves)))
    first, second = (predictor(settings) for predictor in found)
    assert second == pytest.approx(first, abs=0.05)
    assert first.std() > 0.05


# -- there and back --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "form"), [("acc_predictor", "tutorial"), ("ofa_resnet50_acc_predictor", "encoder")])
def test_a_published_file_goes_through_ours_to_the_bit(shared_data, tmp_path, name, form):
    source = shared_data / "ofa" / f"{name}.pth"
    save_predictor(tmp_path / "ours.safetensors", load_predictor(source))
    written = save_foreign(tmp_path / "back.pth", load_predictor(tmp_path / "ours.safetensors"), form)
    assert same(source, tmp_path / "back.pth")
    assert written.unknown == ()


@pytest.mark.parametrize(
    ("layout", "space", "resolutions"),
    [(MBV3, "ofa-mbv3-w1.2", (192, 128, 131)), (MBV2, "ofa-proxyless-w1.3", (224,)), (RESNET50, "ofa-resnet50", (128, 256))],
    ids=["mbv3", "mbv2", "resnet50"],
)
def test_a_predictor_of_ours_goes_through_theirs(tmp_path, layout, space, resolutions):
    encoder = Encoder((*layout.parts[::-1], Part("r", 1, resolutions)))  # in an order that is not theirs
    before = mlp(encoder, space=space)
    written = save_foreign(tmp_path / "p.pth", before, "encoder")
    assert (written.resolutions, written.unknown) == (resolutions, ())
    after = load_foreign(tmp_path / "p.pth", space=space, resolutions=resolutions)
    settings = settings_of(layout, drawn(layout, resolutions))
    assert after(settings) == pytest.approx(before(settings), abs=1e-6)
    assert after.offset == pytest.approx(before.offset + before.biases[-1].item(), abs=1e-7)  # theirs has no last bias
    save_foreign(tmp_path / "q.pth", after, "encoder")
    assert same(tmp_path / "p.pth", tmp_path / "q.pth")


def test_sizes_the_tutorial_knows_and_we_do_not_count_as_none(tmp_path):
    before = mlp(blocks_encoder((3, 5), (3, 4, 6), (160, 224), 20))
    written = save_foreign(tmp_path / "p.pth", before, "tutorial")
    assert written.resolutions == TUTORIAL_ENCODER.resolutions
    assert {str(feature) for feature in written.unknown if feature.field == "r"} == {
        f"resolution {r}" for r in (112, 128, 144, 176, 192, 208)
    }
    assert {(feature.column, feature.value) for feature in written.unknown if feature.field == "ks"} == {(i, 7) for i in range(20)}
    first = torch.load(tmp_path / "p.pth", weights_only=True)["0.weight"]
    silent = [TUTORIAL_ENCODER.features.index(feature) for feature in written.unknown]
    assert (first[:, silent] == 0).all()
    assert (first != 0).any(dim=0).sum() == before.encoder.dims
    after = load_foreign(tmp_path / "p.pth", space="ofa-mbv3-w1.0", resolutions=(160, 224))
    settings = settings_of(MBV3, [{**network, "ks": [min(k, 5) for k in network["ks"]]} for network in drawn(MBV3, (160, 224))])
    assert after(settings) == pytest.approx(before(settings), abs=1e-6)
    assert after.offset == 0  # the tutorial's has none: the last bias holds it
    save_foreign(tmp_path / "q.pth", after, "tutorial")
    assert same(tmp_path / "p.pth", tmp_path / "q.pth")


TWO = mlp(TUTORIAL_ENCODER)
TWO = replace(TWO, weights=tuple(np.repeat(w, 2, axis=0) for w in TWO.weights), biases=tuple(np.repeat(b, 2, axis=0) for b in TWO.biases))


@pytest.mark.parametrize(
    ("predictor", "form", "message"),
    [
        (TWO, "tutorial", "be one MLP with relu for once-for-all, but is 2 with relu; fit one with `ofasearch predictor fit --members 1"),
        (mlp(TUTORIAL_ENCODER, activation="silu"), "encoder", "but is 1 with silu; fit one with `.* --activation relu`"),
        (mlp(TUTORIAL_ENCODER, width=8), "tutorial", r"three hidden layers of 400 for once-for-all, but has \[8, 8, 8\]"),
        (
            mlp(TUTORIAL_ENCODER.with_resolutions((132, 160))),
            "tutorial",
            "only what the tutorial's predictor can, but tells resolution 132",
        ),
        (mlp(blocks_encoder((3, 9), (3,), (160,), 20)), "tutorial", "but tells ks 9 at position 1 apart"),
        (
            mlp(blocks_encoder((3, 9), (3,), (160,), 20)),
            "encoder",
            "only what once-for-all's encoder of mbv3 can, but tells ks 9 at position 1",
        ),
        (mlp(blocks_encoder((3,), (3,), (160,), 21)), "tutorial", "but tells ks 3 at position 21 apart"),
        (mlp(blocks_encoder((3,), (3,), (160,), 12)), "encoder", r"read 20 blocks \(MobileNetV3\), 21 \(ProxylessNAS\) .* but reads 12"),
        (mlp(RESNET50.encoder((224,))), "tutorial", "only what the tutorial's predictor can, but tells d 0 at position 1 apart"),
    ],
    ids=["ensemble", "silu", "narrow", "size 132", "kernel 9 tutorial", "kernel 9", "21 blocks", "12 blocks", "resnet50"],
)
def test_what_theirs_cannot_say_is_refused_unwritten(tmp_path, predictor, form, message):
    with pytest.raises(MismatchError, match=rf"the predictor must .*{message}"):
        save_foreign(tmp_path / "p.pth", predictor, form)
    assert list(tmp_path.iterdir()) == []


def test_error_bars_do_not_keep_a_predictor_from_being_written(tmp_path):
    predictor = replace(mlp(TUTORIAL_ENCODER), certainty=Certainty(0.01, {0.8: 1.3}))
    save_foreign(tmp_path / "p.pth", predictor, "tutorial")
    assert load_predictor(tmp_path / "p.pth").certainty is None


# -- networks --------------------------------------------------------------------------------------------------


def test_blocks_beyond_the_depth_are_forgotten():
    networks = drawn(RESNET50, PUBLISHED, n=1) * 2
    networks[0] = {**networks[0], "d": [2, 0, 1, 2, 0]}
    e = settings_of(RESNET50, networks[:1]).e[0]
    assert [int((stage > 0).sum()) for stage in np.split(e, [4, 8, 14])] == [2, 3, 6, 2]  # 2, 2, 4, 2 and the depths
    assert (e[[0, 1, 4, 5, 6]] > 0).all()
    changed = {**networks[0], "e": [v if kept else 0.2 for v, kept in zip(networks[0]["e"], e > 0, strict=True)]}
    assert (settings_of(RESNET50, [changed]).e == e).all()
    mobile = settings_of(MBV2, [{**drawn(MBV2, (224,), n=1)[0], "d": [2, 3, 4, 2, 3, 4]}])
    assert (mobile.ks > 0).sum(axis=1) == 2 + 3 + 4 + 2 + 3 + 1  # ProxylessNAS ends in one block, whatever its depth says
    assert ((mobile.ks > 0) == (mobile.e > 0)).all()


def test_the_tutorial_spelling_of_the_resolution_is_understood():
    network = drawn(MBV3, (192,), n=1)[0]
    size = network.pop("image_size")
    assert settings_of(MBV3, [{**network, "r": [size]}]).r.tolist() == [192]
    assert settings_of(MBV3, [{**network, "r": size}]).r.tolist() == [192]


NETWORK = {"d": [0, 0, 0, 0, 0], "e": [0.2] * 18, "w": [0] * 6, "image_size": 224}


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"d": None}, "d must hold 5 integers, but got None"),
        ({"d": [0] * 4}, r"d must hold 5 integers, but got \[0, 0, 0, 0\]"),
        ({"d": [0, 0, 3, 0, 0]}, r"d must hold one of \[0, 1, 2\] at position 3, but got 3"),
        ({"d": [0, 0, -1, 0, 0]}, r"d must hold one of \[0, 1, 2\] at position 3, but got -1"),
        ({"d": [0.5] * 5}, "d must hold 5 integers"),
        ({"e": [0.2] * 17}, "e must hold 18 numbers"),
        ({"e": ["0.2"] * 18}, "e must hold 18 numbers"),
        ({"e": [0] * 18}, "e must be given for every block that the depths keep, but one is 0"),
        ({"w": [[0] * 6]}, "w must hold 6 integers"),
        ({"w": [10**30] * 6}, "w must hold 6 integers"),
        ({"image_size": [224, 192]}, r"image_size must hold one integer, but got \[224, 192\]"),
        ({"image_size": []}, "image_size must hold one integer"),
        ({"image_size": "224"}, "image_size must hold one integer"),
        ({"image_size": True}, "image_size must hold one integer"),
        ({"e": [[0.2], [0.2, 0.3]]}, "cannot be read"),
    ],
)
def test_a_network_that_is_none_is_refused(changes, message):
    with pytest.raises(ArchError, match=message):
        settings_of(RESNET50, [{**NETWORK, **changes}])


@pytest.mark.parametrize("name", NETWORK)
def test_a_network_without_a_part_is_refused(name):
    with pytest.raises(ArchError, match="a network of resnet50 must be an object with lists d, w, e, image_size, but it cannot be read"):
        settings_of(RESNET50, [{key: value for key, value in NETWORK.items() if key != name}])


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"e": [0.3] * 18}, r"e must hold 18 values of \[0.2, 0.25, 0.35\] \(or 0\) for this predictor, but one is 0.3"),
        ({"w": [3] * 6}, r"w must hold 6 values of \[0, 1, 2\] for this predictor, but one is 3"),
        ({"image_size": 208}, r"resolution must be one of \[128, .* 256\] for this predictor, but got 208"),
    ],
)
def test_choices_the_predictor_does_not_know_are_refused(tmp_path, changes, message):
    predictor = load_predictor(saved(tmp_path / "p.pth", newer()))
    with pytest.raises(MismatchError, match=message):
        predictor(settings_of(RESNET50, [{**NETWORK, **changes}]))
