"""Small images that a network can learn in seconds, as an .npz file and as a source."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from globalcnn.data import DataSource, load_data
from globalcnn.train import Recipe, RunResult, build_for, train


def striped(count: int, *, seed: int, side: int = 12, channels: int = 1) -> tuple[np.ndarray, np.ndarray]:
    """Three classes: horizontal stripes, vertical stripes, a checkerboard, with noise."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % 3
    rows, columns = np.mgrid[:side, :side]
    patterns = np.stack([rows % 4 < 2, columns % 4 < 2, (rows // 2 + columns // 2) % 2 == 0])
    images = 180.0 * patterns[labels] + rng.normal(30, 25, (count, side, side))
    images = np.repeat(images[..., None], channels, axis=-1)
    return images.clip(0, 255).astype(np.uint8), labels


def train_net(
    name: str,
    data: DataSource,
    recipe: Recipe,
    *,
    seed: int = 0,
    num_classes: int | None = None,
    in_chans: int | None = None,
    **how: Any,
) -> RunResult:
    """A training of the network of that name with fresh weights of `seed`, as the command line does it."""
    model = build_for(name, data, recipe, seed=seed, num_classes=num_classes, in_chans=in_chans)
    return train(model, data, recipe, seed=seed, **how)


@pytest.fixture(scope="session")
def stripes_file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An .npz of 96 training and 48 test images, 12 x 12, one channel, three classes."""
    path = tmp_path_factory.mktemp("data") / "stripes.npz"
    x, y = striped(96, seed=0)
    x_test, y_test = striped(48, seed=1)
    np.savez(path, x_train=x, y_train=y, x_test=x_test, y_test=y_test)
    return path


@pytest.fixture(scope="session")
def stripes(stripes_file: Path) -> DataSource:
    """The same as a source, a quarter held out."""
    return load_data(f"npz:{stripes_file}", validation=0.25)
