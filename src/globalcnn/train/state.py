"""The training state on disk: with a checksum over all bytes, without code, with checked types."""

from __future__ import annotations

import hashlib
import io
import math
import pickle
from pathlib import Path
from typing import Any

import torch

from ..errors import UserError
from ..files import atomic_write

MAGIC = b"globalcnn-training-state-2\n"
DIGEST = hashlib.sha256().digest_size

FIGURES = ("epoch", "lr", "train_loss", "train_accuracy", "val_loss", "val_accuracy", "seconds")


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Write a training state (tensors, numbers, strings, lists, dicts), atomically, behind its checksum."""
    content = io.BytesIO()
    torch.save(state, content)
    with atomic_write(path) as part, part.open("wb") as file:
        file.write(MAGIC + hashlib.sha256(content.getbuffer()).digest())
        file.write(content.getbuffer())


def load_state(path: Path) -> dict[str, Any]:
    """Read a training state without executing anything in it.

    Raises `UserError` for a file that is missing, damaged in any byte, or something else.
    """
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"cannot read the training state {str(path)!r}: {error.strerror or error}") from error
    if not content.startswith(MAGIC):
        raise UserError(f"{str(path)!r} is not a training state of this library, or it is damaged")
    digest = content[len(MAGIC) : len(MAGIC) + DIGEST]
    body = memoryview(content)[len(MAGIC) + DIGEST :]
    if hashlib.sha256(body).digest() != digest:
        raise UserError(
            f"the training state {str(path)!r} is damaged: its checksum does not fit its bytes. Restore it, "
            "or start again with --overwrite"
        )
    state = _without_code(body, path)
    if not isinstance(state, dict):
        raise UserError(f"{str(path)!r} is not a training state of this library")
    return state


def _without_code(body: memoryview, path: Path) -> Any:
    try:
        return torch.load(io.BytesIO(body), map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(
            f"{str(path)!r} holds more than tensors and plain values (code, or objects of other programs), "
            "so it is not loaded"
        ) from error
    except (OSError, RuntimeError, EOFError, ValueError, KeyError) as error:
        first = (str(error).splitlines() or [""])[0]
        raise UserError(f"the training state {str(path)!r} cannot be read: {first}") from error


def check_state(state: dict[str, Any], *, epochs: int, path: Path) -> None:
    """A `UserError` unless epoch, history and best accuracy are of the right kinds and agree.

    epochs: of the recipe; a state is of 0 to `epochs` finished ones.
    """
    wrong = _what_is_wrong(state, epochs)
    if wrong:
        raise UserError(f"the training state {str(path)!r} does not fit this run: {wrong}")


def _what_is_wrong(state: dict[str, Any], epochs: int) -> str:
    epoch, history, best = (state.get(k) for k in ("epoch", "history", "best_accuracy"))
    if not isinstance(epoch, int) or not _whole(epoch) or not 0 <= epoch <= epochs:
        return f"its epoch is {epoch!r}, which must be a whole number from 0 to {epochs}"
    if best is not None and not _number(best):
        return f"its best accuracy is {best!r}, which must be a number or nothing"
    if not isinstance(history, list) or len(history) != epoch:
        found = f"{len(history)} epochs" if isinstance(history, list) else repr(history)
        return f"its history is of {found}, and {epoch} are finished"
    for i, figures in enumerate(history):
        if not isinstance(figures, dict):
            return f"entry {i + 1} of its history is {figures!r}"
        lacking = [k for k in FIGURES if k not in figures]
        if lacking:
            return f"epoch {i + 1} of its history lacks {', '.join(lacking)}"
        if figures["epoch"] != i + 1 or not _whole(figures["epoch"]):
            return f"epoch {i + 1} of its history calls itself {figures['epoch']!r}"
        for name in FIGURES:
            if not (
                _number(figures[name]) or (figures[name] is None and name.startswith(("val", "train_acc")))
            ):
                return f"{name} of epoch {i + 1} of its history is {figures[name]!r}"
    return ""


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and not math.isnan(value)
