"""A kind of file: what writes one and what loads it."""

from __future__ import annotations

import importlib
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

from torch.export import ExportedProgram

from ..engines import Session
from ..engines.onnx_file import onnx_proto
from ..errors import MissingExtra, UserError
from ..files import atomic_write

AsOnnx = Callable[[ExportedProgram], Any]


@dataclass(frozen=True)
class Loaded(Session):
    """A file in its engine. operators: how many of each kind, the most frequent first."""

    operators: Mapping[str, int]


class Target(ABC):
    """A kind of file.

    packages: what must be installed; extra: of this library, that installs them; about: for help texts;
    int8_packages: what 8-bit files need besides; None where there are none; dynamic: whether a file can take
    any batch and image size; own_operators: whether Global layers are operators of this library there.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    about: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    int8_packages: ClassVar[tuple[str, ...] | None] = None
    dynamic: ClassVar[bool] = True
    own_operators: ClassVar[bool] = False
    extra: ClassVar[str] = ""

    def require(self, *, int8: bool = False) -> None:
        """Raise `MissingExtra` unless all packages can be imported, `UserError` if int8 is not for it."""
        if int8 and self.int8_packages is None:
            raise UserError(f"int8 files can be written for onnx and openvino, not for {self.name}")
        for package in (*self.packages, *((self.int8_packages or ()) if int8 else ())):
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise MissingExtra(package, feature=f"export to {self.name}", extra=self.extra) from error

    def files(self, path: Path) -> tuple[Path, ...]:
        """The files that an export to `path` consists of."""
        return (path,)

    @contextmanager
    def written(
        self, program: ExportedProgram, path: Path, about: Mapping[str, Any], *, as_onnx: AsOnnx = onnx_proto
    ) -> Iterator[Path]:
        """Write beside `path` and yield where; when the block succeeds, all files are moved into place."""
        with atomic_write(path) as part:
            self.write(program, part, about, as_onnx=as_onnx)
            yield part

    @abstractmethod
    def write(
        self, program: ExportedProgram, path: Path, about: Mapping[str, Any], *, as_onnx: AsOnnx = onnx_proto
    ) -> None:
        """Write the program, and `about` (plain JSON by key), to the path. as_onnx: makes an ONNX model."""

    @abstractmethod
    def load(self, path: Path) -> Loaded:
        """The file at the path in its engine."""


def counted(kinds: Iterable[str]) -> dict[str, int]:
    """How many of each, the most frequent first."""
    return dict(sorted(Counter(kinds).items(), key=lambda pair: (-pair[1], pair[0])))
