"""The interface of data sources and their loaders."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import UserError, unknown_name
from .augment import Augmentation

if TYPE_CHECKING:
    from typing_extensions import Self

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

    @property
    @abstractmethod
    def damaged(self) -> tuple[str, ...]:
        """A message for each image skipped so far; empty unless the loader was made with `skip_damaged`."""

    @property
    def rows(self) -> Tensor | None:
        """Of the batch that was yielded last, which fixed view of which image each row shows, int64 (B,):
        view * images of the split + position in the split; None without fixed views (`Augmentation`).
        """
        return None

    @abstractmethod
    def set_epoch(self, epoch: int) -> None:
        """Choose the epoch (0, 1, ...) whose order and augmentation the next iteration has."""

    @abstractmethod
    def __len__(self) -> int: ...

    @abstractmethod
    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]: ...


@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class DataSource(ABC):
    """Images with labels in the splits train, val and test.

    name: the name it was loaded by; classes: one name per label 0, 1, ...; in_chans: channels;
    image_size: (height, width) in pixels of what the loaders yield;
    mean, std: per channel, in units where black is 0 and white is 1; None if there are no training images to
        compute them from: `with_constants` gives those of a training;
    notes: how the data was read and what was skipped, as sentences for the user.
    """

    name: str
    classes: tuple[str, ...]
    in_chans: int
    image_size: tuple[int, int]
    mean: tuple[float, ...] | None
    std: tuple[float, ...] | None
    notes: tuple[str, ...] = ()

    @abstractmethod
    def size(self, split: str) -> int:
        """The number of images of "train", "val" or "test"; 0 for "val" if nothing is held out, and for
        "train" if the data is for evaluation alone.
        """

    @property
    def splits(self) -> tuple[str, ...]:
        """The names of the splits that have images."""
        return tuple(split for split in SPLITS if self.size(split))

    @abstractmethod
    def damaged(self, split: str) -> tuple[str, ...]:
        """A message for each damaged image of the split, as far as a cheap check finds them.

        Images in memory have all been decoded. For files, the header and the end are checked, for shards the
        end: other damage is found only when the image is decoded.
        """

    def check_images(self, splits: Sequence[str] = SPLITS) -> None:
        """Raise a `UserError` that names the images of these splits that `damaged` finds."""
        found = [message for split in splits if self.size(split) for message in self.damaged(split)]
        if len(found) == 1:
            raise UserError(found[0])
        if found:
            more = f"; and {len(found) - 5} more" if len(found) > 5 else ""
            raise UserError(f"{len(found)} images cannot be read: {'; '.join(found[:5])}{more}")

    def with_constants(self, mean: Sequence[float], std: Sequence[float]) -> Self:
        """The same images, normalised with these constants, such as those of a training; one per channel."""
        for name, values in (("mean", mean), ("std", std)):
            if len(values) != self.in_chans:
                raise UserError(
                    f"{name}={tuple(values)} has {len(values)} numbers, and the images of {self.name!r} have "
                    f"{self.in_chans} channels: give one for each"
                )
        if not all(value > 0 for value in std):
            raise UserError(f"std={tuple(std)} must be numbers above 0: images are divided by it")
        return replace(self, mean=tuple(map(float, mean)), std=tuple(map(float, std)))

    def identity(self) -> dict[str, object]:
        """What must be the same for a run to be resumed: name, classes and the sizes of "train" and "val".

        Test images do not count: they may be replaced, removed or added at any time.
        """
        classes = list(self.classes)
        return {
            "name": self.name,
            "classes": classes,
            "train": self.size("train"),
            "val": self.size("val"),
        }

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
        skip_damaged: bool = False,
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
        skip_damaged: leave out images that cannot be read, and list them in `Loader.damaged`, so that the
            evaluation of a finished training is never lost; default: raise `UserError` when one is reached.

        Raises `UserError` for an unknown or empty split, for numbers that do not fit, and for data without
        constants.
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
    if source.size(split) > 0:
        return
    if split == "val" and source.size("train"):
        raise UserError(
            f"the data {source.name!r} has no 'val' split: load it with a validation fraction above 0, such "
            "as validation=0.1"
        )
    raise UserError(
        f"the data {source.name!r} has no {split!r} split, only {', '.join(source.splits)}: give data that "
        "has such images"
    )


def constants_of(source: DataSource) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """(mean, std), or a `UserError` if the source has none."""
    if source.mean is None or source.std is None:
        raise UserError(
            f"the data {source.name!r} has no training images to compute mean and deviation from: take those "
            "of the training, with with_constants(mean, std)"
        )
    return source.mean, source.std
