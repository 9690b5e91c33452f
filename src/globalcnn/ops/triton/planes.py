"""Kernels for maps whose planes fit on chip: all steps, or the whole layer, in one pass over memory.

A program holds whole planes in registers, [P channels, X rows, Y columns], each a power of two; neighbours
are exchanged with `tl.gather`, between the lanes of a warp. `fields` serves layers on larger maps: it writes
the coefficients for `passes.step`.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, check-untyped-defs=False
# mypy: disallow-untyped-decorators=False

import triton
import triton.language as tl
from triton.language import constexpr

from .parts import DIRICHLET, activate, at, beyond, diffusion, diffusion_of, finish, number, odd, put, tile


@triton.jit
def plane_tile(C, H, W, P: constexpr, X: constexpr, Y: constexpr):
    """This program's image n, channels [P, 1, 1], rows [1, X, 1], columns [1, 1, Y], which exist."""
    in_image = tl.cdiv(C, P)
    program = tl.program_id(0)
    n = program // in_image
    c = program % in_image * P + tl.arange(0, P)[:, None, None]
    i = tl.arange(0, X)[None, :, None]
    j = tl.arange(0, Y)[None, None, :]
    return n.to(tl.int64), c.to(tl.int64), i, j, (c < C) & (i < H) & (j < W)


@triton.jit
def shifted(A, m, n, AXIS: constexpr, BOUNDARY: constexpr, ODD: constexpr):
    """A at the indices m of n along an axis."""
    index, inside, mirrored = beyond(m, n, BOUNDARY)
    # lanes of the tile beyond the map may read any value, but only from within the tile
    index = tl.where(index < n, index, 0)
    value = tl.gather(A, tl.broadcast_to(index, A.shape), AXIS)
    if BOUNDARY == DIRICHLET:
        value = tl.where(inside, value, 0.0)
    if ODD:
        value = odd(value, mirrored, BOUNDARY)
    return value


@triton.jit
def evolved(
    h, h_old, f, u, v, Bx, By, left, R, numbers, steps, i, j, H, W, reach_x, reach_y,
    SOURCE: constexpr, BOUNDARY: constexpr, T: constexpr, PARTS: constexpr,
):  # fmt: skip
    """The level after all steps, from values [P, X, Y]."""
    u_minus = shifted(u, i - reach_x, H, 1, BOUNDARY, True)
    u_plus = shifted(u, i + reach_x, H, 1, BOUNDARY, True)
    v_minus = shifted(v, j - reach_y, W, 2, BOUNDARY, True)
    v_plus = shifted(v, j + reach_y, W, 2, BOUNDARY, True)
    ax, ay = number(numbers, 0, T, PARTS), number(numbers, 1, T, PARTS)
    two_E = ax * (u_minus - u_plus) + ay * (v_minus - v_plus)
    Ax, Ay = ax * u, ay * v
    two_dt = number(numbers, 4, T, PARTS)
    for _ in range(steps):
        total = left * h_old - two_E * h
        total += (2 * Bx - Ax) * shifted(h, i - reach_x, H, 1, BOUNDARY, False)
        total += (2 * Bx + Ax) * shifted(h, i + reach_x, H, 1, BOUNDARY, False)
        total += (2 * By - Ay) * shifted(h, j - reach_y, W, 2, BOUNDARY, False)
        total += (2 * By + Ay) * shifted(h, j + reach_y, W, 2, BOUNDARY, False)
        if SOURCE:
            total += two_dt * f
        h_old = h
        h = R * total
    return h


@triton.jit
def solve_planes(
    out, h, h_old, f, u, v, Dx, Dy, numbers, steps, C, H, W, reach_x, reach_y,
    BOUNDARY: constexpr, T: constexpr, PARTS: constexpr,
    P: constexpr, X: constexpr, Y: constexpr,
):  # fmt: skip
    """out = the level after all steps."""
    n, c, i, j, exists = plane_tile(C, H, W, P, X, Y)
    Bx, By, left, R = diffusion(Dx, Dy, n, c, i, j, exists, numbers, T, PARTS)
    start = at(h, n, c, i, j, exists, T)
    source = start
    if f is not None:
        source = at(f, n, c, i, j, exists, T)
    level = evolved(
        start, at(h_old, n, c, i, j, exists, T), source, at(u, n, c, i, j, exists, T),
        at(v, n, c, i, j, exists, T), Bx, By, left, R, numbers, steps, i, j, H, W, reach_x, reach_y,
        f is not None, BOUNDARY, T, PARTS,
    )  # fmt: skip
    put(out, n, c, i, j, exists, level)


