"""What holds for every family of networks, published or a user's own: one contract, from genes to an ONNX file."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from ofasearch.data import DataSet, ImageSet, Preprocessing
from ofasearch.deploy.export import build_onnx, random_weights
from ofasearch.errors import MismatchError
from ofasearch.evaluate.populations import uniform_networks
from ofasearch.evaluate.score import recalibrate_bn
from ofasearch.jobs import deliver
from ofasearch.jobs.onnx_file import network_in
from ofasearch.latency.account import named
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.latency.roofline import DEVICES, estimated_table
from ofasearch.predictor.encode import encoder_of
from ofasearch.predictor.model import Predictor
from ofasearch.predictor.pairs import Pairs, read_pairs, write_pairs
from ofasearch.search.evolution import EvolutionConfig, evolve
from ofasearch.search.problem import Budget, Problem
from ofasearch.space import families
from ofasearch.space.containment import containing
from ofasearch.space.costs import costs, macs_of, params_of
from ofasearch.space.families import get_space, make_divisible
from ofasearch.space.mobile import MobileDesign, Stage
from ofasearch.space.resnet import ResNetDesign, ResStage
from ofasearch.supernet.elastic import norms
from ofasearch.supernet.supernet import Supernet
from ofasearch.supernet.weights import (
    Weights,
    full_shapes,
    load_weights,
    matrix_shapes,
    norm_names,
    restrict,
    save_weights,
    slice_network,
    sort_channels,
    transfer,
)
from ofasearch.train.loop import TrainConfig, Trainer
from ofasearch.train.source import MemorySource
from ofasearch.train.strategies import OFA, STRATEGIES

OWN = Path(__file__).parents[2] / "examples" / "spaces"
MOBILE = MobileDesign(
    name="small-mobile",
    stem=8,
    stem_stride=1,
    first=8,
    stages=(Stage(8, 1, "relu", se=False, kernel=3), Stage(16, 2, "h_swish", se=True, kernel=5)),
    c_expand=16,
    c_feature=24,
    classes=3,
    resolutions=(12, 16),
    depths=(1, 2),
    expands=(2, 3),
    kernels=(3, 5),
)
PROXYLESS = replace(
    MOBILE,
    name="small-proxyless",
    stages=(Stage(8, 1, "relu6", se=False, kernel=3), Stage(16, 2, "relu6", se=False, kernel=3, depths=(1,))),
    c_expand=None,
    stem_act="relu6",
    first_act="relu6",
    head_act="relu6",
    eps=1e-3,
)
RESNET = ResNetDesign(
    name="small-resnet50",
    stem=16,
    stages=(ResStage(32, 1, 1), ResStage(64, 2, 1)),
    classes=3,
    resolutions=(12, 16),
    depths=(0, 1, 2),
    expands=(0.2, 0.35, 0.5),
    widths=(0.5, 1.0),
)
DESIGNS = [
    MOBILE,
    replace(MOBILE, name="small-compound", coupled=True, elastic_kernel=False),
    PROXYLESS,
    replace(PROXYLESS, name="small-compound-proxyless", coupled=True, elastic_kernel=False),
    RESNET,
    replace(RESNET, name="small-resnet-without-pool", max_pool=False, stem_stride=1),
]
SPACES = {design.name: design.build() for design in DESIGNS} | {
    name: get_space(str(OWN / name), classes=3).with_resolutions([16]) for name in ("camera.json", "small-resnet.json")
}
PREPROCESSING = Preprocessing(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4), size=16)


def noise(n, seed):
    rng = np.random.default_rng(seed)
    return ImageSet(rng.integers(0, 256, (n, 16, 16, 3)).astype(np.uint8), rng.integers(0, 3, n))


PARTS = {"train": 12, "calibration": 24, "validation": 16, "test": 20}
DATA = DataSet("noise", ("a", "b", "c"), {split: noise(n, seed) for seed, (split, n) in enumerate(PARTS.items())})


@pytest.fixture(scope="module", autouse=True)
def registered():
    """Files name their space, so these designs have names that are known."""
    with pytest.MonkeyPatch.context() as patch:
        for design in DESIGNS:
            patch.setitem(families.DESIGNS, design.name, design)
        yield


@pytest.fixture(scope="module", params=SPACES)
def space(request):
    return SPACES[request.param]


@pytest.fixture(scope="module")
def supernet(space):
    """A supernet in which nothing is as initialised; tests only read it."""
    found, generator = Supernet(space), torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in found.full.parameters():
            parameter.add_(torch.randn(parameter.shape, generator=generator), alpha=0.05)
    recalibrate_bn(found.full, [images(space, space.largest(), 16)])
    return found.eval()


@pytest.fixture
def rng():
    return np.random.default_rng(3)


def images(space, row, n=4):
    size = space.resolutions[row[0] - 1]
    return torch.randn(n, 3, size, size, generator=torch.Generator().manual_seed(2))


def some(space, rng, n=5):
    return [space.largest(), space.smallest(), *space.sample(n, rng)]


# -- weights and modules ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("training", [False, True], ids=["eval", "train"])
def test_an_extracted_network_equals_its_slice_in_any_order(space, supernet, rng, training):
    supernet.train(training)
    rows = some(space, rng)
    with torch.no_grad():
        for row in (*rows, *reversed(rows)):
            x = images(space, row)
            logits = supernet(x, space.blueprint(row))
            assert torch.equal(supernet.extract(row)(x), logits)
            assert logits.std(0).mean() > 1e-5  # the images matter
    supernet.eval()


def test_parameters_and_norms_are_those_that_costs_and_names_say(space, supernet, rng):
    for row in some(space, rng):
        network, blueprint = supernet.extract(row), space.blueprint(row)
        assert costs(blueprint).params == sum(p.numel() for p in network.parameters())
        said = [f"{spec.slot}.{name}" for spec in blueprint for name, _ in norm_names(spec)]
        assert said == list(norms(network))
        assert [c for spec in blueprint for _, c in norm_names(spec)] == [norm.num_features for norm in norms(network).values()]


def test_multiplications_are_those_of_the_modules(space, supernet, rng):
    counted = []

    def count(module, args, output):
        positions = output.shape[-1] ** 2 if output.ndim == 4 else 1
        counted.append(module.weight.numel() * positions)

    for row in some(space, rng, 2):
        network = supernet.extract(row)
        counted.clear()
        for module in network.modules():
            if isinstance(module, (torch.nn.Conv2d, torch.nn.Linear)):
                module.register_forward_hook(count)
        with torch.no_grad():
            network(images(space, row, 1))
        assert sum(counted) == costs(space.blueprint(row)).macs == macs_of(space)(row[None])[0]


def test_numpy_slices_are_those_of_torch(space, supernet, rng):
    arrays = supernet.arrays()
    assert arrays.keys() == full_shapes(space).keys() | matrix_shapes(space).keys()
    for row in some(space, rng, 2):
        state = supernet.extract(row).state_dict()
        for key, array in slice_network(arrays, space.blueprint(row)).items():
            assert np.allclose(array, state[key].numpy(), atol=1e-6)


def test_sorted_channels_leave_the_largest_network_as_it_is_and_put_large_weights_first(space, supernet):
    arrays = supernet.arrays()
    ordered = sort_channels(arrays, space)
    row = space.largest()
    again = Supernet.from_arrays(space, ordered)
    with torch.no_grad():
        x = images(space, row)
        assert torch.allclose(again(x, space.blueprint(row)), supernet(x, space.blueprint(row)), atol=1e-4)
    moved = [key for key, array in arrays.items() if not np.array_equal(array, ordered[key])]
    assert any("conv" in key for key in moved)
    for key, array in ordered.items():
        if key.endswith(("project.conv.weight", "conv3.conv.weight")) and not key.startswith("s0.b1"):
            assert (np.diff(np.abs(array).sum(axis=(0, 2, 3))) <= 1e-4).all()


def test_sorting_again_keeps_the_channels_of_a_trained_ratio(space, supernet):
    if len(space.expands) < 3:
        pytest.skip("two ratios have no third phase")
    ratio = space.expands[1]
    arrays, found = supernet.arrays(), sort_channels(supernet.arrays(), space, kept=ratio)
    for spec in space.blueprint(space.largest()):
        if spec.kind in ("mbconv", "bottleneck") and spec.slot != "s0.b1":
            last = "project" if spec.kind == "mbconv" else "conv3"
            name = f"{spec.slot}.{last}.conv.weight"
            kept = make_divisible(round(of(spec) * ratio))
            before, after = (np.sort(np.abs(a[name]).sum(axis=(0, 2, 3))[:kept]) for a in (arrays, found))
            assert np.allclose(before, after, rtol=1e-5)


def of(spec):
    return spec.c_out if spec.kind == "bottleneck" else spec.c_in


def test_the_file_round_trips_with_its_space(space, supernet, tmp_path):
    path = tmp_path / "s.safetensors"
    save_weights(path, Weights(supernet.arrays(), space, PREPROCESSING, ("a", "b", "c")))
    again = load_weights(path)
    assert again.space.name == space.name
    assert again.space.genes == space.genes
    assert again.digest == Weights(supernet.arrays(), space, PREPROCESSING).digest


def test_weights_of_a_part_serve_the_whole_and_back(space, supernet):
    arrays = supernet.arrays()
    assert all(np.array_equal(a, arrays[key]) for key, a in restrict(arrays, space).items())
    assert all(np.array_equal(a, arrays[key]) for key, a in transfer(arrays, space, space).items())
    other = next(other for other in SPACES.values() if other.name != space.name)
    with pytest.raises(MismatchError, match="must come from it"):
        transfer(arrays, space, other)


# -- training --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", sorted(STRATEGIES))
@pytest.mark.parametrize("family", ["small-compound-proxyless", "small-resnet50", "camera.json"])  # MobileNetV3: tests/train
def test_every_strategy_trains_every_family(family, name):
    space, strategy = SPACES[family], STRATEGIES[name]()
    config = TrainConfig(**{"epochs": 15, "batch_size": 6, "warmup_epochs": 0, "crop_padding": 0, "lr": 0.01} | dict(strategy.recipe))
    source = MemorySource(noise(12, 5), crop_padding=0, flip=False, device=torch.device("cpu"))
    trainer = Trainer(Supernet(space.with_resolutions([16])), strategy, config, source, PREPROCESSING)
    before = {key: array.copy() for key, array in trainer.supernet.arrays().items()}
    reports = list(trainer.run())
    assert len(reports) == trainer.steps >= 12
    assert all(np.isfinite(report.loss) for report in reports)
    after = trainer.supernet.arrays()
    unmoved = [key for key, array in before.items() if key.endswith("conv.weight") and np.array_equal(array, after[key])]
    assert not unmoved


def test_progressive_shrinking_opens_every_dimension_and_nothing_else(space):
    last = OFA().phases(space)[-1]
    elastic = {gene.reads[0] for gene in space.genes[1:] if len(gene.choices) > 1}
    assert set(last.choices) == elastic
    assert all(last.choices[gene.reads[0]] >= len(gene.choices) for gene in space.genes[1:] if len(gene.choices) > 1)


# -- evaluation, prediction, prices, search --------------------------------------------------------------------


def test_members_are_measured_with_their_own_statistics(space, supernet, rng):
    weights = Weights(supernet.arrays(), space, PREPROCESSING, ("a", "b", "c"))
    row = space.smallest()
    row[0] = space.resolutions.index(16) + 1
    subnet = deliver.calibrated_subnet(weights, row, DATA, "x")
    assert subnet.calibrated == "24 images of noise calibration"
    logits = deliver.to_network(subnet)(torch.from_numpy(PREPROCESSING.apply(noise(4, 9).images)))
    assert torch.isfinite(logits).all()


def test_features_by_gene_are_those_by_settings(space, rng):
    encoder = encoder_of(space)
    weights = (rng.normal(size=(1, encoder.dims)).astype(np.float32),)
    predictor = Predictor(encoder, weights, (np.zeros(1, dtype=np.float32),), 0.0, space.name, None, "relu")
    codes = space.sample(100, rng)
    assert (predictor.on(space).features(codes) == encoder.encode(space.settings(codes))).all()
    assert encoder.encode(space.settings(codes)).shape == (100, encoder.dims)


def test_different_networks_have_different_features(space, rng):
    codes = np.unique(space.sample(300, rng), axis=0)
    features = encoder_of(space).encode(space.settings(codes))
    assert len(np.unique(features, axis=0)) == len(codes)


def test_a_table_prices_a_network_as_its_layers(space, rng):
    table = estimated_table(space, DEVICES["rtx2080"], batch=1)
    codes = space.sample(20, rng)
    assert np.allclose(table.cost(space)(codes), [table.latency_ms(space.blueprint(row)) for row in codes])


def test_uniform_networks_are_uniform_in_what_they_choose(space):
    pairs, missing = uniform_networks(space)
    assert pairs
    for pair in pairs:
        settings = space.settings(pair.codes[None])
        assert set(settings.e[settings.e > 0].tolist()) == {pair.expand}
    assert not {(p.depth, p.expand) for p in pairs} & set(missing)


def test_a_search_finds_the_best_of_those_that_contain_a_network(space, rng):
    small = space.sample(1, rng)[0]
    inside = containing(space, small)
    cost = macs_of(inside)
    bounds = cost.bounds()
    limit = (bounds.lowest + bounds.highest) / 2
    problem = Problem(inside, (lambda codes: -params_of(inside)(codes),), (Budget("MACs", cost, limit, repr),))
    *_, last = evolve(problem, EvolutionConfig(population=20, generations=10), rng)
    best = inside.lift(last.codes[:1], space)
    assert space.contains(best, small[None]).all()
    assert macs_of(space)(best)[0] <= limit


@pytest.mark.parametrize("name", ["pairs.jsonl", "pairs.csv", "pairs.dict", "folder"])
def test_measured_networks_round_trip_through_every_format(space, rng, tmp_path, name):
    codes = np.unique(space.sample(40, rng), axis=0)
    settings, top1 = space.settings(codes), rng.uniform(0.3, 0.9, len(codes)).round(4)
    if name == "folder":
        (tmp_path / name).mkdir()
    write_pairs(tmp_path / name, Pairs(settings, top1), space, {})
    found = read_pairs([tmp_path / name], space)
    order, again = np.lexsort(space.from_settings(found.settings).T), np.lexsort(codes.T)
    assert (space.from_settings(found.settings)[order] == codes[again]).all()
    assert np.allclose(found.top1[order], top1[again])


# -- files -----------------------------------------------------------------------------------------------------


def test_an_onnx_file_computes_what_the_network_does(space, supernet, rng):
    for row in some(space, rng, 2):
        network, blueprint = supernet.extract(row), space.blueprint(row)
        model = OnnxModel(build_onnx(blueprint, {key: tensor.numpy() for key, tensor in network.state_dict().items()}))
        x = images(space, row)
        with torch.no_grad():
            expected = network(x).numpy()
        assert np.abs(model(x.numpy()) - expected).max() <= 1e-5 * max(1.0, np.abs(expected).max())


def test_layers_have_names_of_their_own_and_lose_none_without(space, rng):
    for row in some(space, rng):
        blueprint = space.blueprint(row)
        assert named(tuple(replace(spec, slot="") for spec in blueprint)) == blueprint


def test_a_subnet_and_its_onnx_file_know_their_network(space, supernet, rng, tmp_path):
    weights = Weights(supernet.arrays(), space, PREPROCESSING, ("a", "b", "c"))
    row = space.sample(1, rng)[0]
    subnet = deliver.calibrated_subnet(weights, row, resized(space, row), "x")
    deliver.save_subnet(tmp_path / "s.pt", subnet, {})
    again, _ = deliver.load_subnet(tmp_path / "s.pt")
    assert (again.arch.id, again.blueprint, again.settings) == (subnet.arch.id, subnet.blueprint, subnet.settings)
    content = deliver.onnx_bytes(again)
    deliver.prove(again, content, None)
    (tmp_path / "s.onnx").write_bytes(content)
    found = network_in(tmp_path / "s.onnx", OnnxModel(tmp_path / "s.onnx"))
    assert found is not None
    assert found.space.arch(found.codes).id == subnet.arch.id


def resized(space, row):
    size = space.resolutions[row[0] - 1]
    if size == 16:
        return DATA
    parts = {name: ImageSet(part.images[:, :size, :size], part.labels) for name, part in DATA.splits.items()}
    return replace(DATA, splits=parts)


def test_a_network_of_random_weights_can_be_timed(space, rng):
    row = space.sample(1, rng)[0]
    blueprint = space.blueprint(row)
    model = OnnxModel(build_onnx(blueprint, random_weights(blueprint, rng)))
    assert np.isfinite(model(images(space, row).numpy())).all()
