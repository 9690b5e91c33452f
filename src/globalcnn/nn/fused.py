"""The Global layer by fused operators: whole, for inference, its norms folded into its convolutions; and in
training all from the state h to the evolved state H, the coefficients' norms included.
"""

from __future__ import annotations

import operator
from typing import TYPE_CHECKING
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from ..ops import torch_ops
from ..ops.dispatch import automatic, load_for
from ..ops.torch_ops import decomposition
from .coefficients import Coefficient

if TYPE_CHECKING:
    from .global_layer import GlobalLayer

_ACTS: dict[type[nn.Module], str] = {
    nn.Identity: "identity",
    nn.ReLU: "relu",
    nn.ReLU6: "relu6",
    nn.SiLU: "silu",
    nn.Hardswish: "hardswish",
}


_MAX_TRAINED_KERNEL = 7
_WATCHED = "a hook watches one of its parts"


def refuses(layer: GlobalLayer) -> str | None:
    """Why this layer cannot be one operator at inference, or None; weights are not looked at."""
    known = _known(layer)
    if known.reason is None and known.watched():
        return _WATCHED
    if known.reason is None and any(n.training or n.running_mean is None for n in known.norms):
        return "a norm is not in eval mode with running statistics"
    return known.reason


def refuses_training(layer: GlobalLayer) -> str | None:
    """Why this layer's evolution cannot be one operator in training, or None."""
    known = _known(layer)
    if known.reason is not None or known.watched():
        return known.reason or _WATCHED
    large = _convolutions(layer)[0].kernel_size[0] > _MAX_TRAINED_KERNEL
    if isinstance(layer.act, nn.Identity) or large:
        return f"it has no activation, or a kernel above {_MAX_TRAINED_KERNEL}"
    if layer.velocity_from == "f" and layer.init is not None:
        return "its velocity comes from f and its diffusion from h"
    biased = [conv.bias is not None for conv in _convolutions(layer)]
    norms = [c.norm for c in _coefficients(layer)]
    usual = len(set(biased)) == 1 and all(n.training and n.affine and n.momentum is not None for n in norms)
    if not usual or len({(n.eps, n.momentum, n.track_running_stats) for n in norms}) > 1:
        return "its coefficient norms are not all alike, in training mode, with weights and a momentum"
    return None


