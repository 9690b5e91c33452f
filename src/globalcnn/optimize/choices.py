"""The choices that the search tries in sequence, each with its options for a given variant."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from ..engines import RUNTIMES
from ..engines.own_operator import operator_library
from ..graph import is_altered
from ..nn import GlobalLayer
from ..nn.fused.inference import why_not_frozen
from .variant import Variant

_CACHE_IF_UNKNOWN = 1 << 20


@dataclass(frozen=True)
class Setting:
    """The conditions that the options depend on; map_bytes: of the largest map of one image; cache_bytes: of
    a core's L2 cache; engines: names of runtimes to try."""

    model: nn.Module
    example: Tensor
    map_bytes: int
    threads: int
    compile: bool
    cache_bytes: int
    engines: tuple[str, ...] = ()


@dataclass(frozen=True)
class Choice:
    """One independent choice: its name, and the variants to try, given the best so far."""

    name: str
    options: Callable[[Variant, Setting], list[Variant]]


def _folded(best: Variant, setting: Setting) -> list[Variant]:
    norms = any(isinstance(m, _BatchNorm) for m in setting.model.modules())
    return [replace(best, folded=True)] if norms else []


def _fused(best: Variant, setting: Setting) -> list[Variant]:
    layers = any(isinstance(m, GlobalLayer) for m in setting.model.modules())
    return [replace(best, fused=True)] if layers else []


def _memory_formats(best: Variant, setting: Setting) -> list[Variant]:
    x = setting.example
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return [replace(best, memory_format="contiguous" if last else "channels_last")]


def _one_thread(best: Variant, setting: Setting) -> list[Variant]:
    fits = setting.example.device.type == "cpu" and len(setting.example) == 1 and setting.threads > 1
    return [replace(best, one_thread=True)] if fits else []


def _pieces(best: Variant, setting: Setting) -> list[Variant]:
    """Powers of two from where three of the largest maps fill the L2 caches."""
    batch = len(setting.example)
    if setting.example.device.type != "cpu" or batch == 1 or not setting.map_bytes:
        return []
    fitting = setting.cache_bytes * setting.threads / (3 * setting.map_bytes)
    start = 2 ** max(0, round(math.log2(fitting)))
    return [replace(best, piece=size) for size in (start, 2 * start, 4 * start, 8 * start) if size < batch]


def _compiled(best: Variant, setting: Setting) -> list[Variant]:
    """The best so far, compiled; then variants of it that may be faster only when compiled."""
    if not setting.compile:
        return []
    compiled = replace(best, compiled=True)
    others = [replace(variant, compiled=True) for variant in _memory_formats(best, setting)]
    if best.memory_format is not None:
        others = [replace(compiled, memory_format=None)]
    whole = [replace(compiled, piece=None)] if best.piece else []
    unlike = [] if best.fused else [replace(variant, compiled=True) for variant in _fused(best, setting)]
    return [compiled, *whole, *others, *unlike]


def _engines(best: Variant, setting: Setting) -> list[Variant]:
    """The network in each runtime, which makes changes of its own; folded norms leave fewer weights to watch
    at every call. Where the runtime takes them, also with the Global layers run by this library's kernels.
    """
    if setting.example.device.type != "cpu" or setting.example.dtype != torch.float32:
        return []
    variants = []
    for name in setting.engines:
        variants.append(Variant(folded=best.folded, engine=name))
        if RUNTIMES[name].takes_own_operators and _can_be_operators(setting.model):
            variants.append(Variant(folded=best.folded, fused=True, engine=name))
    return [v for variant in variants for v in (variant, *_one_thread(variant, setting))]


def _can_be_operators(model: nn.Module) -> bool:
    """Whether a Global layer of the network can be one operator of an engine."""
    layers = [m for m in model.modules() if type(m) is GlobalLayer and not is_altered(m)]
    return any(why_not_frozen(layer) is None for layer in layers) and operator_library() is not None


def l2_cache_bytes() -> int:
    """Size of a core's L2 cache as torch knows it, or a usual one where torch does not know it."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    known: dict[str, Any] = ask() if ask is not None else {}
    return known.get("l2_cache_size") or _CACHE_IF_UNKNOWN


CHOICES = (
    Choice("convolution + BatchNorm folded", _folded),
    Choice("Global layers fused", _fused),
    Choice("memory format", _memory_formats),
    Choice("threads", _one_thread),
    Choice("pieces of the batch", _pieces),
    Choice("compiled", _compiled),
    Choice("engines", _engines),
)
