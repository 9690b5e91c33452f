"""Derivatives of the operators: gradients by their backward operators, all others through plain PyTorch.

operator            gradient            higher orders           forward mode, torch.func
solve               solve_backward      by decomposition          *by decomposition
layer               decomposition       by decomposition          *by decomposition
evolve              evolve_backward     by decomposition          *by decomposition
solve_backward,     decomposition       by decomposition          refused by name
evolve_backward

The statistics mean and var that `evolve` returns have no gradients.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._library import autograd as library_autograd
from torch.autograd import forward_ad

from ...errors import UserError
from .. import spec
from ..signature import Operator
from . import decomposition
from .schemas import LIBRARY, overload, returned

_BACKWARD = {"solve": spec.SOLVE_BACKWARD, "evolve": spec.EVOLVE_BACKWARD}


def _save(operator: Operator, ctx: Any, values: Sequence[Any], results: Sequence[Tensor]) -> None:
    """Keep all inputs, and the statistics of `evolve`: levels are recomputed, so memory does not grow with
    K."""
    tensors = [value if isinstance(value, Tensor) else None for value in values]
    ctx.save_for_backward(*tensors, *results[1:] if operator is spec.EVOLVE else ())
    ctx.values = [None if isinstance(value, Tensor) else value for value in values]
    if operator is spec.EVOLVE:
        ctx.mark_non_differentiable(*results[1:])


def _saved(operator: Operator, ctx: Any) -> tuple[list[Any], tuple[Tensor, ...]]:
    tensors = ctx.saved_tensors
    count = len(operator.arguments)
    pairs = zip(tensors[:count], ctx.values, strict=True)
    return [plain if tensor is None else tensor for tensor, plain in pairs], tensors[count:]


def _by_operator(operator: Operator, ctx: Any, cotangents: Sequence[Tensor | None]) -> list[Any]:
    backward = _BACKWARD[operator.name]
    values, statistics = _saved(operator, ctx)
    given = {"grad": cotangents[0], **operator.by_name(values)}
    given |= {output.name: s for output, s in zip(operator.returns[1:], statistics, strict=True)}
    found = overload(backward)(*(given[a.name] for a in backward.arguments))
    gradients = {output.name.removeprefix("g_"): g for output, g in zip(backward.returns, found, strict=True)}
    return [gradients.get(a.name) if given[a.name] is not None else None for a in operator.arguments]


def _by_decomposition(operator: Operator, ctx: Any, cotangents: Sequence[Tensor | None]) -> list[Any]:
    values, _ = _saved(operator, ctx)
    for a, needed in zip(operator.arguments, ctx.needs_input_grad, strict=True):
        if needed and operator is spec.EVOLVE_BACKWARD and a.name in ("mean", "var"):
            raise UserError(
                f"globalcnn::{operator.name}: {a.name} has no derivative; hand over {a.name}.detach()"
            )
    return decomposition.vector_jacobian(operator, values, cotangents)


def _register(operator: Operator) -> None:
    backward = _by_operator if operator.name in _BACKWARD else _by_decomposition

    def differentiate(ctx: Any, *cotangents: Tensor | None) -> tuple[Any, ...]:
        if all(c is None for c in cotangents):
            return tuple(None for _ in operator.arguments)
        return tuple(backward(operator, ctx, cotangents))

    def setup(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
        _save(operator, ctx, inputs, output if isinstance(output, tuple) else (output,))

    usual = library_autograd.make_autograd_impl(
        overload(operator), library_autograd.Info(differentiate, setup)
    )
    LIBRARY.impl(operator.name, _with_other_modes(operator, usual), "Autograd", with_keyset=True)


def _with_other_modes(operator: Operator, usual: Callable[..., Any]) -> Callable[..., Any]:
    """Forward-mode derivatives and the transforms of torch.func through plain PyTorch."""

    def call(keyset: Any, *values: Any, **named: Any) -> Any:
        if not (torch._C._are_functorch_transforms_active() or _has_tangent(values)):
            return usual(keyset, *values, **named)
        if operator in _BACKWARD.values():
            raise UserError(
                f"globalcnn::{operator.name}: not differentiable in forward mode or by torch.func; "
                f"differentiate {operator.name.removesuffix('_backward')} there"
            )
        operator.check(values)
        results = decomposition.plainly(operator, values)
        return returned(tuple(r for r in results if r is not None))

    return call


def _has_tangent(values: Sequence[Any]) -> bool:
    if forward_ad._current_level < 0:
        return False
    tensors = (value for value in values if isinstance(value, Tensor))
    return any(forward_ad.unpack_dual(t).tangent is not None for t in tensors)


def register() -> None:
    """Register the derivatives of the operators, which have been defined. Once."""
    for operator in spec.OPERATORS.values():
        _register(operator)
