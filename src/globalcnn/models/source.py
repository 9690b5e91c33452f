"""How a network is built, as data: what a run folder and a weights file keep in place of code.

- `NamedSource`: a registered name, of this library or of timm, with settings.
- `FactorySource`: a function or class that can be imported, "package.module:function", with arguments.
- `FileSource`: a function in a file of the user's, "my_net.py:build". The path is kept for information:
  weights never run the file, the user names it again.
- `ModuleSource`: a module that was passed as an object; nothing says how to build it.
- `CondensedSource` (in `condensed.py`): one of these in which blocks were replaced.

In JSON each is an object with its `kind`. `consent.py` says which of them a weights
file may have built without the user's consent.
"""

from __future__ import annotations

import re
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import zip_longest
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import nn

from ..errors import UserError, UserTypeError
from . import registry
from .factories import call_factory, function_in_file, importable
from .lazy import with_shapes
from .values import check_nesting, from_json, to_json

STAMP: Final = registry.STAMP
_DOTTED = re.compile(r"[^\W\d]\w*(\.[^\W\d]\w*)*")


@dataclass(frozen=True)
class Source:
    """How a network is built. `label` is its name in messages and tables."""

    kind: ClassVar[str]

    @property
    def label(self) -> str:
        """One line that names it."""
        raise NotImplementedError

    def build(self, *, num_classes: int | None = None, in_chans: int | None = None) -> nn.Module:
        """The network with fresh weights; None leaves a number to the network's own default."""
        raise NotImplementedError

    def to_json(self) -> dict[str, Any]:
        """The source as an object of JSON; `source_from_json` reads it."""
        raise NotImplementedError

    @classmethod
    def from_entries(cls, entries: dict[str, Any], *, bounded: bool) -> Source:
        """The source that the entries besides `kind` describe; raises `UserError`."""
        raise NotImplementedError


@dataclass(frozen=True)
class NamedSource(Source):
    """A network by its name, here or in timm, with further arguments of its constructor.

    >>> NamedSource("resnet_global_cifar", {"drop_rate": 0.1}).build(num_classes=100).num_classes
    100
    """

    kind: ClassVar[str] = "name"
    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return self.name

    def build(self, *, num_classes: int | None = None, in_chans: int | None = None) -> nn.Module:
        return registry.build_named(self.name, self.settings, num_classes=num_classes, in_chans=in_chans)

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "name": self.name, "settings": to_json(dict(self.settings), "settings")}

    @classmethod
    def from_entries(cls, entries: dict[str, Any], *, bounded: bool) -> NamedSource:
        _expect(entries, cls.kind, {"name": str, "settings": dict})
        return cls(entries["name"], from_json(entries["settings"], "settings", bounded=bounded))


@dataclass(frozen=True)
class FactorySource(Source):
    """A function (or a class of modules) that can be imported: "package.module:function", with arguments.

    It is given num_classes and in_chans only if its signature takes them.

    >>> FactorySource("torchvision.models:resnet18").build(num_classes=7).fc.out_features
    7
    """

    kind: ClassVar[str] = "factory"
    factory: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        module, _, function = self.factory.partition(":")
        if not _DOTTED.fullmatch(module) or not function.isidentifier():
            raise UserError(f"factory={self.factory!r} must be of the form 'package.module:function'")

    @property
    def label(self) -> str:
        return self.factory

    def build(self, *, num_classes: int | None = None, in_chans: int | None = None) -> nn.Module:
        made = call_factory(
            importable(self.factory), self.factory, self.arguments, num_classes=num_classes, in_chans=in_chans
        )
        return stamp(made, self)

    def to_json(self) -> dict[str, Any]:
        arguments = to_json(dict(self.arguments), "arguments")
        return {"kind": self.kind, "factory": self.factory, "arguments": arguments}

    @classmethod
    def from_entries(cls, entries: dict[str, Any], *, bounded: bool) -> FactorySource:
        _expect(entries, cls.kind, {"factory": str, "arguments": dict})
        return cls(entries["factory"], from_json(entries["arguments"], "arguments", bounded=bounded))


