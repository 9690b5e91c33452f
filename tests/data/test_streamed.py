"""Folders of large images: decoding, transforms, workers."""

from __future__ import annotations

import random
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from globalcnn.data import Augmentation, DataSource, Loader, load_data
from globalcnn.data.streamed import IMAGENET_MEAN, IMAGENET_STD, StreamedSource, seeded_transforms
from globalcnn.errors import UserError

ALL = Augmentation(crop_padding=4, flip=True, cutout=6)
MEAN, STD = (torch.tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))


@pytest.fixture
def root(picture_folder: Callable[..., Path]) -> Path:
    return picture_folder({"train": 10, "val": 3}, size=(120, 100), suffix=".jpg")


@pytest.fixture
def source(root: Path) -> DataSource:
    return load_data(f"folder:{root}", validation=0.2, image_size=32)


def batches(loader: Loader, epoch: int) -> list[tuple[Tensor, Tensor]]:
    loader.set_epoch(epoch)
    return list(loader)


def same(first: list[tuple[Tensor, Tensor]], second: list[tuple[Tensor, Tensor]]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in pairs)


def test_facts(source: DataSource) -> None:
    assert isinstance(source, StreamedSource)
    assert (source.classes, source.in_chans, source.image_size) == (("cat", "dog"), 3, (32, 32))
    assert (source.mean, source.std) == (IMAGENET_MEAN, IMAGENET_STD)
    assert (source.size("train"), source.size("val"), source.size("test")) == (16, 4, 6)
    assert repr(source).endswith("2 classes, 3 x 32 x 32, train 16, val 4, test 6>")


