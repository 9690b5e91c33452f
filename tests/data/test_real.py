"""The real data sets, where GLOBALCNN_DATA_DIR says they are."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import torch

from globalcnn.data import Augmentation, load_data
from globalcnn.data.memory import TensorSource
from globalcnn.data.streamed import StreamedSource

FOLDER = os.environ.get("GLOBALCNN_DATA_DIR")
pytestmark = pytest.mark.skipif(FOLDER is None, reason="GLOBALCNN_DATA_DIR names no folder with real data")


def needed(*names: str) -> Path:
    """The folder of real data; skips if it has none of `names`."""
    folder = Path(FOLDER or "")
    if not any((folder / name).exists() for name in names):
        pytest.skip(f"GLOBALCNN_DATA_DIR={folder} has no {' and no '.join(names)}")
    return folder


@pytest.mark.parametrize(
    ("name", "files", "classes", "shape", "sizes"),
    [
        ("mnist", ("MNIST", "mnist.npz"), 10, (1, 28, 28), (54000, 6000, 10000)),
        ("cifar10", ("cifar-10-batches-py", "cifar10.npz"), 10, (3, 32, 32), (45000, 5000, 10000)),
        ("cifar100", ("cifar-100-python", "cifar100.npz"), 100, (3, 32, 32), (45000, 5000, 10000)),
    ],
)
def test_known_sets(
    name: str, files: tuple[str, ...], classes: int, shape: tuple[int, ...], sizes: tuple[int, ...]
) -> None:
    source = load_data(name, data_dir=needed(*files))
    assert len(set(source.classes)) == classes
    assert (source.in_chans, *source.image_size) == shape
    assert tuple(source.size(split) for split in ("train", "val", "test")) == sizes
    for split in ("val", "test"):
        labels = torch.cat([labels for _, labels in source.loader(split, 2000)])
        assert labels.bincount(minlength=classes).max() <= 1.2 * len(labels) / classes
    images, _ = next(iter(source.loader("train", 2000)))
    deviation = 1.25 if "cifar" in name else 1  # the constants in use for CIFAR are means of image deviations
    assert abs(float(images.mean())) < 0.1
    assert abs(float(images.std()) / deviation - 1) < 0.1


def test_small_folder_in_memory() -> None:
    root = needed("tiny-imagenet-25") / "tiny-imagenet-25"
    source = load_data(f"folder:{root}")
    assert isinstance(source, TensorSource)
    assert (len(source.classes), source.in_chans, source.image_size) == (25, 3, (64, 64))
    assert (source.size("train"), source.size("val"), source.size("test")) == (11250, 1250, 1250)
    images = torch.cat([images for images, _ in source.loader("train", 1000)])
    torch.testing.assert_close(images.mean((0, 2, 3)), torch.zeros(3), atol=0.02, rtol=0)
    torch.testing.assert_close(images.std((0, 2, 3)), torch.ones(3), atol=0.02, rtol=0)


def test_small_folder_streamed_at_a_larger_size() -> None:
    root = needed("tiny-imagenet-25") / "tiny-imagenet-25"
    source = load_data(f"folder:{root}", image_size=128)
    assert isinstance(source, StreamedSource)
    loader = source.loader("train", 64, augmentation=Augmentation(crop_padding=4, flip=True), workers=1)
    images, labels = next(iter(loader))
    assert images.shape == (64, 3, 128, 128)
    assert len(labels.unique()) > 10
    assert 0.5 < float(images.std()) < 2
