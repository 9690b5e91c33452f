"""Predicted classes of image files."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn

from ..data.arrays import resized
from ..data.pictures import decoded
from ..data.transforms import imagenet_transform
from ..errors import UserError
from ..models import Card
from .evaluate import NotFinite, checked_logits

BATCH = 64


@dataclass(frozen=True)
class Prediction:
    """The path of one image and the probability of each class, the most likely first."""

    path: str
    classes: tuple[tuple[str, float], ...]


def predict(
    model: nn.Module,
    card: Card,
    paths: Iterable[str | os.PathLike[str]],
    *,
    device: str | torch.device = "cpu",
) -> Iterator[Prediction]:
    """The classes of image files, by `model` in eval mode, which is moved to `device`.

    card: says how training prepared its images, and the names of the classes; without names they are numbers.
    Raises `UserError` for a file that cannot be read, a network that is not for grey or colour images, and
    logits that are not finite.
    """
    if card.in_chans not in (1, 3):
        raise UserError(
            f"the network {card.label!r} reads {card.in_chans} channels, and image files have 1 (grey) or 3"
        )
    names = class_names(card)
    network = model.eval().to(device)
    waiting = iter([str(os.fspath(path)) for path in paths])
    while batch := list(islice(waiting, BATCH)):
        images = torch.stack([prepared(path, card) for path in batch]).to(device)
        with torch.no_grad():
            logits = checked_logits(network(images), len(batch), card.num_classes).float()
        if not torch.isfinite(logits).all():
            raise NotFinite("the network's logits are not finite (NaN or infinite): its weights are damaged")
        for path, shares in zip(batch, logits.softmax(dim=1).cpu(), strict=True):
            order = shares.argsort(descending=True).tolist()
            yield Prediction(path, tuple((names[i], shares[i].item()) for i in order))


def class_names(card: Card) -> Sequence[str]:
    """One name per output: those of the training, and numbers for outputs that no class was trained for."""
    return [*card.classes, *(str(i) for i in range(len(card.classes), card.num_classes))]


def prepared(path: str, card: Card) -> Tensor:
    """The image file as the network's input: float (C, H, W), resized and normalised as in training."""
    try:
        os.stat(path)
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or error
        raise UserError(f"cannot read the image {path[:200]!r}: {reason}") from error
    picture = decoded(path).convert("L" if card.in_chans == 1 else "RGB")
    if card.about.get("resizing") == "crop":
        picture = Image.fromarray(_cropped(picture, card.image_size))
    pixels = torch.from_numpy(np.array(picture)).reshape(picture.height, picture.width, card.in_chans)
    image = resized(pixels.permute(2, 0, 1)[None], card.image_size)[0].float() / 255
    mean, std = (torch.tensor(values).view(-1, 1, 1) for values in (card.mean or (0.0,), card.std or (1.0,)))
    return (image - mean) / std


def _cropped(picture: Image.Image, size: tuple[int, int]) -> np.ndarray:
    """The resized centre, as large folders are evaluated."""
    pixels = np.asarray(imagenet_transform(size, crop=False)(picture.convert("RGB")))
    return np.ascontiguousarray(pixels.transpose(1, 2, 0))
