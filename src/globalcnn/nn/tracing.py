"""A Global layer under torch.fx, whose stand-ins for tensors (`Proxy`) have no shape to look at.

Where the layer is a submodule of what is traced, it is one node that calls it. Where it is the root, its
parts are nodes.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, NamedTuple

from torch import Tensor, nn
from torch.fx import Proxy

from ..errors import UserError
from .start import start

if TYPE_CHECKING:
    from .global_layer import GlobalLayer


def traced_call(layer: GlobalLayer, f: Proxy, before: Proxy | None) -> Any:
    """The output of the layer in the graph that `f` belongs to."""
    tracer: Any = f.tracer
    if tracer.root is not layer:
        return call_node(layer, f, before)
    init = None if layer.init is None else tracer.create_proxy("get_attr", "init", (), {})
    pair = tracer.create_proxy("call_function", start_from, (init, layer.channels, f, before), {})
    h, source = pair[0], pair[1]
    return layer._finish(layer._solve(h, source, layer.fields(h, source), layer.pde), source)


def call_node(module: nn.Module, f: Proxy, before: Proxy | None) -> Any:
    """One node that calls the module, which is not the root that is traced."""
    tracer: Any = f.tracer
    if tracer.root is module:
        raise UserError(
            f"torch.fx cannot trace a {type(module).__name__} that is the root; put it into a Sequential"
        )
    given = (f,) if before is None else (f, before)
    return tracer.create_proxy("call_module", tracer.path_of_module(module), given, {})


class _Start(NamedTuple):
    init: nn.Module | None
    channels: int


def start_from(
    init: nn.Module | None, channels: int, f: Tensor, before: Tensor | None
) -> tuple[Tensor, Tensor]:
    """`start`, with plain arguments that a graph can hold."""
    return start(_Start(init, channels), f, before)  # type: ignore[arg-type]
