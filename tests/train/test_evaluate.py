"""Evaluation counts what it says."""

from __future__ import annotations

import math

import torch
from torch import nn

from globalcnn.train import evaluate


class Fixed(nn.Module):
    """Returns the 'images', which are logits."""

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        return x


def test_against_counting_by_hand():
    logits = torch.tensor([[3.0, 0, 0], [0, 2, 0], [0, 2, 0], [0, 0, 1], [1, 0, 0]])
    labels = torch.tensor([0, 1, 2, 2, 2])
    model = Fixed().train()
    result = evaluate(model, [(logits[:2], labels[:2]), (logits[2:], labels[2:])], 3)
    assert result.images == 5
    assert result.accuracy == 3 / 5
    assert result.confusion == ((1, 0, 0), (0, 1, 0), (1, 1, 1))
    assert result.confusions(1, 2) == 1
    assert result.confusions(0, 2) == 1
    assert result.per_class == (1.0, 1.0, 1 / 3)
    assert result.top5 is None
    expected = nn.functional.cross_entropy(logits, labels).item()
    assert math.isclose(result.loss, expected, rel_tol=1e-6)
    assert model.training


def test_first_five():
    logits = torch.arange(8.0).repeat(8, 1)
    result = evaluate(Fixed(), [(logits, torch.arange(8))], 8)
    assert result.top5 == 5 / 8
    assert result.accuracy == 1 / 8


def test_nothing_to_evaluate():
    result = evaluate(Fixed(), [], 3)
    assert (result.images, result.accuracy) == (0, 0.0)
    assert all(math.isnan(share) for share in result.per_class)
