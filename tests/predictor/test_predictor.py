"""The accuracy predictor: the published one to its published digits, ours to the bit, foreign files refused."""

import json
import pickle
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.numpy import save

from ofasearch.errors import FormatError, MismatchError, NotFoundError, UsageError
from ofasearch.predictor import (
    TUTORIAL_ENCODER,
    FitConfig,
    Pairs,
    check,
    encoder_of,
    fit,
    load_predictor,
    read_pairs,
    save_predictor,
)
from ofasearch.predictor.files import FORMAT
from ofasearch.space.core import Settings
from ofasearch.space.families import get_space

SPACE = "ofa-mbv3-w1.0"
QUICK = FitConfig(steps=150, batch_size=64)


def uniform(k, e, d, r):
    return Settings(np.full((1, 20), k), np.full((1, 20), e), np.full((1, 5), d), np.array([r]))


@pytest.fixture(scope="module")
def tutorial(shared_data):
    return load_predictor(shared_data / "ofa" / "acc_predictor.pth")


@pytest.fixture(scope="module")
def measured(shared_data):
    """2,610 networks at three resolutions, in a fixed random order."""
    pairs = read_pairs([shared_data / "accuracy" / "ofa_mbv3_imagenet_r128-192.jsonl"], get_space(SPACE))
    return pairs.take(np.random.default_rng(0).permutation(len(pairs)))


@pytest.fixture(scope="module")
def invented():
    """64 networks whose accuracy is a plain rule, for tests that need no real data."""
    space = get_space(SPACE)
    settings = space.settings(space.sample(64, np.random.default_rng(3)))
    return Pairs(settings, 0.7 + 0.002 * settings.d.sum(axis=1))


@pytest.fixture(scope="module")
def fitted(invented):
    return fit(encoder_of(get_space(SPACE)), invented, SPACE, FitConfig(steps=20), "digest-of-weights")


# -- the published predictor -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("k", "e", "d", "r", "expected"),
    [
        (3, 3, 2, 160, 0.7531),
        (3, 3, 2, 224, 0.7774),
        (5, 4, 3, 192, 0.8059),
        (3, 3, 4, 224, 0.8062),
        (7, 6, 4, 160, 0.8075),
        (7, 6, 4, 224, 0.8359),
    ],
)
def test_the_tutorial_predictor_gives_its_published_values(tutorial, k, e, d, r, expected):
    space = get_space("ofa-mbv3-w1.2")
    tutorial.check_space(space)
    settings = space.settings(space.from_settings(uniform(k, e, d, r)))
    assert tutorial(settings) == pytest.approx([expected], abs=1e-4)


def test_the_tutorial_predictor_serves_its_space_and_those_within(tutorial):
    for name in ("ofa-mbv3-w1.2", "compofa-mbv3-w1.2", "compofa-mbv3-elastic-w1.2"):
        tutorial.check_space(get_space(name))
    with pytest.raises(MismatchError, match=r"the predictor must be made for ofa-mbv3-w1.0, but was made for ofa-mbv3-w1.2; fit one with"):
        tutorial.check_space(get_space("ofa-mbv3-w1.0"))


def test_a_resolution_the_predictor_never_saw_is_refused(tutorial):
    with pytest.raises(MismatchError, match=r"resolution must be one of \[112, .* 224\] for this predictor, but got 164; narrow"):
        tutorial(uniform(3, 3, 2, 164))


# -- the encoder -----------------------------------------------------------------------------------------------


def test_features_stand_where_the_tutorial_puts_them():
    space = get_space("ofa-mbv3-w1.2").with_resolutions(range(112, 225, 16))
    settings = space.settings(space.sample(50, np.random.default_rng(1)))
    found = TUTORIAL_ENCODER.encode(settings)
    expected = np.zeros((50, 128))
    for n in range(50):
        for i in range(20):
            if i % 4 < settings.d[n, i // 4]:
                expected[n, 3 * i + {3: 0, 5: 1, 7: 2}[settings.ks[n, i]]] = 1
                expected[n, 60 + 3 * i + {3: 0, 4: 1, 6: 2}[settings.e[n, i]]] = 1
        expected[n, 120 + (settings.r[n] - 112) // 16] = 1
    assert (found == expected).all()


def test_different_networks_have_different_features():
    space = get_space("compofa-mbv3-w1.0").with_resolutions([128, 224])
    features = encoder_of(space).encode(space.settings(space.enumerate()))
    assert len(np.unique(features, axis=0)) == 2 * 243


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (uniform(9, 3, 2, 160), r"ks must hold 20 values of \[3, 5, 7\] \(or 0\)"),
        (uniform(4, 3, 2, 160), "ks must hold 20 values of"),
        (uniform(3, 5, 2, 160), r"e must hold 20 values of \[3, 4, 6\]"),
        (uniform(-1, 3, 2, 160), "ks must hold 20 values of"),
        (replace(uniform(3, 3, 2, 160), ks=np.full((1, 21), 3)), "ks must hold 20 values for this predictor, but holds 21"),
    ],
    ids=["ks 9", "ks 4", "e 5", "ks -1", "21 blocks"],
)
def test_settings_the_encoder_cannot_express_are_refused(settings, message):
    with pytest.raises(MismatchError, match=message):
        TUTORIAL_ENCODER.encode(settings)


