"""NeuPDE: a feature map evolves under a partial differential equation with a learned right-hand side.

`du/dt = GN(W2 ReLU(GN(W1 [u, ux, uy, uxx, uyy, uxy])))`, t from 0 to 1, with 1x1 convolutions W1 (6 C to h)
and W2 (h to C). The five derivatives are depthwise 3x3 convolutions that start as central differences and are
trained.

These networks are **reconstructions**: Sun, Zhang and Schaeffer, "NeuPDE: Neural Network Based Ordinary and
Partial Differential Equations for Modeling Time-Dependent Data", arXiv 1908.03190, give the equation, but no
public configuration gives the networks behind the printed 180K parameters and 50M multiply-adds (MNIST), 9M
and 4.1B (CIFAR). Chosen here to fit them:

- MNIST: stem and head of the MNIST networks, C = 64 at 6 x 6, h = 96, 11 midpoint steps (22 evaluations):
  179,242 parameters, 50.2M multiply-adds.
- CIFAR: stem conv3x3(3 to 160)-GN-ReLU; an equation at 32 x 32, 16 x 16 and 8 x 8 with C = 160, 320, 640 and
  h = 1.75 C, each solved by 2 midpoint steps (4 evaluations); conv3x3 of stride 2-GN-ReLU between them; then
  GN-ReLU, average pool, linear: 8.96M parameters (9.02M with 100 classes), 4.14B multiply-adds.
- Both: biases in W1 and W2 alone; GroupNorm (32 groups, or as many as divide the channels); replicated
  border; no dependence on t; PyTorch's initialisation but for the differences.
"""

from __future__ import annotations

import math
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..nn.implicit.ode import FIXED_STEP, ODEBlock
from .base import ImageClassifier, Keep, check_in_chans, feature
from .mnist import WIDTH, MNISTNet, register_mnist
from .registry import register_cifar

# ux, uy, uxx, uyy, uxy on a grid of spacing 1; x is dim 2 (rows), y is dim 3 (columns)
_DIFFERENCES = (
    ((0, -1 / 2, 0), (0, 0, 0), (0, 1 / 2, 0)),
    ((0, 0, 0), (-1 / 2, 0, 1 / 2), (0, 0, 0)),
    ((0, 1, 0), (0, -2, 0), (0, 1, 0)),
    ((0, 0, 0), (1, -2, 1), (0, 0, 0)),
    ((1 / 4, 0, -1 / 4), (0, 0, 0), (-1 / 4, 0, 1 / 4)),
)


def group_norm(channels: int) -> nn.GroupNorm:
    """GroupNorm with 32 groups, or as many as divide both 32 and the channels."""
    return nn.GroupNorm(math.gcd(32, channels), channels)


