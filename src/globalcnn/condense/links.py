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
from .units import Unit

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


def find_link(runner: Runner, row: Sequence[Unit], i: int, after: Call | None) -> Found:
    """The link from `row[i]` to the next unit, or to `after`, the call that follows the last unit.

    row: units that keep the shape, in order.
    """
    unit = row[i]
    following = row[i + 1].head if i + 1 < len(row) else after
    if following is None:
        return Found(Link.UNSEEN)
    if unit.last.writes[:1] == following.reads[:1]:
        return Found(Link.CHAIN, direct=True)
    if not runner.has_values:
        return Found(Link.UNSEEN)
    earlier = [row[j].head for j in range(max(0, i - WINDOW), i + 1)]
    watched = [*earlier, following]
    zeros = runner.inputs_of(watched, instead=(unit.head, unit.last, "zeros"))
    same = runner.inputs_of(watched, instead=(unit.head, unit.last, "input"))
    plain = runner.inputs_of(watched)
    end = zeros[-1]
    if end is None or same[-1] is None or plain[-1] is None or _equal(end, plain[-1]):
        return Found(Link.NONE)
    for span, start in enumerate(reversed(zeros[:-1])):
        if start is not None and _has_content(start) and _equal(end, start):
            return Found(Link.ADDED, span)
    if same[-1].shape == end.shape and _has_content(end) and _equal(same[-1], 2 * end):
        return Found(Link.ADDED)  # pooled or flattened before the next module saw it
    own = same[-2]
    if own is not None and (_equal(same[-1], own) or _is_constant(end)):
        return Found(Link.CHAIN)
    return Found(Link.OTHER)


def _equal(a: Tensor, b: Tensor) -> bool:
    return a.shape == b.shape and torch.allclose(a.double(), b.double(), rtol=1e-4, atol=1e-6)


def _is_constant(x: Tensor) -> bool:
    """Whether every channel has the same value everywhere: nothing of the image is in it."""
    return x.ndim == 4 and not _has_content(x - x.mean((2, 3), keepdim=True))


def _has_content(x: Tensor) -> bool:
    return bool((x.double().abs() > 1e-6).any())