# -- fitting ---------------------------------------------------------------------------------------------------


def test_a_quick_fit_beats_a_constant_on_networks_it_never_saw(measured):
    train, held_out = measured.take(np.arange(400)), measured.take(np.arange(400, 1000))
    error = check(fit(encoder_of(get_space(SPACE)), train, SPACE, QUICK), held_out)
    assert error.n == 600
    assert error.kendall_tau > 0.5
    assert error.spearman > error.kendall_tau
    constant = 100 * np.sqrt(np.mean((held_out.top1 - train.top1.mean()) ** 2))
    assert error.rmse_points < 0.6 * constant
    assert abs(error.bias_points) <= error.mae_points <= error.rmse_points


def test_equal_seeds_give_equal_predictors(invented):
    encoder = encoder_of(get_space(SPACE))
    state = torch.get_rng_state()
    first, second, third = (fit(encoder, invented, SPACE, FitConfig(steps=5, seed=seed)) for seed in (1, 1, 2))
    assert all(np.array_equal(a, b) for a, b in zip(first.weights + first.biases, second.weights + second.biases, strict=True))
    assert not np.array_equal(first.weights[0], third.weights[0])
    assert torch.equal(torch.get_rng_state(), state)  # the caller's random numbers are the caller's


def test_a_fit_learns_networks_that_are_all_alike():
    settings = uniform(3, 3, 2, 160)
    pairs = Pairs(Settings(*(np.repeat(v, 8, axis=0) for v in (settings.ks, settings.e, settings.d, settings.r))), np.full(8, 0.75))
    predictor = fit(TUTORIAL_ENCODER, pairs, SPACE, FitConfig(steps=5))
    assert predictor(settings) == pytest.approx([0.75], abs=1e-3)


def test_too_few_networks_are_refused(invented):
    with pytest.raises(UsageError, match="a predictor needs at least 8 measured networks, but got 7"):
        fit(encoder_of(get_space(SPACE)), invented.take(np.arange(7)), SPACE, QUICK)


def test_errors_are_percent_points_by_hand(invented):
    class Shifted:
        def __call__(self, settings):
            return invented.top1 + np.where(np.arange(64) % 2, 0.03, -0.01)

    error = check(Shifted(), invented)
    assert error.bias_points == pytest.approx(1)
    assert error.mae_points == pytest.approx(2)
    assert error.rmse_points == pytest.approx(np.sqrt(5))


def test_a_predictor_belongs_to_its_weights(fitted):
    fitted.check_supernet("digest-of-weights")
    replace(fitted, supernet_digest=None).check_supernet("any")
    with pytest.raises(MismatchError, match="the predictor must belong to the supernet's weights, but was fitted on others"):
        fitted.check_supernet("digest-of-others")


# -- files -----------------------------------------------------------------------------------------------------


def test_a_file_round_trips_to_the_bit(fitted, invented, tmp_path):
    before = replace(fitted, card={"pairs": 64, "note": "ü"})
    save_predictor(tmp_path / "p.safetensors", before)
    after = load_predictor(tmp_path / "p.safetensors")
    assert (after.encoder, after.offset, after.space) == (before.encoder, before.offset, before.space)
    assert (after.supernet_digest, after.card) == (before.supernet_digest, before.card)
    assert len(after.weights) == len(after.biases) == 4
    assert all(np.array_equal(a, b) for a, b in zip(after.weights + after.biases, before.weights + before.biases, strict=True))
    assert np.array_equal(after(invented.settings), before(invented.settings))


class Creates:
    """Unpickled, it would create a file."""

    def __init__(self, path):
        self.path = str(path)

    def __reduce__(self):
        return (open, (self.path, "w"))