@dataclass(frozen=True)
class FileSource(Source):
    """A function in a Python file of the user's. Building runs the file: only for a file that the user names.

    path: absolute, or relative to the current folder; function: defined in it.
    """

    kind: ClassVar[str] = "file"
    path: str
    function: str
    arguments: Mapping[str, Any] = field(default_factory=dict)

    @property
    def label(self) -> str:
        return f"{Path(self.path).name}:{self.function}"

    def build(self, *, num_classes: int | None = None, in_chans: int | None = None) -> nn.Module:
        with function_in_file(Path(self.path), self.function) as function:
            made = call_factory(
                function, self.label, self.arguments, num_classes=num_classes, in_chans=in_chans
            )
        return stamp(made, self)

    def to_json(self) -> dict[str, Any]:
        arguments = to_json(dict(self.arguments), "arguments")
        return {"kind": self.kind, "path": self.path, "function": self.function, "arguments": arguments}

    @classmethod
    def from_entries(cls, entries: dict[str, Any], *, bounded: bool) -> FileSource:
        _expect(entries, cls.kind, {"path": str, "function": str, "arguments": dict})
        arguments = from_json(entries["arguments"], "arguments", bounded=bounded)
        return cls(entries["path"], entries["function"], arguments)


@dataclass(frozen=True)
class ModuleSource(Source):
    """A module of the class `name` that was passed as an object: nothing says how to build it."""

    kind: ClassVar[str] = "module"
    name: str

    @property
    def label(self) -> str:
        return self.name

    def build(self, *, num_classes: int | None = None, in_chans: int | None = None) -> nn.Module:
        raise UserError(
            f"a module of the class {self.name} was passed as an object, so nothing says how it is built: "
            "pass such a module again (model=), or name what builds it ('package.module:function', "
            "'my_net.py:build')"
        )

    def to_json(self) -> dict[str, Any]:
        return {"kind": self.kind, "name": self.name}

    @classmethod
    def from_entries(cls, entries: dict[str, Any], *, bounded: bool) -> ModuleSource:
        _expect(entries, cls.kind, {"name": str})
        return cls(entries["name"])


KINDS: Final[dict[str, type[Source]]] = {
    c.kind: c for c in (NamedSource, FactorySource, FileSource, ModuleSource)
}


def source_from_json(value: Any, *, bounded: bool = True) -> Source:
    """The source that a `to_json` wrote. Nothing is imported, built or run.

    bounded: whether settings and arguments must be of moderate size. Raises `UserError` for anything that is
    not such a source: types, nesting, sizes, unknown kinds and entries.

    >>> source_from_json({"kind": "name", "name": "resnet18", "settings": {}})
    NamedSource(name='resnet18', settings={})
    """
    if not isinstance(value, dict):
        raise UserError(f"a source is an object with a 'kind', not a {type(value).__name__}")
    check_nesting(value, "the source")
    kind = value.get("kind")
    if not isinstance(kind, str) or kind not in KINDS:
        raise UserError(f"unknown kind of source {str(kind)[:60]!r}; known are {', '.join(KINDS)}")
    return KINDS[kind].from_entries({k: v for k, v in value.items() if k != "kind"}, bounded=bounded)


def parse_source(text: str, *, settings: Mapping[str, Any] | None = None) -> Source:
    """The source that a word on the command line means, with settings (arguments) for it.

    A name here or in timm, "package.module:function", or "my_net.py:build". Whether names exist is checked;
    nothing is imported or run.

    >>> parse_source("my_package.nets:build")
    FactorySource(factory='my_package.nets:build', arguments={})
    """
    if not isinstance(text, str):
        raise UserTypeError(f"model={text!r} must be a name, 'package.module:function' or 'my_net.py:build'")
    settings = dict(settings or {})
    path, colon, function = text.rpartition(":")
    if colon and path.endswith(".py"):
        if not function.isidentifier():
            raise UserError(f"{text!r}: {function!r} is not the name of a function; write my_net.py:build")
        if not Path(path).is_file():
            raise UserError(f"{text!r}: there is no file {path!r}")
        return FileSource(str(Path(path).absolute()), function, settings)
    if text.endswith(".py"):
        raise UserError(f"{text!r} names a file but no function in it; write {text}:build")
    if colon and not text.startswith(("hf-hub:", "hf_hub:", "local-dir:")):
        return FactorySource(text, settings)
    registry.check_model_name(text)
    return NamedSource(text, settings)


