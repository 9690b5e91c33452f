"""DARTS networks for small images (genotype DARTS_V2), with and without Global layers.

Stem conv3x3 to 3 C-BN, L cells of which the ones at L // 3 and 2 L // 3 halve the sides and double C, average
pool, linear. A cell reads the outputs of the two before it. In the Global variants a `GlobalLayer` is
just before each reduction cell, as one more entry of `cells`; its init is one more normal cell.

The auxiliary head is for training alone: `forward` gives logits in every mode, `forward_with_auxiliary` both.

Source: Liu, Simonyan and Yang, "DARTS: Differentiable Architecture Search", ICLR 2019, section 3.1 and the
figures of its cells; Kag and Saligrama, CVPR 2022, section 4.
"""

from __future__ import annotations

from functools import partial

from torch import Tensor, nn

from ..errors import UserError
from ..nn import GlobalLayer
from ..nn.pooling import grid_average
from ..ops import PDE
from .base import ImageClassifier, Keep, check_in_chans, feature, keep_nothing
from .darts_cells import DARTS_V2, NODES, Cell, DropPath, Genotype
from .registry import register_cifar

STEM_MULTIPLIER = 3


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
        x = self.features(grid_average(x, self.side))
        logits: Tensor = self.classifier(x.flatten(1))
        return logits


class DARTS(ImageClassifier):
    """A stack of cells: `layers` of them (L) with `channels` (C) per node before the first reduction.

    with_global: whether a Global layer precedes each reduction cell; pde: its equation; diffusivity:
    None learns Dx and Dy, a number keeps them constant; bias: whether its coefficient convolutions have one.
    drop_rate: dropout before the linear layer; drop_path_rate: share of samples for which a branch of a cell
    is dropped in training, see `set_drop_path`.

    The auxiliary head is always there, since a checkpoint holds it; counts leave it out. A trainer that wants
    it calls `forward_with_auxiliary` (published weight of its loss: 0.4).

    Initialisation is PyTorch's own, and the coefficients of the Global layers start near zero.
    """

    head_name = "classifier"
    uncounted_modules = ("auxiliary_head",)
    block_patterns = ((r"^cells\.(\d+)", None),)

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

    def _run(self, x: Tensor, keep: Keep) -> tuple[Tensor, Tensor]:
        """(what the last cell makes, what the second reduction cell makes)."""
        s0 = s1 = reduced = self.stem(x)
        for i, cell in enumerate(self.cells):
            out = self.block(cell, s0, s1) if isinstance(cell, Cell) else cell(s1, before=s0)
            keep(f"cells.{i}", out)
            s0, s1 = s1, out
            if i == self.last_reduction:
                reduced = s1
        return s1, reduced

    def run_features(self, x: Tensor, keep: Keep) -> Tensor:
        return self._run(x, keep)[0]

    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """(logits, logits of the auxiliary head), for training."""
        last, reduced = self._run(x, keep_nothing)
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
    register_cifar(
        _name,
        _build,
        _about,
        family="darts",
        dataset="CIFAR-100",
        first_conv="stem.0",
        classifier="classifier",
        feature_cls="hook",
        features=3,
    )
