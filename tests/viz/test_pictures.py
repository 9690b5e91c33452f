"""Every picture is written whole, has something on it, and shows what it was given."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from globalcnn import PDE, GlobalLayer
from globalcnn.nn import Evolution, Fields
from globalcnn.viz import (
    plot_comparison,
    plot_curves,
    plot_evolution,
    plot_feature_maps,
    strongest_channels,
)


def pixels(path) -> np.ndarray:
    return np.asarray(Image.open(path).convert("RGB"), dtype=float)


def looks_drawn(path) -> bool:
    return pixels(path).std() > 5


def test_curves(tmp_path):
    epochs = [
        {"epoch": i, "lr": 0.1 / i, "train_loss": 1 / i, "train_accuracy": 1 - 1 / (i + 1), "val_loss": None,
         "val_accuracy": None}
        for i in range(1, 5)
    ]  # fmt: skip
    plot_curves(epochs, tmp_path / "a.png", title="a run")
    assert looks_drawn(tmp_path / "a.png")
    epochs[2]["train_loss"] = 5.0
    plot_curves(epochs, tmp_path / "b.png", title="a run")
    assert not np.array_equal(pixels(tmp_path / "a.png"), pixels(tmp_path / "b.png"))


def test_comparison(tmp_path):
    entry = {
        "model": "one", "accuracy": [0.5, 0.6], "accuracy_mean": 0.55, "params": 1000, "macs": 20000,
        "latency": {"1": {"median": 0.001}, "64": {"median": 0.01}},
    }  # fmt: skip
    plot_comparison([entry, {**entry, "model": "two"}], tmp_path / "c.png", title="two")
    assert looks_drawn(tmp_path / "c.png")


def test_a_comparison_names_reconstructions(tmp_path, monkeypatch):
    entry = {
        "model": "neupde_mnist", "accuracy": [0.5], "accuracy_mean": 0.5, "params": 1000, "macs": 20000,
        "latency": {"1": {"median": 0.001}},
    }  # fmt: skip
    labels = []

    def save(figure, path):
        labels.extend(label.get_text() for label in figure.axes[0].get_yticklabels())

    monkeypatch.setattr("globalcnn.viz.comparison.save", save)
    plot_comparison([entry, {**entry, "model": "resnet_mnist"}], tmp_path / "c.png")
    assert labels == ["neupde_mnist\n(reconstruction)", "resnet_mnist"]


@pytest.mark.parametrize("diffusivity", [None, 1.0])
def test_evolution(tmp_path, diffusivity):
    layer = GlobalLayer(5, PDE(steps=2), diffusivity=diffusivity).eval()
    evolution = layer.evolution(torch.randn(1, 5, 9, 9))
    plot_evolution(evolution, tmp_path / "e.png", image=torch.rand(9, 9), title="e")
    assert looks_drawn(tmp_path / "e.png")


def test_strongest_channels():
    start = torch.zeros(1, 3, 2, 2)
    end = torch.tensor([1.0, 3.0, 2.0]).reshape(1, 3, 1, 1).expand(1, 3, 2, 2)
    evolution = Evolution(start, (start, end), Fields(start, start, 1.0, 1.0), end)
    assert strongest_channels(evolution, 2) == [1, 2]


def test_feature_maps(tmp_path):
    maps = {"a": torch.rand(7, 7), "b": torch.rand(7, 7)}
    plot_feature_maps(torch.rand(28, 28), maps, tmp_path / "f.png", title="maps")
    assert looks_drawn(tmp_path / "f.png")
