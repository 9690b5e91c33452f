"""DenseNet-BC for small images, with and without Global layers.

Stem conv3x3 to 2 x growth channels; dense blocks of BN-ReLU-conv1x1-BN-ReLU-conv3x3 layers (timm's);
between them transitions BN-ReLU-conv1x1-average pool 2 that halve channels and sides; BN-ReLU, average pool,
linear. In the Global variants a `GlobalLayer` follows each transition, with
BN-ReLU-1x1(C to 2C)-BN-ReLU-3x3(2C to C) as its init.

Source: Huang et al., "Densely Connected Convolutional Networks", CVPR 2017, sections 3-4; Kag and Saligrama,
CVPR 2022, section 4.
"""

from __future__ import annotations

from functools import partial
from typing import Any

from timm.models.densenet import DenseBlock, DenseLayer, DenseTransition
from torch import Tensor, nn

from ..errors import UserError
from ..nn import GlobalLayer
from ..ops import PDE
from .base import (
    ImageClassifier,
    Keep,
    activation,
    check_in_chans,
    feature,
    init_by_fan_out,
    norm_and_activation,
    normalisation,
    shape_is_known,
)
from .registry import register_cifar

GROWTH = 12
BOTTLENECK = 4
STEPS = 3


class DenseNet(ImageClassifier):
    """A densely connected network with bottlenecks and compression 0.5. Images of at least 4 x 4.

    depths: dense layers per block; growth: channels that each adds.
    with_global: whether a Global layer follows each transition; pde: its equation (default K = 3); bias:
    whether its coefficient convolutions have one.
    drop_rate: dropout before the linear layer; dense_drop_rate: dropout after each dense layer.
    act_layer, norm_layer: of stem, dense layers and transitions, default ReLU and BatchNorm; the Global
    layers take the activation and keep their norms. There is no drop_path_rate: dense layers have no skip.

    Initialisation as published and as in the ResNets: convolutions N(0, 2 / (C_out k k)), norms at 1 and 0;
    the bias of the linear layer starts at 0.
    """

    head_name = "classifier"
    stem_pattern = r"^features\.conv0"
    block_patterns = (
        (r"^features\.denseblock(\d+)\.denselayer(\d+)", None),
        (r"^features\.transition(\d+)", (1000,)),
        (r"^features\.global(\d+)", (1001,)),
        (r"^features\.norm_final", (1000, 0)),
    )

    def __init__(
        self,
        depths: tuple[int, ...],
        *,
        growth: int = GROWTH,
        with_global: bool = False,
        pde: PDE | None = None,
        bias: bool = True,
        num_classes: int = 10,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        dense_drop_rate: float = 0.0,
        act_layer: str | type[nn.Module] | None = None,
        norm_layer: str | type[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_in_chans(in_chans)
        if pde is not None and not with_global:
            raise UserError(f"pde={pde!r} is only for the Global variants; this DenseNet solves no equation")
        self.in_chans = in_chans
        self.reduction = 2 ** (len(depths) - 1)
        self.feature_info = []
        width = 2 * growth
        act = activation(act_layer)
        norm = norm_and_activation(normalisation(norm_layer), act)
        self.features = nn.Sequential()
        self.features.add_module("conv0", nn.Conv2d(in_chans, width, 3, padding=1, bias=False))
        for i, depth in enumerate(depths, start=1):
            self.features.add_module(
                f"denseblock{i}",
                DenseBlock(depth, width, BOTTLENECK, growth, norm_layer=norm, drop_rate=dense_drop_rate),
            )
            width += depth * growth
            if i == len(depths):
                break
            self.feature_info.append(feature(width, 2 ** (i - 1), f"features.denseblock{i}"))
            self.features.add_module(f"transition{i}", DenseTransition(width, width // 2, norm_layer=norm))
            width //= 2
            if with_global:
                equation = PDE(steps=STEPS) if pde is None else pde
                self.features.add_module(
                    f"global{i}", _global_layer(width, equation, bias=bias, act=act, norm=norm)
                )
        self.features.add_module("norm_final", norm(width))
        self.feature_info.append(feature(width, self.reduction, "features.norm_final"))
        init_by_fan_out(self)
        self.make_head(width, num_classes, global_pool, drop_rate)
        classifier = self.get_classifier()
        if isinstance(classifier, nn.Linear):
            nn.init.zeros_(classifier.bias)

    def run_features(self, x: Tensor, keep: Keep) -> Tensor:
        if shape_is_known(x) and min(x.shape[-2:]) < self.reduction:
            raise UserError(
                f"the image is {x.shape[-2]} x {x.shape[-1]}; this DenseNet pools it to 1 / {self.reduction} "
                f"and needs at least {self.reduction} x {self.reduction}"
            )
        for name, module in self.features.named_children():
            x = self.block(module, x)
            keep(f"features.{name}", x)
        return x

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new linear layer for `num_classes` (0: none), and other pooling if named ("avg", "max", ...)."""
        # published counts leave the last average out (a function, not a module), and so does timm's "fast"
        super().reset_classifier(num_classes, "fast" if global_pool == "avg" else global_pool)


def _global_layer(channels: int, pde: PDE, *, bias: bool, act: Any, norm: Any) -> GlobalLayer:
    # a dense layer that adds C channels through a bottleneck of 2 C is the published init block
    init = DenseLayer(channels, growth_rate=channels, bn_size=2, norm_layer=norm)
    return GlobalLayer(channels, pde, bias=bias, init=init, act=act)


_NETWORKS: dict[str, tuple[str, partial[DenseNet]]] = {
    "densenet_cifar": ("DenseNet-BC, three blocks of 16", partial(DenseNet, (16, 16, 16))),
    "densenet_global_cifar": (
        "DenseNet-Global: three blocks of 8, two Global layers",
        partial(DenseNet, (8, 8, 8), with_global=True, bias=False),
    ),
    "densenet_global_large_cifar": (
        "large DenseNet-Global: three blocks of 12, two Global layers",
        partial(DenseNet, (12, 12, 12), with_global=True),
    ),
}

for _name, (_about, _build) in _NETWORKS.items():
    register_cifar(
        _name,
        _build,
        _about,
        family="densenet",
        dataset="CIFAR-100",
        first_conv="features.conv0",
        classifier="classifier",
        feature_cls="hook",
        features=3,
    )
