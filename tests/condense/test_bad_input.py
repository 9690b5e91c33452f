"""What does not fit is refused by name, and nothing is changed."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d

import globalcnn
from globalcnn import UserError, condense
from tests.condense import networks

X = torch.randn(1, 3, 16, 16)


@dataclass(frozen=True)
class Refused:
    """What `plan` is given, and words of its error."""

    name: str
    build: Callable[[], Any] = networks.plain
    example: Any = X
    options: dict[str, Any] = field(default_factory=dict)
    words: tuple[str, ...] = ()


REFUSED = [
    Refused("no module", build=lambda: "resnet18", words=("must be a torch.nn.Module", "str")),
    Refused("TorchScript", build=lambda: torch.jit.script(networks.plain()), words=("TorchScript",)),
    Refused("lazy", build=lambda: nn.LazyLinear(3), words=("lazy",)),
    Refused("a shape", example=(1, 3, 16, 16), words=("is a shape", "torch.randn(1, 3, 16, 16)")),
    Refused("no tensor", example="images", words=("example_input must be a tensor",)),
    Refused("no image", example=torch.randn(0, 3, 16, 16), words=("one image or more",)),
    Refused("wrong channels", example=torch.randn(1, 4, 16, 16), words=("(1, 4, 16, 16)", "does not run")),
    Refused(
        "whole numbers", example=torch.zeros(1, 3, 16, 16, dtype=torch.long), words=("int64", "does not run")
    ),
    Refused("another device", example=X.to("meta"), words=("is on meta", "the model on cpu")),
    Refused("swapped", build=lambda: X, example=networks.plain(), words=("give the model first",)),
    Refused("max_params", options={"max_params": 0}, words=("max_params=0", ">= 1")),
    Refused("max_macs", options={"max_macs": "1M"}, words=("max_macs='1M'",)),
    Refused("speedup", options={"speedup": 0.5, "seconds": 1}, words=("speedup=0.5", "2 for half the time")),
    Refused("speedup unmeasured", options={"speedup": 2.0}, words=("needs measured times",)),
    Refused(
        "params out of reach", options={"max_params": 100}, words=("max_params=100", "the nearest is 2,834")
    ),
    Refused("block", options={"block": "globl"}, words=("unknown block 'globl'", "'global'")),
    Refused("setting", options={"settings": {"kernel": 5}}, words=("'kernel'", "'kernel_size'")),
    Refused("type of a setting", options={"settings": {"kernel_size": 1.5}}, words=("kernel_size=", "int")),
    Refused("keep", options={"keep": 0}, words=("keep=0",)),
    Refused("seconds", options={"seconds": -1}, words=("seconds=-1",)),
    Refused("nothing repeats", build=networks.without_repetitions, words=("repeats nothing",)),
    Refused(
        "one block a stage",
        build=lambda: globalcnn.create_model("resnet_global_cifar"),
        example=torch.randn(1, 3, 32, 32),
        words=("resnet_global_cifar repeats nothing",),
    ),
    Refused("side by side", build=networks.Branches, words=("repeats nothing",)),
    Refused("called several times", build=networks.Shared, words=("block is called 3 times", "same weights")),
    Refused("state changes", build=networks.Changing, words=("blocks.0 takes 2 tensors and returns 2",)),
    Refused("in a plain list", build=networks.Held, words=("plain attribute 'plain'", "registered.1")),
    Refused(
        "one pixel",
        build=lambda: globalcnn.create_model("resnet18"),
        example=torch.randn(1, 3, 1, 1),
        words=("1 x 1 pixel", "larger"),
    ),
    Refused(
        "channels last",
        build=lambda: globalcnn.create_model("swin_tiny_patch4_window7_224", depths=(2, 2), img_size=64),
        example=torch.randn(1, 3, 64, 64),
        words=(
            "channels in the last dimension",
            "no convolution in it",
        ),
    ),
    Refused(
        "tokens",
        build=lambda: globalcnn.create_model("vit_tiny_patch16_224", depth=3, img_size=32),
        example=torch.randn(1, 3, 32, 32),
        words=("(5, 192) for one image, not (C, H, W)",),
    ),
]


@pytest.mark.parametrize("case", REFUSED, ids=lambda c: c.name)
def test_plan_refuses(case):
    with pytest.raises(UserError) as caught:
        condense.plan(case.build(), case.example, **{"seconds": None, **case.options})
    assert "\n" not in str(caught.value)
    assert all(words in str(caught.value) for words in case.words), str(caught.value)


def test_a_state_that_is_passed_on_stays():
    torch.manual_seed(0)
    model = networks.TwoStreams().eval()
    plan = condense.plan(model, X, block="none", seconds=None)
    assert plan.stages[0].extra == "returned"
    small = condense.apply(model, plan)
    model.blocks = model.blocks[:1]
    with torch.no_grad():
        torch.testing.assert_close(small(X), model(X))


def planned(name: str = "resnet32_cifar") -> tuple[nn.Module, condense.Plan]:
    model = globalcnn.create_model(name, num_classes=10)
    return model, condense.plan(model, X, seconds=None)


def test_what_could_not_be_touched_is_in_the_error_of_a_budget():
    model = globalcnn.create_model("resnet18", num_classes=10)
    with pytest.raises(UserError, match=r"nearest is 9,654,410.*Not touched: layer4\.1: .*1 x 1 pixel"):
        condense.plan(model, torch.randn(1, 3, 32, 32), max_params=5_000_000, seconds=None)


def test_a_plan_of_another_network_is_refused_by_name():
    plan = planned()[1]
    deeper = globalcnn.create_model("resnet56_cifar", num_classes=10)
    with pytest.raises(UserError, match=r"another network \(resnet32_cifar\): layer1\.5\.conv1\.weight"):
        condense.apply(deeper, plan)
    with pytest.raises(UserError, match=r"conv1\.weight is .* here and .* in the plan"):
        condense.apply(globalcnn.create_model("resnet18", num_classes=10), plan)


def test_other_classes_and_channels_are_the_same_network():
    plan = planned()[1]
    other = globalcnn.create_model("resnet32_cifar", num_classes=7, in_chans=1)
    other.conv1 = nn.Conv2d(1, 16, 3, padding=1, bias=False)
    plan = condense.Plan.from_json({**plan.to_json(), "example": [1, 1, 16, 16]})
    assert condense.apply(other, plan)(torch.randn(2, 1, 16, 16)).shape == (2, 7)


def test_hooks_on_what_goes_are_refused_and_others_stay():
    model, plan = planned()
    calls = []
    model.layer1[0].register_forward_hook(lambda *_: calls.append("kept"))
    handle = model.layer2[2].conv1.register_forward_hook(lambda *_: calls.append("gone"))
    with pytest.raises(UserError, match=r"layer2\.2\.conv1 has hooks"):
        condense.apply(model, plan)
    told = condense.plan(model, X, seconds=None)
    assert [s.name for s in told.stages] == ["layer1", "layer3"]
    assert [(u.name, "layer2.2.conv1 has hooks" in u.reason) for u in told.untouched] == [("layer2", True)]
    handle.remove()
    small = condense.apply(model, plan)
    calls.clear()
    small(X)
    assert calls == ["kept"]


def test_frozen_parameters_stay_frozen_and_new_blocks_learn():
    model, plan = planned()
    model.requires_grad_(False)
    model.fc.requires_grad_(True)
    small = condense.apply(model, plan)
    learning = {n for n, p in small.named_parameters() if p.requires_grad}
    assert learning == {
        n for n, _ in small.named_parameters() if n.startswith(("layer1.1.", "layer2.1.", "layer3.1.", "fc."))
    }
    assert condense.plan(model, X, seconds=None).stages == plan.stages


def test_mode_and_dtype_are_kept():
    model, plan = planned()
    model.double().eval()
    model.layer3.train()
    small = condense.apply(model, plan)
    assert [small.layer2[1].training, small.layer3[1].training] == [False, True]
    assert {p.dtype for p in small.parameters()} == {torch.float64}
    assert small(X.double()).dtype == torch.float64


def test_frozen_batch_norms_stay():
    import torchvision

    model = torchvision.models.resnet18(num_classes=10, norm_layer=FrozenBatchNorm2d)
    x = torch.randn(2, 3, 64, 64)
    small = condense.apply(model, condense.plan(model, x, seconds=None))
    assert isinstance(small.layer1[0].bn1, FrozenBatchNorm2d)
    assert small.train()(x).shape == (2, 10)


def test_weights_that_others_hold_are_not_counted_as_saved():
    model = networks.plain()
    model[6].weight = model[0 + 3].weight  # both go
    model[12].weight = model[15].weight
    plan = condense.plan(model, X, seconds=None)
    small = condense.apply(model, plan)
    assert plan.after is not None
    assert plan.after.params == sum(p.numel() for p in small.parameters())
    assert plan.before.params == sum(p.numel() for p in model.parameters())


def test_plan_changes_nothing():
    model = networks.WrittenOut()
    before = {k: v.clone() for k, v in model.state_dict().items()}
    flags = [m.training for m in model.modules()]
    x, state = X.clone(), torch.get_rng_state()
    condense.plan(model, x, seconds=0.05)
    assert torch.equal(torch.get_rng_state(), state)
    assert torch.equal(x, X)
    assert [m.training for m in model.modules()] == flags
    assert all(torch.equal(v, before[k]) for k, v in model.state_dict().items())
    assert all(p.grad is None for p in model.parameters())
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())


def test_a_network_that_cannot_be_copied():
    model, plan = planned()
    model.stream = open(__file__)  # noqa: SIM115
    try:
        with pytest.raises(UserError, match="cannot be copied"):
            condense.apply(model, plan)
    finally:
        model.stream.close()


@dataclass(frozen=True)
class Typo:
    """A change of a plan's JSON, and words of the error."""

    name: str
    change: Callable[[dict[str, Any]], Any]
    words: tuple[str, ...]


