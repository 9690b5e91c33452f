"""The operators in plain PyTorch, on top of `eager.solve`.

They are used where no fast backend is loaded or it does not support the dtype, and fast kernels are tested
against them. Each takes the arguments of its schema, refuses what `spec.py` does not allow, and returns
results that are laid out as the contract says.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import eager, spec
from ..pde import PDE
from ..signature import Operator, Output, reach
from ..spec import ACTIVATIONS, BOUNDARIES

_ACTIVATE: dict[str, Callable[[Tensor], Tensor]] = {
    "identity": lambda x: x,
    "relu": F.relu,
    "relu6": F.relu6,
    "silu": F.silu,
    "hardswish": F.hardswish,
}


def run(operator: Operator, values: Sequence[Any]) -> tuple[Tensor, ...]:
    """The operator's results from its checked arguments, with the dtype and strides that it promises."""
    operator.check(values)
    given = operator.by_name(values)
    found = plainly(operator, values)
    return tuple(
        empty(operator, output, given) if value is None else empty(operator, output, given).copy_(value)
        for output, value in zip(operator.returns, found, strict=True)
    )


def empty(operator: Operator, output: Output, given: dict[str, Any]) -> Tensor:
    """Memory for one result."""
    like: Tensor = given[output.like]
    if output.per is not None and given[output.per] is None:
        return like.new_empty(0)
    return torch.empty_like(like)


def plainly(operator: Operator, values: Sequence[Any]) -> tuple[Tensor | None, ...]:
    """The operator's results by PyTorch's operations, which autograd records; None for an empty one."""
    return _PLAIN[operator.name](operator.unpack(values))


def solve(*values: Any) -> Tensor:
    """`globalcnn::solve`."""
    return run(spec.SOLVE, values)[0]


def solve_backward(*values: Any) -> tuple[Tensor, ...]:
    """`globalcnn::solve_backward`."""
    return run(spec.SOLVE_BACKWARD, values)


def layer(*values: Any) -> Tensor:
    """`globalcnn::layer`."""
    return run(spec.LAYER, values)[0]


def evolve(*values: Any) -> tuple[Tensor, ...]:
    """`globalcnn::evolve`."""
    return run(spec.EVOLVE, values)


def evolve_backward(*values: Any) -> tuple[Tensor, ...]:
    """`globalcnn::evolve_backward`."""
    return run(spec.EVOLVE_BACKWARD, values)


def vector_jacobian(
    operator: Operator, values: Sequence[Any], cotangents: Sequence[Tensor | None]
) -> list[Tensor | None]:
    """The gradient of each argument, None for plain ones and where there is none.

    Differentiable itself, to any order, where gradients are recorded.
    """
    again = torch.is_grad_enabled()
    with _recording():
        leaves = [_leaf(value, again) for value in values]
        pairs = [
            (result, cotangent)
            for result, cotangent in zip(plainly(operator, leaves), cotangents, strict=True)
            if result is not None and cotangent is not None and result.requires_grad
        ]
        wanted = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        if not pairs:
            return [None] * len(leaves)
        results, given = zip(*pairs, strict=True)
        given = tuple(g.to(r.dtype) for g, r in zip(given, results, strict=True))
        found = iter(torch.autograd.grad(results, wanted, given, create_graph=again, allow_unused=True))
    return [next(found) if isinstance(leaf, Tensor) else None for leaf in leaves]


def _leaf(value: Any, again: bool) -> Any:
    if not isinstance(value, Tensor):
        return value
    if again and value.requires_grad:  # an alias, so that the gradient found stays connected to its graph
        return value.view_as(value)
    return value.detach().requires_grad_()


@contextmanager
def _recording() -> Iterator[None]:
    """Enable autograd inside an operator's kernel, which the dispatcher calls below autograd."""
    include, exclude = torch._C._dispatch_tls_local_include_set(), torch._C._dispatch_tls_local_exclude_set()
    for key in ("AutogradCPU", "AutogradCUDA", "AutogradOther", "AutogradFunctionality", "ADInplaceOrView"):
        exclude = exclude.remove(getattr(torch._C.DispatchKey, key))
    with torch._C._ForceDispatchKeyGuard(include, exclude), torch.enable_grad():
        yield


def _pde(a: spec.Pde) -> PDE:
    return PDE(
        steps=a.steps,
        dt=a.dt,
        spacing=(a.dx, a.dy),
        boundary=BOUNDARIES[a.boundary],
        scheme=spec.scheme_of(a),
    )


def _solve(a: spec.Solve) -> tuple[Tensor]:
    Dx = a.pde.Dx0 if a.Dx is None else a.Dx
    Dy = a.pde.Dy0 if a.Dy is None else a.Dy
    return (eager.solve(a.h, a.h_old, a.f, a.u, a.v, Dx, Dy, _pde(a.pde)),)


