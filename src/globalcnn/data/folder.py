"""Folders of images, one folder per class: listing, splitting, and reading small ones whole."""

from __future__ import annotations

import os
import struct
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from ..errors import UserError
from .arrays import Part, Parts
from .split import every_fifth

SUFFIXES = (".jpg", ".jpeg", ".png", ".ppm", ".bmp", ".pgm", ".tif", ".tiff", ".webp")
SMALL_SIDE = 96
MOST_SMALL_IMAGES = 200_000
MOST_SMALL_BYTES = 2 * 2**30

# what Pillow raises for damaged files, by format
DAMAGE = (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error, Image.DecompressionBombError)


@dataclass(frozen=True, eq=False)
class Listing:
    """The image files of one split with their labels, class after class and by name."""

    paths: tuple[str, ...]
    labels: tuple[int, ...]

    def __len__(self) -> int:
        return len(self.paths)

    def chosen(self, positions: torch.Tensor) -> Listing:
        """The images at these positions."""
        where = positions.tolist()
        return Listing(tuple(self.paths[i] for i in where), tuple(self.labels[i] for i in where))


@dataclass(frozen=True, eq=False)
class Folder:
    """The splits of a folder, before any image was opened."""

    train: Listing
    test: Listing
    val: Listing | None
    classes: tuple[str, ...]

    def listings(self) -> list[Listing]:
        return [self.train, self.test] + ([self.val] if self.val is not None else [])


def list_folder(root: Path) -> Folder:
    """Find classes, images and splits below `root`.

    Either root has train/ and val/ (or test/, or both) with one folder per class in each, or root has one
    folder per class itself; then every fifth image of each class becomes a test image.  With train/ and val/
    alone, val/ is the test split.  Files of other kinds and hidden ones are passed over; class folders are
    searched to any depth.

    Raises `UserError` saying what is missing.
    """
    if not os.path.exists(root):
        raise UserError(f"there is no folder {str(root)!r}: give one with a folder of images per class")
    if not root.is_dir():
        raise UserError(f"{str(root)!r} is a file: give a folder with a folder of images per class")
    inside = _subfolders(root)
    if not inside:
        raise UserError(
            f"{str(root)!r} has no folders in it: it must have a folder of images per class, or train/ and "
            "val/"
        )
    if "train" not in inside:
        if {"val", "test"} & set(inside):
            raise UserError(
                f"{str(root)!r} has {' and '.join(inside)} but no train: add train/ with the classes"
            )
        return _flat(root, inside)
    held = [split for split in ("val", "test") if split in inside]
    if not held:
        raise UserError(
            f"{str(root)!r} has train/ but neither val/ nor test/: add one, or give {str(root / 'train')!r}, "
            "which is then split"
        )
    return _split_already(root, held)


def _subfolders(root: Path) -> list[str]:
    try:
        return sorted(
            entry.name for entry in root.iterdir() if entry.is_dir() and not entry.name.startswith(".")
        )
    except OSError as error:
        raise UserError(f"cannot read the folder {str(root)!r}: {error.strerror or error}") from error


def _check_classes(root: Path, classes: list[str]) -> None:
    if not classes:
        raise UserError(f"{str(root)!r} has no folders in it: it must have a folder of images per class")
    if len(classes) < 2:
        raise UserError(
            f"{str(root)!r} has one class folder, {classes[0]!r}: classification needs at least 2"
        )


def _flat(root: Path, classes: list[str]) -> Folder:
    _check_classes(root, classes)
    whole = _listing(root, classes)
    labels = torch.tensor(whole.labels)
    for label, count in enumerate(torch.bincount(labels).tolist()):
        if count < 2:
            raise UserError(
                f"{str(root / classes[label])!r} has a single image: a folder without train/ and val/ is "
                "split into training and test images and needs at least 2 of each class"
            )
    train, test = every_fifth(labels)
    return Folder(whole.chosen(train), whole.chosen(test), None, tuple(classes))


