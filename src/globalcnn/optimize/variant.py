"""A variant of a network: how it is changed, and which engine runs it."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from ..engines import RUNTIMES
from ..errors import UserError
from ..graph import fold_batch_norms
from ..graph.deployed import fuse_global_layers

MEMORY_FORMATS = {"channels_last": torch.channels_last, "contiguous": torch.contiguous_format}
_WORDS = {None: "", "channels_last": "channels-last", "contiguous": "contiguous memory"}


@dataclass(frozen=True)
class Variant:
    """How a network is changed and run; the defaults mean "as is".

    folded: BatchNorms folded into convolutions; fused: each Global layer one operator; memory_format: of
    weights and inputs, None leaves them. The engine: one_thread; piece: images of a batch that are run at
    once, None for all; compiled: by torch.compile, with the weights as constants; engine: the runtime of
    `engines.RUNTIMES` that runs it, None for PyTorch.
    """

    folded: bool = False
    fused: bool = False
    memory_format: Literal["channels_last", "contiguous"] | None = None
    one_thread: bool = False
    piece: int | None = None
    compiled: bool = False
    engine: str | None = None

    def parts(self) -> tuple[str, ...]:
        """The changes, as phrases."""
        words = (
            "convolution + BatchNorm folded" if self.folded else "",
            "Global layers fused" if self.fused else "",
            _WORDS[self.memory_format],
            "one thread" if self.one_thread else "",
            f"pieces of {self.piece}" if self.piece else "",
            "compiled" if self.compiled else "",
            f"run by {RUNTIMES[self.engine].shown}" if self.engine else "",
        )
        return tuple(w for w in words if w)

    def __str__(self) -> str:
        return ", ".join(self.parts()) or "as is"

    def beyond(self, other: Variant) -> str:
        """The changes of this variant relative to `other`, as phrases; all of it, for another engine."""
        if self.engine != other.engine:
            return str(self)
        new = [p for p in self.parts() if p not in other.parts()]
        gone = [f"without {p}" for p in other.parts() if p not in self.parts()]
        return ", ".join(new + gone) or "as is"

    @property
    def weights(self) -> tuple[object, ...]:
        """The part of the variant that changes the module itself: variants that agree in it can share a
        module."""
        return self.folded, self.fused, self.memory_format


def prepare(model: nn.Module, variant: Variant, example: Tensor | None = None) -> tuple[nn.Module, list[str]]:
    """A copy of `model` (in eval mode) with the variant's changes, and notes on what could not be done.

    example: a batch, which lets parts of networks be folded that cannot be traced as a whole.
    """
    module = copy.deepcopy(model)
    notes: list[str] = []
    with torch.no_grad():
        if variant.folded:
            folding = fold_batch_norms(module, example)
            if not folding.norms:
                raise UserError("; ".join(("no BatchNorm directly follows a convolution", *folding.notes)))
            notes.append(f"{len(folding.norms)} BatchNorms folded" + "".join(f"; {n}" for n in folding.notes))
        if variant.memory_format is not None:
            module = module.to(memory_format=MEMORY_FORMATS[variant.memory_format])
        if variant.fused:  # last: the operator reads its own weights contiguously
            module, refused = fuse_global_layers(module)
            notes += refused
    return module, notes
