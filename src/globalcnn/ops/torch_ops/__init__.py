"""The solve and the whole layer as PyTorch operators, `torch.ops.globalcnn.*`: one graph node each.

Here stand their schemas, what they return (for tracing), their gradients and how they are mapped. The fast
backends register the computing itself, per device: `native/` on CPUs, `triton/` on CUDA. Where none is
loaded, `decomposition.py` computes. What they cost stands in `flops.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from ..pde import PDE
from ..schemes import Field
from . import decomposition, flops

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
        decomposition.BOUNDARIES.index(pde.boundary),
    )


def solve(
    h: Tensor, h_old: Tensor, f: Tensor | None, u: Tensor, v: Tensor, Dx: Field, Dy: Field, pde: PDE
) -> Tensor:
    """The solve as one operator: signature and result of `eager.solve`. The scheme is DuFortFrankel."""
    if isinstance(Dx, Tensor) != isinstance(Dy, Tensor):  # one a number, one a tensor: both become tensors
        Dx, Dy = (D if isinstance(D, Tensor) else torch.full_like(h, D) for D in (Dx, Dy))
    fields = (D if isinstance(D, Tensor) else None for D in (Dx, Dy))
    return torch.ops.globalcnn.solve(h, h_old, f, u, v, *fields, *numbers(Dx, Dy, pde))


LIBRARY.impl("solve", decomposition.solve, "CompositeExplicitAutograd")
LIBRARY.impl("solve_backward", decomposition.solve_backward, "CompositeExplicitAutograd")
LIBRARY.impl("layer", decomposition.layer, "CompositeExplicitAutograd")
LIBRARY.impl("evolve", decomposition.evolve, "CompositeExplicitAutograd")
LIBRARY.impl("evolve_backward", decomposition.evolve_backward, "CompositeExplicitAutograd")


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


def _kept(ctx: Any, state: Sequence[Tensor | None], gradients: Sequence[Tensor]) -> tuple[Tensor | None, ...]:
    """What autograd takes: no gradient for an absent tensor, and none for the plain arguments."""
    kept = (None if t is None else g for t, g in zip(state, gradients, strict=True))
    return (*kept, *(None for _ in ctx.plain))


def _evolve_setup(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor, Tensor]) -> None:
    _, mean, var = output
    ctx.mark_non_differentiable(mean, var)
    ctx.save_for_backward(*inputs[:5], mean, var)
    ctx.plain = inputs[5:]


def _evolve_backward(ctx: Any, grad: Tensor, *unused: Any) -> tuple[Any, ...]:
    *state, mean, var = ctx.saved_tensors
    gradients = torch.ops.globalcnn.evolve_backward(grad, *state, mean, var, *ctx.plain)
    return _kept(ctx, state, gradients)


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
    return _kept(ctx, state, gradients)


torch.library.register_autograd("globalcnn::solve", _backward, setup_context=_setup, lib=LIBRARY)


def _setup_twice(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.save_for_backward(*inputs[:8])
    ctx.plain = inputs[8:]


def _backward_twice(ctx: Any, *grads: Tensor) -> tuple[Any, ...]:
    # second derivatives: rare, so plain PyTorch computes the first ones again and differentiates them
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in ctx.saved_tensors]
        grad, *state = leaves
        out = decomposition.solve_plainly(*state, *ctx.plain)
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

flops.register()
