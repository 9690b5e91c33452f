"""`GlobalLayer`: lets a feature map evolve, channel by channel, under an advection-diffusion equation."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Literal

import torch
from torch import Tensor, nn

from ..errors import UserError, UserTypeError
from ..ops import PDE, solve
from ..ops.schemes import Field
from .coefficients import Coefficient, NetFactory, check_kernel_size, find_network
from .fused import evolve, may_evolve, may_fuse, run_fused


@dataclass(frozen=True)
class Fields:
    """What the layer predicted for one input: velocity and diffusion, (N, C, H, W); Dx, Dy may be numbers."""

    u: Tensor
    v: Tensor
    Dx: Field
    Dy: Field


@dataclass(frozen=True)
class Stability:
    """How near the coefficients are to the scheme's limit. A ratio <= 1 is stable (frozen coefficients).

    ratio: largest ratio over all elements; share_over: share of elements above 1; worst_channel: where the
    largest sits; speed: largest |(u, v)|, pixels per unit of time; diffusion: smallest of Dx and Dy.
    """

    ratio: float
    share_over: float
    worst_channel: int
    speed: float
    diffusion: float

    @property
    def stable(self) -> bool:
        """Whether every element is within the limit."""
        return self.ratio <= 1.0


@dataclass(frozen=True)
class Evolution:
    """The state at every step for one input: `levels[k]` is H after k steps; the fields that drove it."""

    source: Tensor
    levels: tuple[Tensor, ...]
    fields: Fields
    output: Tensor


class GlobalLayer(nn.Module):
    """Evolve a feature map for K steps of `dH/dt = Dx H_xx + Dy H_yy + div((u, v) H) + f`.

    The defaults are the published layer of the CIFAR networks: four depthwise 3x3 convolutions predict u, v,
    Dx and Dy from the features, each through BatchNorm (eps = channels) and ReLU; K = 1, dt = 0.2,
    dx = dy = 1, periodic; then BatchNorm and ReLU. Input and output (N, C, H, W), any H, W >= 1; with an
    `init` block the output has the shape of that block's.

    Parameters
    ----------
    channels: C of the state (what `init` returns, if there is one).
    pde: steps, dt, spacing, boundary, scheme; default `PDE()`.
    kernel_size: side of the coefficient convolutions, odd; 3.
    coefficients: "depthwise" (published), "full", "pointwise", "identity", "basic", "bottleneck", or a
        function (channels, kernel_size, bias) -> module that keeps the shape.
    bias: whether the coefficient convolutions have one (the norm cancels it; the published counts of the
        CIFAR networks include it); True.
    diffusivity: None learns Dx and Dy from the features; a number, or a pair (Dx, Dy), keeps them constant.
    shared_product: u = v = act(a * act(b)) of the two velocity networks a and b, likewise Dx = Dy; False.
    velocity_from: predict u, v from "h" (after init, published) or "f" (before it).
    start_from: level before the first, H_old: "f" (published) or "h".
    source: whether f enters the equation as its source; True.
    init: block that makes h of f; None for identity. If it changes the shape, f becomes h too. It may take
        two inputs, see `forward`.
    norm_eps: eps of the four coefficient norms; None stands for `float(channels)`, which keeps velocities
        small; the ImageNet networks use 1e-5.
    residual: add f after the activation; False.
    act: activation module class, also in the coefficients; nn.ReLU.

    Parameters: 50 C by default, 46 C without bias; 26 C and 24 C with constant diffusivity.

    Raises `UserError` or `UserTypeError` for settings or inputs that do not fit.

    Source: Kag and Saligrama, "Condensing CNNs with Partial Differential Equations", CVPR 2022, sections 3-4.

    >>> layer = GlobalLayer(16)
    >>> layer(torch.randn(2, 16, 32, 32)).shape
    torch.Size([2, 16, 32, 32])
    >>> sum(p.numel() for p in layer.parameters())
    800
    """

    def __init__(
        self,
        channels: int,
        pde: PDE | None = None,
        *,
        kernel_size: int = 3,
        coefficients: str | NetFactory = "depthwise",
        bias: bool = True,
        diffusivity: float | tuple[float, float] | None = None,
        shared_product: bool = False,
        velocity_from: Literal["h", "f"] = "h",
        start_from: Literal["f", "h"] = "f",
        source: bool = True,
        init: nn.Module | None = None,
        norm_eps: float | None = None,
        residual: bool = False,
        act: Callable[[], nn.Module] = nn.ReLU,
    ) -> None:
        super().__init__()
        if isinstance(channels, bool) or not isinstance(channels, int) or channels < 1:
            raise UserError(f"GlobalLayer: channels={channels!r} must be a whole number >= 1")
        if pde is not None and not isinstance(pde, PDE):
            raise UserTypeError(f"GlobalLayer: pde={pde!r} must be a globalcnn.PDE or None")
        check_kernel_size(kernel_size)
        _check_choice("velocity_from", velocity_from, ("h", "f"))
        _check_choice("start_from", start_from, ("f", "h"))
        eps = float(channels) if norm_eps is None else norm_eps
        number = isinstance(eps, (int, float)) and not isinstance(eps, bool)
        if not (number and math.isfinite(eps) and eps > 0):
            raise UserError(f"GlobalLayer: norm_eps={norm_eps!r} must be a finite number > 0, or None for C")
        if init is not None and not isinstance(init, nn.Module):
            raise UserTypeError(f"GlobalLayer: init={init!r} must be a module or None for identity")
        if isinstance(act, nn.Module) or not callable(act):
            raise UserTypeError(f"GlobalLayer: act={act!r} must be a class of modules, such as torch.nn.ReLU")
        net = find_network(coefficients)

        self.channels = channels
        self.pde = PDE() if pde is None else pde
        self.diffusivity = _as_pair(diffusivity)
        self.shared_product = shared_product
        self.velocity_from = velocity_from
        self.start_from = start_from
        self.source = source
        self.residual = residual
        self.init = init

        def coefficient() -> Coefficient:
            return Coefficient(channels, net, kernel_size=kernel_size, bias=bias, eps=eps)

        self.velocity_x, self.velocity_y = coefficient(), coefficient()
        if self.diffusivity is None:
            self.diffusion_x, self.diffusion_y = coefficient(), coefficient()
        self.coefficient_act = act()
        self.norm = nn.BatchNorm2d(channels)
        self.act = act()
        self._start_near_zero()

    def _start_near_zero(self) -> None:
        """Coefficient convolutions N(0, 2 / (C k k)), not divided by the groups: small coefficients."""
        names = ["velocity_x", "velocity_y"] + ([] if self.diffusivity else ["diffusion_x", "diffusion_y"])
        for name in names:
            for module in self.get_submodule(name).modules():
                if isinstance(module, nn.Conv2d):
                    fan_out = module.out_channels * math.prod(module.kernel_size)
                    nn.init.normal_(module.weight, 0.0, math.sqrt(2.0 / fan_out))
                    if module.bias is not None:
                        nn.init.zeros_(module.bias)

    def fields(self, h: Tensor, f: Tensor) -> Fields:
        """Velocity and diffusion for the state `h` and the source `f`, both (N, C, H, W)."""
        act = self.coefficient_act
        carrier = f if self.velocity_from == "f" else h
        u, v = self._pair(self.velocity_x(carrier), self.velocity_y(carrier), act)
        if self.diffusivity is not None:
            return Fields(u, v, *self.diffusivity)
        Dx, Dy = self._pair(self.diffusion_x(h), self.diffusion_y(h), act)
        return Fields(u, v, Dx, Dy)

    def _pair(self, a: Tensor, b: Tensor, act: nn.Module) -> tuple[Tensor, Tensor]:
        if self.shared_product:
            product = act(a * act(b))
            return product, product
        return act(a), act(b)

    def _start(self, f: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """(h, f) at the start of the evolution."""
        if self.init is None:
            if before is not None:
                raise UserError(
                    "GlobalLayer: a second input came, but there is no init block to take it (init=)"
                )
            h = f
        elif before is None:
            h = self.init(f)
        else:
            h = self.init(before, f)
        if h.ndim != 4 or h.shape[1] != self.channels:
            came = "its input" if self.init is None else "its init block's output"
            raise UserError(
                f"GlobalLayer: {came} has shape {tuple(h.shape)}; it must be (N, {self.channels}, H, W). "
                "Give the layer channels= to match"
            )
        return h, (f if f.shape == h.shape else h)

    def _solve(self, h: Tensor, f: Tensor, c: Fields, pde: PDE) -> Tensor:
        h_old = f if self.start_from == "f" else h
        source = f.to(h.dtype) if self.source else None
        # under autocast the convolutions may return a lower precision than the state: one dtype for the solve
        Dx, Dy = (D.to(h.dtype) if isinstance(D, Tensor) else D for D in (c.Dx, c.Dy))
        return solve(h, h_old.to(h.dtype), source, c.u.to(h.dtype), c.v.to(h.dtype), Dx, Dy, pde)

    def _finish(self, H: Tensor, f: Tensor) -> Tensor:
        out = self.act(self.norm(H))
        return out + f if self.residual else out

    def forward(self, f: Tensor, before: Tensor | None = None) -> Tensor:
        """`act(norm(H))` after the evolution of `f`.

        before: a second input for an init block of two inputs, which is called as `init(before, f)` (as
        DARTS cells are).

        Where a fast backend can run it, the layer is one fused operator in eval mode without gradients; in
        training, on the CPU, so is all of it up to the output norm.
        """
        h, f = self._start(f, before)
        if may_fuse(self, h):
            return run_fused(self, h, f)
        if may_evolve(self, h):
            return self._finish(evolve(self, h, f), f)
        return self._finish(self._solve(h, f, self.fields(h, f), self.pde), f)

    @torch.no_grad()
    def evolution(self, f: Tensor, before: Tensor | None = None) -> Evolution:
        """What the PDE does to `f`: the state at every step 0..K and the fields that drive it. For pictures.

        In eval mode, whatever the mode of the layer, which is left as it was.

        >>> layer = GlobalLayer(4, PDE(steps=3))
        >>> len(layer.evolution(torch.randn(1, 4, 8, 8)).levels)
        4
        """
        with at_rest(self):
            h, f = self._start(f, before)
            c = self.fields(h, f)
            levels = [self._solve(h, f, c, replace(self.pde, steps=k)) for k in range(self.pde.steps + 1)]
            return Evolution(source=f, levels=tuple(levels), fields=c, output=self._finish(levels[-1], f))

    @torch.no_grad()
    def stability(self, f: Tensor, before: Tensor | None = None) -> Stability:
        """How near the coefficients predicted for `f` are to the scheme's limit.

        Nothing in the layer enforces the limit; a ratio above 1 means that some wavelength can grow from
        step to step, which matters the more steps there are. In eval mode, whatever the mode of the layer,
        which is left as it was.

        >>> layer = GlobalLayer(4)
        >>> layer.stability(torch.zeros(1, 4, 8, 8)).stable
        True
        """
        with at_rest(self):
            h, f = self._start(f, before)
            c = self.fields(h, f)
        Dx, Dy = (
            D.float() if isinstance(D, Tensor) else torch.tensor(float(D), device=h.device)
            for D in (c.Dx, c.Dy)
        )
        u, v = c.u.float(), c.v.float()
        ratio = self.pde.scheme.stability_ratio(u, v, Dx, Dy, self.pde)
        if ratio.numel() == 0:
            raise UserError(f"GlobalLayer.stability: the input is empty, shape {tuple(f.shape)}")
        by_channel = ratio.amax(dim=(0, 2, 3))
        return Stability(
            ratio=by_channel.max().item(),
            share_over=(ratio > 1).float().mean().item(),
            worst_channel=int(by_channel.argmax()),
            speed=torch.hypot(u, v).max().item(),
            diffusion=min(Dx.min().item(), Dy.min().item()),
        )

    def pde_multiplies(self, height: int, width: int) -> int:
        """Multiplies of the solve for one image, elementwise, written out (published counts omit them).

        >>> GlobalLayer(16).pde_multiplies(32, 32)
        458752
        """
        each = self.pde.scheme.multiplies_per_element(
            self.pde.steps, constant_diffusion=self.diffusivity is not None
        )
        if self.shared_product:  # the product itself, once for the velocity and once for a learned diffusion
            each += 2 if self.diffusivity is None else 1
        return each * self.channels * height * width

    def extra_repr(self) -> str:
        """The settings that the submodules do not show."""
        diffusion = "learned" if self.diffusivity is None else self.diffusivity
        return f"{self.channels}, {self.pde}, diffusivity={diffusion}, shared_product={self.shared_product}"


@contextmanager
def at_rest(module: nn.Module) -> Iterator[None]:
    """Eval mode inside; afterwards each submodule has its own flag again, also those frozen in eval mode."""
    flags = [(m, m.training) for m in module.modules()]
    module.eval()
    try:
        yield
    finally:
        for m, flag in flags:
            m.training = flag


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"GlobalLayer: {name}={value!r} must be one of {', '.join(map(repr, allowed))}")


def _as_pair(diffusivity: float | tuple[float, float] | None) -> tuple[float, float] | None:
    if diffusivity is None:
        return None
    pair = diffusivity if isinstance(diffusivity, (tuple, list)) else (diffusivity, diffusivity)
    numbers = len(pair) == 2 and all(isinstance(D, (int, float)) and not isinstance(D, bool) for D in pair)
    if not numbers or not all(math.isfinite(D) and D >= 0 for D in pair):
        raise UserError(
            f"GlobalLayer: diffusivity={diffusivity!r} must be a number >= 0, a pair, or None (learned)"
        )
    return float(pair[0]), float(pair[1])
