"""Sources in memory: what their loaders yield."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from globalcnn.data import Augmentation, DataSource, Loader, load_data
from globalcnn.data.arrays import channel_statistics, resized
from globalcnn.errors import UserError

ALL = Augmentation(crop_padding=2, flip=True, cutout=4)
DEVICES = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]


@pytest.fixture
def source(arrays: Callable[..., dict], npz: Callable[..., str]) -> DataSource:
    return load_data(npz(**arrays()), validation=0.2)


def batches(loader: Loader, epoch: int) -> list[tuple[Tensor, Tensor]]:
    loader.set_epoch(epoch)
    return list(loader)


def same(first: Iterable[tuple[Tensor, Tensor]], second: Iterable[tuple[Tensor, Tensor]]) -> bool:
    pairs = list(zip(first, second, strict=True))
    return all(torch.equal(x, u) and torch.equal(y, v) for (x, y), (u, v) in pairs)


def test_evaluation_batches_are_the_images_in_order_normalised(
    source: DataSource, arrays: Callable[..., dict]
) -> None:
    raw = arrays()
    loader = source.loader("test", 4)
    seen = list(loader)
    assert [len(labels) for _, labels in seen] == [4, 4, 2]
    assert len(loader) == 3
    assert loader.images == 10
    images = torch.cat([images for images, _ in seen])
    assert images.dtype == torch.float32
    assert images.shape == (10, 3, 8, 6)
    assert torch.cat([labels for _, labels in seen]).tolist() == raw["y_test"].tolist()
    assert seen[0][1].dtype == torch.int64
    scaled = raw["x_test"].transpose(0, 3, 1, 2) / 255
    expected = (scaled - np.reshape(source.mean, (3, 1, 1))) / np.reshape(source.std, (3, 1, 1))
    np.testing.assert_allclose(images.numpy(), expected, atol=1e-5)


def test_constants_are_those_of_the_training_images(
    source: DataSource, arrays: Callable[..., dict], npz: Callable[..., str]
) -> None:
    scaled = arrays()["x_train"] / 255
    np.testing.assert_allclose(source.mean, scaled.mean((0, 1, 2)), rtol=1e-12)
    np.testing.assert_allclose(source.std, scaled.std((0, 1, 2)), rtol=1e-12)
    other = load_data(npz(**arrays()), validation=0, seed=7)
    assert (other.mean, other.std) == (source.mean, source.std)


def test_a_constant_channel_gives_no_infinities() -> None:
    images = torch.full((2, 1, 3, 3), 200, dtype=torch.uint8)
    assert channel_statistics(images) == ((200 / 255,), (1.0,))


def test_a_resumed_run_sees_the_batches_of_an_uninterrupted_one(source: DataSource) -> None:
    straight = source.loader("train", 5, augmentation=ALL, seed=3)
    epochs = [batches(straight, epoch) for epoch in range(3)]
    resumed = source.loader("train", 5, augmentation=ALL, seed=3)
    torch.manual_seed(1234)
    assert same(batches(resumed, 2), epochs[2])
    assert same(resumed, epochs[2])
    assert not same(epochs[0], epochs[1])
    assert not same(batches(source.loader("train", 5, augmentation=ALL, seed=4), 0), epochs[0])


def test_iterating_leaves_the_global_generator_alone(source: DataSource) -> None:
    before = torch.get_rng_state()
    list(source.loader("train", 5, augmentation=ALL))
    assert torch.equal(torch.get_rng_state(), before)


def test_an_image_is_augmented_alike_in_every_batch_size_and_world(source: DataSource) -> None:
    def by_image(batch_size: int, world_size: int) -> set[bytes]:
        loaders = [
            source.loader("train", batch_size, augmentation=ALL, rank=rank, world_size=world_size)
            for rank in range(world_size)
        ]
        return {x.numpy().tobytes() for loader in loaders for images, _ in loader for x in images}

    assert by_image(4, 1) == by_image(6, 1) == by_image(6, 2)


def test_augmentation_is_pad_crop_flip_normalise_cutout(
    arrays: Callable[..., dict], npz: Callable[..., str]
) -> None:
    raw = arrays(train=40, height=6, width=7)
    raw["x_train"] = np.maximum(raw["x_train"], 1)  # so that black is padding only
    source = load_data(npz(**raw), validation=0)
    crop, flip = Augmentation(crop_padding=2), Augmentation(crop_padding=2, flip=True)
    plain, cropped, flipped, cut = (
        torch.cat([images for images, _ in source.loader("train", 8, augmentation=which)])
        for which in (None, crop, flip, Augmentation(crop_padding=2, flip=True, cutout=3))
    )
    black = -torch.tensor(source.mean) / torch.tensor(source.std)
    padded = torch.nn.functional.pad(plain - black.view(3, 1, 1), (2, 2, 2, 2)) + black.view(3, 1, 1)
    mirrored = 0
    for b in range(40):
        windows = [padded[b, :, y : y + 6, x : x + 7] for y in range(5) for x in range(5)]
        assert any(torch.allclose(cropped[b], window, atol=1e-5) for window in windows)
        mirrored += int(torch.equal(flipped[b], cropped[b].flip(-1)))
        assert torch.equal(flipped[b], cropped[b]) or torch.equal(flipped[b], cropped[b].flip(-1))
        hole = (cut[b] == 0).all(0)
        assert 4 <= int(hole.sum()) <= 9  # 3 x 3, clipped at the border
        assert torch.equal(cut[b][:, ~hole], flipped[b][:, ~hole])
    assert 10 < mirrored < 30


def test_training_defaults_to_shuffling_and_evaluation_does_not(source: DataSource) -> None:
    in_order = torch.cat([labels for _, labels in source.loader("train", 6, shuffle=False)])
    shuffled = torch.cat([labels for _, labels in source.loader("train", 6)])
    assert shuffled.tolist() != in_order.tolist()
    assert sorted(shuffled.tolist()) == sorted(in_order.tolist())
    for split in ("val", "test"):
        assert same(batches(source.loader(split, 3), 0), batches(source.loader(split, 3), 1))


def test_validation_is_held_out_of_training(source: DataSource) -> None:
    assert (source.size("train"), source.size("val"), source.size("test")) == (24, 6, 10)
    seen = {
        split: {x.numpy().tobytes() for images, _ in source.loader(split, 7, shuffle=False) for x in images}
        for split in ("train", "val", "test")
    }
    assert [len(seen[split]) for split in ("train", "val", "test")] == [24, 6, 10]
    assert not seen["train"] & seen["val"]


def test_two_ranks_share_the_test_images(source: DataSource) -> None:
    shares = [
        [labels for _, labels in source.loader("test", 4, rank=rank, world_size=3)] for rank in range(3)
    ]
    assert [sum(map(len, share)) for share in shares] == [4, 3, 3]


def test_channels_last_changes_the_format_and_not_the_values(source: DataSource) -> None:
    plain = next(iter(source.loader("train", 5, augmentation=ALL)))[0]
    last = next(iter(source.loader("train", 5, augmentation=ALL, channels_last=True)))[0]
    assert torch.equal(plain, last)
    assert plain.is_contiguous()
    assert last.is_contiguous(memory_format=torch.channels_last)


def test_changing_a_batch_in_place_does_not_change_the_data(source: DataSource) -> None:
    loader = source.loader("test", 10)
    images, labels = next(iter(loader))
    before = images.clone(), labels.clone()
    images.zero_()
    labels.zero_()
    assert same(loader, [before])


@pytest.mark.parametrize("device", DEVICES)
def test_batches_are_on_the_device_and_alike_on_all(source: DataSource, device: str) -> None:
    there = source.loader("train", 5, augmentation=ALL, device=device)
    here = source.loader("train", 5, augmentation=ALL)
    for (images, labels), (x, y) in zip(there, here, strict=True):
        assert images.device.type == labels.device.type == device
        torch.testing.assert_close(images.cpu(), x, atol=1e-6, rtol=1e-6)
        assert torch.equal(labels.cpu(), y)


def test_loaders_on_one_device_share_the_images(source: DataSource) -> None:
    first, second = source.loader("train", 5), source.loader("val", 2)
    assert first._part is second._part  # type: ignore[attr-defined]


def test_resizing_happens_once_and_keeps_the_range(
    arrays: Callable[..., dict], npz: Callable[..., str]
) -> None:
    source = load_data(npz(**arrays()), image_size=(5, 12))
    assert source.image_size == (5, 12)
    assert next(iter(source.loader("train", 5)))[0].shape == (5, 3, 5, 12)
    row = torch.tensor([255, 0, 0, 0, 0, 0, 0, 255], dtype=torch.uint8).view(1, 1, 1, 8)
    small = resized(row, (1, 1))
    assert small.dtype == torch.uint8
    assert small.item() == 48  # 47.8: a triangle of 16 pixels about the centre gives the ends 9 / 48
    assert resized(small, (1, 1)) is small


def test_resizing_beyond_memory_is_refused() -> None:
    images = torch.zeros(1, dtype=torch.uint8).expand(60000, 3, 32, 32)
    with pytest.raises(UserError) as caught:
        resized(images, (512, 512))
    assert "image_size=(512, 512) makes 60000 images take 44 GiB of memory" in str(caught.value)


def test_what_a_source_says_of_itself(source: DataSource) -> None:
    assert repr(source).startswith("<TensorSource 'npz:")
    assert repr(source).endswith("3 classes, 3 x 8 x 6, train 24, val 6, test 10>")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"split": "valid"}, "unknown split 'valid'; did you mean 'val'? Known: test, train, val"),
        ({"batch_size": 0}, "batch_size=0 is too small"),
        (
            {"batch_size": 25, "drop_last": True},
            "batch_size=25 is more than the 24 images, and drop_last=True",
        ),
        ({"augmentation": Augmentation(crop_padding=6)}, "crop_padding=6 is too large for images of 8 x 6"),
        ({"augmentation": 4}, "augmentation=4 must be an Augmentation or None"),
        ({"device": "cud"}, "device='cud' cannot be used here"),
        ({"device": 1.5}, "device='1.5' cannot be used here"),
        ({"workers": -1}, "workers=-1 is too small"),
        ({"rank": 3, "world_size": 3}, "rank=3 must be below world_size=3"),
    ],
)
def test_errors(source: DataSource, arguments: dict[str, object], message: str) -> None:
    with pytest.raises(UserError) as caught:
        source.loader(**{"split": "train", "batch_size": 4} | arguments)  # type: ignore[arg-type]
    assert message in str(caught.value)


@pytest.mark.skipif(torch.cuda.is_available(), reason="this machine has a GPU")
def test_a_device_that_is_not_there(source: DataSource) -> None:
    with pytest.raises(UserError, match=r"device='cuda' cannot be used here: .*; try device='cpu'"):
        source.loader("train", 4, device="cuda")


def test_epochs_are_whole_numbers(source: DataSource) -> None:
    with pytest.raises(UserError, match=r"epoch=-1 is too small"):
        source.loader("train", 4).set_epoch(-1)


def test_asking_for_a_split_that_was_not_made(arrays: Callable[..., dict], npz: Callable[..., str]) -> None:
    name = npz(**arrays())
    source = load_data(name, validation=0)
    assert (source.size("train"), source.size("val")) == (30, 0)
    with pytest.raises(UserError) as caught:
        source.loader("val", 4)
    assert str(caught.value) == (
        f"the data {name!r} has no 'val' split: load it with a validation fraction above 0, such as "
        "validation=0.1"
    )


def test_sources_hold_no_file_open(arrays: Callable[..., dict], npz: Callable[..., str]) -> None:
    name = npz(**arrays())
    source = load_data(name)
    Path(name.removeprefix("npz:")).unlink()
    assert len(list(source.loader("train", 9))) == 3


def by_row(loader: Loader, epoch: int) -> dict[int, Tensor]:
    """Each image of an epoch under its row."""
    loader.set_epoch(epoch)
    return {row: x for images, _ in loader for row, x in zip(loader.rows.tolist(), images, strict=True)}


def test_fixed_views_are_the_first_epochs_and_every_image_shows_each(source: DataSource) -> None:
    everything = Augmentation(crop_padding=2, flip=True, cutout=4, rand_augment="rand-m9", random_erasing=0.5)
    views, count = 3, source.size("train")
    fixed = source.loader("train", 8, augmentation=replace(everything, fixed_views=views), seed=1)
    moving = source.loader("train", 8, augmentation=everything, seed=1, shuffle=False)
    seen = [by_row(fixed, epoch) for epoch in range(2 * views)]
    assert {row for epoch in seen[:views] for row in epoch} == set(range(views * count))
    assert [set(s) for s in seen[:views]] == [set(s) for s in seen[views:]]
    assert len({row // count for row in seen[0]}) > 1, "an epoch mixes the views"
    for view in range(views):
        expected = torch.cat([images for images, _ in batches(moving, view)])
        for row, image in (pair for epoch in seen for pair in epoch.items()):
            if row // count == view:
                assert torch.equal(image, expected[row % count])
    assert moving.rows is None


def test_the_checksum_sees_pixels_labels_order_and_constants(
    arrays: Callable[..., dict], npz: Callable[..., str]
) -> None:
    def of(seed: int = 0, **changed: object) -> str:
        return load_data(npz(**{**arrays(), **changed}), validation=0.2, seed=seed).checksum("train")

    pixels, labels = arrays()["x_train"].copy(), arrays()["y_train"].copy()
    pixels[0, 0, 0, 0] ^= 1
    pixels[-1, 0, 0, 0] ^= 1
    assert of() == of()
    assert len({of(), of(seed=1), of(x_train=pixels), of(y_train=labels[::-1].copy())}) == 4
    source = load_data(npz(**arrays()), validation=0.2)
    assert source.with_constants([0.5] * 3, [0.5] * 3).checksum("train") != source.checksum("train")
