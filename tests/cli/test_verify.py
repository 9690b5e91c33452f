"""`globalcnn verify`: claims are compared with what the weights do on the test images."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
import torch

from globalcnn.cli import verify
from globalcnn.data import load_data
from globalcnn.models import load_with_card, shipped


@pytest.fixture
def images(tmp_path, monkeypatch):
    """Test images of noise whose labels are what the network says, in the place of CIFAR-10."""
    model, card = load_with_card(shipped.weights_folder() / "resnet32_cifar-cifar10.safetensors")
    rng = np.random.default_rng(0)
    x = rng.integers(0, 255, (40, 32, 32, 3), dtype=np.uint8)
    path = tmp_path / "noise.npz"

    def save(labels):
        arrays = {"x_train": x, "y_train": np.arange(40) % 10, "x_test": x, "y_test": labels}
        np.savez(path, **arrays, classes=np.array(card.classes))

    save(np.arange(40) % 10)
    data = load_data(f"npz:{path}").with_constants(card.mean, card.std)
    batch, _ = next(iter(data.loader("test", 40, shuffle=False)))
    with torch.no_grad():
        save(model(batch).argmax(1).numpy())
    loaded = []

    def load(name, data_dir=None, download=False):
        loaded.append(name)
        return load_data(f"npz:{path}")

    monkeypatch.setattr(verify, "load_data", load)
    return loaded


def claim(folder, accuracy, monkeypatch):
    shutil.copytree(shipped.weights_folder(), folder)
    card = folder / "resnet32_cifar-cifar10.json"
    about = json.loads(card.read_text())
    about["test_accuracy"] = {str(about["shipped_seed"]): accuracy}
    card.write_text(json.dumps(about))
    monkeypatch.setattr(verify, "weights_folder", lambda: folder)


def test_a_claim_that_holds(run, images, tmp_path, monkeypatch):
    claim(tmp_path / "w", 0.9, monkeypatch)
    done = run("verify", "resnet32_cifar-cifar10", "--device", "cpu")
    assert done.status == 0, done.err
    assert images == ["cifar10"]
    assert "holds" in done.out
    assert "100.00 %" in done.out


def test_a_claim_that_does_not_hold(run, images, tmp_path, monkeypatch):
    claim(tmp_path / "w", 1.1, monkeypatch)
    done = run("verify", "resnet32_cifar-cifar10", "--device", "cpu")
    assert done.status == 1
    assert "claims that do not hold: resnet32_cifar-cifar10" in done.out


def test_all_data_is_there_before_the_first_row_is_evaluated(run, tmp_path):
    x, y = np.zeros((20, 28, 28), dtype=np.uint8), np.arange(20) % 10
    np.savez(tmp_path / "mnist.npz", x_train=x, y_train=y, x_test=x, y_test=y)
    done = run("verify", "resnet_mnist-mnist", "resnet32_cifar-cifar10", "--data-dir", tmp_path)
    assert (done.status, done.out) == (2, "")
    assert "'cifar10' needs it" in done.err
    assert "resnet32_cifar-cifar10 needs it, not all rows do: globalcnn verify ROW checks one" in done.err


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("resnet32-cifar10",), "unknown row 'resnet32-cifar10'; did you mean 'resnet32_cifar-cifar10'"),
        (("--batch-size", "0"), "--batch-size 0 must be at least 1"),
        (("--data-dir", "nowhere"), "nowhere"),
        (("--device", "gpu"), "gpu"),
    ],
)
def test_mistakes_are_one_line(run, words, part):
    done = run("verify", *words)
    assert done.status == 2
    assert part in done.err
    assert len(done.err.strip().splitlines()) == 1
