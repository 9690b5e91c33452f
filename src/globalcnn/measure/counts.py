"""Parameters and multiply-adds of a network, layer by layer."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.modules.instancenorm import _InstanceNorm
from torch.nn.modules.pooling import _AdaptiveAvgPoolNd, _AvgPoolNd

from ..graph import TensorInfo
from .module_costs import module_costs

_NORMS = (_BatchNorm, _InstanceNorm, nn.GroupNorm, nn.LayerNorm, nn.LocalResponseNorm, nn.RMSNorm)
_AVERAGES = (_AvgPoolNd, _AdaptiveAvgPoolNd)


@dataclass(frozen=True)
class LayerCount:
    """Parameters and cost of one layer: the columns of `Counts`, for the module `name` of class `kind`.

    `params` are the layer's own (a parameter shared by several layers is with the first); a layer called
    several times in a forward pass has the costs of all calls and the `output_shape` (batch included) of the
    last, and a layer never called has an empty shape.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    params: int
    macs: int
    macs_pde: int
    elementwise: int


@dataclass(frozen=True)
class Counts:
    """Parameters and cost of a network for one image; each column is the sum over `layers`.

    macs: multiply-adds of convolutions, linear layers and the PDE; macs_pde: the share of the PDE in them;
    elementwise: operations of norms and average pooling, which are not in `macs`.
    """

    params: int
    macs: int
    macs_pde: int
    elementwise: int
    layers: tuple[LayerCount, ...] = ()


def count(model: nn.Module, input_size: Sequence[int]) -> Counts:
    """Count parameters and multiply-adds of `model` for one image of `input_size` = (C, H, W).

    The model runs once in eval mode on fixed noise, on its own device and dtype, and is restored.
    Costs come from hooks on modules, so operations that a forward calls as functions (`F.conv2d`, a matrix
    product) are not counted.

    Per output element, for a kernel of k elements and c input channels per group:

    ===============  ==================================  =============
    module           `macs`                              `elementwise`
    ===============  ==================================  =============
    convolution      c k (transposed: per input)         0
    linear           features                            0
    PDE              as its scheme states                0
    norm             0                                   1
    average pooling  0                                   1 per input
    anything else    0                                   0
    ===============  ==================================  =============

    Biases, activations and additions are not counted; a norm of a trained network is one multiply-add per
    element, or none where it is folded into the convolution before it. A PDE costs the multiplies of its
    scheme, `Scheme.multiplies_per_element`: for the published one 28 per element and 17 more for each
    further step with a learned diffusion, 14 and 9 with a fixed one.

    A module with a method `pde_multiplies(height, width) -> int` is a PDE: its number, for the height and
    width of its output, is in `macs` and in `macs_pde`. A module with an attribute `uncounted_modules` (names
    of its submodules, for example `("auxiliary_head",)`) leaves those out of every column.

    Raises:
        UserError: `input_size` is not three positive integers, the model does not run on it, or the model is
            TorchScript or lazy.
        UserTypeError: `model` is not a module.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    >>> c = count(net, (3, 4, 4))
    >>> c.params, c.macs, c.macs_pde, c.elementwise
    (240, 3456, 0, 128)
    >>> [(layer.name, layer.kind, layer.macs) for layer in c.layers]
    [('0', 'Conv2d', 3456), ('1', 'BatchNorm2d', 0)]
    """
    layers = tuple(
        LayerCount(w.name, w.kind, w.output_shape, w.params, *(w.costs or (0, 0, 0)))
        for w in module_costs(model, input_size, _costs)
        if w.params or any(w.costs)
    )
    return Counts(
        params=sum(layer.params for layer in layers),
        macs=sum(layer.macs for layer in layers),
        macs_pde=sum(layer.macs_pde for layer in layers),
        elementwise=sum(layer.elementwise for layer in layers),
        layers=layers,
    )


def _costs(module: nn.Module, x: Any, y: TensorInfo) -> tuple[int, int, int]:
    pde = pde_macs(module, y)
    return product_macs(module, x, y) + pde, pde, _elementwise(module, x, y)


def product_macs(module: nn.Module, x: Any, y: TensorInfo) -> int:
    """Multiply-adds of one call of a convolution or linear layer that made `y` from `x`; 0 for others."""
    if isinstance(module, _ConvTransposeNd):
        return int(x.numel()) * (module.out_channels // module.groups) * prod(module.kernel_size)
    if isinstance(module, _ConvNd):
        return y.numel() * (module.in_channels // module.groups) * prod(module.kernel_size)
    return int(y.numel() * module.in_features) if isinstance(module, nn.Linear) else 0


def pde_macs(module: nn.Module, y: TensorInfo) -> int:
    """Multiply-adds of the PDE in one call of `module` that made `y`; 0 for modules without one."""
    pde_multiplies = getattr(module, "pde_multiplies", None)
    return int(pde_multiplies(*y.shape[-2:])) if callable(pde_multiplies) else 0


def _elementwise(module: nn.Module, x: Any, y: TensorInfo) -> int:
    if isinstance(module, _NORMS):
        return y.numel()
    return int(x.numel()) if isinstance(module, _AVERAGES) else 0
