"""The solve and the whole layer as PyTorch operators, `torch.ops.globalcnn.*`: one graph node each.

Here stand their schemas, what they return (for tracing), their gradients and their costs; the fast backends
register the computing itself, per device: `native/` on CPUs, `triton/` on CUDA. Where none is loaded, the
operators compute by the eager backend, so a graph that holds them runs everywhere.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import register_flop_formula

from . import eager
from .pde import PDE, Boundary
from .schemes import DuFortFrankel, Field

BOUNDARIES = (Boundary.PERIODIC, Boundary.ZERO_FLUX, Boundary.ZERO)
ACTIVATIONS = ("identity", "relu", "relu6", "silu", "hardswish")

_PDE = "float Dx0, float Dy0, int steps, float dt, int dx, int dy, int boundary"
_STATE = "Tensor h, Tensor h_old, Tensor? f, Tensor u, Tensor v, Tensor? Dx, Tensor? Dy"

LIBRARY = torch.library.Library("globalcnn", "DEF")
LIBRARY.define(f"solve({_STATE}, {_PDE}) -> Tensor")
LIBRARY.define(f"solve_backward(Tensor grad, {_STATE}, {_PDE}) -> ({', '.join(['Tensor'] * 7)})")
LIBRARY.define(
    f"layer(Tensor h, Tensor f, Tensor weight, Tensor bias, Tensor scale, Tensor shift, {_PDE}, int act, "
    "bool shared_product, bool velocity_from_f, bool start_from_h, bool source, bool residual) -> Tensor"
)

Numbers = tuple[float, float, int, float, int, int, int]


def numbers(Dx: Field, Dy: Field, pde: PDE) -> Numbers:
    """The operators' plain arguments Dx0, Dy0, steps, dt, dx, dy, boundary (Dx0, Dy0: 0 for tensors)."""
    return (
        0.0 if isinstance(Dx, Tensor) else float(Dx),
        0.0 if isinstance(Dy, Tensor) else float(Dy),
        pde.steps,
        pde.dt,
        *pde.spacing,
        BOUNDARIES.index(pde.boundary),
    )


def solve(
    h: Tensor, h_old: Tensor, f: Tensor | None, u: Tensor, v: Tensor, Dx: Field, Dy: Field, pde: PDE
) -> Tensor:
    """The solve as one operator: signature and result of `eager.solve`. The scheme is DuFortFrankel."""
    if isinstance(Dx, Tensor) != isinstance(Dy, Tensor):  # one a number, one a tensor: both become tensors
        Dx, Dy = (D if isinstance(D, Tensor) else torch.full_like(h, D) for D in (Dx, Dy))
    fields = (D if isinstance(D, Tensor) else None for D in (Dx, Dy))
    return torch.ops.globalcnn.solve(h, h_old, f, u, v, *fields, *numbers(Dx, Dy, pde))


def _pde(steps: int, dt: float, dx: int, dy: int, boundary: int) -> PDE:
    return PDE(steps=steps, dt=dt, spacing=(dx, dy), boundary=BOUNDARIES[boundary], scheme=DuFortFrankel())


def solve_by_eager(*arguments: Any) -> Tensor:
    """`globalcnn::solve` on any device, by the eager backend."""
    h, h_old, f, u, v, Dx, Dy, Dx0, Dy0, *rest = arguments
    out = eager.solve(h, h_old, f, u, v, Dx0 if Dx is None else Dx, Dy0 if Dy is None else Dy, _pde(*rest))
    return torch.empty_like(h).copy_(out)  # the strides that the operator promises


def solve_backward_by_eager(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """`globalcnn::solve_backward` on any device, by the eager backend."""
    h, h_old, f, u, v, Dx, Dy, Dx0, Dy0, *rest = arguments
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in (h, h_old, f, u, v, Dx, Dy)]
        *state, lx, ly = leaves
        out = eager.solve(*state, Dx0 if lx is None else lx, Dy0 if ly is None else ly, _pde(*rest))  # type: ignore[arg-type, call-arg]
        wanted = [t for t in leaves if t is not None]
        found = iter(torch.autograd.grad(out, wanted, grad, allow_unused=True))
    gradients = []
    for leaf in leaves:
        if leaf is None:
            gradients.append(h.new_empty(0))
            continue
        gradient = next(found)
        like = torch.empty_like(h)
        gradients.append(like.zero_() if gradient is None else like.copy_(gradient))
    return tuple(gradients)


