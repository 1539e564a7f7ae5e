"""Runtimes on a tiny network: they run, keep account of layers, tell what they cannot do, and leave the process as it was."""

import itertools
import tempfile
import warnings
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch

from ofasearch.deploy import runtime as runtimes
from ofasearch.deploy.export import build_onnx, random_weights
from ofasearch.deploy.quantize import counted, quantise
from ofasearch.deploy.runtime import PRECISIONS, RUNTIMES, TARGETS, OnnxRunner, get_runtime, inputs_of, read_profile, runtime_of
from ofasearch.errors import NotFoundError, UsageError
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.latency.table import TableKey
from ofasearch.space.families import get_space
from ofasearch.supernet.elastic import Network
from ofasearch.supernet.weights import layer_key

HERE = [("ort", "fp32"), ("ort", "int8"), ("torch", "fp32")]
NO_CUDA = not torch.cuda.is_available()


@pytest.fixture(scope="module")
def blueprint(tiny_space):
    return tiny_space.blueprint(tiny_space.largest())


@pytest.fixture(scope="module")
def has_compiler():
    """Whether torch.compile works on this machine, which needs a C++ compiler."""
    try:
        with warnings.catch_warnings(action="ignore"):  # of the compiler's own use of torch
            torch.compile(lambda x: x + 1)(torch.ones(2))
    except Exception as error:
        pytest.skip(f"torch.compile does not work here: {type(error).__name__}")


# -- running -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("name", "precision"), HERE)
def test_a_network_runs_and_keeps_account_of_every_layer(name, precision, blueprint):
    runtime = get_runtime(name, precision=precision, batch=2)
    assert runtime.tells_layers
    with runtime.held():
        runner = runtime.load(blueprint)
        runner.run()
        traced = runner.traced()
        for _ in range(5):
            traced.run()
        found = traced.finish()
    assert found.layer_ms.shape == (5, len(blueprint))
    assert found.run_ms.shape == (5,)
    assert found.kernels.shape == (len(blueprint),)
    assert (found.layer_ms > 0).all()
    assert (found.kernels >= 1).all()
    assert (found.layer_ms.sum(axis=1) <= 1.05 * found.run_ms + 0.001 * found.kernels.sum()).all()  # parts of one run
    assert found.layer_ms.sum() > 0.1 * found.run_ms.sum()


@pytest.mark.slow
def test_compiled_torch_runs_as_one(blueprint, has_compiler):
    runtime = get_runtime("torch-compile")
    assert not runtime.tells_layers
    before = torch.get_num_threads()
    with runtime.held():
        runner = runtime.load(blueprint)
        runner.run()
    assert runner.traced() is None
    assert torch.get_num_threads() == before


@pytest.mark.slow
def test_every_network_is_compiled_however_many_there_are(tiny_space, has_compiler):
    """The compiler gives up on a function after eight versions of it, and runs it as it is without a word."""
    from torch._dynamo.utils import counters

    runtime, before, runners = get_runtime("torch-compile"), counters["stats"]["unique_graphs"], []
    with runtime.held():
        for number, codes in enumerate(tiny_space.enumerate()[::40][:10], start=1):
            runners.append(runtime.load(tiny_space.blueprint(codes)))
            assert counters["stats"]["unique_graphs"] == before + number
        for runner in runners:
            runner.run()
    assert counters["stats"]["unique_graphs"] == before + 10  # none is compiled anew when its turn comes


def test_a_compiler_that_is_not_there_is_told_in_one_sentence(blueprint, monkeypatch):
    def compiled(network, **options):
        raise RuntimeError("no C++ compiler was found\nand a page of advice")

    monkeypatch.setattr(torch, "compile", compiled)
    with pytest.raises(NotFoundError, match=r"torch.compile must work on this machine .*, but it does not: no C.. compiler was found$"):
        get_runtime("torch-compile").load(blueprint)


@pytest.mark.parametrize("name", ["ofa-mbv3-cifar", "compofa-mbv3-w1.2"])
def test_every_layer_of_a_published_space_has_kernels_of_its_own(name):
    space = get_space(name)
    blueprint = space.blueprint(space.smallest())
    traced = get_runtime().load(blueprint).traced()
    traced.run()
    assert (traced.finish().kernels >= 1).all()


