"""Splitting images into parts that have the classes in the same proportions."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import UserError, UserTypeError
from .order import derived_generator


def checked_fraction(validation: float) -> float:
    """`validation` as a float in [0, 1), or an error.

    >>> checked_fraction(10)
    Traceback (most recent call last):
    globalcnn.errors.UserError: validation=10 is a fraction of the training images: it must be at least 0 and
    below 1, such as 0.1
    """
    if isinstance(validation, bool) or not isinstance(validation, (int, float)):
        raise UserTypeError(f"validation={validation!r} must be a number: a fraction such as 0.1, or 0")
    if not 0 <= validation < 1:
        raise UserError(
            f"validation={validation!r} is a fraction of the training images: it must be at least 0 and "
            "below 1, such as 0.1"
        )
    return float(validation)


def held_out(labels: Tensor, fraction: float, *, seed: int) -> tuple[Tensor, Tensor]:
    """Draw `fraction` of the images, the same from each class to within one image.

    labels: int64 (N,).  Returns the positions (kept, held out), each ascending.  Every class keeps at least
    one image.  Raises `UserError` if fraction > 0 leaves nothing to hold out.

    >>> kept, held = held_out(torch.tensor([0, 0, 0, 0, 1, 1]), 0.5, seed=0)
    >>> len(kept), len(held)
    (3, 3)
    """
    if fraction == 0:
        return torch.arange(len(labels)), torch.arange(0)
    counts = torch.bincount(labels)
    quota = _quota(counts, fraction)
    if int(quota.sum()) == 0:
        raise UserError(
            f"validation={fraction} of {len(labels)} training images in {int((counts > 0).sum())} classes "
            "holds out none: use a larger fraction, or 0 for no validation split"
        )
    order = torch.randperm(len(labels), generator=derived_generator(seed, "validation"))
    by_class = order[labels[order].argsort(stable=True)]
    return _cut_each_class(by_class, counts, quota)


def _quota(counts: Tensor, fraction: float) -> Tensor:
    """How many of each class to hold out: the rounded total, shared out by largest remainder."""
    most = (counts - 1).clamp(min=0)
    exact = counts.double() * fraction
    quota = exact.floor().long()
    missing = round(float(exact.sum())) - int(quota.sum())
    by_remainder = (exact - quota).argsort(descending=True, stable=True)
    able = by_remainder[(quota < most)[by_remainder]]
    quota[able[: max(missing, 0)]] += 1
    return quota


def _cut_each_class(by_class: Tensor, counts: Tensor, quota: Tensor) -> tuple[Tensor, Tensor]:
    """`by_class` lists positions, class after class; the first quota[c] of class c are held out."""
    starts = counts.cumsum(0) - counts
    place = torch.arange(len(by_class)) - starts.repeat_interleave(counts)
    held = place < quota.repeat_interleave(counts)
    return by_class[~held].sort().values, by_class[held].sort().values


def every_fifth(labels: Tensor) -> tuple[Tensor, Tensor]:
    """Put the fifth, tenth, ... image of each class aside as test images, or the last of a class below five.

    No random numbers: the split is the same for every seed, machine and version.  Returns the positions
    (train, test), each ascending.

    >>> [part.tolist() for part in every_fifth(torch.tensor([0, 0, 0, 0, 0, 0, 1, 1]))]
    [[0, 1, 2, 3, 5, 6], [4, 7]]
    """
    counts = torch.bincount(labels)
    by_class = labels.argsort(stable=True)
    size = counts.repeat_interleave(counts)
    place = torch.arange(len(labels)) - (counts.cumsum(0) - counts).repeat_interleave(counts)
    test = torch.where(size < 5, place == size - 1, place % 5 == 4)
    return by_class[~test].sort().values, by_class[test].sort().values
