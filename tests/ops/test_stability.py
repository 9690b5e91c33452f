"""Stability for frozen coefficients: the ratio that the scheme states against the growth of every wave.

`test_modes.py` shows that the operator multiplies a wave by the factor g used here.
"""

from __future__ import annotations

import cmath
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from globalcnn import PDE, DuFortFrankel, solve


def largest_factor(u, v, Dx, Dy, pde):
    """The largest |g| over the wave numbers: all directions, from long waves to the shortest.

    The limit is first broken by long waves, so those are sampled densely; the angles p dx, q dy are what
    counts, so they are drawn directly.
    """
    dt, (dx, dy) = pde.dt, pde.spacing
    Bx, By, Ax, Ay = Dx * dt / dx**2, Dy * dt / dy**2, u * dt / dx, v * dt / dy
    b = Bx + By
    angle = torch.linspace(0, math.pi, 1441, dtype=torch.float64)[:, None]
    radius = torch.tensor([0.03, 0.1, 0.3, 0.7, 1.2, 1.6, 2.2, 3.0, 4.0], dtype=torch.float64)
    p, q = radius * angle.cos(), radius * angle.sin()
    c = torch.complex(2 * Bx * p.cos() + 2 * By * q.cos(), Ax * p.sin() + Ay * q.sin())
    root = torch.sqrt(c**2 + (1 - 4 * b**2))
    return max(((c + s * root).abs() / (1 + 2 * b)).max().item() for s in (+1, -1))


def ratio(u, v, Dx, Dy, pde):
    field = torch.ones(1, 1, 1, 1, dtype=torch.float64)
    return DuFortFrankel().stability_ratio(u * field, v * field, Dx, Dy, pde).item()


speeds = st.floats(-8, 8)
diffusions = st.floats(0.05, 3)
pdes = st.builds(
    PDE,
    dt=st.floats(0.02, 1),
    spacing=st.tuples(st.integers(1, 3), st.integers(1, 3)),
)


@settings(max_examples=200)
@given(u=speeds, v=speeds, Dx=diffusions, Dy=diffusions, pde=pdes)
def test_the_ratio_is_at_most_one_exactly_where_no_wave_grows(u, v, Dx, Dy, pde):
    r = ratio(u, v, Dx, Dy, pde)
    g = largest_factor(u, v, Dx, Dy, pde)
    if r <= 1:
        assert g <= 1 + 1e-9
    if r >= 1.03:  # close to the limit the growth drowns in rounding
        assert g > 1 + 1e-9


@settings(max_examples=100)
@given(
    direction=st.floats(0, 2 * math.pi),
    Dx=diffusions,
    Dy=diffusions,
    pde=pdes,
    off=st.sampled_from([0.97, 0.999, 1.001, 1.03, 1.5]),
)
def test_the_limit_is_sharp(direction, Dx, Dy, pde, off):
    """Scale a velocity to just below and just above the limit, in every direction."""
    u, v = math.cos(direction), math.sin(direction)
    scale = math.sqrt(off / ratio(u, v, Dx, Dy, pde))
    assert ratio(scale * u, scale * v, Dx, Dy, pde) == pytest.approx(off, rel=1e-9)
    g = largest_factor(scale * u, scale * v, Dx, Dy, pde)
    if off < 1:
        assert g <= 1 + 1e-9
    elif off >= 1.03:
        assert g > 1 + 1e-9


@settings(max_examples=100)
@given(Dx=st.floats(0, 1e6), Dy=st.floats(0, 1e6), pde=pdes)
def test_pure_diffusion_is_always_stable(Dx, Dy, pde):
    assert ratio(0.0, 0.0, Dx, Dy, pde) == 0
    assert largest_factor(0.0, 0.0, Dx, Dy, pde) <= 1 + 1e-9


@settings(max_examples=100)
@given(u=speeds, v=speeds, pde=pdes)
def test_without_diffusion_the_limit_is_that_of_leapfrog(u, v, pde):
    dt, (dx, dy) = pde.dt, pde.spacing
    courant = abs(u) * dt / dx + abs(v) * dt / dy
    assert ratio(u, v, 0.0, 0.0, pde) == pytest.approx(courant**2, abs=1e-12)
    shortest = cmath.sqrt(1 - courant**2)  # p dx = q dy = a quarter wave: g^2 = 1 + 2 i courant g
    g = max(abs(1j * courant + shortest), abs(1j * courant - shortest))
    if courant <= 1:
        assert g <= 1 + 1e-9
        assert largest_factor(u, v, 0.0, 0.0, pde) <= 1 + 1e-9
    elif courant > 1.001:
        assert g > 1


@pytest.mark.parametrize(("u", "v", "Dx", "Dy"), [(0.5, 0.0, 0.0, 1.0), (0.0, -0.1, 0.3, 0.0)])
def test_velocity_without_diffusion_in_its_direction_is_unstable(u, v, Dx, Dy):
    assert ratio(u, v, Dx, Dy, PDE()) == math.inf
    assert largest_factor(u, v, Dx, Dy, PDE()) > 1 + 1e-9
    assert ratio(v, u, Dx, Dy, PDE()) < 1  # the same speed across is harmless
    assert largest_factor(v, u, Dx, Dy, PDE()) <= 1 + 1e-9


def test_the_published_limit_is_a_circle():
    """Equal D, dt 0.2, dx 1: stable iff u^2 + v^2 <= 12.5, whatever D."""
    for D in (0.01, 1.0, 30.0):
        for angle in (0.0, 0.4, 2.5):
            speed = math.sqrt(12.5)
            u, v = speed * math.cos(angle), speed * math.sin(angle)
            assert ratio(u, v, D, D, PDE()) == pytest.approx(1, rel=1e-12)


@pytest.mark.parametrize(("speed_squared", "grows"), [(12.0, False), (14.0, True)])
def test_a_solve_grows_beyond_the_limit_and_not_below(speed_squared, grows):
    h = torch.randn(1, 1, 48, 48, dtype=torch.float64)
    speed = torch.full_like(h, math.sqrt(speed_squared / 2))
    after = solve(h, h, None, speed, speed, 1.0, 1.0, PDE(steps=1500))
    assert (after.abs().max() > 1e3).item() is grows
    assert (after.abs().max() < 2 * h.abs().max()).item() is not grows


def test_the_ratio_of_fields_is_taken_pixel_by_pixel(draw):
    c = draw((2, 3, 4, 5), speed=3.0)
    pde = PDE(dt=0.3, spacing=(1, 2))
    ratios = DuFortFrankel().stability_ratio(c["u"], c["v"], c["Dx"], c["Dy"], pde)
    assert ratios.shape == c["u"].shape
    at = (1, 2, 3, 4)
    one = ratio(*(c[n][at].item() for n in ("u", "v", "Dx", "Dy")), pde)
    assert ratios[at].item() == pytest.approx(one, rel=1e-12)


def test_multiplies_written_out():
    """28 at the first step and 17 at each further one; 14 and 9 with constant diffusion; none for no step."""
    scheme = DuFortFrankel()
    assert [scheme.multiplies_per_element(K, constant_diffusion=False) for K in range(4)] == [0, 28, 45, 62]
    assert [scheme.multiplies_per_element(K, constant_diffusion=True) for K in range(4)] == [0, 14, 23, 32]
