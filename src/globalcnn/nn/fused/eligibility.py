"""Whether fused operators compute the same as a Global layer: no replaced parts, no hooks.

A fused operator reads the layer's tensors and calls none of its parts. So everything that changes what a part
computes, or that is triggered by its call, must be found here: subclasses, replaced methods, hooks,
parametrisations, tensors of another kind or shape.
"""

from __future__ import annotations

from types import MethodType
from typing import TYPE_CHECKING, Any, Final

import torch
from torch import Tensor, nn
from torch.nn.modules import module as torch_module

from ...ops import PDE
from ...ops.spec import SCHEMES
from ..coefficients import Coefficient

if TYPE_CHECKING:
    from ..global_layer import GlobalLayer

ACTIVATIONS: Final[dict[type[nn.Module], str]] = {
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
}
_GLOBAL_HOOKS: Final = (
    torch_module._global_forward_hooks,
    torch_module._global_forward_pre_hooks,
    torch_module._global_backward_hooks,
    torch_module._global_backward_pre_hooks,
)
_CALLS: Final = ("forward", "_call_impl", "_wrapped_call_impl", "_slow_forward", "_compiled_call_impl")
_TENSORS: Final = ("weight", "bias", "running_mean", "running_var")
# must not be in an instance's __dict__, where it would hide the method or tensor of the same name
_REPLACED: Final[dict[type[nn.Module], tuple[str, ...]]] = {
    nn.Conv2d: (*_CALLS, *_TENSORS, "_conv_forward"),
    nn.BatchNorm2d: (*_CALLS, *_TENSORS, "_check_input_dim"),
    Coefficient: (*_CALLS, "net", "norm"),
    **dict.fromkeys(ACTIVATIONS, _CALLS),
}
_LAYER: Final = ("forward", "fields", "_pair", "_start", "_solve", "_finish")
_PARTS: Final = ("velocity_x", "velocity_y", "diffusion_x", "diffusion_y", "coefficient_act", "norm", "act")
_HIDING: Final = (*_LAYER, *_PARTS)
# the original methods: one that is replaced on the class itself is found by comparison
_METHODS: Final = tuple(
    (owner, name, getattr(owner, name))
    for owner, name in (
        (nn.Module, "__call__"),
        (nn.Module, "_call_impl"),
        (nn.Conv2d, "forward"),
        (nn.Conv2d, "_conv_forward"),
        (nn.BatchNorm2d, "forward"),
        (Coefficient, "forward"),
        *((act, "forward") for act in ACTIVATIONS),
    )
)


class Parts:
    """The parts of a layer that the operators read, collected at each call from the present submodules."""

    __slots__ = ("convolutions", "norms", "output_norm")

    def __init__(self, layer: GlobalLayer) -> None:
        held: dict[str, Any] = layer._modules
        names = _PARTS[:4] if layer.diffusivity is None else _PARTS[:2]
        coefficients = [held[name]._modules for name in names]
        self.convolutions: list[Any] = [c["net"] for c in coefficients]
        self.norms: list[Any] = [c["norm"] for c in coefficients]
        self.output_norm: Any = held["norm"]


def why_not_plain(layer: GlobalLayer) -> str | None:
    """What was changed since `GlobalLayer` built it, or is unsupported by the fused operators; None if
    nothing."""
    from ..global_layer import GlobalLayer as Plain

    if type(layer) is not Plain:
        return f"it is a {type(layer).__name__}, not a GlobalLayer itself"
    if _any_held(layer, _HIDING):
        return "a method or a part was replaced on the layer"
    modules: dict[str, Any] = layer._modules
    return (
        _why_patched(Plain)
        or _why_acts(modules)
        or _why_settings(layer)
        or _why_norm(modules["norm"], "norm")
        or _why_coefficients(layer, modules)
    )


def _why_patched(plain: type[GlobalLayer]) -> str | None:
    if any(_GLOBAL_HOOKS):
        return "a hook on all modules is registered"
    if torch.compiler.is_compiling():  # compiled code is compiled again for other methods
        return None
    for owner, name, method in _METHODS:
        if getattr(owner, name) is not method:
            return f"{owner.__name__}.{name} was replaced"
    for name, method in _own_methods(plain):
        if getattr(plain, name) is not method:
            return f"GlobalLayer.{name} was replaced"
    return None


_OWN: list[tuple[str, Any]] = []


def _own_methods(plain: type[GlobalLayer]) -> list[tuple[str, Any]]:
    if not _OWN:
        _OWN.extend((name, getattr(plain, name)) for name in _LAYER)
    return _OWN


def _why_acts(modules: dict[str, Any]) -> str | None:
    kind = type(modules["act"])
    if kind not in ACTIVATIONS or type(modules["coefficient_act"]) is not kind:
        return f"its activation {kind.__name__} has no fused form"
    for name in ("act", "coefficient_act"):
        part = modules[name]
        if kind is nn.ReLU6 and (part.min_val, part.max_val) != (0.0, 6.0):
            return "the limits of its ReLU6 were changed"
        reason = _why_part(part, name)
        if reason is not None:
            return reason
    return None


