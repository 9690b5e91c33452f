"""Whether two networks are the same function, judged by their outputs on the same images."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_leaves, tree_structure

TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-4, torch.float16: 1e-2, torch.bfloat16: 5e-2}


@dataclass(frozen=True)
class Agreement:
    """How an output agrees with the expected one.

    deviation: the largest difference as a share of the largest expected value, None where they cannot be
    compared; disagreement: what differs, as a sentence, or None.
    """

    deviation: float | None
    disagreement: str | None = None

    def __bool__(self) -> bool:
        return self.disagreement is None


def compare_outputs(got: Any, wanted: Any, *, tolerance: float = 1e-4) -> Agreement:
    """Compare the outputs of two networks for the same images: tensors, or nested structures of them.

    They agree if structure, shapes and dtypes are the same, no value differs by more than `tolerance` times
    the largest expected one, and in every (N, classes) output the same class is the highest wherever it
    leads by more than a tenth of that.

    >>> wanted = torch.tensor([[1.0, 0.5, -2.0]])
    >>> bool(compare_outputs(wanted + 1e-5, wanted)), compare_outputs(wanted + 0.2, wanted).disagreement
    (True, 'deviates by 1.0e-01 of the largest value')
    """
    if tree_structure(got) != tree_structure(wanted):
        return Agreement(None, "the output has another structure")
    worst = 0.0
    for a, b in zip(tensors_in(got), tensors_in(wanted), strict=True):
        if a.shape != b.shape or a.dtype != b.dtype:
            return Agreement(None, f"the output is {tuple(a.shape)} {a.dtype}")
        if b.numel() == 0:
            continue
        a, b = a.double(), b.double()
        largest = b.abs().max().item() or 1.0
        deviation = (a - b).abs().max().item() / largest
        if not deviation <= tolerance:
            return Agreement(deviation, f"deviates by {deviation:.1e} of the largest value")
        if b.ndim == 2 and b.shape[1] > 1:
            lead = b.topk(2).values
            clear = lead[:, 0] - lead[:, 1] > 0.1 * tolerance * largest
            others = int((clear & (a.argmax(1) != b.argmax(1))).sum())
            if others:
                return Agreement(deviation, f"another class wins for {others} of {len(b)} images")
        worst = max(worst, deviation)
    return Agreement(worst)


def tensors_in(output: Any) -> list[Tensor]:
    """The tensors in the output of a network, in order."""
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]
