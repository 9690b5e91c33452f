"""What may take the place of a network's Global layers: other forms of the layer, and blocks that are no PDE.

A form is a function of the published layer that it replaces, so that channels, equation, bias, activation and
init block are that layer's.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

from torch import nn

from globalcnn.errors import UserError
from globalcnn.graph import replace_module
from globalcnn.nn import GlobalLayer, NormAct, ResidualDepthwise, UniformGlobalLayer
from globalcnn.ops import PDE, GatedSweeps

# (the published layer, its number among the network's layers from 0) -> what takes its place
Make = Callable[[GlobalLayer, int], nn.Module]


def put_into(network: nn.Module, make: Make | None, *, last: int | None = None) -> nn.Module:
    """Replace the Global layers of `network`, in place.

    make: None keeps the published layers. last: only in the last so many places, nothing in the others.
    """
    layers = [(n, m) for n, m in network.named_modules() if isinstance(m, GlobalLayer)]
    if not layers:
        raise UserError("the network has no Global layer: there is nothing that could be replaced")
    kept = len(layers) if last is None else last
    for i, (name, layer) in enumerate(layers):
        if i < len(layers) - kept:
            replace_module(network, name, new=nothing(layer, i))
        elif make is not None:
            replace_module(network, name, new=make(layer, i))
    return network


def again(layer: GlobalLayer, pde: PDE | None = None, **changes: Any) -> GlobalLayer:
    """A Global layer with the settings of `layer`, except for the changes; new weights, the same init block."""
    return GlobalLayer(layer.channels, pde or layer.pde, **{**settings_of(layer), **changes})


def settings_of(layer: GlobalLayer) -> dict[str, Any]:
    """The arguments that build a layer like `layer`, besides channels and equation."""
    conv: Any = layer.velocity_x.net
    return {
        "kernel_size": conv.kernel_size[0],
        "bias": conv.bias is not None,
        "diffusivity": layer.diffusivity,
        "shared_product": layer.shared_product,
        "velocity_from": layer.velocity_from,
        "start_from": layer.start_from,
        "source": layer.source,
        "init": copy.deepcopy(layer.init),
        "norm_eps": layer.velocity_x.norm.eps,
        "residual": layer.residual,
        "act": _act(layer),
    }


def changed(**changes: Any) -> Make:
    """The published layer with other settings."""
    return lambda layer, i: again(layer, **changes)


def with_pde(**changes: Any) -> Make:
    """The published layer with another equation: steps, boundary, and what else `PDE` takes."""
    return lambda layer, i: again(layer, replace(layer.pde, **changes))


def sweeps(gate: Literal["transport", "sigmoid", "rational"], norm_eps: float | None = None) -> Make:
    """The layer with gated sweeps; the first axis alternates. norm_eps: None for the published one."""

    def make(layer: GlobalLayer, i: int) -> nn.Module:
        pde = PDE(dt=layer.pde.dt, scheme=GatedSweeps(gate=gate, first="xy"[i % 2]))  # type: ignore[arg-type]
        own = {} if norm_eps is None else {"norm_eps": norm_eps}
        return again(layer, pde, diffusivity=None, **own)

    return make


def uniform(coefficients: Any = "constant", boundary: str | None = None, steps: int = 1) -> Make:
    """`UniformGlobalLayer`. boundary: None for its default, zero beyond the edge."""

    def block(layer: GlobalLayer) -> nn.Module:
        pde = PDE(
            steps=steps, dt=layer.pde.dt, spacing=layer.pde.spacing, boundary=boundary or "dirichlet"  # type: ignore[arg-type]
        )  # fmt: skip
        return UniformGlobalLayer(layer.channels, pde, coefficients=coefficients, act=_act(layer))

    return _after_init(block)


def depthwise(kernel_size: int) -> Make:
    """A residual depthwise convolution."""
    return _after_init(lambda layer: ResidualDepthwise(layer.channels, kernel_size, _act(layer)))


def norm_act(layer: GlobalLayer, i: int) -> nn.Module:
    """Norm and activation."""
    return _after_init(lambda layer: NormAct(layer.channels, _act(layer)))(layer, i)


def nothing(layer: GlobalLayer, i: int) -> nn.Module:
    """Nothing but the init block, if there is one."""
    return nn.Identity() if layer.init is None else copy.deepcopy(layer.init)


def _act(layer: GlobalLayer) -> Callable[[], nn.Module]:
    return lambda: copy.deepcopy(layer.act)


def _after_init(block: Callable[[GlobalLayer], nn.Module]) -> Make:
    """A block that takes the place of all of the layer but its init block."""

    def make(layer: GlobalLayer, i: int) -> nn.Module:
        new = block(layer)
        return new if layer.init is None else nn.Sequential(copy.deepcopy(layer.init), new)

    return make
