"""The depth of a network: the number of weighted layers on the longest path through it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from ..graph import eval_mode
from .probe import checked_model, checked_size, probe_input, run_once

# Products of two matrices, counted if one of them is a weight.
_PRODUCTS = frozenset(
    {"mm", "bmm", "addmm", "baddbmm", "linear", "matmul", "mv", "addmv", "_addmm_activation"}
)
# Products whose first argument is added, not multiplied.
_WITH_BIAS = frozenset({"addmm", "baddbmm", "addmv", "_addmm_activation"})


def depth(model: nn.Module, input_size: Sequence[int]) -> int:
    """Number of weighted layers on the longest path from the input of `model` to its output.

    Convolutions (depthwise and transposed ones included) and linear layers are weighted layers;
    normalisation, pooling, activations and products of two feature maps are not. The path is found from the
    data flow of one eval pass on fixed noise of `input_size` = (C, H, W): an operation's result is as deep as
    the deepest of its arguments, plus one if it is weighted. A weight shared by several calls counts at
    each; a buffer that is written piece by piece is as deep as its deepest piece. The model is restored.

    Raises:
        UserError: `input_size` is not three positive integers, the model does not run on it, or the model is
            TorchScript or lazy.
        UserTypeError: `model` is not a module.

    >>> from torch import nn
    >>> depth(nn.Sequential(nn.Conv2d(3, 8, 3), nn.ReLU(), nn.Conv2d(8, 8, 3)), (3, 8, 8))
    2
    """
    model = checked_model(model)
    image = probe_input(model, checked_size(input_size))
    flow = _DepthFlow(image)
    # Not inference mode: a tensor that the model keeps for later would be unfit for training.
    with eval_mode(model), torch.no_grad(), flow:
        outputs = run_once(model, image)
    return max((flow.depth_of(output) or 0 for output in outputs), default=0)


class _DepthFlow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows every tensor that carries the input's data and knows how many weighted layers made it.

    Depths are kept by storage, so that views share the depth of their base and writing into a view deepens
    it. The references are weak: they keep the address of a freed storage from being used again, not its
    memory.
    """

    def __init__(self, source: Tensor) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._depths = {_storage(source): 0}

    def depth_of(self, value: Any) -> int | None:
        """The depth of a tensor; None where it does not carry the input's data (a weight, a constant)."""
        if not isinstance(value, Tensor):
            return None
        return self._depths.get(_storage(value))

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        name = func.overloadpacket.__name__
        reached = [d for d in map(self.depth_of, tree_leaves((args, kwargs))) if d is not None]
        weighted = func.namespace == "aten" and self._is_weighted(name, args)
        result = func(*args, **kwargs)
        if reached and not _only_shapes(name):
            made = max(reached) + weighted
            for tensor in [*tree_leaves(result), *_written(func, args, kwargs)]:
                if isinstance(tensor, Tensor):
                    self._depths[_storage(tensor)] = made
        return result

    def _is_weighted(self, name: str, args: tuple[Any, ...]) -> bool:
        if name in _PRODUCTS:
            factors = args[1:3] if name in _WITH_BIAS else args[:2]
            return sum(self.depth_of(factor) is not None for factor in factors) == 1
        return "conv" in name


def _storage(tensor: Tensor) -> StorageWeakRef:
    return StorageWeakRef(tensor.untyped_storage())  # type: ignore[no-untyped-call]


def _only_shapes(name: str) -> bool:
    """Whether an operation uses only the shape and dtype of its argument, not its values."""
    return name.endswith("_like") or name.startswith("new_")


def _written(func: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments that the operation writes into."""
    if not func._schema.is_mutable:
        return []
    named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
    writes = [a.name for a in func._schema.arguments if a.alias_info is not None and a.alias_info.is_write]
    return tree_leaves([named.get(name) for name in writes])
