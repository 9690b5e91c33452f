"""MDEQ: multiscale deep equilibrium networks, the fixed point of one cell at several resolutions.

Stem two conv3x3-BN-ReLU, a conv1x1-BN-ReLU whose output is injected into the finest branch; the cell f acts
on branches of halving resolution, starts from zeros, and is solved for z = f(z, injection); the head takes
every branch through a bottleneck and sums down the pyramid.

`mdeq_large_cifar` and `mdeq_small` are the published architectures. `mdeq_cifar` is a **reconstruction**: no
public configuration has the printed 1.1M parameters and 1.5B multiply-adds; branches 16/32/64 with head
14/28/56 and final width 840 have 1.094M and, at 20 evaluations, 1.56B. Its dropout, 0.2, is a choice.

Source: Bai, Koltun and Kolter, "Multiscale Deep Equilibrium Models", NeurIPS 2020, sections 3 and 4, appendix
A.
"""

from __future__ import annotations

from functools import partial
from itertools import pairwise
from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrize
from torch.nn.utils.parametrizations import weight_norm

from ..errors import UserError
from ..nn.implicit.equilibrium import Equilibrium, Solver
from .base import ImageClassifier, Keep, check_in_chans, feature
from .registry import register, register_cifar

GROUPS = 8
HEAD_EXPANSION = 4

Masks = tuple[Tensor | None, ...]


class Branch(nn.Module):
    """The residual block of one resolution: `GN(ReLU(z + GN(drop(conv(ReLU(GN(conv(z))))) + injection)))`.

    Convolutions 3x3 to `expansion` times the channels and back, with weight norm and without bias.
    """

    def __init__(self, channels: int, expansion: int) -> None:
        super().__init__()
        inner = expansion * channels
        self.conv1 = weight_norm(nn.Conv2d(channels, inner, 3, padding=1, bias=False))
        self.norm1 = nn.GroupNorm(GROUPS, inner)
        self.conv2 = weight_norm(nn.Conv2d(inner, channels, 3, padding=1, bias=False))
        self.norm2 = nn.GroupNorm(GROUPS, channels)
        self.norm3 = nn.GroupNorm(GROUPS, channels)

    def forward(self, z: Tensor, injection: Tensor | None, mask: Tensor | None) -> Tensor:
        y = self.conv2(F.relu(self.norm1(self.conv1(z))))
        if mask is not None:
            y = y * mask
        if injection is not None:
            y = y + injection
        r: Tensor = self.norm3(F.relu(z + self.norm2(y)))
        return r


class Downward(nn.Sequential):
    """From a finer branch: stride-2 conv3x3-GN per halving, ReLU between; the last changes the channels."""

    def __init__(self, c_in: int, c_out: int, halvings: int) -> None:
        layers: list[nn.Module] = []
        for i in range(halvings):
            last = i == halvings - 1
            c = c_out if last else c_in
            layers += [nn.Conv2d(c_in, c, 3, stride=2, padding=1, bias=False), nn.GroupNorm(GROUPS, c)]
            layers += [] if last else [nn.ReLU()]
        super().__init__(*layers)


