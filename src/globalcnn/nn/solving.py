"""What layers that solve have in common: how often they evaluated their function, and what that costs."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Protocol

from torch import nn

from ..errors import UserError


class SolveError(UserError, RuntimeError):
    """A solve needed more evaluations than allowed, did not converge, or broke down."""


class SolveBlock(nn.Module):
    """A layer whose output solves an equation in its function `f`, a submodule evaluated again and again.

    nominal_evaluations: how many evaluations the published cost stands for; None: what a forward needs.
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
class SolveCounts:
    """Multiply-adds of a network that solves, for one image: what is computed once, and per evaluation.

    evaluations: how many the published cost stands for; measured: how many the forward took that was counted.
    A network with several solves counts one evaluation of each as one.

    >>> counts = SolveCounts(1000, 100, evaluations=20, measured=14)
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


def solve_counts(model: nn.Module, layers: Iterable[CountedLayer]) -> SolveCounts | None:
    """Split a count by layers into what lies outside the solves and what one evaluation costs.

    layers: `globalcnn.measure.count(model, input_size).layers`, counted just before: the number of
    evaluations is that of the model's last forward. None for a model that solves nothing.

    Raises `UserError` if the model has not run.
    """
    blocks = {name: m for name, m in model.named_modules() if isinstance(m, SolveBlock)}
    if not blocks:
        return None
    if not all(block.evaluations for block in blocks.values()):
        raise UserError("solve_counts: the model has not run yet; count it first and hand over its layers")
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
    return SolveCounts(
        outside=outside,
        per_evaluation=sum(inside[b] // blocks[b].evaluations for b in blocks),
        evaluations=max(nominal, default=measured),
        measured=measured,
    )
