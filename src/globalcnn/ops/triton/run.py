"""The operators `solve`, `solve_backward` and `layer`, launched from the kernels."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import spec
from ..schemes import DuFortFrankel
from ..torch_ops import decomposition
from . import passes, planes
from .launch import (
    BACKWARD_ELEMENTS,
    COMPUTE,
    PASS_ELEMENTS,
    Problem,
    View,
    launch,
    pass_tile,
    plane_tile,
    view,
)

_DU_FORT_FRANKEL = spec.SCHEMES.index(DuFortFrankel)  # the scheme of the kernels; others run in plain PyTorch


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
    T = COMPUTE.get(h.dtype)
    if T is None or a.pde.scheme != _DU_FORT_FRANKEL:
        return decomposition.solve(*arguments)
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
    T = COMPUTE.get(h.dtype)
    if T is None or a.pde.scheme != _DU_FORT_FRANKEL:
        return decomposition.solve_backward(*arguments)
    gradients = tuple(h.new_empty(0) if A is None else torch.empty_like(h) for A in inputs)
    if h.numel() == 0:
        return gradients
    if steps == 0:
        gradients[0].copy_(grad)
        for gradient in gradients[1:]:
            gradient.zero_()
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
    T = COMPUTE.get(a.weight.dtype)
    out = torch.empty_like(h)
    if h.numel() == 0:
        return out
    whole = None if T is None else plane_tile(out, T)
    plain = T is None or h.dtype not in COMPUTE or (whole is None and steps == 0)
    if plain or a.pde.scheme != _DU_FORT_FRANKEL:
        return decomposition.layer(*arguments)
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
    u, v, Dx, Dy = _fields(problem, h, carrier, weight, bias, network)
    driven = (view(f) if a.source else None, u, v, Dx, Dy)
    problem.evolve(out, h, h if a.start_from_h else f, driven, steps, finish, a.act)
    return out


def _fields(
    problem: Problem, h: Tensor, carrier: Tensor, weight: Tensor, bias: Tensor, network: dict[str, Any]
) -> list[View]:
    """u, v, Dx, Dy in scratch memory; Dx, Dy None where diffusion is constant."""
    made: list[View] = []
    for _ in range(weight.shape[0] // 2):
        a = view(problem.scratch())
        made += [a, a if network["PRODUCT"] else view(problem.scratch())]
    made += [None] * (4 - len(made))
    launch(
        planes.fields, problem.like, pass_tile(problem.like, PASS_ELEMENTS), *made, view(h), view(carrier),
        weight, bias, *problem.sizes[:3], T=problem.T, **network,
    )  # fmt: skip
    return made
