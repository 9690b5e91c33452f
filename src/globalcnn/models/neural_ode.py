"""Neural ODE on MNIST: the body of the MNIST networks is one ordinary differential equation.

`dy/dt = GN-ReLU-conv3x3-GN-ReLU-conv3x3-GN` of the state at 64 x 6 x 6, t from 0 to 1; each convolution reads
the time as one more channel, the first. Solved by dopri5 with tolerances 1e-3.

Source: Chen et al., "Neural Ordinary Differential Equations", NeurIPS 2018, section 3; conventions as in the
MNIST example of torchdiffeq.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..nn.implicit.ode import ODEBlock
from .mnist import WIDTH, MNISTNet, group_norm, register_mnist

# The printed 100M multiply-adds are 13.825M + 2.6957M per evaluation at about this many
PUBLISHED_EVALUATIONS = 32


class ConcatConv(nn.Module):
    """conv3x3 (with bias) over the time, as the first channel, and the state: (N, C, H, W) to the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.layer = nn.Conv2d(channels + 1, channels, 3, padding=1)

    def forward(self, t: Tensor | float, x: Tensor) -> Tensor:
        time = torch.ones_like(x[:, :1]) * t
        x = self.layer(torch.cat([time, x], 1))
        return x


class ODEFunction(nn.Module):
    """The right-hand side, GN-ReLU-conv-GN-ReLU-conv-GN: called as `f(t, y)`, keeps the shape of y."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm1 = group_norm(channels)
        self.conv1 = ConcatConv(channels)
        self.norm2 = group_norm(channels)
        self.conv2 = ConcatConv(channels)
        self.norm3 = group_norm(channels)

    def forward(self, t: Tensor | float, y: Tensor) -> Tensor:
        y = self.conv1(t, F.relu(self.norm1(y)))
        y = self.conv2(t, F.relu(self.norm2(y)))
        y = self.norm3(y)
        return y


def neural_ode_mnist(
    *,
    method: str = "dopri5",
    rtol: float = 1e-3,
    atol: float = 1e-3,
    steps: int | None = None,
    adjoint: bool = False,
    max_evaluations: int = 1000,
    num_classes: int = 10,
    in_chans: int = 1,
    **head: Any,
) -> MNISTNet:
    """An ODE as the body; the solver's settings are those of `ODEBlock`, which is `model.body[0]`."""
    block = ODEBlock(
        ODEFunction(WIDTH),
        method,
        rtol=rtol,
        atol=atol,
        steps=steps,
        adjoint=adjoint,
        max_evaluations=max_evaluations,
        nominal_evaluations=PUBLISHED_EVALUATIONS if method == "dopri5" else None,
    )
    return MNISTNet(nn.Sequential(block), num_classes=num_classes, in_chans=in_chans, **head)


_WHY = "the adaptive solver looks at the data to choose its steps; method='rk4', 'midpoint' or 'euler' can"

register_mnist(
    "neural_ode_mnist",
    neural_ode_mnist,
    "an ordinary differential equation solved by dopri5 on MNIST",
    family="neural_ode",
    cannot=(("compile", _WHY), ("export", _WHY)),
)