@pytest.mark.parametrize("write", [torch.save, lambda state, path: path.write_bytes(pickle.dumps(state))], ids=["torch", "pickle"])
def test_code_in_a_file_is_not_run(tmp_path, write):
    state = {f"{i}.{part}": torch.zeros(2) for i in (0, 2, 4, 6) for part in ("weight", "bias")}
    write({**state, "extra": Creates(tmp_path / "ran")}, tmp_path / "p.pth")
    with pytest.raises(FormatError, match=r"p.pth must be a predictor of once-for-all \(a plain state_dict\), but it cannot be read"):
        load_predictor(tmp_path / "p.pth")
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize("share", [0, 0.01, 0.5, 0.99])
def test_a_truncated_tutorial_file_is_refused(shared_data, tmp_path, share):
    content = (shared_data / "ofa" / "acc_predictor.pth").read_bytes()
    (tmp_path / "p.pth").write_bytes(content[: int(share * len(content))])
    with pytest.raises(FormatError, match=r"p.pth must be a predictor of once-for-all"):
        load_predictor(tmp_path / "p.pth")


@pytest.mark.parametrize("share", [0, 0.001, 0.5, 0.99])
def test_a_truncated_file_of_ours_is_refused(fitted, tmp_path, share):
    path = tmp_path / "p.safetensors"
    save_predictor(path, fitted)
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(FormatError, match=r"p.safetensors must be a safetensors file written by ofasearch, but it cannot be read"):
        load_predictor(path)


def test_a_missing_file_is_named(tmp_path):
    for name in ("p.pth", "p.safetensors"):
        with pytest.raises(NotFoundError, match=rf"{name} must be an existing"):
            load_predictor(tmp_path / name)


def small_file(path, *, card=None, arrays=None):
    """A predictor of one layer over two kernels; None removes a field."""
    encoder = [["ks", 1, [3, 5]], ["e", 1, [3]], ["r", 1, [8]]]
    fields = {"format": FORMAT, "encoder": encoder, "offset": 0.5, "space": "tiny", "supernet_digest": None, "card": {}}
    fields |= {"activation": "relu", "certainty": None, "cloud_limit": None, **(card or {})}
    weights = {"0.w": np.ones((1, 4, 1), np.float32), "0.b": np.zeros((1, 1), np.float32), **(arrays or {})}
    path.write_bytes(save(weights, metadata={"ofasearch": json.dumps({k: v for k, v in fields.items() if v != "gone"})}))
    return path


def encoded(place, *part):
    """The encoder of a small file with another part at one place."""
    parts = [["ks", 1, [3, 5]], ["e", 1, [3]], ["r", 1, [8]]]
    parts[place] = list(part)
    return parts


def test_a_small_file_is_read(tmp_path):
    predictor = load_predictor(small_file(tmp_path / "p.safetensors"))
    settings = Settings(np.array([[5], [0]]), np.array([[3], [0]]), np.array([[1], [1]]), np.array([8, 8]))
    assert predictor(settings).tolist() == [3.5, 1.5]


