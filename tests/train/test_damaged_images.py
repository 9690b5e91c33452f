"""Damaged images of large folders: found before training, and no loss after it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from torch import nn

from globalcnn.data import DataSource, load_data
from globalcnn.errors import UserError
from globalcnn.train import Recipe, RunResult, train


@pytest.fixture
def root(tmp_path: Path) -> Path:
    rng = np.random.default_rng(0)
    for name in ("train/cat", "train/dog", "test/cat", "test/dog"):
        (tmp_path / "pictures" / name).mkdir(parents=True)
        for number in range(4):
            pixels = rng.integers(0, 256, (100, 100, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(tmp_path / "pictures" / name / f"{number}.jpg")
    return tmp_path / "pictures"


def loaded(root: Path) -> DataSource:
    return load_data(f"folder:{root}", validation=0, image_size=32)


def trained(root: Path, out: Path, *, epochs: int = 1, resume: bool = False) -> RunResult:
    network = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(3, 2))
    recipe = Recipe(epochs=epochs, batch_size=4, validation=0.0)
    return train(network, loaded(root), recipe, out=out, device="cpu", resume=resume)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:900])


@pytest.mark.parametrize("name", ["train/cat/1.jpg", "test/dog/2.jpg"])
def test_damage_is_found_before_training(name: str, root: Path, tmp_path: Path) -> None:
    cut(root / name)
    with pytest.raises(UserError, match=rf"the image '.*{name}' is damaged"):
        trained(root, tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_a_finished_training_is_not_lost_to_a_test_image(root: Path, tmp_path: Path) -> None:
    before = trained(root, tmp_path / "run")
    assert before.test.images == 8
    cut(root / "test/dog/2.jpg")
    assert trained(root, tmp_path / "run", resume=True).test.images == 7
    (root / "test/dog/2.jpg").unlink()
    assert trained(root, tmp_path / "run", resume=True).test.images == 7
    (root / "train/dog/2.jpg").unlink()
    with pytest.raises(UserError, match="train was 8 and is now 7"):
        trained(root, tmp_path / "run", resume=True)
