"""Small images first: the size of the images in each epoch, where a recipe lets it grow."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ..errors import UserError
from .recipe import Recipe

GROWN_BY = 0.75  # of the epochs: then the images have their full size
STEP = 4  # pixels: lengths in between would only be other shapes to prepare kernels for


def size_in(epoch: int, recipe: Recipe, full: tuple[int, int]) -> tuple[int, int]:
    """Height and width of the images in an epoch (from 0): the recipe's `first_image_size` is the shorter
    side in the first one, and grows in equal steps.

    >>> recipe = Recipe(epochs=8, first_image_size=24)
    >>> [size_in(e, recipe, (32, 32))[0] for e in range(8)]
    [24, 24, 28, 28, 28, 32, 32, 32]
    """
    first, short = recipe.first_image_size, min(full)
    passed = epoch / (GROWN_BY * recipe.epochs)
    if not first or passed >= 1:
        return full
    side = min(short, first + STEP * round(passed * (short - first) / STEP))
    height, width = (max(1, round(length * side / short)) for length in full)
    return height, width


def check_first_image_size(recipe: Recipe, full: tuple[int, int]) -> None:
    """Raise `UserError` where the images would begin larger than they are."""
    if recipe.first_image_size > min(full):
        raise UserError(
            f"recipe: first_image_size={recipe.first_image_size} is larger than the images, "
            f"{full[0]} x {full[1]}: take at most {min(full)}, or 0 for full size in all epochs"
        )


def resized(images: Tensor, size: tuple[int, int]) -> Tensor:
    """The batch (N, C, H, W) at that height and width: bilinear, without aliasing; itself where it has it."""
    if images.shape[2:] == size:
        return images
    return F.interpolate(images, size=size, mode="bilinear", antialias=True, align_corners=False)
