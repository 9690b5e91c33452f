"""The choices that are tried one after the other, each with its options for a given form."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from ..nn import GlobalLayer
from .form import Form

_CACHE_IF_UNKNOWN = 1 << 20


@dataclass(frozen=True)
class Setting:
    """What the options depend on; map_bytes: of the largest map of one image."""

    model: nn.Module
    example: Tensor
    map_bytes: int
    threads: int
    compile: bool


@dataclass(frozen=True)
class Choice:
    """One independent choice: its name, and the forms to try, given the best so far."""

    name: str
    options: Callable[[Form, Setting], list[Form]]


def _folded(best: Form, setting: Setting) -> list[Form]:
    norms = any(isinstance(m, nn.BatchNorm2d) for m in setting.model.modules())
    return [replace(best, folded=True)] if norms else []


def _fused(best: Form, setting: Setting) -> list[Form]:
    layers = any(isinstance(m, GlobalLayer) for m in setting.model.modules())
    return [replace(best, fused=True)] if layers else []


def _memory_formats(best: Form, setting: Setting) -> list[Form]:
    x = setting.example
    last = not x.is_contiguous() and x.is_contiguous(memory_format=torch.channels_last)
    return [replace(best, memory_format=torch.contiguous_format if last else torch.channels_last)]


def _one_thread(best: Form, setting: Setting) -> list[Form]:
    fits = setting.example.device.type == "cpu" and len(setting.example) == 1 and setting.threads > 1
    return [replace(best, one_thread=True)] if fits else []


def _pieces(best: Form, setting: Setting) -> list[Form]:
    """Powers of two from where three of the largest maps fill the L2 caches."""
    batch = len(setting.example)
    if setting.example.device.type != "cpu" or batch == 1 or not setting.map_bytes:
        return []
    cache = capabilities().get("l2_cache_size") or _CACHE_IF_UNKNOWN
    fitting = cache * setting.threads / (3 * setting.map_bytes)
    start = 2 ** max(0, round(math.log2(fitting)))
    return [replace(best, piece=size) for size in (start, 2 * start, 4 * start, 8 * start) if size < batch]


def _compiled(best: Form, setting: Setting) -> list[Form]:
    """The best so far compiled, then with what a compiler may prefer otherwise."""
    if not setting.compile:
        return []
    compiled = replace(best, compiled=True)
    others = [replace(form, compiled=True) for form in _memory_formats(best, setting)]
    if best.memory_format is not None:
        others = [replace(compiled, memory_format=None)]
    whole = [replace(compiled, piece=None)] if best.piece else []
    unlike = [] if best.fused else [replace(form, compiled=True) for form in _fused(best, setting)]
    return [compiled, *whole, *others, *unlike]


def capabilities() -> dict[str, Any]:
    """What torch knows of the CPU; empty where it cannot tell."""
    ask = getattr(torch.cpu, "get_capabilities", None)
    return ask() if ask is not None else {}


CHOICES = (
    Choice("convolution + BatchNorm folded", _folded),
    Choice("Global layers fused", _fused),
    Choice("memory format", _memory_formats),
    Choice("threads", _one_thread),
    Choice("pieces of the batch", _pieces),
    Choice("compiled", _compiled),
)
