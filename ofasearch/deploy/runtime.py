"""Where a network runs when it is timed: ONNX Runtime, torch, compiled torch; on the CPU or on CUDA; fp32, fp16 or int8.

All are one seam: a `Runtime` has the key under which its measurements are kept and loads the layers of a network as a
`Runner`, whose `run` is one inference. Where the runtime can tell layers apart, `traced` gives a second runner that keeps
account of every layer *inside* the running network. Weights are random: no latency here depends on their values.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import tempfile
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from ofasearch.deploy.export import build_onnx, random_weights
from ofasearch.deploy.quantize import Recipe, prepared, quantise
from ofasearch.errors import NotFoundError, UsageError
from ofasearch.latency.machine import check_run, cpu_device, cuda_device
from ofasearch.latency.onnx_model import OnnxModel
from ofasearch.latency.table import TableKey
from ofasearch.space.core import Blueprint
from ofasearch.supernet.weights import layer_key

SEED = 0  # of weights and inputs
_NUMBERS = itertools.count()


@dataclass(frozen=True, slots=True)
class Trace:
    """An account of several runs: `layer_ms` (runs, layers), `run_ms` (runs,), and how many kernels each layer has (layers,).

    Keeping account takes time, about the same for every kernel: the sum of layers is more than a run without it.
    """

    layer_ms: npt.NDArray[np.float64]
    run_ms: npt.NDArray[np.float64]
    kernels: npt.NDArray[np.float64]


class Runner(Protocol):
    """One network, loaded and fed."""

    def run(self) -> object:
        """One inference, ended when it returns; a float is its milliseconds by the device's own clock."""

    def traced(self) -> TracedRunner | None:
        """The same network keeping account of its layers, or None where the runtime cannot tell layers apart."""


class TracedRunner(Protocol):
    """A network that keeps account of its layers while it runs."""

    def run(self) -> object:
        """One inference."""

    def finish(self) -> Trace:
        """The account of all runs so far; to be asked once."""


class Runtime(Protocol):
    """A way to run networks on this machine."""

    @property
    def key(self) -> TableKey:
        """What its measurements are kept under."""

    @property
    def tells_layers(self) -> bool:
        """Whether its networks can keep account of their layers."""

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Bring this process into the state in which its networks are loaded and run, and back afterwards."""

    def load(self, blueprint: Blueprint) -> Runner:
        """The network with random weights, ready to run."""


def inputs_of(blueprint: Blueprint, batch: int) -> npt.NDArray[np.float32]:
    """Random images (batch, channels, H, W) for the first layer."""
    first = blueprint[0]
    return np.random.default_rng(SEED).normal(size=(batch, first.c_in, first.hw_in, first.hw_in)).astype(np.float32)


# -- ONNX Runtime ----------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class OnnxRuntime:
    """ONNX Runtime, one provider; int8 is `deploy.quantize`'s standard recipe: nothing in float, a scale per channel."""

    key: TableKey
    provider: str = "CPUExecutionProvider"

    @property
    def tells_layers(self) -> bool:
        """By its own profile of every node; not on CUDA, where that would time launches."""
        return self.provider == "CPUExecutionProvider"

    def held(self) -> contextlib.AbstractContextManager[None]:
        """Nothing: threads belong to each session."""
        return contextlib.nullcontext()

    def load(self, blueprint: Blueprint) -> OnnxRunner:
        """Build, quantise where asked, and open the ONNX file."""
        content = build_onnx(blueprint, random_weights(blueprint, np.random.default_rng(SEED)), batch=self.key.batch)
        inputs = inputs_of(blueprint, self.key.batch)
        if self.key.precision == "int8":
            content = quantise(prepared(content), lambda: [inputs], Recipe())
        return OnnxRunner(content, inputs, tuple(layer_key(s, i) for i, s in enumerate(blueprint)), self.key.threads, self.provider)


class OnnxRunner:
    """An ONNX network with its inputs."""

    def __init__(self, content: bytes, inputs: npt.NDArray[np.float32], layers: tuple[str, ...], threads: int, provider: str):
        self._content, self._inputs, self._layers, self._threads, self._provider = content, inputs, layers, threads, provider
        model = OnnxModel(content, threads=threads, provider=provider)
        self.run = model.action(inputs)

    def traced(self) -> TracedOnnxRunner | None:
        """With ONNX Runtime's own profile of every node; None on CUDA, where it would time launches."""
        if self._provider != "CPUExecutionProvider":
            return None
        return TracedOnnxRunner(self._content, self._inputs, self._layers, self._threads)


