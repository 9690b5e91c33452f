"""`UniformGlobalLayer`: the PDE with coefficients that are the same at every place of a map.

A step is then a depthwise convolution, which every inference engine runs well.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable
from typing import Literal, final

import torch
import torch.fx
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import UserError, UserTypeError
from ..ops import PDE, Boundary, DuFortFrankel
from .blocks import Foldable, check_settings, norm_scale_shift
from .bounded import diffusion_share
from .coefficients import as_pair
from .diagnostics import Fields, Stability, stability_from
from .mode import eval_mode
from .padding import pad_both
from .start import check_state

COEFFICIENTS = ("constant", "image-affine", "image-linear")
_BELOW_ONE = 0.999  # of the stability limit, so that rounding stays below it


@final
class UniformGlobalLayer(Foldable):
    """Evolve a feature map under an advection-diffusion equation whose coefficients do not depend on place.

    K Du Fort-Frankel steps of `dH/dt = Dx H_xx + Dy H_yy + (u, v) . grad H + h` from H = H_old = h, where h
    is the input, also the source; then BatchNorm and activation, as in `GlobalLayer`. Coefficients are one
    number per channel or, where they depend on the image, per image and channel. Input and output
    (N, C, H, W), any H, W >= 1.

    A step is a depthwise 3x3 convolution (spacing is its dilation): predicted by the image, or learned. With
    constant coefficients and K = 1, or periodic boundaries and any K, the whole layer is one depthwise
    convolution of side 2 K + 1 and the activation, once folded (`graph.fold_batch_norms`). With zero beyond
    the edge, the default, that is a standard convolution; periodic and Neumann boundaries pad by
    concatenation, which costs engines more than the convolution itself. K steps at Dirichlet or Neumann
    boundaries stay K convolutions.

    Unlike in `GlobalLayer`, the velocity is the same beyond the edge too, at every boundary; so its
    divergence is 0 everywhere, and at a Neumann boundary, where only the state is mirrored, features flow
    through the wall.

    Parameters
    ----------
    channels: C.
    pde: steps, dt, spacing, boundary; default `PDE(boundary="dirichlet")`. The scheme is Du Fort-Frankel.
    coefficients: "constant" (learned numbers, 4 C parameters); "image-affine" (an affine function of the
        channel's mean over the map, 8 C); "image-linear" (a linear function of all channels' means,
        4 C (C + 1)).
    diffusivity: None learns Dx and Dy, as softplus of the predicted numbers; a number or a pair (Dx, Dy)
        keeps them constant.
    bounded: the velocity is `u dt/dx = w tanh(a)`, `v dt/dy = (1 - w) tanh(b)`, w = Bx / (Bx + By), so
        that the scheme is stable whatever is learned; else u = a, v = b. True.
    act: activation module class after the norm; nn.ReLU.

    Raises `UserError` or `UserTypeError` for settings or inputs that do not fit.

    >>> layer = UniformGlobalLayer(16)
    >>> layer(torch.randn(2, 16, 32, 32)).shape, sum(p.numel() for p in layer.parameters())
    (torch.Size([2, 16, 32, 32]), 96)
    >>> layer.eval().folded()
    Sequential(
      (0): Conv2d(16, 16, kernel_size=(3, 3), stride=(1, 1), padding=(1, 1), groups=16)
      (1): ReLU()
    )
    """

    def __init__(
        self,
        channels: int,
        pde: PDE | None = None,
        *,
        coefficients: Literal["constant", "image-affine", "image-linear"] = "constant",
        diffusivity: float | tuple[float, float] | None = None,
        bounded: bool = True,
        act: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        check_settings("UniformGlobalLayer", channels, act)
        if pde is not None and not isinstance(pde, PDE):
            raise UserTypeError(f"UniformGlobalLayer: pde={pde!r} must be a globalcnn.PDE or None")
        pde = PDE(boundary=Boundary.DIRICHLET) if pde is None else pde
        if type(pde.scheme) is not DuFortFrankel:
            raise UserError(f"UniformGlobalLayer: scheme={pde.scheme!r} must be DuFortFrankel()")
        if coefficients not in COEFFICIENTS:
            allowed = ", ".join(map(repr, COEFFICIENTS))
            raise UserError(f"UniformGlobalLayer: coefficients={coefficients!r} must be one of {allowed}")
        self.channels = channels
        self.pde = pde
        self.diffusivity = as_pair("UniformGlobalLayer", diffusivity)
        self.bounded = bool(bounded)
        fields = 4 if self.diffusivity is None else 2
        self.predictor: nn.Conv2d | None = None
        if coefficients != "constant":
            groups = channels if coefficients == "image-affine" else 1
            self.predictor = nn.Conv2d(channels, fields * channels, 1, groups=groups)
            nn.init.normal_(self.predictor.weight, 0.0, 0.1 / math.sqrt(channels // groups))
            assert self.predictor.bias is not None
            with torch.no_grad():
                self.predictor.bias.copy_(_first_numbers(channels, fields).T.flatten())
        else:
            self.numbers = nn.Parameter(_first_numbers(channels, fields))
        self.norm = nn.BatchNorm2d(channels)
        self.act = act()

    def coefficients(self, h: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """u, v, Dx, Dy for the input `h`, each (1, C), or (N, C) where they depend on the image."""
        if self.predictor is None:
            raw = self.numbers.unsqueeze(0)
        else:
            mean = h.mean((2, 3), keepdim=True)
            raw = self.predictor(mean).view(-1, self.channels, self._fields()).transpose(1, 2)
        dt, (dx, dy) = self.pde.dt, self.pde.spacing
        a, b = raw[:, 0], raw[:, 1]
        if self.diffusivity is None:
            Dx, Dy = F.softplus(raw[:, 2]), F.softplus(raw[:, 3])
        else:
            Dx, Dy = (torch.full_like(a, D) for D in self.diffusivity)
        if not self.bounded:
            return a, b, Dx, Dy
        Bx, By = Dx / dx**2, Dy / dy**2
        w = diffusion_share(Bx, By)
        return (
            a.tanh() * w * (_BELOW_ONE * dx / dt),
            b.tanh() * (1 - w) * (_BELOW_ONE * dy / dt),
            Dx,
            Dy,
        )

    def forward(self, h: Tensor) -> Tensor:
        """`act(norm(H))` after the evolution of `h`."""
        if not (isinstance(h, torch.fx.Proxy) or torch.jit.is_tracing()):
            check_state(h, self.channels, "its input", who="UniformGlobalLayer")
        out: Tensor = self.act(self.norm(self._evolve(h)))
        return out

    def _evolve(self, h: Tensor) -> Tensor:
        if self.pde.steps == 0:
            return h
        older, state, source = step_numbers((c.to(h.dtype) for c in self.coefficients(h)), self.pde)
        first = state.clone()
        first[:, :, 1, 1] = older + source
        if self.pde.steps == 1:
            return depthwise_step(h, first, self.pde)
        H_old, H = h, depthwise_step(h, first, self.pde)
        by_old, by_source = older[..., None, None], source[..., None, None]
        for _ in range(self.pde.steps - 1):
            H_old, H = H, depthwise_step(H, state, self.pde) + by_old * H_old + by_source * h
        return H

    @torch.no_grad()
    def stability(self, h: Tensor) -> Stability:
        """The coefficients for `h`, compared with the scheme's stability limit; <= 1 where `bounded`.

        >>> UniformGlobalLayer(4).stability(torch.zeros(1, 4, 8, 8)).stable
        True
        """
        with eval_mode(self):
            fields = Fields(*(c[..., None, None] for c in self.coefficients(h)))
        return stability_from(fields, self.pde, h, "UniformGlobalLayer")

    def pde_multiplies(self, height: int, width: int) -> int:
        """Multiplies of the steps for one image: a depthwise 3x3 convolution each, two more from the second.

        >>> UniformGlobalLayer(16).pde_multiplies(32, 32)
        147456
        """
        steps = self.pde.steps
        return (9 * steps + 2 * max(0, steps - 1)) * self.channels * height * width

    def folded(self) -> nn.Module | None:
        """The layer with the norm in its numbers: one depthwise convolution where they are constant, and with
        K = 1 also where they depend on the image; None where no convolution is the same function."""
        if self.pde.steps == 0 or (self.predictor is not None and type(self.predictor) is not nn.Conv2d):
            return None
        found = norm_scale_shift(self.norm)
        if found is None:
            return None
        if self.predictor is not None:
            return FoldedImageStep(self, *found) if self.pde.steps == 1 else None
        if self.pde.steps > 1 and self.pde.boundary is not Boundary.PERIODIC:
            return None
        return _one_convolution(self, *found)

    def extra_repr(self) -> str:
        """The settings that `repr` of the submodules does not contain."""
        diffusion = "learned" if self.diffusivity is None else self.diffusivity
        return f"{self.channels}, {self.pde}, diffusivity={diffusion}, bounded={self.bounded}"

    def _fields(self) -> int:
        return 4 if self.diffusivity is None else 2


class FoldedImageStep(nn.Module):
    """One step with numbers that depend on the image, and the norm in the predicted kernel; for inference."""

    scale: Tensor
    shift: Tensor

    def __init__(self, layer: UniformGlobalLayer, scale: Tensor, shift: Tensor) -> None:
        super().__init__()
        self.layer = copy.deepcopy(layer)
        self.layer.norm, self.layer.act = nn.Identity(), nn.Identity()  # type: ignore[assignment]
        self.act = copy.deepcopy(layer.act)
        dtype = layer.norm.running_mean.dtype  # type: ignore[union-attr]
        self.register_buffer("scale", scale.to(dtype))
        self.register_buffer("shift", shift.to(dtype))
        self.channels = layer.channels
        self.eval()

    def forward(self, h: Tensor) -> Tensor:
        """As the layer's."""
        if not (isinstance(h, torch.fx.Proxy) or torch.jit.is_tracing()):
            check_state(h, self.channels, "its input", who="UniformGlobalLayer")
        layer = self.layer
        older, kernel, source = step_numbers((c.to(h.dtype) for c in layer.coefficients(h)), layer.pde)
        centre = kernel.new_zeros(3, 3)
        centre[1, 1] = 1
        kernel = (kernel + (older + source)[..., None, None] * centre) * self.scale.view(1, -1, 1, 1)
        out: Tensor = self.act(depthwise_step(h, kernel, layer.pde, self.shift))
        return out

    def pde_multiplies(self, height: int, width: int) -> int:
        """As the layer's."""
        return self.layer.pde_multiplies(height, width)


