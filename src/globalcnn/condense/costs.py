"""Parameters and multiply-adds of some modules of a network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn

from ..graph import ShapeTrace
from ..measure.counts import pde_macs, product_macs
from .data import Cost


def cost_of(model: nn.Module, trace: ShapeTrace, names: Sequence[str]) -> Cost:
    """What the modules of these names cost, "" for all: their time is not measured here."""
    return Cost(params_of(model, names), macs_of(trace, names))


def params_of(model: nn.Module, names: Sequence[str]) -> int:
    """Parameters below these modules that no other module holds, each once."""
    named = dict(model.named_modules(remove_duplicate=False))
    chosen = {m for name in names for m in named[name].modules()}
    inside = {id(p): p for m in chosen for p in m.parameters(recurse=False)}
    outside = {id(p) for m in model.modules() if m not in chosen for p in m.parameters(recurse=False)}
    return sum(p.numel() for key, p in inside.items() if key not in outside)


def macs_of(trace: ShapeTrace, names: Sequence[str]) -> int:
    """Multiply-adds for one image of the calls at or below these modules."""
    found, inside = 0, set()
    batch = trace.calls[0].inputs[0].shape[0] if trace.calls[0].inputs[0].shape else 1
    wanted = {trace.names[n] for n in names if n in trace.names}
    for call in trace.calls:
        if call.name in wanted or call.parent in inside:
            inside.add(call.index)
            if len(call.outputs) == 1 and call.inputs:
                x, y = call.inputs[0], call.outputs[0]
                found += product_macs(call.module, x, y) // max(1, batch)
                found += pde_macs(call.module, y) if len(y.shape) >= 2 else 0
    return found
