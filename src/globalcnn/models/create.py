"""`create_model`: a network by its name, with fresh weights or those of a file."""

from __future__ import annotations

from collections.abc import Mapping
from os import PathLike
from pathlib import Path
from typing import Any, Final

import timm
from torch import nn

from ..errors import UserTypeError
from .differences import alike, warn_of_differences
from .registry import build_named, check_model_name, fresh, stamped
from .shipped import shipped_path
from .state_dicts import load_into
from .weights import read_weights, settings_on_card

WRAPPING: Final = ("features_only", "out_indices")  # settings of timm's wrapper around a network


def create_model(
    name: str,
    *,
    num_classes: int | None = None,
    in_chans: int | None = None,
    pretrained: bool | str | PathLike[str] = False,
    features_only: bool = False,
    **settings: Any,
) -> nn.Module:
    """Build a model by name: one of this library or any of timm's.

    num_classes: size of the output, 0 for features; default that of the published dataset.
    in_chans: channels of the input image; default that of the published dataset.
    pretrained: name of data, such as "cifar10": the weights that come with the library, trained on it; or a
        weights file or run folder. Numbers and settings of the file are then the defaults (another number of
        classes gets a new head, with a warning; there is one too for settings that change
        what the network computes). True: the library's weights, the first of several.
    features_only: return a module that gives a list of feature maps (timm's wrapper).
    settings: further arguments of the family's constructor, such as drop_rate, or pde= for Global networks.
        scheme="gated-sweeps" (or "-sigmoid", "-rational" after it, "tridiagonal-implicit",
        "du-fort-frankel") sets the time scheme of all Global layers, see `models/schemes.py`.

    Raises `UserError` for an unknown name (with near ones) or a setting that the model does not take.

    >>> create_model("resnet_global_cifar", num_classes=100).num_classes
    100
    """
    if features_only:
        settings["features_only"] = True
    if isinstance(pretrained, str):
        check_model_name(name)
        pretrained = shipped_path(name, pretrained) or pretrained
    if isinstance(pretrained, (str, PathLike)):
        return _from_file(name, Path(pretrained), num_classes, in_chans, settings)
    if settings.get("checkpoint_path"):
        return _from_file(name, Path(settings.pop("checkpoint_path")), num_classes, in_chans, settings)
    if not isinstance(pretrained, bool):
        raise UserTypeError(
            f"pretrained={pretrained!r} must be a name of data, a weights file, a run folder, True or False"
        )
    if pretrained:
        settings["pretrained"] = True
    return build_named(name, settings, num_classes=num_classes, in_chans=in_chans)


def _from_file(
    name: str, path: Path, num_classes: int | None, in_chans: int | None, settings: dict[str, Any]
) -> nn.Module:
    check_model_name(name)
    weights, card = read_weights(path)
    trained_with: Mapping[str, Any] = {}
    if card is not None:
        trained_with = settings_on_card(card, name, repr(str(path)))
        settings = {**trained_with, **settings}
        num_classes = card.num_classes if num_classes is None else num_classes
        in_chans = card.in_chans if in_chans is None else in_chans
    numbers = {"num_classes": num_classes, "in_chans": in_chans}
    own = {k: v for k, v in settings.items() if k not in WRAPPING}
    model = build_named(name, own, **numbers)
    load_into(model, weights, path, adapt=True)
    if card is not None and not alike(own, trained_with):
        warn_of_differences(model, fresh(name, trained_with, **numbers), repr(str(path)))
    return _features(name, model, in_chans, settings) if settings.get("features_only") else model


def _features(name: str, whole: nn.Module, in_chans: int | None, settings: dict[str, Any]) -> nn.Module:
    """timm wraps the network after it has loaded its weights."""
    overlay: dict[str, Any] = {"state_dict": whole.state_dict()}
    chosen: dict[str, Any] = {}
    if in_chans is not None:
        chosen["in_chans"] = in_chans
        overlay["input_size"] = (in_chans, *vars(whole)["pretrained_cfg"]["input_size"][1:])
    model = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=overlay, **{**settings, **chosen})
    vars(model)["pretrained_cfg"].pop("state_dict", None)
    return stamped(model, name, settings)
