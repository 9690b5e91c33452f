"""Parameters and multiply-adds of a network, in three columns, layer by layer.

`macs` counts what convolutions and linear layers multiply. `macs_paper` follows the convention behind the
figures printed in Kag and Saligrama (CVPR 2022), which is that of the counter `thop`: a convolution with its
bias, BatchNorm, average pooling, linear layers, and nothing else. `macs_pde` is what that convention leaves
out: the elementwise multiplies of the PDE solves.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.nn.modules.conv import _ConvNd, _ConvTransposeNd
from torch.nn.utils import parametrize

from ..graph import eval_mode
from .probe import checked_model, checked_size, probe_input, run_once

_AVERAGE_POOLS = (nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
_ADAPTIVE_POOLS = (nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)

# The printed figures looked layers up by exact class, which a subclass of nn.Linear escapes: timm's
# MobileNetV3 classifies with one.
_UNSEEN_CLASSES = frozenset({"timm.layers.linear.Linear"})
# Their DenseNet pooled with a function, where timm's has a module.
_UNSEEN_CHILDREN = {"timm.models.densenet.DenseNet": ("global_pool",)}


@dataclass(frozen=True)
class LayerCount:
    """What one layer holds and costs: the columns of `Counts`, for the module `name` of class `kind`.

    `params` are the layer's own (a parameter shared by several layers is with the first); a layer called
    several times in a forward pass has the costs of all calls and the `output_shape` (batch included) of the
    last, and a layer never called has an empty shape.
    """

    name: str
    kind: str
    output_shape: tuple[int, ...]
    params: int
    macs: int
    macs_paper: int
    macs_pde: int


@dataclass(frozen=True)
class Counts:
    """Parameters and multiply-adds of a network for one image; each column is the sum over `layers`."""

    params: int
    macs: int
    macs_paper: int
    macs_pde: int
    macs_total: int = field(init=False)
    layers: tuple[LayerCount, ...] = ()

    def __post_init__(self) -> None:
        object.__setattr__(self, "macs_total", self.macs_paper + self.macs_pde)


def count(model: nn.Module, input_size: Sequence[int]) -> Counts:
    """Count parameters and multiply-adds of `model` for one image of `input_size` = (C, H, W).

    The model runs once in eval mode on fixed noise, on its own device and dtype, and is left as it was.
    Modules are watched, so what a forward computes with functions (`F.conv2d`, `F.avg_pool2d`) is not seen.

    Columns, per output element, for a kernel of k elements and c input channels per group:

    ====================  =========  ==========================================
    module                `macs`     `macs_paper`
    ====================  =========  ==========================================
    convolution           c k        c k, and 1 with a bias
    linear                features   features (bias free)
    BatchNorm             0          2
    average pooling       0          1
    adaptive average      0          kernel + 1, kernel = input // output size
    anything else         0          0
    ====================  =========  ==========================================

    A transposed convolution is counted per input element. Subclasses count as their base, except in
    `macs_paper` timm's own `Linear` (the classifier of its MobileNetV3) and the final pooling of timm's
    DenseNet, which the printed figures do not contain.

    A module with a method `pde_multiplies(height, width) -> int` adds that number to `macs_pde`, called with
    the height and width of its output. A module with an attribute `uncounted_modules` (names of its
    submodules, for example `("auxiliary_head",)`) leaves those out of every column; one with an attribute
    `unseen_in_paper` leaves the named ones out of `macs_paper` alone.

    Raises:
        UserError: `input_size` is not three positive integers, the model does not run on it, or the model is
            TorchScript or lazy.
        UserTypeError: `model` is not a module.

    >>> from torch import nn
    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU())
    >>> c = count(net, (3, 4, 4))
    >>> c.params, c.macs, c.macs_paper, c.macs_total
    (240, 3456, 3840, 3840)
    >>> [(layer.name, layer.kind, layer.macs_paper) for layer in c.layers]
    [('0', 'Conv2d', 3584), ('1', 'BatchNorm2d', 256)]
    """
    model = checked_model(model)
    size = checked_size(input_size)
    left_out = _left_out(model)
    unseen = _unseen(model)
    tallies = {m: _Tally(in_paper=m not in unseen) for m in model.modules() if m not in left_out}
    handles = []
    try:
        for module, tally in tallies.items():
            handles.append(module.register_forward_hook(tally.add, with_kwargs=True))
        with eval_mode(model), torch.no_grad():
            run_once(model, probe_input(model, size))
    finally:
        for handle in handles:
            handle.remove()
    layers = _layers(model, tallies)
    return Counts(
        params=sum(layer.params for layer in layers),
        macs=sum(layer.macs for layer in layers),
        macs_paper=sum(layer.macs_paper for layer in layers),
        macs_pde=sum(layer.macs_pde for layer in layers),
        layers=layers,
    )


class _Tally:
    """The running costs of one module: a forward hook that adds up every call."""

    def __init__(self, *, in_paper: bool) -> None:
        self.in_paper = in_paper
        self.output_shape: tuple[int, ...] = ()
        self.macs = self.macs_paper = self.macs_pde = 0

    def add(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        self.output_shape = tuple(output.shape)
        macs, macs_paper = _cost(module, args[0] if args else kwargs.get("input"), output)
        self.macs += macs
        self.macs_paper += macs_paper if self.in_paper else 0
        pde_multiplies = getattr(module, "pde_multiplies", None)
        if callable(pde_multiplies):
            self.macs_pde += int(pde_multiplies(*output.shape[-2:]))


def _cost(module: nn.Module, x: Any, y: Tensor) -> tuple[int, int]:
    """(`macs`, `macs_paper`) of one call of `module` that made `y` from `x`."""
    if isinstance(module, _ConvNd):
        if isinstance(module, _ConvTransposeNd):
            macs = x.numel() * (module.out_channels // module.groups) * prod(module.kernel_size)
        else:
            macs = y.numel() * (module.in_channels // module.groups) * prod(module.kernel_size)
        return macs, macs + (y.numel() if module.bias is not None else 0)
    if isinstance(module, nn.Linear):
        macs = y.numel() * module.in_features
        return macs, macs
    if isinstance(module, _BatchNorm):
        return 0, 2 * y.numel()
    if isinstance(module, _ADAPTIVE_POOLS):
        axes = 1 + _ADAPTIVE_POOLS.index(next(c for c in type(module).__mro__ if c in _ADAPTIVE_POOLS))
        kernel = prod(i // o for i, o in zip(x.shape[-axes:], y.shape[-axes:], strict=True))
        return 0, (kernel + 1) * y.numel()
    if isinstance(module, _AVERAGE_POOLS):
        return 0, y.numel()
    return 0, 0


def _left_out(model: nn.Module) -> set[nn.Module]:
    """Every module that no column counts."""
    return _below((module, getattr(module, "uncounted_modules", ())) for module in model.modules())


def _unseen(model: nn.Module) -> set[nn.Module]:
    """Every module that `macs_paper` does not count, although its kind is counted."""
    unseen = {m for m in model.modules() if _class_names(m) & _UNSEEN_CLASSES}
    for module in model.modules():
        unseen |= _below([(module, getattr(module, "unseen_in_paper", ()))])
        for class_name in _class_names(module) & _UNSEEN_CHILDREN.keys():
            unseen |= _below([(module, _UNSEEN_CHILDREN[class_name])])
    return unseen


def _class_names(module: nn.Module) -> set[str]:
    return {f"{c.__module__}.{c.__qualname__}" for c in type(module).__mro__}


def _below(named: Iterable[tuple[nn.Module, Iterable[str]]]) -> set[nn.Module]:
    """Every module at or below the named children; a name that is absent or None is passed over."""
    children = (getattr(module, name, None) for module, names in named for name in names)
    return {inner for child in children if isinstance(child, nn.Module) for inner in child.modules()}


def _layers(model: nn.Module, tallies: dict[nn.Module, _Tally]) -> tuple[LayerCount, ...]:
    """One entry for each module that costs something or holds parameters, in the order of the model."""
    layers = []
    seen: set[nn.Parameter] = set()
    for name, module in model.named_modules():
        if module not in tallies:
            continue
        own = {p for p in _own_parameters(module) if p not in seen}
        seen |= own
        tally = tallies[module]
        params = sum(p.numel() for p in own)
        if params or tally.macs or tally.macs_paper or tally.macs_pde:
            kind = parametrize.type_before_parametrizations(module).__name__
            columns = (params, tally.macs, tally.macs_paper, tally.macs_pde)
            layers.append(LayerCount(name, kind, tally.output_shape, *columns))
    return tuple(layers)


def _own_parameters(module: nn.Module) -> Iterable[nn.Parameter]:
    """Parameters that no submodule holds; those that make up a parametrised weight belong to its layer."""
    yield from module.parameters(recurse=False)
    if parametrize.is_parametrized(module):
        yield from module.get_submodule("parametrizations").parameters()
