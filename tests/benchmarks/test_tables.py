"""What is measured is what is said: sides in rounds, failures recorded, bytes counted once."""

from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from benchmarks import layer, networks, training
from benchmarks.memory import kept_bytes, peak_bytes
from benchmarks.results import Cell, Settings, Side, Timed
from benchmarks.rounds import NotHere, Variant, timed_in_rounds
from globalcnn import PDE, GlobalLayer
from globalcnn.cli.networks import build_named
from globalcnn.measure import Latency
from globalcnn.ops import use_backend

QUICK = Settings(rounds=2, seconds=1.0, quick=True)


def fail(error):
    def prepare():
        raise error

    return prepare


def test_each_round_calls_every_variant_of_both_sides():
    calls = []
    variants = {name: Variant(name, lambda name=name: lambda: calls.append(name)) for name in "abc"}
    cell = timed_in_rounds(
        "x", ("ours", [variants["a"], variants["b"]]), ("theirs", [variants["c"]]), QUICK, images=4
    )
    assert "".join(calls) == "aabbcc" + "abc" * 2 + "abc" + "cba"  # at first alone, then to warm up, timed
    assert [t.latency.runs for side in (cell.ours, cell.theirs) for t in side.timed] == [2, 2, 2]


def test_what_takes_long_is_not_warmed_up():
    calls = []
    slow = Settings(rounds=1, seconds=1e-9)
    timed_in_rounds(
        "x", ("ours", [Variant("a", lambda: lambda: calls.append("a"))]), ("theirs", []), slow, images=1
    )
    assert calls == ["a", "a"]


def test_a_variant_that_fails_is_recorded():
    variants = [
        Variant("fine", lambda: lambda: None),
        Variant("broken", fail(RuntimeError("no luck\nmore"))),
        Variant("absent", fail(NotHere("left out"))),
        Variant("later", lambda: fail(ValueError("at the call"))),
    ]
    cell = timed_in_rounds("x", ("ours", variants), ("theirs", variants[1:]), QUICK, images=1)
    failures = [t.failure for t in cell.ours.timed]
    assert failures == ["", "RuntimeError: no luck", "left out", "ValueError: at the call"]
    assert cell.ours.fastest.variant == "fine"
    assert cell.theirs.fastest is None
    assert cell.ratio is None
    json.dumps(cell.as_dict())


def test_a_training_step_has_gradients_in_the_timed_in_rounds():
    seen = []

    def run():
        seen.append((torch.is_grad_enabled(), torch.is_inference_mode_enabled()))

    timed_in_rounds("x", ("ours", [Variant("a", lambda: run)]), ("theirs", []), QUICK, images=1)
    assert set(seen) == {(True, False)}


def test_fastest_and_ratio():
    def timed(variant, seconds, competes=True):
        return Timed(variant, Latency(seconds, seconds, seconds, 1, 1), competes=competes)

    ours = Side("a", (timed("x", 3.0), timed("y", 2.0), timed("z", 1.0, competes=False)))
    cell = Cell("c", ours, Side("b", (timed("x", 4.0), Timed("y", None, "failed"))), images=1)
    assert ours.fastest.variant == "y"
    assert cell.ratio == 0.5
    facts = cell.as_dict()
    assert (facts["ours"]["fastest"], facts["theirs"]["fastest"]) == ("y", "x")


def test_kept_bytes_counts_each_storage_once_and_no_weights():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(10, 10))

        def forward(self, x):
            return (x * self.weight).sin() + x * x  # keeps x (three times) and the product

    x = torch.randn(10, 10, requires_grad=True)
    assert kept_bytes(Twice(), x) == 2 * 400


def test_peak_is_at_least_what_is_kept_and_grows_with_the_steps_in_eager():
    x = torch.randn(2, 4, 8, 8, requires_grad=True)
    kept, peak = {}, {}
    with use_backend("eager"):
        for steps in (1, 4):
            model = GlobalLayer(4, PDE(steps=steps))
            kept[steps], peak[steps] = kept_bytes(model, x), peak_bytes(model, x)
    assert kept[1] < kept[4] <= peak[4]
    assert kept[1] <= peak[1]


def test_a_layer_step_reaches_input_and_weights():
    conv, x = nn.Conv2d(2, 2, 3), torch.randn(1, 2, 5, 5)
    step = layer.forward_backward(conv, x)
    step()
    first = x.grad.clone(), conv.weight.grad.clone()
    step()
    assert torch.equal(x.grad, first[0])
    assert torch.equal(conv.weight.grad, first[1])


def test_a_training_step_changes_the_weights():
    model = nn.Sequential(nn.Flatten(), nn.Linear(12, 10))
    before = model[1].weight.clone()
    training.training_step(model, torch.randn(2, 3, 2, 2), torch.tensor([1, 2]), compiled=False)()
    assert not torch.equal(model[1].weight, before)


def test_what_cannot_be_compiled_is_told_before_it_is_tried():
    mdeq, resnet, timms = (build_named(n) for n in ("mdeq_cifar", "resnet32_cifar", "mobilenetv2_100"))
    with pytest.raises(NotHere, match="cannot be compiled: the solver looks at residuals"):
        networks.check_compiles(mdeq, Settings())
    with pytest.raises(NotHere, match="quick"):
        networks.check_compiles(resnet, QUICK)
    networks.check_compiles(resnet, Settings())
    networks.check_compiles(timms, Settings())


def test_a_cell_that_fails_does_not_stop_the_rest(monkeypatch):
    def cell(name, *rest):
        raise RuntimeError("no memory")

    monkeypatch.setattr(networks, "_cell", cell)
    monkeypatch.setattr(training, "_cell", cell)
    lines = []
    result = networks.compare_networks(QUICK, lines.append)
    assert [c.failure for c in result.cells] == ["RuntimeError: no memory"] * 2
    assert len(lines) == 2
    assert training.compare_training(QUICK, lines.append).cells[0].failure == "RuntimeError: no memory"


def test_reconstructions_say_so_in_every_cell(monkeypatch):
    def cell(name, *rest):
        raise RuntimeError("no memory")

    monkeypatch.setattr(networks, "_cell", cell)
    cells = networks.compare_implicit(QUICK, lambda line: None).cells
    names = [c.name for c in cells] + [side.name for c in cells for side in (c.ours, c.theirs)]
    assert any("mdeq_cifar" in name for name in names)
    assert all("mdeq_cifar (reconstruction)" in name for name in names if "mdeq_cifar" in name)
    assert not any("neural_ode_mnist (" in name for name in names)


def test_variants_of_a_network_give_the_same():
    network = build_named("resnet_global_tiny_cifar")
    network.model.eval()
    x = torch.randn(2, 3, 16, 16)
    variants = networks.inference_variants(network, x, QUICK)
    outs = [v.prepare()() for v in variants if v.name != "compiled"]
    assert len(outs) == 3
    assert all(torch.allclose(out, outs[0], atol=1e-5) for out in outs)
