"""Derivatives of every kind through every way of a layer: right, or refused by name."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn
from torch.autograd import forward_ad

from globalcnn import PDE, GlobalLayer
from globalcnn.nn.fused import FusedGlobalLayer
from globalcnn.ops import use_backend

VARIANTS = {
    "published": {},
    "no bias": {"bias": False},
    "constant diffusion": {"diffusivity": (1.0, 0.5)},
    "shared product": {"shared_product": True},
    "init": {"init": nn.Conv2d(4, 4, 1)},
    "init, velocity from f": {"init": nn.Conv2d(4, 4, 1), "velocity_from": "f"},
    "start from h": {"init": nn.Conv2d(4, 4, 1), "start_from": "h"},
    "no source, residual": {"source": False, "residual": True},
    "SiLU": {"act": nn.SiLU},
    "Neumann": {"pde": PDE(steps=2, boundary="zero-flux")},
}


def make(variant, training, dtype=torch.float64):
    torch.manual_seed(0)
    settings = {"pde": PDE(steps=2), **VARIANTS[variant]}
    return copy.deepcopy(GlobalLayer(4, settings.pop("pde"), **settings)).to(dtype).train(training)


def images(dtype=torch.float64):
    return torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(1), dtype=dtype)


def penalty_gradients(layer, x):
    """Gradients of (|d sum(layer(x)^2) / dx| - 1)^2, as in a gradient penalty."""
    x = x.clone().requires_grad_()
    (gx,) = torch.autograd.grad(layer(x).square().sum(), x, create_graph=True)
    (gx.norm() - 1).square().backward()
    return x.grad, {name: p.grad for name, p in layer.named_parameters()}


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_second_derivatives(variant, training):
    layer = make(variant, training)
    twin = copy.deepcopy(layer)
    of_x, of_parameters = penalty_gradients(layer, images())
    with use_backend("eager"):
        expected_x, expected = penalty_gradients(twin, images())
    assert expected_x.abs().max() > 1e-3
    torch.testing.assert_close(of_x, expected_x, rtol=1e-6, atol=1e-8)
    for name, gradient in expected.items():
        found = of_parameters[name]
        if gradient is None or gradient.abs().max() < 1e-9:  # a bias that the norm cancels
            assert found is None or found.abs().max() < 1e-9, name
        else:
            torch.testing.assert_close(found, gradient, rtol=1e-6, atol=1e-8, msg=name)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_first_derivatives_by_differences(training):
    layer = make("SiLU", training)

    def call(x):
        return copy.deepcopy(layer)(x)

    assert torch.autograd.gradcheck(call, images().requires_grad_())
    assert torch.autograd.gradgradcheck(call, images()[:, :, :3, :2].contiguous().requires_grad_())


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
@pytest.mark.parametrize("variant", VARIANTS)
def test_forward_mode(variant, training):
    """A dual tensor's tangent is the directional derivative."""
    layer, x = make(variant, training), images()
    direction = torch.randn_like(x)
    with use_backend("eager"):
        layer_of = copy.deepcopy(layer)
        _, expected = torch.autograd.functional.jvp(layer_of, x, direction)
    for grad in (False, True):
        with torch.set_grad_enabled(grad), forward_ad.dual_level():
            out = copy.deepcopy(layer)(forward_ad.make_dual(x, direction))
            tangent = forward_ad.unpack_dual(out).tangent
        assert tangent is not None
        torch.testing.assert_close(tangent, expected, rtol=1e-6, atol=1e-8)


def test_forward_mode_in_a_parameter():
    layer, x = make("published", False), images()
    weight = layer.velocity_x.net.weight
    direction = torch.randn_like(weight)
    with torch.no_grad(), forward_ad.dual_level():
        parameters = dict(layer.named_parameters())
        parameters["velocity_x.net.weight"] = forward_ad.make_dual(weight, direction)
        out = torch.func.functional_call(layer, parameters, (x,))
        tangent = forward_ad.unpack_dual(out).tangent
        step = 1e-6
        weight += step * direction
        up = layer(x)
        weight -= 2 * step * direction
        down = layer(x)
    torch.testing.assert_close(tangent, (up - down) / (2 * step), rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("training", [False, True], ids=["eval", "training"])
def test_transforms_of_torch_func(training):
    # a batch norm that updates statistics cannot be mapped; without them it can
    layer = make("constant diffusion", training)
    if training:
        for m in layer.modules():
            if isinstance(m, nn.BatchNorm2d):
                m.track_running_stats, m.running_mean, m.running_var = False, None, None
                m.num_batches_tracked = None
    x, direction = images(), torch.randn_like(images())
    out, tangent = torch.func.jvp(layer, (x,), (direction,))
    torch.testing.assert_close(out, layer(x))
    stack = torch.stack([x, 2 * x])
    torch.testing.assert_close(torch.func.vmap(layer)(stack), torch.stack([layer(x), layer(2 * x)]))
    gradient = torch.func.grad(lambda y: layer(y).square().sum())(x)
    y = x.clone().requires_grad_()
    layer(y).square().sum().backward()
    torch.testing.assert_close(gradient, y.grad)
    torch.testing.assert_close((tangent * layer(x) * 2).sum(), (gradient * direction).sum())


@pytest.mark.parametrize("variant", VARIANTS)
def test_gradients_through_a_frozen_layer(variant):
    layer, x = make(variant, False), images()
    frozen = FusedGlobalLayer.from_layer(layer)
    found, expected = [], []
    for module, to in ((frozen, found), (layer, expected)):
        y = x.clone().requires_grad_()
        (y + module(y)).square().sum().backward()
        to.append(y.grad)
    torch.testing.assert_close(found, expected)
    if layer.init is not None:
        assert frozen.init.weight.grad is not None


def test_gradients_where_only_the_input_wants_one():
    layer, x = make("published", False), images().requires_grad_()
    for p in layer.parameters():
        p.requires_grad_(False)
    layer(x).sum().backward()
    assert x.grad.abs().max() > 0
    assert not layer(images()).requires_grad
