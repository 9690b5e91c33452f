"""The arms of the ablation: what stands in the place of each Global layer of a network.

The blocks are those of `forms`, and a few that only training is asked about.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from globalcnn.errors import unknown_name
from globalcnn.nn import GlobalLayer
from globalcnn.nn.diagnostics import Fields
from globalcnn.ops import PDE

from .. import forms


@dataclass(frozen=True)
class Arm:
    """One arm. question: what it is for, in a few words; block: None keeps the published layer.

    last: keep the block in the last so many of the layers only, nothing in the others; None for all.
    timed_as: the arm that computes the same at inference, with other weights.
    """

    name: str
    question: str
    block: forms.Make | None
    last: int | None = None
    timed_as: str | None = None

    def put_into(self, network: nn.Module) -> nn.Module:
        """Replace the Global layers of `network`, in place."""
        return forms.put_into(network, self.block, last=self.last)


class DiffusionOnly(GlobalLayer):
    """The published layer with velocity 0, and without the networks that would predict it."""

    def __init__(self, channels: int, pde: PDE, **settings: Any) -> None:
        super().__init__(channels, pde, **settings)
        del self.velocity_x, self.velocity_y

    def fields(self, h: Tensor, f: Tensor) -> Fields:
        Dx, Dy = self._pair(self.diffusion_x(h), self.diffusion_y(h), self.coefficient_act)
        return Fields(torch.zeros_like(h), torch.zeros_like(h), Dx, Dy)


def _diffusion_only(layer: GlobalLayer, i: int) -> nn.Module:
    return DiffusionOnly(layer.channels, layer.pde, **forms.settings_of(layer))


def _larger_start(layer: GlobalLayer, i: int) -> nn.Module:
    """Coefficient convolutions that start as depthwise ones usually do: N(0, 2 / k^2)."""
    new = forms.again(layer)
    with torch.no_grad():
        for module in new.modules():
            if isinstance(module, nn.Conv2d):
                module.weight.mul_(math.sqrt(layer.channels))
    return new


def _coefficients_learn(factor: float) -> forms.Make:
    """A larger learning rate for the coefficient networks, by a factor on their gradients (exact for SGD)."""

    def block(layer: GlobalLayer, i: int) -> nn.Module:
        new = forms.again(layer)
        for name, parameter in new.named_parameters():
            if not name.startswith("norm."):
                parameter.register_hook(lambda grad: grad * factor)  # type: ignore[no-untyped-call]
        return new

    return block


ARMS: dict[str, Arm] = {
    arm.name: arm
    for arm in (
        Arm("nothing", "the network without the layers", forms.nothing),
        Arm("norm-act", "norm and activation alone", forms.norm_act),
        Arm("depthwise-3", "a residual depthwise 3x3", forms.depthwise(3)),
        Arm("depthwise-5", "a residual depthwise 5x5", forms.depthwise(5)),
        Arm("depthwise-7", "a residual depthwise 7x7", forms.depthwise(7)),
        Arm("published", "the published layer, K = 1", None),
        Arm("published-k5", "the published layer, K = 5", forms.with_pde(steps=5)),
        Arm("constant-diffusion", "D = 1 instead of a predicted D", forms.changed(diffusivity=1.0)),
        Arm("diffusion-only", "no velocity", _diffusion_only),
        Arm("advection-only", "no diffusion", forms.changed(diffusivity=0.0)),
        Arm(
            "eps-1e-5",
            "coefficient norms with eps 1e-5 instead of C",
            forms.changed(norm_eps=1e-5),
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
        Arm("sweeps", "gated sweeps driven by the published coefficients", forms.sweeps("transport")),
        Arm(
            "sweeps-eps-1e-5",
            "the same, coefficient norms with eps 1e-5",
            forms.sweeps("transport", 1e-5),
            timed_as="sweeps",
        ),
        Arm("sweeps-sigmoid", "gated sweeps, sigmoid gates", forms.sweeps("sigmoid", 1e-5)),
        Arm("sweeps-rational", "gated sweeps, rational gates", forms.sweeps("rational", 1e-5)),
        Arm(
            "sweeps-last-2",
            "gated sweeps, sigmoid gates, in the last two places",
            forms.sweeps("sigmoid", 1e-5),
            last=2,
        ),
        Arm("bounded", "velocity clamped to what the scheme carries stably", forms.changed(bounded=True)),
        Arm(
            "shared-groups",
            "coefficients shared by groups of channels",
            forms.changed(coefficients="shared-groups"),
        ),
        Arm(
            "half-resolution",
            "coefficients at half resolution",
            forms.changed(coefficients="half-resolution"),
        ),
        Arm("uniform", "learned coefficients, the same at every place", forms.uniform()),
        Arm(
            "uniform-image",
            "coefficients that depend on the image, not on the place",
            forms.uniform("image-linear"),
        ),
        Arm(
            "depthwise-3-last-2",
            "a residual depthwise 3x3 in the last two places",
            forms.depthwise(3),
            last=2,
        ),
        Arm("published-last-2", "the published layer in the last two places", None, last=2),
    )
}


def find_arm(name: str) -> Arm:
    """The arm of that name, or an error with near ones."""
    if name not in ARMS:
        raise unknown_name("arm", name, ARMS)
    return ARMS[name]
