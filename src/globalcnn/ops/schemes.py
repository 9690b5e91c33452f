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
The sweeps (`GatedSweeps`, `TridiagonalImplicit`) solve `H_t + (u, v) . grad H = div(D grad H) + f` instead:
without the term `H div(u, v)` (an average cannot amplify), and a positive u moves features to larger x, down.
They step by dt from h alone; h_old is not used.

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
a        transport number of a sweep, >= 0                          as u          1
g        a / (1 + a), gate of a sweep, in [0, 1]                    as u          1
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, final, get_args

import torch
import torch.nn.functional as F
from torch import Tensor

from ..errors import unknown_name
from .sweeps import sweep
from .tridiagonal import tridiagonal

if TYPE_CHECKING:
    from .pde import PDE

Field = Tensor | float
# (field, axis, distance, odd) -> (field[i - distance], field[i + distance]); odd: the mirror image changes
# sign
Neighbours = Callable[[Tensor, int, int, bool], tuple[Tensor, Tensor]]

X, Y = 2, 3


class Scheme(ABC):
    """Computes a level of the state from the two before it. Schemes are values: they compare by type and
    settings.

    boundary: the value of the `Boundary` that a `PDE` with this scheme has unless it names one.
    """

    name: ClassVar[str]
    boundary: ClassVar[str] = "periodic"
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


@dataclass(frozen=True)
class _PerAxis:
    """Gates, or transport numbers, of each axis: from the lower, from the higher neighbour."""

    x: tuple[Tensor, Tensor]
    y: tuple[Tensor, Tensor]


class AxisScheme(Scheme):
    """Implicit steps of dt, split by axis, from h alone: no limit on dt.

    first: the axis of the first half of a step, "x" (dim 2) or "y" (dim 3).
    """

    first: Literal["x", "y"]

    boundary = "neumann"
    order_in_time = 1
    order_in_space = 1

    def __post_init__(self) -> None:
        if self.first not in ("x", "y"):
            raise unknown_name(f"{type(self).__name__}: axis first=", str(self.first), ["x", "y"])

    @abstractmethod
    def pair(self, u: Tensor, D: Field, dt: float, distance: int) -> tuple[Tensor, Tensor]:
        """What `along` takes: two numbers per element of an axis, from its velocity and diffusion."""

    @abstractmethod
    def along(
        self, h: Tensor, pair: tuple[Tensor, Tensor], axis: int, distance: int, boundary: str
    ) -> Tensor:
        """The half of a step along one axis."""

    def coefficients(
        self, u: Tensor, v: Tensor, Dx: Field, Dy: Field, pde: PDE, neighbours: Neighbours
    ) -> _PerAxis:
        dx, dy = pde.spacing
        return _PerAxis(self.pair(u, Dx, pde.dt, dx), self.pair(v, Dy, pde.dt, dy))

    def step(
        self, h: Tensor, h_old: Tensor, f: Tensor | None, c: _PerAxis, pde: PDE, neighbours: Neighbours
    ) -> Tensor:
        h = h if f is None else h + pde.dt * f
        for axis in (X, Y) if self.first == "x" else (Y, X):
            h = self.along(h, c.x if axis == X else c.y, axis, pde.spacing[axis - X], pde.boundary.value)
        return h

    def stability_ratio(self, u: Tensor, v: Tensor, Dx: Field, Dy: Field, pde: PDE) -> Tensor:
        """Zeros of the shape of `u`: there is no limit."""
        return torch.zeros_like(u)


def _transport_numbers(u: Tensor, D: Field, dt: float, distance: int) -> tuple[Tensor, Tensor]:
    """(from the lower, from the higher neighbour), both >= 0: upwind transport by u, diffusion by D."""
    D = D.clamp(min=0) if isinstance(D, Tensor) else max(D, 0.0)
    B = D * (dt / distance**2)
    return B + F.relu(u) * (dt / distance), B + F.relu(-u) * (dt / distance)


Gate = Literal["transport", "sigmoid", "rational"]
GATES: tuple[Gate, ...] = get_args(Gate)


