"""The time of stages inside of the run of a network, before and after they are condensed."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..graph import eval_mode
from ..measure import latency
from .data import Stage

RUNS = 30


class Timed:
    """A network that notes, at each call, how long its modules of some groups took."""

    def __init__(
        self, model: nn.Module, groups: Mapping[str, Sequence[str]], arguments: Sequence[Any]
    ) -> None:
        self.model = model
        self.arguments = arguments
        self.times: dict[str, list[float]] = {name: [] for name in groups}
        self.spent: dict[str, float] = {}
        self.started: dict[nn.Module, float] = {}
        named = dict(model.named_modules(remove_duplicate=False))
        self.groups = {named[module]: name for name, modules in groups.items() for module in modules}
        self.device = next((t.device for t in tree_leaves(arguments) if isinstance(t, Tensor)), None)
        self.handles: list[Any] = []

    def __enter__(self) -> Timed:
        for module in self.groups:
            # the clock starts after all other hooks, and stops before them
            self.handles.append(module.register_forward_pre_hook(self._begin))
            self.handles.append(module.register_forward_hook(self._end, prepend=True))
        return self

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()

    def _now(self) -> float:
        if self.device is not None and self.device.type != "cpu":
            torch.accelerator.synchronize(self.device)
        return time.perf_counter()

    def _begin(self, module: nn.Module, args: Any) -> None:
        self.started[module] = self._now()

    def _end(self, module: nn.Module, args: Any, output: Any) -> None:
        name = self.groups[module]
        self.spent[name] = self.spent.get(name, 0.0) + self._now() - self.started[module]

    def __call__(self, example: Tensor) -> None:
        self.spent = {}
        self.model(*self.arguments)
        for name, spent in self.spent.items():
            self.times[name].append(spent)

    def medians(self, warmup: int) -> dict[str, float]:
        """Median seconds of every group, the first calls left out."""
        return {name: median(spent[warmup:] or spent) for name, spent in self.times.items() if spent}


def stage_times(
    model: nn.Module,
    condensed: nn.Module,
    stages: Sequence[Stage],
    arguments: Sequence[Any],
    *,
    seconds: float,
) -> tuple[dict[str, tuple[float, float]], tuple[float, float]]:
    """Median seconds before and after, of every stage and of the whole network.

    Both networks run in alternating rounds (`measure.latency`); the time of a stage is that of the modules
    that go, or that come. seconds: about how long it may take.
    """
    groups = {s.name: [n for names in s.remove for n in names] for s in stages}
    example = next(t for t in tree_leaves(arguments) if isinstance(t, Tensor))
    warmup = 2
    with (
        eval_mode(model, condensed),
        Timed(model, groups, arguments) as before,
        Timed(condensed, groups, arguments) as after,
    ):
        whole = latency(
            {"before": before, "after": after}, example, runs=RUNS, warmup=warmup, seconds=seconds, least=3
        )
    a, b = before.medians(warmup), after.medians(warmup)
    return (
        {s.name: (a[s.name], b[s.name]) for s in stages if s.name in a and s.name in b},
        (whole["before"].median, whole["after"].median),
    )
