"""A Global layer under torch.fx: one node, which calls the layer, so nothing looks at the data while tracing.

A tracer hands out stand-ins for tensors (`Proxy`), which have no shape to check. Where the layer is a
submodule, the node calls it. Where it is the root that is traced, its parts are nodes and the solve is one.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.fx import Proxy

from ..errors import UserError
from ..ops import PDE, DuFortFrankel, solve
from .start import check_state

if TYPE_CHECKING:
    from .global_layer import GlobalLayer


def traced_call(layer: GlobalLayer, f: Proxy, before: Proxy | None) -> Any:
    """The output of the layer as a node of the graph that `f` belongs to."""
    tracer: Any = f.tracer
    given = (f,) if before is None else (f, before)
    if tracer.root is not layer:
        return tracer.create_proxy("call_module", tracer.path_of_module(layer), given, {})
    if type(layer.pde.scheme) is not DuFortFrankel:
        raise UserError(
            f"GlobalLayer: torch.fx cannot trace the scheme {layer.pde.scheme!r} in a layer that is the "
            "root; trace torch.nn.Sequential(layer)"
        )

    def call(function: Any, *arguments: Any) -> Any:
        return tracer.create_proxy("call_function", function, arguments, {})

    h: Any = f if layer.init is None else layer.init(*reversed(given))
    h = call(checked, h, layer.channels)
    source = call(source_of, h, f)
    c = layer.fields(h, source)
    pde = layer.pde
    numbers = (pde.steps, pde.dt, pde.spacing, str(pde.boundary.value))
    H = call(
        solve_plain,
        h,
        source if layer.start_from == "f" else h,
        source if layer.source else None,
        *(c.u, c.v, c.Dx, c.Dy),
        *numbers,
    )
    return layer._finish(H, source)


def checked(h: Tensor, channels: int) -> Tensor:
    """`h`, after the check of its shape."""
    check_state(h, channels, "its input or its init block's output")
    return h


def source_of(h: Tensor, f: Tensor) -> Tensor:
    """The source beside the state `h`: the input, or `h` where its shape is another."""
    return f if f.shape == h.shape else h


def solve_plain(
    h: Tensor,
    h_old: Tensor,
    f: Tensor | None,
    u: Tensor,
    v: Tensor,
    Dx: Tensor | float,
    Dy: Tensor | float,
    steps: int,
    dt: float,
    spacing: tuple[int, int],
    boundary: str,
) -> Tensor:
    """`ops.solve` with the equation in plain values, which a graph can hold."""
    pde = PDE(steps=steps, dt=dt, spacing=tuple(spacing), boundary=boundary)  # type: ignore[arg-type]
    old, u, v = (t.to(h.dtype) for t in (h_old, u, v))
    Dx, Dy = (D.to(h.dtype) if isinstance(D, torch.Tensor) else D for D in (Dx, Dy))
    return solve(h, old, None if f is None else f.to(h.dtype), u, v, Dx, Dy, pde)
