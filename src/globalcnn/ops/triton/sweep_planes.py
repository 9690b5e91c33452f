"""Kernels of `GatedSweeps` for maps whose planes fit on chip: all steps, or the whole layer, in one pass.

A sweep is a scan of the affine maps d -> x - g x + g d along an axis. Spacing 1 alone, and no ring.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, check-untyped-defs=False
# mypy: disallow-untyped-decorators=False

import triton
import triton.language as tl
from triton.language import constexpr

from .parts import IDENTITY, NEUMANN, at, finish, number, put
from .planes import pair, plane_tile
from .sweeps import TRANSPORT, gate_of


@triton.jit
def composed(g, x, g_next, x_next):
    """The affine map d -> x + g d, then the next one."""
    return g * g_next, x_next + g_next * x


@triton.jit
def swept(h, forward, backward, AXIS: constexpr):
    """Forward, then backward along an axis."""
    _, d = tl.associative_scan((forward, h - forward * h), AXIS, composed)
    _, d = tl.associative_scan((backward, d - backward * d), AXIS, composed, reverse=True)
    return d


@triton.jit
def gates(
    V, D, m, size, exists, numbers, ALONG_X: constexpr, CONSTANT: constexpr, GATE: constexpr,
    BOUNDARY: constexpr, T: constexpr, PARTS: constexpr,
):  # fmt: skip
    """Forward and backward along an axis with indices m; 0 where nothing may flow in."""
    forward = gate_of(V, D, numbers, ALONG_X, False, CONSTANT, GATE, T, PARTS)
    backward = gate_of(V, D, numbers, ALONG_X, True, CONSTANT, GATE, T, PARTS)
    after, before = exists, exists
    if BOUNDARY == NEUMANN:
        after, before = exists & (m > 0), exists & (m < size - 1)
    return tl.where(after, forward, 0.0), tl.where(before, backward, 0.0)


@triton.jit
def evolved(
    h, f, u, v, Dx, Dy, numbers, steps, i, j, H, W, exists,
    SOURCE: constexpr, CONSTANT: constexpr, GATE: constexpr, Y_FIRST: constexpr, BOUNDARY: constexpr,
    T: constexpr, PARTS: constexpr,
):  # fmt: skip
    """The level after all steps, from values [P, X, Y]."""
    x_forward, x_backward = gates(u, Dx, i, H, exists, numbers, True, CONSTANT, GATE, BOUNDARY, T, PARTS)
    y_forward, y_backward = gates(v, Dy, j, W, exists, numbers, False, CONSTANT, GATE, BOUNDARY, T, PARTS)
    dt = number(numbers, 4, T, PARTS)
    for _ in range(steps):
        if SOURCE:
            h += dt * f
        if Y_FIRST:
            h = swept(h, y_forward, y_backward, 2)
            h = swept(h, x_forward, x_backward, 1)
        else:
            h = swept(h, x_forward, x_backward, 1)
            h = swept(h, y_forward, y_backward, 2)
    return h


@triton.jit
def solve_planes(
    out, h, f, u, v, Dx, Dy, numbers, steps, C, H, W,
    GATE: constexpr, Y_FIRST: constexpr, BOUNDARY: constexpr, T: constexpr, PARTS: constexpr,
    P: constexpr, X: constexpr, Y: constexpr,
):  # fmt: skip
    """out = the level after all steps."""
    n, c, i, j, exists = plane_tile(C, H, W, P, X, Y)
    level = at(h, n, c, i, j, exists, T)
    source = level
    if f is not None:
        source = at(f, n, c, i, j, exists, T)
    along_x, along_y = at(u, n, c, i, j, exists, T), at(v, n, c, i, j, exists, T)
    diffusion_x, diffusion_y = along_x, along_y
    if Dx is not None:
        diffusion_x, diffusion_y = at(Dx, n, c, i, j, exists, T), at(Dy, n, c, i, j, exists, T)
    level = evolved(
        level, source, along_x, along_y, diffusion_x, diffusion_y, numbers, steps, i, j, H, W, exists,
        f is not None, Dx is None, GATE, Y_FIRST, BOUNDARY, T, PARTS,
    )  # fmt: skip
    put(out, n, c, i, j, exists, level)


@triton.jit
def layer_planes(
    out, h, f, carrier, weight, bias, scale, shift, residual, numbers, steps, C, H, W,
    LEARNED: constexpr, K: constexpr, PRODUCT: constexpr, SOURCE: constexpr,
    GATE: constexpr, Y_FIRST: constexpr, BOUNDARY: constexpr, ACT: constexpr, T: constexpr, PARTS: constexpr,
    P: constexpr, X: constexpr, Y: constexpr,
):  # fmt: skip
    """The whole layer. carrier: what the velocity is predicted from, h or f; logits have no activation."""
    n, c, i, j, exists = plane_tile(C, H, W, P, X, Y)
    FIELD_ACT: constexpr = ACT if GATE == TRANSPORT else IDENTITY
    u, v = pair(carrier, weight, bias, n, c, i, j, exists, C, H, W, 0, K, PRODUCT, FIELD_ACT, T)
    Dx, Dy = u, v
    if LEARNED:
        Dx, Dy = pair(h, weight, bias, n, c, i, j, exists, C, H, W, 2, K, PRODUCT, FIELD_ACT, T)
    level = evolved(
        at(h, n, c, i, j, exists, T), at(f, n, c, i, j, exists, T), u, v, Dx, Dy, numbers, steps,
        i, j, H, W, exists, SOURCE, not LEARNED, GATE, Y_FIRST, BOUNDARY, T, PARTS,
    )  # fmt: skip
    level = finish(level, scale, shift, residual, n, c, i, j, exists, C, T, ACT)
    put(out, n, c, i, j, exists, level)
