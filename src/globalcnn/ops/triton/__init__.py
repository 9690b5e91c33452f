"""The operators of `ops/torch_ops/` as Triton kernels, for CUDA tensors.

Storage is float32, bfloat16, float16 or float64; the arithmetic is float32, for float64 float64. Other dtypes
go to the eager backend. Nothing is read back to the host and no shape depends on data, so calls can be
captured in CUDA graphs; no kernel uses atomics, so results repeat bit for bit.

Counted per element of the map, for the scheme DuFortFrankel, where T is the number of input tensors: 7 with
learned diffusion and a source, 5 with constant diffusion. A neighbour is read from cache.

operator        maps    K       passes over memory, what they move
solve           small   any     1: T read, 1 written
                large   1       1: T read, 1 written
                large   > 1     K: T read, 1 written each; levels between are float32
solve_backward  any     1       1: T + 1 read, T written
                any     > 1     2 K - 1: K - 1 steps; then K adjoint steps, each reads the T - 2 fields, two
                                levels and two of their gradients, and adds to the T - 2 gradients of fields
layer           small   any     1: 1 read (2 where h is not f), 1 written
                large   any     1 + K: the first writes 2 or 4 coefficients (1 or 2 of a shared product), each
                                step reads them, two levels and f and writes one

Backward, all between the passes is float32: K - 1 levels and up to 8 more maps, freed at the end of the call.
Neither it nor what autograd keeps (the inputs) holds more than that.

Small is a map whose planes fit on chip: sides to 64, 4096 elements (2048 in float64), with channels last in
memory 1024, since 4 channels must fit side by side. A program keeps whole planes in registers over all steps;
neighbours, also those of the velocity, are exchanged on chip, so the layer computes each coefficient once and
stores none. On larger maps the coefficients go through memory: computing the velocity again at four
neighbours would take 5 k^2 loads per element in the place of k^2.

For GatedSweeps a small map (spacing 1, between walls) takes one pass as well, in solve and layer. Elsewhere
each of the 4 K sweeps is a pass that reads a level and two fields (on a ring twice) and writes a level; the
first of a step reads f, too, and a layer writes its coefficients before. Backward, 8 K - 4 passes compute the
levels, and 4 K adjoint ones read also a gradient and a level, and write it and those of up to three inputs.
K + 5 levels and up to 5 sums of gradients are held between passes.

Importing this package neither imports Triton nor touches a GPU.
"""

from __future__ import annotations

import importlib.util
import os
from typing import Any

import torch
from torch import Tensor

_IMPLEMENTATIONS: list[torch.library.Library] = []


def unavailable() -> str | None:
    """Why these kernels cannot run here, or None. With TRITON_INTERPRET=1 they run on CPU tensors, slowly."""
    if importlib.util.find_spec("triton") is None:
        return "triton is not installed (it comes with PyTorch's CUDA builds on Linux)"
    if os.environ.get("TRITON_INTERPRET") == "1":
        return None
    if not torch.cuda.is_available():
        return "no CUDA device"
    return None


def load() -> None:
    """Let the operators compute by these kernels on CUDA tensors. Further calls do nothing."""
    if _IMPLEMENTATIONS:
        return
    library = torch.library.Library("globalcnn", "IMPL")
    for operator in (solve, solve_backward, layer):
        library.impl(operator.__name__, operator, "CUDA")
    _IMPLEMENTATIONS.append(library)


def solve(*arguments: Any) -> Tensor:
    """`globalcnn::solve`; arguments and result as in `decomposition.solve`."""
    from .run import solve as run

    return run(*arguments)


def solve_backward(*arguments: Any) -> tuple[Tensor, ...]:
    """`globalcnn::solve_backward`; arguments and result as in `decomposition.solve_backward`."""
    from .run import solve_backward as run

    return run(*arguments)


def layer(*arguments: Any) -> Tensor:
    """`globalcnn::layer`; arguments and result as in `decomposition.layer`."""
    from .run import layer as run

    return run(*arguments)
