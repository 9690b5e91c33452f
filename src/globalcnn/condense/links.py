"""How a forward gets from one unit to the next, found by changing what a unit returns.

Where the next unit takes the very tensor that this one returned, they are a chain. Elsewhere the forward does
something of its own in between, which no module shows: an activation, or the addition of a shortcut. Then the
network runs twice more, the unit returning zeros and returning its input: what the next one is given tells.
"""

from __future__ import annotations

import enum
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..graph import Call, ShapeTrace, eval_mode
from .units import Unit, is_within, kind_of

AFTER = 6  # calls after the last unit that may depend on it
WINDOW = 6  # units that a shortcut written in a forward may span


class Link(enum.Enum):
    """What is between a unit and the next one."""

    CHAIN = "chain"  # nothing, or a function of this unit's map alone
    ADDED = "added"  # the forward adds the unit's map to an earlier one, which returns if it is zero
    OTHER = "other"  # a function of the unit's map that is neither
    NONE = "none"  # the next unit does not depend on this one
    UNSEEN = "unseen"  # without values (the meta device) it cannot be seen


@dataclass(frozen=True)
class Found:
    """A link; added to the input of the unit that is `span` units before, 0 for this one's own; direct: the
    next unit takes the tensor as this one returned it."""

    link: Link
    span: int = 0
    direct: bool = False


class Runner:
    """The network on its example, with other outputs of some modules. trace: of the same run."""

    def __init__(self, model: nn.Module, arguments: Sequence[Any], trace: ShapeTrace) -> None:
        self.model = model
        self.occurrence: dict[int, int] = {}  # index of a call -> how many calls of its module came before
        times: Counter[str] = Counter()
        for call in trace.calls:
            self.occurrence[call.index] = times[call.name]
            times[call.name] += 1
        self.arguments = arguments
        tensors = [t for t in (*model.parameters(), *model.buffers(), *arguments) if isinstance(t, Tensor)]
        self.has_values = not any(t.is_meta for t in tensors)

    def inputs_of(
        self, calls: Sequence[Call], *, instead: tuple[Call, Call, str] | None = None
    ) -> list[Tensor | None]:
        """The first tensor that each of the modules is given, as it is at its call.

        instead: (first call, last call, "zeros" or "input"): what the last one is made to return, zeros or
        what the first one took.
        """
        seen: dict[int, Tensor] = {}
        times: Counter[nn.Module] = Counter()
        wanted = {(call.module, self.occurrence[call.index]): call.index for call in calls}
        taken: list[Tensor] = []
        handles = []

        def keep(module: nn.Module, args: Any, kwargs: Any) -> None:
            index = wanted.get((module, times[module]))
            times[module] += 1
            first = next((t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)), None)
            if index is not None and first is not None:
                seen[index] = first.clone()

        def take(module: nn.Module, args: Any) -> None:
            taken[:] = [t for t in tree_leaves(args) if isinstance(t, Tensor)][:1]

        def give(module: nn.Module, args: Any, output: Any) -> Any:
            new = torch.zeros_like(taken[0]) if instead and instead[2] == "zeros" else taken[0]
            return new if isinstance(output, Tensor) else (new, *output[1:])

        for module in {call.module for call in calls}:
            handles.append(module.register_forward_pre_hook(keep, with_kwargs=True))
        if instead is not None:
            handles.append(instead[0].module.register_forward_pre_hook(take))
            handles.append(instead[1].module.register_forward_hook(give))
        try:
            with eval_mode(self.model), torch.no_grad():
                self.model(*self.arguments)
        finally:
            for handle in handles:
                handle.remove()
        return [seen.get(call.index) for call in calls]


