"""Variants: their words, which of them fit a network and a batch, and how they are made."""

from __future__ import annotations

import torch
from torch import nn

from globalcnn import GlobalLayer, create_model
from globalcnn.nn.fused import FusedGlobalLayer
from globalcnn.optimize import Variant
from globalcnn.optimize.choices import CHOICES, Setting
from globalcnn.optimize.variant import prepare

BATCH = torch.zeros(4, 3, 16, 16)


def test_words():
    assert str(Variant()) == "as is"
    best = Variant(folded=True, piece=8)
    assert Variant(folded=True, piece=8, compiled=True).beyond(best) == "compiled"
    assert Variant(folded=True, compiled=True).beyond(best) == "compiled, without pieces of 8"


def options(model, example, *, threads=2, compile=True, map_bytes=1 << 16):
    setting = Setting(model, example, map_bytes, threads, compile, cache_bytes=1 << 20)
    return {choice.name: choice.options(Variant(), setting) for choice in CHOICES}


def test_options_fit_the_network_and_the_batch():
    plain, single = nn.Conv2d(3, 4, 3), BATCH[:1]
    found = options(plain, single)
    assert found["convolution + BatchNorm folded"] == found["Global layers fused"] == []
    assert found["threads"] == [Variant(one_thread=True)]
    assert options(plain, single, threads=1)["threads"] == options(plain, BATCH)["threads"] == []
    assert found["pieces of the batch"] == []
    assert options(plain, BATCH, compile=False)["compiled"] == []
    last = torch.zeros(4, 16, 16, 3).permute(0, 3, 1, 2)
    assert options(plain, last)["memory format"] == [Variant(memory_format="contiguous")]
    assert options(plain, BATCH)["memory format"] == [Variant(memory_format="channels_last")]


def test_pieces_are_powers_of_two_near_the_cache():
    batch = torch.zeros(64, 3, 8, 8)
    found = options(nn.Identity(), batch, threads=1, map_bytes=1 << 16)["pieces of the batch"]
    assert [v.piece for v in found] == [4, 8, 16, 32]
    assert options(nn.Identity(), batch[:4], threads=1, map_bytes=1 << 16)["pieces of the batch"] == []
    huge = options(nn.Identity(), batch, threads=1, map_bytes=1 << 30)["pieces of the batch"]
    assert [v.piece for v in huge] == [1, 2, 4, 8]


def test_folded_and_fused(lively):
    model = lively(create_model("densenet_global_cifar"))
    norms = [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)]
    module, notes = prepare(model, Variant(folded=True, fused=True))
    layers = [m for m in module.modules() if isinstance(m, FusedGlobalLayer)]
    assert len(layers) == 2
    assert not any(isinstance(m, GlobalLayer) for m in module.modules())
    assert "BatchNorms folded" in notes[0]
    assert [m for m in model.modules() if isinstance(m, nn.BatchNorm2d)] == norms


class Doubled(GlobalLayer):
    """Overrides what a fused layer would pass by."""

    def forward(self, f, before=None):
        return 2 * super().forward(f, before)


def test_layers_that_do_more_than_a_global_layer_are_not_fused():
    hooked = GlobalLayer(3)
    hooked.register_forward_hook(lambda module, inputs, output: output + 1)
    net = nn.Sequential(Doubled(3), hooked, GlobalLayer(3)).eval()
    module, _ = prepare(net, Variant(fused=True))
    assert [type(m) for m in module] == [Doubled, GlobalLayer, FusedGlobalLayer]
    with torch.no_grad():
        assert torch.allclose(module(BATCH), net(BATCH), atol=1e-6)


def test_a_layer_under_two_names_is_fused_under_both():
    layer = GlobalLayer(3)
    module, _ = prepare(nn.Sequential(layer, nn.ReLU(), layer).eval(), Variant(fused=True))
    assert module[0] is module[2]
    assert isinstance(module[0], FusedGlobalLayer)
