"""NormAct and ResidualDepthwise: their formula, their folded form, what is refused."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from globalcnn.errors import UserError, UserTypeError
from globalcnn.graph import fold_batch_norms
from globalcnn.nn import NormAct, ResidualDepthwise

X = torch.randn(2, 6, 5, 7, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


@dataclass(frozen=True)
class Case:
    name: str
    make: Callable[[], nn.Module]
    evolved: Callable[[nn.Module, Tensor], Tensor]
    act: Callable[[Tensor], Tensor] = F.relu


def convolved(block: nn.Module, x: Tensor) -> Tensor:
    k = block.conv.weight.shape[-1]
    return x + F.conv2d(x, block.conv.weight, padding=k // 2, groups=6)


CASES = [
    Case("norm and act", lambda: NormAct(6), lambda block, x: x),
    Case("norm and SiLU", lambda: NormAct(6, nn.SiLU), lambda block, x: x, F.silu),
    Case("depthwise 1x1", lambda: ResidualDepthwise(6, 1), convolved),
    Case("depthwise 3x3", lambda: ResidualDepthwise(6), convolved),
    Case("depthwise 7x7 with ReLU6", lambda: ResidualDepthwise(6, 7, nn.ReLU6), convolved, F.relu6),
]
EACH = pytest.mark.parametrize("case", CASES, ids=lambda c: c.name)


def settled(module: nn.Module) -> nn.Module:
    """In float64 and eval mode, after a few batches that give the norms statistics and weights."""
    module = module.double()
    for m in module.modules():
        if isinstance(m, nn.BatchNorm2d):
            nn.init.uniform_(m.weight, 0.5, 1.5)
            nn.init.normal_(m.bias)
    for _ in range(3):
        module(X * 2 + 1)
    return module.eval()


@EACH
def test_a_block_is_its_formula(case):
    block = settled(case.make())
    norm = block.norm
    normed = F.batch_norm(
        case.evolved(block, X), norm.running_mean, norm.running_var, norm.weight, norm.bias, eps=1e-5
    )
    assert torch.equal(block(X), case.act(normed))


@EACH
@torch.no_grad()
def test_folding_gives_one_depthwise_convolution_and_the_same_function(case):
    net = settled(nn.Sequential(nn.Conv2d(6, 6, 1), nn.BatchNorm2d(6), case.make()))
    expected = net(X)
    folding = fold_batch_norms(net)
    assert (sorted(folding.norms), folding.notes) == (["1", "2.norm"], ())
    conv, act = net[2]
    assert type(conv) is nn.Conv2d
    assert conv.groups == 6
    assert type(act) is type(case.make().act)
    torch.testing.assert_close(net(X), expected, rtol=1e-12, atol=1e-12)


@torch.no_grad()
def test_folding_keeps_the_image_when_the_convolution_has_gained_a_bias():
    block = ResidualDepthwise(6)
    block.conv.bias = nn.Parameter(torch.randn(6))
    net = settled(nn.Sequential(block))
    expected = net(X)
    fold_batch_norms(net)
    torch.testing.assert_close(net(X), expected, rtol=1e-12, atol=1e-12)


def test_gradients_and_training_pass_through():
    block = ResidualDepthwise(6).double()
    block(X).square().sum().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())


@dataclass(frozen=True)
class Kept:
    name: str
    change: Callable[[ResidualDepthwise], object]


def other_padding(block: ResidualDepthwise) -> None:
    block.conv.padding_mode = "circular"
    block.conv._reversed_padding_repeated_twice = [1, 1, 1, 1]


@pytest.mark.parametrize(
    "kept",
    [
        Kept("in training", lambda b: b.norm.train()),
        Kept("a hook", lambda b: b.conv.register_forward_hook(lambda m, i, o: 2 * o)),
        Kept("another norm", lambda b: setattr(b, "norm", nn.InstanceNorm2d(6).double())),
        Kept("another convolution", lambda b: setattr(b, "conv", nn.Conv2d(6, 6, 3, padding=1).double())),
        Kept("circular padding", other_padding),
        Kept("a parametrised weight", lambda b: parametrizations.weight_norm(b.conv)),
        Kept("a replaced forward", lambda b: setattr(b, "forward", lambda x: x)),
    ],
    ids=lambda k: k.name,
)
@torch.no_grad()
def test_a_block_that_was_altered_is_kept(kept):
    net = settled(nn.Sequential(ResidualDepthwise(6)))
    kept.change(net[0])
    expected = net(X)
    fold_batch_norms(net)
    assert type(net[0]) is ResidualDepthwise
    torch.testing.assert_close(net(X), expected, rtol=1e-12, atol=1e-12)


@dataclass(frozen=True)
class Refused:
    name: str
    call: Callable[[], object]
    error: type[Exception]
    message: str


@pytest.mark.parametrize(
    "refused",
    [
        Refused("no channels", lambda: NormAct(0), UserError, "channels=0 must be a whole number >= 1"),
        Refused("an even kernel", lambda: ResidualDepthwise(4, 4), UserError, "kernel_size=4 must be odd"),
        Refused("an instance", lambda: NormAct(4, nn.ReLU()), UserTypeError, "must be a class of modules"),
        Refused("channels", lambda: NormAct(4)(X.float()), UserError, r"NormAct: its input has shape"),
        Refused("three dimensions", lambda: ResidualDepthwise(6)(X[0].float()), UserError, "N, 6, H, W"),
    ],
    ids=lambda r: r.name,
)
def test_what_does_not_fit_is_refused(refused):
    with pytest.raises(refused.error, match=refused.message):
        refused.call()
