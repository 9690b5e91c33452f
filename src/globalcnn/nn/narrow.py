"""A convolution of few channels that is trained in channels-last memory where that is faster."""

from __future__ import annotations

from functools import cache

import torch
from torch import Tensor, nn

_LEAST_POSITIONS = 4096  # least batch x height x width for which changing the layout pays
_LEAST_BATCH = 8


class NarrowConv2d(nn.Conv2d):
    """`nn.Conv2d` with the same results; with gradients, contiguous images of few channels are convolved in
    channels-last memory, the same but for rounding.

    For contiguous float32 images on a CPU, oneDNN pads the channels to whole vectors (16 with AVX-512, 8 with
    AVX2) in a blocked layout. With 10 channels, forward and backward then take longer than changing to
    channels-last and back and the convolution there. BatchNorm and ReLU of few channels are slower in
    channels-last, so only the convolution changes the layout: output and gradients are contiguous again.
    Where this gains nothing (inference, other inputs, small batches, whole vectors of channels), and while a
    graph is traced, compiled or exported, it is the ordinary convolution.

    >>> conv = NarrowConv2d(10, 10, 3, padding=1)
    >>> conv(torch.zeros(16, 10, 32, 32)).is_contiguous()
    True
    """

    @classmethod
    def from_conv(cls, conv: nn.Conv2d) -> NarrowConv2d:
        """The same convolution, with the same parameters; no random number is drawn."""
        with torch.device("meta"):
            new = cls(
                conv.in_channels,
                conv.out_channels,
                conv.kernel_size,  # type: ignore[arg-type]
                conv.stride,  # type: ignore[arg-type]
                conv.padding,  # type: ignore[arg-type]
                conv.dilation,  # type: ignore[arg-type]
                conv.groups,
                conv.bias is not None,
                conv.padding_mode,
            )
        new.weight, new.bias = conv.weight, conv.bias
        return new.train(conv.training)

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self._gains(input, weight):
            return super()._conv_forward(input, weight, bias)
        x = input.contiguous(memory_format=torch.channels_last)
        if x.requires_grad:
            x.register_hook(_contiguous)  # the layers before keep their layout
        return super()._conv_forward(x, weight, bias).contiguous()

    def _gains(self, x: Tensor, weight: Tensor) -> bool:
        """Whether changing the layout saves time here, and changes results by rounding alone."""
        if torch.compiler.is_compiling() or torch.jit.is_tracing() or type(x) is not Tensor:
            return False
        if not torch.is_grad_enabled() or not (x.requires_grad or weight.requires_grad):
            return False  # the forward alone gains nothing in a network
        usual = x.device.type == "cpu" and x.dtype == weight.dtype == torch.float32 and x.ndim == 4
        if not usual or torch.is_autocast_enabled("cpu") or torch._C._are_functorch_transforms_active():
            return False
        positions = x.shape[0] * x.shape[2] * x.shape[3]
        if x.shape[0] < _LEAST_BATCH or positions < _LEAST_POSITIONS:
            return False
        if not x.is_contiguous() or x.is_contiguous(memory_format=torch.channels_last):
            return False
        lanes = _lanes()
        if lanes == 0 or self.groups != 1 or self.kernel_size == (1, 1):
            return False
        strided = self.stride != (1, 1)
        return self.in_channels % lanes != 0 or (self.out_channels % lanes != 0 and not strided)


@cache
def _lanes() -> int:
    """Channels in a block of oneDNN's layout on this processor; 0 where it is not known or not in use."""
    if not torch.backends.mkldnn.is_available():
        return 0
    return {"AVX512": 16, "AVX2": 8}.get(torch.backends.cpu.get_cpu_capability(), 0)


def _contiguous(gradient: Tensor) -> Tensor:
    return gradient.contiguous()
