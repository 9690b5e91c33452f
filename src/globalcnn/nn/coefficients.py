"""The cheap networks that predict velocity and diffusion from the features."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from torch import Tensor, nn

from ..errors import UserError, UserTypeError, unknown_name

# (channels, kernel_size, bias) -> a network that keeps the shape
NetFactory = Callable[[int, int, bool], nn.Module]


def conv(c_in: int, c_out: int, kernel_size: int, *, groups: int = 1, bias: bool) -> nn.Conv2d:
    """A stride-1 convolution that keeps H and W (zero padding)."""
    return nn.Conv2d(c_in, c_out, kernel_size, padding=kernel_size // 2, groups=groups, bias=bias)


def depthwise(channels: int, kernel_size: int, bias: bool) -> nn.Module:
    """One filter per channel: the published choice, `kernel_size`^2 multiplies per element."""
    return conv(channels, channels, kernel_size, groups=channels, bias=bias)


def full(channels: int, kernel_size: int, bias: bool) -> nn.Module:
    """A dense convolution that mixes channels."""
    return conv(channels, channels, kernel_size, bias=bias)


def pointwise(channels: int, kernel_size: int, bias: bool) -> nn.Module:
    """A 1x1 convolution; `kernel_size` is not used."""
    return conv(channels, channels, 1, bias=bias)


def identity(channels: int, kernel_size: int, bias: bool) -> nn.Module:
    """The features themselves; only the norm has parameters."""
    return nn.Identity()


class _Residual(nn.Module):
    """`relu(x + branch(x))`."""

    def __init__(self, branch: nn.Sequential) -> None:
        super().__init__()
        self.branch = branch
        self.act = nn.ReLU()

    def forward(self, x: Tensor) -> Tensor:
        return self.act(x + self.branch(x))


def basic(channels: int, kernel_size: int, bias: bool) -> nn.Module:
    """A basic residual block: two dense convolutions with norms."""
    return _Residual(
        nn.Sequential(
            conv(channels, channels, kernel_size, bias=bias),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            conv(channels, channels, kernel_size, bias=bias),
            nn.BatchNorm2d(channels),
        )
    )


def bottleneck(channels: int, kernel_size: int, bias: bool) -> nn.Module:
    """A bottleneck residual block of expansion 1: 1x1, k x k, 1x1, each `channels` wide."""
    return _Residual(
        nn.Sequential(
            conv(channels, channels, 1, bias=bias),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            conv(channels, channels, kernel_size, bias=bias),
            nn.BatchNorm2d(channels),
            nn.ReLU(),
            conv(channels, channels, 1, bias=bias),
            nn.BatchNorm2d(channels),
        )
    )


NETWORKS: Final[dict[str, NetFactory]] = {
    "depthwise": depthwise,
    "full": full,
    "pointwise": pointwise,
    "identity": identity,
    "basic": basic,
    "bottleneck": bottleneck,
}


def find_network(choice: str | NetFactory) -> NetFactory:
    """The factory of that name, or the callable itself."""
    if isinstance(choice, str):
        if choice not in NETWORKS:
            raise unknown_name("coefficient network", choice, NETWORKS)
        return NETWORKS[choice]
    if not callable(choice):
        raise UserTypeError(
            f"coefficients={choice!r} must be one of {', '.join(NETWORKS)}, "
            "or a function (channels, kernel_size, bias) -> module that keeps the shape"
        )
    return choice


class Coefficient(nn.Module):
    """`BN(net(x))`: one coefficient before its activation. Shapes (N, C, H, W) to the same.

    net: the network, with its bias cancelled by the norm in training; norm: BatchNorm with `eps`, whose large
    published value (C) keeps velocities small.
    """

    def __init__(self, channels: int, net: NetFactory, *, kernel_size: int, bias: bool, eps: float) -> None:
        super().__init__()
        self.net = net(channels, kernel_size, bias)
        self.norm = nn.BatchNorm2d(channels, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.net(x))


def check_kernel_size(kernel_size: int) -> None:
    """Only kernels with an odd side keep H and W."""
    if isinstance(kernel_size, bool) or not isinstance(kernel_size, int):
        raise UserTypeError(f"kernel_size={kernel_size!r} must be an odd whole number, such as 3")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise UserError(f"kernel_size={kernel_size} must be odd and >= 1, so that H and W stay")
