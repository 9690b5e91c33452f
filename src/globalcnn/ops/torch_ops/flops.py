"""Costs of the operators for PyTorch's FLOP counters, which count a multiply-add as two.

The solve has about one addition per multiply.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from types import SimpleNamespace
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from .. import spec


def _multiplies(given: Any, learned: bool) -> int:
    """Of the solve; learned: the diffusion is given per element."""
    scheme = spec.scheme_of(given)
    each = scheme.multiplies_per_element(given.steps, constant_diffusion=not learned)
    return math.prod(map(int, given.h)) * each


def _convolutions(h: Sequence[int], weight: Sequence[int]) -> int:
    """Multiplies of the depthwise convolutions of one map, from its shape and that of their weights."""
    n, _, height, width = map(int, h)
    return n * height * width * math.prod(map(int, weight))


def _solve(given: Any) -> int:
    return 2 * _multiplies(given, given.Dx is not None)


def _solve_backward(given: Any) -> int:
    # the levels once more, and for each of them about twice the operations of the forward
    return 3 * _solve(given)


def _solve_in_layer(given: Any) -> int:
    return 2 * _multiplies(given, int(given.weight[0]) == 4)


def _layer(given: Any) -> int:
    return 2 * _convolutions(given.h, given.weight) + _solve_in_layer(given)


def _evolve_backward(given: Any) -> int:
    # gradients of input and weights: two convolutions for each; the solve as in its own backward
    return 2 * 2 * _convolutions(given.h, given.weight) + 3 * _solve_in_layer(given)


# each from the operator's arguments by name, with the shapes of tensors in their place
FORMULAS: dict[str, Callable[[Any], int]] = {
    "solve": _solve,
    "solve_backward": _solve_backward,
    "layer": _layer,
    "evolve": _layer,
    "evolve_backward": _evolve_backward,
}


def register() -> None:
    """Register the formulas of the operators, which must be defined, with PyTorch's counters. Once."""
    for name, formula in FORMULAS.items():
        operator = getattr(torch.ops.globalcnn, name)
        register_flop_formula(operator)(_by_name(operator, formula))


def _by_name(operator: Any, formula: Callable[[Any], int]) -> Callable[..., int]:
    names = [argument.name for argument in operator.default._schema.arguments]

    def count(*given: Any, **others: Any) -> int:
        return formula(SimpleNamespace(**dict(zip(names, given, strict=False)), **others))

    return count
