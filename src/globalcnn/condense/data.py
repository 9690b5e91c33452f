"""Plans: data that says which blocks of a network go, what comes in their place, and what that saves."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from pathlib import Path
from typing import Any, Final

from ..errors import UserError, unknown_name
from ..files import read_json, write_json
from ..models import Place
from ..models.placeable import check_settings
from ..models.values import from_json, to_json

FORMAT: Final = "globalcnn-condense-plan-1"
DEFAULT_BLOCK: Final = "depthwise"  # most accurate at equal latency: docs/does-it-pay.md


@dataclass(frozen=True)
class Cost:
    """Parameters, multiply-adds for one image, seconds for the example's batch (None: not measured)."""

    params: int
    macs: int
    seconds: float | None = None


@dataclass(frozen=True)
class Stage:
    """A repetition and what is to become of it.

    name: of the stage, or of its first and last block; shape: (C, H, W) of its maps, for the example; keep:
    blocks of it that stay; remove: the blocks that go, each the names of its modules in the order of their
    calls. `block`, with `settings`, takes the place of the first of them, the others pass on their input;
    where `added`, the network adds what each returns to its input, and they return zeros. in_channels: of the
    input of a stage that goes as a whole, if it has other channels than its output; extra: as in `Place`;
    copies: modules into whose output the network may write, so that it must be a tensor of its own.
    condense: whether the plan does it. before, after: of what goes and of what comes.
    """

    name: str
    shape: tuple[int, ...]
    keep: tuple[str, ...]
    remove: tuple[tuple[str, ...], ...]
    block: str = DEFAULT_BLOCK
    settings: Mapping[str, Any] = field(default_factory=dict)
    added: bool = False
    in_channels: int | None = None
    extra: str = "none"
    copies: tuple[str, ...] = ()
    condense: bool = True
    before: Cost | None = None
    after: Cost | None = None
    notes: tuple[str, ...] = ()

    def places(self) -> tuple[Place, ...]:
        """What is put where."""
        found = []
        for i, names in enumerate(self.remove):
            comes = i == 0 and self.block not in ("none", "zeros")
            for name in names:
                copy = name in self.copies
                extra = self.extra if len(names) == 1 else "none"
                if comes and name == names[0]:
                    place = Place(
                        name, self.block, self.shape[0], self.in_channels, self.settings, extra, copy
                    )
                else:
                    zeros = self.added and not comes and name == names[-1]
                    place = Place(name, "zeros" if zeros else "none", extra=extra, copy=copy and not zeros)
                found.append(place)
        return tuple(found)

    def to_json(self) -> dict[str, Any]:
        """The stage as an object of JSON."""
        return {
            "name": self.name,
            "condense": self.condense,
            "block": self.block,
            "settings": to_json(dict(self.settings), "settings"),
            "keep": list(self.keep),
            "remove": [names[0] if len(names) == 1 else list(names) for names in self.remove],
            "shape": list(self.shape),
            "in_channels": self.in_channels,
            "added": self.added,
            "extra": self.extra,
            "copies": list(self.copies),
            "before": None if self.before is None else asdict(self.before),
            "after": None if self.after is None else asdict(self.after),
            "notes": list(self.notes),
        }

    @classmethod
    def from_json(cls, value: Any) -> Stage:
        """The stage that `to_json` wrote; raises `UserError` for anything else."""
        entries = _entries(
            value, "a stage of the plan", [f.name for f in fields(cls)], ("name", "shape", "remove")
        )
        where = f"stage {str(entries['name'])[:60]!r}"
        settings = entries.get("settings", {})
        if not isinstance(settings, dict):
            raise UserError(f"{where}: settings must be an object, not {str(settings)[:60]}")
        shape = _whole_numbers(entries["shape"], f"{where}: shape")
        remove = entries["remove"]
        if not isinstance(remove, list) or not remove:
            raise UserError(
                f"{where}: remove must be a list of names of blocks; to keep all, set condense to false"
            )
        for name, kind in (("condense", bool), ("added", bool), ("block", str), ("extra", str)):
            if name in entries and type(entries[name]) is not kind:
                noun = "true or false" if kind is bool else "a string"
                raise UserError(f"{where}: {name} must be {noun}, not {str(entries[name])[:60]!r}")
        stage = cls(
            **{
                **entries,
                "name": _string(entries["name"], "the name of a stage"),
                "shape": shape,
                "settings": from_json(settings, f"{where}: settings"),
                "keep": _strings(entries.get("keep", []), f"{where}: keep"),
                "remove": tuple(
                    _strings([r] if isinstance(r, str) else r, f"{where}: remove") for r in remove
                ),
                "copies": _strings(entries.get("copies", []), f"{where}: copies"),
                "before": _cost(entries.get("before"), f"{where}: before"),
                "after": _cost(entries.get("after"), f"{where}: after"),
                "notes": _strings(entries.get("notes", []), f"{where}: notes"),
            }
        )
        stage.places()  # block, settings, channels
        return stage


