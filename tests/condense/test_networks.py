"""Plan and apply on the networks that users have: what goes, and that the rest is whole."""

from __future__ import annotations

import io
import json
from collections.abc import Callable
from dataclasses import dataclass

import onnxruntime
import pytest
import torch
import torchvision
from torch import nn

import globalcnn
from globalcnn import condense
from globalcnn.models import load, make_card, parse_source, save_weights
from tests.condense import networks


def of_torchvision(name: str) -> Callable[[], nn.Module]:
    return lambda: parse_source(f"torchvision.models:{name}").build(num_classes=10)


def named(name: str) -> Callable[[], nn.Module]:
    return lambda: globalcnn.create_model(name, num_classes=10)


@dataclass(frozen=True)
class Case:
    """blocks: how many go, of each stage; heavy: without memory, so that only shapes are compared."""

    name: str
    build: Callable[[], nn.Module]
    blocks: tuple[int, ...]
    size: int = 64
    other_size: tuple[int, int] = (72, 64)
    heavy: bool = False


CASES = [
    Case("resnet18", named("resnet18"), (1, 1, 1, 1)),
    Case("resnet50", named("resnet50"), (2, 3, 5, 2)),
    Case("resnext50_32x4d", named("resnext50_32x4d"), (2, 3, 5, 2), heavy=True),
    Case("wide_resnet50_2", named("wide_resnet50_2"), (2, 3, 5, 2), heavy=True),
    Case("regnety_004", named("regnety_004"), (2, 5, 5)),
    Case("densenet121", named("densenet121"), (1, 1, 1, 1)),
    Case("mobilenetv2_100", named("mobilenetv2_100"), (1, 2, 3, 2, 2)),
    Case("mobilenetv3_large_100", named("mobilenetv3_large_100"), (1, 2, 3, 1, 2)),
    Case("efficientnet_b0", named("efficientnet_b0"), (1, 1, 2, 2, 3)),
    Case("convnext_atto", named("convnext_atto"), (1, 1, 5, 1)),
    Case("mnasnet_100", named("mnasnet_100"), (2, 2, 2, 1, 3)),
    Case("ghostnet_100", named("ghostnet_100"), (1, 1, 3, 1, 4)),
    Case("resnet32_cifar", named("resnet32_cifar"), (4, 4, 4), size=32, other_size=(24, 40)),
    Case("resnet56_cifar", named("resnet56_cifar"), (8, 8, 8), size=32, other_size=(24, 40)),
    Case("torchvision resnet50", of_torchvision("resnet50"), (2, 3, 5, 2), heavy=True),
    Case("torchvision mobilenet_v2", of_torchvision("mobilenet_v2"), (1, 2, 3, 2, 2)),
    Case("nn.Sequential", networks.plain, (2, 2), size=16, other_size=(9, 20)),
    Case("shortcut in the forward", networks.ShortcutOutside, (3,), size=16, other_size=(9, 20)),
    Case("layers called one by one", networks.WrittenOut, (2,), size=16, other_size=(9, 20)),
]


@pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)
def test_a_network_is_condensed(case):
    torch.manual_seed(0)
    with torch.device("meta" if case.heavy else "cpu"):
        model = case.build()
        x = torch.randn(1, 3, case.size, case.size)
        other = torch.randn(2, 3, *case.other_size)
    before = {k: v.clone() for k, v in model.state_dict().items()}
    plan = condense.plan(model, x, seconds=None)
    assert tuple(len(s.remove) for s in plan.stages) == case.blocks
    small = condense.apply(model, plan)

    assert plan.after is not None
    assert (plan.before.params, plan.after.params) == (parameters(model), parameters(small))
    assert plan.after.params < plan.before.params
    assert plan.after.macs < plan.before.macs
    assert same(model.state_dict(), before)
    gone = tuple(f"{place.name}." for place in plan.places())
    kept = {k: v for k, v in small.state_dict().items() if not k.startswith(gone)}
    assert kept
    assert same(kept, {k: v for k, v in before.items() if not k.startswith(gone)})

    out = small.train()(other)
    assert out.shape == (2, 10)
    out.square().sum().backward()
    trained = {k for k, p in small.named_parameters() if p.grad is not None}
    assert {k for k, _ in small.named_parameters() if k.startswith(gone)} <= trained
    assert all(p.grad is None for p in model.parameters())

    if not case.heavy:
        again = condense.apply(model, condense.Plan.from_json(json.loads(json.dumps(plan.to_json()))))
        again.load_state_dict(small.state_dict())
        with torch.no_grad():
            assert torch.equal(small.eval()(x), again.eval()(x))


