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

_TRAIN = f"{_PDE}, int act, bool shared_product, bool start_from_h, bool source"
LIBRARY.define(
    f"evolve(Tensor h, Tensor? f, Tensor weight, Tensor gamma, Tensor beta, float eps, {_TRAIN}) "
    "-> (Tensor, Tensor, Tensor)"
)
LIBRARY.define(
    "evolve_backward(Tensor grad, Tensor h, Tensor? f, Tensor weight, Tensor gamma, Tensor beta, "
    f"Tensor mean, Tensor var, float eps, {_TRAIN}) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
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


def evolve_by_eager(
    h: Tensor,
    f: Tensor | None,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    eps: float,
    Dx0: float,
    Dy0: float,
    steps: int,
    dt: float,
    dx: int,
    dy: int,
    boundary: int,
    act: int,
    shared_product: bool,
    start_from_h: bool,
    source: bool,
) -> tuple[Tensor, Tensor, Tensor]:
    """`globalcnn::evolve` on any device, in plain PyTorch: (H, mean, var) of a layer in training.

    h, f (None: f is h): (N, C, H, W); weight (G, C, k, k) of the convolutions; gamma, beta (G, C) of the
    norms, whose batch statistics come back as mean and var (G, C), var biased.
    """
    activate = _ACTIVATE[ACTIVATIONS[act]]
    wide = weight.dtype
    state = h.to(wide)
    old = state if f is None else f.to(wide)
    k, channels = weight.shape[-1], h.shape[1]
    normalised, means, variances = [], [], []
    for i in range(weight.shape[0]):
        z = torch.nn.functional.conv2d(state, weight[i].unsqueeze(1), padding=k // 2, groups=channels)
        var, mean = torch.var_mean(z, dim=(0, 2, 3), correction=0)
        scale = torch.rsqrt(var + eps) * gamma[i]
        normalised.append((z - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + beta[i].view(1, -1, 1, 1))
        means.append(mean)
        variances.append(var)

    def pair(a: Tensor, b: Tensor) -> tuple[Tensor, Tensor]:
        if shared_product:
            product = activate(a * activate(b))
            return product, product
        return activate(a), activate(b)

    u, v = pair(normalised[0], normalised[1])
    Dx, Dy = pair(normalised[2], normalised[3]) if len(normalised) == 4 else (Dx0, Dy0)
    H = eager.solve(
        state,
        state if start_from_h else old,
        old if source else None,
        u,
        v,
        Dx,
        Dy,
        _pde(steps, dt, dx, dy, boundary),
    )
    return torch.empty_like(h).copy_(H), torch.stack(means), torch.stack(variances)


def evolve_backward_by_eager(
    grad: Tensor,
    h: Tensor,
    f: Tensor | None,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    *rest: Any,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """`globalcnn::evolve_backward` on any device, in plain PyTorch."""
    with torch.enable_grad():
        leaves = [
            None if t is None else t.detach().to(weight.dtype).requires_grad_()
            for t in (h, f, weight, gamma, beta)
        ]
        H = evolve_by_eager(*leaves, *rest)[0]  # type: ignore[arg-type]
        wanted = [t for t in leaves if t is not None]
        found = iter(torch.autograd.grad(H, wanted, grad.to(H.dtype), allow_unused=True))
    gradients = []
    for leaf, given in zip(leaves, (h, f, weight, gamma, beta), strict=True):
        if leaf is None or given is None:
            gradients.append(h.new_empty(0))
            continue
        gradient = next(found)
        like = torch.empty_like(given)
        gradients.append(like.zero_() if gradient is None else like.copy_(gradient))
    return tuple(gradients)  # type: ignore[return-value]


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
LIBRARY.impl("evolve", evolve_by_eager, "CompositeExplicitAutograd")
LIBRARY.impl("evolve_backward", evolve_backward_by_eager, "CompositeExplicitAutograd")


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


@torch.library.register_fake("globalcnn::evolve", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _evolve_fake(
    h: Tensor, f: Tensor | None, weight: Tensor, gamma: Tensor, beta: Tensor, *rest: Any
) -> tuple[Tensor, Tensor, Tensor]:
    return torch.empty_like(h), torch.empty_like(gamma), torch.empty_like(gamma)


@torch.library.register_fake("globalcnn::evolve_backward", lib=LIBRARY)  # type: ignore[untyped-decorator]
def _evolve_backward_fake(
    grad: Tensor, h: Tensor, f: Tensor | None, weight: Tensor, gamma: Tensor, beta: Tensor, *rest: Any
) -> tuple[Tensor, ...]:
    g_f = h.new_empty(0) if f is None else torch.empty_like(h)
    return torch.empty_like(h), g_f, *(torch.empty_like(t) for t in (weight, gamma, beta))


def _evolve_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.save_for_backward(*inputs[:5], mean, var)
    ctx.plain = inputs[5:]


def _evolve_backward(ctx: Any, grad: Tensor, *unused: Any) -> tuple[Any, ...]:
    *state, mean, var = ctx.saved_tensors
    gradients = torch.ops.globalcnn.evolve_backward(grad, *state, mean, var, *ctx.plain)
    kept = (None if t is None else g for t, g in zip(state, gradients, strict=True))
    return (*kept, *(None for _ in ctx.plain))


torch.library.register_autograd(
    "globalcnn::evolve", _evolve_backward, setup_context=_evolve_setup, lib=LIBRARY
)


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


def _convolutions(h_shape: Sequence[int], weight_shape: Sequence[int]) -> int:
    n, _, height, width = map(int, h_shape)
    fields, channels, k, _ = map(int, weight_shape)
    return n * fields * channels * k * k * height * width


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
    return 2 * (_convolutions(h_shape, weight_shape) + _multiplies(h_shape, int(weight_shape[0]) == 4, steps))


@register_flop_formula(torch.ops.globalcnn.evolve)
def _evolve_flops(
    h_shape: Any,
    f_shape: Any,
    weight_shape: Any,
    gamma_shape: Any,
    beta_shape: Any,
    eps: float,
    Dx0: float,
    Dy0: float,
    steps: int,
    *rest: Any,
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    return _layer_flops(h_shape, h_shape, weight_shape, beta_shape, gamma_shape, beta_shape, Dx0, Dy0, steps)


@register_flop_formula(torch.ops.globalcnn.evolve_backward)
def _evolve_backward_flops(
    grad_shape: Any,
    h_shape: Any,
    f_shape: Any,
    weight_shape: Any,
    gamma_shape: Any,
    beta_shape: Any,
    mean_shape: Any,
    var_shape: Any,
    eps: float,
    Dx0: float,
    Dy0: float,
    steps: int,
    *rest: Any,
    out_shape: Any = None,
    **kwargs: Any,
) -> int:
    # gradients to the input and to the weights: two convolutions for one; the solve as in its own backward
    solve = 3 * 2 * _multiplies(h_shape, int(weight_shape[0]) == 4, steps)
    return 2 * 2 * _convolutions(h_shape, weight_shape) + solve
