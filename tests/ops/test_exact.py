"""What the scheme does exactly, up to rounding: conservation, symmetry, linearity.

Notation as in `globalcnn.ops.schemes`: x is dim 2 (rows), y is dim 3 (columns).
"""

from __future__ import annotations

import pytest
import torch

from globalcnn import PDE, Boundary, solve

SHAPE = (2, 3, 7, 6)
SPACINGS = [(1, 1), (2, 1), (1, 3), (9, 8)]  # the last reaches beyond the other edge


def close(a, b, tolerance=1e-12):
    torch.testing.assert_close(a, b, rtol=tolerance, atol=tolerance)


def total(A):
    return A.sum(dim=(2, 3))


def test_zero_coefficients_give_h_old_plus_2_dt_f(draw, boundary, backend):
    c = draw(SHAPE)
    zero = torch.zeros(SHAPE, dtype=torch.float64)
    pde = PDE(dt=0.3, boundary=boundary)
    H_new = solve(c["h"], c["h_old"], c["f"], zero, zero, 0.0, 0.0, pde, backend=backend)
    close(H_new, c["h_old"] + 2 * 0.3 * c["f"])
    close(solve(c["h"], c["h_old"], None, zero, zero, 0.0, 0.0, pde, backend=backend), c["h_old"])


@pytest.mark.parametrize("spacing", SPACINGS)
@pytest.mark.parametrize("boundary", [Boundary.PERIODIC, Boundary.NEUMANN], ids=lambda b: b.value)
def test_constant_diffusion_conserves_the_sum(draw, boundary, spacing, backend):
    """(1 + 2b) sum H_new = (1 - 2b) sum H_old + 4b sum H, b = Bx + By, for any u and v."""
    c = draw(SHAPE, speed=3.0)
    (dx, dy), dt, Dx, Dy = spacing, 0.2, 0.7, 1.3
    b = Dx * dt / dx**2 + Dy * dt / dy**2
    pde = PDE(spacing=spacing, boundary=boundary)
    H_new = solve(c["h"], c["h_old"], None, c["u"], c["v"], Dx, Dy, pde, backend=backend)
    close((1 + 2 * b) * total(H_new), (1 - 2 * b) * total(c["h_old"]) + 4 * b * total(c["h"]))


@pytest.mark.parametrize("spacing", SPACINGS)
def test_zero_boundary_loses_by_diffusion_what_sits_at_the_edge(draw, spacing, backend):
    """Advection conserves; by diffusion the first dx and the last dx rows lose 2 Bx H, columns likewise."""
    c = draw(SHAPE, speed=3.0)
    h = c["h"]
    (dx, dy), dt, Dx, Dy = spacing, 0.2, 0.7, 1.3
    Bx, By = Dx * dt / dx**2, Dy * dt / dy**2
    b = Bx + By
    edge_x = total(h[:, :, :dx]) + total(h[:, :, -dx:])
    edge_y = total(h[..., :dy]) + total(h[..., -dy:])
    H_new = solve(
        h,
        c["h_old"],
        None,
        c["u"],
        c["v"],
        Dx,
        Dy,
        PDE(spacing=spacing, boundary="dirichlet"),
        backend=backend,
    )
    kept = (1 - 2 * b) * total(c["h_old"]) + 4 * b * total(h)
    close((1 + 2 * b) * total(H_new), kept - 2 * Bx * edge_x - 2 * By * edge_y)


@pytest.mark.parametrize("spacing", SPACINGS)
def test_advection_alone_conserves_the_sum_at_every_boundary(draw, boundary, spacing, backend):
    c = draw(SHAPE, speed=3.0)
    pde = PDE(spacing=spacing, boundary=boundary)
    H_new = solve(c["h"], c["h_old"], None, c["u"], c["v"], 0.0, 0.0, pde, backend=backend)
    close(total(H_new), total(c["h_old"]))


def test_a_constant_state_stays_at_rest_where_nothing_leaves(draw, backend):
    """Diffusion of a constant is nothing at a periodic or reflecting edge, also when D varies in space."""
    c = draw(SHAPE)
    one, zero = torch.ones_like(c["h"]), torch.zeros_like(c["h"])
    for boundary in (Boundary.PERIODIC, Boundary.NEUMANN):
        pde = PDE(steps=4, boundary=boundary)
        close(solve(one, one, None, zero, zero, c["Dx"], c["Dy"], pde, backend=backend), one)
    lost = solve(
        one, one, None, zero, zero, c["Dx"], c["Dy"], PDE(steps=4, boundary="dirichlet"), backend=backend
    )
    assert (lost[:, :, 0] < 1).all()


@pytest.mark.parametrize("shift", [(1, 0), (0, 1), (3, -2)])
def test_periodic_steps_commute_with_shifts(draw, shift, backend):
    c = draw(SHAPE)
    pde = PDE(steps=3, spacing=(2, 1))
    moved = {n: A.roll(shift, dims=(2, 3)) for n, A in c.items()}
    close(solve(**moved, pde=pde, backend=backend), solve(**c, pde=pde, backend=backend).roll(shift, (2, 3)))


@pytest.mark.parametrize("walled", [Boundary.NEUMANN, Boundary.DIRICHLET], ids=lambda b: b.value)
def test_walls_do_not_move_with_the_image(draw, walled, backend):
    c = draw(SHAPE)
    pde = PDE(boundary=walled)
    moved = {n: A.roll(1, dims=2) for n, A in c.items()}
    difference = solve(**moved, pde=pde, backend=backend) - solve(**c, pde=pde, backend=backend).roll(1, 2)
    assert difference.abs().max() > 0.01


