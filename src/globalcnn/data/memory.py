"""Sources small enough to live on the device as one uint8 tensor, and their loader."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field, fields
from typing import final

import torch
from torch import Tensor

from ..errors import UserError
from .arrays import Part, Parts, channel_statistics, resized
from .augment import (
    Augmentation,
    Draws,
    check_augmentation,
    cutout,
    draw,
    random_crop,
    random_flip,
    view_of_epoch,
)
from .checks import checked_device, whole_number
from .order import Order
from .source import SPLITS, DataSource, Loader, check_split, check_split_has_images, constants_of
from .split import held_out
from .transforms import image_seeds, rand_augment_transform, rand_augmented, randomly_erased


@final
@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class TensorSource(DataSource):
    """Images held in memory.

    pools: the parts as read, on the CPU; members: for each split its pool and its positions there (training
    and validation images share a pool, so that nothing is held twice).  The first loader on a device copies
    the pool there, where it stays as long as this source lives.
    """

    pools: dict[str, Part]
    members: dict[str, tuple[str, Tensor]]
    resident: dict[tuple[str, torch.device], Part] = field(default_factory=dict)

    def size(self, split: str) -> int:
        check_split(split)
        return len(self.members[split][1])

    def damaged(self, split: str) -> tuple[str, ...]:
        check_split(split)
        return ()  # all were decoded when the source was made

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
    ) -> TensorLoader:
        check_split_has_images(self, split)
        mean, std = constants_of(self)
        check_augmentation(augmentation, self.image_size, in_memory=True)
        if augmentation is not None and augmentation.rand_augment and self.in_chans not in (1, 3):
            raise UserError(
                f"rand_augment={augmentation.rand_augment!r} needs images of 1 or 3 channels, and "
                f"{self.name!r} has {self.in_chans}: rand_augment='' leaves it out"
            )
        if workers is not None:
            whole_number("workers", workers, least=0)
        order = Order(
            count=self.size(split),
            batch_size=batch_size,
            shuffle=split == "train" if shuffle is None else bool(shuffle),
            drop_last=drop_last,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        pool, members = self.members[split]
        part = self._on(checked_device(device), pool)
        return TensorLoader(
            part,
            members,
            order,
            augmentation=augmentation,
            mean=mean,
            std=std,
            channels_last=channels_last,
        )

    def checksum(self, split: str) -> str:
        """sha256 over pixels, labels and order of a split's images, and the constants they are divided by."""
        check_split_has_images(self, split)
        pool, members = self.members[split]
        part = self.pools[pool]
        digest = hashlib.sha256(repr((tuple(part.images.shape[1:]), self.mean, self.std)).encode())
        for chunk in torch.split(members, 4096):
            digest.update(part.images[chunk].contiguous().numpy().data)
            digest.update(part.labels[chunk].contiguous().numpy().data)
        return digest.hexdigest()

    def _on(self, device: torch.device, pool: str) -> Part:
        if (pool, device) not in self.resident:
            part = self.pools[pool]
            self.resident[pool, device] = Part(part.images.to(device), part.labels.to(device))
        return self.resident[pool, device]


def tensor_source(
    name: str,
    parts: Parts,
    *,
    validation: float,
    seed: int,
    image_size: tuple[int, int] | None,
    constants: tuple[tuple[float, ...], tuple[float, ...]] | None = None,
    notes: tuple[str, ...] = (),
) -> TensorSource:
    """A `TensorSource` whose validation split is the source's own, or held out of the training images.

    constants: published (mean, std); default: computed over all training images as read, the held-out ones
    included, so that a model is evaluated with the same constants whatever `validation` and `seed` are; None
    if there are no training images.
    """
    given = {"train": parts.train, "val": parts.val, "test": parts.test}
    pools = {pool: part for pool, part in given.items() if part is not None}
    members = {
        split: (split, torch.arange(len(pools[split]))) if split in pools else ("test", torch.arange(0))
        for split in SPLITS
    }
    if parts.train is not None and parts.val is None:
        kept, held = held_out(parts.train.labels, validation, seed=seed)
        members["train"], members["val"] = ("train", kept), ("train", held)
    if image_size is not None:
        pools = {pool: Part(resized(part.images, image_size), part.labels) for pool, part in pools.items()}
    if constants is None and "train" in pools:
        constants = channel_statistics(pools["train"].images)
    mean, std = constants or (None, None)
    channels, height, width = pools["test"].images.shape[1:]
    return TensorSource(
        name=name,
        classes=parts.classes,
        in_chans=channels,
        image_size=(height, width),
        mean=mean,
        std=std,
        notes=(*parts.notes, *notes),
        pools=pools,
        members=members,
    )


