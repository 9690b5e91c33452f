"""Checks of arrays of images and labels, which become tensors, resizing, and channel statistics."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..errors import UserError

MOST_CHANNELS = 16  # more on the last axis means another layout, (N, C, H, W) or volumes
MOST_LABEL = 2**31 - 1
MOST_BYTES_RESIZED = 16 * 2**30


@dataclass(frozen=True, eq=False)
class Part:
    """Images of one split: uint8 (N, C, H, W) with their labels, int64 (N,)."""

    images: Tensor
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True, eq=False)
class Parts:
    """The splits of a data set, its class names, and notes for the user on how it was read.

    train: None if the data is for evaluation only; val: None if it has no validation images of its own.
    """

    train: Part | None
    test: Part
    val: Part | None
    classes: tuple[str, ...]
    notes: tuple[str, ...] = ()


def checked_part(
    images: np.ndarray,
    labels: np.ndarray,
    *,
    where: str,
    images_name: str,
    labels_name: str,
    channels_last: bool = False,
) -> Part:
    """A `Part` from uint8 images (N, H, W) or (N, H, W, C) and whole-number labels (N,) or (N, 1).

    channels_last: the caller knows the layout; otherwise images that look like (N, C, H, W) are refused.
    Nothing is converted silently; a `UserError` naming the array and the way out is raised instead.
    """
    _check_images(images, f"{images_name!r} in {where}", channels_last)
    labels = _checked_labels(labels, f"{labels_name!r} in {where}")
    if len(images) != len(labels):
        raise UserError(
            f"{where} has {len(images)} images in {images_name!r} but {len(labels)} labels in "
            f"{labels_name!r}: every image needs one label"
        )
    if images.ndim == 3:
        images = images[..., None]
    channels_first = np.ascontiguousarray(images.transpose(0, 3, 1, 2))
    return Part(torch.from_numpy(channels_first), torch.from_numpy(labels.astype(np.int64)))


def _check_images(images: np.ndarray, what: str, channels_last: bool) -> None:
    if images.ndim not in (3, 4):
        raise UserError(f"{what} has shape {images.shape}: it must be (images, height, width[, channels])")
    if images.size == 0:
        raise UserError(f"{what} has shape {images.shape}: it holds no pixels")
    if images.ndim == 4:
        looks_first = images.shape[1] in (1, 3, 4) and images.shape[3] not in (1, 3, 4)
        if looks_first and not channels_last:
            raise UserError(
                f"{what} has shape {images.shape}, which looks like channels first: store it as (images, "
                "height, width, channels), with x.transpose(0, 2, 3, 1)"
            )
        if images.shape[3] > MOST_CHANNELS:
            raise UserError(
                f"{what} has shape {images.shape}: the last axis must be the channels, {MOST_CHANNELS} at "
                "most"
            )
    if images.dtype != np.uint8:
        raise UserError(f"{what} is {images.dtype}: images must be uint8, 0 to 255; {_as_uint8(images)}")


def _as_uint8(images: np.ndarray) -> str:
    """How to convert the images to uint8, as a sentence."""
    if images.dtype.kind == "f":
        if float(np.nanmax(images)) <= 1:
            return "for values in [0, 1] store (x * 255).round().astype('uint8')"
        return "for values in [0, 255] store x.round().astype('uint8')"
    if images.dtype.kind == "b":
        return "store x.astype('uint8') * 255"
    return "store x.astype('uint8') if all values are in that range"


def _checked_labels(labels: np.ndarray, what: str) -> np.ndarray:
    if labels.ndim == 2 and labels.shape[1] == 1:
        labels = labels[:, 0]
    if labels.ndim != 1:
        raise UserError(
            f"{what} has shape {labels.shape}: it must be (images,) or (images, 1), one class per image"
            + ("; one-hot rows become that with y.argmax(1)" if labels.ndim == 2 else "")
        )
    if labels.dtype.kind not in "iu":
        raise UserError(f"{what} is {labels.dtype}: labels must be whole numbers; store y.astype('int64')")
    if len(labels) and int(labels.min()) < 0:
        raise UserError(f"{what} has the label {int(labels.min())}: labels must be 0, 1, ..., classes - 1")
    if len(labels) and int(labels.max()) > MOST_LABEL:
        raise UserError(f"{what} has the label {int(labels.max())}: labels must be 0, 1, ..., classes - 1")
    return labels


def checked_classes(parts: Sequence[Part], names: Sequence[str] | None, *, where: str) -> tuple[str, ...]:
    """The class names: `names` if given, else "0", "1", ... up to the largest label.

    Raises `UserError` for labels outside 0 .. classes - 1, for gaps when no names say that they are meant,
    and for fewer than two classes.
    """
    present = torch.unique(torch.cat([part.labels for part in parts]))
    largest = int(present[-1])
    if names is not None:
        if largest >= len(names):
            raise UserError(
                f"{where} has the label {largest} but {len(names)} classes: labels must be 0 to "
                f"{len(names) - 1}"
            )
        classes = tuple(names)
        if len(set(classes)) < len(classes):
            twice = next(name for name in classes if classes.count(name) > 1)
            raise UserError(f"{where} has the class name {twice!r} twice: each class needs a name of its own")
    else:
        if len(present) <= largest:
            gap = int((present != torch.arange(len(present))).nonzero()[0, 0])
            raise UserError(
                f"{where} has labels up to {largest} but none is {gap}: renumber them 0, 1, ..., or name all "
                "the classes in an array 'classes'"
            )
        classes = tuple(str(label) for label in range(largest + 1))
    if len(classes) < 2:
        raise UserError(f"{where} has {len(classes)} class: classification needs at least 2")
    return classes


def check_same_shape(parts: dict[str, Part], *, where: str) -> None:
    """Raise `UserError` unless the images of all parts have one shape."""
    shapes = {name: tuple(part.images.shape[1:]) for name, part in parts.items()}
    if len(set(shapes.values())) > 1:
        listed = ", ".join(f"{name} {' x '.join(map(str, shape))}" for name, shape in shapes.items())
        raise UserError(
            f"{where} has images of different shapes (channels x height x width): {listed}; they must agree"
        )


def resized(images: Tensor, image_size: tuple[int, int]) -> Tensor:
    """uint8 images (N, C, H, W) at another (height, width): bilinear with antialiasing, aspect not kept.

    Raises `UserError` if the result would need more than 16 GiB.
    """
    if tuple(images.shape[-2:]) == image_size:
        return images
    count, channels = images.shape[:2]
    wanted = count * channels * image_size[0] * image_size[1]
    if wanted > MOST_BYTES_RESIZED:
        raise UserError(
            f"image_size={image_size} makes {count} images take {wanted / 2**30:.0f} GiB of memory, more "
            f"than the {MOST_BYTES_RESIZED // 2**30} GiB allowed: use a smaller image_size"
        )
    result = torch.empty((count, channels, *image_size), dtype=torch.uint8)
    for source, target in zip(torch.split(images, 256), torch.split(result, 256), strict=True):
        # in float: the uint8 kernels of torch differ between processors
        scaled = F.interpolate(source.float(), image_size, mode="bilinear", antialias=True)
        target.copy_(scaled.round_().clamp_(0, 255))
    return result


def channel_statistics(images: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and standard deviation of each channel of uint8 (N, C, H, W), in 0..1 units, exactly.

    A constant channel has deviation 0, by which nothing can be divided; 1 is given for it.

    >>> channel_statistics(torch.tensor([0, 255], dtype=torch.uint8).reshape(2, 1, 1, 1))
    ((0.5,), (0.5,))
    """
    values = torch.arange(256, dtype=torch.float64) / 255
    means, deviations = [], []
    for channel in range(images.shape[1]):
        counts = torch.zeros(256, dtype=torch.int64)
        for chunk in torch.split(images, 4096):  # bincount makes int64 of its whole input
            counts += torch.bincount(chunk[:, channel].flatten(), minlength=256)
        share = counts / counts.sum(dtype=torch.float64)
        mean = float((share * values).sum())
        variance = float((share * (values - mean) ** 2).sum())
        constant = int((counts > 0).sum()) == 1
        means.append(mean)
        deviations.append(1.0 if constant else variance**0.5)
    return tuple(means), tuple(deviations)
