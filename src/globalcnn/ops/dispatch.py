"""The table of implementations of the operator, and its one entry point, `solve`."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor
from torch.autograd import forward_ad
from torch.fx import Proxy

from ..errors import UserError, UserTypeError, unknown_name
from . import eager, reference, torch_ops
from .pde import PDE
from .schemes import DuFortFrankel, Field, GatedSweeps, Scheme
from .tracing import solve_node


@dataclass(frozen=True)
class Backend:
    """One implementation of the operator.

    unavailable: why it cannot run here, or None (it may load the backend to find out).
    refuses: why it cannot take these inputs (h and the equation), or None.
    fused: whether it computes by `torch.ops.globalcnn.*`, so that whole layers can run as one operator.
    schemes: for a fused backend, the schemes by operator: "solve" (with its gradients; without it the others
        are not used), "layer", "evolve" (with its gradients).
    """

    name: str
    about: str
    run: Callable[[Tensor, Tensor, Tensor | None, Tensor, Tensor, Field, Field, PDE], Tensor]
    unavailable: Callable[[], str | None] = lambda: None
    refuses: Callable[[Tensor, PDE], str | None] = lambda h, pde: None
    fused: bool = False
    schemes: Mapping[str, tuple[type[Scheme], ...]] = field(default_factory=dict)

    def why_not_operator(self, operator: str, pde: PDE) -> str | None:
        """Why a fused backend does not compute this operator for the scheme of `pde`, or None."""
        known = self.schemes.get(operator, ())
        if type(pde.scheme) in known:
            return None
        if not known:
            return f"the {self.name} kernels have no operator {operator!r}"
        return f"the {self.name} kernels compute {operator!r} for {_names(known)}, not for {pde.scheme!r}"


def _names(schemes: tuple[type[Scheme], ...]) -> str:
    return " and ".join(s.__name__ for s in schemes)


def _reference_in_dtype(
    h: Tensor, h_old: Tensor, f: Tensor | None, u: Tensor, v: Tensor, Dx: Field, Dy: Field, pde: PDE
) -> Tensor:
    return reference.solve(h, h_old, f, u, v, Dx, Dy, pde).to(h.dtype)


def _native_unavailable() -> str | None:
    from . import native

    return native.load()


def _triton_unavailable() -> str | None:
    from . import triton

    reason = triton.unavailable()
    if reason is None:
        triton.load()
    return reason


def _takes(
    device: str, dtypes: tuple[torch.dtype, ...], schemes: tuple[type[Scheme], ...]
) -> Callable[[Tensor, PDE], str | None]:
    def refuses(h: Tensor, pde: PDE) -> str | None:
        if h.device.type != device:
            return f"it computes on {device}, and h is on {h.device}"
        if h.dtype not in dtypes:
            return f"it computes {', '.join(str(d)[6:] for d in dtypes)}, and h is {str(h.dtype)[6:]}"
        if type(pde.scheme) not in schemes:
            return f"it computes {_names(schemes)}, not {pde.scheme!r}"
        return None

    return refuses


# The schemes of the kernels, by operator. One that a fast backend does not list here runs in eager.
_NATIVE: dict[str, tuple[type[Scheme], ...]] = {
    "solve": (DuFortFrankel, GatedSweeps),
    "layer": (DuFortFrankel, GatedSweeps),
    "evolve": (DuFortFrankel, GatedSweeps),
}
_TRITON: dict[str, tuple[type[Scheme], ...]] = {
    "solve": (DuFortFrankel, GatedSweeps),
    "layer": (DuFortFrankel, GatedSweeps),
}

# in the order of preference for backend=None
BACKENDS: dict[str, Backend] = {
    "native": Backend(
        "native",
        "fused C++ kernels for CPUs: AVX-512, AVX2 or plain",
        torch_ops.solve,
        _native_unavailable,
        _takes("cpu", (torch.float32, torch.bfloat16, torch.float64), _NATIVE["solve"]),
        fused=True,
        schemes=_NATIVE,
    ),
    "triton": Backend(
        "triton",
        "fused Triton kernels for CUDA",
        torch_ops.solve,
        _triton_unavailable,
        _takes("cuda", (torch.float32, torch.bfloat16, torch.float16, torch.float64), _TRITON["solve"]),
        fused=True,
        schemes=_TRITON,
    ),
    "eager": Backend("eager", "plain PyTorch, any device", eager.solve),
    "reference": Backend(
        "reference", "the float64 definition, slow; result rounded to h's dtype", _reference_in_dtype
    ),
}


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _ready(name: str) -> bool:
    # availability does not change within a process: asked once, so that a solve costs no lookup
    if name not in _READY:
        _READY[name] = BACKENDS[name].unavailable() is None
    return _READY[name]


_READY: dict[str, bool] = {}


_BY_DEVICE = {"cpu": "native", "cuda": "triton"}


def load_for(h: Tensor) -> None:
    """Load the fast backend of h's device, if possible, before an operator is called directly."""
    if h.device.type in _BY_DEVICE:
        _ready(_BY_DEVICE[h.device.type])


# the backend that `use_backend` or GLOBALCNN_BACKEND names; None: the fastest that fits
_chosen: str | None = None