def step_numbers(fields: Iterable[Tensor], pde: PDE) -> tuple[Tensor, Tensor, Tensor]:
    """(older, state, source): a step is `older H_old + state * H + source f`, with the 3x3 kernel `state`.

    fields: u, v, Dx, Dy, each (N or 1, C); the kernel is (N or 1, C, 3, 3), the others as the fields.
    """
    u, v, Dx, Dy = fields
    dt, (dx, dy) = pde.dt, pde.spacing
    Ax, Ay, Bx, By = u * (dt / dx), v * (dt / dy), Dx * (dt / dx**2), Dy * (dt / dy**2)
    R = 1 / (1 + 2 * Bx + 2 * By)
    zero = torch.zeros_like(R)
    nine = (
        zero, R * (2 * Bx - Ax), zero,
        R * (2 * By - Ay), zero, R * (2 * By + Ay),
        zero, R * (2 * Bx + Ax), zero,
    )  # fmt: skip
    kernel = torch.stack(nine, dim=-1).unflatten(-1, (3, 3))
    return R * (1 - 2 * Bx - 2 * By), kernel, 2 * dt * R


def depthwise_step(h: Tensor, kernel: Tensor, pde: PDE, bias: Tensor | None = None) -> Tensor:
    """The state convolved with a kernel per channel, (1, C, k, k), or per image and channel, (N, C, k, k)."""
    reach = kernel.shape[-1] // 2
    padding = reach * pde.spacing[0], reach * pde.spacing[1]
    N, C = h.shape[:2]
    images = kernel.shape[0]
    each = type(images) is not int or images != 1
    if each and type(images) is not int:
        return _by_slices(h, kernel, pde, bias)  # an exported convolution has a fixed number of groups
    if pde.boundary is not Boundary.DIRICHLET:
        h, padding = pad_both(h, padding, pde.boundary), (0, 0)
    if each:
        h = h.reshape(1, N * C, *h.shape[2:])
        bias = None if bias is None else bias.repeat(N)
    weight = kernel.flatten(0, 1).unsqueeze(1)
    out = F.conv2d(h, weight, bias, padding=padding, dilation=pde.spacing, groups=len(weight))
    return out.view(N, C, *out.shape[2:]) if each else out


