"""DeployedGlobalLayer: the same function as the layer, of fewer operators."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn

from globalcnn import PDE, GlobalLayer, create_model
from globalcnn.errors import UserError
from globalcnn.graph.deployed import for_engines
from globalcnn.nn.deployed import DeployedGlobalLayer
from globalcnn.ops import GatedSweeps

X = torch.randn(2, 8, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    name: str
    settings: dict[str, Any] = field(default_factory=dict)
    grouped: bool = False


CASES = [
    Case("published"),
    Case("published, grouped", grouped=True),
    Case("constant diffusion, grouped", {"diffusivity": (1.0, 0.5), "bias": False}, grouped=True),
    Case("five steps, Neumann", {"pde": PDE(steps=5, boundary="neumann", spacing=(2, 3))}),
    Case("Dirichlet, from h", {"pde": PDE(steps=2, boundary="dirichlet"), "start_from": "h"}),
    Case("no steps", {"pde": PDE(steps=0)}),
    Case("no source, residual", {"source": False, "residual": True}),
    Case("an init block", {"init": nn.Conv2d(8, 8, 1).double(), "velocity_from": "f", "act": nn.SiLU}),
    Case("shared product", {"shared_product": True, "act": nn.ReLU6, "diffusivity": 1.0}),
    Case("shared groups", {"coefficients": "shared-groups"}),
    Case("half resolution, bounded", {"coefficients": "half-resolution", "bounded": True}),
    Case("a block as the network", {"coefficients": "basic"}),
]


def trained(settings: dict[str, Any]) -> GlobalLayer:
    torch.manual_seed(0)
    layer = GlobalLayer(8, **settings).double()
    for m in layer.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.normal_(m.weight)
            nn.init.normal_(m.bias)
    layer(X)
    return layer.eval()


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_it_is_the_same_function(case):
    layer = trained(case.settings)
    expected = layer(X)
    torch.testing.assert_close(
        DeployedGlobalLayer(layer, grouped=case.grouped)(X), expected, rtol=1e-10, atol=1e-10
    )
    assert torch.equal(layer(X), expected)


def test_the_step_takes_fewer_operators():
    layer = trained({}).float()

    def operators(module: nn.Module) -> int:
        return sum(n.op == "call_function" for n in torch.export.export(module, (X.float(),)).graph.nodes)

    assert operators(DeployedGlobalLayer(layer)) < 0.75 * operators(layer)


@torch.no_grad()
def test_a_network_for_engines():
    model = create_model("mobilenetv2_global", num_classes=5).double().eval()
    x = torch.randn(1, 3, 32, 32, dtype=torch.float64)
    made = for_engines(model, x)
    assert sum(isinstance(m, DeployedGlobalLayer) for m in made.modules()) == 5
    assert sum(isinstance(m, nn.BatchNorm2d) for m in made.modules()) == 5  # the output norms
    torch.testing.assert_close(made(x), model(x), rtol=1e-8, atol=1e-8)


@dataclass(frozen=True)
class Refused:
    name: str
    layer: GlobalLayer
    message: str
    grouped: bool = False


def hooked() -> GlobalLayer:
    layer = trained({})
    layer.velocity_x.register_forward_hook(lambda *_: None)
    return layer


@pytest.mark.parametrize(
    "refused",
    [
        Refused("training", trained({}).train(), "in training mode"),
        Refused("a hook", hooked(), "velocity_x has a hook"),
        Refused("sweeps", trained({"pde": PDE(scheme=GatedSweeps())}), "scheme is GatedSweeps"),
        Refused("grouped", trained({"coefficients": "full"}), "grouped=True takes depthwise", True),
    ],
    ids=lambda r: r.name,
)
def test_what_it_cannot_be_is_refused(refused):
    with pytest.raises(UserError, match=refused.message):
        DeployedGlobalLayer(refused.layer, grouped=refused.grouped)
