"""The effective receptive field: known gradients, and the part of the image that cannot matter."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import globalcnn
from globalcnn import GlobalLayer, UserError
from globalcnn.measure import receptive_field
from globalcnn.measure.effective_field import effective_field


def test_a_convolution_shows_its_own_weights():
    conv = nn.Conv2d(2, 1, 3, padding=1, bias=False)
    field = effective_field(conv, (2, 9, 9))
    wanted = conv.weight.detach().abs().sum((0, 1))
    assert torch.allclose(field[3:6, 3:6], wanted / wanted.max(), atol=1e-6)
    assert field.sum().item() == pytest.approx(field[3:6, 3:6].sum().item())
    assert field.shape == (9, 9)
    assert field.max() == 1


def test_it_lies_within_the_receptive_field():
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 4, 3, stride=2), nn.Conv2d(4, 2, 3))
    field, whole = effective_field(model, (3, 24, 20)), receptive_field(model, (3, 24, 20))
    seen = field > 0
    assert int(seen.any(1).sum()) <= whole.height
    assert int(seen.any(0).sum()) <= whole.width


def test_global_layers_widen_it_by_a_pixel():
    layer = GlobalLayer(1)
    for p in layer.parameters():
        nn.init.constant_(p, 0.5)
    assert int((effective_field(layer, (1, 11, 11)) > 0).any(0).sum()) >= 3


def test_the_network_is_restored_and_images_can_be_given():
    model = globalcnn.create_model("resnet_global_tiny_cifar").train()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    images = torch.randn(2, 3, 16, 16)
    one, two = (effective_field(model, (3, 16, 16), images=images) for _ in range(2))
    assert torch.equal(one, two)
    assert model.training
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())


class Blind(nn.Module):
    def forward(self, x):
        return x * 0.0


class Detached(nn.Module):
    def forward(self, x):
        return x.detach()


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (nn.Sequential(nn.Flatten(), nn.Linear(27, 2)), "needs one feature map"),
        (Blind(), "nothing of the image reaches"),
        (Detached(), "no gradient"),
    ],
)
def test_mistakes(model, words):
    with pytest.raises(UserError, match=words):
        effective_field(model, (3, 3, 3))