@pytest.mark.parametrize("precision", ["fp32", "int8"])
def test_profiles_are_removed(blueprint, precision, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    traced = get_runtime(precision=precision).load(blueprint).traced()
    traced.run()
    traced.finish()
    assert list(tmp_path.iterdir()) == []


def test_a_network_that_is_not_traced_opens_no_profile(blueprint, monkeypatch, tmp_path):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    runtime = get_runtime()
    assert runtime.tells_layers
    runtime.load(blueprint).run()
    assert list(tmp_path.iterdir()) == []


def test_marks_between_modules_do_not_change_what_torch_computes(blueprint):
    runtime = get_runtime("torch")
    with runtime.held():
        runner = runtime.load(blueprint)
        traced = runner.traced()
        outputs = []
        runner.layers[-1].register_forward_hook(lambda *call: outputs.append(call[-1]))
        runner.run()
        traced.run()
    assert len(outputs) == 2
    assert torch.equal(*outputs)
    assert outputs[0].shape == (1, blueprint[-1].c_out)


# -- reading profiles --------------------------------------------------------------------------------------------


def event(ts, dur, name, cat="Node"):
    return {"ts": ts, "dur": dur, "name": name, "cat": cat}


def run_event(ts, dur):
    return event(ts, dur, "model_run", "Session")


def test_nodes_count_to_their_layer_and_half_a_microsecond_is_added():
    events = [
        event(0, 900, "session_initialization", "Session"),
        run_event(1000, 100),
        event(1001, 10, "a.conv_kernel_time"),
        event(1012, 4, "a.act_kernel_time"),
        event(1020, 0, "b_kernel_time"),
        run_event(2000, 80),
        event(2001, 20, "a.conv_kernel_time"),
        event(2022, 5, "a.act_kernel_time"),
        event(2030, 7, "b:out_nchwc_kernel_time"),
    ]
    found = read_profile(events, ("a", "b"))
    assert found.run_ms.tolist() == [0.1, 0.08]
    assert found.layer_ms == pytest.approx(np.array([[0.015, 0.0005], [0.026, 0.0075]]))
    assert found.kernels.tolist() == [2, 1]
    shuffled = [events[i] for i in np.random.default_rng(0).permutation(len(events))]
    assert np.array_equal(read_profile(shuffled, ("a", "b")).layer_ms, found.layer_ms)


def test_nodes_that_the_runtime_adds_count_to_the_layer_before_them():
    names = ["reorder_input", "a.conv", "ReorderOutput", "b.conv", "ReorderInput_token_7", "c"]
    events = [run_event(0, 100), *(event(10 * i + 1, 1, f"{name}_kernel_time") for i, name in enumerate(names))]
    assert read_profile(events, ("a", "b", "c")).kernels.tolist() == [3, 2, 1]  # what comes before all layers, to the first


def test_names_that_begin_alike_are_told_apart():
    layers = ("layers.1", "layers.10", "layers.11", "layers")
    nodes = ["layers.1.conv", "layers.10.conv", "layers.10.act", "layers.11", "layers.flatten", "layers"]
    events = [run_event(0, 100), *(event(10 * i + 1, 1, f"{name}_kernel_time") for i, name in enumerate(nodes))]
    assert read_profile(events, layers).kernels.tolist() == [1, 2, 1, 2]


def test_what_is_no_kernel_is_not_counted():
    events = [
        run_event(0, 50),
        event(1, 9, "a_fence_before"),
        event(2, 9, "a_kernel_time"),
        event(3, 9, "a_fence_after"),
        event(4, 9, "a_kernel_time", "Session"),
        {"name": "process_name", "ph": "M"},
    ]
    found = read_profile(events, ("a",))
    assert (found.layer_ms.tolist(), found.kernels.tolist()) == ([[0.0095]], [1])


# -- int8 --------------------------------------------------------------------------------------------------------


def test_an_int8_network_is_quantised_layer_by_layer(blueprint, monkeypatch):
    made = []
    monkeypatch.setattr(runtimes, "quantise", lambda *args: (made.append(quantise(*args)), made[-1])[1])
    get_runtime(precision="int8").load(blueprint).run()
    counts = counted(made[0])
    assert counts.int8 == counts.weighted > len(blueprint) / 2
    names = {node.name for node in onnx.load_from_string(made[0]).graph.node}
    for index, spec in enumerate(blueprint):
        assert any(name.startswith(layer_key(spec, index)) for name in names)


# -- what is refused ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"name": "tvm"}, "--runtime must be one of ort, torch, torch-compile and --target cpu or cuda, but got 'tvm' and 'cpu'"),
        ({"target": "tpu"}, "but got 'ort' and 'tpu'"),
        ({"name": "torch", "precision": "fp16"}, "--precision must be one of fp32 with --runtime torch on cpu, but got 'fp16'"),
        ({"name": "torch-compile", "precision": "int8"}, "--precision must be one of fp32 with --runtime torch-compile on cpu"),
        ({"precision": "fp16"}, "--precision must be one of fp32, int8 with --runtime ort on cpu, but got 'fp16'"),
        ({"target": "cuda", "precision": "int8"}, "--precision must be one of fp32 with --runtime ort on cuda, but got 'int8'"),
        ({"batch": 0}, "--batch must be"),
        ({"threads": 10**9}, "--threads 1..1024"),
    ],
)
def test_what_does_not_go_together_is_refused(options, text):
    with pytest.raises(UsageError, match=text):
        get_runtime(**options)


