"""Shared by all measurements: checks of arguments, an example input, errors of the network as `UserError`."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedParameter
from torch.utils._pytree import tree_leaves

from ..errors import UserError, UserTypeError
from ..graph import eval_mode


def checked_model(model: nn.Module) -> nn.Module:
    """The module to measure: unwrapped from `torch.compile`, or a `UserError`."""
    if not isinstance(model, nn.Module):
        raise UserTypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    model = getattr(model, "_orig_mod", model)
    if isinstance(model, torch.jit.ScriptModule):
        raise UserError(
            "model is a TorchScript module, whose layers cannot be hooked: give the Python module instead"
        )
    if any(isinstance(p, UninitializedParameter) for p in model.parameters()):
        raise UserError("model has lazy parameters without a shape yet: run it on one batch first")
    return model


def checked_size(input_size: Sequence[int]) -> tuple[int, int, int]:
    """`input_size` as (C, H, W), three positive integers."""
    size = tuple(input_size) if isinstance(input_size, Sequence) else ()
    if len(size) != 3 or not all(type(n) is int and n > 0 for n in size):
        raise UserError(
            f"input_size must be (channels, height, width), three positive integers such as (3, 32, 32), "
            f"got {input_size!r}"
        )
    return size


def probe_input(model: nn.Module, size: tuple[int, int, int]) -> Tensor:
    """One image of unit normal noise (the same each time), on the device and in the dtype of the model."""
    noise = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    like = next((p for p in model.parameters() if p.is_floating_point()), noise)
    return noise.to(device=like.device, dtype=like.dtype)


def check_runs(model: nn.Module, input_size: Sequence[int]) -> None:
    """Raise `UserError` unless `model` runs on an image of (C, H, W); the model is restored."""
    image = probe_input(model, checked_size(input_size))
    with eval_mode(model), torch.no_grad():
        run_once(model, image)


def run_once(run: Callable[[Tensor], Any], image: Tensor) -> list[Tensor]:
    """The tensors that `run(image)` gives; a network that rejects the shape becomes a `UserError`."""
    with naming_failures(image):
        output = run(image)
    return [leaf for leaf in tree_leaves(output) if isinstance(leaf, Tensor)]


@contextmanager
def naming_failures(image: Tensor) -> Iterator[None]:
    """Convert the error of a network that rejects the shape of `image` into a `UserError`."""
    try:
        yield
    except torch.OutOfMemoryError:
        raise
    except (RuntimeError, ValueError, AssertionError) as error:  # timm's check sizes by assertions
        if isinstance(error, UserError):
            raise
        reason = str(error).strip().splitlines() or [type(error).__name__]
        raise UserError(
            f"the model does not run on input_size={tuple(image.shape[1:])}: {reason[0]}"
        ) from error