def find_link(runner: Runner, row: Sequence[Unit], i: int, calls: ShapeTrace) -> Found:
    """The link from `row[i]` to what follows: the next unit, or for the last one what depends on it first.

    row: units that keep the shape, in order; calls: the trace that they are from.
    """
    unit = row[i]
    head = row[i + 1].head if i + 1 < len(row) else None
    following = _following(unit, calls, head)
    if not following:
        return Found(Link.UNSEEN)
    passed, skipped = unit.last.writes[:1], 0
    while skipped < len(following) - 1 and _only_passes(following[skipped], passed):
        passed = following[skipped].writes[:1]
        skipped += 1
    if passed == following[skipped].reads[:1]:
        return Found(Link.CHAIN, direct=skipped == 0)
    if not runner.has_values:
        return Found(Link.UNSEEN)
    window = range(max(0, i - WINDOW), i + 1)
    starts = [(i - j, call) for j in reversed(window) for call in _openings(row, j, calls)]
    watched = [call for _, call in starts] + following[skipped:]
    ends = slice(len(starts), None)
    zeros = runner.inputs_of(watched, instead=(unit.head, unit.last, "zeros"))
    plain = runner.inputs_of(watched)
    if head is not None and head in following and _same(zeros, plain, watched.index(head, len(starts))):
        return Found(Link.NONE)
    depends = [k for k in range(len(starts), len(watched)) if not _same(zeros, plain, k)]
    if not depends or not zeros[ends]:
        return Found(Link.NONE)
    same = runner.inputs_of(watched, instead=(unit.head, unit.last, "input"))
    end, other = zeros[depends[0]], same[depends[0]]
    if end is None or other is None:
        return Found(Link.OTHER)
    return _judged(end, other, [(span, zeros[k]) for k, (span, _) in enumerate(starts)], unit)


def _judged(end: Tensor, same: Tensor, starts: Sequence[tuple[int, Tensor | None]], unit: Unit) -> Found:
    """The link, from what follows is given when the unit returns zeros (`end`), and its input (`same`)."""
    for span, start in starts:
        if start is not None and _has_content(start) and _equal(end, start):
            return Found(Link.ADDED, span)
    if _has_content(end) and same.shape == end.shape and _is_multiple(same, end):
        return Found(Link.ADDED)  # pooled or flattened before the next module saw it
    own = next((start for span, start in starts if span == 0 and start is not None), None)
    if (own is not None and _equal(same, own)) or _is_constant(end):
        return Found(Link.CHAIN)
    if unit.taken is not None and end.ndim == 4 and end.shape[1:] != unit.taken.shape[1:]:
        return Found(Link.CHAIN)  # resized, or beside other maps: no shortcut adds to it
    return Found(Link.OTHER)


def _following(unit: Unit, calls: ShapeTrace, head: Call | None) -> list[Call]:
    """The calls after the unit's, up to the head of the next one, or a few."""
    found: list[Call] = []
    for call in calls.calls[unit.last.index + 1 :]:
        if is_within(call, unit.last.index, calls) or (found and call.parent == found[-1].index):
            continue
        found.append(call)
        if call is head or (head is None and len(found) == AFTER):
            break
    return found


def _openings(row: Sequence[Unit], j: int, calls: ShapeTrace) -> list[Call]:
    """The head of `row[j]`, and calls before it that keep the shape: norms that the forward calls first."""
    head, found = row[j].head, [row[j].head]
    earliest = row[j - 1].last.index if j else -1
    for call in reversed(calls.calls[earliest + 1 : head.index]):
        if call.parent != head.parent or kind_of(call.module).mixes or call.inputs[:1] != head.inputs[:1]:
            break
        found.append(call)
    return found


def _only_passes(call: Call, passed: tuple[tuple[int, int], ...]) -> bool:
    """Whether a call, such as a norm's or activation's, takes what was passed on and keeps its shape."""
    return call.reads == passed and call.inputs == call.outputs and not kind_of(call.module).mixes


def _same(a: Sequence[Tensor | None], b: Sequence[Tensor | None], k: int) -> bool:
    x, y = a[k], b[k]
    return x is None or y is None or _equal(x, y)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6)


def _is_constant(x: Tensor) -> bool:
    """Whether every channel has the same value everywhere: nothing of the image is in it."""
    return x.ndim == 4 and not _has_content(x - x.mean((2, 3), keepdim=True))


def _is_multiple(a: Tensor, b: Tensor) -> bool:
    """Whether a is b times one number above 1: a shortcut, and the input added to it."""
    x, y = a.double().flatten(), b.double().flatten()
    ratio = float(x @ y / (y @ y))
    return ratio > 1.001 and _equal(a, ratio * b)


def _has_content(x: Tensor) -> bool:
    return bool((x.double().abs() > 1e-6).any())
