"""Fine-tuning takes what fits, says what it did not take, and touches nothing when it refuses."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

from globalcnn import UserError, create_model
from globalcnn.models import make_card, save_weights
from globalcnn.train import start_from


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights of a network of three classes, cat, cow and dog, that reads one channel."""
    path = tmp_path_factory.mktemp("weights") / "w.safetensors"
    torch.manual_seed(3)
    model = create_model("digits_conv", num_classes=3)
    card = make_card(model, image_size=(28, 28), classes=("cat", "cow", "dog"))
    save_weights(path, model.state_dict(), card)
    return path


def weights(file: Path) -> dict[str, torch.Tensor]:
    from globalcnn.models.weights import read_weights

    return read_weights(file)[0]


def test_the_same_classes_take_everything(file: Path) -> None:
    model = create_model("digits_conv", num_classes=3)
    assert start_from(model, file, classes=("cat", "cow", "dog")) == ()
    assert all(torch.equal(v, weights(file)[k]) for k, v in model.state_dict().items())


def test_another_number_of_classes_starts_the_classifier_anew(file: Path) -> None:
    model = create_model("digits_conv", num_classes=5)
    before = model.fc.weight.clone()
    notes = start_from(model, file)
    assert notes == (
        "fc.weight starts anew: (3, 49), not (5, 49)",
        "fc.bias starts anew: (3,), not (5,)",
    )
    assert torch.equal(model.fc.weight, before)
    others = [k for k in weights(file) if not k.startswith("fc.")]
    assert all(torch.equal(model.state_dict()[k], weights(file)[k]) for k in others)


@pytest.mark.parametrize("classes", [("cat", "dog", "cow"), ("a", "b", "c")])
def test_other_classes_start_the_classifier_anew(file: Path, classes: tuple[str, ...]) -> None:
    model = create_model("digits_conv", num_classes=3)
    before = model.fc.weight.clone()
    notes = start_from(model, file, classes=classes)
    assert [note.split(" starts anew: ")[1] for note in notes] == ["the classes are others"] * 2
    assert torch.equal(model.fc.weight, before)


def test_input_channels_are_adapted(tmp_path: Path) -> None:
    colour = create_model("resnet_tiny_cifar")
    save_weights(tmp_path / "w.safetensors", colour.state_dict(), make_card(colour, image_size=(32, 32)))
    grey = create_model("resnet_tiny_cifar", in_chans=1)
    (note,) = start_from(grey, tmp_path / "w.safetensors")
    assert "is adapted from 3 to 1 channels" in note
    x = torch.randn(2, 1, 32, 32)
    with torch.no_grad():
        assert torch.allclose(grey.eval()(x), colour.eval()(x.expand(-1, 3, -1, -1)), atol=1e-4)


def test_a_sequential_network(tmp_path: Path) -> None:
    def net(classes: int) -> nn.Module:
        return nn.Sequential(nn.Conv2d(1, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, classes))

    first = net(3)
    save_weights(tmp_path / "w.safetensors", first.state_dict(), make_card(first, image_size=(8, 8)))
    second = net(7)
    notes = start_from(second, tmp_path / "w.safetensors")
    assert len(notes) == 2
    assert torch.equal(second[0].weight, first[0].weight)


def test_another_network_is_refused_and_untouched(file: Path) -> None:
    model = create_model("digits_residual", num_classes=3)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    with pytest.raises(UserError, match=r"cannot start this network: .* is missing"):
        start_from(model, file)
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
