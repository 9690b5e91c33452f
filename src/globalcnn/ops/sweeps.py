"""One-sided sweeps along an axis: the recurrence `d_i = x_i + g_i (d_{i-s} - x_i)` and its mirror image.

Gates g lie in [0, 1], so that every result is a convex combination of inputs. s > 1 makes s interleaved
chains. At the start of a chain: Neumann takes `d = x` (nothing flows in), Dirichlet takes 0 for the missing
neighbour, periodic closes the chain to a ring, on which the sweep is solved exactly.

Two forms compute the same. `_sequential` goes from block to block of s rows: the fewest operations.
`_doubled` composes the affine maps of 1, 2, 4, ... neighbours by padding and slicing: a fixed, short graph
for tracers and compilers.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

LONGEST = 4096  # rows of an exported graph whose size has no smaller bound


def sweep(x: Tensor, g: Tensor, axis: int, distance: int, boundary: str, *, reverse: bool) -> Tensor:
    """The sweep along `axis` (2 or 3) of a map by gates of its shape; reverse: from the last index down.

    boundary: the value of a `Boundary`.
    """
    x = of_this_size(x, axis)
    if boundary == "periodic":
        return _ring(x, g, axis, distance, reverse)
    if boundary == "neumann":
        if distance >= size(x, axis):
            return x
        g = without_first(g, axis, distance, reverse=reverse)
    run = _doubled if wants_a_graph() else _sequential
    return run(x, g, axis, distance, reverse)


def of_this_size(x: Tensor, axis: int) -> Tensor:
    """`x`; in a graph of torch.jit.trace, which holds the operations for this size, an error at another."""
    return x.split([size(x, axis)], axis)[0] if torch.jit.is_tracing() else x


def size(x: Tensor, axis: int) -> int:
    """`x.shape[axis]`, also where torch.jit.trace makes a tensor of it."""
    return int(x.shape[axis]) if torch.jit.is_tracing() else x.shape[axis]


def wants_a_graph() -> bool:
    return torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing()


def without_first(g: Tensor, axis: int, distance: int, *, reverse: bool) -> Tensor:
    """The gates with 0 at the start of each chain."""
    n = size(g, axis)
    if isinstance(n, torch.SymInt):  # a slice of n - distance rows would exclude the n for which it is 1
        at = torch.arange(n, device=g.device)
        inside = at < n - distance if reverse else at >= distance
        return torch.where(inside.view(-1, 1) if axis == 2 else inside, g, torch.zeros_like(g))
    kept = g.narrow(axis, 0 if reverse else distance, n - distance)
    return F.pad(kept, pad(axis, distance, after=reverse))


def pad(axis: int, distance: int, *, after: bool) -> tuple[int, ...]:
    """The argument of `F.pad` for `distance` rows along `axis`."""
    pair = (0, distance) if after else (distance, 0)
    return pair if axis == 3 else (0, 0, *pair)


def _sequential(x: Tensor, g: Tensor, axis: int, distance: int, reverse: bool) -> Tensor:
    """From block to block; the neighbour before the first block is 0."""
    sizes = block_sizes(size(x, axis), distance, reverse=reverse)
    xs, gs = x.split(sizes, axis), g.split(sizes, axis)
    return torch.cat(_blocks(xs, gs, axis, reverse, None), axis)


def block_sizes(n: int, distance: int, *, reverse: bool) -> list[int]:
    """Sizes of the blocks of `distance` rows, the incomplete one farthest from the start of the chains."""
    whole, rest = divmod(n, distance)
    sizes = [distance] * whole
    return sizes if not rest else [rest, *sizes] if reverse else [*sizes, rest]


def _blocks(
    xs: tuple[Tensor, ...], gs: tuple[Tensor, ...], axis: int, reverse: bool, before: Tensor | None
) -> list[Tensor]:
    order = range(len(xs) - 1, -1, -1) if reverse else range(len(xs))
    found: dict[int, Tensor] = {}
    for k in order:
        if before is None:
            before = (1 - gs[k]) * xs[k]  # with x - g x, what a gate near 1 lets in would be rounding
        else:
            rows, of = size(xs[k], axis), size(before, axis)
            if rows < of:  # the last block is cut off by the edge
                before = before.narrow(axis, of - rows if reverse else 0, rows)
            before = torch.lerp(xs[k], before, gs[k])
        found[k] = before
    return [found[k] for k in range(len(xs))]


def _doubled(x: Tensor, g: Tensor, axis: int, distance: int, reverse: bool) -> Tensor:
    return _composed(x, g, axis, distance, reverse)[0]


def _composed(x: Tensor, g: Tensor, axis: int, distance: int, reverse: bool) -> tuple[Tensor, Tensor]:
    """(B, G) of the affine map `d_i = B_i + G_i d_before` from the start of each chain to i."""
    n = size(x, axis)
    longest = _longest(n)
    B, G = (1 - g) * x, g
    while distance < longest:
        B = B + G * _shifted(B, axis, distance, reverse)
        G = G * _shifted(G, axis, distance, reverse, fill=1.0)
        distance *= 2
    return B, G


def _longest(n: int) -> int:
    """n, or where it is a symbol of an exported graph, the largest n that the graph is for."""
    if torch.compiler.is_dynamo_compiling() or not isinstance(n, torch.SymInt):
        return n
    upper: Any = n.node.shape_env.bound_sympy(n.node.expr).upper
    if upper > LONGEST:
        torch._check(n <= LONGEST)
        return LONGEST
    return int(upper)


def _shifted(A: Tensor, axis: int, distance: int, reverse: bool, fill: float = 0.0) -> Tensor:
    n = size(A, axis)
    if isinstance(n, torch.SymInt):
        distance = torch.sym_min(distance, n)  # farther is outside, and would only pad more
    padded = F.pad(A, pad(axis, distance, after=reverse), value=fill)
    return padded.narrow(axis, distance if reverse else 0, n)


def _ring(x: Tensor, g: Tensor, axis: int, distance: int, reverse: bool) -> Tensor:
    """The sweep around closed chains: upstream of the first element is the last one.

    Going around once maps the value d before the first element to `q + P d`, with P the product of all gates:
    the fixed point is `q / (1 - P)`. `1 - P` is computed as the same recurrence does for x = 1, without
    cancellation, so that the result stays a convex combination of inputs. Gates of exactly 1 all around
    would leave d open: they count as `1 - eps`.
    """
    n = size(x, axis)
    if distance != 1:
        distance = distance % n
        if distance == 0:  # each element is its own neighbour
            return x
    g = g.clamp(max=1 - torch.finfo(g.dtype).eps)
    chains = 1 if distance == 1 else math.gcd(n, distance)
    if chains == distance:
        return _around(x, g, axis, chains, reverse)
    order, back, chains = chain_order(n, distance)
    there = torch.tensor(order, device=x.device)
    found = _around(x.index_select(axis, there), g.index_select(axis, there), axis, chains, reverse)
    return found.index_select(axis, torch.tensor(back, device=x.device))


def chain_order(n: int, distance: int) -> tuple[list[int], list[int], int]:
    """The n rows of a ring in the order of its chains, the way back, and the number of chains.

    In that order block k holds the k-th row of each chain.

    >>> chain_order(5, 2)
    ([0, 2, 4, 1, 3], [0, 3, 1, 4, 2], 1)
    """
    chains = math.gcd(n, distance)
    order = [(r + k * distance) % n for k in range(n // chains) for r in range(chains)]
    return order, sorted(range(n), key=order.__getitem__), chains


def _around(x: Tensor, g: Tensor, axis: int, chains: int, reverse: bool) -> Tensor:
    n = size(x, axis)
    last = 0 if reverse else n - chains
    if wants_a_graph():
        B, G = _composed(x, g, axis, chains, reverse)
        total, _ = _composed(torch.ones_like(x), g, axis, chains, reverse)
        before = B.narrow(axis, last, chains) / total.narrow(axis, last, chains)
        if chains > 1:
            before = torch.cat([before] * (n // chains), axis)
        return B + G * before
    xs, gs = x.split(chains, axis), g.split(chains, axis)
    ones = tuple(torch.ones_like(gs[0]) for _ in gs)
    at = 0 if reverse else -1
    q, total = (_blocks(of, gs, axis, reverse, None)[at] for of in (xs, ones))
    return torch.cat(_blocks(xs, gs, axis, reverse, q / total), axis)
