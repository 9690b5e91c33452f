"""Small data sets that the tests write themselves."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

Arrays = dict[str, np.ndarray]


def coloured(count: int, *, height: int, width: int, channels: int, seed: int) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.integers(0, 256, (count, height, width, channels), dtype=np.uint8)


@pytest.fixture
def arrays() -> Callable[..., Arrays]:
    """Arrays named as Keras does: `train` and `test` images of `classes` classes, which alternate."""

    def make(
        *,
        train: int = 30,
        test: int = 10,
        classes: int = 3,
        height: int = 8,
        width: int = 6,
        channels: int = 3,
    ) -> Arrays:
        size = {"height": height, "width": width, "channels": channels}
        return {
            "x_train": coloured(train, seed=0, **size),
            "y_train": np.arange(train) % classes,
            "x_test": coloured(test, seed=1, **size),
            "y_test": np.arange(test) % classes,
        }

    return make


@pytest.fixture
def npz(tmp_path: Path) -> Callable[..., str]:
    """Write arrays to a .npz file; returns its name for load_data."""

    def write(**values: Any) -> str:
        path = tmp_path / "data.npz"
        np.savez_compressed(path, **values)
        return f"npz:{path}"

    return write


@pytest.fixture
def picture() -> Callable[..., Path]:
    """Write one image file with random pixels."""

    def write(path: Path, *, size: tuple[int, int] = (8, 8), mode: str = "RGB", seed: int = 0) -> Path:
        channels = {"L": 1, "RGB": 3, "RGBA": 4}[mode]
        pixels = coloured(1, height=size[1], width=size[0], channels=channels, seed=seed)[0]
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels[..., 0] if mode == "L" else pixels, mode).save(path)
        return path

    return write


@pytest.fixture
def picture_folder(tmp_path: Path, picture: Callable[..., Path]) -> Callable[..., Path]:
    """Write a folder of images per class below each of `splits` ("" for a flat folder)."""

    def write(
        splits: dict[str, int],
        *,
        classes: tuple[str, ...] = ("cat", "dog"),
        suffix: str = ".png",
        **kind: Any,
    ) -> Path:
        root = tmp_path / "pictures"
        seed = 0
        for split, count in splits.items():
            for name in classes:
                for number in range(count):
                    seed += 1
                    picture(root / split / name / f"{number:03d}{suffix}", seed=seed, **kind)
        return root

    return write
