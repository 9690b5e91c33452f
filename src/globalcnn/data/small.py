"""Folders of small images: recognised by the headers of their files, and read into memory."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import torch
from PIL import Image

from ..errors import UserError
from .arrays import Part, Parts, resized
from .folder import Folder, Listing
from .pictures import (
    BadImage,
    decoded,
    is_deep,
    is_grey,
    is_transparent,
    opened_image,
    orientation,
    refuse_bad,
)

SMALL_SIDE = 96
MOST_SMALL_IMAGES = 200_000
MOST_SMALL_BYTES = 2 * 2**30
SAMPLED = 500  # headers read to distinguish large images from small ones
NEARLY_ALL = 0.9


@dataclass
class Survey:
    """What the headers of some files say.

    sizes: how many files have each (height, width), upright; example: one file of each size; grey: whether
    all have one channel; transparent, deep, animated, turned: how many are affected by the rules of
    `pictures`; damaged: files whose header cannot be read.
    """

    sizes: Counter[tuple[int, int]] = field(default_factory=Counter)
    example: dict[tuple[int, int], str] = field(default_factory=dict)
    grey: bool = True
    transparent: int = 0
    deep: int = 0
    animated: int = 0
    turned: int = 0
    damaged: list[BadImage] = field(default_factory=list)

    @property
    def all_small(self) -> bool:
        return all(max(size) <= SMALL_SIDE for size in self.sizes)

    @property
    def nearly_all_small_and_alike(self) -> bool:
        """Whether nine tenths of the files have one size, a small one."""
        if not self.sizes:
            return False
        size, count = self.sizes.most_common(1)[0]
        return max(size) <= SMALL_SIDE and count >= NEARLY_ALL * self.sizes.total()

    def notes(self) -> tuple[str, ...]:
        """How many images the rules change, as sentences for the user."""
        counted = (
            (self.transparent, "with transparency, which is dropped"),
            (self.deep, "of more than 8 bits a channel, scaled to 8"),
            (self.animated, "of several frames, of which the first is taken"),
            (self.turned, "rotated as their EXIF orientation says"),
        )
        return tuple(f"images {what}: {count}" for count, what in counted if count)


def survey(paths: Iterable[str]) -> Survey:
    """Read the headers of these files."""
    seen = Survey()
    for path in paths:
        try:
            with opened_image(path) as image:
                _add(seen, path, image)
        except BadImage as error:
            seen.damaged.append(error)
    return seen


def _add(seen: Survey, path: str, image: Image.Image) -> None:
    # EXIF's numbers, 1 for upright; Pillow applies that of TIFF itself
    exif = 1 if image.format == "TIFF" else orientation(image)
    width, height = image.size
    size = (width, height) if exif >= 5 else (height, width)
    seen.sizes[size] += 1
    seen.example.setdefault(size, path)
    seen.grey &= is_grey(image.mode)
    seen.transparent += is_transparent(image)
    seen.deep += is_deep(image.mode)
    seen.animated += getattr(image, "n_frames", 1) > 1
    seen.turned += exif > 1


@dataclass(frozen=True)
class SmallImages:
    """How a folder's images are held in memory: at (height, width), in mode "L" or "RGB"."""

    size: tuple[int, int]
    mode: str
    notes: tuple[str, ...]


def small_images(folder: Folder, image_size: tuple[int, int] | None) -> SmallImages | None:
    """How to hold the folder's images in memory, or None if they are too large or too many.

    They are held if none has a side of more than 96 pixels, or nine in ten have one such size; if there are
    at most 200,000, which take at most 2 GiB; and if no larger `image_size` is wanted.

    Raises `UserError` if they are, but differ in size and no `image_size` is given, and for
    files whose header is damaged.
    """
    paths = folder.paths
    if len(paths) > MOST_SMALL_IMAGES or (image_size is not None and max(image_size) > SMALL_SIDE):
        return None
    sample = survey(paths[:: -(-len(paths) // SAMPLED)])
    if sample.sizes and not (sample.all_small or sample.nearly_all_small_and_alike):
        return None
    whole = survey(paths)
    if whole.sizes and not (whole.all_small or whole.nearly_all_small_and_alike):
        return None
    refuse_bad(whole.damaged)
    size = image_size or _one_size(folder, whole)
    mode = "L" if whole.grey else "RGB"
    if len(paths) * size[0] * size[1] * len(mode) > MOST_SMALL_BYTES:
        return None
    return SmallImages(size, mode, whole.notes())


def _one_size(folder: Folder, seen: Survey) -> tuple[int, int]:
    (common, count), *others = seen.sizes.most_common()
    if not others:
        return common
    height, width = common
    odd, odd_count = others[0]
    more = seen.sizes.total() - count - odd_count
    side = max(common)
    raise UserError(
        f"the images in {folder.root!r} are small but differ in size: {count} are {height} x {width} (height "
        f"x width), {odd_count} {odd[0]} x {odd[1]}, such as {seen.example[odd]!r}"
        + (f", and {more} have other sizes" if more else "")
        + f"; fix or remove the odd ones, or give --image-size {side} (image_size={side}) to resize all"
    )


def read_small_images(folder: Folder, how: SmallImages) -> Parts:
    """Decode all images of a folder, resized if necessary; one `UserError` names all damaged ones."""
    damaged: list[BadImage] = []
    parts = {split: _part(listing, how, damaged) for split, listing in folder.splits.items()}
    refuse_bad(damaged)
    return Parts(train=parts.get("train"), test=parts["test"], val=parts.get("val"), classes=folder.classes)


def _part(listing: Listing, how: SmallImages, damaged: list[BadImage]) -> Part:
    images = torch.zeros((len(listing), len(how.mode), *how.size), dtype=torch.uint8)
    for place, path in enumerate(listing.paths):
        try:
            picture = decoded(path).convert(how.mode)
        except BadImage as error:
            damaged.append(error)
            continue
        height_width_channels = np.array(picture).reshape(picture.height, picture.width, len(how.mode))
        pixels = torch.from_numpy(height_width_channels).permute(2, 0, 1)
        images[place] = resized(pixels[None], how.size)[0]
    return Part(images, torch.tensor(listing.labels))
