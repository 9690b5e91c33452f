"""Which implementations of the operator there are, which can run here, and the one entry point: `solve`."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from ..errors import UserError, UserTypeError, unknown_name
from . import eager, reference
from .pde import PDE
from .schemes import Field


@dataclass(frozen=True)
class Backend:
    """One implementation of the operator. `unavailable()` says why it cannot run here, or gives None."""

    name: str
    about: str
    run: Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor, Field, Field, PDE], Tensor]
    unavailable: Callable[[], str | None] = lambda: None


def _reference_in_dtype(
    h: Tensor, h_old: Tensor, f: Tensor | None, u: Tensor, v: Tensor, Dx: Field, Dy: Field, pde: PDE
) -> Tensor:
    return reference.solve(h, h_old, f, u, v, Dx, Dy, pde).to(h.dtype)


# in the order of preference for backend=None
BACKENDS: dict[str, Backend] = {
    "eager": Backend("eager", "plain PyTorch, any device", eager.solve),
    "reference": Backend(
        "reference", "the float64 definition, slow; result rounded to h's dtype", _reference_in_dtype
    ),
}


def solve(
    h: Tensor,
    h_old: Tensor,
    f: Tensor | None,
    u: Tensor,
    v: Tensor,
    Dx: Field,
    Dy: Field,
    pde: PDE,
    *,
    backend: str | None = None,
) -> Tensor:
    """Advance `h` by `pde.steps` steps of `dH/dt = Dx H_xx + Dy H_yy + div((u, v) H) + f`, per channel.

    Parameters
    ----------
    h, h_old: current level and the one before, (N, C, H, W), one floating dtype.
    f: source, the same shape, or None for no source.
    u, v: velocity along x (dim 2, rows) and y (dim 3, columns), the same shape, in pixels per unit of time.
    Dx, Dy: diffusion along x and y, tensors of the same shape or numbers >= 0, in pixels^2 per unit of time.
    pde: steps, time step, spacing, boundary and scheme.
    backend: name of a backend ("eager", "reference"); None picks the fastest that fits.

    Returns the state after the last step, the shape and dtype of `h`; differentiable in every tensor.
    Raises `UserError` or `UserTypeError` where an argument does not fit.

    Source: Kag and Saligrama, CVPR 2022, section 3; the scheme is `pde.scheme`.

    >>> import torch
    >>> h = torch.ones(1, 1, 4, 4)
    >>> zero = torch.zeros_like(h)
    >>> round(solve(h, h, h, zero, zero, 0.0, 0.0, PDE())[0, 0, 0, 0].item(), 6)  # h_old + 2 dt f
    1.4
    """
    _check(h, h_old, f, u, v, Dx, Dy, pde)
    chosen = BACKENDS["eager"] if backend is None else find_backend(backend)
    return chosen.run(h, h_old, f, u, v, Dx, Dy, pde)


def find_backend(name: str) -> Backend:
    """The backend of that name, if it can run here; a `UserError` that says why not otherwise."""
    if name not in BACKENDS:
        raise unknown_name("backend", name, BACKENDS)
    backend = BACKENDS[name]
    reason = backend.unavailable()
    if reason is not None:
        raise UserError(f"backend {name!r} cannot run here: {reason}")
    return backend


def _check(
    h: Tensor, h_old: Tensor, f: Tensor | None, u: Tensor, v: Tensor, Dx: Field, Dy: Field, pde: PDE
) -> None:
    if not isinstance(pde, PDE):
        raise UserTypeError(f"solve: pde={pde!r} must be a globalcnn.PDE")
    if not isinstance(h, Tensor):
        raise UserTypeError(f"solve: h is a {type(h).__name__}, not a tensor")
    if h.ndim != 4 or 0 in h.shape[2:]:
        raise UserError(f"solve: h has shape {tuple(h.shape)}; it must be (N, C, H, W) with H, W >= 1")
    if not h.is_floating_point():
        raise UserTypeError(f"solve: h has dtype {h.dtype}; it must be a floating dtype (try h.float())")
    for name, value in {"h_old": h_old, "f": f, "u": u, "v": v, "Dx": Dx, "Dy": Dy}.items():
        if value is None and name == "f":
            continue
        if not isinstance(value, Tensor):
            if name in ("Dx", "Dy"):
                _check_number(name, value)
                continue
            raise UserTypeError(f"solve: {name} is a {type(value).__name__}, not a tensor")
        if value.shape != h.shape:
            raise UserError(
                f"solve: {name} has shape {tuple(value.shape)} but h has {tuple(h.shape)}; "
                "they must be the same"
            )
        if value.dtype != h.dtype or value.device != h.device:
            raise UserError(
                f"solve: {name} is {value.dtype} on {value.device} but h is {h.dtype} on {h.device}; "
                f"convert it with {name}.to(h)"
            )


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserTypeError(f"solve: {name}={value!r} must be a tensor of h's shape or a number >= 0")
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"solve: {name}={value!r} must be finite and >= 0 (negative diffusion is ill-posed)")
