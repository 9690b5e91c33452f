"""The operators in plain PyTorch, on top of `eager.solve`.

They compute where no fast backend is loaded or one does not know the dtype, and fast kernels are checked
against them. Arguments are those of the schemas in `torch_ops`; results have the strides of the inputs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import eager
from ..pde import PDE, Boundary
from ..schemes import DuFortFrankel

# the operators take both by number, and so do the kernels: native/csrc/kernels.h, triton/parts.py
BOUNDARIES = (Boundary.PERIODIC, Boundary.ZERO_FLUX, Boundary.ZERO)
_ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
}
ACTIVATIONS = tuple(_ACTIVATE)


def _pde(steps: int, dt: float, dx: int, dy: int, boundary: int) -> PDE:
    return PDE(steps=steps, dt=dt, spacing=(dx, dy), boundary=BOUNDARIES[boundary], scheme=DuFortFrankel())


def solve_plainly(*arguments: Any) -> Tensor:
    """`eager.solve` from the arguments of `globalcnn::solve`; autograd sees through it."""
    h, h_old, f, u, v, Dx, Dy, Dx0, Dy0, *rest = arguments
    return eager.solve(h, h_old, f, u, v, Dx0 if Dx is None else Dx, Dy0 if Dy is None else Dy, _pde(*rest))


def solve(*arguments: Any) -> Tensor:
    """`globalcnn::solve`."""
    return _laid_out_as(arguments[0], solve_plainly(*arguments))


def solve_backward(grad: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
    """`globalcnn::solve_backward`."""
    inputs = arguments[:7]
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().requires_grad_() for t in inputs]
        out = solve_plainly(*leaves, *arguments[7:])
    return _gradients(out, grad, leaves, [inputs[0]] * 7)


def layer(
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
    """`globalcnn::layer`: a Global layer at inference, its norms folded into the weights."""
    wide = weight.dtype  # the folded weights are in the dtype that is computed in
    state, old = h.to(wide), f.to(wide)

    def pair(i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = (_depthwise(x, weight[j], bias[j]) for j in (i, i + 1))
        return _pair(a, b, act, shared_product)

    u, v = pair(0, old if velocity_from_f else state)
    Dx, Dy = pair(2, state) if weight.shape[0] == 4 else (Dx0, Dy0)
    pde = _pde(steps, dt, dx, dy, boundary)
    H = eager.solve(state, state if start_from_h else old, old if source else None, u, v, Dx, Dy, pde)
    out = _ACTIVATE[ACTIVATIONS[act]](H * scale.view(1, -1, 1, 1) + shift.view(1, -1, 1, 1))
    return _laid_out_as(h, out + old if residual else out)


def evolve(
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
    """`globalcnn::evolve`: (H, mean, var) of a Global layer in training.

    h, f (None: f is h): (N, C, H, W); weight (G, C, k, k) of the convolutions; gamma, beta (G, C) of the
    norms, whose batch statistics come back as mean and var (G, C), var biased.
    """
    state = h.to(weight.dtype)
    old = state if f is None else f.to(weight.dtype)
    fields, means, variances = [], [], []
    for i in range(weight.shape[0]):
        z = _depthwise(state, weight[i])
        var, mean = torch.var_mean(z, dim=(0, 2, 3), correction=0)
        scale = torch.rsqrt(var + eps) * gamma[i]
        fields.append((z - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1) + beta[i].view(1, -1, 1, 1))
        means.append(mean)
        variances.append(var)
    u, v = _pair(fields[0], fields[1], act, shared_product)
    Dx, Dy = _pair(fields[2], fields[3], act, shared_product) if len(fields) == 4 else (Dx0, Dy0)
    pde = _pde(steps, dt, dx, dy, boundary)
    H = eager.solve(state, state if start_from_h else old, old if source else None, u, v, Dx, Dy, pde)
    return _laid_out_as(h, H), torch.stack(means), torch.stack(variances)


def evolve_backward(
    grad: Tensor,
    h: Tensor,
    f: Tensor | None,
    weight: Tensor,
    gamma: Tensor,
    beta: Tensor,
    mean: Tensor,
    var: Tensor,
    *rest: Any,
) -> tuple[Tensor, ...]:
    """`globalcnn::evolve_backward`."""
    inputs = (h, f, weight, gamma, beta)
    with torch.enable_grad():
        leaves = [None if t is None else t.detach().to(weight.dtype).requires_grad_() for t in inputs]
        H, _, _ = evolve(*leaves, *rest)  # type: ignore[arg-type]
    return _gradients(H, grad.to(H.dtype), leaves, inputs)


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Each channel's own convolution, with zeros outside; weight (C, k, k)."""
    channels, k, _ = weight.shape
    return F.conv2d(x, weight.unsqueeze(1), bias, padding=k // 2, groups=channels)


def _pair(a: Tensor, b: Tensor, act: int, shared_product: bool) -> tuple[Tensor, Tensor]:
    """Two coefficients, u and v or Dx and Dy, from what their activation follows."""
    activate = _ACTIVATE[ACTIVATIONS[act]]
    if shared_product:
        product = activate(a * activate(b))
        return product, product
    return activate(a), activate(b)


def _laid_out_as(given: Tensor, value: Tensor) -> Tensor:
    """`value` in the dtype and with the strides of `given`, as the operators promise."""
    return torch.empty_like(given).copy_(value)


def _gradients(
    out: Tensor, grad: Tensor, leaves: Sequence[Tensor | None], like: Sequence[Tensor | None]
) -> tuple[Tensor, ...]:
    """Of `out` with respect to `leaves` (h first), each laid out as its `like`; empty for an absent leaf."""
    h = like[0]
    assert h is not None
    wanted = [leaf for leaf in leaves if leaf is not None]
    found = iter(torch.autograd.grad(out, wanted, grad, allow_unused=True))
    gradients = []
    for leaf, given in zip(leaves, like, strict=True):
        if leaf is None or given is None:
            gradients.append(h.new_empty(0))
            continue
        gradient = next(found)
        gradients.append(torch.zeros_like(given) if gradient is None else _laid_out_as(given, gradient))
    return tuple(gradients)
