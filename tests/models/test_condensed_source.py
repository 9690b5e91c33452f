"""Condensed networks in files: built from base and places, under the same rules as the base."""

from __future__ import annotations

import json
import sys

import pytest
import torch
from torch import nn

import globalcnn
from globalcnn import UserError, condense
from globalcnn.models import (
    CondensedSource,
    FactorySource,
    NamedSource,
    Place,
    load,
    make_card,
    put_places,
    read_card,
    save_weights,
    source_from_json,
    source_of,
)

CODE = """
import torch
from torch import nn

class Net(nn.Sequential):
    def __init__(self, num_classes: int = 5):
        layers = [nn.Conv2d(3, 8, 3, padding=1), nn.ReLU()]
        for _ in range(3):
            layers += [nn.Conv2d(8, 8, 3, padding=1), nn.ReLU()]
        super().__init__(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8, num_classes))
"""
X = torch.randn(2, 3, 16, 16)


@pytest.fixture
def net_file(tmp_path):
    path = tmp_path / "my_condensed_net.py"
    path.write_text(CODE)
    return path


def condensed_file(model, path):
    small = condense.apply(model, condense.plan(model, X, seconds=None)).eval()
    save_weights(path, small.state_dict(), make_card(small, image_size=(16, 16)))
    return small


def same(a: nn.Module, b: nn.Module) -> bool:
    with torch.no_grad():
        return torch.equal(a(X), b(X))


def test_the_source_is_json():
    places = (
        Place("a", "global", 8, settings={"steps": 2}),
        Place("b", "norm-act", 8, in_channels=4, extra="returned", copy=True),
        Place("c", "none"),
    )
    source = CondensedSource(NamedSource("resnet18", {"drop_rate": 0.1}), places)
    assert source_from_json(json.loads(json.dumps(source.to_json()))) == source


def test_a_file_says_all_that_is_needed(tmp_path):
    model = globalcnn.create_model("resnet32_cifar", num_classes=5, drop_rate=0.1)
    small = condensed_file(model, tmp_path / "w.safetensors")
    again = load(tmp_path / "w.safetensors")
    assert same(again, small)
    assert source_of(again) == source_of(small)
    assert read_card(tmp_path / "w.safetensors").source.base == source_of(model)


def test_a_factory_is_built_with_consent_alone(net_file, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(net_file.parent)
    model = FactorySource("my_condensed_net:Net").build(num_classes=4)
    small = condensed_file(model, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="not built without your consent"):
        load(tmp_path / "w.safetensors")
    assert same(load(tmp_path / "w.safetensors", trust_source=True), small)
    assert same(load(tmp_path / "w.safetensors", model="my_condensed_net:Net"), small)
    assert same(load(tmp_path / "w.safetensors", model=type(model)), small)
    sys.modules.pop("my_condensed_net")


def test_a_file_of_code_is_named_again(net_file, tmp_path):
    model = globalcnn.models.parse_source(f"{net_file}:Net").build()
    small = condensed_file(model, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="Weights never run a file"):
        load(tmp_path / "w.safetensors", trust_source=True)
    assert same(load(tmp_path / "w.safetensors", model=f"{net_file}:Net"), small)


def test_a_module_is_given_again(tmp_path):
    model = nn.Sequential(
        *(nn.Conv2d(3, 3, 3, padding=1) for _ in range(3)), nn.AdaptiveAvgPool2d(1), nn.Flatten()
    )
    small = condensed_file(model, tmp_path / "w.safetensors")
    with pytest.raises(UserError, match="passed as an object"):
        load(tmp_path / "w.safetensors")
    assert same(load(tmp_path / "w.safetensors", model=model), small)  # the base, condensed in place
    assert same(load(tmp_path / "w.safetensors", model=small), small)


def test_a_changed_network_is_not_taken_for_its_source(tmp_path):
    model = globalcnn.create_model("resnet32_cifar", num_classes=5)
    small = condense.apply(model, condense.plan(model, X, seconds=None))
    small.act1 = nn.SiLU()
    with pytest.warns(UserWarning, match="not as 'resnet32_cifar condensed' builds it"):
        make_card(small, image_size=(16, 16))


@pytest.mark.parametrize(
    ("entries", "words"),
    [
        ({"base": {"kind": "name", "name": "resnet18"}}, "needs 'base' and 'places'"),
        ({"places": [], "base": {"kind": "name", "name": "resnet18"}}, "places must be a list"),
        ({"places": [{"name": "a", "block": "exec"}]}, "unknown block 'exec'"),
        ({"places": [{"name": "a", "block": "global", "chanels": 3}]}, "'chanels'.*'channels'"),
        ({"places": [{"name": "a", "block": "global", "channels": 10**9}]}, "channels=1000000000"),
        ({"places": [{"name": "a", "block": "global", "settings": {"steps": 10**6}}]}, "steps"),
        ({"places": [{"name": "a", "block": "global", "settings": {"act": "Module"}}]}, "'Module'"),
        ({"places": [{"name": 3, "block": "global"}]}, "name"),
        ({"places": ["layer1"]}, "a place is an object"),
        ({"base": {"kind": "condensed", "base": {}, "places": []}}, "needs|kind"),
    ],
)
def test_a_damaged_source_is_refused(entries, words):
    whole = {"base": {"kind": "name", "name": "resnet18"}, "places": [{"name": "a", "block": "none"}]}
    value = {"kind": "condensed", **(whole if len(entries) == 1 and "places" in entries else {}), **entries}
    with pytest.raises(UserError, match=words):
        source_from_json(value)


def test_a_place_that_is_not_there_changes_nothing():
    net = nn.Sequential(nn.Conv2d(3, 3, 3), nn.ReLU())
    before = list(net)
    with pytest.raises(UserError, match="no module '5'"):
        put_places(net, [Place("0", "none"), Place("5", "none")])
    assert list(net) == before
    with pytest.raises(UserError, match="resnet18 condensed: the network has no module 'layer9'"):
        CondensedSource(NamedSource("resnet18"), (Place("layer9", "none"),)).build()
