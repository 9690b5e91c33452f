"""`GlobalLayer`: evolves a feature map, channel by channel, under an advection-diffusion equation."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Literal

import torch
import torch.fx
from torch import Tensor, nn

from ..errors import UserError, UserTypeError
from ..ops import PDE, DuFortFrankel, GatedSweeps, solve
from .bounded import bounded_fields
from .coefficients import Coefficient, NetFactory, as_pair, check_kernel_size, find_network
from .diagnostics import Evolution, Fields, Stability, evolution_of, stability_of
from .fused.decision import Way, decide, warn_once
from .fused.inference import run_inference
from .fused.training import run_training
from .mode import eval_mode
from .start import start
from .tracing import traced_call


class GlobalLayer(nn.Module):
    """Evolve a feature map for K steps of `dH/dt = Dx H_xx + Dy H_yy + div((u, v) H) + f`.

    The defaults are the published layer of the CIFAR networks: four depthwise 3x3 convolutions predict u, v,
    Dx and Dy from the features, each through BatchNorm (eps = channels) and ReLU; K = 1, dt = 0.2,
    dx = dy = 1, periodic; then BatchNorm and ReLU. Input and output (N, C, H, W), any H, W >= 1; with an
    `init` block the output has the shape of that block's.

    Conventions, all of them published ones. **Sign**: with `+div((u, v) H)` features move towards -(u, v),
    docs/images/moving_blob.png. **Axes**: x is the row (dim 2; u, Dx, dx act along it), y the column (dim 3;
    v, Dy, dy). **Step**: a leapfrog: each level follows from the one two before it over 2 dt, and H_old is
    the input at the start, so K steps move features by 2 dt ceil(K / 2) times the velocity, and K = 1 adds
    2 dt f. **Edges**: periodic; `PDE(boundary=...)` also takes "neumann" (zero flux) and "dirichlet" (zero).

    Parameters
    ----------
    channels: C of the state (what `init` returns, if there is one).
    pde: steps, dt, spacing, boundary, scheme; default `PDE()`.
    kernel_size: side of the coefficient convolutions, odd; 3.
    coefficients: "depthwise" (published), "full", "pointwise", "identity", "basic", "bottleneck",
        "shared-groups" (one map for four channels), "half-resolution", or a function
        (channels, kernel_size, bias) -> module that keeps the shape.
    bias: whether the coefficient convolutions have one (the norm cancels it; the published counts of the
        CIFAR networks include it); True.
    diffusivity: None learns Dx and Dy from the features; a number, or a pair (Dx, Dy), keeps them constant.
    shared_product: u = v = act(a * act(b)) of the two velocity networks a and b, likewise Dx = Dy; False.
    velocity_from: predict u, v from "h" (after init, published) or "f" (before it).
    start_from: level before the first, H_old: "f" (published) or "h".
    source: whether f enters the equation as its source; True.
    init: block that computes h from f; None for identity. If it changes the shape, f becomes h too. It may
        take two inputs, see `forward`.
    norm_eps: eps of the four coefficient norms; None means `float(channels)`, which keeps velocities
        small; the ImageNet networks use 1e-5.
    residual: add f after the activation; False.
    bounded: clamp the velocity to what the scheme, Du Fort-Frankel, carries stably (`stability` then reports
        at most 1); False.
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
        bounded: bool = False,
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
        self.diffusivity = as_pair("GlobalLayer", diffusivity)
        check_diffusivity(self.pde, self.diffusivity)
        self.shared_product = shared_product
        self.velocity_from = velocity_from
        self.start_from = start_from
        self.source = source
        self.residual = residual
        self.bounded = bounded
        if bounded and type(self.pde.scheme) is not DuFortFrankel:
            raise UserError(
                f"GlobalLayer: bounded=True is for the scheme DuFortFrankel(), not {self.pde.scheme!r}"
            )
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
        act = _identity if takes_logits(self.pde) else self.coefficient_act
        carrier = f if self.velocity_from == "f" else h
        u, v = self._pair(self.velocity_x(carrier), self.velocity_y(carrier), act)
        if self.diffusivity is not None:
            fields = Fields(u, v, *self.diffusivity)
        else:
            fields = Fields(u, v, *self._pair(self.diffusion_x(h), self.diffusion_y(h), act))
        if self.bounded:
            return Fields(*bounded_fields(fields.u, fields.v, fields.Dx, fields.Dy, self.pde))
        return fields

    def _pair(self, a: Tensor, b: Tensor, act: Callable[[Tensor], Tensor]) -> tuple[Tensor, Tensor]:
        if self.shared_product:
            product = act(a * act(b))
            return product, product
        return act(a), act(b)

    def _start(self, f: Tensor, before: Tensor | None) -> tuple[Tensor, Tensor]:
        """(h, f) at the start of the evolution."""
        return start(self, f, before)

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

        Where fast kernels support it, the layer runs as one operator in eval mode without gradients; in
        training on the CPU, all of it up to the output norm is one operator. Otherwise it runs module by
        module. `explain` says which of these an input takes, and why.
        """
        if isinstance(f, torch.fx.Proxy):
            return traced_call(self, f, before)
        h, f = self._start(f, before)
        decision = decide(self, h, f)
        if decision.way is Way.INFERENCE:
            return run_inference(self, h, f)
        if decision.way is Way.TRAINING:
            return self._finish(run_training(self, h, f), f)
        warn_once(decision)
        return self._finish(self._solve(h, f, self.fields(h, f), self.pde), f)

    def explain(self, f: Tensor, before: Tensor | None = None) -> str:
        """How a forward of `f` would run now (given mode, gradients, dtype, kernels), and why.

        The layer does not run; an init block does, in eval mode, since the decision depends on its output.
        Raises as `forward` for inputs that do not fit.

        >>> layer = GlobalLayer(4, act=torch.nn.Tanh)
        >>> "module by module" in layer.explain(torch.randn(1, 4, 8, 8))
        True
        """
        inputs = (f,) if before is None else (f, before)
        init = [] if self.init is None else self.init.parameters()
        differentiate = any(t.requires_grad for t in (*inputs, *init) if isinstance(t, Tensor))
        with eval_mode(self.init or nn.Identity()), torch.no_grad():
            h, source = self._start(f, before)
        return str(decide(self, h, source, differentiate=differentiate))

    def evolution(self, f: Tensor, before: Tensor | None = None) -> Evolution:
        """The evolution of `f`: the state at every step 0..K, and the coefficient fields. For pictures.

        Runs in eval mode; the layer's own mode is restored.

        >>> layer = GlobalLayer(4, PDE(steps=3))
        >>> len(layer.evolution(torch.randn(1, 4, 8, 8)).levels)
        4
        """
        return evolution_of(self, f, before)

    def stability(self, f: Tensor, before: Tensor | None = None) -> Stability:
        """The coefficients predicted for `f`, compared with the scheme's stability limit.

        Nothing in the layer enforces the limit; a ratio above 1 means that some wavelength can grow from
        step to step, which matters more with more steps. Runs in eval mode; the layer's own mode is restored.

        >>> layer = GlobalLayer(4)
        >>> layer.stability(torch.zeros(1, 4, 8, 8)).stable
        True
        """
        return stability_of(self, f, before)

    def pde_multiplies(self, height: int, width: int) -> int:
        """Elementwise multiplies of the solve for one image (published counts omit them).

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
        """The settings that `repr` of the submodules does not contain."""
        diffusion = "learned" if self.diffusivity is None else self.diffusivity
        return f"{self.channels}, {self.pde}, diffusivity={diffusion}, shared_product={self.shared_product}"


def takes_logits(pde: PDE) -> bool:
    """Whether the scheme takes the fields as logits of its gates, without an activation before."""
    return isinstance(pde.scheme, GatedSweeps) and pde.scheme.takes_logits


def check_diffusivity(pde: PDE, diffusivity: tuple[float, float] | None) -> None:
    """Raise `UserError` for a constant diffusion with a scheme that predicts all its gates."""
    if diffusivity is not None and takes_logits(pde):
        raise UserError(
            f"GlobalLayer: diffusivity={diffusivity} is constant, but {pde.scheme!r} predicts the gates of "
            'all sweeps; take diffusivity=None, or GatedSweeps(gate="transport")'
        )


def _identity(x: Tensor) -> Tensor:
    return x


def _check_choice(name: str, value: object, allowed: tuple[str, ...]) -> None:
    if value not in allowed:
        raise UserError(f"GlobalLayer: {name}={value!r} must be one of {', '.join(map(repr, allowed))}")
