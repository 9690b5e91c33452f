"""How good a network is on a split of the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Loader


@dataclass(frozen=True)
class Evaluation:
    """images: how many; accuracy, top5: shares of 1 (top5 is None below 6 classes); loss: cross-entropy;
    confusion: counts[true class][predicted class].
    """

    images: int
    accuracy: float
    top5: float | None
    loss: float
    confusion: tuple[tuple[int, ...], ...]

    def confusions(self, a: int, b: int) -> int:
        """Images of class `a` taken for `b` and of `b` taken for `a`."""
        return self.confusion[a][b] + self.confusion[b][a]

    @property
    def per_class(self) -> tuple[float, ...]:
        """Accuracy of each class; NaN for a class without images."""
        return tuple(row[i] / sum(row) if sum(row) else float("nan") for i, row in enumerate(self.confusion))


@torch.no_grad()
def tally(model: nn.Module, loader: Loader, num_classes: int) -> Tensor:
    """Sums over the loader, float64 (2 + C C): loss, correct among the first five, then the confusion counts.

    Tallies of several processes add up. The model is put into eval mode and back.
    """
    was_training = model.training
    model.eval()
    device = next(model.parameters()).device
    total = torch.zeros(2 + num_classes * num_classes, dtype=torch.float64, device=device)
    try:
        for images, labels in loader:
            logits = model(images).float()
            total[0] += F.cross_entropy(logits, labels, reduction="sum").double()
            if num_classes > 5:
                total[1] += (logits.topk(5, dim=1).indices == labels[:, None]).sum()
            pairs = labels * num_classes + logits.argmax(dim=1)
            total[2:] += torch.bincount(pairs, minlength=num_classes * num_classes)
    finally:
        model.train(was_training)
    return total


def evaluation(total: Tensor, num_classes: int) -> Evaluation:
    """The figures of a tally."""
    counts = total[2:].reshape(num_classes, num_classes).long().cpu()
    images = int(counts.sum())
    divisor = max(images, 1)
    return Evaluation(
        images=images,
        accuracy=int(counts.diagonal().sum()) / divisor,
        top5=total[1].item() / divisor if num_classes > 5 else None,
        loss=total[0].item() / divisor,
        confusion=tuple(tuple(row) for row in counts.tolist()),
    )


def evaluate(model: nn.Module, loader: Loader, num_classes: int) -> Evaluation:
    """Accuracy, loss and confusions of `model` over all batches of `loader`, in one process."""
    return evaluation(tally(model, loader, num_classes), num_classes)
