"""Every form takes the place of a Global layer; the engines are compared with the module."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import deployed_engines as ENGINES
from benchmarks import forms_page as PAGE
from benchmarks.deployed_engines import latencies
from benchmarks.deployed_forms import FORMS
from benchmarks.forms import put_into
from benchmarks.pages import read
from globalcnn import create_model
from globalcnn.errors import UserError
from globalcnn.graph import fold_batch_norms
from globalcnn.nn import GlobalLayer

X = torch.randn(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("network", "name"),
    [("resnet_global_tiny_cifar", name) for name in FORMS]
    + [("mobilenetv2_global", name) for name in ("half-resolution", "image-affine", "depthwise-3")],
)
@torch.no_grad()
def test_every_form_builds_runs_and_folds(network, name):
    model = put_into(create_model(network, num_classes=5), FORMS[name].make).eval()
    expected = model(X)
    assert expected.shape == (2, 5)
    fold_batch_norms(model, X)
    torch.testing.assert_close(model(X), expected, rtol=1e-4, atol=1e-4)


def test_a_network_without_global_layers_is_refused():
    with pytest.raises(UserError, match="no Global layer"):
        put_into(nn.ReLU(), FORMS["published"].make)


def test_latencies_of_one_network_by_engine():
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    net = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), GlobalLayer(4))
    net(X)
    state = {k: t.clone() for k, t in net.state_dict().items()}
    found = latencies(net, X, engines=("globalcnn", "onnxruntime"), rounds=1, seconds=0.3, compile=False)
    assert [r["failure"] for r in found.values()] == ["", ""]
    assert all(r["seconds"] > 0 and r["deviation"] < 1e-4 for r in found.values())
    assert net.training
    assert all(torch.equal(t, state[k]) for k, t in net.state_dict().items())


def test_an_engine_that_gives_another_function_has_no_time(monkeypatch):
    def wrong(model, *_):
        return lambda x: 1.01 * model(x), "wrong"

    monkeypatch.setitem(ENGINES.ENGINES, "wrong", wrong)
    found = latencies(nn.Conv2d(3, 4, 3).eval(), X, engines=("wrong",), rounds=1, seconds=0.1)["wrong"]
    assert found["seconds"] is None
    assert "another function" in found["failure"]


def test_the_page_says_what_the_results_say():
    text = PAGE.PAGE.read_text(encoding="utf-8")
    assert PAGE.section(read("bench/deployed_forms.json")) in text, "run: python -m benchmarks.forms_page"
