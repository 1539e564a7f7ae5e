"""The torch modules of every layer kind, and the ordinary network that a blueprint describes.

Legend: B = batch, C = channels, H = W = pixels. There is one forward per layer kind: the supernet runs these same
modules with sliced tensors in place of their own, so an extracted network computes bit for bit what its slice does.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ofasearch.errors import ArchError
from ofasearch.space.core import Act, Blueprint, LayerSpec

ACTIVATIONS: dict[Act, type[nn.Module]] = {"none": nn.Identity, "relu": nn.ReLU, "relu6": nn.ReLU6, "h_swish": nn.Hardswish}


class ConvNorm(nn.Module):
    """Convolution with "same" padding, then batch norm and activation where the layer has them."""

    def __init__(
        self,
        c_in: int,
        c_out: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        act: Act = "none",
        eps: float = 1e-5,
        norm: bool = True,
    ):
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=eps) if norm else nn.Identity()
        self.act = ACTIVATIONS[act]()

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, H) -> (B, c_out, H / stride, H / stride)."""
        return self.act(self.bn(self.conv(x)))  # type: ignore[no-any-return]


class SqueezeExcite(nn.Module):
    """Channel gates from the pooled features: reduce, ReLU, expand, hard sigmoid."""

    def __init__(self, channels: int, reduced: int):
        super().__init__()
        self.reduce = nn.Conv2d(channels, reduced, 1)
        self.expand = nn.Conv2d(reduced, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, H) -> the same shape."""
        gate = self.expand(F.relu(self.reduce(x.mean((2, 3), keepdim=True))))  # (B, C, 1, 1)
        return x * F.hardsigmoid(gate)


class MBConv(nn.Module):
    """Inverted bottleneck: expand 1x1, depthwise k x k, squeeze-excite, project 1x1, and the skip where it has one."""

    def __init__(self, spec: LayerSpec):
        super().__init__()
        mid = spec.c_mid
        self.expand = ConvNorm(spec.c_in, mid, act=spec.act, eps=spec.eps) if mid != spec.c_in else nn.Identity()
        self.depth = ConvNorm(mid, mid, kernel=spec.kernel, stride=spec.stride, groups=mid, act=spec.act, eps=spec.eps)
        self.se = SqueezeExcite(mid, spec.c_se) if spec.c_se else nn.Identity()
        self.project = ConvNorm(mid, spec.c_out, eps=spec.eps)
        self.skip = spec.skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, H) -> (B, c_out, H / stride, H / stride)."""
        y: Tensor = self.project(self.se(self.depth(self.expand(x))))
        return x + y if self.skip else y


class Pool(nn.Module):
    """Global average pool."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, H) -> (B, C, 1, 1)."""
        return x.mean((2, 3), keepdim=True)


class Classifier(nn.Module):
    """The linear layer that ends a network."""

    def __init__(self, spec: LayerSpec):
        super().__init__()
        self.linear = nn.Linear(spec.c_in, spec.c_out, bias=spec.bias)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, 1, 1) -> (B, classes)."""
        return self.linear(x.flatten(1))  # type: ignore[no-any-return]


def build_layer(spec: LayerSpec) -> nn.Module:
    """The module of one layer, freshly initialised.

    Raises ArchError for a kind without a module.
    """
    if spec.kind == "conv":
        return ConvNorm(spec.c_in, spec.c_out, kernel=spec.kernel, stride=spec.stride, act=spec.act, eps=spec.eps, norm=spec.norm)
    if spec.kind == "mbconv":
        return MBConv(spec)
    if spec.kind == "pool":
        return Pool()
    if spec.kind == "linear":
        return Classifier(spec)
    raise ArchError(f"layer kind must be conv, mbconv, pool or linear, but got '{spec.kind}'")


class Network(nn.Module):
    """An ordinary network of one blueprint: usual modules, usual state dict, keyed `<slot>.<part>`."""

    def __init__(self, blueprint: Blueprint):
        super().__init__()
        self.blueprint = blueprint
        self._paths = tuple(spec.slot or f"layers.{index}" for index, spec in enumerate(blueprint))
        for path, spec in zip(self._paths, blueprint, strict=True):
            _attach(self, path, build_layer(spec))

    def layers(self) -> Iterator[tuple[LayerSpec, nn.Module]]:
        """The layers in order of computation."""
        for path, spec in zip(self._paths, self.blueprint, strict=True):
            yield spec, self.get_submodule(path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, 3, H, H) -> logits (B, classes)."""
        for path in self._paths:
            x = self.get_submodule(path)(x)
        return x


def _attach(root: nn.Module, path: str, module: nn.Module) -> None:
    *parents, leaf = path.split(".")
    for name in parents:
        if name not in root._modules:
            root.add_module(name, nn.Module())
        root = root.get_submodule(name)
    root.add_module(leaf, module)


def initialise(network: nn.Module, generator: torch.Generator) -> None:
    """He initialisation by fan-out for convolutions, ones and zeros for batch norms (once-for-all's "he_fout")."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.kernel_size[0] * module.kernel_size[1] * module.out_channels // module.groups
            _normal(module.weight, (2.0 / fan_out) ** 0.5, generator)
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            _normal(module.weight, module.in_features**-0.5, generator)
            nn.init.zeros_(module.bias)


def zero_last_gammas(network: nn.Module) -> None:
    """Scale 0 in the last batch norm of every residual block, in place: blocks start as identities (BigNAS)."""
    for module in network.modules():
        if isinstance(module, MBConv) and module.skip:
            nn.init.zeros_(module.project.bn.weight)  # type: ignore[arg-type]


def _normal(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    with torch.no_grad():
        parameter.normal_(0.0, std, generator=generator)


def channels_last(module: nn.Module) -> None:
    """Lay the weights out as (out, height, width, in), in place: on CPU such convolutions train up to 4 times faster."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def norms(module: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """All batch norms of a module by name."""
    return {name: m for name, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)}
