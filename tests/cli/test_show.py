"""`globalcnn show`: pictures and a page of every kind of Global layer; mistakes in one line."""

from __future__ import annotations

import re
from html.parser import HTMLParser

import numpy as np
import pytest
import torch
from PIL import Image

import globalcnn
from globalcnn import PDE, GatedSweeps, GlobalLayer
from globalcnn.models import make_card, parse_source, save_weights
from globalcnn.viz.show import evolutions, share_within

FILES = ["evolution.gif", "index.html", "layers.png", "receptive_field.png"]


@pytest.fixture
def picture(tmp_path):
    path = tmp_path / "digit.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (40, 40, 3), dtype=np.uint8)).save(path)
    return path


def saved(path, model, size, classes=tuple("0123456789")):
    card = make_card(model, image_size=size, classes=classes)
    save_weights(path, model.state_dict(), card)
    return path


@pytest.mark.parametrize("name", ["resnet_global_tiny_cifar", "resnet_sweeps_tiny_cifar", "global_mnist"])
def test_pictures(name, run, picture, tmp_path):
    size = (28, 28) if "mnist" in name else (32, 32)
    weights = saved(tmp_path / "w.safetensors", globalcnn.create_model(name, num_classes=10), size)
    out = tmp_path / "shown"
    done = run("show", weights, picture, "--out", out)
    assert done.status == 0, done.err
    assert sorted(p.name for p in out.iterdir()) == FILES
    for file in FILES:
        assert f"wrote {out / file}" in done.out.replace("\n", "")
    with Image.open(out / "evolution.gif") as gif:
        layers = [m for m in globalcnn.create_model(name).modules() if isinstance(m, GlobalLayer)]
        assert gif.n_frames == 1 + max(m.pde.steps for m in layers)
    for file in ("layers.png", "receptive_field.png"):
        with Image.open(out / file) as image:
            image.load()
            assert np.asarray(image.convert("L")).std() > 10
    text = (out / "index.html").read_text()
    HTMLParser().feed(text)
    assert text.count("<img") == 3
    assert not re.search(r"https?:|<script|<link", text)
    assert "effective receptive field" in text


def test_beside_another_network(run, picture, tmp_path):
    size = (32, 32)
    ours = saved(tmp_path / "a.safetensors", globalcnn.create_model("resnet_global_tiny_cifar"), size)
    other = saved(tmp_path / "b.safetensors", globalcnn.create_model("resnet_tiny_cifar"), size)
    done = run("show", ours, picture, "--out", tmp_path / "s", "--beside", other)
    assert done.status == 0, done.err
    assert "resnet_tiny_cifar" in done.out
    assert "without its Global layers" not in done.out


def test_each_call_of_a_layer_is_shown():
    layer = GlobalLayer(3, PDE(steps=2, scheme=GatedSweeps()))

    class Twice(torch.nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer

        def forward(self, x):
            return self.layer(self.layer(x))

    shown = evolutions(Twice(), torch.randn(1, 3, 6, 6))
    assert [one.name for one in shown] == ["layer", "layer, call 2"]
    assert [len(one.evolution.levels) for one in shown] == [3, 3]
    assert not layer._forward_pre_hooks


def test_arrows_point_where_features_move():
    """A spot moves by the step in the direction that is drawn."""
    for scheme in (None, GatedSweeps("transport")):
        pde = PDE(dt=0.5) if scheme is None else PDE(dt=0.5, scheme=scheme)
        layer = GlobalLayer(1, pde, source=False, diffusivity=0.0).eval()
        for module in (layer.velocity_x, layer.velocity_y):
            for p in module.parameters():
                torch.nn.init.zeros_(p)
        torch.nn.init.constant_(layer.velocity_x.norm.bias, 1.0)  # u = 1, v = 0
        spot = torch.zeros(1, 1, 9, 9)
        spot[0, 0, 4, 4] = 1.0
        (one,) = evolutions(torch.nn.Sequential(layer), spot)
        down, right = one.direction()
        change = one.evolution.levels[-1][0, 0] - spot[0, 0]
        rows = torch.arange(9.0).view(-1, 1)
        moved = (change * rows).sum().item()
        assert moved * down[4, 4].item() > 0
        assert right.abs().max() == 0


def test_the_share_that_holds_the_field():
    assert share_within(torch.ones(10, 10)) == pytest.approx(0.95, abs=0.011)


@pytest.mark.parametrize(
    ("words", "part"),
    [
        (("gone.safetensors", "PICTURE"), "there is no checkpoint"),
        (("WEIGHTS", "gone.png"), "cannot read the image 'gone.png'"),
        (("WEIGHTS", "TEXT"), "text.png"),
        (("PLAIN", "PICTURE"), "has no GlobalLayer to show"),
        (("WEIGHTS", "PICTURE", "--out", "TEXT"), "is a file: name a folder"),
        (("WEIGHTS", "PICTURE", "--out", "THERE"), "is there already"),
        (("WEIGHTS", "PICTURE", "--beside", "gone"), "there is no checkpoint"),
        (("WEIGHTS",), "IMAGE"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, tuple) else None,
)
def test_mistakes_are_one_line(words, part, run, picture, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    weights = saved(tmp_path / "w.safetensors", globalcnn.create_model("global_mnist"), (28, 28))
    plain = saved(tmp_path / "p.safetensors", globalcnn.create_model("digits_conv"), (28, 28))
    (tmp_path / "text.png").write_text("no image")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "layers.png").write_text("mine")
    names = {"WEIGHTS": weights, "PLAIN": plain, "PICTURE": picture, "TEXT": "text.png", "THERE": "there"}
    done = run("show", *(names.get(word, word) for word in words))
    assert done.status == 2
    assert part in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert (tmp_path / "there" / "layers.png").read_text() == "mine"
    assert not (tmp_path / "show").exists()


def test_a_network_without_forward_features(run, picture, tmp_path):
    """The map before pooling is found by its shape."""
    (tmp_path / "net.py").write_text(
        "from torch import nn\nfrom globalcnn import GlobalLayer\n"
        "def build():\n"
        "    return nn.Sequential(nn.Conv2d(3, 8, 3, stride=2), nn.ReLU(inplace=True), GlobalLayer(8),\n"
        "        nn.Conv2d(8, 8, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, 10))\n"
    )
    source = f"{tmp_path / 'net.py'}:build"
    weights = saved(
        tmp_path / "w.safetensors", parse_source(source).build(num_classes=10, in_chans=3), (16, 16)
    )
    done = run("show", weights, picture, "--model", source, "--out", tmp_path / "s")
    assert done.status == 0, done.err
    assert sorted(p.name for p in (tmp_path / "s").iterdir()) == FILES
    assert "without its Global layers" in done.out
