"""What a network was trained with goes with its weights: eval and predict use it, or refuse by name."""

from __future__ import annotations

import json
import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from globalcnn.cli.main import main
from globalcnn.models.weights import checksum, load_with_card, read_weights, save_weights

QUICK = ("--epochs", "4", "--batch-size", "10", "--device", "cpu", "--no-flip", "--crop-padding", "0")


def drawn(name: str, rng: np.random.Generator, side: int = 10) -> np.ndarray:
    """A grey picture: bright on the left for a cat, on the right for a dog, at the top for a fox."""
    pixels = rng.integers(0, 60, (side, side))
    half = side // 2
    where = {"cat": np.s_[:, :half], "dog": np.s_[:, half:], "fox": np.s_[:half]}[name.lower()]
    pixels[where] += 150
    return pixels.astype(np.uint8)


def pictures(root: Path, names: Sequence[str], *, count: int, seed: int, side: int = 10) -> Path:
    """A folder of pictures; a class is known by where they are bright, whatever the case of its name."""
    rng = np.random.default_rng(seed)
    for name in names:
        (root / name).mkdir(parents=True)
        for i in range(count):
            Image.fromarray(drawn(name, rng, side)).save(root / name / f"{i:02d}.png")
    return root


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and test/ with the classes cat, dog and fox."""
    root = tmp_path_factory.mktemp("folders") / "pets"
    pictures(root / "train", ("cat", "dog", "fox"), count=20, seed=0)
    pictures(root / "test", ("cat", "dog", "fox"), count=10, seed=1)
    return root


@pytest.fixture(scope="module")
def pets(folders: Path) -> Path:
    """The run folder of a training on them that knows them apart."""
    out = folders.parent / "run"
    words = ["train", "digits_conv", "--data", f"folder:{folders}", "--out", str(out), *QUICK]
    assert main([*words, "--epochs", "25", "--warmup-epochs", "2"]) == 0
    return out


def accuracy(run: Any, checkpoint: Path, data: str | None, tmp_path: Path, *more: object) -> float:
    """What eval finds."""
    words = [] if data is None else ["--data", data]
    done = run(
        "eval", checkpoint, *words, "--device", "cpu", "--json", tmp_path / "e.json", "--overwrite", *more
    )
    assert done.status == 0, done.err
    return json.loads((tmp_path / "e.json").read_text())["accuracy"]


def refused(done: Any, *parts: str) -> None:
    assert done.status == 2, done.out
    assert len(done.err.splitlines()) == 1, done.err
    for part in parts:
        assert part in done.err


def test_eval_takes_the_data_of_the_run(run: Any, pets: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)  # paths were kept from the root
    assert accuracy(run, pets, None, tmp_path) == 1.0
    held = accuracy(run, pets, None, tmp_path, "--split", "val")
    summary = [json.loads(line) for line in (pets / "metrics.jsonl").read_text().splitlines()]
    assert held == max(epoch["val_accuracy"] for epoch in summary)
    (tmp_path / "alone.safetensors").write_bytes((pets / "last.safetensors").read_bytes())
    refused(run("eval", tmp_path / "alone.safetensors"), "give --data")


@pytest.mark.parametrize(
    ("names", "status", "part"),
    [
        (("cat", "dog", "fox"), 0, ""),
        (("cat", "fox"), 0, "matched with those of the training by name"),
        (("cat", "Dog", "fox"), 2, "'Dog' and 'dog' differ only in case"),
        (("CAT", "DOG", "FOX"), 2, "'CAT' and 'cat', 'DOG' and 'dog', 'FOX' and 'fox' differ only in case"),
    ],
)
def test_classes_by_name(
    run: Any, pets: Path, tmp_path: Path, names: tuple[str, ...], status: int, part: str
) -> None:
    root = pictures(tmp_path / "other", names, count=10, seed=2)
    done = run("eval", pets, "--data", f"folder:{root}", "--device", "cpu")
    assert done.status == status
    assert part in done.out + done.err
    if not status:
        assert "100.00 %" in done.out


def arrays(names: Sequence[str], count: int, seed: int, side: int = 10) -> dict[str, np.ndarray]:
    """Test images and labels with the names of the labels."""
    rng = np.random.default_rng(seed)
    labels = np.arange(count) % len(names)
    images = np.stack([drawn(names[label], rng, side) for label in labels])
    return {"x_test": images, "y_test": labels, "classes": np.array(names)}


def test_another_order_of_the_classes_is_mapped(run: Any, pets: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "test.npz", **arrays(("fox", "cat", "dog"), 30, 3))
    assert accuracy(run, pets, f"npz:{tmp_path / 'test.npz'}", tmp_path) > 0.9


def test_classes_without_names(run: Any, pets: Path, tmp_path: Path) -> None:
    held = arrays(("cat", "dog", "fox"), 30, 3)
    del held["classes"]
    np.savez(tmp_path / "test.npz", **held)
    done = run("eval", pets, "--data", f"npz:{tmp_path / 'test.npz'}", "--device", "cpu")
    refused(done, "The data numbers its classes: name them")
    np.savez(tmp_path / "twice.npz", **held, classes=np.array(["cat", "dog", "dog"]))
    refused(run("eval", pets, "--data", f"npz:{tmp_path / 'twice.npz'}", "--device", "cpu"), "twice")


def test_a_test_set_with_placeholders_for_training_images(run: Any, pets: Path, tmp_path: Path) -> None:
    """Their mean and deviation are nobody's business."""
    held = arrays(("cat", "dog", "fox"), 30, 4)
    blank = {"x_train": np.zeros((6, 10, 10), np.uint8), "y_train": np.arange(6) % 3}
    np.savez(tmp_path / "alone.npz", **held)
    np.savez(tmp_path / "blank.npz", **held, **blank)
    losses = []
    for name in ("alone.npz", "blank.npz"):
        assert accuracy(run, pets, f"npz:{tmp_path / name}", tmp_path) > 0.9
        losses.append(json.loads((tmp_path / "e.json").read_text())["loss"])
    assert losses[0] == losses[1]


