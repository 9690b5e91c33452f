"""Reading image files: which formats, and how each kind becomes 8-bit grey or colour pixels.

The rules, the same wherever a file is read:

- the format is recognised by content and must be one of `FORMATS`; only regular files are opened;
- of several frames (animated GIF, TIFF pages) the first is taken;
- the image is rotated as its EXIF orientation says;
- transparency is dropped, as torchvision and timm do; palettes, CMYK and the like become RGB;
- 1-bit images are 0 or 255; 16-bit ones are scaled by 255 / 65535, and floats, which must lie in [0, 1],
  by 255.
"""

from __future__ import annotations

import io
import os
import stat
import struct
import warnings
import zlib
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError

from ..errors import UserError

FORMATS = ("PNG", "JPEG", "BMP", "GIF", "PPM", "TIFF", "WEBP")
SUFFIXES = (
    *(".jpg", ".jpeg", ".jfif", ".png", ".bmp", ".gif"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".tif", ".tiff", ".webp"),
)

# what Pillow raises for damaged files, by format
DAMAGE = (
    OSError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
    IndexError,
    KeyError,
    TypeError,
)

ORIENTATION = 0x0112  # EXIF
UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class BadImage(UserError):
    """An image file that cannot be used. path: the file; reason: in a few words; text: the whole message."""

    def __init__(self, path: str, reason: str, text: str = "") -> None:
        super().__init__(
            text or f"the image {path!r} is damaged, cut short or unreadable ({reason}): replace or remove it"
        )
        self.path, self.reason, self.text = path, reason, text

    def __reduce__(self) -> tuple[type[BadImage], tuple[str, str, str]]:
        return BadImage, (self.path, self.reason, self.text)


def refuse_bad(found: Iterable[BadImage]) -> None:
    """Raise one `UserError` naming the bad images, the first five with their reasons; nothing if none."""
    damaged = list(found)
    if len(damaged) == 1:
        raise damaged[0]
    if damaged:
        listed = ", ".join(f"{error.path!r} ({error.reason})" for error in damaged[:5])
        more = f" and {len(damaged) - 5} more" if len(damaged) > 5 else ""
        raise UserError(
            f"{len(damaged)} images are damaged, cut short or unreadable: {listed}{more}; replace or remove "
            "them"
        )


def opened_file(path: str | os.PathLike[str]) -> IO[bytes]:
    """A regular file, open for reading; `OSError` for a pipe, device or socket, which could block."""
    flags = (
        os.O_RDONLY | getattr(os, "O_NONBLOCK", 0) | getattr(os, "O_BINARY", 0) | getattr(os, "O_CLOEXEC", 0)
    )
    descriptor = os.open(path, flags)
    mode = os.fstat(descriptor).st_mode
    if stat.S_ISREG(mode):
        return os.fdopen(descriptor, "rb")
    os.close(descriptor)
    if stat.S_ISDIR(mode):
        raise IsADirectoryError("it is a folder")
    raise OSError("it is a pipe, device or socket, and only regular files are read")


@contextmanager
def opened_image(path: str) -> Iterator[Image.Image]:
    """The image at `path`, header read; errors while reading it in the block become a `BadImage`."""
    with _quiet(), _damage_named(path), opened_file(path) as file, _opened(file) as image:
        yield image


def decoded_bytes(data: bytes, name: str) -> Image.Image:
    """The image in these bytes, by the same rules as `decoded`; errors call it `name`."""
    with _quiet(), _damage_named(name), _opened(io.BytesIO(data)) as image:
        return eight_bits(upright(image), name=name)


def _opened(file: IO[bytes]) -> Image.Image:
    return Image.open(file, formats=FORMATS)


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence Pillow's warnings about large images, which are errors at twice the limit, and damaged EXIF."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        warnings.filterwarnings("ignore", module="PIL")
        yield


@contextmanager
def _damage_named(path: str) -> Iterator[None]:
    try:
        yield
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise BadImage(
            path,
            "it has more pixels than PIL.Image.MAX_IMAGE_PIXELS allows, as files that fill the memory do",
        ) from error
    except UnidentifiedImageError as error:
        raise BadImage(path, f"it is none of {', '.join(FORMATS)}, or of a rare variant of these") from error
    except (*DAMAGE, MemoryError) as error:
        text = getattr(error, "strerror", None) or str(error).replace(repr(path), "").strip()
        raise BadImage(path, " ".join(text.split()) or type(error).__name__) from error


def decoded(path: str) -> Image.Image:
    """The image in the file at `path`, in mode "L" or "RGB", by the rules of this module."""
    with opened_image(path) as image:
        return eight_bits(upright(image), name=path)


def upright(image: Image.Image) -> Image.Image:
    """The decoded image, rotated as its EXIF orientation says."""
    image.load()
    way = UPRIGHT.get(orientation(image))
    return image if way is None else image.transpose(way)


def orientation(image: Image.Image) -> int:
    """The EXIF orientation, 1 (upright) to 8; 1 if there is none or it cannot be read."""
    try:
        value = image.getexif().get(ORIENTATION, 1)
    except Exception:  # damaged metadata raises almost anything, and the pixels may still be whole
        return 1
    return value if isinstance(value, int) else 1


def is_grey(mode: str) -> bool:
    """Whether images of this Pillow mode have one channel."""
    return mode in ("1", "L", "LA", "La", "F") or is_deep(mode)


def is_deep(mode: str) -> bool:
    """Whether pixels of this mode have more than 8 bits."""
    return mode.startswith(("I", "F"))


def is_transparent(image: Image.Image) -> bool:
    """Whether the image has an alpha channel or a transparent colour, which is dropped."""
    return image.mode in ("RGBA", "RGBa", "LA", "La", "PA") or "transparency" in image.info


def eight_bits(image: Image.Image, *, name: str) -> Image.Image:
    """The decoded image in mode "L" or "RGB"; `BadImage` for values outside the scale of their type."""
    if image.mode in ("L", "RGB"):
        return image
    if is_deep(image.mode):
        return Image.fromarray(_scaled(np.asarray(image), name))
    if is_grey(image.mode):
        return image.convert("L")
    if "transparency" in image.info and image.mode == "P":
        image = image.convert("RGBA")  # else Pillow warns
    return image.convert("RGB")


def _scaled(values: np.ndarray, name: str) -> np.ndarray:
    """uint8 from pixels of more than 8 bits."""
    if values.dtype.kind == "f":
        if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= 1):
            raise _out_of_scale(values, name, "floats must be in [0, 1], where 1 is white")
        return np.asarray(np.rint(values.astype(np.float64) * 255), dtype=np.uint8)
    if values.min() < 0 or values.max() > 65535:
        raise _out_of_scale(values, name, "whole numbers must be from 0 to 65535, where 65535 is white")
    return np.asarray((values.astype(np.uint32) * 255 + 32767) // 65535, dtype=np.uint8)


def _out_of_scale(values: np.ndarray, name: str, rule: str) -> BadImage:
    reason = f"pixels from {values.min():g} to {values.max():g}"
    text = f"the image {name!r} has {reason}: {rule}; scale them, or store whole numbers of 8 or 16 bits"
    return BadImage(name, reason, text)
