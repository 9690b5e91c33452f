"""Settings of a network as JSON, and the bounds within which a file may give them.

What a file says may come from a stranger: every value is of a known kind and of bounded size, and nothing in
it names code but layers and classes on the lists below.
"""

from __future__ import annotations

import enum
import json
import math
from collections.abc import Mapping
from dataclasses import fields, is_dataclass
from typing import Any, Final

from torch import nn

from ..errors import UserError
from ..nn.implicit import fixed_point
from ..nn.implicit.equilibrium import Solver
from ..ops import PDE, DuFortFrankel, GatedSweeps, TridiagonalImplicit
from .darts_cells import Genotype

MOST_WHOLE: Final = 4096  # widths, depths, steps, pixels
MOST_REAL: Final = 1e6
MOST_LETTERS: Final = 300
MOST_ENTRIES: Final = 256
MOST_NESTING: Final = 6
MOST_JSON: Final = 1_000_000  # letters of a card

# values that are written as {"$type": name, field: value, ...}
CLASSES: Final[dict[str, type]] = {
    c.__name__: c
    for c in (
        PDE,
        DuFortFrankel,
        GatedSweeps,
        TridiagonalImplicit,
        Solver,
        Genotype,
        fixed_point.Broyden,
        fixed_point.Anderson,
        fixed_point.Picard,
    )
}
# where the layers come from that act_layer= and norm_layer= may name: {"$type": "torch.nn", "name": "SiLU"}
LAYERS_OF: Final = (
    "torch.nn.modules.activation",
    "torch.nn.modules.batchnorm",
    "torch.nn.modules.normalization",
)


def to_json(value: Any, what: str) -> Any:
    """`value` in plain JSON; `what` names it in the error for a value that JSON cannot hold."""
    if isinstance(value, enum.Enum):
        return to_json(value.value, what)
    if value is None or isinstance(value, (bool, int, str)):
        return value
    if isinstance(value, float):
        if not math.isfinite(value):
            raise UserError(f"{what}={value!r} is not finite, so it cannot be kept in a file")
        return value
    if isinstance(value, (list, tuple)):
        return [to_json(v, f"{what}[{i}]") for i, v in enumerate(value)]
    if isinstance(value, Mapping) and all(isinstance(k, str) for k in value):
        return {k: to_json(v, f"{what}[{k!r}]") for k, v in value.items()}
    if isinstance(value, type) and _layer(value.__name__) is value:
        return {"$type": "torch.nn", "name": value.__name__}
    if isinstance(value, DuFortFrankel):  # schemes are stateless
        return {"$type": "DuFortFrankel"}
    if is_dataclass(value) and CLASSES.get(type(value).__name__) is type(value):
        parts = {f.name: to_json(getattr(value, f.name), f"{what}.{f.name}") for f in fields(value)}
        return {"$type": type(value).__name__, **parts}
    raise UserError(
        f"{what}={value!r} cannot be kept in a file: settings are numbers, strings, lists, dictionaries, "
        f"layers of torch.nn (activations, norms) and {', '.join(CLASSES)}. Name a factory instead, "
        '"package.module:function", that sets this itself'
    )


def from_json(value: Any, what: str, *, bounded: bool = True) -> Any:
    """The value that `to_json` wrote; lists come back as tuples.

    bounded: whether numbers, strings and lists must be of moderate size. Raises `UserError` naming `what`.
    """
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, (int, float)):
        _check_number(value, what, bounded=bounded)
        return value
    if isinstance(value, str):
        if bounded and len(value) > MOST_LETTERS:
            raise UserError(f"{what} is a string of {len(value)} letters; at most {MOST_LETTERS} are allowed")
        return value
    if bounded and len(value) > MOST_ENTRIES:
        raise UserError(f"{what} has {len(value)} entries; at most {MOST_ENTRIES} are allowed")
    if isinstance(value, list):
        return tuple(from_json(v, f"{what}[{i}]", bounded=bounded) for i, v in enumerate(value))
    entries = {
        k: from_json(v, f"{what}[{k[:40]!r}]", bounded=bounded) for k, v in value.items() if k != "$type"
    }
    return entries if "$type" not in value else _object(value["$type"], entries, what)


def _object(kind: Any, entries: dict[str, Any], what: str) -> Any:
    if kind == "torch.nn":
        layer = _layer(entries.get("name"))
        if layer is None or set(entries) != {"name"}:
            raise UserError(f"{what} names {entries!r}, which is no activation or norm of torch.nn")
        return layer
    cls = CLASSES.get(kind) if isinstance(kind, str) else None
    if cls is None:
        raise UserError(f"{what} is of the unknown type {kind!r}; known are torch.nn, {', '.join(CLASSES)}")
    try:
        return cls(**entries)
    except TypeError as error:
        raise UserError(f"{what}: {error}") from error


def _layer(name: Any) -> type | None:
    """The activation or norm of torch.nn by that name."""
    layer = getattr(nn, name, None) if isinstance(name, str) else None
    return layer if isinstance(layer, type) and layer.__module__ in LAYERS_OF else None


def _check_number(value: float, what: str, *, bounded: bool) -> None:
    if isinstance(value, float) and not math.isfinite(value):
        raise UserError(f"{what}={value!r} must be finite")
    most = MOST_WHOLE if isinstance(value, int) else MOST_REAL
    if bounded and abs(value) > most:
        raise UserError(f"{what}={_short(value)} is out of bounds: a file may ask for at most {most:g}")


def _short(value: float) -> str:
    return f"{value!r}" if abs(value) < 10**18 else "a number of more than 18 digits"


def parse(text: str, where: str) -> dict[str, Any]:
    """The JSON object in `text`; a `UserError` that names `where` for anything else, however it is nested."""
    if len(text) > MOST_JSON:
        raise UserError(f"{where} is {len(text):,} letters long; at most {MOST_JSON:,} are allowed")
    try:
        value = json.loads(text)
    except (ValueError, RecursionError) as error:
        kind = "nested too deep" if isinstance(error, RecursionError) else f"not JSON: {error}"
        raise UserError(f"{where} is damaged: it is {kind}") from error
    if not isinstance(value, dict):
        raise UserError(f"{where} is damaged: it is a {type(value).__name__}, not an object of named entries")
    check_nesting(value, where)
    return value


def check_nesting(value: Any, where: str) -> None:
    """Raise `UserError` if lists and objects are nested more than a few levels deep."""
    level, depth = [value], 0
    while level:
        depth += 1
        if depth > MOST_NESTING + 3:
            raise UserError(f"{where} is damaged: it is nested more than {MOST_NESTING + 2} deep")
        children: list[Any] = []
        for v in level:
            if isinstance(v, dict):
                children += v.values()
            elif isinstance(v, (list, tuple)):
                children += v
        level = [v for v in children if isinstance(v, (dict, list, tuple))]
