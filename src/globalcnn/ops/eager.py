"""The operator in plain PyTorch: differentiable, compiles, exports (slices and concatenation only)."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .pde import PDE, Boundary
from .schemes import Field


def neighbours(A: Tensor, axis: int, distance: int, boundary: Boundary, odd: bool) -> tuple[Tensor, Tensor]:
    """`A[i - distance]` and `A[i + distance]` along `axis`: two views of one padded copy.

    odd: at a Neumann wall the mirror image changes sign.
    """
    n = A.shape[axis]
    if boundary is Boundary.DIRICHLET:
        if distance >= n:
            zero = torch.zeros_like(A)
            return zero, zero
        pad = (0, 0, distance, distance) if axis == 2 else (distance, distance)
        return _both_sides(F.pad(A, pad), axis, distance, n)
    if boundary is Boundary.PERIODIC:
        if distance >= n:  # only where needed: the remainder specialises an exported graph to one n
            distance = distance % n
            if distance == 0:
                return A, A
        before, after = A.narrow(axis, n - distance, distance), A.narrow(axis, 0, distance)
    else:
        if distance > n:
            distance = distance % (2 * n)
            if distance == 0:
                return A, A
        if distance > n:  # period 2 n: far in one direction is near in the other
            minus, plus = neighbours(A, axis, 2 * n - distance, boundary, odd)
            return plus, minus
        before, after = A.narrow(axis, 0, distance), A.narrow(axis, n - distance, distance)
        if distance > 1:
            before, after = before.flip(axis), after.flip(axis)
        if odd:
            before, after = -before, -after
    return _both_sides(torch.cat([before, A, after], dim=axis), axis, distance, n)


def _both_sides(padded: Tensor, axis: int, distance: int, n: int) -> tuple[Tensor, Tensor]:
    return padded.narrow(axis, 0, n), padded.narrow(axis, 2 * distance, n)


def solve(
    h: Tensor, h_old: Tensor, f: Tensor | None, u: Tensor, v: Tensor, Dx: Field, Dy: Field, pde: PDE
) -> Tensor:
    """The state after `pde.steps` steps, same shape and dtype as `h`."""

    def at(A: Tensor, axis: int, distance: int, odd: bool) -> tuple[Tensor, Tensor]:
        return neighbours(A, axis, distance, pde.boundary, odd)

    if pde.steps == 0:
        return h.clone()
    coefficients = pde.scheme.coefficients(u, v, Dx, Dy, pde, at)
    for _ in range(pde.steps):
        h, h_old = pde.scheme.step(h, h_old, f, coefficients, pde, at), h
    return h
