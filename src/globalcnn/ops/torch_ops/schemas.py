"""Definition of the operators: schemas, fake implementations, and plain PyTorch as the default
implementation."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from ..signature import Operator
from ..spec import OPERATORS
from . import decomposition

LIBRARY = torch.library.Library("globalcnn", "DEF")


def overload(operator: Operator) -> Any:
    """`torch.ops.globalcnn.NAME.default`."""
    return getattr(torch.ops.globalcnn, operator.name).default


def returned(results: tuple[Tensor, ...]) -> Any:
    """Results in the schema's type: a single one is not a tuple."""
    return results if len(results) > 1 else results[0]


def _define(operator: Operator) -> None:
    LIBRARY.define(operator.schema)

    def compute(*values: Any) -> Any:
        return returned(decomposition.run(operator, values))

    def fake(*values: Any) -> Any:
        operator.check(values)
        given = operator.by_name(values)
        return returned(tuple(decomposition.empty(operator, output, given) for output in operator.returns))

    LIBRARY.impl(operator.name, compute, "CompositeExplicitAutograd")
    torch.library.register_fake(f"globalcnn::{operator.name}", fake, lib=LIBRARY)


def register() -> None:
    """Define the operators. Once."""
    for operator in OPERATORS.values():
        _define(operator)
