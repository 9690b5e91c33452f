"""The kinds of files that can be exported to: what writes one and what loads it, by name."""

from __future__ import annotations

import importlib
import json
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch import Tensor
from torch.export import ExportedProgram

from ..errors import MissingExtra, UserError
from ..files import atomic_write
from ..measure.agreement import tensors_in
from .program import quiet

INPUT: Final = "images"
OUTPUT: Final = "output"
AXES: Final = ("batch", "channels", "height", "width")
MOST_BYTES: Final = 2**31 - 2**24  # of weights in one ONNX file, whose format ends at 2 GiB


@dataclass(frozen=True)
class Loaded:
    """A file in its engine, on the CPU.

    engine: its name and version; run: the outputs for a batch, in order; input_shape: numbers, and the names
    of the axes of any length; operators: how many of each kind.
    """

    engine: str
    run: Callable[[Tensor], list[Tensor]]
    input_name: str
    input_shape: tuple[int | str, ...]
    operators: Mapping[str, int]


class Target(ABC):
    """A kind of file.

    packages: what must be installed; extra: of this library, that installs them; about: for help texts.
    """

    name: ClassVar[str]
    suffix: ClassVar[str]
    about: ClassVar[str]
    packages: ClassVar[tuple[str, ...]] = ()
    extra: ClassVar[str] = ""

    def require(self) -> None:
        """Raise `MissingExtra` unless all packages can be imported."""
        for package in self.packages:
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise MissingExtra(package, feature=f"export to {self.name}", extra=self.extra) from error

    def files(self, path: Path) -> tuple[Path, ...]:
        """The files that an export to `path` consists of."""
        return (path,)

    @contextmanager
    def written(self, program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> Iterator[Path]:
        """Write beside `path` and yield where; when the block succeeds, all files are moved into place."""
        with atomic_write(path) as part:
            self.write(program, part, about)
            yield part

    @abstractmethod
    def write(self, program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
        """Write the program, and `about` (plain JSON by key), to the path."""

    @abstractmethod
    def load(self, path: Path) -> Loaded:
        """The file at the path in its engine."""


class Onnx(Target):
    """ONNX, run by ONNX Runtime."""

    name, suffix, extra = "onnx", ".onnx", "onnx"
    about = "ONNX, for ONNX Runtime and most other engines"
    packages = ("onnx", "onnxscript", "onnxruntime")

    def write(self, program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
        """One file, the weights inside; `about` as JSON in its metadata_props."""
        proto = onnx_proto(program)
        for key, value in about.items():
            proto.metadata_props.add(key=key, value=json.dumps(value, ensure_ascii=False))
        path.write_bytes(proto.SerializeToString())

    def load(self, path: Path) -> Loaded:
        """The file in a session of ONNX Runtime."""
        import onnx
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3  # errors alone
        session = onnxruntime.InferenceSession(path, settings, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()

        def run(x: Tensor) -> list[Tensor]:
            return [torch.from_numpy(out) for out in session.run(None, {given.name: x.numpy()})]

        nodes = _nodes(onnx.load(path).graph)
        return Loaded(
            engine=f"ONNX Runtime {metadata.version('onnxruntime')}",
            run=run,
            input_name=given.name,
            input_shape=named_axes(given.shape),
            operators=_counted(node.op_type for node in nodes),
        )


class OpenVino(Target):
    """OpenVINO's own format, made from ONNX, run in float32."""

    name, suffix, extra = "openvino", ".xml", "openvino"
    about = "OpenVINO, an .xml with a .bin beside it"
    packages = ("onnx", "onnxscript", "openvino")

    def files(self, path: Path) -> tuple[Path, ...]:
        """The network, and its weights beside it."""
        return path, path.with_suffix(".bin")

    @contextmanager
    def written(self, program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> Iterator[Path]:
        """As of any target; the weights are moved into place just before the network."""
        network, weights = self.files(path)
        with atomic_write(network) as part, atomic_write(weights) as weights_part:
            beside = part.with_suffix(".bin")  # where the engine looks for them
            try:
                self.write(program, part, about)
                yield part
                beside.replace(weights_part)
            finally:
                beside.unlink(missing_ok=True)

    def write(self, program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
        """The network to `path`, weights in float32 beside it; `about` as JSON in its rt_info."""
        import openvino

        made = openvino.Core().read_model(onnx_proto(program).SerializeToString())
        for key, value in about.items():
            made.set_rt_info(json.dumps(value, ensure_ascii=False), ["globalcnn", key])
        openvino.save_model(made, path, compress_to_fp16=False)

    def load(self, path: Path) -> Loaded:
        """The network, compiled for the CPU. On its own it would compute in bfloat16 where there is that."""
        import openvino

        core = openvino.Core()
        core.set_property({"ENABLE_MMAP": False})  # the file is still to be moved
        made = core.read_model(path)
        settings = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        compiled = core.compile_model(made, "CPU", settings)
        request = compiled.create_infer_request()

        def run(x: Tensor) -> list[Tensor]:
            found = request.infer([x.numpy()], share_inputs=True)
            return [torch.from_numpy(found[output]) for output in compiled.outputs]

        kinds = [op.get_type_name() for op in made.get_ordered_ops()]
        shape = made.input(0).get_partial_shape()
        return Loaded(
            engine=f"OpenVINO {metadata.version('openvino')}, float32",
            run=run,
            input_name=made.input(0).get_any_name(),
            input_shape=named_axes([None if d.is_dynamic else d.get_length() for d in shape]),
            operators=_counted(k for k in kinds if k not in ("Parameter", "Constant", "Result")),
        )


class Pt2(Target):
    """The program of `torch.export`, which needs PyTorch alone to run."""

    name, suffix = "pt2", ".pt2"
    about = "torch.export, for PyTorch without this library"

    def write(self, program: ExportedProgram, path: Path, about: Mapping[str, Any]) -> None:
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


def onnx_proto(program: ExportedProgram) -> Any:
    """The program as an ONNX model of standard operators, without traces of the machine that made it."""
    size = sum(t.numel() * t.element_size() for t in program.state_dict.values())
    if size > MOST_BYTES:
        raise UserError(
            f"the weights take {size / 2**30:.1f} GiB, and an ONNX file holds at most 2: export to 'pt2'"
        )
    outputs = [OUTPUT] if len(program.graph_signature.user_outputs) == 1 else None
    try:
        with quiet():
            made: Any = torch.onnx.export(
                program, dynamo=True, verbose=False, input_names=[INPUT], output_names=outputs
            )
        proto = made.model_proto
    except Exception as error:  # an operator without a translation raises many kinds
        lines = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(f"the network cannot be written as ONNX: {lines[0][:200]}") from error
    others = sorted(
        {f"{n.domain}::{n.op_type}" for n in _nodes(proto.graph) if n.domain not in ("", "ai.onnx")}
    )
    if others or proto.functions:
        raise UserError(
            f"the network cannot be written as ONNX: {', '.join(others)} are not among its standard operators"
        )
    _tidy(proto.graph)
    return proto


def _tidy(graph: Any) -> None:
    """Name the axes of any length; leave out the places in source files that each operator came from."""
    axes = graph.input[0].type.tensor_type.shape.dim
    names = {d.dim_param: name for d, name in zip(axes, AXES, strict=False) if d.dim_param}
    for value in (*graph.input, *graph.output, *graph.value_info):
        del value.metadata_props[:]
        for dim in value.type.tensor_type.shape.dim:
            if dim.dim_param:
                dim.dim_param = re.sub(r"\w+", lambda m: names.get(m[0], m[0]), dim.dim_param)
    for node in _nodes(graph):
        del node.metadata_props[:]
    for tensor in graph.initializer:
        del tensor.metadata_props[:]


def _nodes(graph: Any) -> Iterator[Any]:
    """The nodes of a graph, and of the graphs in their attributes."""
    for node in graph.node:
        yield node
        for attribute in node.attribute:
            for inner in (attribute.g, *attribute.graphs):
                yield from _nodes(inner)


def _counted(kinds: Iterable[str]) -> dict[str, int]:
    """How many of each, the most frequent first."""
    return dict(sorted(Counter(kinds).items(), key=lambda pair: (-pair[1], pair[0])))


def named_axes(shape: Iterable[Any]) -> tuple[int | str, ...]:
    """The lengths of the axes of images; the name of the axis where any length will do.

    >>> named_axes((None, 3, "s7", 32))
    ('batch', 3, 'height', 32)
    """
    return tuple(d if type(d) is int else name for d, name in zip(shape, AXES, strict=False))
