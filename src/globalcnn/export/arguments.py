"""What `export` was given, checked before anything is computed."""

from __future__ import annotations

import copy
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import UserError, UserTypeError, unknown_name
from ..measure.probe import checked_model, checked_size, run_once
from ..models import Card, NamedSource, list_models, model_info, source_of
from .target import Target
from .targets import TARGETS


def checked_target(
    path: str | Path, to: str | None, *, overwrite: bool = False, int8: bool = False, dynamic: bool = False
) -> Target:
    """The kind of file that `to`, or the suffix of `path`, means, where it can be written here.

    Raises `UserError` for an unknown target, a suffix that is not its own, a file that is there already, or
    packages that are missing; for int8 or dynamic, for a target without such files.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise UserTypeError(f"path={path!r} must name the file to write")
    path = Path(path)
    suffixes: dict[str, str] = {}
    for name, each in TARGETS.items():
        suffixes.setdefault(each.suffix, name)
    if to is None:
        if path.suffix not in suffixes:
            ends = " or ".join(f"{suffix} ({name})" for suffix, name in suffixes.items())
            raise UserError(f"{str(path)!r} must end in {ends}")
        to = suffixes[path.suffix]
    if to not in TARGETS:
        raise unknown_name("target", str(to), TARGETS)
    target = TARGETS[to]
    if path.suffix != target.suffix:
        raise UserError(f"{str(path)!r} must end in {target.suffix}, as files of {to} do")
    for file in target.files(path):
        if os.path.lexists(file) and not overwrite:
            raise UserError(
                f"{str(file)!r} is there already: choose another name, or give overwrite (--overwrite)"
            )
    if dynamic and not target.dynamic:
        raise UserError(
            f"a file of {to} takes one shape, as its memory is planned beforehand: leave dynamic (--dynamic) "
            "out and export a file for each shape"
        )
    target.require(int8=int8)
    return target


def copied_network(model: nn.Module) -> nn.Module:
    """A copy of the network on the CPU, in eval mode, without gradients; `UserError` unless it is float32."""
    model = checked_model(model)
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if tensor.is_floating_point() and tensor.dtype != torch.float32:
            raise UserError(
                f"the network's {name} is {tensor.dtype}, and files are written and compared in float32: "
                "give model.float()"
            )
    try:
        return copy.deepcopy(model).cpu().eval().requires_grad_(False)
    except (RuntimeError, TypeError, NotImplementedError) as error:
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        raise UserError(f"the network cannot be copied: {reason}") from error


def example_for(model: nn.Module, example: Tensor | Sequence[int] | None, card: Card | None) -> Tensor:
    """The batch to export for: the one given, or an image of noise of the size given or known.

    Raises `UserError` where no size is known, or the network does not run on such images.
    """
    if isinstance(example, Tensor):
        if example.ndim != 4 or example.numel() == 0 or example.dtype != torch.float32:
            raise UserError(
                f"example is {tuple(example.shape)} {example.dtype}; it must be a batch (N, C, H, W) of one "
                "image or more in float32, such as torch.randn(1, 3, 224, 224)"
            )
        batch = example.detach().cpu().contiguous()
    else:
        size = _known_size(model, card) if example is None else checked_size(example)
        batch = torch.randn(1, *size, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        if not run_once(model, batch):
            raise UserError("the network returns no tensor, so there is nothing to compare")
    return batch


def _known_size(model: nn.Module, card: Card | None) -> tuple[int, int, int]:
    """(C, H, W) of the card, of the network's name here, or of timm's description."""
    if card is not None:
        return (card.in_chans, *card.image_size)
    source = source_of(model)
    if isinstance(source, NamedSource) and source.name in list_models():
        return model_info(source.name).input_size
    told: Any = (getattr(model, "pretrained_cfg", None) or {}).get("input_size")
    if told is None:
        raise UserError(
            "the network does not say for which images it is: give example=, a batch (N, C, H, W) or the "
            "size (C, H, W) of an image"
        )
    return checked_size(tuple(told))


def checked_seconds(seconds: Any) -> float:
    """`seconds` of measuring; 0 for none."""
    number = isinstance(seconds, (int, float)) and not isinstance(seconds, bool)
    if not (number and math.isfinite(seconds) and seconds >= 0):
        raise UserError(f"seconds={seconds!r} must be a number of 0 or more; 0 measures no latency")
    return float(seconds)