def same(got: dict[str, torch.Tensor], wanted: dict[str, torch.Tensor]) -> bool:
    """Whether names and values are equal, or shapes where there are no values."""
    return got.keys() == wanted.keys() and all(
        v.shape == wanted[k].shape if v.is_meta else torch.equal(v, wanted[k]) for k, v in got.items()
    )


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


@pytest.mark.parametrize("name", ["resnet18", "mobilenetv2_100", "torchvision.models:mobilenet_v2"])
def test_a_file_rebuilds_it(name, tmp_path):
    model = parse_source(name).build(num_classes=7)
    x = torch.randn(1, 3, 48, 48)
    small = condense.apply(model, condense.plan(model, x, seconds=None)).eval()
    path = tmp_path / "small.safetensors"
    save_weights(path, small.state_dict(), make_card(small, image_size=(32, 32)))
    again = load(path)
    assert type(again) is type(small)
    assert str(again) == str(small)
    with torch.no_grad():
        assert torch.equal(again(x), small(x))


@pytest.mark.parametrize(
    "build",
    [named("resnet32_cifar"), networks.ShortcutOutside, networks.WrittenOut],
    ids=["resnet32_cifar", "shortcut outside", "written out"],
)
def test_it_is_exported(build):
    model = build()
    x = torch.randn(2, 3, 16, 16)
    small = condense.apply(model, condense.plan(model, x, seconds=None)).eval()
    file = io.BytesIO()
    torch.onnx.export(small, (x,), file, dynamo=False)
    session = onnxruntime.InferenceSession(file.getvalue(), providers=["CPUExecutionProvider"])
    (got,) = session.run(None, {session.get_inputs()[0].name: x.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(got), small(x), atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize(
    "build",
    [networks.ShortcutOutside, networks.WrittenOut, networks.PreActivation],
    ids=lambda b: b.__name__,
)
def test_where_nothing_comes_the_kept_blocks_alone_are_the_network(build):
    """A removed block with its shortcut in the forward is the identity, not twice the input."""
    torch.manual_seed(0)
    model = build().eval()
    x = torch.randn(2, 3, 16, 16)
    small = condense.apply(model, condense.plan(model, x, block="none", seconds=None))
    if isinstance(model, networks.WrittenOut):
        model.depth = 1
    elif isinstance(model, networks.PreActivation):
        model.convs = model.convs[:2]
    else:
        model.blocks = model.blocks[:1]
    with torch.no_grad():
        torch.testing.assert_close(small(x), model(x))


def test_maps_that_are_resized_and_concatenated():
    model = networks.UNet()
    plan = condense.plan(model, torch.randn(1, 3, 16, 16), seconds=None)
    assert [s.remove for s in plan.stages] == [
        (("down.2", "down.3"),),
        (("low.2", "low.3"),),
        (("up.2", "up.3"),),
    ]
    assert condense.apply(model, plan)(torch.randn(1, 3, 20, 16)).shape == (1, 10, 20, 16)


def test_a_pooling_that_keeps_the_shape_by_chance_stays():
    model = nn.Sequential(
        nn.Conv2d(3, 8, 3, 4, 1),
        *(nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), nn.ReLU(), nn.Conv2d(8, 8, 1)) for _ in range(3)),
        nn.AdaptiveAvgPool2d(4),
        nn.Flatten(),
        nn.Linear(128, 10),
    )
    small = condense.apply(model, condense.plan(model, torch.randn(1, 3, 16, 16), seconds=None))
    assert small(torch.randn(2, 3, 64, 64)).shape == (2, 10)


def test_a_model_on_the_meta_device_is_planned():
    with torch.device("meta"):
        model = torchvision.models.resnet50()
        x = torch.randn(1, 3, 224, 224)
    plan = condense.plan(model, x)
    assert [len(s.remove) for s in plan.stages] == [2, 3, 5, 2]
    assert plan.before.seconds is None
    with torch.device("meta"):
        fewer = condense.apply(torchvision.models.resnet50(num_classes=10), plan)
        assert fewer(torch.randn(1, 3, 64, 64)).shape == (1, 10)


@pytest.mark.parametrize("block", [b for b in condense.BLOCKS if b != "zeros"])
def test_every_block_comes(block):
    model = globalcnn.create_model("resnet32_cifar", num_classes=10)
    x = torch.randn(2, 3, 16, 16)
    plan = condense.plan(model, x, block=block, seconds=None)
    small = condense.apply(model, plan).train()
    small(x).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_a_dense_stage_is_not_emptied():
    model = globalcnn.create_model("densenet121", num_classes=10)
    with pytest.raises(globalcnn.UserError, match="only a block"):
        condense.plan(model, torch.randn(1, 3, 32, 32), block="none", seconds=None)
