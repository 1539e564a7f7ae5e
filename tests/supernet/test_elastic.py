"""The convolutions with their own gradients or products compute what torch's do."""

import pytest
import torch
import torch.nn.functional as F

from ofasearch.space.families import get_space
from ofasearch.supernet import elastic
from ofasearch.supernet.elastic import DepthwiseConv, PointConv
from ofasearch.supernet.supernet import Supernet


def drawn(*shape, channels_last=False):
    x = torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64)
    return (x.contiguous(memory_format=torch.channels_last) if channels_last else x).requires_grad_()


@pytest.mark.parametrize("channels_last", [False, True], ids=["default", "channels_last"])
@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("kernel", [3, 5, 7])
@pytest.mark.parametrize("size", [1, 2, 3, 4, 7, 8])
def test_depthwise_gradients_are_those_of_a_convolution(size, kernel, stride, channels_last):
    conv = DepthwiseConv(6, 6, kernel, stride, kernel // 2, groups=6, bias=False).double()
    x = drawn(5, 6, size, size, channels_last=channels_last)
    y = conv(x)
    expected = F.conv2d(x, conv.weight, None, stride, kernel // 2, groups=6)
    assert torch.equal(y, expected)
    slope = drawn(*y.shape)
    for ours, theirs in zip(*(torch.autograd.grad(out, (x, conv.weight), slope) for out in (y, expected)), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_large_images_are_differentiated_part_by_part(monkeypatch):
    conv = DepthwiseConv(4, 4, 5, 1, 2, groups=4, bias=False).double()
    x = drawn(7, 4, 9, 9)
    gradients = []
    for cached in (2**22, 4 * 13 * 13 * 3, 1):  # all images at once, three, one
        monkeypatch.setattr(elastic, "CACHED", cached)
        gradients.append(torch.autograd.grad(conv(x).square().sum(), conv.weight)[0])
    assert all(torch.allclose(gradient, gradients[0], rtol=1e-12) for gradient in gradients)


def test_frozen_filters_and_images_get_no_gradient():
    conv = DepthwiseConv(4, 4, 7, 1, 3, groups=4, bias=False).double()
    x = drawn(2, 4, 3, 3)
    conv.weight.requires_grad_(False)
    conv(x).sum().backward()
    assert conv.weight.grad is None
    assert x.grad.abs().sum() > 0
    conv.weight.requires_grad_()
    conv(x.detach()).sum().backward()
    assert conv.weight.grad.abs().sum() > 0


def test_a_depthwise_convolution_trains_in_mixed_precision():
    conv = DepthwiseConv(4, 4, 5, 1, 2, groups=4, bias=False)
    with torch.autocast("cpu", torch.bfloat16):
        conv(torch.ones(2, 4, 6, 6, dtype=torch.bfloat16)).sum().backward()
    assert conv.weight.grad.dtype == torch.float32
    assert conv.weight.grad[0, 0, 2, 2] == 2 * 6 * 6


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("size", [1, 3])
def test_a_point_convolution_is_a_convolution(size, bias):
    conv = PointConv(6, 10, 1, bias=bias).double()
    x = drawn(5, 6, size, size)
    y, expected = conv(x), F.conv2d(x, conv.weight, conv.bias)
    assert y.shape == expected.shape
    assert torch.allclose(y, expected, rtol=1e-12, atol=1e-12)
    for ours, theirs in zip(*(torch.autograd.grad(out.square().sum(), (x, conv.weight)) for out in (y, expected)), strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-12, atol=1e-12)


def test_a_layer_keeps_no_weights_that_it_was_lent():
    space = get_space("ofa-mbv3-cifar")
    supernet = Supernet(space).train()
    supernet(torch.zeros(2, 3, 32, 32), space.blueprint(space.smallest()))
    assert supernet._skeletons
    for skeleton in supernet._skeletons.values():
        assert all(tensor.is_meta for tensor in (*skeleton._module.parameters(), *skeleton._module.buffers()))
