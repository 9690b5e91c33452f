"""The trained network that is made faster."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from globalcnn.condense.recover import check_classes
from globalcnn.data import DataSource, load_data
from globalcnn.data.memory import TensorSource
from globalcnn.errors import UserError
from globalcnn.models import Card, load_with_card
from globalcnn.models.weights import checksum


@dataclass(frozen=True)
class Original:
    """A network with its weights, in eval mode, and the card of its file."""

    model: nn.Module
    card: Card

    @classmethod
    def load(cls, path: Path) -> Original:
        """The network in a run folder or weights file."""
        model, card = load_with_card(path)
        return cls(model.eval(), card)

    @property
    def name(self) -> str:
        """What the network is called."""
        return self.card.label

    @property
    def size(self) -> tuple[int, int, int]:
        """(C, H, W) of its images."""
        return (self.card.in_chans, *self.card.image_size)

    def weights(self) -> str:
        """The checksum of its weights."""
        return checksum(self.model.state_dict())

    def example(self, batch: int) -> Tensor:
        """A batch of noise."""
        return torch.randn(batch, *self.size, generator=torch.Generator().manual_seed(0))

    def data(
        self, name: str, data_dir: Path | None, *, validation: float, train_images: int | None
    ) -> DataSource:
        """The data by its name, normalised as in the training of the network; train_images: at most so many."""
        data = load_data(name, data_dir=data_dir, validation=validation, seed=0)
        check_classes(self.card, data)
        if self.card.mean and self.card.std:
            data = data.with_constants(self.card.mean, self.card.std)
        return data if train_images is None else first_images(data, train_images)


def first_images(data: DataSource, count: int) -> DataSource:
    """The data with the first `count` of its training images alone."""
    if not isinstance(data, TensorSource):
        raise UserError(f"--train-images is for images that are held in memory, and {data.name!r} is not")
    pool, positions = data.members["train"]
    return replace(data, members={**data.members, "train": (pool, positions[:count])})
