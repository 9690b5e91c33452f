"""The ablation: what an arm changes, resuming, and that the page says what the results say."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from torch import nn

from benchmarks import ablation_page as PAGE
from benchmarks.ablation.arms import ARMS, find_arm
from benchmarks.ablation.collect import _group, write_results
from benchmarks.ablation.runs import Plan, build, work
from benchmarks.stretches import RESULT
from globalcnn import create_model
from globalcnn.errors import UserError
from globalcnn.nn import GlobalLayer

NETWORK = "resnet_global_tiny_cifar"


@pytest.mark.parametrize("name", ARMS)
def test_an_arm_runs_and_trains_every_parameter(name):
    model = build(NETWORK, find_arm(name), num_classes=7, seed=0)
    out = model(torch.randn(4, 3, 16, 16))
    assert out.shape == (4, 7)
    out.square().sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


def test_arms_share_the_weights_of_the_rest():
    one, other = (
        build(NETWORK, find_arm(name), num_classes=7, seed=3) for name in ("nothing", "depthwise-7")
    )
    theirs = other.state_dict()
    ours = one.state_dict()
    assert len(ours) > 20
    assert all(torch.equal(v, theirs[k]) for k, v in ours.items())


def test_an_arm_in_the_last_places_leaves_nothing_in_the_others():
    model = build(NETWORK, find_arm("published-last-2"), num_classes=7, seed=0)
    kinds = [type(model.get_submodule(f"global{i}")) for i in (1, 2, 3)]
    assert kinds == [nn.Identity, GlobalLayer, GlobalLayer]


def test_the_published_arm_is_the_published_network():
    torch.manual_seed(5)
    plain = create_model(NETWORK, num_classes=7)
    assert str(build(NETWORK, find_arm("published"), num_classes=7, seed=5)) == str(plain)


def test_coefficients_learn_faster_by_the_factor_and_nothing_else_does():
    grads = []
    for name in ("published", "coefficients-lr-10"):
        torch.manual_seed(0)
        layer = GlobalLayer(4)
        new = layer if name == "published" else find_arm(name).block(layer, 0)
        new.load_state_dict(layer.state_dict())
        new(torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(1))).square().sum().backward()
        grads.append({k: p.grad for k, p in new.named_parameters()})
    for key, grad in grads[0].items():
        torch.testing.assert_close(grads[1][key], grad * (1 if key.startswith("norm.") else 10))


def test_a_network_without_global_layers_is_refused():
    with pytest.raises(UserError, match="no Global layer"):
        find_arm("nothing").put_into(create_model("resnet_tiny_cifar", num_classes=7))


def test_an_unknown_arm_is_refused_with_near_ones():
    with pytest.raises(UserError, match="depthwise-3"):
        find_arm("depthwise3")


def test_runs_stop_when_the_time_is_over_and_go_on(tmp_path, monkeypatch):
    plan = Plan(network=NETWORK, data="digits", epochs=2, arms=("nothing",), seeds=(0,), runs=tmp_path)
    monkeypatch.setattr("benchmarks.ablation.runs.create_model", _small)
    said: list[str] = []
    assert work(plan, until=time.monotonic(), say=said.append) == 0
    assert "time is over" in said[-1]
    assert work(plan, until=float("inf"), say=said.append) == 1
    assert work(plan, until=float("inf"), say=said.append) == 0
    (path,) = tmp_path.glob(f"*/*/{RESULT}")
    result = json.loads(path.read_text())
    assert len(result["validation_accuracy"]) == 2
    assert 0 <= result["test_accuracy"] <= 1
    group = _group([result])
    assert group["arms"]["nothing"]["runs"][0]["seed"] == 0
    assert "nothing" in PAGE.arms_table({**group, "times": None})


def a_result(arm, seed, accuracy, lr=0.1):
    return {
        "network": "n", "data": "d", "recipe": {"lr": lr}, "environment": {}, "arm": arm, "question": "?",
        "parameters": 1, "macs": 2, "seed": seed, "test_accuracy": accuracy, "validation_accuracy": [],
        "train_loss": [], "seconds": 3,
    }  # fmt: skip


def test_optimisers_have_results_of_their_own():
    one, other = (
        Plan(
            network=NETWORK, data="digits", epochs=2, arms=("nothing",), seeds=(0,), runs=Path(), optimizer=o
        )
        for o in ("sgd", "muon")
    )
    assert one.group != other.group
    assert (other.recipe.optimizer, other.recipe.epochs) == ("muon", 2)
    rates = {"optimizer": "sgd", "lr": one.recipe.lr, "weight_decay": one.recipe.weight_decay}
    assert other.recipe.replace(**rates) == one.recipe


def test_results_of_earlier_runs_are_kept(tmp_path):
    def collect(name, *results):
        for r in results:
            path = tmp_path / name / "n-d-1" / f"{r['arm']}-{r['seed']}" / RESULT
            path.parent.mkdir(parents=True)
            path.write_text(json.dumps(r))
        (written,) = write_results(tmp_path / name, tmp_path)
        arms = json.loads(written.read_text())["arms"]
        return {(n, r["seed"]): r["test_accuracy"] for n, a in arms.items() for r in a["runs"]}

    collect("first", a_result("nothing", 0, 0.1), a_result("published", 0, 0.2))
    found = collect("second", a_result("published", 0, 0.3), a_result("published", 1, 0.4))
    assert found == {("nothing", 0): 0.1, ("published", 0): 0.3, ("published", 1): 0.4}
    with pytest.raises(UserError, match="another recipe"):
        collect("third", a_result("nothing", 1, 0.5, lr=0.2))


def _small(name, *, num_classes):
    layer = GlobalLayer(1)
    return nn.Sequential(layer, nn.AdaptiveAvgPool2d(4), nn.Flatten(), nn.Linear(16, num_classes))


def test_the_page_says_what_the_results_say():
    text = PAGE.PAGE.read_text(encoding="utf-8")
    assert PAGE.section(PAGE.read()) in text, "run: python -m benchmarks.ablation_page"


def test_the_fastest_engine_is_named():
    times = {"arms": {"nothing": {"1": {"a": 0.002, "b": 0.001, "c": None}}}}
    assert PAGE.fastest(times, "nothing", 1) == (0.001, "b")
    assert PAGE.fastest(times, "published", 1) is None
