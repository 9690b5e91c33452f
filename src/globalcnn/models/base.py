"""What every classifier here has in common: timm's contract, written once."""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from timm.layers import SelectAdaptivePool2d
from torch import Tensor, nn

from ..errors import UserError, unknown_name

POOLINGS = ("avg", "max", "avgmax", "fast", "fastavg", "fastmax", "fastavgmax", "")


def global_pooling(kind: str) -> nn.Module:
    """Pooling of the whole feature map to (N, C): "avg", "max" or their mean "avgmax"; "" keeps the map."""
    if kind not in POOLINGS:
        raise unknown_name("global_pool", kind, POOLINGS)
    return SelectAdaptivePool2d(pool_type=kind, flatten=True) if kind else nn.Identity()


class ImageClassifier(nn.Module):
    """Features, pooling, one linear layer: images (N, in_chans, H, W) to logits (N, num_classes).

    A family writes `forward_features` and fills `feature_info`, then calls `make_head` at the end of its
    constructor. `num_features` is the channel count of the feature map, `head_hidden_size` what the linear
    layer reads; num_classes = 0 leaves the pooled features. `head_name` is the attribute of the linear layer.
    """

    head_name: ClassVar[str] = "fc"

    num_classes: int
    in_chans: int
    num_features: int
    head_hidden_size: int
    feature_info: list[dict[str, Any]]
    make_pool: Callable[[str], nn.Module]

    def make_head(self, num_features: int, num_classes: int, global_pool: str, drop_rate: float) -> None:
        """Create the pooling and the linear layer."""
        self.num_features = self.head_hidden_size = num_features
        self.drop_rate = checked_rate("drop_rate", drop_rate)
        self.make_pool = global_pooling
        self.reset_classifier(num_classes, global_pool)

    @abstractmethod
    def forward_features(self, x: Tensor) -> Tensor:
        """The last feature map, (N, num_features, h, w)."""

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        """Logits of a feature map; with `pre_logits` what the linear layer would read."""
        x = self.global_pool(x)
        if self.drop_rate:
            x = F.dropout(x, self.drop_rate, self.training)
        return x if pre_logits else self.get_classifier()(x)

    def forward(self, x: Tensor) -> Tensor:
        """Logits, (N, num_classes)."""
        return self.forward_head(self.forward_features(x))

    def get_classifier(self) -> nn.Module:
        """The linear layer."""
        return self.get_submodule(self.head_name)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """A new linear layer for `num_classes` (0: none), and other pooling if named ("avg", "max", ...)."""
        if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 0:
            raise UserError(f"num_classes={num_classes!r} must be a whole number >= 0 (0: no classifier)")
        if global_pool == "" and num_classes:
            raise UserError(
                'global_pool="" keeps the feature map, which no linear layer reads: num_classes=0'
            )
        self.num_classes = num_classes
        if global_pool is not None:
            self.global_pool = self.make_pool(global_pool)
        width = self.head_hidden_size
        head = nn.Linear(width, num_classes) if num_classes else nn.Identity()
        setattr(self, self.head_name, head.to(_device_and_dtype(self)))


def _device_and_dtype(model: nn.Module) -> Tensor:
    """A tensor on the device and of the dtype of the model, for `.to`."""
    return next((p for p in model.parameters() if p.is_floating_point()), torch.zeros(()))


def init_by_fan_out(model: nn.Module) -> None:
    """Published initialisation: conv weights N(0, 2 / (C_out k k)), not divided by groups; norms 1, 0."""
    for module in model.modules():
        if isinstance(module, nn.Conv2d):
            fan_out = module.out_channels * math.prod(module.kernel_size)
            nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
            if module.bias is not None:
                nn.init.zeros_(module.bias)
        elif isinstance(module, (nn.BatchNorm2d, nn.GroupNorm)):
            nn.init.ones_(module.weight)
            nn.init.zeros_(module.bias)


def feature(channels: int, reduction: int, module: str) -> dict[str, Any]:
    """One entry of `feature_info`."""
    return {"num_chs": channels, "reduction": reduction, "module": module}


def checked_rate(name: str, rate: float) -> float:
    """A share of what is left out in training: a number >= 0 and < 1."""
    if isinstance(rate, bool) or not isinstance(rate, (int, float)) or not 0 <= rate < 1:
        raise UserError(f"{name}={rate!r} must be a number >= 0 and < 1")
    return float(rate)


def check_in_chans(in_chans: int) -> None:
    """The number of input channels is a whole number >= 1."""
    if isinstance(in_chans, bool) or not isinstance(in_chans, int) or in_chans < 1:
        raise UserError(f"in_chans={in_chans!r} must be a whole number >= 1")
