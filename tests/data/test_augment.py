"""Batched augmentation against one image at a time."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from globalcnn.data import Augmentation
from globalcnn.data.augment import (
    Draws,
    check_augmentation,
    cutout,
    draw,
    random_crop,
    random_flip,
)
from globalcnn.errors import UserError

SHAPES = {
    "count": st.integers(0, 6),
    "channels": st.integers(1, 4),
    "height": st.integers(1, 9),
    "width": st.integers(1, 9),
    "seed": st.integers(0, 1000),
}


def some_images(count: int, channels: int, height: int, width: int) -> Tensor:
    generator = torch.Generator().manual_seed(count + 10 * channels)
    return torch.randint(1, 256, (count, channels, height, width), dtype=torch.uint8, generator=generator)


def some_draws(augmentation: Augmentation, images: Tensor, seed: int) -> Draws:
    height, width = images.shape[-2:]
    return draw(augmentation, len(images), image_size=(height, width), seed=seed, epoch=0)


@given(**SHAPES, padding=st.integers(0, 4))
def test_crop_is_that_of_each_image_alone(
    count: int, channels: int, height: int, width: int, seed: int, padding: int
) -> None:
    images = some_images(count, channels, height, width)
    draws = some_draws(Augmentation(crop_padding=padding), images, seed)
    cropped = random_crop(images, padding, draws.top, draws.left)
    assert cropped.shape == images.shape
    assert cropped.dtype == torch.uint8
    for b in range(count):
        for y in range(height):
            for x in range(width):
                row, column = y + int(draws.top[b]) - padding, x + int(draws.left[b]) - padding
                inside = 0 <= row < height and 0 <= column < width
                expected = images[b, :, row, column].tolist() if inside else [0] * channels
                assert cropped[b, :, y, x].tolist() == expected


@given(**SHAPES)
def test_flip_is_that_of_each_image_alone(
    count: int, channels: int, height: int, width: int, seed: int
) -> None:
    images = some_images(count, channels, height, width)
    mirrored = some_draws(Augmentation(flip=True), images, seed).mirrored
    flipped = random_flip(images, mirrored)
    for b in range(count):
        expected = images[b].flip(-1) if mirrored[b] else images[b]
        assert torch.equal(flipped[b], expected)


@given(**SHAPES, side=st.integers(0, 9))
def test_cutout_is_that_of_each_image_alone(
    count: int, channels: int, height: int, width: int, seed: int, side: int
) -> None:
    images = some_images(count, channels, height, width).float()
    draws = some_draws(Augmentation(cutout=side), images, seed)
    cut = cutout(images.clone(), side, draws.row, draws.column)
    for b in range(count):
        expected = images[b].clone()
        top, left = int(draws.row[b]) - side // 2, int(draws.column[b]) - side // 2
        expected[:, max(top, 0) : max(top + side, 0), max(left, 0) : max(left + side, 0)] = 0
        assert torch.equal(cut[b], expected)


def test_every_place_and_both_sides_are_drawn() -> None:
    draws = draw(Augmentation(crop_padding=2, flip=True), 4000, image_size=(3, 5), seed=0, epoch=0)
    for values, places in ((draws.top, 5), (draws.left, 5), (draws.row, 3), (draws.column, 5)):
        share = torch.bincount(values).double() / 4000
        torch.testing.assert_close(share, torch.full((places,), 1 / places).double(), atol=0.03, rtol=0)
    assert abs(float(draws.mirrored.double().mean()) - 0.5) < 0.03
    together = torch.corrcoef(torch.stack([draws.top, draws.left, draws.row, draws.column]).double())
    assert float((together - torch.eye(4)).abs().max()) < 0.06  # independent of one another


def test_draws_depend_on_seed_and_epoch_and_not_on_what_else_is_switched_on() -> None:
    def top(augmentation: Augmentation, seed: int, epoch: int) -> list[int]:
        return draw(augmentation, 40, image_size=(8, 8), seed=seed, epoch=epoch).top.tolist()

    crop = Augmentation(crop_padding=4)
    before = torch.get_rng_state()
    assert top(crop, 0, 0) == top(crop, 0, 0) == top(Augmentation(crop_padding=4, flip=True, cutout=3), 0, 0)
    assert top(crop, 0, 0) != top(crop, 0, 1)
    assert top(crop, 0, 0) != top(crop, 1, 0)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"crop_padding": -1}, "crop_padding=-1 is too small: it must be a whole number of at least 0"),
        ({"crop_padding": 1.5}, "crop_padding=1.5 is a float"),
        ({"cutout": -3}, "cutout=-3 is too small"),
        ({"flip": 1}, "flip=1 must be True or False"),
    ],
)
def test_errors(settings: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        Augmentation(**settings)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_what_would_remove_a_whole_image_is_refused() -> None:
    check_augmentation(Augmentation(crop_padding=7, cutout=8), (8, 9))
    with pytest.raises(
        UserError, match="crop_padding=8 is too large for images of 8 x 9: it must be at most 7"
    ):
        check_augmentation(Augmentation(crop_padding=8), (8, 9))
    with pytest.raises(UserError, match="cutout=9 is too large for images of 8 x 9: it must be at most 8"):
        check_augmentation(Augmentation(cutout=9), (8, 9))
    with pytest.raises(UserError, match="augmentation=True must be an Augmentation or None"):
        check_augmentation(True, (8, 9))  # type: ignore[arg-type]