def stage_with(**entries: Any) -> Callable[[dict[str, Any]], Any]:
    return lambda plan: plan["stages"][0].update(entries)


TYPOS = [
    Typo("entry", lambda p: p.update(stage=p.pop("stages")), ("'stage'", "'stages'")),
    Typo("format", lambda p: p.update(format="x"), ("format 'x'",)),
    Typo("no tensors", lambda p: p.pop("tensors"), ("lacks 'tensors'",)),
    Typo("a shape", lambda p: p["tensors"].update({"conv1.weight": "16,3"}), ("conv1.weight", "'16x3x3x3'")),
    Typo("entry of a stage", stage_with(blok="global"), ("'blok'", "'block'")),
    Typo("block", stage_with(block="globl"), ("unknown block 'globl'", "'global'")),
    Typo("setting", stage_with(block="global", settings={"step": 1}), ("'step'", "'steps'")),
    Typo("out of bounds", stage_with(block="global", settings={"steps": 10**9}), ("steps",)),
    Typo("condense", stage_with(condense="yes"), ("condense must be true or false", "'yes'")),
    Typo("remove", stage_with(remove=[]), ("remove must be a list",)),
    Typo("nothing in a block", stage_with(remove=[[]]), ("empty block",)),
    Typo("removed twice", stage_with(remove=["layer2.1"]), ("removes 'layer2.1' twice",)),
    Typo("same name", stage_with(name="layer2"), ("two stages", "'layer2'")),
    Typo("extra", stage_with(extra="drop"), ("'drop'", "'dropped'")),
    Typo("shape", stage_with(shape=[16.5, 8, 8]), ("shape must be a list of whole numbers",)),
    Typo("cost", stage_with(before={"params": -1, "macs": 0}), ("before: params",)),
]


