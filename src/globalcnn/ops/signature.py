"""What the contract of an operator is made of: kinds of arguments, and `Operator`, which follows from them.

`spec.py` states the contract itself. An `Operator` knows its schema, packs and unpacks a call, and checks it.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any, ClassVar, get_type_hints

import torch
from torch import Tensor

from ..errors import UserError


@dataclass(frozen=True)
class Map:
    """A tensor (N, C, H, W) with N, C >= 0 and H, W >= 1, of the first map's shape, dtype and device."""

    schema: ClassVar[str] = "Tensor"
    optional: bool = False


@dataclass(frozen=True)
class Parameter:
    """A tensor of these sizes: C is that of the maps, G is 2 (u, v) or 4 (u, v, Dx, Dy), k is odd and at most
    `max_kernel`.

    Its dtype is that of the arithmetic: float64 for float64 maps, float32 for all others.
    """

    schema: ClassVar[str] = "Tensor"
    sizes: tuple[str, ...]
    max_kernel: int = 0
    optional: ClassVar[bool] = False


@dataclass(frozen=True)
class Number:
    """A finite float >= 0, or > 0."""

    schema: ClassVar[str] = "float"
    positive: bool

    @property
    def allowed(self) -> str:
        return "finite and > 0" if self.positive else "finite and >= 0"

    def fits(self, value: float) -> bool:
        return math.isfinite(value) and (value > 0 if self.positive else value >= 0)


@dataclass(frozen=True)
class Count:
    """A whole number from `least` to `most`."""

    schema: ClassVar[str] = "int"
    least: int
    most: int

    @property
    def allowed(self) -> str:
        return f"from {self.least} to {self.most}"

    def fits(self, value: int) -> bool:
        return self.least <= value <= self.most


@dataclass(frozen=True)
class Enumeration:
    """One of `names`, by its place among them; `type_name` is the C++ enumeration."""

    schema: ClassVar[str] = "int"
    type_name: str
    names: tuple[str, ...]

    @property
    def allowed(self) -> str:
        return "one of " + ", ".join(f"{i} ({name})" for i, name in enumerate(self.names))

    def fits(self, value: int) -> bool:
        return 0 <= value < len(self.names)


@dataclass(frozen=True)
class Flag:
    """A truth value."""

    schema: ClassVar[str] = "bool"
    allowed: ClassVar[str] = "true or false"

    def fits(self, value: object) -> bool:
        return isinstance(value, bool)


Kind = Map | Parameter | Number | Count | Enumeration | Flag
_TENSORS = (Map, Parameter)


@dataclass(frozen=True)
class Output:
    """A result with the shape, dtype and, for maps, strides of the argument `like`.

    per: an optional argument, without which the result is empty, of shape (0,). Laid out as `like` is.
    """

    name: str
    like: str
    per: str | None = None


@dataclass(frozen=True)
class Argument:
    """One argument of a schema. path: how to reach it from the operator's dataclass."""

    name: str
    kind: Kind
    path: tuple[str, ...]

    @property
    def schema(self) -> str:
        mark = "?" if isinstance(self.kind, _TENSORS) and self.kind.optional else ""
        return f"{self.kind.schema}{mark} {self.name}"

    @property
    def is_tensor(self) -> bool:
        return isinstance(self.kind, _TENSORS)