@pytest.mark.parametrize(("axis", "velocity"), [(2, "u"), (3, "v")])
@pytest.mark.parametrize("spacing", SPACINGS)
def test_reflecting_an_axis_flips_the_sign_of_its_velocity(draw, boundary, axis, velocity, spacing, backend):
    c = draw(SHAPE)
    pde = PDE(steps=3, spacing=spacing, boundary=boundary)
    mirrored = {n: A.flip(axis) * (-1 if n == velocity else 1) for n, A in c.items()}
    close(solve(**mirrored, pde=pde, backend=backend), solve(**c, pde=pde, backend=backend).flip(axis))


@pytest.mark.parametrize(("dx", "dy"), SPACINGS)
def test_transposing_swaps_the_axes_of_everything(draw, boundary, dx, dy, backend):
    c = draw(SHAPE)
    swapped = {
        n: c[{"u": "v", "v": "u", "Dx": "Dy", "Dy": "Dx"}.get(n, n)].transpose(2, 3).contiguous() for n in c
    }
    straight = solve(**c, pde=PDE(steps=3, spacing=(dx, dy), boundary=boundary), backend=backend)
    crossed = solve(**swapped, pde=PDE(steps=3, spacing=(dy, dx), boundary=boundary), backend=backend)
    close(crossed, straight.transpose(2, 3))


def test_linear_in_state_and_source(draw, boundary, backend):
    """S(a p + q) = a S(p) + S(q) for p, q = (h, h_old, f), with the coefficients held."""
    p, q = draw(SHAPE, seed=1), draw(SHAPE, seed=2)
    pde = PDE(steps=4, boundary=boundary)
    coefficients = {n: p[n] for n in ("u", "v", "Dx", "Dy")}

    def S(**state):
        return solve(**state, **coefficients, pde=pde, backend=backend)

    state = {n: -1.7 * p[n] + q[n] for n in ("h", "h_old", "f")}
    parts = [S(**{n: x[n] for n in ("h", "h_old", "f")}) for x in (p, q)]
    close(S(**state), -1.7 * parts[0] + parts[1])


def test_images_and_channels_do_not_touch_each_other(draw, boundary, backend):
    c = draw(SHAPE)
    pde = PDE(steps=2, boundary=boundary)
    whole = solve(**c, pde=pde, backend=backend)
    one = solve(**{n: A[1:, 2:] for n, A in c.items()}, pde=pde, backend=backend)
    close(whole[1:, 2:], one)


def test_many_steps_are_one_step_many_times(draw, boundary, backend):
    c = draw(SHAPE)
    coefficients = {n: c[n] for n in ("f", "u", "v", "Dx", "Dy")}
    h, h_old = c["h"], c["h_old"]
    one = PDE(boundary=boundary, spacing=(1, 2), dt=0.1)
    for K in range(1, 8):
        h, h_old = solve(h, h_old, **coefficients, pde=one, backend=backend), h
        many = PDE(steps=K, boundary=boundary, spacing=(1, 2), dt=0.1)
        close(solve(**c, pde=many, backend=backend), h)


def test_numbers_for_diffusion_are_constant_fields(draw, boundary, backend):
    c = draw(SHAPE)
    rest = {n: c[n] for n in ("h", "h_old", "f", "u", "v")}
    pde = PDE(steps=3, boundary=boundary)
    a, b = 0.4, 2
    A, B = torch.full_like(c["h"], a), torch.full_like(c["h"], b)
    expected = solve(**rest, Dx=A, Dy=B, pde=pde, backend=backend)
    for Dx, Dy in ((a, b), (A, b), (a, B)):
        close(solve(**rest, Dx=Dx, Dy=Dy, pde=pde, backend=backend), expected)


def test_no_steps_give_the_state_itself_in_memory_of_its_own(draw, boundary, backend):
    c = draw(SHAPE)
    given = c["h"].clone()
    H = solve(**c, pde=PDE(steps=0, boundary=boundary), backend=backend)
    assert torch.equal(H, given)
    H.fill_(7.0)
    assert torch.equal(c["h"], given)


def test_inputs_are_left_as_they_were(draw, boundary, backend):
    c = draw(SHAPE)
    before = {n: A.clone() for n, A in c.items()}
    solve(**c, pde=PDE(steps=3, boundary=boundary), backend=backend)
    assert all(torch.equal(c[n], before[n]) for n in c)


def test_the_published_step_by_hand(backend):
    """One step on a 1 x 3 row, every term worked out on paper.

    h = (1, 2, 4), h_old = 0, f = 1, u = 0, v = (1, 0, 3), D = 1, dt = 0.2: By = Bx = 0.2, R = 1/1.8. A row is
    its own neighbour: 2 Bx (h + h) = 0.8 h. vy = (v[j-1] - v[j+1]) / 2 = (1.5, -1, -0.5), so
    E = (.3, -.2, -.1), and Ay = (.2, 0, .6).
    """
    row = torch.tensor([[[[1.0, 2.0, 4.0]]]], dtype=torch.float64)
    v = torch.tensor([[[[1.0, 0.0, 3.0]]]], dtype=torch.float64)
    zero, one = torch.zeros_like(row), torch.ones_like(row)
    H = solve(row, zero, one, zero, v, 1.0, 1.0, PDE(), backend=backend)
    first = -0.6 * 1 + 0.8 * 1 + (0.4 - 0.2) * 4 + (0.4 + 0.2) * 2 + 0.4
    second = 0.4 * 2 + 0.8 * 2 + 0.4 * 1 + 0.4 * 4 + 0.4
    third = 0.2 * 4 + 0.8 * 4 + (0.4 - 0.6) * 2 + (0.4 + 0.6) * 1 + 0.4
    close(H, torch.tensor([[[[first, second, third]]]], dtype=torch.float64) / 1.8)
