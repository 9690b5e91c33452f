"""Kernels for maps of any size: one step, and its adjoint, in one pass over memory each.

A step reads neighbours by their address, from cache. Its adjoint gathers as well: an element collects from
those places that read it in the step, so no two programs write one element and no atomics are needed.
"""

# mypy: disallow-untyped-defs=False, disallow-incomplete-defs=False, check-untyped-defs=False
# mypy: disallow-untyped-decorators=False

import triton
import triton.language as tl
from triton.language import constexpr

from .parts import NEUMANN, add_to, at, beyond, diffusion, finish, number, odd, put, readers, tile


@triton.jit
def neighbours(
    A, n, c, i, j, H, W, reach, exists,
    ALONG_X: constexpr, ODD: constexpr, BOUNDARY: constexpr, T: constexpr,
):  # fmt: skip
    """A at the neighbours before and after (i, j) along one axis."""
    size, here = H if ALONG_X else W, i if ALONG_X else j
    before, has_before, in_mirror_before = beyond(here - reach, size, BOUNDARY)
    after, has_after, in_mirror_after = beyond(here + reach, size, BOUNDARY)
    if ALONG_X:
        minus = at(A, n, c, before, j, exists & has_before, T)
        plus = at(A, n, c, after, j, exists & has_after, T)
    else:
        minus = at(A, n, c, i, before, exists & has_before, T)
        plus = at(A, n, c, i, after, exists & has_after, T)
    if ODD:
        minus = odd(minus, in_mirror_before, BOUNDARY)
        plus = odd(plus, in_mirror_after, BOUNDARY)
    return minus, plus


@triton.jit
def around(
    h, u, v, n, c, i, j, H, W, reach_x, reach_y, exists, numbers,
    BOUNDARY: constexpr, T: constexpr, PARTS: constexpr,
):  # fmt: skip
    """2 E, and h at the neighbours: before and after along x, then along y."""
    u_minus, u_plus = neighbours(u, n, c, i, j, H, W, reach_x, exists, True, True, BOUNDARY, T)
    v_minus, v_plus = neighbours(v, n, c, i, j, H, W, reach_y, exists, False, True, BOUNDARY, T)
    two_E = number(numbers, 0, T, PARTS) * (u_minus - u_plus)
    two_E += number(numbers, 1, T, PARTS) * (v_minus - v_plus)
    x_minus, x_plus = neighbours(h, n, c, i, j, H, W, reach_x, exists, True, False, BOUNDARY, T)
    y_minus, y_plus = neighbours(h, n, c, i, j, H, W, reach_y, exists, False, False, BOUNDARY, T)
    return two_E, x_minus, x_plus, y_minus, y_plus


@triton.jit
def over_R(
    h, old, f, u, v, Bx, By, left, two_E, x_minus, x_plus, y_minus, y_plus, n, c, i, j, exists, numbers,
    T: constexpr, PARTS: constexpr,
):  # fmt: skip
    """The next level divided by R; old: the values of h_old."""
    Ax = number(numbers, 0, T, PARTS) * at(u, n, c, i, j, exists, T)
    Ay = number(numbers, 1, T, PARTS) * at(v, n, c, i, j, exists, T)
    total = left * old
    total -= two_E * at(h, n, c, i, j, exists, T)
    total += (2 * Bx - Ax) * x_minus
    total += (2 * Bx + Ax) * x_plus
    total += (2 * By - Ay) * y_minus
    total += (2 * By + Ay) * y_plus
    if f is not None:
        total += number(numbers, 4, T, PARTS) * at(f, n, c, i, j, exists, T)
    return total


@triton.jit
def step(
    out, h, h_old, f, u, v, Dx, Dy, scale, shift, residual, numbers, C, H, W, reach_x, reach_y,
    BOUNDARY: constexpr, ACT: constexpr, T: constexpr, PARTS: constexpr, P: constexpr, S: constexpr,
):  # fmt: skip
    """out = the level after h; with `scale` also the end of a layer."""
    n, c, i, j, exists = tile(C, H, W, P, S)
    Bx, By, left, R = diffusion(Dx, Dy, n, c, i, j, exists, numbers, T, PARTS)
    two_E, x_minus, x_plus, y_minus, y_plus = around(
        h, u, v, n, c, i, j, H, W, reach_x, reach_y, exists, numbers, BOUNDARY, T, PARTS
    )
    old = at(h_old, n, c, i, j, exists, T)
    total = over_R(
        h, old, f, u, v, Bx, By, left, two_E, x_minus, x_plus, y_minus, y_plus, n, c, i, j, exists, numbers,
        T, PARTS,
    )  # fmt: skip
    level = finish(R * total, scale, shift, residual, n, c, i, j, exists, C, T, ACT)
    put(out, n, c, i, j, exists, level)


