"""The three backbones of about 500 parameters, written out plainly."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from globalcnn import PDE, UserError, create_model
from globalcnn.measure import depth
from globalcnn.models.digits import SingleConv2d
from globalcnn.ops import reference


def test_nine_products_are_the_convolution():
    conv = SingleConv2d().double()
    x = torch.randn(3, 1, 6, 5, dtype=torch.float64, requires_grad=True)
    results = []
    for training in (True, False):
        conv.train(training)
        y = conv(x)
        results.append((y, *torch.autograd.grad(y.square().sum(), (x, conv.weight))))
    for a, b in zip(*results, strict=True):
        torch.testing.assert_close(a, b)


def norm(x, layer):
    return F.batch_norm(x, layer.running_mean, layer.running_var, layer.weight, layer.bias, eps=1e-5)


def written_out(kind, model, x):
    def block(x, layers):
        return F.conv2d(F.relu(norm(x, layers[0])), layers[2].weight, padding=1)

    f = block(x, model.stem)
    g = block(f, model.body.g)
    if kind == "conv":
        h = g
    elif kind == "residual":
        h = F.relu(norm(f + g, model.body.norm))
    else:
        h = F.relu(norm(reference.solve(f, f, f, g, g, 1.0, 1.0, PDE(steps=5, dt=0.2)), model.body.norm))
    pooled = F.avg_pool2d(F.relu(h), 4).flatten(1)
    return F.linear(pooled, model.fc.weight, model.fc.bias)


@pytest.mark.parametrize("kind", ["conv", "residual", "global"])
def test_networks(kind):
    model = create_model(f"digits_{kind}").double().eval()
    for module in model.modules():
        if isinstance(module, torch.nn.BatchNorm2d):
            torch.nn.init.uniform_(module.weight, 0.5, 1.5)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 1.5)
    x = torch.randn(2, 1, 28, 28, dtype=torch.float64)
    torch.testing.assert_close(model(x), written_out(kind, model, x))
    assert depth(model.float(), (1, 28, 28)) == 3


def test_settings_that_do_not_fit():
    with pytest.raises(UserError, match="only for digits_global"):
        create_model("digits_conv", pde=PDE())
    with pytest.raises(UserError, match="always average to 7 x 7"):
        create_model("digits_conv", global_pool="max")


def test_the_evolution_ends_in_the_output():
    body = create_model("digits_global").eval().body
    f = torch.randn(1, 1, 9, 9)
    evolution = body.evolution(f)
    assert len(evolution.levels) == 6
    torch.testing.assert_close(evolution.output, body(f))
    assert torch.equal(evolution.levels[0], f)
