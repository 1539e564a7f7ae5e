"""The trained once-for-all supernet: all weights, one stateless forward, extraction of ordinary networks."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor, nn

from ofasearch.errors import MismatchError
from ofasearch.space.core import Blueprint, Codes, LayerSpec, Space
from ofasearch.supernet.elastic import Network, build_layer, channels_last, initialise, norms
from ofasearch.supernet.weights import Array, matrix_shapes, slice_layer, slice_network


class _Skeleton:
    """A layer's module without weights of its own: it lends its forward to any."""

    def __init__(self, spec: LayerSpec, sync_bn: bool):
        with torch.device("meta"):
            module = build_layer(spec)
        for norm in norms(module).values():
            norm.momentum = 0.0  # training must not write statistics of one network over another's
            norm.num_batches_tracked = None
        if sync_bn:
            module = nn.SyncBatchNorm.convert_sync_batchnorm(module)  # type: ignore[no-untyped-call]
        self._module = module
        self._places = {
            f"{path}.{name}": (members, name)
            for path, part in module.named_modules()
            for members in (part._parameters, part._buffers)
            for name in members
        }

    def __call__(self, x: Tensor, weights: Mapping[str, Tensor], training: bool) -> Tensor:
        """The layer's output with these weights, which are gone from it afterwards."""
        if self._module.training != training:
            self._module.train(training)
        places = [(*self._places[key], tensor) for key, tensor in weights.items()]
        for members, name, tensor in places:
            members[name] = tensor
        try:
            return self._module(x)  # type: ignore[no-any-return]
        finally:
            for members, name, _ in places:
                members[name] = None


class Supernet(nn.Module):
    """The weights of every network of a space; which one runs is an argument, never a state.

    The full network's modules hold the weights; a blueprint runs layer by layer on slices of them. In training mode
    batch norm uses batch statistics and leaves the running ones alone; in evaluation mode it uses the stored ones,
    which are right only for the network they were calibrated for (see `ofasearch.evaluate.score`).
    """

    def __init__(self, space: Space, *, kernel_transform: bool = True, generator: torch.Generator | None = None):
        super().__init__()
        self.space = space
        self.full = Network(space.blueprint(space.largest()))
        initialise(self.full, generator or torch.Generator().manual_seed(0))
        if kernel_transform:
            self._add_transforms()
        self.sync_bn = False  # in training, batch statistics over all processes (CUDA only)
        self._skeletons: dict[tuple[object, ...], _Skeleton] = {}

    def _add_transforms(self) -> None:
        """Identity-initialised matrices between the kernel sizes of every slot that has a choice (OFA, Appendix B)."""
        for key, (area, _) in matrix_shapes(self.space).items():
            module, _, name = key.rpartition(".")
            self.full.get_submodule(module).register_parameter(name, nn.Parameter(torch.eye(area)))

    def tensors(self) -> dict[str, Tensor]:
        """All weights and statistics by key, sharing memory."""
        found: dict[str, Tensor] = dict(self.full.named_parameters())
        found.update((k, v) for k, v in self.full.named_buffers() if not k.endswith("num_batches_tracked"))
        return found

    def forward(self, x: Tensor, blueprint: Blueprint, mask: Tensor | None = None) -> Tensor:
        """Logits (B, classes) of the network that `blueprint` describes; x is (B, 3, H, H).

        `mask` (B, C) multiplies the classifier's input: dropout, drawn by who trains.
        """
        tensors = self.tensors()
        for spec in blueprint:
            if mask is not None and spec.kind == "linear":
                x = x.flatten(1) * mask
            x = self.run_layer(x, spec, tensors)
        return x

    def run_layer(self, x: Tensor, spec: LayerSpec, tensors: Mapping[str, Tensor]) -> Tensor:
        """One layer of `forward`, on weights from `tensors()`."""
        key = (spec.shape, spec.eps, self.sync_bn)
        if key not in self._skeletons:
            self._skeletons[key] = _Skeleton(spec, self.sync_bn)
        return self._skeletons[key](x, slice_layer(tensors, spec), self.training)

    def extract(self, codes: Codes) -> Network:
        """The network of one row of codes (g,) as an ordinary module: the same numbers, no shared memory.

        Its batch-norm statistics are slices of the supernet's and need recalibration before they mean anything.
        """
        blueprint = self.space.blueprint(codes)
        network = Network(blueprint)
        state = {key: t.detach().clone() for key, t in slice_network(self.tensors(), blueprint).items()}
        network.load_state_dict(state, strict=False)
        first = next(self.parameters())  # the stem: the layout of its 3x3 filters tells that of the whole supernet
        if first.is_contiguous(memory_format=torch.channels_last):
            channels_last(network)
        return network.to(first.device).train(self.training)

    def arrays(self) -> dict[str, Array]:
        """A copy of all weights as numpy, for the file."""
        return {key: np.array(t.detach().cpu().numpy(), order="C") for key, t in self.tensors().items()}

    def load_arrays(self, arrays: Mapping[str, Array]) -> None:
        """Take these weights in place of the own ones.

        Raises MismatchError unless they are exactly those of the space.
        """
        own = self.tensors()
        for key, array in arrays.items():
            if key in own and own[key].shape != array.shape:
                raise MismatchError(f"{key} must have shape {tuple(own[key].shape)} in {self.space.name}, but has {array.shape}")
        missing, unknown = self.full.load_state_dict(
            {key: torch.from_numpy(np.array(array)) for key, array in arrays.items()}, strict=False
        )
        missing = [key for key in missing if not key.endswith("num_batches_tracked")]
        if missing or unknown:
            raise MismatchError(
                f"weights must fit {self.space.name} exactly, but these are missing {missing[:3]} and unknown {unknown[:3]}"
            )

    @staticmethod
    def from_arrays(space: Space, arrays: Mapping[str, Array]) -> Supernet:
        """A supernet with the given weights; kernel transforms are on where the arrays have matrices.

        Raises MismatchError unless they are exactly those of the space.
        """
        supernet = Supernet(space, kernel_transform=any(key in arrays for key in matrix_shapes(space)))
        supernet.load_arrays(arrays)
        return supernet.eval()
