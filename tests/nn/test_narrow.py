"""Convolutions of few channels: `nn.Conv2d` in all but the memory layout they are trained in."""

from __future__ import annotations

import copy
import pickle
from dataclasses import dataclass

import pytest
import torch
import torch.fx
from torch import Tensor, nn

from globalcnn import create_model
from globalcnn.measure import count
from globalcnn.nn import narrow
from globalcnn.nn.narrow import NarrowConv2d

LANES = narrow._lanes()


def plain(conv: NarrowConv2d) -> nn.Conv2d:
    """The same convolution as PyTorch's own class."""
    twin = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding, conv.dilation,
        conv.groups, conv.bias is not None, conv.padding_mode,
    )  # fmt: skip
    twin.load_state_dict(conv.state_dict())
    return twin


@dataclass(frozen=True)
class Case:
    """A convolution, the images that it takes, and whether it changes the layout for them."""

    name: str
    channels: tuple[int, int]
    shape: tuple[int, int, int] = (8, 24, 24)
    stride: int = 1
    kernel: int = 3
    bias: bool = False
    padding_mode: str = "zeros"
    changes: bool = True


CASES = [
    Case("narrow", (10, 10)),
    Case("bias", (6, 10), bias=True),
    Case("narrow output", (16, 9)),
    Case("strided", (10, 9), stride=2),
    Case("circular", (5, 7), padding_mode="circular"),
    Case("strided from whole vectors", (16, 9), stride=2, changes=False),
    Case("whole vectors", (16, 32), changes=False),
    Case("pointwise", (10, 10), kernel=1, changes=False),
    Case("small batch", (10, 10), shape=(4, 48, 48), changes=False),
    Case("small images", (10, 10), shape=(8, 4, 4), changes=False),
]


def both(case: Case) -> tuple[NarrowConv2d, nn.Conv2d, Tensor]:
    settings = {"padding": case.kernel // 2, "bias": case.bias, "padding_mode": case.padding_mode}
    conv = NarrowConv2d(*case.channels, case.kernel, case.stride, **settings)
    n, h, w = case.shape
    return conv, plain(conv), torch.randn(n, case.channels[0], h, w)


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_outputs_and_gradients_are_those_of_the_plain_convolution(case):
    conv, twin, x = both(case)
    found = []
    for module in (conv, twin):
        image = x.clone().requires_grad_()
        y = module(image.sin())
        y.square().sum().backward()
        assert y.is_contiguous()
        assert image.grad.is_contiguous()
        found.append((y, image.grad, *(p.grad for p in module.parameters())))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-4, atol=1e-4 * theirs.abs().max().item())


@pytest.mark.skipif(LANES != 16, reason="which channels fill vectors depends on the processor")
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_the_layout_changes_only_where_that_was_measured_to_gain(case):
    conv, _, x = both(case)
    assert conv._gains(x, conv.weight) == case.changes
    with torch.no_grad():
        assert not conv._gains(x, conv.weight)
    with torch.autocast("cpu"):
        assert not conv._gains(x, conv.weight)
    assert not conv._gains(x.double(), conv.weight)
    assert not conv._gains(x.to(memory_format=torch.channels_last), conv.weight)


def test_second_derivatives_are_those_of_the_plain_convolution():
    conv, twin, x = both(CASES[0])
    found = []
    for module in (conv, twin):
        image = x.clone().requires_grad_()
        (gradient,) = torch.autograd.grad(module(image.sin()).square().sum(), image, create_graph=True)
        found.append(torch.autograd.grad(gradient.square().sum(), [image, module.weight]))
    for ours, theirs in zip(*found, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-3, atol=1e-4 * theirs.abs().max().item())


def test_forward_derivatives_and_transforms_of_functions():
    conv, twin, x = both(CASES[0])
    for module in (conv, twin):
        module.requires_grad_(True)
    tangents = [torch.func.jvp(module, (x,), (x.cos(),))[1] for module in (conv, twin)]
    assert torch.allclose(*tangents, atol=1e-4)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, x.cos())
        outputs = [torch.autograd.forward_ad.unpack_dual(module(dual)).tangent for module in (conv, twin)]
    assert torch.allclose(*outputs, atol=1e-4)


def test_it_is_made_of_a_convolution_without_drawing_numbers():
    conv = nn.Conv2d(10, 9, 3, stride=2, padding=1)
    random = torch.get_rng_state()
    made = NarrowConv2d.from_conv(conv)
    assert torch.equal(torch.get_rng_state(), random)
    assert made.weight is conv.weight
    assert made.bias is conv.bias
    assert made.extra_repr() == conv.extra_repr()
    for again in (pickle.loads(pickle.dumps(made)), copy.deepcopy(made)):
        assert list(again.state_dict()) == list(conv.state_dict())
        assert torch.equal(again.weight, conv.weight)


def test_a_network_with_it_counts_traces_and_exports_as_one_without():
    net = create_model("resnet_global_tiny_cifar").eval()
    twin = copy.deepcopy(net)
    narrows = [name for name, m in net.named_modules() if type(m) is NarrowConv2d]
    assert narrows == [
        "layer1.0.conv1",
        "layer1.0.conv2",
        "layer2.0.conv1",
        "layer2.0.conv2",
        "layer3.0.conv1",
    ]
    for name in narrows:
        parent, _, last = name.rpartition(".")
        setattr(twin.get_submodule(parent), last, plain(net.get_submodule(name)))
    assert list(net.state_dict()) == list(twin.state_dict())
    ours, theirs = (count(m, (3, 32, 32)) for m in (net, twin))
    assert (ours.params, ours.macs, ours.macs_pde) == (theirs.params, theirs.macs, theirs.macs_pde)
    images = torch.randn(8, 3, 24, 24)
    graphs = [torch.export.export(m.layer1, (torch.randn(8, 10, 24, 24),)).graph for m in (net, twin)]
    names = [[str(node.target) for node in graph.nodes] for graph in graphs]
    assert names[0] == names[1]
    traced = torch.jit.trace(net.layer1, torch.randn(8, 10, 24, 24))
    assert "channels_last" not in str(traced.inlined_graph)
    with torch.no_grad():
        assert torch.equal(net(images), twin(images))
    torch.testing.assert_close(
        net(images), twin(images), rtol=1e-5, atol=1e-5
    )  # in another layout, rounded anew
    symbolic = torch.fx.symbolic_trace(nn.Sequential(NarrowConv2d(10, 10, 3)))
    assert symbolic(torch.randn(8, 10, 24, 24)).shape == (8, 10, 22, 22)
