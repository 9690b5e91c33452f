"""The norms of a Global layer folded into its convolutions.

The folded tensors are recomputed at each call, or reused from the last call if every value is the same.
Neither version counters nor addresses reveal every write (`p.data.mul_(...)`).
"""

from __future__ import annotations

from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import torch
from torch import Tensor, nn

from .eligibility import Parts

Folded = tuple[Tensor, Tensor, Tensor, Tensor]


class _Raw(NamedTuple):
    """The inputs of the folding: all vectors of the layer in one, its kernels in one, and further numbers."""

    vectors: Tensor
    kernels: Tensor
    numbers: tuple[object, ...]


class _Last(NamedTuple):
    raw: _Raw
    folded: Folded


# outside the layers, so that a copied or saved layer does not contain it
_LAST: WeakKeyDictionary[nn.Module, _Last] = WeakKeyDictionary()


def folded(layer: nn.Module, parts: Parts, wide: torch.dtype) -> Folded:
    """`fold(parts, wide)`; on a CPU cached from the last call, if its inputs have the same values."""
    raw = _gather(parts, wide)
    if raw.vectors.device.type != "cpu" or torch.compiler.is_compiling():
        return _fold(raw, parts, wide)  # comparing on a GPU would synchronise
    last = _LAST.get(layer)
    if last is None or not _same(last.raw, raw):
        last = _LAST[layer] = _Last(raw, _fold(raw, parts, wide))
    return last.folded


def fold(parts: Parts, wide: torch.dtype) -> Folded:
    """(weight (G, C, k, k), bias (G, C), scale (C), shift (C)) in the dtype `wide` of the arithmetic.

    Coefficient i is act(weight[i] * h + bias[i]), the output act(scale H + shift).
    """
    return _fold(_gather(parts, wide), parts, wide)


def _same(a: _Raw, b: _Raw) -> bool:
    # a NaN differs from itself, so it is folded again
    return a.numbers == b.numbers and torch.equal(a.vectors, b.vectors) and torch.equal(a.kernels, b.kernels)


def _gather(parts: Parts, wide: torch.dtype) -> _Raw:
    # few large calls: PyTorch takes about a microsecond for each, whatever the size
    norms = [*parts.norms, parts.output_norm]
    biases = [c._parameters["bias"] for c in parts.convolutions]
    vectors = [n._buffers["running_var"] for n in norms]
    vectors += [n._buffers["running_mean"] for n in norms]
    vectors += [_given(n._parameters["weight"], n, 1.0) for n in norms]
    vectors += [_given(n._parameters["bias"], n, 0.0) for n in norms]
    biased = any(b is not None for b in biases)
    if biased:
        vectors += [_given(b, parts.output_norm, 0.0) for b in biases]
    flat = torch.cat(vectors)
    kernels = torch.cat([c._parameters["weight"] for c in parts.convolutions])
    return _Raw(flat, kernels, (biased, wide, flat.dtype, kernels.dtype, *(n.eps for n in norms)))


def _fold(raw: _Raw, parts: Parts, wide: torch.dtype) -> Folded:
    norms = [*parts.norms, parts.output_norm]
    G, C = len(parts.norms), parts.output_norm._buffers["running_mean"].shape[0]
    rows = raw.vectors.to(wide, copy=True).view(-1, C)
    var, mean, gamma, beta = rows.narrow(0, 0, 4 * (G + 1)).view(4, G + 1, C).unbind()
    for row, norm in zip(var.unbind(), norms, strict=True):
        row.add_(norm.eps)
    scale = var.rsqrt_().mul_(gamma)
    if rows.shape[0] > 4 * (G + 1):  # a bias before the norm is equivalent to a smaller mean
        mean.narrow(0, 0, G).sub_(rows.narrow(0, 4 * (G + 1), G))
    shift = beta.addcmul_(mean, scale, value=-1)
    k = parts.convolutions[0].kernel_size[0]
    weight = raw.kernels.to(wide).view(G, C, k, k) * scale.narrow(0, 0, G).view(G, C, 1, 1)
    return weight, shift.narrow(0, 0, G), scale[G], shift[G]


def _given(tensor: Tensor | None, norm: Any, otherwise: float) -> Tensor:
    return torch.full_like(norm._buffers["running_mean"], otherwise) if tensor is None else tensor
