"""Runs one forward with hooks on every module and sums the costs of its calls."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from torch import nn
from torch.nn.utils import parametrize

from ..graph import TensorInfo, trace_shapes
from .probe import checked_model, checked_size, naming_failures, probe_input

# (module, its first input, its output) -> the costs of that call, always as many
Cost = Callable[[nn.Module, Any, TensorInfo], tuple[int, ...]]


@dataclass(frozen=True)
class ModuleCosts:
    """One module of a network after a forward.

    params: its own (a parameter shared by several modules is with the first); costs: summed over its calls;
    output_shape: of the last call, batch included; empty and no costs if it was not called.
    """

    name: str
    module: nn.Module
    params: int
    output_shape: tuple[int, ...]
    costs: tuple[int, ...]

    @property
    def kind(self) -> str:
        """Name of the module's class."""
        return parametrize.type_before_parametrizations(self.module).__name__


def module_costs(model: nn.Module, input_size: Sequence[int], cost: Cost) -> tuple[ModuleCosts, ...]:
    """Every module of `model` that has parameters or was called, in the order of the model.

    The model runs once in eval mode on fixed noise of (C, H, W), on its own device and dtype, and is
    restored. Modules below an `uncounted_modules` of their parent (names, such as `("auxiliary_head",)`) are
    left out. Raises as `count` does.
    """
    model = checked_model(model)
    size = checked_size(input_size)
    left_out = below((module, getattr(module, "uncounted_modules", ())) for module in model.modules())
    image = probe_input(model, size)
    with naming_failures(image):
        trace = trace_shapes(model, image)
    tallies = {m: _Tally() for m in model.modules() if m not in left_out}
    for call in trace.calls:
        if call.module in tallies and len(call.outputs) == 1:
            x, y = (call.inputs[0] if call.inputs else None), call.outputs[0]
            tallies[call.module].add(y.shape, cost(call.module, x, y))
    return tuple(_module_costs(model, tallies))


def below(named: Iterable[tuple[nn.Module, Iterable[str]]]) -> set[nn.Module]:
    """Every module at or below the named children; a name that is absent or None is passed over."""
    children = (getattr(module, name, None) for module, names in named for name in names)
    return {inner for child in children if isinstance(child, nn.Module) for inner in child.modules()}


class _Tally:
    """The costs of one module, summed over its calls."""

    def __init__(self) -> None:
        self.output_shape: tuple[int, ...] = ()
        self.costs: tuple[int, ...] = ()

    def add(self, output_shape: tuple[int, ...], costs: tuple[int, ...]) -> None:
        self.output_shape = output_shape
        self.costs = tuple(a + b for a, b in zip(self.costs or (0,) * len(costs), costs, strict=True))


def _module_costs(model: nn.Module, tallies: dict[nn.Module, _Tally]) -> Iterable[ModuleCosts]:
    seen: set[nn.Parameter] = set()
    for name, module in model.named_modules():
        if module not in tallies:
            continue
        own = {p for p in _own_parameters(module) if p not in seen}
        seen |= own
        tally = tallies[module]
        if own or tally.costs:
            yield ModuleCosts(name, module, sum(p.numel() for p in own), tally.output_shape, tally.costs)


def _own_parameters(module: nn.Module) -> Iterable[nn.Parameter]:
    """Parameters that no submodule holds; those that make up a parametrised weight belong to its layer."""
    yield from module.parameters(recurse=False)
    if parametrize.is_parametrized(module):
        yield from module.get_submodule("parametrizations").parameters()
