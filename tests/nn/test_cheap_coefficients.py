"""Coefficients that are shared, predicted at half resolution, or bounded."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from globalcnn import PDE, GlobalLayer
from globalcnn.errors import UserError
from globalcnn.graph import fold_batch_norms
from globalcnn.nn.bounded import bounded_fields
from globalcnn.ops import GatedSweeps

X = torch.randn(2, 8, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    name: str
    settings: dict[str, Any] = field(default_factory=dict)


CASES = [
    Case("shared", {"coefficients": "shared-groups"}),
    Case("half", {"coefficients": "half-resolution"}),
    Case("bounded", {"bounded": True}),
    Case("bounded, SiLU", {"bounded": True, "act": nn.SiLU, "pde": PDE(steps=3, spacing=(2, 1))}),
    Case("bounded, constant", {"bounded": True, "diffusivity": (1.0, 0.0)}),
    Case("bounded, no diffusion", {"bounded": True, "diffusivity": 0.0, "shared_product": True}),
    Case("bounded, half", {"bounded": True, "coefficients": "half-resolution", "norm_eps": 1e-5}),
]
EACH = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def lively(settings: dict[str, Any]) -> GlobalLayer:
    """With coefficients far beyond the stability limit."""
    torch.manual_seed(0)
    layer = GlobalLayer(8, **settings).double()
    for name, m in layer.named_modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight, std=20.0 if name != "norm" else 1.0)
            nn.init.normal_(m.bias)
    layer(X)
    return layer.eval()


def test_shared_groups_are_one_convolution_per_group():
    c = lively({"coefficients": "shared-groups"}).velocity_x
    y = c.norm(F.conv2d(X, c.net.conv.weight, c.net.conv.bias, padding=1, groups=2))
    assert torch.equal(c(X), y[:, [0, 0, 0, 0, 1, 1, 1, 1]])
    assert sum(p.numel() for p in c.parameters()) == 8 * 9 + 2 + 4


@pytest.mark.parametrize("channels", [1, 5, 9, 10])
def test_shared_groups_divide_any_number_of_channels(channels):
    x = torch.randn(2, channels, 4, 4)
    assert GlobalLayer(channels, coefficients="shared-groups")(x).shape == x.shape


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (5, 8)])
def test_half_resolution_predicts_once_for_four_pixels(size):
    c = lively({"coefficients": "half-resolution"}).velocity_x
    x = torch.randn(2, 8, *size, dtype=torch.float64)
    out = c(x)
    assert out.shape == x.shape
    H, W = size
    means = [[x[:, :, i : i + 2, j : j + 2].mean((2, 3)) for j in range(0, W, 2)] for i in range(0, H, 2)]
    pooled = torch.stack([torch.stack(row, -1) for row in means], -2)
    small = c.norm(c.net.conv(pooled))
    for i in range(H):
        for j in range(W):
            torch.testing.assert_close(out[:, :, i, j], small[:, :, i // 2, j // 2])


@EACH
def test_the_fused_path_says_that_it_does_not_run_it_and_is_not_used(case):
    layer = lively(case.settings).float()
    x = X.float()
    assert "module by module" in layer.explain(x)
    expected = layer._finish(layer._solve(x, x, layer.fields(x, x), layer.pde), x)
    with torch.no_grad():
        assert torch.equal(layer(x), expected)


@EACH
@torch.no_grad()
def test_folding_keeps_the_function(case):
    net = nn.Sequential(lively(case.settings))
    expected = net(X)
    fold_batch_norms(net)
    torch.testing.assert_close(net(X), expected, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("case", [c for c in CASES if "bounded" in c.settings], ids=lambda c: c.name)
def test_bounded_layers_are_stable(case):
    assert not lively({**case.settings, "bounded": False}).stability(X).stable
    layer = lively(case.settings)
    assert layer.stability(X).ratio <= 1
    assert layer.float().stability(X.float()).ratio <= 1


def test_fields_within_the_limits_are_not_changed():
    u, v = 0.1 * X, 0.2 * X.flip(2)
    D = X.abs() + 1
    found = bounded_fields(u, v, D, D, PDE())
    assert all(torch.equal(a, b) for a, b in zip(found, (u, v, D, D), strict=True))


def test_gradients_of_bounded_fields_are_finite_where_there_is_no_diffusion():
    u, v = X.clone().requires_grad_(), X.clone().requires_grad_()
    Dx, Dy = F.relu(X).requires_grad_(), F.relu(X.flip(1)).requires_grad_()
    sum(t.sum() for t in bounded_fields(u, v, Dx, Dy, PDE())).backward()
    assert all(t.grad.isfinite().all() for t in (u, v, Dx, Dy))


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_they_train(case):
    layer = GlobalLayer(8, **case.settings)
    layer(X.float()).square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in layer.parameters())


def test_bounded_refuses_other_schemes():
    with pytest.raises(UserError, match=r"bounded=True is for the scheme DuFortFrankel"):
        GlobalLayer(8, PDE(scheme=GatedSweeps()), bounded=True)