def source_of(model: nn.Module) -> Source:
    """How `model` was built, if this library built it; else a `ModuleSource`.

    >>> source_of(registry.build_named("resnet_global_cifar", {"drop_rate": 0.2})).settings
    {'drop_rate': 0.2}
    """
    stamp = getattr(model, STAMP, None)
    if isinstance(stamp, registry.BuiltByName):
        return NamedSource(stamp.name, stamp.settings)
    return stamp if isinstance(stamp, Source) else ModuleSource(type(model).__qualname__)


def checked_source(
    model: nn.Module,
    source: Source,
    *,
    num_classes: int,
    in_chans: int,
    image_size: tuple[int, int],
) -> Source:
    """`source` if it builds a network like `model`; else a `ModuleSource`, with a warning that says why.

    Layers of a network can be replaced or changed after it was built. Its weights would then not fit what the
    source builds, or worse, fit a network that computes something else. Compared are the modules, as they
    print, and the shapes of all tensors; the values of the weights do not matter. image_size: of the image
    that gives lazy layers their shapes.
    """
    if isinstance(getattr(source, "base", source), ModuleSource):
        return source
    try:
        with torch.random.fork_rng(devices=[]):
            again = _without_memory(source, num_classes=num_classes, in_chans=in_chans)
            again = with_shapes(again, in_chans, image_size)
    except Exception as error:
        difference = f"building it again failed ({str(error)[:200]})"
    else:
        difference = _difference(model, again)
    if not difference:
        return source
    warnings.warn(
        f"the network is not as {source.label!r} builds it: {difference}. Its weights will be kept without a "
        "way to build it: load them with model=, or name a factory that builds it as it is now",
        stacklevel=3,
    )
    return ModuleSource(type(model).__qualname__)


def _without_memory(source: Source, *, num_classes: int, in_chans: int) -> nn.Module:
    try:
        with torch.device("meta"):
            return source.build(num_classes=num_classes, in_chans=in_chans)
    except Exception:  # a constructor that looks at values
        return source.build(num_classes=num_classes, in_chans=in_chans)


def _difference(model: nn.Module, again: nn.Module) -> str:
    """A phrase for the first difference between two networks; empty if they are equal."""
    for here, there in zip_longest(_lines(model), _lines(again), fillvalue="nothing"):
        if here != there:
            return f"it has {here.strip()[:150]} where {there.strip()[:150]} would be"
    shapes = [{k: tuple(v.shape) for k, v in m.state_dict().items()} for m in (model, again)]
    for name in shapes[0].keys() | shapes[1].keys():
        if shapes[0].get(name) != shapes[1].get(name):
            return f"{name} is {shapes[0].get(name)}, not {shapes[1].get(name)}"
    return ""


def _lines(model: nn.Module) -> list[str]:
    """The modules as they print, without addresses in memory."""
    return re.sub(r" at 0x[0-9a-f]+", "", repr(model)).splitlines()


def stamp(model: nn.Module, source: Source) -> nn.Module:
    """`model`, which now knows how it was built (`source_of`)."""
    setattr(model, STAMP, source)
    return model


def _expect(entries: dict[str, Any], kind: str, types: dict[str, type]) -> None:
    """The entries are these and of these types; an object that is left out is empty."""
    for name, wanted in types.items():
        if wanted is dict:
            entries.setdefault(name, {})
        if name not in entries:
            raise UserError(f"a source of the kind {kind!r} lacks {name!r}")
        if not isinstance(entries[name], wanted) or (wanted is str and not 0 < len(entries[name]) <= 4096):
            noun = "a string" if wanted is str else "an object"
            raise UserError(
                f"a source of the kind {kind!r}: {name} must be {noun}, not {str(entries[name])[:60]!r}"
            )
    more = sorted(set(entries) - set(types))
    if more:
        raise UserError(f"a source of the kind {kind!r} has the unknown entries {str(more)[:200]}")