@pytest.fixture(scope="module")
def plan_in_json() -> str:
    return json.dumps(planned()[1].to_json())


@pytest.mark.parametrize("typo", TYPOS, ids=lambda t: t.name)
def test_a_typo_in_a_plan_is_named(typo, plan_in_json, tmp_path):
    entries = json.loads(plan_in_json)
    typo.change(entries)
    path = tmp_path / "plan.json"
    path.write_text(json.dumps(entries))
    with pytest.raises(UserError) as caught:
        condense.Plan.load(path)
    assert str(path) in str(caught.value)
    assert all(words in str(caught.value) for words in typo.words), str(caught.value)


def test_a_plan_that_names_what_is_not_there(plan_in_json):
    entries = json.loads(plan_in_json)
    entries["stages"][0]["remove"] = ["layer1.9"]
    model = globalcnn.create_model("resnet32_cifar", num_classes=10)
    with pytest.raises(UserError, match=r"no module 'layer1\.9'"):
        condense.apply(model, condense.Plan.from_json(entries))


def test_a_plan_that_removes_what_changes_the_shape(plan_in_json):
    entries = json.loads(plan_in_json)
    entries["stages"][1]["remove"] = ["layer2.0"]
    model = globalcnn.create_model("resnet32_cifar", num_classes=10)
    with pytest.raises(UserError, match="does not run"):
        condense.apply(model, condense.Plan.from_json(entries))


def test_apply_wants_a_plan(plan_in_json):
    model = globalcnn.create_model("resnet32_cifar", num_classes=10)
    with pytest.raises(UserError, match=r"Plan\.load"):
        condense.apply(model, json.loads(plan_in_json))
