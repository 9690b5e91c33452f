"""Watches every module of a network during one forward and adds up what its calls cost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..graph import eval_mode
from .probe import checked_model, checked_size, probe_input, run_once

# (module, its input, its output) -> the costs of that call, always as many
Cost = Callable[[nn.Module, Any, Tensor], tuple[int, ...]]


@dataclass(frozen=True)
class Watched:
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


def watch(model: nn.Module, input_size: Sequence[int], cost: Cost) -> tuple[Watched, ...]:
    """Every module of `model` that has parameters or was called, in the order of the model.

    The model runs once in eval mode on fixed noise of (C, H, W), on its own device and dtype, and is left as
    it was. Modules below an `uncounted_modules` of their parent (names, such as `("auxiliary_head",)`) are
    left out. Raises as `count` does.
    """
    model = checked_model(model)
    size = checked_size(input_size)
    left_out = below((module, getattr(module, "uncounted_modules", ())) for module in model.modules())
    tallies = {m: _Tally(cost) for m in model.modules() if m not in left_out}
    handles = []
    try:
        for module, tally in tallies.items():
            handles.append(module.register_forward_hook(tally.add, with_kwargs=True))
        with eval_mode(model), torch.no_grad():
            run_once(model, probe_input(model, size))
    finally:
        for handle in handles:
            handle.remove()
    return tuple(_watched(model, tallies))


def below(named: Iterable[tuple[nn.Module, Iterable[str]]]) -> set[nn.Module]:
    """Every module at or below the named children; a name that is absent or None is passed over."""
    children = (getattr(module, name, None) for module, names in named for name in names)
    return {inner for child in children if isinstance(child, nn.Module) for inner in child.modules()}


class _Tally:
    """The running costs of one module: a forward hook that adds up every call."""

    def __init__(self, cost: Cost) -> None:
        self.cost = cost
        self.output_shape: tuple[int, ...] = ()
        self.costs: tuple[int, ...] = ()

    def add(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> None:
        if not isinstance(output, Tensor):
            return
        self.output_shape = tuple(output.shape)
        more = self.cost(module, args[0] if args else kwargs.get("input"), output)
        self.costs = tuple(a + b for a, b in zip(self.costs or (0,) * len(more), more, strict=True))


def _watched(model: nn.Module, tallies: dict[nn.Module, _Tally]) -> Iterable[Watched]:
    seen: set[nn.Parameter] = set()
    for name, module in model.named_modules():
        if module not in tallies:
            continue
        own = {p for p in _own_parameters(module) if p not in seen}
        seen |= own
        tally = tallies[module]
        if own or tally.costs:
            yield Watched(name, module, sum(p.numel() for p in own), tally.output_shape, tally.costs)


def _own_parameters(module: nn.Module) -> Iterable[nn.Parameter]:
    """Parameters that no submodule holds; those that make up a parametrised weight belong to its layer."""
    yield from module.parameters(recurse=False)
    if parametrize.is_parametrized(module):
        yield from module.get_submodule("parametrizations").parameters()
