"""Padding of maps as a boundary continues them, in operators that every engine has.

ONNX's periodic padding (`Pad`, mode "wrap") is not implemented by OpenVINO (2025); concatenation is.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..ops import Boundary


def pad_both(x: Tensor, amounts: tuple[int, int], boundary: Boundary) -> Tensor:
    """(N, C, H, W) to (N, C, H + 2 a, W + 2 b) for `amounts` (a, b), of any size.

    Periodic: the opposite edge; Neumann: the mirror image about the wall; Dirichlet: zero.

    >>> pad_both(torch.arange(3.0).view(1, 1, 1, 3), (0, 2), Boundary.NEUMANN)
    tensor([[[[1., 0., 0., 1., 2., 2., 1.]]]])
    """
    if boundary is Boundary.DIRICHLET:
        return F.pad(x, (amounts[1], amounts[1], amounts[0], amounts[0]))
    for axis, amount in zip((2, 3), amounts, strict=True):
        while amount > 0:  # more than once only where the map is smaller than what is added
            n = x.shape[axis]
            width = amount if amount <= n else n
            before, after = x.narrow(axis, 0, width), x.narrow(axis, n - width, width)
            if boundary is Boundary.PERIODIC:
                before, after = after, before
            elif width > 1:
                before, after = before.flip(axis), after.flip(axis)
            x = torch.cat([before, x, after], dim=axis)
            amount = amount - width
    return x
