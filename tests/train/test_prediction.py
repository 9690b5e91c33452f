"""Predictions see an image as evaluation does, and name the classes of the training."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn

from globalcnn import UserError
from globalcnn.data import load_data
from globalcnn.train import Recipe, predict, train
from globalcnn.train.evaluate import NotFinite
from globalcnn.train.prediction import class_names, prepared

from .conftest import striped

QUICK = Recipe(epochs=1, batch_size=8, crop_padding=0, validation=0.0)


def net(channels: int) -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(channels, 4, 3), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(16, 3))


def folder(root: Path, *, side: int, channels: int = 3) -> Path:
    images, labels = striped(30, seed=0, side=side, channels=channels)
    for number, (image, label) in enumerate(zip(images, labels, strict=True)):
        path = root / ("cat", "cow", "dog")[label] / f"{number:02d}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image if channels == 3 else image[..., 0]).save(path)
    return root


@pytest.mark.parametrize(
    ("side", "channels", "size"),
    [(12, 3, None), (12, 1, None), (12, 3, 16), (120, 3, 32)],
    ids=["small", "grey", "resized", "large, its centre"],
)
def test_an_image_is_prepared_as_evaluation_does(
    tmp_path: Path, side: int, channels: int, size: int | None
) -> None:
    data = load_data(
        f"folder:{folder(tmp_path, side=side, channels=channels)}", validation=0, image_size=size
    )
    card = train(net(data.in_chans), data, QUICK, device="cpu").card
    (images, labels) = next(iter(data.loader("test", 6, workers=0)))
    paths = [path for name in data.classes for path in sorted((tmp_path / name).glob("*.png"))[4::5]]
    assert len(paths) == len(labels) == 6
    ours = torch.stack([prepared(str(path), card) for path in paths])
    assert torch.allclose(ours, images, atol=1e-5)


def test_classes_and_probabilities(tmp_path: Path) -> None:
    data = load_data(f"folder:{folder(tmp_path, side=12)}", validation=0)
    result = train(net(3), data, QUICK, device="cpu")
    paths = sorted(tmp_path.glob("*/*.png"))[:3]
    for path, one in zip(paths, predict(result.model, result.card, paths), strict=True):
        assert one.path == str(path)
        assert sorted(name for name, _ in one.classes) == ["cat", "cow", "dog"]
        shares = [share for _, share in one.classes]
        assert shares == sorted(shares, reverse=True)
        assert sum(shares) == pytest.approx(1)
        logits = result.model(prepared(str(path), result.card)[None])
        assert one.classes[0][0] == data.classes[logits.argmax()]


def test_outputs_without_a_class_are_numbers(tmp_path: Path) -> None:
    data = load_data(f"folder:{folder(tmp_path, side=12)}", validation=0)
    model = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, 5))
    card = train(model, data, QUICK, device="cpu").card
    assert class_names(card) == ["cat", "cow", "dog", "3", "4"]


def test_images_and_networks_that_do_not_fit(tmp_path: Path) -> None:
    data = load_data(f"folder:{folder(tmp_path, side=12)}", validation=0)
    result = train(net(3), data, QUICK, device="cpu")
    (tmp_path / "text.png").write_text("no image")
    with pytest.raises(UserError, match=r"text\.png"):
        list(predict(result.model, result.card, [tmp_path / "text.png"]))
    with pytest.raises(UserError, match="No such file"):
        list(predict(result.model, result.card, [tmp_path / "none.png"]))
    with torch.no_grad():
        result.model[0].weight.fill_(torch.nan)
    with pytest.raises(NotFinite, match="not finite"):
        list(predict(result.model, result.card, sorted(tmp_path.glob("cat/*.png"))))
    with pytest.raises(UserError, match="reads 2 channels"):
        list(predict(result.model, replace(result.card, in_chans=2), []))