def _layer(a: spec.Layer) -> tuple[Tensor]:
    wide = a.weight.dtype
    state, old = a.h.to(wide), a.f.to(wide)

    def pair(i: int, x: Tensor) -> tuple[Tensor, Tensor]:
        one, other = (_depthwise(x, a.weight[j], a.bias[j]) for j in (i, i + 1))
        return _pair(one, other, _coefficient_act(a), a.shared_product)

    u, v = pair(0, old if a.velocity_from_f else state)
    Dx, Dy = pair(2, state) if a.weight.shape[0] == 4 else (a.pde.Dx0, a.pde.Dy0)
    start, source = state if a.start_from_h else old, old if a.source else None
    H = eager.solve(state, start, source, u, v, Dx, Dy, _pde(a.pde))
    out = _activation(a.act)(H * a.scale.view(1, -1, 1, 1) + a.shift.view(1, -1, 1, 1))
    return ((out + old if a.residual else out).to(a.h.dtype),)


def _evolve(a: spec.Evolve) -> tuple[Tensor, Tensor, Tensor]:
    state = a.h.to(a.weight.dtype)
    old = state if a.f is None else a.f.to(a.weight.dtype)
    coefficients, means, variances = [], [], []
    for i in range(a.weight.shape[0]):
        z = _depthwise(state, a.weight[i])
        # an empty batch has no statistics: zeros, as the kernels return
        of = z if z.shape[0] else z.new_zeros(1, *z.shape[1:])
        var, mean = torch.var_mean(of, dim=(0, 2, 3), correction=0)
        scale = torch.rsqrt(var + a.eps) * a.gamma[i]
        normed = (z - mean.view(1, -1, 1, 1)) * scale.view(1, -1, 1, 1)
        coefficients.append(normed + a.beta[i].view(1, -1, 1, 1))
        means.append(mean)
        variances.append(var)
    u, v = _pair(coefficients[0], coefficients[1], _coefficient_act(a), a.shared_product)
    Dx, Dy = (
        _pair(coefficients[2], coefficients[3], _coefficient_act(a), a.shared_product)
        if len(coefficients) == 4
        else (a.pde.Dx0, a.pde.Dy0)
    )
    start, source = state if a.start_from_h else old, old if a.source else None
    H = eager.solve(state, start, source, u, v, Dx, Dy, _pde(a.pde))
    return H.to(a.h.dtype), torch.stack(means), torch.stack(variances)


def _gradients(forward: Operator, backward: Operator, given: Any) -> tuple[Tensor | None, ...]:
    """The results of `backward`, the gradients of `forward`'s tensors from that of its first result.

    The statistics that `evolve` returns have no gradients.
    """
    values = [reach(given, a.path) for a in forward.arguments]
    found = vector_jacobian(forward, values, [given.grad, *(None for _ in forward.returns[1:])])
    gradients: dict[str, Tensor | None] = {}
    for a, value, gradient in zip(forward.arguments, values, found, strict=True):
        absent = not isinstance(value, Tensor) or gradient is not None
        gradients[f"g_{a.name}"] = gradient if absent else torch.zeros_like(value)
    return tuple(gradients[output.name] for output in backward.returns)


_PLAIN: dict[str, Callable[[Any], tuple[Tensor | None, ...]]] = {
    "solve": _solve,
    "solve_backward": lambda a: _gradients(spec.SOLVE, spec.SOLVE_BACKWARD, a),
    "layer": _layer,
    "evolve": _evolve,
    "evolve_backward": lambda a: _gradients(spec.EVOLVE, spec.EVOLVE_BACKWARD, a),
}


def _depthwise(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """A depthwise convolution with zero padding; weight (C, k, k)."""
    channels, k, _ = weight.shape
    return F.conv2d(x, weight.unsqueeze(1), bias, padding=k // 2, groups=channels)


def _activation(act: int) -> Callable[[Tensor], Tensor]:
    return _ACTIVATE[ACTIVATIONS[act]]


def _coefficient_act(a: spec.Layer | spec.Evolve) -> Callable[[Tensor], Tensor]:
    return _ACTIVATE["identity"] if a.pde.takes_logits else _activation(a.act)


def _pair(
    a: Tensor, b: Tensor, activate: Callable[[Tensor], Tensor], shared_product: bool
) -> tuple[Tensor, Tensor]:
    """Two coefficients, u and v or Dx and Dy, from their values before the activation."""
    if shared_product:
        product = activate(a * activate(b))
        return product, product
    return activate(a), activate(b)
