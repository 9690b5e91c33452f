"""The conventions of `ops/schemes.py`, seen on one blob: where it moves, which axis is x, what a step is."""

from __future__ import annotations

import pytest
import torch

from globalcnn import PDE
from globalcnn.ops import solve


def centre(H: torch.Tensor) -> tuple[float, float]:
    """Row and column of the centre of mass."""
    mass = H[0, 0] / H.sum()
    rows, columns = torch.arange(H.shape[2]), torch.arange(H.shape[3])
    return (mass.sum(1) * rows).sum().item(), (mass.sum(0) * columns).sum().item()


@pytest.mark.parametrize(
    ("u", "v", "rows", "columns"),
    [(0.5, 0.0, -1, 0), (-0.5, 0.0, 1, 0), (0.0, 0.5, 0, -1), (0.0, -0.5, 0, 1)],
    ids=["u moves it up", "-u moves it down", "v moves it left", "-v moves it right"],
)
def test_a_blob_moves_against_the_velocity(u, v, rows, columns):
    dt, steps, half = 0.2, 10, 20
    i = torch.arange(2 * half + 1, dtype=torch.float64) - half
    H = torch.exp(-(i[:, None] ** 2 + i[None, :] ** 2) / 18)[None, None]
    velocity = [torch.full_like(H, value) for value in (u, v)]
    moved = solve(H, H, None, *velocity, 0.0, 0.0, PDE(steps=steps, dt=dt), backend="eager")
    # within a dt: with h_old = h the state starts between two levels
    distance = 0.5 * dt * steps
    row, column = centre(moved)
    assert row - half == pytest.approx(rows * distance, abs=0.5 * dt + 1e-6)
    assert column - half == pytest.approx(columns * distance, abs=0.5 * dt + 1e-6)


def test_a_step_is_a_leapfrog_over_two_dt():
    h, h_old = torch.full((1, 1, 3, 3), 7.0), torch.full((1, 1, 3, 3), 2.0)
    zero, f = torch.zeros_like(h), torch.full_like(h, 3.0)
    after = solve(h, h_old, f, zero, zero, 0.0, 0.0, PDE(dt=0.2), backend="eager")
    torch.testing.assert_close(after, h_old + 2 * 0.2 * f)  # from the level two dt before it, not from h
