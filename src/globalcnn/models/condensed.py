"""Condensed networks as data: which blocks of a base network give way to which others."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from itertools import chain
from typing import Any, ClassVar, Final

import torch
from torch import Tensor, nn

from ..errors import UserError, near_names, unknown_name
from ..graph import replace_module
from .placeable import Copied, FirstInput, build_block, check_settings
from .source import KINDS, Source, source_from_json, stamp
from .values import MOST_LETTERS, from_json, to_json

MOST_PLACES: Final = 4096
MOST_CHANNELS: Final = 65_536
EXTRA: Final = ("none", "dropped", "returned")


@dataclass(frozen=True)
class Place:
    """One module of a network and the block that takes its place.

    name: of the module; block: a name in `PLACEABLE`; channels, in_channels: of the maps that the block
    returns and is given (None: as many); settings: of the block; extra: what becomes of further inputs of
    the module: there are "none", they are "dropped", or "returned" unchanged beside the block's output;
    copy: the network writes into what the module returns, so the block's output is copied.

    >>> Place("layer1.1", "global", 64, settings={"steps": 2}).block
    'global'
    """

    name: str
    block: str
    channels: int = 1
    in_channels: int | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    extra: str = "none"
    copy: bool = False

    def __post_init__(self) -> None:
        if not isinstance(self.name, str) or not 0 < len(self.name) <= MOST_LETTERS:
            raise UserError(f"a place: name={str(self.name)[:60]!r} must be the name of a module")
        for key in ("channels", "in_channels"):
            value = getattr(self, key)
            whole = type(value) is int and 1 <= value <= MOST_CHANNELS
            if not whole and not (key == "in_channels" and value is None):
                raise UserError(
                    f"{self.name}: {key}={str(value)[:60]} must be a whole number from 1 to {MOST_CHANNELS:,}"
                )
        if type(self.copy) is not bool:
            raise UserError(f"{self.name}: copy={str(self.copy)[:60]!r} must be true or false")
        if self.extra not in EXTRA:
            raise unknown_name(f"{self.name}: extra", str(self.extra)[:60], EXTRA)
        check_settings(self.block, self.settings)

    def build(self) -> nn.Module:
        """The block, with fresh weights."""
        block = build_block(self.block, self.channels, in_channels=self.in_channels, settings=self.settings)
        if self.copy:
            block = Copied(block)
        if self.extra == "none":
            return block
        return FirstInput(block, returned=self.extra == "returned")

    def to_json(self) -> dict[str, Any]:
        """The place as an object of JSON, without what is default."""
        entries: dict[str, Any] = {"name": self.name, "block": self.block}
        for f in fields(self)[2:]:
            value = getattr(self, f.name)
            if value != f.default and value != {}:
                entries[f.name] = to_json(dict(value) if isinstance(value, Mapping) else value, f.name)
        return entries

    @classmethod
    def from_json(cls, value: Any) -> Place:
        """The place that `to_json` wrote; raises `UserError` for anything else."""
        if not isinstance(value, dict):
            raise UserError(f"a place is an object with a 'name' and a 'block', not a {type(value).__name__}")
        known = [f.name for f in fields(cls)]
        for key in value:
            if key not in known:
                raise unknown_name("entry of a place", str(key)[:60], known)
        if "name" not in value or "block" not in value:
            raise UserError(f"a place needs a 'name' and a 'block', got {str(value)[:100]}")
        settings = value.get("settings", {})
        if not isinstance(settings, dict):
            raise UserError(
                f"{str(value['name'])[:60]}: settings must be an object, not {str(settings)[:60]!r}"
            )
        return cls(**{**value, "settings": from_json(settings, "settings")})


def put_places(network: nn.Module, places: Iterable[Place]) -> nn.Module:
    """Put a new block at every place of `network`, in place; all other modules and their weights stay.

    A block takes mode, device and dtype of what it replaces. Nothing is changed if a name is not there or a
    module cannot be replaced; raises `UserError` then.

    >>> net = put_places(nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU()), [Place("0", "none")])
    >>> net[0]
    PassThrough()
    """
    done: list[tuple[str, nn.Module]] = []
    try:
        for place in places:
            names = dict(network.named_modules(remove_duplicate=False))
            if place.name not in names:
                near = near_names(place.name, names)
                raise UserError(
                    f"the network has no module {place.name!r}"
                    + (f" (near: {', '.join(near)})" if near else "")
                )
            old = names[place.name]
            replace_module(network, place.name, new=_like(place, old, network))
            done.append((place.name, old))
    except Exception:
        for name, old in reversed(done):
            replace_module(network, name, new=old)
        raise
    return network


def _like(place: Place, old: nn.Module, network: nn.Module) -> nn.Module:
    """The block of a place with mode, device and dtype of the module that it replaces."""
    tensors = chain(old.parameters(), old.buffers(), network.parameters(), network.buffers())
    like = next((t for t in tensors if t.is_floating_point()), torch.empty(0))
    with torch.device(like.device):
        block = place.build()
    block.train(old.training)
    return block.to(like.dtype)


@dataclass(frozen=True)
class CondensedSource(Source):
    """A base network in which blocks were replaced; how the base is built decides who may build it.

    >>> from .source import NamedSource
    >>> CondensedSource(NamedSource("resnet18"), (Place("layer1.1", "norm-act", 64),)).label
    'resnet18 condensed'
    """

    kind: ClassVar[str] = "condensed"
    base: Source
    places: tuple[Place, ...]

    @property
    def label(self) -> str:
        return f"{self.base.label} condensed"

    def build(self, *, num_classes: int | None = None, in_chans: int | None = None) -> nn.Module:
        return self.applied_to(self.base.build(num_classes=num_classes, in_chans=in_chans))

    def applied_to(self, network: nn.Module) -> nn.Module:
        """`network`, which is the base, condensed in place."""
        try:
            put_places(network, self.places)
        except UserError as error:
            raise UserError(f"{self.label}: {error}") from error
        return stamp(network, self)

    def to_json(self) -> dict[str, Any]:
        places = [place.to_json() for place in self.places]
        return {"kind": self.kind, "base": self.base.to_json(), "places": places}

    @classmethod
    def from_entries(cls, entries: dict[str, Any], *, bounded: bool) -> CondensedSource:
        more = sorted(set(entries) - {"base", "places"})
        if more or len(entries) < 2:
            raise UserError(
                f"a source of the kind {cls.kind!r} needs 'base' and 'places'"
                + (f" and has the unknown entries {str(more)[:200]}" if more else "")
            )
        base, places = source_from_json(entries["base"], bounded=bounded), entries["places"]
        if isinstance(base, CondensedSource):
            raise UserError(
                "the base of a condensed network cannot be condensed itself: list all places once"
            )
        if not isinstance(places, list) or not 0 < len(places) <= MOST_PLACES:
            raise UserError(f"places must be a list of 1 to {MOST_PLACES} places, not {str(places)[:60]}")
        return cls(base, tuple(Place.from_json(p) for p in places))


KINDS[CondensedSource.kind] = CondensedSource


def condensed_source(base: Source, places: tuple[Place, ...]) -> CondensedSource:
    """The source of `base` with these places; those of a base that is condensed already come first."""
    if isinstance(base, CondensedSource):
        return CondensedSource(base.base, base.places + places)
    return CondensedSource(base, places)


def is_network_of(network: nn.Module, weights: Mapping[str, Tensor]) -> bool:
    """Whether the weights have the names of all the network's tensors, so that nothing is to be replaced."""
    return network.state_dict().keys() == weights.keys()
