"""Which way features move: one blob under a constant velocity, without diffusion and source.

For constant (u, v) the equation is dH/dt = u H_x + v H_y: the blob moves towards -(u, v). The scheme's centre
of mass is exact: each step sets it 2 dt (u, v) away from where it was two levels before, and H_old is H at
the start, so after K steps it has moved by -2 dt (u, v) ceil(K / 2).
"""

from __future__ import annotations

import math

import pytest
import torch

from globalcnn import PDE, GlobalLayer


def blob(side=33, width=2.0):
    at = torch.arange(side, dtype=torch.float64) - side // 2
    bump = torch.exp(-(at**2) / (2 * width**2))
    return (bump[:, None] * bump[None, :])[None, None]


def centre(H):
    """(row, column) of the centre of mass, from the middle."""
    side = H.shape[-1]
    at = torch.arange(side, dtype=H.dtype) - side // 2
    mass = H.sum()
    return (H.sum(3) * at).sum() / mass, (H.sum(2) * at).sum() / mass


def layer_with(u, v, steps):
    layer = GlobalLayer(1, PDE(steps=steps), diffusivity=0.0, source=False).double()
    with torch.no_grad():
        for coefficient, speed in ((layer.velocity_x, u), (layer.velocity_y, v)):
            coefficient.net.weight.zero_()
            coefficient.norm.bias.fill_(speed)
    return layer


@pytest.mark.parametrize(("u", "v"), [(1.0, 0.0), (0.0, 1.0), (0.5, 1.5)])
@pytest.mark.parametrize("steps", [1, 2, 5])
def test_the_blob_moves_towards_minus_the_velocity(u, v, steps):
    levels = layer_with(u, v, steps).evolution(blob()).levels
    for k, H in enumerate(levels):
        row, column = centre(H)
        way = 2 * 0.2 * math.ceil(k / 2)
        assert row.item() == pytest.approx(-u * way, abs=1e-6)  # x is the row: u > 0 moves up
        assert column.item() == pytest.approx(-v * way, abs=1e-6)  # y is the column: v > 0 moves left
        assert H.sum().item() == pytest.approx(blob().sum().item())