@contextmanager
def use_backend(name: str | None) -> Iterator[None]:
    """Inside, solves and layers that name no backend use this one, in all threads; None: the fastest.

    "eager" makes a Global layer run module by module. A named backend that cannot take the inputs is an
    error there, not a reason to take another one. The environment variable GLOBALCNN_BACKEND names the
    backend of the whole process.

    Raises `UserError` for a name that is not known, or a backend that cannot run here.

    >>> import torch
    >>> from globalcnn import GlobalLayer
    >>> layer, x = GlobalLayer(4).eval(), torch.randn(1, 4, 6, 6)
    >>> with use_backend("eager"):
    ...     plain = layer(x)
    >>> torch.allclose(plain, layer(x), atol=1e-5)
    True
    """
    global _chosen
    if name is not None:
        find_backend(name)
    before, _chosen = _chosen, name
    try:
        yield
    finally:
        _chosen = before


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def _named_by_environment() -> str | None:
    return os.environ.get("GLOBALCNN_BACKEND") or None


def only_standard_operators(h: Tensor) -> str | None:
    """Why only PyTorch's own operators may be called on `h` now, or None.

    A traced or exported graph must run without this library; forward-mode derivatives and the transforms of
    torch.func need operators that PyTorch knows.
    """
    if torch.compiler.is_exporting():
        return "a graph is being exported"
    if torch._C._are_functorch_transforms_active():
        return "a transform of torch.func is active"
    if torch.compiler.is_compiling():
        return None
    if torch.jit.is_tracing():
        return "torch.jit.trace is tracing"
    if forward_ad._current_level >= 0:
        return "forward-mode derivatives are on"
    if type(h) not in (Tensor, torch.nn.Parameter, FakeTensor):
        return f"it computes with a {type(h).__name__}, which is not a plain tensor"
    return None


def automatic(h: Tensor, pde: PDE) -> Backend:
    """The backend for these inputs: the chosen one, or the fastest that accepts them here.

    Where only PyTorch's own operators may be called, it is eager.
    """
    if only_standard_operators(h) is not None:
        return BACKENDS["eager"]
    name = _chosen or _named_by_environment()
    if name is not None:
        return _fitting(name, h, pde)
    name = _BY_DEVICE.get(h.device.type)
    if name is not None and BACKENDS[name].refuses(h, pde) is None and _ready(name):
        return BACKENDS[name]
    return BACKENDS["eager"]


def _fitting(name: str, h: Tensor, pde: PDE) -> Backend:
    backend = find_backend(name)
    reason = backend.refuses(h, pde)
    if reason is not None:
        raise UserError(f"backend {name!r} cannot take these inputs: {reason}; take backend='eager'")
    return backend


def why_not_fast(h: Tensor, pde: PDE) -> str:
    """Why `automatic` gave no fast backend for these inputs."""
    reason = only_standard_operators(h)
    if reason is not None:
        return reason
    chosen = _chosen or _named_by_environment()
    if chosen is not None:
        return f"the backend {chosen} was chosen (use_backend or GLOBALCNN_BACKEND)"
    name = _BY_DEVICE.get(h.device.type)
    if name is None:
        return f"there are no fast kernels for the device {h.device.type}"
    backend = BACKENDS[name]
    return f"{name} kernels: {backend.refuses(h, pde) or backend.unavailable()}"


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
    h, h_old: current and previous level, (N, C, H, W), one floating dtype.
    f: source, the same shape, or None for no source.
    u, v: velocity along x (dim 2, rows) and y (dim 3, columns), the same shape, in pixels per unit of time.
    Dx, Dy: diffusion along x and y, tensors of the same shape or numbers >= 0, in pixels^2 per unit of time.
        For a scheme that predicts gates (`GatedSweeps("sigmoid")`), u, v, Dx, Dy are logits, all tensors.
    pde: steps, time step, spacing, boundary and scheme.
    backend: name of a backend ("native", "triton", "eager", "reference"); None picks the fastest that fits.

    Returns the state after the last step, the shape and dtype of `h`; differentiable in every tensor.
    Raises `UserError` or `UserTypeError` where an argument does not fit.

    Source: Kag and Saligrama, CVPR 2022, section 3; the scheme is `pde.scheme`.

    >>> import torch
    >>> h = torch.ones(1, 1, 4, 4)
    >>> zero = torch.zeros_like(h)
    >>> round(solve(h, h, h, zero, zero, 0.0, 0.0, PDE())[0, 0, 0, 0].item(), 6)  # h_old + 2 dt f
    1.4
    """
    if isinstance(h, Proxy):
        return solve_node(h, h_old, f, u, v, Dx, Dy, pde)
    if not torch.jit.is_tracing():  # sizes would become nodes of the graph
        _check(h, h_old, f, u, v, Dx, Dy, pde)
    chosen = automatic(h, pde) if backend is None else _fitting(backend, h, pde)
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
                _check_not_logits(name, value, pde)
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


def _check_not_logits(name: str, value: object, pde: PDE) -> None:
    if isinstance(pde.scheme, GatedSweeps) and pde.scheme.takes_logits:
        raise UserError(
            f"solve: {name}={value!r} must be a tensor of h's shape for {pde.scheme!r}, the logit of a gate; "
            'constant diffusion needs GatedSweeps(gate="transport")'
        )


def _check_number(name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise UserTypeError(f"solve: {name}={value!r} must be a tensor of h's shape or a number >= 0")
    if not (math.isfinite(value) and value >= 0):
        raise UserError(f"solve: {name}={value!r} must be finite and >= 0 (negative diffusion is ill-posed)")
