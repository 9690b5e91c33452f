"""Images in WebDataset shards, read sequentially by timm's reader."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor
from torch.utils.data import DataLoader

from ..errors import UserError
from .augment import Augmentation, check_augmentation, draw
from .checks import checked_device, whole_number
from .memory import Normalisation, finished
from .order import Order, derived_generator, derived_seed
from .shard_ends import damaged_shards
from .shard_reader import Plan, Samples, plan_of
from .shards import ShardFolder, Shards, held_out_shards
from .source import SPLITS, DataSource, Loader, check_split, check_split_has_images, constants_of
from .streamed import (
    IMAGENET_MEAN,
    IMAGENET_STD,
    MOST_WORKERS,
    Batch,
    collate,
    training_transform,
)
from .transforms import image_seeds


@final
@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class ShardedSource(DataSource):
    """Images in .tar files; always three channels, transformed as in `StreamedSource`.

    A training epoch is as many whole batches as the images fill, rounded up. Every process, and in it every
    worker, reads shards of its own, in an order drawn for (seed, epoch), and draws the next image from a
    buffer; one that has run out of images before the epoch ends starts again, one with more leaves the rest.
    Evaluation reads each image exactly once.  Images become pixels as in folders (`pictures`).

    The number of workers is part of the order. The default does not depend on the machine: 8, or fewer where
    a process has fewer shards or batches.
    """

    shards: dict[str, Shards]

    def size(self, split: str) -> int:
        check_split(split)
        return self.shards[split].images

    def damaged(self, split: str) -> tuple[str, ...]:
        check_split(split)
        return damaged_shards(self.shards[split].paths)

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
    ) -> ShardedLoader:
        check_split_has_images(self, split)
        check_augmentation(augmentation, self.image_size)
        shards = self.shards[split]
        mixed = split == "train" if shuffle is None else bool(shuffle)
        # checks the numbers; the reader decides the order
        Order(count=shards.images, batch_size=batch_size, seed=seed, rank=rank, world_size=world_size)
        if mixed and len(shards.paths) < world_size:
            raise UserError(
                f"{self.name!r} has {len(shards.paths)} shards of {split} for {world_size} processes, and "
                "each needs one of its own: make more and smaller shards, or take fewer processes"
            )
        most = MOST_WORKERS if workers is None else whole_number("workers", workers, least=0)
        plan = plan_of(
            shards, batch_size=batch_size, mixed=mixed, drop_last=drop_last, rank=rank, world_size=world_size
        )
        return ShardedLoader(
            plan,
            split=split,
            seed=seed,
            classes=len(self.classes),
            image_size=self.image_size,
            augmentation=augmentation,
            constants=constants_of(self),
            device=checked_device(device),
            channels_last=channels_last,
            workers=min(most, plan.most_workers),
            skip_damaged=skip_damaged,
        )


def sharded_source(
    name: str,
    folder: ShardFolder,
    *,
    validation: float,
    seed: int,
    image_size: tuple[int, int],
    notes: tuple[str, ...] = (),
) -> ShardedSource:
    """A `ShardedSource` whose validation split is the folder's own, or some of its training shards."""
    shards = {split: folder.splits.get(split, Shards((), ())) for split in SPLITS}
    if "train" in folder.splits and "val" not in folder.splits:
        shards["train"], shards["val"] = held_out_shards(shards["train"], validation, seed=seed)
    return ShardedSource(
        name=name,
        classes=folder.classes,
        in_chans=3,
        image_size=image_size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        notes=notes,
        shards=shards,
    )


@final
class ShardedLoader(Loader):
    """Batches decoded by workers, sent to the device as uint8 and normalised there.

    They depend on (seed, epoch, rank) and the number of workers.  A damaged shard or image raises `UserError`
    when it is reached.
    """

    def __init__(
        self,
        plan: Plan,
        *,
        split: str,
        seed: int,
        classes: int,
        image_size: tuple[int, int],
        augmentation: Augmentation | None,
        constants: tuple[tuple[float, ...], tuple[float, ...]],
        device: torch.device,
        channels_last: bool,
        workers: int,
        skip_damaged: bool,
    ) -> None:
        self._plan, self._split, self._seed, self._classes = plan, split, seed, classes
        self._image_size, self._augmentation = image_size, augmentation or Augmentation()
        self._transform = training_transform(image_size, augmentation)
        self._device, self._workers = device, workers
        self._normalise = Normalisation(*constants, device=device, channels_last=channels_last)
        self._epoch = 0
        self._skip_damaged = skip_damaged
        self._damaged: dict[str, None] = {}  # in the order found, each once

    @property
    def images(self) -> int:
        workers = max(self._workers, 1)
        return sum(self._plan.samples(worker, workers) for worker in range(workers))

    @property
    def damaged(self) -> tuple[str, ...]:
        return tuple(self._damaged)

    def set_epoch(self, epoch: int) -> None:
        self._epoch = whole_number("epoch", epoch, least=0)

    def __len__(self) -> int:
        workers, size = max(self._workers, 1), self._plan.batch_size
        return sum(-(-self._plan.samples(worker, workers) // size) for worker in range(workers))

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        if not self._plan.shards.paths:  # more processes than shards to evaluate
            return
        epoch, augmentation = self._epoch, self._augmentation
        samples = Samples(
            self._plan,
            self._transform,
            split=self._split,
            seed=self._seed,
            epoch=epoch,
            classes=self._classes,
            skip_damaged=self._skip_damaged,
        )
        for number, batch in enumerate(self._batches(samples)):
            if batch.failures and not self._skip_damaged:
                raise UserError(batch.failures[0].message)
            self._damaged |= dict.fromkeys(failure.message for failure in batch.failures)
            if not len(batch.labels):
                continue
            images = batch.images.to(self._device, non_blocking=True)
            labels = batch.labels.to(self._device, non_blocking=True)
            seed = derived_seed(self._seed, self._plan.rank, number, "batch")
            draws = draw(augmentation, len(images), image_size=self._image_size, seed=seed, epoch=epoch)
            seeds = image_seeds(seed, epoch, torch.arange(len(images)), "erasing")
            here = draws.to(self._device)
            yield finished(images, augmentation, here, self._normalise, seeds), labels

    def _batches(self, samples: Samples) -> Iterator[Batch]:
        seeds = derived_generator(self._seed, self._epoch, self._plan.rank, "workers")
        with warnings.catch_warnings():
            # the number of workers is part of the order, so it is not lowered where there are few cores
            warnings.filterwarnings("ignore", message="This DataLoader will create")
            return iter(
                DataLoader(
                    samples,
                    batch_size=self._plan.batch_size,
                    num_workers=self._workers,
                    collate_fn=collate,
                    pin_memory=self._device.type == "cuda",
                    generator=seeds,
                )
            )
