"""THE definition of the operator, in float64: one line per term. Every backend is tested against it.

Neighbours are gathered by index, so that no code is shared with the backends.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .pde import PDE, Boundary
from .schemes import DuFortFrankel, Field, Scheme


def shifted(A: Tensor, axis: int, offset: int, boundary: Boundary, *, odd: bool = False) -> Tensor:
    """`A[i + offset]` along `axis`, with values beyond the edge from `boundary`.

    odd: the mirror image at a Neumann wall changes sign (velocities normal to the wall).

    >>> A = torch.arange(4.0).reshape(1, 1, 1, 4)
    >>> shifted(A, 3, -1, Boundary.PERIODIC).flatten().tolist()
    [3.0, 0.0, 1.0, 2.0]
    >>> shifted(A, 3, -1, Boundary.NEUMANN).flatten().tolist()
    [0.0, 0.0, 1.0, 2.0]
    >>> shifted(A, 3, -1, Boundary.DIRICHLET).flatten().tolist()
    [0.0, 0.0, 1.0, 2.0]
    """
    n = A.shape[axis]
    index, weight = [], []
    for i in range(n):
        j = i + offset
        if boundary is Boundary.PERIODIC:
            index.append(j % n)
            weight.append(1.0)
        elif boundary is Boundary.DIRICHLET:
            index.append(j if 0 <= j < n else 0)
            weight.append(1.0 if 0 <= j < n else 0.0)
        else:  # a mirror at each wall makes the field periodic with period 2 n
            m = j % (2 * n)
            index.append(m if m < n else 2 * n - 1 - m)
            weight.append(-1.0 if odd and m >= n else 1.0)
    shape = [1, 1, 1, 1]
    shape[axis] = n
    weights = torch.tensor(weight, dtype=A.dtype, device=A.device).reshape(shape)
    taken = A.index_select(axis, torch.tensor(index, device=A.device)) * weights
    return torch.where(weights == 0, 0.0, taken)  # zero outside, even if what was taken is not finite


def _du_fort_frankel(
    h: Tensor, h_old: Tensor, f: Tensor | None, u: Tensor, v: Tensor, Dx: Field, Dy: Field, pde: PDE
) -> Tensor:
    dt, (dx, dy), edge = pde.dt, pde.spacing, pde.boundary
    ux = (shifted(u, 2, -dx, edge, odd=True) - shifted(u, 2, +dx, edge, odd=True)) / (2 * dx)
    vy = (shifted(v, 3, -dy, edge, odd=True) - shifted(v, 3, +dy, edge, odd=True)) / (2 * dy)
    Ax = u * dt / dx
    Ay = v * dt / dy
    Bx = Dx * dt / dx**2
    By = Dy * dt / dy**2
    E = (ux + vy) * dt
    R = 1 / (1 + 2 * Bx + 2 * By)
    h = h.clone()  # so that zero steps return a new tensor, not the input
    for _ in range(pde.steps):
        total = (1 - 2 * Bx - 2 * By) * h_old
        total = total - 2 * E * h
        total = total + (2 * Bx - Ax) * shifted(h, 2, -dx, edge)
        total = total + (2 * Bx + Ax) * shifted(h, 2, +dx, edge)
        total = total + (2 * By - Ay) * shifted(h, 3, -dy, edge)
        total = total + (2 * By + Ay) * shifted(h, 3, +dy, edge)
        h_new = R * total
        if f is not None:
            h_new = h_new + 2 * dt * R * f
        h_old, h = h, h_new
    return h


_WRITTEN_OUT: dict[type[Scheme], Callable[..., Tensor]] = {DuFortFrankel: _du_fort_frankel}


def solve(
    h: Tensor, h_old: Tensor, f: Tensor | None, u: Tensor, v: Tensor, Dx: Field, Dy: Field, pde: PDE
) -> Tensor:
    """The state after `pde.steps` steps, in float64 whatever the dtype of the arguments; differentiable."""

    def double(A: Tensor) -> Tensor:
        return A.to(torch.float64)

    Dx, Dy = (double(D) if isinstance(D, Tensor) else float(D) for D in (Dx, Dy))
    written_out = _WRITTEN_OUT[type(pde.scheme)]
    return written_out(
        double(h), double(h_old), None if f is None else double(f), double(u), double(v), Dx, Dy, pde
    )
