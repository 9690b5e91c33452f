"""THE definition of the operator, in float64: one line per term. Every backend is tested against it.

Neighbours are gathered by index, so that no code is shared with the backends.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from .pde import PDE, Boundary
from .schemes import AxisScheme, DuFortFrankel, Field, GatedSweeps, Scheme, TridiagonalImplicit


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


def _gates(u: Tensor, D: Field, dt: float, dx: int, scheme: GatedSweeps) -> tuple[Tensor, Tensor]:
    """(gate of the forward, of the backward sweep)."""
    if scheme.gate == "transport":
        below, above = _transport_numbers(u, D, dt, dx)
        return below / (1 + below), above / (1 + above)
    D = D if isinstance(D, Tensor) else torch.full_like(u, D)
    if scheme.gate == "sigmoid":
        return 1 / (1 + torch.exp(-u)), 1 / (1 + torch.exp(-D))
    return 0.5 + 0.5 * u / (1 + abs(u)), 0.5 + 0.5 * D / (1 + abs(D))


def _transport_numbers(u: Tensor, D: Field, dt: float, dx: int) -> tuple[Tensor, Tensor]:
    zero = torch.zeros_like(u)
    D = torch.where(D < 0, zero, D) if isinstance(D, Tensor) else max(D, 0.0)
    below = torch.where(u <= 0, zero, u) * dt / dx + D * dt / dx**2
    above = torch.where(u >= 0, zero, -u) * dt / dx + D * dt / dx**2
    return below, above


def _rows(A: Tensor, axis: int) -> list[Tensor]:
    return list(A.unbind(axis))


def _swept(x: Tensor, gate: Tensor, axis: int, offset: int, edge: Boundary) -> Tensor:
    """`d[i] = x[i] + g[i] (d[i + offset] - x[i])`, one row at a time."""
    rows, g, n = _rows(x, axis), _rows(gate, axis), x.shape[axis]
    if edge is Boundary.PERIODIC:
        return _swept_around(rows, g, axis, offset)
    d: dict[int, Tensor] = {}
    for i in range(n) if offset < 0 else reversed(range(n)):
        if 0 <= i + offset < n:
            d[i] = (1 - g[i]) * rows[i] + g[i] * d[i + offset]
        elif edge is Boundary.DIRICHLET:
            d[i] = (1 - g[i]) * rows[i]
        else:
            d[i] = rows[i]
    return torch.stack([d[i] for i in range(n)], axis)


def _swept_around(rows: list[Tensor], g: list[Tensor], axis: int, offset: int) -> Tensor:
    """Each row as the series of what comes around the ring, summed by its period."""
    n = len(rows)
    out = []
    for i in range(n):
        # weight of row j in out[i]: (1 - g[j]) times the gates between, over 1 - (gates all around)
        total, weights, along = torch.zeros_like(rows[i]), torch.zeros_like(rows[i]), torch.ones_like(rows[i])
        j = i
        while True:
            open_ = torch.clamp(g[j], max=1 - torch.finfo(g[j].dtype).eps)
            total = total + along * (1 - open_) * rows[j]
            weights = weights + along * (1 - open_)
            along = along * open_
            j = (j + offset) % n
            if j == i:
                break
        out.append(total / weights)
    return torch.stack(out, axis)


def _by_axes(step: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """The steps of a scheme that works axis by axis, from `step(x, u, D, dt, axis, dx, pde)`."""

    def written_out(
        h: Tensor, h_old: Tensor, f: Tensor | None, u: Tensor, v: Tensor, Dx: Field, Dy: Field, pde: PDE
    ) -> Tensor:
        scheme, dt, (dx, dy) = pde.scheme, pde.dt, pde.spacing
        assert isinstance(scheme, AxisScheme)
        h = h.clone()
        for _ in range(pde.steps):
            if f is not None:
                h = h + dt * f
            for axis in "xy" if scheme.first == "x" else "yx":
                if axis == "x":
                    h = step(h, u, Dx, dt, 2, dx, pde)
                else:
                    h = step(h, v, Dy, dt, 3, dy, pde)
        return h

    return written_out


def _gated_sweeps(x: Tensor, u: Tensor, D: Field, dt: float, axis: int, dx: int, pde: PDE) -> Tensor:
    assert isinstance(pde.scheme, GatedSweeps)
    forward, backward = _gates(u, D, dt, dx, pde.scheme)
    x = _swept(x, forward, axis, -dx, pde.boundary)
    return _swept(x, backward, axis, +dx, pde.boundary)


def _implicit(x: Tensor, u: Tensor, D: Field, dt: float, axis: int, dx: int, pde: PDE) -> Tensor:
    """`h + below (h - h[i - dx]) + above (h - h[i + dx]) = x`, as a dense system per line."""
    n, edge = x.shape[axis], pde.boundary
    below, above = (a.movedim(axis, -1) for a in _transport_numbers(u, D, dt, dx))
    matrix = torch.diag_embed(torch.ones_like(below))
    for a, offset in ((below, -dx), (above, +dx)):
        for i in range(n):
            j = i + offset
            inside = 0 <= j < n
            row = torch.zeros_like(matrix[..., 0])
            if inside or edge is not Boundary.NEUMANN:
                row[..., i] += 1
            if inside or edge is Boundary.PERIODIC:
                row[..., j % n] -= 1
            unit = torch.zeros(n, 1, dtype=x.dtype, device=x.device)
            unit[i] = 1
            matrix = matrix + unit * (a[..., i, None] * row)[..., None, :]
    return torch.linalg.solve(matrix, x.movedim(axis, -1)[..., None])[..., 0].movedim(-1, axis)


_WRITTEN_OUT: dict[type[Scheme], Callable[..., Tensor]] = {
    DuFortFrankel: _du_fort_frankel,
    GatedSweeps: _by_axes(_gated_sweeps),
    TridiagonalImplicit: _by_axes(_implicit),
}


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
