"""A trained network that another one learns from, and its logits over fixed views of the training images."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, final

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from ..data import DataSource
from ..data.memory import TensorSource
from ..errors import UserError
from ..files import atomic_write
from ..graph import eval_mode
from ..measure.probe import check_runs
from ..models import Card
from ..models.weights import checksum
from .evaluate import checked_logits
from .objectives import Training
from .recipe import Recipe
from .trained_for import as_trained

FORMAT = "globalcnn-kept-logits-1"
VIEWS = 4  # of each training image, by default
BATCH = 256
LARGEST_HALF = 60000.0


@final
class Teacher(nn.Module):
    """A trained network in eval mode, without gradients: images of the data to logits of its classes.

    model: put into eval mode, and used as it is: its weights must not change meanwhile.
    scale, shift: numbers per channel, by which images normalised for the student become those that the
        teacher was trained on, x * scale + shift; None if they are the same.
    columns: the teacher's number of each class of the data; None if they are the same.
    label: its name in messages.
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        scale: Tensor | None = None,
        shift: Tensor | None = None,
        columns: Tensor | None = None,
        label: str = "",
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.label = label or type(model).__name__
        self.scale: Tensor | None
        self.shift: Tensor | None
        self.columns: Tensor | None
        for name, value in (("scale", scale), ("shift", shift), ("columns", columns)):
            self.register_buffer(name, value)

    def seen(self, images: Tensor) -> Tensor:
        """The images as the teacher's training normalised them."""
        if self.scale is None or self.shift is None:
            return images
        return images * self.scale + self.shift

    @torch.no_grad()
    def forward(self, images: Tensor) -> Tensor:
        """Logits (N, classes of the data) in float32 of images normalised for the student."""
        self.model.eval()
        logits = checked_logits(self.model(self.seen(images)), len(images)).float()
        return logits if self.columns is None else logits[:, self.columns]

    def checksum(self) -> str:
        """sha256 over its weights, and over what it makes of images and classes."""
        own = {"scale": self.scale, "shift": self.shift, "columns": self.columns}
        told = {k: None if v is None else v.flatten().tolist() for k, v in own.items()}
        return checksum(self.model.state_dict(), json.dumps(told))


def mean_teacher(teachers: Sequence[Teacher]) -> Teacher:
    """Several teachers as one: the mean of their logits, so the geometric mean of their shares.

    At any temperature. Source: Hinton, Vinyals and Dean, "Distilling the knowledge in a neural network",
    2015, section 2.

    >>> one, other = (nn.Sequential(nn.Flatten(), nn.Linear(4, 2)) for _ in range(2))
    >>> images = torch.ones(1, 1, 2, 2)
    >>> mean = mean_teacher([Teacher(one), Teacher(other)])(images)
    >>> torch.allclose(mean, (one(images) + other(images)) / 2)
    True
    """
    if len(teachers) == 1:
        return teachers[0]
    return Teacher(_MeanOfLogits(teachers), label=" and ".join(teacher.label for teacher in teachers))


class _MeanOfLogits(nn.Module):
    def __init__(self, teachers: Sequence[Teacher]) -> None:
        super().__init__()
        self.teachers = nn.ModuleList(teachers)

    def forward(self, images: Tensor) -> Tensor:
        logits = [teacher(images) for teacher in self.teachers]
        if len({one.shape for one in logits}) > 1:
            each = ", ".join(str(one.shape[1]) for one in logits)
            raise UserError(f"the teachers give {each} logits: they need the same classes")
        return torch.stack(logits).mean(dim=0)


def teacher_for(model: nn.Module, card: Card, data: DataSource) -> Teacher:
    """The network of a weights file as the teacher of one that is trained on `data`.

    Raises `UserError` unless its classes are those of the data (their order may differ) and it takes images
    of their channels and size.
    """
    if card.classes and set(card.classes) > set(data.classes):
        others = [name for name in card.classes if name not in data.classes]
        raise UserError(
            f"the teacher {card.label!r} has other classes than the data {data.name!r}: it also knows "
            f"{', '.join(map(repr, others[:5]))}{' and more' if len(others) > 5 else ''}. Train it on this "
            "data first (globalcnn train --init), or give the data that it was trained on"
        )
    try:
        theirs, columns = as_trained(card, data)
    except UserError as error:
        raise UserError(f"the teacher does not fit: {error}") from error
    if tuple(card.image_size) != tuple(data.image_size):
        (h, w), (height, width) = card.image_size, data.image_size
        raise UserError(
            f"the teacher {card.label!r} was trained on images of {h} x {w}, and those of {data.name!r} are "
            f"{height} x {width}: bring the data to its size (--image-size {h} {w})"
        )
    check_runs(model, (data.in_chans, *data.image_size))
    scale, shift = _between(data, theirs)
    return Teacher(model, scale=scale, shift=shift, columns=columns, label=card.label)


