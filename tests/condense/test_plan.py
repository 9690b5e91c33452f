"""A plan as data: printed, kept, edited; budgets and measured times."""

from __future__ import annotations

import time
from dataclasses import replace

import pytest
import torch

import globalcnn
from globalcnn import UserError, condense
from globalcnn.condense.budget import Budget, choose, total
from globalcnn.condense.data import Cost, Stage
from globalcnn.condense.timing import Timed
from globalcnn.nn import ResidualDepthwise
from tests.condense import networks

X = torch.randn(1, 3, 16, 16)


@pytest.fixture(scope="module")
def planned():
    model = globalcnn.create_model("resnet32_cifar", num_classes=10)
    return model, condense.plan(model, X, block="global", seconds=0.2)


def test_a_residual_depthwise_7x7_comes_by_default(planned):
    model, _ = planned
    small = condense.apply(model, condense.plan(model, X, seconds=None))
    blocks = [small.layer1[1], small.layer2[1], small.layer3[1]]
    assert {type(b) for b in blocks} == {ResidualDepthwise}
    assert {b.conv.kernel_size for b in blocks} == {(7, 7)}


def test_it_is_kept_as_json(planned, tmp_path):
    plan = planned[1]
    plan.save(tmp_path / "plan.json")
    assert condense.Plan.load(tmp_path / "plan.json") == plan


def test_it_prints_what_goes_and_what_comes(planned):
    lines = str(planned[1]).splitlines()
    assert lines[0] == "resnet32_cifar, example 1x3x16x16"
    assert lines[2].split()[:6] == ["layer1", "16x16x16", "4:", "layer1.1", "to", "layer1.4"]
    assert lines[5].startswith("network")
    assert "466,906 -> 83,194" in lines[5]
    assert "layer3: layer3.0 stays" in lines
    assert "tensors" not in repr(planned[1])


def test_figures_are_those_of_the_networks(planned):
    model, plan = planned
    small = condense.apply(model, plan)
    for network, cost in ((model, plan.before), (small, plan.after)):
        counts = globalcnn.measure.count(network, (3, 16, 16))
        assert (cost.params, cost.macs) == (counts.params, counts.macs)
    for key in ("params", "macs"):
        saved = sum(getattr(s.before, key) - getattr(s.after, key) for s in plan.stages)
        assert getattr(plan.before, key) - saved == getattr(plan.after, key)


def test_batches_do_not_change_the_count_for_one_image(planned):
    plan = condense.plan(planned[0], torch.randn(3, 3, 16, 16), block="global", seconds=None)
    assert plan.before.macs == planned[1].before.macs
    assert plan.after.macs == planned[1].after.macs


def test_times_are_measured(planned):
    plan = planned[1]
    costs = [plan.before, plan.after, *(c for s in plan.stages for c in (s.before, s.after))]
    assert all(c.seconds > 0 for c in costs)


def test_the_clock_times_the_named_modules_and_leaves_no_hook():
    class Slow(torch.nn.Module):
        def forward(self, x):
            time.sleep(0.02)  # at least
            return x

    net = torch.nn.Sequential(Slow(), torch.nn.Identity(), Slow())
    with Timed(net, {"two": ["0", "2"], "none": ["1"]}, (X,)) as timed:
        for _ in range(3):
            timed(X)
    assert {name: len(spent) for name, spent in timed.times.items()} == {"two": 3, "none": 3}
    assert timed.medians(1)["two"] >= 0.04
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in net.modules())


def test_it_is_edited(planned):
    model, plan = planned
    edited = plan.edited("layer1", condense=False).edited("layer2", block="norm-act")
    edited = edited.edited("layer3", settings={"steps": 3})
    small = condense.apply(model, edited)
    assert type(small.layer1[1]) is type(model.layer1[1])
    assert not isinstance(small.layer2[1], globalcnn.GlobalLayer)
    assert small.layer3[1].pde.steps == 3
    assert edited.after is None
    assert "?" in str(edited)
    assert plan.stages[0].condense
    with pytest.raises(UserError, match="'layer4'"):
        plan.edited("layer4", condense=False)
    with pytest.raises(UserError, match="unknown block"):
        plan.edited("layer1", block="x")


