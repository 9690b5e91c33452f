"""Time schemes: each a small final class that states its step, order, stability limit and source.

A scheme is run by one driver (`eager.solve`): it computes step coefficients from the coefficient fields once,
then advances from the levels (h_old, h) to the next one. It reads neighbours only through the function that
the driver passes in, so it does not depend on the boundary. `reference.py` states each scheme a second time,
independently.

Conventions
-----------
x runs along dim 2, the rows of a map (downwards); y along dim 3, its columns.
With the sign of `+ div((u, v) H)` features move towards -(u, v): a positive u moves them to smaller x, up.
The published step is a leapfrog of 2 dt: the next level follows from h_old, two dt before it, so that a
source adds 2 dt f; with K = 1 and h_old = h a layer advances by 2 dt and not by dt.

Glossary
--------
symbol   meaning                                   axis             shape         unit
h, h_old current, previous level of the state                       (N, C, H, W)  feature
f        source                                                     (N, C, H, W)  feature / time
u, v     velocity along x, y                       x: 2, y: 3       (N, C, H, W)  pixel / time
Dx, Dy   diffusion along x, y                      x: 2, y: 3       as h or number  pixel^2 / time
dt       time step                                                  number        time
dx, dy   neighbour offset and grid spacing         x: 2, y: 3       int           pixel
Ax, Ay   u dt/dx, v dt/dy (Courant numbers)                         as u          1
Bx, By   Dx dt/dx^2, Dy dt/dy^2 (diffusion numbers)                 as Dx         1
E        (ux + vy) dt, with ux = (u[i-dx] - u[i+dx]) / (2 dx)       as u          1
R        1 / (1 + 2 Bx + 2 By)                                      as Bx         1
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, final

import torch
from torch import Tensor

if TYPE_CHECKING:
    from .pde import PDE

Field = Tensor | float
# (field, axis, distance, odd) -> (field[i - distance], field[i + distance]); odd: the mirror image changes
# sign
Neighbours = Callable[[Tensor, int, int, bool], tuple[Tensor, Tensor]]

X, Y = 2, 3


class Scheme(ABC):
    """Computes a level of the state from the two before it. Schemes are stateless and compare by type."""

    name: ClassVar[str]
    order_in_time: ClassVar[int]
    order_in_space: ClassVar[int]
    citation: ClassVar[str]

    @abstractmethod
    def coefficients(
        self, u: Tensor, v: Tensor, Dx: Field, Dy: Field, pde: PDE, neighbours: Neighbours
    ) -> Any:
        """Step coefficients from the fields; computed once, used by all steps."""

    @abstractmethod
    def step(
        self, h: Tensor, h_old: Tensor, f: Tensor | None, c: Any, pde: PDE, neighbours: Neighbours
    ) -> Tensor:
        """The next level, shape of `h`."""

    @abstractmethod
    def stability_ratio(self, u: Tensor, v: Tensor, Dx: Field, Dy: Field, pde: PDE) -> Tensor:
        """Stability ratio per element: the scheme with frozen coefficients is stable iff it is <= 1."""

    @abstractmethod
    def multiplies_per_element(self, steps: int, *, constant_diffusion: bool) -> int:
        """Multiplies of the solve written out literally, per element of `h`."""

    def __repr__(self) -> str:
        return f"{type(self).__name__}()"

    def __eq__(self, other: object) -> bool:
        return type(self) is type(other)

    def __hash__(self) -> int:
        return hash(type(self))


@dataclass(frozen=True)
class _DuFortFrankelCoefficients:
    Ax: Tensor
    Ay: Tensor
    Bx: Field
    By: Field
    E: Tensor
    R: Field


@final
class DuFortFrankel(Scheme):
    """Du Fort-Frankel in the diffusion, leapfrog in advection and source: the published scheme.

    Truncation O(dt^2) + O(dx^2) + O((dt/dx)^2): second order as long as dt shrinks faster than dx.

    Source: E. C. Du Fort and S. P. Frankel, "Stability conditions in the numerical treatment of parabolic
    differential equations", Mathematical Tables and Other Aids to Computation 7 (1953), 135-152; used for
    CNNs by A. Kag and V. Saligrama, "Condensing CNNs with Partial Differential Equations", CVPR 2022.

    >>> DuFortFrankel().order_in_time
    2
    """

    name = "du-fort-frankel"
    order_in_time = 2
    order_in_space = 2
    citation = "Du Fort and Frankel (1953), Math. Tables Aids Comput. 7, 135-152"

    def coefficients(
        self, u: Tensor, v: Tensor, Dx: Field, Dy: Field, pde: PDE, neighbours: Neighbours
    ) -> _DuFortFrankelCoefficients:
        dt, (dx, dy) = pde.dt, pde.spacing
        u_minus, u_plus = neighbours(u, X, dx, True)
        v_minus, v_plus = neighbours(v, Y, dy, True)
        ux = (u_minus - u_plus) / (2 * dx)
        vy = (v_minus - v_plus) / (2 * dy)
        Bx, By = Dx * (dt / dx**2), Dy * (dt / dy**2)
        return _DuFortFrankelCoefficients(
            Ax=u * (dt / dx), Ay=v * (dt / dy), Bx=Bx, By=By, E=(ux + vy) * dt, R=1 / (1 + 2 * Bx + 2 * By)
        )

    def step(
        self,
        h: Tensor,
        h_old: Tensor,
        f: Tensor | None,
        c: _DuFortFrankelCoefficients,
        pde: PDE,
        neighbours: Neighbours,
    ) -> Tensor:
        dx, dy = pde.spacing
        x_minus, x_plus = neighbours(h, X, dx, False)
        y_minus, y_plus = neighbours(h, Y, dy, False)
        total = (
            (1 - 2 * c.Bx - 2 * c.By) * h_old
            - 2 * c.E * h
            + (2 * c.Bx - c.Ax) * x_minus
            + (2 * c.Bx + c.Ax) * x_plus
            + (2 * c.By - c.Ay) * y_minus
            + (2 * c.By + c.Ay) * y_plus
        )
        if f is not None:
            total = total + 2 * pde.dt * f
        return c.R * total

    def stability_ratio(self, u: Tensor, v: Tensor, Dx: Field, Dy: Field, pde: PDE) -> Tensor:
        """`ax^2/w + ay^2/(1-w)` with ax = |u| dt/dx, ay = |v| dt/dy, w = Bx/(Bx+By); shape of `u`.

        Infinite where a direction has velocity and no diffusion while the other has some. Where there is no
        diffusion at all the scheme is plain leapfrog, whose limit is ax + ay <= 1: the ratio is (ax + ay)^2.
        """
        dt, (dx, dy) = pde.dt, pde.spacing
        ax, ay = u.abs() * (dt / dx), v.abs() * (dt / dy)
        Bx = torch.as_tensor(Dx, dtype=u.dtype, device=u.device) * (dt / dx**2)
        By = torch.as_tensor(Dy, dtype=u.dtype, device=u.device) * (dt / dy**2)
        b = Bx + By
        zero = torch.zeros_like(u)
        in_x = torch.where(ax > 0, ax.square() * b / Bx, zero)
        in_y = torch.where(ay > 0, ay.square() * b / By, zero)
        return torch.where(b > 0, in_x + in_y, (ax + ay).square())

    def multiplies_per_element(self, steps: int, *, constant_diffusion: bool) -> int:
        first, further = (14, 9) if constant_diffusion else (28, 17)
        return first + further * (steps - 1) if steps else 0