def test_images_of_another_size_are_brought_to_the_trainings(run: Any, pets: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "large.npz", **arrays(("cat", "dog", "fox"), 30, 5, side=40))
    assert accuracy(run, pets, f"npz:{tmp_path / 'large.npz'}", tmp_path) == 1.0
    root = pictures(tmp_path / "photos", ("cat", "dog", "fox"), count=5, seed=6, side=150)
    refused(run("eval", pets, "--data", f"folder:{root}"), "reads 1 channels and the data has 3")


def test_weights_that_are_not_finite(run: Any, pets: Path, tmp_path: Path) -> None:
    model, card = load_with_card(pets)
    with torch.no_grad():
        model.fc.weight[0, 0] = torch.nan
    save_weights(tmp_path / "nan.safetensors", model.state_dict(), card)
    data = ("--data", f"folder:{pets.parent / 'pets'}")
    refused(run("eval", tmp_path / "nan.safetensors", *data), "finite")
    with torch.no_grad():
        model.fc.weight.fill_(3e38)
    save_weights(tmp_path / "huge.safetensors", model.state_dict(), card)
    refused(run("eval", tmp_path / "huge.safetensors", *data), "logits are not finite")


def test_more_outputs_than_classes(run: Any, folders: Path, tmp_path: Path) -> None:
    words = ("train", "digits_conv", "--data", f"folder:{folders}", *QUICK, "--out", tmp_path / "r")
    assert run(*words, "--num-classes", 10).status == 0
    assert accuracy(run, tmp_path / "r", None, tmp_path) > 0.3
    refused(run(*words[:-1], tmp_path / "s", "--num-classes", 2), "it has 2 classes and the data 3")


def test_predict(run: Any, pets: Path, folders: Path) -> None:
    files = [folders / "test" / name / "00.png" for name in ("dog", "cat", "fox")]
    done = run("predict", pets, *files, "--json", "--top", 2)
    assert done.status == 0, done.err
    found = json.loads(done.out)
    assert [one["image"] for one in found] == [str(file) for file in files]
    assert [one["classes"][0]["class"] for one in found] == ["dog", "cat", "fox"]
    assert all(len(one["classes"]) == 2 for one in found)
    text = run("predict", pets, files[0]).out
    assert "dog" in text
    assert "%" in text


def test_predict_refuses(run: Any, pets: Path, tmp_path: Path) -> None:
    refused(run("predict", pets, tmp_path / "none.png"), "none.png")
    refused(run("predict", pets, tmp_path), "folder")
    refused(run("predict", pets, tmp_path / "x.png", "--top", 0), "--top 0")
    refused(run("predict", tmp_path, tmp_path / "x.png"), "holds no best.safetensors")
    refused(run("predict", pets, tmp_path / ("x" * 300)), "File name too long")
    refused(run("predict", pets), "IMAGE")