@pytest.mark.skipif(not NO_CUDA, reason="a CUDA device is here")
@pytest.mark.parametrize("name", RUNTIMES)
def test_a_device_that_is_not_there_is_named(name):
    with pytest.raises(
        NotFoundError, match="--target cuda needs a CUDA device that torch can use, but there is none here; use --target cpu"
    ):
        get_runtime(name, target="cuda")


def test_the_runtime_of_a_key_is_the_one_that_has_it(monkeypatch):
    monkeypatch.setattr(runtimes, "cuda_device", lambda: "a card")
    for name, target in itertools.product(RUNTIMES, TARGETS):
        for precision in PRECISIONS[name, target]:
            runtime = get_runtime(name, target=target, precision=precision, batch=3, threads=2)
            assert runtime_of(runtime.key) == runtime
            assert runtime_of(replace(runtime.key, device="another")).key == runtime.key  # always of this machine


@pytest.mark.parametrize("text", ["", " ", "unknown", "tensorrt 10 cuda", "onnxruntime", "onnxruntime 1.2 tpu", "torch cuda cpu2"])
def test_tables_of_other_runtimes_cannot_be_measured_again(text):
    with pytest.raises(UsageError, match=f"only tables measured with ort, torch, torch-compile can be .*'{text}'"):
        runtime_of(TableKey(device="d", runtime=text))


def test_a_key_of_a_foreign_precision_is_refused():
    with pytest.raises(UsageError, match="--precision must be"):
        runtime_of(replace(get_runtime().key, precision="w4a16"))


# -- nothing is changed by measuring -----------------------------------------------------------------------------


@pytest.mark.parametrize("threads", [1, 2, 3])
def test_sessions_have_the_threads_of_their_key(blueprint, threads, monkeypatch):
    import onnxruntime as ort

    asked, session = [], ort.InferenceSession
    monkeypatch.setattr(
        ort, "InferenceSession", lambda source, options, **more: (asked.append(options), session(source, options, **more))[1]
    )
    traced = get_runtime(threads=threads).load(blueprint).traced()
    traced.run()
    traced.finish()
    assert [(o.intra_op_num_threads, o.inter_op_num_threads) for o in asked] == [(threads, 1)] * 2
    assert {o.execution_mode for o in asked} == {ort.ExecutionMode.ORT_SEQUENTIAL}


def test_torch_has_the_threads_of_its_key_while_it_is_held_and_its_own_afterwards(blueprint):
    before = torch.get_num_threads()
    runtime = get_runtime("torch", threads=before + 1)
    seen = []
    with runtime.held():
        runner = runtime.load(blueprint)
        runner.layers[0].register_forward_hook(lambda *_: seen.append(torch.get_num_threads()))
        runner.run()
        runner.traced().run()
    assert seen == [before + 1] * 2
    assert torch.get_num_threads() == before
    with pytest.raises(KeyboardInterrupt), runtime.held():
        raise KeyboardInterrupt
    assert torch.get_num_threads() == before


