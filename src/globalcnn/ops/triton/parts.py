"""Shared by the Triton kernels: places in a map, boundaries, loads and stores, coefficients, activations.

A tensor is handed to a kernel as a view, (tensor, stride N, stride C, stride H, stride W), or None where
there is none. A program works on a tile [P, S], P channels of one image by S positions of the plane, counted
row by row; in `planes.py` on [P, X, Y], whole planes of X rows and Y columns.

`numbers` holds plain numbers of the equation, by position: see `NUMBERS`. Triton hands floats over in
float32, so for float64 each number comes as a sum of three (PARTS). T is the dtype of the arithmetic.
"""

# Triton reads the annotations of a kernel itself and types it when it is compiled
# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, check-untyped-defs=False
# mypy: disallow-untyped-decorators=False

import triton
import triton.language as tl
from triton.language import constexpr

PERIODIC, NEUMANN, DIRICHLET = constexpr(0), constexpr(1), constexpr(2)
IDENTITY, RELU, RELU6, SILU, HARDSWISH = (constexpr(i) for i in range(5))

# dt/dx, dt/dy, dt/dx^2, dt/dy^2, 2 dt; with constant diffusion also Bx, By, 1 - 2 Bx - 2 By and R
NUMBERS = 9
_NUMBERS = constexpr(NUMBERS)


@triton.jit
def number(numbers, which: constexpr, T: constexpr, PARTS: constexpr):
    """One of `numbers` in the dtype T, shape [1, 1]."""
    value = tl.full((1, 1), 0.0, T)
    for part in tl.static_range(PARTS):
        value += numbers[part * _NUMBERS + which]
    return value


@triton.jit
def tile(C, H, W, P: constexpr, S: constexpr):
    """This program's image n, channels [P, 1], rows and columns [1, S], and which of its elements exist."""
    in_plane, in_image = tl.cdiv(H * W, S), tl.cdiv(C, P)
    program = tl.program_id(0)
    n = program // in_plane // in_image
    c = program // in_plane % in_image * P + tl.arange(0, P)[:, None]
    p = program % in_plane * S + tl.arange(0, S)[None, :]
    i = p // W
    return n.to(tl.int64), c.to(tl.int64), i, p - i * W, (c < C) & (p < H * W)


@triton.jit
def at(view, n, c, i, j, exists, T: constexpr):
    """The elements (n, c, i, j) in the dtype T, 0 where they do not exist."""
    place = view[0] + n * view[1] + c * view[2] + i.to(tl.int64) * view[3] + j.to(tl.int64) * view[4]
    return tl.load(place, mask=exists, other=0.0).to(T)


@triton.jit
def put(view, n, c, i, j, exists, value):
    """Store `value` at (n, c, i, j), rounded to the tensor's dtype."""
    place = view[0] + n * view[1] + c * view[2] + i.to(tl.int64) * view[3] + j.to(tl.int64) * view[4]
    tl.store(place, value.to(view[0].dtype.element_ty), mask=exists)


@triton.jit
def add_to(so_far, to, n, c, i, j, exists, value, T: constexpr):
    """to = so_far + value; `so_far` may be the same memory, or None for nothing so far."""
    if so_far is not None:
        value += at(so_far, n, c, i, j, exists, T)
    put(to, n, c, i, j, exists, value)


@triton.jit
def _into(m, period):
    """m modulo the period, for -period <= m < 2 period."""
    m = tl.where(m < 0, m + period, m)
    return tl.where(m >= period, m - period, m)


@triton.jit
def beyond(m, n, BOUNDARY: constexpr):
    """The index that m of n maps to, whether there is one, and whether it is a mirror image."""
    if BOUNDARY == PERIODIC:
        index, exists, mirrored = _into(m, n), m == m, m != m
    elif BOUNDARY == NEUMANN:  # a mirror at each wall makes the field periodic with period 2 n
        m = _into(m, 2 * n)
        index, exists, mirrored = tl.where(m < n, m, 2 * n - 1 - m), m == m, m >= n
    else:
        exists = (m >= 0) & (m < n)
        index, mirrored = tl.where(exists, m, 0), m != m
    return index, exists, mirrored


@triton.jit
def readers(m, n, BOUNDARY: constexpr):
    """Where index m of n is read from at an unmirrored place: that place, and whether there is one."""
    if BOUNDARY == PERIODIC:
        index, exists = _into(m, n), m == m
    elif BOUNDARY == NEUMANN:
        index = _into(m, 2 * n)
        exists = index < n
    else:
        index, exists = m, (m >= 0) & (m < n)
    return index, exists


@triton.jit
def odd(value, mirrored, BOUNDARY: constexpr):
    """The normal velocity changes sign in the mirror."""
    if BOUNDARY == NEUMANN:
        value = tl.where(mirrored, -value, value)
    return value


@triton.jit
def reciprocal(b):
    """1 / b, correctly rounded: an error in R would be made again at every step."""
    one = tl.full(b.shape, 1.0, b.dtype)
    if b.dtype == tl.float32:
        result = tl.div_rn(one, b)
    else:
        result = one / b
    return result


@triton.jit
def diffusion(Dx, Dy, n, c, i, j, exists, numbers, T: constexpr, PARTS: constexpr):
    """Bx, By, 1 - 2 Bx - 2 By and R = 1 / (1 + 2 Bx + 2 By) at (n, c, i, j)."""
    if Dx is None:
        Bx, By = number(numbers, 5, T, PARTS), number(numbers, 6, T, PARTS)
        left, R = number(numbers, 7, T, PARTS), number(numbers, 8, T, PARTS)
    else:
        Bx, By, left, R = diffusion_of(
            at(Dx, n, c, i, j, exists, T), at(Dy, n, c, i, j, exists, T), numbers, T, PARTS
        )
    return Bx, By, left, R


@triton.jit
def diffusion_of(Dx, Dy, numbers, T: constexpr, PARTS: constexpr):
    """The same from the values of Dx and Dy."""
    Bx = Dx * number(numbers, 2, T, PARTS)
    By = Dy * number(numbers, 3, T, PARTS)
    return Bx, By, 1 - 2 * Bx - 2 * By, reciprocal(1 + 2 * Bx + 2 * By)


@triton.jit
def activate(x, ACT: constexpr):
    """The activation number ACT of `spec.ACTIVATIONS`; NaN stays NaN."""
    if ACT == RELU:
        x = tl.where(x < 0, 0.0, x)
    elif ACT == RELU6:
        x = _relu6(x)
    elif ACT == SILU:
        x = x / (1 + tl.exp(-x))
    elif ACT == HARDSWISH:
        x = x * _relu6(x + 3) / 6
    return x


@triton.jit
def _relu6(x):
    x = tl.where(x < 0, 0.0, x)
    return tl.where(x > 6, 6.0, x)


@triton.jit
def finish(x, scale, shift, residual, n, c, i, j, exists, C, T: constexpr, ACT: constexpr):
    """The end of a layer after the evolution: act(x scale + shift) + residual; without scale x itself."""
    if scale is not None:
        known = c < C
        x = x * tl.load(scale + c, mask=known, other=0.0).to(T)
        x = activate(x + tl.load(shift + c, mask=known, other=0.0).to(T), ACT)
        if residual is not None:
            x += at(residual, n, c, i, j, exists, T)
    return x
