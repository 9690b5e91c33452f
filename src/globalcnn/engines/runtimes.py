"""The runtimes by name: what each needs, and how it takes an ONNX model or a file of its own."""

from __future__ import annotations

import importlib
import os
import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib import metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, ClassVar, Final, final

import torch
from torch import Tensor

from ..errors import MissingExtra, UserTypeError, unknown_name
from .onnx_file import named_axes


@dataclass(frozen=True)
class Session:
    """A network in a runtime, on the CPU, in float32.

    engine: name and version of the runtime; run: the outputs for a batch, in order, callable from several
    threads at once; input_shape: numbers, and the names of the axes of any length.
    """

    engine: str
    run: Callable[[Tensor], list[Tensor]]
    input_name: str
    input_shape: tuple[int | str, ...]


class Runtime(ABC):
    """What runs ONNX models. shown: its name in print; package: what must be installed; extra: of this
    library, that installs it and what writes ONNX; takes_own_operators: this library's operators too.
    """

    takes_own_operators: ClassVar[bool] = False
    name: ClassVar[str]
    shown: ClassVar[str]
    package: ClassVar[str]
    extra: ClassVar[str]

    @property
    def installed(self) -> bool:
        """Whether it and what writes ONNX are there; nothing is imported."""
        return all(find_spec(package) is not None for package in self._packages())

    def require(self, feature: str) -> None:
        """Raise `MissingExtra` unless all packages can be imported."""
        for package in self._packages():
            try:
                importlib.import_module(package)
            except ImportError as error:
                raise MissingExtra(package, feature=feature, extra=self.extra) from error

    def _packages(self) -> tuple[str, ...]:
        return "onnx", "onnxscript", self.package

    @property
    def version(self) -> str:
        """Name and version, as in reports."""
        try:
            told = metadata.version(self.package)
        except metadata.PackageNotFoundError:  # a build under another name, such as onnxruntime-gpu
            told = str(importlib.import_module(self.package).__version__)
        return f"{self.shown} {told}"

    @abstractmethod
    def load(
        self, content: bytes | Path, *, threads: int | None = None, operators: Path | None = None
    ) -> Session:
        """A network from an ONNX model or a file. threads: at most so many; None: what the runtime takes;
        operators: the library of this library's own ones (`own_operator.py`).
        """


@final
class OnnxRuntime(Runtime):
    """ONNX Runtime, its default CPU provider."""

    name, shown, package, extra = "onnxruntime", "ONNX Runtime", "onnxruntime", "onnx"
    takes_own_operators = True

    def load(
        self, content: bytes | Path, *, threads: int | None = None, operators: Path | None = None
    ) -> Session:
        import onnxruntime

        settings = onnxruntime.SessionOptions()
        settings.log_severity_level = 3  # errors alone
        if threads is not None:
            settings.intra_op_num_threads = threads
        if operators is not None:
            settings.register_custom_ops_library(str(operators))
        session = onnxruntime.InferenceSession(content, settings, providers=["CPUExecutionProvider"])
        (given,) = session.get_inputs()

        def run(x: Tensor) -> list[Tensor]:
            return [torch.from_numpy(out) for out in session.run(None, {given.name: x.numpy()})]

        return Session(self.version, run, given.name, named_axes(given.shape))


def openvino_core() -> Any:
    """The `openvino.Core` of this process, made once and never freed.

    Its plugin for the CPU gives the thread that loads it another stack for signals, and takes that back when
    the core is freed. Of several cores, freed in another order than they were made, the thread is left with a
    stack that is gone, and the next signal that has a handler ends the process.
    """
    import openvino

    with _MAKING:
        core = _CORES.get(os.getpid())
        if core is None:
            core = _CORES[os.getpid()] = openvino.Core()
            core.set_property({"ENABLE_MMAP": False})  # a file may still be moved
        return core


_CORES: Final[dict[int, Any]] = {}  # by process: after a fork the threads of the parent's are missing
_MAKING: Final = threading.Lock()


@final
class OpenVino(Runtime):
    """OpenVINO on the CPU. On its own it would compute in bfloat16 where there is that: it is told not to."""

    name, shown, package, extra = "openvino", "OpenVINO", "openvino", "openvino"

    def load(
        self, content: bytes | Path, *, threads: int | None = None, operators: Path | None = None
    ) -> Session:
        import openvino

        core = openvino_core()
        made = core.read_model(content)
        settings: dict[str, Any] = {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_PRECISION_HINT": "f32"}
        if threads is not None:
            settings["INFERENCE_NUM_THREADS"] = threads
        compiled = core.compile_model(made, "CPU", settings)
        outputs = range(len(compiled.outputs))
        own = threading.local()  # a request serves one thread at a time

        def run(x: Tensor) -> list[Tensor]:
            request = getattr(own, "request", None)
            if request is None:
                request = own.request = compiled.create_infer_request()
            # infer(inputs) looks at what it is given, and makes a dictionary: 60 us at every call
            request.set_input_tensor(openvino.Tensor(x.numpy(), shared_memory=True))
            request.infer(share_outputs=True)
            return [torch.from_numpy(request.get_output_tensor(i).data).clone() for i in outputs]

        given = made.input(0)
        axes = [None if d.is_dynamic else d.get_length() for d in given.get_partial_shape()]
        return Session(f"{self.version}, float32", run, given.get_any_name(), named_axes(axes))


RUNTIMES: Final[Mapping[str, Runtime]] = {r.name: r for r in (OnnxRuntime(), OpenVino())}


def installed_runtimes() -> tuple[str, ...]:
    """The names of those that are installed."""
    return tuple(name for name, runtime in RUNTIMES.items() if runtime.installed)


def checked_runtimes(engines: Iterable[str] | None, *, feature: str) -> tuple[str, ...]:
    """The names given, each known and installed, once; None means all that are installed.

    Raises `UserError` for an unknown name, `MissingExtra` where one is not installed, `UserTypeError` for
    something else than names.
    """
    if engines is None:
        return installed_runtimes()
    if isinstance(engines, str) or not isinstance(engines, Iterable):
        raise UserTypeError(
            f"engines={engines!r} must be a sequence of names, such as ('onnxruntime',); () for none"
        )
    names = tuple(dict.fromkeys(engines))
    for name in names:
        if name not in RUNTIMES:
            raise unknown_name("engine", str(name), RUNTIMES)
        RUNTIMES[name].require(feature)
    return names
