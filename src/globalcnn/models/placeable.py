"""The blocks that may take the place of removed ones in a condensed network, by name.

A file may name them, so each has only plain settings of bounded size.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, Final

import torch
from torch import Tensor, nn

from ..errors import UserError, unknown_name
from ..nn import GlobalLayer
from ..nn.blocks import NormAct, ResidualDepthwise
from ..ops import PDE, GatedSweeps
from .values import MOST_REAL, MOST_WHOLE

ACTIVATIONS: Final = ("ReLU", "ReLU6", "LeakyReLU", "SiLU", "GELU", "Hardswish", "Mish", "ELU", "Identity")


class PassThrough(nn.Module):
    """Returns what it is given: one tensor, or several as a tuple. In the place of a removed block.

    >>> PassThrough()(torch.ones(2))
    tensor([1., 1.])
    """

    def forward(self, *inputs: Any) -> Any:
        """`inputs`, the only one bare."""
        return inputs[0] if len(inputs) == 1 else inputs


class Zeros(nn.Module):
    """Returns zeros like its input: a removed block whose output the network adds to its input.

    >>> Zeros()(torch.ones(2))
    tensor([0., 0.])
    """

    def forward(self, x: Tensor) -> Tensor:
        """Zeros of the shape of `x`."""
        return torch.zeros_like(x)


class Added(nn.Module):
    """`x + block(x)`."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """The sum."""
        out: Tensor = x + self.block(x)
        return out


class Copied(nn.Module):
    """`block(x)` as a tensor of its own, which the network may then change in place."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, x: Tensor) -> Tensor:
        """The copy."""
        out: Tensor = self.block(x)
        return out.clone()


class FirstInput(nn.Module):
    """Gives `block` the first of several inputs. returned: whether the others are returned too, unchanged."""

    def __init__(self, block: nn.Module, *, returned: bool) -> None:
        super().__init__()
        self.block = block
        self.returned = returned

    def forward(self, x: Tensor, *others: Any, **named: Any) -> Any:
        """`block(x)`, or a tuple of it and the other inputs."""
        out = self.block(x)
        return (out, *others, *named.values()) if self.returned else out

    def extra_repr(self) -> str:
        """The setting."""
        return f"returned={self.returned}"


def activation_named(name: str) -> type[nn.Module]:
    """The activation of torch.nn by its name."""
    if name not in ACTIVATIONS:
        raise unknown_name("activation", str(name)[:60], ACTIVATIONS)
    found: type[nn.Module] = getattr(nn, name)
    return found


def _global(
    channels: int,
    *,
    steps: int = 1,
    dt: float = 0.2,
    spacing: int = 1,
    boundary: str = "periodic",
    kernel_size: int = 3,
    residual: bool = False,
    act: str = "ReLU",
) -> nn.Module:
    pde = PDE(steps=steps, dt=dt, spacing=(spacing, spacing), boundary=boundary)  # type: ignore[arg-type]
    return GlobalLayer(
        channels, pde, kernel_size=kernel_size, bias=False, residual=residual, act=activation_named(act)
    )


def _sweeps(
    channels: int,
    *,
    steps: int = 1,
    dt: float = 0.2,
    gate: str = "transport",
    first: str = "x",
    kernel_size: int = 3,
    residual: bool = False,
    act: str = "ReLU",
) -> nn.Module:
    pde = PDE(steps=steps, dt=dt, scheme=GatedSweeps(gate=gate, first=first))  # type: ignore[arg-type]
    return GlobalLayer(
        channels, pde, kernel_size=kernel_size, bias=False, residual=residual, act=activation_named(act)
    )


def _norm_act(channels: int, *, residual: bool = False, act: str = "ReLU") -> nn.Module:
    block = NormAct(channels, act=activation_named(act))
    return Added(block) if residual else block


def _depthwise(
    channels: int, *, kernel_size: int = 7, residual: bool = False, act: str = "ReLU"
) -> nn.Module:
    block = ResidualDepthwise(channels, kernel_size, act=activation_named(act))
    return Added(block) if residual else block


def _none(channels: int) -> nn.Module:
    return PassThrough()


def _zeros(channels: int) -> nn.Module:
    return Zeros()


@dataclass(frozen=True)
class Placeable:
    """A kind of block. build: (channels, **settings) -> a module that keeps the shape; about: one line."""

    about: str
    build: Callable[..., nn.Module]

    @property
    def settings(self) -> Mapping[str, Any]:
        """Its settings with their defaults."""
        parameters = inspect.signature(self.build).parameters.values()
        return MappingProxyType({p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY})


PLACEABLE: Final[dict[str, Placeable]] = {
    "global": Placeable(
        "Global layer, Du Fort-Frankel steps: reads neighbours up to K spacings away", _global
    ),
    "sweeps": Placeable("Global layer, gated sweeps: one step reaches the whole map", _sweeps),
    "depthwise": Placeable("depthwise convolution (7x7) with a shortcut, BatchNorm, activation", _depthwise),
    "norm-act": Placeable("BatchNorm and activation", _norm_act),
    "none": Placeable("nothing: the input is passed on", _none),
    "zeros": Placeable("zeros, where the network adds the block's output to its input", _zeros),
}


def placeable(name: Any) -> Placeable:
    """The kind of block of that name; `UserError` with near names for an unknown one.

    >>> sorted(placeable("norm-act").settings)
    ['act', 'residual']
    """
    if not isinstance(name, str) or name not in PLACEABLE:
        raise unknown_name("block", str(name)[:60], PLACEABLE)
    return PLACEABLE[name]


def check_settings(block: str, settings: Mapping[str, Any]) -> None:
    """Raise `UserError` unless these are settings of the block: names, types, bounds."""
    known = placeable(block).settings
    for name, value in settings.items():
        if name not in known:
            raise (
                unknown_name(f"setting of the block {block!r}", str(name)[:60], known)
                if known
                else (UserError(f"the block {block!r} takes no settings, got {str(name)[:60]!r}"))
            )
        default = known[name]
        wanted: tuple[type, ...] = (int, float) if type(default) is float else (type(default),)
        if type(value) not in wanted:
            raise UserError(
                f"block {block!r}: {name}={str(value)[:60]!r} must be of the type {wanted[-1].__name__}, "
                f"such as {default!r}"
            )
        if not isinstance(value, (bool, str)) and not abs(value) <= (
            MOST_WHOLE if isinstance(value, int) else MOST_REAL
        ):
            raise UserError(f"block {block!r}: {name}={value!r} is out of bounds")
    if settings:
        with torch.device("meta"):  # the layer's own checks
            placeable(block).build(1, **settings)


def build_block(
    block: str, channels: int, *, in_channels: int | None = None, settings: Mapping[str, Any] | None = None
) -> nn.Module:
    """The block for maps of so many channels; after a 1x1 convolution, norm, ReLU for other `in_channels`.

    >>> build_block("norm-act", 8, in_channels=4)(torch.randn(1, 4, 2, 2)).shape
    torch.Size([1, 8, 2, 2])
    """
    given = dict(settings or {})
    check_settings(block, given)
    made = placeable(block).build(channels, **given)
    if in_channels is None or in_channels == channels:
        return made
    widen = nn.Conv2d(in_channels, channels, 1, bias=False)
    nn.init.kaiming_normal_(widen.weight, nonlinearity="relu")
    return nn.Sequential(widen, nn.BatchNorm2d(channels), nn.ReLU(), made)