def test_a_damaged_test_image_is_found_before_the_first_epoch(run: Any, tmp_path: Path) -> None:
    root = tmp_path / "photos"
    pictures(root / "train", ("cat", "dog"), count=6, seed=0, side=120)
    pictures(root / "test", ("cat", "dog"), count=6, seed=1, side=120)
    broken = root / "test" / "dog" / "03.png"
    whole = broken.read_bytes()
    broken.write_bytes(whole[:200])
    words = ("train", "digits_conv", "--data", f"folder:{root}", "--image-size", 24, "--epochs", 1)
    words = (*words, "--batch-size", 6, "--validation", 0, "--device", "cpu", "--out", tmp_path / "r")
    refused(run(*words), str(broken))
    assert not (tmp_path / "r").exists()

    inside = bytearray(whole)
    inside[len(whole) // 2] ^= 255  # header and end are well
    broken.write_bytes(inside)
    done = run(*words)
    assert done.status == 0, done.err
    assert f"left out of the evaluation: the image '{broken}'" in done.out
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["test_images"] == 11
    broken.unlink()
    assert run(*words, "--resume").status == 0, "another number of test images is no other run"
    assert json.loads((tmp_path / "r" / "summary.json").read_text())["test_images_left_out"] == []


def test_fine_tuning(run: Any, pets: Path, folders: Path, tmp_path: Path) -> None:
    root = tmp_path / "two"
    shutil.copytree(folders, root)
    for split in ("train", "test"):
        shutil.rmtree(root / split / "fox")
    words = ("train", "digits_conv", "--data", f"folder:{root}", *QUICK, "--out", tmp_path / "r")
    done = run(*words, "--init", pets)
    assert done.status == 0, done.err
    assert "init: fc.weight starts anew: (3, 49), not (2, 49)" in done.out
    started = json.loads((tmp_path / "r" / "run.json").read_text())
    assert started["init"] == str(pets)
    assert started["init_sha256"] == checksum(read_weights(pets)[0])
    refused(run(*words, "--resume"), "init was")
    assert run(*words, "--init", pets, "--resume").status == 0
    assert json.loads((tmp_path / "r" / "run.json").read_text())["init_sha256"] == started["init_sha256"]
    refused(run(*words[:-1], tmp_path / "s", "--init", tmp_path / "none"), "there is no checkpoint")
    other = ("train", "digits_residual", *words[2:-1], tmp_path / "s")
    refused(run(*other, "--init", pets), "cannot start this network")


def test_initial_weights_that_changed_since(run: Any, pets: Path, folders: Path, tmp_path: Path) -> None:
    start, out = tmp_path / "start.safetensors", tmp_path / "r"
    weights, card = read_weights(pets)
    save_weights(start, weights, card)
    words = ("train", "digits_conv", "--data", f"folder:{folders}", *QUICK, "--out", out, "--init", start)
    assert run(*words).status == 0
    save_weights(start, {name: value + 1 for name, value in weights.items()}, card)
    assert run(*words, "--resume").status == 0
    assert json.loads((out / "run.json").read_text())["init_sha256"] == checksum(weights), (
        "those it began with"
    )


NET = """
from torch import nn

def build(num_classes=10, width=4):
    layers = [nn.Conv2d(1, width, 3), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(4 * width, num_classes))

def broken():
    raise RuntimeError("no such thing")

def text():
    return "not a module"
"""


def test_a_network_in_a_file(run: Any, folders: Path, tmp_path: Path, monkeypatch: Any) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_net.py").write_text(NET)
    words = ("train", "my_net.py:build", "--set", "width=6", "--data", f"folder:{folders}", *QUICK)
    done = run(*words)
    assert done.status == 0, done.err
    out = Path("runs/my_net-build-folder-pets-seed0")
    assert json.loads((out / "run.json").read_text())["model"]["source"]["arguments"] == {"width": 6}
    assert run(*words, "--out", out, "--resume").status == 0
    refused(run("eval", out), "--model my_net.py:build")
    assert accuracy(run, out, None, tmp_path, "--model", "my_net.py:build") > 0.3
    assert run("info", "my_net.py:build", "--image-size", 10).status == 0
    refused(run("info", "my_net.py:build"), "give --image-size")
    words = ("compare", "my_net.py:build", "digits_conv", "--seeds", 0, "--data", f"folder:{folders}", *QUICK)
    done = run(*words, "--out", "both")
    assert done.status == 0, done.err
    assert Path("both/my_net.py-build/seed0/summary.json").is_file()


@pytest.mark.parametrize(
    ("model", "part"),
    [
        ("my_net.py", "write my_net.py:build"),
        ("my_net.py:biuld", "did you mean 'build'"),
        ("my_net.py:broken", "no such thing"),
        ("my_net.py:text", "must return a torch.nn.Module"),
        ("none.py:build", "there is no file 'none.py'"),
        ("no_package.at_all:build", "there is no module 'no_package'"),
        ("torchvision.models:no_net", "has no 'no_net'"),
    ],
)
def test_networks_that_cannot_be_built(
    run: Any, folders: Path, tmp_path: Path, monkeypatch: Any, model: str, part: str
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_net.py").write_text(NET)
    refused(run("train", model, "--data", f"folder:{folders}", *QUICK), part)
    assert not (tmp_path / "runs").exists()
    refused(run("info", model, "--image-size", 10), part)


@pytest.mark.parametrize("word", ["width", "=3", "wi dth=3"])
def test_settings_are_key_and_value(run: Any, word: str) -> None:
    refused(run("train", "digits_conv", "--set", word), "must be KEY=VALUE")


def test_settings_that_a_network_does_not_take(run: Any, folders: Path) -> None:
    refused(run("train", "digits_conv", "--set", "wings=2", "--data", f"folder:{folders}"), "wings")