class Upward(nn.Module):
    """From a coarser branch: conv1x1-GN, then nearest upsampling to `size`, whatever that is."""

    def __init__(self, c_in: int, c_out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(c_in, c_out, 1, bias=False)
        self.norm = nn.GroupNorm(GROUPS, c_out)

    def forward(self, x: Tensor, size: torch.Size) -> Tensor:
        return F.interpolate(self.norm(self.conv(x)), size=size, mode="nearest")


class Fused(nn.Module):
    """After the sum over the branches: ReLU-conv1x1 (weight norm)-GN of half as many groups."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = weight_norm(nn.Conv2d(channels, channels, 1, bias=False))
        self.norm = nn.GroupNorm(GROUPS // 2, channels)

    def forward(self, x: Tensor) -> Tensor:
        x = self.norm(self.conv(F.relu(x)))
        return x


class MultiscaleCell(nn.Module):
    """f: a residual block in every branch, then every branch sums the outputs of all branches."""

    def __init__(self, widths: tuple[int, ...], expansion: int) -> None:
        super().__init__()
        self.branches = nn.ModuleList(Branch(c, expansion) for c in widths)
        # fusion.{i}.{j} leads from branch j to branch i
        self.fusion = nn.ModuleList(
            nn.ModuleDict({str(j): _transition(widths, j, i) for j in range(len(widths)) if j != i})
            for i in range(len(widths))
        )
        self.fused = nn.ModuleList(Fused(c) for c in widths)

    def forward(self, z: tuple[Tensor, ...], injection: Tensor, masks: Masks) -> tuple[Tensor, ...]:
        r = [
            branch(z_i, injection if i == 0 else None, mask)
            for i, (branch, z_i, mask) in enumerate(zip(self.branches, z, masks, strict=True))
        ]
        out = []
        for i, (paths, fused) in enumerate(zip(self.fusion, self.fused, strict=True)):
            total = r[i]
            for j, path in paths.items():  # type: ignore[operator]
                r_j = r[int(j)]
                total = total + (path(r_j, r[i].shape[2:]) if int(j) > i else path(r_j))
            out.append(fused(total))
        return tuple(out)


def _transition(widths: tuple[int, ...], j: int, i: int) -> nn.Module:
    return Upward(widths[j], widths[i]) if j > i else Downward(widths[j], widths[i], i - j)


class Bottleneck(nn.Module):
    """Head block: 1x1 to `inner`, 3x3, 1x1 to four times that, projected shortcut; norms without weights."""

    def __init__(self, c_in: int, inner: int) -> None:
        super().__init__()
        c_out = HEAD_EXPANSION * inner
        self.conv1 = nn.Conv2d(c_in, inner, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(inner, affine=False)
        self.conv2 = nn.Conv2d(inner, inner, 3, padding=1, bias=False)
        self.bn2 = nn.BatchNorm2d(inner, affine=False)
        self.conv3 = nn.Conv2d(inner, c_out, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(c_out, affine=False)
        self.shortcut: nn.Sequential | None = None
        if c_in != c_out:
            self.shortcut = nn.Sequential(nn.Conv2d(c_in, c_out, 1, bias=False), nn.BatchNorm2d(c_out))

    def forward(self, x: Tensor) -> Tensor:
        y = F.relu(self.bn1(self.conv1(x)))
        y = F.relu(self.bn2(self.conv2(y)))
        y = self.bn3(self.conv3(y))
        return F.relu(y + (x if self.shortcut is None else self.shortcut(x)))


class MDEQ(ImageClassifier):
    """A multiscale deep equilibrium network.

    Parameters
    ----------
    widths: channels of the branches, finest first, each divisible by 8; the stem is as wide as the first.
    head_widths: inner widths of the head's bottlenecks; final_width: channels of the feature map.
    stem_stride: 1, or 2 for both convolutions of the stem (ImageNet).
    expansion: of the residual blocks in the cell; 5.
    dropout: share of the cell's channels that are left out in training, the same ones in every evaluation of
        a forward and at every pixel (variational dropout).
    solver, backward, gradient, on_failure: see `Equilibrium`, which is `model.equilibrium`; there
        `evaluations`, `residual`, `converged` and `unconverged` can be read after a forward. By default
        Broyden, tolerance 1e-3, at most `nominal_evaluations`, which the published multiply-adds assume.

    For the first steps of training set `model.equilibrium.unroll = 10` (5 for ImageNet), and None afterwards.

    Images of any size: a coarser branch has the rounded-up half of the finer one.
    """

    head_name = "classifier"
    stem_pattern = r"^(?:stem|inject)"
    block_patterns = (
        (r"^equilibrium", (0,)),
        (r"^(?:expand|reduce)\.(\d+)", (1,)),
        (r"^final", (1000,)),
    )

    def __init__(
        self,
        widths: tuple[int, ...],
        head_widths: tuple[int, ...],
        final_width: int,
        *,
        stem_stride: int = 1,
        expansion: int = 5,
        dropout: float = 0.0,
        nominal_evaluations: int = 20,
        solver: Solver | None = None,
        backward: Solver | None = None,
        gradient: Literal["implicit", "unrolled", "jacobian_free"] = "implicit",
        on_failure: Literal["accept", "error"] = "accept",
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_in_chans(in_chans)
        _check_widths(widths, head_widths)
        if not (isinstance(dropout, (int, float)) and 0 <= dropout < 1):
            raise UserError(f"dropout={dropout!r} must be a share, 0 <= dropout < 1")
        self.in_chans = in_chans
        self.widths = widths
        self.dropout = dropout
        self.stem = nn.Sequential(
            *_conv_bn_relu(in_chans, widths[0], 3, stem_stride),
            *_conv_bn_relu(widths[0], widths[0], 3, stem_stride),
        )
        self.inject = nn.Sequential(*_conv_bn_relu(widths[0], widths[0], 1))
        self.equilibrium = Equilibrium(
            MultiscaleCell(widths, expansion),
            Solver(max_evaluations=nominal_evaluations) if solver is None else solver,
            backward=backward,
            gradient=gradient,
            on_failure=on_failure,
            nominal_evaluations=nominal_evaluations,
        )
        outer = [HEAD_EXPANSION * h for h in head_widths]
        self.expand = nn.ModuleList(map(Bottleneck, widths, head_widths))
        self.reduce = nn.ModuleList(
            nn.Sequential(*_conv_bn_relu(c, wider, 3, 2, bias=True)) for c, wider in pairwise(outer)
        )
        self.final = nn.Sequential(*_conv_bn_relu(outer[-1], final_width, 1, bias=True))
        self.feature_info = [feature(c, stem_stride**2 * 2**i, f"expand.{i}") for i, c in enumerate(outer)]
        _initialise(self)
        self.make_head(final_width, num_classes, global_pool, drop_rate)

    def run_features(self, x: Tensor, keep: Keep) -> Tensor:
        injection = self.inject(self.stem(x))
        start = self._zeros(injection)
        masks = tuple(self._mask(z) for z in start)
        states = self.equilibrium(start, injection, masks)
        y: Tensor | None = None
        for i, (expand, state) in enumerate(zip(self.expand, states, strict=True)):
            here = expand(state)
            keep(f"expand.{i}", here)
            y = here if y is None else here + self.reduce[i - 1](y)
        y = self.final(y)
        return y

    def _zeros(self, injection: Tensor) -> tuple[Tensor, ...]:
        n, _, h, w = injection.shape
        states = []
        for c in self.widths:
            states.append(injection.new_zeros(n, c, h, w))
            h, w = (h + 1) // 2, (w + 1) // 2
        return tuple(states)

    def _mask(self, z: Tensor) -> Tensor | None:
        if not self.training or not self.dropout:
            return None
        keep = 1 - self.dropout
        return torch.bernoulli(torch.full_like(z[:, :, :1, :1], keep)) / keep


def _conv_bn_relu(
    c_in: int, c_out: int, kernel_size: int, stride: int = 1, *, bias: bool = False
) -> list[nn.Module]:
    conv = nn.Conv2d(c_in, c_out, kernel_size, stride=stride, padding=kernel_size // 2, bias=bias)
    return [conv, nn.BatchNorm2d(c_out), nn.ReLU()]


def _initialise(model: nn.Module) -> None:
    """Published: N(0, 0.01^2) for convolutions and their biases; where weight norm is, PyTorch's own."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d) and not parametrize.is_parametrized(module):
            nn.init.normal_(module.weight, 0.0, 0.01)
            if module.bias is not None:
                nn.init.normal_(module.bias, 0.0, 0.01)


def _check_widths(widths: tuple[int, ...], head_widths: tuple[int, ...]) -> None:
    if not widths or len(widths) != len(head_widths):
        raise UserError(
            f"widths={widths!r} and head_widths={head_widths!r} must name as many branches, one or more"
        )
    if any(c % GROUPS for c in widths):
        raise UserError(f"widths={widths!r} must be divisible by {GROUPS}, the groups of the norms")


_WHY = "the solver looks at residuals to know when to stop; model.equilibrium.unroll = 10 makes fixed steps"
_SHARED: dict[str, Any] = {
    "family": "mdeq",
    "first_conv": "stem.0",
    "classifier": "classifier",
    "feature_cls": "hook",
    "cannot": (("compile", _WHY), ("export", _WHY)),
}

_large = partial(MDEQ, (32, 64, 128, 256), (14, 28, 56, 112), 1680, dropout=0.3, nominal_evaluations=20)
_small = partial(MDEQ, (32, 64, 128, 256), (24, 48, 96, 192), 2048, stem_stride=2, nominal_evaluations=16)
_cifar = partial(MDEQ, (16, 32, 64), (14, 28, 56), 840, dropout=0.2, nominal_evaluations=20)

register_cifar(
    "mdeq_large_cifar",
    _large,
    "multiscale deep equilibrium network of four branches, large",
    features=4,
    **_SHARED,
)
register(
    "mdeq_small",
    _small,
    about="multiscale deep equilibrium network of four branches, small, for ImageNet",
    dataset="ImageNet-1K",
    input_size=(3, 224, 224),
    num_classes=1000,
    features=4,
    mean=(0.485, 0.456, 0.406),
    std=(0.229, 0.224, 0.225),
    **_SHARED,
)
register_cifar(
    "mdeq_cifar",
    _cifar,
    "multiscale deep equilibrium network of three branches",
    features=3,
    reconstruction=True,
    **_SHARED,
)
