"""The arms of the ablation: what stands in the place of each Global layer of a network.

An arm is a function of the published layer that it replaces, so that channels, boundary, bias and activation
are that layer's.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from globalcnn.errors import UserError, unknown_name
from globalcnn.graph import replace_module
from globalcnn.nn import GlobalLayer, NormAct, ResidualDepthwise, UniformGlobalLayer
from globalcnn.nn.diagnostics import Fields
from globalcnn.ops import PDE, GatedSweeps

# (the published layer, its number among the network's layers from 0) -> the module in its place
Block = Callable[[GlobalLayer, int], nn.Module]


@dataclass(frozen=True)
class Arm:
    """One arm. question: what it is for, in a few words; block: None keeps the published layer.

    last: keep the block in the last so many of the layers only, nothing in the others; None for all.
    timed_as: the arm that computes the same at inference, with other weights.
    """

    name: str
    question: str
    block: Block | None
    last: int | None = None
    timed_as: str | None = None

    def put_into(self, network: nn.Module) -> nn.Module:
        """Replace the Global layers of `network`, in place."""
        layers = [(n, m) for n, m in network.named_modules() if isinstance(m, GlobalLayer)]
        if not layers:
            raise UserError("the network has no Global layer: there is nothing that an arm could replace")
        kept = len(layers) if self.last is None else self.last
        for i, (name, layer) in enumerate(layers):
            if i < len(layers) - kept:
                replace_module(network, name, new=nn.Identity())
            elif self.block is not None:
                replace_module(network, name, new=self.block(layer, i))
        return network


class DiffusionOnly(GlobalLayer):
    """The published layer with velocity 0, and without the networks that would predict it."""

    def __init__(self, channels: int, pde: PDE, *, bias: bool) -> None:
        super().__init__(channels, pde, bias=bias)
        del self.velocity_x, self.velocity_y

    def fields(self, h: Tensor, f: Tensor) -> Fields:
        Dx, Dy = self._pair(self.diffusion_x(h), self.diffusion_y(h), self.coefficient_act)
        return Fields(torch.zeros_like(h), torch.zeros_like(h), Dx, Dy)


def _depthwise(kernel_size: int) -> Block:
    return lambda layer, i: ResidualDepthwise(layer.channels, kernel_size)


def _bias(layer: GlobalLayer) -> bool:
    return any(name.endswith("net.bias") for name, _ in layer.named_parameters())


def _published(**changes: object) -> Block:
    """The published layer with other settings."""

    def block(layer: GlobalLayer, i: int) -> nn.Module:
        settings: dict[str, object] = {"bias": _bias(layer), **changes}
        return GlobalLayer(layer.channels, layer.pde, **settings)  # type: ignore[arg-type]

    return block


def _steps(count: int) -> Block:
    return lambda layer, i: GlobalLayer(layer.channels, replace(layer.pde, steps=count), bias=_bias(layer))


def _sweeps(
    *, gate: Literal["transport", "sigmoid", "rational"] = "transport", norm_eps: float | None = None
) -> Block:
    """The layer with the scheme `GatedSweeps`; the first axis alternates from layer to layer."""

    def block(layer: GlobalLayer, i: int) -> nn.Module:
        pde = PDE(dt=layer.pde.dt, scheme=GatedSweeps(gate=gate, first="xy"[i % 2]))  # type: ignore[arg-type]
        return GlobalLayer(layer.channels, pde, bias=_bias(layer), norm_eps=norm_eps)

    return block


def _larger_start(layer: GlobalLayer, i: int) -> nn.Module:
    """Coefficient convolutions that start as depthwise ones usually do: N(0, 2 / k^2)."""
    new = GlobalLayer(layer.channels, layer.pde, bias=_bias(layer))
    with torch.no_grad():
        for module in new.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(math.sqrt(layer.channels))
    return new


def _coefficients_learn(factor: float, **settings: object) -> Block:
    """A larger learning rate for the coefficient networks, by a factor on their gradients (exact for SGD)."""

    def block(layer: GlobalLayer, i: int) -> nn.Module:
        new = _published(**settings)(layer, i)
        for name, parameter in new.named_parameters():
            if not name.startswith("norm."):
                parameter.register_hook(lambda grad: grad * factor)  # type: ignore[no-untyped-call]
        return new

    return block


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("nothing", "the network without the layers", lambda layer, i: nn.Identity()),
        Arm("norm-act", "norm and activation alone", lambda layer, i: NormAct(layer.channels)),
        Arm("depthwise-3", "a residual depthwise 3x3", _depthwise(3)),
        Arm("depthwise-5", "a residual depthwise 5x5", _depthwise(5)),
        Arm("depthwise-7", "a residual depthwise 7x7", _depthwise(7)),
        Arm("published", "the published layer, K = 1", None),
        Arm("published-k5", "the published layer, K = 5", _steps(5)),
        Arm("constant-diffusion", "D = 1 instead of a predicted D", _published(diffusivity=1.0)),
        Arm(
            "diffusion-only",
            "no velocity",
            lambda layer, i: DiffusionOnly(layer.channels, layer.pde, bias=_bias(layer)),
        ),
        Arm("advection-only", "no diffusion", _published(diffusivity=0.0)),
        Arm(
            "eps-1e-5",
            "coefficient norms with eps 1e-5 instead of C",
            _published(norm_eps=1e-5),
            timed_as="published",
        ),
        Arm(
            "larger-start",
            "coefficient weights sqrt(C) times larger at the start",
            _larger_start,
            timed_as="published",
        ),
        Arm(
            "coefficients-lr-10",
            "coefficients learn ten times faster",
            _coefficients_learn(10.0),
            timed_as="published",
        ),
        Arm("sweeps", "gated sweeps driven by the published coefficients", _sweeps()),
        Arm(
            "sweeps-eps-1e-5",
            "the same, coefficient norms with eps 1e-5",
            _sweeps(norm_eps=1e-5),
            timed_as="sweeps",
        ),
        Arm("sweeps-sigmoid", "gated sweeps, sigmoid gates", _sweeps(gate="sigmoid", norm_eps=1e-5)),
        Arm("sweeps-rational", "gated sweeps, rational gates", _sweeps(gate="rational", norm_eps=1e-5)),
        Arm(
            "sweeps-last-2",
            "gated sweeps, sigmoid gates, in the last two places",
            _sweeps(gate="sigmoid", norm_eps=1e-5),
            last=2,
        ),
        Arm("bounded", "velocity clamped to what the scheme carries stably", _published(bounded=True)),
        Arm(
            "shared-groups",
            "coefficients shared by groups of channels",
            _published(coefficients="shared-groups"),
        ),
        Arm("half-resolution", "coefficients at half resolution", _published(coefficients="half-resolution")),
        Arm(
            "uniform",
            "learned coefficients, the same at every place",
            lambda layer, i: UniformGlobalLayer(layer.channels),
        ),
        Arm(
            "uniform-image",
            "coefficients that depend on the image, not on the place",
            lambda layer, i: UniformGlobalLayer(layer.channels, coefficients="image-linear"),
        ),
        Arm("depthwise-3-last-2", "a residual depthwise 3x3 in the last two places", _depthwise(3), last=2),
        Arm("published-last-2", "the published layer in the last two places", None, last=2),
    )
}


def find_arm(name: str) -> Arm:
    """The arm of that name, or an error with near ones."""
    if name not in ARMS:
        raise unknown_name("arm", name, ARMS)
    return ARMS[name]