@triton.jit
def weighted(weight, which: constexpr, tap, c, C, K: constexpr, T: constexpr):
    """The weights of one tap of the convolution for field `which`, shaped as c; the biases with K = 1, tap
    0."""
    return tl.load(weight + (which * C + c) * (K * K) + tap, mask=c < C, other=0.0).to(T)


@triton.jit
def pair(
    x, weight, bias, n, c, i, j, exists, C, H, W,
    FIRST: constexpr, K: constexpr, PRODUCT: constexpr, ACT: constexpr, T: constexpr,
):  # fmt: skip
    """Two coefficients: activations of depthwise convolutions FIRST, FIRST + 1 of x, with zeros outside."""
    a = weighted(bias, FIRST, 0, c, C, 1, T) + tl.zeros(exists.shape, T)
    b = weighted(bias, FIRST + 1, 0, c, C, 1, T) + tl.zeros(exists.shape, T)
    for tap in tl.range(0, K * K, loop_unroll_factor=K):
        row, column = i + tap // K - K // 2, j + tap % K - K // 2
        inside = exists & (row >= 0) & (row < H) & (column >= 0) & (column < W)
        value = at(x, n, c, row, column, inside, T)
        a += value * weighted(weight, FIRST, tap, c, C, K, T)
        b += value * weighted(weight, FIRST + 1, tap, c, C, K, T)
    if PRODUCT:
        a = activate(a * activate(b, ACT), ACT)
        b = a
    else:
        a = activate(a, ACT)
        b = activate(b, ACT)
    return a, b


@triton.jit
def layer_planes(
    out, h, f, carrier, weight, bias, scale, shift, residual, numbers, steps, C, H, W, reach_x, reach_y,
    LEARNED: constexpr, K: constexpr, PRODUCT: constexpr, START_FROM_H: constexpr,
    SOURCE: constexpr, BOUNDARY: constexpr, ACT: constexpr, T: constexpr, PARTS: constexpr,
    P: constexpr, X: constexpr, Y: constexpr,
):  # fmt: skip
    """The whole layer. carrier: what the velocity is predicted from, h or f."""
    n, c, i, j, exists = plane_tile(C, H, W, P, X, Y)
    u, v = pair(carrier, weight, bias, n, c, i, j, exists, C, H, W, 0, K, PRODUCT, ACT, T)
    if LEARNED:
        Dx, Dy = pair(h, weight, bias, n, c, i, j, exists, C, H, W, 2, K, PRODUCT, ACT, T)
        Bx, By, left, R = diffusion_of(Dx, Dy, numbers, T, PARTS)
    else:
        Bx, By, left, R = diffusion(None, None, n, c, i, j, exists, numbers, T, PARTS)
    start = at(h, n, c, i, j, exists, T)
    source = at(f, n, c, i, j, exists, T)
    level = evolved(
        start, start if START_FROM_H else source, source, u, v, Bx, By, left, R, numbers, steps,
        i, j, H, W, reach_x, reach_y, SOURCE, BOUNDARY, T, PARTS,
    )  # fmt: skip
    level = finish(level, scale, shift, residual, n, c, i, j, exists, C, T, ACT)
    put(out, n, c, i, j, exists, level)


@triton.jit
def fields(
    u, v, Dx, Dy, h, carrier, weight, bias, C, H, W,
    K: constexpr, PRODUCT: constexpr, ACT: constexpr, T: constexpr, P: constexpr, S: constexpr,
):  # fmt: skip
    """The coefficients alone, for maps of any size; of a shared product u and Dx (v, Dy are the same)."""
    n, c, i, j, exists = tile(C, H, W, P, S)
    a, b = pair(carrier, weight, bias, n, c, i, j, exists, C, H, W, 0, K, PRODUCT, ACT, T)
    put(u, n, c, i, j, exists, a)
    if not PRODUCT:
        put(v, n, c, i, j, exists, b)
    if Dx is not None:
        a, b = pair(h, weight, bias, n, c, i, j, exists, C, H, W, 2, K, PRODUCT, ACT, T)
        put(Dx, n, c, i, j, exists, a)
        if not PRODUCT:
            put(Dy, n, c, i, j, exists, b)