def _between(data: DataSource, theirs: DataSource) -> tuple[Tensor | None, Tensor | None]:
    """(x * std + mean - their mean) / their std, as scale and shift per channel."""
    if data.mean is None or data.std is None or (data.mean, data.std) == (theirs.mean, theirs.std):
        return None, None

    def channels(values: Sequence[float] | None) -> Tensor:
        return torch.tensor(values, dtype=torch.float64).view(-1, 1, 1)

    scale = channels(data.std) / channels(theirs.std)
    shift = (channels(data.mean) - channels(theirs.mean)) / channels(theirs.std)
    return scale.float(), shift.float()


def why_live(data: DataSource, recipe: Recipe) -> str:
    """Why a teacher's logits cannot be kept for this training; empty if they can."""
    if not isinstance(data, TensorSource):
        return "the images are not held in memory"
    if recipe.mixup or recipe.cutmix:
        return "the recipe mixes images in pairs"
    return ""


def kept_logits(teacher: Teacher, training: Training, path: Path | None) -> Tensor:
    """The teacher's logits over the fixed views of the training images, float (views * images, classes).

    The row of view v of the image at position i of the split is v * images + i, as `Loader.rows` says. They
    are read from `path` if they are there, else computed, without autocast, and written there by the process
    that writes.

    Raises `UserError` for a file that is damaged or was computed by another teacher or on other images.
    """
    if not isinstance(training.data, TensorSource):
        raise UserError(
            f"the logits of a teacher are kept for images that are held in memory, and "
            f"{training.data.name!r} is read from files: take a live teacher (views=0)"
        )
    identity = _identity(teacher, training, training.data)
    if path is not None and path.is_file():
        return _read(path, identity)
    logits = _computed(teacher, training)
    if path is not None and training.writes:
        _write(path, logits, identity)
    return logits


def _identity(teacher: Teacher, training: Training, data: TensorSource) -> dict[str, Any]:
    return {
        "teacher": teacher.checksum(),
        "images": data.checksum("train"),
        "augmentation": asdict(training.augmentation),
        "seed": training.seed,
    }


def _computed(teacher: Teacher, training: Training) -> Tensor:
    views = training.augmentation.fixed_views
    loader = training.data.loader(
        "train",
        BATCH,
        augmentation=replace(training.augmentation, fixed_views=0),  # view v is what epoch v shows
        shuffle=False,
        seed=training.seed,
        device=training.device,
    )
    logits = []
    teacher.to(training.device)
    with eval_mode(teacher.model), torch.autocast(training.device.type, enabled=False):
        done, total = 0, views * training.data.size("train")
        for view in range(views):
            loader.set_epoch(view)
            for images, _ in loader:
                logits.append(teacher(images).cpu())
                done += len(images)
                training.tell("the teacher's logits", done, total)
    found = torch.cat(logits)
    if not bool(found.isfinite().all()):
        raise UserError(
            f"the logits of the teacher {teacher.label!r} are not finite (NaN or infinite) on the training "
            "images: its weights are damaged, or it diverged in training"
        )
    return found.half() if float(found.abs().max()) < LARGEST_HALF else found


def _write(path: Path, logits: Tensor, identity: dict[str, Any]) -> None:
    text = json.dumps(identity)
    tensors = {"logits": logits.contiguous()}
    content = save_tensors(tensors, {"format": FORMAT, "identity": text, "checksum": checksum(tensors, text)})
    with atomic_write(path) as part:
        part.write_bytes(content)


def _read(path: Path, identity: dict[str, Any]) -> Tensor:
    where = repr(str(path))
    again = "remove it, and they are computed anew"
    try:
        with safe_open(path, framework="pt") as opened:
            metadata = opened.metadata() or {}
            logits: Tensor = opened.get_tensor("logits")
    except (SafetensorError, OSError, ValueError, RuntimeError) as error:
        raise UserError(f"the teacher's logits in {where} cannot be read: {error}; {again}") from error
    text = metadata.get("identity", "")
    if metadata.get("format") != FORMAT or metadata.get("checksum") != checksum({"logits": logits}, text):
        raise UserError(f"the teacher's logits in {where} are damaged (the checksum differs): {again}")
    told = json.loads(text)
    stale = [part for part, value in identity.items() if told.get(part) != value]
    if stale:
        words = {"teacher": "another teacher", "images": "other images", "augmentation": "other augmentation"}
        raise UserError(
            f"the teacher's logits in {where} are of {words.get(stale[0], 'another ' + stale[0])} than this "
            f"run's: restore what it was started with, or start again with --overwrite"
        )
    return logits