def _why_part(part: nn.Module, name: str) -> str | None:
    kind = type(part)
    if kind not in _REPLACED:
        return f"{name} is a {kind.__name__}"
    if part._forward_hooks or part._forward_pre_hooks or part._backward_hooks or part._backward_pre_hooks:
        return f"a hook watches {name}"
    if _any_held(part, _REPLACED[kind]):
        return f"a method or tensor of {name} was replaced"
    if kind in (nn.Conv2d, nn.BatchNorm2d):
        # a weight may have been registered as a buffer, or a statistic as a parameter
        held = "weight" in part._parameters and "bias" in part._parameters
        if kind is nn.BatchNorm2d:
            held = held and "running_mean" in part._buffers and "running_var" in part._buffers
        if not held:
            return f"a tensor of {name} is not the parameter or buffer that it was"
    return None


def _why_settings(layer: GlobalLayer) -> str | None:
    if type(layer.pde) is not PDE or type(layer.pde.scheme) not in SCHEMES:
        return "its equation or scheme has no fused form"
    if layer.bounded:
        return "its velocity is bounded (bounded=True), which has no fused form"
    D = layer.diffusivity
    if D is not None and not (type(D) is tuple and len(D) == 2 and all(type(d) in (float, int) for d in D)):
        return "its diffusivity is not a pair of numbers"
    return None


def _any_held(module: nn.Module, names: tuple[str, ...]) -> bool:
    """Whether the instance itself holds one of the names."""
    held = module.__dict__
    if torch.compiler.is_compiling():
        # views of keys are not known there; and looking the method up makes compiled code watch it
        return any(name in held for name in names) or not isinstance(module.forward, MethodType)
    return not held.keys().isdisjoint(names)


def _why_norm(norm: nn.Module | None, name: str) -> str | None:
    if type(norm) is not nn.BatchNorm2d:
        return f"{name} is a {type(norm).__name__}, not a BatchNorm2d"
    return _why_part(norm, name)


def _why_coefficients(layer: GlobalLayer, modules: dict[str, Any]) -> str | None:
    for name in _PARTS[:4] if layer.diffusivity is None else _PARTS[:2]:
        c = modules[name]
        if type(c) is not Coefficient:
            return f"{name} is a {type(c).__name__}, not a Coefficient"
        conv = c._modules["net"]
        if type(conv) is not nn.Conv2d or not _usual(conv, layer.channels):
            return f"{name}.net is not a depthwise convolution that keeps the shape"
        reason = (
            _why_part(c, name)
            or _why_part(conv, name + ".net")
            or _why_norm(c._modules["norm"], name + ".norm")
        )
        if reason is not None:
            return reason
    return None


def _usual(conv: nn.Conv2d, channels: int) -> bool:
    k = conv.kernel_size[0]
    return (
        conv.groups == conv.out_channels == channels
        and conv.kernel_size == (k, k)
        and k % 2 == 1
        and conv.padding == (k // 2, k // 2)
        and conv.padding_mode == "zeros"
        and conv.stride == (1, 1)
        and conv.dilation == (1, 1)
    )


def why_not_tensors(layer: GlobalLayer, parts: Parts, h: Tensor) -> str | None:
    """Which of the layer's tensors the operators cannot read together with the state `h`, or None."""
    C, k = layer.channels, parts.convolutions[0].kernel_size[0]
    kernel, vector = (C, 1, k, k), (C,)
    device = h.device
    # under autocast the state may have another dtype than the weights, which the operators convert
    dtype = None if torch.is_autocast_enabled(device.type) else h.dtype
    vectors = []
    for conv in parts.convolutions:
        held = conv._parameters
        weight = held["weight"]
        if weight is None or weight.shape != kernel or not _fits(weight, dtype, device):
            return "a convolution's weight differs in shape, dtype, device or kind"
        vectors.append(held["bias"])
    for norm in (*parts.norms, parts.output_norm):
        held, running = norm._parameters, norm._buffers
        vectors += (held["weight"], held["bias"], running["running_mean"], running["running_var"])
    for t in vectors:
        if t is not None and (t.shape != vector or not _fits(t, dtype, device)):
            return "a bias or a tensor of a norm differs in shape, dtype, device or kind"
    return None


def _fits(t: Tensor, dtype: torch.dtype | None, device: torch.device) -> bool:
    plain = type(t) is nn.Parameter or type(t) is Tensor
    return plain and (dtype is None or t.dtype is dtype) and t.device == device


def requires_grad(layer: GlobalLayer, parts: Parts) -> bool:
    """Whether a gradient reaches one of the layer's tensors, gradients being on."""
    held = (*parts.convolutions, *parts.norms, parts.output_norm)
    return any(t is not None and t.requires_grad for m in held for t in m._parameters.values())
