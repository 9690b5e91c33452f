"""The kinds of files that can be exported to: what writes one and what loads it, by name."""

from __future__ import annotations

import importlib
import json
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch.export import ExportedProgram

from ..engines import RUNTIMES, Session, quiet
from ..engines.onnx_file import named_axes, nodes_of, onnx_proto
from ..errors import MissingExtra, UserError
from ..files import atomic_write
from ..measure.agreement import tensors_in

AsOnnx = Callable[[ExportedProgram], Any]


@dataclass(frozen=True)
class Loaded(Session):
    """A file in its engine. operators: how many of each kind, the most frequent first."""

    operators: Mapping[str, int]


class Target(ABC):
    """A kind of file.

    packages: what must be installed; extra: of this library, that installs them; about: for help texts;
    int8_packages: what 8-bit files need besides; None where there are none.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    about: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    int8_packages: ClassVar[tuple[str, ...] | None] = None
    extra: ClassVar[str] = ""

    def require(self, *, int8: bool = False) -> None:
        """Raise `MissingExtra` unless all packages can be imported, `UserError` if int8 is not for it."""
        if int8 and self.int8_packages is None:
            known = ", ".join(t.name for t in TARGETS.values() if t.int8_packages is not None)
            raise UserError(f"int8 files can be written for {known}, not for {self.name}")
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


class Onnx(Target):
    """ONNX, run by ONNX Runtime."""

    name, suffix, extra = "onnx", ".onnx", "onnx"
    about = "ONNX, for ONNX Runtime and most other engines"
    packages = ("onnx", "onnxscript", "onnxruntime")
    int8_packages = ()

    def write(
        self, program: ExportedProgram, path: Path, about: Mapping[str, Any], *, as_onnx: AsOnnx = onnx_proto
    ) -> None:
        """One file, the weights inside; `about` as JSON in its metadata_props."""
        proto = as_onnx(program)
        for key, value in about.items():
            proto.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))
        path.write_bytes(proto.SerializeToString())

    def load(self, path: Path) -> Loaded:
        """The file in a session of ONNX Runtime."""
        import onnx

        operators = _counted(node.op_type for node in nodes_of(onnx.load(path).graph))
        return Loaded(**vars(RUNTIMES["onnxruntime"].load(path)), operators=operators)


class OpenVino(Target):
    """OpenVINO's own format, made from ONNX, run in float32."""

    name, suffix, extra = "openvino", ".xml", "openvino"
    about = "OpenVINO, an .xml with a .bin beside it"
    packages = ("onnx", "onnxscript", "openvino")
    int8_packages = ("onnxruntime",)  # whose quantiser it is

    def files(self, path: Path) -> tuple[Path, ...]:
        """The network, and its weights beside it."""
        return path, path.with_suffix(".bin")

    @contextmanager
    def written(
        self, program: ExportedProgram, path: Path, about: Mapping[str, Any], *, as_onnx: AsOnnx = onnx_proto
    ) -> Iterator[Path]:
        """As of any target; the weights are moved into place just before the network."""
        network, weights = self.files(path)
        with atomic_write(network) as part, atomic_write(weights) as weights_part:
            beside = part.with_suffix(".bin")  # where the engine looks for them
            try:
                self.write(program, part, about, as_onnx=as_onnx)
                yield part
                beside.replace(weights_part)
            finally:
                beside.unlink(missing_ok=True)

    def write(
        self, program: ExportedProgram, path: Path, about: Mapping[str, Any], *, as_onnx: AsOnnx = onnx_proto
    ) -> None:
        """The network to `path`, weights in float32 beside it; `about` as JSON in its rt_info."""
        import openvino

        made = openvino.Core().read_model(as_onnx(program).SerializeToString())
        for key, value in about.items():
            made.set_rt_info(json.dumps(value, ensure_ascii=False), ["globalcnn", key])
        openvino.save_model(made, path, compress_to_fp16=False)

    def load(self, path: Path) -> Loaded:
        """The network, compiled for the CPU."""
        import openvino

        core = openvino.Core()
        core.set_property({"ENABLE_MMAP": False})  # the file is still to be moved
        kinds = [op.get_type_name() for op in core.read_model(path).get_ordered_ops()]
        operators = _counted(k for k in kinds if k not in ("Parameter", "Constant", "Result"))
        return Loaded(**vars(RUNTIMES["openvino"].load(path)), operators=operators)


class Pt2(Target):
    """The program of `torch.export`, which needs PyTorch alone to run."""

    name, suffix = "pt2", ".pt2"
    about = "torch.export, for PyTorch without this library"

    def write(
        self, program: ExportedProgram, path: Path, about: Mapping[str, Any], *, as_onnx: AsOnnx = onnx_proto
    ) -> None:
        """The program; `about` as JSON in the file about.json within."""
        extra = {"about.json": json.dumps(dict(about), ensure_ascii=False)}
        with quiet():
            torch.export.save(program, path, extra_files=extra)

    def load(self, path: Path) -> Loaded:
        """The program as a module."""
        with quiet():
            program = torch.export.load(path)
        module = program.module()
        name = program.graph_signature.user_inputs[0]
        given = next(node for node in program.graph.nodes if node.name == name)
        return Loaded(
            engine=f"torch.export, torch {torch.__version__}",
            run=lambda x: tensors_in(module(x)),
            input_name=str(name),
            input_shape=named_axes(given.meta["val"].shape),
            operators=_counted(
                str(getattr(node.target, "overloadpacket", node.target))
                .removeprefix("<built-in function ")
                .rstrip(">")
                for node in program.graph.nodes
                if node.op == "call_function"
            ),
        )


TARGETS: Final[Mapping[str, Target]] = {target.name: target for target in (Onnx(), OpenVino(), Pt2())}


def _counted(kinds: Iterable[str]) -> dict[str, int]:
    """How many of each, the most frequent first."""
    return dict(sorted(Counter(kinds).items(), key=lambda pair: (-pair[1], pair[0])))
