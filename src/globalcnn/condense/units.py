"""Units: what a forward calls one after the other, as far as a block can take its place.

A unit is a call of a module that mixes channels or neighbours (it holds weights of two or more dimensions),
with the calls of norms, activations and the like that follow it on the same tensor. Modules that only call
others in a chain (a stage) are opened, so that the blocks of all stages stand in one row.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

from torch import Tensor, nn
from torch.nn.utils import parametrize

from ..graph import Call, ShapeTrace, TensorInfo


@dataclass(frozen=True)
class Kind:
    """What a module is made of: the weights of all layers inside it that mix channels or neighbours.

    weights: per layer (kernel size, whether it is depthwise); is_pde: it has a PDE or iterates.
    """

    type: type[nn.Module]
    weights: tuple[tuple[tuple[int, ...], bool], ...]
    is_pde: bool

    @property
    def mixes(self) -> bool:
        """Whether it has such weights."""
        return bool(self.weights)

    @property
    def is_block(self) -> bool:
        """Whether it has several such layers."""
        return len(self.weights) > 1

    @property
    def is_spatial(self) -> bool:
        """Whether one of them reads neighbours."""
        return any(max(kernel, default=1) > 1 for kernel, _ in self.weights)

    def is_like(self, other: Kind) -> bool:
        """Whether two units may repeat each other: equal layers, or blocks that both read neighbours."""
        if self.is_pde or other.is_pde:
            return False
        if self.is_block and other.is_block:
            return self.type is other.type or (self.is_spatial and other.is_spatial)
        return self.weights == other.weights


def kind_of(module: nn.Module) -> Kind:
    """The kind of a module, read off the shapes of its parameters."""
    weights = []
    for inner in module.modules():
        held = list(inner.parameters(recurse=False))
        if parametrize.is_parametrized(inner):
            held += list(inner.get_submodule("parametrizations").parameters())
        mixing = [p for p in held if sum(n > 1 for n in p.shape) > 1]
        if mixing:
            largest = max(mixing, key=lambda p: p.numel())
            weights.append((tuple(largest.shape[2:]), largest.shape[1] == 1))
    is_pde = any(callable(getattr(m, "pde_multiplies", None)) for m in module.modules())
    return Kind(parametrize.type_before_parametrizations(module), tuple(weights), is_pde)


@dataclass(frozen=True)
class Unit:
    """A head and the calls that follow it on the same tensor."""

    calls: tuple[Call, ...]
    kind: Kind

    @property
    def head(self) -> Call:
        """The first call."""
        return self.calls[0]

    @property
    def last(self) -> Call:
        """The last call."""
        return self.calls[-1]

    @property
    def name(self) -> str:
        """The name of the head."""
        return self.head.name

    @cached_property
    def passes_others(self) -> bool:
        """Whether it takes further tensors and returns them unchanged beside its map."""
        call = self.head
        several = len(self.calls) == 1 and len(call.inputs) == len(call.outputs) > 1
        return several and not call.returns_tensor and call.reads[1:] == call.writes[1:]

    @property
    def trouble(self) -> str | None:
        """Why no block can take its place, whatever its shapes; None if one can."""
        for call in self.calls:
            if call.positional < 1:
                return f"{call.name} takes its map by keyword"
        takes, returns = len(self.head.inputs), len(self.last.outputs)
        if self.passes_others:
            if self.head.keywords or self.head.positional != takes:
                return f"{self.name} takes {takes} tensors and other arguments, and returns {returns} tensors"
            return None
        if takes != 1 or returns != 1 or not self.last.returns_tensor:
            return f"{self.name} takes {takes} tensors and returns {returns}" + (
                "" if self.last.returns_tensor else ", not one tensor alone"
            )
        return None

    @property
    def taken(self) -> TensorInfo | None:
        """Its map, the first tensor that it takes."""
        return self.head.inputs[0] if self.head.inputs else None

    @property
    def returned(self) -> TensorInfo | None:
        """The map that it returns."""
        return self.last.outputs[0] if self.last.outputs else None

    @property
    def keeps_shape(self) -> bool:
        """Whether it returns a map like the one that it takes."""
        return self.taken is not None and self.taken == self.returned

    @property
    def extra(self) -> str:
        """What becomes of its further inputs, as in `Place`."""
        if self.passes_others:
            return "returned"
        return "dropped" if self.head.positional + len(self.head.keywords) > 1 else "none"


class Units:
    """The units of a trace, level by level."""

    def __init__(self, trace: ShapeTrace) -> None:
        self.trace = trace
        self.inside: dict[int | None, list[Call]] = {}
        for call in trace.calls:
            self.inside.setdefault(call.parent, []).append(call)
        self.times: dict[str, int] = {}
        for call in trace.calls:
            self.times[call.name] = self.times.get(call.name, 0) + 1
        self._kinds: dict[nn.Module, Kind] = {}

    def kind(self, call: Call) -> Kind:
        """The kind of the module that is called."""
        if call.module not in self._kinds:
            self._kinds[call.module] = kind_of(call.module)
        return self._kinds[call.module]

    def row(self, call: Call) -> list[Unit | Call]:
        """What is called inside of `call`, stages opened: units, and between them calls that mix nothing."""
        row: list[Unit | Call] = []
        for child in self._opened(call):
            if self.kind(child).mixes:
                row.append(Unit((child,), self.kind(child)))
                continue
            before = row[-1] if row else None
            if isinstance(before, Unit) and self._follows(before, child):
                row[-1] = Unit((*before.calls, child), before.kind)
            else:
                row.append(child)
        return row

    def _opened(self, call: Call) -> Iterator[Call]:
        for child in self.inside.get(call.index, []):
            if self._is_stage(child):
                yield from self._opened(child)
            else:
                yield child

    def _is_stage(self, call: Call) -> bool:
        """Whether the call is a chain of calls, from its input to its output, of blocks or stages."""
        children = self.inside.get(call.index, [])
        mixing = [c for c in children if self.kind(c).mixes]
        own = call.module.parameters(recurse=False)
        if not mixing or not all(self.kind(c).is_block for c in mixing) or any(True for _ in own):
            return False
        if len(mixing) == 1 and len(children) == 1 and type(call.module) is not nn.Sequential:
            return False
        links = [(call.reads, children[0].reads), (children[-1].writes, call.writes)]
        links += [(a.writes, b.reads) for a, b in pairwise(children)]
        return all(passed == taken and len(passed) == 1 for passed, taken in links)

    def _follows(self, unit: Unit, call: Call) -> bool:
        """Whether `call` belongs to the unit: it takes the unit's map alone, and keeps its shape."""
        one = len(call.inputs) == len(call.outputs) == 1 and call.positional == 1 and call.returns_tensor
        direct = unit.last.writes == call.reads and not call.keywords
        # a module that is called elsewhere too, such as a shared activation, must stay
        return one and direct and call.inputs == call.outputs and self.times[call.name] == 1

    def all_in(self, unit: Unit) -> bool:
        """Whether every module of the unit is called once."""
        return all(self.times[call.name] == 1 for call in unit.calls)


