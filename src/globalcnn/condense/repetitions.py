"""Repetitions of a network: rows of units that keep the shape and resemble each other."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from torch import nn

from ..graph import Call, ShapeTrace
from .data import Untouched
from .links import Found, Link, Runner, find_link
from .units import Unit, Units, channel_axis_trouble, shape_of, without_odd_ends


@dataclass(frozen=True)
class Block:
    """Units that go together: one, or those that a shortcut in the forward spans.

    added: the forward adds what the block returns to what it took; mixed: it combines that with other maps;
    direct: it passes that on as it is.
    """

    units: tuple[Unit, ...]
    added: bool
    mixed: bool = False
    direct: bool = False

    @property
    def names(self) -> tuple[str, ...]:
        """The names of its modules."""
        return tuple(call.name for unit in self.units for call in unit.calls)

    @property
    def written(self) -> tuple[str, ...]:
        """The last modules of single layers whose maps the forward may write into, having them in hand."""
        return () if self.direct else tuple(u.last.name for u in self.units if not u.kind.is_block)


@dataclass(frozen=True)
class Repetition:
    """A run of blocks. kept: names of what stays of it; removable: the blocks that may go, in order.

    in_channels: of the map that comes in, where that is not the map that goes out; reshapes: what is
    removed is a whole stage that changes the number of channels.
    """

    kept: tuple[str, ...]
    removable: tuple[Block, ...]
    shape: tuple[int, ...]
    in_channels: int | None = None
    notes: tuple[str, ...] = ()

    @property
    def first(self) -> Unit:
        """The first unit that may go."""
        return self.removable[0].units[0]


class Search:
    """One search through a trace. keep: blocks of a run that stay, its first ones."""

    def __init__(self, trace: ShapeTrace, runner: Runner, *, keep: int = 1, any_shape: bool = False) -> None:
        self.trace = trace
        self.units = Units(trace)
        self.runner = runner
        self.keep = keep
        self.any_shape = any_shape
        self.found: list[Repetition] = []
        self.untouched: dict[str, str] = {}
        self.block_types: set[type[nn.Module]] = set()

    def run(self) -> tuple[list[Repetition], list[Untouched]]:
        """(repetitions in the order of the forward, what was passed over)."""
        self._visit(self.trace.calls[0])
        inner = {
            name
            for name, module in ((c.name, c.module) for c in self.trace.calls)
            if type(module) in self.block_types
        }
        found = [r for r in self.found if not any(r.first.name.startswith(f"{n}.") for n in inner if n)]
        found.sort(key=lambda r: r.first.head.index)
        passed = [
            Untouched(n, why)
            for n, why in self.untouched.items()
            if not any(n.startswith(f"{i}.") for i in inner if i)
        ]
        return found, passed

    def _visit(self, call: Call) -> None:
        row = self.units.row(call)
        done: set[int] = set()
        for segment in _segments(row):
            done |= self._take_runs(segment)
        for item in row:
            if not isinstance(item, Unit) or item.head.index in done or item.kind.is_pde:
                continue
            if not self._take_dense(item):
                self._visit(item.head)

    def _take_runs(self, segment: Sequence[Unit]) -> set[int]:
        """Note the runs in units without another call that mixes between them; indices of their heads."""
        done: set[int] = set()
        i = 0
        while i < len(segment):
            j = i
            while j + 1 < len(segment) and self._repeats(segment[i], segment[j + 1]):
                j += 1
            start = i
            opener = segment[i - 1] if i and segment[i - 1].head.index not in done else None
            if not segment[i].keeps_shape:
                i += 1
                continue
            run = list(segment[start : j + 1])
            if opener is not None and not (
                opener.kind.is_like(run[0].kind) and shape_of(opener.returned) == shape_of(run[0].taken)
            ):
                opener = None
            i = j + 1
            if len(run) + (opener is not None) > 1:
                done |= {u.head.index for u in run} | ({opener.head.index} if opener else set())
                self._take_run(run, opener)
        return done

    def _repeats(self, first: Unit, other: Unit) -> bool:
        keeps = first.keeps_shape and other.keeps_shape and first.taken == other.taken
        return keeps and first.kind.is_like(other.kind)

    def _take_run(self, run: list[Unit], opener: Unit | None) -> None:
        name = run[0].name if len(run) == 1 else f"{run[0].name} to {run[-1].name}"
        run = without_odd_ends(run, opener)
        trouble = None if self.any_shape else channel_axis_trouble(run[0], self.trace)
        usable = []
        for unit in run:
            why = unit.trouble
            if why is None and not self.units.all_in(unit):
                shared = next(c for c in unit.calls if self.units.times[c.name] > 1)
                why = f"{shared.name} is called {self.units.times[shared.name]} times with the same weights"
            usable.append(why)
        if trouble is not None:
            self.untouched[name] = trouble
            return
        pieces: list[list[Unit]] = [[]]
        for unit, why in zip(run, usable, strict=True):
            if why is None:
                pieces[-1].append(unit)
            else:
                self.untouched[unit.name] = why
                pieces.append([])
                opener = None if unit is run[0] else opener
        for k, piece in enumerate(pieces):
            if piece:
                self._take_piece(piece, opener if k == 0 else None)

    def _take_piece(self, run: list[Unit], opener: Unit | None) -> None:
        """Divide units into blocks by the links between them, and note what can go."""
        links = [find_link(self.runner, run, i, self.trace) for i in range(len(run))]
        if len(links) > 1 and links[-1].link in (Link.OTHER, Link.UNSEEN, Link.NONE):
            # what follows the last unit may pool or flatten: it is as those before
            spans = [f for f in links[:-1] if f.link is Link.ADDED]
            links[-1] = spans[-1] if spans else links[-2]
        elif links[-1].link in (Link.UNSEEN, Link.NONE):
            links[-1] = Found(Link.CHAIN if run[-1].kind.is_block else Link.OTHER)
        for blocks, whole in _blocks(run, links):
            if whole is not None:
                self.untouched[whole] = "the forward does not pass its map on to the next block"
            chain = _alike_runs(blocks)
            for k, group in enumerate(chain):
                opens = opener if k == 0 and group and group[0].units[0] is run[0] else None
                self._note(group, opens)

    def _note(self, blocks: Sequence[Block], opener: Unit | None) -> None:
        if blocks and blocks[0].added and not blocks[0].units[0].kind.is_block:
            opener = None  # the blocks are more than its one layer: they have a shortcut
        kept = [opener.name] if opener is not None else []
        stay = max(0, self.keep - len(kept))
        removable = tuple(blocks[stay:])
        kept += [b.names[0] for b in blocks[:stay]]
        if not removable:
            return
        unit = removable[0].units[0]
        if len(blocks) == 1 and blocks[0].mixed and not unit.kind.is_block:
            return  # one layer of a larger block that the forward spells out
        notes = ("what the forward does between the blocks stays",) if blocks[-1].mixed else ()
        self.found.append(Repetition(tuple(kept), removable, shape_of(unit.taken), notes=notes))
        for u in [opener, *(u for b in blocks for u in b.units)]:
            if u is not None and u.kind.is_block and u.kind.type is not nn.Sequential:
                self.block_types.add(u.kind.type)

    def _take_dense(self, unit: Unit) -> bool:
        """Note a densely connected stage, which can only go as a whole; whether the unit is one."""
        growth = self._growth(unit.head)
        if growth is None:
            return False
        taken, returned = unit.taken, unit.returned
        one = unit.trouble is None and self.units.all_in(unit)
        fits = taken is not None and returned is not None and len(taken.shape) == len(returned.shape) == 4
        if not one or not fits or taken is None or returned is None or taken.shape[2:] != returned.shape[2:]:
            self.untouched[unit.name] = (
                f"{growth}, so no block of it keeps the shape; as a whole it changes more than the channels"
            )
            return True
        note = f"{growth}: no block of it keeps the shape, so the stage goes as a whole"
        whole = Block((Unit((unit.head,), unit.kind),), added=False)
        self.found.append(
            Repetition((), (whole,), shape_of(returned), in_channels=taken.shape[1], notes=(note,))
        )
        return True

    def _growth(self, call: Call) -> str | None:
        """A phrase for a call whose layers each read more than the one before; None for any other."""
        layers = [c for c in self.units.inside.get(call.index, []) if self.units.kind(c).mixes]
        if len(layers) < 2 or not all(self.units.kind(c).is_like(self.units.kind(layers[0])) for c in layers):
            return None
        if len({tuple(t.shape for t in c.outputs) for c in layers}) > 1:
            return None
        if any(len(t.shape) != 4 for c in layers for t in c.inputs):
            return None
        read = [sum(t.shape[1] for t in c.inputs) for c in layers]
        added = layers[0].outputs[0].shape[1] if layers[0].outputs else 0
        if not all(b - a == added > 0 for a, b in pairwise(read)):
            return None
        return f"its {len(layers)} layers are densely connected"


def _segments(row: Sequence[Unit | Call]) -> Iterator[list[Unit]]:
    """Units without a call between them that changes the shape."""
    segment: list[Unit] = []
    for item in row:
        if isinstance(item, Unit):
            segment.append(item)
        elif item.inputs != item.outputs:
            yield segment
            segment = []
    yield segment


def _blocks(run: list[Unit], links: list[Found]) -> Iterator[tuple[list[Block], str | None]]:
    """Blocks that follow each other; (blocks, the name of the last if what follows does not depend on it)."""
    blocks: list[Block] = []
    open_units: list[Unit] = []
    for unit, found in zip(run, links, strict=True):
        open_units.append(unit)
        if found.link in (Link.NONE, Link.UNSEEN):
            yield blocks, unit.name
            blocks, open_units = [], []
        elif found.link is Link.ADDED:
            units = [u for b in blocks for u in b.units] + open_units
            count = found.span + 1
            if count > len(units):
                blocks, open_units = [], []
                continue
            while len(open_units) < count:
                open_units = [*blocks.pop().units, *open_units]
            for alone in open_units[:-count]:
                blocks.append(Block((alone,), added=False))
            blocks.append(Block(tuple(open_units[-count:]), added=True))
            open_units = []
        else:
            blocks.append(Block((unit,), added=False, mixed=found.link is Link.OTHER, direct=found.direct))
            open_units = []
    yield blocks, None


def _alike_runs(blocks: Sequence[Block]) -> list[list[Block]]:
    """Neighbours of which as many units are added, or not."""
    groups: list[list[Block]] = []
    for block in blocks:
        before = groups[-1][-1] if groups else None
        if before is not None and (before.added, len(before.units)) == (block.added, len(block.units)):
            groups[-1].append(block)
        else:
            groups.append([block])
    return groups
