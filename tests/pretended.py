"""A pretended device: networks take the milliseconds that a test wants, by a clock of the device's own."""

import contextlib
from dataclasses import replace

import numpy as np

from ofasearch.deploy.runtime import Trace
from ofasearch.latency.memory import network_name
from ofasearch.latency.table import TableKey
from ofasearch.space.costs import macs

KEY = TableKey(device="pretended", runtime="onnxruntime 0 cpu")
KERNEL_MS = 0.002  # what keeping account of a kernel costs


def layer_ms(spec):
    """A layer that is paid by its work, and for being there."""
    return 0.001 + 1.2e-8 * macs(spec)


class Device:
    """Networks take the sum of `layer_ms`, times `pace`; remembers by name what was loaded and timed.

    `scatter` is the relative standard deviation of a run. `stop_at` interrupts at that network (counted from 1), as
    Ctrl-C would. `tells_layers` as a runtime has it.
    """

    def __init__(self, layer_ms=layer_ms, *, key=KEY, tells_layers=True, scatter=0.0):
        self.layer_ms, self.key, self.tells_layers, self.scatter = layer_ms, key, tells_layers, scatter
        self.pace, self.stop_at, self.loaded = 1.0, None, []
        self.rng = np.random.default_rng(0)
        self.is_held = 0

    def ms(self, blueprint):
        """What a whole network takes when the device is itself."""
        return float(sum(map(self.layer_ms, blueprint)))

    @contextlib.contextmanager
    def held(self):
        self.is_held += 1
        try:
            yield
        finally:
            self.is_held -= 1

    def load(self, blueprint):
        assert self.is_held == 1
        self.loaded.append(network_name(blueprint))
        if self.stop_at is not None and len(self.loaded) >= self.stop_at:
            raise KeyboardInterrupt
        return _Runner(self, blueprint)

    def pretend(self, patch):
        """Stand for this machine wherever a runtime is asked for."""

        def get_runtime(name="ort", *, target="cpu", precision="fp32", batch=1, threads=1):
            self.key = replace(self.key, batch=batch, threads=threads)
            return self

        for module in ("deploy.runtime", "jobs.setup", "jobs.populations", "jobs.bench", "jobs.explain"):
            patch.setattr(f"ofasearch.{module}.get_runtime", get_runtime)
        return self


class _Runner:
    def __init__(self, device, blueprint):
        self.device, self.blueprint, self.took = device, blueprint, []

    def run(self):
        assert self.device.is_held == 1
        scatter = np.exp(self.device.scatter * self.device.rng.normal()) if self.device.scatter else 1.0
        return self.device.ms(self.blueprint) * self.device.pace * float(scatter)

    def traced(self):
        return _Traced(self.device, self.blueprint) if self.device.tells_layers else None


class _Traced(_Runner):
    def run(self):
        self.took.append(super().run() + KERNEL_MS * len(self.blueprint) * self.device.pace)
        return self.took[-1]

    def finish(self):
        layers = np.array([self.device.layer_ms(spec) + KERNEL_MS for spec in self.blueprint])
        run_ms = np.array(self.took)
        return Trace(run_ms[:, None] * layers / layers.sum(), run_ms, np.ones(len(layers)))
