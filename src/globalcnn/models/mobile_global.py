"""MobileNetV2, MobileNetV3 and EfficientNet-B0 with Global layers in place of repeated blocks, for ImageNet.

Each stage keeps one inverted residual (timm's) and follows it with a `GlobalLayer` whose init is an inverted
residual of the same kind. K = 1, constant diffusion; coefficient convolutions with the kernel and activation
of the init, without bias, with norms of eps 1e-5. The networks themselves are tables in `mobile_tables`.

Source: Kag and Saligrama, CVPR 2022, section 4; the baselines are in `mobile_tables`.
"""

from __future__ import annotations

import math
from dataclasses import replace
from functools import partial
from typing import Any

import torch.nn.functional as F
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.linear import Linear
from timm.models._efficientnet_blocks import ConvBnAct, DepthwiseSeparableConv, InvertedResidual
from torch import Tensor, nn

from ..nn import Coefficient, GlobalLayer
from ..ops import PDE
from .base import (
    ImageClassifier,
    Keep,
    activation,
    check_in_chans,
    checked_rate,
    feature,
    norm_and_activation,
    normalisation,
)
from .mobile_tables import (
    EFFICIENTNET_B0,
    MOBILENETV2,
    MOBILENETV3,
    Architecture,
    Block,
    Global,
    Pointwise,
    Residual,
)
from .registry import register

HEAD = 1280
COEFFICIENT_EPS = 1e-5


class MobileGlobal(ImageClassifier):
    """The network of an `Architecture`: stem, `blocks` by stage, 1x1 convolution to 1280 channels, linear.

    pde: if given, the equation of every Global layer in place of the published ones.
    drop_rate: dropout before the linear layer; drop_path_rate: share of samples for which the branch of a
    residual is dropped in training, rising linearly over the blocks from 0.
    act_layer: activation everywhere in place of the published ones; norm_layer: norm of all but the
    coefficients of Global layers, default BatchNorm.

    Initialisation is timm's for these families: convolutions N(0, 2 / fan-out) with the fan-out of one group,
    linear weights uniform within 1 / sqrt(num_classes). The coefficients of the Global layers keep their own
    and start near zero.
    """

    head_name = "classifier"
    stem_pattern = r"^(?:conv_stem|bn1)"
    block_patterns = ((r"^blocks\.(\d+)\.(\d+)", None), (r"^(?:conv_head|bn2)", (1000,)))

    def __init__(
        self,
        architecture: Architecture,
        *,
        pde: PDE | None = None,
        num_classes: int = 1000,
        in_chans: int = 3,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        act_layer: str | type[nn.Module] | None = None,
        norm_layer: str | type[nn.Module] | None = None,
    ) -> None:
        super().__init__()
        check_in_chans(in_chans)
        self.in_chans = in_chans
        drop_path_rate = checked_rate("drop_path_rate", drop_path_rate)
        stem, act = architecture.stem, activation(act_layer, architecture.act)
        norm = normalisation(norm_layer)
        norm_act = norm_and_activation(norm, act)
        if act_layer is not None:
            architecture = _with_activation(architecture, act)
        self.conv_stem = nn.Conv2d(in_chans, stem, 3, stride=2, padding=1, bias=False)
        self.bn1 = norm_act(stem)
        self.blocks = nn.Sequential()
        features: dict[int, dict[str, Any]] = {}  # by reduction; the last stage of each counts
        width, reduction, built = stem, 2, 0
        total = sum(len(stage) for stage in architecture.stages)
        for i, stage in enumerate(architecture.stages):
            modules = []
            for block in stage:
                if isinstance(block, Global) and pde is not None:
                    block = replace(block, pde=pde)
                modules.append(_make_block(block, width, architecture, drop_path_rate * built / total, norm))
                width, reduction, built = block.width, reduction * block.stride, built + 1
            self.blocks.append(nn.Sequential(*modules))
            features[reduction] = feature(width, reduction, f"blocks.{i}")
        self.feature_info = list(features.values())
        self.pool_first = architecture.pool_first
        self.conv_head = nn.Conv2d(width, HEAD, 1, bias=self.pool_first)
        if self.pool_first:
            self.act2 = act()
        else:
            self.bn2 = norm_act(HEAD)
        self.make_head(HEAD, num_classes, global_pool, drop_rate)
        if self.pool_first:
            self.num_features = width
        _initialise(self)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new linear layer for `num_classes` (0: none), and other pooling if named ("avg", "max", ...)."""
        super().reset_classifier(num_classes, global_pool)
        if self.pool_first and num_classes:
            # timm's MobileNetV3 ends in a subclass of nn.Linear, which the published counts omit
            like = self.conv_head.weight
            self.classifier = Linear(HEAD, num_classes, device=like.device, dtype=like.dtype)

    def run_features(self, x: Tensor, keep: Keep) -> Tensor:
        x = self.bn1(self.conv_stem(x))
        for name, stage in self.blocks.named_children():
            x = self.block(stage, x)
            keep(f"blocks.{name}", x)
        if not self.pool_first:
            x = self.bn2(self.conv_head(x))
        return x

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of a feature map; with `pre_logits` what the linear layer would read."""
        x = self.global_pool(x)
        if self.pool_first:
            pooled = not isinstance(self.global_pool, nn.Identity)
            x = self.act2(self.conv_head(x[:, :, None, None] if pooled else x))
            x = x.flatten(1) if pooled else x
        if self.drop_rate:
            x = F.dropout(x, self.drop_rate, self.training)
        if not pre_logits:
            x = self.get_classifier()(x)
        return x