class LoadedOnnx:
    """An ONNX file that is there already, as a runner; its layers are not told apart."""

    def __init__(self, model: OnnxModel, inputs: npt.NDArray[np.float32 | np.uint8]):
        self.run = model.action(inputs)

    def traced(self) -> None:
        """Nothing is known of its layers."""


class TracedOnnxRunner:
    """An ONNX network under ONNX Runtime's profiler."""

    def __init__(self, content: bytes, inputs: npt.NDArray[np.float32], layers: tuple[str, ...], threads: int):
        self._layers = layers
        self._folder = tempfile.TemporaryDirectory()
        self._model = OnnxModel(content, threads=threads, profile=Path(self._folder.name) / "profile")
        self.run = self._model.action(inputs)

    def finish(self) -> Trace:
        """Read the profile and remove it."""
        events = json.loads(self._model.end_profile().read_text(encoding="utf-8"))
        self._folder.cleanup()
        return read_profile(events, self._layers)


def read_profile(events: list[dict[str, Any]], layers: tuple[str, ...]) -> Trace:
    """What a profile of ONNX Runtime, whose nodes are named `<layer>.<part>`, says of every layer.

    Nodes that the runtime adds (layout changes) count to the layer before them. Durations come in whole microseconds,
    rounded down; half a microsecond is added back.
    """
    starts = sorted((e["ts"], e["dur"]) for e in events if e.get("name") == "model_run")
    kernels = sorted((e["ts"], e["dur"], e["name"]) for e in events if e.get("cat") == "Node" and e["name"].endswith("_kernel_time"))
    layer_ms, counts = np.zeros((len(starts), len(layers))), np.zeros((len(starts), len(layers)))
    run, current = -1, 0
    for begin, duration, name in kernels:
        while run + 1 < len(starts) and begin >= starts[run + 1][0]:
            run, current = run + 1, 0
        current = next((i for i in range(current, len(layers)) if name.startswith(tuple(layers[i] + mark for mark in ".:_"))), current)
        layer_ms[run, current] += (duration + 0.5) / 1000
        counts[run, current] += 1
    return Trace(layer_ms, np.array([duration / 1000 for _, duration in starts]), counts[-1])


# -- torch -----------------------------------------------------------------------------------------------------


@dataclass(frozen=True, slots=True)
class TorchRuntime:
    """Eager or compiled torch on the CPU or on CUDA, in evaluation mode."""

    key: TableKey
    device: str
    compiled: bool = False

    @property
    def tells_layers(self) -> bool:
        """By marks between modules; layers of compiled code are one."""
        return not self.compiled

    @contextlib.contextmanager
    def held(self) -> Iterator[None]:
        """With the number of threads that the key names: torch has one for the whole process."""
        import torch

        before = torch.get_num_threads()
        torch.set_num_threads(self.key.threads)
        try:
            yield
        finally:
            torch.set_num_threads(before)

    def load(self, blueprint: Blueprint) -> TorchRunner:
        """The network as ordinary modules on the device."""
        return TorchRunner(blueprint, self.key, self.device, self.compiled)


class TorchRunner:
    """A torch network with its inputs, to be loaded and run while its runtime is `held`. On CUDA it is timed by events."""

    def __init__(self, blueprint: Blueprint, key: TableKey, device: str, compiled: bool):
        import torch

        from ofasearch.supernet.elastic import Network

        self.torch, self.device, self._compiled = torch, device, compiled
        dtype = torch.float16 if key.precision == "fp16" else torch.float32
        with torch.random.fork_rng(devices=[]):  # the caller's own draws go on as if nothing had been measured
            torch.default_generator.manual_seed(SEED)
            network = Network(blueprint).eval().to(device, dtype)
        self.layers = [layer for _, layer in network.layers()]
        self.x = torch.from_numpy(inputs_of(blueprint, key.batch)).to(device, dtype)
        self._forward: Callable[[Any], Any] = network
        self.run = self._run_cuda if device == "cuda" else self._run_cpu
        if compiled:
            self._compile(network)

    def _compile(self, network: Any) -> None:
        try:
            with warnings.catch_warnings(action="ignore"):  # of the compiler's own use of torch
                self._forward = self.torch.compile(_own_code(network), dynamic=False)
                self.run()
        except Exception as error:  # the compiler raises many kinds, mostly for what the machine lacks
            why = (str(error).splitlines() or [type(error).__name__])[0]
            raise NotFoundError(f"torch.compile must work on this machine for --runtime torch-compile, but it does not: {why}") from error

    def _run_cpu(self) -> None:
        with self.torch.inference_mode():
            self._forward(self.x)

    def _run_cuda(self) -> float:
        with self.torch.inference_mode():
            start = self.event()
            self._forward(self.x)
            end = self.event()
        end.synchronize()
        return float(start.elapsed_time(end))

    def event(self) -> Any:
        """A mark on the device's own clock."""
        event = self.torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
        event.record()
        return event

    def traced(self) -> TracedTorchRunner | None:
        """With the clock (CPU) or events (CUDA) between layers; None for compiled code, whose layers are one."""
        return None if self._compiled else TracedTorchRunner(self)


