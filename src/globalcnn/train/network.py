"""The network of a training: built for the data and recipe, and checked before the first step."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain

import torch
from accelerate.utils import set_seed
from torch import nn

from ..data import DataSource
from ..data.memory import TensorSource
from ..errors import UserError, UserTypeError
from ..graph import eval_mode
from ..measure.probe import probe_input
from ..models import Card, NamedSource, Source, parse_source, settings_for_size, source_of
from ..models.lazy import with_shapes
from ..models.source import checked_source
from .evaluate import checked_logits
from .growing import size_in
from .recipe import Recipe
from .setting_up import checked_seed

STRETCH, CROP = "stretch", "crop"  # how images are brought to size: whole, or the resized centre

OF_THE_CONSTRUCTOR = ("drop_rate", "drop_path_rate")


def build_for(
    source: Source | str,
    data: DataSource,
    recipe: Recipe,
    *,
    seed: int = 0,
    num_classes: int | None = None,
    in_chans: int | None = None,
) -> nn.Module:
    """The network of `source` as it suits data and recipe, with fresh weights of `seed`.

    source: as `models.parse_source` gives it, or its text. A registered name also gets the recipe's drop_rate
    and drop_path_rate, and the size of the images if it is made for one size.
    num_classes, in_chans: default those of the data.
    """
    checked_seed(seed)
    if num_classes is not None and 0 <= num_classes < len(data.classes):
        label = source if isinstance(source, str) else source.label
        raise UserError(
            f"model {label!r} does not fit the data {data.name!r}: it has {num_classes} classes and the data "
            f"{len(data.classes)}"
        )
    chosen = parse_source(source) if isinstance(source, str) else source
    if isinstance(chosen, NamedSource):
        rates = {name: getattr(recipe, name) for name in OF_THE_CONSTRUCTOR if getattr(recipe, name)}
        settings = {**settings_for_size(chosen.name, *data.image_size), **rates, **chosen.settings}
        chosen = replace(chosen, settings=settings)
    set_seed(seed)
    channels = data.in_chans if in_chans is None else in_chans
    network = chosen.build(
        num_classes=len(data.classes) if num_classes is None else num_classes,
        in_chans=channels,
    )
    return with_shapes(network, channels, data.image_size)


def unwrapped(model: nn.Module) -> nn.Module:
    """The module to train: what `torch.compile` wraps; wrappers for several devices are refused."""
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        raise UserError(
            f"model is wrapped in {type(model).__name__}: give the module inside, model.module; several "
            "processes are started by torchrun"
        )
    return getattr(model, "_orig_mod", model)


def card_for(model: nn.Module, data: DataSource, recipe: Recipe, *, source: Source | None = None) -> Card:
    """The network's source and output size, after a check with one image.

    Raises `UserError` if it does not take the data's images, gives fewer logits than there are classes, or
    was built without the dropout that the recipe asks for.
    """
    _check_module(model)
    known = source_of(model) if source is None else source
    _check_rates(model, known, recipe)
    outputs = _outputs(model, data, known.label, data.image_size)
    if recipe.first_image_size:
        _outputs(model, data, known.label, size_in(0, recipe, data.image_size))
    if outputs < len(data.classes):
        raise UserError(
            f"model {known.label!r} does not fit the data {data.name!r}: it has {outputs} classes and the "
            f"data {len(data.classes)}"
        )
    return Card(
        source=checked_source(
            model, known, num_classes=outputs, in_chans=data.in_chans, image_size=data.image_size
        ),
        num_classes=outputs,
        in_chans=data.in_chans,
        image_size=data.image_size,
        classes=data.classes,
        mean=data.mean or (),
        std=data.std or (),
        about={"resizing": STRETCH if isinstance(data, TensorSource) else CROP},
    )


def _check_module(model: nn.Module) -> None:
    """Raise unless `model` is a module with float32 parameters in memory, some of them to train."""
    if not isinstance(model, nn.Module):
        way_out = ""
        if isinstance(model, str):
            way_out = f": create_model({model!r}) makes one"
        elif callable(model):
            way_out = f" {getattr(model, '__name__', '')}: give the module that it makes"
        raise UserTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}{way_out}")
    if not any(p.requires_grad for p in model.parameters()):
        raise UserError(f"the network {type(model).__name__} has no parameters to train")
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if tensor.is_meta:
            raise UserError(
                f"{name} of the network is on the meta device, without memory: build it on the CPU"
            )
        if tensor.is_floating_point() and tensor.dtype is not torch.float32:
            kind = str(tensor.dtype).removeprefix("torch.")
            raise UserError(
                f"{name} of the network is {kind}: training takes weights in float32 "
                "(model.float()); the recipe's precision says in what the layers compute"
            )


def _check_rates(model: nn.Module, source: Source, recipe: Recipe) -> None:
    settings = getattr(source, "settings", None) or getattr(source, "arguments", None) or {}
    for name in OF_THE_CONSTRUCTOR:
        rate = getattr(recipe, name)
        if rate and rate not in (settings.get(name), getattr(model, name, None)):
            raise UserError(
                f"recipe: {name}={rate} is a setting of the network's constructor, and {source.label!r} was "
                f"built without it: build it with {name}={rate}, or take a recipe with {name}=0.0"
            )


@torch.no_grad()
def _outputs(model: nn.Module, data: DataSource, label: str, image_size: tuple[int, int]) -> int:
    """How many logits the network gives for an image of the data, at that height and width."""
    size = (data.in_chans, *image_size)
    told = getattr(model, "in_chans", None)
    if isinstance(told, int) and told != data.in_chans:
        raise UserError(
            f"model {label!r} does not fit the data {data.name!r}: it reads {told} channels and the data has "
            f"{data.in_chans}"
        )
    with_shapes(model, data.in_chans, data.image_size)
    with eval_mode(model):
        try:
            output = model(probe_input(model, size))
        except (UserError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            first = (str(error).splitlines() or [""])[0]
            raise UserError(
                f"the model does not run on input_size={size}, the images of {data.name!r}: "
                f"{type(error).__name__}: {first}"
            ) from error
    return checked_logits(output, 1).shape[1]
