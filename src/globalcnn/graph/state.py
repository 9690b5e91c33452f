"""A context manager for eval mode that restores the network afterwards."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn


@contextmanager
def eval_mode(*models: nn.Module) -> Iterator[None]:
    """Put the models into eval mode; afterwards restore their training flags and buffers.

    Each submodule gets its own flag back, also those that were frozen in eval mode before. Buffers are
    restored in value and as objects; those that a forward registered are removed. The random number
    generators are restored too: a forward that draws numbers in eval mode does not change later draws.

    >>> norm = nn.BatchNorm2d(3)
    >>> with eval_mode(norm):
    ...     norm.training
    False
    >>> norm.training
    True
    """
    modules = list({id(m): m for model in models for m in model.modules()}.values())
    flags = [(m, m.training) for m in modules]
    buffers = [(m, dict(m._buffers)) for m in modules]
    values = {id(b): b.detach().clone() for _, held in buffers for b in held.values() if b is not None}
    devices = {p.device.index or 0 for m in models for p in m.parameters() if p.device.type == "cuda"}
    with torch.random.fork_rng(devices=sorted(devices)):
        try:
            for model in models:
                model.eval()
            yield
        finally:
            for m, flag in flags:
                m.training = flag
            for m, held in buffers:
                _restore(m, held, values)


@torch.no_grad()
def _restore(module: nn.Module, held: dict[str, Tensor | None], values: dict[int, Tensor]) -> None:
    for name in [name for name in module._buffers if name not in held]:
        del module._buffers[name]
    for name, buffer in held.items():
        module._buffers[name] = buffer
        if buffer is None or buffer.is_meta:
            continue
        if not torch.equal(buffer, values[id(buffer)]):
            buffer.copy_(values[id(buffer)])
