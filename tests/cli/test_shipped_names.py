"""Weights that come with the library go by their name in every command that takes a run folder."""

from __future__ import annotations

import json

import pytest
from PIL import Image

import globalcnn
from globalcnn.models import read_card

from .test_mistakes import refused

ROW = "resnet_global_tiny_cifar-cifar100"


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "grey.png"
    Image.new("RGB", (40, 40), "grey").save(path)
    return path


def test_predict_and_condense(run, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("predict", ROW, picture)
    assert done.status == 0, done.err
    assert any(name in done.out for name in read_card(ROW).classes)
    words = ("--max-params", "300000", "--block", "norm-act", "--seconds", "0.05")
    done = run("condense", "resnet32_cifar-cifar10", "--out", "small.safetensors", *words)
    assert done.status == 0, done.err
    assert "truck" in read_card("small.safetensors").classes
    assert sum(p.numel() for p in globalcnn.load("small.safetensors").parameters()) <= 300_000


def test_evaluation_takes_the_data_that_they_were_trained_on(run, tmp_path):
    refused(run("eval", "resnet32_cifar-cifar10", "--data-dir", tmp_path), "cifar10", str(tmp_path))


def test_a_training_starts_from_them_or_learns_from_them(run, blobs, tmp_path):
    words = ("train", "global_mnist", "--data", f"npz:{blobs}", "--epochs", 1, "--batch-size", 10)
    out = ("--device", "cpu", "--out")
    done = run(*words, "--init", "global_mnist-mnist", *out, tmp_path / "a")
    assert done.status == 0, done.err
    assert json.loads((tmp_path / "a" / "run.json").read_text())["init"] == "global_mnist-mnist"
    refused(
        run(*words, "--init", "global_mnist-cifar10", *out, tmp_path / "b"),
        "no checkpoint",
        "global_mnist-mnist",
    )
    refused(run(*words, "--teacher", "resnet32_cifar-cifar10", *out, tmp_path / "c"), "resnet32_cifar")
    assert not (tmp_path / "c").exists()