@dataclass(frozen=True)
class Untouched:
    """A part of the network that stays as it is, and why."""

    name: str
    reason: str


@dataclass(frozen=True)
class Plan:
    """What `plan` proposes and `apply` does: data that can be printed, edited and kept as JSON.

    network: its name; example: shape of the example input; stages: in the order of the forward; untouched:
    what was passed over and why; before, after: of the whole network, after with the chosen stages; tensors:
    names and shapes of all parameters and buffers, by which a plan of another network is told.

    `edited` changes a stage; `chosen` are the stages that are condensed; `save` and `load` use a JSON file.
    """

    network: str
    example: tuple[int, ...]
    stages: tuple[Stage, ...]
    untouched: tuple[Untouched, ...]
    before: Cost
    after: Cost | None
    tensors: Mapping[str, tuple[int, ...]] = field(repr=False)

    @property
    def chosen(self) -> tuple[Stage, ...]:
        """The stages that are condensed."""
        return tuple(stage for stage in self.stages if stage.condense)

    def places(self) -> tuple[Place, ...]:
        """What is put where, all stages together."""
        return tuple(place for stage in self.chosen for place in stage.places())

    def edited(
        self,
        stage: str,
        *,
        condense: bool | None = None,
        block: str | None = None,
        settings: Mapping[str, Any] | None = None,
    ) -> Plan:
        """The plan with one stage changed; what is not given stays, another block has its own settings.

        The figures of what comes are not known then, and become None.
        """
        names = [s.name for s in self.stages]
        if stage not in names:
            raise unknown_name("stage", str(stage), names)
        old = self.stages[names.index(stage)]
        new = old if condense is None else replace(old, condense=bool(condense))
        if block is not None and block != old.block:
            new = replace(new, block=block, settings={}, after=None)
        if settings is not None:
            new = replace(new, settings=dict(settings), after=None)
        check_settings(new.block, new.settings)
        return replace(self, stages=tuple(new if s is old else s for s in self.stages), after=None)

    def __str__(self) -> str:
        from .text import as_text

        return as_text(self)

    def to_json(self) -> dict[str, Any]:
        """The plan as an object of JSON."""
        return {
            "format": FORMAT,
            "network": self.network,
            "example": list(self.example),
            "before": asdict(self.before),
            "after": None if self.after is None else asdict(self.after),
            "stages": [stage.to_json() for stage in self.stages],
            "untouched": [asdict(u) for u in self.untouched],
            "tensors": {k: "x".join(map(str, v)) for k, v in self.tensors.items()},
        }

    @classmethod
    def from_json(cls, value: Any) -> Plan:
        """The plan that `to_json` wrote, as it was edited; `UserError` names what does not fit."""
        known = ["format", *(f.name for f in fields(cls))]
        e = _entries(value, "the plan", known, ("format", "network", "stages", "tensors"))
        if e["format"] != FORMAT:
            raise UserError(f"the plan is of the format {str(e['format'])[:60]!r}, not {FORMAT!r}")
        if not isinstance(e["stages"], list) or not isinstance(e.get("untouched", []), list):
            raise UserError("the plan: stages and untouched must be lists")
        stages = tuple(Stage.from_json(s) for s in e["stages"])
        names = [s.name for s in stages]
        twice = next((n for n in names if names.count(n) > 1), None)
        if twice is not None:
            raise UserError(f"the plan has two stages of the name {twice!r}")
        removed = [n for s in stages if s.condense for names in s.remove for n in names]
        again = next((n for n in removed if removed.count(n) > 1), None)
        if again is not None:
            raise UserError(f"the plan removes {again!r} twice")
        return cls(
            network=_string(e["network"], "network"),
            example=_whole_numbers(e.get("example", []), "example", lowest=0),
            stages=stages,
            untouched=tuple(_untouched(u) for u in e.get("untouched", [])),
            before=_cost(e.get("before"), "before") or Cost(0, 0),
            after=_cost(e.get("after"), "after"),
            tensors=_tensors(e["tensors"]),
        )

    def save(self, path: str | Path) -> None:
        """Write the plan to a JSON file, atomically."""
        write_json(path, self.to_json())

    @classmethod
    def load(cls, path: str | Path) -> Plan:
        """The plan in a JSON file; `UserError` that names the file where it cannot be read or is not one."""
        value = read_json(path)
        try:
            return cls.from_json(value)
        except UserError as error:
            raise UserError(f"{str(path)!r}: {error}") from error


