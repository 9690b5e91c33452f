"""A Global layer at inference as one operator, its norms folded into its convolutions."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.fx import Proxy

from ...errors import UserError
from ...ops import spec
from ...ops.dispatch import automatic
from ...ops.signature import compute_dtype
from ...ops.torch_ops import decomposition
from ..start import start
from ..tracing import call_node
from .arguments import layer_arguments
from .decision import why_not_fusable, why_not_inference
from .eligibility import Parts, why_not_tensors
from .folding import fold, folded

if TYPE_CHECKING:
    from ..global_layer import GlobalLayer


def run_inference(layer: GlobalLayer, h: Tensor, f: Tensor) -> Tensor:
    """The layer's output from state `h` and source `f`; `decide` has allowed one operator."""
    weights = folded(layer, Parts(layer), compute_dtype(h.dtype))
    return torch.ops.globalcnn.layer(h, f.to(h.dtype), *weights, *layer_arguments(layer))


def why_not_frozen(layer: GlobalLayer) -> str | None:
    """Why the layer has no `FusedGlobalLayer`, or None; the layer must be in eval mode."""
    reason = why_not_fusable(layer)
    if reason is not None:
        return reason
    parts = Parts(layer)
    return why_not_inference(parts) or why_not_tensors(layer, parts, parts.output_norm.running_mean)


class FusedGlobalLayer(nn.Module):
    """A `GlobalLayer` for inference: the same output from one operator, its weights folded once.

    Input and output as the layer that it was made from. `weight` (G, C, k, k), `bias` (G, C), `scale` and
    `shift` (C) are buffers; G = 2 fields (u, v) or 4 (u, v, Dx, Dy). Later changes of the layer
    do not affect it. Gradients reach the input (and an init block's parameters); the folded weights have
    none. With gradients, without a fast backend, or traced or exported, it computes in plain PyTorch.

    Raises `UserError` for a layer that has no fused form, which it names, and as `GlobalLayer` for inputs.

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
        reason = why_not_frozen(layer)
        if reason is not None:
            raise UserError(f"FusedGlobalLayer: this layer has no fused form: {reason}")
        parts = Parts(layer)
        with torch.no_grad():
            made = fold(parts, compute_dtype(parts.output_norm.running_mean.dtype))
        for name, part in zip(("weight", "bias", "scale", "shift"), made, strict=True):
            self.register_buffer(name, part.detach().contiguous())
        self.channels = layer.channels
        self.init = layer.init
        self.pde = layer.pde
        self.arguments = layer_arguments(layer)

    @staticmethod
    def from_layer(layer: GlobalLayer) -> FusedGlobalLayer | None:
        """The fused form of a layer in eval mode; None where it has none (`why_not_frozen` says why)."""
        return None if why_not_frozen(layer) is not None else FusedGlobalLayer(layer)

    def forward(self, f: Tensor, before: Tensor | None = None) -> Tensor:
        """As `GlobalLayer.forward`."""
        if isinstance(f, Proxy):
            return call_node(self, f, before)
        h, f = start(self, f, before, who="FusedGlobalLayer")
        f = f.to(h.dtype)
        wide = compute_dtype(h.dtype)
        tensors = [t.to(wide) for t in (self.weight, self.bias, self.scale, self.shift)]
        differentiate = torch.is_grad_enabled() and (h.requires_grad or f.requires_grad)
        values = (h, f, *tensors, *self.arguments)
        found = automatic(h, self.pde)
        if differentiate or not found.fused or found.why_not_operator("layer", self.pde) is not None:
            (out,) = decomposition.plainly(spec.LAYER, values)
            assert out is not None
            return out
        return torch.ops.globalcnn.layer(*values)
