"""The start of a layer: its input is checked, its init block runs."""

from __future__ import annotations

from typing import Protocol

import torch
from torch import Tensor, nn

from ..errors import UserError, UserTypeError


class Starts(Protocol):
    """A layer with a state of `channels` channels, made by its `init` block if there is one."""

    channels: int
    init: nn.Module | None


def start(
    layer: Starts, f: Tensor, before: Tensor | None, *, who: str = "GlobalLayer"
) -> tuple[Tensor, Tensor]:
    """(h, f) at the start of the evolution of the input `f`; errors speak of `who`.

    Raises `UserError` or `UserTypeError` for inputs, or outputs of the init block, that do not fit.
    """
    if layer.init is None:
        if before is not None:
            raise UserError(f"{who}: got a second input, but there is no init block to take it (init=)")
        h = f
    else:
        h = layer.init(f) if before is None else layer.init(before, f)
    if not torch.jit.is_tracing():  # the sizes would become nodes of the graph, and their checks warnings
        came = "its input" if layer.init is None else "its init block's output"
        check_state(h, layer.channels, came, who=who)
    return h, (f if f is h or f.shape == h.shape else h)


def check_state(h: Tensor, channels: int, came: str, *, who: str) -> None:
    """A `UserError` unless `h` is a dense (N, channels, H, W) of a floating dtype with H, W >= 1."""
    if not isinstance(h, Tensor):
        raise UserTypeError(f"{who}: {came} is a {type(h).__name__}; it must be a tensor")
    if h.layout is not torch.strided or not h.is_floating_point():
        raise UserTypeError(
            f"{who}: {came} has dtype {h.dtype} and layout {h.layout}; it must be dense, of a floating dtype "
            "(float32, float64, bfloat16, float16): x.to_dense(), x.float()"
        )
    if h.ndim != 4 or h.shape[1] != channels:
        raise UserError(
            f"{who}: {came} has shape {tuple(h.shape)}; it must be (N, {channels}, H, W). "
            "Give the layer channels= to match"
        )
    if h.shape[2] == 0 or h.shape[3] == 0:
        raise UserError(f"{who}: {came} has shape {tuple(h.shape)}; H and W must be >= 1")
