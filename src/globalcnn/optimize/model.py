"""The module that `optimize_for_inference` returns: a network in a variant, run by its engine."""

from __future__ import annotations

import threading
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

import torch
import torch.fx
from torch import Tensor, nn
from torch.autograd import forward_ad
from torch.utils._pytree import tree_flatten, tree_unflatten

from ..errors import UserError, UserTypeError
from ..measure import usable_cores
from .engine import Compiled, compile_for, in_runtime, kind_of, one_thread
from .report import OptimizationReport
from .variant import MEMORY_FORMATS, Variant

_MAKING = threading.RLock()


class OptimizedModel(nn.Module):
    """A network in its fastest variant, for inference: called as the network was, without gradients.

    `model` is the network, changed as described by `variant`; `report` lists what was tried; `engine_note`
    says where the engine fell back. Other batch and image sizes than the example's work; a compiled variant
    runs them uncompiled, and one for an engine such as ONNX Runtime runs them in PyTorch. So it does for all
    inputs after a conversion (`to`), a change of its weights or the registration of a hook, and in a forked
    process, where an engine's threads are missing; writes through `.data` are not detected. It stays in eval
    mode. It can be copied, pickled and saved with `torch.save`, and is compiled again where it is loaded.
    Traced, compiled or exported by the user, it is its `model`, without the engine.

    A single-threaded variant sets PyTorch's number of threads during a call: other threads of the program
    that first use PyTorch during that call start with one thread too.

    Raises `UserError` or `UserTypeError` at a call for an input that requires a gradient while gradients are
    on, one inside a transform of `torch.func`, or one whose channels, dtype or device are not the example's.
    """

    def __init__(
        self,
        model: nn.Module,
        variant: Variant,
        example: Tensor,
        *,
        onnx: Callable[[], bytes] | None = None,
    ) -> None:
        """onnx: gives the network as an ONNX model for the example, where there is one already."""
        super().__init__()
        self.model = model
        self.variant = variant
        self.report: OptimizationReport | None = None
        self.engine_note: str | None = None
        self._channels = example.shape[1]
        self._dtype, self._device = example.dtype, example.device
        size = min(variant.piece or len(example), len(example))
        self._compiled_for: tuple[object, ...] | None = self._kind(self._in_order(example[:size]))
        self.__dict__["_compiled"] = None  # past nn.Module, which would make it a submodule
        self.__dict__["_ready"] = None  # an engine, once it is made, while nothing forbids it
        self.__dict__["_onnx"] = onnx
        self.eval()

    def __call__(self, *inputs: Any, **named: Any) -> Any:
        """As for any module; where an engine runs, nothing stands between."""
        own = self.__dict__
        ready: Compiled | None = own["_ready"]
        if ready is not None and len(inputs) == 1 and not named:
            hooks = own["_forward_hooks"] or own["_forward_pre_hooks"]
            if not hooks and ready.takes(inputs[0]):
                return ready.call(inputs[0])
        return super().__call__(*inputs, **named)

    def forward(self, x: Tensor) -> Any:
        """The network's output for `x`, without gradients."""
        if _is_traced(x):
            return self.model(x)
        self._check(x)
        variant = self.variant
        with ExitStack() as around:
            if torch.is_inference_mode_enabled() and variant.compiled:
                # it would need another compilation
                around.enter_context(torch.inference_mode(False))
            if torch.is_grad_enabled():
                around.enter_context(torch.no_grad())
            if variant.one_thread and variant.engine is None:
                around.enter_context(one_thread())
            if variant.compiled and x.is_inference():
                x = x.clone()
            x, piece = self._in_order(x), variant.piece
            return self._run(x) if piece is None or len(x) <= piece else self._in_pieces(x, piece)

    def _check(self, x: Any) -> None:
        """Raise for a call that would lose a derivative, or whose input does not fit."""
        if not isinstance(x, Tensor):
            raise UserTypeError(
                f"an optimised network takes a tensor (N, {self._channels}, H, W), got {type(x).__name__}"
            )
        if x.ndim != 4 or x.shape[1] != self._channels:
            raise UserError(
                f"the input has shape {tuple(x.shape)}; the network was optimised for images "
                f"(N, {self._channels}, H, W)"
            )
        if x.device != self._device:
            raise UserError(
                f"the input is on {x.device} and the optimised network on {self._device}: "
                f"give x.to({str(self._device)!r}), or optimise the network for {x.device}"
            )
        mixed = torch.is_autocast_enabled(x.device.type) and x.is_floating_point()
        if x.dtype != self._dtype and not (mixed and self._dtype.is_floating_point):
            raise UserError(
                f"the input is {x.dtype} and the network was optimised for {self._dtype}: "
                f"give x.to({self._dtype}), or optimise the network for an example of {x.dtype}"
            )
        if torch._C._are_functorch_transforms_active():
            raise UserError(
                "an optimised network cannot be transformed by torch.func (grad, vmap, jvp and others): "
                "transform the network that it was made from"
            )
        if _wants_derivative(x):
            raise UserError(
                "an optimised network gives no gradients, and its input requires one: call it under "
                "torch.no_grad() or with x.detach(), or differentiate the network that it was made from"
            )

    def _in_order(self, x: Tensor) -> Tensor:
        wanted = self.variant.memory_format
        return x if wanted is None else x.contiguous(memory_format=MEMORY_FORMATS[wanted])

    def _in_pieces(self, x: Tensor, piece: int) -> Any:
        outputs = [tree_flatten(self._run(part)) for part in torch.split(x, piece)]
        leaves = zip(*(leaves for leaves, _ in outputs), strict=True)
        return tree_unflatten([torch.cat(parts) for parts in leaves], outputs[0][1])

    def _kind(self, x: Tensor) -> tuple[object, ...]:
        """What compiled code or an engine is made for; an engine takes any order in memory."""
        return kind_of(x, strides=self.variant.engine is None)

    def _run(self, x: Tensor) -> Any:
        made = self.variant.compiled or self.variant.engine is not None
        if not made or self._compiled_for is None or self._kind(x) != self._compiled_for:
            return self.model(x)
        compiled: Compiled | None = self.__dict__["_compiled"]
        if compiled is None:
            with _MAKING:  # tracing is not for several threads at once
                compiled = self.__dict__["_compiled"] or self._make(x)
                self.__dict__["_compiled"], self.engine_note = compiled, compiled.note
                self.__dict__["_ready"] = None if self.variant.engine is None else compiled
        return compiled.call(x.detach()) if compiled.holds() else self.model(x)

    def _make(self, x: Tensor) -> Compiled:
        variant, onnx = self.variant, self.__dict__["_onnx"]
        if variant.engine is None:
            return compile_for(self.model, x)
        threads = 1 if variant.one_thread else _threads()
        self.__dict__["_onnx"] = None
        with torch.inference_mode(False), torch.no_grad():  # it cannot be traced in inference mode
            return in_runtime(
                self.model, x.clone(), variant.engine, threads=threads, onnx=onnx, fused=variant.fused
            )

    def train(self, mode: bool = True) -> OptimizedModel:
        """Only eval mode: an optimised network cannot be trained."""
        if mode:
            raise UserError(
                "an optimised network is for inference only; train the network that it was made from"
            )
        return super().train(False)

    def _never_again(self) -> None:
        """No compiled code and no engine from now on."""
        self._compiled_for = None
        self.__dict__["_ready"] = None

    def _apply(self, fn: Any, recurse: bool = True) -> OptimizedModel:
        before = [(t.data_ptr(), t.dtype) for t in self.state_dict().values()]
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if [(t.data_ptr(), t.dtype) for t in self.state_dict().values()] != before:
            self._never_again()
        like = fn(torch.empty(0, dtype=self._dtype, device=self._device))
        self._dtype, self._device = like.dtype, like.device
        return self

    def load_state_dict(self, *arguments: Any, **options: Any) -> Any:
        """As for any module; names and values are those of the optimised network."""
        self._never_again()
        return super().load_state_dict(*arguments, **options)

    def __getstate__(self) -> dict[str, Any]:
        # compiled again where it is loaded
        return {**self.__dict__, "_compiled": None, "_ready": None, "_onnx": None}

    def extra_repr(self) -> str:
        """The variant."""
        return str(self.variant)


def _threads() -> int | None:
    """How many threads an engine gets: PyTorch's number, or where nobody set that, what the engine takes."""
    ours = torch.get_num_threads()
    return None if ours == usable_cores() else ours


def _is_traced(x: Any) -> bool:
    """Whether the call only records operations: then the network must be recorded, not its engine."""
    if torch.compiler.is_compiling() or torch.compiler.is_exporting() or torch.jit.is_tracing():  # type: ignore[no-untyped-call]
        return True
    if torch._C._len_torch_dispatch_stack():  # make_fx, counts of operations
        return True
    return isinstance(x, torch.fx.Proxy) or (isinstance(x, Tensor) and type(x) not in (Tensor, nn.Parameter))


def _wants_derivative(x: Tensor) -> bool:
    if torch.is_grad_enabled() and x.requires_grad:
        return True
    dual = not x.is_inference() and forward_ad._current_level >= 0
    return dual and forward_ad.unpack_dual(x).tangent is not None  # type: ignore[no-untyped-call]
