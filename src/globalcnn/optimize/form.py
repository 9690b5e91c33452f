"""A form that a network can be brought into, and the module that runs it in this form."""

from __future__ import annotations

import copy
import importlib
import logging
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from types import FunctionType
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import UserError
from ..graph import fold_batch_norms
from ..nn import GlobalLayer
from ..nn.fused import FusedGlobalLayer
from .report import OptimizationReport


@dataclass(frozen=True)
class Form:
    """How a network is run; the defaults stand for "as is".

    folded: BatchNorms folded into convolutions; fused: each Global layer one operator; memory_format: of
    weights and inputs, None leaves them; one_thread; piece: images of a batch that are run at once, None for
    all; compiled: by torch.compile, with the weights as constants.
    """

    folded: bool = False
    fused: bool = False
    memory_format: torch.memory_format | None = None
    one_thread: bool = False
    piece: int | None = None
    compiled: bool = False

    def parts(self) -> tuple[str, ...]:
        """What is done, in words."""
        formats = {
            None: "",
            torch.channels_last: "channels-last",
            torch.contiguous_format: "contiguous memory",
        }
        words = (
            "convolution + BatchNorm folded" if self.folded else "",
            "Global layers fused" if self.fused else "",
            formats[self.memory_format],
            "one thread" if self.one_thread else "",
            f"pieces of {self.piece}" if self.piece else "",
            "compiled" if self.compiled else "",
        )
        return tuple(w for w in words if w)

    def __str__(self) -> str:
        return ", ".join(self.parts()) or "as is"

    def beyond(self, other: Form) -> str:
        """What this form changes in `other`, in words."""
        new = [p for p in self.parts() if p not in other.parts()]
        gone = [f"without {p}" for p in other.parts() if p not in self.parts()]
        return ", ".join(new + gone) or "as is"

    @property
    def weights(self) -> tuple[object, ...]:
        """What of the form is in the module itself: forms that agree in it can share one."""
        return self.folded, self.fused, self.memory_format


def prepared(model: nn.Module, form: Form) -> tuple[nn.Module, list[str]]:
    """A copy of `model` (in eval mode) with what the form changes in it, and notes on what could not be."""
    module = copy.deepcopy(model)
    notes: list[str] = []
    with torch.no_grad():
        if form.folded:
            folding = fold_batch_norms(module)
            if not folding.norms:
                raise UserError("; ".join(("no BatchNorm directly follows a convolution", *folding.notes)))
            notes.append(f"{len(folding.norms)} BatchNorms folded")
        if form.memory_format is not None:
            module = module.to(memory_format=form.memory_format)
        if form.fused:  # last: the operator reads its own weights contiguously
            module = _fuse(module)
    return module, notes


def _fuse(module: nn.Module) -> nn.Module:
    if isinstance(module, GlobalLayer):
        return FusedGlobalLayer.from_layer(module) or module
    for name, child in module.named_modules():
        if isinstance(child, GlobalLayer):
            fused = FusedGlobalLayer.from_layer(child)
            if fused is not None:
                parent, _, last = name.rpartition(".")
                setattr(module.get_submodule(parent), last, fused.eval())
    return module


def by_itself(module: nn.Module) -> Callable[[Tensor], Any]:
    """Calls the module. What torch compiles is kept with the code that it was compiled from, a few per code:
    networks of one class would crowd each other out, so each gets a copy of the code."""

    def call(x: Tensor) -> Any:
        return module(x)

    return FunctionType(call.__code__.replace(), call.__globals__, None, None, call.__closure__)


def _kind(x: Tensor) -> tuple[object, ...]:
    """What the code compiled for an input depends on, besides the weights."""
    return x.shape, x.stride(), x.dtype, x.device, torch.is_autocast_enabled(x.device.type)


@contextmanager
def _one_thread() -> Iterator[None]:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)


def _import_quietly(name: str) -> None:
    """Import a module that warns as it is imported: this one looks for CUDA, which nothing here needs."""
    logger = logging.getLogger(name)
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        importlib.import_module(name)
    finally:
        logger.setLevel(level)


