"""What `plan` is given, checked; the network's first run on it."""

from __future__ import annotations

from collections.abc import Mapping
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from ..errors import UserError, UserTypeError
from ..graph import ShapeTrace, trace_shapes
from ..models.placeable import check_settings, placeable


def checked_arguments(model: nn.Module, example: Any) -> tuple[Any, ...]:
    """The arguments of the forward, detached; `UserError` for what cannot be an example."""
    if isinstance(example, (torch.Size, tuple, list)) and example and all(type(v) is int for v in example):
        raise UserTypeError(
            f"plan: example_input={tuple(example)} is a shape; give a batch, such as "
            f"torch.randn{tuple(example)}"
        )
    if not isinstance(example, (Tensor, tuple, list)):
        raise UserTypeError(
            f"plan: example_input must be a tensor (N, C, H, W), or a tuple of arguments, got "
            f"{type(example).__name__}"
        )
    arguments = (example,) if isinstance(example, Tensor) else tuple(example)
    tensors = [t for t in tree_leaves(arguments) if isinstance(t, Tensor)]
    if not tensors or any(t.numel() == 0 for t in tensors):
        shapes = [tuple(t.shape) for t in tensors]
        raise UserError(
            f"plan: example_input must hold a batch of one image or more, got {shapes or 'no tensor'}"
        )
    weight = next((t for t in chain(model.parameters(), model.buffers())), None)
    if weight is not None and tensors[0].device != weight.device:
        raise UserError(
            f"plan: example_input is on {tensors[0].device} but the model on {weight.device}; give "
            f"example_input.to({str(weight.device)!r})"
        )
    return tuple(a.detach() if isinstance(a, Tensor) else a for a in arguments)


def check_options(block: Any, settings: Any, keep: Any, seconds: Any) -> None:
    """Raise `UserError` for options that do not fit."""
    placeable(block)
    if settings is not None and not isinstance(settings, Mapping):
        raise UserTypeError(f"plan: settings={settings!r} must be a dictionary, such as {{'steps': 2}}")
    check_settings(block, settings or {})
    if type(keep) is not int or keep < 1:
        raise UserError(f"plan: keep={keep!r} must be a whole number >= 1")
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if seconds is not None and not (number and 0 < seconds < float("inf")):
        raise UserError(f"plan: seconds={seconds!r} must be a number > 0, or None for no measuring")


def traced(model: nn.Module, arguments: tuple[Any, ...]) -> ShapeTrace:
    """The trace of the network's run; a `UserError` that says why where it does not run."""
    try:
        trace = trace_shapes(model, arguments)
    except (torch.OutOfMemoryError, MemoryError):
        raise
    except Exception as error:  # the forward of a stranger's network may raise anything
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0][:300]
        shapes = ", ".join(
            f"{tuple(t.shape)} of {t.dtype}" for t in tree_leaves(arguments) if isinstance(t, Tensor)
        )
        raise UserError(f"plan: the model does not run on the example input {shapes}: {reason}") from error
    if not trace.calls[0].inputs:
        raise UserError("plan: the model takes no tensor from the example input")
    return trace
