"""The operators `solve`, `solve_backward` and `layer`, launched from the kernels."""

from __future__ import annotations

from typing import Any

import torch
import triton.language as tl
from torch import Tensor

from .. import spec
from ..schemes import DuFortFrankel, GatedSweeps
from ..torch_ops import decomposition
from . import passes, planes, run_sweeps
from .launch import (
    BACKWARD_ELEMENTS,
    COMPUTE,
    Problem,
    View,
    coefficients,
    launch,
    pass_tile,
    plane_tile,
    view,
)


def _sweeps(pde: spec.Pde) -> bool:
    return spec.SCHEMES[pde.scheme] is GatedSweeps


def _arithmetic(like: Tensor, pde: spec.Pde) -> tl.dtype | None:
    """The dtype to compute in; None for dtypes and schemes without kernels, which run in plain PyTorch."""
    known = spec.SCHEMES[pde.scheme] in (DuFortFrankel, GatedSweeps)
    return COMPUTE.get(like.dtype) if known else None


def solve(*arguments: Any) -> Tensor:
    """`globalcnn::solve`."""
    spec.SOLVE.check(arguments)
    a: spec.Solve = spec.SOLVE.unpack(arguments)
    h, h_old, steps = a.h, a.h_old, a.pde.steps
    out = torch.empty_like(h)
    if h.numel() == 0:
        return out
    if steps == 0:
        return out.copy_(h)
    T = _arithmetic(h, a.pde)
    if T is None:
        return decomposition.solve(*arguments)
    if _sweeps(a.pde):
        return run_sweeps.solve(out, a, T)
    problem = Problem(out, T, a.pde)
    fields = tuple(map(view, (a.f, a.u, a.v, a.Dx, a.Dy)))
    whole = plane_tile(out, T) if steps > 1 else None
    if whole is not None:
        launch(
            planes.solve_planes, out, whole, view(out), view(h), view(h_old), *fields, problem.numbers,
            steps, *problem.sizes, **problem.settings,
        )  # fmt: skip
        return out
    problem.evolve(out, h, h_old, fields, steps)
    return out


def solve_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """`globalcnn::solve_backward`: the levels once more, then the adjoint of each step, last first."""
    spec.SOLVE_BACKWARD.check(arguments)
    a: spec.SolveBackward = spec.SOLVE_BACKWARD.unpack(arguments)
    grad, h, steps = a.grad, a.h, a.pde.steps
    inputs = (a.h, a.h_old, a.f, a.u, a.v, a.Dx, a.Dy)
    T = _arithmetic(h, a.pde)
    if T is None:
        return decomposition.solve_backward(*arguments)
    gradients = tuple(h.new_empty(0) if A is None else torch.empty_like(h) for A in inputs)
    if h.numel() == 0:
        return gradients
    if steps == 0:
        gradients[0].copy_(grad)
        for gradient in gradients[1:]:
            gradient.zero_()
        return gradients
    if _sweeps(a.pde):
        run_sweeps.solve_backward(gradients, a, T)
        return gradients
    problem = Problem(gradients[0], T, a.pde)
    _adjoint(problem, grad, inputs, gradients, steps)
    return gradients


def _adjoint(
    problem: Problem,
    grad: Tensor,
    inputs: tuple[Tensor | None, ...],
    gradients: tuple[Tensor, ...],
    steps: int,
) -> None:
    h, h_old, *rest = inputs
    assert h is not None
    assert h_old is not None
    fields = tuple(map(view, rest))
    levels = problem.levels(h, h_old, fields, steps - 1, keep=True)
    nothing: tuple[View, ...] = (None,) * 5
    so_far = sums = nothing
    if steps > 1:
        sums = tuple(None if A is None else view(problem.scratch()) for A in rest)
    later, spare = None, None
    for k in reversed(range(steps)):
        last = k == 0
        if last:
            to_h, sums = gradients[0], tuple(view(g) if g.ndim == 4 else None for g in gradients[2:])
        else:
            to_h = problem.scratch() if spare is None else spare
        launch(
            passes.backward_step, to_h, pass_tile(to_h, BACKWARD_ELEMENTS), view(grad), view(later),
            view(levels[k + 1]), view(levels[k]), *fields, view(to_h), view(gradients[1]) if last else None,
            so_far, sums, problem.numbers, *problem.sizes, **problem.settings, per_thread=2,
        )  # fmt: skip
        spare = later if k < steps - 2 else None  # the caller's gradient must not be overwritten
        grad, later, so_far = to_h, grad, sums


def layer(*arguments: Any) -> Tensor:
    """`globalcnn::layer`."""
    spec.LAYER.check(arguments)
    a: spec.Layer = spec.LAYER.unpack(arguments)
    h, f, steps = a.h, a.f, a.pde.steps
    T = _arithmetic(a.weight, a.pde)
    out = torch.empty_like(h)
    if h.numel() == 0:
        return out
    whole = None if T is None else plane_tile(out, T)
    if T is None or h.dtype not in COMPUTE or (whole is None and steps == 0):
        return decomposition.layer(*arguments)
    if _sweeps(a.pde):
        return run_sweeps.layer(out, a, T) if steps else decomposition.layer(*arguments)
    problem = Problem(out, T, a.pde)
    weight, bias, scale, shift = (A.contiguous() for A in (a.weight, a.bias, a.scale, a.shift))
    carrier = f if a.velocity_from_f else h
    network = {"K": weight.shape[-1], "PRODUCT": a.shared_product, "ACT": a.act}
    finish = (scale, shift, view(f) if a.residual else None)
    if whole is not None:
        launch(
            planes.layer_planes, out, whole, view(out), view(h), view(f), view(carrier), weight, bias,
            *finish, problem.numbers, steps, *problem.sizes, **problem.settings, **network,
            LEARNED=weight.shape[0] == 4, START_FROM_H=a.start_from_h, SOURCE=a.source,
        )  # fmt: skip
        return out
    made = coefficients(out, h, carrier, weight, bias, T, network)
    driven = (view(f) if a.source else None, *made)
    problem.evolve(out, h, h if a.start_from_h else f, driven, steps, finish, a.act)
    return out
