"""A network that is named on the command line, built, and the size of the image to measure it on."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..models import create_model, is_reconstruction, list_models, model_info, settings_for_size, shown_name


@dataclass(frozen=True)
class Named:
    """A network built from what was named. shown: its name in tables; input_size: (C, H, W)."""

    name: str
    shown: str
    model: nn.Module
    input_size: tuple[int, int, int]
    reconstruction: bool


def build_named(
    name: str,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    image_size: Sequence[int] | None = None,
) -> Named:
    """The network called `name`, its weights of seed 0, in training mode as constructed.

    num_classes, in_chans, image_size (one number or height and width): default the network's own.
    """
    size = height_and_width(image_size)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sized = {} if size is None else settings_for_size(name, *size)
        model = create_model(name, num_classes=num_classes, in_chans=in_chans, **sized)
    config: Any = getattr(model, "pretrained_cfg", {})  # timm's description of its own models
    channels, *own = model_info(name).input_size if name in list_models() else config["input_size"]
    height, width = size or own
    return Named(
        name, shown_name(name), model, (in_chans or channels, height, width), is_reconstruction(name)
    )


def height_and_width(image_size: Sequence[int] | None) -> tuple[int, int] | None:
    """What `--image-size` stands for: one number is a square.

    >>> height_and_width([32]), height_and_width([24, 32])
    ((32, 32), (24, 32))
    """
    if image_size is None:
        return None
    if len(image_size) not in (1, 2) or min(image_size) < 1:
        given = " ".join(map(str, image_size))
        raise UserError(f"--image-size {given}: give one number, or height and width, each 1 or more")
    return image_size[0], image_size[-1]