class _Derivatives(nn.Conv2d):
    """The five derivatives of each channel, (N, 5 C, H, W): a depthwise convolution with replicated border.

    torch.compile expects the gradient of a 4-D map's border in planes, and PyTorch (2.14) gives it in the
    memory format of the map, which ends in an AssertionError. 3-D maps have one format alone.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(
            channels,
            len(_DIFFERENCES) * channels,
            3,
            padding=1,
            padding_mode="replicate",
            groups=channels,
            bias=False,
        )
        with torch.no_grad():
            self.weight.copy_(torch.tensor(_DIFFERENCES)[:, None].repeat(channels, 1, 1, 1))

    def forward(self, input: Tensor) -> Tensor:
        if not torch.compiler.is_dynamo_compiling() or torch.compiler.is_exporting():
            return super().forward(input)
        border = F.pad(input.flatten(0, 1), (1, 1, 1, 1), mode="replicate")
        return F.conv2d(border.view(*input.shape[:2], *border.shape[1:]), self.weight, groups=self.groups)


class PDEFunction(nn.Module):
    """The right-hand side: called as `f(t, u)`, u (N, C, H, W), keeps its shape; t is not used."""

    def __init__(self, channels: int, hidden: int) -> None:
        super().__init__()
        self.derivatives = _Derivatives(channels)
        self.mix1 = nn.Conv2d((1 + len(_DIFFERENCES)) * channels, hidden, 1)
        self.norm1 = group_norm(hidden)
        self.mix2 = nn.Conv2d(hidden, channels, 1)
        self.norm2 = group_norm(channels)

    def forward(self, t: Tensor | float, u: Tensor) -> Tensor:
        features = torch.cat([u, self.derivatives(u)], 1)
        u = self.norm2(self.mix2(F.relu(self.norm1(self.mix1(features)))))
        return u


def _evolution(channels: int, hidden: int, method: str, steps: int, adjoint: bool) -> ODEBlock:
    if method not in FIXED_STEP:
        raise UserError(f"method={method!r}: NeuPDE networks take fixed steps, by {', '.join(FIXED_STEP)}")
    return ODEBlock(PDEFunction(channels, hidden), method, steps=steps, adjoint=adjoint)


def neupde_mnist(
    *,
    hidden: int = 96,
    method: str = "midpoint",
    steps: int = 11,
    adjoint: bool = False,
    num_classes: int = 10,
    in_chans: int = 1,
    **head: Any,
) -> MNISTNet:
    """A partial differential equation as the body of the MNIST network; the solve is `model.body[0]`."""
    body = nn.Sequential(_evolution(WIDTH, hidden, method, steps, adjoint))
    return MNISTNet(body, num_classes=num_classes, in_chans=in_chans, **head)


class NeuPDE(ImageClassifier):
    """Partial differential equations at halving resolutions, the first at that of the image.

    width: channels of the first, doubled from one to the next; expansion: h / C; resolutions: how many;
    method, steps, adjoint: how each is solved, as in `ODEBlock`.
    """

    block_patterns = ((r"^evolutions\.(\d+)", (0,)), (r"^reductions\.(\d+)", (1,)), (r"^norm", (1000,)))

    def __init__(
        self,
        *,
        width: int = 160,
        expansion: float = 1.75,
        resolutions: int = 3,
        method: str = "midpoint",
        steps: int = 2,
        adjoint: bool = False,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_in_chans(in_chans)
        self.in_chans = in_chans
        widths = [width * 2**i for i in range(resolutions)]
        self.stem = _conv_norm_act(in_chans, width, 1)
        self.evolutions = nn.ModuleList(
            _evolution(c, round(expansion * c), method, steps, adjoint) for c in widths
        )
        self.reductions = nn.ModuleList(_conv_norm_act(c, wider, 2) for c, wider in pairwise(widths))
        self.norm = group_norm(widths[-1])
        self.act = nn.ReLU()
        self.feature_info = [feature(c, 2**i, f"evolutions.{i}") for i, c in enumerate(widths)]
        self.make_head(widths[-1], num_classes, global_pool, drop_rate)

    def run_features(self, x: Tensor, keep: Keep) -> Tensor:
        u: Tensor = self.stem(x)
        for i, evolve in enumerate(self.evolutions):
            u = evolve(u if i == 0 else self.reductions[i - 1](u))
            keep(f"evolutions.{i}", u)
        u = self.act(self.norm(u))
        return u


def _conv_norm_act(c_in: int, c_out: int, stride: int) -> nn.Sequential:
    conv = nn.Conv2d(c_in, c_out, 3, stride=stride, padding=1, bias=False)
    return nn.Sequential(conv, group_norm(c_out), nn.ReLU())


register_mnist(
    "neupde_mnist",
    neupde_mnist,
    "a partial differential equation with a learned right-hand side on MNIST",
    family="neupde",
    reconstruction=True,
)
register_cifar(
    "neupde_cifar",
    NeuPDE,
    "three partial differential equations with learned right-hand sides",
    family="neupde",
    first_conv="stem.0",
    classifier="fc",
    feature_cls="hook",
    features=3,
    reconstruction=True,
)
