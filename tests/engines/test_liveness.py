"""Peak memory of activations: cases counted by hand, and what ExecuTorch plans for the same program."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import globalcnn
from globalcnn.engines import exported_program
from globalcnn.engines.liveness import memory_of

MAP = 4 * 2 * 8 * 8  # bytes of a map of two channels


def conv():
    return nn.Conv2d(2, 2, 3, padding=1, bias=False)


class Residual(nn.Module):
    """The input stays alive until it is added: three maps at the second convolution."""

    def __init__(self):
        super().__init__()
        self.one, self.two = conv(), conv()

    def forward(self, x):
        return self.two(self.one(x)) + x


class Reshaped(nn.Module):
    """Flattening takes no memory; the linear layer reads the map and makes three numbers."""

    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(128, 3, bias=False)

    def forward(self, x):
        return self.fc(x.flatten(1))


class KeptToTheEnd(nn.Module):
    """An output is alive to the end."""

    def __init__(self):
        super().__init__()
        self.one, self.two, self.three = conv(), conv(), conv()

    def forward(self, x):
        first = self.one(x)
        return first, self.three(self.two(first))


@pytest.mark.parametrize(
    ("net", "activations", "weights"),
    [
        (nn.Sequential(conv(), conv(), conv()), 2 * MAP, 3 * 144),
        (Residual(), 3 * MAP, 2 * 144),
        (Reshaped(), MAP + 12, 4 * 384),
        (KeptToTheEnd(), 3 * MAP, 3 * 144),
    ],
    ids=lambda v: type(v).__name__ if isinstance(v, nn.Module) else None,
)
def test_counted_by_hand(net, activations, weights):
    found = memory_of(torch.export.export(net.eval(), (torch.zeros(1, 2, 8, 8),)))
    assert (found.activations, found.weights) == (activations, weights)


@pytest.mark.parametrize("name", ["resnet_tiny_cifar", "resnet_global_tiny_cifar"])
def test_as_executorch_plans_it(name, tmp_path):
    pytest.importorskip("executorch")
    from globalcnn.export.pte import ExecuTorch, arena_of

    model = globalcnn.create_model(name).eval()
    program = exported_program(model, torch.zeros(1, 3, 32, 32), dynamic=False)
    path = tmp_path / "net.pte"
    ExecuTorch().write(program, path, {}, backend=False)
    assert arena_of(path.read_bytes()) == pytest.approx(memory_of(program).activations, rel=0.02)
