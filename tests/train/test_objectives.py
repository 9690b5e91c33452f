"""Objectives give the loss that they say, by hand, and the loop needs nothing but their interface."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from globalcnn import UserError, create_model
from globalcnn.train import CrossEntropy, Recipe, WithAuxiliaryHeads
from globalcnn.train.objectives import default_objective

LOGITS = torch.tensor([[2.0, 0.0, -1.0], [0.5, 0.5, 3.0]])
LABELS = torch.tensor([0, 1])


def test_cross_entropy_by_hand() -> None:
    smoothed = torch.full((2, 3), 0.1 / 3)
    smoothed[[0, 1], LABELS] += 0.9
    expected = -(smoothed * LOGITS.log_softmax(dim=1)).sum(dim=1).mean()
    outcome = CrossEntropy(label_smoothing=0.1)(nn.Identity(), LOGITS, LABELS)
    assert torch.allclose(outcome.loss, expected)
    assert torch.equal(outcome.logits, LOGITS)


def test_mixed_targets_are_not_smoothed_again() -> None:
    shares = torch.tensor([[0.7, 0.3, 0.0], [0.0, 0.5, 0.5]])
    expected = -(shares * LOGITS.log_softmax(dim=1)).sum(dim=1).mean()
    assert torch.allclose(CrossEntropy(label_smoothing=0.1)(nn.Identity(), LOGITS, shares).loss, expected)


class TwoHeads(nn.Module):
    """Returns its input as logits, and twice its input as those of an auxiliary head."""

    def forward_with_auxiliary(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x, 2 * x


def test_auxiliary_heads_are_weighed() -> None:
    outcome = WithAuxiliaryHeads(weight=0.4)(TwoHeads(), LOGITS, LABELS)
    expected = F.cross_entropy(LOGITS, LABELS) + 0.4 * F.cross_entropy(2 * LOGITS, LABELS)
    assert torch.allclose(outcome.loss, expected)
    assert torch.equal(outcome.logits, LOGITS)


def test_a_network_without_such_heads_is_refused() -> None:
    with pytest.raises(UserError, match="Linear has no method forward_with_auxiliary"):
        WithAuxiliaryHeads().setup(nn.Linear(2, 2), device=torch.device("cpu"))


@pytest.mark.parametrize("value", [-0.1, 1.0, float("nan"), "0.1", True])
def test_shares_are_checked(value: Any) -> None:
    with pytest.raises(UserError, match="label_smoothing"):
        CrossEntropy(label_smoothing=value)


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan"), "0.4"])
def test_weights_are_checked(value: Any) -> None:
    with pytest.raises(UserError, match="weight="):
        WithAuxiliaryHeads(weight=value)


def test_defaults_follow_network_and_recipe() -> None:
    darts = create_model("darts_cifar", num_classes=3)
    chosen = default_objective(darts, Recipe(auxiliary_weight=0.4, label_smoothing=0.0)).describe()
    assert chosen == {"name": "with_auxiliary_heads", "weight": 0.4, "label_smoothing": 0.0}
    assert default_objective(darts, Recipe()).describe()["name"] == "cross_entropy"
    plain = default_objective(nn.Linear(2, 2), Recipe(auxiliary_weight=0.4))
    assert plain.describe() == {"name": "cross_entropy", "label_smoothing": 0.1}
