"""Whether a network is still what code was made from: its tensors, its layers, no hooks."""

from __future__ import annotations

import itertools
from collections import OrderedDict
from collections.abc import Callable
from operator import attrgetter
from typing import Any

from torch import Tensor, nn
from torch.nn.modules import module as torch_module

_HELD = ("_parameters", "_buffers", "_modules")
_HOOKS = ("_forward_hooks", "_forward_pre_hooks")
_EVERYWHERE = ("_global_forward_hooks", "_global_forward_pre_hooks")
_WRITES = (
    "__setitem__", "__delitem__", "__ior__", "clear", "pop", "popitem", "setdefault", "update", "move_to_end"
)  # fmt: skip
_version = attrgetter("_version")


class _Writes:
    """Counts the writes to all watched dicts of the process."""

    numbers = itertools.count(1)
    latest = 0


def _counted(write: Callable[..., Any]) -> Callable[..., Any]:
    def counted(*arguments: Any, **options: Any) -> Any:
        try:
            return write(*arguments, **options)
        finally:
            _Writes.latest = next(_Writes.numbers)  # a number that was not there before, from any thread

    return counted


class _Watched(dict[str, Any]):
    """A dict of a module that counts its writes; copied and pickled, it is a plain one."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return dict, (dict(self),)


class _WatchedInOrder(OrderedDict[Any, Any]):
    """The same for hooks."""

    def __reduce_ex__(self, protocol: Any) -> tuple[Any, ...]:
        return OrderedDict, (list(self.items()),)


for _class in (_Watched, _WatchedInOrder):
    for _write in _WRITES:
        if hasattr(_class, _write):
            setattr(_class, _write, _counted(getattr(_class, _write)))
_KINDS: dict[type, type] = {dict: _Watched, OrderedDict: _WatchedInOrder}


class Snapshot:
    """What compiled code or an engine assumes constant in a network: its tensors and layers, and that there
    are no hooks.

    It detects tensors and layers that are replaced, tensors written in place or swapped by
    `torch.func.functional_call`, and hooks that are registered later; it does not detect writes through
    `.data`.

    The dicts in which modules hold these are replaced by ones that count writes: where nothing was written,
    only the versions of the tensors are looked at. That is what a call of a small network has time for.
    """

    def __init__(self, model: nn.Module) -> None:
        modules = list(model.modules())
        watched = [_watch(m) for m in modules]
        self._watched = all(watched)
        self._held = [vars(m)[name] for m in modules for name in _HELD]
        hooks = [hooks for m in modules for name in _HOOKS if not (hooks := vars(m)[name])]
        self._without_hooks = [*hooks, *(h for name in _EVERYWHERE if not (h := getattr(torch_module, name)))]
        self._everywhere = [h for h in self._without_hooks if type(h) not in _KINDS.values()]
        self._kept = [value for held in self._held for value in held.values()]  # keeps ids unique
        unread = {id(vars(m)["_buffers"].get("num_batches_tracked")) for m in modules}  # in eval mode
        self._counting = [
            t for t in self._kept if isinstance(t, Tensor) and not t.is_inference() and id(t) not in unread
        ]
        self._writes = _Writes.latest
        self._identities, self._versions = self._now(), self._sum()

    def _now(self) -> list[int]:
        return [id(value) for held in self._held for value in held.values()]

    def _sum(self) -> int:
        return sum(map(_version, self._counting))  # none of them ever decreases

    def holds(self) -> bool:
        """Whether nothing has changed."""
        writes = _Writes.latest
        if writes != self._writes or not self._watched:
            if any(self._without_hooks) or self._now() != self._identities:
                return False
            self._writes = writes
        return self._versions == self._sum() and not any(self._everywhere)


def _watch(module: nn.Module) -> bool:
    """Have the dicts of a module count writes; whether all do."""
    attributes = vars(module)
    for name in (*_HELD, *_HOOKS):
        held = attributes[name]
        kind = _KINDS.get(type(held))
        if kind is not None and not (name in _HOOKS and held):  # a handle that removes a hook knows its dict
            attributes[name] = kind(held)
    return all(type(attributes[name]) in _KINDS.values() for name in _HELD)