@pytest.mark.parametrize(("name", "precision"), HERE)
def test_measuring_changes_neither_networks_nor_draws(name, precision, blueprint):
    torch.manual_seed(3)
    np.random.seed(3)  # noqa: NPY002 - the legacy state is what must stay
    network = Network(blueprint).eval()
    weights = {key: value.clone() for key, value in network.state_dict().items()}
    inputs = torch.from_numpy(inputs_of(blueprint, 1))
    with torch.inference_mode():
        before = network(inputs)
    states = torch.get_rng_state(), np.random.get_state()[1].copy()  # noqa: NPY002
    runtime = get_runtime(name, precision=precision)
    with runtime.held():
        runner = runtime.load(blueprint)
        runner.run()
        traced = runner.traced()
        traced.run()
        traced.finish()
    assert torch.equal(torch.get_rng_state(), states[0])
    assert np.array_equal(np.random.get_state()[1], states[1])  # noqa: NPY002
    assert all(torch.equal(network.state_dict()[key], value) for key, value in weights.items())
    with torch.inference_mode():
        assert torch.equal(network(inputs), before)
    assert torch.is_grad_enabled()


def test_a_timed_onnx_network_gives_the_same_logits_before_and_after(blueprint):
    content = build_onnx(blueprint, random_weights(blueprint, np.random.default_rng(0)), batch=1)
    inputs = inputs_of(blueprint, 1)
    kept, model = inputs.copy(), OnnxModel(content)
    before = model(inputs)
    action = model.action(inputs)
    for _ in range(3):
        action()
    traced = OnnxRunner(content, inputs, tuple(layer_key(s, i) for i, s in enumerate(blueprint)), 1, "CPUExecutionProvider").traced()
    traced.run()
    traced.finish()
    assert np.array_equal(model(inputs), before)
    assert np.array_equal(inputs, kept)


def test_two_loads_are_the_same_network(blueprint):
    runtime = get_runtime("torch")
    with runtime.held():
        one, two = runtime.load(blueprint), runtime.load(blueprint)
    states = [[p for layer in runner.layers for p in layer.state_dict().values()] for runner in (one, two)]
    assert all(torch.equal(a, b) for a, b in zip(*states, strict=True))
    assert torch.equal(one.x, two.x)


# -- CUDA --------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(NO_CUDA, reason="no CUDA device is here")
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_torch_on_cuda_is_timed_by_events(blueprint, precision):
    runtime = get_runtime("torch", target="cuda", precision=precision, batch=4)
    assert runtime.key.device == torch.cuda.get_device_name(0)
    with runtime.held():
        runner = runtime.load(blueprint)
        ms = [runner.run() for _ in range(5)]
        traced = runner.traced()
        for _ in range(3):
            traced.run()
        found = traced.finish()
    assert all(isinstance(value, float) and value > 0 for value in ms)
    assert runner.x.dtype == (torch.float16 if precision == "fp16" else torch.float32)
    assert runner.x.is_cuda
    assert found.layer_ms.shape == (3, len(blueprint))
    assert (found.layer_ms > 0).all()
    assert found.layer_ms.sum(axis=1) == pytest.approx(found.run_ms)


@pytest.mark.gpu
@pytest.mark.skipif(NO_CUDA, reason="no CUDA device is here")
def test_compiled_torch_runs_on_cuda(blueprint):
    runtime = get_runtime("torch-compile", target="cuda")
    with runtime.held():
        runner = runtime.load(blueprint)
        assert runner.run() > 0
    assert runner.traced() is None


@pytest.mark.gpu
@pytest.mark.skipif(NO_CUDA, reason="no CUDA device is here")
def test_onnx_runtime_runs_on_cuda_or_says_that_it_cannot(blueprint):
    runtime = get_runtime("ort", target="cuda")
    assert not runtime.tells_layers
    try:
        runner = runtime.load(blueprint)
    except NotFoundError as error:
        pytest.skip(str(error))
    runner.run()
    assert runner.traced() is None