def _entries(value: Any, what: str, known: list[str], needed: tuple[str, ...]) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise UserError(f"{what} must be an object, not a {type(value).__name__}")
    for key in value:
        if key not in known:
            raise unknown_name(f"entry of {what}", str(key)[:60], known)
    missing = [key for key in needed if key not in value]
    if missing:
        raise UserError(f"{what} lacks {missing[0]!r}: {str(value)[:100]}")
    return dict(value)


def _string(value: Any, what: str) -> str:
    if not isinstance(value, str):
        raise UserError(f"{what} must be a string, not {str(value)[:60]!r}")
    return value


def _strings(value: Any, what: str) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(v, str) for v in value):
        raise UserError(f"{what} must be a list of names, not {str(value)[:60]!r}")
    if what.endswith("remove") and not value:
        raise UserError(f"{what} has an empty block")
    return tuple(value)


def _whole_numbers(value: Any, what: str, *, lowest: int = 1) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not all(type(v) is int and v >= lowest for v in value):
        raise UserError(f"{what} must be a list of whole numbers from {lowest}, not {str(value)[:60]}")
    return tuple(value)


def _cost(value: Any, what: str) -> Cost | None:
    if value is None:
        return None
    e = _entries(value, what, ["params", "macs", "seconds"], ("params", "macs"))
    for key in ("params", "macs"):
        if type(e[key]) is not int or e[key] < 0:
            raise UserError(f"{what}: {key} must be a whole number, not {str(e[key])[:60]!r}")
    seconds = e.get("seconds")
    if seconds is not None and (type(seconds) not in (int, float) or not seconds >= 0):
        raise UserError(f"{what}: seconds must be a number or null, not {str(seconds)[:60]!r}")
    return Cost(e["params"], e["macs"], seconds)


def _untouched(value: Any) -> Untouched:
    e = _entries(value, "untouched", ["name", "reason"], ("name", "reason"))
    return Untouched(_string(e["name"], "untouched: name"), _string(e["reason"], "untouched: reason"))


def _tensors(value: Any) -> dict[str, tuple[int, ...]]:
    if not isinstance(value, dict) or not value:
        raise UserError("tensors must be an object of names and shapes, such as {'conv.weight': '16x3x3x3'}")
    found = {}
    for name, shape in value.items():
        parts = shape.split("x") if isinstance(shape, str) and shape else []
        if not isinstance(shape, str) or not all(p.isdecimal() for p in parts):
            raise UserError(
                f"tensors: the shape of {name[:80]!r} must be such as '16x3x3x3', not {str(shape)[:60]!r}"
            )
        found[name] = tuple(int(p) for p in parts)
    return found
