"""`DeployedGlobalLayer`: a trained Global layer as few standard operators, for inference engines.

An engine sees the published layer as four depthwise convolutions, four norms and some forty elementwise
passes. Here the norms are in the convolutions, and the step is written with about half as many passes:

    H_new = R (2 H_old + p X + q Y + Ax DX + Ay DY + (dAx + dAy) H + 2 dt f) - H_old

with p = 2 Bx, q = 2 By, R = 1 / (1 + p + q), sums X = H[i-dx] + H[i+dx] and differences
DX = H[i+dx] - H[i-dx], dAx = Ax[i+dx] - Ax[i-dx], likewise along y. It follows from the scheme by
1 - p - q = 2 - 1/R.
"""

from __future__ import annotations

import copy
from typing import Any, final

import torch
import torch.fx
from torch import Tensor, nn

from ..errors import UserError
from ..ops import DuFortFrankel
from ..ops.eager import neighbours
from .blocks import norm_scale_shift
from .coefficients import Coefficient, Reduced
from .global_layer import GlobalLayer
from .start import start
from .tracing import call_node

_NAMES = ("velocity_x", "velocity_y", "diffusion_x", "diffusion_y")


@final
class DeployedGlobalLayer(nn.Module):
    """A `GlobalLayer` in eval mode: the same function up to rounding, of fewer standard operators.

    For export to inference engines; globalcnn's own kernels run the layer itself (`FusedGlobalLayer`). It
    takes any layer with the scheme Du Fort-Frankel, whatever its coefficient networks and boundary. Later
    changes of the layer do not affect it. Input and output as the layer's; gradients pass through.

    grouped: predict all coefficients by one grouped convolution, C to 4 C (2 C with constant diffusion),
    where all are depthwise and read the state. ONNX Runtime and OpenVINO have kernels for depthwise
    convolutions, not for this one; False.

    Raises `UserError` for a layer in training mode, with hooks or replaced parts, or with another scheme, and
    as `GlobalLayer` for inputs.

    >>> layer, x = GlobalLayer(8).eval(), torch.randn(1, 8, 6, 6)
    >>> torch.allclose(DeployedGlobalLayer(layer)(x), layer(x), atol=1e-5)
    True
    """

    def __init__(self, layer: GlobalLayer, *, grouped: bool = False) -> None:
        super().__init__()
        reason = why_not_deployed(layer)
        if reason is not None:
            raise UserError(f"DeployedGlobalLayer: {reason}")
        self.layer = copy.deepcopy(layer)
        for name in _NAMES[: 4 if layer.diffusivity is None else 2]:
            _fold(self.layer.get_submodule(name))
        self.channels, self.init = layer.channels, self.layer.init
        self.layer.init = None  # it runs here
        self.all_at_once = _grouped(self.layer, self.init) if grouped else None
        self.eval()

    def forward(self, f: Tensor, before: Tensor | None = None) -> Tensor:
        """As `GlobalLayer.forward`."""
        if isinstance(f, torch.fx.Proxy):
            out: Tensor = call_node(self, f, before)
            return out
        h, f = start(self, f, before, who="DeployedGlobalLayer")
        return self.layer._finish(self._evolve(h, f), f)

    def _evolve(self, h: Tensor, f: Tensor) -> Tensor:
        layer, pde = self.layer, self.layer.pde
        if pde.steps == 0:
            return h
        u, v, Dx, Dy = self._fields(h, f)
        dt, (dx, dy) = pde.dt, pde.spacing
        Ax, Ay = u * (dt / dx), v * (dt / dy)
        dA = _difference(*neighbours(Ax, 2, dx, pde.boundary, True))
        dA = dA + _difference(*neighbours(Ay, 3, dy, pde.boundary, True))
        p, q = Dx * (2 * dt / dx**2), Dy * (2 * dt / dy**2)
        R = 1 / (1 + p + q)
        source = 2 * dt if layer.source else 0.0
        H_old, H = (f if layer.start_from == "f" else h), h
        for _ in range(pde.steps):
            X, Y = neighbours(H, 2, dx, pde.boundary, False), neighbours(H, 3, dy, pde.boundary, False)
            if H_old is H and (f is H or not source):
                total = (dA + (2 + source)) * H
            else:
                total = dA * H + 2 * H_old
                total = total + source * f if source else total
            total = total + p * (X[0] + X[1]) + Ax * _difference(*X)
            total = total + q * (Y[0] + Y[1]) + Ay * _difference(*Y)
            H_old, H = H, R * total - H_old
        return H

    def _fields(self, h: Tensor, f: Tensor) -> tuple[Tensor, Tensor, Any, Any]:
        if self.all_at_once is None:
            c = self.layer.fields(h, f)
            return c.u, c.v, c.Dx, c.Dy
        each = self.layer.coefficient_act(self.all_at_once(h)).unflatten(1, (self.channels, -1))
        u, v, *D = each.unbind(2)
        return u, v, *(D or self.layer.diffusivity)  # type: ignore[misc]

    def pde_multiplies(self, height: int, width: int) -> int:
        """As the layer's."""
        return self.layer.pde_multiplies(height, width)


