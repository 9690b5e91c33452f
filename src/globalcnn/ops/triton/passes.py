"""Kernels for maps of any size: one step, and its adjoint, in one pass over memory each.

A step reads neighbours by their address, from cache. Its adjoint gathers as well: an element collects from
those places that read it in the step, so nothing is added to from two sides and there are no atomics.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, check-untyped-defs=False
# mypy: disallow-untyped-decorators=False

import triton
import triton.language as tl
from triton.language import constexpr

from .parts import ZERO_FLUX, at, beyond, diffusion, finish, number, odd, put, readers, tile


@triton.jit
def along_x(A, n, c, i, j, H, far, exists, T: constexpr, BOUNDARY: constexpr, ODD: constexpr):
    """A at the neighbour (i + far, j)."""
    index, inside, mirrored = beyond(i + far, H, BOUNDARY)
    value = at(A, n, c, index, j, exists & inside, T)
    if ODD:
        value = odd(value, mirrored, BOUNDARY)
    return value


@triton.jit
def along_y(A, n, c, i, j, W, far, exists, T: constexpr, BOUNDARY: constexpr, ODD: constexpr):
    """A at the neighbour (i, j + far)."""
    index, inside, mirrored = beyond(j + far, W, BOUNDARY)
    value = at(A, n, c, i, index, exists & inside, T)
    if ODD:
        value = odd(value, mirrored, BOUNDARY)
    return value


@triton.jit
def step(
    out, h, h_old, f, u, v, Dx, Dy, scale, shift, residual, numbers, C, H, W, reach_x, reach_y,
    BOUNDARY: constexpr, ACT: constexpr, T: constexpr, PARTS: constexpr, P: constexpr, S: constexpr,
):  # fmt: skip
    """out = the level after h; with `scale` what follows it in a layer, too."""
    n, c, i, j, exists = tile(C, H, W, P, S)
    ax, ay = number(numbers, 0, T, PARTS), number(numbers, 1, T, PARTS)
    Bx, By, left, R = diffusion(Dx, Dy, n, c, i, j, exists, numbers, T, PARTS)
    u_minus = along_x(u, n, c, i, j, H, -reach_x, exists, T, BOUNDARY, True)
    u_plus = along_x(u, n, c, i, j, H, reach_x, exists, T, BOUNDARY, True)
    v_minus = along_y(v, n, c, i, j, W, -reach_y, exists, T, BOUNDARY, True)
    v_plus = along_y(v, n, c, i, j, W, reach_y, exists, T, BOUNDARY, True)
    two_E = ax * (u_minus - u_plus) + ay * (v_minus - v_plus)
    x_minus = along_x(h, n, c, i, j, H, -reach_x, exists, T, BOUNDARY, False)
    x_plus = along_x(h, n, c, i, j, H, reach_x, exists, T, BOUNDARY, False)
    y_minus = along_y(h, n, c, i, j, W, -reach_y, exists, T, BOUNDARY, False)
    y_plus = along_y(h, n, c, i, j, W, reach_y, exists, T, BOUNDARY, False)
    Ax = ax * at(u, n, c, i, j, exists, T)
    Ay = ay * at(v, n, c, i, j, exists, T)
    total = left * at(h_old, n, c, i, j, exists, T)
    total -= two_E * at(h, n, c, i, j, exists, T)
    total += (2 * Bx - Ax) * x_minus
    total += (2 * Bx + Ax) * x_plus
    total += (2 * By - Ay) * y_minus
    total += (2 * By + Ay) * y_plus
    if f is not None:
        total += number(numbers, 4, T, PARTS) * at(f, n, c, i, j, exists, T)
    level = finish(R * total, scale, shift, residual, n, c, i, j, exists, C, T, ACT)
    put(out, n, c, i, j, exists, level)


@triton.jit
def handed_over(
    grad, h, u, v, Dx, Dy, n, c, i, j, exists, numbers, ALONG_X: constexpr, T: constexpr, PARTS: constexpr,
):  # fmt: skip
    """From one place of the step: the gradients of its two neighbours of h, and of -2 E, along one axis."""
    Bx, By, _, R = diffusion(Dx, Dy, n, c, i, j, exists, numbers, T, PARTS)
    m = R * at(grad, n, c, i, j, exists, T)
    if ALONG_X:
        A, B = number(numbers, 0, T, PARTS) * at(u, n, c, i, j, exists, T), Bx
    else:
        A, B = number(numbers, 1, T, PARTS) * at(v, n, c, i, j, exists, T), By
    return (2 * B - A) * m, (2 * B + A) * m, m * at(h, n, c, i, j, exists, T)


@triton.jit
def collected(
    grad, h, u, v, Dx, Dy, n, c, i, j, exists, H, W, reach, numbers,
    ALONG_X: constexpr, BOUNDARY: constexpr, T: constexpr, PARTS: constexpr,
):  # fmt: skip
    """Along one axis: what reaches the gradient of h, and that of the velocity through E.

    It comes from all who read (i, j) in the step: the neighbours; at a zero-flux wall also those who read the
    mirror image of (i, j), with the velocity's sign changed.
    """
    to_h = tl.zeros([1, 1], T)
    to_velocity = tl.zeros([1, 1], T)
    for mirror in tl.static_range(2 if BOUNDARY == ZERO_FLUX else 1):
        if ALONG_X:
            here = 2 * H - 1 - i if mirror == 1 else i
            at_minus, has_minus = readers(here + reach, H, BOUNDARY)
            at_plus, has_plus = readers(here - reach, H, BOUNDARY)
            minus, _, e_minus = handed_over(
                grad, h, u, v, Dx, Dy, n, c, at_minus, j, exists & has_minus, numbers, True, T, PARTS
            )
            _, plus, e_plus = handed_over(
                grad, h, u, v, Dx, Dy, n, c, at_plus, j, exists & has_plus, numbers, True, T, PARTS
            )
        else:
            here = 2 * W - 1 - j if mirror == 1 else j
            at_minus, has_minus = readers(here + reach, W, BOUNDARY)
            at_plus, has_plus = readers(here - reach, W, BOUNDARY)
            minus, _, e_minus = handed_over(
                grad, h, u, v, Dx, Dy, n, c, i, at_minus, exists & has_minus, numbers, False, T, PARTS
            )
            _, plus, e_plus = handed_over(
                grad, h, u, v, Dx, Dy, n, c, i, at_plus, exists & has_plus, numbers, False, T, PARTS
            )
        to_h += minus + plus
        to_velocity += e_minus - e_plus if mirror == 1 else e_plus - e_minus
    return to_h, to_velocity


@triton.jit
def add_to(so_far, to, n, c, i, j, exists, value, T: constexpr):
    """to = so_far + value; `so_far` may be the same memory, or None for nothing so far."""
    if so_far is not None:
        value += at(so_far, n, c, i, j, exists, T)
    put(to, n, c, i, j, exists, value)


@triton.jit
def backward_step(
    grad, grad_later, h, h_old, f, u, v, Dx, Dy, to_h, to_h_old, so_far, to, numbers,
    C, H, W, reach_x, reach_y,
    BOUNDARY: constexpr, T: constexpr, PARTS: constexpr, P: constexpr, S: constexpr,
):  # fmt: skip
    """The adjoint of `step`.

    grad: gradient of the step's result; grad_later: that of the result one step later, of which h is the
    older level, or None. to_h receives the gradient of h; to_h_old, unless None, that of h_old, which is
    otherwise left to the pass for the step before. so_far, to: views for f, u, v, Dx, Dy; to = so_far + this
    step's part.
    """
    n, c, i, j, exists = tile(C, H, W, P, S)
    ax, ay = number(numbers, 0, T, PARTS), number(numbers, 1, T, PARTS)
    Bx, By, left, R = diffusion(Dx, Dy, n, c, i, j, exists, numbers, T, PARTS)
    m = R * at(grad, n, c, i, j, exists, T)
    u_minus = along_x(u, n, c, i, j, H, -reach_x, exists, T, BOUNDARY, True)
    u_plus = along_x(u, n, c, i, j, H, reach_x, exists, T, BOUNDARY, True)
    v_minus = along_y(v, n, c, i, j, W, -reach_y, exists, T, BOUNDARY, True)
    v_plus = along_y(v, n, c, i, j, W, reach_y, exists, T, BOUNDARY, True)
    two_E = ax * (u_minus - u_plus) + ay * (v_minus - v_plus)
    x_minus = along_x(h, n, c, i, j, H, -reach_x, exists, T, BOUNDARY, False)
    x_plus = along_x(h, n, c, i, j, H, reach_x, exists, T, BOUNDARY, False)
    y_minus = along_y(h, n, c, i, j, W, -reach_y, exists, T, BOUNDARY, False)
    y_plus = along_y(h, n, c, i, j, W, reach_y, exists, T, BOUNDARY, False)

    h_x, u_E = collected(
        grad, h, u, v, Dx, Dy, n, c, i, j, exists, H, W, reach_x, numbers, True, BOUNDARY, T, PARTS
    )
    h_y, v_E = collected(
        grad, h, u, v, Dx, Dy, n, c, i, j, exists, H, W, reach_y, numbers, False, BOUNDARY, T, PARTS
    )
    level = h_x + h_y - two_E * m
    if grad_later is not None:
        level += left * R * at(grad_later, n, c, i, j, exists, T)
    put(to_h, n, c, i, j, exists, level)
    if to_h_old is not None:
        put(to_h_old, n, c, i, j, exists, left * m)
    add_to(so_far[1], to[1], n, c, i, j, exists, ax * (m * (x_plus - x_minus) + u_E), T)
    add_to(so_far[2], to[2], n, c, i, j, exists, ay * (m * (y_plus - y_minus) + v_E), T)
    if f is not None:
        add_to(so_far[0], to[0], n, c, i, j, exists, number(numbers, 4, T, PARTS) * m, T)
    if Dx is not None:
        old = at(h_old, n, c, i, j, exists, T)
        Ax = ax * at(u, n, c, i, j, exists, T)
        Ay = ay * at(v, n, c, i, j, exists, T)
        new = left * old - two_E * at(h, n, c, i, j, exists, T)
        new += (2 * Bx - Ax) * x_minus + (2 * Bx + Ax) * x_plus
        new += (2 * By - Ay) * y_minus + (2 * By + Ay) * y_plus
        if f is not None:
            new += number(numbers, 4, T, PARTS) * at(f, n, c, i, j, exists, T)
        # R stands before everything, so its gradient is that of the result: -2 R m new for Bx and By alike
        through = old + R * new
        of_Bx, of_By = 2 * m * (x_minus + x_plus - through), 2 * m * (y_minus + y_plus - through)
        add_to(so_far[3], to[3], n, c, i, j, exists, number(numbers, 2, T, PARTS) * of_Bx, T)
        add_to(so_far[4], to[4], n, c, i, j, exists, number(numbers, 3, T, PARTS) * of_By, T)
