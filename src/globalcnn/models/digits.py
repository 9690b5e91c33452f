"""The three MNIST-10 backbones of about 500 parameters: convolution, residual, Global.

BN(1)-ReLU-conv3x3(1 to 1) gives f; g is a second such block. digits_conv: h = g(f). digits_residual:
h = f + g(f), BN, ReLU. digits_global: K = 5 steps of the PDE from f with u = v = g(f), D = 1, then BN, ReLU.
Then ReLU, average pool to 7 x 7 (4 x 4 windows at 28 x 28), linear.

Source: Kag and Saligrama, CVPR 2022, MNIST-10 experiment and the figure of its feature maps.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..nn import Evolution, Fields
from ..nn.mode import eval_mode
from ..nn.pooling import grid_average
from ..nn.tracing import call_node
from ..ops import PDE, solve
from .base import ImageClassifier, Keep, check_in_chans, checked_rate, feature
from .mnist import MEAN, STD
from .registry import register

GRID = 7


class SingleConv2d(nn.Conv2d):
    """A 3x3 convolution of one channel to one; in training it is written as nine shifted products.

    oneDNN's gradient of so thin a convolution is several times slower than that of the products, which also
    fuse when compiled.
    """

    def __init__(self) -> None:
        super().__init__(1, 1, 3, padding=1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return super().forward(x)
        height, width = x.shape[2:]
        padded = F.pad(x, (1, 1, 1, 1))
        terms = [
            self.weight[0, 0, i, j] * padded[:, :, i : i + height, j : j + width]
            for i in range(3)
            for j in range(3)
        ]
        return sum(terms[1:], terms[0])


def _block(c_in: int) -> nn.Sequential:
    conv = SingleConv2d() if c_in == 1 else nn.Conv2d(c_in, 1, 3, padding=1, bias=False)
    return nn.Sequential(nn.BatchNorm2d(c_in), nn.ReLU(), conv)


class ConvolutionBody(nn.Module):
    """`h = g(f)`."""

    def __init__(self) -> None:
        super().__init__()
        self.g = _block(1)

    def forward(self, f: Tensor) -> Tensor:
        h: Tensor = self.g(f)
        return h


class ResidualBody(nn.Module):
    """`h = ReLU(BN(f + g(f)))`."""

    def __init__(self) -> None:
        super().__init__()
        self.g = _block(1)
        self.norm = nn.BatchNorm2d(1)

    def forward(self, f: Tensor) -> Tensor:
        return F.relu(self.norm(f + self.g(f)))


class GlobalBody(nn.Module):
    """`h = ReLU(BN(H))`, where H is f after K steps with u = v = g(f) and constant diffusion 1."""

    diffusivity = 1.0

    def __init__(self, pde: PDE) -> None:
        super().__init__()
        self.g = _block(1)
        self.norm = nn.BatchNorm2d(1)
        self.pde = pde

    def forward(self, f: Tensor) -> Tensor:
        if isinstance(f, torch.fx.Proxy):  # one node, since the solve checks shapes
            node: Tensor = call_node(self, f, None)
            return node
        return F.relu(self.norm(self._solve(f, self.g(f).to(f.dtype), self.pde)))

    def _solve(self, f: Tensor, velocity: Tensor, pde: PDE) -> Tensor:
        fields = (f, f, f, velocity, velocity, self.diffusivity, self.diffusivity)
        return solve(*fields, pde)

    @torch.no_grad()
    def evolution(self, f: Tensor) -> Evolution:
        """The state at every step 0..K and the fields that drive it, like `GlobalLayer.evolution`."""
        with eval_mode(self):
            velocity = self.g(f)
            plans = (replace(self.pde, steps=k) for k in range(self.pde.steps + 1))
            levels = tuple(self._solve(f, velocity, plan) for plan in plans)
            fields = Fields(velocity, velocity, self.diffusivity, self.diffusivity)
            return Evolution(source=f, levels=levels, fields=fields, output=F.relu(self.norm(levels[-1])))

    def pde_multiplies(self, height: int, width: int) -> int:
        """Elementwise multiplies of the solve for one image, written out literally."""
        each = self.pde.scheme.multiplies_per_element(self.pde.steps, constant_diffusion=True)
        return each * height * width


class GridPool(nn.Module):
    """Average to 7 x 7 and flatten: (N, 1, h, w) to (N, 49)."""

    def forward(self, x: Tensor) -> Tensor:
        return grid_average(x, GRID).flatten(1)


def grid_pooling(kind: str) -> nn.Module:
    """The pooling is part of these networks, so only "avg" is taken."""
    if kind != "avg":
        raise UserError(f"global_pool={kind!r}: the digits networks always average to 7 x 7 (avg)")
    return GridPool()


class DigitsNet(ImageClassifier):
    """One of the three backbones: `kind` is "conv", "residual" or "global". Images of at least 7 x 7."""

    block_patterns = ((r"^body", (0,)),)

    def __init__(
        self,
        kind: str,
        *,
        pde: PDE | None = None,
        num_classes: int = 10,
        in_chans: int = 1,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_in_chans(in_chans)
        if pde is not None and kind != "global":
            raise UserError(f"pde={pde!r} is only for digits_global; digits_{kind} solves no equation")
        self.in_chans = in_chans
        self.stem = _block(in_chans)
        if kind == "global":
            self.body: nn.Module = GlobalBody(PDE(steps=5) if pde is None else pde)
        else:
            self.body = {"conv": ConvolutionBody, "residual": ResidualBody}[kind]()
        self.act = nn.ReLU()
        self.feature_info = [feature(1, 1, "act")]
        self.num_features, self.head_hidden_size = 1, GRID * GRID
        self.drop_rate = checked_rate("drop_rate", drop_rate)
        self.make_pool = grid_pooling
        self.reset_classifier(num_classes, global_pool)

    def run_features(self, x: Tensor, keep: Keep) -> Tensor:
        x = self.act(self.block(self.body, self.stem(x)))
        keep("act", x)
        return x


for _kind, _about in {
    "conv": "two convolutions of one channel",
    "residual": "two convolutions of one channel with a skip",
    "global": "one convolution of one channel, then five steps of the PDE",
}.items():
    register(
        f"digits_{_kind}",
        partial(DigitsNet, _kind),
        family="digits",
        about=_about,
        dataset="MNIST-10",
        input_size=(1, 28, 28),
        num_classes=10,
        first_conv="stem.2",
        classifier="fc",
        feature_cls="hook",
        features=1,
        mean=MEAN,
        std=STD,
    )
