"""Plain blocks in the place of a Global layer: what a PDE must beat at the same cost.

Both keep the shape, and both end as a Global layer does, in BatchNorm and activation.
"""

from __future__ import annotations

import copy
from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import final

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError, UserTypeError
from .coefficients import check_kernel_size
from .start import check_state


class Foldable(nn.Module, ABC):
    """A layer that is fewer standard operators once its statistics and constants are fixed."""

    @abstractmethod
    def folded(self) -> nn.Module | None:
        """The same function in eval mode, as a new module of PyTorch's own layers that shares no tensor with
        this one; None where a part was replaced or is in training mode."""


@final
class NormAct(Foldable):
    """`act(norm(x))`: a Global layer without its evolution. Input and output (N, C, H, W).

    channels: C; act: activation module class, nn.ReLU. Parameters: 2 C. Folded (`graph.fold_batch_norms`),
    the norm is a depthwise 1x1 convolution, which engines run as one operator with the activation.

    Raises `UserError` or `UserTypeError` for settings or inputs that do not fit.

    >>> NormAct(16)(torch.randn(2, 16, 8, 8)).shape
    torch.Size([2, 16, 8, 8])
    """

    def __init__(self, channels: int, act: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        check_settings("NormAct", channels, act)
        self.channels = channels
        self.norm = nn.BatchNorm2d(channels)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        """`act(norm(x))`."""
        _check_input(self, x)
        out: Tensor = self.act(self.norm(x))
        return out

    def folded(self) -> nn.Module | None:
        """A depthwise 1x1 convolution and the activation."""
        one = torch.ones(self.channels, 1, 1, 1, dtype=torch.float64)
        return folded_stencil(one, None, self.norm, self.act)


@final
class ResidualDepthwise(Foldable):
    """`act(norm(x + conv(x)))` with a depthwise k x k convolution, zero beyond the edge.

    The plain rival of a Global layer: it reads the same neighbours (k = 2 K + 1), with learned weights that
    depend neither on the image nor on the place. Input and output (N, C, H, W).

    channels: C; kernel_size: k, odd, 3; act: activation module class, nn.ReLU. Parameters: (k^2 + 2) C.
    The convolution starts as PyTorch's do. Folded (`graph.fold_batch_norms`), the identity is added to the
    kernel's centre and the norm is in the weights: one depthwise convolution and the activation.

    Raises `UserError` or `UserTypeError` for settings or inputs that do not fit.

    >>> block = ResidualDepthwise(16, 5)
    >>> block(torch.randn(2, 16, 8, 8)).shape, sum(p.numel() for p in block.parameters())
    (torch.Size([2, 16, 8, 8]), 432)
    >>> block.eval().folded()
    Sequential(
      (0): Conv2d(16, 16, kernel_size=(5, 5), stride=(1, 1), padding=(2, 2), groups=16)
      (1): ReLU()
    )
    """

    def __init__(self, channels: int, kernel_size: int = 3, act: Callable[[], nn.Module] = nn.ReLU) -> None:
        super().__init__()
        check_settings("ResidualDepthwise", channels, act)
        check_kernel_size(kernel_size)
        self.channels = channels
        self.conv = nn.Conv2d(
            channels, channels, kernel_size, padding=kernel_size // 2, groups=channels, bias=False
        )
        self.norm = nn.BatchNorm2d(channels)
        self.act = act()

    def forward(self, x: Tensor) -> Tensor:
        """`act(norm(x + conv(x)))`."""
        _check_input(self, x)
        out: Tensor = self.act(self.norm(x + self.conv(x)))
        return out

    def folded(self) -> nn.Module | None:
        """A depthwise convolution and the activation."""
        conv = self.conv
        k = conv.kernel_size[0]
        as_built = (
            type(conv) is nn.Conv2d
            and conv.groups == conv.out_channels == self.channels
            and conv.kernel_size == (k, k)
            and conv.padding == (k // 2, k // 2)
            and conv.padding_mode == "zeros"
            and conv.stride == conv.dilation == (1, 1)
        )
        if not as_built or not isinstance(conv.weight, Tensor):
            return None
        weight = conv.weight.detach().double()
        return folded_stencil(weight + F.pad(torch.ones_like(weight[..., :1, :1]), [k // 2] * 4), conv.bias,
                              self.norm, self.act)  # fmt: skip


@torch.no_grad()
def norm_scale_shift(norm: nn.Module) -> tuple[Tensor, Tensor] | None:
    """(scale, shift), each (C) in float64, of a BatchNorm in eval mode with statistics; else None."""
    if type(norm) is not nn.BatchNorm2d or norm.training:
        return None
    if norm.running_mean is None or norm.running_var is None:
        return None
    scale = torch.rsqrt(norm.running_var.double() + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.double()
    shift = -norm.running_mean.double() * scale
    return scale, shift if norm.bias is None else shift + norm.bias.double()


@torch.no_grad()
def folded_stencil(
    weight: Tensor, bias: Tensor | None, norm: nn.Module, act: nn.Module
) -> nn.Sequential | None:
    """`act(norm(stencil + bias))` as a depthwise convolution, zero beyond the edge, and the activation; None
    where the norm is not a BatchNorm in eval mode with statistics.

    weight: (C, 1, k, k), in float64.
    """
    found = norm_scale_shift(norm)
    if found is None:
        return None
    scale, shift = found
    if bias is not None:
        shift = shift + bias.double() * scale
    channels, k = len(weight), weight.shape[-1]
    conv = nn.Conv2d(channels, channels, k, padding=k // 2, groups=channels, device=shift.device)
    conv = conv.to(norm.running_mean.dtype)  # type: ignore[arg-type]
    conv.weight.copy_(weight.to(shift.device) * scale.view(-1, 1, 1, 1))
    assert conv.bias is not None
    conv.bias.copy_(shift)
    return nn.Sequential(conv, copy.deepcopy(act)).eval()


def check_settings(who: str, channels: int, act: object) -> None:
    if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
        raise UserError(f"{who}: channels={channels!r} must be a whole number >= 1")
    if isinstance(act, nn.Module) or not callable(act):
        raise UserTypeError(f"{who}: act={act!r} must be a class of modules, such as torch.nn.ReLU")


def _check_input(block: NormAct | ResidualDepthwise, x: Tensor) -> None:
    if isinstance(x, torch.fx.Proxy) or torch.jit.is_tracing():  # their sizes are placeholders
        return
    check_state(x, block.channels, "its input", who=type(block).__name__)
