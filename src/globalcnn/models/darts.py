"""DARTS networks for small images (genotype DARTS_V2), with and without Global layers.

Stem conv3x3 to 3 C-BN, L cells of which the ones at L // 3 and 2 L // 3 halve the sides and double C, average
pool, linear. A cell reads the outputs of the two before it. In the Global variants a `GlobalLayer` stands
just before each reduction cell, as one more entry of `cells`; its init is one more normal cell.

The auxiliary head is for training alone: `forward` gives logits in every mode, `forward_with_auxiliary` both.

Source: Liu, Simonyan and Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, section 3.1 and the
figures of its cells; Kag and Saligrama, CVPR 2022, section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Final

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError
from ..nn import GlobalLayer
from ..ops import PDE
from .base import ImageClassifier, check_in_chans, feature
from .registry import register

NODES = 4  # intermediate nodes per cell; their concatenation is its output
STEM_MULTIPLIER = 3


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

    Sides round up; where one is odd, the odd pixels are one short and a zero stands in.
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


class AuxiliaryHead(nn.Module):
    """A second classifier on the output of the second reduction cell.

    It is made for maps of 8 x 8 (images of 32 x 32); others are first averaged to that.
    """

    side = 8

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            nn.ReLU(),
            nn.AvgPool2d(5, stride=3),
            nn.Conv2d(channels, 128, 1, bias=False),
            nn.BatchNorm2d(128),
            nn.ReLU(inplace=True),
            nn.Conv2d(128, 768, 2, bias=False),
            nn.BatchNorm2d(768),
            nn.ReLU(inplace=True),
        )
        self.reset_classifier(0)

    def reset_classifier(self, num_classes: int) -> None:
        """A new linear layer for `num_classes` (0: none)."""
        like = next(self.features.parameters())
        linear = partial(nn.Linear, 768, num_classes, device=like.device, dtype=like.dtype)
        self.classifier: nn.Module = linear() if num_classes else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = self.features(F.adaptive_avg_pool2d(x, self.side))
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


class DARTS(ImageClassifier):
    """A stack of cells: `layers` of them (L) with `channels` (C) per node before the first reduction.

    with_global: whether a Global layer stands before each reduction cell; pde: its equation; diffusivity:
    None learns Dx and Dy, a number keeps them constant; bias: whether its coefficient convolutions have one.
    drop_rate: dropout before the linear layer; drop_path_rate: share of samples for which a branch of a cell
    is dropped in training, see `set_drop_path`.

    The auxiliary head is always there, since a checkpoint holds it; counts leave it out. A trainer that wants
    it calls `forward_with_auxiliary` (published weight of its loss: 0.4).

    Initialisation is PyTorch's own, and the coefficients of the Global layers start near zero.
    """

    head_name = "classifier"
    uncounted_modules = ("auxiliary_head",)

    def __init__(
        self,
        layers: int,
        channels: int,
        *,
        genotype: Genotype = DARTS_V2,
        with_global: bool = False,
        pde: PDE | None = None,
        diffusivity: float | tuple[float, float] | None = None,
        bias: bool = True,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        check_in_chans(in_chans)
        if pde is not None and not with_global:
            raise UserError(f"pde={pde!r} is only for the Global variants; this network solves no equation")
        if isinstance(layers, bool) or not isinstance(layers, int) or layers < 3:
            raise UserError(f"layers={layers!r} must be a whole number >= 3: two of them are reduction cells")
        self.in_chans = in_chans
        width = STEM_MULTIPLIER * channels
        self.stem = nn.Sequential(nn.Conv2d(in_chans, width, 3, padding=1, bias=False), nn.BatchNorm2d(width))
        self.cells = nn.ModuleList()
        self.feature_info = []
        c_in, after_reduction = (width, width), False
        reductions = (layers // 3, 2 * layers // 3)
        for i in range(layers):
            reduction = i in reductions
            if reduction:
                if with_global:
                    init = Cell(genotype.normal, c_in, channels, after_reduction=after_reduction)
                    layer = GlobalLayer(c_in[1], pde, bias=bias, diffusivity=diffusivity, init=init)
                    self.cells.append(layer)
                    c_in, after_reduction = (c_in[1], c_in[1]), False
                self._end_stage(c_in[1])
                channels *= 2
            edges = genotype.reduction if reduction else genotype.normal
            cell = Cell(edges, c_in, channels, reduction=reduction, after_reduction=after_reduction)
            self.cells.append(cell)
            c_in, after_reduction = (c_in[1], NODES * channels), reduction
            if i == reductions[1]:
                self.last_reduction = len(self.cells) - 1
                self.auxiliary_head = AuxiliaryHead(c_in[1])
        self._end_stage(c_in[1])
        self.set_drop_path(drop_path_rate)
        self.make_head(c_in[1], num_classes, global_pool, drop_rate)

    def _end_stage(self, channels: int) -> None:
        """The last of `cells` so far makes the features of its stage."""
        stage = len(self.feature_info)
        self.feature_info.append(feature(channels, 2**stage, f"cells.{len(self.cells) - 1}"))

    def set_drop_path(self, rate: float) -> None:
        """In training, drop each branch of each cell but the skips for `rate` of the samples.

        The published schedule rises linearly over the epochs, to 0.2. Raises `UserError` unless
        0 <= rate < 1.
        """
        if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
            raise UserError(f"drop path: rate={rate!r} must be a number >= 0 and < 1")
        for module in self.modules():
            if isinstance(module, DropPath):
                module.set_rate(rate)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """New linear layers, also in the auxiliary head, and other pooling if named ("avg", "max", ...)."""
        super().reset_classifier(num_classes, global_pool)
        self.auxiliary_head.reset_classifier(num_classes)

    def _run(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(what the last cell makes, what the second reduction cell makes)."""
        s0 = s1 = reduced = self.stem(x)
        for i, cell in enumerate(self.cells):
            out = cell(s1, before=s0) if isinstance(cell, GlobalLayer) else cell(s0, s1)
            s0, s1 = s1, out
            if i == self.last_reduction:
                reduced = s1
        return s1, reduced

    def forward_features(self, x: Tensor) -> Tensor:
        return self._run(x)[0]

    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, logits of the auxiliary head), for training."""
        last, reduced = self._run(x)
        return self.forward_head(last), self.auxiliary_head(reduced)


_NETWORKS: dict[str, tuple[str, partial[DARTS]]] = {
    "darts_cifar": ("DARTS of 20 cells", partial(DARTS, 20, 36)),
    "darts_tiny_cifar": ("tiny DARTS of 20 cells", partial(DARTS, 20, 3)),
    "darts_global_cifar": (
        "DARTS-Global: six cells, two Global layers of five steps",
        partial(DARTS, 6, 36, with_global=True, pde=PDE(steps=5), diffusivity=1.0),
    ),
    "darts_global_large_cifar": (
        "large DARTS-Global: nine cells, two Global layers",
        partial(DARTS, 9, 48, with_global=True),
    ),
    "darts_global_tiny_cifar": (
        "tiny DARTS-Global: seven cells, two Global layers",
        partial(DARTS, 7, 5, with_global=True, diffusivity=1.0),
    ),
}

for _name, (_about, _build) in _NETWORKS.items():
    register(
        _name,
        _build,
        family="darts",
        about=_about,
        dataset="CIFAR-100",
        input_size=(3, 32, 32),
        num_classes=10,
        first_conv="stem.0",
        classifier="classifier",
        feature_cls="hook",
        features=3,
    )
