"""Average pooling to a grid of fixed size that exports with any height and width."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def grid_average(x: Tensor, side: int) -> Tensor:
    """`F.adaptive_avg_pool2d(x, side)`: (N, C, H, W) to (N, C, side, side).

    Exporters write the adaptive pooling as windows of one size, that of the example, which is another
    function for other images. In graphs whose height or width varies it is two products with averaging
    matrices.
    """
    traced = torch.compiler.is_exporting() or torch.jit.is_tracing()
    if traced and not all(type(n) is int for n in x.shape[2:]):
        return _averages(x, side, 2) @ x @ _averages(x, side, 3).mT
    return F.adaptive_avg_pool2d(x, side)


def _averages(x: Tensor, side: int, axis: int) -> Tensor:
    """(side, n): row i is the mean over floor(i n / side) <= j < ceil((i + 1) n / side)."""
    n = x.shape[axis]
    i = torch.arange(side, device=x.device).unsqueeze(1)
    first, end = (i * n) // side, ((i + 1) * n + (side - 1)) // side
    j = torch.arange(n, device=x.device).unsqueeze(0)
    inside = ((j >= first) & (j < end)).to(x.dtype)
    return inside / inside.sum(1, keepdim=True)