def _with_activation(architecture: Architecture, act: type[nn.Module]) -> Architecture:
    """The same network with one activation in all blocks."""
    stages = []
    for stage in architecture.stages:
        blocks: list[Block] = []
        for block in stage:
            if isinstance(block, Residual):
                block = replace(block, act=None)
            elif isinstance(block, Global):
                block = replace(block, init=replace(block.init, act=None))
            blocks.append(block)
        stages.append(tuple(blocks))
    return replace(architecture, act=act, stages=tuple(stages))


def _make_block(
    block: Block, c_in: int, architecture: Architecture, drop_path_rate: float, norm: Any
) -> nn.Module:
    if isinstance(block, Pointwise):
        return ConvBnAct(c_in, block.width, 1, act_layer=architecture.act, norm_layer=norm)
    if isinstance(block, Residual):
        return _make_residual(block, c_in, architecture, drop_path_rate, norm)
    return GlobalLayer(
        block.width,
        block.pde,
        kernel_size=block.init.kernel,
        bias=False,
        diffusivity=block.diffusivity,
        shared_product=block.shared_product,
        init=_make_residual(block.init, c_in, architecture, drop_path_rate, norm),
        norm_eps=COEFFICIENT_EPS,
        act=block.init.act or architecture.act,
    )


def _make_residual(
    block: Residual, c_in: int, architecture: Architecture, drop_path_rate: float, norm: Any
) -> nn.Module:
    c_mid = c_in * block.expand
    squeeze = architecture.squeeze if block.squeeze else None
    settings: dict[str, Any] = {
        "dw_kernel_size": block.kernel,
        "stride": block.stride,
        "act_layer": block.act or architecture.act,
        "norm_layer": norm,
        "se_layer": squeeze(c_in, c_mid) if squeeze else None,
        "drop_path_rate": drop_path_rate,
    }
    if block.expand == 1:
        return DepthwiseSeparableConv(c_in, block.width, **settings)
    return InvertedResidual(c_in, block.width, exp_ratio=block.expand, **settings)


def _initialise(model: nn.Module) -> None:
    """timm's initialisation, leaving out the coefficients of the Global layers."""
    coefficients = {m for part in model.modules() if isinstance(part, Coefficient) for m in part.modules()}
    for module in model.modules():
        if module in coefficients:
            continue
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size) // module.groups
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, nn.Linear):
            bound = 1.0 / math.sqrt(module.out_features)
            nn.init.uniform_(module.weight, -bound, bound)
            nn.init.zeros_(module.bias)


for _name, _about, _architecture in (
    ("mobilenetv2_global", "MobileNetV2 with five Global layers", MOBILENETV2),
    ("mobilenetv3_global", "MobileNetV3-Large with five Global layers", MOBILENETV3),
    ("efficientnet_b0_global", "EfficientNet-B0 with five Global layers", EFFICIENTNET_B0),
):
    register(
        _name,
        partial(MobileGlobal, _architecture),
        family="mobile_global",
        about=_about,
        dataset="ImageNet-1K",
        input_size=(3, 224, 224),
        num_classes=1000,
        first_conv="conv_stem",
        classifier="classifier",
        feature_cls="hook",
        features=5,
        mean=IMAGENET_DEFAULT_MEAN,
        std=IMAGENET_DEFAULT_STD,
    )
