"""The cheap networks that predict velocity and diffusion from the features."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Final, final

import torch.nn.functional as F
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


class Reduced(nn.Module, ABC):
    """A network that predicts fewer numbers than the map has elements, from which the rest is repeated.

    The norm of a `Coefficient` acts on the fewer numbers, of `norm_channels` channels.
    """

    norm_channels: int

    @abstractmethod
    def restore(self, y: Tensor, x: Tensor) -> Tensor:
        """The normed output `y`, repeated to the shape of the features `x`."""


@final
class SharedGroups(Reduced):
    """A convolution from each group of channels to one map, which all channels of the group share.

    groups: number of groups of neighbouring channels, a divisor of `channels`. Multiplies as `depthwise`, a
    `groups`-th of C maps come out of it: what follows (norm, activation, products with the state) is cheaper.
    """

    def __init__(self, channels: int, kernel_size: int, bias: bool, groups: int) -> None:
        super().__init__()
        self.norm_channels = groups
        self.conv = conv(channels, groups, kernel_size, groups=groups, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, groups, H, W)."""
        out: Tensor = self.conv(x)
        return out

    def restore(self, y: Tensor, x: Tensor) -> Tensor:
        """(N, groups, H, W) to (N, C, H, W)."""
        each = self.conv.in_channels // self.norm_channels
        return y.unsqueeze(2).expand(-1, -1, each, -1, -1).flatten(1, 2)


@final
class HalfResolution(Reduced):
    """A depthwise convolution of the map averaged over 2 x 2 pixels; each output holds for those pixels.

    At an odd side the last row or column is averaged over fewer pixels. A quarter of the multiplies.
    """

    def __init__(self, channels: int, kernel_size: int, bias: bool) -> None:
        super().__init__()
        self.norm_channels = channels
        self.conv = conv(channels, channels, kernel_size, groups=channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, ceil(H / 2), ceil(W / 2))."""
        out: Tensor = self.conv(F.avg_pool2d(x, 2, ceil_mode=True, count_include_pad=False))
        return out

    def restore(self, y: Tensor, x: Tensor) -> Tensor:
        """(N, C, ceil(H / 2), ceil(W / 2)) to (N, C, H, W), by repetition."""
        return F.interpolate(y, scale_factor=2.0, mode="nearest")[:, :, : x.shape[2], : x.shape[3]]


def shared_groups(channels: int, kernel_size: int, bias: bool) -> nn.Module:
    """One map for each group of four neighbouring channels; of two or all where four do not divide them."""
    each = next((n for n in (4, 2, 3) if channels % n == 0), channels)
    return SharedGroups(channels, kernel_size, bias, channels // each)


def half_resolution(channels: int, kernel_size: int, bias: bool) -> nn.Module:
    """A depthwise convolution at half the resolution."""
    return HalfResolution(channels, kernel_size, bias)


NETWORKS: Final[dict[str, NetFactory]] = {
    "depthwise": depthwise,
    "full": full,
    "pointwise": pointwise,
    "identity": identity,
    "basic": basic,
    "bottleneck": bottleneck,
    "shared-groups": shared_groups,
    "half-resolution": half_resolution,
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
    """`BN(net(x))`: one coefficient before its activation. Shapes (N, C, H, W) to the same; the output
    of a `Reduced` network is normed before it is repeated.

    net: the network, with its bias cancelled by the norm in training; norm: BatchNorm with `eps`, whose large
    published value (C) keeps velocities small.
    """

    def __init__(self, channels: int, net: NetFactory, *, kernel_size: int, bias: bool, eps: float) -> None:
        super().__init__()
        self.net = net(channels, kernel_size, bias)
        width = self.net.norm_channels if isinstance(self.net, Reduced) else channels
        self.norm = nn.BatchNorm2d(width, eps=eps)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.norm(self.net(x))
        return self.net.restore(out, x) if isinstance(self.net, Reduced) else out


def check_kernel_size(kernel_size: int) -> None:
    """Only kernels with an odd side keep H and W."""
    if isinstance(kernel_size, bool) or not isinstance(kernel_size, int):
        raise UserTypeError(f"kernel_size={kernel_size!r} must be an odd whole number, such as 3")
    if kernel_size < 1 or kernel_size % 2 == 0:
        raise UserError(f"kernel_size={kernel_size} must be odd and >= 1, so that H and W stay")


def as_pair(who: str, diffusivity: float | tuple[float, float] | None) -> tuple[float, float] | None:
    """(Dx, Dy) of a setting `diffusivity`, or None (learned); `UserError` otherwise."""
    if diffusivity is None:
        return None
    pair = diffusivity if isinstance(diffusivity, (tuple, list)) else (diffusivity, diffusivity)
    numbers = len(pair) == 2 and all(isinstance(D, (int, float)) and not isinstance(D, bool) for D in pair)
    if not numbers or not all(math.isfinite(D) and D >= 0 for D in pair):
        raise UserError(
            f"{who}: diffusivity={diffusivity!r} must be a number >= 0, a pair, or None (learned)"
        )
    return float(pair[0]), float(pair[1])
