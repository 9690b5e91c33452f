"""Kernels of the scheme `GatedSweeps` for maps of any size: one sweep, and its adjoint, per pass.

A program works on a tile [P, S] of chains: P channels of one image by S chains, each counted by the place of
its first element. It runs along its chains, one element of each at a time, so reading is contiguous where
neighbouring chains are. No memory that a pass reads is written by it, but for sums of gradients, which one
element reads and writes at its own place.

Of `numbers` the sweeps have dt/dx, dt/dy, dt/dx^2, dt/dy^2, dt and, for constant diffusion, Bx, By, Dx, Dy.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, check-untyped-defs=False
# mypy: disallow-untyped-decorators=False

import triton
import triton.language as tl
from triton.language import constexpr

from .parts import NEUMANN, PERIODIC, add_to, at, finish, number, put, tile

TRANSPORT, SIGMOID, RATIONAL = (constexpr(i) for i in range(3))


@triton.jit
def transport_number(
    V, D, numbers, ALONG_X: constexpr, REVERSE: constexpr, CONSTANT: constexpr, T: constexpr, PARTS: constexpr
):
    """a = D dt/dx^2 + max(+-u, 0) dt/dx; and +-dt/dx, dt/dx^2."""
    AXIS: constexpr = 0 if ALONG_X else 1
    alpha, beta = number(numbers, AXIS, T, PARTS), number(numbers, 2 + AXIS, T, PARTS)
    if REVERSE:
        alpha = -alpha
    flow = alpha * V
    if CONSTANT:
        a = tl.where(flow < 0, 0.0, flow) + number(numbers, 5 + AXIS, T, PARTS)
    else:
        a = tl.where(flow < 0, 0.0, flow) + beta * tl.where(D < 0, 0.0, D)
    return a, alpha, beta


@triton.jit
def logit(
    V, D, numbers, ALONG_X: constexpr, REVERSE: constexpr, CONSTANT: constexpr, T: constexpr, PARTS: constexpr
):
    """What the gate of a sweep is predicted from: V, or D where it runs backward."""
    z = V
    if REVERSE:
        if CONSTANT:
            z = number(numbers, 7 if ALONG_X else 8, T, PARTS) + tl.zeros(V.shape, T)
        else:
            z = D
    return z


@triton.jit
def gate_of(
    V, D, numbers, ALONG_X: constexpr, REVERSE: constexpr, CONSTANT: constexpr, GATE: constexpr,
    T: constexpr, PARTS: constexpr,
):  # fmt: skip
    """A gate from the fields V (u or v) and D along its axis.

    CONSTANT: D is one of `numbers`, and what is given for it is not used.
    """
    if GATE == TRANSPORT:
        a, _, _ = transport_number(V, D, numbers, ALONG_X, REVERSE, CONSTANT, T, PARTS)
        g = a / (1 + a)
    else:
        z = logit(V, D, numbers, ALONG_X, REVERSE, CONSTANT, T, PARTS)
        if GATE == SIGMOID:
            g = 1 / (1 + tl.exp(-z))
        else:
            g = 0.5 + 0.5 * z / (1 + tl.abs(z))
    return g


@triton.jit
def slopes_of(
    V, D, numbers, ALONG_X: constexpr, REVERSE: constexpr, CONSTANT: constexpr, GATE: constexpr,
    T: constexpr, PARTS: constexpr,
):  # fmt: skip
    """The derivatives of `gate_of` by V and by D. With logits one of the two is not to be used."""
    if GATE == TRANSPORT:
        a, alpha, beta = transport_number(V, D, numbers, ALONG_X, REVERSE, CONSTANT, T, PARTS)
        R = 1 / (1 + a)
        by_V = tl.where(alpha * V > 0, alpha, 0.0) * R * R
        by_D = tl.where(D < 0, 0.0, beta) * R * R
    else:
        z = logit(V, D, numbers, ALONG_X, REVERSE, CONSTANT, T, PARTS)
        if GATE == SIGMOID:
            g = 1 / (1 + tl.exp(-z))
            by_V = g * (1 - g)
        else:
            R = 1 / (1 + tl.abs(z))
            by_V = 0.5 * R * R
        by_D = by_V
    return by_V, by_D


@triton.jit
def fields_at(V, D, n, c, i, j, exists, T: constexpr):
    """V and D at (n, c, i, j); without D anything."""
    value = at(V, n, c, i, j, exists, T)
    diffusion = value
    if D is not None:
        diffusion = at(D, n, c, i, j, exists, T)
    return value, diffusion


@triton.jit
def gate_at(
    V, D, n, c, i, j, exists, numbers, ALONG_X: constexpr, REVERSE: constexpr, GATE: constexpr,
    T: constexpr, PARTS: constexpr,
):  # fmt: skip
    """`gate_of` the fields at (n, c, i, j)."""
    value, diffusion = fields_at(V, D, n, c, i, j, exists, T)
    return gate_of(value, diffusion, numbers, ALONG_X, REVERSE, D is None, GATE, T, PARTS)


@triton.jit
def chains(C, H, W, offset, ALONG_X: constexpr, P: constexpr, S: constexpr):
    """This program's image, channels, rows and columns of the chains' first elements, which exist."""
    if ALONG_X:
        n, c, i, j, exists = tile(C, offset, W, P, S)
    else:
        n, c, i, j, exists = tile(C, H, offset, P, S)
    return n, c, i, j, exists


@triton.jit
def moved(i, j, exists, distance, H, W, ALONG_X: constexpr, BOUNDARY: constexpr):
    """The places at a distance from (i, j) along the axis, and which of them there are."""
    size = H if ALONG_X else W
    m = (i if ALONG_X else j) + distance
    if BOUNDARY == PERIODIC:
        m = (m % size + size) % size
    else:
        exists = exists & (m >= 0) & (m < size)
    if ALONG_X:
        i = m
    else:
        j = m
    return i, j, exists


@triton.jit
def closed(g):
    """The gates of a ring, at most 1 - eps, and which are above. With 1 all around, d would be left open."""
    eps: constexpr = 2**-52 if g.dtype == tl.float64 else 2**-23
    most = tl.full(g.shape, 1 - eps, g.dtype)
    return tl.where(g > most, most, g), g > most


@triton.jit
def start(
    x, f, V, D, n, c, i, j, exists, numbers, H, W, offset, length,
    ALONG_X: constexpr, REVERSE: constexpr, GATE: constexpr, T: constexpr, PARTS: constexpr,
):  # fmt: skip
    """On a ring: d before the first element. Once around maps d to q + P d; total is 1 - P, by the recurrence
    for x = 1, so without cancellation."""
    q, total = tl.zeros(exists.shape, T), tl.zeros(exists.shape, T)
    for k in range(length):
        distance = (length - 1 - k if REVERSE else k) * offset
        row, column, _ = moved(i, j, exists, distance, H, W, ALONG_X, PERIODIC)
        g = gate_at(V, D, n, c, row, column, exists, numbers, ALONG_X, REVERSE, GATE, T, PARTS)
        g, _ = closed(g)
        value = at(x, n, c, row, column, exists, T)
        if f is not None:
            value += number(numbers, 4, T, PARTS) * at(f, n, c, row, column, exists, T)
        q = (1 - g) * value + g * q
        total = (1 - g) + g * total
    return q / total


@triton.jit
def sweep(
    out, x, f, V, D, scale, shift, residual, numbers, C, H, W, offset, starts, length,
    ALONG_X: constexpr, REVERSE: constexpr, GATE: constexpr, BOUNDARY: constexpr, ACT: constexpr,
    T: constexpr, PARTS: constexpr, P: constexpr, S: constexpr,
):  # fmt: skip
    """out = x + dt f swept along one axis; with `scale` also the end of a layer.

    offset: from element to element of a chain; starts: how many chains a line has; length: of the longest.
    """
    n, c, i, j, exists = chains(C, H, W, starts, ALONG_X, P, S)
    d = tl.zeros(exists.shape, T)
    if BOUNDARY == PERIODIC:
        d = start(
            x, f, V, D, n, c, i, j, exists, numbers, H, W, offset, length, ALONG_X, REVERSE, GATE, T, PARTS
        )
    for k in range(length):
        distance = (length - 1 - k if REVERSE else k) * offset
        row, column, here = moved(i, j, exists, distance, H, W, ALONG_X, BOUNDARY)
        g = gate_at(V, D, n, c, row, column, here, numbers, ALONG_X, REVERSE, GATE, T, PARTS)
        value = at(x, n, c, row, column, here, T)
        if f is not None:
            value += number(numbers, 4, T, PARTS) * at(f, n, c, row, column, here, T)
        if BOUNDARY == PERIODIC:
            g, _ = closed(g)
        elif BOUNDARY == NEUMANN:
            upstream = offset if REVERSE else -offset
            _, _, has = moved(row, column, here, upstream, H, W, ALONG_X, BOUNDARY)
            g = tl.where(has, g, 0.0)
        d = value + g * (d - value)
        result = finish(d, scale, shift, residual, n, c, row, column, here, C, T, ACT)
        put(out, n, c, row, column, here, result)


@triton.jit
def arriving(
    grad, V, D, n, c, i, j, exists, numbers, H, W, offset, length,
    ALONG_X: constexpr, REVERSE: constexpr, GATE: constexpr, T: constexpr, PARTS: constexpr,
):  # fmt: skip
    """On a ring: what its last element receives from the first one, as `start` for the adjoint."""
    q, total = tl.zeros(exists.shape, T), tl.zeros(exists.shape, T)
    for k in range(length):
        distance = (k if REVERSE else length - 1 - k) * offset
        row, column, _ = moved(i, j, exists, distance, H, W, ALONG_X, PERIODIC)
        g = gate_at(V, D, n, c, row, column, exists, numbers, ALONG_X, REVERSE, GATE, T, PARTS)
        g, _ = closed(g)
        q = g * (at(grad, n, c, row, column, exists, T) + q)
        total = (1 - g) + g * total
    return q / total


@triton.jit
def sweep_adjoint(
    grad, x, f, d, V, D, to_x, f_so_far, to_f, V_so_far, to_V, D_so_far, to_D, numbers,
    C, H, W, offset, starts, length,
    ALONG_X: constexpr, REVERSE: constexpr, GATE: constexpr, BOUNDARY: constexpr,
    T: constexpr, PARTS: constexpr, P: constexpr, S: constexpr,
):  # fmt: skip
    """The adjoint of `sweep`: of its result d the gradient `grad`, to_x that of x, and to_f, to_V, to_D those
    of f and of the fields, each = what there is so far + this sweep's part, or None where there is none."""
    n, c, i, j, exists = chains(C, H, W, starts, ALONG_X, P, S)
    received = tl.zeros(exists.shape, T)
    if BOUNDARY == PERIODIC:
        received = arriving(
            grad, V, D, n, c, i, j, exists, numbers, H, W, offset, length, ALONG_X, REVERSE, GATE, T, PARTS
        )
    for k in range(length):
        distance = (k if REVERSE else length - 1 - k) * offset
        row, column, here = moved(i, j, exists, distance, H, W, ALONG_X, BOUNDARY)
        velocity, diffusion = fields_at(V, D, n, c, row, column, here, T)
        g = gate_of(velocity, diffusion, numbers, ALONG_X, REVERSE, D is None, GATE, T, PARTS)
        by_V, by_D = slopes_of(velocity, diffusion, numbers, ALONG_X, REVERSE, D is None, GATE, T, PARTS)
        upstream = offset if REVERSE else -offset
        row_before, column_before, has = moved(row, column, here, upstream, H, W, ALONG_X, BOUNDARY)
        value = at(x, n, c, row, column, here, T)
        if f is not None:
            value += number(numbers, 4, T, PARTS) * at(f, n, c, row, column, here, T)
        through = at(grad, n, c, row, column, here, T) + received
        of_gate = through * (at(d, n, c, row_before, column_before, has, T) - value)
        if BOUNDARY == PERIODIC:
            g, limited = closed(g)
            of_gate = tl.where(limited, 0.0, of_gate)
        elif BOUNDARY == NEUMANN:
            g = tl.where(has, g, 0.0)
            of_gate = tl.where(has, of_gate, 0.0)
        received, of_x = g * through, (1 - g) * through
        put(to_x, n, c, row, column, here, of_x)
        if to_f is not None:
            of_f = number(numbers, 4, T, PARTS) * of_x
            add_to(f_so_far, to_f, n, c, row, column, here, of_f, T)
        if to_V is not None:
            add_to(V_so_far, to_V, n, c, row, column, here, of_gate * by_V, T)
        if to_D is not None:
            add_to(D_so_far, to_D, n, c, row, column, here, of_gate * by_D, T)