def _unusual(layer: GlobalLayer) -> str | None:
    if type(layer.act) not in _ACTS or type(layer.coefficient_act) is not type(layer.act):
        return f"its activation {type(layer.act).__name__} has no fused form"
    for c in _coefficients(layer):
        net = c.net
        if type(net) is not nn.Conv2d or net.groups != layer.channels:
            return "its coefficients are not depthwise convolutions"
        k = net.kernel_size[0]
        usual = net.kernel_size == (k, k) and net.padding == (k // 2, k // 2) and net.padding_mode == "zeros"
        if not usual or net.stride != (1, 1) or net.dilation != (1, 1) or net.out_channels != layer.channels:
            return "its coefficient convolutions are not the usual ones"
    if any(type(norm) is not nn.BatchNorm2d for norm in _norms(layer)):
        return "a norm is not a BatchNorm2d"
    return None


def _convolutions(layer: GlobalLayer) -> list[nn.Conv2d]:
    return [c.net for c in _coefficients(layer) if isinstance(c.net, nn.Conv2d)]


def _norms(layer: GlobalLayer) -> list[nn.BatchNorm2d]:
    return [layer.norm, *(c.norm for c in _coefficients(layer))]


def _parts(layer: GlobalLayer) -> list[nn.Module]:
    return [*_coefficients(layer), layer.coefficient_act, layer.norm, layer.act]


def _coefficients(layer: GlobalLayer) -> list[Coefficient]:
    both = [layer.velocity_x, layer.velocity_y]
    return both if layer.diffusivity is not None else [*both, layer.diffusion_x, layer.diffusion_y]


def _scale_and_shift(norm: nn.BatchNorm2d, wide: torch.dtype) -> tuple[Tensor, Tensor]:
    assert norm.running_mean is not None
    assert norm.running_var is not None
    scale = torch.rsqrt(norm.running_var.to(wide) + norm.eps)
    if norm.weight is not None:
        scale = scale * norm.weight.to(wide)
    shift = -norm.running_mean.to(wide) * scale
    return scale, shift if norm.bias is None else shift + norm.bias.to(wide)


def fold(layer: GlobalLayer, wide: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(weight (G, C, k, k), bias (G, C), scale (C), shift (C)) in the dtype `wide` that is computed in."""
    weights, biases = [], []
    for c in _coefficients(layer):
        conv = c.net
        assert isinstance(conv, nn.Conv2d)
        scale, shift = _scale_and_shift(c.norm, wide)
        weights.append(conv.weight.to(wide).squeeze(1) * scale.view(-1, 1, 1))
        biases.append(shift if conv.bias is None else conv.bias.to(wide) * scale + shift)
    return torch.stack(weights), torch.stack(biases), *_scale_and_shift(layer.norm, wide)


_Folded = tuple[Tensor, Tensor, Tensor, Tensor]


class _Known:
    """What is known of a layer as long as its parts stay the same objects: looked up, it costs microseconds.

    reason: why its parts have no fused form, or None; folded: what was folded last, and from which state.
    """

    def __init__(self, layer: GlobalLayer) -> None:
        self.reason = _unusual(layer)
        parts = _parts(layer)
        self.coefficients = _coefficients(layer)
        self.children = self._children(layer)
        self.modules = tuple(m for part in parts for m in part.modules())
        self.norms = _norms(layer)
        held = [m for m in self.modules if m._parameters or m._buffers]
        self.tensors = [tensors for m in held for tensors in (m._parameters, m._buffers)]
        self.state: tuple[object, ...] = ()
        self.folded: _Folded | None = None

    def _children(self, layer: GlobalLayer) -> list[nn.Module | None]:
        inner = (m for c in self.coefficients for m in c._modules.values())
        return [*layer._modules.values(), *inner]

    def holds(self, layer: GlobalLayer) -> bool:
        """Whether the layer still has the same parts."""
        now = self._children(layer)
        return len(now) == len(self.children) and all(map(operator.is_, now, self.children))

    def watched(self) -> bool:
        """Whether a hook waits for one of the parts to be called."""
        return any(m._forward_hooks or m._forward_pre_hooks or m._backward_hooks for m in self.modules)


# beside the layers, not in them: a copy or a saved layer does not carry it along
_KNOWN: WeakKeyDictionary[nn.Module, _Known] = WeakKeyDictionary()


def _known(layer: GlobalLayer) -> _Known:
    if torch.compiler.is_compiling():
        return _Known(layer)
    known = _KNOWN.get(layer)
    if known is None or not known.holds(layer):
        known = _KNOWN[layer] = _Known(layer)
    return known


def folded(layer: GlobalLayer, wide: torch.dtype) -> _Folded:
    """`fold(layer, wide)`, computed again only when a weight or a statistic has changed."""
    if torch.compiler.is_compiling():
        return fold(layer, wide)
    known = _known(layer)
    tensors = [t for held in known.tensors for t in held.values() if t is not None]
    if any(t.is_inference() for t in tensors):  # these do not tell when they change
        return fold(layer, wide)
    state = (wide, *((t.data_ptr(), t._version) for t in tensors))
    if known.folded is None or known.state != state:
        with torch.inference_mode(False), torch.no_grad():
            known.folded, known.state = fold(layer, wide), state
    return known.folded


def compute_dtype(dtype: torch.dtype) -> torch.dtype:
    """What the operator computes in: float32, for float64 inputs float64."""
    return torch.float64 if dtype == torch.float64 else torch.float32


def may_fuse(layer: GlobalLayer, h: Tensor) -> bool:
    """Whether a forward of `layer` at state `h` may be the fused operator: inference, a fast backend."""
    if layer.training or not automatic(h, layer.pde).fused:
        return False
    if torch.is_grad_enabled() and (h.requires_grad or any(p.requires_grad for p in layer.parameters())):
        return False
    mixed = torch.is_autocast_enabled(h.device.type)
    return (layer.norm.weight is None or mixed or layer.norm.weight.dtype == h.dtype) and refuses(
        layer
    ) is None


class FusedGlobalLayer(nn.Module):
    """A `GlobalLayer` for inference: the same output from one operator, with all norms folded away.

    Input and output as the layer that it was made from. `weight` (G, C, k, k), `bias` (G, C), `scale` and
    `shift` (C) are buffers; G = 2 fields (u, v) or 4 (u, v, Dx, Dy). On a machine without a fast backend it
    computes the same in plain PyTorch.

    >>> from globalcnn import GlobalLayer
    >>> layer = GlobalLayer(8).eval()
    >>> fused, x = FusedGlobalLayer.from_layer(layer), torch.randn(1, 8, 6, 6)
    >>> torch.allclose(fused(x), layer(x), atol=1e-5)
    True
    """

    weight: Tensor
    bias: Tensor
    scale: Tensor
    shift: Tensor

    def __init__(self, layer: GlobalLayer) -> None:
        super().__init__()
        dtype = layer.norm.running_var.dtype if layer.norm.running_var is not None else torch.float32
        with torch.no_grad():
            parts = fold(layer, compute_dtype(dtype))
        for name, part in zip(("weight", "bias", "scale", "shift"), parts, strict=True):
            self.register_buffer(name, part.detach().contiguous())
        self.channels = layer.channels
        self.init = layer.init
        self.settings = settings_of(layer)

    @staticmethod
    def from_layer(layer: GlobalLayer) -> FusedGlobalLayer | None:
        """The fused form of a layer in eval mode; None where its settings have none (`refuses` says why)."""
        return None if refuses(layer) is not None else FusedGlobalLayer(layer)

    def forward(self, f: Tensor, before: Tensor | None = None) -> Tensor:
        """As `GlobalLayer.forward`."""
        h = f
        if self.init is not None:
            h = self.init(f) if before is None else self.init(before, f)
            f = f.to(h.dtype) if f.shape == h.shape else h
        load_for(h)
        wide = compute_dtype(h.dtype)
        parts = [self.weight, self.bias, self.scale, self.shift]
        if any(t.dtype != wide for t in parts):
            parts = [t.to(wide) for t in parts]
        return torch.ops.globalcnn.layer(h, f, *parts, *self.settings)


def settings_of(layer: GlobalLayer) -> tuple[object, ...]:
    """The operator's arguments after the tensors."""
    Dx0, Dy0 = (0.0, 0.0) if layer.diffusivity is None else layer.diffusivity
    return (
        *torch_ops.numbers(Dx0, Dy0, layer.pde),
        decomposition.ACTIVATIONS.index(_ACTS[type(layer.act)]),
        layer.shared_product,
        layer.velocity_from == "f",
        layer.start_from == "h",
        layer.source,
        layer.residual,
    )


def run_fused(layer: GlobalLayer, h: Tensor, f: Tensor) -> Tensor:
    """The layer's output from state `h` and source `f`; `may_fuse` has said that it may."""
    return torch.ops.globalcnn.layer(
        h, f.to(h.dtype), *folded(layer, compute_dtype(h.dtype)), *settings_of(layer)
    )


def may_evolve(layer: GlobalLayer, h: Tensor) -> bool:
    """Whether the way from `h` to the evolved state may be the fused operator: training, on the CPU."""
    if not layer.training or h.device.type != "cpu" or h.shape[0] * h.shape[2] * h.shape[3] < 2:
        return False
    if torch.is_autocast_enabled("cpu") is False and layer.velocity_x.norm.weight.dtype != h.dtype:
        return False
    return automatic(h, layer.pde).fused and refuses_training(layer) is None


def evolve(layer: GlobalLayer, h: Tensor, f: Tensor) -> Tensor:
    """The evolved state H of a layer in training, by one operator; `may_evolve` has said that it may.

    Updates the running statistics of the coefficient norms as they would do it themselves.
    """
    parts = _coefficients(layer)
    wide = compute_dtype(h.dtype)
    weight = torch.stack([conv.weight.squeeze(1) for conv in _convolutions(layer)]).to(wide)
    gamma = torch.stack([c.norm.weight for c in parts]).to(wide)
    beta = torch.stack([c.norm.bias for c in parts]).to(wide)
    biases = [conv.bias for conv in _convolutions(layer) if conv.bias is not None]
    if biases:  # the norm takes a bias away again: its gradient is zero, and not none
        beta = beta + 0 * torch.stack(biases).to(wide)
    shared = settings_of(layer)
    numbers, act = shared[:7], shared[7]
    H, mean, var = torch.ops.globalcnn.evolve(
        h,
        None if f is h else f.to(h.dtype),
        weight,
        gamma,
        beta,
        parts[0].norm.eps,
        *numbers,
        act,
        layer.shared_product,
        layer.start_from == "h",
        layer.source,
    )
    _update_statistics(parts, mean, var, h.shape[0] * h.shape[2] * h.shape[3])
    return H


@torch.no_grad()
def _update_statistics(parts: list[Coefficient], mean: Tensor, var: Tensor, count: int) -> None:
    unbiased = var * (count / (count - 1))
    for i, c in enumerate(parts):
        norm, bias = c.norm, c.net.bias
        if not norm.track_running_stats or norm.running_mean is None or norm.running_var is None:
            continue
        momentum = norm.momentum
        assert momentum is not None
        seen = mean[i] if bias is None else mean[i] + bias  # type: ignore[operator]
        norm.running_mean.lerp_(seen.to(norm.running_mean.dtype), momentum)
        norm.running_var.lerp_(unbiased[i].to(norm.running_var.dtype), momentum)
        if norm.num_batches_tracked is not None:
            norm.num_batches_tracked.add_(1)
