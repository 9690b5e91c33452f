"""The paper's counting against hand arithmetic and the printed baselines."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import timm
import torch
from torch import nn

from globalcnn import GlobalLayer
from globalcnn.reproduce.counting import paper_counts


@dataclass(frozen=True)
class Layer:
    """A layer, the image it is given, and what the paper's counting gives it by hand."""

    module: nn.Module
    size: tuple[int, int, int]
    paper: int
    products: int = 0


LAYERS = {
    "convolution": Layer(nn.Conv2d(3, 8, 3, bias=False), (3, 6, 5), 12 * 8 * 27, 12 * 8 * 27),
    "convolution with bias": Layer(nn.Conv2d(3, 8, 3), (3, 6, 5), 12 * 8 * (27 + 1), 12 * 8 * 27),
    "transposed": Layer(
        nn.ConvTranspose2d(4, 8, 2, stride=2, bias=False), (4, 3, 3), 9 * 4 * 8 * 4, 9 * 4 * 8 * 4
    ),
    "linear": Layer(nn.Linear(5, 7), (3, 2, 5), 3 * 2 * 5 * 7, 3 * 2 * 5 * 7),
    "batch norm": Layer(nn.BatchNorm2d(3), (3, 4, 4), 2 * 48),
    "group norm": Layer(nn.GroupNorm(1, 3), (3, 4, 4), 0),
    "relu": Layer(nn.ReLU(), (3, 4, 4), 0),
    "average pooling": Layer(nn.AvgPool2d(2), (3, 4, 4), 3 * 4),
    "average of all": Layer(nn.AdaptiveAvgPool2d(1), (3, 6, 5), (30 + 1) * 3),
    "average to 2 x 2": Layer(nn.AdaptiveAvgPool2d(2), (3, 7, 6), (3 * 3 + 1) * 12),
}


@pytest.mark.parametrize("name", LAYERS)
def test_a_layer_costs_what_the_convention_says(name):
    layer = LAYERS[name]
    c = paper_counts(layer.module, layer.size)
    assert (c.macs_paper, c.macs_products) == (layer.paper, layer.products)


def test_the_pde_is_left_out_and_told_apart():
    c = paper_counts(GlobalLayer(2, bias=False), (2, 5, 4))
    assert c.macs_products == 4 * 9 * 40
    assert c.macs_paper == c.macs_products + 5 * 2 * 40  # five norms
    assert c.pde == 28 * 40


# params, convolutions and linear layers, the paper's counting; 1000 classes, 224 x 224
BASELINES = {
    "mobilenetv2_100": (3504872, 300774272, 314194496),
    "mobilenetv3_large_100": (5483032, 216589760, 224163736),
    "efficientnet_b0": (5288548, 385814752, 399363484),
    "densenet169": (14149480, 3359843328, 3398071168),
}


@pytest.mark.parametrize("name", BASELINES)
def test_the_published_baselines_count_exactly(name):
    """Also those with a classifier or a pooling that the printed figures do not contain."""
    c = paper_counts(timm.create_model(name), (3, 224, 224))
    assert (c.params, c.macs_products, c.macs_paper) == BASELINES[name]


def test_a_compiled_model_counts_as_the_model():
    model = timm.create_model("mobilenetv3_small_050")
    assert paper_counts(torch.compile(model), (3, 64, 64)) == paper_counts(model, (3, 64, 64))
