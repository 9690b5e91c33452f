"""Memory of the Global layer in training against the number of steps."""

from __future__ import annotations

import os
from contextlib import nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks
from torch.profiler import ProfilerActivity, profile

from globalcnn.nn import GlobalLayer
from globalcnn.ops import PDE, use_backend

from .results import MemoryRow, MemoryTable, Progress, Settings
from .rounds import reason

SHAPE, STEPS = (64, 16, 32, 32), (1, 2, 5, 10, 20)
SMALL, FEW = (2, 4, 8, 8), (1, 2)
BACKENDS = ("automatic", "eager")


def compare_memory(settings: Settings, progress: Progress) -> MemoryTable:
    """The table `memory`."""
    shape, steps = (SMALL, FEW) if settings.quick else (SHAPE, STEPS)
    rows = []
    for backend in BACKENDS:
        for k in steps:
            progress(f"{backend} backend, K = {k}")
            rows.append(_row(backend, k, shape))
    notes = (
        "Kept: what the forward saves for the backward, each storage once, weights left out. Peak: of "
        "forward and backward, above the input and the weights, as PyTorch's allocator sees it.",
    )
    words = "x".join(map(str, shape))
    return MemoryTable(
        "memory",
        f"Memory of a Global layer in training, {words}",
        tuple(rows),
        input_bytes=4 * torch.Size(shape).numel(),
        notes=notes,
    )


def _row(backend: str, steps: int, shape: tuple[int, ...]) -> MemoryRow:
    try:
        torch.manual_seed(0)
        layer, x = GlobalLayer(shape[1], PDE(steps=steps)), torch.randn(shape, requires_grad=True)
        with use_backend("eager") if backend == "eager" else nullcontext():
            layer(x).sum().backward()  # what is set up once is not counted
            return MemoryRow(backend, steps, kept_bytes(layer, x), peak_bytes(layer, x))
    except Exception as error:  # recorded, so that one row does not stop the table
        return MemoryRow(backend, steps, None, None, reason(error))


def kept_bytes(module: nn.Module, x: Tensor) -> int:
    """Bytes that a forward of `module` on `x` saves for the backward, each storage once, without weights."""
    own = {t.untyped_storage().data_ptr() for t in (*module.parameters(), *module.buffers())}
    storages: dict[int, Any] = {}

    def keep(t: Tensor) -> Tensor:
        storage = t.untyped_storage()
        if storage.data_ptr() not in own:
            storages[storage.data_ptr()] = storage  # held, so that no other takes its place
        return t

    with saved_tensors_hooks(keep, lambda t: t):
        out = module(x)
    kept: int = sum(storage.nbytes() for storage in storages.values())
    del out
    return kept


def peak_bytes(module: nn.Module, x: Tensor) -> int:
    """Largest sum of bytes that forward and backward hold at a time, beyond what was there before."""
    x.grad = None
    module.zero_grad()
    if x.device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(x.device)
        before = torch.cuda.memory_allocated(x.device)
        module(x).sum().backward()
        return int(torch.cuda.max_memory_allocated(x.device)) - int(before)
    os.environ.setdefault("KINETO_LOG_LEVEL", "99")  # the profiler talks on standard error otherwise
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as measured:
        module(x).sum().backward()
    changes = [e for e in measured.profiler.kineto_results.events() if e.name() == "[memory]"]
    held: int = 0
    peak: int = 0
    for event in sorted(changes, key=lambda e: e.start_ns()):
        held += event.nbytes()
        peak = max(peak, held)
    return peak