@final
@dataclass(frozen=True)
class GatedSweeps(AxisScheme):
    """Implicit upwind steps, split by direction: in one step each output depends on the whole map.

    A step sweeps forward and backward along one axis, then along the other:
    `d_i = x_i + g_i (d_{i-s} - x_i)`, then `h_i = d_i + b_i (h_{i+s} - d_i)`, from x = h + dt f. Every output
    is a convex combination of the x: no limit on dt, no growth. First order in time and space:
    O(dt) + O(dx) + O(D dt/dx^2), as the product of the two sweeps enlarges the diffusion number B by the
    factor 1 + B + A (A: Courant number). `TridiagonalImplicit` is without the last term.

    gate: "transport" takes g = a / (1 + a) from the transport numbers `a = D dt/dx^2 + max(u, 0) dt/dx`
    (backward max(-u, 0)): each sweep is then a backward-Euler step of upwind transport, and with u = 0 and
    constant D the two of an axis are an exactly implicit step of diffusion with number `a (1 + a)`.
    "sigmoid" and "rational" predict the gates: u, Dx are the logits of the forward and backward sweep along
    x, v, Dy along y, through the logistic function or `(1 + z / (1 + |z|)) / 2`.
    first: the axis that is swept first, "x" (dim 2) or "y" (dim 3).

    The boundary is Neumann by default: a chain starts with gate 0, as nothing flows in. A sum over the map is
    conserved by constant coefficients on a periodic map; at a Neumann wall, up to O(dt^2).

    Source: N. N. Yanenko, "The Method of Fractional Steps", Springer 1971, for the splitting by direction.

    >>> GatedSweeps(first="y")
    GatedSweeps(gate='transport', first='y')
    """

    gate: Gate = "transport"
    first: Literal["x", "y"] = "x"

    name = "gated-sweeps"
    citation = "Yanenko (1971), The Method of Fractional Steps, Springer (splitting by direction)"

    def __post_init__(self) -> None:
        if self.gate not in GATES:
            raise unknown_name("gate of GatedSweeps", str(self.gate), GATES)
        super().__post_init__()

    @property
    def takes_logits(self) -> bool:
        """Whether the fields are logits of the gates, so that no activation is applied to them before."""
        return self.gate != "transport"

    def pair(self, u: Tensor, D: Field, dt: float, distance: int) -> tuple[Tensor, Tensor]:
        """The gates of the forward and of the backward sweep."""
        if self.gate == "transport":
            forward, backward = (a / (1 + a) for a in _transport_numbers(u, D, dt, distance))
            return forward, backward
        logits = (u, D if isinstance(D, Tensor) else torch.full_like(u, D))
        gate = torch.sigmoid if self.gate == "sigmoid" else _rational
        return gate(logits[0]), gate(logits[1])

    def along(
        self, h: Tensor, pair: tuple[Tensor, Tensor], axis: int, distance: int, boundary: str
    ) -> Tensor:
        """The sweep forward, then the one backward."""
        forward, backward = pair
        h = sweep(h, forward, axis, distance, boundary, reverse=False)
        return sweep(h, backward, axis, distance, boundary, reverse=True)

    def multiplies_per_element(self, steps: int, *, constant_diffusion: bool) -> int:
        # gates: two u dt/dx per axis, four quotients, D dt/dx^2 per axis if it varies; of logits one function
        # each. A step: dt f, and per sweep (1 - g) x + g d
        if not steps:
            return 0
        gates = 4 if self.takes_logits else 8 + (0 if constant_diffusion else 2)
        return gates + steps * (8 + 1)


def _rational(z: Tensor) -> Tensor:
    return (1 + z / (1 + z.abs())) / 2


@final
@dataclass(frozen=True)
class TridiagonalImplicit(AxisScheme):
    """The implicit step that `GatedSweeps("transport")` splits by direction: per axis one tridiagonal solve.

    Same equation and bounds, twice the arithmetic; only in eager and the reference.
    first: the axis that is solved first, "x" (dim 2) or "y" (dim 3).

    Source: L. H. Thomas, "Elliptic problems in linear difference equations over a network" (1949).

    >>> TridiagonalImplicit().order_in_time
    1
    """

    first: Literal["x", "y"] = "x"

    name = "tridiagonal-implicit"
    citation = "Thomas (1949), Watson Sci. Comput. Lab. Report, Columbia University"

    def pair(self, u: Tensor, D: Field, dt: float, distance: int) -> tuple[Tensor, Tensor]:
        """The transport numbers from the lower and from the higher neighbour."""
        return _transport_numbers(u, D, dt, distance)

    def along(
        self, h: Tensor, pair: tuple[Tensor, Tensor], axis: int, distance: int, boundary: str
    ) -> Tensor:
        """One tridiagonal solve per line."""
        return tridiagonal(h, *pair, axis, distance, boundary)

    def multiplies_per_element(self, steps: int, *, constant_diffusion: bool) -> int:
        # numbers: two u dt/dx per axis and D dt/dx^2 if it varies; per axis three products and two quotients
        return 4 + (0 if constant_diffusion else 2) + steps * (2 * 5 + 1) if steps else 0