@triton.jit
def handed_over(
    grad, h, u, v, Dx, Dy, n, c, i, j, exists, numbers, ALONG_X: constexpr, T: constexpr, PARTS: constexpr,
):  # fmt: skip
    """At one element of the step: the gradients of its two neighbours of h, and of -2 E, along one axis."""
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
    """Along one axis: contributions to the gradient of h, and to that of the velocity through E.

    They come from all elements that read (i, j) in the step: the neighbours; at a Neumann wall also those
    that read the mirror image of (i, j), with the velocity's sign changed.
    """
    to_h = tl.zeros([1, 1], T)
    to_velocity = tl.zeros([1, 1], T)
    for mirror in tl.static_range(2 if BOUNDARY == NEUMANN else 1):
        size, place = H if ALONG_X else W, i if ALONG_X else j
        here = 2 * size - 1 - place if mirror == 1 else place
        at_minus, has_minus = readers(here + reach, size, BOUNDARY)
        at_plus, has_plus = readers(here - reach, size, BOUNDARY)
        minus, _, e_minus = handed_over(
            grad, h, u, v, Dx, Dy, n, c, at_minus if ALONG_X else i, j if ALONG_X else at_minus,
            exists & has_minus, numbers, ALONG_X, T, PARTS,
        )  # fmt: skip
        _, plus, e_plus = handed_over(
            grad, h, u, v, Dx, Dy, n, c, at_plus if ALONG_X else i, j if ALONG_X else at_plus,
            exists & has_plus, numbers, ALONG_X, T, PARTS,
        )  # fmt: skip
        to_h += minus + plus
        to_velocity += e_minus - e_plus if mirror == 1 else e_plus - e_minus
    return to_h, to_velocity


@triton.jit
def backward_step(
    grad, grad_later, h, h_old, f, u, v, Dx, Dy, to_h, to_h_old, so_far, to, numbers,
    C, H, W, reach_x, reach_y,
    BOUNDARY: constexpr, T: constexpr, PARTS: constexpr, P: constexpr, S: constexpr,
):  # fmt: skip
    """The adjoint of `step`.

    grad: gradient of the step's result; grad_later: that of the result one step later, of which h is the
    older level, or None. to_h receives the gradient of h; to_h_old, unless None, that of h_old, which
    otherwise the pass for the previous step computes. so_far, to: views for f, u, v, Dx, Dy; to = so_far +
    this step's part.
    """
    n, c, i, j, exists = tile(C, H, W, P, S)
    ax, ay = number(numbers, 0, T, PARTS), number(numbers, 1, T, PARTS)
    Bx, By, left, R = diffusion(Dx, Dy, n, c, i, j, exists, numbers, T, PARTS)
    m = R * at(grad, n, c, i, j, exists, T)
    two_E, x_minus, x_plus, y_minus, y_plus = around(
        h, u, v, n, c, i, j, H, W, reach_x, reach_y, exists, numbers, BOUNDARY, T, PARTS
    )
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
        new = over_R(
            h, old, f, u, v, Bx, By, left, two_E, x_minus, x_plus, y_minus, y_plus,
            n, c, i, j, exists, numbers, T, PARTS,
        )  # fmt: skip
        # R multiplies everything, so its gradient is that of the result: -2 R m new for both Bx and By
        through = old + R * new
        of_Bx, of_By = 2 * m * (x_minus + x_plus - through), 2 * m * (y_minus + y_plus - through)
        add_to(so_far[3], to[3], n, c, i, j, exists, number(numbers, 2, T, PARTS) * of_Bx, T)
        add_to(so_far[4], to[4], n, c, i, j, exists, number(numbers, 3, T, PARTS) * of_By, T)
