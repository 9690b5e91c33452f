"""timm's transforms of single images, with random numbers that follow from a seed alone."""

from __future__ import annotations

import random
import re
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from ..errors import UserError, UserTypeError
from .order import derived_seed

Transform = Callable[[Any], Any]

_NUMBER = r"\d+(\.\d+)?"
_RAND_AUGMENT = re.compile(rf"rand(-m\d+|-n[1-9]\d*|-p{_NUMBER}|-mstd{_NUMBER}|-mmax[1-9]\d*|-inc[01])*")


def checked_rand_augment(text: str) -> str:
    """`text` if it is "" (off) or timm's name of a RandAugment, or an error.

    >>> checked_rand_augment("rand-m9-mstd0.5")
    'rand-m9-mstd0.5'
    """
    if not isinstance(text, str):
        raise UserTypeError(f"rand_augment={text!r} must be a text such as 'rand-m9-mstd0.5', or '' for none")
    if text and not _RAND_AUGMENT.fullmatch(text):
        raise UserError(
            f"rand_augment={text!r} must be '' for none, or 'rand' with timm's parts -m (magnitude), -n "
            "(operations), -p (probability of each), -mstd, -mmax and -inc, such as 'rand-m9-mstd0.5'"
        )
    return text


@contextmanager
def seeded_transforms(seed: int) -> Iterator[None]:
    """Seed the global generators that torchvision and timm transforms draw from, and put them back after."""
    before = random.getstate(), np.random.get_state(), torch.get_rng_state()
    random.seed(seed)
    np.random.seed(seed % 2**32)
    torch.default_generator.manual_seed(seed)
    try:
        yield
    finally:
        random.setstate(before[0])
        np.random.set_state(before[1])
        torch.set_rng_state(before[2])


def imagenet_transform(
    image_size: tuple[int, int], *, crop: bool, rand_augment: str = "", mean: tuple[float, ...] = ()
) -> Transform:
    """timm's transform of a PIL image to uint8 (3, H, W): a random resized crop, or the resized centre, then
    RandAugment, whose empty corners have the colour `mean`.

    Flips are done on the batch, whose random numbers do not depend on the transform's.
    """
    from timm.data.transforms_factory import create_transform
    from torchvision.transforms import Compose

    transform = create_transform(
        (3, *image_size),
        is_training=crop,
        hflip=0.0,
        color_jitter=0.0,
        interpolation="bilinear",
        normalize=False,
    )
    if not rand_augment:
        whole: Transform = transform
        return whole
    *cuts, to_tensor = transform.transforms
    augmented: Transform = Compose([*cuts, rand_augment_transform(rand_augment, image_size, mean), to_tensor])
    return augmented


def rand_augment_transform(
    rand_augment: str, image_size: tuple[int, int], mean: tuple[float, ...]
) -> Transform:
    """timm's RandAugment of a PIL image, with the settings that its training transform has."""
    from timm.data import auto_augment

    settings = {
        "translate_const": int(min(image_size) * 0.45),
        "img_mean": tuple(min(255, round(255 * channel)) for channel in mean),
        "interpolation": Image.Resampling.BILINEAR,
    }
    transform: Transform = auto_augment.rand_augment_transform(rand_augment, settings)
    return transform


def rand_augmented(images: Tensor, transform: Transform, seeds: Iterable[int]) -> Tensor:
    """RandAugment of uint8 images (B, 1 or 3, H, W), one after the other on the CPU; image b has seeds[b]."""
    out = []
    for pixels, seed in zip(images.cpu(), seeds, strict=True):
        picture = Image.fromarray(pixels[0].numpy() if len(pixels) == 1 else pixels.permute(1, 2, 0).numpy())
        with seeded_transforms(seed):
            changed = np.array(transform(picture))
        out.append(torch.from_numpy(changed).reshape(*pixels.shape[1:], len(pixels)).permute(2, 0, 1))
    return torch.stack(out).to(images.device)


def randomly_erased(images: Tensor, which: Tensor, seeds: Iterable[int]) -> Tensor:
    """Fill, in place, a rectangle with noise in those normalised images (B, C, H, W) for which `which` (B,)
    is true; image b has seeds[b].  It is timm's "pixel" mode: normal noise on 2 % to 1/3 of the area.
    """
    from timm.data.random_erasing import RandomErasing

    erase = RandomErasing(probability=1.0, mode="pixel", device="cpu")  # type: ignore[no-untyped-call, unused-ignore]
    for image, chosen, seed in zip(images, which.tolist(), seeds, strict=True):
        if chosen:
            with seeded_transforms(seed):
                erase(image)
    return images


def image_seeds(seed: int, epoch: int | Tensor, positions: Tensor, purpose: str) -> list[int]:
    """A seed for each image at `positions` of its split, for one purpose; epoch: one for all, or of each."""
    epochs = epoch.tolist() if isinstance(epoch, Tensor) else [epoch] * len(positions)
    return [derived_seed(seed, e, p, purpose) for e, p in zip(epochs, positions.tolist(), strict=True)]
