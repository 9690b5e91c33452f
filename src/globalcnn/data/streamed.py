"""Folders of large images: decoded by worker processes, with the ImageNet transforms of timm."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..errors import UserError
from .augment import Augmentation, check_augmentation, draw
from .checks import checked_device, whole_number
from .damage import damaged_images
from .folder import Folder, Listing
from .memory import Normalisation, finished
from .order import Order, derived_generator, derived_seed
from .pictures import decoded
from .source import SPLITS, DataSource, Loader, check_split, check_split_has_images, constants_of
from .split import held_out
from .transforms import Transform, image_seeds, imagenet_transform, seeded_transforms

IMAGENET_MEAN = (0.485, 0.456, 0.406)
IMAGENET_STD = (0.229, 0.224, 0.225)
MOST_WORKERS = 8


@final
@dataclass(frozen=True, eq=False, repr=False, kw_only=True)
class StreamedSource(DataSource):
    """Image files, opened when they are needed; always three channels, with the constants of ImageNet.

    Without augmentation an image is resized (its shorter side to image_size / 0.875) and cropped at the
    centre. `Augmentation.crop_padding` above 0 means a random resized crop instead.
    """

    listings: dict[str, Listing]

    def size(self, split: str) -> int:
        check_split(split)
        return len(self.listings[split])

    def damaged(self, split: str) -> tuple[str, ...]:
        check_split(split)
        return tuple(map(str, damaged_images(self.listings[split].paths)))

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
    ) -> StreamedLoader:
        check_split_has_images(self, split)
        check_augmentation(augmentation, self.image_size)
        order = Order(
            count=self.size(split),
            batch_size=batch_size,
            shuffle=split == "train" if shuffle is None else bool(shuffle),
            drop_last=drop_last,
            seed=seed,
            rank=rank,
            world_size=world_size,
        )
        return StreamedLoader(
            self.listings[split],
            order,
            image_size=self.image_size,
            augmentation=augmentation,
            constants=constants_of(self),
            device=checked_device(device),
            channels_last=channels_last,
            workers=default_workers() if workers is None else whole_number("workers", workers, least=0),
            skip_damaged=skip_damaged,
        )


def streamed_source(
    name: str,
    folder: Folder,
    *,
    validation: float,
    seed: int,
    image_size: tuple[int, int],
    notes: tuple[str, ...] = (),
) -> StreamedSource:
    """A `StreamedSource` whose validation split is the folder's own, or held out of the training images."""
    listings = {split: folder.splits.get(split, Listing()) for split in SPLITS}
    if "train" in folder.splits and "val" not in folder.splits:
        train = listings["train"]
        kept, held = held_out(torch.tensor(train.labels), validation, seed=seed)
        listings |= {"train": train.chosen(kept), "val": train.chosen(held)}
    return StreamedSource(
        name=name,
        classes=folder.classes,
        in_chans=3,
        image_size=image_size,
        mean=IMAGENET_MEAN,
        std=IMAGENET_STD,
        notes=notes,
        listings=listings,
    )


def default_workers() -> int:
    try:
        cores = len(os.sched_getaffinity(0))
    except AttributeError:  # not available on macOS and Windows
        cores = os.cpu_count() or 1
    return min(MOST_WORKERS, cores)


