"""Common to implicit layers: how often they evaluated their function, and the cost of that."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from ...errors import UserError


class ConvergenceError(UserError, RuntimeError):
    """An implicit layer needed more evaluations than allowed, did not converge, or broke down."""


class ImplicitLayer(nn.Module):
    """A layer whose output is defined by an equation in its function `f`, a submodule evaluated repeatedly.

    nominal_evaluations: how many evaluations the published cost assumes; None: as many as a forward needs.
    """

    f: nn.Module
    nominal_evaluations: int | None = None

    @property
    def evaluations(self) -> int:
        """Evaluations of `f` in the last forward (0 before the first one)."""
        raise NotImplementedError

    @property
    def backward_evaluations(self) -> int:
        """Evaluations of `f`, or of its vector-Jacobian product, in the backward of the last forward."""
        raise NotImplementedError


@dataclass(frozen=True)
class ImplicitCounts:
    """Multiply-adds of a network with implicit layers, for one image: outside of them, and per evaluation.

    evaluations: how many the published cost assumes; measured: how many the counted forward took.
    Of several implicit layers, one evaluation of each counts as one.

    >>> counts = ImplicitCounts(1000, 100, evaluations=20, measured=14)
    >>> counts.macs(), counts.macs(14)
    (3000, 2400)
    """

    outside: int
    per_evaluation: int
    evaluations: int
    measured: int

    def macs(self, evaluations: int | None = None) -> int:
        """Multiply-adds at so many evaluations; default the published number."""
        return self.outside + self.per_evaluation * (self.evaluations if evaluations is None else evaluations)


class CountedLayer(Protocol):
    """One row of a count by layers, summed over all calls of the layer (`globalcnn.measure.LayerCount`)."""

    @property
    def name(self) -> str:
        """Name of the module in the network."""

    @property
    def macs(self) -> int:
        """Multiply-adds."""


def implicit_counts(model: nn.Module, layers: Iterable[CountedLayer]) -> ImplicitCounts | None:
    """Split a count by layers into the cost outside the implicit layers and the cost of one evaluation.

    layers: `globalcnn.measure.count(model, input_size).layers`, counted just before: the number of
    evaluations is that of the model's last forward. None for a model without implicit layers.

    Raises `UserError` if the model has not run.
    """
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, ImplicitLayer)}
    if not blocks:
        return None
    if not all(block.evaluations for block in blocks.values()):
        raise UserError("implicit_counts: the model has not run yet; count it first and hand over its layers")
    outside = 0
    inside = dict.fromkeys(blocks, 0)
    for layer in layers:
        block = next((b for b in blocks if layer.name.startswith(f"{b}.f." if b else "f.")), None)
        if block is None:
            outside += layer.macs
        else:
            inside[block] += layer.macs
    measured = max(block.evaluations for block in blocks.values())
    nominal = [b.nominal_evaluations for b in blocks.values() if b.nominal_evaluations is not None]
    return ImplicitCounts(
        outside=outside,
        per_evaluation=sum(inside[b] // blocks[b].evaluations for b in blocks),
        evaluations=max(nominal, default=measured),
        measured=measured,
    )