def _by_slices(h: Tensor, kernel: Tensor, pde: PDE, bias: Tensor | None) -> Tensor:
    """`depthwise_step` with a five-point kernel, as products with views of one padded copy."""
    dx, dy = pde.spacing
    n, m = h.shape[2:]
    padded = pad_both(h, (dx, dy), pde.boundary)
    out = kernel[:, :, 1, 1, None, None] * h
    for i, j in ((0, 1), (2, 1), (1, 0), (1, 2)):
        out = out + kernel[:, :, i, j, None, None] * padded.narrow(2, i * dx, n).narrow(3, j * dy, m)
    return out if bias is None else out + bias.view(-1, 1, 1)


@torch.no_grad()
def _one_convolution(layer: UniformGlobalLayer, scale: Tensor, shift: Tensor) -> nn.Module:
    """All steps and the norm as a depthwise convolution, computed in float64."""
    dtype = layer.numbers.dtype
    wide = copy.deepcopy(layer).double()
    older, state, source = step_numbers(wide.coefficients(wide.numbers), layer.pde)
    older, source, state = older[0, :, None, None], source[0, :, None, None], state[0]
    K, C = layer.pde.steps, layer.channels
    H = torch.zeros(C, 2 * K + 1, 2 * K + 1, dtype=torch.float64, device=shift.device)
    H[:, K, K] = 1  # the kernel that gives level k from the input
    start, H_old = H.clone(), H.clone()
    for _ in range(K):
        moved = F.conv2d(H.unsqueeze(0), state.flip(1, 2).unsqueeze(1), padding=1, groups=C)[0]
        H_old, H = H, moved + older * H_old + source * start
    reach = (K * layer.pde.spacing[0], K * layer.pde.spacing[1])
    zero = layer.pde.boundary is Boundary.DIRICHLET
    conv = nn.Conv2d(
        C, C, 2 * K + 1, padding=reach if zero else 0, dilation=layer.pde.spacing, groups=C,
        device=shift.device, dtype=dtype,
    )  # fmt: skip
    assert conv.bias is not None
    conv.weight.copy_((H * scale.view(-1, 1, 1)).unsqueeze(1))
    conv.bias.copy_(shift)
    pad = [] if zero else [BoundaryPad(reach, layer.pde.boundary)]
    return nn.Sequential(*pad, conv, copy.deepcopy(layer.act)).eval()


class BoundaryPad(nn.Module):
    """Pads H and W by `amounts` on both sides as a boundary continues the state, by concatenation."""

    def __init__(self, amounts: tuple[int, int], boundary: Boundary) -> None:
        super().__init__()
        self.amounts, self.boundary = amounts, boundary

    def forward(self, x: Tensor) -> Tensor:
        """(N, C, H, W) to (N, C, H + 2 a, W + 2 b)."""
        return pad_both(x, self.amounts, self.boundary)

    def extra_repr(self) -> str:
        """The settings."""
        return f"{self.amounts}, {self.boundary.value!r}"


def _first_numbers(channels: int, fields: int) -> Tensor:
    """(fields, C): velocities N(0, 0.5) before tanh, diffusion near 1 before softplus."""
    numbers = torch.randn(fields, channels) * 0.5
    numbers[2:] = math.log(math.e - 1) + 0.1 * numbers[2:]
    return numbers
