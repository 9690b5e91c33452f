"""A Global layer in training: one operator from the state h to the evolved state H."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ...ops.signature import compute_dtype
from .arguments import evolve_arguments
from .eligibility import Parts

if TYPE_CHECKING:
    from ..global_layer import GlobalLayer


def run_training(layer: GlobalLayer, h: Tensor, f: Tensor) -> Tensor:
    """The evolved state H; `decide` has allowed one operator.

    Updates the running statistics of the coefficient norms as the modules would.
    """
    parts = Parts(layer)
    wide = compute_dtype(h.dtype)
    weight = torch.stack([conv.weight.squeeze(1) for conv in parts.convolutions]).to(wide)
    gamma = torch.stack([n.weight for n in parts.norms]).to(wide)
    beta = torch.stack([n.bias for n in parts.norms]).to(wide)
    biases = [conv.bias for conv in parts.convolutions if conv.bias is not None]
    if biases:  # the norm cancels a bias: its gradient is zero, not absent
        beta = beta + 0 * torch.stack(biases).to(wide)
    H, mean, var = torch.ops.globalcnn.evolve(
        h,
        None if f is h else f.to(h.dtype),
        weight,
        gamma,
        beta,
        float(parts.norms[0].eps),
        *evolve_arguments(layer),
    )
    _update_statistics(parts, mean, var, h.shape[0] * h.shape[2] * h.shape[3])
    return H


@torch.no_grad()
def _update_statistics(parts: Parts, mean: Tensor, var: Tensor, count: int) -> None:
    unbiased = var * (count / (count - 1))
    for i, (conv, norm) in enumerate(zip(parts.convolutions, parts.norms, strict=True)):
        if not norm.track_running_stats:
            continue
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
        if norm.running_mean is not None:
            seen: Any = mean[i] if conv.bias is None else mean[i] + conv.bias
            norm.running_mean.lerp_(seen.to(norm.running_mean.dtype), norm.momentum)
            norm.running_var.lerp_(unbiased[i].to(norm.running_var.dtype), norm.momentum)
