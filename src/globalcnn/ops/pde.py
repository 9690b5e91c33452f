"""`PDE`: which advection-diffusion equation is solved, on which grid, for how many steps."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass, field
from typing import Any

from ..errors import UserError, UserTypeError, unknown_name
from .schemes import DuFortFrankel, Scheme

# Larger values would run for hours or fill the memory; no map is wider than the largest spacing.
MAX_STEPS = 10_000
MAX_SPACING = 256


class Boundary(str, enum.Enum):
    """The values beyond the edge of a feature map.

    PERIODIC (published): the opposite edge. NEUMANN (zero flux): the mirror image about the wall, with the
    velocity normal to the wall mirrored in sign too, so that nothing crosses it. DIRICHLET: zero.
    "zero-flux" and "zero" are accepted for "neumann" and "dirichlet".

    >>> Boundary("zero-flux")
    <Boundary.NEUMANN: 'neumann'>
    """

    PERIODIC = "periodic"
    NEUMANN = "neumann"
    DIRICHLET = "dirichlet"

    @classmethod
    def _missing_(cls, value: object) -> Boundary | None:
        if isinstance(value, str):
            return {"zero-flux": cls.NEUMANN, "zero": cls.DIRICHLET}.get(value)
        return None


@dataclass(frozen=True)
class PDE:
    """The equation `dH/dt = Dx H_xx + Dy H_yy + div(vel H) + f`, discretised.

    With this sign of the divergence features move towards -vel. x is dim 2 (rows), y dim 3 (columns). A step
    is a leapfrog over 2 dt, from the level before the current one.

    Parameters
    ----------
    steps: number K of time steps, an int from 0 to 10,000; 1 as in most published networks.
    dt: time step, in units of layer time, a finite number > 0; 0.2 as published.
    spacing: (dx, dy) in pixels, ints from 1 to 256 (one int: both the same); both the offset of the
        neighbours and the grid spacing. x runs along dim 2 (rows), y along dim 3 (columns).
    boundary: a `Boundary` or its value: "periodic" (published), "neumann" (zero flux)
        or "dirichlet" (zero). None takes the scheme's own: periodic for `DuFortFrankel`, else Neumann.
    scheme: a `Scheme`; `DuFortFrankel()` as published. `GatedSweeps()` reaches the whole map in one step; the
        sweeps' equation differs in the sign of vel (see `ops/schemes.py`).

    Raises `UserError` (a ValueError) or `UserTypeError` (a TypeError) for anything else.

    >>> PDE(steps=5, spacing=2)
    PDE(steps=5, dt=0.2, spacing=(2, 2), boundary='periodic', scheme=DuFortFrankel())
    """

    steps: int = 1
    dt: float = 0.2
    spacing: tuple[int, int] = (1, 1)
    boundary: Boundary = None  # type: ignore[assignment]  # __post_init__ makes it a Boundary
    scheme: Scheme = field(default_factory=DuFortFrankel)

    def __post_init__(self) -> None:
        if not _is_int(self.steps) or not 0 <= self.steps <= MAX_STEPS:
            raise UserError(f"PDE: steps={self.steps!r} must be a whole number from 0 to {MAX_STEPS}")
        if isinstance(self.dt, bool) or not isinstance(self.dt, (int, float)):
            raise UserTypeError(f"PDE: dt={self.dt!r} must be a number > 0 (0.2 as published)")
        if not (math.isfinite(self.dt) and self.dt > 0):
            raise UserError(f"PDE: dt={self.dt!r} must be finite and > 0 (0.2 as published)")
        given: Any = self.spacing  # one int is taken too, as the annotation of the field cannot say
        spacing = (given, given) if _is_int(given) else given
        pair = isinstance(spacing, (tuple, list)) and len(spacing) == 2
        if not pair or not all(_is_int(d) and 1 <= d <= MAX_SPACING for d in spacing):
            raise UserError(
                f"PDE: spacing={self.spacing!r} must be a whole number of pixels from 1 to "
                f"{MAX_SPACING}, or a pair (dx, dy) of them"
            )
        if not isinstance(self.scheme, Scheme):
            raise UserTypeError(
                f"PDE: scheme={self.scheme!r} must be a Scheme object, such as globalcnn.DuFortFrankel()"
            )
        given = self.scheme.boundary if self.boundary is None else self.boundary
        try:
            boundary = Boundary(given)
        except ValueError:
            raise unknown_name("boundary", str(given), [b.value for b in Boundary]) from None
        object.__setattr__(self, "dt", float(self.dt))
        object.__setattr__(self, "spacing", (int(spacing[0]), int(spacing[1])))
        object.__setattr__(self, "boundary", boundary)

    def __repr__(self) -> str:
        return (
            f"PDE(steps={self.steps}, dt={self.dt:g}, spacing={self.spacing}, "
            f"boundary={self.boundary.value!r}, scheme={self.scheme!r})"
        )


def _is_int(value: object) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)
