"""How the figures printed in Kag and Saligrama (CVPR 2022) count multiply-adds.

Their convention is that of the counter `thop`. Per output element, for a kernel of k elements and c input
channels per group: a convolution c k, and 1 with a bias; a linear layer its input features; BatchNorm 2;
average pooling 1, adaptive average pooling its kernel + 1, where the kernel is input // output size. Nothing
else, so the PDE is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.pooling import _AvgPoolNd

from ..graph import TensorInfo
from ..measure.counts import pde_macs, product_macs
from ..measure.module_costs import below, module_costs

_ADAPTIVE_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)

# Layers were looked up by exact class, which a subclass of nn.Linear escapes: timm's MobileNetV3 classifies
# with one.
_UNSEEN_CLASSES = frozenset({"timm.layers.linear.Linear"})
# Their DenseNet pooled with a function, where timm's has a module.
_UNSEEN_CHILDREN = {"timm.models.densenet.DenseNet": ("global_pool",)}


@dataclass(frozen=True)
class NamedCost:
    """Multiply-adds of the module `name`, summed over its calls: a row for `nn.implicit.implicit_counts`."""

    name: str
    macs: int


@dataclass(frozen=True)
class PaperCounts:
    """A network counted both ways, for one image.

    products: convolutions and linear layers, by module; paper: by the paper's counting, by module; pde: of
    the PDE, which the paper's counting leaves out.
    """

    params: int
    products: tuple[NamedCost, ...]
    paper: tuple[NamedCost, ...]
    pde: int

    @property
    def macs_products(self) -> int:
        """Multiply-adds of convolutions and linear layers."""
        return sum(cost.macs for cost in self.products)

    @property
    def macs_paper(self) -> int:
        """Multiply-adds by the paper's counting."""
        return sum(cost.macs for cost in self.paper)


def paper_counts(model: nn.Module, input_size: Sequence[int]) -> PaperCounts:
    """Count `model` for one image of (C, H, W) as the printed figures were counted, and as this library does.

    Raises as `globalcnn.measure.count` does.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    >>> c = paper_counts(net, (3, 4, 4))
    >>> c.macs_products, c.macs_paper, c.pde
    (3456, 3840, 0)
    """
    unseen = _unseen(model)

    def costs(module: nn.Module, x: Any, y: TensorInfo) -> tuple[int, int, int]:
        products = product_macs(module, x, y)
        paper = 0 if module in unseen else products + _besides_products(module, x, y)
        return products, paper, pde_macs(module, y)

    modules = module_costs(model, input_size, costs)
    called = [m for m in modules if m.costs]
    return PaperCounts(
        params=sum(m.params for m in modules),
        products=tuple(NamedCost(m.name, m.costs[0]) for m in called),
        paper=tuple(NamedCost(m.name, m.costs[1]) for m in called),
        pde=sum(m.costs[2] for m in called),
    )


def _besides_products(module: nn.Module, x: Any, y: TensorInfo) -> int:
    """What the paper's counting adds to the products of convolutions and linear layers."""
    if isinstance(module, _ConvNd):
        return y.numel() if module.bias is not None else 0
    if isinstance(module, _BatchNorm):
        return 2 * y.numel()
    if isinstance(module, _ADAPTIVE_POOLS):
        axes = 1 + _ADAPTIVE_POOLS.index(next(c for c in type(module).__mro__ if c in _ADAPTIVE_POOLS))
        kernel = prod(i // o for i, o in zip(x.shape[-axes:], y.shape[-axes:], strict=True))
        return int(kernel + 1) * y.numel()
    return y.numel() if isinstance(module, _AvgPoolNd) else 0


def _unseen(model: nn.Module) -> set[nn.Module]:
    """Every module that the printed figures do not contain, although its kind is counted."""
    unseen = {m for m in model.modules() if _class_names(m) & _UNSEEN_CLASSES}
    for module in model.modules():
        for class_name in _class_names(module) & _UNSEEN_CHILDREN.keys():
            unseen |= below([(module, _UNSEEN_CHILDREN[class_name])])
    return unseen


def _class_names(module: nn.Module) -> set[str]:
    return {f"{c.__module__}.{c.__qualname__}" for c in type(module).__mro__}
