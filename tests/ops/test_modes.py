"""Single waves: with constant coefficients each is multiplied by the scheme's own factor g at every step.

A wave exp(i (p x + q y)) turns the step into (1 + 2b) g^2 = (1 - 2b) + 2 c g with
c = 2 Bx cos(p dx) + 2 By cos(q dy) + i (Ax sin(p dx) + Ay sin(q dy)) and b = Bx + By.
"""

from __future__ import annotations

import cmath
import math

import pytest
import torch

from globalcnn import PDE, solve


def amplification(p, q, u, v, Dx, Dy, pde):
    """The two roots g for the wave numbers p, q (radians per pixel)."""
    dt, (dx, dy) = pde.dt, pde.spacing
    Bx, By = Dx * dt / dx**2, Dy * dt / dy**2
    c = complex(
        2 * Bx * math.cos(p * dx) + 2 * By * math.cos(q * dy),
        u * dt / dx * math.sin(p * dx) + v * dt / dy * math.sin(q * dy),
    )
    b = Bx + By
    root = cmath.sqrt(c**2 + (1 - 4 * b**2))
    return (c + root) / (1 + 2 * b), (c - root) / (1 + 2 * b)


def evolve(wave, g, u, v, Dx, Dy, pde, backend=None):
    """K steps from the levels `wave` and `g wave`: the scheme is linear and real, so part by part."""
    level = g * wave

    def part(old, now):
        full = torch.full_like(old, 1.0)
        return solve(now, old, None, u * full, v * full, Dx, Dy, pde, backend=backend)

    return torch.complex(part(wave.real, level.real), part(wave.imag, level.imag))


def along(x, y):
    """The product of a function of the row and one of the column, (1, 1, H, W)."""
    return (x[:, None] * y[None, :])[None, None]


CASES = [  # u, v, Dx, Dy, dt, spacing
    (0.0, 0.0, 1.0, 1.0, 0.2, (1, 1)),
    (1.5, -0.7, 0.6, 1.4, 0.2, (1, 1)),
    (-2.0, 1.0, 1.0, 0.3, 0.1, (2, 3)),
    (0.8, 0.9, 0.0, 0.0, 0.2, (1, 2)),
]


@pytest.mark.parametrize(("u", "v", "Dx", "Dy", "dt", "spacing"), CASES)
@pytest.mark.parametrize("waves", [(0, 0), (1, 0), (2, -3), (6, 4)])
@pytest.mark.parametrize("root", [0, 1])
def test_a_fourier_mode_on_the_torus(u, v, Dx, Dy, dt, spacing, waves, root, backend):
    H, W, K = 12, 9, 6
    pde = PDE(steps=K, dt=dt, spacing=spacing)
    p, q = 2 * math.pi * waves[0] / H, 2 * math.pi * waves[1] / W
    i, j = torch.arange(H, dtype=torch.float64), torch.arange(W, dtype=torch.float64)
    wave = along(torch.exp(1j * p * i), torch.exp(1j * q * j))
    g = amplification(p, q, u, v, Dx, Dy, pde)[root]
    after = evolve(wave, g, u, v, Dx, Dy, pde, backend)
    torch.testing.assert_close(after, g ** (K + 1) * wave, rtol=1e-11, atol=1e-11)


@pytest.mark.parametrize("spacing", [(1, 1), (2, 3)])
@pytest.mark.parametrize("waves", [(0, 0), (1, 0), (2, 5), (11, 8)])
@pytest.mark.parametrize("root", [0, 1])
def test_a_cosine_mode_between_reflecting_walls(spacing, waves, root, backend):
    """cos(pi k (i + 1/2) / n) is even about the walls, half a pixel beyond the first and the last."""
    H, W, K = 12, 9, 6
    pde = PDE(steps=K, spacing=spacing, boundary="neumann")
    p, q = math.pi * waves[0] / H, math.pi * waves[1] / W
    i, j = torch.arange(H) + 0.5, torch.arange(W) + 0.5
    wave = along(torch.cos(p * i.double()), torch.cos(q * j.double())) + 0j
    g = amplification(p, q, 0.0, 0.0, 0.8, 1.1, pde)[root]
    after = evolve(wave, g, 0.0, 0.0, 0.8, 1.1, pde, backend)
    torch.testing.assert_close(after, g ** (K + 1) * wave, rtol=1e-11, atol=1e-11)


def sines(n, k, spacing):
    """(wave number per pixel, values): sin(pi k (m + 1) / (M + 1)) on each of `spacing` interleaved rows.

    Where `spacing` divides n, the rows i = m spacing + r of each r are a chain of M = n / spacing pixels of
    their own. The wave vanishes at the pixels before the first and after the last of the chain: that is where
    the zero boundary puts its zeros, a whole pixel beyond the edge and not half a one.
    """
    M = n // spacing
    m = torch.arange(n, dtype=torch.float64) // spacing
    p = math.pi * k / (M + 1)
    return p / spacing, torch.sin(p * (m + 1))


@pytest.mark.parametrize("spacing", [(1, 1), (2, 3)])
@pytest.mark.parametrize("waves", [(1, 1), (2, 3), (6, 2)])
@pytest.mark.parametrize("root", [0, 1])
def test_a_sine_mode_at_the_zero_boundary(spacing, waves, root, backend):
    H, W, K = 12, 9, 6
    pde = PDE(steps=K, spacing=spacing, boundary="dirichlet")
    (p, x), (q, y) = sines(H, waves[0], spacing[0]), sines(W, waves[1], spacing[1])
    wave = along(x, y) + 0j
    g = amplification(p, q, 0.0, 0.0, 0.8, 1.1, pde)[root]
    after = evolve(wave, g, 0.0, 0.0, 0.8, 1.1, pde, backend)
    torch.testing.assert_close(after, g ** (K + 1) * wave, rtol=1e-11, atol=1e-11)


def test_half_sample_sines_are_no_modes_of_the_zero_boundary():
    n, pde = 12, PDE(boundary="dirichlet")
    i = torch.arange(n, dtype=torch.float64) + 0.5
    p, _ = sines(n, 1, 1)
    wave = along(torch.sin(math.pi * i / n), sines(n, 1, 1)[1]) + 0j
    g = amplification(math.pi / n, p, 0.0, 0.0, 0.8, 1.1, pde)[0]
    difference = evolve(wave, g, 0.0, 0.0, 0.8, 1.1, pde) - g**2 * wave
    assert difference[:, :, 0].abs().max() > 0.01  # wrong at the edge
    assert difference[:, :, 1:-1].abs().max() < 1e-11  # and only there
