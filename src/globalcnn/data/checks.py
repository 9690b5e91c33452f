"""Checks of arguments: whole numbers, image sizes, devices."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from typing import Any

import torch

from ..errors import UserError, UserTypeError


def whole_number(name: str, value: Any, *, least: int | None = None) -> int:
    """`value` as an int, or an error that names the argument.

    >>> whole_number("batch_size", 0, least=1)
    Traceback (most recent call last):
    globalcnn.errors.UserError: batch_size=0 is too small: it must be a whole number of at least 1
    """
    allowed = "a whole number" if least is None else f"a whole number of at least {least}"
    if isinstance(value, bool) or not hasattr(value, "__index__"):
        raise UserTypeError(f"{name}={value!r} is a {type(value).__name__}: it must be {allowed}")
    try:
        number = int(value.__index__())
    except TypeError as error:  # arrays and tensors of several numbers have __index__ too
        raise UserTypeError(f"{name}={value!r} must be {allowed}") from error
    if least is not None and number < least:
        raise UserError(f"{name}={number} is too small: it must be {allowed}")
    return number


def checked_image_size(image_size: int | Sequence[int] | None) -> tuple[int, int] | None:
    """(height, width) in pixels from a number (a square), a pair or None.

    >>> checked_image_size(32), checked_image_size((24, 32))
    ((32, 32), (24, 32))
    """
    if image_size is None:
        return None
    if isinstance(image_size, (tuple, list)):
        if len(image_size) != 2:
            raise UserError(f"image_size={image_size!r} must be one number or a pair (height, width)")
        height, width = (whole_number("image_size", side, least=1) for side in image_size)
        return height, width
    side = whole_number("image_size", image_size, least=1)
    return side, side


def checked_device(device: str | int | torch.device) -> torch.device:
    """The device with its index filled in, or an error if this machine has no such device."""
    try:
        return torch.empty(0, device=torch.device(device)).device
    except (RuntimeError, AssertionError, TypeError) as error:  # torch raises all three, by kind of device
        reason = str(error).splitlines()[0]
        raise UserError(f"device={str(device)!r} cannot be used here: {reason}; try device='cpu'") from error


def machine_memory() -> int:
    """Bytes of main memory of this machine; sys.maxsize where the system does not report it."""
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (AttributeError, OSError, ValueError):  # Windows
        return sys.maxsize
