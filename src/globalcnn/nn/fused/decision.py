"""How a Global layer runs for one input: decided once per call, with the reason."""

from __future__ import annotations

import enum
import warnings
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.utils._device import DeviceContext

from ...errors import SlowPathWarning
from ...ops.dispatch import automatic, why_not_fast
from ...ops.spec import MAX_KERNEL, MAX_TRAINED_KERNEL
from .eligibility import Parts, requires_grad, why_not_plain, why_not_tensors

if TYPE_CHECKING:
    from ..global_layer import GlobalLayer


class Way(enum.Enum):
    """How a Global layer computes its output."""

    INFERENCE = "fused inference"
    TRAINING = "fused training"
    MODULES = "module by module"


@dataclass(frozen=True)
class Decision:
    """How a call runs, why, and the command that would make it faster, if there is one."""

    way: Way
    reason: str
    remedy: str | None = None

    def __str__(self) -> str:
        remedy = "" if self.remedy is None else f"; `{self.remedy}` fixes this"
        return f"{self.way.value}: {self.reason}{remedy}"


def decide(layer: GlobalLayer, h: Tensor, f: Tensor, *, differentiate: bool = False) -> Decision:
    """How a call that starts from state `h` and source `f` runs.

    differentiate: whether a gradient is needed although neither h nor f requires one (for `explain`, which
    computes h without gradients).
    """
    found = automatic(h, layer.pde)
    backend = found.name
    if not found.fused:
        return _modules(*_slow(h, layer))
    reason = why_not_fusable(layer) or _why_mode()
    if reason is not None:
        return _modules(reason)
    parts = Parts(layer)
    reason = _why_inputs(h, f) or why_not_tensors(layer, parts, h)
    if reason is not None:
        return _modules(reason)
    if all(norm.training for norm in parts.norms):
        reason = found.why_not_operator("evolve", layer.pde) or why_not_trained(layer, parts, h)
        if reason is not None:
            return _modules(reason)
        return Decision(Way.TRAINING, f"one operator of the {backend} kernels up to the output norm")
    reason = found.why_not_operator("layer", layer.pde) or why_not_inference(parts)
    if reason is None and torch.is_grad_enabled():
        differentiate = differentiate or h.requires_grad or f.requires_grad or requires_grad(layer, parts)
        if differentiate:
            reason = "in eval mode with gradients (torch.no_grad() allows fused inference)"
    if reason is not None:
        return _modules(reason)
    return Decision(Way.INFERENCE, f"one operator of the {backend} kernels, norms folded at each call")


def why_not_fusable(layer: GlobalLayer) -> str | None:
    """Why the layer cannot be fused for any input, or None."""
    return why_not_plain(layer)


def why_not_inference(parts: Parts) -> str | None:
    """Why norms cannot be folded, or None."""
    kernels = {conv.kernel_size for conv in parts.convolutions}
    if len(kernels) > 1 or max(kernels)[0] > MAX_KERNEL:
        return f"its kernels differ or exceed {MAX_KERNEL}"
    for norm in (*parts.norms, parts.output_norm):
        if norm.training:
            return "a norm is in training mode and another in eval mode"
        if norm._buffers["running_mean"] is None or norm._buffers["running_var"] is None:
            return "a norm has no running statistics"
        if type(norm.eps) not in (float, int) or norm.eps < 0:
            return "the eps of a norm is not a number >= 0"
    return None


def why_not_trained(layer: GlobalLayer, parts: Parts, h: Tensor) -> str | None:
    """Why the evolution cannot be one operator in training, or None."""
    if h.shape[0] * h.shape[2] * h.shape[3] < 2:
        return "in training on one value per channel"
    kernels = {conv.kernel_size for conv in parts.convolutions}
    if isinstance(layer.act, nn.Identity) or len(kernels) > 1 or max(kernels)[0] > MAX_TRAINED_KERNEL:
        return f"in training without activation, or with kernels that differ or exceed {MAX_TRAINED_KERNEL}"
    if layer.velocity_from == "f" and layer.init is not None:
        return "in training with velocity from f and diffusion from h"
    biases = [conv._parameters["bias"] is not None for conv in parts.convolutions]
    norms = parts.norms
    if any(biases) != all(biases) or any(
        n._parameters["weight"] is None or n._parameters["bias"] is None for n in norms
    ):
        return "in training with norms without weights, or some convolutions without bias"
    if not all(type(n.momentum) is float and type(n.eps) in (float, int) for n in norms):
        return "in training with norms whose momentum is not a number"
    if any(n.eps < 0 for n in norms):
        return "in training with a negative eps"
    if len({(n.eps, n.momentum, n.track_running_stats) for n in norms}) > 1:
        return "in training with norms of different eps, momentum or statistics"
    if any((n._buffers["running_mean"] is None) != (n._buffers["running_var"] is None) for n in norms):
        return "in training with a norm that has one running statistic of two"
    return None


def _why_inputs(h: Tensor, f: Tensor) -> str | None:
    for t in (h, f):
        if type(t) is not Tensor and type(t) is not nn.Parameter:
            return f"its input is a {type(t).__name__}, not a plain tensor"
    if f.device != h.device:
        return f"its source is on {f.device} and its state on {h.device}"
    return None


def _why_mode() -> str | None:
    """A mode that intercepts PyTorch's operators must see the operators of the layer's parts."""
    if torch.compiler.is_compiling():
        return None
    functions = torch._C._len_torch_function_stack()
    for i in range(functions):
        mode = torch._C._get_function_stack_at(i)
        if not isinstance(mode, DeviceContext):
            return f"the torch function mode {type(mode).__name__} is active"
    if torch._C._len_torch_dispatch_stack():
        return "a torch dispatch mode is active"
    return None


def _slow(h: Tensor, layer: GlobalLayer) -> tuple[str, str | None]:
    """Why there is no fast backend, and the command that fixes it."""
    reason = why_not_fast(h, layer.pde)
    mended = "globalcnn build" in reason or "build again" in reason or "does not load" in reason
    return reason, "globalcnn build" if mended else None


def _modules(reason: str, remedy: str | None = None) -> Decision:
    return Decision(Way.MODULES, reason, remedy)


_SAID: set[str] = set()


def warn_once(decision: Decision) -> None:
    """Warn once per process that a command would make the layer several times faster."""
    if decision.remedy is None or decision.remedy in _SAID or torch.compiler.is_compiling():
        return
    _SAID.add(decision.remedy)
    warnings.warn(
        f"GlobalLayer runs {decision.way.value}, several times slower than by its fused kernels "
        f"({decision.reason}). Run `{decision.remedy}` once",
        SlowPathWarning,
        stacklevel=3,
    )