@final
class TensorLoader(Loader):
    """Batches gathered, augmented and normalised on the device that holds the images."""

    def __init__(
        self,
        part: Part,
        members: Tensor,
        order: Order,
        *,
        augmentation: Augmentation | None,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        channels_last: bool,
    ) -> None:
        self._part = part
        self._members = members
        self._order = order
        self._augmentation = augmentation or Augmentation()
        self._rand_augment = (
            rand_augment_transform(self._augmentation.rand_augment, _size(part.images), mean)
            if self._augmentation.rand_augment
            else None
        )
        self._normalise = Normalisation(mean, std, device=part.images.device, channels_last=channels_last)
        self._epoch = 0
        self._rows: Tensor | None = None

    @property
    def images(self) -> int:
        return self._order.images

    @property
    def damaged(self) -> tuple[str, ...]:
        return ()

    @property
    def rows(self) -> Tensor | None:
        return self._rows

    def set_epoch(self, epoch: int) -> None:
        self._epoch = whole_number("epoch", epoch, least=0)

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        device = self._part.images.device
        seed, augmentation, count = self._order.seed, self._augmentation, self._order.count
        positions = self._order.positions(self._epoch)
        members = self._members[positions].to(device)
        epochs, draws = self._draws()  # of each image of the split
        rows = (epochs * count + torch.arange(count))[positions] if augmentation.fixed_views else None
        epochs, draws = epochs[positions], draws[positions].to(device)
        for start in range(0, len(positions), self._order.batch_size):
            batch = slice(start, start + self._order.batch_size)
            chosen, here = members[batch], draws[batch]
            images = self._part.images[chosen]
            if augmentation.crop_padding:
                images = random_crop(images, augmentation.crop_padding, here.top, here.left)
            if self._rand_augment is not None:
                seeds = image_seeds(seed, epochs[batch], positions[batch], "rand augment")
                images = rand_augmented(images, self._rand_augment, seeds)
            seeds = image_seeds(seed, epochs[batch], positions[batch], "erasing")
            self._rows = None if rows is None else rows[batch]
            yield finished(images, augmentation, here, self._normalise, seeds), self._part.labels[chosen]

    def _draws(self) -> tuple[Tensor, Draws]:
        """The epoch whose random numbers each image has, int64 (count,), and these numbers."""
        count, seed, views = self._order.count, self._order.seed, self._augmentation.fixed_views
        size = _size(self._part.images)

        def drawn(epoch: int) -> Draws:
            return draw(self._augmentation, count, image_size=size, seed=seed, epoch=epoch)

        if not views:
            return torch.full((count,), self._epoch), drawn(self._epoch)
        view = view_of_epoch(count, views=views, seed=seed, epoch=self._epoch)
        each, images = [drawn(v) for v in range(views)], torch.arange(count)
        chosen = [torch.stack([getattr(d, f.name) for d in each])[view, images] for f in fields(Draws)]
        return view, Draws(*chosen)


def finished(
    images: Tensor, augmentation: Augmentation, draws: Draws, normalise: Normalisation, seeds: list[int]
) -> Tensor:
    """Flip, normalise, cut out and erase: the steps after the crop, on a batch of uint8 images on its device.

    draws, seeds: the random numbers of the batch's images; the seeds are those of erasing.
    """
    if augmentation.flip:
        images = random_flip(images, draws.mirrored)
    images = normalise(images)
    if augmentation.cutout:
        images = cutout(images, augmentation.cutout, draws.row, draws.column)
    if augmentation.random_erasing:
        images = randomly_erased(images, draws.erased, seeds)
    return images


def _size(images: Tensor) -> tuple[int, int]:
    height, width = images.shape[-2:]
    return height, width


class Normalisation:
    """uint8 images to float32 (value / 255 - mean) / std, per channel, in the wanted memory format."""

    def __init__(
        self, mean: tuple[float, ...], std: tuple[float, ...], *, device: torch.device, channels_last: bool
    ) -> None:
        self._mean = torch.tensor(mean, device=device).view(-1, 1, 1) * 255
        self._std = torch.tensor(std, device=device).view(-1, 1, 1) * 255
        self._format = torch.channels_last if channels_last else torch.contiguous_format

    def __call__(self, images: Tensor) -> Tensor:
        return images.to(torch.float32, memory_format=self._format).sub_(self._mean).div_(self._std)
