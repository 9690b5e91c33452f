"""Finding damaged images before training, by the start and end of each file, without decoding it."""

from __future__ import annotations

import os
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from .pictures import BadImage, decoded, opened_image

ENDS = {"JPEG": b"\xff\xd9", "MPO": b"\xff\xd9", "PNG": b"IEND", "GIF": b"\x3b"}
TAIL = 64
THREADS = 8  # most of the time is spent waiting for disks


def damaged_images(paths: Sequence[str]) -> tuple[BadImage, ...]:
    """The damaged ones among these files, in order.

    Headers are read, and the marks at the end of JPEG, PNG and GIF files and the length of WebP files are
    compared, which tells those that were cut short; other files, and those without a mark, as some programs
    leave it out, are decoded.  Damage in between is found only when an image is decoded.
    """
    # the filters of warnings are restored after the threads, which each change them, have ended
    with warnings.catch_warnings(), ThreadPoolExecutor(THREADS) as pool:
        return tuple(error for error in pool.map(_damage, paths, chunksize=64) if error is not None)


def _damage(path: str) -> BadImage | None:
    try:
        with opened_image(path) as image:
            kind = image.format
        if not _ends_well(path, kind):
            decoded(path)
    except BadImage as error:
        return error
    return None


def _ends_well(path: str, kind: str | None) -> bool:
    """Whether the file is known to be complete."""
    with open(path, "rb") as file:
        size = file.seek(0, os.SEEK_END)
        if kind == "WEBP":
            file.seek(4)
            return int.from_bytes(file.read(4), "little") + 8 <= size
        file.seek(max(size - TAIL, 0))
        return kind in ENDS and ENDS[kind] in file.read()
