"""What runs a variant: compiled code or a runtime for one kind of input, a single thread."""

from __future__ import annotations

import importlib
import logging
import os
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..engines import RUNTIMES, exported_program
from ..engines.onnx_file import onnx_proto
from ..engines.own_operator import operator_library
from ..errors import UserError
from .snapshot import Snapshot

_COMPILING = threading.Lock()  # settings of the compiler are global


@dataclass(frozen=True)
class Compiled:
    """Compiled code, what it assumes constant, and a note on a fallback, or None. process: the only one that
    it works in: the threads of a runtime do not survive a fork. shape: of the batches that a runtime takes.
    """

    call: Callable[[Tensor], Any]
    constants: Snapshot
    note: str | None = None
    process: int | None = None
    shape: torch.Size | None = None

    def holds(self) -> bool:
        """Whether it may be called: nothing that it assumes has changed."""
        return self.process in (None, os.getpid()) and self.constants.holds()

    def takes(self, x: Any) -> bool:
        """Whether a runtime may be called for `x` without further checks. Each test takes time in a small
        network's call: what is rare is left to the full checks.
        """
        return (
            type(x) is Tensor
            and torch._C._get_tracing_state() is None
            and x.shape == self.shape
            and x.dtype is torch.float32
            and x.is_cpu
            and not x.requires_grad
            and not torch.compiler.is_compiling()
            and torch._C._len_torch_dispatch_stack() == 0
            and not torch._C._are_functorch_transforms_active()
            and forward_ad._current_level < 0
            and not torch.is_autocast_enabled("cpu")
            and self.holds()
        )


def separately(module: nn.Module) -> Callable[[Tensor], Any]:
    """A function with a new code object that calls the module.

    torch caches compiled results per code object, only a few for each: networks of one class would evict each
    other's.
    """

    def call(x: Tensor) -> Any:
        return module(x)

    return FunctionType(call.__code__.replace(), call.__globals__, None, None, call.__closure__)


def kind_of(x: Tensor, *, strides: bool = True) -> tuple[object, ...]:
    """The properties of an input, besides its values, that compiled code depends on; strides among them."""
    device = x.device.type
    autocast = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else None
    precise = torch.get_float32_matmul_precision(), torch.are_deterministic_algorithms_enabled()
    return x.shape, x.stride() if strides else None, x.dtype, x.device, autocast, precise


def compile_for(model: nn.Module, x: Tensor, *, compiler: Callable[..., Any] = torch.compile) -> Compiled:
    """The network compiled for inputs like `x` (`kind_of`) alone, with the weights as constants.

    On a CPU the code that calls the kernels one after another is compiled C++ too. Where that fails,
    PyTorch's Python code calls them, and the note says why.
    """
    import torch._inductor.config as inductor  # takes seconds, and only compiling needs it

    # checks of everything that the compiled code depends on take a tenth of a millisecond at every call
    unchecked = getattr(torch.compiler, "skip_all_guards_unsafe", None)
    options = None if unchecked is None else {"guard_filter_fn": unchecked}

    def compiled_by(cpp_wrapper: bool) -> Callable[[Tensor], Any]:
        compiled: Any = compiler(separately(model), fullgraph=True, dynamic=False, options=options)
        with inductor.patch(freezing=True, cpp_wrapper=cpp_wrapper):
            compiled(x)
        return compiled  # type: ignore[no-any-return]

    with _COMPILING:
        constants = Snapshot(model)
        if x.device.type != "cpu":
            return Compiled(compiled_by(cpp_wrapper=False), constants)
        _import_quietly("torch.utils.cpp_extension")
        try:
            return Compiled(compiled_by(cpp_wrapper=True), constants)
        except Exception as error:  # the graph cannot be wrapped in C++; other errors appear below again
            reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:160]
        note = f"compiled code is called from Python, as calls from C++ failed: {reason}"
        return Compiled(compiled_by(cpp_wrapper=False), constants, note)


def onnx_bytes(model: nn.Module, x: Tensor, *, own_operators: bool = False) -> bytes:
    """The network as an ONNX model for batches of the shape of `x`; `UserError` where that is impossible.

    own_operators: its fused Global layers as one operator each, which needs `operator_library`.
    """
    program = exported_program(model, x, dynamic=False, own_operators=own_operators)
    content: bytes = onnx_proto(program, own_operators=own_operators).SerializeToString()
    return content


def in_runtime(
    model: nn.Module,
    x: Tensor,
    name: str,
    *,
    threads: int | None,
    onnx: Callable[[], bytes] | None = None,
    fused: bool = False,
) -> Compiled:
    """The network in a runtime, for batches of the shape of `x` (N, C, H, W), float32, on the CPU.

    threads: at most so many; None: what the runtime takes; onnx: gives its ONNX model, if there is one;
    fused: its fused Global layers run by this library's kernels, if they are there.
    Raises `UserError` for a network that cannot be written as ONNX, or returns something else than tensors.
    """
    constants = Snapshot(model)
    leaves, structure = tree_flatten(model(x))
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise UserError("the network returns something else than tensors")
    library = operator_library() if fused and RUNTIMES[name].takes_own_operators else None
    content = onnx_bytes(model, x, own_operators=library is not None) if onnx is None else onnx()
    session = RUNTIMES[name].load(content, threads=threads, operators=library)

    found = session.run(x)
    if len(found) != len(leaves):
        raise UserError(f"{session.engine} returns {len(found)} outputs instead of {len(leaves)}")
    if structure == tree_flatten(leaves[0])[1]:  # a tensor alone

        def call(x: Tensor) -> Any:
            return session.run(x.contiguous())[0]
    else:

        def call(x: Tensor) -> Any:
            return tree_unflatten(session.run(x.contiguous()), structure)

    return Compiled(call, constants, process=os.getpid(), shape=x.shape)


def _import_quietly(name: str) -> None:
    """Import a module without its warnings: it looks for CUDA, which is not needed here."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        importlib.import_module(name)
    finally:
        logger.setLevel(level)


@contextmanager
def one_thread() -> Iterator[None]:
    """PyTorch computes with one thread inside."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
