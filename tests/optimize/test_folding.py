"""Folding: every pair that may be folded is, and nothing else."""

from __future__ import annotations

import pytest
import timm
import torch
from torch import nn

from globalcnn import GlobalLayer, create_model, optimize_for_inference
from globalcnn.nn.fused import FusedGlobalLayer
from globalcnn.optimize import Form
from globalcnn.optimize.folding import fold_batch_norms
from globalcnn.optimize.form import prepared

IMAGES = torch.randn(4, 3, 16, 16, generator=torch.Generator().manual_seed(0))


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.BatchNorm2d) for m in model.modules())


def test_folding_finds_every_pair(lively):
    model = lively(timm.create_model("resnet18"))
    expected = model(IMAGES)
    assert fold_batch_norms(model) == (20, [])
    assert norms(model) == 0
    assert torch.allclose(model(IMAGES), expected, rtol=1e-3, atol=1e-4)


def test_the_init_blocks_of_global_layers_are_folded_and_the_layers_fused(lively):
    model = lively(create_model("densenet_global_cifar"))
    form = Form(folded=True, fused=True)
    module, _ = prepared(model, form)
    layers = [m for m in module.modules() if isinstance(m, FusedGlobalLayer)]
    assert len(layers) == 2
    assert not any(isinstance(m, GlobalLayer) for m in module.modules())
    assert all(norms(layer.init) < norms(create_model("densenet_global_cifar").features.global1.init)
               for layer in layers)  # fmt: skip


def test_the_coefficients_of_a_layer_without_fused_form_are_folded(lively):
    layer = lively(GlobalLayer(3, coefficients="full"))
    expected = layer(IMAGES)
    assert fold_batch_norms(layer)[0] == 4
    assert torch.allclose(layer(IMAGES), expected, atol=1e-5)


class Odd(nn.Module):
    """A network in which no norm may be folded, for the reason `why`."""

    def __init__(self, why: str) -> None:
        super().__init__()
        self.why = why
        self.conv, self.norm = nn.Conv2d(3, 3, 1), nn.BatchNorm2d(3)
        if why == "alias":
            self.alias = self.conv
        if why == "hook":
            self.conv.register_forward_hook(lambda module, inputs, output: output + 1)
        if why == "statistics":
            self.norm = nn.BatchNorm2d(3, track_running_stats=False)
        if why == "weight norm":
            self.conv = nn.utils.parametrizations.weight_norm(self.conv)

    def forward(self, x):
        y = self.conv(x)
        if self.why == "used elsewhere":
            return self.norm(y) + y
        if self.why == "twice":
            return self.norm(self.conv(self.norm(y)))
        if self.why == "between":
            return self.norm(y.relu())
        if self.why == "control flow" and x.sum() < 0:
            return x
        return self.norm(y)


@pytest.mark.parametrize(
    "why",
    ["alias", "hook", "statistics", "weight norm", "used elsewhere", "twice", "between", "control flow"],
)
def test_what_may_not_be_folded_is_not(why, lively):
    model = lively(Odd(why)) if why != "statistics" else Odd(why).eval()
    expected = model(IMAGES)
    folded, notes = fold_batch_norms(model)
    assert folded == 0
    assert bool(notes) == (why == "control flow")
    assert torch.equal(model(IMAGES), expected)
    fast = optimize_for_inference(model, IMAGES, compile=False, seconds=1)
    row = next(r for r in fast.report.rows if "folded" in r.name)
    assert "no BatchNorm directly follows" in row.outcome
    assert ("cannot be traced" in row.outcome) == (why == "control flow")
