"""RandAugment and random erasing: honoured by every source, and a function of (seed, epoch, image)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from globalcnn.data import Augmentation, DataSource, load_data
from globalcnn.data.transforms import imagenet_transform, randomly_erased, seeded_transforms
from globalcnn.errors import UserError, UserTypeError

RAND = Augmentation(rand_augment="rand-m9-mstd0.5")
ERASE = Augmentation(random_erasing=0.5)


def tensors(
    source: DataSource, augmentation: Augmentation | None, *, epoch: int = 0, batch: int = 8
) -> Tensor:
    """All training images in the order of the split."""
    loader = source.loader("train", batch, augmentation=augmentation, shuffle=False, seed=2, workers=0)
    loader.set_epoch(epoch)
    return torch.cat([images for images, _ in loader])


@pytest.fixture(params=["in memory", "one channel", "streamed"])
def source(
    request: pytest.FixtureRequest,
    arrays: Callable[..., dict[str, np.ndarray]],
    npz: Callable[..., str],
    picture_folder: Callable[..., Path],
) -> DataSource:
    if request.param == "streamed":
        root = picture_folder({"train": 12, "val": 2}, size=(120, 100), suffix=".jpg")
        return load_data(f"folder:{root}", validation=0, image_size=32)
    channels = 3 if request.param == "in memory" else 1
    return load_data(npz(**arrays(train=24, test=4, height=24, width=20, channels=channels)), validation=0)


def test_rand_augment_changes_images_by_seed_epoch_and_image(source: DataSource) -> None:
    plain, changed = tensors(source, None), tensors(source, RAND)
    assert changed.shape == plain.shape
    assert changed.dtype == torch.float32
    different = sum(not torch.equal(a, b) for a, b in zip(plain, changed, strict=True))
    assert different > 8  # two operations, each with probability 1/2
    assert torch.equal(tensors(source, RAND, batch=5), changed)
    assert not torch.equal(tensors(source, RAND, epoch=1), changed)


def test_erasing_fills_one_rectangle_in_about_its_share_of_images(source: DataSource) -> None:
    plain, erased = tensors(source, None), tensors(source, ERASE)
    hit = 0
    for before, after in zip(plain, erased, strict=True):
        changed = (before != after).any(0)
        if changed.any():
            hit += 1
            rows, columns = changed.any(1).nonzero()[:, 0], changed.any(0).nonzero()[:, 0]
            area = (rows[-1] - rows[0] + 1) * (columns[-1] - columns[0] + 1)
            assert 0.01 < area / changed.numel() < 0.4
            assert changed.sum() == area
    assert 5 < hit < 19
    assert torch.equal(tensors(source, ERASE, batch=5), erased)
    assert not torch.equal(tensors(source, ERASE, epoch=1), erased)
    assert torch.equal(tensors(source, Augmentation(random_erasing=0.0)), plain)


def test_noise_is_normal_and_the_memory_format_stays() -> None:
    images = torch.full((64, 3, 40, 40), 7.0).to(memory_format=torch.channels_last)
    erased = randomly_erased(images, torch.arange(64) % 2 == 0, range(64))
    assert erased.is_contiguous(memory_format=torch.channels_last)
    assert (erased[1::2] == 7).all()
    noise = erased[erased != 7]
    assert abs(noise.mean()) < 0.05
    assert abs(noise.std() - 1) < 0.05


def test_corners_are_filled_with_the_mean_colour() -> None:
    transform = imagenet_transform(
        (32, 32), crop=False, rand_augment="rand-m10-n8-p1.0", mean=(1.0, 0.0, 0.0)
    )
    picture = Image.new("RGB", (40, 40))
    found = False
    for seed in range(20):
        with seeded_transforms(seed):
            found = found or (torch.as_tensor(transform(picture))[0] > 200).any().item()
    assert found


def test_images_of_four_channels_cannot_be_rand_augmented(
    arrays: Callable[..., dict[str, np.ndarray]], npz: Callable[..., str]
) -> None:
    data = load_data(npz(**arrays(channels=4)), validation=0)
    with pytest.raises(UserError, match=r"needs images of 1 or 3 channels, and '.*' has 4"):
        data.loader("train", 4, augmentation=RAND)


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"rand_augment": "m9"}, UserError, "such as 'rand-m9-mstd0.5'"),
        ({"rand_augment": "rand-m"}, UserError, "rand_augment='rand-m' must be"),
        ({"rand_augment": "rand-x3"}, UserError, "rand_augment='rand-x3' must be"),
        ({"rand_augment": "rand-n0"}, UserError, "rand_augment='rand-n0' must be"),
        ({"rand_augment": 9}, UserTypeError, "rand_augment=9 must be a text"),
        ({"random_erasing": 1.5}, UserError, "random_erasing=1.5 is a share"),
        ({"random_erasing": "0.2"}, UserTypeError, "random_erasing='0.2' must be a number"),
        ({"random_erasing": float("nan")}, UserError, "random_erasing=nan is a share"),
    ],
)
def test_settings_that_do_not_fit(settings: dict[str, object], error: type[Exception], message: str) -> None:
    with pytest.raises(error) as caught:
        Augmentation(**settings)  # type: ignore[arg-type]
    assert message in str(caught.value)
