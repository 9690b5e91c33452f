"""Augmentation of training images: its settings, and crop, flip and cutout of whole batches at once."""

from __future__ import annotations

from dataclasses import dataclass, fields

import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError, UserTypeError
from .checks import whole_number
from .order import derived_generator
from .transforms import checked_rand_augment


@dataclass(frozen=True)
class Augmentation:
    """Settings of the augmentation of training images; everything is off by default.

    crop_padding: pixels of black put around the raw image, out of which a crop of the old size is taken at a
        uniformly drawn place (4 for CIFAR, as in He et al. 2016, section 4.2).  For folders of large images
        any number above 0 means a random resized crop (area 8 % to 100 %, aspect 3/4 to 4/3) instead.
    flip: mirror left and right with probability 1/2.  Wrong for digits and letters.
    cutout: side in pixels of a square set to zero after normalisation (16 for CIFAR-10), whose centre is
        uniform over the image, so that the square is clipped at the border (DeVries and Taylor 2017; as in
        DARTS).
    rand_augment: timm's RandAugment after the crop, such as "rand-m9-mstd0.5" (Cubuk et al. 2020).  It works
        on one picture at a time on the CPU, which is slow for images that live on a GPU.
    random_erasing: the share of images in which a rectangle becomes noise after normalisation (Zhong et al.
        2020, with timm's sizes).
    fixed_views: 0 for new random numbers every epoch. With n each image has n augmented versions, view v with
        the random numbers of epoch v, and every epoch shows another of them, so that what a teacher says of
        them can be computed once. Only for images held in memory.

    Raises `UserError` for negative or fractional numbers and for a RandAugment that timm does not know.

    >>> Augmentation(crop_padding=4, flip=True).cutout
    0
    """

    crop_padding: int = 0
    flip: bool = False
    cutout: int = 0
    rand_augment: str = ""
    random_erasing: float = 0.0
    fixed_views: int = 0

    def __post_init__(self) -> None:
        for name in ("crop_padding", "cutout", "fixed_views"):
            object.__setattr__(self, name, whole_number(name, getattr(self, name), least=0))
        if not isinstance(self.flip, bool):
            raise UserTypeError(f"flip={self.flip!r} must be True or False")
        checked_rand_augment(self.rand_augment)
        if isinstance(self.random_erasing, bool) or not isinstance(self.random_erasing, (int, float)):
            raise UserTypeError(f"random_erasing={self.random_erasing!r} must be a number such as 0.2, or 0")
        if not 0 <= self.random_erasing <= 1:
            raise UserError(
                f"random_erasing={self.random_erasing!r} is a share of the images: it must be from 0 to 1"
            )


def check_augmentation(
    augmentation: Augmentation | None, image_size: tuple[int, int], *, in_memory: bool = False
) -> None:
    """Raise `UserError` if the augmentation could remove a whole image of `image_size` (height, width), or
    fixes views of images that are not held in memory.
    """
    if augmentation is None:
        return
    if not isinstance(augmentation, Augmentation):
        raise UserTypeError(f"augmentation={augmentation!r} must be an Augmentation or None")
    if augmentation.fixed_views and not in_memory:
        raise UserError(
            f"fixed_views={augmentation.fixed_views} needs images that are held in memory, and these are "
            "read from files: take fixed_views=0"
        )
    side = min(image_size)
    for name, value, most in (
        ("crop_padding", augmentation.crop_padding, side - 1),
        ("cutout", augmentation.cutout, side),
    ):
        if value > most:
            height, width = image_size
            raise UserError(
                f"{name}={value} is too large for images of {height} x {width}: it must be at most {most}"
            )


@dataclass(frozen=True)
class Draws:
    """The random numbers of one epoch, one of each per image of the split; int64 or bool, (N,).

    top, left: where the crop starts in the padded image; mirrored: whether to flip;
    row, column: the centre of the cutout; erased: whether to erase a rectangle.
    """

    top: Tensor
    left: Tensor
    mirrored: Tensor
    row: Tensor
    column: Tensor
    erased: Tensor

    def __getitem__(self, which: Tensor | slice) -> Draws:
        return Draws(*(getattr(self, f.name)[which] for f in fields(self)))

    def to(self, device: torch.device) -> Draws:
        return Draws(*(getattr(self, f.name).to(device) for f in fields(self)))


def draw(
    augmentation: Augmentation, count: int, *, image_size: tuple[int, int], seed: int, epoch: int
) -> Draws:
    """Draw for all `count` images of a split at once.

    What happens to an image then depends on (seed, epoch, image) only, not on the batch, the rank or the
    device. Each kind has its own generator, so that switching one on or off leaves the others as they were.
    """

    def integers(below: int, purpose: str) -> Tensor:
        return torch.randint(below, (count,), generator=derived_generator(seed, epoch, purpose))

    def shares(purpose: str) -> Tensor:
        return torch.rand(count, generator=derived_generator(seed, epoch, purpose), dtype=torch.float64)

    places = 2 * augmentation.crop_padding + 1
    height, width = image_size
    return Draws(
        top=integers(places, "crop top"),
        left=integers(places, "crop left"),
        mirrored=integers(2, "flip").bool(),
        row=integers(height, "cutout row"),
        column=integers(width, "cutout column"),
        erased=shares("erased") < augmentation.random_erasing,
    )


def view_of_epoch(count: int, *, views: int, seed: int, epoch: int) -> Tensor:
    """Which of `views` fixed views each of `count` images shows in an epoch, int64 (count,).

    Any `views` epochs in succession show each view of an image once; where it begins is drawn for each image.

    >>> [view_of_epoch(1, views=2, seed=0, epoch=e).item() for e in range(4)] in ([0, 1, 0, 1], [1, 0, 1, 0])
    True
    """
    return (torch.randint(views, (count,), generator=derived_generator(seed, "view")) + epoch) % views


def random_crop(images: Tensor, padding: int, top: Tensor, left: Tensor) -> Tensor:
    """Pad (B, C, H, W) with `padding` zeros all around; cut H x W out of image b from (top[b], left[b])."""
    height, width = images.shape[-2:]
    windows = F.pad(images, (padding,) * 4).unfold(2, height, 1).unfold(3, width, 1)
    return windows[torch.arange(len(images), device=images.device), :, top, left]


def random_flip(images: Tensor, mirrored: Tensor) -> Tensor:
    """Mirror left and right the images (B, C, H, W) for which `mirrored` (B,) is true."""
    return torch.where(mirrored[:, None, None, None], images.flip(-1), images)


def cutout(images: Tensor, side: int, row: Tensor, column: Tensor) -> Tensor:
    """Set to zero, in place, a square of `side` pixels in each image of (B, C, H, W).

    Its centre in image b is (row[b], column[b]); its first row is row - side // 2.  What lies outside
    the image is clipped.
    """

    def covered(length: int, centre: Tensor) -> Tensor:
        offset = torch.arange(length, device=images.device) - (centre[:, None] - side // 2)
        return (offset >= 0) & (offset < side)

    height, width = images.shape[-2:]
    hole = covered(height, row)[:, None, :, None] & covered(width, column)[:, None, None, :]
    return images.masked_fill_(hole, 0.0)  # out of place it would lose the channels-last format
