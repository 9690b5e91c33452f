"""Velocities limited to what the scheme carries stably."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserTypeError
from ..ops import PDE
from ..ops.schemes import Field

_BELOW_ONE = 0.999  # of the limit, so that rounding stays below it


def bounded_fields(
    u: Tensor, v: Tensor, Dx: Field, Dy: Field, pde: PDE
) -> tuple[Tensor, Tensor, Field, Field]:
    """The fields with u and v clamped so that Du Fort-Frankel is stable, and negative diffusion set to 0.

    |u| dt/dx <= w and |v| dt/dy <= 1 - w, with w = Bx / (Bx + By), one half where both are 0. Then
    `ax^2/w + ay^2/(1-w) <= w + 1 - w = 1`, and where there is no diffusion `ax + ay <= 1`. With constant
    diffusion the limits are two numbers. Fields within the limits are not changed.

    >>> u = torch.tensor([0.1, 9.0])
    >>> bounded_fields(u, -u, 1.0, 1.0, PDE(dt=0.5))
    (tensor([0.1000, 0.9990]), tensor([-0.1000, -0.9990]), 1.0, 1.0)
    """
    dt, (dx, dy) = pde.dt, pde.spacing
    most_x, most_y = _BELOW_ONE * dx / dt, _BELOW_ONE * dy / dt
    if not isinstance(Dx, Tensor) and not isinstance(Dy, Tensor):
        Bx, total = Dx / dx**2, Dx / dx**2 + Dy / dy**2
        w = Bx / total if total > 0 else 0.5
        most_x, most_y = w * most_x, (1 - w) * most_y
        return u.clamp(-most_x, most_x), v.clamp(-most_y, most_y), Dx, Dy
    if not isinstance(Dx, Tensor) or not isinstance(Dy, Tensor):
        raise UserTypeError("bounded_fields: Dx and Dy must both be numbers or both be tensors")
    Dx, Dy = Dx.clamp_min(0.0), Dy.clamp_min(0.0)
    share = diffusion_share(Dx / dx**2, Dy / dy**2)
    for_x, for_y = share * most_x, (1 - share) * most_y
    u = torch.minimum(torch.maximum(u, -for_x), for_x)
    return u, torch.minimum(torch.maximum(v, -for_y), for_y), Dx, Dy


def diffusion_share(Bx: Tensor, By: Tensor) -> Tensor:
    """Bx / (Bx + By), one half where both are 0; without NaN in the gradient."""
    total = Bx + By
    some = total > 0
    return torch.where(some, Bx / torch.where(some, total, torch.ones_like(total)), 0.5)
