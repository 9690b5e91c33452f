"""Evaluation of a network on a split of the data."""

from __future__ import annotations

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..data import Loader
from ..errors import UserError


class NotFinite(UserError):
    """The network's logits are not finite, so its accuracy is meaningless."""


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
def tally(model: nn.Module, loader: Loader, num_classes: int, *, labels_as: Tensor | None = None) -> Tensor:
    """Sums over the loader, float64 (3 + C C): loss, correct among the first five, images whose logits are
    not finite, then the confusion counts.

    Tallies of several processes add up. The model is put into eval mode and back.

    labels_as: int64; the network's number of the class that the data numbers 0, 1, ...
    """
    was_training = model.training
    model.eval()
    device = next((t.device for t in (*model.parameters(), *model.buffers())), torch.device("cpu"))
    total = torch.zeros(3 + num_classes * num_classes, dtype=torch.float64, device=device)
    numbers = None if labels_as is None else labels_as.to(device)
    try:
        for images, labels in loader:
            logits = checked_logits(model(images), len(images), num_classes).float()
            if numbers is not None:
                labels = numbers[labels]
            total[0] += F.cross_entropy(logits, labels, reduction="sum").double()
            if num_classes > 5:
                total[1] += (logits.topk(5, dim=1).indices == labels[:, None]).sum()
            total[2] += (~torch.isfinite(logits)).any(dim=1).sum()
            pairs = labels * num_classes + logits.argmax(dim=1)
            total[3:] += torch.bincount(pairs, minlength=num_classes * num_classes)
    finally:
        model.train(was_training)
    return total


def checked_logits(output: object, images: int, num_classes: int | None = None) -> Tensor:
    """The output of a network if it is logits (images, classes); else a `UserError` that describes it."""
    if (
        isinstance(output, Tensor)
        and output.ndim == 2
        and len(output) == images
        and num_classes in (None, output.shape[1])
    ):
        return output
    found = (
        f"a tensor of shape {tuple(output.shape)}" if isinstance(output, Tensor) else type(output).__name__
    )
    wanted = f"{images}, {'classes' if num_classes is None else num_classes}"
    way_out = "" if isinstance(output, Tensor) else "; wrap it in a module that returns them alone"
    raise UserError(
        f"the network must return logits of shape ({wanted}) for {images} images, "
        f"and returns {found}{way_out}"
    )


def evaluation(total: Tensor, num_classes: int) -> Evaluation:
    """The figures of a tally; `NotFinite` if the logits of any image are not finite."""
    counts = total[3:].reshape(num_classes, num_classes).long().cpu()
    images = int(counts.sum())
    broken = int(total[2])
    if broken:
        raise NotFinite(
            f"the network's logits are not finite (NaN or infinite) for {broken} of {images} images: its "
            "weights are damaged, or it diverged in training"
        )
    divisor = max(images, 1)
    return Evaluation(
        images=images,
        accuracy=int(counts.diagonal().sum()) / divisor,
        top5=total[1].item() / divisor if num_classes > 5 else None,
        loss=total[0].item() / divisor,
        confusion=tuple(tuple(row) for row in counts.tolist()),
    )


def evaluate(
    model: nn.Module, loader: Loader, num_classes: int, *, labels_as: Tensor | None = None
) -> Evaluation:
    """Accuracy, loss and confusions of `model` over all batches of `loader`, in one process.

    num_classes: how many logits the network gives; labels_as: see `tally`.

    Raises `NotFinite`, a `UserError`, if the logits of any image are not finite.
    """
    return evaluation(tally(model, loader, num_classes, labels_as=labels_as), num_classes)