@dataclass(frozen=True)
class Operator:
    """One operator `globalcnn::name`.

    together: pairs of optional arguments of which both are given or neither. images_alone: the images of a
    batch are independent of each other.
    """

    name: str
    takes: type
    returns: tuple[Output, ...]
    together: tuple[tuple[str, str], ...] = ()
    images_alone: bool = True

    @cached_property
    def arguments(self) -> tuple[Argument, ...]:
        return tuple(_arguments(self.takes, ()))

    @cached_property
    def tensors(self) -> tuple[Argument, ...]:
        return tuple(a for a in self.arguments if a.is_tensor)

    @property
    def schema(self) -> str:
        taken = ", ".join(a.schema for a in self.arguments)
        results = ", ".join("Tensor" for _ in self.returns)
        return f"{self.name}({taken}) -> {results if len(self.returns) == 1 else f'({results})'}"

    def pack(self, given: Any) -> tuple[Any, ...]:
        """The arguments of a call, in the schema's order, from an instance of `takes`."""
        return tuple(reach(given, a.path) for a in self.arguments)

    def unpack(self, values: Sequence[Any]) -> Any:
        """An instance of `takes` from the arguments of a call."""
        return _build(self.takes, iter(values))

    def by_name(self, values: Sequence[Any]) -> dict[str, Any]:
        """The arguments of a call by name."""
        return {a.name: value for a, value in zip(self.arguments, values, strict=True)}

    def check(self, values: Sequence[Any]) -> None:
        """Raise `UserError`, naming operator, argument, value and what is allowed, for what does not fit."""
        given = self.by_name(values)
        sizes: dict[str, int] = {}
        first = self.arguments[0].name
        for a in self.tensors:
            value = given[a.name]
            if value is None and a.kind.optional:  # type: ignore[union-attr]
                continue
            if not isinstance(value, Tensor):
                self._refuse(a.name, repr(value), "a tensor")
            if isinstance(a.kind, Map):
                self._check_map(a.name, value, first, given[first])
                sizes["C"] = value.shape[1]
            if isinstance(a.kind, Parameter):
                self._check_parameter(a.name, a.kind, value, given[first], sizes)
        for one, other in self.together:
            if (given[one] is None) != (given[other] is None):
                there, absent = (other, one) if given[one] is None else (one, other)
                self._refuse(absent, "None", f"a tensor where {there} is one, or {there} None too")
        for a in self.arguments:
            if not isinstance(a.kind, _TENSORS) and not a.kind.fits(given[a.name]):
                self._refuse(a.name, repr(given[a.name]), a.kind.allowed)

    def _check_map(self, name: str, value: Tensor, first: str, h: Tensor) -> None:
        if value.layout is not torch.strided or value.is_quantized:
            self._refuse(name, f"of layout {value.layout}", "a dense tensor")
        if value.ndim != 4 or any(n < 1 for n in value.shape[2:]):
            self._refuse(name, f"of shape {tuple(value.shape)}", "of shape (N, C, H, W) with H, W >= 1")
        if value.shape != h.shape:
            self._refuse(name, f"of shape {tuple(value.shape)}", f"of {first}'s shape, {tuple(h.shape)}")
        if not value.is_floating_point():
            self._refuse(name, f"of dtype {value.dtype}", "of a floating dtype")
        if value.dtype != h.dtype:
            self._refuse(name, f"of dtype {value.dtype}", f"of {first}'s dtype, {h.dtype}")
        self._check_device(name, value, h)

    def _check_parameter(
        self, name: str, kind: Parameter, value: Tensor, h: Tensor, sizes: dict[str, int]
    ) -> None:
        wide = compute_dtype(h.dtype)
        pattern = f"({', '.join(kind.sizes)})"
        known = {s: sizes[s] for s in kind.sizes if s in sizes}
        where = f" with {', '.join(f'{s} = {n}' for s, n in known.items())}" if known else ""
        shape = f"of shape {tuple(value.shape)}"
        if value.layout is not torch.strided or value.is_quantized:
            self._refuse(name, f"of layout {value.layout}", "a dense tensor")
        if value.ndim != len(kind.sizes):
            self._refuse(name, shape, f"of shape {pattern}{where}")
        for size, n in zip(kind.sizes, value.shape, strict=True):
            if sizes.setdefault(size, n) != n:
                self._refuse(name, shape, f"of shape {pattern}{where}")
        if "G" in kind.sizes and sizes["G"] not in (2, 4):
            self._refuse(name, shape, f"of shape {pattern}{where}, where G is 2 (u, v) or 4 (u, v, Dx, Dy)")
        if "k" in kind.sizes and not (sizes["k"] % 2 == 1 and sizes["k"] <= kind.max_kernel):
            self._refuse(name, shape, f"of shape {pattern}{where}, where k is odd and <= {kind.max_kernel}")
        if value.dtype != wide:
            self._refuse(name, f"of dtype {value.dtype}", f"{wide} for maps of {h.dtype}")
        self._check_device(name, value, h)

    def _check_device(self, name: str, value: Tensor, h: Tensor) -> None:
        if value.device != h.device:
            self._refuse(name, f"on {value.device}", f"on {h.device} as the other tensors are")

    def _refuse(self, name: str, value: str, allowed: str) -> None:
        raise UserError(f"globalcnn::{self.name}: {name} is {value}; it must be {allowed}")


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What operators compute in, and their parameters' dtype: float64 for float64 maps, else float32."""
    return torch.float64 if dtype == torch.float64 else torch.float32


@functools.cache
def _fields(takes: type) -> tuple[tuple[str, Kind | type], ...]:
    """The fields of an operator's dataclass, with nested dataclasses flattened."""
    hints = get_type_hints(takes, include_extras=True)
    return tuple((f.name, getattr(hints[f.name], "__metadata__", (hints[f.name],))[0]) for f in fields(takes))


def _arguments(takes: type, path: tuple[str, ...]) -> Iterator[Argument]:
    for name, kind in _fields(takes):
        if isinstance(kind, type):
            yield from _arguments(kind, (*path, name))
        else:
            yield Argument(name, kind, (*path, name))


def reach(given: Any, path: tuple[str, ...]) -> Any:
    """The value at `path` in an instance of an operator's dataclass."""
    for name in path:
        given = getattr(given, name)
    return given


def _build(takes: type, values: Iterator[Any]) -> Any:
    pairs = _fields(takes)
    return takes(*(_build(kind, values) if isinstance(kind, type) else next(values) for _, kind in pairs))
