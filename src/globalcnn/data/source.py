"""What every source of images offers: facts about the data, and loaders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from ..errors import UserError, unknown_name
from .augment import Augmentation

SPLITS = ("train", "val", "test")


class Loader(ABC):
    """Batches of one split, epoch after epoch.

    Iterating yields (images, labels): float32 (B, C, H, W), normalised to (value / 255 - mean) / std, and
    int64 (B,), both on the loader's device.  `len` is the number of batches.  Iterating twice without
    `set_epoch` in between yields the same batches twice.
    """

    @property
    @abstractmethod
    def images(self) -> int:
        """How many images this rank gets in one epoch."""

    @abstractmethod
    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (0, 1, ...) whose order and augmentation the next iteration has."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True, eq=False, repr=False)
class DataSource(ABC):
    """Images with labels in the splits train, val and test.

    name: the name it was loaded by; classes: one name per label 0, 1, ...; in_chans: channels;
    image_size: (height, width) in pixels of what the loaders yield;
    mean, std: per channel, in units where black is 0 and white is 1.
    """

    name: str
    classes: tuple[str, ...]
    in_chans: int
    image_size: tuple[int, int]
    mean: tuple[float, ...]
    std: tuple[float, ...]

    @abstractmethod
    def size(self, split: str) -> int:
        """The number of images of "train", "val" or "test"; 0 for "val" if nothing is held out."""

    @abstractmethod
    def loader(
        self,
        split: str,
        batch_size: int,
        *,
        augmentation: Augmentation | None = None,
        shuffle: bool | None = None,
        drop_last: bool = False,
        seed: int = 0,
        device: str | int | torch.device = "cpu",
        rank: int = 0,
        world_size: int = 1,
        channels_last: bool = False,
        workers: int | None = None,
    ) -> Loader:
        """A `Loader` of one split.

        augmentation: None (default) for none, whatever the split.
        shuffle: a new order every epoch; default: only for "train".  Shuffled loaders are for training: all
            ranks get equally many batches (images are repeated where needed) and a last batch of a single
            image is left out.  Unshuffled ones are for evaluation: every image comes exactly once over all
            ranks, and ranks may have different lengths.
        drop_last: leave out the last batch if it is not full.
        seed: of order and augmentation, which depend on (seed, epoch, rank) alone; the same on all ranks.
        rank, world_size: which share of the images; one process has rank 0 of 1.
        channels_last: the memory format of the images.
        workers: processes that decode (folders of large images; default: one per CPU core, 8 at most, and
            0 decodes in this process).  Sources held in memory need none and ignore it.

        Raises `UserError` for an unknown or empty split, and for numbers that do not fit.
        """

    def __repr__(self) -> str:
        height, width = self.image_size
        sizes = ", ".join(f"{split} {self.size(split)}" for split in SPLITS)
        shape = f"{self.in_chans} x {height} x {width}"
        return f"<{type(self).__name__} {self.name!r}: {len(self.classes)} classes, {shape}, {sizes}>"


def check_split(split: str) -> None:
    """Raise `UserError` unless `split` is a known name."""
    if split not in SPLITS:
        raise unknown_name("split", split, SPLITS)


def check_split_has_images(source: DataSource, split: str) -> None:
    """Raise `UserError` if the split is unknown or has no images."""
    if source.size(split) == 0:
        raise UserError(
            f"the data {source.name!r} has no {split!r} split: load it with a validation fraction above 0, "
            "such as validation=0.1"
        )