def test_evaluation_resizes_the_shorter_side_and_crops_the_centre(source: DataSource, root: Path) -> None:
    loader = source.loader("test", 4, workers=0)
    assert (len(loader), loader.images) == (2, 6)
    images = torch.cat([images for images, _ in loader])
    labels = torch.cat([labels for _, labels in loader])
    assert labels.tolist() == [0, 0, 0, 1, 1, 1]
    assert labels.dtype == torch.int64
    assert images.dtype == torch.float32
    picture = Image.open(root / "val" / "dog" / "001.jpg")
    shorter = int(32 / 0.875)
    picture = picture.resize((shorter * 120 // 100, shorter), Image.Resampling.BILINEAR)
    left, top = round((picture.width - 32) / 2), round((picture.height - 32) / 2)
    pixels = torch.from_numpy(np.asarray(picture.crop((left, top, left + 32, top + 32))).copy())
    torch.testing.assert_close(images[4], (pixels.permute(2, 0, 1) / 255 - MEAN) / STD, atol=1e-5, rtol=1e-5)


def test_batches_depend_on_seed_and_epoch_and_not_on_the_workers(source: DataSource) -> None:
    alone = source.loader("train", 6, augmentation=ALL, seed=3, workers=0)
    epochs = [batches(alone, epoch) for epoch in range(2)]
    torch.manual_seed(5)
    random.seed(5)
    helped = source.loader("train", 6, augmentation=ALL, seed=3, workers=2)
    assert same(batches(helped, 1), epochs[1])
    assert same(batches(helped, 0), epochs[0])
    assert not same(epochs[0], epochs[1])
    assert not same(batches(source.loader("train", 6, augmentation=ALL, seed=4, workers=0), 0), epochs[0])


def test_iterating_leaves_the_global_generators_alone(source: DataSource) -> None:
    before = random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state()
    list(source.loader("train", 6, augmentation=ALL, workers=0))
    assert random.getstate() == before[0]
    assert np.random.get_state()[1].tolist() == before[1]
    assert torch.equal(torch.get_rng_state(), before[2])


def test_seeded_transforms_seeds_and_restores() -> None:
    def numbers() -> tuple[float, float, float]:
        return random.random(), float(np.random.rand()), float(torch.rand(()))

    drawn = []
    for _ in range(2):
        with seeded_transforms(2**62 + 1):
            drawn.append(numbers())
    assert drawn[0] == drawn[1]
    assert numbers() != drawn[0]


def test_each_part_of_the_augmentation_is_its_own(source: DataSource) -> None:
    def images(augmentation: Augmentation | None) -> Tensor:
        loader = source.loader("train", 16, augmentation=augmentation, workers=0)
        return next(iter(loader))[0]

    plain, flipped, cut = images(None), images(Augmentation(flip=True)), images(Augmentation(cutout=6))
    mirrored = 0
    for b in range(16):
        if not torch.equal(flipped[b], plain[b]):
            mirrored += 1
            assert torch.equal(flipped[b], plain[b].flip(-1))
        hole = (cut[b] == 0).all(0)
        assert 9 <= int(hole.sum()) <= 36
        assert torch.equal(cut[b][:, ~hole], plain[b][:, ~hole])
    assert 2 < mirrored < 14
    assert not torch.equal(images(Augmentation(crop_padding=1)), plain)


def test_an_image_is_cropped_anew_every_epoch_and_alike_in_every_batch_size(source: DataSource) -> None:
    def by_image(epoch: int, batch_size: int) -> set[bytes]:
        loader = source.loader("train", batch_size, augmentation=Augmentation(crop_padding=1), workers=0)
        return {x.numpy().tobytes() for images, _ in batches(loader, epoch) for x in images}

    assert by_image(0, 4) == by_image(0, 8)
    assert not by_image(0, 4) & by_image(1, 4)


def test_ranks_share_the_images(source: DataSource) -> None:
    training = [source.loader("train", 3, rank=rank, world_size=3, workers=0) for rank in range(3)]
    assert [len(loader) for loader in training] == [2, 2, 2]
    seen = [
        image.numpy().tobytes()
        for rank in range(4)
        for images, _ in source.loader("test", 2, rank=rank, world_size=4, workers=0)
        for image in images
    ]
    assert len(seen) == len(set(seen)) == 6


def test_channels_last_and_other_shapes(root: Path) -> None:
    source = load_data(f"folder:{root}", validation=0, image_size=(30, 110))
    images, _ = next(iter(source.loader("train", 5, channels_last=True, workers=0)))
    assert images.shape == (5, 3, 30, 110)
    assert images.is_contiguous(memory_format=torch.channels_last)
    cropped, _ = next(iter(source.loader("train", 5, augmentation=ALL, workers=0)))
    assert cropped.shape == (5, 3, 30, 110)


@pytest.mark.parametrize("workers", [0, 1])
def test_a_damaged_image_is_named_when_its_batch_comes(root: Path, workers: int) -> None:
    path = root / "val" / "dog" / "001.jpg"
    path.write_bytes(path.read_bytes()[:900])
    loader = load_data(f"folder:{root}", image_size=97).loader("test", 2, workers=workers)
    batches = iter(loader)
    next(batches)
    next(batches)
    # one line, not the traceback of a worker; `as caught` would keep the worker waiting in a reference cycle
    one_line = rf"\Athe image {re.escape(repr(str(path)))} is damaged, cut short or unreadable \([^\n]+\Z"
    with pytest.raises(UserError, match=one_line):
        next(batches)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": -1}, "workers=-1 is too small: it must be a whole number of at least 0"),
        ({"batch_size": 17, "drop_last": True}, "batch_size=17 is more than the 16 images"),
        ({"augmentation": Augmentation(cutout=33)}, "cutout=33 is too large for images of 32 x 32"),
        ({"split": "dev"}, "unknown split 'dev'; Known: test, train, val"),
    ],
)
def test_errors(source: DataSource, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        source.loader(**{"split": "train", "batch_size": 4} | arguments)  # type: ignore[arg-type]
    assert message in str(caught.value)


def test_validation_that_holds_out_nothing(root: Path) -> None:
    with pytest.raises(UserError, match=r"validation=0.01 of 20 training images in 2 classes holds out none"):
        load_data(f"folder:{root}", validation=0.01)
    assert load_data(f"folder:{root}", validation=0).size("val") == 0


def test_views_of_files_are_not_fixed(source: DataSource) -> None:
    with pytest.raises(UserError, match="fixed_views=2 needs images that are held in memory"):
        source.loader("train", 4, augmentation=Augmentation(fixed_views=2))
