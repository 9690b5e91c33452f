"""Whole Global layers as one operator of an engine, run by this library's kernels.

ONNX Runtime sees a Global layer of standard operators as some fifty nodes, each of which goes through memory.
In a program made with `exported_program(..., own_operators=True)` a fused layer is one node,
`globalcnn::GlobalLayer`; `ops/native/csrc/onnxruntime.cpp` registers it with a session: of this process
(`operator_library`), or of any, from the library that `export` puts beside its file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Final, final

import torch
from torch import Tensor, nn

from ..graph import replace_module
from ..nn.fused import FusedGlobalLayer
from ..nn.start import start
from ..ops import native

DOMAIN: Final = "globalcnn"


@final
class EngineGlobalLayer(nn.Module):
    """A `FusedGlobalLayer` that an exported program calls as one ONNX operator. It only traces."""

    numbers: Tensor

    def __init__(self, fused: FusedGlobalLayer) -> None:
        super().__init__()
        self.fused = fused
        self.channels, self.init = fused.channels, fused.init
        # float64 holds the settings exactly; the operator reads them in the order of ops/spec.py
        numbers = [float(value) for value in fused.arguments]  # type: ignore[arg-type]
        self.register_buffer("numbers", torch.tensor(numbers, dtype=torch.float64))

    def forward(self, f: Tensor, before: Tensor | None = None) -> Tensor:
        """As `GlobalLayer.forward`."""
        h, f = start(self, f, before, who="EngineGlobalLayer")
        layer = self.fused
        inputs = (h, f, layer.weight, layer.bias, layer.scale, layer.shift, self.numbers)
        return torch.onnx.ops.symbolic(
            f"{DOMAIN}::GlobalLayer", inputs, dtype=h.dtype, shape=h.shape, version=1
        )


def with_own_operators(model: nn.Module) -> nn.Module:
    """`model`, changed: its fused Global layers as operators of an engine."""
    for name, layer in list(model.named_modules()):
        if type(layer) is FusedGlobalLayer:
            model = replace_module(model, name, new=EngineGlobalLayer(layer))
    return model


def operator_library() -> Path | None:
    """The library that registers the operator, or None where the native kernels cannot run."""
    return native.library_path() if native.load() is None else None