def test_fewer_blocks_may_go(planned):
    model, plan = planned
    entries = plan.to_json()
    stage = entries["stages"][0]
    stage["keep"].append(stage["remove"].pop(0))
    small = condense.apply(model, condense.Plan.from_json(entries))
    assert type(small.layer1[1]) is type(model.layer1[1])
    assert isinstance(small.layer1[2], globalcnn.GlobalLayer)
    assert [len(s.remove) for s in condense.plan(model, X, keep=3, seconds=None).stages] == [2, 2, 2]


def test_sweeps_alternate(planned):
    plan = condense.plan(planned[0], X, block="sweeps", seconds=None)
    assert [s.settings["first"] for s in plan.stages] == ["x", "y", "x"]


def test_maps_with_negative_values_keep_them():
    """A block that ends in a ReLU would cut them off."""
    plan = condense.plan(networks.plain(), X, seconds=None)
    assert [dict(s.settings) for s in plan.stages] == [{}, {}]
    model = globalcnn.create_model("mobilenetv2_100", num_classes=10)
    plan = condense.plan(model, torch.randn(1, 3, 64, 64), seconds=None)
    assert {s.settings["residual"] for s in plan.stages} == {True}


def test_a_condensed_network_is_condensed_again():
    model = networks.WrittenOut(depth=4)
    first = condense.apply(model, condense.plan(model, X, keep=3, seconds=None))
    again = condense.apply(first, condense.plan(first, X, seconds=None))
    assert sum(p.numel() for p in again.parameters()) < sum(p.numel() for p in first.parameters())
    assert again(X).shape == (1, 10)


@pytest.mark.parametrize(
    ("limit", "condensed"),
    [
        ({"max_params": 466_906}, []),
        ({"max_params": 300_000}, ["layer3"]),
        ({"max_params": 120_000}, ["layer2", "layer3"]),
        ({"max_params": 83_194}, ["layer1", "layer2", "layer3"]),
        ({"max_macs": 14_000_000}, ["layer1"]),
        ({"max_macs": 9_000_000, "max_params": 300_000}, ["layer1", "layer3"]),
    ],
)
def test_a_budget_chooses(planned, limit, condensed):
    plan = condense.plan(planned[0], X, block="global", seconds=None, **limit)
    assert [s.name for s in plan.chosen] == condensed
    assert plan.after.params <= limit.get("max_params", plan.after.params)
    assert plan.after.macs <= limit.get("max_macs", plan.after.macs)
    if not condensed:
        assert "no stage is condensed" in str(plan)


def stage(name: str, params: int, seconds: float) -> Stage:
    return Stage(
        name, (8, 4, 4), (), ((name,),), before=Cost(params + 10, 100, seconds), after=Cost(10, 50, 0.0)
    )


def test_time_is_bought_for_the_fewest_parameters():
    stages = (stage("dear", 1000, 3.0), stage("cheap", 10, 2.0), stage("free", 20, 1.0))
    before = Cost(2000, 1000, 8.0)
    assert [s.name for s in choose(stages, before, Budget(speedup=1.3)) if s.condense] == ["cheap"]
    assert [s.name for s in choose(stages, before, Budget(speedup=1.6)) if s.condense] == ["cheap", "free"]
    assert [s.name for s in choose(stages, before, Budget(speedup=2.5)) if s.condense] == ["dear", "cheap"]
    assert total(before, stages[:2]) == Cost(990, 900, 3.0)


def test_an_unreachable_speedup_names_the_nearest():
    stages = (stage("a", 10, 2.0), replace(stage("slower", 10, 1.0), after=Cost(10, 50, 1.5)))
    with pytest.raises(UserError, match=r"speedup=3: the nearest is 1\.33"):
        choose(stages, Cost(2000, 1000, 8.0), Budget(speedup=3))


def test_an_unreachable_speedup_is_refused(planned):
    with pytest.raises(UserError, match="speedup=1000: the nearest is"):
        condense.plan(planned[0], X, speedup=1000, seconds=0.1)