def layer_by_eager(
    h: Tensor,
    f: Tensor,
    weight: Tensor,
    bias: Tensor,
    scale: Tensor,
    shift: Tensor,
    Dx0: float,
    Dy0: float,
    steps: int,
    dt: float,
    dx: int,
    dy: int,
    boundary: int,
    act: int,
    shared_product: bool,
    velocity_from_f: bool,
    start_from_h: bool,
    source: bool,
    residual: bool,
) -> Tensor:
    """`globalcnn::layer` on any device, in plain PyTorch."""
    activate = _ACTIVATE[ACTIVATIONS[act]]
    wide = weight.dtype  # the folded weights are in the dtype that is computed in
    state, source_map = h.to(wide), f.to(wide)
    k, channels = weight.shape[-1], h.shape[1]

    def convolve(i: int, x: Tensor) -> Tensor:
        return torch.nn.functional.conv2d(x, weight[i].unsqueeze(1), bias[i], padding=k // 2, groups=channels)

    def pair(i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = convolve(i, x), convolve(i + 1, x)
        if shared_product:
            product = activate(a * activate(b))
            return product, product
        return activate(a), activate(b)

    u, v = pair(0, source_map if velocity_from_f else state)
    Dx, Dy = pair(2, state) if weight.shape[0] == 4 else (Dx0, Dy0)
    h_old = state if start_from_h else source_map
    H = eager.solve(
        state, h_old, source_map if source else None, u, v, Dx, Dy, _pde(steps, dt, dx, dy, boundary)
    )
    out = activate(H * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1))
    if residual:
        out = out + source_map
    return torch.empty_like(h).copy_(out)


_ACTIVATE = {
    "identity": lambda x: x,
    "relu": torch.nn.functional.relu,
    "relu6": torch.nn.functional.relu6,
    "silu": torch.nn.functional.silu,
    "hardswish": torch.nn.functional.hardswish,
}

LIBRARY.impl("solve", solve_by_eager, "CompositeExplicitAutograd")
LIBRARY.impl("solve_backward", solve_backward_by_eager, "CompositeExplicitAutograd")
LIBRARY.impl("layer", layer_by_eager, "CompositeExplicitAutograd")


@torch.library.register_fake("globalcnn::solve", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _solve_fake(h: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(h)


@torch.library.register_fake("globalcnn::layer", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _layer_fake(h: Tensor, *rest: Any) -> Tensor:
    return torch.empty_like(h)


@torch.library.register_fake("globalcnn::solve_backward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _solve_backward_fake(
    grad: Tensor,
    h: Tensor,
    h_old: Tensor,
    f: Tensor | None,
    u: Tensor,
    v: Tensor,
    Dx: Tensor | None,
    Dy: Tensor | None,
    *rest: Any,
) -> tuple[Tensor, ...]:
    return tuple(h.new_empty(0) if t is None else torch.empty_like(h) for t in (h, h_old, f, u, v, Dx, Dy))


def _setup(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
    ctx.save_for_backward(*inputs[:7])
    ctx.plain = inputs[7:]


def _backward(ctx: Any, grad: Tensor) -> tuple[Any, ...]:
    # the inputs alone are kept: the levels are computed again, so nothing grows with the number of steps
    state = ctx.saved_tensors
    gradients = torch.ops.globalcnn.solve_backward(grad, *state, *ctx.plain)
    kept = (None if t is None else g for t, g in zip(state, gradients, strict=True))
    return (*kept, *(None for _ in ctx.plain))


torch.library.register_autograd("globalcnn::solve", _backward, setup_context=_setup, lib=LIBRARY)


def _setup_twice(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:8])
    ctx.plain = inputs[8:]


def _backward_twice(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    # second derivatives: rare, so plain PyTorch computes the first ones again and differentiates them
    Dx0, Dy0, *rest = ctx.plain
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in ctx.saved_tensors]
        grad, *state = leaves
        out = eager.solve(  # type: ignore[call-arg]
            *state[:5],  # type: ignore[arg-type]
            Dx0 if state[5] is None else state[5],
            Dy0 if state[6] is None else state[6],
            _pde(*rest),
        )
        wanted = [t for t in state if t is not None]
        first = torch.autograd.grad(out, wanted, grad, create_graph=True, allow_unused=True)
        given = [g for g, t in zip(grads, state, strict=True) if t is not None]
        pairs = [(a, b) for a, b in zip(first, given, strict=True) if a is not None and a.requires_grad]
        inputs = [t for t in leaves if t is not None]
        nothing: tuple[Tensor | None, ...] = (None,) * len(inputs)
        second = (
            torch.autograd.grad([a for a, _ in pairs], inputs, [b for _, b in pairs], allow_unused=True)
            if pairs
            else nothing
        )
    found = iter(second)
    return (*(None if t is None else next(found) for t in leaves), *(None for _ in ctx.plain))


torch.library.register_autograd(
    "globalcnn::solve_backward", _backward_twice, setup_context=_setup_twice, lib=LIBRARY
)


def _vmap(operator: Any, tensors: int) -> Any:
    """The mapped dimension joins the batch: the solve treats every image alone."""

    def rule(info: Any, in_dims: Sequence[int | None], *arguments: Any) -> tuple[Any, Any]:
        size, shape = info.batch_size, None
        joined: list[Tensor | None] = []
        for argument, dim in zip(arguments[:tensors], in_dims[:tensors], strict=True):
            if argument is None:
                joined.append(None)
                continue
            moved = argument.expand(size, *argument.shape) if dim is None else argument.movedim(dim, 0)
            shape = moved.shape
            joined.append(moved.flatten(0, 1))
        assert shape is not None
        result = operator(*joined, *arguments[tensors:])
        if isinstance(result, Tensor):
            return result.unflatten(0, shape[:2]), 0
        split = [r.unflatten(0, shape[:2]) if r.ndim == 4 else r for r in result]
        return tuple(split), tuple(0 if r.ndim == 5 else None for r in split)

    return rule


torch.library.register_vmap("globalcnn::solve", _vmap(torch.ops.globalcnn.solve, 7), lib=LIBRARY)
torch.library.register_vmap(
    "globalcnn::solve_backward", _vmap(torch.ops.globalcnn.solve_backward, 8), lib=LIBRARY
)


def _multiplies(shape: Sequence[int], learned: bool, steps: int) -> int:
    elements = functools.reduce(int.__mul__, map(int, shape), 1)
    return elements * DuFortFrankel().multiplies_per_element(steps, constant_diffusion=not learned)


# A FLOP counter counts two for a multiply-add; the solve written out is about one addition per multiply
@register_flop_formula(torch.ops.globalcnn.solve)
def _solve_flops(
    h_shape: Any,
    h_old_shape: Any,
    f_shape: Any,
    u_shape: Any,
    v_shape: Any,
    Dx_shape: Any,
    Dy_shape: Any,
    Dx0: float,
    Dy0: float,
    steps: int,
    *rest: Any,
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    return 2 * _multiplies(h_shape, Dx_shape is not None, steps)


@register_flop_formula(torch.ops.globalcnn.solve_backward)
def _solve_backward_flops(
    grad_shape: Any,
    h_shape: Any,
    h_old_shape: Any,
    f_shape: Any,
    u_shape: Any,
    v_shape: Any,
    Dx_shape: Any,
    Dy_shape: Any,
    Dx0: float,
    Dy0: float,
    steps: int,
    *rest: Any,
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    # the levels once more, and for each of them about two operations for one of the forward
    return 3 * 2 * _multiplies(h_shape, Dx_shape is not None, steps)


@register_flop_formula(torch.ops.globalcnn.layer)
def _layer_flops(
    h_shape: Any,
    f_shape: Any,
    weight_shape: Any,
    bias_shape: Any,
    scale_shape: Any,
    shift_shape: Any,
    Dx0: float,
    Dy0: float,
    steps: int,
    *rest: Any,
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    n, _, height, width = map(int, h_shape)
    fields, channels, k, _ = map(int, weight_shape)
    convolutions = n * fields * channels * k * k * height * width
    return 2 * (convolutions + _multiplies(h_shape, fields == 4, steps))
