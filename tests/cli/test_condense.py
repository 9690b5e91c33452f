"""`globalcnn condense`: a plan shown, kept, applied; mistakes in one line."""

from __future__ import annotations

import json

import pytest
import torch

import globalcnn
from globalcnn.models import make_card, read_card, save_weights
from globalcnn.nn import ResidualDepthwise

SMALL = ("--image-size", "16", "--seconds", "0.05")


def test_a_plan_is_shown_kept_and_applied(run, tmp_path):
    plan, out = tmp_path / "plan.json", tmp_path / "small.safetensors"
    done = run("condense", "resnet32_cifar", "--plan-only", "--out", str(plan), *SMALL)
    assert done.status == 0, done.err
    assert "layer1.1 to layer1.4" in done.out
    assert "layer3: layer3.0 stays" in done.out
    entries = json.loads(plan.read_text())
    entries["stages"][0]["condense"] = False
    plan.write_text(json.dumps(entries))
    done = run("condense", "resnet32_cifar", "--plan", str(plan), "--out", str(out), "--image-size", "16")
    assert done.status == 0, done.err
    small = globalcnn.load(out)
    assert not isinstance(small.layer1[1], ResidualDepthwise)
    assert isinstance(small.layer2[1], ResidualDepthwise)
    assert read_card(out).image_size == (16, 16)


def test_a_checkpoint_keeps_what_is_on_its_card(run, tmp_path):
    torch.manual_seed(1)
    model = globalcnn.create_model("resnet32_cifar", num_classes=2)
    card = make_card(
        model, image_size=(16, 16), classes=("cat", "dog"), mean=(0.1, 0.2, 0.3), std=(1.0, 1.0, 2.0)
    )
    save_weights(tmp_path / "w.safetensors", model.state_dict(), card)
    out = tmp_path / "small.safetensors"
    words = ("--max-params", "300000", "--block", "norm-act", "--seconds", "0.05")
    done = run("condense", str(tmp_path / "w.safetensors"), "--out", str(out), *words)
    assert done.status == 0, done.err
    small, told = globalcnn.load(out), read_card(out)
    assert (told.classes, told.mean, told.std) == (card.classes, card.mean, card.std)
    assert torch.equal(small.layer3[0].conv1.weight, model.layer3[0].conv1.weight)
    assert sum(p.numel() for p in small.parameters()) <= 300_000


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("resnet32_cifar",), "--plan-only"),
        (("resnet32_cifar", "--plan-only", "--plan", "p.json"), "give one of them"),
        (("resnet32_cifar", "--plan-only", "--out", "p.txt"), "must end in .json"),
        (("resnet32_cifar", "--out", "w.json"), "must end in .safetensors"),
        (("resnet32_cifr", "--plan-only"), "resnet32_cifar"),
        (("resnet32_cifar", "--plan", "p.json", "--out", "w.safetensors", "--keep", "2"), "--keep is for"),
        (("gone.safetensors", "--plan-only"), "there is no checkpoint"),
        (("resnet32_cifar-mnist", "--plan-only"), "come with the library are global_mnist-mnist"),
        (("resnet32_cifar", "--plan", "gone.json", "--out", "w.safetensors"), "gone.json"),
        (("resnet32_cifar", "--plan-only", "--block", "globl", *SMALL), "unknown block 'globl'"),
        (("resnet32_cifar", "--plan-only", "--max-params", "10", *SMALL), "the nearest is"),
        (("digits_conv", "--plan-only", "--keep", "9"), "repeats nothing"),
        (("resnet32_cifar", "--plan-only", "--timing-batch", "0"), "--timing-batch 0"),
    ],
)
def test_a_mistake_is_one_line(run, words, told, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    done = run("condense", *words)
    assert done.status == 2
    assert told in done.err
    assert len(done.err.strip().splitlines()) == 1
    assert not list(tmp_path.iterdir())


def test_nothing_is_written_over(run, tmp_path):
    plan = tmp_path / "plan.json"
    plan.write_text("mine")
    done = run("condense", "resnet32_cifar", "--plan-only", "--out", str(plan))
    assert done.status == 2
    assert "--overwrite" in done.err
    assert plan.read_text() == "mine"
