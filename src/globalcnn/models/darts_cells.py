"""The cells of the DARTS networks: genotype, operations, drop path.

Source: Liu, Simonyan and Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, sections 2.1 and 3.1.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

NODES = 4  # intermediate nodes per cell; their concatenation is its output


@dataclass(frozen=True)
class Genotype:
    """Two (operation, state) pairs per node; states 0 and 1 are the inputs, 2.. the nodes before."""

    normal: tuple[tuple[str, int], ...]
    reduction: tuple[tuple[str, int], ...]


DARTS_V2: Final = Genotype(
    normal=(
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 0),
        ("sep_conv_3x3", 1),
        ("sep_conv_3x3", 1),
        ("skip_connect", 0),
        ("skip_connect", 0),
        ("dil_conv_3x3", 2),
    ),
    reduction=(
        ("max_pool_3x3", 0),
        ("max_pool_3x3", 1),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
        ("max_pool_3x3", 0),
        ("skip_connect", 2),
        ("skip_connect", 2),
        ("max_pool_3x3", 1),
    ),
)


class Operation(nn.Module):
    """Layers in sequence, held under the name `op`."""

    def __init__(self, *layers: nn.Module) -> None:
        super().__init__()
        self.op = nn.Sequential(*layers)

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.op(x)
        return out


class FactorizedReduce(nn.Module):
    """ReLU, half of the channels from the even pixels and half from the odd ones, BN: halves the sides.

    Sides round up; where one is odd, there is one odd pixel less, and a zero is used.
    """

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv_1 = nn.Conv2d(c_in, c_out // 2, 1, stride=2, bias=False)
        self.conv_2 = nn.Conv2d(c_in, c_out - c_out // 2, 1, stride=2, bias=False)
        self.bn = nn.BatchNorm2d(c_out)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(x)
        shifted = F.pad(x, (-1, 1, -1, 1))
        out: Tensor = self.bn(torch.cat([self.conv_1(x), self.conv_2(shifted)], dim=1))
        return out


def _relu_conv_norm(c_in: int, c_out: int) -> Operation:
    return Operation(nn.ReLU(), nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out))


def _depthwise_separable(channels: int, stride: int, dilation: int = 1) -> list[nn.Module]:
    depthwise = nn.Conv2d(
        channels, channels, 3, stride=stride, padding=dilation, dilation=dilation, groups=channels, bias=False
    )
    return [nn.ReLU(), depthwise, nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels)]


def _sep_conv(channels: int, stride: int) -> nn.Module:
    return Operation(*_depthwise_separable(channels, stride), *_depthwise_separable(channels, 1))


def _dil_conv(channels: int, stride: int) -> nn.Module:
    return Operation(*_depthwise_separable(channels, stride, dilation=2))


def _max_pool(channels: int, stride: int) -> nn.Module:
    return nn.MaxPool2d(3, stride=stride, padding=1)


def _skip(channels: int, stride: int) -> nn.Module:
    return nn.Identity() if stride == 1 else FactorizedReduce(channels, channels)


OPERATIONS: Final[dict[str, Callable[[int, int], nn.Module]]] = {
    "sep_conv_3x3": _sep_conv,
    "dil_conv_3x3": _dil_conv,
    "max_pool_3x3": _max_pool,
    "skip_connect": _skip,
}


class DropPath(nn.Module):
    """In training, set a branch to zero for a share of the samples and scale up the rest.

    The rate is a buffer, so that a schedule over the epochs does not compile the network anew.
    """

    keep: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.active = False
        self.register_buffer("keep", torch.ones(()), persistent=False)

    def set_rate(self, rate: float) -> None:
        """Drop `rate` (in [0, 1)) of the samples."""
        self.active = rate > 0
        self.keep.fill_(1.0 - rate)

    def forward(self, x: Tensor) -> Tensor:
        if not (self.active and self.training):
            return x
        drawn = torch.rand(x.shape[0], 1, 1, 1, device=x.device)
        return x * ((drawn < self.keep) / self.keep).to(x.dtype)


class Cell(nn.Module):
    """A cell of the genotype: (s0, s1) to the concatenation of its four nodes, 4 C channels.

    c_in: channels of s0 and s1; reduction: whether it halves the sides; after_reduction: whether the cell
    before did, so that s0 is twice as large as s1.
    """

    def __init__(
        self,
        edges: tuple[tuple[str, int], ...],
        c_in: tuple[int, int],
        channels: int,
        *,
        reduction: bool = False,
        after_reduction: bool = False,
    ) -> None:
        super().__init__()
        self.preprocess0 = (FactorizedReduce if after_reduction else _relu_conv_norm)(c_in[0], channels)
        self.preprocess1 = _relu_conv_norm(c_in[1], channels)
        self.inputs = tuple(state for _, state in edges)
        # only the two inputs of a reduction cell still have the larger sides
        self._ops = nn.ModuleList(
            OPERATIONS[name](channels, 2 if reduction and state < 2 else 1) for name, state in edges
        )
        self.drop_path = DropPath()

    def forward(self, s0: Tensor, s1: Tensor) -> Tensor:
        states = [self.preprocess0(s0), self.preprocess1(s1)]
        for first in range(0, len(self.inputs), 2):
            states.append(self._branch(first, states) + self._branch(first + 1, states))
        return torch.cat(states[2:], dim=1)

    def _branch(self, edge: int, states: list[Tensor]) -> Tensor:
        op, state = self._ops[edge], states[self.inputs[edge]]
        if isinstance(op, nn.Identity):
            return state
        out: Tensor = self.drop_path(op(state))
        return out
