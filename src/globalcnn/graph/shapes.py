"""Tracing of shapes: inputs and outputs of every call of every module in one forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves
from torch.utils.weak import WeakTensorKeyDictionary

from ..errors import UserError, UserTypeError, unknown_name
from .state import eval_mode


@dataclass(frozen=True)
class TensorInfo:
    """Shape and dtype of a tensor that was passed to a module or returned by it."""

    shape: tuple[int, ...]
    dtype: torch.dtype

    def numel(self) -> int:
        """Number of its elements."""
        return prod(self.shape)

    @property
    def bytes(self) -> int:
        """Bytes of its elements."""
        return self.numel() * self.dtype.itemsize


@dataclass(frozen=True)
class Call:
    """One call of a module in the forward pass.

    name: the module's qualified name, its first one if it has several; index: the call's place in the order
    in which calls begin; parent: index of the call inside of which it was made, None for the outermost one;
    inputs, outputs: the tensors among its arguments and in what it returned, nested structures flattened.
    reads, writes: the same tensors as (number of the tensor object, its version), so that two calls passed
    on the same values where these are equal: every change in place is a new version; positional, keywords:
    its arguments; returns_tensor: whether it returned a tensor, not a structure of them.
    """

    name: str
    module: nn.Module
    index: int
    parent: int | None
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    reads: tuple[tuple[int, int], ...] = ()
    writes: tuple[tuple[int, int], ...] = ()
    positional: int = 1
    keywords: tuple[str, ...] = ()
    returns_tensor: bool = True

    @property
    def input_shape(self) -> tuple[int, ...]:
        """The shape of the only input tensor; `UserError` if there were none or several."""
        return self._only(self.inputs, "takes").shape

    @property
    def output_shape(self) -> tuple[int, ...]:
        """The shape of the only output tensor; `UserError` if there were none or several."""
        return self._only(self.outputs, "returns").shape

    def _only(self, tensors: tuple[TensorInfo, ...], verb: str) -> TensorInfo:
        if len(tensors) != 1:
            shapes = ", ".join(str(t.shape) for t in tensors) or "none"
            where = self.name or "the network"
            raise UserError(f"{where} ({type(self.module).__name__}) {verb} {len(tensors)} tensors: {shapes}")
        return tensors[0]


@dataclass(frozen=True)
class ShapeTrace:
    """All calls of one forward pass, in the order in which they began; the first is the network's own.

    names: every qualified name of every module, also of those that were never called, to the first one.
    """

    calls: tuple[Call, ...]
    names: Mapping[str, str]

    def of(self, name: str) -> tuple[Call, ...]:
        """The calls of the module `name` (any of its names); empty if it was never called."""
        if name not in self.names:
            raise unknown_name("module", name, self.names)
        return tuple(call for call in self.calls if call.name == self.names[name])

    def children(self, call: Call) -> tuple[Call, ...]:
        """The calls that were made directly inside of `call`."""
        return tuple(c for c in self.calls if c.parent == call.index)

    def inside(self, call: Call, name: str) -> bool:
        """Whether `call` was made somewhere inside of a call of the module `name`."""
        name = self.names[name]
        while call.parent is not None:
            call = self.calls[call.parent]
            if call.name == name:
                return True
        return False


def trace_shapes(
    model: nn.Module, inputs: Tensor | Sequence[Any], *, kwargs: Mapping[str, Any] | None = None
) -> ShapeTrace:
    """Run `model` once in eval mode, without gradients, and record the shapes at every call of a module.

    The forward is executed with real tensors, so it may branch on shapes or values, assert, take several
    inputs, call a module many times or never. Not recorded: calls of `forward` that bypass `__call__`,
    the inside of TorchScript modules, and functions. The model is restored: training flags, buffers, hooks;
    so are the random number generators and the grad mode.

    Parameters
    ----------
    model: any module in Python; what `torch.compile` wraps is unwrapped.
    inputs: a tensor, or the sequence of the positional arguments.
    kwargs: keyword arguments of the forward; none.

    Raises `UserTypeError` where `model` is not a module, `UserError` where it is TorchScript. What the
    forward raises is passed on.

    >>> net = nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU())
    >>> trace = trace_shapes(net, torch.zeros(1, 3, 8, 8))
    >>> [(call.name, call.input_shape, call.output_shape) for call in trace.calls]
    [('', (1, 3, 8, 8), (1, 8, 6, 6)), ('0', (1, 3, 8, 8), (1, 8, 6, 6)), ('1', (1, 8, 6, 6), (1, 8, 6, 6))]
    """
    if not isinstance(model, nn.Module):
        raise UserTypeError(f"trace_shapes: model must be a torch.nn.Module, got {type(model).__name__}")
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError("trace_shapes: model is TorchScript, whose layers cannot be hooked: give the module")
    arguments = (inputs,) if isinstance(inputs, Tensor) else tuple(inputs)
    recorder = _Recorder(model)
    try:
        recorder.attach()
        with eval_mode(model), torch.no_grad():
            model(*arguments, **(kwargs or {}))
    finally:
        recorder.detach()
    return recorder.trace()


Versions = tuple[tuple[int, int], ...]


class _Recorder:
    """Hooks on every module that keep a stack of the active calls."""

    def __init__(self, model: nn.Module) -> None:
        self.first = {module: name for name, module in model.named_modules()}
        self.names = {n: self.first[m] for n, m in model.named_modules(remove_duplicate=False)}
        self.calls: list[Call | None] = []
        self.open: list[tuple[nn.Module, int, int | None, tuple[TensorInfo, ...], Versions]] = []
        self.handles: list[Any] = []
        self.numbers: Any = WeakTensorKeyDictionary()
        self.counter = count()

    def attach(self) -> None:
        for module in self.first:
            if isinstance(module, torch.jit.ScriptModule):
                continue
            # runs before and after the user's own hooks, which may call modules or change the output
            before = module.register_forward_pre_hook(self.begin, prepend=True, with_kwargs=True)
            # also where the forward raises: a network may catch that
            after = module.register_forward_hook(self.end, with_kwargs=True, always_call=True)
            self.handles += [before, after]

    def detach(self) -> None:
        for handle in self.handles:
            handle.remove()

    def begin(self, module: nn.Module, args: Any, kwargs: Any) -> None:
        parent = self.open[-1][1] if self.open else None
        self.open.append(
            (module, len(self.calls), parent, _tensors((args, kwargs)), self.versions((args, kwargs)))
        )
        self.calls.append(None)

    def end(self, module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
        while self.open:
            opened, index, parent, inputs, reads = self.open.pop()
            if opened is module:
                self.calls[index] = Call(
                    self.first[module], module, index, parent, inputs, _tensors(output),
                    reads, self.versions(output), len(args), tuple(kwargs), isinstance(output, Tensor),
                )  # fmt: skip
                return

    def versions(self, value: Any) -> Versions:
        """(number, version) of every tensor in `value`; a tensor keeps its number as long as it lives."""
        found = []
        for leaf in tree_leaves(value):
            if isinstance(leaf, Tensor):
                if leaf not in self.numbers:
                    self.numbers[leaf] = next(self.counter)
                found.append((self.numbers[leaf], 0 if leaf.is_inference() else leaf._version))
        return tuple(found)

    def trace(self) -> ShapeTrace:
        return ShapeTrace(tuple(call for call in self.calls if call is not None), self.names)


def _tensors(value: Any) -> tuple[TensorInfo, ...]:
    leaves = (leaf for leaf in tree_leaves(value) if isinstance(leaf, Tensor))
    return tuple(TensorInfo(tuple(leaf.shape), leaf.dtype) for leaf in leaves)