@final
class StreamedLoader(Loader):
    """Batches decoded by workers, sent to the device as uint8 and normalised there.

    The random numbers of an image's transform are seeded by (seed, epoch, image), so the batches do not
    depend on the number of workers.  A damaged image raises `UserError` when its batch is reached.
    """

    def __init__(
        self,
        listing: Listing,
        order: Order,
        *,
        image_size: tuple[int, int],
        augmentation: Augmentation | None,
        constants: tuple[tuple[float, ...], tuple[float, ...]],
        device: torch.device,
        channels_last: bool,
        workers: int,
        skip_damaged: bool,
    ) -> None:
        self._order = order
        self._skip_damaged = skip_damaged
        self._damaged: dict[str, None] = {}  # in the order found, each once
        self._image_size = image_size
        self._augmentation = augmentation
        self._device = device
        self._normalise = Normalisation(*constants, device=device, channels_last=channels_last)
        self._keys = _Keys(order)
        transform = training_transform(image_size, augmentation)
        self._batches = DataLoader(
            _Images(listing, transform, order.seed),
            batch_sampler=self._keys,
            num_workers=workers,
            collate_fn=collate,
            pin_memory=device.type == "cuda",
            persistent_workers=workers > 0,
            generator=derived_generator(order.seed, "workers"),  # else it would draw from the global one
        )

    @property
    def images(self) -> int:
        return self._order.images

    @property
    def damaged(self) -> tuple[str, ...]:
        return tuple(self._damaged)

    def set_epoch(self, epoch: int) -> None:
        self._keys.epoch = whole_number("epoch", epoch, least=0)

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        augmentation, epoch = self._augmentation or Augmentation(), self._keys.epoch
        draws = draw(
            augmentation, self._order.count, image_size=self._image_size, seed=self._order.seed, epoch=epoch
        )
        for batch, planned in zip(self._batches, self._order.batches(epoch), strict=True):
            if batch.failures and not self._skip_damaged:
                raise UserError(batch.failures[0].message)
            self._damaged |= dict.fromkeys(failure.message for failure in batch.failures)
            if not len(batch.labels):
                continue
            positions = planned[batch.places]
            images = batch.images.to(self._device, non_blocking=True)
            labels = batch.labels.to(self._device, non_blocking=True)
            here = draws[positions].to(self._device)
            seeds = image_seeds(self._order.seed, epoch, positions, "erasing")
            yield finished(images, augmentation, here, self._normalise, seeds), labels


def training_transform(image_size: tuple[int, int], augmentation: Augmentation | None) -> Transform:
    """The transform of one decoded picture that the augmentation asks for."""
    chosen = augmentation or Augmentation()
    return imagenet_transform(
        image_size, crop=chosen.crop_padding > 0, rand_augment=chosen.rand_augment, mean=IMAGENET_MEAN
    )


class _Keys:
    """The batches that workers are asked for, as lists of (position, epoch), so that they need no state."""

    def __init__(self, order: Order) -> None:
        self._order = order
        self.epoch = 0

    def __len__(self) -> int:
        return len(self._order)

    def __iter__(self) -> Iterator[list[tuple[int, int]]]:
        epoch = self.epoch
        for batch in self._order.batches(epoch):
            yield [(position, epoch) for position in batch.tolist()]


@dataclass(frozen=True)
class Failure:
    """An image that could not be read: a value, as an exception from a worker arrives as a traceback."""

    message: str


class _Images(Dataset[Any]):
    def __init__(self, listing: Listing, transform: Transform, seed: int) -> None:
        self._listing = listing
        self._transform = transform
        self._seed = seed

    def __getitem__(self, key: tuple[int, int]) -> tuple[Tensor, int] | Failure:
        position, epoch = key
        try:
            pixels = decoded(self._listing.paths[position]).convert("RGB")
        except UserError as error:
            return Failure(str(error))
        with seeded_transforms(derived_seed(self._seed, epoch, position)):
            return torch.as_tensor(self._transform(pixels)), self._listing.labels[position]


@dataclass(frozen=True, eq=False)
class Batch:
    """uint8 images (B, 3, H, W) and labels (B,) of the readable samples of a batch.

    places: their positions among all samples of the batch; failures: the other samples.
    """

    images: Tensor
    labels: Tensor
    places: Tensor
    failures: tuple[Failure, ...]

    def pin_memory(self) -> Batch:
        """The batch in pinned memory, which `DataLoader` asks for by this name."""
        return Batch(self.images.pin_memory(), self.labels.pin_memory(), self.places, self.failures)


def collate(samples: list[tuple[Tensor, int] | Failure]) -> Batch:
    """One batch of samples."""
    good = [(place, *sample) for place, sample in enumerate(samples) if not isinstance(sample, Failure)]
    failures = tuple(sample for sample in samples if isinstance(sample, Failure))
    return Batch(
        torch.stack([pixels for _, pixels, _ in good]) if good else torch.empty(0),
        torch.tensor([label for _, _, label in good], dtype=torch.int64),
        torch.tensor([place for place, _, _ in good], dtype=torch.int64),
        failures,
    )
