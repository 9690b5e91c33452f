"""Implicit upwind transport along one axis: tridiagonal systems, solved by the Thomas algorithm.

`(1 + a_minus + a_plus) h_i - a_minus h_{i-s} - a_plus h_{i+s} = x_i` with transport numbers >= 0: an
M-matrix, so that pivots are >= 1 and every h_i is a convex combination of the x.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from .sweeps import block_sizes, chain_order, of_this_size, pad, size, without_first

Blocks = list[Tensor]


def tridiagonal(
    x: Tensor, a_minus: Tensor, a_plus: Tensor, axis: int, distance: int, boundary: str
) -> Tensor:
    """The solution along `axis` (2 or 3), shape of `x`; boundary: the value of a `Boundary`."""
    x, n = of_this_size(x, axis), size(x, axis)
    if boundary == "periodic":
        return _ring(x, a_minus, a_plus, axis, distance)
    if boundary == "neumann":
        if distance >= n:
            return x
        a_minus = without_first(a_minus, axis, distance, reverse=False)
        a_plus = without_first(a_plus, axis, distance, reverse=True)
    sizes = block_sizes(n, distance, reverse=False)
    rows, minus, plus = (list(A.split(sizes, axis)) for A in (x, a_minus, a_plus))
    return torch.cat(_thomas(rows, minus, plus, axis), axis)


def _thomas(x: Blocks, minus: Blocks, plus: Blocks, axis: int) -> Blocks:
    """Chains block by block; outside of them is 0, the last block may be cut off by the edge."""
    right: Blocks = []
    shares: Blocks = []  # h_k = right_k + shares_k h_{k+1}
    for k in range(len(x)):
        diagonal = 1 + minus[k] + plus[k]
        total = x[k]
        if k:
            rows = size(x[k], axis)
            diagonal = diagonal - minus[k] * shares[-1].narrow(axis, 0, rows)
            total = total + minus[k] * right[-1].narrow(axis, 0, rows)
        right.append(total / diagonal)
        shares.append(plus[k] / diagonal)
    h = [right[-1]]
    for k in range(len(x) - 2, -1, -1):
        missing = size(x[k], axis) - size(h[0], axis)
        after = F.pad(h[0], pad(axis, missing, after=True)) if missing else h[0]
        h.insert(0, right[k] + shares[k] * after)
    return h


def _ring(x: Tensor, a_minus: Tensor, a_plus: Tensor, axis: int, distance: int) -> Tensor:
    """Closed chains: all rows but the last are solved as `p + q h_last`, then the last one."""
    n = size(x, axis)
    distance = distance % n
    if distance == 0:  # each element is its own neighbour
        return x
    order, back, chains = chain_order(n, distance)

    def blocks(A: Tensor) -> Blocks:
        return list(A.index_select(axis, torch.tensor(order, device=A.device)).split(chains, axis))

    rows, minus, plus = blocks(x), blocks(a_minus), blocks(a_plus)
    zero = torch.zeros_like(rows[0])
    coupling = [zero for _ in rows[:-1]]
    coupling[0] = coupling[0] + minus[0]
    coupling[-1] = coupling[-1] + plus[-2]
    p = _thomas(rows[:-1], minus[:-1], plus[:-1], axis)
    q = _thomas(coupling, minus[:-1], plus[:-1], axis)
    diagonal = 1 + minus[-1] + plus[-1] - minus[-1] * q[-1] - plus[-1] * q[0]
    last = (rows[-1] + minus[-1] * p[-1] + plus[-1] * p[0]) / diagonal
    found = torch.cat([*(a + b * last for a, b in zip(p, q, strict=True)), last], axis)
    return found.index_select(axis, torch.tensor(back, device=x.device))
