"""The ImageNet networks with Global layers as tables: `MOBILENETV2`, `MOBILENETV3`, `EFFICIENTNET_B0`.

Source: Sandler et al., "MobileNetV2", CVPR 2018, table 2; Howard et al., "Searching for MobileNetV3", ICCV
2019, table 1; Tan and Le, "EfficientNet", ICML 2019, table 1; Kag and Saligrama, CVPR 2022, section 4.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Final, TypeAlias

from timm.layers.helpers import make_divisible
from timm.models._efficientnet_blocks import SqueezeExcite
from torch import nn

from ..ops import PDE

# (input channels of the block, expanded channels) -> a layer that gates the expanded channels
SqueezeFactory = Callable[[int, int], Callable[..., nn.Module]]


@dataclass(frozen=True)
class Residual:
    """An inverted residual: to `width` channels, through `expand` times as many as come in.

    expand = 1 is a depthwise-separable block. squeeze: with squeeze-and-excitation. act: its activation, None
    for that of the network.
    """

    width: int
    kernel: int = 3
    expand: int = 6
    stride: int = 1
    squeeze: bool = False
    act: type[nn.Module] | None = None


@dataclass(frozen=True)
class Global:
    """A Global layer: its init block, equation, constant diffusivity, and whether u = v = act(a act(b))."""

    init: Residual
    pde: PDE = field(default_factory=PDE)
    diffusivity: float = 1.0
    shared_product: bool = True

    @property
    def width(self) -> int:
        """Channels of the state."""
        return self.init.width

    @property
    def stride(self) -> int:
        """By how much the init block divides the sides."""
        return self.init.stride


@dataclass(frozen=True)
class Pointwise:
    """A 1x1 convolution with norm and activation."""

    width: int
    stride: int = 1


Block: TypeAlias = Residual | Global | Pointwise


@dataclass(frozen=True)
class Architecture:
    """Stem width, activation, the blocks of each stage, the width of squeeze-and-excitation.

    pool_first: pool before the 1x1 convolution to 1280 channels, which then has a bias in place of a norm.
    """

    stem: int
    act: type[nn.Module]
    stages: tuple[tuple[Block, ...], ...]
    squeeze: SqueezeFactory | None = None
    pool_first: bool = False


def _squeeze_by_input(c_in: int, c_mid: int) -> Callable[..., nn.Module]:
    return partial(SqueezeExcite, rd_channels=round(c_in * 0.25))


def _squeeze_by_expanded(c_in: int, c_mid: int) -> Callable[..., nn.Module]:
    return partial(
        SqueezeExcite,
        rd_channels=make_divisible(c_mid * 0.25, 8),  # type: ignore[no-untyped-call]
        gate_layer="hard_sigmoid",
        force_act_layer=nn.ReLU,
    )


def _repeated(first: Residual, *, act: type[nn.Module] | None = None) -> tuple[Block, ...]:
    """A stage of MobileNetV2: `first`, then a Global layer with separate u and v."""
    return first, Global(replace(first, stride=1, act=act), shared_product=False)


MOBILENETV2: Final = Architecture(
    stem=32,
    act=nn.ReLU6,
    stages=(
        (Residual(16, expand=1),),
        _repeated(Residual(24, stride=2), act=nn.ReLU),
        _repeated(Residual(32, stride=2), act=nn.ReLU),
        _repeated(Residual(64, stride=2), act=nn.ReLU),
        _repeated(Residual(96)),
        _repeated(Residual(160, stride=2)),
        (Residual(320),),
    ),
)

MOBILENETV3: Final = Architecture(
    stem=16,
    act=nn.Hardswish,
    squeeze=_squeeze_by_expanded,
    pool_first=True,
    stages=(
        (Residual(16, expand=1, act=nn.ReLU),),
        (
            Residual(24, expand=4, stride=2, act=nn.ReLU),
            Global(Residual(24, expand=3, act=nn.ReLU), shared_product=False),
        ),
        (
            Residual(40, 5, expand=3, stride=2, squeeze=True, act=nn.ReLU),
            Global(Residual(40, 5, expand=3, squeeze=True, act=nn.ReLU)),
        ),
        (Residual(80, stride=2), Global(Residual(80))),
        (Residual(112, squeeze=True), Global(Residual(112, squeeze=True))),
        (Global(Residual(160, 5, stride=2, squeeze=True)),),
        (Pointwise(960),),
    ),
)

EFFICIENTNET_B0: Final = Architecture(
    stem=32,
    act=nn.SiLU,
    squeeze=_squeeze_by_input,
    stages=(
        (Residual(16, expand=1, squeeze=True),),
        (
            Residual(24, stride=2, squeeze=True),
            Global(Residual(24, squeeze=True), PDE(dt=0.1), diffusivity=2.0),
        ),
        (
            Residual(40, 5, stride=2, squeeze=True),
            Global(Residual(40, 5, squeeze=True), PDE(dt=0.1, spacing=(2, 2)), diffusivity=2.0),
        ),
        (Residual(80, stride=2, squeeze=True), Global(Residual(80, squeeze=True))),
        (Residual(112, 5, squeeze=True), Global(Residual(112, 5, squeeze=True))),
        (Residual(192, 5, stride=2, squeeze=True), Global(Residual(192, 5, squeeze=True))),
        (Residual(320, squeeze=True),),
    ),
)