def _split_already(root: Path, held: Sequence[str]) -> Folder:
    classes = _subfolders(root / "train")
    _check_classes(root / "train", classes)
    for split in held:
        others = _subfolders(root / split)
        if others != classes:
            only = sorted(set(others) - set(classes))[:5]
            lacking = sorted(set(classes) - set(others))[:5]
            raise UserError(
                f"{str(root)!r}: train and {split} must have the same class folders, but {split} "
                + " and ".join(
                    f"{verb} {', '.join(map(repr, names))}"
                    for verb, names in (("lacks", lacking), ("alone has", only))
                    if names
                )
            )
    listings = {split: _listing(root / split, classes) for split in ("train", *held)}
    if list(held) == ["val"]:
        return Folder(listings["train"], listings["val"], None, tuple(classes))
    return Folder(listings["train"], listings["test"], listings.get("val"), tuple(classes))


def _listing(root: Path, classes: list[str]) -> Listing:
    paths: list[str] = []
    labels: list[int] = []
    for label, name in enumerate(classes):
        found = sorted(_images_below(root / name))
        if not found:
            raise UserError(
                f"the class folder {str(root / name)!r} has no images ({', '.join(SUFFIXES)}): add some or "
                "remove it"
            )
        paths += found
        labels += [label] * len(found)
    return Listing(tuple(paths), tuple(labels))


def _images_below(folder: Path) -> Iterator[str]:
    def refuse(error: OSError) -> None:
        raise UserError(f"cannot read the folder {error.filename!r}: {error.strerror or error}") from error

    for here, _, names in os.walk(folder, onerror=refuse):
        for name in names:
            if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                yield os.path.join(here, name)


@contextmanager
def opened_image(path: str) -> Iterator[Image.Image]:
    """The image at `path`; damage found while reading it in the block is a `UserError` naming it."""
    try:
        with Image.open(path) as image:
            if image.mode.startswith(("I", "F")):
                raise UserError(
                    f"the image {path!r} has {image.mode} pixels of more than 8 bits, which are not read: "
                    "convert it"
                )
            yield image
    except UserError:
        raise
    except DAMAGE as error:
        reason = str(error).replace(repr(path), "").strip() or type(error).__name__
        raise UserError(
            f"the image {path!r} is damaged, cut short or unreadable ({reason}): replace or remove it"
        ) from error


def small_image_format(
    folder: Folder, image_size: tuple[int, int] | None
) -> tuple[tuple[int, int], str] | None:
    """(height, width) and "L" or "RGB" if the folder's images can be held in memory whole, else None.

    They can if all have one size of at most 96 pixels a side, there are at most 200,000 of them, they take
    at most 2 GiB, and no larger `image_size` is wanted.  Looks at headers only, and stops at the first
    misfit.
    """
    count = sum(len(listing) for listing in folder.listings())
    if count > MOST_SMALL_IMAGES or (image_size is not None and max(image_size) > SMALL_SIDE):
        return None
    size: tuple[int, int] | None = None
    mode = "L"
    for listing in folder.listings():
        for path in listing.paths:
            with opened_image(path) as image:
                size = size or image.size
                if image.size != size or max(image.size) > SMALL_SIDE:
                    return None
                if image.mode not in ("L", "1"):
                    mode = "RGB"
    if size is None:
        return None
    height, width = image_size or (size[1], size[0])
    if count * height * width * len(mode) > MOST_SMALL_BYTES:
        return None
    return (size[1], size[0]), mode


def read_small_images(folder: Folder, size: tuple[int, int], mode: str) -> Parts:
    """Decode all images of a folder whose `small_image_format` is (size, mode)."""

    def part(listing: Listing) -> Part:
        channels = len(mode)
        images = np.empty((len(listing), channels, *size), dtype=np.uint8)
        for place, path in enumerate(listing.paths):
            with opened_image(path) as image:
                pixels = np.asarray(image.convert(mode))
            images[place] = pixels.reshape(*size, channels).transpose(2, 0, 1)
        return Part(torch.from_numpy(images), torch.tensor(listing.labels))

    return Parts(
        train=part(folder.train),
        test=part(folder.test),
        val=part(folder.val) if folder.val is not None else None,
        classes=folder.classes,
    )
