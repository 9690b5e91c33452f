"""The card of a weights file: how the network is built and how to feed it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

from torch import nn

from ..errors import UserError
from .consent import check_numbers
from .factories import own_in_chans, own_num_classes
from .source import Source, checked_source, source_from_json, source_of
from .values import MOST_LETTERS, MOST_WHOLE, from_json, parse, to_json

FORMAT: Final = "globalcnn-weights-2"
FORMER: Final = "globalcnn-weights-1"


@dataclass(frozen=True)
class Card:
    """What a weights file says of itself: enough to build the network and to feed it.

    source: how it is built; num_classes, in_chans, image_size (H, W): what it was trained for; classes: their
    names in the order of the outputs; mean, std: with which training normalised the images, one number per
    channel; about: anything else, plain JSON.
    """

    source: Source
    num_classes: int
    in_chans: int
    image_size: tuple[int, int]
    classes: tuple[str, ...] = ()
    mean: tuple[float, ...] = ()
    std: tuple[float, ...] = ()
    about: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        """The name of the network in messages and tables."""
        return self.source.label

    def build(self) -> nn.Module:
        """The network, with fresh weights."""
        return self.source.build(num_classes=self.num_classes, in_chans=self.in_chans)

    def misfits(self, num_classes: int, in_chans: int) -> list[str]:
        """In words, where this does not fit data of `num_classes` and `in_chans`."""
        words = []
        if self.num_classes != num_classes:
            words.append(f"it has {self.num_classes} classes and the data {num_classes}")
        if self.in_chans != in_chans:
            words.append(f"it reads {self.in_chans} channels and the data has {in_chans}")
        return words

    def to_json(self) -> dict[str, Any]:
        """The card as an object of JSON."""
        return {
            "source": self.source.to_json(),
            "num_classes": self.num_classes,
            "in_chans": self.in_chans,
            "image_size": list(self.image_size),
            "classes": list(self.classes),
            "mean": [float(m) for m in self.mean],
            "std": [float(s) for s in self.std],
            "about": to_json(dict(self.about), "about"),
        }


def make_card(
    model: nn.Module,
    *,
    image_size: tuple[int, int],
    source: Source | None = None,
    in_chans: int | None = None,
    classes: tuple[str, ...] = (),
    mean: tuple[float, ...] = (),
    std: tuple[float, ...] = (),
    about: Mapping[str, Any] | None = None,
) -> Card:
    """The card of a network; what is not given is read off it.

    A network that was changed after it was built has a `ModuleSource`, with a warning (`checked_source`).

    >>> from globalcnn import create_model
    >>> card = make_card(create_model("digits_global"), image_size=(28, 28))
    >>> card.label, card.num_classes, card.in_chans
    ('digits_global', 10, 1)
    """
    channels = own_in_chans(model) if in_chans is None else in_chans
    if channels is None:
        raise UserError(f"{type(model).__name__} does not tell how many channels it reads: give in_chans=")
    classes_told = own_num_classes(model, channels, image_size)
    known = source_of(model) if source is None else source
    return Card(
        source=checked_source(
            model, known, num_classes=classes_told, in_chans=channels, image_size=image_size
        ),
        num_classes=classes_told,
        in_chans=channels,
        image_size=image_size,
        classes=classes,
        mean=mean,
        std=std,
        about=about or {},
    )


def card_in(metadata: Mapping[str, str], where: str) -> Card | None:
    """The card in a file's metadata; None in a file of another program."""
    told = metadata.get("format")
    if told == FORMER:
        return _former_card(metadata, where)
    if told == FORMAT:
        values = parse(metadata.get("card", ""), f"the card in {where}")
        return card_of(values, f"the card in {where}")
    if (told or "").startswith("globalcnn") or {"card", "checksum", "description"} & set(metadata):
        raise UserError(f"{where} is damaged, or of a newer version of globalcnn (format {str(told)[:60]!r})")
    return None


def _former_card(metadata: Mapping[str, str], where: str) -> Card:
    """The card of a file of globalcnn 0.1's first format, which knew named networks alone."""
    where = f"the description in {where}"
    values = parse(metadata.get("description", ""), where)
    source = {"kind": "name", "name": values.pop("model", None), "settings": values.pop("settings", {})}
    return card_of({**values, "source": source}, where)


def card_of(values: dict[str, Any], where: str) -> Card:
    """The card that the entries describe, all of them checked."""
    known = {"source", "num_classes", "in_chans", "image_size", "classes", "mean", "std", "about"}
    more, missing = set(values) - known, {"source", "num_classes", "in_chans", "image_size"} - set(values)
    if more or missing:
        words = (
            f"lacks {sorted(missing)}" if missing else f"has the unknown entries {str(sorted(more))[:200]}"
        )
        raise UserError(f"{where} is damaged: it {words}")
    try:
        source = source_from_json(values["source"])
        about = values.get("about", {})
        if not isinstance(about, dict):
            raise UserError(f"about must be an object, not a {type(about).__name__}")
        check_numbers(values["num_classes"], values["in_chans"], "numbers")
        return Card(
            source=source,
            num_classes=values["num_classes"],
            in_chans=values["in_chans"],
            image_size=_pixels(values["image_size"]),
            classes=_strings(values.get("classes", [])),
            mean=_reals("mean", values.get("mean", []), values["in_chans"]),
            std=_reals("std", values.get("std", []), values["in_chans"]),
            about=from_json(about, "about", bounded=False),
        )
    except UserError as error:
        raise UserError(f"{where} is damaged or not acceptable: {error}") from error


def _pixels(value: Any) -> tuple[int, int]:
    whole = isinstance(value, list) and len(value) == 2 and all(type(v) is int for v in value)
    if not whole or not all(1 <= v <= 4 * MOST_WHOLE for v in value):
        raise UserError(f"image_size must be two whole numbers of pixels, not {str(value)[:60]}")
    return value[0], value[1]


def _strings(value: Any) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) and len(v) <= MOST_LETTERS for v in value):
        raise UserError(f"classes must be a list of names, not {str(value)[:60]}")
    return tuple(value)


def _reals(name: str, value: Any, channels: int) -> tuple[float, ...]:
    fine = isinstance(value, list) and all(type(v) in (int, float) and math.isfinite(v) for v in value)
    if not fine or len(value) not in (0, channels) or (name == "std" and not all(v > 0 for v in value)):
        raise UserError(f"{name} must be one finite number per channel ({channels}), not {str(value)[:60]}")
    return tuple(float(v) for v in value)
