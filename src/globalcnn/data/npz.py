"""Reading data sets out of .npz files with the names of Keras or MedMNIST."""

from __future__ import annotations

import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from ..errors import UserError
from .arrays import Part, Parts, check_same_shape, checked_classes, checked_part
from .checks import machine_memory
from .pictures import opened_file

KERAS = {split: (f"x_{split}", f"y_{split}") for split in ("train", "val", "test")}
MEDMNIST = {split: (f"{split}_images", f"{split}_labels") for split in ("train", "val", "test")}

# what numpy and zipfile raise for damaged members, wrong checksums, unknown compression and absurd sizes
DAMAGE = (ValueError, OSError, EOFError, zipfile.BadZipFile, zlib.error, RuntimeError, MemoryError, KeyError)


def read_npz(path: Path, *, classes: Sequence[str] | None = None, num_classes: int | None = None) -> Parts:
    """Read images and labels.

    Keys: x_train, y_train, x_test, y_test and optionally x_val, y_val (as Keras), or train_images,
    train_labels, ... (as MedMNIST); optionally `classes`, the names of the labels 0, 1, ...  A file for
    evaluation alone has x_test and y_test only.  The argument `classes` gives names when the file does not,
    and `num_classes` their number when it has no training images either.

    Raises `UserError` for a file that is missing, damaged or holds something else.
    """
    with _opened(path) as file:
        present = file.files
        keys = _keys(path, present)
        where = f"{str(path)!r}"
        parts: dict[str, Part] = {}
        for split, (images_name, labels_name) in keys.items():
            parts[split] = checked_part(
                _array(path, file, images_name),
                _array(path, file, labels_name),
                where=where,
                images_name=images_name,
                labels_name=labels_name,
            )
        if "train" not in parts and num_classes is not None:
            classes = classes or tuple(map(str, range(num_classes)))
        named = _class_names(path, _array(path, file, "classes")) if "classes" in file.files else classes
    check_same_shape(parts, where=where)
    return Parts(
        train=parts.get("train"),
        test=parts["test"],
        val=parts.get("val"),
        classes=checked_classes(list(parts.values()), named, where=where),
        notes=_notes(keys, present),
    )


def _opened(path: Path) -> np.lib.npyio.NpzFile:
    expected = "a .npz file as numpy.savez_compressed writes it"
    try:
        with opened_file(path):  # a pipe or device could block forever
            pass
        file = np.load(path, allow_pickle=False)
    except FileNotFoundError as error:
        raise UserError(f"there is no file {str(path)!r}: give the path of {expected}") from error
    except IsADirectoryError as error:
        raise UserError(
            f"{str(path)!r} is a folder: give the path of {expected}, or use folder:PATH"
        ) from error
    except PermissionError as error:
        raise UserError(f"cannot read {str(path)!r}: {error.strerror}") from error
    except DAMAGE as error:
        raise UserError(
            f"{str(path)!r} is not {expected}, or it is damaged: make or fetch it again"
        ) from error
    if not isinstance(file, np.lib.npyio.NpzFile):
        raise UserError(
            f"{str(path)!r} holds a single array: give a .npz file with the arrays "
            f"{', '.join(name for pair in KERAS.values() for name in pair)}"
        )
    return file


def _keys(path: Path, present: list[str]) -> dict[str, tuple[str, str]]:
    """The names of images and labels for each split in the file."""
    style = MEDMNIST if any(name in present for pair in MEDMNIST.values() for name in pair) else KERAS
    found = {split: pair for split, pair in style.items() if pair[0] in present or pair[1] in present}
    wanted = [
        name
        for split in ("train", "val", "test")
        if split in found or split == "test"
        for name in style[split]
    ]
    missing = [name for name in wanted if name not in present]
    if missing:
        listed = ", ".join(sorted(present)[:20]) or "nothing"
        raise UserError(
            f"{str(path)!r} lacks {', '.join(map(repr, missing))}: it must hold x_train, y_train, x_test, "
            "y_test (and x_val, y_val if there are any), or x_test and y_test for evaluation alone, or "
            f"train_images, train_labels and so on as MedMNIST names them; it holds {listed}"
        )
    return found


def _notes(keys: dict[str, tuple[str, str]], present: list[str]) -> tuple[str, ...]:
    notes = [] if "train" in keys else ["no training images: for evaluation only"]
    others = sorted(set(present) - {name for pair in keys.values() for name in pair} - {"classes"})
    if others:
        notes.append(f"skipped arrays: {', '.join(map(repr, others[:10]))}")
    return tuple(notes)


def _array(path: Path, file: np.lib.npyio.NpzFile, name: str) -> np.ndarray:
    _check_fits_memory(path, file, name)
    try:
        array = file[name]
    except DAMAGE as error:
        if "allow_pickle" in str(error):
            raise UserError(
                f"{name!r} in {str(path)!r} is an array of Python objects, which is not read because it "
                "could run code: store plain numbers (or text) of one shape"
            ) from error
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{name!r} in {str(path)!r} cannot be read ({reason}): the file is damaged or cut short; make or "
            "fetch it again"
        ) from error
    if not isinstance(array, np.ndarray):
        raise UserError(
            f"{name!r} in {str(path)!r} is not an array: make the file with numpy.savez_compressed"
        )
    return array


def _check_fits_memory(path: Path, file: np.lib.npyio.NpzFile, name: str) -> None:
    """Raise `UserError` for an array larger than this machine's memory, as crafted headers claim."""
    assert file.zip is not None  # it is until the file is closed
    packed = {entry.filename.removesuffix(".npy"): entry.file_size for entry in file.zip.infolist()}
    if packed.get(name, 0) > machine_memory():
        raise UserError(
            f"{name!r} in {str(path)!r} takes {packed[name] / 2**30:.0f} GiB unpacked, more than the memory "
            "of this machine: make the file smaller, or use folder:PATH, which reads images as they are "
            "needed"
        )


def _class_names(path: Path, array: np.ndarray) -> tuple[str, ...]:
    if array.ndim != 1 or array.dtype.kind not in "USiu":
        raise UserError(
            f"'classes' in {str(path)!r} has shape {array.shape} and type {array.dtype}: it must be a list "
            "of names"
        )
    if array.dtype.kind == "S":
        return tuple(name.decode("utf-8", "replace") for name in array.tolist())
    return tuple(str(name) for name in array.tolist())
