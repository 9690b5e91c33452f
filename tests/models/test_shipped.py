"""Weights that come with the library: found by name of data, checked, small, and with a claim each."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import timm
import torch

from globalcnn import UserError, create_model
from globalcnn.measure import count
from globalcnn.models import load_with_card, make_card, save_weights
from globalcnn.models.shipped import (
    full_path,
    shipped_card,
    shipped_names,
    shipped_training,
    shipped_weights,
    weights_folder,
)
from globalcnn.train import Recipe

FOLDER = weights_folder()
ROOT = Path(__file__).parents[2]


@pytest.fixture(params=shipped_names())
def row(request):
    return request.param


def test_there_are_some():
    assert FOLDER == ROOT / "weights"
    assert "resnet32_cifar-cifar10" in shipped_names()


def test_every_way_gives_the_same_network(row):
    name, _, data = row.rpartition("-")
    loaded, card = load_with_card(FOLDER / f"{row}.safetensors")
    x = torch.randn(2, card.in_chans, *card.image_size)
    ours = create_model(name, pretrained=data).eval()
    others = [loaded]
    others.append(timm.create_model(f"{name}.{data}", pretrained=True).eval())
    if len(shipped_weights(name)) == 1:
        others += [
            create_model(name, pretrained=True).eval(),
            timm.create_model(name, pretrained=True).eval(),
        ]
    with torch.no_grad():
        wanted = ours(x)
        assert not torch.equal(wanted, create_model(name, num_classes=wanted.shape[1]).eval()(x))
        for other in others:
            assert torch.equal(other(x), wanted)


def test_fresh_weights_stay_fresh():
    torch.manual_seed(0)
    one = create_model("resnet32_cifar")
    torch.manual_seed(0)
    two = timm.create_model("resnet32_cifar")
    assert torch.equal(one.conv1.weight, two.conv1.weight)
    assert not torch.equal(
        one.conv1.weight, create_model("resnet32_cifar", pretrained="cifar10").conv1.weight
    )


def test_another_head():
    with pytest.warns(UserWarning, match="number of classes differs"):
        net = create_model("resnet32_cifar", pretrained="cifar10", num_classes=3)
    assert net(torch.randn(2, 3, 32, 32)).shape == (2, 3)


def test_each_has_a_claim_with_results(row):
    about = shipped_card(row)
    assert about["test_accuracy"].keys() == {str(seed) for seed in about["seeds"]}
    told = json.loads((ROOT / about["result"]).read_text())
    runs = {str(run["seed"]): run for run in told.get("runs", [told])}
    for seed, accuracy in about["test_accuracy"].items():
        assert accuracy == runs[seed]["test_accuracy"]
        assert Recipe.from_dict(runs[seed]["recipe"]) == Recipe().replace(**about["recipe"])
    assert row == f"{about['network']}-{about['data']}"
    mean = sum(about["test_accuracy"].values()) / len(about["seeds"])
    assert f"{100 * mean:.2f} %" in about["claim"]
    assert f"{about['hours']:.1f} hours" in about["claim"]


def test_each_card_fits_its_weights(row):
    about = shipped_card(row)
    model, card = load_with_card(FOLDER / f"{row}.safetensors")
    counted = count(model, (card.in_chans, *card.image_size))
    assert (counted.params, counted.macs) == (about["parameters"], about["macs"])
    assert len(card.classes) == card.num_classes
    assert len(card.mean) == len(card.std) == card.in_chans
    assert about["licence"]


def test_they_are_small():
    sizes = [path.stat().st_size for path in FOLDER.glob("*.safetensors")]
    assert max(sizes) < 4e6
    assert sum(sizes) < 30e6


@pytest.mark.parametrize(
    ("name", "data", "words"),
    [
        ("resnet32_cifar", "mnist", "trained on 'mnist': there are those of cifar10"),
        ("digits_conv", "cifar10", "there are none of this network; name a file"),
        ("resnet32_cifar", "gone.safetensors", "there is no checkpoint"),
        ("resnet_global_cifar", "resnet32_cifar-cifar10", "weights of 'resnet32_cifar', not of"),
        ("resnet32_cifr", "cifar10", "did you mean 'resnet32_cifar'"),
    ],
)
def test_mistakes(name, data, words):
    with pytest.raises(UserError, match=words):
        create_model(name, pretrained=data)


def test_they_go_by_their_name_wherever_a_file_goes(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    row = "resnet_global_tiny_cifar-cifar100"
    x = torch.randn(2, 3, 32, 32)
    model, card = load_with_card(row)
    expected = create_model("resnet_global_tiny_cifar", pretrained="cifar100").eval()(x)
    assert torch.equal(model(x), expected)
    assert len(card.classes) == 100
    assert full_path(row) == row
    other = create_model("digits_conv").eval()
    (tmp_path / row).mkdir()
    save_weights(f"{row}/last.safetensors", other.state_dict(), make_card(other, image_size=(28, 28)))
    assert type(load_with_card(row)[0]) is type(other)  # a folder of that name comes first
    assert full_path(row) == str(tmp_path / row)
    with pytest.raises(UserError, match=r"no checkpoint 'cifar100'.*library are .*resnet32_cifar-cifar10"):
        load_with_card("cifar100")


def test_how_they_were_trained_is_known(tmp_path):
    told = shipped_training(FOLDER / "resnet32_cifar-cifar10.safetensors")
    assert told["data_options"] == {"data": "cifar10"}
    assert told["recipe"]["epochs"] > 0
    copied = tmp_path / "resnet32_cifar-cifar10.safetensors"
    copied.write_bytes((FOLDER / copied.name).read_bytes())
    assert shipped_training(copied) is None
    assert shipped_training(FOLDER / "gone.safetensors") is None
