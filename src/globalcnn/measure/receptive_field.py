"""The receptive field of a network: how much of the image its central feature depends on.

It depends on the architecture, not on the weights, and is found by propagating NaN, which survives any
weight, even zero, in two steps. Backward: the rows and columns that a NaN in the gradient of the central
feature reaches are in the field. An inactive ReLU or a max-pooling that chose a neighbour can stop it, so
the other rows remain open. Forward: no layer stops a NaN in the input, so if NaN in a group of rows leaves
the central feature finite, the whole group is outside the field; any other group is halved and tried again.

A fixed-point solver would discard an iterate that is NaN, so an `Equilibrium` iterates without a solver here:
once in the backward step (the fixed point depends on all that one evaluation depends on), and up to its
maximum number of evaluations in the forward step.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from ..errors import UserError
from ..graph import eval_mode
from ..nn.implicit.equilibrium import Equilibrium
from .probe import checked_model, checked_size, probe_input, run_once

_Features = Callable[[Tensor], Tensor]
_CHUNK_ELEMENTS = 1_500_000  # of input run at once: ten images of 3 x 224 x 224
_CHUNK_IMAGES = 64


@dataclass(frozen=True)
class ReceptiveField:
    """How many rows (`height`) and columns (`width`) of the image reach the central feature, in pixels.

    `whole` is True where every row and every column does.
    """

    height: int
    width: int
    whole: bool


def receptive_field(
    model: nn.Module, input_size: Sequence[int], *, features: _Features | None = None
) -> ReceptiveField:
    """The part of an image of `input_size` = (C, H, W) that reaches the centre of the feature map of `model`.

    The feature map (N, C', H', W') is `features(images)`; by default `model.forward_features(images)` where
    the model has that method, else `model(images)`. Its centre is the element (H' // 2, W' // 2), over all
    channels. Rows and columns are counted, so a field cut by the border is smaller, one that wraps round a
    periodic border is whole, and holes that a dilation leaves in all rows are left out. The model runs in
    eval mode with its present weights, which do not matter, and is restored.

    Raises:
        UserError: `input_size` is not three positive integers, the model does not run on it, or its feature
            map is not four-dimensional or contains NaN already.
        UserTypeError: `model` is not a module.

    >>> from torch import nn
    >>> receptive_field(nn.Sequential(nn.Conv2d(1, 2, 3), nn.ReLU(), nn.Conv2d(2, 2, 3)), (1, 12, 12))
    ReceptiveField(height=5, width=5, whole=False)
    """
    model = checked_model(model)
    size = checked_size(input_size)
    run: _Features = features or getattr(model, "forward_features", None) or model
    image = probe_input(model, size)
    resting = [model, features] if isinstance(features, nn.Module) else [model]
    with eval_mode(*resting), _no_fast_convolutions():
        with torch.no_grad():
            if _centre(_checked(run, image)).isnan().any():
                raise UserError("the feature map is NaN on ordinary noise: give the model finite weights")
        with _plain_iterations(model, most=1):
            seen = _seen_backward(run, image)
        with _plain_iterations(model):
            rows, columns = (_seen_forward(run, image, axis, seen[axis]) for axis in (0, 1))
    return ReceptiveField(height=rows, width=columns, whole=(rows, columns) == size[1:])


@contextmanager
def _plain_iterations(model: nn.Module, *, most: int | None = None) -> Iterator[None]:
    """Equilibria use plain iteration, up to their maximum number of evaluations, or `most` times."""
    blocks = [m for m in model.modules() if isinstance(m, Equilibrium)]
    before = [block.unroll for block in blocks]
    for block in blocks:
        block.unroll = block.solver.max_evaluations if most is None else most
    try:
        yield
    finally:
        for block, unroll in zip(blocks, before, strict=True):
            block.unroll = unroll


@contextmanager
def _no_fast_convolutions() -> Iterator[None]:
    """Winograd and FFT convolutions mix neighbouring outputs, and a NaN would spread beyond the kernel."""
    with torch.backends.cudnn.flags(enabled=False), torch.backends.nnpack.flags(enabled=False):
        yield


def _checked(run: _Features, images: Tensor) -> Tensor:
    outputs = run_once(run, images)
    if len(outputs) != 1 or outputs[0].ndim != 4:
        got = ", ".join(str(tuple(output.shape)) for output in outputs)
        raise UserError(
            f"a receptive field needs one feature map (N, C, H, W), got {got or 'no tensor'}: "
            f"give features=, a callable that makes it from the images"
        )
    return outputs[0]


def _centre(features: Tensor) -> Tensor:
    """The central element of each feature map, (N, C)."""
    return features[:, :, features.shape[2] // 2, features.shape[3] // 2]


def _seen_backward(run: _Features, image: Tensor) -> tuple[list[bool], list[bool]]:
    """For each row and for each column, whether the gradient proves that it is seen."""
    unproved = ([False] * image.shape[2], [False] * image.shape[3])
    with torch.enable_grad():
        source = image.clone().requires_grad_()
        try:
            features = _checked(run, source)
            spoiled = torch.zeros_like(features)
            _centre(spoiled).fill_(torch.nan)
            # A gradient that is NaN without ours (an infinite slope times zero) proves nothing.
            plain = torch.autograd.grad(features, source, torch.zeros_like(features), retain_graph=True)[0]
            if plain.isnan().any():
                return unproved
            gradient = torch.autograd.grad(features, source, spoiled)[0]
        except (RuntimeError, UserError):  # some part has no gradient: every row is then tried forward
            return unproved
    hit = gradient.isnan()[0].any(0)
    return hit.any(1).tolist(), hit.any(0).tolist()


def _seen_forward(run: _Features, image: Tensor, axis: int, proved: list[bool]) -> int:
    """How many rows (axis 0) or columns (axis 1) are seen, given those already proved."""
    seen = sum(proved)
    groups = [[i for i, known in enumerate(proved) if not known]]
    while groups and groups[0]:
        reaching = [group for group, hit in zip(groups, _hits(run, image, axis, groups), strict=True) if hit]
        seen += sum(len(group) == 1 for group in reaching)
        halves = [(group, len(group) // 2) for group in reaching if len(group) > 1]
        groups = [half for group, n in halves for half in (group[:n], group[n:])]
    return seen


@torch.no_grad()
def _hits(run: _Features, image: Tensor, axis: int, groups: list[list[int]]) -> list[bool]:
    """For each group of rows (or columns), whether NaN in all of them reaches the centre."""
    at_once = max(1, min(_CHUNK_IMAGES, _CHUNK_ELEMENTS // image.numel()))
    hits: list[bool] = []
    for start in range(0, len(groups), at_once):
        chunk = groups[start : start + at_once]
        images = image.repeat(len(chunk), 1, 1, 1)
        for spoiled, group in zip(images, chunk, strict=True):
            spoiled.index_fill_(axis + 1, torch.tensor(group, device=image.device), torch.nan)
        try:
            hits += _centre(_checked(run, images)).isnan().any(1).tolist()
        except (UserError, ArithmeticError, AssertionError) as error:
            raise UserError(
                f"the model cannot be probed, as it stops at an input with NaN: {error}"
            ) from error
    return hits
