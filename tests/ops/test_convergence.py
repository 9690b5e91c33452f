"""Order of convergence against exact solutions of H_t = Dx H_xx + Dy H_yy + (u H)_x + (v H)_y + f.

A smooth H is chosen, the source that makes it a solution follows by differentiation, and the error after a
fixed time is measured on finer and finer grids. With n pixels on a side of length 1 a pixel is 1 / n, and the
layer measures in pixels: velocities are multiplied by n, diffusion by n^2.
"""

from __future__ import annotations

import math
from itertools import pairwise

import numpy as np
import pytest
import sympy as sp
import torch

from globalcnn import PDE, solve

x, y, t = sp.symbols("x y t")


def source_of(H, u, v, Dx, Dy):
    right = Dx * sp.diff(H, x, 2) + Dy * sp.diff(H, y, 2) + sp.diff(u * H, x) + sp.diff(v * H, y)
    return sp.diff(H, t) - right


def on_grid(expression, X, Y):
    """The expression as a function of time, an array (1, 1, H, W)."""
    compiled = sp.lambdify((x, y, t), expression, "numpy")

    def at(time=0.0):
        value = np.broadcast_to(compiled(X, Y, time), X.shape)
        return torch.from_numpy(np.array(value, dtype=np.float64))[None, None]

    return at


TORUS = {
    "H": sp.exp(-t) * (2 + sp.sin(2 * sp.pi * x) * sp.cos(2 * sp.pi * y) + sp.cos(2 * sp.pi * (x - y) + t)),
    "u": 0.5 + 0.3 * sp.sin(2 * sp.pi * (x + y)),
    "v": -0.4 * sp.cos(2 * sp.pi * x) + 0.2,
    "Dx": 0.05 + 0.02 * sp.sin(2 * sp.pi * y),
    "Dy": 0.04 + 0.02 * sp.cos(2 * sp.pi * x),
}
WALLS = {  # cosines across each wall, velocities that vanish there
    "H": sp.exp(-t) * (2 + sp.cos(sp.pi * x) * sp.cos(2 * sp.pi * y) * (1 + t)),
    "u": 0.7 * sp.sin(sp.pi * x) * (1 + 0.5 * sp.cos(sp.pi * y)),
    "v": -0.5 * sp.sin(2 * sp.pi * y),
    "Dx": 0.05 + 0.02 * sp.cos(sp.pi * x),
    "Dy": 0.04 + 0.02 * sp.cos(sp.pi * x) * sp.cos(sp.pi * y),
}
EMPTY_OUTSIDE = {  # nothing at the first pixel beyond the edge
    "H": sp.exp(-t) * sp.sin(sp.pi * x) * sp.sin(2 * sp.pi * y) * (1 + t),
    "u": WALLS["u"],
    "v": WALLS["v"],
    "Dx": WALLS["Dx"],
    "Dy": WALLS["Dy"],
}


def pixels(n, boundary):
    """(coordinates along one axis, pixels per unit of length)."""
    i = np.arange(n, dtype=np.float64)
    if boundary == "periodic":
        return i / n, n
    if boundary == "neumann":  # walls half a pixel beyond the edge
        return (i + 0.5) / n, n
    return (i + 1) / (n + 1), n + 1  # the unit interval ends at the first pixel outside


def error(problem, boundary, n, *, steps, end, spacing=1, source=None):
    """The largest error at the time `end`, both levels started from the exact solution."""
    line, per_length = pixels(n, boundary)
    grid = np.meshgrid(line, line, indexing="ij")
    dt = end / steps
    pde = PDE(dt=dt, boundary=boundary, spacing=spacing)
    u, v = (on_grid(problem[name], *grid)() * per_length for name in ("u", "v"))
    Dx, Dy = (on_grid(problem[name], *grid)() * per_length**2 for name in ("Dx", "Dy"))
    H = on_grid(problem["H"], *grid)
    f = on_grid(source_of(**problem) if source is None else source, *grid)
    old, now = H(0.0), H(dt)
    for k in range(1, steps):
        old, now = now, solve(now, old, f(k * dt), u, v, Dx, Dy, pde)
    return (now - H(end)).abs().max().item()


def slopes(errors):
    return [math.log2(a / b) for a, b in pairwise(errors)]


PROBLEMS = [("periodic", TORUS), ("neumann", WALLS), ("dirichlet", EMPTY_OUTSIDE)]


@pytest.mark.parametrize(("boundary", "problem"), PROBLEMS, ids=[b for b, _ in PROBLEMS])
def test_second_order_when_dt_shrinks_like_dx_squared(boundary, problem):
    errors = []
    for per_length in (8, 16, 32):
        n = per_length - 1 if boundary == "dirichlet" else per_length
        errors.append(error(problem, boundary, n, steps=round(0.4 * per_length**2), end=0.25))
    assert errors[-1] < 0.02
    assert slopes(errors)[-1] == pytest.approx(2, abs=0.2), errors


def test_spacing_is_the_grid_spacing():
    """Neighbours two pixels away on a grid of twice the pixels: the error is that of the coarse grid."""
    fine = error(TORUS, "periodic", 32, steps=400, end=0.25)
    wide = error(TORUS, "periodic", 32, steps=400, end=0.25, spacing=2)
    coarse = error(TORUS, "periodic", 16, steps=400, end=0.25)
    assert wide == pytest.approx(coarse, rel=0.1)
    assert wide > 3 * fine


def test_second_order_in_time_without_diffusion():
    """Advection and source alone are plain leapfrog: on a fine path dt ~ dx the order is still 2."""
    still = {**TORUS, "Dx": sp.Integer(0), "Dy": sp.Integer(0)}
    errors = [error(still, "periodic", n, steps=2 * n, end=0.5) for n in (16, 32, 64)]
    assert slopes(errors)[-1] == pytest.approx(2, abs=0.2), errors


def test_with_diffusion_dt_over_dx_must_shrink_too():
    """Du Fort and Frankel's own condition: at a fixed dt / dx the error stops falling."""
    errors = [error(TORUS, "periodic", n, steps=n, end=0.5) for n in (16, 32, 64)]
    assert slopes(errors)[-1] < 1, errors


@pytest.mark.parametrize("name", ["u", "v", "Dx", "Dy"])
def test_a_wrong_term_would_be_seen(name):
    """The test of the test: with one coefficient changed, the errors do not fall."""
    changed = {**TORUS, name: 1.3 * TORUS[name]}
    errors = [
        error(changed, "periodic", n, steps=round(0.4 * n**2), end=0.25, source=source_of(**TORUS))
        for n in (8, 16)
    ]
    assert errors[-1] > 0.02
    assert slopes(errors)[-1] < 1
