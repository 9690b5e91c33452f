"""Gradient checkpointing that updates the statistics of BatchNorm once, as one forward does."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint


def checkpointed(module: nn.Module, *inputs: Tensor) -> Any:
    """`module(*inputs)`, recomputed in the backward instead of keeping its intermediate tensors.

    The second pass leaves running means, variances and counters alone: a plain checkpoint updates them twice.
    """
    if torch.compiler.is_compiling():  # compiled graphs recompute without side effects
        return checkpoint(module, *inputs, use_reentrant=False)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), statistics_kept(module)

    return checkpoint(module, *inputs, use_reentrant=False, context_fn=contexts)


@contextmanager
def statistics_kept(module: nn.Module) -> Iterator[None]:
    """A context in which forwards of `module` in training mode do not update BatchNorm's statistics."""
    norms = [m for m in module.modules() if isinstance(m, _BatchNorm) and m.track_running_stats]
    # the statistics are saved for the backward, so they must not be written, not even with the same values
    before = [(m, m.momentum, m.num_batches_tracked) for m in norms]
    try:
        for norm in norms:
            norm.momentum = 0.0
            if norm.num_batches_tracked is not None:
                norm.num_batches_tracked = norm.num_batches_tracked.clone()
        yield
    finally:
        for norm, momentum, counter in before:
            norm.momentum, norm.num_batches_tracked = momentum, counter
