"""Accuracy of a file in its engine beside that of its network, on the same test images."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..data import DataSource
from ..errors import UserError
from ..models import Card
from ..train import as_trained, evaluate
from .report import Accuracy
from .target import Loaded

BATCH = 64


class InEngine(nn.Module):
    """A file in its engine as a module. batch: how many images the file takes; None: any number."""

    def __init__(self, loaded: Loaded, batch: int | None) -> None:
        super().__init__()
        self.loaded, self.batch = loaded, batch

    def forward(self, images: Tensor) -> Tensor:
        """The first output for the images; a batch that is not full is filled up with its last image."""
        if self.batch is None:
            return self.loaded.run(images)[0]
        parts = []
        for part in torch.split(images, self.batch):
            missing = self.batch - len(part)
            full = torch.cat([part, part[-1:].expand(missing, *part.shape[1:])]) if missing else part
            parts.append(self.loaded.run(full.contiguous())[0][: len(part)])
        return torch.cat(parts)


@dataclass(frozen=True)
class LabelledImages:
    """Data with the constants of the training. numbers: the network's number of each class, where they
    differ; classes: how many outputs the network has.
    """

    data: DataSource
    numbers: Tensor | None
    classes: int

    @classmethod
    def of(cls, data: DataSource, card: Card | None, example: Tensor, *, dynamic: bool) -> LabelledImages:
        """Raises `UserError` for data without test images, of classes that the card does not name, or whose
        images the file cannot take.
        """
        if not data.size("test"):
            raise UserError(f"the data {data.name!r} has no test images")
        wanted, got = tuple(example.shape[1:]), (data.in_chans, *data.image_size)
        if got != wanted and not (dynamic and got[0] == wanted[0]):
            raise UserError(
                f"the images of {data.name!r} are {'x'.join(map(str, got))} and the file takes "
                f"{'x'.join(map(str, wanted))}: load the data with that image_size, or export for the data's"
            )
        if card is None:
            return cls(data, None, len(data.classes))
        return cls(*as_trained(card, data), card.num_classes)

    def accuracies(self, loaded: Loaded, network: nn.Module, *, batch: int | None) -> Accuracy:
        """Of the file and of the network. batch: how many images the file takes; None: any number."""
        found = []
        for model in (InEngine(loaded, batch), network):
            loader = self.data.loader("test", BATCH, shuffle=False, device="cpu", skip_damaged=True)
            found.append(evaluate(model, loader, self.classes, labels_as=self.numbers))
        return Accuracy(self.data.name, found[0].images, found[0].accuracy, found[1].accuracy)
