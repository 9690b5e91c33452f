"""`scheme=`: the time scheme of all Global layers of a network, a setting that is kept with its weights."""

from __future__ import annotations

from dataclasses import dataclass

import pytest
import timm
import torch

from globalcnn import PDE, Boundary, DuFortFrankel, GatedSweeps, GlobalLayer, UserError, create_model, load
from globalcnn.models.card import make_card
from globalcnn.models.schemes import NAMED_SCHEMES, equations, set_scheme
from globalcnn.models.source import source_from_json, source_of
from globalcnn.models.weights import save_weights
from globalcnn.ops import TridiagonalImplicit


@pytest.mark.parametrize("name", ["resnet_global_tiny_cifar", "digits_global", "densenet_global_cifar"])
def test_a_network_with_sweeps_trains_and_alternates_the_first_axis(name):
    torch.manual_seed(0)
    model = create_model(name, scheme="gated-sweeps")
    assert [pde.scheme for pde in equations(model)] == [
        GatedSweeps(first="xy"[i % 2]) for i in range(len(equations(model)))
    ]
    assert all(pde.boundary is Boundary.NEUMANN for pde in equations(model))
    c = model.pretrained_cfg["input_size"][0]
    model(torch.randn(2, c, 16, 16)).sum().backward()
    assert all(p.grad is None or p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize("scheme", NAMED_SCHEMES)
def test_every_named_scheme_runs_and_is_kept_in_the_source(scheme):
    model = create_model("resnet_global_tiny_cifar", scheme=scheme).eval()
    again = source_from_json(source_of(model).to_json()).build()
    assert equations(again) == equations(model)
    again.load_state_dict(model.state_dict())
    x = torch.randn(1, 3, 16, 16)
    with torch.no_grad():
        torch.testing.assert_close(again.eval()(x), model(x))


def test_a_spacing_of_two_and_constant_diffusion_stay():
    before = equations(create_model("mobilenetv2_global"))
    after = equations(create_model("mobilenetv2_global", scheme="gated-sweeps"))
    assert [(p.steps, p.dt, p.spacing) for p in after] == [(p.steps, p.dt, p.spacing) for p in before]


def test_the_published_scheme_by_name_changes_nothing():
    assert equations(create_model("resnet_global_cifar", scheme="du-fort-frankel")) == equations(
        create_model("resnet_global_cifar")
    )


def test_timm_builds_it_too():
    model = timm.create_model("resnet_global_tiny_cifar", scheme="gated-sweeps")
    assert equations(model)[1].scheme == GatedSweeps(first="y")
    features = create_model("resnet_global_tiny_cifar", scheme="gated-sweeps", features_only=True)
    assert equations(features)[0].scheme == GatedSweeps()


def test_weights_come_back_with_the_scheme(tmp_path):
    model = create_model("resnet_global_tiny_cifar", scheme="gated-sweeps-rational").eval()
    save_weights(tmp_path / "w.safetensors", model.state_dict(), make_card(model, image_size=(32, 32)))
    again = load(tmp_path / "w.safetensors").eval()
    assert equations(again) == equations(model)


@dataclass(frozen=True)
class Refused:
    name: str
    settings: dict[str, object]
    words: str


@pytest.mark.parametrize(
    "case",
    [
        Refused("resnet_global_cifar", {"scheme": "gated-sweep"}, "did you mean 'gated-sweeps'"),
        Refused("resnet32_cifar", {"scheme": "gated-sweeps"}, "is for networks with Global layers"),
        Refused("resnet18", {"scheme": "gated-sweeps"}, "has no Global layers"),
        Refused("resnet_global_cifar", {"scheme": "gated-sweeps", "pde": PDE(steps=2)}, "cannot both be"),
        Refused("mobilenetv2_global", {"scheme": "gated-sweeps-sigmoid"}, "predicts the gates of all sweeps"),
        Refused("resnet_global_cifar", {"scheme": 3}, "must be one of du-fort-frankel"),
    ],
    ids=lambda case: case.words,
)
def test_what_is_refused(case):
    with pytest.raises((UserError, TypeError), match=case.words):
        create_model(case.name, **case.settings)


def test_bounded_layers_keep_their_scheme():
    layer = GlobalLayer(4, bounded=True)
    with pytest.raises(UserError, match="bounded=True is for the scheme"):
        set_scheme(layer, "gated-sweeps")
    assert layer.pde.scheme == DuFortFrankel()


def test_a_refusal_leaves_the_network_as_it_was():
    model = create_model("mobilenetv2_global")
    before = equations(model)
    with pytest.raises(UserError):
        set_scheme(model, GatedSweeps("rational"))
    assert equations(model) == before
    set_scheme(model, TridiagonalImplicit(first="y"))
    assert equations(model)[1].scheme == TridiagonalImplicit(first="x")
    set_scheme(model, DuFortFrankel())
    assert equations(model) == before


def test_a_given_equation_alternates_the_first_axis_too():
    model = create_model("resnet_global_tiny_cifar", pde=PDE(scheme=GatedSweeps("rational", first="y")))
    assert [pde.scheme.first for pde in equations(model)] == ["y", "x", "y"]


def test_networks_with_sweeps_have_sigmoid_gates_and_small_eps():
    model = create_model("resnet_sweeps_tiny_cifar")
    assert [pde.scheme for pde in equations(model)] == [GatedSweeps("sigmoid", first=a) for a in "xyx"]
    assert {model.global1.velocity_x.norm.eps, model.global2.diffusion_y.norm.eps} == {1e-5}


def test_networks_with_depthwise_convolutions_solve_no_equation_and_take_no_scheme():
    assert equations(create_model("resnet_depthwise_cifar")) == []
    with pytest.raises(UserError, match="has none"):
        create_model("resnet_depthwise_cifar", scheme="gated-sweeps")


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("resnet_depthwise_cifar", {"pde": PDE(steps=2)}),
        ("resnet_depthwise_cifar", {"norm_eps": 0.1}),
        ("resnet32_cifar", {"pde": PDE(steps=2)}),
        ("resnet32_cifar", {"depthwise": 3}),
    ],
)
def test_settings_of_layers_that_a_network_lacks_are_refused(name, settings):
    with pytest.raises(UserError, match="only for the Global variants"):
        create_model(name, **settings)