def compiled_for(model: nn.Module, x: Tensor) -> Callable[[Tensor], Any]:
    """The network compiled for inputs like `x` (`_kind`) alone, weights as constants; a call checks nothing.

    On a CPU the code that calls the kernels in turn is compiled C++ too, where that can be done.
    """
    import torch._inductor.config as inductor  # takes seconds, and only compiling needs it

    # checks of everything that the compiled code depends on take a tenth of a millisecond at every call
    unchecked = getattr(torch.compiler, "skip_all_guards_unsafe", None)
    options = None if unchecked is None else {"guard_filter_fn": unchecked}

    def compiled_by(cpp_wrapper: bool) -> Callable[[Tensor], Any]:
        compiled: Any = torch.compile(by_itself(model), fullgraph=True, dynamic=False, options=options)
        with inductor.patch(freezing=True, cpp_wrapper=cpp_wrapper):
            compiled(x)
        return compiled  # type: ignore[no-any-return]

    if x.device.type == "cpu":
        _import_quietly("torch.utils.cpp_extension")
        try:
            return compiled_by(cpp_wrapper=True)
        except Exception:  # whatever it cannot put into C++; what is wrong otherwise shows below
            pass
    return compiled_by(cpp_wrapper=False)


class OptimizedModel(nn.Module):
    """A network in its fastest form, for inference: called as the network was, without gradients.

    `model` is the network itself (changed as `form` says), `report` what was tried. Other batch and image
    sizes than the example's work; a compiled form runs those uncompiled, and everything once it is converted
    (`to`) or given other weights (`load_state_dict`). What is written into the weights in place is not seen
    by what is compiled. It stays in eval mode.
    """

    def __init__(self, model: nn.Module, form: Form, example: Tensor) -> None:
        super().__init__()
        self.model = model
        self.form = form
        self.report: OptimizationReport | None = None
        size = min(form.piece or len(example), len(example))
        self._compiled_for: tuple[object, ...] | None = _kind(self._in_order(example[:size]))
        self.__dict__["_compiled"] = None  # past nn.Module, which would make it a submodule
        self.eval()

    def forward(self, x: Tensor) -> Any:
        """What the network gives for `x`, without gradients."""
        with ExitStack() as around:
            if torch.is_inference_mode_enabled() and self.form.compiled:
                # what is compiled would be compiled once more for it
                around.enter_context(torch.inference_mode(False))
            if torch.is_grad_enabled():
                around.enter_context(torch.no_grad())
            if self.form.one_thread:
                around.enter_context(_one_thread())
            if self.form.compiled and x.is_inference():
                x = x.clone()
            x = self._in_order(x)
            piece = self.form.piece
            return self._run(x) if piece is None or len(x) <= piece else self._in_pieces(x, piece)

    def _in_order(self, x: Tensor) -> Tensor:
        wanted = self.form.memory_format
        return x if wanted is None else x.contiguous(memory_format=wanted)

    def _in_pieces(self, x: Tensor, piece: int) -> Any:
        outputs = [tree_flatten(self._run(part)) for part in torch.split(x, piece)]
        leaves = zip(*(leaves for leaves, _ in outputs), strict=True)
        return tree_unflatten([torch.cat(parts) for parts in leaves], outputs[0][1])

    def _run(self, x: Tensor) -> Any:
        if not self.form.compiled or self._compiled_for is None or _kind(x) != self._compiled_for:
            return self.model(x)
        compiled = self.__dict__["_compiled"]
        if compiled is None:
            compiled = self.__dict__["_compiled"] = compiled_for(self.model, x)
        return compiled(x)

    def train(self, mode: bool = True) -> OptimizedModel:
        """Only eval mode: an optimised network cannot be trained."""
        if mode:
            raise UserError(
                "an optimised network is for inference only; train the network that it was made from"
            )
        return super().train(False)

    def _apply(self, fn: Any, recurse: bool = True) -> OptimizedModel:
        before = [(t.data_ptr(), t.dtype) for t in self.state_dict().values()]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if [(t.data_ptr(), t.dtype) for t in self.state_dict().values()] != before:
            self._compiled_for = None
        return self

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """As of any module; names and values are those of the optimised network."""
        self._compiled_for = None
        return super().load_state_dict(*arguments, **options)

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_compiled": None}  # compiled again where it is loaded

    def extra_repr(self) -> str:
        """The form."""
        return str(self.form)
