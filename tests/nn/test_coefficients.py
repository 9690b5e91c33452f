"""The networks that predict coefficients: what they keep, what they hold, what they read."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from globalcnn import UserError
from globalcnn.nn import NETWORKS, Coefficient
from globalcnn.nn.coefficients import check_kernel_size, find_network

C = 6


@pytest.mark.parametrize("bias", [False, True])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("name", NETWORKS)
def test_every_network_keeps_the_shape(name, kernel_size, bias):
    net = Coefficient(C, NETWORKS[name], kernel_size=kernel_size, bias=bias, eps=1.0)
    assert net(torch.randn(2, C, 7, 4)).shape == (2, C, 7, 4)
    convs = [m for m in net.modules() if isinstance(m, nn.Conv2d)]
    assert all((m.bias is not None) == bias for m in convs)
    assert all(m.stride == (1, 1) and m.padding_mode == "zeros" for m in convs)


@pytest.mark.parametrize(
    ("name", "weights"),
    [
        ("depthwise", 9 * C),
        ("full", 9 * C * C),
        ("pointwise", C * C),
        ("identity", 0),
        ("basic", 2 * 9 * C * C + 2 * 2 * C),
        ("bottleneck", (1 + 9 + 1) * C * C + 3 * 2 * C),
    ],
)
def test_weights(name, weights):
    assert sum(p.numel() for p in NETWORKS[name](C, 3, False).parameters()) == weights


def seen_by(name, kernel_size):
    """The elements (channel, row, column) that the central element of the first channel reads."""
    torch.manual_seed(0)
    net = NETWORKS[name](C, kernel_size, False).eval()
    x = torch.randn(1, C, 9, 9).requires_grad_()
    net(x)[0, 0, 4, 4].backward()
    found = x.grad[0].abs() > 0
    return found.any(0).sum().item(), found.any(2).any(1).sum().item()  # pixels, channels


@pytest.mark.parametrize(
    ("name", "pixels", "channels"),
    [("depthwise", 9, 1), ("full", 9, C), ("pointwise", 1, C), ("identity", 1, 1)],
)
def test_what_one_element_reads(name, pixels, channels):
    assert seen_by(name, 3) == (pixels, channels)


def test_a_coefficient_is_a_norm_after_a_network():
    coefficient = Coefficient(C, NETWORKS["depthwise"], kernel_size=3, bias=True, eps=0.5)
    x = torch.randn(4, C, 5, 5)
    y = coefficient.net(x)
    mean, var = y.mean((0, 2, 3), keepdim=True), y.var((0, 2, 3), keepdim=True, unbiased=False)
    torch.testing.assert_close(coefficient(x), (y - mean) / torch.sqrt(var + 0.5))


def test_the_norm_cancels_the_bias_in_training():
    coefficient = Coefficient(C, NETWORKS["depthwise"], kernel_size=3, bias=True, eps=0.5)
    x = torch.randn(4, C, 5, 5)
    before = coefficient(x)
    with torch.no_grad():
        coefficient.net.bias += 3
    torch.testing.assert_close(coefficient(x), before, rtol=1e-4, atol=1e-5)


def test_names_and_functions_are_found():
    assert find_network("full") is NETWORKS["full"]
    own = NETWORKS["pointwise"]
    assert find_network(own) is own
    with pytest.raises(UserError, match="unknown coefficient network 'ful'; did you mean 'full'"):
        find_network("ful")
    with pytest.raises(TypeError, match="coefficients=None must be one of depthwise, full"):
        find_network(None)


@pytest.mark.parametrize("kernel_size", [0, 2, -3])
def test_kernels_that_would_move_the_image(kernel_size):
    with pytest.raises(
        UserError, match=f"kernel_size={kernel_size} must be odd and >= 1, so that H and W stay"
    ):
        check_kernel_size(kernel_size)


@pytest.mark.parametrize("kernel_size", ["3", 3.0, True])
def test_kernels_that_are_no_numbers(kernel_size):
    with pytest.raises(
        TypeError, match=f"kernel_size={kernel_size!r} must be an odd whole number, such as 3"
    ):
        check_kernel_size(kernel_size)
