"""Depth against the numbers in the names of known networks, and on small ones with a plain longest path."""

import pytest
import torch
import torchvision
from torch import nn

from globalcnn.errors import UserError
from globalcnn.measure import depth


def conv(c_in=4, c_out=4):
    return nn.Conv2d(c_in, c_out, 3, padding=1)


class Written(nn.Module):
    """A network given by its forward function."""

    def __init__(self, forward, **modules):
        super().__init__()
        self.write = forward
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x):
        return self.write(self, x)


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("resnet18", 18),
        ("resnet50", 50),
        ("vgg11", 11),
        ("vgg16_bn", 16),
        ("alexnet", 8),
        ("densenet121", 121),
    ],
)
def test_the_number_in_the_name(name, expected):
    model = getattr(torchvision.models, name)(weights=None)
    assert depth(model, (3, 64, 64)) == expected


@pytest.mark.parametrize(
    ("forward", "expected"),
    [
        (lambda m, x: x, 0),
        (lambda m, x: m.a(x), 1),
        (lambda m, x: m.a(x) + m.b(m.a(x)), 2),
        (lambda m, x: torch.cat([m.a(m.b(m.c(x))), x], 1), 3),
        (lambda m, x: m.a(torch.cat([x[:, :2], m.b(x)[:, 2:]], 1)), 2),
        (lambda m, x: m.a(x).relu_().add_(m.b(m.c(x))), 2),
        (lambda m, x: (m.a(m.b(x)), m.c(x)), 2),
        (lambda m, x: {"out": [m.a(x), 3]}, 1),
        (lambda m, x: m.head(m.a(x).mean((2, 3))), 2),
        (lambda m, x: m.a(x) * 0 + torch.zeros_like(m.b(m.c(x))), 1),
        (lambda m, x: torch.ones(1), 0),
        # one weight called three times is a path of three
        (lambda m, x: m.a(m.a(m.a(x))), 3),
        # a product of two feature maps has no weight
        (lambda m, x: m.a(x).flatten(2) @ m.b(x).flatten(2).transpose(1, 2), 1),
        (lambda m, x: torch.nn.functional.conv2d(x, m.a.weight * 2), 1),
    ],
)
def test_the_longest_path(forward, expected):
    model = Written(forward, a=conv(), b=conv(), c=conv(), head=nn.Linear(4, 2))
    assert depth(model, (4, 6, 6)) == expected


def test_writing_into_a_part_deepens_the_whole():
    def forward(m, x):
        buffer = torch.zeros(1, 4, 6, 6)
        buffer[:, :2] = m.a(m.b(x))[:, :2]
        part = buffer[:, 2:]
        part.copy_(x[:, 2:])
        return m.c(buffer)

    assert depth(Written(forward, a=conv(), b=conv(), c=conv()), (4, 6, 6)) == 3


def test_freed_memory_does_not_lend_its_depth():
    """Constants made where an activation has just been freed are still constants."""

    def forward(m, x):
        for _ in range(20):
            deep = m.a(m.a(x))
            del deep
            constant = torch.randn(1, 4, 6, 6)
        return m.a(x) + constant

    assert depth(Written(forward, a=conv()), (4, 6, 6)) == 1


def test_weighted_layers_of_every_kind():
    model = nn.Sequential(
        nn.Conv2d(4, 4, 3, padding=1, groups=4),
        nn.BatchNorm2d(4),
        nn.ConvTranspose2d(4, 2, 2, stride=2, bias=False),
        nn.utils.parametrizations.weight_norm(nn.Conv2d(2, 3, 1)),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(3, 3, bias=False),
        nn.Unflatten(1, (1, 3)),
        nn.Linear(3, 2),
    )
    assert depth(model, (4, 6, 6)) == 5
    assert model.training


def test_a_size_that_does_not_fit_is_refused():
    with pytest.raises(UserError, match="input_size"):
        depth(conv(), (3, 6, 6))