def _own_code(network: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """The same function with a code object of its own.

    The compiler counts what it compiled by code object; all networks share one, and from the ninth on it would run them
    uncompiled without a word.
    """

    def forward(x: Any) -> Any:
        return network(x)

    forward.__code__ = forward.__code__.replace(co_name=f"forward_{next(_NUMBERS)}")
    return forward


class TracedTorchRunner:
    """The same modules, with a mark between layers."""

    def __init__(self, runner: TorchRunner):
        self._runner, self._found = runner, list[list[float]]()
        self._mark = runner.event if runner.device == "cuda" else time.perf_counter

    def run(self) -> None:
        """One inference, layer by layer."""
        with self._runner.torch.inference_mode():
            x, marks = self._runner.x, [self._mark()]
            for layer in self._runner.layers:
                x = layer(x)
                marks.append(self._mark())
        self._found.append(self._differences(marks))

    def _differences(self, marks: list[Any]) -> list[float]:
        if isinstance(marks[0], float):
            return [1000 * (after - before) for before, after in itertools.pairwise(marks)]
        marks[-1].synchronize()
        return [float(before.elapsed_time(after)) for before, after in itertools.pairwise(marks)]

    def finish(self) -> Trace:
        """All runs; one mark for every layer."""
        layer_ms = np.array(self._found)
        return Trace(layer_ms, layer_ms.sum(axis=1), np.ones(layer_ms.shape[1]))


# -- by name ---------------------------------------------------------------------------------------------------

RUNTIMES = ("ort", "torch", "torch-compile")
TARGETS = ("cpu", "cuda")
PRECISIONS = {("ort", "cpu"): ("fp32", "int8"), ("ort", "cuda"): ("fp32",)}
PRECISIONS |= {("torch", "cpu"): ("fp32",), ("torch", "cuda"): ("fp32", "fp16")}
PRECISIONS |= {("torch-compile", target): PRECISIONS["torch", target] for target in TARGETS}


def get_runtime(name: str = "ort", *, target: str = "cpu", precision: str = "fp32", batch: int = 1, threads: int = 1) -> Runtime:
    """A runtime on this machine, by its names on the command line.

    Raises UsageError for what does not go together, NotFoundError where the machine has no such device.
    """
    check_run(batch=batch, threads=threads)
    if (name, target) not in PRECISIONS:
        raise UsageError(f"--runtime must be one of {', '.join(RUNTIMES)} and --target cpu or cuda, but got '{name}' and '{target}'")
    if precision not in PRECISIONS[name, target]:
        known = ", ".join(PRECISIONS[name, target])
        raise UsageError(f"--precision must be one of {known} with --runtime {name} on {target}, but got '{precision}'")
    device = cpu_device() if target == "cpu" else cuda_device()
    key = TableKey(device=device, runtime=_version(name, target), precision=precision, batch=batch, threads=threads)
    if name == "ort":
        return OnnxRuntime(key, {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}[target])
    return TorchRuntime(key, target, compiled=name == "torch-compile")


def _version(name: str, target: str) -> str:
    if name == "ort":
        import onnxruntime as ort

        return f"onnxruntime {ort.__version__} {target}"
    import torch

    return f"{name} {torch.__version__} {target}"


def runtime_of(key: TableKey) -> Runtime:
    """The runtime of this machine that measures as a table of that key was measured (the device may still differ).

    Raises UsageError for a runtime that is none of ours, NotFoundError where the machine has no such device.
    """
    words = key.runtime.split()
    name, target = {"onnxruntime": "ort"}.get(words[0], words[0]) if words else "", words[-1] if words else ""
    if (name, target) not in PRECISIONS:
        raise UsageError(
            f"only tables measured with {', '.join(RUNTIMES)} can be measured again here, but this one was with '{key.runtime}'"
        )
    return get_runtime(name, target=target, precision=key.precision, batch=key.batch, threads=key.threads)
