"""The solve under torch.fx: one node with plain arguments, so that nothing looks at sizes while tracing."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..errors import UserError
from .pde import PDE
from .schemes import DuFortFrankel, Field, GatedSweeps, Scheme, TridiagonalImplicit

_BY_NAME: dict[str, type[Scheme]] = {s.name: s for s in (DuFortFrankel, GatedSweeps, TridiagonalImplicit)}


def solve_node(h: Any, h_old: Any, f: Any, u: Any, v: Any, Dx: Any, Dy: Any, pde: PDE) -> Any:
    """The node of `solve` in the graph that `h`, a `torch.fx.Proxy`, belongs to."""
    if type(pde.scheme) not in _BY_NAME.values():
        raise UserError(
            f"solve: torch.fx cannot hold the scheme {pde.scheme!r} in a graph; make the module that solves "
            "a leaf of the tracer (torch.fx.Tracer.is_leaf_module)"
        )
    scheme = (pde.scheme.name, *vars(pde.scheme).values())
    numbers = (pde.steps, pde.dt, pde.spacing, str(pde.boundary.value), scheme)
    return h.tracer.create_proxy("call_function", solve_by_numbers, (h, h_old, f, u, v, Dx, Dy, *numbers), {})


def solve_by_numbers(
    h: Tensor,
    h_old: Tensor,
    f: Tensor | None,
    u: Tensor,
    v: Tensor,
    Dx: Field,
    Dy: Field,
    steps: int,
    dt: float,
    spacing: tuple[int, int],
    boundary: str,
    scheme: tuple[str, ...],
) -> Tensor:
    """`solve` with the equation in plain values, which a graph can hold."""
    from .dispatch import solve

    dx, dy = spacing
    name, *settings = scheme
    found = _BY_NAME[name](*settings)
    pde = PDE(steps=steps, dt=dt, spacing=(dx, dy), boundary=boundary, scheme=found)  # type: ignore[arg-type]
    return solve(h, h_old, f, u, v, Dx, Dy, pde)