def without_odd_ends(run: list[Unit], opener: Unit | None) -> list[Unit]:
    """The units, cut to the calls after the head that all of them have, in kind.

    What only the last one has, such as a pooling that keeps the shape of this example by chance, is not part
    of the repetition.
    """
    others = [opener] if opener is not None and len(run) == 1 else []
    tails = [[type(c.module) for c in unit.calls[1:]] for unit in [*run, *others]]
    length = 0
    while all(len(t) > length and t[length] is tails[0][length] for t in tails):
        length += 1
    return [Unit(unit.calls[: length + 1], unit.kind) for unit in run]


def shape_of(info: TensorInfo | None) -> tuple[int, ...]:
    """The shape without the batch."""
    return () if info is None else info.shape[1:]


def channel_axis_trouble(unit: Unit, trace: ShapeTrace) -> str | None:
    """Why the unit's map cannot be taken for (N, C, H, W); None if it can.

    A map of four dimensions may also hold its channels last, so a convolution in the unit must have read it.
    """
    info = unit.taken
    if info is None or len(info.shape) != 4:
        return f"its maps are {shape_of(info)} for one image, not (C, H, W)"
    if info.shape[2:] == (1, 1):
        return (
            "its maps are of 1 x 1 pixel, of which every layer keeps the shape: give a larger example input"
        )
    if not info.dtype.is_floating_point:
        return f"its maps are of {info.dtype}"
    for call in trace.calls[unit.head.index :]:
        if not is_within(call, unit.head.index, trace):
            break
        maps = [t.shape for t in call.inputs[:1] if len(t.shape) == 4]
        if maps and maps[0][2:] == info.shape[2:] and _has_kernels(call.module):
            return None
    return (
        f"no convolution in it reads its map {shape_of(info)} as (C, H, W): it may hold the channels in the "
        "last dimension"
    )


def _has_kernels(module: nn.Module) -> bool:
    """Whether the module itself has weights as those of a convolution."""
    own = [*module.parameters(recurse=False), getattr(module, "weight", None)]
    return any(isinstance(p, Tensor) and p.ndim == 4 for p in own)


def is_within(call: Call, index: int, trace: ShapeTrace) -> bool:
    """Whether a call is the one of that index, or was made inside of it."""
    inner: int | None = call.index
    while inner is not None and inner > index:
        inner = trace.calls[inner].parent
    return inner == index