@pytest.mark.parametrize(
    ("card", "arrays"),
    [
        ({"format": "ofasearch-supernet-1"}, {}),
        ({"format": "ofasearch-predictor-1"}, {}),
        ({"encoder": "gone"}, {}),
        ({"encoder": 3}, {}),
        ({"encoder": []}, {}),
        ({"encoder": encoded(0, "ks", 1)}, {}),
        ({"encoder": encoded(0, "ks", None, [3, 5])}, {}),
        ({"encoder": encoded(0, "ks", 1, ["a", "b"])}, {}),
        ({"encoder": encoded(0, "ks", 1, [3, 3])}, {}),
        ({"encoder": encoded(0, "ks", 1, [3, -5])}, {}),
        ({"encoder": encoded(0, "ks", 1, [3, 10_001])}, {}),
        ({"encoder": encoded(0, "ks", 1, [3, float("nan")])}, {}),
        ({"encoder": encoded(0, "kernels", 1, [3, 5])}, {}),
        ({"encoder": encoded(2, "e", 1, [8])}, {}),
        ({"offset": "gone"}, {}),
        ({"offset": "half"}, {}),
        ({"offset": float("nan")}, {}),
        ({"offset": 75}, {}),
        ({"space": "gone"}, {}),
        ({"card": 3}, {}),
        ({"activation": "tanh"}, {}),
        ({"activation": ["relu"]}, {}),
        ({"certainty": {"floor": 0.1}}, {}),
        ({"certainty": {"floor": -0.1, "multiples": [[0.8, 1]]}}, {}),
        ({"certainty": {"floor": float("nan"), "multiples": [[0.8, 1]]}}, {}),
        ({}, {"cloud": np.eye(4, dtype=np.float32)}),
        ({"cloud_limit": 1}, {"cloud": np.eye(5, dtype=np.float32)}),
        ({}, {"0.w": np.ones((1, 5, 1), np.float32)}),
        ({}, {"0.w": np.ones((1, 4, 2), np.float32), "0.b": np.zeros((1, 2), np.float32)}),
        ({}, {"0.w": np.ones((4, 1), np.float32)}),
        ({}, {"0.w": np.ones((2, 4, 1), np.float32)}),
        ({}, {"0.w": np.ones((0, 4, 1), np.float32), "0.b": np.zeros((0, 1), np.float32)}),
        ({}, {"0.w": np.ones((1, 4, 1), np.float64)}),
        ({}, {"0.w": np.full((1, 4, 1), np.nan, np.float32)}),
        ({}, {"0.w": np.full((1, 4, 1), 1e38, np.float32)}),
        ({}, {"0.b": np.full((1, 1), np.inf, np.float32)}),
        ({}, {"0.b": np.zeros(1, np.float32)}),
        ({}, {"2.w": np.ones((1, 1, 1), np.float32), "2.b": np.zeros((1, 1), np.float32)}),
    ],
    ids=[
        "format",
        "former format",
        "no encoder",
        "encoder 3",
        "empty encoder",
        "no choices",
        "no columns",
        "text kernels",
        "a kernel twice",
        "negative kernel",
        "huge kernel",
        "nan kernel",
        "unknown part",
        "no resolution",
        "no offset",
        "text offset",
        "nan offset",
        "offset in percent",
        "no space",
        "card 3",
        "unknown activation",
        "listed activation",
        "no multiples",
        "negative error bar",
        "nan error bar",
        "no cloud limit",
        "wide cloud",
        "too wide",
        "two outputs",
        "no members axis",
        "members without biases",
        "no members",
        "float64",
        "nan weight",
        "overflow",
        "inf bias",
        "flat bias",
        "layer gap",
    ],
)
def test_an_incomplete_predictor_is_refused(tmp_path, card, arrays):
    with pytest.raises(FormatError, match=r"p.safetensors must"):
        load_predictor(small_file(tmp_path / "p.safetensors", card=card, arrays=arrays))


@pytest.mark.parametrize(
    "change",
    [
        {"2.weight": torch.zeros(3, 3)},
        {"6.weight": torch.full((1, 400), torch.nan)},
        {"0.bias": torch.full((400,), torch.nan)},
        {"0.bias": 3},
    ],
    ids=["shape", "nan weight", "nan bias", "no tensor"],
)
def test_a_tutorial_file_whose_layers_do_not_fit_is_refused(shared_data, tmp_path, change):
    state = torch.load(shared_data / "ofa" / "acc_predictor.pth", map_location="cpu", weights_only=True)
    torch.save({**state, **change}, tmp_path / "p.pth")
    with pytest.raises(FormatError, match=r"p.pth must"):
        load_predictor(tmp_path / "p.pth")


@pytest.mark.parametrize(("activation", "act"), [("relu", torch.relu), ("silu", torch.nn.functional.silu)])
def test_the_numpy_predictor_computes_the_mlp(fitted, invented, activation, act):
    predictor = replace(fitted, activation=activation)
    weights, biases = ([torch.from_numpy(array) for array in arrays] for arrays in (fitted.weights, fitted.biases))
    features = torch.from_numpy(fitted.encoder.encode(invented.settings))
    for member in range(fitted.size):
        x = features
        for weight, bias in zip(weights[:-1], biases[:-1], strict=True):
            x = act(x @ weight[member] + bias[member])
        expected = (x @ weights[-1][member] + biases[-1][member])[:, 0].numpy() + fitted.offset
        assert np.allclose(predictor.of_features(features.numpy())[member], expected, atol=1e-6)
    assert np.allclose(predictor(invented.settings), predictor.of_features(features.numpy()).mean(axis=0))
    k = fitted.size
    assert [w.shape for w in fitted.weights] == [(k, fitted.encoder.dims, 400), (k, 400, 400), (k, 400, 400), (k, 400, 1)]
