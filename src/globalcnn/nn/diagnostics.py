"""Diagnostics of a Global layer for one input: predicted fields, levels, stability ratio."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import UserError
from ..ops.schemes import Field
from .mode import eval_mode

if TYPE_CHECKING:
    from ..ops import PDE
    from .global_layer import GlobalLayer


@dataclass(frozen=True)
class Fields:
    """What the layer predicted for one input: velocity and diffusion, (N, C, H, W); Dx, Dy may be numbers.

    u, Dx act along x (rows, dim 2), v, Dy along y (columns, dim 3). Features move towards -(u, v), by
    sweeps towards (u, v); where a scheme predicts its gates, these are their logits.
    """

    u: Tensor
    v: Tensor
    Dx: Field
    Dy: Field


@dataclass(frozen=True)
class Stability:
    """The coefficients compared with the scheme's stability limit: <= 1 is stable (frozen coefficients).

    ratio: largest ratio over all elements; share_over: share of elements above 1; worst_channel: the channel
    of the largest; speed: largest |(u, v)|, pixels per unit of time; diffusion: smallest of Dx and Dy.
    """

    ratio: float
    share_over: float
    worst_channel: int
    speed: float
    diffusion: float

    @property
    def stable(self) -> bool:
        """Whether every element is within the limit."""
        return self.ratio <= 1.0


@dataclass(frozen=True)
class Evolution:
    """The state at every step for one input, `levels[k]` being H after k steps, and the coefficient
    fields."""

    source: Tensor
    levels: tuple[Tensor, ...]
    fields: Fields
    output: Tensor


@torch.no_grad()
def evolution_of(layer: GlobalLayer, f: Tensor, before: Tensor | None) -> Evolution:
    """See `GlobalLayer.evolution`."""
    with eval_mode(layer):
        h, f = layer._start(f, before)
        c = layer.fields(h, f)
        plans = (replace(layer.pde, steps=k) for k in range(layer.pde.steps + 1))
        levels = tuple(layer._solve(h, f, c, plan) for plan in plans)
        return Evolution(source=f, levels=levels, fields=c, output=layer._finish(levels[-1], f))


@torch.no_grad()
def stability_of(layer: GlobalLayer, f: Tensor, before: Tensor | None) -> Stability:
    """See `GlobalLayer.stability`."""
    with eval_mode(layer):
        h, f = layer._start(f, before)
        c = layer.fields(h, f)
    Dx, Dy = (
        D.float() if isinstance(D, Tensor) else torch.tensor(float(D), device=h.device) for D in (c.Dx, c.Dy)
    )
    return stability_from(Fields(c.u.float(), c.v.float(), Dx, Dy), layer.pde, f, "GlobalLayer")


def stability_from(c: Fields, pde: PDE, x: Tensor, who: str) -> Stability:
    """The coefficients, all tensors, compared with the limit of the scheme; x: the input, who: the layer."""
    assert isinstance(c.Dx, Tensor)
    assert isinstance(c.Dy, Tensor)
    ratio = pde.scheme.stability_ratio(c.u, c.v, c.Dx, c.Dy, pde)
    if ratio.numel() == 0:
        raise UserError(f"{who}.stability: the input is empty, shape {tuple(x.shape)}")
    by_channel = ratio.amax(dim=(0, 2, 3))
    return Stability(
        ratio=by_channel.max().item(),
        share_over=(ratio > 1).float().mean().item(),
        worst_channel=int(by_channel.argmax()),
        speed=torch.hypot(c.u, c.v).max().item(),
        diffusion=min(c.Dx.min().item(), c.Dy.min().item()),
    )
