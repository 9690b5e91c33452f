"""Matching data with a trained network: classes by name, the training's constants."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..data import DataSource
from ..errors import UserError
from ..models import Card


def as_trained(card: Card, data: DataSource) -> tuple[DataSource, Tensor | None]:
    """The data normalised with the training's constants, and the network's number of each of its classes.

    The numbers are None where both count their classes alike. Raises `UserError` for channels or classes that
    the network does not know.
    """
    if card.in_chans != data.in_chans:
        raise UserError(
            f"the network {card.label!r} does not fit the data {data.name!r}: it reads {card.in_chans} "
            f"channels and the data has {data.in_chans}"
        )
    numbers = class_numbers(card, data)
    if card.mean and card.std:
        data = data.with_constants(card.mean, card.std)
    return data, numbers


def class_numbers(card: Card, data: DataSource) -> Tensor | None:
    """The network's number of each class of the data, by name; None if they are the same numbers.

    The data may have some of the classes alone. For weights without names the number of classes must
    agree. Raises `UserError` for a name that the network was not trained on.
    """
    if not card.classes:
        if card.num_classes != len(data.classes):
            raise UserError(
                f"the network {card.label!r} does not fit the data {data.name!r}: it has {card.num_classes} "
                f"classes, without names, and the data {len(data.classes)}"
            )
        return None
    if tuple(card.classes) == tuple(data.classes):
        return None
    if len(set(card.classes)) < len(card.classes) or len(set(data.classes)) < len(data.classes):
        raise UserError(
            f"the classes of {data.name!r} cannot be matched with those of {card.label!r} by name: a name "
            "stands twice"
        )
    unknown = [name for name in data.classes if name not in card.classes]
    if unknown:
        raise UserError(_unknown_classes(card, data, unknown))
    return torch.tensor([card.classes.index(name) for name in data.classes])


def _unknown_classes(card: Card, data: DataSource, unknown: Sequence[str]) -> str:
    text = f"the data {data.name!r} has {_listed(unknown)}, which {card.label!r} was not trained on"
    known = f"it knows {_listed(card.classes)}"
    folded = {name.casefold().strip(): name for name in card.classes}
    near = [(name, folded[name.casefold().strip()]) for name in unknown if name.casefold().strip() in folded]
    if near:
        pairs = ", ".join(f"{name!r} and {other!r}" for name, other in near[:5])
        return f"{text}: {known}. {pairs} differ only in case: give the classes their names of the training"
    if all(name.isdecimal() for name in data.classes):
        return f"{text}: {known}. The data numbers its classes: name them (an npz in the array 'classes')"
    return f"{text}: {known}. Give data of these classes, or train a network on this data"


def _listed(names: Sequence[str]) -> str:
    shown = ", ".join(map(repr, names[:8]))
    return f"{shown} and {len(names) - 8} more" if len(names) > 8 else shown
