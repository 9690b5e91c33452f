"""The kinds of files that can be exported to: what writes one and what loads it, by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, Final

import torch
from torch.export import ExportedProgram

from ..engines import RUNTIMES, quiet
from ..engines.onnx_file import named_axes, nodes_of, onnx_proto
from ..engines.own_operator import DOMAIN
from ..engines.runtimes import openvino_core
from ..errors import UserError
from ..files import atomic_write
from ..measure.agreement import tensors_in
from ..ops.native.build import engine_library
from .pte import ExecuTorch
from .target import AsOnnx, Loaded, Target, counted


class Onnx(Target):
    """ONNX, run by ONNX Runtime."""

    name, suffix, extra = "onnx", ".onnx", "onnx"
    about = "ONNX, for ONNX Runtime and most other engines"
    packages = ("onnx", "onnxscript", "onnxruntime")
    int8_packages: ClassVar[tuple[str, ...] | None] = ()

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

        operators = counted(node.op_type for node in nodes_of(onnx.load(path).graph))
        return Loaded(**vars(RUNTIMES["onnxruntime"].load(path)), operators=operators)


class OnnxWithKernels(Onnx):
    """ONNX whose Global layers are operators of this library, for ONNX Runtime with the kernels, which are
    written beside the file.
    """

    name = "onnxruntime"
    about = "ONNX for ONNX Runtime, each Global layer an operator, its kernels a library beside it"
    int8_packages = None
    own_operators = True

    def files(self, path: Path) -> tuple[Path, ...]:
        """The network, and the kernels beside it."""
        return path, path.with_suffix(".so")

    @contextmanager
    def written(
        self, program: ExportedProgram, path: Path, about: Mapping[str, Any], *, as_onnx: AsOnnx = onnx_proto
    ) -> Iterator[Path]:
        """As of any target; the kernels are moved into place just before the network."""
        network, library = self.files(path)
        with atomic_write(network) as part, atomic_write(library) as library_part:
            self.write(program, part, about, as_onnx=as_onnx)
            yield part
            shutil.copyfile(engine_library(), library_part)

    def write(
        self, program: ExportedProgram, path: Path, about: Mapping[str, Any], *, as_onnx: AsOnnx = onnx_proto
    ) -> None:
        """As ONNX; `UserError` where no Global layer became an operator."""
        super().write(program, path, about, as_onnx=partial(onnx_proto, own_operators=True))
        import onnx

        if all(node.domain != DOMAIN for node in nodes_of(onnx.load(path).graph)):
            raise UserError(
                "the network has no Global layer that the kernels compute: export it to 'onnx', which needs "
                "no library beside the file"
            )

    def load(self, path: Path) -> Loaded:
        """The file in a session of ONNX Runtime with the kernels."""
        import onnx

        operators = counted(node.op_type for node in nodes_of(onnx.load(path).graph))
        session = RUNTIMES["onnxruntime"].load(path, operators=engine_library())
        return Loaded(**vars(session), operators=operators)


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

        made = openvino_core().read_model(as_onnx(program).SerializeToString())
        for key, value in about.items():
            made.set_rt_info(json.dumps(value, ensure_ascii=False), ["globalcnn", key])
        openvino.save_model(made, path, compress_to_fp16=False)

    def load(self, path: Path) -> Loaded:
        """The network, compiled for the CPU."""
        kinds = [op.get_type_name() for op in openvino_core().read_model(path).get_ordered_ops()]
        operators = counted(k for k in kinds if k not in ("Parameter", "Constant", "Result"))
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
            operators=counted(
                str(getattr(node.target, "overloadpacket", node.target))
                .removeprefix("<built-in function ")
                .rstrip(">")
                for node in program.graph.nodes
                if node.op == "call_function"
            ),
        )


_ALL = (Onnx(), OnnxWithKernels(), OpenVino(), Pt2(), ExecuTorch())
TARGETS: Final[Mapping[str, Target]] = {t.name: t for t in _ALL}
