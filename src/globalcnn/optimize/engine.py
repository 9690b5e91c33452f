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
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..engines import RUNTIMES, exported_program
from ..engines.onnx_file import onnx_proto
from ..errors import UserError

_COMPILING = threading.Lock()  # settings of the compiler are global


class Snapshot:
    """What compiled code assumes constant in a network: its tensors, and that there are no hooks.

    It detects tensors that are replaced, written in place or swapped by `torch.func.functional_call`, and
    hooks that are registered later; it does not detect writes through `.data`.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        held = [tensors for m in modules for tensors in (m._parameters, m._buffers)]
        self._held = [tensors for tensors in held if tensors]
        tensors = [t for of_one in self._held for t in of_one.values()]
        self._counting = [t for t in tensors if t is not None and not t.is_inference()]
        hooks = [h for m in modules for h in (m._forward_hooks, m._forward_pre_hooks)]
        self._without_hooks = [h for h in hooks if not h]
        self._kept = tensors  # keeps them alive, so that no new tensor gets the id of one of them
        self._state = self._now()

    def _now(self) -> tuple[list[int], list[int]]:
        identities = [id(t) for tensors in self._held for t in tensors.values()]
        return identities, [t._version for t in self._counting]

    def holds(self) -> bool:
        """Whether nothing has changed."""
        return not any(self._without_hooks) and self._now() == self._state


@dataclass(frozen=True)
class Compiled:
    """Compiled code, what it assumes constant, and a note on a fallback, or None. process: the only one that
    it works in: the threads of a runtime do not survive a fork.
    """

    call: Callable[[Tensor], Any]
    constants: Snapshot
    note: str | None = None
    process: int | None = None

    def holds(self) -> bool:
        """Whether it may be called: nothing that it assumes has changed."""
        return self.process in (None, os.getpid()) and self.constants.holds()


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


def onnx_bytes(model: nn.Module, x: Tensor) -> bytes:
    """The network as an ONNX model for batches of the shape of `x`; `UserError` where that is impossible."""
    content: bytes = onnx_proto(exported_program(model, x, dynamic=False)).SerializeToString()
    return content


def in_runtime(
    model: nn.Module, x: Tensor, name: str, *, threads: int, onnx: Callable[[], bytes] | None = None
) -> Compiled:
    """The network in a runtime, for batches of the shape of `x` (N, C, H, W), float32, on the CPU.

    onnx: gives its ONNX model, if it is there already. Raises `UserError` for a network that cannot be
    written as ONNX, or returns something else than tensors.
    """
    constants = Snapshot(model)
    leaves, structure = tree_flatten(model(x))
    if not all(isinstance(leaf, Tensor) for leaf in leaves):
        raise UserError("the network returns something else than tensors")
    content = onnx_bytes(model, x) if onnx is None else onnx()
    session = RUNTIMES[name].load(content, threads=threads)

    def call(x: Tensor) -> Any:
        found = session.run(x.detach().contiguous())
        if len(found) != len(leaves):
            raise UserError(f"{session.engine} returns {len(found)} outputs instead of {len(leaves)}")
        return tree_unflatten(found, structure)

    return Compiled(call, constants, process=os.getpid())


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
