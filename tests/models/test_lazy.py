"""Networks with lazy layers are built, kept and loaded as others are."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import globalcnn
from globalcnn import GlobalLayer, UserError
from globalcnn.models import load_with_card
from globalcnn.models.lazy import has_lazy_tensors, with_shapes
from globalcnn.train import Recipe


def lazy(num_classes: int = 3) -> nn.Module:
    return nn.Sequential(
        nn.LazyConv2d(4, 3),
        nn.LazyBatchNorm2d(),
        GlobalLayer(4),
        nn.AdaptiveAvgPool2d(2),
        nn.Flatten(),
        nn.LazyLinear(num_classes),
    )


class Unreached(nn.Module):
    def __init__(self):
        super().__init__()
        self.used, self.unused = nn.Conv2d(1, 2, 1), nn.LazyLinear(2)

    def forward(self, x):
        return self.used(x)


def test_shapes_come_from_one_image_and_the_mode_stays():
    network = with_shapes(lazy().train(), 2, (8, 9))
    assert not has_lazy_tensors(network)
    assert all(m.training for m in network.modules())
    assert network[0].weight.shape == (4, 2, 3, 3)
    assert network[1].num_batches_tracked == 0


@pytest.mark.parametrize(
    ("network", "words"),
    [
        pytest.param(Unreached(), "does not reach", id="unreached"),
        pytest.param(nn.Sequential(nn.LazyConv2d(2, 9)), "no shape from an image", id="too large a kernel"),
    ],
)
def test_what_gets_no_shape_is_said(network, words):
    with pytest.raises(UserError, match=words):
        with_shapes(network, 1, (4, 4))


def test_a_trained_lazy_network_is_loaded_by_its_function(tmp_path):
    images = torch.randint(0, 255, (30, 1, 10, 10), dtype=torch.uint8)
    labels = torch.arange(30) % 3
    recipe = Recipe(epochs=1, batch_size=10, flip=False, validation=0.2)
    globalcnn.train(lazy(), (images, labels), recipe, out=tmp_path / "run")
    again, card = load_with_card(tmp_path / "run", model=lazy)
    assert card.image_size == (10, 10)
    assert again(torch.randn(2, 1, 10, 10)).shape == (2, 3)
