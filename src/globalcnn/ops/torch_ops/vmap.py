"""How the operators are mapped by torch.vmap.

Where images are independent and only feature maps are mapped, the mapped dimension joins the batch; otherwise
the operator is called once per entry.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..signature import Map, Operator
from ..spec import OPERATORS
from .schemas import LIBRARY, overload


def _rule(operator: Operator) -> Callable[..., Any]:
    maps = [isinstance(a.kind, Map) for a in operator.arguments]

    def rule(info: Any, in_dims: Sequence[int | None], *values: Any) -> tuple[Any, Any]:
        size = info.batch_size
        only_maps = all(dim is None or is_map for dim, is_map in zip(in_dims, maps, strict=True))
        if operator.images_alone and only_maps:
            return _joined(operator, size, maps, in_dims, values)
        return _one_by_one(operator, size, in_dims, values)

    return rule


def _joined(
    operator: Operator, size: int, maps: Sequence[bool], in_dims: Sequence[int | None], values: Sequence[Any]
) -> tuple[Any, Any]:
    joined, images = [], 0
    for value, dim, is_map in zip(values, in_dims, maps, strict=True):
        if not is_map or value is None:
            joined.append(value)
            continue
        moved = value.expand(size, *value.shape) if dim is None else value.movedim(dim, 0)
        images = moved.shape[1]
        joined.append(moved.flatten(0, 1))
    result = overload(operator)(*joined)
    if isinstance(result, Tensor):
        return result.unflatten(0, (size, images)), 0
    split = [r.unflatten(0, (size, images)) if r.ndim == 4 else r for r in result]
    return tuple(split), tuple(0 if r.ndim == 5 else None for r in split)


def _one_by_one(
    operator: Operator, size: int, in_dims: Sequence[int | None], values: Sequence[Any]
) -> tuple[Any, Any]:
    def entry(i: int) -> Any:
        pairs = zip(values, in_dims, strict=True)
        return overload(operator)(*(v if dim is None else v.select(dim, i) for v, dim in pairs))

    results = [entry(i) for i in range(size)]
    if isinstance(results[0], Tensor):
        return torch.stack(results), 0
    return tuple(map(torch.stack, zip(*results, strict=True))), (0,) * len(operator.returns)


def register() -> None:
    """Register the rules of the operators, which have been defined. Once."""
    for operator in OPERATORS.values():
        torch.library.register_vmap(f"globalcnn::{operator.name}", _rule(operator), lib=LIBRARY)
