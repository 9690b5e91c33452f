"""A network that is named on the command line, built, and the size of the image to measure it on."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import nn

from ..errors import UserError
from ..models import (
    NamedSource,
    Source,
    is_reconstruction,
    list_models,
    model_info,
    parse_source,
    settings_for_size,
    shown_name,
)
from ..models.factories import own_in_chans
from ..models.lazy import with_shapes

ImageSize = int | tuple[int, int] | None  # of an option: one side, or height and width


@dataclass(frozen=True)
class Named:
    """A network built from what was named. shown: its name in tables; input_size: (C, H, W); source: how it
    was built.
    """

    name: str
    shown: str
    model: nn.Module
    input_size: tuple[int, int, int]
    reconstruction: bool
    source: Source


def build_named(
    text: str,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    image_size: ImageSize = None,
) -> Named:
    """The network that `text` names, its weights of seed 0, in training mode as constructed.

    text: a name here or in timm, my_net.py:build or package.module:function.
    num_classes, in_chans, image_size (one number or height and width): default the network's own.
    """
    source = parse_source(text)
    size = height_and_width(image_size)
    if isinstance(source, NamedSource) and size is not None:
        source = replace(source, settings={**settings_for_size(source.name, *size), **source.settings})
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = source.build(num_classes=num_classes, in_chans=in_chans)
    label = source.label
    channels, *own = _own_input(source, model)
    if not (size or own):
        raise UserError(f"{label!r} does not say for which images it is: give --image-size")
    height, width = size or own
    with_shapes(model, in_chans or channels, (height, width))
    return Named(
        name=label,
        shown=shown_name(label),
        model=model,
        input_size=(in_chans or channels, height, width),
        reconstruction=is_reconstruction(label),
        source=source,
    )


def _own_input(source: Source, model: nn.Module) -> tuple[int, ...]:
    """(channels, height, width) that the network is for, or its channels alone."""
    if source.label in list_models():
        return model_info(source.label).input_size
    config: Any = getattr(model, "pretrained_cfg", None) or {}  # timm's description of its own models
    told = config.get("input_size")
    return tuple(told) if told else (own_in_chans(model) or 3,)


def height_and_width(image_size: ImageSize) -> tuple[int, int] | None:
    """Height and width from `--image-size`: one number is a square.

    >>> height_and_width(32), height_and_width((24, 32))
    ((32, 32), (24, 32))
    """
    if image_size is None:
        return None
    height, width = (image_size, image_size) if isinstance(image_size, int) else image_size
    if min(height, width) < 1:
        raise UserError(f"--image-size {height} {width}: both must be at least 1")
    return height, width
