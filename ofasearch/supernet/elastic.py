"""The torch modules of every layer kind, and the ordinary network that a blueprint describes.

Legend: B = batch, C = channels, H = W = pixels. There is one forward per layer kind: the supernet runs these same
modules with sliced tensors in place of their own, so an extracted network computes bit for bit what its slice does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial
from typing import Any, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.grad import conv2d_weight

from ofasearch.errors import ArchError
from ofasearch.space.core import Act, Blueprint, Kind, LayerSpec
from ofasearch.supernet.weights import layer_key

FILTER_COLUMNS = 3  # of depthwise filters, differentiated at once
CACHED = 2**22  # floats of their images that are copied at once

ACTIVATIONS: dict[Act, Callable[[], nn.Module]] = {
    "none": nn.Identity,
    "relu": partial(nn.ReLU, inplace=True),
    "relu6": nn.ReLU6,
    "h_swish": nn.Hardswish,
}


class _Depthwise(torch.autograd.Function):
    """`F.conv2d` with one filter per channel and "same" padding, whose filters are differentiated a few columns at a time.

    On CPU, oneDNN takes the gradient of wider filters, and of filters larger than the image, on the path of dense
    convolutions, with 16 times the work. The columns of a filter are independent, so the numbers are the same.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, filters: Tensor, stride: int) -> Tensor:
        """(B, C, H, H), filters (C, 1, k, k) -> (B, C, H / stride, H / stride)."""
        ctx.save_for_backward(x, filters)
        ctx.stride = stride
        return F.conv2d(x, filters, None, stride, filters.shape[-1] // 2, groups=len(filters))

    @staticmethod
    def backward(ctx: Any, slope: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        """Gradients of the image and of the filters."""
        x, filters = ctx.saved_tensors
        padding, stride = filters.shape[-1] // 2, ctx.stride
        image, gradient = ctx.needs_input_grad[:2]
        whole = filters.shape[-1] <= min(FILTER_COLUMNS, x.shape[-1])
        dx, df, _ = torch.ops.aten.convolution_backward(
            slope, x, filters, None, [stride] * 2, [padding] * 2, [1, 1], False, [0, 0], len(filters), [image, gradient and whole, False]
        )
        return dx, _filter_gradient(x, slope, filters, stride) if gradient and not whole else df, None


def _filter_gradient(x: Tensor, slope: Tensor, filters: Tensor, stride: int) -> Tensor:
    """(C, 1, k, k) from x (B, C, H, H) and slope (B, C, H / stride, H / stride)."""
    channels, _, kernel, _ = filters.shape
    reach = (slope.shape[-1] - 1) * stride
    before = kernel // 2
    after = reach + kernel - before - x.shape[-1]
    images = max(1, CACHED // (channels * (reach + kernel) ** 2))
    total = torch.zeros_like(filters)
    for some, slopes in zip(torch.split(x, images), torch.split(slope, images), strict=True):
        padded = F.pad(some, (before, after) * 2)
        for start in range(0, kernel, FILTER_COLUMNS):
            columns = min(FILTER_COLUMNS, kernel - start)
            seen = padded[..., start : start + reach + columns]  # what these columns of the filter slide over
            part = conv2d_weight(seen, (channels, 1, kernel, columns), slopes, stride, groups=channels)  # type: ignore[no-untyped-call]
            total[..., start : start + columns] += part
    return total


class DepthwiseConv(nn.Conv2d):
    """One filter per channel: the usual convolution, with quicker gradients on CPU."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, H) -> (B, C, H / stride, H / stride)."""
        if not self.training or x.device.type != "cpu" or x.dtype != self.weight.dtype:  # the types differ in mixed precision
            return super().forward(x)
        return _Depthwise.apply(x, self.weight, self.stride[0])  # type: ignore[no-any-return, no-untyped-call]


class PointConv(nn.Conv2d):
    """A 1x1 convolution, which is a matrix product where the image is one pixel."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, H) -> (B, c_out, H, H)."""
        if x.shape[-1] > 1:
            return super().forward(x)
        return F.linear(x.flatten(1), self.weight.flatten(1).contiguous(), self.bias)[..., None, None]


class ConvNorm(nn.Module):
    """Convolution with "same" padding, then batch norm, activation and the skip where the layer has them."""

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
        skip: bool = False,
    ):
        super().__init__()
        kind = DepthwiseConv if groups > 1 else PointConv if kernel == 1 else nn.Conv2d
        self.conv = kind(c_in, c_out, kernel, stride, kernel // 2, groups=groups, bias=False)
        self.bn = nn.BatchNorm2d(c_out, eps=eps) if norm else nn.Identity()
        self.act = ACTIVATIONS[act]()
        self.skip = skip

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, H) -> (B, c_out, H / stride, H / stride)."""
        y: Tensor = self.act(self.bn(self.conv(x)))
        return x + y if self.skip else y


class SqueezeExcite(nn.Module):
    """Channel gates from the pooled features: reduce, ReLU, expand, hard sigmoid."""

    def __init__(self, channels: int, reduced: int):
        super().__init__()
        self.reduce = PointConv(channels, reduced, 1)
        self.expand = PointConv(reduced, channels, 1)

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


class Bottleneck(nn.Module):
    """ResNet's block: reduce 1x1, convolve k x k, expand 1x1, and the shortcut, which is pooled and widened where it must be."""

    def __init__(self, spec: LayerSpec):
        super().__init__()
        mid = spec.c_mid
        self.conv1 = ConvNorm(spec.c_in, mid, act=spec.act, eps=spec.eps)
        self.conv2 = ConvNorm(mid, mid, kernel=spec.kernel, stride=spec.stride, act=spec.act, eps=spec.eps)
        self.conv3 = ConvNorm(mid, spec.c_out, eps=spec.eps)
        self.pool = nn.AvgPool2d(spec.stride, ceil_mode=True) if spec.stride > 1 else nn.Identity()
        self.down = nn.Identity() if spec.skip else ConvNorm(spec.c_in, spec.c_out, eps=spec.eps)
        self.act = ACTIVATIONS[spec.act]()

    def forward(self, x: Tensor) -> Tensor:
        """(B, c_in, H, H) -> (B, c_out, H / stride, H / stride)."""
        y: Tensor = self.conv3(self.conv2(self.conv1(x)))
        return self.act(y + self.down(self.pool(x)))  # type: ignore[no-any-return]


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
        return ConvNorm(
            spec.c_in, spec.c_out, kernel=spec.kernel, stride=spec.stride, act=spec.act, eps=spec.eps, norm=spec.norm, skip=spec.skip
        )
    if spec.kind == "mbconv":
        return MBConv(spec)
    if spec.kind == "bottleneck":
        return Bottleneck(spec)
    if spec.kind == "maxpool":
        return nn.MaxPool2d(spec.kernel, spec.stride, spec.kernel // 2)
    if spec.kind == "pool":
        return Pool()
    if spec.kind == "linear":
        return Classifier(spec)
    raise ArchError(f"layer kind must be one of {', '.join(get_args(Kind))}, but got '{spec.kind}'")


class Network(nn.Module):
    """An ordinary network of one blueprint: usual modules, usual state dict, keyed `<slot>.<part>`."""

    def __init__(self, blueprint: Blueprint):
        super().__init__()
        self.blueprint = blueprint
        self._paths = tuple(layer_key(spec, index) for index, spec in enumerate(blueprint))
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
        elif isinstance(module, Bottleneck) and isinstance(module.down, nn.Identity):
            nn.init.zeros_(module.conv3.bn.weight)  # type: ignore[arg-type]


def _normal(parameter: Tensor, std: float, generator: torch.Generator) -> None:
    with torch.no_grad():
        parameter.normal_(0.0, std, generator=generator)


def channels_last(module: nn.Module) -> None:
    """Lay the weights out as (out, height, width, in), in place: on CPU such convolutions train up to 4 times faster."""
    module.to(memory_format=torch.channels_last)  # type: ignore[call-overload]


def norms(module: nn.Module) -> dict[str, nn.BatchNorm2d]:
    """All batch norms of a module by name."""
    return {name: m for name, m in module.named_modules() if isinstance(m, nn.BatchNorm2d)}