def why_not_deployed(layer: nn.Module) -> str | None:
    """Why the layer has no `DeployedGlobalLayer`, or None."""
    if type(layer) is not GlobalLayer:
        return f"it is a {type(layer).__name__}, not a GlobalLayer itself"
    if type(layer.pde.scheme) is not DuFortFrankel:
        return f"its scheme is {layer.pde.scheme!r}, not DuFortFrankel()"
    for name, part in layer.named_modules():
        where = name or "the layer"
        if part.training:
            return f"{where} is in training mode: call layer.eval()"
        if part._forward_hooks or part._forward_pre_hooks:
            return f"{where} has a hook"
        if any(key in vars(part) for key in ("forward", "fields", "_pair", "_start", "_solve", "_finish")):
            return f"a method of {where} was replaced"
    return None


def _fold(coefficient: nn.Module) -> None:
    """The norm of a coefficient into its convolution, in place, where that is PyTorch's own."""
    if type(coefficient) is not Coefficient:
        return
    net = coefficient.net
    conv: Any = net.conv if isinstance(net, Reduced) else net
    found = norm_scale_shift(coefficient.norm)
    if type(conv) is not nn.Conv2d or found is None:
        return
    scale, shift = found
    with torch.no_grad():
        if conv.bias is not None:
            shift = shift + conv.bias.double() * scale
        weight = conv.weight.double() * scale.view(-1, 1, 1, 1)
        conv.weight = nn.Parameter(weight.to(conv.weight.dtype))
        conv.bias = nn.Parameter(shift.to(conv.weight.dtype))
    coefficient.norm = nn.Identity()  # type: ignore[assignment]


def _grouped(layer: GlobalLayer, init: nn.Module | None) -> nn.Conv2d:
    """The folded convolutions as one, coefficient by coefficient of each channel."""
    names = _NAMES[: 4 if layer.diffusivity is None else 2]
    convs: list[Any] = [layer.get_submodule(f"{name}.net") for name in names]
    C, k = layer.channels, layer.velocity_x.net.kernel_size
    plain = all(
        type(c) is nn.Conv2d
        and c.groups == c.out_channels == C
        and c.kernel_size == k
        and c.stride == c.dilation == (1, 1)
        and c.padding_mode == "zeros"
        and c.bias is not None
        for c in convs
    )
    if (
        not plain
        or layer.shared_product
        or layer.bounded
        or (layer.velocity_from == "f" and init is not None)
    ):
        raise UserError(
            "DeployedGlobalLayer: grouped=True takes depthwise coefficients of one kernel size that all read "
            "the state, without shared_product and bounded; leave it out"
        )
    new = nn.Conv2d(C, len(convs) * C, k, padding=convs[0].padding, groups=C)  # type: ignore[arg-type]
    new = new.to(convs[0].weight)
    with torch.no_grad():
        new.weight.copy_(torch.stack([c.weight for c in convs], 1).flatten(0, 1))
        assert new.bias is not None
        new.bias.copy_(torch.stack([c.bias for c in convs], 1).flatten())
    return new


def _difference(minus: Tensor, plus: Tensor) -> Tensor:
    return plus - minus
