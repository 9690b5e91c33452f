"""Random fields to solve with, and the boundaries and backends to do it on."""

from __future__ import annotations

import pytest
import torch

from globalcnn import Boundary
from globalcnn.ops import BACKENDS


@pytest.fixture(params=list(Boundary), ids=lambda b: b.value)
def boundary(request):
    return request.param


@pytest.fixture(params=["eager", "reference"])
def backend(request):
    assert request.param in BACKENDS
    return request.param


@pytest.fixture(scope="session")
def draw():
    """`draw(shape)`: a dict of h, h_old, f normal; u, v normal times `speed`; Dx, Dy in 0.2 .. 1.2."""

    def draw_fields(shape, *, seed=0, dtype=torch.float64, speed=0.5):
        g = torch.Generator().manual_seed(seed)
        fields = {
            n: torch.randn(shape, generator=g, dtype=torch.float64) for n in ("h", "h_old", "f", "u", "v")
        }
        fields |= {n: 0.2 + torch.rand(shape, generator=g, dtype=torch.float64) for n in ("Dx", "Dy")}
        fields["u"] *= speed
        fields["v"] *= speed
        return {n: A.to(dtype) for n, A in fields.items()}

    return draw_fields
