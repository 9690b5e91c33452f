"""`FusedGlobalLayer`: what it takes, what it refuses, and that it stays as it was made."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from torch import nn

from globalcnn import PDE, GlobalLayer, UserError
from globalcnn.nn.fused import FusedGlobalLayer, why_not_frozen
from globalcnn.ops import use_backend

C = 8


def make():
    torch.manual_seed(0)
    layer = GlobalLayer(C, PDE(steps=2)).eval()
    return layer, FusedGlobalLayer(layer)


@pytest.mark.parametrize("channels", [1, 4, 7, 9, 10**6])
def test_other_channel_counts_are_refused(channels):
    _, frozen = make()
    with pytest.raises(UserError, match=rf"\(2, {channels}, 3, 3\); it must be \(N, 8, H, W\)"):
        frozen(torch.zeros(1).expand(2, channels, 3, 3))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_every_floating_dtype(dtype):
    layer, frozen = make()
    x = torch.randn(2, C, 6, 5)
    with torch.no_grad():
        expected = copy.deepcopy(layer).double()(x.to(dtype).double())
        out = frozen(x.to(dtype))
    assert out.dtype == dtype
    tolerance = 2 * torch.finfo(dtype).eps + 1e-5
    torch.testing.assert_close(out.double(), expected, rtol=tolerance, atol=tolerance)


def test_a_second_input_without_an_init_block():
    _, frozen = make()
    x = torch.randn(2, C, 6, 5)
    with pytest.raises(UserError, match="got a second input, but there is no init block"):
        frozen(x, x)


def test_it_stays_as_it_was_made():
    layer, frozen = make()
    x = torch.randn(2, C, 6, 5)
    with torch.no_grad():
        before = frozen(x)
        for p in layer.parameters():
            p.data.mul_(2)
        assert torch.equal(frozen(x), before)
        assert not torch.allclose(layer(x), before)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda m: m.train(), "training mode"),
        (lambda m: setattr(m, "act", nn.Tanh()), "Tanh"),
        (lambda m: m.norm.register_forward_hook(lambda *_: None), "a hook watches norm"),
        (lambda m: setattr(m.norm, "running_mean", None), "no running statistics"),
        (lambda m: m.velocity_x.double(), "differs in shape, dtype"),
    ],
    ids=["training", "activation", "hook", "statistics", "dtype"],
)
def test_layers_without_a_frozen_form(change, words):
    layer, _ = make()
    change(layer)
    assert words in why_not_frozen(layer)
    assert FusedGlobalLayer.from_layer(layer) is None
    with pytest.raises(UserError, match=words):
        FusedGlobalLayer(layer)


def test_copies_and_files():
    _, frozen = make()
    x = torch.randn(2, C, 6, 5)
    expected = frozen(x)
    file = io.BytesIO()
    torch.save(frozen, file)
    file.seek(0)
    for other in (
        copy.deepcopy(frozen),
        pickle.loads(pickle.dumps(frozen)),
        torch.load(file, weights_only=False),
    ):
        torch.testing.assert_close(other(x), expected)


def test_traced_and_exported_in_standard_operators():
    _, frozen = make()
    x = torch.randn(2, C, 6, 5)
    expected = frozen(x)
    traced = torch.jit.trace(frozen, x)
    exported = torch.export.export(frozen, (x,))
    for other in (traced, exported.module()):
        torch.testing.assert_close(other(x), expected, rtol=1e-4, atol=1e-5)
    assert "globalcnn::" not in str(traced.graph)
    assert "torch.ops.globalcnn" not in exported.graph_module.code
    with use_backend("eager"):
        torch.testing.assert_close(frozen(x), expected, rtol=1e-4, atol=1e-5)
